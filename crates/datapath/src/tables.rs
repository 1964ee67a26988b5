//! The maps as rows.

use std::{
    net::IpAddr,
    path::{Path, PathBuf},
};

use podwire_abi::{
    Address, Counter, FlowEntry, FlowKey, Hook, IpcacheEntry, METRICS_ENTRIES, Mac, NodeConfig,
    Protocol, Reason, Slot, map, metric_index,
};
use podwire_bpf::{Array, HashMap, LruHashMap, PerCpuArray};

use crate::{
    datapath::{self, Delivery, Interface},
    error::Result,
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
    pub(crate) ipcache: HashMap<Address, IpcacheEntry>,
    pub(crate) flows: LruHashMap<FlowKey, FlowEntry>,
    pub(crate) flow_senders: Array<u32>,
    pub(crate) metrics: PerCpuArray<Counter>,
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

/// One address that the datapath knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IpcacheRow {
    /// The address.
    pub address: IpAddr,
    /// Who has it.
    pub identity: u32,
    /// The slot of a local endpoint.
    pub slot: Option<u32>,
    /// The slot's generation when this was written: nothing is delivered by an entry of another one.
    pub generation: u32,
}

/// One direction of a flow that the host stack carries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FlowRow {
    /// Who sends.
    pub source: IpAddr,
    /// Who receives.
    pub destination: IpAddr,
    /// The sender's port, or the identifier of an echo request.
    pub source_port: u16,
    /// The receiver's port, or the identifier of an echo reply.
    pub destination_port: u16,
    /// The protocol.
    pub protocol: Protocol,
    /// Packets that went to the stack because of this entry.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
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

impl Tables {
    /// Opens the pinned maps below `bpffs`.
    ///
    /// # Errors
    ///
    /// If a map is not there ([`is_not_found`](crate::Error::is_not_found)), may not be opened, or
    /// has another layout than this version's.
    pub fn open(bpffs: impl AsRef<Path>) -> Result<Self> {
        let folder = maps_folder(bpffs.as_ref());
        Ok(Self {
            config: Array::open(folder.join(map::CONFIG))?,
            slots: Array::open(folder.join(map::SLOTS))?,
            links: HashMap::open(folder.join(map::LINKS))?,
            ipcache: HashMap::open(folder.join(map::IPCACHE))?,
            flows: LruHashMap::open(folder.join(map::FLOWS))?,
            flow_senders: Array::open(folder.join(map::FLOW_SENDERS))?,
            metrics: PerCpuArray::open(folder.join(map::METRICS))?,
        })
    }

    /// How many endpoints there is room for.
    #[must_use]
    pub fn slot_count(&self) -> u32 {
        self.slots.len()
    }

    /// Kernel memory that the maps take, in bytes.
    ///
    /// # Errors
    ///
    /// If the kernel does not tell.
    pub fn memory_bytes(&self) -> Result<u64> {
        let maps = [
            self.config.as_map(),
            self.slots.as_map(),
            self.links.as_map(),
            self.ipcache.as_map(),
            self.flows.as_map(),
            self.flow_senders.as_map(),
            self.metrics.as_map(),
        ];
        let mut sum = 0;
        for map in maps {
            sum += map.memory_bytes()?;
        }
        Ok(sum)
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

    /// The addresses that the datapath knows, in order.
    ///
    /// # Errors
    ///
    /// If the map cannot be read.
    pub fn ipcache(&self) -> Result<Vec<IpcacheRow>> {
        let mut rows: Vec<_> = self
            .ipcache
            .entries()?
            .into_iter()
            .map(|(address, entry)| IpcacheRow {
                address: address.into(),
                identity: entry.identity,
                slot: (entry.slot != IpcacheEntry::NO_SLOT).then_some(entry.slot),
                generation: entry.generation,
            })
            .collect();
        rows.sort_by_key(|row| row.address);
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

    /// Notes who sends the flows that the table holds: programs of an earlier version did not.
    pub(crate) fn note_flow_senders(&self) -> Result<()> {
        for (key, _) in self.flows.entries()? {
            let Some(entry) = self.ipcache.get(&key.source)? else { continue };
            if entry.slot < self.slot_count() {
                self.flow_senders.set(entry.slot, &1)?;
            }
        }
        Ok(())
    }

    /// The flows that the host stack carries, in order.
    ///
    /// # Errors
    ///
    /// If the map cannot be read.
    pub fn flows(&self) -> Result<Vec<FlowRow>> {
        let mut rows: Vec<_> = self.flows.entries()?.into_iter().map(flow_row).collect();
        rows.sort_by_key(|row| {
            (row.source, row.destination, row.source_port, row.destination_port)
        });
        Ok(rows)
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

fn flow_row((key, entry): (FlowKey, FlowEntry)) -> FlowRow {
    FlowRow {
        source: key.source.into(),
        destination: key.destination.into(),
        source_port: key.source_port.get(),
        destination_port: key.destination_port.get(),
        protocol: key.protocol,
        packets: entry.packets,
        bytes: entry.bytes,
    }
}

pub(crate) fn maps_folder(bpffs: &Path) -> PathBuf {
    bpffs.join("maps")
}
