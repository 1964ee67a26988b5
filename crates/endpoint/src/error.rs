use std::{io, path::PathBuf};

use podwire_api::EndpointId;

/// Why a pod could not be attached, removed or checked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The agent could not be reached, or refused.
    #[error(transparent)]
    Agent(Box<podwire_api::Error>),
    /// The container's network namespace could not be opened or entered.
    #[error(transparent)]
    Netns(Box<podwire_netns::Error>),
    /// The container's network namespace is the node's own.
    #[error("{id}: the container's network namespace is the node's own")]
    OwnNetns {
        /// The endpoint.
        id: EndpointId,
    },
    /// The kernel refused a request.
    #[error("{step} of {id}: {source}")]
    Netlink {
        /// What was being done.
        step: &'static str,
        /// The endpoint.
        id: EndpointId,
        /// The kernel's words.
        source: Box<podwire_netlink::Error>,
    },
    /// The container has an interface of this name already.
    #[error("{id}: the container already has an interface of this name")]
    NameTaken {
        /// The endpoint.
        id: EndpointId,
    },
    /// The container has a route over another interface that this one needs.
    #[error("{id}: the container has a route already that the interface needs: {source}")]
    RouteTaken {
        /// The endpoint.
        id: EndpointId,
        /// The route and the kernel's words.
        source: Box<podwire_netlink::Error>,
    },
    /// The kernel did not bring the interface up in time.
    #[error("{id}: the interface was not operational within five seconds")]
    NotUsable {
        /// The endpoint.
        id: EndpointId,
    },
    /// The host has an interface of the endpoint's name that is not ours.
    #[error("{id}: the host already has an interface {host_link} that is not podwire's")]
    HostLinkTaken {
        /// The endpoint.
        id: EndpointId,
        /// The name.
        host_link: String,
    },
    /// An interface of another plugin cannot be adopted.
    #[error("{id}: the interface cannot be adopted: {why}")]
    NotAdoptable {
        /// The endpoint.
        id: EndpointId,
        /// Why.
        why: String,
    },
    /// Garbage collection could not remove everything.
    #[error("network {network}: not everything could be removed: {}", failed.join("; "))]
    Collection {
        /// The network.
        network: String,
        /// What could not be removed, and why.
        failed: Vec<String>,
    },
    /// The agent leased an address of a family without a gateway for it.
    #[error("{id}: the agent leased {address}, but names no gateway of that family")]
    NoGateway {
        /// The endpoint.
        id: EndpointId,
        /// The address.
        address: std::net::IpAddr,
    },
    /// The note for the next agent could not be written.
    #[error("leave a note for the agent at {path}: {source}")]
    Note {
        /// The note.
        path: PathBuf,
        /// The system's words.
        source: io::Error,
    },
}

impl From<podwire_api::Error> for Error {
    fn from(error: podwire_api::Error) -> Self {
        Self::Agent(Box::new(error))
    }
}

impl From<podwire_netns::Error> for Error {
    fn from(error: podwire_netns::Error) -> Self {
        Self::Netns(Box::new(error))
    }
}

impl Error {
    /// Names what the kernel refused.
    pub(crate) fn netlink(
        step: &'static str,
        id: &EndpointId,
    ) -> impl Fn(podwire_netlink::Error) -> Self {
        let id = id.clone();
        move |source| Self::Netlink { step, id: id.clone(), source: Box::new(source) }
    }

    /// Whether the same request may well succeed later without anybody changing it.
    #[must_use]
    pub fn is_try_again(&self) -> bool {
        matches!(self, Self::Agent(error) if error.is_try_again())
    }

    /// What to do about it, where anybody knows.
    #[must_use]
    pub fn hint(&self) -> Option<&str> {
        match self {
            Self::Agent(error) => error.hint(),
            Self::NameTaken { .. } => {
                Some("choose another CNI_IFNAME, or DEL the attachment that has it")
            }
            Self::RouteTaken { .. } => {
                Some("a container has one interface with a default route; leave this network out")
            }
            Self::OwnNetns { .. } => Some("containers in the node's network need no CNI"),
            Self::HostLinkTaken { .. } => Some("rename or remove that interface"),
            Self::NotAdoptable { .. } => {
                Some("podwire can be chained after plugins that make veth pairs: ptp, bridge")
            }
            _ => None,
        }
    }
}

pub(crate) type Result<T> = std::result::Result<T, Error>;
