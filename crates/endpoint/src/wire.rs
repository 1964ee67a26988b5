//! The interfaces of an endpoint.

use std::net::IpAddr;
use std::os::fd::AsFd as _;
use std::thread;
use std::time::{Duration, Instant};

use ipnetwork::IpNetwork;
use podwire_api::{EndpointId, LeaseReply, Mark, NodeConfig};
use podwire_netlink::{
    Add, Address, Batch, Family, IfIndex, IfName, Link, MacAddr, Neighbour, Netlink, OperState,
    Replace, Replies, Route, RouteFilter, Scope, TableId,
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
/// removed first; anything else by that name is an error. A failure leaves nothing. Without `mac` the
/// container's interface has [`container_mac`].
///
/// # Errors
///
/// If a name is taken by someone else, or the kernel refuses.
pub fn wire(
    id: &EndpointId,
    netns: &Netns,
    lease: &LeaseReply,
    mac: Option<MacAddr>,
) -> Result<Wired> {
    wire_over(&mut Sockets::open(id, netns)?, id, netns, lease, mac)
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
    mac: Option<MacAddr>,
) -> Result<Wired> {
    match holder(sockets, id)? {
        Holder::Nobody => {}
        Holder::Ours => drop(unwire_over(&mut sockets.host, id)?),
        Holder::Other => return Err(Error::NameTaken { id: id.clone() }),
    }
    let wired = match create(sockets, id, netns, lease, mac) {
        Err(Error::Netns(error)) if error.taken() == Some(Taken::Host) => {
            unwire_over(&mut sockets.host, id)?;
            create(sockets, id, netns, lease, mac)
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
    mac: Option<MacAddr>,
) -> Result<Wired> {
    let (host_mac, container_mac) = (host_mac(id), mac.unwrap_or_else(|| container_mac(id)));
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
    let (v4, v6): (Vec<_>, Vec<_>) = lease.addresses.iter().partition(|network| network.is_ipv4());
    let mut everything = plan(id, index, lease, v4.iter().chain(&v6).copied())?;
    let configured = sockets.container.send(&mut everything).and_then(Replies::all_ok);
    let configured = match configured {
        // Some runtimes start containers with IPv6 switched off. IPv4 is done by now.
        Err(error) if error.is_permission_denied() && !v6.is_empty() => {
            let key = Key::conf(Family::V6, &container_link(id), "disable_ipv6")?;
            sysctl::write_in(netns, &[(key, "0")])?;
            let mut rest = plan(id, index, lease, v6.into_iter())?;
            sockets.container.send(&mut rest).and_then(Replies::all_ok)
        }
        other => other,
    };
    configured.map_err(|error| {
        if error.is_exists() {
            // Addresses and neighbours are replaced; only a route can be somebody else's.
            Error::RouteTaken { id: id.clone(), source: Box::new(error) }
        } else {
            Error::netlink(step, id)(error)
        }
    })
}

/// Waits until the kernel has done what it does later, in work queues: it drops what a pod sends
/// until it has noticed that the link is whole (`net/core/link_watch.c`), and what is sent to an IPv6
/// address until it has made that address's local route (`addrconf_dad_work`). Mostly that has
/// happened while the agent was at its part.
pub(crate) fn wait_until_usable(
    sockets: &mut Sockets,
    id: &EndpointId,
    wired: &Wired,
    lease: &LeaseReply,
) -> Result<()> {
    const PATIENCE: Duration = Duration::from_secs(5);
    let failed = Error::netlink("wait for the interface", id);
    let local = RouteFilter {
        family: Some(Family::V6),
        table: Some(TableId::LOCAL),
        output: Some(wired.container_index),
        ..RouteFilter::ALL
    };
    let v6: Vec<_> = lease.addresses.iter().copied().filter(IpNetwork::is_ipv6).collect();
    let start = Instant::now();
    loop {
        let ends = [
            sockets.container.link(wired.container_index).map_err(&failed)?,
            sockets.host.link(wired.host_index).map_err(&failed)?,
        ];
        let mut usable = ends.iter().all(|end| end.state == OperState::UP);
        if usable && !v6.is_empty() {
            let routes = sockets.container.routes(&local).map_err(&failed)?;
            usable = v6.iter().all(|own| routes.iter().any(|route| route.destination == *own));
        }
        if usable {
            return Ok(());
        }
        if start.elapsed() > PATIENCE {
            return Err(Error::NotUsable { id: id.clone() });
        }
        thread::sleep(Duration::from_micros(200));
    }
}

/// Everything that makes the interface, which is up from birth, a pod's.
fn plan<'n>(
    id: &EndpointId,
    index: IfIndex,
    lease: &LeaseReply,
    networks: impl Iterator<Item = &'n IpNetwork> + Clone,
) -> Result<Batch> {
    let mut batch = Batch::new();
    for &network in networks.clone() {
        batch.push(&Replace(&Address::new(index, network)));
    }
    for &network in networks {
        let gateway = gateway(id, &lease.node, network.ip())?;
        for route in routes(index, gateway, lease.node.route_mtu) {
            // Never in the place of another interface's.
            batch.push(&Add(&route));
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
