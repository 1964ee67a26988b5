//! What the allocator is to know, as sets and lists.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use podwire_ipam::{Addresses, Family, Lease, Owner, PoolConfig, Time};

use super::addresses::{Block, EXCLUDED};
use super::filtered;

#[derive(Default)]
pub(super) struct Model {
    pub(super) now: Time,
    /// In the order of their addition.
    pub(super) pools: Vec<Pool>,
    pub(super) leases: BTreeMap<Owner, Lease>,
    pub(super) reserved: BTreeSet<IpAddr>,
    /// In the order of release; the moment from which the address is free again.
    pub(super) cooling: Vec<(IpAddr, Time)>,
    pub(super) names: BTreeMap<String, Name>,
}

#[derive(Clone, Debug)]
pub(super) struct Pool {
    pub(super) name: &'static str,
    /// In the order of their addition.
    pub(super) parts: Vec<Part>,
    /// How often it had nothing left, by family.
    pub(super) exhausted: [u64; 2],
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Part {
    pub(super) block: &'static Block,
    pub(super) drained: bool,
}

/// A sticky name.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Name {
    pub(super) addresses: Addresses,
    /// A lease of it was confirmed once.
    pub(super) firm: bool,
}

impl Pool {
    pub(super) fn new(name: &'static str, cidrs: &[usize]) -> Self {
        let part = |&number: &usize| Part { block: Block::numbered(number), drained: false };
        Self { name, parts: cidrs.iter().map(part).collect(), exhausted: [0, 0] }
    }

    pub(super) fn config(&self) -> PoolConfig {
        let cidrs = self.parts.iter().map(|part| part.block.cidr).collect();
        let mut config = PoolConfig::new(self.name, cidrs);
        let drained = self.parts.iter().filter(|part| part.drained);
        config.drained = drained.map(|part| part.block.cidr).collect();
        config.excluded = vec![EXCLUDED.parse().unwrap()];
        config.cooldown = self.cooldown();
        config.pending_ttl = self.pending_ttl();
        config
    }

    fn number(&self) -> u64 {
        self.name.bytes().next().unwrap().into()
    }

    pub(super) fn cooldown(&self) -> Duration {
        Duration::from_secs(10 + self.number() % 3 * 10)
    }

    pub(super) fn pending_ttl(&self) -> Duration {
        Duration::from_secs(20 + self.number() % 3 * 10)
    }

    pub(super) fn parts_of(&self, family: Family) -> impl Iterator<Item = &Part> {
        self.parts.iter().filter(move |part| part.block.family() == family)
    }

    pub(super) fn has(&self, family: Family) -> bool {
        self.parts_of(family).next().is_some()
    }
}

impl Model {
    pub(super) fn pool(&self, name: &str) -> Option<usize> {
        self.pools.iter().position(|pool| pool.name == name)
    }

    pub(super) fn parts(&self) -> impl Iterator<Item = (usize, &Part)> {
        let pools = self.pools.iter().enumerate();
        pools.flat_map(|(index, pool)| pool.parts.iter().map(move |part| (index, part)))
    }

    /// The pool and CIDR that grant an address, drained or not.
    pub(super) fn home(&self, address: IpAddr) -> Option<(usize, Part)> {
        let mut parts = self.parts();
        let found = parts.find(|(_, part)| part.block.grantable.contains(&address));
        found.map(|(pool, part)| (pool, *part))
    }

    /// The pool in whose CIDR an address is, granted or not.
    pub(super) fn pool_around(&self, address: IpAddr) -> Option<usize> {
        self.parts().find(|(_, part)| part.block.cidr.contains(address)).map(|(pool, _)| pool)
    }

    pub(super) fn holder(&self, address: IpAddr) -> Option<&Owner> {
        let holds = |lease: &&Lease| lease.addresses.iter().any(|held| held == address);
        self.leases.values().find(holds).map(|lease| &lease.owner)
    }

    pub(super) fn name_of(&self, address: IpAddr) -> Option<&String> {
        let has = |name: &Name| name.addresses.iter().any(|ip| ip == address);
        self.names.iter().find(|(_, name)| has(name)).map(|(name, _)| name)
    }

    pub(super) fn is_cooling(&self, address: IpAddr) -> bool {
        self.cooling.iter().any(|(ip, until)| *ip == address && *until > self.now)
    }

    /// Addresses that nobody has and nothing keeps back.
    pub(super) fn free(&self, pool: usize, family: Family) -> BTreeSet<IpAddr> {
        let parts = self.pools[pool].parts_of(family).filter(|part| !part.drained);
        parts
            .flat_map(|part| part.block.grantable.iter().copied())
            .filter(|ip| self.holder(*ip).is_none() && self.name_of(*ip).is_none())
            .filter(|ip| !self.reserved.contains(ip) && !self.is_cooling(*ip))
            .collect()
    }

    pub(super) fn oldest_cooling(&self, pool: usize, family: Family) -> Option<IpAddr> {
        let of_pool = |ip: IpAddr| self.home(ip).is_some_and(|(home, _)| home == pool);
        let mut still = self.cooling.iter().filter(|(_, until)| *until > self.now);
        still.find(|(ip, _)| Family::of(*ip) == family && of_pool(*ip)).map(|(ip, _)| *ip)
    }

    pub(super) fn take(&mut self, address: IpAddr) {
        self.cooling.retain(|(ip, _)| *ip != address);
    }

    fn cool(&mut self, address: IpAddr) {
        if let Some((pool, part)) = self.home(address)
            && !part.drained
        {
            self.cooling.push((address, self.now + self.pools[pool].cooldown()));
        }
    }

    /// Its addresses stay with the name they belong to, or else cool down.
    pub(super) fn give_back(&mut self, lease: &Lease) {
        for address in lease.addresses.iter() {
            let name = self.name_of(address).map(|name| self.names[name]);
            match name {
                Some(name) if name.firm => {}
                Some(_) => self.unbind(address),
                None => self.cool(address),
            }
        }
    }

    /// Lets a name have an address, and lets the one that it had of this family go.
    pub(super) fn bind(&mut self, name: &str, address: IpAddr) {
        let had = self.names.entry(name.to_owned()).or_default().addresses;
        let former = had.of(Family::of(address)).filter(|former| *former != address);
        // Not all at once: the name stays, and is as firm as before.
        let others = had.iter().filter(|ip| Family::of(*ip) != Family::of(address));
        let list: Vec<_> = others.chain([address]).collect();
        self.names.get_mut(name).unwrap().addresses = Addresses::from_list(&list).unwrap();
        if let Some(former) = former.filter(|former| self.holder(*former).is_none()) {
            self.cool(former);
        }
    }

    /// No name has the address any more, which cools down unless a lease has it.
    pub(super) fn unbind(&mut self, address: IpAddr) {
        let Some(name) = self.name_of(address).cloned() else { return };
        let entry = self.names.get_mut(&name).unwrap();
        entry.addresses = filtered(entry.addresses, |ip| ip != address);
        if entry.addresses.is_empty() {
            self.names.remove(&name);
        }
        if self.holder(address).is_none() {
            self.cool(address);
        }
    }

    pub(super) fn make_firm(&mut self, addresses: Addresses) {
        for address in addresses.iter() {
            if let Some(name) = self.name_of(address).cloned() {
                self.names.get_mut(&name).unwrap().firm = true;
            }
        }
    }

    /// A CIDR that is not configured any more after the next restart: leases in it are strays, and
    /// what else was in it is gone.
    pub(super) fn lose(&mut self, number: usize) {
        let cidr = Block::numbered(number).cidr;
        let before: Vec<Part> = self.parts().map(|(_, part)| *part).collect();
        if before.iter().all(|part| part.block.cidr != cidr) {
            return;
        }
        for pool in &mut self.pools {
            pool.parts.retain(|part| part.block.cidr != cidr);
        }
        self.reserved.retain(|ip| !cidr.contains(*ip));
        self.cooling.retain(|(ip, _)| !cidr.contains(*ip));
        for name in self.names.values_mut() {
            name.addresses = filtered(name.addresses, |ip| !cidr.contains(ip));
        }
        self.names.retain(|_, name| !name.addresses.is_empty());
    }
}
