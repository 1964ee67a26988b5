//! Maps from user space, per entry: the kernel's by system calls, and their twins in memory.
//!
//! Entries have 16 + 64 bytes. Each pass is checked: as many entries as there are, and the sum of
//! all their words.

use std::time::{Duration, Instant};

use criterion::{
    BenchmarkGroup, BenchmarkId, Criterion, criterion_group, criterion_main, measurement::WallTime,
};
use podwire_benches::{criterion, flat_group, must};
use podwire_bpf::{HashMap, PerCpu, PerCpuHashMap, memory, shape::Table};

const ENTRIES: [u32; 3] = [1000, 65_536, 1_000_000];

type Key = [u64; 2];
type Value = [u64; 8];

fn maps(criterion: &mut Criterion) {
    let mut group = flat_group(criterion, "map");
    group.sample_size(10);
    for entries in ENTRIES {
        let iterate: Access<HashMap<Key, Value>> =
            ("iterate", |map, entries| Pass::all(entries, || map.iter().map(must)));
        let make = || must(HashMap::create("bench", entries));
        accesses(&mut group, "", entries, make, &[iterate]);
        per_cpu(&mut group, entries);
        let make = || memory::HashMap::new("bench", entries);
        accesses(&mut group, "_memory", entries, make, &[]);
    }
}

/// What both kinds of map can do; the names of one kind end in `suffix`.
fn accesses<M: Table<Key, Value>>(
    group: &mut BenchmarkGroup<'_, WallTime>,
    suffix: &str,
    entries: u32,
    make: impl Fn() -> M,
    others: &[Access<M>],
) {
    let mut filled = None;
    let shared: [Access<M>; 3] = [
        ("get", |map, entries| {
            Pass::over(&random_keys(entries), |key| (key, must(map.get(&key)).unwrap_or_default()))
        }),
        ("batch", |map, entries| Pass::all(entries, || must(map.entries()).into_iter())),
        ("insert_batch", |map, entries| {
            let rows = rows(entries);
            let start = Instant::now();
            must(map.insert_batch(&rows));
            let elapsed = start.elapsed();
            Pass::all(entries, || must(map.entries()).into_iter());
            Pass { elapsed, entries }
        }),
    ];
    for (access, pass) in shared.iter().chain(others) {
        group.bench_function(BenchmarkId::new(format!("{access}{suffix}"), entries), |bencher| {
            let map = filled.get_or_insert_with(|| {
                let map = make();
                must(map.insert_batch(&rows(entries)));
                map
            });
            bencher.iter_custom(|times| per_entry(times, || pass(map, entries)));
        });
    }
}

/// Name of an access, and one pass of it.
type Access<M> = (&'static str, fn(&M, u32) -> Pass);

fn per_cpu(group: &mut BenchmarkGroup<'_, WallTime>, entries: u32) {
    let mut filled = None;
    group.bench_function(BenchmarkId::new("per_cpu_totals", entries), |bencher| {
        let map = filled.get_or_insert_with(|| {
            let map = must(PerCpuHashMap::<Key, Value>::create("bench", entries));
            let cpus = cpus(&map);
            must(map.insert_batch(
                &rows(entries).into_iter().map(|row| spread(row, cpus)).collect::<Vec<_>>(),
            ));
            map
        });
        bencher.iter_custom(|times| {
            per_entry(times, || Pass::all(entries, || must(map.totals()).into_iter()))
        });
    });
}

/// What was done once, and how long it took.
struct Pass {
    elapsed: Duration,
    entries: u32,
}

impl Pass {
    /// Reads all entries, and makes sure that they are those of [`rows`].
    fn all<I: Iterator<Item = (Key, Value)>>(entries: u32, read: impl FnOnce() -> I) -> Self {
        let start = Instant::now();
        let (count, sum) =
            read().fold((0, 0_u64), |(count, sum), row| (count + 1, sum.wrapping_add(words(&row))));
        let elapsed = start.elapsed();
        assert_eq!(count, entries, "entries that were read");
        let expected =
            (0..entries).fold(0_u64, |expected, number| expected.wrapping_add(words(&row(number))));
        assert_eq!(sum, expected, "sum of the entries that were read");
        Self { elapsed, entries }
    }

    /// Looks keys up, and makes sure that each has its value.
    fn over(keys: &[Key], mut get: impl FnMut(Key) -> (Key, Value)) -> Self {
        let start = Instant::now();
        let sum = keys.iter().fold(0_u64, |sum, key| sum.wrapping_add(words(&get(*key))));
        let elapsed = start.elapsed();
        let expected = keys
            .iter()
            .fold(0_u64, |expected, key| expected.wrapping_add(words(&(*key, value(key)))));
        assert_eq!(sum, expected, "sum of the values that were looked up");
        Self { elapsed, entries: u32::try_from(keys.len()).unwrap_or(u32::MAX) }
    }
}

/// The time of one entry, as often as criterion wants it.
fn per_entry(times: u64, mut pass: impl FnMut() -> Pass) -> Duration {
    (0..times)
        .map(|_| {
            let Pass { elapsed, entries } = pass();
            elapsed / entries
        })
        .sum()
}

fn rows(entries: u32) -> Vec<(Key, Value)> {
    (0..entries).map(row).collect()
}

fn row(number: u32) -> (Key, Value) {
    let key = key(number);
    (key, value(&key))
}

fn key(number: u32) -> Key {
    let number = u64::from(number);
    [number, number.wrapping_mul(0x9e37_79b9_7f4a_7c15)]
}

fn value(key: &Key) -> Value {
    [key[0] + 1; 8]
}

/// The sum of all words of an entry.
fn words((key, value): &(Key, Value)) -> u64 {
    key.iter().chain(value).fold(0, |sum, word| sum.wrapping_add(*word))
}

/// An entry whose values of all CPUs add up to that of `row`.
fn spread((key, value): (Key, Value), cpus: usize) -> (Key, PerCpu<Value>) {
    let mut values = vec![[1; 8]; cpus];
    values[0] = value.map(|word| word.wrapping_sub(cpus as u64 - 1));
    (key, PerCpu::new(values))
}

/// Keys that are there, in no order; as many as there are entries, so that a large map is not read
/// from the cache that a few keys would fit in.
fn random_keys(entries: u32) -> Vec<Key> {
    let mut number = 1_u32;
    let draw = |_| {
        // Knuth's generator; the high bits are the good ones.
        number = number.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let share = (u64::from(number) * u64::from(entries)) >> 32;
        key(u32::try_from(share).unwrap_or_default())
    };
    (0..entries).map(draw).collect()
}

/// The number of possible CPUs, as the kernel gives a value for each.
fn cpus(map: &PerCpuHashMap<Key, Value>) -> usize {
    let one = PerCpu::new(vec![[0; 8]]);
    match map.insert(&[0; 2], &one) {
        Ok(()) => 1,
        Err(podwire_bpf::Error::CpuCount { possible, .. }) => possible,
        Err(error) => panic!("{error:#}"),
    }
}

criterion_group! { name = benches; config = criterion(); targets = maps }
criterion_main!(benches);
