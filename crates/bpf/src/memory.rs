//! Maps in memory that behave as the kernel's do: for tests, and for whatever has no privileges.
//!
//! They implement the traits of [`shape`](crate::shape), as the kernel's maps do, with the same
//! limits and the same errors; one conformance suite runs through both. What they are not: shared
//! with another process, or seen by a program.
//!
//! ```
//! use podwire_bpf::{Prefix, memory, shape::LongestPrefix};
//!
//! let routes = memory::LpmTrie::<[u8; 4], u32>::new("routes", 16);
//! routes.insert(&Prefix::new([10, 0, 0, 0], 8)?, &1)?;
//! routes.insert(&Prefix::new([10, 7, 0, 0], 16)?, &2)?;
//! assert_eq!(routes.longest_match_of(&Prefix::full([10, 7, 1, 1]))?, Some(2));
//! # Ok::<(), podwire_bpf::Error>(())
//! ```

mod hash;
mod lpm;
mod slots;

use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};

pub use hash::{HashMap, LruHashMap};
pub use lpm::LpmTrie;
pub use slots::Array;

use crate::error::{Error, MapOperation, Result};
use crate::map::{InsertMode, MapValue, PerCpu};

/// A hash map with one value per CPU for each key.
pub type PerCpuHashMap<K, V> = HashMap<K, PerCpu<V>>;

/// An array with one value per CPU in each element.
pub type PerCpuArray<V> = Array<PerCpu<V>>;

/// A value that can be kept as bytes: anything plain, or one plain value per CPU.
pub trait Stored: Sized + sealed::Sealed {
    /// As bytes, once it is known to fit.
    #[doc(hidden)]
    fn store(&self, map: &str) -> Result<Vec<u8>>;

    /// From bytes.
    #[doc(hidden)]
    fn load(bytes: &[u8]) -> Self;

    /// All bytes zero.
    #[doc(hidden)]
    fn zero(map: &str) -> Result<Vec<u8>>;
}

mod sealed {
    pub trait Sealed {}
    impl<V: crate::map::MapValue> Sealed for V {}
    impl<V: crate::map::MapValue> Sealed for crate::map::PerCpu<V> {}
}

impl<V: MapValue> Stored for V {
    fn store(&self, _map: &str) -> Result<Vec<u8>> {
        Ok(self.as_bytes().to_vec())
    }

    fn load(bytes: &[u8]) -> Self {
        let mut value = V::new_zeroed();
        value.as_mut_bytes().copy_from_slice(bytes);
        value
    }

    fn zero(_map: &str) -> Result<Vec<u8>> {
        Ok(vec![0; size_of::<V>()])
    }
}

impl<V: MapValue> Stored for PerCpu<V> {
    fn store(&self, map: &str) -> Result<Vec<u8>> {
        self.check(map)?;
        Ok(Self::encode(self.as_slice()))
    }

    fn load(bytes: &[u8]) -> Self {
        Self::decode(bytes)
    }

    fn zero(map: &str) -> Result<Vec<u8>> {
        let cpus = crate::map::possible(map)?;
        Ok(Self::encode(&std::iter::repeat_with(V::new_zeroed).take(cpus).collect::<Vec<_>>()))
    }
}

/// A panic elsewhere in a test leaves nothing half done here.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn refused(operation: MapOperation, map: &str, errno: i32) -> Error {
    let source = io::Error::from_raw_os_error(errno);
    Error::Map { operation, map: map.to_owned(), source }
}

/// What `mode` says of a key that is there or is not.
fn check_mode(map: &str, mode: InsertMode, present: bool) -> Result<()> {
    match (mode, present) {
        (InsertMode::NoExist, true) => Err(refused(MapOperation::Insert, map, libc::EEXIST)),
        (InsertMode::Exist, false) => Err(refused(MapOperation::Insert, map, libc::ENOENT)),
        _ => Ok(()),
    }
}

/// Does one after the other; the first error says how far it came, as the kernel's batches do.
fn each<T>(map: &str, items: &[T], mut insert: impl FnMut(&T) -> Result<()>) -> Result<()> {
    for (done, item) in items.iter().enumerate() {
        insert(item).map_err(|error| match error {
            Error::Map { source, .. } => Error::Batch {
                operation: MapOperation::InsertBatch,
                map: map.to_owned(),
                done,
                asked: items.len(),
                source,
            },
            other => other,
        })?;
    }
    Ok(())
}
