//! Interfaces: what they are, making them, changing them.

use std::fmt;
use std::num::NonZeroU32;
use std::os::fd::{AsRawFd, BorrowedFd};

use crate::request::{Answers, NLM_F_CREATE, NLM_F_EXCL};
use crate::wire::{self, Attribute, Attributes, MessageBuilder, NESTED};
use crate::{IfIndex, IfName, LinkId, MacAddr, Operation, ParseError, Request, Subject};

pub(crate) const RTM_NEWLINK: u16 = 16;
pub(crate) const RTM_DELLINK: u16 = 17;
pub(crate) const RTM_GETLINK: u16 = 18;
const RTM_SETLINK: u16 = 19;

const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_LINK: u16 = 5;
const IFLA_QDISC: u16 = 6;
const IFLA_MASTER: u16 = 10;
const IFLA_TXQLEN: u16 = 13;
const IFLA_OPERSTATE: u16 = 16;
const IFLA_LINKINFO: u16 = 18;
const IFLA_IFALIAS: u16 = 20;
const IFLA_AF_SPEC: u16 = 26;
const IFLA_GROUP: u16 = 27;
const IFLA_NET_NS_FD: u16 = 28;
const IFLA_EXT_MASK: u16 = 29;
const IFLA_NUM_TX_QUEUES: u16 = 31;
const IFLA_NUM_RX_QUEUES: u16 = 32;
const IFLA_LINK_NETNSID: u16 = 37;
const IFLA_TARGET_NETNSID: u16 = 46;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const VETH_INFO_PEER: u16 = 1;
const IFLA_INET6_ADDR_GEN_MODE: u16 = 8;
const RTEXT_FILTER_SKIP_STATS: u32 = 1 << 3;

const IFINFOMSG_LEN: usize = 16;
const AF_INET6: u16 = 10;
const IFF_UP: u32 = 1;

/// An interface as the kernel reports it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Link {
    /// Its number.
    pub index: IfIndex,
    /// Its name.
    pub name: IfName,
    /// What kind of virtual device it is; `None` for hardware and the loopback interface.
    pub kind: Option<LinkKind>,
    /// Its flags.
    pub flags: LinkFlags,
    /// Its Ethernet address, if it has one.
    pub mac: Option<MacAddr>,
    /// The largest packet, in bytes, without the Ethernet header.
    pub mtu: u32,
    /// The text that somebody attached to it.
    pub alias: Option<String>,
    /// The number of the interface it belongs to; for a veth, the other end.
    pub peer: Option<IfIndex>,
    /// This namespace's number for the namespace in which `peer` counts, if that is another one.
    pub peer_netns: Option<NetnsId>,
    /// The bridge, VRF or bond it is a port of.
    pub master: Option<IfIndex>,
    /// The group it was put in; zero at first.
    pub group: u32,
    /// The kind of its root queueing discipline: `noqueue` for a veth that nobody touched.
    pub qdisc: Option<String>,
    /// Length of the transmit queue, in packets.
    pub queue_length: u32,
    /// Whether it is operational.
    pub state: OperState,
    /// How it makes IPv6 addresses of its own; `None` where IPv6 is off.
    pub addr_gen_mode: Option<AddrGenMode>,
}

impl Link {
    /// Parses the payload of an `RTM_NEWLINK` or `RTM_DELLINK` message.
    ///
    /// # Errors
    ///
    /// When it is too short, lacks a number or a name, or an attribute has the wrong length.
    pub fn parse(payload: &[u8]) -> Result<Self, ParseError> {
        let (fixed, attributes) = wire::split(payload, IFINFOMSG_LEN)?;
        let name = attributes.clone().flatten().find(|attribute| attribute.kind == IFLA_IFNAME);
        let name = name.ok_or(ParseError::Missing { field: "the link's name" })?;
        let mut link = Self {
            index: index(wire::read_u32(fixed, 4), "the link's index")?,
            name: if_name(&name, "the link's name")?,
            kind: None,
            flags: LinkFlags(wire::read_u32(fixed, 8)),
            mac: None,
            mtu: 0,
            alias: None,
            peer: None,
            peer_netns: None,
            master: None,
            group: 0,
            qdisc: None,
            queue_length: 0,
            state: OperState::UNKNOWN,
            addr_gen_mode: None,
        };
        for attribute in attributes {
            let attribute = attribute?;
            match attribute.kind {
                IFLA_ADDRESS => link.mac = attribute.array().ok().map(MacAddr),
                IFLA_MTU => link.mtu = attribute.u32()?,
                IFLA_LINK => link.peer = IfIndex::new(attribute.u32()?),
                IFLA_QDISC => link.qdisc = Some(attribute.text()),
                IFLA_MASTER => link.master = IfIndex::new(attribute.u32()?),
                IFLA_TXQLEN => link.queue_length = attribute.u32()?,
                IFLA_OPERSTATE => link.state = OperState(attribute.u8()?),
                IFLA_LINKINFO => {
                    for info in attribute.nested() {
                        let info = info?;
                        if info.kind == IFLA_INFO_KIND {
                            link.kind = Some(LinkKind::from_bytes(info.bytes_until_nul()));
                        }
                    }
                }
                IFLA_IFALIAS => link.alias = Some(attribute.text()),
                IFLA_GROUP => link.group = attribute.u32()?,
                IFLA_LINK_NETNSID => link.peer_netns = Some(NetnsId(attribute.i32()?)),
                IFLA_AF_SPEC => {
                    for family in attribute.nested() {
                        let family = family?;
                        if family.kind == AF_INET6 {
                            link.addr_gen_mode = parse_addr_gen_mode(family.nested())?;
                        }
                    }
                }
                _ => {}
            }
        }
        // Older kernels leave the number out where it is the same on both sides.
        if link.peer.is_none() && link.peer_netns.is_some() {
            link.peer = Some(link.index);
        }
        Ok(link)
    }

    /// Appends the link as the payload of an `RTM_NEWLINK` message, the way the kernel reports it.
    /// Requests are made from [`NewLink`] and [`LinkChange`]; this is for tests and simulations.
    pub fn emit(&self, message: &mut MessageBuilder<'_>) {
        ifinfomsg(message, Some(self.index), self.flags.0, 0);
        message.attr_str(IFLA_IFNAME, self.name.as_bytes());
        message.attr_u32(IFLA_TXQLEN, self.queue_length);
        message.attr_u8(IFLA_OPERSTATE, self.state.0);
        message.attr_u32(IFLA_MTU, self.mtu);
        message.attr_u32(IFLA_GROUP, self.group);
        if let Some(mac) = self.mac {
            message.attr(IFLA_ADDRESS, &mac.octets());
        }
        if let Some(peer) = self.peer {
            message.attr_u32(IFLA_LINK, peer.as_u32());
        }
        if let Some(NetnsId(id)) = self.peer_netns {
            message.attr_i32(IFLA_LINK_NETNSID, id);
        }
        if let Some(master) = self.master {
            message.attr_u32(IFLA_MASTER, master.as_u32());
        }
        if let Some(qdisc) = &self.qdisc {
            message.attr_str(IFLA_QDISC, qdisc.as_bytes());
        }
        if let Some(alias) = &self.alias {
            message.attr_str(IFLA_IFALIAS, alias.as_bytes());
        }
        if let Some(kind) = &self.kind {
            message.nest(IFLA_LINKINFO, |info| {
                info.attr_str(IFLA_INFO_KIND, kind.as_str().as_bytes());
            });
        }
        if let Some(mode) = self.addr_gen_mode {
            emit_addr_gen_mode(message, mode);
        }
    }

    /// Whether it is administratively up.
    pub fn is_up(&self) -> bool {
        self.flags.contains(LinkFlags::UP)
    }

    /// Whether it is a veth.
    pub fn is_veth(&self) -> bool {
        self.kind == Some(LinkKind::Veth)
    }
}

/// What kind of virtual device a link is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum LinkKind {
    /// One end of a pair.
    Veth,
    /// A bridge.
    Bridge,
    /// A device without effect.
    Dummy,
    /// A VXLAN tunnel.
    Vxlan,
    /// Any other; the kernel's name for it.
    Other(Box<str>),
}

impl LinkKind {
    /// The kernel's name for it.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Veth => "veth",
            Self::Bridge => "bridge",
            Self::Dummy => "dummy",
            Self::Vxlan => "vxlan",
            Self::Other(kind) => kind,
        }
    }

    fn from_bytes(kind: &[u8]) -> Self {
        match kind {
            b"veth" => Self::Veth,
            b"bridge" => Self::Bridge,
            b"dummy" => Self::Dummy,
            b"vxlan" => Self::Vxlan,
            other => Self::Other(String::from_utf8_lossy(other).into()),
        }
    }
}

impl fmt::Display for LinkKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// The flags of an interface (`IFF_*`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct LinkFlags(pub u32);

impl LinkFlags {
    /// Administratively up.
    pub const UP: Self = Self(IFF_UP);
    /// Its operational state is up.
    pub const RUNNING: Self = Self(1 << 6);
    /// Without ARP and neighbour discovery.
    pub const NOARP: Self = Self(1 << 7);
    /// Receives packets for others too.
    pub const PROMISC: Self = Self(1 << 8);
    /// It has a carrier.
    pub const LOWER_UP: Self = Self(1 << 16);

    /// Whether all of these are set.
    pub const fn contains(self, flags: Self) -> bool {
        self.0 & flags.0 == flags.0
    }
}

/// Whether an interface works (RFC 2863, `IF_OPER_*`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct OperState(pub u8);

impl OperState {
    /// The driver does not say; for the loopback interface that is as good as up.
    pub const UNKNOWN: Self = Self(0);
    /// It does not work.
    pub const DOWN: Self = Self(2);
    /// The interface below does not work; for a veth, the other end is down.
    pub const LOWER_LAYER_DOWN: Self = Self(3);
    /// It works.
    pub const UP: Self = Self(6);
}

/// How an interface makes IPv6 addresses of its own (`IN6_ADDR_GEN_MODE_*`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum AddrGenMode {
    /// From its MAC address.
    Eui64,
    /// Not at all: no link-local address appears by itself.
    None,
    /// From a secret that was set.
    StablePrivacy,
    /// From a secret that the kernel chose.
    Random,
}

impl AddrGenMode {
    fn from_u8(mode: u8) -> Option<Self> {
        Some(match mode {
            0 => Self::Eui64,
            1 => Self::None,
            2 => Self::StablePrivacy,
            3 => Self::Random,
            _ => return None,
        })
    }

    fn as_u8(self) -> u8 {
        match self {
            Self::Eui64 => 0,
            Self::None => 1,
            Self::StablePrivacy => 2,
            Self::Random => 3,
        }
    }
}

/// A namespace's own number for another namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct NetnsId(pub i32);

/// Whether an interface takes part in traffic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum AdminState {
    /// It does.
    Up,
    /// It does not, as every new interface.
    #[default]
    Down,
}

/// What a new interface gets at birth. The kernel ignores an alias and an address generation mode
/// here: those are for a [`LinkChange`].
#[derive(Debug, Clone, Copy)]
pub struct Birth<'a> {
    /// Its name.
    pub name: IfName,
    /// Its Ethernet address. Without one the kernel chooses at random, and udev may choose again.
    pub mac: Option<MacAddr>,
    /// Its MTU; for a veth 1500 otherwise.
    pub mtu: Option<u32>,
    /// Its number; the next free one otherwise.
    pub index: Option<IfIndex>,
    /// The namespace it is born in; that of the socket otherwise.
    pub netns: Option<BorrowedFd<'a>>,
    /// The group it is put in.
    pub group: Option<u32>,
    /// How many transmit and receive queues it has; for a veth one for each CPU otherwise.
    pub queues: Option<u32>,
    /// Whether it is up at once.
    pub state: AdminState,
}

impl Birth<'_> {
    /// An interface with this name and nothing else said.
    pub fn named(name: IfName) -> Self {
        Self {
            name,
            mac: None,
            mtu: None,
            index: None,
            netns: None,
            group: None,
            queues: None,
            state: AdminState::Down,
        }
    }

    fn emit(&self, message: &mut MessageBuilder<'_>) {
        let flags = match self.state {
            AdminState::Up => IFF_UP,
            AdminState::Down => 0,
        };
        ifinfomsg(message, self.index, flags, flags);
        message.attr_str(IFLA_IFNAME, self.name.as_bytes());
        if let Some(mac) = self.mac {
            message.attr(IFLA_ADDRESS, &mac.octets());
        }
        if let Some(mtu) = self.mtu {
            message.attr_u32(IFLA_MTU, mtu);
        }
        if let Some(group) = self.group {
            message.attr_u32(IFLA_GROUP, group);
        }
        if let Some(queues) = self.queues {
            message.attr_u32(IFLA_NUM_TX_QUEUES, queues);
            message.attr_u32(IFLA_NUM_RX_QUEUES, queues);
        }
        if let Some(netns) = self.netns {
            message.attr_i32(IFLA_NET_NS_FD, netns.as_raw_fd());
        }
    }
}

/// A request to create an interface.
#[derive(Debug, Clone, Copy)]
pub struct NewLink<'a> {
    /// What it gets at birth.
    pub birth: Birth<'a>,
    /// What it is.
    pub kind: NewLinkKind<'a>,
}

/// What to create.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub enum NewLinkKind<'a> {
    /// A pair; this is the other end, which is created by the same request, in its own namespace.
    Veth(Birth<'a>),
    /// A device without effect.
    Dummy,
    /// A bridge.
    Bridge,
}

impl<'a> NewLink<'a> {
    /// A pair of interfaces, both created by one request.
    pub fn veth(end: Birth<'a>, other: Birth<'a>) -> Self {
        Self { birth: end, kind: NewLinkKind::Veth(other) }
    }

    /// A device without effect.
    pub fn dummy(name: IfName) -> Self {
        Self { birth: Birth::named(name), kind: NewLinkKind::Dummy }
    }

    /// A bridge.
    pub fn bridge(name: IfName) -> Self {
        Self { birth: Birth::named(name), kind: NewLinkKind::Bridge }
    }
}

impl Request for NewLink<'_> {
    fn message_type(&self) -> u16 {
        RTM_NEWLINK
    }

    fn flags(&self) -> u16 {
        NLM_F_CREATE | NLM_F_EXCL
    }

    fn emit(&self, message: &mut MessageBuilder<'_>) {
        self.birth.emit(message);
        let kind = match self.kind {
            NewLinkKind::Veth(_) => "veth",
            NewLinkKind::Dummy => "dummy",
            NewLinkKind::Bridge => "bridge",
        };
        message.nest(IFLA_LINKINFO | NESTED, |info| {
            info.attr_str(IFLA_INFO_KIND, kind.as_bytes());
            if let NewLinkKind::Veth(other) = &self.kind {
                info.nest(IFLA_INFO_DATA | NESTED, |data| {
                    data.nest(VETH_INFO_PEER | NESTED, |peer| other.emit(peer));
                });
            }
        });
    }

    fn operation(&self) -> Operation {
        Operation::Add
    }

    fn subject(&self) -> Subject {
        Subject::Link(LinkId::Name(self.birth.name))
    }
}

/// A request to change an interface. Only what is said is changed.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use]
pub struct LinkChange {
    link: LinkId,
    flags: u32,
    flags_mask: u32,
    name: Option<IfName>,
    mac: Option<MacAddr>,
    mtu: Option<u32>,
    alias: Option<String>,
    group: Option<u32>,
    master: Option<Option<IfIndex>>,
    addr_gen_mode: Option<AddrGenMode>,
}

impl LinkChange {
    /// A change of nothing.
    pub fn of(link: impl Into<LinkId>) -> Self {
        Self {
            link: link.into(),
            flags: 0,
            flags_mask: 0,
            name: None,
            mac: None,
            mtu: None,
            alias: None,
            group: None,
            master: None,
            addr_gen_mode: None,
        }
    }

    /// The interface that is changed.
    pub fn link(&self) -> LinkId {
        self.link
    }

    /// Whether nothing is changed.
    pub fn is_empty(&self) -> bool {
        *self == Self::of(self.link)
    }

    /// Brings it up.
    pub fn up(self) -> Self {
        self.flag(LinkFlags::UP, Switch::On)
    }

    /// Brings it down.
    pub fn down(self) -> Self {
        self.flag(LinkFlags::UP, Switch::Off)
    }

    /// Switches flags on or off.
    pub fn flag(mut self, flags: LinkFlags, switch: Switch) -> Self {
        self.flags_mask |= flags.0;
        match switch {
            Switch::On => self.flags |= flags.0,
            Switch::Off => self.flags &= !flags.0,
        }
        self
    }

    /// Gives it another name. The interface must be named by its number in [`of`](Self::of).
    pub fn name(mut self, name: IfName) -> Self {
        self.name = Some(name);
        self
    }

    /// Gives it another Ethernet address.
    pub fn mac(mut self, mac: MacAddr) -> Self {
        self.mac = Some(mac);
        self
    }

    /// Sets the largest packet, in bytes.
    pub fn mtu(mut self, mtu: u32) -> Self {
        self.mtu = Some(mtu);
        self
    }

    /// Attaches a text of at most 255 bytes; an empty one takes it away.
    pub fn alias(mut self, alias: impl Into<String>) -> Self {
        self.alias = Some(alias.into());
        self
    }

    /// Puts it in a group.
    pub fn group(mut self, group: u32) -> Self {
        self.group = Some(group);
        self
    }

    /// Makes it a port of a bridge, VRF or bond.
    pub fn master(mut self, master: IfIndex) -> Self {
        self.master = Some(Some(master));
        self
    }

    /// Makes it nobody's port.
    pub fn no_master(mut self) -> Self {
        self.master = Some(None);
        self
    }

    /// Says how it makes IPv6 addresses of its own. A link-local address that it has made already
    /// stays, so this belongs into the request that brings it up, or before.
    pub fn addr_gen_mode(mut self, mode: AddrGenMode) -> Self {
        self.addr_gen_mode = Some(mode);
        self
    }
}

/// On or off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Switch {
    /// On.
    On,
    /// Off.
    Off,
}

impl Request for LinkChange {
    fn message_type(&self) -> u16 {
        RTM_SETLINK
    }

    fn flags(&self) -> u16 {
        0
    }

    fn emit(&self, message: &mut MessageBuilder<'_>) {
        let index = match self.link {
            LinkId::Index(index) => Some(index),
            LinkId::Name(_) => None,
        };
        ifinfomsg(message, index, self.flags, self.flags_mask);
        // With an index this is a new name, without one it says which link is meant.
        match (self.link, self.name) {
            (LinkId::Name(name), _) | (LinkId::Index(_), Some(name)) => {
                message.attr_str(IFLA_IFNAME, name.as_bytes());
            }
            (LinkId::Index(_), None) => {}
        }
        if let Some(mac) = self.mac {
            message.attr(IFLA_ADDRESS, &mac.octets());
        }
        if let Some(mtu) = self.mtu {
            message.attr_u32(IFLA_MTU, mtu);
        }
        if let Some(alias) = &self.alias {
            message.attr_str(IFLA_IFALIAS, alias.as_bytes());
        }
        if let Some(group) = self.group {
            message.attr_u32(IFLA_GROUP, group);
        }
        if let Some(master) = self.master {
            message.attr_u32(IFLA_MASTER, master.map_or(0, IfIndex::as_u32));
        }
        if let Some(mode) = self.addr_gen_mode {
            emit_addr_gen_mode(message, mode);
        }
    }

    fn operation(&self) -> Operation {
        Operation::Change
    }

    fn subject(&self) -> Subject {
        Subject::Link(self.link)
    }
}

/// A request for one interface; [`Replies::take_link`](crate::Replies::take_link) gives the answer.
#[derive(Debug, Clone, Copy)]
pub struct Query(pub LinkId);

/// A request for one interface of another network namespace, which has a number in this one: the
/// other end of a pair, by [`Link::peer_netns`] and [`Link::peer`].
///
/// Minimum kernel: 4.16 (`IFLA_TARGET_NETNSID`). Needs `CAP_NET_ADMIN` over that namespace.
#[derive(Debug, Clone, Copy)]
pub struct QueryIn(pub NetnsId, pub IfIndex);

impl Request for QueryIn {
    fn message_type(&self) -> u16 {
        RTM_GETLINK
    }

    fn flags(&self) -> u16 {
        0
    }

    fn emit(&self, message: &mut MessageBuilder<'_>) {
        ifinfomsg(message, Some(self.1), 0, 0);
        message.attr_u32(IFLA_EXT_MASK, RTEXT_FILTER_SKIP_STATS);
        message.attr_u32(IFLA_TARGET_NETNSID, self.0.0.cast_unsigned());
    }

    fn operation(&self) -> Operation {
        Operation::Query
    }

    fn subject(&self) -> Subject {
        Subject::Link(LinkId::Index(self.1))
    }

    fn answers(&self) -> Answers {
        Answers::Object
    }
}

/// A request to remove an interface; of a pair, both ends go.
#[derive(Debug, Clone, Copy)]
pub struct Remove(pub LinkId);

impl Request for Query {
    fn message_type(&self) -> u16 {
        RTM_GETLINK
    }

    fn flags(&self) -> u16 {
        0
    }

    fn emit(&self, message: &mut MessageBuilder<'_>) {
        emit_link_id(message, self.0);
        message.attr_u32(IFLA_EXT_MASK, RTEXT_FILTER_SKIP_STATS);
    }

    fn operation(&self) -> Operation {
        Operation::Query
    }

    fn subject(&self) -> Subject {
        Subject::Link(self.0)
    }

    fn answers(&self) -> Answers {
        Answers::Object
    }
}

impl Request for Remove {
    fn message_type(&self) -> u16 {
        RTM_DELLINK
    }

    fn flags(&self) -> u16 {
        0
    }

    fn emit(&self, message: &mut MessageBuilder<'_>) {
        emit_link_id(message, self.0);
    }

    fn operation(&self) -> Operation {
        Operation::Remove
    }

    fn subject(&self) -> Subject {
        Subject::Link(self.0)
    }
}

/// A request to remove every interface of a group at once; of a pair, both ends go.
///
/// The kernel waits for grace periods when interfaces go, and once for all that go together
/// (`rtnl_group_dellink` in net/core/rtnetlink.c). Groups are plain numbers that anybody may give an
/// interface; group 0, which everything is in from the start, is refused.
#[derive(Debug, Clone, Copy)]
pub struct RemoveGroup(pub NonZeroU32);

impl Request for RemoveGroup {
    fn message_type(&self) -> u16 {
        RTM_DELLINK
    }

    fn flags(&self) -> u16 {
        0
    }

    fn emit(&self, message: &mut MessageBuilder<'_>) {
        ifinfomsg(message, None, 0, 0);
        message.attr_u32(IFLA_GROUP, self.0.get());
    }

    fn operation(&self) -> Operation {
        Operation::Remove
    }

    fn subject(&self) -> Subject {
        Subject::LinkGroup(self.0.get())
    }
}

/// A request for all interfaces.
#[derive(Debug, Clone, Copy)]
pub(crate) struct List;

impl Request for List {
    fn message_type(&self) -> u16 {
        RTM_GETLINK
    }

    fn flags(&self) -> u16 {
        0
    }

    fn emit(&self, message: &mut MessageBuilder<'_>) {
        ifinfomsg(message, None, 0, 0);
        message.attr_u32(IFLA_EXT_MASK, RTEXT_FILTER_SKIP_STATS);
    }

    fn operation(&self) -> Operation {
        Operation::List
    }

    fn subject(&self) -> Subject {
        Subject::Named("links")
    }
}

pub(crate) fn index(number: u32, field: &'static str) -> Result<IfIndex, ParseError> {
    IfIndex::new(number).ok_or(ParseError::Range { field })
}

pub(crate) fn if_name(
    attribute: &Attribute<'_>,
    field: &'static str,
) -> Result<IfName, ParseError> {
    IfName::from_bytes(attribute.bytes_until_nul()).map_err(|_| ParseError::Range { field })
}

fn emit_link_id(message: &mut MessageBuilder<'_>, link: LinkId) {
    match link {
        LinkId::Index(index) => ifinfomsg(message, Some(index), 0, 0),
        LinkId::Name(name) => {
            ifinfomsg(message, None, 0, 0);
            message.attr_str(IFLA_IFNAME, name.as_bytes());
        }
    }
}

/// `struct ifinfomsg`: family, padding, type, index, flags, mask of the flags that are meant.
fn ifinfomsg(message: &mut MessageBuilder<'_>, index: Option<IfIndex>, flags: u32, mask: u32) {
    let mut fixed = [0; IFINFOMSG_LEN];
    fixed[4..8].copy_from_slice(&index.map_or(0, IfIndex::as_u32).to_ne_bytes());
    fixed[8..12].copy_from_slice(&flags.to_ne_bytes());
    fixed[12..].copy_from_slice(&mask.to_ne_bytes());
    message.fixed(&fixed);
}

fn emit_addr_gen_mode(message: &mut MessageBuilder<'_>, mode: AddrGenMode) {
    message.nest(IFLA_AF_SPEC | NESTED, |families| {
        families.nest(AF_INET6 | NESTED, |inet6| {
            inet6.attr_u8(IFLA_INET6_ADDR_GEN_MODE, mode.as_u8());
        });
    });
}

fn parse_addr_gen_mode(attributes: Attributes<'_>) -> Result<Option<AddrGenMode>, ParseError> {
    let mut mode = None;
    for attribute in attributes {
        let attribute = attribute?;
        if attribute.kind == IFLA_INET6_ADDR_GEN_MODE {
            mode = AddrGenMode::from_u8(attribute.u8()?);
        }
    }
    Ok(mode)
}

#[cfg(test)]
#[path = "tests/link.rs"]
mod tests;
