//! What must be true at any time.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use podwire_ipam::{
    Addresses, Allocator, CidrUsage, Family, Lease, LeaseState, Owner, PoolConfig, Time,
};

use super::addresses::{FAMILIES, every_address};
use super::state::{Model, Part, Pool};

pub(super) fn all(model: &Model, allocator: &Allocator) {
    leases(model, allocator);
    kept_and_reserved(model, allocator);
    cooling(model, allocator);
    pools(model, allocator);
}

fn leases(model: &Model, allocator: &Allocator) {
    let leases: BTreeMap<Owner, Lease> =
        allocator.leases().map(|lease| (lease.owner.clone(), lease.clone())).collect();
    assert_eq!(leases, model.leases);
    assert_eq!(allocator.lease_count(), model.leases.len());
    for (owner, lease) in &model.leases {
        assert_eq!(allocator.lease(owner), Some(lease));
    }
    for &ip in every_address() {
        assert_eq!(allocator.holder(ip), model.holder(ip), "{ip}");
    }
    let next = model.leases.values().filter_map(|lease| match lease.state {
        LeaseState::Pending { expires } => Some(expires),
        LeaseState::Confirmed => None,
    });
    assert_eq!(allocator.next_expiry(), next.min());
    let held = model.leases.values().flat_map(|lease| lease.addresses.iter());
    assert_eq!(allocator.stray(), held.filter(|ip| model.home(*ip).is_none()).count() as u64);
}

fn kept_and_reserved(model: &Model, allocator: &Allocator) {
    let reserved: BTreeSet<IpAddr> = allocator.reservations().map(|(ip, _)| ip).collect();
    assert_eq!(reserved, model.reserved);
    let names: Vec<(&str, Addresses)> = allocator.stickies().collect();
    let expected = model.names.iter().map(|(name, entry)| (name.as_str(), entry.addresses));
    assert_eq!(names, expected.collect::<Vec<_>>());
}

/// The order counts within a pool and family. Of those whose time is over, some may not have been
/// noticed yet.
fn cooling(model: &Model, allocator: &Allocator) {
    type Queues = BTreeMap<(usize, Family), Vec<(IpAddr, Time)>>;
    let queues = |all: &mut dyn Iterator<Item = (IpAddr, Time)>| {
        let mut queues = Queues::new();
        for (ip, until) in all.filter(|(_, until)| *until > model.now) {
            let (pool, _) = model.home(ip).unwrap_or_else(|| panic!("{ip} is of no pool"));
            queues.entry((pool, Family::of(ip))).or_default().push((ip, until));
        }
        queues
    };
    let expected = queues(&mut model.cooling.iter().copied());
    assert_eq!(queues(&mut allocator.cooling()), expected);
}

fn pools(model: &Model, allocator: &Allocator) {
    let names: Vec<&str> = model.pools.iter().map(|pool| pool.name).collect();
    assert_eq!(allocator.pools().collect::<Vec<_>>(), names);
    for &ip in every_address() {
        let pool = model.pool_around(ip).map(|pool| model.pools[pool].name);
        assert_eq!(allocator.pool_of(ip), pool, "{ip}");
        assert_eq!(allocator.contains(ip), pool.is_some());
    }
    let usage = allocator.usage();
    assert_eq!(usage.len(), model.pools.len());
    for (pool, said) in model.pools.iter().zip(&usage) {
        assert_eq!(said.pool, pool.name);
        assert_eq!([said.exhausted_v4, said.exhausted_v6], pool.exhausted, "{}", pool.name);
        assert_eq!(allocator.config(pool.name), Ok(ordered(pool)));
        let parts = FAMILIES.into_iter().flat_map(|family| pool.parts_of(family));
        assert_eq!(said.cidrs.len(), pool.parts.len());
        parts.zip(&said.cidrs).for_each(|(part, said)| cidr(model, part, said));
        for family in FAMILIES {
            let of_family = |entry: &&CidrUsage| Family::of(entry.cidr.ip()) == family;
            let free: u128 = said.cidrs.iter().filter(of_family).map(|one| one.usage.free()).sum();
            assert_eq!(said.family(family).map(|sum| sum.free()), pool.has(family).then_some(free));
        }
    }
}

fn ordered(pool: &Pool) -> PoolConfig {
    let parts = FAMILIES.into_iter().flat_map(|family| pool.parts_of(family).copied());
    Pool { parts: parts.collect(), ..pool.clone() }.config()
}

/// Every address that may be granted is counted as exactly one thing. Leaks would show here.
fn cidr(model: &Model, part: &Part, said: &CidrUsage) {
    assert_eq!((said.cidr, said.drained), (part.block.cidr, part.drained));
    let mut count = BTreeMap::<&str, u64>::new();
    for &ip in &part.block.grantable {
        let lease = model.holder(ip).map(|owner| &model.leases[owner]);
        let what = match lease.map(|lease| lease.state) {
            Some(LeaseState::Confirmed) => "used",
            Some(LeaseState::Pending { .. }) => "pending",
            None if model.reserved.contains(&ip) => "reserved",
            None if model.name_of(ip).is_some() => "kept",
            None => "cooling or free",
        };
        *count.entry(what).or_default() += 1;
    }
    let count = |what| count.get(what).copied().unwrap_or_default();
    let usage = said.usage;
    let context = || format!("{}: {usage:?}", said.cidr);
    assert_eq!(usage.used, count("used"), "{}", context());
    assert_eq!(usage.pending, count("pending"), "{}", context());
    assert_eq!(usage.reserved, count("reserved"), "{}", context());
    assert_eq!(usage.kept, count("kept"), "{}", context());
    let left = usage.free() + u128::from(usage.cooling);
    if part.drained {
        assert_eq!(left, 0, "nothing of a drained CIDR is to be had: {}", context());
    } else {
        assert_eq!(left, u128::from(count("cooling or free")), "{}", context());
        assert_eq!(usage.size, part.block.grantable.len() as u128, "{}", context());
        let cooling = part.block.grantable.iter().filter(|ip| model.is_cooling(**ip)).count();
        assert!(usage.cooling >= cooling as u64, "{}", context());
    }
}
