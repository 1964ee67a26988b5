//! Bytes for tests: what the kernel sent, and what we would send.

use ipnetwork::{IpNetwork, Ipv4Network, Ipv6Network};
use proptest::prelude::*;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::wire::{self, HEADER_LEN, MessageBuilder};
use crate::{Batch, Family, IfIndex, IfName, MacAddr, Request};

/// Bytes from hexadecimal digits, with white space anywhere.
pub(crate) fn hex(digits: &str) -> Vec<u8> {
    let digits: Vec<u8> = digits
        .chars()
        .filter(|c| !c.is_whitespace())
        .map(|c| u8::try_from(c.to_digit(16).unwrap()).unwrap())
        .collect();
    digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect()
}

/// The payload that `fill` writes.
pub(crate) fn payload(fill: impl FnOnce(&mut MessageBuilder<'_>)) -> Vec<u8> {
    let mut buffer = Vec::new();
    let mut message = MessageBuilder::new(&mut buffer, 0, 0, 0);
    fill(&mut message);
    message.finish().unwrap();
    buffer.split_off(HEADER_LEN)
}

/// Type, flags and payload of a request.
pub(crate) fn sent(request: &impl Request) -> (u16, u16, Vec<u8>) {
    let mut batch = Batch::new();
    batch.push(request);
    let message = wire::messages(&batch.bytes).next().unwrap().unwrap();
    (message.kind, message.flags, message.payload.to_vec())
}

pub(crate) fn index(number: u32) -> IfIndex {
    IfIndex::new(number).unwrap()
}

pub(crate) fn name(text: &str) -> IfName {
    text.parse().unwrap()
}

pub(crate) fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

pub(crate) fn net(text: &str) -> IpNetwork {
    text.parse().unwrap()
}

pub(crate) fn any_index() -> impl Strategy<Value = IfIndex> {
    (1..=i32::MAX.unsigned_abs()).prop_map(index)
}

pub(crate) fn any_name() -> impl Strategy<Value = IfName> {
    "[a-z][a-z0-9@_-]{0,14}".prop_map(|text| name(&text))
}

pub(crate) fn any_mac() -> impl Strategy<Value = MacAddr> {
    any::<[u8; 6]>().prop_map(MacAddr)
}

pub(crate) fn any_family() -> impl Strategy<Value = Family> {
    prop_oneof![Just(Family::V4), Just(Family::V6)]
}

pub(crate) fn any_ip(family: Family) -> BoxedStrategy<IpAddr> {
    match family {
        Family::V4 => any::<u32>().prop_map(|bits| IpAddr::V4(Ipv4Addr::from(bits))).boxed(),
        Family::V6 => any::<u128>().prop_map(|bits| IpAddr::V6(Ipv6Addr::from(bits))).boxed(),
    }
}

/// An address with a prefix length; host bits may be set.
pub(crate) fn any_network(family: Family) -> BoxedStrategy<IpNetwork> {
    match family {
        Family::V4 => (any::<u32>(), 0_u8..=32)
            .prop_map(|(bits, prefix)| Ipv4Network::new(bits.into(), prefix).unwrap().into())
            .boxed(),
        Family::V6 => (any::<u128>(), 0_u8..=128)
            .prop_map(|(bits, prefix)| Ipv6Network::new(bits.into(), prefix).unwrap().into())
            .boxed(),
    }
}
