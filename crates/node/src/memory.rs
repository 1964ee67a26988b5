//! The kernel's part in memory, for the tests of the rules above it.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Mutex;
use std::time::Duration;

use ipnetwork::IpNetwork;
use podwire_api::{AttachMode, Delivery, Difference, Disciplines, Mac};
use podwire_datapath::abi::identity::HOST;
use podwire_datapath::abi::{Hook, Reason};
use podwire_datapath::{FlowEvent, MapRow, MetricRow, NatSwept, Sweep, Timeout, Timeouts, map};

use crate::error::Source;
use crate::node::policy::is_whole;
use crate::seam::{Datapath, Flows, Link, Links, Mappings, Pin, Routes, Row, Survey, Terms};

#[derive(Debug, Default)]
pub(crate) struct MemoryDatapath {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    rows: BTreeMap<u32, Row>,
    attached: BTreeMap<String, u32>,
    settled: BTreeSet<String>,
    failing: BTreeSet<String>,
    terms: BTreeMap<u32, Terms>,
    identities: BTreeMap<IpNetwork, u32>,
}

impl State {
    fn put_on(&mut self, ifindex: u32, terms: &Terms) {
        let last = self.terms.remove(&ifindex).and_then(|last| last.policy);
        let policy = terms.policy.clone().or(last).unwrap_or_default();
        self.terms.insert(ifindex, Terms { policy: Some(policy), ..*terms });
    }
}

impl MemoryDatapath {
    /// Makes the next call of that name fail.
    pub(crate) fn fail_next(&self, call: &str) {
        self.state.lock().unwrap().failing.insert(call.into());
    }

    pub(crate) fn terms(&self, ifindex: u32) -> Option<Terms> {
        self.state.lock().unwrap().terms.get(&ifindex).cloned()
    }

    pub(crate) fn attached(&self) -> Vec<String> {
        self.state.lock().unwrap().attached.keys().cloned().collect()
    }

    /// Somebody else takes the programs off.
    pub(crate) fn detach(&self, link: &str) {
        self.state.lock().unwrap().attached.remove(link);
    }

    /// Links whose programs are attached in the node's way.
    pub(crate) fn settled(&self) -> Vec<String> {
        self.state.lock().unwrap().settled.iter().cloned().collect()
    }

    pub(crate) fn is_empty(&self) -> bool {
        let state = self.state.lock().unwrap();
        state.rows.is_empty() && state.attached.is_empty()
    }

    fn call<T>(&self, name: &str, act: impl FnOnce(&mut State) -> T) -> Result<T, Source> {
        let mut state = self.state.lock().unwrap();
        if state.failing.remove(name) {
            return Err(format!("{name} fails on purpose").into());
        }
        Ok(act(&mut state))
    }
}

impl Datapath for MemoryDatapath {
    fn mode(&self) -> AttachMode {
        AttachMode::Tcx
    }

    fn add(&self, link: &str, row: &Row, _: Disciplines, terms: &Terms) -> Result<u32, Source> {
        self.call("add", |state| {
            state.put_on(row.ifindex, terms);
            let same = state.rows.iter().find(|(_, old)| old.ifindex == row.ifindex);
            let free = || (0..).find(|slot| !state.rows.contains_key(slot));
            let slot = same.map(|(slot, _)| *slot).or_else(free).unwrap();
            state.rows.insert(slot, row.clone());
            state.attached.insert(link.to_owned(), row.ifindex);
            slot
        })
    }

    fn withdraw(&self, ifindex: u32) -> Result<(), Source> {
        self.call("withdraw", |state| {
            state.rows.retain(|_, row| row.ifindex != ifindex);
            state.terms.remove(&ifindex);
        })
    }

    fn set_terms(&self, ifindex: u32, terms: &Terms) -> Result<(), Source> {
        self.call("set_terms", |state| state.put_on(ifindex, terms))
    }

    fn terms_of(&self, ifindex: u32) -> Result<Option<Terms>, Source> {
        self.call("terms_of", |state| state.terms.get(&ifindex).cloned())
    }

    fn all_terms(&self) -> Result<HashMap<u32, Terms>, Source> {
        self.call("all_terms", |state| state.terms.clone().into_iter().collect())
    }

    fn reread_policies(&self) -> Result<(), Source> {
        self.call("reread_policies", |_| ())
    }

    fn set_identities(&self, entries: &[(IpNetwork, u32)]) -> Result<(), Source> {
        self.call("set_identities", |state| state.identities.extend(entries.iter().copied()))
    }

    fn forget_identities(&self, prefixes: &[IpNetwork]) -> Result<(), Source> {
        self.call("forget_identities", |state| {
            state.identities.retain(|prefix, _| !prefixes.contains(prefix));
        })
    }

    fn identities(&self) -> Result<Vec<(IpNetwork, u32)>, Source> {
        self.call("identities", |state| {
            let all = state.identities.iter().map(|(prefix, identity)| (*prefix, *identity));
            all.filter(|(prefix, identity)| *identity != HOST || !is_whole(*prefix)).collect()
        })
    }

    fn is_own(&self, address: IpAddr) -> Result<bool, Source> {
        self.call("is_own", |state| state.identities.get(&address.into()) == Some(&HOST))
    }

    fn tidy(&self) -> Result<(), Source> {
        Ok(())
    }

    fn remove(&self, link: &str, ifindex: u32) -> Result<(), Source> {
        self.call("remove", |state| {
            state.rows.retain(|_, row| row.ifindex != ifindex);
            state.terms.remove(&ifindex);
            state.attached.remove(link);
            state.settled.remove(link);
        })
    }

    fn set_delivery(&self, ifindex: u32, delivery: Delivery) -> Result<(), Source> {
        self.call("set_delivery", |state| {
            for row in state.rows.values_mut().filter(|row| row.ifindex == ifindex) {
                row.delivery = delivery;
            }
        })
    }

    fn set_mac(&self, ifindex: u32, mac: Mac) -> Result<(), Source> {
        self.call("set_mac", |state| {
            for row in state.rows.values_mut().filter(|row| row.ifindex == ifindex) {
                row.mac = mac;
            }
        })
    }

    fn refresh(&self, link: &str, ifindex: u32) -> Result<(), Source> {
        self.call("refresh", |state| {
            state.attached.insert(link.to_owned(), ifindex);
        })
    }

    fn attach(&self, link: &str, _ifindex: u32) -> Result<(), Source> {
        self.call("attach", |state| {
            state.settled.insert(link.to_owned());
        })
    }

    fn is_attached(&self, link: &str, ifindex: u32) -> Result<bool, Source> {
        self.call("is_attached", |state| state.attached.get(link) == Some(&ifindex))
    }

    fn inspect(
        &self,
        link: &str,
        slot: u32,
        row: &Row,
        terms: &Terms,
    ) -> Result<Vec<Difference>, Source> {
        self.call("inspect", |state| {
            let mut found = Vec::new();
            let mut expect = |what: String, holds: bool| {
                if !holds {
                    let (expected, nothing) = ("as recorded".to_owned(), "otherwise".to_owned());
                    found.push(Difference { what, expected, found: nothing });
                }
            };
            expect(format!("slot {slot}"), state.rows.get(&slot) == Some(row));
            expect(format!("programs at {link}"), state.attached.contains_key(link));
            let here = state.terms.get(&row.ifindex);
            let agree = here.is_some_and(|here| terms.difference(here).is_none());
            expect(format!("terms of slot {slot}"), agree);
            found
        })
    }

    fn rows(&self) -> Result<Vec<(u32, Row)>, Source> {
        self.call("rows", |state| {
            state.rows.iter().map(|(slot, row)| (*slot, row.clone())).collect()
        })
    }

    fn pins(&self) -> Result<Vec<Pin>, Source> {
        self.call("pins", |state| {
            let pin =
                |(link, index): (&String, &u32)| Pin { link: link.clone(), ifindex: Some(*index) };
            state.attached.iter().map(pin).collect()
        })
    }

    fn settle(&self) -> Result<(), Source> {
        self.call("settle", |_| ())
    }
}

/// Tables of flows with room for a hundred entries, that have what a test says they have.
#[derive(Debug, Default)]
pub(crate) struct MemoryFlows {
    state: Mutex<FlowsState>,
}

#[derive(Debug, Default)]
struct FlowsState {
    seconds: u32,
    left: u32,
    events: Vec<(FlowEvent, u64)>,
    sweeps: Vec<Timeouts>,
}

impl MemoryFlows {
    /// What sweeps find and leave from now on.
    pub(crate) fn leave(&self, entries: u32) {
        self.state.lock().unwrap().left = entries;
    }

    pub(crate) fn count(&self, event: FlowEvent, count: u64) {
        self.state.lock().unwrap().events.push((event, count));
    }

    pub(crate) fn seconds(&self) -> u32 {
        self.state.lock().unwrap().seconds
    }

    /// The timeouts of every sweep.
    pub(crate) fn sweeps(&self) -> Vec<Timeouts> {
        self.state.lock().unwrap().sweeps.clone()
    }
}

impl Flows for MemoryFlows {
    fn tick(&self, seconds: u32) -> Result<(), Source> {
        self.state.lock().unwrap().seconds += seconds;
        Ok(())
    }

    fn sweep(&self, timeouts: &Timeouts) -> Result<Sweep, Source> {
        let mut state = self.state.lock().unwrap();
        state.sweeps.push(*timeouts);
        let mut expired = [0; Timeout::COUNT];
        expired[Timeout::Icmp as usize] = 1;
        let took = Duration::from_millis(1);
        Ok(Sweep { flows: state.left, pending: 0, expired, orphaned: 0, took })
    }

    fn events(&self) -> Result<Vec<(FlowEvent, u64)>, Source> {
        Ok(self.state.lock().unwrap().events.clone())
    }

    fn capacities(&self) -> (u32, u32) {
        (100, 100)
    }

    fn maps(&self) -> Result<Vec<MapRow>, Source> {
        Ok(vec![MapRow { name: map::FLOWS, capacity: 100, bytes: 8192 }])
    }
}

/// A table of mappings with room for a hundred, that has what a test says it has.
#[derive(Debug, Default)]
pub(crate) struct MemoryMappings {
    left: Mutex<u32>,
    sweeps: Mutex<Vec<Timeouts>>,
}

impl MemoryMappings {
    /// What sweeps find and leave from now on.
    pub(crate) fn leave(&self, mappings: u32) {
        *self.left.lock().unwrap() = mappings;
    }

    /// The timeouts of every sweep.
    pub(crate) fn sweeps(&self) -> Vec<Timeouts> {
        self.sweeps.lock().unwrap().clone()
    }
}

impl Mappings for MemoryMappings {
    fn sweep(&self, timeouts: &Timeouts) -> Result<NatSwept, Source> {
        self.sweeps.lock().unwrap().push(*timeouts);
        let mut expired = [0; Timeout::COUNT];
        expired[Timeout::UdpReplied as usize] = 1;
        Ok(NatSwept { mappings: *self.left.lock().unwrap(), expired, room: 100 })
    }

    fn metrics(&self) -> Result<Vec<MetricRow>, Source> {
        let row = |hook, packets| MetricRow {
            hook,
            reason: Reason::NatPortsExhausted,
            packets,
            bytes: 0,
        };
        Ok(vec![row(Hook::FromNetdev, 1), row(Hook::ToNetdev, 2)])
    }
}

#[derive(Debug, Default)]
pub(crate) struct MemoryLinks {
    links: Mutex<BTreeMap<u32, Link>>,
    foreign: Mutex<HashMap<u32, Delivery>>,
    bare: Mutex<HashSet<u32>>,
    peers: Mutex<HashMap<u32, Mac>>,
}

impl MemoryLinks {
    pub(crate) fn insert(&self, link: Link) {
        self.links.lock().unwrap().insert(link.index, link);
    }

    pub(crate) fn remove(&self, index: u32) {
        self.links.lock().unwrap().remove(&index);
    }
}

impl MemoryLinks {
    /// Something hangs on that link now.
    pub(crate) fn set_foreign(&self, index: u32, delivery: Delivery) {
        self.foreign.lock().unwrap().insert(index, delivery);
    }

    /// Our filters are gone from it.
    pub(crate) fn lose_programs(&self, index: u32) {
        self.bare.lock().unwrap().insert(index);
    }

    /// The other end has this MAC now.
    pub(crate) fn set_peer_mac(&self, index: u32, mac: Mac) {
        self.peers.lock().unwrap().insert(index, mac);
    }

    /// Nothing does any more.
    pub(crate) fn clear_foreign(&self, index: u32) {
        self.foreign.lock().unwrap().remove(&index);
    }
}

impl Links for MemoryLinks {
    fn find(&self, name: &str) -> Result<Option<Link>, Source> {
        Ok(self.links.lock().unwrap().values().find(|link| link.name == name).cloned())
    }

    fn all(&self) -> Result<Vec<Link>, Source> {
        Ok(self.links.lock().unwrap().values().cloned().collect())
    }

    fn delete(&self, index: u32) -> Result<(), Source> {
        self.remove(index);
        Ok(())
    }

    fn peer_mac(&self, index: u32) -> Result<Option<Mac>, Source> {
        Ok(self.peers.lock().unwrap().get(&index).copied())
    }

    fn unmark(&self, index: u32, alias: &str) -> Result<(), Source> {
        let mut links = self.links.lock().unwrap();
        let marked = links.get_mut(&index).filter(|link| link.alias.as_deref() == Some(alias));
        if let Some(link) = marked {
            link.alias = None;
        }
        Ok(())
    }

    fn accept_all_sources(&self, _: &str) -> Result<(), Source> {
        Ok(())
    }

    fn survey(&self, indices: &[u32]) -> Result<Survey, Source> {
        let foreign = self.foreign.lock().unwrap();
        let of = |index: &u32| foreign.get(index).map(|delivery| (*index, *delivery));
        let foreign = indices.iter().filter_map(of).collect();
        let bare = self.bare.lock().unwrap();
        let ours = indices.iter().filter(|index| !bare.contains(index)).copied().collect();
        Ok(Survey { foreign, ours })
    }
}

/// Routes that are only remembered.
#[derive(Debug, Default)]
pub(crate) struct MemoryRoutes {
    prefixes: Mutex<Vec<IpNetwork>>,
    failing: Mutex<bool>,
}

impl MemoryRoutes {
    pub(crate) fn prefixes(&self) -> Vec<IpNetwork> {
        self.prefixes.lock().unwrap().clone()
    }

    /// Makes the next call fail.
    pub(crate) fn fail_next(&self) {
        *self.failing.lock().unwrap() = true;
    }
}

impl Routes for MemoryRoutes {
    fn lead_to_pods(&self, prefixes: &[IpNetwork]) -> Result<(), Source> {
        if std::mem::take(&mut *self.failing.lock().unwrap()) {
            return Err("the routes fail on purpose".into());
        }
        *self.prefixes.lock().unwrap() = prefixes.to_vec();
        Ok(())
    }
}
