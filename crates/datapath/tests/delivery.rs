//! How packets are handed to endpoints: straight, through queues, by the stack; under `BPF_PROG_TEST_RUN`.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod node;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use node::{
    HOST_MAC, Maps, NET_MAC, NEXT, Node, REDIRECT, ROUTER4, ROUTER6, SHOT, SYN, addresses, on_node,
    tcp, udp,
};
use podwire_datapath::{
    Delivery, EndpointConfig, Interface,
    abi::{Address, IpcacheEntry, MARK_DECIDED, Reason, Slot, slot_mask},
};
use podwire_lab::probe::frame::{Arp, ArpOperation, BROADCAST, Link, limit_hops};

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
fn an_endpoint_whose_place_is_taken_is_found_all_the_same() {
    on_node(|node| {
        let frame = udp(&node.a, node.a.v4.into(), node.b.v4.into());
        assert_eq!(node.pod_sends(&node.a, &frame).reason, Reason::Delivered);
        let Maps { slots, links, .. } = &node.maps;
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
fn an_address_that_changed_hands_is_never_delivered_to_the_old_one() {
    on_node(|node| {
        let (a, b) = (node.a, node.b);
        let frame = udp(&a, a.v4.into(), b.v4.into());
        let ipcache = &node.maps.ipcache;
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
