//! The Container Network Interface, [CNI], every version of the specification from 0.1.0 to 1.1.0:
//! for those who write plugins, for plugins that delegate to others, and for those who call them.
//!
//! [CNI]: https://www.cni.dev/docs/spec/
//!
//! # A plugin
//!
//! is a type that implements [`Plugin`], and a `main` that returns [`run`]:
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
//! - **Checks before it calls.** Environment and configuration are read and checked whole; the
//!   plugin's code sees types that cannot hold anything else. One answer names every variable
//!   that is wrong.
//! - **Answers as specified, whatever happens**: one JSON object in the configuration's version,
//!   or nothing where nothing is specified; errors with the specified codes, also when the plugin
//!   panics; non-zero when the answer could not be written. What the plugin prints itself goes to
//!   standard error, where logs belong.
//! - **Every version**: results are built in the newest form ([`types::Success`]) and written in
//!   any; `prevResult` is read in any. CHECK, STATUS and GC are refused where the version does not
//!   have them.
//! - **Survives what runtimes do**: VERSION with made-up variables, DEL with an empty `CNI_NETNS`
//!   or an unreadable `prevResult`, null where Go writes it, an input that never ends.
//! - **Everything is injected** into [`dispatch`]: variables, input, output. A test needs no
//!   process.
//!
//! Refused are repeated keys in the JSON, inputs over 1 MiB and interface names that the kernel
//! would take for something else.
//!
//! # A plugin that delegates
//!
//! has another one do a part of the work, addresses above all. Whoever's IPAM plugin the
//! configuration names is run with the same environment and configuration, within a time, and with
//! a DEL for an ADD that failed or whose addresses could not be used:
//!
//! ```no_run
//! use podwire_cni::delegate::Delegate;
//! use podwire_cni::types::Success;
//! use podwire_cni::{Add, Error};
//!
//! fn add(add: &Add) -> Result<Success, Error> {
//!     match Delegate::ipam(&add.config, &add.path)? {
//!         Some(ipam) => ipam.add_then(add, |success| {
//!             // ... give the interface `success.ips` ...
//!             Ok(success)
//!         }),
//!         None => Ok(Success::default()),
//!     }
//! }
//! ```
//!
//! [`delegate`] has a whole plugin.
//!
//! # A runtime
//!
//! reads networks as administrators configure them, and runs their plugins:
//!
//! ```no_run
//! use podwire_cni::runtime::{Cache, DEFAULT_CACHE, Request, Runtime, network};
//!
//! fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     let network = network("/etc/cni/net.d".as_ref(), "dbnet")?;
//!     let runtime = Runtime::new(["/opt/cni/bin".into()], Cache::new(DEFAULT_CACHE));
//!     let mut request = Request::new("c1".parse()?, "eth0".parse()?);
//!     request.netns = Some("/run/netns/c1".parse()?);
//!     let success = runtime.add(&network, &request)?;
//!     println!("{:#}", success.to_value(network.version()));
//!     Ok(())
//! }
//! ```
//!
//! - **Lists as specified**: `prevResult` from plugin to plugin, capabilities only to those who
//!   declare them, backward on DEL, everything undone when an ADD fails; `cniVersions`,
//!   `disableCheck`, `disableGC`, `loadOnlyInlinedPlugins` and plugins in a network's folder.
//! - **A memory that others read**: what ADD resulted in is kept in the files and the form of
//!   libcni, which containerd, podman and cnitool use.
//! - **Nothing hangs**: plugins have a time, and so much to print ([`exec`]).
//!
//! # What it does not
//!
//! It configures no interface, makes no network namespace and knows no containers. It has no log of
//! its own. It is blocking; there is no async in it. Built with `panic = "abort"`, a panic of a
//! plugin is answered with nothing.
//!
//! A plugin needs no privileges and no particular kernel; running other plugins needs Linux 5.3.

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
