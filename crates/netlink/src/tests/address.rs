use super::*;
use crate::fixture::{
    any_family, any_index, any_ip, any_name, any_network, hex, index, ip, name, net, payload, sent,
};
use crate::{Add, Delete, Replace};
use proptest::option;
use proptest::prelude::*;

#[test]
fn what_the_kernel_says_of_an_ipv4_address() {
    let address = Address::parse(&hex("
        02188000 03000000 08000100 0a070001 08000200 0a070001 0b000300 70777465 73740000
        08000800 80000000 14000600 ffffffff ffffffff 5db90400 5db90400"))
    .unwrap();
    let mut expected = Address::new(index(3), net("10.7.0.1/24"));
    expected.flags = AddressFlags::PERMANENT;
    expected.label = Some(name("pwtest"));
    assert_eq!(address, expected);
}

#[test]
fn what_the_kernel_says_of_ipv6_addresses() {
    let address = Address::parse(&hex("
        0a408200 03000000 14000100 fd070000 00000000 00000000 00000001
        14000600 ffffffff ffffffff 5eb90400 5eb90400 08000800 82000000"))
    .unwrap();
    let expected = Address::new(index(3), net("fd07::1/64")).with_flags(AddressFlags::PERMANENT);
    assert_eq!(address, expected);
    assert!(address.flags.contains(AddressFlags::NODAD));

    let address = Address::parse(&hex("
        0a40c0fd 03000000 14000100 fe800000 00000000 000000ff fe000001
        14000600 ffffffff ffffffff 5cb90400 5cb90400 08000800 c0000000 05000b00 03000000"))
    .unwrap();
    assert_eq!((address.scope, address.protocol), (Scope::LINK, 3));
    assert!(address.flags.contains(AddressFlags::TENTATIVE));
}

#[test]
fn requests_to_the_byte() {
    let v4 = Address::new(index(3), net("10.7.0.1/32"));
    let bytes = hex("02200000 03000000 08000200 0a070001 08000100 0a070001");
    assert_eq!(sent(&Add(&v4)), (RTM_NEWADDR, 0x601, bytes.clone()));
    assert_eq!(sent(&Replace(&v4)), (RTM_NEWADDR, 0x501, bytes.clone()));
    assert_eq!(sent(&Delete(&v4)), (RTM_DELADDR, 1, bytes));

    let v6 = Address::new(index(3), net("fd07::1/128")).with_protocol(80);
    let bytes = hex("
        0a800200 03000000
        14000200 fd070000 00000000 00000000 00000001
        14000100 fd070000 00000000 00000000 00000001
        08000800 02000000 05000b00 50000000");
    assert_eq!(sent(&Add(&v6)), (RTM_NEWADDR, 0x601, bytes));
}

#[test]
fn scopes_follow_from_the_address() {
    for (network, scope) in [
        ("127.0.0.1/8", Scope::HOST),
        ("::1/128", Scope::HOST),
        ("169.254.1.1/16", Scope::LINK),
        ("fe80::1/64", Scope::LINK),
        ("10.0.0.1/32", Scope::UNIVERSE),
        ("fd00::1/128", Scope::UNIVERSE),
    ] {
        assert_eq!(Address::new(index(1), net(network)).scope, scope, "{network}");
    }
}

#[test]
fn what_makes_no_sense_is_refused() {
    let missing = Err(ParseError::Missing { field: "the address" });
    assert_eq!(Address::parse(&hex("02200000 03000000")), missing);
    let family = Err(ParseError::Range { field: "the address family" });
    assert_eq!(Address::parse(&hex("07200000 03000000")), family);
    let prefix = Err(ParseError::Range { field: "the prefix length" });
    assert_eq!(Address::parse(&hex("02210000 03000000 08000200 0a070001")), prefix);
    let expected = ParseError::Attribute { kind: 2, expected: 4, found: 16 };
    let v6_in_v4 = hex("02200000 03000000 14000200 fd070000 00000000 00000000 00000001");
    assert_eq!(Address::parse(&v6_in_v4), Err(expected));
}

fn any_address() -> impl Strategy<Value = Address> {
    let of_family = any_family().prop_flat_map(|family| {
        (any_network(family), option::of(any_ip(family)), any::<Option<u32>>(), any::<u8>())
    });
    let lifetime = option::of((any::<u32>(), 0..u32::MAX));
    let rest = (any_index(), any::<u32>(), any::<u8>(), option::of(any_name()), lifetime);
    (of_family, rest, any::<Option<u32>>()).prop_map(|(of_family, rest, route_metric)| {
        let (network, peer, broadcast, scope) = of_family;
        let (index, flags, protocol, label, lifetime) = rest;
        Address {
            index,
            network,
            peer: peer.filter(|peer| *peer != network.ip()),
            scope: Scope(scope),
            flags: AddressFlags(flags),
            protocol,
            broadcast: broadcast.filter(|_| network.is_ipv4()).map(Ipv4Addr::from),
            label,
            route_metric,
            lifetime: lifetime.map(|(preferred, valid)| Lifetime { preferred, valid }),
        }
    })
}

proptest! {
    #[test]
    fn addresses_round_trip(address in any_address()) {
        prop_assert_eq!(Address::parse(&payload(|message| address.emit(message))), Ok(address));
    }

    #[test]
    fn any_bytes_are_parsed_without_a_panic(
        family in prop_oneof![Just(2_u8), Just(10), any::<u8>()],
        bytes in proptest::collection::vec(any::<u8>(), 0..100),
    ) {
        let mut message = vec![family];
        message.extend(bytes);
        let _ = Address::parse(&message);
    }
}

#[test]
fn a_peer_is_told_from_the_address() {
    let mut address = Address::new(index(3), net("10.7.0.1/32"));
    address.peer = Some(ip("10.7.0.2"));
    assert_eq!(Address::parse(&payload(|message| address.emit(message))).unwrap(), address);
}
