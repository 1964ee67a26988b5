//! A node's maps as they are, for tests that write what user space would write, or half of it.

use podwire_bpf::{Array, HashMap, LpmTrie, LruHashMap, Map, PerCpuArray, TypedMap};
use podwire_datapath::{
    FlowTable, Tables,
    abi::{
        Address, CHANGING, Counter, FlowEntry, FragmentKey, FragmentPorts, IpcacheEntry,
        NodeConfig, NodeState, PendingSet, PolicyKey, PolicyRow, PortRule, Slot, WAYS, map,
        remote_place,
    },
};

/// Every map.
pub struct Maps {
    pub config: Array<NodeConfig>,
    pub slots: Array<Slot>,
    pub links: HashMap<u32, u32>,
    pub state: Array<NodeState>,
    pub ipcache: HashMap<Address, IpcacheEntry>,
    pub prefixes: LpmTrie<Address, IpcacheEntry>,
    pub remotes: Array<u64>,
    pub flow_ways: Array<u64>,
    pub policy: HashMap<PolicyKey, PolicyRow>,
    pub policy_rules: Array<PortRule>,
    pub fragments: LruHashMap<FragmentKey, FragmentPorts>,
    pub metrics: PerCpuArray<Counter>,
    pub flow_events: PerCpuArray<u64>,
    tables: Tables,
}

/// What a change is about.
#[derive(Clone, Debug, Default)]
pub struct Marks {
    /// Every flow.
    pub all: bool,
    /// What these slots say.
    pub slots: Vec<u32>,
    /// Who has these addresses.
    pub addresses: Vec<Address>,
}

impl Maps {
    /// Of the node that this thread is on.
    pub fn open() -> Self {
        Self {
            config: open(map::CONFIG),
            slots: open(map::SLOTS),
            links: open(map::LINKS),
            state: open(map::STATE),
            ipcache: open(map::IPCACHE),
            prefixes: open(map::PREFIXES),
            remotes: open(map::REMOTES),
            flow_ways: open(map::FLOW_WAYS),
            policy: open(map::POLICY),
            policy_rules: open(map::POLICY_RULES),
            fragments: open(map::FRAGMENTS),
            metrics: open(map::METRICS),
            flow_events: open(map::FLOW_EVENTS),
            tables: Tables::open("/sys/fs/bpf/podwire").unwrap(),
        }
    }

    pub fn flows(&self) -> &FlowTable<[FlowEntry; WAYS]> {
        self.tables.confirmed()
    }

    pub fn pending(&self) -> &FlowTable<PendingSet> {
        self.tables.unconfirmed()
    }

    /// Changes the maps as user space does, from the marks to the raised ticket.
    pub fn change(&self, marks: &Marks, write: impl FnOnce(&Self)) {
        let ticket = self.state.get(0).unwrap().ticket + 1;
        self.mark(marks, CHANGING);
        write(self);
        self.mark(marks, ticket);
        self.raise(ticket);
    }

    /// Writes whether, or by which change, something has changed.
    pub fn mark(&self, marks: &Marks, ticket: u64) {
        if marks.all {
            let state = self.state.get(0).unwrap();
            self.state.set(0, &NodeState { changed: ticket, ..state }).unwrap();
        }
        for &slot in &marks.slots {
            self.edit_slot(slot, |slot| slot.changed = ticket);
        }
        for address in &marks.addresses {
            self.remotes.set(remote_place(address), &ticket).unwrap();
        }
    }

    pub fn raise(&self, ticket: u64) {
        let state = self.state.get(0).unwrap();
        self.state.set(0, &NodeState { ticket, ..state }).unwrap();
    }

    pub fn tick(&self, seconds: u32) {
        let state = self.state.get(0).unwrap();
        let seconds = state.seconds.wrapping_add(seconds);
        self.state.set(0, &NodeState { seconds, ..state }).unwrap();
    }

    pub fn edit_slot(&self, number: u32, edit: impl FnOnce(&mut Slot)) {
        let mut slot = self.slots.get(number).unwrap();
        edit(&mut slot);
        self.slots.set(number, &slot).unwrap();
    }
}

fn open<M: TypedMap>(name: &str) -> M {
    M::from_map(Map::open(format!("/sys/fs/bpf/podwire/maps/{name}")).unwrap()).unwrap()
}
