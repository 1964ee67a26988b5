use std::hash::BuildHasher;
use std::net::IpAddr;

use hashbrown::{DefaultHashBuilder, HashTable};

use crate::{Family, Lease, Owner};

/// The place of a lease in the table, stable while the lease lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Slot(u32);

/// Leases, found by owner and by address.
///
/// Each lease is stored once and the indexes hold four-byte slots: a map with owners as keys would
/// take more memory than the leases.
#[derive(Clone, Debug, Default)]
pub(crate) struct Leases {
    slots: Slots,
    vacant: Vec<Slot>,
    by_owner: HashTable<Slot>,
    by_v4: HashTable<Slot>,
    by_v6: HashTable<Slot>,
    hasher: DefaultHashBuilder,
}

/// Leases by slot, in pieces of one size: a single vector would be half empty after it has grown, and
/// would be copied in the midst of somebody's request.
#[derive(Clone, Debug, Default)]
struct Slots(Vec<Vec<Option<Lease>>>);

/// Slots of a piece; a power of two, so that a place is two shifts away.
const PIECE: usize = 1024;

impl Leases {
    pub(crate) fn len(&self) -> usize {
        self.by_owner.len()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Lease> {
        self.slots.0.iter().flatten().flatten()
    }

    pub(crate) fn at(&self, slot: Slot) -> Option<&Lease> {
        self.slots.at(slot)
    }

    pub(crate) fn at_mut(&mut self, slot: Slot) -> Option<&mut Lease> {
        self.slots.at_mut(slot)?.as_mut()
    }

    pub(crate) fn find(&self, owner: &Owner) -> Option<Slot> {
        let is_owner = |slot: &Slot| self.at(*slot).is_some_and(|lease| lease.owner == *owner);
        self.by_owner.find(self.hasher.hash_one(owner), is_owner).copied()
    }

    pub(crate) fn holder(&self, address: IpAddr) -> Option<&Owner> {
        let family = Family::of(address);
        let index = match family {
            Family::V4 => &self.by_v4,
            Family::V6 => &self.by_v6,
        };
        let holds = |slot: &Slot| {
            self.at(*slot).is_some_and(|lease| lease.addresses.of(family) == Some(address))
        };
        let slot = index.find(self.hasher.hash_one(address), holds)?;
        self.at(*slot).map(|lease| &lease.owner)
    }

    /// Adds a lease whose owner and addresses are not in the table.
    ///
    /// # Panics
    ///
    /// At 2^32 leases.
    pub(crate) fn insert(&mut self, lease: Lease) -> Slot {
        let slot = self.vacant.pop().unwrap_or_else(|| self.slots.grow());
        let owner_hash = self.hasher.hash_one(&lease.owner);
        let addresses = lease.addresses;
        *self.slots.at_mut(slot).expect("vacant, or just made") = Some(lease);

        let Self { slots, by_owner, by_v4, by_v6, hasher, .. } = self;
        by_owner.insert_unique(owner_hash, slot, |slot| {
            slots.at(*slot).map_or(0, |lease| hasher.hash_one(&lease.owner))
        });
        for (family, index) in [(Family::V4, by_v4), (Family::V6, by_v6)] {
            let Some(address) = addresses.of(family) else { continue };
            index.insert_unique(hasher.hash_one(address), slot, |slot| {
                slots
                    .at(*slot)
                    .and_then(|lease| lease.addresses.of(family))
                    .map_or(0, |address| hasher.hash_one(address))
            });
        }
        slot
    }

    pub(crate) fn remove(&mut self, slot: Slot) -> Option<Lease> {
        let lease = self.slots.at_mut(slot)?.take()?;
        let Self { vacant, by_owner, by_v4, by_v6, hasher, .. } = self;
        vacant.push(slot);
        if let Ok(entry) =
            by_owner.find_entry(hasher.hash_one(&lease.owner), |other| *other == slot)
        {
            entry.remove();
        }
        for (family, index) in [(Family::V4, by_v4), (Family::V6, by_v6)] {
            let Some(address) = lease.addresses.of(family) else { continue };
            if let Ok(entry) = index.find_entry(hasher.hash_one(address), |other| *other == slot) {
                entry.remove();
            }
        }
        Some(lease)
    }
}

impl Slots {
    fn at(&self, Slot(slot): Slot) -> Option<&Lease> {
        self.0.get(slot as usize / PIECE)?.get(slot as usize % PIECE)?.as_ref()
    }

    fn at_mut(&mut self, Slot(slot): Slot) -> Option<&mut Option<Lease>> {
        self.0.get_mut(slot as usize / PIECE)?.get_mut(slot as usize % PIECE)
    }

    /// One slot more, behind the others.
    fn grow(&mut self) -> Slot {
        if self.0.last().is_none_or(|piece| piece.len() == PIECE) {
            // The first grows with the leases, since few have many; the others are whole at once.
            let room = if self.0.is_empty() { 0 } else { PIECE };
            self.0.push(Vec::with_capacity(room));
        }
        let pieces = self.0.len() - 1;
        let last = self.0.last_mut().expect("there is one");
        last.push(None);
        let slot = pieces * PIECE + last.len() - 1;
        Slot(u32::try_from(slot).expect("fewer than 2^32 leases"))
    }
}
