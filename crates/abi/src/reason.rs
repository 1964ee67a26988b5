//! Verdicts and why they were given.

use core::fmt;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Packets and bytes.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct Counter {
    /// Packets; a segmentation-offload packet counts once.
    pub packets: u64,
    /// Bytes, Ethernet headers included.
    pub bytes: u64,
}

macro_rules! numbered {
    (
        $(#[$meta:meta])*
        pub enum $name:ident { $($(#[doc = $doc:literal])+ $variant:ident = $number:literal, $text:literal;)+ }
    ) => {
        $(#[$meta])*
        #[repr(u8)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[non_exhaustive]
        pub enum $name { $($(#[doc = $doc])+ $variant = $number,)+ }

        impl $name {
            /// All of them, in the order of their numbers.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// Its stable name, as tools print it.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $text),+ }
            }

            /// What it means, in a sentence.
            pub const fn explain(self) -> &'static str {
                match self { $(Self::$variant => concat!($($doc),+).trim_ascii()),+ }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.name())
            }
        }
    };
}

numbered! {
    /// Where a packet was judged.
    pub enum Hook {
        /// What a pod sends, on its host link.
        FromContainer = 0, "from_container";
        /// What reaches a pod through its host link's queue.
        ToContainer = 1, "to_container";
        /// What the host stack sends to pods, on `podwire_net`.
        FromHost = 2, "from_host";
        /// What comes from outside, on an uplink.
        FromNetdev = 3, "from_netdev";
        /// What leaves, on an uplink.
        ToNetdev = 4, "to_netdev";
    }
}

numbered! {
    /// What became of a packet, and why. Numbers and names are stable; from 32 on they are drops.
    pub enum Reason {
        /// Handed straight to the receiving pod.
        Delivered = 1, "delivered";
        /// Sent through the receiving pod's host link, because it carries a foreign queueing discipline or filter.
        DeliveredToEgress = 2, "delivered-to-egress";
        /// Handed to the host stack.
        ToStack = 3, "to-stack";
        /// Handed to the host stack, since the other direction of its flow goes through it.
        ToStackByFlow = 4, "to-stack-by-flow";
        /// Handed to the host stack, which answers that its TTL or hop limit is used up.
        ToStackExpired = 5, "to-stack-expired";
        /// An ARP request for the gateway, answered.
        AnsweredArp = 6, "answered-arp";
        /// A neighbour solicitation for the gateway, answered.
        AnsweredNeighbour = 7, "answered-neighbour";
        /// Let through to the pod.
        Passed = 8, "passed";
        /// Checked, and left to what others have put on the pod's host link, and then to the host stack.
        PassedToLink = 9, "passed-to-link";
        /// Sent on under an address of the node.
        Masqueraded = 24, "masqueraded";
        /// An answer to something masqueraded, with the pod as its destination again.
        Unmasqueraded = 25, "unmasqueraded";
        /// Nothing to translate: the node's own, between pods and excluded prefixes, or somebody else's.
        Untranslated = 26, "untranslated";
        /// No endpoint is known on this link.
        UnknownLink = 32, "unknown-link";
        /// The node is not set up yet.
        NotReady = 33, "not-ready";
        /// A header is cut short or contradicts itself.
        Malformed = 34, "malformed";
        /// The frame carries a VLAN tag.
        Vlan = 35, "vlan";
        /// Neither IP nor ARP.
        UnsupportedProtocol = 36, "unsupported-protocol";
        /// The frame's source is not the pod's own MAC address.
        SpoofedMac = 37, "spoofed-mac";
        /// The packet's source is not an address of the pod.
        SpoofedAddress = 38, "spoofed-address";
        /// The frame is not addressed to the gateway.
        NotForGateway = 39, "not-for-gateway";
        /// ARP other than the pod's own question for its gateway.
        ForeignArp = 40, "foreign-arp";
        /// Neighbour discovery other than the pod's own questions: advertisements, redirects, questions in another's name.
        ForeignNeighbour = 41, "foreign-neighbour";
        /// Multicast or broadcast, which nobody here listens to.
        Multicast = 42, "multicast";
        /// A link-local destination other than the gateway.
        LinkLocal = 43, "link-local";
        /// No endpoint has the destination address.
        UnknownDestination = 44, "unknown-destination";
        /// The destination's endpoint changed while the packet was on its way.
        StaleEndpoint = 45, "stale-endpoint";
        /// A later fragment of a packet whose first fragment was not seen.
        UnknownFragment = 46, "unknown-fragment";
        /// More IPv6 extension headers than are followed.
        ExtensionHeaders = 47, "extension-headers";
        /// The kernel refused to change the packet.
        Unchangeable = 48, "unchangeable";
        /// The sender's policy forbids it.
        EgressDenied = 49, "egress-denied";
        /// The receiver's policy forbids it.
        IngressDenied = 50, "ingress-denied";
        /// Every port that was tried for a new mapping is in use towards that destination.
        NatPortsExhausted = 56, "nat-ports-exhausted";
        /// There is no room for another mapping.
        NatTableFull = 57, "nat-table-full";
        /// The uplink has no address of the packet's family to masquerade it with.
        NatNoAddress = 58, "nat-no-address";
        /// A pod's packet of a protocol that cannot be masqueraded.
        NatUnsupported = 59, "nat-unsupported";
        /// The port, or the protocol where it has none, is in use towards that destination, and cannot be changed.
        NatPortTaken = 60, "nat-port-taken";
        /// A pod's ICMP error about a packet of no known conversation.
        NatUnrelated = 61, "nat-unrelated";
    }
}

numbered! {
    /// What happened to the flow tables, counted in [`map::FLOW_EVENTS`](crate::map::FLOW_EVENTS).
    pub enum FlowEvent {
        /// A packet that no believed verdict was found for, and that was judged anew.
        Judged = 0, "judged";
        /// A flow began.
        Began = 1, "began";
        /// Both sides have spoken: a flow moved to the table of confirmed ones.
        Confirmed = 2, "confirmed";
        /// A TCP connection ended and left the table of confirmed flows.
        Ended = 3, "ended";
        /// A flow could not be confirmed, since others have all the places that it could have in that table.
        TableFull = 4, "table-full";
        /// A flow could not be kept yet, since another took the place that was meant for it in that moment.
        Unkept = 5, "unkept";
        /// A flow that was not confirmed, the one of those at hand which was idle for longest, was forgotten
        /// for a newer one.
        Evicted = 6, "evicted";
    }
}

impl FlowEvent {
    /// Entries of [`map::FLOW_EVENTS`](crate::map::FLOW_EVENTS).
    pub const ENTRIES: u32 = 8;
}

impl Reason {
    /// Whether the packet was dropped.
    #[inline(always)]
    pub const fn is_drop(self) -> bool {
        self as u8 >= 32
    }
}

/// Reasons that one hook can count.
const REASONS: u32 = 64;
/// Hooks that there is room for.
const HOOKS: u32 = 8;

/// Entries of the metrics array.
pub const METRICS_ENTRIES: u32 = HOOKS * REASONS;

/// Where the counter of `reason` at `hook` stands in the metrics array.
#[inline(always)]
pub const fn metric_index(hook: Hook, reason: Reason) -> u32 {
    hook as u32 * REASONS + reason as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_counter_has_its_own_place() {
        let mut seen = [false; METRICS_ENTRIES as usize];
        for &hook in Hook::ALL {
            for &reason in Reason::ALL {
                let place = &mut seen[metric_index(hook, reason) as usize];
                assert!(!*place, "{hook} {reason}");
                *place = true;
            }
        }
    }

    #[test]
    fn names_are_distinct_and_explained() {
        for (i, a) in Reason::ALL.iter().enumerate() {
            assert!(a.explain().ends_with('.'), "{a}");
            for b in &Reason::ALL[i + 1..] {
                assert_ne!(a.name(), b.name());
                assert!(*a < *b, "{a} before {b}");
            }
        }
    }

    #[test]
    fn drops_are_told_from_deliveries() {
        assert!(!Reason::Passed.is_drop());
        assert!(Reason::UnknownLink.is_drop() && Reason::Unchangeable.is_drop());
    }

    #[test]
    fn counter_layout() {
        assert_eq!(size_of::<Counter>(), 16);
    }
}
