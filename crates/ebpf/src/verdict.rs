//! How judging a packet ends.

use aya_ebpf::programs::TcContext;
use podwire_abi::{Hook, Reason, metric_index};

use crate::maps::METRICS;

/// `TCX_NEXT`, and `TC_ACT_UNSPEC` of a clsact filter: other programs on the link go on.
const NEXT: i32 = -1;
/// `TC_ACT_SHOT`.
const SHOT: i32 = 2;

/// A packet goes on: the program's return value, and what is counted.
pub struct Verdict {
    pub action: i32,
    pub reason: Reason,
}

impl Verdict {
    /// A redirect helper has been called and returned `action`.
    #[inline(always)]
    pub fn redirected(action: i64, reason: Reason) -> Self {
        Self { action: action as i32, reason }
    }

    #[inline(always)]
    pub fn next(reason: Reason) -> Self {
        Self { action: NEXT, reason }
    }
}

/// A packet ends here.
pub struct Drop(pub Reason);

pub type Outcome = Result<Verdict, Drop>;

/// An outcome as one word, which is what functions of kernel programs can return.
#[inline(always)]
pub fn to_word(outcome: Outcome) -> u64 {
    match outcome {
        Ok(verdict) => (verdict.action as u32 as u64) << 32 | verdict.reason as u64,
        Err(Drop(reason)) => reason as u64,
    }
}

/// The outcome that [`to_word`] was given.
#[inline(always)]
pub fn of_word(word: u64) -> Outcome {
    let reason = reason(word as u8);
    if reason.is_drop() {
        return Err(Drop(reason));
    }
    Ok(Verdict { action: (word >> 32) as i32, reason })
}

/// The reason with a number that was a reason's.
#[inline(always)]
pub fn reason(number: u8) -> Reason {
    // SAFETY: every caller has the number from a reason, by `as`.
    unsafe { core::mem::transmute::<u8, Reason>(number) }
}

/// Counts the outcome and turns it into the program's return value.
#[inline(always)]
pub fn account(ctx: &TcContext, hook: Hook, outcome: Outcome) -> i32 {
    let (action, reason) = match outcome {
        Ok(verdict) => (verdict.action, verdict.reason),
        Err(Drop(reason)) => (SHOT, reason),
    };
    if let Some(counter) = METRICS.get_ptr_mut(metric_index(hook, reason)) {
        // SAFETY: the pointer is this CPU's own counter, and a program is not interrupted by
        // another run of itself on the same CPU; a lost count would be the worst of it.
        unsafe {
            (*counter).packets += 1;
            (*counter).bytes += u64::from(ctx.len());
        }
    }
    action
}
