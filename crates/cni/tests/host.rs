//! Debian's reference plugins, run as a list in a host of the lab.

#![expect(clippy::unwrap_used, reason = "functions that tests share panic as tests do")]

use std::path::Path;

use podwire_cni::runtime::{Cache, Entry, Extent, Network, Request, Runtime};
use podwire_cni::{Attachment, Code, SpecVersion};
use podwire_lab::probe::{EchoReceiver, Ping};
use podwire_lab::{Host, Pod, allowed_missing, interface};
use serde_json::{Value, json};

const PLUGINS: &str = "/usr/lib/cni";
const LEASES: &str = "/var/lib/cni/networks/dbnet";

fn missing() -> bool {
    allowed_missing("containernetworking-plugins", || Path::new(PLUGINS).join("ptp").exists())
}

fn runtime() -> Runtime {
    Runtime::new([PLUGINS.into()], Cache::new("/var/lib/cni"))
}

fn list(version: &str, more: &[Value]) -> Network {
    let ptp = json!({
        "type": "ptp",
        "ipam": {"type": "host-local", "subnet": "10.77.0.0/24", "routes": [{"dst": "0.0.0.0/0"}]},
    });
    let mut plugins = vec![ptp];
    plugins.extend(more.iter().cloned());
    let list = json!({"cniVersion": version, "name": "dbnet", "plugins": plugins});
    Network::parse(list.to_string().as_bytes()).unwrap()
}

fn tuning() -> Value {
    json!({"type": "tuning", "sysctl": {"net.core.somaxconn": "500"}, "capabilities": {"mac": true}})
}

fn request(pod: &Pod) -> Request {
    let mut request = Request::new(pod.name().parse().unwrap(), "eth0".parse().unwrap());
    request.netns = Some(pod.path().to_str().unwrap().parse().unwrap());
    request
}

/// The addresses that host-local has given out.
fn leases() -> usize {
    let Ok(entries) = std::fs::read_dir(LEASES) else { return 0 };
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.starts_with("10.77.")).count()
}

fn cached() -> Vec<String> {
    let entries = runtime().cache().entries().unwrap();
    entries
        .into_iter()
        .map(|found| found.content.unwrap().request.attachment().to_string())
        .collect()
}

#[test]
#[ignore = "needs root: network and mount namespaces; needs containernetworking-plugins"]
fn a_list_is_added_checked_and_deleted_in_every_version_of_lists() {
    if missing() {
        return;
    }
    let host = Host::new().unwrap();
    for version in ["0.3.0", "0.3.1", "0.4.0", "1.0.0"] {
        let pod = host.add_pod("a").unwrap();
        let (network, mut request) = (list(version, &[tuning()]), request(&pod));
        request.capabilities.insert("mac".into(), "02:00:00:00:77:01".into());
        let before = host.inventory().unwrap();

        host.run(|| runtime().validate(&network)).unwrap();
        let success = host.run(|| runtime().add(&network, &request)).unwrap();
        let address = success.ips[0].address.ip();
        let receiver = pod.run(|| EchoReceiver::icmp(address)).unwrap();
        let report = host.run(|| Ping::new(address).run()).unwrap();
        assert!(report.is_complete(), "{version}: {report}");
        drop(receiver);
        assert_eq!(pod.run(|| interface::mac("eth0")).unwrap(), [2, 0, 0, 0, 0x77, 1]);
        assert_eq!((host.run(leases), host.run(cached)), (1, vec!["a/eth0".to_owned()]));

        let checked = host.run(|| runtime().check(&network, &request));
        if network.version() >= SpecVersion::V0_4_0 {
            assert_eq!(checked.unwrap(), Extent::Whole);
            pod.run(|| std::fs::write("/proc/sys/net/core/somaxconn", "400")).unwrap();
            let error = host.run(|| runtime().check(&network, &request)).unwrap_err();
            assert!(error.msg().starts_with("plugin tuning: "), "{error}");
        } else {
            assert_eq!(checked.unwrap_err().code(), Code::INCOMPATIBLE_CNI_VERSION);
        }

        // As containerd: once as it was, once when the namespace is gone.
        host.run(|| runtime().del(&network, &request)).unwrap();
        host.remove_pod_netns("a").unwrap();
        request.netns = None;
        host.run(|| runtime().del(&network, &request)).unwrap();
        assert_eq!((host.run(leases), host.run(cached)), (0, vec![]));
        let left = host.inventory().unwrap().since(&before);
        let left: Vec<_> = left.iter().filter(|line| !line.contains("dev lo ")).collect();
        assert!(left.is_empty(), "{version}: {left:?}");
    }
}

#[test]
#[ignore = "needs root: network and mount namespaces; needs containernetworking-plugins"]
fn lo_is_a_network_too() {
    if missing() {
        return;
    }
    let host = Host::new().unwrap();
    let pod = host.add_pod("a").unwrap();
    let text = br#"{"cniVersion": "0.4.0", "name": "lo", "type": "loopback"}"#;
    let network = Network::parse_single(text).unwrap();
    let mut request = request(&pod);
    request.ifname = "lo".parse().unwrap();
    let success = host.run(|| runtime().add(&network, &request)).unwrap();
    assert_eq!(success.interfaces[0].name, "lo");
    assert_eq!(host.run(|| runtime().check(&network, &request)).unwrap(), Extent::Whole);
    host.run(|| runtime().del(&network, &request)).unwrap();
}

#[test]
#[ignore = "needs root: network and mount namespaces; needs containernetworking-plugins"]
fn a_failure_in_the_middle_of_a_list_leaves_nothing() {
    if missing() {
        return;
    }
    let host = Host::new().unwrap();
    let pod = host.add_pod("a").unwrap();
    // The forwarding that ptp turns on is the host's from then on.
    host.run(|| std::fs::write("/proc/sys/net/ipv4/ip_forward", "1")).unwrap();
    let before = host.inventory().unwrap();
    let bad = json!({"type": "tuning", "sysctl": {"net.core.no_such_thing": "1"}});
    let last = json!({"type": "portmap", "capabilities": {"portMappings": true}});
    let (network, request) = (list("1.0.0", &[bad, last]), request(&pod));
    let error = host.run(|| runtime().add(&network, &request)).unwrap_err();
    assert!(error.msg().starts_with("plugin tuning: "), "{error}");
    assert!(!error.to_string().contains("undoing"), "{error}");
    assert_eq!((host.run(leases), host.run(cached)), (0, vec![]));
    assert_eq!(pod.run(interface::names).unwrap(), ["lo"]);
    let left = host.inventory().unwrap().since(&before);
    assert!(left.is_empty(), "{left:?}");
    // And it may be tried again.
    let good = list("1.0.0", &[]);
    host.run(|| runtime().add(&good, &request)).unwrap();
    host.run(|| runtime().del(&good, &request)).unwrap();
}

#[test]
#[ignore = "needs root: network and mount namespaces; needs containernetworking-plugins"]
fn garbage_is_collected_and_the_rest_stays() {
    if missing() {
        return;
    }
    let host = Host::new().unwrap();
    let network = list("1.0.0", &[tuning()]);
    let pods = ["a", "b", "c"].map(|name| host.add_pod(name).unwrap());
    for pod in &pods {
        host.run(|| runtime().add(&network, &request(pod))).unwrap();
    }
    // Of c, nobody knows any more where it was.
    host.remove_pod_netns("c").unwrap();
    let valid: Vec<Attachment> = vec![request(&pods[1]).attachment()];
    let collected = host.run(|| runtime().gc(&network, &valid)).unwrap();
    let removed: Vec<String> = collected.removed.iter().map(ToString::to_string).collect();
    assert_eq!(removed, ["a/eth0", "c/eth0"]);
    assert_eq!(collected.extent, Extent::NotInVersion);
    assert_eq!((host.run(leases), host.run(cached)), (1, vec!["b/eth0".to_owned()]));
    assert_eq!(pods[0].run(interface::names).unwrap(), ["lo"]);
    host.run(|| runtime().check(&network, &request(&pods[1]))).unwrap();
}

#[test]
#[ignore = "needs root: network and mount namespaces; needs containernetworking-plugins"]
fn debians_ptp_delegates_to_our_example_and_is_followed_by_another() {
    if missing() {
        return;
    }
    let examples = std::env::current_exe().unwrap();
    let examples = examples.parent().unwrap().with_file_name("examples");
    let host = Host::new().unwrap();
    let pod = host.add_pod("a").unwrap();
    let list = json!({
        "cniVersion": "1.0.0", "name": "ours", "plugins": [
            {
                "type": "ptp",
                "ipam": {"type": "fixed_ipam", "address": "10.79.0.5/24", "gateway": "10.79.0.1"},
            },
            {"type": "call_log", "logFile": "/run/calls"},
        ],
    });
    let network = Network::parse(list.to_string().as_bytes()).unwrap();
    let runtime = Runtime::new([PLUGINS.into(), examples], Cache::new("/var/lib/cni"));
    host.run(|| runtime.validate(&network)).unwrap();
    let success = host.run(|| runtime.add(&network, &request(&pod))).unwrap();
    assert_eq!(success.ips[0].address, "10.79.0.5/24".parse().unwrap());
    assert!(pod.run(|| interface::addresses("eth0")).unwrap().contains(&[10, 79, 0, 5].into()));
    host.run(|| runtime.check(&network, &request(&pod))).unwrap();
    host.run(|| runtime.del(&network, &request(&pod))).unwrap();
    assert_eq!(pod.run(interface::names).unwrap(), ["lo"]);
    let calls = host.run(|| std::fs::read_to_string("/run/calls")).unwrap();
    let expected = "ours ADD a/eth0 /run/netns/a\nours CHECK a/eth0\nours DEL a/eth0\n";
    assert_eq!(calls, expected);
}

#[test]
#[ignore = "needs root: network and mount namespaces; needs containernetworking-plugins"]
fn what_is_remembered_is_enough_to_delete() {
    if missing() {
        return;
    }
    let host = Host::new().unwrap();
    let pod = host.add_pod("a").unwrap();
    let network = list("1.0.0", &[]);
    host.run(|| runtime().add(&network, &request(&pod))).unwrap();
    host.run(|| {
        let entry: Entry = runtime().cache().entries().unwrap().remove(0).content.unwrap();
        let network = Network::parse(&entry.config).unwrap();
        runtime().del(&network, &entry.request).unwrap();
        assert_eq!(leases(), 0);
    });
}
