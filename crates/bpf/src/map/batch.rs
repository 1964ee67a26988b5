//! Many entries in one call.
//!
//! The kernel reads a hash table bucket by bucket, each under its lock, so that an entry that is
//! there throughout is read exactly once, which walking key by key does not promise. Arrays and
//! tries it walks key by key inside the call.

use std::io;

use super::{Map, MapKey, is_missing_operation};
use crate::error::{Error, MapOperation, Result};
use crate::sys::Afterwards;

/// Entries per call: large enough that the call itself costs nothing beside them, small enough that
/// the buffers stay in the second-level cache.
const CHUNK: usize = 1024;

/// A bucket of a hash table must fit into the buffers whole; beyond this size something else is
/// wrong.
const LARGEST_CHUNK: usize = 1 << 22;

/// How often a batch that an interrupted walk ended without progress is tried again.
const STALLS: u32 = 16;

impl Map {
    /// Reads every entry; what `take` makes of each key and the bytes of its value is collected.
    pub(super) fn read_batches<K: MapKey, T>(
        &self,
        then: Afterwards,
        mut take: impl FnMut(K, &[u8]) -> Result<T>,
    ) -> Result<Vec<T>> {
        let mut entries = Vec::new();
        self.visit_batches(then, |key, value| {
            entries.push(take(key, value)?);
            Ok::<_, Error>(())
        })?;
        Ok(entries)
    }

    /// Reads every entry; `visit` is given each key and the bytes of its value, and may change the map:
    /// no call is under way meanwhile. Memory is taken for one chunk, whatever the size of the map.
    ///
    /// A map is limited to what the buffers start with or to `max_entries`, whichever is less.
    pub(super) fn visit_batches<K: MapKey, E: From<Error>>(
        &self,
        then: Afterwards,
        mut visit: impl FnMut(K, &[u8]) -> std::result::Result<(), E>,
    ) -> std::result::Result<(), E> {
        let operation = match then {
            Afterwards::Keep => MapOperation::LookupBatch,
            Afterwards::Delete => MapOperation::TakeBatch,
        };
        let key_size = self.fd.key_size();
        let stride = self.fd.value_stride();
        let mut chunk = CHUNK.min(self.layout().max_entries as usize).max(1);
        let mut cursor = vec![0; key_size.max(4)];
        let mut keys = vec![0; chunk * key_size];
        let mut values = vec![0; chunk * stride];
        let mut started = false;
        let mut stalls = 0;
        let mut done = 0;
        loop {
            let outcome = self
                .fd
                .lookup_batch(started, &mut cursor, &mut keys, &mut values, then)
                .map_err(self.error(operation))?;
            let read = keys.chunks_exact(key_size).zip(values.chunks_exact(stride));
            for (key, value) in read.take(outcome.count) {
                // Sizes were compared when the typed handle was made.
                if let Ok(key) = K::read_from_bytes(key) {
                    visit(key, value)?;
                    done += 1;
                }
            }
            started |= outcome.count > 0;
            match outcome.result {
                Ok(()) => stalls = 0,
                Err(error) => match error.raw_os_error() {
                    // The end.
                    Some(libc::ENOENT) => return Ok(()),
                    // A bucket that does not fit.
                    Some(libc::ENOSPC) if chunk < LARGEST_CHUNK => {
                        chunk *= 2;
                        keys.resize(chunk * key_size, 0);
                        values.resize(chunk * stride, 0);
                    }
                    // Entries vanished under the kernel's feet.
                    Some(libc::EINTR | libc::EAGAIN) if stalls < STALLS => {
                        stalls += u32::from(outcome.count == 0);
                    }
                    _ => return Err(self.batch_error(operation, done, None, error).into()),
                },
            }
        }
    }

    /// Writes entries whose keys and values lie one after the other.
    pub(super) fn write_batch(&self, keys: &[u8], values: &[u8]) -> Result<()> {
        let asked = keys.len().checked_div(self.fd.key_size()).unwrap_or(0);
        if asked == 0 {
            return Ok(());
        }
        let outcome =
            self.fd.update_batch(keys, values).map_err(self.error(MapOperation::InsertBatch))?;
        outcome.result.map_err(|error| {
            self.batch_error(MapOperation::InsertBatch, outcome.count, Some(asked), error)
        })
    }

    /// Removes keys that lie one after the other; those that are absent are passed over. Answers
    /// how many were there.
    pub(super) fn delete_batch(&self, keys: &[u8]) -> Result<usize> {
        let key_size = self.fd.key_size();
        let asked = keys.len().checked_div(key_size).unwrap_or(0);
        let (mut done, mut removed) = (0, 0);
        while done < asked {
            let outcome = self
                .fd
                .delete_batch(&keys[done * key_size..])
                .map_err(self.error(MapOperation::RemoveBatch))?;
            done += outcome.count;
            removed += outcome.count;
            match outcome.result {
                Ok(()) => break,
                // The kernel stops at a key that is not there.
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => done += 1,
                Err(error) => {
                    let operation = MapOperation::RemoveBatch;
                    return Err(self.batch_error(operation, done, Some(asked), error));
                }
            }
        }
        Ok(removed)
    }

    fn batch_error(
        &self,
        operation: MapOperation,
        done: usize,
        asked: Option<usize>,
        source: io::Error,
    ) -> Error {
        if done == 0 && is_missing_operation(&source) {
            return Error::Unsupported {
                feature: "batch operations on this kind of map",
                since: "5.6 (5.13 for per-CPU arrays)",
            };
        }
        let map = self.name.clone();
        match asked {
            Some(asked) => Error::Batch { operation, map, done, asked, source },
            None => Error::Map { operation, map, source },
        }
    }
}

/// The keys and the values of `entries`, each one after the other.
pub(super) fn columns<'e, K: MapKey, V: super::MapValue>(
    entries: impl ExactSizeIterator<Item = (&'e K, &'e V)>,
) -> (Vec<u8>, Vec<u8>) {
    let mut keys = Vec::with_capacity(entries.len() * size_of::<K>());
    let mut values = Vec::with_capacity(entries.len() * size_of::<V>());
    for (key, value) in entries {
        keys.extend_from_slice(key.as_bytes());
        values.extend_from_slice(value.as_bytes());
    }
    (keys, values)
}

/// Keys one after the other.
pub(super) fn column<'e, K: MapKey>(keys: impl ExactSizeIterator<Item = &'e K>) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(keys.len() * size_of::<K>());
    for key in keys {
        bytes.extend_from_slice(key.as_bytes());
    }
    bytes
}
