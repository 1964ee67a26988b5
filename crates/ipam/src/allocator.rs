mod choose;
mod edit;
pub(crate) mod restore;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use crate::leases::{Leases, Slot};
use crate::pools::{Pools, Spot};
use crate::space::{Count, Refusal};
use crate::sticky::{Binding, Stickies};
use crate::{
    Addresses, Error, Family, Lease, LeaseState, Owner, PoolConfig, PoolUsage, Request, Time,
};

/// Addresses that one call makes free again when their cool-down is over. More than one, so that
/// the backlog shrinks; few, so that no call pays for a thousand releases at once.
const FORGET_PER_CALL: usize = 4;

/// Grants the addresses of one or several pools.
///
/// Every grant, confirmation and release costs O(log n) in the number of leases, whatever the size
/// of the CIDRs and however full they are; memory grows with leases alone.
#[derive(Clone, Debug, Default)]
pub struct Allocator {
    pools: Pools,
    leases: Leases,
    pending: BTreeSet<(Time, Slot)>,
    reserved: BTreeMap<IpAddr, String>,
    stickies: Stickies,
    stray: u64,
    latest: Time,
}

/// What [`Allocator::release`] found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Release {
    /// The lease that the owner held until now.
    Released(Lease),
    /// The owner held nothing.
    Absent,
}

/// What [`Allocator::unreserve`] found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unreserved {
    /// The reservation that stood until now, by its reason.
    Removed(String),
    /// There was no reservation.
    Absent,
}

impl Allocator {
    /// An allocator of one pool that has granted nothing yet.
    ///
    /// A pool without CIDRs is possible; it refuses every request.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidCidr`] and [`Error::Overlap`].
    pub fn new(pool: &PoolConfig) -> Result<Self, Error> {
        Self::with_pools([pool])
    }

    /// An allocator of several pools that has granted nothing yet. Requests that name no pool get
    /// the addresses of the first.
    ///
    /// # Errors
    ///
    /// As [`add_pool`](Self::add_pool).
    pub fn with_pools<'a>(pools: impl IntoIterator<Item = &'a PoolConfig>) -> Result<Self, Error> {
        let mut allocator = Self::default();
        for pool in pools {
            allocator.add_pool(pool)?;
        }
        Ok(allocator)
    }

    /// Grants addresses to `owner`, or tells what it holds already.
    ///
    /// Of each family the next free address behind the one granted last is taken, pool by pool and
    /// CIDR by CIDR. When none is free in any pool of the request, the address released longest ago
    /// is taken out of its cool-down. An explicit address is granted during its cool-down as well.
    /// Either all that was asked for is granted or nothing.
    ///
    /// The lease is pending until [`confirm`](Self::confirm); asking again postpones its expiry.
    ///
    /// # Errors
    ///
    /// [`Error::Exhausted`], [`Error::NoFamily`], [`Error::UnknownPool`]; for an owner that holds
    /// something else [`Error::OwnerMismatch`]; for explicit addresses [`Error::Held`],
    /// [`Error::Reserved`], [`Error::Kept`], [`Error::OutsidePool`], [`Error::Unusable`]; for a
    /// sticky name whose address somebody has, [`Error::Held`].
    pub fn allocate(
        &mut self,
        owner: &Owner,
        request: &Request,
        now: Time,
    ) -> Result<Lease, Error> {
        let now = self.observe(now);
        for pool in self.pools.iter_mut() {
            pool.v4.forget(now, FORGET_PER_CALL);
            pool.v6.forget(now, FORGET_PER_CALL);
        }
        if let Some(slot) = self.leases.find(owner) {
            return self.renew(slot, request, now);
        }
        let chosen = self.choose(request)?;
        let first = chosen.iter().flatten().next().expect("one of both families at least");
        let expires = now + self.pools.at(first.pool).pending_ttl;
        let mut addresses = Addresses::default();
        for spot in chosen.into_iter().flatten() {
            let address = self.pools.address(spot);
            let is_kept = self.stickies.name(address).is_some();
            let space = self.pools.space_of(spot);
            // An explicit, kept or cooling address says nothing about where the free ones are.
            let is_next = request.explicit.of(spot.family).is_none();
            if is_next && !is_kept && !space.is_cooling(spot.place) {
                space.advance(spot.place);
            }
            if is_kept {
                space.recount(spot.place, Count::Kept, Count::Pending);
            } else {
                space.take(spot.place, Count::Pending);
            }
            if let Some(name) = &request.sticky {
                self.bind(name, address, now);
            }
            addresses.replace(address);
        }
        let lease =
            Lease { owner: owner.clone(), addresses, state: LeaseState::Pending { expires } };
        let slot = self.leases.insert(lease.clone());
        self.pending.insert((expires, slot));
        Ok(lease)
    }

    /// Makes the lease of `owner` last until it is released. Confirming twice is no error.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownOwner`], also if the lease has expired meanwhile.
    pub fn confirm(&mut self, owner: &Owner) -> Result<Lease, Error> {
        let slot =
            self.leases.find(owner).ok_or_else(|| Error::UnknownOwner { owner: owner.clone() })?;
        self.settle(slot);
        self.leases.at(slot).cloned().ok_or_else(|| Error::UnknownOwner { owner: owner.clone() })
    }

    /// Takes the lease of `owner` back, pending or confirmed; its addresses begin to cool down.
    pub fn release(&mut self, owner: &Owner, now: Time) -> Release {
        let now = self.observe(now);
        match self.leases.find(owner).and_then(|slot| self.remove(slot, now)) {
            Some(lease) => Release::Released(lease),
            None => Release::Absent,
        }
    }

    /// Takes back the leases that nobody confirmed in time, and makes addresses free whose
    /// cool-down is over.
    ///
    /// Nothing expires by itself: a pending lease stays held, and can be confirmed, until it was
    /// returned from here. To be called before [`allocate`](Self::allocate), or at
    /// [`next_expiry`](Self::next_expiry); it costs nothing when nothing is due.
    pub fn expire(&mut self, now: Time) -> Vec<Lease> {
        let now = self.observe(now);
        for pool in self.pools.iter_mut() {
            pool.v4.forget(now, usize::MAX);
            pool.v6.forget(now, usize::MAX);
        }
        let mut expired = Vec::new();
        while let Some(&(expires, slot)) = self.pending.first() {
            if expires > now {
                break;
            }
            self.pending.pop_first();
            expired.extend(self.remove(slot, now));
        }
        expired
    }

    /// When the next pending lease may be taken back.
    #[must_use]
    pub fn next_expiry(&self) -> Option<Time> {
        self.pending.first().map(|(expires, _)| *expires)
    }

    /// The leases that [`expire`](Self::expire) would take back.
    pub(crate) fn due(&self, now: Time) -> impl Iterator<Item = &Lease> {
        let now = now.max(self.latest);
        let due = self.pending.iter().take_while(move |(expires, _)| *expires <= now);
        due.filter_map(|(_, slot)| self.leases.at(*slot))
    }

    /// Sets an address of a pool aside, `why` says for what. Doing so twice for the same reason is no
    /// error; an address that is never granted anyway can be reserved as well.
    ///
    /// # Errors
    ///
    /// [`Error::OutsidePool`], [`Error::Held`], [`Error::Kept`], and [`Error::Reserved`] if it is
    /// reserved for another reason.
    pub fn reserve(&mut self, address: IpAddr, why: &str) -> Result<(), Error> {
        if let Some(earlier) = self.reserved.get(&address) {
            return if earlier == why {
                Ok(())
            } else {
                Err(Error::Reserved { address, why: earlier.clone() })
            };
        }
        if let Some(holder) = self.leases.holder(address) {
            return Err(Error::Held { address, holder: holder.clone() });
        }
        if let Some(name) = self.stickies.name(address) {
            return Err(Error::Kept { address, name: name.to_string() });
        }
        match self.pools.locate(address) {
            Ok(spot) => self.pools.space_of(spot).take(spot.place, Count::Reserved),
            Err((_, Refusal::Unusable(_))) => {}
            Err((_, Refusal::Outside)) => {
                return Err(Error::OutsidePool { pool: self.pools.names().join(", "), address });
            }
        }
        self.reserved.insert(address, why.to_owned());
        Ok(())
    }

    /// Lifts a reservation; the address is free at once.
    pub fn unreserve(&mut self, address: IpAddr) -> Unreserved {
        let Some(why) = self.reserved.remove(&address) else { return Unreserved::Absent };
        if let Ok(spot) = self.pools.locate(address) {
            self.pools.space_of(spot).free(spot.place, Count::Reserved);
        }
        Unreserved::Removed(why)
    }

    /// Ends what [`Request::sticky`] began: the addresses of the name that nobody has cool down, and
    /// those of a lease no longer outlive it. Gives the name's addresses, which may be none.
    pub fn forget(&mut self, name: &str, now: Time) -> Addresses {
        let now = self.observe(now);
        let addresses = self.stickies.addresses(name);
        for address in addresses.iter() {
            self.unbind(address, now);
        }
        addresses
    }

    /// The sticky names and their addresses, sorted by name.
    pub fn stickies(&self) -> impl Iterator<Item = (&str, Addresses)> {
        self.stickies.iter()
    }

    /// The lease of `owner`.
    #[must_use]
    pub fn lease(&self, owner: &Owner) -> Option<&Lease> {
        self.leases.find(owner).and_then(|slot| self.leases.at(slot))
    }

    /// Who holds `address`.
    #[must_use]
    pub fn holder(&self, address: IpAddr) -> Option<&Owner> {
        self.leases.holder(address)
    }

    /// All leases, in no particular order.
    pub fn leases(&self) -> impl Iterator<Item = &Lease> {
        self.leases.iter()
    }

    /// How many leases there are, pending ones included.
    #[must_use]
    pub fn lease_count(&self) -> usize {
        self.leases.len()
    }

    /// The reserved addresses and why they are, IPv4 first, ascending.
    pub fn reservations(&self) -> impl Iterator<Item = (IpAddr, &str)> {
        self.reserved.iter().map(|(address, why)| (*address, why.as_str()))
    }

    /// Why `address` is reserved, if it is.
    #[must_use]
    pub fn reservation(&self, address: IpAddr) -> Option<&str> {
        self.reserved.get(&address).map(String::as_str)
    }

    /// Whether `address` is in a CIDR of a pool, grantable or not.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        !matches!(self.pools.locate(address), Err((_, Refusal::Outside)))
    }

    /// The pool that `address` is granted from, or would be if it could.
    #[must_use]
    pub fn pool_of(&self, address: IpAddr) -> Option<&str> {
        let pool = match self.pools.locate(address) {
            Ok(spot) => Some(spot.pool),
            Err((pool, _)) => pool,
        };
        pool.map(|pool| self.pools.at(pool).name.as_str())
    }

    /// Released addresses in their cool-down and the moments when it ends, of each pool and family
    /// the oldest release first.
    pub fn cooling(&self) -> impl Iterator<Item = (IpAddr, Time)> {
        self.pools.iter().flat_map(|pool| pool.v4.cooling().chain(pool.v6.cooling()))
    }

    /// When the cool-down of `address` ends, if it is in it.
    pub(crate) fn cooling_until(&self, address: IpAddr) -> Option<Time> {
        let spot = self.pools.locate(address).ok()?;
        self.pools.at(spot.pool).space(spot.family).cooling_until(spot.place)
    }

    /// The sticky name that `address` belongs to.
    pub(crate) fn sticky_name(&self, address: IpAddr) -> Option<&str> {
        self.stickies.name(address).map(|name| &**name)
    }

    /// What a sticky name has, and whether it keeps that.
    pub(crate) fn binding(&self, name: &str) -> Option<Binding> {
        self.stickies.binding(name)
    }

    /// How full the pools are. An address counts as cooling until a call has noticed that its
    /// cool-down is over; [`expire`](Self::expire) notices all.
    #[must_use]
    pub fn usage(&self) -> Vec<PoolUsage> {
        self.pools.iter().map(crate::pools::Pool::usage).collect()
    }

    /// Addresses of leases that the configuration would not grant: see
    /// [`Restored::Stray`](crate::Restored::Stray).
    #[must_use]
    pub fn stray(&self) -> u64 {
        self.stray
    }

    /// The time never goes back, so that the order of releases is the order of their cool-downs.
    fn observe(&mut self, now: Time) -> Time {
        self.latest = self.latest.max(now);
        self.latest
    }

    /// Answers a request of an owner that holds a lease.
    fn renew(&mut self, slot: Slot, request: &Request, now: Time) -> Result<Lease, Error> {
        let Some(lease) = self.leases.at_mut(slot) else {
            unreachable!("the index names live slots")
        };
        let satisfied = [Family::V4, Family::V6].into_iter().all(|family| {
            let held = lease.addresses.of(family);
            match (request.explicit.of(family), request.families.wants(family)) {
                (Some(explicit), _) => held == Some(explicit),
                (None, Some(wanted)) => held.is_some() == wanted,
                (None, None) => true,
            }
        });
        if !satisfied {
            let (owner, held) = (lease.owner.clone(), lease.addresses);
            return Err(Error::OwnerMismatch { owner, held });
        }
        if let LeaseState::Pending { expires: earlier } = lease.state {
            let first = lease.addresses.iter().next();
            let pool = first.and_then(|address| self.pools.locate(address).ok());
            // A stray lease belongs to no pool that could say how long.
            let expires = pool.map_or(earlier, |spot| now + self.pools.at(spot.pool).pending_ttl);
            self.pending.remove(&(earlier, slot));
            self.pending.insert((expires, slot));
            lease.state = LeaseState::Pending { expires };
        }
        Ok(lease.clone())
    }

    /// Makes a pending lease a confirmed one.
    fn settle(&mut self, slot: Slot) {
        let Some(lease) = self.leases.at_mut(slot) else { return };
        let LeaseState::Pending { expires } = lease.state else { return };
        lease.state = LeaseState::Confirmed;
        let addresses = lease.addresses;
        self.pending.remove(&(expires, slot));
        for address in addresses.iter() {
            if let Ok(spot) = self.pools.locate(address) {
                self.pools.space_of(spot).recount(spot.place, Count::Pending, Count::Used);
            }
            self.stickies.make_firm(address);
        }
    }

    fn remove(&mut self, slot: Slot, now: Time) -> Option<Lease> {
        let lease = self.leases.remove(slot)?;
        if let LeaseState::Pending { expires } = lease.state {
            self.pending.remove(&(expires, slot));
        }
        for address in lease.addresses.iter() {
            let kept = self.stickies.is_firm(address);
            if !kept {
                self.stickies.unbind(address);
            }
            match self.pools.locate(address) {
                Ok(spot) if kept => {
                    let space = self.pools.space_of(spot);
                    space.recount(spot.place, count(lease.state), Count::Kept);
                }
                Ok(spot) => self.cool(spot, count(lease.state), now),
                Err(_) => self.stray -= 1,
            }
        }
        Some(lease)
    }

    /// Lets `name` have `address`, and lets the one that it had of this family go.
    fn bind(&mut self, name: &str, address: IpAddr, now: Time) {
        if let Some(former) = self.stickies.bind(name, address) {
            self.let_go(former, now);
        }
    }

    fn unbind(&mut self, address: IpAddr, now: Time) {
        self.stickies.unbind(address);
        self.let_go(address, now);
    }

    /// Lets an address cool down that no name has any more, unless a lease has it.
    fn let_go(&mut self, address: IpAddr, now: Time) {
        if self.leases.holder(address).is_none()
            && let Ok(spot) = self.pools.locate(address)
        {
            self.cool(spot, Count::Kept, now);
        }
    }

    fn cool(&mut self, spot: Spot, count: Count, now: Time) {
        let until = now + self.pools.at(spot.pool).cooldown;
        self.pools.space_of(spot).cool(spot.place, count, until);
    }
}

fn count(state: LeaseState) -> Count {
    match state {
        LeaseState::Pending { .. } => Count::Pending,
        LeaseState::Confirmed => Count::Used,
    }
}
