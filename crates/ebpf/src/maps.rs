//! The maps, named in `podwire_abi::map`. User space may override every size but `CONFIG`'s and
//! `METRICS`'.

use aya_ebpf::{
    bindings::BPF_F_NO_PREALLOC,
    btf_maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray},
    macros::btf_map,
};
use podwire_abi::{
    Address, Counter, FlowEntry, FlowKey, FragmentKey, FragmentPorts, IpcacheEntry,
    METRICS_ENTRIES, NatDevice, NatEntry, NatKey, NodeConfig, Slot,
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

// The maps of the programs at uplinks. A mapping in use must not make room for another's, so `NAT` is no
// LRU table: user space removes what is idle. Its memory follows its entries, since most nodes have few.
#[btf_map]
pub static NAT: HashMap<NatKey, NatEntry, 131072, { BPF_F_NO_PREALLOC as usize }> = HashMap::new();

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
