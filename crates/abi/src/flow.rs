//! Flows and fragments.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::{Address, Be16, Be32};

/// An IP protocol number (IANA "protocol-numbers"); those the datapath knows are named.
#[repr(transparent)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct Protocol(pub u8);

impl Protocol {
    /// Internet Control Message Protocol, RFC 792.
    pub const ICMP: Self = Self(1);
    /// Transmission Control Protocol, RFC 9293.
    pub const TCP: Self = Self(6);
    /// User Datagram Protocol, RFC 768.
    pub const UDP: Self = Self(17);
    /// Internet Control Message Protocol for IPv6, RFC 4443.
    pub const ICMPV6: Self = Self(58);
    /// Stream Control Transmission Protocol, RFC 9260.
    pub const SCTP: Self = Self(132);
}

/// One direction of a conversation.
///
/// An ICMP echo has its identifier as the port of the side that asks and 0 as the other's, so that
/// [`reversed`](Self::reversed) of the request is the reply. Protocols without ports have 0 and 0.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct FlowKey {
    /// Who sends.
    pub source: Address,
    /// Who receives.
    pub destination: Address,
    /// The sender's port.
    pub source_port: Be16,
    /// The receiver's port.
    pub destination_port: Be16,
    /// TCP, UDP and so on.
    pub protocol: Protocol,
    /// Zero.
    pub reserved: [u8; 3],
}

impl FlowKey {
    /// A key from ports in host byte order.
    pub const fn new(
        source: Address,
        destination: Address,
        source_port: u16,
        destination_port: u16,
        protocol: Protocol,
    ) -> Self {
        Self {
            source,
            destination,
            source_port: Be16::new(source_port),
            destination_port: Be16::new(destination_port),
            protocol,
            reserved: [0; 3],
        }
    }

    /// The other direction of the same conversation.
    #[inline(always)]
    pub const fn reversed(&self) -> Self {
        Self {
            source: self.destination,
            destination: self.source,
            source_port: self.destination_port,
            destination_port: self.source_port,
            protocol: self.protocol,
            reserved: [0; 3],
        }
    }
}

/// What is known of one direction of a conversation that the host stack carries.
///
/// The table holds the flows whose packets must go through the host stack, because its other
/// direction does: a key's presence is the verdict. All other flows need no entry.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct FlowEntry {
    /// Packets of this direction that the verdict was applied to.
    pub packets: u64,
    /// Their bytes, Ethernet headers included.
    pub bytes: u64,
    /// When the other direction was last seen coming from the stack, in jiffies.
    pub seen: u64,
}

/// Names the fragments of one packet (RFC 791, 3.2; RFC 8200, 4.5).
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct FragmentKey {
    /// Who sends.
    pub source: Address,
    /// Who receives.
    pub destination: Address,
    /// Identification: 16 bits in IPv4, 32 in IPv6.
    pub identification: Be32,
    /// What the fragments carry.
    pub protocol: Protocol,
    /// Zero.
    pub reserved: [u8; 3],
}

/// The ports that only the first fragment of a packet carries.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct FragmentPorts {
    /// The sender's port.
    pub source_port: Be16,
    /// The receiver's port.
    pub destination_port: Be16,
}

#[cfg(test)]
mod tests {
    use core::mem::offset_of;

    use super::*;

    #[test]
    fn layouts_are_what_the_kernel_object_was_built_with() {
        assert_eq!(size_of::<FlowKey>(), 40);
        assert_eq!(offset_of!(FlowKey, destination), 16);
        assert_eq!(offset_of!(FlowKey, source_port), 32);
        assert_eq!(offset_of!(FlowKey, destination_port), 34);
        assert_eq!(offset_of!(FlowKey, protocol), 36);
        assert_eq!(size_of::<FlowEntry>(), 24);
        assert_eq!(size_of::<FragmentKey>(), 40);
        assert_eq!(offset_of!(FragmentKey, identification), 32);
        assert_eq!(offset_of!(FragmentKey, protocol), 36);
        assert_eq!(size_of::<FragmentPorts>(), 4);
    }

    #[test]
    fn reversing_swaps_both_ends() {
        let a = Address::from_ipv4([10, 0, 0, 2]);
        let b = Address::from_ipv4([10, 0, 0, 3]);
        let key = FlowKey::new(a, b, 40000, 80, Protocol::TCP);
        assert_eq!(key.reversed(), FlowKey::new(b, a, 80, 40000, Protocol::TCP));
        assert_eq!(key.source_port.as_bytes(), 40000_u16.to_be_bytes());
    }
}
