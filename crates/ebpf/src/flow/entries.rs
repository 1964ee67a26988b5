//! The entries of flows: how they begin, are confirmed, counted, and end.

use podwire_abi::{
    Address, Flow, FlowEvent, FlowKey, NodeState, PendingEntry, Protocol, Verdict, direction,
    recent, tcp_seen, verdict_flag,
};

use super::{
    Known, Question,
    table::{self, Found, Put},
};
use crate::{
    maps::{FLOW_EVENTS, SCRATCH, Scratch},
    packet::Kind,
};

/// Writes down what was decided, and what the packet says about its flow.
#[inline(always)]
pub(super) fn remember(question: &Question, known: Known, verdict: Verdict, state: &NodeState) {
    match known {
        Known::Nothing => begin(question, verdict, state),
        Known::Flow => {
            let Some(found) = table::confirmed(&question.sides.key) else { return };
            if verdict != found.verdict {
                table::exchange(found.value.cast(), found.verdict, verdict);
            }
            count(found.value, question.len, state);
            // SAFETY: an aligned word of a live map value.
            if question.shown & !unsafe { (*found.value).tcp() } != 0 {
                note(question);
            }
        }
        Known::Pending | Known::Turned | Known::Mirrored => {
            go_on(question, known, verdict, state);
        }
    }
}

#[inline(never)]
fn begin(question: &Question, verdict: Verdict, state: &NodeState) {
    if question.kind == Kind::Syn
        && let Some(found) = table::confirmed(&question.sides.key)
    {
        table::forget_confirmed(&other(&question.sides.key, found.verdict, question.sides.local));
        table::forget_confirmed(&question.sides.key);
    }
    let Some(scratch) = SCRATCH.get_ptr_mut(0) else { return };
    // SAFETY: this CPU's own memory, which nobody else uses before this program ends.
    let pending = unsafe { &mut (*scratch).pending };
    *pending = PendingEntry {
        key: question.sides.key,
        created: state.seconds,
        tcp: question.shown,
        packets: 1,
        bytes: question.len.into(),
        reply_packets: 0,
        reply_bytes: 0,
    };
    match table::put_unconfirmed(&question.sides, pending, state.seconds, verdict) {
        Put::Kept => event(FlowEvent::Began),
        Put::Evicting => {
            event(FlowEvent::Began);
            event(FlowEvent::Evicted);
        }
        Put::NoRoom | Put::Raced => event(FlowEvent::Unkept),
    }
}

/// A flow that is not confirmed has one more packet.
#[inline(never)]
fn go_on(question: &Question, known: Known, verdict: Verdict, state: &NodeState) {
    let Some(scratch) = SCRATCH.get_ptr_mut(0) else { return };
    // SAFETY: this CPU's own memory, which nobody else uses before this program ends.
    let scratch = unsafe { &mut *scratch };
    scratch.there_key = match known {
        Known::Turned => question.sides.key.turned(),
        Known::Mirrored => {
            question.sides.key.mirrored(verdict.peer_slot() as u16, question.sides.local)
        }
        _ => question.sides.key,
    };
    let Some(found) = table::unconfirmed(&scratch.there_key, &question.sides) else { return };
    let pending = found.entry();
    let is_reply = verdict.has(verdict_flag::REPLY);
    let shown = if is_reply { question.shown << tcp_seen::PEER } else { question.shown };
    let len = u64::from(question.len);
    // SAFETY: aligned words of a live map value; two CPUs that write the time write the same, or nearly,
    // and the rest is added atomically.
    let before = unsafe {
        found.seen().write_volatile(state.seconds);
        let before = (*pending).tcp;
        if shown & !before != 0 {
            atomic_or(&raw mut (*pending).tcp, shown);
        }
        if is_reply {
            atomic_add(&raw mut (*pending).reply_packets, 1);
            atomic_add(&raw mut (*pending).reply_bytes, len);
        } else {
            found.replace_verdict(verdict);
            atomic_add(&raw mut (*pending).packets, 1);
            atomic_add(&raw mut (*pending).bytes, len);
        }
        before
    };
    let is_confirmed = if question.sides.key.protocol == Protocol::TCP {
        const ENDED: u32 = tcp_seen::FIN | tcp_seen::FIN << tcp_seen::PEER;
        let others = if is_reply { before & 0xff } else { before >> tcp_seen::PEER };
        question.shown & tcp_seen::ACK != 0
            && others & (tcp_seen::SYN | tcp_seen::ACK) != 0
            && before & ENDED != ENDED
    } else {
        is_reply
    };
    // SAFETY: an aligned word of a live map value.
    let tcp = unsafe { &raw mut (*pending).tcp };
    // SAFETY: as above. One CPU moves it.
    if !is_confirmed || unsafe { atomic_or(tcp, PendingEntry::MOVING) } & PendingEntry::MOVING != 0
    {
        return;
    }
    let last = if is_reply { found.verdict } else { verdict };
    // SAFETY: a live map value of plain numbers.
    let (sums, seen) = unsafe { (&*pending, found.seen().read_volatile()) };
    let is_moved = found.is_still(&scratch.there_key, last)
        && confirm(question, scratch, sums, seen, known, last, verdict);
    if !is_moved && found.is_still(&scratch.there_key, last) {
        // SAFETY: as above.
        unsafe { atomic_and(tcp, !PendingEntry::MOVING) };
    }
}

/// Both sides have spoken: the flow moves to where nothing is evicted, if there is room. The key of the direction
/// that began it is there already; `began` is the verdict on that, `verdict` that on the packet's.
#[inline(always)]
fn confirm(
    question: &Question,
    scratch: &mut Scratch,
    sums: &PendingEntry,
    seen: u32,
    known: Known,
    began: Verdict,
    verdict: Verdict,
) -> bool {
    let Scratch { there, back, there_key, back_key, .. } = scratch;
    // A reset after which both sides go on was none; the next one may be.
    let tcp = sums.tcp & 0xffff & !(tcp_seen::RST | tcp_seen::RST << tcp_seen::PEER);
    let verdict_back;
    if known == Known::Pending {
        *back_key = other(there_key, began, question.sides.local);
        verdict_back = back_of(began, there_key, back_key);
    } else {
        *back_key = question.sides.key;
        verdict_back = verdict;
    }
    *there = Flow {
        verdict: began,
        recent: 0,
        packets_and_tcp: 0,
        bytes: sums.bytes,
        seen,
        created: sums.created,
    }
    .with(sums.packets, tcp);
    *back = Flow {
        verdict: verdict_back,
        recent: 0,
        packets_and_tcp: 0,
        bytes: sums.reply_bytes,
        seen,
        created: sums.created,
    }
    .with(sums.reply_packets, tcp_seen::turned(tcp));
    let mut put = table::put_confirmed(there_key, there);
    if put == Put::Kept {
        put = table::put_confirmed(back_key, back);
        if put != Put::Kept {
            table::forget_confirmed(there_key);
        }
    }
    match put {
        Put::Kept => {
            table::forget_unconfirmed(there_key, &question.sides);
            // There is another where both sides have begun at once.
            table::forget_unconfirmed(back_key, &question.sides);
            event(FlowEvent::Confirmed);
        }
        Put::NoRoom => event(FlowEvent::TableFull),
        // Its next packet tries again.
        Put::Raced | Put::Evicting => {}
    }
    put == Put::Kept
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
    let Some(Found { value: flow, verdict }) = table::confirmed(&question.sides.key) else {
        return 0;
    };
    // SAFETY: aligned words of a live map value; the bits are added atomically.
    let before = unsafe {
        show(flow, question.shown);
        (*flow).tcp()
    };
    let Some(scratch) = SCRATCH.get_ptr_mut(0) else { return 0 };
    // SAFETY: this CPU's own memory, which nobody else uses before this program ends.
    let Scratch { pending, back_key: other_key, .. } = unsafe { &mut *scratch };
    *other_key = other(&question.sides.key, verdict, question.sides.local);
    let (mut others, mut other_verdict) = (core::ptr::null_mut(), Verdict::FREE);
    if let Some(found) = table::confirmed(other_key) {
        (others, other_verdict) = (found.value, found.verdict);
        // SAFETY: as above.
        unsafe { show(others, question.shown << tcp_seen::PEER) };
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
    let (packets, bytes) = (own.packets() + recent_packets, own.bytes + recent_bytes);
    let (mut other_packets, mut other_bytes) = (0, 0);
    // SAFETY: as above.
    if let Some(others) = unsafe { others.as_ref() } {
        let (recent_packets, recent_bytes) = recent::split(others.recent);
        other_packets = others.packets() + recent_packets;
        other_bytes = others.bytes + recent_bytes;
    }
    let is_reply = verdict.has(verdict_flag::REPLY);
    *pending = PendingEntry {
        key: if is_reply { *other_key } else { question.sides.key },
        created: own.created,
        tcp,
        packets: if is_reply { other_packets } else { packets },
        bytes: if is_reply { other_bytes } else { bytes },
        reply_packets: if is_reply { packets } else { other_packets },
        reply_bytes: if is_reply { bytes } else { other_bytes },
    };
    // Only the direction that began it knows what was decided about it.
    let began = if is_reply { other_verdict } else { verdict };
    let put = match is_reply && others.is_null() {
        true => Put::Kept,
        false => table::put_unconfirmed(&question.sides, pending, own.seen, began),
    };
    match put {
        Put::Kept => {}
        Put::Evicting => event(FlowEvent::Evicted),
        Put::NoRoom | Put::Raced => event(FlowEvent::Unkept),
    }
    if !others.is_null() {
        table::forget_confirmed(other_key);
    }
    table::forget_confirmed(&question.sides.key);
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
            atomic_add(&raw mut (*flow).packets_and_tcp, packets);
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
/// The flow must be a live map value.
#[inline(always)]
unsafe fn show(flow: *mut Flow, shown: u32) {
    use core::intrinsics::{AtomicOrdering::Relaxed, atomic_or};
    let bits = u64::from(shown) << Flow::TCP_SHIFT;
    // SAFETY: an aligned word, by the caller's promise.
    unsafe { atomic_or::<u64, u64, { Relaxed }>(&raw mut (*flow).packets_and_tcp, bits) };
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
unsafe fn atomic_or(word: *mut u32, bits: u32) -> u32 {
    use core::intrinsics::AtomicOrdering::SeqCst;
    // SAFETY: the caller's promise.
    unsafe { core::intrinsics::atomic_or::<u32, u32, { SeqCst }>(word, bits) }
}

/// # Safety
/// As of [`atomic_add`].
#[inline(always)]
unsafe fn atomic_and(word: *mut u32, bits: u32) {
    use core::intrinsics::AtomicOrdering::SeqCst;
    // SAFETY: the caller's promise.
    unsafe { core::intrinsics::atomic_and::<u32, u32, { SeqCst }>(word, bits) };
}
