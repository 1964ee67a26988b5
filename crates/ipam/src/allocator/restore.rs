//! What a restart holds again.

use std::net::IpAddr;

use super::{Allocator, count};
use crate::space::Count;
use crate::{Addresses, Error, Lease, LeaseState, Time};

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

impl Allocator {
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
            let is_kept = self.stickies.name(address).is_some();
            let Ok(spot) = self.pools.locate(address) else {
                self.stray += 1;
                outcome = Restored::Stray;
                continue;
            };
            let space = self.pools.space_of(spot);
            if is_kept {
                space.recount(spot.place, Count::Kept, count(lease.state));
            } else {
                space.take(spot.place, count(lease.state));
                space.advance_at_least(spot.place);
            }
        }
        let state = lease.state;
        let slot = self.leases.insert(lease);
        if let LeaseState::Pending { expires } = state {
            self.pending.insert((expires, slot));
        }
        Ok(outcome)
    }

    /// Lets a sticky name have these addresses again, in the place of others that it had. To be called
    /// before the leases are restored. Addresses that no pool grants today are left out, and the
    /// outcome is [`Restored::Stray`] then.
    ///
    /// # Errors
    ///
    /// [`Error::Kept`] if another name has one of the addresses, [`Error::Reserved`], and
    /// [`Error::Held`] if a lease has it. Nothing is changed then.
    pub fn restore_sticky(&mut self, name: &str, addresses: Addresses) -> Result<Restored, Error> {
        for address in addresses.iter() {
            match self.stickies.name(address) {
                Some(other) if **other != *name => {
                    return Err(Error::Kept { address, name: other.to_string() });
                }
                Some(_) => continue,
                None => {}
            }
            if let Some(why) = self.reserved.get(&address) {
                return Err(Error::Reserved { address, why: why.clone() });
            }
            if let Some(holder) = self.leases.holder(address) {
                return Err(Error::Held { address, holder: holder.clone() });
            }
        }
        if self.stickies.addresses(name) == addresses {
            return Ok(Restored::Unchanged);
        }
        let mut outcome = Restored::Held;
        for address in addresses.iter() {
            if self.stickies.name(address).is_some() {
                continue;
            }
            let Ok(spot) = self.pools.locate(address) else {
                outcome = Restored::Stray;
                continue;
            };
            self.pools.space_of(spot).take(spot.place, Count::Kept);
            let latest = self.latest;
            self.bind(name, address, latest);
            self.stickies.make_firm(address);
        }
        Ok(outcome)
    }

    /// Lets a sticky name have the addresses again that a restored lease of it holds, until that lease
    /// ends. Tells whether leases hold them all.
    pub(crate) fn restore_loose(&mut self, name: &str, addresses: Addresses) -> bool {
        let held = addresses.iter().all(|address| self.leases.holder(address).is_some());
        if held {
            for address in addresses.iter() {
                self.stickies.bind(name, address);
            }
        }
        held
    }

    /// Lets a released address go on cooling down until then, behind those that do already. Tells
    /// whether it does: not if it is held, is of no pool or of a drained CIDR, or the time is over.
    pub fn restore_cooling(&mut self, address: IpAddr, until: Time) -> bool {
        until > self.latest
            && self
                .pools
                .locate(address)
                .is_ok_and(|spot| self.pools.space_of(spot).cool_again(spot.place, until))
    }
}
