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

/// One direction of a conversation, as one endpoint sees it.
///
/// Whose endpoint it is says the slot: its own address need not be in the key, since a slot has one of
/// each family, and what the slot's last holder left behind is told by the [`Verdict`]'s stamp. A
/// key of 24 bytes is hashed and compared in half the time of the whole 5-tuple's 40.
///
/// An ICMP echo has its identifier as the port of the side that asks and 0 as the other's, so that the
/// request's other direction is the reply. Protocols without ports have 0 and 0.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct FlowKey {
    /// The endpoint's slot.
    pub endpoint: u16,
    /// TCP, UDP and so on.
    pub protocol: Protocol,
    /// Of [`direction`].
    pub direction: u8,
    /// The endpoint's port.
    pub local_port: Be16,
    /// The other side's port.
    pub peer_port: Be16,
    /// The other side's address.
    pub peer: Address,
}

/// Which way the packets of a [`FlowKey`] go.
pub mod direction {
    /// The endpoint sends them.
    pub const SENT: u8 = 0;
    /// The host stack hands them to the endpoint. What another endpoint of the node sends straight
    /// to it is [`SENT`] there, and has no entry here.
    pub const RECEIVED: u8 = 1;
}

impl FlowKey {
    /// The other direction at the same endpoint.
    #[must_use]
    #[inline(always)]
    pub const fn turned(&self) -> Self {
        Self { direction: self.direction ^ 1, ..*self }
    }

    /// What the other side sends, where that is an endpoint of this node that is reached straight:
    /// its slot, and this side's address.
    #[must_use]
    #[inline(always)]
    pub const fn mirrored(&self, peer_slot: u16, local: Address) -> Self {
        Self {
            endpoint: peer_slot,
            protocol: self.protocol,
            direction: direction::SENT,
            local_port: self.peer_port,
            peer_port: self.local_port,
            peer: local,
        }
    }

    /// A few bits of what the flow is, for its [`Verdict`].
    #[must_use]
    #[inline(always)]
    pub const fn tag(&self) -> u64 {
        let [a, b] = self.endpoint.to_ne_bytes();
        let head = u32::from_ne_bytes([a, b, self.protocol.0, self.direction]);
        let [a, b] = self.local_port.raw().to_ne_bytes();
        let [c, d] = self.peer_port.raw().to_ne_bytes();
        let ports = u32::from_ne_bytes([a, b, c, d]);
        let [a, b, c, d] = self.peer.0;
        tag(head ^ ports ^ a.raw() ^ b.raw() ^ c.raw() ^ d.raw())
    }
}

/// What [`FlowKey::tag`] makes of the key's six words of 32 bits, xored.
#[must_use]
#[inline(always)]
pub const fn tag(sum: u32) -> u64 {
    (sum.wrapping_mul(0x9e37_79b1) >> 22) as u64
}

/// The two halves of a word, xored.
#[must_use]
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "both halves are in it")]
pub const fn fold(word: u64) -> u32 {
    (word ^ word >> 32) as u32
}

/// What was decided about one direction of a flow, in one word, so that it is never read torn.
///
/// ```text
///  63                          28 27        18 17     14 13            0
/// |            stamp             |    tag     |  flags  |   peer slot   |
/// ```
///
/// - *stamp*: the node's ticket when the deciding began ([`NodeState::ticket`](crate::NodeState::ticket)). The verdict is believed
///   while nothing it rests on has a later one: the node, both ends.
/// - *tag*: a few bits of the key. The kernel may give a deleted entry's memory to another flow while a
///   program that found it before is about to read it.
#[repr(transparent)]
#[derive(
    Clone, Copy, Default, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct Verdict(pub u64);

/// Flags of a [`Verdict`].
pub mod verdict_flag {
    /// The flow began with a packet of the other direction: policy is asked about that one.
    pub const REPLY: u64 = 1;
    /// Packets that the endpoint sends go to the host stack, and not straight to the peer.
    pub const TO_STACK: u64 = 2;
    /// They do since the other direction comes out of it.
    pub const BY_FLOW: u64 = 4;
    /// The peer is an endpoint of this node, in the slot that the verdict names.
    pub const LOCAL_PEER: u64 = 8;
}

impl Verdict {
    /// Slots that a verdict can name.
    pub const SLOTS: u32 = 1 << 14;
    /// The last stamp. A change a millisecond uses them up in two years, and what is stamped last is
    /// believed no longer than what comes after allows: user space refuses changes beyond it.
    pub const LAST_STAMP: u64 = (1 << 36) - 1;

    /// From its parts: flags of [`verdict_flag`], a slot below [`SLOTS`](Self::SLOTS).
    #[must_use]
    #[inline(always)]
    pub const fn new(stamp: u64, tag: u64, flags: u64, peer_slot: u32) -> Self {
        Self(stamp << 28 | tag << 18 | flags << 14 | peer_slot as u64)
    }

    /// The ticket of when it was decided.
    #[must_use]
    #[inline(always)]
    pub const fn stamp(self) -> u64 {
        self.0 >> 28
    }

    /// Of the key that it is for.
    #[must_use]
    #[inline(always)]
    pub const fn tag(self) -> u64 {
        self.0 >> 18 & 0x3ff
    }

    /// Whether it has one of these flags.
    #[must_use]
    #[inline(always)]
    pub const fn has(self, flags: u64) -> bool {
        self.0 >> 14 & flags != 0
    }

    /// All its flags.
    #[must_use]
    #[inline(always)]
    pub const fn flags(self) -> u64 {
        self.0 >> 14 & 0xf
    }

    /// The peer's slot, with [`verdict_flag::LOCAL_PEER`].
    #[must_use]
    #[inline(always)]
    pub const fn peer_slot(self) -> u32 {
        #[expect(clippy::cast_possible_truncation, reason = "fourteen bits")]
        let slot = (self.0 & (Self::SLOTS as u64 - 1)) as u32;
        slot
    }
}

impl core::fmt::Debug for Verdict {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Verdict")
            .field("stamp", &self.stamp())
            .field("tag", &self.tag())
            .field("flags", &self.flags())
            .field("peer_slot", &self.peer_slot())
            .finish()
    }
}

/// What a direction of a TCP connection has shown so far, in the header's own bits (RFC 9293, 3.1); its own
/// in the lower byte of [`Flow::tcp`], the other direction's in the upper one.
pub mod tcp_seen {
    /// A FIN.
    pub const FIN: u32 = 1;
    /// A SYN.
    pub const SYN: u32 = 2;
    /// A RST.
    pub const RST: u32 = 4;
    /// An acknowledgement with neither SYN, FIN nor RST.
    pub const ACK: u32 = 16;
    /// Shifts what the other direction has shown.
    pub const PEER: u32 = 8;

    /// What a packet with these flags shows.
    #[must_use]
    #[inline(always)]
    pub const fn shown(flags: u8) -> u32 {
        let flags = flags as u32;
        if flags & (SYN | FIN | RST) != 0 { flags & (SYN | FIN | RST) } else { flags & ACK }
    }

    /// The same, seen from the other direction.
    #[must_use]
    #[inline(always)]
    pub const fn turned(tcp: u32) -> u32 {
        tcp >> PEER & 0xff | (tcp & 0xff) << PEER
    }
}

/// One direction of a flow that both sides have spoken in.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct Flow {
    /// What was decided.
    pub verdict: Verdict,
    /// Packets and bytes that are not in the two sums yet, of [`recent`].
    pub recent: u64,
    /// Packets.
    pub packets: u64,
    /// Their bytes, Ethernet headers included.
    pub bytes: u64,
    /// [`NodeState::seconds`](crate::NodeState::seconds) at the last packet.
    pub seen: u32,
    /// The same when the flow began.
    pub created: u32,
    /// Of [`tcp_seen`].
    pub tcp: u32,
    /// Zero.
    pub reserved: u32,
}

/// Packets and bytes in one word, so that one atomic addition counts both.
pub mod recent {
    /// Bytes are below this bit, packets from it on.
    pub const PACKET_SHIFT: u32 = 44;
    /// Packets after which the word is emptied into the sums, half of what it has room for.
    pub const SPILL: u64 = 1 << 19;

    /// What one packet adds.
    #[inline(always)]
    pub const fn one(bytes: u64) -> u64 {
        1 << PACKET_SHIFT | bytes
    }

    /// Packets and bytes in the word.
    #[inline(always)]
    pub const fn split(word: u64) -> (u64, u64) {
        (word >> PACKET_SHIFT, word & ((1 << PACKET_SHIFT) - 1))
    }
}

/// A flow that only one side has spoken in, a TCP connection that is not open yet or has ended;
/// under the key of the direction that began it.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct Pending {
    /// What was decided about the direction that began it.
    pub verdict: Verdict,
    /// [`NodeState::seconds`](crate::NodeState::seconds) at the last packet of either direction.
    pub seen: u32,
    /// The same when the flow began.
    pub created: u32,
    /// Of [`tcp_seen`], the direction that began it in the lower byte.
    pub tcp: u32,
    /// Zero.
    pub reserved: u32,
    /// Of the direction that began it.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Of the other direction.
    pub reply_packets: u64,
    /// Their bytes.
    pub reply_bytes: u64,
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
        assert_eq!(size_of::<FlowKey>(), 24);
        assert_eq!(offset_of!(FlowKey, peer), 8);
        // With the 56 bytes that the kernel puts in front of the key of an element that it allocates by itself
        // these are two cache lines.
        assert_eq!(size_of::<Flow>(), 48);
        assert_eq!(size_of::<Pending>(), 56);
        assert_eq!(size_of::<FragmentKey>(), 40);
        assert_eq!(offset_of!(FragmentKey, identification), 32);
        assert_eq!(offset_of!(FragmentKey, protocol), 36);
        assert_eq!(size_of::<FragmentPorts>(), 4);
    }

    fn key() -> FlowKey {
        FlowKey {
            endpoint: 7,
            protocol: Protocol::TCP,
            direction: direction::SENT,
            local_port: Be16::new(40000),
            peer_port: Be16::new(80),
            peer: Address::from_ipv4([10, 0, 0, 3]),
        }
    }

    #[test]
    fn the_other_direction_of_the_other_direction_is_the_flow() {
        let key = key();
        assert_eq!(key.turned().turned(), key);
        assert_eq!(key.turned().direction, direction::RECEIVED);
        let local = Address::from_ipv4([10, 0, 0, 2]);
        let mirrored = key.mirrored(9, local);
        assert_eq!((mirrored.endpoint, mirrored.local_port.get()), (9, 80));
        assert_eq!(mirrored.mirrored(7, key.peer), key);
    }

    #[test]
    fn a_verdict_is_its_parts() {
        let flags = verdict_flag::REPLY | verdict_flag::LOCAL_PEER;
        let tag = key().tag();
        assert!(tag < 1 << 10);
        let verdict = Verdict::new(Verdict::LAST_STAMP, tag, flags, Verdict::SLOTS - 1);
        assert_eq!(verdict.stamp(), Verdict::LAST_STAMP);
        assert_eq!((verdict.tag(), verdict.flags()), (tag, flags));
        assert_eq!(verdict.peer_slot(), Verdict::SLOTS - 1);
        assert!(verdict.has(verdict_flag::REPLY) && !verdict.has(verdict_flag::TO_STACK));
        assert_ne!(tag, key().turned().tag());
    }

    #[test]
    fn one_word_counts_packets_and_bytes() {
        let word = recent::one(1500) + recent::one(60);
        assert_eq!(recent::split(word), (2, 1560));
        // Of the largest packets there are (BIG TCP) the bytes do not reach the packets.
        const { assert!((2 * recent::SPILL) * (1 << 20) < 1 << recent::PACKET_SHIFT) };
    }
}
