//! Claims as they are in the registry: `blocks/<pool>/<cidr>` names the node, and
//! `pools/<pool>/<family>` the size that the pool's blocks have.

use std::collections::BTreeMap;
use std::fmt;

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

use super::{ClusterPool, Error, Expected, New, Registry, Revision, Swap, Versioned};
use crate::Family;

const BLOCKS: &str = "blocks/";

/// A block of a pool.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Block {
    /// The pool's name.
    pub pool: String,
    /// The block's addresses.
    pub cidr: IpNetwork,
}

impl Block {
    /// The block `cidr` of `pool`.
    pub fn new(pool: impl Into<String>, cidr: IpNetwork) -> Self {
        Self { pool: pool.into(), cidr }
    }

    pub(super) fn family(&self) -> Family {
        Family::of(self.cidr.ip())
    }

    pub(super) fn key(&self) -> String {
        format!("{BLOCKS}{}/{}", self.pool, self.cidr)
    }

    fn from_key(key: &str) -> Option<Self> {
        let (pool, cidr) = key.strip_prefix(BLOCKS)?.split_once('/')?;
        let block = Self::new(pool, cidr.parse().ok()?);
        // Otherwise one block would have several keys.
        (block.key() == key && block.cidr.network() == block.cidr.ip()).then_some(block)
    }
}

impl fmt::Display for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of pool {}", self.cidr, self.pool)
    }
}

/// A block that a node has claimed.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Claim {
    /// The block.
    pub block: Block,
    /// The node, or `(unreadable)` if the registry holds something that is no claim.
    pub node: String,
    /// The revision of the claim.
    pub revision: Revision,
    pub(super) generation: u64,
}

/// The value of a block's key.
#[derive(Serialize, Deserialize)]
struct Value {
    node: String,
    /// Changes whenever the node takes a block back that it may have tried to release: a late
    /// deletion meets another revision then.
    #[serde(default)]
    generation: u64,
}

/// The value of a pool's key.
#[derive(Serialize, Deserialize)]
struct Size {
    block: u8,
}

impl Claim {
    pub(super) fn read(block: Block, found: &Versioned) -> Self {
        let value = serde_json::from_slice(&found.value);
        let value =
            value.unwrap_or_else(|_| Value { node: "(unreadable)".to_owned(), generation: 0 });
        let (node, generation) = (value.node, value.generation);
        Self { block, node, revision: found.revision.clone(), generation }
    }
}

pub(super) fn value(node: &str, generation: u64) -> Vec<u8> {
    serde_json::json!({ "node": node, "generation": generation }).to_string().into_bytes()
}

/// Every block that is claimed, by whomever, in the order of pools and CIDRs.
///
/// # Errors
///
/// [`Error::Registry`]; [`Error::Unreadable`] if there is a key that names no block.
pub fn claims<R: Registry>(registry: &R) -> Result<Vec<Claim>, Error<R::Error>> {
    let (claims, mut unreadable) = list(registry)?;
    unreadable.pop().map_or(Ok(claims), Err)
}

/// Every claim, and an error for each key that names no block.
pub(super) fn list<R: Registry>(registry: &R) -> Result<Listed<R::Error>, Error<R::Error>> {
    let listed = registry.list(BLOCKS).map_err(|source| failed("list", BLOCKS, source))?;
    let (mut claims, mut unreadable) = (Vec::with_capacity(listed.len()), Vec::new());
    for (key, found) in listed {
        match Block::from_key(&key) {
            Some(block) => claims.push(Claim::read(block, &found)),
            None => unreadable.push(Error::Unreadable { key, reason: "it is no block".into() }),
        }
    }
    claims.sort_unstable_by(|one, other| one.block.cmp(&other.block));
    Ok((claims, unreadable))
}

type Listed<E> = (Vec<Claim>, Vec<Error<E>>);

/// Releases every block of a node that is gone for good, and returns them.
///
/// The caller makes sure that the node does not run, nor any pod of it: its addresses may be
/// granted elsewhere at once. A claim that changes meanwhile is left alone.
///
/// # Errors
///
/// [`Error::Registry`]; blocks may have been released by then, and the rest is when it is called
/// again.
pub fn release_node<R: Registry>(registry: &R, node: &str) -> Result<Vec<Block>, Error<R::Error>> {
    let mut released = Vec::new();
    for claim in list(registry)?.0.into_iter().filter(|claim| claim.node == node) {
        let key = claim.block.key();
        let swap = registry.swap(&key, &Expected::Revision(claim.revision), New::Delete);
        if let Swap::Swapped(_) = swap.map_err(|source| failed("delete", &key, source))? {
            released.push(claim.block);
        }
    }
    Ok(released)
}

/// Forgets of which size the blocks of a pool were, so that its name can be used with another.
///
/// The caller makes sure that no node is told to use the pool any more.
///
/// # Errors
///
/// [`Error::InUse`] while blocks of it are claimed; [`Error::Registry`].
pub fn forget_pool<R: Registry>(registry: &R, pool: &str) -> Result<(), Error<R::Error>> {
    let claims = list(registry)?.0;
    let holders = holders(claims.iter().filter(|claim| claim.block.pool == pool));
    if !holders.is_empty() {
        return Err(Error::InUse { pool: pool.to_owned(), holders });
    }
    for family in [Family::V4, Family::V6] {
        let key = size_key(pool, family);
        let found = registry.read(&key).map_err(|source| failed("read", &key, source))?;
        if let Some(found) = found {
            registry
                .swap(&key, &Expected::Revision(found.revision), New::Delete)
                .map_err(|source| failed("delete", &key, source))?;
        }
    }
    Ok(())
}

/// Makes sure that the whole cluster uses blocks of one size: those of one size are equal or
/// disjoint, so that a key per block keeps nodes apart.
pub(super) fn settle_size<R: Registry>(
    registry: &R,
    pool: &ClusterPool,
    family: Family,
) -> Result<(), Error<R::Error>> {
    let key = size_key(&pool.name, family);
    let configured = pool.block_prefix(family);
    let found = match registry.read(&key).map_err(|source| failed("read", &key, source))? {
        Some(found) => found,
        None => {
            let value = serde_json::json!({ "block": configured }).to_string();
            let swap = registry.swap(&key, &Expected::Absent, New::Put(value.as_bytes()));
            match swap.map_err(|source| failed("create", &key, source))? {
                Swap::Swapped(_) => return Ok(()),
                Swap::Conflict(Some(found)) => found,
                Swap::Conflict(None) => {
                    let reason = "it comes and goes".to_owned();
                    return Err(Error::Unreadable { key, reason });
                }
            }
        }
    };
    match serde_json::from_slice::<Size>(&found.value) {
        Ok(size) if size.block == configured => Ok(()),
        Ok(size) => {
            let pool = pool.name.clone();
            Err(Error::BlockSize { pool, family, in_use: size.block, configured })
        }
        Err(error) => Err(Error::Unreadable { key, reason: error.to_string() }),
    }
}

/// Who has how many of these; who has most comes first.
pub(super) fn holders<'a>(claims: impl Iterator<Item = &'a Claim>) -> Vec<(String, u64)> {
    let mut counts = BTreeMap::<&str, u64>::new();
    for claim in claims {
        *counts.entry(&claim.node).or_default() += 1;
    }
    let mut holders: Vec<_> = counts.into_iter().map(|(node, n)| (node.to_owned(), n)).collect();
    holders.sort_by_key(|(_, blocks)| std::cmp::Reverse(*blocks));
    holders
}

pub(super) fn failed<E: std::error::Error + 'static>(
    operation: &'static str,
    key: &str,
    source: E,
) -> Error<E> {
    Error::Registry { operation, key: key.to_owned(), source }
}

fn size_key(pool: &str, family: Family) -> String {
    let family = match family {
        Family::V4 => "ipv4",
        Family::V6 => "ipv6",
    };
    format!("pools/{pool}/{family}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_has_one_key() {
        for key in ["blocks/p/10.0.0.0/26", "blocks/p-1.x/fd00::/80"] {
            assert_eq!(Block::from_key(key).unwrap().key(), key);
        }
        for key in [
            "blocks/p/10.0.0.1/26",
            "blocks/p/10.0.0.0",
            "blocks/p/fd00:0::/80",
            "blocks/p/FD00::/80",
            "blocks/p/10.0.0.0/026",
            "blocks/p",
            "pools/p/ipv4",
        ] {
            assert_eq!(Block::from_key(key), None, "{key}");
        }
    }
}
