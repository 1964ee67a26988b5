//! A node as operators run it: the agent, the plugin as a runtime calls it, pods.
#![allow(
    unreachable_pub,
    dead_code,
    clippy::unwrap_used,
    reason = "a test fails by panicking; every test binary compiles this module and uses a part"
)]

use std::{net::IpAddr, path::PathBuf};

use podwire_datapath::{
    Tables,
    abi::{Hook, Reason},
};
use podwire_lab::{Agent, AgentSpec, Attachment, Cni, Host, Inventory, Pod, binary};
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
        let mut spec = AgentSpec::new(&host, binary("podwired").unwrap())
            .args(["--node-name", "node-1"])
            .args(arguments);
        if !arguments.contains(&"--pod-cidr") {
            spec = spec.args(POD_CIDRS.iter().flat_map(|cidr| ["--pod-cidr", cidr]));
        }
        let agent = spec.start().unwrap();
        let plugin = Cni::new(&host, binary("podwire-cni").unwrap(), config());
        let empty = host.inventory().unwrap();
        Self { host, agent, plugin, empty }
    }

    /// Makes a pod and attaches it.
    pub fn add(&self, name: &str) -> TestPod {
        let pod = self.host.add_pod(name).unwrap();
        let attachment = Attachment::new(format!("{name}-container"), pod.path());
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
        let left = self.host.inventory().unwrap().since(&self.empty);
        assert!(left.is_empty(), "left behind: {left:#?}");
        let tables = self.tables();
        assert_eq!(tables.endpoints().unwrap(), []);
        let local: Vec<_> =
            tables.ipcache().unwrap().into_iter().filter(|row| row.slot.is_some()).collect();
        assert_eq!(local, []);
        for list in [&["endpoint", "list"][..], &["ipam", "list"]] {
            let rows = self.cli(list);
            assert_eq!(rows.as_array().map(Vec::len), Some(0), "podwire {list:?}: {rows}");
        }
    }
}

/// A network configuration for the plugin.
pub fn config() -> Value {
    json!({ "cniVersion": "1.0.0", "name": "podnet", "type": "podwire-cni" })
}
