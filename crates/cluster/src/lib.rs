#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

mod directory;
mod error;
mod folder;
mod manifest;
mod node;
mod object;
mod snapshot;

pub use directory::Directory;
pub use error::Error;
pub use object::{Annotations, Namespace, Object, ObjectName, Pod};
pub use snapshot::{Place, Problem, Snapshot, Source};
