//! Masquerade over real sockets: pods, their node, a router outside and a server behind it. The router knows
//! no way to the pods except where a test says so, so what leaves untranslated is never answered.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod node;

use std::{
    io::{ErrorKind, Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    thread,
    time::Duration,
};

use node::{MODES, Node, POD_CIDRS, TestPod, until};
use podwire_datapath::abi::{Hook, Reason};
use podwire_lab::{
    Host, Pod, interface,
    probe::{
        EchoReceiver, FrameSocket, Ping, TcpEcho, TcpTransfer,
        frame::{Link, ip_addresses, limit_hops},
    },
};
use podwire_netlink::{
    Address, Birth, Family, IfIndex, IfName, LinkChange, Netlink, NewLink, Route,
};
use podwire_netns::sysctl::{self, Key};

const NODE: [&str; 2] = ["198.51.100.1", "2001:db8:1::1"];
const ROUTER: [&str; 2] = ["198.51.100.254", "2001:db8:1::fe"];
const SERVER: [&str; 2] = ["192.0.2.9", "2001:db8:9::9"];
const BESIDE: [&str; 2] = ["192.0.2.1", "2001:db8:9::1"];

/// Long enough for whatever is on its way.
const PATIENCE: Duration = Duration::from_secs(5);

struct World {
    node: Node,
    /// The next hop.
    router: Pod,
    /// Behind it, over a link whose packets are smaller.
    server: Pod,
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn at(address: IpAddr, port: u16) -> SocketAddr {
    SocketAddr::new(address, port)
}

fn name(text: &str) -> IfName {
    text.parse().unwrap()
}

/// Makes a pair of links between the node and another namespace, up and with these addresses.
fn connect(host: &Host, pod: &Pod, links: [&str; 2], ours: &[&str], theirs: &[&str]) {
    host.run(|| {
        let other = Birth { netns: Some(pod.netns()), ..Birth::named(name(links[1])) };
        let pair = NewLink::veth(Birth::named(name(links[0])), other);
        Netlink::open().unwrap().create_link(&pair).unwrap();
        set_up(links[0], ours);
    });
    pod.run(|| set_up(links[1], theirs));
}

fn set_up(link: &str, addresses: &[&str]) {
    let mut netlink = Netlink::open().unwrap();
    let index = index(link);
    for address in addresses {
        netlink.add(&Address::new(index, address.parse().unwrap())).unwrap();
    }
    netlink.change_link(&LinkChange::of(index).up()).unwrap();
}

fn index(link: &str) -> IfIndex {
    IfIndex::new(interface::index(link).unwrap()).unwrap()
}

fn route(to: &str, via: &str, link: &str) {
    let route = Route::new(to.parse().unwrap()).via(ip(via)).dev(index(link));
    Netlink::open().unwrap().add(&route).unwrap();
}

fn default_routes(via: [&str; 2], link: &str, metric: u32) {
    for (family, via) in [Family::V4, Family::V6].into_iter().zip(via) {
        let route = Route::default_of(family).via(ip(via)).dev(index(link)).metric(metric);
        Netlink::open().unwrap().add(&route).unwrap();
    }
}

fn forward() {
    for key in ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"] {
        sysctl::write(&key.parse::<Key>().unwrap(), "1").unwrap();
    }
}

impl World {
    fn new(arguments: &[&str]) -> Self {
        Self::with(arguments, |host, router| {
            let ours = ["198.51.100.1/24", "2001:db8:1::1/64"];
            let theirs = ["198.51.100.254/24", "2001:db8:1::fe/64"];
            connect(host, router, ["eth0", "wan0"], &ours, &theirs);
            host.run(|| default_routes(ROUTER, "eth0", 100));
        })
    }

    /// With an uplink that `wire` makes.
    fn with(arguments: &[&str], wire: impl FnOnce(&Host, &Pod)) -> Self {
        let host = Host::new().unwrap();
        let (router, server) = (host.add_pod("router").unwrap(), host.add_pod("server").unwrap());
        wire(&host, &router);
        router.run(|| {
            forward();
            let other = Birth { netns: Some(server.netns()), ..Birth::named(name("lan0")) };
            let pair = NewLink::veth(Birth::named(name("far0")), other);
            let mut netlink = Netlink::open().unwrap();
            netlink.create_link(&pair).unwrap();
            netlink.change_link(&LinkChange::of(index("far0")).mtu(1300)).unwrap();
            set_up("far0", &["192.0.2.1/24", "2001:db8:9::1/64"]);
        });
        server.run(|| {
            Netlink::open().unwrap().change_link(&LinkChange::of(index("lan0")).mtu(1300)).unwrap();
            set_up("lan0", &["192.0.2.9/24", "2001:db8:9::9/64"]);
            default_routes(BESIDE, "lan0", 100);
        });
        let arguments = [&["--masquerade", "both"], arguments].concat();
        Self { node: Node::start_in(host, &arguments), router, server }
    }

    /// The router learns where the pods are.
    fn route_to_pods(&self) {
        self.router.run(|| {
            for (cidr, node) in POD_CIDRS.into_iter().zip(NODE) {
                route(cidr, node, "wan0");
            }
        });
    }

    fn counted(&self, hook: Hook, reason: Reason) -> u64 {
        self.node.counted(hook, reason)
    }

    fn metric(&self, name: &str) -> Option<u64> {
        let metrics = self.node.ask(podwire_api::Client::metrics);
        let of = |line: &str| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok();
        metrics.lines().find_map(of)
    }

    fn mappings(&self, arguments: &[&str]) -> Vec<serde_json::Value> {
        let list = self.node.cli(&[&["bpf", "nat", "list"], arguments].concat());
        list.as_array().unwrap().clone()
    }
}

/// A pod's address with the node's and the server's of its family.
fn families(pod: &TestPod) -> impl Iterator<Item = (IpAddr, IpAddr, IpAddr)> {
    let outside = NODE.into_iter().zip(SERVER);
    pod.addresses()
        .into_iter()
        .zip(outside)
        .map(|(pod, (node, server))| (pod, ip(node), ip(server)))
}

fn udp(pod: &Pod, address: SocketAddr) -> UdpSocket {
    let socket = pod.run(|| UdpSocket::bind(address)).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

/// One datagram there and another back; the sender, as it was seen there.
#[track_caller]
fn exchange(from: &UdpSocket, server: &UdpSocket) -> SocketAddr {
    let mut buffer = [0; 2000];
    let to = server.local_addr().unwrap();
    from.send_to(b"question", to).unwrap();
    let (length, seen) = server.recv_from(&mut buffer).unwrap();
    assert_eq!(&buffer[..length], b"question");
    server.send_to(b"answer", seen).unwrap();
    let (length, sender) = from.recv_from(&mut buffer).unwrap();
    assert_eq!((&buffer[..length], sender), (&b"answer"[..], to));
    seen
}

#[test]
#[ignore = "needs root: a node in namespaces of its own"]
fn pods_reach_outside_under_the_nodes_address() {
    for mode in MODES {
        let world = World::new(&["--attach", mode]);
        let pod = world.node.add("a");
        for (address, node, server) in families(&pod) {
            let target = world.server.run(|| EchoReceiver::udp(at(server, 0))).unwrap();
            for size in [56, 1200, 4000] {
                // An IPv6 sender learns by his first packets that the way is narrow.
                until(&format!("{size} bytes come back from {server}"), || {
                    let ping = || {
                        let patience = Duration::from_millis(200);
                        Ping::new(server).count(1).size(size).patience(patience).run()
                    };
                    pod.pod.run(ping).unwrap().is_complete()
                });
                let ping = || Ping::new(server).count(3).size(size).run();
                let report = pod.pod.run(ping).unwrap();
                assert!(report.is_complete(), "{mode}: {server}, {size} bytes: {report}");
                let ping = || Ping::udp(target.address()).count(3).size(size).run();
                let report = pod.pod.run(ping).unwrap();
                assert!(report.is_complete(), "{mode}: UDP to {server}, {size} bytes: {report}");
            }
            let listener = world.server.run(|| TcpListener::bind(at(server, 0))).unwrap();
            let to = listener.local_addr().unwrap();
            let mut stream = pod.pod.run(|| TcpStream::connect_timeout(&to, PATIENCE)).unwrap();
            let (mut accepted, seen) = listener.accept().unwrap();
            let own = stream.local_addr().unwrap();
            assert_eq!((own.ip(), seen), (address, at(node, own.port())), "the port is kept");
            stream.write_all(b"question").unwrap();
            let mut buffer = [0; 8];
            accepted.read_exact(&mut buffer).unwrap();
            accepted.write_all(&buffer).unwrap();
            stream.read_exact(&mut buffer).unwrap();
            drop((stream, accepted));

            let echo = world.server.run(|| TcpEcho::start(at(server, 0))).unwrap();
            let transfer = pod.pod.run(|| TcpTransfer::start(echo.address())).unwrap();
            thread::sleep(Duration::from_millis(200));
            let report = transfer.stop();
            assert!(report.is_complete() && report.returned > 100_000, "{report:?}");
        }
        // The node refuses a first fragment that is too big for the way, and the others are orphans.
        let mut drops = world.node.drops();
        drops.retain(|drop| !drop.starts_with("to_netdev unknown-fragment"));
        assert_eq!(drops, [] as [&str; 0]);
        assert!(world.counted(Hook::ToNetdev, Reason::Masqueraded) > 0);
        assert!(world.counted(Hook::FromNetdev, Reason::Unmasqueraded) > 0);
    }
}

#[test]
#[ignore = "needs root: a node in namespaces of its own"]
fn without_masquerade_pods_keep_their_addresses() {
    let mut world = World::new(&[]);
    world.node.restart_with(&["--masquerade", "ipv6"]);
    world.route_to_pods();
    let pod = world.node.add("a");
    for (address, node, server) in families(&pod) {
        let (from, there) = (udp(&pod.pod, at(address, 0)), udp(&world.server, at(server, 0)));
        let seen = exchange(&from, &there);
        assert_eq!(seen.ip(), if address.is_ipv4() { address } else { node });
    }
    world.node.restart_with(&[]);
    assert_eq!(world.mappings(&[]), [] as [serde_json::Value; 0]);
    for (address, _, server) in families(&pod) {
        let (from, there) = (udp(&pod.pod, at(address, 0)), udp(&world.server, at(server, 0)));
        assert_eq!(exchange(&from, &there).ip(), address);
    }
}

#[test]
#[ignore = "needs root: a node in namespaces of its own"]
fn excluded_prefixes_and_what_outside_began_keep_the_pods_address() {
    let world = World::new(&[
        "--masquerade-exclude=192.0.2.9/32",
        "--masquerade-exclude=2001:db8:9::9/128",
    ]);
    world.route_to_pods();
    let pod = world.node.add("a");
    for ((address, node, server), beside) in families(&pod).zip(BESIDE) {
        let (from, there) = (udp(&pod.pod, at(address, 0)), udp(&world.server, at(server, 0)));
        assert_eq!(exchange(&from, &there).ip(), address);
        let beside = udp(&world.router, at(ip(beside), 0));
        assert_eq!(exchange(&from, &beside).ip(), node);
        // The router speaks to the pod by its own address, which answers by it.
        let (asking, asked) = (udp(&world.router, at(beside.local_addr().unwrap().ip(), 0)), &from);
        assert_eq!(exchange(&asking, asked), asking.local_addr().unwrap());
        let listener = pod.pod.run(|| TcpListener::bind(at(address, 0))).unwrap();
        let to = listener.local_addr().unwrap();
        let mut stream = world.router.run(|| TcpStream::connect_timeout(&to, PATIENCE)).unwrap();
        listener.accept().unwrap().0.write_all(b"hello").unwrap();
        stream.read_exact(&mut [0; 5]).unwrap();
    }
}

#[test]
#[ignore = "needs root: a node in namespaces of its own"]
fn nobodys_port_is_anothers() {
    let world = World::new(&[]);
    let (a, b) = (world.node.add("a"), world.node.add("b"));
    let on_node = |address| {
        let socket = world.node.host.run(|| UdpSocket::bind(address)).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket
    };
    for ((first, node, server), (second, ..)) in families(&a).zip(families(&b)) {
        let there = udp(&world.server, at(server, 0));
        // Two pods.
        let (one, two) = (udp(&a.pod, at(first, 50000)), udp(&b.pod, at(second, 50000)));
        assert_eq!(exchange(&one, &there), at(node, 50000));
        let seen = exchange(&two, &there);
        assert!(seen.ip() == node && seen.port() != 50000, "{seen}");
        assert_eq!(exchange(&one, &there), at(node, 50000));
        // The node had the port before.
        let any = ip(if node.is_ipv4() { "0.0.0.0" } else { "::" });
        let own = on_node(at(any, 50001));
        let three = udp(&a.pod, at(first, 50001));
        assert_ne!(exchange(&three, &there), at(node, 50001));
        assert_eq!(exchange(&own, &there), at(node, 50001));
        assert_ne!(exchange(&three, &there), at(node, 50001));
        // The node wants the port later.
        let four = udp(&a.pod, at(first, 50002));
        assert_eq!(exchange(&four, &there), at(node, 50002));
        let own = on_node(at(any, 50002));
        let seen = exchange(&own, &there);
        assert!(seen.ip() == node && seen.port() != 50002, "{seen}");
        assert_eq!(exchange(&four, &there), at(node, 50002));
        // TCP, where the node listens.
        let _busy = world.node.host.run(|| TcpListener::bind(at(any, 50003))).unwrap();
        let listener = world.server.run(|| TcpListener::bind(at(server, 0))).unwrap();
        let to = listener.local_addr().unwrap();
        let mut sent = Vec::new();
        for _ in 0..3 {
            sent.push(a.pod.run(|| TcpStream::connect_timeout(&to, PATIENCE)).unwrap());
            assert_ne!(listener.accept().unwrap().1.port(), 50003);
        }
    }
    assert_eq!(world.node.drops(), [] as [&str; 0]);
}

#[test]
#[ignore = "needs root: a node in namespaces of its own"]
fn errors_reach_whom_they_concern() {
    let world = World::new(&[]);
    let pod = world.node.add("a");
    for (address, node, server) in families(&pod) {
        // Nobody listens there.
        let closed = udp(&world.server, at(server, 0)).local_addr().unwrap();
        let from = udp(&pod.pod, at(address, 0));
        from.connect(closed).unwrap();
        from.send(b"anybody?").unwrap();
        let refused = from.recv(&mut [0; 100]).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused, "{closed}: {refused}");

        // The pod does not listen any more.
        let there = udp(&world.server, at(server, 0));
        let from = udp(&pod.pod, at(address, 0));
        let seen = exchange(&from, &there);
        assert_eq!(seen.ip(), node);
        drop(from);
        there.connect(seen).unwrap();
        there.send(b"still there?").unwrap();
        let refused = there.recv(&mut [0; 100]).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused, "{seen}: {refused}");

        // The way is narrower than the sender knows: it learns so, and sends fragments.
        let there = udp(&world.server, at(server, 0));
        let from = udp(&pod.pod, at(address, 0));
        let to = there.local_addr().unwrap();
        there.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        until(&format!("1,400 bytes arrive at {server}"), || {
            let _ = from.send_to(&[7; 1400], to);
            there.recv(&mut [0; 2000]).is_ok_and(|length| length == 1400)
        });
    }
    assert!(world.counted(Hook::FromNetdev, Reason::Unmasqueraded) > 0);
}

#[test]
#[ignore = "needs root: a node in namespaces of its own"]
fn who_traces_a_route_sees_the_routers() {
    let world = World::new(&[]);
    let pod = world.node.add("a");
    let mut socket = pod.pod.run(|| FrameSocket::open("eth0")).unwrap();
    let link = Link { from: pod.mac(1), to: pod.mac(0) };
    for ((address, _, server), router) in families(&pod).zip(ROUTER) {
        let mut frame = link.udp(at(address, 33000), at(server, 33434), b"trace");
        limit_hops(&mut frame, 2);
        socket.send(&frame).unwrap();
        let header = if address.is_ipv4() { 20 } else { 40 };
        let expired = if address.is_ipv4() { 11 } else { 3 };
        let is_error = |frame: &[u8]| frame.get(14 + header) == Some(&expired);
        let answer = socket.receive(PATIENCE, is_error).unwrap().expect("time exceeded");
        assert_eq!(ip_addresses(&answer), Some((ip(router), address)));
        // The quote is what was sent: addresses, ports and all.
        let quote = &answer[14 + header + 8..];
        let (from, length) = if address.is_ipv4() { (12, 8) } else { (8, 32) };
        assert_eq!(quote[from..from + length], frame[14 + from..14 + from + length]);
        assert_eq!(quote[header..header + 8], frame[14 + header..14 + header + 8]);
    }
}

#[test]
#[ignore = "needs root: a node in namespaces of its own"]
fn ports_that_run_out_harm_nobody_else() {
    let world = World::new(&["--masquerade-ports", "40000-40015"]);
    let pod = world.node.add("a");
    for (address, node, server) in families(&pod) {
        let there = udp(&world.server, at(server, 0));
        let before = world.counted(Hook::ToNetdev, Reason::NatPortsExhausted);
        let sockets: Vec<_> = (0..16).map(|_| udp(&pod.pod, at(address, 0))).collect();
        let mut ports: Vec<_> = sockets
            .iter()
            .map(|socket| {
                let seen = exchange(socket, &there);
                assert_eq!(seen.ip(), node);
                seen.port()
            })
            .collect();
        ports.sort_unstable();
        assert_eq!(ports, (40000..=40015).collect::<Vec<_>>());
        let late = udp(&pod.pod, at(address, 0));
        for _ in 0..3 {
            late.send_to(b"in vain", there.local_addr().unwrap()).unwrap();
        }
        until("the drops are counted", || {
            world.counted(Hook::ToNetdev, Reason::NatPortsExhausted) == before + 3
        });
        let told = world.metric(r#"podwire_nat_dropped_total{reason="nat-ports-exhausted"}"#);
        assert_eq!(told, Some(before + 3));
        for socket in &sockets {
            exchange(socket, &there);
        }
        exchange(&late, &udp(&world.server, at(server, 0)));
    }
}

#[test]
#[ignore = "needs root: a node in namespaces of its own"]
fn an_address_that_goes_takes_its_mappings_and_another_serves() {
    let world = World::new(&[]);
    let pod = world.node.add("a");
    let changed = ["198.51.100.2/24", "2001:db8:1::2/64"];
    for ((address, node, server), changed) in families(&pod).zip(changed) {
        let there = udp(&world.server, at(server, 0));
        let from = udp(&pod.pod, at(address, 0));
        assert_eq!(exchange(&from, &there).ip(), node);
        let length = if node.is_ipv4() { 24 } else { 64 };
        let old = format!("{node}/{length}").parse().unwrap();
        world.node.host.run(|| {
            let mut netlink = Netlink::open().unwrap();
            // Otherwise IPv4 addresses of a network go with its first.
            let key = "net/ipv4/conf/all/promote_secondaries".parse::<Key>().unwrap();
            sysctl::write(&key, "1").unwrap();
            netlink.add(&Address::new(index("eth0"), changed.parse().unwrap())).unwrap();
        });
        assert_eq!(exchange(&from, &there).ip(), node, "it is the node's still");
        world.node.host.run(|| {
            let mut netlink = Netlink::open().unwrap();
            netlink.remove(&Address::new(index("eth0"), old)).unwrap();
        });
        let new = ip(changed.split('/').next().unwrap());
        let gone = node.to_string();
        until("the mappings are gone", || world.mappings(&["--address", &gone]).is_empty());
        until("the new address is used", || {
            let probe = udp(&pod.pod, at(address, 0));
            probe.send_to(b"x", there.local_addr().unwrap()).unwrap();
            let mut buffer = [0; 10];
            there.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
            there.recv_from(&mut buffer).is_ok_and(|(_, seen)| seen.ip() == new)
        });
        there.set_read_timeout(Some(PATIENCE)).unwrap();
        assert_eq!(exchange(&from, &there).ip(), new);
    }
}

#[test]
#[ignore = "needs root: a node in namespaces of its own"]
fn uplinks_come_and_go() {
    let world = World::new(&[]);
    let pod = world.node.add("a");
    let ours = ["203.0.113.1/24", "2001:db8:3::1/64"];
    let theirs = ["203.0.113.254/24", "2001:db8:3::fe/64"];
    connect(&world.node.host, &world.router, ["eth1", "wan1"], &ours, &theirs);
    world.node.host.run(|| {
        let gateways = ["203.0.113.254", "2001:db8:3::fe"];
        default_routes(gateways, "eth1", 50);
    });
    let new = ["203.0.113.1", "2001:db8:3::1"];
    let reaches = |address: IpAddr, server: IpAddr, node: IpAddr| {
        let there = udp(&world.server, at(server, 0));
        there.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        let from = udp(&pod.pod, at(address, 0));
        from.send_to(b"x", there.local_addr().unwrap()).unwrap();
        there.recv_from(&mut [0; 10]).is_ok_and(|(_, seen)| seen.ip() == node)
    };
    for ((address, _, server), new) in families(&pod).zip(new) {
        until(&format!("{new} is used"), || reaches(address, server, ip(new)));
    }
    // Renamed: the programs stay. Gone: the other one is used again.
    world.node.host.run(|| {
        let mut netlink = Netlink::open().unwrap();
        let number = index("eth1");
        netlink.change_link(&LinkChange::of(number).name(name("other"))).unwrap();
    });
    for ((address, _, server), new) in families(&pod).zip(new) {
        until(&format!("{new} is used"), || reaches(address, server, ip(new)));
    }
    world.node.host.run(|| Netlink::open().unwrap().remove_link(name("other")).unwrap());
    for (address, node, server) in families(&pod) {
        until(&format!("{node} is used"), || reaches(address, server, node));
    }
    until("its mappings are gone", || world.mappings(&["--address", new[0]]).is_empty());
}

#[test]
#[ignore = "needs root: a node in namespaces of its own"]
fn a_bridge_is_an_uplink_and_its_port_is_none() {
    let world = World::with(&["--device", "eth*"], |host, router| {
        let theirs = ["198.51.100.254/24", "2001:db8:1::fe/64"];
        connect(host, router, ["eth0", "wan0"], &[], &theirs);
        host.run(|| {
            let mut netlink = Netlink::open().unwrap();
            netlink.create_link(&NewLink::bridge(name("br0"))).unwrap();
            netlink.change_link(&LinkChange::of(index("eth0")).master(index("br0"))).unwrap();
            set_up("br0", &["198.51.100.1/24", "2001:db8:1::1/64"]);
            default_routes(ROUTER, "br0", 100);
        });
    });
    let pod = world.node.add("a");
    for (address, node, server) in families(&pod) {
        let (from, there) = (udp(&pod.pod, at(address, 0)), udp(&world.server, at(server, 0)));
        until("the bridge forwards", || {
            let ping = || Ping::new(server).count(1).patience(Duration::from_millis(200)).run();
            pod.pod.run(ping).unwrap().is_complete()
        });
        assert_eq!(exchange(&from, &there).ip(), node);
    }
    let bridge = world.node.host.run(|| interface::index("br0")).unwrap();
    for mapping in world.mappings(&[]) {
        assert_eq!(mapping["ifindex"], bridge, "{mapping}");
    }
}

#[test]
#[ignore = "needs root: a node in namespaces of its own"]
fn a_device_on_top_of_another_is_an_uplink_and_the_lower_one_is_none() {
    let world = World::with(&[], |host, router| {
        let theirs = ["198.51.100.254/24", "2001:db8:1::fe/64"];
        connect(host, router, ["eth0", "wan0"], &[], &theirs);
        let add = ["link", "add", "link", "eth0", "name", "top0", "type", "macvlan"];
        assert!(host.command("ip").args(add).status().unwrap().success());
        host.run(|| {
            set_up("top0", &["198.51.100.1/24", "2001:db8:1::1/64"]);
            default_routes(ROUTER, "top0", 100);
        });
    });
    let pod = world.node.add("a");
    for (address, node, server) in families(&pod) {
        let (from, there) = (udp(&pod.pod, at(address, 0)), udp(&world.server, at(server, 0)));
        assert_eq!(exchange(&from, &there), at(node, from.local_addr().unwrap().port()));
    }
    let top = world.node.host.run(|| interface::index("top0")).unwrap();
    for mapping in world.mappings(&["--protocol", "udp"]) {
        assert_eq!(mapping["ifindex"], top, "{mapping}");
    }
}

#[test]
#[ignore = "needs root: a node in namespaces of its own"]
fn conversations_outlive_the_agent() {
    let mut world = World::new(&[]);
    let pod = world.node.add("a");
    let transfers: Vec<_> = families(&pod)
        .map(|(_, _, server)| {
            let echo = world.server.run(|| TcpEcho::start(at(server, 0))).unwrap();
            let transfer = pod.pod.run(|| TcpTransfer::start(echo.address())).unwrap();
            (echo, transfer)
        })
        .collect();
    let progress = |before: &[u64]| {
        let now: Vec<_> = transfers.iter().map(|(_, transfer)| transfer.returned()).collect();
        let all = before.iter().zip(&now).all(|(before, now)| now > before);
        all.then_some(now)
    };
    let mut returned = vec![0; transfers.len()];
    let mut goes_on = |when: &str| {
        until(when, || progress(&returned).map(|now| returned = now).is_some());
    };
    goes_on("data flows");
    world.node.agent.kill().unwrap();
    goes_on("it flows without an agent");
    world.node.agent.start_again().unwrap();
    goes_on("it flows with the next agent");
    world.node.agent.terminate().unwrap();
    world.node.agent.start_again().unwrap();
    goes_on("and with the next");
    let established = world.mappings(&["--protocol", "tcp"]);
    assert_eq!(established.len(), 2, "{established:?}");
    assert!(established.iter().all(|one| one["state"] == "established"));
    for (_echo, transfer) in transfers {
        let report = transfer.stop();
        assert!(report.is_complete(), "{report:?}");
    }
}

#[test]
#[ignore = "needs root: a node in namespaces of its own"]
fn mappings_are_listed_and_flushed_and_go_in_their_time() {
    let world = World::new(&["--timeout", "nat-icmp=70"]);
    let pod = world.node.add("a");
    let sockets: Vec<_> = families(&pod)
        .map(|(address, node, server)| {
            let (from, there) = (udp(&pod.pod, at(address, 0)), udp(&world.server, at(server, 0)));
            exchange(&from, &there);
            (from, there, node)
        })
        .collect();
    let all = world.mappings(&["--protocol", "udp"]);
    assert_eq!(all.len(), 2, "{all:?}");
    for (from, there, node) in &sockets {
        let (from, there) = (from.local_addr().unwrap(), there.local_addr().unwrap());
        let address = from.ip().to_string();
        let [one] = &world.mappings(&["--address", &address])[..] else { panic!("{all:?}") };
        assert_eq!(one["protocol"], "udp");
        assert_eq!((&one["origin"], &one["state"]), (&"pod".into(), &"replied".into()));
        let end = |end: &str| (one[end]["address"].clone(), one[end]["port"].clone());
        let of = |at: SocketAddr| (at.ip().to_string().into(), at.port().into());
        assert_eq!(end("local"), of(from));
        assert_eq!(end("translated"), of(SocketAddr::new(*node, from.port())));
        assert_eq!(end("remote"), of(there));
        assert_eq!((&one["sent"]["packets"], &one["received"]["packets"]), (&1.into(), &1.into()));
        let port = there.port().to_string();
        let flushed = world.node.cli(&["bpf", "nat", "flush", "--port", &port]);
        assert_eq!(flushed["flushed"], 1);
    }
    assert_eq!(world.mappings(&["--protocol", "udp"]), [] as [serde_json::Value; 0]);
    for (from, there, node) in &sockets {
        assert_eq!(exchange(from, there).ip(), *node, "it begins anew");
    }
    until("the mappings are told", || {
        world.metric("podwire_nat_mappings").is_some_and(|mappings| mappings >= 2)
    });
    let settings = world.node.cli(&["config"])["settings"].clone();
    let setting = |name: &str| (settings[name]["value"].clone(), settings[name]["origin"].clone());
    assert_eq!(setting("timeout.nat-icmp"), ("70".into(), "option".into()));
    assert_eq!(setting("timeout.nat-udp-replied"), ("120".into(), "default".into()));
    world.node.cli(&["config", "set", "timeout.nat-udp-replied", "1"]);
    until("idle mappings are gone", || world.mappings(&["--protocol", "udp"]).is_empty());
    until("that is told", || {
        world.metric(r#"podwire_nat_expired_total{protocol="udp",state="replied"}"#) == Some(2)
    });
    for (from, there, node) in &sockets {
        assert_eq!(exchange(from, there).ip(), *node, "it begins anew");
    }
}

#[test]
#[ignore = "needs root: a node in namespaces of its own"]
fn a_table_that_fills_is_told_and_idle_mappings_go_sooner() {
    let world = World::new(&["--masquerade-mappings", "1024"]);
    let pod = world.node.add("a");
    let (address, _, server) = families(&pod).next().unwrap();
    let from = udp(&pod.pod, at(address, 0));
    // The way there is known from then on; while it is not, few packets wait.
    exchange(&from, &udp(&world.server, at(server, 0)));
    for port in 1..=800 {
        from.send_to(b"anybody?", at(server, port)).unwrap();
    }
    let pressure = || world.metric("podwire_nat_pressure");
    until("the table fills", || pressure() == Some(1));
    assert!(world.metric("podwire_nat_mappings").unwrap() >= 800);
    assert_eq!(world.metric("podwire_nat_capacity"), Some(1024));
    let status = world.node.cli(&["status"]);
    let is_told = |status: &serde_json::Value| {
        let problems = status["problems"].as_array().unwrap();
        let what = |problem: &serde_json::Value| problem["what"].as_str().unwrap().to_owned();
        problems.iter().map(what).any(|what| what.starts_with("the table of mappings is "))
    };
    assert!(is_told(&status), "{status}");
    let maps = status["memory"]["maps"].as_array().unwrap();
    let map = maps.iter().find(|map| map["name"] == "NAT").unwrap();
    assert!(map["entries"].as_u64().unwrap() >= 1600, "{map}");
    // They would stay for two minutes, which is longer than this waits.
    until("there is room again", || pressure() == Some(0));
    assert!(!is_told(&world.node.cli(&["status"])));
}
