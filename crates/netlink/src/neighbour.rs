//! Neighbour entries: which Ethernet address belongs to an IP address on a link.

use std::net::IpAddr;

use crate::family::Family;
use crate::link;
use crate::wire::{self, MessageBuilder};
use crate::{Entity, IfIndex, MacAddr, Operation, ParseError, Request, RouteProtocol, Subject};

pub(crate) const RTM_NEWNEIGH: u16 = 28;
pub(crate) const RTM_DELNEIGH: u16 = 29;
const RTM_GETNEIGH: u16 = 30;

const NDA_DST: u16 = 1;
const NDA_LLADDR: u16 = 2;
const NDA_IFINDEX: u16 = 8;
const NDA_PROTOCOL: u16 = 12;
const NDA_FLAGS_EXT: u16 = 15;

const NDMSG_LEN: usize = 12;

/// A neighbour entry.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Neighbour {
    /// The interface.
    pub index: IfIndex,
    /// The neighbour's address.
    pub address: IpAddr,
    /// Its Ethernet address, once known.
    pub mac: Option<MacAddr>,
    /// What is known about it.
    pub state: NeighbourState,
    /// Its flags.
    pub flags: NeighbourFlags,
    /// Who made the entry.
    pub protocol: RouteProtocol,
}

impl Neighbour {
    /// An entry that is never checked and never expires.
    pub fn permanent(index: IfIndex, address: IpAddr, mac: MacAddr) -> Self {
        Self {
            index,
            address,
            mac: Some(mac),
            state: NeighbourState::PERMANENT,
            flags: NeighbourFlags::default(),
            protocol: RouteProtocol::UNSPEC,
        }
    }

    /// Entry for an address that the kernel resolves by itself and keeps fresh for as long as it
    /// stands (Linux 5.16).
    pub fn managed(index: IfIndex, address: IpAddr) -> Self {
        Self {
            index,
            address,
            mac: None,
            state: NeighbourState::NONE,
            flags: NeighbourFlags::EXT_LEARNED.with(NeighbourFlags::MANAGED),
            protocol: RouteProtocol::UNSPEC,
        }
    }

    /// Adds flags.
    #[must_use]
    pub fn with_flags(mut self, flags: NeighbourFlags) -> Self {
        self.flags = self.flags.with(flags);
        self
    }

    /// Says who makes it.
    #[must_use]
    pub fn with_protocol(mut self, protocol: RouteProtocol) -> Self {
        self.protocol = protocol;
        self
    }

    /// Parses the payload of an `RTM_NEWNEIGH` or `RTM_DELNEIGH` message.
    ///
    /// # Errors
    ///
    /// When it is too short, is of neither IP family, names no address, or a field is out of range.
    pub fn parse(payload: &[u8]) -> Result<Self, ParseError> {
        let (fixed, attributes) = wire::split(payload, NDMSG_LEN)?;
        let family = Family::from_u8(fixed[0])?;
        let (mut address, mut mac, mut protocol) = (None, None, RouteProtocol::UNSPEC);
        let mut flags = u64::from(fixed[10]);
        for attribute in attributes {
            let attribute = attribute?;
            match attribute.kind {
                NDA_DST => address = Some(family.ip(&attribute)?),
                // Other lengths are of other link layers.
                NDA_LLADDR => mac = attribute.array().ok().map(MacAddr),
                NDA_PROTOCOL => protocol = RouteProtocol(attribute.u8()?),
                NDA_FLAGS_EXT => flags |= u64::from(attribute.u32()?) << 8,
                _ => {}
            }
        }
        Ok(Self {
            index: link::index(wire::read_u32(fixed, 4), "the neighbour's link")?,
            address: address.ok_or(ParseError::Missing { field: "the neighbour's address" })?,
            mac,
            state: NeighbourState(wire::read_u16(fixed, 8)),
            flags: NeighbourFlags(flags),
            protocol,
        })
    }
}

impl Entity for Neighbour {
    const NEW: u16 = RTM_NEWNEIGH;
    const DELETE: u16 = RTM_DELNEIGH;

    fn emit(&self, message: &mut MessageBuilder<'_>) {
        let mut fixed = [0; NDMSG_LEN];
        fixed[0] = Family::of(self.address).as_u8();
        fixed[4..8].copy_from_slice(&self.index.as_u32().to_ne_bytes());
        fixed[8..10].copy_from_slice(&self.state.0.to_ne_bytes());
        fixed[10] = self.flags.low();
        message.fixed(&fixed);
        message.attr_ip(NDA_DST, self.address);
        if let Some(mac) = self.mac {
            message.attr(NDA_LLADDR, &mac.octets());
        }
        if self.protocol != RouteProtocol::UNSPEC {
            message.attr_u8(NDA_PROTOCOL, self.protocol.0);
        }
        let extended = self.flags.extended();
        if extended != 0 {
            message.attr_u32(NDA_FLAGS_EXT, extended);
        }
    }

    fn subject(&self) -> Subject {
        Subject::Neighbour { address: self.address, index: self.index }
    }
}

/// What is known about a neighbour (`NUD_*`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct NeighbourState(pub u16);

impl NeighbourState {
    /// Nothing, and nothing is asked.
    pub const NONE: Self = Self(0);
    /// It is being asked for.
    pub const INCOMPLETE: Self = Self(0x01);
    /// Confirmed a short while ago.
    pub const REACHABLE: Self = Self(0x02);
    /// Known, to be confirmed when used.
    pub const STALE: Self = Self(0x04);
    /// In use, about to be confirmed.
    pub const DELAY: Self = Self(0x08);
    /// In use, being confirmed.
    pub const PROBE: Self = Self(0x10);
    /// It did not answer.
    pub const FAILED: Self = Self(0x20);
    /// Never asked for: the link has no such thing, or the address is multicast.
    pub const NOARP: Self = Self(0x40);
    /// Set by hand.
    pub const PERMANENT: Self = Self(0x80);
}

/// The flags of a neighbour entry: `NTF_*` in the low byte, `NTF_EXT_*` above it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct NeighbourFlags(pub u64);

impl NeighbourFlags {
    /// The host answers for this address.
    pub const PROXY: Self = Self(0x08);
    /// Learnt by a program outside the kernel; not collected as garbage.
    pub const EXT_LEARNED: Self = Self(0x10);
    /// It is a router.
    pub const ROUTER: Self = Self(0x80);
    /// The kernel keeps it fresh.
    pub const MANAGED: Self = Self(1 << 8);

    /// Whether all of these are set.
    pub const fn contains(self, flags: Self) -> bool {
        self.0 & flags.0 == flags.0
    }

    /// These and those.
    #[must_use]
    pub const fn with(self, flags: Self) -> Self {
        Self(self.0 | flags.0)
    }

    fn low(self) -> u8 {
        let [low, ..] = self.0.to_le_bytes();
        low
    }

    fn extended(self) -> u32 {
        let [_, a, b, c, d, ..] = self.0.to_le_bytes();
        u32::from_le_bytes([a, b, c, d])
    }
}

/// A request for the entries of one interface, or of all.
#[derive(Debug, Clone, Copy)]
pub(crate) struct List {
    pub(crate) family: Family,
    pub(crate) index: Option<IfIndex>,
}

impl Request for List {
    fn message_type(&self) -> u16 {
        RTM_GETNEIGH
    }

    fn flags(&self) -> u16 {
        0
    }

    fn emit(&self, message: &mut MessageBuilder<'_>) {
        let mut fixed = [0; NDMSG_LEN];
        fixed[0] = self.family.as_u8();
        message.fixed(&fixed);
        if let Some(index) = self.index {
            message.attr_u32(NDA_IFINDEX, index.as_u32());
        }
    }

    fn operation(&self) -> Operation {
        Operation::List
    }

    fn subject(&self) -> Subject {
        Subject::Named("neighbours")
    }
}

#[cfg(test)]
#[path = "tests/neighbour.rs"]
mod tests;
