//! Stack symmetry: a flow goes through the host stack in both directions or in none.
//!
//! The host may translate a connection (port mappings, kube-proxy): pod A speaks to a node port,
//! the stack makes pod B the destination. B's replies are addressed to A, on the same node, and
//! would go there straight, past the stack that must translate them back. So a packet from one
//! local endpoint that comes out of the stack leaves an entry for the other direction, and that
//! direction then goes to the stack.

use aya_ebpf::{helpers::bpf_jiffies64, programs::TcContext};
use podwire_abi::{FlowEntry, FlowKey, IpcacheEntry, Protocol};

use crate::{
    maps::{FLOW_SENDERS, FLOWS, IPCACHE},
    packet::{Fragment, Kind, Packet},
};

/// Whether a packet that a pod sends belongs to a flow that the stack carries.
///
/// A packet that opens a flow is judged in its own direction: what an earlier flow with the same
/// ports left behind is forgotten. UDP has no such packet; there, a flow whose other direction is
/// the stack's is the stack's too, which is always right, if slower.
#[inline(always)]
pub fn belongs_to_stack(ctx: &TcContext, packet: &Packet) -> bool {
    match packet.kind {
        Kind::Opens => {
            // Not being there is the normal case.
            let _ = FLOWS.remove(packet.key);
            let _ = FLOWS.remove(packet.key.reversed());
            false
        }
        Kind::Error => packet.quoted_flow(ctx).is_some_and(|key| applies(ctx, &key)),
        Kind::Within if packet.key.protocol == Protocol::UDP => {
            applies(ctx, &packet.key) || is_known(&packet.key.reversed())
        }
        Kind::Within => applies(ctx, &packet.key),
    }
}

/// Whether the table may hold a flow that one of these endpoints sends. Most endpoints never have one,
/// and their packets need not look for it.
#[inline(always)]
pub fn may_be_known(sender: u32, receiver: u32) -> bool {
    is_flow_sender(sender) || is_flow_sender(receiver)
}

#[inline(always)]
fn is_flow_sender(slot: u32) -> bool {
    FLOW_SENDERS.get(slot).is_some_and(|&known| known != 0)
}

/// Notes that a packet to a pod came out of the stack, if it is another local pod's. `receiver` is the
/// slot of the pod, which sends the flow that is noted.
#[inline(always)]
pub fn came_from_stack(packet: &Packet, receiver: u32) {
    if packet.kind == Kind::Error || matches!(packet.fragment, Fragment::Later(_)) {
        return;
    }
    // SAFETY: read at once.
    let sender = unsafe { IPCACHE.get(packet.key.source) };
    if !sender.is_some_and(|entry| entry.slot != IpcacheEntry::NO_SLOT) {
        return;
    }
    // Before the entry is there, so that no packet misses it.
    if let Some(known) = FLOW_SENDERS.get_ptr_mut(receiver) {
        // SAFETY: one aligned word, to which programs write nothing else.
        unsafe { known.write_volatile(1) };
    }
    let key = packet.key.reversed();
    // SAFETY: a helper call without arguments.
    let now = unsafe { bpf_jiffies64() };
    if let Some(entry) = FLOWS.get_ptr_mut(key) {
        // SAFETY: one aligned word; whichever CPU writes last is right.
        unsafe { (*entry).seen = now };
    } else {
        // A full LRU table makes room by itself.
        let _ = FLOWS.insert(key, FlowEntry { packets: 0, bytes: 0, seen: now }, 0);
    }
}

#[inline(always)]
fn applies(ctx: &TcContext, key: &FlowKey) -> bool {
    let Some(entry) = FLOWS.get_ptr_mut(key) else { return false };
    // SAFETY: the counters are aligned words of a live map value, added to atomically.
    unsafe {
        core::intrinsics::atomic_xadd::<u64, u64, { core::intrinsics::AtomicOrdering::Relaxed }>(
            &raw mut (*entry).packets,
            1,
        );
        core::intrinsics::atomic_xadd::<u64, u64, { core::intrinsics::AtomicOrdering::Relaxed }>(
            &raw mut (*entry).bytes,
            u64::from(ctx.len()),
        );
    }
    true
}

#[inline(always)]
fn is_known(key: &FlowKey) -> bool {
    FLOWS.get_ptr(key).is_some()
}
