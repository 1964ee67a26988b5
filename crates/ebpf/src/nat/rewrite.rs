//! Changing a packet's ends, and the checksums that cover them.
//!
//! All changes are made by helpers, which know what the device has computed and what it will: most packets
//! of this machine have a checksum that is only begun (`CHECKSUM_PARTIAL`), and most received ones a sum
//! over everything (`CHECKSUM_COMPLETE`). Of the latter, the kernel expects that an IPv4 address's change is
//! balanced by the header's checksum. IPv6 has none, so there the sum is told (`BPF_F_RECOMPUTE_CSUM`).

use aya_ebpf::{
    bindings::{__sk_buff, BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR, BPF_F_RECOMPUTE_CSUM},
    helpers::bpf_csum_diff,
    programs::TcContext,
};
use podwire_abi::{Address, Be16, Protocol, Reason};

use super::packet::{Kind, Packet, Part};
use crate::verdict::Drop;

/// Which end of a packet is changed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum End {
    Source,
    Destination,
}

/// Where things stand that a change concerns.
pub struct Places {
    /// The address.
    pub address: usize,
    /// The port or identifier.
    pub port: usize,
    /// The transport's checksum.
    pub checksum: Option<usize>,
    /// Whether that covers the addresses.
    pub pseudo: bool,
}

impl Places {
    #[inline(always)]
    pub fn of(packet: &Packet, end: End) -> Self {
        let is_ipv4 = packet.source.is_ipv4();
        let address = packet.network
            + match (end, is_ipv4) {
                (End::Source, true) => 12,
                (End::Destination, true) => 16,
                (End::Source, false) => 8,
                (End::Destination, false) => 24,
            };
        let is_icmp = matches!(packet.protocol, Protocol::ICMP | Protocol::ICMPV6);
        let port = packet.transport
            + match end {
                _ if is_icmp => 4,
                End::Source => 0,
                End::Destination => 2,
            };
        let checksum = match packet.protocol {
            Protocol::TCP => Some(packet.transport + 16),
            Protocol::UDP => Some(packet.transport + 6),
            Protocol::ICMP | Protocol::ICMPV6 => Some(packet.transport + 2),
            _ => None,
        };
        Self { address, port, checksum, pseudo: packet.protocol != Protocol::ICMP }
    }
}

/// Gives one end of a packet another address, and another port if there is one to be had.
#[inline(always)]
pub fn end(
    ctx: &TcContext,
    packet: &Packet,
    end: End,
    address: &Address,
    port: Option<Be16>,
) -> Result<(), Drop> {
    let change = Change {
        address: *address,
        port: port.map_or(Be16::new(0), |port| port),
        has_port: port.is_some().into(),
        is_source: (end == End::Source).into(),
    };
    match nat_rewrite(ctx.skb.skb, packet, &raw const change) {
        0 => Ok(()),
        _ => Err(Drop(Reason::Unchangeable)),
    }
}

/// What is wanted of [`nat_rewrite`].
#[repr(C)]
pub struct Change {
    address: Address,
    port: Be16,
    has_port: u8,
    is_source: u8,
}

/// See [`end`]. A function that the verifier looks at by itself, once.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn nat_rewrite(
    skb: *mut __sk_buff,
    packet: *const Packet,
    change: *const Change,
) -> u32 {
    // SAFETY: the verifier sees to it that callers give a context, and whole values or null.
    let (packet, change) = unsafe { (packet.as_ref(), change.as_ref()) };
    let (Some(packet), Some(change)) = (packet, change) else { return 1 };
    let end = if change.is_source != 0 { End::Source } else { End::Destination };
    let port = (change.has_port != 0).then_some(change.port);
    u32::from(apply(&TcContext::new(skb), packet, end, &change.address, port).is_err())
}

#[inline(always)]
fn apply(
    ctx: &TcContext,
    packet: &Packet,
    end: End,
    address: &Address,
    port: Option<Be16>,
) -> Result<(), Drop> {
    let places = Places::of(packet, end);
    let (old, old_port) = match end {
        End::Source => (&packet.source, packet.source_port),
        End::Destination => (&packet.destination, packet.destination_port),
    };
    let whole = packet.part == Part::First;
    let mangled =
        if packet.protocol == Protocol::UDP { u64::from(BPF_F_MARK_MANGLED_0) } else { 0 };
    if whole
        && packet.kind != Kind::Error
        && let (Some(port), Some(checksum)) = (port, places.checksum)
        && port != old_port
    {
        let (from, to) = (u64::from(old_port.raw()), u64::from(port.raw()));
        changed(ctx.l4_csum_replace(checksum, from, to, 2 | mangled))?;
        changed(ctx.store(places.port, &port.raw(), 0))?;
    }
    if address == old {
        return Ok(());
    }
    let pseudo = u64::from(BPF_F_PSEUDO_HDR) | mangled;
    let checksum = places.checksum.filter(|_| whole && places.pseudo);
    if old.is_ipv4() {
        let (from, to) = (u64::from(old.ipv4_raw().raw()), u64::from(address.ipv4_raw().raw()));
        if let Some(checksum) = checksum {
            changed(ctx.l4_csum_replace(checksum, from, to, 4 | pseudo))?;
        }
        changed(ctx.l3_csum_replace(packet.network + 10, from, to, 4))?;
        changed(ctx.store(places.address, &address.ipv4_raw().raw(), 0))
    } else {
        if let Some(checksum) = checksum {
            let difference = u64::from(address_difference(old, address));
            changed(ctx.l4_csum_replace(checksum, 0, difference, pseudo))?;
        }
        changed(ctx.store(places.address, &address.0, u64::from(BPF_F_RECOMPUTE_CSUM)))
    }
}

/// What has to be added to a checksum's sum when an address takes another's place.
#[inline(always)]
pub fn address_difference(old: &Address, new: &Address) -> u32 {
    // The first twelve bytes of IPv4 addresses are the same.
    // SAFETY: both are 16 bytes, which the helper only reads.
    unsafe {
        bpf_csum_diff(
            core::ptr::from_ref(old).cast_mut().cast(),
            16,
            core::ptr::from_ref(new).cast_mut().cast(),
            16,
            0,
        ) as u32
    }
}

/// RFC 1624: a checksum after something that it covers has changed.
#[inline(always)]
pub fn adjusted(checksum: u16, difference: u32) -> u16 {
    let sum = u64::from(!checksum) + u64::from(difference);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    !(sum as u16)
}

/// The difference that one number makes in another's place.
#[inline(always)]
pub fn difference(old: u16, new: u16) -> u32 {
    u32::from(!old) + u32::from(new)
}

#[inline(always)]
pub fn changed<E>(result: Result<(), E>) -> Result<(), Drop> {
    result.map_err(|_| Drop(Reason::Unchangeable))
}
