use std::collections::HashSet;
use std::net::IpAddr;

use ipnetwork::IpNetwork;

use super::entries::{
    Kind, address_bytes, addresses_bytes, owner_bytes, read_address, read_addresses, read_number,
    read_owner,
};
use super::{Table, runs};
use crate::space::{to_address, to_value};
use crate::{AddressRange, Error, Family, Owner, Plan};

/// How many addresses of a family rest at most.
const RESTING: u64 = 4096;

/// The leases of one pool, in a [`Table`].
///
/// Every operation but [`leases`](Self::leases), [`retain`](Self::retain) and an
/// [`allocate`](Self::allocate) from resting addresses that other sets have a share in reads and
/// writes O(1) entries. One that fails because of a refusal has written nothing; one that fails in
/// the table must be rolled back by whoever has the table.
#[derive(Clone, Debug)]
pub struct Ledger<T> {
    table: T,
    name: String,
}

/// An address that an owner holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Grant {
    /// The address, with the length of its subnet's prefix.
    pub address: IpNetwork,
    /// The subnet's gateway.
    pub gateway: IpAddr,
}

/// Why an operation of a [`Ledger`] failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError<E: std::error::Error + 'static> {
    /// The request was refused. Nothing was changed.
    #[error(transparent)]
    Refused(#[from] Error),
    /// The table could not be read or written.
    #[error("the leases cannot be read or written")]
    Table(#[source] E),
    /// The table has an entry that nothing of ours has written.
    #[error("{what} in the store of leases makes no sense")]
    Corrupt {
        /// What the entry should have been.
        what: &'static str,
    },
}

pub(super) fn corrupt<E: std::error::Error>(what: &'static str) -> StoreError<E> {
    StoreError::Corrupt { what }
}

type Result<R, T> = std::result::Result<R, StoreError<<T as Table>::Error>>;

/// An address that can be granted, and how it is free.
#[derive(Clone, Copy)]
enum Free {
    Never(IpAddr),
    Resting(IpAddr),
    Asked(IpAddr),
}

impl Free {
    const fn address(self) -> IpAddr {
        match self {
            Self::Never(address) | Self::Resting(address) | Self::Asked(address) => address,
        }
    }
}

impl<T: Table> Ledger<T> {
    /// The ledger of a table; an empty one has no leases. Errors call the pool by `name`.
    pub fn new(table: T, name: impl Into<String>) -> Self {
        Self { table, name: name.into() }
    }

    /// The table.
    pub fn into_table(self) -> T {
        self.table
    }

    /// Grants `owner` one address of each set of the plan, or tells what it holds already.
    ///
    /// Of each set the next free address behind the one granted last is taken, range by range and
    /// round again. When none is free, the address released longest ago is. The first of the
    /// `asked` addresses that a set has is granted or refused, also while it rests. Either
    /// everything is granted or nothing.
    ///
    /// # Errors
    ///
    /// [`Error::RangesExhausted`]; for addresses asked for [`Error::Held`], [`Error::Unusable`],
    /// and [`Error::OutsidePool`] if no set is left to take it from; [`Error::OwnerHolds`].
    pub fn allocate(
        &mut self,
        owner: &Owner,
        plan: &Plan,
        asked: &[IpAddr],
    ) -> Result<Vec<Grant>, T> {
        let owner_key = owner_key(owner)?;
        let held = self.held(owner)?;
        if !held.is_empty() {
            return granted_before(&held, plan, asked).ok_or_else(|| {
                StoreError::Refused(Error::OwnerHolds { owner: owner.clone(), held })
            });
        }
        let mut asked = asked.to_vec();
        let mut seen = HashSet::new();
        asked.retain(|address| seen.insert(*address));
        let mut chosen = Vec::new();
        for set in plan.sets() {
            let wanted =
                asked.iter().position(|address| set.iter().any(|range| range.contains(*address)));
            chosen.push(match wanted.map(|place| asked.remove(place)) {
                Some(address) => self.asked_for(plan, address)?,
                None => self.choose(plan, set)?,
            });
        }
        if let Some(&address) = asked.first() {
            return Err(Error::OutsidePool { pool: self.name.clone(), address }.into());
        }
        let addresses: Vec<IpAddr> = chosen.iter().map(|free| free.address()).collect();
        for (free, set) in chosen.into_iter().zip(plan.sets()) {
            self.take(free, set)?;
            self.write(&Kind::Lease.address_key(free.address()), &owner_key[1..])?;
        }
        self.write(&owner_key, &addresses_bytes(&addresses))?;
        Ok(grants(&addresses, plan))
    }

    /// Takes back everything that `owner` holds, and tells what that was.
    ///
    /// # Errors
    ///
    /// The table's.
    pub fn release(&mut self, owner: &Owner) -> Result<Vec<IpAddr>, T> {
        let addresses = self.held(owner)?;
        for &address in &addresses {
            self.erase(&Kind::Lease.address_key(address))?;
            self.rest(address)?;
        }
        if !addresses.is_empty() {
            self.erase(&owner_key(owner)?)?;
        }
        Ok(addresses)
    }

    /// Lets `owner` hold exactly these addresses, wherever they are: what another allocator has
    /// granted before.
    ///
    /// # Errors
    ///
    /// [`Error::Held`], [`Error::OwnerHolds`], [`Error::NoAddress`].
    pub fn restore(&mut self, owner: &Owner, addresses: &[IpAddr]) -> Result<(), T> {
        let owner_key = owner_key(owner)?;
        if addresses.is_empty() {
            return Err(Error::NoAddress { owner: owner.clone() }.into());
        }
        let held = self.held(owner)?;
        if held == addresses {
            return Ok(());
        }
        if !held.is_empty() {
            return Err(Error::OwnerHolds { owner: owner.clone(), held }.into());
        }
        for &address in addresses {
            self.require_free(address)?;
        }
        for &address in addresses {
            self.wake(address)?;
            runs::insert(&mut self.table, address)?;
            self.write(&Kind::Lease.address_key(address), &owner_key[1..])?;
        }
        self.write(&owner_key, &addresses_bytes(addresses))
    }

    /// What `owner` holds, in the order of the sets it came from.
    ///
    /// # Errors
    ///
    /// The table's.
    pub fn held(&self, owner: &Owner) -> Result<Vec<IpAddr>, T> {
        let Some(bytes) = self.read(&owner_key(owner)?)? else { return Ok(Vec::new()) };
        read_addresses(&bytes).ok_or_else(|| corrupt("an owner's addresses"))
    }

    /// Who holds `address`.
    ///
    /// # Errors
    ///
    /// The table's.
    pub fn holder(&self, address: IpAddr) -> Result<Option<Owner>, T> {
        let Some(bytes) = self.read(&Kind::Lease.address_key(address))? else { return Ok(None) };
        read_owner(&bytes).map(Some).ok_or_else(|| corrupt("the holder of an address"))
    }

    /// Whether every set of the plan has an address to grant.
    ///
    /// # Errors
    ///
    /// [`Error::RangesExhausted`] for the first that has none.
    pub fn available(&self, plan: &Plan) -> Result<(), T> {
        for set in plan.sets() {
            self.choose(plan, set)?;
        }
        Ok(())
    }

    /// All leases, in the order of their owners.
    ///
    /// # Errors
    ///
    /// The table's.
    pub fn leases(&self) -> Result<Vec<(Owner, Vec<IpAddr>)>, T> {
        let mut leases = Vec::new();
        let mut from = Kind::Owner.key(&[]);
        while let Some((key, value)) = self.table.first_from(&from).map_err(StoreError::Table)? {
            let Some(owner) = Kind::Owner.rest(&key) else { break };
            let owner = read_owner(owner).ok_or_else(|| corrupt("an owner"))?;
            let addresses =
                read_addresses(&value).ok_or_else(|| corrupt("an owner's addresses"))?;
            leases.push((owner, addresses));
            from = key;
            from.push(0);
        }
        Ok(leases)
    }

    /// Takes back every lease whose owner `keep` does not want kept, and tells which.
    ///
    /// # Errors
    ///
    /// The table's.
    pub fn retain(
        &mut self,
        mut keep: impl FnMut(&Owner) -> bool,
    ) -> Result<Vec<(Owner, Vec<IpAddr>)>, T> {
        let mut gone = self.leases()?;
        gone.retain(|(owner, _)| !keep(owner));
        for (owner, _) in &gone {
            self.release(owner)?;
        }
        Ok(gone)
    }

    fn asked_for(&self, plan: &Plan, address: IpAddr) -> Result<Free, T> {
        if let Some(reason) = plan.unusable(address) {
            return Err(Error::Unusable { pool: self.name.clone(), address, reason }.into());
        }
        self.require_free(address)?;
        Ok(Free::Asked(address))
    }

    fn require_free(&self, address: IpAddr) -> Result<(), T> {
        match self.holder(address)? {
            Some(holder) => Err(Error::Held { address, holder }.into()),
            None => Ok(()),
        }
    }

    /// The address of the set that is granted next.
    fn choose(&self, plan: &Plan, set: &[AddressRange]) -> Result<Free, T> {
        let first = &set[0];
        let family = first.family();
        let cursor = match self.read(&Kind::Cursor.address_key(first.first()))? {
            Some(bytes) => Some(read_address(&bytes).ok_or_else(|| corrupt("a cursor"))?),
            None => None,
        };
        let place = cursor.and_then(|cursor| set.iter().position(|range| range.contains(cursor)));
        let (start, from) = match cursor.zip(place) {
            Some((cursor, place)) => (place, to_value(cursor).saturating_add(1)),
            None => (0, to_value(first.first())),
        };
        // The range of the cursor twice: from it on, and at the end from the beginning.
        for step in 0..=set.len() {
            let range = &set[(start + step) % set.len()];
            let from = if step == 0 { from } else { to_value(range.first()) };
            if let Some(address) = self.free_in(plan, range, from)? {
                return Ok(Free::Never(address));
            }
        }
        match self.longest_resting(plan, set, family)? {
            Some(address) => Ok(Free::Resting(address)),
            None => {
                let ranges: Vec<_> = set.iter().map(ToString::to_string).collect();
                let pool = self.name.clone();
                Err(Error::RangesExhausted { pool, ranges: ranges.join(",") }.into())
            }
        }
    }

    /// The first address from `from` on that is neither taken nor withheld. Each run of withheld
    /// addresses is met once at most.
    fn free_in(&self, plan: &Plan, range: &AddressRange, from: u128) -> Result<Option<IpAddr>, T> {
        let (family, last) = (range.family(), to_value(range.last()));
        let withheld = plan.withheld(family);
        let mut from = from;
        while from <= last {
            let address = to_address(family, from);
            let Some(gap) = runs::next_gap(&self.table, address)? else { break };
            let gap = to_value(gap);
            match withheld.next_gap(gap) {
                Some(free) if free == gap => {
                    return Ok((gap <= last).then(|| to_address(family, gap)));
                }
                Some(later) => from = later,
                None => break,
            }
        }
        Ok(None)
    }

    fn longest_resting(
        &self,
        plan: &Plan,
        set: &[AddressRange],
        family: Family,
    ) -> Result<Option<IpAddr>, T> {
        let mut from = 0;
        while let Some((number, address)) = self.resting_from(family, from)? {
            let in_set = set.iter().any(|range| range.contains(address));
            if in_set && plan.unusable(address).is_none() {
                return Ok(Some(address));
            }
            from = number + 1;
        }
        Ok(None)
    }

    /// The address that rests longest of those with this number or a greater one.
    fn resting_from(&self, family: Family, number: u64) -> Result<Option<(u64, IpAddr)>, T> {
        let from = Kind::Resting.numbered_key(family, number);
        let found = self.table.first_from(&from).map_err(StoreError::Table)?;
        let Some((key, value)) = found else { return Ok(None) };
        let Some(number) = key.strip_prefix(Kind::Resting.family_key(family).as_slice()) else {
            return Ok(None);
        };
        let entry = read_number(number).zip(read_address(&value));
        entry.map(Some).ok_or_else(|| corrupt("a resting address"))
    }

    fn take(&mut self, free: Free, set: &[AddressRange]) -> Result<(), T> {
        let address = free.address();
        match free {
            Free::Never(_) => {
                let cursor = Kind::Cursor.address_key(set[0].first());
                self.write(&cursor, &address_bytes(address))?;
            }
            // It says nothing about where the free ones are.
            Free::Resting(_) | Free::Asked(_) => self.wake(address)?,
        }
        runs::insert(&mut self.table, address).map(|_| ())
    }

    /// Lets an address rest that was held until now.
    fn rest(&mut self, address: IpAddr) -> Result<(), T> {
        let family = Family::of(address);
        let last_key = Kind::LastNumber.family_key(family);
        let last = match self.read(&last_key)? {
            Some(bytes) => read_number(&bytes).ok_or_else(|| corrupt("the last release"))?,
            None => 0,
        };
        let number = last + 1;
        self.write(&last_key, &number.to_be_bytes())?;
        self.write(&Kind::Resting.numbered_key(family, number), &address_bytes(address))?;
        self.write(&Kind::Number.address_key(address), &number.to_be_bytes())?;
        while let Some((oldest, address)) = self.resting_from(family, 0)? {
            if oldest + RESTING > number {
                break;
            }
            self.wake(address)?;
            runs::remove(&mut self.table, address)?;
        }
        Ok(())
    }

    /// Ends the rest of an address, which stays taken.
    fn wake(&mut self, address: IpAddr) -> Result<(), T> {
        let key = Kind::Number.address_key(address);
        let Some(bytes) = self.read(&key)? else { return Ok(()) };
        let number = read_number(&bytes).ok_or_else(|| corrupt("the release of an address"))?;
        self.erase(&key)?;
        self.erase(&Kind::Resting.numbered_key(Family::of(address), number))
    }

    fn read(&self, key: &[u8]) -> Result<Option<Vec<u8>>, T> {
        self.table.value(key).map_err(StoreError::Table)
    }

    fn write(&mut self, key: &[u8], value: &[u8]) -> Result<(), T> {
        self.table.insert(key, value).map_err(StoreError::Table)
    }

    fn erase(&mut self, key: &[u8]) -> Result<(), T> {
        self.table.remove(key).map_err(StoreError::Table)
    }
}

fn owner_key<E: std::error::Error>(owner: &Owner) -> std::result::Result<Vec<u8>, StoreError<E>> {
    let bytes = owner_bytes(owner).ok_or_else(|| corrupt("a container id of over 64 KiB"))?;
    Ok(Kind::Owner.key(&bytes))
}

/// What the owner was granted before, if it is one address of each set, and all that is asked for.
fn granted_before(held: &[IpAddr], plan: &Plan, asked: &[IpAddr]) -> Option<Vec<Grant>> {
    if held.len() != plan.sets().count() || !asked.iter().all(|address| held.contains(address)) {
        return None;
    }
    // Restored ones may be in another order.
    let of_set = |set: &[AddressRange]| {
        held.iter().find(|address| set.iter().any(|range| range.contains(**address))).copied()
    };
    let in_order: Option<Vec<IpAddr>> = plan.sets().map(of_set).collect();
    in_order.map(|addresses| grants(&addresses, plan))
}

fn grants(addresses: &[IpAddr], plan: &Plan) -> Vec<Grant> {
    let grant = |address: &IpAddr| {
        let range = plan.range_of(*address)?;
        let address = IpNetwork::new(*address, range.subnet().prefix()).ok()?;
        Some(Grant { address, gateway: range.gateway() })
    };
    addresses.iter().filter_map(grant).collect()
}
