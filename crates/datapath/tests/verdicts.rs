//! Every kind of packet has a decided fate, and every fate its counter: the programs under
//! `BPF_PROG_TEST_RUN`. What is remembered of flows is tried in `flows.rs` and `validity.rs`, policies in `policy.rs`.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod node;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use node::{
    ACK, HOST_MAC, NET_MAC, NEXT, Pod, REDIRECT, ROUTER4, ROUTER6, SHOT, SYN, addresses, hops,
    on_node, tcp, udp,
};
use podwire_datapath::abi::{MARK_DECIDED, Reason};
use podwire_lab::probe::frame::{BROADCAST, Link, checksum, limit_hops, tagged};

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
fn links_and_nodes_that_are_not_set_up_forward_nothing() {
    on_node(|node| {
        let stranger = Pod { ifindex: node.c.ifindex, ..node.a };
        let frame = udp(&node.a, node.a.v4.into(), node.b.v4.into());
        assert_eq!(node.pod_sends(&stranger, &frame).reason, Reason::UnknownLink);
        node.maps.config.set(0, &Default::default()).unwrap();
        assert_eq!(node.pod_sends(&node.a, &frame).reason, Reason::NotReady);
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
        let stranger = Pod { ifindex: node.c.ifindex, ..b };
        assert_eq!(node.link_sends(&stranger, &frame(b.v4.into()), 0).reason, Reason::UnknownLink);
        assert_eq!(node.link_sends(&b, &link.frame(0x0806, &[0; 40]), 0).reason, Reason::Passed);
        let other = node.link_sends(&b, &link.frame(0x88cc, &[0; 40]), 0).reason;
        assert_eq!(other, Reason::UnsupportedProtocol);
    });
}
