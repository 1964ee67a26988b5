//! What packets there are, and what must become of each.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use podwire_datapath::abi::{Hook, Reason};
use podwire_lab::probe::frame::{Arp, ArpOperation, BROADCAST, Link, limit_hops, tagged};

use super::node::{HOST_MAC, MANY_FLOWS, NET_MAC, Node, Pod, ROUTER4, ROUTER6};
use crate::timing;

const NEXT: u32 = u32::MAX;
const SHOT: u32 = 2;
const REDIRECT: u32 = 7;

const TCP: u8 = 6;
const SYN: u8 = 2;
const ACK: u8 = 16;

/// What a program rewrites, which is put back before each repetition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Restore {
    Nothing,
    Ipv4,
    Ipv6,
    Arp,
    Neighbour,
    /// IPv4, of known flows in turn.
    NextFlow,
    /// IPv4, of known flows at random.
    AnyFlow,
    /// IPv4, of new flows.
    NewFlow,
    /// IPv4, a new flow's first packet and its answer in turn.
    NewPair,
}

impl Restore {
    pub(super) fn program(self) -> &'static str {
        match self {
            Self::Nothing => "restore_nothing",
            Self::Ipv4 => "restore_ipv4",
            Self::Ipv6 => "restore_ipv6",
            Self::Arp => "restore_arp",
            Self::Neighbour => "restore_neighbour",
            Self::NextFlow => "restore_next_flow",
            Self::AnyFlow => "restore_any_flow",
            Self::NewFlow => "restore_new_flow",
            Self::NewPair => "restore_new_pair",
        }
    }

    /// Whether each repetition has ports of its own.
    fn draws_ports(self) -> bool {
        matches!(self, Self::NextFlow | Self::AnyFlow | Self::NewFlow | Self::NewPair)
    }
}

/// What the node's tables say beyond two pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Nothing.
    Plain,
    /// The node is not set up yet.
    NotReady,
    /// The receiver's address names a slot that has changed hands.
    Stale,
    /// The receiver's host link carries something foreign.
    Egress,
    /// Many flows are known.
    ManyFlows,
    /// There are many endpoints, addresses and policy entries.
    Crowded,
    /// Everything is being changed: no verdict is believed.
    Changing,
    /// Another CPU has packets of the same flow.
    Shared,
}

/// Where a frame is sent or received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    PodA,
    PodB,
    Router,
    HostLinkB,
}

/// A packet, and what must become of it.
#[derive(Clone, Debug)]
pub struct Case {
    /// The benchmark's name.
    pub name: String,
    pub(super) hook: Hook,
    pub(super) ifindex: u32,
    pub(super) frame: Vec<u8>,
    pub(super) state: State,
    /// Packets that have been judged before: where, at which interface.
    pub(super) before: Vec<(Hook, u32, Vec<u8>)>,
    pub(super) restore: Restore,
    pub(super) fate: Reason,
    pub(super) answer: u32,
    /// The frame that the program leaves behind.
    pub(super) after: Vec<u8>,
    pub(super) sent_at: Place,
    pub(super) lands: Option<Place>,
}

/// Every case, in the order of reports.
#[must_use]
pub fn cases(node: &Node) -> Vec<Case> {
    let (a, b) = (&node.a, &node.b);
    let mut cases = Vec::new();
    for family in [Family::V4, Family::V6] {
        let to_b = tcp(a.to_gateway(), family.port(a, 40000), family.port(b, 80));
        let opened = handshake(node, family);
        let established = Case {
            before: opened.clone(),
            ..Case::forwarded(node, family, "pod_to_pod/established", to_b.clone())
        };
        cases.push(established.clone());
        let back = tcp(b.to_gateway(), family.port(b, 80), family.port(a, 40000));
        let mut after = relinked(&back, a.delivered());
        limit_hops(&mut after, 63);
        cases.push(Case {
            name: family.name("pod_to_pod/reply"),
            ifindex: b.ifindex,
            frame: back,
            after,
            sent_at: Place::PodB,
            lands: Some(Place::PodA),
            ..established.clone()
        });
        let (from, to) = (family.socket(a, 40000), family.socket(b, 53));
        let datagram = a.to_gateway().udp(from, to, &[0x5a; 64]);
        let answer = b.to_gateway().udp(to, from, &[0x5a; 64]);
        cases.push(Case {
            before: vec![
                (Hook::FromContainer, a.ifindex, datagram.clone()),
                (Hook::FromContainer, b.ifindex, answer),
            ],
            ..Case::forwarded(node, family, "pod_to_pod/established_udp", datagram.clone())
        });
        cases.push(Case::forwarded(node, family, "pod_to_pod/one_sided_udp", datagram));
        cases.push(Case {
            name: family.name("pod_to_pod/established_to_egress"),
            state: State::Egress,
            fate: Reason::DeliveredToEgress,
            ..established
        });
        let outside = tcp(a.to_gateway(), family.port(a, 40000), (family.outside(), 80));
        let answer = tcp(
            Link { from: HOST_MAC, to: HOST_MAC },
            (family.outside(), 80),
            family.port(a, 40000),
        );
        cases.push(Case {
            before: vec![
                (Hook::FromContainer, a.ifindex, outside.clone()),
                (Hook::FromHost, node.router_link(), answer.clone()),
                (Hook::FromContainer, a.ifindex, outside.clone()),
            ],
            ..Case::to_stack(node, family, "pod_to_host/established", outside, Reason::ToStack)
        });
        cases.push(Case {
            state: State::Changing,
            ..established_as(node, family, "pod_to_pod/established/judged_anew", &opened)
        });
        if family == Family::V4 {
            let of = |what| established_as(node, family, what, &opened);
            let many =
                |what, restore| Case { state: State::ManyFlows, restore, lands: None, ..of(what) };
            cases.push(many("pod_to_pod/established/60k_round_robin", Restore::NextFlow));
            cases.push(many("pod_to_pod/established/60k_random", Restore::AnyFlow));
            cases.push(Case { state: State::Crowded, ..of("pod_to_pod/established/crowded") });
            if timing::has_another_cpu() {
                let shared = of("pod_to_pod/established/two_cpus");
                cases.push(Case { state: State::Shared, ..shared });
            }
            cases.extend(new_flows(node));
            let link = Link { from: HOST_MAC, to: HOST_MAC };
            let from_stack = tcp(link, family.port(b, 80), family.port(a, 40000));
            cases.push(Case {
                before: vec![
                    (Hook::FromHost, node.router_link(), from_stack.clone()),
                    (Hook::FromContainer, a.ifindex, to_b.clone()),
                ],
                ..Case::to_stack(
                    node,
                    family,
                    "pod_to_host/flow",
                    to_b.clone(),
                    Reason::ToStackByFlow,
                )
            });
        }
        let mut last = to_b;
        limit_hops(&mut last, 1);
        let reason = Reason::ToStackExpired;
        cases.push(Case::to_stack(node, family, "pod_to_host/expired", last, reason));
        cases.push(Case::from_host(node, family));
        cases.push(Case::through_host_link(node, family));
    }
    cases.push(arp(node));
    cases.push(neighbour(node));
    cases.extend(drops(node));
    cases
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Family {
    V4,
    V6,
}

impl Family {
    fn name(self, what: &str) -> String {
        match self {
            Self::V4 => format!("datapath/{what}"),
            Self::V6 => format!("datapath/{what}/ipv6"),
        }
    }

    fn address(self, pod: &Pod) -> IpAddr {
        match self {
            Self::V4 => pod.v4.into(),
            Self::V6 => pod.v6.into(),
        }
    }

    fn port(self, pod: &Pod, port: u16) -> (IpAddr, u16) {
        (self.address(pod), port)
    }

    fn socket(self, pod: &Pod, port: u16) -> SocketAddr {
        SocketAddr::new(self.address(pod), port)
    }

    fn router(self) -> IpAddr {
        match self {
            Self::V4 => ROUTER4.into(),
            Self::V6 => ROUTER6.into(),
        }
    }

    /// An address of no pod (RFC 5737, RFC 3849).
    fn outside(self) -> IpAddr {
        match self {
            Self::V4 => Ipv4Addr::new(192, 0, 2, 1).into(),
            Self::V6 => Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).into(),
        }
    }

    fn restore(self) -> Restore {
        match self {
            Self::V4 => Restore::Ipv4,
            Self::V6 => Restore::Ipv6,
        }
    }
}

impl Case {
    /// Whether this is the frame that the program leaves behind.
    pub(super) fn is_after(&self, frame: &[u8]) -> bool {
        // Behind Ethernet and an IPv4 header without options.
        const PORTS: std::ops::Range<usize> = 34..38;
        if !self.restore.draws_ports() || frame.len() < PORTS.end {
            return frame == self.after;
        }
        frame[..PORTS.start] == self.after[..PORTS.start]
            && frame[PORTS.end..] == self.after[PORTS.end..]
    }

    /// From pod a straight to pod b, as a router would.
    fn forwarded(node: &Node, family: Family, what: &str, frame: Vec<u8>) -> Self {
        let mut after = relinked(&frame, node.b.delivered());
        limit_hops(&mut after, 63);
        Self {
            name: family.name(what),
            hook: Hook::FromContainer,
            ifindex: node.a.ifindex,
            frame,
            state: State::Plain,
            before: Vec::new(),
            restore: family.restore(),
            fate: Reason::Delivered,
            answer: REDIRECT,
            after,
            sent_at: Place::PodA,
            lands: Some(Place::PodB),
        }
    }

    /// From pod a to the host stack.
    fn to_stack(node: &Node, family: Family, what: &str, frame: Vec<u8>, fate: Reason) -> Self {
        Self {
            after: relinked(&frame, Link { from: NET_MAC, to: HOST_MAC }),
            fate,
            lands: Some(Place::Router),
            ..Self::forwarded(node, family, what, frame)
        }
    }

    /// From the host stack to pod b.
    fn from_host(node: &Node, family: Family) -> Self {
        let own = Link { from: HOST_MAC, to: HOST_MAC };
        let frame = tcp(own, (family.router(), 40000), family.port(&node.b, 80));
        Self {
            hook: Hook::FromHost,
            ifindex: node.router_link(),
            after: relinked(&frame, node.b.delivered()),
            sent_at: Place::Router,
            ..Self::forwarded(node, family, "host_to_pod", frame)
        }
    }

    /// Through pod b's host link, as a host process or a foreign program sends.
    fn through_host_link(node: &Node, family: Family) -> Self {
        let link = node.b.delivered();
        let frame = tcp(link, (family.router(), 40000), family.port(&node.b, 80));
        Self {
            hook: Hook::ToContainer,
            ifindex: node.b.ifindex,
            restore: Restore::Nothing,
            fate: Reason::Passed,
            answer: NEXT,
            after: frame.clone(),
            sent_at: Place::HostLinkB,
            ..Self::forwarded(node, family, "host_link", frame)
        }
    }

    /// From pod a to nowhere.
    fn dropped(node: &Node, name: &str, fate: Reason, frame: Vec<u8>) -> Self {
        Self {
            name: format!("datapath/drop/{name}"),
            hook: Hook::FromContainer,
            ifindex: node.a.ifindex,
            state: State::Plain,
            before: Vec::new(),
            restore: Restore::Nothing,
            fate,
            answer: SHOT,
            after: frame.clone(),
            frame,
            sent_at: Place::PodA,
            lands: None,
        }
    }
}

fn arp(node: &Node) -> Case {
    let a = &node.a;
    let request = Arp {
        operation: ArpOperation::Request,
        sender_mac: a.mac,
        sender: a.v4,
        target_mac: [0; 6],
        target: ROUTER4,
    };
    let reply = Arp {
        operation: ArpOperation::Reply,
        sender_mac: a.host_mac,
        sender: ROUTER4,
        target_mac: a.mac,
        target: a.v4,
    };
    Case {
        name: "datapath/arp".to_owned(),
        restore: Restore::Arp,
        fate: Reason::AnsweredArp,
        answer: REDIRECT,
        after: reply.frame(a.delivered()),
        lands: Some(Place::PodA),
        ..Case::dropped(
            node,
            "",
            Reason::AnsweredArp,
            request.frame(Link { from: a.mac, to: BROADCAST }),
        )
    }
}

fn neighbour(node: &Node) -> Case {
    let a = &node.a;
    let question = a.to_gateway().neighbour_solicitation(a.v6, ROUTER6, ROUTER6);
    // Router, solicited, override (RFC 4861, 4.4).
    let mut message = vec![136, 0, 0, 0, 0xe0, 0, 0, 0];
    message.extend(ROUTER6.octets());
    message.extend([2, 1]);
    message.extend(a.host_mac);
    let mut answer = a.delivered().icmp(ROUTER6.into(), a.v6.into(), message);
    limit_hops(&mut answer, 255);
    Case {
        name: "datapath/neighbour".to_owned(),
        restore: Restore::Neighbour,
        answer: REDIRECT,
        after: answer,
        lands: Some(Place::PodA),
        ..Case::dropped(node, "", Reason::AnsweredNeighbour, question)
    }
}

/// Every reason for which a packet is dropped, but [`Reason::Unchangeable`], which no packet can
/// bring about.
fn drops(node: &Node) -> Vec<Case> {
    let (a, b) = (&node.a, &node.b);
    let link = a.to_gateway();
    let (from4, to4) = (Family::V4.port(a, 40000), Family::V4.port(b, 80));
    let (from6, to6) = (Family::V6.port(a, 40000), Family::V6.port(b, 80));
    let good = tcp(link, from4, to4);
    let drop = |name: &str, fate, frame| Case::dropped(node, name, fate, frame);
    let by_name = |fate: Reason, frame| Case::dropped(node, fate.name(), fate, frame);
    let mut short_header = good.clone();
    short_header[14] = 0x44;
    let others_arp = Arp {
        operation: ArpOperation::Request,
        sender_mac: a.mac,
        sender: a.v4,
        target_mac: [0; 6],
        target: b.v4,
    };
    let advertisement = link.neighbour_advertisement(a.v6, b.v6, b.v6, a.mac);
    let group: IpAddr = Ipv4Addr::new(239, 1, 2, 3).into();
    let local: IpAddr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1).into();
    let headers = [[60, 0, 1, 4, 0, 0, 0, 0]; 6].concat();
    let chain = [&headers[..], &[60, 0, 1, 4, 0, 0, 0, 0]].concat();
    let mut forbidden = tcp(link, from4, Family::V4.port(b, 81));
    set_tcp_flags(&mut forbidden, SYN);
    vec![
        drop("policy", Reason::EgressDenied, forbidden),
        drop("spoof", Reason::SpoofedAddress, tcp(link, to4, from4)),
        drop("spoof/ipv6", Reason::SpoofedAddress, tcp(link, to6, from6)),
        by_name(Reason::SpoofedMac, tcp(Link { from: b.mac, to: a.host_mac }, from4, to4)),
        Case { ifindex: node.stranger, ..by_name(Reason::UnknownLink, good.clone()) },
        Case { state: State::NotReady, ..by_name(Reason::NotReady, good.clone()) },
        by_name(Reason::Malformed, short_header),
        by_name(Reason::Vlan, tagged(&good, 7)),
        by_name(Reason::UnsupportedProtocol, link.frame(0x88cc, &[0; 50])),
        by_name(Reason::NotForGateway, tcp(Link { from: a.mac, to: b.mac }, from4, to4)),
        by_name(Reason::ForeignArp, others_arp.frame(Link { from: a.mac, to: BROADCAST })),
        by_name(Reason::ForeignNeighbour, advertisement),
        by_name(Reason::Multicast, tcp(link, from4, (group, 80))),
        by_name(Reason::LinkLocal, tcp(link, from6, (local, 80))),
        Case {
            hook: Hook::FromHost,
            ifindex: node.router_link(),
            ..by_name(
                Reason::UnknownDestination,
                tcp(
                    Link { from: HOST_MAC, to: HOST_MAC },
                    (ROUTER4.into(), 40000),
                    (Family::V4.outside(), 80),
                ),
            )
        },
        Case { state: State::Stale, ..by_name(Reason::StaleEndpoint, good) },
        by_name(Reason::UnknownFragment, later_fragment(a, b)),
        by_name(Reason::ExtensionHeaders, link.ip(from6.0, to6.0, 60, &chain)),
    ]
}

fn established_as(
    node: &Node,
    family: Family,
    what: &str,
    opened: &[(Hook, u32, Vec<u8>)],
) -> Case {
    let (a, b) = (&node.a, &node.b);
    let frame = tcp(a.to_gateway(), family.port(a, 40000), family.port(b, 80));
    Case { before: opened.to_vec(), ..Case::forwarded(node, family, what, frame) }
}

/// The packets after which many flows from pod a to pod b are known.
pub(super) fn many_flows(node: &Node) -> impl Iterator<Item = (Hook, u32, Vec<u8>)> {
    let (a, b) = (&node.a, &node.b);
    (0..MANY_FLOWS).flat_map(move |number| {
        let port = u16::try_from(1024 + number).unwrap_or(u16::MAX);
        let (from, to) = (Family::V4.port(a, port), Family::V4.port(b, 80));
        [
            (Hook::FromContainer, a.ifindex, tcp(a.to_gateway(), from, to)),
            (Hook::FromContainer, b.ifindex, tcp(b.to_gateway(), to, from)),
        ]
    })
}

/// First packets: of a flow that gets an entry for both its directions, and with the answer that makes it two.
fn new_flows(node: &Node) -> [Case; 2] {
    let (a, b) = (&node.a, &node.b);
    let to_b =
        a.to_gateway().udp(Family::V4.socket(a, 40000), Family::V4.socket(b, 53), &[0x5a; 64]);
    let first = Case::forwarded(node, Family::V4, "pod_to_pod/new", to_b);
    let own = Family::V4.socket(a, 40000);
    let to_itself = a.to_gateway().udp(own, own, &[0x5a; 64]);
    let mut after = relinked(&to_itself, a.delivered());
    limit_hops(&mut after, 63);
    let pair = Case::forwarded(node, Family::V4, "pod_to_pod/new/with_answer", to_itself);
    [
        Case { restore: Restore::NewFlow, lands: None, ..first },
        Case { restore: Restore::NewPair, lands: None, after, ..pair },
    ]
}

/// The packets that open the connection from port 40000 of pod a to port 80 of pod b.
fn handshake(node: &Node, family: Family) -> Vec<(Hook, u32, Vec<u8>)> {
    let (a, b) = (&node.a, &node.b);
    let there = |flags| {
        let mut frame = tcp(a.to_gateway(), family.port(a, 40000), family.port(b, 80));
        set_tcp_flags(&mut frame, flags);
        (Hook::FromContainer, a.ifindex, frame)
    };
    let mut answer = tcp(b.to_gateway(), family.port(b, 80), family.port(a, 40000));
    set_tcp_flags(&mut answer, SYN | ACK);
    vec![there(SYN), (Hook::FromContainer, b.ifindex, answer), there(ACK)]
}

/// Of a frame that [`tcp`] made.
fn set_tcp_flags(frame: &mut [u8], flags: u8) {
    let place = frame.len() - 7;
    frame[place] = flags;
}

/// A TCP acknowledgement without data or options (RFC 9293), its checksum left at zero, which no
/// program looks at.
pub(super) fn tcp(link: Link, from: (IpAddr, u16), to: (IpAddr, u16)) -> Vec<u8> {
    let ports = [from.1.to_be_bytes(), to.1.to_be_bytes()].concat();
    let rest = [0, 0, 0, 1, 0, 0, 0, 1, 5 << 4, ACK, 0xff, 0xff, 0, 0, 0, 0];
    link.ip(from.0, to.0, TCP, &[&ports[..], &rest].concat())
}

/// A later fragment of a UDP datagram whose first one was never sent.
fn later_fragment(from: &Pod, to: &Pod) -> Vec<u8> {
    let mut frame = from.to_gateway().ip(from.v4.into(), to.v4.into(), 17, &[0; 16]);
    // Sixteen bytes in (RFC 791, 3.1).
    frame[20..22].copy_from_slice(&2_u16.to_be_bytes());
    limit_hops(&mut frame, 64);
    frame
}

/// The same packet between other link-layer addresses.
fn relinked(frame: &[u8], link: Link) -> Vec<u8> {
    [&link.to[..], &link.from, &frame[12..]].concat()
}
