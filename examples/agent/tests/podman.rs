//! podman on podwire, as `docs/podman.md` tells operators to set it up: the network and podman's
//! configuration are read from that page. All of podman's state is in the lab host.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod node;

use std::{
    fs,
    io::{self, Read, Write},
    net::{IpAddr, SocketAddr, TcpStream},
    os::unix::fs::symlink,
    path::Path,
    process::{self, Child, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use node::{Node, until};
use podwire_lab::{Host, allowed_missing, binary, probe::Ping};
use serde_json::Value;

const GUIDE: &str = include_str!("../../../docs/podman.md");
const ROUTER: [&str; 2] = ["10.1.0.1", "fd00:1::1"];
const IMAGE: &str = "localhost/busybox";

/// Tells its name on port 80, and ends when it is told to.
const SERVE: &str = "trap 'exit 0' TERM; mkdir -p /www; hostname > /www/name; \
                     httpd -f -p 80 -h /www & wait";

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
    assert_eq!(podman.endpoints(), [b.id.as_str()]);
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
        assert_eq!(podman.fetch_from_node(published), "b");
        assert_eq!(podman.fetch(&a, published), "b");
        assert_eq!(podman.fetch(&b, published), "b");
    }

    for (wanted, why) in [
        ("--ip=10.1.0.77", format!("10.1.0.77 is held by {}/eth0", a.id)),
        ("--ip=10.9.0.77", "10.9.0.77 is in no CIDR".to_owned()),
        ("--mac-address=02:00:00:00:00:77", "MAC=02:00:00:00:00:77 is not supported".to_owned()),
    ] {
        let refused = podman.try_run(&["run", "--rm", "--network=podwire", wanted, IMAGE, "true"]);
        let error = refused.unwrap_err();
        assert!(error.contains(&why), "{error}");
    }
    podman.run(&["rm", "--force", "a", "b"]);
    podman.assert_clean(&[&a, &b]);
}

struct Container {
    name: String,
    id: String,
    pid: u32,
    addresses: [IpAddr; 2],
}

/// A node with podman on it.
struct Podman {
    node: Node,
    // Emptied when the node has ended.
    cgroups: Cgroups,
}

impl Podman {
    /// None when something is missing that may be.
    fn start() -> Option<Self> {
        let needed = [
            ("podman", "/usr/bin/podman"),
            ("runc", "/usr/sbin/runc"),
            ("busybox-static", "/bin/busybox"),
            ("containernetworking-plugins", "/usr/lib/cni/portmap"),
            ("iptables", "/usr/sbin/iptables"),
        ];
        if needed.iter().any(|(name, file)| allowed_missing(name, || Path::new(file).exists())) {
            return None;
        }
        let cgroups = Cgroups::new();
        let host = Host::new().unwrap();
        host.run(configure).unwrap();
        let podman = Self { node: Node::start_in(host, &[]), cgroups };
        // podman's locks are in shared memory, under one name for the whole machine.
        podman.command("mount", &["-t", "tmpfs", "tmpfs", "/dev/shm"]).unwrap();
        podman.command("tar", &["-C", "/run/image", "-cf", "/run/image.tar", "."]).unwrap();
        podman.run(&["import", "--quiet", "/run/image.tar", IMAGE]);
        Some(Self {
            node: Node { empty: podman.node.host.inventory().unwrap(), ..podman.node },
            ..podman
        })
    }

    /// Runs podman and tells what it printed.
    #[track_caller]
    fn run(&self, arguments: &[&str]) -> String {
        self.try_run(arguments).unwrap_or_else(|error| panic!("podman {arguments:?}: {error}"))
    }

    fn try_run(&self, arguments: &[&str]) -> Result<String, String> {
        let (verb, others) = arguments.split_first().unwrap();
        let parent = format!("--cgroup-parent=/{}", self.cgroups.name);
        let own: &[&str] = if *verb == "run" { &[verb, &parent] } else { &[verb] };
        self.command("podman", &[own, others].concat())
    }

    /// Runs a program on the node, with nothing of the caller's environment.
    fn command(&self, program: &str, arguments: &[&str]) -> Result<String, String> {
        let mut command = self.node.host.command(program);
        command.args(arguments).current_dir("/").stdin(Stdio::null());
        command.env_clear().envs([
            ("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"),
            ("HOME", "/run/home"),
            ("TMPDIR", "/run"),
        ]);
        let output = command.output().unwrap();
        let [stdout, stderr] =
            [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap());
        if output.status.success() { Ok(stdout) } else { Err(stderr) }
    }

    #[track_caller]
    fn start_container(&self, name: &str, options: &[&str]) -> Container {
        // busybox's ping opens raw sockets.
        let usual = ["run", "--detach", "--network=podwire", "--cap-add=NET_RAW"];
        let named = ["--name", name, "--hostname", name];
        self.run(&[&usual[..], &named, options, &[IMAGE, "sh", "-c", SERVE]].concat());
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

    /// The agent's endpoints, by container.
    fn endpoints(&self) -> Vec<String> {
        let endpoints = self.node.cli(&["endpoint", "list"]);
        let ids = endpoints.as_array().unwrap().iter().map(|e| e["container_id"].as_str());
        ids.map(|id| id.unwrap().to_owned()).collect()
    }

    #[track_caller]
    fn assert_all_reach_all(&self, containers: &[&Container]) {
        assert_eq!(self.endpoints().len(), containers.len());
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
            assert_eq!(self.fetch_from_node(server), to.name);
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

    /// The name that a server tells the node, as soon as it listens.
    #[track_caller]
    fn fetch_from_node(&self, server: SocketAddr) -> String {
        let fetch = || -> io::Result<String> {
            let patience = Duration::from_secs(30);
            let mut stream = TcpStream::connect_timeout(&server, patience)?;
            stream.set_read_timeout(Some(patience))?;
            stream.write_all(b"GET /name HTTP/1.0\r\n\r\n")?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            Ok(answer.rsplit("\r\n\r\n").next().unwrap_or_default().trim_end().to_owned())
        };
        let mut name = None;
        until(&format!("the node reaches {server}"), || {
            name = self.node.host.run(fetch).ok();
            name.is_some()
        });
        name.unwrap()
    }

    /// Asserts that nothing is left of any container: links, routes, namespaces, mounts, pins, map
    /// entries, records of the agent's and of podman's, processes.
    #[track_caller]
    fn assert_clean(&self, containers: &[&Container]) {
        assert_eq!(self.run(&["ps", "--all", "--quiet"]), "");
        for folder in ["/var/lib/cni/results", "/run/podwire/pending-del"] {
            let left = self.node.host.run(|| fs::read_dir(folder).unwrap().count());
            assert_eq!(left, 0, "{folder}");
        }
        for container in containers {
            let process = format!("/proc/{}", container.pid);
            assert!(!Path::new(&process).exists(), "{} runs", container.name);
        }
        // A container's monitor ends a moment after its container.
        until("no process is left", || self.processes().is_empty());
        let now = self.node.host.inventory().unwrap();
        assert_eq!(now.since(&self.node.empty), OF_PODMAN);
        self.node.assert_clean_since(&now);
    }

    /// Every process on the node but the agent and the lab's own.
    fn processes(&self) -> Vec<String> {
        let mounts = self.node.host.run(|| fs::read_link("/proc/thread-self/ns/mnt")).unwrap();
        let agent = self.node.agent.pid().to_string();
        let processes = fs::read_dir("/proc").unwrap().map(|entry| entry.unwrap().path());
        let here = processes.filter(|process| {
            fs::read_link(process.join("ns/mnt")).is_ok_and(|other| other == mounts)
        });
        here.filter(|process| !process.ends_with(&agent))
            .map(|process| fs::read_to_string(process.join("comm")).unwrap_or_default())
            .filter(|name| name.trim_end() != "podwire-lab")
            .collect()
    }
}

/// Writes podman's configuration, and the folder that becomes its only image.
fn configure() -> io::Result<()> {
    let write = |path: &str, text: &str| {
        fs::create_dir_all(Path::new(path).parent().unwrap())?;
        fs::write(path, text)
    };
    let plugins = binary("podwire-cni").unwrap();
    let plugins = plugins.parent().unwrap().to_str().unwrap();
    let containers = block("toml").replace("/opt/cni/bin", plugins);
    write("/etc/containers/containers.conf", &containers)?;
    write("/etc/containers/containers.conf.d/lab.conf", OF_LAB)?;
    write("/etc/containers/storage.conf", STORAGE)?;
    write("/etc/containers/policy.json", POLICY)?;
    write("/etc/cni/net.d/10-podwire.conflist", block("json"))?;

    fs::create_dir_all("/run/home")?;
    fs::create_dir_all("/run/image/bin")?;
    fs::copy("/bin/busybox", "/run/image/bin/busybox")?;
    for applet in ["hostname", "httpd", "mkdir", "ping", "sh", "true", "wget"] {
        symlink("busybox", Path::new("/run/image/bin").join(applet))?;
    }
    Ok(())
}

/// The guide's only block in this language.
fn block(language: &str) -> &'static str {
    let start = format!("\n```{language}\n");
    let [_, rest] = GUIDE.split(&start).collect::<Vec<_>>()[..] else {
        panic!("docs/podman.md has one block of {language}");
    };
    rest.split("```").next().unwrap()
}

/// A cgroup of its own in every hierarchy. A lab host does not take its cgroups along when it ends,
/// so a process outside does, however this one ends.
struct Cgroups {
    name: String,
    sweeper: Child,
}

impl Cgroups {
    fn new() -> Self {
        /// Waits for the end of its input; then removes what has become empty, until all has.
        const SWEEP: &str = r#"
            cat
            for round in $(seq 3000); do
                find /sys/fs/cgroup -depth -path "*/$0*" -type d -exec rmdir {} + && exit
                sleep 0.01
            done"#;
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("podwire-test-{}-{number}", process::id());
        let mut sweeper = Command::new("setsid");
        sweeper.args(["sh", "-c", SWEEP, &name]).current_dir("/");
        let sweeper = sweeper.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        Self { name, sweeper: sweeper.spawn().unwrap() }
    }
}

impl Drop for Cgroups {
    fn drop(&mut self) {
        // Closes its input, too.
        self.sweeper.wait().unwrap();
    }
}
