//! podwire as the main plugin with somebody else's IPAM plugin: Debian's host-local and static, and
//! podwire-ipam, as `docs/chaining.md` has them.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod network;
mod node;

use std::{fs, net::IpAddr};

use network::{
    Member, Net, are_missing, args, assert_node_reaches, assert_reach, files, guide, output,
    request,
};
use node::{Node, attachment};
use podwire_api::{Client, LeaseState};
use podwire_lab::binary;
use serde_json::{Value, json};

const NOTES: &str = "/run/podwire/pending-del";

/// The addresses that host-local has granted: it has a file for each.
fn granted(node: &Node, network: &str) -> Vec<IpAddr> {
    let files = files(&node.host, &format!("/var/lib/cni/networks/{network}"));
    let names = files.iter().filter_map(|path| path.file_name()?.to_str());
    let mut granted: Vec<_> = names.filter_map(|name| name.parse().ok()).collect();
    granted.sort();
    granted
}

fn granted_files(addresses: &[IpAddr]) -> [String; 2] {
    let file = |place: usize| format!("/var/lib/cni/networks/host-local/{}", addresses[place]);
    [file(0), file(1)]
}

/// The guide's list with host-local, under another name and with these ranges.
fn host_local(name: &str, ranges: &[Value]) -> Value {
    let mut list = guide("host-local");
    list["name"] = name.into();
    list["plugins"][0]["ipam"]["ranges"] =
        ranges.iter().map(|range| json!([range])).collect::<Vec<_>>().into();
    list
}

#[track_caller]
fn assert_clean(node: &Node, nets: &[&Net]) {
    for net in nets {
        assert_eq!(net.remembered(), 0);
        assert_eq!(granted(node, net.list["name"].as_str().unwrap()), [] as [IpAddr; 0]);
    }
    assert!(files(&node.host, NOTES).is_empty());
    node.assert_clean();
}

#[test]
#[ignore = "needs root: a node in namespaces of its own; needs containernetworking-plugins"]
fn host_local_chooses_the_addresses() {
    if are_missing() {
        return;
    }
    let node = Node::start();
    let net = Net::of_guide(&node, "host-local");
    let own = node.add("own");
    let (a, b) = (net.add("a"), net.add("b"));
    let texts = |member: &Member| -> Vec<String> {
        member.result.ips.iter().map(|ip| ip.address.to_string()).collect()
    };
    assert_eq!(texts(&a), ["10.1.0.64/32", "fd00:1::64/128"]);
    assert_eq!(texts(&b), ["10.1.0.65/32", "fd00:1::65/128"]);
    let mut all = [a.addresses(), b.addresses()].concat();
    all.sort();
    assert_eq!(granted(&node, "host-local"), all);
    // The gateway is the node, whatever host-local says of one.
    let gateways: Vec<_> = a.gateways().iter().map(ToString::to_string).collect();
    assert_eq!(gateways, ["10.1.0.1", "fd00:1::1"]);
    assert_eq!(a.endpoint(&node).addresses, a.addresses());
    let leases = node.ask(Client::leases);
    let lease = leases.iter().find(|lease| lease.id == a.id()).unwrap();
    assert_eq!((&lease.addresses, lease.state), (&a.addresses(), LeaseState::Confirmed));

    assert_reach(&a.pod, &b.addresses());
    assert_reach(&a.pod, &a.gateways());
    assert_reach(&own.pod, &a.addresses());
    assert_reach(&b.pod, &own.addresses());
    assert_node_reaches(&node.host, &a.addresses());
    assert_eq!(node.drops(), [] as [&str; 0]);

    // CHECK asks both.
    net.check(&a).unwrap();
    let files = granted_files(&a.addresses());
    let texts = node.host.run(|| files.each_ref().map(|file| fs::read(file).unwrap()));
    node.host.run(|| files.each_ref().map(|file| fs::remove_file(file).unwrap()));
    let error = net.check(&a).unwrap_err();
    assert!(error.to_string().contains("host-local"), "{error}");
    for (file, text) in files.iter().zip(texts) {
        node.host.run(|| fs::write(file, text)).unwrap();
    }
    net.check(&a).unwrap();
    output(&node.host, "ip", &["-n", "a", "route", "del", "default"]);
    let error = net.check(&a).unwrap_err();
    assert_eq!(error.code().get(), 103, "{error}");

    net.delete(&a);
    assert_eq!(granted(&node, "host-local").len(), 2);
    net.delete(&b);
    node.delete(&own);
    assert_clean(&node, &[&net]);
}

#[test]
#[ignore = "needs root: a node in namespaces of its own; needs containernetworking-plugins"]
fn one_family_is_enough() {
    if are_missing() {
        return;
    }
    let node = Node::start();
    let v4 = json!({ "subnet": "10.1.0.0/24", "rangeStart": "10.1.0.64" });
    let v6 = json!({ "subnet": "fd00:1::/64", "rangeStart": "fd00:1::64" });
    let nets = [
        Net::new(&node, host_local("v4", &[v4])),
        Net::new(&node, host_local("v6", &[v6])),
        Net::of_guide(&node, "static"),
    ];
    let own = node.add("own");
    let members = [nets[0].add("a"), nets[1].add("b"), nets[2].add("c")];
    for (member, families) in members.iter().zip([&[true][..], &[false], &[true, false]]) {
        let found: Vec<_> = member.addresses().iter().map(IpAddr::is_ipv4).collect();
        assert_eq!(found, families);
        assert_eq!(member.endpoint(&node).addresses, member.addresses(), "and no other");
        for &target in &member.addresses() {
            let like = own.addresses().into_iter().find(|one| one.is_ipv4() == target.is_ipv4());
            assert_reach(&member.pod, &[like.unwrap()]);
            assert_reach(&own.pod, &[target]);
        }
        assert_reach(&member.pod, &member.gateways());
        assert_node_reaches(&node.host, &member.addresses());
    }
    let addresses: Vec<_> = members[2].addresses().iter().map(ToString::to_string).collect();
    assert_eq!(addresses, ["10.1.0.200", "fd00:1::200"]);
    for (net, member) in nets.iter().zip(&members) {
        net.check(member).unwrap();
        net.delete(member);
    }
    node.delete(&own);
    assert_clean(&node, &nets.each_ref());
}

#[test]
#[ignore = "needs root: a node in namespaces of its own; needs containernetworking-plugins"]
fn an_address_that_cannot_be_is_refused_and_goes_back() {
    if are_missing() {
        return;
    }
    let node = Node::start();
    // The next address that host-local grants is a pod's already.
    let holder = {
        let pod = node.host.add_pod("holder").unwrap();
        let to = attachment(&pod).args("IP=10.1.0.64");
        let result = node.plugin.add(&to).unwrap();
        (to, result)
    };
    let nets = [
        Net::new(&node, host_local("outside", &[json!({ "subnet": "10.9.0.0/24" })])),
        Net::of_guide(&node, "host-local"),
        Net::of_guide(&node, "static"),
    ];
    let first = nets[2].add("first");
    let pod = node.host.add_pod("a").unwrap();
    let before = node.host.inventory().unwrap();
    for (net, code, words) in [
        (&nets[0], 7, ["10.9.0.", "in no CIDR"]),
        (&nets[1], 100, ["10.1.0.64", "holder-container"]),
        (&nets[2], 100, ["10.1.0.200", "first-container"]),
    ] {
        let error = net.try_add(&request(&pod)).unwrap_err();
        let name = net.list["name"].as_str().unwrap();
        assert_eq!(error.code().get(), code, "{name}: {error}");
        for word in words {
            assert!(error.to_string().contains(word), "{name}: no {word} in {error}");
        }
        assert_eq!(granted(&node, name), [] as [IpAddr; 0], "{name}: goes back before any DEL");
        assert_eq!(node.host.inventory().unwrap().since(&before), [] as [&str; 0]);
        assert_eq!(node.ask(Client::leases).len(), 2);
        net.try_del(&request(&pod)).unwrap();
    }
    // DELs of what never came to be have taken nothing from anybody.
    assert_reach(&first.pod, &["10.1.0.64".parse().unwrap()]);
    nets[2].check(&first).unwrap();
    nets[2].delete(&first);

    // An IPAM plugin that is not there, and one that fails.
    let mut list = guide("host-local");
    list["plugins"][0]["ipam"]["type"] = "nowhere".into();
    let error = Net::new(&node, list).try_add(&request(&pod)).unwrap_err();
    assert!(error.code().get() == 7 && error.to_string().contains("nowhere"), "{error}");
    let broken = Net::new(&node, host_local("broken", &[json!({ "subnet": "nonsense" })]));
    let error = broken.try_add(&request(&pod)).unwrap_err();
    assert!(error.to_string().contains("host-local"), "{error}");

    node.plugin.del(&holder.0, Some(&holder.1)).unwrap();
    for name in ["holder", "a"] {
        node.host.remove_pod_netns(name).unwrap();
    }
    assert_clean(&node, &nets.each_ref());
}

#[test]
#[ignore = "needs root: a node in namespaces of its own; needs containernetworking-plugins"]
fn addresses_go_back_without_the_agent() {
    if are_missing() {
        return;
    }
    let mut node = Node::start();
    let net = Net::of_guide(&node, "host-local");
    let [a, b] = ["a", "b"].map(|name| net.add(name));
    node.agent.kill().unwrap();
    net.delete(&a);
    assert_eq!(granted(&node, "host-local"), b.addresses());
    let pod = node.host.add_pod("c").unwrap();
    let error = net.try_add(&request(&pod)).unwrap_err();
    assert_eq!(error.code().get(), 11, "{error}");
    assert_eq!(granted(&node, "host-local"), b.addresses(), "undone before any DEL");
    net.try_del(&request(&pod)).unwrap();
    node.agent.start_again().unwrap();
    assert_reach(&b.pod, &b.gateways());
    let again = net.try_add(&request(&pod)).unwrap();
    assert!(again.ips.iter().all(|ip| !b.addresses().contains(&ip.address.ip())));
    net.delete(&Member { request: request(&pod), pod, result: again });
    net.delete(&b);
    assert_clean(&node, &[&net]);
}

/// The list of podwire-ipam, which knows the newest verbs.
fn with_podwire_ipam() -> Value {
    json!({
        "cniVersion": "1.1.0",
        "name": "delegated",
        "plugins": [{
            "type": "podwire-cni",
            "capabilities": { "ips": true },
            "ipam": {
                "type": "podwire-ipam",
                "ranges": [[{
                    "subnet": "10.1.0.0/24", "rangeStart": "10.1.0.64", "rangeEnd": "10.1.0.66",
                }]],
            },
        }],
    })
}

#[test]
#[ignore = "needs root: a node in namespaces of its own"]
fn garbage_collection_and_status_reach_the_ipam_plugin() {
    let node = Node::start();
    let net = Net::new(&node, with_podwire_ipam());
    let plugin = net.plugin(0);
    let ipam = binary("podwire-ipam").unwrap();
    let leases = || output(&node.host, ipam.to_str().unwrap(), &["list", "delegated"]);
    let [a, b] = ["a", "b"].map(|name| net.add(name));
    plugin.status().unwrap();
    let c = net.add("c");
    let error = plugin.status().unwrap_err();
    assert_eq!(error.cni_code(), Some(50), "{error}");
    assert!(leases().contains("b-container"), "{}", leases());

    plugin.gc(&[a.attachment(), c.attachment()]).unwrap();
    let left = leases();
    assert!(left.contains("a-container") && left.contains("c-container"), "{left}");
    assert!(!left.contains("b-container"), "{left}");
    assert_eq!(node.ask(Client::endpoints).len(), 2);
    assert_reach(&a.pod, &c.addresses());
    plugin.status().unwrap();

    // A wish for an address is the IPAM plugin's to grant.
    let pod = node.host.add_pod("d").unwrap();
    let mut wish = request(&pod);
    let wanted = b.addresses()[0];
    wish.args = args(&[("IP", &wanted.to_string())]);
    let result = net.try_add(&wish).unwrap();
    assert_eq!(result.ips[0].address.ip(), wanted);
    net.delete(&Member { pod, request: wish, result });

    plugin.gc(&[]).unwrap();
    assert_eq!(node.ask(Client::endpoints), []);
    assert!(!leases().contains("container"), "{}", leases());
    for member in [&a, &b, &c] {
        net.delete(member);
    }
    assert_clean(&node, &[&net]);
}
