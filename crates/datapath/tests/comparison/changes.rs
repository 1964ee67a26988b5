//! Changes of what a node's tables say: whole, as user space makes them, or as far as it has come.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv6Addr},
};

use podwire_bpf::Prefix;
use podwire_datapath::abi::{
    Address, Be32, CHANGING, Flow, IpcacheEntry, NodeConfig, NodeState, PolicyKey, PolicyRef,
    PolicyRow, Slot, identity, policy_flag, recent, remote_place, slot_flag,
};

use super::{
    super::{
        model,
        node::{Maps, Marks, Node, Pod},
    },
    build::Input,
    rows::{self, STACK},
    rules::{ROWS, RULES},
    talk::OUTSIDE,
};

const IDENTITIES: [u32; 5] = [identity::HOST, identity::WORLD, identity::UNMANAGED, 100, 101];
/// Identities that endpoints have: none is the node.
const PODS: [u32; 4] = [identity::WORLD, identity::UNMANAGED, 100, 101];
const CIDRS: [u32; 3] = [0, 7, 8];

/// How far user space has come with a change.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    Announced,
    Written,
    Marked,
    Done,
}

/// Makes changes, and takes them back.
pub struct Changes<'n> {
    node: &'n Node,
    maps: &'n Maps,
    original: Original,
    /// What is still to be marked, with which ticket.
    unfinished: Option<(Marks, u64)>,
    /// Rows that this input has written: tables are large, and read for every change.
    policies: BTreeSet<(u32, u32)>,
    prefixes: Vec<Prefix<Address>>,
}

/// What the tables said at first, to which every input returns.
struct Original {
    config: NodeConfig,
    state: NodeState,
    /// Slots that changes are about.
    slots: Vec<(u32, Slot)>,
    ipcache: Vec<(Address, IpcacheEntry)>,
    place_a: u32,
    place_b: u32,
    place_c: u32,
    elsewhere: u32,
}

impl<'n> Changes<'n> {
    pub fn new(node: &'n Node) -> Self {
        let maps = &node.maps;
        maps.prefixes.insert(&all_of_ipv4(), &WORLD).unwrap();
        assert_eq!(maps.policy.entries().unwrap(), []);
        for (place, rule) in (0..).zip(RULES) {
            maps.policy_rules.set(place, rule).unwrap();
        }
        let place = |pod: &Pod| maps.links.get(&pod.ifindex).unwrap().unwrap();
        let (place_a, place_b) = (place(&node.a), place(&node.b));
        let place_c = node.c.ifindex % maps.slots.len();
        let elsewhere = place_a + 100;
        let slot = |place| (place, maps.slots.get(place).unwrap());
        let original = Original {
            config: maps.config.get(0).unwrap(),
            state: maps.state.get(0).unwrap(),
            slots: [place_a, place_b, place_c, elsewhere].map(slot).to_vec(),
            ipcache: maps.ipcache.entries().unwrap(),
            place_a,
            place_b,
            place_c,
            elsewhere,
        };
        Self {
            node,
            maps,
            original,
            unfinished: None,
            policies: BTreeSet::new(),
            prefixes: Vec::new(),
        }
    }

    /// Makes a change, and tells the model of it.
    pub fn next(&mut self, input: &mut Input<'_>, model: &mut model::Node) {
        let what = input.byte();
        if what.is_multiple_of(8) {
            // An unrelated change somewhere, or only time.
            let state = self.maps.state.get(0).unwrap();
            match input.byte() % 4 {
                0 if self.unfinished.is_none() => self.maps.raise(state.ticket + 1),
                0 | 1 => self.finish(),
                _ => self.maps.tick(input.choose(&[1, 5, 100_000])),
            }
        } else if what.is_multiple_of(9) {
            self.touch_flows(input, model);
        } else {
            let stages = [Stage::Done, Stage::Done, Stage::Done, Stage::Announced, Stage::Written];
            let stage = match input.byte() % 6 {
                5 => Stage::Marked,
                other => stages[usize::from(other)],
            };
            self.finish();
            self.change(what, input, stage);
        }
        self.tell(model);
    }

    fn change(&mut self, what: u8, input: &mut Input<'_>, stage: Stage) {
        match what % 13 {
            0 | 1 => self.flag(input, stage),
            2..=4 => self.set_policy(input, stage),
            5 => self.configure(input, stage),
            6 => self.set_identity(input, stage),
            7 => self.set_remote(input, stage),
            8 => self.set_prefix(input, stage),
            9 => self.make_stale(input, stage),
            10 => self.move_a(input, stage),
            11 => self.give_b_to_c(input, stage),
            _ => self.replace(input, stage),
        }
    }

    /// Changes who goes where.
    fn flag(&mut self, input: &mut Input<'_>, stage: Stage) {
        let place = self.place(input);
        let flags = input.choose(&[
            0,
            slot_flag::DELIVER_TO_EGRESS,
            slot_flag::DELIVER_TO_EGRESS,
            STACK,
            STACK,
            STACK | slot_flag::CHAINED,
        ]);
        let marks = Marks { slots: vec![place], ..Marks::default() };
        self.make(marks, stage, |maps| maps.edit_slot(place, |slot| slot.flags = flags));
    }

    /// Gives an endpoint a policy for one direction.
    fn set_policy(&mut self, input: &mut Input<'_>, stage: Stage) {
        let place = self.place(input);
        let is_egress = input.byte().is_multiple_of(2);
        let number = 2 * place + u32::from(is_egress);
        let flags = input.choose(&[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15]);
        let row = |input: &mut Input<'_>| {
            let (first, count) = input.choose(&ROWS);
            PolicyRow { first, count }
        };
        let reference = PolicyRef::new(number, flags);
        let mut rules = Vec::new();
        if flags & policy_flag::OTHERS != 0 {
            rules.push((PolicyKey::others(number), row(input)));
        }
        if flags & policy_flag::IDENTITIES != 0 {
            for _ in 0..1 + input.byte() % 2 {
                rules.push((PolicyKey::identity(number, input.choose(&IDENTITIES)), row(input)));
            }
        }
        if flags & policy_flag::CIDRS != 0 {
            rules.push((PolicyKey::cidr(number, input.choose(&CIDRS[1..])), row(input)));
        }
        self.policies.extend(rules.iter().map(|(key, _)| (key.policy, key.subject)));
        let marks = Marks { slots: vec![place], ..Marks::default() };
        self.make(marks, stage, |maps| {
            for (key, row) in rules {
                maps.policy.insert(&key, &row).unwrap();
            }
            maps.edit_slot(place, |slot| {
                *(if is_egress { &mut slot.egress } else { &mut slot.ingress }) = reference;
            });
        });
    }

    /// Takes the node's set-up away, or its routers.
    fn configure(&mut self, input: &mut Input<'_>, stage: Stage) {
        let config = self.original.config;
        let without_routers =
            NodeConfig { router_ipv4: Be32::new(0), router_ipv6: Address::UNSPECIFIED, ..config };
        let config =
            input.choose(&[NodeConfig { host_ifindex: 0, ..config }, without_routers, config]);
        let marks = Marks { all: true, ..Marks::default() };
        self.make(marks, stage, |maps| maps.config.set(0, &config).unwrap());
    }

    /// Tells who an endpoint is to policies.
    fn set_identity(&mut self, input: &mut Input<'_>, stage: Stage) {
        let place = self.place(input);
        let identity = input.choose(&PODS);
        let cidr = input.choose(&CIDRS);
        let addresses = self.addresses_of(place);
        let marks = Marks { slots: vec![place], addresses: addresses.clone(), all: false };
        self.make(marks, stage, |maps| {
            maps.edit_slot(place, |slot| slot.identity = identity);
            for address in addresses {
                if let Some(entry) = maps.ipcache.get(&address).unwrap() {
                    maps.ipcache
                        .insert(&address, &IpcacheEntry { identity, cidr, ..entry })
                        .unwrap();
                }
            }
        });
    }

    /// Tells who has an address outside, or forgets it.
    fn set_remote(&mut self, input: &mut Input<'_>, stage: Stage) {
        let address = Address::from(input.choose(&OUTSIDE));
        let entry = entry(input);
        let forget = input.rarely(3);
        let marks = Marks { addresses: vec![address], ..Marks::default() };
        self.make(marks, stage, |maps| {
            if forget {
                maps.ipcache.remove(&address).unwrap();
            } else {
                maps.ipcache.insert(&address, &entry).unwrap();
            }
        });
    }

    /// Tells who has a prefix, or forgets it.
    fn set_prefix(&mut self, input: &mut Input<'_>, stage: Stage) {
        let address = input.choose(&OUTSIDE);
        let length: u32 = if address.is_ipv4() {
            96 + input.choose(&[0, 8, 24, 31, 32])
        } else {
            input.choose(&[0, 1, 32, 64, 127])
        };
        let entry = entry(input);
        let forget = input.rarely(4);
        // With another around it, mostly.
        let lengths = [length, length.saturating_sub(input.choose(&[0, 1, 8]))];
        let most = if address.is_ipv4() { 96 } else { 0 };
        let prefixes = lengths.map(|length| prefix_of(address, length.max(most)));
        let wider = IpcacheEntry { identity: input.choose(&IDENTITIES), cidr: 0, ..entry };
        self.prefixes.extend(prefixes);
        let marks = Marks { all: true, ..Marks::default() };
        self.make(marks, stage, |maps| {
            let [prefix, around] = prefixes;
            if !forget {
                maps.prefixes.insert(&around, &wider).unwrap();
                maps.prefixes.insert(&prefix, &entry).unwrap();
            } else if prefix == all_of_ipv4() {
                maps.prefixes.insert(&prefix, &WORLD).unwrap();
            } else {
                maps.prefixes.remove(&prefix).unwrap();
            }
        });
    }

    /// An address leads to an endpoint that has it no longer.
    fn make_stale(&mut self, input: &mut Input<'_>, stage: Stage) {
        let place = self.place(input);
        let all = self.addresses_of(place);
        let Some(&address) = all.get(usize::from(input.byte()) % all.len().max(1)) else { return };
        let Some(entry) = self.maps.ipcache.get(&address).unwrap() else { return };
        let wrong = input.choose(&[
            IpcacheEntry { generation: entry.generation.wrapping_sub(2), ..entry },
            IpcacheEntry { slot: entry.slot.wrapping_add(1), ..entry },
            IpcacheEntry { slot: u32::MAX - 1, ..entry },
        ]);
        let marks = Marks { slots: vec![place], addresses: vec![address], all: false };
        self.make(marks, stage, |maps| maps.ipcache.insert(&address, &wrong).unwrap());
    }

    /// An endpoint that stays as it is gets another slot, as after its removal.
    fn move_a(&mut self, input: &mut Input<'_>, stage: Stage) {
        let Original { place_a, elsewhere, .. } = self.original;
        let ifindex = self.node.a.ifindex;
        let Some(from) = self.maps.links.get(&ifindex).unwrap() else { return };
        let to = if from == place_a { elsewhere } else { place_a };
        let follow = !input.rarely(3);
        let addresses = self.addresses_of(from);
        let marks = Marks { slots: vec![from, to], addresses: addresses.clone(), all: false };
        let ticket = self.next_ticket();
        self.make(marks, stage, |maps| {
            let slot = maps.slots.get(from).unwrap();
            maps.edit_slot(from, |from| *from = emptied(from, ticket));
            let generation = taken(maps.slots.get(to).unwrap().generation);
            maps.slots
                .set(to, &Slot { changed: CHANGING, born: ticket, generation, ..slot })
                .unwrap();
            maps.links.insert(&ifindex, &to).unwrap();
            for address in addresses.iter().filter(|_| follow) {
                if let Some(entry) = maps.ipcache.get(address).unwrap() {
                    let entry = IpcacheEntry { slot: to, generation, ..entry };
                    maps.ipcache.insert(address, &entry).unwrap();
                }
            }
        });
    }

    /// b is removed, and what it had goes to another link's endpoint.
    fn give_b_to_c(&mut self, input: &mut Input<'_>, stage: Stage) {
        let Original { place_b, place_c, .. } = self.original;
        let node = self.node;
        let (from, to, pod) = if self.maps.slots.get(place_b).unwrap().is_taken() {
            (place_b, place_c, node.c)
        } else {
            (place_c, place_b, node.b)
        };
        let old = self.maps.slots.get(from).unwrap();
        let is_given = !input.rarely(4);
        let addresses = [IpAddr::from(pod.v4).into(), IpAddr::from(pod.v6).into()];
        let marks = Marks { slots: vec![from, to], addresses: addresses.to_vec(), all: false };
        let ticket = self.next_ticket();
        self.make(marks, stage, |maps| {
            for address in &addresses {
                maps.ipcache.remove(address).unwrap();
            }
            maps.edit_slot(from, |from| *from = emptied(from, ticket));
            maps.links.remove(&old.ifindex).unwrap();
            if !is_given {
                return;
            }
            let generation = taken(maps.slots.get(to).unwrap().generation);
            let slot = Slot {
                changed: CHANGING,
                generation,
                ifindex: pod.ifindex,
                ipv4: addresses[0].ipv4_raw(),
                ipv6: addresses[1],
                from_pod: podwire_datapath::abi::EthernetPair::new(pod.host_mac, pod.mac),
                to_pod: podwire_datapath::abi::EthernetPair::new(pod.mac, pod.host_mac),
                born: ticket,
                identity: identity::UNMANAGED,
                ..Slot::default()
            };
            maps.slots.set(to, &slot).unwrap();
            maps.links.insert(&pod.ifindex, &to).unwrap();
            for address in &addresses {
                let entry =
                    IpcacheEntry { identity: identity::UNMANAGED, slot: to, generation, cidr: 0 };
                maps.ipcache.insert(address, &entry).unwrap();
            }
        });
    }

    /// Another endpoint gets the slot, the link and the addresses.
    fn replace(&mut self, input: &mut Input<'_>, stage: Stage) {
        let place = self.place(input);
        if !self.maps.slots.get(place).unwrap().is_taken() {
            return;
        }
        let addresses = self.addresses_of(place);
        let marks = Marks { slots: vec![place], addresses: addresses.clone(), all: false };
        let ticket = self.next_ticket();
        self.make(marks, stage, |maps| {
            maps.edit_slot(place, |slot| {
                slot.generation += 2;
                slot.born = ticket;
            });
            let generation = maps.slots.get(place).unwrap().generation;
            for address in &addresses {
                if let Some(entry) = maps.ipcache.get(address).unwrap() {
                    maps.ipcache.insert(address, &IpcacheEntry { generation, ..entry }).unwrap();
                }
            }
        });
    }

    /// What user space, or very much time, does to remembered flows.
    fn touch_flows(&mut self, input: &mut Input<'_>, model: &mut model::Node) {
        if input.byte().is_multiple_of(2) {
            // Many packets later the word that counts them is nearly full.
            let packets = recent::SPILL - 2;
            for (key, flow) in &mut model.flows.confirmed {
                let place = rows::flow_key(key);
                let now = self.maps.flows().get(&place).unwrap();
                let recent = packets << recent::PACKET_SHIFT;
                let (packets, bytes) = recent::split(now.recent);
                let sums = (now.packets() + packets, now.bytes + bytes);
                let later = Flow { recent, bytes: sums.1, ..now }.with(sums.0, now.tcp());
                assert!(self.maps.flows().insert(&place, later));
                flow.count.packets += recent::SPILL - 2;
            }
        } else if let Some(&key) = nth(model.flows.confirmed.keys(), input.byte()) {
            // The collector is between the two directions.
            model.flows.confirmed.remove(&key);
            self.maps.flows().remove(&rows::flow_key(&key));
        } else if let Some(&key) = nth(model.flows.pending.keys(), input.byte()) {
            model.flows.pending.remove(&key);
            let gone = rows::flow_key(&key);
            self.maps.pending().retain(|key, _| *key != gone);
        }
    }

    /// Makes a change as far as that stage.
    fn make(&mut self, marks: Marks, stage: Stage, write: impl FnOnce(&Maps)) {
        let ticket = self.next_ticket();
        self.maps.mark(&marks, CHANGING);
        if stage != Stage::Announced {
            write(self.maps);
        }
        match stage {
            Stage::Announced | Stage::Written => self.unfinished = Some((marks, ticket)),
            Stage::Marked => {
                self.maps.mark(&marks, ticket);
                self.unfinished = Some((Marks::default(), ticket));
            }
            Stage::Done => {
                self.maps.mark(&marks, ticket);
                self.maps.raise(ticket);
            }
        }
    }

    fn finish(&mut self) {
        if let Some((marks, ticket)) = self.unfinished.take() {
            self.maps.mark(&marks, ticket);
            self.maps.raise(ticket);
        }
    }

    fn next_ticket(&self) -> u64 {
        self.maps.state.get(0).unwrap().ticket + 1
    }

    /// Where one of the endpoints is.
    fn place(&self, input: &mut Input<'_>) -> u32 {
        let Original { place_a, place_b, place_c, elsewhere, .. } = self.original;
        let place_a = self.maps.links.get(&self.node.a.ifindex).unwrap().unwrap_or(place_a);
        let is_taken = |place: u32| self.maps.slots.get(place).unwrap().is_taken();
        let place_b = if is_taken(place_c) { place_c } else { place_b };
        debug_assert_ne!(place_b, elsewhere);
        input.choose(&[place_a, place_b])
    }

    fn addresses_of(&self, place: u32) -> Vec<Address> {
        let slot = self.maps.slots.get(place).unwrap();
        let v4 = (slot.ipv4.raw() != 0).then(|| Address::from_ipv4_raw(slot.ipv4));
        let v6 = (!slot.ipv6.is_unspecified()).then_some(slot.ipv6);
        v4.into_iter().chain(v6).collect()
    }

    /// Makes the tables what they were at first.
    pub fn restore(&mut self) {
        self.unfinished = None;
        let Original { config, state, slots, ipcache, place_a, place_b, .. } = &self.original;
        let maps = self.maps;
        maps.config.set(0, config).unwrap();
        for (place, slot) in slots {
            maps.slots.set(*place, slot).unwrap();
        }
        let Node { a, b, c, .. } = self.node;
        maps.links.remove(&c.ifindex).unwrap();
        maps.links.insert(&a.ifindex, place_a).unwrap();
        maps.links.insert(&b.ifindex, place_b).unwrap();
        let marked = OUTSIDE.into_iter().chain(a.both()).chain(b.both());
        for address in marked.map(Address::from) {
            if !ipcache.iter().any(|(known, _)| *known == address) {
                maps.ipcache.remove(&address).unwrap();
            }
            maps.remotes.set(remote_place(&address), &0).unwrap();
        }
        maps.ipcache.insert_batch(ipcache).unwrap();
        for prefix in std::mem::take(&mut self.prefixes) {
            maps.prefixes.remove(&prefix).unwrap();
        }
        maps.prefixes.insert(&all_of_ipv4(), &WORLD).unwrap();
        for (policy, subject) in std::mem::take(&mut self.policies) {
            maps.policy.remove(&PolicyKey { policy, subject }).unwrap();
        }
        maps.state.set(0, state).unwrap();
    }

    /// Tells the model what the tables say.
    pub fn tell(&self, model: &mut model::Node) {
        let maps = self.maps;
        let state = maps.state.get(0).unwrap();
        (model.ticket, model.changed, model.seconds) = (state.ticket, state.changed, state.seconds);
        model.config = rows::config(&maps.config.get(0).unwrap());
        for &(place, _) in &self.original.slots {
            model.slots[place as usize] = rows::slot(&maps.slots.get(place).unwrap());
        }
        model.links.clear();
        for pod in [&self.node.a, &self.node.b, &self.node.c] {
            if let Some(number) = maps.links.get(&pod.ifindex).unwrap() {
                model.links.insert(pod.ifindex, number);
            }
        }
        model.addresses.clear();
        let Node { a, b, .. } = self.node;
        for address in OUTSIDE.into_iter().chain(a.both()).chain(b.both()) {
            let place = remote_place(&address.into());
            model.remotes.insert(place, maps.remotes.get(place).unwrap());
            if let Some(entry) = maps.ipcache.get(&address.into()).unwrap() {
                model.addresses.insert(address, rows::known(&entry));
            }
        }
        // One that was forgotten has what the next wider one has, as it should.
        let prefixes = self.prefixes.iter().filter_map(|prefix| {
            let entry = maps.prefixes.longest_match_of(prefix).unwrap()?;
            Some((rows::prefix(prefix), rows::known(&entry)))
        });
        model.prefixes = prefixes.collect();
        let rows = self.policies.iter().filter_map(|&(policy, subject)| {
            let key = PolicyKey { policy, subject };
            Some(rows::policy_row((key, maps.policy.get(&key).unwrap()?)))
        });
        model.policies.rows = rows.collect();
    }
}

/// To the trie, IPv4 addresses are some of the IPv6 ones: so that `::/0` and its like do not catch them,
/// there is always an entry for all of IPv4.
fn all_of_ipv4() -> Prefix<Address> {
    Prefix::new(Address::from_ipv4([0; 4]), 96).unwrap()
}

const WORLD: IpcacheEntry =
    IpcacheEntry { identity: identity::WORLD, slot: IpcacheEntry::NO_SLOT, generation: 0, cidr: 0 };

/// What is known of somebody outside.
fn entry(input: &mut Input<'_>) -> IpcacheEntry {
    IpcacheEntry {
        identity: input.choose(&IDENTITIES),
        slot: IpcacheEntry::NO_SLOT,
        generation: 0,
        cidr: input.choose(&CIDRS),
    }
}

/// A slot whose endpoint has gone.
fn emptied(slot: &Slot, ticket: u64) -> Slot {
    let generation = (slot.generation | 1) + 1;
    Slot { changed: CHANGING, born: ticket, generation, ..Slot::default() }
}

/// A prefix of an address, of a length that counts as for the trie.
fn prefix_of(address: IpAddr, length: u32) -> Prefix<Address> {
    // What is behind it is zero.
    let mask = u128::MAX.checked_shl(128 - length).unwrap_or(0);
    let v6 = match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped(),
        IpAddr::V6(v6) => v6,
    };
    let first = Ipv6Addr::from(u128::from(v6) & mask);
    Prefix::new(Address::from_ipv6(first.octets()), length).unwrap()
}

/// The generation of a slot's next holder.
const fn taken(last: u32) -> u32 {
    (last + 1) | 1
}

fn nth<T>(mut items: impl ExactSizeIterator<Item = T>, number: u8) -> Option<T> {
    let count = items.len();
    items.nth(usize::from(number).checked_rem(count)?)
}
