//! IPv4 and IPv6 as the kernel numbers them.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnetwork::IpNetwork;

use crate::ParseError;
use crate::wire::Attribute;

/// An address family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both families.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// The family of an address.
    pub fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }

    /// 4 or 6.
    pub fn version(self) -> u8 {
        match self {
            Self::V4 => 4,
            Self::V6 => 6,
        }
    }

    /// `0.0.0.0` or `::`.
    pub fn unspecified(self) -> IpAddr {
        match self {
            Self::V4 => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            Self::V6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        }
    }

    /// `0.0.0.0/0` or `::/0`.
    pub fn everything(self) -> IpNetwork {
        let unspecified = self.unspecified();
        // Zero is a prefix length of both families.
        IpNetwork::new(unspecified, 0).unwrap_or_else(|_| unspecified.into())
    }

    pub(crate) fn as_u8(self) -> u8 {
        match self {
            Self::V4 => 2,
            Self::V6 => 10,
        }
    }

    pub(crate) fn from_u8(number: u8) -> Result<Self, ParseError> {
        match number {
            2 => Ok(Self::V4),
            10 => Ok(Self::V6),
            _ => Err(ParseError::Range { field: "the address family" }),
        }
    }

    /// The attribute as an address of this family.
    pub(crate) fn ip(self, attribute: &Attribute<'_>) -> Result<IpAddr, ParseError> {
        Ok(match self {
            Self::V4 => IpAddr::V4(Ipv4Addr::from(attribute.array::<4>()?)),
            Self::V6 => IpAddr::V6(Ipv6Addr::from(attribute.array::<16>()?)),
        })
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "IPv{}", self.version())
    }
}

pub(crate) fn network(ip: IpAddr, prefix: u8) -> Result<IpNetwork, ParseError> {
    IpNetwork::new(ip, prefix).map_err(|_| ParseError::Range { field: "the prefix length" })
}
