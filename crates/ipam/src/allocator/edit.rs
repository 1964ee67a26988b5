//! Pools that change while leases are held.

use std::time::Duration;

use ipnetwork::IpNetwork;

use super::{Allocator, count};
use crate::space::Count;
use crate::{Error, Family, PoolConfig};

impl Allocator {
    /// Adds a pool, behind the others.
    ///
    /// Leases and reservations that no pool had become the pool's where it has their addresses.
    ///
    /// # Errors
    ///
    /// [`Error::PoolExists`]; [`Error::InvalidCidr`]; [`Error::Overlap`], also with a CIDR of
    /// another pool.
    pub fn add_pool(&mut self, config: &PoolConfig) -> Result<(), Error> {
        self.pools.add(config)?;
        for cidr in &config.cidrs {
            self.adopt(*cidr);
        }
        Ok(())
    }

    /// Takes a pool away of which nothing is held.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownPool`], [`Error::CidrInUse`].
    pub fn remove_pool(&mut self, pool: &str) -> Result<(), Error> {
        let index = self.pools.find(pool)?;
        for cidr in self.pools.at(index).cidrs() {
            self.require_unused(index, cidr)?;
        }
        self.pools.remove(index);
        Ok(())
    }

    /// The names of the pools, in the order in which they were added.
    pub fn pools(&self) -> impl Iterator<Item = &str> {
        self.pools.iter().map(|pool| pool.name.as_str())
    }

    /// What a pool is made of now.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownPool`].
    pub fn config(&self, pool: &str) -> Result<PoolConfig, Error> {
        Ok(self.pools.at(self.pools.find(pool)?).config())
    }

    /// Grants addresses from a CIDR as well, behind those that the pool has; or again, if it is a
    /// drained one of the pool.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownPool`], [`Error::InvalidCidr`], [`Error::Overlap`].
    pub fn add_cidr(&mut self, pool: &str, cidr: IpNetwork) -> Result<(), Error> {
        let index = self.pools.find(pool)?;
        let space = self.pools.at_mut(index).space_mut(Family::of(cidr.ip()));
        if space.usage_of(cidr).is_some() {
            space.set_drained(cidr, false);
            return Ok(());
        }
        self.pools.add_cidr(index, cidr)?;
        self.adopt(cidr);
        Ok(())
    }

    /// Grants nothing from a CIDR any more. Leases in it stay until they are released.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownPool`], [`Error::UnknownCidr`].
    pub fn drain_cidr(&mut self, pool: &str, cidr: IpNetwork) -> Result<(), Error> {
        let index = self.known(pool, cidr)?;
        self.pools.at_mut(index).space_mut(Family::of(cidr.ip())).set_drained(cidr, true);
        Ok(())
    }

    /// Takes a CIDR away in which nothing is held, drained or not.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownPool`], [`Error::UnknownCidr`], [`Error::CidrInUse`].
    pub fn remove_cidr(&mut self, pool: &str, cidr: IpNetwork) -> Result<(), Error> {
        let index = self.known(pool, cidr)?;
        self.require_unused(index, cidr)?;
        self.pools.remove_cidr(index, cidr);
        Ok(())
    }

    /// Changes how long released addresses rest and leases wait for their confirmation, from the next
    /// one on.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownPool`].
    pub fn set_times(
        &mut self,
        pool: &str,
        cooldown: Duration,
        pending_ttl: Duration,
    ) -> Result<(), Error> {
        let index = self.pools.find(pool)?;
        let pool = self.pools.at_mut(index);
        (pool.cooldown, pool.pending_ttl) = (cooldown, pending_ttl);
        Ok(())
    }

    fn known(&self, pool: &str, cidr: IpNetwork) -> Result<usize, Error> {
        let index = self.pools.find(pool)?;
        let known: Vec<IpNetwork> = self.pools.at(index).cidrs().collect();
        if known.contains(&cidr) {
            Ok(index)
        } else {
            Err(Error::UnknownCidr { pool: pool.to_owned(), cidr, known })
        }
    }

    fn require_unused(&self, index: usize, cidr: IpNetwork) -> Result<(), Error> {
        let pool = self.pools.at(index);
        let usage = pool.space(Family::of(cidr.ip())).usage_of(cidr).unwrap_or_default();
        // Those that are never granted are not counted, and would hang in the air.
        let last = match cidr {
            IpNetwork::V4(v4) => v4.broadcast().into(),
            IpNetwork::V6(v6) => v6.broadcast().into(),
        };
        let reserved = self.reserved.range(cidr.network()..=last).count() as u64;
        let (used, pending, kept) = (usage.used, usage.pending, usage.kept);
        if used + pending + kept + reserved > 0 {
            let pool = pool.name.clone();
            return Err(Error::CidrInUse { pool, cidr, used, pending, reserved, kept });
        }
        Ok(())
    }

    /// Counts the leases with addresses of a new CIDR that were strays until now.
    fn adopt(&mut self, cidr: IpNetwork) {
        if self.stray == 0 {
            return;
        }
        let Self { pools, leases, stray, .. } = self;
        for lease in leases.iter() {
            for address in lease.addresses.iter().filter(|address| cidr.contains(*address)) {
                if let Ok(spot) = pools.locate(address) {
                    let count: Count = count(lease.state);
                    pools.space_of(spot).take(spot.place, count);
                    *stray -= 1;
                }
            }
        }
    }
}
