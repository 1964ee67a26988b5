use std::time::Duration;

use ipnetwork::IpNetwork;

use crate::Family;

/// What a pool is made of.
///
/// ```
/// use podwire_ipam::PoolConfig;
///
/// let mut config = PoolConfig::new("default", vec!["10.1.0.0/24".parse()?, "fd00:1::/64".parse()?]);
/// config.excluded = vec!["10.1.0.0/28".parse()?];
/// # Ok::<(), ipnetwork::IpNetworkError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PoolConfig {
    /// The pool's name, as errors tell it.
    pub name: String,
    /// Where addresses come from; within a family the first CIDR with a free address is used.
    pub cidrs: Vec<IpNetwork>,
    /// Those of the CIDRs that nothing is granted from any more: leases in them stay.
    pub drained: Vec<IpNetwork>,
    /// Ranges that are never granted. They may lie anywhere, also outside the CIDRs.
    pub excluded: Vec<IpNetwork>,
    /// How long a released address rests before it counts as free again. It is used earlier, the
    /// oldest release first, when nothing else is left.
    pub cooldown: Duration,
    /// How long a lease waits for its confirmation.
    pub pending_ttl: Duration,
}

impl PoolConfig {
    /// A pool of these CIDRs: nothing excluded, 60 s of cool-down, 5 minutes to confirm.
    pub fn new(name: impl Into<String>, cidrs: Vec<IpNetwork>) -> Self {
        Self {
            name: name.into(),
            cidrs,
            drained: Vec::new(),
            excluded: Vec::new(),
            cooldown: Duration::from_secs(60),
            pending_ttl: Duration::from_secs(300),
        }
    }
}

/// How full something is.
///
/// Addresses held although the configuration would not grant them (see
/// [`Restored::Stray`](crate::Restored::Stray)) are not part of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Usage {
    /// Addresses that may be granted: all but network, broadcast, anycast and excluded ones. Of a
    /// drained CIDR, those that are still held.
    pub size: u128,
    /// Addresses of confirmed leases.
    pub used: u64,
    /// Addresses of leases that await confirmation.
    pub pending: u64,
    /// Released addresses in their cool-down.
    pub cooling: u64,
    /// Reserved addresses, as far as they could be granted otherwise.
    pub reserved: u64,
    /// Addresses that nobody has, kept for the sticky name that had them.
    pub kept: u64,
}

impl Usage {
    /// Addresses that are none of used, pending, cooling, reserved, kept.
    #[must_use]
    pub fn free(&self) -> u128 {
        self.size - self.taken()
    }

    pub(crate) fn taken(&self) -> u128 {
        let taken = [self.used, self.pending, self.cooling, self.reserved, self.kept];
        taken.into_iter().map(u128::from).sum()
    }

    pub(crate) fn add(&mut self, other: &Self) {
        self.size += other.size;
        self.used += other.used;
        self.pending += other.pending;
        self.cooling += other.cooling;
        self.reserved += other.reserved;
        self.kept += other.kept;
    }
}

/// How full one CIDR is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct CidrUsage {
    /// The CIDR.
    pub cidr: IpNetwork,
    /// How full it is.
    pub usage: Usage,
    /// Whether nothing is granted from it any more.
    pub drained: bool,
}

/// How full a pool is, and how often it was too full.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PoolUsage {
    /// The pool's name.
    pub pool: String,
    /// Each CIDR, IPv4 first, within a family in the order of the configuration.
    pub cidrs: Vec<CidrUsage>,
    /// How often a request found no IPv4 address left here, whether or not it was given one of
    /// another pool.
    pub exhausted_v4: u64,
    /// The same for IPv6.
    pub exhausted_v6: u64,
}

impl PoolUsage {
    /// The sum over one family; `None` if the pool has no CIDR of it.
    #[must_use]
    pub fn family(&self, family: Family) -> Option<Usage> {
        let mut of_family =
            self.cidrs.iter().filter(|entry| Family::of(entry.cidr.ip()) == family).peekable();
        of_family.peek()?;
        let mut sum = Usage::default();
        for entry in of_family {
            sum.add(&entry.usage);
        }
        Some(sum)
    }
}
