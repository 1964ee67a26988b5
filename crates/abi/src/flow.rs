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
/// key of three words is hashed and compared in half the time of the whole 5-tuple's five.
///
/// An ICMP echo has its identifier as the port of the side that asks and 0 as the other's, so that the
/// request's other direction is the reply. Protocols without ports have 0 and 0.
#[repr(C, align(8))]
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

    /// The key as three words, as they lie in memory.
    #[must_use]
    pub fn words(&self) -> [u64; 3] {
        zerocopy::transmute!(*self)
    }

    /// The key that has these [`words`](Self::words).
    #[must_use]
    pub fn of_words(words: [u64; 3]) -> Self {
        zerocopy::transmute!(words)
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

/// Secret numbers that a node hashes its flows by, so that nobody outside can tell which flows share a set.
pub type HashSeed = [u64; 7];

/// Where a flow may be found in a table of sets: an entry to begin at, in either of two sets.
///
/// The hash is Thorup's pair-multiply-shift ("High Speed Hashing for Integers and Strings", 2015, section
/// 3.5): of six words of 32 bits and seven random ones of 64, its upper 33 bits, which name the sets, are strongly
/// universal, that is, two flows meet with the chance of two random numbers, whatever flows somebody chooses who does
/// not know the seed. It takes three multiplications, none of which waits for another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowHash(pub u64);

#[inline(always)]
const fn pair(seed: u64, other_seed: u64, word: u64, other_word: u64) -> u64 {
    seed.wrapping_add(word).wrapping_mul(other_seed.wrapping_add(other_word))
}

impl FlowHash {
    /// Of the words of a [`FlowKey`].
    #[must_use]
    #[inline(always)]
    pub const fn new(seed: &HashSeed, key: [u64; 3]) -> Self {
        const fn half(word: u64) -> (u64, u64) {
            (word >> 32, word & u32::MAX as u64)
        }
        let [(a, b), (c, d), (e, f)] = [half(key[0]), half(key[1]), half(key[2])];
        Self(
            pair(seed[0], seed[1], a, b)
                .wrapping_add(pair(seed[2], seed[3], c, d))
                .wrapping_add(pair(seed[4], seed[5], e, f))
                .wrapping_add(seed[6]),
        )
    }

    /// Of a conversation, whichever side's and direction's key it is under: the same of a key, of the one that is
    /// [turned](FlowKey::turned), and of that which is [mirrored](FlowKey::mirrored), whose own address is the
    /// other side's. Each side is hashed as above by itself, and the two are multiplied: of sums, one could tell
    /// without the seed which are equal.
    #[must_use]
    #[inline(always)]
    pub const fn of_both_sides(seed: &HashSeed, key: &FlowKey, local: &Address) -> Self {
        const fn side(seed: &HashSeed, address: &Address, port: Be16, protocol: Protocol) -> u64 {
            let [a, b, c, d] = address.0;
            let last = (port.raw() as u64) << 8 | protocol.0 as u64;
            pair(seed[0], seed[1], b.raw() as u64, a.raw() as u64)
                .wrapping_add(pair(seed[2], seed[3], d.raw() as u64, c.raw() as u64))
                .wrapping_add(seed[4].wrapping_mul(last))
                .wrapping_add(seed[5])
        }
        // Odd, so that neither takes all that the other has.
        let own = side(seed, local, key.local_port, key.protocol) | 1;
        let peer = side(seed, &key.peer, key.peer_port, key.protocol) | 1;
        Self(own.wrapping_mul(peer))
    }

    /// Where to look first.
    #[must_use]
    #[inline(always)]
    pub const fn first_set(self, mask: u32) -> u32 {
        (self.0 >> 32) as u32 & mask
    }

    /// Where to look then; it may be the same set.
    #[must_use]
    #[inline(always)]
    pub const fn second_set(self, mask: u32) -> u32 {
        ((self.0 >> 32) as u32).rotate_left(16) & mask
    }

    /// What tells most flows of a set apart.
    #[must_use]
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "the lower bits")]
    pub const fn rest(self) -> u32 {
        (self.0 >> 12) as u32
    }

    /// The entry to begin at, in either.
    #[must_use]
    #[inline(always)]
    pub const fn way(self) -> usize {
        (self.0 >> 29) as usize & (WAYS - 1)
    }
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
/// - *tag*: a few bits of the key. An entry that is emptied is another flow's at once, while a program that found
///   it before may still be about to write to it.
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

    /// That of an entry which is free: believed of nothing, since no slot was born that early.
    pub const FREE: Self = Self(0);
    /// That of an entry which somebody is filling or emptying.
    pub const TAKEN: Self = Self(1);

    /// Whether it is one, and neither [`FREE`](Self::FREE) nor [`TAKEN`](Self::TAKEN).
    #[must_use]
    #[inline(always)]
    pub const fn is_one(self) -> bool {
        self.0 > Self::TAKEN.0
    }

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
/// in the lower byte of [`Flow::tcp()`], the other direction's in the upper one.
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

/// Entries of a set of [`map::FLOWS`](crate::map::FLOWS) or [`map::PENDING`](crate::map::PENDING).
pub const WAYS: usize = 8;

/// Which entries of a set of [`map::FLOWS`](crate::map::FLOWS) are taken, in sixteen bits of a word of
/// [`map::FLOW_WAYS`](crate::map::FLOW_WAYS): where a bit is not set, nobody need look.
///
/// Whoever fills an entry sets its bit first, by one atomic operation, and has the entry if the bit was not set. Whoever
/// empties it clears the bit after that, and until then nobody fills it.
pub mod ways {
    /// The bits of the entries.
    pub const TAKEN: u64 = 0xff;
    /// Flows that have this set first may be in their second one.
    pub const OVERFLOWED: u64 = 1 << 8;
    /// Sets in a word.
    pub const SETS: u32 = u64::BITS / BITS;

    const BITS: u32 = 16;

    /// The word of a set.
    #[must_use]
    #[inline(always)]
    pub const fn word(set: u32) -> u32 {
        set / SETS
    }

    /// How far its bits are shifted there.
    #[must_use]
    #[inline(always)]
    pub const fn shift(set: u32) -> u32 {
        set % SETS * BITS
    }
}

/// One direction of a flow that both sides have spoken in, in [`map::FLOWS`](crate::map::FLOWS): a cache line.
///
/// An entry is free while its verdict is [`Verdict::FREE`]. Whoever fills it takes it first, from the verdict that it
/// has to [`Verdict::TAKEN`], by one atomic exchange, and writes the verdict last; whoever empties it does so by one
/// exchange. So whoever finds the same verdict before and after reading the key has the verdict on that key.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct FlowEntry {
    /// Whose it is.
    pub key: FlowKey,
    /// What is known of it.
    pub flow: Flow,
}

/// A set of [`map::PENDING`](crate::map::PENDING).
///
/// What tells who is looked for and who has to go is together, and not with the rest: a set has ten cache
/// lines, of which a new flow needs three. Entries are taken, filled and emptied as those of confirmed flows, by their
/// verdicts.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct PendingSet {
    /// What was decided about the direction that began each flow.
    pub verdicts: [Verdict; WAYS],
    /// [`NodeState::seconds`](crate::NodeState::seconds) at the last packet of either direction.
    pub seen: [u32; WAYS],
    /// [`FlowHash::rest`] of each.
    pub hashes: [u32; WAYS],
    /// What else is known of them.
    pub entries: [PendingEntry; WAYS],
}

/// A flow of a [`PendingSet`]: a cache line.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct PendingEntry {
    /// Whose it is.
    pub key: FlowKey,
    /// As of [`Pending`].
    pub created: u32,
    /// As of [`Pending`], and [`MOVING`](Self::MOVING).
    pub tcp: u32,
    /// As of [`Pending`].
    pub packets: u64,
    /// As of [`Pending`].
    pub bytes: u64,
    /// As of [`Pending`].
    pub reply_packets: u64,
    /// As of [`Pending`].
    pub reply_bytes: u64,
}

impl PendingEntry {
    /// A CPU moves it to the confirmed flows, which only one may do.
    pub const MOVING: u32 = 1 << 31;
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
    /// Packets in the lower 48 bits; in the upper sixteen what TCP has shown, of [`tcp_seen`].
    pub packets_and_tcp: u64,
    /// Bytes of the packets, Ethernet headers included.
    pub bytes: u64,
    /// [`NodeState::seconds`](crate::NodeState::seconds) at the last packet.
    pub seen: u32,
    /// The same when the flow began.
    pub created: u32,
}

impl Flow {
    /// TCP's bits are from this one on in [`packets_and_tcp`](Self::packets_and_tcp). A flow that has a
    /// hundred million packets a second needs a month to reach it.
    pub const TCP_SHIFT: u32 = 48;

    /// Packets, but for those in [`recent`](Self::recent).
    #[must_use]
    #[inline(always)]
    pub const fn packets(&self) -> u64 {
        self.packets_and_tcp & ((1 << Self::TCP_SHIFT) - 1)
    }

    /// What TCP has shown, of [`tcp_seen`].
    #[must_use]
    #[inline(always)]
    pub const fn tcp(&self) -> u32 {
        (self.packets_and_tcp >> Self::TCP_SHIFT) as u32
    }

    /// The same with so many packets, and TCP having shown that.
    #[must_use]
    #[inline(always)]
    pub const fn with(self, packets: u64, tcp: u32) -> Self {
        Self { packets_and_tcp: packets | (tcp as u64) << Self::TCP_SHIFT, ..self }
    }
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
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pending {
    /// What was decided about the direction that began it.
    pub verdict: Verdict,
    /// [`NodeState::seconds`](crate::NodeState::seconds) at the last packet of either direction.
    pub seen: u32,
    /// The same when the flow began.
    pub created: u32,
    /// Of [`tcp_seen`], the direction that began it in the lower byte.
    pub tcp: u32,
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
        assert_eq!(align_of::<FlowKey>(), 8);
        assert_eq!(size_of::<FlowEntry>(), 64);
        assert_eq!(size_of::<PendingEntry>(), 64);
        assert_eq!(size_of::<PendingSet>(), 640);
        assert_eq!(offset_of!(PendingSet, seen), 64);
        assert_eq!(offset_of!(PendingSet, entries), 128);
        assert_eq!(offset_of!(FlowEntry, flow) + offset_of!(Flow, verdict), 24);
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
        assert_eq!(FlowKey::of_words(key.words()), key);
        assert_eq!(key.turned().direction, direction::RECEIVED);
        let local = Address::from_ipv4([10, 0, 0, 2]);
        let mirrored = key.mirrored(9, local);
        assert_eq!((mirrored.endpoint, mirrored.local_port.get()), (9, 80));
        assert_eq!(mirrored.mirrored(7, key.peer), key);
    }

    #[test]
    fn a_conversation_has_one_hash() {
        let seed = [3, 5, 7, 11, 13, 17, 19].map(|n: u64| n.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let (key, local) = (key(), Address::from_ipv4([10, 0, 0, 2]));
        let hash = FlowHash::of_both_sides(&seed, &key, &local);
        assert_eq!(FlowHash::of_both_sides(&seed, &key.turned(), &local), hash);
        let mirrored = key.mirrored(9, local);
        assert_eq!(FlowHash::of_both_sides(&seed, &mirrored, &key.peer), hash);
        let other = FlowKey { local_port: Be16::new(40001), ..key };
        assert_ne!(
            FlowHash::of_both_sides(&seed, &other, &local).first_set(!0),
            hash.first_set(!0)
        );
    }

    #[test]
    fn flows_are_spread_evenly() {
        let seed = [3, 5, 7, 11, 13, 17, 19].map(|n: u64| n.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let local = Address::from_ipv4([10, 0, 0, 2]);
        let hashes: [fn(&HashSeed, &FlowKey, &Address) -> FlowHash; 2] =
            [|seed, key, _| FlowHash::new(seed, key.words()), FlowHash::of_both_sides];
        for hash in hashes {
            let (mut first, mut second, mut ways) = ([0_u32; 256], [0_u32; 256], [0_u32; WAYS]);
            for number in 0..u16::MAX {
                // Two series whose ports and addresses have the same sums.
                let [high, low] = (number / 2).to_be_bytes();
                let (ports, peer, local) = if number % 2 == 0 {
                    ([number, u16::MAX - number], key().peer, local)
                } else {
                    let peer = Address::from_ipv4([10, 1, high, low]);
                    ([40_000, 80], peer, Address::from_ipv4([10, 0, !high, !low]))
                };
                let key = FlowKey {
                    local_port: Be16::new(ports[0]),
                    peer_port: Be16::new(ports[1]),
                    peer,
                    ..key()
                };
                let hash = hash(&seed, &key, &local);
                first[hash.first_set(255) as usize] += 1;
                second[hash.second_set(255) as usize] += 1;
                ways[hash.way()] += 1;
            }
            // 256 on average, of which a sixteenth is the deviation of a random draw.
            for count in first.into_iter().chain(second) {
                assert!((160..=352).contains(&count), "{count}");
            }
            assert!(ways.iter().all(|count| (7_500..9_000).contains(count)), "{ways:?}");
        }
    }

    /// What docs/decisions/0014 says of tables that fill, by the rule of `crates/ebpf/src/flow/table.rs`.
    #[test]
    fn nobody_is_turned_away_by_a_table_that_is_half_full() {
        const SETS: u32 = 4096;
        const CROWDED: u8 = 6;
        let seed = [3, 5, 7, 11, 13, 17, 19].map(|n: u64| n.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let mut taken = [0_u8; SETS as usize];
        let entries = SETS * 8;
        let mut turned_away = 0;
        for number in 0..entries * 3 / 4 {
            let [a, b, c, d] = number.to_be_bytes();
            let key = FlowKey { local_port: Be16::new(u16::from_be_bytes([c, d])), ..key() };
            let key = FlowKey { peer: Address::from_ipv4([10, 9, a, b]), ..key };
            let hash = FlowHash::new(&seed, key.words());
            let [first, second] = [hash.first_set(SETS - 1), hash.second_set(SETS - 1)];
            let [in_first, in_second] = [taken[first as usize], taken[second as usize]];
            let set = if in_first >= CROWDED && in_second < in_first { second } else { first };
            if usize::from(taken[set as usize]) < WAYS {
                taken[set as usize] += 1;
            } else {
                turned_away += 1;
            }
            if number == entries / 2 {
                assert_eq!(turned_away, 0);
            }
        }
        // A tenth of a percent.
        assert!(turned_away < entries / 1000, "{turned_away} of {entries}");
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
