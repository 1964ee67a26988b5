//! Keys and values of the maps, from arbitrary bytes. The first byte chooses the type.
//!
//! Every byte string of a type's size is a value of it and comes back as it was; conversions to the
//! standard library's types and back agree; per-CPU values and keys of tries lie as the kernel lays
//! them; the trie in memory finds what its prefixes cover.
#![no_main]

use std::{fmt::Debug, net::IpAddr};

use libfuzzer_sys::fuzz_target;
use podwire_abi::{
    Address, Counter, EthernetPair, Flow, FlowEntry, FlowHash, FlowKey, FragmentKey, FragmentPorts,
    IpcacheEntry, NatEntry, NatKey, NodeConfig, NodeState, PendingEntry, PendingSet, PolicyKey,
    PolicyRow, PortRule, Slot, Verdict, remote_place, tcp_seen,
};
use podwire_bpf::{Prefix, fuzzing};
use zerocopy::{FromBytes, Immutable, IntoBytes};

fuzz_target!(|input: &[u8]| {
    let Some((choice, bytes)) = input.split_first() else { return };
    match choice % 12 {
        0 => address(bytes),
        1 => flow_key(bytes),
        2 => slot(bytes),
        3 => flow(bytes),
        4 => drop((layout::<FragmentKey>(bytes), layout::<FragmentPorts>(bytes))),
        5 => drop((layout::<NodeConfig>(bytes), layout::<IpcacheEntry>(bytes))),
        6 => per_cpu::<Counter>(bytes),
        7 => per_cpu::<[u8; 3]>(bytes),
        8 => prefix::<[u8; 4]>(bytes),
        9 => drop((layout::<NatKey>(bytes), layout::<NatEntry>(bytes), layout::<NodeState>(bytes))),
        10 => policy(bytes),
        _ => prefix::<[u8; 16]>(bytes),
    }
});

fn layout<T: FromBytes + IntoBytes + Immutable + Debug>(bytes: &[u8]) -> Option<T> {
    let (value, _) = T::read_from_prefix(bytes).ok()?;
    assert_eq!(value.as_bytes(), &bytes[..size_of::<T>()]);
    let _ = format!("{value:?}");
    Some(value)
}

fn address(bytes: &[u8]) {
    let Some(address) = layout::<Address>(bytes) else { return };
    let standard = IpAddr::from(address);
    assert_eq!(Address::from(standard), address);
    assert_eq!(standard.is_ipv4(), address.is_ipv4());
    assert_eq!(address.to_string(), standard.to_string());
    let broadcast = standard == IpAddr::from([255; 4]);
    assert_eq!(address.is_multicast(), standard.is_multicast() || broadcast);
}

fn flow_key(bytes: &[u8]) {
    let Some(key) = layout::<FlowKey>(bytes) else { return };
    assert_eq!(key.turned().turned(), key);
    let there_and_back = key.mirrored(7, Address::UNSPECIFIED).mirrored(key.endpoint, key.peer);
    assert_eq!(there_and_back.as_bytes()[4..], key.as_bytes()[4..]);
    assert_eq!(key.words().as_bytes(), key.as_bytes());
    let Some(state) = layout::<NodeState>(bytes) else { return };
    let (local, hash) = (Address::UNSPECIFIED, FlowHash::of_both_sides);
    let mirrored = key.mirrored(7, local);
    assert_eq!(hash(&state.seed, &key.turned(), &local), hash(&state.seed, &key, &local));
    assert_eq!(hash(&state.seed, &mirrored, &key.peer), hash(&state.seed, &key, &local));
    assert!(FlowHash::new(&state.seed, key.words()).first_set(1023) < 1024);
    assert!(key.tag() < 1 << 10 && remote_place(&key.peer) < podwire_abi::REMOTES);
}

fn flow(bytes: &[u8]) {
    let Some(flow) = layout::<Flow>(bytes) else { return };
    let verdict = flow.verdict;
    let parts = Verdict::new(verdict.stamp(), verdict.tag(), verdict.flags(), verdict.peer_slot());
    assert_eq!(parts, verdict);
    let (packets, tcp) = (flow.packets(), flow.tcp());
    assert_eq!(flow.with(packets, tcp), flow);
    assert_eq!(tcp_seen::turned(tcp_seen::turned(tcp)), tcp);
    let _ =
        (layout::<FlowEntry>(bytes), layout::<PendingEntry>(bytes), layout::<PendingSet>(bytes));
}

fn policy(bytes: &[u8]) {
    let _ = (layout::<PolicyKey>(bytes), layout::<PolicyRow>(bytes));
    let Some(rule) = layout::<PortRule>(bytes) else { return };
    assert!(rule.last_place() < PortRule::PLACES);
}

fn slot(bytes: &[u8]) {
    let Some(slot) = layout::<Slot>(bytes) else { return };
    let pair = EthernetPair::new(slot.to_pod.destination(), slot.to_pod.source());
    assert_eq!(pair, slot.to_pod);
    assert!(!slot.owns(&Address::UNSPECIFIED) && !slot.owns(&Address::from_ipv4([0; 4])));
    let v4 = Address::from_ipv4_raw(slot.ipv4);
    assert_eq!(slot.owns(&v4), slot.ipv4.get() != 0);
}

fn per_cpu<V: FromBytes + IntoBytes + Immutable + PartialEq + Debug + 'static>(bytes: &[u8]) {
    let stride = size_of::<V>().next_multiple_of(8);
    let (values, back) = fuzzing::per_cpu::<V>(bytes);
    assert_eq!(values.as_slice().len(), bytes.len() / stride);
    assert_eq!(back.len(), bytes.len() / stride * stride);
    for (ours, kernels) in back.chunks_exact(stride).zip(bytes.chunks_exact(stride)) {
        assert_eq!(ours[..size_of::<V>()], kernels[..size_of::<V>()]);
    }
    assert_eq!(fuzzing::per_cpu::<V>(&back).0, values);
}

fn prefix<D: FromBytes + IntoBytes + Immutable + Copy + Eq + Debug + 'static>(bytes: &[u8]) {
    let Some((length, rest)) = bytes.split_first() else { return };
    let Ok((data, rest)) = D::read_from_prefix(rest) else { return };
    let Ok(prefix) = Prefix::new(data, u32::from(*length)) else {
        assert!(u32::from(*length) > Prefix::<D>::BITS);
        return;
    };
    let (key, back) = fuzzing::trie_key(&prefix);
    assert_eq!(key[..4], u32::from(*length).to_ne_bytes());
    assert_eq!(key[4..], *data.as_bytes());
    assert_eq!(back, Some(prefix));
    assert!(prefix.covers(&prefix) && prefix.covers(&Prefix::full(data)));
    if let Ok((other, _)) = D::read_from_prefix(rest) {
        let bit = |data: &D, n: usize| data.as_bytes()[n / 8] >> (7 - n % 8) & 1;
        let same = (0..usize::from(*length)).all(|n| bit(&data, n) == bit(&other, n));
        assert_eq!(prefix.covers(&Prefix::full(other)), same);
    }
}
