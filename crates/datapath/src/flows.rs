//! Flows: conversations as rows, what may be removed of them, and when.

mod filter;
mod state;
mod sweep;
mod table;

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
};

use podwire_abi::{
    Address, Be16, Flow, FlowKey, Pending, Protocol, Verdict, direction, recent, verdict_flag,
};

pub(crate) use self::table::{capacity, sets};
pub use self::{
    filter::{FlowDirection, FlowFilter},
    state::{FlowState, Timeout, Timeouts},
    sweep::Sweep,
    table::{FlowSet, FlowTable},
};
use self::{state::idle, sweep::Holders};
use crate::{error::Result, tables::Tables};

/// A conversation, as one endpoint sees it.
///
/// What two endpoints of the node say to each other by way of the host stack is there twice, once for
/// each: the stack may translate it between them. What goes straight is there once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FlowRow {
    /// The slot of the endpoint that sees it.
    pub endpoint: u32,
    /// The slot of who began it, if that is an endpoint of the node.
    pub source_endpoint: Option<u32>,
    /// The slot of the other side, if that is an endpoint of the node.
    pub destination_endpoint: Option<u32>,
    /// Who began it.
    pub source: IpAddr,
    /// The other side.
    pub destination: IpAddr,
    /// The port of who began it, or the identifier of an echo request.
    pub source_port: u16,
    /// The other side's port.
    pub destination_port: u16,
    /// The protocol.
    pub protocol: Protocol,
    /// How far it has come.
    pub state: FlowState,
    /// Which way its packets go.
    pub path: FlowPath,
    /// Seconds since the last packet of either side, while an agent ran.
    pub idle: u32,
    /// Seconds since the first packet, while an agent ran.
    pub age: u32,
    /// Packets of who began it.
    pub packets: u64,
    /// Their bytes, Ethernet headers included.
    pub bytes: u64,
    /// Packets of the other side.
    pub reply_packets: u64,
    /// Their bytes.
    pub reply_bytes: u64,
}

/// Which way the packets of a flow go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FlowPath {
    /// From one endpoint of the node to the other.
    Straight,
    /// By way of the host stack.
    Stack,
}

impl FlowPath {
    /// Its stable name, as tools print it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Straight => "straight",
            Self::Stack => "stack",
        }
    }
}

impl Tables {
    /// The flows of the endpoints that there are, in order.
    ///
    /// # Errors
    ///
    /// If a map cannot be read.
    pub fn flows(&self) -> Result<Vec<FlowRow>> {
        self.flows_that(&FlowFilter::default())
    }

    /// Those of them that `filter` means.
    ///
    /// # Errors
    ///
    /// If a map cannot be read.
    pub fn flows_that(&self, filter: &FlowFilter) -> Result<Vec<FlowRow>> {
        let (confirmed, pending) = self.conversations(filter)?;
        let mut rows: Vec<_> = confirmed.into_iter().chain(pending).map(|(row, _)| row).collect();
        rows.sort_by_key(|row| {
            (row.source, row.destination, row.source_port, row.destination_port, row.endpoint)
        });
        Ok(rows)
    }

    /// Forgets the flows that `filter` means, and says how many there were. Their next packets are judged
    /// as those of new flows.
    ///
    /// # Errors
    ///
    /// If a map cannot be read or changed.
    pub fn flush_flows(&self, filter: &FlowFilter) -> Result<usize> {
        let (confirmed, pending) = self.conversations(filter)?;
        let count = confirmed.len() + pending.len();
        if filter.is_everything() {
            // What endpoints that are no more have left goes as well.
            self.flows.clear();
            self.pending.clear();
            return Ok(count);
        }
        let keys = |found: Vec<Found>| found.into_iter().flat_map(|(_, keys)| keys);
        for key in keys(confirmed) {
            self.flows.remove(&key);
        }
        let pending: HashSet<_> = keys(pending).collect();
        self.pending.retain(|key, _| !pending.contains(key));
        Ok(count)
    }

    /// The confirmed conversations and the others.
    fn conversations(&self, filter: &FlowFilter) -> Result<(Vec<Found>, Vec<Found>)> {
        let holders = Holders::read(self)?;
        let now = self.state.get(0)?.seconds;
        let owned = self.flows.iter().filter(|(key, flow)| !holders.is_orphan(key, flow.verdict));
        let flows: HashMap<_, _> = owned.collect();
        let mut confirmed = Vec::new();
        for (key, flow) in &flows {
            let is_reply = flow.verdict.has(verdict_flag::REPLY);
            let mut others = holders.other_directions(key, flow.verdict);
            let other = others.find_map(|other| {
                let found = flows.get(&other)?;
                (found.verdict.has(verdict_flag::REPLY) != is_reply).then_some((other, found))
            });
            // The row is that of the direction which began it, unless only the other is left.
            if is_reply && other.is_some() {
                continue;
            }
            let Some(address) = holders.address(key) else { continue };
            let row = of_confirmed((key, flow), other.map(|(_, flow)| flow), address, now);
            if filter.fits(&row) {
                let keys = std::iter::once(*key).chain(other.map(|(key, _)| key)).collect();
                confirmed.push((row, keys));
            }
        }
        let mut pending = Vec::new();
        for (key, flow) in self.pending.iter() {
            if let Some(address) = holders.address(&key)
                && !holders.is_orphan(&key, flow.verdict)
            {
                let row = of_pending(&key, &flow, address, now);
                if filter.fits(&row) {
                    pending.push((row, vec![key]));
                }
            }
        }
        Ok((confirmed, pending))
    }
}

/// A row, and the keys that it was made of.
type Found = (FlowRow, Vec<FlowKey>);

/// Packets and bytes.
type Sums = (u64, u64);

fn of_confirmed(
    (key, flow): (&FlowKey, &Flow),
    other: Option<&Flow>,
    address: Address,
    now: u32,
) -> FlowRow {
    let sums = |flow: &Flow| {
        let (packets, bytes) = recent::split(flow.recent);
        (flow.packets() + packets, flow.bytes + bytes)
    };
    let both = || std::iter::once(flow).chain(other);
    let since = |of: fn(&Flow) -> u32| both().map(move |flow| idle(of(flow), now));
    let (own, others) = (sums(flow), other.map(sums).unwrap_or_default());
    FlowRow {
        state: FlowState::of_confirmed(key.protocol, flow),
        idle: since(|flow| flow.seen).min().unwrap_or_default(),
        age: since(|flow| flow.created).max().unwrap_or_default(),
        ..row(key, flow.verdict, address, own, others)
    }
}

fn of_pending(key: &FlowKey, pending: &Pending, address: Address, now: u32) -> FlowRow {
    let (own, others) =
        ((pending.packets, pending.bytes), (pending.reply_packets, pending.reply_bytes));
    FlowRow {
        state: FlowState::of_pending(key.protocol, pending),
        idle: idle(pending.seen, now),
        age: idle(pending.created, now),
        ..row(key, pending.verdict, address, own, others)
    }
}

/// The ends of a row, and what each has sent; `own` is the key's direction.
fn row(key: &FlowKey, verdict: Verdict, address: Address, own: Sums, others: Sums) -> FlowRow {
    let peer = verdict.has(verdict_flag::LOCAL_PEER).then(|| verdict.peer_slot());
    let local: End = (address, key.local_port, Some(key.endpoint.into()));
    let remote: End = (key.peer, key.peer_port, peer);
    // Whoever sends in the key's direction began it, unless that is the reply.
    let is_sent = key.direction == direction::SENT;
    let is_reply = verdict.has(verdict_flag::REPLY);
    let (from, to) = if is_sent == is_reply { (remote, local) } else { (local, remote) };
    let (began, met) = if is_reply { (others, own) } else { (own, others) };
    let is_by_stack = !is_sent || verdict.has(verdict_flag::TO_STACK);
    FlowRow {
        endpoint: key.endpoint.into(),
        source_endpoint: from.2,
        destination_endpoint: to.2,
        source: from.0.into(),
        destination: to.0.into(),
        source_port: from.1.get(),
        destination_port: to.1.get(),
        protocol: key.protocol,
        state: FlowState::Opening,
        path: if is_by_stack { FlowPath::Stack } else { FlowPath::Straight },
        idle: 0,
        age: 0,
        packets: began.0,
        bytes: began.1,
        reply_packets: met.0,
        reply_bytes: met.1,
    }
}

/// Address, port and slot of one end.
type End = (Address, Be16, Option<u32>);
