//! podwire before and after other plugins, as `docs/chaining.md` tells operators to set it up: the
//! lists are that page's, run as a container runtime runs them, with Debian's plugins.

#![allow(clippy::print_stdout, reason = "what a test measured is worth knowing")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod network;
mod node;

use std::{
    fs,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use network::{
    Member, Net, answers, are_missing, args, assert_node_reaches, assert_reach, files, guide,
    output, request, until_answered,
};
use node::{Node, TestPod, until};
use podwire_api::{Client, Delivery, Interface};
use podwire_cni::{SpecVersion, types::Success};
use podwire_datapath::abi::{Hook, Reason};
use podwire_lab::{
    Host, Pod, interface,
    probe::{EchoReceiver, FrameSocket, TcpEcho, TcpSink, TcpTransfer, frame::Link, tcp_flood},
};
use podwire_netlink::{IfIndex, IfName, LinkChange, Netlink};
use serde_json::{Value, json};

const ROUTER: [&str; 2] = ["10.1.0.1", "fd00:1::1"];
const NOTES: &str = "/run/podwire/pending-del";

fn routers() -> [IpAddr; 2] {
    ROUTER.map(|router| router.parse().unwrap())
}

/// Who sends or receives.
#[derive(Clone, Copy)]
enum Place<'p> {
    Node(&'p Host),
    Pod(&'p Pod),
}

impl Place<'_> {
    fn run<T: Send>(self, f: impl FnOnce() -> T + Send) -> T {
        match self {
            Self::Node(host) => host.run(f),
            Self::Pod(pod) => pod.run(f),
        }
    }
}

/// All bytes come back.
fn transfer(from: Place<'_>, to: SocketAddr) -> bool {
    let Ok(transfer) = from.run(|| TcpTransfer::start(to)) else { return false };
    until("some bytes have come back", || transfer.returned() > 100_000);
    transfer.stop().is_complete()
}

/// Megabits per second that one connection carries.
fn goodput(from: Place<'_>, to: Place<'_>, address: IpAddr) -> f64 {
    let sink = to.run(|| TcpSink::start(SocketAddr::new(address, 0))).unwrap();
    let flood = || tcp_flood(sink.address(), Duration::from_millis(800));
    from.run(flood).unwrap().bits_per_second() / 1e6
}

fn set(host: &Host, sysctl: &str, value: &str) {
    host.run(|| fs::write(format!("/proc/sys/{sysctl}"), value)).unwrap();
}

/// The host's end of an attached interface.
fn host_link(node: &Node, member: &Member) -> podwire_netlink::Link {
    let name: IfName = member.endpoint(node).host_link.parse().unwrap();
    node.host.run(|| Netlink::open().unwrap().link(name)).unwrap()
}

#[test]
#[ignore = "needs root: a node in namespaces of its own; needs containernetworking-plugins"]
fn portmap_publishes_a_port_to_node_and_pods() {
    if are_missing() {
        return;
    }
    let node = Node::start();
    let net = Net::of_guide(&node, "ports");
    let published = json!({
        "portMappings": [{ "hostPort": 8080, "containerPort": 80, "protocol": "tcp" }],
    });
    let (server, client) = (net.add_with("server", &published), net.add("client"));
    for (own, router) in server.addresses().into_iter().zip(routers()) {
        let echo = server.pod.run(|| TcpEcho::start(SocketAddr::new(own, 80))).unwrap();
        let published = SocketAddr::new(router, 8080);
        assert!(transfer(Place::Pod(&client.pod), published), "{published} from a pod");
        assert!(transfer(Place::Pod(&server.pod), published), "{published} from the pod itself");
        assert!(transfer(Place::Node(&node.host), published), "{published} from the node");
        assert!(transfer(Place::Pod(&client.pod), echo.address()), "without the mapping");
    }
    // By itself: portmap 1.1.1 looks for the rules of each family in the tables of both.
    net.plugin(0).check(&server.attachment(), &server.result_json(&net)).unwrap();
    net.check(&client).unwrap();
    assert_eq!(node.drops(), [] as [&str; 0]);
    net.delete(&server);
    net.delete(&client);
    let rules = output(&node.host, "iptables-save", &["-t", "nat"]);
    assert!(!rules.contains(&server.addresses()[0].to_string()), "{rules}");
    assert_clean(&node, &net);
}

#[test]
#[ignore = "needs root: a node in namespaces of its own; needs containernetworking-plugins"]
fn bandwidth_limits_what_a_pod_sends_and_what_it_receives() {
    if are_missing() {
        return;
    }
    const INGRESS: f64 = 20.0;
    const EGRESS: f64 = 40.0;
    for name in ["limits", "fixed-limits"] {
        let host = Host::new().unwrap();
        // As systemd sets it on many machines.
        set(&host, "net/ipv4/conf/all/rp_filter", "0");
        set(&host, "net/ipv4/conf/default/rp_filter", "2");
        let mut node = Node::start_in(host, &[]);
        let net = Net::of_guide(&node, name);
        let limits = match name {
            "limits" => json!({ "bandwidth": {
                "ingressRate": 20_000_000, "ingressBurst": 400_000,
                "egressRate": 40_000_000, "egressBurst": 400_000,
            }}),
            _ => json!({}),
        };
        let limited = net.add_with("limited", &limits);
        let (a, b) = (node.add("a"), node.add("b"));
        until("the limits are noticed", || limited.endpoint(&node).delivery == Delivery::Stack);
        net.check(&limited).unwrap();

        // A machine with much else to do may be slow at times; faster than the limit it never is.
        let within = |what: &str, limit: f64, measure: &dyn Fn() -> f64| {
            let reached = (0..5).any(|_| {
                let found = measure();
                println!("{name}: {what}: {found:.1} Mbit/s of {limit}");
                assert!(found < 1.3 * limit, "{what}: {found} of {limit}");
                found > 0.4 * limit
            });
            assert!(reached, "{what}: slower than {limit}");
        };
        let unlimited = |what: &str, measure: &dyn Fn() -> f64| {
            let reached = (0..5).any(|_| {
                let found = measure();
                println!("{name}: {what}: {found:.1} Mbit/s");
                found > 5.0 * EGRESS
            });
            assert!(reached, "{what}: limited");
        };
        let measure = |what: &str, node: &Node| {
            let (host, pod) = (Place::Node(&node.host), Place::Pod(&limited.pod));
            for ((own, other), router) in
                limited.addresses().into_iter().zip(a.addresses()).zip(routers())
            {
                let peer = Place::Pod(&a.pod);
                within(&format!("{what}, pod to {own}"), INGRESS, &|| goodput(peer, pod, own));
                within(&format!("{what}, {own} to pod"), EGRESS, &|| goodput(pod, peer, other));
                within(&format!("{what}, node to {own}"), INGRESS, &|| goodput(host, pod, own));
                within(&format!("{what}, {own} to node"), EGRESS, &|| goodput(pod, host, router));
            }
        };
        measure("at first", &node);
        for target in b.addresses() {
            let others = || goodput(Place::Pod(&a.pod), Place::Pod(&b.pod), target);
            unlimited(&format!("others, to {target}"), &others);
        }
        let targets: Vec<IpAddr> = a.addresses().into_iter().chain(routers()).collect();
        assert_reach(&limited.pod, &targets);
        // The stack does not tell pods of shorter ways.
        let learnt = output(&node.host, "ip", &["-n", "a", "neigh"]);
        assert_eq!(
            learnt.lines().filter(|line| !line.contains("PERMANENT")).count(),
            0,
            "{learnt}"
        );
        assert!(node.counted(Hook::FromContainer, Reason::PassedToLink) > 1000);
        assert_eq!(node.drops(), [] as [&str; 0]);

        if name == "limits" {
            node.agent.kill().unwrap();
            node.agent.start_again().unwrap();
            assert_eq!(limited.endpoint(&node).delivery, Delivery::Stack);
            net.check(&limited).unwrap();
            assert_reach(&limited.pod, &targets);
            for own in limited.addresses() {
                let to_limited = || goodput(Place::Pod(&a.pod), Place::Pod(&limited.pod), own);
                within("after a restart", INGRESS, &to_limited);
            }
            assert_reverse_path_filter_is_named(&node, &limited, &a);

            // With one limit, the other way stays short.
            let one =
                json!({ "bandwidth": { "ingressRate": 20_000_000, "ingressBurst": 400_000 } });
            let receiver = net.add_with("receiver", &one);
            until("the limit is noticed", || receiver.endpoint(&node).delivery == Delivery::Egress);
            let [peer, pod] = [&a.pod, &receiver.pod].map(Place::Pod);
            let own = receiver.addresses()[0];
            within("one limit, to the pod", INGRESS, &|| goodput(peer, pod, own));
            unlimited("one limit, from the pod", &|| goodput(pod, peer, a.v4));
            net.delete(&receiver);
        }
        assert_eq!(node.drops(), [] as [&str; 0]);
        for pod in [&a, &b] {
            node.delete(pod);
        }
        net.delete(&limited);
        assert_clean(&node, &net);
    }
}

/// A filter for all links, which no link's own setting can switch off, is told as what it is.
fn assert_reverse_path_filter_is_named(node: &Node, limited: &Member, other: &TestPod) {
    let problems = || node.cli(&["status"])["problems"].to_string();
    assert!(!problems().contains("rp_filter"), "{}", problems());
    for value in ["1", "2"] {
        set(&node.host, "net/ipv4/conf/all/rp_filter", value);
        assert!(problems().contains("net.ipv4.conf.all.rp_filter"), "{}", problems());
        assert!(!answers(&limited.pod, other.v4), "the kernel drops it");
    }
    set(&node.host, "net/ipv4/conf/all/rp_filter", "0");
    assert!(!problems().contains("rp_filter"), "{}", problems());
    assert!(answers(&limited.pod, other.v4));
}

#[test]
#[ignore = "needs root: a node in namespaces of its own; needs containernetworking-plugins"]
fn a_limit_without_tcx_is_refused_and_undone() {
    if are_missing() {
        return;
    }
    let node = Node::start_with(&["--attach", "tc"]);
    let net = Net::of_guide(&node, "fixed-limits");
    let pod = node.host.add_pod("a").unwrap();
    let error = net.try_add(&request(&pod)).unwrap_err();
    assert!(error.to_string().contains("TCX"), "{error}");
    net.try_del(&request(&pod)).unwrap();
    node.host.remove_pod_netns("a").unwrap();
    assert_clean(&node, &net);
}

#[test]
#[ignore = "needs root: a node in namespaces of its own; needs containernetworking-plugins"]
fn a_mac_that_tuning_changes_is_followed() {
    if are_missing() {
        return;
    }
    let mut node = Node::start();
    let by_capability = Net::of_guide(&node, "tuned");
    let fixed = {
        let mut list = guide("tuned");
        list["name"] = "tuned-fixed".into();
        list["plugins"][1]["mac"] = "02:00:00:00:0a:02".into();
        Net::new(&node, list)
    };
    let other = node.add("other");
    let a = by_capability.add_with("a", &json!({ "mac": "02:00:00:00:0a:01" }));
    let b = fixed.add("b");
    for (net, member, mac) in
        [(&by_capability, &a, "02:00:00:00:0a:01"), (&fixed, &b, "02:00:00:00:0a:02")]
    {
        let found = member.pod.run(|| interface::mac("eth0")).unwrap();
        let text = found.map(|octet| format!("{octet:02x}")).join(":");
        assert_eq!(text, mac);
        let [.., inside] = &member.result.interfaces[..] else { panic!("no interface") };
        assert_eq!(inside.mac.as_deref(), Some(mac), "the list's result has the new one");
        for target in other.addresses() {
            until_answered(&member.pod, target);
        }
        assert_reach(&member.pod, &routers());
        assert_reach(&other.pod, &member.addresses());
        assert_node_reaches(&node.host, &member.addresses());
        assert_eq!(mac_of(&node, member), mac);
        net.check(member).unwrap();
    }
    node.agent.kill().unwrap();
    node.agent.start_again().unwrap();
    assert_eq!(mac_of(&node, &a), "02:00:00:00:0a:01");
    assert_reach(&a.pod, &other.addresses());
    assert_reach(&other.pod, &b.addresses());
    by_capability.check(&a).unwrap();

    // Changed while nobody watches.
    node.agent.kill().unwrap();
    let set = ["-n", "a", "link", "set", "eth0", "address", "02:00:00:00:00:0b"];
    output(&node.host, "ip", &set);
    node.agent.start_again().unwrap();
    until_answered(&a.pod, other.v4);
    until("the record says it", || mac_of(&node, &a) == "02:00:00:00:00:0b");
    assert_reach(&other.pod, &a.addresses());

    node.delete(&other);
    by_capability.delete(&a);
    fixed.delete(&b);
    assert_clean(&node, &fixed);
}

fn mac_of(node: &Node, member: &Member) -> String {
    let list = node.cli(&["endpoint", "list"]);
    let rows = list.as_array().unwrap();
    let id = member.request.container_id.as_str();
    rows.iter().find(|row| row["container_id"] == id).unwrap()["mac"].as_str().unwrap().to_owned()
}

#[test]
#[ignore = "needs root: a node in namespaces of its own; needs containernetworking-plugins"]
fn firewall_and_podwire_go_together() {
    if are_missing() {
        return;
    }
    let node = Node::start();
    let net = Net::of_guide(&node, "guarded");
    let (a, b) = (net.add("a"), net.add("b"));
    let rules = output(&node.host, "iptables-save", &["-t", "filter"]);
    assert!(rules.contains(&a.addresses()[0].to_string()), "{rules}");
    assert_reach(&a.pod, &b.addresses());
    assert_reach(&a.pod, &routers());
    assert_node_reaches(&node.host, &a.addresses());
    net.check(&a).unwrap();
    assert_eq!(node.drops(), [] as [&str; 0]);
    for member in [&a, &b] {
        net.delete(member);
        for save in ["iptables-save", "ip6tables-save"] {
            let rules = output(&node.host, save, &["-t", "filter"]);
            let own = member.addresses().into_iter().find(|one| rules.contains(&one.to_string()));
            assert_eq!(own, None, "{rules}");
        }
    }
    assert_clean(&node, &net);
}

#[test]
#[ignore = "needs root: a node in namespaces of its own; needs containernetworking-plugins"]
fn a_wanted_mac_is_given_or_refused() {
    if are_missing() {
        return;
    }
    let node = Node::start();
    let net = Net::of_guide(&node, "ports");
    let other = node.add("other");
    let a = net.add_with("a", &json!({ "mac": "02:00:00:00:00:77" }));
    let b = {
        let pod = node.host.add_pod("b").unwrap();
        let mut request = request(&pod);
        request.args = args(&[("MAC", "02:00:00:00:00:78"), ("IgnoreUnknown", "1")]);
        let result = net.try_add(&request).unwrap();
        Member { pod, request, result }
    };
    for (member, last) in [(&a, 0x77), (&b, 0x78)] {
        let mac = member.pod.run(|| interface::mac("eth0")).unwrap();
        assert_eq!(mac, [2, 0, 0, 0, 0, last]);
        assert_reach(&member.pod, &other.addresses());
        assert_reach(&other.pod, &member.addresses());
        net.check(member).unwrap();
    }
    let pod = node.host.add_pod("c").unwrap();
    for wrong in ["nonsense", "02:00:00:00:00", "01:00:5e:00:00:01", "00:00:00:00:00:00"] {
        let mut by_capability = request(&pod);
        by_capability.capabilities = json!({ "mac": wrong }).as_object().unwrap().clone();
        let mut by_args = request(&pod);
        by_args.args = args(&[("MAC", wrong)]);
        for (request, code) in [(by_capability, 7), (by_args, 4)] {
            let error = net.try_add(&request).unwrap_err();
            assert_eq!(error.code().get(), code, "{wrong}: {error}");
            assert!(error.to_string().contains(wrong), "{error}");
            net.try_del(&request).unwrap();
        }
    }
    node.host.remove_pod_netns("c").unwrap();
    node.delete(&other);
    net.delete(&a);
    net.delete(&b);
    assert_clean(&node, &net);
}

/// The lists in which podwire comes after the plugin that makes the interface.
const AFTER: [&str; 2] = ["after-ptp", "after-bridge"];

#[test]
#[ignore = "needs root: a node in namespaces of its own; needs containernetworking-plugins"]
fn an_interface_of_another_plugin_is_adopted_and_given_back() {
    if are_missing() {
        return;
    }
    for (mode, name) in node::MODES.into_iter().flat_map(|mode| AFTER.map(|name| (mode, name))) {
        let what = format!("--attach {mode}, {name}");
        println!("{what}");
        let mut node = Node::start_with(&["--attach", mode]);
        let net = Net::of_guide(&node, name);
        let own = node.add("own");
        let (a, b) = (net.add("a"), net.add("b"));
        for member in [&a, &b] {
            let names: Vec<_> = member.result.interfaces.iter().map(|one| &one.name).collect();
            assert!(!names.iter().any(|name| name.starts_with("pw")), "{what}: {names:?}");
            let endpoint = member.endpoint(&node);
            assert_eq!(endpoint.interface, Interface::Adopted);
            assert_eq!(endpoint.network.as_deref(), Some(name));
            let mark = format!("podwire:node-1:+{}", member.id());
            assert_eq!(host_link(&node, member).alias, Some(mark));
        }
        // The kernel looks for a double of a new address before it answers for it: ptp and bridge leave it
        // at that for their own end.
        for (from, to) in [(&a.pod, &b), (&b.pod, &a), (&own.pod, &a), (&own.pod, &b)] {
            to.addresses().into_iter().for_each(|target| until_answered(from, target));
        }
        let all_reach = |node: &Node| {
            assert_reach(&a.pod, &b.addresses());
            assert_reach(&a.pod, &a.gateways());
            assert_reach(&a.pod, &routers());
            assert_node_reaches(&node.host, &a.addresses());
            assert_reach(&own.pod, &a.addresses());
            assert_reach(&b.pod, &own.addresses());
        };
        all_reach(&node);
        for (target, other) in b.addresses().into_iter().zip(own.addresses()) {
            let echo = b.pod.run(|| TcpEcho::start(SocketAddr::new(target, 0))).unwrap();
            assert!(transfer(Place::Pod(&a.pod), echo.address()), "{what}: {target}");
            assert!(transfer(Place::Pod(&own.pod), echo.address()), "{what}: {target}");
            let echo = own.pod.run(|| TcpEcho::start(SocketAddr::new(other, 0))).unwrap();
            assert!(transfer(Place::Pod(&a.pod), echo.address()), "{what}: {other}");
        }
        net.check(&a).unwrap();
        assert_eq!(node.drops(), [] as [&str; 0], "{what}");
        assert_spoofing_is_dropped(&node, &a, &b);

        node.agent.kill().unwrap();
        all_reach(&node);
        node.agent.start_again().unwrap();
        net.check(&a).unwrap();
        net.check(&b).unwrap();
        all_reach(&node);

        if mode == "tc" {
            let name = host_link(&node, &a).name.to_string();
            output(&node.host, "tc", &["filter", "del", "dev", &name, "ingress"]);
            until("the agent has attached it again", || net.check(&a).is_ok());
        }

        // In its own DEL, which comes first, podwire gives the interface back as it was.
        let link = host_link(&node, &a);
        net.plugin(1).del(&a.attachment(), Some(&a.result_json(&net))).unwrap();
        let left = node.host.run(|| Netlink::open().unwrap().link(link.index)).unwrap();
        assert_eq!(left.alias.unwrap_or_default(), "");
        assert_eq!(filters(&node, &left.name.to_string()), "", "{what}");
        assert_reach(&a.pod, &b.addresses());
        assert_reach(&own.pod, &a.addresses());
        net.plugin(1).del(&a.attachment(), None).unwrap();
        net.delete(&a);
        let gone = node.host.run(|| Netlink::open().unwrap().find_link(link.index)).unwrap();
        assert_eq!(gone, None, "its maker removed it");
        net.delete(&b);
        node.delete(&own);
        assert_clean(&node, &net);
    }
}

/// Programs at a link. A clsact discipline stays where there was one: it may carry others' filters.
fn filters(node: &Node, link: &str) -> String {
    let ends = ["ingress", "egress"];
    let of = |end| output(&node.host, "tc", &["filter", "show", "dev", link, end]);
    let pins = files(&node.host, &format!("/sys/fs/bpf/podwire/links/{link}"));
    ends.map(of).concat() + &pins.iter().map(|pin| pin.display().to_string()).collect::<String>()
}

fn assert_spoofing_is_dropped(node: &Node, a: &Member, b: &Member) {
    let link = host_link(node, a);
    let own = a.pod.run(|| interface::mac("eth0")).unwrap();
    let mut socket = a.pod.run(|| FrameSocket::open("eth0")).unwrap();
    let to = Link { from: own, to: link.mac.unwrap().octets() };
    let before = node.counted(Hook::FromContainer, Reason::SpoofedAddress);
    for (target, stolen) in b.addresses().into_iter().zip(["10.85.0.200", "fd85::200"]) {
        let stolen: IpAddr = stolen.parse().unwrap();
        let receiver = b.pod.run(|| EchoReceiver::icmp(target)).unwrap();
        socket.send(&to.echo_request(stolen, target, 99, 1, b"spoofed")).unwrap();
        assert_reach(&a.pod, &[target]);
        assert_eq!(receiver.arrivals().received(99), 0);
    }
    let after = node.counted(Hook::FromContainer, Reason::SpoofedAddress);
    assert_eq!(after - before, 2);
}

#[test]
#[ignore = "needs root: a node in namespaces of its own; needs containernetworking-plugins"]
fn the_result_of_the_maker_is_passed_on_as_it_is() {
    if are_missing() {
        return;
    }
    let node = Node::start();
    for name in AFTER {
        let net = Net::of_guide(&node, name);
        let pod = node.host.add_pod(name).unwrap();
        let to = podwire_lab::Attachment::new("c1", pod.path());
        let made = net.plugin(0).add(&to).unwrap();
        let passed = net.plugin(1).verb("ADD", &to, Some(&made)).unwrap().json("ADD").unwrap();
        // An empty part may be left out.
        let read = |value: &Value| Success::from_value(value.clone(), SpecVersion::V1_0_0).unwrap();
        assert_eq!(read(&passed), read(&made));
        let again = net.plugin(1).verb("ADD", &to, Some(&made)).unwrap().json("ADD");
        assert_eq!(again.unwrap_err().cni_code(), Some(102), "it is adopted already");
        net.plugin(1).del(&to, Some(&made)).unwrap();
        net.plugin(0).del(&to, Some(&made)).unwrap();
        node.host.remove_pod_netns(name).unwrap();
        assert_clean(&node, &net);
    }
}

#[test]
#[ignore = "needs root: a node in namespaces of its own; needs containernetworking-plugins"]
fn what_cannot_be_adopted_is_refused_and_left_alone() {
    if are_missing() {
        return;
    }
    let node = Node::start();
    let net = Net::of_guide(&node, "after-ptp");
    let pod = node.host.add_pod("a").unwrap();
    let to = podwire_lab::Attachment::new("c1", pod.path());
    let refused = |config: Option<(&str, Value)>, previous: &Value, code: u64, why: &str| {
        let plugin = net.plugin(1);
        let mut with = plugin.config().clone();
        if let Some((key, value)) = config {
            with[key] = value;
        }
        let binary = podwire_lab::binary("podwire-cni").unwrap();
        let plugin = podwire_lab::Cni::new(&node.host, binary, with);
        let error = plugin.verb("ADD", &to, Some(previous)).unwrap().json("ADD").unwrap_err();
        assert_eq!(error.cni_code(), Some(code), "{error}");
        assert!(error.to_string().contains(why), "no {why:?} in {error}");
    };
    let made = net.plugin(0).add(&to).unwrap();
    let mac = json!({ "mac": "02:00:00:00:00:77" });
    refused(Some(("runtimeConfig", mac)), &made, 2, "the interface is made already");
    refused(Some(("ipam", json!({ "type": "static" }))), &made, 2, "addresses already");
    let mut without = made.clone();
    without["ips"] = json!([]);
    refused(None, &without, 7, "no address of eth0");

    let link: IfName = made["interfaces"][0]["name"].as_str().unwrap().parse().unwrap();
    let index = node.host.run(|| Netlink::open().unwrap().link(link)).unwrap().index;
    alias(&node, index, "somebody's");
    refused(None, &made, 999, "somebody's");
    let now = node.host.run(|| Netlink::open().unwrap().link(index)).unwrap().alias;
    assert_eq!(now.as_deref(), Some("somebody's"));
    alias(&node, index, "");
    let mut taken = made.clone();
    taken["ips"][0]["address"] = "10.1.0.1/32".into();
    refused(None, &taken, 100, "10.1.0.1");
    let now = node.host.run(|| Netlink::open().unwrap().link(index)).unwrap().alias;
    assert_eq!(now.unwrap_or_default(), "", "the mark is taken off again");

    net.plugin(0).del(&to, Some(&made)).unwrap();
    output(&node.host, "ip", &["-n", "a", "link", "add", "eth0", "type", "bridge"]);
    refused(None, &made, 999, "no veth");
    output(&node.host, "ip", &["-n", "a", "link", "del", "eth0"]);
    refused(None, &made, 999, "has none of that name");
    node.host.remove_pod_netns("a").unwrap();
    assert_clean(&node, &net);
}

fn alias(node: &Node, index: IfIndex, alias: &str) {
    let change = || Netlink::open()?.change_link(&LinkChange::of(index).alias(alias));
    node.host.run(change).unwrap();
}

#[test]
#[ignore = "needs root: a node in namespaces of its own; needs containernetworking-plugins"]
fn an_adopted_interface_may_go_in_any_way() {
    if are_missing() {
        return;
    }
    let mut node = Node::start();
    let net = Net::of_guide(&node, "after-ptp");
    let own = node.add("own");

    // Its maker, or anybody, deletes the link.
    let a = net.add("a");
    let link = host_link(&node, &a);
    output(&node.host, "ip", &["link", "del", &link.name.to_string()]);
    until("it is out of the datapath", || node.tables().endpoints().unwrap().len() == 1);
    assert!(net.check(&a).is_err());
    net.delete(&a);

    // DEL without the agent.
    let [b, c] = ["b", "c"].map(|name| net.add(name));
    node.agent.kill().unwrap();
    let error = net.try_add(&request(&node.host.add_pod("d").unwrap())).unwrap_err();
    assert_eq!(error.code().get(), 11, "{error}");
    net.delete(&b);
    let link = host_link_of(&node, &c);
    net.plugin(1).del(&c.attachment(), Some(&c.result_json(&net))).unwrap();
    let now = node.host.run(|| Netlink::open().unwrap().link(link)).unwrap();
    assert_eq!(now.alias.unwrap_or_default(), "");
    // Of the ADD that was refused, too: the runtime has made its DEL.
    assert_eq!(files(&node.host, NOTES).len(), 3);
    node.agent.start_again().unwrap();
    assert_eq!(files(&node.host, NOTES).len(), 0);
    assert_eq!(node.ask(Client::endpoints).len(), 1);
    assert_reach(&c.pod, &own.addresses());
    assert_reach(&own.pod, &c.addresses());
    net.delete(&c);
    // What the refused ADD has made until then.
    net.try_del(&request(&node.host.pod("d").unwrap())).unwrap();
    node.host.remove_pod_netns("d").unwrap();

    // A mark that no endpoint goes with: an ADD was killed after it made the mark.
    let pod = node.host.add_pod("e").unwrap();
    let to = podwire_lab::Attachment::new("e-container", pod.path());
    let made = net.plugin(0).add(&to).unwrap();
    let link: IfName = made["interfaces"][0]["name"].as_str().unwrap().parse().unwrap();
    let index = node.host.run(|| Netlink::open().unwrap().link(link)).unwrap().index;
    let marked = || {
        let link = node.host.run(|| Netlink::open().unwrap().link(index)).unwrap();
        link.alias.unwrap_or_default()
    };
    let mark = "podwire:node-1:+e-container/eth0";
    alias(&node, index, mark);
    let collector = {
        let mut config = net.plugin(1).config().clone();
        config["cniVersion"] = "1.1.0".into();
        podwire_lab::Cni::new(&node.host, podwire_lab::binary("podwire-cni").unwrap(), config)
    };
    collector.gc(std::slice::from_ref(&to)).unwrap();
    assert_eq!(marked(), mark, "valid");
    collector.gc(&[]).unwrap();
    assert_eq!(marked(), "");
    let others = "podwire:node-2:+e-container/eth0";
    alias(&node, index, others);
    collector.gc(&[]).unwrap();
    assert_eq!(marked(), others, "another node's");
    alias(&node, index, mark);
    node.agent.kill().unwrap();
    node.agent.start_again().unwrap();
    let now = node.host.run(|| Netlink::open().unwrap().link(index)).unwrap();
    assert_eq!(now.alias.unwrap_or_default(), "");
    let adopted = net.plugin(1).verb("ADD", &to, Some(&made)).unwrap().json("ADD");
    assert_eq!(adopted.unwrap()["ips"], made["ips"], "and nothing is in the way of another");

    // GC removes an endpoint, and leaves the interface.
    collector.gc(&[]).unwrap();
    assert_eq!(node.ask(Client::endpoints).len(), 1, "podnet's");
    node.host.run(|| Netlink::open().unwrap().link(index)).unwrap();
    net.plugin(0).del(&to, Some(&made)).unwrap();
    node.host.remove_pod_netns("e").unwrap();
    node.delete(&own);
    assert_clean(&node, &net);
}

/// The number of the host's end, without the agent.
fn host_link_of(node: &Node, member: &Member) -> IfIndex {
    let name: IfName = member.result.interfaces[0].name.parse().unwrap();
    node.host.run(|| Netlink::open().unwrap().link(name)).unwrap().index
}

#[test]
#[ignore = "needs root: a node in namespaces of its own; needs containernetworking-plugins"]
fn a_check_of_an_adopted_interface_names_what_is_broken() {
    if are_missing() {
        return;
    }
    let node = Node::start();
    let net = Net::of_guide(&node, "after-ptp");
    let a = net.add("a");
    let link = host_link(&node, &a);
    let name = link.name.to_string();
    let inside = |arguments: &[&str]| {
        output(&node.host, "ip", &[&["-n", "a"][..], arguments].concat());
    };
    let named = |what: &str, words: &[&str]| {
        let checked = net.plugin(1).check(&a.attachment(), &a.result_json(&net));
        let error = checked.unwrap_err();
        assert_eq!(error.cni_code(), Some(103), "{what}: {error}");
        for word in words {
            assert!(error.to_string().contains(word), "{what}: no {word:?} in {error}");
        }
    };
    let well = || net.plugin(1).check(&a.attachment(), &a.result_json(&net)).unwrap();
    well();

    let mark = link.alias.clone().unwrap();
    alias(&node, link.index, "");
    named("the mark", &[&name, &mark]);
    alias(&node, link.index, &mark);
    well();

    let mac = a.result.interfaces.iter().find(|one| one.name == "eth0").unwrap().mac.clone();
    let mac = mac.unwrap();
    inside(&["link", "set", "eth0", "address", "02:00:00:00:00:0c"]);
    named("the MAC", &["eth0", &mac, "02:00:00:00:00:0c"]);
    inside(&["link", "set", "eth0", "address", &mac]);
    until("the agent has followed", || a.endpoint(&node).mac.to_string() == mac);
    well();

    let address = a.result.ips[0].address.to_string();
    inside(&["address", "del", &address, "dev", "eth0"]);
    named("the address", &["eth0", &address]);
    inside(&["address", "add", &address, "dev", "eth0"]);
    well();

    inside(&["link", "set", "eth0", "down"]);
    named("down", &["eth0", "up", "down"]);
    inside(&["link", "set", "eth0", "up"]);
    for ip in a.result.ips.iter().filter(|ip| ip.address.is_ipv6()) {
        // Going down takes them along.
        inside(&["address", "replace", &ip.address.to_string(), "dev", "eth0", "nodad"]);
    }
    well();

    let pin = format!("/sys/fs/bpf/podwire/links/{name}/ingress");
    node.host.run(|| fs::remove_file(pin)).unwrap();
    named("a program", &["from_container", &name, "not attached"]);

    node.ask(|agent| agent.delete_endpoint(&a.id()));
    named("the record", &["a-container/eth0", "record"]);
    net.delete(&a);
    assert_clean(&node, &net);
}

#[test]
#[ignore = "needs root: a node in namespaces of its own; needs containernetworking-plugins"]
fn every_list_of_the_guide_is_run_from_the_command_line() {
    if are_missing() {
        return;
    }
    let node = Node::start();
    let own = node.add("own");
    let ours = podwire_lab::binary("podwire-cni").unwrap();
    let folders = [ours.parent().unwrap().to_str().unwrap(), network::PLUGINS];
    let cni = |arguments: &[&str]| {
        let folders = folders.iter().flat_map(|folder| ["--bin-dir", folder]);
        let arguments: Vec<_> =
            std::iter::once("cni").chain(arguments.iter().copied()).chain(folders).collect();
        node.cli(&arguments)
    };
    let capabilities = json!({
        "portMappings": [{ "hostPort": 8080, "containerPort": 80, "protocol": "tcp" }],
        "bandwidth": { "ingressRate": 20_000_000, "ingressBurst": 400_000 },
        "mac": "02:00:00:00:0a:03",
    });
    let capabilities = capabilities.to_string();
    node.host.run(|| fs::create_dir_all("/etc/cni/net.d")).unwrap();
    for list in network::guides() {
        let name = list["name"].as_str().unwrap();
        let file = format!("/etc/cni/net.d/{name}.conflist");
        node.host.run(|| fs::write(&file, list.to_string())).unwrap();
        let pod = node.host.add_pod(name).unwrap();
        let result = cni(&["add", name, name, "--capability", &capabilities]);
        for ip in result["ips"].as_array().unwrap() {
            let address = ip["address"].as_str().unwrap().split('/').next().unwrap();
            until_answered(&own.pod, address.parse().unwrap());
        }
        for target in own.addresses() {
            until_answered(&pod, target);
        }
        if name != "ports" {
            assert_eq!(cni(&["check", name, name])["extent"], "whole", "{name}");
        }
        let collected = cni(&["gc", name]);
        assert_eq!(collected["removed"], json!([]), "{name}: it lives");
        // A runtime that forgot it is told to remove it, or removes it itself.
        if name.starts_with("after") {
            assert_eq!(cni(&["gc", name, "--all"])["removed"].as_array().unwrap().len(), 1);
        } else {
            cni(&["del", name, name]);
        }
        node.host.remove_pod_netns(name).unwrap();
    }
    node.delete(&own);
    assert_clean(&node, &Net::of_guide(&node, "ports"));
}

/// Nothing of any pod is left, here or in the other plugins' folders; a bridge, which its plugin
/// leaves standing, is removed.
#[track_caller]
fn assert_clean(node: &Node, net: &Net) {
    assert_eq!(net.remembered(), 0);
    assert!(files(&node.host, NOTES).is_empty());
    let bridge = || Netlink::open().unwrap().find_link("cni0".parse::<IfName>().unwrap());
    if node.host.run(bridge).unwrap().is_some() {
        output(&node.host, "ip", &["link", "del", "cni0"]);
    }
    for folder in ["after-ptp", "host-local"] {
        let leases = files(&node.host, &format!("/var/lib/cni/networks/{folder}"));
        let leases: Vec<_> = leases
            .iter()
            .filter_map(|path| path.file_name()?.to_str())
            .filter(|name| !name.starts_with("last_reserved_ip") && *name != "lock")
            .collect();
        assert_eq!(leases, [] as [&str; 0]);
    }
    node.assert_clean();
}
