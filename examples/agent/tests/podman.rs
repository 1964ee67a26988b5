//! podman on podwire, as `docs/podman.md` tells operators to set it up: the network and podman's
//! configuration are read from that page. All of podman's state is in the lab host.

#![allow(clippy::print_stdout, reason = "what was met on the way is worth knowing")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod node;
mod runtime;

use std::{
    collections::BTreeSet,
    fs, io,
    net::{IpAddr, SocketAddr},
    path::Path,
    process::{ExitStatus, Stdio},
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::Duration,
};

use node::{Node, at_once, until};
use podwire_lab::{Host, binary, probe::Ping};
use runtime::{
    Cgroups, SERVE, assert_no_notes, block, clean_command, collect_garbage, endpoints, fetch,
    processes, remove_forgotten, write, write_image,
};
use serde_json::Value;

const GUIDE: &str = include_str!("../../../docs/podman.md");
const ROUTER: [&str; 2] = ["10.1.0.1", "fd00:1::1"];
const IMAGE: &str = "localhost/busybox";

/// What podman makes once, for all containers to come.
const OF_PODMAN: [&str; 1] = ["mount /run/netns of /netns"];

/// What a lab host needs and an ordinary machine does not: it has no systemd to ask for cgroups,
/// and may lack the `CAP_SYS_RESOURCE` to raise limits with.
const OF_LAB: &str = r#"
[containers]
default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]
log_driver = "k8s-file"
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
"#;

const STORAGE: &str = r#"
[storage]
driver = "overlay"
runroot = "/run/containers/storage"
graphroot = "/var/lib/containers/storage"
"#;

const POLICY: &str = r#"{ "default": [{ "type": "insecureAcceptAnything" }] }"#;

#[test]
#[ignore = "needs root: a node in namespaces of its own"]
fn containers_reach_each_other_and_their_node() {
    let Some(podman) = Podman::start() else { return };
    let networks = podman.run(&["network", "ls", "--format", "{{.Name}} {{.Driver}}"]);
    assert_eq!(networks, "podwire podwire-cni\n");

    let (a, b) = (podman.start_container("a", &[]), podman.start_container("b", &[]));
    podman.assert_all_reach_all(&[&a, &b]);

    podman.run(&["restart", "a"]);
    let before = a;
    let a = podman.inspect("a");
    assert_ne!(a.pid, before.pid);
    for (address, earlier) in a.addresses.into_iter().zip(before.addresses) {
        assert_ne!(address, earlier, "given out again at once");
    }
    podman.assert_all_reach_all(&[&a, &b]);
    assert_eq!(podman.node.drops(), [] as [&str; 0]);

    podman.run(&["stop", "a"]);
    podman.run(&["rm", "a"]);
    assert_eq!(endpoints(&podman.node), [b.id.as_str()]);
    podman.run(&["stop", "b"]);
    podman.run(&["rm", "b"]);
    podman.assert_clean(&[&before, &a, &b]);
}

#[test]
#[ignore = "needs root: a node in namespaces of its own"]
fn containers_outlive_the_agent_and_are_removed_without_it() {
    let Some(mut podman) = Podman::start() else { return };
    let names = ["a", "b", "c"];
    let [a, b, c] = names.map(|name| podman.start_container(name, &[]));
    podman.node.agent.kill().unwrap();

    let refused = podman.try_run(&["run", "--name=d", "--network=podwire", IMAGE, "true"]);
    let error = refused.unwrap_err();
    assert!(error.contains("the podwire agent is not reachable"), "{error}");
    podman.run(&["rm", "d"]);
    podman.run(&["rm", "--force", "c"]);
    podman.assert_reach(&a, &b);
    podman.assert_reach(&b, &a);

    podman.node.agent.start_again().unwrap();
    podman.assert_all_reach_all(&[&a, &b]);
    podman.run(&["rm", "--force", "a", "b"]);
    podman.assert_clean(&[&a, &b, &c]);
}

#[test]
#[ignore = "needs root: a node in namespaces of its own"]
fn addresses_are_chosen_and_ports_are_published() {
    let Some(podman) = Podman::start() else { return };
    let chosen = ["--ip=10.1.0.77", "--ip6=fd00:1::77"];
    let a = podman.start_container("a", &chosen);
    assert_eq!(a.addresses.map(|a| a.to_string()), ["10.1.0.77", "fd00:1::77"]);
    let b = podman.start_container("b", &["--publish=8080:80"]);
    podman.assert_all_reach_all(&[&a, &b]);
    for router in ROUTER {
        let published = SocketAddr::new(router.parse().unwrap(), 8080);
        assert_eq!(fetch(&podman.node.host, published), "b");
        assert_eq!(podman.fetch(&a, published), "b");
        assert_eq!(podman.fetch(&b, published), "b");
    }

    for (wanted, why) in [
        ("--ip=10.1.0.77", format!("10.1.0.77 is held by {}/eth0", a.id)),
        ("--ip=10.9.0.77", "10.9.0.77 is in no CIDR".to_owned()),
        ("--mac-address=01:00:5e:00:00:01", "is no address of one interface".to_owned()),
    ] {
        let refused = podman.try_run(&["run", "--rm", "--network=podwire", wanted, IMAGE, "true"]);
        let error = refused.unwrap_err();
        assert!(error.contains(&why), "{error}");
    }
    let c = podman.start_container("c", &["--mac-address=02:00:00:00:00:77"]);
    let mac = ["exec", "c", "sh", "-c", "read mac < /sys/class/net/eth0/address; echo $mac"];
    assert_eq!(podman.run(&mac), "02:00:00:00:00:77\n");
    podman.assert_all_reach_all(&[&a, &b, &c]);
    podman.run(&["rm", "--force", "a", "b", "c"]);
    podman.assert_clean(&[&a, &b, &c]);
}

/// Twenty at four at a time, every fourth with a published port; the agent is killed and started
/// in the middle. A container that met no agent is removed and run again, as an operator would do.
#[test]
#[ignore = "needs root: a node in namespaces of its own, with 20 containers"]
fn twenty_containers_come_and_go_while_the_agent_restarts() {
    const CONTAINERS: u16 = 20;
    let Some(mut podman) = Podman::start() else { return };
    let port_of = |n: u16| n.is_multiple_of(4).then_some(8000 + n);
    let (cli, started) = (podman.cli.clone(), AtomicUsize::new(0));
    let start = |n: u16| {
        let name = format!("c{n}");
        let publish = port_of(n).map(|port| format!("--publish={port}:80"));
        let options: Vec<_> = publish.as_deref().into_iter().collect();
        until(&format!("{name} runs"), || match cli.run(&run_arguments(&name, &options)) {
            Ok(_) => true,
            Err(error) => {
                // Killed before it was asked, or over the answer.
                let away =
                    ["the podwire agent is not reachable", "no answer from the podwire agent"];
                assert!(away.iter().any(|words| error.contains(words)), "{error}");
                cli.run(&["rm", "--force", &name]).unwrap();
                false
            }
        });
        started.fetch_add(1, Ordering::Relaxed);
    };
    thread::scope(|scope| {
        let all = scope.spawn(|| at_once(4, 0..CONTAINERS, start));
        until("some containers run", || started.load(Ordering::Relaxed) >= 8 || all.is_finished());
        podman.node.agent.kill().unwrap();
        podman.node.agent.start_again().unwrap();
        all.join().unwrap();
    });

    let containers: Vec<_> = (0..CONTAINERS).map(|n| podman.inspect(&format!("c{n}"))).collect();
    let addresses: BTreeSet<_> = containers.iter().flat_map(|one| one.addresses).collect();
    assert_eq!(addresses.len(), 2 * usize::from(CONTAINERS), "{addresses:?}");
    assert_eq!(endpoints(&podman.node).len(), usize::from(CONTAINERS));
    let next = containers.iter().cycle().skip(1);
    at_once(4, containers.iter().zip(next), |(from, to)| podman.assert_reach(from, to));
    let published = (0..CONTAINERS).filter_map(|n| Some((n, port_of(n)?)));
    for ((n, port), router) in published.flat_map(|one| ROUTER.map(|router| (one, router))) {
        let published = SocketAddr::new(router.parse().unwrap(), port);
        assert_eq!(fetch(&podman.node.host, published), format!("c{n}"));
    }

    // The agent again, while containers go.
    let removed = AtomicUsize::new(0);
    let remove = |one: &Container| {
        cli.run(&["rm", "--force", "--time=2", &one.name]).unwrap();
        removed.fetch_add(1, Ordering::Relaxed);
    };
    thread::scope(|scope| {
        let all = scope.spawn(|| at_once(4, &containers, remove));
        until("some containers are removed", || {
            removed.load(Ordering::Relaxed) >= 8 || all.is_finished()
        });
        podman.node.agent.kill().unwrap();
        podman.node.agent.start_again().unwrap();
        all.join().unwrap();
    });
    podman.assert_clean(&containers.iter().collect::<Vec<_>>());
}

/// podman is no daemon: what dies in the middle is `podman run`, at any of its steps. It records a
/// container's network after it has made it, so `podman rm` may not know of it: then the plugin's GC
/// removes the endpoint, as it does for operators.
#[test]
#[ignore = "needs root: a node in namespaces of its own"]
fn a_killed_podman_run_leaves_nothing_that_rm_and_gc_do_not_remove() {
    let Some(podman) = Podman::start() else { return };
    let (mut killed, mut forgotten) = (0, 0);
    for step in 1..=20 {
        let arguments = run_arguments("k", &["--publish=8080:80"]);
        let status = podman.cli.run_and_kill(&arguments, Duration::from_millis(20 * step));
        killed += u32::from(!status.success());
        // Killed before it recorded the container, podman knows none of this name.
        let _ = podman.try_run(&["rm", "--force", "--time=0", "k"]);
        assert_eq!(podman.run(&["ps", "--all", "--quiet"]), "");
        forgotten += collect_garbage(&podman.node, GUIDE, &[]);
        assert_eq!(endpoints(&podman.node), [] as [&str; 0]);
    }
    assert!(killed > 0);
    println!("podman forgot {forgotten} endpoints");
    println!("podman forgot {:?}", remove_forgotten(&podman.node, ""));

    let whole = podman.start_container("k", &["--publish=8080:80"]);
    podman.assert_all_reach_all(&[&whole]);
    podman.run(&["rm", "--force", "--time=2", "k"]);
    podman.assert_clean(&[&whole]);
}

/// `podman run` of a server. busybox's ping opens raw sockets.
fn run_arguments<'a>(name: &'a str, options: &[&'a str]) -> Vec<&'a str> {
    let usual = ["run", "--detach", "--network=podwire", "--cap-add=NET_RAW"];
    let named = ["--name", name, "--hostname", name];
    [&usual[..], &named, options, &[IMAGE, "sh", "-c", SERVE]].concat()
}

struct Container {
    name: String,
    id: String,
    pid: u32,
    addresses: [IpAddr; 2],
}

/// podman on a node, whoever calls it.
#[derive(Clone)]
struct Cli {
    host: Host,
    cgroup: String,
}

impl Cli {
    fn run(&self, arguments: &[&str]) -> Result<String, String> {
        runtime::run(&self.host, "podman", &self.arguments(arguments))
    }

    /// Kills podman this long after its start, or lets it end before that: how it ended.
    fn run_and_kill(&self, arguments: &[&str], after: Duration) -> ExitStatus {
        let mut command = clean_command(&self.host, "podman");
        command.args(self.arguments(arguments));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = command.spawn().unwrap();
        thread::sleep(after);
        child.kill().unwrap();
        child.wait().unwrap()
    }

    fn arguments<'a>(&'a self, arguments: &[&'a str]) -> Vec<&'a str> {
        let (verb, others) = arguments.split_first().unwrap();
        let own: &[&str] =
            if *verb == "run" { &[verb, "--cgroup-parent", &self.cgroup] } else { &[verb] };
        [own, others].concat()
    }
}

/// A node with podman on it.
struct Podman {
    node: Node,
    cli: Cli,
    // Emptied when the node has ended.
    _cgroups: Cgroups,
}

impl Podman {
    /// None when something is missing that may be.
    fn start() -> Option<Self> {
        if runtime::may_do_without("podman", "/usr/bin/podman") {
            return None;
        }
        let cgroups = Cgroups::new();
        let host = Host::new().unwrap();
        host.run(configure).unwrap();
        let run = |program, arguments: &[&str]| runtime::run(&host, program, arguments).unwrap();
        // podman's locks are in shared memory, under one name for the whole machine.
        run("mount", &["-t", "tmpfs", "tmpfs", "/dev/shm"]);
        run("tar", &["-C", "/run/image", "-cf", "/run/image.tar", "."]);
        run("podman", &["import", "--quiet", "/run/image.tar", IMAGE]);
        let cli = Cli { host: host.clone(), cgroup: format!("/{}", cgroups.name) };
        Some(Self { node: Node::start_in(host, &[]), cli, _cgroups: cgroups })
    }

    /// Runs podman and tells what it printed.
    #[track_caller]
    fn run(&self, arguments: &[&str]) -> String {
        self.try_run(arguments).unwrap_or_else(|error| panic!("podman {arguments:?}: {error}"))
    }

    fn try_run(&self, arguments: &[&str]) -> Result<String, String> {
        self.cli.run(arguments)
    }

    #[track_caller]
    fn start_container(&self, name: &str, options: &[&str]) -> Container {
        self.run(&run_arguments(name, options));
        self.inspect(name)
    }

    /// What podman says of a container's network, which must be what the agent has recorded.
    #[track_caller]
    fn inspect(&self, name: &str) -> Container {
        let answer: Value = serde_json::from_str(&self.run(&["inspect", name])).unwrap();
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let (id, network) =
            (text(&answer[0]["Id"]), &answer[0]["NetworkSettings"]["Networks"]["podwire"]);
        let addresses = ["IPAddress", "GlobalIPv6Address"].map(|key| text(&network[key]));
        assert_eq!([&network["Gateway"], &network["IPv6Gateway"]], ROUTER);
        assert_eq!([&network["IPPrefixLen"], &network["GlobalIPv6PrefixLen"]], [32, 128]);

        let endpoints = self.node.cli(&["endpoint", "list"]);
        let endpoint = endpoints.as_array().unwrap().iter().find(|e| e["container_id"] == *id);
        let endpoint = endpoint.expect("the agent knows the container");
        assert_eq!(endpoint["addresses"], Value::from(addresses.to_vec()));
        assert_eq!(endpoint["mac"], network["MacAddress"]);
        assert_eq!(
            (&endpoint["ifname"], &endpoint["network"]),
            (&"eth0".into(), &"podwire".into())
        );

        Container {
            name: name.to_owned(),
            id,
            pid: answer[0]["State"]["Pid"].as_u64().unwrap().try_into().unwrap(),
            addresses: addresses.map(|address| address.parse().unwrap()),
        }
    }

    #[track_caller]
    fn assert_all_reach_all(&self, containers: &[&Container]) {
        assert_eq!(endpoints(&self.node).len(), containers.len());
        for from in containers {
            for to in containers {
                self.assert_reach(from, to);
            }
        }
    }

    /// Both families: the container and the node by ping, the server by HTTP; and from the node.
    #[track_caller]
    fn assert_reach(&self, from: &Container, to: &Container) {
        for (address, router) in to.addresses.into_iter().zip(ROUTER) {
            for target in [&address.to_string(), router] {
                let said = self.run(&["exec", &from.name, "ping", "-c", "1", target]);
                assert!(said.contains("1 packets received, 0% packet loss"), "{said}");
            }
            let ping = Ping::new(address).count(5).interval(Duration::from_millis(20));
            let report = self.node.host.run(|| ping.run()).unwrap();
            assert!(report.is_complete(), "node to {address}: {report}");

            let server = SocketAddr::new(address, 80);
            assert_eq!(fetch(&self.node.host, server), to.name);
            assert_eq!(self.fetch(from, server), to.name);
        }
    }

    /// The name that a server tells a container.
    #[track_caller]
    fn fetch(&self, container: &Container, server: SocketAddr) -> String {
        let url = format!("http://{server}/name");
        let name = self.run(&["exec", &container.name, "wget", "-q", "-O", "-", &url]);
        name.trim_end().to_owned()
    }

    /// Asserts that nothing is left of any container: links, routes, namespaces, mounts, pins, map
    /// entries, records of the agent's and of podman's, processes.
    #[track_caller]
    fn assert_clean(&self, containers: &[&Container]) {
        // A container's monitor ends a moment after its container, and starts a podman for that. Of two
        // that run at a time neither takes down podman's own mount; the next one does.
        until("no process is left", || processes(&self.node).is_empty());
        assert_eq!(self.run(&["ps", "--all", "--quiet"]), "");
        assert_no_notes(&self.node.host);
        for container in containers {
            let process = format!("/proc/{}", container.pid);
            assert!(!Path::new(&process).exists(), "{} runs", container.name);
        }
        let now = self.node.host.inventory().unwrap();
        assert_eq!(now.since(&self.node.empty), OF_PODMAN);
        self.node.assert_clean_since(&now);
    }
}

/// Writes podman's configuration, and the folder that becomes its only image.
fn configure() -> io::Result<()> {
    let plugins = binary("podwire-cni").unwrap();
    let plugins = plugins.parent().unwrap().to_str().unwrap();
    let containers = block(GUIDE, "toml").replace("/opt/cni/bin", plugins);
    write("/etc/containers/containers.conf", &containers)?;
    write("/etc/containers/containers.conf.d/lab.conf", OF_LAB)?;
    write("/etc/containers/storage.conf", STORAGE)?;
    write("/etc/containers/policy.json", POLICY)?;
    write("/etc/cni/net.d/10-podwire.conflist", block(GUIDE, "json"))?;

    fs::create_dir_all("/run/home")?;
    write_image("/run/image")
}
