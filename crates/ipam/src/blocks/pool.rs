use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use ipnetwork::IpNetwork;

use super::PoolError;
use crate::ranges::RangeSet;
use crate::space::{bounds, set_aside_ranges, to_address, to_value};
use crate::{Allocator, Family, PoolConfig};

/// A pool of the whole cluster, from which nodes claim blocks of one size per family.
///
/// Every node is told the same pools. CIDRs may be added and taken away while nodes are at work,
/// node by node; what must not change is the size of blocks, and to which pool an address belongs.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ClusterPool {
    /// The pool's name.
    pub name: String,
    /// What blocks are carved from, the first free one behind the node's last.
    pub cidrs: Vec<IpNetwork>,
    /// Ranges that are never granted. A block that lies within one of them is not claimed.
    pub excluded: Vec<IpNetwork>,
    /// The prefix length of IPv4 blocks.
    pub block_v4: u8,
    /// The prefix length of IPv6 blocks.
    pub block_v6: u8,
    /// How many addresses of each family every node keeps free at least; it keeps a quarter of a
    /// block if that is more. With 0, the node has no block until one is asked for, and gives the
    /// last one back.
    pub pre_alloc: u64,
    /// How long a block must have been empty, and one too many, before it is given back.
    pub idle: Duration,
}

impl ClusterPool {
    /// A pool of these CIDRs: nothing excluded, /26 and /120 blocks, 8 addresses kept free on
    /// every node, and 5 minutes before an empty block is given back.
    pub fn new(name: impl Into<String>, cidrs: Vec<IpNetwork>) -> Self {
        Self {
            name: name.into(),
            cidrs,
            excluded: Vec::new(),
            block_v4: 26,
            block_v6: 120,
            pre_alloc: 8,
            idle: Duration::from_secs(300),
        }
    }

    /// The pool as a node's [`Allocator`] first has it: without a block.
    #[must_use]
    pub fn of_node(&self) -> PoolConfig {
        let excluded = self.excluded.clone();
        PoolConfig { excluded, ..PoolConfig::new(self.name.as_str(), Vec::new()) }
    }

    /// The prefix length of the family's blocks.
    #[must_use]
    pub const fn block_prefix(&self, family: Family) -> u8 {
        match family {
            Family::V4 => self.block_v4,
            Family::V6 => self.block_v6,
        }
    }

    /// How many blocks of the family there are.
    ///
    /// # Panics
    ///
    /// If the pool is one that [`check`](Self::check) refuses.
    #[must_use]
    pub fn blocks(&self, family: Family) -> u128 {
        let block = self.block_prefix(family);
        self.of_family(family).map(|cidr| 1 << (block - cidr.prefix())).sum()
    }

    /// Whether `block` lies within one of the pool's CIDRs.
    #[must_use]
    pub fn contains(&self, block: IpNetwork) -> bool {
        self.cidr_around(block).is_some()
    }

    /// Whether the pool can be used.
    ///
    /// # Errors
    ///
    /// All of [`PoolError`].
    pub fn check(&self) -> Result<(), PoolError> {
        check_name(&self.name)?;
        for (index, cidr) in self.cidrs.iter().enumerate() {
            // It knows what is no source of addresses.
            Allocator::new(&PoolConfig::new(self.name.as_str(), vec![*cidr]))?;
            let block = self.block_prefix(Family::of(cidr.ip()));
            let longest = longest(Family::of(cidr.ip()));
            if block < cidr.prefix() || block > longest {
                let pool = self.name.clone();
                return Err(PoolError::BlockSize { pool, cidr: *cidr, block, longest });
            }
            disjoint((self, &self.cidrs[..index]), (self, *cidr))?;
        }
        Ok(())
    }

    /// Whether each of the pools can be used, and all of them together.
    ///
    /// # Errors
    ///
    /// All of [`PoolError`].
    pub fn check_all(pools: &[Self]) -> Result<(), PoolError> {
        for (index, pool) in pools.iter().enumerate() {
            pool.check()?;
            for other in &pools[..index] {
                if other.name == pool.name {
                    return Err(PoolError::Twice { pool: pool.name.clone() });
                }
                for cidr in &pool.cidrs {
                    disjoint((other, &other.cidrs), (pool, *cidr))?;
                }
            }
        }
        Ok(())
    }

    /// A free block, the first one behind `last` or, if there is no such block of this pool,
    /// behind a place that depends on the node. `taken` has every address that is claimed.
    ///
    /// The cost depends on the number of claims, never on the size of the pool.
    pub(super) fn free_block(
        &self,
        family: Family,
        taken: &RangeSet,
        node: &str,
        last: Option<IpNetwork>,
    ) -> Option<IpNetwork> {
        let cidrs: Vec<_> = self.of_family(family).map(|cidr| bounds(*cidr)).collect();
        let behind = last.and_then(|last| self.cidr_around(last).map(|_| bounds(last).1 + 1));
        let from = behind.or_else(|| self.first_place(family, node))?;
        // One behind its end still belongs to a CIDR here: the search goes on in the next then.
        let place =
            cidrs.iter().position(|(first, end)| (*first..=*end + 1).contains(&from)).unwrap_or(0);
        // The CIDR of the place twice: from there on, and at the end from its beginning.
        for step in 0..=cidrs.len() {
            let (first, end) = cidrs[(place + step) % cidrs.len()];
            let from = if step == 0 { from.max(first) } else { first };
            if let Some(free) = taken.next_gap(from).filter(|free| *free <= end) {
                return IpNetwork::new(to_address(family, free), self.block_prefix(family)).ok();
            }
        }
        None
    }

    /// Adds to `taken` what keeps `claim` from being claimed again, in whole blocks of this pool.
    pub(super) fn take(&self, family: Family, taken: &mut RangeSet, claim: IpNetwork) {
        if Family::of(claim.ip()) == family {
            let within = self.block_addresses(family) - 1;
            let (first, last) = bounds(claim);
            taken.insert_run(first & !within, last | within);
        }
    }

    /// Adds to `taken` the blocks of which nothing may be granted.
    pub(super) fn take_excluded(&self, family: Family, taken: &mut RangeSet) {
        for range in &self.excluded {
            if range.prefix() <= self.block_prefix(family) {
                self.take(family, taken, *range);
            }
        }
    }

    /// How many addresses of a block may be granted.
    pub(super) fn usable(&self, block: IpNetwork) -> u128 {
        let (first, last) = bounds(block);
        let mut withheld = RangeSet::default();
        let (single, range) = set_aside_ranges(block);
        let single = single.into_iter().flatten().map(|value| (value, value));
        let excluded = self.excluded.iter().filter(|range| overlap(**range, block));
        for (from, to) in single.chain(range).chain(excluded.map(|range| bounds(*range))) {
            withheld.insert_run(from.max(first), to.min(last));
        }
        last - first + 1 - withheld.len()
    }

    /// How many addresses should be free, so that the next block is there before it is needed.
    pub(super) fn low_water(&self, family: Family) -> u128 {
        u128::from(self.pre_alloc).max(self.block_addresses(family) / 4).max(1)
    }

    pub(super) fn has(&self, family: Family) -> bool {
        self.of_family(family).next().is_some()
    }

    /// Where the node's first block is looked for: nodes that begin at the same time seldom race.
    fn first_place(&self, family: Family, node: &str) -> Option<u128> {
        let mut hasher = DefaultHasher::new();
        node.hash(&mut hasher);
        let blocks = self.blocks(family);
        let mut index = u128::from(hasher.finish()).checked_rem(blocks)?;
        for cidr in self.of_family(family) {
            let here = 1 << (self.block_prefix(family) - cidr.prefix());
            if index < here {
                return Some(to_value(cidr.network()) + index * self.block_addresses(family));
            }
            index -= here;
        }
        None
    }

    fn of_family(&self, family: Family) -> impl Iterator<Item = &IpNetwork> {
        self.cidrs.iter().filter(move |cidr| Family::of(cidr.ip()) == family)
    }

    fn cidr_around(&self, block: IpNetwork) -> Option<&IpNetwork> {
        let around =
            |cidr: &&IpNetwork| cidr.prefix() <= block.prefix() && cidr.contains(block.network());
        self.cidrs.iter().find(around)
    }

    fn block_addresses(&self, family: Family) -> u128 {
        1 << (longest(family) - self.block_prefix(family))
    }
}

pub(super) fn overlap(one: IpNetwork, other: IpNetwork) -> bool {
    let ((first, last), (other_first, other_last)) = (bounds(one), bounds(other));
    Family::of(one.ip()) == Family::of(other.ip()) && first <= other_last && last >= other_first
}

/// Whether a name can be part of a key, for every registry.
pub(super) fn check_name(name: &str) -> Result<(), PoolError> {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    if !name.is_empty() && name.len() <= 253 && name.bytes().all(fits) {
        return Ok(());
    }
    Err(PoolError::Name { name: name.to_owned() })
}

const fn longest(family: Family) -> u8 {
    match family {
        Family::V4 => 32,
        Family::V6 => 128,
    }
}

fn disjoint(
    (pool, cidrs): (&ClusterPool, &[IpNetwork]),
    (other, cidr): (&ClusterPool, IpNetwork),
) -> Result<(), PoolError> {
    let Some(first) = cidrs.iter().find(|first| overlap(**first, cidr)) else { return Ok(()) };
    Err(PoolError::Overlap {
        first: *first,
        first_pool: pool.name.clone(),
        second: cidr,
        second_pool: other.name.clone(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(cidrs: &[&str], block_v4: u8, block_v6: u8) -> ClusterPool {
        let cidrs = cidrs.iter().map(|cidr| cidr.parse().unwrap()).collect();
        let mut pool = ClusterPool::new("p", cidrs);
        (pool.block_v4, pool.block_v6) = (block_v4, block_v6);
        pool
    }

    /// Every block that can be had, in the order in which one node gets them.
    fn carve(pool: &ClusterPool, family: Family, node: &str) -> Vec<String> {
        let mut taken = RangeSet::default();
        pool.take_excluded(family, &mut taken);
        let (mut blocks, mut last) = (Vec::new(), None);
        while let Some(block) = pool.free_block(family, &taken, node, last) {
            pool.take(family, &mut taken, block);
            blocks.push(block.to_string());
            last = Some(block);
        }
        blocks
    }

    #[test]
    fn carves_every_block_once() {
        for (cidrs, block, family, count, usable_each) in [
            (&["10.0.0.0/24"][..], 26, Family::V4, 4, 62),
            (&["10.0.0.0/24"], 24, Family::V4, 1, 254),
            (&["10.0.0.0/28"], 30, Family::V4, 4, 2),
            (&["10.0.0.0/28"], 31, Family::V4, 8, 2),
            (&["10.0.0.0/28"], 32, Family::V4, 16, 1),
            (&["10.0.0.7/32"], 32, Family::V4, 1, 1),
            (&["10.0.2.0/24", "10.0.0.0/25", "fd00::/64"], 26, Family::V4, 6, 62),
            (&["fd00::/60", "10.0.0.0/24"], 64, Family::V6, 16, (1 << 64) - 129),
            (&["fd00::/120"], 122, Family::V6, 4, 63),
            (&["fd00::/120"], 127, Family::V6, 128, 2),
            (&["fd00::/124", "fd01::/124"], 128, Family::V6, 32, 1),
            (&["2000::/4"], 6, Family::V6, 4, (1 << 122) - 1),
        ] {
            let (v4, v6) = if family == Family::V4 { (block, 64) } else { (24, block) };
            let pool = pool(cidrs, v4, v6);
            pool.check().unwrap();
            assert_eq!(pool.blocks(family), count, "{cidrs:?}");
            let mut blocks = carve(&pool, family, "n1");
            assert_eq!(blocks.len() as u128, count, "{cidrs:?}: {blocks:?}");
            for block in &blocks {
                let block: IpNetwork = block.parse().unwrap();
                assert_eq!(
                    (block.ip(), block.prefix()),
                    (block.network(), pool.block_prefix(family))
                );
                assert!(pool.contains(block));
                assert_eq!(pool.usable(block), usable_each, "{block}");
            }
            blocks.sort();
            blocks.dedup();
            assert_eq!(blocks.len() as u128, count, "{cidrs:?}");
        }
    }

    #[test]
    fn a_node_goes_on_behind_its_last_block_and_round() {
        let pool = pool(&["10.0.0.0/25", "10.9.0.0/25"], 26, 64);
        let all = ["10.0.0.0/26", "10.0.0.64/26", "10.9.0.0/26", "10.9.0.64/26"];
        let mut starts = std::collections::BTreeSet::new();
        for node in 0..40 {
            let carved = carve(&pool, Family::V4, &format!("n{node}"));
            let start = all.iter().position(|block| *block == carved[0]).unwrap();
            let order: Vec<_> = (0..4).map(|step| all[(start + step) % 4]).collect();
            assert_eq!(carved, order);
            starts.insert(start);
        }
        assert_eq!(starts.len(), 4, "nodes begin in different places");
    }

    #[test]
    fn huge_pools_cost_what_their_claims_cost() {
        let pool = pool(&["fd00::/48"], 26, 80);
        assert_eq!(pool.blocks(Family::V6), 1 << 32);
        let mut taken = RangeSet::default();
        // All of it but the last block.
        let end = bounds(pool.cidrs[0]).1;
        taken.insert_run(bounds(pool.cidrs[0]).0, end - (1 << 48));
        let last = pool.free_block(Family::V6, &taken, "n1", None).unwrap();
        assert_eq!(last.to_string(), "fd00:0:0:ffff:ffff::/80");
        pool.take(Family::V6, &mut taken, last);
        assert_eq!(pool.free_block(Family::V6, &taken, "n1", Some(last)), None);
    }

    #[test]
    fn what_is_excluded_or_overlaps_with_other_claims_is_left_out() {
        let mut pool = pool(&["10.0.0.0/24"], 26, 64);
        pool.excluded =
            ["10.0.0.0/25", "10.0.0.128/28", "fd00::/64"].map(|s| s.parse().unwrap()).into();
        let mut blocks = carve(&pool, Family::V4, "n1");
        blocks.sort();
        assert_eq!(blocks, ["10.0.0.128/26", "10.0.0.192/26"]);
        let mut taken = RangeSet::default();
        for claim in ["10.0.0.130/32", "10.0.0.0/25", "fd00::/8"] {
            pool.take(Family::V4, &mut taken, claim.parse().unwrap());
        }
        let free = pool.free_block(Family::V4, &taken, "n1", None).unwrap();
        assert_eq!(free.to_string(), "10.0.0.192/26");
    }

    #[test]
    fn knows_what_a_block_is_good_for() {
        let mut pool = pool(&["10.0.0.0/24"], 30, 64);
        let usable = |pool: &ClusterPool, block: &str| pool.usable(block.parse().unwrap());
        pool.excluded = ["10.0.0.1/32", "10.0.0.2/32", "10.0.0.5/32", "fd00::/64"]
            .map(|range| range.parse().unwrap())
            .into();
        assert_eq!(usable(&pool, "10.0.0.0/30"), 0);
        assert_eq!(usable(&pool, "10.0.0.4/30"), 1);
        assert_eq!(usable(&pool, "10.0.0.8/30"), 2);
    }

    #[test]
    fn refuses_what_makes_no_sense() {
        let message = |pool: &ClusterPool| pool.check().unwrap_err().to_string();
        assert_eq!(
            message(&pool(&["10.0.0.0/24"], 23, 64)),
            "pool p: no /23 blocks can be carved from 10.0.0.0/24: the prefix length must be 24 to 32"
        );
        assert!(message(&pool(&["10.0.0.0/24"], 33, 64)).contains("must be 24 to 32"));
        assert!(message(&pool(&["fd00::/48"], 26, 129)).contains("must be 48 to 128"));
        assert!(message(&pool(&["10.0.0.1/24"], 26, 64)).contains("behind the prefix"));
        assert!(message(&pool(&["127.0.0.0/8"], 26, 64)).contains("loopback"));
        assert_eq!(
            message(&pool(&["10.0.0.0/16", "fd00::/64", "10.0.9.0/24"], 26, 120)),
            "10.0.0.0/16 of pool p and 10.0.9.0/24 of pool p overlap"
        );
        for name in ["", "a/b", "a b", "ä"] {
            let pool = ClusterPool::new(name, Vec::new());
            assert!(matches!(pool.check().unwrap_err(), PoolError::Name { .. }), "{name}");
        }
        let (a, mut b) = (pool(&["10.0.0.0/16"], 26, 64), pool(&["10.0.128.0/24"], 26, 64));
        let error = ClusterPool::check_all(&[a.clone(), b.clone()]).unwrap_err();
        assert_eq!(error.to_string(), "there are two pools p");
        b.name = "b".into();
        let error = ClusterPool::check_all(&[a, b]).unwrap_err();
        assert_eq!(error.to_string(), "10.0.0.0/16 of pool p and 10.0.128.0/24 of pool b overlap");
    }
}
