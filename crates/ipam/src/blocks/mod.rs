//! Blocks

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
