//! Flows over real sockets: how they are seen, when they are forgotten, and that a flood of them hurts
//! nobody. Both families, always.

#![allow(clippy::print_stdout, reason = "what a test measured is worth knowing")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod node;

use std::{
    env,
    io::{ErrorKind, Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket},
    sync::Barrier,
    thread,
    time::{Duration, Instant},
};

use node::{BPFFS, Node, TestPod, until};
use podwire_bpf::Array;
use podwire_datapath::{
    FlowEvent, FlowFilter, FlowPath, FlowRow, FlowState,
    abi::{Hook, PolicyRef, Protocol, Reason, Slot, map, policy_flag},
};
use podwire_lab::probe::{
    FrameSocket, Ping,
    frame::{Link, checksum},
};

/// The gateways, which have no pod's slot.
const ROUTER: [&str; 2] = ["10.1.0.1", "fd00:1::1"];

/// Addresses within the pods' prefixes that no pod has.
const NOBODY: [&str; 2] = ["10.1.0.250", "fd00:1::fff0"];

/// Ports that answer in the flood: as many flows as the largest table has room for, and more.
const ECHOES: [u16; 4] = [4000, 4001, 4002, 4003];

const PATIENCE: Duration = Duration::from_secs(20);

/// The flows with this port at one end.
fn with_port(node: &Node, port: u16) -> Vec<FlowRow> {
    let filter = FlowFilter { port: Some(port), ..FlowFilter::default() };
    node.tables().flows_that(&filter).unwrap()
}

/// The one flow with this port at one end.
#[track_caller]
fn only(node: &Node, port: u16) -> FlowRow {
    let rows = with_port(node, port);
    let [row] = &rows[..] else { panic!("one flow of port {port}: {rows:?}") };
    row.clone()
}

#[track_caller]
fn until_state(node: &Node, port: u16, state: FlowState) -> FlowRow {
    let is_so = || matches!(&with_port(node, port)[..], [row] if row.state == state);
    until(&format!("the flow of port {port} is {state}"), is_so);
    only(node, port)
}

/// A connection from one pod to another over which something has gone both ways.
fn connect(from: &TestPod, to: &TestPod, address: IpAddr) -> (TcpStream, TcpStream) {
    let listener = to.pod.run(|| TcpListener::bind(SocketAddr::new(address, 0))).unwrap();
    let target = listener.local_addr().unwrap();
    let mut near = from.pod.run(|| TcpStream::connect_timeout(&target, PATIENCE)).unwrap();
    let (mut far, _) = listener.accept().unwrap();
    for stream in [&near, &far] {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
    }
    exchange(&mut near, &mut far);
    (near, far)
}

/// Sends something there and back.
fn exchange(near: &mut TcpStream, far: &mut TcpStream) {
    let mut byte = [0];
    near.write_all(b"?").unwrap();
    far.read_exact(&mut byte).unwrap();
    far.write_all(b"!").unwrap();
    near.read_exact(&mut byte).unwrap();
    assert_eq!(byte, *b"!");
}

fn port_of(stream: &TcpStream) -> u16 {
    stream.local_addr().unwrap().port()
}

#[test]
#[ignore = "needs root: a node in namespaces of its own"]
fn a_connection_is_seen_from_its_opening_to_its_end() {
    let node = Node::start();
    let (a, b) = (node.add("a"), node.add("b"));
    for target in b.addresses() {
        let (near, mut far) = connect(&a, &b, target);
        let port = port_of(&near);
        let row = only(&node, port);
        assert_eq!((row.state, row.path), (FlowState::Established, FlowPath::Straight), "{row:?}");
        assert_eq!((row.protocol, row.destination), (Protocol::TCP, target));
        assert_eq!(
            (row.source_port, row.destination_port),
            (port, far.local_addr().unwrap().port())
        );
        assert!(row.source_endpoint.is_some() && row.destination_endpoint.is_some());
        assert!(row.packets >= 3 && row.reply_packets >= 2, "{row:?}");

        // Half closed: what the other side still says goes through.
        near.shutdown(Shutdown::Write).unwrap();
        assert_eq!(far.read(&mut [0]).unwrap(), 0);
        until_state(&node, port, FlowState::Closing);
        far.write_all(b"more").unwrap();
        let mut more = [0; 4];
        (&near).read_exact(&mut more).unwrap();
        assert_eq!(only(&node, port).state, FlowState::Closing);

        let before = only(&node, port);
        drop(far);
        let ended = until_state(&node, port, FlowState::Ended);
        assert!(ended.reply_bytes > before.reply_bytes, "the sums go along: {ended:?}");
        assert!(ended.age >= ended.idle);
    }
    assert_eq!(node.drops(), [] as [&str; 0]);
}

#[test]
#[ignore = "needs root: a node in namespaces of its own"]
fn a_reset_ends_a_connection_and_so_do_two_sides_that_close_at_once() {
    let node = Node::start();
    let (a, b) = (node.add("a"), node.add("b"));
    for target in b.addresses() {
        let (near, mut far) = connect(&a, &b, target);
        let port = port_of(&near);
        far.write_all(b"never read").unwrap();
        thread::sleep(Duration::from_millis(50));
        // Closed with something unread, it says so by a reset (RFC 1122, 4.2.2.13).
        drop(near);
        until_state(&node, port, FlowState::Ended);
        let error = far.read(&mut [0]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);

        let (near, far) = connect(&a, &b, target);
        let port = port_of(&near);
        let together = Barrier::new(2);
        thread::scope(|scope| {
            for stream in [&near, &far] {
                let together = &together;
                scope.spawn(move || {
                    together.wait();
                    stream.shutdown(Shutdown::Write).unwrap();
                });
            }
        });
        for mut stream in [&near, &far] {
            assert_eq!(stream.read(&mut [0]).unwrap(), 0, "both hear of it");
        }
        until_state(&node, port, FlowState::Ended);
    }
    assert_eq!(node.drops(), [] as [&str; 0]);
}

#[test]
#[ignore = "needs root: a node in namespaces of its own"]
fn ports_are_used_again_by_new_connections() {
    let node = Node::start();
    let (a, b) = (node.add("a"), node.add("b"));
    let own = Link { from: a.mac(1), to: a.mac(0) };
    let mut raw = a.pod.run(|| FrameSocket::open("eth0")).unwrap();
    for (mine, target) in a.addresses().into_iter().zip(b.addresses()) {
        let (near, far) = connect(&a, &b, target);
        let (from, to) = (near.local_addr().unwrap(), far.local_addr().unwrap());
        assert_eq!(from.ip(), mine);
        // A SYN of the same ports begins a flow of its own, whatever was there.
        raw.send(&own.ip(mine, target, 6, &tcp(from, to, SYN))).unwrap();
        until(
            "a flow begins anew",
            || matches!(&with_port(&node, from.port())[..], [row] if row.packets < 3),
        );
    }
}

#[test]
#[ignore = "needs root: a node in namespaces of its own"]
fn datagrams_and_echoes_are_flows() {
    let node = Node::start();
    let (a, b) = (node.add("a"), node.add("b"));
    for (mine, target) in a.addresses().into_iter().zip(b.addresses()) {
        let bound = |pod: &TestPod, address| {
            let socket = pod.pod.run(|| UdpSocket::bind(SocketAddr::new(address, 0))).unwrap();
            socket.set_read_timeout(Some(PATIENCE)).unwrap();
            socket
        };
        let (near, far) = (bound(&a, mine), bound(&b, target));
        let port = near.local_addr().unwrap().port();
        near.send_to(b"one", far.local_addr().unwrap()).unwrap();
        let (_, back) = far.recv_from(&mut [0; 9]).unwrap();
        let row = only(&node, port);
        assert_eq!((row.state, row.packets, row.reply_packets), (FlowState::OneSided, 1, 0));
        far.send_to(b"two", back).unwrap();
        near.recv_from(&mut [0; 9]).unwrap();
        let row = only(&node, port);
        assert_eq!((row.state, row.packets, row.reply_packets), (FlowState::Replied, 1, 1));
        assert_eq!((row.path, row.source, row.source_port), (FlowPath::Straight, mine, port));

        let report = a.pod.run(|| Ping::new(target).count(3).run()).unwrap();
        assert!(report.is_complete(), "{report}");
        let protocol = if mine.is_ipv4() { Protocol::ICMP } else { Protocol::ICMPV6 };
        let rows = node.tables().flows().unwrap();
        let echo = rows.iter().find(|row| row.protocol == protocol && row.destination == target);
        let echo = echo.unwrap();
        assert_eq!((echo.state, echo.packets, echo.reply_packets), (FlowState::Replied, 3, 3));
    }
    assert_eq!(node.drops(), [] as [&str; 0]);
}

/// Of SCTP the datapath knows the ports; nothing here speaks it, so that frames are written by hand.
#[test]
#[ignore = "needs root: a node in namespaces of its own"]
fn other_transports_are_flows_by_their_ports() {
    let node = Node::start();
    let (a, b) = (node.add("a"), node.add("b"));
    let opened = |pod: &TestPod| pod.pod.run(|| FrameSocket::open("eth0")).unwrap();
    let (mut near, mut far) = (opened(&a), opened(&b));
    let from_a = Link { from: a.mac(1), to: a.mac(0) };
    let from_b = Link { from: b.mac(1), to: b.mac(0) };
    for (mine, target) in a.addresses().into_iter().zip(b.addresses()) {
        let port: u16 = if mine.is_ipv4() { 1114 } else { 1116 };
        // RFC 9260, 3.1: the common header.
        let header =
            |from: u16, to: u16| [&from.to_be_bytes()[..], &to.to_be_bytes(), &[0; 8]].concat();
        near.send(&from_a.ip(mine, target, 132, &header(port, 2222))).unwrap();
        let row = until_state(&node, port, FlowState::OneSided);
        assert_eq!((row.protocol, row.source, row.destination_port), (Protocol::SCTP, mine, 2222));
        far.send(&from_b.ip(target, mine, 132, &header(2222, port))).unwrap();
        until_state(&node, port, FlowState::Replied);
    }
}

#[test]
#[ignore = "needs root: a node in namespaces of its own"]
fn a_pod_that_goes_takes_its_flows_along() {
    let node = Node::start();
    let (a, b) = (node.add("a"), node.add("b"));
    for target in b.addresses() {
        let report = a.pod.run(|| Ping::new(target).run()).unwrap();
        assert!(report.is_complete(), "{report}");
    }
    let tables = node.tables();
    let left =
        || tables.confirmed().iter().any(|(key, _)| b.addresses().contains(&key.peer.into()));
    assert!(left());
    node.delete(&b);
    assert_eq!(
        node.tables()
            .flows_that(&FlowFilter { prefix: Some(b.v4.into()), ..FlowFilter::default() })
            .unwrap(),
        [],
        "at once to whoever looks"
    );
    until("the entries are gone, long before their time", || !left());
}

#[test]
#[ignore = "needs root: a node in namespaces of its own"]
fn what_the_stack_carries_is_a_flow_as_well() {
    let node = Node::start();
    let a = node.add("a");
    for (mine, router) in a.addresses().into_iter().zip(ROUTER) {
        let target: IpAddr = router.parse().unwrap();
        let listener = node.host.run(|| TcpListener::bind(SocketAddr::new(target, 0))).unwrap();
        let address = listener.local_addr().unwrap();
        let mut near = a.pod.run(|| TcpStream::connect_timeout(&address, PATIENCE)).unwrap();
        let (mut far, _) = listener.accept().unwrap();
        exchange(&mut near, &mut far);
        let row = only(&node, port_of(&near));
        assert_eq!((row.state, row.path), (FlowState::Established, FlowPath::Stack));
        assert_eq!((row.source, row.destination), (mine, target));
        assert_eq!(row.destination_endpoint, None);
        drop((near, far));

        // And what the node begins.
        let listener = a.pod.run(|| TcpListener::bind(SocketAddr::new(mine, 0))).unwrap();
        let address = listener.local_addr().unwrap();
        let mut near = node.host.run(|| TcpStream::connect_timeout(&address, PATIENCE)).unwrap();
        let (mut far, _) = listener.accept().unwrap();
        exchange(&mut near, &mut far);
        let row = only(&node, port_of(&near));
        assert_eq!((row.state, row.path), (FlowState::Established, FlowPath::Stack));
        assert_eq!(
            (row.source, row.destination, row.destination_port),
            (target, mine, address.port())
        );
        assert_eq!((row.source_endpoint, row.destination_endpoint), (None, Some(row.endpoint)));
    }
    assert_eq!(node.drops(), [] as [&str; 0]);
}

/// A datagram to a port where nobody listens is answered by an error that its sender hears of; gives the
/// sender's port.
fn is_refused(from: &TestPod, mine: IpAddr, target: IpAddr) -> u16 {
    let socket = from.pod.run(|| UdpSocket::bind(SocketAddr::new(mine, 0))).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket.connect(SocketAddr::new(target, 9)).unwrap();
    socket.send(b"?").unwrap();
    assert_eq!(socket.recv(&mut [0; 9]).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    socket.local_addr().unwrap().port()
}

/// Port unreachable reaches the socket that asked, and belongs to its flow.
#[test]
#[ignore = "needs root: a node in namespaces of its own"]
fn an_error_about_a_flow_finds_its_way_back() {
    let node = Node::start();
    let (a, b) = (node.add("a"), node.add("b"));
    for (mine, target) in a.addresses().into_iter().zip(b.addresses()) {
        let port = is_refused(&a, mine, target);
        let row = only(&node, port);
        assert_eq!((row.state, row.reply_packets), (FlowState::OneSided, 0), "{row:?}");
        let protocol = if mine.is_ipv4() { Protocol::ICMP } else { Protocol::ICMPV6 };
        let rows = node.tables().flows().unwrap();
        assert!(rows.iter().all(|row| row.protocol != protocol), "an error is no flow: {rows:?}");
    }
    // A receiver that may send nothing of its own accord may still tell of errors.
    deny(&node, &b);
    for (mine, target) in a.addresses().into_iter().zip(b.addresses()) {
        is_refused(&a, mine, target);
        let other = SocketAddr::new(mine, 7777);
        let own = b.pod.run(|| UdpSocket::bind(SocketAddr::new(target, 0))).unwrap();
        let before = node.counted(Hook::FromContainer, Reason::EgressDenied);
        own.send_to(b"!", other).unwrap();
        until("it is denied", || node.counted(Hook::FromContainer, Reason::EgressDenied) > before);
    }
}

#[test]
#[ignore = "needs root: a node in namespaces of its own"]
fn fragments_follow_their_first_one() {
    let node = Node::start();
    let (a, b) = (node.add("a"), node.add("b"));
    let own = Link { from: a.mac(1), to: a.mac(0) };
    let mut raw = a.pod.run(|| FrameSocket::open("eth0")).unwrap();
    for (mine, target) in a.addresses().into_iter().zip(b.addresses()) {
        let receiver = b.pod.run(|| UdpSocket::bind(SocketAddr::new(target, 0))).unwrap();
        receiver.set_read_timeout(Some(PATIENCE)).unwrap();
        let port = if mine.is_ipv4() { 5555 } else { 5556 };
        let from = SocketAddr::new(mine, port);
        let message: Vec<u8> = (0..=249).cycle().take(2000).collect();
        let whole = own.udp(from, receiver.local_addr().unwrap(), &message);
        let [first, second] = fragments(&whole, 7);
        let unknown = || node.counted(Hook::FromContainer, Reason::UnknownFragment);
        let before = unknown();
        raw.send(&second).unwrap();
        until("the fragment that came too early is counted", || unknown() == before + 1);
        raw.send(&first).unwrap();
        raw.send(&second).unwrap();
        let mut received = vec![0; 4000];
        let (length, sender) = receiver.recv_from(&mut received).unwrap();
        assert_eq!((&received[..length], sender), (&message[..], from));
        let row = only(&node, port);
        assert_eq!((row.packets, row.state), (2, FlowState::OneSided), "{row:?}");
        // The answer of the same size comes in fragments as well, made by the kernel.
        let near = a.pod.run(|| UdpSocket::bind(from)).unwrap();
        near.set_read_timeout(Some(PATIENCE)).unwrap();
        receiver.send_to(&message, from).unwrap();
        assert_eq!(near.recv(&mut received).unwrap(), message.len());
        let row = only(&node, port);
        assert_eq!((row.reply_packets, row.state), (2, FlowState::Replied), "{row:?}");
        assert_eq!(unknown(), before + 1);
    }
}

#[test]
#[ignore = "needs root: a node in namespaces of its own"]
fn flows_are_forgotten_in_their_time() {
    let short = ["tcp-opening", "tcp-ended", "udp-one-sided", "udp-replied", "icmp", "tcp-closing"];
    let options: Vec<String> = short.map(|name| format!("--timeout={name}=1")).into();
    let options: Vec<&str> = options.iter().map(String::as_str).collect();
    let node = Node::start_with(&options);
    let (a, b) = (node.add("a"), node.add("b"));
    let mut kept = Vec::new();
    for (target, nobody) in b.addresses().into_iter().zip(NOBODY) {
        kept.push(connect(&a, &b, target));
        let (near, far) = connect(&a, &b, target);
        let ended = port_of(&near);
        drop((near, far));
        let (near, far) = connect(&a, &b, target);
        let closing = port_of(&near);
        near.shutdown(Shutdown::Write).unwrap();
        // Half open: nobody answers.
        let nobody = SocketAddr::new(nobody.parse().unwrap(), 81);
        let attempt = Duration::from_millis(100);
        a.pod.run(|| TcpStream::connect_timeout(&nobody, attempt)).unwrap_err();
        let report = a.pod.run(|| Ping::new(target).count(1).run()).unwrap();
        assert!(report.is_complete(), "{report}");
        assert!(with_port(&node, 81).iter().all(|row| row.state == FlowState::Opening));
        until("all but open connections are forgotten", || {
            let rows = node.tables().flows().unwrap();
            rows.iter().all(|row| row.state == FlowState::Established)
        });
        for port in [ended, closing, 81] {
            assert_eq!(with_port(&node, port), [], "port {port}");
        }
        drop(far);
    }
    for (near, far) in &mut kept {
        assert_eq!(only(&node, port_of(near)).state, FlowState::Established);
        exchange(near, far);
    }
    let metrics = node.ask(podwire_api::Client::metrics);
    let expired = |protocol: &str, state: &str| {
        let name =
            format!("podwire_flows_expired_total{{protocol=\"{protocol}\",state=\"{state}\"}} ");
        let line = metrics.lines().find_map(|line| line.strip_prefix(&*name)).unwrap();
        line.parse::<u64>().unwrap()
    };
    assert!(expired("tcp", "opening") >= 2 && expired("tcp", "ended") >= 2, "{metrics}");
    assert!(expired("tcp", "closing") >= 2 && expired("icmp", "any") >= 2, "{metrics}");
    assert_eq!(expired("tcp", "established"), 0);
}

#[test]
#[ignore = "needs root: a node in namespaces of its own"]
fn flows_settings_and_memory_are_told_and_changed() {
    let mut node = Node::start_with(&["--timeout", "icmp=20"]);
    let (a, b) = (node.add("a"), node.add("b"));
    let connections: Vec<_> = b.addresses().map(|target| connect(&a, &b, target)).into();
    let listed = |arguments: &[&str]| {
        let rows = node.cli(&[&["bpf", "flow", "list"], arguments].concat());
        rows.as_array().unwrap().len()
    };
    assert_eq!((listed(&[]), listed(&["--state", "established"])), (2, 2));
    let endpoint = a.attachment.container_id.as_str();
    assert_eq!(listed(&["--endpoint", endpoint, "--direction", "egress"]), 2);
    assert_eq!(listed(&["--endpoint", endpoint, "--direction", "ingress"]), 0);
    assert_eq!((listed(&["--address", "fd00:1::/64"]), listed(&["--protocol", "udp"])), (1, 0));
    let port = port_of(&connections[0].0).to_string();
    assert_eq!(listed(&["--port", &port]), 1);
    assert_eq!(node.cli(&["bpf", "flow", "flush", "--port", &port])["flushed"], 1);
    assert_eq!(listed(&[]), 1);
    let mut nothing = node.host.command(podwire_lab::binary("podwire").unwrap());
    let nothing = nothing.args(["bpf", "flow", "flush"]).output().unwrap();
    assert!(
        !nothing.status.success() && String::from_utf8_lossy(&nothing.stderr).contains("--all")
    );

    let status = node.cli(&["status"]);
    let maps = status["memory"]["maps"].as_array().unwrap();
    assert_eq!(maps.len(), map::ALL.len());
    let sum: u64 = maps.iter().map(|map| map["bytes"].as_u64().unwrap()).sum();
    assert!(sum > 0 && status["memory"]["maps_total"] == sum);
    assert!(status["memory"]["agent"].as_u64().unwrap() > 1 << 20);
    assert_eq!(status["flows"]["capacity"], 262_144);

    let origin = |node: &Node, name: &str| {
        let setting = &node.cli(&["config"])["settings"][name];
        (
            setting["value"].as_str().unwrap().to_owned(),
            setting["origin"].as_str().unwrap().to_owned(),
        )
    };
    let is = |value: &str, origin: &str| (value.to_owned(), origin.to_owned());
    assert_eq!(origin(&node, "timeout.icmp"), is("20", "option"));
    assert_eq!(origin(&node, "timeout.tcp-established"), is("8000", "default"));
    node.cli(&["config", "set", "timeout.tcp-established", "1", "timeout.icmp", "2"]);
    until("idle connections are forgotten", || node.tables().flows().unwrap().is_empty());
    node.restart_with(&["--timeout", "icmp=30"]);
    assert_eq!(origin(&node, "timeout.tcp-established"), is("1", "set"), "kept");
    node.cli(&["config", "unset", "timeout.icmp", "timeout.tcp-established"]);
    assert_eq!(origin(&node, "timeout.icmp"), is("30", "option"));
    let mut wrong = node.host.command(podwire_lab::binary("podwire").unwrap());
    let wrong = wrong.args(["config", "set", "slots", "9"]).output().unwrap();
    let said = String::from_utf8_lossy(&wrong.stderr).into_owned();
    assert!(!wrong.status.success() && said.contains("option of podwired"), "{said}");

    // What the programs and the CLI do needs no agent; a flow that was forgotten goes on as a new one.
    node.agent.kill().unwrap();
    for (mut near, mut far) in connections {
        exchange(&mut near, &mut far);
        assert_eq!(listed_without_agent(&node, port_of(&near)), 1);
    }
    assert_eq!(node.drops(), [] as [&str; 0]);
}

fn listed_without_agent(node: &Node, port: u16) -> usize {
    node.cli(&["bpf", "flow", "list", "--port", &port.to_string()]).as_array().unwrap().len()
}

/// What a flood does to others: nothing. `cargo xtask soak flood` runs it with the shipped sizes.
#[test]
#[ignore = "needs root: a node in namespaces of its own, and thousands of connections"]
fn a_flood_breaks_no_connection() {
    const CONNECTIONS: usize = 500;
    let is_full = env::var_os("PODWIRE_FLOOD").is_some();
    let (flows, pending, denied) =
        if is_full { (1_u32 << 18, 1_u32 << 16, 1_000_000_u64) } else { (4096, 1024, 20_000) };
    let sizes = [flows.to_string(), pending.to_string()];
    let node = Node::start_with(&["--flows", &sizes[0], "--pending-flows", &sizes[1]]);
    let (a, b, c) = (node.add("a"), node.add("b"), node.add("c"));
    podwire_bpf::raise_open_files().unwrap();
    let mut connections = Vec::new();
    for target in b.addresses() {
        connections.extend((0..CONNECTIONS).map(|_| connect(&a, &b, target)));
    }
    let established = || {
        let state = Some(FlowState::Established);
        let filter = FlowFilter { state, protocol: Some(Protocol::TCP), ..FlowFilter::default() };
        node.tables().flows_that(&filter).unwrap().len()
    };
    assert_eq!(established(), 2 * CONNECTIONS);
    let alive = |connections: &mut Vec<(TcpStream, TcpStream)>, after: &str| {
        assert_eq!(established(), 2 * CONNECTIONS, "after {after}");
        let drops = node.drops();
        connections.iter_mut().for_each(|(near, far)| exchange(near, far));
        assert_eq!(node.drops(), drops, "after {after}");
    };

    // New flows that nobody answers: ten times the size of the table, SYNs and datagrams.
    let mut flood = Flood::new(&c);
    let start = Instant::now();
    flood.send(10 * flows, &NOBODY.map(|address| address.parse().unwrap()));
    println!("{} new flows in {:?}", 10 * flows, start.elapsed());
    alive(&mut connections, "new flows");
    let (_, waiting) = node.tables().flow_capacities();
    assert_eq!(waiting, pending);

    // Flows that are answered fill the table, and find no room then.
    let echoes: Vec<_> = b
        .addresses()
        .into_iter()
        .flat_map(|address| ECHOES.map(|port| SocketAddr::new(address, port)))
        .map(|address| b.pod.run(|| UdpSocket::bind(address)).unwrap())
        .collect();
    let stop = std::sync::atomic::AtomicBool::new(false);
    thread::scope(|scope| {
        for echo in &echoes {
            echo.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
            let stop = &stop;
            scope.spawn(move || {
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    if let Ok((_, from)) = echo.recv_from(&mut [0; 9]) {
                        let _ = echo.send_to(b"!", from);
                    }
                }
            });
        }
        let count = |event| {
            let events = node.tables().flow_events().unwrap();
            events.iter().find(|(one, _)| *one == event).unwrap().1
        };
        let before = count(FlowEvent::TableFull);
        until("the table of confirmed flows is full", || {
            flood.ask(flows / 4, &b.addresses());
            count(FlowEvent::TableFull) > before
        });
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    alive(&mut connections, "a full table");
    until("the agent says so", || node.cli(&["status"])["flows"]["pressure"] == true);
    assert!(node.agent.log().contains("% full"), "{}", node.agent.log());
    alive(&mut connections, "pressure");

    // Denied packets leave nothing.
    node.cli(&["bpf", "flow", "flush", "--endpoint", &c.attachment.container_id]);
    deny(&node, &c);
    let counted = || node.counted(Hook::FromContainer, Reason::EgressDenied);
    let before = counted();
    let start = Instant::now();
    // A queue may be full now and then.
    while counted() < before + denied {
        flood.send_syns(1000, &b.addresses());
    }
    println!("{} denied SYNs in {:?}", counted() - before, start.elapsed());
    let of_c = node.cli(&["bpf", "flow", "list", "--endpoint", &c.attachment.container_id]);
    assert_eq!(of_c, serde_json::json!([]));
    alive(&mut connections, "denied SYNs");
}

/// Frames of flows that there have never been.
struct Flood<'a> {
    pod: &'a TestPod,
    socket: FrameSocket,
    next: u32,
}

impl<'a> Flood<'a> {
    fn new(pod: &'a TestPod) -> Self {
        Self { pod, socket: pod.pod.run(|| FrameSocket::open("eth0")).unwrap(), next: 0 }
    }

    /// SYNs and datagrams by turns.
    fn send(&mut self, count: u32, targets: &[IpAddr]) {
        self.frames(count, targets, |own, from, to, number| match number % 2 {
            0 => own.ip(from.ip(), to.ip(), 6, &tcp(from, to, SYN)),
            _ => own.udp(from, to, b"?"),
        });
    }

    fn send_syns(&mut self, count: u32, targets: &[IpAddr]) {
        self.frames(count, targets, |own, from, to, _| {
            own.ip(from.ip(), to.ip(), 6, &tcp(from, to, SYN))
        });
    }

    /// Datagrams to [`ECHOES`].
    fn ask(&mut self, count: u32, targets: &[IpAddr]) {
        self.frames(count, targets, |own, from, to, number| {
            let port = ECHOES[(number / 60_000) as usize % ECHOES.len()];
            own.udp(from, SocketAddr::new(to.ip(), port), b"?")
        });
    }

    fn frames(
        &mut self,
        count: u32,
        targets: &[IpAddr],
        frame: impl Fn(Link, SocketAddr, SocketAddr, u32) -> Vec<u8>,
    ) {
        let own = Link { from: self.pod.mac(1), to: self.pod.mac(0) };
        for _ in 0..count {
            self.next += 1;
            let [low, high] = [self.next % 60_000, self.next / 60_000];
            let target = targets[(self.next % 2) as usize];
            let mine = self.pod.addresses()[usize::from(target.is_ipv6())];
            let port = |number: u32| u16::try_from(1000 + number).unwrap();
            let (from, to) =
                (SocketAddr::new(mine, port(low)), SocketAddr::new(target, port(high)));
            self.socket.send(&frame(own, from, to, self.next)).unwrap();
        }
    }
}

/// Lets a pod send nothing of its own accord from now on, as a policy would.
fn deny(node: &Node, pod: &TestPod) {
    let endpoints = node.tables().endpoints().unwrap();
    let slot = endpoints.iter().find(|row| row.addresses.contains(&pod.v4)).unwrap().slot;
    let path = format!("{BPFFS}/maps/{}", map::SLOTS);
    let slots = node.host.run(|| Array::<Slot>::open(path)).unwrap();
    let egress = PolicyRef::new(0, policy_flag::DENY_BY_DEFAULT);
    slots.set(slot, &Slot { egress, ..slots.get(slot).unwrap() }).unwrap();
}

const SYN: u8 = 2;

/// A TCP segment without payload.
fn tcp(from: SocketAddr, to: SocketAddr, flags: u8) -> Vec<u8> {
    let mut segment = Vec::with_capacity(20);
    segment.extend(from.port().to_be_bytes());
    segment.extend(to.port().to_be_bytes());
    segment.extend([0, 0, 0, 1, 0, 0, 0, 0, 0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
    let tail = [0, 0, 0, 20, 0, 0, 0, 6];
    let sum = match (from.ip(), to.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            checksum(&[&from.octets(), &to.octets(), &tail, &segment])
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            checksum(&[&from.octets(), &to.octets(), &tail, &segment])
        }
        _ => panic!("two families"),
    };
    segment[16..18].copy_from_slice(&sum.to_be_bytes());
    segment
}

/// A frame's packet in two fragments of this identification.
fn fragments(frame: &[u8], identification: u8) -> [Vec<u8>; 2] {
    const FIRST: usize = 1024;
    let is_v4 = frame[12..14] == [8, 0];
    let header =
        14 + if is_v4 { Ipv4Addr::BITS / 8 + 16 } else { Ipv6Addr::BITS / 8 + 24 } as usize;
    let (head, payload) = frame.split_at(header);
    let fragment = |part: &[u8], offset: usize, more: bool| {
        let mut frame = head.to_vec();
        if is_v4 {
            let offset = u16::try_from(offset / 8).unwrap() | u16::from(more) << 13;
            let length = u16::try_from(20 + part.len()).unwrap();
            frame[16..18].copy_from_slice(&length.to_be_bytes());
            frame[18..20].copy_from_slice(&[0, identification]);
            frame[20..22].copy_from_slice(&offset.to_be_bytes());
            frame[24..26].fill(0);
            let sum = checksum(&[&frame[14..34]]);
            frame[24..26].copy_from_slice(&sum.to_be_bytes());
        } else {
            let length = u16::try_from(8 + part.len()).unwrap();
            frame[18..20].copy_from_slice(&length.to_be_bytes());
            let next = std::mem::replace(&mut frame[20], 44);
            let offset = u16::try_from(offset).unwrap() | u16::from(more);
            frame.extend([next, 0]);
            frame.extend(offset.to_be_bytes());
            frame.extend([0, 0, 0, identification]);
        }
        frame.extend(part);
        frame
    };
    let (first, second) = payload.split_at(FIRST);
    [fragment(first, 0, true), fragment(second, FIRST, false)]
}
