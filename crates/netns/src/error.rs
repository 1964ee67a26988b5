use std::io;
use std::path::PathBuf;
use std::time::Duration;

use podwire_netlink::IfName;

/// What can go wrong with namespaces and what is made in them.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// There is nothing at this path.
    #[error("no network namespace at {}: it does not exist", path.display())]
    NotFound {
        /// The path.
        path: PathBuf,
    },
    /// There is something at this path, or behind this descriptor, but no network namespace.
    #[error("{} is no network namespace: it is {found}", path.display())]
    NotANetns {
        /// The path.
        path: PathBuf,
        /// What it is instead.
        found: &'static str,
    },
    /// The namespace could not be opened.
    #[error("cannot open the network namespace {}: {source}", path.display())]
    Open {
        /// The path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// There is something at the path where a namespace was to be pinned.
    #[error("cannot pin a network namespace at {}: something is there", path.display())]
    PinTaken {
        /// The path.
        path: PathBuf,
    },
    /// A namespace could not be made and pinned.
    #[error("cannot {step} to pin a network namespace at {}: {source}", path.display())]
    Pin {
        /// What failed.
        step: &'static str,
        /// The path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A pin could not be removed.
    #[error("cannot {step} to remove the network namespace pin {}: {source}", path.display())]
    Unpin {
        /// What failed.
        step: &'static str,
        /// The path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// No thread could be started to work in the namespace.
    #[error("cannot start a thread for a network namespace: {source}")]
    Thread {
        /// Why.
        source: io::Error,
    },
    /// The namespace could not be entered.
    #[error("cannot enter the network namespace: {source}")]
    Enter {
        /// Why.
        source: io::Error,
    },
    /// A sysctl could not be read or written.
    #[error("cannot {operation} sysctl {key}: {source}")]
    Sysctl {
        /// `read` or `write`.
        operation: &'static str,
        /// Its path below `/proc/sys`.
        key: String,
        /// Why.
        source: io::Error,
    },
    /// A text is no path of a sysctl.
    #[error("{key:?} is no sysctl: {why}")]
    InvalidSysctl {
        /// The text.
        key: String,
        /// Why not.
        why: &'static str,
    },
    /// A veth pair could not be created. Nothing of it is left, unless `leftover` says otherwise.
    #[error("cannot create the veth pair {host} and {peer}: {source}")]
    Veth {
        /// The name of the host's end.
        host: IfName,
        /// The name of the other end.
        peer: IfName,
        /// Which name was taken, if that was the reason and can be told.
        taken: Option<Taken>,
        /// Why.
        source: Box<podwire_netlink::Error>,
        /// Why the half-made pair could not be removed again.
        leftover: Option<Box<podwire_netlink::Error>>,
    },
    /// The kernel did not bring a pair to work.
    #[error("the veth pair of {host} carries nothing: {missing} after {waited:?}")]
    NotUsable {
        /// The name of the host's end.
        host: IfName,
        /// What was still missing.
        missing: &'static str,
        /// How long that was waited for.
        waited: Duration,
    },
    /// A socket in a namespace, or a request over it, failed.
    #[error(transparent)]
    Netlink(Box<podwire_netlink::Error>),
}

/// The end of a veth pair whose name was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Taken {
    /// The host's.
    Host,
    /// The other.
    Peer,
}

impl From<podwire_netlink::Error> for Error {
    fn from(error: podwire_netlink::Error) -> Self {
        Self::Netlink(error.into())
    }
}

impl Error {
    /// Whether what was named does not exist: a namespace, a pin, a sysctl.
    pub fn is_not_found(&self) -> bool {
        match self {
            Self::NotFound { .. } => true,
            Self::Open { source, .. }
            | Self::Unpin { source, .. }
            | Self::Sysctl { source, .. } => source.kind() == io::ErrorKind::NotFound,
            Self::Veth { source, .. } | Self::Netlink(source) => source.is_not_found(),
            _ => false,
        }
    }

    /// Whether something is there already that has the name or path.
    pub fn is_exists(&self) -> bool {
        match self {
            Self::PinTaken { .. } => true,
            Self::Veth { source, .. } | Self::Netlink(source) => source.is_exists(),
            _ => false,
        }
    }

    /// Whether a path exists but is no network namespace.
    pub fn is_not_a_netns(&self) -> bool {
        matches!(self, Self::NotANetns { .. })
    }

    /// Which end's name was taken, when a veth pair could not be created for that reason.
    pub fn taken(&self) -> Option<Taken> {
        match self {
            Self::Veth { taken, .. } => *taken,
            _ => None,
        }
    }
}
