//! The Container Network Interface, [CNI], for those who write plugins: every version of the
//! specification from 0.1.0 to 1.1.0.
//!
//! [CNI]: https://www.cni.dev/docs/spec/
//!
//! A plugin is a type that implements [`Plugin`], and a `main` that returns [`run`]:
//!
//! ```no_run
//! use podwire_cni::types::{Interface, Ip, Success};
//! use podwire_cni::{Add, Check, Del, Error, Plugin};
//!
//! struct Example;
//!
//! impl Plugin for Example {
//!     fn add(&self, add: &Add) -> Result<Success, Error> {
//!         // ... create the interface `add.ifname` in the namespace `add.netns` ...
//!         let mut success = add.prev_result.clone().unwrap_or_default();
//!         success.interfaces.push(Interface::in_sandbox(add.ifname.as_str(), add.netns.as_str()));
//!         success.ips.push(Ip::new("10.1.0.5/32".parse().map_err(|error| Error::internal(&error))?));
//!         Ok(success)
//!     }
//!
//!     fn del(&self, _: &Del) -> Result<(), Error> {
//!         Ok(())
//!     }
//!
//!     fn check(&self, _: &Check) -> Result<(), Error> {
//!         Ok(())
//!     }
//! }
//!
//! fn main() -> std::process::ExitCode {
//!     podwire_cni::run(&Example)
//! }
//! ```
//!
//! # What it does
//!
//! - **Checks before it calls.** Environment and configuration are read and checked whole; the
//!   plugin's code sees types that cannot hold anything else. One answer names every variable
//!   that is wrong.
//! - **Answers as specified, whatever happens**: one JSON object in the configuration's version,
//!   or nothing where nothing is specified; errors with the specified codes, also when the plugin
//!   panics; non-zero when the answer could not be written.
//! - **Every version**: results are built in the newest form ([`types::Success`]) and written in
//!   any; `prevResult` is read in any. CHECK, STATUS and GC are refused where the version does not
//!   have them.
//! - **Survives what runtimes do**: VERSION with made-up variables, DEL with an empty `CNI_NETNS`
//!   or an unreadable `prevResult`, null where Go writes it.
//! - **Everything is injected** into [`dispatch`]: variables, input, output. A test needs no
//!   process.
//!
//! A plugin that has another one do a part of the work, addresses above all, finds how in
//! [`delegate`].
//!
//! Refused are repeated keys in the JSON, inputs over 1 MiB and interface names that the kernel
//! would take for something else.
//!
//! # What it does not
//!
//! It configures no interface. A plugin must not print to standard output itself; standard error is free. Built
//! with `panic = "abort"`, a panic is answered with nothing.
//!
//! It needs no privileges and no particular kernel.

#![forbid(unsafe_code)]

mod args;
mod config;
pub mod delegate;
mod dispatch;
mod environment;
mod error;
pub mod exec;
mod json;
mod names;
mod plugin;
pub mod runtime;
pub mod types;
mod version;

pub use args::Args;
pub use config::{NetworkConfig, RuntimeConfig};
pub use dispatch::{Exit, INPUT_TIMEOUT, dispatch, run};
pub use environment::{Command, Environment};
pub use error::{Code, Error};
pub use names::{Attachment, ContainerId, IfName, InvalidName, Netns, NetworkName};
pub use plugin::{Add, Check, Del, Gc, Plugin, Status};
pub use version::{SpecVersion, UnknownVersion};
