//! Conversions between the versions' results, both ways, over made-up results.

#![expect(clippy::unwrap_used, reason = "functions that tests share panic as tests do")]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnetwork::IpNetwork;
use podwire_cni::types::{Dns, Interface, Ip, Route, Success};
use podwire_cni::{NetworkConfig, SpecVersion};
use proptest::prelude::*;

fn address() -> impl Strategy<Value = IpAddr> {
    prop_oneof![
        any::<u32>().prop_map(|bits| IpAddr::V4(Ipv4Addr::from(bits))),
        any::<u128>().prop_map(|bits| IpAddr::V6(Ipv6Addr::from(bits))),
    ]
}

fn cidr() -> impl Strategy<Value = IpNetwork> {
    (address(), 0u8..=128).prop_map(|(address, length)| {
        let most = if address.is_ipv4() { 32 } else { 128 };
        IpNetwork::new(address, length.min(most)).unwrap()
    })
}

fn text() -> impl Strategy<Value = String> {
    // An empty text is read as none, so that it is not made up here.
    "[a-zA-Z0-9:./ü\"\\\\-]{1,12}"
}

fn maybe<T: std::fmt::Debug + Clone>(
    value: impl Strategy<Value = T>,
) -> impl Strategy<Value = Option<T>> {
    prop::option::of(value)
}

fn interface() -> impl Strategy<Value = Interface> {
    let old = (text(), maybe(text()), maybe(text()));
    let new = (maybe(any::<u32>()), maybe(text()), maybe(text()));
    (old, new).prop_map(|((name, mac, sandbox), (mtu, socket_path, pci_id))| {
        let mut interface = Interface::new(name);
        interface.mac = mac;
        interface.sandbox = sandbox;
        interface.mtu = mtu;
        interface.socket_path = socket_path;
        interface.pci_id = pci_id;
        interface
    })
}

fn ip() -> impl Strategy<Value = Ip> {
    (cidr(), maybe(address()), maybe(0u32..5)).prop_map(|(address, gateway, interface)| {
        let mut ip = Ip::new(address);
        ip.gateway = gateway;
        ip.interface = interface;
        ip
    })
}

fn route() -> impl Strategy<Value = Route> {
    let old = (cidr(), maybe(address()));
    let sizes = (maybe(any::<u32>()), maybe(any::<u32>()));
    let new = (maybe(any::<u32>()), maybe(any::<u32>()), maybe(any::<u8>()));
    (old, sizes, new).prop_map(|((dst, gw), (mtu, advmss), (priority, table, scope))| {
        let mut route = Route::new(dst);
        route.gw = gw;
        route.mtu = mtu;
        route.advmss = advmss;
        route.priority = priority;
        route.table = table;
        route.scope = scope;
        route
    })
}

fn dns() -> impl Strategy<Value = Dns> {
    let list = || prop::collection::vec(text(), 0..3);
    (list(), maybe(text()), list(), list()).prop_map(|(nameservers, domain, search, options)| {
        let mut dns = Dns::default();
        dns.nameservers = nameservers;
        dns.domain = domain;
        dns.search = search;
        dns.options = options;
        dns
    })
}

fn success() -> impl Strategy<Value = Success> {
    let interfaces = prop::collection::vec(interface(), 0..4);
    let ips = prop::collection::vec(ip(), 0..4);
    let routes = prop::collection::vec(route(), 0..4);
    (interfaces, ips, routes, dns()).prop_map(|(interfaces, ips, routes, dns)| {
        let mut success = Success::default();
        success.interfaces = interfaces;
        success.ips = ips;
        success.routes = routes;
        success.dns = dns;
        success
    })
}

fn version() -> impl Strategy<Value = SpecVersion> {
    prop::sample::select(SpecVersion::ALL)
}

/// What of a result is left in 1.0.0 and, as far as it goes, in 0.3.0 to 0.4.0.
fn without_news_of_1_1_0(mut success: Success) -> Success {
    for interface in &mut success.interfaces {
        interface.mtu = None;
        interface.socket_path = None;
        interface.pci_id = None;
    }
    for route in &mut success.routes {
        let gw = route.gw;
        *route = Route::new(route.dst);
        route.gw = gw;
    }
    success
}

proptest! {
    #[test]
    fn the_newest_version_loses_nothing(success in success()) {
        let value = success.to_value(SpecVersion::V1_1_0);
        prop_assert_eq!(Success::from_value(value, SpecVersion::V0_1_0), Ok(success));
    }

    #[test]
    fn from_0_3_0_on_only_the_news_of_1_1_0_are_lost(
        success in success(),
        version in prop::sample::select(&SpecVersion::ALL[2..6]),
    ) {
        let value = success.to_value(version);
        let read = Success::from_value(value, SpecVersion::V0_1_0);
        prop_assert_eq!(read, Ok(without_news_of_1_1_0(success)));
    }

    #[test]
    fn before_that_one_address_of_each_family_is_left(success in success()) {
        let value = success.to_value(SpecVersion::V0_2_0);
        let read = Success::from_value(value, SpecVersion::V1_1_0).unwrap();
        prop_assert!(read.interfaces.is_empty());
        for v4 in [true, false] {
            let had: Vec<_> = success.ips.iter().filter(|ip| ip.address.is_ipv4() == v4).collect();
            let has: Vec<_> = read.ips.iter().filter(|ip| ip.address.is_ipv4() == v4).collect();
            prop_assert_eq!(has.len(), had.len().min(1));
            for ip in &has {
                let of = |before: &&&Ip| (before.address, before.gateway) == (ip.address, ip.gateway);
                prop_assert!(had.iter().any(|before| of(&before)));
            }
            let routes = |success: &Success| {
                let routes = success.routes.iter().filter(|route| route.dst.is_ipv4() == v4);
                routes.map(|route| (route.dst, route.gw)).collect::<Vec<_>>()
            };
            let expected = if has.is_empty() { vec![] } else { routes(&success) };
            prop_assert_eq!(routes(&read), expected);
        }
        prop_assert_eq!(read.dns, success.dns);
    }

    /// What a version can say survives being read and written again, whatever the way there.
    #[test]
    fn what_a_version_can_say_survives(success in success(), version in version()) {
        let value = success.to_value(version);
        let read = Success::from_value(value.clone(), version).unwrap();
        prop_assert_eq!(read.to_value(version), value.clone());
        // Through the newest version's text, as when a runtime converts a cached result.
        let newest = read.to_value(SpecVersion::V1_1_0);
        let again = Success::from_value(newest, version).unwrap();
        prop_assert_eq!(again.to_value(version), value);
    }

    #[test]
    fn results_state_their_version(success in success(), version in version()) {
        let value = success.to_value(version);
        prop_assert_eq!(value["cniVersion"].as_str(), Some(version.as_str()));
        let keys: Vec<&str> = value.as_object().unwrap().keys().map(String::as_str).collect();
        let old = version <= SpecVersion::V0_2_0;
        prop_assert_eq!(keys.iter().any(|key| ["ips", "interfaces", "routes"].contains(key)) && old, false);
        prop_assert_eq!(keys.iter().any(|key| ["ip4", "ip6"].contains(key)) && !old, false);
    }

    /// A configuration never makes the reader panic, and what is read has been given.
    #[test]
    fn any_bytes_are_a_configuration_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = NetworkConfig::parse(&bytes);
    }

    #[test]
    fn a_mutilated_configuration_is_read_or_refused(
        success in success(),
        version in version(),
        at in any::<prop::sample::Index>(),
        byte in any::<u8>(),
    ) {
        let mut text = serde_json::json!({
            "cniVersion": version, "name": "net", "type": "x", "prevResult": success.to_value(version),
            "runtimeConfig": {"mac": "00:00:5e:00:53:01", "ips": ["10.0.0.1/24"]},
        }).to_string().into_bytes();
        let at = at.index(text.len());
        text[at] = byte;
        if let Ok(config) = NetworkConfig::parse(&text) {
            let _ = config.prev_result();
            let _ = config.valid_attachments();
        }
    }
}
