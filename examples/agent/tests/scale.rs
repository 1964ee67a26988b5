//! Many pods at once, and nothing left of them.

#![allow(clippy::print_stdout, reason = "what a test measured is worth knowing")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod node;

use std::{collections::BTreeSet, net::IpAddr, path::PathBuf, time::Duration};

use node::{MODES, Node, TestPod, at_once, until};
use podwire_api::Client;
use podwire_lab::{Attachment, Pod, binary, probe::Ping};
use podwire_netlink::{NeighbourState, Netlink, RouteFilter};

const PODS: usize = 200;
const AT_ONCE: usize = 32;

/// The most that an agent with [`PODS`] endpoints may have resident.
const MOST_RESIDENT: u64 = 25_000_000;

/// Routes of all tables and neighbours of both families, but for what the kernel notes by itself
/// where nobody is ever asked: groups, and whoever is behind the router pair.
fn routes_and_neighbours(node: &Node) -> Vec<String> {
    let mut netlink = node.host.run(Netlink::open).unwrap();
    let routes = netlink.routes(&RouteFilter::default()).unwrap();
    let neighbours = netlink.neighbours(None).unwrap();
    let neighbours = neighbours.iter().filter(|one| one.state != NeighbourState::NOARP);
    let mut all: Vec<_> = routes.iter().map(|route| format!("{route:?}")).collect();
    all.extend(neighbours.map(|neighbour| format!("{neighbour:?}")));
    all.sort();
    all
}

#[test]
#[ignore = "needs root: a node in namespaces of its own, with 200 pods"]
fn two_hundred_pods_come_and_go_and_leave_nothing() {
    for mode in MODES {
        println!("--attach {mode}");
        come_and_go(&Node::start_with(&["--attach", mode]));
    }
}

fn come_and_go(node: &Node) {
    let before = routes_and_neighbours(node);
    // It opens some files after its socket, to watch the links; then it notices a link that goes.
    let first = node.add("first");
    node.host.remove_pod_netns(first.pod.name()).unwrap();
    let gone = Attachment { netns: PathBuf::new(), ..first.attachment.clone() };
    drop(first);
    until("the agent watches", || node.tables().endpoints().unwrap().is_empty());
    node.plugin.del(&gone, None).unwrap();
    let files = node.agent.open_files().unwrap();
    let pods: Vec<Pod> =
        (0..PODS).map(|n| node.host.add_pod(&format!("pod-{n}")).unwrap()).collect();

    let attached = at_once(AT_ONCE, pods, |pod| node.attach(pod));
    let addresses: BTreeSet<IpAddr> = attached.iter().flat_map(TestPod::addresses).collect();
    assert_eq!(addresses.len(), 2 * PODS, "every pod has addresses of its own");
    let links: BTreeSet<&str> = attached.iter().map(TestPod::host_link).collect();
    assert_eq!(links.len(), PODS);
    assert_eq!(node.ask(Client::endpoints).len(), PODS);
    assert_eq!(node.tables().endpoints().unwrap().len(), PODS);

    let resident = node.agent.resident_bytes().unwrap();
    println!("{resident} bytes resident with {PODS} endpoints");
    if is_release() {
        assert!(resident < MOST_RESIDENT, "{resident} bytes resident with {PODS} endpoints");
    }
    // Each to the next, so that every one sends and receives.
    let next = attached.iter().cycle().skip(1);
    at_once(AT_ONCE, attached.iter().zip(next), |(from, to)| {
        for target in to.addresses() {
            let ping = || Ping::new(target).patience(Duration::from_secs(20)).run();
            let report = from.pod.run(ping).unwrap();
            assert!(report.is_complete(), "{} to {target}: {report}", from.pod.name());
            assert!(node.host.run(ping).unwrap().is_complete(), "node to {target}");
        }
    });
    assert_eq!(node.drops(), [] as [&str; 0]);

    at_once(AT_ONCE, attached, |pod| {
        node.plugin.del(&pod.attachment, Some(&pod.result)).unwrap();
        node.host.remove_pod_netns(pod.pod.name()).unwrap();
        let gone = Attachment { netns: PathBuf::new(), ..pod.attachment };
        node.plugin.del(&gone, None).unwrap();
    });
    node.assert_clean();
    assert_eq!(node.tables().flows().unwrap(), []);
    assert_eq!(routes_and_neighbours(node), before);
    assert_eq!(node.host.pod_names().unwrap(), [] as [&str; 0]);
    // The agent closes a connection when it notices that its client has.
    until("the agent has no more open files than at the start", || {
        node.agent.open_files().unwrap() <= files
    });
}

/// Whether the programs under test are optimised ones, as `cargo xtask test` has them.
fn is_release() -> bool {
    binary("podwired").unwrap().parent().is_some_and(|folder| folder.ends_with("release"))
}
