//! A pod becomes an endpoint.

use std::collections::BTreeMap;

use podwire_api::{
    Client, Disciplines, Endpoint, EndpointId, EndpointRequest, Interface, LeaseReply,
    LeaseRequest, Mac, OtherFamilies, PodRef,
};
use podwire_netlink::MacAddr;
use podwire_netns::Netns;

use crate::{
    error::{Error, Result},
    wire::{Holder, Sockets, Wired, holder, unwire_over, wait_until_usable, wire_over},
};

/// What is to be attached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attachment {
    /// Container and interface.
    pub id: EndpointId,
    /// The CNI network's name.
    pub network: Option<String>,
    /// The pod, where there is one.
    pub pod: Option<PodRef>,
    /// Addresses that it must have.
    pub addresses: Vec<std::net::IpAddr>,
    /// What becomes of a family that none of `addresses` is of.
    pub others: OtherFamilies,
    /// The pod's annotations that the agent chooses its addresses by.
    pub annotations: BTreeMap<String, String>,
    /// The MAC that its interface must have; otherwise one that follows from the id.
    pub mac: Option<MacAddr>,
    /// Whether somebody else needs the host link's queueing disciplines.
    pub disciplines: Disciplines,
}

impl Attachment {
    /// An attachment of which nothing else is said.
    #[must_use]
    pub const fn new(id: EndpointId) -> Self {
        Self {
            id,
            network: None,
            pod: None,
            addresses: Vec::new(),
            others: OtherFamilies::Lease,
            annotations: BTreeMap::new(),
            mac: None,
            disciplines: Disciplines::Free,
        }
    }
}

/// An attached pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attached {
    /// What the agent made of it.
    pub endpoint: Endpoint,
    /// Its addresses, and what the agent told of the node.
    pub lease: LeaseReply,
}

/// Leases addresses, wires the pod, and has the agent make it an endpoint.
///
/// A pod that is attached already stays as it is, and this is an error, as the specification wants
/// it of an interface that exists. What an attempt that was killed left behind is no obstacle.
///
/// # Errors
///
/// If the agent cannot be reached or refuses, a name is taken, or the kernel refuses. Everything
/// done until then is undone.
pub fn attach(agent: &Client, netns: &Netns, attachment: &Attachment) -> Result<Attached> {
    let id = &attachment.id;
    let mut sockets = Sockets::open(id, netns)?;
    let free = match holder(&mut sockets, id)? {
        Holder::Nobody => true,
        Holder::Ours => is_unknown(agent, id)?,
        Holder::Other => false,
    };
    if !free {
        return Err(Error::NameTaken { id: id.clone() });
    }
    let leased = agent.lease(&LeaseRequest {
        id: id.clone(),
        pod: attachment.pod.clone(),
        network: attachment.network.clone(),
        addresses: attachment.addresses.clone(),
        others: attachment.others,
        annotations: attachment.annotations.clone(),
    });
    let lease = leased.inspect_err(|error| {
        if matches!(
            error,
            podwire_api::Error::NoAnswer { .. } | podwire_api::Error::Malformed { .. }
        ) {
            // The agent may have acted. If it is silent now as well, the lease expires by itself.
            let _ = agent.release(id);
        }
    })?;
    let attached = wire_over(&mut sockets, id, netns, &lease, attachment.mac).and_then(|wired| {
        let endpoint = agent.create_endpoint(id, &request(attachment, &wired, &lease))?;
        wait_until_usable(&mut sockets, id, &wired, &lease)?;
        Ok(endpoint)
    });
    match attached {
        Ok(endpoint) => Ok(Attached { endpoint, lease }),
        Err(error) => {
            // The first error tells what is wrong. What cannot be undone now, DEL finds: the link
            // by its mark, and the lease expires by itself.
            let _ = agent.delete_endpoint(id);
            let _ = agent.release(id);
            let _ = unwire_over(&mut sockets.host, id);
            Err(error)
        }
    }
}

pub(crate) fn is_unknown(agent: &Client, id: &EndpointId) -> Result<bool> {
    match agent.endpoint(id) {
        Ok(_) => Ok(false),
        Err(error) if error.is_not_found() => Ok(true),
        Err(error) => Err(error.into()),
    }
}

fn request(attachment: &Attachment, wired: &Wired, lease: &LeaseReply) -> EndpointRequest {
    EndpointRequest {
        host_link: wired.host_link.to_string(),
        ifindex: wired.host_index.as_u32(),
        mac: Mac(wired.container_mac.octets()),
        host_mac: Mac(wired.host_mac.octets()),
        addresses: lease.addresses.iter().map(ipnetwork::IpNetwork::ip).collect(),
        network: attachment.network.clone(),
        pod: attachment.pod.clone(),
        interface: Interface::Own,
        disciplines: attachment.disciplines,
    }
}
