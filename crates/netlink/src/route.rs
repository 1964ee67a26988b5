//! Routes.

use std::fmt;
use std::net::IpAddr;

use ipnetwork::IpNetwork;

use crate::family::{Family, network};
use crate::link;
use crate::wire::{self, Attribute, Attributes, MessageBuilder, NESTED};
use crate::{Entity, IfIndex, Operation, ParseError, Request, Subject};

pub(crate) const RTM_NEWROUTE: u16 = 24;
pub(crate) const RTM_DELROUTE: u16 = 25;
const RTM_GETROUTE: u16 = 26;

const RTA_DST: u16 = 1;
const RTA_SRC: u16 = 2;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_PRIORITY: u16 = 6;
const RTA_PREFSRC: u16 = 7;
const RTA_METRICS: u16 = 8;
const RTA_MULTIPATH: u16 = 9;
const RTA_TABLE: u16 = 15;
const RTA_VIA: u16 = 18;
const RTA_NH_ID: u16 = 30;
const RTAX_LOCK: u16 = 1;
const RTAX_MTU: u16 = 2;
const RTAX_ADVMSS: u16 = 8;

const RTMSG_LEN: usize = 12;
const RTNEXTHOP_LEN: usize = 8;
const RTNH_F_ONLINK: u32 = 4;
const RTM_F_CLONED: u32 = 0x200;

/// A route.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Route {
    /// What it is for; the bits beyond the prefix are zero.
    pub destination: IpNetwork,
    /// Only packets from here use it; IPv6 only.
    pub source: Option<IpNetwork>,
    /// The table it is in.
    pub table: TableId,
    /// What happens to a packet.
    pub kind: RouteKind,
    /// Who made it.
    pub protocol: RouteProtocol,
    /// How far the destination is; meaningless for IPv6, where it is always the universe.
    pub scope: Scope,
    /// Which of several routes is taken: the one with the least. `None` is zero for IPv4 and 1024 for
    /// IPv6, which is how the kernel reports it.
    pub metric: Option<u32>,
    /// The service field of the packets it is for; zero is any.
    pub tos: u8,
    /// The next router. It may be of another family than the destination.
    pub gateway: Option<IpAddr>,
    /// The interface.
    pub output: Option<IfIndex>,
    /// Whether the gateway is taken for a neighbour although no other route says so.
    pub on_link: OnLink,
    /// The source address of packets that have none yet.
    pub preferred_source: Option<IpAddr>,
    /// The largest packet.
    pub mtu: Option<RouteMtu>,
    /// The largest TCP segment to ask for.
    pub advertised_mss: Option<u32>,
    /// Several ways, by weight, instead of `gateway` and `output`.
    pub multipath: Vec<NextHop>,
    /// The nexthop object it refers to; the kernel reports the ways as well.
    pub nexthop_id: Option<u32>,
}

/// The largest packet of a route, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct RouteMtu {
    /// Bytes.
    pub bytes: u32,
    /// Whether path MTU discovery may lower it.
    pub lock: MtuLock,
}

/// Whether path MTU discovery may lower a route's MTU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum MtuLock {
    /// It may.
    #[default]
    Free,
    /// It may not.
    Locked,
}

/// Whether a gateway is taken for a neighbour although no other route says so.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum OnLink {
    /// It is.
    Yes,
    /// The kernel looks it up and refuses what it cannot reach.
    #[default]
    No,
}

/// One of several ways.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct NextHop {
    /// The next router.
    pub gateway: Option<IpAddr>,
    /// The interface.
    pub output: Option<IfIndex>,
    /// How many of the sum of all weights go this way; 1 to 256.
    pub weight: u16,
    /// Whether the gateway is taken for a neighbour.
    pub on_link: OnLink,
}

impl Route {
    /// A route in the main table, without a way yet: [`via`](Self::via) or
    /// [`dev`](Self::dev) say it.
    pub fn new(destination: IpNetwork) -> Self {
        let destination = masked(destination);
        Self {
            destination,
            source: None,
            table: TableId::MAIN,
            kind: RouteKind::UNICAST,
            protocol: RouteProtocol::BOOT,
            scope: Scope::UNIVERSE,
            metric: None,
            tos: 0,
            gateway: None,
            output: None,
            on_link: OnLink::No,
            preferred_source: None,
            mtu: None,
            advertised_mss: None,
            multipath: Vec::new(),
            nexthop_id: None,
        }
    }

    /// A default route.
    pub fn default_of(family: Family) -> Self {
        Self::new(family.everything())
    }

    /// Packets go to this router.
    #[must_use]
    pub fn via(mut self, gateway: IpAddr) -> Self {
        self.gateway = Some(gateway);
        self.scope = Scope::UNIVERSE;
        self
    }

    /// Packets leave by this interface. Without a gateway the destination is on the link, and the
    /// scope of an IPv4 route becomes [`Scope::LINK`].
    #[must_use]
    pub fn dev(mut self, output: IfIndex) -> Self {
        self.output = Some(output);
        if self.gateway.is_none() && self.destination.is_ipv4() {
            self.scope = Scope::LINK;
        }
        self
    }

    /// The gateway is a neighbour although no other route says so.
    #[must_use]
    pub fn on_link(mut self) -> Self {
        self.on_link = OnLink::Yes;
        self
    }

    /// Puts it in a table.
    #[must_use]
    pub fn table(mut self, table: TableId) -> Self {
        self.table = table;
        self
    }

    /// Says who makes it.
    #[must_use]
    pub fn protocol(mut self, protocol: RouteProtocol) -> Self {
        self.protocol = protocol;
        self
    }

    /// Sets its kind. What is not forwarded has no scope to speak of, but the kernel wants
    /// [`Scope::HOST`] for local routes.
    #[must_use]
    pub fn kind(mut self, kind: RouteKind) -> Self {
        self.kind = kind;
        if kind == RouteKind::LOCAL && self.destination.is_ipv4() {
            self.scope = Scope::HOST;
        }
        self
    }

    /// Sets its scope.
    #[must_use]
    pub fn scope(mut self, scope: Scope) -> Self {
        self.scope = scope;
        self
    }

    /// Sets its metric.
    #[must_use]
    pub fn metric(mut self, metric: u32) -> Self {
        self.metric = Some(metric);
        self
    }

    /// Sets the source address of packets that have none yet.
    #[must_use]
    pub fn preferred_source(mut self, source: IpAddr) -> Self {
        self.preferred_source = Some(source);
        self
    }

    /// Sets the largest packet; path MTU discovery may still lower it.
    #[must_use]
    pub fn mtu(mut self, bytes: u32) -> Self {
        self.mtu = Some(RouteMtu { bytes, lock: MtuLock::Free });
        self
    }

    /// Its address family.
    pub fn family(&self) -> Family {
        Family::of(self.destination.ip())
    }

    /// Parses the payload of an `RTM_NEWROUTE` or `RTM_DELROUTE` message.
    ///
    /// # Errors
    ///
    /// When it is too short, is of neither IP family, or a field is out of range.
    pub fn parse(payload: &[u8]) -> Result<Self, ParseError> {
        let (fixed, attributes) = wire::split(payload, RTMSG_LEN)?;
        let family = Family::from_u8(fixed[0])?;
        let mut destination = family.unspecified();
        let mut source = None;
        let mut route = Self::new(family.everything());
        route.tos = fixed[3];
        route.table = TableId(u32::from(fixed[4]));
        route.protocol = RouteProtocol(fixed[5]);
        route.scope = Scope(fixed[6]);
        route.kind = RouteKind(fixed[7]);
        route.on_link = on_link(wire::read_u32(fixed, 8));
        for attribute in attributes {
            let attribute = attribute?;
            match attribute.kind {
                RTA_DST => destination = family.ip(&attribute)?,
                RTA_SRC => source = Some(family.ip(&attribute)?),
                RTA_OIF => route.output = Some(link::index(attribute.u32()?, "the route's link")?),
                RTA_GATEWAY => route.gateway = Some(family.ip(&attribute)?),
                RTA_VIA => route.gateway = Some(parse_via(&attribute)?),
                RTA_PRIORITY => route.metric = Some(attribute.u32()?),
                RTA_PREFSRC => route.preferred_source = Some(family.ip(&attribute)?),
                RTA_TABLE => route.table = TableId(attribute.u32()?),
                RTA_NH_ID => route.nexthop_id = Some(attribute.u32()?),
                RTA_METRICS => route.parse_metrics(attribute.nested())?,
                RTA_MULTIPATH => route.multipath = parse_multipath(family, attribute.value)?,
                _ => {}
            }
        }
        route.destination = masked(network(destination, fixed[1])?);
        if fixed[2] != 0 {
            let source = source.unwrap_or_else(|| family.unspecified());
            route.source = Some(masked(network(source, fixed[2])?));
        }
        Ok(route)
    }

    fn parse_metrics(&mut self, metrics: Attributes<'_>) -> Result<(), ParseError> {
        let (mut lock, mut mtu) = (0, None);
        for metric in metrics {
            let metric = metric?;
            match metric.kind {
                RTAX_LOCK => lock = metric.u32()?,
                RTAX_MTU => mtu = Some(metric.u32()?),
                RTAX_ADVMSS => self.advertised_mss = Some(metric.u32()?),
                _ => {}
            }
        }
        let lock = if lock & 1 << RTAX_MTU == 0 { MtuLock::Free } else { MtuLock::Locked };
        self.mtu = mtu.map(|bytes| RouteMtu { bytes, lock });
        Ok(())
    }

    fn emit_metrics(&self, message: &mut MessageBuilder<'_>) {
        if self.mtu.is_none() && self.advertised_mss.is_none() {
            return;
        }
        message.nest(RTA_METRICS | NESTED, |metrics| {
            if let Some(RouteMtu { bytes, lock }) = self.mtu {
                if lock == MtuLock::Locked {
                    metrics.attr_u32(RTAX_LOCK, 1 << RTAX_MTU);
                }
                metrics.attr_u32(RTAX_MTU, bytes);
            }
            if let Some(mss) = self.advertised_mss {
                metrics.attr_u32(RTAX_ADVMSS, mss);
            }
        });
    }
}

impl Entity for Route {
    const NEW: u16 = RTM_NEWROUTE;
    const DELETE: u16 = RTM_DELROUTE;

    fn emit(&self, message: &mut MessageBuilder<'_>) {
        let family = self.family();
        let table = u8::try_from(self.table.0).unwrap_or(0);
        let mut fixed = [
            family.as_u8(),
            self.destination.prefix(),
            self.source.map_or(0, |source| source.prefix()),
            self.tos,
            table,
            self.protocol.0,
            self.scope.0,
            self.kind.0,
            0,
            0,
            0,
            0,
        ];
        fixed[8..].copy_from_slice(&on_link_flag(self.on_link).to_ne_bytes());
        message.fixed(&fixed);
        if self.destination.prefix() != 0 {
            message.attr_ip(RTA_DST, self.destination.ip());
        }
        if let Some(source) = self.source {
            message.attr_ip(RTA_SRC, source.ip());
        }
        message.attr_u32(RTA_TABLE, self.table.0);
        if let Some(metric) = self.metric {
            message.attr_u32(RTA_PRIORITY, metric);
        }
        if let Some(source) = self.preferred_source {
            message.attr_ip(RTA_PREFSRC, source);
        }
        if let Some(gateway) = self.gateway {
            emit_gateway(message, family, gateway);
        }
        if let Some(output) = self.output {
            message.attr_u32(RTA_OIF, output.as_u32());
        }
        self.emit_metrics(message);
        if let Some(id) = self.nexthop_id {
            message.attr_u32(RTA_NH_ID, id);
        }
        if !self.multipath.is_empty() {
            message.nest(RTA_MULTIPATH | NESTED, |hops| {
                for hop in &self.multipath {
                    emit_hop(hops, family, hop);
                }
            });
        }
    }

    fn subject(&self) -> Subject {
        Subject::Route {
            destination: self.destination,
            gateway: self.gateway,
            index: self.output,
            table: self.table,
        }
    }
}

/// The number of a routing table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TableId(pub u32);

impl TableId {
    /// Looked up after the main table; empty at first.
    pub const DEFAULT: Self = Self(253);
    /// Where routes are unless somebody says otherwise.
    pub const MAIN: Self = Self(254);
    /// The host's own and broadcast addresses, kept by the kernel.
    pub const LOCAL: Self = Self(255);
}

impl fmt::Display for TableId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::DEFAULT => f.write_str("default"),
            Self::MAIN => f.write_str("main"),
            Self::LOCAL => f.write_str("local"),
            Self(number) => number.fmt(f),
        }
    }
}

/// Who made a route or rule (`RTPROT_*`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RouteProtocol(pub u8);

impl RouteProtocol {
    /// Nobody says.
    pub const UNSPEC: Self = Self(0);
    /// The kernel, along with an address.
    pub const KERNEL: Self = Self(2);
    /// `ip route` and such.
    pub const BOOT: Self = Self(3);
    /// The administrator.
    pub const STATIC: Self = Self(4);
}

impl fmt::Display for RouteProtocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// How far a destination or an address is valid (`RT_SCOPE_*`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Scope(pub u8);

impl Scope {
    /// Everywhere.
    pub const UNIVERSE: Self = Self(0);
    /// Within a site; IPv6 only.
    pub const SITE: Self = Self(200);
    /// On one link.
    pub const LINK: Self = Self(253);
    /// On this host.
    pub const HOST: Self = Self(254);
    /// Nowhere; removing an IPv4 route with this scope matches any.
    pub const NOWHERE: Self = Self(255);
}

/// What happens to a packet (`RTN_*`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RouteKind(pub u8);

impl RouteKind {
    /// It goes on its way.
    pub const UNICAST: Self = Self(1);
    /// It is for this host.
    pub const LOCAL: Self = Self(2);
    /// It is for everyone on the link.
    pub const BROADCAST: Self = Self(3);
    /// It is for one of many, this one.
    pub const ANYCAST: Self = Self(4);
    /// It is for a group.
    pub const MULTICAST: Self = Self(5);
    /// It is dropped.
    pub const BLACKHOLE: Self = Self(6);
    /// It is refused: host unreachable.
    pub const UNREACHABLE: Self = Self(7);
    /// It is refused: administratively prohibited.
    pub const PROHIBIT: Self = Self(8);
    /// The next table decides.
    pub const THROW: Self = Self(9);
}

/// Which routes to list. What is `None` matches all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct RouteFilter {
    /// Of this family.
    pub family: Option<Family>,
    /// In this table.
    pub table: Option<TableId>,
    /// Made by these.
    pub protocol: Option<RouteProtocol>,
    /// Leaving by this interface, by one of their ways at least.
    pub output: Option<IfIndex>,
}

impl RouteFilter {
    /// Every route.
    pub const ALL: Self = Self { family: None, table: None, protocol: None, output: None };

    /// The routes of a table.
    pub const fn table(table: TableId) -> Self {
        Self { table: Some(table), ..Self::ALL }
    }

    /// The routes made by somebody, in all tables.
    pub const fn protocol(protocol: RouteProtocol) -> Self {
        Self { protocol: Some(protocol), ..Self::ALL }
    }

    /// The routes of an interface, in all tables.
    pub const fn output(output: IfIndex) -> Self {
        Self { output: Some(output), ..Self::ALL }
    }

    /// Whether a route is one of those.
    pub fn matches(&self, route: &Route) -> bool {
        let output = |wanted: IfIndex| {
            route.output == Some(wanted) || route.multipath.iter().any(|h| h.output == Some(wanted))
        };
        self.family.is_none_or(|family| family == route.family())
            && self.table.is_none_or(|table| table == route.table)
            && self.protocol.is_none_or(|protocol| protocol == route.protocol)
            && self.output.is_none_or(output)
    }
}

/// A request for the routes of one family. The kernel filters too, but older ones do not.
#[derive(Debug, Clone, Copy)]
pub(crate) struct List {
    pub(crate) family: Family,
    pub(crate) filter: RouteFilter,
}

impl Request for List {
    fn message_type(&self) -> u16 {
        RTM_GETROUTE
    }

    fn flags(&self) -> u16 {
        0
    }

    fn emit(&self, message: &mut MessageBuilder<'_>) {
        let mut fixed = [0; RTMSG_LEN];
        fixed[0] = self.family.as_u8();
        fixed[5] = self.filter.protocol.map_or(0, |protocol| protocol.0);
        message.fixed(&fixed);
        if let Some(table) = self.filter.table {
            message.attr_u32(RTA_TABLE, table.0);
        }
        if let Some(output) = self.filter.output {
            message.attr_u32(RTA_OIF, output.as_u32());
        }
    }

    fn operation(&self) -> Operation {
        Operation::List
    }

    fn subject(&self) -> Subject {
        Subject::Named("routes")
    }
}

/// Whether a listed message is a route that was set, and not one that was learnt for one destination.
pub(crate) fn is_configured(payload: &[u8]) -> bool {
    payload.get(..RTMSG_LEN).is_none_or(|fixed| wire::read_u32(fixed, 8) & RTM_F_CLONED == 0)
}

fn masked(prefix: IpNetwork) -> IpNetwork {
    IpNetwork::new(prefix.network(), prefix.prefix()).unwrap_or(prefix)
}

fn on_link(flags: u32) -> OnLink {
    if flags & RTNH_F_ONLINK == 0 { OnLink::No } else { OnLink::Yes }
}

fn on_link_flag(on_link: OnLink) -> u32 {
    match on_link {
        OnLink::Yes => RTNH_F_ONLINK,
        OnLink::No => 0,
    }
}

fn emit_gateway(message: &mut MessageBuilder<'_>, family: Family, gateway: IpAddr) {
    let of = Family::of(gateway);
    if of == family {
        message.attr_ip(RTA_GATEWAY, gateway);
        return;
    }
    // struct rtvia: the family in two bytes, then the address.
    let mut via = [0; 18];
    via[..2].copy_from_slice(&u16::from(of.as_u8()).to_ne_bytes());
    let length = match gateway {
        IpAddr::V4(v4) => {
            via[2..6].copy_from_slice(&v4.octets());
            6
        }
        IpAddr::V6(v6) => {
            via[2..].copy_from_slice(&v6.octets());
            18
        }
    };
    message.attr(RTA_VIA, &via[..length]);
}

fn parse_via(attribute: &Attribute<'_>) -> Result<IpAddr, ParseError> {
    let Some((family, address)) = attribute.value.split_first_chunk::<2>() else {
        let found = attribute.value.len();
        return Err(ParseError::Attribute { kind: attribute.kind, expected: 6, found });
    };
    let family = u8::try_from(u16::from_ne_bytes(*family)).unwrap_or(0);
    Family::from_u8(family)?.ip(&Attribute { kind: attribute.kind, value: address })
}

/// `struct rtnexthop`: length, flags, weight less one, interface; then attributes.
fn emit_hop(message: &mut MessageBuilder<'_>, family: Family, hop: &NextHop) {
    let weight = u8::try_from(hop.weight.saturating_sub(1)).unwrap_or(u8::MAX);
    let [flags, ..] = on_link_flag(hop.on_link).to_le_bytes();
    let mut fixed = [0, 0, flags, weight, 0, 0, 0, 0];
    fixed[4..].copy_from_slice(&hop.output.map_or(0, IfIndex::as_u32).to_ne_bytes());
    message.sized(&fixed, |attributes| {
        if let Some(gateway) = hop.gateway {
            emit_gateway(attributes, family, gateway);
        }
    });
}

fn parse_multipath(family: Family, mut bytes: &[u8]) -> Result<Vec<NextHop>, ParseError> {
    let mut hops = Vec::new();
    while !bytes.is_empty() {
        let truncated =
            |needed| ParseError::Truncated { what: "next hop", needed, found: bytes.len() };
        let fixed = bytes.first_chunk::<RTNEXTHOP_LEN>().ok_or(truncated(RTNEXTHOP_LEN))?;
        let length = usize::from(wire::read_u16(fixed, 0));
        let rest = bytes.get(RTNEXTHOP_LEN..length).ok_or(truncated(length.max(RTNEXTHOP_LEN)))?;
        let mut hop = NextHop {
            gateway: None,
            output: IfIndex::new(wire::read_u32(fixed, 4)),
            weight: u16::from(fixed[3]) + 1,
            on_link: on_link(u32::from(fixed[2])),
        };
        for attribute in Attributes::new(rest) {
            let attribute = attribute?;
            match attribute.kind {
                RTA_GATEWAY => hop.gateway = Some(family.ip(&attribute)?),
                RTA_VIA => hop.gateway = Some(parse_via(&attribute)?),
                _ => {}
            }
        }
        hops.push(hop);
        bytes = bytes.get(wire::align(length)..).unwrap_or(&[]);
    }
    Ok(hops)
}

#[cfg(test)]
#[path = "tests/route.rs"]
mod tests;
