use std::net::IpAddr;

use podwire_abi::Protocol;
use podwire_policy::{Direction, Packet, Peer, Ports, Rule};
use proptest::prelude::*;

use super::*;

const SIZES: Sizes = Sizes { rows: 400, rules: 300 };

/// The maps, and two endpoints' slots.
#[derive(Debug)]
struct Maps {
    rows: HashMap<PolicyKey, PolicyRow>,
    rules: Vec<PortRule>,
    slots: [PolicyRef; 2],
}

impl Maps {
    fn write(&mut self, writes: &Writes) {
        for &(place, rule) in &writes.rules {
            self.rules[place as usize] = rule;
        }
        self.rows.extend(writes.rows.iter().copied());
    }

    /// What the kernel programs do.
    fn verdict(&self, policy: &PolicyRef, cidr: u32, packet: &Packet) -> Action {
        if policy.flags() == 0 {
            return Action::Allow;
        }
        let has = |flag| policy.has(flag);
        let by_identity = has(policy_flag::IDENTITIES)
            .then(|| self.rows.get(&PolicyKey::identity(policy.policy(), packet.identity)))
            .flatten();
        let others = has(policy_flag::OTHERS)
            .then(|| self.rows.get(&PolicyKey::others(policy.policy())))
            .flatten();
        let by_identity = by_identity.or(others).copied();
        let by_cidr = (has(policy_flag::CIDRS) && cidr != 0)
            .then(|| self.rows.get(&PolicyKey::cidr(policy.policy(), cidr)).copied())
            .flatten();
        let place = PortRule::place(Protocol(packet.protocol), packet.port);
        let said = [by_identity, by_cidr].map(|row| {
            let row = row?;
            let rules = &self.rules[row.first as usize..(row.first + row.count) as usize];
            let rule = rules.iter().find(|one| one.first <= place && place <= one.last_place())?;
            Some(rule.denies())
        });
        if said.contains(&Some(true)) {
            Action::Deny
        } else if said.contains(&Some(false)) || !has(policy_flag::DENY_BY_DEFAULT) {
            Action::Allow
        } else {
            Action::Deny
        }
    }
}

fn direction() -> impl Strategy<Value = Direction> {
    let action = prop_oneof![Just(Action::Allow), Just(Action::Deny)];
    let cidr = prop_oneof![
        Just("0.0.0.0/0"),
        Just("10.0.0.0/8"),
        Just("10.1.0.0/16"),
        Just("10.1.1.0/24"),
        Just("10.1.1.1/32"),
        Just("fd00::/16"),
        Just("fd00::1/128"),
    ];
    let peer = prop_oneof![
        Just(Peer::Everybody),
        (1..4_u32).prop_map(Peer::Identity),
        cidr.prop_map(|cidr| Peer::Cidr(cidr.parse().unwrap())),
    ];
    let ports = prop_oneof![
        Just(Ports::ANY),
        (0..3_u16, 0..3_u16).prop_map(|(a, b)| Ports { first: a.min(b), last: a.max(b) }),
    ];
    let rule = (action.clone(), peer, ports).prop_map(|(action, peer, ports)| Rule {
        action,
        peer,
        protocol: podwire_policy::Protocol::Tcp,
        ports,
    });
    (action, prop::collection::vec(rule, 0..6))
        .prop_map(|(default, rules)| Direction { default, rules })
}

fn packets() -> impl Iterator<Item = Packet> {
    let peers = ["9.0.0.1", "10.0.0.1", "10.1.0.1", "10.1.1.1", "10.1.1.2", "fd00::1", "fd00::2"];
    peers.into_iter().flat_map(|peer| {
        let peer: IpAddr = peer.parse().unwrap();
        (1..5).flat_map(move |identity| {
            (0..4).map(move |port| Packet { identity, peer, protocol: 6, port })
        })
    })
}

fn label(book: &Book, peer: IpAddr) -> u32 {
    book.cidr_of(peer.into())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn every_endpoint_is_judged_by_its_own_rules_whatever_the_others_have(
        steps in prop::collection::vec((0..2_usize, direction(), any::<bool>()), 1..12)
    ) {
        let mut book = Book::new(SIZES);
        let mut maps = Maps {
            rows: HashMap::new(),
            rules: vec![PortRule::default(); 300],
            slots: [PolicyRef::default(); 2],
        };
        let mut stated = [Direction::default(), Direction::default()];
        for (slot, direction, tidies) in steps {
            let rows = Rows::compile(&direction).unwrap();
            let mut between = book.clone();
            let writes = between.take_up(&rows, &Rows::default()).unwrap();
            let mut after = between.clone();
            after.leave([maps.slots[slot], PolicyRef::default()]);
            maps.write(&writes);
            // At every moment everything is as it was or as it will be: first some labels are those of before
            // and some those of between, then the reference is written, then labels are those of after.
            for packet in packets() {
                let labels = [&book, &between, &after].map(|book| label(book, packet.peer));
                for (number, policy) in maps.slots.iter().enumerate() {
                    for cidr in if number == slot { &labels[..2] } else { &labels[..] } {
                        let is = maps.verdict(policy, *cidr, &packet);
                        prop_assert_eq!(is, stated[number].verdict(&packet), "{:?}", packet);
                    }
                }
                for cidr in &labels[1..] {
                    let is = maps.verdict(&writes.ingress, *cidr, &packet);
                    prop_assert_eq!(is, direction.verdict(&packet), "{:?}", packet);
                }
            }
            maps.slots[slot] = writes.ingress;
            stated[slot] = direction;
            book = after;
            if tidies {
                let retired = book.take_retired();
                for key in &retired.keys {
                    prop_assert!(maps.rows.remove(key).is_some(), "{key:?} removed twice");
                }
                book.forget(&retired);
                prop_assert_eq!(maps.rows.len(), book.rows);
            }
            // A later agent finds the same.
            let cidrs = book.cidrs.iter().map(|(cidr, known)| (known.number, *cidr)).collect();
            let found = Found {
                references: maps.slots.to_vec(),
                rows: maps.rows.clone().into_iter().collect(),
                rules: maps.rules.clone(),
                cidrs,
            };
            let (later, mend) = Book::restored(SIZES, &found).unwrap();
            prop_assert_eq!(mend.writes, Writes::default());
            prop_assert_eq!(mend.surplus.len(), book.retired.keys.len());
            let mut known: Vec<_> = later.cidrs.iter().collect();
            let mut expected: Vec<_> = book.cidrs.iter().collect();
            known.sort_by_key(|(cidr, _)| **cidr);
            expected.sort_by_key(|(cidr, _)| **cidr);
            prop_assert_eq!(known, expected);
            for policy in maps.slots.iter().filter(|policy| policy.flags() != 0) {
                prop_assert_eq!(later.rows_of(policy), book.rows_of(policy));
            }
        }
        book.leave(maps.slots);
        let retired = book.take_retired();
        book.forget(&retired);
        prop_assert_eq!((book.rows, book.arena.free()), (0, 300));
        prop_assert!(book.cidrs.is_empty() && book.policies.is_empty() && book.by_rows.is_empty());
    }
}

fn allowing(identities: std::ops::Range<u32>) -> Rows {
    let rule = |identity: u32| Rule {
        action: Action::Allow,
        peer: Peer::Identity(identity),
        protocol: podwire_policy::Protocol::Tcp,
        ports: Ports { first: u16::try_from(identity).unwrap(), last: u16::MAX },
    };
    let direction = Direction { default: Action::Deny, rules: identities.map(rule).collect() };
    Rows::compile(&direction).unwrap()
}

#[test]
fn equal_policies_are_one() {
    let mut book = Book::new(SIZES);
    let first = book.take_up(&allowing(1..9), &Rows::default()).unwrap();
    let second = book.take_up(&allowing(1..9), &allowing(1..9)).unwrap();
    assert_eq!(first.rows.len(), 8);
    assert_eq!((second.rows.len(), second.rules.len()), (0, 0));
    assert_eq!([second.ingress, second.egress], [first.ingress; 2]);
}

#[test]
fn a_full_map_is_named() {
    let mut book = Book::new(SIZES);
    let full = book.clone().take_up(&allowing(1..500), &Rows::default());
    assert_eq!(full, Err(Full { map: map::POLICY_RULES, size: 300 }));
    let sizes = Sizes { rows: 100, rules: 300 };
    let full = Book::new(sizes).take_up(&allowing(1..102), &Rows::default());
    assert_eq!(full, Err(Full { map: map::POLICY, size: 100 }));
    assert!(book.take_up(&allowing(1..101), &Rows::default()).is_ok());
}
