#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

mod attach;
mod check;
mod error;
mod mac;
mod note;
mod remove;
mod wire;

pub use attach::{Attached, Attachment, attach};
pub use check::{Difference, Expected, check};
pub use error::Error;
pub use mac::{container_mac, host_mac};
pub use remove::{remove, remove_others};
pub use wire::{Wired, unwire, wire};
