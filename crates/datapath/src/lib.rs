#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

mod attach;
mod datapath;
mod error;
mod flows;
mod halves;
mod ipcache;
mod nat;
mod policy;
mod slots;
mod state;
mod tables;
mod uplink;

pub use attach::{Attach, Attached, By, LinkPin, is_own_filter};
pub use datapath::{
    Datapath, Delivery, EndpointConfig, Interface, NodeSetup, Options, grace_period,
};
pub use error::Error;
pub use flows::{
    FlowDirection, FlowFilter, FlowPath, FlowRow, FlowSet, FlowState, FlowTable, Sweep, Timeout,
    Timeouts,
};
pub use nat::{
    LinkHeader, Nat, NatCount, NatEnd, NatFilter, NatOrigin, NatRow, NatSwept, PortRange,
    UplinkConfig,
};
pub use podwire_abi as abi;
pub use podwire_abi::{FlowEvent, map};
pub use podwire_bpf::AttachMode;
pub use podwire_policy::Compiled;
pub use policy::{Flow, Outcome, PolicyListing, Subject, Terms};
pub use tables::{EndpointRow, IpcacheRow, MapRow, MetricRow, Tables};

/// The compiled kernel programs: an ELF object for the BPF target, little-endian.
pub const OBJECT: &[u8] = aligned::OBJECT;

mod aligned {
    /// ELF readers want eight-byte alignment, which `include_bytes!` alone does not give.
    #[repr(C, align(8))]
    struct Aligned<B: ?Sized>(B);

    const ALIGNED: &Aligned<[u8]> = &Aligned(*include_bytes!("../objects/podwire.o"));
    pub(super) const OBJECT: &[u8] = &ALIGNED.0;
}
