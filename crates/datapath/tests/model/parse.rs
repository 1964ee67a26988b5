//! What a frame holds.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use podwire_datapath::abi::Reason;

use super::{Mac, Packet};

/// A header that is cut short or contradicts itself.
pub const MALFORMED: Reason = Reason::Malformed;

pub const TCP: u8 = 6;
pub const UDP: u8 = 17;
pub const SCTP: u8 = 132;
pub const ICMP: u8 = 1;
pub const ICMPV6: u8 = 58;

/// What a frame says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ethertype {
    Ipv4,
    Ipv6,
    Arp,
    Other,
}

/// An Ethernet header (IEEE 802.3).
#[derive(Clone, Copy, Debug)]
pub struct Ethernet<'f> {
    pub to: Mac,
    pub from: Mac,
    pub ethertype: Ethertype,
    pub payload: &'f [u8],
}

impl<'f> Ethernet<'f> {
    /// No tagged frame is forwarded: the nodes' pods have no VLANs.
    pub fn parse(frame: &'f [u8]) -> Result<Self, Reason> {
        let (header, payload) = frame.split_first_chunk::<14>().ok_or(MALFORMED)?;
        let ethertype = match u16(header, 12) {
            0x0800 => Ethertype::Ipv4,
            0x86dd => Ethertype::Ipv6,
            0x0806 => Ethertype::Arp,
            // IEEE 802.1Q and 802.1ad.
            0x8100 | 0x88a8 => return Err(Reason::Vlan),
            _ => Ethertype::Other,
        };
        Ok(Self { to: array(header, 0), from: array(header, 6), ethertype, payload })
    }

    /// Meant for many: the group bit is the first octet's lowest.
    pub fn is_for_many(&self) -> bool {
        self.to[0] & 1 == 1
    }
}

/// Which part of an IP packet a frame carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// All of it.
    Whole,
    /// The first fragment of the packet with this identification.
    First(u32),
    /// Another fragment.
    Later(u32),
}

/// An IP packet.
#[derive(Clone, Copy, Debug)]
pub struct Ip<'f> {
    pub from: IpAddr,
    pub to: IpAddr,
    /// TTL or hop limit.
    pub hops: u8,
    pub part: Part,
    /// What comes behind the headers that were followed.
    pub protocol: u8,
    /// From the transport header to the end of the frame; padding is not told from payload, which
    /// its receiver does.
    pub payload: &'f [u8],
    /// Whether an IPv6 extension header stands before the transport header.
    pub is_extended: bool,
}

impl<'f> Ip<'f> {
    /// The packet of a frame of that type; `None` if it is neither IPv4 nor IPv6.
    pub fn parse(ethernet: &Ethernet<'f>, packet: &Packet) -> Option<Result<Self, Reason>> {
        let is_offloaded = packet.gso_size != 0;
        match ethernet.ethertype {
            Ethertype::Ipv4 => Some(Self::parse_v4(ethernet.payload, is_offloaded)),
            Ethertype::Ipv6 => Some(Self::parse_v6(ethernet.payload, is_offloaded)),
            Ethertype::Arp | Ethertype::Other => None,
        }
    }

    /// RFC 791, 3.1.
    fn parse_v4(packet: &'f [u8], is_offloaded: bool) -> Result<Self, Reason> {
        let header = packet.get(..20).ok_or(MALFORMED)?;
        let (version, words) = (header[0] >> 4, usize::from(header[0] & 15));
        let options_end = words * 4;
        if version != 4 || options_end < 20 {
            return Err(MALFORMED);
        }
        // A packet that a device is to split may be longer than its length field can say (BIG TCP says
        // 0 then), and its length is not the frame's.
        let total = usize::from(u16(header, 2));
        let is_unbounded = is_offloaded && total == 0;
        if !is_unbounded && total < options_end || !is_offloaded && total > packet.len() {
            return Err(MALFORMED);
        }
        let payload = packet.get(options_end..).ok_or(MALFORMED)?;
        let protocol = header[9];
        let identification = u32::from(u16(header, 4));
        let (more, offset) = (header[6] & 0x20 != 0, u16(header, 6) & 0x1fff);
        // RFC 1858, 3.2.2: such a fragment rewrites a TCP header that was judged already.
        if offset == 1 && protocol == TCP {
            return Err(MALFORMED);
        }
        Ok(Self {
            from: Ipv4Addr::from(array(header, 12)).into(),
            to: Ipv4Addr::from(array(header, 16)).into(),
            hops: header[8],
            part: part(offset, more, identification),
            protocol,
            payload,
            is_extended: false,
        })
    }

    /// RFC 8200, 3.
    fn parse_v6(packet: &'f [u8], is_offloaded: bool) -> Result<Self, Reason> {
        let header = packet.get(..40).ok_or(MALFORMED)?;
        let rest = &packet[40..];
        if header[0] >> 4 != 6 || !is_offloaded && usize::from(u16(header, 4)) > rest.len() {
            return Err(MALFORMED);
        }
        let from = Ipv6Addr::from(array(header, 8));
        let to = Ipv6Addr::from(array(header, 24));
        // Not for the wire (RFC 4291, 2.5.5.2).
        if from.to_ipv4_mapped().is_some() || to.to_ipv4_mapped().is_some() {
            return Err(MALFORMED);
        }
        let chain = follow(header[6], rest)?;
        Ok(Self {
            from: from.into(),
            to: to.into(),
            hops: header[7],
            part: chain.part,
            protocol: chain.protocol,
            payload: chain.payload,
            is_extended: chain.payload.len() != rest.len(),
        })
    }
}

struct Chain<'f> {
    part: Part,
    protocol: u8,
    payload: &'f [u8],
}

/// Follows extension headers (RFC 8200, 4), but no more than six. What a later fragment carries
/// begins somewhere within the packet: there is no header to follow to.
fn follow(mut protocol: u8, mut rest: &[u8]) -> Result<Chain<'_>, Reason> {
    let mut part = Part::Whole;
    let mut followed = 0;
    while let Some(kind) = Extension::of(protocol) {
        if followed == 6 {
            return Err(Reason::ExtensionHeaders);
        }
        followed += 1;
        let start = rest.get(..8).ok_or(MALFORMED)?;
        let size = match kind {
            Extension::Fragment => 8,
            Extension::Authentication => (usize::from(start[1]) + 2) * 4,
            Extension::Options => (usize::from(start[1]) + 1) * 8,
        };
        // The last header may reach beyond the frame, a shorter one than that is cut.
        rest = rest.get(size..).ok_or(MALFORMED)?;
        protocol = start[0];
        if kind == Extension::Fragment {
            let offset = u16(start, 2);
            part = self::part(offset >> 3, offset & 1 == 1, u32::from_be_bytes(array(start, 4)));
            if matches!(part, Part::Later(_)) {
                break;
            }
        }
    }
    Ok(Chain { part, protocol, payload: rest })
}

/// Kinds of extension headers, by how their length is told.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Extension {
    /// Hop-by-hop and destination options, routing headers: in words of eight bytes, less one.
    Options,
    /// RFC 4302, 2.2: in words of four bytes, less two.
    Authentication,
    /// Eight bytes (RFC 8200, 4.5).
    Fragment,
}

impl Extension {
    fn of(protocol: u8) -> Option<Self> {
        match protocol {
            0 | 43 | 60 => Some(Self::Options),
            51 => Some(Self::Authentication),
            44 => Some(Self::Fragment),
            _ => None,
        }
    }
}

/// A fragment that begins the packet and ends it is no fragment (RFC 6946).
fn part(offset: u16, more: bool, identification: u32) -> Part {
    match (offset, more) {
        (0, false) => Part::Whole,
        (0, true) => Part::First(identification),
        _ => Part::Later(identification),
    }
}

/// The big-endian number at that place, which is there.
pub fn u16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes(array(bytes, at))
}

/// The bytes at that place, which are there.
pub fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut array = [0; N];
    array.copy_from_slice(&bytes[at..at + N]);
    array
}
