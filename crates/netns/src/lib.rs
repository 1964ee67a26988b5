#![doc = include_str!("../README.md")]

mod error;
mod netns;
mod sys;
pub mod sysctl;
mod veth;

pub use error::{Error, Taken};
pub use netns::{Netns, NetnsInode};
pub use veth::{LEAVING_GROUPS, UNFINISHED_GROUP, Veth, VethEnd, VethSpec, create_veth};
