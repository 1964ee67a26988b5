use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use ipnetwork::IpNetwork;

use super::pool::check_name;
use super::{Block, ClusterPool, Error, PoolError, Registry, Revision};
use crate::{CidrUsage, Family, PoolUsage, Time, Usage};

mod tick;

/// The blocks of one node: claims the next one before the last is full, and gives back empty ones.
///
/// See the [module's page](super) for how it works with the node's allocator, and in which order.
#[derive(Debug)]
pub struct NodeBlocks<R> {
    registry: R,
    node: String,
    pools: Vec<ClusterPool>,
    /// The node's claims, as far as is known.
    own: BTreeMap<Block, Own>,
    known: Known,
    /// Blocks that the allocator was told to remove, and that it has not shown since.
    retired: BTreeSet<Block>,
    /// Since when blocks have been empty and too many.
    idle: BTreeMap<Block, Time>,
    /// The block claimed last.
    last: BTreeMap<(String, Family), IpNetwork>,
    /// Whose size of blocks is known to be the cluster's.
    settled: BTreeSet<(String, Family)>,
}

/// How much of the registry is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Known {
    Nothing,
    /// A change may have taken effect or not.
    Doubtful,
    All,
}

/// A claim of this node.
#[derive(Clone, Debug)]
struct Own {
    revision: Revision,
    generation: u64,
    deletion: Deletion,
}

/// Whether a deletion of this revision may be under way, sent by this process or one before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Deletion {
    Impossible,
    Possible,
}

/// A block as the node's allocator has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockUsage {
    /// The block.
    pub block: Block,
    /// Whether the allocator grants from it.
    pub state: BlockState,
    /// How full it is.
    pub usage: Usage,
}

impl BlockUsage {
    /// The CIDRs of a pool of the node's [`Allocator`](crate::Allocator), each a block.
    ///
    /// [`Allocator::expire`](crate::Allocator::expire) comes first: an address whose cool-down has
    /// ended unnoticed keeps a block from being given back.
    #[must_use]
    pub fn of(pool: &PoolUsage) -> Vec<Self> {
        let block = |entry: &CidrUsage| Self {
            block: Block::new(pool.pool.as_str(), entry.cidr),
            state: if entry.drained { BlockState::Draining } else { BlockState::Active },
            usage: entry.usage,
        };
        pool.cidrs.iter().map(block).collect()
    }

    /// How many addresses are leased, reserved, kept or cooling down.
    fn held(&self) -> u128 {
        self.usage.size - self.usage.free()
    }

    fn is_empty(&self) -> bool {
        self.held() == 0
    }
}

/// Whether the allocator grants from a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockState {
    /// It grants from it.
    Active,
    /// It holds what is leased, and grants nothing new.
    Draining,
}

/// Addresses that are waited for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Demand {
    /// The pool.
    pub pool: String,
    /// The family.
    pub family: Family,
    /// How many addresses.
    pub addresses: u64,
}

/// What the node's allocator is to do. Each action may be carried out twice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Grant from this block, which may be new, or one that is drained.
    Add(Block),
    /// Grant nothing new from this block.
    Drain(Block),
    /// Forget this block, unless an address of it is held; then leave it as it is.
    Remove(Block),
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Add(block) => write!(f, "add {block}"),
            Self::Drain(block) => write!(f, "drain {block}"),
            Self::Remove(block) => write!(f, "remove {block}"),
        }
    }
}

/// What a [`tick`](NodeBlocks::tick) did, and what is to be done.
#[derive(Debug)]
#[non_exhaustive]
pub struct Outcome<E: std::error::Error + 'static> {
    /// What the allocator is to do, in this order, before the next tick.
    pub actions: Vec<Action>,
    /// Blocks that were claimed.
    pub claimed: Vec<Block>,
    /// Blocks that were given back.
    pub released: Vec<Block>,
    /// What failed. The next tick tries again.
    pub errors: Vec<Error<E>>,
}

impl<E: std::error::Error> Default for Outcome<E> {
    fn default() -> Self {
        let (claimed, released) = (Vec::new(), Vec::new());
        Self { actions: Vec::new(), claimed, released, errors: Vec::new() }
    }
}

impl<R: Registry> NodeBlocks<R> {
    /// The blocks of `node`, whose name no other node of the registry has. The registry is first
    /// asked at the first tick.
    ///
    /// # Errors
    ///
    /// All of [`PoolError`].
    pub fn new(
        registry: R,
        node: impl Into<String>,
        pools: Vec<ClusterPool>,
    ) -> Result<Self, PoolError> {
        let node = node.into();
        check_name(&node)?;
        ClusterPool::check_all(&pools)?;
        Ok(Self {
            registry,
            node,
            pools,
            own: BTreeMap::new(),
            known: Known::Nothing,
            retired: BTreeSet::new(),
            idle: BTreeMap::new(),
            last: BTreeMap::new(),
            settled: BTreeSet::new(),
        })
    }

    /// Works on these pools from now on. Blocks of a pool or CIDR that is no longer there are
    /// drained, and given back when they are empty; with no pools at all, every block is.
    ///
    /// # Errors
    ///
    /// All of [`PoolError`]; the pools are those from before then.
    pub fn set_pools(&mut self, pools: Vec<ClusterPool>) -> Result<(), PoolError> {
        ClusterPool::check_all(&pools)?;
        self.pools = pools;
        self.settled.clear();
        Ok(())
    }

    /// The pools.
    #[must_use]
    pub fn pools(&self) -> &[ClusterPool] {
        &self.pools
    }

    /// The blocks that the node has claimed, as far as is known.
    pub fn blocks(&self) -> impl Iterator<Item = &Block> {
        self.own.keys()
    }

    /// Reads the claims from the registry at the next tick, as is done after an error anyway.
    ///
    /// To be called every few minutes: it finds claims that a request made after it had timed out,
    /// and those that somebody else deleted.
    pub fn resync(&mut self) {
        if self.known == Known::All {
            self.known = Known::Doubtful;
        }
    }

    /// Compares what the allocator has with what it should have, claims and releases blocks, and
    /// tells what the allocator is to do.
    ///
    /// `in_use` has every block in which the allocator holds an address or from which it grants,
    /// also those of pools that are no longer configured, in the order in which it uses them, with
    /// all actions of the tick before carried out. `demand` has what could not be granted since
    /// then. The next tick may follow at once while there are actions, and otherwise whenever the
    /// allocator has changed; without anything to claim or release, it does not ask the registry.
    ///
    /// It never fails as a whole: what the registry does not allow now is an error in the outcome,
    /// while the blocks that the node has go on working.
    pub fn tick(
        &mut self,
        now: Time,
        in_use: &[BlockUsage],
        demand: &[Demand],
    ) -> Outcome<R::Error> {
        tick::run(self, now, in_use, demand)
    }
}
