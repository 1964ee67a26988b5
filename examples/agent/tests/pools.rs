//! Pools that grow, overflow and never leak, on a node as operators run it.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod node;

use std::{
    collections::BTreeSet,
    fs,
    net::IpAddr,
    path::PathBuf,
    process::Stdio,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
};

use ipnetwork::IpNetwork;
use node::{Node, TestPod, at_once, attachment, config, until};
use podwire_api::{
    CidrEdit, CidrRequest, Client, DEFAULT_STATE_DIR, EndpointId, LeaseRequest, PoolRequest,
    Removed, database_path,
};
use podwire_lab::{Attachment, Cni, binary, probe::Ping};
use podwire_netlink::{IfName, Netlink};
use serde_json::{Value, json};

const PODS: usize = 1000;
const AT_ONCE: usize = 16;

fn net(text: &str) -> IpNetwork {
    text.parse().unwrap()
}

fn addresses(result: &Value) -> Vec<IpAddr> {
    let ips = result["ips"].as_array().unwrap();
    let address = |ip: &Value| ip["address"].as_str().unwrap().parse::<IpNetwork>().unwrap().ip();
    ips.iter().map(address).collect()
}

fn edit(node: &Node, pool: &str, edit: CidrEdit, cidr: &str) -> podwire_api::Pool {
    let request = CidrRequest { edit, cidr: net(cidr) };
    node.ask(|agent| agent.edit_pool(pool, &request))
}

/// The plugin, called for pods with these annotations.
fn annotated(node: &Node, annotations: &Value) -> Cni {
    let mut config = config();
    config["runtimeConfig"] = json!({ "io.kubernetes.cri.pod-annotations": annotations });
    Cni::new(&node.host, binary("podwire-cni").unwrap(), config)
}

/// What the CLI says, and whether it is content.
fn podwire(node: &Node, arguments: &[&str]) -> (bool, String) {
    let mut command = node.host.command(binary("podwire").unwrap());
    let output = command.args(arguments).stdin(Stdio::null()).output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8(said).unwrap())
}

/// Packets from the node reach the pod, and come back.
#[track_caller]
fn assert_reached(node: &Node, address: IpAddr) {
    let report = node.host.run(|| Ping::new(address).count(3).run()).unwrap();
    assert!(report.is_complete(), "node to {address}: {report}");
}

#[test]
#[ignore = "needs root: a node in namespaces of its own, with 1,000 pods"]
fn a_cidr_is_added_and_another_drained_during_a_thousand_adds() {
    let (old, new) = ("10.1.0.0/22", "10.8.0.0/22");
    let node = Node::start_with(&["--pod-cidr", old, "--pod-cidr", "fd00:1::/64"]);
    let names: Vec<_> = (0..PODS).map(|n| format!("pod-{n}")).collect();
    let pods = at_once(AT_ONCE, &names, |name| attachment(&node.host.add_pod(name).unwrap()));
    let (begun, drained) = (AtomicUsize::new(0), AtomicBool::new(false));
    let added = at_once(AT_ONCE, &pods, |pod| {
        match begun.fetch_add(1, Ordering::Relaxed) {
            300 => drop(edit(&node, "default", CidrEdit::Add, new)),
            500 => {
                edit(&node, "default", CidrEdit::Drain, old);
                drained.store(true, Ordering::SeqCst);
            }
            _ => {}
        }
        let is_after = drained.load(Ordering::SeqCst);
        (node.plugin.add(pod).unwrap(), is_after)
    });
    let all: BTreeSet<IpAddr> = added.iter().flat_map(|(result, _)| addresses(result)).collect();
    assert_eq!(all.len(), 2 * PODS, "every pod has addresses of its own");
    let (mut before, mut after) = (0, 0);
    for (result, is_after) in &added {
        let is_old = net(old).contains(addresses(result)[0]);
        assert!(!(*is_after && is_old), "{result} was given after the drain");
        before += usize::from(!is_after);
        after += usize::from(*is_after);
    }
    assert!(before > 400 && after > 400, "{before} ADDs before the drain, {after} after it");
    assert!(podwire(&node, &["ipam", "check"]).0);

    // Leases in the drained CIDR stay, and are reached, until their pods go; then it can be removed.
    let last_old = added.iter().position(|(result, _)| net(old).contains(addresses(result)[0]));
    assert_reached(&node, addresses(&added[last_old.unwrap()].0)[0]);
    assert_reached(&node, addresses(&added[PODS - 1].0)[0]);
    let (fine, said) = podwire(&node, &["ipam", "pool", "remove-cidr", "default", old]);
    assert!(!fine && said.contains("is in use"), "{said}");
    at_once(AT_ONCE, names.iter().zip(pods).zip(&added), |((name, pod), (result, _))| {
        node.plugin.del(&pod, Some(result)).unwrap();
        node.host.remove_pod_netns(name).unwrap();
        node.plugin.del(&Attachment { netns: PathBuf::new(), ..pod }, None).unwrap();
    });
    // The gateway's address is one of it.
    let (fine, said) = podwire(&node, &["ipam", "pool", "remove-cidr", "default", old]);
    assert!(!fine && said.contains("reserved 1"), "{said}");
    edit(&node, "default", CidrEdit::Remove, new);
    node.assert_clean();
}

#[test]
#[ignore = "needs root: a node in namespaces of its own"]
fn the_next_pool_takes_over_and_exhaustion_is_told() {
    // One address for the gateway, two for pods.
    let node = Node::start_with(&["--pod-cidr", "10.1.0.0/29", "--cooldown", "3600"]);
    let fill = ["a", "b", "c", "d", "e"].map(|name| node.host.add_pod(name).unwrap());
    let held: Vec<(Attachment, Value)> = fill
        .iter()
        .map(|pod| {
            let attachment = attachment(pod);
            let result = node.plugin.add(&attachment).unwrap();
            (attachment, result)
        })
        .collect();
    let pod = node.host.add_pod("late").unwrap();
    let late = attachment(&pod);
    let refused = node.plugin.verb("ADD", &late, None).unwrap();
    let error: Value = serde_json::from_str(&refused.stdout).unwrap();
    let said = error.to_string();
    for part in ["pool default", "size 6", "used 5", "cooling 0", "reserved 1", "pool add-cidr"] {
        assert!(said.contains(part), "{part} is not in {said}");
    }

    // A released address is granted at once when nothing else is left, however long it should rest.
    let (released, result) = &held[0];
    node.plugin.del(released, Some(result)).unwrap();
    let again = node.plugin.add(&late).unwrap();
    assert_eq!(addresses(&again), addresses(result));
    node.plugin.del(&late, Some(&again)).unwrap();
    let back = node.plugin.add(released).unwrap();
    assert_eq!(addresses(&back), addresses(result));

    let spare = PoolRequest { cidrs: vec![net("10.7.0.0/30")], ..PoolRequest::default() };
    node.ask(|agent| agent.create_pool("spare", &spare));
    let overflowing = annotated(&node, &json!({ "podwire.io/pool": "default,spare" }));
    let overflown = overflowing.add(&late).unwrap();
    assert!(net("10.7.0.0/30").contains(addresses(&overflown)[0]), "{overflown}");
    assert_reached(&node, addresses(&overflown)[0]);
    let pools = node.ask(Client::pools);
    assert!(pools[0].exhausted_v4 >= 2 && pools[1].exhausted_v4 == 0, "{pools:?}");
    let (_, metrics) = podwire(&node, &["metrics"]);
    let line = r#"podwire_ipam_addresses{pool="spare",family="ipv4",state="used"} 1"#;
    assert!(metrics.contains(line), "{metrics}");

    overflowing.del(&late, Some(&overflown)).unwrap();
    for (attachment, _) in &held {
        node.plugin.del(attachment, None).unwrap();
    }
    for pod in fill.iter().chain([&pod]) {
        node.host.remove_pod_netns(pod.name()).unwrap();
    }
    assert_eq!(node.ask(|agent| agent.delete_pool("spare")), Removed::Removed);
    node.assert_clean();
}

#[test]
#[ignore = "needs root: a node in namespaces of its own"]
fn what_was_granted_survives_a_killed_agent() {
    let mut node = Node::start();
    let pod = node.add("a");
    let pending = EndpointId::new("promised", "eth0").unwrap();
    let promised = node.ask(|agent| agent.lease(&LeaseRequest::new(pending.clone())));
    let cooling = node.add("gone");
    node.delete(&cooling);
    let (fine, said) = podwire(&node, &["ipam", "reserve", "10.1.0.99", "the printer"]);
    assert!(fine, "{said}");
    edit(&node, "default", CidrEdit::Add, "10.6.0.0/24");
    let sticky = annotated(&node, &json!({ "podwire.io/sticky": "true" }));
    let kept = node.host.add_pod("web-0").unwrap();
    let kept = attachment(&kept).args("K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-0");
    let first = sticky.add(&kept).unwrap();
    sticky.del(&kept, Some(&first)).unwrap();
    let before = node.ask(Client::pools);

    node.restart_with(&[]);
    let leases = node.ask(Client::leases);
    let ids: BTreeSet<_> = leases.iter().map(|lease| lease.id.clone()).collect();
    assert_eq!(ids, BTreeSet::from([pod.id(), pending.clone()]));
    let again = node.ask(|agent| agent.lease(&LeaseRequest::new(pending.clone())));
    assert_eq!(again.addresses, promised.addresses);
    let after = node.ask(Client::pools);
    assert_eq!(after[0].cidrs, before[0].cidrs, "cooling, kept and reserved addresses as well");
    let (_, said) = podwire(&node, &["ipam", "show", "10.1.0.99"]);
    assert!(said.contains("reserved: the printer"), "{said}");
    assert_eq!(addresses(&sticky.add(&kept).unwrap()), addresses(&first));

    node.ask(|agent| agent.release(&pending));
    sticky.del(&kept, None).unwrap();
    node.host.remove_pod_netns("web-0").unwrap();
    node.ask(|agent| agent.forget("shop/web-0"));
    node.delete(&pod);
    edit(&node, "default", CidrEdit::Remove, "10.6.0.0/24");
    node.assert_clean();
}

#[test]
#[ignore = "needs root: a node in namespaces of its own"]
fn a_damaged_database_is_set_aside_and_rebuilt_from_the_kernel() {
    let mut node = Node::start();
    let pods: Vec<TestPod> = ["a", "b", "c"].into_iter().map(|name| node.add(name)).collect();
    let recorded = node.ask(Client::endpoints);
    node.agent.kill().unwrap();
    let database = database_path(DEFAULT_STATE_DIR.as_ref());
    node.host.run(|| {
        let mut bytes = fs::read(&database).unwrap();
        let half = bytes.len() / 2;
        bytes[..half].fill(0x5a);
        fs::write(&database, bytes).unwrap();
    });
    node.restart_with(&[]);

    let found = node.ask(Client::endpoints);
    assert_eq!(found.len(), recorded.len());
    for (found, recorded) in found.iter().zip(&recorded) {
        let essence = |one: &podwire_api::Endpoint| {
            (one.id.clone(), one.addresses.clone(), one.ifindex, one.mac, one.slot)
        };
        assert_eq!(essence(found), essence(recorded));
    }
    let status = node.ask(Client::status);
    let told = status.repairs.iter().find(|repair| repair.done.contains("set aside")).unwrap();
    let aside = told.done.split(' ').find(|word| word.contains(".damaged-")).unwrap();
    let aside = PathBuf::from(aside.trim_end_matches(';'));
    assert!(node.host.run(|| aside.exists()), "{told:?}");
    assert!(podwire(&node, &["ipam", "check"]).0);
    for pod in &pods {
        assert_reached(&node, pod.v4);
        assert_reached(&node, pod.v6);
    }
    // A new pod gets none of the addresses that are held.
    let new = node.add("d");
    assert!(!pods.iter().any(|pod| pod.addresses().contains(&new.v4)));
    pods.iter().chain([&new]).for_each(|pod| node.delete(pod));
    node.assert_clean();
}

#[test]
#[ignore = "needs root: a node in namespaces of its own"]
fn prefixes_that_a_restart_no_longer_names_run_empty() {
    let mut node = Node::start();
    let pod = node.add("a");
    node.restart_with(&["--pod-cidr", "10.9.0.0/24", "--pod-cidr", "fd00:1::/64"]);
    let status = node.ask(Client::status);
    let told: Vec<&str> = status.repairs.iter().map(|repair| repair.done.as_str()).collect();
    assert!(told.iter().any(|done| done.starts_with("drained")), "{told:?}");
    assert_reached(&node, pod.v4);
    let new = node.add("b");
    assert!(net("10.9.0.0/24").contains(new.v4), "{}", new.v4);
    node.delete(&pod);
    node.delete(&new);
    node.restart_with(&["--pod-cidr", "10.9.0.0/24", "--pod-cidr", "fd00:1::/64"]);
    let pools = node.ask(Client::pools);
    let cidrs: Vec<String> = pools[0].cidrs.iter().map(|one| one.cidr.to_string()).collect();
    assert_eq!(cidrs, ["10.9.0.0/24", "fd00:1::/64"], "it was empty and is taken away");
    node.restart_with(&[]);
    let pool = &node.ask(Client::pools)[0];
    let given = pool.cidrs.iter().filter(|one| !one.drained).map(|one| one.cidr.to_string());
    assert_eq!(given.collect::<Vec<_>>(), ["10.1.0.0/24", "fd00:1::/64"]);
    until("nothing of the pods is left", || node.ask(Client::leases).is_empty());
}

#[test]
#[ignore = "needs root: a node in namespaces of its own"]
fn the_command_line_names_what_does_not_agree_and_repairs_it() {
    let node = Node::start();
    let (a, b) = (node.add("a"), node.add("b"));
    let (fine, said) = podwire(&node, &["ipam", "check"]);
    assert!(fine && said.contains("everything agrees"), "{said}");
    // Somebody deletes a host link behind our back.
    node.host.run(|| {
        let mut netlink = Netlink::open().unwrap();
        let link = netlink.link(b.host_link().parse::<IfName>().unwrap()).unwrap();
        netlink.remove_link(link.index).unwrap();
    });
    until("the agent has noticed", || !podwire(&node, &["ipam", "check"]).0);
    let (fine, said) = podwire(&node, &["ipam", "check"]);
    assert!(
        !fine && said.contains("endpoint b-container/eth0") && said.contains("is gone"),
        "{said}"
    );
    let (fine, said) = podwire(&node, &["ipam", "check", "--repair"]);
    assert!(fine && said.contains("done: delete the endpoint"), "{said}");
    assert!(podwire(&node, &["ipam", "check"]).0);

    let (_, said) = podwire(&node, &["ipam", "show", &a.v4.to_string()]);
    assert!(said.contains("a-container") && said.contains("confirmed"), "{said}");
    let (fine, said) = podwire(&node, &["ipam", "release", "a-container"]);
    assert!(!fine && said.contains("delete the endpoint"), "{said}");
    let id = EndpointId::new("waiting", "eth0").unwrap();
    node.ask(|agent| agent.lease(&LeaseRequest::new(id)));
    let (_, said) = podwire(&node, &["ipam", "list"]);
    assert!(said.contains("pending") && said.contains("10.1.0.0/24"), "{said}");
    let (fine, said) = podwire(&node, &["ipam", "release", "waiting"]);
    assert!(fine && said.contains("is gone"), "{said}");
    let pools = node.cli(&["ipam", "pools"]);
    assert_eq!(pools[0]["name"], "default");
    assert_eq!(pools[0]["cidrs"][0]["used"], 1);
    node.delete(&a);
    node.delete(&b);
    node.assert_clean();
}
