//! What the plugin answers to input that is wrong, and that it leaves nothing behind.

#![allow(clippy::print_stdout, reason = "what a test measured is worth knowing")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod node;

use std::{
    ffi::OsStr,
    fs,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

use node::{Node, TestPod, config};
use podwire_api::{Client, host_link_name};
use podwire_lab::{Attachment, CniOutput, Host, interface};
use podwire_netlink::{Birth, Link, Netlink, NewLink};
use serde_json::{Value, json};

/// Codes of the specification and of its library.
const INCOMPATIBLE: u64 = 1;
const UNSUPPORTED: u64 = 2;
const ENVIRONMENT: u64 = 4;
const UNDECODABLE: u64 = 6;
const CONFIGURATION: u64 = 7;
const NETNS: u64 = 8;
const TRY_AGAIN: u64 = 11;
const NOT_AVAILABLE: u64 = 50;
/// The plugin's own.
const REFUSED: u64 = 100;
const EXHAUSTED: u64 = 101;
const NAME_TAKEN: u64 = 102;

const POD: &str = "/run/netns/a";

/// A call that must fail.
struct Case {
    what: &'static str,
    verb: &'static str,
    /// In place of those of a right call.
    variables: Vec<(&'static str, &'static [u8])>,
    stdin: Vec<u8>,
    code: u64,
    /// Must be in the message or the details.
    word: &'static str,
}

impl Case {
    fn add(what: &'static str, code: u64, word: &'static str) -> Self {
        let stdin = config().to_string().into_bytes();
        Self { what, verb: "ADD", variables: Vec::new(), stdin, code, word }
    }

    fn verb(self, verb: &'static str) -> Self {
        Self { verb, ..self }
    }

    fn set(mut self, name: &'static str, value: &'static (impl AsRef<[u8]> + ?Sized)) -> Self {
        self.variables.push((name, value.as_ref()));
        self
    }

    fn stdin(self, stdin: impl Into<Vec<u8>>) -> Self {
        Self { stdin: stdin.into(), ..self }
    }

    /// With one key of the configuration changed, or removed by null.
    fn key(self, key: &str, value: Value) -> Self {
        let mut config = config();
        match value {
            Value::Null => drop(config.as_object_mut().unwrap().remove(key)),
            value => config[key] = value,
        }
        self.stdin(config.to_string())
    }

    fn run(&self, node: &Node) -> CniOutput {
        let mut variables = vec![
            ("CNI_CONTAINERID", OsStr::new("a-container")),
            ("CNI_NETNS", OsStr::new(POD)),
            ("CNI_IFNAME", OsStr::new("eth0")),
        ];
        variables
            .extend(self.variables.iter().map(|(name, value)| (*name, OsStr::from_bytes(value))));
        node.plugin.call(self.verb, &variables, &self.stdin).unwrap()
    }
}

/// The specification's error object, alone on standard output, and a failed process.
#[track_caller]
fn assert_refused(what: &str, output: &CniOutput, code: u64) -> Value {
    assert!(!output.status.success(), "{what}: exit status 0");
    let object: Value = serde_json::from_str(&output.stdout)
        .unwrap_or_else(|error| panic!("{what}: {error}: {output:?}"));
    assert_eq!(object["code"], code, "{what}: {object}");
    assert!(object["msg"].as_str().is_some_and(|msg| !msg.is_empty()), "{what}: {object}");
    assert!(object["cniVersion"].is_string(), "{what}: {object}");
    let known = ["cniVersion", "code", "msg", "details"];
    let others = object.as_object().unwrap().keys().filter(|key| !known.contains(&key.as_str()));
    assert_eq!(others.count(), 0, "{what}: {object}");
    object
}

fn assert_all_refused(node: &Node, cases: &[Case]) {
    let pod = node.host.pod("a").unwrap();
    let inside = pod.run(interface::names).unwrap();
    for case in cases {
        let output = case.run(node);
        let object = assert_refused(case.what, &output, case.code);
        let text = format!("{} {}", object["msg"], object["details"]);
        assert!(text.contains(case.word), "{}: no {:?} in {text}", case.what, case.word);
        node.assert_clean();
        assert_eq!(pod.run(interface::names).unwrap(), inside, "{}: in the pod", case.what);
    }
}

/// A node with a pod that nothing has been done to.
fn node_with_pod(arguments: &[&str]) -> Node {
    let host = Host::new().unwrap();
    host.add_pod("a").unwrap();
    Node::start_in(host, arguments)
}

#[test]
#[ignore = "needs root: a node in namespaces of its own"]
fn a_wrong_environment_is_refused_by_name() {
    let node = node_with_pod(&[]);
    let add = |what, word| Case::add(what, ENVIRONMENT, word);
    let not_utf8: &'static [u8] = b"a\xff";
    let mut cases = vec![
        add("no command", "CNI_COMMAND").set("CNI_COMMAND", ""),
        add("unknown command", "NONSENSE").verb("NONSENSE"),
        add("command in lower case", "add").verb("add"),
        add("command not UTF-8", "CNI_COMMAND").set("CNI_COMMAND", not_utf8),
        add("container id of a path", "CNI_CONTAINERID").set("CNI_CONTAINERID", "../a"),
        add("container id not UTF-8", "CNI_CONTAINERID").set("CNI_CONTAINERID", not_utf8),
        add("container id too long", "container id").set("CNI_CONTAINERID", &[b'a'; 300]),
        add("interface name too long", "CNI_IFNAME").set("CNI_IFNAME", "sixteen-letters-"),
        add("interface name with a slash", "CNI_IFNAME").set("CNI_IFNAME", "a/b"),
        add("interface name with a pattern", "CNI_IFNAME").set("CNI_IFNAME", "eth%d"),
        add("interface name with a blank", "CNI_IFNAME").set("CNI_IFNAME", "eth 0"),
        add("interface name of dots", "CNI_IFNAME").set("CNI_IFNAME", ".."),
        add("arguments without a value", "CNI_ARGS").set("CNI_ARGS", "IP"),
        add("arguments with no address", "IP=nonsense").set("CNI_ARGS", "IP=nonsense"),
    ];
    for verb in ["ADD", "DEL", "CHECK"] {
        for name in ["CNI_CONTAINERID", "CNI_IFNAME"] {
            cases.push(add("a variable is missing", name).verb(verb).set(name, ""));
        }
    }
    for verb in ["ADD", "CHECK"] {
        cases.push(add("no namespace", "CNI_NETNS").verb(verb).set("CNI_NETNS", ""));
    }
    let everything = ["CNI_CONTAINERID", "CNI_IFNAME", "CNI_NETNS"];
    for name in everything {
        let case = add("all are missing, each is named", name);
        cases.push(everything.into_iter().fold(case, |case, name| case.set(name, "")));
    }
    assert_all_refused(&node, &cases);
}

#[test]
#[ignore = "needs root: a node in namespaces of its own"]
fn a_wrong_configuration_is_refused() {
    let node = node_with_pod(&[]);
    let long = format!("{{\"name\": \"{}\"}}", "x".repeat(1 << 20));
    let list = json!({ "cniVersion": "1.0.0", "name": "podnet", "plugins": [config()] });
    let twice = r#"{"cniVersion": "1.0.0", "name": "podnet", "name": "other"}"#;
    let bad = |what| Case::add(what, UNDECODABLE, "");
    let invalid = |what, word| Case::add(what, CONFIGURATION, word);
    let cases = [
        bad("no configuration").stdin(""),
        bad("cut short").stdin(r#"{"cniVersion": "1.0.0", "#),
        bad("two objects").stdin("{}{}"),
        bad("not an object").stdin("[]"),
        bad("not UTF-8").stdin(b"{\"name\": \"\xff\"}".to_vec()),
        bad("a key twice").stdin(twice),
        bad("a version that is a number").key("cniVersion", json!(1)),
        Case::add("unknown version", INCOMPATIBLE, "9.9.9").key("cniVersion", json!("9.9.9")),
        Case::add("no CHECK in 0.3.1", INCOMPATIBLE, "CHECK")
            .verb("CHECK")
            .key("cniVersion", json!("0.3.1")),
        Case::add("no STATUS in 1.0.0", INCOMPATIBLE, "STATUS").verb("STATUS"),
        Case::add("no GC in 1.0.0", INCOMPATIBLE, "GC").verb("GC"),
        invalid("too long", "longer").stdin(long),
        invalid("no name", "name").key("name", Value::Null),
        invalid("a name that is a path", "name").key("name", json!("../podnet")),
        invalid("a list of plugins", "list").stdin(list.to_string()),
        invalid("a setting of the wrong type", "settings").key("runDir", json!(7)),
        invalid("a malformed address", "ips").key("runtimeConfig", json!({ "ips": ["10.1.0"] })),
        invalid("an address of another network", "10.9.0.5")
            .key("runtimeConfig", json!({ "ips": ["10.9.0.5/24"] })),
        invalid("two addresses of a family", "10.1.0.6")
            .key("runtimeConfig", json!({ "ips": ["10.1.0.5/24", "10.1.0.6/24"] })),
        invalid("a previous result", "prevResult")
            .key("prevResult", json!({ "cniVersion": "1.0.0", "interfaces": [{ "name": "br0" }] })),
        bad("a malformed previous result").key("prevResult", json!({ "interfaces": 7 })),
        invalid("CHECK without the previous result", "prevResult").verb("CHECK"),
        invalid("GC without attachments", "attachments")
            .verb("GC")
            .key("cniVersion", json!("1.1.0")),
        invalid("an IPAM plugin that is nowhere", "nowhere")
            .key("ipam", json!({ "type": "nowhere", "subnet": "10.1.0.0/24" })),
        invalid("chained after nobody", "prevResult").key("chained", json!(true)),
        invalid("a malformed MAC", "runtimeConfig.mac")
            .key("runtimeConfig", json!({ "mac": "02:00:00:00:00" })),
        invalid("a MAC of many", "runtimeConfig.mac")
            .key("runtimeConfig", json!({ "mac": "01:00:5e:00:00:01" })),
    ];
    assert_all_refused(&node, &cases);
}

#[test]
#[ignore = "needs root: a node in namespaces of its own"]
fn an_error_is_answered_in_the_version_of_the_configuration() {
    let node = node_with_pod(&[]);
    for version in ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0", "9.9.9"] {
        let case = Case::add("ipam", UNSUPPORTED, "").set("CNI_IFNAME", "..");
        let output = case.key("cniVersion", json!(version)).run(&node);
        assert_eq!(assert_refused(version, &output, ENVIRONMENT)["cniVersion"], version);
    }
}

#[test]
#[ignore = "needs root: a node in namespaces of its own"]
fn a_wrong_namespace_is_refused() {
    let node = node_with_pod(&[]);
    node.host.run(|| fs::write("/run/a-file", "")).unwrap();
    let cases = [
        Case::add("no such file", NETNS, "does not exist").set("CNI_NETNS", "/run/netns/none"),
        Case::add("no such process", NETNS, "CNI_NETNS").set("CNI_NETNS", "/proc/4194305/ns/net"),
        Case::add("a file", NETNS, "/run/a-file").set("CNI_NETNS", "/run/a-file"),
        Case::add("a folder", NETNS, "/run/netns").set("CNI_NETNS", "/run/netns"),
        Case::add("a device", NETNS, "/dev/null").set("CNI_NETNS", "/dev/null"),
        Case::add("a namespace of another kind", NETNS, "network")
            .set("CNI_NETNS", "/proc/self/ns/mnt"),
        Case::add("the node's own namespace", NETNS, "own").set("CNI_NETNS", "/proc/self/ns/net"),
    ];
    assert_all_refused(&node, &cases);
}

/// A pair of links in the calling thread's namespace, and the first of them as it stands.
fn make_link(name: &str, other: &str) -> Link {
    let mut netlink = Netlink::open().unwrap();
    let end = |name: &str| Birth::named(name.parse().unwrap());
    netlink.create_link(&NewLink::veth(end(name), end(other))).unwrap();
    netlink.link(end(name).name).unwrap()
}

fn find_link(name: &str) -> Option<Link> {
    let name: podwire_netlink::IfName = name.parse().unwrap();
    Netlink::open().unwrap().find_link(name).unwrap()
}

#[test]
#[ignore = "needs root: a node in namespaces of its own"]
fn a_name_that_is_taken_is_refused_and_its_owner_stays() {
    let host = Host::new().unwrap();
    let pod = host.add_pod("a").unwrap();
    let inside = pod.run(|| make_link("eth0", "other"));
    let host_link = host_link_name("b-container", "eth0");
    let outside = host.run(|| make_link(&host_link, "other"));
    let other = host.add_pod("b").unwrap();
    let node = Node::start_in(host, &[]);
    let cases = [
        Case::add("name taken in the pod", NAME_TAKEN, "a-container/eth0"),
        Case::add("name taken in the host", NAME_TAKEN, "not podwire's")
            .set("CNI_CONTAINERID", "b-container")
            .set("CNI_NETNS", "/run/netns/b"),
    ];
    assert_all_refused(&node, &cases);
    assert_eq!(other.run(interface::names).unwrap(), ["lo"]);
    // As runtimes do after an ADD that failed.
    for container in ["a-container", "b-container"] {
        node.plugin.del(&Attachment::new(container, POD), None).unwrap();
    }
    assert_eq!(pod.run(|| find_link("eth0")), Some(inside));
    assert_eq!(node.host.run(|| find_link(&host_link)), Some(outside));
    node.assert_clean();
}

#[test]
#[ignore = "needs root: a node in namespaces of its own"]
fn a_full_pool_and_a_taken_address_are_refused() {
    // Of a /30 a network, a broadcast and the router's address are no pod's.
    let node = node_with_pod(&["--pod-cidr", "10.1.0.0/30", "--pod-cidr", "fd00:1::/64"]);
    let pod = node.add("b");
    let before = node.host.inventory().unwrap();
    let refused = |case: Case| {
        let object = assert_refused(case.what, &case.run(&node), case.code);
        let text = format!("{} {}", object["msg"], object["details"]);
        assert!(text.contains(case.word), "{}: {text}", case.what);
        assert_eq!(node.host.inventory().unwrap().since(&before), [] as [&str; 0]);
        assert_eq!(node.ask(Client::endpoints).len(), 1, "{}", case.what);
        assert_eq!(node.ask(Client::leases).len(), 1, "{}", case.what);
        let inside = node.host.pod("a").unwrap().run(interface::names).unwrap();
        assert_eq!(inside, ["lo"], "{}", case.what);
    };
    refused(Case::add("no address left", EXHAUSTED, "add-cidr"));
    refused(Case::add("another pod's address", REFUSED, "10.1.0.2").set("CNI_ARGS", "IP=10.1.0.2"));
    refused(Case::add("the router's address", REFUSED, "10.1.0.1").set("CNI_ARGS", "IP=10.1.0.1"));
    // What was refused is free once its holder is gone.
    node.delete(&pod);
    let wanted = Attachment::new("a-container", POD).args("IP=10.1.0.2");
    let result = node.plugin.add(&wanted).unwrap();
    assert_eq!(result["ips"][0]["address"], "10.1.0.2/32");
    node.plugin.del(&wanted, Some(&result)).unwrap();
    node.assert_clean();
}

#[test]
#[ignore = "needs root: a node in namespaces of its own"]
fn without_an_agent_add_is_to_be_tried_again_and_del_succeeds() {
    let mut node = node_with_pod(&[]);
    let newest = |case: Case| case.key("cniVersion", json!("1.1.0"));
    let valid = json!({
        "cniVersion": "1.1.0", "name": "podnet", "type": "podwire-cni",
        "cni.dev/valid-attachments": [],
    });
    let previous = json!({
        "cniVersion": "1.0.0",
        "interfaces": [{ "name": "eth0", "sandbox": POD }],
    });
    let cases = || {
        [
            Case::add("ADD", TRY_AGAIN, "podwire.sock"),
            Case::add("CHECK", TRY_AGAIN, "podwire.sock")
                .verb("CHECK")
                .key("prevResult", previous.clone()),
            Case::add("GC", TRY_AGAIN, "podwire.sock").verb("GC").stdin(valid.to_string()),
            newest(Case::add("STATUS", NOT_AVAILABLE, "podwire.sock").verb("STATUS")),
        ]
    };
    let status = newest(Case::add("STATUS", 0, "").verb("STATUS")).run(&node);
    assert!(status.status.success() && status.stdout.is_empty(), "{status:?}");
    // Stopped, so that there is no socket, and killed, so that nobody listens on it.
    for stop in ["SIGTERM", "SIGKILL"] {
        match stop {
            "SIGTERM" => assert!(node.agent.terminate().unwrap().success()),
            _ => drop(node.agent.kill().unwrap()),
        }
        for case in cases() {
            let output = case.run(&node);
            println!("{stop}, {}: {:.1?}", case.what, output.elapsed);
            let object = assert_refused(case.what, &output, case.code);
            let text = format!("{} {}", object["msg"], object["details"]);
            assert!(text.contains(case.word), "{}: {text}", case.what);
            assert_eq!(node.host.inventory().unwrap().since(&node.empty), [] as [&str; 0]);
        }
        assert!(node.plugin.version().unwrap()["supportedVersions"].is_array());
        for netns in [POD, "", "/run/netns/none"] {
            node.plugin.del(&Attachment::new("a-container", netns), None).unwrap();
        }
        node.agent.start_again().unwrap();
        node.assert_clean();
    }
}

#[test]
#[ignore = "needs root: a node in namespaces of its own"]
fn version_is_answered_as_podman_asks() {
    let node = Node::start();
    let dummy = OsStr::new("dummy");
    let podman = [("CNI_NETNS", dummy), ("CNI_IFNAME", dummy), ("CNI_PATH", dummy)];
    for (stated, stdin) in
        [("1.0.0", r#"{"cniVersion":"1.0.0"}"#), ("0.4.0", r#"{"cniVersion":"0.4.0"}"#)]
    {
        let answer = node.plugin.call("VERSION", &podman, stdin.as_bytes()).unwrap();
        let answer = answer.json("VERSION").unwrap();
        assert_eq!(answer["cniVersion"], stated);
        let supported = json!(["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"]);
        assert_eq!(answer["supportedVersions"], supported);
    }
    for stdin in ["", "nonsense"] {
        let answer = node.plugin.call("VERSION", &[], stdin.as_bytes()).unwrap();
        assert_eq!(answer.json("VERSION").unwrap()["cniVersion"], "1.1.0");
    }
    node.assert_clean();
}

#[test]
#[ignore = "needs root: a node in namespaces of its own"]
fn del_succeeds_whatever_is_left_to_do() {
    let node = Node::start();
    let del = |pod: &TestPod, netns: &str, previous: Option<&Value>| {
        let attachment = Attachment { netns: PathBuf::from(netns), ..pod.attachment.clone() };
        node.plugin.del(&attachment, previous).unwrap();
    };
    let pod = node.add("a");
    for _ in 0..2 {
        del(&pod, POD, Some(&pod.result));
        node.host.inventory().unwrap();
        assert_eq!(pod.pod.run(interface::names).unwrap(), ["lo"]);
    }
    node.host.remove_pod_netns("a").unwrap();
    del(&pod, POD, Some(&pod.result));
    del(&pod, "", None);
    node.assert_clean();

    let pod = node.add("without-namespace");
    del(&pod, "", None);
    assert_eq!(pod.pod.run(interface::names).unwrap(), ["lo"]);
    let broken = json!({ "interfaces": 7 });
    let pod = TestPod { result: Value::Null, ..pod };
    del(&pod, "", Some(&broken));
    node.host.remove_pod_netns("without-namespace").unwrap();

    let pod = node.add("namespace-gone");
    node.host.remove_pod_netns("namespace-gone").unwrap();
    let path = Path::new("/run/netns/namespace-gone");
    del(&pod, path.to_str().unwrap(), None);
    node.plugin.del(&Attachment::new("never-heard-of", ""), None).unwrap();
    node.assert_clean();
}

#[test]
#[ignore = "needs root: a node in namespaces of its own"]
fn a_second_add_is_refused_and_the_first_stays() {
    let node = Node::start();
    let pod = node.add("a");
    let before = (node.host.inventory().unwrap(), node.ask(Client::endpoints));
    let error = node.plugin.add(&pod.attachment).unwrap_err();
    assert_eq!(error.cni_code(), Some(NAME_TAKEN), "{error}");
    assert_eq!((node.host.inventory().unwrap(), node.ask(Client::endpoints)), before);
    node.plugin.check(&pod.attachment, &pod.result).unwrap();
    node.delete(&pod);
    node.assert_clean();
}
