//! Hash maps, plain and with eviction.

use std::collections::{BTreeMap, HashMap as StdHashMap};
use std::marker::PhantomData;
use std::sync::Mutex;

use super::{Stored, check_mode, each, lock, refused};
use crate::error::{MapOperation, Result};
use crate::map::{InsertMode, MapKey, Removal, Typed};
use crate::shape::Table;

/// As the kernel's [`HashMap`](crate::HashMap): refuses new keys when it is full.
#[derive(Debug)]
pub struct HashMap<K, V> {
    name: String,
    max_entries: u32,
    entries: Mutex<StdHashMap<Vec<u8>, Vec<u8>>>,
    types: Typed<(K, V)>,
}

impl<K: MapKey, V: Stored> HashMap<K, V> {
    /// An empty map; the name is for errors.
    pub fn new(name: &str, max_entries: u32) -> Self {
        Self {
            name: name.to_owned(),
            max_entries,
            entries: Mutex::new(StdHashMap::new()),
            types: PhantomData,
        }
    }
}

impl<K: MapKey, V: Stored> Table<K, V> for HashMap<K, V> {
    fn get(&self, key: &K) -> Result<Option<V>> {
        Ok(lock(&self.entries).get(key.as_bytes()).map(|value| V::load(value)))
    }

    fn insert_with(&self, key: &K, value: &V, mode: InsertMode) -> Result<()> {
        let value = value.store(&self.name)?;
        let mut entries = lock(&self.entries);
        let present = entries.contains_key(key.as_bytes());
        check_mode(&self.name, mode, present)?;
        if !present && entries.len() >= self.max_entries as usize {
            return Err(refused(MapOperation::Insert, &self.name, libc::E2BIG));
        }
        entries.insert(key.as_bytes().to_vec(), value);
        Ok(())
    }

    fn remove(&self, key: &K) -> Result<Removal> {
        let removed = lock(&self.entries).remove(key.as_bytes());
        Ok(removed.map_or(Removal::Absent, |_| Removal::Removed))
    }

    fn take(&self, key: &K) -> Result<Option<V>> {
        Ok(lock(&self.entries).remove(key.as_bytes()).map(|value| V::load(&value)))
    }

    fn entries(&self) -> Result<Vec<(K, V)>> {
        let entries = lock(&self.entries);
        Ok(entries.iter().map(|(key, value)| (K::load(key), V::load(value))).collect())
    }

    fn drain(&self) -> Result<Vec<(K, V)>> {
        let mut entries = lock(&self.entries);
        Ok(entries.drain().map(|(key, value)| (K::load(&key), V::load(&value))).collect())
    }

    fn insert_batch(&self, entries: &[(K, V)]) -> Result<()> {
        each(&self.name, entries, |(key, value)| self.insert(key, value))
    }

    fn remove_batch(&self, keys: &[K]) -> Result<usize> {
        let mut entries = lock(&self.entries);
        Ok(keys.iter().filter(|key| entries.remove(key.as_bytes()).is_some()).count())
    }

    fn max_entries(&self) -> u32 {
        self.max_entries
    }
}

/// As the kernel's [`LruHashMap`](crate::LruHashMap): makes room for new keys by evicting.
///
/// The order of eviction is exact where the kernel's is approximate: the entry goes that was
/// inserted or replaced longest ago. As in the kernel, looking up from user space does not count
/// as use.
#[derive(Debug)]
pub struct LruHashMap<K, V> {
    name: String,
    max_entries: u32,
    state: Mutex<Lru>,
    types: Typed<(K, V)>,
}

#[derive(Debug, Default)]
struct Lru {
    entries: StdHashMap<Vec<u8>, Used>,
    by_use: BTreeMap<u64, Vec<u8>>,
    clock: u64,
}

#[derive(Debug)]
struct Used {
    at: u64,
    value: Vec<u8>,
}

impl Lru {
    fn insert(&mut self, key: &[u8], value: Vec<u8>, room: usize) {
        self.remove(key);
        while self.entries.len() >= room {
            let Some((_, oldest)) = self.by_use.pop_first() else { break };
            self.entries.remove(&oldest);
        }
        self.clock += 1;
        self.by_use.insert(self.clock, key.to_vec());
        self.entries.insert(key.to_vec(), Used { at: self.clock, value });
    }

    fn remove(&mut self, key: &[u8]) -> Option<Vec<u8>> {
        let Used { at, value } = self.entries.remove(key)?;
        self.by_use.remove(&at);
        Some(value)
    }
}

impl<K: MapKey, V: Stored> LruHashMap<K, V> {
    /// An empty map; the name is for errors.
    pub fn new(name: &str, max_entries: u32) -> Self {
        Self {
            name: name.to_owned(),
            max_entries,
            state: Mutex::new(Lru::default()),
            types: PhantomData,
        }
    }
}

impl<K: MapKey, V: Stored> Table<K, V> for LruHashMap<K, V> {
    fn get(&self, key: &K) -> Result<Option<V>> {
        let state = lock(&self.state);
        Ok(state.entries.get(key.as_bytes()).map(|used| V::load(&used.value)))
    }

    fn insert_with(&self, key: &K, value: &V, mode: InsertMode) -> Result<()> {
        let value = value.store(&self.name)?;
        let mut state = lock(&self.state);
        check_mode(&self.name, mode, state.entries.contains_key(key.as_bytes()))?;
        state.insert(key.as_bytes(), value, self.max_entries as usize);
        Ok(())
    }

    fn remove(&self, key: &K) -> Result<Removal> {
        let removed = lock(&self.state).remove(key.as_bytes());
        Ok(removed.map_or(Removal::Absent, |_| Removal::Removed))
    }

    fn take(&self, key: &K) -> Result<Option<V>> {
        Ok(lock(&self.state).remove(key.as_bytes()).map(|value| V::load(&value)))
    }

    fn entries(&self) -> Result<Vec<(K, V)>> {
        let state = lock(&self.state);
        let load = |(key, used): (&Vec<u8>, &Used)| (K::load(key), V::load(&used.value));
        Ok(state.entries.iter().map(load).collect())
    }

    fn drain(&self) -> Result<Vec<(K, V)>> {
        let mut state = lock(&self.state);
        state.by_use.clear();
        let load = |(key, used): (Vec<u8>, Used)| (K::load(&key), V::load(&used.value));
        Ok(state.entries.drain().map(load).collect())
    }

    fn insert_batch(&self, entries: &[(K, V)]) -> Result<()> {
        each(&self.name, entries, |(key, value)| self.insert(key, value))
    }

    fn remove_batch(&self, keys: &[K]) -> Result<usize> {
        let mut state = lock(&self.state);
        Ok(keys.iter().filter(|key| state.remove(key.as_bytes()).is_some()).count())
    }

    fn max_entries(&self) -> u32 {
        self.max_entries
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_entry_inserted_longest_ago_is_evicted() {
        let map = LruHashMap::<u32, u32>::new("lru", 2);
        map.insert(&1, &10).unwrap();
        map.insert(&2, &20).unwrap();
        map.insert(&1, &11).unwrap();
        assert_eq!(map.get(&2).unwrap(), Some(20), "which does not count as use");
        map.insert(&3, &30).unwrap();
        let mut entries = map.entries().unwrap();
        entries.sort_unstable();
        assert_eq!(entries, [(1, 11), (3, 30)]);
    }
}
