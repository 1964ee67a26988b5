//! Blocks: each node of a cluster grants addresses from blocks of its own, which it claims from
//! pools that all nodes share.
//!
//! ```
//! use podwire_ipam::blocks::{Action, BlockUsage, ClusterPool, MemoryRegistry, NodeBlocks};
//! use podwire_ipam::{Allocator, Error, Owner, Request, Time};
//!
//! let registry = MemoryRegistry::default();
//! let pool = ClusterPool::new("default", vec!["10.1.0.0/16".parse()?, "fd00:1::/64".parse()?]);
//! let mut allocator = Allocator::new(&pool.of_node())?;
//! let mut blocks = NodeBlocks::new(registry, "node-1", vec![pool])?;
//!
//! // Every few seconds, and at once when addresses have run out.
//! let now = Time::from_secs(0);
//! loop {
//!     allocator.expire(now);
//!     let in_use: Vec<_> = allocator.usage().iter().flat_map(BlockUsage::of).collect();
//!     let outcome = blocks.tick(now, &in_use, &[]);
//!     for action in &outcome.actions {
//!         let done = match action {
//!             Action::Add(block) => allocator.add_cidr(&block.pool, block.cidr),
//!             Action::Drain(block) => allocator.drain_cidr(&block.pool, block.cidr),
//!             Action::Remove(block) => allocator.remove_cidr(&block.pool, block.cidr),
//!         };
//!         match done {
//!             // It is needed again, or was never there. The next tick sees it.
//!             Err(Error::CidrInUse { .. } | Error::UnknownCidr { .. }) => {}
//!             done => done?,
//!         }
//!     }
//!     for error in &outcome.errors {
//!         eprintln!("{error}");
//!     }
//!     if outcome.actions.is_empty() {
//!         break;
//!     }
//! }
//! let lease = allocator.allocate(&Owner::new("8c2d", "eth0"), &Request::default(), now)?;
//! println!("{}", lease.addresses);
//! # assert_eq!(lease.addresses.iter().count(), 2);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Who has a block
//!
//! A [`Registry`] is a small key-value store that every node reaches, with compare-and-swap. A
//! claim is one key, `blocks/<pool>/<cidr>`, whose value names the node, and it is made only where
//! there is none. `pools/<pool>/ipv4` and `ipv6` have the size of the pool's blocks, which is
//! settled when the first one is claimed and stays: blocks of one size are equal or disjoint, so no
//! two claims of a pool overlap, even while nodes are told different CIDRs. That pools are disjoint
//! is up to who configures them; a node leaves alone what overlaps with a claim of another pool.
//!
//! To find a free block, a node lists the claims once and looks behind its own last block, or from
//! a place that depends on its name. That costs what the claims cost, whatever the pool's size.
//!
//! # When
//!
//! [`NodeBlocks::tick`] compares. The next block is claimed when fewer addresses are free than the
//! low-water mark, a quarter of a block or [`ClusterPool::pre_alloc`], whichever is more. A block
//! that has been empty for [`ClusterPool::idle`], and without which twice the mark would be free,
//! is given back. In between nothing happens, and the registry is not asked.
//!
//! # In which order
//!
//! Claimed before it is used: [`Action::Add`] comes after the claim. No longer used before it is
//! released: first [`Action::Drain`], then, when the block is empty, [`Action::Remove`], and the
//! claim is deleted by a later tick that was shown that the block is gone. So whoever is killed in
//! between leaves a claim too many, never a block without one, and the next process finds it: it
//! adds the block, and gives it back if it is not needed. The allocator keeps its set of CIDRs as
//! durably as its leases; an action is done when it is on the disk.
//!
//! A request that timed out may take effect later. A late claim is found by the tick after a
//! [`resync`](NodeBlocks::resync). A late deletion could free a block that was taken back into use
//! meanwhile; so a block for which one may be under way is first written again, which gives the
//! claim a revision that the deletion does not expect.
//!
//! # When something is wrong
//!
//! While the registry is out of reach, the blocks that the node has go on working; each tick
//! reports it and tries again. A pool without a free block is [`Error::Full`], and says who has how
//! many. A claim that is gone although its block is in use is made again; if another node was
//! quicker, that is [`Error::Lost`], and the block is drained. The blocks of a node that will not
//! come back are released with [`release_node`].

mod claims;
mod error;
#[cfg(feature = "file")]
mod file;
mod memory;
mod node;
mod pool;
mod registry;

pub use claims::{Block, Claim, claims, forget_pool, release_node};
pub use error::{Error, PoolError};
#[cfg(feature = "file")]
pub use file::{FileRegistry, FileRegistryError};
pub use memory::MemoryRegistry;
pub use node::{Action, BlockState, BlockUsage, Demand, NodeBlocks, Outcome};
pub use pool::ClusterPool;
pub use registry::{Expected, New, Registry, Revision, Swap, Versioned};
