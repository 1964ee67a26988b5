//! Which port a mapping gets.

use core::ffi::c_void;

use aya_ebpf::{
    bindings::{__sk_buff, bpf_sock, bpf_sock_tuple},
    helpers::{bpf_get_prandom_u32, bpf_sk_lookup_udp, bpf_sk_release, bpf_skc_lookup_tcp},
    programs::TcContext,
};
use podwire_abi::{Be16, NAT_TRIES, NatDevice, NatEntry, NatKey, Protocol, Reason, nat_direction};

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

/// A port that is to be found.
#[repr(C)]
pub struct Wish {
    /// The entry of the way back, and what it will be found by.
    pub back: NatEntry,
    pub arriving: NatKey,
    first: u32,
    count: u32,
    step: u32,
    /// Whether the port that stands in `arriving` comes first.
    keeps: u32,
}

impl Wish {
    /// For what leaves under `key`, without an address of its own yet.
    #[inline(always)]
    pub fn of(key: &NatKey, device: &NatDevice, now: u32) -> Self {
        let back = NatEntry {
            address: key.local,
            port: key.local_port,
            created: now,
            seen: now,
            ..NatEntry::default()
        };
        Self {
            back,
            arriving: NatKey { direction: nat_direction::IN, ..*key },
            first: device.first_port,
            count: device.ports,
            step: device.step,
            keeps: 0,
        }
    }
}

/// Finds a port that neither a mapping nor a socket of the node has towards the same destination, and
/// takes it: the entry of the way back is inserted under it.
///
/// The sender's own port comes first. The others are tried from a random one on, [`NAT_TRIES`] of them.
#[inline(always)]
pub fn choose(ctx: &TcContext, wish: &mut Wish, own: Own) -> Result<(), Drop> {
    let is_echo = matches!(wish.arriving.protocol, Protocol::ICMP | Protocol::ICMPV6);
    let offset = u32::from(wish.arriving.local_port.get()).wrapping_sub(wish.first);
    wish.keeps = (own == Own::Wanted && (offset < wish.count || is_echo)).into();
    match nat_choose(ctx.skb.skb, wish) {
        CHOSEN => Ok(()),
        EXHAUSTED => Err(Drop(Reason::NatPortsExhausted)),
        _ => Err(Drop(Reason::NatTableFull)),
    }
}

const CHOSEN: u32 = 0;
const EXHAUSTED: u32 = 1;
const FULL: u32 = 2;

/// A function that the verifier looks at by itself, whatever its callers know: the loop would otherwise be
/// verified again for everything that they do.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn nat_choose(skb: *mut __sk_buff, wish: *mut Wish) -> u32 {
    // SAFETY: the verifier sees to it that callers give a context, and a whole wish or null.
    let Some(wish) = (unsafe { wish.as_mut() }) else { return FULL };
    let count = wish.count;
    // SAFETY: a helper call without arguments.
    let random = unsafe { bpf_get_prandom_u32() };
    let mut place = if count == 0 { 0 } else { random % count };
    let mut next = wish.keeps == 0;
    for _ in 0..=NAT_TRIES {
        if next {
            if count == 0 {
                break;
            }
            wish.arriving.local_port = Be16::new((wish.first + place) as u16);
            place = (place + wish.step) % count;
        }
        next = true;
        if NAT.get_ptr(&wish.arriving).is_none()
            && nat_has_socket(skb, &raw const wish.arriving) == 0
        {
            match insert(&wish.arriving, &wish.back) {
                Inserted::Yes => return CHOSEN,
                Inserted::There => {}
                Inserted::No => return FULL,
            }
        }
    }
    EXHAUSTED
}

/// Takes the sender's own port, or what stands for one, where it cannot be changed.
#[inline(always)]
pub fn keep(wish: &Wish, own: Own) -> Result<(), Drop> {
    if own == Own::Taken {
        return Err(Drop(Reason::NatPortTaken));
    }
    match insert(&wish.arriving, &wish.back) {
        Inserted::Yes => Ok(()),
        Inserted::There => Err(Drop(Reason::NatPortTaken)),
        Inserted::No => Err(Drop(Reason::NatTableFull)),
    }
}

/// Whether a socket of this node would take a packet that arrives so: one that is connected, listens, is
/// bound, or was closed a moment ago.
#[inline(always)]
pub fn has_socket(ctx: &TcContext, arriving: &NatKey) -> bool {
    nat_has_socket(ctx.skb.skb, arriving) != 0
}

/// See [`has_socket`]; and [`nat_choose`] for why it is a function of its own.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn nat_has_socket(skb: *mut __sk_buff, arriving: *const NatKey) -> u32 {
    // SAFETY: as in `nat_choose`.
    let Some(arriving) = (unsafe { arriving.as_ref() }) else { return 0 };
    let mut tuple = Tuple::of(arriving);
    let tuple = (&raw mut tuple).cast::<bpf_sock_tuple>();
    let context = skb.cast::<c_void>();
    let is_ipv4 = arriving.local.is_ipv4();
    // SAFETY: the tuple is as long as its family's; a socket that is found is released.
    unsafe {
        let socket: *mut bpf_sock = match (arriving.protocol, is_ipv4) {
            (Protocol::TCP, true) => bpf_skc_lookup_tcp(context, tuple, 12, CURRENT_NETNS, 0),
            (Protocol::TCP, false) => bpf_skc_lookup_tcp(context, tuple, 36, CURRENT_NETNS, 0),
            (Protocol::UDP, true) => bpf_sk_lookup_udp(context, tuple, 12, CURRENT_NETNS, 0),
            (Protocol::UDP, false) => bpf_sk_lookup_udp(context, tuple, 36, CURRENT_NETNS, 0),
            _ => return 0,
        };
        if socket.is_null() {
            return 0;
        }
        bpf_sk_release(socket.cast());
    }
    1
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
