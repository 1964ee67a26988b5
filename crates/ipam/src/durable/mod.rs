//! Leases that survive their process and their machine's power, for an agent that lives on.
//!
//! ```
//! use podwire_ipam::durable::{Ipam, MemoryStore};
//! use podwire_ipam::{Owner, PoolConfig, Request, Time};
//!
//! // With the feature `file`: FileStore::open(Path::new("/var/lib/agent/ipam.redb"))?
//! let store = MemoryStore::default();
//! let (ipam, recovered) = Ipam::open(store, "the kernel's boot id")?;
//! assert_eq!(recovered.leases, 0);
//! if ipam.usage()?.is_empty() {
//!     ipam.add_pool(&PoolConfig::new("default", vec!["10.1.0.0/24".parse()?]))?;
//! }
//!
//! let owner = Owner::new("8c2d", "eth0").with_pod("shop/web-0");
//! let lease = ipam.allocate(&owner, &Request::default(), Time::from_secs(1))?;
//! // It is in the store. Now for the interface; then:
//! ipam.confirm(&owner)?;
//! # assert_eq!(lease.addresses.to_string(), "10.1.0.1");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! [`Ipam`] is an [`Allocator`](crate::Allocator) in memory that serves requests, and a [`Journal`]
//! that commits them to a [`Store`]: a handful of tables of bytes, and one promise, that a commit is
//! atomic and on the disk when it returns. [`MemoryStore`] makes half of that promise, for tests;
//! `FileStore`, behind the feature `file`, keeps the tables in one file that this process alone may
//! have open.
//!
//! # What is promised
//!
//! - **What was acknowledged is there** after a kill of the process or the loss of power: grants,
//!   confirmations, releases, edits of pools, reservations, sticky names, and the order and the ends
//!   of cool-downs.
//! - **No address has two owners**, whatever the moment it all ends at.
//! - **One sync for many**: what gathers while one commit is made is the next.
//! - **Nothing is dropped silently**: what cannot be read is an error that names table and key; leases
//!   of another boot are dropped and given in [`Recovered`], one by one.
//!
//! The tests kill the process under sixteen clients, cut the power of a disk that then has the
//! unsynced sectors in any mixture, and compare random operations and failures with a model.
//!
//! # Time
//!
//! Leases expire and addresses cool down while the process is not running, if its clock goes on
//! meanwhile: take `CLOCK_BOOTTIME`, and the kernel's boot id for `boot`.
//!
//! # Tables
//!
//! `ipam`, `pools`, `leases`, `sticky`, `reservations` and `cooling` are [`Ipam`]'s. Others are the
//! caller's, and change in the same transactions: [`Ipam::begin_confirm`], [`Ipam::begin`]. Values
//! are JSON.

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
