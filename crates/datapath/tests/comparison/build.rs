//! From bytes to packets of any kind: mostly right ones, since wrong ones end early.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use podwire_datapath::abi::{Hook, MARK_DECIDED};
use podwire_lab::probe::frame::{Arp, ArpOperation, BROADCAST, Link, limit_hops, tagged};

use super::super::{
    model::Packet,
    node::{HOST_MAC, NET_MAC, Node, Pod, ROUTER4, ROUTER6},
};

pub const TCP: u8 = 6;
pub const UDP: u8 = 17;
pub const ICMP: u8 = 1;
pub const ICMPV6: u8 = 58;
pub const SCTP: u8 = 132;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;

/// Bytes that decide. What is not there is zero.
pub struct Input<'i>(&'i [u8]);

impl<'i> Input<'i> {
    pub fn new(bytes: &'i [u8]) -> Self {
        Self(bytes)
    }

    pub fn next(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    pub fn byte(&mut self) -> u8 {
        self.next().unwrap_or(0)
    }

    fn take(&mut self, most: usize) -> &'i [u8] {
        let (taken, rest) = self.0.split_at(most.min(self.0.len()));
        self.0 = rest;
        taken
    }

    pub fn choose<T: Copy>(&mut self, from: &[T]) -> T {
        from[usize::from(self.byte()) % from.len()]
    }

    /// One time in so many.
    pub fn rarely(&mut self, times: u8) -> bool {
        self.byte() % times == times - 1
    }
}

/// A packet at one of the hooks.
pub fn packet(input: &mut Input<'_>, node: &Node) -> Packet {
    let hooks = [Hook::FromContainer, Hook::FromContainer, Hook::ToContainer, Hook::FromHost];
    let hook = input.choose(&hooks);
    let (sender, receiver) = if input.rarely(3) { (&node.b, &node.a) } else { (&node.a, &node.b) };
    let stranger = input.rarely(32);
    let ifindex = match hook {
        _ if stranger => node.c.ifindex,
        Hook::FromHost => node.net_ifindex,
        Hook::ToContainer => receiver.ifindex,
        _ => sender.ifindex,
    };
    let mark = input.choose(&[0, 0, 0, 0, 0, 0, MARK_DECIDED, 7]);
    let gso_size = if input.rarely(16) { 1400 } else { 0 };
    let link = link(input, hook, sender, receiver);
    let mut frame = match input.byte() % 16 {
        0 => raw(input, link),
        1 | 2 => arp(input, sender, link),
        3 | 4 => neighbour(input, node, sender, link),
        _ => ip(input, sender, receiver, link),
    };
    spoil(input, &mut frame);
    Packet { hook, ifindex, mark, gso_size, frame }
}

fn link(input: &mut Input<'_>, hook: Hook, sender: &Pod, receiver: &Pod) -> Link {
    let right = match hook {
        Hook::FromHost => Link { from: HOST_MAC, to: HOST_MAC },
        Hook::ToContainer => Link { from: receiver.host_mac, to: receiver.mac },
        _ => sender.to_gateway(),
    };
    let macs = [sender.mac, receiver.mac, sender.host_mac, NET_MAC, BROADCAST];
    match input.byte() % 16 {
        13 => Link { to: [0x33, 0x33, 0xff, 0, 0, 1], ..right },
        14 => Link { to: input.choose(&macs), ..right },
        15 => Link { from: input.choose(&macs), ..right },
        _ => right,
    }
}

fn raw(input: &mut Input<'_>, link: Link) -> Vec<u8> {
    let ethertype = input.choose(&[0x0800, 0x86dd, 0x0806, 0x8100, 0x88a8, 0x88cc, 0]);
    let length = usize::from(input.byte());
    let mut payload = input.take(length).to_vec();
    payload.resize(length, 0);
    link.frame(ethertype, &payload)
}

fn arp(input: &mut Input<'_>, sender: &Pod, link: Link) -> Vec<u8> {
    let operations = [ArpOperation::Request, ArpOperation::Request, ArpOperation::Reply];
    let arp = Arp {
        operation: input.choose(&operations),
        sender_mac: sender.mac,
        sender: input.choose(&[sender.v4, sender.v4, Ipv4Addr::UNSPECIFIED, ROUTER4]),
        target_mac: [0; 6],
        target: input.choose(&[ROUTER4, ROUTER4, sender.v4, Ipv4Addr::UNSPECIFIED]),
    };
    let mut frame = arp.frame(link);
    let padding = usize::from(input.byte() % 19);
    frame.extend(vec![0xa5; padding]);
    frame
}

fn neighbour(input: &mut Input<'_>, node: &Node, sender: &Pod, link: Link) -> Vec<u8> {
    let local = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 2);
    let from = input.choose(&[sender.v6, sender.v6, local, Ipv6Addr::UNSPECIFIED, node.b.v6]);
    let solicited = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00, 1);
    let to = input.choose(&[ROUTER6, solicited]);
    let target = input.choose(&[ROUTER6, ROUTER6, sender.v6, node.b.v6, local]);
    let mut frame = link.neighbour_solicitation(from, to, target);
    if input.rarely(4) {
        // Another message about the link (RFC 4861, RFC 3810).
        frame[54] = input.choose(&[130, 131, 132, 133, 134, 136, 137, 143]);
    }
    if input.rarely(8) {
        // What follows the last option, as IPv6 allows.
        frame.extend(input.take(8));
    }
    frame
}

fn ip(input: &mut Input<'_>, sender: &Pod, receiver: &Pod, link: Link) -> Vec<u8> {
    let is_v4 = input.byte().is_multiple_of(2);
    let v4 = [
        sender.v4,
        receiver.v4,
        ROUTER4,
        Ipv4Addr::new(192, 0, 2, 1),
        Ipv4Addr::new(10, 1, 0, 99),
        Ipv4Addr::new(224, 0, 0, 1),
        Ipv4Addr::BROADCAST,
        Ipv4Addr::UNSPECIFIED,
    ]
    .map(IpAddr::from);
    let v6 = [
        sender.v6,
        receiver.v6,
        ROUTER6,
        Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1),
        Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1),
        Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1),
        sender.v4.to_ipv6_mapped(),
        Ipv6Addr::UNSPECIFIED,
    ]
    .map(IpAddr::from);
    let all = if is_v4 { v4 } else { v6 };
    let from = if input.rarely(6) { input.choose(&all) } else { all[0] };
    let to = if input.rarely(3) { input.choose(&all) } else { all[1] };
    let mut protocol =
        input.choose(&[TCP, TCP, UDP, UDP, if is_v4 { ICMP } else { ICMPV6 }, SCTP, 47, 59]);
    let mut payload = transport(input, protocol, from, to);
    if is_v4 {
        let mut frame = link.ip(from, to, protocol, &payload);
        if input.rarely(6) {
            fragment(input, &mut frame);
        }
        if input.rarely(8) {
            frame.splice(34..34, [1, 1, 1, 0]);
            frame[14] = 0x46;
            frame[17] = frame[17].wrapping_add(4);
        }
        let hops = input.choose(&[64, 64, 64, 255, 2, 1, 0]);
        limit_hops(&mut frame, hops);
        return maybe_tagged(input, frame);
    }
    if input.rarely(4) {
        for _ in 0..input.byte() % 8 {
            let kind = input.choose(&[0, 60, 43, AUTHENTICATION, FRAGMENT]);
            payload = [&extension(input, kind, protocol)[..], &payload].concat();
            protocol = kind;
        }
    }
    let mut frame = link.ip(from, to, protocol, &payload);
    let hops = input.choose(&[64, 64, 64, 255, 2, 1, 0]);
    limit_hops(&mut frame, hops);
    maybe_tagged(input, frame)
}

fn maybe_tagged(input: &mut Input<'_>, frame: Vec<u8>) -> Vec<u8> {
    if input.rarely(32) { tagged(&frame, 7) } else { frame }
}

/// An extension header (RFC 8200, 4) in front of `next`.
fn extension(input: &mut Input<'_>, kind: u8, next: u8) -> Vec<u8> {
    match kind {
        FRAGMENT => {
            let field = input.choose(&[0_u16, 1, 1, 8, 9, 16]).to_be_bytes();
            vec![next, 0, field[0], field[1], 0, 0, 0, input.byte() % 3]
        }
        AUTHENTICATION => [&[next, 4][..], &[0; 22]].concat(),
        _ => match input.byte() % 3 {
            0 => [&[next, 1][..], &[0; 14]].concat(),
            _ => [&[next, 0][..], &[0; 6]].concat(),
        },
    }
}

fn transport(input: &mut Input<'_>, protocol: u8, from: IpAddr, to: IpAddr) -> Vec<u8> {
    let port = |input: &mut Input<'_>| input.choose(&[40000_u16, 80, 53, 0]).to_be_bytes();
    match protocol {
        TCP => {
            let ports = [port(input), port(input)].concat();
            let flags = input.choose(&[2, 16, 18, 16, 17, 4, 0]);
            [&ports[..], &[0; 8], &[5 << 4, flags, 0xff, 0xff, 0, 0, 0, 0]].concat()
        }
        UDP | SCTP => {
            let ports = [port(input), port(input)].concat();
            [&ports[..], &[0, 12, 0, 0, 1, 2, 3, 4]].concat()
        }
        ICMP | ICMPV6 => {
            let kinds: &[u8] = if protocol == ICMP {
                &[8, 0, 3, 3, 11, 12, 4, 5, 13]
            } else {
                &[128, 129, 1, 1, 2, 3, 0, 127, 140]
            };
            let kind = input.choose(kinds);
            let mut message = vec![kind, 0, 0, 0, 0, input.byte() % 3, 0, 1];
            message.extend(quote(input, from, to));
            message
        }
        _ => input.take(12).to_vec(),
    }
}

/// A packet as an ICMP error quotes it: mostly what the other side sent.
fn quote(input: &mut Input<'_>, from: IpAddr, to: IpAddr) -> Vec<u8> {
    let link = Link { from: [0; 6], to: [0; 6] };
    let (from, to) = if input.rarely(4) { (from, to) } else { (to, from) };
    let protocol = input.choose(&[TCP, UDP, ICMP, ICMPV6, 47]);
    let payload = match protocol {
        // An echo, since errors about errors are not sent.
        ICMP | ICMPV6 => {
            let kind = input.choose(&[8, 0, 128, 129]);
            vec![kind, 0, 0, 0, 0, input.byte() % 3, 0, 1]
        }
        other => transport(input, other, from, to),
    };
    let mut packet = link.ip(from, to, protocol, &payload)[14..].to_vec();
    if input.rarely(4) {
        packet.truncate(usize::from(input.byte() % 64));
    }
    packet
}

/// Up to three bytes wrong, or the end cut off.
fn spoil(input: &mut Input<'_>, frame: &mut Vec<u8>) {
    let count = input.byte() % 16 / 13 * 3;
    change_bytes(input, frame, count);
    if input.rarely(16) {
        frame.truncate(14 + usize::from(input.byte()) % (frame.len() - 13));
    }
}

/// So many bytes wrong.
pub fn change_bytes(input: &mut Input<'_>, bytes: &mut [u8], count: u8) {
    for _ in 0..count {
        let place = usize::from(input.byte()) % bytes.len();
        bytes[place] = input.byte();
    }
}

/// Makes an IPv4 packet a fragment, or marks it as one that must not become any.
pub fn fragment(input: &mut Input<'_>, frame: &mut [u8]) {
    let field = input.choose(&[0x2000_u16, 0x2001, 1, 2, 0x2002, 0x4000, 0x1fff]);
    frame[18..20].copy_from_slice(&[0, input.byte() % 3]);
    frame[20..22].copy_from_slice(&field.to_be_bytes());
}
