//! The allocator in memory, and which records of the store say the same.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

use super::records::{
    self, COOLING, CoolingRecord, LEASES, LeaseRecord, META, POOLS, PoolRecord, RESERVATIONS,
    STICKY, StickyRecord, decode, put, unusable,
};
use super::{Change, Error, Store};
use crate::{Addresses, Allocator, Lease, Owner, Restored, Time};

const FORMAT: &str = "1";

/// Records of addresses whose cool-down is over that one operation removes.
const FORGET_PER_CALL: usize = 8;

#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) allocator: Allocator,
    cooled: Cooled,
}

/// The records of the table of cooling addresses.
#[derive(Debug, Default)]
struct Cooled {
    until: HashMap<IpAddr, Time>,
    due: BTreeSet<(Time, IpAddr)>,
    /// The number of the last release.
    releases: u64,
}

/// What [`Ipam::open`](super::Ipam::open) found in the store.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Recovered {
    /// How many leases are held again.
    pub leases: usize,
    /// Those of them that have addresses which no pool would grant today. They are held until they
    /// are released.
    pub stray: Vec<Lease>,
    /// Leases of another boot, which were dropped: their interfaces went with that boot.
    pub dropped: Vec<Lease>,
    /// Addresses that were cooling down in another boot, and are free.
    pub thawed: Vec<IpAddr>,
}

/// Objects that an operation may have changed, and whose records are to say what is true now.
#[derive(Debug, Default)]
pub(super) struct Touched {
    pub(super) owners: Vec<Owner>,
    pub(super) names: Vec<String>,
    pub(super) addresses: Vec<IpAddr>,
}

impl Touched {
    pub(super) fn lease(mut self, lease: &Lease) -> Self {
        self.owners.push(lease.owner.clone());
        self.addresses.extend(lease.addresses.iter());
        self
    }

    pub(super) fn names(mut self, names: impl IntoIterator<Item = String>) -> Self {
        self.names.extend(names);
        self
    }

    pub(super) fn addresses(mut self, addresses: impl IntoIterator<Item = IpAddr>) -> Self {
        self.addresses.extend(addresses);
        self
    }
}

impl State {
    /// What the store says. With a `boot`, leases of another one are dropped; the changes are to be
    /// committed.
    pub(super) fn load<S: Store>(
        store: &mut S,
        boot: Option<&str>,
    ) -> Result<(Self, Recovered, Vec<Change>), Error> {
        let mut read = |table| store.load(table).map_err(Error::store("read the store"));
        let mut meta: BTreeMap<String, String> = decode(META, read(META)?)?.into_iter().collect();
        if let Some(format) = meta.remove("format").filter(|format| format != FORMAT) {
            return Err(Error::Format { found: format, known: FORMAT });
        }
        let same_boot = boot.is_none() || boot == meta.get("boot").map(String::as_str);
        let mut state = Self::default();
        let (mut recovered, mut changes) = (Recovered::default(), Vec::new());

        state.load_pools(decode(POOLS, read(POOLS)?)?)?;
        for (key, why) in decode::<String>(RESERVATIONS, read(RESERVATIONS)?)? {
            let address = address(RESERVATIONS, &key)?;
            state.allocator.reserve(address, &why).map_err(unusable(RESERVATIONS, &key))?;
        }
        let names = decode(STICKY, read(STICKY)?)?;
        state.load_firm(&names)?;
        let leases = decode::<LeaseRecord>(LEASES, read(LEASES)?)?;
        for (key, record) in leases {
            let owner = records::owner(&key).ok_or_else(|| unusable(LEASES, &key)(NoOwner))?;
            let lease = record.lease(&owner).map_err(unusable(LEASES, &key))?;
            if !same_boot {
                changes.push(Change::remove(LEASES, key));
                recovered.dropped.push(lease);
                continue;
            }
            let outcome = state.allocator.restore(lease.clone());
            if outcome.map_err(unusable(LEASES, &key))? == Restored::Stray {
                recovered.stray.push(lease);
            }
            recovered.leases += 1;
        }
        for (name, record) in names.iter().filter(|(_, record)| !record.firm) {
            let addresses = addresses(STICKY, name, record)?;
            // It goes with the lease that it came with.
            if !same_boot || !state.allocator.restore_loose(name, addresses) {
                changes.push(Change::remove(STICKY, name.as_str()));
            }
        }
        let mut cooling = decode::<CoolingRecord>(COOLING, read(COOLING)?)?;
        cooling.sort_by_key(|(_, record)| record.number);
        for (key, record) in cooling {
            let address = address(COOLING, &key)?;
            if same_boot {
                let until = Time::new(record.until);
                state.allocator.restore_cooling(address, until);
                state.cooled.insert(address, until, record.number);
            } else {
                changes.push(Change::remove(COOLING, key));
                recovered.thawed.push(address);
            }
        }
        if let (false, Some(boot)) = (same_boot, boot) {
            changes.push(put(META, "format", &FORMAT));
            changes.push(put(META, "boot", &boot));
        }
        Ok((state, recovered, changes))
    }

    fn load_pools(&mut self, mut pools: Vec<(String, PoolRecord)>) -> Result<(), Error> {
        pools.sort_by_key(|(_, record)| record.position);
        for (name, record) in pools {
            let config = record.config(&name).map_err(unusable(POOLS, &name))?;
            self.allocator.add_pool(&config).map_err(unusable(POOLS, &name))?;
        }
        Ok(())
    }

    fn load_firm(&mut self, names: &[(String, StickyRecord)]) -> Result<(), Error> {
        for (name, record) in names.iter().filter(|(_, record)| record.firm) {
            let addresses = addresses(STICKY, name, record)?;
            let outcome = self.allocator.restore_sticky(name, addresses);
            if outcome.map_err(unusable(STICKY, name))? == Restored::Stray {
                return Err(unusable(STICKY, name)(NoPool));
            }
        }
        Ok(())
    }

    /// The sticky names that these addresses belong to.
    pub(super) fn names_of(&self, addresses: impl Iterator<Item = IpAddr>) -> Vec<String> {
        let names = addresses.filter_map(|address| self.allocator.sticky_name(address));
        let mut names: Vec<String> = names.map(ToOwned::to_owned).collect();
        names.dedup();
        names
    }

    /// The changes that make the records of these objects say what is true of them now, and those
    /// that remove records of cool-downs that are over.
    pub(super) fn records(&mut self, touched: Touched, now: Time) -> Vec<Change> {
        let Self { allocator, cooled } = self;
        let mut changes = Vec::new();
        for owner in touched.owners {
            let key = records::lease_key(&owner);
            changes.push(match allocator.lease(&owner) {
                Some(lease) => put(LEASES, key, &LeaseRecord::new(lease)),
                None => Change::remove(LEASES, key),
            });
        }
        for name in touched.names {
            changes.push(match allocator.binding(&name) {
                Some(binding) => {
                    let addresses = binding.addresses.iter().collect();
                    put(STICKY, name, &StickyRecord { addresses, firm: binding.firm })
                }
                None => Change::remove(STICKY, name),
            });
        }
        for address in touched.addresses {
            match (allocator.cooling_until(address), cooled.until.get(&address)) {
                (Some(until), recorded) if recorded != Some(&until) => {
                    let number = cooled.releases + 1;
                    cooled.insert(address, until, number);
                    let record = CoolingRecord { number, until: until.since_epoch() };
                    changes.push(put(COOLING, address.to_string(), &record));
                }
                (None, Some(_)) => {
                    cooled.remove(address);
                    changes.push(Change::remove(COOLING, address.to_string()));
                }
                _ => {}
            }
        }
        for _ in 0..FORGET_PER_CALL {
            let Some(address) = cooled.pop_due(now) else { break };
            changes.push(Change::remove(COOLING, address.to_string()));
        }
        changes
    }

    /// The changes after an edit of the pools: of all of them, since their order may have changed,
    /// and of the addresses that no longer cool down.
    pub(super) fn pool_records(&mut self) -> Vec<Change> {
        let mut changes = Vec::new();
        for (position, name) in self.allocator.pools().enumerate() {
            if let Ok(config) = self.allocator.config(name) {
                changes.push(put(POOLS, name, &PoolRecord::new(position, &config)));
            }
        }
        let cooling = self.cooled.until.keys().copied().collect::<Vec<_>>();
        changes.extend(self.records(Touched::default().addresses(cooling), Time::default()));
        changes
    }

    pub(super) fn reservation_record(&self, address: IpAddr) -> Change {
        let key = address.to_string();
        match self.allocator.reservation(address) {
            Some(why) => put(RESERVATIONS, key, &why),
            None => Change::remove(RESERVATIONS, key),
        }
    }
}

pub(super) fn remove_pool_record(name: &str) -> Change {
    Change::remove(POOLS, name)
}

impl Cooled {
    fn insert(&mut self, address: IpAddr, until: Time, number: u64) {
        self.remove(address);
        self.until.insert(address, until);
        self.due.insert((until, address));
        self.releases = self.releases.max(number);
    }

    fn remove(&mut self, address: IpAddr) {
        if let Some(until) = self.until.remove(&address) {
            self.due.remove(&(until, address));
        }
    }

    fn pop_due(&mut self, now: Time) -> Option<IpAddr> {
        let (_, address) = *self.due.first().filter(|(until, _)| *until <= now)?;
        self.remove(address);
        Some(address)
    }
}

fn address(table: &'static str, key: &str) -> Result<IpAddr, Error> {
    key.parse().map_err(unusable::<std::net::AddrParseError>(table, key))
}

fn addresses(table: &'static str, key: &str, record: &StickyRecord) -> Result<Addresses, Error> {
    Addresses::from_list(&record.addresses).map_err(unusable(table, key))
}

#[derive(Debug, thiserror::Error)]
#[error("the key names no container and interface")]
struct NoOwner;

#[derive(Debug, thiserror::Error)]
#[error("its addresses are of no pool")]
struct NoPool;
