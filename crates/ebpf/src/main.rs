//! podwire's kernel programs: what happens to a packet between a pod, its neighbours on the node
//! and the host stack.
//!
//! | program | attached at | judges |
//! |---|---|---|
//! | [`from_container`] | host link, TC ingress | what a pod sends |
//! | [`to_container`] | host link, TC egress | what reaches a pod through its host link's queue |
//! | [`from_host`] | `podwire_net`, TC ingress | what the host stack sends to pods |
//! | [`to_netdev`] | uplink, TC egress | what leaves the node |
//! | [`from_netdev`] | uplink, TC ingress | what comes to it |
//!
//! One set of programs is loaded for a node and attached to every link; what differs between
//! endpoints is in the maps. Every packet ends in exactly one counter of `METRICS`.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch, core_intrinsics)]
#![expect(internal_features, reason = "Rust has no atomic addition of its own on this target")]

mod arp;
mod fast;
mod flow;
mod forward;
mod maps;
mod nat;
mod neighbour;
mod packet;
mod policy;
mod verdict;

use aya_ebpf::{bindings::__sk_buff, macros::classifier, programs::TcContext};
use podwire_abi::{Address, Hook, MARK_DECIDED, NodeConfig, Reason, Slot, direction, slot_flag};

use crate::{
    fast::Looked,
    flow::Judged,
    packet::{ETH_ARP, ETH_IPV4, ETH_IPV6, ETH_LEN, Frame, Packet},
    verdict::{Drop, Outcome, Verdict},
};

/// Low bits of a link's number that name its slot, set before loading: one less than a power of two
/// that is at most the number of slots.
#[unsafe(no_mangle)]
static SLOT_MASK: u32 = 0;

/// What a pod sends, on its host link.
#[classifier]
pub fn from_container(ctx: TcContext) -> i32 {
    verdict::account(&ctx, Hook::FromContainer, judge_from_container(&ctx))
}

/// What reaches a pod through its host link's queue: our own deliveries and answers, which are
/// decided already, and what a host process or a foreign program sends there.
#[classifier]
pub fn to_container(ctx: TcContext) -> i32 {
    verdict::account(&ctx, Hook::ToContainer, judge_to_container(&ctx))
}

/// What the host stack sends to pods, on `podwire_net`.
#[classifier]
pub fn from_host(ctx: TcContext) -> i32 {
    verdict::account(&ctx, Hook::FromHost, judge_from_host(&ctx))
}

/// What leaves the node, on an uplink.
#[classifier]
pub fn to_netdev(ctx: TcContext) -> i32 {
    verdict::account(&ctx, Hook::ToNetdev, nat::leave(&ctx))
}

/// What comes to the node, on an uplink.
#[classifier]
pub fn from_netdev(ctx: TcContext) -> i32 {
    verdict::account(&ctx, Hook::FromNetdev, nat::arrive(&ctx))
}

#[inline(always)]
fn judge_from_container(ctx: &TcContext) -> Outcome {
    let (number, slot) = slot_of_link(ctx)?;
    let looked = match fast::from_container(ctx, number, slot) {
        Ok(outcome) => return outcome,
        Err(looked) => looked,
    };
    let skb = ctx.skb.skb;
    let mut word = if looked != Looked::Unusual && slot.flags & slot_flag::CHAINED == 0 {
        look_at_ordinary(skb, number, looked as u32)
    } else {
        match read_sent(skb, number) {
            READ => look_at_read(skb, number),
            word => return verdict::of_word(word),
        }
    };
    if word >= ASKED {
        word = flow::decide(word - ASKED);
    }
    match word {
        number @ 0..256 => Err(Drop(verdict::reason(number as u8))),
        word => verdict::of_word(send(skb, number, word)),
    }
}

// What an endpoint sends and the fast path has no answer for, step by step. These are global functions to the kernel, which
// verifies them once and by themselves; without them the fast path is short, and what it has at hand stays in registers.

/// A packet has been read into this CPU's `SCRATCH`. No outcome has this word.
const READ: u64 = u64::MAX;

/// Reads what the endpoint in a slot sends to its gateway and beyond, and answers [`READ`]; or what becomes of it, if that
/// is settled between the two.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn read_sent(skb: *mut __sk_buff, number: u32) -> u64 {
    let Some(scratch) = maps::SCRATCH.get_ptr_mut(0) else { return Reason::Unchangeable as u64 };
    // SAFETY: this CPU's own memory, which nobody else uses before this program ends.
    let packet = unsafe { &mut (*scratch).packet };
    match try_read_sent(&TcContext::new(skb), number, packet) {
        Ok(()) => READ,
        Err(outcome) => verdict::to_word(outcome),
    }
}

#[inline(always)]
fn try_read_sent(ctx: &TcContext, number: u32, packet: &mut Packet) -> Result<(), Outcome> {
    let slot = maps::SLOTS.get(number).ok_or(Err(Drop(Reason::UnknownLink)))?;
    if slot.flags & slot_flag::CHAINED != 0 {
        return Err(judge_from_chained(ctx, slot));
    }
    let config = config().map_err(Err)?;
    let frame = Frame::new(ctx).map_err(Err)?;
    let ethernet = frame.at::<0, ETH_LEN>().map_err(Err)?;
    let ethertype = packet::ethertype(ctx, ethernet).map_err(Err)?;
    let is_to_many = match packet::compare_ethernet(ethernet, &slot.from_pod).map_err(Err)? {
        packet::Ethernet::ToGateway => false,
        packet::Ethernet::ToMany => true,
        packet::Ethernet::ToOther => return Err(Err(Drop(Reason::NotForGateway))),
    };
    match ethertype {
        ETH_IPV4 => *packet = packet::parse_ipv4(ctx, frame).map_err(Err)?,
        ETH_IPV6 => {
            *packet = packet::parse_ipv6(ctx, frame).map_err(Err)?;
            if let Some(outcome) = neighbour::judge(ctx, packet, slot, config) {
                return Err(outcome);
            }
        }
        ETH_ARP => return Err(arp::answer(ctx, slot, config)),
        _ => return Err(Err(Drop(Reason::UnsupportedProtocol))),
    }
    check_source(packet, slot).map_err(Err)?;
    if is_to_many {
        return Err(Err(Drop(Reason::Multicast)));
    }
    check_destination(packet).map_err(Err)?;
    packet.read_ports(ctx, frame).map_err(Err)
}

/// From here on words stand for what [`flow::decide`] is asked, and not for what it answers: no ticket is that late.
const ASKED: u64 = u64::MAX << 8;

/// The verdict's word by what is known of a packet's flow, or what [`flow::decide`] is asked, above [`ASKED`]; or a reason to
/// drop. The packet is the one that [`read_sent`] has read.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn look_at_read(skb: *mut __sk_buff, number: u32) -> u64 {
    let Some(scratch) = maps::SCRATCH.get_ptr_mut(0) else { return Reason::Unchangeable as u64 };
    // SAFETY: this CPU's own memory, which nobody else uses before this program ends.
    let packet = unsafe { &(*scratch).packet };
    look_at(&TcContext::new(skb), packet, number, false)
}

/// The same of an ordinary packet; `looked` is a number of [`Looked`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn look_at_ordinary(skb: *mut __sk_buff, number: u32, looked: u32) -> u64 {
    let ctx = TcContext::new(skb);
    let read = || {
        config()?;
        let packet = fast::read(Frame::linear(&ctx))?;
        check_destination(&packet)?;
        Ok(packet)
    };
    match read() {
        Ok(packet) => look_at(&ctx, &packet, number, looked == Looked::InVain as u32),
        Err(Drop(reason)) => reason as u64,
    }
}

#[inline(always)]
fn look_at(ctx: &TcContext, packet: &Packet, number: u32, is_new: bool) -> u64 {
    let Some(slot) = maps::SLOTS.get(number) else { return Reason::UnknownLink as u64 };
    match flow::look(ctx, packet, direction::SENT, number, slot, is_new) {
        Ok(Judged::Known(verdict)) => verdict.0,
        Ok(Judged::Asked(about)) => ASKED + about,
        Err(Drop(reason)) => reason as u64,
    }
}

/// Sends the packet where the verdict of that word says.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn send(skb: *mut __sk_buff, number: u32, word: u64) -> u64 {
    let ctx = TcContext::new(skb);
    let send = || {
        let slot = maps::SLOTS.get(number).ok_or(Drop(Reason::UnknownLink))?;
        forward::send(&ctx, Frame::linear(&ctx), slot, config()?, podwire_abi::Verdict(word))
    };
    verdict::to_word(send())
}

/// Packets to groups and on the link are not routed.
#[inline(always)]
fn check_destination(packet: &Packet) -> Result<(), Drop> {
    let destination = packet.destination.address();
    if destination.is_multicast() {
        return Err(Drop(Reason::Multicast));
    }
    if destination.is_ipv6_link_local() {
        return Err(Drop(Reason::LinkLocal));
    }
    Ok(())
}

/// What a pod sends whose interface is another plugin's: how it finds its neighbours and gateway is that
/// plugin's affair, where its packets say they come from is ours.
#[inline(always)]
fn judge_from_chained(ctx: &TcContext, slot: &Slot) -> Outcome {
    let frame = Frame::new(ctx)?;
    let packet = match packet::ethertype(ctx, frame.at::<0, ETH_LEN>()?)? {
        ETH_IPV4 => packet::parse_ipv4(ctx, frame)?,
        ETH_IPV6 => packet::parse_ipv6(ctx, frame)?,
        _ => return Ok(Verdict::next(Reason::PassedToLink)),
    };
    let source = packet.source.address();
    // Before it has an address, and among neighbours, a host speaks otherwise (RFC 2131, RFC 4862).
    let nobody = source.is_unspecified() || source.is_ipv4() && source.ipv4_raw().raw() == 0;
    if !slot.owns(&source) && !nobody && !source.is_ipv6_link_local() {
        return Err(Drop(Reason::SpoofedAddress));
    }
    Ok(Verdict::next(Reason::PassedToLink))
}

#[inline(always)]
fn judge_to_container(ctx: &TcContext) -> Outcome {
    // SAFETY: the context is valid for the whole run of the program.
    if unsafe { (*ctx.skb.skb).mark } == MARK_DECIDED {
        return Ok(Verdict::next(Reason::Passed));
    }
    let (number, slot) = slot_of_link(ctx)?;
    if slot.flags & slot_flag::CHAINED != 0 {
        return Ok(Verdict::next(Reason::Passed));
    }
    let frame = Frame::new(ctx)?;
    let mut packet = match packet::ethertype(ctx, frame.at::<0, ETH_LEN>()?)? {
        ETH_IPV4 => packet::parse_ipv4(ctx, frame)?,
        ETH_IPV6 => packet::parse_ipv6(ctx, frame)?,
        ETH_ARP => return Ok(Verdict::next(Reason::Passed)),
        _ => return Err(Drop(Reason::UnsupportedProtocol)),
    };
    if packet.destination.address().is_multicast() {
        return Err(Drop(Reason::Multicast));
    }
    if !packet.destination.is_of(slot) {
        return Err(Drop(Reason::UnknownDestination));
    }
    if neighbour::is_discovery(ctx, &packet)? {
        return Ok(Verdict::next(Reason::Passed));
    }
    packet.read_ports(ctx, frame)?;
    flow::judge(ctx, &packet, direction::RECEIVED, number, slot)?;
    Ok(Verdict::next(Reason::Passed))
}

#[inline(always)]
fn judge_from_host(ctx: &TcContext) -> Outcome {
    let frame = Frame::new(ctx)?;
    let mut packet = match packet::ethertype(ctx, frame.at::<0, ETH_LEN>()?)? {
        ETH_IPV4 => packet::parse_ipv4(ctx, frame)?,
        ETH_IPV6 => packet::parse_ipv6(ctx, frame)?,
        _ => return Err(Drop(Reason::UnsupportedProtocol)),
    };
    if packet.destination.address().is_multicast() {
        return Err(Drop(Reason::Multicast));
    }
    let destination = packet.destination.address();
    let holder = forward::holder(&destination).ok_or(Drop(Reason::UnknownDestination))?;
    let slot = forward::endpoint(holder, &destination)?;
    packet.read_ports(ctx, frame)?;
    flow::judge(ctx, &packet, direction::RECEIVED, holder.slot, slot)?;
    forward::deliver_from_stack(ctx, frame, slot)
}

/// A pod sends from its own addresses only.
#[inline(always)]
fn check_source(packet: &Packet, slot: &Slot) -> Result<(), Drop> {
    if packet.source.is_of(slot) { Ok(()) } else { Err(Drop(Reason::SpoofedAddress)) }
}

/// The endpoint behind the link that the packet is at, and the number of its slot. Most endpoints have the slot that the low bits
/// of their link's number name; where two links would share one, the later is found by its number.
#[inline(always)]
fn slot_of_link(ctx: &TcContext) -> Result<(u32, &'static Slot), Drop> {
    // SAFETY: the context is valid for the whole run of the program.
    let ifindex = unsafe { (*ctx.skb.skb).ifindex };
    // SAFETY: a static of this program; volatile, since the loader sets it.
    let mask = unsafe { core::ptr::read_volatile(&raw const SLOT_MASK) };
    if let Some(slot) = maps::SLOTS.get(ifindex & mask)
        && slot.ifindex == ifindex
        && slot.is_taken()
    {
        return Ok((ifindex & mask, slot));
    }
    // SAFETY: entries are plain numbers, replaced whole.
    let &number = unsafe { maps::LINKS.get(ifindex) }.ok_or(Drop(Reason::UnknownLink))?;
    match maps::SLOTS.get(number) {
        Some(slot) if slot.is_taken() => Ok((number, slot)),
        _ => Err(Drop(Reason::UnknownLink)),
    }
}

#[inline(always)]
fn config() -> Result<&'static NodeConfig, Drop> {
    match maps::CONFIG.get(0) {
        Some(config) if config.host_ifindex != 0 => Ok(config),
        _ => Err(Drop(Reason::NotReady)),
    }
}

/// Whether `address` is the pods' gateway.
#[inline(always)]
fn is_router(config: &NodeConfig, address: &Address) -> bool {
    *address == config.router_ipv6 && !address.is_unspecified()
}

// The kernel reads the licence from this section; helpers marked GPL-only need it.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[cfg(not(test))]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
