//! What endpoints may send and receive, under `BPF_PROG_TEST_RUN`: rules of identities, prefixes and ports
//! in both directions, changes of them, full maps, and what a later agent finds.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod node;

use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use ipnetwork::IpNetwork;
use node::{ACK, Node, Pod, SYN, on_node, tcp};
use podwire_bpf::HashMap;
use podwire_datapath::{
    Compiled, Datapath, Delivery, Flow, Options, Outcome, Subject,
    abi::{PolicyKey, PolicyRow, Reason, identity, map},
};
use podwire_lab::{Host, interface};
use podwire_netlink::{Birth, Netlink, NewLink};
use podwire_policy::{Action, Direction, InWords, Peer, Policy, Ports, Protocol, Rule};

const MAPS: &str = "/sys/fs/bpf/podwire/maps";

fn rule(action: Action, peer: &str, protocol: &str, ports: &str) -> Rule {
    Rule {
        action,
        peer: peer.parse().unwrap(),
        protocol: protocol.parse().unwrap(),
        ports: ports.parse().unwrap(),
    }
}

fn allow(peer: &str, protocol: &str, ports: &str) -> Rule {
    rule(Action::Allow, peer, protocol, ports)
}

fn deny(peer: &str, protocol: &str, ports: &str) -> Rule {
    rule(Action::Deny, peer, protocol, ports)
}

fn only(rules: Vec<Rule>) -> Direction {
    Direction { default: Action::Deny, rules }
}

fn all_but(rules: Vec<Rule>) -> Direction {
    Direction { default: Action::Allow, rules }
}

fn ingress(ingress: Direction) -> Compiled {
    Compiled::of(&Policy { ingress, ..Policy::default() }).unwrap()
}

fn egress(egress: Direction) -> Compiled {
    Compiled::of(&Policy { egress, ..Policy::default() }).unwrap()
}

/// Begins with a SYN of each family, and says what became of both.
fn connects(node: &Node, from: &Pod, to: &Pod, port: u16) -> Reason {
    let reasons = from.both().map(|source| {
        let target = (to.address(source), port);
        let frame = tcp(from.to_gateway(), (source, 40000), target, SYN);
        node.pod_sends(from, &frame).reason
    });
    assert_eq!(reasons[0], reasons[1], "the families differ");
    reasons[0]
}

fn rows() -> usize {
    HashMap::<PolicyKey, PolicyRow>::open(format!("{MAPS}/{}", map::POLICY))
        .unwrap()
        .entries()
        .unwrap()
        .len()
}

#[test]
#[ignore = "needs root: loads programs in a namespace of its own"]
fn both_ends_are_asked() {
    on_node(|node| {
        let (a, b) = (node.a, node.b);
        let set =
            |pod: &Pod, policy: &Compiled| node.datapath.set_policy(pod.ifindex, policy).unwrap();
        assert_eq!(connects(node, &a, &b, 80), Reason::Delivered, "without a policy");
        let http = || only(vec![allow("everybody", "tcp", "80-89")]);
        assert_eq!(set(&b, &ingress(http())), Outcome::Changed);
        assert_eq!(set(&b, &ingress(http())), Outcome::Unchanged);
        assert_eq!(connects(node, &a, &b, 80), Reason::Delivered);
        assert_eq!(connects(node, &a, &b, 89), Reason::Delivered);
        assert_eq!(connects(node, &a, &b, 90), Reason::IngressDenied);
        assert_eq!(connects(node, &b, &a, 90), Reason::Delivered, "the other way");
        set(&a, &egress(all_but(vec![deny("identity:unmanaged", "tcp", "85")])));
        assert_eq!(connects(node, &a, &b, 85), Reason::EgressDenied);
        assert_eq!(connects(node, &a, &b, 86), Reason::Delivered);
        // Both: egress is asked first.
        set(&a, &egress(all_but(vec![deny("everybody", "any", "any")])));
        assert_eq!(connects(node, &a, &b, 443), Reason::EgressDenied);
        set(&a, &Compiled::default());
        set(&b, &Compiled::default());
        assert_eq!(connects(node, &a, &b, 443), Reason::Delivered);
        assert_eq!(rows(), 0);
    });
}

#[test]
#[ignore = "needs root: loads programs in a namespace of its own"]
fn every_protocol_is_judged_by_its_ports() {
    on_node(|node| {
        let (a, b) = (node.a, node.b);
        let rules = vec![
            allow("everybody", "udp", "53"),
            allow("everybody", "sctp", "9000-9001"),
            allow("everybody", "icmp", "any"),
            allow("everybody", "47", "any"),
        ];
        node.datapath.set_policy(b.ifindex, &ingress(only(rules))).unwrap();
        for source in a.both() {
            let target = b.address(source);
            let judged = |frame: Vec<u8>| node.pod_sends(&a, &frame).reason;
            let udp = |port| {
                let (from, to) = (SocketAddr::new(source, 40000), SocketAddr::new(target, port));
                judged(a.to_gateway().udp(from, to, b"question"))
            };
            let sctp = |port: u16| {
                let mut chunk = 40000_u16.to_be_bytes().to_vec();
                chunk.extend(port.to_be_bytes());
                chunk.extend([0; 12]);
                judged(a.to_gateway().ip(source, target, 132, &chunk))
            };
            let other = |protocol| judged(a.to_gateway().ip(source, target, protocol, b"whatever"));
            assert_eq!((udp(53), udp(54)), (Reason::Delivered, Reason::IngressDenied));
            assert_eq!((sctp(9000), sctp(9001)), (Reason::Delivered, Reason::Delivered));
            assert_eq!(sctp(9002), Reason::IngressDenied);
            assert_eq!(
                judged(a.to_gateway().echo_request(source, target, 7, 1, b"ping")),
                Reason::Delivered
            );
            assert_eq!((other(47), other(50)), (Reason::Delivered, Reason::IngressDenied));
        }
    });
}

#[test]
#[ignore = "needs root: loads programs in a namespace of its own"]
fn a_changed_identity_is_judged_by_its_own_row() {
    on_node(|node| {
        let (a, b) = (node.a, node.b);
        let rules = vec![allow("identity:4711", "tcp", "80"), allow("identity:4712", "tcp", "81")];
        node.datapath.set_policy(b.ifindex, &ingress(only(rules))).unwrap();
        let asked = || (connects(node, &a, &b, 80), connects(node, &a, &b, 81));
        assert_eq!(asked(), (Reason::IngressDenied, Reason::IngressDenied));
        assert_eq!(node.datapath.set_identity(a.ifindex, 4711).unwrap(), Outcome::Changed);
        assert_eq!(node.datapath.set_identity(a.ifindex, 4711).unwrap(), Outcome::Unchanged);
        assert_eq!(asked(), (Reason::Delivered, Reason::IngressDenied));
        node.datapath.set_identity(a.ifindex, 4712).unwrap();
        assert_eq!(asked(), (Reason::IngressDenied, Reason::Delivered));
        for address in a.both() {
            let row = node.datapath.tables().holder(address).unwrap().unwrap();
            assert_eq!(row.identity, 4712);
        }
        assert!(node.datapath.set_identity(a.ifindex, 0).is_err());
        assert!(node.datapath.set_identity(9999, 7).unwrap_err().is_not_found());
    });
}

#[test]
#[ignore = "needs root: loads programs in a namespace of its own"]
fn the_narrowest_prefix_counts_with_all_that_cover_it() {
    on_node(|node| {
        let (a, b) = (node.a, node.b);
        let to = |address: &str, port: u16| {
            let target: IpAddr = address.parse().unwrap();
            let source = a.address(target);
            node.pod_sends(&a, &tcp(a.to_gateway(), (source, 40000), (target, port), SYN)).reason
        };
        let rules = vec![
            allow("192.0.2.0/24", "tcp", "any"),
            deny("192.0.2.128/25", "tcp", "22"),
            deny("192.0.2.200", "any", "any"),
            allow("10.1.0.3", "tcp", "80"),
            allow("2001:db8::/32", "tcp", "443"),
            allow("::/0", "tcp", "8443"),
        ];
        node.datapath.set_policy(a.ifindex, &egress(only(rules))).unwrap();
        assert_eq!(to("192.0.2.1", 22), Reason::ToStack);
        assert_eq!(
            (to("192.0.2.129", 22), to("192.0.2.129", 80)),
            (Reason::EgressDenied, Reason::ToStack)
        );
        assert_eq!(to("192.0.2.200", 80), Reason::EgressDenied);
        assert_eq!(
            (to("198.51.100.1", 80), to("198.51.100.1", 8443)),
            (Reason::EgressDenied, Reason::EgressDenied)
        );
        // A pod of this node by its address; the other pod's IPv6 address is in `::/0` only.
        assert_eq!(
            (to("10.1.0.3", 80), to("10.1.0.3", 81)),
            (Reason::Delivered, Reason::EgressDenied)
        );
        assert_eq!(
            (to("fd00:1::3", 80), to("fd00:1::3", 8443)),
            (Reason::EgressDenied, Reason::Delivered)
        );
        assert_eq!(
            (to("2001:db8::1", 443), to("2001:db8::1", 8443)),
            (Reason::ToStack, Reason::ToStack)
        );
        // Another policy speaks of a narrower prefix: what holds here does not change.
        let other = egress(only(vec![
            allow("192.0.2.0/26", "udp", "53"),
            allow("2001:db8:1::/48", "udp", "53"),
        ]));
        node.datapath.set_policy(b.ifindex, &other).unwrap();
        assert_eq!(to("192.0.2.1", 22), Reason::ToStack);
        assert_eq!(to("2001:db8:1::1", 443), Reason::ToStack);
        // Identities told meanwhile do not hide prefixes, nor the other way round.
        let told: [(IpNetwork, u32); 3] = [
            ("192.0.2.129".parse().unwrap(), 900),
            ("192.0.0.0/16".parse().unwrap(), 901),
            ("192.0.2.160/28".parse().unwrap(), 902),
        ];
        node.datapath.set_identities(&told).unwrap();
        assert_eq!(
            (to("192.0.2.129", 22), to("192.0.2.129", 80)),
            (Reason::EgressDenied, Reason::ToStack)
        );
        assert_eq!(to("192.0.2.161", 22), Reason::EgressDenied);
        node.datapath
            .set_policy(b.ifindex, &egress(all_but(vec![deny("identity:901", "any", "any")])))
            .unwrap();
        let from_b = |target: &str| {
            let target = (target.parse().unwrap(), 80);
            node.pod_sends(&b, &tcp(b.to_gateway(), (b.v4.into(), 40000), target, SYN)).reason
        };
        assert_eq!(
            from_b("192.0.2.1"),
            Reason::EgressDenied,
            "an entry for a policy has the wider one's identity"
        );
        assert_eq!(
            (from_b("192.0.2.129"), from_b("192.0.2.161")),
            (Reason::ToStack, Reason::ToStack)
        );
        node.datapath.forget_identity("192.0.2.129".parse().unwrap()).unwrap();
        assert_eq!(from_b("192.0.2.129"), Reason::EgressDenied);
        assert_eq!(
            (to("192.0.2.129", 22), to("192.0.2.129", 80)),
            (Reason::EgressDenied, Reason::ToStack)
        );
        // Nothing stays of a policy that goes, and all of what was told.
        node.datapath.set_policy(a.ifindex, &Compiled::default()).unwrap();
        node.datapath.set_policy(b.ifindex, &Compiled::default()).unwrap();
        let ipcache = node.datapath.tables().ipcache().unwrap();
        assert!(ipcache.iter().all(|row| row.cidr == 0 && !row.is_derived), "{ipcache:?}");
        assert_eq!(ipcache.len(), 6 + 2);
        assert_eq!(rows(), 0);
    });
}

#[test]
#[ignore = "needs root: loads programs in a namespace of its own"]
fn an_established_flow_stops_with_the_next_packet_and_goes_on_with_permission() {
    on_node(|node| {
        let (a, b) = (node.a, node.b);
        let sends = |from: &Pod, to: &Pod, ports: (u16, u16), flags| {
            let frame =
                tcp(from.to_gateway(), (from.v4.into(), ports.0), (to.v4.into(), ports.1), flags);
            node.pod_sends(from, &frame).reason
        };
        let there = |flags| sends(&a, &b, (40000, 80), flags);
        let back = |flags| sends(&b, &a, (80, 40000), flags);
        let open = || [there(SYN), back(SYN | ACK), there(ACK), back(ACK)];
        assert_eq!(open(), [Reason::Delivered; 4]);
        // A reply is judged as the flow is: b may send nothing of its own.
        node.datapath.set_policy(b.ifindex, &egress(only(vec![]))).unwrap();
        assert_eq!((there(ACK), back(ACK)), (Reason::Delivered, Reason::Delivered));
        for (pod, policy, reason) in [
            (&b, ingress(only(vec![])), Reason::IngressDenied),
            (&a, egress(only(vec![])), Reason::EgressDenied),
            (&b, ingress(all_but(vec![deny("10.1.0.0/24", "tcp", "80")])), Reason::IngressDenied),
            (&a, egress(all_but(vec![deny("10.1.0.3", "tcp", "80")])), Reason::EgressDenied),
        ] {
            node.datapath.set_policy(pod.ifindex, &policy).unwrap();
            assert_eq!((there(ACK), back(ACK)), (reason, reason));
            node.datapath.set_policy(pod.ifindex, &Compiled::default()).unwrap();
            assert_eq!((there(ACK), back(ACK)), (Reason::Delivered, Reason::Delivered));
        }
    });
}

#[test]
#[ignore = "needs root: loads programs in a namespace of its own"]
fn the_node_itself_always_comes_in() {
    on_node(|node| {
        node.datapath.set_policy(node.b.ifindex, &ingress(only(vec![]))).unwrap();
        let from_stack = |source: IpAddr| {
            let target = node.b.address(source);
            let link = podwire_lab::probe::frame::Link { from: node::HOST_MAC, to: node::NET_MAC };
            node.stack_sends(&tcp(link, (source, 40000), (target, 80), SYN)).reason
        };
        for router in [IpAddr::from(node::ROUTER4), node::ROUTER6.into()] {
            assert!(!from_stack(router).is_drop(), "{router}");
        }
        for stranger in ["192.0.2.1", "2001:db8::1"] {
            assert_eq!(from_stack(stranger.parse().unwrap()), Reason::IngressDenied, "{stranger}");
        }
        // Who the node is told to be itself comes in as well.
        let told: IpNetwork = "192.0.2.1".parse().unwrap();
        node.datapath.set_identities(&[(told, identity::HOST)]).unwrap();
        assert!(!from_stack("192.0.2.1".parse().unwrap()).is_drop());
    });
}

#[test]
#[ignore = "needs root: loads programs in a namespace of its own"]
fn other_plugins_endpoints_are_refused() {
    on_node(|node| {
        let adopted = podwire_datapath::EndpointConfig {
            interface: podwire_datapath::Interface::Adopted,
            ..Node::config("pwb", &node.b)
        };
        node.datapath.add_endpoint(&adopted).unwrap();
        let error = node.datapath.set_policy(node.b.ifindex, &ingress(only(vec![]))).unwrap_err();
        assert!(error.to_string().contains("another plugin"), "{error}");
    });
}

/// One entry for each of so many identities, no two alike.
fn wide(entries: u32) -> Compiled {
    let rule = |n: u32| Rule {
        action: Action::Allow,
        peer: Peer::Identity(100 + n),
        protocol: Protocol::Tcp,
        ports: Ports { first: u16::try_from(n % 60_000).unwrap(), last: 60_000 },
    };
    ingress(only((0..entries).map(rule).collect()))
}

#[test]
#[ignore = "needs root: loads programs in a namespace of its own"]
fn ten_thousand_entries_are_set_at_once() {
    on_node(|node| {
        let (a, b) = (node.a, node.b);
        let start = Instant::now();
        let policy = wide(10_000);
        let compiled = start.elapsed();
        node.datapath.set_policy(b.ifindex, &policy).unwrap();
        let set = start.elapsed() - compiled;
        let start = Instant::now();
        node.datapath.set_policy(b.ifindex, &Compiled::default()).unwrap();
        println!(
            "10,000 identities: compiled in {compiled:?}, set in {set:?}, unset in {:?}",
            start.elapsed()
        );
        let rules = (0..10_000_u32).map(|n| Rule {
            peer: Peer::Cidr(
                IpNetwork::new(std::net::Ipv4Addr::from(20 << 24 | n << 8).into(), 24).unwrap(),
            ),
            ..allow("everybody", "tcp", &n.to_string())
        });
        let start = Instant::now();
        let policy = egress(only(rules.collect()));
        let compiled = start.elapsed();
        node.datapath.set_policy(a.ifindex, &policy).unwrap();
        let set = start.elapsed() - compiled;
        println!("10,000 prefixes: compiled in {compiled:?}, set in {set:?}");
        assert_eq!(rows(), 10_000);
        let target = ("20.3.7.9".parse().unwrap(), 3 * 256 + 7);
        let frame = tcp(a.to_gateway(), (a.v4.into(), 40000), target, SYN);
        assert_eq!(node.pod_sends(&a, &frame).reason, Reason::ToStack);
        let start = Instant::now();
        node.datapath.set_policy(a.ifindex, &Compiled::default()).unwrap();
        println!("unset in {:?}", start.elapsed());
        assert_eq!((rows(), node.datapath.tables().ipcache().unwrap().len()), (0, 6));
    });
}

/// A node with small maps and one endpoint.
fn on_small_node(test: impl FnOnce(&Options, u32) + Send) {
    Host::new().unwrap().run(|| {
        let mut netlink = Netlink::open().unwrap();
        let (one, other) = ("pwa".parse().unwrap(), "a".parse().unwrap());
        netlink.create_link(&NewLink::veth(Birth::named(one), Birth::named(other))).unwrap();
        let options = Options {
            policy_rows: 40,
            policy_rules: 60,
            remotes: 64,
            ..Options::new("/sys/fs/bpf/podwire")
        };
        test(&options, interface::index("pwa").unwrap());
    });
}

fn endpoint(ifindex: u32) -> podwire_datapath::EndpointConfig {
    podwire_datapath::EndpointConfig {
        host_link: "pwa".into(),
        ifindex,
        mac: [2, 0, 0, 0, 0, 1],
        host_mac: [2, 0, 0, 0, 0, 2],
        addresses: vec!["10.1.0.2".parse().unwrap()],
        delivery: Delivery::Peer,
        interface: podwire_datapath::Interface::Own,
        by: podwire_datapath::By::Filter,
    }
}

#[test]
#[ignore = "needs root: loads programs in a namespace of its own"]
fn a_full_map_is_named_and_the_last_policy_holds_on() {
    on_small_node(|options, ifindex| {
        let datapath = Datapath::open(options).unwrap();
        datapath.add_endpoint(&endpoint(ifindex)).unwrap();
        datapath.set_policy(ifindex, &wide(30)).unwrap();
        let before = datapath.tables().policy().unwrap();
        let error = |policy: &Compiled| datapath.set_policy(ifindex, policy).unwrap_err();
        let told = error(&wide(41));
        assert!(told.is_full());
        assert_eq!(
            told.to_string(),
            "map POLICY is full, it has room for 40 entries; nothing was changed"
        );
        // Another identity for each of many ports.
        let many = (0..61_u16).map(|n| allow("everybody", "tcp", &(2 * n).to_string()));
        let told = error(&ingress(only(many.collect()))).to_string();
        assert!(told.contains("POLICY_RULES") && told.contains("60"), "{told}");
        let prefixes = |count: u8| {
            let rule = |n: u8| allow(&format!("10.9.{n}.0/24"), "tcp", "80");
            egress(only((0..count).map(rule).collect()))
        };
        assert!(error(&prefixes(70)).is_full());
        assert_eq!(datapath.tables().policy().unwrap(), before);
        assert_eq!(rows(), 30);
        // While one takes the other's place there must be room for both.
        assert!(error(&prefixes(35)).is_full());
        for policy in [prefixes(35), wide(35), prefixes(35), wide(3)] {
            datapath.set_policy(ifindex, &Compiled::default()).unwrap();
            datapath.set_policy(ifindex, &policy).unwrap();
        }
        // Prefixes beyond what the map of prefixes has room for.
        let taken: Vec<_> =
            (0..60).map(|n| (IpNetwork::new([172, 16, n, 0].into(), 24).unwrap(), 500)).collect();
        datapath.set_identities(&taken).unwrap();
        let before = (datapath.tables().policy().unwrap(), datapath.tables().ipcache().unwrap());
        let told = datapath.set_policy(ifindex, &prefixes(20)).unwrap_err();
        assert!(told.to_string().contains("PREFIXES"), "{told}");
        let after = (datapath.tables().policy().unwrap(), datapath.tables().ipcache().unwrap());
        assert_eq!(after, before);
        datapath.remove_endpoint("pwa", ifindex).unwrap();
        datapath.tidy().unwrap();
        assert_eq!(rows(), 0, "an endpoint that goes loses its rows");
    });
}

/// A policy of both directions, for everybody, an identity and prefixes.
fn of_all_kinds() -> Compiled {
    Compiled::of(&Policy {
        ingress: only(vec![
            allow("everybody", "tcp", "80"),
            allow("identity:7", "udp", "any"),
            allow("10.0.0.0/8", "icmp", "any"),
            deny("10.1.0.0/16", "any", "any"),
        ]),
        egress: all_but(vec![deny("10.1.0.2", "tcp", "22"), deny("::/0", "any", "any")]),
    })
    .unwrap()
}

#[test]
#[ignore = "needs root: loads programs in a namespace of its own"]
fn a_later_agent_finds_what_holds_and_removes_what_is_there_by_half() {
    on_small_node(|options, ifindex| {
        let policy = of_all_kinds();
        let datapath = Datapath::open(options).unwrap();
        datapath.add_endpoint(&endpoint(ifindex)).unwrap();
        datapath.set_identities(&[("10.2.0.0/16".parse().unwrap(), 300)]).unwrap();
        datapath.set_policy(ifindex, &policy).unwrap();
        let state = |datapath: &Datapath| {
            (datapath.tables().policy().unwrap(), datapath.tables().ipcache().unwrap())
        };
        let before = state(&datapath);
        let count = rows();
        drop(datapath);

        let datapath = Datapath::open(options).unwrap();
        assert_eq!(state(&datapath), before);
        assert_eq!(datapath.set_policy(ifindex, &policy).unwrap(), Outcome::Unchanged);
        drop(datapath);

        // What a killed writer leaves: rows of a policy that no slot names, and of a prefix that no address
        // leads to.
        let map = HashMap::<PolicyKey, PolicyRow>::open(format!("{MAPS}/{}", map::POLICY)).unwrap();
        let number = before.0[0].policy;
        let row = PolicyRow { first: 0, count: 1 };
        map.insert(&PolicyKey::identity(number + 7, 3), &row).unwrap();
        map.insert(&PolicyKey::cidr(number, 999), &row).unwrap();
        let datapath = Datapath::open(options).unwrap();
        assert_eq!((state(&datapath), rows()), (before.clone(), count));
        // Still one to be changed and to be left.
        datapath.set_policy(ifindex, &wide(3)).unwrap();
        assert_eq!(rows(), 3);
        datapath.set_policy(ifindex, &policy).unwrap();
        assert_eq!(state(&datapath).1.len(), before.1.len());

        let listing = datapath.tables().policy().unwrap();
        let ingress = listing.iter().find(|one| one.flow == Flow::Ingress).unwrap();
        let words: Vec<String> = ingress
            .rows
            .iter()
            .map(|(subject, rules)| {
                let rules: Vec<_> = rules
                    .iter()
                    .map(|rule| {
                        format!("{}{}", if rule.denies() { "!" } else { "" }, InWords(rule))
                    })
                    .collect();
                match subject {
                    Subject::Others => format!("others {}", rules.join(", ")),
                    Subject::Identity(number) => format!("identity {number} {}", rules.join(", ")),
                    Subject::Cidr(cidr) => format!("{cidr} {}", rules.join(", ")),
                    Subject::Stale(number) => format!("stale {number}"),
                }
            })
            .collect();
        for expected in [
            "others tcp 80",
            "identity 7 tcp 80, udp",
            "10.0.0.0/8 icmp4, icmp6",
            "10.1.0.0/16 !any",
            // The egress rule's prefix, which the ingress rules cover.
            "10.1.0.2/32 !any",
        ] {
            assert!(words.contains(&expected.to_owned()), "{expected}: {words:?}");
        }
    });
}

#[test]
#[ignore = "needs root: loads programs in a namespace of its own"]
fn policies_are_read_back_and_what_a_stranger_wrote_is_put_right() {
    on_node(|node| {
        let datapath = &node.datapath;
        let slot = |pod: &Pod| datapath.tables().slot_of_link(pod.ifindex).unwrap().unwrap();
        let (a, b) = (slot(&node.a), slot(&node.b));
        assert_eq!(datapath.policies().unwrap(), std::collections::HashMap::new());
        assert_eq!(datapath.policy_of(a).unwrap(), Compiled::default());
        let policy = of_all_kinds();
        datapath.set_policy(node.a.ifindex, &policy).unwrap();
        // For b's sake a's policy has a row more, which is none of its own.
        let closed = egress(only(vec![allow("10.3.0.0/16", "tcp", "443")]));
        datapath.set_policy(node.b.ifindex, &closed).unwrap();
        let expected = std::collections::HashMap::from([(a, policy.clone()), (b, closed.clone())]);
        assert_eq!(datapath.policies().unwrap(), expected);
        assert_eq!(datapath.policy_of(a).unwrap(), policy);
        assert_eq!(Compiled::of(&policy.to_policy()).unwrap(), policy);
        let before = rows();

        let listing = datapath.tables().policy().unwrap();
        let mut of_a = listing.iter().filter(|one| one.slot == a);
        let number = of_a.find(|one| one.flow == Flow::Ingress).unwrap().policy;
        let map = HashMap::<PolicyKey, PolicyRow>::open(format!("{MAPS}/{}", map::POLICY)).unwrap();
        map.remove(&PolicyKey::identity(number, 7)).unwrap();
        assert_ne!(datapath.policy_of(a).unwrap(), policy);
        datapath.reread_policies().unwrap();
        assert_eq!(datapath.set_policy(node.a.ifindex, &policy).unwrap(), Outcome::Changed);
        assert_eq!(datapath.set_policy(node.b.ifindex, &closed).unwrap(), Outcome::Unchanged);
        assert_eq!((datapath.policies().unwrap(), rows()), (expected, before));
        for pod in [&node.a, &node.b] {
            datapath.set_policy(pod.ifindex, &Compiled::default()).unwrap();
        }
        assert_eq!(rows(), 0);
    });
}
