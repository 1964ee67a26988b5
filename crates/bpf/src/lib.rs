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
    MapInfo, MapKey, MapValue, MappedArray, PerCpu, PerCpuArray, PerCpuHashMap, Plain, Prefix,
    ProgramArray, Record, Removal, RingBuffer, TypedMap,
};
pub use object::Object;
pub use podwire_netlink::{Direction, IfIndex};
pub use program::{Program, ProgramInfo, ProgramTag};
pub use spec::{MapSpec, ObjectSpec, ProgramSpec, ProgramType, ReadOnly};
pub use test_run::{SkbContext, TestRun, TestRunOutput};
pub use verifier::VerifierLog;

/// What fuzz targets reach beyond the public functions. No part of the API.
#[cfg(fuzzing)]
#[doc(hidden)]
pub mod fuzzing {
    use crate::map::{MapKey, MapValue, PerCpu, Prefix};

    /// A per-CPU value out of the kernel's bytes, and those that would be given to the kernel.
    pub fn per_cpu<V: MapValue>(bytes: &[u8]) -> (PerCpu<V>, Vec<u8>) {
        let values = PerCpu::decode(bytes);
        let back = PerCpu::encode(values.as_slice());
        (values, back)
    }

    /// The bytes of a trie's key, there and back.
    pub fn trie_key<D: MapKey>(prefix: &Prefix<D>) -> (Vec<u8>, Option<Prefix<D>>) {
        crate::map::trie_key(prefix)
    }
}
