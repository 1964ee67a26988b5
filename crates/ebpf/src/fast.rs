//! The packet that there are most of: TCP or UDP of a known flow, with nothing unusual about it.
//!
//! It costs one lookup, one rewrite and one redirect. Every check that judging a packet makes is made here too,
//! and whatever does not pass all of them (options, fragments) is left to the programs' ordinary
//! way, which says what is wrong with it. Only a source that is not the endpoint's is plain to see here as well. A packet that is ordinary itself, but not its
//! flow (a SYN, a stale verdict), is read by that way as quickly as here.

use aya_ebpf::programs::TcContext;
use podwire_abi::{
    Flow, NodeState, Protocol, Reason, Slot, Verdict as FlowVerdict, direction, slot_flag,
    verdict_flag,
};

use crate::{
    flow::{self, Found, Key},
    forward,
    maps::{CONFIG, SLOTS, STATE},
    packet::{
        Bytes, ETH_LEN, Fragment, Frame, IPV4_LEN, IPV6_LEN, Kind, Packet, Words, read_u8,
        read_u16, read_u32, read_u64,
    },
    verdict::{Drop, Outcome},
};

/// Ports, and TCP's flags.
const TRANSPORT_LEN: usize = 16;

/// TCP's FIN, SYN, RST and ACK.
const TELLING_FLAGS: u8 = 0x17;
const ACK: u8 = 0x10;

/// Why there is no answer here.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Looked {
    /// The packet is to be read with more care.
    Unusual,
    /// It is an ordinary one, and its flow has not been looked for, or there is more to say of it.
    NotYet,
    /// It is an ordinary one, and its flow is not among the confirmed ones.
    InVain,
}

/// What becomes of a packet that a pod sends, if it is an ordinary one of a known flow.
#[inline(always)]
pub fn from_container(ctx: &TcContext, number: u32, slot: &Slot) -> Result<Outcome, Looked> {
    // SAFETY: the context is valid for the whole run of the program.
    if unsafe { (*ctx.skb.skb).vlan_present } != 0 {
        return Err(Looked::Unusual);
    }
    let frame = Frame::linear(ctx);
    let bytes =
        frame.at::<0, { ETH_LEN + IPV4_LEN + TRANSPORT_LEN }>().map_err(|_| Looked::Unusual)?;
    let [a, b, c] = slot.from_pod.0;
    if read_u32::<0>(bytes) != a || read_u32::<4>(bytes) != b || read_u32::<8>(bytes) != c {
        return Err(Looked::Unusual);
    }
    // The frame's type, and the IP header's first byte: version and length.
    match read_u32::<12>(bytes).to_ne_bytes() {
        [0x08, 0x00, 0x45, _] => ipv4(ctx, frame, bytes, number, slot),
        [0x86, 0xdd, first, _] if first >> 4 == 6 => ipv6(ctx, frame, number, slot),
        _ => Err(Looked::Unusual),
    }
}

#[inline(always)]
fn ipv4(
    ctx: &TcContext,
    frame: Frame,
    bytes: Bytes,
    number: u32,
    slot: &Slot,
) -> Result<Outcome, Looked> {
    let total_len = u32::from(u16::from_be(read_u16::<16>(bytes)));
    let is_whole = read_u16::<20>(bytes) & u16::from_be(0x3fff) == 0;
    let source = read_u32::<26>(bytes);
    if total_len < (IPV4_LEN + 8) as u32
        || total_len + ETH_LEN as u32 > ctx.len()
        || !is_whole
        || read_u8::<22>(bytes) <= 1
    {
        return Err(Looked::Unusual);
    }
    if source != slot.ipv4.raw() || source == 0 {
        return spoofed(slot);
    }
    let protocol = protocol(read_u8::<23>(bytes), read_u8::<47>(bytes))?;
    let destination = Words::from_ipv4(read_u32::<30>(bytes));
    let key = Key::new(number, protocol, direction::SENT, read_u32::<34>(bytes), destination);
    let known = known(&key, protocol, slot)?;
    if known.verdict.has(verdict_flag::TO_STACK) {
        return to_stack(ctx, frame, slot, &known);
    }
    if known.peer.ipv4.raw() != destination.ipv4_raw() {
        return Err(Looked::NotYet);
    }
    let outcome = forward::deliver_routed(ctx, bytes, true, known.peer);
    known.count(ctx);
    Ok(outcome)
}

#[inline(always)]
fn ipv6(ctx: &TcContext, frame: Frame, number: u32, slot: &Slot) -> Result<Outcome, Looked> {
    let bytes =
        frame.at::<0, { ETH_LEN + IPV6_LEN + TRANSPORT_LEN }>().map_err(|_| Looked::Unusual)?;
    let payload_len = u32::from(u16::from_be(read_u16::<18>(bytes)));
    let source = Words([read_u64::<22>(bytes), read_u64::<30>(bytes)]);
    let destination = Words([read_u64::<38>(bytes), read_u64::<46>(bytes)]);
    if payload_len + (ETH_LEN + IPV6_LEN) as u32 > ctx.len()
        || read_u8::<21>(bytes) <= 1
        || source.is_ipv4()
        || destination.is_ipv4()
    {
        return Err(Looked::Unusual);
    }
    let next_header = read_u8::<20>(bytes);
    if source != Words::of_slot(slot) || source.0 == [0, 0] {
        // Among neighbours a host speaks otherwise.
        return match Protocol(next_header) {
            Protocol::TCP | Protocol::UDP => spoofed(slot),
            _ => Err(Looked::Unusual),
        };
    }
    let protocol = protocol(next_header, read_u8::<67>(bytes))?;
    let key = Key::new(number, protocol, direction::SENT, read_u32::<54>(bytes), destination);
    let known = known(&key, protocol, slot)?;
    if known.verdict.has(verdict_flag::TO_STACK) {
        return to_stack(ctx, frame, slot, &known);
    }
    if Words::of_slot(known.peer) != destination {
        return Err(Looked::NotYet);
    }
    let outcome = forward::deliver_routed(ctx, bytes, false, known.peer);
    known.count(ctx);
    Ok(outcome)
}

/// The source is not the endpoint's own.
#[inline(always)]
fn spoofed(slot: &Slot) -> Result<Outcome, Looked> {
    match CONFIG.get(0) {
        Some(config) if config.host_ifindex != 0 && slot.flags & slot_flag::CHAINED == 0 => {
            Ok(Err(Drop(Reason::SpoofedAddress)))
        }
        _ => Err(Looked::Unusual),
    }
}

/// UDP, or TCP that says nothing new.
#[inline(always)]
fn protocol(number: u8, flags: u8) -> Result<Protocol, Looked> {
    match Protocol(number) {
        Protocol::TCP if flags & TELLING_FLAGS == ACK => Ok(Protocol::TCP),
        Protocol::TCP => Err(Looked::NotYet),
        Protocol::UDP => Ok(Protocol::UDP),
        _ => Err(Looked::Unusual),
    }
}

/// A flow whose verdict is believed.
struct Known {
    flow: *mut Flow,
    state: &'static NodeState,
    verdict: FlowVerdict,
    /// The slot that the verdict names.
    peer: &'static Slot,
}

impl Known {
    /// Comes last: whatever follows an atomic addition waits for it.
    #[inline(always)]
    fn count(&self, ctx: &TcContext) {
        flow::count(self.flow, ctx.len(), self.state);
    }
}

#[inline(always)]
fn known(key: &Key, protocol: Protocol, slot: &Slot) -> Result<Known, Looked> {
    let Found { value: flow, verdict } = key.confirmed().ok_or(Looked::InVain)?;
    let state = STATE.get(0).ok_or(Looked::NotYet)?;
    let peer = SLOTS.get(verdict.peer_slot()).ok_or(Looked::NotYet)?;
    if !flow::is_believed_of(verdict, key, slot, state, peer) {
        return Err(Looked::NotYet);
    }
    // SAFETY: one aligned word of a live map value.
    if protocol == Protocol::TCP && unsafe { (*flow).tcp() } & u32::from(ACK) == 0 {
        return Err(Looked::NotYet);
    }
    Ok(Known { flow, state, verdict, peer })
}

#[inline(always)]
fn to_stack(ctx: &TcContext, frame: Frame, slot: &Slot, known: &Known) -> Result<Outcome, Looked> {
    // What comes out of the stack makes the verdict on its answers, on a node that is not set up as well.
    let config = CONFIG.get(0).filter(|config| config.host_ifindex != 0);
    let config = config.ok_or(Looked::NotYet)?;
    known.count(ctx);
    Ok(forward::by_stack(frame, slot, config, known.verdict))
}

/// Reads a packet that is an ordinary one, as [`from_container`] has seen.
#[inline(always)]
pub fn read(frame: Frame) -> Result<Packet, Drop> {
    let bytes = frame.at::<0, { ETH_LEN + IPV4_LEN + TRANSPORT_LEN }>()?;
    let (mut packet, flags);
    // The upper half of the frame's type.
    if read_u8::<12>(bytes) == 0x08 {
        packet = Packet {
            source: Words::from_ipv4(read_u32::<26>(bytes)),
            destination: Words::from_ipv4(read_u32::<30>(bytes)),
            ports: read_u32::<34>(bytes),
            protocol: Protocol(read_u8::<23>(bytes)),
            hops: read_u8::<22>(bytes),
            transport: ETH_LEN + IPV4_LEN,
            fragment: Fragment::Whole,
            kind: Kind::Within,
            shown: 0,
        };
        flags = read_u8::<47>(bytes);
    } else {
        let bytes = frame.at::<0, { ETH_LEN + IPV6_LEN + TRANSPORT_LEN }>()?;
        packet = Packet {
            source: Words([read_u64::<22>(bytes), read_u64::<30>(bytes)]),
            destination: Words([read_u64::<38>(bytes), read_u64::<46>(bytes)]),
            ports: read_u32::<54>(bytes),
            protocol: Protocol(read_u8::<20>(bytes)),
            hops: read_u8::<21>(bytes),
            transport: ETH_LEN + IPV6_LEN,
            fragment: Fragment::Whole,
            kind: Kind::Within,
            shown: 0,
        };
        flags = read_u8::<67>(bytes);
    }
    if packet.protocol == Protocol::TCP {
        packet.read_tcp_flags(flags);
    }
    Ok(packet)
}
