use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use crate::leases::{Leases, Slot};
use crate::space::{Count, Place, Refusal, Space};
use crate::{
    Addresses, Error, Family, Lease, LeaseState, Owner, PoolConfig, PoolUsage, Request, Time,
};

/// Addresses that one call makes free again when their cool-down is over. More than one, so that
/// the backlog shrinks; few, so that no call pays for a thousand releases at once.
const FORGET_PER_CALL: usize = 4;

/// Grants the addresses of one pool.
///
/// Every operation costs O(log n) in the number of leases, whatever the size of the CIDRs and
/// however full they are; memory grows with leases alone.
#[derive(Clone, Debug)]
pub struct Allocator {
    name: String,
    cooldown: Duration,
    pending_ttl: Duration,
    v4: Space,
    v6: Space,
    leases: Leases,
    pending: BTreeSet<(Time, Slot)>,
    reserved: BTreeMap<IpAddr, String>,
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

/// What [`Allocator::restore`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Restored {
    /// The lease is held again.
    Held,
    /// The lease is held again, but today's configuration would not grant all of it: an address
    /// lies outside every CIDR or is excluded. Once released it is not granted again.
    Stray,
    /// The owner held exactly these addresses already.
    Unchanged,
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
    /// An allocator that has granted nothing yet.
    ///
    /// A pool without CIDRs is possible; it refuses every request.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidCidr`] and [`Error::Overlap`].
    pub fn new(config: &PoolConfig) -> Result<Self, Error> {
        Ok(Self {
            name: config.name.clone(),
            cooldown: config.cooldown,
            pending_ttl: config.pending_ttl,
            v4: Space::new(Family::V4, config)?,
            v6: Space::new(Family::V6, config)?,
            leases: Leases::default(),
            pending: BTreeSet::new(),
            reserved: BTreeMap::new(),
            stray: 0,
            latest: Time::default(),
        })
    }

    /// Grants addresses to `owner`, or tells what it holds already.
    ///
    /// Of each family the next free address behind the one granted last is taken, CIDR by CIDR.
    /// When none is free, the address released longest ago is taken out of its cool-down. An
    /// explicit address is granted during its cool-down as well. Either all that was asked for is
    /// granted or nothing.
    ///
    /// The lease is pending until [`confirm`](Self::confirm); asking again postpones its expiry.
    ///
    /// # Errors
    ///
    /// [`Error::Exhausted`], [`Error::NoFamily`]; for an owner that holds something else
    /// [`Error::OwnerMismatch`]; for explicit addresses [`Error::Held`], [`Error::Reserved`],
    /// [`Error::OutsidePool`], [`Error::Unusable`].
    pub fn allocate(&mut self, owner: &Owner, request: Request, now: Time) -> Result<Lease, Error> {
        let now = self.observe(now);
        self.v4.forget(now, FORGET_PER_CALL);
        self.v6.forget(now, FORGET_PER_CALL);
        let expires = now + self.pending_ttl;

        if let Some(slot) = self.leases.find(owner) {
            return self.renew(slot, request, expires);
        }
        let v4 = self.choose(Family::V4, request)?;
        let v6 = self.choose(Family::V6, request)?;
        if v4.is_none() && v6.is_none() {
            return Err(Error::NoFamily { pool: self.name.clone(), family: Family::V4 });
        }
        let mut granted = Vec::with_capacity(2);
        for (family, place) in [(Family::V4, v4), (Family::V6, v6)] {
            let Some(place) = place else { continue };
            let space = self.space_mut(family);
            // An explicit or cooling address says nothing about where the free ones are.
            if request.explicit.of(family).is_none() && !space.is_cooling(place) {
                space.advance(place);
            }
            space.take(place, Count::Pending);
            granted.push(space.address(place));
        }
        let lease = Lease {
            owner: owner.clone(),
            addresses: Addresses::from_list(&granted)?,
            state: LeaseState::Pending { expires },
        };
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
        self.v4.forget(now, usize::MAX);
        self.v6.forget(now, usize::MAX);
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

    /// Holds a lease again that was granted before a restart.
    ///
    /// Addresses that the configuration would not grant today are held nevertheless, since their
    /// owner uses them. New grants go on behind the restored addresses, so that an address that
    /// was released shortly before the restart is not the first to be granted.
    ///
    /// # Errors
    ///
    /// [`Error::Conflict`] if another lease has one of the addresses, [`Error::Reserved`],
    /// [`Error::OwnerMismatch`] if the owner holds other addresses, [`Error::NoAddress`]. Nothing
    /// is changed then.
    pub fn restore(&mut self, lease: Lease) -> Result<Restored, Error> {
        if lease.addresses.is_empty() {
            return Err(Error::NoAddress { owner: lease.owner });
        }
        if let Some(slot) = self.leases.find(&lease.owner) {
            let held = self.leases.at(slot).map(|held| held.addresses).unwrap_or_default();
            if held != lease.addresses {
                return Err(Error::OwnerMismatch { owner: lease.owner, held });
            }
            if lease.state == LeaseState::Confirmed {
                self.settle(slot);
            }
            return Ok(Restored::Unchanged);
        }
        for address in lease.addresses.iter() {
            if let Some(holder) = self.leases.holder(address) {
                let (holder, claimant) = (holder.clone(), lease.owner);
                return Err(Error::Conflict { address, holder, claimant });
            }
            if let Some(why) = self.reserved.get(&address) {
                return Err(Error::Reserved { address, why: why.clone() });
            }
        }
        let mut outcome = Restored::Held;
        for address in lease.addresses.iter() {
            let space = self.space_mut(Family::of(address));
            if let Ok(place) = space.locate(address) {
                space.take(place, count(lease.state));
                space.advance_at_least(place);
            } else {
                self.stray += 1;
                outcome = Restored::Stray;
            }
        }
        let state = lease.state;
        let slot = self.leases.insert(lease);
        if let LeaseState::Pending { expires } = state {
            self.pending.insert((expires, slot));
        }
        Ok(outcome)
    }

    /// Sets an address of the pool aside, `why` says for what. Doing so twice for the same reason
    /// is no error; an address that is never granted anyway can be reserved as well.
    ///
    /// # Errors
    ///
    /// [`Error::OutsidePool`], [`Error::Held`], and [`Error::Reserved`] if it is reserved for
    /// another reason.
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
        let space = self.space_mut(Family::of(address));
        match space.locate(address) {
            Ok(place) => space.take(place, Count::Reserved),
            Err(Refusal::Unusable(_)) => {}
            Err(Refusal::Outside) => {
                return Err(Error::OutsidePool { pool: self.name.clone(), address });
            }
        }
        self.reserved.insert(address, why.to_owned());
        Ok(())
    }

    /// Lifts a reservation; the address is free at once.
    pub fn unreserve(&mut self, address: IpAddr) -> Unreserved {
        let Some(why) = self.reserved.remove(&address) else { return Unreserved::Absent };
        let space = self.space_mut(Family::of(address));
        if let Ok(place) = space.locate(address) {
            space.free(place, Count::Reserved);
        }
        Unreserved::Removed(why)
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

    /// Whether `address` is in one of the pool's CIDRs, grantable or not.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        let located = self.space(Family::of(address)).locate(address);
        !matches!(located, Err(Refusal::Outside))
    }

    /// How full the pool is. An address counts as cooling until a call has noticed that its
    /// cool-down is over; [`expire`](Self::expire) notices all.
    #[must_use]
    pub fn usage(&self) -> PoolUsage {
        PoolUsage {
            pool: self.name.clone(),
            cidrs: self.v4.usage().chain(self.v6.usage()).collect(),
            stray: self.stray,
        }
    }

    /// The time never goes back, so that the order of releases is the order of their cool-downs.
    fn observe(&mut self, now: Time) -> Time {
        self.latest = self.latest.max(now);
        self.latest
    }

    fn space(&self, family: Family) -> &Space {
        match family {
            Family::V4 => &self.v4,
            Family::V6 => &self.v6,
        }
    }

    fn space_mut(&mut self, family: Family) -> &mut Space {
        match family {
            Family::V4 => &mut self.v4,
            Family::V6 => &mut self.v6,
        }
    }

    /// The address of one family that `request` leads to, if it leads to one.
    fn choose(&self, family: Family, request: Request) -> Result<Option<Place>, Error> {
        if let Some(address) = request.explicit.of(family) {
            return self.explicit(address).map(Some);
        }
        let space = self.space(family);
        match (request.families.wants(family), space.is_empty()) {
            (Some(false), _) | (None, true) => return Ok(None),
            (Some(true), true) => {
                return Err(Error::NoFamily { pool: self.name.clone(), family });
            }
            (Some(true) | None, false) => {}
        }
        space.next().map(Some).ok_or_else(|| {
            let usage = space.total();
            Error::Exhausted {
                pool: self.name.clone(),
                family,
                size: usage.size,
                used: usage.used,
                pending: usage.pending,
                cooling: usage.cooling,
                reserved: usage.reserved,
            }
        })
    }

    fn explicit(&self, address: IpAddr) -> Result<Place, Error> {
        if let Some(holder) = self.leases.holder(address) {
            return Err(Error::Held { address, holder: holder.clone() });
        }
        if let Some(why) = self.reserved.get(&address) {
            return Err(Error::Reserved { address, why: why.clone() });
        }
        self.space(Family::of(address)).locate(address).map_err(|refusal| {
            let pool = self.name.clone();
            match refusal {
                Refusal::Outside => Error::OutsidePool { pool, address },
                Refusal::Unusable(reason) => Error::Unusable { pool, address, reason },
            }
        })
    }

    /// Answers a request of an owner that holds a lease.
    fn renew(&mut self, slot: Slot, request: Request, expires: Time) -> Result<Lease, Error> {
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
            let space = self.space_mut(Family::of(address));
            if let Ok(place) = space.locate(address) {
                space.recount(place, Count::Pending, Count::Used);
            }
        }
    }

    fn remove(&mut self, slot: Slot, now: Time) -> Option<Lease> {
        let lease = self.leases.remove(slot)?;
        if let LeaseState::Pending { expires } = lease.state {
            self.pending.remove(&(expires, slot));
        }
        let until = now + self.cooldown;
        for address in lease.addresses.iter() {
            let space = self.space_mut(Family::of(address));
            if let Ok(place) = space.locate(address) {
                space.cool(place, count(lease.state), until);
            } else {
                self.stray -= 1;
            }
        }
        Some(lease)
    }
}

fn count(state: LeaseState) -> Count {
    match state {
        LeaseState::Pending { .. } => Count::Pending,
        LeaseState::Confirmed => Count::Used,
    }
}
