//! An interface that another plugin made becomes an endpoint: podwire is chained after that plugin.

use std::net::IpAddr;

use podwire_api::{
    AgentConfig, Client, Disciplines, Endpoint, EndpointId, EndpointRequest, Interface, Mac, Mark,
    PodRef, Removed,
};
use podwire_netlink::{Link, LinkChange, MacAddr};
use podwire_netns::Netns;

use crate::{
    attach::is_unknown,
    error::{Error, Result},
    wire::{Sockets, container_link},
};

/// An interface that stands, and what is to be known of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Adoption {
    /// Container and interface.
    pub id: EndpointId,
    /// The CNI network's name.
    pub network: Option<String>,
    /// The pod, where there is one.
    pub pod: Option<PodRef>,
    /// The addresses that the other plugin gave it, at most one of each family.
    pub addresses: Vec<IpAddr>,
}

/// Marks the host's end of a veth pair, and has the agent attach the datapath to it.
///
/// The interface stays its maker's: addresses, routes and how it is reached are not touched.
///
/// # Errors
///
/// If there is no such interface, it is no veth with its other end on this node, somebody else has
/// marked it, the agent cannot be reached or refuses. The mark is taken off again then.
pub fn adopt(agent: &Client, netns: &Netns, adoption: &Adoption) -> Result<Endpoint> {
    let id = &adoption.id;
    let config = agent.config()?;
    let mut sockets = Sockets::open(id, netns)?;
    let Pair { host, container } = pair(&mut sockets, id)?;
    if !is_unknown(agent, id)? {
        return Err(Error::NameTaken { id: id.clone() });
    }
    let (Some(host_mac), Some(mac)) = (host.mac, container.mac) else {
        return Err(Error::NotAdoptable { id: id.clone(), why: "it has no MAC".into() });
    };
    let mark = mark(&config, id);
    match host.alias.as_deref().unwrap_or_default() {
        "" => {}
        alias if alias == mark => {}
        alias => {
            let why = format!("its host link {} has the alias {alias:?}", host.name);
            return Err(Error::NotAdoptable { id: id.clone(), why });
        }
    }
    let failed = Error::netlink("mark the host link", id);
    sockets.host.change_link(&LinkChange::of(host.index).alias(&mark)).map_err(failed)?;
    let request = EndpointRequest {
        host_link: host.name.to_string(),
        ifindex: host.index.as_u32(),
        mac: octets(mac),
        host_mac: octets(host_mac),
        addresses: adoption.addresses.clone(),
        network: adoption.network.clone(),
        pod: adoption.pod.clone(),
        interface: Interface::Adopted,
        disciplines: Disciplines::Others,
    };
    agent.create_endpoint(id, &request).map_err(|error| {
        // The first error tells what is wrong. A mark that stays is found by garbage collection.
        let _ = agent.delete_endpoint(id);
        let _ = sockets.host.change_link(&LinkChange::of(host.index).alias(""));
        error.into()
    })
}

/// Takes the mark off, if the interface still stands; what the agent does for [`remove`](crate::remove)
/// when it is there.
pub(crate) fn unmark(netns: &Netns, id: &EndpointId) -> Result<Removed> {
    let mut sockets = Sockets::open(id, netns)?;
    let Ok(Pair { host, .. }) = pair(&mut sockets, id) else { return Ok(Removed::Absent) };
    let mark = host.alias.as_deref().and_then(|alias| alias.parse().ok());
    if !matches!(mark, Some(Mark::Chained { id: marked, .. }) if marked == *id) {
        return Ok(Removed::Absent);
    }
    let failed = Error::netlink("take the mark off the host link", id);
    sockets.host.change_link(&LinkChange::of(host.index).alias("")).map_err(failed)?;
    Ok(Removed::Removed)
}

/// Both ends of an adopted interface.
pub(crate) struct Pair {
    pub(crate) host: Link,
    pub(crate) container: Link,
}

pub(crate) fn pair(sockets: &mut Sockets, id: &EndpointId) -> Result<Pair> {
    let refused = |why: &str| Error::NotAdoptable { id: id.clone(), why: why.into() };
    let failed = Error::netlink("look for the interface to adopt", id);
    let container = sockets.container.find_link(container_link(id)).map_err(&failed)?;
    let container = container.ok_or_else(|| refused("the container has none of that name"))?;
    let peer = container.peer.filter(|_| container.is_veth());
    let peer = peer.ok_or_else(|| refused("it is no veth"))?;
    let host = sockets.host.find_link(peer).map_err(&failed)?;
    // The number is the peer's in its own namespace, which may be another one than the node's.
    let host = host.filter(|host| host.is_veth() && host.peer == Some(container.index));
    let host = host.ok_or_else(|| refused("its other end is not on this node"))?;
    Ok(Pair { host, container })
}

pub(crate) fn mark(config: &AgentConfig, id: &EndpointId) -> String {
    Mark::Chained { node: config.node.name.clone(), id: id.clone() }.to_string()
}

fn octets(mac: MacAddr) -> Mac {
    Mac(mac.octets())
}
