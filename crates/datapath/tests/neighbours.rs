//! What a pod asks on its link: ARP and neighbour discovery, under `BPF_PROG_TEST_RUN`.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod node;

use std::net::{Ipv4Addr, Ipv6Addr};

use node::{REDIRECT, ROUTER4, ROUTER6, addresses, on_node};
use podwire_datapath::abi::{MARK_DECIDED, Reason};
use podwire_lab::probe::frame::{
    Arp, ArpOperation, BROADCAST, Link, checksum, ip_addresses, limit_hops,
};

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
