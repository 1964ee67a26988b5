use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use podwire_api::{Mark, ROUTE_PROTOCOL, ROUTER_HOST, ROUTER_NET, Router};
use podwire_netlink::{
    AddrGenMode, Address, Birth, Family, IfIndex, IfName, Link, LinkChange, LinkFlags, MacAddr,
    Netlink, NewLink, Route, RouteFilter, RouteProtocol, Switch, TableId,
};
use podwire_netns::sysctl::{self, Ensured, Key};
use podwire_netns::{Netns, UNFINISHED_GROUP};

use crate::error::Source;
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
/// routes of the pod prefixes. What is right already is left as it is, so that a restart of the
/// agent interrupts nothing.
pub(crate) fn set_up(config: &Config, routers: Router) -> Result<Pair, Error> {
    let mut netlink = Netlink::open().map_err(trouble("open", "a netlink socket"))?;
    switch_forwarding_on(&mut netlink, routers)?;
    let (host, net) = pair(&mut netlink, config)?;
    for link in [&net, &host] {
        finish(&mut netlink, config, link)?;
    }
    addresses(&mut netlink, host.index, routers)?;
    routes(&mut netlink, config, host.index, routers)?;
    let mac =
        |link: &Link| link.mac.ok_or_else(|| trouble("read the MAC of", &link.name)("it has none"));
    Ok(Pair {
        host_index: host.index.as_u32(),
        host_mac: mac(&host)?,
        net_index: net.index.as_u32(),
        net_mac: mac(&net)?,
    })
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
    let ours = Mark::Router { node: config.node.clone() };
    let alias = link.alias.as_deref().unwrap_or_default();
    let unfinished = alias.is_empty() && link.group == UNFINISHED_GROUP;
    if link.is_veth() && (alias == ours.to_string() || unfinished) {
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

/// Mark, MTU, no ARP, no addresses of its own, up. Changes nothing that is so already.
fn finish(netlink: &mut Netlink, config: &Config, link: &Link) -> Result<(), Error> {
    let mut change = LinkChange::of(link.index);
    let mark = Mark::Router { node: config.node.clone() }.to_string();
    if link.alias.as_deref() != Some(mark.as_str()) {
        change = change.alias(mark);
    }
    if link.group == UNFINISHED_GROUP {
        change = change.group(0);
    }
    if link.mtu != config.interface_mtu() {
        change = change.mtu(config.interface_mtu());
    }
    if !link.flags.contains(LinkFlags::NOARP) {
        change = change.flag(LinkFlags::NOARP, Switch::On);
    }
    // Without a link-local address the kernel sends no multicast of its own into the datapath, and
    // no redirects to pods.
    if link.addr_gen_mode.is_some_and(|mode| mode != AddrGenMode::None) {
        change = change.addr_gen_mode(AddrGenMode::None);
    }
    if !link.is_up() {
        change = change.up();
    }
    if change.is_empty() {
        return Ok(());
    }
    netlink.change_link(&change).map_err(trouble("set up link", &link.name))
}

fn addresses(netlink: &mut Netlink, host: IfIndex, routers: Router) -> Result<(), Error> {
    let wanted: Vec<Address> = each(routers)
        .map(|address| Address::new(host, IpNetwork::from(address)).with_protocol(ROUTE_PROTOCOL))
        .collect();
    let present = netlink.addresses(host).map_err(trouble("list the addresses of", ROUTER_HOST))?;
    for address in &wanted {
        if !present.iter().any(|found| found.network == address.network) {
            netlink.add(address).map_err(trouble("add the router address", &address.network))?;
        }
    }
    // The pair is ours, and so is every address on it; a link-local one is the kernel's.
    for address in &present {
        let keep = wanted.iter().any(|wanted| wanted.network == address.network)
            || address.network.is_ipv6() && address.scope == podwire_netlink::Scope::LINK;
        if !keep {
            netlink
                .remove(address)
                .map_err(trouble("remove the former address", &address.network))?;
        }
    }
    Ok(())
}

fn routes(
    netlink: &mut Netlink,
    config: &Config,
    host: IfIndex,
    routers: Router,
) -> Result<(), Error> {
    let wanted = desired_routes(config, host, routers);
    let present = netlink
        .routes(&RouteFilter { table: Some(TableId::MAIN), ..RouteFilter::ALL })
        .map_err(trouble("list", "routes"))?;
    let is_ours = |route: &Route| route.protocol == RouteProtocol(ROUTE_PROTOCOL);
    for route in present.iter().filter(|route| is_ours(route) && route.output == Some(host)) {
        if !wanted.iter().any(|wanted| is_same(wanted, route)) {
            netlink
                .remove(route)
                .map_err(trouble("remove the former route", &route.destination))?;
        }
    }
    for route in &wanted {
        if present.iter().any(|found| is_same(route, found)) {
            continue;
        }
        match netlink.add(route) {
            Err(error) if error.is_exists() => {
                let object = route.destination.to_string();
                let source = "another route to it is there, which is not podwire's; remove it, or \
                              choose another --pod-cidr";
                return Err(Error::Kernel {
                    operation: "add route",
                    object,
                    source: source.into(),
                });
            }
            other => other.map_err(trouble("add route", &route.destination))?,
        }
    }
    Ok(())
}

/// The route to the router comes first: without it the kernel refuses a gateway that is an address
/// of its own. IPv6 refuses such a gateway always.
fn desired_routes(config: &Config, host: IfIndex, routers: Router) -> Vec<Route> {
    let marked = |route: Route| route.protocol(RouteProtocol(ROUTE_PROTOCOL));
    let mut routes = Vec::new();
    if let Some(router) = routers.v4 {
        routes.push(marked(Route::new(IpNetwork::from(IpAddr::from(router))).dev(host)));
    }
    for &cidr in &config.pod_cidrs {
        let route = match (cidr, routers.v4, routers.v6) {
            (IpNetwork::V4(_), Some(v4), _) => {
                Route::new(cidr).via(v4.into()).dev(host).preferred_source(v4.into())
            }
            (IpNetwork::V6(_), _, Some(v6)) => {
                Route::new(cidr).dev(host).preferred_source(v6.into())
            }
            _ => continue,
        };
        routes.push(marked(route));
    }
    // A prefix of one address has the router's own route.
    routes.dedup_by(|a, b| a.destination == b.destination);
    routes
}

fn is_same(wanted: &Route, found: &Route) -> bool {
    wanted.destination == found.destination
        && wanted.gateway == found.gateway
        && wanted.output == found.output
        && wanted.preferred_source == found.preferred_source
        && wanted.protocol == found.protocol
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

fn trouble<E: Into<Source>>(
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
        let routes = desired_routes(&config, host, config.routers().unwrap());
        let shown: Vec<_> = routes
            .iter()
            .map(|route| {
                assert_eq!((route.output, route.protocol.0), (Some(host), 80));
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
