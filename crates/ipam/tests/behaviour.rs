//! What the crate's page promises, case by case.

#![expect(clippy::unwrap_used, reason = "functions that tests share panic as tests do")]

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use podwire_ipam::{
    Addresses, Allocator, Error, Family, Lease, LeaseState, Owner, PoolConfig, Release, Request,
    Restored, Time, Unusable,
};

const START: Time = Time::from_secs(1000);

fn pool(cidrs: &[&str]) -> Allocator {
    Allocator::new(&config(cidrs)).unwrap()
}

fn config(cidrs: &[&str]) -> PoolConfig {
    PoolConfig::new("p", cidrs.iter().map(|cidr| cidr.parse().unwrap()).collect())
}

fn owner(number: u32) -> Owner {
    Owner::new(&format!("{number:064x}"), "eth0")
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn confirmed(number: u32, addresses: &[&str]) -> Lease {
    let list: Vec<IpAddr> = addresses.iter().map(|text| ip(text)).collect();
    Lease {
        owner: owner(number),
        addresses: Addresses::from_list(&list).unwrap(),
        state: LeaseState::Confirmed,
    }
}

/// Grants and confirms, and tells the address.
fn grant(pool: &mut Allocator, number: u32, now: Time) -> String {
    let lease = pool.allocate(&owner(number), &Request::default(), now).unwrap();
    pool.confirm(&owner(number)).unwrap();
    lease.addresses.to_string()
}

#[test]
fn next_free_not_first_free() {
    let mut pool = pool(&["10.0.0.0/29"]);
    assert_eq!(grant(&mut pool, 1, START), "10.0.0.1");
    assert_eq!(grant(&mut pool, 2, START), "10.0.0.2");
    pool.release(&owner(1), START);
    let later = START + Duration::from_secs(3600);
    assert_eq!(pool.expire(later), []);
    assert_eq!(grant(&mut pool, 3, later), "10.0.0.3", "10.0.0.1 is free again, but not next");
    for (number, address) in [(4, "10.0.0.4"), (5, "10.0.0.5"), (6, "10.0.0.6"), (7, "10.0.0.1")] {
        assert_eq!(grant(&mut pool, number, later), address);
    }
}

#[test]
fn a_cooling_address_rests_while_others_are_free_and_serves_when_none_is() {
    let mut pool = pool(&["10.0.0.0/30"]);
    assert_eq!(grant(&mut pool, 1, START), "10.0.0.1");
    pool.release(&owner(1), START);
    assert_eq!(grant(&mut pool, 2, START), "10.0.0.2");
    pool.release(&owner(2), START);
    assert_eq!(grant(&mut pool, 3, START), "10.0.0.1", "the oldest release, at once");
    assert_eq!(grant(&mut pool, 4, START), "10.0.0.2");
    let error = pool.allocate(&owner(5), &Request::default(), START).unwrap_err();
    assert!(error.is_exhausted());
    assert_eq!(
        error.to_string(),
        "no IPv4 address is left in pool p (size 2, used 2, pending 0, cooling 0, reserved 0, kept 0)"
    );
}

#[test]
fn the_second_cidr_serves_when_the_first_is_full() {
    let mut pool = pool(&["10.0.1.0/31", "10.0.0.0/31", "fd00::/126"]);
    let granted: Vec<String> = (0..4)
        .map(|number| {
            let request = Request::family(Family::V4);
            pool.allocate(&owner(number), &request, START).unwrap().addresses.to_string()
        })
        .collect();
    assert_eq!(granted, ["10.0.1.0", "10.0.1.1", "10.0.0.0", "10.0.0.1"]);
}

#[test]
fn dual_stack_is_granted_whole_or_not_at_all() {
    let mut pool = pool(&["10.0.0.0/29", "fd00::1/128"]);
    assert_eq!(grant(&mut pool, 1, START), "10.0.0.1 and fd00::1");
    let error = pool.allocate(&owner(2), &Request::default(), START).unwrap_err();
    assert!(matches!(error, Error::Exhausted { family: Family::V6, .. }), "{error}");
    assert_eq!(pool.lease_count(), 1);
    assert_eq!(pool.usage()[0].family(Family::V4).unwrap().free(), 5);
    let only_v4 = Request::family(Family::V4);
    let lease = pool.allocate(&owner(2), &only_v4, START).unwrap();
    assert_eq!(lease.addresses.to_string(), "10.0.0.2");
}

#[test]
fn a_pool_without_the_family_refuses_it() {
    let mut v4 = pool(&["10.0.0.0/29"]);
    let error = v4.allocate(&owner(1), &Request::dual_stack(), START).unwrap_err();
    assert_eq!(error.to_string(), "no IPv6 CIDR in pool p");
    assert!(v4.usage()[0].family(Family::V6).is_none());
    let error = pool(&[]).allocate(&owner(1), &Request::default(), START).unwrap_err();
    assert!(error.is_invalid(), "{error}");
}

#[test]
fn the_same_owner_gets_the_same_answer() {
    let mut pool = pool(&["10.0.0.0/24", "fd00::/64"]);
    let first = pool.allocate(&owner(1), &Request::default(), START).unwrap();
    let later = START + Duration::from_secs(100);
    let second = pool.allocate(&owner(1), &Request::default(), later).unwrap();
    assert_eq!(first.addresses, second.addresses);
    assert_eq!(second.state, LeaseState::Pending { expires: later + Duration::from_secs(300) });
    assert_eq!(pool.next_expiry(), Some(later + Duration::from_secs(300)));
    let confirmed = pool.confirm(&owner(1)).unwrap();
    assert_eq!(pool.allocate(&owner(1), &Request::default(), later), Ok(confirmed.clone()));
    assert_eq!(pool.confirm(&owner(1)), Ok(confirmed));

    let other = Request::default().with_addresses(&[ip("10.0.0.77")]).unwrap();
    let error = pool.allocate(&owner(1), &other, later).unwrap_err();
    assert!(error.is_conflict());
    assert!(error.to_string().contains("already holds 10.0.0.1 and fd00::1"), "{error}");
    // The same container may have another interface.
    let net1 = Owner::new(owner(1).container_id(), "net1");
    assert_ne!(
        pool.allocate(&net1, &Request::default(), later).unwrap().addresses,
        first.addresses
    );
}

#[test]
fn names_of_owners_do_not_run_together() {
    assert_ne!(Owner::new("ab", "c"), Owner::new("a", "bc"));
    let owner = Owner::new("8c2d", "eth0");
    assert_eq!((owner.container_id(), owner.ifname()), ("8c2d", "eth0"));
    assert_eq!(owner.to_string(), "8c2d/eth0");
}

#[test]
fn explicit_addresses_are_granted_or_refused_with_the_reason() {
    let mut config = config(&["10.0.0.0/24", "fd00::/64"]);
    config.excluded = vec!["10.0.0.128/25".parse().unwrap()];
    let mut pool = Allocator::new(&config).unwrap();
    pool.reserve(ip("10.0.0.1"), "router").unwrap();
    let mut ask = |number, addresses: &[&str]| {
        let list: Vec<IpAddr> = addresses.iter().map(|text| ip(text)).collect();
        let request = Request::default().with_addresses(&list)?;
        pool.allocate(&owner(number), &request, START)
    };
    let lease = ask(1, &["10.0.0.9"]).unwrap();
    assert_eq!(lease.addresses.to_string(), "10.0.0.9 and fd00::1");
    let lease = ask(2, &["fd00::9", "10.0.0.10"]).unwrap();
    assert_eq!(lease.addresses.to_string(), "10.0.0.10 and fd00::9");

    assert_eq!(
        ask(3, &["10.0.0.9"]),
        Err(Error::Held { address: ip("10.0.0.9"), holder: owner(1) })
    );
    assert_eq!(ask(3, &["10.0.0.1"]).unwrap_err().to_string(), "10.0.0.1 is reserved: router");
    assert!(ask(3, &["10.0.1.1"]).unwrap_err().is_invalid());
    assert_eq!(
        ask(3, &["10.0.0.200"]).unwrap_err().to_string(),
        "10.0.0.200 of pool p is never granted: the configuration excludes 10.0.0.128/25"
    );
    let error = ask(3, &["10.0.0.0"]).unwrap_err();
    assert!(matches!(error, Error::Unusable { reason: Unusable::NetworkAddress, .. }));
    let error = ask(3, &["10.0.0.11", "10.0.0.12"]).unwrap_err();
    assert!(matches!(error, Error::SameFamily { .. }));
    assert_eq!(pool.lease_count(), 2);
}

#[test]
fn an_explicit_address_does_not_wait_for_its_cool_down() {
    let mut pool = pool(&["10.0.0.0/24"]);
    let request = Request::default().with_addresses(&[ip("10.0.0.7")]).unwrap();
    pool.allocate(&owner(1), &request, START).unwrap();
    pool.release(&owner(1), START);
    assert_eq!(pool.usage()[0].family(Family::V4).unwrap().cooling, 1);
    pool.allocate(&owner(2), &request, START).unwrap();
    assert_eq!(pool.usage()[0].family(Family::V4).unwrap().cooling, 0);
}

#[test]
fn pending_leases_expire_and_confirmed_ones_do_not() {
    let mut pool = pool(&["10.0.0.0/24"]);
    pool.allocate(&owner(1), &Request::default(), START).unwrap();
    pool.allocate(&owner(2), &Request::default(), START).unwrap();
    pool.confirm(&owner(2)).unwrap();
    let due = START + Duration::from_secs(300);
    assert_eq!(pool.expire(Time::from_secs(1299)), []);
    let expired = pool.expire(due);
    assert_eq!(expired.iter().map(|lease| &lease.owner).collect::<Vec<_>>(), [&owner(1)]);
    assert!(pool.confirm(&owner(1)).unwrap_err().is_not_found());
    assert!(pool.lease(&owner(2)).is_some());
    assert_eq!(pool.next_expiry(), None);
    assert_eq!(pool.release(&owner(1), due), Release::Absent);
}

#[test]
fn a_clock_that_goes_back_changes_no_order() {
    let mut pool = pool(&["10.0.0.0/30"]);
    grant(&mut pool, 1, START);
    grant(&mut pool, 2, START);
    pool.release(&owner(2), START);
    pool.release(&owner(1), Time::from_secs(5));
    assert_eq!(grant(&mut pool, 3, Time::from_secs(7)), "10.0.0.2");
    assert_eq!(grant(&mut pool, 4, Time::from_secs(9)), "10.0.0.1");
}

#[test]
fn reservations() {
    let mut pool = pool(&["10.0.0.0/29", "fd00::/64"]);
    pool.reserve(ip("10.0.0.1"), "router").unwrap();
    pool.reserve(ip("10.0.0.1"), "router").unwrap();
    pool.reserve(ip("10.0.0.0"), "never granted anyway").unwrap();
    assert!(matches!(pool.reserve(ip("10.0.0.1"), "vip"), Err(Error::Reserved { .. })));
    assert!(matches!(pool.reserve(ip("10.1.0.1"), "vip"), Err(Error::OutsidePool { .. })));
    assert_eq!(grant(&mut pool, 1, START), "10.0.0.2 and fd00::1");
    assert!(matches!(pool.reserve(ip("10.0.0.2"), "vip"), Err(Error::Held { .. })));
    let usage = pool.usage()[0].family(Family::V4).unwrap();
    assert_eq!((usage.size, usage.reserved, usage.used, usage.free()), (6, 1, 1, 4));
    pool.unreserve(ip("10.0.0.1"));
    pool.unreserve(ip("10.0.0.0"));
    assert_eq!(pool.usage()[0].family(Family::V4).unwrap().free(), 5);
}

#[test]
fn restore_names_both_owners_of_an_address() {
    let mut pool = pool(&["10.0.0.0/24", "fd00::/64"]);
    pool.restore(confirmed(1, &["10.0.0.5", "fd00::5"])).unwrap();
    let error = pool.restore(confirmed(2, &["10.0.0.6", "fd00::5"])).unwrap_err();
    assert_eq!(
        error,
        Error::Conflict { address: ip("fd00::5"), holder: owner(1), claimant: owner(2) }
    );
    assert!(error.to_string().contains(&owner(1).to_string()));
    assert!(error.to_string().contains(&owner(2).to_string()));
    assert_eq!(pool.holder(ip("10.0.0.6")), None, "nothing of it was taken");
    let error = pool.restore(confirmed(1, &["10.0.0.6"])).unwrap_err();
    assert!(matches!(error, Error::OwnerMismatch { .. }));
    pool.reserve(ip("10.0.0.1"), "router").unwrap();
    assert!(matches!(pool.restore(confirmed(3, &["10.0.0.1"])), Err(Error::Reserved { .. })));
    assert!(matches!(pool.restore(confirmed(3, &[])), Err(Error::NoAddress { .. })));
}

#[test]
fn restored_addresses_outside_the_configuration_are_held_until_released() {
    let mut config = config(&["10.0.0.0/29"]);
    config.excluded = vec!["10.0.0.4/30".parse().unwrap()];
    let mut pool = Allocator::new(&config).unwrap();
    assert_eq!(pool.restore(confirmed(1, &["192.168.7.7"])), Ok(Restored::Stray));
    assert_eq!(pool.restore(confirmed(2, &["10.0.0.5"])), Ok(Restored::Stray));
    assert_eq!(pool.restore(confirmed(3, &["10.0.0.2"])), Ok(Restored::Held));
    assert_eq!(pool.stray(), 2);
    assert_eq!(pool.holder(ip("10.0.0.5")), Some(&owner(2)));
    assert_eq!(grant(&mut pool, 4, START), "10.0.0.3", "goes on behind what was restored");
    for number in [1, 2] {
        assert!(matches!(pool.release(&owner(number), START), Release::Released(_)));
    }
    assert_eq!(pool.stray(), 0);
    assert_eq!(grant(&mut pool, 5, START), "10.0.0.1");
    assert!(pool.allocate(&owner(6), &Request::default(), START).unwrap_err().is_exhausted());
}

#[test]
fn a_restored_pending_lease_still_expires() {
    let mut pool = pool(&["10.0.0.0/24"]);
    let state = LeaseState::Pending { expires: START };
    pool.restore(Lease { state, ..confirmed(1, &["10.0.0.9"]) }).unwrap();
    assert_eq!(pool.usage()[0].family(Family::V4).unwrap().pending, 1);
    pool.restore(confirmed(1, &["10.0.0.9"])).unwrap();
    assert_eq!(pool.usage()[0].family(Family::V4).unwrap().used, 1);
    assert_eq!(pool.expire(START), []);
}

#[test]
fn a_whole_16_is_granted_once_each() {
    let mut pool = pool(&["10.7.0.0/16"]);
    let mut seen = BTreeSet::new();
    for number in 0..65_534 {
        let lease = pool.allocate(&owner(number), &Request::default(), START).unwrap();
        assert!(seen.insert(lease.addresses.v4.unwrap()));
    }
    assert!(pool.allocate(&owner(65_534), &Request::default(), START).unwrap_err().is_exhausted());
    // Every second one is released, and all of those are found again.
    for number in (0..65_534).step_by(2) {
        pool.release(&owner(number), START);
    }
    pool.expire(START + Duration::from_secs(60));
    for number in 100_000..132_767 {
        pool.allocate(&owner(number), &Request::default(), START).unwrap();
    }
    assert_eq!(pool.usage()[0].family(Family::V4).unwrap().free(), 0);
    assert_eq!(pool.lease_count(), 65_534);
}

#[test]
fn any_ipv6_prefix_works() {
    for (cidr, first) in
        [("fd00::/8", "fd00::1"), ("2001:db8::/32", "2001:db8::1"), ("fd00::/127", "fd00::")]
    {
        let mut pool = pool(&[cidr]);
        assert_eq!(grant(&mut pool, 1, START), first);
    }
    let mut pool = pool(&["fd00::/64"]);
    let last = ip("fd00::ffff:ffff:ffff:ffff");
    let request = Request::default().with_addresses(&[last]).unwrap();
    pool.allocate(&owner(1), &request, START).unwrap();
    assert_eq!(pool.usage()[0].family(Family::V6).unwrap().free(), (1 << 64) - 130);
}
