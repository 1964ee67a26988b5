//! Plans applied to the running kernel, each test in a network namespace of its own.

#![expect(clippy::unwrap_used, reason = "a test outside of `mod tests`")]

use std::fs::File;
use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};

use ipnetwork::IpNetwork;
use podwire_netlink::{
    AddrGenMode, Address, Birth, Family, IfIndex, MacAddr, Mark, Neighbour, Netlink, NewLink,
    NextHop, OnLink, Route, RouteFilter, RouteKind, RouteProtocol, Rule, Switch, TableId,
};
use podwire_route::{
    Desired, Ensured, Error, LinkState, Observed, Owner, Removed, apply, ensure_address,
    ensure_link, ensure_neighbour, ensure_route, ensure_rule, plan, remove_address,
    remove_neighbour, remove_route, remove_rule,
};

const OURS: RouteProtocol = RouteProtocol(80);
const MAC: MacAddr = MacAddr::new([2, 0, 0, 0, 0, 9]);

/// A namespace that ends with the descriptor and the sockets in it.
fn netns() -> OwnedFd {
    std::thread::spawn(|| {
        // SAFETY: takes no pointers; the thread ends with this closure.
        let left = unsafe { libc::unshare(libc::CLONE_NEWNET) };
        assert_eq!(left, 0, "{}", std::io::Error::last_os_error());
        File::open("/proc/thread-self/ns/net").unwrap().into()
    })
    .join()
    .unwrap()
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn net(text: &str) -> IpNetwork {
    text.parse().unwrap()
}

/// A veth pair `a`, `b` in a fresh namespace, both up.
fn wired() -> (Netlink, IfIndex) {
    let mut netlink = Netlink::open_in(netns().as_fd()).unwrap();
    let pair =
        NewLink::veth(Birth::named("a".parse().unwrap()), Birth::named("b".parse().unwrap()));
    netlink.create_link(&pair).unwrap();
    for name in ["lo", "a", "b"] {
        let link = netlink.link(podwire_netlink::LinkId::Name(name.parse().unwrap())).unwrap();
        let state = LinkState::of(link.index).up().addr_gen_mode(AddrGenMode::None);
        ensure_link(&mut netlink, &state).unwrap();
    }
    let index = netlink.link(podwire_netlink::LinkId::Name("a".parse().unwrap())).unwrap().index;
    (netlink, index)
}

fn settle(netlink: &mut Netlink, desired: &Desired, owner: &Owner) -> usize {
    let observed = Observed::read(netlink, owner, desired).unwrap();
    let planned = plan(desired, &observed, owner);
    assert_eq!(planned.conflicts, []);
    apply(netlink, &planned.changes).unwrap();
    let observed = Observed::read(netlink, owner, desired).unwrap();
    let again = plan(desired, &observed, owner);
    assert!(again.is_empty(), "{again:#?}");
    planned.changes.len()
}

/// Everything that a pod or a node gets, and more.
fn everything(index: IfIndex) -> Desired {
    let hop = |gateway, weight| NextHop {
        gateway: Some(ip(gateway)),
        output: None,
        weight,
        on_link: OnLink::No,
    };
    let mut two = Route::new(net("10.20.0.0/16"));
    two.multipath = vec![hop("10.7.0.2", 2), hop("10.7.0.3", 1)];
    let mut two6 = Route::new(net("fd20::/64"));
    two6.multipath = vec![hop("fd07::3", 1), hop("fd07::2", 2)];
    let mut mark = Rule::lookup(Family::V6, 100, TableId(1000)).mark(Mark { value: 2, mask: 6 });
    mark.suppress_prefix_length = Some(0);
    Desired {
        links: vec![LinkState::of(index).mtu(1400).alias("podwire:n:c/eth0").noarp(Switch::Off)],
        addresses: vec![
            Address::new(index, net("10.7.0.1/24")),
            Address::new(index, net("10.7.0.9/24")),
            Address::new(index, net("10.8.0.1/32")),
            Address::new(index, net("fd07::1/64")),
            Address::new(index, net("fd08::1/128")).with_protocol(80),
        ],
        routes: vec![
            Route::default_of(Family::V4).via(ip("10.9.0.1")).dev(index).mtu(1350),
            Route::default_of(Family::V6).via(ip("fd09::1")).dev(index).mtu(1350),
            Route::new(net("10.9.0.1/32")).dev(index),
            Route::new(net("fd09::1/128")).dev(index),
            Route::new(net("10.10.0.0/16")).via(ip("10.7.0.2")).preferred_source(ip("10.8.0.1")),
            Route::new(net("fd10::/64")).dev(index).preferred_source(ip("fd08::1")).metric(9),
            Route::new(net("10.11.0.0/16")).kind(RouteKind::UNREACHABLE).table(TableId(1000)),
            Route::new(net("fd11::/64")).kind(RouteKind::UNREACHABLE).table(TableId(1000)),
            Route::new(net("10.12.0.0/16")).via(ip("fd07::2")).dev(index),
            two,
            two6,
        ],
        rules: vec![
            Rule::lookup(Family::V4, 100, TableId(1000)).from(net("10.0.0.0/8")),
            Rule::lookup(Family::V4, 100, TableId(1000)),
            mark,
        ],
        neighbours: vec![
            Neighbour::permanent(index, ip("10.9.0.1"), MAC),
            Neighbour::permanent(index, ip("fd09::1"), MAC),
            Neighbour::managed(index, ip("10.7.0.2")),
        ],
    }
}

#[test]
#[ignore = "needs root: makes network namespaces and changes routes in them"]
fn a_plan_settles_and_is_taken_back() {
    let (mut netlink, index) = wired();
    let owner = Owner::new(OURS).with_link(index);
    let before = (
        netlink.addresses(index).unwrap(),
        routes_beside_the_kernels(&mut netlink),
        netlink.rules(None).unwrap(),
    );
    let desired = everything(index);
    assert_eq!(settle(&mut netlink, &desired, &owner), 5 + 11 + 3 + 3 + 1);

    // The first address of a prefix goes, and takes the second and its routes along.
    let mut less = desired.clone();
    less.addresses.remove(0);
    settle(&mut netlink, &less, &owner);
    settle(&mut netlink, &desired, &owner);

    // One with the conditions of another and more goes, and so does the one with less.
    let mut general = desired.clone();
    general.rules.remove(0);
    settle(&mut netlink, &general, &owner);
    let mut special = desired.clone();
    special.rules.remove(1);
    settle(&mut netlink, &special, &owner);

    let mut changed = desired.clone();
    for route in &mut changed.routes {
        if route.kind == RouteKind::UNICAST {
            route.mtu = Route::new(route.destination).mtu(1300).mtu;
        }
    }
    assert_eq!(settle(&mut netlink, &changed, &owner), 9 + 1);

    let nothing = Desired { links: desired.links, ..Desired::default() };
    settle(&mut netlink, &nothing, &owner);
    let after = (
        netlink.addresses(index).unwrap(),
        routes_beside_the_kernels(&mut netlink),
        netlink.rules(None).unwrap(),
    );
    assert_eq!(after, before);
}

/// Those of the local table come when the link has its carrier, in their own time.
fn routes_beside_the_kernels(netlink: &mut Netlink) -> Vec<Route> {
    let mut routes = netlink.routes(&RouteFilter::ALL).unwrap();
    routes.retain(|route| route.table != TableId::LOCAL);
    routes
}

#[test]
#[ignore = "needs root: makes network namespaces and changes routes in them"]
fn foreign_objects_are_left_alone() {
    let (mut netlink, index) = wired();
    netlink.add(&Address::new(index, net("10.7.0.1/24"))).unwrap();
    let theirs = Route::new(net("10.8.0.0/16")).via(ip("10.7.0.2")).dev(index);
    netlink.add(&theirs).unwrap();
    let rule = Rule::lookup(Family::V4, 100, TableId(1000)).protocol(RouteProtocol::STATIC);
    netlink.add(&rule).unwrap();
    netlink.add(&Neighbour::permanent(index, ip("10.7.0.3"), MAC)).unwrap();

    let owner = Owner::new(OURS);
    let ours = Route::new(net("10.8.0.0/16")).via(ip("10.7.0.9")).dev(index);
    let desired = Desired {
        routes: vec![ours.clone(), Route::new(net("10.9.0.0/16")).via(ip("10.7.0.2")).dev(index)],
        rules: vec![Rule::lookup(Family::V4, 100, TableId(1000))],
        neighbours: vec![Neighbour::permanent(index, ip("10.7.0.3"), MacAddr::ZERO)],
        ..Desired::default()
    };
    let observed = Observed::read(&mut netlink, &owner, &desired).unwrap();
    let planned = plan(&desired, &observed, &owner);
    assert_eq!((planned.changes.len(), planned.conflicts.len()), (1, 2));
    apply(&mut netlink, &planned.changes).unwrap();
    let removed = plan(&Desired::default(), &observed, &owner);
    apply(&mut netlink, &removed.changes).unwrap();

    let routes = netlink.routes(&RouteFilter::table(TableId::MAIN)).unwrap();
    assert!(routes.contains(&theirs));
    assert!(netlink.rules(Family::V4).unwrap().contains(&rule));
    assert!(netlink.neighbours(index).unwrap().iter().any(|found| found.mac == Some(MAC)));

    let error = ensure_route(&mut netlink, &ours.clone().protocol(OURS)).unwrap_err();
    assert!(error.is_conflict(), "{error}");
    assert_eq!(remove_route(&mut netlink, &ours.protocol(OURS)).unwrap(), Removed::Absent);
    assert!(netlink.routes(&RouteFilter::table(TableId::MAIN)).unwrap().contains(&theirs));
}

#[test]
#[ignore = "needs root: makes network namespaces and changes routes in them"]
fn one_at_a_time() {
    let (mut netlink, index) = wired();
    let netlink = &mut netlink;
    for (network, gateway, destination) in
        [("10.7.0.1/24", "10.7.0.2", "10.8.0.0/16"), ("fd07::1/64", "fd07::2", "fd08::/64")]
    {
        let address = Address::new(index, net(network));
        assert_eq!(ensure_address(netlink, &address).unwrap(), Ensured::Created);
        assert_eq!(ensure_address(netlink, &address).unwrap(), Ensured::Unchanged);
        let noprefix = address.clone().with_flags(podwire_netlink::AddressFlags::NOPREFIXROUTE);
        assert_eq!(ensure_address(netlink, &noprefix).unwrap(), Ensured::Changed);
        assert_eq!(ensure_address(netlink, &address).unwrap(), Ensured::Changed);

        let route = Route::new(net(destination)).via(ip(gateway)).dev(index).protocol(OURS);
        assert_eq!(ensure_route(netlink, &route).unwrap(), Ensured::Created);
        assert_eq!(ensure_route(netlink, &route).unwrap(), Ensured::Unchanged);
        let small = route.clone().mtu(1400);
        assert_eq!(ensure_route(netlink, &small).unwrap(), Ensured::Changed);
        // Whatever its other properties are.
        assert_eq!(remove_route(netlink, &route).unwrap(), Removed::Removed);
        assert_eq!(remove_route(netlink, &route).unwrap(), Removed::Absent);

        let rule = Rule::lookup(address_family(network), 100, TableId(1000)).protocol(OURS);
        let special = rule.clone().from(net(destination));
        assert_eq!(ensure_rule(netlink, &special).unwrap(), Ensured::Created);
        assert_eq!(ensure_rule(netlink, &rule).unwrap(), Ensured::Created);
        assert_eq!(ensure_rule(netlink, &rule).unwrap(), Ensured::Unchanged);
        assert_eq!(remove_rule(netlink, &rule).unwrap(), Removed::Removed);
        assert_eq!(remove_rule(netlink, &rule).unwrap(), Removed::Absent);
        assert_eq!(ensure_rule(netlink, &special).unwrap(), Ensured::Unchanged);
        assert_eq!(remove_rule(netlink, &special).unwrap(), Removed::Removed);

        let neighbour = Neighbour::permanent(index, ip(gateway), MAC);
        assert_eq!(ensure_neighbour(netlink, &neighbour).unwrap(), Ensured::Created);
        assert_eq!(ensure_neighbour(netlink, &neighbour).unwrap(), Ensured::Unchanged);
        let other = Neighbour::permanent(index, ip(gateway), MacAddr::new([2, 0, 0, 0, 0, 1]));
        assert_eq!(ensure_neighbour(netlink, &other).unwrap(), Ensured::Changed);
        assert_eq!(remove_neighbour(netlink, &other).unwrap(), Removed::Removed);
        assert_eq!(remove_neighbour(netlink, &other).unwrap(), Removed::Absent);

        assert_eq!(remove_address(netlink, &address).unwrap(), Removed::Removed);
        assert_eq!(remove_address(netlink, &address).unwrap(), Removed::Absent);
    }
    let state = LinkState::of(index).up().mtu(1400);
    assert_eq!(ensure_link(netlink, &state).unwrap(), Ensured::Changed);
    assert_eq!(ensure_link(netlink, &state).unwrap(), Ensured::Unchanged);
    let missing = LinkState::of(IfIndex::new(9999).unwrap()).up();
    assert!(ensure_link(netlink, &missing).unwrap_err().is_not_found());
}

fn address_family(network: &str) -> Family {
    Family::of(net(network).ip())
}

#[test]
#[ignore = "needs root: makes network namespaces and changes routes in them"]
fn every_failure_is_told() {
    let (mut netlink, index) = wired();
    netlink.add(&Address::new(index, net("10.7.0.1/24"))).unwrap();
    let desired = Desired {
        routes: vec![
            Route::new(net("10.8.0.0/16")).via(ip("192.0.2.1")).dev(index),
            Route::new(net("10.9.0.0/16")).via(ip("10.7.0.2")).dev(index),
            Route::new(net("10.10.0.0/16")).via(ip("192.0.2.2")).dev(index),
        ],
        ..Desired::default()
    };
    let owner = Owner::new(OURS);
    let observed = Observed::read(&mut netlink, &owner, &desired).unwrap();
    let error = apply(&mut netlink, &plan(&desired, &observed, &owner).changes).unwrap_err();
    let said = error.to_string();
    assert!(said.starts_with("2 of 3 changes failed: cannot add route 10.8.0.0/16"), "{said}");
    let Error::Apply { failures, .. } = error else { panic!("{error}") };
    for failure in &failures {
        assert_eq!(failure.error.kernel_message(), Some("Nexthop has invalid gateway"));
    }
    assert_eq!(netlink.routes(&RouteFilter::protocol(OURS)).unwrap().len(), 1);
}

#[test]
#[ignore = "needs root: makes network namespaces and changes routes in them"]
fn ten_thousand_routes() {
    let (mut netlink, index) = wired();
    netlink.add(&Address::new(index, net("10.255.0.1/24"))).unwrap();
    let route = |n: u32| {
        let prefix = IpNetwork::new(IpAddr::from((0x0a00_0000 + n).to_be_bytes()), 32).unwrap();
        Route::new(prefix).via(ip("10.255.0.2")).dev(index)
    };
    let owner = Owner::new(OURS);
    let many = Desired { routes: (0..10_000).map(route).collect(), ..Desired::default() };
    assert_eq!(settle(&mut netlink, &many, &owner), 10_000);
    assert_eq!(settle(&mut netlink, &Desired::default(), &owner), 10_000);
}
