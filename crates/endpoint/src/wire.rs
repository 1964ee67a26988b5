//! The interfaces of an endpoint.

use std::net::IpAddr;
use std::os::fd::AsFd as _;

use ipnetwork::IpNetwork;
use podwire_api::{EndpointId, LeaseReply, Mark, NodeConfig};
use podwire_netlink::{
    Address, Batch, Family, IfIndex, IfName, Link, MacAddr, Neighbour, Netlink, Replace, Replies,
    Route, Scope,
};
use podwire_netns::{
    Netns, Taken, UNFINISHED_GROUP, VethEnd, VethSpec, create_veth,
    sysctl::{self, Key},
};

use crate::{
    error::{Error, Result},
    mac::{container_mac, host_mac},
};

/// A wired pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wired {
    /// Name of the host link.
    pub host_link: IfName,
    /// Its index.
    pub host_index: IfIndex,
    /// Its MAC.
    pub host_mac: MacAddr,
    /// Index of the interface in the container.
    pub container_index: IfIndex,
    /// Its MAC.
    pub container_mac: MacAddr,
}

/// The container's and the host's netlink sockets.
#[derive(Debug)]
pub(crate) struct Sockets {
    pub(crate) host: Netlink,
    pub(crate) container: Netlink,
}

impl Sockets {
    /// Opens both; nothing is changed by that. The node itself is no container: its own routes would
    /// give way to those of a pod.
    pub(crate) fn open(id: &EndpointId, netns: &Netns) -> Result<Self> {
        if netns.inode() == Netns::current()?.inode() {
            return Err(Error::OwnNetns { id: id.clone() });
        }
        let failed = |step| Error::netlink(step, id);
        Ok(Self {
            host: Netlink::open().map_err(failed("open a socket on the host"))?,
            container: Netlink::open_in(netns.as_fd())
                .map_err(failed("open a socket in the container"))?,
        })
    }
}

/// Creates the veth pair of an endpoint and configures the container's end.
///
/// The pair is born by one request: the host link here, its peer with its final name in the
/// container, both MACs given. What stands there from an earlier attempt at the same endpoint is
/// removed first; anything else by that name is an error. A failure leaves nothing.
///
/// # Errors
///
/// If a name is taken by someone else, or the kernel refuses.
pub fn wire(id: &EndpointId, netns: &Netns, lease: &LeaseReply) -> Result<Wired> {
    wire_over(&mut Sockets::open(id, netns)?, id, netns, lease)
}

/// Removes the host link of an endpoint, and its peer with it; `Absent` if there is none.
///
/// # Errors
///
/// If the link of that name does not bear the endpoint's mark, or the kernel refuses.
pub fn unwire(id: &EndpointId) -> Result<podwire_api::Removed> {
    let failed = Error::netlink("remove the host link", id);
    unwire_over(&mut Netlink::open().map_err(&failed)?, id)
}

pub(crate) fn wire_over(
    sockets: &mut Sockets,
    id: &EndpointId,
    netns: &Netns,
    lease: &LeaseReply,
) -> Result<Wired> {
    match holder(sockets, id)? {
        Holder::Nobody => {}
        Holder::Ours => drop(unwire_over(&mut sockets.host, id)?),
        Holder::Other => return Err(Error::NameTaken { id: id.clone() }),
    }
    let wired = match create(sockets, id, netns, lease) {
        Err(Error::Netns(error)) if error.taken() == Some(Taken::Host) => {
            unwire_over(&mut sockets.host, id)?;
            create(sockets, id, netns, lease)
        }
        created => created,
    }?;
    let configured = configure(sockets, id, netns, wired.container_index, lease);
    if configured.is_err() {
        // The first error tells what is wrong; a link that stays bears the mark, and DEL finds it.
        let _ = unwire_over(&mut sockets.host, id);
    }
    configured.map(|()| wired)
}

pub(crate) fn unwire_over(host: &mut Netlink, id: &EndpointId) -> Result<podwire_api::Removed> {
    use podwire_api::Removed;
    let name = host_link(id);
    let failed = Error::netlink("remove the host link", id);
    let Some(link) = host.find_link(name).map_err(&failed)? else { return Ok(Removed::Absent) };
    if !bears_mark(&link, id) {
        return Err(Error::HostLinkTaken { id: id.clone(), host_link: name.to_string() });
    }
    match host.remove_link(link.index) {
        Ok(()) => Ok(Removed::Removed),
        Err(error) if error.is_not_found() => Ok(Removed::Absent),
        Err(error) => Err(failed(error)),
    }
}

/// Whether the link is this endpoint's, on whichever node name the agent runs. One whose birth was
/// cut short has no alias yet; nobody else uses its group.
pub(crate) fn bears_mark(link: &Link, id: &EndpointId) -> bool {
    let mark = link.alias.as_deref().and_then(|alias| alias.parse().ok());
    match mark {
        Some(Mark::Endpoint { id: marked, .. }) => marked == *id,
        Some(_) => false,
        None => link.alias.is_none() && link.group == UNFINISHED_GROUP,
    }
}

pub(crate) fn host_link(id: &EndpointId) -> IfName {
    id.host_link().parse().expect("a hash in base32 is a valid interface name")
}

pub(crate) fn container_link(id: &EndpointId) -> IfName {
    id.ifname.as_str().parse().expect("both crates follow the kernel's rules")
}

/// Who has the interface's name in the container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Holder {
    Nobody,
    /// The peer of this endpoint's host link.
    Ours,
    Other,
}

pub(crate) fn holder(sockets: &mut Sockets, id: &EndpointId) -> Result<Holder> {
    let step = "look for the interface's name in the container";
    let failed = Error::netlink(step, id);
    let Some(taken) = sockets.container.find_link(container_link(id)).map_err(&failed)? else {
        return Ok(Holder::Nobody);
    };
    let host = sockets.host.find_link(host_link(id)).map_err(&failed)?;
    let ours = host.is_some_and(|link| bears_mark(&link, id) && link.peer == Some(taken.index));
    Ok(if ours { Holder::Ours } else { Holder::Other })
}

fn create(
    sockets: &mut Sockets,
    id: &EndpointId,
    netns: &Netns,
    lease: &LeaseReply,
) -> Result<Wired> {
    let (host_mac, container_mac) = (host_mac(id), container_mac(id));
    let mark = Mark::Endpoint { node: lease.node.name.clone(), id: id.clone() };
    let veth = create_veth(
        &mut sockets.host,
        &VethSpec {
            host: VethEnd { name: host_link(id), mac: host_mac },
            peer: VethEnd { name: container_link(id), mac: container_mac },
            mtu: lease.node.mtu,
            netns,
            alias: &mark.to_string(),
        },
    )?;
    let (host_index, container_index) = (veth.host.index, veth.peer_index);
    Ok(Wired { host_link: veth.host.name, host_index, host_mac, container_index, container_mac })
}

fn configure(
    sockets: &mut Sockets,
    id: &EndpointId,
    netns: &Netns,
    index: IfIndex,
    lease: &LeaseReply,
) -> Result<()> {
    let step = "configure the container's interface";
    let failed = Error::netlink(step, id);
    let mut batch = plan(id, index, lease)?;
    match sockets.container.send(&mut batch).and_then(Replies::all_ok) {
        // Some runtimes start containers with IPv6 switched off.
        Err(error)
            if error.is_permission_denied() && lease.addresses.iter().any(IpNetwork::is_ipv6) =>
        {
            let key = Key::conf(Family::V6, &container_link(id), "disable_ipv6")?;
            sysctl::write_in(netns, &[(key, "0")])?;
            sockets.container.send(&mut batch).and_then(Replies::all_ok).map_err(&failed)
        }
        configured => configured.map_err(&failed),
    }
}

/// Everything that makes the interface, which is up from birth, a pod's. Each request can be
/// repeated.
fn plan(id: &EndpointId, index: IfIndex, lease: &LeaseReply) -> Result<Batch> {
    let mut batch = Batch::new();
    for &network in &lease.addresses {
        batch.push(&Replace(&Address::new(index, network)));
    }
    for &network in &lease.addresses {
        let gateway = gateway(id, &lease.node, network.ip())?;
        for route in routes(index, gateway, lease.node.route_mtu) {
            batch.push(&Replace(&route));
        }
        batch.push(&Replace(&Neighbour::permanent(index, gateway, host_mac(id))));
    }
    Ok(batch)
}

/// The link route to the gateway, and the default route.
pub(crate) fn routes(index: IfIndex, gateway: IpAddr, mtu: u32) -> [Route; 2] {
    let family = Family::of(gateway);
    let to_gateway = Route::new(IpNetwork::from(gateway)).dev(index).scope(match family {
        Family::V4 => Scope::LINK,
        // IPv6 knows one scope only.
        Family::V6 => Scope::UNIVERSE,
    });
    [to_gateway, Route::default_of(family).via(gateway).dev(index).mtu(mtu)]
}

/// The gateway of the address's family.
pub(crate) fn gateway(id: &EndpointId, node: &NodeConfig, address: IpAddr) -> Result<IpAddr> {
    let gateway = match address {
        IpAddr::V4(_) => node.router.v4.map(IpAddr::from),
        IpAddr::V6(_) => node.router.v6.map(IpAddr::from),
    };
    gateway.ok_or_else(|| Error::NoGateway { id: id.clone(), address })
}
