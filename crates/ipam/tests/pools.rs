//! Several pools: overflow, edits while leases are held, addresses kept for a name.

#![expect(clippy::unwrap_used, reason = "functions that tests share panic as tests do")]

use std::net::IpAddr;
use std::time::Duration;

use ipnetwork::IpNetwork;
use podwire_ipam::{
    Addresses, Allocator, Error, Family, Lease, LeaseState, Owner, PoolConfig, Release, Request,
    Restored, Time,
};

const START: Time = Time::from_secs(1000);

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn net(text: &str) -> IpNetwork {
    text.parse().unwrap()
}

fn owner(number: u32) -> Owner {
    Owner::new(&format!("c{number}"), "eth0")
}

fn config(name: &str, cidrs: &[&str]) -> PoolConfig {
    PoolConfig::new(name, cidrs.iter().map(|cidr| net(cidr)).collect())
}

/// Pools of so and so many addresses.
fn pools(configs: &[(&str, &[&str])]) -> Allocator {
    let configs: Vec<_> = configs.iter().map(|(name, cidrs)| config(name, cidrs)).collect();
    Allocator::with_pools(&configs).unwrap()
}

fn grant(allocator: &mut Allocator, number: u32, request: &Request) -> String {
    match allocator.allocate(&owner(number), request, START) {
        Ok(lease) => {
            allocator.confirm(&owner(number)).unwrap();
            lease.addresses.to_string()
        }
        Err(error) => error.to_string(),
    }
}

#[test]
fn a_request_without_pools_gets_the_first() {
    let mut both = pools(&[("a", &["10.0.0.0/30"]), ("b", &["10.1.0.0/30", "fd00::/64"])]);
    assert_eq!(grant(&mut both, 1, &Request::default()), "10.0.0.1");
    let from_b = Request::default().from_pools(&["b"]);
    assert_eq!(grant(&mut both, 2, &from_b), "10.1.0.1 and fd00::1");
    let each = Request::default().pools_of(Family::V4, &["a"]).pools_of(Family::V6, &["b"]);
    assert_eq!(grant(&mut both, 3, &each), "10.0.0.2 and fd00::2");
    let unknown = Request::default().from_pools(&["a", "c"]);
    assert_eq!(grant(&mut both, 4, &unknown), "there is no pool c; the pools are a, b");
    let only_v6 = Request::family(Family::V6).from_pools(&["a"]);
    assert_eq!(grant(&mut both, 4, &only_v6), "no IPv6 CIDR in pool a");
    assert_eq!(both.pool_of(ip("10.1.0.1")), Some("b"));
    assert_eq!(both.pool_of(ip("10.1.0.0")), Some("b"));
    assert_eq!(both.pool_of(ip("10.1.0.4")), None);
}

#[test]
fn the_next_pool_takes_over_and_cooling_addresses_come_last() {
    let mut both = pools(&[("a", &["10.0.0.0/31"]), ("b", &["10.1.0.0/31"])]);
    let request = Request::default().from_pools(&["a", "b"]);
    let all: Vec<_> = (1..=4).map(|number| grant(&mut both, number, &request)).collect();
    assert_eq!(all, ["10.0.0.0", "10.0.0.1", "10.1.0.0", "10.1.0.1"]);
    assert_eq!(
        grant(&mut both, 5, &request),
        "no IPv4 address is left in pool a (size 2, used 2, pending 0, cooling 0, reserved 0, \
         kept 0), b (size 2, used 2, pending 0, cooling 0, reserved 0, kept 0)"
    );
    // What the first pool has cooling is granted at once when nothing else is left.
    both.release(&owner(1), START);
    both.release(&owner(2), START);
    both.release(&owner(4), START);
    let only_a = Request::default().from_pools(&["a"]);
    assert_eq!(grant(&mut both, 6, &only_a), "10.0.0.0");
    assert_eq!(grant(&mut both, 7, &request), "10.0.0.1");
    assert_eq!(grant(&mut both, 8, &request), "10.1.0.1");
    let usage = both.usage();
    // Grants 3 and 4 and 8 found pool a empty, the refusal found both.
    assert_eq!((usage[0].exhausted_v4, usage[1].exhausted_v4), (4, 1));
    assert_eq!((usage[0].exhausted_v6, usage[1].exhausted_v6), (0, 0));
}

#[test]
fn a_pair_comes_from_one_pool_while_one_has_both() {
    let mut both =
        pools(&[("a", &["10.0.0.0/31", "fd00:a::1/128"]), ("b", &["10.1.0.0/31", "fd00:b::/127"])]);
    let request = Request::default().from_pools(&["a", "b"]);
    assert_eq!(grant(&mut both, 1, &request), "10.0.0.0 and fd00:a::1");
    assert_eq!(grant(&mut both, 2, &request), "10.1.0.0 and fd00:b::");
    assert_eq!(grant(&mut both, 3, &Request::family(Family::V4).from_pools(&["b"])), "10.1.0.1");
    // No pool has both any more.
    assert_eq!(grant(&mut both, 4, &request), "10.0.0.1 and fd00:b::1");
    assert!(grant(&mut both, 5, &request).starts_with("no IPv4 address is left"));
}

#[test]
fn explicit_addresses_are_of_the_requests_pools() {
    let mut both = pools(&[("a", &["10.0.0.0/30"]), ("b", &["10.1.0.0/30"])]);
    let explicit = |list: &[&str]| {
        Request::default().from_pools(list).with_addresses(&[ip("10.1.0.2")]).unwrap()
    };
    assert_eq!(grant(&mut both, 1, &explicit(&[])), "10.1.0.2 is in no CIDR of pool a");
    assert_eq!(grant(&mut both, 1, &explicit(&["a", "b"])), "10.1.0.2");
    assert_eq!(grant(&mut both, 2, &explicit(&["b"])), "10.1.0.2 is held by c1/eth0");
}

#[test]
fn cidrs_come_and_go_while_leases_are_held() {
    let mut one = pools(&[("a", &["10.0.0.0/30"]), ("b", &["10.5.0.0/24"])]);
    assert_eq!(grant(&mut one, 1, &Request::default()), "10.0.0.1");

    let error = one.add_cidr("a", net("10.5.0.128/25")).unwrap_err();
    assert_eq!(error.to_string(), "pool a: 10.5.0.128/25 overlaps 10.5.0.0/24 of pool b");
    assert!(matches!(one.add_cidr("a", net("127.0.0.0/24")), Err(Error::InvalidCidr { .. })));
    one.add_cidr("a", net("10.1.0.0/30")).unwrap();
    one.drain_cidr("a", net("10.0.0.0/30")).unwrap();
    assert_eq!(grant(&mut one, 2, &Request::default()), "10.1.0.1");
    let explicit = Request::default().with_addresses(&[ip("10.0.0.2")]).unwrap();
    assert_eq!(
        grant(&mut one, 9, &explicit),
        "10.0.0.2 of pool a is never granted: 10.0.0.0/30 is being drained"
    );
    // The lease stays, for its owner as well.
    assert_eq!(grant(&mut one, 1, &Request::default()), "10.0.0.1");
    let error = one.remove_cidr("a", net("10.0.0.0/30")).unwrap_err();
    assert_eq!(
        error.to_string(),
        "10.0.0.0/30 of pool a is in use: used 1, pending 0, reserved 0, kept 0"
    );
    let drained = &one.usage()[0].cidrs[0];
    assert_eq!((drained.drained, drained.usage.size, drained.usage.free()), (true, 1, 0));
    assert_eq!(one.config("a").unwrap().drained, [net("10.0.0.0/30")]);

    // Nothing that is released there comes back, also when nothing else is left.
    assert_eq!(grant(&mut one, 3, &Request::default()), "10.1.0.2");
    one.release(&owner(1), START);
    assert!(grant(&mut one, 4, &Request::default()).starts_with("no IPv4 address is left"));
    one.remove_cidr("a", net("10.0.0.0/30")).unwrap();
    assert!(matches!(one.remove_cidr("a", net("10.0.0.0/30")), Err(Error::UnknownCidr { .. })));
    assert!(!one.contains(ip("10.0.0.1")));

    // What was drained can be taken back.
    one.drain_cidr("a", net("10.1.0.0/30")).unwrap();
    one.add_cidr("a", net("10.1.0.0/30")).unwrap();
    one.release(&owner(2), START);
    assert_eq!(grant(&mut one, 5, &Request::default()), "10.1.0.1");
}

#[test]
fn pools_come_and_go() {
    let mut allocator = Allocator::default();
    assert!(matches!(
        allocator.allocate(&owner(1), &Request::default(), START),
        Err(Error::NoFamily { .. })
    ));
    allocator.add_pool(&config("a", &["10.0.0.0/30"])).unwrap();
    assert!(matches!(allocator.add_pool(&config("a", &[])), Err(Error::PoolExists { .. })));
    assert!(matches!(
        allocator.add_pool(&config("b", &["10.0.0.0/8"])),
        Err(Error::Overlap { .. })
    ));
    allocator.add_pool(&config("b", &["10.1.0.0/30"])).unwrap();
    allocator.reserve(ip("10.1.0.0"), "never granted anyway").unwrap();
    assert!(matches!(allocator.remove_pool("b"), Err(Error::CidrInUse { reserved: 1, .. })));
    allocator.unreserve(ip("10.1.0.0"));
    grant(&mut allocator, 1, &Request::default());
    assert!(matches!(allocator.remove_pool("a"), Err(Error::CidrInUse { used: 1, .. })));
    allocator.release(&owner(1), START);
    allocator.remove_pool("a").unwrap();
    assert_eq!(allocator.pools().collect::<Vec<_>>(), ["b"]);
    assert_eq!(grant(&mut allocator, 2, &Request::default()), "10.1.0.1");
}

#[test]
fn strays_become_the_pools_that_has_their_addresses() {
    let mut allocator = pools(&[("a", &["10.0.0.0/30"])]);
    let addresses = Addresses::from_list(&[ip("10.9.0.1")]).unwrap();
    let lease = Lease { owner: owner(1), addresses, state: LeaseState::Confirmed };
    assert_eq!(allocator.restore(lease), Ok(Restored::Stray));
    allocator.add_cidr("a", net("10.9.0.0/30")).unwrap();
    assert_eq!((allocator.stray(), allocator.usage()[0].cidrs[1].usage.used), (0, 1));
    let explicit = Request::default().with_addresses(&[ip("10.9.0.1")]).unwrap();
    assert_eq!(grant(&mut allocator, 2, &explicit), "10.9.0.1 is held by c1/eth0");
    allocator.release(&owner(1), START);
    assert_eq!(allocator.usage()[0].cidrs[1].usage.cooling, 1);
}

#[test]
fn a_name_gets_its_addresses_back() {
    let mut allocator = pools(&[("a", &["10.0.0.0/29", "fd00::/125"]), ("b", &["10.1.0.0/30"])]);
    let web0 = Request::default().sticky("shop/web-0");
    assert_eq!(grant(&mut allocator, 1, &web0), "10.0.0.1 and fd00::1");
    // A second one of that name has to wait for the first.
    assert_eq!(grant(&mut allocator, 2, &web0), "10.0.0.1 is held by c1/eth0");
    allocator.release(&owner(1), START);
    let usage = allocator.usage()[0].cidrs[0].usage;
    assert_eq!((usage.kept, usage.cooling, usage.free()), (1, 0, 5));
    let explicit = Request::default().with_addresses(&[ip("10.0.0.1")]).unwrap();
    assert_eq!(grant(&mut allocator, 3, &explicit), "10.0.0.1 is kept for shop/web-0");
    assert!(matches!(allocator.reserve(ip("10.0.0.1"), "why"), Err(Error::Kept { .. })));

    // Nobody else gets it, however long it takes.
    let others: Vec<_> =
        (10..15).map(|n| grant(&mut allocator, n, &Request::family(Family::V4))).collect();
    assert!(!others.contains(&"10.0.0.1".to_owned()), "{others:?}");
    assert!(grant(&mut allocator, 15, &Request::family(Family::V4)).contains("kept 1"));
    assert_eq!(grant(&mut allocator, 4, &web0), "10.0.0.1 and fd00::1");

    // In another pool it gets another address, and lets the first go.
    allocator.release(&owner(4), START);
    let in_b = Request::default().from_pools(&["b"]).sticky("shop/web-0");
    assert_eq!(grant(&mut allocator, 5, &in_b), "10.1.0.1");
    let stickies: Vec<_> =
        allocator.stickies().map(|(name, addresses)| format!("{name}: {addresses}")).collect();
    assert_eq!(stickies, ["shop/web-0: 10.1.0.1 and fd00::1"]);
    assert_eq!(allocator.usage()[0].cidrs[0].usage.cooling, 1);

    let forgotten = allocator.forget("shop/web-0", START);
    assert_eq!(forgotten.to_string(), "10.1.0.1 and fd00::1");
    assert!(allocator.forget("shop/web-0", START).is_empty());
    // Its lease is as any other now.
    assert!(matches!(allocator.release(&owner(5), START), Release::Released(_)));
    assert_eq!(allocator.usage()[1].cidrs[0].usage.cooling, 1);
}

#[test]
fn a_name_has_one_owner_whatever_else_is_asked_for() {
    let mut both = pools(&[("a", &["10.0.0.0/29"]), ("b", &["10.1.0.0/29", "fd00::/125"])]);
    let web0 = Request::default().sticky("shop/web-0");
    assert_eq!(grant(&mut both, 1, &web0), "10.0.0.1");
    let held = "10.0.0.1 is held by c1/eth0";
    let explicit = web0.clone().with_addresses(&[ip("10.0.0.4")]).unwrap();
    assert_eq!(grant(&mut both, 2, &explicit), held);
    assert_eq!(grant(&mut both, 2, &web0.clone().from_pools(&["b"])), held);
    let other_family = Request::family(Family::V6).from_pools(&["b"]).sticky("shop/web-0");
    assert_eq!(grant(&mut both, 2, &other_family), held);
    both.release(&owner(1), START);
    assert_eq!(grant(&mut both, 2, &explicit), "10.0.0.4");
    let stickies: Vec<_> = both.stickies().map(|(_, addresses)| addresses.to_string()).collect();
    assert_eq!(stickies, ["10.0.0.4"]);
}

#[test]
fn a_refusal_tells_the_pools_of_the_request() {
    let mut allocator = pools(&[("none", &[]), ("b", &["10.1.0.0/32"])]);
    assert_eq!(grant(&mut allocator, 1, &Request::default()), "no IPv4 CIDR in pool none");
    let twice = Request::default().from_pools(&["b", "b"]);
    assert_eq!(grant(&mut allocator, 1, &twice), "10.1.0.0");
    assert_eq!(
        grant(&mut allocator, 2, &twice),
        "no IPv4 address is left in pool b (size 1, used 1, pending 0, cooling 0, reserved 0, \
         kept 0)"
    );
    assert_eq!(allocator.usage()[1].exhausted_v4, 1);
    allocator.remove_pool("none").unwrap();
    allocator.release(&owner(1), START);
    assert_eq!(grant(&mut allocator, 2, &Request::default()), "10.1.0.0");
}

#[test]
fn a_name_whose_lease_was_never_confirmed_is_not_kept() {
    let mut allocator = pools(&[("a", &["10.0.0.0/29"])]);
    let web0 = Request::default().sticky("shop/web-0");
    allocator.allocate(&owner(1), &web0, START).unwrap();
    let later = START + Duration::from_secs(300);
    assert_eq!(allocator.expire(later).len(), 1);
    assert_eq!(allocator.stickies().count(), 0);
    assert_eq!(allocator.usage()[0].cidrs[0].usage.cooling, 1);
    // A name that once was firm stays so.
    grant(&mut allocator, 2, &web0);
    allocator.release(&owner(2), later);
    allocator.allocate(&owner(3), &web0, later).unwrap();
    assert_eq!(allocator.expire(later + Duration::from_secs(300)).len(), 1);
    assert_eq!(allocator.stickies().count(), 1);
    assert_eq!(allocator.usage()[0].cidrs[0].usage.kept, 1);
}

#[test]
fn names_and_cool_downs_are_restored() {
    let mut allocator = pools(&[("a", &["10.0.0.0/29"])]);
    let kept = Addresses::from_list(&[ip("10.0.0.3")]).unwrap();
    assert_eq!(allocator.restore_sticky("shop/web-0", kept), Ok(Restored::Held));
    assert_eq!(allocator.restore_sticky("shop/web-0", kept), Ok(Restored::Unchanged));
    assert!(matches!(allocator.restore_sticky("shop/web-1", kept), Err(Error::Kept { .. })));
    let stray = Addresses::from_list(&[ip("10.7.0.3")]).unwrap();
    assert_eq!(allocator.restore_sticky("shop/web-2", stray), Ok(Restored::Stray));
    let lease = Lease { owner: owner(1), addresses: kept, state: LeaseState::Confirmed };
    assert_eq!(allocator.restore(lease), Ok(Restored::Held));
    let usage = allocator.usage()[0].cidrs[0].usage;
    assert_eq!((usage.used, usage.kept), (1, 0));

    let until = START + Duration::from_secs(60);
    assert!(allocator.restore_cooling(ip("10.0.0.5"), until));
    assert!(allocator.restore_cooling(ip("10.0.0.2"), until));
    assert!(!allocator.restore_cooling(ip("10.0.0.2"), until));
    assert!(!allocator.restore_cooling(ip("10.0.0.3"), until), "it is held");
    assert!(!allocator.restore_cooling(ip("10.9.0.3"), until), "it is of no pool");
    let cooling: Vec<_> = allocator.cooling().map(|(address, _)| address).collect();
    assert_eq!(cooling, [ip("10.0.0.5"), ip("10.0.0.2")]);
    let others: Vec<_> = (10..15).map(|n| grant(&mut allocator, n, &Request::default())).collect();
    assert_eq!(others, ["10.0.0.1", "10.0.0.4", "10.0.0.6", "10.0.0.5", "10.0.0.2"]);
}

#[test]
fn the_pod_is_carried_along() {
    let mut allocator = pools(&[("a", &["10.0.0.0/29"])]);
    let with_pod = owner(1).with_pod("shop/web-0");
    assert_eq!((with_pod.pod(), owner(1).pod()), (Some("shop/web-0"), None));
    assert_eq!(with_pod, owner(1));
    allocator.allocate(&with_pod, &Request::default(), START).unwrap();
    let lease = allocator.lease(&owner(1)).unwrap();
    assert_eq!(lease.owner.pod(), Some("shop/web-0"));
    assert_eq!(lease.owner.to_string(), "c1/eth0");
}

#[test]
fn a_shortened_cool_down_ends_before_longer_ones() {
    let mut allocator = pools(&[("a", &["10.0.0.0/30"])]);
    grant(&mut allocator, 1, &Request::default());
    grant(&mut allocator, 2, &Request::default());
    let second = Duration::from_secs(1);
    allocator.set_times("a", 100 * second, second).unwrap();
    allocator.release(&owner(1), START);
    allocator.set_times("a", second, second).unwrap();
    allocator.release(&owner(2), START);
    let later = START + 2 * second;
    assert_eq!(allocator.expire(later), []);
    let cooling: Vec<_> = allocator.cooling().map(|(address, _)| address).collect();
    assert_eq!(cooling, [ip("10.0.0.1")]);
    let lease = allocator.allocate(&owner(3), &Request::default(), later).unwrap();
    assert_eq!(lease.addresses.to_string(), "10.0.0.2");
}
