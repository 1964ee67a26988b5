//! Programs come, move and go with their links, in both ways of attaching.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod node;

use node::{Node, on_node};
use podwire_bpf::{Direction, IfIndex, Removal, tcx_programs};
use podwire_datapath::{
    Attach, AttachMode, Attached, By, Datapath, EndpointConfig, Options, abi::Reason, is_own_filter,
};
use podwire_lab::probe::frame::Link;
use podwire_netlink::{IfName, Netlink, tc};

const BPFFS: &str = "/sys/fs/bpf/podwire";

/// How many programs of ours an interface carries by links, and by filters.
fn attached(ifindex: u32) -> (usize, usize) {
    let index = IfIndex::new(ifindex).unwrap();
    let mut counts = (0, 0);
    let mut netlink = Netlink::open().unwrap();
    for direction in [Direction::Ingress, Direction::Egress] {
        counts.0 += tcx_programs(index, direction).unwrap().len();
        counts.1 += tc::list(&mut netlink, index, direction)
            .unwrap()
            .iter()
            .filter(|f| {
                f.bpf.as_ref().is_some_and(|bpf| is_own_filter(f.priority, f.handle, &bpf.name))
            })
            .count();
    }
    counts
}

fn reopen(attach: Attach) -> Datapath {
    Datapath::open(&Options { attach, ..Options::new(BPFFS) }).unwrap()
}

#[test]
#[ignore = "needs root: loads programs in a namespace of its own"]
fn endpoints_stay_on_what_they_were_attached_by() {
    on_node(|node| {
        let (a, b, datapath) = (node.a, node.b, &node.datapath);
        assert_eq!(datapath.attach_mode(), AttachMode::Tcx, "this kernel has it");
        datapath.remove_endpoint("pwb", b.ifindex).unwrap();
        let by_link = EndpointConfig { by: By::Link, ..Node::config("pwb", &b) };
        datapath.add_endpoint(&by_link).unwrap();
        for again in [datapath, &reopen(Attach::Auto)] {
            for (name, pod, expected) in [("pwa", a, (0, 2)), ("pwb", b, (2, 0))] {
                assert_eq!(attached(pod.ifindex), expected, "{name}");
                assert_eq!(again.refresh(name, pod.ifindex).unwrap(), Attached::InPlace);
                again.attach(name, pod.ifindex).unwrap();
                assert_eq!(attached(pod.ifindex), expected, "{name}");
                let programs = again.attached(name, pod.ifindex).unwrap();
                assert!(programs.iter().all(|(_, is)| *is), "{name}: {programs:?}");
            }
        }
        // Written again, as a restart does that finds other properties.
        node.add("pwb", &b);
        assert_eq!(attached(b.ifindex), (2, 0));
        datapath.detach("pwa", a.ifindex).unwrap();
        let programs = datapath.attached("pwa", a.ifindex).unwrap();
        assert!(programs.iter().all(|(_, is)| !is), "{programs:?}");
    });
}

#[test]
#[ignore = "needs root: loads programs in a namespace of its own"]
fn an_endpoint_is_added_by_filters_and_moved_to_links() {
    on_node(|node| {
        let (a, datapath) = (node.a, &reopen(Attach::Tcx));
        assert_eq!(datapath.attach_mode(), AttachMode::Tcx, "this kernel has it");
        assert_eq!(attached(a.ifindex), (0, 2));
        assert_eq!(datapath.refresh("pwa", a.ifindex).unwrap(), Attached::Provisionally);
        assert_eq!(attached(a.ifindex), (0, 2));
        for _ in 0..2 {
            datapath.attach("pwa", a.ifindex).unwrap();
            assert_eq!(attached(a.ifindex), (2, 0));
        }
        assert_eq!(datapath.refresh("pwa", a.ifindex).unwrap(), Attached::InPlace);

        let restarted = reopen(Attach::Tcx);
        let before = tcx_programs(IfIndex::new(a.ifindex).unwrap(), Direction::Ingress).unwrap();
        assert_eq!(restarted.refresh("pwa", a.ifindex).unwrap(), Attached::InPlace);
        let after = tcx_programs(IfIndex::new(a.ifindex).unwrap(), Direction::Ingress).unwrap();
        assert_ne!(before, after, "the new agent's program is in place");
        assert_eq!(attached(a.ifindex), (2, 0));
    });
}

#[test]
#[ignore = "needs root: loads programs in a namespace of its own"]
fn where_nothing_is_said_an_endpoint_stays_on_what_it_was_added_by() {
    on_node(|node| {
        let (a, b, datapath) = (node.a, node.b, &node.datapath);
        let by_link = EndpointConfig { by: By::Link, ..Node::config("pwb", &b) };
        datapath.add_endpoint(&by_link).unwrap();
        for _ in 0..2 {
            for (name, index, programs) in [("pwa", a.ifindex, (0, 2)), ("pwb", b.ifindex, (2, 0))]
            {
                datapath.attach(name, index).unwrap();
                assert_eq!(datapath.refresh(name, index).unwrap(), Attached::InPlace);
                assert_eq!(attached(index), programs, "{name}");
                let whole = datapath.attached(name, index).unwrap();
                assert!(whole.iter().all(|(_, is)| *is), "{name}: {whole:?}");
            }
        }
    });
}

#[test]
#[ignore = "needs root: loads programs in a namespace of its own"]
fn a_restart_in_the_other_way_leaves_nothing_of_the_former() {
    on_node(|node| {
        let a = node.a;
        reopen(Attach::Tcx).attach("pwa", a.ifindex).unwrap();
        let filters = reopen(Attach::Clsact);
        assert_eq!(filters.refresh("pwa", a.ifindex).unwrap(), Attached::InPlace);
        assert_eq!(attached(a.ifindex), (0, 2));
        assert_eq!(filters.link_pins().unwrap(), []);
        let links = reopen(Attach::Tcx);
        assert_eq!(links.refresh("pwa", a.ifindex).unwrap(), Attached::Provisionally);
        links.attach("pwa", a.ifindex).unwrap();
        assert_eq!(attached(a.ifindex), (2, 0));
    });
}

#[test]
#[ignore = "needs root: loads programs in a namespace of its own"]
fn detaching_works_before_and_after_the_link_is_gone() {
    on_node(|node| {
        let (a, b, datapath) = (node.a, node.b, &reopen(Attach::Tcx));
        datapath.attach("pwa", a.ifindex).unwrap();
        assert_eq!(datapath.detach("pwa", a.ifindex).unwrap(), Removal::Removed);
        assert_eq!(attached(a.ifindex), (0, 0));
        assert_eq!(datapath.detach("pwa", a.ifindex).unwrap(), Removal::Absent);

        let mut netlink = Netlink::open().unwrap();
        datapath.attach("pwb", b.ifindex).unwrap();
        netlink.remove_link("pwb".parse::<IfName>().unwrap()).unwrap();
        let [dead] = &datapath.link_pins().unwrap()[..] else { panic!("one pin stays") };
        assert_eq!((dead.name.as_str(), dead.ifindex), ("pwb", None));
        assert_eq!(datapath.detach("pwb", b.ifindex).unwrap(), Removal::Removed);
        assert_eq!(datapath.link_pins().unwrap(), []);

        netlink.remove_link("pwa".parse::<IfName>().unwrap()).unwrap();
        assert_eq!(datapath.detach("pwa", a.ifindex).unwrap(), Removal::Absent);
        datapath.attach("pwa", a.ifindex).unwrap_err();
    });
}

#[test]
#[ignore = "needs root: loads programs in a namespace of its own"]
fn endpoints_leave_no_rows_and_slots_change_generation() {
    on_node(|node| {
        let datapath = &node.datapath;
        let rows = datapath.tables().endpoints().unwrap();
        assert_eq!(rows.len(), 2);
        assert_eq!(rows[0].addresses, node.a.both());
        assert_eq!(datapath.remove_endpoint("pwa", node.a.ifindex).unwrap(), Removal::Removed);
        assert_eq!(datapath.remove_endpoint("pwa", node.a.ifindex).unwrap(), Removal::Absent);
        assert_eq!(datapath.remove_endpoint("pwb", node.b.ifindex).unwrap(), Removal::Removed);
        assert_eq!(datapath.tables().endpoints().unwrap(), []);
        let left = datapath.tables().ipcache().unwrap();
        assert!(left.iter().all(|row| row.slot.is_none()), "{left:?}");
        assert_eq!(left.len(), 2, "the router's own addresses stay");

        // A link keeps its place, and its place is never believed to be what it was.
        let first = node.add("pwa", &node.a);
        let again = node.add("pwa", &node.a);
        assert_eq!(first, again, "the same link keeps its slot");
        let generation = datapath.tables().endpoints().unwrap()[0].generation;
        datapath.remove_endpoint("pwa", node.a.ifindex).unwrap();
        assert_eq!(node.add("pwa", &node.a), first);
        assert_ne!(datapath.tables().endpoints().unwrap()[0].generation, generation);
    });
}

#[test]
#[ignore = "needs root: loads programs in a namespace of its own"]
fn what_is_known_of_flows_outlives_a_change_and_ends_with_the_endpoint() {
    on_node(|node| {
        let (a, b) = (node.a, node.b);
        let stack = Link { from: node::HOST_MAC, to: node::HOST_MAC };
        let packet = node::tcp(stack, (a.v4.into(), 40000), (b.v4.into(), 80), node::SYN);
        let reply = node::tcp(b.to_gateway(), (b.v4.into(), 80), (a.v4.into(), 40000), node::ACK);
        assert_eq!(node.stack_sends(&packet).reason, Reason::Delivered);
        assert_eq!(node.pod_sends(&b, &reply).reason, Reason::ToStackByFlow);
        drop(Datapath::open(&Options::new(BPFFS)).unwrap());
        node.add("pwb", &b);
        assert_eq!(node.pod_sends(&b, &reply).reason, Reason::ToStackByFlow);
        node.datapath.remove_endpoint("pwb", b.ifindex).unwrap();
        node.add("pwb", &b);
        assert_eq!(node.pod_sends(&b, &reply).reason, Reason::Delivered, "another endpoint");
    });
}

#[test]
#[ignore = "needs root: loads programs in a namespace of its own"]
fn an_address_belongs_to_one_endpoint() {
    on_node(|node| {
        let thief = node::Pod { ifindex: node.c.ifindex, ..node.a };
        let error = node.datapath.add_endpoint(&Node::config("pwc", &thief)).unwrap_err();
        assert!(error.to_string().contains("10.1.0.2"), "{error}");
        assert_eq!(attached(node.c.ifindex), (0, 0));
        let mut two = Node::config("pwc", &thief);
        two.addresses = vec!["10.1.0.8".parse().unwrap(), "10.1.0.9".parse().unwrap()];
        let error = node.datapath.add_endpoint(&two).unwrap_err();
        assert!(error.to_string().contains("10.1.0.9"), "{error}");
        assert_eq!(node.datapath.tables().endpoints().unwrap().len(), 2);
    });
}

#[test]
#[ignore = "needs root: loads programs in a namespace of its own"]
fn full_slots_and_other_sizes_are_named() {
    podwire_lab::Host::new().unwrap().run(|| {
        let small = Options { slots: 1, ..Options::new(BPFFS) };
        let datapath = Datapath::open(&small).unwrap();
        let config = |ifindex, address: &str| EndpointConfig {
            host_link: "lo".to_owned(),
            ifindex,
            mac: [2, 0, 0, 0, 0, 1],
            host_mac: [2, 0, 0, 0, 0, 2],
            addresses: vec![address.parse().unwrap()],
            delivery: podwire_datapath::Delivery::Peer,
            interface: podwire_datapath::Interface::Own,
            by: By::Filter,
        };
        datapath.add_endpoint(&config(1, "10.1.0.2")).unwrap();
        let error = datapath.add_endpoint(&config(2, "10.1.0.3")).unwrap_err();
        assert!(error.is_full(), "{error}");
        let error = Datapath::open(&Options::new(BPFFS)).unwrap_err().to_string();
        for name in ["SLOTS", "LINKS", "IPCACHE"] {
            assert!(error.contains(name), "every difference is named: {error}");
        }
    });
}
