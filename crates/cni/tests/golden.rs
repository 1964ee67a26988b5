//! Results, errors and configurations as the specification's texts show them, and as the reference
//! plugins write them.

#![expect(clippy::unwrap_used, reason = "functions that tests share panic as tests do")]

use podwire_cni::types::{Dns, Interface, Ip, Route, Success};
use podwire_cni::{
    Add, Check, Code, Del, Environment, Error, NetworkConfig, Plugin, SpecVersion, dispatch,
};
use serde_json::{Value, json};

/// The example that runs through the specification: an address on the third of three interfaces.
fn dbnet() -> Success {
    let mut success = Success::default();
    let mut bridge = Interface::new("cni0");
    bridge.mac = Some("00:11:22:33:44:55".into());
    let mut host = Interface::new("veth3243");
    host.mac = Some("55:44:33:22:11:11".into());
    let mut container = Interface::in_sandbox("eth0", "/var/run/netns/blue");
    container.mac = Some("99:88:77:66:55:44".into());
    success.interfaces = vec![bridge, host, container];
    let mut ip = Ip::new("10.1.0.5/16".parse().unwrap());
    ip.gateway = Some("10.1.0.1".parse().unwrap());
    ip.interface = Some(2);
    success.ips = vec![ip];
    success.routes = vec![Route::new("0.0.0.0/0".parse().unwrap())];
    success.dns = Dns::default();
    success.dns.nameservers = vec!["10.1.0.1".into()];
    success
}

/// What the specifications of the version print for it.
fn dbnet_text(version: SpecVersion) -> Value {
    let interfaces = json!([
        {"name": "cni0", "mac": "00:11:22:33:44:55"},
        {"name": "veth3243", "mac": "55:44:33:22:11:11"},
        {"name": "eth0", "mac": "99:88:77:66:55:44", "sandbox": "/var/run/netns/blue"},
    ]);
    let dns = json!({"nameservers": ["10.1.0.1"]});
    let routes = json!([{"dst": "0.0.0.0/0"}]);
    match version {
        SpecVersion::V0_1_0 | SpecVersion::V0_2_0 => json!({
            "cniVersion": version,
            "ip4": {"ip": "10.1.0.5/16", "gateway": "10.1.0.1", "routes": routes},
            "dns": dns,
        }),
        SpecVersion::V0_3_0 | SpecVersion::V0_3_1 | SpecVersion::V0_4_0 => json!({
            "cniVersion": version,
            "interfaces": interfaces,
            "ips": [{
                "version": "4", "address": "10.1.0.5/16", "gateway": "10.1.0.1", "interface": 2,
            }],
            "routes": routes,
            "dns": dns,
        }),
        _ => json!({
            "cniVersion": version,
            "interfaces": interfaces,
            "ips": [{"address": "10.1.0.5/16", "gateway": "10.1.0.1", "interface": 2}],
            "routes": routes,
            "dns": dns,
        }),
    }
}

#[test]
fn the_specifications_example_in_every_version() {
    for version in SpecVersion::ALL {
        let text = dbnet_text(*version);
        assert_eq!(dbnet().to_value(*version), text, "{version}");
        let read = Success::from_value(text, *version).unwrap();
        let mut expected = dbnet();
        if *version <= SpecVersion::V0_2_0 {
            expected.interfaces.clear();
            expected.ips[0].interface = None;
        }
        assert_eq!(read, expected, "{version}");
    }
}

#[test]
fn attributes_of_1_1_0() {
    let mut success = dbnet();
    success.interfaces[2].mtu = Some(1450);
    success.interfaces[2].socket_path = Some("/run/vhost.sock".into());
    success.interfaces[2].pci_id = Some("0000:00:1f.6".into());
    let route = &mut success.routes[0];
    route.gw = Some("10.1.0.1".parse().unwrap());
    route.mtu = Some(1400);
    route.advmss = Some(1360);
    route.priority = Some(100);
    route.table = Some(50);
    route.scope = Some(253);
    let text = success.to_value(SpecVersion::V1_1_0);
    assert_eq!(
        text["interfaces"][2],
        json!({
            "name": "eth0", "mac": "99:88:77:66:55:44", "mtu": 1450,
            "sandbox": "/var/run/netns/blue", "socketPath": "/run/vhost.sock",
            "pciID": "0000:00:1f.6",
        })
    );
    assert_eq!(
        text["routes"][0],
        json!({
            "dst": "0.0.0.0/0", "gw": "10.1.0.1", "mtu": 1400, "advmss": 1360, "priority": 100,
            "table": 50, "scope": 253,
        })
    );
    assert_eq!(Success::from_value(text, SpecVersion::V1_1_0).unwrap(), success);
    // 1.0.0 has no place for them.
    let mut older = dbnet_text(SpecVersion::V1_0_0);
    older["routes"][0]["gw"] = json!("10.1.0.1");
    assert_eq!(success.to_value(SpecVersion::V1_0_0), older);
}

/// `/usr/lib/cni/static` of Debian's containernetworking-plugins 1.1.1, one answer per version to
/// the configuration in its documentation.
#[test]
fn results_of_a_reference_plugin() {
    for (version, text) in [
        (SpecVersion::V0_1_0, include_str!("golden/static-0.1.0.json")),
        (SpecVersion::V0_2_0, include_str!("golden/static-0.2.0.json")),
        (SpecVersion::V0_3_0, include_str!("golden/static-0.3.0.json")),
        (SpecVersion::V0_3_1, include_str!("golden/static-0.3.1.json")),
        (SpecVersion::V0_4_0, include_str!("golden/static-0.4.0.json")),
        (SpecVersion::V1_0_0, include_str!("golden/static-1.0.0.json")),
    ] {
        let value: Value = serde_json::from_str(text).unwrap();
        let read = Success::from_value(value.clone(), version).unwrap();
        assert_eq!(read.to_value(version), value, "{version}");
        // All say the same; the older ones only sort it differently.
        let newest: Value = serde_json::from_str(include_str!("golden/static-1.0.0.json")).unwrap();
        assert_eq!(read.to_value(SpecVersion::V1_0_0), newest, "{version}");
    }
}

#[test]
fn the_specifications_error() {
    let error = Error::new(Code::INVALID_NETWORK_CONFIG, "Invalid Configuration")
        .with_details("Network 192.168.0.0/31 too small to allocate from.");
    assert_eq!(
        error.to_value(SpecVersion::V1_0_0),
        json!({
            "cniVersion": "1.0.0",
            "code": 7,
            "msg": "Invalid Configuration",
            "details": "Network 192.168.0.0/31 too small to allocate from."
        })
    );
}

#[test]
fn the_codes_are_the_specifications() {
    let codes = [
        (Code::INCOMPATIBLE_CNI_VERSION, 1),
        (Code::UNSUPPORTED_FIELD, 2),
        (Code::UNKNOWN_CONTAINER, 3),
        (Code::INVALID_ENVIRONMENT_VARIABLES, 4),
        (Code::IO_FAILURE, 5),
        (Code::DECODING_FAILURE, 6),
        (Code::INVALID_NETWORK_CONFIG, 7),
        (Code::TRY_AGAIN_LATER, 11),
        (Code::PLUGIN_NOT_AVAILABLE, 50),
        (Code::LIMITED_CONNECTIVITY, 51),
        (Code::plugin(100), 100),
    ];
    for (code, number) in codes {
        assert_eq!(code.get(), number);
    }
}

#[test]
#[should_panic(expected = "codes below 100 are the specification's")]
fn a_plugin_has_no_code_below_100() {
    let _ = Code::plugin(99);
}

/// Step 2 of the specification's "Add example", with what containerd adds.
#[test]
fn a_configuration_as_a_runtime_gives_it() {
    let text = json!({
        "cniVersion": "1.0.0",
        "name": "dbnet",
        "type": "tuning",
        "sysctl": {"net.core.somaxconn": "500"},
        "ipam": {"type": "host-local", "subnet": "10.1.0.0/16"},
        "dns": {"nameservers": ["10.1.0.1"]},
        "args": {"labels": {"appVersion": "1.0"}},
        "runtimeConfig": {
            "mac": "00:11:22:33:44:66",
            "ips": ["10.1.0.9/16", "fd00::9"],
            "portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}],
            "dns": {"servers": ["10.1.0.2"], "searches": ["svc.local"], "options": null},
            "io.kubernetes.cri.pod-annotations": {"podwire.io/pool": "blue"},
        },
        "prevResult": {"ips": [{"address": "10.1.0.5/16", "interface": 0}], "interfaces": [{"name": "eth0"}]},
    });
    let config = NetworkConfig::parse(text.to_string().as_bytes()).unwrap();
    assert_eq!(config.version(), SpecVersion::V1_0_0);
    assert_eq!(config.name().as_str(), "dbnet");
    assert_eq!(config.plugin(), Some("tuning"));
    assert_eq!(config.ipam_plugin(), Some("host-local"));
    assert_eq!(config.dns().unwrap().nameservers, ["10.1.0.1"]);
    assert_eq!(config.args().unwrap()["labels"]["appVersion"], "1.0");
    let runtime = config.runtime();
    assert_eq!(runtime.mac.as_deref(), Some("00:11:22:33:44:66"));
    let ips: Vec<String> = runtime.ips.iter().map(ToString::to_string).collect();
    assert_eq!(ips, ["10.1.0.9/16", "fd00::9/128"]);
    assert_eq!(runtime.pod_annotations["podwire.io/pool"], "blue");
    assert_eq!(runtime.object["portMappings"][0]["hostPort"], 8080);
    let dns = runtime.dns.as_ref().unwrap();
    assert_eq!(
        (&dns.nameservers[..], &dns.search[..]),
        (&["10.1.0.2".into()][..], &["svc.local".into()][..])
    );
    let prev_result = config.prev_result().unwrap().unwrap();
    assert_eq!(prev_result.interface_of(&prev_result.ips[0]).unwrap().name, "eth0");
    assert_eq!(Value::Object(config.object().clone()), text);

    let nulls = json!({
        "cniVersion": "1.0.0", "name": "dbnet", "type": "x", "dns": null, "args": null,
        "prevResult": null,
        "runtimeConfig": {"io.kubernetes.cri.pod-annotations": null, "mac": null, "ips": null, "dns": null},
    });
    let config = NetworkConfig::parse(nulls.to_string().as_bytes()).unwrap();
    assert!(config.runtime().pod_annotations.is_empty());
    assert!(config.runtime().dns.is_none());
    assert!(config.runtime().mac.is_none() && config.runtime().ips.is_empty());
    assert_eq!(config.prev_result(), Ok(None));
    assert!(config.dns().unwrap().is_empty());
    let null = br#"{"cniVersion": "1.0.0", "name": "n", "runtimeConfig": null}"#;
    assert!(NetworkConfig::parse(null).unwrap().runtime().object.is_empty());
}

/// What Go writes where nothing is.
#[test]
fn results_with_nulls_and_empty_texts() {
    let text = json!({
        "cniVersion": "0.3.1",
        "interfaces": null,
        "ips": [{"version": "4", "address": "10.0.0.2/24", "gateway": "", "interface": null}],
        "routes": null,
        "dns": {"nameservers": null, "domain": ""},
    });
    let read = Success::from_value(text, SpecVersion::V1_1_0).unwrap();
    let mut expected = Success::default();
    expected.ips.push(Ip::new("10.0.0.2/24".parse().unwrap()));
    assert_eq!(read, expected, "and its own version counts, not the configuration's");
}

#[test]
fn unreadable_results() {
    for (text, code) in [
        (json!([]), 6),
        (json!("x"), 6),
        (json!({"cniVersion": 1}), 6),
        (json!({"cniVersion": "3.0.0"}), 1),
        (json!({"ips": [{"address": "10.0.0.1"}]}), 6),
        (json!({"ips": [{"address": "10.0.0.1/255.255.255.0"}]}), 6),
        (json!({"ips": [{"address": "10.0.0.1/33"}]}), 6),
        (json!({"ips": [{"address": "10.0.0.1/+8"}]}), 6),
        (json!({"ips": [{"address": "10.0.0.1/24", "interface": -1}]}), 6),
        (json!({"ips": [{"address": "10.0.0.1/24", "gateway": "x"}]}), 6),
        (json!({"ips": {}}), 6),
        (json!({"interfaces": [{"mac": "x"}]}), 6),
        (json!({"routes": [{"dst": "default"}]}), 6),
        (json!({"routes": [{"dst": "::/0", "scope": 256}]}), 6),
    ] {
        let error = Success::from_value(text.clone(), SpecVersion::V1_1_0).unwrap_err();
        assert_eq!(error.code().get(), code, "{text}: {error}");
    }
}

/// Before 0.3.0 there is room for one address of each family: the container's own.
#[test]
fn the_one_address_is_the_containers() {
    let mut success = dbnet();
    let mut on_the_host = Ip::new("10.9.0.1/32".parse().unwrap());
    on_the_host.interface = Some(0);
    success.ips.insert(0, on_the_host);
    assert_eq!(success.to_value(SpecVersion::V0_2_0), dbnet_text(SpecVersion::V0_2_0));
    // Without interfaces nothing tells them apart, and the first is as good as any.
    success.interfaces.clear();
    assert_eq!(success.to_value(SpecVersion::V0_2_0)["ip4"]["ip"], "10.9.0.1/32");
}

/// A plugin that hands on what it was given, as portmap does.
struct Portmap;

impl Plugin for Portmap {
    fn add(&self, add: &Add) -> Result<Success, Error> {
        Ok(add.prev_result.clone().unwrap_or_default())
    }

    fn del(&self, _: &Del) -> Result<(), Error> {
        Ok(())
    }

    fn check(&self, _: &Check) -> Result<(), Error> {
        Ok(())
    }
}

/// What a call of it writes: a result, an error, nothing.
fn answer(command: &str, input: &Value) -> Option<Value> {
    let environment = Environment::new([
        ("CNI_COMMAND", command),
        ("CNI_CONTAINERID", "blue"),
        ("CNI_NETNS", "/var/run/netns/blue"),
        ("CNI_IFNAME", "eth0"),
        ("CNI_ARGS", "argA=foo"),
        ("CNI_PATH", "/opt/cni/bin"),
    ]);
    let mut stdout = Vec::new();
    let _ = dispatch(&Portmap, &environment, input.to_string().as_bytes(), &mut stdout);
    (!stdout.is_empty()).then(|| serde_json::from_slice(&stdout).unwrap())
}

/// Every input that the specifications' examples show, in every version and command; what
/// runtimes make of the same files is in tests/runtime.rs.
#[test]
fn a_plugin_takes_what_the_specifications_give_it() {
    for text in [
        include_str!("golden/lists/0.1.0.json"),
        include_str!("golden/lists/0.2.0.json"),
        include_str!("golden/lists/0.3.0.json"),
        include_str!("golden/lists/0.3.1.json"),
        include_str!("golden/lists/0.4.0.json"),
        include_str!("golden/lists/1.0.0.json"),
        include_str!("golden/lists/1.1.0.json"),
    ] {
        let golden: Value = serde_json::from_str(text).unwrap();
        let version: SpecVersion =
            golden["network"]["cniVersion"].as_str().unwrap().parse().unwrap();
        let calls = golden["calls"].as_object().unwrap();
        for (command, calls) in calls {
            for call in calls.as_array().unwrap() {
                let input = &call[1];
                let answer = answer(command, input);
                if command == "ADD" {
                    let mut expected = input.get("prevResult").cloned().unwrap_or(json!({}));
                    expected["cniVersion"] = version.as_str().into();
                    assert_eq!(answer.unwrap(), expected, "{version}: {}", call[0]);
                } else {
                    assert_eq!(answer, None, "{version}: {command} {}", call[0]);
                }
            }
        }
        // And what the version does not have.
        let input = &golden["calls"]["ADD"][0][1];
        for command in
            ["CHECK", "STATUS", "GC"].into_iter().filter(|name| !calls.contains_key(*name))
        {
            let error = answer(command, input).unwrap();
            assert_eq!((&error["code"], &error["cniVersion"]), (&json!(1), &input["cniVersion"]));
        }
        assert_eq!(
            answer("VERSION", input).unwrap(),
            json!({
                "cniVersion": version,
                "supportedVersions":
                    ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"],
            })
        );
    }
}
