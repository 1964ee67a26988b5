//! Pools that the nodes of a cluster share, on a node as operators run it.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod node;

use std::{
    collections::BTreeSet,
    net::IpAddr,
    path::PathBuf,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::Duration,
};

use ipnetwork::IpNetwork;
use node::{Node, at_once, attachment, until};
use podwire_api::{CidrEdit, CidrRequest, Client, DEFAULT_STATE_DIR, Pool, blocks_path};
use podwire_lab::{Attachment, probe::Ping};
use podwire_netlink::{Netlink, RouteFilter, TableId};
use serde_json::Value;

const PODS: usize = 200;
const AT_ONCE: usize = 8;

/// 14 and 15 addresses for pods in a block, and room for more blocks than 200 pods need.
const SHARED: &str = "blue=10.64.0.0/22@28,fd64::/114@124";
const OPTIONS: [&str; 12] = [
    "--pod-cidr",
    "10.1.0.0/24",
    "--pod-cidr",
    "fd00:1::/64",
    "--cluster-pool",
    SHARED,
    "--default-pool",
    "blue",
    "--block-idle",
    "1",
    "--cooldown",
    "1",
];

fn addresses(result: &Value) -> Vec<IpAddr> {
    let ips = result["ips"].as_array().unwrap();
    let address = |ip: &Value| ip["address"].as_str().unwrap().parse::<IpNetwork>().unwrap().ip();
    ips.iter().map(address).collect()
}

fn blue(node: &Node) -> Option<Pool> {
    node.ask(Client::pools).into_iter().find(|pool| pool.name == "blue")
}

fn blocks(node: &Node) -> BTreeSet<IpNetwork> {
    let cidrs = blue(node).map(|pool| pool.cidrs).unwrap_or_default();
    cidrs.into_iter().map(|one| one.cidr).collect()
}

/// The prefixes of the shared pool that lead to pods.
fn routed(node: &Node) -> BTreeSet<IpNetwork> {
    let shared = ["10.64.0.0/22", "fd64::/114"].map(|cidr| cidr.parse::<IpNetwork>().unwrap());
    node.host.run(|| {
        let mut netlink = Netlink::open().unwrap();
        let routes = netlink.routes(&RouteFilter::table(TableId::MAIN)).unwrap();
        let found = routes.into_iter().map(|route| route.destination);
        found.filter(|found| shared.iter().any(|one| one.contains(found.ip()))).collect()
    })
}

#[test]
#[ignore = "needs root: a node in namespaces of its own, with 200 pods"]
fn pods_get_blocks_as_they_need_them_while_the_agent_is_killed() {
    let mut node = Node::start_with(&OPTIONS);
    assert_eq!(blocks(&node).len(), 2, "one of each family is there before the first pod");
    let names: Vec<_> = (0..PODS).map(|n| format!("pod-{n}")).collect();
    let pods = at_once(AT_ONCE, &names, |name| attachment(&node.host.add_pod(name).unwrap()));

    let done = AtomicUsize::new(0);
    let (agent, plugin) = (&mut node.agent, &node.plugin);
    let results = thread::scope(|scope| {
        let adding = scope.spawn(|| {
            at_once(AT_ONCE, &pods, |pod| {
                loop {
                    let output = plugin.verb("ADD", pod, None).unwrap();
                    if let Ok(result) = output.json("ADD") {
                        done.fetch_add(1, Ordering::Relaxed);
                        return result;
                    }
                    // No agent may answer; an agent that does has an address for everybody.
                    assert!(!output.stdout.contains("pool"), "{}", output.stdout);
                    thread::sleep(Duration::from_millis(20));
                }
            })
        });
        until("half of the pods are there", || done.load(Ordering::Relaxed) >= PODS / 2);
        agent.kill().unwrap();
        agent.start_again().unwrap();
        adding.join().unwrap()
    });

    let all: BTreeSet<IpAddr> = results.iter().flat_map(addresses).collect();
    assert_eq!(all.len(), 2 * PODS, "every pod has addresses of its own");
    let full = blocks(&node);
    assert!(full.len() > 2 * PODS / 15, "{full:?}");
    assert!(all.iter().all(|address| full.iter().any(|block| block.contains(*address))));
    assert_eq!(routed(&node), full);
    at_once(AT_ONCE, &all, |address| {
        let report = node.host.run(|| Ping::new(*address).count(2).run()).unwrap();
        assert!(report.is_complete(), "node to {address}: {report}");
    });
    let check = node.cli(&["ipam", "check"]);
    assert_eq!(check["disagreements"].as_array().map_or(0, Vec::len), 0, "{check}");

    at_once(AT_ONCE, names.iter().zip(pods).zip(&results), |((name, pod), result)| {
        node.plugin.del(&pod, Some(result)).unwrap();
        node.host.remove_pod_netns(name).unwrap();
        node.plugin.del(&Attachment { netns: PathBuf::new(), ..pod }, None).unwrap();
    });
    // One more of each family stays than there was: 8 addresses are kept free, and 8 more before a
    // block is given back.
    until("empty blocks are given back", || blocks(&node).len() <= 4);
    assert_eq!(routed(&node), blocks(&node));
    node.restart_with(&OPTIONS[..4]);
    let repairs = node.ask(Client::status).repairs;
    assert!(repairs.iter().any(|repair| repair.found.contains("--cluster-pool")), "{repairs:?}");
    assert_eq!((blue(&node), routed(&node)), (None, BTreeSet::new()));
    node.assert_clean();
}

#[test]
#[ignore = "needs root: a node in namespaces of its own"]
fn a_lost_registry_is_set_aside_and_a_full_pool_told() {
    // Two blocks of two addresses.
    let options = [&OPTIONS[..5], &["blue=10.64.0.0/29@30", "--default-pool", "blue"]].concat();
    let mut node = Node::start_with(&options);
    let names = ["a", "b", "c", "d", "late"];
    let pods = names.map(|name| attachment(&node.host.add_pod(name).unwrap()));
    let held: Vec<_> = pods[..4].iter().map(|pod| node.plugin.add(pod).unwrap()).collect();
    let refused = node.plugin.verb("ADD", &pods[4], None).unwrap().stdout;
    let why = "pool blue has no free IPv4 block: 2 of 2 claimed (node-1 has 2)";
    assert!(refused.contains(why), "{refused}");
    let problems = node.ask(Client::status).problems;
    assert!(problems.iter().any(|problem| problem.what == why), "{problems:?}");
    let cidr = *blocks(&node).first().unwrap();
    let request = CidrRequest { edit: CidrEdit::Drain, cidr };
    let client = Client::new(podwire_api::socket_path(podwire_api::DEFAULT_RUN_DIR.as_ref()));
    let error = node.host.run(|| client.edit_pool("blue", &request)).unwrap_err();
    assert!(error.to_string().contains("--cluster-pool blue"), "{error}");

    node.agent.kill().unwrap();
    let registry = blocks_path(DEFAULT_STATE_DIR.as_ref());
    node.host.run(|| std::fs::write(&registry, b"this is no database").unwrap());
    node.restart_with(&options);
    let repairs = node.ask(Client::status).repairs;
    let told = repairs.iter().find(|repair| repair.object == registry.display().to_string());
    assert!(told.is_some_and(|repair| repair.done.contains("claimed again")), "{repairs:?}");
    assert_eq!(blocks(&node).len(), 2);
    for (pod, result) in pods.iter().zip(&held) {
        node.plugin.check(pod, result).unwrap();
        node.plugin.del(pod, Some(result)).unwrap();
    }
    names.iter().for_each(|name| node.host.remove_pod_netns(name).unwrap());
    node.assert_clean();
}
