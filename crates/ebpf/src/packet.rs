//! Reading a packet: Ethernet, IPv4, IPv6 with its extension headers, ports.
//!
//! Headers at a fixed place are read by direct packet access, what may lie anywhere (behind IPv4
//! options or IPv6 extension headers) by `bpf_skb_load_bytes`.

use core::{arch::asm, mem::offset_of};

use aya_ebpf::{bindings::__sk_buff, programs::TcContext};
use podwire_abi::{
    Address, Be16, Be32, EthernetPair, FlowKey, FragmentKey, FragmentPorts, Protocol, Reason, Slot,
    direction, tcp_seen,
};

use crate::{maps::FRAGMENTS, verdict::Drop};

pub const ETH_LEN: usize = 14;
pub const IPV4_LEN: usize = 20;
pub const IPV6_LEN: usize = 40;

pub const ETH_IPV4: u16 = 0x0800;
pub const ETH_ARP: u16 = 0x0806;
pub const ETH_IPV6: u16 = 0x86dd;
const ETH_VLAN: u16 = 0x8100;
const ETH_QINQ: u16 = 0x88a8;

/// ICMP and ICMPv6 types that the datapath looks at.
const ICMP_ECHO_REPLY: u8 = 0;
const ICMP_ECHO: u8 = 8;
const ICMPV6_ECHO: u8 = 128;
const ICMPV6_ECHO_REPLY: u8 = 129;

/// IPv6 extension headers that are followed before a packet is given up on.
const MAX_EXTENSION_HEADERS: usize = 6;

/// An address in two words, as it lies in memory: what is written in one piece is read back without delay,
/// be it in two (by the kernel's hash) or in one (by its comparison).
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Words(pub [u64; 2]);

/// The lower half of the second word of an IPv4 address: `::ffff:a.b.c.d`.
const V4_PREFIX: u64 = u32::from_ne_bytes([0, 0, 0xff, 0xff]) as u64;

impl Words {
    #[inline(always)]
    pub const fn from_ipv4(raw: u32) -> Self {
        Self([0, (raw as u64) << 32 | V4_PREFIX])
    }

    /// The endpoint's IPv6 address.
    #[inline(always)]
    pub fn of_slot(slot: &Slot) -> Self {
        const _: () = assert!(offset_of!(Slot, ipv6) % 8 == 0);
        // SAFETY: 16 bytes of a live map value, at a multiple of eight.
        Self(unsafe { (&raw const slot.ipv6).cast::<[u64; 2]>().read() })
    }

    #[inline(always)]
    pub const fn address(&self) -> Address {
        let [high, low] = self.0;
        Address([
            Be32::from_raw(high as u32),
            Be32::from_raw((high >> 32) as u32),
            Be32::from_raw(low as u32),
            Be32::from_raw((low >> 32) as u32),
        ])
    }

    #[inline(always)]
    pub const fn is_ipv4(&self) -> bool {
        self.0[0] == 0 && self.0[1] as u32 == V4_PREFIX as u32
    }

    /// The IPv4 address as it stands in a packet.
    #[inline(always)]
    pub const fn ipv4_raw(&self) -> u32 {
        (self.0[1] >> 32) as u32
    }

    /// Whether it is one of the endpoint's own.
    #[inline(always)]
    pub fn is_of(&self, slot: &Slot) -> bool {
        if self.is_ipv4() {
            slot.ipv4.raw() == self.ipv4_raw() && self.ipv4_raw() != 0
        } else {
            *self == Self::of_slot(slot) && self.0 != [0, 0]
        }
    }
}

/// An IP packet, as far as its fixed headers go; [`read_ports`](Self::read_ports) reads the rest.
#[derive(Clone, Copy)]
pub struct Packet {
    pub source: Words,
    pub destination: Words,
    /// As they lie in the packet: the source's two bytes, the destination's two.
    pub ports: u32,
    pub protocol: Protocol,
    /// TTL or hop limit.
    pub hops: u8,
    /// Where the transport header begins, counted from the frame's start.
    pub transport: usize,
    pub fragment: Fragment,
    /// What the transport header says about the flow.
    pub kind: Kind,
    /// What it says of a TCP connection, of `tcp_seen`.
    pub shown: u32,
}

/// Which part of a packet this is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Fragment {
    Whole,
    First(Be32),
    Later(Be32),
}

/// What a packet means to its flow.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A SYN without ACK: it begins one.
    Syn,
    /// An echo request: it begins one, or goes on with it.
    Echo,
    /// It is part of one.
    Within,
    /// An ICMP error about a packet of one.
    Error,
}

/// To whom a frame that a pod sent is addressed, given that its source is right.
pub enum Ethernet {
    ToGateway,
    ToMany,
    ToOther,
}

/// A frame whose headers, as far as they usually go, are linear.
#[derive(Clone, Copy)]
pub struct Frame {
    start: u64,
    end: u64,
}

/// Ethernet, IPv6, TCP without options.
const USUAL_HEADERS: u64 = (ETH_LEN + IPV6_LEN + 20) as u64;

impl Frame {
    #[inline(always)]
    pub fn new(ctx: &TcContext) -> Result<Self, Drop> {
        let len = u64::from(ctx.len());
        let wanted = if len < USUAL_HEADERS { len } else { USUAL_HEADERS };
        let frame = Self::linear(ctx);
        if frame.start + wanted <= frame.end {
            return Ok(frame);
        }
        ctx.pull_data(wanted as u32).map_err(|_| Drop(Reason::Malformed))?;
        Ok(Self::linear(ctx))
    }

    /// As much of the frame as is linear.
    #[inline(always)]
    pub fn linear(ctx: &TcContext) -> Self {
        let (start, end) = bounds(ctx);
        Self { start, end }
    }

    /// The bytes at a fixed place.
    #[inline(always)]
    pub fn at<const OFFSET: usize, const LEN: usize>(self) -> Result<Bytes, Drop> {
        linear::<LEN>(self.start, self.end, OFFSET).ok_or(Drop(Reason::Malformed))
    }
}

/// The frame's type, after a VLAN tag has been ruled out. A tag stands in the packet's metadata on
/// a veth, and in its bytes under test-run.
#[inline(always)]
pub fn ethertype(ctx: &TcContext, ethernet: Bytes) -> Result<u16, Drop> {
    // SAFETY: the context is valid for the whole run of the program.
    if unsafe { (*ctx.skb.skb).vlan_present } != 0 {
        return Err(Drop(Reason::Vlan));
    }
    let ethertype = Be16::from_raw(read_u16::<12>(ethernet)).get();
    if ethertype == ETH_VLAN || ethertype == ETH_QINQ {
        return Err(Drop(Reason::Vlan));
    }
    Ok(ethertype)
}

/// Checks the frame's source against `expected`, and sorts its destination.
#[inline(always)]
pub fn compare_ethernet(frame: Bytes, expected: &EthernetPair) -> Result<Ethernet, Drop> {
    let (a, b, c) = (read_u32::<0>(frame), read_u32::<4>(frame), read_u32::<8>(frame));
    let [x, y, z] = expected.0;
    if a == x && b == y && c == z {
        return Ok(Ethernet::ToGateway);
    }
    // The source's first two bytes are the upper half of the second word.
    const SOURCE: u32 = u32::from_ne_bytes([0, 0, 0xff, 0xff]);
    const GROUP: u32 = u32::from_ne_bytes([1, 0, 0, 0]);
    if c != z || (b ^ y) & SOURCE != 0 {
        return Err(Drop(Reason::SpoofedMac));
    }
    Ok(if a & GROUP != 0 { Ethernet::ToMany } else { Ethernet::ToOther })
}

/// RFC 791. A header that contradicts itself or the frame is malformed.
///
/// ```text
///  0               1               2               3
/// |version|  ihl  |      tos      |         total length          |
/// |        identification         |flags|    fragment offset      |
/// |      ttl      |   protocol    |           checksum            |
/// |                            source                             |
/// |                          destination                          |
/// ```
#[inline(always)]
pub fn parse_ipv4(ctx: &TcContext, frame: Frame) -> Result<Packet, Drop> {
    let header = frame.at::<ETH_LEN, IPV4_LEN>()?;
    let first = read_u8::<0>(header);
    let header_len = usize::from(first & 0x0f) * 4;
    let total_len = u32::from(Be16::from_raw(read_u16::<2>(header)).get());
    // A segmentation-offload packet beyond 64 KiB has no length that fits (BIG TCP).
    let total_len = if total_len == 0 && is_offloaded(ctx) { ctx.len() } else { total_len };
    if first >> 4 != 4
        || header_len < IPV4_LEN
        || total_len < header_len as u32
        || total_len.saturating_add(ETH_LEN as u32) > ctx.len()
            && (!is_offloaded(ctx) || (ETH_LEN + header_len) as u32 > ctx.len())
    {
        return Err(Drop(Reason::Malformed));
    }
    let protocol = Protocol(read_u8::<9>(header));
    let identification = Be32::new(u32::from(Be16::from_raw(read_u16::<4>(header)).get()));
    let offset = Be16::from_raw(read_u16::<6>(header)).get();
    let fragment = match (offset & 0x1fff, offset & 0x2000 != 0) {
        (0, false) => Fragment::Whole,
        (0, true) => Fragment::First(identification),
        // A second fragment that begins within the TCP header could rewrite it (RFC 1858).
        (1, _) if protocol == Protocol::TCP => return Err(Drop(Reason::Malformed)),
        _ => Fragment::Later(identification),
    };
    Ok(Packet {
        source: Words::from_ipv4(read_u32::<12>(header)),
        destination: Words::from_ipv4(read_u32::<16>(header)),
        ports: 0,
        protocol,
        hops: read_u8::<8>(header),
        transport: ETH_LEN + header_len,
        fragment,
        kind: Kind::Within,
        shown: 0,
    })
}

/// RFC 8200, with its extension headers followed to the transport header.
///
/// ```text
///  0               1               2               3
/// |version| traffic class |              flow label               |
/// |        payload length         |  next header  |   hop limit   |
/// |                        source (16 bytes)                      |
/// |                     destination (16 bytes)                    |
/// ```
#[inline(always)]
pub fn parse_ipv6(ctx: &TcContext, frame: Frame) -> Result<Packet, Drop> {
    let header = frame.at::<ETH_LEN, IPV6_LEN>()?;
    let payload_len = u32::from(Be16::from_raw(read_u16::<4>(header)).get());
    let wanted = payload_len + (ETH_LEN + IPV6_LEN) as u32;
    if read_u8::<0>(header) >> 4 != 6 || wanted > ctx.len() && !is_offloaded(ctx) {
        return Err(Drop(Reason::Malformed));
    }
    let source = Words([read_u64::<8>(header), read_u64::<16>(header)]);
    let destination = Words([read_u64::<24>(header), read_u64::<32>(header)]);
    // Keys hold IPv4 addresses in this form, and no packet may carry it (RFC 4291, 2.5.5.2).
    if source.is_ipv4() || destination.is_ipv4() {
        return Err(Drop(Reason::Malformed));
    }
    let hops = read_u8::<7>(header);
    let mut next = read_u8::<6>(header);
    let mut transport = ETH_LEN + IPV6_LEN;
    let mut fragment = Fragment::Whole;
    if is_extension(next) {
        (next, transport, fragment) = skip_extensions(ctx, next)?;
    }
    Ok(Packet {
        source,
        destination,
        ports: 0,
        protocol: Protocol(next),
        hops,
        transport,
        fragment,
        kind: Kind::Within,
        shown: 0,
    })
}

impl Packet {
    /// What a TCP header's flags say.
    #[inline(always)]
    pub fn read_tcp_flags(&mut self, flags: u8) {
        self.shown = tcp_seen::shown(flags);
        // SYN is 2, ACK 16.
        if flags & 0x12 == 0x02 {
            self.kind = Kind::Syn;
        }
    }

    /// Reads ports or what stands for them, and what the packet means to its flow. Later
    /// fragments get the ports that their first fragment left behind.
    #[inline(always)]
    pub fn read_ports(&mut self, ctx: &TcContext, frame: Frame) -> Result<(), Drop> {
        if let Fragment::Later(identification) = self.fragment {
            // SAFETY: read at once; an entry reused in between would only name another flow.
            let ports = unsafe { FRAGMENTS.get(self.fragment_key(identification)) };
            let ports = ports.ok_or(Drop(Reason::UnknownFragment))?;
            self.ports =
                u32::from(ports.destination_port.raw()) << 16 | u32::from(ports.source_port.raw());
            return Ok(());
        }
        match self.protocol {
            Protocol::TCP => {
                let (ports, flags) = self.tcp(ctx, frame)?;
                self.ports = ports;
                self.read_tcp_flags(flags);
            }
            Protocol::UDP | Protocol::SCTP => {
                let [ports, _]: [u32; 2] = load(ctx, self.transport)?;
                self.ports = ports;
            }
            Protocol::ICMP | Protocol::ICMPV6 => {
                (self.kind, self.ports) = icmp(self.protocol, load(ctx, self.transport)?);
            }
            _ => {}
        }
        if let Fragment::First(identification) = self.fragment {
            let ports = FragmentPorts {
                source_port: Be16::from_raw(self.ports as u16),
                destination_port: Be16::from_raw((self.ports >> 16) as u16),
            };
            // A full table forgets another packet's ports: its later fragments are counted.
            let _ = FRAGMENTS.insert(self.fragment_key(identification), ports, 0);
        }
        Ok(())
    }

    /// Ports and flags of a TCP header, which is mostly where it is in a packet without options.
    #[inline(always)]
    fn tcp(&self, ctx: &TcContext, frame: Frame) -> Result<(u32, u8), Drop> {
        const BEHIND_IPV4: usize = ETH_LEN + IPV4_LEN;
        const BEHIND_IPV6: usize = ETH_LEN + IPV6_LEN;
        let header = match self.transport {
            BEHIND_IPV4 => frame.at::<BEHIND_IPV4, 16>(),
            BEHIND_IPV6 => frame.at::<BEHIND_IPV6, 16>(),
            _ => Err(Drop(Reason::Malformed)),
        };
        if let Ok(header) = header {
            return Ok((read_u32::<0>(header), read_u8::<13>(header)));
        }
        let words: [u32; 4] = load(ctx, self.transport)?;
        Ok((words[0], words[3].to_ne_bytes()[1]))
    }

    #[inline(always)]
    fn fragment_key(&self, identification: Be32) -> FragmentKey {
        FragmentKey {
            source: self.source.address(),
            destination: self.destination.address(),
            identification,
            protocol: self.protocol,
            reserved: [0; 3],
        }
    }
}

/// What an ICMP message means to its flow, and what stands for its ports: the identifier of an echo is the
/// port of the side that asks.
#[inline(always)]
fn icmp(protocol: Protocol, header: [u32; 2]) -> (Kind, u32) {
    let kind = header[0].to_ne_bytes()[0];
    let identifier = header[1] & 0xffff;
    let (request, reply, is_error) = if protocol == Protocol::ICMP {
        (ICMP_ECHO, ICMP_ECHO_REPLY, matches!(kind, 3 | 4 | 11 | 12))
    } else {
        (ICMPV6_ECHO, ICMPV6_ECHO_REPLY, kind < 128)
    };
    if kind == request {
        (Kind::Echo, identifier)
    } else if kind == reply {
        (Kind::Within, identifier << 16)
    } else if is_error {
        (Kind::Error, 0)
    } else {
        (Kind::Within, 0)
    }
}

/// Makes the key of an ICMP error that of the flow it is about, in the error's own direction, and
/// answers 1, if it quotes a packet of one.
///
/// What an endpoint sends must be about what it received, and go to whom it had it from: it speaks of nobody
/// else's packets. To an endpoint any router may speak of what it sent. Kept out of line, as almost no packet
/// comes here.
#[inline(never)]
pub fn quoted_flow(ctx: &TcContext, transport: u64, key: &mut FlowKey, local: &Address) -> u64 {
    let Some(quoted) = try_quote(ctx, transport as usize, key.protocol) else { return 0 };
    // Keys hold IPv4 addresses among IPv6 ones: a quote could name the other family's flow.
    if quoted.source.is_ipv4() != local.is_ipv4() || quoted.destination.is_ipv4() != local.is_ipv4()
    {
        return 0;
    }
    let is_sent = key.direction == direction::SENT;
    let (error_source, error_destination) =
        if is_sent { (local, &key.peer) } else { (&key.peer, local) };
    if quoted.source != *error_destination || is_sent && quoted.destination != *error_source {
        return 0;
    }
    let (from, to) =
        (Be16::from_raw(quoted.ports as u16), Be16::from_raw((quoted.ports >> 16) as u16));
    key.protocol = quoted.protocol;
    if is_sent {
        key.local_port = to;
        key.peer_port = from;
    } else {
        key.local_port = from;
        key.peer_port = to;
        key.peer = quoted.destination;
    }
    1
}

/// What an ICMP error quotes of a packet.
struct Quote {
    source: Address,
    destination: Address,
    ports: u32,
    protocol: Protocol,
}

/// Quotes with options or extension headers are not understood.
#[inline(always)]
fn try_quote(ctx: &TcContext, error: usize, protocol: Protocol) -> Option<Quote> {
    let quote = error + 8;
    let (source, destination, protocol, transport) = if protocol == Protocol::ICMP {
        let header: [u32; 5] = load(ctx, quote).ok()?;
        if header[0].to_ne_bytes()[0] != 0x45 {
            return None;
        }
        let source = Address::from_ipv4_raw(Be32::from_raw(header[3]));
        let destination = Address::from_ipv4_raw(Be32::from_raw(header[4]));
        (source, destination, header[2].to_ne_bytes()[1], quote + IPV4_LEN)
    } else {
        let header: [u32; 10] = load(ctx, quote).ok()?;
        let [_, _, a, b, c, d, e, f, g, h] = header.map(Be32::from_raw);
        let next = header[1].to_ne_bytes()[2];
        (Address([a, b, c, d]), Address([e, f, g, h]), next, quote + IPV6_LEN)
    };
    let protocol = Protocol(protocol);
    let ports = match protocol {
        Protocol::TCP | Protocol::UDP | Protocol::SCTP => load::<u32>(ctx, transport).ok()?,
        Protocol::ICMP | Protocol::ICMPV6 => icmp(protocol, load(ctx, transport).ok()?).1,
        _ => 0,
    };
    Some(Quote { source, destination, ports, protocol })
}

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const DESTINATION_OPTIONS: u8 = 60;

#[inline(always)]
fn is_extension(next: u8) -> bool {
    matches!(next, HOP_BY_HOP | ROUTING | FRAGMENT | AUTHENTICATION | DESTINATION_OPTIONS)
}

/// Follows the extension headers; gives the transport protocol, where it begins, and which
/// fragment this is. Kept out of line: almost no packet comes here.
#[inline(always)]
fn skip_extensions(ctx: &TcContext, mut next: u8) -> Result<(u8, usize, Fragment), Drop> {
    let mut offset = ETH_LEN + IPV6_LEN;
    let mut fragment = Fragment::Whole;
    for _ in 0..MAX_EXTENSION_HEADERS {
        if !is_extension(next) {
            break;
        }
        let header: [u32; 2] = load(ctx, offset)?;
        let [following, len, high, low] = header[0].to_ne_bytes();
        match next {
            FRAGMENT => {
                let identification = Be32::from_raw(header[1]);
                let field = u16::from_be_bytes([high, low]);
                fragment = match (field >> 3, field & 1) {
                    (0, 0) => Fragment::Whole,
                    (0, _) => Fragment::First(identification),
                    _ => Fragment::Later(identification),
                };
                offset += 8;
                if let Fragment::Later(_) = fragment {
                    return Ok((following, offset, fragment));
                }
            }
            // RFC 4302 counts in words of four bytes, less two.
            AUTHENTICATION => offset += (usize::from(len) + 2) * 4,
            _ => offset += (usize::from(len) + 1) * 8,
        }
        // Of a header that is not followed, nobody else would notice.
        if offset as u32 > ctx.len() {
            return Err(Drop(Reason::Malformed));
        }
        next = following;
    }
    if is_extension(next) {
        return Err(Drop(Reason::ExtensionHeaders));
    }
    Ok((next, offset, fragment))
}

/// A packet that the sender's or receiver's device splits or has merged.
#[inline(always)]
fn is_offloaded(ctx: &TcContext) -> bool {
    // SAFETY: the context is valid for the whole run of the program.
    unsafe { (*ctx.skb.skb).gso_size != 0 }
}

/// A pointer to `LEN` bytes of packet at `offset`, which are made linear if they are not. A [`Frame`] from
/// before is of no use afterwards.
#[inline(always)]
pub fn at<const LEN: usize>(ctx: &TcContext, offset: usize) -> Result<Bytes, Drop> {
    let (start, end) = bounds(ctx);
    if let Some(bytes) = linear::<LEN>(start, end, offset) {
        return Ok(bytes);
    }
    ctx.pull_data((offset + LEN) as u32).map_err(|_| Drop(Reason::Malformed))?;
    let (start, end) = bounds(ctx);
    linear::<LEN>(start, end, offset).ok_or(Drop(Reason::Malformed))
}

#[inline(always)]
fn linear<const LEN: usize>(data: u64, end: u64, offset: usize) -> Option<Bytes> {
    let start: u64;
    // The verifier wants the very pointer checked that is then read through; behind this copy, the
    // compiler cannot add it up anew.
    // SAFETY: a copy from register to register.
    unsafe {
        asm!(
            "{start} = {sum}",
            sum = in(reg) data + offset as u64,
            start = lateout(reg) start,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    (start + LEN as u64 <= end).then_some(Bytes(start))
}

/// Where the linear part of the packet begins and ends.
///
/// The context's fields are declared as 32 bits wide, the verifier turns their loads into 64-bit
/// pointers. The compiler must not know the declared width, or it truncates the pointers.
#[inline(always)]
fn bounds(ctx: &TcContext) -> (u64, u64) {
    let (data, end): (u64, u64);
    // SAFETY: two loads from the context, which is valid for the whole run of the program.
    unsafe {
        asm!(
            "{data} = *(u32 *)({ctx} + {data_at})",
            "{end} = *(u32 *)({ctx} + {end_at})",
            ctx = in(reg) ctx.skb.skb,
            data = out(reg) data,
            end = lateout(reg) end,
            data_at = const offset_of!(__sk_buff, data),
            end_at = const offset_of!(__sk_buff, data_end),
            options(readonly, nostack, preserves_flags),
        );
    }
    (data, end)
}

/// Packet bytes whose presence the verifier has seen checked.
#[derive(Clone, Copy)]
pub struct Bytes(u64);

macro_rules! access {
    ($read:ident, $write:ident, $type:ty, $insn:literal) => {
        /// One load instruction. Packet data is not aligned as Rust's references must be, and
        /// byte-wise loads would cost the hot path; the kernel's verifier proves the access.
        #[inline(always)]
        pub fn $read<const OFFSET: i16>(bytes: Bytes) -> $type {
            let value: u64;
            // SAFETY: the verifier refuses a program whose access is not within the packet.
            unsafe {
                asm!(
                    concat!("{value} = *(", $insn, " *)({base} + {offset})"),
                    value = out(reg) value,
                    base = in(reg) bytes.0,
                    offset = const OFFSET,
                    options(pure, readonly, nostack, preserves_flags),
                );
            }
            value as $type
        }

        /// One store instruction, as above.
        #[inline(always)]
        pub fn $write<const OFFSET: i16>(bytes: Bytes, value: $type) {
            // SAFETY: as above.
            unsafe {
                asm!(
                    concat!("*(", $insn, " *)({base} + {offset}) = {value}"),
                    value = in(reg) u64::from(value),
                    base = in(reg) bytes.0,
                    offset = const OFFSET,
                    options(nostack, preserves_flags),
                );
            }
        }
    };
}

access!(read_u8, write_u8, u8, "u8");
access!(read_u16, write_u16, u16, "u16");
access!(read_u32, write_u32, u32, "u32");
access!(read_u64, write_u64, u64, "u64");

/// Reads a value from anywhere in the packet.
#[inline(always)]
pub fn load<T>(ctx: &TcContext, offset: usize) -> Result<T, Drop> {
    ctx.load(offset).map_err(|_| Drop(Reason::Malformed))
}
