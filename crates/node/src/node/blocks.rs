//! Blocks of the cluster's pools, which come and go with the node's pods.

use std::collections::BTreeSet;

use podwire_api::{LeaseRequest, OtherFamilies, Repair};
use podwire_ipam::blocks::{Action, Block, BlockUsage, Demand};
use podwire_ipam::{Family, Lease, Owner, Request};

use super::{Node, now};
use crate::Error;
use crate::blocks::{Blocks, State, Trouble, has_family, record};
use crate::choice::Choice;
use crate::cluster_pool::overlap;

/// How often a request that finds no address asks for blocks. Once does, unless others are quicker.
const ATTEMPTS: usize = 3;

/// How many ticks a start makes at most. Each claims as many blocks as are missing, up to 16 of a pool.
const ROUNDS: usize = 64;

impl Node {
    /// Claims and gives back blocks until nothing more is to do, and tells what became of those that
    /// the options do not have any more.
    pub(crate) fn fill_blocks(&self) -> Result<Vec<Repair>, Error> {
        let Some(blocks) = &self.blocks else { return Ok(Vec::new()) };
        let mut given_up = self.blocks_in_use(blocks, &blocks.state())?;
        given_up.retain(|usage| !blocks.wants(&usage.block));
        for _ in 0..ROUNDS {
            if self.tick_blocks(&[]) == 0 {
                break;
            }
        }
        let after = self.blocks_in_use(blocks, &blocks.state())?;
        let told = |BlockUsage { block, .. }: BlockUsage| Repair {
            done: match after.iter().find(|usage| usage.block == block) {
                Some(BlockUsage { usage, .. }) => {
                    format!("drained: {} addresses of it are held", usage.size - usage.free())
                }
                None => "given back".into(),
            },
            object: block.to_string(),
            found: "is of no --cluster-pool any more".into(),
        };
        Ok(given_up.into_iter().map(told).collect())
    }

    /// Compares the blocks with what is asked for, claims and gives back, and says how much has changed.
    /// What keeps it from that is noted.
    pub(crate) fn tick_blocks(&self, demand: &[Demand]) -> usize {
        let Some(blocks) = &self.blocks else { return 0 };
        let _alone = self.editing();
        let (mut troubles, mut done) = (Vec::new(), 0);
        if let Err(error) = self.tick_alone(blocks, demand, &mut troubles, &mut done) {
            troubles.push(Trouble::of_node(&error));
        }
        blocks.note(troubles);
        done
    }

    /// Whether there is anything to tick for.
    pub(crate) fn has_blocks(&self) -> bool {
        self.blocks.is_some()
    }

    /// What keeps the node from claiming and giving back blocks.
    pub(crate) fn block_troubles(&self) -> Vec<Trouble> {
        self.blocks.as_ref().map(Blocks::troubles).unwrap_or_default()
    }

    fn tick_alone(
        &self,
        blocks: &Blocks,
        demand: &[Demand],
        troubles: &mut Vec<Trouble>,
        done: &mut usize,
    ) -> Result<(), Error> {
        // An address whose rest has ended unnoticed would keep its block.
        self.expire()?;
        let mut state = blocks.state();
        let in_use = self.blocks_in_use(blocks, &state)?;
        let outcome = state.blocks.tick(now(), &in_use, demand);
        troubles.extend(outcome.errors.iter().map(Trouble::of_registry));
        for block in &outcome.released {
            tracing::info!(%block, "given back");
        }
        self.carry_out(&outcome.actions, done)?;
        self.drop_former(blocks, &mut state)
    }

    fn blocks_in_use(&self, blocks: &Blocks, state: &State) -> Result<Vec<BlockUsage>, Error> {
        let usage = self.ipam.usage()?;
        let ours = usage
            .iter()
            .filter(|one| blocks.pool(&one.pool).is_some() || state.former.contains(&one.pool));
        Ok(ours.flat_map(BlockUsage::of).collect())
    }

    /// Before a pod can have an address of a block, its packets must find their way; and as long as one
    /// has, they do.
    fn carry_out(&self, actions: &[Action], done: &mut usize) -> Result<(), Error> {
        let added = actions.iter().filter_map(|action| match action {
            Action::Add(block) => Some(block.cidr),
            _ => None,
        });
        let added: Vec<_> = added.collect();
        if !added.is_empty() {
            self.lead_to_pods_and(&added)?;
        }
        let mut removed = 0;
        for action in actions {
            let outcome = match action {
                Action::Add(Block { pool, cidr }) => self.ipam.add_cidr(pool, *cidr),
                Action::Drain(Block { pool, cidr }) => self.ipam.drain_cidr(pool, *cidr),
                Action::Remove(Block { pool, cidr }) => self.ipam.remove_cidr(pool, *cidr),
            };
            match outcome {
                Ok(()) => {
                    tracing::info!(%action, "blocks");
                    removed += usize::from(matches!(action, Action::Remove(_)));
                    *done += 1;
                }
                // Somebody was quicker to use it, or it never came to be. The next tick sees it.
                Err(error)
                    if error.refusal().is_some_and(|error| {
                        use podwire_ipam::Error::CidrInUse;
                        error.is_not_found() || matches!(error, CidrInUse { .. })
                    }) => {}
                // Routes of what was removed go, and those of what was to be added.
                Err(error) => return self.undo_routes(error.into()),
            }
        }
        if removed > 0 {
            self.lead_to_pods_and(&[])?;
        }
        Ok(())
    }

    /// Forgets pools that are no option any more when nothing of them is left.
    fn drop_former(&self, blocks: &Blocks, state: &mut State) -> Result<(), Error> {
        let claimed: BTreeSet<&String> = state.blocks.blocks().map(|block| &block.pool).collect();
        let is_bare = |name: &String| -> Result<bool, Error> {
            let cidrs = self.ipam.read(|all| all.config(name).map_or(0, |one| one.cidrs.len()))?;
            Ok(cidrs == 0 && !claimed.contains(name))
        };
        let mut former = BTreeSet::new();
        for name in &state.former {
            if !is_bare(name)? {
                former.insert(name.clone());
                continue;
            }
            match self.ipam.remove_pool(name) {
                Err(error) if error.refusal().is_none_or(|error| !error.is_not_found()) => {
                    return Err(error.into());
                }
                _ => tracing::info!(pool = name, "deleted: it is no --cluster-pool any more"),
            }
        }
        if former != state.former {
            record(&self.ipam, &blocks.pools, &former)?;
            state.former = former;
        }
        Ok(())
    }

    /// Grants addresses, after claiming blocks if there are none.
    pub(super) fn grant(
        &self,
        request: &LeaseRequest,
        choice: &Choice,
        owner: &Owner,
        wanted: &Request,
    ) -> Result<Lease, Error> {
        let mut granted = self.try_to_grant(request, choice, owner, wanted);
        let exhausted =
            |error: &Error| matches!(error, Error::Ipam(refusal) if refusal.is_exhausted());
        // Perhaps there are leases that nobody used, and nobody has looked yet.
        if granted.as_ref().is_err_and(exhausted) && self.expire()? > 0 {
            granted = self.try_to_grant(request, choice, owner, wanted);
        }
        let Some(blocks) = &self.blocks else { return granted };
        for _ in 0..ATTEMPTS {
            let demand = match &granted {
                Err(Error::Ipam(refusal)) => demand(blocks, refusal),
                _ => break,
            };
            if demand.is_empty() {
                break;
            }
            self.tick_blocks(&demand);
            granted = self.try_to_grant(request, choice, owner, wanted);
        }
        granted.map_err(|error| match error {
            Error::Ipam(refusal) if !demand(blocks, &refusal).is_empty() => {
                let troubles: Vec<_> = blocks.troubles().into_iter().map(|one| one.what).collect();
                Error::NoBlock { refusal, why: troubles.join("; ") }
            }
            error => error,
        })
    }

    fn try_to_grant(
        &self,
        request: &LeaseRequest,
        choice: &Choice,
        owner: &Owner,
        wanted: &Request,
    ) -> Result<Lease, Error> {
        if let Some(blocks) = &self.blocks
            && request.others != OtherFamilies::Omit
            && self.ipam.lease(owner)?.is_none()
        {
            self.require_families(blocks, choice)?;
        }
        Ok(self.ipam.allocate(owner, wanted, now())?)
    }

    /// A family that a cluster pool has, and of which no chosen pool has a block here yet, is not one
    /// that the pod does without.
    fn require_families(&self, blocks: &Blocks, choice: &Choice) -> Result<(), Error> {
        for (family, pools) in [(Family::V4, &choice.v4.names), (Family::V6, &choice.v6.names)] {
            let is_shared = pools
                .iter()
                .any(|name| blocks.pool(name).is_some_and(|one| has_family(one, family)));
            let is_here = || {
                self.ipam.read(|all| {
                    let configs = pools.iter().filter_map(|name| all.config(name).ok());
                    let mut cidrs = configs.flat_map(|config| config.cidrs);
                    cidrs.any(|cidr| Family::of(cidr.ip()) == family)
                })
            };
            if is_shared && !is_here()? {
                return Err(podwire_ipam::Error::NoFamily { pools: pools.clone(), family }.into());
            }
        }
        Ok(())
    }

    /// That a pool is not one whose blocks come and go by themselves.
    pub(super) fn check_editable(&self, pool: &str) -> Result<(), Error> {
        match &self.blocks {
            Some(blocks) if blocks.has(pool) => Err(Error::Denied(format!(
                "pool {pool} is made of blocks, which come and go by themselves: change podwired's \
                 --cluster-pool {pool} and restart it"
            ))),
            _ => Ok(()),
        }
    }

    /// That a CIDR has nothing in common with what blocks are carved from.
    pub(super) fn check_no_blocks(&self, cidr: ipnetwork::IpNetwork) -> Result<(), Error> {
        let pools = self.blocks.iter().flat_map(|blocks| &blocks.pools);
        for pool in pools {
            if let Some(own) = pool.cidrs.iter().find(|own| overlap(**own, cidr)) {
                return Err(Error::Conflict(format!(
                    "{cidr} overlaps with {own} of podwired's --cluster-pool {}",
                    pool.name
                )));
            }
        }
        Ok(())
    }
}

/// What blocks could help, after this refusal.
fn demand(blocks: &Blocks, refusal: &podwire_ipam::Error) -> Vec<Demand> {
    let (family, names): (_, Vec<&String>) = match refusal {
        podwire_ipam::Error::Exhausted { family, pools } => {
            (*family, pools.iter().map(|state| &state.pool).collect())
        }
        podwire_ipam::Error::NoFamily { family, pools } => (*family, pools.iter().collect()),
        _ => return Vec::new(),
    };
    let shared = names
        .into_iter()
        .filter(|name| blocks.pool(name).is_some_and(|pool| has_family(pool, family)));
    shared.map(|pool| Demand { pool: pool.clone(), family, addresses: 1 }).collect()
}
