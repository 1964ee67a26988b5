//! Reading a packet at an uplink, where its link-layer header is as long as the device says.

use aya_ebpf::{bindings::__sk_buff, programs::TcContext};
use podwire_abi::{Address, Be16, Be32, FragmentKey, FragmentPorts, NatKey, Protocol, nat_tcp};

use crate::{
    maps::NAT_FRAGMENTS,
    packet::{ETH_IPV4, ETH_IPV6, IPV4_LEN, IPV6_LEN},
};

const ICMP_ECHO_REPLY: u8 = 0;
const ICMP_ECHO: u8 = 8;
const ICMPV6_ECHO: u8 = 128;
const ICMPV6_ECHO_REPLY: u8 = 129;

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
pub const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const DESTINATION_OPTIONS: u8 = 60;

/// IPv6 extension headers that are followed before a packet is given up on.
const MAX_EXTENSION_HEADERS: usize = 6;

/// What the programs look at of a packet.
#[repr(C)]
pub struct Packet {
    pub source: Address,
    pub destination: Address,
    pub source_port: Be16,
    pub destination_port: Be16,
    pub protocol: Protocol,
    /// TCP flags that mappings remember.
    pub tcp: u8,
    pub kind: Kind,
    pub part: Part,
    /// Where the IP header begins.
    pub network: usize,
    /// Where the transport header begins.
    pub transport: usize,
}

/// What a packet is to its conversation.
#[repr(u8)]
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A SYN without ACK, an echo request.
    Opens,
    /// An answer to such a packet.
    Answers,
    /// Any other of a protocol whose conversations can be told apart.
    Within,
    /// An ICMP error about a packet of one.
    Error,
    /// ICMP that is neither.
    Other,
}

/// Which part of a packet this is.
#[repr(u8)]
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// It has its transport header: a whole packet, or a first fragment.
    First,
    /// It has none; the ports are those of its first fragment.
    Later,
    /// It has none, and the first fragment was not seen.
    Orphan,
}

impl Packet {
    /// Reads a packet; `None` for what is no whole IP packet, or has a VLAN tag.
    #[inline(always)]
    pub fn read(ctx: &TcContext, header: u32) -> Option<Self> {
        let nowhere = (Address::UNSPECIFIED, Address::UNSPECIFIED);
        let mut packet = Self::headed(nowhere, 0, (0, 0));
        (nat_read(ctx.skb.skb, &raw mut packet, header) != 0).then_some(packet)
    }

    #[inline(always)]
    fn fill(&mut self, ctx: &TcContext, header: u32) -> Option<()> {
        // SAFETY: the context is valid for the whole run of the program.
        let (protocol, tagged) = unsafe { ((*ctx.skb.skb).protocol, (*ctx.skb.skb).vlan_present) };
        if tagged != 0 {
            return None;
        }
        // One of two constants, so that offsets are bounded.
        let network = if header == 0 { 0 } else { 14 };
        self.network = network;
        let fragment = match u16::from_be(protocol as u16) {
            ETH_IPV4 => self.read_ipv4(ctx)?,
            ETH_IPV6 => self.read_ipv6(ctx)?,
            _ => return None,
        };
        let packet = self;
        match fragment {
            Fragment::Whole => packet.read_transport(ctx)?,
            Fragment::First(identification) => {
                packet.read_transport(ctx)?;
                let ports = FragmentPorts {
                    source_port: packet.source_port,
                    destination_port: packet.destination_port,
                };
                // A full table forgets another packet's ports.
                let _ = NAT_FRAGMENTS.insert(packet.fragment_key(identification), ports, 0);
            }
            Fragment::Later(identification) => {
                // SAFETY: read at once; an entry reused in between would only name another mapping.
                match unsafe { NAT_FRAGMENTS.get(packet.fragment_key(identification)) } {
                    Some(ports) => {
                        packet.source_port = ports.source_port;
                        packet.destination_port = ports.destination_port;
                        packet.part = Part::Later;
                    }
                    None => packet.part = Part::Orphan,
                }
            }
        }
        Some(())
    }

    /// What a mapping of this packet is found by, given whether it leaves or arrives.
    #[inline(always)]
    pub fn key(&self, direction: u8) -> NatKey {
        let (local, local_port, remote, remote_port) =
            if direction == podwire_abi::nat_direction::OUT {
                (self.source, self.source_port, self.destination, self.destination_port)
            } else {
                (self.destination, self.destination_port, self.source, self.source_port)
            };
        NatKey {
            local,
            remote,
            local_port,
            remote_port,
            protocol: self.protocol,
            direction,
            reserved: [0; 2],
        }
    }

    #[inline(always)]
    pub fn read_transport(&mut self, ctx: &TcContext) -> Option<()> {
        match self.protocol {
            Protocol::TCP => {
                let [ports, _, _, flags]: [u32; 4] = load(ctx, self.transport)?;
                self.set_ports(ports);
                self.tcp = flags.to_ne_bytes()[1]
                    & (nat_tcp::FIN | nat_tcp::SYN | nat_tcp::RST | nat_tcp::ACK);
                self.kind = match self.tcp & (nat_tcp::SYN | nat_tcp::ACK) {
                    nat_tcp::SYN => Kind::Opens,
                    0x12 => Kind::Answers,
                    _ => Kind::Within,
                };
            }
            Protocol::UDP | Protocol::SCTP => self.set_ports(load(ctx, self.transport)?),
            Protocol::ICMP | Protocol::ICMPV6 => self.set_icmp(load(ctx, self.transport)?),
            _ => {}
        }
        Some(())
    }

    #[inline(always)]
    fn fragment_key(&self, identification: Be32) -> FragmentKey {
        FragmentKey {
            source: self.source,
            destination: self.destination,
            identification,
            protocol: self.protocol,
            reserved: [0; 3],
        }
    }

    #[inline(always)]
    pub fn set_ports(&mut self, ports: u32) {
        let [a, b, c, d] = ports.to_ne_bytes();
        self.source_port = Be16::from_raw(u16::from_ne_bytes([a, b]));
        self.destination_port = Be16::from_raw(u16::from_ne_bytes([c, d]));
    }

    /// The identifier of an echo is the port of the side that asks.
    #[inline(always)]
    pub fn set_icmp(&mut self, header: [u32; 2]) {
        let kind = header[0].to_ne_bytes()[0];
        let [a, b, ..] = header[1].to_ne_bytes();
        let identifier = Be16::from_raw(u16::from_ne_bytes([a, b]));
        let (request, reply, is_error) = if self.protocol == Protocol::ICMP {
            (ICMP_ECHO, ICMP_ECHO_REPLY, matches!(kind, 3 | 4 | 11 | 12))
        } else {
            (ICMPV6_ECHO, ICMPV6_ECHO_REPLY, kind < 128)
        };
        if kind == request {
            self.source_port = identifier;
            self.kind = Kind::Opens;
        } else if kind == reply {
            self.destination_port = identifier;
            self.kind = Kind::Answers;
        } else {
            self.kind = if is_error { Kind::Error } else { Kind::Other };
        }
    }

    /// A packet of which only the IP header was read.
    #[inline(always)]
    pub fn headed(
        (source, destination): (Address, Address),
        protocol: u8,
        (network, transport): (usize, usize),
    ) -> Self {
        Self {
            source,
            destination,
            source_port: Be16::new(0),
            destination_port: Be16::new(0),
            protocol: Protocol(protocol),
            tcp: 0,
            kind: Kind::Within,
            part: Part::First,
            network,
            transport,
        }
    }
}

/// See [`Packet::read`]. A function that the verifier looks at by itself, once: in its callers it would be
/// multiplied by all that they do.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn nat_read(skb: *mut __sk_buff, packet: *mut Packet, header: u32) -> u32 {
    // SAFETY: the verifier sees to it that callers give a context, and a whole packet or null.
    let Some(packet) = (unsafe { packet.as_mut() }) else { return 0 };
    packet.fill(&TcContext::new(skb), header).is_some().into()
}

enum Fragment {
    Whole,
    First(Be32),
    Later(Be32),
}

impl Packet {
    #[inline(always)]
    fn read_ipv4(&mut self, ctx: &TcContext) -> Option<Fragment> {
        let header: [u32; 5] = load(ctx, self.network)?;
        let [first, ..] = header[0].to_ne_bytes();
        let header_len = usize::from(first & 0x0f) * 4;
        if first >> 4 != 4 || header_len < IPV4_LEN {
            return None;
        }
        let [a, b, c, d] = header[1].to_ne_bytes();
        let identification = Be32::new(u32::from(u16::from_be_bytes([a, b])));
        let field = u16::from_be_bytes([c, d]);
        self.source = Address::from_ipv4_raw(Be32::from_raw(header[3]));
        self.destination = Address::from_ipv4_raw(Be32::from_raw(header[4]));
        self.protocol = Protocol(header[2].to_ne_bytes()[1]);
        self.transport = self.network + header_len;
        Some(match (field & 0x1fff, field & 0x2000 != 0) {
            (0, false) => Fragment::Whole,
            (0, true) => Fragment::First(identification),
            _ => Fragment::Later(identification),
        })
    }

    #[inline(always)]
    fn read_ipv6(&mut self, ctx: &TcContext) -> Option<Fragment> {
        let header: [u32; 2] = load(ctx, self.network)?;
        (self.source, self.destination) = load(ctx, self.network + 8)?;
        // Keys hold IPv4 addresses in this form, and no packet may carry it (RFC 4291, 2.5.5.2).
        if header[0].to_ne_bytes()[0] >> 4 != 6
            || self.source.is_ipv4()
            || self.destination.is_ipv4()
        {
            return None;
        }
        let mut next = header[1].to_ne_bytes()[2];
        let mut transport = self.network + IPV6_LEN;
        let mut fragment = Fragment::Whole;
        for _ in 0..MAX_EXTENSION_HEADERS {
            if !is_extension(next) {
                break;
            }
            let header: [u32; 2] = load(ctx, transport)?;
            let [following, len, high, low] = header[0].to_ne_bytes();
            match next {
                FRAGMENT => {
                    let identification = Be32::from_raw(header[1]);
                    let field = u16::from_be_bytes([high, low]);
                    transport += 8;
                    if field >> 3 != 0 {
                        fragment = Fragment::Later(identification);
                        next = following;
                        break;
                    }
                    if field & 1 != 0 {
                        fragment = Fragment::First(identification);
                    }
                }
                // RFC 4302 counts in words of four bytes, less two.
                AUTHENTICATION => transport += (usize::from(len) + 2) * 4,
                _ => transport += (usize::from(len) + 1) * 8,
            }
            next = following;
        }
        if is_extension(next) && !matches!(fragment, Fragment::Later(_)) {
            return None;
        }
        self.protocol = Protocol(next);
        self.transport = transport;
        Some(fragment)
    }
}

#[inline(always)]
fn is_extension(next: u8) -> bool {
    matches!(next, HOP_BY_HOP | ROUTING | FRAGMENT | AUTHENTICATION | DESTINATION_OPTIONS)
}

/// Reads a value from anywhere in the packet.
#[inline(always)]
pub fn load<T>(ctx: &TcContext, offset: usize) -> Option<T> {
    ctx.load(offset).ok()
}
