//! What a node and its endpoints are to the datapath.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::{Address, Be32, EthernetPair};

/// What all programs of a node share.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct NodeConfig {
    /// The pods' IPv4 gateway; 0.0.0.0 on a node without IPv4.
    pub router_ipv4: Be32,
    /// The pods' IPv6 gateway; `::` on a node without IPv6.
    pub router_ipv6: Address,
    /// Interface index of `podwire_host`; 0 until the node is set up, and then nothing is forwarded.
    pub host_ifindex: u32,
    /// Addresses of a frame that enters `podwire_host`.
    pub to_host: EthernetPair,
    /// Counter for rare changes.
    pub epoch: u32,
}

/// An endpoint's place. A slot whose generation is even is empty.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct Slot {
    /// Changes whenever the slot changes hands: odd while an endpoint has it, even otherwise.
    pub generation: u32,
    /// Interface index of the host link.
    pub ifindex: u32,
    /// Of [`slot_flag`].
    pub flags: u32,
    /// The endpoint's identity.
    pub identity: u32,
    /// Addresses of every frame that the pod sends to its gateway: host link, container.
    pub from_pod: EthernetPair,
    /// Addresses of every frame that is delivered to the pod: container, host link.
    pub to_pod: EthernetPair,
    /// The pod's IPv6 address, or `::`.
    pub ipv6: Address,
    /// The pod's IPv4 address, or 0.0.0.0.
    pub ipv4: Be32,
    /// Zero.
    pub reserved: u32,
}

impl Slot {
    /// Whether an endpoint has this slot.
    #[inline(always)]
    pub const fn is_taken(&self) -> bool {
        self.generation & 1 == 1
    }

    /// Whether `address` is one of the pod's own.
    #[inline(always)]
    pub fn owns(&self, address: &Address) -> bool {
        if address.is_ipv4() {
            self.ipv4 == address.ipv4_raw() && self.ipv4.raw() != 0
        } else {
            self.ipv6 == *address && !address.is_unspecified()
        }
    }
}

/// Flags of a [`Slot`].
pub mod slot_flag {
    /// The host link carries a queueing discipline or filter that is not ours: deliver through the
    /// link's egress, so that it sees every packet, and not straight to the peer.
    pub const DELIVER_TO_EGRESS: u32 = 1;
    /// The host link carries something foreign at its ingress, or somebody else's routing: what the pod
    /// sends is checked and goes on by its own link, and what pods send to it goes by the host stack as well.
    pub const BY_STACK: u32 = 2;
    /// Another plugin made the interface and is its gateway: only where packets say they come from is
    /// checked.
    pub const CHAINED: u32 = 4;
}

/// Who has an address.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct IpcacheEntry {
    /// The identity behind the address.
    pub identity: u32,
    /// The slot of a local endpoint, or [`IpcacheEntry::NO_SLOT`].
    pub slot: u32,
    /// The slot's generation when this entry was written.
    pub generation: u32,
    /// Zero.
    pub reserved: u32,
}

impl IpcacheEntry {
    /// The slot of an address that no local endpoint has.
    pub const NO_SLOT: u32 = u32::MAX;
}

/// Identities with a fixed meaning.
pub mod identity {
    /// The node itself.
    pub const HOST: u32 = 1;
    /// A pod whose labels nobody has told us.
    pub const UNMANAGED: u32 = 3;
}

#[cfg(test)]
mod tests {
    use core::mem::offset_of;

    use super::*;

    #[test]
    fn layouts_are_what_the_kernel_object_was_built_with() {
        assert_eq!(size_of::<NodeConfig>(), 40);
        assert_eq!(offset_of!(NodeConfig, host_ifindex), 20);
        assert_eq!(offset_of!(NodeConfig, to_host), 24);
        assert_eq!(size_of::<Slot>(), 64);
        assert_eq!(offset_of!(Slot, from_pod), 16);
        assert_eq!(offset_of!(Slot, to_pod), 28);
        assert_eq!(offset_of!(Slot, ipv6), 40);
        assert_eq!(offset_of!(Slot, ipv4), 56);
        assert_eq!(size_of::<IpcacheEntry>(), 16);
    }

    #[test]
    fn a_slot_owns_its_addresses_and_no_others() {
        let v4 = Address::from_ipv4([10, 0, 0, 2]);
        let v6 = Address::from_ipv6([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2]);
        let slot = Slot { ipv4: v4.ipv4_raw(), ipv6: v6, ..Slot::default() };
        assert!(slot.owns(&v4) && slot.owns(&v6));
        assert!(!slot.owns(&Address::from_ipv4([10, 0, 0, 3])));
        let empty = Slot::default();
        assert!(!empty.owns(&Address::UNSPECIFIED));
        assert!(!empty.owns(&Address::from_ipv4([0, 0, 0, 0])));
    }
}
