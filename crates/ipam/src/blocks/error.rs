use ipnetwork::IpNetwork;

use super::Block;
use crate::Family;

/// Why a [`ClusterPool`](super::ClusterPool), or a list of them, cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PoolError {
    /// A CIDR cannot serve as a source of addresses.
    #[error(transparent)]
    Cidr(#[from] crate::Error),
    /// The name of a pool or node cannot be part of a key.
    #[error("{name:?} is no name: it takes ASCII letters, digits and \"-_.\"")]
    Name {
        /// The name.
        name: String,
    },
    /// Two pools have one name.
    #[error("there are two pools {pool}")]
    Twice {
        /// The name.
        pool: String,
    },
    /// Two CIDRs share addresses.
    #[error("{first} of pool {first_pool} and {second} of pool {second_pool} overlap")]
    Overlap {
        /// The CIDR that was configured first.
        first: IpNetwork,
        /// The pool it is of.
        first_pool: String,
        /// The CIDR that overlaps with it.
        second: IpNetwork,
        /// The pool that is of.
        second_pool: String,
    },
    /// Blocks of this size cannot be carved from a CIDR.
    #[error(
        "pool {pool}: no /{block} blocks can be carved from {cidr}: the prefix length must be \
         {} to {longest}",
        cidr.prefix()
    )]
    BlockSize {
        /// The pool.
        pool: String,
        /// The CIDR.
        cidr: IpNetwork,
        /// The prefix length that the blocks should have.
        block: u8,
        /// The greatest prefix length of the CIDR's family.
        longest: u8,
    },
}

/// Why blocks could not be claimed, kept or given back. `E` is the registry's error.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error<E: std::error::Error + 'static> {
    /// The registry failed. Whether a change took effect is not known; the next
    /// [`tick`](super::NodeBlocks::tick) finds out.
    #[error("cannot {operation} {key} in the registry")]
    Registry {
        /// What was tried.
        operation: &'static str,
        /// The key, or the prefix of keys.
        key: String,
        /// What the registry says.
        source: E,
    },
    /// Every block of the pool's family is claimed.
    #[error(
        "pool {pool} has no free {family} block: {} of {blocks} claimed ({})",
        claimed(holders),
        listed(holders)
    )]
    Full {
        /// The pool.
        pool: String,
        /// The family.
        family: Family,
        /// How many blocks the pool has, excluded ones among them.
        blocks: u128,
        /// Each node that has blocks of it, and how many; who has most comes first.
        holders: Vec<(String, u64)>,
    },
    /// Other nodes were quicker, again and again. The next tick tries again.
    #[error("no {family} block of pool {pool} could be claimed: lost {attempts} races")]
    Contended {
        /// The pool.
        pool: String,
        /// The family.
        family: Family,
        /// How many blocks were tried for.
        attempts: usize,
    },
    /// The cluster has the pool in use with blocks of another size. The size stays what it was
    /// when the first block was claimed; [`forget_pool`](super::forget_pool) ends that.
    #[error(
        "pool {pool} has /{in_use} {family} blocks in this cluster, and /{configured} is configured"
    )]
    BlockSize {
        /// The pool.
        pool: String,
        /// The family.
        family: Family,
        /// The prefix length that the cluster uses.
        in_use: u8,
        /// The prefix length that this node is told to use.
        configured: u8,
    },
    /// A block with addresses of this node's is claimed by somebody else: both may grant the same
    /// address. No tick lets that happen; somebody else has changed the registry.
    #[error("{block} is used here, but claimed by {holder}")]
    Lost {
        /// The block.
        block: Block,
        /// Who has it, or a block that overlaps with it.
        holder: String,
    },
    /// The pool has blocks that are claimed.
    #[error("pool {pool} is in use: {} blocks claimed ({})", claimed(holders), listed(holders))]
    InUse {
        /// The pool.
        pool: String,
        /// Each node that has blocks of it, and how many.
        holders: Vec<(String, u64)>,
    },
    /// What a key holds was not written by this crate, or by a later version.
    #[error("{key} in the registry cannot be read: {reason}")]
    Unreadable {
        /// The key.
        key: String,
        /// What is wrong.
        reason: String,
    },
}

fn claimed(holders: &[(String, u64)]) -> u64 {
    holders.iter().map(|(_, blocks)| blocks).sum()
}

/// A cluster may have thousands of nodes; the first few tell who to look at.
fn listed(holders: &[(String, u64)]) -> String {
    const SHOWN: usize = 8;
    let mut parts: Vec<_> =
        holders.iter().take(SHOWN).map(|(node, blocks)| format!("{node} has {blocks}")).collect();
    if holders.len() > SHOWN {
        parts.push(format!("{} more nodes", holders.len() - SHOWN));
    }
    if parts.is_empty() { "nobody has any".to_owned() } else { parts.join(", ") }
}
