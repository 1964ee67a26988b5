//! Flows as rows.

use std::{collections::HashMap, net::IpAddr};

use podwire_abi::{
    Address, Be16, Flow, FlowKey, Pending, Protocol, Slot, Verdict, direction, recent, verdict_flag,
};

use crate::{error::Result, tables::Tables};

/// One direction of a flow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FlowRow {
    /// The slot of the endpoint that sends or receives it.
    pub endpoint: u32,
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
    /// Whether the flow began with the other direction.
    pub is_reply: bool,
    /// Whether both sides have spoken.
    pub is_confirmed: bool,
    /// Whether it goes by the host stack.
    pub by_stack: bool,
    /// Of [`tcp_seen`](podwire_abi::tcp_seen).
    pub tcp: u32,
    /// Seconds since the last packet, while an agent ran.
    pub idle: u32,
    /// Packets.
    pub packets: u64,
    /// Their bytes, Ethernet headers included.
    pub bytes: u64,
}

impl Tables {
    /// The flows of the endpoints that there are, in order.
    ///
    /// # Errors
    ///
    /// If a map cannot be read.
    pub fn flows(&self) -> Result<Vec<FlowRow>> {
        let slots: HashMap<u16, Slot> = (0_u16..).zip(self.slots.values()?).collect();
        let now = self.state.get(0)?.seconds;
        let mut rows = Vec::new();
        for (key, flow) in self.flows.entries()? {
            rows.extend(
                slots.get(&key.endpoint).and_then(|slot| confirmed(&key, &flow, slot, now)),
            );
        }
        for (key, pending) in self.pending.entries()? {
            rows.extend(slots.get(&key.endpoint).and_then(|slot| begun(&key, &pending, slot, now)));
        }
        rows.sort_by_key(|row| {
            (row.source, row.destination, row.source_port, row.destination_port, row.endpoint)
        });
        Ok(rows)
    }
}

fn confirmed(key: &FlowKey, flow: &Flow, slot: &Slot, now: u32) -> Option<FlowRow> {
    let (packets, bytes) = recent::split(flow.recent);
    Some(FlowRow {
        is_reply: flow.verdict.has(verdict_flag::REPLY),
        is_confirmed: true,
        tcp: flow.tcp,
        idle: now.wrapping_sub(flow.seen),
        packets: flow.packets + packets,
        bytes: flow.bytes + bytes,
        ..row(key, flow.verdict, slot)?
    })
}

fn begun(key: &FlowKey, pending: &Pending, slot: &Slot, now: u32) -> Option<FlowRow> {
    Some(FlowRow {
        tcp: pending.tcp,
        idle: now.wrapping_sub(pending.seen),
        packets: pending.packets,
        bytes: pending.bytes,
        ..row(key, pending.verdict, slot)?
    })
}

/// None for a flow of an endpoint that has gone.
fn row(key: &FlowKey, verdict: Verdict, slot: &Slot) -> Option<FlowRow> {
    if !slot.is_taken() || verdict.stamp() < slot.born {
        return None;
    }
    let own = if key.peer.is_ipv4() { Address::from_ipv4_raw(slot.ipv4) } else { slot.ipv6 };
    let (local, peer) = ((own, key.local_port), (key.peer, key.peer_port));
    let (from, to): ((Address, Be16), (Address, Be16)) =
        if key.direction == direction::SENT { (local, peer) } else { (peer, local) };
    Some(FlowRow {
        endpoint: key.endpoint.into(),
        source: from.0.into(),
        destination: to.0.into(),
        source_port: from.1.get(),
        destination_port: to.1.get(),
        protocol: key.protocol,
        is_reply: false,
        is_confirmed: false,
        by_stack: key.direction == direction::RECEIVED || verdict.has(verdict_flag::TO_STACK),
        tcp: 0,
        idle: 0,
        packets: 0,
        bytes: 0,
    })
}
