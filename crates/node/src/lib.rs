#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

mod agent;
mod cleanup;
mod config;
mod error;
mod folder;
mod kernel;
#[cfg(test)]
mod memory;
mod netfilter;
mod node;
mod notes;
mod problem;
mod reconcile;
mod restore;
mod router;
mod seam;
mod server;
mod store;
mod turns;
mod watch;
mod worker;

pub use agent::{Agent, explain, runtime};
pub use cleanup::{Leftover, LeftoverKind, Places, leftovers};
pub use config::{AttachChoice, Config};
pub use error::Error;
