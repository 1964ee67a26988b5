//! One object at a time.

use podwire_netlink::{
    Address, Append, Entity, Error as Refusal, Neighbour, Netlink, Route, RouteFilter, Rule,
};

use crate::compare::{
    AddressDifference, AddressKey, RouteKey, compare_address, is_set, neighbour_satisfies,
    route_satisfies, rule_key,
};
use crate::{Conflict, Error, LinkState};

/// What it took to have an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ensured {
    /// It was not there.
    Created,
    /// It was there with other properties.
    Changed,
    /// It was there.
    Unchanged,
}

/// What it took to be rid of an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Removed {
    /// It was there.
    Removed,
    /// It was not there.
    Absent,
}

/// Sees to it that a link is like this.
///
/// # Errors
///
/// When there is no such link ([`Error::is_not_found`]), or the kernel refuses.
pub fn ensure_link(netlink: &mut Netlink, state: &LinkState) -> Result<Ensured, Error> {
    let link = netlink.link(state.index)?;
    let Some(change) = state.change(&link) else { return Ok(Ensured::Unchanged) };
    netlink.change_link(&change)?;
    Ok(Ensured::Changed)
}

/// Sees to it that a link has an address. The link is the caller's: an address that is there with
/// other properties is changed.
///
/// # Errors
///
/// When the kernel refuses.
pub fn ensure_address(netlink: &mut Netlink, address: &Address) -> Result<Ensured, Error> {
    let Some(exists) = added(netlink, address)? else { return Ok(Ensured::Created) };
    let key = AddressKey::of(address);
    let listed = netlink.addresses(address.index)?;
    let Some(found) = listed.iter().find(|found| AddressKey::of(found) == key) else {
        return Err(exists.into());
    };
    match compare_address(address, found) {
        AddressDifference::None => return Ok(Ensured::Unchanged),
        AddressDifference::Properties => netlink.replace(address)?,
        AddressDifference::Identity => {
            removed(netlink, found)?;
            netlink.add(address)?;
        }
    }
    Ok(Ensured::Changed)
}

/// Sees to it that there is a route. One with the same destination, table and metric is changed if
/// it has the same protocol number.
///
/// # Errors
///
/// [`Error::Conflict`] when the route with this key is somebody else's; otherwise when the kernel
/// refuses.
pub fn ensure_route(netlink: &mut Netlink, route: &Route) -> Result<Ensured, Error> {
    let Some(exists) = added(netlink, route)? else { return Ok(Ensured::Created) };
    let key = RouteKey::of(route);
    let filter = RouteFilter { family: Some(route.family()), ..RouteFilter::table(route.table) };
    let mut listed = netlink.routes(&filter)?;
    listed.retain(|found| RouteKey::of(found) == key);
    if listed.iter().any(|found| route_satisfies(route, found)) {
        return Ok(Ensured::Unchanged);
    }
    if let Some(place) = listed.iter().position(|found| found.protocol != route.protocol) {
        let found = listed.swap_remove(place).into();
        return Err(Conflict::Route { wanted: route.clone().into(), found }.into());
    }
    if listed.is_empty() {
        return Err(exists.into());
    }
    netlink.replace(route)?;
    Ok(Ensured::Changed)
}

/// Sees to it that there is a rule, whoever made it.
///
/// # Errors
///
/// When the kernel refuses.
pub fn ensure_rule(netlink: &mut Netlink, rule: &Rule) -> Result<Ensured, Error> {
    // The kernel counts a rule of another protocol for a different one.
    if has_rule(netlink, rule)? {
        return Ok(Ensured::Unchanged);
    }
    // It says that a rule exists, too, when another has all that it says and more.
    if added(netlink, rule)?.is_some() {
        if has_rule(netlink, rule)? {
            return Ok(Ensured::Unchanged);
        }
        netlink.execute(&Append(rule))?;
    }
    Ok(Ensured::Created)
}

/// Sees to it that there is a neighbour entry. What the kernel has found by itself is replaced, and
/// so is what was set: the link is the caller's.
///
/// # Errors
///
/// When the kernel refuses.
pub fn ensure_neighbour(netlink: &mut Netlink, neighbour: &Neighbour) -> Result<Ensured, Error> {
    if added(netlink, neighbour)?.is_none() {
        return Ok(Ensured::Created);
    }
    let listed = netlink.neighbours(neighbour.index)?;
    let found = listed.iter().find(|found| found.address == neighbour.address);
    match found {
        Some(found) if neighbour_satisfies(neighbour, found) => return Ok(Ensured::Unchanged),
        _ => netlink.replace(neighbour)?,
    }
    // An entry that the kernel has found by itself was nobody's.
    Ok(if found.is_some_and(is_set) { Ensured::Changed } else { Ensured::Created })
}

/// Sees to it that a link does not have an address.
///
/// # Errors
///
/// When the kernel refuses.
pub fn remove_address(netlink: &mut Netlink, address: &Address) -> Result<Removed, Error> {
    removed(netlink, address)
}

/// Sees to it that there is no route with the same destination, table, metric and protocol, whatever
/// its other properties. Those of others stay.
///
/// # Errors
///
/// When the kernel refuses.
pub fn remove_route(netlink: &mut Netlink, route: &Route) -> Result<Removed, Error> {
    let key = RouteKey::of(route);
    let filter = RouteFilter {
        family: Some(route.family()),
        protocol: Some(route.protocol),
        ..RouteFilter::table(route.table)
    };
    let mut outcome = Removed::Absent;
    for found in netlink.routes(&filter)?.iter().filter(|found| RouteKey::of(found) == key) {
        if removed(netlink, found)? == Removed::Removed {
            outcome = Removed::Removed;
        }
    }
    Ok(outcome)
}

/// Sees to it that there is no such rule of this protocol. Those of others stay, and so do those
/// that have this one's conditions and more.
///
/// # Errors
///
/// When the kernel refuses.
pub fn remove_rule(netlink: &mut Netlink, rule: &Rule) -> Result<Removed, Error> {
    let key = rule_key(rule);
    let ours = |found: &Rule| found.protocol == rule.protocol && found.priority == rule.priority;
    let mut listed = netlink.rules(rule.family)?;
    listed.retain(ours);
    let (alike, others): (Vec<_>, Vec<_>) =
        listed.into_iter().partition(|found| rule_key(found) == key);
    let mut outcome = Removed::Absent;
    for found in &alike {
        // The kernel removes the first rule that has what the description says, if it has more
        // besides.
        while removed(netlink, found)? == Removed::Removed {
            outcome = Removed::Removed;
        }
    }
    if outcome == Removed::Removed {
        for other in &others {
            ensure_rule(netlink, other)?;
        }
    }
    Ok(outcome)
}

/// Sees to it that there is no neighbour entry.
///
/// # Errors
///
/// When the kernel refuses.
pub fn remove_neighbour(netlink: &mut Netlink, neighbour: &Neighbour) -> Result<Removed, Error> {
    removed(netlink, neighbour)
}

fn has_rule(netlink: &mut Netlink, rule: &Rule) -> Result<bool, Error> {
    let key = rule_key(rule);
    Ok(netlink.rules(rule.family)?.iter().any(|found| rule_key(found) == key))
}

/// Adds an object; if there is one already, the refusal.
fn added<E: Entity>(netlink: &mut Netlink, object: &E) -> Result<Option<Refusal>, Error> {
    match netlink.add(object) {
        Ok(()) => Ok(None),
        Err(error) if error.is_exists() => Ok(Some(error)),
        Err(error) => Err(error.into()),
    }
}

fn removed<E: Entity>(netlink: &mut Netlink, object: &E) -> Result<Removed, Error> {
    match netlink.remove(object) {
        Ok(()) => Ok(Removed::Removed),
        Err(error) if error.is_not_found() => Ok(Removed::Absent),
        Err(error) => Err(error.into()),
    }
}
