//! One tick: what the allocator has, against what the registry has and the pools ask for.

use std::collections::{BTreeMap, BTreeSet};

use ipnetwork::IpNetwork;

use super::{Action, BlockState, BlockUsage, Deletion, Demand, Known, NodeBlocks, Outcome, Own};
use crate::blocks::claims::{self, failed};
use crate::blocks::pool::overlap;
use crate::blocks::{Block, Claim, ClusterPool, Error, Expected, New, Registry, Swap, Versioned};
use crate::ranges::RangeSet;
use crate::{Family, Time};

/// How many blocks one tick claims or tries for, per pool and family.
const ATTEMPTS: usize = 16;

pub(super) fn run<R: Registry>(
    node: &mut NodeBlocks<R>,
    now: Time,
    in_use: &[BlockUsage],
    demand: &[Demand],
) -> Outcome<R::Error> {
    let (reach, outcome) = (Reach::Fine, Outcome::default());
    let mut tick = Tick { node, now, listing: None, reach, outcome };
    tick.run(in_use, demand);
    tick.outcome
}

/// One tick under way.
struct Tick<'a, R: Registry> {
    node: &'a mut NodeBlocks<R>,
    now: Time,
    /// Every claim of the cluster, once it was asked for.
    listing: Option<Vec<Claim>>,
    reach: Reach,
    outcome: Outcome<R::Error>,
}

/// Whether the registry answers.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Reach {
    /// It has not failed in this tick.
    Fine,
    /// It has failed in this tick and is left alone until the next: each call may take long.
    Lost,
}

impl<R: Registry> Tick<'_, R> {
    fn run(&mut self, in_use: &[BlockUsage], demand: &[Demand]) {
        let shown: BTreeSet<&Block> = in_use.iter().map(|usage| &usage.block).collect();
        let unclaimed = in_use.iter().any(|usage| !self.node.own.contains_key(&usage.block));
        if unclaimed || self.node.known != Known::All {
            self.list();
        }
        if self.node.known == Known::Nothing {
            return;
        }
        self.node.retired.retain(|block| !shown.contains(block));
        for usage in in_use {
            if !self.node.own.contains_key(&usage.block) {
                self.claim_again(usage);
            }
        }
        let absent: Vec<Block> =
            self.node.own.keys().filter(|block| !shown.contains(block)).cloned().collect();
        let (own, pools) = (&self.node.own, self.node.pools.clone());
        let wanted =
            |block: &Block| pools.iter().any(|p| p.name == block.pool && p.contains(block.cidr));
        let (present, unwanted): (Vec<_>, Vec<_>) = in_use
            .iter()
            .filter(|usage| own.contains_key(&usage.block))
            .partition(|usage| wanted(&usage.block));
        for usage in unwanted {
            self.empty_out(usage);
        }
        let (absent, unwanted): (Vec<_>, Vec<_>) = absent.into_iter().partition(&wanted);
        for block in unwanted {
            // The allocator is asked once more: a process before this one may have claimed it.
            if self.node.retired.contains(&block) {
                self.release(&block);
            } else {
                self.remove(block);
            }
        }
        let mut idle = BTreeMap::new();
        for pool in &pools {
            for family in [Family::V4, Family::V6] {
                let ours = |block: &Block| block.pool == pool.name && block.family() == family;
                let group = Group {
                    pool,
                    family,
                    present: present.iter().copied().filter(|one| ours(&one.block)).collect(),
                    absent: absent.iter().filter(|block| ours(block)).collect(),
                    asked: demand
                        .iter()
                        .filter(|demand| demand.pool == pool.name && demand.family == family)
                        .map(|demand| u128::from(demand.addresses))
                        .sum(),
                };
                self.balance(&group, &mut idle);
            }
        }
        self.node.idle = idle;
    }

    /// Claims and releases blocks of one pool and family.
    fn balance(&mut self, group: &Group<'_>, idle: &mut BTreeMap<Block, Time>) {
        let (low, need) = (group.low_water(), group.low_water() + group.asked);
        let (active, draining): (Vec<&BlockUsage>, Vec<&BlockUsage>) =
            group.present.iter().partition(|usage| usage.state == BlockState::Active);
        let mut free: u128 = active.iter().map(|usage| usage.usage.free()).sum();

        let (spare, found): (Vec<&Block>, Vec<&Block>) =
            group.absent.iter().partition(|block| self.node.retired.contains(block));
        // Claimed by a process before this one, or by a request that was thought to have failed.
        // Leases may be in it that are not restored yet, so it is not just given back.
        for block in found {
            free += self.take_up(block, group.pool);
        }
        for usage in draining {
            if free < need {
                // Of a drained one, the allocator counts nothing as free.
                free += group.pool.usable(usage.block.cidr).saturating_sub(usage.held());
                self.outcome.actions.push(Action::Add(usage.block.clone()));
            } else {
                self.empty_out(usage);
            }
        }
        for block in spare {
            if free < need {
                free += self.take_up(block, group.pool);
            } else {
                self.release(block);
            }
        }
        if free < need {
            self.claim(group.pool, group.family, need - free);
            return;
        }
        // The allocator fills blocks in their order: the last ones become empty first.
        for usage in active.into_iter().rev() {
            if !usage.is_empty() || free < need + low + usage.usage.free() {
                continue;
            }
            let since = self.node.idle.get(&usage.block).copied().unwrap_or(self.now);
            if self.now >= since + group.pool.idle {
                self.outcome.actions.push(Action::Drain(usage.block.clone()));
                free -= usage.usage.free();
            } else {
                idle.insert(usage.block.clone(), since);
            }
        }
    }

    /// Lets a block become empty, and has it removed then.
    fn empty_out(&mut self, usage: &BlockUsage) {
        match usage.state {
            BlockState::Active => self.outcome.actions.push(Action::Drain(usage.block.clone())),
            BlockState::Draining if usage.is_empty() => self.remove(usage.block.clone()),
            BlockState::Draining => {}
        }
    }

    fn remove(&mut self, block: Block) {
        self.outcome.actions.push(Action::Remove(block.clone()));
        self.node.retired.insert(block);
    }

    /// Claims free blocks until they have this many addresses.
    fn claim(&mut self, pool: &ClusterPool, family: Family, mut missing: u128) {
        if self.reach == Reach::Lost || !pool.has(family) || !self.settle(pool, family) {
            return;
        }
        if self.listing.is_none() {
            self.list();
        }
        let Some(mut listing) = self.listing.take() else { return };
        let mut taken = RangeSet::default();
        pool.take_excluded(family, &mut taken);
        for claim in &listing {
            pool.take(family, &mut taken, claim.block.cidr);
        }
        let mut last = self.last(pool, family);
        let (mut attempts, mut claimed) = (0, 0);
        while missing > 0 && attempts < ATTEMPTS && self.reach != Reach::Lost {
            let Some(cidr) = pool.free_block(family, &taken, &self.node.node, last) else {
                let mine = |claim: &&Claim| {
                    claim.block.pool == pool.name && claim.block.family() == family
                };
                self.outcome.errors.push(Error::Full {
                    pool: pool.name.clone(),
                    family,
                    blocks: pool.blocks(family),
                    holders: claims::holders(listing.iter().filter(mine)),
                });
                break;
            };
            pool.take(family, &mut taken, cidr);
            last = Some(cidr);
            let usable = pool.usable(cidr);
            if usable == 0 {
                continue;
            }
            attempts += 1;
            let block = Block::new(pool.name.as_str(), cidr);
            match self.create(&block) {
                Created::Yes(claim) => {
                    missing = missing.saturating_sub(usable);
                    claimed += 1;
                    self.node.last.insert((pool.name.clone(), family), cidr);
                    self.outcome.claimed.push(block.clone());
                    self.outcome.actions.push(Action::Add(block));
                    listing.push(claim);
                }
                Created::No(found) => listing.extend(found),
            }
        }
        if attempts == ATTEMPTS && claimed == 0 {
            self.outcome.errors.push(Error::Contended {
                pool: pool.name.clone(),
                family,
                attempts,
            });
        }
        self.listing = Some(listing);
    }

    /// Where the search for the next block goes on.
    fn last(&self, pool: &ClusterPool, family: Family) -> Option<IpNetwork> {
        let claimed = self.node.last.get(&(pool.name.clone(), family)).copied();
        let ours = |block: &&Block| block.pool == pool.name && block.family() == family;
        claimed.or_else(|| self.node.own.keys().rfind(ours).map(|block| block.cidr))
    }

    /// Claims a block that the allocator has although it is not claimed: its claim was deleted by
    /// somebody else, or the registry has lost it.
    fn claim_again(&mut self, usage: &BlockUsage) {
        let Some(listing) = &self.listing else { return };
        let in_the_way = listing.iter().find(|claim| {
            claim.node != self.node.node && overlap(claim.block.cidr, usage.block.cidr)
        });
        let mut holder = in_the_way.map(|claim| claim.node.clone());
        if holder.is_none() {
            match self.create(&usage.block) {
                Created::Yes(_) => self.outcome.claimed.push(usage.block.clone()),
                Created::No(found) => {
                    let others = found.filter(|claim| claim.node != self.node.node);
                    holder = others.map(|claim| claim.node);
                }
            }
        }
        if let Some(holder) = holder {
            self.outcome.errors.push(Error::Lost { block: usage.block.clone(), holder });
            self.empty_out(usage);
            // There is no claim to release.
            self.node.retired.remove(&usage.block);
        }
    }

    /// Claims a block that is absent in the registry.
    fn create(&mut self, block: &Block) -> Created {
        if self.reach == Reach::Lost {
            return Created::No(None);
        }
        let (key, value) = (block.key(), claims::value(&self.node.node, 0));
        match self.node.registry.swap(&key, &Expected::Absent, New::Put(&value)) {
            Ok(Swap::Swapped(Some(revision))) => {
                let claim = Claim::read(block.clone(), &Versioned { value, revision });
                self.note(claim.clone(), Deletion::Impossible);
                Created::Yes(claim)
            }
            Ok(Swap::Conflict(found)) => {
                let found = found.map(|found| Claim::read(block.clone(), &found));
                // A request of ours that was thought to have failed may have come first.
                if let Some(claim) = found.as_ref().filter(|claim| claim.node == self.node.node) {
                    self.note_found(claim.clone());
                }
                Created::No(found)
            }
            Ok(Swap::Swapped(None)) => Created::No(None),
            Err(source) => {
                self.fail(failed("create", &key, source));
                Created::No(None)
            }
        }
    }

    /// Has the allocator grant from a claimed block that it does not have, and returns how many
    /// addresses that brings.
    ///
    /// A deletion may be under way that would leave the block to others while it is used here. So
    /// the claim gets another revision first, which no deletion that was sent so far expects.
    fn take_up(&mut self, block: &Block, pool: &ClusterPool) -> u128 {
        let Some(own) = self.node.own.get(block).cloned() else { return 0 };
        if own.deletion == Deletion::Possible {
            if self.reach == Reach::Lost {
                return 0;
            }
            let (key, generation) = (block.key(), own.generation.wrapping_add(1));
            let value = claims::value(&self.node.node, generation);
            let expected = Expected::Revision(own.revision);
            match self.node.registry.swap(&key, &expected, New::Put(&value)) {
                Ok(Swap::Swapped(Some(revision))) => {
                    let claim = Claim::read(block.clone(), &Versioned { value, revision });
                    self.note(claim, Deletion::Impossible);
                }
                Ok(Swap::Conflict(found)) => {
                    self.correct(block, found.map(|found| Claim::read(block.clone(), &found)));
                    return 0;
                }
                Ok(Swap::Swapped(None)) => return 0,
                Err(source) => {
                    self.fail(failed("update", &key, source));
                    return 0;
                }
            }
        }
        self.node.retired.remove(block);
        self.outcome.actions.push(Action::Add(block.clone()));
        pool.usable(block.cidr)
    }

    /// Releases a block that the allocator has no more.
    fn release(&mut self, block: &Block) {
        if self.reach == Reach::Lost {
            return;
        }
        let Some(own) = self.node.own.get_mut(block) else { return };
        own.deletion = Deletion::Possible;
        let (key, expected) = (block.key(), Expected::Revision(own.revision.clone()));
        match self.node.registry.swap(&key, &expected, New::Delete) {
            Ok(Swap::Swapped(_)) => {
                self.correct(block, None);
                self.outcome.released.push(block.clone());
            }
            Ok(Swap::Conflict(found)) => {
                self.correct(block, found.map(|found| Claim::read(block.clone(), &found)));
            }
            Err(source) => self.fail(failed("delete", &key, source)),
        }
    }

    /// Notes what the registry says about a block that the allocator does not have.
    fn correct(&mut self, block: &Block, found: Option<Claim>) {
        match found {
            Some(claim) if claim.node == self.node.node => self.note_found(claim),
            _ => {
                self.node.own.remove(block);
                self.node.retired.remove(block);
            }
        }
    }

    /// Notes a claim of this node that was found in the registry.
    fn note_found(&mut self, claim: Claim) {
        let known = self.node.own.get(&claim.block);
        let deletion = known
            .filter(|own| own.revision == claim.revision)
            .map_or(Deletion::Possible, |own| own.deletion);
        self.note(claim, deletion);
    }

    fn note(&mut self, claim: Claim, deletion: Deletion) {
        let own = Own { revision: claim.revision, generation: claim.generation, deletion };
        self.node.own.insert(claim.block, own);
    }

    fn list(&mut self) {
        match claims::list(&self.node.registry) {
            Ok((listing, unreadable)) => {
                self.outcome.errors.extend(unreadable);
                let mine: Vec<Claim> =
                    listing.iter().filter(|claim| claim.node == self.node.node).cloned().collect();
                let blocks: BTreeSet<&Block> = mine.iter().map(|claim| &claim.block).collect();
                self.node.own.retain(|block, _| blocks.contains(block));
                self.node.retired.retain(|block| blocks.contains(block));
                for claim in mine {
                    self.note_found(claim);
                }
                self.node.known = Known::All;
                self.listing = Some(listing);
            }
            Err(error) => self.fail(error),
        }
    }

    /// Whether blocks of the pool have the size here that they have in the cluster.
    fn settle(&mut self, pool: &ClusterPool, family: Family) -> bool {
        let key = (pool.name.clone(), family);
        if self.node.settled.contains(&key) {
            return true;
        }
        match claims::settle_size(&self.node.registry, pool, family) {
            Ok(()) => {
                self.node.settled.insert(key);
                true
            }
            Err(error @ Error::Registry { .. }) => {
                self.fail(error);
                false
            }
            Err(error) => {
                self.outcome.errors.push(error);
                false
            }
        }
    }

    fn fail(&mut self, error: Error<R::Error>) {
        self.outcome.errors.push(error);
        self.reach = Reach::Lost;
        self.node.resync();
    }
}

/// What came of a claim.
enum Created {
    Yes(Claim),
    /// The block is claimed already, as far as is known; possibly by this node.
    No(Option<Claim>),
}

/// The blocks of one pool and family.
struct Group<'a> {
    pool: &'a ClusterPool,
    family: Family,
    /// Claimed, and the allocator has them.
    present: Vec<&'a BlockUsage>,
    /// Claimed, and the allocator has them not.
    absent: Vec<&'a Block>,
    asked: u128,
}

impl Group<'_> {
    /// How many addresses should be free.
    fn low_water(&self) -> u128 {
        let untouched = self.asked == 0 && self.present.iter().all(|usage| usage.is_empty());
        if !self.pool.has(self.family) || (self.pool.pre_alloc == 0 && untouched) {
            return 0;
        }
        self.pool.low_water(self.family)
    }
}
