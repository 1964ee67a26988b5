//! Policies, under `BPF_PROG_TEST_RUN`: their maps are written here as user space writes them.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod node;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use node::{ACK, HOST_MAC, Marks, Node, Pod, ROUTER4, ROUTER6, SYN, icmp_error, on_node, tcp, udp};
use podwire_datapath::{
    EndpointConfig, Interface,
    abi::{
        Address, IpcacheEntry, PolicyKey, PolicyRef, PolicyRow, PortRule, Protocol, Reason,
        identity, policy_flag,
    },
};
use podwire_lab::probe::frame::Link;

const STACK: Link = Link { from: HOST_MAC, to: HOST_MAC };
const DENY_ALL: PolicyRef = PolicyRef::new(1, policy_flag::DENY_BY_DEFAULT);

/// Which way a policy is asked.
#[derive(Clone, Copy)]
enum For {
    Egress,
    Ingress,
}

fn place(node: &Node, pod: &Pod) -> u32 {
    node.maps.links.get(&pod.ifindex).unwrap().unwrap()
}

fn set(node: &Node, pod: &Pod, way: For, policy: PolicyRef) {
    let place = place(node, pod);
    let marks = Marks { slots: vec![place], ..Marks::default() };
    node.maps.change(&marks, |maps| {
        maps.edit_slot(place, |slot| match way {
            For::Egress => slot.egress = policy,
            For::Ingress => slot.ingress = policy,
        });
    });
}

/// Rules from that place on.
fn rules(node: &Node, first: u32, rules: &[PortRule]) -> PolicyRow {
    for (place, rule) in (first..).zip(rules) {
        node.maps.policy_rules.set(place, rule).unwrap();
    }
    PolicyRow { first, count: u32::try_from(rules.len()).unwrap() }
}

fn range(protocol: Protocol, first: u16, last: u16) -> PortRule {
    PortRule { first: PortRule::place(protocol, first), last: PortRule::place(protocol, last) }
}

fn deny(rule: PortRule) -> PortRule {
    PortRule { last: rule.last | PortRule::DENY, ..rule }
}

fn know(node: &Node, address: IpAddr, identity: u32, cidr: u32) {
    let address = Address::from(address);
    let entry = IpcacheEntry { identity, slot: IpcacheEntry::NO_SLOT, generation: 0, cidr };
    let marks = Marks { addresses: vec![address], ..Marks::default() };
    node.maps.change(&marks, |maps| maps.ipcache.insert(&address, &entry).unwrap());
}

#[test]
#[ignore = "needs root: loads programs in a namespace of its own"]
fn a_denied_packet_leaves_nothing() {
    on_node(|node| {
        let (a, b) = (node.a, node.b);
        for (pod_a, pod_b) in a.both().into_iter().zip(b.both()) {
            let syn = tcp(a.to_gateway(), (pod_a, 40000), (pod_b, 80), SYN);
            for (pod, way, reason) in
                [(&a, For::Egress, Reason::EgressDenied), (&b, For::Ingress, Reason::IngressDenied)]
            {
                set(node, pod, way, DENY_ALL);
                for frame in [&syn, &udp(&a, pod_a, pod_b)] {
                    let judged = node.pod_sends(&a, frame);
                    assert_eq!(judged.reason, reason);
                    assert_eq!(judged.frame, *frame);
                }
                set(node, pod, way, PolicyRef::default());
            }
            assert_eq!(node.maps.pending().entries(), []);
            assert_eq!(node.pod_sends(&a, &syn).reason, Reason::Delivered);
            node.maps.pending().clear();
        }
    });
}

#[test]
#[ignore = "needs root: loads programs in a namespace of its own"]
fn the_senders_policy_is_asked_first() {
    on_node(|node| {
        let (a, b) = (node.a, node.b);
        set(node, &a, For::Egress, DENY_ALL);
        set(node, &b, For::Ingress, DENY_ALL);
        let question = udp(&a, a.v4.into(), b.v4.into());
        assert_eq!(node.pod_sends(&a, &question).reason, Reason::EgressDenied);
        // The same packet as the stack hands it to b.
        let (from, to) = (SocketAddr::new(a.v4.into(), 1), SocketAddr::new(b.v4.into(), 2));
        assert_eq!(node.stack_sends(&STACK.udp(from, to, b"")).reason, Reason::EgressDenied);
        set(node, &a, For::Egress, PolicyRef::default());
        assert_eq!(node.stack_sends(&STACK.udp(from, to, b"")).reason, Reason::IngressDenied);
        let link = Link { from: b.host_mac, to: b.mac };
        let passing = link.udp(from, to, b"");
        assert_eq!(node.link_sends(&b, &passing, 0).reason, Reason::IngressDenied);
    });
}

#[test]
#[ignore = "needs root: loads programs in a namespace of its own"]
fn answers_need_no_permission_of_their_own() {
    on_node(|node| {
        let (a, b) = (node.a, node.b);
        set(node, &a, For::Ingress, DENY_ALL);
        set(node, &b, For::Egress, DENY_ALL);
        for (pod_a, pod_b) in a.both().into_iter().zip(b.both()) {
            let (client, server) = ((pod_a, 40000), (pod_b, 80));
            let opened = tcp(b.to_gateway(), server, client, SYN);
            assert_eq!(node.pod_sends(&b, &opened).reason, Reason::EgressDenied);
            let answer =
                |flags| node.pod_sends(&b, &tcp(b.to_gateway(), server, client, flags)).reason;
            assert_eq!(answer(SYN | ACK), Reason::EgressDenied, "to nothing");
            let ask =
                |flags| node.pod_sends(&a, &tcp(a.to_gateway(), client, server, flags)).reason;
            assert_eq!(ask(SYN), Reason::Delivered);
            // An error about what is asked is an answer as well, confirmed or not.
            let error = icmp_error(&b, &tcp(a.to_gateway(), client, server, SYN), pod_a);
            assert_eq!(node.pod_sends(&b, &error).reason, Reason::Delivered);
            assert_eq!(answer(SYN | ACK), Reason::Delivered);
            assert_eq!(ask(ACK), Reason::Delivered);
            assert_eq!(answer(ACK), Reason::Delivered);
            assert_eq!(node.pod_sends(&b, &error).reason, Reason::Delivered);
            let other = icmp_error(&b, &tcp(a.to_gateway(), (pod_a, 1), server, SYN), pod_a);
            assert_eq!(node.pod_sends(&b, &other).reason, Reason::EgressDenied);
            // What answers is asked about again in the direction that began.
            set(node, &a, For::Egress, DENY_ALL);
            assert_eq!(answer(ACK), Reason::EgressDenied);
            assert_eq!(ask(ACK), Reason::EgressDenied);
            set(node, &a, For::Egress, PolicyRef::default());
            assert_eq!(answer(ACK), Reason::Delivered);
        }
    });
}

#[test]
#[ignore = "needs root: loads programs in a namespace of its own"]
fn rules_are_found_by_identity_or_for_everybody_and_by_prefix() {
    on_node(|node| {
        let (a, b) = (node.a, node.b);
        let far: IpAddr = Ipv4Addr::new(192, 0, 2, 1).into();
        let web = rules(node, 0, &[range(Protocol::TCP, 80, 80)]);
        let most = rules(
            node,
            10,
            &[
                range(Protocol::TCP, 0, 79),
                deny(range(Protocol::TCP, 80, 89)),
                range(Protocol::TCP, 90, u16::MAX),
                range(Protocol::UDP, 53, 53),
            ],
        );
        let nothing = rules(node, 20, &[]);
        let without_web = rules(node, 30, &[deny(range(Protocol::TCP, 80, 80))]);
        let to = |address: IpAddr, port: u16| {
            let frame = tcp(a.to_gateway(), (a.v4.into(), 40000), (address, port), SYN);
            !node.pod_sends(&a, &frame).reason.is_drop()
        };
        let use_rules = |flags: u32, others: PolicyRow| {
            node.maps.policy.insert(&PolicyKey::others(5), &others).unwrap();
            set(node, &a, For::Egress, PolicyRef::new(5, flags));
        };
        let insert = |key: PolicyKey, row: PolicyRow| node.maps.policy.insert(&key, &row).unwrap();
        let closed = policy_flag::DENY_BY_DEFAULT;

        // Everybody.
        use_rules(closed | policy_flag::OTHERS, web);
        assert_eq!([80, 81].map(|port| to(far, port)), [true, false]);
        assert_eq!([80, 81].map(|port| to(b.v4.into(), port)), [true, false]);
        use_rules(closed | policy_flag::OTHERS, most);
        let ports = [0, 79, 80, 85, 89, 90, u16::MAX];
        let expected = [true, true, false, false, false, true, true];
        assert_eq!(ports.map(|port| to(far, port)), expected);
        use_rules(policy_flag::OTHERS, without_web);
        assert_eq!([80, 81].map(|port| to(far, port)), [false, true], "open by default");

        // By identity: its row stands for everybody's.
        insert(PolicyKey::identity(5, identity::UNMANAGED), web);
        insert(PolicyKey::identity(5, 100), nothing);
        use_rules(closed | policy_flag::OTHERS | policy_flag::IDENTITIES, most);
        assert_eq!([80, 79].map(|port| to(b.v4.into(), port)), [true, false]);
        assert_eq!([80, 79].map(|port| to(far, port)), [false, true], "not listed: everybody's");
        know(node, far, 100, 0);
        assert_eq!([80, 79].map(|port| to(far, port)), [false, false], "listed, and empty");

        // By prefix, besides.
        insert(PolicyKey::cidr(5, 9), web);
        know(node, far, 100, 9);
        assert!(!to(far, 80), "there are no rows for prefixes");
        use_rules(closed | policy_flag::IDENTITIES | policy_flag::CIDRS, nothing);
        assert_eq!([80, 79].map(|port| to(far, port)), [true, false]);
        insert(PolicyKey::cidr(5, 9), without_web);
        insert(PolicyKey::identity(5, 100), web);
        use_rules(closed | policy_flag::IDENTITIES | policy_flag::CIDRS, nothing);
        assert!(!to(far, 80), "a denial counts before a permission");
    });
}

#[test]
#[ignore = "needs root: loads programs in a namespace of its own"]
fn a_row_may_be_long() {
    on_node(|node| {
        let (a, b) = (node.a, node.b);
        let many: Vec<_> =
            (0..4096_u16).map(|n| range(Protocol::TCP, n * 16, n * 16 + n % 15)).collect();
        let row = rules(node, 0, &many);
        let flags = policy_flag::DENY_BY_DEFAULT | policy_flag::OTHERS;
        node.maps.policy.insert(&PolicyKey::others(1), &row).unwrap();
        set(node, &a, For::Egress, PolicyRef::new(1, flags));
        for port in (0..=u16::MAX).step_by(7) {
            let frame = tcp(a.to_gateway(), (a.v4.into(), 1), (b.v4.into(), port), SYN);
            let (number, offset) = (port / 16, port % 16);
            let expected =
                if offset <= number % 15 { Reason::Delivered } else { Reason::EgressDenied };
            assert_eq!(node.pod_sends(&a, &frame).reason, expected, "port {port}");
        }
    });
}

#[test]
#[ignore = "needs root: loads programs in a namespace of its own"]
fn prefixes_tell_who_is_behind_what_has_no_entry_of_its_own() {
    on_node(|node| {
        let a = node.a;
        let web = rules(node, 0, &[range(Protocol::TCP, 80, 80)]);
        node.maps.policy.insert(&PolicyKey::identity(1, 200), &web).unwrap();
        let flags = policy_flag::DENY_BY_DEFAULT | policy_flag::IDENTITIES;
        set(node, &a, For::Egress, PolicyRef::new(1, flags));
        let to = |address: &str| {
            let address: IpAddr = address.parse().unwrap();
            let from = a.address(address);
            let frame = tcp(a.to_gateway(), (from, 40000), (address, 80), SYN);
            node.pod_sends(&a, &frame).reason
        };
        node.datapath
            .set_identities(&[
                ("192.0.2.0/24".parse().unwrap(), 200),
                ("192.0.2.128/25".parse().unwrap(), 201),
                ("192.0.2.200/32".parse().unwrap(), 200),
                ("2001:db8::/32".parse().unwrap(), 200),
            ])
            .unwrap();
        for (address, expected) in [
            ("192.0.2.1", Reason::ToStack),
            ("192.0.2.129", Reason::EgressDenied),
            ("192.0.2.200", Reason::ToStack),
            ("192.0.3.1", Reason::EgressDenied),
            ("2001:db8::9", Reason::ToStack),
            ("2001:db9::9", Reason::EgressDenied),
        ] {
            assert_eq!(to(address), expected, "{address}");
        }
        node.datapath.forget_identity("192.0.2.200/32".parse().unwrap()).unwrap();
        assert_eq!(to("192.0.2.200"), Reason::EgressDenied);
    });
}

#[test]
#[ignore = "needs root: loads programs in a namespace of its own"]
fn the_node_reaches_its_pods_always() {
    on_node(|node| {
        let b = node.b;
        set(node, &b, For::Ingress, DENY_ALL);
        set(node, &b, For::Egress, DENY_ALL);
        let hosts: [IpAddr; 2] = [ROUTER4.into(), ROUTER6.into()];
        let others: [IpAddr; 2] = ["192.0.2.1".parse().unwrap(), "2001:db8::1".parse().unwrap()];
        for ((host, pod), other) in hosts.into_iter().zip(b.both()).zip(others) {
            let (client, server) = ((host, 40000), (pod, 80));
            assert_eq!(
                node.stack_sends(&tcp(STACK, client, server, SYN)).reason,
                Reason::Delivered
            );
            let answer = tcp(b.to_gateway(), server, client, SYN | ACK);
            assert_eq!(node.pod_sends(&b, &answer).reason, Reason::ToStack);
            let own = tcp(b.to_gateway(), (pod, 81), client, SYN);
            assert_eq!(node.pod_sends(&b, &own).reason, Reason::EgressDenied);
            let strangers = tcp(STACK, (other, 1), server, SYN);
            assert_eq!(node.stack_sends(&strangers).reason, Reason::IngressDenied);
        }
    });
}

#[test]
#[ignore = "needs root: loads programs in a namespace of its own"]
fn a_pod_hears_of_what_it_sent_from_whomever() {
    on_node(|node| {
        let a = node.a;
        set(node, &a, For::Ingress, DENY_ALL);
        let far: IpAddr = Ipv4Addr::new(192, 0, 2, 1).into();
        let router: IpAddr = Ipv4Addr::new(198, 51, 100, 7).into();
        let sent = tcp(a.to_gateway(), (a.v4.into(), 40000), (far, 80), SYN);
        let error = |quoted: &[u8]| {
            STACK.icmp(router, a.v4.into(), [&[3, 4, 0, 0, 0, 0, 5, 0][..], &quoted[14..]].concat())
        };
        assert_eq!(node.stack_sends(&error(&sent)).reason, Reason::IngressDenied, "not sent yet");
        assert_eq!(node.pod_sends(&a, &sent).reason, Reason::ToStack);
        assert_eq!(node.stack_sends(&error(&sent)).reason, Reason::Delivered);
        let not_sent = tcp(a.to_gateway(), (a.v4.into(), 40001), (far, 80), SYN);
        assert_eq!(node.stack_sends(&error(&not_sent)).reason, Reason::IngressDenied);
    });
}

#[test]
#[ignore = "needs root: loads programs in a namespace of its own"]
fn an_adopted_pods_policy_is_its_own_plugins_affair() {
    on_node(|node| {
        let (a, b) = (node.a, node.b);
        let adopted = EndpointConfig { interface: Interface::Adopted, ..Node::config("pwb", &b) };
        node.datapath.add_endpoint(&adopted).unwrap();
        set(node, &b, For::Ingress, DENY_ALL);
        let question = udp(&a, a.v4.into(), b.v4.into());
        assert_eq!(node.pod_sends(&a, &question).reason, Reason::ToStack);
    });
}
