//! A verdict is believed as long as nothing has changed that it rests on, and no packet longer: under
//! `BPF_PROG_TEST_RUN`.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod node;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use node::{ACK, HOST_MAC, Marks, Node, Pod, SYN, on_node, tcp};
use podwire_datapath::{
    Delivery,
    abi::{Address, CHANGING, Flow, FlowEvent, Hook, PolicyRef, Reason, policy_flag, remote_place},
};
use podwire_lab::probe::frame::Link;

const STACK: Link = Link { from: HOST_MAC, to: HOST_MAC };
const DENY_ALL: PolicyRef = PolicyRef::new(1, policy_flag::DENY_BY_DEFAULT);

fn judged(node: &Node) -> u64 {
    let events = node.datapath.tables().flow_events().unwrap();
    events.into_iter().find(|(event, _)| *event == FlowEvent::Judged).unwrap().1
}

/// Whether that packet is judged anew, and what becomes of it.
fn slowly(node: &Node, pod: &Pod, frame: &[u8]) -> (bool, Reason) {
    let before = judged(node);
    let reason = node.pod_sends(pod, frame).reason;
    (judged(node) != before, reason)
}

fn place(node: &Node, pod: &Pod) -> u32 {
    node.maps.links.get(&pod.ifindex).unwrap().unwrap()
}

/// Packets of an open connection from a to b: a's, b's.
fn open(node: &Node) -> (Vec<u8>, Vec<u8>) {
    let (a, b) = (node.a, node.b);
    let (client, server) = ((IpAddr::from(a.v4), 40000), (IpAddr::from(b.v4), 80));
    node.pod_sends(&a, &tcp(a.to_gateway(), client, server, SYN));
    node.pod_sends(&b, &tcp(b.to_gateway(), server, client, SYN | ACK));
    let question = tcp(a.to_gateway(), client, server, ACK);
    let answer = tcp(b.to_gateway(), server, client, ACK);
    node.pod_sends(&a, &question);
    node.pod_sends(&b, &answer);
    assert_eq!(slowly(node, &a, &question), (false, Reason::Delivered));
    assert_eq!(slowly(node, &b, &answer), (false, Reason::Delivered));
    (question, answer)
}

#[test]
#[ignore = "needs root: loads programs in a namespace of its own"]
fn each_change_makes_the_next_packet_be_judged_anew_and_only_that() {
    on_node(|node| {
        let (a, b) = (node.a, node.b);
        let (question, answer) = open(node);
        let marks = [
            Marks { all: true, ..Marks::default() },
            Marks { slots: vec![place(node, &a)], ..Marks::default() },
            Marks { slots: vec![place(node, &b)], ..Marks::default() },
        ];
        for marks in &marks {
            node.maps.change(marks, |_| ());
            for (pod, frame) in [(&a, &question), (&b, &answer)] {
                assert_eq!(slowly(node, pod, frame), (true, Reason::Delivered), "{marks:?}");
                assert_eq!(slowly(node, pod, frame), (false, Reason::Delivered), "{marks:?}");
            }
        }
        // What does not concern them: another endpoint, another address, an unrelated ticket.
        let unrelated = Marks {
            slots: vec![place(node, &a) + 50],
            addresses: vec![IpAddr::from(b.v4).into()],
            all: false,
        };
        node.maps.change(&unrelated, |_| ());
        assert_eq!(slowly(node, &a, &question), (false, Reason::Delivered));
        assert_eq!(slowly(node, &b, &answer), (false, Reason::Delivered));
    });
}

#[test]
#[ignore = "needs root: loads programs in a namespace of its own"]
fn who_is_outside_is_marked_by_address() {
    on_node(|node| {
        let a = node.a;
        let far: IpAddr = "192.0.2.1".parse().unwrap();
        let (client, server) = ((IpAddr::from(a.v4), 40000), (far, 80));
        node.pod_sends(&a, &tcp(a.to_gateway(), client, server, SYN));
        node.stack_sends(&tcp(STACK, server, client, SYN | ACK));
        let question = tcp(a.to_gateway(), client, server, ACK);
        assert_eq!(slowly(node, &a, &question), (true, Reason::ToStack));
        assert_eq!(slowly(node, &a, &question), (false, Reason::ToStack));
        let change = |address: IpAddr| {
            let marks = Marks { addresses: vec![address.into()], ..Marks::default() };
            node.maps.change(&marks, |_| ());
        };
        change(far);
        assert_eq!(slowly(node, &a, &question), (true, Reason::ToStack));
        let other: IpAddr = "192.0.2.2".parse().unwrap();
        assert_ne!(remote_place(&Address::from(far)), remote_place(&Address::from(other)));
        change(other);
        assert_eq!(slowly(node, &a, &question), (false, Reason::ToStack));
    });
}

#[test]
#[ignore = "needs root: loads programs in a namespace of its own"]
fn while_something_is_changing_nothing_is_believed() {
    on_node(|node| {
        let (a, b) = (node.a, node.b);
        let (question, answer) = open(node);
        let marks = Marks { slots: vec![place(node, &b)], ..Marks::default() };
        let ticket = node.maps.state.get(0).unwrap().ticket + 1;
        node.maps.mark(&marks, CHANGING);
        for _ in 0..2 {
            assert_eq!(slowly(node, &a, &question), (true, Reason::Delivered));
            assert_eq!(slowly(node, &b, &answer), (true, Reason::Delivered));
        }
        // Marked, but what is decided now may rest on what was before.
        node.maps.mark(&marks, ticket);
        for _ in 0..2 {
            assert_eq!(slowly(node, &a, &question), (true, Reason::Delivered));
        }
        node.maps.raise(ticket);
        assert_eq!(slowly(node, &a, &question), (true, Reason::Delivered));
        assert_eq!(slowly(node, &a, &question), (false, Reason::Delivered));
    });
}

#[test]
#[ignore = "needs root: loads programs in a namespace of its own"]
fn a_policy_that_turns_to_deny_is_effective_at_once() {
    on_node(|node| {
        let (a, b) = (node.a, node.b);
        let (question, answer) = open(node);
        let before = node.maps.flows().entries();
        let place = place(node, &b);
        let marks = Marks { slots: vec![place], ..Marks::default() };
        node.maps.change(&marks, |maps| maps.edit_slot(place, |slot| slot.ingress = DENY_ALL));
        assert_eq!(slowly(node, &a, &question), (true, Reason::IngressDenied));
        assert_eq!(slowly(node, &b, &answer), (true, Reason::IngressDenied));
        let sorted = |mut entries: Vec<(_, Flow)>| {
            entries.sort_by_key(|(_, flow)| flow.verdict.0);
            entries
        };
        let after = node.maps.flows().entries();
        assert_eq!(sorted(after), sorted(before), "denied packets change nothing");
        node.maps.change(&marks, |maps| {
            maps.edit_slot(place, |slot| slot.ingress = PolicyRef::default());
        });
        assert_eq!(slowly(node, &a, &question), (true, Reason::Delivered));
        assert_eq!(slowly(node, &b, &answer), (true, Reason::Delivered), "still an answer");
    });
}

#[test]
#[ignore = "needs root: loads programs in a namespace of its own"]
fn an_address_that_another_endpoint_has_now_is_another_conversation() {
    on_node(|node| {
        let (a, b, c) = (node.a, node.b, node.c);
        let (question, answer) = open(node);
        node.datapath.remove_endpoint("pwb", b.ifindex).unwrap();
        assert_eq!(slowly(node, &a, &question), (true, Reason::ToStack));
        assert_eq!(node.pod_sends(&b, &answer).reason, Reason::UnknownLink);
        node.add("pwc", &c);
        let judged = node.pod_sends(&a, &question);
        assert_eq!(judged.reason, Reason::Delivered);
        assert_eq!(judged.frame[..6], c.mac, "to who has the address now");
        // The new endpoint answers nothing that it was not asked.
        let place = place(node, &a);
        let marks = Marks { slots: vec![place], ..Marks::default() };
        node.maps.change(&marks, |maps| maps.edit_slot(place, |slot| slot.ingress = DENY_ALL));
        let (from, to) = ((c.v4.into(), 80), (a.v4.into(), 40002));
        let unasked = tcp(c.to_gateway(), from, to, ACK);
        assert_eq!(node.pod_sends(&c, &unasked).reason, Reason::IngressDenied);
    });
}

#[test]
#[ignore = "needs root: loads programs in a namespace of its own"]
fn another_way_of_delivery_changes_the_way_and_not_the_flow() {
    on_node(|node| {
        let (a, b) = (node.a, node.b);
        let (question, answer) = open(node);
        node.datapath.set_delivery(b.ifindex, Delivery::Egress).unwrap();
        assert_eq!(slowly(node, &a, &question), (true, Reason::DeliveredToEgress));
        assert_eq!(slowly(node, &a, &question), (false, Reason::DeliveredToEgress));
        node.datapath.set_delivery(b.ifindex, Delivery::Stack).unwrap();
        assert_eq!(slowly(node, &a, &question), (true, Reason::ToStack));
        assert_eq!(slowly(node, &a, &question), (false, Reason::ToStack));
        assert_eq!(slowly(node, &b, &answer), (true, Reason::PassedToLink));
        assert_eq!(slowly(node, &b, &answer), (false, Reason::PassedToLink));
        node.datapath.set_delivery(b.ifindex, Delivery::Peer).unwrap();
        assert_eq!(slowly(node, &a, &question), (true, Reason::Delivered));
        assert_eq!(slowly(node, &b, &answer), (true, Reason::Delivered));
    });
}

#[test]
#[ignore = "needs root: loads programs in a namespace of its own"]
fn another_flows_verdict_is_never_taken_for_ones_own() {
    on_node(|node| {
        let (a, b) = (node.a, node.b);
        let (question, answer) = open(node);
        let flows = node.maps.flows().entries();
        let place = place(node, &a);
        let (key, own) = *flows.iter().find(|(key, _)| u32::from(key.endpoint) == place).unwrap();
        let (_, other) = flows.iter().find(|(key, _)| u32::from(key.endpoint) != place).unwrap();
        // As where the entry has become another flow's in the very moment.
        let taken = Flow { verdict: other.verdict, ..own };
        assert!(node.maps.flows().insert(&key, taken));
        assert_eq!(slowly(node, &a, &question), (true, Reason::Delivered));
        assert_eq!(node.maps.flows().get(&key), Some(taken), "it is not this flow's");
        assert_eq!(node.maps.pending().entries().len(), 1, "which begins");
        assert_eq!(slowly(node, &b, &answer), (false, Reason::Delivered));
    });
}

#[test]
#[ignore = "needs root: loads programs in a namespace of its own"]
fn of_a_hundred_thousand_packets_under_a_thousand_unrelated_changes_few_are_judged_anew() {
    const CHANGES: u32 = 1000;
    const PACKETS: u32 = 100;
    on_node(|node| {
        let a = node.a;
        let own = (Ipv4Addr::new(10, 1, 0, 9), Ipv6Addr::new(0xfd00, 1, 0, 0, 0, 0, 0, 9));
        let c = Pod { v4: own.0, v6: own.1, ..node.c };
        let (question, _) = open(node);
        let far = (IpAddr::from([192, 0, 2, 1]), 80);
        let client = (IpAddr::from(a.v4), 40000);
        let outside = tcp(a.to_gateway(), client, far, ACK);
        for frame in [&outside, &tcp(STACK, far, client, ACK), &outside] {
            let hook = if frame == &outside { Hook::FromContainer } else { Hook::FromHost };
            let at = if hook == Hook::FromHost { node.net_ifindex } else { a.ifindex };
            node.run(hook, frame, at, 0);
        }
        let before = judged(node);
        for n in 0..CHANGES {
            match n % 4 {
                // Each address is another one's, as in a cluster whose pods come and go.
                0 | 1 => {
                    let address = IpAddr::from((0x0a02_0000 + n).to_be_bytes());
                    node.datapath.set_identities(&[(address.into(), 1000 + n)]).unwrap();
                }
                2 => {
                    node.add("pwc", &c);
                }
                _ => {
                    let _ = node.datapath.remove_endpoint("pwc", c.ifindex).unwrap();
                }
            }
            for _ in 0..PACKETS / 2 {
                node.run(Hook::FromContainer, &question, a.ifindex, 0);
                node.run(Hook::FromContainer, &outside, a.ifindex, 0);
            }
        }
        let anew = judged(node) - before;
        println!("{anew} of {} packets were judged anew", CHANGES * PACKETS);
        assert!(anew <= u64::from(CHANGES * PACKETS / 100), "{anew} packets were judged anew");
    });
}
