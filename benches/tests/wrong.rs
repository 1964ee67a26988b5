//! A benchmark of wrong work gives no figure, but an error.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use podwire_benches::{
    Error,
    datapath::{Case, Node, cases},
    lookup::{Lookup, Table, Unit},
};
use podwire_bpf::{Array, HashMap, LpmTrie, Removal};
use podwire_datapath::{
    Delivery,
    abi::{Slot, map},
};

/// So many that a single wrong entry among a hundred is met.
const REPETITIONS: u64 = 20_000;

fn established(node: &Node) -> Case {
    let all = cases(node);
    all.into_iter().find(|case| case.name == "datapath/pod_to_pod/established").unwrap()
}

#[test]
#[ignore = "needs root: loads programs"]
fn tables_are_found_right() {
    Unit::new().unwrap().measure(REPETITIONS).unwrap();
    for table in Table::ALL {
        Lookup::new(table, 100).unwrap().measure(REPETITIONS).unwrap();
    }
}

#[test]
#[ignore = "needs root: loads programs"]
fn one_wrong_entry_ends_a_lookup() {
    let lookup = Lookup::new(Table::Hash16, 100).unwrap();
    let map = lookup.object().map::<HashMap<[u32; 4], u64>>("HASH16").unwrap();
    let (key, value) = map.entries().unwrap()[0];
    map.insert(&key, &(value + 1)).unwrap();
    let error = lookup.measure(REPETITIONS).unwrap_err();
    assert!(matches!(error, Error::Tally { wrong: 1.., .. } | Error::Answer { .. }), "{error}");
    map.insert(&key, &value).unwrap();
    lookup.measure(REPETITIONS).unwrap();
    assert_eq!(map.remove(&key).unwrap(), Removal::Removed);
    let error = lookup.measure(REPETITIONS).unwrap_err();
    assert!(matches!(error, Error::Tally { wrong: 1.., .. } | Error::Answer { .. }), "{error}");
}

#[test]
#[ignore = "needs root: loads programs"]
fn a_shorter_prefix_that_answers_ends_a_lookup() {
    let lookup = Lookup::new(Table::Lpm4Mixed, 100).unwrap();
    let trie = lookup.object().map::<LpmTrie<[u32; 1], u32>>("LPM4").unwrap();
    let all = trie.entries().unwrap();
    let (longest, _) = all.iter().max_by_key(|(prefix, _)| prefix.length()).unwrap();
    trie.remove(longest).unwrap();
    let error = lookup.measure(REPETITIONS).unwrap_err();
    assert!(matches!(error, Error::Tally { wrong: 1.., .. } | Error::Answer { .. }), "{error}");
}

#[test]
#[ignore = "needs root: a node in namespaces of its own"]
fn every_packet_of_the_datapath_is_measured() {
    Node::run(|node| {
        for case in cases(node) {
            node.check_path(&case)?;
            node.measure(&case, 1000)?;
            node.check_path(&case)?;
        }
        Ok(())
    })
    .unwrap();
}

#[test]
#[ignore = "needs root: a node in namespaces of its own"]
fn another_verdict_ends_a_packet() {
    Node::run(|node| {
        let case = established(node);
        let slots = slots();
        let receiver = taken(&slots)[1];

        // The same action and the same frame, counted under another reason.
        let ifindex = slots.get(receiver).unwrap().ifindex;
        node.datapath().set_delivery(ifindex, Delivery::Egress).unwrap();
        let error = node.measure(&case, 1000).unwrap_err();
        assert!(matches!(error, Error::Counters { .. }), "{error}");
        node.datapath().set_delivery(ifindex, Delivery::Peer).unwrap();
        node.measure(&case, 1000).unwrap();

        let whole = slots.get(receiver).unwrap();
        slots.set(receiver, &Slot { generation: whole.generation + 2, ..whole }).unwrap();
        let error = node.measure(&case, 1000).unwrap_err();
        assert!(matches!(error, Error::Answer { .. }), "{error}");
        Ok(())
    })
    .unwrap();
}

#[test]
#[ignore = "needs root: a node in namespaces of its own"]
fn other_bytes_or_another_way_end_a_packet() {
    Node::run(|node| {
        let case = established(node);
        let slots = slots();
        let [sender, receiver] = taken(&slots)[..] else { panic!("two pods") };
        let whole = slots.get(receiver).unwrap();

        slots.set(receiver, &Slot { to_pod: whole.from_pod, ..whole }).unwrap();
        let error = node.measure(&case, 1000).unwrap_err();
        assert!(matches!(error, Error::Frame { .. }), "{error}");

        // Test-run carries out no redirect, so only the real link tells.
        let back = Slot { ifindex: slots.get(sender).unwrap().ifindex, ..whole };
        slots.set(receiver, &back).unwrap();
        node.measure(&case, 1000).unwrap();
        let error = node.check_path(&case).unwrap_err();
        assert!(matches!(error, Error::Path { .. }), "{error}");
        Ok(())
    })
    .unwrap();
}

fn slots() -> Array<Slot> {
    Array::open(format!("/sys/fs/bpf/podwire/maps/{}", map::SLOTS)).unwrap()
}

/// Numbers of the slots that pods have, in the order in which the pods were made.
fn taken(slots: &Array<Slot>) -> Vec<u32> {
    (0..).zip(slots.values().unwrap()).filter(|(_, slot)| slot.is_taken()).map(|(n, _)| n).collect()
}
