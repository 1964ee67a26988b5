//! Masquerade: the programs at uplinks under `BPF_PROG_TEST_RUN`. Every translated packet is compared byte
//! by byte with the one that the other address would have sent.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod node;

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket},
    thread,
    time::Duration,
};

use node::{Judged, NEXT, Node, Pod, SHOT, on_node};
use podwire_datapath::{
    FlowState, LinkHeader, Nat, NatFilter, NatOrigin, PortRange, Timeout, UplinkConfig,
    abi::{Hook, Protocol, Reason},
};
use podwire_lab::probe::frame::{Link, checksum};

const NODE4: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
const NODE6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 1);
const OUTSIDE4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 9);
const OUTSIDE6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 9, 0, 0, 0, 0, 9);

const LINK: Link = Link { from: [2, 0, 0, 0, 9, 1], to: [2, 0, 0, 0, 9, 2] };

const FIN: u8 = 1;
const SYN: u8 = 2;
const RST: u8 = 4;
const ACK: u8 = 16;

struct Uplink<'n> {
    node: &'n Node,
    nat: Nat,
}

fn config() -> UplinkConfig {
    UplinkConfig {
        ipv4: Some(NODE4),
        ipv6: Some(NODE6),
        header: LinkHeader::Ethernet,
        ports: PortRange::default(),
    }
}

fn on_uplink(test: impl FnOnce(&Uplink<'_>) + Send) {
    on_node(|node| {
        let nat = node.datapath.nat().unwrap();
        let uplink = Uplink { node, nat };
        uplink.set(&config());
        let networks =
            |texts: &[&str]| -> Vec<_> { texts.iter().map(|text| text.parse().unwrap()).collect() };
        uplink
            .nat
            .set_prefixes(
                &networks(&["10.1.0.0/24", "fd00:1::/64"]),
                &networks(&["203.0.113.0/24", "2001:db8:e::/48"]),
            )
            .unwrap();
        test(&uplink);
    });
}

impl Uplink<'_> {
    fn set(&self, config: &UplinkConfig) {
        self.node.datapath.set_uplink(self.node.c.ifindex, config).unwrap();
    }

    fn leaves(&self, frame: &[u8]) -> Judged {
        self.node.judge(Hook::ToNetdev, frame, self.node.c.ifindex, 0)
    }

    fn arrives(&self, frame: &[u8]) -> Judged {
        self.node.judge(Hook::FromNetdev, frame, self.node.c.ifindex, 0)
    }

    /// Translated to exactly this frame.
    #[track_caller]
    fn masquerades(&self, frame: &[u8], expected: &[u8]) {
        let judged = self.leaves(frame);
        assert_eq!((judged.action, judged.reason), (NEXT, Reason::Masqueraded));
        assert_eq!(hex(&judged.frame), hex(expected));
    }

    #[track_caller]
    fn unmasquerades(&self, frame: &[u8], expected: &[u8]) {
        let judged = self.arrives(frame);
        assert_eq!((judged.action, judged.reason), (NEXT, Reason::Unmasqueraded));
        assert_eq!(hex(&judged.frame), hex(expected));
    }

    /// Goes on as it is.
    #[track_caller]
    fn leaves_alone(&self, frame: &[u8]) {
        let judged = self.leaves(frame);
        assert_eq!((judged.action, judged.reason), (NEXT, Reason::Untranslated));
        assert_eq!(hex(&judged.frame), hex(frame));
    }

    #[track_caller]
    fn lets_in(&self, frame: &[u8]) {
        let judged = self.arrives(frame);
        assert_eq!((judged.action, judged.reason), (NEXT, Reason::Untranslated));
        assert_eq!(hex(&judged.frame), hex(frame));
    }

    #[track_caller]
    fn drops(&self, frame: &[u8], reason: Reason) {
        let judged = self.leaves(frame);
        assert_eq!((judged.action, judged.reason), (SHOT, reason));
    }

    /// The port that this packet leaves with.
    #[track_caller]
    fn port_of(&self, frame: &[u8]) -> u16 {
        let judged = self.leaves(frame);
        assert_eq!(judged.reason, Reason::Masqueraded);
        let at = transport(&judged.frame);
        u16::from_be_bytes([judged.frame[at], judged.frame[at + 1]])
    }
}

fn hex(frame: &[u8]) -> String {
    frame.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// This node's and the outside's address of a pod's families.
fn families(pod: &Pod) -> [(IpAddr, IpAddr, IpAddr); 2] {
    [(pod.v4.into(), NODE4.into(), OUTSIDE4.into()), (pod.v6.into(), NODE6.into(), OUTSIDE6.into())]
}

fn transport(frame: &[u8]) -> usize {
    if frame[12] == 8 { 14 + usize::from(frame[14] & 15) * 4 } else { 54 }
}

fn at(address: IpAddr, port: u16) -> SocketAddr {
    SocketAddr::new(address, port)
}

fn tcp(from: SocketAddr, to: SocketAddr, flags: u8) -> Vec<u8> {
    let mut segment = Vec::new();
    segment.extend(from.port().to_be_bytes());
    segment.extend(to.port().to_be_bytes());
    segment.extend([1, 2, 3, 4, 5, 6, 7, 8, 5 << 4, flags, 0xff, 0xff, 0, 0, 0, 0]);
    segment.extend(b"odd number of bytes");
    let sum = pseudo(from.ip(), to.ip(), 6, &segment);
    segment[16..18].copy_from_slice(&sum.to_be_bytes());
    LINK.ip(from.ip(), to.ip(), 6, &segment)
}

fn udp(from: SocketAddr, to: SocketAddr) -> Vec<u8> {
    LINK.udp(from, to, b"question")
}

fn echo(from: IpAddr, to: IpAddr, identifier: u16, is_reply: bool) -> Vec<u8> {
    let kind = match (from.is_ipv4(), is_reply) {
        (true, false) => 8,
        (true, true) => 0,
        (false, false) => 128,
        (false, true) => 129,
    };
    let mut message = vec![kind, 0, 0, 0];
    message.extend(identifier.to_be_bytes());
    message.extend([0, 1]);
    message.extend(b"ping");
    LINK.icmp(from, to, message)
}

/// An ICMP error about a frame: that its port is not reachable, or that it is too big.
fn error(from: IpAddr, to: IpAddr, about: &[u8], kind: u8, quoted: usize) -> Vec<u8> {
    let mut message = vec![kind, if kind == 3 { 3 } else { 0 }, 0, 0, 0, 0, 5, 0];
    message.extend(&about[14..about.len().min(14 + quoted)]);
    LINK.icmp(from, to, message)
}

fn pseudo(from: IpAddr, to: IpAddr, protocol: u8, payload: &[u8]) -> u16 {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let (from, to) = match (from, to) {
        (IpAddr::V4(a), IpAddr::V4(b)) => (a.octets().to_vec(), b.octets().to_vec()),
        (IpAddr::V6(a), IpAddr::V6(b)) => (a.octets().to_vec(), b.octets().to_vec()),
        _ => panic!("one family"),
    };
    checksum(&[&from, &to, &length, &[0, 0, 0, protocol], payload])
}

#[test]
#[ignore = "needs root: loads programs in a namespace of its own"]
fn conversations_leave_under_the_nodes_address_and_come_back() {
    on_uplink(|uplink| {
        for (pod, node, outside) in families(&uplink.node.a) {
            let (inner, outer, there) = (at(pod, 40000), at(node, 40000), at(outside, 80));
            for flags in [SYN, ACK, ACK | FIN] {
                uplink.masquerades(&tcp(inner, there, flags), &tcp(outer, there, flags));
                uplink.unmasquerades(
                    &tcp(there, outer, flags | ACK),
                    &tcp(there, inner, flags | ACK),
                );
            }
            uplink.masquerades(&udp(inner, there), &udp(outer, there));
            uplink.unmasquerades(&udp(there, outer), &udp(there, inner));
            uplink.masquerades(&echo(pod, outside, 7, false), &echo(node, outside, 7, false));
            uplink.unmasquerades(&echo(outside, node, 7, true), &echo(outside, pod, 7, true));
        }
        let rows = uplink.nat.rows().unwrap();
        assert_eq!(rows.len(), 6, "{rows:?}");
        assert!(rows.iter().all(|row| row.origin == NatOrigin::Pod));
        let row = |number| rows.iter().find(|row| row.protocol == number).unwrap();
        let of_tcp = row(Protocol::TCP);
        assert_eq!((of_tcp.sent.packets, of_tcp.received.packets), (3, 3));
        assert_eq!(of_tcp.state, FlowState::Ended, "both have sent a FIN");
        assert_eq!(row(Protocol::UDP).state, FlowState::Replied);
        assert_eq!(of_tcp.ifindex, uplink.node.c.ifindex);
        let filter = NatFilter { protocol: Some(Protocol::TCP), ..NatFilter::default() };
        assert_eq!(uplink.nat.flush(&filter).unwrap(), 2);
        assert_eq!(uplink.nat.rows().unwrap().len(), 4);
    });
}

#[test]
#[ignore = "needs root: loads programs in a namespace of its own"]
fn a_udp_checksum_of_zero_stays_zero() {
    on_uplink(|uplink| {
        let (inner, there) = (at(uplink.node.a.v4.into(), 40000), at(OUTSIDE4.into(), 53));
        let without = |mut frame: Vec<u8>| {
            frame[40..42].fill(0);
            frame
        };
        let outer = at(NODE4.into(), 40000);
        uplink.masquerades(&without(udp(inner, there)), &without(udp(outer, there)));
        uplink.unmasquerades(&without(udp(there, outer)), &without(udp(there, inner)));
    });
}

#[test]
#[ignore = "needs root: loads programs in a namespace of its own"]
fn what_is_not_a_pods_or_stays_in_the_pod_network_is_left_alone() {
    on_uplink(|uplink| {
        let a = uplink.node.a;
        let pairs: [(IpAddr, &str); 10] = [
            (NODE4.into(), "192.0.2.9"),
            (NODE6.into(), "2001:db8:9::9"),
            (Ipv4Addr::new(172, 17, 0, 2).into(), "192.0.2.9"),
            (a.v4.into(), "203.0.113.7"),
            (a.v6.into(), "2001:db8:e::7"),
            (a.v4.into(), "10.1.0.77"),
            (a.v6.into(), "fd00:1::77"),
            (a.v4.into(), "239.1.2.3"),
            (a.v6.into(), "ff0e::1"),
            (a.v6.into(), "fe80::1"),
        ];
        for (from, to) in pairs {
            uplink.leaves_alone(&udp(at(from, 40000), at(to.parse().unwrap(), 80)));
            uplink.leaves_alone(&tcp(at(from, 40000), at(to.parse().unwrap(), 80), SYN));
        }
        for frame in
            [&[0xff; 60][..], &LINK.frame(0x0806, &[0; 46]), &LINK.frame(0x0800, &[0x41; 46])]
        {
            uplink.leaves_alone(frame);
            uplink.lets_in(frame);
        }
        for (_, node, outside) in families(&a) {
            uplink.lets_in(&udp(at(outside, 80), at(node, 40000)));
            uplink.lets_in(&tcp(at(outside, 80), at(node, 40000), SYN));
        }
        assert_eq!(uplink.nat.rows().unwrap(), []);
    });
}

#[test]
#[ignore = "needs root: loads programs in a namespace of its own"]
fn a_device_that_is_no_uplink_lets_everything_through() {
    on_uplink(|uplink| {
        uplink.node.datapath.remove_uplink(uplink.node.c.ifindex).unwrap();
        for (pod, _, outside) in families(&uplink.node.a) {
            uplink.leaves_alone(&udp(at(pod, 40000), at(outside, 80)));
        }
    });
}

#[test]
#[ignore = "needs root: loads programs in a namespace of its own"]
fn ports_are_shared_by_no_two_towards_one_destination() {
    on_uplink(|uplink| {
        let Node { a, b, .. } = *uplink.node;
        for ((first, node, outside), (second, ..)) in families(&a).into_iter().zip(families(&b)) {
            for frame in [udp as fn(_, _) -> _, |from, to| tcp(from, to, SYN)] {
                let there = at(outside, 443);
                assert_eq!(uplink.port_of(&frame(at(first, 50000), there)), 50000, "kept");
                let other = uplink.port_of(&frame(at(second, 50000), there));
                assert!(other >= 32768 && other != 50000, "{other}");
                assert_eq!(uplink.port_of(&frame(at(second, 50000), there)), other, "stays");
                let elsewhere = at(outside, 444);
                assert_eq!(uplink.port_of(&frame(at(second, 50000), elsewhere)), 50000);
                let low = uplink.port_of(&frame(at(first, 53), there));
                assert!(low >= 32768, "a port that is not to be given: {low}");
            }
            uplink.unmasquerades(
                &udp(at(outside, 443), at(node, 50000)),
                &udp(at(outside, 443), at(first, 50000)),
            );
            uplink.masquerades(&echo(first, outside, 9, false), &echo(node, outside, 9, false));
            let judged = uplink.leaves(&echo(second, outside, 9, false));
            let place = transport(&judged.frame) + 4;
            let id = u16::from_be_bytes([judged.frame[place], judged.frame[place + 1]]);
            assert_ne!(id, 9);
            uplink.unmasquerades(&echo(outside, node, id, true), &echo(outside, second, 9, true));
        }
    });
}

#[test]
#[ignore = "needs root: loads programs in a namespace of its own"]
fn ports_that_run_out_are_counted_and_nothing_else_suffers() {
    on_uplink(|uplink| {
        let ports = PortRange::new(40000, 40063).unwrap();
        uplink.set(&UplinkConfig { ports, ..config() });
        for (pod, node, outside) in families(&uplink.node.a) {
            let there = at(outside, 443);
            let mut given: Vec<_> =
                (1..=64).map(|port| uplink.port_of(&udp(at(pod, port), there))).collect();
            given.sort_unstable();
            assert_eq!(given, (40000..=40063).collect::<Vec<_>>(), "every one, once");
            for port in 65..70 {
                uplink.drops(&udp(at(pod, port), there), Reason::NatPortsExhausted);
            }
            for port in 1..=64 {
                let kept = uplink.port_of(&udp(at(pod, port), there));
                uplink.unmasquerades(&udp(there, at(node, kept)), &udp(there, at(pod, port)));
            }
            // Towards another destination they are free.
            uplink.port_of(&udp(at(pod, 65), at(outside, 444)));
            uplink.port_of(&tcp(at(pod, 65), there, SYN));
        }
    });
}

#[test]
#[ignore = "needs root: loads programs in a namespace of its own"]
fn ports_of_the_nodes_sockets_are_not_given() {
    on_uplink(|uplink| {
        for (pod, node, outside) in families(&uplink.node.a) {
            let any: IpAddr =
                if node.is_ipv4() { [0, 0, 0, 0].into() } else { Ipv6Addr::UNSPECIFIED.into() };
            let socket = UdpSocket::bind(at(any, 0)).unwrap();
            let port = socket.local_addr().unwrap().port();
            let given = uplink.port_of(&udp(at(pod, port), at(outside, 53)));
            assert_ne!(given, port, "bound");
            let listener = TcpListener::bind(at(any, 0)).unwrap();
            let port = listener.local_addr().unwrap().port();
            let given = uplink.port_of(&tcp(at(pod, port), at(outside, 53), SYN));
            assert_ne!(given, port, "listening");
        }
    });
}

#[test]
#[ignore = "needs root: loads programs in a namespace of its own"]
fn the_nodes_own_packets_give_way_to_a_mapping() {
    on_uplink(|uplink| {
        for (pod, node, outside) in families(&uplink.node.a) {
            let there = at(outside, 443);
            for frame in [udp as fn(_, _) -> _, |from, to| tcp(from, to, ACK)] {
                assert_eq!(uplink.port_of(&frame(at(pod, 50000), there)), 50000);
                let other = uplink.port_of(&frame(at(node, 50000), there));
                assert_ne!(other, 50000);
                uplink
                    .unmasquerades(&frame(there, at(node, other)), &frame(there, at(node, 50000)));
                uplink.unmasquerades(&frame(there, at(node, 50000)), &frame(there, at(pod, 50000)));
            }
            // The node's echo came first: the pod's gets another identifier.
            uplink.leaves_alone(&echo(node, outside, 3, false));
            let judged = uplink.leaves(&echo(pod, outside, 3, false));
            assert_eq!(judged.reason, Reason::Masqueraded);
            let place = transport(&judged.frame) + 4;
            assert_ne!(judged.frame[place..place + 2], [0, 3]);
            uplink.lets_in(&echo(outside, node, 3, true));
        }
        let rows = uplink.nat.rows().unwrap();
        let own = rows.iter().filter(|row| row.origin == NatOrigin::Node).count();
        assert_eq!((rows.len(), own), (12, 6), "{rows:?}");
    });
}

#[test]
#[ignore = "needs root: loads programs in a namespace of its own"]
fn errors_that_arrive_quote_what_the_pod_sent() {
    on_uplink(|uplink| {
        // Two pods with the same port: that of the second is changed.
        let Node { a, b, .. } = *uplink.node;
        for ((first, node, outside), (second, ..)) in families(&a).into_iter().zip(families(&b)) {
            let router: IpAddr =
                if node.is_ipv4() { "192.0.2.254" } else { "2001:db8:ff::1" }.parse().unwrap();
            let there = at(outside, 443);
            for pod in [first, second] {
                let sent = [
                    udp(at(pod, 50000), there),
                    tcp(at(pod, 50000), there, SYN),
                    echo(pod, outside, 50000, false),
                ];
                for frame in sent {
                    let left = uplink.leaves(&frame).frame;
                    // Unreachable, expired, too big; of a whole packet, and of eight bytes of it.
                    let kinds = if pod.is_ipv4() { [3, 11, 3] } else { [1, 3, 2] };
                    let header = transport(&frame) - 14;
                    for (kind, quoted) in
                        kinds.into_iter().flat_map(|k| [(k, 1000), (k, header + 8)])
                    {
                        for from in [router, outside] {
                            let arriving = error(from, node, &left, kind, quoted);
                            let expected = error(from, pod, &frame, kind, quoted);
                            uplink.unmasquerades(&arriving, &expected);
                        }
                    }
                }
            }
            // About what nobody sent, and to somebody who did not send it.
            uplink.lets_in(&error(router, node, &udp(at(node, 1), there), 3, 1000));
            let other = if node.is_ipv4() { Ipv4Addr::new(198, 51, 100, 2).into() } else { router };
            uplink.lets_in(&error(router, other, &udp(at(node, 50000), there), 3, 1000));
        }
    });
}

#[test]
#[ignore = "needs root: loads programs in a namespace of its own"]
fn errors_that_leave_quote_what_outside_sent() {
    on_uplink(|uplink| {
        let Node { a, b, .. } = *uplink.node;
        for ((first, node, outside), (second, ..)) in families(&a).into_iter().zip(families(&b)) {
            let there = at(outside, 443);
            for pod in [first, second] {
                let port = uplink.port_of(&udp(at(pod, 50000), there));
                let answer = udp(there, at(node, port));
                let delivered = uplink.arrives(&answer).frame;
                let kind = if pod.is_ipv4() { 3 } else { 1 };
                uplink.masquerades(
                    &error(pod, outside, &delivered, kind, 1000),
                    &error(node, outside, &answer, kind, 1000),
                );
                // The node itself could not forward it.
                uplink.masquerades(
                    &error(node, outside, &delivered, kind, 1000),
                    &error(node, outside, &answer, kind, 1000),
                );
            }
            let unknown = udp(at(outside, 1), at(first, 2));
            uplink.drops(&error(first, outside, &unknown, 3, 1000), Reason::NatUnrelated);
            uplink.leaves_alone(&error(node, outside, &udp(there, at(node, 9)), 3, 1000));
        }
    });
}

/// The frame's IP payload in two fragments.
fn fragments(frame: &[u8]) -> [Vec<u8>; 2] {
    let (from, to) = podwire_lab::probe::frame::ip_addresses(frame).unwrap();
    let start = transport(frame);
    let (head, tail) = frame[start..].split_at(16);
    let is_ipv4 = from.is_ipv4();
    let protocol = if is_ipv4 { frame[23] } else { frame[20] };
    [(head, 0_u16), (tail, 2)].map(|(part, offset)| {
        let more = u16::from(offset == 0);
        if is_ipv4 {
            let mut fragment = LINK.ip(from, to, protocol, part);
            fragment[18..20].copy_from_slice(&[0x12, 0x34]);
            fragment[20..22].copy_from_slice(&(more << 13 | offset).to_be_bytes());
            fragment[24..26].fill(0);
            let sum = checksum(&[&fragment[14..34]]);
            fragment[24..26].copy_from_slice(&sum.to_be_bytes());
            fragment
        } else {
            let mut payload = vec![protocol, 0];
            payload.extend((offset << 3 | more).to_be_bytes());
            payload.extend([0, 0, 0x12, 0x34]);
            payload.extend(part);
            LINK.ip(from, to, 44, &payload)
        }
    })
}

#[test]
#[ignore = "needs root: loads programs in a namespace of its own"]
fn fragments_go_the_way_of_their_first() {
    on_uplink(|uplink| {
        let Node { a, b, .. } = *uplink.node;
        for ((first, node, outside), (second, ..)) in families(&a).into_iter().zip(families(&b)) {
            let there = at(outside, 443);
            let long = |from: SocketAddr, to: SocketAddr| LINK.udp(from, to, &[7; 40]);
            let orphan = &fragments(&long(at(first, 1), there))[1];
            uplink.drops(orphan, Reason::UnknownFragment);
            for pod in [first, second] {
                let port = uplink.port_of(&long(at(pod, 50000), there));
                let leaving = fragments(&long(at(pod, 50000), there));
                let left = fragments(&long(at(node, port), there));
                let arriving = fragments(&long(there, at(node, port)));
                let arrived = fragments(&long(there, at(pod, 50000)));
                // Too big, says a router of the first.
                let router = outside;
                let kind = if pod.is_ipv4() { 3 } else { 2 };
                uplink.leaves(&leaving[0]);
                uplink.unmasquerades(
                    &error(router, node, &left[0], kind, 1000),
                    &error(router, pod, &leaving[0], kind, 1000),
                );
                for part in 0..2 {
                    uplink.masquerades(&leaving[part], &left[part]);
                    uplink.unmasquerades(&arriving[part], &arrived[part]);
                }
            }
            let stranger = if node.is_ipv4() { "192.0.2.77" } else { "2001:db8:9::77" };
            let from = at(stranger.parse().unwrap(), 443);
            uplink.lets_in(&fragments(&long(from, at(node, 1)))[1]);
        }
    });
}

#[test]
#[ignore = "needs root: loads programs in a namespace of its own"]
fn what_outside_began_with_a_pods_own_address_keeps_it() {
    on_uplink(|uplink| {
        for (pod, _, outside) in families(&uplink.node.a) {
            let (inner, there) = (at(pod, 8080), at(outside, 60000));
            uplink.lets_in(&tcp(there, inner, SYN));
            uplink.leaves_alone(&tcp(inner, there, SYN | ACK));
            uplink.leaves_alone(&tcp(inner, there, ACK));
            uplink.lets_in(&udp(there, inner));
            uplink.leaves_alone(&udp(inner, there));
            uplink.leaves_alone(&error(pod, outside, &udp(there, inner), 3, 1000));
            uplink.lets_in(&echo(outside, pod, 5, false));
            uplink.leaves_alone(&echo(pod, outside, 5, true));
        }
        assert_eq!(uplink.nat.rows().unwrap(), []);
        // A mapping that was made of such answers gives way.
        for (pod, _, outside) in families(&uplink.node.a) {
            let (inner, there) = (at(pod, 8081), at(outside, 60000));
            uplink.port_of(&tcp(inner, there, ACK));
            uplink.lets_in(&tcp(there, inner, ACK));
            uplink.leaves_alone(&tcp(inner, there, ACK));
        }
        assert_eq!(uplink.nat.rows().unwrap(), []);
    });
}

#[test]
#[ignore = "needs root: loads programs in a namespace of its own"]
fn protocols_without_changeable_ports_keep_theirs_or_are_dropped() {
    on_uplink(|uplink| {
        let Node { a, b, .. } = *uplink.node;
        for ((first, node, outside), (second, ..)) in families(&a).into_iter().zip(families(&b)) {
            let sctp = [0xc3, 0x50, 0, 80, 1, 2, 3, 4, 5, 6, 7, 8];
            for (protocol, payload) in [(132, &sctp[..]), (47, b"encapsulated"), (50, b"encrypted")]
            {
                let ip = |from, to| LINK.ip(from, to, protocol, payload);
                uplink.masquerades(&ip(first, outside), &ip(node, outside));
                uplink.drops(&ip(second, outside), Reason::NatPortTaken);
                if protocol != 132 {
                    uplink.unmasquerades(&ip(outside, node), &ip(outside, first));
                }
            }
            let back = [0, 80, 0xc3, 0x50, 1, 2, 3, 4, 5, 6, 7, 8];
            uplink.unmasquerades(
                &LINK.ip(outside, node, 132, &back),
                &LINK.ip(outside, first, 132, &back),
            );
            uplink.drops(&LINK.ip(first, outside, 33, &[0; 16]), Reason::NatUnsupported);
        }
    });
}

#[test]
#[ignore = "needs root: loads programs in a namespace of its own"]
fn without_an_address_nothing_leaves_that_has_no_mapping() {
    on_uplink(|uplink| {
        let a = uplink.node.a;
        for (pod, _, outside) in families(&a) {
            uplink.port_of(&udp(at(pod, 40000), at(outside, 53)));
        }
        uplink.set(&UplinkConfig { ipv4: None, ipv6: None, ..config() });
        for (pod, node, outside) in families(&a) {
            uplink.drops(&udp(at(pod, 40001), at(outside, 53)), Reason::NatNoAddress);
            uplink.masquerades(
                &udp(at(pod, 40000), at(outside, 53)),
                &udp(at(node, 40000), at(outside, 53)),
            );
        }
        assert_eq!(uplink.nat.retain_addresses(|address| address == NODE4).unwrap(), 1);
        assert_eq!(uplink.nat.rows().unwrap().len(), 1);
    });
}

#[test]
#[ignore = "needs root: loads programs in a namespace of its own"]
fn a_device_without_link_layer_header_is_read_from_the_ip_header_on() {
    on_uplink(|uplink| {
        // Under test-run the packet always has one; it is looked for in the wrong place, and nothing found.
        uplink.set(&UplinkConfig { header: LinkHeader::None, ..config() });
        uplink.leaves_alone(&udp(at(uplink.node.a.v4.into(), 40000), at(OUTSIDE4.into(), 80)));
    });
}

#[test]
#[ignore = "needs root: loads programs in a namespace of its own"]
fn idle_mappings_go_and_others_stay() {
    on_uplink(|uplink| {
        let a = uplink.node.a;
        let (inner, outer, there) =
            (at(a.v4.into(), 40000), at(NODE4.into(), 40000), at(OUTSIDE4.into(), 80));
        uplink.port_of(&udp(inner, there));
        uplink.port_of(&tcp(inner, there, SYN));
        uplink.port_of(&tcp(at(a.v4.into(), 40001), there, SYN));
        uplink.unmasquerades(&tcp(there, outer, SYN | ACK), &tcp(there, inner, SYN | ACK));
        uplink.port_of(&tcp(inner, there, ACK));
        let mut timeouts = Nat::default_timeouts();
        let swept = uplink.nat.sweep(&timeouts).unwrap();
        assert_eq!((swept.mappings, swept.expired_in_all(), swept.room), (3, 0, 65536));
        for timeout in [Timeout::TcpOpening, Timeout::UdpOneSided] {
            timeouts.set(timeout, 1).unwrap();
        }
        // The clock counts whole seconds, and none goes before its time.
        thread::sleep(Duration::from_secs(2));
        let swept = uplink.nat.sweep(&timeouts).unwrap();
        assert_eq!((swept.mappings, swept.expired_in_all()), (1, 2));
        for timeout in [Timeout::TcpOpening, Timeout::UdpOneSided] {
            assert_eq!(swept.expired[timeout as usize], 1, "{timeout}");
        }
        let rows = uplink.nat.rows().unwrap();
        assert_eq!(rows.len(), 1);
        assert_eq!(rows[0].state, FlowState::Established);
        // A reset ends it; what goes on makes it live again, and so does a new connection.
        uplink.arrives(&tcp(there, outer, RST));
        assert_eq!(uplink.nat.rows().unwrap()[0].state, FlowState::Ended);
        uplink.arrives(&tcp(there, outer, ACK));
        assert_eq!(uplink.nat.rows().unwrap()[0].state, FlowState::Established);
        uplink.arrives(&tcp(there, outer, ACK | FIN));
        assert_eq!(uplink.nat.rows().unwrap()[0].state, FlowState::Closing);
        uplink.port_of(&tcp(inner, there, ACK | FIN));
        assert_eq!(uplink.nat.rows().unwrap()[0].state, FlowState::Ended);
        uplink.port_of(&tcp(inner, there, SYN));
        assert_eq!(uplink.nat.rows().unwrap()[0].state, FlowState::Opening);
    });
}

#[test]
#[ignore = "needs root: loads programs in a namespace of its own"]
fn who_asks_for_a_connection_gets_the_listener_and_not_the_pod() {
    on_uplink(|uplink| {
        let (inner, there) = (at(uplink.node.a.v4.into(), 40000), at(OUTSIDE4.into(), 80));
        let port = uplink.port_of(&tcp(inner, there, SYN));
        let _listener = TcpListener::bind(("0.0.0.0", port)).unwrap();
        uplink.lets_in(&tcp(there, at(NODE4.into(), port), SYN));
        assert_eq!(uplink.nat.rows().unwrap(), []);
    });
}
