//! Flows in the kernel's maps, written by hand: no program is needed to tell what is over.
#![allow(clippy::print_stdout, reason = "what a test measured is worth knowing")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
    time::Instant,
};

use podwire_bpf::{Array, Map, TypedMap};
use podwire_datapath::{
    Datapath, FlowDirection, FlowFilter, FlowPath, FlowState, FlowTable, Options, Tables, Timeout,
    Timeouts,
    abi::{
        Address, Be16, Flow, FlowEntry, FlowKey, NodeState, Pending, Protocol, Slot, Verdict, WAYS,
        direction, map, recent, tcp_seen, verdict_flag,
    },
};
use podwire_lab::Host;
use proptest::{prelude::*, test_runner::TestRunner};

const BPFFS: &str = "/sys/fs/bpf/podwire";
const SLOTS: u32 = 64;

/// The clock, and the last ticket.
const NOW: u32 = 100_000;
const TICKET: u64 = 50;

const OPEN: u32 = (tcp_seen::SYN | tcp_seen::ACK) * (1 | 1 << tcp_seen::PEER);

/// The maps that a test writes into.
struct Maps {
    slots: Array<Slot>,
    tables: Tables,
}

/// Runs `test` with pinned maps of these sizes, in a host of its own.
fn with_maps(flows: u32, pending: u32, test: impl FnOnce(&Maps) + Send) {
    Host::new().unwrap().run(|| test(&Maps::new(flows, pending)));
}

impl Maps {
    fn new(flows: u32, pending: u32) -> Self {
        let options = Options { slots: SLOTS, flows, pending, ..Options::new(BPFFS) };
        drop(Datapath::open(&options).unwrap());
        fn open<M: TypedMap>(name: &str) -> M {
            M::from_map(Map::open(format!("{BPFFS}/maps/{name}")).unwrap()).unwrap()
        }
        let (slots, state): (Array<Slot>, Array<NodeState>) = (open(map::SLOTS), open(map::STATE));
        let drawn = state.get(0).unwrap();
        state.set(0, &NodeState { ticket: TICKET, seconds: NOW, ..drawn }).unwrap();
        let maps = Self { slots, tables: Tables::open(BPFFS).unwrap() };
        for number in 0..SLOTS / 2 {
            maps.take(number, 10);
        }
        maps
    }

    /// Gives a slot to an endpoint that came with that ticket.
    fn take(&self, number: u32, born: u64) {
        let slot = Slot {
            generation: 1,
            born,
            changed: born,
            ipv4: address(number).ipv4_raw(),
            ..Slot::default()
        };
        self.slots.set(number, &slot).unwrap();
    }

    /// Writes both directions of a conversation; gives their keys.
    fn confirm(&self, pair: &Pair) -> [FlowKey; 2] {
        let entries = pair.entries();
        for (key, flow) in &entries {
            assert_eq!(self.flows().get(key), None);
            assert!(self.flows().insert(key, *flow));
        }
        entries.map(|(key, _)| key)
    }

    fn flows(&self) -> &FlowTable<[FlowEntry; WAYS]> {
        self.tables.confirmed()
    }

    /// Writes a flow that is not confirmed, of the endpoint in slot 1.
    fn wait(&self, key: &FlowKey, pending: Pending) {
        assert!(self.tables.unconfirmed().insert(key, &address(1), pending));
    }

    fn sweep(&self) -> podwire_datapath::Sweep {
        self.tables.sweep(&Timeouts::default()).unwrap()
    }

    fn count(&self) -> (usize, usize) {
        (self.flows().entries().len(), self.tables.unconfirmed().entries().len())
    }
}

fn address(slot: u32) -> Address {
    Address::from_ipv4([10, 1, 0, u8::try_from(slot + 2).unwrap()])
}

/// A confirmed conversation, and how long its directions have been idle.
#[derive(Debug, Clone)]
struct Pair {
    protocol: Protocol,
    from: u16,
    /// The peer's slot, or nobody's of this node.
    to: Option<u16>,
    path: FlowPath,
    port: u16,
    tcp: u32,
    idle: [u32; 2],
    stamp: u64,
}

impl Default for Pair {
    fn default() -> Self {
        Self {
            protocol: Protocol::UDP,
            from: 1,
            to: Some(2),
            path: FlowPath::Straight,
            port: 1000,
            tcp: 0,
            idle: [0, 0],
            stamp: 20,
        }
    }
}

impl Pair {
    fn entries(&self) -> [(FlowKey, Flow); 2] {
        let peer = self.to.map_or(Address::from_ipv4([192, 0, 2, 1]), |to| address(to.into()));
        let key = FlowKey {
            endpoint: self.from,
            protocol: self.protocol,
            direction: direction::SENT,
            local_port: Be16::new(self.port),
            peer_port: Be16::new(80),
            peer,
        };
        let mut flags = if self.to.is_some() { verdict_flag::LOCAL_PEER } else { 0 };
        let (other, back) = match (self.path, self.to) {
            (FlowPath::Straight, Some(to)) => {
                (key.mirrored(to, address(self.from.into())), self.from)
            }
            _ => {
                flags |= verdict_flag::TO_STACK;
                (key.turned(), self.to.unwrap_or(0))
            }
        };
        let swapped = self.tcp >> tcp_seen::PEER | (self.tcp & 0xff) << tcp_seen::PEER;
        let flow = |key: &FlowKey, flags, peer: u16, seen, tcp, packets| {
            Flow {
                verdict: Verdict::new(self.stamp, key.tag(), flags, peer.into()),
                recent: recent::one(60),
                bytes: packets * 100,
                seen,
                created: NOW - 20_000,
                ..Flow::default()
            }
            .with(packets, tcp)
        };
        let [own, others] = self.idle.map(|idle| NOW - idle);
        let reply = flags | verdict_flag::REPLY;
        [
            (key, flow(&key, flags, self.to.unwrap_or(0), own, self.tcp, 4)),
            (other, flow(&other, reply, back, others, swapped, 6)),
        ]
    }

    fn timeout(&self) -> Timeout {
        let flow = Flow::default().with(0, self.tcp);
        Timeout::of(self.protocol, FlowState::of_confirmed(self.protocol, &flow))
    }
}

fn pending(idle: u32, tcp: u32) -> Pending {
    Pending {
        verdict: Verdict::new(20, 0, 0, 0),
        seen: NOW - idle,
        created: NOW - idle - 1,
        tcp,
        packets: 1,
        bytes: 60,
        ..Pending::default()
    }
}

fn key(port: u16, protocol: Protocol) -> FlowKey {
    let pair = Pair { port, protocol, ..Pair::default() };
    pair.entries()[0].0
}

#[test]
#[ignore = "needs root: makes and pins maps"]
fn only_what_is_idle_both_ways_goes() {
    with_maps(1024, 1024, |maps| {
        for (nth, path) in [FlowPath::Straight, FlowPath::Stack].into_iter().enumerate() {
            let nth = u16::try_from(nth).unwrap() * 100;
            let udp = Pair { path, port: 1 + nth, idle: [121, 121], ..Pair::default() };
            maps.confirm(&udp);
            maps.confirm(&Pair { port: 2 + nth, idle: [500, 120], ..udp.clone() });
            maps.confirm(&Pair { port: 3 + nth, idle: [0, 9000], ..udp.clone() });
            let tcp = Pair { protocol: Protocol::TCP, tcp: OPEN, ..udp.clone() };
            maps.confirm(&Pair { idle: [8001, 8001], ..tcp.clone() });
            maps.confirm(&Pair { port: 2 + nth, idle: [8001, 8000], ..tcp.clone() });
            let closing = OPEN | tcp_seen::FIN;
            maps.confirm(&Pair { port: 3 + nth, tcp: closing, idle: [601, 700], ..tcp.clone() });
            maps.confirm(&Pair { port: 4 + nth, tcp: closing, idle: [600, 700], ..tcp });
        }
        let sweep = maps.sweep();
        assert_eq!((sweep.flows, maps.count().0), (16, 16));
        assert_eq!(sweep.expired[Timeout::UdpReplied as usize], 2);
        assert_eq!(sweep.expired[Timeout::TcpEstablished as usize], 2);
        assert_eq!(sweep.expired[Timeout::TcpClosing as usize], 2);
        assert_eq!((sweep.expired_in_all(), sweep.orphaned), (6, 0));
        let again = maps.sweep();
        assert_eq!((again.flows, again.expired_in_all()), (16, 0));
    });
}

#[test]
#[ignore = "needs root: makes and pins maps"]
fn flows_that_wait_or_have_ended_go_in_their_time() {
    with_maps(1024, 1024, |maps| {
        let reset = tcp_seen::RST << tcp_seen::PEER;
        let closed = tcp_seen::FIN | tcp_seen::FIN << tcp_seen::PEER;
        for (port, protocol, tcp, stays, goes) in [
            (1, Protocol::TCP, tcp_seen::SYN, 60, 61),
            (3, Protocol::TCP, reset, 30, 31),
            (5, Protocol::TCP, closed, 30, 31),
            (7, Protocol::UDP, 0, 30, 31),
            (9, Protocol::ICMP, 0, 30, 31),
            (11, Protocol::SCTP, 0, 60, 61),
            (13, Protocol(47), 0, 60, 61),
        ] {
            maps.wait(&key(port, protocol), pending(stays, tcp));
            maps.wait(&key(port + 1, protocol), pending(goes, tcp));
        }
        let sweep = maps.sweep();
        assert_eq!((sweep.pending, maps.count().1), (7, 7));
        let expired = |timeout: Timeout| sweep.expired[timeout as usize];
        assert_eq!((expired(Timeout::TcpOpening), expired(Timeout::TcpEnded)), (1, 2));
        assert_eq!((expired(Timeout::UdpOneSided), expired(Timeout::Icmp)), (1, 1));
        let left = maps.tables.unconfirmed().entries();
        assert!(left.iter().all(|(key, _)| key.local_port.get() % 2 == 1), "{left:?}");
    });
}

#[test]
#[ignore = "needs root: makes and pins maps"]
fn what_endpoints_that_went_have_left_goes_at_once() {
    with_maps(1024, 1024, |maps| {
        let pair = Pair { idle: [0, 0], ..Pair::default() };
        maps.confirm(&Pair { port: 1, ..pair.clone() });
        // Slot 3 is empty; slot 4 has another holder since ticket 30.
        maps.slots.set(3, &Slot { generation: 2, ..Slot::default() }).unwrap();
        maps.take(4, 30);
        let off_node = Pair { to: None, path: FlowPath::Stack, ..pair.clone() };
        maps.confirm(&Pair { from: 3, ..off_node.clone() });
        maps.confirm(&Pair { from: 4, ..off_node.clone() });
        maps.confirm(&Pair { from: 4, port: 2, stamp: 30, ..off_node });
        maps.confirm(&Pair { port: 3, to: Some(4), ..pair.clone() });
        maps.wait(&FlowKey { endpoint: 3, ..key(9, Protocol::UDP) }, pending(0, 0));
        maps.wait(&key(9, Protocol::UDP), pending(0, 0));
        // As if an endpoint had come to slot 3 after the slots were read, and spoken.
        let young = Pending { verdict: Verdict::new(TICKET + 1, 0, 0, 0), ..pending(0, 0) };
        maps.wait(&FlowKey { endpoint: 3, ..key(10, Protocol::UDP) }, young);

        assert_eq!(maps.tables.flows().unwrap().len(), 3, "nobody is shown what is dead");
        let sweep = maps.sweep();
        assert_eq!((sweep.orphaned, sweep.expired_in_all()), (7, 0));
        assert_eq!((sweep.flows, sweep.pending), (4, 2));
        assert_eq!(maps.count(), (4, 2));
    });
}

#[test]
#[ignore = "needs root: makes and pins maps"]
fn a_conversation_is_one_row() {
    with_maps(1024, 1024, |maps| {
        let straight = Pair { idle: [3, 5], ..Pair::default() };
        maps.confirm(&straight);
        let off_node = Pair {
            protocol: Protocol::TCP,
            tcp: OPEN | tcp_seen::FIN << tcp_seen::PEER,
            to: None,
            path: FlowPath::Stack,
            ..Pair::default()
        };
        maps.confirm(&off_node);
        maps.wait(&key(7, Protocol::ICMP), pending(2, 0));
        let rows = maps.tables.flows().unwrap();
        let [waiting, straight, stack] = &rows[..] else { panic!("{rows:?}") };
        assert_eq!((straight.source_endpoint, straight.destination_endpoint), (Some(1), Some(2)));
        assert_eq!((straight.path, straight.state), (FlowPath::Straight, FlowState::Replied));
        assert_eq!((straight.source, straight.source_port), (IpAddr::from([10, 1, 0, 3]), 1000));
        assert_eq!((straight.destination_port, straight.idle, straight.age), (80, 3, 20_000));
        assert_eq!((straight.packets, straight.bytes), (5, 460));
        assert_eq!((straight.reply_packets, straight.reply_bytes), (7, 660));
        assert_eq!((stack.path, stack.state), (FlowPath::Stack, FlowState::Closing));
        assert_eq!((stack.source_endpoint, stack.destination_endpoint), (Some(1), None));
        assert_eq!(stack.destination, IpAddr::from([192, 0, 2, 1]));
        assert_eq!((waiting.state, waiting.age, waiting.packets), (FlowState::OneSided, 3, 1));

        // Of a pair whose first direction is gone the other tells the same.
        assert!(maps.flows().remove(&key(1000, Protocol::UDP)));
        let rows = maps.tables.flows().unwrap();
        let left = rows.iter().find(|row| row.protocol == Protocol::UDP).unwrap();
        assert_eq!((left.source, left.source_port), (straight.source, 1000));
        assert_eq!((left.packets, left.reply_packets), (0, 7));
    });
}

#[test]
#[ignore = "needs root: makes and pins maps"]
fn what_is_meant_is_flushed() {
    with_maps(1024, 1024, |maps| {
        for port in 1..=10 {
            maps.confirm(&Pair { port, ..Pair::default() });
            let off_node = Pair { to: None, path: FlowPath::Stack, from: 5, ..Pair::default() };
            maps.confirm(&Pair { port, ..off_node });
            maps.wait(&key(port, Protocol::TCP), pending(1, 1));
        }
        let flush = |filter: FlowFilter| {
            let listed = maps.tables.flows_that(&filter).unwrap().len();
            assert_eq!(maps.tables.flush_flows(&filter).unwrap(), listed, "{filter:?}");
            listed
        };
        let filter = FlowFilter::default();
        assert_eq!(flush(FlowFilter { port: Some(3), ..filter.clone() }), 3);
        assert_eq!(maps.count(), (36, 9), "both directions");
        assert_eq!(flush(FlowFilter { endpoint: Some(5), port: Some(4), ..filter.clone() }), 1);
        let ingress = Some(FlowDirection::Ingress);
        assert_eq!(flush(FlowFilter { direction: ingress, port: Some(5), ..filter.clone() }), 1);
        assert_eq!(flush(FlowFilter { state: Some(FlowState::Opening), ..filter.clone() }), 9);
        let prefix = Some("192.0.2.0/24".parse().unwrap());
        assert_eq!(flush(FlowFilter { prefix, ..filter.clone() }), 8);
        assert_eq!(flush(FlowFilter { protocol: Some(Protocol::TCP), ..filter.clone() }), 0);
        assert_eq!(maps.count(), (16, 0));
        // What no row shows goes with all of them.
        maps.slots.set(1, &Slot::default()).unwrap();
        assert_eq!(flush(filter), 0);
        assert_eq!(maps.count(), (0, 0));
    });
}

/// A sweep, against what a plain reading of its rules leaves.
#[test]
#[ignore = "needs root: makes and pins maps"]
fn a_sweep_leaves_what_the_rules_say() {
    with_maps(4096, 1024, |maps| {
        let idle = || prop_oneof![0..200_u32, Just(0), Just(8001), 500..700_u32, 7900..8100_u32];
        let protocol = prop_oneof![
            Just(Protocol::TCP),
            Just(Protocol::UDP),
            Just(Protocol::ICMP),
            Just(Protocol::SCTP)
        ];
        let pair = (
            protocol,
            0..6_u16,
            prop::option::of(6..12_u16),
            any::<bool>(),
            idle(),
            idle(),
            any::<u16>(),
        );
        let pairs = prop::collection::vec(pair, 0..200).prop_map(|pairs| {
            let pairs = (1_u16..).zip(pairs);
            pairs
                .map(|(port, (protocol, from, to, straight, one, other, tcp))| Pair {
                    protocol,
                    from,
                    to,
                    path: if straight && to.is_some() {
                        FlowPath::Straight
                    } else {
                        FlowPath::Stack
                    },
                    port,
                    tcp: u32::from(tcp),
                    idle: [one, other],
                    stamp: 20,
                })
                .collect::<Vec<_>>()
        });
        let mut runner = TestRunner::new(ProptestConfig::with_cases(60));
        runner
            .run(&pairs, |pairs| {
                let timeouts = Timeouts::default();
                let (mut expected, mut expired) = (BTreeSet::new(), BTreeMap::new());
                for pair in &pairs {
                    let keys = maps.confirm(pair);
                    if pair.idle.iter().all(|idle| *idle > timeouts.get(pair.timeout())) {
                        *expired.entry(pair.timeout()).or_insert(0) += 1;
                    } else {
                        expected.extend(keys.map(|key| format!("{key:?}")));
                    }
                }
                let sweep = maps.sweep();
                let left = maps.flows().entries();
                maps.flows().clear();
                prop_assert_eq!(sweep.flows as usize, left.len());
                let left: BTreeSet<_> = left.iter().map(|(key, _)| format!("{key:?}")).collect();
                prop_assert_eq!(left, expected);
                for timeout in Timeout::ALL {
                    let count = expired.get(&timeout).copied().unwrap_or(0);
                    prop_assert_eq!(sweep.expired[timeout as usize], count, "{}", timeout);
                }
                Ok(())
            })
            .unwrap();
    });
}

/// What a sweep over full tables costs; the shipped sizes.
#[test]
#[ignore = "needs root: makes and pins maps"]
fn a_sweep_over_full_tables_takes_little() {
    let shipped = Options::new(BPFFS);
    with_maps(shipped.flows, shipped.pending, |maps| {
        let filled = |idle: u32| {
            // Programs would take a flow's second set, where this does not: some find no room.
            let (mut conversations, mut n) = (0, 0_u32);
            while conversations < shipped.flows / 2 {
                let port = u16::try_from(n & 0xffff).unwrap();
                let from = u16::try_from(n >> 16).unwrap();
                n += 1;
                let pair = Pair { from, to: Some(9), port, idle: [idle; 2], ..Pair::default() };
                let [there, back] = pair.entries();
                if maps.flows().insert(&there.0, there.1) {
                    if maps.flows().insert(&back.0, back.1) {
                        conversations += 1;
                    } else {
                        maps.flows().remove(&there.0);
                    }
                }
            }
            let (mut waiting, mut n) = (0, 0_u32);
            while waiting < shipped.pending {
                let key = key(u16::try_from(n & 0xffff).unwrap(), Protocol::TCP);
                let peer = Address::from_ipv4(Ipv4Addr::from(0xc000_0200 + n).octets());
                n += 1;
                let table = maps.tables.unconfirmed();
                let key = FlowKey { peer, ..key };
                waiting += u32::from(table.insert(&key, &address(1), pending(idle, 1)));
            }
            (conversations, waiting)
        };
        let (conversations, waiting) = filled(0);
        let alive = maps.sweep();
        assert_eq!((alive.flows, alive.pending), (2 * conversations, waiting));
        println!("nothing over of {} and {}: {:?}", alive.flows, alive.pending, alive.took);
        let start = Instant::now();
        let again = maps.sweep();
        println!("once more: {:?}, {:?} in all", again.took, start.elapsed());
        maps.flows().clear();
        maps.tables.unconfirmed().clear();
        assert_eq!(maps.count(), (0, 0));
        let (conversations, _) = filled(10_000);
        let over = maps.sweep();
        assert_eq!(
            (over.flows, over.expired[Timeout::UdpReplied as usize]),
            (0, u64::from(conversations))
        );
        println!("all over: {:?}", over.took);
        assert_eq!(maps.count(), (0, 0));
    });
}
