//! Verdicts of flows that run at full speed while what they rest on changes: not one packet goes where it
//! may not, counted where it would arrive.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use podwire_datapath::{
    Attach, By, Compiled, Datapath, Delivery, EndpointConfig, Interface, NodeSetup, Options, Terms,
    abi::{Mac, identity},
    grace_period,
};
use podwire_lab::{Host, Pod as Netns, interface};
use podwire_netlink::{AdminState, Birth, LinkChange, LinkId, Netlink, NewLink};
use podwire_policy::{Action, Direction, Policy, Rule};

const HOST_MAC: Mac = [2, 0, 0, 0, 0, 0xf0];
const NET_MAC: Mac = [2, 0, 0, 0, 0, 0xf1];
const PORT: u16 = 7000;

/// How often each change is made under traffic.
const ROUNDS: usize = 40;

/// Packets that a flow must have had to be at full speed.
const RUN_UP: u64 = 200;

/// How long nothing may arrive.
const SILENCE: Duration = Duration::from_millis(15);

/// A pod behind a real veth pair, not known to the datapath by itself.
struct Pod {
    netns: Netns,
    link: &'static str,
    ifindex: u32,
    number: u8,
}

impl Pod {
    fn new(host: &Host, link: &'static str, number: u8) -> Self {
        let netns = host.add_pod(link).unwrap();
        netns.run(silence_ipv6);
        let inside = Birth {
            netns: Some(netns.netns()),
            state: AdminState::Up,
            mac: Some([2, 0, 0, 0, 1, number].into()),
            ..Birth::named("eth0".parse().unwrap())
        };
        let outside = Birth {
            mac: Some([2, 0, 0, 0, 2, number].into()),
            ..Birth::named(link.parse().unwrap())
        };
        let mut netlink = Netlink::open().unwrap();
        netlink.create_link(&NewLink::veth(inside, outside)).unwrap();
        up(&mut netlink, link);
        let ifindex = interface::index(link).unwrap();
        Self { netns, link, ifindex, number }
    }

    /// As the endpoint with these addresses.
    fn config(&self, addresses: &[IpAddr]) -> EndpointConfig {
        EndpointConfig {
            host_link: self.link.to_owned(),
            ifindex: self.ifindex,
            mac: [2, 0, 0, 0, 1, self.number],
            host_mac: [2, 0, 0, 0, 2, self.number],
            addresses: addresses.to_vec(),
            delivery: Delivery::Peer,
            interface: Interface::Own,
            by: By::Filter,
        }
    }

    /// Packets that have arrived at its interface.
    fn received(&self) -> u64 {
        self.netns.run(|| received("eth0"))
    }

    /// Has an address, its gateway by a permanent neighbour entry, and a route to it.
    fn set_up(&self, addresses: [IpAddr; 2]) {
        let mac = "02:00:00:00:02:0".to_owned() + &self.number.to_string();
        self.netns.run(|| {
            for (address, gateway) in addresses.iter().zip(["10.1.0.1", "fd00:1::1"]) {
                let family = if address.is_ipv4() { "-4" } else { "-6" };
                let length = if address.is_ipv4() { 32 } else { 128 };
                ip(&[family, "address", "add", &format!("{address}/{length}"), "dev", "eth0"]);
                ip(&[family, "route", "add", gateway, "dev", "eth0"]);
                ip(&[family, "route", "add", "default", "via", gateway, "dev", "eth0"]);
                ip(&[family, "neigh", "replace", gateway, "lladdr", &mac, "dev", "eth0"]);
            }
        });
    }
}

fn ip(arguments: &[&str]) {
    let output = std::process::Command::new("ip").args(arguments).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "ip {}: {errors}", arguments.join(" "));
}

fn up(netlink: &mut Netlink, link: &str) {
    netlink.change_link(&LinkChange::of(LinkId::Name(link.parse().unwrap())).up()).unwrap();
}

/// Packets that an interface of this namespace has received.
fn received(link: &str) -> u64 {
    let table = fs::read_to_string("/proc/thread-self/net/dev").unwrap();
    let line =
        table.lines().find_map(|line| line.trim().strip_prefix(&format!("{link}:"))).unwrap();
    line.split_ascii_whitespace().nth(1).unwrap().parse().unwrap()
}

fn silence_ipv6() {
    // No listener reports and solicitations of the kernel's own among what is counted.
    fs::write("/proc/sys/net/ipv6/conf/default/accept_dad", "0").unwrap();
    fs::write("/proc/sys/net/ipv6/conf/default/router_solicitations", "0").unwrap();
    fs::write("/proc/sys/net/ipv6/conf/default/addr_gen_mode", "1").unwrap();
}

/// A node with a sender, and two pods that take turns with one address.
struct Stage {
    datapath: Datapath,
    sender: Pod,
    friend: Pod,
    stranger: Pod,
}

const SENDER: [IpAddr; 2] = [IpAddr::V4(Ipv4Addr::new(10, 1, 0, 2)), IpAddr::V6(v6(0xfd00, 1, 2))];
const SHARED: [IpAddr; 2] = [IpAddr::V4(Ipv4Addr::new(10, 1, 0, 9)), IpAddr::V6(v6(0xfd00, 1, 9))];
const FAR: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(192, 0, 2, 7)), IpAddr::V6(v6(0x2001, 0xdb8, 7))];

const fn v6(a: u16, b: u16, last: u16) -> Ipv6Addr {
    Ipv6Addr::new(a, b, 0, 0, 0, 0, 0, last)
}

fn on_stage(test: impl FnOnce(&Stage) + Send) {
    let host = Host::new().unwrap();
    host.run(|| {
        silence_ipv6();
        for filter in ["all", "default"] {
            fs::write(format!("/proc/sys/net/ipv4/conf/{filter}/rp_filter"), "0").unwrap();
        }
        let mut netlink = Netlink::open().unwrap();
        let end = |name: &str, mac: Mac| Birth {
            mac: Some(mac.into()),
            ..Birth::named(name.parse().unwrap())
        };
        let pair = NewLink::veth(end("podwire_net", NET_MAC), end("podwire_host", HOST_MAC));
        netlink.create_link(&pair).unwrap();
        up(&mut netlink, "podwire_net");
        up(&mut netlink, "podwire_host");
        up(&mut netlink, "lo");
        let sender = Pod::new(&host, "pwa", 2);
        let (friend, stranger) = (Pod::new(&host, "pwb", 3), Pod::new(&host, "pwc", 4));
        sender.set_up(SENDER);
        let options = Options { attach: Attach::Auto, ..Options::new("/sys/fs/bpf/podwire") };
        let datapath = Datapath::open(&options).unwrap();
        let setup = NodeSetup {
            router_ipv4: Some(Ipv4Addr::new(10, 1, 0, 1)),
            router_ipv6: Some(v6(0xfd00, 1, 1)),
            host_ifindex: interface::index("podwire_host").unwrap(),
            host_mac: HOST_MAC,
            net_ifindex: interface::index("podwire_net").unwrap(),
            net_mac: NET_MAC,
        };
        datapath.set_node(&setup).unwrap();
        datapath.add_endpoint(&sender.config(&SENDER)).unwrap();
        test(&Stage { datapath, sender, friend, stranger });
    });
}

impl Stage {
    /// Does `change` while the sender sends to `target` as fast as it can.
    fn under_traffic(&self, target: IpAddr, change: impl FnOnce(&AtomicU64)) {
        let (stop, sent) = (AtomicBool::new(false), AtomicU64::new(0));
        thread::scope(|scope| {
            scope.spawn(|| {
                self.sender.netns.run(|| {
                    let local: IpAddr = if target.is_ipv4() { SENDER[0] } else { SENDER[1] };
                    let socket = UdpSocket::bind(SocketAddr::new(local, PORT)).unwrap();
                    let target = SocketAddr::new(target, PORT);
                    while !stop.load(Ordering::Relaxed) {
                        // Nobody listens there; what is said about that is of no interest.
                        let _ = socket.send_to(b"whoever has this address", target);
                        sent.fetch_add(1, Ordering::Relaxed);
                    }
                });
            });
            let end = StopOnDrop(&stop);
            change(&sent);
            drop(end);
        });
    }
}

/// Ends the sender also when the test panics.
struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Waits until so many more of it are counted.
fn wait_for(count: impl Fn() -> u64, more: u64) {
    let (start, wanted) = (Instant::now(), count() + more);
    while count() < wanted {
        assert!(start.elapsed() < Duration::from_secs(30), "waited in vain for {more} packets");
        thread::sleep(Duration::from_millis(1));
    }
}

fn deny_all() -> Compiled {
    let nothing = Direction { default: Action::Deny, rules: Vec::new() };
    Compiled::of(&Policy { ingress: nothing, ..Policy::default() }).unwrap()
}

#[test]
#[ignore = "needs root: a node in namespaces of its own"]
fn who_gets_an_address_gets_nothing_of_its_last_holders_flows() {
    on_stage(|stage| {
        let Stage { datapath, friend, stranger, .. } = stage;
        let closed = deny_all();
        let terms = Terms { identity: identity::UNMANAGED, policy: Some(&closed) };
        for target in SHARED {
            let before = stranger.received();
            stage.under_traffic(target, |sent| {
                for _ in 0..ROUNDS {
                    datapath.add_endpoint(&friend.config(&SHARED)).unwrap();
                    wait_for(|| friend.received(), RUN_UP);
                    let _ = datapath.remove_endpoint(friend.link, friend.ifindex).unwrap();
                    grace_period().unwrap();
                    let gone = friend.received();
                    datapath.add_endpoint_with(&stranger.config(&SHARED), terms).unwrap();
                    wait_for(|| sent.load(Ordering::Relaxed), RUN_UP);
                    assert_eq!(friend.received(), gone, "{target}: after it was removed");
                    let _ = datapath.remove_endpoint(stranger.link, stranger.ifindex).unwrap();
                    grace_period().unwrap();
                }
            });
            assert_eq!(stranger.received(), before, "{target}: it lets nobody in");
        }
    });
}

#[test]
#[ignore = "needs root: a node in namespaces of its own"]
fn a_policy_that_turns_to_deny_stops_a_flow_at_once() {
    on_stage(|stage| {
        let Stage { datapath, friend, .. } = stage;
        datapath.add_endpoint(&friend.config(&SHARED)).unwrap();
        let closed = deny_all();
        for target in SHARED {
            stage.under_traffic(target, |sent| {
                for _ in 0..ROUNDS {
                    let _ = datapath.set_policy(friend.ifindex, &Compiled::default()).unwrap();
                    wait_for(|| friend.received(), RUN_UP);
                    let _ = datapath.set_policy(friend.ifindex, &closed).unwrap();
                    // Those that were being judged have arrived.
                    grace_period().unwrap();
                    let stopped = friend.received();
                    wait_for(|| sent.load(Ordering::Relaxed), RUN_UP);
                    thread::sleep(SILENCE);
                    assert_eq!(friend.received(), stopped, "{target}: after it was denied");
                }
            });
        }
    });
}

/// Of two policies that both deny a packet, the number of one with the flags of the other would let it pass.
#[test]
#[ignore = "needs root: a node in namespaces of its own"]
fn policies_that_both_deny_let_nothing_pass_while_they_are_exchanged() {
    let deny = Rule {
        action: Action::Deny,
        peer: podwire_policy::Peer::Everybody,
        protocol: "udp".parse().unwrap(),
        ports: PORT.to_string().parse().unwrap(),
    };
    let all_but = Direction { default: Action::Allow, rules: vec![deny] };
    let all_but = Compiled::of(&Policy { ingress: all_but, ..Policy::default() }).unwrap();
    let policies = [deny_all(), all_but];
    on_stage(|stage| {
        let Stage { datapath, friend, .. } = stage;
        datapath.add_endpoint(&friend.config(&SHARED)).unwrap();
        for target in SHARED {
            let _ = datapath.set_policy(friend.ifindex, &policies[1]).unwrap();
            let before = friend.received();
            stage.under_traffic(target, |sent| {
                wait_for(|| sent.load(Ordering::Relaxed), RUN_UP);
                for policy in policies.iter().cycle().take(40 * ROUNDS) {
                    let _ = datapath.set_policy(friend.ifindex, policy).unwrap();
                }
                wait_for(|| sent.load(Ordering::Relaxed), RUN_UP);
            });
            thread::sleep(SILENCE);
            assert_eq!(friend.received(), before, "{target}");
        }
    });
}

#[test]
#[ignore = "needs root: a node in namespaces of its own"]
fn an_identity_that_moves_takes_the_permission_with_it() {
    const KNOWN: u32 = 100;
    const UNKNOWN: u32 = 200;
    on_stage(|stage| {
        let Stage { datapath, sender, .. } = stage;
        let rules = vec![Rule {
            action: Action::Allow,
            peer: podwire_policy::Peer::Identity(KNOWN),
            protocol: "udp".parse().unwrap(),
            ports: "any".parse().unwrap(),
        }];
        let egress = Direction { default: Action::Deny, rules };
        let policy = Compiled::of(&Policy { egress, ..Policy::default() }).unwrap();
        let _ = datapath.set_policy(sender.ifindex, &policy).unwrap();
        for target in FAR {
            // The host stack is where they go, and has the address.
            let (family, length) = if target.is_ipv4() { ("-4", 32) } else { ("-6", 128) };
            ip(&[family, "address", "add", &format!("{target}/{length}"), "dev", "lo"]);
            let receiver = Receiver::new(SocketAddr::new(target, PORT));
            stage.under_traffic(target, |sent| {
                for _ in 0..ROUNDS {
                    datapath.set_identities(&[(target.into(), KNOWN)]).unwrap();
                    wait_for(|| receiver.received(), RUN_UP);
                    datapath.set_identities(&[(target.into(), UNKNOWN)]).unwrap();
                    grace_period().unwrap();
                    // What was under way has come through the stack.
                    thread::sleep(SILENCE);
                    let stopped = receiver.received();
                    wait_for(|| sent.load(Ordering::Relaxed), RUN_UP);
                    thread::sleep(SILENCE);
                    assert_eq!(
                        receiver.received(),
                        stopped,
                        "{target}: after it was somebody else's"
                    );
                }
            });
        }
    });
}

/// Counts the datagrams that a socket of the node gets.
struct Receiver {
    count: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Receiver {
    fn new(at: SocketAddr) -> Self {
        let socket = UdpSocket::bind(at).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(10))).unwrap();
        let (count, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (counted, stopped) = (count.clone(), stop.clone());
        let thread = thread::spawn(move || {
            let mut buffer = [0; 64];
            while !stopped.load(Ordering::Relaxed) {
                if socket.recv(&mut buffer).is_ok() {
                    counted.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
        Self { count, stop, thread: Some(thread) }
    }

    fn received(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = self.thread.take().map(thread::JoinHandle::join);
    }
}
