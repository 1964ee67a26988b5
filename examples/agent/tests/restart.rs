//! Agents and plugins that die, and what goes on meanwhile.

#![allow(clippy::print_stdout, reason = "what a test measured is worth knowing")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod node;

use std::{
    collections::BTreeSet,
    fs,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use node::{MODES, Node, TestPod, attachment, until};
use podwire_api::{Client, EndpointId, host_link_name};
use podwire_bpf::{IfIndex, tcx_programs};
use podwire_lab::{
    Attachment, Host, interface,
    probe::{EchoReceiver, Ping, RunningPing, TcpEcho, TcpTransfer},
};
use podwire_netlink::{Birth, Direction, IfName, Link, LinkChange, Netlink, NewLink, tc};
use podwire_netns::UNFINISHED_GROUP;

const ROUTER: [&str; 2] = ["10.1.0.1", "fd00:1::1"];
const NOTES: &str = "/run/podwire/pending-del";

/// Echoes and connections that go on until told to stop.
struct Traffic {
    pings: Vec<(String, RunningPing, EchoReceiver)>,
    transfers: Vec<(String, TcpTransfer, TcpEcho)>,
}

impl Traffic {
    /// Between pods, from the node to a pod and from a pod to its node, in both families.
    fn start(node: &Node, a: &TestPod, b: &TestPod) -> Self {
        let mut traffic = Self { pings: Vec::new(), transfers: Vec::new() };
        for (target, router) in b.addresses().into_iter().zip(ROUTER) {
            let router: IpAddr = router.parse().unwrap();
            let at_pod = || b.pod.run(|| EchoReceiver::icmp(target)).unwrap();
            let ping = |target| {
                let patience = Duration::from_secs(20);
                Ping::new(target).interval(Duration::from_millis(4)).patience(patience)
            };
            let from_pod = |target| a.pod.run(|| ping(target).start()).unwrap();
            let from_node = |target| node.host.run(|| ping(target).start()).unwrap();
            // Who counts comes first.
            let receiver = at_pod();
            traffic.pings.push((format!("pod to {target}"), from_pod(target), receiver));
            let receiver = node.host.run(|| EchoReceiver::icmp(router)).unwrap();
            traffic.pings.push((format!("pod to {router}"), from_pod(router), receiver));
            let receiver = at_pod();
            traffic.pings.push((format!("node to {target}"), from_node(target), receiver));

            let echo = || b.pod.run(|| TcpEcho::start(SocketAddr::new(target, 0))).unwrap();
            let (for_pod, for_node) = (echo(), echo());
            let from_pod = a.pod.run(|| TcpTransfer::start(for_pod.address())).unwrap();
            let from_node = node.host.run(|| TcpTransfer::start(for_node.address())).unwrap();
            traffic.transfers.push((format!("pod to {target}"), from_pod, for_pod));
            traffic.transfers.push((format!("node to {target}"), from_node, for_node));
        }
        traffic.go_on();
        traffic
    }

    /// Waits until on every way some more has arrived than now.
    fn go_on(&self) {
        let arrived = |(_, ping, receiver): &(String, RunningPing, EchoReceiver)| {
            receiver.arrivals().received(ping.sender())
        };
        let returned = |(_, transfer, _): &(String, TcpTransfer, TcpEcho)| transfer.returned();
        let echoes: Vec<_> = self.pings.iter().map(|one| arrived(one) + 10).collect();
        let bytes: Vec<_> = self.transfers.iter().map(|one| returned(one) + 1_000_000).collect();
        until("traffic has gone on", || {
            self.pings.iter().map(arrived).zip(&echoes).all(|(now, more)| now >= *more)
                && self.transfers.iter().map(returned).zip(&bytes).all(|(now, more)| now >= *more)
        });
    }

    /// Every request has arrived once and was answered once, every byte has come back.
    fn assert_complete(self) {
        for (way, ping, receiver) in self.pings {
            let sender = ping.sender();
            let report = ping.stop();
            let arrivals = receiver.arrivals();
            println!("ping {way}: {report}");
            assert_eq!(arrivals.missing(sender, report.sent), [] as [u64; 0], "{way}: {report}");
            assert_eq!(arrivals.duplicates(sender), 0, "{way}");
            assert!(report.is_complete(), "{way}: {report}");
        }
        for (way, transfer, _echo) in self.transfers {
            let report = transfer.stop();
            println!("TCP {way}: {report}");
            assert!(report.is_complete(), "{way}: {report}");
        }
    }
}

/// The kernel's numbers of the programs at a link of the node, by TCX and by clsact.
fn programs(node: &Node, link: &str) -> [Vec<u32>; 2] {
    node.host.run(|| {
        let mut netlink = Netlink::open().unwrap();
        let index: IfIndex = netlink.link(link.parse::<IfName>().unwrap()).unwrap().index;
        let tcx = Direction::ALL.map(|direction| tcx_programs(index, direction).unwrap());
        let filters = Direction::ALL.map(|direction| -> Vec<u32> {
            let filters = tc::list(&mut netlink, index, direction).unwrap_or_default();
            filters.into_iter().filter_map(|filter| filter.bpf?.id).collect()
        });
        [tcx.concat(), filters.concat()]
    })
}

/// Waits until all links have their programs, attached in this way only. A new endpoint gets them by
/// filters, whatever the way: the agent puts links in their place when it has time.
fn wait_for_programs(node: &Node, mode: &str, pods: &[&TestPod]) {
    let links = pods.iter().map(|pod| (pod.host_link(), 2)).chain([("podwire_net", 1)]);
    for (link, number) in links {
        let mut last = [Vec::new(), Vec::new()];
        until(&format!("{link} has its programs by {mode}"), || {
            last = programs(node, link);
            let [ours, others] = if mode == "tcx" { [0, 1] } else { [1, 0] };
            last[ours].len() == number && last[others].is_empty()
        });
    }
}

/// Likewise, and none of them is of `before`, not from the start.
fn assert_replaced(node: &Node, mode: &str, pods: &[&TestPod], before: &BTreeSet<u32>) {
    let now = all_programs(node, pods);
    assert!(now.is_disjoint(before), "{now:?} of {before:?}");
    wait_for_programs(node, mode, pods);
}

fn all_programs(node: &Node, pods: &[&TestPod]) -> BTreeSet<u32> {
    let links = pods.iter().map(|pod| pod.host_link()).chain(["podwire_net"]);
    links.flat_map(|link| programs(node, link).concat()).collect()
}

fn repairs(node: &Node) -> Vec<String> {
    let status = node.cli(&["status"]);
    let repairs = status["repairs"].as_array().unwrap().iter();
    repairs.map(|repair| format!("{} {}", repair["object"], repair["found"])).collect()
}

#[test]
#[ignore = "needs root: a node in namespaces of its own"]
fn traffic_does_not_notice_that_the_agent_was_killed() {
    for mode in MODES {
        println!("--attach {mode}");
        let mut node = Node::start_with(&["--attach", mode]);
        let (a, b) = (node.add("a"), node.add("b"));
        let traffic = Traffic::start(&node, &a, &b);
        for _ in 0..3 {
            let endpoints = node.ask(Client::endpoints);
            let leases = node.ask(Client::leases);
            let before = all_programs(&node, &[&a, &b]);
            node.agent.kill().unwrap();
            traffic.go_on();
            node.agent.start_again().unwrap();
            traffic.go_on();
            assert_eq!(node.ask(Client::endpoints), endpoints);
            assert_eq!(node.ask(Client::leases), leases);
            assert_eq!(repairs(&node), [] as [&str; 0]);
            assert_replaced(&node, mode, &[&a, &b], &before);
        }
        let c = node.add("c");
        for target in a.addresses().into_iter().chain(b.addresses()) {
            let report = c.pod.run(|| Ping::new(target).run()).unwrap();
            assert!(report.is_complete(), "new pod to {target}: {report}");
        }
        traffic.assert_complete();
        assert_eq!(node.drops(), [] as [&str; 0]);
        for pod in [&a, &b, &c] {
            node.plugin.check(&pod.attachment, &pod.result).unwrap();
            node.delete(pod);
        }
        node.assert_clean();
    }
}

/// Nothing is left of pods, nor of the other way of attaching.
fn assert_clean_in(mode: &str, node: &Node) {
    node.assert_clean_since(&Node::start_with(&["--attach", "tcx"]).empty);
    if mode == "tc" {
        let inventory = node.host.inventory().unwrap();
        let pins = inventory.of_kind("pin");
        assert!(!pins.iter().any(|pin| pin.contains("/links/")), "{pins:?}");
    }
}

#[test]
#[ignore = "needs root: a node in namespaces of its own"]
fn traffic_does_not_notice_that_programs_are_attached_in_the_other_way() {
    let mut node = Node::start_with(&["--attach", "tcx"]);
    let (a, b) = (node.add("a"), node.add("b"));
    let traffic = Traffic::start(&node, &a, &b);
    for mode in ["tc", "tcx", "tc"] {
        let endpoints = node.ask(Client::endpoints);
        let before = all_programs(&node, &[&a, &b]);
        node.restart_with(&["--attach", mode]);
        traffic.go_on();
        assert_eq!(node.ask(Client::endpoints), endpoints);
        assert_replaced(&node, mode, &[&a, &b], &before);
    }
    traffic.assert_complete();
    assert_eq!(node.drops(), [] as [&str; 0]);
    let c = node.add("c");
    assert_replaced(&node, "tc", &[&a, &b, &c], &BTreeSet::new());
    for pod in [&a, &b, &c] {
        node.delete(pod);
    }
    assert_clean_in("tc", &node);
    node.restart_with(&["--attach", "tcx"]);
    assert_clean_in("tcx", &node);
}

#[test]
#[ignore = "needs root: a node in namespaces of its own"]
fn pods_that_vanished_with_the_agent_away_are_forgotten() {
    for (mode, next) in [("tcx", "tcx"), ("tc", "tc"), ("tcx", "tc"), ("tc", "tcx")] {
        println!("--attach {mode}, then {next}");
        let mut node = Node::start_with(&["--attach", mode]);
        let (stays, a, b) = (node.add("stays"), node.add("a"), node.add("b"));
        wait_for_programs(&node, mode, &[&stays, &a, &b]);
        node.agent.kill().unwrap();
        let gone: Vec<_> = [a, b].into_iter().map(end).collect();
        until("the links of the vanished pods are gone", || {
            let links = node.host.run(interface::names).unwrap();
            gone.iter().all(|(_, link)| !links.contains(link))
        });
        node.restart_with(&["--attach", next]);

        let endpoints = node.ask(Client::endpoints);
        assert_eq!(endpoints.iter().map(|one| &one.id).collect::<Vec<_>>(), [&stays.id()]);
        let leases = node.ask(Client::leases);
        assert_eq!(leases.iter().map(|one| &one.id).collect::<Vec<_>>(), [&stays.id()]);
        assert_eq!(node.tables().endpoints().unwrap().len(), 1);
        let told = repairs(&node);
        for (id, link) in &gone {
            let about = told.iter().filter(|line| line.contains(&id.to_string())).count();
            assert_eq!(about, 1, "{id}: {told:?}");
            let inventory = node.host.inventory().unwrap();
            let pins = inventory.of_kind("pin");
            assert!(!pins.iter().any(|pin| pin.contains(link)), "{link}: {pins:?}");
        }
        assert!(!told.iter().any(|line| line.contains("failed")), "{told:?}");
        node.plugin.check(&stays.attachment, &stays.result).unwrap();
        let report = stays.pod.run(|| Ping::new(ROUTER[0].parse().unwrap()).run()).unwrap();
        assert!(report.is_complete(), "{report}");

        // The runtime says DEL of what vanished, later.
        for (id, _) in &gone {
            node.plugin.del(&Attachment::new(id.container_id.as_str(), ""), None).unwrap();
        }
        node.delete(&stays);
        assert_clean_in(next, &node);
    }
}

/// Ends a pod's namespace, as when all its processes have died; gives its id and host link.
fn end(pod: TestPod) -> (EndpointId, String) {
    let (id, link) = (pod.id(), pod.host_link().to_owned());
    pod.pod.host().remove_pod_netns(pod.pod.name()).unwrap();
    // It holds the namespace, too.
    drop(pod);
    (id, link)
}

#[test]
#[ignore = "needs root: a node in namespaces of its own"]
fn a_del_without_an_agent_is_made_good_before_the_first_add() {
    for mode in MODES {
        println!("--attach {mode}");
        // Of a /29 six addresses are hosts', and the first is the router's.
        let cidrs = ["--pod-cidr", "10.1.0.0/29", "--pod-cidr", "fd00:1::/64"];
        let mut node = Node::start_with(&[&["--attach", mode], &cidrs[..]].concat());
        let pods: Vec<_> = (0..5).map(|n| node.add(&format!("pod-{n}"))).collect();
        let next = node.host.add_pod("next").unwrap();
        assert_eq!(node.plugin.add(&attachment(&next)).unwrap_err().cni_code(), Some(101));

        node.agent.kill().unwrap();
        let gone = &pods[3];
        node.delete(gone);
        let links = node.host.run(interface::names).unwrap();
        assert!(!links.iter().any(|link| link == gone.host_link()), "{links:?}");
        assert_eq!(gone.pod.run(interface::names).unwrap(), ["lo"]);
        assert_eq!(notes(&node), [gone.host_link()]);

        // Whoever is answered at all finds the address free.
        let attached = std::thread::scope(|scope| {
            let adding = scope.spawn(|| {
                let mut added = None;
                until("the agent answers", || {
                    added = match node.plugin.add(&attachment(&next)) {
                        Err(error) if error.cni_code() == Some(11) => None,
                        answered => Some(answered.unwrap()),
                    };
                    added.is_some()
                });
                added.unwrap()
            });
            (node.agent.start_again().unwrap(), adding.join().unwrap()).1
        });
        assert_eq!(attached["ips"][0]["address"], format!("{}/32", gone.v4));
        assert_eq!(notes(&node), [] as [&str; 0]);
        let told = repairs(&node);
        assert!(told.iter().any(|line| line.contains(&gone.id().to_string())), "{told:?}");
        assert_eq!(node.ask(Client::endpoints).len(), 5);

        // A note of what nobody knows is no obstacle, and what is no note stays.
        node.agent.kill().unwrap();
        node.plugin.del(&Attachment::new("never-heard-of", ""), None).unwrap();
        node.host.run(|| fs::write(format!("{NOTES}/README"), "not a note")).unwrap();
        node.agent.start_again().unwrap();
        assert_eq!(notes(&node), ["README"]);
        assert_eq!(node.ask(Client::endpoints).len(), 5);
        node.plugin.del(&attachment(&next), Some(&attached)).unwrap();
        node.host.remove_pod_netns("next").unwrap();
        for pod in pods.iter().filter(|pod| pod.id() != gone.id()) {
            node.delete(pod);
        }
        node.assert_clean();
    }
}

fn notes(node: &Node) -> Vec<String> {
    let entries = node.host.run(|| fs::read_dir(NOTES)).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

#[test]
#[ignore = "needs root: a node in namespaces of its own"]
fn an_agent_that_is_told_to_stop_leaves_the_datapath() {
    for mode in MODES {
        println!("--attach {mode}");
        let mut node = Node::start_with(&["--attach", mode]);
        let (a, b) = (node.add("a"), node.add("b"));
        let endpoints = node.ask(Client::endpoints);
        wait_for_programs(&node, mode, &[&a, &b]);
        let stands = node.host.inventory().unwrap();
        let rows = node.tables().endpoints().unwrap();
        let traffic = Traffic::start(&node, &a, &b);
        assert!(node.agent.terminate().unwrap().success(), "{}", node.agent.log());
        assert!(!node.host.run(|| fs::exists("/run/podwire/podwire.sock")).unwrap());
        traffic.go_on();
        let now = node.host.inventory().unwrap();
        assert_eq!((now.since(&stands), stands.since(&now)), (Vec::new(), Vec::new()));
        assert_eq!(node.tables().endpoints().unwrap(), rows);
        node.agent.start_again().unwrap();
        traffic.go_on();
        assert_eq!(node.ask(Client::endpoints), endpoints);
        assert_eq!(node.tables().endpoints().unwrap(), rows, "the rows are not even rewritten");
        traffic.assert_complete();
        node.delete(&a);
        node.delete(&b);
        node.assert_clean();
    }
}

/// Creates a pair in the calling thread's namespace, with an alias at its first end.
fn make_pair(name: &str, other: &str, alias: Option<&str>) -> Link {
    let mut netlink = Netlink::open().unwrap();
    let name: IfName = name.parse().unwrap();
    let end = Birth::named;
    netlink.create_link(&NewLink::veth(end(name), end(other.parse().unwrap()))).unwrap();
    if let Some(alias) = alias {
        netlink.change_link(&LinkChange::of(name).alias(alias)).unwrap();
    }
    netlink.link(name).unwrap()
}

#[test]
#[ignore = "needs root: a node in namespaces of its own"]
fn links_of_others_are_never_touched() {
    for mode in MODES {
        println!("--attach {mode}");
        let host = Host::new().unwrap();
        let name_of = |container: &str| host_link_name(container, "eth0");
        // By the name of an endpoint that will be asked for, and by names that only look like it.
        let made: Vec<Link> = host.run(|| {
            let mut netlink = Netlink::open().unwrap();
            let bridge: IfName = name_of("bridge").parse().unwrap();
            netlink.create_link(&NewLink::bridge(bridge)).unwrap();
            let mark = LinkChange::of(bridge).alias("podwire:node-1:bridge/eth0");
            netlink.change_link(&mark).unwrap();
            vec![
                make_pair("pwaaaaaaaaaaaaa", "p0", None),
                make_pair("pw0", "p1", Some("an uplink")),
                make_pair(&name_of("unmarked"), "p2", None),
                make_pair(&name_of("other"), "p3", Some("podwire:node-2:other/eth0")),
                make_pair("copied", "p4", Some("podwire:node-1:copied/eth0")),
                make_pair(&name_of("forged"), "p5", Some("podwire:node-1:another/eth0")),
                make_pair(&name_of("almost"), "p6", Some("podwire:node-1:almost/eth0 ")),
                netlink.link(bridge).unwrap(),
            ]
        });
        let stand = || {
            let links = host.run(|| Netlink::open().unwrap().links()).unwrap();
            made.iter().all(|link| links.contains(link))
        };
        let mut node = Node::start_in(host.clone(), &["--attach", mode]);
        assert!(stand(), "after the first start");
        let pod = node.add("pod");
        for container in ["unmarked", "copied", "forged", "almost"] {
            let gone = Attachment::new(container, "");
            node.plugin.del(&gone, None).unwrap();
            assert!(stand(), "after DEL of {container}");
            node.agent.kill().unwrap();
            node.plugin.del(&gone, None).unwrap();
            assert!(stand(), "after DEL of {container} without an agent");
            node.agent.start_again().unwrap();
            assert!(stand(), "after the note of {container} was read");
        }
        node.delete(&pod);
        assert!(stand());
        node.assert_clean();
    }
}

#[test]
#[ignore = "needs root: a node in namespaces of its own"]
fn a_link_without_its_alias_yet_is_cleared_away() {
    let mut node = Node::start();
    for clear in ["DEL", "DEL without an agent", "start"] {
        println!("{clear}");
        let pod = node.host.add_pod("a").unwrap();
        let name = host_link_name("a-container", "eth0");
        let unfinished = || {
            let inside =
                Birth { netns: Some(pod.netns()), ..Birth::named("eth0".parse().unwrap()) };
            let group = Some(UNFINISHED_GROUP);
            let outside = Birth { group, ..Birth::named(name.parse().unwrap()) };
            Netlink::open().unwrap().create_link(&NewLink::veth(inside, outside)).unwrap();
        };
        node.host.run(unfinished);
        assert!(node.host.run(interface::names).unwrap().contains(&name));
        match clear {
            "DEL" => node.plugin.del(&attachment(&pod), None).unwrap(),
            "start" => {
                node.agent.kill().unwrap();
                node.agent.start_again().unwrap();
                let told = repairs(&node);
                assert!(told.iter().any(|line| line.contains(&name)), "{told:?}");
            }
            _ => {
                node.agent.kill().unwrap();
                node.plugin.del(&attachment(&pod), None).unwrap();
                assert!(!node.host.run(interface::names).unwrap().contains(&name));
                node.agent.start_again().unwrap();
            }
        }
        assert_eq!(pod.run(interface::names).unwrap(), ["lo"], "{clear}");
        node.host.remove_pod_netns("a").unwrap();
        node.assert_clean();
    }
}
