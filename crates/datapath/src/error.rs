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
    /// The pinned maps are another version's.
    #[error(
        "the maps in {} have layout {found}, and this version reads {expected} only: drain the node, then run `podwire cleanup`, \
         or go back to the version that made them",
        folder.display()
    )]
    Layout {
        /// Where they are.
        folder: PathBuf,
        /// What they have.
        found: u32,
        /// What this version has.
        expected: u32,
    },
    /// The kernel gives no random numbers.
    #[error("draw a seed for the tables of flows: {source}")]
    Random {
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
    /// The address belongs to an endpoint of this node.
    #[error("{address} is an endpoint's own address; what is behind it is told by the endpoint")]
    EndpointAddress {
        /// The address.
        address: IpAddr,
    },
    /// A map has no room for what should be in it.
    #[error("map {map} is full, it has room for {size} entries; nothing was changed")]
    MapFull {
        /// Which.
        map: &'static str,
        /// What there is room for.
        size: u32,
    },
    /// Another plugin made the interface, and is asked what it lets pass.
    #[error(
        "the endpoint on interface {ifindex} was made by another plugin; podwire judges none of its packets"
    )]
    Adopted {
        /// Its index.
        ifindex: u32,
    },
    /// A number that stands for nobody.
    #[error("{identity} is no identity; they are 1 to {}", podwire_policy::MAX_IDENTITY)]
    NoIdentity {
        /// The number.
        identity: u32,
    },
    /// More slots than a verdict can name.
    #[error("{slots} endpoint slots are more than the {most} that there can be")]
    TooManySlots {
        /// How many were wanted.
        slots: u32,
        /// How many there can be.
        most: u32,
    },
    /// Every ticket has been used.
    #[error("the node has been changed as often as it can be; remove its pins, and start anew")]
    NoTickets,
    /// No flows have such a timeout.
    #[error("there is no timeout {name}; there are {}", crate::Timeout::ALL.map(crate::Timeout::name).join(", "))]
    UnknownTimeout {
        /// What was asked for.
        name: String,
    },
    /// A timeout cannot be so long, or so short.
    #[error("timeout {timeout}: {seconds} is not between 1 and {} seconds", crate::Timeout::MOST)]
    TimeoutRange {
        /// Which.
        timeout: crate::Timeout,
        /// What was wanted.
        seconds: u32,
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

    /// Whether there is no room for another endpoint, or for what else was to be written.
    #[must_use]
    pub fn is_full(&self) -> bool {
        matches!(self, Self::Full { .. } | Self::MapFull { .. })
    }
}

pub(crate) type Result<T> = std::result::Result<T, Error>;
