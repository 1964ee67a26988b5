//! Packets of one conversation, in both directions.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use podwire_datapath::abi::{Hook, MARK_DECIDED};
use podwire_lab::probe::frame::{Link, limit_hops};

use super::{
    super::{
        model::Packet,
        node::{HOST_MAC, Node, Pod, ROUTER4, ROUTER6},
    },
    build::{self, ICMP, ICMPV6, Input, SCTP, TCP, UDP},
};

/// Whom a pod may speak with that is no pod of its node.
pub const OUTSIDE: [IpAddr; 6] = [
    IpAddr::V4(ROUTER4),
    IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)),
    IpAddr::V4(Ipv4Addr::new(10, 1, 0, 99)),
    IpAddr::V6(ROUTER6),
    IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 1, 0, 0, 0, 0, 0, 0x99)),
];

/// One side of it.
#[derive(Clone, Copy)]
struct Party {
    address: IpAddr,
    port: u16,
    pod: Option<Pod>,
}

/// A conversation.
pub struct Talk {
    /// The first one began it.
    parties: [Party; 2],
    protocol: u8,
    /// The host stack carries it.
    by_stack: bool,
    /// Packets that went as they should.
    told: usize,
}

const SYN: u8 = 2;
const ACK: u8 = 16;
const FIN: u8 = 1;
const RST: u8 = 4;

/// A TCP connection as it should be: who speaks, and the flags.
const SCRIPT: [(usize, u8); 10] = [
    (0, SYN),
    (1, SYN | ACK),
    (0, ACK),
    (0, ACK | 8),
    (1, ACK),
    (0, FIN | ACK),
    (1, ACK),
    (1, FIN | ACK),
    (0, ACK),
    (0, SYN),
];

impl Talk {
    pub fn begin(input: &mut Input<'_>, node: &Node) -> Self {
        let is_v4 = input.byte().is_multiple_of(2);
        let pod = |pod: &Pod| Party {
            address: if is_v4 { pod.v4.into() } else { pod.v6.into() },
            port: 0,
            pod: Some(*pod),
        };
        let outside = |input: &mut Input<'_>| {
            let address = input.choose(if is_v4 { &OUTSIDE[..3] } else { &OUTSIDE[3..] });
            Party { address, port: 0, pod: None }
        };
        let (a, b, c) = (pod(&node.a), pod(&node.b), pod(&node.c));
        let mut parties = match input.byte() % 16 {
            0..6 => [a, b],
            6 | 7 => [b, a],
            8 => [c, a],
            9 => [a, c],
            10 | 11 => [a, outside(input)],
            12 | 13 => [outside(input), a],
            14 => [outside(input), b],
            _ => [a, a],
        };
        let icmp = if is_v4 { ICMP } else { ICMPV6 };
        let protocol = input.choose(&[TCP, TCP, TCP, TCP, UDP, UDP, icmp, SCTP, 47]);
        if matches!(protocol, TCP | UDP | SCTP) {
            parties[0].port = input.choose(&[40000, 40000, 80, 0]);
            parties[1].port = input.choose(&[80, 53, 8081, 12, 0]);
        } else if protocol == icmp {
            // The identifier.
            parties[0].port = input.choose(&[1, 0, 0, 40000]);
        }
        Self { parties, protocol, by_stack: input.rarely(4), told: 0 }
    }

    /// The next packet, as it should be or not.
    pub fn packet(&mut self, input: &mut Input<'_>, node: &Node) -> Packet {
        let choice = input.byte();
        let (speaker, flags) = if choice.is_multiple_of(2) {
            let (speaker, flags) = SCRIPT[self.told % SCRIPT.len()];
            self.told += 1;
            (speaker, flags)
        } else {
            let flags =
                [SYN, SYN | ACK, ACK, ACK, FIN | ACK, FIN, RST, RST | ACK, SYN | FIN, SYN | RST, 0];
            (usize::from(choice >> 1 & 1), flags[usize::from(choice >> 2) % flags.len()])
        };
        let (from, to) = (self.parties[speaker], self.parties[1 - speaker]);
        let payload = self.transport(speaker, flags);
        self.at_hook(input, node, from, to, self.protocol, &payload)
    }

    /// An ICMP error about a packet of it.
    pub fn error(&mut self, input: &mut Input<'_>, node: &Node) -> Packet {
        let speaker = usize::from(input.byte() & 1);
        let (from, to) = (self.parties[speaker], self.parties[1 - speaker]);
        let flags = input.choose(&[ACK, SYN]);
        let payload = self.transport(speaker, flags);
        let none = Link { from: [0; 6], to: [0; 6] };
        let mut quote = none.ip(from.address, to.address, self.protocol, &payload)[14..].to_vec();
        if input.rarely(8) {
            build::change_bytes(input, &mut quote, 1);
        }
        if let (IpAddr::V4(to), Some(pod), true) = (to.address, from.pod, input.rarely(8)) {
            return self.error_in_disguise(input, node, pod, to, &payload);
        }
        // Mostly from who received it, to who sent it.
        let router = Party {
            address: if from.address.is_ipv4() { ROUTER4.into() } else { ROUTER6.into() },
            port: 0,
            pod: None,
        };
        let (sender, receiver) = match input.byte() % 8 {
            0 => (from, to),
            1 | 2 => (router, from),
            3 => (to, router),
            _ => (to, from),
        };
        let (protocol, kinds): (u8, &[u8]) = if from.address.is_ipv4() {
            (ICMP, &[3, 3, 11, 12, 4])
        } else {
            (ICMPV6, &[1, 1, 2, 3, 127])
        };
        let mut message = vec![input.choose(kinds), 0, 0, 0, 0, 0, 0, 0];
        message.extend(quote);
        self.at_hook(input, node, sender, receiver, protocol, &message)
    }

    /// An ICMPv6 error that quotes what no IPv6 packet can be, to look as if it were about an IPv4 flow.
    fn error_in_disguise(
        &self,
        input: &mut Input<'_>,
        node: &Node,
        pod: Pod,
        to: Ipv4Addr,
        payload: &[u8],
    ) -> Packet {
        let none = Link { from: [0; 6], to: [0; 6] };
        let mapped = IpAddr::V6(to.to_ipv6_mapped());
        let quote = none.ip(pod.v6.into(), mapped, self.protocol, payload)[14..].to_vec();
        let message = [&[1, 0, 0, 0, 0, 0, 0, 0][..], &quote].concat();
        let outside = Party { address: OUTSIDE[4], port: 0, pod: None };
        let receiver = Party { address: pod.v6.into(), port: 0, pod: Some(pod) };
        self.at_hook(input, node, outside, receiver, ICMPV6, &message)
    }

    fn transport(&self, speaker: usize, flags: u8) -> Vec<u8> {
        let ports = [self.parties[speaker].port, self.parties[1 - speaker].port];
        let [from, to] = ports.map(u16::to_be_bytes);
        match self.protocol {
            TCP => [&from[..], &to, &[0; 8], &[5 << 4, flags, 0xff, 0xff, 0, 0, 0, 0]].concat(),
            UDP | SCTP => [&from[..], &to, &[0, 12, 0, 0, 1, 2, 3, 4]].concat(),
            ICMP | ICMPV6 => {
                // The other one may ask as well.
                let asks = (speaker == 0) != (flags & RST != 0);
                let kind = match (self.protocol, asks) {
                    (ICMP, true) => 8,
                    (ICMP, false) => 0,
                    (_, true) => 128,
                    (_, false) => 129,
                };
                let identifier = self.parties[0].port.to_be_bytes();
                [&[kind, 0, 0, 0][..], &identifier, &[0, 1, 9, 9]].concat()
            }
            _ => vec![0; 8],
        }
    }

    fn at_hook(
        &self,
        input: &mut Input<'_>,
        node: &Node,
        from: Party,
        to: Party,
        protocol: u8,
        payload: &[u8],
    ) -> Packet {
        let choice = input.byte();
        let by_stack = self.by_stack ^ (choice % 16 == 15);
        let by_link = choice >> 4 & 3 == 0;
        let (hook, ifindex, link) = match (from.pod, to.pod) {
            (Some(pod), None) => (Hook::FromContainer, pod.ifindex, pod.to_gateway()),
            (Some(pod), Some(_)) if !by_stack => {
                (Hook::FromContainer, pod.ifindex, pod.to_gateway())
            }
            (_, Some(pod)) if by_link => {
                let link = Link { from: pod.host_mac, to: pod.mac };
                (Hook::ToContainer, pod.ifindex, link)
            }
            (..) => (Hook::FromHost, node.net_ifindex, Link { from: HOST_MAC, to: HOST_MAC }),
        };
        let mut frame = link.ip(from.address, to.address, protocol, payload);
        let odd = input.byte();
        if odd % 16 == 1 && from.address.is_ipv4() {
            build::fragment(input, &mut frame);
        }
        let hops = if odd % 16 == 2 { 1 } else { 64 };
        limit_hops(&mut frame, hops);
        if odd % 32 == 3 {
            build::change_bytes(input, &mut frame, 1);
        }
        let mark = if odd % 32 == 4 { MARK_DECIDED } else { 0 };
        let gso_size = if odd % 32 == 5 { 1400 } else { 0 };
        Packet { hook, ifindex, mark, gso_size, frame }
    }
}
