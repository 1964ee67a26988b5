use std::fmt;

use podwire_netlink::wire::MessageBuilder;
use podwire_netlink::{
    Add, Address, Delete, Error, LinkChange, Neighbour, Operation, Replace, Request, Route, Rule,
    Subject,
};

/// One step of a plan. It is a request and can be sent as such.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Change {
    /// A link gets other settings.
    Link(LinkChange),
    /// A new address.
    AddAddress(Address),
    /// An address gets other properties, or is put back.
    ReplaceAddress(Address),
    /// An address goes.
    RemoveAddress(Address),
    /// A neighbour entry that is new or gets other properties.
    ReplaceNeighbour(Neighbour),
    /// A neighbour entry goes.
    RemoveNeighbour(Neighbour),
    /// A new route.
    AddRoute(Route),
    /// A route gets other properties, or is put back.
    ReplaceRoute(Route),
    /// A route goes.
    RemoveRoute(Route),
    /// A new rule.
    AddRule(Rule),
    /// A rule goes.
    RemoveRule(Rule),
}

impl Change {
    /// Whether the kernel refused because all is as it should be already.
    pub(crate) fn is_made_by(&self, error: &Error) -> bool {
        match self {
            Self::RemoveAddress(_)
            | Self::RemoveNeighbour(_)
            | Self::RemoveRoute(_)
            | Self::RemoveRule(_) => error.is_not_found(),
            Self::Link(_)
            | Self::AddRule(_)
            | Self::AddAddress(_)
            | Self::ReplaceAddress(_)
            | Self::ReplaceNeighbour(_)
            | Self::AddRoute(_)
            | Self::ReplaceRoute(_) => false,
        }
    }
}

macro_rules! delegate {
    ($change:expr, $request:ident => $body:expr) => {
        match $change {
            Change::Link(change) => {
                let $request = change;
                $body
            }
            Change::AddAddress(object) => {
                let $request = &Add(object);
                $body
            }
            Change::ReplaceAddress(object) => {
                let $request = &Replace(object);
                $body
            }
            Change::RemoveAddress(object) => {
                let $request = &Delete(object);
                $body
            }
            Change::ReplaceNeighbour(object) => {
                let $request = &Replace(object);
                $body
            }
            Change::RemoveNeighbour(object) => {
                let $request = &Delete(object);
                $body
            }
            Change::AddRoute(object) => {
                let $request = &Add(object);
                $body
            }
            Change::ReplaceRoute(object) => {
                let $request = &Replace(object);
                $body
            }
            Change::RemoveRoute(object) => {
                let $request = &Delete(object);
                $body
            }
            Change::AddRule(object) => {
                let $request = &Add(object);
                $body
            }
            Change::RemoveRule(object) => {
                let $request = &Delete(object);
                $body
            }
        }
    };
}

impl Request for Change {
    fn message_type(&self) -> u16 {
        delegate!(self, request => request.message_type())
    }

    fn flags(&self) -> u16 {
        delegate!(self, request => request.flags())
    }

    fn emit(&self, message: &mut MessageBuilder<'_>) {
        delegate!(self, request => request.emit(message));
    }

    fn operation(&self) -> Operation {
        delegate!(self, request => request.operation())
    }

    fn subject(&self) -> Subject {
        delegate!(self, request => request.subject())
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.operation(), self.subject())
    }
}
