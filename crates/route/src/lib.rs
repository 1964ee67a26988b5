#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

mod apply;
mod change;
mod compare;
mod ensure;
mod error;
mod plan;
mod state;

pub use apply::apply;
pub use change::Change;
pub use ensure::{
    Ensured, Removed, ensure_address, ensure_link, ensure_neighbour, ensure_route, ensure_rule,
    remove_address, remove_neighbour, remove_route, remove_rule,
};
pub use error::{Error, Failure};
pub use plan::{Conflict, Plan, plan};
pub use podwire_netlink::{Address, Neighbour, Route, Rule};
pub use state::{Desired, LinkState, Observed, Owner};
