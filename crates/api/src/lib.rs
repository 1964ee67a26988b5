#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

mod client;
mod config;
mod error;
mod ipam;
mod mac;
mod message;
mod name;
mod policy;
mod transport;
mod usage;

use std::path::{Path, PathBuf};

pub use client::{Client, Timeouts};
pub use config::{AgentConfig, ConfigChange, Origin, Setting};
pub use error::{Error, ErrorBody, ErrorCode};
pub use ipam::{
    CheckReply, CheckRequest, CidrEdit, CidrRequest, CidrUsage, Disagreement, Lease, LeaseState,
    OnDisagreement, Outcome, Pool, PoolRequest, Reservation, Sticky,
};
pub use mac::Mac;
pub use message::{
    AttachMode, Delivery, Difference, Disciplines, Effect, Endpoint, EndpointRequest, GcReply,
    GcRequest, Inspection, Interface, LeaseReply, LeaseRequest, NodeConfig, OtherFamilies, PodRef,
    Problem, Removal, Removed, Repair, Router, Status,
};
pub use name::{ContainerId, EndpointId, InterfaceName, Mark, NameError, NodeName, host_link_name};
pub use policy::{
    IdentityRequest, Policy, PolicyAction, PolicyDirection, PolicyRule, PrefixCount,
    PrefixIdentity, UNMANAGED_IDENTITY,
};
pub use usage::{FlowUsage, MapUsage, MemoryUsage};

/// The rtnetlink protocol number on every route and rule that podwire creates.
pub const ROUTE_PROTOCOL: u8 = 80;

/// The host's end of the router pair: it owns the router addresses, the pods' gateway.
pub const ROUTER_HOST: &str = "podwire_host";

/// The datapath's end of the router pair.
pub const ROUTER_NET: &str = "podwire_net";

/// Where the agent keeps its durable state, unless `--state-dir` says otherwise.
pub const DEFAULT_STATE_DIR: &str = "/var/lib/podwire";

/// Where the socket and the notes of pending deletes are, unless `--run-dir` says otherwise.
pub const DEFAULT_RUN_DIR: &str = "/run/podwire";

/// Where the pinned maps and links are, unless `--bpffs` says otherwise.
pub const DEFAULT_BPFFS: &str = "/sys/fs/bpf/podwire";

/// How the annotations of pods and namespaces begin that podwire reads.
pub const ANNOTATION_PREFIX: &str = "podwire.io/";

/// The largest request body the agent reads, in bytes.
pub const MAX_BODY: usize = 1 << 20;

/// The agent's socket in a run folder.
#[must_use]
pub fn socket_path(run_dir: &Path) -> PathBuf {
    run_dir.join("podwire.sock")
}

/// The folder of notes that a DEL leaves when it meets no agent: one file per endpoint, named as
/// the host link, holding an [`EndpointId`] as JSON.
#[must_use]
pub fn pending_del_dir(run_dir: &Path) -> PathBuf {
    run_dir.join("pending-del")
}

/// The agent's database in a state folder.
#[must_use]
pub fn database_path(state_dir: &Path) -> PathBuf {
    state_dir.join("podwire.redb")
}

/// The agent's registry of blocks in a state folder.
#[must_use]
pub fn blocks_path(state_dir: &Path) -> PathBuf {
    state_dir.join("blocks.redb")
}
