use super::*;
use crate::fixture::{
    any_family, any_index, any_ip, any_network, hex, index, ip, net, payload, sent,
};
use crate::{Add, Delete};
use proptest::option;
use proptest::prelude::*;

const OURS: RouteProtocol = RouteProtocol(80);

#[test]
fn what_the_kernel_says_of_routes() {
    for (bytes, expected) in [
        (
            "02100000 fe500001 00000000 08000f00 fe000000 08000100 0a080000 08000600 07000000
             0c000800 08000200 78050000 08000500 0a070002 08000400 03000000",
            Route::new(net("10.8.0.0/16"))
                .via(ip("10.7.0.2"))
                .dev(index(3))
                .protocol(OURS)
                .metric(7)
                .mtu(1400),
        ),
        (
            "0a400000 fc500001 00000000 08000f00 e8030000
             14000100 fd080000 00000000 00000000 00000000 08000600 00040000
             14000500 fd070000 00000000 00000000 00000002 08000400 03000000
             24000c00 00000000 00000000 00000000 00000000 00000000 00000000 00000000 00000000
             05001400 00000000",
            Route::new(net("fd08::/64"))
                .via(ip("fd07::2"))
                .dev(index(3))
                .protocol(OURS)
                .table(TableId(1000))
                .metric(1024),
        ),
        (
            "02100000 fe030001 00000000 08000f00 fe000000 08000100 0a0a0000
             16001200 0a00fd07 00000000 00000000 00000000 00020000 08000400 03000000",
            Route::new(net("10.10.0.0/16")).via(ip("fd07::2")).dev(index(3)),
        ),
    ] {
        assert_eq!(Route::parse(&hex(bytes)).unwrap(), expected);
    }
}

#[test]
fn what_the_kernel_says_of_several_ways() {
    let route = Route::parse(&hex("
        02100000 fe500001 00000000 08000f00 fe000000 08000100 0a090000
        24000900 10000001 03000000 08000500 0a070003 10000400 03000000 08000500 0a070004"))
    .unwrap();
    let hop = |gateway, weight, on_link| NextHop {
        gateway: Some(ip(gateway)),
        output: Some(index(3)),
        weight,
        on_link,
    };
    let mut expected = Route::new(net("10.9.0.0/16")).protocol(OURS);
    expected.multipath = vec![hop("10.7.0.3", 2, OnLink::No), hop("10.7.0.4", 1, OnLink::Yes)];
    assert_eq!(route, expected);
    assert!(RouteFilter::output(index(3)).matches(&route));
    assert!(!RouteFilter::output(index(4)).matches(&route));
}

#[test]
fn requests_to_the_byte() {
    let pods = Route::new(net("10.0.7.9/24"))
        .via(ip("10.0.7.1"))
        .dev(index(3))
        .preferred_source(ip("10.0.7.1"))
        .protocol(OURS)
        .mtu(1400);
    let bytes = hex("
        02180000 fe500001 00000000 08000100 0a000700 08000f00 fe000000
        08000700 0a000701 08000500 0a000701 08000400 03000000 0c000880 08000200 78050000");
    assert_eq!(sent(&Add(&pods)), (RTM_NEWROUTE, 0x601, bytes.clone()));
    assert_eq!(sent(&Delete(&pods)), (RTM_DELROUTE, 1, bytes));

    let link = Route::new(net("10.0.7.1/32")).dev(index(3));
    assert_eq!(link.scope, Scope::LINK);
    let default = Route::default_of(Family::V6).via(ip("fe80::1")).dev(index(3)).on_link();
    let bytes = hex("
        0a000000 fe030001 04000000 08000f00 fe000000
        14000500 fe800000 00000000 00000000 00000001 08000400 03000000");
    assert_eq!(sent(&Add(&default)).2, bytes);
}

#[test]
fn next_hops_that_lie_are_refused() {
    for hops in ["0000000003000000", "0700000003000000", "0900000003000000", "10000000"] {
        let mut bytes = hex("02000000 fe500001 00000000");
        let value = hex(hops);
        bytes.extend(u16::try_from(value.len() + 4).unwrap().to_ne_bytes());
        bytes.extend(RTA_MULTIPATH.to_ne_bytes());
        bytes.extend(value);
        assert!(matches!(Route::parse(&bytes), Err(ParseError::Truncated { .. })), "{hops}");
    }
}

fn any_hop(family: Family) -> impl Strategy<Value = NextHop> {
    (option::of(any_gateway(family)), any_index(), 1_u16..=256, any::<bool>()).prop_map(
        |(gateway, output, weight, on_link)| NextHop {
            gateway,
            output: Some(output),
            weight,
            on_link: if on_link { OnLink::Yes } else { OnLink::No },
        },
    )
}

fn any_gateway(family: Family) -> BoxedStrategy<IpAddr> {
    match family {
        Family::V4 => prop_oneof![any_ip(Family::V4), any_ip(Family::V6)].boxed(),
        Family::V6 => any_ip(Family::V6),
    }
}

fn any_route() -> impl Strategy<Value = Route> {
    let of_family = any_family().prop_flat_map(|family| {
        (
            any_network(family),
            option::of(any_network(family)),
            option::of(any_gateway(family)),
            option::of(any_ip(family)),
            proptest::collection::vec(any_hop(family), 0..3),
        )
    });
    let numbers = (any::<u32>(), any::<u8>(), any::<u8>(), any::<u8>(), any::<u8>());
    let options = (
        any::<Option<u32>>(),
        option::of(any_index()),
        any::<bool>(),
        option::of((any::<u32>(), any::<bool>())),
        any::<Option<u32>>(),
        any::<Option<u32>>(),
    );
    (of_family, numbers, options).prop_map(|(of_family, numbers, options)| {
        let (destination, source, gateway, preferred_source, multipath) = of_family;
        let (table, kind, protocol, scope, tos) = numbers;
        let (metric, output, on_link, mtu, advertised_mss, nexthop_id) = options;
        Route {
            destination: masked(destination),
            source: source.map(masked).filter(|source| source.prefix() != 0),
            table: TableId(table),
            kind: RouteKind(kind),
            protocol: RouteProtocol(protocol),
            scope: Scope(scope),
            metric,
            tos,
            gateway,
            output,
            on_link: if on_link { OnLink::Yes } else { OnLink::No },
            preferred_source,
            mtu: mtu.map(|(bytes, lock)| RouteMtu {
                bytes,
                lock: if lock { MtuLock::Locked } else { MtuLock::Free },
            }),
            advertised_mss,
            multipath,
            nexthop_id,
        }
    })
}

proptest! {
    #[test]
    fn routes_round_trip(route in any_route()) {
        prop_assert_eq!(Route::parse(&payload(|message| route.emit(message))), Ok(route));
    }

    #[test]
    fn any_bytes_are_parsed_without_a_panic(
        family in prop_oneof![Just(2_u8), Just(10)],
        bytes in proptest::collection::vec(any::<u8>(), 0..120),
    ) {
        let mut message = vec![family];
        message.extend(bytes);
        let _ = Route::parse(&message);
    }

    #[test]
    fn any_next_hops_are_parsed_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
        let _ = parse_multipath(Family::V4, &bytes);
    }
}
