//! Tables of flows: sets of a few entries in an array.
//!
//! A flow has a set that it is in, by its hash, and in that an entry where looking begins. While a table has room, most
//! flows are in the first entry that is looked at: one cache line, which is the entry. The kernel's hash tables
//! read two or three, one after the other.
//!
//! A confirmed flow, which must not be forgotten for another, has a second set. Whether that has to be looked at is
//! known without a look at it.
//!
//! How an entry is read and written is said of `FlowEntry`. On a machine whose loads may overtake each other
//! the verdict's tag helps to keep a verdict to its key.

use core::{
    arch::asm,
    intrinsics::{AtomicOrdering::SeqCst, atomic_and, atomic_cxchg, atomic_or, atomic_xchg},
};

use podwire_abi::{
    Address, Flow, FlowEntry, FlowHash, FlowKey, HashSeed, PendingEntry, PendingSet, Verdict, WAYS,
    fold, tag, ways,
};

use super::Known;
use crate::maps::{FLOW_WAYS, FLOWS, PENDING, SLOTS, STATE};

/// See `podwire_abi::FLOWS_MASK`.
#[unsafe(no_mangle)]
static FLOWS_MASK: u32 = 0;
#[unsafe(no_mangle)]
static PENDING_MASK: u32 = 0;
/// See `podwire_abi::FLOW_SEED`.
#[unsafe(no_mangle)]
static FLOW_SEED: HashSeed = [0; 7];

/// What flows are hashed by.
#[inline(always)]
fn seed() -> &'static HashSeed {
    let mut seed = &raw const FLOW_SEED;
    // SAFETY: it adds nothing (without an instruction two lines of source would be at one place, which the kernel
    // refuses); but the compiler no longer knows that those are the zeros above. The loader has
    // written numbers there.
    unsafe {
        asm!("{seed} += 0", seed = inout(reg) seed, options(pure, nomem, nostack, preserves_flags));
        &*seed
    }
}

/// Confirmed flows.
pub enum Confirmed {}
/// The others.
pub enum Unconfirmed {}

/// What differs between the tables.
pub trait Table {
    type Set;

    fn mask() -> u32;

    fn set(number: u32) -> Option<*mut Self::Set>;

    /// Where the verdict of an entry is.
    fn verdict(set: *mut Self::Set, way: usize) -> *mut Verdict;

    /// Where an entry begins, with its key.
    fn entry(set: *mut Self::Set, way: usize) -> *mut u64;
}

impl Table for Confirmed {
    type Set = FlowEntry;

    #[inline(always)]
    fn mask() -> u32 {
        // SAFETY: a constant that is written before the program is loaded.
        unsafe { core::ptr::read_volatile(&raw const FLOWS_MASK) }
    }

    #[inline(always)]
    fn set(number: u32) -> Option<*mut FlowEntry> {
        FLOWS.get_ptr_mut(number).map(|set| set.cast())
    }

    #[inline(always)]
    fn verdict(set: *mut FlowEntry, way: usize) -> *mut Verdict {
        // SAFETY: an entry is its key and a value, which begins with its verdict.
        unsafe { Self::entry(set, way).add(KEY_WORDS).cast() }
    }

    #[inline(always)]
    fn entry(set: *mut FlowEntry, way: usize) -> *mut u64 {
        // SAFETY: a set has as many entries as there are ways.
        unsafe { set.add(way & (WAYS - 1)).cast() }
    }
}

impl Table for Unconfirmed {
    type Set = PendingSet;

    #[inline(always)]
    fn mask() -> u32 {
        // SAFETY: a constant that is written before the program is loaded.
        unsafe { core::ptr::read_volatile(&raw const PENDING_MASK) }
    }

    #[inline(always)]
    fn set(number: u32) -> Option<*mut PendingSet> {
        PENDING.get_ptr_mut(number)
    }

    #[inline(always)]
    fn verdict(set: *mut PendingSet, way: usize) -> *mut Verdict {
        // SAFETY: as of a confirmed flow's entry.
        unsafe { (&raw mut (*set).verdicts).cast::<Verdict>().add(way & (WAYS - 1)) }
    }

    #[inline(always)]
    fn entry(set: *mut PendingSet, way: usize) -> *mut u64 {
        // SAFETY: as of a confirmed flow's entry.
        unsafe { (&raw mut (*set).entries).cast::<PendingEntry>().add(way & (WAYS - 1)).cast() }
    }
}

/// A confirmed flow, and what its verdict was when it was found.
pub struct Found {
    pub value: *mut Flow,
    pub verdict: Verdict,
}

/// Another.
pub struct FoundPending {
    set: *mut PendingSet,
    way: usize,
    pub verdict: Verdict,
}

impl FoundPending {
    #[inline(always)]
    pub fn entry(&self) -> *mut PendingEntry {
        Unconfirmed::entry(self.set, self.way).cast()
    }

    /// Where it stands when the flow had its last packet.
    #[inline(always)]
    pub fn seen(&self) -> *mut u32 {
        seen(self.set, self.way)
    }

    /// Writes another verdict, if it still is what it was.
    #[inline(always)]
    pub fn replace_verdict(&self, verdict: Verdict) -> bool {
        exchange(Unconfirmed::verdict(self.set, self.way), self.verdict, verdict)
    }

    /// Whether the entry is still that flow's, and has that verdict.
    #[inline(always)]
    pub fn is_still(&self, key: &FlowKey, verdict: Verdict) -> bool {
        holds::<Unconfirmed>(self.set, self.way, verdict, key)
    }
}

#[inline(always)]
fn seen(set: *mut PendingSet, way: usize) -> *mut u32 {
    // SAFETY: there are as many as there are ways.
    unsafe { (&raw mut (*set).seen).cast::<u32>().add(way & (WAYS - 1)) }
}

#[inline(always)]
fn hash_at(set: *mut PendingSet, way: usize) -> *mut u32 {
    // SAFETY: there are as many as there are ways.
    unsafe { (&raw mut (*set).hashes).cast::<u32>().add(way & (WAYS - 1)) }
}

/// Whether the entry may be that of a flow with this hash, as almost no other flow's may.
#[inline(always)]
fn may_be(set: *mut PendingSet, way: usize, hash: FlowHash) -> bool {
    // SAFETY: an aligned word of a live map value.
    unsafe { hash_at(set, way).read_volatile() == hash.rest() }
}

/// A flow goes into its second set if the first has as many, and the second fewer: most are found where they are
/// looked for first, and yet a table that is half full has room for everybody.
const CROWDED: u64 = 6;

/// Words of a key, and the place of the verdict behind it.
const KEY_WORDS: usize = 3;

/// What turns the first word of a key.
const TURN: u64 = 1 << 24;

#[inline(always)]
fn words(key: &FlowKey) -> &[u64; KEY_WORDS] {
    // SAFETY: 24 bytes, aligned to eight.
    unsafe { &*(&raw const *key).cast() }
}

/// What is known of a flow, if it is confirmed: the likeliest place is looked at here, and so mostly only that.
#[inline(always)]
pub fn likely_confirmed(key: &FlowKey) -> Option<Found> {
    let hash = FlowHash::new(seed(), *words(key));
    let set = Confirmed::set(hash.first_set(Confirmed::mask()))?;
    found(set, hash.way(), key).or_else(|| confirmed(key))
}

/// What is known of a flow, if it is confirmed.
#[inline(always)]
pub fn confirmed(key: &FlowKey) -> Option<Found> {
    let place = Place(search_confirmed(key));
    found(place.set::<Confirmed>()?, place.way(), key)
}

#[inline(always)]
fn found(set: *mut FlowEntry, way: usize, key: &FlowKey) -> Option<Found> {
    let verdict = read::<Confirmed>(set, way);
    holds::<Confirmed>(set, way, verdict, key)
        .then(|| Found { value: Confirmed::verdict(set, way).cast(), verdict })
}

/// What is known of a flow, if it is not confirmed.
#[inline(always)]
pub fn unconfirmed(key: &FlowKey, sides: &Sides) -> Option<FoundPending> {
    let place = Place(search_unconfirmed(key, sides));
    let (set, way) = (place.set::<Unconfirmed>()?, place.way());
    let verdict = read::<Unconfirmed>(set, way);
    holds::<Unconfirmed>(set, way, verdict, key).then_some(FoundPending { set, way, verdict })
}

/// Where a conversation that is not confirmed is looked for: each of its keys, and the address of the endpoint that
/// has it, lead to the same place.
#[repr(C)]
pub struct Sides {
    pub key: FlowKey,
    pub local: Address,
    /// What [`hash_conversation`] makes of them.
    pub hash: FlowHash,
}

/// Hashes a conversation, once for a packet.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn hash_conversation(sides: *mut Sides) -> u64 {
    // SAFETY: as of `search_confirmed`.
    let Some(sides) = (unsafe { sides.as_mut() }) else { return 0 };
    sides.hash = FlowHash::of_both_sides(seed(), &sides.key, &sides.local);
    0
}

// What goes through whole sets are global functions to the kernel, which verifies them once and not with all that
// leads to them. They answer with a `Place`, since such a function cannot answer with an address.

#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn search_confirmed(key: *const FlowKey) -> u64 {
    // SAFETY: a caller's own memory; the kernel does not know that there always is one.
    let Some(key) = (unsafe { key.as_ref() }) else { return Place::NONE.0 };
    let hash = FlowHash::new(seed(), *words(key));
    let mut number = hash.first_set(Confirmed::mask());
    let mut taken = ways_of(number);
    // The first set, and then perhaps the second.
    for _ in 0..2 {
        if taken & ways::TAKEN != 0
            && let Some(set) = Confirmed::set(number)
        {
            for step in steps() {
                let way = (hash.way() ^ step) & (WAYS - 1);
                if taken >> way & 1 == 1
                    && holds::<Confirmed>(set, way, read::<Confirmed>(set, way), key)
                {
                    return Place::at(number, way).0;
                }
            }
        }
        if taken & ways::OVERFLOWED == 0 {
            break;
        }
        number = hash.second_set(Confirmed::mask());
        taken = ways_of(number) & ways::TAKEN;
    }
    Place::NONE.0
}

#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn search_unconfirmed(key: *const FlowKey, sides: *const Sides) -> u64 {
    // SAFETY: as of `search_confirmed`.
    let (Some(key), Some(sides)) = (unsafe { (key.as_ref(), sides.as_ref()) }) else {
        return Place::NONE.0;
    };
    let hash = sides.hash;
    let number = hash.first_set(Unconfirmed::mask());
    let Some(set) = Unconfirmed::set(number) else { return Place::NONE.0 };
    for step in steps() {
        let way = (hash.way() ^ step) & (WAYS - 1);
        if may_be(set, way, hash)
            && holds::<Unconfirmed>(set, way, read::<Unconfirmed>(set, way), key)
        {
            return Place::at(number, way).0;
        }
    }
    Place::NONE.0
}

/// [`FlowKey::tag`] of a key's words.
#[inline(always)]
fn tag_of(words: &[u64; KEY_WORDS]) -> u64 {
    tag(fold(words[0] ^ words[1] ^ words[2]))
}

/// For [`search_conversation`]: there is no other endpoint, or the conversation is known by its own key only.
pub const NO_SLOT: u64 = u64::MAX;
pub const OWN_KEY: u64 = NO_SLOT - 1;

/// What is known of a conversation that is not confirmed, as a number of [`Known`]: by the key of these `sides`, by that
/// of the other direction at the same endpoint, or by that at the other endpoint, in the slot `peer`.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn search_conversation(sides: *const Sides, peer: u64) -> u64 {
    // SAFETY: as of `search_confirmed`.
    let Some(sides) = (unsafe { sides.as_ref() }) else { return 0 };
    let hash = sides.hash;
    let Some(set) = Unconfirmed::set(hash.first_set(Unconfirmed::mask())) else { return 0 };
    const OWN: u64 = 1;
    const TURNED: u64 = 2;
    const MIRRORED: u64 = 4;
    let mut there = 0;
    for step in steps() {
        let way = (hash.way() ^ step) & (WAYS - 1);
        if !may_be(set, way, hash) {
            continue;
        }
        let set = again(set);
        // SAFETY: a key, and the address that follows it.
        let wanted = unsafe { &*again((&raw const *sides).cast_mut()).cast::<[u64; 5]>() };
        let [first, found @ ..] = words_of::<Unconfirmed>(set, way);
        let (is, rest) = if first == wanted[0] {
            (OWN, 1)
        } else if peer != OWN_KEY && first == wanted[0] ^ TURN {
            (TURNED, 1)
        } else if peer < OWN_KEY && first == mirrored(wanted[0], peer) {
            (MIRRORED, 3)
        } else {
            continue;
        };
        // SAFETY: two words of the five.
        let rest = unsafe { &*again(wanted.as_ptr().add(rest).cast_mut()).cast::<[u64; 2]>() };
        if found[0] == rest[0]
            && found[1] == rest[1]
            && let verdict = read::<Unconfirmed>(set, way)
            && verdict.is_one()
            && let Some(slot) = SLOTS.get(first as u32 & 0xffff)
            && super::is_bound(verdict, tag_of(&[first, found[0], found[1]]), slot)
        {
            there |= is;
        }
    }
    let first = words(&sides.key)[0];
    // What came out of the stack is answered into it, whatever else is known of the conversation.
    let (known, other) = if there & TURNED != 0 {
        (Known::Turned, first ^ TURN)
    } else if there & MIRRORED != 0 {
        (Known::Mirrored, mirrored(first, peer))
    } else if there & OWN != 0 {
        return Known::Pending as u64;
    } else {
        return Known::Nothing as u64;
    };
    // Both sides have begun at once: either takes the same of the two.
    if there & OWN != 0 && first < other { Known::Pending as u64 } else { known as u64 }
}

/// The first word of a key's [`FlowKey::mirrored`], by its own.
#[inline(always)]
const fn mirrored(first: u64, peer: u64) -> u64 {
    let ports = ((first >> 32) as u32).rotate_left(16);
    (ports as u64) << 32 | first & 0xff_0000 | peer & 0xffff
}

/// A free entry for a flow that is not among the confirmed ones, in either of its sets.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn choose_confirmed(key: *const FlowKey) -> u64 {
    // SAFETY: as of `search_confirmed`.
    let Some(key) = (unsafe { key.as_ref() }) else { return Place::NONE.0 };
    let hash = FlowHash::new(seed(), *words(key));
    let (first, second) = (hash.first_set(Confirmed::mask()), hash.second_set(Confirmed::mask()));
    let taken = ways_of(first) & ways::TAKEN;
    let free = free_way(hash, taken);
    let in_first = count(taken);
    if in_first >= CROWDED {
        let taken = ways_of(second) & ways::TAKEN;
        let free = free_way(hash, taken);
        if free < WAYS && count(taken) < in_first {
            // Before anybody can look for it there.
            note_overflow(first);
            return Place::at(second, free).0;
        }
    }
    if free < WAYS { Place::at(first, free).0 } else { Place::NONE.0 }
}

/// The first entry that is not taken, in the order in which they are looked at; [`WAYS`] if all are.
#[inline(always)]
fn free_way(hash: FlowHash, taken: u64) -> usize {
    for step in steps() {
        let way = (hash.way() ^ step) & (WAYS - 1);
        if taken >> way & 1 == 0 {
            return way;
        }
    }
    WAYS
}

/// How many of eight bits are set.
#[inline(always)]
const fn count(bits: u64) -> u64 {
    let pairs = bits - (bits >> 1 & 0x55);
    let fours = (pairs & 0x33) + (pairs >> 2 & 0x33);
    (fours + (fours >> 4)) & 0x0f
}

/// Where a flow that is not confirmed goes: to its own entry, a free one, or that of whoever was idle for longest.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn choose_unconfirmed(key: *const FlowKey, sides: *const Sides) -> u64 {
    // SAFETY: as of `search_confirmed`.
    let (Some(key), Some(sides)) = (unsafe { (key.as_ref(), sides.as_ref()) }) else {
        return Place::NONE.0;
    };
    let Some(state) = STATE.get(0) else { return Place::NONE.0 };
    let hash = sides.hash;
    let number = hash.first_set(Unconfirmed::mask());
    let Some(set) = Unconfirmed::set(number) else { return Place::NONE.0 };
    let (mut free, mut others, mut longest) = (WAYS, WAYS, 0);
    for step in steps() {
        let way = (hash.way() ^ step) & (WAYS - 1);
        let verdict = read::<Unconfirmed>(set, way);
        if verdict == Verdict::FREE {
            if free == WAYS {
                free = way;
            }
        } else if verdict.is_one() {
            if may_be(set, way, hash) && holds::<Unconfirmed>(set, way, verdict, key) {
                return Place::at(number, way).0 | Place::OWN;
            }
            // SAFETY: an aligned word of a live map value.
            let seen = unsafe { seen(set, way).read_volatile() };
            // Another CPU may have read the clock a moment later than this one.
            let idle = state.seconds.wrapping_sub(seen).cast_signed().max(0) + 1;
            if idle > longest {
                (others, longest) = (way, idle);
            }
        }
    }
    if free < WAYS {
        Place::at(number, free).0
    } else if others < WAYS {
        Place::at(number, others).0 | Place::OTHERS
    } else {
        Place::NONE.0
    }
}

/// A place in a table: the number of a set, and that of an entry in it.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Place(u64);

impl Place {
    const NONE: Self = Self(u64::MAX);
    /// Another flow has it.
    const OTHERS: u64 = 1 << 7;
    /// It is the flow's own.
    const OWN: u64 = 1 << 6;
    const SET_SHIFT: u32 = 8;

    #[inline(always)]
    const fn at(set: u32, way: usize) -> Self {
        Self((set as u64) << Self::SET_SHIFT | way as u64)
    }

    #[inline(always)]
    const fn is(self, whose: u64) -> bool {
        self.0 & whose != 0
    }

    #[inline(always)]
    const fn number(self) -> u32 {
        (self.0 >> Self::SET_SHIFT) as u32
    }

    #[inline(always)]
    const fn way(self) -> usize {
        self.0 as usize & (WAYS - 1)
    }

    #[inline(always)]
    fn set<T: Table>(self) -> Option<*mut T::Set> {
        if self == Self::NONE { None } else { T::set(self.number()) }
    }
}

/// What is taken of a set of confirmed flows, of [`ways`].
#[inline(always)]
fn ways_of(set: u32) -> u64 {
    // SAFETY: a word of a live map value.
    FLOW_WAYS
        .get_ptr(ways::word(set))
        .map_or(0, |word| unsafe { word.read_volatile() } >> ways::shift(set) & 0xffff)
}

/// Has an entry, if nobody else has it.
#[inline(always)]
fn take_way(place: Place) -> bool {
    let Some(word) = FLOW_WAYS.get_ptr_mut(ways::word(place.number())) else { return false };
    let bit = 1 << place.way() << ways::shift(place.number());
    // SAFETY: an aligned word of a live map value.
    unsafe { atomic_or::<u64, u64, { SeqCst }>(word, bit) & bit == 0 }
}

/// Has it no more.
#[inline(always)]
fn leave_way(place: Place) {
    if let Some(word) = FLOW_WAYS.get_ptr_mut(ways::word(place.number())) {
        let bit: u64 = 1 << place.way() << ways::shift(place.number());
        // SAFETY: an aligned word of a live map value.
        unsafe { atomic_and::<u64, u64, { SeqCst }>(word, !bit) };
    }
}

#[inline(always)]
fn note_overflow(set: u32) {
    if let Some(word) = FLOW_WAYS.get_ptr_mut(ways::word(set)) {
        // SAFETY: an aligned word of a live map value.
        unsafe { atomic_or::<u64, u64, { SeqCst }>(word, ways::OVERFLOWED << ways::shift(set)) };
    }
}

/// The numbers below [`WAYS`], in a loop that the compiler does not unroll: sixteen copies of its body need more of the
/// stack than there is.
#[inline(always)]
fn steps() -> impl Iterator<Item = usize> {
    let next = |&step: &usize| {
        let mut step = step;
        // SAFETY: it adds one.
        unsafe {
            asm!("{step} += 1", step = inout(reg) step, options(pure, nomem, nostack));
        }
        (step < WAYS).then_some(step)
    };
    core::iter::successors(Some(0), next)
}

/// The same. The compiler does not know, and makes nothing of it in advance that would have to have a place on the stack.
#[inline(always)]
fn again<T>(value: *mut T) -> *mut T {
    let mut value = value;
    // SAFETY: it adds nothing.
    unsafe { asm!("{value} += 0", value = inout(reg) value, options(nostack, preserves_flags)) };
    value
}

/// What became of a flow that was to be put into a table.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u64)]
pub enum Put {
    Kept = 0,
    /// In the place of another.
    Evicting = 1,
    /// Others have all the places where it could be.
    NoRoom = 2,
    /// Its place became another's in that moment.
    Raced = 3,
}

/// Puts a flow among the confirmed ones, or replaces what is there under its key.
#[inline(never)]
pub fn put_confirmed(key: &FlowKey, flow: &Flow) -> Put {
    let own = Place(search_confirmed(key));
    if let Some(set) = own.set::<Confirmed>() {
        let verdict = Confirmed::verdict(set, own.way());
        let last = read::<Confirmed>(set, own.way());
        if !holds::<Confirmed>(set, own.way(), last, key)
            || !exchange(verdict, last, Verdict::TAKEN)
        {
            return Put::Raced;
        }
        fill_confirmed(set, own.way(), key, flow);
        return Put::Kept;
    }
    let place = Place(choose_confirmed(key));
    let Some(set) = place.set::<Confirmed>() else { return Put::NoRoom };
    if !take_way(place)
        || !exchange(Confirmed::verdict(set, place.way()), Verdict::FREE, Verdict::TAKEN)
    {
        return Put::Raced;
    }
    fill_confirmed(set, place.way(), key, flow);
    Put::Kept
}

/// Writes to an entry that this CPU has taken.
#[inline(always)]
fn fill_confirmed(set: *mut FlowEntry, way: usize, key: &FlowKey, flow: &Flow) {
    let (to, from) = (Confirmed::entry(set, way), (&raw const *flow).cast::<u64>());
    // SAFETY: the entry is this CPU's alone until its verdict is written, and has as many words.
    unsafe {
        for (place, word) in words(key).iter().enumerate() {
            to.add(place).write_volatile(*word);
        }
        for word in 1..size_of::<Flow>() / size_of::<u64>() {
            to.add(KEY_WORDS + word).write_volatile(from.add(word).read());
        }
        atomic_xchg::<u64, { SeqCst }>(to.add(KEY_WORDS), from.read());
    }
}

/// Puts a flow among the others, or replaces what is there under its key.
#[inline(never)]
pub fn put_unconfirmed(
    sides: &Sides,
    entry: &PendingEntry,
    last_seen: u32,
    verdict: Verdict,
) -> Put {
    let place = Place(choose_unconfirmed(&entry.key, sides));
    let Some(set) = place.set::<Unconfirmed>() else { return Put::NoRoom };
    let way = place.way();
    let last = match place.is(Place::OWN | Place::OTHERS) {
        true => read::<Unconfirmed>(set, way),
        false => Verdict::FREE,
    };
    let is_still = match place.is(Place::OWN) {
        true => holds::<Unconfirmed>(set, way, last, &entry.key),
        false => last != Verdict::TAKEN,
    };
    let taken = Unconfirmed::verdict(set, way);
    if !is_still || !exchange(taken, last, Verdict::TAKEN) {
        return Put::Raced;
    }
    let hash = sides.hash;
    let (to, from) = (Unconfirmed::entry(set, way), (&raw const *entry).cast::<u64>());
    // SAFETY: the entry is this CPU's alone until its verdict is written, and has as many words.
    unsafe {
        for word in 0..size_of::<PendingEntry>() / size_of::<u64>() {
            to.add(word).write_volatile(from.add(word).read());
        }
        seen(set, way).write_volatile(last_seen);
        hash_at(set, way).write_volatile(hash.rest());
        atomic_xchg::<u64, { SeqCst }>(taken.cast(), verdict.0);
    }
    if place.is(Place::OTHERS) && last.is_one() { Put::Evicting } else { Put::Kept }
}

/// Forgets a flow, if it is known.
#[inline(never)]
pub fn forget_confirmed(key: &FlowKey) {
    let place = Place(search_confirmed(key));
    let Some(set) = place.set::<Confirmed>() else { return };
    let last = read::<Confirmed>(set, place.way());
    if holds::<Confirmed>(set, place.way(), last, key)
        && exchange(Confirmed::verdict(set, place.way()), last, Verdict::FREE)
    {
        leave_way(place);
    }
}

/// Forgets a flow, if it is known.
#[inline(always)]
pub fn forget_unconfirmed(key: &FlowKey, sides: &Sides) {
    if let Some(found) = unconfirmed(key, sides) {
        found.replace_verdict(Verdict::FREE);
    }
}

/// Writes a verdict where `last` is; not if the entry has become another flow's, or has another verdict, meanwhile.
#[inline(always)]
pub fn exchange(place: *mut Verdict, last: Verdict, verdict: Verdict) -> bool {
    // SAFETY: an aligned word of a live map value, as all places of verdicts are.
    let (_, is_done) =
        unsafe { atomic_cxchg::<u64, { SeqCst }, { SeqCst }>(place.cast(), last.0, verdict.0) };
    is_done
}

#[inline(always)]
fn read<T: Table>(set: *mut T::Set, way: usize) -> Verdict {
    // SAFETY: an aligned word of a live map value.
    unsafe { T::verdict(set, way).read_volatile() }
}

/// Whether the entry is that flow's, given its verdict, which was read before.
#[inline(always)]
fn holds<T: Table>(set: *mut T::Set, way: usize, verdict: Verdict, key: &FlowKey) -> bool {
    is_same(&words_of::<T>(set, way), words(key))
        && verdict.is_one()
        && read::<T>(set, way) == verdict
}

/// In place of `==`, which is a call of `memcmp`.
#[inline(always)]
const fn is_same(a: &[u64; KEY_WORDS], b: &[u64; KEY_WORDS]) -> bool {
    a[0] == b[0] && a[1] == b[1] && a[2] == b[2]
}

#[inline(always)]
fn words_of<T: Table>(set: *mut T::Set, way: usize) -> [u64; KEY_WORDS] {
    let words = T::entry(set, way);
    // SAFETY: aligned words of a live map value.
    [0, 1, 2].map(|place| unsafe { words.add(place).read_volatile() })
}
