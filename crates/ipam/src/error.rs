use std::fmt;
use std::net::IpAddr;

use ipnetwork::IpNetwork;

use crate::{AddressRange, Addresses, Bound, Family, Owner};

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
    /// Two configured CIDRs share addresses.
    #[error("pool {pool}: {first} and {second} overlap")]
    Overlap {
        /// The pool's name.
        pool: String,
        /// The CIDR that was configured first.
        first: IpNetwork,
        /// The CIDR that overlaps with it.
        second: IpNetwork,
    },
    /// The request asks for a family in which the pool has no CIDR.
    #[error("pool {pool} has no {family} CIDR")]
    NoFamily {
        /// The pool's name.
        pool: String,
        /// The family that was asked for.
        family: Family,
    },
    /// Every address of the family is leased or reserved.
    #[error(
        "pool {pool} has no {family} address left: size {size}, used {used}, pending {pending}, \
         cooling {cooling}, reserved {reserved}"
    )]
    Exhausted {
        /// The pool's name.
        pool: String,
        /// The family that ran out.
        family: Family,
        /// Addresses that the pool may grant in this family.
        size: u128,
        /// Addresses of confirmed leases.
        used: u64,
        /// Addresses of leases that await confirmation.
        pending: u64,
        /// Addresses in their cool-down; always 0 here, because they are granted before the pool
        /// gives up.
        cooling: u64,
        /// Reserved addresses.
        reserved: u64,
    },
    /// The address asked for by name belongs to none of the pool's CIDRs.
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
                | Self::OwnerMismatch { .. }
                | Self::OwnerHolds { .. }
        )
    }

    /// The owner is not known.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::UnknownOwner { .. })
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
}

impl fmt::Display for Unusable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NetworkAddress => f.write_str("it is the network address"),
            Self::BroadcastAddress => f.write_str("it is the broadcast address"),
            Self::SubnetRouterAnycast => f.write_str("it is the subnet-router anycast address"),
            Self::ReservedAnycast => f.write_str("it is a reserved subnet anycast address"),
            Self::Gateway => f.write_str("it is the gateway"),
            Self::Excluded(range) => write!(f, "the configuration excludes {range}"),
        }
    }
}
