//! ICMP errors: the packet that they quote is translated as well, or its sender would not know it.

use aya_ebpf::programs::TcContext;
use podwire_abi::{Address, Be32, NatEntry, Protocol, Reason, nat_direction};

use super::{
    is_inbound, is_masqueraded,
    packet::{Packet, ipv6_ends, load},
    rewrite::{self, End, Places, adjusted, changed, difference},
    untranslated,
};
use crate::{
    maps::NAT,
    packet::{IPV4_LEN, IPV6_LEN},
    verdict::{Drop, Outcome, Verdict},
};

/// An error that leaves: about a packet that arrived, which is quoted as its receiver saw it. Whoever sent
/// it, a pod or this node on its way to the pod, the quote is made what was sent here.
#[inline(always)]
pub fn leave(ctx: &TcContext, error: &Packet) -> Outcome {
    let Some(quote) = read(ctx, error) else { return unrelated(error) };
    // The quoted packet's receiver is what sends the conversation's other direction.
    let mut key = quote.key(nat_direction::IN);
    key.direction = nat_direction::OUT;
    // SAFETY: read at once; entries' addresses do not change.
    let Some(entry) = (unsafe { NAT.get(key) }) else {
        return if is_inbound(&key) { untranslated() } else { unrelated(error) };
    };
    if entry.address == key.local && entry.port == key.local_port {
        return untranslated();
    }
    translate(ctx, error, &quote, End::Destination, entry)?;
    if error.source == key.local {
        rewrite::end(ctx, error, End::Source, &entry.address, None)?;
    }
    Ok(Verdict::next(Reason::Masqueraded))
}

/// An error that arrives: about a packet that left, which is quoted as it was after translation.
#[inline(always)]
pub fn arrive(ctx: &TcContext, error: &Packet) -> Outcome {
    let Some(quote) = read(ctx, error) else { return untranslated() };
    let mut key = quote.key(nat_direction::OUT);
    key.direction = nat_direction::IN;
    // Nobody is told of what he has not sent.
    if error.destination != key.local {
        return untranslated();
    }
    // SAFETY: as above.
    let Some(entry) = (unsafe { NAT.get(key) }) else { return untranslated() };
    if entry.address == key.local && entry.port == key.local_port {
        return untranslated();
    }
    translate(ctx, error, &quote, End::Source, entry)?;
    rewrite::end(ctx, error, End::Destination, &entry.address, None)?;
    Ok(Verdict::next(Reason::Unmasqueraded))
}

#[inline(always)]
fn unrelated(error: &Packet) -> Outcome {
    if is_masqueraded(error) { Err(Drop(Reason::NatUnrelated)) } else { untranslated() }
}

/// The quoted packet. Of IPv6 only quotes without extension headers are understood, and of fragments none
/// but the first: the others have no ports.
#[inline(always)]
fn read(ctx: &TcContext, error: &Packet) -> Option<Packet> {
    let network = error.transport + 8;
    let mut quote = if error.protocol == Protocol::ICMP {
        let header: [u32; 5] = load(ctx, network)?;
        let [first, ..] = header[0].to_ne_bytes();
        let [_, _, high, low] = header[1].to_ne_bytes();
        let length = usize::from(first & 0x0f) * 4;
        if first >> 4 != 4 || length < IPV4_LEN || u16::from_be_bytes([high, low]) & 0x1fff != 0 {
            return None;
        }
        let ends = (
            Address::from_ipv4_raw(Be32::from_raw(header[3])),
            Address::from_ipv4_raw(Be32::from_raw(header[4])),
        );
        Packet::headed(ends, header[2].to_ne_bytes()[1], (network, network + length))
    } else {
        let header: [u32; 10] = load(ctx, network)?;
        let [first, ..] = header[0].to_ne_bytes();
        if first >> 4 != 6 {
            return None;
        }
        let next = header[1].to_ne_bytes()[2];
        Packet::headed(ipv6_ends(&header), next, (network, network + IPV6_LEN))
    };
    match quote.protocol {
        Protocol::TCP | Protocol::UDP | Protocol::SCTP => {
            quote.set_ports(load(ctx, quote.transport)?);
        }
        Protocol::ICMP | Protocol::ICMPV6 => quote.set_icmp(load(ctx, quote.transport)?),
        _ => {}
    }
    Some(quote)
}

/// Changes one end of the quoted packet, the quoted checksums, and the error's own for all of it.
#[inline(always)]
fn translate(
    ctx: &TcContext,
    error: &Packet,
    quote: &Packet,
    end: End,
    entry: &NatEntry,
) -> Result<(), Drop> {
    let places = Places::of(quote, end);
    let outer = error.transport + 2;
    let (old, port) = match end {
        End::Source => (&quote.source, quote.source_port),
        End::Destination => (&quote.destination, quote.destination_port),
    };
    let addresses = rewrite::address_difference(old, &entry.address);
    changed(ctx.l4_csum_replace(outer, 0, u64::from(addresses), 0))?;
    if old.is_ipv4() {
        changed(ctx.store(places.address, &entry.address.ipv4_raw().raw(), 0))?;
        adjust(ctx, outer, quote.network + 10, addresses)?;
    } else {
        changed(ctx.store(places.address, &entry.address.0, 0))?;
    }
    let mut covered = if places.pseudo { addresses } else { 0 };
    if port != entry.port {
        let (from, to) = (port.raw(), entry.port.raw());
        changed(ctx.l4_csum_replace(outer, u64::from(from), u64::from(to), 2))?;
        changed(ctx.store(places.port, &to, 0))?;
        covered = folded(u64::from(covered) + u64::from(difference(from, to)));
    }
    let Some(checksum) = places.checksum else { return Ok(()) };
    // Old routers quote eight bytes of the transport, which TCP's checksum is not among.
    match load::<u16>(ctx, checksum) {
        None => Ok(()),
        Some(0) if quote.protocol == Protocol::UDP => Ok(()),
        Some(_) => adjust(ctx, outer, checksum, covered),
    }
}

/// Adjusts a quoted checksum, and the error's own to that.
#[inline(always)]
fn adjust(ctx: &TcContext, outer: usize, at: usize, by: u32) -> Result<(), Drop> {
    let old: u16 = load(ctx, at).ok_or(Drop(Reason::Malformed))?;
    let new = adjusted(old, by);
    changed(ctx.l4_csum_replace(outer, u64::from(old), u64::from(new), 2))?;
    changed(ctx.store(at, &new, 0))
}

#[inline(always)]
fn folded(sum: u64) -> u32 {
    ((sum & 0xffff_ffff) + (sum >> 32)) as u32
}

