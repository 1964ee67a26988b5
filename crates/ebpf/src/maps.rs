//! The maps, named in `podwire_abi::map`. User space may override every size but `CONFIG`'s,
//! `STATE`'s, `REMOTES`' and those of the counters.

use aya_ebpf::{
    bindings::BPF_F_NO_PREALLOC,
    btf_maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray},
    macros::btf_map,
};
use podwire_abi::{
    Address, Counter, Flow, FlowEvent, FlowKey, FragmentKey, FragmentPorts, IpcacheEntry,
    METRICS_ENTRIES, NodeConfig, NodeState, Pending, PolicyKey, PolicyRow, PortRule, Slot,
};

/// Memory follows the entries.
const GROWS: usize = BPF_F_NO_PREALLOC as usize;

#[btf_map]
pub static CONFIG: Array<NodeConfig, 1> = Array::new();

#[btf_map]
pub static STATE: Array<NodeState, 1> = Array::new();

#[btf_map]
pub static SLOTS: Array<Slot, 4096> = Array::new();

#[btf_map]
pub static LINKS: HashMap<u32, u32, 4096> = HashMap::new();

#[btf_map]
pub static IPCACHE: HashMap<Address, IpcacheEntry, 532480, GROWS> = HashMap::new();

#[btf_map]
pub static PREFIXES: LpmTrie<Address, IpcacheEntry, 524288> = LpmTrie::new();

#[btf_map]
pub static REMOTES: Array<u64, { podwire_abi::REMOTES as usize }> = Array::new();

#[btf_map]
pub static FLOWS: HashMap<FlowKey, Flow, 262144, GROWS> = HashMap::new();

#[btf_map]
pub static PENDING: LruHashMap<FlowKey, Pending, 65536> = LruHashMap::new();

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

/// Where the entries of a flow are made, which are too large for the stack.
#[repr(C)]
pub struct Scratch {
    pub pending: Pending,
    pub there: Flow,
    pub back: Flow,
    pub there_key: FlowKey,
    pub back_key: FlowKey,
}

#[btf_map]
pub static SCRATCH: PerCpuArray<Scratch, 1> = PerCpuArray::new();
