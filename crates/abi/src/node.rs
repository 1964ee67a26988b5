//! What a node and its endpoints are to the datapath.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::{Address, Be32, EthernetPair, HashSeed, PolicyRef};

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
    /// Zero.
    pub reserved: u32,
}

/// What changes while the node is at work.
///
/// Whoever changes what verdicts rest on writes it first, then marks what has changed with the next ticket,
/// and then raises [`ticket`](Self::ticket). A program reads the ticket before its first lookup and stamps
/// its verdict with it: a verdict from before the change has an earlier stamp than the mark, and one that
/// has the mark's stamp was decided after all was written.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct NodeState {
    /// Number of the last change.
    pub ticket: u64,
    /// Ticket of the last change that concerns all flows: configuration, prefixes.
    pub changed: u64,
    /// The flows' clock. It stands while no agent runs, so that no flow grows old unseen.
    pub seconds: u32,
    /// [`LAYOUT`] of who made the maps.
    pub layout: u32,
    /// What flows are hashed by: drawn when the map is made, and never changed.
    pub seed: HashSeed,
}

/// Raised whenever a key or a value of a map changes, also where its size stays: maps of another layout are read by nobody.
pub const LAYOUT: u32 = 2;

/// Stands for the ticket of what is being changed: no verdict is believed meanwhile.
pub const CHANGING: u64 = u64::MAX;

/// An endpoint's place. A slot whose generation is even is empty.
///
/// What every packet needs is in the first 64 bytes.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct Slot {
    /// Ticket of the last change of the endpoint, its policy included, or [`CHANGING`].
    pub changed: u64,
    /// Changes whenever the slot changes hands: odd while an endpoint has it, even otherwise.
    pub generation: u32,
    /// Interface index of the host link.
    pub ifindex: u32,
    /// Of [`slot_flag`].
    pub flags: u32,
    /// The pod's IPv4 address, or 0.0.0.0.
    pub ipv4: Be32,
    /// Addresses of every frame that the pod sends to its gateway: host link, container.
    pub from_pod: EthernetPair,
    /// Addresses of every frame that is delivered to the pod: container, host link.
    pub to_pod: EthernetPair,
    /// The pod's IPv6 address, or `::`.
    pub ipv6: Address,
    /// Ticket of when the slot changed hands: what is known of flows from before is another endpoint's.
    pub born: u64,
    /// What it may send; in one word with the next.
    pub egress: PolicyRef,
    /// What it may receive.
    pub ingress: PolicyRef,
    /// The endpoint's identity.
    pub identity: u32,
    /// Zero.
    pub reserved: [u32; 11],
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
    /// Number of the narrowest prefix with this address that a policy speaks of, or 0.
    pub cidr: u32,
}

impl IpcacheEntry {
    /// The slot of an address that no local endpoint has.
    pub const NO_SLOT: u32 = u32::MAX;
}

/// Where the ticket of the last change about a remote address stands in
/// [`map::REMOTES`](crate::map::REMOTES): addresses share places.
#[must_use]
#[inline(always)]
pub const fn remote_place(address: &Address) -> u32 {
    let [a, b, c, d] = address.0;
    place_of(a.raw() ^ b.raw() ^ c.raw() ^ d.raw())
}

/// What [`remote_place`] makes of the address's four words of 32 bits, xored.
#[must_use]
#[inline(always)]
pub const fn place_of(sum: u32) -> u32 {
    sum.wrapping_mul(0x9e37_79b1) >> (32 - REMOTE_BITS)
}

const REMOTE_BITS: u32 = 16;

/// Places of [`map::REMOTES`](crate::map::REMOTES).
pub const REMOTES: u32 = 1 << REMOTE_BITS;

/// Identities with a fixed meaning.
pub mod identity {
    /// The node itself.
    pub const HOST: u32 = 1;
    /// Whoever is not known.
    pub const WORLD: u32 = 2;
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
        assert_eq!(size_of::<NodeState>(), 80);
        assert_eq!(size_of::<Slot>(), 128);
        assert_eq!(offset_of!(Slot, ipv4), 20);
        assert_eq!(offset_of!(Slot, from_pod), 24);
        assert_eq!(offset_of!(Slot, to_pod), 36);
        assert_eq!(offset_of!(Slot, ipv6), 48);
        assert_eq!(offset_of!(Slot, born), 64);
        assert_eq!(offset_of!(Slot, egress), 72);
        assert_eq!(offset_of!(Slot, ingress), 76);
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
