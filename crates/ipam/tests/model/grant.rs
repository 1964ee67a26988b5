//! What a request is to lead to.

use std::collections::BTreeSet;
use std::net::IpAddr;

use podwire_ipam::{Allocator, Error, Family, Lease, LeaseState, Owner, Request};

use super::addresses::{FAMILIES, numbered};
use super::state::Model;
use super::{Families, Lists, Wish, pool_name, sticky_name};

/// Why a request may be refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Refusal {
    Exhausted,
    Held,
    Kept,
    NoFamily,
    Outside,
    Reserved,
    UnknownPool,
    Unusable,
}

/// Where an address may come from: any that is left of a pool, or exactly one.
#[derive(Clone, Debug)]
enum Choice {
    AnyOf(BTreeSet<IpAddr>),
    Oldest(IpAddr),
    Exactly(IpAddr),
}

impl Wish {
    fn explicit(&self, family: Family) -> Option<IpAddr> {
        self.explicit.map(numbered).filter(|ip| Family::of(*ip) == family)
    }

    fn name(&self) -> Option<String> {
        self.name.map(sticky_name)
    }

    fn wants(&self, family: Family) -> Option<bool> {
        match self.families {
            Families::Any => None,
            Families::Dual => Some(true),
            Families::Only(only) => Some(only == family),
        }
    }

    /// The names of the pools of a family; none for the first pool.
    fn list(&self, family: Family) -> Vec<&'static str> {
        let numbers = match &self.pools {
            Lists::Default => &Vec::new(),
            Lists::Paired(list) => list,
            Lists::Each(v4, v6) => match family {
                Family::V4 => v4,
                Family::V6 => v6,
            },
        };
        let mut names = Vec::new();
        for name in numbers.iter().map(|number| pool_name(*number)) {
            if !names.contains(&name) {
                names.push(name);
            }
        }
        names
    }

    fn request(&self) -> Request {
        let request = match self.families {
            Families::Any => Request::default(),
            Families::Dual => Request::dual_stack(),
            Families::Only(family) => Request::family(family),
        };
        let explicit: Vec<_> = self.explicit.map(numbered).into_iter().collect();
        let request = request.with_addresses(&explicit).unwrap();
        let names = |numbers: &[usize]| numbers.iter().map(|n| pool_name(*n)).collect::<Vec<_>>();
        let request = match &self.pools {
            Lists::Default => request,
            Lists::Paired(list) => request.from_pools(&names(list)),
            Lists::Each(v4, v6) => {
                request.pools_of(Family::V4, &names(v4)).pools_of(Family::V6, &names(v6))
            }
        };
        match self.name() {
            Some(name) => request.sticky(&name),
            None => request,
        }
    }
}

fn kind(error: &Error) -> Option<Refusal> {
    Some(match error {
        Error::Exhausted { .. } => Refusal::Exhausted,
        Error::Held { .. } => Refusal::Held,
        Error::Kept { .. } => Refusal::Kept,
        Error::NoFamily { .. } => Refusal::NoFamily,
        Error::OutsidePool { .. } => Refusal::Outside,
        Error::Reserved { .. } => Refusal::Reserved,
        Error::UnknownPool { .. } => Refusal::UnknownPool,
        Error::Unusable { .. } => Refusal::Unusable,
        _ => return None,
    })
}

pub(super) fn allocate(model: &mut Model, allocator: &mut Allocator, owner: &Owner, wish: &Wish) {
    let answer = allocator.allocate(owner, &wish.request(), model.now);
    if model.leases.contains_key(owner) {
        return renewed(model, owner, wish, &answer);
    }
    let choices = match expected(model, wish) {
        Ok(choices) => choices,
        Err(reasons) => {
            let error = answer.expect_err("granted although there are reasons not to");
            let kind = kind(&error).unwrap_or_else(|| panic!("{error}"));
            assert!(reasons.contains(&kind), "{error}, expected {reasons:?}");
            if let Error::Exhausted { pools, .. } = error {
                let nothing = pools.iter().all(|pool| pool.usage.free() == 0);
                assert!(nothing && pools.iter().all(|pool| pool.usage.cooling == 0), "{pools:?}");
            }
            return;
        }
    };
    let lease = answer.unwrap_or_else(|error| panic!("refused although possible: {error}"));
    assert_eq!(lease.owner, *owner);
    for (choice, family) in choices.into_iter().zip(FAMILIES) {
        let granted = lease.addresses.of(family);
        match choice {
            None => assert_eq!(granted, None, "granted though not wanted"),
            Some(Choice::AnyOf(free)) => {
                let granted = granted.expect("an address is free");
                assert!(free.contains(&granted), "{granted} granted while {free:?} were free");
            }
            Some(Choice::Oldest(ip)) => assert_eq!(granted, Some(ip), "not the oldest release"),
            Some(Choice::Exactly(ip)) => assert_eq!(granted, Some(ip)),
        }
    }
    for ip in lease.addresses.iter() {
        assert_eq!(model.holder(ip), None, "double grant of {ip}");
        assert!(!model.reserved.contains(&ip), "{ip} is reserved");
        let (_, part) = model.home(ip).unwrap_or_else(|| panic!("{ip} is never granted"));
        assert!(!part.drained, "{ip} is of a CIDR that is drained");
        let kept = model.name_of(ip).cloned();
        assert!(kept.is_none() || kept == wish.name(), "{ip} is kept for {kept:?}");
        model.take(ip);
    }
    let (pool, _) = model.home(lease.addresses.iter().next().expect("an address")).unwrap();
    let expires = model.now + model.pools[pool].pending_ttl();
    assert_eq!(lease.state, LeaseState::Pending { expires });
    if let Some(name) = wish.name() {
        lease.addresses.iter().for_each(|ip| model.bind(&name, ip));
    }
    model.leases.insert(owner.clone(), lease);
}

/// The same owner is told what it holds, if that is what it asks for.
fn renewed(model: &mut Model, owner: &Owner, wish: &Wish, answer: &Result<Lease, Error>) {
    let held = &model.leases[owner];
    let fits = FAMILIES.into_iter().all(|family| {
        let has = held.addresses.of(family);
        match (wish.explicit(family), wish.wants(family)) {
            (Some(ip), _) => has == Some(ip),
            (None, Some(wanted)) => has.is_some() == wanted,
            (None, None) => true,
        }
    });
    if !fits {
        assert!(matches!(answer, Err(Error::OwnerMismatch { .. })), "{answer:?}");
        return;
    }
    let home = held.addresses.iter().next().and_then(|ip| model.home(ip));
    let expires = home.map(|(pool, _)| model.now + model.pools[pool].pending_ttl());
    let held = model.leases.get_mut(owner).unwrap();
    if let (LeaseState::Pending { expires: at }, Some(later)) = (&mut held.state, expires) {
        *at = later;
    }
    assert_eq!(answer.as_ref(), Ok(&*held), "the same owner got something else");
}

/// What each family is to get, or all reasons to refuse, of which one is told.
fn expected(model: &mut Model, wish: &Wish) -> Result<[Option<Choice>; 2], Vec<Refusal>> {
    let mut reasons = Vec::new();
    let name = wish.name().and_then(|name| model.names.get(&name).copied()).unwrap_or_default();
    if name.addresses.iter().any(|ip| model.holder(ip).is_some()) {
        reasons.push(Refusal::Held);
    }
    let mut lists = [Vec::new(), Vec::new()];
    for (list, family) in lists.iter_mut().zip(FAMILIES) {
        let names = wish.list(family);
        if names.is_empty() {
            list.extend((!model.pools.is_empty()).then_some(0));
        }
        for name in names {
            match model.pool(name) {
                Some(pool) => list.push(pool),
                None => reasons.push(Refusal::UnknownPool),
            }
        }
    }
    if !reasons.is_empty() {
        return Err(reasons);
    }
    let mut choices = [None, None];
    let mut open = [false, false];
    for (at, family) in FAMILIES.into_iter().enumerate() {
        let there_is = lists[at].iter().any(|pool| model.pools[*pool].has(family));
        if let Some(ip) = wish.explicit(family) {
            reasons.extend(obstacle(model, ip, &lists[at], wish));
            choices[at] = Some(Choice::Exactly(ip));
        } else if wish.wants(family) != Some(false) {
            let kept = name.addresses.of(family).filter(|ip| {
                model
                    .home(*ip)
                    .is_some_and(|(pool, part)| lists[at].contains(&pool) && !part.drained)
            });
            choices[at] = kept.map(Choice::Exactly);
            open[at] = kept.is_none() && there_is;
            if wish.wants(family) == Some(true) && kept.is_none() && !there_is {
                reasons.push(Refusal::NoFamily);
            }
        }
    }
    if choices.iter().all(Option::is_none) && open == [false, false] {
        reasons.push(Refusal::NoFamily);
    }
    if !reasons.is_empty() {
        // Only one of the reasons; and none is looked for in the pools before.
        return Err(reasons);
    }
    if open == [true, true] && wish.list(Family::V4) == wish.list(Family::V6) {
        let passes = [Model::free_one, Model::any_one];
        let pair = passes.into_iter().find_map(|choose| pair(model, &lists[0], wish, choose));
        if let Some((pool, pair)) = pair {
            for family in FAMILIES {
                note_exhausted(model, &lists[0], family, Some(pool));
            }
            return Ok(pair);
        }
    }
    for (at, family) in FAMILIES.into_iter().enumerate().filter(|(at, _)| open[*at]) {
        let first = |choose: fn(&Model, usize, Family) -> Option<Choice>| {
            lists[at].iter().find_map(|pool| Some((*pool, choose(model, *pool, family)?)))
        };
        let found = first(Model::free_one).or_else(|| first(Model::any_one));
        note_exhausted(model, &lists[at], family, found.as_ref().map(|(pool, _)| *pool));
        choices[at] = Some(found.ok_or_else(|| vec![Refusal::Exhausted])?.1);
    }
    Ok(choices)
}

/// What keeps an address that is asked for by name from being granted.
fn obstacle(model: &Model, ip: IpAddr, list: &[usize], wish: &Wish) -> Option<Refusal> {
    let kept = model.name_of(ip).cloned();
    if model.holder(ip).is_some() {
        Some(Refusal::Held)
    } else if model.reserved.contains(&ip) {
        Some(Refusal::Reserved)
    } else if kept.is_some() && kept != wish.name() {
        Some(Refusal::Kept)
    } else if !model.pool_around(ip).is_some_and(|pool| list.contains(&pool)) {
        Some(Refusal::Outside)
    } else if model.home(ip).is_none_or(|(_, part)| part.drained) {
        Some(Refusal::Unusable)
    } else {
        None
    }
}

/// The first pool that has all that is wanted of it.
fn pair(
    model: &Model,
    list: &[usize],
    wish: &Wish,
    choose: fn(&Model, usize, Family) -> Option<Choice>,
) -> Option<(usize, [Option<Choice>; 2])> {
    list.iter().find_map(|&pool| {
        let wanted =
            |family: &Family| wish.wants(*family).is_some() || model.pools[pool].has(*family);
        let wanted: Vec<_> = FAMILIES.into_iter().filter(wanted).collect();
        let mut pair = [None, None];
        for family in &wanted {
            pair[usize::from(*family == Family::V6)] = Some(choose(model, pool, *family)?);
        }
        (!wanted.is_empty()).then_some((pool, pair))
    })
}

/// Pools that were asked before the one that had an address, and have nothing at all.
fn note_exhausted(model: &mut Model, list: &[usize], family: Family, found: Option<usize>) {
    for &pool in list.iter().take_while(|pool| Some(**pool) != found) {
        if model.pools[pool].has(family) && model.any_one(pool, family).is_none() {
            model.pools[pool].exhausted[usize::from(family == Family::V6)] += 1;
        }
    }
}

impl Model {
    fn free_one(&self, pool: usize, family: Family) -> Option<Choice> {
        Some(self.free(pool, family)).filter(|free| !free.is_empty()).map(Choice::AnyOf)
    }

    fn any_one(&self, pool: usize, family: Family) -> Option<Choice> {
        let oldest = || self.oldest_cooling(pool, family).map(Choice::Oldest);
        self.free_one(pool, family).or_else(oldest)
    }
}
