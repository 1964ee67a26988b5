//! The node as others have set it up: reverse-path filters, port mappings, firewalls, shapers.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod node;

use std::{
    fs,
    io::Write as _,
    net::{IpAddr, SocketAddr},
    process::Stdio,
    time::Duration,
};

use node::{MODES, Node, TestPod};
use podwire_datapath::{
    FlowPath, FlowRow,
    abi::{Hook, Reason},
};
use podwire_lab::{
    Host,
    probe::{Ping, TcpEcho, TcpTransfer},
};

const ROUTER: [&str; 2] = ["10.1.0.1", "fd00:1::1"];

/// Runs a script of nft(8) in the host.
fn nft(host: &Host, script: &str) {
    let mut child = host
        .command("nft")
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("needs nftables (Debian's package of that name)");
    child.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

fn set(host: &Host, sysctl: &str, value: &str) {
    host.run(|| fs::write(format!("/proc/sys/{sysctl}"), value)).unwrap();
}

fn transfer(from: &TestPod, to: SocketAddr) -> bool {
    let Ok(transfer) = from.pod.run(|| TcpTransfer::start(to)) else { return false };
    std::thread::sleep(Duration::from_millis(100));
    let report = transfer.stop();
    report.is_complete() && report.returned > 0
}

fn answers(from: &TestPod, target: IpAddr) -> bool {
    let ping = || Ping::new(target).count(3).interval(Duration::from_millis(10)).run();
    from.pod.run(ping).unwrap().is_complete()
}

/// Maps port 8080 of the router's addresses to port 80 of a pod, as port mappings do.
fn map_port(host: &Host, pod: &TestPod) {
    let [v4, v6] = ROUTER;
    let script = format!(
        "table ip ports {{
            chain arriving {{
                type nat hook prerouting priority -100;
                ip daddr {v4} tcp dport 8080 dnat to {}:80
            }}
        }}
        table ip6 ports {{
            chain arriving {{
                type nat hook prerouting priority -100;
                ip6 daddr {v6} tcp dport 8080 dnat to [{}]:80
            }}
        }}",
        pod.v4, pod.v6
    );
    nft(host, &script);
}

#[test]
#[ignore = "needs root: a node in namespaces of its own; needs nftables"]
fn reverse_path_filters_and_port_mappings_work_together() {
    for mode in MODES {
        for filter in ["0", "1", "2"] {
            let host = Host::new().unwrap();
            for interface in ["all", "default"] {
                set(&host, &format!("net/ipv4/conf/{interface}/rp_filter"), filter);
            }
            let node = Node::start_in(host, &["--attach", mode]);
            set(&node.host, "net/ipv4/conf/podwire_host/rp_filter", filter);
            let (a, b) = (node.add("a"), node.add("b"));
            map_port(&node.host, &b);
            for (own, router) in b.addresses().into_iter().zip(ROUTER) {
                let router: IpAddr = router.parse().unwrap();
                let what = format!("--attach {mode}, rp_filter {filter}, {own}");
                assert!(answers(&a, own), "{what}: pod to pod");
                assert!(answers(&a, router), "{what}: pod to node");
                let echo = b.pod.run(|| TcpEcho::start(SocketAddr::new(own, 80))).unwrap();
                assert!(transfer(&a, SocketAddr::new(router, 8080)), "{what}: mapped port");
                assert!(transfer(&a, echo.address()), "{what}: the same pod without mapping");
            }
            // Both directions of the mapped connections went through the stack.
            assert!(node.counted(Hook::FromContainer, Reason::ToStackByFlow) > 0);
            assert_eq!(node.drops(), [] as [&str; 0]);
            let flows = node.tables().flows().unwrap();
            let to = |port: u16, path: FlowPath| {
                let fits = |flow: &&FlowRow| (flow.destination_port, flow.path) == (port, path);
                flows.iter().filter(fits).count()
            };
            // As the one pod sees them, and as the other does; and those that were not mapped.
            assert_eq!(to(8080, FlowPath::Stack), 2, "{flows:?}");
            assert_eq!(to(80, FlowPath::Stack), 2, "{flows:?}");
            assert_eq!(to(80, FlowPath::Straight), 2, "{flows:?}");
        }
    }
}

#[test]
#[ignore = "needs root: a node in namespaces of its own; needs nftables"]
fn a_dropping_forward_chain_is_named_and_does_not_stop_pods_from_reaching_each_other() {
    let node = Node::start();
    let (a, b) = (node.add("a"), node.add("b"));
    let problems = |node: &Node| node.cli(&["status"])["problems"].to_string();
    assert!(!problems(&node).contains("forward"), "{}", problems(&node));
    nft(
        &node.host,
        "table inet guard {
            chain forward { type filter hook forward priority 0; policy drop; }
        }",
    );
    map_port(&node.host, &b);
    for (own, router) in b.addresses().into_iter().zip(ROUTER) {
        assert!(answers(&a, own), "pod to pod is not forwarded by the stack");
        assert!(answers(&a, router.parse().unwrap()), "pod to node neither");
    }
    let echo = b.pod.run(|| TcpEcho::start(SocketAddr::new(b.v4, 80))).unwrap();
    assert_eq!(echo.address().port(), 80);
    let named = problems(&node);
    assert!(named.contains("forward") && named.contains("guard"), "{named}");
    nft(&node.host, "delete table inet guard");
    let mapped = SocketAddr::new(ROUTER[0].parse().unwrap(), 8080);
    assert!(transfer(&a, mapped), "without the chain the mapped port is reached");
    assert!(!problems(&node).contains("guard"), "{}", problems(&node));
}

#[test]
#[ignore = "needs root: a node in namespaces of its own; needs iproute2's tc"]
fn a_shaper_on_a_host_link_sees_every_packet() {
    for mode in MODES {
        let node = Node::start_with(&["--attach", mode]);
        let (a, b) = (node.add("a"), node.add("b"));
        let tc = |arguments: &[&str]| {
            let output = node.host.command("tc").args(arguments).output().unwrap();
            let errors = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "tc {arguments:?}: {errors}");
            String::from_utf8(output.stdout).unwrap()
        };
        let link = b.host_link().to_owned();
        let shaper = ["handle", "5:", "tbf", "rate", "1gbit", "burst", "64k", "limit", "1m"];
        tc(&[&["qdisc", "add", "dev", &link, "root"][..], &shaper].concat());
        let delivery = || {
            let list = node.cli(&["endpoint", "list"]);
            let rows = list.as_array().unwrap().clone();
            let row = rows.iter().find(|row| row["host_link"] == link.as_str()).unwrap();
            row["delivery"].as_str().unwrap().to_owned()
        };
        wait_until("the shaper is noticed", || delivery() == "egress");
        for target in b.addresses() {
            assert!(answers(&a, target), "--attach {mode}: {target} through the shaper");
        }
        assert_eq!(node.counted(Hook::FromContainer, Reason::DeliveredToEgress), 6);
        let seen = tc(&["-s", "qdisc", "show", "dev", &link, "root"]);
        assert!(seen.contains("tbf") && !seen.contains("Sent 0 bytes"), "{seen}");
        tc(&["qdisc", "del", "dev", &link, "root"]);
        wait_until("the shaper's end is noticed", || delivery() == "peer");
        assert!(answers(&a, b.v4));
        assert_eq!(node.counted(Hook::FromContainer, Reason::DeliveredToEgress), 6);
        assert_eq!(node.drops(), [] as [&str; 0]);
    }
}

fn wait_until(what: &str, condition: impl Fn() -> bool) {
    for _ in 0..200 {
        if condition() {
            return;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    panic!("{what}: not within ten seconds");
}
