//! Every operation against the running kernel, each test in network namespaces of its own.

#![expect(clippy::unwrap_used, reason = "a test outside of `mod tests`")]

use std::fs::File;
use std::net::IpAddr;
use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ipnetwork::IpNetwork;
use podwire_netlink::link::Query;
use podwire_netlink::tc::{self, BpfFilter, Clsact, FilterMode, FilterPlace, Foreign};
use podwire_netlink::{
    Add, AddrGenMode, Address, AddressFlags, AdminState, Batch, Birth, Delete, Direction, Error,
    Family, IfIndex, IfName, LinkChange, LinkFlags, LinkKind, MacAddr, Mark, Neighbour,
    NeighbourFlags, NeighbourState, Netlink, NewLink, NextHop, OnLink, Replace, Route, RouteFilter,
    RouteKind, RouteProtocol, Rule, RuleAction, Scope, Switch, TableId,
};

const OURS: RouteProtocol = RouteProtocol(80);
const MAC: MacAddr = MacAddr::new([2, 0, 0, 0, 0, 9]);

/// A namespace that ends with the descriptor and the sockets in it.
fn netns() -> OwnedFd {
    std::thread::spawn(|| {
        // SAFETY: takes no pointers; the thread ends with this closure.
        let left = unsafe { libc::unshare(libc::CLONE_NEWNET) };
        assert_eq!(left, 0, "{}", std::io::Error::last_os_error());
        File::open("/proc/thread-self/ns/net").unwrap().into()
    })
    .join()
    .unwrap()
}

fn name(text: &str) -> IfName {
    text.parse().unwrap()
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn net(text: &str) -> IpNetwork {
    text.parse().unwrap()
}

/// A namespace with the loopback interface up and a veth pair `a`, `b`, both up; `a` has
/// `10.7.0.1/24` and `fd07::1/64`.
fn wired() -> (OwnedFd, Netlink, IfIndex) {
    let netns = netns();
    let mut netlink = Netlink::open_in(netns.as_fd()).unwrap();
    let pair = NewLink::veth(Birth::named(name("a")), Birth::named(name("b")));
    netlink.create_link(&pair).unwrap();
    let index = netlink.link(name("a")).unwrap().index;
    let mut batch = Batch::new();
    for link in ["lo", "a", "b"] {
        batch.push(&LinkChange::of(name(link)).addr_gen_mode(AddrGenMode::None).up());
    }
    batch.push(&Add(&Address::new(index, net("10.7.0.1/24"))));
    batch.push(&Add(&Address::new(index, net("fd07::1/64"))));
    netlink.send(&mut batch).unwrap().all_ok().unwrap();
    (netns, netlink, index)
}

fn link_count(netlink: &mut Netlink) -> usize {
    netlink.links().unwrap().len()
}

#[test]
#[ignore = "needs root: makes network namespaces and links in them"]
fn links_go_together() {
    const GROUP: std::num::NonZeroU32 = std::num::NonZeroU32::new(0x7077_00ff).unwrap();
    let (_netns, mut netlink, index) = wired();
    let mut leaving = vec![index];
    for number in 0..5 {
        let (end, other) = (format!("x{number}"), format!("y{number}"));
        let pair = NewLink::veth(Birth::named(name(&end)), Birth::named(name(&other)));
        netlink.create_link(&pair).unwrap();
        leaving.push(netlink.link(name(&end)).unwrap().index);
    }
    let stays = leaving.pop().unwrap();
    // One that is gone already does not keep the others.
    netlink.remove_link(leaving[1]).unwrap();
    netlink.remove_links(&leaving, GROUP).unwrap();
    assert_eq!(link_count(&mut netlink), 3, "lo and one pair");
    assert!(netlink.link(stays).is_ok());
    netlink.remove_links(&leaving, GROUP).unwrap();
    netlink.remove_links(&[stays], GROUP).unwrap();
    netlink.remove_links(&[], GROUP).unwrap();
    assert_eq!(link_count(&mut netlink), 1);
}

#[test]
fn reading_needs_no_privilege() {
    let mut netlink = Netlink::open().unwrap();
    let lo = netlink.link(IfIndex::LOOPBACK).unwrap();
    assert_eq!((lo.name, lo.kind), (name("lo"), None));
    assert!(netlink.links().unwrap().contains(&netlink.link(name("lo")).unwrap()));
    assert_eq!(netlink.find_link(name("nosuchlink")).unwrap(), None);
    netlink.addresses(None).unwrap();
    netlink.routes(&RouteFilter::ALL).unwrap();
    netlink.rules(None).unwrap();
    netlink.neighbours(None).unwrap();
    tc::qdiscs(&mut netlink).unwrap();
}

#[test]
fn what_is_no_namespace_is_not_entered() {
    let null = File::open("/dev/null").unwrap();
    let error = Netlink::open_in(null.as_fd()).unwrap_err();
    assert!(matches!(error, Error::Enter { .. }), "{error}");
}

#[test]
#[ignore = "needs root: makes network namespaces and links in them"]
fn a_pair_is_born_in_two_namespaces() {
    let (host, pod) = (netns(), netns());
    let mut outside = Netlink::open_in(host.as_fd()).unwrap();
    let mut inside = Netlink::open_in(pod.as_fd()).unwrap();
    let peer_mac = MacAddr::new([2, 0, 0, 0, 0, 2]);
    let pair = NewLink::veth(
        Birth {
            mac: Some(peer_mac),
            mtu: Some(1400),
            netns: Some(pod.as_fd()),
            queues: Some(1),
            index: IfIndex::new(77),
            state: AdminState::Up,
            ..Birth::named(name("eth0"))
        },
        Birth { mac: Some(MAC), mtu: Some(1450), group: Some(7), ..Birth::named(name("pw0")) },
    );
    outside.create_link(&pair).unwrap();

    let link = outside.link(name("pw0")).unwrap();
    assert_eq!(link.kind, Some(LinkKind::Veth));
    assert_eq!((link.mac, link.mtu, link.group), (Some(MAC), 1450, 7));
    assert_eq!(link.peer, IfIndex::new(77));
    assert!(link.peer_netns.is_some() && !link.is_up());
    let peer = inside.link(name("eth0")).unwrap();
    assert_eq!((peer.index.as_u32(), peer.mac, peer.mtu), (77, Some(peer_mac), 1400));
    assert!(peer.is_up());
    assert_eq!(peer.peer, Some(link.index));

    // A taken name, on either side, is told and leaves nothing.
    for (near, far) in [("eth0", "pw1"), ("eth1", "pw0")] {
        let near = Birth { netns: Some(pod.as_fd()), ..Birth::named(name(near)) };
        let pair = NewLink::veth(near, Birth::named(name(far)));
        assert!(outside.create_link(&pair).unwrap_err().is_exists());
    }
    assert_eq!((link_count(&mut outside), link_count(&mut inside)), (2, 2));

    outside.remove_link(link.index).unwrap();
    assert!(outside.remove_link(link.index).unwrap_err().is_not_found());
    assert!(outside.remove_link(name("pw0")).unwrap_err().is_not_found());
    assert_eq!((link_count(&mut outside), link_count(&mut inside)), (1, 1));
}

#[test]
#[ignore = "needs root: makes network namespaces and links in them"]
fn links_are_changed() {
    let (_netns, mut netlink, index) = wired();
    let change = LinkChange::of(index)
        .down()
        .name(name("renamed"))
        .mac(MAC)
        .mtu(1300)
        .alias("podwire:n:c/eth0")
        .group(5)
        .flag(LinkFlags::NOARP, Switch::On);
    netlink.change_link(&change).unwrap();
    let link = netlink.link(index).unwrap();
    assert_eq!((link.name, link.mac, link.mtu), (name("renamed"), Some(MAC), 1300));
    assert_eq!((link.alias.as_deref(), link.group), (Some("podwire:n:c/eth0"), 5));
    assert!(!link.is_up() && link.flags.contains(LinkFlags::NOARP));
    assert_eq!(link.addr_gen_mode, Some(AddrGenMode::None));
    netlink.change_link(&LinkChange::of(name("renamed")).alias("").up()).unwrap();
    let link = netlink.link(index).unwrap();
    assert_eq!((link.alias, netlink.link(name("renamed")).unwrap().is_up()), (None, true));

    netlink.create_link(&NewLink::bridge(name("br"))).unwrap();
    let bridge = netlink.link(name("br")).unwrap();
    assert_eq!(bridge.kind, Some(LinkKind::Bridge));
    netlink.change_link(&LinkChange::of(index).master(bridge.index)).unwrap();
    assert_eq!(netlink.link(index).unwrap().master, Some(bridge.index));
    netlink.change_link(&LinkChange::of(index).no_master()).unwrap();
    assert_eq!(netlink.link(index).unwrap().master, None);

    let error = netlink.change_link(&LinkChange::of(name("nosuchlink")).up()).unwrap_err();
    assert!(error.is_not_found(), "{error}");
    assert!(error.to_string().starts_with("cannot change link nosuchlink: "), "{error}");
}

#[test]
#[ignore = "needs root: makes network namespaces and links in them"]
fn addresses_come_and_go() {
    let (_netns, mut netlink, index) = wired();
    let before = netlink.addresses(index).unwrap();
    let v6 = before.iter().find(|address| address.network == net("fd07::1/64")).unwrap();
    assert!(v6.flags.contains(AddressFlags::NODAD) && !v6.flags.contains(AddressFlags::TENTATIVE));

    for network in ["10.8.0.1/32", "fd08::1/128"] {
        let address = Address::new(index, net(network)).with_protocol(80);
        netlink.add(&address).unwrap();
        assert!(netlink.add(&address).unwrap_err().is_exists(), "{network}");
        netlink.replace(&address).unwrap();
        let listed = netlink.addresses(index).unwrap();
        let found = listed.iter().find(|found| found.network == address.network).unwrap();
        assert_eq!((found.protocol, found.scope), (80, Scope::UNIVERSE));
        netlink.remove(&address).unwrap();
        assert!(netlink.remove(&address).unwrap_err().is_not_found(), "{network}");
    }
    assert_eq!(netlink.addresses(index).unwrap(), before);
    let everywhere = netlink.addresses(None).unwrap();
    assert!(everywhere.len() > before.len(), "the loopback interface has some");
    assert_eq!(netlink.addresses(IfIndex::new(9999)).unwrap(), []);
}

#[test]
#[ignore = "needs root: makes network namespaces and links in them"]
fn routes_come_and_go() {
    let (_netns, mut netlink, index) = wired();
    for route in [
        Route::new(net("10.8.0.0/16")).via(ip("10.7.0.2")).dev(index).mtu(1400),
        Route::new(net("fd08::/64")).via(ip("fd07::2")).dev(index).mtu(1400),
        Route::default_of(Family::V4).via(ip("10.7.0.2")).dev(index).metric(9).table(TableId(1000)),
        Route::default_of(Family::V6).via(ip("fd07::2")).dev(index).metric(9).table(TableId(1000)),
        Route::new(net("10.9.0.1/32")).dev(index).preferred_source(ip("10.7.0.1")),
        Route::new(net("fd09::1/128")).dev(index).preferred_source(ip("fd07::1")),
        Route::new(net("10.10.0.0/16")).via(ip("fd07::2")).dev(index),
        Route::new(net("10.11.0.0/16")).via(ip("192.0.2.1")).dev(index).on_link(),
        Route::new(net("10.12.0.0/16")).kind(RouteKind::BLACKHOLE),
        Route::new(net("10.13.0.1/32"))
            .kind(RouteKind::LOCAL)
            .dev(index)
            .scope(Scope::HOST)
            .table(TableId::LOCAL),
    ] {
        let route = route.protocol(OURS);
        netlink.add(&route).unwrap_or_else(|error| panic!("{error}"));
        assert!(netlink.add(&route).unwrap_err().is_exists(), "{route:?}");

        let mut expected = route.clone();
        if route.family() == Family::V6 {
            expected.metric = Some(route.metric.unwrap_or(1024));
        }
        assert_eq!(netlink.routes(&RouteFilter::protocol(OURS)).unwrap(), [expected.clone()]);
        let in_table = RouteFilter { protocol: Some(OURS), ..RouteFilter::table(route.table) };
        assert_eq!(netlink.routes(&in_table).unwrap(), [expected.clone()]);
        if let Some(output) = route.output {
            assert!(netlink.routes(&RouteFilter::output(output)).unwrap().contains(&expected));
        }

        if route.kind == RouteKind::UNICAST {
            let changed = route.clone().mtu(1300);
            netlink.replace(&changed).unwrap();
            let listed = netlink.routes(&RouteFilter::protocol(OURS)).unwrap();
            assert_eq!((listed.len(), listed[0].mtu), (1, changed.mtu), "{route:?}");
        }
        // The kernel removes only what fits the description, its MTU included.
        let listed = netlink.routes(&RouteFilter::protocol(OURS)).unwrap();
        netlink.remove(&listed[0]).unwrap();
        assert!(netlink.remove(&listed[0]).unwrap_err().is_not_found(), "{route:?}");
    }
    assert_eq!(netlink.routes(&RouteFilter::protocol(OURS)).unwrap(), []);
    assert_eq!(netlink.routes(&RouteFilter::table(TableId(54321))).unwrap(), []);
    assert_eq!(netlink.routes(&RouteFilter::output(IfIndex::new(9999).unwrap())).unwrap(), []);
}

#[test]
#[ignore = "needs root: makes network namespaces and links in them"]
fn a_route_may_have_several_ways() {
    let (_netns, mut netlink, index) = wired();
    let hop = |gateway, weight, on_link| NextHop {
        gateway: Some(ip(gateway)),
        output: Some(index),
        weight,
        on_link,
    };
    for (prefix, near, far) in
        [("10.8.0.0/16", "10.7.0.2", "192.0.2.1"), ("fd08::/64", "fd07::2", "fd07::3")]
    {
        let mut route = Route::new(net(prefix)).protocol(OURS).metric(5);
        let on_link = if far.contains(':') { OnLink::No } else { OnLink::Yes };
        route.multipath = vec![hop(near, 3, OnLink::No), hop(far, 1, on_link)];
        netlink.add(&route).unwrap();
        let filter = RouteFilter { protocol: Some(OURS), ..RouteFilter::output(index) };
        assert_eq!(netlink.routes(&filter).unwrap(), [route.clone()]);
        netlink.remove(&route).unwrap();
    }
}

#[test]
#[ignore = "needs root: makes network namespaces and links in them"]
fn the_kernels_words_are_kept() {
    let (_netns, mut netlink, index) = wired();
    let route = Route::new(net("10.8.0.0/16")).via(ip("192.0.2.1")).dev(index);
    let error = netlink.add(&route).unwrap_err();
    assert_eq!(error.kernel_message(), Some("Nexthop has invalid gateway"));
    assert_eq!(error.raw_os_error(), Some(libc::ENETUNREACH));
    let said = error.to_string();
    let expected = format!(
        "cannot add route 10.8.0.0/16 via 192.0.2.1 dev {index} table main: Nexthop has invalid gateway"
    );
    assert!(said.starts_with(&expected), "{said}");
}

#[test]
#[ignore = "needs root: makes network namespaces and links in them"]
fn rules_come_and_go() {
    let (_netns, mut netlink, _) = wired();
    let before = netlink.rules(None).unwrap();
    for (family, prefix) in [(Family::V4, "10.0.0.0/8"), (Family::V6, "fd00::/8")] {
        let mut rule = Rule::lookup(family, 100, TableId(1000))
            .from(net(prefix))
            .to(net(prefix))
            .input(name("a"))
            .mark(Mark { value: 0x200, mask: 0xf00 })
            .protocol(OURS);
        rule.suppress_prefix_length = Some(0);
        let mut refusing = Rule::lookup(family, 101, TableId::MAIN).to(net(prefix)).protocol(OURS);
        refusing.action = RuleAction::Prohibit;
        for rule in [rule, refusing] {
            netlink.add(&rule).unwrap();
            // Replace would make a second one.
            assert!(netlink.add(&rule).unwrap_err().is_exists());
            let ours: Vec<_> = netlink.rules(family).unwrap();
            assert!(ours.contains(&rule), "{rule:?} {ours:?}");
            assert_eq!(ours.iter().filter(|found| found.protocol == OURS).count(), 1);
            netlink.remove(&rule).unwrap();
            assert!(netlink.remove(&rule).unwrap_err().is_not_found());
        }
    }
    assert_eq!(netlink.rules(None).unwrap(), before);
}

#[test]
#[ignore = "needs root: makes network namespaces and links in them"]
fn neighbours_come_and_go() {
    let (_netns, mut netlink, index) = wired();
    for address in ["10.7.0.2", "fd07::2"] {
        let neighbour = Neighbour::permanent(index, ip(address), MAC).with_protocol(OURS);
        netlink.replace(&neighbour).unwrap();
        netlink.replace(&neighbour).unwrap();
        assert!(netlink.add(&neighbour).unwrap_err().is_exists());
        assert!(netlink.neighbours(index).unwrap().contains(&neighbour));
        assert!(netlink.neighbours(None).unwrap().contains(&neighbour));
        assert!(!netlink.neighbours(IfIndex::LOOPBACK).unwrap().contains(&neighbour));
        netlink.remove(&neighbour).unwrap();
        assert!(netlink.remove(&neighbour).unwrap_err().is_not_found());

        let managed = Neighbour::managed(index, ip(address));
        netlink.replace(&managed).unwrap();
        let listed = netlink.neighbours(index).unwrap();
        let found = listed.iter().find(|found| found.address == ip(address)).unwrap();
        assert_eq!(found.flags, NeighbourFlags::EXT_LEARNED.with(NeighbourFlags::MANAGED));
        assert_ne!(found.state, NeighbourState::PERMANENT);
        netlink.remove(&managed).unwrap();
    }
}

#[test]
#[ignore = "needs root: makes network namespaces and links in them"]
fn a_batch_goes_on_after_a_failure() {
    let (_netns, mut netlink, index) = wired();
    let taken = Address::new(index, net("10.7.0.1/24"));
    let fresh = Address::new(index, net("10.8.0.1/32"));
    let mut batch = Batch::new();
    let first = batch.push(&Add(&taken));
    let second = batch.push(&Add(&fresh));
    let third = batch.push(&Query(index.into()));
    let fourth = batch.push(&Delete(&Address::new(index, net("10.9.0.1/32"))));
    let mut replies = netlink.send(&mut batch).unwrap();
    assert!(replies.outcome(first).unwrap_err().is_exists());
    replies.outcome(second).unwrap();
    assert_eq!(replies.take_link(third).unwrap().name, name("a"));
    assert!(replies.outcome(fourth).unwrap_err().is_not_found());
    assert!(netlink.addresses(index).unwrap().iter().any(|a| a.network == fresh.network));
}

#[test]
#[ignore = "needs root: makes network namespaces and links in them"]
fn a_large_batch_loses_no_answer() {
    let (_netns, mut netlink, index) = wired();
    let neighbours: Vec<_> = (0..2000_u32)
        .map(|n| {
            let address = IpAddr::from((0x0a07_0100 + n).to_be_bytes());
            Neighbour::permanent(index, address, MAC)
        })
        .collect();
    let mut batch = Batch::new();
    for neighbour in &neighbours {
        batch.push(&Replace(neighbour));
    }
    netlink.send(&mut batch).unwrap().all_ok().unwrap();
    // The kernel has entries of its own, for multicast.
    let listed = netlink.neighbours(index).unwrap();
    assert_eq!(listed.iter().filter(|n| n.mac == Some(MAC)).count(), neighbours.len());

    // Every single one fails, and every answer finds its request.
    batch.clear();
    for neighbour in &neighbours {
        batch.push(&Add(neighbour));
    }
    let replies = netlink.send(&mut batch).unwrap();
    assert_eq!(replies.errors().filter(|(_, error)| error.is_exists()).count(), neighbours.len());

    batch.clear();
    for _ in 0..200 {
        batch.push(&Query(index.into()));
    }
    netlink.send(&mut batch).unwrap().all_ok().unwrap();
}

#[test]
#[ignore = "needs root: makes network namespaces and links in them"]
fn lists_are_whole_while_links_come_and_go() {
    let netns = netns();
    let mut netlink = Netlink::open_in(netns.as_fd()).unwrap();
    // Enough links that a list takes several datagrams.
    let stable = 60;
    for number in 0..stable / 2 {
        let (near, far) = (format!("s{number}"), format!("t{number}"));
        let pair = NewLink::veth(Birth::named(name(&near)), Birth::named(name(&far)));
        netlink.create_link(&pair).unwrap();
    }
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let churn = scope.spawn(|| {
            let mut netlink = Netlink::open_in(netns.as_fd()).unwrap();
            let mut rounds = 0;
            while !stop.load(Ordering::Relaxed) {
                netlink.create_link(&NewLink::bridge(name("churn"))).unwrap();
                netlink.remove_link(name("churn")).unwrap();
                rounds += 1;
            }
            rounds
        });
        let mut torn = 0;
        for _ in 0..200 {
            match netlink.links() {
                Ok(links) => {
                    let found = links.iter().filter(|link| link.is_veth()).count();
                    assert_eq!(found, stable);
                    let mut numbers: Vec<_> = links.iter().map(|link| link.index).collect();
                    numbers.sort_unstable();
                    numbers.dedup();
                    assert_eq!(numbers.len(), links.len());
                }
                // Said, and not hidden.
                Err(Error::TornDump { .. }) => torn += 1,
                Err(error) => panic!("{error}"),
            }
        }
        stop.store(true, Ordering::Relaxed);
        assert!(churn.join().unwrap() > 0);
        assert!(torn < 200, "no list was ever whole");
    });
}

#[test]
#[ignore = "needs root: makes network namespaces and links in them"]
fn an_exchange_that_was_given_up_disturbs_none_after_it() {
    let (_netns, mut netlink, index) = wired();
    for number in 0..40 {
        let (near, far) = (format!("s{number}"), format!("t{number}"));
        let pair = NewLink::veth(Birth::named(name(&near)), Birth::named(name(&far)));
        netlink.create_link(&pair).unwrap();
    }
    // Given up in the middle of the list, by a parser that refuses.
    let refused = netlink.dump(&Everything, |_| {
        Err::<Option<()>, _>(podwire_netlink::ParseError::Missing { field: "patience" })
    });
    assert!(matches!(refused, Err(Error::Malformed { .. })));
    assert_eq!(link_count(&mut netlink), 83);
    assert_eq!(netlink.link(index).unwrap().name, name("a"));
    netlink.set_timeout(Duration::ZERO);
    assert_eq!(netlink.link(index).unwrap().name, name("a"), "the kernel answers at once");
}

/// A list of links, as somebody else might write it.
struct Everything;

impl podwire_netlink::Request for Everything {
    fn message_type(&self) -> u16 {
        libc::RTM_GETLINK
    }

    fn flags(&self) -> u16 {
        0
    }

    fn emit(&self, message: &mut podwire_netlink::wire::MessageBuilder<'_>) {
        message.fixed(&[0; 16]);
    }

    fn operation(&self) -> podwire_netlink::Operation {
        podwire_netlink::Operation::List
    }

    fn subject(&self) -> podwire_netlink::Subject {
        podwire_netlink::Subject::Named("everything")
    }
}

#[test]
#[ignore = "needs root: makes network namespaces and links in them"]
fn qdiscs_are_seen() {
    let (_netns, mut netlink, index) = wired();
    let survey = tc::survey(&mut netlink, index).unwrap();
    assert_eq!(survey.root.as_ref().map(|qdisc| qdisc.kind.as_str()), Some("noqueue"));
    assert_eq!((survey.ingress.as_ref(), survey.filters.len()), (None, 0));
    assert_eq!(survey.foreign(|_| false), []);

    netlink.add(&Clsact(index)).unwrap();
    assert!(netlink.add(&Clsact(index)).unwrap_err().is_exists());
    let survey = tc::survey(&mut netlink, index).unwrap();
    assert_eq!(survey.ingress.as_ref().map(|qdisc| qdisc.kind.as_str()), Some("clsact"));
    assert_eq!(survey.foreign(|_| false), []);
    assert!(tc::qdiscs(&mut netlink).unwrap().contains(survey.ingress.as_ref().unwrap()));
    for direction in Direction::ALL {
        assert_eq!(tc::list(&mut netlink, index, direction).unwrap(), []);
    }
    netlink.remove(&Clsact(index)).unwrap();
    assert_eq!(tc::survey(&mut netlink, index).unwrap().ingress, None);

    let missing = tc::survey(&mut netlink, IfIndex::new(9999).unwrap()).unwrap_err();
    assert!(missing.is_not_found(), "{missing}");
}

/// The smallest program: pass everything.
fn program(verdict: i32) -> OwnedFd {
    const BPF_PROG_LOAD: libc::c_long = 5;
    const BPF_PROG_TYPE_SCHED_CLS: u32 = 3;
    // r0 = verdict; exit
    let immediate = u64::from(verdict.cast_unsigned()) << 32;
    let code: [u64; 2] = [immediate | 0xb7, 0x95];
    let license = c"GPL";
    /// The head of `union bpf_attr` for loading a program.
    #[repr(C)]
    struct Load {
        kind: u32,
        count: u32,
        code: u64,
        license: u64,
        log: [u64; 3],
    }
    let load = Load {
        kind: BPF_PROG_TYPE_SCHED_CLS,
        count: 2,
        code: code.as_ptr().expose_provenance() as u64,
        license: license.as_ptr().expose_provenance() as u64,
        log: [0; 3],
    };
    // SAFETY: `load` is as long as it says, and what it points to outlives the call.
    let fd =
        unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_LOAD, &raw const load, size_of::<Load>()) };
    let fd = i32::try_from(fd).unwrap();
    assert!(fd >= 0, "{}", std::io::Error::last_os_error());
    // SAFETY: the kernel just gave us this descriptor.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

#[test]
#[ignore = "needs root: makes network namespaces and attaches BPF programs in them"]
fn programs_are_attached_replaced_and_detached() {
    let (_netns, mut netlink, index) = wired();
    let netlink = &mut netlink;
    let (first, second) = (program(0), program(2));
    for direction in Direction::ALL {
        let place = FilterPlace { index, direction, priority: 5, handle: 1 };
        let error = tc::detach(netlink, place).unwrap_err();
        assert!(error.is_not_found(), "{error}");

        let filter = BpfFilter { place, program: first.as_fd(), name: "from_container" };
        tc::attach(netlink, &filter).unwrap();
        assert!(tc::attach(netlink, &filter).unwrap_err().is_exists());
        let listed = tc::list(netlink, index, direction).unwrap();
        let [attached] = listed.as_slice() else { panic!("{listed:?}") };
        assert_eq!((attached.priority, attached.handle), (5, 1));
        assert_eq!(attached.direction(), Some(direction));
        let old = attached.bpf.clone().unwrap();
        assert_eq!((old.name.as_str(), old.mode), ("from_container", FilterMode::DirectAction));
        assert!(old.id.is_some() && old.tag.is_some());

        tc::replace(netlink, &BpfFilter { program: second.as_fd(), name: "next", ..filter })
            .unwrap();
        let listed = tc::list(netlink, index, direction).unwrap();
        let [replaced] = listed.as_slice() else { panic!("{listed:?}") };
        let new = replaced.bpf.clone().unwrap();
        assert_ne!(new.id, old.id);
        assert_eq!((new.name.as_str(), replaced.handle), ("next", 1));

        // Somebody else's filter is seen, and stays.
        let theirs = FilterPlace { priority: 9, ..place };
        tc::attach(netlink, &BpfFilter { place: theirs, program: first.as_fd(), name: "x" })
            .unwrap();
        let survey = tc::survey(netlink, index).unwrap();
        let foreign = survey.foreign(|filter| filter.priority == 5);
        assert!(matches!(foreign[..], [Foreign::Filter(filter)] if filter.priority == 9));

        tc::detach(netlink, place).unwrap();
        assert!(tc::detach(netlink, place).unwrap_err().is_not_found());
        let left = tc::list(netlink, index, direction).unwrap();
        assert!(matches!(left.as_slice(), [filter] if filter.priority == 9));
        tc::detach(netlink, theirs).unwrap();
    }
    let missing = FilterPlace {
        index: IfIndex::new(9999).unwrap(),
        direction: Direction::Ingress,
        priority: 5,
        handle: 1,
    };
    assert!(tc::detach(netlink, missing).unwrap_err().is_not_found());
}

/// The older of the two qdiscs for filters; it knows one direction only.
struct IngressQdisc(IfIndex);

impl podwire_netlink::Entity for IngressQdisc {
    const NEW: u16 = libc::RTM_NEWQDISC;
    const DELETE: u16 = libc::RTM_DELQDISC;

    fn emit(&self, message: &mut podwire_netlink::wire::MessageBuilder<'_>) {
        let mut fixed = [0; 20];
        fixed[4..8].copy_from_slice(&self.0.as_u32().to_ne_bytes());
        fixed[8..12].copy_from_slice(&0xffff_0000_u32.to_ne_bytes());
        fixed[12..16].copy_from_slice(&0xffff_fff1_u32.to_ne_bytes());
        message.fixed(&fixed);
        message.attr_str(1, b"ingress");
    }

    fn subject(&self) -> podwire_netlink::Subject {
        podwire_netlink::Subject::Qdisc { kind: "ingress", index: self.0 }
    }
}

#[test]
#[ignore = "needs root: makes network namespaces and attaches BPF programs in them"]
fn an_ingress_qdisc_of_others_is_not_taken_for_clsact() {
    let (_netns, mut netlink, index) = wired();
    netlink.add(&IngressQdisc(index)).unwrap();
    let survey = tc::survey(&mut netlink, index).unwrap();
    let foreign = survey.foreign(|_| false);
    assert!(matches!(foreign[..], [Foreign::Qdisc(qdisc)] if qdisc.kind == "ingress"));

    let place = FilterPlace { index, direction: Direction::Egress, priority: 5, handle: 1 };
    let program = program(0);
    let filter = BpfFilter { place, program: program.as_fd(), name: "to_container" };
    assert!(tc::attach(&mut netlink, &filter).unwrap_err().is_exists());
    assert!(tc::replace(&mut netlink, &filter).unwrap_err().is_exists());
    assert_eq!(tc::survey(&mut netlink, index).unwrap(), survey);
}
