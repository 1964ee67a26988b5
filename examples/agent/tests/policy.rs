//! Policies over real sockets: what pods may send and receive is what passes, of both families, by
//! identity, prefix, protocol and ports; a change counts for flows that go on; nothing of it is forgotten.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod node;

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpStream, UdpSocket},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use ipnetwork::IpNetwork;
use node::{BPFFS, Node, TestPod, until};
use podwire_api::{Policy, PolicyAction, PolicyDirection, PrefixIdentity, Removed};
use podwire_datapath::abi::{Hook, Reason};
use podwire_lab::probe::{
    EchoReceiver, FrameSocket, Ping, Responder, TcpEcho, TcpTransfer, frame::Link,
};
use serde_json::{Value, json};

const ROUTER: [&str; 2] = ["10.1.0.1", "fd00:1::1"];
/// A network beyond the node, with addresses of its own on the node's side.
const BEYOND: [&str; 2] = ["192.0.2.1", "2001:db8::1"];

/// How long nothing must come of what is denied.
const PATIENCE: Duration = Duration::from_millis(300);

fn policy(value: Value) -> Policy {
    serde_json::from_value(value).unwrap()
}

fn set(node: &Node, pod: &TestPod, rules: Value) {
    let policy = policy(rules);
    node.ask(|agent| agent.set_policy(&pod.id(), &policy));
}

fn unset(node: &Node, pod: &TestPod) {
    node.ask(|agent| agent.delete_policy(&pod.id()));
}

/// Listens in a pod, at both of its addresses.
struct Server {
    _responders: Vec<Responder>,
}

impl Server {
    fn tcp(pod: &TestPod, port: u16) -> Self {
        let responders = pod.pod.run(|| {
            let at = |address| Responder::tcp(SocketAddr::new(address, port)).unwrap();
            pod.addresses().into_iter().map(at).collect()
        });
        Self { _responders: responders }
    }
}

/// Whether a connection comes about, from this pod to each address of that one.
fn connects(from: &TestPod, to: &TestPod, port: u16) -> bool {
    let both = to.addresses().map(|address| {
        from.pod.run(|| {
            let target = SocketAddr::new(address, port);
            match TcpStream::connect_timeout(&target, PATIENCE) {
                Ok(mut stream) => {
                    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
                    stream.write_all(b"x").unwrap();
                    stream.read_exact(&mut [0]).unwrap();
                    true
                }
                Err(error) if error.kind() == ErrorKind::TimedOut => false,
                Err(error) => panic!("{target}: {error}"),
            }
        })
    });
    assert_eq!(both[0], both[1], "the families differ, port {port}");
    both[0]
}

fn answers(from: &TestPod, to: [IpAddr; 2]) -> bool {
    let both = to.map(|address| {
        let ping = Ping::new(address).count(3).patience(PATIENCE);
        let report = from.pod.run(|| ping.run()).unwrap();
        let answered = report.is_complete();
        assert!(answered || report.received == 0, "{address}: {report}");
        answered
    });
    assert_eq!(both[0], both[1], "the families differ");
    both[0]
}

fn answers_udp(from: &TestPod, to: &TestPod, port: u16) -> bool {
    let both = to.addresses().map(|address| {
        let target = SocketAddr::new(address, port);
        let receiver = to.pod.run(|| EchoReceiver::udp(target)).unwrap();
        let ping = Ping::udp(receiver.address()).count(3).patience(PATIENCE);
        let report = from.pod.run(|| ping.run()).unwrap();
        let answered = report.is_complete();
        assert!(answered || report.received == 0, "{target}: {report}");
        answered
    });
    assert_eq!(both[0], both[1], "the families differ, port {port}");
    both[0]
}

/// Whether a pod's SCTP packets arrive at another's interface. By frames: the kernel's SCTP is a module
/// that is not everywhere.
fn arrives_sctp(node: &Node, from: &TestPod, to: &TestPod, port: u16) -> bool {
    let both = [0, 1].map(|family| {
        let (source, target) = (from.addresses()[family], to.addresses()[family]);
        let mut chunk = 40000_u16.to_be_bytes().to_vec();
        chunk.extend(port.to_be_bytes());
        chunk.extend([0; 8]);
        chunk.extend(b"podwire policy test!");
        let link = Link { from: from.mac(1), to: from.mac(0) };
        let frame = link.ip(source, target, 132, &chunk);
        let mut receiver = to.pod.run(|| FrameSocket::open("eth0")).unwrap();
        let delivered = || node.counted(Hook::FromContainer, Reason::Delivered);
        let before = delivered();
        from.pod.run(|| FrameSocket::open("eth0").unwrap().send(&frame)).unwrap();
        let found = receiver.receive(PATIENCE, |seen| seen.ends_with(b"podwire policy test!"));
        let arrived = found.unwrap().is_some();
        assert_eq!(arrived, delivered() > before);
        arrived
    });
    assert_eq!(both[0], both[1], "the families differ, port {port}");
    both[0]
}

#[test]
#[ignore = "needs root: a node in namespaces of its own"]
fn everything_passes_until_somebody_says_otherwise() {
    let node = Node::start();
    let (a, b) = (node.add("a"), node.add("b"));
    let _server = Server::tcp(&b, 80);
    assert!(connects(&a, &b, 80) && answers(&a, b.addresses()) && answers_udp(&a, &b, 53));
    assert!(arrives_sctp(&node, &a, &b, 9000));
    assert_eq!(node.ask(|agent| agent.policy(&b.id())), Policy::default());
    assert_eq!(node.drops(), [] as [&str; 0]);
    node.delete(&a);
    node.delete(&b);
    node.assert_clean();
}

#[test]
#[ignore = "needs root: a node in namespaces of its own"]
fn a_pod_receives_what_its_policy_allows() {
    for mode in node::MODES {
        let node = Node::start_with(&["--attach", mode]);
        let (a, b, c) = (node.add("a"), node.add("b"), node.add("c"));
        let servers = [80, 81, 8005].map(|port| Server::tcp(&b, port));
        node.ask(|agent| agent.set_identity(&a.id(), 4711));
        let rules = json!({"ingress": {"default": "deny", "rules": [
            {"action": "allow", "peer": "identity:4711", "protocol": "tcp", "ports": "8000-8010"},
            {"action": "allow", "peer": "identity:4711", "protocol": "icmp"},
            {"action": "allow", "peer": "identity:4711", "protocol": "sctp", "ports": 9000},
            {"action": "allow", "peer": "identity:unmanaged", "protocol": "udp", "ports": 53},
            {"action": "allow", "protocol": "tcp", "ports": 80},
        ]}});
        set(&node, &b, rules);
        // a by its identity and as everybody.
        assert!(connects(&a, &b, 8005) && connects(&a, &b, 80) && !connects(&a, &b, 81));
        assert!(answers(&a, b.addresses()) && !answers_udp(&a, &b, 53));
        assert!(arrives_sctp(&node, &a, &b, 9000) && !arrives_sctp(&node, &a, &b, 9001));
        // c has none.
        assert!(!connects(&c, &b, 8005) && connects(&c, &b, 80) && !connects(&c, &b, 81));
        assert!(!answers(&c, b.addresses()) && answers_udp(&c, &b, 53));
        assert!(!arrives_sctp(&node, &c, &b, 9000));
        assert!(node.counted(Hook::FromContainer, Reason::IngressDenied) > 0);
        // What b begins itself, and the replies to it, are another matter.
        let _server = Server::tcp(&a, 7777);
        assert!(connects(&b, &a, 7777) && answers(&b, c.addresses()));
        // A denial wins over all permissions.
        set(
            &node,
            &b,
            json!({"ingress": {"rules": [
                {"action": "allow", "peer": "identity:4711"},
                {"action": "deny", "peer": "identity:4711", "protocol": "tcp", "ports": 80},
            ]}}),
        );
        assert!(!connects(&a, &b, 80) && connects(&a, &b, 81) && connects(&c, &b, 80));
        drop(servers);
    }
}

#[test]
#[ignore = "needs root: a node in namespaces of its own"]
fn a_pod_sends_what_its_policy_allows() {
    let node = Node::start();
    let (a, b) = (node.add("a"), node.add("b"));
    let _servers = [80, 81].map(|port| Server::tcp(&b, port));
    let addresses = |pod: &TestPod, action: &str| {
        let rule =
            |address| json!({"action": action, "peer": address, "protocol": "tcp", "ports": 80});
        Vec::from(pod.addresses().map(rule))
    };
    // By whole addresses of a pod of this node.
    set(&node, &a, json!({"egress": {"default": "deny", "rules": addresses(&b, "allow")}}));
    assert!(connects(&a, &b, 80) && !connects(&a, &b, 81));
    assert!(!answers(&a, b.addresses()) && !answers_udp(&a, &b, 53));
    assert!(node.counted(Hook::FromContainer, Reason::EgressDenied) > 0);
    set(&node, &a, json!({"egress": {"rules": addresses(&b, "deny")}}));
    assert!(!connects(&a, &b, 80) && connects(&a, &b, 81) && answers(&a, b.addresses()));
    // What others begin passes, replies and all.
    set(&node, &a, json!({"egress": {"default": "deny"}}));
    let _server = Server::tcp(&a, 7777);
    assert!(connects(&b, &a, 7777) && answers(&b, a.addresses()) && answers_udp(&b, &a, 53));
    assert!(!connects(&a, &b, 81) && !answers(&a, b.addresses()));
    unset(&node, &a);
    assert!(connects(&a, &b, 80));
}

/// Gives the node an interface beyond which there is somebody.
fn beyond(node: &Node) -> podwire_lab::Pod {
    let outside = node.host.add_pod("outside").unwrap();
    let run = |command: &mut std::process::Command, arguments: &str| {
        let output = command.args(arguments.split(' ')).output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "ip {arguments}: {errors}");
    };
    let on_host = |arguments: &str| run(&mut node.host.command("ip"), arguments);
    on_host("link add up0 type veth peer name up1");
    let netns = outside.path().display().to_string();
    let mut moving = node.host.command("ip");
    // By a descriptor's path, which ip takes in the place of a name.
    run(&mut moving, &format!("link set up1 netns {netns}"));
    on_host("link set up0 up");
    on_host("addr add 192.0.2.254/24 dev up0");
    on_host("addr add 2001:db8::fe/64 dev up0 nodad");
    let inside = |arguments: &str| run(&mut outside.command("ip"), arguments);
    inside("link set lo up");
    inside("link set up1 up");
    for address in ["192.0.2.1/24", "192.0.2.2/24"] {
        inside(&format!("addr add {address} dev up1"));
    }
    for address in ["2001:db8::1/64", "2001:db8::2/64"] {
        inside(&format!("addr add {address} dev up1 nodad"));
    }
    inside("route add 10.1.0.0/24 via 192.0.2.254");
    inside("-6 route add fd00:1::/64 via 2001:db8::fe");
    for key in ["net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1"] {
        let output = node.host.command("sysctl").args(["-w", key]).output().unwrap();
        assert!(output.status.success());
    }
    outside
}

#[test]
#[ignore = "needs root: a node in namespaces of its own"]
fn whoever_is_beyond_the_node_is_judged_by_prefix_and_identity() {
    let node = Node::start();
    let a = node.add("a");
    let outside = beyond(&node);
    let second = ["192.0.2.2", "2001:db8::2"];
    let reaches = |to: [&str; 2]| answers(&a, to.map(|address| address.parse().unwrap()));
    let reached = |from: [&str; 2]| {
        let both = [0, 1].map(|family| {
            let ping = Ping::new(a.addresses()[family]).from(from[family].parse().unwrap());
            let report = outside.run(|| ping.count(3).patience(PATIENCE).run()).unwrap();
            assert!(report.is_complete() || report.received == 0, "{report}");
            report.is_complete()
        });
        assert_eq!(both[0], both[1], "the families differ");
        both[0]
    };
    // The kernel takes its time over the addresses of the new link.
    let is_open = |address: &str| {
        let ping = Ping::new(address.parse().unwrap()).patience(PATIENCE);
        a.pod.run(|| ping.run()).unwrap().is_complete()
    };
    until("the way beyond the node is open", || BEYOND.into_iter().chain(second).all(is_open));
    assert!(reaches(BEYOND) && reaches(second) && reached(BEYOND) && reached(second));
    // By prefixes, a narrow one denied within a wide one allowed.
    let rules = json!({"default": "deny", "rules": [
        {"action": "allow", "peer": "192.0.2.0/24"}, {"action": "deny", "peer": "192.0.2.2"},
        {"action": "allow", "peer": "2001:db8::/32"}, {"action": "deny", "peer": "2001:db8::2"},
    ]});
    set(&node, &a, json!({"egress": rules}));
    assert!(reaches(BEYOND) && !reaches(second) && reached(second));
    set(&node, &a, json!({"ingress": rules}));
    assert!(reached(BEYOND) && !reached(second) && reaches(second));
    // By identities that were told of them; nobody else has one but the world's.
    let told = |identity| {
        let both = BEYOND.map(|one| PrefixIdentity { prefix: one.parse().unwrap(), identity });
        node.ask(|agent| agent.set_ipcache(&both));
    };
    told(700);
    set(
        &node,
        &a,
        json!({"ingress": {"default": "deny", "rules": [
        {"action": "allow", "peer": "identity:700"}]}}),
    );
    assert!(reached(BEYOND) && !reached(second));
    told(701);
    assert!(!reached(BEYOND) && !reached(second));
    set(
        &node,
        &a,
        json!({"ingress": {"default": "deny", "rules": [
        {"action": "allow", "peer": "identity:world"}]}}),
    );
    assert!(!reached(BEYOND) && reached(second));
    let prefixes = BEYOND.map(|one| one.parse().unwrap());
    assert_eq!(node.ask(|agent| agent.forget_ipcache(&prefixes)).prefixes, 2);
    assert!(reached(BEYOND));
}

#[test]
#[ignore = "needs root: a node in namespaces of its own"]
fn the_node_always_reaches_its_pods() {
    for mode in node::MODES {
        let node = Node::start_with(&["--attach", mode]);
        let (a, b) = (node.add("a"), node.add("b"));
        let _server = Server::tcp(&b, 80);
        set(&node, &b, json!({"ingress": {"default": "deny"}, "egress": {"default": "deny"}}));
        assert!(!connects(&a, &b, 80));
        for address in b.addresses() {
            let report = node.host.run(|| Ping::new(address).count(3).run()).unwrap();
            assert!(report.is_complete(), "{report}");
            node.host.run(|| {
                let target = SocketAddr::new(address, 80);
                let mut stream =
                    TcpStream::connect_timeout(&target, Duration::from_secs(10)).unwrap();
                stream.write_all(b"x").unwrap();
                stream.read_exact(&mut [0]).unwrap();
            });
        }
        // The other way is the pod's own.
        assert!(!answers(&b, ROUTER.map(|router| router.parse().unwrap())));
        set(
            &node,
            &b,
            json!({"egress": {"default": "deny", "rules": [
            {"action": "allow", "peer": "identity:host"}]}}),
        );
        assert!(answers(&b, ROUTER.map(|router| router.parse().unwrap())));
    }
}

#[test]
#[ignore = "needs root: a node in namespaces of its own"]
fn a_policy_that_turns_to_deny_stops_flows_in_both_directions_at_once() {
    for mode in node::MODES {
        let node = Node::start_with(&["--attach", mode]);
        let (a, b) = (node.add("a"), node.add("b"));
        let denials = [
            (&b, json!({"ingress": {"default": "deny"}})),
            (&a, json!({"egress": {"default": "deny"}})),
            (
                &b,
                json!({"ingress": {"rules": [{"action": "deny", "peer": "10.1.0.0/24"}, {"action": "deny", "peer": "fd00:1::/64"}]}}),
            ),
        ];
        for address in b.addresses() {
            let echo = b.pod.run(|| TcpEcho::start(SocketAddr::new(address, 0))).unwrap();
            for (pod, rules) in &denials {
                let transfer = a.pod.run(|| TcpTransfer::start(echo.address())).unwrap();
                until("bytes come back", || transfer.returned() > 100_000);
                let (sent, received) = (counter(&a, "tx_packets"), counter(&b, "rx_packets"));
                assert!(sent > 0 && received > 0);
                set(&node, pod, rules.clone());
                // What has been decided before the change is on its way at most, in the kernel's queues.
                let received = || (counter(&a, "rx_packets"), counter(&b, "rx_packets"));
                let mut last = received();
                until("the queues are empty", || {
                    thread::sleep(Duration::from_millis(50));
                    let before = std::mem::replace(&mut last, received());
                    before == last
                });
                let (at_a, at_b) = last;
                thread::sleep(PATIENCE);
                assert_eq!(counter(&b, "rx_packets"), at_b, "to b after {rules}, {mode}");
                assert_eq!(counter(&a, "rx_packets"), at_a, "to a after {rules}, {mode}");
                // With permission it goes on, and nothing is lost of it.
                unset(&node, pod);
                let returned = transfer.returned();
                until("bytes come back again", || transfer.returned() > returned + 100_000);
                let report = transfer.stop();
                assert!(report.is_complete(), "{report}");
            }
        }
    }
}

/// A counter of a pod's own interface. A pod may say something by itself (neighbour discovery), but it
/// receives only what somebody lets in.
fn counter(pod: &TestPod, name: &str) -> u64 {
    let path = format!("/sys/class/net/eth0/statistics/{name}");
    let output = pod.pod.command("cat").arg(&path).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    // The sysfs of another namespace is not mounted there; ip asks the kernel.
    match text.trim().parse() {
        Ok(count) => count,
        Err(_) => by_ip(pod, name),
    }
}

fn by_ip(pod: &TestPod, name: &str) -> u64 {
    let output = pod.pod.command("ip").args(["-j", "-s", "link", "show", "eth0"]).output().unwrap();
    let links: Value = serde_json::from_slice(&output.stdout).unwrap();
    let (side, field) = name.split_once('_').unwrap();
    links[0]["stats64"][side][field].as_u64().unwrap()
}

#[test]
#[ignore = "needs root: a node in namespaces of its own"]
fn policies_outlive_agents_and_not_one_packet_passes_meanwhile() {
    let mut node = Node::start();
    let (a, b) = (node.add("a"), node.add("b"));
    node.ask(|agent| agent.set_identity(&a.id(), 4711));
    let rules = json!({"ingress": {"default": "deny", "rules": [
        {"action": "allow", "peer": "identity:4711", "protocol": "tcp", "ports": 80},
        {"action": "allow", "peer": "10.1.0.0/24", "protocol": "tcp", "ports": 81},
    ]}});
    set(&node, &b, rules.clone());
    let prefix = PrefixIdentity { prefix: "192.0.2.0/24".parse().unwrap(), identity: 700 };
    node.ask(|agent| agent.set_ipcache(&[prefix]));
    let before = node.tables().policy().unwrap();
    // Datagrams that are denied, all the time: none may arrive.
    let target = SocketAddr::new(b.v4, 5300);
    let receiver = b.pod.run(|| UdpSocket::bind(target)).unwrap();
    receiver.set_nonblocking(true).unwrap();
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let flood = scope.spawn(|| {
            a.pod.run(|| {
                let socket = UdpSocket::bind((a.v4, 0)).unwrap();
                let mut sent = 0_u64;
                while !stop.load(Ordering::Relaxed) {
                    // A full queue is no news.
                    sent += u64::from(socket.send_to(b"podwire", target).is_ok());
                    thread::sleep(Duration::from_micros(200));
                }
                sent
            })
        });
        for _ in 0..3 {
            node.restart_with(&[]);
            assert_eq!(node.tables().policy().unwrap(), before);
        }
        stop.store(true, Ordering::Relaxed);
        assert!(flood.join().unwrap() > 100);
    });
    let heard = receiver.recv(&mut [0; 16]).unwrap_err();
    assert_eq!(heard.kind(), ErrorKind::WouldBlock);
    assert_eq!(node.ask(|agent| agent.policy(&b.id())), policy(rules));
    assert_eq!(node.ask(|agent| agent.endpoint(&a.id())).identity, 4711);
    assert_eq!(node.ask(podwire_api::Client::ipcache), [prefix]);
    let denied = node.counted(Hook::FromContainer, Reason::IngressDenied);
    assert!(denied > 100, "{denied}");
    let _server = Server::tcp(&b, 80);
    assert!(connects(&a, &b, 80));
    assert!(!answers_udp(&a, &b, 5301));
    node.delete(&a);
    node.delete(&b);
    node.ask(|agent| agent.forget_ipcache(&[prefix.prefix]));
    node.assert_clean();
    until("the policy's rows are gone", || node.host.run(policy_rows) == 0);
}

/// What is left in the map of policies' rows.
fn policy_rows() -> usize {
    use podwire_datapath::abi::{PolicyKey, PolicyRow, map};
    podwire_bpf::HashMap::<PolicyKey, PolicyRow>::open(format!("{BPFFS}/maps/{}", map::POLICY))
        .unwrap()
        .entries()
        .unwrap()
        .len()
}

#[test]
#[ignore = "needs root: a node in namespaces of its own"]
fn the_command_line_says_shows_and_flushes() {
    let mut node = Node::start();
    let (a, b) = (node.add("a"), node.add("b"));
    let rules = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(
        rules.path(),
        r#"{"ingress": {"default": "deny", "rules": [
            {"action": "allow", "protocol": "tcp", "ports": 80},
            {"action": "allow", "peer": "192.0.2.0/24"},
            {"action": "deny", "peer": "192.0.2.7", "protocol": "udp", "ports": "53-60"}]}}"#,
    )
    .unwrap();
    let container = b.id().container_id.to_string();
    let said = node.cli(&["policy", "set", &container, "--file", rules.path().to_str().unwrap()]);
    assert_eq!(said["ingress"]["rules"][0]["ports"], "80");
    assert_eq!(node.cli(&["policy", "show", &container]), said);
    let endpoint = node.cli(&["endpoint", "identity", a.id().container_id.as_ref(), "4711"]);
    assert_eq!(endpoint["identity"], 4711);
    node.cli(&["ipcache", "set", "192.0.2.0/28", "700"]);
    assert_eq!(
        node.cli(&["ipcache", "list"]),
        json!([{"prefix": "192.0.2.0/28", "identity": 700}])
    );

    let peers = |arguments: &[&str]| -> Vec<String> {
        let rows = node.cli(&[&["bpf", "policy", "list"], arguments].concat());
        let peer = |row: &Value| row["peer"].as_str().unwrap().to_owned();
        rows.as_array().unwrap().iter().map(peer).collect()
    };
    assert_eq!(peers(&[]).len(), 3);
    assert_eq!(peers(&["--prefix", "192.0.2.0/24"]).len(), 2);
    assert_eq!(
        peers(&["--endpoint", &b.v6.to_string(), "--prefix", "192.0.2.7/32"]),
        ["192.0.2.7/32"]
    );
    assert_eq!(peers(&["--endpoint", &a.v4.to_string()]), [] as [&str; 0]);
    let rows = node.cli(&["bpf", "policy", "list", "--prefix", "192.0.2.7/32"]);
    assert_eq!(rows[0]["denied"], json!(["udp 53-60"]));
    let ipcache = |arguments: &[&str]| {
        node.cli(&[&["bpf", "ipcache", "list"], arguments].concat()).as_array().unwrap().len()
    };
    assert_eq!(
        (ipcache(&["--identity", "4711"]), ipcache(&["--endpoint", &a.v4.to_string()])),
        (2, 2)
    );
    assert_eq!(ipcache(&["--prefix", "192.0.2.0/24"]), 3);

    // What is to go must be said.
    let refused = |arguments: &[&str]| {
        let mut command = node.host.command(podwire_lab::binary("podwire").unwrap());
        !command.args(arguments).output().unwrap().status.success()
    };
    assert!(refused(&["bpf", "policy", "flush"]) && refused(&["bpf", "ipcache", "flush"]));
    // Through the agent: nothing is left of it, on record either.
    let gone = node.cli(&["bpf", "policy", "flush", "--endpoint", &b.v4.to_string()]);
    assert_eq!(gone["slots"].as_array().unwrap().len(), 1);
    assert_eq!(node.ask(|agent| agent.delete_policy(&b.id())), Removed::Absent);
    assert_eq!(node.cli(&["bpf", "ipcache", "flush", "--identity", "700"])["prefixes"], 1);
    assert_eq!(node.ask(podwire_api::Client::ipcache), []);

    // Without an agent: from the maps, and what is on record comes back with the next one.
    let closed = PolicyDirection { default: PolicyAction::Deny, rules: Vec::new() };
    let closed = Policy { ingress: closed, ..Policy::default() };
    node.ask(|agent| agent.set_policy(&b.id(), &closed));
    node.cli(&["ipcache", "set", "192.0.2.0/28", "700"]);
    node.agent.terminate().unwrap();
    assert_eq!(
        node.cli(&["bpf", "policy", "flush", "--all"])["slots"].as_array().unwrap().len(),
        1
    );
    assert_eq!(node.cli(&["bpf", "policy", "list"]), json!([]));
    assert_eq!(node.cli(&["bpf", "ipcache", "flush", "--all"])["prefixes"], 1);
    assert!(answers(&a, b.addresses()));
    node.agent.start_again().unwrap();
    assert!(!answers(&a, b.addresses()));
    assert_eq!(node.cli(&["bpf", "policy", "list"]).as_array().unwrap().len(), 1);
    assert_eq!(
        node.cli(&["bpf", "ipcache", "list", "--identity", "700"]).as_array().unwrap().len(),
        1
    );
}

#[test]
#[ignore = "needs root: a node in namespaces of its own"]
fn what_is_wrong_is_refused_and_changes_nothing() {
    let node = Node::start_with(&["--policy-rows", "8"]);
    let a = node.add("a");
    let refuse = |rules: Value| {
        let policy = policy(rules);
        let client = podwire_api::Client::new(podwire_api::socket_path(
            podwire_api::DEFAULT_RUN_DIR.as_ref(),
        ));
        node.host.run(|| client.set_policy(&a.id(), &policy)).unwrap_err()
    };
    let error = refuse(json!({"egress": {"rules": [{"action": "allow", "peer": "10.1.2.3/8"}]}}));
    assert!(
        error.to_string().contains("egress rule 1") && error.to_string().contains("10.0.0.0/8?"),
        "{error}"
    );
    let many: Vec<Value> =
        (100..109).map(|n| json!({"action": "allow", "peer": format!("identity:{n}")})).collect();
    let error = refuse(json!({"ingress": {"default": "deny", "rules": many}}));
    assert_eq!(error.code(), Some(podwire_api::ErrorCode::Exhausted));
    assert!(error.to_string().contains("map POLICY is full, it has room for 8 entries"), "{error}");
    assert_eq!(node.tables().policy().unwrap(), []);
    assert_eq!(node.ask(|agent| agent.policy(&a.id())), Policy::default());
}

#[test]
#[ignore = "needs root: a node in namespaces of its own"]
fn policies_in_force_come_back_when_the_database_is_lost() {
    let mut node = Node::start();
    let (a, b) = (node.add("a"), node.add("b"));
    node.ask(|agent| agent.set_identity(&a.id(), 4711));
    let rules = policy(json!({
        "ingress": {"default": "deny", "rules": [
            {"action": "allow", "protocol": "tcp", "ports": "80-89"},
            {"action": "allow", "peer": "identity:4711", "protocol": "udp", "ports": 53},
            {"action": "allow", "peer": "10.1.0.0/24", "protocol": "tcp", "ports": 8443},
            {"action": "deny", "peer": "192.0.2.0/24"},
        ]},
        "egress": {"rules": [{"action": "deny", "peer": "identity:host", "protocol": "tcp", "ports": 22}]},
    }));
    node.ask(|agent| agent.set_policy(&b.id(), &rules));
    let prefix = PrefixIdentity { prefix: "192.0.2.0/28".parse().unwrap(), identity: 700 };
    node.ask(|agent| agent.set_ipcache(&[prefix]));
    let before = node.tables().policy().unwrap();
    let repairs = |node: &Node| -> Vec<String> {
        let repairs = node.ask(podwire_api::Client::status).repairs;
        repairs.iter().map(|one| format!("{}: {}: {}", one.object, one.found, one.done)).collect()
    };

    node.agent.kill().unwrap();
    let database = podwire_api::database_path(podwire_api::DEFAULT_STATE_DIR.as_ref());
    node.host.run(|| std::fs::remove_file(&database)).unwrap();
    node.restart_with(&[]);
    let told = repairs(&node);
    let said =
        format!("endpoint {}: a policy is in force that is not on record: put on record", b.id());
    assert!(told.contains(&said), "{told:?}");
    // And on record they are: the next start has nothing to repair.
    for _ in 0..2 {
        assert_eq!(node.ask(|agent| agent.policy(&b.id())), rules);
        assert_eq!(node.ask(|agent| agent.policy(&a.id())), Policy::default());
        assert_eq!(node.ask(|agent| agent.endpoint(&a.id())).identity, 4711);
        assert_eq!(node.ask(podwire_api::Client::ipcache), [prefix]);
        assert_eq!(node.tables().policy().unwrap(), before);
        assert_eq!(node.cli(&["ipam", "check"])["disagreements"], json!([]));
        node.restart_with(&[]);
        assert_eq!(repairs(&node), [] as [&str; 0]);
    }
    let _servers = [80, 90].map(|port| Server::tcp(&b, port));
    assert!(connects(&a, &b, 80) && !connects(&a, &b, 90));
    assert!(answers_udp(&a, &b, 53) && !answers_udp(&a, &b, 54));
    assert_eq!(node.ask(|agent| agent.delete_policy(&b.id())), Removed::Removed);
    assert!(connects(&a, &b, 90));
}

#[test]
#[ignore = "needs root: a node in namespaces of its own"]
fn another_identity_or_policy_in_the_maps_is_named_and_put_right() {
    use podwire_datapath::abi::{PolicyKey, PolicyRef, PolicyRow, Slot, map};
    let node = Node::start();
    let (a, b) = (node.add("a"), node.add("b"));
    let rules = policy(json!({"ingress": {"default": "deny", "rules": [
        {"action": "allow", "peer": "identity:4711", "protocol": "tcp", "ports": 80}]}}));
    node.ask(|agent| agent.set_policy(&b.id(), &rules));
    let check = |pod: &TestPod| node.plugin.check(&pod.attachment, &pod.result);
    check(&a).unwrap();
    check(&b).unwrap();
    let (a_slot, b_slot) = (slot(&node, &a), slot(&node, &b));
    let before = node.tables().policy().unwrap();
    let path = |name| format!("{BPFFS}/maps/{name}");
    let (slots, rows) = node.host.run(|| {
        let slots = podwire_bpf::Array::<Slot>::open(path(map::SLOTS)).unwrap();
        let rows = podwire_bpf::HashMap::<PolicyKey, PolicyRow>::open(path(map::POLICY)).unwrap();
        (slots, rows)
    });
    let repaired = || {
        let found = node.cli(&["ipam", "check", "--repair"]);
        let found = found["disagreements"].as_array().unwrap();
        assert!(found.iter().all(|one| one["outcome"]["outcome"] == "repaired"), "{found:?}");
        found.iter().map(|one| one["found"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };

    // Who it is.
    let last = slots.get(a_slot).unwrap();
    slots.set(a_slot, &Slot { identity: 4711, ..last }).unwrap();
    let told = check(&a).unwrap_err().to_string();
    assert!(told.contains(&format!("identity in slot {a_slot}: expected 3, found 4711")), "{told}");
    assert_eq!(repaired(), ["the datapath has identity 4711, the record 3"]);
    check(&a).unwrap();

    // That it has one, and what stands in it.
    let last = slots.get(b_slot).unwrap();
    let open = Slot { ingress: PolicyRef::default(), ..last };
    slots.set(b_slot, &open).unwrap();
    let told = check(&b).unwrap_err().to_string();
    let said = format!(
        "ingress policy in slot {b_slot}: expected deny by default, peers with rules: 1, found everything passes"
    );
    assert!(told.contains(&said), "{told}");
    assert_eq!(repaired(), ["the datapath has another policy"]);
    check(&b).unwrap();
    let number = node.tables().policy().unwrap()[0].policy;
    rows.remove(&PolicyKey::identity(number, 4711)).unwrap();
    assert!(
        check(&b).unwrap_err().to_string().contains("found deny by default, peers with rules: 0")
    );
    assert_eq!(repaired(), ["the datapath has another policy"]);
    check(&b).unwrap();
    let now = node.tables().policy().unwrap();
    assert_eq!((now.len(), &now[0].rows), (before.len(), &before[0].rows));
    // Nothing is left of what was repaired.
    until("only its own row is there", || node.host.run(policy_rows) == 1);

    // One that nobody has on record is not lifted.
    slots
        .set(
            a_slot,
            &Slot { ingress: slots.get(b_slot).unwrap().ingress, ..slots.get(a_slot).unwrap() },
        )
        .unwrap();
    assert_eq!(node.ask(|agent| agent.policy(&a.id())), rules);
    assert!(check(&a).unwrap_err().to_string().contains("found deny by default"));
    assert_eq!(repaired(), ["a policy is in force that is not on record"]);
    check(&a).unwrap();
    assert!(!answers(&b, a.addresses()));
    for pod in [&a, &b] {
        node.delete(pod);
    }
    node.assert_clean();
    until("the policies' rows are gone", || node.host.run(policy_rows) == 0);
}

fn slot(node: &Node, pod: &TestPod) -> u32 {
    node.ask(|agent| agent.endpoint(&pod.id())).slot
}

#[test]
#[ignore = "needs root: a node in namespaces of its own"]
fn what_was_told_of_an_address_outlives_that_it_is_the_nodes() {
    let mut node = Node::start();
    let a = node.add("a");
    let client =
        podwire_api::Client::new(podwire_api::socket_path(podwire_api::DEFAULT_RUN_DIR.as_ref()));
    let refusal = |entry: PrefixIdentity| {
        let error = node.host.run(|| client.set_ipcache(&[entry])).unwrap_err();
        (error.code(), error.to_string())
    };
    let entry =
        |prefix: &str, identity| PrefixIdentity { prefix: prefix.parse().unwrap(), identity };
    // The node's identity is given to nobody.
    for prefix in ["192.0.2.7/32", "2001:db8::/32"] {
        let (code, told) = refusal(entry(prefix, 1));
        assert_eq!(code, Some(podwire_api::ErrorCode::Invalid), "{told}");
        assert!(told.contains("identity 1 is the node's own"), "{told}");
    }
    let identity = node.host.run(|| client.set_identity(&a.id(), 1)).unwrap_err();
    assert_eq!(identity.code(), Some(podwire_api::ErrorCode::Invalid));

    let told = [entry("192.0.2.7/32", 700), entry("2001:db8::7/128", 701)];
    node.ask(|agent| agent.set_ipcache(&told));
    let here = |node: &Node, addresses: [&str; 3]| {
        let rows = node.tables().ipcache().unwrap();
        addresses.map(|address| {
            let whole: IpNetwork = address.parse().unwrap();
            rows.iter().find(|row| row.prefix == whole).map(|row| row.identity)
        })
    };
    // The third is nobody's but the node's.
    let addresses = ["192.0.2.7", "2001:db8::7", "192.0.2.8"];
    let ip = |arguments: &str| {
        let output = node.host.command("ip").args(arguments.split(' ')).output().unwrap();
        assert!(output.status.success(), "{arguments}: {output:?}");
    };
    ip("link add up0 type veth peer name up1");
    ip("link set up0 up");
    assert_eq!(here(&node, addresses), [Some(700), Some(701), None]);
    for _ in 0..2 {
        for address in addresses {
            ip(&format!("addr add {address} dev up0"));
        }
        until("the addresses are the node's", || here(&node, addresses) == [Some(1); 3]);
        let (code, said) = refusal(entry("192.0.2.7/32", 702));
        assert_eq!(code, Some(podwire_api::ErrorCode::Conflict));
        assert!(said.starts_with("192.0.2.7 is the node's own"), "{said}");
        assert_eq!(node.ask(podwire_api::Client::ipcache), told);
        for address in addresses {
            ip(&format!("addr del {address} dev up0"));
        }
        until("the addresses are who they were", || {
            here(&node, addresses) == [Some(700), Some(701), None]
        });
    }
    // Also if the agent is not there to see it come or go.
    for (verb, expected) in [("add", [Some(1); 3]), ("del", [Some(700), Some(701), None])] {
        node.agent.kill().unwrap();
        for address in addresses {
            ip(&format!("addr {verb} {address} dev up0"));
        }
        node.agent.start_again().unwrap();
        assert_eq!(here(&node, addresses), expected);
        assert_eq!(node.ask(podwire_api::Client::ipcache), told);
    }
}
