//! Pools and CIDRs that come and go, and restarts.

use std::net::IpAddr;

use podwire_ipam::{Allocator, Error, Restored};

use super::addresses::Block;
use super::state::{Model, Part, Pool};

pub(super) fn add_cidr(model: &mut Model, allocator: &mut Allocator, pool: &str, number: usize) {
    let block = Block::numbered(number);
    let answer = allocator.add_cidr(pool, block.cidr);
    let Some(index) = model.pool(pool) else {
        assert!(matches!(answer, Err(Error::UnknownPool { .. })), "{answer:?}");
        return;
    };
    let mut parts = model.pools[index].parts.iter_mut();
    if let Some(part) = parts.find(|part| part.block.cidr == block.cidr) {
        part.drained = false;
        assert_eq!(answer, Ok(()));
    } else if let Some(other) = overlapping(model, block) {
        assert_overlap(answer, &other, (pool, block));
    } else {
        assert_eq!(answer, Ok(()));
        model.pools[index].parts.push(Part { block, drained: false });
    }
}

pub(super) fn drain_cidr(model: &mut Model, allocator: &mut Allocator, pool: &str, number: usize) {
    let block = Block::numbered(number);
    let answer = allocator.drain_cidr(pool, block.cidr);
    let Some((index, place)) = known(model, pool, block, &answer) else { return };
    assert_eq!(answer, Ok(()));
    model.pools[index].parts[place].drained = true;
    model.cooling.retain(|(ip, _)| !block.cidr.contains(*ip));
}

pub(super) fn remove_cidr(model: &mut Model, allocator: &mut Allocator, pool: &str, number: usize) {
    let block = Block::numbered(number);
    let answer = allocator.remove_cidr(pool, block.cidr);
    let Some((index, place)) = known(model, pool, block, &answer) else { return };
    if held(model, block) > 0 {
        assert_in_use(answer, held(model, block));
        return;
    }
    assert_eq!(answer, Ok(()));
    model.pools[index].parts.remove(place);
    model.cooling.retain(|(ip, _)| !block.cidr.contains(*ip));
}

pub(super) fn add_pool(
    model: &mut Model,
    allocator: &mut Allocator,
    name: &'static str,
    cidrs: &[usize],
) {
    let pool = Pool::new(name, cidrs);
    let answer = allocator.add_pool(&pool.config());
    if model.pool(name).is_some() {
        assert!(matches!(answer, Err(Error::PoolExists { .. })), "{answer:?}");
        return;
    }
    let among = pool.parts.iter().enumerate().any(|(place, part)| {
        pool.parts[..place].iter().any(|other| other.block.overlaps(part.block))
    });
    if among || pool.parts.iter().any(|part| overlapping(model, part.block).is_some()) {
        assert!(matches!(answer, Err(Error::Overlap { .. })), "{answer:?}");
        return;
    }
    assert_eq!(answer, Ok(()));
    model.pools.push(pool);
}

pub(super) fn remove_pool(model: &mut Model, allocator: &mut Allocator, name: &str) {
    let answer = allocator.remove_pool(name);
    let Some(index) = model.pool(name) else {
        assert!(matches!(answer, Err(Error::UnknownPool { .. })), "{answer:?}");
        return;
    };
    let held: Vec<u64> =
        model.pools[index].parts.iter().map(|part| held(model, part.block)).collect();
    if held.iter().any(|held| *held > 0) {
        assert!(matches!(answer, Err(Error::CidrInUse { .. })), "{answer:?}");
        return;
    }
    assert_eq!(answer, Ok(()));
    let gone = model.pools.remove(index);
    let is_gone = |ip: IpAddr| gone.parts.iter().any(|part| part.block.cidr.contains(ip));
    model.cooling.retain(|(ip, _)| !is_gone(*ip));
}

/// A new allocator is given what the last one knew, by its own account, but for what is not
/// configured any more.
pub(super) fn restart(model: &mut Model, allocator: &mut Allocator) {
    let old = allocator.clone();
    let configs: Vec<_> = model.pools.iter().map(Pool::config).collect();
    *allocator = Allocator::with_pools(&configs).unwrap();
    for (ip, why) in old.reservations() {
        assert_eq!(allocator.reserve(ip, why).is_ok(), model.reserved.contains(&ip), "{ip}");
    }
    for (name, addresses) in old.stickies() {
        let left = model.names.get(name).map(|name| name.addresses).unwrap_or_default();
        let expected = if left == addresses { Restored::Held } else { Restored::Stray };
        assert_eq!(allocator.restore_sticky(name, addresses), Ok(expected));
        if left == addresses {
            assert_eq!(allocator.restore_sticky(name, addresses), Ok(Restored::Unchanged));
        }
    }
    for lease in old.leases() {
        let stray = lease.addresses.iter().any(|ip| model.home(ip).is_none());
        let expected = if stray { Restored::Stray } else { Restored::Held };
        assert_eq!(allocator.restore(lease.clone()), Ok(expected));
        assert_eq!(allocator.restore(lease.clone()), Ok(Restored::Unchanged));
    }
    for (ip, until) in old.cooling() {
        assert_eq!(allocator.restore_cooling(ip, until), model.home(ip).is_some(), "{ip}");
        assert!(!allocator.restore_cooling(ip, until), "{ip} cools down twice");
    }
    // Of names, nobody remembers whether a lease of theirs was ever confirmed.
    model.names.values_mut().for_each(|name| name.firm = true);
    model.pools.iter_mut().for_each(|pool| pool.exhausted = [0, 0]);
}

/// Place of a pool, and of a CIDR that it has; else the answer must say what is missing.
fn known(
    model: &Model,
    pool: &str,
    block: &Block,
    answer: &Result<(), Error>,
) -> Option<(usize, usize)> {
    let Some(index) = model.pool(pool) else {
        assert!(matches!(answer, Err(Error::UnknownPool { .. })), "{answer:?}");
        return None;
    };
    let mut parts = model.pools[index].parts.iter();
    let Some(place) = parts.position(|part| part.block.cidr == block.cidr) else {
        assert!(matches!(answer, Err(Error::UnknownCidr { .. })), "{answer:?}");
        return None;
    };
    Some((index, place))
}

/// Pools and CIDRs that a new one would share addresses with.
fn overlapping(model: &Model, block: &Block) -> Option<Vec<(&'static str, &'static Block)>> {
    let parts = model.parts().filter(|(_, part)| part.block.overlaps(block));
    let found: Vec<_> = parts.map(|(pool, part)| (model.pools[pool].name, part.block)).collect();
    (!found.is_empty()).then_some(found)
}

fn assert_overlap(
    answer: Result<(), Error>,
    others: &[(&'static str, &'static Block)],
    added: (&str, &Block),
) {
    match answer {
        Err(Error::Overlap { pool, first, other, second }) => {
            assert_eq!((&*pool, second), (added.0, added.1.cidr));
            let named = |(name, block): &(&str, &Block)| *name == other && block.cidr == first;
            assert!(others.iter().any(named), "{other} {first}");
        }
        answer => panic!("expected an overlap with {others:?}: {answer:?}"),
    }
}

/// What keeps a CIDR from being taken away: leases, kept addresses, and reservations of any
/// address.
fn held(model: &Model, block: &Block) -> u64 {
    let grantable = block.grantable.iter();
    let held = grantable.filter(|ip| model.holder(**ip).is_some() || model.name_of(**ip).is_some());
    let reserved = model.reserved.iter().filter(|ip| block.cidr.contains(**ip));
    (held.count() + reserved.count()) as u64
}

fn assert_in_use(answer: Result<(), Error>, held: u64) {
    match answer {
        Err(Error::CidrInUse { used, pending, reserved, kept, .. }) => {
            assert_eq!(used + pending + reserved + kept, held);
        }
        answer => panic!("{held} addresses are held: {answer:?}"),
    }
}
