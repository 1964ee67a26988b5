//! The maps as rows.

use std::{
    net::IpAddr,
    path::{Path, PathBuf},
};

use ipnetwork::IpNetwork;
use podwire_abi::{
    Address, Counter, FlowEntry, FlowEvent, FragmentKey, FragmentPorts, Hook, IpcacheEntry,
    METRICS_ENTRIES, Mac, NodeConfig, NodeState, PendingSet, PolicyKey, PolicyRow, PortRule,
    Reason, Slot, WAYS, map, metric_index,
};
use podwire_bpf::{Array, HashMap, LpmTrie, LruHashMap, Map, MappedArray, PerCpuArray};

use crate::{
    datapath::{self, Delivery, Interface},
    error::Result,
    flows::{self, FlowTable},
    ipcache,
    nat::Nat,
    state::{Shared, check_layout},
};

/// The pinned maps of a node.
///
/// They can be opened while no agent runs. Reading takes the calls' own snapshot: rows that change
/// meanwhile may be missing or there.
#[derive(Debug)]
pub struct Tables {
    pub(crate) config: Array<NodeConfig>,
    pub(crate) slots: Array<Slot>,
    pub(crate) links: HashMap<u32, u32>,
    pub(crate) state: Array<NodeState>,
    pub(crate) ipcache: HashMap<Address, IpcacheEntry>,
    pub(crate) prefixes: LpmTrie<Address, IpcacheEntry>,
    pub(crate) remotes: Array<u64>,
    pub(crate) shared: Shared,
    pub(crate) flows: FlowTable<[FlowEntry; WAYS]>,
    pub(crate) pending: FlowTable<PendingSet>,
    pub(crate) policy: HashMap<PolicyKey, PolicyRow>,
    pub(crate) policy_rules: Array<PortRule>,
    pub(crate) fragments: LruHashMap<FragmentKey, FragmentPorts>,
    pub(crate) metrics: PerCpuArray<Counter>,
    pub(crate) flow_events: PerCpuArray<u64>,
    pub(crate) nat: Nat,
}

/// One endpoint of the slot array.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndpointRow {
    /// Its place in the slot array.
    pub slot: u32,
    /// The place's generation.
    pub generation: u32,
    /// Interface index of the host link.
    pub ifindex: u32,
    /// The identity.
    pub identity: u32,
    /// MAC of the container's interface.
    pub mac: Mac,
    /// MAC of the host link.
    pub host_mac: Mac,
    /// IPv4 first, at most one of each family.
    pub addresses: Vec<IpAddr>,
    /// How packets are handed to it.
    pub delivery: Delivery,
    /// Whose interface it is.
    pub interface: Interface,
}

/// One prefix that the datapath knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IpcacheRow {
    /// The prefix; an endpoint has whole addresses.
    pub prefix: IpNetwork,
    /// Who has it.
    pub identity: u32,
    /// The slot of a local endpoint.
    pub slot: Option<u32>,
    /// The slot's generation when this was written: nothing is delivered by an entry of another one.
    pub generation: u32,
    /// Number of the narrowest prefix that it lies in of those that policies speak of; 0 if there is none.
    pub cidr: u32,
    /// Whether nobody has told who is behind it: it is there since a policy speaks of it, and has the identity
    /// of the next wider prefix.
    pub is_derived: bool,
}

/// What became of packets at one place, summed over all CPUs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MetricRow {
    /// Where.
    pub hook: Hook,
    /// What and why.
    pub reason: Reason,
    /// Packets.
    pub packets: u64,
    /// Bytes, Ethernet headers included.
    pub bytes: u64,
}

/// What a map takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MapRow {
    /// Its name, one of [`abi::map`](podwire_abi::map).
    pub name: &'static str,
    /// How many entries there is room for.
    pub capacity: u32,
    /// Kernel memory that it takes, in bytes.
    pub bytes: u64,
}

impl Tables {
    /// Opens the pinned maps below `bpffs`.
    ///
    /// # Errors
    ///
    /// If a map is not there ([`is_not_found`](crate::Error::is_not_found)), may not be opened, or
    /// has another layout than this version's.
    pub fn open(bpffs: impl AsRef<Path>) -> Result<Self> {
        let bpffs = bpffs.as_ref();
        let folder = maps_folder(bpffs);
        let state: Array<NodeState> = Array::open(folder.join(map::STATE))?;
        let told = state.get(0)?;
        check_layout(&told, &folder)?;
        let seed = told.seed;
        Ok(Self {
            config: Array::open(folder.join(map::CONFIG))?,
            slots: Array::open(folder.join(map::SLOTS))?,
            links: HashMap::open(folder.join(map::LINKS))?,
            state,
            ipcache: HashMap::open(folder.join(map::IPCACHE))?,
            prefixes: LpmTrie::open(folder.join(map::PREFIXES))?,
            remotes: Array::open(folder.join(map::REMOTES))?,
            shared: Shared {
                state: MappedArray::open(folder.join(map::STATE))?,
                slots: MappedArray::open(folder.join(map::SLOTS))?,
            },
            flows: FlowTable::confirmed(
                MappedArray::open(folder.join(map::FLOWS))?,
                MappedArray::open(folder.join(map::FLOW_WAYS))?,
                seed,
            ),
            pending: FlowTable::unconfirmed(MappedArray::open(folder.join(map::PENDING))?, seed),
            policy: HashMap::open(folder.join(map::POLICY))?,
            policy_rules: Array::open(folder.join(map::POLICY_RULES))?,
            fragments: LruHashMap::open(folder.join(map::FRAGMENTS))?,
            metrics: PerCpuArray::open(folder.join(map::METRICS))?,
            flow_events: PerCpuArray::open(folder.join(map::FLOW_EVENTS))?,
            nat: Nat::open(bpffs)?,
        })
    }

    /// The table of confirmed flows, as it lies in memory.
    #[must_use]
    pub const fn confirmed(&self) -> &FlowTable<[FlowEntry; WAYS]> {
        &self.flows
    }

    /// The table of flows that are not confirmed, as it lies in memory.
    #[must_use]
    pub const fn unconfirmed(&self) -> &FlowTable<PendingSet> {
        &self.pending
    }

    /// How many endpoints there is room for.
    #[must_use]
    pub fn slot_count(&self) -> u32 {
        self.slots.len()
    }

    /// Every map: how large it is, and what it takes.
    ///
    /// # Errors
    ///
    /// If the kernel does not tell.
    pub fn map_rows(&self) -> Result<Vec<MapRow>> {
        let rows = map::ALL.into_iter().zip(self.maps()).map(|(name, map)| {
            let capacity = match (name, map.layout().max_entries) {
                (map::FLOWS | map::PENDING, sets) => flows::capacity(sets),
                (_, entries) => entries,
            };
            Ok(MapRow { name, capacity, bytes: map.memory_bytes()? })
        });
        rows.collect()
    }

    /// How many directions of confirmed flows there is room for, and how many others.
    #[must_use]
    pub fn flow_capacities(&self) -> (u32, u32) {
        (self.flows.capacity(), self.pending.capacity())
    }

    /// In the order of [`map::ALL`].
    fn maps(&self) -> impl Iterator<Item = &Map> {
        let first = [
            self.config.as_map(),
            self.slots.as_map(),
            self.links.as_map(),
            self.state.as_map(),
            self.ipcache.as_map(),
            self.prefixes.as_map(),
            self.remotes.as_map(),
        ];
        let last = [
            self.policy.as_map(),
            self.policy_rules.as_map(),
            self.fragments.as_map(),
            self.metrics.as_map(),
            self.flow_events.as_map(),
        ];
        let flows = self.flows.maps().chain(self.pending.maps());
        first.into_iter().chain(flows).chain(last).chain(self.nat.maps())
    }

    /// The endpoints, in the order of their slots.
    ///
    /// # Errors
    ///
    /// If the map cannot be read.
    pub fn endpoints(&self) -> Result<Vec<EndpointRow>> {
        let slots = self.slots.values()?;
        Ok((0..).zip(&slots).filter(|(_, slot)| slot.is_taken()).map(endpoint_row).collect())
    }

    /// What is known of a whole address.
    ///
    /// # Errors
    ///
    /// If the map cannot be read.
    pub fn holder(&self, address: IpAddr) -> Result<Option<IpcacheRow>> {
        let entry = self.ipcache.get(&address.into())?;
        Ok(entry.map(|entry| ipcache_row(address.into(), &entry)))
    }

    /// The addresses and prefixes that the datapath knows, in order.
    ///
    /// # Errors
    ///
    /// If a map cannot be read.
    pub fn ipcache(&self) -> Result<Vec<IpcacheRow>> {
        let whole = self.ipcache.entries()?.into_iter();
        let whole = whole.map(|(address, entry)| ipcache_row(IpAddr::from(address).into(), &entry));
        let wider = self.prefixes.entries()?.into_iter();
        let wider = wider.map(|(key, entry)| ipcache_row(ipcache::network(&key), &entry));
        let mut rows: Vec<_> = whole.chain(wider).collect();
        rows.sort_by_key(|row| (row.prefix.ip(), row.prefix.prefix()));
        Ok(rows)
    }

    /// The slot that a host link leads to, by the interface's index.
    ///
    /// # Errors
    ///
    /// If the map cannot be read.
    pub fn slot_of_link(&self, ifindex: u32) -> Result<Option<u32>> {
        Ok(self.links.get(&ifindex)?)
    }

    /// What happened to the flow tables so far, over all CPUs.
    ///
    /// # Errors
    ///
    /// If the map cannot be read.
    pub fn flow_events(&self) -> Result<Vec<(FlowEvent, u64)>> {
        let totals = self.flow_events.totals()?;
        let all = FlowEvent::ALL.iter().map(|&event| (event, totals[event as usize]));
        Ok(all.collect())
    }

    /// The counters that are not zero, in the order of hooks and reasons.
    ///
    /// # Errors
    ///
    /// If the map cannot be read.
    pub fn metrics(&self) -> Result<Vec<MetricRow>> {
        let mut rows = Vec::new();
        for &hook in Hook::ALL {
            for &reason in Reason::ALL {
                let index = metric_index(hook, reason);
                debug_assert!(index < METRICS_ENTRIES);
                let mut row = MetricRow { hook, reason, packets: 0, bytes: 0 };
                for counter in &self.metrics.get(index)? {
                    row.packets += counter.packets;
                    row.bytes += counter.bytes;
                }
                if row.packets != 0 {
                    rows.push(row);
                }
            }
        }
        Ok(rows)
    }
}

fn ipcache_row(prefix: IpNetwork, entry: &IpcacheEntry) -> IpcacheRow {
    IpcacheRow {
        prefix,
        identity: entry.identity,
        slot: (entry.slot != IpcacheEntry::NO_SLOT).then_some(entry.slot),
        generation: entry.generation,
        cidr: entry.cidr,
        is_derived: ipcache::is_derived(entry),
    }
}

fn endpoint_row((number, slot): (u32, &Slot)) -> EndpointRow {
    let mut addresses = Vec::new();
    if slot.ipv4.raw() != 0 {
        addresses.push(Address::from_ipv4_raw(slot.ipv4).into());
    }
    if !slot.ipv6.is_unspecified() {
        addresses.push(slot.ipv6.into());
    }
    EndpointRow {
        slot: number,
        generation: slot.generation,
        ifindex: slot.ifindex,
        identity: slot.identity,
        mac: slot.to_pod.destination(),
        host_mac: slot.to_pod.source(),
        addresses,
        delivery: datapath::delivery(slot.flags),
        interface: datapath::interface(slot.flags),
    }
}

pub(crate) fn maps_folder(bpffs: &Path) -> PathBuf {
    bpffs.join("maps")
}
