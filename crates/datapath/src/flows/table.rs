//! The two tables of flows, as user space sees them: the same memory that the programs work in.

use std::sync::atomic::{
    AtomicU64,
    Ordering::{Acquire, Relaxed, SeqCst},
    fence,
};

use podwire_abi::{
    Address, Flow, FlowEntry, FlowHash, FlowKey, HashSeed, Pending, PendingEntry, Verdict, WAYS,
};
use podwire_bpf::{Map, MapValue, MappedArray};

/// The place of the verdict in an entry, in words: behind the key.
const VERDICT: usize = size_of::<FlowKey>() / WORD;
const WORD: usize = size_of::<u64>();

/// An entry of a table of flows.
pub trait TableEntry: MapValue + Copy {
    /// What is known of a flow, which begins with its verdict.
    type Value;

    /// Its two parts.
    fn split(self) -> (FlowKey, Self::Value);

    /// From its parts.
    fn join(key: FlowKey, value: Self::Value) -> Self;
}

impl TableEntry for FlowEntry {
    type Value = Flow;

    fn split(self) -> (FlowKey, Flow) {
        (self.key, self.flow)
    }

    fn join(key: FlowKey, flow: Flow) -> Self {
        Self { key, flow }
    }
}

impl TableEntry for PendingEntry {
    type Value = Pending;

    fn split(self) -> (FlowKey, Pending) {
        (self.key, self.pending)
    }

    fn join(key: FlowKey, pending: Pending) -> Self {
        Self { key, pending }
    }
}

/// A table of flows: sets of [`WAYS`] entries.
///
/// Programs change it meanwhile. A key is read with the verdict that belongs to it, or not at all; counters may be of a
/// moment later. An entry is emptied only if its verdict still is what it was.
#[derive(Debug)]
pub struct FlowTable<E> {
    sets: MappedArray<[E; WAYS]>,
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

impl<E: TableEntry> FlowTable<E> {
    pub(crate) const fn new(sets: MappedArray<[E; WAYS]>, seed: HashSeed) -> Self {
        Self { sets, seed }
    }

    pub(crate) fn as_map(&self) -> &Map {
        self.sets.as_map()
    }

    /// How many flows there is room for: half of the entries, since flows have places by their hash.
    #[must_use]
    pub fn capacity(&self) -> u32 {
        capacity(self.sets.len())
    }

    /// How many flows there are.
    #[must_use]
    pub fn len(&self) -> u32 {
        let is_one = |place: &&[AtomicU64]| Verdict(place[VERDICT].load(Relaxed)).is_one();
        u32::try_from(self.all().filter(is_one).count()).unwrap_or(u32::MAX)
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.iter().next().is_none()
    }

    /// All flows, in no order. Those that come or go meanwhile are there or not.
    pub fn iter(&self) -> impl Iterator<Item = (FlowKey, E::Value)> {
        self.all().filter_map(read::<E>).map(E::split)
    }

    /// All flows, in no order.
    #[must_use]
    pub fn entries(&self) -> Vec<(FlowKey, E::Value)> {
        self.iter().collect()
    }

    /// Forgets the flows that are not to be kept.
    pub fn retain(&self, mut keeps: impl FnMut(&FlowKey, &E::Value) -> bool) {
        for place in self.all() {
            let verdict = place[VERDICT].load(Acquire);
            if let Some((key, value)) = read::<E>(place).map(E::split)
                && !keeps(&key, &value)
            {
                exchange(place, verdict, Verdict::FREE.0);
            }
        }
    }

    fn get_at(&self, hash: FlowHash, key: &FlowKey) -> Option<E::Value> {
        let mut entries = self.places(hash).filter_map(read::<E>).map(E::split);
        entries.find_map(|(found, value)| (found == *key).then_some(value))
    }

    fn insert_at(&self, hash: FlowHash, key: &FlowKey, value: E::Value) -> bool {
        let entry = E::join(*key, value);
        let verdict_of = |place: &[AtomicU64]| place[VERDICT].load(Acquire);
        let own = |place: &&[AtomicU64]| holds::<E>(place, key, verdict_of(place));
        // Not in the second set, where programs look only if they put flows there.
        let is_free = |place: &&[AtomicU64]| verdict_of(place) == Verdict::FREE.0;
        let free = || self.places(hash).take(WAYS).find(is_free);
        let Some(place) = self.places(hash).find(own).or_else(free) else { return false };
        let last = verdict_of(place);
        if last == Verdict::TAKEN.0 || !exchange(place, last, Verdict::TAKEN.0) {
            return false;
        }
        let words =
            entry.as_bytes().as_chunks::<WORD>().0.iter().map(|word| u64::from_ne_bytes(*word));
        let mut verdict = Verdict::FREE.0;
        for (number, (place, word)) in place.iter().zip(words).enumerate() {
            match number {
                VERDICT => verdict = word,
                _ => place.store(word, Relaxed),
            }
        }
        place[VERDICT].store(verdict, SeqCst);
        true
    }

    fn remove_at(&self, hash: FlowHash, key: &FlowKey, is_meant: impl Fn(Verdict) -> bool) -> bool {
        let mut is_known = false;
        for place in self.places(hash) {
            let verdict = place[VERDICT].load(Acquire);
            if is_meant(Verdict(verdict)) && holds::<E>(place, key, verdict) {
                is_known |= exchange(place, verdict, Verdict::FREE.0);
            }
        }
        is_known
    }

    /// Forgets all flows.
    pub fn clear(&self) {
        for place in self.all() {
            let verdict = place[VERDICT].load(Acquire);
            if verdict != Verdict::TAKEN.0 {
                exchange(place, verdict, Verdict::FREE.0);
            }
        }
    }

    /// Where a flow may be, in the order in which it is looked for.
    fn places(&self, hash: FlowHash) -> impl Iterator<Item = &[AtomicU64]> {
        let mask = self.sets.len() - 1;
        let (first, second) = (hash.first_set(mask), hash.second_set(mask));
        let second = (second != first).then_some(second);
        let sets = [Some(first), second].into_iter().flatten();
        sets.flat_map(move |set| {
            (0..WAYS).filter_map(move |step| self.place(set, hash.way() ^ step))
        })
    }

    /// All entries, as words.
    fn all(&self) -> impl Iterator<Item = &[AtomicU64]> {
        (0..self.sets.len())
            .flat_map(move |set| (0..WAYS).filter_map(move |way| self.place(set, way)))
    }

    fn place(&self, set: u32, way: usize) -> Option<&[AtomicU64]> {
        // Every number that is asked for is below the sets' count.
        self.sets.element(set).ok()?.chunks_exact(size_of::<E>() / WORD).nth(way)
    }
}

impl FlowTable<FlowEntry> {
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
impl FlowTable<PendingEntry> {
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

/// The entry as it was at one moment, if it is a flow's.
fn read<E: TableEntry>(place: &[AtomicU64]) -> Option<E> {
    loop {
        let verdict = place[VERDICT].load(Acquire);
        if !Verdict(verdict).is_one() {
            return None;
        }
        let mut entry = E::new_zeroed();
        for (bytes, word) in entry.as_mut_bytes().as_chunks_mut().0.iter_mut().zip(place) {
            *bytes = word.load(Relaxed).to_ne_bytes();
        }
        fence(Acquire);
        if place[VERDICT].load(Relaxed) == verdict {
            return Some(entry);
        }
    }
}

/// Whether the entry is that flow's, given the verdict that it had before.
fn holds<E: TableEntry>(place: &[AtomicU64], key: &FlowKey, verdict: u64) -> bool {
    read::<E>(place).is_some_and(|entry| entry.split().0 == *key)
        && place[VERDICT].load(Acquire) == verdict
}

fn exchange(place: &[AtomicU64], last: u64, verdict: u64) -> bool {
    place[VERDICT].compare_exchange(last, verdict, SeqCst, Relaxed).is_ok()
}
