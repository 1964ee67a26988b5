//! The entries of flows: how they begin, are confirmed, counted, and end.

use podwire_abi::{
    Address, Flow, FlowEvent, FlowKey, NodeState, Pending, Protocol, Verdict, direction, recent,
    tcp_seen, verdict_flag,
};

use super::{Known, Question, Under};
use crate::{
    maps::{FLOW_EVENTS, FLOWS, PENDING, SCRATCH, Scratch},
    packet::Kind,
};

/// Writes down what was decided, and what the packet says about its flow.
#[inline(always)]
pub(super) fn remember(question: &Question, known: Known, verdict: Verdict, state: &NodeState) {
    if !known.pending.is_null() {
        go_on(question, known.pending, known.under, verdict, state);
    } else if known.flow.is_null() {
        begin(question, verdict, state);
    } else {
        // SAFETY: one aligned word of a live map value.
        unsafe { (&raw mut (*known.flow).verdict).write_volatile(verdict) };
        count(known.flow, question.len, state);
        // SAFETY: as above.
        if question.shown & !unsafe { (*known.flow).tcp } != 0 {
            note(question);
        }
    }
}

#[inline(never)]
fn begin(question: &Question, verdict: Verdict, state: &NodeState) {
    if question.kind == Kind::Syn
        && let Some(flow) = FLOWS.get_ptr_mut(&question.key)
    {
        // SAFETY: one aligned word of a live map value.
        let last = unsafe { (&raw const (*flow).verdict).read_volatile() };
        let _ = FLOWS.remove(other(&question.key, last, question.local));
        let _ = FLOWS.remove(question.key);
    }
    let Some(scratch) = SCRATCH.get_ptr_mut(0) else { return };
    // SAFETY: this CPU's own memory, which nobody else uses before this program ends.
    let pending = unsafe { &mut (*scratch).pending };
    *pending = Pending {
        verdict,
        seen: state.seconds,
        created: state.seconds,
        tcp: question.shown,
        reserved: 0,
        packets: 1,
        bytes: question.len.into(),
        reply_packets: 0,
        reply_bytes: 0,
    };
    // A full LRU table makes room by itself.
    let kept = PENDING.insert(question.key, &*pending, 0);
    event(if kept.is_ok() { FlowEvent::Began } else { FlowEvent::Unkept });
}

/// A flow that is not confirmed has one more packet.
#[inline(never)]
fn go_on(
    question: &Question,
    pending: *mut Pending,
    under: Under,
    verdict: Verdict,
    state: &NodeState,
) {
    let is_reply = verdict.has(verdict_flag::REPLY);
    let shown = if is_reply { question.shown << tcp_seen::PEER } else { question.shown };
    let len = u64::from(question.len);
    // SAFETY: aligned words of a live map value; two CPUs that write the time write the same, or nearly,
    // and the rest is added atomically.
    let before = unsafe {
        (*pending).seen = state.seconds;
        let before = (*pending).tcp;
        if shown & !before != 0 {
            atomic_or(&raw mut (*pending).tcp, shown);
        }
        if is_reply {
            atomic_add(&raw mut (*pending).reply_packets, 1);
            atomic_add(&raw mut (*pending).reply_bytes, len);
        } else {
            (&raw mut (*pending).verdict).write_volatile(verdict);
            atomic_add(&raw mut (*pending).packets, 1);
            atomic_add(&raw mut (*pending).bytes, len);
        }
        before
    };
    let is_confirmed = if question.key.protocol == Protocol::TCP {
        const ENDED: u32 = tcp_seen::FIN | tcp_seen::FIN << tcp_seen::PEER;
        let others = if is_reply { before & 0xff } else { before >> tcp_seen::PEER };
        question.shown & tcp_seen::ACK != 0
            && others & (tcp_seen::SYN | tcp_seen::ACK) != 0
            && before & ENDED != ENDED
    } else {
        is_reply
    };
    if is_confirmed {
        confirm(question, pending, under, verdict);
    }
}

/// Both sides have spoken: the flow moves to where nothing is evicted.
#[inline(always)]
fn confirm(question: &Question, pending: *mut Pending, under: Under, verdict: Verdict) {
    let Some(scratch) = SCRATCH.get_ptr_mut(0) else { return };
    // SAFETY: this CPU's own memory, which nobody else uses before this program ends.
    let Scratch { there, back, there_key, back_key, .. } = unsafe { &mut *scratch };
    // SAFETY: a live map value of plain numbers.
    let sums = unsafe { &*pending };
    // A reset after which both sides go on was none; the next one may be.
    let tcp = sums.tcp & !(tcp_seen::RST | tcp_seen::RST << tcp_seen::PEER);
    let (verdict_there, verdict_back);
    if under == Under::Own {
        *there_key = question.key;
        *back_key = other(&question.key, verdict, question.local);
        verdict_there = verdict;
        verdict_back = back_of(verdict, there_key, back_key);
    } else {
        *back_key = question.key;
        *there_key = if under == Under::Turned {
            question.key.turned()
        } else {
            question.key.mirrored(verdict.peer_slot() as u16, question.local)
        };
        verdict_there = sums.verdict;
        verdict_back = verdict;
    }
    *there = Flow {
        verdict: verdict_there,
        recent: 0,
        packets: sums.packets,
        bytes: sums.bytes,
        seen: sums.seen,
        created: sums.created,
        tcp,
        reserved: 0,
    };
    *back = Flow {
        verdict: verdict_back,
        recent: 0,
        packets: sums.reply_packets,
        bytes: sums.reply_bytes,
        seen: sums.seen,
        created: sums.created,
        tcp: tcp_seen::turned(tcp),
        reserved: 0,
    };
    if FLOWS.insert(&*there_key, &*there, 0).is_err() {
        event(FlowEvent::TableFull);
    } else if FLOWS.insert(&*back_key, &*back, 0).is_err() {
        let _ = FLOWS.remove(&*there_key);
        event(FlowEvent::TableFull);
    } else {
        let _ = PENDING.remove(&*there_key);
        event(FlowEvent::Confirmed);
    }
}

/// The verdict on the replies of a flow, which rests on what the flow's own rests on.
#[inline(always)]
fn back_of(verdict: Verdict, key: &FlowKey, reply_key: &FlowKey) -> Verdict {
    let stack = verdict_flag::TO_STACK | verdict_flag::BY_FLOW;
    let (flags, number) = if key.direction == direction::RECEIVED {
        // What came out of the stack is answered into it.
        (verdict.flags() | stack, verdict.peer_slot())
    } else if reply_key.direction == direction::RECEIVED {
        (verdict.flags() & !stack, verdict.peer_slot())
    } else {
        (verdict.flags() & !stack, u32::from(key.endpoint))
    };
    Verdict::new(verdict.stamp(), reply_key.tag(), flags | verdict_flag::REPLY, number)
}

/// The other direction of a flow, by the verdict on this one.
#[inline(always)]
fn other(key: &FlowKey, verdict: Verdict, local: Address) -> FlowKey {
    let is_straight = key.direction == direction::SENT
        && verdict.has(verdict_flag::LOCAL_PEER)
        && !verdict.has(verdict_flag::TO_STACK);
    if is_straight { key.mirrored(verdict.peer_slot() as u16, local) } else { key.turned() }
}

/// A TCP packet of a confirmed flow shows what its direction has not shown before. Global as [`decide`] is.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn note(question: *const Question) -> u64 {
    // SAFETY: as of `decide`.
    let Some(question) = (unsafe { question.as_ref() }) else { return 0 };
    let Some(flow) = FLOWS.get_ptr_mut(&question.key) else { return 0 };
    // SAFETY: aligned words of a live map value; the bits are added atomically.
    let (verdict, before) = unsafe {
        atomic_or(&raw mut (*flow).tcp, question.shown);
        ((&raw const (*flow).verdict).read_volatile(), (*flow).tcp)
    };
    let Some(scratch) = SCRATCH.get_ptr_mut(0) else { return 0 };
    // SAFETY: this CPU's own memory, which nobody else uses before this program ends.
    let Scratch { pending, back_key: other_key, .. } = unsafe { &mut *scratch };
    *other_key = other(&question.key, verdict, question.local);
    let others = FLOWS.get_ptr_mut(&*other_key);
    if let Some(others) = others {
        // SAFETY: as above.
        unsafe { atomic_or(&raw mut (*others).tcp, question.shown << tcp_seen::PEER) };
    }
    let is_reset = question.shown & tcp_seen::RST != 0;
    let is_closed =
        question.shown & tcp_seen::FIN != 0 && before & tcp_seen::FIN << tcp_seen::PEER != 0;
    if !is_reset && !is_closed {
        return 0;
    }
    // What is still to come finds the flow among those that may be forgotten.
    let tcp =
        if is_reset { tcp_seen::RST } else { tcp_seen::FIN | tcp_seen::FIN << tcp_seen::PEER };
    // SAFETY: a live map value of plain numbers.
    let own = unsafe { &*flow };
    let (recent_packets, recent_bytes) = recent::split(own.recent);
    let (packets, bytes) = (own.packets + recent_packets, own.bytes + recent_bytes);
    let (mut other_packets, mut other_bytes, mut other_verdict) = (0, 0, Verdict(0));
    if let Some(others) = others {
        // SAFETY: as above.
        let others = unsafe { &*others };
        let (recent_packets, recent_bytes) = recent::split(others.recent);
        other_packets = others.packets + recent_packets;
        other_bytes = others.bytes + recent_bytes;
        other_verdict = others.verdict;
    }
    let is_reply = verdict.has(verdict_flag::REPLY);
    *pending = Pending {
        verdict: if is_reply { other_verdict } else { verdict },
        seen: own.seen,
        created: own.created,
        tcp,
        reserved: 0,
        packets: if is_reply { other_packets } else { packets },
        bytes: if is_reply { other_bytes } else { bytes },
        reply_packets: if is_reply { packets } else { other_packets },
        reply_bytes: if is_reply { bytes } else { other_bytes },
    };
    if !is_reply {
        let _ = PENDING.insert(question.key, &*pending, 0);
    } else if others.is_some() {
        // Only the direction that began it knows what was decided about it.
        let _ = PENDING.insert(&*other_key, &*pending, 0);
    }
    let _ = FLOWS.remove(&*other_key);
    let _ = FLOWS.remove(question.key);
    event(FlowEvent::Ended);
    0
}

/// One more packet of a confirmed flow.
#[inline(always)]
pub fn count(flow: *mut Flow, len: u32, state: &NodeState) {
    // SAFETY: aligned words of a live map value; sums are added to atomically, and two CPUs that write the
    // time write the same, or nearly.
    unsafe {
        if (*flow).seen != state.seconds {
            (*flow).seen = state.seconds;
        }
        let word = atomic_add(&raw mut (*flow).recent, recent::one(len.into()));
        if word >> recent::PACKET_SHIFT >= recent::SPILL {
            let (packets, bytes) = recent::split(atomic_take(&raw mut (*flow).recent));
            atomic_add(&raw mut (*flow).packets, packets);
            atomic_add(&raw mut (*flow).bytes, bytes);
        }
    }
}

#[inline(always)]
pub(super) fn event(event: FlowEvent) {
    if let Some(counter) = FLOW_EVENTS.get_ptr_mut(event as u32) {
        // SAFETY: this CPU's own counter; a lost count would be the worst of it.
        unsafe { *counter += 1 };
    }
}

/// # Safety
/// The word must be an aligned one of a live map value.
#[inline(always)]
unsafe fn atomic_add(word: *mut u64, by: u64) -> u64 {
    use core::intrinsics::{AtomicOrdering::Relaxed, atomic_xadd};
    // SAFETY: the caller's promise.
    unsafe { atomic_xadd::<u64, u64, { Relaxed }>(word, by) }
}

/// # Safety
/// As of [`atomic_add`].
#[inline(always)]
unsafe fn atomic_take(word: *mut u64) -> u64 {
    use core::intrinsics::{AtomicOrdering::SeqCst, atomic_xchg};
    // SAFETY: the caller's promise.
    unsafe { atomic_xchg::<u64, { SeqCst }>(word, 0) }
}

/// # Safety
/// As of [`atomic_add`].
#[inline(always)]
unsafe fn atomic_or(word: *mut u32, bits: u32) {
    use core::intrinsics::AtomicOrdering::Relaxed;
    // SAFETY: the caller's promise.
    unsafe { core::intrinsics::atomic_or::<u32, u32, { Relaxed }>(word, bits) };
}
