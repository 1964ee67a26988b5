//! What does not show its transport header at once: fragments, options, extension headers, under
//! `BPF_PROG_TEST_RUN`.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod node;

use std::net::SocketAddr;

use node::{HOST_MAC, Node, on_node, udp};
use podwire_datapath::abi::Reason;
use podwire_lab::probe::frame::{Link, limit_hops};

#[test]
#[ignore = "needs root: loads programs in a namespace of its own"]
fn ipv4_options_are_stepped_over() {
    on_node(|node| {
        let (a, b) = (node.a, node.b);
        let plain = udp(&a, a.v4.into(), b.v4.into());
        let mut frame = plain[..34].to_vec();
        frame.extend([1, 1, 1, 0]);
        frame.extend(&plain[34..]);
        frame[14] = 0x46;
        frame[17] += 4;
        assert_eq!(node.pod_sends(&a, &frame).reason, Reason::Delivered);
        frame.truncate(14 + 24 + 7);
        frame[17] = 24 + 7;
        assert_eq!(node.pod_sends(&a, &frame).reason, Reason::Malformed);
    });
}

/// An IPv4 fragment: `offset` in units of eight bytes.
fn fragment4(
    node: &Node,
    id: u16,
    offset: u16,
    more: bool,
    protocol: u8,
    payload: &[u8],
) -> Vec<u8> {
    let (a, b) = (node.a, node.b);
    let mut frame = a.to_gateway().ip(a.v4.into(), b.v4.into(), protocol, payload);
    frame[18..20].copy_from_slice(&id.to_be_bytes());
    let field = offset | if more { 0x2000 } else { 0 };
    frame[20..22].copy_from_slice(&field.to_be_bytes());
    limit_hops(&mut frame, 64);
    frame
}

/// An IPv6 fragment (RFC 8200, 4.5).
fn fragment6(node: &Node, id: u32, offset: u16, more: bool, payload: &[u8]) -> Vec<u8> {
    let (a, b) = (node.a, node.b);
    let field = offset << 3 | u16::from(more);
    let header = [&[17, 0][..], &field.to_be_bytes(), &id.to_be_bytes(), payload].concat();
    a.to_gateway().ip(a.v6.into(), b.v6.into(), 44, &header)
}

#[test]
#[ignore = "needs root: loads programs in a namespace of its own"]
fn later_fragments_follow_their_first() {
    on_node(|node| {
        let reason = |frame: &[u8]| node.pod_sends(&node.a, frame).reason;
        let start = [&40000_u16.to_be_bytes()[..], &53_u16.to_be_bytes(), &[0; 12]].concat();
        for later in
            [fragment4(node, 9, 2, true, 17, &[0; 16]), fragment4(node, 9, 4, false, 17, &[0; 3])]
        {
            assert_eq!(reason(&later), Reason::UnknownFragment);
        }
        assert_eq!(reason(&fragment4(node, 9, 0, true, 17, &start)), Reason::Delivered);
        assert_eq!(reason(&fragment4(node, 9, 2, true, 17, &[0; 16])), Reason::Delivered);
        assert_eq!(reason(&fragment4(node, 9, 4, false, 17, &[0; 3])), Reason::Delivered);
        assert_eq!(reason(&fragment4(node, 10, 2, false, 17, &[0; 16])), Reason::UnknownFragment);
        assert_eq!(reason(&fragment4(node, 9, 2, false, 6, &[0; 16])), Reason::UnknownFragment);
        assert_eq!(
            reason(&fragment4(node, 9, 1, false, 6, &[0; 16])),
            Reason::Malformed,
            "RFC 1858"
        );

        assert_eq!(reason(&fragment6(node, 9, 2, false, &[0; 16])), Reason::UnknownFragment);
        assert_eq!(reason(&fragment6(node, 9, 0, true, &start)), Reason::Delivered);
        assert_eq!(reason(&fragment6(node, 9, 2, false, &[0; 16])), Reason::Delivered);
        assert_eq!(reason(&fragment6(node, 8, 0, false, &start)), Reason::Delivered, "atomic");
        assert_eq!(reason(&fragment6(node, 8, 2, false, &[0; 16])), Reason::UnknownFragment);
    });
}

#[test]
#[ignore = "needs root: loads programs in a namespace of its own"]
fn fragments_keep_to_their_flows_way() {
    on_node(|node| {
        let (a, b) = (node.a, node.b);
        let stack = Link { from: HOST_MAC, to: HOST_MAC };
        let (b_side, a_side) =
            (SocketAddr::new(b.v4.into(), 53), SocketAddr::new(a.v4.into(), 40000));
        node.stack_sends(&stack.udp(b_side, a_side, b"?"));
        let start = [&40000_u16.to_be_bytes()[..], &53_u16.to_be_bytes(), &[0; 12]].concat();
        let first = fragment4(node, 9, 0, true, 17, &start);
        let later = fragment4(node, 9, 2, false, 17, &[0; 16]);
        for frame in [first, later] {
            assert_eq!(node.pod_sends(&a, &frame).reason, Reason::ToStackByFlow);
        }
    });
}

#[test]
#[ignore = "needs root: loads programs in a namespace of its own"]
fn extension_headers_are_followed_to_a_limit() {
    on_node(|node| {
        let (a, b) = (node.a, node.b);
        let datagram =
            [&40000_u16.to_be_bytes()[..], &53_u16.to_be_bytes(), &[0, 8, 0, 0]].concat();
        let chain = |headers: &[u8]| {
            let mut payload = Vec::new();
            for (place, &header) in headers.iter().enumerate() {
                let next = headers.get(place + 1).copied().unwrap_or(17);
                // Authentication counts in words of four bytes: a length of 4 makes 24 bytes.
                let (len, size) = if header == 51 { (4, 24) } else { (1, 16) };
                payload.extend([&[next, len][..], &vec![0; size - 2]].concat());
            }
            payload.extend(&datagram);
            let first = headers.first().copied().unwrap_or(17);
            a.to_gateway().ip(a.v6.into(), b.v6.into(), first, &payload)
        };
        for headers in [&[0][..], &[60], &[43], &[51], &[0, 60, 43, 51], &[0, 60, 43, 60, 51, 60]] {
            assert_eq!(
                node.pod_sends(&a, &chain(headers)).reason,
                Reason::Delivered,
                "{headers:?}"
            );
        }
        let judged = node.pod_sends(&a, &chain(&[0, 60, 60, 60, 60, 60, 60]));
        assert_eq!(judged.reason, Reason::ExtensionHeaders);
        let mut beyond = chain(&[0]);
        beyond[14 + 40 + 1] = 200;
        assert_eq!(node.pod_sends(&a, &beyond).reason, Reason::Malformed);
        // Nor where nothing is read behind it: of this protocol nothing is known.
        let beyond_all =
            a.to_gateway().ip(a.v6.into(), b.v6.into(), 60, &[47, 9, 0, 0, 0, 0, 0, 0]);
        assert_eq!(node.pod_sends(&a, &beyond_all).reason, Reason::Malformed);
        let no_next = a.to_gateway().ip(a.v6.into(), b.v6.into(), 59, b"");
        assert_eq!(node.pod_sends(&a, &no_next).reason, Reason::Delivered);
    });
}
