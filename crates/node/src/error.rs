use std::error::Error as StdError;
use std::io;
use std::net::IpAddr;
use std::path::PathBuf;

use podwire_api::{EndpointId, ErrorBody, ErrorCode};

use crate::choice;

/// A reason whose type is another crate's business.
pub(crate) type Source = Box<dyn StdError + Send + Sync>;

/// What can go wrong on a node.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An option cannot be used.
    #[error("{option}: {why}")]
    Config {
        /// The option, as podwired calls it.
        option: &'static str,
        /// What is wrong with its value.
        why: String,
    },

    /// A folder or file could not be prepared.
    #[error("{operation} {}", path.display())]
    Folder {
        /// What was tried.
        operation: &'static str,
        /// With which file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },

    /// A folder is not safe to use.
    #[error("{} is refused: {why}", path.display())]
    FolderRefused {
        /// Which.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },

    /// Another agent answers on the socket.
    #[error("another agent answers at {}", socket.display())]
    AlreadyRunning {
        /// Where.
        socket: PathBuf,
    },

    /// Another process has the database open.
    #[error("{} is in use by another process", path.display())]
    StoreLocked {
        /// The file.
        path: PathBuf,
    },

    /// The database cannot be read.
    #[error("{} is damaged, or no database of podwire", path.display())]
    StoreDamaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: Source,
    },

    /// Another version has written the database.
    #[error("{} has format {found}, this version reads and writes {known}", path.display())]
    StoreFormat {
        /// The file.
        path: PathBuf,
        /// The file's.
        found: String,
        /// This version's.
        known: &'static str,
    },

    /// The database holds the endpoints of another node.
    #[error("{} belongs to node {found} and holds {endpoints} endpoints; this is node {node}", path.display())]
    StoreOfAnotherNode {
        /// The file.
        path: PathBuf,
        /// Whose it is.
        found: String,
        /// This node.
        node: String,
        /// How many endpoints of it still stand.
        endpoints: usize,
    },

    /// The database could not be read or written.
    #[error("{operation} in {}", path.display())]
    Store {
        /// What was tried.
        operation: &'static str,
        /// The file.
        path: PathBuf,
        /// The reason.
        source: Source,
    },

    /// No lease, or not this one.
    #[error(transparent)]
    Ipam(#[from] podwire_ipam::Error),

    /// No lease, because no block could be claimed that would have an address.
    #[error("{refusal}{}{why}", if why.is_empty() { "" } else { ": " })]
    NoBlock {
        /// What the pools lack.
        refusal: podwire_ipam::Error,
        /// What keeps the node from claiming one.
        why: String,
    },

    /// What a pod or a namespace says of addresses cannot be done.
    #[error("{of}: annotation {key}: {}: {why}", choice::shown(value))]
    Annotation {
        /// The pod or namespace.
        of: String,
        /// The annotation.
        key: String,
        /// Its value.
        value: String,
        /// What is wrong with it.
        why: String,
    },

    /// A pool that was chosen is not there.
    #[error("there is no pool {pool}, which {origin} names; the pools are {}", known.join(", "))]
    NoPool {
        /// The pool.
        pool: String,
        /// What chose it.
        origin: String,
        /// The pools that there are.
        known: Vec<String>,
    },

    /// An object may be in a file that could not be read since the agent started.
    #[error("{object} is not known, and may be in {}, which cannot be read", file.display())]
    Unread {
        /// The pod or namespace.
        object: String,
        /// The file or folder.
        file: PathBuf,
    },

    /// The manifests cannot be watched.
    #[error(transparent)]
    Cluster(#[from] podwire_cluster::Error),

    /// Leases and records could not be read or written.
    #[error("the agent's database")]
    Records(#[source] podwire_ipam::durable::Error),

    /// The router address is a pod's.
    #[error("router address {address} is held by {holder}")]
    RouterTaken {
        /// The address.
        address: IpAddr,
        /// By whom.
        holder: String,
    },

    /// The kernel's network state could not be read or changed.
    #[error("{operation} {object}")]
    Kernel {
        /// What was tried.
        operation: &'static str,
        /// With what.
        object: String,
        /// The reason.
        source: Source,
    },

    /// The datapath could not be read or changed.
    #[error("{operation} {object}")]
    Datapath {
        /// What was tried.
        operation: &'static str,
        /// With what.
        object: String,
        /// The reason.
        source: Source,
    },

    /// A link is not what the request says, or not ours.
    #[error("link {link} is refused: {why}")]
    LinkRefused {
        /// The link.
        link: String,
        /// What does not fit.
        why: String,
    },

    /// A request that can never succeed.
    #[error("{0}")]
    Invalid(String),

    /// Something else stands where this should.
    #[error("{0}")]
    Conflict(String),

    /// Nobody may do that.
    #[error("{0}")]
    Denied(String),

    /// There is no such endpoint.
    #[error("there is no endpoint {0}")]
    NoEndpoint(EndpointId),

    /// A part of the agent has died; it has to be restarted.
    #[error("the agent's {0} has died")]
    Died(&'static str),
}

impl From<podwire_ipam::durable::Error> for Error {
    fn from(error: podwire_ipam::durable::Error) -> Self {
        match error {
            podwire_ipam::durable::Error::Refused(refusal) => Self::Ipam(refusal),
            error => Self::Records(error),
        }
    }
}

impl Error {
    /// Whether another process is in the way: an agent on the socket, an owner of the database.
    #[must_use]
    pub fn is_already_running(&self) -> bool {
        matches!(self, Self::AlreadyRunning { .. } | Self::StoreLocked { .. })
    }

    /// What to do about it, where that can be said.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Self::AlreadyRunning { .. } => {
                "stop that agent, or give this one its own --run-dir".into()
            }
            Self::StoreLocked { .. } => {
                "stop the agent that has it, or give this one its own --state-dir".into()
            }
            Self::StoreDamaged { path, .. } => format!(
                "move {} away: endpoints and leases are then taken from the kernel",
                path.display()
            ),
            Self::StoreFormat { path, .. } => format!(
                "start the version of podwired that wrote it, or move {} away: endpoints and leases \
                 are then taken from the kernel, and the rest is lost",
                path.display()
            ),
            Self::Records(_) => {
                "look at the disk of podwired's --state-dir; podwired goes on when it can be written"
                    .into()
            }
            Self::StoreOfAnotherNode { found, .. } => {
                format!("start with --node-name {found}, or run `podwire cleanup` first")
            }
            Self::RouterTaken { .. } => "choose another --router-ip, or delete that pod (podwire ipam forget, for a name)".into(),
            Self::Unread { .. } => "`podwire status` says what is wrong with it".into(),
            Self::FolderRefused { .. } => "remove it, or choose another folder".into(),
            Self::Ipam(error) if error.is_exhausted() => {
                "delete pods, or add a CIDR: podwire ipam pool add-cidr".into()
            }
            Self::NoBlock { .. } => {
                "`podwire status` says what keeps podwired from claiming blocks, and what to do".into()
            }
            _ => return None,
        })
    }

    /// How the API tells it.
    #[must_use]
    pub fn body(&self) -> ErrorBody {
        let code = match self {
            Self::Ipam(error) if error.is_exhausted() => ErrorCode::Exhausted,
            Self::NoBlock { .. } => ErrorCode::Exhausted,
            Self::Ipam(error) if error.is_conflict() => ErrorCode::Conflict,
            Self::Ipam(error) if error.is_not_found() => ErrorCode::NotFound,
            Self::Ipam(_) | Self::Invalid(_) | Self::Annotation { .. } | Self::NoPool { .. } => {
                ErrorCode::Invalid
            }
            Self::Unread { .. } => ErrorCode::NotReady,
            Self::Conflict(_) => ErrorCode::Conflict,
            Self::LinkRefused { .. } | Self::Denied(_) => ErrorCode::Denied,
            Self::NoEndpoint(_) => ErrorCode::NotFound,
            Self::Datapath { source, .. } if is_full(&**source) => ErrorCode::Exhausted,
            _ => ErrorCode::Internal,
        };
        ErrorBody { code, message: chain(self), hint: self.hint() }
    }
}

/// Whether the datapath has no room for what was to be written.
fn is_full(source: &(dyn StdError + Send + Sync + 'static)) -> bool {
    source.downcast_ref::<podwire_datapath::Error>().is_some_and(podwire_datapath::Error::is_full)
}

/// An error with all its reasons, in one line.
pub(crate) fn chain(error: &dyn StdError) -> String {
    let mut text = error.to_string();
    let mut reason = error.source();
    while let Some(error) = reason {
        let part = error.to_string();
        // Some crates repeat their source in their own words.
        if !text.ends_with(&part) {
            text.push_str(": ");
            text.push_str(&part);
        }
        reason = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_told_once() {
        let inner = io::Error::other("disk on fire");
        let error = Error::Store {
            operation: "write",
            path: "/s/podwire.redb".into(),
            source: inner.into(),
        };
        assert_eq!(chain(&error), "write in /s/podwire.redb: disk on fire");
        assert_eq!(error.body().code, ErrorCode::Internal);
    }

    #[test]
    fn refusals_have_their_codes() {
        let link = Error::LinkRefused { link: "eth0".into(), why: "no mark".into() };
        assert_eq!(link.body().code, ErrorCode::Denied);
        assert_eq!(Error::Conflict("x".into()).body().code, ErrorCode::Conflict);
        assert_eq!(Error::Invalid("x".into()).body().code, ErrorCode::Invalid);
    }
}
