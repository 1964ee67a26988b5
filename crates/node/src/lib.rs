#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

mod agent;
mod blocks;
mod choice;
mod cleanup;
mod cluster_pool;
mod config;
mod error;
mod flows;
mod folder;
mod kernel;
mod mappings;
mod masquerade;
#[cfg(test)]
mod memory;
mod metrics;
mod netfilter;
mod node;
mod notes;
mod pools;
mod pressure;
mod problem;
mod reconcile;
mod restore;
mod router;
mod seam;
mod server;
mod settings;
mod store;
mod turns;
mod uplinks;
mod watch;
mod worker;

pub use agent::{Agent, explain, runtime};
pub use cleanup::{Leftover, LeftoverKind, Places, leftovers};
pub use cluster_pool::parse_cluster_pool;
pub use config::{AttachChoice, Config};
pub use error::Error;
pub use masquerade::{DevicePattern, Families, Masquerade};
pub use podwire_datapath::{PortRange, Timeout};
pub use podwire_ipam::blocks::ClusterPool;
pub use settings::IdleTimeout;

/// What fuzz targets reach beyond the public functions. No part of the API.
#[cfg(fuzzing)]
#[doc(hidden)]
pub mod fuzzing {
    /// One record of the store, as it is read when the agent starts.
    ///
    /// # Errors
    ///
    /// If it is damaged.
    pub fn record(id: &str, json: &[u8]) -> Result<podwire_api::Endpoint, String> {
        crate::store::decode(id, json).map_err(|error| error.to_string())
    }
}
