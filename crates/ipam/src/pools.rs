use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use ipnetwork::IpNetwork;

use crate::space::{Place, Refusal, Space};
use crate::{Error, Family, PoolConfig, PoolUsage};

/// One pool: its addresses and its rules.
#[derive(Clone, Debug)]
pub(crate) struct Pool {
    pub(crate) name: String,
    pub(crate) cooldown: Duration,
    pub(crate) pending_ttl: Duration,
    pub(crate) v4: Space,
    pub(crate) v6: Space,
    pub(crate) exhausted_v4: u64,
    pub(crate) exhausted_v6: u64,
}

/// The pools in the order in which they were added, and which of them an address belongs to.
#[derive(Clone, Debug, Default)]
pub(crate) struct Pools {
    list: Vec<Pool>,
    /// First address of each CIDR -> place in `list`.
    by_first: BTreeMap<IpAddr, usize>,
}

/// An address that may be granted, and the pool it is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Spot {
    pub(crate) pool: usize,
    pub(crate) family: Family,
    pub(crate) place: Place,
}

impl Pool {
    fn new(config: &PoolConfig) -> Result<Self, Error> {
        Ok(Self {
            name: config.name.clone(),
            cooldown: config.cooldown,
            pending_ttl: config.pending_ttl,
            v4: Space::new(Family::V4, config)?,
            v6: Space::new(Family::V6, config)?,
            exhausted_v4: 0,
            exhausted_v6: 0,
        })
    }

    pub(crate) fn space(&self, family: Family) -> &Space {
        match family {
            Family::V4 => &self.v4,
            Family::V6 => &self.v6,
        }
    }

    pub(crate) fn space_mut(&mut self, family: Family) -> &mut Space {
        match family {
            Family::V4 => &mut self.v4,
            Family::V6 => &mut self.v6,
        }
    }

    pub(crate) fn cidrs(&self) -> impl Iterator<Item = IpNetwork> {
        self.v4.cidrs().chain(self.v6.cidrs())
    }

    pub(crate) fn config(&self) -> PoolConfig {
        let drained = self.v4.usage().chain(self.v6.usage()).filter(|entry| entry.drained);
        let excluded = self.v4.excluded().iter().chain(self.v6.excluded());
        PoolConfig {
            name: self.name.clone(),
            cidrs: self.cidrs().collect(),
            drained: drained.map(|entry| entry.cidr).collect(),
            excluded: excluded.copied().collect(),
            cooldown: self.cooldown,
            pending_ttl: self.pending_ttl,
        }
    }

    pub(crate) fn usage(&self) -> PoolUsage {
        PoolUsage {
            pool: self.name.clone(),
            cidrs: self.v4.usage().chain(self.v6.usage()).collect(),
            exhausted_v4: self.exhausted_v4,
            exhausted_v6: self.exhausted_v6,
        }
    }
}

impl Pools {
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Pool> {
        self.list.iter()
    }

    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Pool> {
        self.list.iter_mut()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    pub(crate) fn at(&self, pool: usize) -> &Pool {
        &self.list[pool]
    }

    pub(crate) fn at_mut(&mut self, pool: usize) -> &mut Pool {
        &mut self.list[pool]
    }

    pub(crate) fn names(&self) -> Vec<String> {
        self.list.iter().map(|pool| pool.name.clone()).collect()
    }

    pub(crate) fn find(&self, name: &str) -> Result<usize, Error> {
        self.list
            .iter()
            .position(|pool| pool.name == name)
            .ok_or_else(|| Error::UnknownPool { pool: name.to_owned(), known: self.names() })
    }

    pub(crate) fn add(&mut self, config: &PoolConfig) -> Result<(), Error> {
        if self.find(&config.name).is_ok() {
            return Err(Error::PoolExists { pool: config.name.clone() });
        }
        let pool = Pool::new(config)?;
        for cidr in pool.cidrs() {
            self.check_apart(&config.name, cidr)?;
        }
        self.list.push(pool);
        self.index();
        Ok(())
    }

    pub(crate) fn remove(&mut self, pool: usize) {
        self.list.remove(pool);
        self.index();
    }

    pub(crate) fn add_cidr(&mut self, pool: usize, cidr: IpNetwork) -> Result<(), Error> {
        self.check_apart(&self.list[pool].name, cidr)?;
        let Pool { name, v4, v6, .. } = &mut self.list[pool];
        match Family::of(cidr.ip()) {
            Family::V4 => v4.add(name, cidr)?,
            Family::V6 => v6.add(name, cidr)?,
        }
        self.index();
        Ok(())
    }

    pub(crate) fn remove_cidr(&mut self, pool: usize, cidr: IpNetwork) {
        self.list[pool].space_mut(Family::of(cidr.ip())).remove(cidr);
        self.index();
    }

    /// The pool whose CIDR `address` is in, and its place there if it may be granted at all.
    pub(crate) fn locate(&self, address: IpAddr) -> Result<Spot, (Option<usize>, Refusal)> {
        let family = Family::of(address);
        let before = self.by_first.range(..=address).next_back();
        let pool = *before.ok_or((None, Refusal::Outside))?.1;
        match self.list[pool].space(family).locate(address) {
            Ok(place) => Ok(Spot { pool, family, place }),
            Err(Refusal::Outside) => Err((None, Refusal::Outside)),
            Err(refusal) => Err((Some(pool), refusal)),
        }
    }

    pub(crate) fn space_of(&mut self, spot: Spot) -> &mut Space {
        self.list[spot.pool].space_mut(spot.family)
    }

    pub(crate) fn address(&self, spot: Spot) -> IpAddr {
        self.list[spot.pool].space(spot.family).address(spot.place)
    }

    fn check_apart(&self, pool: &str, cidr: IpNetwork) -> Result<(), Error> {
        for other in &self.list {
            if let Some(first) = other.space(Family::of(cidr.ip())).overlapping(cidr) {
                let (pool, other) = (pool.to_owned(), other.name.clone());
                return Err(Error::Overlap { pool, first, other, second: cidr });
            }
        }
        Ok(())
    }

    fn index(&mut self) {
        let firsts = self.list.iter().enumerate();
        self.by_first = firsts
            .flat_map(|(index, pool)| pool.cidrs().map(move |cidr| (cidr.ip(), index)))
            .collect();
    }
}
