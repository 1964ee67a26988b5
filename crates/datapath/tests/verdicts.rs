//! Every kind of packet has a decided fate, and every fate its counter: the programs under
//! `BPF_PROG_TEST_RUN`.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod node;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use node::{
    ACK, HOST_MAC, NET_MAC, NEXT, Node, Pod, REDIRECT, ROUTER4, ROUTER6, SHOT, SYN, on_node, tcp,
};
use podwire_datapath::{
    Delivery, EndpointConfig, Interface,
    abi::{Address, IpcacheEntry, MARK_DECIDED, Reason, Slot, map, slot_mask},
};
use podwire_lab::probe::frame::{
    Arp, ArpOperation, BROADCAST, Link, checksum, ip_addresses, limit_hops, tagged,
};

fn udp(pod: &Pod, from: IpAddr, to: IpAddr) -> Vec<u8> {
    pod.to_gateway().udp(SocketAddr::new(from, 40000), SocketAddr::new(to, 53), b"question")
}

/// TTL or hop limit of a frame.
fn hops(frame: &[u8]) -> u8 {
    if frame[12] == 8 { frame[22] } else { frame[21] }
}

fn addresses(frame: &[u8]) -> (&[u8], &[u8]) {
    (&frame[..6], &frame[6..12])
}

#[test]
#[ignore = "needs root: loads programs in a namespace of its own"]
fn a_pod_reaches_a_pod_of_its_node() {
    on_node(|node| {
        let (a, b) = (node.a, node.b);
        for (from, to) in a.both().into_iter().zip(b.both()) {
            for frame in [
                udp(&a, from, to),
                tcp(a.to_gateway(), (from, 1000), (to, 80), SYN),
                tcp(a.to_gateway(), (from, 1000), (to, 80), ACK),
                a.to_gateway().echo_request(from, to, 7, 1, b"ping"),
                a.to_gateway().ip(from, to, 47, b"an unknown protocol"),
            ] {
                let judged = node.pod_sends(&a, &frame);
                assert_eq!((judged.action, judged.reason), (REDIRECT, Reason::Delivered));
                assert_eq!(addresses(&judged.frame), (&b.mac[..], &b.host_mac[..]));
                assert_eq!(hops(&judged.frame), hops(&frame) - 1, "a router would");
                if from.is_ipv4() {
                    assert_eq!(checksum(&[&judged.frame[14..34]]), 0, "IPv4 header checksum");
                }
                let changed = if from.is_ipv4() { 26 } else { 22 };
                assert_eq!(judged.frame[changed..], frame[changed..], "nothing else changes");
            }
        }
    });
}

#[test]
#[ignore = "needs root: loads programs in a namespace of its own"]
fn every_ttl_keeps_the_header_checksum_right() {
    on_node(|node| {
        for ttl in 2..=255 {
            let mut frame = udp(&node.a, node.a.v4.into(), node.b.v4.into());
            limit_hops(&mut frame, ttl);
            let judged = node.pod_sends(&node.a, &frame);
            assert_eq!(judged.reason, Reason::Delivered);
            assert_eq!(checksum(&[&judged.frame[14..34]]), 0, "TTL {ttl}");
        }
    });
}

#[test]
#[ignore = "needs root: loads programs in a namespace of its own"]
fn a_header_checksum_is_what_its_receiver_would_compute() {
    on_node(|node| {
        let plain = udp(&node.a, node.a.v4.into(), node.b.v4.into());
        let mut beside_the_carry = 0;
        for identification in 0..=u16::MAX {
            let mut frame = plain.clone();
            frame[18..20].copy_from_slice(&identification.to_be_bytes());
            limit_hops(&mut frame, 64);
            // Where adding 0x0100 is about to carry, or has just done so.
            if !(0xfefe..=0xff01).contains(&u16::from_be_bytes([frame[24], frame[25]])) {
                continue;
            }
            beside_the_carry += 1;
            let judged = node.pod_sends(&node.a, &frame);
            limit_hops(&mut frame, 63);
            assert_eq!(judged.frame[14..34], frame[14..34], "identification {identification}");
        }
        assert!(beside_the_carry >= 4, "{beside_the_carry} headers");
    });
}

#[test]
#[ignore = "needs root: loads programs in a namespace of its own"]
fn everything_else_is_the_host_stacks() {
    on_node(|node| {
        let a = node.a;
        let targets: [(IpAddr, IpAddr); 6] = [
            (a.v4.into(), ROUTER4.into()),
            (a.v4.into(), Ipv4Addr::new(192, 0, 2, 1).into()),
            (a.v4.into(), Ipv4Addr::new(10, 1, 0, 99).into()),
            (a.v6.into(), ROUTER6.into()),
            (a.v6.into(), "2001:db8::1".parse().unwrap()),
            (a.v6.into(), "fd00:1::99".parse().unwrap()),
        ];
        for (from, to) in targets {
            let frame = udp(&a, from, to);
            let judged = node.pod_sends(&a, &frame);
            assert_eq!((judged.action, judged.reason), (REDIRECT, Reason::ToStack), "{to}");
            assert_eq!(addresses(&judged.frame), (&HOST_MAC[..], &NET_MAC[..]));
            assert_eq!(judged.frame[12..], frame[12..], "the stack does a router's work");
        }
    });
}

#[test]
#[ignore = "needs root: loads programs in a namespace of its own"]
fn an_expiring_packet_is_answered_by_the_stack() {
    on_node(|node| {
        for (from, to) in node.a.both().into_iter().zip(node.b.both()) {
            for last in [0, 1] {
                let mut frame = udp(&node.a, from, to);
                limit_hops(&mut frame, last);
                let judged = node.pod_sends(&node.a, &frame);
                assert_eq!(judged.reason, Reason::ToStackExpired);
                assert_eq!(hops(&judged.frame), last);
            }
            let mut frame = udp(&node.a, from, to);
            limit_hops(&mut frame, 2);
            assert_eq!(node.pod_sends(&node.a, &frame).reason, Reason::Delivered);
        }
    });
}

#[test]
#[ignore = "needs root: loads programs in a namespace of its own"]
fn a_pod_sends_only_as_itself() {
    on_node(|node| {
        let (a, b) = (node.a, node.b);
        let drop = |frame: &[u8], reason: Reason| {
            let judged = node.pod_sends(&a, frame);
            assert_eq!((judged.action, judged.reason), (SHOT, reason));
            assert_eq!(judged.frame, frame, "a dropped packet is left alone");
        };
        for (own, others) in a.both().into_iter().zip(b.both()) {
            drop(&udp(&a, others, own), Reason::SpoofedAddress);
            drop(&udp(&a, others, others), Reason::SpoofedAddress);
            let other_mac = Link { from: b.mac, to: a.host_mac };
            let from_port = |ip| SocketAddr::new(ip, 1);
            drop(&other_mac.udp(from_port(own), from_port(others), b""), Reason::SpoofedMac);
            // One octet off, in each place.
            for octet in 0..6 {
                let mut link = a.to_gateway();
                link.from[octet] ^= 0x10;
                drop(&link.udp(from_port(own), from_port(others), b""), Reason::SpoofedMac);
            }
            for octet in 0..6 {
                let mut link = a.to_gateway();
                link.to[octet] ^= 0x10;
                drop(&link.udp(from_port(own), from_port(others), b""), Reason::NotForGateway);
            }
        }
        drop(&udp(&a, Ipv4Addr::UNSPECIFIED.into(), b.v4.into()), Reason::SpoofedAddress);
        drop(&udp(&a, Ipv6Addr::UNSPECIFIED.into(), b.v6.into()), Reason::SpoofedAddress);
        drop(&udp(&a, "fe80::1".parse().unwrap(), b.v6.into()), Reason::SpoofedAddress);
        // IPv4 in IPv6's clothes has no business on a wire, and our keys hold IPv4 so.
        let mapped = |v4: Ipv4Addr| IpAddr::V6(v4.to_ipv6_mapped());
        drop(&udp(&a, mapped(a.v4), b.v6.into()), Reason::Malformed);
        drop(&udp(&a, a.v6.into(), mapped(b.v4)), Reason::Malformed);
        drop(&udp(&a, mapped(a.v4), mapped(b.v4)), Reason::Malformed);
    });
}

#[test]
#[ignore = "needs root: loads programs in a namespace of its own"]
fn arp_for_the_gateway_is_answered_and_no_other() {
    on_node(|node| {
        let a = node.a;
        let to_all = Link { from: a.mac, to: BROADCAST };
        let request = Arp {
            operation: ArpOperation::Request,
            sender_mac: a.mac,
            sender: a.v4,
            target_mac: [0; 6],
            target: ROUTER4,
        };
        let probe = Arp { sender: Ipv4Addr::UNSPECIFIED, ..request };
        for (link, arp) in [(to_all, request), (a.to_gateway(), request), (to_all, probe)] {
            let judged = node.pod_sends(&a, &arp.frame(link));
            assert_eq!((judged.action, judged.reason), (REDIRECT, Reason::AnsweredArp));
            assert_eq!(addresses(&judged.frame), (&a.mac[..], &a.host_mac[..]));
            let expected = Arp {
                operation: ArpOperation::Reply,
                sender_mac: a.host_mac,
                sender: ROUTER4,
                target_mac: a.mac,
                target: arp.sender,
            };
            assert_eq!(Arp::parse(&judged.frame), Some(expected));
            assert_eq!(judged.mark, MARK_DECIDED, "to_container must let it pass");
        }
        let foreign = [
            Arp { target: node.b.v4, ..request },
            Arp { target: Ipv4Addr::UNSPECIFIED, ..request },
            Arp { target: a.v4, ..request },
            Arp { sender: node.b.v4, ..request },
            Arp { sender: ROUTER4, ..request },
            Arp { sender_mac: node.b.mac, ..request },
            Arp { operation: ArpOperation::Reply, sender: ROUTER4, ..request },
            Arp { operation: ArpOperation::Reply, ..request },
        ];
        for arp in foreign {
            assert_eq!(
                node.pod_sends(&a, &arp.frame(to_all)).reason,
                Reason::ForeignArp,
                "{arp:?}"
            );
        }
        let false_frame = Link { from: node.b.mac, ..to_all };
        assert_eq!(node.pod_sends(&a, &request.frame(false_frame)).reason, Reason::SpoofedMac);
        for (octet, value) in [(15, 6), (16, 9), (18, 8), (19, 16)] {
            let mut frame = request.frame(to_all);
            frame[octet] = value;
            assert_eq!(node.pod_sends(&a, &frame).reason, Reason::Malformed, "octet {octet}");
        }
        assert_eq!(node.pod_sends(&a, &request.frame(to_all)[..41]).reason, Reason::Malformed);
    });
}

#[test]
#[ignore = "needs root: loads programs in a namespace of its own"]
fn neighbour_solicitations_for_the_gateway_are_answered() {
    on_node(|node| {
        let a = node.a;
        let solicited: Ipv6Addr = "ff02::1:ff00:1".parse().unwrap();
        let to_many = Link { from: a.mac, to: [0x33, 0x33, 0xff, 0, 0, 1] };
        let link_local: Ipv6Addr = "fe80::ff:fe00:102".parse().unwrap();
        let mut without_option = a.to_gateway().neighbour_solicitation(a.v6, ROUTER6, ROUTER6);
        without_option.truncate(14 + 40 + 24);
        without_option[19] = 24;
        let questions = [
            (to_many.neighbour_solicitation(a.v6, solicited, ROUTER6), a.v6),
            (to_many.neighbour_solicitation(link_local, solicited, ROUTER6), link_local),
            (a.to_gateway().neighbour_solicitation(a.v6, ROUTER6, ROUTER6), a.v6),
            (without_option, a.v6),
            (
                to_many.neighbour_solicitation(Ipv6Addr::UNSPECIFIED, solicited, ROUTER6),
                "ff02::1".parse().unwrap(),
            ),
        ];
        for (question, answer_to) in questions {
            let judged = node.pod_sends(&a, &question);
            assert_eq!((judged.action, judged.reason), (REDIRECT, Reason::AnsweredNeighbour));
            assert_eq!(judged.mark, MARK_DECIDED);
            let frame = &judged.frame;
            assert_eq!(addresses(frame), (&a.mac[..], &a.host_mac[..]));
            assert_eq!(frame.len(), 14 + 40 + 32);
            let (source, destination) = ip_addresses(frame).unwrap();
            assert_eq!((source, destination), (ROUTER6.into(), answer_to.into()));
            assert_eq!((frame[18..20].to_vec(), frame[20], frame[21]), (vec![0, 32], 58, 255));
            let message = &frame[54..];
            assert_eq!(message[0], 136);
            let solicited_flag = if answer_to.is_multicast() { 0xa0 } else { 0xe0 };
            assert_eq!(message[4], solicited_flag, "router, solicited, override");
            assert_eq!(message[8..24], ROUTER6.octets());
            assert_eq!(message[24..26], [2, 1]);
            assert_eq!(message[26..32], a.host_mac);
            let pseudo = [&frame[22..54], &[0, 0, 0, 32, 0, 0, 0, 58][..]].concat();
            assert_eq!(checksum(&[&pseudo, message]), 0, "ICMPv6 checksum");
        }
    });
}

#[test]
#[ignore = "needs root: loads programs in a namespace of its own"]
fn other_neighbour_discovery_ends_here() {
    on_node(|node| {
        let (a, b) = (node.a, node.b);
        let to_many = Link { from: a.mac, to: [0x33, 0x33, 0xff, 0, 0, 1] };
        let many: Ipv6Addr = "ff02::1:ff00:1".parse().unwrap();
        let all: Ipv6Addr = "ff02::1".parse().unwrap();
        let none = Ipv6Addr::UNSPECIFIED;
        let local: Ipv6Addr = "fe80::1:2".parse().unwrap();
        let reason = |frame: &[u8]| node.pod_sends(&a, frame).reason;
        let raw = |link: Link, from: Ipv6Addr, to: Ipv6Addr, kind: u8| {
            let mut frame = link.icmp(from.into(), to.into(), [&[kind][..], &[0; 23]].concat());
            limit_hops(&mut frame, 255);
            frame
        };
        // What every IPv6 host does when it starts is no offence.
        for frame in [
            to_many.neighbour_solicitation(none, many, a.v6),
            to_many.neighbour_solicitation(none, many, local),
            raw(to_many, none, all, 133),
            raw(to_many, local, all, 133),
            raw(to_many, local, all, 131),
            listener_report(to_many, none),
            listener_report(to_many, local),
        ] {
            assert_eq!(reason(&frame), Reason::Multicast);
        }
        for frame in [
            to_many.neighbour_solicitation(a.v6, many, b.v6),
            to_many.neighbour_advertisement(a.v6, all, ROUTER6, a.mac),
            a.to_gateway().neighbour_advertisement(a.v6, b.v6, b.v6, a.mac),
            raw(to_many, local, all, 134),
            raw(a.to_gateway(), a.v6, b.v6, 134),
            raw(a.to_gateway(), a.v6, b.v6, 137),
        ] {
            assert_eq!(reason(&frame), Reason::ForeignNeighbour);
        }
        let in_anothers_name = to_many.neighbour_solicitation(b.v6, many, ROUTER6);
        assert_eq!(reason(&in_anothers_name), Reason::SpoofedAddress);
        assert_eq!(reason(&listener_report(to_many, b.v6)), Reason::SpoofedAddress);
        let mut anothers_mac = to_many.neighbour_solicitation(a.v6, many, ROUTER6);
        anothers_mac[14 + 40 + 24 + 2..].copy_from_slice(&b.mac);
        assert_eq!(reason(&anothers_mac), Reason::ForeignNeighbour);
        let mut routed = to_many.neighbour_solicitation(a.v6, many, ROUTER6);
        limit_hops(&mut routed, 64);
        assert_eq!(reason(&routed), Reason::Malformed);
    });
}

/// A version 2 listener report (RFC 3810) behind its hop-by-hop header.
fn listener_report(link: Link, from: Ipv6Addr) -> Vec<u8> {
    let report = [&[58, 0, 5, 2, 0, 0, 1, 0][..], &[143, 0, 0, 0, 0, 0, 0, 0]].concat();
    let mut frame = link.ip(from.into(), "ff02::16".parse().unwrap(), 0, &report);
    limit_hops(&mut frame, 1);
    frame
}

#[test]
#[ignore = "needs root: loads programs in a namespace of its own"]
fn frames_that_are_not_forwarded() {
    on_node(|node| {
        let (a, b) = (node.a, node.b);
        let reason = |frame: &[u8]| node.pod_sends(&a, frame).reason;
        let to_all = Link { from: a.mac, to: BROADCAST };
        let to_group = Link { from: a.mac, to: [1, 0, 0x5e, 0, 0, 1] };
        for (from, to) in a.both().into_iter().zip(b.both()) {
            assert_eq!(reason(&tagged(&udp(&a, from, to), 7)), Reason::Vlan);
        }
        for link in [a.to_gateway(), to_all, to_group] {
            for ethertype in [0x0040, 0x88cc, 0x8847, 0x0000, 0xffff] {
                assert_eq!(reason(&link.frame(ethertype, &[0; 50])), Reason::UnsupportedProtocol);
            }
        }
        let port = |ip: IpAddr| SocketAddr::new(ip, 67);
        let multicast: [(Link, IpAddr, &str); 5] = [
            (to_group, a.v4.into(), "224.0.0.1"),
            (to_all, a.v4.into(), "255.255.255.255"),
            (a.to_gateway(), a.v4.into(), "239.1.2.3"),
            (to_group, a.v6.into(), "ff02::1"),
            (a.to_gateway(), a.v6.into(), "ff0e::1"),
        ];
        for (link, from, to) in multicast {
            let frame = link.udp(port(from), port(to.parse().unwrap()), b"");
            assert_eq!(reason(&frame), Reason::Multicast, "{to}");
        }
        // A unicast packet in a broadcast frame is nobody's either.
        assert_eq!(
            reason(&to_all.udp(port(a.v4.into()), port(b.v4.into()), b"")),
            Reason::Multicast
        );
        let discover =
            to_all.udp(port(Ipv4Addr::UNSPECIFIED.into()), port(Ipv4Addr::BROADCAST.into()), b"");
        assert_eq!(reason(&discover), Reason::SpoofedAddress);
        assert_eq!(reason(&udp(&a, a.v6.into(), "fe80::1".parse().unwrap())), Reason::LinkLocal);
    });
}

#[test]
#[ignore = "needs root: loads programs in a namespace of its own"]
fn malformed_packets_are_dropped() {
    on_node(|node| {
        let (a, b) = (node.a, node.b);
        let good = |v: usize| udp(&a, a.both()[v], b.both()[v]);
        let changed = |v: usize, change: &dyn Fn(&mut Vec<u8>)| {
            let mut frame = good(v);
            change(&mut frame);
            node.pod_sends(&a, &frame).reason
        };
        type Change = Box<dyn Fn(&mut Vec<u8>)>;
        let set = |at: usize, value: u8| -> Change { Box::new(move |frame| frame[at] = value) };
        let cut = |len: usize| -> Change { Box::new(move |frame| frame.truncate(len)) };
        // The kernel's test-run refuses frames cut within the IP header: those are tried on real links.
        let v4: [(&str, Change); 7] = [
            ("version 6", set(14, 0x65)),
            ("header of 16 bytes", set(14, 0x44)),
            ("header beyond the packet", set(14, 0x4f)),
            ("longer than the frame", set(16, 0xff)),
            ("shorter than its header", Box::new(|frame| frame[16..18].copy_from_slice(&[0, 19]))),
            ("length zero", Box::new(|frame| frame[16..18].fill(0))),
            ("cut in the UDP header", cut(39)),
        ];
        for (what, change) in v4 {
            assert_eq!(changed(0, &change), Reason::Malformed, "{what}");
        }
        let v6: [(&str, Change); 3] = [
            ("version 4", set(14, 0x45)),
            ("longer than the frame", set(18, 0xff)),
            ("cut in the UDP header", cut(59)),
        ];
        for (what, change) in v6 {
            assert_eq!(changed(1, &change), Reason::Malformed, "{what}");
        }
        for (from, to) in a.both().into_iter().zip(b.both()) {
            for protocol in [1, 6, 17, 58, 132] {
                let frame = a.to_gateway().ip(from, to, protocol, &[0; 3]);
                let judged = node.pod_sends(&a, &frame).reason;
                assert_eq!(judged, Reason::Malformed, "protocol {protocol}, three bytes");
            }
        }
    });
}

#[test]
#[ignore = "needs root: loads programs in a namespace of its own"]
fn ipv4_options_are_stepped_over() {
    on_node(|node| {
        let (a, b) = (node.a, node.b);
        let plain = udp(&a, a.v4.into(), b.v4.into());
        let mut frame = plain[..34].to_vec();
        frame.extend([1, 1, 1, 0]);
        frame.extend(&plain[34..]);
        frame[14] = 0x46;
        frame[17] += 4;
        assert_eq!(node.pod_sends(&a, &frame).reason, Reason::Delivered);
        frame.truncate(14 + 24 + 7);
        frame[17] = 24 + 7;
        assert_eq!(node.pod_sends(&a, &frame).reason, Reason::Malformed);
    });
}

/// An IPv4 fragment: `offset` in units of eight bytes.
fn fragment4(
    node: &Node,
    id: u16,
    offset: u16,
    more: bool,
    protocol: u8,
    payload: &[u8],
) -> Vec<u8> {
    let (a, b) = (node.a, node.b);
    let mut frame = a.to_gateway().ip(a.v4.into(), b.v4.into(), protocol, payload);
    frame[18..20].copy_from_slice(&id.to_be_bytes());
    let field = offset | if more { 0x2000 } else { 0 };
    frame[20..22].copy_from_slice(&field.to_be_bytes());
    limit_hops(&mut frame, 64);
    frame
}

/// An IPv6 fragment (RFC 8200, 4.5).
fn fragment6(node: &Node, id: u32, offset: u16, more: bool, payload: &[u8]) -> Vec<u8> {
    let (a, b) = (node.a, node.b);
    let field = offset << 3 | u16::from(more);
    let header = [&[17, 0][..], &field.to_be_bytes(), &id.to_be_bytes(), payload].concat();
    a.to_gateway().ip(a.v6.into(), b.v6.into(), 44, &header)
}

#[test]
#[ignore = "needs root: loads programs in a namespace of its own"]
fn later_fragments_follow_their_first() {
    on_node(|node| {
        let reason = |frame: &[u8]| node.pod_sends(&node.a, frame).reason;
        let start = [&40000_u16.to_be_bytes()[..], &53_u16.to_be_bytes(), &[0; 12]].concat();
        for later in
            [fragment4(node, 9, 2, true, 17, &[0; 16]), fragment4(node, 9, 4, false, 17, &[0; 3])]
        {
            assert_eq!(reason(&later), Reason::UnknownFragment);
        }
        assert_eq!(reason(&fragment4(node, 9, 0, true, 17, &start)), Reason::Delivered);
        assert_eq!(reason(&fragment4(node, 9, 2, true, 17, &[0; 16])), Reason::Delivered);
        assert_eq!(reason(&fragment4(node, 9, 4, false, 17, &[0; 3])), Reason::Delivered);
        assert_eq!(reason(&fragment4(node, 10, 2, false, 17, &[0; 16])), Reason::UnknownFragment);
        assert_eq!(reason(&fragment4(node, 9, 2, false, 6, &[0; 16])), Reason::UnknownFragment);
        assert_eq!(
            reason(&fragment4(node, 9, 1, false, 6, &[0; 16])),
            Reason::Malformed,
            "RFC 1858"
        );

        assert_eq!(reason(&fragment6(node, 9, 2, false, &[0; 16])), Reason::UnknownFragment);
        assert_eq!(reason(&fragment6(node, 9, 0, true, &start)), Reason::Delivered);
        assert_eq!(reason(&fragment6(node, 9, 2, false, &[0; 16])), Reason::Delivered);
        assert_eq!(reason(&fragment6(node, 8, 0, false, &start)), Reason::Delivered, "atomic");
        assert_eq!(reason(&fragment6(node, 8, 2, false, &[0; 16])), Reason::UnknownFragment);
    });
}

#[test]
#[ignore = "needs root: loads programs in a namespace of its own"]
fn extension_headers_are_followed_to_a_limit() {
    on_node(|node| {
        let (a, b) = (node.a, node.b);
        let datagram =
            [&40000_u16.to_be_bytes()[..], &53_u16.to_be_bytes(), &[0, 8, 0, 0]].concat();
        let chain = |headers: &[u8]| {
            let mut payload = Vec::new();
            for (place, &header) in headers.iter().enumerate() {
                let next = headers.get(place + 1).copied().unwrap_or(17);
                // Authentication counts in words of four bytes: a length of 4 makes 24 bytes.
                let (len, size) = if header == 51 { (4, 24) } else { (1, 16) };
                payload.extend([&[next, len][..], &vec![0; size - 2]].concat());
            }
            payload.extend(&datagram);
            let first = headers.first().copied().unwrap_or(17);
            a.to_gateway().ip(a.v6.into(), b.v6.into(), first, &payload)
        };
        for headers in [&[0][..], &[60], &[43], &[51], &[0, 60, 43, 51], &[0, 60, 43, 60, 51, 60]] {
            assert_eq!(
                node.pod_sends(&a, &chain(headers)).reason,
                Reason::Delivered,
                "{headers:?}"
            );
        }
        let judged = node.pod_sends(&a, &chain(&[0, 60, 60, 60, 60, 60, 60]));
        assert_eq!(judged.reason, Reason::ExtensionHeaders);
        let mut beyond = chain(&[0]);
        beyond[14 + 40 + 1] = 200;
        assert_eq!(node.pod_sends(&a, &beyond).reason, Reason::Malformed);
        // Nor where nothing is read behind it: of this protocol nothing is known.
        let beyond_all =
            a.to_gateway().ip(a.v6.into(), b.v6.into(), 60, &[47, 9, 0, 0, 0, 0, 0, 0]);
        assert_eq!(node.pod_sends(&a, &beyond_all).reason, Reason::Malformed);
        let no_next = a.to_gateway().ip(a.v6.into(), b.v6.into(), 59, b"");
        assert_eq!(node.pod_sends(&a, &no_next).reason, Reason::Delivered);
    });
}

#[test]
#[ignore = "needs root: loads programs in a namespace of its own"]
fn links_and_nodes_that_are_not_set_up_forward_nothing() {
    on_node(|node| {
        let stranger = Pod { ifindex: node.stranger, ..node.a };
        let frame = udp(&node.a, node.a.v4.into(), node.b.v4.into());
        assert_eq!(node.pod_sends(&stranger, &frame).reason, Reason::UnknownLink);
        let config: podwire_bpf::Array<podwire_datapath::abi::NodeConfig> =
            podwire_bpf::Array::open(format!("/sys/fs/bpf/podwire/maps/{}", map::CONFIG)).unwrap();
        config.set(0, &Default::default()).unwrap();
        assert_eq!(node.pod_sends(&node.a, &frame).reason, Reason::NotReady);
    });
}

#[test]
#[ignore = "needs root: loads programs in a namespace of its own"]
fn an_endpoint_whose_place_is_taken_is_found_all_the_same() {
    on_node(|node| {
        let frame = udp(&node.a, node.a.v4.into(), node.b.v4.into());
        assert_eq!(node.pod_sends(&node.a, &frame).reason, Reason::Delivered);
        let slots: podwire_bpf::Array<Slot> =
            podwire_bpf::Array::open(format!("/sys/fs/bpf/podwire/maps/{}", map::SLOTS)).unwrap();
        let links: podwire_bpf::HashMap<u32, u32> =
            podwire_bpf::HashMap::open(format!("/sys/fs/bpf/podwire/maps/{}", map::LINKS)).unwrap();
        let place = links.get(&node.a.ifindex).unwrap().unwrap();
        assert_eq!(place, node.a.ifindex & slot_mask(slots.len()));
        let slot = slots.get(place).unwrap();
        let elsewhere = place + 100;
        slots.set(elsewhere, &slot).unwrap();
        links.insert(&node.a.ifindex, &elsewhere).unwrap();
        for other in [Slot::default(), Slot { ifindex: slot.ifindex + 4096, ..slot }] {
            slots.set(place, &other).unwrap();
            assert_eq!(node.pod_sends(&node.a, &frame).reason, Reason::Delivered);
        }
    });
}

#[test]
#[ignore = "needs root: loads programs in a namespace of its own"]
fn the_host_stack_reaches_pods() {
    on_node(|node| {
        let own = Link { from: HOST_MAC, to: HOST_MAC };
        let hosts: [IpAddr; 2] = [ROUTER4.into(), ROUTER6.into()];
        for (from, to) in hosts.into_iter().zip(node.b.both()) {
            let send = |to: IpAddr| {
                own.udp(SocketAddr::new(from, 40000), SocketAddr::new(to, 53), b"question")
            };
            let frame = send(to);
            let judged = node.stack_sends(&frame);
            assert_eq!((judged.action, judged.reason), (REDIRECT, Reason::Delivered));
            assert_eq!(addresses(&judged.frame), (&node.b.mac[..], &node.b.host_mac[..]));
            assert_eq!(judged.frame[12..], frame[12..], "the stack has done a router's work");
            let nobody: IpAddr =
                if to.is_ipv4() { "10.1.0.99".parse() } else { "fd00:1::99".parse() }.unwrap();
            assert_eq!(node.stack_sends(&send(nobody)).reason, Reason::UnknownDestination);
            assert_eq!(node.stack_sends(&send(from)).reason, Reason::UnknownDestination);
        }
        let group = own.udp("10.1.0.1:1".parse().unwrap(), "224.0.0.1:1".parse().unwrap(), b"");
        assert_eq!(node.stack_sends(&group).reason, Reason::Multicast);
        assert_eq!(
            node.stack_sends(&own.frame(0x0806, &[0; 40])).reason,
            Reason::UnsupportedProtocol
        );
        assert_eq!(node.datapath.tables().flows().unwrap(), [], "no pod speaks to a pod here");
    });
}

#[test]
#[ignore = "needs root: loads programs in a namespace of its own"]
fn a_host_link_lets_only_its_own_pods_packets_pass() {
    on_node(|node| {
        let (a, b) = (node.a, node.b);
        let link = Link { from: b.host_mac, to: b.mac };
        let frame = |to: IpAddr| {
            let from: IpAddr = if to.is_ipv4() { ROUTER4.into() } else { ROUTER6.into() };
            link.udp(SocketAddr::new(from, 1), SocketAddr::new(to, 2), b"")
        };
        for to in b.both() {
            let judged = node.link_sends(&b, &frame(to), 0);
            assert_eq!((judged.action, judged.reason), (NEXT, Reason::Passed));
            assert_eq!(judged.frame, frame(to));
        }
        for to in a.both() {
            assert_eq!(node.link_sends(&b, &frame(to), 0).reason, Reason::UnknownDestination);
            let judged = node.link_sends(&b, &frame(to), MARK_DECIDED);
            assert_eq!((judged.action, judged.reason), (NEXT, Reason::Passed), "decided before");
        }
        let stranger = Pod { ifindex: node.stranger, ..b };
        assert_eq!(node.link_sends(&stranger, &frame(b.v4.into()), 0).reason, Reason::UnknownLink);
        assert_eq!(node.link_sends(&b, &link.frame(0x0806, &[0; 40]), 0).reason, Reason::Passed);
        let other = node.link_sends(&b, &link.frame(0x88cc, &[0; 40]), 0).reason;
        assert_eq!(other, Reason::UnsupportedProtocol);
    });
}

#[test]
#[ignore = "needs root: loads programs in a namespace of its own"]
fn a_flow_goes_through_the_stack_both_ways_or_not_at_all() {
    on_node(|node| {
        let (a, b) = (node.a, node.b);
        let stack = Link { from: HOST_MAC, to: HOST_MAC };
        for (pod_a, pod_b) in a.both().into_iter().zip(b.both()) {
            let (client, server) = ((pod_a, 40000), (pod_b, 80));
            let reply = |flags| tcp(b.to_gateway(), server, client, flags);
            let judge = |frame: &[u8]| node.pod_sends(&b, frame).reason;
            assert_eq!(judge(&reply(ACK)), Reason::Delivered, "not known to the stack yet");

            // The stack has translated a connection of A's so that it ends at B.
            node.stack_sends(&tcp(stack, client, server, SYN));
            let answer = node.pod_sends(&b, &reply(SYN | ACK));
            assert_eq!(answer.reason, Reason::ToStackByFlow);
            assert_eq!(addresses(&answer.frame), (&HOST_MAC[..], &NET_MAC[..]));
            assert_eq!(judge(&reply(ACK)), Reason::ToStackByFlow);
            assert_eq!(judge(&tcp(b.to_gateway(), (pod_b, 81), client, ACK)), Reason::Delivered);
            let error = icmp_error(&b, &tcp(b.to_gateway(), client, server, ACK), client.0);
            assert_eq!(judge(&error), Reason::ToStackByFlow, "an error about it goes with it");
            let strangers = a.to_gateway().icmp(pod_a, pod_b, error_about(&b, client, server));
            let judged = node.pod_sends(&a, &strangers).reason;
            assert_eq!(judged, Reason::Delivered, "a pod cannot speak for who received it");

            let [row] = &node.datapath.tables().flows().unwrap()[..] else { panic!("one flow") };
            assert_eq!((row.source, row.source_port), server);
            assert_eq!((row.destination, row.destination_port), client);
            assert_eq!((row.protocol.0, row.packets), (6, 3));

            // B opens a connection of its own between the same ports: judged in its own direction.
            assert_eq!(judge(&reply(SYN)), Reason::Delivered);
            assert_eq!(judge(&reply(ACK)), Reason::Delivered);
            assert_eq!(node.datapath.tables().flows().unwrap(), []);
        }
    });
}

#[test]
#[ignore = "needs root: loads programs in a namespace of its own"]
fn datagrams_and_echoes_keep_to_their_flows_way() {
    on_node(|node| {
        let (a, b) = (node.a, node.b);
        let stack = Link { from: HOST_MAC, to: HOST_MAC };
        for (pod_a, pod_b) in a.both().into_iter().zip(b.both()) {
            let (client, server) = (SocketAddr::new(pod_a, 40000), SocketAddr::new(pod_b, 53));
            let question = a.to_gateway().udp(client, server, b"?");
            assert_eq!(node.pod_sends(&a, &question).reason, Reason::Delivered);
            node.stack_sends(&stack.udp(client, server, b"?"));
            let answer = b.to_gateway().udp(server, client, b"!");
            assert_eq!(node.pod_sends(&b, &answer).reason, Reason::ToStackByFlow);
            // There is no telling which of the two flows it is: connection tracking does.
            assert_eq!(node.pod_sends(&a, &question).reason, Reason::ToStackByFlow);

            node.stack_sends(&stack.echo_request(pod_a, pod_b, 5, 1, b""));
            let reply_kind = if pod_a.is_ipv4() { 0 } else { 129 };
            let reply =
                |id| b.to_gateway().icmp(pod_b, pod_a, vec![reply_kind, 0, 0, 0, 0, id, 0, 1]);
            assert_eq!(node.pod_sends(&b, &reply(5)).reason, Reason::ToStackByFlow);
            assert_eq!(node.pod_sends(&b, &reply(6)).reason, Reason::Delivered);
            let own = b.to_gateway().echo_request(pod_b, pod_a, 5, 1, b"");
            assert_eq!(node.pod_sends(&b, &own).reason, Reason::Delivered);
        }
    });
}

#[test]
#[ignore = "needs root: loads programs in a namespace of its own"]
fn fragments_keep_to_their_flows_way() {
    on_node(|node| {
        let (a, b) = (node.a, node.b);
        let stack = Link { from: HOST_MAC, to: HOST_MAC };
        let (b_side, a_side) =
            (SocketAddr::new(b.v4.into(), 53), SocketAddr::new(a.v4.into(), 40000));
        node.stack_sends(&stack.udp(b_side, a_side, b"?"));
        let start = [&40000_u16.to_be_bytes()[..], &53_u16.to_be_bytes(), &[0; 12]].concat();
        let first = fragment4(node, 9, 0, true, 17, &start);
        let later = fragment4(node, 9, 2, false, 17, &[0; 16]);
        for frame in [first, later] {
            assert_eq!(node.pod_sends(&a, &frame).reason, Reason::ToStackByFlow);
        }
    });
}

/// The message of an ICMP error about a packet that `receiver` got.
fn error_about(receiver: &Pod, client: (IpAddr, u16), server: (IpAddr, u16)) -> Vec<u8> {
    let quoted = tcp(receiver.to_gateway(), client, server, ACK);
    icmp_error(receiver, &quoted, client.0)[if client.0.is_ipv4() { 34 } else { 54 }..].to_vec()
}

/// An ICMP error of `sender` (RFC 792, RFC 4443: port unreachable) that quotes the packet of a frame.
fn icmp_error(sender: &Pod, quoted: &[u8], to: IpAddr) -> Vec<u8> {
    let kind: &[u8] = if to.is_ipv4() { &[3, 3] } else { &[1, 4] };
    let message = [kind, &[0; 6], &quoted[14..]].concat();
    sender.to_gateway().icmp(sender.address(to), to, message)
}

#[test]
#[ignore = "needs root: loads programs in a namespace of its own"]
fn a_link_with_a_foreign_filter_is_not_bypassed() {
    on_node(|node| {
        let (a, b) = (node.a, node.b);
        let frame = udp(&a, a.v4.into(), b.v4.into());
        node.datapath.set_delivery(b.ifindex, Delivery::Egress).unwrap();
        let judged = node.pod_sends(&a, &frame);
        assert_eq!((judged.action, judged.reason), (REDIRECT, Reason::DeliveredToEgress));
        assert_eq!(judged.mark, MARK_DECIDED);
        assert_eq!(node.link_sends(&b, &judged.frame, judged.mark).action, NEXT);
        node.datapath.set_delivery(b.ifindex, Delivery::Peer).unwrap();
        assert_eq!(node.pod_sends(&a, &frame).reason, Reason::Delivered);
    });
}

#[test]
#[ignore = "needs root: loads programs in a namespace of its own"]
fn what_must_be_seen_at_a_links_ingress_goes_on_by_the_link_and_the_stack() {
    on_node(|node| {
        let (a, b) = (node.a, node.b);
        node.datapath.set_delivery(b.ifindex, Delivery::Stack).unwrap();
        for ((pod_a, pod_b), router) in
            a.both().into_iter().zip(b.both()).zip([IpAddr::from(ROUTER4), ROUTER6.into()])
        {
            // What it sends is checked, left alone, and goes on by its own link.
            for to in [pod_a, router] {
                let frame = udp(&b, pod_b, to);
                let judged = node.pod_sends(&b, &frame);
                assert_eq!((judged.action, judged.reason), (NEXT, Reason::PassedToLink), "{to}");
                assert_eq!((judged.frame, judged.mark), (frame, 0));
            }
            let judged = node.pod_sends(&b, &udp(&b, pod_a, pod_a));
            assert_eq!((judged.action, judged.reason), (SHOT, Reason::SpoofedAddress));
            // What others send to it goes by the stack, which answers for an expired one as well.
            for hops in [64, 1] {
                let mut frame = udp(&a, pod_a, pod_b);
                limit_hops(&mut frame, hops);
                let judged = node.pod_sends(&a, &frame);
                assert_eq!((judged.action, judged.reason), (REDIRECT, Reason::ToStack));
                assert_eq!(addresses(&judged.frame), (&HOST_MAC[..], &NET_MAC[..]));
            }
            // What comes out of the stack passes the link's queue.
            let stack = Link { from: HOST_MAC, to: HOST_MAC };
            let frame = tcp(stack, (pod_a, 40000), (pod_b, 80), SYN);
            let judged = node.stack_sends(&frame);
            assert_eq!((judged.action, judged.reason), (REDIRECT, Reason::DeliveredToEgress));
            assert_eq!(judged.mark, MARK_DECIDED);
        }
        // Its gateway is still podwire.
        let request = Arp {
            operation: ArpOperation::Request,
            sender_mac: b.mac,
            sender: b.v4,
            target_mac: [0; 6],
            target: ROUTER4,
        };
        let judged = node.pod_sends(&b, &request.frame(Link { from: b.mac, to: BROADCAST }));
        assert_eq!(judged.reason, Reason::AnsweredArp);
        node.datapath.set_delivery(b.ifindex, Delivery::Peer).unwrap();
        let judged = node.pod_sends(&b, &udp(&b, b.v4.into(), a.v4.into()));
        assert_eq!(judged.reason, Reason::Delivered);
    });
}

#[test]
#[ignore = "needs root: loads programs in a namespace of its own"]
fn of_a_pod_that_another_plugin_wired_only_the_source_is_checked() {
    on_node(|node| {
        let (a, b) = (node.a, node.b);
        let adopted = EndpointConfig { interface: Interface::Adopted, ..Node::config("pwb", &b) };
        node.datapath.add_endpoint(&adopted).unwrap();
        let passes = |frame: &[u8], what: &str| {
            let judged = node.pod_sends(&b, frame);
            assert_eq!((judged.action, judged.reason), (NEXT, Reason::PassedToLink), "{what}");
            assert_eq!(judged.frame, frame, "{what}");
        };
        // To whichever gateway or neighbour, and from whichever MAC: that is the other plugin's affair.
        let anywhere = Link { from: [2, 9, 9, 9, 9, 1], to: [2, 9, 9, 9, 9, 2] };
        let to_all = Link { from: b.mac, to: BROADCAST };
        let send = |link: Link, from: IpAddr, to: IpAddr| {
            link.udp(SocketAddr::new(from, 68), SocketAddr::new(to, 67), b"")
        };
        for (own, other) in b.both().into_iter().zip(a.both()) {
            passes(&send(anywhere, own, other), "its own address");
            let nobody: IpAddr = if own.is_ipv4() {
                Ipv4Addr::UNSPECIFIED.into()
            } else {
                Ipv6Addr::UNSPECIFIED.into()
            };
            passes(&send(to_all, nobody, other), "no address yet");
            let frame = send(anywhere, other, own);
            let judged = node.pod_sends(&b, &frame);
            assert_eq!((judged.action, judged.reason), (SHOT, Reason::SpoofedAddress));
            // Others reach it by the stack, whose routes its own plugin has made.
            assert_eq!(node.pod_sends(&a, &udp(&a, other, own)).reason, Reason::ToStack);
        }
        passes(&send(to_all, "fe80::1".parse().unwrap(), a.v6.into()), "a link-local address");
        passes(&to_all.frame(0x0806, &[0; 46]), "ARP of any kind");
        passes(&to_all.frame(0x88cc, &[0; 46]), "another protocol");
        // What reaches it by its link is that plugin's affair, too.
        let link = Link { from: a.mac, to: b.mac };
        let judged = node.link_sends(&b, &send(link, a.v4.into(), a.v4.into()), 0);
        assert_eq!((judged.action, judged.reason), (NEXT, Reason::Passed));
    });
}

#[test]
#[ignore = "needs root: loads programs in a namespace of its own"]
fn an_address_that_changed_hands_is_never_delivered_to_the_old_one() {
    on_node(|node| {
        let (a, b) = (node.a, node.b);
        let frame = udp(&a, a.v4.into(), b.v4.into());
        let ipcache: podwire_bpf::HashMap<Address, IpcacheEntry> =
            podwire_bpf::HashMap::open(format!("/sys/fs/bpf/podwire/maps/{}", map::IPCACHE))
                .unwrap();
        let key = Address::from(IpAddr::from(b.v4));
        let entry = ipcache.get(&key).unwrap().unwrap();
        for wrong in [
            IpcacheEntry { generation: entry.generation - 1, ..entry },
            IpcacheEntry { slot: entry.slot + 1, ..entry },
            IpcacheEntry { slot: u32::MAX - 1, ..entry },
        ] {
            ipcache.insert(&key, &wrong).unwrap();
            assert_eq!(node.pod_sends(&a, &frame).reason, Reason::StaleEndpoint);
        }
        // The right slot and generation, for an address that the slot does not have.
        let other = Address::from(IpAddr::from([10, 1, 0, 50]));
        ipcache.insert(&other, &entry).unwrap();
        let to_other = udp(&a, a.v4.into(), [10, 1, 0, 50].into());
        assert_eq!(node.pod_sends(&a, &to_other).reason, Reason::StaleEndpoint);
    });
}
