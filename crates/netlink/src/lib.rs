#![doc = include_str!("../README.md")]

mod address;
mod batch;
mod connection;
mod error;
mod family;
pub mod link;
mod name;
mod neighbour;
mod netlink;
mod request;
mod route;
mod rule;
mod socket;
pub mod tc;
#[cfg(feature = "watch")]
pub mod watch;
pub mod wire;

pub use address::{Address, AddressFlags, Lifetime};
pub use batch::{Batch, Replies, Ticket};
pub use error::{Error, ParseError};
pub use family::Family;
pub use link::{
    AddrGenMode, AdminState, Birth, Link, LinkChange, LinkFlags, LinkKind, NetnsId, NewLink,
    NewLinkKind, OperState, Switch,
};
pub use name::{IfIndex, IfName, InvalidIfIndex, InvalidIfName, InvalidMacAddr, MacAddr};
pub use neighbour::{Neighbour, NeighbourFlags, NeighbourState};
pub use netlink::Netlink;
pub use request::{
    Add, Answers, Append, Delete, Entity, LinkId, Operation, Replace, Request, Subject,
};
pub use route::{
    MtuLock, NextHop, OnLink, Route, RouteFilter, RouteKind, RouteMtu, RouteProtocol, Scope,
    TableId,
};
pub use rule::{Mark, Rule, RuleAction, Sense};
pub use tc::Direction;

/// What fuzz targets reach beyond the public parsers. No part of the API.
#[cfg(fuzzing)]
#[doc(hidden)]
pub mod fuzzing {
    pub use crate::connection::kernel_words;

    /// What a notification says.
    #[cfg(feature = "watch")]
    pub fn event(
        kind: u16,
        payload: &[u8],
    ) -> Result<Option<crate::watch::Event>, crate::ParseError> {
        crate::watch::event(kind, payload)
    }
}

#[cfg(test)]
#[path = "tests/fixture.rs"]
mod fixture;
