//! ICMP errors: the packet that they quote is translated as well, or its sender would not know it.

use aya_ebpf::{bindings::__sk_buff, programs::TcContext};
use podwire_abi::{Address, Be32, NatEntry, Protocol, Reason, nat_direction};

use super::{
    is_inbound, is_masqueraded,
    packet::{FRAGMENT, Packet, load},
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
    let mut address = error.source;
    match nat_quoted(ctx.skb.skb, error, &raw mut address, nat_direction::OUT.into()) {
        TRANSLATED => {
            rewrite::end(ctx, error, End::Source, &address, None)?;
            Ok(Verdict::next(Reason::Masqueraded))
        }
        UNCHANGEABLE => Err(Drop(Reason::Unchangeable)),
        UNKNOWN if is_masqueraded(error) => Err(Drop(Reason::NatUnrelated)),
        _ => untranslated(),
    }
}

/// An error that arrives: about a packet that left, which is quoted as it was after translation.
#[inline(always)]
pub fn arrive(ctx: &TcContext, error: &Packet) -> Outcome {
    let mut address = error.destination;
    match nat_quoted(ctx.skb.skb, error, &raw mut address, nat_direction::IN.into()) {
        TRANSLATED => {
            rewrite::end(ctx, error, End::Destination, &address, None)?;
            Ok(Verdict::next(Reason::Unmasqueraded))
        }
        UNCHANGEABLE => Err(Drop(Reason::Unchangeable)),
        _ => untranslated(),
    }
}

const UNTRANSLATED: u32 = 0;
const TRANSLATED: u32 = 1;
/// About nothing that is known here.
const UNKNOWN: u32 = 2;
const UNCHANGEABLE: u32 = 3;

/// Translates an error's quote, and tells what becomes of the error's own `address` at this side. A function
/// that the verifier looks at by itself, once.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn nat_quoted(
    skb: *mut __sk_buff,
    error: *const Packet,
    address: *mut Address,
    direction: u32,
) -> u32 {
    // SAFETY: the verifier sees to it that callers give a context, and a whole packet or null.
    let (error, address) = unsafe { (error.as_ref(), address.as_mut()) };
    let (Some(error), Some(address)) = (error, address) else { return UNCHANGEABLE };
    let ctx = &TcContext::new(skb);
    let leaves = direction == u32::from(nat_direction::OUT);
    let nowhere = (Address::UNSPECIFIED, Address::UNSPECIFIED);
    let mut quote = Packet::headed(nowhere, 0, (0, 0));
    if read(ctx, error, &mut quote).is_none() {
        return UNKNOWN;
    }
    // What is quoted went the other way.
    let mut key = quote.key(if leaves { nat_direction::IN } else { nat_direction::OUT });
    key.direction ^= 1;
    // Nobody is told of what he has not sent.
    if !leaves && error.destination != key.local {
        return UNTRANSLATED;
    }
    // SAFETY: read at once; entries' addresses do not change.
    let Some(entry) = (unsafe { NAT.get(key) }) else {
        return if leaves && is_inbound(&key) { UNTRANSLATED } else { UNKNOWN };
    };
    if entry.address == key.local && entry.port == key.local_port {
        return UNTRANSLATED;
    }
    if *address == key.local {
        *address = entry.address;
    }
    let end = if leaves { End::Destination } else { End::Source };
    match translate(ctx, error, &quote, end, entry) {
        Ok(()) => TRANSLATED,
        Err(_) => UNCHANGEABLE,
    }
}

/// The quoted packet. Of IPv6 only quotes without extension headers but a fragment's are understood, and of
/// fragments none but the first: the others have no ports. What is not understood goes to the node, which
/// learns from a packet that was too big, and tells the pod by itself when the next one comes.
#[inline(always)]
fn read(ctx: &TcContext, error: &Packet, quote: &mut Packet) -> Option<()> {
    let network = error.transport + 8;
    quote.network = network;
    if error.protocol == Protocol::ICMP {
        let header: [u32; 5] = load(ctx, network)?;
        let [first, ..] = header[0].to_ne_bytes();
        let [_, _, high, low] = header[1].to_ne_bytes();
        let length = usize::from(first & 0x0f) * 4;
        if first >> 4 != 4 || length < IPV4_LEN || u16::from_be_bytes([high, low]) & 0x1fff != 0 {
            return None;
        }
        quote.source = Address::from_ipv4_raw(Be32::from_raw(header[3]));
        quote.destination = Address::from_ipv4_raw(Be32::from_raw(header[4]));
        quote.protocol = Protocol(header[2].to_ne_bytes()[1]);
        quote.transport = network + length;
    } else {
        let header: [u32; 2] = load(ctx, network)?;
        if header[0].to_ne_bytes()[0] >> 4 != 6 {
            return None;
        }
        (quote.source, quote.destination) = load(ctx, network + 8)?;
        let mut next = header[1].to_ne_bytes()[2];
        quote.transport = network + IPV6_LEN;
        if next == FRAGMENT {
            let [following, _, high, low] = load::<u32>(ctx, quote.transport)?.to_ne_bytes();
            if u16::from_be_bytes([high, low]) >> 3 != 0 {
                return None;
            }
            next = following;
            quote.transport += 8;
        }
        quote.protocol = Protocol(next);
    }
    match quote.protocol {
        Protocol::TCP | Protocol::UDP | Protocol::SCTP => {
            quote.set_ports(load(ctx, quote.transport)?);
        }
        Protocol::ICMP | Protocol::ICMPV6 => quote.set_icmp(load(ctx, quote.transport)?),
        _ => {}
    }
    Some(())
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
