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

/// What fuzz targets reach beyond the public functions. No part of the API.
#[cfg(fuzzing)]
#[doc(hidden)]
pub mod fuzzing {
    /// The objects of one file.
    ///
    /// # Errors
    ///
    /// If it is no manifest.
    pub fn manifest(text: &str) -> Result<Vec<crate::Object>, String> {
        let defined = crate::manifest::parse(text).map_err(|flaw| flaw.why)?;
        Ok(defined.into_iter().map(|one| one.object).collect())
    }
}
