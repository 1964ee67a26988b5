//! Nodes and pods as namespaces, for podwire's tests, benchmarks and demo.
//!
//! A [`Host`] is a node: a network namespace and a mount namespace of its own, in which ordinary
//! programs (an agent, a CNI plugin, podman) run as they would on a machine. A [`Pod`] is a network
//! namespace pinned under `/run/netns` of its host. [`probe`] has the traffic: echoes with every
//! sequence number accounted for, TCP transfers whose bytes are compared, raw frames. [`Agent`] and
//! [`Cni`] drive the programs under test through their real interfaces.
//!
//! Nothing here touches the machine: every mount is private, every link is in a namespace of ours,
//! and when a host is dropped, or the process that made it dies in whatever way, all that runs in
//! it is killed and all of it is gone.
//!
//! What it is not: a library for others. It is not published, it knows no other podwire crate, and
//! it panics where a test would have nothing better to do.
//!
//! # Minimum kernel version and privileges
//!
//! Linux 5.9 (`close_range`), with overlayfs and bpffs. `CAP_SYS_ADMIN`, `CAP_NET_ADMIN` and
//! `CAP_NET_RAW` in the initial user namespace; in practice root.
//!
//! # Example
//!
//! ```no_run
//! use podwire_lab::{Host, probe::Ping};
//!
//! let host = Host::new()?;
//! let pod = host.add_pod("a")?;
//! let report = pod.run(|| Ping::new([127, 0, 0, 1].into()).count(3).run())?;
//! assert!(report.is_complete(), "{report}");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod agent;
mod binaries;
mod cni;
mod error;
mod host;
mod inventory;
mod keeper;
mod namespace;
mod needs;

pub mod interface;
pub mod probe;

pub use agent::{Agent, AgentSpec};
pub use binaries::{BIN_DIR_VARIABLE, binary};
pub use cni::{Attachment, Cni, CniOutput};
pub use error::Error;
pub use host::{Host, Pod};
pub use inventory::Inventory;
pub use needs::{ALLOW_MISSING_VARIABLE, SKIPS_VARIABLE, allowed_missing};

/// What this crate's fallible operations return.
pub type Result<T, E = Error> = std::result::Result<T, E>;
