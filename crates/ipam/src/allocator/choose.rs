//! Which addresses a request leads to.

use std::borrow::Cow;
use std::net::IpAddr;

use super::Allocator;
use crate::pools::Spot;
use crate::space::{Place, Refusal, Space};
use crate::{Error, Family, PoolState, Request, Unusable};

const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

/// Addresses that never had an owner, or had one long enough ago.
fn free(space: &Space) -> Option<Place> {
    space.next_free()
}

/// These, or else the one released longest ago.
fn any(space: &Space) -> Option<Place> {
    space.next_free().or_else(|| space.oldest())
}

impl Allocator {
    /// The addresses that an owner which has none is to be granted, IPv4 first; one at least.
    pub(super) fn choose(&mut self, request: &Request) -> Result<[Option<Spot>; 2], Error> {
        self.check_name_is_idle(request)?;
        let v4 = self.pools_of(request, Family::V4)?;
        let v6 = match request.is_paired() {
            true => None,
            false => Some(self.pools_of(request, Family::V6)?),
        };
        let lists = [&*v4, v6.as_deref().unwrap_or(&v4)];
        let mut chosen = [None, None];
        let mut open = [false, false];
        for (at, family) in FAMILIES.into_iter().enumerate() {
            let (list, wanted) = (lists[at], request.families.wants(family));
            chosen[at] = match request.explicit.of(family) {
                Some(address) => Some(self.explicit(address, list, request)?),
                None if wanted == Some(false) => None,
                None => self.kept_for(request, family, list),
            };
            let there_is = list.iter().any(|pool| !self.pools.at(*pool).space(family).is_empty());
            if chosen[at].is_none() && wanted == Some(true) && !there_is {
                return Err(self.no_family(list, family));
            }
            open[at] = chosen[at].is_none() && wanted != Some(false) && there_is;
        }
        if chosen == [None, None] && open == [false, false] {
            return Err(self.no_family(lists[0], Family::V4));
        }
        if open == [true, true] && request.is_paired() {
            let pair = self.pair(lists[0], request, free);
            if let Some(pair) = pair.or_else(|| self.pair(lists[0], request, any)) {
                let pool = pair.into_iter().flatten().next().map(|spot| spot.pool);
                for family in FAMILIES {
                    self.note_exhausted(lists[0], family, pool);
                }
                return Ok(pair);
            }
        }
        for (at, family) in FAMILIES.into_iter().enumerate() {
            if !open[at] {
                continue;
            }
            chosen[at] = self.single(lists[at], family);
            self.note_exhausted(lists[at], family, chosen[at].map(|spot| spot.pool));
            if chosen[at].is_none() {
                return Err(self.exhausted_error(lists[at], family));
            }
        }
        Ok(chosen)
    }

    /// The pools of a request for one family, in its order.
    fn pools_of(&self, request: &Request, family: Family) -> Result<Cow<'static, [usize]>, Error> {
        let named = request.pools(family);
        if named.is_empty() {
            return Ok(if self.pools.is_empty() { &[][..] } else { &[0] }.into());
        }
        named.iter().map(|name| self.pools.find(name)).collect()
    }

    /// The addresses of the first pool that has all families of it that the request wants.
    fn pair(
        &self,
        list: &[usize],
        request: &Request,
        choose: fn(&Space) -> Option<Place>,
    ) -> Option<[Option<Spot>; 2]> {
        list.iter().find_map(|&pool| {
            let mut pair = [None, None];
            for (at, family) in FAMILIES.into_iter().enumerate() {
                let space = self.pools.at(pool).space(family);
                if space.is_empty() && request.families.wants(family).is_none() {
                    continue;
                }
                pair[at] = Some(Spot { pool, family, place: choose(space)? });
            }
            (pair != [None, None]).then_some(pair)
        })
    }

    /// An address of one family: a free one of the first pool that has some, else one that cools down.
    fn single(&self, list: &[usize], family: Family) -> Option<Spot> {
        let first = |choose: fn(&Space) -> Option<Place>| {
            list.iter().find_map(|&pool| {
                let place = choose(self.pools.at(pool).space(family))?;
                Some(Spot { pool, family, place })
            })
        };
        first(free).or_else(|| first(any))
    }

    fn explicit(&self, address: IpAddr, list: &[usize], request: &Request) -> Result<Spot, Error> {
        if let Some(holder) = self.leases.holder(address) {
            return Err(Error::Held { address, holder: holder.clone() });
        }
        if let Some(why) = self.reserved.get(&address) {
            return Err(Error::Reserved { address, why: why.clone() });
        }
        if let Some(name) = self.stickies.name(address)
            && request.sticky.as_deref() != Some(name)
        {
            return Err(Error::Kept { address, name: name.to_string() });
        }
        let unusable = |pool: usize, reason| {
            let pool = self.pools.at(pool).name.clone();
            Error::Unusable { pool, address, reason }
        };
        match self.pools.locate(address) {
            Ok(spot) if list.contains(&spot.pool) => {
                let space = self.pools.at(spot.pool).space(spot.family);
                if space.is_drained(spot.place) {
                    return Err(unusable(spot.pool, Unusable::Drained(space.cidr(spot.place))));
                }
                Ok(spot)
            }
            Err((Some(pool), Refusal::Unusable(reason))) if list.contains(&pool) => {
                Err(unusable(pool, reason))
            }
            _ => {
                let names: Vec<_> = list.iter().map(|pool| &*self.pools.at(*pool).name).collect();
                Err(Error::OutsidePool { pool: names.join(", "), address })
            }
        }
    }

    /// A sticky name has one owner at a time, whatever else the request asks for.
    fn check_name_is_idle(&self, request: &Request) -> Result<(), Error> {
        let Some(name) = &request.sticky else { return Ok(()) };
        for address in self.stickies.addresses(name).iter() {
            if let Some(holder) = self.leases.holder(address) {
                return Err(Error::Held { address, holder: holder.clone() });
            }
        }
        Ok(())
    }

    /// The address that the sticky name of the request has, if it can be granted again.
    fn kept_for(&self, request: &Request, family: Family, list: &[usize]) -> Option<Spot> {
        let address = self.stickies.addresses(request.sticky.as_ref()?).of(family)?;
        // In another pool now, or in a CIDR that is to become empty: it gets another address.
        self.pools.locate(address).ok().filter(|spot| {
            let space = self.pools.at(spot.pool).space(family);
            list.contains(&spot.pool) && !space.is_drained(spot.place)
        })
    }

    /// Counts the pools of a list that were asked in vain before `found` had an address.
    fn note_exhausted(&mut self, list: &[usize], family: Family, found: Option<usize>) {
        for &pool in list.iter().take_while(|pool| Some(**pool) != found) {
            let pool = self.pools.at_mut(pool);
            let space = pool.space(family);
            if space.is_empty() || any(space).is_some() {
                continue;
            }
            match family {
                Family::V4 => pool.exhausted_v4 += 1,
                Family::V6 => pool.exhausted_v6 += 1,
            }
        }
    }

    fn no_family(&self, list: &[usize], family: Family) -> Error {
        let pools = list.iter().map(|pool| self.pools.at(*pool).name.clone()).collect();
        Error::NoFamily { pools, family }
    }

    fn exhausted_error(&self, list: &[usize], family: Family) -> Error {
        let pools = list.iter().map(|pool| self.pools.at(*pool));
        let pools = pools
            .filter(|pool| !pool.space(family).is_empty())
            .map(|pool| PoolState { pool: pool.name.clone(), usage: pool.space(family).total() });
        Error::Exhausted { family, pools: pools.collect() }
    }
}
