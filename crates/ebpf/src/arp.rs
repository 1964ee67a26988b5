//! ARP (RFC 826): the gateway is everybody's neighbour, and nobody else is.
//!
//! ```text
//!  0        2        4    5    6        8                14           18            24
//! | hw type|protocol|hlen|plen|operation| sender MAC (6) | sender IP  | target MAC  | target IP |
//! ```

use aya_ebpf::programs::TcContext;
use podwire_abi::{Address, Be16, Be32, NodeConfig, Reason, Slot};

use crate::{
    forward,
    packet::{Bytes, ETH_LEN, at, read_u16, read_u32, write_u16, write_u32},
    verdict::{Drop, Outcome},
};

const ARP_LEN: usize = 28;
const ETHERNET: u16 = 1;
const IPV4: u16 = 0x0800;
/// Lengths of both kinds of address.
const LENGTHS: u16 = 0x0604;
const REQUEST: u16 = 1;
const REPLY: u16 = 2;

/// Answers a pod's question for its gateway with its host link's address. Anything else, a
/// question for another address or in another's name, a reply nobody asked for, is foreign.
#[inline(always)]
pub fn answer(ctx: &TcContext, slot: &Slot, config: &NodeConfig) -> Outcome {
    let frame = at::<{ ETH_LEN + ARP_LEN }>(ctx, 0)?;
    let field = |raw: u16| Be16::from_raw(raw).get();
    if field(read_u16::<14>(frame)) != ETHERNET
        || field(read_u16::<16>(frame)) != IPV4
        || field(read_u16::<18>(frame)) != LENGTHS
    {
        return Err(Drop(Reason::Malformed));
    }
    let sender = read_u32::<28>(frame);
    let target = read_u32::<38>(frame);
    let owns = slot.owns(&Address::from_ipv4_raw(Be32::from_raw(sender)));
    // A probe (RFC 5227) asks with the sender 0.0.0.0.
    if field(read_u16::<20>(frame)) != REQUEST
        || !sender_is_frame_source(frame)
        || !(owns || sender == 0)
        || target != config.router_ipv4.raw()
        || target == 0
    {
        return Err(Drop(Reason::ForeignArp));
    }
    let [to, to_and_from, from] = slot.to_pod.0;
    let [gateway, rest, _] = slot.from_pod.0;
    write_u32::<0>(frame, to);
    write_u32::<4>(frame, to_and_from);
    write_u32::<8>(frame, from);
    write_u16::<20>(frame, REPLY.to_be());
    write_u32::<22>(frame, gateway);
    write_u16::<26>(frame, low_half(rest));
    write_u32::<28>(frame, target);
    write_u32::<32>(frame, to);
    write_u16::<36>(frame, low_half(to_and_from));
    write_u32::<38>(frame, sender);
    forward::answer(ctx, slot, Reason::AnsweredArp)
}

/// The frame's source was checked; the sender inside must be the same.
#[inline(always)]
fn sender_is_frame_source(frame: Bytes) -> bool {
    read_u32::<22>(frame) == read_u32::<6>(frame) && read_u16::<26>(frame) == read_u16::<10>(frame)
}

/// The first two bytes, as they lie in memory.
#[inline(always)]
fn low_half(word: u32) -> u16 {
    let [a, b, ..] = word.to_ne_bytes();
    u16::from_ne_bytes([a, b])
}
