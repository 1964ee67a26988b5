//! Ports, or what stands for them, and what a packet means to its flow.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use podwire_datapath::abi::Reason;

use super::{
    Fate, Node,
    flows::shown,
    parse::{ICMP, ICMPV6, Ip, MALFORMED, Part, SCTP, TCP, UDP, array, u16},
};

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

/// What an IP packet carries.
#[derive(Clone, Copy, Debug)]
pub struct Segment {
    pub from_port: u16,
    pub to_port: u16,
    pub meaning: Meaning,
    /// Of [`shown`].
    pub shown: u8,
}

/// What a packet means to its flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Meaning {
    /// A SYN without an ACK: it opens one, whatever was before.
    Opens,
    /// An echo request: it is the first direction's, whatever else is known.
    Asks,
    /// It is part of one.
    Within,
    /// An ICMP error about a packet of one; `None` if the quote is not understood.
    Error(Option<Quote>),
}

/// A packet that an ICMP error is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quote {
    pub from: (IpAddr, u16),
    pub to: (IpAddr, u16),
    pub protocol: u8,
}

impl Node {
    /// Reads ports and meaning. First fragments leave their ports for later ones, which show nothing else.
    pub fn segment_of(&mut self, ip: &Ip<'_>, fate: &mut Fate) -> Result<Segment, Reason> {
        let fragmented = |identification| Fragmented {
            from: ip.from,
            to: ip.to,
            identification,
            protocol: ip.protocol,
        };
        if let Part::Later(identification) = ip.part {
            let packet = fragmented(identification);
            fate.fragmented = Some(packet);
            let &(from_port, to_port) =
                self.fragments.get(&packet).ok_or(Reason::UnknownFragment)?;
            return Ok(Segment { from_port, to_port, meaning: Meaning::Within, shown: 0 });
        }
        let segment = transport(ip.protocol, ip.payload)?;
        if let Part::First(identification) = ip.part {
            let packet = fragmented(identification);
            fate.fragmented = Some(packet);
            self.fragments.insert(packet, (segment.from_port, segment.to_port));
        }
        Ok(segment)
    }
}

fn transport(protocol: u8, segment: &[u8]) -> Result<Segment, Reason> {
    let within =
        |(from_port, to_port)| Segment { from_port, to_port, meaning: Meaning::Within, shown: 0 };
    match protocol {
        TCP => {
            // Up to the flags and the window: what follows is not looked at.
            let header = segment.get(..16).ok_or(MALFORMED)?;
            let ports = within((u16(header, 0), u16(header, 2)));
            let flags = header[13];
            let (fin, syn, rst, ack) =
                (flags & 1 != 0, flags & 2 != 0, flags & 4 != 0, flags & 16 != 0);
            let mut seen = 0;
            for (is_set, bit) in [
                (syn, shown::SYN),
                (fin, shown::FIN),
                (rst, shown::RST),
                (ack && !syn && !fin && !rst, shown::ACK),
            ] {
                if is_set {
                    seen |= bit;
                }
            }
            let meaning = if syn && !ack { Meaning::Opens } else { Meaning::Within };
            Ok(Segment { meaning, shown: seen, ..ports })
        }
        UDP | SCTP => {
            let header = segment.get(..8).ok_or(MALFORMED)?;
            Ok(within((u16(header, 0), u16(header, 2))))
        }
        ICMP | ICMPV6 => {
            let message = segment.get(..8).ok_or(MALFORMED)?;
            let meaning = match (protocol, message[0]) {
                (ICMP, 8) | (ICMPV6, 128) => Meaning::Asks,
                // RFC 792: unreachable, source quench, time exceeded, parameter problem. RFC 4443, 2.1.
                (ICMP, 3 | 4 | 11 | 12) | (ICMPV6, 0..128) => {
                    Meaning::Error(quoted(protocol, &segment[8..]))
                }
                _ => Meaning::Within,
            };
            Ok(Segment { meaning, ..within(echo_ports(protocol, message)) })
        }
        _ => Ok(within((0, 0))),
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

/// The packet that an error is about.
fn quoted(protocol: u8, quote: &[u8]) -> Option<Quote> {
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
        let address = |at| Ipv6Addr::from(array::<16>(header, at));
        // No packet had such an address: this is not about an IPv4 flow.
        if address(8).to_ipv4_mapped().is_some() || address(24).to_ipv4_mapped().is_some() {
            return None;
        }
        (address(8).into(), address(24).into(), header[6], &quote[40..])
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
    Some(Quote { from: (from, ports.0), to: (to, ports.1), protocol })
}
