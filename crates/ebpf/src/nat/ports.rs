//! Which port a mapping gets.

use core::ffi::c_void;

use aya_ebpf::{
    bindings::{bpf_sock, bpf_sock_tuple},
    helpers::{bpf_get_prandom_u32, bpf_sk_lookup_udp, bpf_sk_release, bpf_skc_lookup_tcp},
    programs::TcContext,
};
use podwire_abi::{
    Address, Be16, NAT_TRIES, NatDevice, NatEntry, NatKey, Protocol, Reason, nat_direction,
};

use super::{Inserted, insert};
use crate::{maps::NAT, verdict::Drop};

/// What is known of the sender's own port.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Own {
    /// It is kept if it is free.
    Wanted,
    /// A mapping has it.
    Taken,
}

/// Finds a port that neither a mapping nor a socket of the node has towards the same destination, and
/// takes it: `back`, the entry of the way back, is inserted under it.
///
/// The sender's own port comes first. The others are tried from a random one on, [`NAT_TRIES`] of them.
#[inline(always)]
pub fn choose(
    ctx: &TcContext,
    key: &NatKey,
    address: &Address,
    back: &NatEntry,
    device: &NatDevice,
    own: Own,
) -> Result<Be16, Drop> {
    let (first, count, step) = (device.first_port, device.ports, device.step);
    let mut arriving = NatKey { local: *address, direction: nat_direction::IN, ..*key };
    let is_echo = matches!(key.protocol, Protocol::ICMP | Protocol::ICMPV6);
    let is_given = u32::from(key.local_port.get()).wrapping_sub(first) < count;
    if own == Own::Wanted && (is_given || is_echo) && is_free(ctx, &arriving) {
        match insert(&arriving, back) {
            Inserted::Yes => return Ok(arriving.local_port),
            Inserted::There => {}
            Inserted::No => return Err(Drop(Reason::NatTableFull)),
        }
    }
    if count == 0 {
        return Err(Drop(Reason::NatPortsExhausted));
    }
    // SAFETY: a helper call without arguments.
    let mut place = unsafe { bpf_get_prandom_u32() } % count;
    for _ in 0..NAT_TRIES {
        arriving.local_port = Be16::new((first + place) as u16);
        if is_free(ctx, &arriving) {
            match insert(&arriving, back) {
                Inserted::Yes => return Ok(arriving.local_port),
                Inserted::There => {}
                Inserted::No => return Err(Drop(Reason::NatTableFull)),
            }
        }
        place = (place + step) % count;
    }
    Err(Drop(Reason::NatPortsExhausted))
}

/// Takes the sender's own port, or what stands for one, where it cannot be changed.
#[inline(always)]
pub fn keep(key: &NatKey, address: &Address, back: &NatEntry, own: Own) -> Result<Be16, Drop> {
    let arriving = NatKey { local: *address, direction: nat_direction::IN, ..*key };
    if own == Own::Taken {
        return Err(Drop(Reason::NatPortTaken));
    }
    match insert(&arriving, back) {
        Inserted::Yes => Ok(key.local_port),
        Inserted::There => Err(Drop(Reason::NatPortTaken)),
        Inserted::No => Err(Drop(Reason::NatTableFull)),
    }
}

#[inline(always)]
fn is_free(ctx: &TcContext, arriving: &NatKey) -> bool {
    NAT.get_ptr(arriving).is_none() && !has_socket(ctx, arriving)
}

/// Whether a socket of this node would take a packet that arrives so: one that is connected, listens, is
/// bound, or was closed a moment ago.
///
/// Out of line, since the loop over ports would otherwise be verified with all of it.
#[inline(never)]
pub fn has_socket(ctx: &TcContext, arriving: &NatKey) -> bool {
    let mut tuple = Tuple::of(arriving);
    let length = if arriving.local.is_ipv4() { 12 } else { 36 };
    let tuple = (&raw mut tuple).cast::<bpf_sock_tuple>();
    let context = ctx.skb.skb.cast::<c_void>();
    // SAFETY: the tuple is as long as its family's; a socket that is found is released.
    unsafe {
        let socket: *mut bpf_sock = match (arriving.protocol, length) {
            (Protocol::TCP, 12) => bpf_skc_lookup_tcp(context, tuple, 12, CURRENT_NETNS, 0),
            (Protocol::TCP, _) => bpf_skc_lookup_tcp(context, tuple, 36, CURRENT_NETNS, 0),
            (Protocol::UDP, 12) => bpf_sk_lookup_udp(context, tuple, 12, CURRENT_NETNS, 0),
            (Protocol::UDP, _) => bpf_sk_lookup_udp(context, tuple, 36, CURRENT_NETNS, 0),
            _ => return false,
        };
        if socket.is_null() {
            return false;
        }
        bpf_sk_release(socket.cast());
    }
    true
}

/// `BPF_F_CURRENT_NETNS`, all 64 bits of it.
const CURRENT_NETNS: u64 = u64::MAX;

/// `struct bpf_sock_tuple`, whose IPv4 form is the beginning of the IPv6 one's room: source and destination
/// address, source and destination port.
#[repr(C)]
struct Tuple([u32; 9]);

impl Tuple {
    #[inline(always)]
    fn of(arriving: &NatKey) -> Self {
        let [a, b] = arriving.remote_port.raw().to_ne_bytes();
        let [c, d] = arriving.local_port.raw().to_ne_bytes();
        let ports = u32::from_ne_bytes([a, b, c, d]);
        let (from, to) = (&arriving.remote.0, &arriving.local.0);
        if arriving.local.is_ipv4() {
            return Self([from[3].raw(), to[3].raw(), ports, 0, 0, 0, 0, 0, 0]);
        }
        Self([
            from[0].raw(),
            from[1].raw(),
            from[2].raw(),
            from[3].raw(),
            to[0].raw(),
            to[1].raw(),
            to[2].raw(),
            to[3].raw(),
            ports,
        ])
    }
}
