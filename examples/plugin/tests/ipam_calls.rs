//! `podwire-ipam` called as a main plugin calls it, beside Debian's host-local; without root.

#![expect(clippy::unwrap_used, reason = "functions that tests share panic as tests do")]

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use podwire_lab::{allowed_missing, binary};
use serde_json::{Value, json};
use tempfile::TempDir;

const HOST_LOCAL: &str = "/usr/lib/cni/host-local";

/// Codes of the specification, and of the plugin.
const UNSUPPORTED: u64 = 2;
const CONFIGURATION: u64 = 7;
const IO_FAILURE: u64 = 5;
const TRY_AGAIN: u64 = 11;
const NOT_AVAILABLE: u64 = 50;
const EXHAUSTED: u64 = 101;
const DIFFERENT: u64 = 103;
const ADDRESS_REFUSED: u64 = 104;
const HOLDS_OTHERS: u64 = 105;

/// A plugin with a folder of its own for data.
struct Ipam {
    program: PathBuf,
    folder: TempDir,
    config: Value,
    args: String,
}

/// What a call came to: the result, or null where there is none; or code and text of the error.
type Answer = Result<Value, (u64, String)>;

impl Ipam {
    /// `ipam` is the section of that name, without type and folder.
    fn new(program: impl Into<PathBuf>, ipam: Value) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut config = json!({ "cniVersion": "1.0.0", "name": "podnet", "type": "ptp" });
        config["ipam"] = ipam;
        config["ipam"]["type"] = "podwire-ipam".into();
        config["ipam"]["dataDir"] = folder.path().to_str().into();
        Self { program: program.into(), folder, config, args: String::new() }
    }

    fn ours(ipam: Value) -> Self {
        Self::new(binary("podwire-ipam").unwrap(), ipam)
    }

    fn with(mut self, key: &str, value: Value) -> Self {
        self.config[key] = value;
        self
    }

    fn start(&self, verb: &str, id: &str) -> Child {
        let mut command = Command::new(&self.program);
        command.env_clear().env("CNI_COMMAND", verb).env("CNI_CONTAINERID", id);
        command.env("CNI_NETNS", "/var/run/netns/x").env("CNI_IFNAME", "eth0");
        command.env("CNI_PATH", "/usr/lib/cni").env("CNI_ARGS", &self.args);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        // One that is killed at once does not read it.
        let _ = child.stdin.take().unwrap().write_all(self.config.to_string().as_bytes());
        child
    }

    fn call(&self, verb: &str, id: &str) -> Answer {
        let output = self.start(verb, id).wait_with_output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let object: Value = serde_json::from_str(&text).unwrap_or_default();
        if output.status.success() {
            return Ok(object);
        }
        let part = |key: &str| object[key].as_str().unwrap_or_default();
        Err((object["code"].as_u64().unwrap(), format!("{}: {}", part("msg"), part("details"))))
    }

    fn add(&self, id: &str) -> Answer {
        self.call("ADD", id)
    }

    /// The addresses that an ADD grants, without their lengths.
    fn granted(&self, id: &str) -> Vec<String> {
        addresses(&self.add(id).unwrap())
    }

    fn check(&self, id: &str, previous: &Value) -> Answer {
        self.variant("prevResult", previous.clone()).call("CHECK", id)
    }

    /// The same plugin with the same data and another key in its configuration.
    fn variant(&self, key: &str, value: Value) -> Variant<'_> {
        let mut config = self.config.clone();
        config[key] = value;
        Variant { of: self, config, args: self.args.clone() }
    }

    fn leases(&self) -> Vec<String> {
        let output = Command::new(binary("podwire-ipam").unwrap())
            .args(["list".as_ref(), "podnet".as_ref(), self.folder.path().as_os_str()])
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        let text = String::from_utf8(output.stdout).unwrap();
        text.lines().filter(|line| line.contains('\t')).map(str::to_owned).collect()
    }
}

/// A plugin called once with something else.
struct Variant<'a> {
    of: &'a Ipam,
    config: Value,
    args: String,
}

impl Variant<'_> {
    fn args(mut self, args: &str) -> Self {
        args.clone_into(&mut self.args);
        self
    }

    fn call(self, verb: &str, id: &str) -> Answer {
        // The folder stays the first one's; this one's is empty and goes with it.
        let folder = tempfile::tempdir().unwrap();
        let program = self.of.program.clone();
        Ipam { program, folder, config: self.config, args: self.args }.call(verb, id)
    }
}

fn addresses(result: &Value) -> Vec<String> {
    let ips = result["ips"].as_array().unwrap();
    let address =
        |ip: &Value| ip["address"].as_str().unwrap().split('/').next().unwrap().to_owned();
    ips.iter().map(address).collect()
}

fn refused(answer: Answer, code: u64, words: &str) {
    let (got, text) = answer.unwrap_err();
    assert!(got == code && text.contains(words), "{got}: {text}");
    assert!(!text.ends_with(": "), "nothing says what to do: {text}");
}

fn has_host_local() -> bool {
    !allowed_missing("containernetworking-plugins", || Path::new(HOST_LOCAL).exists())
}

/// The examples of host-local's documentation and others: both plugins answer the same to the same
/// calls, and refuse the same configurations.
#[test]
fn host_local_answers_the_same() {
    if !has_host_local() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let resolv_conf = folder.path().join("resolv.conf");
    let text = "nameserver 192.0.2.1\ndomain example.org\nsearch a b\noptions ndots:5 rotate\n";
    fs::write(&resolv_conf, text).unwrap();
    let granted = [
        json!({
            "ranges": [
                [
                    {
                        "subnet": "10.10.0.0/16", "rangeStart": "10.10.1.20",
                        "rangeEnd": "10.10.1.22", "gateway": "10.10.0.254"
                    },
                    { "subnet": "172.16.5.0/24" }
                ],
                [{
                    "subnet": "3ffe:ffff:0:01ff::/64",
                    "rangeStart": "3ffe:ffff:0:01ff::0010", "rangeEnd": "3ffe:ffff:0:01ff::0020"
                }]
            ],
            "routes": [
                { "dst": "0.0.0.0/0" },
                { "dst": "192.168.0.0/16", "gw": "10.10.5.1" },
                { "dst": "3ffe:ffff:0:01ff::1/64" }
            ]
        }),
        json!({
            "subnet": "10.10.0.0/16", "rangeStart": "10.10.1.20", "rangeEnd": "10.10.3.50",
            "gateway": "10.10.0.254",
            "routes": [{ "dst": "0.0.0.0/0" }, { "dst": "192.168.0.0/16", "gw": "10.10.5.1" }]
        }),
        json!({
            "subnet": "3ffe:ffff:0:01ff::/64", "rangeStart": "3ffe:ffff:0:01ff::0010",
            "rangeEnd": "3ffe:ffff:0:01ff::0020", "routes": [{ "dst": "3ffe:ffff:0:01ff::1/64" }],
            "resolvConf": resolv_conf.to_str()
        }),
        json!({ "subnet": "203.0.113.0/24" }),
        json!({ "subnet": "203.0.113.0/29", "gateway": "203.0.113.3", "rangeEnd": "203.0.113.5" }),
        json!({ "ranges": [[{ "Subnet": "203.0.113.0/24", "rangestart": "203.0.113.9" }]] }),
        json!({ "subnet": "10.1.0.0/24", "ranges": [[{ "subnet": "fd00::/126" }]], "exotic": 1 }),
        json!({ "ranges": [[{ "subnet": "10.1.0.0/30" }, { "subnet": "10.2.0.0/30" }]] }),
        // The old form and the list together are a set each; so are two sets of one family.
        json!({
            "subnet": "10.1.0.0/24", "rangeStart": "10.1.0.9", "rangeEnd": "10.1.0.10",
            "gateway": "10.1.0.254", "ranges": [
                [{ "subnet": "10.2.0.0/24", "gateway": "10.2.0.7", "rangeStart": "10.2.0.6" }],
                [{ "subnet": "fd00::/120", "gateway": "fd00::fe", "rangeEnd": "fd00::4" }]
            ]
        }),
        // A gateway within the range is passed over, one before it is no matter.
        json!({ "subnet": "10.1.0.0/28", "rangeStart": "10.1.0.4", "gateway": "10.1.0.5" }),
        json!({ "subnet": "10.1.0.0/28", "rangeStart": "10.1.0.4", "gateway": "10.1.0.2" }),
        // Empty and null are as nothing, of every key.
        json!({
            "subnet": "10.1.0.0/24", "rangeStart": "", "rangeEnd": null, "gateway": "",
            "ranges": [], "routes": [], "resolvConf": ""
        }),
        json!({ "subnet": "10.1.0.0/24", "dns": { "nameservers": ["192.0.2.9"] } }),
        json!({ "subnet": "10.1.0.0/24", "resolvConf": resolv_conf.to_str(), "routes": null }),
    ];
    for ipam in granted {
        for version in ["0.3.1", "0.4.0", "1.0.0"] {
            // For the main plugin: neither passes it on.
            let dns = json!({ "nameservers": ["192.0.2.9"], "search": ["c"] });
            let with =
                |plugin: Ipam| plugin.with("cniVersion", version.into()).with("dns", dns.clone());
            let ours = with(Ipam::ours(ipam.clone()));
            let theirs = with(Ipam::new(HOST_LOCAL, ipam.clone()));
            for id in ["a", "b", "c", "d", "e"] {
                let (mut ours, mut theirs) = match (ours.add(id), theirs.add(id)) {
                    (Ok(ours), Ok(theirs)) => (ours, theirs),
                    (Err((EXHAUSTED, _)), Err(_)) => continue,
                    other => panic!("{ipam} {version} {id}: {other:?}"),
                };
                for result in [&mut ours, &mut theirs] {
                    // Go writes an empty object where nothing was given.
                    if result["dns"] == json!({}) {
                        result.as_object_mut().unwrap().remove("dns");
                    }
                }
                assert_eq!(ours, theirs, "{ipam} {version} {id}");
            }
            for plugin in [&ours, &theirs] {
                assert_eq!(plugin.call("DEL", "a"), Ok(Value::Null));
                assert_eq!(plugin.call("DEL", "a"), Ok(Value::Null));
            }
        }
    }
    let subnets = |first: &str, second: &str| json!({ "ranges": [[{ "subnet": first }, { "subnet": second }]] });
    let refused = [
        json!({}),
        json!({ "ranges": [[]] }),
        json!({ "subnet": "10.0.0.0/31" }),
        json!({ "subnet": "10.0.0.0/32" }),
        json!({ "subnet": "fd00::/127" }),
        json!({ "subnet": "10.0.0.1/24" }),
        json!({ "subnet": "10.0.0.0" }),
        json!({ "subnet": "10.0.0.0/24", "rangeStart": "10.0.1.1" }),
        json!({ "subnet": "10.0.0.0/24", "rangeEnd": "10.0.1.1" }),
        json!({ "subnet": "10.0.0.0/24", "rangeStart": "10.0.0.9", "rangeEnd": "10.0.0.8" }),
        json!({ "subnet": "10.0.0.0/24", "rangeStart": "fd00::1" }),
        subnets("10.0.0.0/16", "10.0.1.0/24"),
        subnets("10.0.0.0/16", "fd00::/64"),
        json!({ "subnet": "10.0.0.0/16", "ranges": [[{ "subnet": "10.0.1.0/24" }]] }),
    ];
    for ipam in refused {
        let theirs = Ipam::new(HOST_LOCAL, ipam.clone()).add("a");
        assert!(theirs.is_err(), "{ipam}: {theirs:?}");
        self::refused(Ipam::ours(ipam).add("a"), CONFIGURATION, "");
    }
}

/// Where host-local would grant what no pod can use, we do not.
#[test]
fn what_is_refused_or_skipped_though_host_local_takes_it() {
    let outside = Ipam::ours(json!({ "subnet": "10.0.0.0/24", "gateway": "10.0.1.1" }));
    refused(outside.add("a"), CONFIGURATION, "the gateway 10.0.1.1 is not in 10.0.0.0/24");

    let whole =
        json!({ "subnet": "10.0.0.0/30", "rangeStart": "10.0.0.0", "rangeEnd": "10.0.0.3" });
    let whole = Ipam::ours(whole);
    assert_eq!(whole.granted("a"), ["10.0.0.2"]);
    refused(whole.add("b"), EXHAUSTED, "no address left in 10.0.0.0-10.0.0.3");

    let typo = json!({ "ranges": [[{ "subnet": "10.0.0.0/24", "rangeStrat": "10.0.0.9" }]] });
    refused(Ipam::ours(typo).add("a"), UNSUPPORTED, "rangeStrat \"10.0.0.9\"");
    let other = json!({ "subnet": "10.0.0.0/24", "exclude": ["10.0.0.0/28"] });
    refused(Ipam::ours(other).add("a"), UNSUPPORTED, "exclude [\"10.0.0.0/28\"]");
}

/// The same for addresses asked for, in each of the ways there are.
#[test]
fn host_local_grants_the_same_requests() {
    if !has_host_local() {
        return;
    }
    let ips = |list: &[&str]| json!({ "cni": { "ips": list } });
    let none = Value::Null;
    let cases = [
        ("IP=10.1.0.9", none.clone(), none.clone()),
        ("IP=10.1.0.9/24;IgnoreUnknown=1;K8S_POD_NAME=x", none.clone(), none.clone()),
        ("IP=fd00::9", none.clone(), none.clone()),
        ("IP=", none.clone(), none.clone()),
        ("", ips(&["10.1.0.9", "fd00::9"]), none.clone()),
        ("", ips(&["10.1.0.9/24"]), none.clone()),
        ("", none.clone(), json!({ "ips": ["10.1.0.9/24", "fd00::9/64"] })),
        ("", none.clone(), json!({ "ipRanges": [[{ "subnet": "10.2.0.0/24" }]] })),
        ("IP=10.1.0.9", ips(&["10.1.0.9"]), json!({ "ips": ["10.1.0.9/24"] })),
        // Refused by both.
        ("IP=10.1.0.1", none.clone(), none.clone()),
        ("IP=10.9.0.1", none.clone(), none.clone()),
        ("IP=10.1.0.9", ips(&["10.1.0.10"]), none.clone()),
        ("IP=here", none.clone(), none.clone()),
        ("COLOUR=red", none.clone(), none.clone()),
        ("", ips(&["here"]), none.clone()),
        ("", none.clone(), json!({ "ipRanges": [[{ "subnet": "10.1.0.128/25" }]] })),
    ];
    let mut granted = 0;
    for (args, of_args, runtime) in cases {
        let answers = [binary("podwire-ipam").unwrap(), HOST_LOCAL.into()].map(|program| {
            let ipam =
                json!({ "ranges": [[{ "subnet": "10.1.0.0/24" }], [{ "subnet": "fd00::/64" }]] });
            let mut plugin = Ipam::new(program, ipam);
            args.clone_into(&mut plugin.args);
            for (key, value) in [("args", &of_args), ("runtimeConfig", &runtime)] {
                if !value.is_null() {
                    plugin.config[key] = value.clone();
                }
            }
            plugin.add("a").map(|result| addresses(&result))
        });
        let [ours, theirs] = answers.clone().map(Result::ok);
        assert_eq!(ours, theirs, "{args} {of_args} {runtime}: {answers:?}");
        granted += usize::from(ours.is_some());
    }
    assert_eq!(granted, 9);
}

/// Of each version the specification's own result; verbs only where the version has them.
#[test]
fn every_version_is_answered_in_its_form() {
    let ipam = json!({
        "ranges": [[{ "subnet": "10.1.0.0/24" }], [{ "subnet": "fd00:1::/64" }]],
        "routes": [{ "dst": "0.0.0.0/0", "mtu": 1400 }]
    });
    for version in ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
        let plugin = Ipam::ours(ipam.clone()).with("cniVersion", version.into());
        let result = plugin.add("a").unwrap();
        let expected = match version {
            "0.1.0" | "0.2.0" => json!({
                "cniVersion": version,
                "ip4": {
                    "ip": "10.1.0.2/24", "gateway": "10.1.0.1", "routes": [{ "dst": "0.0.0.0/0" }]
                },
                "ip6": { "ip": "fd00:1::2/64", "gateway": "fd00:1::1" }
            }),
            "0.3.0" | "0.3.1" | "0.4.0" => json!({
                "cniVersion": version,
                "ips": [
                    { "version": "4", "address": "10.1.0.2/24", "gateway": "10.1.0.1" },
                    { "version": "6", "address": "fd00:1::2/64", "gateway": "fd00:1::1" }
                ],
                "routes": [{ "dst": "0.0.0.0/0" }]
            }),
            _ => json!({
                "cniVersion": version,
                "ips": [
                    { "address": "10.1.0.2/24", "gateway": "10.1.0.1" },
                    { "address": "fd00:1::2/64", "gateway": "fd00:1::1" }
                ],
                "routes": [match version {
                    "1.1.0" => json!({ "dst": "0.0.0.0/0", "mtu": 1400 }),
                    _ => json!({ "dst": "0.0.0.0/0" }),
                }]
            }),
        };
        assert_eq!(result, expected);
        assert_eq!(plugin.check("a", &result).is_ok(), version >= "0.4.0", "{version}");
        assert_eq!(plugin.call("STATUS", "").is_ok(), version == "1.1.0", "{version}");
        assert_eq!(plugin.call("DEL", "a"), Ok(Value::Null));
        let supported = plugin.call("VERSION", "").unwrap();
        assert_eq!(supported["supportedVersions"].as_array().unwrap().len(), 7);
    }
}

#[test]
fn an_add_that_is_repeated_is_answered_the_same() {
    let plugin = Ipam::ours(json!({ "subnet": "10.1.0.0/24" }));
    let first = plugin.add("a").unwrap();
    assert_eq!(plugin.add("a").unwrap(), first);
    assert_eq!(plugin.granted("b"), ["10.1.0.3"]);
    let other = plugin.variant("ipam", {
        let mut ipam = plugin.config["ipam"].clone();
        ipam["subnet"] = "10.2.0.0/24".into();
        ipam
    });
    refused(other.call("ADD", "a"), HOLDS_OTHERS, "a/eth0 already holds 10.1.0.2");
}

#[test]
fn an_address_that_is_asked_for_is_granted_or_refused_with_the_reason() {
    let plugin = Ipam::ours(
        json!({ "ranges": [[{ "subnet": "10.1.0.0/24" }], [{ "subnet": "fd00::/64" }]] }),
    );
    let plain = |args: &str| plugin.variant("type", "ptp".into()).args(args);
    let granted = |answer: Answer| addresses(&answer.unwrap());
    assert_eq!(granted(plain("IP=10.1.0.9").call("ADD", "a")), ["10.1.0.9", "fd00::2"]);
    let args = plugin.variant("args", json!({ "cni": { "ips": ["fd00::9", "10.1.0.10"] } }));
    assert_eq!(granted(args.call("ADD", "b")), ["10.1.0.10", "fd00::9"]);
    let capability = plugin.variant("runtimeConfig", json!({ "ips": ["10.1.0.11/24"] }));
    assert_eq!(granted(capability.call("ADD", "c")), ["10.1.0.11", "fd00::3"]);
    let ranges =
        plugin.variant("runtimeConfig", json!({ "ipRanges": [[{ "subnet": "10.9.0.0/24" }]] }));
    assert_eq!(granted(ranges.call("ADD", "d")), ["10.9.0.2", "10.1.0.2", "fd00::4"]);

    refused(plain("IP=10.1.0.9").call("ADD", "e"), ADDRESS_REFUSED, "10.1.0.9 is held by a/eth0");
    refused(plain("IP=10.1.0.1").call("ADD", "e"), ADDRESS_REFUSED, "it is the gateway");
    refused(plain("IP=10.1.0.255").call("ADD", "e"), ADDRESS_REFUSED, "10.1.0.255 is in no");
    refused(plain("IP=10.7.0.1").call("ADD", "e"), ADDRESS_REFUSED, "10.7.0.1 is in no");
    refused(plain("IP=here").call("ADD", "e"), 4, "IP=here");
    refused(plain("COLOUR=red").call("ADD", "e"), 4, "COLOUR");
    assert_eq!(plugin.leases().len(), 9, "{:?}", plugin.leases());
    // What was refused left nothing, and a request that others do not understand is no obstacle.
    assert_eq!(granted(plain("IgnoreUnknown=1;COLOUR=red").call("ADD", "e")).len(), 2);
    assert_eq!(plain("COLOUR=red").call("DEL", "e"), Ok(Value::Null));
}

#[test]
fn addresses_go_round_and_the_oldest_release_comes_first_when_nothing_else_is_left() {
    let plugin = Ipam::ours(json!({ "subnet": "10.1.0.0/29" })).with("cniVersion", "1.1.0".into());
    assert_eq!(plugin.granted("a"), ["10.1.0.2"]);
    plugin.call("DEL", "a").unwrap();
    for (id, address) in [("b", "10.1.0.3"), ("c", "10.1.0.4"), ("d", "10.1.0.5")] {
        assert_eq!(plugin.granted(id), [address]);
    }
    plugin.call("DEL", "c").unwrap();
    plugin.call("STATUS", "").unwrap();
    for (id, address) in [("e", "10.1.0.6"), ("f", "10.1.0.2"), ("g", "10.1.0.4")] {
        assert_eq!(plugin.granted(id), [address]);
    }
    refused(plugin.add("h"), EXHAUSTED, "podnet has no address left in 10.1.0.0/29");
    refused(plugin.call("STATUS", ""), NOT_AVAILABLE, "podnet has no address left");
    plugin.call("DEL", "b").unwrap();
    plugin.call("STATUS", "").unwrap();
    assert_eq!(plugin.granted("h"), ["10.1.0.3"]);
}

#[test]
fn check_names_every_difference() {
    let plugin = Ipam::ours(json!({ "subnet": "10.1.0.0/24" }));
    let (a, b) = (plugin.add("a").unwrap(), plugin.add("b").unwrap());
    assert_eq!(plugin.check("a", &a), Ok(Value::Null));
    // Addresses that other plugins of the list have assigned are none of ours.
    let mut more = a.clone();
    more["ips"].as_array_mut().unwrap().push(json!({ "address": "192.0.2.1/24" }));
    assert_eq!(plugin.check("a", &more), Ok(Value::Null));

    refused(plugin.check("a", &b), DIFFERENT, "b/eth0 holds 10.1.0.3; 10.1.0.2 is held but not in");
    plugin.call("DEL", "a").unwrap();
    refused(plugin.check("a", &a), DIFFERENT, "a/eth0 holds no address; nobody holds 10.1.0.2");
}

#[test]
fn gc_releases_what_is_not_valid_and_del_needs_no_ranges() {
    let plugin = Ipam::ours(json!({ "subnet": "10.1.0.0/24" })).with("cniVersion", "1.1.0".into());
    for id in ["a", "b", "c"] {
        plugin.add(id).unwrap();
    }
    let valid = json!([
        { "containerID": "b", "ifname": "eth0" },
        { "containerID": "c", "ifname": "net1" },
    ]);
    plugin.variant("cni.dev/valid-attachments", valid).call("GC", "").unwrap();
    assert_eq!(plugin.leases(), ["10.1.0.3\tb/eth0"]);
    let ipam = json!({ "dataDir": plugin.folder.path().to_str(), "subnet": "nonsense" });
    plugin.variant("ipam", ipam).call("DEL", "b").unwrap();
    assert_eq!(plugin.leases(), [] as [&str; 0]);
    // Of a network that never was, DEL and GC leave nothing behind either.
    let ipam = json!({ "dataDir": plugin.folder.path().join("none").to_str() });
    plugin.variant("ipam", ipam.clone()).call("DEL", "b").unwrap();
    plugin.variant("ipam", ipam).call("CHECK", "b").unwrap_err();
    assert!(!plugin.folder.path().join("none").exists());
}

#[test]
fn sixteen_at_a_time_never_get_the_same_address() {
    let plugin = Ipam::ours(
        json!({ "ranges": [[{ "subnet": "10.1.0.0/24" }], [{ "subnet": "fd00::/120" }]] }),
    );
    let ids: Vec<String> = (0..15 * 16).map(|number| format!("pod{number}")).collect();
    let granted: Vec<String> = thread::scope(|scope| {
        let threads: Vec<_> = ids
            .chunks(15)
            .map(|ids| {
                let plugin = &plugin;
                scope
                    .spawn(move || ids.iter().flat_map(|id| plugin.granted(id)).collect::<Vec<_>>())
            })
            .collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    let different: BTreeSet<&String> = granted.iter().collect();
    assert_eq!((granted.len(), different.len()), (480, 480));
    assert_eq!(plugin.leases().len(), 480);
}

/// Killed at moments that differ from call to call. Whatever it had done by then, DEL undoes it.
#[test]
fn calls_that_are_killed_leave_nothing_that_del_does_not_release() {
    let plugin = Ipam::ours(json!({ "subnet": "10.1.0.0/24" }));
    const THREADS: u64 = 16;
    const CALLS: u64 = 40;
    thread::scope(|scope| {
        for thread in 0..THREADS {
            let plugin = &plugin;
            scope.spawn(move || {
                for call in 0..CALLS {
                    // Each owner is added, or deleted again, with or without being killed.
                    let verb = if call % 3 == 2 { "DEL" } else { "ADD" };
                    let mut child = plugin.start(verb, &format!("pod{thread}-{}", call % 5));
                    let wait = (thread * CALLS + call) * 7919 % 6000;
                    thread::sleep(Duration::from_micros(wait));
                    child.kill().unwrap();
                    child.wait().unwrap();
                }
            });
        }
    });
    let before: Vec<String> = plugin.leases();
    let addresses: BTreeSet<&str> =
        before.iter().map(|line| line.split('\t').next().unwrap()).collect();
    assert_eq!(addresses.len(), before.len(), "{before:?}");
    for thread in 0..THREADS {
        for owner in 0..5 {
            plugin.call("DEL", &format!("pod{thread}-{owner}")).unwrap();
        }
    }
    assert_eq!(plugin.leases(), [] as [&str; 0]);
    for number in 0..253 {
        plugin.add(&format!("new{number}")).unwrap();
    }
    refused(plugin.add("one-more"), EXHAUSTED, "has no address left");
}

#[test]
fn a_store_that_cannot_be_used_is_told_with_what_to_do() {
    let plugin = Ipam::ours(json!({ "subnet": "10.1.0.0/24" })).with("cniVersion", "1.1.0".into());
    plugin.add("a").unwrap();
    let file = fs::read_dir(plugin.folder.path()).unwrap().next().unwrap().unwrap().path();

    let holder = fs::File::open(&file).unwrap();
    holder.lock().unwrap();
    refused(plugin.add("b"), TRY_AGAIN, "was in use by others for 10 s");
    holder.unlock().unwrap();
    plugin.add("b").unwrap();

    fs::write(&file, "no store at all").unwrap();
    refused(plugin.add("c"), IO_FAILURE, "remove it when no pod of this network runs");
    refused(plugin.call("STATUS", ""), NOT_AVAILABLE, file.to_str().unwrap());

    let ipam = json!({ "subnet": "10.1.0.0/24", "dataDir": file.join("below").to_str() });
    refused(plugin.variant("ipam", ipam).call("ADD", "c"), IO_FAILURE, "ipam.dataDir");
    let ipam = json!({ "subnet": "10.1.0.0/24", "resolvConf": "/no/such/file" });
    refused(plugin.variant("ipam", ipam).call("ADD", "c"), IO_FAILURE, "/no/such/file");
}

/// Bits turned over and ends cut off: whatever is found out is told, and nothing hangs.
#[test]
fn a_damaged_store_is_told_with_what_to_do() {
    let plugin = Ipam::ours(json!({ "subnet": "10.1.0.0/24" }));
    for number in 0..20 {
        plugin.add(&format!("pod{number}")).unwrap();
    }
    let path = fs::read_dir(plugin.folder.path()).unwrap().next().unwrap().unwrap().path();
    let good = fs::read(&path).unwrap();
    let mut random = 1_usize;
    let mut below = |end: usize| {
        random =
            random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (random >> 33) % end
    };
    let mut told = 0;
    for round in 0..150 {
        let mut bytes = good.clone();
        match round % 3 {
            0 => bytes.truncate(1 + below(good.len() - 1)),
            1 => (0..200).for_each(|_| bytes[below(good.len())] ^= 1 << (round % 8)),
            _ => bytes[below(400)] ^= 1 << (round % 8),
        }
        fs::write(&path, bytes).unwrap();
        if let Err((code, text)) = plugin.add("new") {
            assert!(code == IO_FAILURE && text.contains("when no pod of this network"), "{text}");
            told += 1;
        }
    }
    assert!(told > 50, "{told}");
}

/// The file of another boot is not even opened: it may be torn.
#[test]
fn leases_of_another_boot_are_dropped() {
    let plugin = Ipam::ours(json!({ "subnet": "10.1.0.0/24" }));
    let old = plugin.folder.path().join("podnet.00000000-0000-0000-0000-000000000000.redb");
    fs::write(&old, "torn").unwrap();
    let output = plugin.start("ADD", "a").wait_with_output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success() && stderr.contains("leases of podnet"), "{stderr}");
    assert!(!old.exists());
    assert_eq!(plugin.leases(), ["10.1.0.2\ta/eth0"]);
}

#[test]
fn leases_of_host_local_are_taken_over() {
    if !has_host_local() {
        return;
    }
    let ranges = json!({ "ranges": [[{ "subnet": "10.1.0.0/24" }], [{ "subnet": "fd00::/64" }]] });
    let theirs = Ipam::new(HOST_LOCAL, ranges.clone());
    let before: Vec<_> = ["a", "b"].map(|id| theirs.add(id).unwrap()).to_vec();
    let ours = Ipam::ours(ranges);
    let words: [&OsStr; 4] = [
        "import".as_ref(),
        "podnet".as_ref(),
        theirs.folder.path().as_ref(),
        ours.folder.path().as_ref(),
    ];
    for _ in 0..2 {
        let output = Command::new(&ours.program).args(words).output().unwrap();
        assert!(output.status.success(), "{output:?}");
    }
    assert_eq!(addresses(&ours.add("b").unwrap()), addresses(&before[1]));
    ours.check("a", &before[0]).unwrap();
    assert_eq!(ours.granted("c"), ["10.1.0.4", "fd00::4"]);
    ours.call("DEL", "a").unwrap();
    assert_eq!(ours.leases().len(), 4);
}
