//! The two tables of flows, as user space sees them: the same memory that the programs work in.

use std::{
    mem::offset_of,
    sync::atomic::{
        AtomicU64,
        Ordering::{Acquire, Relaxed, SeqCst},
        fence,
    },
};

use podwire_abi::{
    Address, Flow, FlowEntry, FlowHash, FlowKey, HashSeed, Pending, PendingEntry, PendingSet,
    Verdict, WAYS, ways,
};
use podwire_bpf::{Map, MapValue, MappedArray, TypedMap};

use crate::error::Result;

const WORD: usize = size_of::<u64>();
const KEY_WORDS: usize = size_of::<FlowKey>() / WORD;

/// A set of a table of flows, as it lies in memory.
pub trait FlowSet: MapValue {
    /// What is known of a flow.
    type Value;

    /// The place of an entry's verdict, in words of the set.
    fn verdict(way: usize) -> usize;

    /// The place of an entry, with its key at the beginning.
    fn entry(way: usize) -> usize;

    /// What is in an entry.
    fn value(set: &[AtomicU64], way: usize, verdict: Verdict) -> Self::Value;

    /// Writes an entry but for its key and its verdict, which it answers.
    fn write(set: &[AtomicU64], way: usize, hash: FlowHash, value: Self::Value) -> Verdict;
}

impl FlowSet for [FlowEntry; WAYS] {
    type Value = Flow;

    fn verdict(way: usize) -> usize {
        Self::entry(way) + KEY_WORDS
    }

    fn entry(way: usize) -> usize {
        way * size_of::<FlowEntry>() / WORD
    }

    fn value(set: &[AtomicU64], way: usize, verdict: Verdict) -> Flow {
        Flow { verdict, ..load(&set[Self::verdict(way)..]) }
    }

    fn write(set: &[AtomicU64], way: usize, _: FlowHash, flow: Flow) -> Verdict {
        // Behind the verdict.
        store(&set[Self::verdict(way)..], &flow, 1);
        flow.verdict
    }
}

impl FlowSet for PendingSet {
    type Value = Pending;

    fn verdict(way: usize) -> usize {
        way
    }

    fn entry(way: usize) -> usize {
        (offset_of!(Self, entries) + way * size_of::<PendingEntry>()) / WORD
    }

    fn value(set: &[AtomicU64], way: usize, verdict: Verdict) -> Pending {
        let entry: PendingEntry = load(&set[Self::entry(way)..]);
        Pending {
            verdict,
            seen: load::<[u32; WAYS]>(&set[SEEN..])[way],
            created: entry.created,
            tcp: entry.tcp & !PendingEntry::MOVING,
            packets: entry.packets,
            bytes: entry.bytes,
            reply_packets: entry.reply_packets,
            reply_bytes: entry.reply_bytes,
        }
    }

    fn write(set: &[AtomicU64], way: usize, hash: FlowHash, pending: Pending) -> Verdict {
        let entry = PendingEntry {
            key: FlowKey::default(),
            created: pending.created,
            tcp: pending.tcp,
            packets: pending.packets,
            bytes: pending.bytes,
            reply_packets: pending.reply_packets,
            reply_bytes: pending.reply_bytes,
        };
        store(&set[Self::entry(way)..], &entry, KEY_WORDS);
        store_half(&set[SEEN..], way, pending.seen);
        store_half(&set[HASHES..], way, hash.rest());
        pending.verdict
    }
}

/// Places in a [`PendingSet`], in words.
const SEEN: usize = offset_of!(PendingSet, seen) / WORD;
const HASHES: usize = offset_of!(PendingSet, hashes) / WORD;

fn load<T: MapValue>(words: &[AtomicU64]) -> T {
    let mut value = T::new_zeroed();
    for (bytes, word) in value.as_mut_bytes().as_chunks_mut().0.iter_mut().zip(words) {
        *bytes = word.load(Relaxed).to_ne_bytes();
    }
    value
}

/// Writes a value but for its first words.
fn store<T: MapValue>(places: &[AtomicU64], value: &T, first: usize) {
    let words = value.as_bytes().as_chunks().0.iter().zip(places).skip(first);
    for (bytes, place) in words {
        place.store(u64::from_ne_bytes(*bytes), Relaxed);
    }
}

/// Writes one of a row of 32-bit numbers.
fn store_half(places: &[AtomicU64], number: usize, value: u32) {
    let place = &places[number / 2];
    let mut bytes = place.load(Relaxed).to_ne_bytes();
    bytes.as_chunks_mut().0[number % 2] = value.to_ne_bytes();
    place.store(u64::from_ne_bytes(bytes), Relaxed);
}

/// A table of flows: sets of [`WAYS`] entries.
///
/// Programs change it meanwhile. A key is read with the verdict that belongs to it, or not at all; counters may be of a
/// moment later. An entry is emptied only if its verdict still is what it was.
#[derive(Debug)]
pub struct FlowTable<S> {
    sets: MappedArray<S>,
    /// Which entries are taken, of confirmed flows.
    ways: Option<MappedArray<u64>>,
    seed: HashSeed,
}

/// How many sets a table has in which so many flows find room: it has twice as many entries then, or more.
pub(crate) const fn sets(flows: u32) -> u32 {
    #[expect(clippy::cast_possible_truncation, reason = "eight")]
    let sets = flows.div_ceil(WAYS as u32 / 2);
    sets.next_power_of_two()
}

/// How many flows find room in so many sets, wherever their hashes lead. Some of many more do.
pub(crate) const fn capacity(sets: u32) -> u32 {
    #[expect(clippy::cast_possible_truncation, reason = "eight")]
    sets.saturating_mul(WAYS as u32 / 2)
}

impl<S: FlowSet> FlowTable<S> {
    pub(crate) fn maps(&self) -> impl Iterator<Item = &Map> {
        [Some(self.sets.as_map()), self.ways.as_ref().map(TypedMap::as_map)].into_iter().flatten()
    }

    /// How many flows there is room for: half of the entries, since flows have places by their hash.
    #[must_use]
    pub fn capacity(&self) -> u32 {
        capacity(self.sets.len())
    }

    /// How many flows there are.
    #[must_use]
    pub fn len(&self) -> u32 {
        let flows = self.all().filter(|(set, way)| verdict_of::<S>(set, *way).is_one());
        u32::try_from(flows.count()).unwrap_or(u32::MAX)
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.iter().next().is_none()
    }

    /// All flows, in no order. Those that come or go meanwhile are there or not.
    pub fn iter(&self) -> impl Iterator<Item = (FlowKey, S::Value)> {
        self.all().filter_map(|(set, way)| read::<S>(set, way)).map(|(_, key, value)| (key, value))
    }

    /// All flows, in no order.
    #[must_use]
    pub fn entries(&self) -> Vec<(FlowKey, S::Value)> {
        self.iter().collect()
    }

    /// Forgets the flows that are not to be kept.
    pub fn retain(&self, mut keeps: impl FnMut(&FlowKey, &S::Value) -> bool) {
        for (number, way, set) in self.places() {
            if let Some((verdict, key, value)) = read::<S>(set, way)
                && !keeps(&key, &value)
            {
                self.empty(number, way, set, verdict);
            }
        }
    }

    /// Forgets all flows.
    pub fn clear(&self) {
        self.retain(|_, _| false);
    }

    fn get_at(&self, hash: FlowHash, key: &FlowKey) -> Option<S::Value> {
        self.places_of(hash)
            .filter_map(|(_, way, set)| read::<S>(set, way))
            .find_map(|(_, found, value)| (found == *key).then_some(value))
    }

    fn insert_at(&self, hash: FlowHash, key: &FlowKey, value: S::Value) -> bool {
        let own = |&(_, way, set): &(u32, usize, &[AtomicU64])| {
            read::<S>(set, way).is_some_and(|(_, found, _)| found == *key)
        };
        // Not in the second set, where programs look only if they put flows there.
        let is_free = |&(_, way, set): &(u32, usize, &[AtomicU64])| {
            verdict_of::<S>(set, way) == Verdict::FREE
        };
        let free = || self.places_of(hash).take(WAYS).find(is_free);
        let Some((number, way, set)) = self.places_of(hash).find(own).or_else(free) else {
            return false;
        };
        let last = verdict_of::<S>(set, way);
        if last == Verdict::FREE && !self.take_way(number, way) {
            return false;
        }
        if last == Verdict::TAKEN || !exchange::<S>(set, way, last, Verdict::TAKEN) {
            return false;
        }
        store(&set[S::entry(way)..], key, 0);
        let verdict = S::write(set, way, hash, value);
        set[S::verdict(way)].store(verdict.0, SeqCst);
        true
    }

    fn remove_at(&self, hash: FlowHash, key: &FlowKey, is_meant: impl Fn(Verdict) -> bool) -> bool {
        let mut is_known = false;
        for (number, way, set) in self.places_of(hash) {
            if let Some((verdict, found, _)) = read::<S>(set, way)
                && found == *key
                && is_meant(verdict)
            {
                is_known |= self.empty(number, way, set, verdict);
            }
        }
        is_known
    }

    /// Empties an entry that has this verdict.
    fn empty(&self, number: u32, way: usize, set: &[AtomicU64], verdict: Verdict) -> bool {
        let is_emptied = exchange::<S>(set, way, verdict, Verdict::FREE);
        if is_emptied && let Some(word) = self.word_of(number) {
            word.fetch_and(!bit_of(number, way), SeqCst);
        }
        is_emptied
    }

    fn take_way(&self, number: u32, way: usize) -> bool {
        let bit = bit_of(number, way);
        self.word_of(number).is_none_or(|word| word.fetch_or(bit, SeqCst) & bit == 0)
    }

    fn word_of(&self, number: u32) -> Option<&AtomicU64> {
        // There is a word of every set.
        self.ways.as_ref()?.element(ways::word(number)).ok()?.first()
    }

    /// Where a flow may be, in the order in which it is looked for: set, entry, and the set's words.
    fn places_of(&self, hash: FlowHash) -> impl Iterator<Item = (u32, usize, &[AtomicU64])> {
        let mask = self.sets.len() - 1;
        let (first, second) = (hash.first_set(mask), hash.second_set(mask));
        let second = (second != first).then_some(second);
        let sets = [Some(first), second].into_iter().flatten();
        sets.filter_map(|number| Some((number, self.sets.element(number).ok()?))).flat_map(
            move |(number, set)| (0..WAYS).map(move |step| (number, hash.way() ^ step, set)),
        )
    }

    /// All entries: set, entry, and the set's words.
    fn places(&self) -> impl Iterator<Item = (u32, usize, &[AtomicU64])> {
        (0..self.sets.len())
            .filter_map(|number| Some((number, self.sets.element(number).ok()?)))
            .flat_map(|(number, set)| (0..WAYS).map(move |way| (number, way, set)))
    }

    fn all(&self) -> impl Iterator<Item = (&[AtomicU64], usize)> {
        self.places().map(|(_, way, set)| (set, way))
    }
}

fn bit_of(set: u32, way: usize) -> u64 {
    1 << way << ways::shift(set)
}

impl FlowTable<[FlowEntry; WAYS]> {
    pub(crate) const fn confirmed(
        sets: MappedArray<[FlowEntry; WAYS]>,
        ways: MappedArray<u64>,
        seed: HashSeed,
    ) -> Self {
        Self { sets, ways: Some(ways), seed }
    }

    /// Gives back entries that are empty and yet taken, as whoever was killed in between leaves them; says how many.
    /// No other process may empty entries meanwhile, programs may; `wait` is called once, and must outlast every
    /// program that runs.
    pub(crate) fn mend(&self, wait: impl FnOnce() -> Result<()>) -> Result<u32> {
        let is_lost = |&(number, way, set): &(u32, usize, &[AtomicU64])| {
            let is_taken = |word: &AtomicU64| word.load(Acquire) & bit_of(number, way) != 0;
            self.word_of(number).is_some_and(is_taken)
                && verdict_of::<[FlowEntry; WAYS]>(set, way) == Verdict::FREE
        };
        let lost: Vec<_> = self.places().filter(is_lost).collect();
        if lost.is_empty() {
            return Ok(0);
        }
        // Programs that are filling one have filled it then.
        wait()?;
        let mut mended = 0;
        for place in lost.into_iter().filter(is_lost) {
            if let Some(word) = self.word_of(place.0) {
                let bit = bit_of(place.0, place.1);
                word.fetch_and(!bit, SeqCst);
                if verdict_of::<[FlowEntry; WAYS]>(place.2, place.1) == Verdict::FREE {
                    mended += 1;
                } else {
                    // It was about to be filled.
                    word.fetch_or(bit, SeqCst);
                }
            }
        }
        Ok(mended)
    }

    /// What is known of a flow.
    #[must_use]
    pub fn get(&self, key: &FlowKey) -> Option<Flow> {
        self.get_at(self.hash(key), key)
    }

    /// Writes what is known of a flow, which must have a verdict; says whether there was room.
    ///
    /// Programs do this when a flow is confirmed; user space has no need to, and if it were killed meanwhile, the
    /// entry would stay taken: it is for tests.
    #[doc(hidden)]
    pub fn insert(&self, key: &FlowKey, flow: Flow) -> bool {
        self.insert_at(self.hash(key), key, flow)
    }

    /// Forgets a flow; says whether it was known.
    pub fn remove(&self, key: &FlowKey) -> bool {
        self.remove_at(self.hash(key), key, |_| true)
    }

    /// Forgets a flow if it still has that verdict; says whether it did.
    pub fn remove_judged(&self, key: &FlowKey, verdict: Verdict) -> bool {
        self.remove_at(self.hash(key), key, |found| found == verdict)
    }

    fn hash(&self, key: &FlowKey) -> FlowHash {
        FlowHash::new(&self.seed, key.words())
    }
}

/// Where a flow is depends on the addresses of both its ends, of which the key has one: `local` is the other, that
/// of the key's endpoint.
impl FlowTable<PendingSet> {
    pub(crate) const fn unconfirmed(sets: MappedArray<PendingSet>, seed: HashSeed) -> Self {
        Self { sets, ways: None, seed }
    }

    /// What is known of a flow.
    #[must_use]
    pub fn get(&self, key: &FlowKey, local: &Address) -> Option<Pending> {
        self.get_at(self.hash(key, local), key)
    }

    /// Writes what is known of a flow, which must have a verdict; says whether there was room.
    ///
    /// Programs do this when a flow begins; user space has no need to, and if it were killed meanwhile, the
    /// entry would stay taken: it is for tests.
    #[doc(hidden)]
    pub fn insert(&self, key: &FlowKey, local: &Address, pending: Pending) -> bool {
        self.insert_at(self.hash(key, local), key, pending)
    }

    fn hash(&self, key: &FlowKey, local: &Address) -> FlowHash {
        FlowHash::of_both_sides(&self.seed, key, local)
    }
}

fn verdict_of<S: FlowSet>(set: &[AtomicU64], way: usize) -> Verdict {
    Verdict(set[S::verdict(way)].load(Acquire))
}

/// The entry as it was at one moment, if it is a flow's.
fn read<S: FlowSet>(set: &[AtomicU64], way: usize) -> Option<(Verdict, FlowKey, S::Value)> {
    loop {
        let verdict = verdict_of::<S>(set, way);
        if !verdict.is_one() {
            return None;
        }
        let key = load(&set[S::entry(way)..]);
        let value = S::value(set, way, verdict);
        fence(Acquire);
        if set[S::verdict(way)].load(Relaxed) == verdict.0 {
            return Some((verdict, key, value));
        }
    }
}

fn exchange<S: FlowSet>(set: &[AtomicU64], way: usize, last: Verdict, verdict: Verdict) -> bool {
    set[S::verdict(way)].compare_exchange(last.0, verdict.0, SeqCst, Relaxed).is_ok()
}
