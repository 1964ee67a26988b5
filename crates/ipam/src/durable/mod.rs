//! Leases that survive their process and their machine's power, for an agent that lives on.
//!
//! A [`Store`] is a handful of tables of bytes with one promise: a commit is atomic, and on the
//! disk when it returns. [`MemoryStore`] makes half of it, for tests; `FileStore`, behind the
//! feature `file`, keeps the tables in one file. The [`Journal`] is a thread that commits together
//! what several callers have begun meanwhile, so that sixteen callers pay for one sync and not for
//! sixteen.

mod error;
#[cfg(feature = "file")]
mod file;
mod ipam;
mod journal;
mod memory;
mod records;
mod state;

pub use error::Error;
#[cfg(feature = "file")]
pub use file::{FileStore, FileStoreError};
pub use ipam::{Begun, Ipam};
pub use journal::{Counts, Journal, Ticket};
pub use memory::MemoryStore;
pub use state::Recovered;

/// A key and its value.
pub type Entry = (Vec<u8>, Vec<u8>);

/// What becomes of one key of one table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The table.
    pub table: &'static str,
    /// The key in it.
    pub key: Vec<u8>,
    /// The new value; `None` removes the key, if it is there.
    pub value: Option<Vec<u8>>,
}

impl Change {
    /// Writes `value`, in place of what `key` had.
    pub fn put(table: &'static str, key: impl Into<Vec<u8>>, value: impl Into<Vec<u8>>) -> Self {
        Self { table, key: key.into(), value: Some(value.into()) }
    }

    /// Removes `key`, if it is there.
    pub fn remove(table: &'static str, key: impl Into<Vec<u8>>) -> Self {
        Self { table, key: key.into(), value: None }
    }
}

/// Tables of bytes that changes are committed to.
pub trait Store: Send + 'static {
    /// Why an operation failed.
    type Error: std::error::Error + Send + Sync + 'static;

    /// All entries of a table in the order of their keys; a table that was never written is empty.
    ///
    /// After a [`commit`](Self::commit) that failed, this tells which state the store is in now,
    /// as a reader after a power loss would find it.
    ///
    /// # Errors
    ///
    /// The table cannot be read.
    fn load(&mut self, table: &str) -> Result<Vec<Entry>, Self::Error>;

    /// Makes these changes, in their order. All of them are on the disk when this returns.
    ///
    /// # Errors
    ///
    /// It is not known whether the changes were made; but all of them were, or none.
    fn commit(&mut self, changes: &[Change]) -> Result<(), Self::Error>;
}
