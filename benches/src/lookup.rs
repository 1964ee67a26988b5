//! Tables of the kernel, filled with entries whose keys and values follow from their numbers.

use std::time::Duration;

use podwire_bpf::{
    Array, HashKind, HashMap, Loader, LpmTrie, LruHashMap, MapKey, Object, PerCpu, PerCpuArray,
    PerCpuHashMap, Plain, Prefix, SkbContext,
};

use podwire_datapath::abi::{Flow, FlowEntry, FlowHash, FlowKey, WAYS};

use crate::{
    error::{Error, Result},
    keys,
    timing::{Difference, Run},
};

/// The object of the benchmarks' own programs.
pub const OBJECT: &[u8] = include_bytes!("../objects/bench.o");

const TC_ACT_OK: u32 = 0;
/// A frame that no program looks at.
const FRAME: [u8; 64] = [0; 64];

/// What is looked up, and in what.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Table {
    /// Array, by number.
    Array,
    /// Hash map, keys of 4 bytes.
    Hash4,
    /// Hash map, keys of 16 bytes.
    Hash16,
    /// Hash map, keys of 40 bytes.
    Hash40,
    /// LRU hash map, keys of 4 bytes.
    Lru4,
    /// LRU hash map, keys of 40 bytes.
    Lru40,
    /// Per-CPU hash map, keys of 4 bytes.
    PerCpu4,
    /// Trie, IPv4 hosts.
    Lpm4,
    /// Trie, IPv4 prefixes of /16 to /28, nested.
    Lpm4Mixed,
    /// Trie, IPv6 hosts.
    Lpm16,
    /// Trie, IPv6 prefixes of /64 to /120, nested.
    Lpm16Mixed,
    /// IPv6 hosts in a hash map in front of a trie of 10,000 prefixes; hosts are looked up.
    TwoTier,
    /// The same tables; addresses of prefixes are looked up, first in the hash map, in vain.
    TwoTierPrefix,
    /// Flows in sets, as the datapath has them; their packets are counted.
    Flow,
    /// The same, with a table of 1,024 flows of each CPU in front.
    FlowNear,
}

/// Which programs measure a table.
struct Programs {
    lookup: &'static str,
    draw: &'static str,
}

impl Table {
    /// All of them.
    pub const ALL: [Self; 15] = [
        Self::Array,
        Self::Hash4,
        Self::Hash16,
        Self::Hash40,
        Self::Lru4,
        Self::Lru40,
        Self::PerCpu4,
        Self::Lpm4,
        Self::Lpm4Mixed,
        Self::Lpm16,
        Self::Lpm16Mixed,
        Self::TwoTier,
        Self::TwoTierPrefix,
        Self::Flow,
        Self::FlowNear,
    ];

    /// Its name in reports, and that of the program that looks it up.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.programs().lookup
    }

    fn programs(self) -> Programs {
        let (lookup, draw) = match self {
            Self::Array => ("array", "draw_index"),
            Self::Hash4 => ("hash4", "draw_key4"),
            Self::Hash16 => ("hash16", "draw_key16"),
            Self::Hash40 => ("hash40", "draw_key40"),
            Self::Lru4 => ("lru4", "draw_key4"),
            Self::Lru40 => ("lru40", "draw_key40"),
            Self::PerCpu4 => ("per_cpu4", "draw_key4"),
            Self::Lpm4 => ("lpm4", "draw_trie_host4"),
            Self::Lpm4Mixed => ("lpm4_mixed", "draw_trie_mixed4"),
            Self::Lpm16 => ("lpm16", "draw_trie_host16"),
            Self::Lpm16Mixed => ("lpm16_mixed", "draw_trie_mixed16"),
            Self::TwoTier => ("two_tier", "draw_host16"),
            Self::TwoTierPrefix => ("two_tier_prefix", "draw_mixed16"),
            Self::Flow => ("flow", "draw_flow"),
            Self::FlowNear => ("flow_near", "draw_flow"),
        };
        Programs { lookup, draw }
    }

    /// The maps it is made of, with room for `entries`.
    fn maps(self, entries: u32) -> Vec<(&'static str, u32)> {
        match self {
            Self::Array => vec![("ARRAY", entries)],
            Self::Hash4 => vec![("HASH4", entries)],
            Self::Hash16 => vec![("HASH16", entries)],
            Self::Hash40 => vec![("HASH40", entries)],
            Self::Lru4 => vec![("LRU4", lru_room(entries))],
            Self::Lru40 => vec![("LRU40", lru_room(entries))],
            Self::PerCpu4 => vec![("PER_CPU4", entries)],
            Self::Lpm4 | Self::Lpm4Mixed => vec![("LPM4", entries)],
            Self::Lpm16 | Self::Lpm16Mixed => vec![("LPM16", entries)],
            Self::TwoTier | Self::TwoTierPrefix => {
                vec![("HASH16", entries), ("LPM16", keys::PREFIXES)]
            }
            Self::Flow | Self::FlowNear => vec![("FLOWS", flow_sets(entries))],
        }
    }
}

/// An LRU map keeps entries free on each CPU and evicts before it is full.
fn lru_room(entries: u32) -> u32 {
    entries + entries / 4 + 1024
}

/// Sets of flows, of which half of the entries are taken then, or fewer.
fn flow_sets(entries: u32) -> u32 {
    #[expect(clippy::cast_possible_truncation, reason = "eight")]
    let sets = entries.div_ceil(WAYS as u32 / 2);
    sets.next_power_of_two()
}

/// A filled table, its programs loaded.
#[derive(Debug)]
pub struct Lookup {
    object: Object,
    table: Table,
    what: String,
}

impl Lookup {
    /// Fills a table with `entries` entries.
    ///
    /// # Errors
    ///
    /// If the kernel refuses a map, an entry or a program.
    pub fn new(table: Table, entries: u32) -> Result<Self> {
        let Programs { lookup, draw } = table.programs();
        let drawn = if table == Table::TwoTierPrefix { keys::PREFIXES } else { entries };
        let mut loader = Loader::new(OBJECT)
            .global("ENTRIES", &drawn)
            .global("SETS_MASK", &(flow_sets(entries) - 1))
            .programs([lookup, draw]);
        for (map, room) in table.maps(entries) {
            loader = loader.max_entries(map, room);
        }
        let object = loader.load()?;
        fill(&object, table, entries)?;
        Ok(Self { object, table, what: format!("lookup/{lookup}/{entries}") })
    }

    /// The maps and programs.
    #[must_use]
    pub fn object(&self) -> &Object {
        &self.object
    }

    /// What `repetitions` lookups take, of keys drawn at random from all entries; the drawing is
    /// subtracted.
    ///
    /// # Errors
    ///
    /// [`Error::Tally`] if any of them found something else than what the table was filled with.
    pub fn measure(&self, repetitions: u64) -> Result<Duration> {
        let Programs { lookup, draw } = self.table.programs();
        let run = |name| {
            let program = self.object.program(name)?;
            let context = SkbContext::default();
            Ok::<_, Error>(Run { program, frame: &FRAME, context, answer: TC_ACT_OK })
        };
        let difference = Difference { with: run(lookup)?, without: run(draw)? };
        let tally = self.object.map::<PerCpuArray<[u64; 2]>>("TALLY")?;
        let before = tally.total(0)?;
        let measured = difference.measure(&self.what, repetitions, |_| Ok(()));
        let after = tally.total(0)?;
        let (right, wrong) = (after[0] - before[0], after[1] - before[1]);
        // Both programs count.
        let expected = measured.as_ref().map_or(right, |measured| 2 * measured.made);
        if wrong != 0 || right != expected {
            return Err(Error::Tally { what: self.what.clone(), expected, right, wrong });
        }
        Ok(measured?.elapsed)
    }
}

fn fill(object: &Object, table: Table, entries: u32) -> Result<()> {
    let all = 0..entries;
    match table {
        Table::Array => {
            let elements: Vec<_> = all.map(|index| (index, u64::from(index))).collect();
            object.map::<Array<u64>>("ARRAY")?.set_batch(&elements)?;
        }
        Table::Hash4 => fill_hash::<_, Plain>(&object.map("HASH4")?, entries, keys::key4)?,
        Table::Hash16 => fill_hash::<_, Plain>(&object.map("HASH16")?, entries, keys::key16)?,
        Table::Hash40 => fill_hash::<_, Plain>(&object.map("HASH40")?, entries, keys::key40)?,
        Table::Lru4 => {
            fill_hash(&object.map::<LruHashMap<_, _>>("LRU4")?, entries, keys::key4)?;
        }
        Table::Lru40 => {
            fill_hash(&object.map::<LruHashMap<_, _>>("LRU40")?, entries, keys::key40)?;
        }
        Table::PerCpu4 => {
            let map = object.map::<PerCpuHashMap<u32, u64>>("PER_CPU4")?;
            let cpus = object.map::<PerCpuArray<[u64; 2]>>("TALLY")?.get(0)?.as_slice().len();
            let value = |index: u32| PerCpu::new(vec![u64::from(index); cpus]);
            let rows: Vec<_> = all.map(|index| (keys::key4(index), value(index))).collect();
            map.insert_batch(&rows)?;
        }
        Table::Lpm4 => {
            fill_trie(&object.map("LPM4")?, entries, |index| Ok(Prefix::full(keys::host4(index))))?;
        }
        Table::Lpm4Mixed => fill_trie(&object.map("LPM4")?, entries, |index| {
            let prefix = keys::mixed4(index);
            Prefix::new(prefix.address, prefix.length)
        })?,
        Table::Lpm16 => fill_trie(&object.map("LPM16")?, entries, |index| {
            Ok(Prefix::full(keys::host16(index)))
        })?,
        Table::Lpm16Mixed => fill_mixed16(object, entries)?,
        Table::TwoTier | Table::TwoTierPrefix => {
            fill_hash::<_, Plain>(&object.map("HASH16")?, entries, keys::host16)?;
            fill_mixed16(object, keys::PREFIXES)?;
        }
        Table::Flow | Table::FlowNear => fill_flows(object, entries)?,
    }
    Ok(())
}

/// Each flow in the emptier of its two sets, at the first free entry that is looked at.
fn fill_flows(object: &Object, entries: u32) -> Result<()> {
    let mask = flow_sets(entries) - 1;
    let mut sets = vec![[FlowEntry::default(); WAYS]; mask as usize + 1];
    for index in 0..entries {
        let words = keys::flow(index);
        let hash = FlowHash::new(&keys::SEED, words);
        let [first, second] = [hash.first_set(mask), hash.second_set(mask)];
        let is_free = |entry: &FlowEntry| entry.key == FlowKey::default();
        let free = |set: u32| sets[set as usize].iter().filter(|entry| is_free(entry)).count();
        let set = if free(first) < free(second) { second } else { first };
        let mut ways = (0..WAYS).map(|step| hash.way() ^ step);
        let way = ways.find(|way| is_free(&sets[set as usize][*way]));
        let way = way.ok_or(Error::Path { what: format!("flow {index}"), problem: "no room" })?;
        let flow = Flow { bytes: index.into(), ..Flow::default() };
        sets[set as usize][way] = FlowEntry { key: FlowKey::of_words(words), flow };
    }
    let sets: Vec<_> = (0..).zip(sets).collect();
    Ok(object.map::<Array<[FlowEntry; WAYS]>>("FLOWS")?.set_batch(&sets)?)
}

fn fill_hash<K: MapKey, T: HashKind>(
    map: &HashMap<K, u64, T>,
    entries: u32,
    key: impl Fn(u32) -> K,
) -> Result<()> {
    let rows: Vec<_> = (0..entries).map(|index| (key(index), u64::from(index))).collect();
    Ok(map.insert_batch(&rows)?)
}

fn fill_mixed16(object: &Object, entries: u32) -> Result<()> {
    fill_trie(&object.map("LPM16")?, entries, |index| {
        let prefix = keys::mixed16(index);
        Prefix::new(prefix.address, prefix.length)
    })
}

fn fill_trie<D: MapKey>(
    map: &LpmTrie<D, u32>,
    entries: u32,
    prefix: impl Fn(u32) -> podwire_bpf::Result<Prefix<D>>,
) -> Result<()> {
    let rows = (0..entries).map(|index| Ok((prefix(index)?, index)));
    Ok(map.insert_batch(&rows.collect::<podwire_bpf::Result<Vec<_>>>()?)?)
}

/// One lookup of one key: the unit H.
#[derive(Debug)]
pub struct Unit(Object);

impl Unit {
    /// Entries of the unit's table.
    pub const ENTRIES: u32 = 10_000;

    /// Fills its table.
    ///
    /// # Errors
    ///
    /// If the kernel refuses the map, an entry or a program.
    pub fn new() -> Result<Self> {
        let loader = Loader::new(OBJECT).max_entries("HASH4", Self::ENTRIES);
        let object = loader.programs(["fixed_key", "nothing"]).load()?;
        fill(&object, Table::Hash4, Self::ENTRIES)?;
        Ok(Self(object))
    }

    /// What `repetitions` lookups of it take; an empty program is subtracted.
    ///
    /// # Errors
    ///
    /// [`Error::Answer`] if the key is not there.
    pub fn measure(&self, repetitions: u64) -> Result<Duration> {
        let run = |name| {
            let program = self.0.program(name)?;
            let context = SkbContext::default();
            Ok::<_, Error>(Run { program, frame: &FRAME, context, answer: TC_ACT_OK })
        };
        let difference = Difference { with: run("fixed_key")?, without: run("nothing")? };
        Ok(difference.measure("unit/h", repetitions, |_| Ok(()))?.elapsed)
    }
}
