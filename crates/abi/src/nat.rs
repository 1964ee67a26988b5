//! Masquerade: what pods send out of the pod network, under an address of the node.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::{Address, Be16, Be32, Protocol};

/// One direction of a conversation that crosses an uplink, as its first reader sees it.
///
/// `local` is this node's side: before translation in what leaves ([`nat_direction::OUT`]), after it, as
/// the rest of the world knows it, in what arrives ([`nat_direction::IN`]). An ICMP echo has its
/// identifier as the port of the side that asks and 0 as the other's. Protocols without ports have 0
/// and 0.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct NatKey {
    /// Address of this side.
    pub local: Address,
    /// Address of the other side.
    pub remote: Address,
    /// Port of this side.
    pub local_port: Be16,
    /// Port of the other side.
    pub remote_port: Be16,
    /// TCP, UDP and so on.
    pub protocol: Protocol,
    /// Of [`nat_direction`].
    pub direction: u8,
    /// Zero.
    pub reserved: [u8; 2],
}

impl NatKey {
    /// The other direction's key, given what this one's entry makes of the local side.
    #[inline(always)]
    pub const fn other(&self, entry: &NatEntry) -> Self {
        Self {
            local: entry.address,
            local_port: entry.port,
            direction: self.direction ^ 1,
            ..*self
        }
    }
}

/// Directions of a [`NatKey`].
pub mod nat_direction {
    /// What leaves.
    pub const OUT: u8 = 0;
    /// What arrives.
    pub const IN: u8 = 1;
}

/// What becomes of the local side of a direction, and what was seen of it.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct NatEntry {
    /// The address that it gets.
    pub address: Address,
    /// The port that it gets.
    pub port: Be16,
    /// TCP flags that were seen in this direction, as they stand in a header: [`nat_tcp`].
    pub tcp: u8,
    /// Of [`nat_flag`].
    pub flags: u8,
    /// Interface index of the uplink that it began at.
    pub ifindex: u32,
    /// When it began, in seconds of `CLOCK_MONOTONIC`.
    pub created: u32,
    /// When a packet of this direction was last seen, likewise.
    pub seen: u32,
    /// Packets of this direction.
    pub packets: u64,
    /// Their bytes, link headers included.
    pub bytes: u64,
}

/// Flags of a [`NatEntry`].
pub mod nat_flag {
    /// The node's own conversation: kept out of the way of pods' mappings.
    pub const NODE: u8 = 1;
}

/// TCP flags that mappings remember (RFC 9293, 3.1).
pub mod nat_tcp {
    /// No more data from this side.
    pub const FIN: u8 = 1;
    /// Begins.
    pub const SYN: u8 = 2;
    /// Over.
    pub const RST: u8 = 4;
    /// Acknowledges.
    pub const ACK: u8 = 16;
}

/// An uplink, to the programs at it.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct NatDevice {
    /// What pods' IPv6 packets leave under, or `::`.
    pub ipv6: Address,
    /// What pods' IPv4 packets leave under, or 0.0.0.0.
    pub ipv4: Be32,
    /// Length of its link-layer header: 14, or 0 on a device without one.
    pub header: u32,
    /// The first port that may be given.
    pub first_port: u32,
    /// How many may be given.
    pub ports: u32,
    /// How far apart ports are that are tried one after another; coprime to `ports`, so that all of them
    /// are tried if they are few.
    pub step: u32,
}

impl NatDevice {
    /// What packets of the family of `like` leave under; `None` if there is no such address.
    #[inline(always)]
    pub fn address(&self, like: &Address) -> Option<Address> {
        if like.is_ipv4() {
            (self.ipv4.raw() != 0).then(|| Address::from_ipv4_raw(self.ipv4))
        } else {
            (!self.ipv6.is_unspecified()).then_some(self.ipv6)
        }
    }
}

/// How many ports are tried for one mapping, the pod's own not counted.
pub const NAT_TRIES: u32 = 128;

#[cfg(test)]
mod tests {
    use core::mem::offset_of;

    use super::*;

    #[test]
    fn layouts_are_what_the_kernel_object_was_built_with() {
        assert_eq!(size_of::<NatKey>(), 40);
        assert_eq!(offset_of!(NatKey, local_port), 32);
        assert_eq!(offset_of!(NatKey, protocol), 36);
        assert_eq!(size_of::<NatEntry>(), 48);
        assert_eq!(offset_of!(NatEntry, port), 16);
        assert_eq!(offset_of!(NatEntry, created), 24);
        assert_eq!(offset_of!(NatEntry, packets), 32);
        assert_eq!(size_of::<NatDevice>(), 36);
        assert_eq!(offset_of!(NatDevice, header), 20);
    }

    #[test]
    fn the_other_direction_leads_back() {
        let out = NatKey {
            local: Address::from_ipv4([10, 1, 0, 2]),
            remote: Address::from_ipv4([192, 0, 2, 1]),
            local_port: Be16::new(40000),
            remote_port: Be16::new(80),
            protocol: Protocol::TCP,
            direction: nat_direction::OUT,
            reserved: [0; 2],
        };
        let node = Address::from_ipv4([198, 51, 100, 1]);
        let entry = NatEntry { address: node, port: Be16::new(50000), ..NatEntry::default() };
        let back = NatEntry { address: out.local, port: out.local_port, ..entry };
        let other = out.other(&entry);
        assert_eq!((other.local, other.direction), (node, nat_direction::IN));
        assert_eq!(other.other(&back), out);
    }

    #[test]
    fn an_uplink_may_lack_a_family() {
        let (v4, v6) = (Address::from_ipv4([10, 0, 0, 1]), Address([Be32::new(0xfd00_0000); 4]));
        let device = NatDevice { ipv4: v4.ipv4_raw(), ..NatDevice::default() };
        assert_eq!(device.address(&v4), Some(v4));
        assert_eq!(device.address(&v6), None);
    }
}
