//! The allocator against a model that is nothing but sets. The property test and the fuzz target
//! `ipam_operations` make up the steps; this file carries them out.

#![expect(clippy::unwrap_used, reason = "functions that tests share panic as tests do")]

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::LazyLock;
use std::time::Duration;

use podwire_ipam::{
    Allocator, Error, Family, Lease, LeaseState, Owner, PoolConfig, Release, Request, Restored,
    Time, Unreserved,
};

const COOLDOWN: Duration = Duration::from_secs(20);
const PENDING_TTL: Duration = Duration::from_secs(30);
const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

/// 12 IPv4 and 8 IPv6 addresses: few enough that everything collides.
pub(crate) fn config() -> PoolConfig {
    let nets = |list: &[&str]| list.iter().map(|net| net.parse().unwrap()).collect();
    let cidrs = nets(&["10.0.0.0/28", "10.9.0.0/31", "fd00::/125", "fd00:1::1/128"]);
    let mut config = PoolConfig::new("model", cidrs);
    config.excluded = nets(&["10.0.0.8/30"]);
    config.cooldown = COOLDOWN;
    config.pending_ttl = PENDING_TTL;
    config
}

/// Every address that may be granted. Made once: the model asks for it in each step.
pub(crate) fn grantable() -> &'static BTreeSet<IpAddr> {
    static GRANTABLE: LazyLock<BTreeSet<IpAddr>> = LazyLock::new(|| {
        let v4 = (1..15).filter(|n| !(8..12).contains(n)).map(|n| format!("10.0.0.{n}"));
        let v4 = v4.chain(["10.9.0.0".to_owned(), "10.9.0.1".to_owned()]);
        let v6 = (1..8).map(|n| format!("fd00::{n}")).chain(["fd00:1::1".to_owned()]);
        v4.chain(v6).map(|text| text.parse().unwrap()).collect()
    });
    &GRANTABLE
}

#[derive(Clone, Debug)]
pub(crate) enum Step {
    Allocate(u8, Wish),
    Confirm(u8),
    Release(u8),
    Expire,
    Wait(u8),
    Reserve(usize),
    Unreserve(usize),
    Restart,
}

#[derive(Clone, Debug)]
pub(crate) enum Wish {
    Any,
    Dual,
    Only(Family),
    Explicit(usize),
}

fn owner(number: u8) -> Owner {
    Owner::new(&format!("container-{number}"), "eth0")
}

/// An address by number: mostly grantable ones, some that never are.
fn numbered(number: usize) -> IpAddr {
    static ALL: LazyLock<Vec<IpAddr>> = LazyLock::new(|| {
        let odd = ["10.0.0.0", "10.0.0.15", "10.0.0.9", "192.168.0.1"];
        grantable().iter().copied().chain(odd.map(|text| text.parse().unwrap())).collect()
    });
    ALL[number % ALL.len()]
}

#[derive(Default)]
struct Model {
    now: Time,
    leases: BTreeMap<Owner, Lease>,
    reserved: BTreeSet<IpAddr>,
    /// In the order of release; the moment from which the address is free again.
    cooling: Vec<(IpAddr, Time)>,
}

impl Model {
    fn holder(&self, address: IpAddr) -> Option<&Owner> {
        let holds = |lease: &&Lease| lease.addresses.iter().any(|held| held == address);
        self.leases.values().find(holds).map(|lease| &lease.owner)
    }

    fn free(&self, family: Family) -> BTreeSet<IpAddr> {
        let cooling: BTreeSet<_> =
            self.cooling.iter().filter(|(_, until)| *until > self.now).map(|(ip, _)| *ip).collect();
        grantable()
            .iter()
            .copied()
            .filter(|ip| Family::of(*ip) == family)
            .filter(|ip| self.holder(*ip).is_none())
            .filter(|ip| !self.reserved.contains(ip) && !cooling.contains(ip))
            .collect()
    }

    fn oldest_cooling(&self, family: Family) -> Option<IpAddr> {
        let mut still = self.cooling.iter().filter(|(_, until)| *until > self.now);
        still.find(|(ip, _)| Family::of(*ip) == family).map(|(ip, _)| *ip)
    }

    /// What must be true of an address that was granted without being asked for by name.
    fn check_choice(&self, granted: IpAddr) {
        let family = Family::of(granted);
        let free = self.free(family);
        if free.is_empty() {
            assert_eq!(Some(granted), self.oldest_cooling(family), "not the oldest release");
        } else {
            assert!(free.contains(&granted), "{granted} granted while {free:?} were free");
        }
    }

    fn take(&mut self, address: IpAddr) {
        self.cooling.retain(|(ip, _)| *ip != address);
    }

    fn give_back(&mut self, lease: &Lease) {
        let until = self.now + COOLDOWN;
        self.cooling.extend(lease.addresses.iter().map(|ip| (ip, until)));
    }
}

fn allocate(model: &mut Model, pool: &mut Allocator, owner: &Owner, wish: &Wish) {
    let explicit = match wish {
        Wish::Explicit(number) => Some(numbered(*number)),
        _ => None,
    };
    let request = match wish {
        Wish::Any => Request::default(),
        Wish::Dual => Request::dual_stack(),
        Wish::Only(family) => Request::family(*family),
        Wish::Explicit(_) => Request::default().with_addresses(explicit.as_slice()).unwrap(),
    };
    let wanted = |family| !matches!(wish, Wish::Only(only) if *only != family);
    let expires = model.now + PENDING_TTL;
    let answer = pool.allocate(owner, &request, model.now);

    if let Some(held) = model.leases.get_mut(owner) {
        let fits = FAMILIES.into_iter().all(|family| {
            let has = held.addresses.of(family);
            match (explicit.filter(|ip| Family::of(*ip) == family), wish) {
                (Some(ip), _) => has == Some(ip),
                (None, Wish::Any | Wish::Explicit(_)) => true,
                (None, _) => has.is_some() == wanted(family),
            }
        });
        if !fits {
            assert!(matches!(answer, Err(Error::OwnerMismatch { .. })), "{answer:?}");
            return;
        }
        if held.state != LeaseState::Confirmed {
            held.state = LeaseState::Pending { expires };
        }
        assert_eq!(answer.as_ref(), Ok(&*held), "the same owner got something else");
        return;
    }
    if let Some(ip) = explicit {
        let expected: Option<fn(&Error) -> bool> = if model.holder(ip).is_some() {
            Some(|error| matches!(error, Error::Held { .. }))
        } else if model.reserved.contains(&ip) {
            Some(|error| matches!(error, Error::Reserved { .. }))
        } else if !pool.contains(ip) {
            Some(|error| matches!(error, Error::OutsidePool { .. }))
        } else if !grantable().contains(&ip) {
            Some(|error| matches!(error, Error::Unusable { .. }))
        } else {
            None
        };
        if let Some(expected) = expected {
            let error = answer.expect_err("explicit address granted");
            // The IPv4 half is chosen first, and may fail first.
            assert!(expected(&error) || error.is_exhausted(), "{error}");
            return;
        }
    }
    let automatic =
        |family: Family| wanted(family) && explicit.is_none_or(|ip| Family::of(ip) != family);
    let none_left = |model: &Model, family: Family| {
        model.free(family).is_empty() && model.oldest_cooling(family).is_none()
    };
    if let Some(family) = FAMILIES.into_iter().find(|f| automatic(*f) && none_left(model, *f)) {
        match answer {
            Err(Error::Exhausted { family: said, pools }) => {
                assert_eq!((said, pools.len(), pools[0].usage.cooling), (family, 1, 0));
            }
            other => panic!("expected {family} to be exhausted, got {other:?}"),
        }
        return;
    }
    let lease = answer.unwrap_or_else(|error| panic!("refused although possible: {error}"));
    assert_eq!(lease.owner, *owner);
    assert_eq!(lease.state, LeaseState::Pending { expires });
    for family in FAMILIES {
        let granted = lease.addresses.of(family);
        assert_eq!(granted.is_some(), wanted(family));
        let Some(ip) = granted else { continue };
        if automatic(family) {
            model.check_choice(ip);
        } else {
            assert_eq!(Some(ip), explicit);
        }
    }
    for ip in lease.addresses.iter() {
        assert_eq!(model.holder(ip), None, "double grant of {ip}");
        assert!(!model.reserved.contains(&ip), "{ip} is reserved");
        assert!(grantable().contains(&ip), "{ip} must never be granted");
        model.take(ip);
    }
    model.leases.insert(owner.clone(), lease);
}

fn apply(model: &mut Model, pool: &mut Allocator, step: &Step) {
    match step {
        Step::Allocate(number, wish) => allocate(model, pool, &owner(*number), wish),
        Step::Confirm(number) => {
            let owner = owner(*number);
            match model.leases.get_mut(&owner) {
                Some(lease) => {
                    lease.state = LeaseState::Confirmed;
                    assert_eq!(pool.confirm(&owner).as_ref(), Ok(&*lease));
                }
                None => assert!(pool.confirm(&owner).unwrap_err().is_not_found()),
            }
        }
        Step::Release(number) => {
            let owner = owner(*number);
            let expected = model.leases.remove(&owner);
            if let Some(lease) = &expected {
                model.give_back(lease);
            }
            let expected = expected.map_or(Release::Absent, Release::Released);
            assert_eq!(pool.release(&owner, model.now), expected);
        }
        Step::Expire => {
            let due = |lease: &Lease| matches!(lease.state, LeaseState::Pending { expires } if expires <= model.now);
            let expected: BTreeSet<Owner> =
                model.leases.values().filter(|lease| due(lease)).map(|l| l.owner.clone()).collect();
            let expired = pool.expire(model.now);
            assert_eq!(expired.iter().map(|l| l.owner.clone()).collect::<BTreeSet<_>>(), expected);
            for lease in expired {
                assert_eq!(model.leases.remove(&lease.owner).as_ref(), Some(&lease));
                model.give_back(&lease);
            }
            let now = model.now;
            model.cooling.retain(|(_, until)| *until > now);
            let cooling: u64 = pool.usage()[0].cidrs.iter().map(|entry| entry.usage.cooling).sum();
            assert_eq!(cooling, model.cooling.len() as u64, "expire leaves nothing unnoticed");
        }
        Step::Wait(seconds) => model.now = model.now + Duration::from_secs((*seconds).into()),
        Step::Reserve(number) => {
            let ip = numbered(*number);
            let answer = pool.reserve(ip, "test");
            if model.holder(ip).is_some() {
                assert!(matches!(answer, Err(Error::Held { .. })), "{answer:?}");
            } else if pool.contains(ip) {
                assert_eq!(answer, Ok(()));
                model.take(ip);
                model.reserved.insert(ip);
            } else {
                assert!(matches!(answer, Err(Error::OutsidePool { .. })), "{answer:?}");
            }
        }
        Step::Unreserve(number) => {
            let ip = numbered(*number);
            let was = model.reserved.remove(&ip);
            assert_eq!(matches!(pool.unreserve(ip), Unreserved::Removed(_)), was);
        }
        Step::Restart => {
            *pool = Allocator::new(&config()).unwrap();
            for ip in &model.reserved {
                pool.reserve(*ip, "test").unwrap();
            }
            for lease in model.leases.values() {
                assert_eq!(pool.restore(lease.clone()), Ok(Restored::Held));
                assert_eq!(pool.restore(lease.clone()), Ok(Restored::Unchanged));
            }
            model.cooling.clear();
        }
    }
}

/// What must be true at any time.
fn check(model: &Model, pool: &Allocator) {
    let leases: BTreeMap<Owner, Lease> =
        pool.leases().map(|lease| (lease.owner.clone(), lease.clone())).collect();
    assert_eq!(leases, model.leases);
    assert_eq!(pool.lease_count(), model.leases.len());
    for &ip in grantable() {
        assert_eq!(pool.holder(ip), model.holder(ip), "{ip}");
    }
    assert_eq!(pool.reservations().map(|(ip, _)| ip).collect::<BTreeSet<_>>(), model.reserved);
    let pending = |lease: &&Lease| matches!(lease.state, LeaseState::Pending { .. });
    let next = model.leases.values().filter(pending).map(|lease| match lease.state {
        LeaseState::Pending { expires } => expires,
        LeaseState::Confirmed => unreachable!(),
    });
    assert_eq!(pool.next_expiry(), next.min());

    assert_eq!(pool.stray(), 0);
    let usage = pool.usage().remove(0);
    for family in FAMILIES {
        let sum = usage.family(family).unwrap();
        let of_family = |lease: &&Lease| lease.addresses.of(family).is_some();
        let count = |state: bool| {
            model.leases.values().filter(of_family).filter(|l| pending(l) == state).count() as u64
        };
        assert_eq!(sum.used, count(false));
        assert_eq!(sum.pending, count(true));
        let reserved = model.reserved.iter().filter(|ip| Family::of(**ip) == family);
        assert_eq!(sum.reserved, reserved.filter(|ip| grantable().contains(ip)).count() as u64);
        // Leaks would show here: whatever is none of the above is free, or cooling and perhaps
        // due to be noticed.
        let cooling_or_free = model.free(family).len()
            + model
                .cooling
                .iter()
                .filter(|(ip, until)| Family::of(*ip) == family && *until > model.now)
                .count();
        assert_eq!(sum.free() + u128::from(sum.cooling), cooling_or_free as u128);
    }
}

/// Carries out the steps on a new pool, and checks it after each.
pub(crate) fn run(steps: &[Step]) {
    let mut model = Model::default();
    let mut pool = Allocator::new(&config()).unwrap();
    for step in steps {
        apply(&mut model, &mut pool, step);
        check(&model, &pool);
    }
}
