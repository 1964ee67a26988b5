//! Compiled rows judge every packet as the rules they were made of.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use podwire_policy::{
    Action, Direction, Packet, Peer, Policy, PortRule, Ports, Protocol, Rows, Rule,
};
use proptest::prelude::*;

fn action() -> impl Strategy<Value = Action> {
    prop_oneof![Just(Action::Allow), Just(Action::Deny)]
}

/// Few, so that they nest and meet.
fn cidr() -> impl Strategy<Value = IpNetwork> {
    let v4 =
        (0..4_u8, 0..4_u8, prop_oneof![Just(0), Just(8), Just(16), Just(24), Just(31), Just(32)]);
    let v4 = v4.prop_map(|(a, b, length)| (IpAddr::from([10, a, 0, b]), length));
    let v6 = (0..3_u16, 0..3_u16, prop_oneof![Just(0), Just(16), Just(48), Just(127), Just(128)]);
    let v6 = v6.prop_map(|(a, b, length)| (IpAddr::from([0xfd00, 0, a, 0, 0, 0, 0, b]), length));
    prop_oneof![v4, v6].prop_map(|(address, length)| {
        let wide = IpNetwork::new(address, length).unwrap();
        IpNetwork::new(wide.network(), length).unwrap()
    })
}

fn peer() -> impl Strategy<Value = Peer> {
    prop_oneof![
        Just(Peer::Everybody),
        (1..5_u32).prop_map(Peer::Identity),
        cidr().prop_map(Peer::Cidr),
    ]
}

fn rule() -> impl Strategy<Value = Rule> {
    let port = prop_oneof![0..6_u16, 65530..=u16::MAX];
    let ports = prop_oneof![
        Just(Ports::ANY),
        (port.clone(), port).prop_map(|(a, b)| Ports { first: a.min(b), last: a.max(b) }),
    ];
    let protocol = prop_oneof![
        Just(Protocol::Any),
        Just(Protocol::Tcp),
        Just(Protocol::Udp),
        Just(Protocol::Sctp),
        Just(Protocol::Icmp),
        prop_oneof![Just(0), Just(5), Just(7), Just(17), Just(255)].prop_map(Protocol::Number),
    ];
    (action(), peer(), protocol, ports).prop_map(|(action, peer, protocol, ports)| {
        let without = matches!(protocol, Protocol::Icmp | Protocol::Number(0 | 5 | 7 | 255));
        Rule { action, peer, protocol, ports: if without { Ports::ANY } else { ports } }
    })
}

fn direction() -> impl Strategy<Value = Direction> {
    (action(), prop::collection::vec(rule(), 0..12))
        .prop_map(|(default, rules)| Direction { default, rules })
}

const PROTOCOLS: [u8; 9] = [0, 1, 5, 6, 7, 17, 58, 132, 255];

fn peers() -> Vec<IpAddr> {
    let v4 = (0..4).flat_map(|a| (0..4).map(move |b| IpAddr::from([10, a, 0, b])));
    let v6 = (0..3).flat_map(|a| (0..3).map(move |b| IpAddr::from([0xfd00, 0, a, 0, 0, 0, 0, b])));
    v4.chain(v6)
        .chain([IpAddr::from([9, 9, 9, 9]), IpAddr::from([0xfe00, 0, 0, 0, 0, 0, 0, 1])])
        .collect()
}

fn well_formed(row: &[PortRule]) -> bool {
    let apart = row.windows(2).all(|pair| {
        let [a, b] = pair else { return true };
        let gap = a.last_place() + 1;
        gap < b.first || gap == b.first && a.denies() != b.denies()
    });
    apart
        && row.iter().all(|rule| rule.first <= rule.last_place())
        && row.len() <= PortRule::MOST as usize
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn rows_judge_as_the_rules(direction in direction()) {
        let policy = Policy { ingress: direction.clone(), ..Policy::default() };
        policy.validate().unwrap();
        let rows = Rows::compile(&direction).unwrap();
        let all = rows.identities.values().chain(rows.cidrs.values()).chain([&rows.others]);
        for row in all {
            prop_assert!(well_formed(row), "{row:?}");
        }
        for peer in peers() {
            for identity in 1..6 {
                for protocol in PROTOCOLS {
                    for port in [0, 1, 2, 3, 4, 5, 6, 65529, 65530, 65533, 65535] {
                        let packet = Packet { identity, peer, protocol, port };
                        prop_assert_eq!(rows.verdict(&packet), direction.verdict(&packet), "{:?}", packet);
                    }
                }
            }
        }
    }

    #[test]
    fn rows_say_of_which_rules_they_can_be_made(direction in direction()) {
        let rows = Rows::compile(&direction).unwrap();
        let said = rows.to_direction();
        let policy = Policy { ingress: said.clone(), ..Policy::default() };
        policy.validate().unwrap();
        prop_assert_eq!(Rows::compile(&said).unwrap(), rows);
    }

    #[test]
    fn json_says_the_same(direction in direction()) {
        let json = serde_json::to_string(&direction).unwrap();
        prop_assert_eq!(serde_json::from_str::<Direction>(&json).unwrap(), direction);
    }

    #[test]
    fn parsing_never_panics(text in ".{0,40}") {
        let _ = (text.parse::<Peer>(), text.parse::<Protocol>(), text.parse::<Ports>());
    }
}
