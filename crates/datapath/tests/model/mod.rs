//! What the datapath does with a frame, said plainly: slices, maps of the standard library and `Option`, no
//! kernel.
//!
//! Written from DESIGN.md, `docs/decisions`, the documentation of `podwire_abi` and the RFCs named at
//! each place, not from the programs, so that a mistake in one is not in the other. It uses none of
//! `podwire_abi`'s code for addresses, flows, policies and slots for the same reason, only its names: hooks,
//! reasons, events and the mark; and the function that says where a remote address' ticket stands, which
//! is what writers and readers have agreed on.
//!
//! | file | says |
//! |---|---|
//! | `parse` | what a frame holds, and when it is malformed |
//! | `segment` | ports, what a packet means to its flow, fragments, quotes |
//! | `verdict` | who may send what, and where it goes |
//! | `judge` | what is decided about a flow: who is behind addresses, which direction, which way, whether policy permits |
//! | `policy` | what a policy says of a packet |
//! | `flows` | what is remembered: words that are believed, confirmed and pending flows, their life |
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
mod flows;
mod judge;
mod parse;
mod policy;
mod segment;
mod verdict;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

pub use flows::{Count, Flow, Flows, Key, Pending, Way, Word};
use podwire_datapath::abi::{FlowEvent, Hook, Reason};
pub use policy::{Policies, Policy, Rule, Subject};
pub use segment::Fragmented;

/// An Ethernet address.
pub type Mac = [u8; 6];

/// The number of a change. A word that was decided before a change is not believed after it.
pub type Ticket = u64;

/// All that the programs know of their node.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Node {
    /// `None` until the node is set up.
    pub config: Option<Config>,
    /// The last change.
    pub ticket: Ticket,
    /// The last change that concerns all flows.
    pub changed: Ticket,
    /// The flows' clock.
    pub seconds: u32,
    /// Endpoints' places.
    pub slots: Vec<Slot>,
    /// Host links, by interface index, and the slots of their endpoints.
    pub links: BTreeMap<u32, u32>,
    /// Who has an address.
    pub addresses: BTreeMap<IpAddr, Known>,
    /// Who has what no entry of [`addresses`](Self::addresses) is about.
    pub prefixes: Vec<(Prefix, Known)>,
    /// When remote addresses changed, by their places.
    pub remotes: BTreeMap<u32, Ticket>,
    /// What endpoints may send and receive.
    pub policies: Policies,
    /// What is remembered of conversations.
    pub flows: Flows,
    /// Ports of packets whose first fragment was seen.
    pub fragments: BTreeMap<Fragmented, (u16, u16)>,
    /// What happened to flows so far.
    pub events: BTreeMap<FlowEvent, u64>,
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
    /// The last change of anything that is said here.
    pub changed: Ticket,
    /// The last change of who has it.
    pub born: Ticket,
    /// Who has it.
    pub endpoint: Option<Endpoint>,
}

/// A pod.
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
    /// What policies know it by.
    pub identity: u32,
    /// What it may send.
    pub egress: Policy,
    /// What it may receive.
    pub ingress: Policy,
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

/// Who is behind an address or a prefix, as far as the node has been told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Known {
    /// What policies know it by.
    pub identity: u32,
    /// Number of the narrowest prefix around it that a policy speaks of.
    pub cidr: Option<u32>,
    /// The slot of the endpoint that has it, and the slot's generation when this was written.
    pub slot: Option<(u32, u32)>,
}

/// Addresses that begin alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prefix {
    /// One of them.
    pub address: IpAddr,
    /// Bits that are alike.
    pub length: u32,
}

impl Prefix {
    fn has(&self, address: IpAddr) -> bool {
        let alike = |a: u128, b: u128, bits: u32| {
            (a ^ b).leading_zeros() - (128 - bits) >= self.length.min(bits)
        };
        match (self.address, address) {
            (IpAddr::V4(a), IpAddr::V4(b)) => alike(u32::from(a).into(), u32::from(b).into(), 32),
            (IpAddr::V6(a), IpAddr::V6(b)) => alike(a.into(), b.into(), 128),
            _ => false,
        }
    }
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
    pub flows: BTreeSet<Key>,
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
            flows: BTreeSet::new(),
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

    fn count(&mut self, event: FlowEvent) {
        *self.events.entry(event).or_default() += 1;
    }
}
