//! One suite for the maps in memory and the kernel's: what holds for the one holds for the other.
//!
//! Each check takes a map by the trait of its shape. Below, random operations are done on both at
//! once and every answer is compared.
#![expect(clippy::unwrap_used, reason = "a test has nobody to report to")]

mod support;

use std::collections::BTreeMap;

use podwire_bpf::shape::{LongestPrefix, Slots, Table};
use podwire_bpf::{self as bpf, Error, InsertMode, PerCpu, Prefix, Removal, TypedMap as _, memory};
use proptest::prelude::*;

const ROOM: u32 = 64;

fn cpus() -> usize {
    // The only way to see it from outside is to have one read.
    let array = memory::PerCpuArray::<u64>::new("cpus", 1).unwrap();
    Slots::get(&array, 0).unwrap().as_slice().len()
}

fn sorted<K: Ord + Copy, V>(mut entries: Vec<(K, V)>) -> Vec<(K, V)> {
    entries.sort_by_key(|(key, _)| *key);
    entries
}

// ---- the suite --------------------------------------------------------------------------------

/// What every hash map does, as long as it has room.
fn table<V: Clone + PartialEq + std::fmt::Debug>(
    map: &dyn Table<u32, V>,
    value: impl Fn(u64) -> V,
) {
    use InsertMode::{Any, Exist, NoExist};
    assert_eq!(map.max_entries(), ROOM);
    assert_eq!(map.get(&1).unwrap(), None);
    assert_eq!(map.remove(&1).unwrap(), Removal::Absent);
    assert_eq!(map.take(&1).unwrap(), None);
    assert_eq!(map.entries().unwrap(), []);

    let error = map.insert_with(&1, &value(1), Exist).unwrap_err();
    assert!(error.is_not_found() && !error.is_already_exists(), "{error}");
    assert_eq!(map.get(&1).unwrap(), None);
    map.insert_with(&1, &value(1), NoExist).unwrap();
    assert_eq!(map.get(&1).unwrap(), Some(value(1)));
    let error = map.insert_with(&1, &value(2), NoExist).unwrap_err();
    assert!(error.is_already_exists() && !error.is_full(), "{error}");
    assert_eq!(map.get(&1).unwrap(), Some(value(1)));
    map.insert_with(&1, &value(2), Exist).unwrap();
    map.insert_with(&1, &value(3), Any).unwrap();
    assert_eq!(map.get(&1).unwrap(), Some(value(3)));

    assert_eq!(map.take(&1).unwrap(), Some(value(3)));
    assert_eq!(map.get(&1).unwrap(), None);
    map.insert(&1, &value(4)).unwrap();
    assert_eq!(map.remove(&1).unwrap(), Removal::Removed);
    assert_eq!(map.remove(&1).unwrap(), Removal::Absent);

    // Few enough that no map evicts.
    let entries: Vec<_> = (10..20).map(|key| (key, value(key.into()))).collect();
    map.insert_batch(&[]).unwrap();
    map.insert_batch(&entries).unwrap();
    assert_eq!(sorted(map.entries().unwrap()), entries);
    assert_eq!(map.remove_batch(&[]).unwrap(), 0);
    assert_eq!(map.remove_batch(&[9, 10, 99, 12, 12, 19, 100]).unwrap(), 3);
    assert_eq!(map.get(&12).unwrap(), None);
    let left = sorted(map.drain().unwrap());
    assert_eq!(left.iter().map(|(key, _)| *key).collect::<Vec<_>>(), [11, 13, 14, 15, 16, 17, 18]);
    assert_eq!(map.entries().unwrap(), []);
    assert_eq!(map.drain().unwrap(), []);
}

/// A full map refuses new keys, and nothing else.
fn full_table<V: Clone + PartialEq + std::fmt::Debug>(
    map: &dyn Table<u32, V>,
    value: impl Fn(u64) -> V,
) {
    let too_many: Vec<_> = (0..ROOM + 10).map(|key| (key, value(key.into()))).collect();
    let error = map.insert_batch(&too_many).unwrap_err();
    assert!(error.is_full(), "{error}");
    assert!(matches!(error, Error::Batch { done, asked, .. } if (done, asked) == (64, 74)));
    assert_eq!(map.entries().unwrap().len(), ROOM as usize);
    let error = map.insert(&1000, &value(1)).unwrap_err();
    assert!(error.is_full() && !error.is_already_exists(), "{error}");
    let error = map.insert_with(&1000, &value(1), InsertMode::NoExist).unwrap_err();
    assert!(error.is_full(), "{error}");
    let error = map.insert_with(&1000, &value(1), InsertMode::Exist).unwrap_err();
    assert!(error.is_not_found() && !error.is_full(), "{error}");
    let error = map.insert_with(&3, &value(1), InsertMode::NoExist).unwrap_err();
    assert!(error.is_already_exists(), "{error}");
    map.insert(&3, &value(7)).unwrap();
    map.insert_with(&3, &value(8), InsertMode::Exist).unwrap();
    assert_eq!(map.get(&3).unwrap(), Some(value(8)));
    map.remove(&4).unwrap();
    map.insert(&1000, &value(9)).unwrap();
    assert_eq!(map.drain().unwrap().len(), ROOM as usize);
}

/// A full LRU map makes room. Which entries go is the kernel's secret; that the newest stays and
/// that there are never too many is not.
fn evicting_table(map: &dyn Table<u32, u64>) {
    let room = map.max_entries() as usize;
    for key in 0..10 * map.max_entries() {
        map.insert(&key, &key.into()).unwrap();
        assert_eq!(map.get(&key).unwrap(), Some(key.into()));
    }
    let entries = map.entries().unwrap();
    assert!(!entries.is_empty() && entries.len() <= room, "{}", entries.len());
    assert!(entries.iter().all(|(key, value)| u64::from(*key) == *value));
    let many: Vec<_> = (0..10 * map.max_entries()).map(|key| (key, 1)).collect();
    map.insert_batch(&many).unwrap();
    assert!(map.drain().unwrap().len() <= room);
}

fn prefix(data: [u8; 4], length: u32) -> Prefix<[u8; 4]> {
    Prefix::new(data, length).unwrap()
}

fn longest_prefix(map: &dyn LongestPrefix<[u8; 4], u32>) {
    use InsertMode::{Exist, NoExist};
    let find = |data| map.longest_match_of(&Prefix::full(data)).unwrap();
    assert_eq!(map.max_entries(), ROOM);
    assert_eq!(find([10, 0, 0, 1]), None);
    assert_eq!(map.entries().unwrap(), []);
    let error = map.insert_with(&prefix([10, 0, 0, 0], 8), &8, Exist).unwrap_err();
    assert!(error.is_not_found(), "{error}");
    map.insert_with(&prefix([10, 0, 0, 0], 8), &8, NoExist).unwrap();
    let error = map.insert_with(&prefix([10, 9, 9, 9], 8), &9, NoExist).unwrap_err();
    assert!(error.is_already_exists(), "{error}");
    map.insert(&prefix([10, 1, 0, 0], 16), &16).unwrap();
    map.insert(&prefix([10, 1, 2, 3], 32), &32).unwrap();
    assert_eq!(find([10, 1, 2, 3]), Some(32));
    assert_eq!(find([10, 1, 2, 4]), Some(16));
    assert_eq!(find([10, 2, 2, 4]), Some(8));
    assert_eq!(find([11, 1, 2, 3]), None);
    map.insert(&prefix([0, 0, 0, 0], 0), &0).unwrap();
    assert_eq!(find([11, 1, 2, 3]), Some(0));
    // A shorter question has shorter answers.
    let find_shorter = |length| map.longest_match_of(&prefix([10, 1, 2, 3], length)).unwrap();
    assert_eq!(find_shorter(31), Some(16));
    assert_eq!(find_shorter(15), Some(8));
    assert_eq!(find_shorter(7), Some(0));
    // Only the bits of the prefix count, and they are kept as last given.
    map.insert(&prefix([10, 255, 255, 255], 8), &88).unwrap();
    assert_eq!(find([10, 2, 0, 0]), Some(88));
    let entries = sorted(map.entries().unwrap());
    assert_eq!(
        entries,
        [
            (prefix([0, 0, 0, 0], 0), 0),
            (prefix([10, 255, 255, 255], 8), 88),
            (prefix([10, 1, 0, 0], 16), 16),
            (prefix([10, 1, 2, 3], 32), 32),
        ]
    );
    assert_eq!(map.remove(&prefix([10, 1, 0, 0], 17)).unwrap(), Removal::Absent);
    assert_eq!(map.remove(&prefix([10, 1, 9, 9], 16)).unwrap(), Removal::Removed);
    assert_eq!(map.remove(&prefix([10, 1, 0, 0], 16)).unwrap(), Removal::Absent);
    assert_eq!(find([10, 1, 2, 4]), Some(88));
    let all: Vec<_> = entries.iter().map(|(prefix, _)| *prefix).collect();
    assert_eq!(map.remove_batch(&all).unwrap(), 3);
    assert_eq!(map.entries().unwrap(), []);

    let too_many: Vec<_> = (0..80).map(|last| (prefix([1, 1, 1, last], 32), last.into())).collect();
    let error = map.insert_batch(&too_many).unwrap_err();
    assert!(error.is_full(), "{error}");
    assert!(matches!(error, Error::Batch { done, asked, .. } if (done, asked) == (64, 80)));
    let error = map.insert(&prefix([9, 0, 0, 0], 8), &1).unwrap_err();
    assert!(error.is_full(), "{error}");
    assert_eq!(map.entries().unwrap().len(), ROOM as usize);
    map.remove(&prefix([1, 1, 1, 1], 32)).unwrap();
    map.insert(&prefix([9, 0, 0, 0], 8), &1).unwrap();
}

fn slots<V: Clone + PartialEq + std::fmt::Debug>(map: &dyn Slots<V>, value: impl Fn(u64) -> V) {
    assert_eq!(map.len(), ROOM);
    assert_eq!(map.values().unwrap(), vec![value(0); ROOM as usize]);
    for index in [0, 1, ROOM - 1] {
        assert_eq!(map.get(index).unwrap(), value(0));
        map.set(index, &value(u64::from(index) + 5)).unwrap();
        assert_eq!(map.get(index).unwrap(), value(u64::from(index) + 5));
    }
    let values = map.values().unwrap();
    assert_eq!(
        (values[0].clone(), values[1].clone(), values[2].clone()),
        (value(5), value(6), value(0))
    );
    for error in [map.get(ROOM).unwrap_err(), map.set(ROOM, &value(1)).unwrap_err()] {
        assert!(error.is_not_found() && !error.is_full(), "{error}");
        assert!(matches!(error, Error::OutOfRange { index: ROOM, length: ROOM, .. }));
    }
}

/// One value per CPU, each another.
fn per_cpu(seed: u64) -> PerCpu<u64> {
    PerCpu::new(
        (0..cpus() as u64).map(|cpu| if seed == 0 { 0 } else { seed * 100 + cpu }).collect(),
    )
}

fn wrong_cpu_count(result: Result<(), Error>) {
    let error = result.unwrap_err();
    assert!(matches!(error, Error::CpuCount { given, .. } if given == cpus() + 1), "{error}");
}

fn too_many_cpus() -> PerCpu<u64> {
    PerCpu::new(vec![1; cpus() + 1])
}

// ---- in memory --------------------------------------------------------------------------------

#[test]
fn maps_in_memory() {
    table(&memory::HashMap::<u32, u64>::new("m", ROOM), |value| value);
    table(&memory::LruHashMap::<u32, u64>::new("m", ROOM), |value| value);
    table(&memory::PerCpuHashMap::<u32, u64>::new("m", ROOM), per_cpu);
    full_table(&memory::HashMap::<u32, u64>::new("m", ROOM), |value| value);
    full_table(&memory::PerCpuHashMap::<u32, u64>::new("m", ROOM), per_cpu);
    evicting_table(&memory::LruHashMap::<u32, u64>::new("m", ROOM));
    longest_prefix(&memory::LpmTrie::<[u8; 4], u32>::new("m", ROOM));
    slots(&memory::Array::<u64>::new("m", ROOM).unwrap(), |value| value);
    slots(&memory::PerCpuArray::<u64>::new("m", ROOM).unwrap(), per_cpu);
    let hash = memory::PerCpuHashMap::<u32, u64>::new("m", ROOM);
    wrong_cpu_count(hash.insert(&1, &too_many_cpus()));
    let array = memory::PerCpuArray::<u64>::new("m", ROOM).unwrap();
    wrong_cpu_count(array.set(1, &too_many_cpus()));
}

// ---- in the kernel ----------------------------------------------------------------------------

#[test]
#[ignore = "needs root: makes maps"]
fn a_mapped_array_is_the_memory_that_calls_see() {
    use std::sync::atomic::Ordering::SeqCst;

    // Values of two words, the second half filled; more than a page of them.
    let mapped = bpf::MappedArray::<[u32; 3]>::create("m", 400).unwrap();
    assert_eq!((mapped.len(), bpf::MappedArray::<[u32; 3]>::WORDS), (400, 2));
    let called = bpf::Array::<[u32; 3]>::from_map(mapped.as_map().try_clone().unwrap()).unwrap();
    called.set(399, &[1, 2, 3]).unwrap();
    let words = mapped.element(399).unwrap();
    assert_eq!(words[0].load(SeqCst), 2 << 32 | 1);
    assert_eq!(words[1].load(SeqCst), 3);
    assert!(words[0].compare_exchange(2 << 32 | 1, 7, SeqCst, SeqCst).is_ok());
    assert_eq!(called.get(399).unwrap(), [7, 0, 3]);
    assert_eq!(called.get(398).unwrap(), [0; 3]);
    assert!(matches!(mapped.element(400), Err(Error::OutOfRange { index: 400, .. })));
    // The kernel maps only what was made for it.
    let plain = bpf::Array::<u64>::create("m", 4).unwrap();
    let refused = bpf::MappedArray::<u64>::from_map(plain.as_map().try_clone().unwrap());
    let told = refused.unwrap_err().to_string();
    assert!(told.starts_with("mapping the memory of map m: "), "{told}");
}

#[test]
#[ignore = "needs root: makes maps"]
fn hash_maps_of_the_kernel() {
    table(&bpf::HashMap::<u32, u64>::create("m", ROOM).unwrap(), |value| value);
    full_table(&bpf::HashMap::<u32, u64>::create("m", ROOM).unwrap(), |value| value);
}

#[test]
#[ignore = "needs root: makes maps"]
fn lru_maps_of_the_kernel() {
    table(&bpf::LruHashMap::<u32, u64>::create("m", ROOM).unwrap(), |value| value);
    evicting_table(&bpf::LruHashMap::<u32, u64>::create("m", ROOM).unwrap());
    evicting_table(&bpf::LruHashMap::<u32, u64>::create("m", 4096).unwrap());
}

#[test]
#[ignore = "needs root: makes maps"]
fn per_cpu_hash_maps_of_the_kernel() {
    table(&bpf::PerCpuHashMap::<u32, u64>::create("m", ROOM).unwrap(), per_cpu);
    full_table(&bpf::PerCpuHashMap::<u32, u64>::create("m", ROOM).unwrap(), per_cpu);
    let map = bpf::PerCpuHashMap::<u32, u64>::create("m", ROOM).unwrap();
    wrong_cpu_count(map.insert(&1, &too_many_cpus()));
    wrong_cpu_count(map.insert_batch(&[(1, too_many_cpus())]));
}

#[test]
#[ignore = "needs root: makes maps"]
fn tries_of_the_kernel() {
    longest_prefix(&bpf::LpmTrie::<[u8; 4], u32>::create("m", ROOM).unwrap());
}

#[test]
#[ignore = "needs root: makes maps"]
fn arrays_of_the_kernel() {
    slots(&bpf::Array::<u64>::create("m", ROOM).unwrap(), |value| value);
    slots(&bpf::PerCpuArray::<u64>::create("m", ROOM).unwrap(), per_cpu);
    let array = bpf::PerCpuArray::<u64>::create("m", ROOM).unwrap();
    wrong_cpu_count(array.set(1, &too_many_cpus()));
    let array = bpf::Array::<u64>::create("m", ROOM).unwrap();
    array.set_batch(&[(3, 30), (5, 50)]).unwrap();
    assert_eq!((array.get(3).unwrap(), array.get(4).unwrap(), array.get(5).unwrap()), (30, 0, 50));
    let error = array.set_batch(&[(3, 31), (ROOM, 1)]).unwrap_err();
    assert!(matches!(error, Error::OutOfRange { .. }), "{error}");
    assert_eq!(array.get(3).unwrap(), 30, "checked before anything is written");
}

#[test]
#[ignore = "needs root: makes maps"]
fn walking_and_batches_see_the_same() {
    // Values of a size that the kernel pads, keys that are not numbers.
    let map = bpf::HashMap::<[u8; 3], [u8; 5]>::create("m", 20_000).unwrap();
    let entries: Vec<([u8; 3], [u8; 5])> = (0..15_000_u32)
        .map(|number| {
            let bytes = number.to_be_bytes();
            ([bytes[1], bytes[2], bytes[3]], [bytes[3], 1, 2, 3, bytes[2]])
        })
        .collect();
    map.insert_batch(&entries).unwrap();
    assert_eq!(sorted(map.entries().unwrap()), entries);
    assert_eq!(sorted(map.iter().collect::<Result<Vec<_>, _>>().unwrap()), entries);
    let trie = bpf::LpmTrie::<[u8; 3], [u8; 5]>::create("m", 20_000).unwrap();
    let prefixes: Vec<_> =
        entries.iter().map(|(key, value)| (Prefix::full(*key), *value)).collect();
    trie.insert_batch(&prefixes).unwrap();
    assert_eq!(sorted(trie.entries().unwrap()), prefixes);
    assert_eq!(sorted(trie.iter().collect::<Result<Vec<_>, _>>().unwrap()), prefixes);
    assert_eq!(trie.longest_match([0, 1, 2]).unwrap(), Some([2, 1, 2, 3, 1]));
    assert_eq!(sorted(map.drain().unwrap()), entries);
    assert_eq!(map.iter().count(), 0);
}

// ---- both at once -----------------------------------------------------------------------------

#[derive(Clone, Debug)]
enum Operation {
    Get(u8),
    Insert(u8, u64, InsertMode),
    Remove(u8),
    Take(u8),
    InsertBatch(Vec<(u8, u64)>),
    RemoveBatch(Vec<u8>),
    Entries,
    Drain,
}

fn mode() -> impl Strategy<Value = InsertMode> {
    prop_oneof![Just(InsertMode::Any), Just(InsertMode::NoExist), Just(InsertMode::Exist)]
}

fn operation() -> impl Strategy<Value = Operation> {
    let key = 0..40_u8;
    prop_oneof![
        4 => key.clone().prop_map(Operation::Get),
        8 => (key.clone(), any::<u64>(), mode())
            .prop_map(|(key, value, mode)| Operation::Insert(key, value, mode)),
        4 => key.clone().prop_map(Operation::Remove),
        2 => key.clone().prop_map(Operation::Take),
        2 => prop::collection::vec((key.clone(), any::<u64>()), 0..12)
            .prop_map(Operation::InsertBatch),
        2 => prop::collection::vec(key, 0..12).prop_map(Operation::RemoveBatch),
        2 => Just(Operation::Entries),
        1 => Just(Operation::Drain),
    ]
}

/// What an operation answered, in a form that two maps can be compared by.
fn run(map: &dyn Table<u8, u64>, operation: &Operation) -> String {
    fn say<T: std::fmt::Debug>(result: Result<T, Error>) -> String {
        match result {
            Ok(value) => format!("{value:?}"),
            Err(error) => error.to_string(),
        }
    }
    match operation {
        Operation::Get(key) => say(map.get(key)),
        Operation::Insert(key, value, mode) => say(map.insert_with(key, value, *mode)),
        Operation::Remove(key) => say(map.remove(key)),
        Operation::Take(key) => say(map.take(key)),
        Operation::InsertBatch(entries) => say(map.insert_batch(entries)),
        Operation::RemoveBatch(keys) => say(map.remove_batch(keys)),
        Operation::Entries => say(map.entries().map(sorted)),
        Operation::Drain => say(map.drain().map(sorted)),
    }
}

fn prefixes() -> impl Strategy<Value = Prefix<[u8; 2]>> {
    // Few bits, so that prefixes often cover each other.
    (
        prop::array::uniform2(prop_oneof![Just(0_u8), Just(0x80), Just(0xc0), any::<u8>()]),
        0..=16_u32,
    )
        .prop_map(|(data, length)| Prefix::new(data, length).unwrap())
}

#[derive(Clone, Debug)]
enum PrefixOperation {
    Find(Prefix<[u8; 2]>),
    Insert(Prefix<[u8; 2]>, u32, InsertMode),
    Remove(Prefix<[u8; 2]>),
    Entries,
}

fn prefix_operation() -> impl Strategy<Value = PrefixOperation> {
    prop_oneof![
        4 => prefixes().prop_map(PrefixOperation::Find),
        6 => (prefixes(), any::<u32>(), mode())
            .prop_map(|(prefix, value, mode)| PrefixOperation::Insert(prefix, value, mode)),
        2 => prefixes().prop_map(PrefixOperation::Remove),
        1 => Just(PrefixOperation::Entries),
    ]
}

fn run_prefix(map: &dyn LongestPrefix<[u8; 2], u32>, operation: &PrefixOperation) -> String {
    let text = |error: Error| error.to_string();
    match operation {
        PrefixOperation::Find(prefix) => {
            map.longest_match_of(prefix).map_or_else(text, |found| format!("{found:?}"))
        }
        PrefixOperation::Insert(prefix, value, mode) => {
            map.insert_with(prefix, value, *mode).map_or_else(text, |()| "inserted".to_owned())
        }
        PrefixOperation::Remove(prefix) => {
            map.remove(prefix).map_or_else(text, |removal| format!("{removal:?}"))
        }
        PrefixOperation::Entries => {
            map.entries().map_or_else(text, |entries| format!("{:?}", sorted(entries)))
        }
    }
}

proptest! {
    #[test]
    fn a_hash_map_in_memory_is_a_map(operations in prop::collection::vec(operation(), 0..60)) {
        let map = memory::HashMap::<u8, u64>::new("m", 40);
        let mut model = BTreeMap::new();
        for operation in &operations {
            // Room for every key, so that an ordinary map is a model.
            run(&map, operation);
            match operation {
                Operation::Insert(key, value, mode) => {
                    let present = model.contains_key(key);
                    if !matches!((mode, present), (InsertMode::NoExist, true) | (InsertMode::Exist, false)) {
                        model.insert(*key, *value);
                    }
                }
                Operation::Remove(key) | Operation::Take(key) => { model.remove(key); }
                Operation::InsertBatch(entries) => model.extend(entries.iter().copied()),
                Operation::RemoveBatch(keys) => model.retain(|key, _| !keys.contains(key)),
                Operation::Drain => model.clear(),
                Operation::Get(_) | Operation::Entries => {}
            }
            let entries: Vec<_> = model.iter().map(|(key, value)| (*key, *value)).collect();
            prop_assert_eq!(sorted(map.entries().unwrap()), entries);
        }
    }

    #[test]
    fn the_longest_match_in_memory_is_the_longest(
        entries in prop::collection::vec((prefixes(), any::<u32>()), 0..40),
        asked in prefixes(),
    ) {
        let map = memory::LpmTrie::<[u8; 2], u32>::new("m", 40);
        for (prefix, value) in &entries {
            map.insert(prefix, value).unwrap();
        }
        let covering = entries.iter().filter(|(prefix, _)| prefix.covers(&asked));
        // The last of the longest: a later insertion replaces an earlier one.
        let longest = covering.max_by_key(|(prefix, _)| prefix.length()).map(|(_, value)| *value);
        prop_assert_eq!(map.longest_match_of(&asked).unwrap(), longest);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    #[ignore = "needs root: makes maps"]
    fn hash_maps_answer_alike(operations in prop::collection::vec(operation(), 0..60)) {
        let ours = memory::HashMap::<u8, u64>::new("m", 16);
        let kernels = bpf::HashMap::<u8, u64>::create("m", 16).unwrap();
        for operation in &operations {
            prop_assert_eq!(run(&ours, operation), run(&kernels, operation), "{:?}", operation);
        }
    }

    #[test]
    #[ignore = "needs root: makes maps"]
    fn tries_answer_alike(operations in prop::collection::vec(prefix_operation(), 0..60)) {
        let ours = memory::LpmTrie::<[u8; 2], u32>::new("m", 16);
        let kernels = bpf::LpmTrie::<[u8; 2], u32>::create("m", 16).unwrap();
        for operation in &operations {
            let answers = (run_prefix(&ours, operation), run_prefix(&kernels, operation));
            prop_assert_eq!(answers.0, answers.1, "{:?}", operation);
        }
    }
}
