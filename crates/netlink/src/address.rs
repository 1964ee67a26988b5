//! Addresses of interfaces.

use std::net::{IpAddr, Ipv4Addr};

use ipnetwork::IpNetwork;

use crate::family::{Family, network};
use crate::link;
use crate::wire::{self, MessageBuilder};
use crate::{Entity, IfIndex, IfName, Operation, ParseError, Request, Scope, Subject};

pub(crate) const RTM_NEWADDR: u16 = 20;
pub(crate) const RTM_DELADDR: u16 = 21;
const RTM_GETADDR: u16 = 22;

const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_LABEL: u16 = 3;
const IFA_BROADCAST: u16 = 4;
const IFA_CACHEINFO: u16 = 6;
const IFA_FLAGS: u16 = 8;
const IFA_RT_PRIORITY: u16 = 9;
const IFA_PROTO: u16 = 11;

const IFADDRMSG_LEN: usize = 8;
const FOREVER: u32 = u32::MAX;

/// An address of an interface.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Address {
    /// The interface.
    pub index: IfIndex,
    /// The address and the length of the prefix that is reached over the interface.
    pub network: IpNetwork,
    /// The address at the other end, where the two ends have no prefix in common.
    pub peer: Option<IpAddr>,
    /// How far the address is valid.
    pub scope: Scope,
    /// Its flags.
    pub flags: AddressFlags,
    /// Who set it (`IFAPROT_*`); kernels before 5.18 forget it.
    pub protocol: u8,
    /// Its broadcast address.
    pub broadcast: Option<Ipv4Addr>,
    /// Its label, which begins with the interface's name; IPv4 only.
    pub label: Option<IfName>,
    /// The metric of the prefix route that comes with it.
    pub route_metric: Option<u32>,
    /// For how many seconds it is preferred, and valid; `None` is for ever.
    pub lifetime: Option<Lifetime>,
}

/// What is left of an address's life, in seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Lifetime {
    /// New connections may use it.
    pub preferred: u32,
    /// It exists.
    pub valid: u32,
}

impl Address {
    /// An address for ever. Its scope follows from the address. An IPv6 address is usable at once:
    /// duplicate address detection is off ([`AddressFlags::NODAD`]).
    pub fn new(index: IfIndex, network: IpNetwork) -> Self {
        let scope = match network.ip() {
            ip if ip.is_loopback() => Scope::HOST,
            IpAddr::V4(v4) if v4.is_link_local() => Scope::LINK,
            IpAddr::V6(v6) if v6.is_unicast_link_local() => Scope::LINK,
            _ => Scope::UNIVERSE,
        };
        let flags = match network {
            IpNetwork::V4(_) => AddressFlags::default(),
            IpNetwork::V6(_) => AddressFlags::NODAD,
        };
        Self {
            index,
            network,
            peer: None,
            scope,
            flags,
            protocol: 0,
            broadcast: None,
            label: None,
            route_metric: None,
            lifetime: None,
        }
    }

    /// Sets how far the address is valid.
    #[must_use]
    pub fn with_scope(mut self, scope: Scope) -> Self {
        self.scope = scope;
        self
    }

    /// Adds flags.
    #[must_use]
    pub fn with_flags(mut self, flags: AddressFlags) -> Self {
        self.flags = AddressFlags(self.flags.0 | flags.0);
        self
    }

    /// Says who sets it.
    #[must_use]
    pub fn with_protocol(mut self, protocol: u8) -> Self {
        self.protocol = protocol;
        self
    }

    /// Parses the payload of an `RTM_NEWADDR` or `RTM_DELADDR` message.
    ///
    /// # Errors
    ///
    /// When it is too short, names no address, or a field is out of range.
    pub fn parse(payload: &[u8]) -> Result<Self, ParseError> {
        let (fixed, attributes) = wire::split(payload, IFADDRMSG_LEN)?;
        let family = Family::from_u8(fixed[0])?;
        let mut flags = u32::from(fixed[2]);
        let (mut address, mut local, mut broadcast, mut label) = (None, None, None, None);
        let (mut protocol, mut route_metric, mut lifetime) = (0, None, None);
        for attribute in attributes {
            let attribute = attribute?;
            match attribute.kind {
                IFA_ADDRESS => address = Some(family.ip(&attribute)?),
                IFA_LOCAL => local = Some(family.ip(&attribute)?),
                IFA_BROADCAST => {
                    if let IpAddr::V4(v4) = family.ip(&attribute)? {
                        broadcast = Some(v4);
                    }
                }
                IFA_LABEL => label = Some(link::if_name(&attribute, "the address's label")?),
                IFA_FLAGS => flags = attribute.u32()?,
                IFA_PROTO => protocol = attribute.u8()?,
                IFA_RT_PRIORITY => route_metric = Some(attribute.u32()?),
                IFA_CACHEINFO => {
                    let Some(info) = attribute.value.first_chunk::<8>() else {
                        let found = attribute.value.len();
                        let kind = attribute.kind;
                        return Err(ParseError::Attribute { kind, expected: 8, found });
                    };
                    let (preferred, valid) = (wire::read_u32(info, 0), wire::read_u32(info, 4));
                    if (preferred, valid) != (FOREVER, FOREVER) {
                        lifetime = Some(Lifetime { preferred, valid });
                    }
                }
                _ => {}
            }
        }
        // With a peer, IFA_ADDRESS is the peer's. Without one IPv4 gives the same twice, and IPv6
        // gives only IFA_ADDRESS.
        let (ip, peer) = match (local, address) {
            (Some(local), Some(address)) if local != address => (local, Some(address)),
            (Some(ip), _) | (None, Some(ip)) => (ip, None),
            (None, None) => return Err(ParseError::Missing { field: "the address" }),
        };
        Ok(Self {
            index: link::index(wire::read_u32(fixed, 4), "the address's link")?,
            network: network(ip, fixed[1])?,
            peer,
            scope: Scope(fixed[3]),
            flags: AddressFlags(flags),
            protocol,
            broadcast,
            label,
            route_metric,
            lifetime,
        })
    }
}

impl Entity for Address {
    const NEW: u16 = RTM_NEWADDR;
    const DELETE: u16 = RTM_DELADDR;

    fn emit(&self, message: &mut MessageBuilder<'_>) {
        let ip = self.network.ip();
        // The low byte once more for kernels that know no IFA_FLAGS.
        let [low_flags, ..] = self.flags.0.to_le_bytes();
        let mut fixed =
            [Family::of(ip).as_u8(), self.network.prefix(), low_flags, self.scope.0, 0, 0, 0, 0];
        fixed[4..].copy_from_slice(&self.index.as_u32().to_ne_bytes());
        message.fixed(&fixed);
        message.attr_ip(IFA_LOCAL, ip);
        message.attr_ip(IFA_ADDRESS, self.peer.unwrap_or(ip));
        if self.flags.0 != 0 {
            message.attr_u32(IFA_FLAGS, self.flags.0);
        }
        if self.protocol != 0 {
            message.attr_u8(IFA_PROTO, self.protocol);
        }
        if let Some(broadcast) = self.broadcast {
            message.attr(IFA_BROADCAST, &broadcast.octets());
        }
        if let Some(label) = self.label {
            message.attr_str(IFA_LABEL, label.as_bytes());
        }
        if let Some(metric) = self.route_metric {
            message.attr_u32(IFA_RT_PRIORITY, metric);
        }
        if let Some(Lifetime { preferred, valid }) = self.lifetime {
            let mut info = [0; 16];
            info[..4].copy_from_slice(&preferred.to_ne_bytes());
            info[4..8].copy_from_slice(&valid.to_ne_bytes());
            message.attr(IFA_CACHEINFO, &info);
        }
    }

    fn subject(&self) -> Subject {
        Subject::Address { network: self.network, index: self.index }
    }
}

/// The flags of an address (`IFA_F_*`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct AddressFlags(pub u32);

impl AddressFlags {
    /// Not the first of its prefix; IPv4 only.
    pub const SECONDARY: Self = Self(0x01);
    /// Without duplicate address detection.
    pub const NODAD: Self = Self(0x02);
    /// Duplicate address detection found another owner: the address is unusable.
    pub const DADFAILED: Self = Self(0x08);
    /// Not for new connections any more.
    pub const DEPRECATED: Self = Self(0x20);
    /// Duplicate address detection has not ended.
    pub const TENTATIVE: Self = Self(0x40);
    /// It does not expire; set by the kernel.
    pub const PERMANENT: Self = Self(0x80);
    /// Without a route for its prefix.
    pub const NOPREFIXROUTE: Self = Self(0x200);

    /// Whether all of these are set.
    pub const fn contains(self, flags: Self) -> bool {
        self.0 & flags.0 == flags.0
    }
}

/// A request for the addresses of one interface, or of all.
#[derive(Debug, Clone, Copy)]
pub(crate) struct List(pub(crate) Option<IfIndex>);

impl Request for List {
    fn message_type(&self) -> u16 {
        RTM_GETADDR
    }

    fn flags(&self) -> u16 {
        0
    }

    fn emit(&self, message: &mut MessageBuilder<'_>) {
        let mut fixed = [0; IFADDRMSG_LEN];
        fixed[4..].copy_from_slice(&self.0.map_or(0, IfIndex::as_u32).to_ne_bytes());
        message.fixed(&fixed);
    }

    fn operation(&self) -> Operation {
        Operation::List
    }

    fn subject(&self) -> Subject {
        Subject::Named("addresses")
    }
}

#[cfg(test)]
#[path = "tests/address.rs"]
mod tests;
