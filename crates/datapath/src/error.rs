use std::{io, net::IpAddr, path::PathBuf};

/// What can go wrong with the datapath.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Loading, attaching, pinning or a map operation failed.
    #[error(transparent)]
    Bpf(#[from] podwire_bpf::Error),
    /// A folder of pins could not be used.
    #[error("{operation} {path}: {source}")]
    Folder {
        /// What was attempted.
        operation: &'static str,
        /// The folder or pin.
        path: PathBuf,
        /// The kernel's words.
        source: io::Error,
    },
    /// Every slot has an endpoint.
    #[error("all {slots} endpoint slots are taken; raise the number of slots")]
    Full {
        /// How many there are.
        slots: u32,
    },
    /// Another endpoint has the address.
    #[error("address {address} of {host_link} belongs to the endpoint on interface {holder}")]
    AddressInUse {
        /// The address.
        address: IpAddr,
        /// For whom it was wanted.
        host_link: String,
        /// The interface index of the endpoint that has it.
        holder: u32,
    },
    /// An endpoint has at most one address of each family.
    #[error("{host_link}: {address} is a second address of its family")]
    SecondAddress {
        /// The endpoint.
        host_link: String,
        /// The address too many.
        address: IpAddr,
    },
    /// No endpoint is known on the link.
    #[error("no endpoint on interface {ifindex}")]
    NoEndpoint {
        /// Its index.
        ifindex: u32,
    },
    /// No device has the number.
    #[error("no uplink can have the interface number {ifindex}")]
    NoUplink {
        /// The number.
        ifindex: u32,
    },
    /// The clock that the programs use cannot be read.
    #[error("read the monotonic clock: {source}")]
    Clock {
        /// The kernel's words.
        source: io::Error,
    },
    /// Waiting until no program uses what was removed failed.
    #[error("wait for a grace period: {source}")]
    GracePeriod {
        /// The kernel's words.
        source: io::Error,
    },
}

impl Error {
    /// Whether the object that was asked for does not exist.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        match self {
            Self::Bpf(error) => error.is_not_found(),
            Self::Folder { source, .. } => source.kind() == io::ErrorKind::NotFound,
            Self::NoEndpoint { .. } => true,
            _ => false,
        }
    }

    /// Whether there is no room for another endpoint.
    #[must_use]
    pub fn is_full(&self) -> bool {
        matches!(self, Self::Full { .. })
    }
}

pub(crate) type Result<T> = std::result::Result<T, Error>;
