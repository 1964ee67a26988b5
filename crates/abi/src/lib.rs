//! Layouts of every map key and map value that podwire's kernel programs and user space share.
//!
//! The crate is `no_std`, so that one definition serves both sides: `crates/ebpf` compiles it for
//! the kernel, `podwire-datapath` for the agent and the tools. It holds layouts and nothing else:
//! no maps, no programs, no system calls. It needs no kernel and no privileges.
//!
//! Three rules hold for every layout here, each proven at compile time:
//!
//! - no padding ([`zerocopy::IntoBytes`]), since the kernel hashes and compares keys as bytes;
//! - no `bool`, `usize` or `u128`, whose layout differs between the two sides or pads;
//! - numbers in network byte order have their own types ([`Be16`], [`Be32`], [`Address`]).
//!
//! IPv4 and IPv6 share one key layout: an [`Address`] is 16 bytes, an IPv4 address stands in it as
//! `::ffff:a.b.c.d`.
//!
//! ```
//! use podwire_abi::{Address, Be16, FlowKey, Protocol, direction};
//!
//! // What the endpoint in slot 7 sends.
//! let key = FlowKey {
//!     endpoint: 7,
//!     protocol: Protocol::TCP,
//!     direction: direction::SENT,
//!     local_port: Be16::new(40000),
//!     peer_port: Be16::new(80),
//!     peer: Address::from_ipv4([10, 0, 0, 3]),
//! };
//! assert_eq!(key.turned().turned(), key);
//! assert_eq!(size_of::<FlowKey>(), 24);
//! ```
#![no_std]
#![forbid(unsafe_code)]

mod address;
mod flow;
mod nat;
mod node;
mod policy;
mod reason;

pub use address::{Address, Be16, Be32, EthernetPair, Mac};
pub use flow::{
    Flow, FlowEntry, FlowHash, FlowKey, FragmentKey, FragmentPorts, HashSeed, Pending,
    PendingEntry, PendingSet, Protocol, Verdict, WAYS, direction, fold, recent, tag, tcp_seen,
    verdict_flag, ways,
};
pub use nat::{NAT_TRIES, NatDevice, NatEntry, NatKey, nat_direction, nat_flag, nat_tcp};
pub use node::{
    CHANGING, IpcacheEntry, LAYOUT, NodeConfig, NodeState, REMOTES, Slot, identity, place_of,
    remote_place, slot_flag,
};
pub use policy::{PolicyKey, PolicyRef, PolicyRow, PortRule, policy_flag};
pub use reason::{Counter, FlowEvent, Hook, METRICS_ENTRIES, Reason, metric_index};

/// The value of `skb->mark` that tells `to_container` that another of our programs has decided on
/// this packet already: it was judged in `from_container` or `from_host`, or is an answer of ours.
///
/// The kernel clears marks when a packet crosses into another network namespace, so a pod can
/// neither see nor forge it; a host process that may set marks is trusted by the node anyway.
pub const MARK_DECIDED: u32 = 0x7077_0001;

/// Names of the maps, as the kernel programs define them and as their pins are called.
pub mod map {
    /// `u32` 0 to [`NodeConfig`](crate::NodeConfig), array of one.
    pub const CONFIG: &str = "CONFIG";
    /// `u32` slot number to [`Slot`](crate::Slot), array.
    pub const SLOTS: &str = "SLOTS";
    /// `u32` interface index of a host link to `u32` slot number, hash.
    pub const LINKS: &str = "LINKS";
    /// `u32` 0 to [`NodeState`](crate::NodeState), array of one.
    pub const STATE: &str = "STATE";
    /// [`Address`](crate::Address) to [`IpcacheEntry`](crate::IpcacheEntry), hash: whole addresses.
    pub const IPCACHE: &str = "IPCACHE";
    /// Prefix of [`Address`](crate::Address) to [`IpcacheEntry`](crate::IpcacheEntry), trie, for what is not
    /// in [`IPCACHE`]. An IPv4 prefix is 96 bits longer.
    pub const PREFIXES: &str = "PREFIXES";
    /// [`remote_place`](crate::remote_place) to the `u64` ticket of the last change, array.
    pub const REMOTES: &str = "REMOTES";
    /// Number of a set to [`WAYS`](crate::WAYS) of [`FlowEntry`](crate::FlowEntry), array; see
    /// [`FlowHash`](crate::FlowHash).
    pub const FLOWS: &str = "FLOWS";
    /// What is taken of each set of [`FLOWS`], array of `u64`; see [`ways`](crate::ways).
    pub const FLOW_WAYS: &str = "FLOW_WAYS";
    /// Number of a set to [`PendingSet`](crate::PendingSet), array.
    pub const PENDING: &str = "PENDING";
    /// [`PolicyKey`](crate::PolicyKey) to [`PolicyRow`](crate::PolicyRow), hash.
    pub const POLICY: &str = "POLICY";
    /// Place to [`PortRule`](crate::PortRule), array.
    pub const POLICY_RULES: &str = "POLICY_RULES";
    /// [`FragmentKey`](crate::FragmentKey) to [`FragmentPorts`](crate::FragmentPorts), LRU hash.
    pub const FRAGMENTS: &str = "FRAGMENTS";
    /// [`metric_index`](crate::metric_index) to [`Counter`](crate::Counter), per-CPU array.
    pub const METRICS: &str = "METRICS";
    /// [`FlowEvent`](crate::FlowEvent) to `u64`, per-CPU array.
    pub const FLOW_EVENTS: &str = "FLOW_EVENTS";
    /// [`NatKey`](crate::NatKey) to [`NatEntry`](crate::NatEntry), hash: two entries for each mapping.
    pub const NAT: &str = "NAT";
    /// [`NatKey`](crate::NatKey) of what leaves to `u32` seconds, LRU hash: conversations that the outside
    /// began with a pod's own address.
    pub const NAT_INBOUND: &str = "NAT_INBOUND";
    /// [`FragmentKey`](crate::FragmentKey) to [`FragmentPorts`](crate::FragmentPorts), LRU hash: at uplinks.
    pub const NAT_FRAGMENTS: &str = "NAT_FRAGMENTS";
    /// `u32` interface index of an uplink to [`NatDevice`](crate::NatDevice), hash.
    pub const NAT_DEVICES: &str = "NAT_DEVICES";
    /// Prefix of [`Address`](crate::Address) to `u32` 1, trie: pods that are masqueraded.
    pub const NAT_PODS: &str = "NAT_PODS";
    /// Prefix of [`Address`](crate::Address) to `u32` 1, trie: destinations to which they are not.
    pub const NAT_EXCLUDED: &str = "NAT_EXCLUDED";
    /// Where programs make what is too large for their stack, per-CPU array; not pinned, and not in [`ALL`].
    pub const SCRATCH: &str = "SCRATCH";
    /// Every other map, in the order above.
    pub const ALL: [&str; 21] = [
        CONFIG,
        SLOTS,
        LINKS,
        STATE,
        IPCACHE,
        PREFIXES,
        REMOTES,
        FLOWS,
        FLOW_WAYS,
        PENDING,
        POLICY,
        POLICY_RULES,
        FRAGMENTS,
        METRICS,
        FLOW_EVENTS,
        NAT,
        NAT_INBOUND,
        NAT_FRAGMENTS,
        NAT_DEVICES,
        NAT_PODS,
        NAT_EXCLUDED,
    ];
}

/// Name of the programs' variable, set before loading, that says which low bits of a link's number
/// name its slot; see [`slot_mask`].
pub const SLOT_MASK: &str = "SLOT_MASK";

/// Names of the programs' variables, set before loading, that say how many sets there are in
/// [`map::FLOWS`] and [`map::PENDING`]: one less than that, which is a power of two.
pub const FLOWS_MASK: &str = "FLOWS_MASK";
/// See [`FLOWS_MASK`].
pub const PENDING_MASK: &str = "PENDING_MASK";

/// Name of the programs' variable, set before loading, that has what flows are hashed by: the node's
/// [`NodeState::seed`], where no program need look for it.
pub const FLOW_SEED: &str = "FLOW_SEED";

/// Which low bits of a link's number name the slot that its endpoint gets, if that is free, on a node
/// with so many slots. Programs look there first, and only then into [`map::LINKS`].
#[must_use]
pub const fn slot_mask(slots: u32) -> u32 {
    match slots.checked_ilog2() {
        Some(bits) => (1 << bits) - 1,
        None => 0,
    }
}

/// Names of the kernel programs.
pub mod program {
    /// On a host link, TC ingress: what a pod sends.
    pub const FROM_CONTAINER: &str = "from_container";
    /// On a host link, TC egress: what reaches a pod through the host link's queue.
    pub const TO_CONTAINER: &str = "to_container";
    /// On `podwire_net`, TC ingress: what the host stack sends to pods.
    pub const FROM_HOST: &str = "from_host";
    /// On an uplink, TC ingress: what comes from outside.
    pub const FROM_NETDEV: &str = "from_netdev";
    /// On an uplink, TC egress: what leaves.
    pub const TO_NETDEV: &str = "to_netdev";
    /// Every program.
    pub const ALL: [&str; 5] = [FROM_CONTAINER, TO_CONTAINER, FROM_HOST, FROM_NETDEV, TO_NETDEV];
}

#[cfg(test)]
mod tests {
    use super::slot_mask;

    #[test]
    fn every_masked_number_is_a_slot() {
        for (slots, mask) in [(0, 0), (1, 0), (2, 1), (3, 1), (4, 3), (4095, 2047), (4096, 4095)] {
            assert_eq!(slot_mask(slots), mask, "{slots} slots");
        }
        assert_eq!(slot_mask(u32::MAX), u32::MAX >> 1);
    }
}
