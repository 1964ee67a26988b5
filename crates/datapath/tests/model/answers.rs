//! Bytes that change: what a router does to a packet, and frames that become answers.

use std::net::{Ipv4Addr, Ipv6Addr};

use podwire_datapath::abi::{MARK_DECIDED, Reason};

use super::{
    Config, Endpoint, Fate, Mac,
    parse::{Ethernet, MALFORMED, array, u16},
};

/// Takes one from the TTL or the hop limit, which is at least 2.
pub fn route(frame: &mut [u8]) {
    if u16(frame, 12) == 0x86dd {
        frame[14 + 7] -= 1;
        return;
    }
    let ttl = 14 + 8;
    let before = u16(frame, ttl);
    frame[ttl] -= 1;
    let after = u16(frame, ttl);
    // RFC 1624, equation 3. A wrong checksum stays as wrong as it was: the packet's receiver is to see it.
    let sum = ones_complement_sum([!u16(frame, 14 + 10), !before, after]);
    frame[14 + 10..14 + 12].copy_from_slice(&(!sum).to_be_bytes());
}

/// Answers a pod's own question for its IPv4 gateway (RFC 826), or its probe (RFC 5227).
pub fn arp(
    ethernet: &Ethernet<'_>,
    pod: &Endpoint,
    config: &Config,
    fate: &mut Fate,
) -> Result<(), Reason> {
    let packet = ethernet.payload.get(..28).ok_or(MALFORMED)?;
    // Ethernet, IPv4, addresses of six and four bytes.
    if packet[..6] != [0, 1, 8, 0, 6, 4] {
        return Err(MALFORMED);
    }
    let is_request = packet[6..8] == [0, 1];
    let sender_mac: Mac = array(packet, 8);
    let sender = Ipv4Addr::from(array(packet, 14));
    let target = Ipv4Addr::from(array(packet, 24));
    let in_own_name = pod.v4 == Some(sender) || sender.is_unspecified();
    if !is_request || sender_mac != ethernet.from || !in_own_name || config.router4 != Some(target)
    {
        return Err(Reason::ForeignArp);
    }
    let answer = [
        &pod.mac[..],
        &pod.host_mac,
        &[8, 6],
        &[0, 1, 8, 0, 6, 4, 0, 2],
        &pod.host_mac,
        &target.octets(),
        &pod.mac,
        &sender.octets(),
    ]
    .concat();
    // What a sender padded its frame with stays.
    fate.frame[..answer.len()].copy_from_slice(&answer);
    fate.mark = MARK_DECIDED;
    Ok(())
}

/// Tells `asking`, or all nodes if nobody asks, that `router` is at the pod's host link (RFC 4861, 4.4
/// and 7.2.4).
pub fn neighbour_advertisement(
    router: Ipv6Addr,
    asking: Ipv6Addr,
    pod: &Endpoint,
    fate: &mut Fate,
) {
    const ROUTER: u8 = 0x80;
    const SOLICITED: u8 = 0x40;
    const OVERRIDE: u8 = 0x20;
    let (receiver, flags) = if asking.is_unspecified() {
        (Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1), ROUTER | OVERRIDE)
    } else {
        (asking, ROUTER | SOLICITED | OVERRIDE)
    };
    let mut message =
        [&[136, 0, 0, 0, flags, 0, 0, 0], &router.octets()[..], &[2, 1], &pod.host_mac].concat();
    let pseudo_header =
        [&router.octets()[..], &receiver.octets(), &[0, 0, 0, 32], &[0, 0, 0, 58]].concat();
    let checksum = internet_checksum(&[&pseudo_header[..], &message].concat());
    message[2..4].copy_from_slice(&checksum.to_be_bytes());
    fate.frame = [
        &pod.mac[..],
        &pod.host_mac,
        &[0x86, 0xdd],
        &[0x60, 0, 0, 0, 0, 32, 58, 255],
        &router.octets(),
        &receiver.octets(),
        &message,
    ]
    .concat();
    fate.mark = MARK_DECIDED;
}

/// The Internet checksum (RFC 1071).
pub fn internet_checksum(bytes: &[u8]) -> u16 {
    let words = bytes
        .chunks(2)
        .map(|pair| u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
    !ones_complement_sum(words)
}

fn ones_complement_sum(words: impl IntoIterator<Item = u16>) -> u16 {
    words.into_iter().fold(0, |sum, word| {
        let (sum, carried) = u16::overflowing_add(sum, word);
        // Never overflows: a sum that carried is at most 0xfffe.
        sum + u16::from(carried)
    })
}
