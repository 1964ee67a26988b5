//! A node as operators run it: the agent, the plugin as a runtime calls it, pods.
#![allow(
    unreachable_pub,
    dead_code,
    clippy::unwrap_used,
    reason = "a test fails by panicking; every test binary compiles this module and uses a part"
)]

use std::{
    net::IpAddr,
    path::PathBuf,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use podwire_api::{Client, DEFAULT_RUN_DIR, EndpointId, socket_path};
use podwire_datapath::{
    Tables,
    abi::{Hook, Reason, map},
};
use podwire_lab::{Agent, AgentSpec, Attachment, Cni, Host, Inventory, Pod, binary};
use podwire_netlink::{IfIndex, IfName, Netlink, Route, RouteFilter, TableId};
use serde_json::{Value, json};

pub const POD_CIDRS: [&str; 2] = ["10.1.0.0/24", "fd00:1::/64"];
pub const BPFFS: &str = "/sys/fs/bpf/podwire";

/// Both ways of attaching programs; what traffic tests run in.
pub const MODES: [&str; 2] = ["tcx", "tc"];

pub struct Node {
    pub host: Host,
    pub agent: Agent,
    pub plugin: Cni,
    /// What stood there before the first pod.
    pub empty: Inventory,
}

/// An attached pod.
pub struct TestPod {
    pub pod: Pod,
    pub attachment: Attachment,
    /// What ADD printed.
    pub result: Value,
    pub v4: IpAddr,
    pub v6: IpAddr,
}

impl TestPod {
    pub fn addresses(&self) -> [IpAddr; 2] {
        [self.v4, self.v6]
    }

    /// What podwire calls it.
    pub fn id(&self) -> EndpointId {
        EndpointId::new(&self.attachment.container_id, &self.attachment.ifname).unwrap()
    }

    /// The host link's name.
    pub fn host_link(&self) -> &str {
        self.result["interfaces"][0]["name"].as_str().unwrap()
    }

    /// A MAC of the result: 0 is the host link's, 1 the container's.
    pub fn mac(&self, interface: usize) -> [u8; 6] {
        let text = self.result["interfaces"][interface]["mac"].as_str().unwrap();
        let octets: Vec<_> = text.split(':').map(|o| u8::from_str_radix(o, 16).unwrap()).collect();
        octets.try_into().unwrap()
    }
}

impl Node {
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    /// Starts a node whose agent gets these arguments besides its name and pod CIDRs.
    pub fn start_with(arguments: &[&str]) -> Self {
        let host = Host::new().unwrap();
        Self::start_in(host, arguments)
    }

    /// The same in a host that was prepared.
    pub fn start_in(host: Host, arguments: &[&str]) -> Self {
        let agent = agent(&host, arguments).start().unwrap();
        let plugin = Cni::new(&host, binary("podwire-cni").unwrap(), config());
        host.run(wait_for_router);
        let empty = host.inventory().unwrap();
        Self { host, agent, plugin, empty }
    }

    /// Kills the agent and starts one with these arguments in its place.
    pub fn restart_with(&mut self, arguments: &[&str]) {
        self.agent.kill().unwrap();
        self.agent = agent(&self.host, arguments).start().unwrap();
    }

    /// Makes a pod and attaches it.
    pub fn add(&self, name: &str) -> TestPod {
        let pod = self.host.add_pod(name).unwrap();
        self.attach(pod)
    }

    /// Attaches a pod.
    pub fn attach(&self, pod: Pod) -> TestPod {
        let attachment = attachment(&pod);
        let result = self.plugin.add(&attachment).unwrap();
        let address = |place: usize| -> IpAddr {
            let text = result["ips"][place]["address"].as_str().unwrap();
            text.split('/').next().unwrap().parse().unwrap()
        };
        let (v4, v6) = (address(0), address(1));
        TestPod { pod, attachment, result, v4, v6 }
    }

    /// Removes a pod as runtimes do: DEL, the namespace, DEL again without it.
    pub fn delete(&self, pod: &TestPod) {
        self.plugin.del(&pod.attachment, Some(&pod.result)).unwrap();
        self.host.remove_pod_netns(pod.pod.name()).unwrap();
        let gone = Attachment { netns: PathBuf::new(), ..pod.attachment.clone() };
        self.plugin.del(&gone, None).unwrap();
    }

    /// Asks the agent.
    pub fn ask<T: Send>(
        &self,
        question: impl FnOnce(&Client) -> Result<T, podwire_api::Error> + Send,
    ) -> T {
        let client = Client::new(socket_path(DEFAULT_RUN_DIR.as_ref()));
        self.host.run(|| question(&client)).unwrap()
    }

    /// Runs the CLI with `--output json`.
    pub fn cli(&self, arguments: &[&str]) -> Value {
        let mut command = self.host.command(binary("podwire").unwrap());
        let output = command.args(arguments).args(["--output", "json"]).output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "podwire {}: {errors}", arguments.join(" "));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// The node's tables.
    pub fn tables(&self) -> Tables {
        self.host.run(|| Tables::open(BPFFS)).unwrap()
    }

    /// Packets counted so far.
    pub fn counted(&self, hook: Hook, reason: Reason) -> u64 {
        let rows = self.tables().metrics().unwrap();
        let row = rows.iter().find(|row| row.hook == hook && row.reason == reason);
        row.map_or(0, |row| row.packets)
    }

    /// Everything dropped so far, at any hook, but what a starting IPv6 stack says to everybody.
    pub fn drops(&self) -> Vec<String> {
        let rows = self.tables().metrics().unwrap();
        rows.iter()
            .filter(|row| row.reason.is_drop() && row.reason != Reason::Multicast)
            .map(|row| format!("{} {} {}", row.hook, row.reason, row.packets))
            .collect()
    }

    /// Asserts that nothing of any pod is left: in the kernel, in the maps, in the records.
    pub fn assert_clean(&self) {
        self.assert_clean_since(&self.empty);
    }

    /// The same, compared with another state of the host.
    pub fn assert_clean_since(&self, empty: &Inventory) {
        assert_eq!(self.host.inventory().unwrap().since(empty), [] as [&str; 0], "left behind");
        let tables = self.tables();
        assert_eq!(tables.endpoints().unwrap(), []);
        let local: Vec<_> =
            tables.ipcache().unwrap().into_iter().filter(|row| row.slot.is_some()).collect();
        assert_eq!(local, []);
        let links = format!("{BPFFS}/maps/{}", map::LINKS);
        let links = self.host.run(|| podwire_bpf::HashMap::<u32, u32>::open(links)).unwrap();
        assert_eq!(links.entries().unwrap(), []);
        assert_eq!(self.ask(Client::endpoints), []);
        assert_eq!(self.ask(Client::leases), []);
        for one in self.ask(Client::pools).iter().flat_map(|pool| &pool.cidrs) {
            assert_eq!((one.used, one.pending), (0, 0), "{}", one.cidr);
        }
    }
}

/// How a runtime would call for a pod's `eth0`.
pub fn attachment(pod: &Pod) -> Attachment {
    Attachment::new(format!("{}-container", pod.name()), pod.path())
}

/// Waits until it is so.
#[track_caller]
pub fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < Duration::from_secs(60), "waited in vain until {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// Does it with all of them, so many at a time; the results are in the order of the items.
pub fn at_once<T: Send, R: Send>(
    workers: usize,
    items: impl IntoIterator<Item = T>,
    act: impl Fn(T) -> R + Sync,
) -> Vec<R> {
    let items: Vec<_> = items.into_iter().map(|item| Mutex::new(Some(item))).collect();
    let next = AtomicUsize::new(0);
    let work = || {
        let mut done = Vec::new();
        loop {
            let place = next.fetch_add(1, Ordering::Relaxed);
            let Some(item) = items.get(place) else { return done };
            done.push((place, act(item.lock().unwrap().take().unwrap())));
        }
    };
    let mut done: Vec<_> = thread::scope(|scope| {
        let threads: Vec<_> = (0..workers).map(|_| scope.spawn(work)).collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    done.sort_by_key(|(place, _)| *place);
    done.into_iter().map(|(_, result)| result).collect()
}

/// The kernel makes the routes of a link for groups in a work queue, too.
fn wait_for_router() {
    let mut netlink = Netlink::open().unwrap();
    let pair = ["podwire_host", "podwire_net"].map(|name| name.parse::<IfName>().unwrap());
    let pair = pair.map(|name| netlink.link(name).unwrap().index);
    until("the kernel has made its routes for groups", || {
        let routes = netlink.routes(&RouteFilter::table(TableId::LOCAL)).unwrap();
        let is_group = |one: &&Route| one.destination.ip().is_multicast();
        pair.iter().all(|link| routes.iter().filter(is_group).any(|one| one.output == Some(*link)))
    });
    wait_for_addresses(&mut netlink, pair[0]);
}

/// The kernel makes the local route of an IPv6 address in a work queue.
fn wait_for_addresses(netlink: &mut Netlink, link: IfIndex) {
    let is_given = |address: &IpAddr| match address {
        IpAddr::V4(_) => true,
        IpAddr::V6(v6) => !v6.is_unicast_link_local(),
    };
    let addresses = netlink.addresses(link).unwrap();
    let given: Vec<_> = addresses.iter().map(|one| one.network.ip()).filter(is_given).collect();
    until("the kernel has made the local routes of the addresses", || {
        let routes = netlink.routes(&RouteFilter::table(TableId::LOCAL)).unwrap();
        given.iter().all(|address| routes.iter().any(|one| one.destination.ip() == *address))
    });
}

fn agent(host: &Host, arguments: &[&str]) -> AgentSpec {
    let spec = AgentSpec::new(host, binary("podwired").unwrap())
        .args(["--node-name", "node-1"])
        .args(arguments);
    if arguments.contains(&"--pod-cidr") {
        return spec;
    }
    spec.args(POD_CIDRS.iter().flat_map(|cidr| ["--pod-cidr", cidr]))
}

/// A network configuration for the plugin.
pub fn config() -> Value {
    json!({ "cniVersion": "1.0.0", "name": "podnet", "type": "podwire-cni" })
}
