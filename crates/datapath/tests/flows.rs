//! What the programs remember of conversations, and how flows begin, are confirmed and end: under
//! `BPF_PROG_TEST_RUN`.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod node;

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
};

use node::{
    ACK, FIN, HOST_MAC, Marks, NET_MAC, Node, Pod, ROUTER4, ROUTER6, RST, SYN, addresses,
    icmp_error, on_node, on_node_with, tcp,
};
use podwire_datapath::{
    Datapath, Delivery, Options, Tables,
    abi::{Flow, FlowEvent, NodeState, Pending, PolicyRef, Reason, policy_flag, recent, tcp_seen},
};
use podwire_lab::probe::frame::Link;

const STACK: Link = Link { from: HOST_MAC, to: HOST_MAC };

/// Two sides of a conversation.
#[derive(Clone, Copy)]
struct Sides<'n> {
    node: &'n Node,
    /// It speaks first.
    client: (Pod, (IpAddr, u16)),
    server: (Pod, (IpAddr, u16)),
}

impl<'n> Sides<'n> {
    /// The same, with another port of the client.
    fn with_client_port(mut self, port: u16) -> Self {
        self.client.1.1 = port;
        self
    }

    /// Of both families.
    fn of(node: &'n Node) -> [Self; 2] {
        let (a, b) = (node.a, node.b);
        let pairs: [(IpAddr, IpAddr); 2] = [(a.v4.into(), b.v4.into()), (a.v6.into(), b.v6.into())];
        pairs.map(|(from, to)| Self { node, client: (a, (from, 40000)), server: (b, (to, 80)) })
    }

    fn client_sends(&self, flags: u8) -> Reason {
        let (pod, from) = self.client;
        self.node.pod_sends(&pod, &tcp(pod.to_gateway(), from, self.server.1, flags)).reason
    }

    fn server_sends(&self, flags: u8) -> Reason {
        let (pod, from) = self.server;
        self.node.pod_sends(&pod, &tcp(pod.to_gateway(), from, self.client.1, flags)).reason
    }

    fn open(&self) {
        self.client_sends(SYN);
        self.server_sends(SYN | ACK);
        self.client_sends(ACK);
    }
}

fn event(node: &Node, event: FlowEvent) -> u64 {
    let events = node.datapath.tables().flow_events().unwrap();
    events.into_iter().find(|(of, _)| *of == event).unwrap().1
}

fn confirmed(node: &Node) -> Vec<Flow> {
    let mut flows: Vec<_> = node.maps.flows().entries().into_iter().map(|(_, flow)| flow).collect();
    flows.sort_by_key(|flow| flow.verdict.flags());
    flows
}

fn pending(node: &Node) -> Vec<Pending> {
    node.maps.pending().entries().into_iter().map(|(_, pending)| pending).collect()
}

fn forget(node: &Node) {
    node.maps.flows().clear();
    node.maps.pending().clear();
}

/// Whoever is killed between emptying an entry and giving it back leaves that to the next start.
#[test]
#[ignore = "needs root: loads programs in a namespace of its own"]
fn entries_that_are_taken_and_empty_are_given_back_at_the_next_start() {
    on_node(|node| {
        let [sides, _] = Sides::of(node);
        sides.open();
        let taken = node.maps.flow_ways.values().unwrap();
        let lost: Vec<_> = (0..).zip(taken.iter().map(|word| word | 0x00ff_0000_00ff)).collect();
        node.maps.flow_ways.set_batch(&lost).unwrap();
        let options = Options::new("/sys/fs/bpf/podwire");
        drop(Datapath::open(&options).unwrap());
        assert_eq!(node.maps.flow_ways.values().unwrap(), taken);
        let judged = event(node, FlowEvent::Judged);
        assert_eq!(sides.client_sends(ACK), Reason::Delivered);
        assert_eq!(event(node, FlowEvent::Judged), judged, "the flow is known as before");
    });
}

/// Such a conversation is known by what goes into the stack, and by what comes out of it.
#[test]
#[ignore = "needs root: loads programs in a namespace of its own"]
fn answers_between_pods_go_back_by_the_stack_whatever_the_ports() {
    on_node(|node| {
        let (a, b) = (node.a, node.b);
        node.datapath.set_delivery(b.ifindex, Delivery::Stack).unwrap();
        let place = node.maps.links.get(&a.ifindex).unwrap().unwrap();
        let marks = Marks { slots: vec![place], ..Marks::default() };
        let closed = PolicyRef::new(0, policy_flag::DENY_BY_DEFAULT);
        node.maps.change(&marks, |maps| maps.edit_slot(place, |slot| slot.ingress = closed));
        for (from, to) in a.both().into_iter().zip(b.both()) {
            for port in [1, 53, 300, 40_000, 0x9cff] {
                let (asks, answers) = (SocketAddr::new(from, port), SocketAddr::new(to, 53));
                for _ in 0..3 {
                    let question = a.to_gateway().udp(asks, answers, b"?");
                    assert_eq!(node.pod_sends(&a, &question).reason, Reason::ToStack);
                    let question = STACK.udp(asks, answers, b"?");
                    assert_eq!(node.stack_sends(&question).reason, Reason::DeliveredToEgress);
                    let answer = b.to_gateway().udp(answers, asks, b"!");
                    assert_eq!(node.pod_sends(&b, &answer).reason, Reason::PassedToLink);
                    let answer = STACK.udp(answers, asks, b"!");
                    let judged = node.stack_sends(&answer).reason;
                    assert_eq!(judged, Reason::Delivered, "port {port}");
                }
            }
        }
    });
}

#[test]
#[ignore = "needs root: loads programs in a namespace of its own"]
fn maps_of_another_layout_are_read_by_nobody() {
    on_node(|node| {
        let state = node.maps.state.get(0).unwrap();
        node.maps.state.set(0, &NodeState { layout: state.layout - 1, ..state }).unwrap();
        let folder = "/sys/fs/bpf/podwire";
        let errors = [
            Datapath::open(&Options::new(folder)).map(drop).unwrap_err(),
            Tables::open(folder).map(drop).unwrap_err(),
        ];
        for error in errors {
            let told = error.to_string();
            assert!(told.contains("has layout") || told.contains("have layout"), "{told}");
            assert!(told.contains("podwire cleanup"), "{told}");
        }
        let [sides, _] = Sides::of(node);
        assert_eq!(sides.client_sends(SYN), Reason::Delivered, "traffic goes on");
    });
}

/// RFC 9293, figure 8.
#[test]
#[ignore = "needs root: loads programs in a namespace of its own"]
fn a_connection_that_both_sides_begin_at_once_is_confirmed() {
    on_node(|node| {
        for sides in Sides::of(node) {
            // Either side's flow may be the one that they agree on.
            for port in [1, 300, 40_000, u16::MAX] {
                let sides = sides.with_client_port(port);
                let before = confirmed(node).len();
                for flags in [SYN, SYN | ACK, ACK] {
                    assert_eq!(sides.client_sends(flags), Reason::Delivered);
                    assert_eq!(sides.server_sends(flags), Reason::Delivered);
                }
                assert_eq!(confirmed(node).len(), before + 2, "port {port}");
                let judged = event(node, FlowEvent::Judged);
                for _ in 0..3 {
                    sides.client_sends(ACK);
                    sides.server_sends(ACK);
                }
                assert_eq!(event(node, FlowEvent::Judged), judged, "they have the short way");
            }
        }
    });
}

#[test]
#[ignore = "needs root: loads programs in a namespace of its own"]
fn a_connection_is_confirmed_by_the_third_packet() {
    on_node(|node| {
        for sides in Sides::of(node) {
            let began = event(node, FlowEvent::Began);
            assert_eq!(sides.client_sends(SYN), Reason::Delivered);
            assert_eq!(sides.server_sends(SYN | ACK), Reason::Delivered);
            assert_eq!((confirmed(node).len(), pending(node).len()), (0, 1));
            assert_eq!(event(node, FlowEvent::Began), began + 1, "one flow, not two");
            assert_eq!(sides.client_sends(ACK), Reason::Delivered);
            assert_eq!((confirmed(node).len(), pending(node).len()), (2, 0));

            // From now on nothing is looked up but the flow.
            let judged = event(node, FlowEvent::Judged);
            for _ in 0..3 {
                assert_eq!(sides.client_sends(ACK), Reason::Delivered);
                assert_eq!(sides.server_sends(ACK), Reason::Delivered);
            }
            assert_eq!(event(node, FlowEvent::Judged), judged);

            let rows = node.datapath.tables().flows().unwrap();
            let [row] = &rows[..] else { panic!("one conversation: {rows:?}") };
            let bytes = tcp(STACK, sides.client.1, sides.server.1, ACK).len() as u64;
            assert_eq!((row.source, row.source_port), sides.client.1);
            assert_eq!((row.destination, row.destination_port), sides.server.1);
            assert_eq!((row.packets, row.bytes), (5, 5 * bytes));
            assert_eq!((row.reply_packets, row.reply_bytes), (4, 4 * bytes));
            forget(node);
        }
        let events = [FlowEvent::Began, FlowEvent::Confirmed, FlowEvent::Ended];
        assert_eq!(events.map(|of| event(node, of)), [2, 2, 0]);
    });
}

#[test]
#[ignore = "needs root: loads programs in a namespace of its own"]
fn a_connection_that_one_side_speaks_in_is_never_confirmed() {
    on_node(|node| {
        for sides in Sides::of(node) {
            for flags in [SYN, SYN, ACK, ACK, FIN | ACK] {
                assert_eq!(sides.client_sends(flags), Reason::Delivered);
            }
            assert_eq!((confirmed(node).len(), pending(node).len()), (0, 1));
            forget(node);
        }
    });
}

#[test]
#[ignore = "needs root: loads programs in a namespace of its own"]
fn a_connection_that_was_there_before_is_picked_up() {
    on_node(|node| {
        for sides in Sides::of(node) {
            assert_eq!(sides.server_sends(ACK), Reason::Delivered);
            assert_eq!(sides.client_sends(ACK), Reason::Delivered);
            assert_eq!((confirmed(node).len(), pending(node).len()), (2, 0));
            forget(node);
        }
    });
}

#[test]
#[ignore = "needs root: loads programs in a namespace of its own"]
fn a_connection_ends_by_a_reset_or_by_both_sides_last_words() {
    on_node(|node| {
        for sides in Sides::of(node) {
            sides.open();
            assert_eq!(sides.client_sends(FIN | ACK), Reason::Delivered);
            assert_eq!(confirmed(node).len(), 2, "half open");
            assert_eq!(sides.server_sends(ACK), Reason::Delivered);
            assert_eq!(sides.server_sends(FIN | ACK), Reason::Delivered);
            assert_eq!(confirmed(node).len(), 0);
            let [ended] = pending(node)[..] else { panic!("one flow") };
            assert_eq!(ended.tcp, tcp_seen::FIN | tcp_seen::FIN << tcp_seen::PEER);
            assert_eq!((ended.packets, ended.reply_packets), (3, 3));
            assert_eq!(sides.client_sends(ACK), Reason::Delivered, "the last acknowledgement");
            assert_eq!((confirmed(node).len(), pending(node).len()), (0, 1));

            // The same ports again.
            sides.open();
            assert_eq!((confirmed(node).len(), pending(node).len()), (2, 0));
            assert_eq!(sides.server_sends(RST), Reason::Delivered);
            let [ended] = pending(node)[..] else { panic!("one flow") };
            assert_eq!((confirmed(node).len(), ended.tcp), (0, tcp_seen::RST));
            // Whose reset it was, the other side did not believe.
            sides.client_sends(ACK);
            sides.server_sends(ACK);
            assert_eq!((confirmed(node).len(), pending(node).len()), (2, 0));
            forget(node);
        }
        assert_eq!(event(node, FlowEvent::Ended), 4);
    });
}

#[test]
#[ignore = "needs root: loads programs in a namespace of its own"]
fn a_syn_begins_anew_whatever_was_before() {
    on_node(|node| {
        for sides in Sides::of(node) {
            sides.open();
            assert_eq!(sides.client_sends(SYN), Reason::Delivered);
            assert_eq!(confirmed(node).len(), 0);
            let [begun] = pending(node)[..] else { panic!("one flow") };
            assert_eq!((begun.packets, begun.tcp), (1, tcp_seen::SYN));
            forget(node);
        }
    });
}

#[test]
#[ignore = "needs root: loads programs in a namespace of its own"]
fn datagrams_and_echoes_are_confirmed_by_the_first_answer() {
    on_node(|node| {
        let (a, b) = (node.a, node.b);
        for (pod_a, pod_b) in a.both().into_iter().zip(b.both()) {
            let (client, server) = (SocketAddr::new(pod_a, 40000), SocketAddr::new(pod_b, 53));
            let reply_kind = if pod_a.is_ipv4() { 0 } else { 129 };
            let exchanges = [
                (
                    a.to_gateway().udp(client, server, b"?"),
                    b.to_gateway().udp(server, client, b"!"),
                ),
                (
                    a.to_gateway().echo_request(pod_a, pod_b, 5, 1, b""),
                    b.to_gateway().icmp(pod_b, pod_a, vec![reply_kind, 0, 0, 0, 0, 5, 0, 1]),
                ),
                (
                    a.to_gateway().ip(pod_a, pod_b, 132, &[1, 2, 3, 4, 0, 0, 0, 0]),
                    b.to_gateway().ip(pod_b, pod_a, 132, &[3, 4, 1, 2, 0, 0, 0, 0]),
                ),
                (
                    a.to_gateway().ip(pod_a, pod_b, 47, b"?"),
                    b.to_gateway().ip(pod_b, pod_a, 47, b"!"),
                ),
            ];
            for (question, answer) in exchanges {
                assert_eq!(node.pod_sends(&a, &question).reason, Reason::Delivered);
                assert_eq!(node.pod_sends(&a, &question).reason, Reason::Delivered);
                assert_eq!((confirmed(node).len(), pending(node).len()), (0, 1));
                assert_eq!(node.pod_sends(&b, &answer).reason, Reason::Delivered);
                assert_eq!((confirmed(node).len(), pending(node).len()), (2, 0));
                let judged = event(node, FlowEvent::Judged);
                node.pod_sends(&a, &question);
                node.pod_sends(&b, &answer);
                assert_eq!(event(node, FlowEvent::Judged), judged);
                let counts: Vec<_> = confirmed(node)
                    .iter()
                    .map(|flow| recent::split(flow.recent).0 + flow.packets())
                    .collect();
                assert_eq!(counts, [3, 2]);
                forget(node);
            }
        }
    });
}

#[test]
#[ignore = "needs root: loads programs in a namespace of its own"]
fn a_flow_goes_through_the_stack_both_ways_or_not_at_all() {
    on_node(|node| {
        let (a, b) = (node.a, node.b);
        for sides in Sides::of(node) {
            let (client, server) = (sides.client.1, sides.server.1);
            assert_eq!(sides.server_sends(ACK), Reason::Delivered, "not known to the stack yet");
            forget(node);

            // The stack has translated a connection of A's so that it ends at B.
            node.stack_sends(&tcp(STACK, client, server, SYN));
            let answer = node.pod_sends(&b, &tcp(b.to_gateway(), server, client, SYN | ACK));
            assert_eq!(answer.reason, Reason::ToStackByFlow);
            assert_eq!(addresses(&answer.frame), (&HOST_MAC[..], &NET_MAC[..]));
            assert_eq!(sides.server_sends(ACK), Reason::ToStackByFlow);
            assert_eq!(confirmed(node).len(), 2);
            assert_eq!(sides.server_sends(ACK), Reason::ToStackByFlow);
            let other = tcp(b.to_gateway(), (server.0, 81), client, ACK);
            assert_eq!(node.pod_sends(&b, &other).reason, Reason::Delivered);

            // An error about it goes with it; nobody speaks for who received what it is about.
            let error = icmp_error(&b, &tcp(b.to_gateway(), client, server, ACK), client.0);
            assert_eq!(node.pod_sends(&b, &error).reason, Reason::ToStackByFlow);
            let strangers = icmp_error(&a, &tcp(b.to_gateway(), client, server, ACK), server.0);
            assert_eq!(node.pod_sends(&a, &strangers).reason, Reason::Delivered);

            // B opens a connection of its own between the same ports: judged in its own direction.
            assert_eq!(sides.server_sends(SYN), Reason::Delivered);
            assert_eq!(sides.server_sends(ACK), Reason::Delivered);
            forget(node);
        }
    });
}

#[test]
#[ignore = "needs root: loads programs in a namespace of its own"]
fn datagrams_and_echoes_keep_to_their_flows_way() {
    on_node(|node| {
        let (a, b) = (node.a, node.b);
        for (pod_a, pod_b) in a.both().into_iter().zip(b.both()) {
            let (client, server) = (SocketAddr::new(pod_a, 40000), SocketAddr::new(pod_b, 53));
            node.stack_sends(&STACK.udp(client, server, b"?"));
            let answer = b.to_gateway().udp(server, client, b"!");
            for _ in 0..3 {
                assert_eq!(node.pod_sends(&b, &answer).reason, Reason::ToStackByFlow);
            }
            node.stack_sends(&STACK.echo_request(pod_a, pod_b, 5, 1, b""));
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
fn what_the_node_asks_is_answered_to_the_stack() {
    on_node(|node| {
        let b = node.b;
        let hosts: [IpAddr; 2] = [ROUTER4.into(), ROUTER6.into()];
        for (host, pod) in hosts.into_iter().zip(b.both()) {
            let (client, server) = ((host, 40000), (pod, 80));
            for (from_pod, flags) in [(false, SYN), (true, SYN | ACK), (false, ACK), (true, ACK)] {
                let judged = if from_pod {
                    node.pod_sends(&b, &tcp(b.to_gateway(), server, client, flags)).reason
                } else {
                    node.stack_sends(&tcp(STACK, client, server, flags)).reason
                };
                let expected = if from_pod { Reason::ToStack } else { Reason::Delivered };
                assert_eq!(judged, expected);
            }
            assert_eq!((confirmed(node).len(), pending(node).len()), (2, 0));
            let rows = node.datapath.tables().flows().unwrap();
            let [row] = &rows[..] else { panic!("one conversation: {rows:?}") };
            assert_eq!((row.source, row.destination), (host, pod));
            forget(node);
        }
    });
}

#[test]
#[ignore = "needs root: loads programs in a namespace of its own"]
fn a_full_table_keeps_what_it_has() {
    // One set, which has eight entries.
    let small = |options| Options { flows: 2, ..options };
    on_node_with(small, |node| {
        let [first, _] = Sides::of(node);
        let from_port = |port| first.with_client_port(port);
        (40_000..40_004).for_each(|port| from_port(port).open());
        assert_eq!((confirmed(node).len(), event(node, FlowEvent::TableFull)), (8, 0));
        let last = from_port(40_004);
        last.open();
        assert_eq!(event(node, FlowEvent::TableFull), 1);
        assert_eq!((confirmed(node).len(), pending(node).len()), (8, 1));
        let judged = event(node, FlowEvent::Judged);
        for port in 40_000..40_004 {
            assert_eq!(from_port(port).client_sends(ACK), Reason::Delivered);
        }
        assert_eq!(event(node, FlowEvent::Judged), judged, "the first ones are still known");
        assert_eq!(last.client_sends(ACK), Reason::Delivered, "by the slow path");
        assert_eq!(event(node, FlowEvent::Judged), judged + 1);
    });
}

#[test]
#[ignore = "needs root: loads programs in a namespace of its own"]
fn a_flow_whose_set_is_crowded_is_found_in_its_other_one() {
    // 16 sets, which have 128 entries.
    let small = |options| Options { flows: 64, ..options };
    on_node_with(small, |node| {
        let [first, _] = Sides::of(node);
        let from_port = |port| first.with_client_port(port);
        // Seven entries a set, were they spread evenly.
        let ports = 40_000..40_056;
        ports.clone().for_each(|port| from_port(port).open());
        let ways = node.maps.flow_ways.values().unwrap();
        let overflowed = |word: &u64| word >> 8 & 0x0001_0001_0001_0001 != 0;
        assert!(ways.iter().any(overflowed), "one of them went to its second set");
        let full = event(node, FlowEvent::TableFull);
        assert_eq!(confirmed(node).len() + 2 * pending(node).len(), 112, "none is there twice");
        assert!(pending(node).len() as u64 == full && full < 28, "{full} find no room");
        let judged = event(node, FlowEvent::Judged);
        for port in ports {
            assert_eq!(from_port(port).client_sends(ACK), Reason::Delivered);
            assert_eq!(from_port(port).server_sends(ACK), Reason::Delivered);
        }
        // Each packet of those without a place, and no other.
        assert_eq!(event(node, FlowEvent::Judged), judged + 2 * full);
    });
}

#[test]
#[ignore = "needs root: loads programs in a namespace of its own"]
fn of_flows_that_wait_the_idlest_makes_room() {
    // One set, which has eight entries.
    let small = |options| Options { pending: 2, ..options };
    on_node_with(small, |node| {
        let [first, _] = Sides::of(node);
        let syn_from = |port| {
            assert_eq!(first.with_client_port(port).client_sends(SYN), Reason::Delivered);
            node.datapath.tick(1).unwrap();
        };
        let waiting = || {
            let entries = node.maps.pending().entries();
            entries.iter().map(|(key, _)| key.local_port.get()).collect::<BTreeSet<_>>()
        };
        (40_000..40_008).for_each(syn_from);
        assert_eq!(waiting(), (40_000..40_008).collect());
        // Its second packet: another is the idlest now.
        syn_from(40_000);
        assert_eq!((waiting().len(), event(node, FlowEvent::Evicted)), (8, 0));
        syn_from(40_008);
        assert_eq!(event(node, FlowEvent::Evicted), 1);
        let left: BTreeSet<_> = (40_000..40_009).filter(|port| *port != 40_001).collect();
        assert_eq!(waiting(), left);
    });
}

#[test]
#[ignore = "needs root: loads programs in a namespace of its own"]
fn flows_are_seen_by_their_own_clock() {
    on_node(|node| {
        let [sides, _] = Sides::of(node);
        node.datapath.tick(7).unwrap();
        sides.open();
        node.datapath.tick(5).unwrap();
        sides.server_sends(ACK);
        let flows = confirmed(node);
        let mut times: Vec<_> = flows.iter().map(|flow| (flow.created, flow.seen)).collect();
        times.sort_unstable();
        assert_eq!(times, [(7, 7), (7, 12)]);
    });
}
