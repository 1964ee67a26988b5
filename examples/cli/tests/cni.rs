//! `podwire cni`, as an operator types it, with Debian's plugins in a host of the lab.

#![expect(clippy::unwrap_used, reason = "functions that tests share panic as tests do")]

use std::{
    fs,
    path::Path,
    process::{Command, Output},
};

use podwire_lab::{Host, allowed_missing, interface};
use serde_json::{Value, json};

const PLUGINS: &str = "/usr/lib/cni";

fn missing() -> bool {
    allowed_missing("containernetworking-plugins", || Path::new(PLUGINS).join("ptp").exists())
}

struct Node(Host);

impl Node {
    fn new() -> Self {
        let host = Host::new().unwrap();
        let node = Self(host);
        let ptp = json!({"type": "ptp", "ipam": {"type": "host-local", "subnet": "10.78.0.0/24"}});
        let tuning = json!({"type": "tuning", "capabilities": {"mac": true}});
        node.configure("10-net.conflist", &list("net", "1.0.0", &[&ptp, &tuning]));
        node.configure("20-bad.conflist", &json!({"name": "bad"}));
        node.configure(
            "30-new.conflist",
            &list("new", "1.1.0", &[&ptp, &json!({"type": "absent"})]),
        );
        node
    }

    fn configure(&self, file: &str, list: &Value) {
        self.0.run(|| {
            fs::create_dir_all("/etc/cni/net.d").unwrap();
            fs::write(Path::new("/etc/cni/net.d").join(file), list.to_string()).unwrap();
        });
    }

    fn output(&self, words: &[&str]) -> Output {
        let mut command: Command = self.0.command(env!("CARGO_BIN_EXE_podwire"));
        command.arg("cni").args(words).env_remove("CNI_PATH").output().unwrap()
    }

    fn text(&self, words: &[&str]) -> String {
        let output = self.output(words);
        assert!(output.status.success(), "{words:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    fn json(&self, words: &[&str]) -> Value {
        let words: Vec<&str> = words.iter().chain(&["-o", "json"]).copied().collect();
        serde_json::from_str(&self.text(&words)).unwrap()
    }

    /// What a failure says: reason and next step.
    fn failure(&self, words: &[&str]) -> String {
        let output = self.output(words);
        assert!(!output.status.success(), "{words:?}");
        assert!(output.stdout.is_empty(), "{words:?}");
        String::from_utf8(output.stderr).unwrap()
    }
}

fn list(name: &str, version: &str, plugins: &[&Value]) -> Value {
    json!({"cniVersion": version, "name": name, "plugins": plugins})
}

#[test]
#[ignore = "needs root: network and mount namespaces; needs containernetworking-plugins"]
fn attach_look_and_detach() {
    if missing() {
        return;
    }
    let node = Node::new();
    let pod = node.0.add_pod("blue").unwrap();
    let mac = r#"{"mac": "02:00:00:00:78:01"}"#;
    let result = node.json(&[
        "add",
        "net",
        "blue",
        "--capability",
        mac,
        "--args",
        "IgnoreUnknown=1",
        "--args",
        "A=1",
    ]);
    assert_eq!(result["cniVersion"], "1.0.0");
    assert_eq!(result["ips"][0]["address"], "10.78.0.2/24");
    assert_eq!(pod.run(|| interface::mac("eth0")).unwrap(), [2, 0, 0, 0, 0x78, 1]);

    let listed = node.json(&["list"]);
    let attachment = &listed["networks"][0]["attachments"][0];
    assert_eq!(attachment["netns"], "/run/netns/blue");
    assert_eq!(listed["networks"][0]["capabilities"], json!(["mac"]));
    assert_eq!(listed["problems"][0]["file"], "/etc/cni/net.d/20-bad.conflist");
    let text = node.text(&["list"]);
    let row =
        "net      1.0.0    ptp,tuning  mac                  1  /etc/cni/net.d/10-net.conflist";
    assert!(text.contains(row), "{text}");
    assert!(
        text.contains("unusable: /etc/cni/net.d/20-bad.conflist: plugins is missing"),
        "{text}"
    );

    // The path and the name are the same namespace; arguments need no repetition.
    let checked = node.json(&["check", "net", "/run/netns/blue"]);
    assert_eq!(checked["container_id"], attachment["container_id"]);
    assert_eq!(checked["extent"], "whole");
    let again = node.failure(&["add", "net", "blue"]);
    assert!(again.contains("is attached to net already"), "{again}");
    assert!(again.contains("podwire cni del net blue"), "{again}");

    // Its configuration is gone: what it was is remembered.
    node.0.run(|| fs::remove_file("/etc/cni/net.d/10-net.conflist")).unwrap();
    let told = node.text(&["del", "net", "blue"]);
    assert!(told.contains("is not attached to net any more"), "{told}");
    assert_eq!(pod.run(interface::names).unwrap(), ["lo"]);
    let failure = node.failure(&["del", "net", "blue"]);
    assert!(failure.contains("there is no network \"net\" in /etc/cni/net.d"), "{failure}");
    assert!(failure.contains("podwire cni list"), "{failure}");
}

#[test]
#[ignore = "needs root: network and mount namespaces; needs containernetworking-plugins"]
fn garbage_is_what_has_no_namespace() {
    if missing() {
        return;
    }
    let node = Node::new();
    for name in ["a", "b", "c"] {
        node.0.add_pod(name).unwrap();
        node.text(&["add", "net", name, "--container-id", name]);
    }
    node.0.remove_pod_netns("a").unwrap();
    let collected = node.json(&["gc", "net"]);
    assert_eq!(collected["removed"], json!(["a/eth0"]));
    assert_eq!(collected["kept"], json!(["b/eth0", "c/eth0"]));
    assert_eq!(collected["extent"], "not_in_version");
    // libcni before 1.2 does not say where it has attached something: it may live.
    node.0.run(|| {
        let file = "/var/lib/cni/results/net-b-eth0";
        let mut record: Value = serde_json::from_slice(&fs::read(file).unwrap()).unwrap();
        record.as_object_mut().unwrap().remove("netns").unwrap();
        fs::write(file, record.to_string()).unwrap();
    });
    assert_eq!(node.json(&["gc", "net"])["kept"], json!(["b/eth0", "c/eth0"]));
    let collected = node.json(&["gc", "net", "--all", "--keep", "c/eth0"]);
    assert_eq!(collected["removed"], json!(["b/eth0"]));
    node.text(&["check", "net", "c", "--container-id", "c"]);
    let failure = node.failure(&["check", "net", "b", "--container-id", "b"]);
    assert!(failure.contains("b/eth0 is not attached to net"), "{failure}");
}

#[test]
#[ignore = "needs root: network and mount namespaces; needs containernetworking-plugins"]
fn what_cannot_work_says_why_and_what_to_do() {
    if missing() {
        return;
    }
    let node = Node::new();
    node.0.add_pod("blue").unwrap();
    let versions = node.json(&["version", "new"]);
    assert_eq!(versions["plugins"][0]["supported"], false);
    assert!(versions["plugins"][0]["versions"].as_array().unwrap().contains(&json!("1.0.0")));
    assert_eq!(versions["plugins"][1]["file"], Value::Null);
    let status = node.json(&["status", "net"]);
    assert_eq!((&status["ready"], &status["extent"]), (&json!(true), &json!("not_in_version")));

    for (words, told) in [
        (&["add", "new", "blue"][..], "--bin-dir"),
        (
            &["status", "new"],
            "plugin \"absent\" was not found: looked in /opt/cni/bin, /usr/lib/cni",
        ),
        (&["add", "net", "green"], "there is no network namespace at /run/netns/green"),
        (&["add", "nowhere", "blue"], "there are net, new"),
        (&["add", "net", "blue", "--args", "A"], "it is not KEY=VALUE"),
        (&["add", "net", "blue", "--ifname", "a/b"], "it contains '/'"),
        (&["gc", "net", "--keep", "c"], "it is not CONTAINER/IFNAME"),
        (&["list", "--conf-dir", "/proc/version"], "cannot read the folder /proc/version"),
    ] {
        let failure = node.failure(words);
        assert!(failure.contains(told), "{words:?}: {failure}");
    }
    // A plugin that does not have the version says so, and what was begun is undone.
    node.configure("30-new.conflist", &list("new", "1.1.0", &[&json!({"type": "ptp"})]));
    let failure = node.failure(&["add", "new", "blue"]);
    assert!(failure.contains("podwire cni version NETWORK"), "{failure}");
    assert_eq!(node.json(&["list"])["networks"][1]["attachments"], json!([]));
    assert!(
        node.text(&["list", "--conf-dir", "/nonexistent"]).contains("no network is configured")
    );
}
