#![doc = include_str!("../README.md")]
#![deny(unsafe_code)]

mod attach;
mod cpu;
mod error;
mod grace;
mod layout;
mod limits;
mod loader;
mod map;
pub mod memory;
mod object;
mod pin;
mod program;
pub mod shape;
mod spec;
mod sys;
mod test_run;
mod verifier;

pub use attach::{
    AttachMode, AttachPoint, Attachment, AttachmentInfo, ClsactFilter, Ensured, FilterSlot,
    TcxLink, TcxLinkInfo, probe_tcx, reap_links, tcx_programs,
};
pub use error::{Error, LinkOperation, MapOperation, PinOperation, Result};
pub use grace::grace_period;
pub use layout::{Difference, MapLayout, MapType, Mismatch, Property};
pub use limits::{raise_memlock, raise_open_files};
pub use loader::Loader;
pub use map::{
    Aggregate, Array, Entries, HashKind, HashMap, InsertMode, LpmTrie, Lru, LruHashMap, Map,
    MapInfo, MapKey, MapValue, PerCpu, PerCpuArray, PerCpuHashMap, Plain, Prefix, ProgramArray,
    Record, Removal, RingBuffer, TypedMap,
};
pub use object::Object;
pub use podwire_netlink::{Direction, IfIndex};
pub use program::{Program, ProgramInfo, ProgramTag};
pub use spec::{MapSpec, ObjectSpec, ProgramSpec, ProgramType, ReadOnly};
pub use test_run::{SkbContext, TestRun, TestRunOutput};
pub use verifier::VerifierLog;
