#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

mod adopt;
mod attach;
mod check;
mod error;
mod mac;
mod note;
mod remove;
mod wire;

pub use adopt::{Adoption, adopt};
pub use attach::{Attached, Attachment, attach};
pub use check::{Expected, check, check_adopted};
pub use error::Error;
pub use mac::{container_mac, host_mac};
// What the functions here take and fail with: their users need no other crate for it.
pub use podwire_netlink::MacAddr;
pub use podwire_netns::{Error as NetnsError, Netns};
pub use remove::{Adopted, remove, remove_others};
pub use wire::{Wired, unwire, wire};
