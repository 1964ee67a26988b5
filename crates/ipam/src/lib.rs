//! An IP address allocator for container networks: several CIDRs of both families, cool-down
//! before an address is granted again, reservations, leases that expire unless they are confirmed.
//!
//! ```
//! use podwire_ipam::{Allocator, Owner, PoolConfig, Request, Time};
//!
//! let cidrs = vec!["10.1.0.0/24".parse()?, "fd00:1::/64".parse()?];
//! let mut pool = Allocator::new(&PoolConfig::new("default", cidrs))?;
//! pool.reserve("10.1.0.1".parse()?, "router")?;
//!
//! let owner = Owner::new("8c2d", "eth0");
//! let lease = pool.allocate(&owner, &Request::default(), Time::from_secs(0))?;
//! assert_eq!(lease.addresses.to_string(), "10.1.0.2 and fd00:1::1");
//! pool.confirm(&owner)?;
//!
//! pool.release(&owner, Time::from_secs(9));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # What it does
//!
//! - **Next free, not first free**: grants go round, so that an address rests as long as
//!   possible. A released address rests for the cool-down at least, unless nothing else is left;
//!   then the one released longest ago is granted.
//! - **Leases belong to owners**, an interface of a container. The same owner asking again gets
//!   the same answer. A lease is pending until it is confirmed, and pending leases expire.
//! - **Explicit addresses** are granted, or refused with the reason.
//! - **Restarts**: leases are restored one by one. Two that claim one address are an error naming
//!   both owners; addresses that the configuration no longer has are held and reported.
//! - **Any size**: an operation costs O(log n) in the number of leases however full the pool is,
//!   and memory grows with leases, so that an IPv6 /64 costs what its leases cost.
//!
//! The network and broadcast address of an IPv4 CIDR, the subnet-router anycast address of an IPv6
//! CIDR and the anycast identifiers of a /64 are never granted; a /31, /32, /127 and /128 is used
//! whole (RFC 3021, RFC 4291, RFC 5453, RFC 6164).
//!
//! # What it does not
//!
//! The [`Allocator`] stores nothing, has no clock and starts no thread: the caller passes the time
//! and keeps what must survive, or takes [`durable::Ipam`]. It configures no interface. It needs no
//! privileges and no particular kernel.
//!
//! # For an agent that lives on
//!
//! [`durable::Ipam`] is the allocator with a store under it: every change is on the disk before it is
//! acknowledged, and callers that come together share one sync. [`durable`] says what is promised.
//!
//! # For a process that grants one address and ends
//!
//! [`store`] has the leases in a table, of which a grant reads a handful of entries however many
//! there are; with the feature `file`, a table in a file that processes take turns at. There the
//! addresses come from a [`Plan`], `host-local`'s sets of ranges.
//!
//! # For the nodes of a cluster
//!
//! [`blocks`] lets each node work on blocks of pools that all nodes share: it decides when to claim
//! the next block and when to give one back, over any store that can compare and swap.
//!
//! # Coming from elsewhere
//!
//! Unlike `host-local` it keeps no file per address: the process that owns the [`Allocator`]
//! serialises the requests, or the lock of the file does. The plugin `podwire-ipam`, in
//! podwire's `examples/plugin`, reads `host-local`'s configuration.

#![forbid(unsafe_code)]

mod allocator;
pub mod blocks;
mod cooling;
pub mod durable;
mod error;
mod lease;
mod leases;
mod plan;
mod pool;
mod pools;
mod ranges;
mod space;
mod sticky;
pub mod store;

pub use allocator::restore::Restored;
pub use allocator::{Allocator, Release, Unreserved};
pub use error::{Error, PoolState, Unusable};
pub use lease::{Addresses, Family, Lease, LeaseState, Owner, Request, Time};
pub use plan::{AddressRange, Bound, Plan, RangeSpec};
pub use pool::{CidrUsage, PoolConfig, PoolUsage, Usage};
