//! Frames made by hand, with right checksums, for senders that do as they please.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// An Ethernet address.
pub type Mac = [u8; 6];

/// The Ethernet broadcast address.
pub const BROADCAST: Mac = [0xff; 6];

const IPV4: u16 = 0x0800;
const ARP: u16 = 0x0806;
const IPV6: u16 = 0x86dd;
const VLAN: u16 = 0x8100;

const UDP: u8 = 17;

/// Source and destination of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    /// Source.
    pub from: Mac,
    /// Destination.
    pub to: Mac,
}

impl Link {
    /// An Ethernet frame (IEEE 802.3) of this type.
    #[must_use]
    pub fn frame(self, ether_type: u16, payload: &[u8]) -> Vec<u8> {
        [&self.to[..], &self.from, &ether_type.to_be_bytes(), payload].concat()
    }

    /// An IP packet with the given transport protocol and payload, TTL or hop limit 64.
    ///
    /// # Panics
    /// When the addresses are of different families, or the payload is longer than 65,000 bytes.
    #[must_use]
    pub fn ip(self, from: IpAddr, to: IpAddr, protocol: u8, payload: &[u8]) -> Vec<u8> {
        assert!(payload.len() <= 65_000, "payload of {} bytes", payload.len());
        let length = u16::try_from(payload.len()).unwrap_or(u16::MAX);
        match (from, to) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                self.frame(IPV4, &[&ipv4_header(from, to, protocol, length)[..], payload].concat())
            }
            (IpAddr::V6(from), IpAddr::V6(to)) => {
                self.frame(IPV6, &[&ipv6_header(from, to, protocol, length)[..], payload].concat())
            }
            _ => panic!("{from} and {to} are of different families"),
        }
    }

    /// A UDP datagram (RFC 768).
    ///
    /// # Panics
    /// As [`ip`](Self::ip).
    #[must_use]
    pub fn udp(self, from: SocketAddr, to: SocketAddr, payload: &[u8]) -> Vec<u8> {
        let length = u16::try_from(payload.len() + 8).unwrap_or(u16::MAX);
        let mut datagram = Vec::with_capacity(payload.len() + 8);
        datagram.extend(from.port().to_be_bytes());
        datagram.extend(to.port().to_be_bytes());
        datagram.extend(length.to_be_bytes());
        datagram.extend([0, 0]);
        datagram.extend(payload);
        let sum = transport_checksum(from.ip(), to.ip(), UDP, &datagram);
        // Zero would mean that there is no checksum.
        let sum = if sum == 0 { 0xffff } else { sum };
        datagram[6..8].copy_from_slice(&sum.to_be_bytes());
        self.ip(from.ip(), to.ip(), UDP, &datagram)
    }

    /// An ICMP (RFC 792) or ICMPv6 (RFC 4443) echo request.
    ///
    /// # Panics
    /// As [`ip`](Self::ip).
    #[must_use]
    pub fn echo_request(
        self,
        from: IpAddr,
        to: IpAddr,
        identifier: u16,
        sequence: u16,
        payload: &[u8],
    ) -> Vec<u8> {
        let kind = if from.is_ipv4() { 8 } else { 128 };
        let head = [[kind, 0], [0, 0], identifier.to_be_bytes(), sequence.to_be_bytes()];
        self.icmp(from, to, [&head.concat(), payload].concat())
    }

    /// An ICMP or ICMPv6 message, whose checksum is filled in.
    ///
    /// # Panics
    /// As [`ip`](Self::ip), and when the message has no header.
    #[must_use]
    pub fn icmp(self, from: IpAddr, to: IpAddr, mut message: Vec<u8>) -> Vec<u8> {
        let (protocol, sum) = match from {
            IpAddr::V4(_) => (1, checksum(&[&message])),
            IpAddr::V6(_) => (58, transport_checksum(from, to, 58, &message)),
        };
        message[2..4].copy_from_slice(&sum.to_be_bytes());
        self.ip(from, to, protocol, &message)
    }

    /// A neighbour solicitation for `target` (RFC 4861) with the frame's source as link-layer
    /// address; without one when `from` is unspecified, as in duplicate address detection.
    #[must_use]
    pub fn neighbour_solicitation(self, from: Ipv6Addr, to: Ipv6Addr, target: Ipv6Addr) -> Vec<u8> {
        let mut message = vec![135, 0, 0, 0, 0, 0, 0, 0];
        message.extend(target.octets());
        if !from.is_unspecified() {
            message.extend([1, 1]);
            message.extend(self.from);
        }
        let mut frame = self.icmp(from.into(), to.into(), message);
        limit_hops(&mut frame, 255);
        frame
    }

    /// An unsolicited neighbour advertisement (RFC 4861) that claims `target` for `mac`.
    #[must_use]
    pub fn neighbour_advertisement(
        self,
        from: Ipv6Addr,
        to: Ipv6Addr,
        target: Ipv6Addr,
        mac: Mac,
    ) -> Vec<u8> {
        const OVERRIDE: u8 = 0x20;
        let mut message = vec![136, 0, 0, 0, OVERRIDE, 0, 0, 0];
        message.extend(target.octets());
        message.extend([2, 1]);
        message.extend(mac);
        let mut frame = self.icmp(from.into(), to.into(), message);
        limit_hops(&mut frame, 255);
        frame
    }
}

/// What an ARP packet (RFC 826) says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arp {
    /// Whether it asks or answers.
    pub operation: ArpOperation,
    /// Who says to be `sender`.
    pub sender_mac: Mac,
    /// Whose MAC is told.
    pub sender: Ipv4Addr,
    /// Whose answer it is; zero in a request.
    pub target_mac: Mac,
    /// Whose MAC is asked for.
    pub target: Ipv4Addr,
}

/// See [`Arp`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ArpOperation {
    /// Who has `target`?
    Request,
    /// `sender` is at `sender_mac`.
    Reply,
}

impl Arp {
    /// As a frame on the given link.
    #[must_use]
    pub fn frame(&self, link: Link) -> Vec<u8> {
        let operation = match self.operation {
            ArpOperation::Request => 1,
            ArpOperation::Reply => 2,
        };
        let mut packet = vec![0, 1, 8, 0, 6, 4, 0, operation];
        packet.extend(self.sender_mac);
        packet.extend(self.sender.octets());
        packet.extend(self.target_mac);
        packet.extend(self.target.octets());
        link.frame(ARP, &packet)
    }

    /// Of a frame, if it is one.
    #[must_use]
    pub fn parse(frame: &[u8]) -> Option<Self> {
        let packet = frame.get(14..42)?;
        if frame[12..14] != ARP.to_be_bytes() || packet[..7] != [0, 1, 8, 0, 6, 4, 0] {
            return None;
        }
        let address =
            |at: usize| Ipv4Addr::new(packet[at], packet[at + 1], packet[at + 2], packet[at + 3]);
        Some(Self {
            operation: match packet[7] {
                1 => ArpOperation::Request,
                2 => ArpOperation::Reply,
                _ => return None,
            },
            sender_mac: packet[8..14].try_into().ok()?,
            sender: address(14),
            target_mac: packet[18..24].try_into().ok()?,
            target: address(24),
        })
    }
}

/// The same frame with a VLAN tag (IEEE 802.1Q) of this number.
///
/// # Panics
/// When the frame is shorter than an Ethernet header.
#[must_use]
pub fn tagged(frame: &[u8], vlan: u16) -> Vec<u8> {
    let (addresses, rest) = frame.split_at(12);
    [addresses, &VLAN.to_be_bytes(), &vlan.to_be_bytes(), rest].concat()
}

/// Sets the TTL or hop limit of an IP packet in a frame, and corrects the IPv4 header checksum.
///
/// # Panics
/// When the frame holds no whole IP header.
pub fn limit_hops(frame: &mut [u8], hops: u8) {
    if frame[12..14] == IPV6.to_be_bytes() {
        frame[14 + 7] = hops;
        return;
    }
    frame[14 + 8] = hops;
    frame[14 + 10..14 + 12].fill(0);
    let end = 14 + usize::from(frame[14] & 0xf) * 4;
    let sum = checksum(&[&frame[14..end]]);
    frame[14 + 10..14 + 12].copy_from_slice(&sum.to_be_bytes());
}

/// Source and destination address of the IP packet in an untagged frame, if there is one.
#[must_use]
pub fn ip_addresses(frame: &[u8]) -> Option<(IpAddr, IpAddr)> {
    let packet = frame.get(14..)?;
    if frame[12..14] == IPV4.to_be_bytes() {
        let address = |at: usize| Some(<[u8; 4]>::try_from(packet.get(at..at + 4)?).ok()?.into());
        Some((address(12)?, address(16)?))
    } else if frame[12..14] == IPV6.to_be_bytes() {
        let address = |at: usize| Some(<[u8; 16]>::try_from(packet.get(at..at + 16)?).ok()?.into());
        Some((address(8)?, address(24)?))
    } else {
        None
    }
}

/// The Internet checksum (RFC 1071) of parts, all but the last of even length.
#[must_use]
pub fn checksum(parts: &[&[u8]]) -> u16 {
    let mut sum: u32 = 0;
    for pair in parts.iter().flat_map(|part| part.chunks(2)) {
        sum += u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from((sum & 0xffff) + (sum >> 16)).unwrap_or(u16::MAX)
}

fn transport_checksum(from: IpAddr, to: IpAddr, protocol: u8, segment: &[u8]) -> u16 {
    let length = u32::try_from(segment.len()).unwrap_or(u32::MAX).to_be_bytes();
    let tail = [&length[..], &[0, 0, 0, protocol]].concat();
    match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            checksum(&[&from.octets(), &to.octets(), &tail, segment])
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            checksum(&[&from.octets(), &to.octets(), &tail, segment])
        }
        _ => panic!("{from} and {to} are of different families"),
    }
}

fn ipv4_header(from: Ipv4Addr, to: Ipv4Addr, protocol: u8, length: u16) -> [u8; 20] {
    let mut header = [0; 20];
    header[0] = 0x45;
    header[2..4].copy_from_slice(&(length + 20).to_be_bytes());
    header[8] = 64;
    header[9] = protocol;
    header[12..16].copy_from_slice(&from.octets());
    header[16..20].copy_from_slice(&to.octets());
    let sum = checksum(&[&header]);
    header[10..12].copy_from_slice(&sum.to_be_bytes());
    header
}

fn ipv6_header(from: Ipv6Addr, to: Ipv6Addr, protocol: u8, length: u16) -> [u8; 40] {
    let mut header = [0; 40];
    header[0] = 0x60;
    header[4..6].copy_from_slice(&length.to_be_bytes());
    header[6] = protocol;
    header[7] = 64;
    header[8..24].copy_from_slice(&from.octets());
    header[24..40].copy_from_slice(&to.octets());
    header
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINK: Link = Link { from: [2, 0, 0, 0, 0, 1], to: [2, 0, 0, 0, 0, 2] };

    #[test]
    fn checksum_is_that_of_rfc_1071() {
        // The example of its section 3.
        assert_eq!(checksum(&[&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]]), !0xddf2);
        assert_eq!(checksum(&[&[1]]), !0x0100);
    }

    #[test]
    fn headers_and_datagrams_sum_up_to_nothing() {
        let frame =
            LINK.udp("10.1.2.3:4000".parse().unwrap(), "10.1.2.4:53".parse().unwrap(), b"odd");
        assert_eq!(frame.len(), 14 + 20 + 8 + 3);
        assert_eq!(checksum(&[&frame[14..34]]), 0);
        let (from, to) = ip_addresses(&frame).unwrap();
        assert_eq!(transport_checksum(from, to, UDP, &frame[34..]), 0);

        let frame =
            LINK.udp("[fd00::1]:4000".parse().unwrap(), "[fd00::2]:53".parse().unwrap(), b"x");
        let (from, to) = ip_addresses(&frame).unwrap();
        assert_eq!((from.to_string(), to.to_string()), ("fd00::1".into(), "fd00::2".into()));
        assert_eq!(transport_checksum(from, to, UDP, &frame[54..]), 0);
    }

    #[test]
    fn a_changed_ttl_keeps_the_header_right() {
        let mut frame = LINK.echo_request([10, 0, 0, 1].into(), [10, 0, 0, 2].into(), 1, 2, b"");
        limit_hops(&mut frame, 1);
        assert_eq!((frame[22], checksum(&[&frame[14..34]])), (1, 0));
        assert_eq!(checksum(&[&frame[34..]]), 0);
    }

    #[test]
    fn arp_goes_both_ways() {
        let arp = Arp {
            operation: ArpOperation::Request,
            sender_mac: LINK.from,
            sender: [10, 0, 0, 1].into(),
            target_mac: [0; 6],
            target: [10, 0, 0, 2].into(),
        };
        let frame = arp.frame(LINK);
        assert_eq!(frame.len(), 42);
        assert_eq!(Arp::parse(&frame), Some(arp));
        assert_eq!(Arp::parse(&tagged(&frame, 7)), None);
        assert_eq!(Arp::parse(&frame[..41]), None);
    }

    #[test]
    fn neighbour_discovery_has_hop_limit_255_and_a_right_checksum() {
        let (from, to) = ("fd00::1".parse().unwrap(), "fd00::2".parse().unwrap());
        for frame in [
            LINK.neighbour_solicitation(from, to, to),
            LINK.neighbour_advertisement(from, to, from, LINK.from),
        ] {
            assert_eq!(frame[21], 255);
            assert_eq!(transport_checksum(from.into(), to.into(), 58, &frame[54..]), 0);
        }
    }
}
