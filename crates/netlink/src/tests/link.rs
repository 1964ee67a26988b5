use super::*;
use crate::fixture::{any_index, any_mac, any_name, hex, index, name, payload, sent};
use proptest::option;
use proptest::prelude::*;
use std::os::fd::AsFd;

/// A veth as Linux 6.18 reports it, without the statistics.
const VETH: &str = "
    00000100 03000000 43100100 00000000
    0b000300 70777465 73740000  08000d00 e8030000  05001000 06000000
    05001100 00000000  08000400 aa050000  08003200 44000000  08001b00 00000000
    15001400 706f6477 6972653a 6e3a632f 65746830 00000000
    0a000100 02000000 00010000  0a000200 ffffffff ffff0000
    0c002b00 05000200 00000000
    10001200 09000100 76657468 00000000
    08000500 02000000  08002500 07000000
    0c000600 6e6f7175 65756500
    10001a00 0c000a00 05000800 01000000";

#[test]
fn what_the_kernel_says_of_a_veth() {
    let link = Link::parse(&hex(VETH)).unwrap();
    assert_eq!(
        link,
        Link {
            index: index(3),
            name: name("pwtest"),
            kind: Some(LinkKind::Veth),
            flags: LinkFlags(0x11043),
            mac: Some(MacAddr([2, 0, 0, 0, 0, 1])),
            mtu: 1450,
            alias: Some("podwire:n:c/eth0".into()),
            peer: Some(index(2)),
            peer_netns: Some(NetnsId(7)),
            master: None,
            group: 0,
            qdisc: Some("noqueue".into()),
            queue_length: 1000,
            state: OperState::UP,
            addr_gen_mode: Some(AddrGenMode::None),
        }
    );
    assert!(link.is_up() && link.is_veth() && link.flags.contains(LinkFlags::LOWER_UP));
}

#[test]
fn a_peer_of_the_same_number_may_be_left_out() {
    let bytes = payload(|message| {
        ifinfomsg(message, Some(index(9)), 0, 0);
        message.attr_str(IFLA_IFNAME, b"eth0");
        message.attr_i32(IFLA_LINK_NETNSID, 0);
    });
    assert_eq!(Link::parse(&bytes).unwrap().peer, Some(index(9)));
}

#[test]
fn a_link_without_number_or_name_is_refused() {
    let nameless = payload(|message| ifinfomsg(message, Some(index(9)), 0, 0));
    assert_eq!(Link::parse(&nameless), Err(ParseError::Missing { field: "the link's name" }));
    let numberless = payload(|message| {
        ifinfomsg(message, None, 0, 0);
        message.attr_str(IFLA_IFNAME, b"eth0");
    });
    assert_eq!(Link::parse(&numberless), Err(ParseError::Range { field: "the link's index" }));
    assert!(matches!(Link::parse(&[0; 15]), Err(ParseError::Truncated { .. })));
}

#[test]
fn a_pair_is_one_request() {
    let netns = std::fs::File::open("/dev/null").unwrap();
    let fd = netns.as_fd();
    let pair = NewLink::veth(
        Birth {
            mac: Some(MacAddr([2, 0, 0, 0, 0, 1])),
            mtu: Some(1450),
            netns: Some(fd),
            state: AdminState::Up,
            ..Birth::named(name("eth0"))
        },
        Birth { group: Some(7), index: Some(index(9)), ..Birth::named(name("pw0")) },
    );
    let (kind, flags, payload) = sent(&pair);
    assert_eq!((kind, flags), (RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL | 1));
    let mut expected = hex("
        00000000 00000000 01000000 01000000
        09000300 65746830 00000000
        0a000100 02000000 00010000
        08000400 aa050000
        08001c00");
    expected.extend(fd.as_raw_fd().to_ne_bytes());
    expected.extend(hex("
        38001280
        09000100 76657468 00000000
        28000280
        24000180
        00000000 09000000 00000000 00000000
        08000300 70773000
        08001b00 07000000"));
    assert_eq!(payload, expected);
}

#[test]
fn a_change_says_only_what_changes() {
    let change = LinkChange::of(index(3))
        .alias("a")
        .addr_gen_mode(AddrGenMode::None)
        .up()
        .flag(LinkFlags::NOARP, Switch::Off);
    let (kind, flags, payload) = sent(&change);
    assert_eq!((kind, flags), (RTM_SETLINK, 1));
    assert_eq!(
        payload,
        hex("
            00000000 03000000 01000000 81000000
            06001400 61000000
            10001a80 0c000a80 05000800 01000000")
    );
    assert!(LinkChange::of(index(3)).is_empty() && !change.is_empty());

    // A name finds the link, unless a number does; then it is a new one.
    let (_, _, by_name) = sent(&LinkChange::of(name("eth0")).mtu(9));
    assert_eq!(
        by_name,
        hex("00000000000000000000000000000000 0900030065746830 00000000 0800040009000000")
    );
    let (_, _, renamed) = sent(&LinkChange::of(index(3)).name(name("eth0")));
    assert_eq!(renamed, hex("00000000030000000000000000000000 0900030065746830 00000000"));
    let (_, _, freed) = sent(&LinkChange::of(index(3)).no_master());
    assert_eq!(freed, hex("00000000030000000000000000000000 08000a0000000000"));
}

#[test]
fn a_link_is_asked_for_without_its_statistics() {
    let (kind, flags, payload) = sent(&Query(index(3).into()));
    assert_eq!((kind, flags), (RTM_GETLINK, 1));
    assert_eq!(payload, hex("00000000030000000000000000000000 08001d0008000000"));
    let (kind, _, payload) = sent(&Remove(name("eth0").into()));
    assert_eq!(kind, RTM_DELLINK);
    assert_eq!(payload, hex("00000000000000000000000000000000 0900030065746830 00000000"));
}

fn any_link() -> impl Strategy<Value = Link> {
    let kinds = prop_oneof![
        Just(LinkKind::Veth),
        Just(LinkKind::Bridge),
        Just(LinkKind::Dummy),
        Just(LinkKind::Vxlan),
        Just(LinkKind::Other("wireguard".into())),
    ];
    let modes = prop_oneof![
        Just(AddrGenMode::Eui64),
        Just(AddrGenMode::None),
        Just(AddrGenMode::StablePrivacy),
        Just(AddrGenMode::Random),
    ];
    let identity =
        (any_index(), any_name(), option::of(kinds), any::<u32>(), option::of(any_mac()));
    let numbers = (any::<u32>(), any::<u32>(), any::<u32>(), any::<u8>());
    let relations = (
        option::of(any_index()),
        option::of(any::<i32>()),
        option::of(any_index()),
        option::of("[^\0]{0,40}"),
        option::of("[a-z_]{1,15}"),
        option::of(modes),
    );
    (identity, numbers, relations).prop_map(|(identity, numbers, relations)| {
        let (index, name, kind, flags, mac) = identity;
        let (mtu, group, queue_length, state) = numbers;
        let (peer, peer_netns, master, alias, qdisc, addr_gen_mode) = relations;
        Link {
            index,
            name,
            kind,
            flags: LinkFlags(flags),
            mac,
            mtu,
            alias,
            peer,
            peer_netns: peer.and(peer_netns).map(NetnsId),
            master,
            group,
            qdisc,
            queue_length,
            state: OperState(state),
            addr_gen_mode,
        }
    })
}

proptest! {
    #[test]
    fn links_round_trip(link in any_link()) {
        prop_assert_eq!(Link::parse(&payload(|message| link.emit(message))), Ok(link));
    }

    #[test]
    fn any_bytes_are_parsed_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = Link::parse(&bytes);
    }

    #[test]
    fn a_damaged_link_is_parsed_without_a_panic(at in 0_usize..176, byte in any::<u8>(), to in 0_usize..177) {
        let mut bytes = hex(VETH);
        let length = bytes.len();
        bytes[at % length] = byte;
        bytes.truncate(to.min(length));
        let _ = Link::parse(&bytes);
    }
}
