//! The maps, named in `podwire_abi::map`. User space may override every size but `CONFIG`'s and
//! `METRICS`'.

use aya_ebpf::{
    btf_maps::{Array, HashMap, LruHashMap, PerCpuArray},
    macros::btf_map,
};
use podwire_abi::{
    Address, Counter, FlowEntry, FlowKey, FragmentKey, FragmentPorts, IpcacheEntry,
    METRICS_ENTRIES, NodeConfig, Slot,
};

#[btf_map]
pub static CONFIG: Array<NodeConfig, 1> = Array::new();

#[btf_map]
pub static SLOTS: Array<Slot, 4096> = Array::new();

#[btf_map]
pub static LINKS: HashMap<u32, u32, 4096> = HashMap::new();

#[btf_map]
pub static IPCACHE: HashMap<Address, IpcacheEntry, 65536> = HashMap::new();

#[btf_map]
pub static FLOWS: LruHashMap<FlowKey, FlowEntry, 65536> = LruHashMap::new();

#[btf_map]
pub static FLOW_SENDERS: Array<u32, 4096> = Array::new();

#[btf_map]
pub static FRAGMENTS: LruHashMap<FragmentKey, FragmentPorts, 8192> = LruHashMap::new();

#[btf_map]
pub static METRICS: PerCpuArray<Counter, { METRICS_ENTRIES as usize }> = PerCpuArray::new();
