use std::collections::{HashMap, HashSet};
use std::fmt;

use ipnetwork::IpNetwork;
use podwire_netlink::{Address, AddressFlags, Entity, IfIndex, Neighbour, Route, RouteProtocol};

use crate::compare::{
    AddressDifference, AddressKey, RouteKey, compare_address, is_kernels, is_set,
    neighbour_satisfies, route_satisfies, rule_key,
};
use crate::{Change, Desired, Observed, Owner};

/// What to do, and what cannot be done.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[must_use]
pub struct Plan {
    /// What to do, in this order.
    pub changes: Vec<Change>,
    /// Where somebody else is in the way. Nothing is planned there.
    pub conflicts: Vec<Conflict>,
}

impl Plan {
    /// Whether all is as it should be.
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty() && self.conflicts.is_empty()
    }
}

/// Something that is wished for and cannot be had without touching what belongs to others.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Conflict {
    /// The link does not exist.
    NoLink(IfIndex),
    /// Another address of the link is in the way.
    Address {
        /// What is wished for.
        wanted: Address,
        /// What is there.
        found: Address,
    },
    /// A route of somebody else has the same destination, table and metric.
    Route {
        /// What is wished for.
        wanted: Box<Route>,
        /// What is there.
        found: Box<Route>,
    },
    /// Two wishes are for the same route.
    RouteTwice {
        /// The wish that is granted.
        granted: Box<Route>,
        /// The wish that is not.
        denied: Box<Route>,
    },
    /// Somebody else has set the neighbour entry otherwise.
    Neighbour {
        /// What is wished for.
        wanted: Neighbour,
        /// What is there.
        found: Neighbour,
    },
}

impl fmt::Display for Conflict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoLink(index) => write!(f, "there is no link {index}"),
            Self::Address { wanted, found } => write!(
                f,
                "{} is wanted, but the link has {} with other properties, set by somebody else",
                wanted.subject(),
                found.network
            ),
            Self::Route { wanted, found } => write!(
                f,
                "{} is wanted, but protocol {} has {} with the same metric",
                wanted.subject(),
                found.protocol,
                found.subject()
            ),
            Self::RouteTwice { granted, denied } => write!(
                f,
                "{} and {} are wanted with the same metric",
                granted.subject(),
                denied.subject()
            ),
            Self::Neighbour { wanted, found } => write!(
                f,
                "{} is wanted, but somebody else has set it to {}",
                wanted.subject(),
                found.mac.map_or_else(|| "no address".to_owned(), |mac| mac.to_string())
            ),
        }
    }
}

/// Compares what is to be with what is. Nothing is asked or changed.
///
/// The order of the changes is such that each finds what it needs: links, addresses, neighbours,
/// routes without a gateway, routes with one, rules; then what goes, in reverse. Applying the changes
/// and planning again gives an empty plan, as long as nobody else interferes.
///
/// The effort grows with the number of objects, not with its square.
pub fn plan(desired: &Desired, observed: &Observed, owner: &Owner) -> Plan {
    let mut plan = Plan::default();
    plan_links(desired, observed, &mut plan);
    let shaken = plan_addresses(desired, observed, owner, &mut plan);
    let stale_neighbours = plan_neighbours(desired, observed, owner, &mut plan);
    let stale_routes = plan_routes(desired, observed, owner.protocol, &shaken, &mut plan);
    plan_rules(desired, observed, owner.protocol, &mut plan);
    plan.changes.extend(stale_routes.into_iter().map(Change::RemoveRoute));
    plan.changes.extend(stale_neighbours.into_iter().map(Change::RemoveNeighbour));
    plan
}

fn plan_links(desired: &Desired, observed: &Observed, plan: &mut Plan) {
    let by_index: HashMap<_, _> = observed.links.iter().map(|link| (link.index, link)).collect();
    for state in &desired.links {
        match by_index.get(&state.index) {
            Some(link) => plan.changes.extend(state.change(link).map(Change::Link)),
            None => plan.conflicts.push(Conflict::NoLink(state.index)),
        }
    }
}

/// What the removal of addresses takes along in the kernel, besides the addresses.
#[derive(Debug, Default)]
struct Shaken {
    links: HashSet<IfIndex>,
}

impl Shaken {
    /// Whether the route may be gone after the addresses have changed.
    fn includes(&self, route: &Route) -> bool {
        let way = |output: Option<IfIndex>| output.is_none_or(|index| self.links.contains(&index));
        !self.links.is_empty()
            && (route.preferred_source.is_some()
                || way(route.output)
                || route.multipath.iter().any(|hop| way(hop.output)))
    }
}

fn plan_addresses(
    desired: &Desired,
    observed: &Observed,
    owner: &Owner,
    plan: &mut Plan,
) -> Shaken {
    let found: HashMap<_, _> =
        observed.addresses.iter().map(|address| (AddressKey::of(address), address)).collect();
    let mut wanted = HashSet::new();
    let (mut removed, mut added, mut kept) = (Vec::new(), Vec::new(), Vec::new());
    for address in &desired.addresses {
        let key = AddressKey::of(address);
        if !wanted.insert(key) {
            continue;
        }
        let Some(present) = found.get(&key) else {
            added.push(Change::AddAddress(address.clone()));
            continue;
        };
        let difference = compare_address(address, present);
        if difference == AddressDifference::None {
            kept.push((*present, address));
        } else if !owner.links.contains(&address.index) {
            let (wanted, found) = (address.clone(), (*present).clone());
            plan.conflicts.push(Conflict::Address { wanted, found });
        } else if difference == AddressDifference::Properties {
            kept.push((*present, address));
            added.push(Change::ReplaceAddress(address.clone()));
        } else {
            removed.push(*present);
            added.push(Change::AddAddress(address.clone()));
        }
    }
    let stale = observed.addresses.iter().filter(|address| {
        owner.links.contains(&address.index)
            && !is_kernels(address)
            && !wanted.contains(&AddressKey::of(address))
    });
    removed.extend(stale);

    // With the first IPv4 address of a prefix go the others, unless promote_secondaries is set.
    let prefix = |address: &Address| (address.index, masked(address.network));
    let firsts: HashSet<_> = removed
        .iter()
        .filter(|address| address.network.is_ipv4())
        .filter(|address| !address.flags.contains(AddressFlags::SECONDARY))
        .map(|address| prefix(address))
        .collect();
    let endangered = kept.into_iter().filter(|(present, _)| {
        present.network.is_ipv4()
            && present.flags.contains(AddressFlags::SECONDARY)
            && firsts.contains(&prefix(present))
    });
    added.extend(endangered.map(|(_, address)| Change::ReplaceAddress(address.clone())));

    let links = removed.iter().map(|address| address.index).collect();
    plan.changes.extend(removed.into_iter().cloned().map(Change::RemoveAddress));
    plan.changes.extend(added);
    Shaken { links }
}

fn plan_neighbours(
    desired: &Desired,
    observed: &Observed,
    owner: &Owner,
    plan: &mut Plan,
) -> Vec<Neighbour> {
    let key = |neighbour: &Neighbour| (neighbour.index, neighbour.address);
    let found: HashMap<_, _> = observed.neighbours.iter().map(|n| (key(n), n)).collect();
    let mut wanted = HashSet::new();
    for neighbour in &desired.neighbours {
        if !wanted.insert(key(neighbour)) {
            continue;
        }
        match found.get(&key(neighbour)) {
            Some(present) if neighbour_satisfies(neighbour, present) => {}
            Some(present) if is_set(present) && !owner.links.contains(&neighbour.index) => {
                let (wanted, found) = (neighbour.clone(), (*present).clone());
                plan.conflicts.push(Conflict::Neighbour { wanted, found });
            }
            _ => plan.changes.push(Change::ReplaceNeighbour(neighbour.clone())),
        }
    }
    let stale = observed.neighbours.iter().filter(|neighbour| {
        owner.links.contains(&neighbour.index)
            && is_set(neighbour)
            && !wanted.contains(&key(neighbour))
    });
    stale.cloned().collect()
}

fn plan_routes(
    desired: &Desired,
    observed: &Observed,
    protocol: RouteProtocol,
    shaken: &Shaken,
    plan: &mut Plan,
) -> Vec<Route> {
    let mut ours: HashMap<RouteKey, Vec<&Route>> = HashMap::new();
    let mut foreign: HashMap<RouteKey, &Route> = HashMap::new();
    for route in &observed.routes {
        let key = RouteKey::of(route);
        if route.protocol == protocol {
            ours.entry(key).or_default().push(route);
        } else {
            foreign.entry(key).or_insert(route);
        }
    }

    let mut granted: HashMap<RouteKey, usize> = HashMap::new();
    let (mut changes, mut keep) = (Vec::new(), HashSet::new());
    for (number, route) in desired.routes.iter().enumerate() {
        let key = RouteKey::of(route);
        let route = route.clone().protocol(protocol);
        if let Some(first) = granted.get(&key) {
            let first = &desired.routes[*first];
            if !route_satisfies(&route, &first.clone().protocol(protocol)) {
                let (granted, denied) = (first.clone().into(), route.into());
                plan.conflicts.push(Conflict::RouteTwice { granted, denied });
            }
            continue;
        }
        granted.insert(key, number);

        let present = ours.get(&key).map_or(&[][..], Vec::as_slice);
        if let Some(right) = present.iter().find(|found| route_satisfies(&route, found)) {
            keep.insert(std::ptr::from_ref::<Route>(right));
            if shaken.includes(&route) && !foreign.contains_key(&key) {
                changes.push(Change::ReplaceRoute(route));
            }
            continue;
        }
        // Replacing changes the first route with this key, whoever made it.
        match (foreign.get(&key), present) {
            (Some(found), _) => {
                let (wanted, found) = (route.into(), (*found).clone().into());
                plan.conflicts.push(Conflict::Route { wanted, found });
            }
            (None, []) => changes.push(Change::AddRoute(route)),
            (None, [first, ..]) => {
                keep.insert(std::ptr::from_ref::<Route>(first));
                changes.push(Change::ReplaceRoute(route));
            }
        }
    }
    // A gateway must be reachable when a route names it.
    let (with_gateway, without): (Vec<_>, Vec<_>) = changes.into_iter().partition(|change| {
        matches!(change, Change::AddRoute(route) | Change::ReplaceRoute(route) if has_gateway(route))
    });
    plan.changes.extend(without);
    plan.changes.extend(with_gateway);

    let stale = observed.routes.iter().filter(|route| {
        route.protocol == protocol && !keep.contains(&std::ptr::from_ref::<Route>(route))
    });
    let (mut stale, without): (Vec<_>, Vec<_>) = stale.cloned().partition(has_gateway);
    stale.extend(without);
    stale
}

fn plan_rules(desired: &Desired, observed: &Observed, protocol: RouteProtocol, plan: &mut Plan) {
    let wanted: HashSet<_> = desired.rules.iter().map(rule_key).collect();
    let (ours, foreign): (Vec<_>, Vec<_>) =
        observed.rules.iter().partition(|rule| rule.protocol == protocol);
    let mut present = HashSet::new();
    let (mut granted, mut stale) = (Vec::new(), Vec::new());
    for rule in ours {
        let key = rule_key(rule);
        // Of several alike one is enough.
        if wanted.contains(&key) && present.insert(key) {
            granted.push(rule);
        } else {
            stale.push(rule);
        }
    }
    // It does not matter whose the rule is that does what is wished.
    present.extend(foreign.into_iter().map(rule_key));
    for rule in &desired.rules {
        if present.insert(rule_key(rule)) {
            plan.changes.push(Change::AddRule(rule.clone().protocol(protocol)));
            granted.push(rule);
        }
    }
    plan.changes.extend(stale.iter().map(|rule| Change::RemoveRule((*rule).clone())));
    // The kernel removes the first rule of ours that has what the description says, if it has more
    // besides. Those that may be hit are added again, which does nothing when they stand.
    let places: HashSet<_> = stale.iter().map(|rule| (rule.family, rule.priority)).collect();
    let endangered =
        granted.into_iter().filter(|rule| places.contains(&(rule.family, rule.priority)));
    plan.changes.extend(endangered.map(|rule| Change::AddRule(rule.clone().protocol(protocol))));
}

fn has_gateway(route: &Route) -> bool {
    route.gateway.is_some() || route.multipath.iter().any(|hop| hop.gateway.is_some())
}

fn masked(network: IpNetwork) -> (std::net::IpAddr, u8) {
    (network.network(), network.prefix())
}

#[cfg(test)]
#[path = "tests/plan.rs"]
mod tests;
