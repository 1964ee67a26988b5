//! Pools that are edited while the node works, and addresses that are set aside.

use std::net::IpAddr;
use std::sync::PoisonError;

use ipnetwork::IpNetwork;
use podwire_api::{
    CidrEdit, CidrRequest, CidrUsage, EndpointId, Pool, PoolRequest, Removed, Reservation, Sticky,
};
use podwire_ipam::{Allocator, Family, PoolConfig, PoolUsage, Unreserved};

use super::{Node, now, removed};
use crate::Error;
use crate::choice::check_pools;
use crate::config::is_for_pods;
use crate::pools::DEFAULT;

/// What the router's own addresses are set aside for.
pub(crate) const ROUTER: &str = "router";

impl Node {
    /// The pools and how full they are.
    pub(crate) fn pools(&self) -> Result<Vec<Pool>, Error> {
        Ok(self.ipam.read(|allocator| {
            let usage = allocator.usage();
            usage.iter().filter_map(|usage| described(allocator, usage)).collect()
        })?)
    }

    fn pool(&self, name: &str) -> Result<Pool, Error> {
        let config = self.ipam.read(|allocator| allocator.config(name).map(drop))?;
        config?;
        let pools = self.pools()?;
        pools.into_iter().find(|pool| pool.name == name).ok_or(Error::Died("pool"))
    }

    /// Makes a pool.
    pub(crate) fn create_pool(&self, name: &str, request: &PoolRequest) -> Result<Pool, Error> {
        check_pools(&[name.to_owned()]).map_err(Error::Invalid)?;
        for &cidr in &request.cidrs {
            self.check_cidr(cidr)?;
            self.check_no_blocks(cidr)?;
        }
        let mut pool = PoolConfig::new(name, request.cidrs.clone());
        pool.excluded.clone_from(&request.excluded);
        let seconds = std::time::Duration::from_secs;
        pool.cooldown = request.cooldown.map_or(self.cooldown, seconds);
        pool.pending_ttl = request.pending_ttl.map_or(self.pending_ttl, seconds);
        let _alone = self.editing();
        // Before a pod can have an address of it, its packets must find their way.
        self.ipam.read(|allocator| allocator.clone().add_pool(&pool))??;
        self.lead_to_pods_and(&request.cidrs)?;
        self.ipam.add_pool(&pool).or_else(|error| self.undo_routes(error.into()))?;
        tracing::info!(pool = name, "made");
        self.pool(name)
    }

    /// Takes a pool away of which nothing is held.
    pub(crate) fn delete_pool(&self, name: &str) -> Result<Removed, Error> {
        self.check_editable(name)?;
        if self.default_pools.iter().any(|pool| pool == name) {
            return Err(Error::Conflict(format!(
                "pool {name} serves pods that name none (podwired --default-pool)"
            )));
        }
        let _alone = self.editing();
        match self.ipam.remove_pool(name) {
            Ok(()) => {}
            Err(error) if error.refusal().is_some_and(podwire_ipam::Error::is_not_found) => {
                // Its routes may have outlived it, if they could not be taken away then.
                self.lead_to_pods_and(&[])?;
                return Ok(Removed::Absent);
            }
            Err(error) => return Err(error.into()),
        }
        self.lead_to_pods_and(&[])?;
        tracing::info!(pool = name, "deleted");
        Ok(Removed::Removed)
    }

    /// Changes what a pool is made of.
    pub(crate) fn edit_pool(&self, name: &str, request: CidrRequest) -> Result<Pool, Error> {
        let CidrRequest { edit, cidr } = request;
        self.check_editable(name)?;
        let _alone = self.editing();
        match edit {
            CidrEdit::Add => {
                self.check_cidr(cidr)?;
                self.check_no_blocks(cidr)?;
                self.ipam.read(|allocator| allocator.clone().add_cidr(name, cidr))??;
                self.lead_to_pods_and(&[cidr])?;
                let added = self.ipam.add_cidr(name, cidr);
                added.or_else(|error| self.undo_routes(error.into()))?;
            }
            CidrEdit::Drain => self.ipam.drain_cidr(name, cidr)?,
            CidrEdit::Remove => {
                let removed = self.ipam.remove_cidr(name, cidr);
                self.lead_to_pods_and(&[])?;
                removed?;
            }
            _ => return Err(Error::Invalid("an edit of a later version".into())),
        }
        tracing::info!(pool = name, %cidr, ?edit, "edited");
        self.pool(name)
    }

    /// The addresses that are leased to nobody.
    pub(crate) fn reservations(&self) -> Result<Vec<Reservation>, Error> {
        let found = self.ipam.reservations()?;
        Ok(found.into_iter().map(|(address, why)| Reservation { address, why }).collect())
    }

    /// Sets an address aside.
    pub(crate) fn reserve(&self, wanted: &Reservation) -> Result<Reservation, Error> {
        if wanted.why.trim().is_empty() || wanted.why == ROUTER {
            return Err(Error::Invalid(format!(
                "say what {} is reserved for, in other words than {ROUTER:?}",
                wanted.address
            )));
        }
        self.ipam.reserve(wanted.address, &wanted.why)?;
        Ok(wanted.clone())
    }

    /// Lifts a reservation.
    pub(crate) fn unreserve(&self, address: IpAddr) -> Result<Removed, Error> {
        let router = self.config.router;
        if router.v4.map(IpAddr::V4) == Some(address) || router.v6.map(IpAddr::V6) == Some(address)
        {
            return Err(Error::Denied(format!("{address} is the pods' gateway")));
        }
        Ok(removed(matches!(self.ipam.unreserve(address)?, Unreserved::Removed(_))))
    }

    /// The sticky names and their addresses.
    pub(crate) fn stickies(&self) -> Result<Vec<Sticky>, Error> {
        Ok(self.ipam.read(|allocator| {
            let described = |(name, addresses): (&str, podwire_ipam::Addresses)| {
                let holder = addresses.iter().find_map(|address| allocator.holder(address));
                let id = |owner: &podwire_ipam::Owner| {
                    EndpointId::new(owner.container_id(), owner.ifname()).ok()
                };
                Sticky {
                    name: name.to_owned(),
                    addresses: addresses.iter().collect(),
                    holder: holder.and_then(id),
                }
            };
            allocator.stickies().map(described).collect()
        })?)
    }

    /// Keeps the addresses of a name for it no longer.
    pub(crate) fn forget_sticky(&self, name: &str) -> Result<Removed, Error> {
        Ok(removed(!self.ipam.forget(name, now())?.is_empty()))
    }

    /// Takes prefixes of former options away of which nothing is held any more.
    pub(crate) fn retire(&self) -> Result<(), Error> {
        let mut given_up = self.given_up.lock().unwrap_or_else(PoisonError::into_inner);
        if given_up.is_empty() {
            return Ok(());
        }
        let _alone = self.editing();
        let before = given_up.len();
        let mut left = Vec::new();
        for cidr in given_up.drain(..) {
            match self.ipam.remove_cidr(DEFAULT, cidr) {
                Ok(()) => tracing::info!(%cidr, "taken away: it is no --pod-cidr any more"),
                Err(error) => match error.refusal() {
                    // Somebody has taken it away already.
                    Some(podwire_ipam::Error::UnknownCidr { .. }) => {}
                    _ => left.push(cidr),
                },
            }
        }
        *given_up = left;
        if given_up.len() < before { self.lead_to_pods_and(&[]) } else { Ok(()) }
    }

    /// The prefixes of all pools.
    pub(crate) fn prefixes(&self) -> Result<Vec<IpNetwork>, Error> {
        Ok(self.ipam.read(prefixes)?)
    }

    fn check_cidr(&self, cidr: IpNetwork) -> Result<(), Error> {
        if !is_for_pods(cidr) {
            return Err(Error::Invalid(format!("{cidr} is no prefix for pods")));
        }
        let has_router = match Family::of(cidr.ip()) {
            Family::V4 => self.config.router.v4.is_some(),
            Family::V6 => self.config.router.v6.is_some(),
        };
        if has_router {
            return Ok(());
        }
        let family = Family::of(cidr.ip());
        Err(Error::Invalid(format!(
            "this node has no {family}: {cidr} needs podwired with a --pod-cidr of {family}"
        )))
    }

    /// Lets the routes of the pools stand, and those of further prefixes.
    pub(super) fn lead_to_pods_and(&self, further: &[IpNetwork]) -> Result<(), Error> {
        let mut all = self.prefixes()?;
        all.extend(further.iter().filter(|cidr| !all.contains(cidr)).copied().collect::<Vec<_>>());
        self.routes.lead_to_pods(&all).map_err(|source| Error::Kernel {
            operation: "set",
            object: "the routes of the pods' prefixes".into(),
            source,
        })
    }

    pub(super) fn undo_routes(&self, error: Error) -> Result<(), Error> {
        if let Err(error) = self.lead_to_pods_and(&[]) {
            tracing::warn!(error = crate::error::chain(&error), "undoing a failed edit of a pool");
        }
        Err(error)
    }
}

pub(crate) fn prefixes(allocator: &Allocator) -> Vec<IpNetwork> {
    let pools = allocator.usage();
    pools.iter().flat_map(|pool| &pool.cidrs).map(|entry| entry.cidr).collect()
}

fn described(allocator: &Allocator, usage: &PoolUsage) -> Option<Pool> {
    let config = allocator.config(&usage.pool).ok()?;
    let cidrs = usage.cidrs.iter().map(|entry| CidrUsage {
        cidr: entry.cidr,
        size: entry.usage.size.try_into().unwrap_or(u64::MAX),
        used: entry.usage.used,
        pending: entry.usage.pending,
        cooling: entry.usage.cooling,
        reserved: entry.usage.reserved,
        kept: entry.usage.kept,
        drained: entry.drained,
    });
    Some(Pool {
        name: config.name,
        cidrs: cidrs.collect(),
        excluded: config.excluded,
        cooldown: config.cooldown.as_secs(),
        pending_ttl: config.pending_ttl.as_secs(),
        exhausted_v4: usage.exhausted_v4,
        exhausted_v6: usage.exhausted_v6,
    })
}
