//! A thousand ADDs and a thousand DELs, many at a time.

#![allow(clippy::print_stdout, reason = "what a test measured is worth knowing")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod node;

use std::{collections::BTreeSet, path::PathBuf, time::Duration};

use node::{Node, at_once, attachment};
use podwire_api::Client;
use podwire_lab::Attachment;
use podwire_netlink::watch::{Topic, Watch};
use serde_json::Value;
use tokio::time::timeout;

const PODS: usize = 1000;
const AT_ONCE: usize = 64;

/// How many of the first calls are compared with as many of the last ones.
const COMPARED: usize = 100;

/// An agent without work is to leave the links alone for so long, before it is too late. It works
/// on after an ADD: two seconds later it attaches programs for good.
const QUIET: Duration = Duration::from_secs(5);
const PATIENCE: Duration = Duration::from_secs(60);

/// Room for all pods; the rest is what a node has by default.
const POD_CIDRS: [&str; 4] = ["--pod-cidr", "10.1.0.0/22", "--pod-cidr", "fd00:1::/64"];

#[test]
#[ignore = "needs root: a node in namespaces of its own, with 1,000 pods"]
fn a_thousand_pods_come_and_go_many_at_a_time() {
    let node = Node::start_with(&POD_CIDRS);
    let names: Vec<_> = (0..PODS).map(|n| format!("pod-{n}")).collect();
    // No handle is kept: a thousand open files are more than a process may have as a rule.
    let pods = at_once(AT_ONCE, &names, |name| attachment(&node.host.add_pod(name).unwrap()));

    let added = at_once(AT_ONCE, &pods, |pod| {
        let output = node.plugin.verb("ADD", pod, None).unwrap();
        (output.json("ADD").unwrap(), output.elapsed)
    });
    let (results, took): (Vec<_>, Vec<_>) = added.into_iter().unzip();
    report("ADD", &took);
    let addresses: BTreeSet<_> = results.iter().flat_map(addresses).collect();
    assert_eq!(addresses.len(), 2 * PODS, "every pod has addresses of its own");
    assert_eq!(node.ask(Client::endpoints).len(), PODS);
    assert_eq!(node.tables().endpoints().unwrap().len(), PODS);

    let took = at_once(AT_ONCE, pods.iter().zip(&results), |(pod, result)| {
        let output = node.plugin.verb("DEL", pod, Some(result)).unwrap();
        output.success("DEL").unwrap();
        output.elapsed
    });
    report("DEL", &took);
    at_once(AT_ONCE, names.iter().zip(pods), |(name, pod)| {
        node.host.remove_pod_netns(name).unwrap();
        let gone = Attachment { netns: PathBuf::new(), ..pod };
        node.plugin.del(&gone, None).unwrap();
    });
    node.assert_clean();
    assert_eq!(node.host.pod_names().unwrap(), [] as [&str; 0]);
}

/// Looking at a link makes the kernel tell everybody who watches links, the agent among them: it
/// must come to an end with that.
#[test]
#[ignore = "needs root: a node in namespaces of its own"]
fn the_agent_comes_to_rest() {
    let node = Node::start();
    let pods: Vec<_> = ["a", "b", "c"].into_iter().map(|name| node.add(name)).collect();
    node.host.run(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut watch = Watch::open(&[Topic::TrafficControl]).unwrap();
            let quiet = async { while timeout(QUIET, watch.next()).await.is_ok() {} };
            timeout(PATIENCE, quiet).await.expect("nothing happens, and the kernel tells nothing");
        });
    });
    pods.iter().for_each(|pod| node.delete(pod));
    node.assert_clean();
}

fn addresses(result: &Value) -> impl Iterator<Item = String> {
    let ips = result["ips"].as_array().unwrap();
    ips.iter().map(|ip| ip["address"].as_str().unwrap().to_owned())
}

/// Prints how long the first and the last calls took. `cargo xtask soak many` reads this line.
fn report(verb: &str, took: &[Duration]) {
    let median = |calls: &[Duration]| {
        let mut calls = calls.to_vec();
        calls.sort();
        calls[calls.len() / 2].as_secs_f64() * 1000.0
    };
    let (first, last) = (median(&took[..COMPARED]), median(&took[took.len() - COMPARED..]));
    let factor = last / first;
    println!(
        "{verb}: median of the first {COMPARED} {first:.1} ms, of the last {last:.1} ms, factor {factor:.2}"
    );
}
