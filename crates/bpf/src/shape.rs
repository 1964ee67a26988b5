//! What kinds of map have in common, whether they are in the kernel or in memory.
//!
//! Code that works on these traits is tested without privileges on the maps of
//! [`memory`](crate::memory), and runs on the kernel's.

use crate::error::Result;
use crate::map::{
    Array, HashKind, HashMap, InsertMode, LpmTrie, MapKey, MapValue, PerCpu, PerCpuArray,
    PerCpuHashMap, Prefix, Removal,
};

/// Entries found by their whole key. `V` of a per-CPU map is [`PerCpu`].
///
/// The errors are those of the kernel on either side: [`is_full`](crate::Error::is_full),
/// [`is_already_exists`](crate::Error::is_already_exists) and
/// [`is_not_found`](crate::Error::is_not_found) as [`InsertMode`] says.
pub trait Table<K, V> {
    /// The value of `key`.
    fn get(&self, key: &K) -> Result<Option<V>>;

    /// Inserts or replaces an entry, as `mode` says.
    fn insert_with(&self, key: &K, value: &V, mode: InsertMode) -> Result<()>;

    /// Inserts or replaces an entry.
    fn insert(&self, key: &K, value: &V) -> Result<()> {
        self.insert_with(key, value, InsertMode::Any)
    }

    /// Removes an entry.
    fn remove(&self, key: &K) -> Result<Removal>;

    /// Removes an entry and answers its value.
    fn take(&self, key: &K) -> Result<Option<V>>;

    /// All entries, in no order.
    fn entries(&self) -> Result<Vec<(K, V)>>;

    /// All entries, in no order; they are removed.
    fn drain(&self) -> Result<Vec<(K, V)>>;

    /// Inserts or replaces entries up to the first that is refused.
    fn insert_batch(&self, entries: &[(K, V)]) -> Result<()>;

    /// Removes keys; answers how many were there.
    fn remove_batch(&self, keys: &[K]) -> Result<usize>;

    /// The most entries it takes.
    fn max_entries(&self) -> u32;
}

/// Entries found by the longest prefix that covers what is asked for.
pub trait LongestPrefix<D, V> {
    /// The value of the longest prefix that covers `prefix`.
    fn longest_match_of(&self, prefix: &Prefix<D>) -> Result<Option<V>>;

    /// Inserts or replaces a prefix, as `mode` says.
    fn insert_with(&self, prefix: &Prefix<D>, value: &V, mode: InsertMode) -> Result<()>;

    /// Inserts or replaces a prefix.
    fn insert(&self, prefix: &Prefix<D>, value: &V) -> Result<()> {
        self.insert_with(prefix, value, InsertMode::Any)
    }

    /// Removes exactly this prefix.
    fn remove(&self, prefix: &Prefix<D>) -> Result<Removal>;

    /// All entries, in no order.
    fn entries(&self) -> Result<Vec<(Prefix<D>, V)>>;

    /// Inserts or replaces prefixes up to the first that is refused.
    fn insert_batch(&self, entries: &[(Prefix<D>, V)]) -> Result<()>;

    /// Removes prefixes; answers how many were there.
    fn remove_batch(&self, prefixes: &[Prefix<D>]) -> Result<usize>;

    /// The most entries it takes.
    fn max_entries(&self) -> u32;
}

/// Elements that are always there, zero at first. `V` of a per-CPU array is [`PerCpu`].
#[expect(clippy::len_without_is_empty, reason = "no array is empty")]
pub trait Slots<V> {
    /// The element at `index`; [`Error::OutOfRange`](crate::Error::OutOfRange) if there is none.
    fn get(&self, index: u32) -> Result<V>;

    /// Writes the element at `index`; [`Error::OutOfRange`](crate::Error::OutOfRange) if there is
    /// none.
    fn set(&self, index: u32, value: &V) -> Result<()>;

    /// All elements, in order.
    fn values(&self) -> Result<Vec<V>>;

    /// The number of elements.
    fn len(&self) -> u32;
}

/// Every method is the inherent one of the same name.
macro_rules! table {
    (($($generics:tt)*) $value:ty, $map:ty) => {
        impl<$($generics)*> Table<K, $value> for $map {
            fn get(&self, key: &K) -> Result<Option<$value>> {
                self.get(key)
            }

            fn insert_with(&self, key: &K, value: &$value, mode: InsertMode) -> Result<()> {
                self.insert_with(key, value, mode)
            }

            fn remove(&self, key: &K) -> Result<Removal> {
                self.remove(key)
            }

            fn take(&self, key: &K) -> Result<Option<$value>> {
                self.take(key)
            }

            fn entries(&self) -> Result<Vec<(K, $value)>> {
                self.entries()
            }

            fn drain(&self) -> Result<Vec<(K, $value)>> {
                self.drain()
            }

            fn insert_batch(&self, entries: &[(K, $value)]) -> Result<()> {
                self.insert_batch(entries)
            }

            fn remove_batch(&self, keys: &[K]) -> Result<usize> {
                self.remove_batch(keys)
            }

            fn max_entries(&self) -> u32 {
                self.max_entries()
            }
        }
    };
}

table!((K: MapKey, V: MapValue, T: HashKind) V, HashMap<K, V, T>);
table!((K: MapKey, V: MapValue) PerCpu<V>, PerCpuHashMap<K, V>);

impl<D: MapKey, V: MapValue> LongestPrefix<D, V> for LpmTrie<D, V> {
    fn longest_match_of(&self, prefix: &Prefix<D>) -> Result<Option<V>> {
        self.longest_match_of(prefix)
    }

    fn insert_with(&self, prefix: &Prefix<D>, value: &V, mode: InsertMode) -> Result<()> {
        self.insert_with(prefix, value, mode)
    }

    fn remove(&self, prefix: &Prefix<D>) -> Result<Removal> {
        self.remove(prefix)
    }

    fn entries(&self) -> Result<Vec<(Prefix<D>, V)>> {
        self.entries()
    }

    fn insert_batch(&self, entries: &[(Prefix<D>, V)]) -> Result<()> {
        self.insert_batch(entries)
    }

    fn remove_batch(&self, prefixes: &[Prefix<D>]) -> Result<usize> {
        self.remove_batch(prefixes)
    }

    fn max_entries(&self) -> u32 {
        self.max_entries()
    }
}

macro_rules! slots {
    ($value:ty, $map:ty) => {
        impl<V: MapValue> Slots<$value> for $map {
            fn get(&self, index: u32) -> Result<$value> {
                self.get(index)
            }

            fn set(&self, index: u32, value: &$value) -> Result<()> {
                self.set(index, value)
            }

            fn values(&self) -> Result<Vec<$value>> {
                self.values()
            }

            fn len(&self) -> u32 {
                self.len()
            }
        }
    };
}

slots!(V, Array<V>);
slots!(PerCpu<V>, PerCpuArray<V>);
