use std::fmt;
use std::net::IpAddr;

use ipnetwork::IpNetwork;

use crate::{AddressRange, Addresses, Bound, Family, Owner, Usage};

/// Why the allocator refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A configured CIDR cannot serve as a source of addresses.
    #[error("pool {pool}: {cidr} cannot be used: {reason}")]
    InvalidCidr {
        /// The pool's name.
        pool: String,
        /// The CIDR as configured.
        cidr: IpNetwork,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// Two CIDRs share addresses.
    #[error("pool {pool}: {second} overlaps {first} of pool {other}")]
    Overlap {
        /// The pool that `second` is for.
        pool: String,
        /// The CIDR that was there first.
        first: IpNetwork,
        /// The pool that has it, the same or another.
        other: String,
        /// The CIDR that overlaps with it.
        second: IpNetwork,
    },
    /// A pool of this name exists already.
    #[error("pool {pool} exists already")]
    PoolExists {
        /// The pool's name.
        pool: String,
    },
    /// No pool has this name.
    #[error("there is no pool {pool}; the pools are {}", names(.known))]
    UnknownPool {
        /// The name asked for.
        pool: String,
        /// The pools that there are.
        known: Vec<String>,
    },
    /// The pool does not have this CIDR.
    #[error("pool {pool} has no CIDR {cidr}; it has {}", cidrs(.known))]
    UnknownCidr {
        /// The pool's name.
        pool: String,
        /// The CIDR asked for.
        cidr: IpNetwork,
        /// The CIDRs it has.
        known: Vec<IpNetwork>,
    },
    /// A CIDR cannot be taken away: something in it is held.
    #[error(
        "{cidr} of pool {pool} is in use: used {used}, pending {pending}, reserved {reserved}, \
         kept {kept}"
    )]
    CidrInUse {
        /// The pool's name.
        pool: String,
        /// The CIDR.
        cidr: IpNetwork,
        /// Addresses of confirmed leases.
        used: u64,
        /// Addresses of leases that await confirmation.
        pending: u64,
        /// Reserved addresses.
        reserved: u64,
        /// Addresses kept for sticky names.
        kept: u64,
    },
    /// The request asks for a family in which its pools have no CIDR.
    #[error("no {family} CIDR in pool {}", names(.pools))]
    NoFamily {
        /// The pools of the request.
        pools: Vec<String>,
        /// The family that was asked for.
        family: Family,
    },
    /// Every address of the family is leased, reserved or kept, in all pools of the request.
    #[error("no {family} address is left in pool {}", states(.pools))]
    Exhausted {
        /// The family that ran out.
        family: Family,
        /// The pools of the request, and how full they are in this family. Cooling addresses are 0
        /// here: they are granted before a pool gives up.
        pools: Vec<PoolState>,
    },
    /// The address asked for by name belongs to no CIDR of the request's pools.
    #[error("{address} is in no CIDR of pool {pool}")]
    OutsidePool {
        /// The pool's name.
        pool: String,
        /// The address asked for.
        address: IpAddr,
    },
    /// The address asked for by name is in the pool, but never granted.
    #[error("{address} of pool {pool} is never granted: {reason}")]
    Unusable {
        /// The pool's name.
        pool: String,
        /// The address asked for.
        address: IpAddr,
        /// Which rule withholds it.
        reason: Unusable,
    },
    /// The address asked for by name is leased.
    #[error("{address} is held by {holder}")]
    Held {
        /// The address asked for.
        address: IpAddr,
        /// Who holds it.
        holder: Owner,
    },
    /// Two leases that are to be restored claim one address.
    #[error("{address} cannot be restored to {claimant}: {holder} holds it")]
    Conflict {
        /// The address in dispute.
        address: IpAddr,
        /// Who holds it.
        holder: Owner,
        /// The owner of the lease that was to be restored.
        claimant: Owner,
    },
    /// The address is reserved.
    #[error("{address} is reserved: {why}")]
    Reserved {
        /// The address asked for.
        address: IpAddr,
        /// The reason that was given with the reservation.
        why: String,
    },
    /// The address is kept for a sticky name.
    #[error("{address} is kept for {name}")]
    Kept {
        /// The address asked for.
        address: IpAddr,
        /// The name.
        name: String,
    },
    /// The owner already holds a lease, and it does not satisfy the request.
    #[error("{owner} already holds {held}, which is not what it asks for now")]
    OwnerMismatch {
        /// The owner.
        owner: Owner,
        /// What it holds.
        held: Addresses,
    },
    /// The owner holds no lease.
    #[error("{owner} holds no lease")]
    UnknownOwner {
        /// The owner.
        owner: Owner,
    },
    /// Two addresses of one family were given where at most one is possible.
    #[error("{first} and {second} are of one family; a lease has one address per family")]
    SameFamily {
        /// The address given first.
        first: IpAddr,
        /// The address given after it.
        second: IpAddr,
    },
    /// A subnet has no room for a gateway and a pod.
    #[error("{subnet} is too small: besides its gateway it has no address for a pod")]
    TooSmall {
        /// The subnet.
        subnet: IpNetwork,
    },
    /// A subnet was given by one of its addresses.
    #[error("{subnet} has bits set behind the prefix; the subnet is {network}")]
    HostBits {
        /// The subnet as given.
        subnet: IpNetwork,
        /// The subnet that the address is in.
        network: IpNetwork,
    },
    /// The first, last or gateway address of a range is not in its subnet.
    #[error("{bound} {address} is not in {subnet}")]
    OutsideSubnet {
        /// Which of them.
        bound: Bound,
        /// The address given.
        address: IpAddr,
        /// The subnet.
        subnet: IpNetwork,
    },
    /// A range ends before it begins.
    #[error("the range of {subnet} ends with {last}, before it begins with {first}")]
    Reversed {
        /// The range's subnet.
        subnet: IpNetwork,
        /// Its first address.
        first: IpAddr,
        /// Its last address.
        last: IpAddr,
    },
    /// Two ranges share addresses.
    #[error("{first} and {second} overlap")]
    RangesOverlap {
        /// The range given first.
        first: Box<AddressRange>,
        /// The range that overlaps with it.
        second: Box<AddressRange>,
    },
    /// Ranges of both families are alternatives for one address.
    #[error("{first} and {second} are of two families, but alternatives for one address")]
    MixedFamilies {
        /// The range given first.
        first: Box<AddressRange>,
        /// The range of the other family.
        second: Box<AddressRange>,
    },
    /// No range is given, or none in one of the sets.
    #[error("range set {set} has no range")]
    NoRange {
        /// The set's place, counted from 0.
        set: usize,
    },
    /// Every address of a set of ranges is leased.
    #[error("{pool} has no address left in {ranges}")]
    RangesExhausted {
        /// The pool's name.
        pool: String,
        /// The ranges, separated by commas.
        ranges: String,
    },
    /// The owner already holds addresses, and they do not satisfy the request.
    #[error("{owner} already holds {}, which is not what it asks for now", list(.held))]
    OwnerHolds {
        /// The owner.
        owner: Owner,
        /// What it holds.
        held: Vec<IpAddr>,
    },
    /// A lease without any address was to be restored.
    #[error("the lease of {owner} names no address")]
    NoAddress {
        /// The lease's owner.
        owner: Owner,
    },
}

impl Error {
    /// No address is left; it may help to wait, or to add a CIDR.
    #[must_use]
    pub fn is_exhausted(&self) -> bool {
        matches!(self, Self::Exhausted { .. } | Self::RangesExhausted { .. })
    }

    /// Somebody or something else has the address, or the owner holds something else.
    #[must_use]
    pub fn is_conflict(&self) -> bool {
        matches!(
            self,
            Self::Held { .. }
                | Self::Conflict { .. }
                | Self::Reserved { .. }
                | Self::Kept { .. }
                | Self::CidrInUse { .. }
                | Self::PoolExists { .. }
                | Self::OwnerMismatch { .. }
                | Self::OwnerHolds { .. }
        )
    }

    /// The owner, the pool or the CIDR is not known.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        matches!(
            self,
            Self::UnknownOwner { .. } | Self::UnknownPool { .. } | Self::UnknownCidr { .. }
        )
    }

    /// The request or the configuration can never succeed as it stands.
    #[must_use]
    pub fn is_invalid(&self) -> bool {
        !(self.is_exhausted() || self.is_conflict() || self.is_not_found())
    }
}

fn list(addresses: &[IpAddr]) -> String {
    addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(" and ")
}

fn names(pools: &[String]) -> String {
    if pools.is_empty() { "none".to_owned() } else { pools.join(", ") }
}

fn cidrs(known: &[IpNetwork]) -> String {
    names(&known.iter().map(ToString::to_string).collect::<Vec<_>>())
}

fn states(pools: &[PoolState]) -> String {
    names(&pools.iter().map(ToString::to_string).collect::<Vec<_>>())
}

/// How full a pool is in the family that was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolState {
    /// The pool's name.
    pub pool: String,
    /// How full it is.
    pub usage: Usage,
}

/// `default (size 254, used 250, pending 1, cooling 0, reserved 3, kept 0)`.
impl fmt::Display for PoolState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Usage { size, used, pending, cooling, reserved, kept } = self.usage;
        write!(
            f,
            "{} (size {size}, used {used}, pending {pending}, cooling {cooling}, \
             reserved {reserved}, kept {kept})",
            self.pool
        )
    }
}

/// The rule that withholds an address of a pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Unusable {
    /// All host bits zero in an IPv4 network of /30 or larger.
    NetworkAddress,
    /// All host bits one in an IPv4 network of /30 or larger.
    BroadcastAddress,
    /// All host bits zero in an IPv6 network of /126 or larger (RFC 4291, 2.6.1).
    SubnetRouterAnycast,
    /// One of the 128 identifiers that a /64 sets aside for anycast (RFC 2526, RFC 5453).
    ReservedAnycast,
    /// The gateway of a subnet.
    Gateway,
    /// Inside this excluded range of the configuration.
    Excluded(IpNetwork),
    /// In this CIDR, which nothing is granted from any more.
    Drained(IpNetwork),
}

impl fmt::Display for Unusable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NetworkAddress => f.write_str("it is the network address"),
            Self::BroadcastAddress => f.write_str("it is the broadcast address"),
            Self::SubnetRouterAnycast => f.write_str("it is the subnet-router anycast address"),
            Self::ReservedAnycast => f.write_str("it is a reserved subnet anycast address"),
            Self::Gateway => f.write_str("it is the gateway"),
            Self::Drained(cidr) => write!(f, "{cidr} is being drained"),
            Self::Excluded(range) => write!(f, "the configuration excludes {range}"),
        }
    }
}
