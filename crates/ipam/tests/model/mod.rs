//! The allocator against a model that is nothing but sets and lists. The property test and the fuzz
//! target `ipam_operations` make up the steps; this module carries them out and compares.
//!
//! | file | has |
//! |---|---|
//! | `addresses` | which addresses there are, and which may be granted |
//! | `state` | the model |
//! | `grant` | what a request is to lead to |
//! | `edit` | pools and CIDRs that come and go, restarts |
//! | `check` | what must be true at any time |

#![expect(clippy::unwrap_used, reason = "functions that tests share panic as tests do")]

pub(crate) mod addresses;
mod check;
mod edit;
mod grant;
mod state;

use std::collections::BTreeSet;
use std::time::Duration;

use podwire_ipam::{
    Addresses, Allocator, Error, Family, Lease, LeaseState, Owner, Release, Unreserved,
};

use addresses::numbered;
use state::{Model, Pool};

/// One step. Owners, names, addresses, pools and CIDRs are numbers; those beyond the last one stand
/// for others.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    Allocate(u8, Wish),
    Confirm(u8),
    Release(u8),
    Expire,
    Wait(u8),
    Reserve(usize),
    Unreserve(usize),
    Forget(u8),
    AddCidr(usize, usize),
    DrainCidr(usize, usize),
    RemoveCidr(usize, usize),
    AddPool(usize, Vec<usize>),
    RemovePool(usize),
    Restart,
    /// The configuration lost this CIDR meanwhile.
    RestartWithout(usize),
}

/// What an owner asks for.
#[derive(Clone, Debug)]
pub(crate) struct Wish {
    pub(crate) families: Families,
    pub(crate) explicit: Option<usize>,
    pub(crate) pools: Lists,
    pub(crate) name: Option<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Families {
    Any,
    Dual,
    Only(Family),
}

/// The pools of a request.
#[derive(Clone, Debug)]
pub(crate) enum Lists {
    Default,
    Paired(Vec<usize>),
    Each(Vec<usize>, Vec<usize>),
}

fn owner(number: u8) -> Owner {
    Owner::new(&format!("container-{number}"), "eth0")
}

fn sticky_name(number: u8) -> String {
    format!("shop/web-{}", number % 4)
}

/// The last one never exists.
fn pool_name(number: usize) -> &'static str {
    ["a", "b", "c", "d", "nowhere"][number % 5]
}

/// Carries out the steps on new pools, and checks after each.
pub(crate) fn run(steps: &[Step]) {
    let mut model = Model::default();
    for (name, cidrs) in [(0, &[0, 2][..]), (1, &[3, 4]), (2, &[6, 7])] {
        model.pools.push(Pool::new(pool_name(name), cidrs));
    }
    let configs: Vec<_> = model.pools.iter().map(Pool::config).collect();
    let mut allocator = Allocator::with_pools(&configs).unwrap();
    check::all(&model, &allocator);
    for step in steps {
        apply(&mut model, &mut allocator, step);
        check::all(&model, &allocator);
    }
}

fn apply(model: &mut Model, allocator: &mut Allocator, step: &Step) {
    match step {
        Step::Allocate(number, wish) => grant::allocate(model, allocator, &owner(*number), wish),
        Step::Confirm(number) => confirm(model, allocator, &owner(*number)),
        Step::Release(number) => {
            let owner = owner(*number);
            let expected = model.leases.remove(&owner);
            if let Some(lease) = &expected {
                model.give_back(lease);
            }
            let expected = expected.map_or(Release::Absent, Release::Released);
            assert_eq!(allocator.release(&owner, model.now), expected);
        }
        Step::Expire => expire(model, allocator),
        Step::Wait(seconds) => model.now = model.now + Duration::from_secs((*seconds).into()),
        Step::Reserve(number) => reserve(model, allocator, *number),
        Step::Unreserve(number) => {
            let ip = numbered(*number);
            let was = model.reserved.remove(&ip);
            assert_eq!(matches!(allocator.unreserve(ip), Unreserved::Removed(_)), was);
        }
        Step::Forget(number) => {
            let name = sticky_name(*number);
            let expected = model.names.get(&name).map(|name| name.addresses).unwrap_or_default();
            expected.iter().for_each(|ip| model.unbind(ip));
            assert_eq!(allocator.forget(&name, model.now), expected);
        }
        Step::AddCidr(pool, cidr) => edit::add_cidr(model, allocator, pool_name(*pool), *cidr),
        Step::DrainCidr(pool, cidr) => edit::drain_cidr(model, allocator, pool_name(*pool), *cidr),
        Step::RemoveCidr(pool, cidr) => {
            edit::remove_cidr(model, allocator, pool_name(*pool), *cidr);
        }
        Step::AddPool(pool, cidrs) => edit::add_pool(model, allocator, pool_name(*pool), cidrs),
        Step::RemovePool(pool) => edit::remove_pool(model, allocator, pool_name(*pool)),
        Step::Restart => edit::restart(model, allocator),
        Step::RestartWithout(cidr) => {
            model.lose(*cidr);
            edit::restart(model, allocator);
        }
    }
}

fn confirm(model: &mut Model, allocator: &mut Allocator, owner: &Owner) {
    let Some(lease) = model.leases.get_mut(owner) else {
        assert!(allocator.confirm(owner).unwrap_err().is_not_found());
        return;
    };
    let was = lease.state;
    lease.state = LeaseState::Confirmed;
    assert_eq!(allocator.confirm(owner).as_ref(), Ok(&*lease));
    let addresses = lease.addresses;
    if was != LeaseState::Confirmed {
        model.make_firm(addresses);
    }
}

fn expire(model: &mut Model, allocator: &mut Allocator) {
    let due = |lease: &&Lease| matches!(lease.state, LeaseState::Pending { expires } if expires <= model.now);
    let due = model.leases.values().filter(due);
    let expected: BTreeSet<Owner> = due.map(|lease| lease.owner.clone()).collect();
    let expired = allocator.expire(model.now);
    let owners: BTreeSet<Owner> = expired.iter().map(|lease| lease.owner.clone()).collect();
    assert_eq!(owners, expected);
    // Those that expire in one call are released in the order in which they are told.
    for lease in expired {
        assert_eq!(model.leases.remove(&lease.owner).as_ref(), Some(&lease));
        model.give_back(&lease);
    }
    let now = model.now;
    model.cooling.retain(|(_, until)| *until > now);
    let cooling = allocator.cooling().count();
    assert_eq!(cooling, model.cooling.len(), "expire leaves nothing unnoticed");
}

fn reserve(model: &mut Model, allocator: &mut Allocator, number: usize) {
    let ip = numbered(number);
    let answer = allocator.reserve(ip, "test");
    if model.reserved.contains(&ip) {
        assert_eq!(answer, Ok(()));
    } else if model.holder(ip).is_some() {
        assert!(matches!(answer, Err(Error::Held { .. })), "{answer:?}");
    } else if model.name_of(ip).is_some() {
        assert!(matches!(answer, Err(Error::Kept { .. })), "{answer:?}");
    } else if model.pool_around(ip).is_some() {
        assert_eq!(answer, Ok(()));
        model.take(ip);
        model.reserved.insert(ip);
    } else {
        assert!(matches!(answer, Err(Error::OutsidePool { .. })), "{answer:?}");
    }
}

/// Only the addresses of these families that fit.
fn filtered(addresses: Addresses, fits: impl Fn(std::net::IpAddr) -> bool) -> Addresses {
    let list: Vec<_> = addresses.iter().filter(|ip| fits(*ip)).collect();
    Addresses::from_list(&list).unwrap()
}
