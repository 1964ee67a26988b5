#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

mod error;
mod rows;
mod rule;
mod stated;
mod words;

pub use error::{Error, ParseError};
pub use podwire_abi::PortRule;
pub use rows::{Compiled, Rows, RuleList};
pub use rule::{Action, Direction, MAX_IDENTITY, Packet, Peer, Policy, Ports, Protocol, Rule};
pub use words::InWords;
