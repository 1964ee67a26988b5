//! The programs beside the model: the same packets to both, and no difference.
//!
//! An input is a sequence of steps: a packet, or a change of what the node's tables say. Bytes decide
//! everything, so that a fuzzer and a seeded generator can both lead here (`fuzz/fuzz_targets/packet.rs`,
//! `tests/differential.rs`).
#![allow(
    unreachable_pub,
    dead_code,
    clippy::unwrap_used,
    reason = "every program that includes this module uses a part of it, and fails by panicking"
)]

mod build;

use std::{collections::BTreeMap, net::IpAddr};

use podwire_bpf::{Array, HashMap, LruHashMap, Map, PerCpuArray, SkbContext, TestRun, TypedMap};
use podwire_datapath::abi::{
    Address, Counter, FlowEntry, FlowKey, FragmentKey, FragmentPorts, Hook, IpcacheEntry,
    NodeConfig, Protocol, Reason, Slot, map, metric_index, slot_flag,
};

use super::{
    model::{self, Action, Fate, Flow, Fragmented, Holder, Packet, Through},
    node::{self, Node},
};
pub use build::Input;

/// Steps of one input at most.
const STEPS: usize = 24;

/// Inputs after which every counter and table is looked at, and not only what a packet concerns.
const INPUTS_BETWEEN_FULL_CHECKS: u64 = 4096;

/// Flags of an endpoint whose host link, and then the stack, must see all that it sends.
const STACK: u32 = slot_flag::DELIVER_TO_EGRESS | slot_flag::BY_STACK;

/// A node's programs, its tables, and the model of both.
pub struct Differential<'n> {
    node: &'n Node,
    tables: Tables,
    original: Original,
    model: model::Node,
    /// What must have been counted so far: packets and bytes.
    counted: BTreeMap<(Hook, Reason), (u64, u64)>,
    inputs: u64,
    /// Packets that were judged.
    pub packets: u64,
}

struct Tables {
    config: Array<NodeConfig>,
    slots: Array<Slot>,
    links: HashMap<u32, u32>,
    ipcache: HashMap<Address, IpcacheEntry>,
    flows: LruHashMap<FlowKey, FlowEntry>,
    flow_senders: Array<u32>,
    fragments: LruHashMap<FragmentKey, FragmentPorts>,
    metrics: PerCpuArray<Counter>,
}

/// What the tables said at first, to which every input returns.
struct Original {
    config: NodeConfig,
    place_a: u32,
    place_b: u32,
    slot_a: Slot,
    slot_b: Slot,
    v4_of_b: IpcacheEntry,
}

impl<'n> Differential<'n> {
    pub fn new(node: &'n Node) -> Self {
        let tables = Tables {
            config: open(map::CONFIG),
            slots: open(map::SLOTS),
            links: open(map::LINKS),
            ipcache: open(map::IPCACHE),
            flows: open(map::FLOWS),
            flow_senders: open(map::FLOW_SENDERS),
            fragments: open(map::FRAGMENTS),
            metrics: open(map::METRICS),
        };
        let place = |pod: &node::Pod| tables.links.get(&pod.ifindex).unwrap().unwrap();
        let (place_a, place_b) = (place(&node.a), place(&node.b));
        let original = Original {
            config: tables.config.get(0).unwrap(),
            place_a,
            place_b,
            slot_a: tables.slots.get(place_a).unwrap(),
            slot_b: tables.slots.get(place_b).unwrap(),
            v4_of_b: tables.ipcache.get(&IpAddr::from(node.b.v4).into()).unwrap().unwrap(),
        };
        let mut this = Self {
            node,
            tables,
            original,
            model: model::Node::default(),
            counted: BTreeMap::new(),
            inputs: 0,
            packets: 0,
        };
        this.model.slots = vec![model::Slot::default(); this.tables.slots.len() as usize];
        this.read_tables();
        this
    }

    /// Fates that were met so far.
    pub fn fates(&self) -> impl Iterator<Item = (Hook, Reason)> + '_ {
        self.counted.keys().copied()
    }

    /// Takes all steps of an input.
    ///
    /// # Panics
    /// When programs and model differ, with what each of them says.
    pub fn run(&mut self, bytes: &[u8]) {
        let mut input = Input::new(bytes);
        let mut changed = false;
        for _ in 0..STEPS {
            let Some(what) = input.next() else { break };
            if what % 16 == 15 {
                self.change(input.byte());
                changed = true;
            } else {
                let packet = build::packet(&mut input, self.node);
                self.judge(&packet);
            }
        }
        self.forget_flows();
        if changed {
            self.restore();
        }
        self.inputs += 1;
        if self.inputs.is_multiple_of(INPUTS_BETWEEN_FULL_CHECKS) {
            self.check_all();
        }
    }

    /// Changes what the tables say, as user space does or as it may look while user space is at it.
    fn change(&mut self, what: u8) {
        let Original { config, place_a, place_b, slot_a, slot_b, v4_of_b } = &self.original;
        let elsewhere = place_a + 100;
        // It may be elsewhere by now.
        let now_a = self.tables.links.get(&self.node.a.ifindex).unwrap().unwrap();
        let flagged = |place: u32, slot: &Slot, flags: u32| {
            self.tables.slots.set(place, &Slot { flags, ..*slot }).unwrap();
        };
        match if what < 192 { what % 6 } else { 6 + what % 4 } {
            0 => flagged(*place_b, slot_b, slot_flag::DELIVER_TO_EGRESS),
            1 => self.tables.config.set(0, &NodeConfig { host_ifindex: 0, ..*config }).unwrap(),
            2 => {
                let stale = IpcacheEntry { generation: v4_of_b.generation + 2, ..*v4_of_b };
                self.tables.ipcache.insert(&IpAddr::from(self.node.b.v4).into(), &stale).unwrap();
            }
            3 => {
                let empty = Slot { generation: slot_b.generation + 1, ..Slot::default() };
                self.tables.slots.set(*place_b, &empty).unwrap();
            }
            4 => {
                let known = self.tables.flow_senders.get(*place_a).unwrap();
                self.tables.flow_senders.set(elsewhere, &known).unwrap();
                self.tables.slots.set(elsewhere, slot_a).unwrap();
                self.tables.links.insert(&self.node.a.ifindex, &elsewhere).unwrap();
                self.tables.slots.set(*place_a, &Slot::default()).unwrap();
            }
            6 => flagged(now_a, slot_a, STACK),
            7 => flagged(*place_b, slot_b, STACK),
            8 => flagged(now_a, slot_a, STACK | slot_flag::CHAINED),
            9 => flagged(*place_b, slot_b, STACK | slot_flag::CHAINED),
            _ => {
                let without = NodeConfig {
                    router_ipv4: podwire_datapath::abi::Be32::new(0),
                    router_ipv6: Address::UNSPECIFIED,
                    ..*config
                };
                self.tables.config.set(0, &without).unwrap();
            }
        }
        self.read_tables();
    }

    fn restore(&mut self) {
        let Original { config, place_a, place_b, slot_a, slot_b, v4_of_b } = &self.original;
        self.tables.config.set(0, config).unwrap();
        self.tables.slots.set(*place_a, slot_a).unwrap();
        self.tables.slots.set(*place_b, slot_b).unwrap();
        self.tables.slots.set(place_a + 100, &Slot::default()).unwrap();
        self.tables.links.insert(&self.node.a.ifindex, place_a).unwrap();
        self.tables.ipcache.insert(&IpAddr::from(self.node.b.v4).into(), v4_of_b).unwrap();
        self.read_tables();
    }

    /// Tells the model what the tables say.
    fn read_tables(&mut self) {
        let config = self.tables.config.get(0).unwrap();
        self.model.config = (config.host_ifindex != 0).then(|| model::Config {
            router4: v4(IpAddr::from(Address::from_ipv4_raw(config.router_ipv4))),
            router6: v6(config.router_ipv6.into()),
            host_mac: config.to_host.destination(),
            net_mac: config.to_host.source(),
        });
        let Original { place_a, place_b, .. } = self.original;
        for place in [place_a, place_b, place_a + 100] {
            self.model.slots[place as usize] = slot(&self.tables.slots.get(place).unwrap());
        }
        for pod in [&self.node.a, &self.node.b] {
            let number = self.tables.links.get(&pod.ifindex).unwrap().unwrap();
            self.model.links.insert(pod.ifindex, number);
        }
        let entries = self.tables.ipcache.entries().unwrap();
        self.model.addresses =
            entries.into_iter().map(|(address, entry)| (address.into(), holder(&entry))).collect();
    }

    fn judge(&mut self, packet: &Packet) {
        if is_refused_by_the_kernel(&packet.frame) {
            return;
        }
        let fate = self.model.judge(packet);
        let context = SkbContext {
            ifindex: packet.ifindex,
            mark: packet.mark,
            gso_size: packet.gso_size,
            ..SkbContext::default()
        };
        let run = TestRun::new(&packet.frame).context(context);
        let program = self.node.datapath.program(node::program_at(packet.hook)).unwrap();
        let output = match program.test_run(&run) {
            Ok(output) => output,
            Err(error) => panic!("{error:#}\n{}", account(packet, &fate)),
        };
        self.packets += 1;
        let action = match output.return_value {
            node::REDIRECT => Action::Redirect,
            node::SHOT => Action::Shot,
            node::NEXT => Action::Next,
            other => panic!("the program answers {other}\n{}", account(packet, &fate)),
        };
        let counted = self.counted.entry((packet.hook, fate.reason)).or_default();
        counted.0 += 1;
        counted.1 += fate.frame.len() as u64;
        let index = metric_index(packet.hook, fate.reason);
        let counters = self.tables.metrics.get(index).unwrap();
        let total = counters
            .iter()
            .fold((0, 0), |(packets, bytes), one| (packets + one.packets, bytes + one.bytes));
        let mark = output.context.mark;
        if action == fate.action
            && total == *counted
            && output.data == fate.frame
            && mark == fate.mark
        {
            self.check_flows(packet, &fate);
            return;
        }
        let rows = self.node.datapath.tables().metrics().unwrap();
        let moved: Vec<_> = rows
            .iter()
            .filter(|row| {
                let before = self.counted.get(&(row.hook, row.reason)).map_or(0, |c| c.0);
                row.packets != before
            })
            .map(|row| format!("{} {}", row.hook, row.reason))
            .collect();
        panic!(
            "program: {action:?}, mark {mark:#x}, counter {total:?} of {:?} expected, \
             counters that differ {moved:?}\n  frame {:02x?}\n{}",
            self.counted[&(packet.hook, fate.reason)],
            output.data,
            account(packet, &fate)
        );
    }

    /// What the packet did to flows and fragments.
    fn check_flows(&self, packet: &Packet, fate: &Fate) {
        for flow in &fate.flows {
            let kernel = self.tables.flows.get(&flow_key(flow)).unwrap();
            let kernel = kernel.map(|entry| (entry.packets, entry.bytes));
            let model = self.model.flows.get(flow).map(|counted| (counted.packets, counted.bytes));
            let what = || format!("{flow:?}\n{}", account(packet, fate));
            assert_eq!(kernel, model, "entry of {}", what());
        }
        if let Some(fragmented) = &fate.fragmented {
            let kernel = self.tables.fragments.get(&fragment_key(fragmented)).unwrap();
            let kernel =
                kernel.map(|ports| (ports.source_port.get(), ports.destination_port.get()));
            let model = self.model.fragments.get(fragmented).copied();
            let what = || format!("{fragmented:?}\n{}", account(packet, fate));
            assert_eq!(kernel, model, "ports of {}", what());
        }
    }

    /// So that inputs do not depend on each other.
    fn forget_flows(&mut self) {
        for flow in std::mem::take(&mut self.model.flows).into_keys() {
            self.tables.flows.remove(&flow_key(&flow)).unwrap();
        }
        for fragmented in std::mem::take(&mut self.model.fragments).into_keys() {
            self.tables.fragments.remove(&fragment_key(&fragmented)).unwrap();
        }
    }

    /// Every counter, and every row that packets may write.
    ///
    /// # Panics
    /// When one is not what the model says.
    pub fn check_all(&self) {
        let rows = self.node.datapath.tables().metrics().unwrap();
        let rows: BTreeMap<_, _> =
            rows.iter().map(|row| ((row.hook, row.reason), (row.packets, row.bytes))).collect();
        assert_eq!(rows, self.counted, "counters");
        assert_eq!(self.tables.flows.entries().unwrap(), [], "flows that the model does not know");
        let fragments = self.tables.fragments.entries().unwrap();
        assert_eq!(fragments, [], "fragments that the model does not know");
    }
}

/// `BPF_PROG_TEST_RUN` takes no frame without a link-layer header, nor one that says to be IP and is
/// shorter than an IP header (`bpf_prog_test_run_skb` in `net/bpf/test_run.c`).
fn is_refused_by_the_kernel(frame: &[u8]) -> bool {
    match frame.get(12..14) {
        None => true,
        Some([8, 0]) => frame.len() < 14 + 20,
        Some([0x86, 0xdd]) => frame.len() < 14 + 40,
        Some(_) => frame.len() == 14,
    }
}

fn account(packet: &Packet, fate: &Fate) -> String {
    let Packet { hook, ifindex, mark, gso_size, frame } = packet;
    format!(
        "packet: at {hook}, interface {ifindex}, mark {mark:#x}, gso {gso_size}\n  frame {frame:02x?}\n\
         model: {:?} {}, mark {:#x}\n  frame {:02x?}",
        fate.action, fate.reason, fate.mark, fate.frame
    )
}

fn open<M: TypedMap>(name: &str) -> M {
    M::from_map(Map::open(format!("/sys/fs/bpf/podwire/maps/{name}")).unwrap()).unwrap()
}

fn v4(address: IpAddr) -> Option<std::net::Ipv4Addr> {
    match address {
        IpAddr::V4(v4) if !v4.is_unspecified() => Some(v4),
        _ => None,
    }
}

fn v6(address: IpAddr) -> Option<std::net::Ipv6Addr> {
    match address {
        IpAddr::V6(v6) if !v6.is_unspecified() => Some(v6),
        _ => None,
    }
}

/// A slot never has one of its flags without those that go with it.
fn through(flags: u32) -> Through {
    match flags & STACK {
        STACK => Through::Stack,
        slot_flag::DELIVER_TO_EGRESS => Through::Egress,
        0 => Through::Peer,
        other => panic!("flags {other:#x}"),
    }
}

fn slot(slot: &Slot) -> model::Slot {
    let endpoint = model::Endpoint {
        ifindex: slot.ifindex,
        mac: slot.to_pod.destination(),
        host_mac: slot.to_pod.source(),
        v4: v4(Address::from_ipv4_raw(slot.ipv4).into()),
        v6: v6(slot.ipv6.into()),
        through: through(slot.flags),
        chained: slot.flags & slot_flag::CHAINED != 0,
    };
    let endpoint = (slot.generation % 2 == 1).then_some(endpoint);
    model::Slot { generation: slot.generation, endpoint }
}

fn holder(entry: &IpcacheEntry) -> Holder {
    match entry.slot {
        IpcacheEntry::NO_SLOT => Holder::NoEndpoint,
        number => Holder::Slot { number, generation: entry.generation },
    }
}

fn flow_key(flow: &Flow) -> FlowKey {
    let protocol = Protocol(flow.protocol);
    FlowKey::new(flow.from.0.into(), flow.to.0.into(), flow.from.1, flow.to.1, protocol)
}

fn fragment_key(fragmented: &Fragmented) -> FragmentKey {
    FragmentKey {
        source: fragmented.from.into(),
        destination: fragmented.to.into(),
        identification: podwire_datapath::abi::Be32::new(fragmented.identification),
        protocol: Protocol(fragmented.protocol),
        reserved: [0; 3],
    }
}
