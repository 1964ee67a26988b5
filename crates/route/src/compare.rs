//! When what is counts as what is wished: the kernel fills in what was left open, and reports some
//! things otherwise than they were asked for.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use podwire_netlink::{
    Address, AddressFlags, Family, IfIndex, Neighbour, NeighbourFlags, NeighbourState, NextHop,
    Route, RouteKind, RouteProtocol, Rule, Scope, TableId,
};

/// The metric that the kernel gives to an IPv6 route without one.
const IP6_RT_PRIO_USER: u32 = 1024;

/// Addresses that the kernel made by itself (`IFAPROT_KERNEL_*`).
const IFAPROT_KERNEL: std::ops::RangeInclusive<u8> = 1..=3;

/// What the kernel takes for the same route: of two, it keeps one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct RouteKey {
    table: TableId,
    destination: IpNetwork,
    source: Option<IpNetwork>,
    tos: u8,
    metric: u32,
}

impl RouteKey {
    pub(crate) fn of(route: &Route) -> Self {
        let Route { table, destination, .. } = *route;
        let (source, tos) = match route.family() {
            Family::V4 => (None, route.tos),
            Family::V6 => (route.source, 0),
        };
        Self { table, destination, source, tos, metric: metric(route) }
    }
}

/// What the kernel takes for the same address: of two, it keeps one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct AddressKey {
    index: IfIndex,
    ip: IpAddr,
    /// Prefix length and peer tell IPv4 addresses apart, not IPv6 ones.
    v4: Option<(u8, Option<IpAddr>)>,
}

impl AddressKey {
    pub(crate) fn of(address: &Address) -> Self {
        let Address { index, network, peer, .. } = *address;
        let v4 = network.is_ipv4().then_some((network.prefix(), peer));
        Self { index, ip: network.ip(), v4 }
    }
}

/// What is left to do about an address that is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AddressDifference {
    /// Nothing.
    None,
    /// The kernel can change it.
    Properties,
    /// It must go and come back.
    Identity,
}

pub(crate) fn compare_address(wanted: &Address, found: &Address) -> AddressDifference {
    let differs = wanted.network.prefix() != found.network.prefix()
        || wanted.peer != found.peer
        || wanted.scope != found.scope
        || wanted.label.is_some_and(|label| found.label.is_some_and(|found| found != label))
        || wanted.broadcast.is_some() && wanted.broadcast != found.broadcast;
    let unusable = found.flags.contains(AddressFlags::DADFAILED)
        || wanted.flags.contains(AddressFlags::NODAD)
            && found.flags.contains(AddressFlags::TENTATIVE);
    let noprefix = AddressFlags::NOPREFIXROUTE;
    let prefix_route = wanted.flags.contains(noprefix) != found.flags.contains(noprefix);
    // The kernel changes that for IPv6 only, and says nothing.
    if differs || unusable || prefix_route && wanted.network.is_ipv4() {
        return AddressDifference::Identity;
    }
    let properties = prefix_route
        || wanted.lifetime.is_some() != found.lifetime.is_some()
        || wanted.route_metric.unwrap_or(0) != found.route_metric.unwrap_or(0)
        // Older kernels forget who set it.
        || wanted.protocol != 0 && found.protocol != 0 && wanted.protocol != found.protocol;
    if properties { AddressDifference::Properties } else { AddressDifference::None }
}

/// Whether the kernel made the address by itself, so that it belongs to no owner.
pub(crate) fn is_kernels(address: &Address) -> bool {
    let link_local = match address.network.ip() {
        IpAddr::V4(_) => false,
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    link_local || address.network.ip().is_loopback() || IFAPROT_KERNEL.contains(&address.protocol)
}

pub(crate) fn route_satisfies(wanted: &Route, found: &Route) -> bool {
    let wanted_hops = hops(wanted);
    let found_hops = hops(found);
    // A nexthop object says it all; the kernel reports its ways besides.
    let ways = if wanted.nexthop_id.is_some() {
        wanted.nexthop_id == found.nexthop_id
    } else {
        wanted_hops.len() == found_hops.len()
            && wanted_hops.iter().zip(&found_hops).all(|(wanted, found)| same_way(wanted, found))
    };
    ways && RouteKey::of(wanted) == RouteKey::of(found)
        && wanted.kind == found.kind
        && wanted.protocol == found.protocol
        && scope(wanted) == scope(found)
        && wanted.preferred_source == found.preferred_source
        && wanted.mtu == found.mtu
        && wanted.advertised_mss == found.advertised_mss
}

/// A rule without what does not tell it from another.
pub(crate) fn rule_key(rule: &Rule) -> Rule {
    let mut key = rule.clone();
    key.protocol = RouteProtocol::UNSPEC;
    key.source = rule.source.filter(|source| source.prefix() != 0);
    key.destination = rule.destination.filter(|destination| destination.prefix() != 0);
    key.mark = rule.mark.filter(|mark| mark.mask != 0);
    key
}

pub(crate) fn neighbour_satisfies(wanted: &Neighbour, found: &Neighbour) -> bool {
    let kept = NeighbourFlags::EXT_LEARNED.0 | NeighbourFlags::MANAGED.0 | NeighbourFlags::ROUTER.0;
    let permanent = |neighbour: &Neighbour| neighbour.state.0 & NeighbourState::PERMANENT.0;
    permanent(wanted) == permanent(found)
        && wanted.flags.0 & kept == found.flags.0 & kept
        && (wanted.mac.is_none() || wanted.mac == found.mac)
        && (wanted.protocol == RouteProtocol::UNSPEC || wanted.protocol == found.protocol)
}

/// Whether somebody set the entry, as opposed to the kernel having found it.
pub(crate) fn is_set(neighbour: &Neighbour) -> bool {
    neighbour.state.0 & NeighbourState::PERMANENT.0 != 0
        || neighbour.flags.contains(NeighbourFlags::EXT_LEARNED)
}

fn metric(route: &Route) -> u32 {
    match (route.family(), route.metric) {
        (Family::V4, metric) => metric.unwrap_or(0),
        (Family::V6, None | Some(0)) => IP6_RT_PRIO_USER,
        (Family::V6, Some(metric)) => metric,
    }
}

fn scope(route: &Route) -> Scope {
    match (route.family(), route.kind) {
        (Family::V6, _) => Scope::UNIVERSE,
        // What is not sent anywhere has no scope to speak of.
        (Family::V4, kind) if is_refusal(kind) => Scope::UNIVERSE,
        (Family::V4, _) => route.scope,
    }
}

fn is_refusal(kind: RouteKind) -> bool {
    matches!(
        kind,
        RouteKind::BLACKHOLE | RouteKind::UNREACHABLE | RouteKind::PROHIBIT | RouteKind::THROW
    )
}

/// The ways of a route in an order that does not depend on who lists them.
fn hops(route: &Route) -> Vec<NextHop> {
    if is_refusal(route.kind) {
        // For IPv6 the kernel reports the loopback interface.
        return Vec::new();
    }
    if route.multipath.is_empty() {
        let Route { gateway, output, on_link, .. } = *route;
        return vec![NextHop { gateway, output, weight: 1, on_link }];
    }
    let mut hops = route.multipath.clone();
    if let [only] = hops.as_mut_slice() {
        only.weight = 1;
    }
    hops.sort_by_key(|hop| (hop.gateway, hop.output, hop.weight));
    hops
}

fn same_way(wanted: &NextHop, found: &NextHop) -> bool {
    wanted.gateway == found.gateway
        && wanted.weight == found.weight
        && wanted.on_link == found.on_link
        && (wanted.output.is_none() || wanted.output == found.output)
}
