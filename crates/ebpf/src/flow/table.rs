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
    intrinsics::{AtomicOrdering::SeqCst, atomic_cxchg, atomic_or, atomic_xchg},
};

use podwire_abi::{
    Address, Flow, FlowEntry, FlowHash, FlowKey, HashSeed, NodeState, Pending, PendingEntry,
    Verdict, WAYS, fold, tag,
};

use super::Known;
use crate::maps::{FLOWS, OVERFLOWED, PENDING, SLOTS, STATE};

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
    // SAFETY: it does nothing; but the compiler no longer knows that those are the zeros above. The loader has
    // written numbers there.
    unsafe {
        asm!("/* {seed} */", seed = inout(reg) seed, options(pure, nomem, nostack, preserves_flags));
        &*seed
    }
}

/// Confirmed flows.
pub enum Confirmed {}
/// The others.
pub enum Unconfirmed {}

/// What differs between the tables.
pub trait Table {
    type Value;
    type Entry;

    /// Whether a flow has one set, and takes the place of whoever was idle for longest when that is full; or else
    /// a second one.
    const EVICTS: bool;

    fn mask() -> u32;

    fn set(number: u32) -> Option<*mut Self::Entry>;

    /// When the flow had its last packet.
    ///
    /// # Safety
    /// It must be of a live entry.
    unsafe fn seen(value: *const Self::Value) -> u32;
}

impl Table for Confirmed {
    type Value = Flow;
    type Entry = FlowEntry;

    const EVICTS: bool = false;

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
    unsafe fn seen(value: *const Flow) -> u32 {
        // SAFETY: the caller's promise.
        unsafe { (*value).seen }
    }
}

impl Table for Unconfirmed {
    type Value = Pending;
    type Entry = PendingEntry;

    const EVICTS: bool = true;

    #[inline(always)]
    fn mask() -> u32 {
        // SAFETY: a constant that is written before the program is loaded.
        unsafe { core::ptr::read_volatile(&raw const PENDING_MASK) }
    }

    #[inline(always)]
    fn set(number: u32) -> Option<*mut PendingEntry> {
        PENDING.get_ptr_mut(number).map(|set| set.cast())
    }

    #[inline(always)]
    unsafe fn seen(value: *const Pending) -> u32 {
        // SAFETY: the caller's promise.
        unsafe { (*value).seen }
    }
}

/// What is known of a flow: where it is, and what its verdict was when it was found.
pub struct Found<V> {
    pub value: *mut V,
    pub verdict: Verdict,
}

/// A flow goes into its second set if the first has as many, and the second fewer: most are found where they are
/// looked for first, and yet a table that is half full has room for everybody.
const CROWDED: u32 = 6;

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
pub fn likely_confirmed(key: &FlowKey) -> Option<Found<Flow>> {
    let hash = FlowHash::new(seed(), *words(key));
    let set = Confirmed::set(hash.first_set(Confirmed::mask()))?;
    let entry = entry_of::<Confirmed>(set, hash.way());
    let verdict = read::<Confirmed>(entry);
    if holds::<Confirmed>(entry, verdict, key) {
        return Some(Found { value: value_of::<Confirmed>(entry), verdict });
    }
    confirmed(key)
}

/// What is known of a flow, if it is confirmed.
#[inline(always)]
pub fn confirmed(key: &FlowKey) -> Option<Found<Flow>> {
    found::<Confirmed>(search_confirmed(key), key)
}

/// What is known of a flow, if it is not confirmed.
#[inline(always)]
pub fn unconfirmed(key: &FlowKey, sides: &Sides) -> Option<Found<Pending>> {
    found::<Unconfirmed>(search_unconfirmed(key, sides), key)
}

/// Where a conversation that is not confirmed is looked for: each of its keys, and the address of the endpoint that
/// has it, lead to the same place.
#[repr(C)]
pub struct Sides {
    pub key: FlowKey,
    pub local: Address,
}

#[inline(always)]
fn found<T: Table>(place: u64, key: &FlowKey) -> Option<Found<T::Value>> {
    let entry = Place(place).entry::<T>()?;
    let verdict = read::<T>(entry);
    holds::<T>(entry, verdict, key).then(|| Found { value: value_of::<T>(entry), verdict })
}

// What goes through whole sets are global functions to the kernel, which verifies them once and not with all that
// leads to them. They answer with a `Place`, since such a function cannot answer with an address.

#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn search_confirmed(key: *const FlowKey) -> u64 {
    // SAFETY: a caller's own memory; the kernel does not know that there always is one.
    let Some(key) = (unsafe { key.as_ref() }) else { return Place::NONE.0 };
    search::<Confirmed>(key, FlowHash::new(seed(), *words(key))).0
}

#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn search_unconfirmed(key: *const FlowKey, sides: *const Sides) -> u64 {
    // SAFETY: as of `search_confirmed`.
    let (Some(key), Some(sides)) = (unsafe { (key.as_ref(), sides.as_ref()) }) else {
        return Place::NONE.0;
    };
    let hash = FlowHash::of_both_sides(seed(), &sides.key, &sides.local);
    search::<Unconfirmed>(key, hash).0
}

/// What is known of a conversation that is not confirmed, as a number of [`Known`]: by the key of these `sides`, by that
/// of the other direction at the same endpoint, or by that at the other endpoint, in the slot `peer` if that is one. An echo
/// is known by its own only.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn search_conversation(sides: *const Sides, is_echo: u64, peer: u64) -> u64 {
    // SAFETY: as of `search_confirmed`.
    let Some(sides) = (unsafe { sides.as_ref() }) else { return 0 };
    let Some(own) = SLOTS.get(sides.key.endpoint.into()) else { return 0 };
    let hash = FlowHash::of_both_sides(seed(), &sides.key, &sides.local);
    let Some(set) = Unconfirmed::set(hash.first_set(Unconfirmed::mask())) else { return 0 };
    let key = words(&sides.key);
    // As `FlowKey::mirrored` has it, without a place on the stack.
    let ports = ((key[0] >> 32) as u32).rotate_left(16);
    let mirrored = u64::from(ports) << 32 | key[0] & 0xff_0000 | peer & 0xffff;
    // SAFETY: 16 bytes, and aligned since a key is before them.
    let local = unsafe { &*(&raw const sides.local).cast::<[u64; 2]>() };
    let mut known = 0;
    for step in steps() {
        let entry = entry_of::<Unconfirmed>(set, (hash.way() ^ step) & (WAYS - 1));
        let verdict = read::<Unconfirmed>(entry);
        let found = words_of::<Unconfirmed>(entry);
        let (by, slot) = if is_same(&found, key) {
            (Known::Pending, own)
        } else if is_echo != 0 {
            continue;
        } else if is_same(&found, &[key[0] ^ TURN, key[1], key[2]]) {
            (Known::Turned, own)
        } else if peer < u64::from(Verdict::SLOTS)
            && is_same(&found, &[mirrored, local[0], local[1]])
            && let Some(slot) = SLOTS.get(peer as u32)
        {
            (Known::Mirrored, slot)
        } else {
            continue;
        };
        let tag = tag(fold(found[0] ^ found[1] ^ found[2]));
        let by = by as u64;
        if verdict.is_one() && super::is_bound(verdict, tag, slot) && (known == 0 || by < known) {
            known = by;
        }
    }
    known
}

#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn choose_confirmed(key: *const FlowKey) -> u64 {
    // SAFETY: as of `search_confirmed`.
    let Some(key) = (unsafe { key.as_ref() }) else { return Place::NONE.0 };
    let hash = FlowHash::new(seed(), *words(key));
    choose_in_two(key, hash).unwrap_or(Place::NONE).0
}

#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn choose_unconfirmed(key: *const FlowKey, sides: *const Sides) -> u64 {
    // SAFETY: as of `search_confirmed`.
    let (Some(key), Some(sides)) = (unsafe { (key.as_ref(), sides.as_ref()) }) else {
        return Place::NONE.0;
    };
    let Some(state) = STATE.get(0) else { return Place::NONE.0 };
    let hash = FlowHash::of_both_sides(seed(), &sides.key, &sides.local);
    choose_in_one(key, hash, state).unwrap_or(Place::NONE).0
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
    fn entry<T: Table>(self) -> Option<*mut T::Entry> {
        if self == Self::NONE {
            return None;
        }
        let set = T::set((self.0 >> Self::SET_SHIFT) as u32)?;
        Some(entry_of::<T>(set, self.0 as usize & (WAYS - 1)))
    }
}

#[inline(always)]
fn search<T: Table>(key: &FlowKey, hash: FlowHash) -> Place {
    let first = hash.first_set(T::mask());
    let place = search_set::<T>(key, hash, first);
    if place != Place::NONE || T::EVICTS || !has_overflowed(first) {
        return place;
    }
    search_set::<T>(key, hash, hash.second_set(T::mask()))
}

#[inline(always)]
fn search_set<T: Table>(key: &FlowKey, hash: FlowHash, number: u32) -> Place {
    let Some(set) = T::set(number) else { return Place::NONE };
    for step in steps() {
        let way = (hash.way() ^ step) & (WAYS - 1);
        let entry = entry_of::<T>(set, way);
        if holds::<T>(entry, read::<T>(entry), key) {
            return Place::at(number, way);
        }
    }
    Place::NONE
}

/// What a set has for a flow: ways, each in four bits of a number, and how many are taken.
#[derive(Clone, Copy)]
struct Offer(u64);

impl Offer {
    const OWN: u32 = 0;
    const FREE: u32 = 4;
    /// Whoever was idle for longest.
    const OTHERS: u32 = 8;
    const TAKEN: u32 = 12;
    const NONE: u64 = 0xf;

    /// The place in that set, if it has one of the kind.
    #[inline(always)]
    fn place(self, kind: u32, set: u32) -> Option<Place> {
        let flag = match kind {
            Self::OWN => Place::OWN,
            Self::OTHERS => Place::OTHERS,
            _ => 0,
        };
        match self.0 >> kind & 0xf {
            Self::NONE => None,
            way => Some(Place(Place::at(set, way as usize).0 | flag)),
        }
    }

    #[inline(always)]
    fn taken(self) -> u32 {
        (self.0 >> Self::TAKEN) as u32
    }
}

#[inline(never)]
extern "C" fn offer_of_confirmed(key: *const FlowKey, hash: u64, number: u32) -> u64 {
    // SAFETY: a caller's own memory.
    offer_of::<Confirmed>(unsafe { &*key }, FlowHash(hash), number, 0).0
}

#[inline(always)]
fn offer_of<T: Table>(key: &FlowKey, hash: FlowHash, number: u32, seconds: u32) -> Offer {
    let (mut own, mut free, mut others) = (Offer::NONE, Offer::NONE, Offer::NONE);
    let (mut taken, mut longest) = (0, 0);
    if let Some(set) = T::set(number) {
        for step in steps() {
            let way = (hash.way() ^ step) & (WAYS - 1);
            let entry = entry_of::<T>(set, way);
            let verdict = read::<T>(entry);
            if holds::<T>(entry, verdict, key) {
                own = way as u64;
                break;
            }
            if verdict == Verdict::FREE {
                if free == Offer::NONE {
                    free = way as u64;
                }
                continue;
            }
            taken += 1;
            if T::EVICTS && verdict.is_one() {
                // SAFETY: a live entry.
                let seen = unsafe { T::seen(value_of::<T>(entry)) };
                // Another CPU may have read the clock a moment later than this one.
                let idle = seconds.wrapping_sub(seen).cast_signed().max(0) + 1;
                if idle > longest {
                    (others, longest) = (way as u64, idle);
                }
            }
        }
    }
    Offer(own << Offer::OWN | free << Offer::FREE | others << Offer::OTHERS | taken << Offer::TAKEN)
}

/// Where a confirmed flow goes: to its own place, or a free one in either set.
#[inline(always)]
fn choose_in_two(key: &FlowKey, hash: FlowHash) -> Option<Place> {
    let (first, second) = (hash.first_set(Confirmed::mask()), hash.second_set(Confirmed::mask()));
    let offer = Offer(offer_of_confirmed(key, hash.0, first));
    if let Some(own) = offer.place(Offer::OWN, first) {
        return Some(own);
    }
    let free = offer.place(Offer::FREE, first);
    if offer.taken() < CROWDED && !has_overflowed(first) {
        return free;
    }
    let other = Offer(offer_of_confirmed(key, hash.0, second));
    if let Some(own) = other.place(Offer::OWN, second) {
        return Some(own);
    }
    let is_better = offer.taken() >= CROWDED && other.taken() < offer.taken();
    if let Some(other) = other.place(Offer::FREE, second)
        && (is_better || free.is_none())
    {
        // Before anybody can look for it there.
        note_overflow(first);
        return Some(other);
    }
    free
}

/// Where another flow goes: to its own place, or a free one, or that of whoever was idle for longest.
#[inline(always)]
fn choose_in_one(key: &FlowKey, hash: FlowHash, state: &NodeState) -> Option<Place> {
    let set = hash.first_set(Unconfirmed::mask());
    let offer = offer_of::<Unconfirmed>(key, hash, set, state.seconds);
    offer
        .place(Offer::OWN, set)
        .or_else(|| offer.place(Offer::FREE, set))
        .or_else(|| offer.place(Offer::OTHERS, set))
}

/// Whether a flow that has this set first has ever gone to its second.
#[inline(always)]
fn has_overflowed(set: u32) -> bool {
    // SAFETY: a word of a live map value.
    OVERFLOWED
        .get_ptr(set / u64::BITS)
        .is_some_and(|word| unsafe { word.read_volatile() } >> (set % u64::BITS) & 1 == 1)
}

#[inline(always)]
fn note_overflow(set: u32) {
    if let Some(word) = OVERFLOWED.get_ptr_mut(set / u64::BITS) {
        // SAFETY: an aligned word of a live map value.
        unsafe { atomic_or::<u64, u64, { SeqCst }>(word, 1 << (set % u64::BITS)) };
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

/// Puts a flow into the table, or replaces what is there under its key.
#[inline(never)]
pub fn put_confirmed(key: &FlowKey, flow: &Flow) -> Put {
    put::<Confirmed>(Place(choose_confirmed(key)), key, flow)
}

/// Puts a flow into the table, or replaces what is there under its key.
#[inline(never)]
pub fn put_unconfirmed(key: &FlowKey, sides: &Sides, pending: &Pending) -> Put {
    put::<Unconfirmed>(Place(choose_unconfirmed(key, sides)), key, pending)
}

/// Writes a flow to its place.
#[inline(always)]
fn put<T: Table>(place: Place, key: &FlowKey, value: &T::Value) -> Put {
    let Some(chosen) = place.entry::<T>() else { return Put::NoRoom };
    let last = match place.is(Place::OWN | Place::OTHERS) {
        true => read::<T>(chosen),
        false => Verdict::FREE,
    };
    let is_still = match place.is(Place::OWN) {
        true => holds::<T>(chosen, last, key),
        false => last != Verdict::TAKEN,
    };
    if !is_still || !exchange::<T>(chosen, last, Verdict::TAKEN) {
        return Put::Raced;
    }
    // SAFETY: the entry is this CPU's alone until its verdict is written, and has as many words.
    unsafe {
        let (to, from) = (chosen.cast::<u64>(), (&raw const *value).cast::<u64>());
        for (place, word) in words(key).iter().enumerate() {
            to.add(place).write_volatile(*word);
        }
        for word in 1..size_of::<T::Value>() / size_of::<u64>() {
            to.add(KEY_WORDS + word).write_volatile(from.add(word).read());
        }
        atomic_xchg::<u64, { SeqCst }>(to.add(KEY_WORDS), from.read());
    }
    if place.is(Place::OTHERS) && last.is_one() { Put::Evicting } else { Put::Kept }
}

/// Forgets a flow, if it is known.
#[inline(always)]
pub fn forget_confirmed(key: &FlowKey) {
    if let Some(found) = confirmed(key) {
        replace_verdict(found.value.cast(), found.verdict, Verdict::FREE);
    }
}

/// Forgets a flow, if it is known.
#[inline(always)]
pub fn forget_unconfirmed(key: &FlowKey, sides: &Sides) {
    if let Some(found) = unconfirmed(key, sides) {
        replace_verdict(found.value.cast(), found.verdict, Verdict::FREE);
    }
}

/// Whether the entry is still what it was when it was found.
#[inline(always)]
pub fn is_still(found: &Found<Pending>, key: &FlowKey) -> bool {
    // SAFETY: values of found flows lie in entries, behind their keys.
    let entry = unsafe { found.value.cast::<u64>().sub(KEY_WORDS) };
    holds::<Unconfirmed>(entry.cast(), found.verdict, key)
}

/// Writes a verdict where `last` is; not if the entry has become another flow's, or has another verdict, meanwhile.
#[inline(always)]
pub fn replace_verdict(place: *mut Verdict, last: Verdict, verdict: Verdict) -> bool {
    // SAFETY: an aligned word of a live map value, as all places of found flows are.
    let (_, is_done) =
        unsafe { atomic_cxchg::<u64, { SeqCst }, { SeqCst }>(place.cast(), last.0, verdict.0) };
    is_done
}

#[inline(always)]
fn entry_of<T: Table>(set: *mut T::Entry, way: usize) -> *mut T::Entry {
    // SAFETY: a set has as many entries as there are ways.
    unsafe { set.add(way) }
}

#[inline(always)]
fn value_of<T: Table>(entry: *mut T::Entry) -> *mut T::Value {
    // SAFETY: an entry is its key and a value.
    unsafe { entry.cast::<u64>().add(KEY_WORDS).cast() }
}

#[inline(always)]
fn read<T: Table>(entry: *mut T::Entry) -> Verdict {
    // SAFETY: an aligned word of a live map value, with which a value begins.
    unsafe { value_of::<T>(entry).cast::<Verdict>().read_volatile() }
}

/// Whether the entry is that flow's, given its verdict, which was read before.
#[inline(always)]
fn holds<T: Table>(entry: *mut T::Entry, verdict: Verdict, key: &FlowKey) -> bool {
    is_same(&words_of::<T>(entry), words(key)) && verdict.is_one() && read::<T>(entry) == verdict
}

/// In place of `==`, which is a call of `memcmp`.
#[inline(always)]
const fn is_same(a: &[u64; KEY_WORDS], b: &[u64; KEY_WORDS]) -> bool {
    a[0] == b[0] && a[1] == b[1] && a[2] == b[2]
}

#[inline(always)]
fn words_of<T: Table>(entry: *mut T::Entry) -> [u64; KEY_WORDS] {
    let words = entry.cast::<u64>();
    // SAFETY: aligned words of a live map value.
    [0, 1, 2].map(|place| unsafe { words.add(place).read_volatile() })
}

#[inline(always)]
fn exchange<T: Table>(entry: *mut T::Entry, last: Verdict, verdict: Verdict) -> bool {
    replace_verdict(value_of::<T>(entry).cast(), last, verdict)
}
