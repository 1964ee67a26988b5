//! What the model's words are in the maps.

use std::net::IpAddr;

use podwire_bpf::Prefix;
use podwire_datapath::abi::{
    self, Address, Be16, Be32, FlowKey, FragmentKey, IpcacheEntry, PolicyKey, PolicyRef, PolicyRow,
    PortRule, Protocol, Verdict, direction, policy_flag, recent, slot_flag, tcp_seen, verdict_flag,
};

use super::super::model::{self, Count, Fragmented, Key, Known, Through, Way, Word};

/// Flags of an endpoint whose host link, and then the stack, must see all that it sends.
pub const STACK: u32 = slot_flag::DELIVER_TO_EGRESS | slot_flag::BY_STACK;

pub fn config(config: &abi::NodeConfig) -> Option<model::Config> {
    (config.host_ifindex != 0).then(|| model::Config {
        router4: v4(Address::from_ipv4_raw(config.router_ipv4).into()),
        router6: v6(config.router_ipv6.into()),
        host_mac: config.to_host.destination(),
        net_mac: config.to_host.source(),
    })
}

pub fn slot(slot: &abi::Slot) -> model::Slot {
    let endpoint = model::Endpoint {
        ifindex: slot.ifindex,
        mac: slot.to_pod.destination(),
        host_mac: slot.to_pod.source(),
        v4: v4(Address::from_ipv4_raw(slot.ipv4).into()),
        v6: v6(slot.ipv6.into()),
        through: through(slot.flags),
        chained: slot.flags & slot_flag::CHAINED != 0,
        identity: slot.identity,
        egress: policy(slot.egress),
        ingress: policy(slot.ingress),
    };
    model::Slot {
        generation: slot.generation,
        changed: slot.changed,
        born: slot.born,
        endpoint: (slot.generation % 2 == 1).then_some(endpoint),
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

pub fn known(entry: &IpcacheEntry) -> Known {
    Known {
        identity: entry.identity,
        cidr: (entry.cidr != 0).then_some(entry.cidr),
        slot: (entry.slot != IpcacheEntry::NO_SLOT).then_some((entry.slot, entry.generation)),
    }
}

pub fn prefix(key: &Prefix<Address>) -> model::Prefix {
    let address = IpAddr::from(*key.data());
    let longer = if address.is_ipv4() { 96 } else { 0 };
    model::Prefix { address, length: key.length() - longer }
}

pub fn policy(reference: PolicyRef) -> model::Policy {
    model::Policy {
        number: reference.policy(),
        denies_by_default: reference.has(policy_flag::DENY_BY_DEFAULT),
        has_identities: reference.has(policy_flag::IDENTITIES),
        has_cidrs: reference.has(policy_flag::CIDRS),
        has_others: reference.has(policy_flag::OTHERS),
    }
}

pub fn policy_row((key, row): (PolicyKey, PolicyRow)) -> ((u32, model::Subject), (u32, u32)) {
    let subject = match key.subject.checked_sub(PolicyKey::CIDR) {
        Some(0) => model::Subject::Others,
        Some(number) => model::Subject::Cidr(number),
        None => model::Subject::Identity(key.subject),
    };
    ((key.policy, subject), (row.first, row.count))
}

pub fn rule(rule: &PortRule) -> model::Rule {
    let place = |place: u32| {
        let [_, protocol, high, low] = place.to_be_bytes();
        (protocol, u16::from_be_bytes([high, low]))
    };
    let denies = rule.last >> 31 == 1;
    model::Rule { first: place(rule.first), last: place(rule.last & 0xff_ffff), denies }
}

pub fn flow_key(key: &Key) -> FlowKey {
    FlowKey {
        endpoint: u16::try_from(key.slot).unwrap(),
        protocol: Protocol(key.protocol),
        direction: match key.way {
            Way::Sent => direction::SENT,
            Way::Received => direction::RECEIVED,
        },
        local_port: Be16::new(key.port),
        peer_port: Be16::new(key.peer.1),
        peer: key.peer.0.into(),
    }
}

/// `None` if it is not one of that flow.
fn word(key: &FlowKey, verdict: Verdict) -> Option<Word> {
    let is_local = verdict.has(verdict_flag::LOCAL_PEER);
    let is_right = verdict.tag() == key.tag() && (is_local || verdict.peer_slot() == 0);
    is_right.then(|| Word {
        stamp: verdict.stamp(),
        is_reply: verdict.has(verdict_flag::REPLY),
        to_stack: verdict.has(verdict_flag::TO_STACK),
        by_flow: verdict.has(verdict_flag::BY_FLOW),
        peer: is_local.then_some(verdict.peer_slot()),
    })
}

/// What the directions have shown: this one, and the other.
fn shown(tcp: u32) -> Option<(u8, u8)> {
    const { assert!(tcp_seen::PEER == 8) };
    let [own, other, rest @ ..] = tcp.to_le_bytes();
    (rest == [0, 0]).then_some((own, other))
}

/// `None` if it is none that a program may write.
pub fn flow(key: &FlowKey, flow: &abi::Flow) -> Option<model::Flow> {
    let (packets, bytes) = recent::split(flow.recent);
    let (own, other) = shown(flow.tcp())?;
    Some(model::Flow {
        word: word(key, flow.verdict)?,
        count: Count { packets: flow.packets() + packets, bytes: flow.bytes + bytes },
        seen: flow.seen,
        created: flow.created,
        own,
        other,
    })
}

/// `None` if it is none that a program may write.
pub fn pending(key: &FlowKey, pending: &abi::Pending) -> Option<model::Pending> {
    let (own, other) = shown(pending.tcp)?;
    Some(model::Pending {
        word: word(key, pending.verdict)?,
        seen: pending.seen,
        created: pending.created,
        own,
        other,
        count: Count { packets: pending.packets, bytes: pending.bytes },
        replies: Count { packets: pending.reply_packets, bytes: pending.reply_bytes },
    })
}

pub fn fragment_key(fragmented: &Fragmented) -> FragmentKey {
    FragmentKey {
        source: fragmented.from.into(),
        destination: fragmented.to.into(),
        identification: Be32::new(fragmented.identification),
        protocol: Protocol(fragmented.protocol),
        reserved: [0; 3],
    }
}
