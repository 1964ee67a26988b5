//! Masquerade at uplinks: what a pod sends out of the pod network leaves under an address of the node,
//! and what comes back is the pod's again before it is routed.
//!
//! A conversation has a mapping, two entries of `NAT`, one for each direction. Everybody's packets look for
//! one; those without are somebody else's, or begin one. What outside began with a pod's own address, which
//! needs routes to pods, goes on without: `NAT_INBOUND` knows it.
//!
//! The node's own conversations and pods' mappings share the node's ports. A new mapping keeps off ports
//! that a socket of the node has; where the node begins something from a port that a mapping has towards the
//! same destination, that gets a mapping as well, with another port.

mod packet;
mod ports;
mod quoted;
mod rewrite;

use core::mem::offset_of;

use aya_ebpf::{
    bindings::{__sk_buff, BPF_NOEXIST},
    btf_maps::lpm_trie::Key,
    helpers::bpf_ktime_get_coarse_ns,
    programs::TcContext,
};
use podwire_abi::{
    Address, NatDevice, NatEntry, NatKey, Protocol, Reason, nat_direction, nat_flag, nat_tcp,
};

use self::{
    packet::{Kind, Packet, Part},
    ports::Wish,
    rewrite::End,
};
use crate::{
    maps::{NAT, NAT_DEVICES, NAT_EXCLUDED, NAT_INBOUND, NAT_PODS},
    verdict::{Drop, Outcome, Verdict},
};

/// Generic Routing Encapsulation, RFC 2784.
const GRE: Protocol = Protocol(47);
/// Encapsulating Security Payload, RFC 4303.
const ESP: Protocol = Protocol(50);

/// What leaves by an uplink.
#[inline(always)]
pub fn leave(ctx: &TcContext) -> Outcome {
    let Some(device) = device(ctx) else { return untranslated() };
    let Some(packet) = Packet::read(ctx, device.header) else { return untranslated() };
    if packet.kind == Kind::Error {
        return quoted::leave(ctx, &packet);
    }
    if packet.part == Part::Orphan {
        return if is_masqueraded(&packet) {
            Err(Drop(Reason::UnknownFragment))
        } else {
            untranslated()
        };
    }
    let key = packet.key(nat_direction::OUT);
    let entry = match NAT.get_ptr_mut(key) {
        Some(entry) => entry,
        None => {
            match nat_begin(ctx.skb.skb, &packet, device) {
                ESTABLISHED => {}
                code => return refused(code),
            }
            NAT.get_ptr_mut(key).ok_or(Drop(Reason::NatTableFull))?
        }
    };
    // SAFETY: entries are plain numbers, which other programs change as this one does.
    let entry = unsafe { &mut *entry };
    touch(ctx, &packet, &key, entry);
    if entry.address == packet.source && entry.port == packet.source_port {
        return untranslated();
    }
    rewrite::end(ctx, &packet, End::Source, &entry.address, Some(entry.port))?;
    Ok(Verdict::next(Reason::Masqueraded))
}

/// What comes by an uplink.
#[inline(always)]
pub fn arrive(ctx: &TcContext) -> Outcome {
    let Some(device) = device(ctx) else { return untranslated() };
    let Some(packet) = Packet::read(ctx, device.header) else { return untranslated() };
    if packet.kind == Kind::Error {
        return quoted::arrive(ctx, &packet);
    }
    if packet.part == Part::Orphan {
        return untranslated();
    }
    let key = packet.key(nat_direction::IN);
    if let Some(entry) = NAT.get_ptr_mut(key) {
        // SAFETY: as above.
        let entry = unsafe { &mut *entry };
        // Somebody whom a pod was connected to asks for a connection himself, with what the node serves
        // by now: the ports are the node's.
        if packet.protocol == Protocol::TCP
            && packet.kind == Kind::Opens
            && ports::has_socket(ctx, &key)
        {
            let other = key.other(entry);
            let _ = NAT.remove(key);
            let _ = NAT.remove(other);
            return untranslated();
        }
        touch(ctx, &packet, &key, entry);
        if entry.address == key.local && entry.port == key.local_port {
            return untranslated();
        }
        rewrite::end(ctx, &packet, End::Destination, &entry.address, Some(entry.port))?;
        return Ok(Verdict::next(Reason::Unmasqueraded));
    }
    if device.address(&key.local) != Some(key.local) {
        nat_inbound(&packet);
    }
    untranslated()
}

#[inline(always)]
fn untranslated() -> Outcome {
    Ok(Verdict::next(Reason::Untranslated))
}

#[inline(always)]
fn device(ctx: &TcContext) -> Option<&'static NatDevice> {
    // SAFETY: the context is valid for the whole run of the program.
    let ifindex = unsafe { (*ctx.skb.skb).ifindex };
    // SAFETY: entries are plain numbers, replaced whole.
    unsafe { NAT_DEVICES.get(ifindex) }
}

/// The packet has a mapping now.
const ESTABLISHED: u32 = 1;
/// It needs none.
const UNTRANSLATED: u32 = 0;

/// What becomes of a packet that got no mapping, for which the reason's number is the code.
#[inline(always)]
fn refused(code: u32) -> Outcome {
    const EXHAUSTED: u32 = Reason::NatPortsExhausted as u32;
    const NO_ADDRESS: u32 = Reason::NatNoAddress as u32;
    const UNSUPPORTED: u32 = Reason::NatUnsupported as u32;
    const TAKEN: u32 = Reason::NatPortTaken as u32;
    match code {
        UNTRANSLATED => untranslated(),
        EXHAUSTED => Err(Drop(Reason::NatPortsExhausted)),
        NO_ADDRESS => Err(Drop(Reason::NatNoAddress)),
        UNSUPPORTED => Err(Drop(Reason::NatUnsupported)),
        TAKEN => Err(Drop(Reason::NatPortTaken)),
        _ => Err(Drop(Reason::NatTableFull)),
    }
}

/// A packet without a mapping: one that begins a conversation, or nothing of ours. A function that the
/// verifier looks at by itself, once; see `ports::nat_choose`.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn nat_begin(
    skb: *mut __sk_buff,
    packet: *const Packet,
    device: *const NatDevice,
) -> u32 {
    // SAFETY: the verifier sees to it that callers give a context, and whole values or null.
    let (packet, device) = unsafe { (packet.as_ref(), device.as_ref()) };
    let (Some(packet), Some(device)) = (packet, device) else { return UNTRANSLATED };
    match begin(&TcContext::new(skb), packet, device) {
        Ok(code) => code,
        Err(Drop(reason)) => reason as u32,
    }
}

#[inline(always)]
fn begin(ctx: &TcContext, packet: &Packet, device: &NatDevice) -> Result<u32, Drop> {
    let key = &packet.key(nat_direction::OUT);
    let mut wish = Wish::of(key, device, seconds());
    // SAFETY: the context is valid for the whole run of the program.
    wish.back.ifindex = unsafe { (*ctx.skb.skb).ifindex };
    // SAFETY: read at once.
    if let Some(taken) = unsafe { NAT.get(&wish.arriving) }
        && !(taken.address == key.local && taken.port == key.local_port)
    {
        // The node's own packet, and its port is a mapping's.
        wish.back.flags = nat_flag::NODE;
        return establish(ctx, packet, key, &mut wish, ports::Own::Taken);
    }
    let address = device.address(&key.local);
    if address == Some(key.local) {
        note_own(ctx, packet, key, &mut wish);
        return Ok(UNTRANSLATED);
    }
    if !is_masqueraded(packet) || packet.kind == Kind::Answers || is_inbound(key) {
        return Ok(UNTRANSLATED);
    }
    wish.arriving.local = address.ok_or(Drop(Reason::NatNoAddress))?;
    establish(ctx, packet, key, &mut wish, ports::Own::Wanted)
}

/// The node's own packet, of which nothing needs to be translated. Where no socket will tell that its port
/// is in use, an entry that changes nothing does: echoes, protocols whose sockets cannot be looked
/// up, and what netfilter has given the node's address.
#[inline(always)]
fn note_own(ctx: &TcContext, packet: &Packet, key: &NatKey, wish: &mut Wish) {
    let socket = matches!(packet.protocol, Protocol::TCP | Protocol::UDP) && has_sender(ctx);
    if socket || packet.kind == Kind::Other || packet.kind == Kind::Answers {
        return;
    }
    wish.back.flags = nat_flag::NODE;
    // Without room the packet goes on; that is what it would have done anyway.
    if insert(&wish.arriving, &wish.back) != Inserted::No {
        insert(key, &wish.back);
    }
}

/// Makes a mapping, whose address is the wish's.
#[inline(always)]
fn establish(
    ctx: &TcContext,
    packet: &Packet,
    key: &NatKey,
    wish: &mut Wish,
    own: ports::Own,
) -> Result<u32, Drop> {
    match packet.protocol {
        Protocol::TCP | Protocol::UDP | Protocol::ICMP | Protocol::ICMPV6 => {
            if packet.kind == Kind::Other {
                return Err(Drop(Reason::NatUnsupported));
            }
            ports::choose(ctx, wish, own)?;
        }
        // SCTP's checksum covers the ports and would have to be computed anew (RFC 9260, 6.8).
        Protocol::SCTP | GRE | ESP => ports::keep(wish, own)?,
        _ => return Err(Drop(Reason::NatUnsupported)),
    }
    wish.back.address = wish.arriving.local;
    wish.back.port = wish.arriving.local_port;
    match insert(key, &wish.back) {
        Inserted::Yes => Ok(ESTABLISHED),
        // Another processor was faster with a packet of the same conversation.
        Inserted::There => {
            let _ = NAT.remove(&wish.arriving);
            Ok(ESTABLISHED)
        }
        Inserted::No => {
            let _ = NAT.remove(&wish.arriving);
            Err(Drop(Reason::NatTableFull))
        }
    }
}

/// Whether a packet is a pod's that leaves the pod network.
#[inline(always)]
fn is_masqueraded(packet: &Packet) -> bool {
    nat_is_masqueraded(packet) != 0
}

/// See [`is_masqueraded`]. A function that the verifier looks at by itself, once.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn nat_is_masqueraded(packet: *const Packet) -> u32 {
    // SAFETY: the verifier sees to it that callers give a whole packet or null.
    let Some(packet) = (unsafe { packet.as_ref() }) else { return 0 };
    let to = &packet.destination;
    let is = is_in_pods(&packet.source)
        && !to.is_multicast()
        && !to.is_ipv6_link_local()
        && !is_in_pods(to)
        && NAT_EXCLUDED.get(&Key::new(128, *to)).is_none();
    is.into()
}

#[inline(always)]
fn is_in_pods(address: &Address) -> bool {
    NAT_PODS.get(&Key::new(128, *address)).is_some()
}

/// Whether outside began this, with the pod's own address.
#[inline(always)]
fn is_inbound(key: &NatKey) -> bool {
    NAT_INBOUND.get_ptr(key).is_some()
}

/// Remembers that outside speaks to a pod by its own address, so that the pod's answers keep it. A mapping
/// that was made before, and that nobody has answered to, was made of such answers. A function that
/// the verifier looks at by itself, once.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn nat_inbound(packet: *const Packet) -> u32 {
    // SAFETY: the verifier sees to it that callers give a whole packet or null.
    if let Some(packet) = unsafe { packet.as_ref() } {
        note_inbound(packet);
    }
    0
}

#[inline(always)]
fn note_inbound(packet: &Packet) {
    let mut key = packet.key(nat_direction::IN);
    key.direction = nat_direction::OUT;
    if packet.kind == Kind::Other
        || packet.kind == Kind::Answers
        || is_inbound(&key)
        || !is_in_pods(&key.local)
        || is_in_pods(&key.remote)
        || NAT_EXCLUDED.get(&Key::new(128, key.remote)).is_some()
    {
        return;
    }
    let _ = NAT_INBOUND.insert(key, seconds(), 0);
    // SAFETY: read at once.
    let Some(entry) = (unsafe { NAT.get(key) }) else { return };
    let other = key.other(entry);
    // SAFETY: as above.
    if unsafe { NAT.get(other) }.is_some_and(|other| other.packets == 0) {
        let _ = NAT.remove(key);
        let _ = NAT.remove(other);
    }
}

/// Counts a packet of a direction, and notes what it says.
#[inline(always)]
fn touch(ctx: &TcContext, packet: &Packet, key: &NatKey, entry: &mut NatEntry) {
    entry.seen = seconds();
    // SAFETY: aligned words of a live map value or of this program's stack.
    unsafe {
        core::intrinsics::atomic_xadd::<u64, u64, { core::intrinsics::AtomicOrdering::Relaxed }>(
            &raw mut entry.packets,
            1,
        );
        core::intrinsics::atomic_xadd::<u64, u64, { core::intrinsics::AtomicOrdering::Relaxed }>(
            &raw mut entry.bytes,
            u64::from(ctx.len()),
        );
    }
    let flags = packet.tcp;
    if flags == 0 {
        return;
    }
    const OVER: u8 = nat_tcp::FIN | nat_tcp::RST;
    if flags & (nat_tcp::SYN | nat_tcp::ACK) == nat_tcp::SYN {
        let over = entry.tcp & OVER != 0;
        entry.tcp = nat_tcp::SYN;
        // The ports are used again, for a new connection.
        if over && let Some(other) = NAT.get_ptr_mut(key.other(entry)) {
            // SAFETY: one byte of a live map value.
            unsafe { (*other).tcp = 0 };
        }
        return;
    }
    let mut seen = entry.tcp | flags;
    if flags & (OVER | nat_tcp::SYN) == 0 {
        // A reset that was not believed: traffic goes on.
        seen &= !nat_tcp::RST;
    }
    if seen != entry.tcp {
        entry.tcp = seen;
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Inserted {
    Yes,
    /// Somebody else's entry is there.
    There,
    No,
}

#[inline(always)]
fn insert(key: &NatKey, entry: &NatEntry) -> Inserted {
    const EEXIST: i64 = -17;
    match NAT.insert(key, entry, u64::from(BPF_NOEXIST)) {
        Ok(()) => Inserted::Yes,
        Err(error) if i64::from(error) == EEXIST => Inserted::There,
        Err(_) => Inserted::No,
    }
}

/// `CLOCK_MONOTONIC`, as exact as the last tick of the timer.
#[inline(always)]
fn seconds() -> u32 {
    // SAFETY: a helper call without arguments.
    (unsafe { bpf_ktime_get_coarse_ns() } / 1_000_000_000) as u32
}

/// Whether a socket of this node has sent the packet.
#[inline(always)]
fn has_sender(ctx: &TcContext) -> bool {
    let socket: u64;
    // SAFETY: a load from the context, which is valid for the whole run of the program; written in
    // assembly, since the field lies where the binding has a union.
    unsafe {
        core::arch::asm!(
            "{socket} = *(u64 *)({ctx} + {at})",
            ctx = in(reg) ctx.skb.skb,
            socket = lateout(reg) socket,
            at = const offset_of!(__sk_buff, __bindgen_anon_2),
            options(pure, readonly, nostack, preserves_flags),
        );
    }
    socket != 0
}
