//! The maps, named in `podwire_abi::map`. User space may override every size but `CONFIG`'s,
//! `STATE`'s, `REMOTES`' and those of the counters.

use aya_ebpf::{
    bindings::{BPF_F_MMAPABLE, BPF_F_NO_PREALLOC},
    btf_maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray},
    macros::btf_map,
};
use podwire_abi::{
    Address, Counter, Flow, FlowEntry, FlowEvent, FlowKey, FragmentKey, FragmentPorts,
    IpcacheEntry, METRICS_ENTRIES, NatDevice, NatEntry, NatKey, NodeConfig, NodeState,
    PendingEntry, PendingSet, PolicyKey, PolicyRow, PortRule, Slot, WAYS,
};

use crate::{
    flow::{Question, Sides},
    packet::Packet,
};

/// Memory follows the entries.
const GROWS: usize = BPF_F_NO_PREALLOC as usize;

/// The first element is at the beginning of a page, and those of 64 bytes are a cache line each: only of arrays that
/// user space may map is that so. It does so with the flows' tables.
const ALIGNED: usize = BPF_F_MMAPABLE as usize;

#[btf_map]
pub static CONFIG: Array<NodeConfig, 1> = Array::new();

#[btf_map]
pub static STATE: Array<NodeState, 1, ALIGNED> = Array::new();

#[btf_map]
pub static SLOTS: Array<Slot, 4096, ALIGNED> = Array::new();

#[btf_map]
pub static LINKS: HashMap<u32, u32, 4096> = HashMap::new();

#[btf_map]
pub static IPCACHE: HashMap<Address, IpcacheEntry, 532480, GROWS> = HashMap::new();

#[btf_map]
pub static PREFIXES: LpmTrie<Address, IpcacheEntry, 524288> = LpmTrie::new();

#[btf_map]
pub static REMOTES: Array<u64, { podwire_abi::REMOTES as usize }> = Array::new();

#[btf_map]
pub static FLOWS: Array<[FlowEntry; WAYS], 65536, ALIGNED> = Array::new();

#[btf_map]
pub static FLOW_WAYS: Array<u64, 16384, ALIGNED> = Array::new();

#[btf_map]
pub static PENDING: Array<PendingSet, 16384, ALIGNED> = Array::new();

#[btf_map]
pub static POLICY: HashMap<PolicyKey, PolicyRow, 65536, GROWS> = HashMap::new();

#[btf_map]
pub static POLICY_RULES: Array<PortRule, 65536> = Array::new();

#[btf_map]
pub static FRAGMENTS: LruHashMap<FragmentKey, FragmentPorts, 8192> = LruHashMap::new();

#[btf_map]
pub static METRICS: PerCpuArray<Counter, { METRICS_ENTRIES as usize }> = PerCpuArray::new();

#[btf_map]
pub static FLOW_EVENTS: PerCpuArray<u64, { FlowEvent::ENTRIES as usize }> = PerCpuArray::new();

/// What is too large for the stack, which programs and the functions they call share.
#[repr(C)]
pub struct Scratch {
    /// What a pod sends.
    pub packet: Packet,
    pub question: Question,
    /// The flow that an ICMP error is about.
    pub quoted: Sides,
    pub pending: PendingEntry,
    pub there: Flow,
    pub back: Flow,
    pub there_key: FlowKey,
    pub back_key: FlowKey,
}

#[btf_map]
pub static SCRATCH: PerCpuArray<Scratch, 1> = PerCpuArray::new();

// The maps of the programs at uplinks. A mapping in use must not make room for another's, so `NAT` is no
// LRU table: user space removes what is idle. Its memory follows its entries, since most nodes have few.
#[btf_map]
pub static NAT: HashMap<NatKey, NatEntry, 131072, GROWS> = HashMap::new();

#[btf_map]
pub static NAT_INBOUND: LruHashMap<NatKey, u32, 16384> = LruHashMap::new();

#[btf_map]
pub static NAT_FRAGMENTS: LruHashMap<FragmentKey, FragmentPorts, 8192> = LruHashMap::new();

#[btf_map]
pub static NAT_DEVICES: HashMap<u32, NatDevice, 256> = HashMap::new();

#[btf_map]
pub static NAT_PODS: LpmTrie<Address, u32, 4096> = LpmTrie::new();

#[btf_map]
pub static NAT_EXCLUDED: LpmTrie<Address, u32, 65536> = LpmTrie::new();
