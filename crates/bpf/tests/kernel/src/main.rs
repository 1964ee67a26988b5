//! Kernel programs for the tests of `podwire-bpf`: one map of each kind the crate types, and the
//! smallest programs that show each thing the crate does with a program.
//!
//! `cargo xtask ebpf` builds them into `../objects/fixture.o`, beside which `fixture.json` says with
//! what.
#![no_std]
#![no_main]

use aya_ebpf::{
    btf_maps::{
        Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, PerCpuHashMap, ProgramArray, RingBuf,
        lpm_trie::Key,
    },
    macros::{btf_map, classifier},
    programs::TcContext,
};

const TC_ACT_OK: i32 = 0;
const TC_ACT_SHOT: i32 = 2;

/// Slots of [`VERDICTS`].
const FIRST: u32 = 1;
const SECOND: u32 = 2;
const DROPPED: u32 = 3;

#[repr(C)]
#[derive(Clone, Copy)]
struct FlowKey {
    source: u64,
    destination: u64,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct FlowValue {
    packets: u64,
    bytes: u64,
    rest: [u64; 6],
}

#[repr(C)]
#[derive(Clone, Copy)]
struct Event {
    sequence: u64,
    length: u32,
    mark: u32,
}

#[btf_map]
static FLOWS: HashMap<FlowKey, FlowValue, 65536> = HashMap::new();
#[btf_map]
static RECENT: LruHashMap<u32, u64, 512> = LruHashMap::new();
#[btf_map]
static PREFIXES: LpmTrie<[u8; 4], u32, 1024> = LpmTrie::new();
#[btf_map]
static SLOTS: Array<u64, 16> = Array::new();
#[btf_map]
static VERDICTS: PerCpuArray<u64, 8> = PerCpuArray::new();
#[btf_map]
static TALLY: PerCpuHashMap<u32, u64, 64> = PerCpuHashMap::new();
#[btf_map]
static JUMPS: ProgramArray<4> = ProgramArray::new();
#[btf_map]
static EVENTS: RingBuf<Event, 4096> = RingBuf::new();

/// What `verdict` answers; the loader may set it.
#[unsafe(no_mangle)]
static VERDICT: i32 = 0;

/// Counts a packet in the first slot and lets it pass.
#[classifier]
pub fn count_first(_ctx: TcContext) -> i32 {
    count(FIRST);
    TC_ACT_OK
}

/// The same for the second slot: what replaces `count_first` without a gap.
#[classifier]
pub fn count_second(_ctx: TcContext) -> i32 {
    count(SECOND);
    TC_ACT_OK
}

/// Counts a packet and drops it.
#[classifier]
pub fn count_drop(_ctx: TcContext) -> i32 {
    count(DROPPED);
    TC_ACT_SHOT
}

/// Answers what the loader was told.
#[classifier]
pub fn verdict(_ctx: TcContext) -> i32 {
    // SAFETY: a static of this program; volatile, since the loader rewrites it.
    unsafe { core::ptr::read_volatile(&raw const VERDICT) }
}

/// Adds one to the mark and to the second control word, and overwrites the first byte.
#[classifier]
pub fn rewrite(mut ctx: TcContext) -> i32 {
    // SAFETY: the context outlives the program.
    let mark = unsafe { (*ctx.skb.skb).mark };
    ctx.set_mark(mark.wrapping_add(1));
    if let Some(word) = ctx.cb_mut().get_mut(1) {
        *word = word.wrapping_add(1);
    }
    match ctx.store(0, &0xa5_u8, 0) {
        Ok(()) => TC_ACT_OK,
        Err(_) => TC_ACT_SHOT,
    }
}

/// Tells of each packet in the ring buffer.
#[classifier]
pub fn tell(ctx: TcContext) -> i32 {
    // SAFETY: the context outlives the program.
    let mark = unsafe { (*ctx.skb.skb).mark };
    let sequence = match SLOTS.get_ptr_mut(0) {
        // SAFETY: a valid array element; the tests run this on one CPU at a time.
        Some(slot) => unsafe {
            *slot += 1;
            *slot
        },
        None => return TC_ACT_SHOT,
    };
    let Some(mut event) = EVENTS.reserve(0) else { return TC_ACT_SHOT };
    event.write(Event { sequence, length: ctx.len(), mark });
    // An odd mark asks for a record that the reader must not see.
    if mark & 1 == 1 {
        event.discard(0)
    } else {
        event.submit(0)
    }
    TC_ACT_OK
}

/// Jumps to the program in the slot that the mark names; answers 7 when the slot is empty.
#[classifier]
pub fn jump(ctx: TcContext) -> i32 {
    // SAFETY: the context outlives the program.
    let slot = unsafe { (*ctx.skb.skb).mark };
    // SAFETY: nothing of this frame is needed after the jump.
    unsafe { JUMPS.tail_call(&ctx, slot) };
    7
}

/// Where `jump` lands.
#[classifier]
pub fn landed(_ctx: TcContext) -> i32 {
    42
}

/// Touches every map by what the mark says: a flow, a recent entry, a tally; the answer is what
/// the longest prefix of the mark's bytes holds.
#[classifier]
pub fn touch(ctx: TcContext) -> i32 {
    // SAFETY: the context outlives the program.
    let mark = unsafe { (*ctx.skb.skb).mark };
    let key = FlowKey { source: mark.into(), destination: 0 };
    match FLOWS.get_ptr_mut(&key) {
        // SAFETY: a valid element; the tests run this on one CPU at a time.
        Some(flow) => unsafe {
            (*flow).packets += 1;
            (*flow).bytes += u64::from(ctx.len());
        },
        None => {
            let fresh = FlowValue { packets: 1, bytes: ctx.len().into(), rest: [0; 6] };
            if FLOWS.insert(&key, &fresh, 0).is_err() {
                return -1;
            }
        }
    }
    if RECENT.insert(mark, u64::from(mark), 0).is_err() {
        return -2;
    }
    match TALLY.get_ptr_mut(mark) {
        // SAFETY: this CPU's own element.
        Some(count) => unsafe { *count += 1 },
        None => {
            if TALLY.insert(mark, 1, 0).is_err() {
                return -3;
            }
        }
    }
    match PREFIXES.get(&Key::new(32, mark.to_be_bytes())) {
        Some(value) => *value as i32,
        None => TC_ACT_OK,
    }
}

/// Dereferences a lookup without looking whether it found anything: the verifier refuses it.
#[classifier]
pub fn refused(_ctx: TcContext) -> i32 {
    let slot = SLOTS.get_ptr(3).unwrap_or(core::ptr::null());
    // SAFETY: none; that is what the verifier says too.
    unsafe { core::ptr::read_volatile(slot) as i32 }
}

#[inline(always)]
fn count(slot: u32) {
    if let Some(counter) = VERDICTS.get_ptr_mut(slot) {
        // SAFETY: this CPU's own element.
        unsafe { *counter += 1 };
    }
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
