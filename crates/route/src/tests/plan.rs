use super::*;
use crate::LinkState;
use podwire_netlink::wire::{HEADER_LEN, MessageBuilder};
use podwire_netlink::{
    Family, Link, MacAddr, Mark, NeighbourFlags, NeighbourState, NextHop, OnLink, RouteKind, Rule,
    Scope, TableId,
};
use proptest::prelude::*;
use std::net::IpAddr;

const OURS: RouteProtocol = RouteProtocol(80);
const THEIRS: RouteProtocol = RouteProtocol(4);
const MAC: MacAddr = MacAddr::new([2, 0, 0, 0, 0, 9]);

fn index(number: u32) -> IfIndex {
    IfIndex::new(number).unwrap()
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn net(text: &str) -> IpNetwork {
    text.parse().unwrap()
}

fn owner() -> Owner {
    Owner::new(OURS).with_link(index(3))
}

/// As the kernel tells of links: there is no other way to make one.
fn link(number: u32, flags: u32) -> Link {
    let mut buffer = Vec::new();
    let mut message = MessageBuilder::new(&mut buffer, 16, 0, 0);
    let mut fixed = [0; 16];
    fixed[4..8].copy_from_slice(&number.to_ne_bytes());
    fixed[8..12].copy_from_slice(&flags.to_ne_bytes());
    message.fixed(&fixed);
    message.attr_str(3, b"eth0");
    message.attr_u32(4, 1500);
    message.finish().unwrap();
    Link::parse(&buffer[HEADER_LEN..]).unwrap()
}

/// What the changes would leave, with the kernel's ways as far as they matter here.
fn simulate(observed: &Observed, changes: &[Change]) -> Observed {
    let mut after = observed.clone();
    for change in changes {
        match change {
            Change::Link(_) => {}
            Change::AddAddress(address) => after.addresses.push(address.clone()),
            Change::ReplaceAddress(address) => {
                let key = AddressKey::of(address);
                after.addresses.retain(|found| AddressKey::of(found) != key);
                after.addresses.push(address.clone());
            }
            Change::RemoveAddress(address) => {
                after.addresses.retain(|found| found != address);
                if address.network.is_ipv4() && !address.flags.contains(AddressFlags::SECONDARY) {
                    after.addresses.retain(|found| {
                        found.index != address.index
                            || masked(found.network) != masked(address.network)
                            || !found.flags.contains(AddressFlags::SECONDARY)
                    });
                }
                // Worse than the kernel: all of ours on that link.
                after.routes.retain(|route| {
                    route.protocol != OURS
                        || route.preferred_source.is_none()
                            && route.output.is_some_and(|output| output != address.index)
                });
            }
            Change::ReplaceNeighbour(neighbour) => {
                after.neighbours.retain(|found| {
                    (found.index, found.address) != (neighbour.index, neighbour.address)
                });
                after.neighbours.push(neighbour.clone());
            }
            Change::RemoveNeighbour(neighbour) => {
                after.neighbours.retain(|found| found != neighbour);
            }
            Change::AddRoute(route) => {
                let key = RouteKey::of(route);
                assert!(!after.routes.iter().any(|found| RouteKey::of(found) == key), "{route:?}");
                after.routes.push(route.clone());
            }
            Change::ReplaceRoute(route) => {
                let key = RouteKey::of(route);
                match after.routes.iter_mut().find(|found| RouteKey::of(found) == key) {
                    Some(found) => *found = route.clone(),
                    None => after.routes.push(route.clone()),
                }
            }
            Change::RemoveRoute(route) => {
                if let Some(place) = after.routes.iter().position(|found| found == route) {
                    after.routes.remove(place);
                }
            }
            Change::AddRule(rule) => {
                if !after.rules.contains(rule) {
                    after.rules.push(rule.clone());
                }
            }
            Change::RemoveRule(rule) => {
                if let Some(place) = after.rules.iter().position(|found| found == rule) {
                    after.rules.remove(place);
                }
            }
        }
    }
    after
}

fn changes(desired: &Desired, observed: &Observed) -> Vec<Change> {
    let plan = plan(desired, observed, &owner());
    assert_eq!(plan.conflicts, []);
    plan.changes
}

#[test]
fn links_get_what_they_lack() {
    let desired = Desired {
        links: vec![LinkState::of(index(3)).up().mtu(1500), LinkState::of(index(4)).mtu(1400)],
        ..Desired::default()
    };
    let observed = Observed { links: vec![link(3, 0), link(4, 1)], ..Observed::default() };
    let planned = changes(&desired, &observed);
    let texts: Vec<_> = planned.iter().map(ToString::to_string).collect();
    assert_eq!(texts, ["change link 3", "change link 4"]);

    let desired = Desired { links: vec![LinkState::of(index(9))], ..Desired::default() };
    let missing = plan(&desired, &observed, &owner());
    assert_eq!(missing.conflicts, [Conflict::NoLink(index(9))]);
    let desired = Desired { links: vec![LinkState::of(index(4)).up()], ..Desired::default() };
    assert!(plan(&desired, &observed, &owner()).is_empty());
}

#[test]
fn a_route_is_added_changed_kept_and_removed() {
    let route = Route::new(net("10.8.0.0/16")).via(ip("10.7.0.1")).dev(index(3));
    let marked = route.clone().protocol(OURS);
    let desired = Desired { routes: vec![route.clone()], ..Desired::default() };
    let nothing = Observed::default();
    let planned = changes(&desired, &nothing);
    assert_eq!(planned, [Change::AddRoute(marked.clone())], "with the owner's mark");

    let there = simulate(&nothing, &planned);
    assert!(plan(&desired, &there, &owner()).is_empty());

    let wider = Desired { routes: vec![route.mtu(1400)], ..Desired::default() };
    let planned = changes(&wider, &there);
    assert_eq!(planned, [Change::ReplaceRoute(marked.clone().mtu(1400))]);
    let planned = changes(&Desired::default(), &there);
    assert_eq!(planned, [Change::RemoveRoute(marked)]);
}

#[test]
fn what_the_kernel_fills_in_is_no_difference() {
    let hop = |gateway, output| NextHop { gateway, output, weight: 1, on_link: OnLink::No };
    let mut two = Route::new(net("fd09::/64"));
    two.multipath = vec![hop(Some(ip("fd07::1")), None), hop(Some(ip("fd07::2")), Some(index(3)))];
    let mut two_found = two.clone().protocol(OURS).metric(1024);
    two_found.multipath[0].output = Some(index(3));
    two_found.multipath.reverse();
    let mut one = Route::new(net("10.9.0.0/16"));
    one.multipath = vec![NextHop { weight: 7, ..hop(Some(ip("10.7.0.1")), None) }];
    for (wanted, found) in [
        (
            Route::new(net("fd08::/64")).via(ip("fd07::1")),
            Route::new(net("fd08::/64")).via(ip("fd07::1")).dev(index(3)).metric(1024),
        ),
        (
            Route::new(net("10.8.0.0/16")).via(ip("10.7.0.1")),
            Route::new(net("10.8.0.0/16")).via(ip("10.7.0.1")).dev(index(3)),
        ),
        (
            Route::new(net("fd08::1/128")).kind(RouteKind::BLACKHOLE).metric(0),
            Route::new(net("fd08::1/128")).kind(RouteKind::BLACKHOLE).dev(index(1)).metric(1024),
        ),
        (
            Route::new(net("fd08::1/128")).dev(index(3)).scope(Scope::LINK),
            Route::new(net("fd08::1/128")).dev(index(3)).metric(1024),
        ),
        (two, two_found),
        (one, Route::new(net("10.9.0.0/16")).via(ip("10.7.0.1")).dev(index(3))),
    ] {
        let desired = Desired { routes: vec![wanted.clone()], ..Desired::default() };
        let observed = Observed { routes: vec![found.protocol(OURS)], ..Observed::default() };
        assert!(plan(&desired, &observed, &owner()).is_empty(), "{wanted:?}");
    }
}

#[test]
fn foreign_routes_are_neither_replaced_nor_removed() {
    let theirs = Route::new(net("10.8.0.0/16")).via(ip("10.7.0.9")).dev(index(3)).protocol(THEIRS);
    let observed = Observed { routes: vec![theirs.clone()], ..Observed::default() };
    assert!(plan(&Desired::default(), &observed, &owner()).is_empty());

    let wanted = Route::new(net("10.8.0.0/16")).via(ip("10.7.0.1")).dev(index(3));
    let desired = Desired { routes: vec![wanted.clone()], ..Desired::default() };
    let planned = plan(&desired, &observed, &owner());
    assert_eq!(planned.changes, []);
    let conflict =
        Conflict::Route { wanted: wanted.clone().protocol(OURS).into(), found: theirs.into() };
    assert_eq!(planned.conflicts, [conflict]);
    assert!(planned.conflicts[0].to_string().contains("protocol 4 has route 10.8.0.0/16"));

    // Another metric is another route.
    let desired = Desired { routes: vec![wanted.metric(5)], ..Desired::default() };
    assert_eq!(changes(&desired, &observed).len(), 1);
}

#[test]
fn two_wishes_for_one_route_are_told() {
    let one = Route::new(net("10.8.0.0/16")).via(ip("10.7.0.1")).dev(index(3));
    let other = Route::new(net("10.8.0.0/16")).via(ip("10.7.0.2")).dev(index(3));
    let desired = Desired { routes: vec![one.clone(), one.clone()], ..Desired::default() };
    assert_eq!(changes(&desired, &Observed::default()).len(), 1);
    let desired = Desired { routes: vec![one, other], ..Desired::default() };
    let planned = plan(&desired, &Observed::default(), &owner());
    assert_eq!(planned.changes.len(), 1);
    assert!(matches!(planned.conflicts[..], [Conflict::RouteTwice { .. }]));
}

#[test]
fn gateways_are_reachable_when_they_are_named() {
    let gateway = Route::new(net("0.0.0.0/0")).via(ip("10.7.0.1")).dev(index(3));
    let link = Route::new(net("10.7.0.1/32")).dev(index(3));
    let desired = Desired { routes: vec![gateway, link], ..Desired::default() };
    let planned = changes(&desired, &Observed::default());
    let texts: Vec<_> = planned.iter().map(ToString::to_string).collect();
    let first = "add route 10.7.0.1/32 dev 3 table main";
    assert_eq!(texts, [first, "add route 0.0.0.0/0 via 10.7.0.1 dev 3 table main"]);

    let there = simulate(&Observed::default(), &planned);
    let texts: Vec<_> =
        changes(&Desired::default(), &there).iter().map(ToString::to_string).collect();
    assert_eq!(texts[1], first.replace("add", "remove"));
}

#[test]
fn addresses_of_owned_links_only_are_removed() {
    let on = |number, network| Address::new(index(number), net(network));
    let kernels = on(3, "fe80::1/64");
    let observed = Observed {
        addresses: vec![on(3, "10.0.0.1/32"), on(4, "10.0.0.2/32"), kernels, on(3, "fd00::1/128")],
        ..Observed::default()
    };
    let desired = Desired { addresses: vec![on(3, "fd00::1/128")], ..Desired::default() };
    assert_eq!(changes(&desired, &observed), [Change::RemoveAddress(on(3, "10.0.0.1/32"))]);
}

#[test]
fn an_address_that_cannot_be_changed_goes_and_comes_back() {
    let narrow = Address::new(index(3), net("fd00::1/128"));
    let wide = Address::new(index(3), net("fd00::1/64"));
    let mut failed = narrow.clone();
    failed.flags = AddressFlags(AddressFlags::NODAD.0 | AddressFlags::DADFAILED.0);
    let desired = Desired { addresses: vec![narrow.clone()], ..Desired::default() };
    for found in [wide.clone(), failed] {
        let observed = Observed { addresses: vec![found.clone()], ..Observed::default() };
        let expected = [Change::RemoveAddress(found), Change::AddAddress(narrow.clone())];
        assert_eq!(changes(&desired, &observed), expected);
    }
    let noprefix = narrow.clone().with_flags(AddressFlags::NOPREFIXROUTE);
    let observed = Observed { addresses: vec![noprefix], ..Observed::default() };
    assert_eq!(changes(&desired, &observed), [Change::ReplaceAddress(narrow.clone())]);

    // Not on a link of somebody else.
    let observed = Observed { addresses: vec![wide], ..Observed::default() };
    let planned = plan(&desired, &observed, &Owner::new(OURS));
    assert_eq!(planned.changes, []);
    assert!(matches!(planned.conflicts[..], [Conflict::Address { .. }]));
    assert!(planned.conflicts[0].to_string().contains("fd00::1/64"));
}

#[test]
fn what_goes_with_a_first_address_is_put_back() {
    let first = Address::new(index(3), net("10.0.0.1/24"));
    let kept = Address::new(index(3), net("10.0.0.2/24"));
    let second = kept.clone().with_flags(AddressFlags::SECONDARY);
    let route = Route::new(net("10.9.0.0/16")).via(ip("10.0.0.3")).dev(index(3)).protocol(OURS);
    let observed = Observed {
        addresses: vec![first.clone(), second],
        routes: vec![route.clone()],
        ..Observed::default()
    };
    let desired = Desired {
        addresses: vec![kept.clone()],
        routes: vec![route.clone()],
        ..Desired::default()
    };
    let planned = changes(&desired, &observed);
    let expected =
        [Change::RemoveAddress(first), Change::ReplaceAddress(kept), Change::ReplaceRoute(route)];
    assert_eq!(planned, expected);
    assert!(plan(&desired, &simulate(&observed, &planned), &owner()).is_empty());
}

#[test]
fn rules_of_others_count_and_stay() {
    let rule = Rule::lookup(Family::V4, 100, TableId(1000));
    let theirs = rule.clone().protocol(THEIRS);
    let observed = Observed { rules: vec![theirs], ..Observed::default() };
    let desired = Desired { rules: vec![rule.clone()], ..Desired::default() };
    assert!(plan(&desired, &observed, &owner()).is_empty());
    assert!(plan(&Desired::default(), &observed, &owner()).is_empty());

    let ours = rule.clone().protocol(OURS);
    let twice = Observed { rules: vec![ours.clone(), ours.clone()], ..Observed::default() };
    let planned = changes(&desired, &twice);
    assert_eq!(planned[0], Change::RemoveRule(ours.clone()));
    assert_eq!(simulate(&twice, &planned).rules, std::slice::from_ref(&ours));

    // A condition that is not understood makes another rule.
    let mut odd = ours.clone();
    odd.other = vec![(20, [5, 0, 0, 0, 6, 0, 0, 0].into())];
    let observed = Observed { rules: vec![odd.clone()], ..Observed::default() };
    let planned = changes(&desired, &observed);
    assert_eq!(planned[..2], [Change::AddRule(ours.clone()), Change::RemoveRule(odd)]);
    // The removal may have hit the new one.
    assert_eq!(planned[2..], [Change::AddRule(ours)]);
}

#[test]
fn neighbours_that_were_set_are_kept_right() {
    let wanted = Neighbour::permanent(index(3), ip("10.0.0.9"), MAC);
    let desired = Desired { neighbours: vec![wanted.clone()], ..Desired::default() };
    let mut learnt = Neighbour::permanent(index(3), ip("10.0.0.9"), MAC);
    learnt.state = NeighbourState::REACHABLE;
    let other = Neighbour::permanent(index(3), ip("10.0.0.9"), MacAddr::BROADCAST);
    for found in [learnt.clone(), other.clone()] {
        let observed = Observed { neighbours: vec![found], ..Observed::default() };
        assert_eq!(changes(&desired, &observed), [Change::ReplaceNeighbour(wanted.clone())]);
    }
    let observed = Observed { neighbours: vec![learnt], ..Observed::default() };
    assert!(plan(&Desired::default(), &observed, &owner()).is_empty());

    let learnt_outside = wanted.clone().with_flags(NeighbourFlags::EXT_LEARNED);
    let observed = Observed { neighbours: vec![learnt_outside.clone()], ..Observed::default() };
    let planned = changes(&Desired::default(), &observed);
    assert_eq!(planned, [Change::RemoveNeighbour(learnt_outside)]);

    let observed = Observed { neighbours: vec![other], ..Observed::default() };
    let planned = plan(&desired, &observed, &Owner::new(OURS));
    assert!(matches!(planned.conflicts[..], [Conflict::Neighbour { .. }]));
    assert!(plan(&Desired::default(), &observed, &Owner::new(OURS)).is_empty());
}

#[test]
fn twenty_thousand_routes() {
    let route = |n: u32| {
        let prefix = IpNetwork::new(IpAddr::from((0x0a00_0000 + n).to_be_bytes()), 32).unwrap();
        Route::new(prefix).via(ip("10.255.0.1")).dev(index(3))
    };
    let desired = Desired { routes: (0..20_000).map(route).collect(), ..Desired::default() };
    let half = (10_000..30_000).map(|n| route(n).protocol(OURS)).collect();
    let observed = Observed { routes: half, ..Observed::default() };
    let planned = changes(&desired, &observed);
    let added = planned.iter().filter(|change| matches!(change, Change::AddRoute(_))).count();
    assert_eq!((added, planned.len()), (10_000, 20_000));
}

fn any_address() -> impl Strategy<Value = Address> {
    let networks = prop_oneof![
        (0_u8..4, 24_u8..=25).prop_map(|(host, prefix)| format!("10.0.0.{host}/{prefix}")),
        (0_u8..4, 64_u8..=65).prop_map(|(host, prefix)| format!("fd00::{host}/{prefix}")),
    ];
    (3_u32..5, networks, any::<bool>()).prop_map(|(number, network, noprefix)| {
        let address = Address::new(index(number), net(&network));
        if noprefix { address.with_flags(AddressFlags::NOPREFIXROUTE) } else { address }
    })
}

/// Addresses as the kernel would hold them: one of a key, the first IPv4 one of a prefix primary.
fn held(addresses: Vec<Address>) -> Vec<Address> {
    let (mut keys, mut firsts, mut held) = (HashSet::new(), HashSet::new(), Vec::new());
    for address in addresses {
        if !keys.insert(AddressKey::of(&address)) {
            continue;
        }
        let first = firsts.insert((address.index, masked(address.network)));
        let secondary = address.network.is_ipv4() && !first;
        held.push(if secondary { address.with_flags(AddressFlags::SECONDARY) } else { address });
    }
    held
}

fn any_route() -> impl Strategy<Value = Route> {
    let ways = prop_oneof![Just(None), (1_u8..4).prop_map(Some)];
    (0_u8..3, any::<bool>(), 0_u32..2, ways, 3_u32..5, any::<bool>(), any::<bool>()).prop_map(
        |(third, six, metric, way, output, foreign, small)| {
            let (prefix, gateway) = if six {
                (format!("fd0{third}::/64"), way.map(|n| ip(&format!("fd07::{n}"))))
            } else {
                (format!("10.{third}.0.0/16"), way.map(|n| ip(&format!("10.7.0.{n}"))))
            };
            let mut route = Route::new(net(&prefix)).metric(1024 + metric).dev(index(output));
            if let Some(gateway) = gateway {
                route = route.via(gateway);
            }
            if small {
                route = route.mtu(1400);
            }
            route.protocol(if foreign { THEIRS } else { OURS })
        },
    )
}

fn any_rule() -> impl Strategy<Value = Rule> {
    (any::<bool>(), 0_u32..3, 0_u32..2, any::<bool>(), any::<bool>()).prop_map(
        |(six, priority, table, marked, foreign)| {
            let family = if six { Family::V6 } else { Family::V4 };
            let rule = Rule::lookup(family, 100 + priority, TableId(1000 + table));
            let rule = rule.protocol(if foreign { THEIRS } else { OURS });
            if marked { rule.mark(Mark { value: 1, mask: 1 }) } else { rule }
        },
    )
}

fn any_neighbour() -> impl Strategy<Value = Neighbour> {
    (3_u32..5, 1_u8..4, 0_u8..2, any::<bool>()).prop_map(|(number, host, mac, set)| {
        let address = ip(&format!("10.0.0.{host}"));
        let mac = MacAddr::new([2, 0, 0, 0, 0, mac]);
        let mut neighbour = Neighbour::permanent(index(number), address, mac);
        if !set {
            neighbour.state = NeighbourState::STALE;
        }
        neighbour
    })
}

fn unique<T, K: std::hash::Hash + Eq>(all: Vec<T>, key: impl Fn(&T) -> K) -> Vec<T> {
    let mut seen = HashSet::new();
    all.into_iter().filter(|one| seen.insert(key(one))).collect()
}

proptest! {
    #[test]
    fn applied_once_there_is_nothing_left_to_do(
        addresses in proptest::collection::vec(any_address(), 0..6),
        routes in proptest::collection::vec(any_route(), 0..8),
        rules in proptest::collection::vec(any_rule(), 0..6),
        neighbours in proptest::collection::vec(any_neighbour(), 0..5),
        found_addresses in proptest::collection::vec(any_address(), 0..6),
        found_routes in proptest::collection::vec(any_route(), 0..8),
        found_rules in proptest::collection::vec(any_rule(), 0..6),
        found_neighbours in proptest::collection::vec(any_neighbour(), 0..5),
    ) {
        let desired = Desired { links: Vec::new(), addresses, routes, rules, neighbours };
        let observed = Observed {
            links: Vec::new(),
            addresses: held(found_addresses),
            routes: unique(found_routes, RouteKey::of),
            rules: unique(found_rules, Rule::clone),
            neighbours: unique(found_neighbours, |n| (n.index, n.address)),
        };
        let first = plan(&desired, &observed, &owner());
        let after = simulate(&observed, &first.changes);
        let second = plan(&desired, &after, &owner());
        prop_assert_eq!(&second.changes, &[]);
        prop_assert_eq!(&first.conflicts, &second.conflicts);
        let theirs = |all: &Observed| all.routes.iter().filter(|r| r.protocol == THEIRS).cloned().collect::<Vec<_>>();
        prop_assert_eq!(theirs(&observed), theirs(&after));
        let theirs = |all: &Observed| all.rules.iter().filter(|r| r.protocol == THEIRS).cloned().collect::<Vec<_>>();
        prop_assert_eq!(theirs(&observed), theirs(&after));
        let theirs = |all: &Observed| {
            let foreign = all.addresses.iter().filter(|a| a.index == index(4)).cloned();
            foreign.collect::<HashSet<_>>()
        };
        prop_assert!(theirs(&after).is_superset(&theirs(&observed)));
        // Whatever is wished for and not in conflict is there.
        for wanted in &desired.routes {
            let wanted = wanted.clone().protocol(OURS);
            let denied = second.conflicts.iter().any(|conflict| match conflict {
                Conflict::Route { wanted: denied, .. } | Conflict::RouteTwice { denied, .. } => **denied == wanted,
                _ => false,
            });
            prop_assert!(denied || after.routes.iter().any(|found| route_satisfies(&wanted, found)));
        }
    }

    #[test]
    fn nothing_wished_leaves_nothing_of_ours(
        routes in proptest::collection::vec(any_route(), 0..8),
        rules in proptest::collection::vec(any_rule(), 0..6),
        addresses in proptest::collection::vec(any_address(), 0..6),
    ) {
        let observed = Observed {
            addresses: held(addresses),
            routes: unique(routes, RouteKey::of),
            rules: unique(rules, Rule::clone),
            ..Observed::default()
        };
        let after = simulate(&observed, &changes(&Desired::default(), &observed));
        prop_assert!(after.routes.iter().all(|route| route.protocol == THEIRS));
        prop_assert!(after.rules.iter().all(|rule| rule.protocol == THEIRS));
        prop_assert!(after.addresses.iter().all(|address| address.index == index(4)));
    }
}
