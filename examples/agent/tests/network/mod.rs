//! Networks of several plugins, run as a container runtime runs them, and the guide they are from.
#![allow(
    unreachable_pub,
    dead_code,
    clippy::unwrap_used,
    reason = "a test fails by panicking; every test binary compiles this module and uses a part"
)]

use std::{
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use podwire_api::{Endpoint, EndpointId};
use podwire_cni::{
    Args, Error,
    runtime::{Cache, Network, Request, Runtime},
    types::Success,
};
use podwire_lab::{Attachment, Cni, Host, Pod, allowed_missing, binary, probe::Ping};
use serde_json::{Value, json};

use crate::node::{Node, until};

const GUIDE: &str = include_str!("../../../../docs/chaining.md");

/// Where Debian's plugins are.
pub const PLUGINS: &str = "/usr/lib/cni";

/// Whether Debian's plugins, or the iptables that some of them call, are not there and need not be.
pub fn are_missing() -> bool {
    let needed =
        [("containernetworking-plugins", "/usr/lib/cni/ptp"), ("iptables", "/usr/sbin/iptables")];
    needed.iter().any(|(name, file)| allowed_missing(name, || Path::new(file).exists()))
}

/// All lists of the guide.
pub fn guides() -> Vec<Value> {
    let blocks = GUIDE.split("\n```json\n").skip(1);
    let texts = blocks.map(|rest| rest.split("```").next().unwrap());
    texts.map(|text| serde_json::from_str(text).unwrap()).collect()
}

/// The guide's list of this name.
#[track_caller]
pub fn guide(name: &str) -> Value {
    let found = guides().into_iter().find(|list| list["name"] == name);
    found.unwrap_or_else(|| panic!("the guide has no {name}"))
}

/// A configured network, as a runtime calls it.
pub struct Net {
    pub host: Host,
    pub list: Value,
    network: Network,
    runtime: Runtime,
}

/// A pod that is attached to one.
pub struct Member {
    pub pod: Pod,
    pub request: Request,
    pub result: Success,
}

impl Net {
    pub fn new(node: &Node, list: Value) -> Self {
        let network = Network::parse(list.to_string().as_bytes()).unwrap();
        let ours = binary("podwire-cni").unwrap();
        let path = [ours.parent().unwrap().to_owned(), PLUGINS.into()];
        let runtime = Runtime::new(path, Cache::new("/var/lib/cni"));
        Self { host: node.host.clone(), list, network, runtime }
    }

    /// The guide's.
    pub fn of_guide(node: &Node, name: &str) -> Self {
        Self::new(node, guide(name))
    }

    /// Makes a pod and attaches it.
    #[track_caller]
    pub fn add(&self, name: &str) -> Member {
        self.add_with(name, &json!({}))
    }

    /// The same with capabilities' values.
    #[track_caller]
    pub fn add_with(&self, name: &str, capabilities: &Value) -> Member {
        let pod = self.host.add_pod(name).unwrap();
        let mut request = request(&pod);
        request.capabilities = capabilities.as_object().unwrap().clone();
        let result = self.try_add(&request).unwrap();
        Member { pod, request, result }
    }

    pub fn try_add(&self, request: &Request) -> Result<Success, Error> {
        self.host.run(|| self.runtime.add(&self.network, request))
    }

    pub fn check(&self, member: &Member) -> Result<(), Error> {
        self.host.run(|| self.runtime.check(&self.network, &member.request)).map(drop)
    }

    pub fn try_del(&self, request: &Request) -> Result<(), Error> {
        self.host.run(|| self.runtime.del(&self.network, request))
    }

    /// Removes a pod as runtimes do: DEL, the namespace, DEL again without it.
    #[track_caller]
    pub fn delete(&self, member: &Member) {
        self.try_del(&member.request).unwrap();
        self.host.remove_pod_netns(member.pod.name()).unwrap();
        let mut gone = member.request.clone();
        gone.netns = None;
        self.try_del(&gone).unwrap();
    }

    /// One plugin of the list, by itself.
    pub fn plugin(&self, place: usize) -> Cni {
        let mut config = self.list["plugins"][place].clone();
        config.as_object_mut().unwrap().remove("capabilities");
        for key in ["cniVersion", "name"] {
            config[key] = self.list[key].clone();
        }
        let ours = binary("podwire-cni").unwrap();
        let ours = ours.parent().unwrap();
        let name = config["type"].as_str().unwrap().to_owned();
        let folder = if name.starts_with("podwire") { ours } else { Path::new(PLUGINS) };
        let path = format!("{}:{PLUGINS}", ours.display());
        Cni::new(&self.host, folder.join(name), config).search_path(path)
    }

    /// The attachments that the runtime remembers.
    pub fn remembered(&self) -> usize {
        self.host.run(|| self.runtime.cache().entries().unwrap().len())
    }
}

impl Member {
    pub fn id(&self) -> EndpointId {
        EndpointId::new(self.request.container_id.as_str(), self.request.ifname.as_str()).unwrap()
    }

    pub fn addresses(&self) -> Vec<IpAddr> {
        self.result.ips.iter().map(|ip| ip.address.ip()).collect()
    }

    pub fn gateways(&self) -> Vec<IpAddr> {
        self.result.ips.iter().filter_map(|ip| ip.gateway).collect()
    }

    /// Its attachment, for a call of one plugin.
    pub fn attachment(&self) -> Attachment {
        Attachment::new(self.request.container_id.as_str(), self.pod.path())
    }

    /// The result, as the list's version has it.
    pub fn result_json(&self, net: &Net) -> Value {
        self.result.to_value(net.network.version())
    }

    /// The agent's record.
    #[track_caller]
    pub fn endpoint(&self, node: &Node) -> Endpoint {
        node.ask(|agent| agent.endpoint(&self.id()))
    }
}

pub fn request(pod: &Pod) -> Request {
    let id = format!("{}-container", pod.name());
    let mut request = Request::new(id.parse().unwrap(), "eth0".parse().unwrap());
    request.netns = Some(pod.path().to_str().unwrap().parse().unwrap());
    request
}

/// `CNI_ARGS`.
pub fn args(pairs: &[(&str, &str)]) -> Args {
    Args::from_pairs(pairs.iter().copied()).unwrap()
}

/// Whether three echoes come back.
pub fn answers(from: &Pod, target: IpAddr) -> bool {
    let ping = || Ping::new(target).count(3).interval(Duration::from_millis(10)).run();
    from.run(ping).unwrap().is_complete()
}

#[track_caller]
pub fn assert_reach(from: &Pod, targets: &[IpAddr]) {
    assert!(!targets.is_empty());
    for &target in targets {
        assert!(answers(from, target), "{} to {target}", from.name());
    }
}

#[track_caller]
pub fn assert_node_reaches(host: &Host, targets: &[IpAddr]) {
    for &target in targets {
        let ping = || Ping::new(target).count(3).interval(Duration::from_millis(10)).run();
        let report = host.run(ping).unwrap();
        assert!(report.is_complete(), "node to {target}: {report}");
    }
}

/// Waits until one echo comes back: after a change that the agent is to follow.
#[track_caller]
pub fn until_answered(from: &Pod, target: IpAddr) {
    let patience = Duration::from_millis(200);
    until(&format!("{} reaches {target}", from.name()), || {
        let ping = || Ping::new(target).count(1).patience(patience).run();
        from.run(ping).unwrap().is_complete()
    });
}

/// What a program of the node prints.
#[track_caller]
pub fn output(host: &Host, program: &str, arguments: &[&str]) -> String {
    let output = host.command(program).args(arguments).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {}: {errors}", arguments.join(" "));
    String::from_utf8(output.stdout).unwrap()
}

/// Files below a folder of the node.
pub fn files(host: &Host, folder: &str) -> Vec<PathBuf> {
    let list = || {
        let entries = fs::read_dir(folder).into_iter().flatten();
        entries.map(|entry| entry.unwrap().path()).collect()
    };
    host.run(list)
}
