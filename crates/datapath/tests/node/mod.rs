//! A node for the programs: links, maps, two pods, and a judge that checks the counters.
#![allow(
    unreachable_pub,
    dead_code,
    unused_imports,
    clippy::unwrap_used,
    reason = "every test binary compiles this module for itself and uses a part of it"
)]

mod maps;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use podwire_bpf::{SkbContext, TestRun, TestRunOutput};
use podwire_datapath::{
    Attach, Datapath, EndpointConfig, MetricRow, NodeSetup, Options,
    abi::{Hook, Mac, Reason, program},
};
use podwire_lab::{Host, interface, probe::frame::Link};
use podwire_netlink::{Birth, Netlink, NewLink};

pub use maps::{Maps, Marks};

pub const ROUTER4: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 1);
pub const ROUTER6: Ipv6Addr = Ipv6Addr::new(0xfd00, 1, 0, 0, 0, 0, 0, 1);
pub const HOST_MAC: Mac = [2, 0, 0, 0, 0, 0xf0];
pub const NET_MAC: Mac = [2, 0, 0, 0, 0, 0xf1];

pub const REDIRECT: u32 = 7;
pub const SHOT: u32 = 2;
pub const NEXT: u32 = u32::MAX;

/// A pod, as far as the programs know it.
#[derive(Clone, Copy)]
pub struct Pod {
    pub ifindex: u32,
    pub mac: Mac,
    pub host_mac: Mac,
    pub v4: Ipv4Addr,
    pub v6: Ipv6Addr,
}

impl Pod {
    /// A frame from this pod to its gateway.
    pub fn to_gateway(self) -> Link {
        Link { from: self.mac, to: self.host_mac }
    }

    pub fn address(&self, like: IpAddr) -> IpAddr {
        if like.is_ipv4() { self.v4.into() } else { self.v6.into() }
    }

    pub fn both(&self) -> [IpAddr; 2] {
        [self.v4.into(), self.v6.into()]
    }
}

pub struct Node {
    pub datapath: Datapath,
    pub a: Pod,
    pub b: Pod,
    /// On a link that no endpoint is known on: it would have b's addresses.
    pub c: Pod,
    pub net_ifindex: u32,
    pub maps: Maps,
}

/// What became of a packet.
pub struct Judged {
    pub action: u32,
    pub reason: Reason,
    pub frame: Vec<u8>,
    pub mark: u32,
}

/// Runs `test` on a node of its own.
pub fn on_node(test: impl FnOnce(&Node) + Send) {
    on_node_with(|options| options, test);
}

/// The same, on a node whose tables have other sizes.
pub fn on_node_with(
    change: impl FnOnce(Options) -> Options + Send,
    test: impl FnOnce(&Node) + Send,
) {
    let host = Host::new().unwrap();
    host.run(|| test(&Node::new(change(Options::new("/sys/fs/bpf/podwire")))));
}

impl Node {
    fn new(options: Options) -> Self {
        let mut netlink = Netlink::open().unwrap();
        let mut pair = |name: &str, peer: &str| {
            let (end, other) = (name.parse().unwrap(), peer.parse().unwrap());
            netlink.create_link(&NewLink::veth(Birth::named(end), Birth::named(other))).unwrap();
            interface::index(name).unwrap()
        };
        let (host, a, b) =
            (pair("podwire_host", "podwire_net"), pair("pwa", "a"), pair("pwb", "b"));
        let stranger = pair("pwc", "c");
        let datapath = Datapath::open(&Options { attach: Attach::Auto, ..options }).unwrap();
        let net_ifindex = interface::index("podwire_net").unwrap();
        datapath
            .set_node(&NodeSetup {
                router_ipv4: Some(ROUTER4),
                router_ipv6: Some(ROUTER6),
                host_ifindex: host,
                host_mac: HOST_MAC,
                net_ifindex,
                net_mac: NET_MAC,
            })
            .unwrap();
        let pod = |ifindex: u32, number: u8| Pod {
            ifindex,
            mac: [2, 0, 0, 0, 1, number],
            host_mac: [2, 0, 0, 0, 2, number],
            v4: Ipv4Addr::new(10, 1, 0, number),
            v6: Ipv6Addr::new(0xfd00, 1, 0, 0, 0, 0, 0, number.into()),
        };
        let (a, b) = (pod(a, 2), pod(b, 3));
        let c = Pod { v4: b.v4, v6: b.v6, ..pod(stranger, 4) };
        let node = Self { datapath, a, b, c, net_ifindex, maps: Maps::open() };
        node.add("pwa", &node.a);
        node.add("pwb", &node.b);
        node
    }

    pub fn config(name: &str, pod: &Pod) -> EndpointConfig {
        EndpointConfig {
            host_link: name.to_owned(),
            ifindex: pod.ifindex,
            mac: pod.mac,
            host_mac: pod.host_mac,
            addresses: pod.both().to_vec(),
            delivery: podwire_datapath::Delivery::Peer,
            interface: podwire_datapath::Interface::Own,
            by: podwire_datapath::By::Filter,
        }
    }

    pub fn add(&self, name: &str, pod: &Pod) -> u32 {
        self.datapath.add_endpoint(&Self::config(name, pod)).unwrap()
    }

    /// What `pod` sends.
    pub fn pod_sends(&self, pod: &Pod, frame: &[u8]) -> Judged {
        self.judge(Hook::FromContainer, frame, pod.ifindex, 0)
    }

    /// What the host stack sends to pods.
    pub fn stack_sends(&self, frame: &[u8]) -> Judged {
        self.judge(Hook::FromHost, frame, self.net_ifindex, 0)
    }

    /// What goes out by a host link.
    pub fn link_sends(&self, pod: &Pod, frame: &[u8], mark: u32) -> Judged {
        self.judge(Hook::ToContainer, frame, pod.ifindex, mark)
    }

    /// Runs the program once; the packet must be counted once, at that hook and nowhere else.
    pub fn judge(&self, hook: Hook, frame: &[u8], ifindex: u32, mark: u32) -> Judged {
        let before = self.datapath.tables().metrics().unwrap();
        let output = self.run(hook, frame, ifindex, mark);
        let after = self.datapath.tables().metrics().unwrap();
        let grown: Vec<_> = after
            .iter()
            .map(|row| MetricRow { packets: row.packets - packets(&before, row), ..*row })
            .filter(|row| row.packets != 0)
            .collect();
        let [one] = grown[..] else { panic!("counted {grown:?}") };
        assert_eq!((one.hook, one.packets), (hook, 1), "counted {one:?}");
        assert_eq!(
            one.reason.is_drop(),
            output.return_value == SHOT,
            "{}: action {}",
            one.reason,
            output.return_value
        );
        Judged {
            action: output.return_value,
            reason: one.reason,
            frame: output.data,
            mark: output.context.mark,
        }
    }

    pub fn run(&self, hook: Hook, frame: &[u8], ifindex: u32, mark: u32) -> TestRunOutput {
        let context = SkbContext { ifindex, mark, ..SkbContext::default() };
        let run = TestRun::new(frame).context(context);
        self.datapath.program(program_at(hook)).unwrap().test_run(&run).unwrap()
    }
}

/// Name of the program that judges there.
pub fn program_at(hook: Hook) -> &'static str {
    match hook {
        Hook::FromContainer => program::FROM_CONTAINER,
        Hook::ToContainer => program::TO_CONTAINER,
        Hook::FromHost => program::FROM_HOST,
        Hook::FromNetdev => program::FROM_NETDEV,
        Hook::ToNetdev => program::TO_NETDEV,
        other => panic!("no program judges at {other}"),
    }
}

fn packets(rows: &[MetricRow], like: &MetricRow) -> u64 {
    let same = |row: &&MetricRow| row.hook == like.hook && row.reason == like.reason;
    rows.iter().find(same).map_or(0, |row| row.packets)
}

/// A TCP segment without options (RFC 9293) in a frame; its checksum is left at zero, which no
/// program looks at.
pub fn tcp(link: Link, from: (IpAddr, u16), to: (IpAddr, u16), flags: u8) -> Vec<u8> {
    let mut segment = Vec::new();
    segment.extend(from.1.to_be_bytes());
    segment.extend(to.1.to_be_bytes());
    segment.extend([0; 8]);
    segment.extend([5 << 4, flags, 0xff, 0xff, 0, 0, 0, 0]);
    link.ip(from.0, to.0, 6, &segment)
}

pub const SYN: u8 = 2;
pub const ACK: u8 = 16;

pub const FIN: u8 = 1;
pub const RST: u8 = 4;

/// A question from `from` to `to`, as `pod` sends it.
pub fn udp(pod: &Pod, from: IpAddr, to: IpAddr) -> Vec<u8> {
    pod.to_gateway().udp(SocketAddr::new(from, 40000), SocketAddr::new(to, 53), b"question")
}

/// TTL or hop limit of a frame.
pub fn hops(frame: &[u8]) -> u8 {
    if frame[12] == 8 { frame[22] } else { frame[21] }
}

/// The Ethernet addresses of a frame: destination, source.
pub fn addresses(frame: &[u8]) -> (&[u8], &[u8]) {
    (&frame[..6], &frame[6..12])
}

/// An ICMP error of `sender` (RFC 792, RFC 4443: port unreachable) that quotes the packet of a frame.
pub fn icmp_error(sender: &Pod, quoted: &[u8], to: IpAddr) -> Vec<u8> {
    let kind: &[u8] = if to.is_ipv4() { &[3, 3] } else { &[1, 4] };
    let message = [kind, &[0; 6], &quoted[14..]].concat();
    sender.to_gateway().icmp(sender.address(to), to, message)
}
