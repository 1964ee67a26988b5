//! A pod is wired with Debian's reference plugins, and the probes work across the wire.

#![expect(clippy::unwrap_used, reason = "a test says no more than where it failed")]

use std::{net::IpAddr, path::Path, time::Duration};

use podwire_lab::{
    Attachment, Cni, Host, Pod, allowed_missing, interface,
    probe::{
        EchoReceiver, FrameSocket, Ping,
        frame::{Arp, ArpOperation, BROADCAST, Link, ip_addresses},
    },
};
use serde_json::{Value, json};

const PLUGIN: &str = "/usr/lib/cni/ptp";

fn missing() -> bool {
    allowed_missing("containernetworking-plugins", || Path::new(PLUGIN).exists())
}

fn ptp(host: &Host) -> Cni {
    let ranges = json!([[{ "subnet": "10.88.0.0/24" }], [{ "subnet": "fd00:88::/64" }]]);
    let config = json!({
        "cniVersion": "1.0.0",
        "name": "lab",
        "type": "ptp",
        "ipam": { "type": "host-local", "ranges": ranges },
    });
    Cni::new(host, PLUGIN, config)
}

fn wired(host: &Host, cni: &Cni, name: &str) -> (Pod, Attachment, Value) {
    let pod = host.add_pod(name).unwrap();
    // Addresses must be usable at once; the plugin leaves duplicate address detection on.
    pod.run(|| std::fs::write("/proc/sys/net/ipv6/conf/default/accept_dad", "0")).unwrap();
    let attachment = Attachment::new(name, pod.path());
    let result = cni.add(&attachment).unwrap();
    (pod, attachment, result)
}

fn addresses(result: &Value) -> Vec<IpAddr> {
    let ips = result["ips"].as_array().unwrap();
    ips.iter()
        .map(|ip| ip["address"].as_str().unwrap().split('/').next().unwrap().parse().unwrap())
        .collect()
}

#[test]
#[ignore = "needs root: network and mount namespaces; needs containernetworking-plugins"]
fn a_pod_is_added_pinged_and_deleted() {
    if missing() {
        return;
    }
    let host = Host::new().unwrap();
    let before = host.inventory().unwrap();
    host.run(|| std::fs::write("/proc/sys/net/ipv6/conf/default/accept_dad", "0")).unwrap();
    let cni = ptp(&host);
    assert_eq!(cni.version().unwrap()["cniVersion"], "1.0.0");
    let (pod, attachment, result) = wired(&host, &cni, "a");
    cni.check(&attachment, &result).unwrap();
    assert!(pod.run(|| interface::index("eth0").is_ok()));
    for address in addresses(&result) {
        let receiver = pod.run(|| EchoReceiver::icmp(address)).unwrap();
        let report = host.run(|| Ping::new(address).run()).unwrap();
        assert!(report.is_complete(), "{address}: {report}");
        assert_eq!(receiver.arrivals().received(report.sender), 3);
    }
    cni.del(&attachment, Some(&result)).unwrap();
    host.remove_pod_netns("a").unwrap();
    let left = host.inventory().unwrap().since(&before);
    // The multicast routes of lo come with IPv6 forwarding; ptp turns that on.
    let left: Vec<_> = left.iter().filter(|line| !line.contains("dev lo ")).collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
#[ignore = "needs root: network and mount namespaces; needs containernetworking-plugins"]
fn frames_cross_the_wire_as_they_are() {
    if missing() {
        return;
    }
    let host = Host::new().unwrap();
    let (pod, _, result) = wired(&host, &ptp(&host), "a");
    let link = result["interfaces"][0]["name"].as_str().unwrap().to_owned();
    let mut outside = host.run(|| FrameSocket::open(&link)).unwrap();
    let mut inside = pod.run(|| FrameSocket::open("eth0")).unwrap();

    let from = [2, 0, 0, 0, 0, 9];
    let to = pod.run(|| interface::mac("eth0")).unwrap();
    let spoofed = Link { from, to }.udp(
        "192.0.2.9:1".parse().unwrap(),
        "192.0.2.10:2".parse().unwrap(),
        b"not mine",
    );
    outside.send(&spoofed).unwrap();
    let received = inside.receive(Duration::from_secs(5), |frame| frame[6..12] == from).unwrap();
    assert_eq!(received.as_deref(), Some(&spoofed[..]));
    assert_eq!(ip_addresses(&spoofed), Some(([192, 0, 2, 9].into(), [192, 0, 2, 10].into())));

    let IpAddr::V4(own) = addresses(&result)[0] else { panic!("IPv4 comes first") };
    let ask = Arp {
        operation: ArpOperation::Request,
        sender_mac: from,
        sender: [10, 88, 0, 1].into(),
        target_mac: [0; 6],
        target: own,
    };
    outside.send(&ask.frame(Link { from, to: BROADCAST })).unwrap();
    let answer = outside
        .receive(Duration::from_secs(5), |f| Arp::parse(f).is_some_and(|a| a.sender == own))
        .unwrap()
        .and_then(|frame| Arp::parse(&frame))
        .expect("the pod's kernel answers");
    assert_eq!((answer.operation, answer.sender_mac), (ArpOperation::Reply, to));
    assert_eq!(inside.receive_all(Duration::from_millis(1), |f| f[6..12] == to).unwrap().len(), 0);
}

#[test]
#[ignore = "needs root: network and mount namespaces; needs containernetworking-plugins"]
fn a_plugins_error_object_is_understood() {
    if missing() {
        return;
    }
    let host = Host::new().unwrap();
    let cni = ptp(&host);
    let error = cni.add(&Attachment::new("a", "/run/netns/none")).unwrap_err();
    assert!(error.cni_code().is_some(), "{error}");
    let output = cni.call("ADD", &[], b"no JSON").unwrap();
    assert!(output.peak_bytes > 1 << 20, "{output:?}");
    assert!(!output.status.success());
    assert!(output.json("ADD").unwrap_err().cni_code().is_some());
}
