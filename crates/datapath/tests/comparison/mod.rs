//! The programs beside the model: the same packets to both, and no difference.
//!
//! An input is a sequence of steps: a packet, mostly of one conversation, or a change of what the node's
//! tables say. Bytes decide everything, so that a fuzzer and a seeded generator can both lead here
//! (`fuzz/fuzz_targets/packet.rs`, `tests/differential.rs`).
#![allow(
    unreachable_pub,
    dead_code,
    clippy::unwrap_used,
    reason = "every program that includes this module uses a part of it, and fails by panicking"
)]

mod build;
mod changes;
mod rows;
mod rules;
mod talk;

use std::collections::{BTreeMap, BTreeSet};

use podwire_bpf::{SkbContext, TestRun};
use podwire_datapath::{
    Options,
    abi::{Address, Be16, Flow, FlowEvent, FlowKey, Hook, Reason, Verdict, metric_index},
};

use super::{
    model::{self, Action, Fate, Packet},
    node::{self, Maps, Node},
};
pub use build::Input;
use changes::Changes;
use talk::Talk;

/// Steps of one input at most.
const STEPS: usize = 32;

/// Inputs after which every counter and table is looked at, and not only what a packet concerns.
const INPUTS_BETWEEN_FULL_CHECKS: u64 = 4096;

/// A node's programs, its tables, and the model of both.
pub struct Differential<'n> {
    node: &'n Node,
    maps: &'n Maps,
    changes: Changes<'n>,
    model: model::Node,
    /// What must have been counted so far: packets and bytes.
    counted: BTreeMap<(Hook, Reason), (u64, u64)>,
    inputs: u64,
    /// Packets that were judged.
    pub packets: u64,
}

/// A node with tables so small that an input can fill that of confirmed flows.
pub fn on_small_node(test: impl FnOnce(&Node) + Send) {
    let small = |options| Options { slots: 512, flows: 4, pending: 1024, remotes: 64, ..options };
    node::on_node_with(small, test);
}

/// Directions of confirmed flows that the smallest table has room for, beside those of nobody.
const ROOM: u16 = 4;
/// A slot that no pod of these tests has.
const NOBODY: u16 = 500;

/// Fills the table of confirmed flows but for a few.
fn occupy(maps: &Maps) {
    let key =
        |port| FlowKey { endpoint: NOBODY, local_port: Be16::new(port), ..FlowKey::default() };
    let is_there = |port: &u16| {
        let verdict = Verdict::new(1, key(*port).tag(), 0, 0);
        maps.flows().insert(&key(*port), Flow { verdict, ..Flow::default() })
    };
    let taken = (0..).take_while(is_there).count();
    assert_eq!(taken, podwire_datapath::abi::WAYS, "it has one set");
    (0..ROOM).for_each(|port| assert!(maps.flows().remove(&key(port))));
}

impl<'n> Differential<'n> {
    pub fn new(node: &'n Node) -> Self {
        let maps = &node.maps;
        let changes = Changes::new(node);
        occupy(maps);
        let model = model::Node {
            slots: vec![model::Slot::default(); maps.slots.len() as usize],
            flows: model::Flows { room: ROOM.into(), ..Default::default() },
            policies: model::Policies {
                rules: rules::RULES.iter().map(rows::rule).collect(),
                ..Default::default()
            },
            ..model::Node::default()
        };
        let counted = BTreeMap::new();
        let mut this = Self { node, maps, changes, model, counted, inputs: 0, packets: 0 };
        this.changes.tell(&mut this.model);
        this
    }

    /// Fates that were met so far.
    pub fn fates(&self) -> impl Iterator<Item = (Hook, Reason)> + '_ {
        self.counted.keys().copied()
    }

    /// What has happened to flows so far.
    pub fn events(&self) -> impl Iterator<Item = FlowEvent> + '_ {
        self.model.events.keys().copied()
    }

    /// Takes all steps of an input.
    ///
    /// # Panics
    /// When programs and model differ, with what each of them says.
    pub fn run(&mut self, bytes: &[u8]) {
        let mut input = Input::new(bytes);
        let mut talk = Talk::begin(&mut input, self.node);
        let mut changed = false;
        for _ in 0..STEPS {
            let Some(what) = input.next() else { break };
            match what % 16 {
                0..8 => {
                    let packet = talk.packet(&mut input, self.node);
                    self.judge(&packet);
                }
                8 => {
                    let packet = talk.error(&mut input, self.node);
                    self.judge(&packet);
                }
                9 => talk = Talk::begin(&mut input, self.node),
                10..14 => {
                    let packet = build::packet(&mut input, self.node);
                    self.judge(&packet);
                }
                _ => {
                    self.changes.next(&mut input, &mut self.model);
                    changed = true;
                }
            }
        }
        self.forget_flows();
        if changed {
            self.changes.restore();
            self.changes.tell(&mut self.model);
        }
        self.inputs += 1;
        if self.inputs.is_multiple_of(INPUTS_BETWEEN_FULL_CHECKS) {
            self.check_all();
        }
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
        let counters = self.maps.metrics.get(index).unwrap();
        let total = counters
            .iter()
            .fold((0, 0), |(packets, bytes), one| (packets + one.packets, bytes + one.bytes));
        let mark = output.context.mark;
        if action == fate.action
            && total == *counted
            && output.data == fate.frame
            && mark == fate.mark
        {
            self.check_tables(packet, &fate);
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
             counters that differ {moved:?}\n  frame {:02x?}\n{}\n{}",
            self.counted[&(packet.hook, fate.reason)],
            output.data,
            account(packet, &fate),
            self.state()
        );
    }

    /// What the packet did to flows and fragments.
    fn check_tables(&self, packet: &Packet, fate: &Fate) {
        let what = || format!("{}\n{}", account(packet, fate), self.state());
        for key in &fate.flows {
            let place = rows::flow_key(key);
            let raw = self.maps.flows().get(&place);
            let kernel = raw.map(|flow| rows::flow(&place, &flow));
            let model = self.model.flows.confirmed.get(key).copied().map(Some);
            assert_eq!(kernel, model, "program's and model's {key:?}, {raw:x?}\n{}", what());
            let raw = self.maps.pending().get(&place, &self.local_address(&place));
            let kernel = raw.map(|pending| rows::pending(&place, &pending));
            let model = self.model.flows.pending.get(key).copied().map(Some);
            assert_eq!(
                kernel,
                model,
                "program's and model's pending {key:?}, {raw:x?}\n{}",
                what()
            );
        }
        if let Some(fragmented) = &fate.fragmented {
            let kernel = self.maps.fragments.get(&rows::fragment_key(fragmented)).unwrap();
            let kernel =
                kernel.map(|ports| (ports.source_port.get(), ports.destination_port.get()));
            let model = self.model.fragments.get(fragmented).copied();
            assert_eq!(kernel, model, "ports of {fragmented:?}\n{}", what());
        }
        let events = self.flow_events();
        assert_eq!(events, self.model.events, "program's and model's events\n{}", what());
    }

    /// The address of the endpoint that a flow is of.
    fn local_address(&self, key: &FlowKey) -> Address {
        let slot = self.maps.slots.get(key.endpoint.into()).unwrap();
        if key.peer.is_ipv4() { Address::from_ipv4_raw(slot.ipv4) } else { slot.ipv6 }
    }

    fn flow_events(&self) -> BTreeMap<FlowEvent, u64> {
        let totals = self.maps.flow_events.totals().unwrap();
        let all = FlowEvent::ALL.iter().map(|&event| (event, totals[event as usize]));
        all.filter(|&(_, count)| count != 0).collect()
    }

    /// What the model knows, for the account of a difference.
    fn state(&self) -> String {
        let model::Node { ticket, changed, seconds, slots, flows, addresses, .. } = &self.model;
        let mut text = format!("ticket {ticket}, all changed {changed}, seconds {seconds}\n");
        for (number, slot) in (0..).zip(slots).filter(|(_, slot)| **slot != Default::default()) {
            text += &format!("slot {number}: {slot:?}\n");
        }
        addresses.iter().for_each(|(address, known)| text += &format!("{address}: {known:?}\n"));
        let prefixes = &self.model.prefixes;
        prefixes.iter().for_each(|(prefix, known)| text += &format!("{prefix:?}: {known:?}\n"));
        for (policy, row) in &self.model.policies.rows {
            text += &format!("policy {policy:?}: {row:?}\n");
        }
        for (key, flow) in &flows.confirmed {
            text += &format!("flow {key:?}: {flow:?}\n");
        }
        for (key, pending) in &flows.pending {
            text += &format!("pending {key:?}: {pending:?}\n");
        }
        text
    }

    /// So that inputs do not depend on each other.
    fn forget_flows(&mut self) {
        for key in std::mem::take(&mut self.model.flows.confirmed).into_keys() {
            self.maps.flows().remove(&rows::flow_key(&key));
        }
        let pending = std::mem::take(&mut self.model.flows.pending).into_keys();
        let pending: BTreeSet<_> = pending.map(|key| rows::flow_key(&key).words()).collect();
        if !pending.is_empty() {
            self.maps.pending().retain(|key, _| !pending.contains(&key.words()));
        }
        for fragmented in std::mem::take(&mut self.model.fragments).into_keys() {
            self.maps.fragments.remove(&rows::fragment_key(&fragmented)).unwrap();
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
        assert_eq!(self.flow_events(), self.model.events, "events");
        let unknown = "that the model does not know";
        let flows = self.maps.flows().entries();
        let flows: Vec<_> = flows.iter().filter(|(key, _)| key.endpoint != NOBODY).collect();
        assert!(flows.is_empty(), "flows {unknown}: {flows:?}");
        assert_eq!(self.maps.pending().entries(), [], "pending flows {unknown}");
        assert_eq!(self.maps.fragments.entries().unwrap(), [], "fragments {unknown}");
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
