//! Neighbour discovery (RFC 4861) and multicast listener discovery (RFC 3810): a pod may ask for
//! its gateway, and may do what every IPv6 host does when it starts.

use aya_ebpf::{
    helpers::{bpf_csum_diff, bpf_skb_change_tail},
    programs::TcContext,
};
use podwire_abi::{Address, Be32, EthernetPair, NodeConfig, Protocol, Reason, Slot};

use crate::{
    forward, is_router,
    packet::{ETH_LEN, Fragment, IPV6_LEN, Packet, load},
    verdict::{self, Drop, Outcome},
};

const LISTENER_QUERY: u8 = 130;
const LISTENER_DONE: u8 = 132;
const ROUTER_SOLICITATION: u8 = 133;
const ROUTER_ADVERTISEMENT: u8 = 134;
const NEIGHBOUR_SOLICITATION: u8 = 135;
const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
const REDIRECT: u8 = 137;
const LISTENER_REPORT_V2: u8 = 143;

/// `ff02::1`, every node on the link.
const ALL_NODES: Address = Address::from_ipv6([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);

/// Decides on ICMPv6 that concerns only the link; `None` for everything else.
#[inline(always)]
pub fn judge(
    ctx: &TcContext,
    packet: &Packet,
    slot: &Slot,
    config: &NodeConfig,
) -> Option<Outcome> {
    if packet.protocol != Protocol::ICMPV6 || matches!(packet.fragment, Fragment::Later(_)) {
        return None;
    }
    let kind: u8 = match load(ctx, packet.transport) {
        Ok(kind) => kind,
        Err(drop) => return Some(Err(drop)),
    };
    match kind {
        NEIGHBOUR_SOLICITATION => {
            // RFC 4861, 7.1.1: hop limit 255 proves that the question is from this link.
            let is_plain = packet.transport == ETH_LEN + IPV6_LEN
                && packet.hops == 255
                && packet.fragment == Fragment::Whole;
            Some(verdict::of_word(answer(ctx, is_plain.into(), slot, config)))
        }
        LISTENER_QUERY..=LISTENER_DONE | ROUTER_SOLICITATION | LISTENER_REPORT_V2 => {
            let allowed = may_speak_on_link(&packet.source.address(), slot);
            Some(Err(Drop(if allowed { Reason::Multicast } else { Reason::SpoofedAddress })))
        }
        ROUTER_ADVERTISEMENT | NEIGHBOUR_ADVERTISEMENT | REDIRECT => {
            Some(Err(Drop(Reason::ForeignNeighbour)))
        }
        _ => None,
    }
}

/// Whether this is what the host's own stack says to a pod as a neighbour.
#[inline(always)]
pub fn is_discovery(ctx: &TcContext, packet: &Packet) -> Result<bool, Drop> {
    if packet.protocol != Protocol::ICMPV6 || matches!(packet.fragment, Fragment::Later(_)) {
        return Ok(false);
    }
    let kind: u8 = load(ctx, packet.transport)?;
    Ok(matches!(kind, ROUTER_SOLICITATION..=REDIRECT))
}

/// Duplicate address detection and listener reports come from `::`, link-local discovery from
/// `fe80::`.
#[inline(always)]
fn may_speak_on_link(source: &Address, slot: &Slot) -> bool {
    slot.owns(source) || source.is_unspecified() || source.is_ipv6_link_local()
}

/// Kept out of line: the answer is made on the stack, of which programs have little.
#[inline(never)]
fn answer(ctx: &TcContext, is_plain: u64, slot: &Slot, config: &NodeConfig) -> u64 {
    verdict::to_word(try_answer(ctx, is_plain != 0, slot, config))
}

/// Answers a solicitation for the gateway:
///
/// ```text
///  0               1               2               3
/// |     type      |     code      |           checksum            |
/// |                            flags                              |
/// |                       target (16 bytes)                       |
/// |  option: 2    |  length: 1    |    link-layer address (6)     |
/// ```
#[inline(always)]
fn try_answer(ctx: &TcContext, is_plain: bool, slot: &Slot, config: &NodeConfig) -> Outcome {
    const SOLICITATION_LEN: usize = 24;
    const ADVERTISEMENT_LEN: usize = 32;
    const ICMP: usize = ETH_LEN + IPV6_LEN;
    let source: [u32; 4] = load(ctx, ETH_LEN + 8)?;
    let source = Address(source.map(Be32::from_raw));
    if !may_speak_on_link(&source, slot) {
        return Err(Drop(Reason::SpoofedAddress));
    }
    if !is_plain {
        return Err(Drop(Reason::Malformed));
    }
    let solicitation: [u32; SOLICITATION_LEN / 4] = load(ctx, ICMP)?;
    let [_, _, a, b, c, d] = solicitation.map(Be32::from_raw);
    let target = Address([a, b, c, d]);
    if !is_router(config, &target) {
        // The pod makes sure that its own address is its own: nobody disputes it.
        let own = slot.owns(&target) || target.is_ipv6_link_local();
        return Err(Drop(if own { Reason::Multicast } else { Reason::ForeignNeighbour }));
    }
    if ctx.len() as usize >= ICMP + ADVERTISEMENT_LEN {
        // A source link-layer address, if there is one, is the sender's own.
        let option: [u32; 2] = load(ctx, ICMP + SOLICITATION_LEN)?;
        if option[0].to_ne_bytes()[..2] == [1, 1] && !is_own_mac(option, &slot.to_pod) {
            return Err(Drop(Reason::ForeignNeighbour));
        }
    }

    let probe = source.is_unspecified();
    let destination = if probe { ALL_NODES } else { source };
    let flags: u32 = if probe { 0xa000_0000 } else { 0xe000_0000 };
    let [mac0, mac1, _] = slot.from_pod.0;
    let [m0, m1, m2, m3] = mac0.to_ne_bytes();
    let [m4, m5, ..] = mac1.to_ne_bytes();
    let option = [u32::from_ne_bytes([2, 1, m0, m1]), u32::from_ne_bytes([m2, m3, m4, m5])];
    let [r0, r1, r2, r3] = target.0.map(Be32::raw);
    let [d0, d1, d2, d3] = destination.0.map(Be32::raw);
    let kind = u32::from_ne_bytes([NEIGHBOUR_ADVERTISEMENT, 0, 0, 0]);
    // The pseudo-header (RFC 8200, 8.1), then the message with a checksum of zero.
    let mut summed: [u32; 18] = [
        r0,
        r1,
        r2,
        r3,
        d0,
        d1,
        d2,
        d3,
        (ADVERTISEMENT_LEN as u32).to_be(),
        u32::from(Protocol::ICMPV6.0).to_be(),
        kind,
        flags.to_be(),
        r0,
        r1,
        r2,
        r3,
        option[0],
        option[1],
    ];
    let checksum = checksum(&mut summed);
    let [c0, c1] = checksum.to_ne_bytes();
    let message: [u32; ADVERTISEMENT_LEN / 4] = [
        u32::from_ne_bytes([NEIGHBOUR_ADVERTISEMENT, 0, c0, c1]),
        flags.to_be(),
        r0,
        r1,
        r2,
        r3,
        option[0],
        option[1],
    ];
    let header: [u32; IPV6_LEN / 4] = [
        0x6000_0000_u32.to_be(),
        u32::from_be_bytes([0, ADVERTISEMENT_LEN as u8, Protocol::ICMPV6.0, 255]).to_be(),
        r0,
        r1,
        r2,
        r3,
        d0,
        d1,
        d2,
        d3,
    ];
    let refused = |_| Drop(Reason::Unchangeable);
    // SAFETY: the context is valid for the whole run of the program.
    let result = unsafe { bpf_skb_change_tail(ctx.skb.skb, (ICMP + ADVERTISEMENT_LEN) as u32, 0) };
    if result != 0 {
        return Err(Drop(Reason::Unchangeable));
    }
    ctx.store(0, &slot.to_pod, 0).map_err(refused)?;
    ctx.store(ETH_LEN, &header, 0).map_err(refused)?;
    ctx.store(ICMP, &message, 0).map_err(refused)?;
    forward::answer(ctx, slot, Reason::AnsweredNeighbour)
}

/// Whether a link-layer address option holds the pod's own address, a frame's destination.
#[inline(always)]
fn is_own_mac(option: [u32; 2], to_pod: &EthernetPair) -> bool {
    let [_, _, a, b] = option[0].to_ne_bytes();
    let [c, d, e, f] = option[1].to_ne_bytes();
    let [g, h, ..] = to_pod.0[1].to_ne_bytes();
    u32::from_ne_bytes([a, b, c, d]) == to_pod.0[0] && [e, f] == [g, h]
}

/// The Internet checksum (RFC 1071) of `words`, as it stands in a packet.
#[inline(always)]
fn checksum(words: &mut [u32; 18]) -> u16 {
    let size = size_of_val(words) as u32;
    // SAFETY: the helper reads `size` bytes of the stack.
    let sum = unsafe { bpf_csum_diff(core::ptr::null_mut(), 0, words.as_mut_ptr(), size, 0) };
    let sum = sum as u32;
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    !(sum as u16)
}
