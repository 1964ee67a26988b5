//! Leases that are kept where several processes, one after the other, find them: for a plugin that
//! starts, grants one address and ends.
//!
//! [`Ledger`] has the rules of [`Allocator`](crate::Allocator), next free and not first free, but
//! works on an ordered [`Table`] and reads a handful of its entries, however many leases there
//! are. [`Memory`] is a table for tests and for programs that live on; `File`, behind the feature
//! `file`, keeps one in a file, under a lock.
//!
//! ```
//! use podwire_ipam::store::{Ledger, Memory};
//! use podwire_ipam::{Owner, Plan, RangeSpec};
//!
//! let subnet = RangeSpec::new("10.1.0.0/24".parse()?).build()?;
//! let plan = Plan::new(vec![vec![subnet]])?;
//! let mut ledger = Ledger::new(Memory::default(), "default");
//!
//! let owner = Owner::new("8c2d", "eth0");
//! let grants = ledger.allocate(&owner, &plan, &[])?;
//! assert_eq!(grants[0].address.to_string(), "10.1.0.2/24");
//! assert_eq!(ledger.release(&owner)?, ["10.1.0.2".parse::<std::net::IpAddr>()?]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # How it differs from the allocator
//!
//! A lease is held until it is released, with nothing to confirm. A released address rests until
//! nothing else is left or 4,096 others of its family were released after it, whatever the time: no
//! clock is shared by processes and survives being set.

mod entries;
#[cfg(feature = "file")]
mod file;
mod ledger;
mod memory;
mod runs;

#[cfg(feature = "file")]
pub use file::{DatabaseError, File, FileError, FileTable, Opened};
pub use ledger::{Grant, Ledger, StoreError};
pub use memory::Memory;

/// A key and its value.
pub type Entry = (Vec<u8>, Vec<u8>);

/// An ordered map of bytes, in which a [`Ledger`] keeps everything. Keys compare byte by byte.
pub trait Table {
    /// Why an operation failed.
    type Error: std::error::Error + 'static;

    /// The value of `key`.
    ///
    /// # Errors
    ///
    /// The table cannot be read.
    fn value(&self, key: &[u8]) -> Result<Option<Vec<u8>>, Self::Error>;

    /// The entry with the smallest key that is `key` or greater.
    ///
    /// # Errors
    ///
    /// The table cannot be read.
    fn first_from(&self, key: &[u8]) -> Result<Option<Entry>, Self::Error>;

    /// The entry with the greatest key that is `key` or smaller.
    ///
    /// # Errors
    ///
    /// The table cannot be read.
    fn last_to(&self, key: &[u8]) -> Result<Option<Entry>, Self::Error>;

    /// Writes an entry, in place of one with the same key.
    ///
    /// # Errors
    ///
    /// The table cannot be written.
    fn insert(&mut self, key: &[u8], value: &[u8]) -> Result<(), Self::Error>;

    /// Removes an entry if there is one.
    ///
    /// # Errors
    ///
    /// The table cannot be written.
    fn remove(&mut self, key: &[u8]) -> Result<(), Self::Error>;
}
