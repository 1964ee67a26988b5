//! What the datapath does with a frame, said plainly: slices and `Option`, no maps, no kernel.
//!
//! Written from DESIGN.md, `docs/decisions`, the documentation of `podwire_abi` and the RFCs named at
//! each place, not from the programs, so that a mistake in one is not in the other. It uses none of
//! `podwire_abi`'s code for addresses, flows and slots for the same reason, only its names: hooks,
//! reasons and the mark.
//!
//! | file | says |
//! |---|---|
//! | `parse` | what a frame holds, and when it is malformed |
//! | `flow` | ports, what a packet means to its flow, stack symmetry, fragments |
//! | `verdict` | who may send what, and where it goes |
//! | `answers` | bytes that change: routing, ARP replies, neighbour advertisements |
//!
//! What a test-run cannot show is not in it: the interface that a redirect names, and by which of the
//! kernel's redirects. A drop for [`Reason::Unchangeable`] is not either: it needs a kernel without memory.
#![allow(
    unreachable_pub,
    dead_code,
    reason = "every test binary compiles this module for itself and uses a part of it"
)]

mod answers;
mod flow;
mod parse;
mod verdict;

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

pub use flow::{Counted, Flow, Fragmented};
use podwire_datapath::abi::{Hook, Reason};

/// An Ethernet address.
pub type Mac = [u8; 6];

/// All that the programs know of their node.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Node {
    /// `None` until the node is set up.
    pub config: Option<Config>,
    /// Endpoints' places.
    pub slots: Vec<Slot>,
    /// Host links, by interface index, and the slots of their endpoints.
    pub links: BTreeMap<u32, u32>,
    /// Who has an address.
    pub addresses: BTreeMap<IpAddr, Holder>,
    /// Directions of flows that must go through the host stack, since their other direction does.
    pub flows: BTreeMap<Flow, Counted>,
    /// Ports of packets whose first fragment was seen.
    pub fragments: BTreeMap<Fragmented, (u16, u16)>,
}

/// A node that is set up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// The pods' IPv4 gateway.
    pub router4: Option<Ipv4Addr>,
    /// The pods' IPv6 gateway.
    pub router6: Option<Ipv6Addr>,
    /// MAC of `podwire_host`.
    pub host_mac: Mac,
    /// MAC of `podwire_net`.
    pub net_mac: Mac,
}

/// An endpoint's place: its generation changes whenever it changes hands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Slot {
    /// Counts the changes.
    pub generation: u32,
    /// Who has it.
    pub endpoint: Option<Endpoint>,
}

/// A pod, as far as frames are concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Interface index of its host link.
    pub ifindex: u32,
    /// MAC of the container's interface.
    pub mac: Mac,
    /// MAC of the host link: the gateway's, to the pod.
    pub host_mac: Mac,
    /// Its IPv4 address.
    pub v4: Option<Ipv4Addr>,
    /// Its IPv6 address.
    pub v6: Option<Ipv6Addr>,
    /// What must see its packets.
    pub through: Through,
    /// Another plugin made its interface, and is its gateway.
    pub chained: bool,
}

/// What of a pod's host link must see its packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Through {
    /// Nothing: they go straight to the container's interface.
    Peer,
    /// The queue, which carries a foreign discipline or filter: what the pod receives goes by it.
    Egress,
    /// The same, and what the pod sends goes by the link into the host stack. So does what other pods
    /// send to it, since a flow goes by the stack in both directions or in none.
    Stack,
}

impl Endpoint {
    fn owns(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(v4) => self.v4 == Some(v4),
            IpAddr::V6(v6) => self.v6 == Some(v6),
        }
    }
}

/// Who has an address, as far as the node has been told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holder {
    /// Nobody with a slot on this node.
    NoEndpoint,
    /// The endpoint that had this slot when this was written.
    Slot {
        /// The slot's number.
        number: u32,
        /// Its generation then.
        generation: u32,
    },
}

/// A frame at a hook.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Where it is judged.
    pub hook: Hook,
    /// The interface it is at.
    pub ifindex: u32,
    /// Its mark.
    pub mark: u32,
    /// Bytes of a segment, where a device is still to split it or has merged it; 0 otherwise.
    pub gso_size: u32,
    /// From the Ethernet header on.
    pub frame: Vec<u8>,
}

/// What a program answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// The packet goes to the interface that the program named.
    Redirect,
    /// It ends here.
    Shot,
    /// It goes on, to the next program or where it was going.
    Next,
}

/// What becomes of a packet; what becomes of the node's tables is in the [`Node`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fate {
    /// The program's answer.
    pub action: Action,
    /// What it is counted under.
    pub reason: Reason,
    /// The frame afterwards.
    pub frame: Vec<u8>,
    /// Its mark afterwards.
    pub mark: u32,
    /// Which flows' entries were looked at, made, changed or removed.
    pub flows: Vec<Flow>,
    /// Which packet's ports were looked up or noted.
    pub fragmented: Option<Fragmented>,
}

impl Node {
    /// Judges a packet, and notes what it changes.
    pub fn judge(&mut self, packet: &Packet) -> Fate {
        let mut fate = Fate {
            action: Action::Shot,
            reason: Reason::Malformed,
            frame: packet.frame.clone(),
            mark: packet.mark,
            flows: Vec::new(),
            fragmented: None,
        };
        let outcome = match packet.hook {
            Hook::FromContainer => self.judge_from_container(packet, &mut fate),
            Hook::ToContainer => self.judge_to_container(packet, &mut fate),
            Hook::FromHost => self.judge_from_host(packet, &mut fate),
            other => panic!("no program judges at {other}"),
        };
        match outcome {
            Ok((action, reason)) => (fate.action, fate.reason) = (action, reason),
            Err(reason) => fate.reason = reason,
        }
        fate
    }
}
