use std::cmp::Ordering;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::Add;
use std::sync::Arc;
use std::time::Duration;

use crate::Error;

/// A moment, as the time since an epoch that the caller chooses.
///
/// The allocator has no clock: it is told the time, and reads an earlier one than it has seen
/// before as the latest it has seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Time(Duration);

impl Time {
    /// The moment `since_epoch` after the caller's epoch.
    #[must_use]
    pub const fn new(since_epoch: Duration) -> Self {
        Self(since_epoch)
    }

    /// The moment that many whole seconds after the caller's epoch.
    #[must_use]
    pub const fn from_secs(seconds: u64) -> Self {
        Self(Duration::from_secs(seconds))
    }

    /// The time since the caller's epoch.
    #[must_use]
    pub const fn since_epoch(self) -> Duration {
        self.0
    }
}

impl Add<Duration> for Time {
    type Output = Self;

    fn add(self, later: Duration) -> Self {
        Self(self.0.saturating_add(later))
    }
}

/// An address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// The family of `address`.
    #[must_use]
    pub const fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}

/// Who holds a lease: one interface of one container.
///
/// The names are opaque here. Two owners are the same if container and interface are; the pod is
/// only carried along. Cloning is cheap, both clones share one allocation.
#[derive(Clone)]
pub struct Owner {
    /// All names in one piece: a million owners should not cost millions of allocations more.
    names: Arc<str>,
    container_end: u32,
    ifname_end: u32,
}

impl Owner {
    /// The interface `ifname` of the container `container_id`.
    ///
    /// # Panics
    ///
    /// If the names have more than 4 GiB together.
    #[must_use]
    pub fn new(container_id: &str, ifname: &str) -> Self {
        Self::from_names(container_id, ifname, "")
    }

    /// The same owner as one of the pod `pod`, which podwire calls `namespace/name`.
    ///
    /// # Panics
    ///
    /// As [`new`](Self::new).
    #[must_use]
    pub fn with_pod(&self, pod: &str) -> Self {
        Self::from_names(self.container_id(), self.ifname(), pod)
    }

    fn from_names(container_id: &str, ifname: &str, pod: &str) -> Self {
        let end = |length: usize| u32::try_from(length).expect("names of less than 4 GiB");
        let mut names = String::with_capacity(container_id.len() + ifname.len() + pod.len());
        names.push_str(container_id);
        let container_end = end(names.len());
        names.push_str(ifname);
        let ifname_end = end(names.len());
        names.push_str(pod);
        Self { names: names.into(), container_end, ifname_end }
    }

    /// The container's id.
    #[must_use]
    pub fn container_id(&self) -> &str {
        &self.names[..self.container_end as usize]
    }

    /// The interface's name inside the container.
    #[must_use]
    pub fn ifname(&self) -> &str {
        &self.names[self.container_end as usize..self.ifname_end as usize]
    }

    /// The pod, where one was given.
    #[must_use]
    pub fn pod(&self) -> Option<&str> {
        Some(&self.names[self.ifname_end as usize..]).filter(|pod| !pod.is_empty())
    }

    fn key(&self) -> (&str, &str) {
        (self.container_id(), self.ifname())
    }
}

impl PartialEq for Owner {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}

impl Eq for Owner {}

impl PartialOrd for Owner {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Owner {
    fn cmp(&self, other: &Self) -> Ordering {
        self.key().cmp(&other.key())
    }
}

impl Hash for Owner {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.key().hash(state);
    }
}

/// `<container id>/<ifname>`.
impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.container_id(), self.ifname())
    }
}

impl fmt::Debug for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Owner")
            .field("container_id", &self.container_id())
            .field("ifname", &self.ifname())
            .field("pod", &self.pod())
            .finish()
    }
}

/// At most one address of each family.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Addresses {
    /// The IPv4 address, if there is one.
    pub v4: Option<Ipv4Addr>,
    /// The IPv6 address, if there is one.
    pub v6: Option<Ipv6Addr>,
}

impl Addresses {
    /// The addresses of a list that has at most one of each family; a repeated address counts
    /// once.
    ///
    /// # Errors
    ///
    /// [`Error::SameFamily`].
    pub fn from_list(addresses: &[IpAddr]) -> Result<Self, Error> {
        let mut found = Self::default();
        for &address in addresses {
            let earlier = found.of(Family::of(address));
            match earlier {
                Some(first) if first != address => {
                    return Err(Error::SameFamily { first, second: address });
                }
                _ => match address {
                    IpAddr::V4(v4) => found.v4 = Some(v4),
                    IpAddr::V6(v6) => found.v6 = Some(v6),
                },
            }
        }
        Ok(found)
    }

    /// The address of one family.
    #[must_use]
    pub fn of(&self, family: Family) -> Option<IpAddr> {
        match family {
            Family::V4 => self.v4.map(IpAddr::V4),
            Family::V6 => self.v6.map(IpAddr::V6),
        }
    }

    /// Puts an address in the place of the one of its family, which is given.
    pub(crate) fn replace(&mut self, address: IpAddr) -> Option<IpAddr> {
        match address {
            IpAddr::V4(v4) => self.v4.replace(v4).map(IpAddr::V4),
            IpAddr::V6(v6) => self.v6.replace(v6).map(IpAddr::V6),
        }
    }

    /// Takes an address out, if it is there.
    pub(crate) fn clear(&mut self, address: IpAddr) {
        self.v4 = self.v4.filter(|v4| *v4 != address);
        self.v6 = self.v6.filter(|v6| *v6 != address);
    }

    /// The addresses, IPv4 first.
    pub fn iter(&self) -> impl Iterator<Item = IpAddr> + use<> {
        self.of(Family::V4).into_iter().chain(self.of(Family::V6))
    }

    /// Whether there is no address at all.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.v4.is_none() && self.v6.is_none()
    }
}

/// `10.0.0.2 and fd00::2`, or `no address`.
impl fmt::Display for Addresses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.v4, self.v6) {
            (Some(v4), Some(v6)) => write!(f, "{v4} and {v6}"),
            (Some(v4), None) => v4.fmt(f),
            (None, Some(v6)) => v6.fmt(f),
            (None, None) => f.write_str("no address"),
        }
    }
}

/// How firmly a lease is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LeaseState {
    /// Granted, but not yet confirmed; [`expire`](crate::Allocator::expire) takes it back from
    /// this moment on.
    Pending {
        /// When the lease may be taken back.
        expires: Time,
    },
    /// Held until it is released.
    Confirmed,
}

/// Addresses in the hands of an owner.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Lease {
    /// Who holds them.
    pub owner: Owner,
    /// What is held.
    pub addresses: Addresses,
    /// How firmly.
    pub state: LeaseState,
}

/// What an owner asks for.
///
/// ```
/// use podwire_ipam::{Family, Request};
///
/// let whatever_the_first_pool_has = Request::default();
/// let only_v6 = Request::family(Family::V6);
/// // This IPv4 address, and any IPv6 address if the pool has some:
/// let explicit = Request::default().with_addresses(&["10.0.0.9".parse()?])?;
/// // From `blue`, and when that is full from `green`; the same whenever `shop/web-0` asks:
/// let of_a_stateful_set = Request::default().from_pools(&["blue", "green"]).sticky("shop/web-0");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Request {
    pub(crate) families: Families,
    pub(crate) explicit: Addresses,
    pub(crate) sticky: Option<String>,
    v4_pools: Vec<String>,
    v6_pools: Vec<String>,
}

impl Request {
    /// One address of this family only.
    #[must_use]
    pub fn family(family: Family) -> Self {
        let other = match family {
            Family::V4 => Family::V6,
            Family::V6 => Family::V4,
        };
        let mut request = Self::default().require(family);
        request.families.set(other, false);
        request
    }

    /// One address of both families; where the pools have only one, the request is refused.
    #[must_use]
    pub fn dual_stack() -> Self {
        Self::default().require(Family::V4).require(Family::V6)
    }

    /// Refuses to go without an address of this family.
    #[must_use]
    pub fn require(mut self, family: Family) -> Self {
        self.families.set(family, true);
        self
    }

    /// Asks for exactly these addresses, at most one of each family, in addition to what the
    /// request says about the families. They must be of the request's pools.
    ///
    /// # Errors
    ///
    /// [`Error::SameFamily`].
    pub fn with_addresses(mut self, addresses: &[IpAddr]) -> Result<Self, Error> {
        self.explicit = Addresses::from_list(addresses)?;
        Ok(self)
    }

    /// Takes the addresses from these pools instead of the one that was added first. A pool is used
    /// when those before it have no address left. Both addresses of a pair come from one pool, as
    /// long as one has both.
    #[must_use]
    pub fn from_pools<S: AsRef<str>>(self, pools: &[S]) -> Self {
        self.pools_of(Family::V4, pools).pools_of(Family::V6, pools)
    }

    /// The same for one family.
    #[must_use]
    pub fn pools_of<S: AsRef<str>>(mut self, family: Family, pools: &[S]) -> Self {
        let mut list: Vec<String> = Vec::with_capacity(pools.len());
        for name in pools.iter().map(AsRef::as_ref) {
            // Twice in the list is no second chance, and would count as exhausted twice.
            if !list.iter().any(|earlier| earlier == name) {
                list.push(name.to_owned());
            }
        }
        match family {
            Family::V4 => self.v4_pools = list,
            Family::V6 => self.v6_pools = list,
        }
        self
    }

    /// Asks for the addresses that this name had the last time, if it had any, and keeps the ones
    /// granted for it: see [`Allocator::forget`](crate::Allocator::forget).
    #[must_use]
    pub fn sticky(mut self, name: &str) -> Self {
        self.sticky = Some(name.to_owned());
        self
    }

    /// The pools of one family; empty for the one that was added first.
    pub(crate) fn pools(&self, family: Family) -> &[String] {
        match family {
            Family::V4 => &self.v4_pools,
            Family::V6 => &self.v6_pools,
        }
    }

    /// Whether both families come from the same pools.
    pub(crate) fn is_paired(&self) -> bool {
        self.v4_pools == self.v6_pools
    }
}

/// Which families a request covers, apart from its explicit addresses: `None` for those that there
/// are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Families {
    v4: Option<bool>,
    v6: Option<bool>,
}

impl Families {
    /// `None`: if a pool has it.
    pub(crate) fn wants(self, family: Family) -> Option<bool> {
        match family {
            Family::V4 => self.v4,
            Family::V6 => self.v6,
        }
    }

    fn set(&mut self, family: Family, wanted: bool) {
        match family {
            Family::V4 => self.v4 = Some(wanted),
            Family::V6 => self.v6 = Some(wanted),
        }
    }
}
