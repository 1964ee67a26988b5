use super::*;
use podwire_netlink::Address;

const HOST_MAC: MacAddr = MacAddr::new([2, 0, 0, 0, 0, 1]);
const PEER_MAC: MacAddr = MacAddr::new([2, 0, 0, 0, 0, 2]);

fn spec<'a>(pod: &'a Netns, host: &str, peer: &str) -> VethSpec<'a> {
    VethSpec {
        host: VethEnd { name: host.parse().unwrap(), mac: HOST_MAC },
        peer: VethEnd { name: peer.parse().unwrap(), mac: PEER_MAC },
        mtu: 1450,
        netns: pod,
        alias: "podwire:node:container/eth0",
    }
}

#[test]
#[ignore = "needs root: makes network namespaces and links in them"]
fn a_pair_is_born_in_place() {
    let (host, pod) = (Netns::create().unwrap(), Netns::create().unwrap());
    let mut outside = host.netlink().unwrap();
    let made = create_veth(&mut outside, &spec(&pod, "pwtest", "eth0")).unwrap();

    let link = outside.link(made.host.index).unwrap();
    assert_eq!(link.name.to_string(), "pwtest");
    assert_eq!((link.mac, link.mtu), (Some(HOST_MAC), 1450));
    assert_eq!(link.alias.as_deref(), Some("podwire:node:container/eth0"));
    assert_eq!(link.addr_gen_mode, Some(AddrGenMode::None));
    assert_eq!((link.group, link.peer), (0, Some(made.peer_index)));
    assert!(link.is_veth() && link.is_up() && link.peer_netns.is_some());
    assert_eq!(link.state, OperState::UP);
    assert_eq!(link.qdisc.as_deref(), Some("noqueue"));
    assert_eq!(outside.addresses(link.index).unwrap(), []);

    let mut inside = pod.netlink().unwrap();
    let peer = inside.link(made.peer_index).unwrap();
    assert_eq!(peer.name.to_string(), "eth0");
    assert_eq!((peer.mac, peer.mtu), (Some(PEER_MAC), 1450));
    assert!(peer.is_up() && peer.peer == Some(link.index));

    outside.remove_link(link.index).unwrap();
    assert!(inside.find_link(made.peer_index).unwrap().is_none());
}

#[test]
#[ignore = "needs root: makes network namespaces and links in them"]
fn a_pair_is_waited_for_until_it_carries_packets() {
    let (host, pod) = (Netns::create().unwrap(), Netns::create().unwrap());
    let (mut outside, mut inside) = (host.netlink().unwrap(), pod.netlink().unwrap());
    let made = create_veth(&mut outside, &spec(&pod, "pwtest", "eth0")).unwrap();
    let address: IpAddr = "fd07::2".parse().unwrap();
    inside.add(&Address::new(made.peer_index, address.into())).unwrap();
    made.wait_until_usable(&mut outside, &mut inside, Duration::from_secs(60)).unwrap();
    let local = inside.routes(&RouteFilter::table(TableId::LOCAL)).unwrap();
    assert!(local.iter().any(|route| route.destination.ip() == address), "{local:?}");
    assert_eq!(inside.link(made.peer_index).unwrap().state, OperState::UP);

    inside.change_link(&LinkChange::of(made.peer_index).down()).unwrap();
    let error =
        made.wait_until_usable(&mut outside, &mut inside, Duration::from_millis(1)).unwrap_err();
    assert!(error.to_string().contains("pwtest carries nothing: the link is not up"), "{error}");
}

#[test]
#[ignore = "needs root: makes network namespaces and links in them"]
fn taken_names_are_told_apart_and_leave_nothing() {
    let (host, pod) = (Netns::create().unwrap(), Netns::create().unwrap());
    let mut outside = host.netlink().unwrap();
    let mut inside = pod.netlink().unwrap();
    inside.create_link(&NewLink::bridge("eth0".parse().unwrap())).unwrap();
    outside.create_link(&NewLink::bridge("pwtaken".parse().unwrap())).unwrap();
    let before = (outside.links().unwrap(), inside.links().unwrap());

    let error = create_veth(&mut outside, &spec(&pod, "pwtest", "eth0")).unwrap_err();
    assert_eq!(error.taken(), Some(Taken::Peer), "{error}");
    assert!(error.is_exists(), "{error}");

    // The foreign link gets neither our alias nor our state.
    let error = create_veth(&mut outside, &spec(&pod, "pwtaken", "eth1")).unwrap_err();
    assert_eq!(error.taken(), Some(Taken::Host), "{error}");

    assert_eq!((outside.links().unwrap(), inside.links().unwrap()), before);
}

#[test]
#[ignore = "needs root: makes network namespaces and links in them"]
fn what_cannot_be_finished_is_removed() {
    let (host, pod) = (Netns::create().unwrap(), Netns::create().unwrap());
    let mut outside = host.netlink().unwrap();
    let long = "x".repeat(300);
    let error =
        create_veth(&mut outside, &VethSpec { alias: &long, ..spec(&pod, "pwtest", "eth0") })
            .unwrap_err();
    assert!(error.to_string().contains("pwtest"), "{error}");
    assert!(matches!(error, Error::Veth { taken: None, leftover: None, .. }));
    assert_eq!(outside.links().unwrap().len(), 1);
    assert_eq!(pod.netlink().unwrap().links().unwrap().len(), 1);
}

#[test]
#[ignore = "needs root: makes network namespaces and links in them"]
fn both_ends_may_be_in_one_namespace() {
    let host = Netns::create().unwrap();
    let mut netlink = host.netlink().unwrap();
    let made = create_veth(&mut netlink, &spec(&host, "podwire_host", "podwire_net")).unwrap();
    assert_eq!(made.host.peer_netns, None);
    assert_eq!(netlink.link(made.peer_index).unwrap().name.to_string(), "podwire_net");
}

#[test]
#[ignore = "needs root: makes network namespaces and links in them"]
fn many_pairs_at_a_time() {
    let host = Netns::create().unwrap();
    thread::scope(|scope| {
        for worker in 0..4 {
            let host = &host;
            scope.spawn(move || {
                let mut netlink = host.netlink().unwrap();
                for number in 0..8 {
                    let pod = Netns::create().unwrap();
                    let name = format!("pw{worker}x{number}");
                    let made = create_veth(&mut netlink, &spec(&pod, &name, "eth0")).unwrap();
                    assert_eq!(pod.netlink().unwrap().link(made.peer_index).unwrap().mtu, 1450);
                    netlink.remove_link(made.host.index).unwrap();
                }
            });
        }
    });
    assert_eq!(host.netlink().unwrap().links().unwrap().len(), 1);
}
