//! The agent on a real kernel, in a node of its own.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::fs;
use std::sync::mpsc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use podwire_api::{
    Client, Delivery, Disciplines, EndpointId, EndpointRequest, ErrorCode, Interface, LeaseRequest,
    Mac, Removed, Status, pending_del_dir, socket_path,
};
use podwire_endpoint::{Attached, Attachment, attach};
use podwire_lab::{Host, Inventory, Pod};
use podwire_netlink::{IfName, Link, LinkChange, Netlink, NewLink};
use podwire_netns::Netns;
use podwire_node::{
    Agent, AttachChoice, Config, Error, Places, leftovers, parse_cluster_pool, runtime,
};
use tokio::sync::oneshot;

fn config() -> Config {
    let cidrs = ["10.1.0.0/24", "fd00:1::/64"].map(|cidr| cidr.parse().unwrap());
    Config::new("n1".parse().unwrap(), cidrs.to_vec())
}

/// An agent in a host, on threads of this process.
struct Running {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Running {
    fn start(host: &Host, config: Config) -> Result<Self, Error> {
        let host = host.clone();
        let (stop, stopped) = oneshot::channel();
        let (started, start) = mpsc::channel();
        let thread = thread::spawn(move || {
            host.run(move || {
                let agent = match Agent::start(&config) {
                    Ok(agent) => agent,
                    Err(error) => return started.send(Err(error)).unwrap(),
                };
                started.send(Ok(())).unwrap();
                let stop = async { drop(stopped.await) };
                runtime().unwrap().block_on(agent.run(stop)).unwrap();
            });
        });
        start.recv().unwrap()?;
        Ok(Self { stop: Some(stop), thread: Some(thread) })
    }

    fn stop(mut self) {
        drop(self.stop.take());
        self.thread.take().unwrap().join().unwrap();
    }
}

/// What a test does after a failed assertion: the agent ends with its host.
impl Drop for Running {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn client() -> Client {
    Client::new(socket_path("/run/podwire".as_ref()))
}

fn ask<T: Send>(
    host: &Host,
    question: impl FnOnce(&Client) -> Result<T, podwire_api::Error> + Send,
) -> T {
    host.run(|| question(&client())).unwrap()
}

fn id(container: &str) -> EndpointId {
    EndpointId::new(container, "eth0").unwrap()
}

fn plug(host: &Host, pod: &Pod) -> Attached {
    host.run(|| {
        let netns = Netns::open(pod.path()).unwrap();
        let attachment =
            Attachment { network: Some("podnet".into()), ..Attachment::new(id(pod.name())) };
        attach(&client(), &netns, &attachment).unwrap()
    })
}

fn link(host: &Host, name: &str) -> Option<Link> {
    let name: IfName = name.parse().unwrap();
    host.run(|| Netlink::open().unwrap().find_link(name).unwrap())
}

fn until(what: &str, mut happened: impl FnMut() -> bool) {
    let patience = Instant::now() + Duration::from_secs(20);
    while !happened() {
        assert!(Instant::now() < patience, "it never came to pass that {what}");
        thread::sleep(Duration::from_millis(10));
    }
}

/// What stands once the kernel has made the local route of the router's IPv6 address, which it does
/// in a work queue.
fn settled(host: &Host) -> Inventory {
    let local = "route fd000001000000000000000000000001/80 ";
    let there = || host.inventory().unwrap().iter().any(|thing| thing.starts_with(local));
    until("the router's address has its local route", there);
    host.inventory().unwrap()
}

/// What came since `earlier`. The kernel adds the multicast route of a link at a time of its own,
/// when it notices the carrier.
fn came_since(host: &Host, earlier: &Inventory) -> Vec<String> {
    let mut came = host.inventory().unwrap().since(earlier);
    came.retain(|thing| !thing.starts_with("route ff"));
    came
}

fn whats(status: &Status) -> Vec<&str> {
    status.problems.iter().map(|problem| problem.what.as_str()).collect()
}

#[test]
#[ignore = "needs root: a node in namespaces of its own"]
fn a_node_is_set_up_once() {
    let host = Host::new().unwrap();
    let agent = Running::start(&host, config()).unwrap();
    let ends = ["podwire_host", "podwire_net"].map(|name| link(&host, name).unwrap());
    assert!(ends.iter().all(|end| end.is_up() && end.is_veth()), "{ends:?}");
    assert_eq!(ends[0].alias.as_deref(), Some("podwire:n1:router"));
    assert_eq!(host.run(|| fs::read_to_string("/proc/sys/net/ipv4/ip_forward").unwrap()), "1\n");
    assert_eq!(ask(&host, Client::status).problems, []);
    let first = settled(&host);

    agent.stop();
    assert!(host.run(|| !socket_path("/run/podwire".as_ref()).exists()));
    let agent = Running::start(&host, config()).unwrap();
    let again = ["podwire_host", "podwire_net"].map(|name| link(&host, name).unwrap());
    assert_eq!(again, ends, "the second start changes nothing");
    assert_eq!(came_since(&host, &first), Vec::<String>::new());
    agent.stop();

    let mut other = config();
    other.mtu = Some(1400);
    other.router = vec!["10.1.0.254".parse().unwrap()];
    let agent = Running::start(&host, other).unwrap();
    assert_eq!(link(&host, "podwire_host").unwrap().mtu, 1400);
    let addresses = host.run(|| podwire_lab::interface::addresses("podwire_host").unwrap());
    let expected: BTreeSet<std::net::IpAddr> =
        BTreeSet::from(["10.1.0.254".parse().unwrap(), "fd00:1::1".parse().unwrap()]);
    assert_eq!(BTreeSet::from_iter(addresses), expected, "the former router address is gone");
    assert_eq!(ask(&host, Client::config).node.mtu, 1400);
    agent.stop();
}

#[test]
#[ignore = "needs root: a node in namespaces of its own"]
fn half_a_router_pair_is_made_whole() {
    let host = Host::new().unwrap();
    Running::start(&host, config()).unwrap().stop();
    let pod = host.add_pod("thief").unwrap();
    host.run(|| {
        // Moving one end away leaves the other alone.
        let status = host
            .command("ip")
            .args(["link", "set", "podwire_net", "netns", pod.name()])
            .status()
            .unwrap();
        assert!(status.success());
    });
    let agent = Running::start(&host, config()).unwrap();
    assert!(link(&host, "podwire_net").is_some());
    assert_eq!(ask(&host, Client::status).problems, []);
    agent.stop();
}

#[test]
#[ignore = "needs root: a node in namespaces of its own"]
fn links_and_routes_of_others_are_not_taken_over() {
    let host = Host::new().unwrap();
    let name: IfName = "podwire_host".parse().unwrap();
    host.run(|| Netlink::open().unwrap().create_link(&NewLink::bridge(name)).unwrap());
    let error = Running::start(&host, config()).map(drop).unwrap_err();
    assert!(matches!(error, Error::LinkRefused { .. }), "{error:?}");
    assert_eq!(link(&host, "podwire_host").unwrap().kind.unwrap().as_str(), "bridge");
    host.run(|| Netlink::open().unwrap().remove_link(name).unwrap());

    let route = ["route", "add", "10.1.0.0/24", "dev", "lo"];
    assert!(host.command("ip").args(route).status().unwrap().success());
    let error = Running::start(&host, config()).map(drop).unwrap_err();
    assert!(error.to_string().contains("routes"), "{error:?}");
    assert!(podwire_node::explain(&error).contains("10.1.0.0/24"), "{error:?}");
    let shown = host.command("ip").args(["route", "show", "10.1.0.0/24"]).output().unwrap();
    assert!(String::from_utf8_lossy(&shown.stdout).contains("dev lo"));
}

#[test]
#[ignore = "needs root: a node in namespaces of its own"]
fn there_is_one_agent_at_a_time() {
    let host = Host::new().unwrap();
    let agent = Running::start(&host, config()).unwrap();
    let second = Running::start(&host, config()).map(drop).unwrap_err();
    assert!(matches!(second, Error::AlreadyRunning { .. }), "{second:?}");
    let mut elsewhere = config();
    elsewhere.run_dir = "/run/elsewhere".into();
    let third = Running::start(&host, elsewhere).map(drop).unwrap_err();
    assert!(matches!(third, Error::StoreLocked { .. }), "{third:?}");
    ask(&host, Client::status);
    agent.stop();
}

#[test]
#[ignore = "needs root: a node in namespaces of its own"]
fn endpoints_come_and_go() {
    let host = Host::new().unwrap();
    let agent = Running::start(&host, config()).unwrap();
    let empty = settled(&host);
    let pod = host.add_pod("c1").unwrap();
    let attached = plug(&host, &pod);
    assert_eq!(ask(&host, |agent| agent.endpoint(&id("c1"))), attached.endpoint);
    assert_eq!(ask(&host, Client::leases).len(), 1);
    assert_eq!(attached.endpoint.delivery, Delivery::Peer);
    assert_eq!(ask(&host, |agent| agent.delete_endpoint(&id("c1"))), Removed::Removed);
    assert_eq!(ask(&host, |agent| agent.delete_endpoint(&id("c1"))), Removed::Absent);
    assert_eq!(link(&host, &attached.endpoint.host_link), None);
    host.remove_pod_netns("c1").unwrap();
    assert_eq!(came_since(&host, &empty), Vec::<String>::new());
    agent.stop();
}

#[test]
#[ignore = "needs root: a node in namespaces of its own"]
fn real_links_without_the_mark_are_refused() {
    let host = Host::new().unwrap();
    let agent = Running::start(&host, config()).unwrap();
    let pod = host.add_pod("c1").unwrap();
    let endpoint = plug(&host, &pod).endpoint;
    // The same link without its mark is somebody else's.
    let name: IfName = endpoint.host_link.parse().unwrap();
    let unmark = LinkChange::of(name).alias("");
    host.run(|| Netlink::open().unwrap().change_link(&unmark).unwrap());
    let refusal = |request: EndpointRequest| {
        let refused = host.run(|| client().create_endpoint(&id("c2"), &request)).unwrap_err();
        refused.code().unwrap()
    };
    let request = EndpointRequest {
        host_link: id("c2").host_link(),
        ifindex: endpoint.ifindex,
        mac: endpoint.mac,
        host_mac: endpoint.host_mac,
        addresses: endpoint.addresses.clone(),
        network: None,
        pod: None,
        interface: Interface::Own,
        disciplines: Disciplines::Free,
    };
    assert_eq!(refusal(request.clone()), ErrorCode::Denied);
    let wrong_name = EndpointRequest { host_link: "lo".into(), ..request.clone() };
    assert_eq!(refusal(wrong_name), ErrorCode::Invalid);
    assert_eq!(refusal(EndpointRequest { mac: Mac([1; 6]), ..request }), ErrorCode::Invalid);
    // DEL does not delete what bears no mark.
    assert_eq!(ask(&host, |agent| agent.delete_endpoint(&id("c1"))), Removed::Removed);
    assert!(link(&host, &endpoint.host_link).is_some());
    agent.stop();
}

/// With pinned links at every endpoint, which a restart must find.
fn by_links() -> Config {
    let mut config = config();
    config.attach = AttachChoice::Tcx;
    config
}

#[test]
#[ignore = "needs root: a node in namespaces of its own"]
fn a_restart_puts_right_what_changed_meanwhile() {
    let host = Host::new().unwrap();
    let agent = Running::start(&host, by_links()).unwrap();
    let names = ["kept", "unplugged", "noted", "unpinned"];
    let attached = names.map(|name| plug(&host, &host.add_pod(name).unwrap()));
    let pinned = || host.run(|| fs::read_dir("/sys/fs/bpf/podwire/links").unwrap().count());
    until("programs are attached for good: four endpoints', the router's", || pinned() == 5);
    agent.stop();

    let host_link = |name: &str| -> IfName { id(name).host_link().parse().unwrap() };
    host.run(|| {
        let mut netlink = Netlink::open().unwrap();
        netlink.remove_link(host_link("unplugged")).unwrap();
        // A link of ours that no endpoint goes with, as a killed ADD leaves it.
        let stray = NewLink::veth(
            podwire_netlink::Birth::named(host_link("stray")),
            podwire_netlink::Birth::named("peer".parse().unwrap()),
        );
        netlink.create_link(&stray).unwrap();
        let mark = format!("podwire:n1:{}", id("stray"));
        netlink.change_link(&LinkChange::of(host_link("stray")).alias(mark)).unwrap();
        let notes = pending_del_dir("/run/podwire".as_ref());
        let note = serde_json::json!({"container_id": "noted", "ifname": "eth0"});
        fs::write(notes.join(id("noted").host_link()), note.to_string()).unwrap();
        let pins = format!("/sys/fs/bpf/podwire/links/{}", id("unpinned").host_link());
        fs::remove_file(format!("{pins}/ingress")).unwrap();
        fs::remove_file(format!("{pins}/egress")).unwrap();
    });

    let agent = Running::start(&host, by_links()).unwrap();
    let status = ask(&host, Client::status);
    let repaired: Vec<&str> = status.repairs.iter().map(|repair| repair.object.as_str()).collect();
    assert_eq!(repaired.len(), 4, "{:?}", status.repairs);
    let endpoints = ask(&host, Client::endpoints);
    assert_eq!(endpoints, [attached[0].endpoint.clone(), attached[3].endpoint.clone()]);
    for gone in ["unplugged", "noted", "stray"] {
        assert_eq!(link(&host, &id(gone).host_link()), None, "{gone}");
        assert!(repaired.iter().any(|object| object.contains(gone)), "{gone}: {repaired:?}");
    }
    until("they are pinned again: two endpoints', the router's", || pinned() == 3);
    assert_eq!(ask(&host, Client::leases).len(), 2);
    assert!(host.run(|| fs::read_dir("/run/podwire/pending-del").unwrap().next().is_none()));
    agent.stop();

    let agent = Running::start(&host, by_links()).unwrap();
    assert_eq!(ask(&host, Client::status).repairs, []);
    agent.stop();
}

#[test]
#[ignore = "needs root: a node in namespaces of its own"]
fn a_gateway_that_a_pod_has_is_refused() {
    let host = Host::new().unwrap();
    let agent = Running::start(&host, config()).unwrap();
    let endpoint = plug(&host, &host.add_pod("c1").unwrap()).endpoint;
    agent.stop();
    let mut other = config();
    other.router = vec![endpoint.addresses[0]];
    let error = Running::start(&host, other).map(drop).unwrap_err();
    assert!(matches!(error, Error::RouterTaken { .. }), "{error:?}");
    let mut renamed = config();
    renamed.node = "n2".parse().unwrap();
    let error = Running::start(&host, renamed).map(drop).unwrap_err();
    assert!(matches!(error, Error::StoreOfAnotherNode { .. }), "{error:?}");
    let agent = Running::start(&host, config()).unwrap();
    assert_eq!(ask(&host, Client::endpoints), [endpoint]);
    agent.stop();
}

#[test]
#[ignore = "needs root: a node in namespaces of its own"]
fn a_vanished_link_leaves_the_datapath() {
    let host = Host::new().unwrap();
    let agent = Running::start(&host, config()).unwrap();
    let endpoint = plug(&host, &host.add_pod("c1").unwrap()).endpoint;
    let rows = || {
        host.run(|| {
            let tables = podwire_datapath::Tables::open("/sys/fs/bpf/podwire").unwrap();
            (tables.endpoints().unwrap().len(), tables.ipcache().unwrap().len())
        })
    };
    assert_eq!(rows(), (1, 4));
    let name: IfName = endpoint.host_link.parse().unwrap();
    host.run(|| Netlink::open().unwrap().remove_link(name).unwrap());
    until("the endpoint's rows are gone", || rows() == (0, 2));
    assert_eq!(ask(&host, Client::leases).len(), 1, "its runtime has not said DEL");
    assert_eq!(ask(&host, |agent| agent.delete_endpoint(&id("c1"))), Removed::Removed);
    assert_eq!(ask(&host, Client::leases), []);
    agent.stop();
}

#[test]
#[ignore = "needs root: a node in namespaces of its own"]
fn many_at_a_time() {
    let host = Host::new().unwrap();
    let agent = Running::start(&host, config()).unwrap();
    let pods: Vec<Pod> =
        (0..64).map(|number| host.add_pod(&format!("c{number}")).unwrap()).collect();
    let (pods, host) = (&pods, &host);
    for chunk in pods.chunks(32) {
        thread::scope(|scope| {
            for pod in chunk {
                scope.spawn(|| plug(host, pod));
            }
        });
    }
    assert_eq!(ask(host, Client::endpoints).len(), 64);
    for chunk in pods.chunks(32) {
        thread::scope(|scope| {
            for pod in chunk {
                let delete = || ask(host, |agent| agent.delete_endpoint(&id(pod.name())));
                scope.spawn(move || assert_eq!(delete(), Removed::Removed));
            }
        });
    }
    let status = ask(host, Client::status);
    let pool = &status.pools[0].cidrs[0];
    assert_eq!((status.endpoints, pool.used, pool.cooling), (0, 0, 64));
    agent.stop();
}

#[test]
#[ignore = "needs root: a node in namespaces of its own"]
fn what_blocks_traffic_is_named() {
    let host = Host::new().unwrap();
    let agent = Running::start(&host, config()).unwrap();
    let write = |key: &str, value: &str| {
        host.run(|| fs::write(format!("/proc/sys/net/{key}"), value).unwrap());
    };
    write("ipv4/ip_forward", "0");
    assert_eq!(whats(&ask(&host, Client::status)), ["net.ipv4.ip_forward is 0"]);
    write("ipv4/ip_forward", "1");
    let name: IfName = "podwire_net".parse().unwrap();
    host.run(|| Netlink::open().unwrap().change_link(&LinkChange::of(name).down()).unwrap());
    assert_eq!(whats(&ask(&host, Client::status)), ["podwire_net is missing or down"]);
    agent.stop();
    // And a restart puts it right.
    let agent = Running::start(&host, config()).unwrap();
    assert_eq!(whats(&ask(&host, Client::status)), Vec::<&str>::new());
    agent.stop();
}

#[test]
#[ignore = "needs root: a node in namespaces of its own; needs nftables"]
fn a_dropping_firewall_is_named_unless_it_knows_pods() {
    let host = Host::new().unwrap();
    if podwire_lab::allowed_missing("nftables", || host.command("nft").arg("-v").output().is_ok()) {
        return;
    }
    let agent = Running::start(&host, config()).unwrap();
    let nft = |script: &str| {
        assert!(host.command("nft").arg(script).status().unwrap().success(), "{script}");
    };
    nft("add table ip filter");
    nft("add chain ip filter FORWARD { type filter hook forward priority 0; policy drop; }");
    nft("add chain ip filter INPUT { type filter hook input priority 0; policy drop; }");
    let status = ask(&host, Client::status);
    assert_eq!(status.problems.len(), 1, "{status:?}");
    assert!(status.problems[0].what.contains("FORWARD"), "{status:?}");
    nft("insert rule ip filter FORWARD iifname podwire_host accept");
    assert_eq!(whats(&ask(&host, Client::status)), Vec::<&str>::new());
    agent.stop();
}

#[test]
#[ignore = "needs root: a node in namespaces of its own"]
fn cleanup_leaves_nothing_of_ours_and_all_of_theirs() {
    let host = Host::new().unwrap();
    let places = Places {
        state_dir: "/var/lib/podwire".into(),
        run_dir: "/run/podwire".into(),
        bpffs: "/sys/fs/bpf/podwire".into(),
    };
    let before = host.inventory().unwrap();
    let mut config = config();
    config.cluster_pools = vec![parse_cluster_pool("blue=10.64.0.0/16@26").unwrap()];
    let agent = Running::start(&host, config).unwrap();
    let refused = host.run(|| leftovers(&places)).unwrap_err();
    assert!(refused.is_already_running(), "{refused:?}");
    plug(&host, &host.add_pod("c1").unwrap());
    agent.stop();
    host.run(|| {
        fs::write("/sys/fs/bpf/podwire/../podwire_other", "").unwrap_err();
        let name: IfName = "pwaaaaaaaaaaaaa".parse().unwrap();
        Netlink::open().unwrap().create_link(&NewLink::bridge(name)).unwrap();
        fs::write("/var/lib/podwire/other", "").unwrap();
        fs::write("/run/podwire/pending-del/other", "").unwrap();
        assert!(fs::exists("/var/lib/podwire/blocks.redb").unwrap());
        for leftover in leftovers(&places).unwrap() {
            leftover.remove().unwrap();
        }
    });
    host.remove_pod_netns("c1").unwrap();
    assert_eq!(came_since(&host, &before), ["link pwaaaaaaaaaaaaa"]);
    host.run(|| {
        assert!(fs::exists("/var/lib/podwire/other").unwrap());
        assert!(fs::exists("/run/podwire/pending-del/other").unwrap());
        assert!(!fs::exists("/var/lib/podwire/podwire.redb").unwrap());
        assert!(!fs::exists("/var/lib/podwire/blocks.redb").unwrap());
        assert!(!fs::exists("/sys/fs/bpf/podwire").unwrap());
    });
}

#[test]
#[ignore = "needs root: a node in namespaces of its own"]
fn a_lease_is_given_back() {
    let host = Host::new().unwrap();
    let agent = Running::start(&host, config()).unwrap();
    let wanted = vec!["10.1.0.77".parse().unwrap()];
    let request = LeaseRequest { addresses: wanted, ..LeaseRequest::new(id("c1")) };
    let lease = ask(&host, |agent| agent.lease(&request));
    assert_eq!(lease.addresses[0].to_string(), "10.1.0.77/32");
    assert_eq!(ask(&host, |agent| agent.release(&id("c1"))), Removed::Removed);
    assert_eq!(ask(&host, |agent| agent.release(&id("c1"))), Removed::Absent);
    agent.stop();
}
