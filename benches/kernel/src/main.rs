//! Kernel programs of the benchmarks.
//!
//! `cargo xtask ebpf` builds them into `../objects/bench.o`, apart from the programs that podwire
//! ships. Each table has a program that draws an entry's number, makes its key, looks it up and
//! checks the value, and each kind of key one that does all but the lookup: what is between them
//! is the lookup.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch, core_intrinsics)]
#![expect(internal_features, reason = "Rust has no atomic addition of its own on this target")]

mod keys;

use core::{arch::asm, hint::black_box, mem::offset_of};

use aya_ebpf::{
    bindings::{__sk_buff, BPF_F_MMAPABLE},
    btf_maps::{
        Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, PerCpuHashMap, ProgramArray,
        lpm_trie::Key,
    },
    helpers::bpf_get_prandom_u32,
    macros::{btf_map, classifier},
    programs::TcContext,
};
use podwire_abi::{FlowEntry, FlowHash, WAYS, fold, recent};

const TC_ACT_OK: i32 = 0;
const TC_ACT_SHOT: i32 = 2;
const TC_ACT_REDIRECT: i32 = 7;

/// Stands for a value where there is none; no entry has it.
const NOT_FOUND: u64 = u64::MAX;

/// Bytes of a frame that are put back at most.
const TEMPLATE_LEN: usize = 96;

// User space gives each map its size.
#[btf_map]
static ARRAY: Array<u64, 1> = Array::new();
#[btf_map]
static HASH4: HashMap<u32, u64, 1> = HashMap::new();
#[btf_map]
static HASH16: HashMap<[u32; 4], u64, 1> = HashMap::new();
#[btf_map]
static HASH40: HashMap<[u32; 10], u64, 1> = HashMap::new();
#[btf_map]
static LRU4: LruHashMap<u32, u64, 1> = LruHashMap::new();
#[btf_map]
static LRU40: LruHashMap<[u32; 10], u64, 1> = LruHashMap::new();
#[btf_map]
static PER_CPU4: PerCpuHashMap<u32, u64, 1> = PerCpuHashMap::new();
#[btf_map]
static LPM4: LpmTrie<[u32; 1], u32, 1> = LpmTrie::new();
#[btf_map]
static LPM16: LpmTrie<[u32; 4], u32, 1> = LpmTrie::new();

/// Flows in sets, as the datapath has them.
#[btf_map]
static FLOWS: Array<[FlowEntry; WAYS], 1, { BPF_F_MMAPABLE as usize }> = Array::new();
/// What each CPU may have in front of them.
#[btf_map]
static NEAR: PerCpuArray<Near, { 1 << NEAR_BITS }> = PerCpuArray::new();

const NEAR_BITS: u32 = 10;

#[repr(C)]
#[derive(Clone, Copy)]
struct Near {
    key: [u64; 3],
    value: u64,
    recent: u64,
    reserved: [u64; 3],
}

/// How many lookups gave the right value, and how many did not.
#[btf_map]
static TALLY: PerCpuArray<Tally, 1> = PerCpuArray::new();

/// The number of the last flow, or the ports of one that is not answered yet.
#[btf_map]
static TURN: PerCpuArray<u32, 1> = PerCpuArray::new();

/// The frame as it is before each repetition.
#[btf_map]
static TEMPLATE: Array<Template, 1> = Array::new();
/// What judges the frame.
#[btf_map]
static JUDGE: ProgramArray<1> = ProgramArray::new();

#[repr(C)]
#[derive(Clone, Copy)]
struct Tally {
    right: u64,
    wrong: u64,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct Template {
    bytes: [u8; TEMPLATE_LEN],
}

/// Sets of flows, less one; set before loading.
#[unsafe(no_mangle)]
static SETS_MASK: u32 = 0;

/// Entries that are drawn from; set before loading.
#[unsafe(no_mangle)]
static ENTRIES: u32 = 1;

/// Nothing.
#[classifier]
pub fn nothing(_ctx: TcContext) -> i32 {
    TC_ACT_OK
}

/// One lookup of one key: the unit H.
#[classifier]
pub fn fixed_key(_ctx: TcContext) -> i32 {
    // SAFETY: an aligned word of a live map value.
    match unsafe { HASH4.get(keys::key4(7)) } {
        Some(&7) => TC_ACT_OK,
        _ => TC_ACT_SHOT,
    }
}

/// A program that draws an entry's number and makes something of it that a lookup takes.
macro_rules! draw {
    ($name:ident, $key:expr) => {
        #[classifier]
        pub fn $name(_ctx: TcContext) -> i32 {
            let index = draw();
            black_box(&($key)(index));
            count(index, index.into())
        }
    };
}

/// A program that does so and then looks it up.
macro_rules! lookup {
    ($name:ident, $key:expr, $get:expr) => {
        #[classifier]
        pub fn $name(_ctx: TcContext) -> i32 {
            let index = draw();
            let key = ($key)(index);
            black_box(&key);
            count(index, ($get)(&key))
        }
    };
}

draw!(draw_index, core::convert::identity::<u32>);
draw!(draw_key4, keys::key4);
draw!(draw_key16, keys::key16);
draw!(draw_key40, keys::key40);
draw!(draw_trie_host4, trie_host4);
draw!(draw_trie_mixed4, trie_mixed4);
draw!(draw_trie_host16, trie_host16);
draw!(draw_trie_mixed16, trie_mixed16);
draw!(draw_host16, keys::host16);
draw!(draw_mixed16, keys::within_mixed16);
draw!(draw_flow, keys::flow);

// SAFETY (of every `get`): an aligned word of a live map value, read at once.
lookup!(array, core::convert::identity::<u32>, |index: &u32| ARRAY
    .get(*index)
    .map_or(NOT_FOUND, |value| *value));
lookup!(hash4, keys::key4, |key| unsafe { HASH4.get(key) }.map_or(NOT_FOUND, |value| *value));
lookup!(hash16, keys::key16, |key| unsafe { HASH16.get(key) }.map_or(NOT_FOUND, |value| *value));
lookup!(hash40, keys::key40, |key| unsafe { HASH40.get(key) }.map_or(NOT_FOUND, |value| *value));
lookup!(lru4, keys::key4, |key| unsafe { LRU4.get(key) }.map_or(NOT_FOUND, |value| *value));
lookup!(lru40, keys::key40, |key| unsafe { LRU40.get(key) }.map_or(NOT_FOUND, |value| *value));
lookup!(per_cpu4, keys::key4, |key| unsafe { PER_CPU4.get(key) }.map_or(NOT_FOUND, |value| *value));
lookup!(lpm4, trie_host4, longest4);
lookup!(lpm4_mixed, trie_mixed4, longest4);
lookup!(lpm16, trie_host16, longest16);
lookup!(lpm16_mixed, trie_mixed16, longest16);
lookup!(two_tier, keys::host16, two_tiers);
lookup!(two_tier_prefix, keys::within_mixed16, two_tiers);
lookup!(flow, keys::flow, counted);
lookup!(flow_near, keys::flow, counted_near);

/// A flow in its set, with its packet counted there.
#[inline(always)]
fn counted(key: &[u64; 3]) -> u64 {
    let hash = FlowHash::new(&keys::SEED, *key);
    // SAFETY: a static of this program; volatile, since the loader rewrites it.
    let mask = unsafe { core::ptr::read_volatile(&raw const SETS_MASK) };
    for number in [hash.first_set(mask), hash.second_set(mask)] {
        let Some(set) = FLOWS.get_ptr_mut(number) else { return NOT_FOUND };
        for step in 0..WAYS {
            // SAFETY: a set has as many entries as there are ways.
            let entry = unsafe { set.cast::<FlowEntry>().add((hash.way() ^ step) & (WAYS - 1)) };
            // SAFETY: words of a live map value, and a key is three of them.
            let found = unsafe { entry.cast::<[u64; 3]>().read_volatile() };
            if found[0] == key[0] && found[1] == key[1] && found[2] == key[2] {
                // SAFETY: aligned words of a live map value.
                return unsafe {
                    use core::intrinsics::{AtomicOrdering::Relaxed, atomic_xadd};
                    let word = &raw mut (*entry).flow.recent;
                    atomic_xadd::<u64, u64, { Relaxed }>(word, recent::one(64));
                    (*entry).flow.bytes
                };
            }
        }
    }
    NOT_FOUND
}

/// The same, with what this CPU has met last in front; its packets are counted here.
#[inline(always)]
fn counted_near(key: &[u64; 3]) -> u64 {
    let place = fold(key[0] ^ key[2]).wrapping_mul(0x9e37_79b1) >> (u32::BITS - NEAR_BITS);
    let Some(near) = NEAR.get_ptr_mut(place) else { return NOT_FOUND };
    // SAFETY: this CPU's own element.
    let near = unsafe { &mut *near };
    if near.key[0] == key[0] && near.key[1] == key[1] && near.key[2] == key[2] {
        near.recent += recent::one(64);
        return near.value;
    }
    let value = counted(key);
    if value != NOT_FOUND {
        *near = Near { key: *key, value, recent: 0, reserved: [0; 3] };
    }
    value
}

#[inline(always)]
fn trie_host4(index: u32) -> Key<[u32; 1]> {
    Key::new(32, keys::host4(index))
}

#[inline(always)]
fn trie_mixed4(index: u32) -> Key<[u32; 1]> {
    Key::new(32, keys::within_mixed4(index))
}

#[inline(always)]
fn trie_host16(index: u32) -> Key<[u32; 4]> {
    Key::new(128, keys::host16(index))
}

#[inline(always)]
fn trie_mixed16(index: u32) -> Key<[u32; 4]> {
    Key::new(128, keys::within_mixed16(index))
}

#[inline(always)]
fn longest4(key: &Key<[u32; 1]>) -> u64 {
    LPM4.get(key).map_or(NOT_FOUND, |&value| value.into())
}

#[inline(always)]
fn longest16(key: &Key<[u32; 4]>) -> u64 {
    LPM16.get(key).map_or(NOT_FOUND, |&value| value.into())
}

/// Exact addresses first, then prefixes.
#[inline(always)]
fn two_tiers(address: &[u32; 4]) -> u64 {
    // SAFETY: an aligned word of a live map value.
    match unsafe { HASH16.get(address) } {
        Some(&value) => value,
        None => longest16(&Key::new(128, *address)),
    }
}

/// Copies words of 32, 16 or 8 bits from the template into the frame, each in one load and one store:
/// the judge reads them in the same widths, and a wider store would make it wait.
macro_rules! put {
    ($template:ident, $frame:ident, $($word:literal at $($offset:literal),+;)+) => {$($(
        // SAFETY: the verifier refuses an access that is not within the frame or the map value.
        unsafe {
            asm!(
                concat!("{word} = *(", $word, " *)({from} + ", $offset, ")"),
                concat!("*(", $word, " *)({to} + ", $offset, ") = {word}"),
                from = in(reg) $template,
                to = in(reg) $frame,
                word = out(reg) _,
                options(nostack, preserves_flags),
            );
        }
    )+)+};
}

/// A program that puts back what a judge rewrites, and goes on to the judge.
macro_rules! restore {
    ($(#[$doc:meta])* $name:ident, $len:literal, $($word:literal at $($offset:literal),+;)*) => {
        $(#[$doc])*
        #[classifier]
        pub fn $name(ctx: TcContext) -> i32 {
            let (Some(template), Some(frame)) = (TEMPLATE.get_ptr(0), frame::<$len>(&ctx)) else {
                return TC_ACT_SHOT;
            };
            put!(template, frame, $($word at $($offset),+;)*);
            judge(&ctx)
        }
    };
}

restore!(
    /// For a forwarded IPv4 packet: addresses of the frame, TTL, header checksum.
    restore_ipv4, 34,
    "u32" at 0, 4, 8;
    "u8" at 22;
    "u16" at 24;
);
restore!(
    /// For a forwarded IPv6 packet: addresses of the frame, hop limit.
    restore_ipv6, 54,
    "u32" at 0, 4, 8;
    "u8" at 21;
);
restore!(
    /// For an ARP request.
    restore_arp, 42,
    "u32" at 0, 4, 8, 22, 28, 32, 38;
    "u16" at 20, 26, 36;
);
restore!(
    /// For a neighbour solicitation: the frame's addresses, the IPv6 header, the message.
    restore_neighbour, 86,
    "u32" at 0, 4, 8, 14, 18, 22, 26, 30, 34, 38, 42, 46, 50, 54, 58, 62, 66, 70, 74, 78, 82;
);

/// Draws the number of a flow: in turn, or at random.
#[inline(always)]
fn next_in_turn() -> u32 {
    let Some(turn) = TURN.get_ptr_mut(0) else { return 0 };
    // SAFETY: a static of this program; volatile, since the loader rewrites it.
    let entries = unsafe { core::ptr::read_volatile(&raw const ENTRIES) };
    // SAFETY: this CPU's own element.
    unsafe {
        *turn = if *turn + 1 < entries { *turn + 1 } else { 0 };
        *turn
    }
}

/// As `restore_ipv4`, with the ports of another flow each time; they stand behind a header without options.
macro_rules! restore_flows {
    ($(#[$doc:meta])* $name:ident, $ports:expr) => {
        $(#[$doc])*
        #[classifier]
        pub fn $name(ctx: TcContext) -> i32 {
            let ports: u32 = $ports;
            let (Some(template), Some(frame)) = (TEMPLATE.get_ptr(0), frame::<42>(&ctx)) else {
                return TC_ACT_SHOT;
            };
            put!(template, frame, "u32" at 0, 4, 8; "u8" at 22; "u16" at 24;);
            // SAFETY: the verifier refuses an access that is not within the frame.
            unsafe {
                asm!(
                    "*(u32 *)({frame} + 34) = {ports}",
                    frame = in(reg) frame,
                    ports = in(reg) u64::from(ports),
                    options(nostack, preserves_flags),
                );
            }
            judge(&ctx)
        }
    };
}

restore_flows!(
    /// Of flows that are known, in turn: the sender's port counts up from 1024, the receiver's is 80.
    restore_next_flow, known_ports(next_in_turn())
);
restore_flows!(
    /// Of flows that are known, at random.
    restore_any_flow, known_ports(draw())
);
restore_flows!(
    /// Of a flow that is most likely not known.
    restore_new_flow, new_ports()
);
restore_flows!(
    /// The first packet of a flow, and its answer, in turn, between a pod and itself.
    restore_new_pair, {
        let Some(turn) = TURN.get_ptr_mut(0) else { return TC_ACT_SHOT };
        // SAFETY: this CPU's own element.
        unsafe {
            let ports = *turn;
            if ports == 0 {
                *turn = new_ports();
                *turn
            } else {
                *turn = 0;
                ports.rotate_left(16)
            }
        }
    }
);

#[inline(always)]
fn known_ports(number: u32) -> u32 {
    let [a, b] = (1024 + number as u16).to_be_bytes();
    let [c, d] = 80_u16.to_be_bytes();
    u32::from_ne_bytes([a, b, c, d])
}

/// Neither port is 0, and the pair never is its own answer's.
#[inline(always)]
fn new_ports() -> u32 {
    // SAFETY: a helper call without arguments.
    let random = unsafe { bpf_get_prandom_u32() };
    random | 0x0000_0100
}

/// For a judge that leaves the frame alone.
#[classifier]
pub fn restore_nothing(ctx: TcContext) -> i32 {
    judge(&ctx)
}

/// Judges nothing: what is between runs that end here and runs that end in a judge is the judge.
#[classifier]
pub fn judge_nothing(_ctx: TcContext) -> i32 {
    TC_ACT_REDIRECT
}

#[inline(always)]
fn judge(ctx: &TcContext) -> i32 {
    // An answer marks the packet.
    // SAFETY: the context is valid for the whole run, and its mark may be written.
    unsafe { (*ctx.skb.skb).mark = 0 };
    // SAFETY: nothing of this program is needed after the jump.
    unsafe { JUDGE.tail_call(ctx, 0) };
    TC_ACT_SHOT
}

/// Where the frame begins, if it has `LEN` bytes.
#[inline(always)]
fn frame<const LEN: u64>(ctx: &TcContext) -> Option<u64> {
    let (start, end): (u64, u64);
    // The verifier makes 64-bit pointers of these loads; were their declared width of 32 bits known
    // to the compiler, it would cut them.
    // SAFETY: two loads from the context, which is valid for the whole run.
    unsafe {
        asm!(
            "{start} = *(u32 *)({ctx} + {start_at})",
            "{end} = *(u32 *)({ctx} + {end_at})",
            ctx = in(reg) ctx.skb.skb,
            start = out(reg) start,
            end = lateout(reg) end,
            start_at = const offset_of!(__sk_buff, data),
            end_at = const offset_of!(__sk_buff, data_end),
            options(readonly, nostack, preserves_flags),
        );
    }
    (start + LEN <= end).then_some(start)
}

/// The number of an entry, each as likely as any other.
#[inline(always)]
fn draw() -> u32 {
    // SAFETY: a static of this program; volatile, since the loader rewrites it.
    let entries = unsafe { core::ptr::read_volatile(&raw const ENTRIES) };
    // SAFETY: a helper call without arguments.
    let random = unsafe { bpf_get_prandom_u32() };
    ((u64::from(random) * u64::from(entries)) >> 32) as u32
}

#[inline(always)]
fn count(index: u32, found: u64) -> i32 {
    let right = found == u64::from(index);
    if let Some(tally) = TALLY.get_ptr_mut(0) {
        // SAFETY: this CPU's own element.
        unsafe {
            if right {
                (*tally).right += 1;
            } else {
                (*tally).wrong += 1;
            }
        }
    }
    if right { TC_ACT_OK } else { TC_ACT_SHOT }
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
