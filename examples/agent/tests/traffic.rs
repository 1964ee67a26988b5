//! Packets over real links: pods, their node, and what is kept from them. Every test runs with
//! programs attached by TCX links and by clsact filters.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod node;

use std::{
    net::{IpAddr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use node::{MODES, Node, TestPod};
use podwire_datapath::abi::{Hook, Reason};
use podwire_lab::probe::{
    EchoReceiver, FrameSocket, Ping, TcpEcho, TcpTransfer,
    frame::{Arp, ArpOperation, BROADCAST, Link, ip_addresses, tagged},
};
use podwire_netlink::{Family, NeighbourState, Netlink, RouteFilter};

const ROUTER: [&str; 2] = ["10.1.0.1", "fd00:1::1"];

fn in_both_modes(test: impl Fn(&Node)) {
    for mode in MODES {
        test(&Node::start_with(&["--attach", mode]));
    }
}

/// Five echoes, each seen by both ends; larger ones are sent in fragments.
fn assert_answers(from: &TestPod, target: IpAddr, size: usize) {
    let ping = || Ping::new(target).count(5).interval(Duration::from_millis(20)).size(size).run();
    let report = from.pod.run(ping).unwrap();
    assert!(report.is_complete(), "{} to {target}, {size} bytes: {report}", from.pod.name());
}

#[test]
#[ignore = "needs root: a node in namespaces of its own"]
fn pods_and_node_reach_each_other() {
    in_both_modes(|node| {
        let (a, b) = (node.add("a"), node.add("b"));
        for size in [56, 1400, 4000] {
            for (target, router) in b.addresses().into_iter().zip(ROUTER) {
                assert_answers(&a, target, size);
                assert_answers(&a, router.parse().unwrap(), size);
                let from_node = || Ping::new(target).count(5).size(size).run();
                let report = node.host.run(from_node).unwrap();
                assert!(report.is_complete(), "node to {target}, {size} bytes: {report}");
            }
        }
        for target in b.addresses() {
            let echo = b.pod.run(|| TcpEcho::start(SocketAddr::new(target, 0))).unwrap();
            for sender in [&a.pod, &b.pod] {
                let transfer = sender.run(|| TcpTransfer::start(echo.address())).unwrap();
                std::thread::sleep(Duration::from_millis(200));
                let report = transfer.stop();
                assert!(report.is_complete() && report.returned > 100_000, "{report:?}");
            }
        }
        assert_eq!(node.drops(), [] as [&str; 0]);
        assert!(node.counted(Hook::FromContainer, Reason::Delivered) > 0);
        assert!(node.counted(Hook::FromContainer, Reason::ToStack) > 0);
        assert!(node.counted(Hook::FromHost, Reason::Delivered) > 0);
        node.delete(&a);
        node.delete(&b);
        node.assert_clean();
    });
}

#[test]
#[ignore = "needs root: a node in namespaces of its own"]
fn a_pod_is_wired_as_the_design_says() {
    let node = Node::start();
    let pod = node.add("a");
    let mut host = node.host.run(Netlink::open).unwrap();
    let mut inside = pod.pod.run(Netlink::open).unwrap();
    let host_link = host.link(pod.host_link().parse::<podwire_netlink::IfName>().unwrap()).unwrap();
    let eth0 = inside.link("eth0".parse::<podwire_netlink::IfName>().unwrap()).unwrap();
    assert_eq!(eth0.peer, Some(host_link.index), "eth0@ifN");
    assert_eq!(host_link.alias.as_deref(), Some("podwire:node-1:a-container/eth0"));
    assert_eq!(eth0.mac.unwrap().octets(), pod.mac(1));
    assert_eq!(host_link.mac.unwrap().octets(), pod.mac(0));
    assert!(eth0.is_up() && host_link.is_up());
    assert_eq!(host.addresses(host_link.index).unwrap(), [], "the host link has no address");

    let addresses: Vec<_> = inside.addresses(eth0.index).unwrap();
    let global: Vec<_> = addresses
        .iter()
        .filter(|a| !matches!(a.network.ip(), IpAddr::V6(v6) if v6.is_unicast_link_local()))
        .map(|a| a.network.to_string())
        .collect();
    assert_eq!(global, [format!("{}/32", pod.v4), format!("{}/128", pod.v6)]);
    let routes = inside.routes(&RouteFilter::output(eth0.index)).unwrap();
    for (family, router) in [Family::V4, Family::V6].into_iter().zip(ROUTER) {
        let router: IpAddr = router.parse().unwrap();
        let default = routes.iter().find(|route| route.destination == family.everything()).unwrap();
        assert_eq!(default.gateway, Some(router));
        assert!(default.mtu.is_some());
        let to_router = |route: &&podwire_netlink::Route| route.destination == router.into();
        assert_eq!(routes.iter().find(to_router).unwrap().gateway, None);
    }
    let neighbours = inside.neighbours(eth0.index).unwrap();
    for router in ROUTER {
        let router: IpAddr = router.parse().unwrap();
        let neighbour = neighbours.iter().find(|n| n.address == router).unwrap();
        assert_eq!(neighbour.state, NeighbourState::PERMANENT);
        assert_eq!(neighbour.mac, host_link.mac);
    }
    node.plugin.check(&pod.attachment, &pod.result).unwrap();
    node.delete(&pod);
    node.assert_clean();
}

/// What a receiver must never see, sent by a pod on its own interface.
struct Attack {
    what: &'static str,
    frame: Vec<u8>,
    reason: Reason,
}

fn attacks(a: &TestPod, b: &TestPod, other: &TestPod) -> Vec<Attack> {
    let own = Link { from: a.mac(1), to: a.mac(0) };
    let to_all = Link { to: BROADCAST, ..own };
    let port = |address: IpAddr| SocketAddr::new(address, 9999);
    let mut attacks = Vec::new();
    let mut add = |what, frame, reason| attacks.push(Attack { what, frame, reason });
    for ((mine, theirs), target) in
        a.addresses().into_iter().zip(other.addresses()).zip(b.addresses())
    {
        add("spoofed address", own.udp(port(theirs), port(target), b"x"), Reason::SpoofedAddress);
        let forged = Link { from: other.mac(1), ..own };
        add("spoofed MAC", forged.udp(port(mine), port(target), b"x"), Reason::SpoofedMac);
        let past = Link { to: b.mac(1), ..own };
        add("not for the gateway", past.udp(port(mine), port(target), b"x"), Reason::NotForGateway);
        let vlan = tagged(&own.udp(port(mine), port(target), b"x"), 7);
        add("VLAN tag", vlan, Reason::Vlan);
        let header = if mine.is_ipv4() { 20 } else { 40 };
        let mut short = own.udp(port(mine), port(target), b"x");
        short.truncate(14 + header - 1);
        add("cut within the IP header", short, Reason::Malformed);
    }
    let (IpAddr::V4(v4), IpAddr::V4(b4), IpAddr::V4(other4)) = (a.v4, b.v4, other.v4) else {
        panic!("IPv4 comes first");
    };
    let arp = Arp {
        operation: ArpOperation::Request,
        sender_mac: a.mac(1),
        sender: v4,
        target_mac: [0; 6],
        target: b4,
    };
    add("ARP for another pod", arp.frame(to_all), Reason::ForeignArp);
    add("ARP as another pod", Arp { sender: other4, ..arp }.frame(to_all), Reason::ForeignArp);
    let router = "10.1.0.1".parse().unwrap();
    let claim = Arp { operation: ArpOperation::Reply, sender: router, ..arp };
    add("ARP claiming the gateway", claim.frame(to_all), Reason::ForeignArp);
    let (IpAddr::V6(v6), router6): (IpAddr, Ipv6Addr) = (a.v6, "fd00:1::1".parse().unwrap()) else {
        panic!("IPv6 comes second");
    };
    let all = "ff02::1".parse().unwrap();
    let claim = to_all.neighbour_advertisement(v6, all, router6, a.mac(1));
    add("advertising the gateway", claim, Reason::ForeignNeighbour);
    add("neither IP nor ARP", to_all.frame(0x88cc, &[0; 46]), Reason::UnsupportedProtocol);
    attacks
}

#[test]
#[ignore = "needs root: a node in namespaces of its own"]
fn what_a_pod_forges_is_dropped_counted_and_not_delivered() {
    in_both_modes(|node| {
        let (a, b, other) = (node.add("a"), node.add("b"), node.add("other"));
        let mut sender = a.pod.run(|| FrameSocket::open("eth0")).unwrap();
        let mut receivers: Vec<_> = [&b.pod, &other.pod]
            .map(|pod| pod.run(|| FrameSocket::open("eth0")).unwrap())
            .into_iter()
            .chain([node.host.run(|| FrameSocket::open("podwire_host")).unwrap()])
            .collect();
        for attack in attacks(&a, &b, &other) {
            let before = node.counted(Hook::FromContainer, attack.reason);
            sender.send(&attack.frame).unwrap();
            let after = node.counted(Hook::FromContainer, attack.reason);
            assert_eq!(after - before, 1, "{}: counted as {}", attack.what, attack.reason);
        }
        // A right packet, sent last, does arrive: whatever came before it would have, too.
        let last = Link { from: a.mac(1), to: a.mac(0) };
        for target in [b.v4, other.v4, "10.1.0.1".parse().unwrap()] {
            let frame = last.udp(SocketAddr::new(a.v4, 1), SocketAddr::new(target, 4321), b"last");
            sender.send(&frame).unwrap();
        }
        for receiver in &mut receivers {
            let seen = receiver
                .receive_all(Duration::from_secs(5), |frame| frame.ends_with(b"last"))
                .unwrap();
            let (last, before) = seen.split_last().expect("the right packet arrives");
            assert_eq!(ip_addresses(last).unwrap().0, a.v4);
            let forged =
                before.iter().filter(|frame| frame.ends_with(b"x") || frame[12..14] == [8, 6]);
            assert_eq!(forged.count(), 0, "{before:02x?}");
        }
    });
}

#[test]
#[ignore = "needs root: a node in namespaces of its own"]
fn a_pod_without_neighbour_entries_asks_and_is_answered() {
    let node = Node::start();
    let (a, b) = (node.add("a"), node.add("b"));
    let mut inside = a.pod.run(Netlink::open).unwrap();
    let eth0 = inside.link("eth0".parse::<podwire_netlink::IfName>().unwrap()).unwrap();
    for neighbour in inside.neighbours(eth0.index).unwrap() {
        if neighbour.state == NeighbourState::PERMANENT {
            inside.remove(&neighbour).unwrap();
        }
    }
    for target in b.addresses() {
        assert_answers(&a, target, 56);
    }
    assert!(node.counted(Hook::FromContainer, Reason::AnsweredArp) > 0);
    assert!(node.counted(Hook::FromContainer, Reason::AnsweredNeighbour) > 0);
    assert_eq!(node.drops(), [] as [&str; 0]);
    let neighbours = inside.neighbours(eth0.index).unwrap();
    for router in ROUTER {
        let router: IpAddr = router.parse().unwrap();
        let neighbour = neighbours.iter().find(|n| n.address == router).unwrap();
        assert_eq!(neighbour.mac.unwrap().octets(), a.mac(0), "the host link's");
    }
}

#[test]
#[ignore = "needs root: a node in namespaces of its own"]
fn an_expired_packet_is_answered_by_the_node() {
    let node = Node::start();
    let (a, b) = (node.add("a"), node.add("b"));
    let mut socket = a.pod.run(|| FrameSocket::open("eth0")).unwrap();
    let link = Link { from: a.mac(1), to: a.mac(0) };
    for ((mine, target), router) in a.addresses().into_iter().zip(b.addresses()).zip(ROUTER) {
        let receiver = b.pod.run(|| EchoReceiver::icmp(target)).unwrap();
        let mut frame = link.echo_request(mine, target, 1, 1, b"expired");
        podwire_lab::probe::frame::limit_hops(&mut frame, 1);
        socket.send(&frame).unwrap();
        let exceeded = |frame: &[u8]| {
            let at = if mine.is_ipv4() { 34 } else { 54 };
            let kind = if mine.is_ipv4() { 11 } else { 3 };
            ip_addresses(frame).is_some_and(|(source, _)| source.to_string() == router)
                && frame.get(at) == Some(&kind)
        };
        let answer = socket.receive(Duration::from_secs(5), exceeded).unwrap();
        assert!(answer.is_some(), "no time exceeded from {router}");
        assert_eq!(receiver.arrivals().received(1), 0, "it did not reach the pod");
    }
    assert_eq!(node.counted(Hook::FromContainer, Reason::ToStackExpired), 2);
}

#[test]
#[ignore = "needs root: a node in namespaces of its own"]
fn a_second_interface_is_refused_and_leaves_the_first_alone() {
    let node = Node::start();
    let (a, b) = (node.add("a"), node.add("b"));
    let before = node.host.inventory().unwrap();
    let second = a.attachment.clone().ifname("net1");
    let error = node.plugin.add(&second).unwrap_err();
    assert_eq!(error.cni_code(), Some(102), "{error}");
    assert_eq!(node.host.inventory().unwrap().since(&before), [] as [&str; 0]);
    node.plugin.check(&a.attachment, &a.result).unwrap();
    for target in b.addresses() {
        assert_answers(&a, target, 56);
    }
    node.plugin.del(&second, None).unwrap();
    node.plugin.check(&a.attachment, &a.result).unwrap();
    node.delete(&a);
    node.delete(&b);
    node.assert_clean();
}
