//! Which devices lead out of the node, and under which of its addresses pods' packets leave by them.
//!
//! Decided from what the kernel tells of links, addresses and routes, without touching anything.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use podwire_api::{Mark, ROUTE_PROTOCOL};
use podwire_datapath::{LinkHeader, PortRange, UplinkConfig};
use podwire_netlink::{
    Address, AddressFlags, IfIndex, Link, Netlink, Route, RouteFilter, RouteKind, RouteProtocol,
    Scope,
};

use crate::masquerade::DevicePattern;

/// What the kernel tells.
#[derive(Debug, Clone, Default)]
pub(crate) struct View {
    pub(crate) links: Vec<Link>,
    pub(crate) addresses: Vec<Address>,
    pub(crate) routes: Vec<Route>,
}

/// How it is to be.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Plan {
    /// By interface index.
    pub(crate) uplinks: BTreeMap<u32, Uplink>,
    /// Every address of the node.
    pub(crate) addresses: BTreeSet<IpAddr>,
}

/// A device that leads out of the node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Uplink {
    pub(crate) name: String,
    pub(crate) config: UplinkConfig,
}

impl View {
    pub(crate) fn read(netlink: &mut Netlink) -> Result<Self, podwire_netlink::Error> {
        Ok(Self {
            links: netlink.links()?,
            addresses: netlink.addresses(None)?,
            routes: netlink.routes(&RouteFilter::ALL)?,
        })
    }

    /// An uplink is a device with a default route, or one that a pattern names, or one that was an uplink
    /// (`before`) and still has an address: its mappings are alive. Ports of bridges and bonds never are:
    /// what they carry is seen at the device above them.
    pub(crate) fn plan(
        &self,
        patterns: &[DevicePattern],
        ports: PortRange,
        before: &BTreeSet<u32>,
    ) -> Plan {
        let mut plan = Plan {
            addresses: self.addresses.iter().map(|one| one.network.ip()).collect(),
            ..Plan::default()
        };
        for link in self.links.iter().filter(|link| self.may_be_uplink(link)) {
            let name = link.name.to_string();
            if patterns.iter().any(|pattern| pattern.excludes(&name)) {
                continue;
            }
            let index = link.index.as_u32();
            let leads_out = self.defaults(link.index).next().is_some();
            let named = patterns.iter().any(|pattern| pattern.names(&name));
            let (ipv4, ipv6) = (self.ipv4(link.index), self.ipv6(link.index));
            let stays = before.contains(&index) && (ipv4.is_some() || ipv6.is_some());
            if leads_out || named || stays {
                let header =
                    if link.mac.is_some() { LinkHeader::Ethernet } else { LinkHeader::None };
                let config = UplinkConfig { ipv4, ipv6, header, ports };
                plan.uplinks.insert(index, Uplink { name, config });
            }
        }
        plan
    }

    fn may_be_uplink(&self, link: &Link) -> bool {
        let is_port = link.master.is_some_and(|master| {
            let above = self.links.iter().find(|link| link.index == master);
            // A VRF's devices keep their addresses.
            above.and_then(|above| above.kind.as_ref()).is_none_or(|kind| kind.as_str() != "vrf")
        });
        link.index != IfIndex::LOOPBACK && !is_port && !is_ours(link)
    }

    /// Default routes of others over a device.
    fn defaults(&self, index: IfIndex) -> impl Iterator<Item = &Route> {
        self.routes.iter().filter(move |route| {
            let over = route.output == Some(index)
                || route.multipath.iter().any(|way| way.output == Some(index));
            over && is_default(route)
        })
    }

    fn ipv4(&self, index: IfIndex) -> Option<Ipv4Addr> {
        self.source(index, IpAddr::is_ipv4).and_then(|address| match address {
            IpAddr::V4(v4) => Some(v4),
            IpAddr::V6(_) => None,
        })
    }

    fn ipv6(&self, index: IfIndex) -> Option<Ipv6Addr> {
        self.source(index, IpAddr::is_ipv6).and_then(|address| match address {
            IpAddr::V6(v6) => Some(v6),
            IpAddr::V4(_) => None,
        })
    }

    /// The address that the kernel would send from: the one that the default route prefers, the one of the
    /// gateway's network, or the device's first, in this order; on a device without an address of its
    /// own, the first of another one that is not podwire's.
    fn source(&self, index: IfIndex, family: fn(&IpAddr) -> bool) -> Option<IpAddr> {
        let defaults: Vec<_> =
            self.defaults(index).filter(|route| family(&route.destination.ip())).collect();
        let preferred = defaults.iter().filter_map(|route| route.preferred_source);
        let known =
            |address: &IpAddr| self.addresses.iter().any(|one| one.network.ip() == *address);
        if let Some(preferred) = preferred.clone().find(known) {
            return Some(preferred);
        }
        let usable = || {
            let fits = |one: &&Address| family(&one.network.ip()) && is_usable(one);
            self.addresses.iter().filter(fits)
        };
        let mut own: Vec<_> = usable().filter(|one| one.index == index).collect();
        let gateways: Vec<_> = defaults.iter().filter_map(|route| route.gateway).collect();
        // Stable: among equals the kernel's order is kept.
        own.sort_by_key(|one| {
            let near = gateways.iter().any(|gateway| one.network.contains(*gateway));
            (
                one.flags.contains(AddressFlags::DEPRECATED),
                !near,
                // Of IPv6, the same flag says that it is temporary (RFC 8981).
                one.flags.contains(AddressFlags::SECONDARY),
            )
        });
        if let Some(own) = own.first() {
            return Some(own.network.ip());
        }
        if defaults.is_empty() {
            return None;
        }
        let ours: BTreeSet<_> =
            self.links.iter().filter(|link| is_ours(link)).map(|link| link.index).collect();
        usable().find(|one| !ours.contains(&one.index)).map(|one| one.network.ip())
    }
}

/// Whether a link bears podwire's mark.
pub(crate) fn is_ours(link: &Link) -> bool {
    link.alias.as_deref().is_some_and(|alias| alias.parse::<Mark>().is_ok())
}

/// Whether somebody else's route leads everywhere.
pub(crate) fn is_default(route: &Route) -> bool {
    route.destination.prefix() == 0
        && route.kind == RouteKind::UNICAST
        && route.protocol != RouteProtocol(ROUTE_PROTOCOL)
}

fn is_usable(address: &Address) -> bool {
    let unusable = [AddressFlags::TENTATIVE, AddressFlags::DADFAILED];
    address.scope == Scope::UNIVERSE && !unusable.iter().any(|flag| address.flags.contains(*flag))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn index(number: u32) -> IfIndex {
        IfIndex::new(number).unwrap()
    }

    /// As in `struct ifinfomsg`, with name, MAC, kind, master and alias as attributes.
    fn link(number: u32, name: &str, kind: &str, master: Option<u32>) -> Link {
        let mut payload = vec![0; 16];
        payload[4..8].copy_from_slice(&number.to_ne_bytes());
        let mut attribute = |kind: u16, value: &[u8]| {
            payload.extend(u16::try_from(value.len() + 4).unwrap().to_ne_bytes());
            payload.extend(kind.to_ne_bytes());
            payload.extend(value);
            payload.resize(payload.len().next_multiple_of(4), 0);
        };
        attribute(3, &[name.as_bytes(), &[0]].concat());
        if kind != "tun" {
            attribute(1, &[2, 0, 0, 0, 0, 1]);
        }
        if let Some(master) = master {
            attribute(10, &master.to_ne_bytes());
        }
        if kind == "podwire" {
            attribute(20, b"podwire:node-1:router\0");
        } else if !kind.is_empty() {
            let mut nested = u16::try_from(kind.len() + 5).unwrap().to_ne_bytes().to_vec();
            nested.extend(1_u16.to_ne_bytes());
            nested.extend(kind.as_bytes());
            nested.push(0);
            attribute(18, &nested);
        }
        Link::parse(&payload).unwrap()
    }

    fn address(number: u32, text: &str) -> Address {
        Address::new(index(number), text.parse().unwrap())
    }

    fn default(number: u32, gateway: &str) -> Route {
        let gateway: IpAddr = gateway.parse().unwrap();
        let everything = if gateway.is_ipv4() { "0.0.0.0/0" } else { "::/0" };
        Route::new(everything.parse().unwrap()).via(gateway).dev(index(number))
    }

    fn plan(view: &View, patterns: &[&str], before: &[u32]) -> BTreeMap<String, UplinkConfig> {
        let patterns: Vec<_> = patterns.iter().map(|text| text.parse().unwrap()).collect();
        let plan = view.plan(&patterns, PortRange::default(), &before.iter().copied().collect());
        plan.uplinks.into_values().map(|uplink| (uplink.name, uplink.config)).collect()
    }

    fn names(view: &View, patterns: &[&str], before: &[u32]) -> Vec<String> {
        plan(view, patterns, before).into_keys().collect()
    }

    /// A node with a bond of two devices, a VLAN on it, a bridge, a tunnel, and podwire's own links.
    fn node() -> View {
        View {
            links: vec![
                link(1, "lo", "", None),
                link(2, "eth0", "", Some(4)),
                link(3, "eth1", "", Some(4)),
                link(4, "bond0", "bond", None),
                link(5, "bond0.7", "vlan", None),
                link(6, "br0", "bridge", None),
                link(7, "eth2", "", Some(6)),
                link(8, "tun0", "tun", None),
                link(9, "podwire_host", "podwire", None),
                link(10, "blue", "vrf", None),
                link(11, "eth3", "", Some(10)),
            ],
            addresses: vec![
                address(1, "127.0.0.1/8"),
                address(4, "192.0.2.2/24"),
                address(5, "198.51.100.2/24"),
                address(6, "203.0.113.2/24"),
                address(8, "100.64.0.2/32"),
                address(9, "10.1.0.1/32"),
                address(11, "172.16.0.2/24"),
            ],
            routes: vec![default(5, "198.51.100.1")],
        }
    }

    #[test]
    fn the_device_that_carries_the_route_is_the_uplink() {
        let mut node = node();
        assert_eq!(names(&node, &[], &[]), ["bond0.7"]);
        node.routes = vec![default(4, "192.0.2.1"), default(6, "203.0.113.1")];
        assert_eq!(names(&node, &[], &[]), ["bond0", "br0"]);
        // Whoever routes over a port has misconfigured it; what it carries is seen at the bridge.
        node.routes = vec![default(7, "203.0.113.1"), default(9, "10.1.0.1")];
        assert_eq!(names(&node, &[], &[]), [] as [&str; 0]);
        node.routes = vec![default(11, "172.16.0.1")];
        assert_eq!(names(&node, &[], &[]), ["eth3"], "a VRF's device");
    }

    #[test]
    fn patterns_add_and_take_away() {
        let node = node();
        assert_eq!(names(&node, &["bond*"], &[]), ["bond0", "bond0.7"]);
        assert_eq!(names(&node, &["eth?", "tun0"], &[]), ["bond0.7", "eth3", "tun0"]);
        assert_eq!(names(&node, &["!bond0.*"], &[]), [] as [&str; 0]);
        assert_eq!(names(&node, &["*", "!*0.7"], &[]), ["blue", "bond0", "br0", "eth3", "tun0"]);
        assert_eq!(names(&node, &["lo", "podwire*"], &[]), ["bond0.7"], "never these");
    }

    #[test]
    fn an_uplink_stays_one_while_it_has_an_address() {
        let mut node = node();
        node.routes.clear();
        assert_eq!(names(&node, &[], &[5]), ["bond0.7"]);
        assert_eq!(names(&node, &["!bond0.7"], &[5]), [] as [&str; 0]);
        node.addresses.retain(|one| one.index != index(5));
        assert_eq!(names(&node, &[], &[5]), [] as [&str; 0]);
    }

    #[test]
    fn addresses_are_those_that_the_kernel_would_send_from() {
        let mut node = node();
        let of = |node: &View| plan(node, &[], &[])["bond0.7"].ipv4.map(|v4| v4.to_string());
        assert_eq!(of(&node).as_deref(), Some("198.51.100.2"));
        node.addresses.insert(0, address(5, "10.9.9.9/24"));
        assert_eq!(of(&node).as_deref(), Some("198.51.100.2"), "the gateway's network");
        let preferred = "192.0.2.2".parse().unwrap();
        node.routes = vec![default(5, "198.51.100.1").preferred_source(preferred)];
        assert_eq!(of(&node).as_deref(), Some("192.0.2.2"), "the route's");
        node.routes = vec![default(5, "198.51.100.1")];
        node.addresses.retain(|one| one.index != index(5));
        assert_eq!(of(&node).as_deref(), Some("192.0.2.2"), "another device's");
        node.addresses.retain(|one| [index(1), index(9)].contains(&one.index));
        assert_eq!(of(&node), None, "neither loopback nor podwire's");
    }

    #[test]
    fn ipv6_addresses_must_be_usable() {
        let mut node = node();
        node.routes.push(default(5, "fe80::1"));
        let of = |node: &View| plan(node, &[], &[])["bond0.7"].ipv6.map(|v6| v6.to_string());
        node.addresses.push(address(5, "fe80::5/64"));
        assert_eq!(of(&node), None);
        node.addresses.push(address(5, "2001:db8::1/64").with_flags(AddressFlags::TENTATIVE));
        assert_eq!(of(&node), None);
        node.addresses.push(address(5, "2001:db8::2/64").with_flags(AddressFlags::DEPRECATED));
        assert_eq!(of(&node).as_deref(), Some("2001:db8::2"));
        node.addresses.push(address(5, "2001:db8::3/64").with_flags(AddressFlags::SECONDARY));
        assert_eq!(of(&node).as_deref(), Some("2001:db8::3"), "temporary, not deprecated");
        node.addresses.push(address(5, "2001:db8::4/64"));
        assert_eq!(of(&node).as_deref(), Some("2001:db8::4"));
    }

    #[test]
    fn headers_are_as_the_device_has_them() {
        let plan = plan(&node(), &["tun0"], &[]);
        assert_eq!(plan["tun0"].header, LinkHeader::None);
        assert_eq!(plan["bond0.7"].header, LinkHeader::Ethernet);
    }
}
