//! Longest-prefix match.

use std::collections::HashMap;
use std::marker::PhantomData;
use std::sync::Mutex;

use super::{Stored, check_mode, each, lock, refused};
use crate::error::{MapOperation, Result};
use crate::map::{InsertMode, MapKey, Prefix, Removal, Typed};
use crate::shape::LongestPrefix;

/// As the kernel's [`LpmTrie`](crate::LpmTrie).
///
/// Not a trie but a table for each length: looking up asks for every length in turn.
#[derive(Debug)]
pub struct LpmTrie<D, V> {
    name: String,
    max_entries: u32,
    entries: Mutex<HashMap<(u32, Vec<u8>), Entry>>,
    types: Typed<(D, V)>,
}

/// The kernel keeps a prefix as it was given, with the bits that do not count.
#[derive(Debug)]
struct Entry {
    data: Vec<u8>,
    value: Vec<u8>,
}

impl<D: MapKey, V: Stored> LpmTrie<D, V> {
    /// An empty map; the name is for errors.
    pub fn new(name: &str, max_entries: u32) -> Self {
        Self {
            name: name.to_owned(),
            max_entries,
            entries: Mutex::new(HashMap::new()),
            types: PhantomData,
        }
    }
}

impl<D: MapKey, V: Stored> LongestPrefix<D, V> for LpmTrie<D, V> {
    fn longest_match_of(&self, prefix: &Prefix<D>) -> Result<Option<V>> {
        let entries = lock(&self.entries);
        let found = (0..=prefix.length())
            .rev()
            .find_map(|length| entries.get(&(length, masked(prefix.data().as_bytes(), length))));
        Ok(found.map(|entry| V::load(&entry.value)))
    }

    fn insert_with(&self, prefix: &Prefix<D>, value: &V, mode: InsertMode) -> Result<()> {
        let value = value.store(&self.name)?;
        let mut entries = lock(&self.entries);
        let present = entries.contains_key(&key(prefix));
        check_mode(&self.name, mode, present)?;
        if !present && entries.len() >= self.max_entries as usize {
            // Unlike a hash map, a trie says ENOSPC.
            return Err(refused(MapOperation::Insert, &self.name, libc::ENOSPC));
        }
        entries.insert(key(prefix), Entry { data: prefix.data().as_bytes().to_vec(), value });
        Ok(())
    }

    fn remove(&self, prefix: &Prefix<D>) -> Result<Removal> {
        let removed = lock(&self.entries).remove(&key(prefix));
        Ok(removed.map_or(Removal::Absent, |_| Removal::Removed))
    }

    fn entries(&self) -> Result<Vec<(Prefix<D>, V)>> {
        lock(&self.entries)
            .iter()
            .map(|((length, _), entry)| {
                Ok((Prefix::new(D::load(&entry.data), *length)?, V::load(&entry.value)))
            })
            .collect()
    }

    fn insert_batch(&self, entries: &[(Prefix<D>, V)]) -> Result<()> {
        each(&self.name, entries, |(prefix, value)| self.insert(prefix, value))
    }

    fn remove_batch(&self, prefixes: &[Prefix<D>]) -> Result<usize> {
        let mut entries = lock(&self.entries);
        Ok(prefixes.iter().filter(|prefix| entries.remove(&key(*prefix)).is_some()).count())
    }

    fn max_entries(&self) -> u32 {
        self.max_entries
    }
}

fn key<D: MapKey>(prefix: &Prefix<D>) -> (u32, Vec<u8>) {
    (prefix.length(), masked(prefix.data().as_bytes(), prefix.length()))
}

/// The first `length` bits, the others zero.
fn masked(data: &[u8], length: u32) -> Vec<u8> {
    let mut left = length;
    data.iter()
        .map(|byte| {
            let bits = left.min(8);
            left -= bits;
            // Of 8 bits, none is shifted out; of 0, all are.
            byte & !0xff_u8.checked_shr(bits).unwrap_or(0)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_after_the_prefix_are_zero() {
        assert_eq!(masked(&[0xff, 0xff, 0xff], 0), [0, 0, 0]);
        assert_eq!(masked(&[0xff, 0xff, 0xff], 1), [0x80, 0, 0]);
        assert_eq!(masked(&[0xff, 0xff, 0xff], 8), [0xff, 0, 0]);
        assert_eq!(masked(&[0xff, 0xff, 0xff], 13), [0xff, 0xf8, 0]);
        assert_eq!(masked(&[0xff, 0xff, 0xff], 24), [0xff, 0xff, 0xff]);
    }
}
