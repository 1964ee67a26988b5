//! Flows: which one a packet belongs to, and whether the host stack carries it.
//!
//! A flow goes through the host stack in both directions or in none (docs/decisions/0003).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use podwire_datapath::abi::Reason;

use super::{
    Fate, Holder, Node,
    parse::{ICMP, ICMPV6, Ip, MALFORMED, Part, SCTP, TCP, UDP, array, u16},
};

/// One direction of a conversation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Flow {
    /// Who sends, and its port.
    pub from: (IpAddr, u16),
    /// Who receives, and its port.
    pub to: (IpAddr, u16),
    /// IP protocol number.
    pub protocol: u8,
}

impl Flow {
    pub fn reversed(self) -> Self {
        Self { from: self.to, to: self.from, ..self }
    }
}

/// Packets that went to the stack because of a flow's entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Counted {
    pub packets: u64,
    pub bytes: u64,
}

/// A packet that came in fragments.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Fragmented {
    pub from: IpAddr,
    pub to: IpAddr,
    pub identification: u32,
    /// As the fragment itself says it: a later one does not show what stands behind the extension
    /// headers that are within it.
    pub protocol: u8,
}

/// What a packet means to its flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Meaning {
    /// It opens one: judged in its own direction, whatever was before.
    Opens,
    /// It is part of one.
    Within,
    /// An ICMP error of the flow's receiver about a packet of it; `None` if the quote is not
    /// understood. The flow is the error's own direction: the quoted packet's reverse.
    Error(Option<Flow>),
}

impl Node {
    /// Finds out a packet's flow. First fragments leave their ports for later ones.
    pub fn flow_of(&mut self, ip: &Ip<'_>, fate: &mut Fate) -> Result<(Flow, Meaning), Reason> {
        let flow = |ports: (u16, u16)| Flow {
            from: (ip.from, ports.0),
            to: (ip.to, ports.1),
            protocol: ip.protocol,
        };
        let fragmented = |identification| Fragmented {
            from: ip.from,
            to: ip.to,
            identification,
            protocol: ip.protocol,
        };
        if let Part::Later(identification) = ip.part {
            let packet = fragmented(identification);
            fate.fragmented = Some(packet);
            let ports = self.fragments.get(&packet).ok_or(Reason::UnknownFragment)?;
            return Ok((flow(*ports), Meaning::Within));
        }
        let (ports, meaning) = transport(ip.protocol, ip.payload, ip.from)?;
        if let Part::First(identification) = ip.part {
            let packet = fragmented(identification);
            fate.fragmented = Some(packet);
            self.fragments.insert(packet, ports);
        }
        Ok((flow(ports), meaning))
    }

    /// Whether a packet that a pod sends belongs to a flow that the stack carries.
    pub fn belongs_to_stack(&mut self, flow: Flow, meaning: Meaning, fate: &mut Fate) -> bool {
        match meaning {
            Meaning::Opens => {
                for old in [flow, flow.reversed()] {
                    fate.flows.push(old);
                    self.flows.remove(&old);
                }
                false
            }
            Meaning::Error(about) => about.is_some_and(|flow| self.applies(flow, fate)),
            // No UDP packet opens a flow. Where the other direction is the stack's, this one may be what it
            // answers; connection tracking knows.
            Meaning::Within => {
                self.applies(flow, fate)
                    || flow.protocol == UDP && self.flows.contains_key(&flow.reversed())
            }
        }
    }

    /// Whether the stack carries this direction; the packet is counted then.
    fn applies(&mut self, flow: Flow, fate: &mut Fate) -> bool {
        fate.flows.push(flow);
        let Some(counted) = self.flows.get_mut(&flow) else { return false };
        counted.packets += 1;
        counted.bytes += fate.frame.len() as u64;
        true
    }

    /// Notes that a packet to a pod came out of the stack: if it is a pod's of this node, what
    /// answers it must go there. Errors and later fragments say nothing new.
    pub fn came_from_stack(&mut self, ip: &Ip<'_>, flow: Flow, meaning: Meaning, fate: &mut Fate) {
        let says_nothing =
            matches!(meaning, Meaning::Error(_)) || matches!(ip.part, Part::Later(_));
        let is_local = matches!(self.addresses.get(&ip.from), Some(Holder::Slot { .. }));
        if says_nothing || !is_local {
            return;
        }
        let answers = flow.reversed();
        self.flows.entry(answers).or_default();
        fate.flows.push(answers);
    }
}

/// Ports, or what stands for them, and what the packet means to its flow.
fn transport(
    protocol: u8,
    segment: &[u8],
    sender: IpAddr,
) -> Result<((u16, u16), Meaning), Reason> {
    match protocol {
        TCP => {
            // Up to the flags and the window: what follows is not looked at.
            let header = segment.get(..16).ok_or(MALFORMED)?;
            let (syn, ack) = (header[13] & 2 != 0, header[13] & 16 != 0);
            let meaning = if syn && !ack { Meaning::Opens } else { Meaning::Within };
            Ok(((u16(header, 0), u16(header, 2)), meaning))
        }
        UDP | SCTP => {
            let header = segment.get(..8).ok_or(MALFORMED)?;
            Ok(((u16(header, 0), u16(header, 2)), Meaning::Within))
        }
        ICMP | ICMPV6 => {
            let message = segment.get(..8).ok_or(MALFORMED)?;
            let ports = echo_ports(protocol, message);
            let meaning = match (protocol, message[0]) {
                (ICMP, 8) | (ICMPV6, 128) => Meaning::Opens,
                // RFC 792: unreachable, source quench, time exceeded, parameter problem. RFC 4443, 2.1.
                (ICMP, 3 | 4 | 11 | 12) | (ICMPV6, 0..128) => {
                    Meaning::Error(quoted(protocol, &segment[8..], sender))
                }
                _ => Meaning::Within,
            };
            Ok((ports, meaning))
        }
        _ => Ok(((0, 0), Meaning::Within)),
    }
}

/// The identifier of an echo is the port of the side that asks.
fn echo_ports(protocol: u8, message: &[u8]) -> (u16, u16) {
    let identifier = u16(message, 4);
    match (protocol, message[0]) {
        (ICMP, 8) | (ICMPV6, 128) => (identifier, 0),
        (ICMP, 0) | (ICMPV6, 129) => (0, identifier),
        _ => (0, 0),
    }
}

/// The flow that an error is about, in the direction of the error's sender, who received what it quotes.
/// A packet that the sender cannot have received is no flow of its.
fn quoted(protocol: u8, quote: &[u8], sender: IpAddr) -> Option<Flow> {
    let (from, to, protocol, segment): (IpAddr, IpAddr, u8, &[u8]) = if protocol == ICMP {
        let header = quote.get(..20)?;
        // Quotes with options are not understood.
        if header[0] != 0x45 {
            return None;
        }
        let address = |at| IpAddr::from(Ipv4Addr::from(array::<4>(header, at)));
        (address(12), address(16), header[9], &quote[20..])
    } else {
        let header = quote.get(..40)?;
        let address = |at| IpAddr::from(Ipv6Addr::from(array::<16>(header, at)));
        (address(8), address(24), header[6], &quote[40..])
    };
    // A quote need not hold a whole transport header (RFC 792: eight bytes of it).
    let ports = match protocol {
        TCP | UDP | SCTP => {
            let ports = segment.get(..4)?;
            (u16(ports, 0), u16(ports, 2))
        }
        ICMP | ICMPV6 => echo_ports(protocol, segment.get(..8)?),
        _ => (0, 0),
    };
    let received = Flow { from: (from, ports.0), to: (to, ports.1), protocol };
    (to == sender).then(|| received.reversed())
}
