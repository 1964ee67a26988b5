//! Maps that hold one value per CPU, and what the values are together.

use std::fmt;
use std::marker::PhantomData;
use std::ops::Index;

use super::batch::column;
use super::{InsertMode, Map, MapKey, MapValue, Removal, Typed, TypedMap, typed_map};
use crate::cpu;
use crate::error::{Error, Result};
use crate::layout::MapType;
use crate::spec::MapSpec;
use crate::sys::Afterwards;

/// A value that makes sense as the sum over CPUs.
pub trait Aggregate {
    /// Takes another CPU's value in. Counters add up, and wrap.
    fn merge(&mut self, other: &Self);
}

macro_rules! aggregate_integers {
    ($($integer:ty),+) => {$(
        impl Aggregate for $integer {
            fn merge(&mut self, other: &Self) {
                *self = self.wrapping_add(*other);
            }
        }
    )+};
}
aggregate_integers!(u8, u16, u32, u64, i8, i16, i32, i64);

impl<V: Aggregate, const N: usize> Aggregate for [V; N] {
    fn merge(&mut self, other: &Self) {
        for (mine, others) in self.iter_mut().zip(other) {
            mine.merge(others);
        }
    }
}

/// One value for each possible CPU, those that are offline included.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PerCpu<V>(Vec<V>);

impl<V> PerCpu<V> {
    /// Takes one value per CPU; a map refuses any other number than that of the possible CPUs
    /// ([`Error::CpuCount`]).
    pub fn new(values: Vec<V>) -> Self {
        Self(values)
    }

    /// The values, by CPU.
    pub fn as_slice(&self) -> &[V] {
        &self.0
    }

    /// The values, by CPU.
    pub fn iter(&self) -> std::slice::Iter<'_, V> {
        self.0.iter()
    }

    /// The values, by CPU.
    pub fn into_vec(self) -> Vec<V> {
        self.0
    }
}

impl<V: Aggregate + MapValue> PerCpu<V> {
    /// All values together.
    pub fn total(&self) -> V {
        let mut total = V::new_zeroed();
        for value in &self.0 {
            total.merge(value);
        }
        total
    }
}

impl<V> Index<usize> for PerCpu<V> {
    type Output = V;

    fn index(&self, cpu: usize) -> &V {
        &self.0[cpu]
    }
}

impl<'v, V> IntoIterator for &'v PerCpu<V> {
    type Item = &'v V;
    type IntoIter = std::slice::Iter<'v, V>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl<V: MapValue> PerCpu<V> {
    /// The kernel gives each CPU's value in a multiple of 8 bytes.
    const STRIDE: usize = size_of::<V>().next_multiple_of(8);

    pub(crate) fn decode(bytes: &[u8]) -> Self {
        Self(
            bytes
                .chunks_exact(Self::STRIDE)
                .map(|chunk| {
                    let mut value = V::new_zeroed();
                    value.as_mut_bytes().copy_from_slice(&chunk[..size_of::<V>()]);
                    value
                })
                .collect(),
        )
    }

    pub(crate) fn encode(values: &[V]) -> Vec<u8> {
        let mut bytes = vec![0; values.len() * Self::STRIDE];
        for (chunk, value) in bytes.chunks_exact_mut(Self::STRIDE).zip(values) {
            chunk[..size_of::<V>()].copy_from_slice(value.as_bytes());
        }
        bytes
    }

    pub(crate) fn check(&self, map: &str) -> Result<()> {
        let possible = possible(map)?;
        if self.0.len() == possible {
            Ok(())
        } else {
            Err(Error::CpuCount { map: map.to_owned(), given: self.0.len(), possible })
        }
    }
}

/// The number of possible CPUs.
pub(crate) fn possible(map: &str) -> Result<usize> {
    cpu::possible().map_err(|source| Error::Info { object: map.to_owned(), source })
}

/// A hash map with one value per CPU for each key: programs count without sharing cache lines.
///
/// Minimum kernel: 4.6; batches 5.6, [`take`](Self::take) 5.14.
#[doc(alias = "BPF_MAP_TYPE_PERCPU_HASH")]
pub struct PerCpuHashMap<K, V> {
    map: Map,
    types: Typed<(K, V)>,
}

typed_map!(PerCpuHashMap<K: MapKey, V: MapValue>);

impl<K: MapKey, V: MapValue> PerCpuHashMap<K, V> {
    /// Makes a map that no object describes.
    pub fn create(name: &str, max_entries: u32) -> Result<Self> {
        let spec = MapSpec::new(name, MapType::PerCpuHash).entry::<K, V>().max_entries(max_entries);
        Self::from_map(Map::create(&spec)?)
    }

    /// Every CPU's value of `key`.
    pub fn get(&self, key: &K) -> Result<Option<PerCpu<V>>> {
        let mut bytes = vec![0; self.map.fd.value_stride()];
        let found = self.map.lookup_into(key.as_bytes(), &mut bytes)?;
        Ok(found.map(|()| PerCpu::decode(&bytes)))
    }

    /// Inserts or replaces every CPU's value.
    pub fn insert(&self, key: &K, values: &PerCpu<V>) -> Result<()> {
        self.insert_with(key, values, InsertMode::Any)
    }

    /// Inserts or replaces every CPU's value, as `mode` says.
    pub fn insert_with(&self, key: &K, values: &PerCpu<V>, mode: InsertMode) -> Result<()> {
        values.check(self.map.name())?;
        self.map.update(key.as_bytes(), &PerCpu::encode(&values.0), mode)
    }

    /// Removes an entry.
    pub fn remove(&self, key: &K) -> Result<Removal> {
        self.map.delete(key.as_bytes())
    }

    /// Removes an entry and answers its values, atomically. Minimum kernel: 5.14.
    #[doc(alias = "BPF_MAP_LOOKUP_AND_DELETE_ELEM")]
    pub fn take(&self, key: &K) -> Result<Option<PerCpu<V>>> {
        let mut bytes = vec![0; self.map.fd.value_stride()];
        Ok(self.map.take_into(key.as_bytes(), &mut bytes)?.map(|()| PerCpu::decode(&bytes)))
    }

    /// Reads all entries, in batches. Minimum kernel: 5.6.
    #[doc(alias = "BPF_MAP_LOOKUP_BATCH")]
    pub fn entries(&self) -> Result<Vec<(K, PerCpu<V>)>> {
        self.map.read_batches(Afterwards::Keep, |key, values| Ok((key, PerCpu::decode(values))))
    }

    /// Reads all entries and removes them, in batches: each counted exactly once. Minimum kernel:
    /// 5.6.
    #[doc(alias = "BPF_MAP_LOOKUP_AND_DELETE_BATCH")]
    pub fn drain(&self) -> Result<Vec<(K, PerCpu<V>)>> {
        self.map.read_batches(Afterwards::Delete, |key, values| Ok((key, PerCpu::decode(values))))
    }

    /// Inserts or replaces many entries. When one is refused, those before it stay and
    /// [`Error::Batch`] says how many. Minimum kernel: 5.6.
    #[doc(alias = "BPF_MAP_UPDATE_BATCH")]
    pub fn insert_batch(&self, entries: &[(K, PerCpu<V>)]) -> Result<()> {
        let mut values = Vec::with_capacity(entries.len() * self.map.fd.value_stride());
        for (_, value) in entries {
            value.check(self.map.name())?;
            values.extend(PerCpu::encode(&value.0));
        }
        self.map.write_batch(&column(entries.iter().map(|(key, _)| key)), &values)
    }

    /// Removes many keys; answers how many were there. Minimum kernel: 5.6.
    #[doc(alias = "BPF_MAP_DELETE_BATCH")]
    pub fn remove_batch(&self, keys: &[K]) -> Result<usize> {
        self.map.delete_batch(&column(keys.iter()))
    }
}

impl<K: MapKey, V: MapValue + Aggregate> PerCpuHashMap<K, V> {
    /// All CPUs' values of `key` together.
    pub fn total(&self, key: &K) -> Result<Option<V>> {
        Ok(self.get(key)?.map(|values| values.total()))
    }

    /// All entries, each with all CPUs' values together. Minimum kernel: 5.6.
    pub fn totals(&self) -> Result<Vec<(K, V)>> {
        self.map.read_batches(Afterwards::Keep, |key, values| {
            Ok((key, PerCpu::<V>::decode(values).total()))
        })
    }
}

impl<K: MapKey, V: MapValue> TypedMap for PerCpuHashMap<K, V> {
    fn from_map(map: Map) -> Result<Self> {
        map.expect(MapType::PerCpuHash, size_of::<K>(), size_of::<V>())?;
        Ok(Self { map, types: PhantomData })
    }

    fn as_map(&self) -> &Map {
        &self.map
    }
}

impl<K, V> fmt::Debug for PerCpuHashMap<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PerCpuHashMap").field("map", &self.map).finish()
    }
}

/// An array with one value per CPU in each element; every element is always there.
///
/// Minimum kernel: 4.6; batches 5.13.
#[doc(alias = "BPF_MAP_TYPE_PERCPU_ARRAY")]
pub struct PerCpuArray<V> {
    map: Map,
    types: Typed<V>,
}

typed_map!(PerCpuArray<V: MapValue>);

impl<V: MapValue> PerCpuArray<V> {
    /// Makes a map that no object describes.
    pub fn create(name: &str, length: u32) -> Result<Self> {
        let spec = MapSpec::new(name, MapType::PerCpuArray).entry::<u32, V>().max_entries(length);
        Self::from_map(Map::create(&spec)?)
    }

    /// The number of elements.
    #[expect(clippy::len_without_is_empty, reason = "no array is empty")]
    pub fn len(&self) -> u32 {
        self.max_entries()
    }

    /// Every CPU's value at `index`; [`Error::OutOfRange`] if there is no such element.
    pub fn get(&self, index: u32) -> Result<PerCpu<V>> {
        self.map.check_index(index)?;
        let mut bytes = vec![0; self.map.fd.value_stride()];
        // No element of an array is ever absent.
        self.map.lookup_into(&index.to_ne_bytes(), &mut bytes)?;
        Ok(PerCpu::decode(&bytes))
    }

    /// Writes every CPU's value at `index`; [`Error::OutOfRange`] if there is no such element.
    pub fn set(&self, index: u32, values: &PerCpu<V>) -> Result<()> {
        self.map.check_index(index)?;
        values.check(self.map.name())?;
        self.map.update(&index.to_ne_bytes(), &PerCpu::encode(&values.0), InsertMode::Any)
    }

    /// Reads all elements, in batches. Minimum kernel: 5.13.
    #[doc(alias = "BPF_MAP_LOOKUP_BATCH")]
    pub fn values(&self) -> Result<Vec<PerCpu<V>>> {
        self.map.read_batches(Afterwards::Keep, |_index: u32, bytes| Ok(PerCpu::decode(bytes)))
    }
}

impl<V: MapValue + Aggregate> PerCpuArray<V> {
    /// All CPUs' values at `index` together.
    pub fn total(&self, index: u32) -> Result<V> {
        Ok(self.get(index)?.total())
    }

    /// All elements, each with all CPUs' values together. Minimum kernel: 5.13.
    pub fn totals(&self) -> Result<Vec<V>> {
        self.map.read_batches(Afterwards::Keep, |_index: u32, bytes| {
            Ok(PerCpu::<V>::decode(bytes).total())
        })
    }
}

impl<V: MapValue> TypedMap for PerCpuArray<V> {
    fn from_map(map: Map) -> Result<Self> {
        map.expect(MapType::PerCpuArray, size_of::<u32>(), size_of::<V>())?;
        Ok(Self { map, types: PhantomData })
    }

    fn as_map(&self) -> &Map {
        &self.map
    }
}

impl<V> fmt::Debug for PerCpuArray<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PerCpuArray").field("map", &self.map).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_lie_eight_bytes_apart() {
        let bytes = PerCpu::encode(&[[1_u8, 2, 3], [4, 5, 6]]);
        assert_eq!(bytes, [1, 2, 3, 0, 0, 0, 0, 0, 4, 5, 6, 0, 0, 0, 0, 0]);
        assert_eq!(PerCpu::<[u8; 3]>::decode(&bytes).as_slice(), [[1, 2, 3], [4, 5, 6]]);
        assert_eq!(PerCpu::encode(&[7_u64]).len(), 8);
    }

    #[test]
    fn totals_add_up_and_wrap() {
        assert_eq!(PerCpu::new(vec![1_u64, 2, 3]).total(), 6);
        assert_eq!(PerCpu::new(vec![u64::MAX, 2]).total(), 1);
        assert_eq!(PerCpu::new(vec![[1_u64, 10], [2, 20]]).total(), [3, 30]);
    }
}
