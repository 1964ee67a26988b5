//! What is asked of the kernel: an operation on an object.

use std::fmt;
use std::net::IpAddr;

use ipnetwork::IpNetwork;

use crate::wire::MessageBuilder;
use crate::{Direction, IfIndex, IfName, TableId};

pub(crate) const NLM_F_REQUEST: u16 = 0x01;
pub(crate) const NLM_F_ACK: u16 = 0x04;
pub(crate) const NLM_F_ECHO: u16 = 0x08;
pub(crate) const NLM_F_DUMP_INTR: u16 = 0x10;
pub(crate) const NLM_F_DUMP: u16 = 0x300;
pub(crate) const NLM_F_REPLACE: u16 = 0x100;
pub(crate) const NLM_F_EXCL: u16 = 0x200;
pub(crate) const NLM_F_CREATE: u16 = 0x400;
pub(crate) const NLM_F_APPEND: u16 = 0x800;

/// One request.
///
/// The crate's own are [`Add`], [`Append`], [`Replace`] and [`Delete`] over every [`Entity`], and
/// those of [`link`](crate::link). Others can be written by implementing this trait.
pub trait Request {
    /// `RTM_*`.
    fn message_type(&self) -> u16;

    /// `NLM_F_*`, without `NLM_F_REQUEST` and `NLM_F_ACK`, which are set as needed.
    fn flags(&self) -> u16;

    /// Appends the fixed struct and the attributes.
    fn emit(&self, message: &mut MessageBuilder<'_>);

    /// What is done, for messages about failures.
    fn operation(&self) -> Operation;

    /// What it is done to, for messages about failures.
    fn subject(&self) -> Subject;

    /// Whether the kernel answers with an object and not just with success.
    fn answers(&self) -> Answers {
        Answers::Acknowledgement
    }
}

/// What a request is answered with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answers {
    /// Success or failure.
    Acknowledgement,
    /// An object, or failure.
    Object,
}

/// An object that is described by the same message when it is added, replaced and removed.
pub trait Entity {
    /// `RTM_NEW*`.
    const NEW: u16;
    /// `RTM_DEL*`.
    const DELETE: u16;

    /// Appends the fixed struct and the attributes.
    fn emit(&self, message: &mut MessageBuilder<'_>);

    /// How failures call it.
    fn subject(&self) -> Subject;
}

/// Adds an object; an error when it is there already.
#[derive(Debug, Clone, Copy)]
pub struct Add<'a, E>(pub &'a E);

/// Adds an object, even if there is one with the same key. For routes and rules only.
#[derive(Debug, Clone, Copy)]
pub struct Append<'a, E>(pub &'a E);

/// Adds an object or replaces the one with the same key, whoever made that.
#[derive(Debug, Clone, Copy)]
pub struct Replace<'a, E>(pub &'a E);

/// Removes an object; an error when it is not there.
#[derive(Debug, Clone, Copy)]
pub struct Delete<'a, E>(pub &'a E);

macro_rules! verb {
    ($verb:ident, $kind:ident, $flags:expr, $operation:ident) => {
        impl<E: Entity> Request for $verb<'_, E> {
            fn message_type(&self) -> u16 {
                E::$kind
            }

            fn flags(&self) -> u16 {
                $flags
            }

            fn emit(&self, message: &mut MessageBuilder<'_>) {
                self.0.emit(message);
            }

            fn operation(&self) -> Operation {
                Operation::$operation
            }

            fn subject(&self) -> Subject {
                self.0.subject()
            }
        }
    };
}

verb!(Add, NEW, NLM_F_CREATE | NLM_F_EXCL, Add);
verb!(Append, NEW, NLM_F_CREATE | NLM_F_APPEND, Add);
verb!(Replace, NEW, NLM_F_CREATE | NLM_F_REPLACE, Replace);
verb!(Delete, DELETE, 0, Remove);

/// What was asked for. Its `Display` is a verb.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Operation {
    /// Something new, an error if it exists.
    Add,
    /// Something new or in place of the old.
    Replace,
    /// A change of something that exists.
    Change,
    /// The end of something.
    Remove,
    /// A look at one object.
    Query,
    /// A look at all objects of a kind.
    List,
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Add => "add",
            Self::Replace => "replace",
            Self::Change => "change",
            Self::Remove => "remove",
            Self::Query => "query",
            Self::List => "list",
        })
    }
}

/// The object of a request, as far as a message about a failure needs it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Subject {
    /// One interface.
    Link(LinkId),
    /// All interfaces of a group.
    LinkGroup(u32),
    /// An address of an interface.
    Address {
        /// Address and prefix length.
        network: IpNetwork,
        /// The interface.
        index: IfIndex,
    },
    /// A route.
    Route {
        /// Its destination.
        destination: IpNetwork,
        /// Its gateway, if it has one.
        gateway: Option<IpAddr>,
        /// Its interface, if it names one.
        index: Option<IfIndex>,
        /// Its table.
        table: TableId,
    },
    /// A routing rule.
    Rule {
        /// Its priority.
        priority: u32,
        /// 4 or 6.
        version: u8,
    },
    /// A neighbour entry.
    Neighbour {
        /// The neighbour's address.
        address: IpAddr,
        /// The interface.
        index: IfIndex,
    },
    /// A queueing discipline.
    Qdisc {
        /// What kind.
        kind: &'static str,
        /// The interface.
        index: IfIndex,
    },
    /// A traffic filter.
    Filter {
        /// The interface.
        index: IfIndex,
        /// Which way the packets go that it sees.
        direction: Direction,
        /// Its place among the filters.
        priority: u16,
    },
    /// Whatever has this name: a list of objects, or the object of a request from elsewhere.
    Named(&'static str),
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Link(link) => write!(f, "link {link}"),
            Self::LinkGroup(group) => write!(f, "links of group {group:#x}"),
            Self::Address { network, index } => write!(f, "address {network} dev {index}"),
            Self::Route { destination, gateway, index, table } => {
                write!(f, "route {destination}")?;
                if let Some(gateway) = gateway {
                    write!(f, " via {gateway}")?;
                }
                if let Some(index) = index {
                    write!(f, " dev {index}")?;
                }
                write!(f, " table {table}")
            }
            Self::Rule { priority, version } => write!(f, "IPv{version} rule {priority}"),
            Self::Neighbour { address, index } => write!(f, "neighbour {address} dev {index}"),
            Self::Qdisc { kind, index } => write!(f, "qdisc {kind} dev {index}"),
            Self::Filter { index, direction, priority } => {
                write!(f, "{direction} filter {priority} dev {index}")
            }
            Self::Named(name) => f.write_str(name),
        }
    }
}

/// An interface, by number or by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LinkId {
    /// By number: still the same interface after a change of name.
    Index(IfIndex),
    /// By name.
    Name(IfName),
}

impl From<IfIndex> for LinkId {
    fn from(index: IfIndex) -> Self {
        Self::Index(index)
    }
}

impl From<IfName> for LinkId {
    fn from(name: IfName) -> Self {
        Self::Name(name)
    }
}

impl From<&IfName> for LinkId {
    fn from(name: &IfName) -> Self {
        Self::Name(*name)
    }
}

impl fmt::Display for LinkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Index(index) => index.fmt(f),
            Self::Name(name) => name.fmt(f),
        }
    }
}
