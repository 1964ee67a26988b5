use super::*;
use crate::fixture::{any_family, any_index, any_ip, any_mac, hex, index, ip, payload, sent};
use crate::{Delete, Replace};
use proptest::option;
use proptest::prelude::*;

#[test]
fn what_the_kernel_says_of_neighbours() {
    let permanent = Neighbour::parse(&hex("
        02000000 03000000 80000001 08000100 0a070009 0a000200 02000000 00090000
        08000400 00000000 14000300 03000000 03000000 03000000 00000000"))
    .unwrap();
    let expected = Neighbour::permanent(index(3), ip("10.7.0.9"), MacAddr([2, 0, 0, 0, 0, 9]));
    assert_eq!(permanent, expected);

    let managed = Neighbour::parse(&hex("
        0a000000 03000000 01001001 14000100 fd070000 00000000 00000000 00000009
        08000400 04000000 14000300 73170000 03000000 03000000 01000000 08000f00 01000000"))
    .unwrap();
    let mut expected = Neighbour::managed(index(3), ip("fd07::9"));
    expected.state = NeighbourState::INCOMPLETE;
    assert_eq!(managed, expected);
}

#[test]
fn requests_to_the_byte() {
    let router = Neighbour::permanent(index(3), ip("10.7.0.9"), MacAddr([2, 0, 0, 0, 0, 9]))
        .with_protocol(RouteProtocol(80));
    let bytes = hex("
        02000000 03000000 80000000 08000100 0a070009 0a000200 02000000 00090000 05000c00 50000000");
    assert_eq!(sent(&Replace(&router)), (RTM_NEWNEIGH, 0x501, bytes.clone()));
    assert_eq!(sent(&Delete(&router)), (RTM_DELNEIGH, 1, bytes));
    let managed = Neighbour::managed(index(3), ip("10.7.0.9"));
    let bytes = hex("02000000 03000000 00001000 08000100 0a070009 08000f00 01000000");
    assert_eq!(sent(&Replace(&managed)).2, bytes);
}

fn any_neighbour() -> impl Strategy<Value = Neighbour> {
    let flags = 0_u64..1 << 40;
    let rest = (any_index(), option::of(any_mac()), any::<u16>(), flags, any::<u8>());
    (any_family().prop_flat_map(any_ip), rest).prop_map(|(address, rest)| {
        let (index, mac, state, flags, protocol) = rest;
        Neighbour {
            index,
            address,
            mac,
            state: NeighbourState(state),
            flags: NeighbourFlags(flags),
            protocol: RouteProtocol(protocol),
        }
    })
}

proptest! {
    #[test]
    fn neighbours_round_trip(neighbour in any_neighbour()) {
        let bytes = payload(|message| neighbour.emit(message));
        prop_assert_eq!(Neighbour::parse(&bytes), Ok(neighbour));
    }

    #[test]
    fn any_bytes_are_parsed_without_a_panic(
        family in prop_oneof![Just(2_u8), Just(10)],
        bytes in proptest::collection::vec(any::<u8>(), 0..100),
    ) {
        let mut message = vec![family];
        message.extend(bytes);
        let _ = Neighbour::parse(&message);
    }
}
