use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use podwire_api::{Mark, ROUTE_PROTOCOL, ROUTER_HOST, ROUTER_NET, Router};
use podwire_netlink::{
    AddrGenMode, Address, Birth, Family, IfIndex, IfName, Link, LinkChange, MacAddr, Netlink,
    NewLink, Route, RouteFilter, RouteProtocol, Switch, TableId,
};
use podwire_netns::sysctl::{self, Ensured, Key};
use podwire_netns::{Netns, UNFINISHED_GROUP};
use podwire_route::{Desired, LinkState, Observed, Owner};

use crate::error::Source;
use crate::seam::Routes;
use crate::{Config, Error};

/// The router pair as it stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Pair {
    pub(crate) host_index: u32,
    pub(crate) host_mac: MacAddr,
    pub(crate) net_index: u32,
    pub(crate) net_mac: MacAddr,
}

/// Makes the node a router for its pods: forwarding, the router pair with its addresses, and the
/// routes of the pods' prefixes. What is right already is left as it is, so that a restart of the
/// agent interrupts nothing.
pub(crate) fn set_up(
    config: &Config,
    routers: Router,
    prefixes: &[IpNetwork],
) -> Result<Pair, Error> {
    let mut netlink = Netlink::open().map_err(trouble("open", "a netlink socket"))?;
    switch_forwarding_on(&mut netlink, routers)?;
    let (host, net) = pair(&mut netlink, config)?;
    arrange(&mut netlink, config, (&host, &net), routers, prefixes)?;
    if routers.v4.is_some() {
        switch_redirects_off()?;
    }
    let mac =
        |link: &Link| link.mac.ok_or_else(|| trouble("read the MAC of", &link.name)("it has none"));
    Ok(Pair {
        host_index: host.index.as_u32(),
        host_mac: mac(&host)?,
        net_index: net.index.as_u32(),
        net_mac: mac(&net)?,
    })
}

/// The routes of the pods' prefixes, over the router pair that was set up.
#[derive(Debug)]
pub(crate) struct KernelRoutes {
    pub(crate) config: Config,
    pub(crate) routers: Router,
}

impl Routes for KernelRoutes {
    fn lead_to_pods(&self, prefixes: &[IpNetwork]) -> Result<(), Source> {
        let mut netlink = Netlink::open()?;
        let (host, net) = pair(&mut netlink, &self.config)?;
        Ok(arrange(&mut netlink, &self.config, (&host, &net), self.routers, prefixes)?)
    }
}

/// The MTU of the interface that leads out of the node: the smallest, where there are several.
pub(crate) fn uplink_mtu() -> Result<Option<u32>, Error> {
    let mut netlink = Netlink::open().map_err(trouble("open", "a netlink socket"))?;
    let routes =
        netlink.routes(&RouteFilter::table(TableId::MAIN)).map_err(trouble("list", "routes"))?;
    let mut least = None;
    for route in routes.iter().filter(|route| route.destination.prefix() == 0) {
        let ways =
            route.output.into_iter().chain(route.multipath.iter().filter_map(|way| way.output));
        for output in ways {
            let link = netlink.find_link(output).map_err(trouble("look up link", &output))?;
            least = least.into_iter().chain(link.map(|link| link.mtu)).min();
        }
    }
    Ok(least)
}

/// Forwarding for the families of the node. With forwarding on, an interface no longer listens to
/// router advertisements unless told so expressly, and the node would lose its default route when
/// the one it has expires.
fn switch_forwarding_on(netlink: &mut Netlink, routers: Router) -> Result<(), Error> {
    if routers.v4.is_some() {
        ensure("net/ipv4/ip_forward", "1")?;
    }
    if routers.v6.is_some() && value("net/ipv6/conf/all/forwarding").as_deref() != Some("1") {
        for uplink in uplinks(netlink)? {
            let key = Key::conf(Family::V6, &uplink, "accept_ra")
                .map_err(|error| trouble("name a sysctl of", &uplink)(error))?;
            if sysctl::read(&key).is_ok_and(|value| value == "1") {
                sysctl::write(&key, "2")
                    .map_err(|error| trouble("keep router advertisements on", &uplink)(error))?;
                tracing::info!(link = %uplink, "accept_ra set to 2: the node forwards IPv6 now");
            }
        }
        ensure("net/ipv6/conf/all/forwarding", "1")?;
    }
    Ok(())
}

/// What goes from pod to pod by the stack leaves by the link it came by, and the kernel would tell the
/// sender of a shorter way, on which nobody answers. It looks at the larger of the link's own setting
/// and that of all, so that must be off; other links keep their own.
fn switch_redirects_off() -> Result<(), Error> {
    ensure(&format!("net/ipv4/conf/{ROUTER_HOST}/send_redirects"), "0")?;
    ensure("net/ipv4/conf/all/send_redirects", "0")
}

/// Interfaces that may learn something from router advertisements: hardware, and those with a
/// route that was learnt.
fn uplinks(netlink: &mut Netlink) -> Result<Vec<IfName>, Error> {
    const LEARNT: RouteProtocol = RouteProtocol(9);
    let links = netlink.links().map_err(trouble("list", "links"))?;
    let learnt =
        netlink.routes(&RouteFilter::protocol(LEARNT)).map_err(trouble("list", "learnt routes"))?;
    let is_uplink = |link: &Link| {
        let hardware = link.kind.is_none() && link.index != IfIndex::LOOPBACK;
        hardware || learnt.iter().any(|route| route.output == Some(link.index))
    };
    Ok(links.iter().filter(|link| is_uplink(link)).map(|link| link.name).collect())
}

/// Finds the pair, or creates it.
fn pair(netlink: &mut Netlink, config: &Config) -> Result<(Link, Link), Error> {
    let (host_name, net_name) = (name(ROUTER_HOST)?, name(ROUTER_NET)?);
    let mut find = |name: IfName| netlink.find_link(name).map_err(trouble("look up link", &name));
    let (host, net) = (find(host_name)?, find(net_name)?);
    for link in host.iter().chain(&net) {
        check_ours(link, config)?;
    }
    if let (Some(host), Some(net)) = (&host, &net)
        && host.peer == Some(net.index)
        && host.peer_netns.is_none()
    {
        return Ok((host.clone(), net.clone()));
    }
    // Half a pair: somebody has moved or deleted the other end.
    for link in host.iter().chain(&net) {
        match netlink.remove_link(link.index) {
            Err(error) if !error.is_not_found() => {
                return Err(trouble("delete the broken link", &link.name)(error));
            }
            _ => tracing::warn!(link = %link.name, "deleted: the router pair was broken"),
        }
    }
    let end = |name| Birth {
        mac: Some(random_mac()),
        mtu: Some(config.interface_mtu()),
        group: Some(UNFINISHED_GROUP),
        ..Birth::named(name)
    };
    netlink
        .create_link(&NewLink::veth(end(host_name), end(net_name)))
        .map_err(trouble("create the router pair", &host_name))?;
    let mut made = |name: IfName| netlink.link(name).map_err(trouble("look up link", &name));
    Ok((made(host_name)?, made(net_name)?))
}

/// A link with our name that somebody else made stays, and nothing works until its owner has moved.
fn check_ours(link: &Link, config: &Config) -> Result<(), Error> {
    let alias = link.alias.as_deref().unwrap_or_default();
    let unfinished = alias.is_empty() && link.group == UNFINISHED_GROUP;
    if link.is_veth() && (alias == mark(config) || unfinished) {
        return Ok(());
    }
    let why = match alias.parse() {
        Ok(Mark::Router { node }) => format!(
            "it belongs to node {node}, this is node {}; start with --node-name {node}, or run \
             `podwire cleanup` first",
            config.node
        ),
        _ => "somebody else has made it; rename or delete it".to_owned(),
    };
    Err(Error::LinkRefused { link: link.name.to_string(), why })
}

/// How the node is to be: nothing that is so already is touched, and nothing that is not ours.
fn arrange(
    netlink: &mut Netlink,
    config: &Config,
    (host, net): (&Link, &Link),
    routers: Router,
    prefixes: &[IpNetwork],
) -> Result<(), Error> {
    for link in [host, net].into_iter().filter(|link| link.group == UNFINISHED_GROUP) {
        // The alias comes first: with neither, nobody would know the link any more.
        let change = LinkChange::of(link.index).alias(mark(config));
        netlink.change_link(&change).map_err(trouble("mark", &link.name))?;
        let change = LinkChange::of(link.index).group(0);
        netlink.change_link(&change).map_err(trouble("mark", &link.name))?;
    }
    let owner =
        Owner::new(RouteProtocol(ROUTE_PROTOCOL)).with_link(host.index).with_link(net.index);
    let desired = desired(config, (host.index, net.index), routers, prefixes);
    let observed = Observed::read(netlink, &owner, &desired)
        .map_err(trouble("read", "the node's links, addresses and routes"))?;
    let plan = podwire_route::plan(&desired, &observed, &owner);
    if let Some(conflict) = plan.conflicts.first() {
        let source = format!("{conflict}; remove that, or choose other pod prefixes");
        return Err(trouble("set up", "the node's routes")(source));
    }
    podwire_route::apply(netlink, &plan.changes)
        .map_err(trouble("set up", "the node's links, addresses and routes"))
}

fn desired(
    config: &Config,
    (host, net): (IfIndex, IfIndex),
    routers: Router,
    prefixes: &[IpNetwork],
) -> Desired {
    // Without a link-local address the kernel sends no multicast of its own into the datapath, and
    // no IPv6 redirects to pods.
    let state = |index| {
        LinkState::of(index)
            .up()
            .mtu(config.interface_mtu())
            .alias(mark(config))
            .addr_gen_mode(AddrGenMode::None)
            .noarp(Switch::On)
    };
    Desired {
        links: vec![state(net), state(host)],
        addresses: each(routers)
            .map(|address| {
                Address::new(host, IpNetwork::from(address)).with_protocol(ROUTE_PROTOCOL)
            })
            .collect(),
        routes: desired_routes(prefixes, host, routers),
        ..Desired::default()
    }
}

fn mark(config: &Config) -> String {
    Mark::Router { node: config.node.clone() }.to_string()
}

/// The route to the router comes first: without it the kernel refuses a gateway that is an address
/// of its own. IPv6 refuses such a gateway always.
fn desired_routes(prefixes: &[IpNetwork], host: IfIndex, routers: Router) -> Vec<Route> {
    let mut routes = Vec::new();
    if let Some(router) = routers.v4 {
        routes.push(Route::new(IpNetwork::from(IpAddr::from(router))).dev(host));
    }
    for &cidr in prefixes {
        let route = match (cidr, routers.v4, routers.v6) {
            (IpNetwork::V4(_), Some(v4), _) => {
                Route::new(cidr).via(v4.into()).dev(host).preferred_source(v4.into())
            }
            (IpNetwork::V6(_), _, Some(v6)) => {
                Route::new(cidr).dev(host).preferred_source(v6.into())
            }
            _ => continue,
        };
        routes.push(route);
    }
    // A prefix of one address has the router's own route.
    routes.dedup_by(|a, b| a.destination == b.destination);
    routes
}

fn each(routers: Router) -> impl Iterator<Item = IpAddr> {
    routers.v4.map(IpAddr::from).into_iter().chain(routers.v6.map(IpAddr::from))
}

fn name(name: &'static str) -> Result<IfName, Error> {
    name.parse().map_err(|error: podwire_netlink::InvalidIfName| trouble("name", name)(error))
}

fn random_mac() -> MacAddr {
    // Seeded by the kernel; a MAC needs to be its own, not secret.
    let [a, b, c, d, e, f, ..] =
        RandomState::new().hash_one(Netns::current().ok().map(|ns| ns.inode())).to_ne_bytes();
    MacAddr::local_from([a, b, c, d, e, f])
}

fn value(key: &str) -> Option<String> {
    sysctl::read(&key.parse().ok()?).ok()
}

fn ensure(key: &str, wanted: &str) -> Result<(), Error> {
    let failed = |error: podwire_netns::Error| trouble("set sysctl", key)(error);
    let parsed: Key = key.parse().map_err(failed)?;
    if sysctl::ensure(&parsed, wanted).map_err(failed)? == Ensured::Changed {
        tracing::info!(sysctl = key, value = wanted, "set");
    }
    Ok(())
}

pub(crate) fn trouble<E: Into<Source>>(
    operation: &'static str,
    object: &(impl ToString + ?Sized),
) -> impl FnOnce(E) -> Error {
    let object = object.to_string();
    move |source| Error::Kernel { operation, object, source: source.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routes_are_as_designed() {
        let cidrs = ["10.1.0.0/24", "10.2.0.0/24", "fd00:1::/64"];
        let config = Config::new(
            "n1".parse().unwrap(),
            cidrs.iter().map(|cidr| cidr.parse().unwrap()).collect(),
        );
        let host = IfIndex::new(7).unwrap();
        let routes = desired_routes(&config.pod_cidrs, host, config.routers().unwrap());
        let shown: Vec<_> = routes
            .iter()
            .map(|route| {
                assert_eq!(route.output, Some(host));
                let via = route.gateway.map(|gateway| gateway.to_string());
                let source = route.preferred_source.map(|source| source.to_string());
                (route.destination.to_string(), via, source)
            })
            .collect();
        let (v4, v6) = (Some("10.1.0.1".to_owned()), Some("fd00:1::1".to_owned()));
        let expected = [
            ("10.1.0.1/32".into(), None, None),
            ("10.1.0.0/24".into(), v4.clone(), v4.clone()),
            ("10.2.0.0/24".into(), v4.clone(), v4),
            ("fd00:1::/64".into(), None, v6),
        ];
        assert_eq!(shown, expected);
    }
}
