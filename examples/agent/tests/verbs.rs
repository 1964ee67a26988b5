//! GC, CHECK and STATUS of the plugin, and what it does when the agent is away.

#![allow(clippy::print_stdout, reason = "what a test measured is worth knowing")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod network;
mod node;

use std::{collections::BTreeSet, fs, net::IpAddr, path::PathBuf};

use network::{assert_reach, files, output};
use node::{BPFFS, Node, TestPod, at_once, attachment, until};
use podwire_api::{Client, EndpointId, LeaseRequest, LeaseState};
use podwire_bpf::{Array, HashMap};
use podwire_datapath::abi::{Address, IpcacheEntry, Slot, map};
use podwire_lab::{Attachment, Cni, binary};
use podwire_netlink::{Birth, IfName, LinkChange, Netlink, NewLink};
use serde_json::json;

const NOTES: &str = "/run/podwire/pending-del";

/// The plugin in the version that has all verbs.
fn plugin(node: &Node, network: &str) -> Cni {
    let config = json!({ "cniVersion": "1.1.0", "name": network, "type": "podwire-cni" });
    Cni::new(&node.host, binary("podwire-cni").unwrap(), config)
}

fn id(container: &str) -> EndpointId {
    EndpointId::new(container, "eth0").unwrap()
}

/// Makes an end of a veth pair with this alias in the node.
fn veth(node: &Node, name: &str, peer: &str, alias: &str) {
    let make = || {
        let (name, peer): (IfName, IfName) = (name.parse().unwrap(), peer.parse().unwrap());
        let mut netlink = Netlink::open()?;
        netlink.create_link(&NewLink::veth(Birth::named(name), Birth::named(peer)))?;
        let index = netlink.link(name)?.index;
        netlink.change_link(&LinkChange::of(index).alias(alias))
    };
    node.host.run(make).unwrap();
}

#[test]
#[ignore = "needs root: a node in namespaces of its own"]
fn garbage_collection_removes_what_is_not_valid_and_nothing_else() {
    let mut node = Node::start();
    let (ours, others) = (plugin(&node, "podnet"), plugin(&node, "other"));
    let other = {
        let pod = node.host.add_pod("other").unwrap();
        let to = attachment(&pod);
        others.add(&to).unwrap();
        to
    };
    // A note that the next agent finds, whose link still stands: the DEL was killed after it.
    let noted = node.add("noted");
    let keep = node.add("keep");
    let gone: Vec<TestPod> = (0..5).map(|n| node.add(&format!("gone-{n}"))).collect();
    let lease = |container: &str, network: &str| {
        let request =
            LeaseRequest { network: Some(network.into()), ..LeaseRequest::new(id(container)) };
        node.ask(|agent| agent.lease(&request))
    };
    lease("pending", "podnet");
    lease("pending-valid", "podnet");
    lease("pending-other", "other");
    // An ADD that was killed between link and lease, and what only looks like it.
    let stray = id("stray").host_link();
    veth(&node, &stray, "stray", "podwire:node-1:stray/eth0");
    let foreign = id("foreign").host_link();
    veth(&node, &foreign, "foreign", "");
    let elsewhere = id("elsewhere").host_link();
    veth(&node, &elsewhere, "elsewhere", "podwire:node-2:elsewhere/eth0");
    veth(&node, "someone", "someone-s", "podwire:node-1:someone/eth0");
    let note = format!("{NOTES}/{}", noted.id().host_link());
    let text = serde_json::to_vec(&noted.id()).unwrap();
    node.host.run(|| fs::write(&note, text)).unwrap();

    let valid = [keep.attachment.clone(), Attachment::new("pending-valid", "")];
    ours.gc(&valid).unwrap();

    let endpoints = |node: &Node| -> Vec<String> {
        let all = node.ask(Client::endpoints);
        all.iter().map(|one| one.id.container_id.to_string()).collect()
    };
    assert_eq!(endpoints(&node), ["keep-container", "other-container"]);
    let leases = node.ask(Client::leases);
    let pending: Vec<_> = leases
        .iter()
        .filter(|lease| lease.state == LeaseState::Pending)
        .map(|lease| lease.id.container_id.to_string())
        .collect();
    assert_eq!(pending, ["pending-other", "pending-valid"]);
    assert_eq!(leases.len(), 4);
    let links: BTreeSet<_> =
        node.host.run(podwire_lab::interface::names).unwrap().into_iter().collect();
    for name in [&foreign, &elsewhere, &"someone".to_owned(), &keep.id().host_link()] {
        assert!(links.contains(name), "{name} of {links:?}");
    }
    for pod in gone.iter().chain([&noted]) {
        assert!(!links.contains(pod.host_link()), "{}", pod.host_link());
        assert_eq!(pod.pod.run(podwire_lab::interface::names).unwrap(), ["lo"]);
    }
    assert!(!links.contains(&stray));
    assert!(files(&node.host, NOTES).is_empty());
    let tables = node.tables();
    assert_eq!(tables.endpoints().unwrap().len(), 2);
    let local = tables.ipcache().unwrap().into_iter().filter(|row| row.slot.is_some());
    assert_eq!(local.count(), 4, "two addresses of two pods");
    node.plugin.check(&keep.attachment, &keep.result).unwrap();
    assert_reach(&keep.pod, &["10.1.0.1".parse().unwrap()]);

    // Again: nothing is left to do. And with nothing valid, in both networks.
    ours.gc(&valid).unwrap();
    assert_eq!(endpoints(&node).len(), 2);
    ours.gc(&[]).unwrap();
    assert_eq!(endpoints(&node), ["other-container"]);
    others.gc(&[]).unwrap();
    assert_eq!(endpoints(&node), [] as [&str; 0]);

    // Without the agent GC says so, and the note of a DEL waits.
    node.agent.kill().unwrap();
    let error = ours.gc(&[]).unwrap_err();
    assert_eq!(error.cni_code(), Some(11), "{error}");
    node.agent.start_again().unwrap();

    for pod in gone.iter().chain([&keep, &noted]) {
        node.delete(pod);
    }
    node.host.remove_pod_netns("other").unwrap();
    let gone = Attachment { netns: PathBuf::new(), ..other };
    others.del(&gone, None).unwrap();
    for link in [&foreign, &elsewhere, "someone"] {
        output(&node.host, "ip", &["link", "del", link]);
    }
    node.assert_clean();
}

/// What breaks a pod, and what a CHECK must say of it.
struct Break {
    what: &'static str,
    /// Arguments of `ip`; `in` stands for the pod's namespace, HOST for its host link.
    ip: &'static [&'static str],
    words: &'static [&'static str],
}

const BREAKS: [Break; 14] = [
    Break {
        what: "the host link is down",
        ip: &["link", "set", "HOST", "down"],
        words: &["HOST", "up", "down"],
    },
    Break {
        what: "the pod's link is down",
        ip: &["in", "link", "set", "eth0", "down"],
        words: &["eth0", "expected up", "down"],
    },
    Break {
        what: "the pod's link has another name",
        ip: &["in", "link", "set", "eth0", "name", "eth9"],
        words: &["eth0", "nothing"],
    },
    Break {
        what: "the pod has no link",
        ip: &["in", "link", "del", "eth0"],
        words: &["HOST", "eth0", "nothing"],
    },
    Break {
        what: "the pod has another MAC",
        ip: &["in", "link", "set", "eth0", "address", "02:00:00:00:00:0c"],
        words: &["eth0", "02:00:00:00:00:0c"],
    },
    Break {
        what: "the IPv4 address is gone",
        ip: &["in", "address", "del", "V4/32", "dev", "eth0"],
        words: &["eth0", "V4/32", "no such address"],
    },
    Break {
        what: "the IPv6 address is gone",
        ip: &["in", "address", "del", "V6/128", "dev", "eth0"],
        words: &["eth0", "V6/128", "no such address"],
    },
    Break {
        what: "no IPv4 default route",
        ip: &["in", "route", "del", "default"],
        words: &["0.0.0.0/0", "10.1.0.1", "no such route"],
    },
    Break {
        what: "no IPv6 default route",
        ip: &["in", "-6", "route", "del", "default"],
        words: &["::/0", "fd00:1::1", "no such route"],
    },
    Break {
        what: "another IPv4 gateway",
        ip: &["in", "route", "replace", "default", "dev", "eth0"],
        words: &["0.0.0.0/0", "10.1.0.1", "no such route"],
    },
    Break {
        what: "no IPv6 route to the gateway",
        ip: &["in", "-6", "route", "del", "fd00:1::1", "dev", "eth0"],
        words: &["fd00:1::1/128", "no such route"],
    },
    Break {
        what: "another IPv4 neighbour",
        ip: &[
            "in",
            "neigh",
            "replace",
            "10.1.0.1",
            "lladdr",
            "02:00:00:00:00:0d",
            "dev",
            "eth0",
            "nud",
            "permanent",
        ],
        words: &["neighbour 10.1.0.1", "02:00:00:00:00:0d"],
    },
    Break {
        what: "another IPv6 neighbour",
        ip: &[
            "in",
            "neigh",
            "replace",
            "fd00:1::1",
            "lladdr",
            "02:00:00:00:00:0d",
            "dev",
            "eth0",
            "nud",
            "permanent",
        ],
        words: &["neighbour fd00:1::1", "02:00:00:00:00:0d"],
    },
    Break { what: "no mark", ip: &["link", "set", "HOST", "alias", ""], words: &["HOST", "mark"] },
];

#[test]
#[ignore = "needs root: a node in namespaces of its own"]
fn a_check_names_every_difference() {
    let node = Node::start();
    let mut broken = Vec::new();
    for (n, Break { what, ip, words }) in BREAKS.iter().enumerate() {
        let pod = node.add(&format!("p{n}"));
        let (v4, v6) = (pod.v4.to_string(), pod.v6.to_string());
        let said = |text: &str| {
            text.replace("HOST", pod.host_link()).replace("V4", &v4).replace("V6", &v6)
        };
        let mut arguments: Vec<String> = Vec::new();
        for word in *ip {
            match *word {
                "in" => arguments.extend(["-n".into(), pod.pod.name().into()]),
                word => arguments.push(said(word)),
            }
        }
        node.plugin.check(&pod.attachment, &pod.result).unwrap();
        output(&node.host, "ip", &arguments.iter().map(String::as_str).collect::<Vec<_>>());
        let words: Vec<_> = words.iter().map(|word| said(word)).collect();
        assert_named(&node, &pod, what, &words);
        broken.push(pod);
    }
    // The one without a mark is nobody's now, and DEL leaves it alone.
    let unmarked = broken.last().unwrap().host_link().to_owned();
    for pod in &broken {
        node.delete(pod);
    }
    let there = node.host.run(podwire_lab::interface::names).unwrap();
    if there.contains(&unmarked) {
        output(&node.host, "ip", &["link", "del", &unmarked]);
    }
    node.assert_clean();
}

#[track_caller]
fn assert_named(node: &Node, pod: &TestPod, what: &str, words: &[String]) {
    let error = node.plugin.check(&pod.attachment, &pod.result).unwrap_err();
    assert_eq!(error.cni_code(), Some(103), "{what}: {error}");
    let text = error.to_string();
    for word in words {
        assert!(text.contains(word.as_str()), "{what}: no {word:?} in {text}");
    }
}

fn open<M: Send>(node: &Node, open: impl FnOnce(String) -> M + Send, name: &str) -> M {
    node.host.run(|| open(format!("{BPFFS}/maps/{name}")))
}

#[test]
#[ignore = "needs root: a node in namespaces of its own"]
fn a_check_looks_into_the_datapath() {
    let node = Node::start();
    let pod = node.add("a");
    let ipcache = open(&node, |p| HashMap::<Address, IpcacheEntry>::open(p).unwrap(), map::IPCACHE);
    let links = open(&node, |p| HashMap::<u32, u32>::open(p).unwrap(), map::LINKS);
    let slots = open(&node, |p| Array::<Slot>::open(p).unwrap(), map::SLOTS);
    let well = || node.plugin.check(&pod.attachment, &pod.result).unwrap();
    let named = |what: &str, words: &[&str]| {
        let words: Vec<_> = words.iter().map(|word| (*word).to_owned()).collect();
        assert_named(&node, &pod, what, &words);
    };
    for address in pod.addresses() {
        let (key, text) = (Address::from(address), address.to_string());
        let entry = ipcache.get(&key).unwrap().unwrap();
        ipcache.remove(&key).unwrap();
        named("no address", &["ipcache", &text, "nothing"]);
        let other = IpcacheEntry { slot: entry.slot + 1, ..entry };
        ipcache.insert(&key, &other).unwrap();
        named("another slot", &["ipcache", &text, &format!("found slot {}", other.slot)]);
        let stale = IpcacheEntry { generation: entry.generation - 2, ..entry };
        ipcache.insert(&key, &stale).unwrap();
        named("an old generation", &["ipcache", &text, "another generation"]);
        ipcache.insert(&key, &entry).unwrap();
        well();
    }
    let (&(ifindex, number), 1) = (&links.entries().unwrap()[0], links.entries().unwrap().len())
    else {
        panic!("one endpoint has one link");
    };
    links.remove(&ifindex).unwrap();
    named("no link", &[&format!("interface {ifindex}"), "nothing"]);
    links.insert(&ifindex, &number).unwrap();
    well();
    let slot = slots.get(number).unwrap();
    for (what, wrong) in [
        ("an empty slot", Slot { generation: slot.generation + 1, ..slot }),
        ("another way of delivery", Slot { flags: 1, ..slot }),
        ("another interface", Slot { ifindex: slot.ifindex + 1, ..slot }),
        ("another MAC", Slot { to_pod: slot.from_pod, ..slot }),
    ] {
        slots.set(number, &wrong).unwrap();
        named(what, &[&format!("slot {number}")]);
        slots.set(number, &slot).unwrap();
        well();
    }
    node.delete(&pod);
    node.assert_clean();
}

#[test]
#[ignore = "needs root: a node in namespaces of its own; needs iproute2's tc"]
fn a_check_names_a_program_that_is_not_attached() {
    let node = Node::start();
    // Links, whose end no event tells of: that stays.
    let mut config = node.plugin.config().clone();
    config["disciplines"] = "others".into();
    let by_link = Cni::new(&node.host, binary("podwire-cni").unwrap(), config);
    for (end, program) in [("ingress", "from_container"), ("egress", "to_container")] {
        let pod = node.host.add_pod(end).unwrap();
        let to = attachment(&pod);
        let result = by_link.add(&to).unwrap();
        let link = result["interfaces"][0]["name"].as_str().unwrap();
        by_link.check(&to, &result).unwrap();
        let pin = format!("{BPFFS}/links/{link}/{end}");
        // The agent may still be at what it was told of the link itself, and attach it once more.
        let mut error = String::new();
        until("nobody attaches it again", || {
            // Not there: it was removed just now.
            let _ = node.host.run(|| fs::remove_file(&pin));
            by_link.check(&to, &result).is_err_and(|found| {
                error = found.to_string();
                true
            })
        });
        for word in [program, link, "not attached"] {
            assert!(error.contains(word), "{end}: no {word} in {error}");
        }
        by_link.del(&to, Some(&result)).unwrap();
        node.host.remove_pod_netns(end).unwrap();
    }
    // Filters, which the agent attaches again as soon as it is told that they are gone: a CHECK that
    // is quick enough sees it, and a later one sees it whole.
    let pod = node.add("a");
    for (end, program) in [("ingress", "from_container"), ("egress", "to_container")] {
        let mut named = false;
        for _ in 0..100 {
            let link = pod.host_link();
            let filters = ["filter", "del", "dev", link, end];
            output(&node.host, "tc", &filters);
            let checked = node.plugin.check(&pod.attachment, &pod.result);
            let word =
                format!("program {program} at {link}: expected attached, found not attached");
            named |= checked.is_err_and(|error| error.to_string().contains(&word));
            until("the agent has attached it again", || {
                node.plugin.check(&pod.attachment, &pod.result).is_ok()
            });
            if named {
                break;
            }
        }
        assert!(named, "no CHECK of a hundred saw that {program} was gone");
    }
    node.delete(&pod);
    node.assert_clean();
}

/// What STATUS answers: its code, or 0, and what it says.
fn status(what: &str, node: &Node) -> (u64, String) {
    let output = plugin(node, "podnet").call(
        "STATUS",
        &[],
        plugin(node, "podnet").config().to_string().as_bytes(),
    );
    let output = output.unwrap();
    println!("STATUS, {what}: {:.1} ms", output.elapsed.as_secs_f64() * 1e3);
    match output.success("STATUS") {
        Ok(()) => (0, String::new()),
        Err(error) => (error.cni_code().unwrap(), error.to_string()),
    }
}

#[test]
#[ignore = "needs root: a node in namespaces of its own"]
fn status_says_whether_pods_can_come_and_whether_those_there_are_well() {
    let mut node = Node::start();
    let is = |what: &str, node: &Node, code: u64, words: &[&str]| {
        let (found, text) = status(what, node);
        assert_eq!(found, code, "{what}: {text}");
        for word in words {
            assert!(text.contains(word), "{what}: no {word} in {text}");
        }
    };
    is("all well", &node, 0, &[]);
    let pod = node.add("a");
    is("with a pod", &node, 0, &[]);

    let forward = "/proc/sys/net/ipv4/ip_forward";
    node.host.run(|| fs::write(forward, "0")).unwrap();
    is("no forwarding", &node, 51, &["ip_forward"]);
    node.host.run(|| fs::write(forward, "1")).unwrap();
    is("forwarding again", &node, 0, &[]);
    output(&node.host, "ip", &["link", "set", "podwire_host", "down"]);
    is("the router pair is down", &node, 51, &["podwire_host"]);
    node.agent.kill().unwrap();
    is("the agent is away", &node, 50, &["agent"]);
    node.agent.start_again().unwrap();
    is("the agent has set it up again", &node, 0, &[]);
    node.delete(&pod);
    node.assert_clean();

    let few = Node::start_with(&["--slots", "1"]);
    is("a free slot", &few, 0, &[]);
    let pod = few.add("a");
    is("no free slot", &few, 50, &["places", "--slots"]);
    few.delete(&pod);
    is("a free slot again", &few, 0, &[]);

    let small = Node::start_with(&["--pod-cidr", "10.1.0.0/30", "--pod-cidr", "fd00:1::/64"]);
    is("addresses left", &small, 0, &[]);
    let mut pods = Vec::new();
    while status("filling up", &small).0 == 0 {
        pods.push(small.add(&format!("p{}", pods.len())));
        assert!(pods.len() < 4);
    }
    is("no address left", &small, 50, &["10.1.0.0/30", "no address"]);
    let refused = small.host.add_pod("one-more").unwrap();
    let error = small.plugin.add(&attachment(&refused)).unwrap_err();
    assert_eq!(error.cni_code(), Some(101), "STATUS told the truth: {error}");
    for pod in &pods {
        small.delete(pod);
    }
    is("addresses that rest are given when nothing else is left", &small, 0, &[]);
}

#[test]
#[ignore = "needs root: a node in namespaces of its own, with 1,000 calls"]
fn an_agent_that_is_away_finds_a_thousand_notes() {
    const NOTED: usize = 1000;
    let mut node = Node::start();
    let pods = ["a", "b", "c"].map(|name| node.add(name));
    node.agent.kill().unwrap();

    let other = node.host.add_pod("other").unwrap();
    let before = node.host.inventory().unwrap();
    let refused = node.plugin.verb("ADD", &attachment(&other), None).unwrap();
    println!("ADD without an agent: {:.1} ms", refused.elapsed.as_secs_f64() * 1e3);
    assert_eq!(refused.json("ADD").unwrap_err().cni_code(), Some(11));
    assert_eq!(node.host.inventory().unwrap().since(&before), [] as [&str; 0]);
    assert_eq!(other.run(podwire_lab::interface::names).unwrap(), ["lo"]);
    assert_eq!(files(&node.host, NOTES).len(), 0);

    let ids = (0..NOTED).map(|n| format!("container-{n}"));
    let strangers = ids.map(|id| Attachment::new(id, ""));
    let all: Vec<_> = pods[..2].iter().map(|pod| pod.attachment.clone()).chain(strangers).collect();
    let start = std::time::Instant::now();
    at_once(8, &all, |to| node.plugin.del(to, None).unwrap());
    println!("{} DELs without an agent: {:.1} s", all.len(), start.elapsed().as_secs_f64());
    assert_eq!(files(&node.host, NOTES).len(), NOTED + 2);
    for pod in &pods[..2] {
        assert_eq!(pod.pod.run(podwire_lab::interface::names).unwrap(), ["lo"]);
    }
    let router: [IpAddr; 1] = ["10.1.0.1".parse().unwrap()];
    assert_reach(&pods[2].pod, &router);

    let start = std::time::Instant::now();
    node.agent.start_again().unwrap();
    println!("a start with as many notes: {:.1} s", start.elapsed().as_secs_f64());
    let ids: Vec<_> = node.ask(Client::endpoints).into_iter().map(|one| one.id).collect();
    assert_eq!(ids, [pods[2].id()]);
    assert_eq!(node.ask(Client::leases).len(), 1);
    assert!(files(&node.host, NOTES).is_empty());
    let new = node.attach(other);
    assert_reach(&new.pod, &pods[2].addresses());
    for pod in pods.iter().chain([&new]) {
        node.delete(pod);
    }
    node.assert_clean();
}
