//! containerd on podwire, through its CRI and as `docs/containerd.md` tells operators to set it up:
//! the network and containerd's configuration are read from that page. All of containerd's state is
//! in the lab host.

#![allow(clippy::print_stdout, reason = "what was met on the way is worth knowing")]
#![allow(clippy::print_stderr, reason = "of a failure, containerd's own words are")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod node;
mod runtime;

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io,
    net::{IpAddr, SocketAddr},
    path::Path,
    process::{Child, Stdio},
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::Duration,
};

use hyper_util::rt::TokioIo;
use ipnetwork::IpNetwork;
use k8s_cri::v1::{
    ContainerConfig, ContainerMetadata, CreateContainerRequest, ExecSyncRequest, ImageSpec,
    ImageStatusRequest, LinuxPodSandboxConfig, LinuxSandboxSecurityContext, ListPodSandboxRequest,
    NamespaceMode, NamespaceOption, PodSandboxConfig, PodSandboxMetadata, PodSandboxStatusRequest,
    PortMapping, RemovePodSandboxRequest, RunPodSandboxRequest, StartContainerRequest,
    StatusRequest, StopPodSandboxRequest, image_service_client::ImageServiceClient,
    runtime_service_client::RuntimeServiceClient,
};
use node::{Node, at_once, until};
use podwire_lab::{Host, binary, probe::Ping};
use runtime::{
    Cgroups, SERVE, assert_no_notes, block, clean_command, collect_garbage, endpoints, fetch,
    processes, remove_forgotten, write, write_image,
};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::{net::UnixStream, time::timeout};
use tonic::{
    Response, Status,
    transport::{Channel, Endpoint, Uri},
};
use tower::service_fn;

const GUIDE: &str = include_str!("../../../docs/containerd.md");
const SOCKET: &str = "/run/containerd/containerd.sock";
const ROUTER: [&str; 2] = ["10.1.0.1", "fd00:1::1"];
/// The guide's sandbox image; it does for containers, too.
const NAMESPACE: &str = "default";
const IMAGE: &str = "localhost/pause:1";

/// No call takes longer, however busy the machine.
const PATIENCE: Duration = Duration::from_secs(120);

#[test]
#[ignore = "needs root: a node in namespaces of its own"]
fn pods_reach_each_other_their_node_and_published_ports() {
    let Some(containerd) = Containerd::start() else { return };
    let cri = &containerd.cri;
    let (a, b) = (cri.start_pod("a", None), cri.start_pod("b", Some(8080)));
    containerd.assert_is_recorded(&a);
    containerd.assert_all_reach_all(&[&a, &b]);
    for router in ROUTER {
        let published = SocketAddr::new(router.parse().unwrap(), 8080);
        assert_eq!(fetch(&containerd.node.host, published), "b");
        assert_eq!(cri.fetch(&a, published), "b");
        assert_eq!(cri.fetch(&b, published), "b");
    }
    assert_eq!(containerd.node.drops(), [] as [&str; 0]);

    cri.stop_sandbox(&a.sandbox).unwrap();
    assert_eq!(endpoints(&containerd.node), [b.sandbox.as_str()]);
    cri.stop_sandbox(&a.sandbox).unwrap();
    cri.remove_sandbox(&a.sandbox).unwrap();
    cri.remove_sandbox(&a.sandbox).unwrap();
    assert_eq!(endpoints(&containerd.node), [b.sandbox.as_str()]);
    // Without a stop before it.
    cri.remove_sandbox(&b.sandbox).unwrap();
    containerd.assert_clean();
}

#[test]
#[ignore = "needs root: a node in namespaces of its own"]
fn pods_outlive_the_agent_and_are_removed_without_it() {
    let Some(mut containerd) = Containerd::start() else { return };
    let [a, b, c] = ["a", "b", "c"].map(|name| containerd.cri.start_pod(name, None));
    containerd.node.agent.kill().unwrap();

    let refused = containerd.cri.run_sandbox("d", 0, None).unwrap_err();
    let error = refused.message();
    assert!(error.contains("the podwire agent is not reachable"), "{error}");
    containerd.cri.stop_and_remove(&c.sandbox).unwrap();
    assert_eq!(containerd.cri.sandboxes().unwrap().len(), 2);
    containerd.assert_reach(&a, &b);
    containerd.assert_reach(&b, &a);

    containerd.node.agent.start_again().unwrap();
    containerd.assert_all_reach_all(&[&a, &b]);
    for pod in [a, b] {
        containerd.cri.stop_and_remove(&pod.sandbox).unwrap();
    }
    containerd.assert_clean();
}

/// The sandbox's namespace is taken away, as by a machine's administrator; then containerd stops
/// the pod all the same.
#[test]
#[ignore = "needs root: a node in namespaces of its own"]
fn a_pod_whose_namespace_is_gone_is_stopped_and_removed() {
    let Some(containerd) = Containerd::start() else { return };
    let pod = containerd.cri.start_pod("a", None);
    let pinned = containerd.node.host.pod_names().unwrap();
    let [netns] = &pinned[..] else { panic!("one pod, one namespace: {pinned:?}") };
    containerd.node.host.remove_pod_netns(netns).unwrap();
    containerd.cri.stop_and_remove(&pod.sandbox).unwrap();
    containerd.assert_clean();
}

/// The pod's annotations come from containerd, the namespace's from a manifest.
#[test]
#[ignore = "needs root: a node in namespaces of its own"]
fn pods_and_namespaces_choose_addresses_by_annotations() {
    const FOLDER: &str = "/run/manifests";
    let Some(mut containerd) = Containerd::start() else { return };
    let host = containerd.node.host.clone();
    let manifest = |name: &str, annotation: &str| {
        let text = format!(
            "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: {NAMESPACE}\n  annotations: \
             {{ {annotation} }}\n"
        );
        let file = format!("{FOLDER}/{name}");
        host.run(|| write(&format!("{file}.new"), &text)).unwrap();
        host.run(|| fs::rename(format!("{file}.new"), file)).unwrap();
    };
    let problems = |containerd: &Containerd| {
        containerd.node.cli(&["status"])["problems"].as_array().unwrap().clone()
    };
    host.run(|| fs::create_dir(FOLDER)).unwrap();
    containerd.node.restart_with(&["--manifests", FOLDER]);
    let cri = &containerd.cri;
    let refused = |annotations: &[(&str, &str)]| {
        let error = cri.run_annotated("a", annotations).unwrap_err();
        cri.remove_all_of("a").unwrap();
        error.message().to_owned()
    };

    let given = [("podwire.io/ips", "10.1.0.77,fd00:1::77"), ("podwire.io/pool", "default")];
    let sandbox = cri.run_annotated("a", &given).unwrap();
    assert_eq!(
        cri.addresses(&sandbox).unwrap().map(|one| one.to_string()),
        ["10.1.0.77", "fd00:1::77"]
    );
    cri.stop_and_remove(&sandbox).unwrap();
    let error = refused(&[("podwire.io/pool", "blue")]);
    assert!(
        error.contains("no pool blue, which annotation podwire.io/pool of pod default/a names"),
        "{error}"
    );
    let error = refused(&[("podwire.io/pols", "blue")]);
    assert!(error.contains("pod default/a: annotation podwire.io/pols"), "{error}");

    manifest("all.yaml", "podwire.io/pool: blue");
    until("the agent knows the namespace", || {
        refused_by(cri, "no pool blue, which annotation podwire.io/pool of namespace default names")
    });
    let pool = ["10.9.0.0/24", "fd00:9::/64"];
    containerd.node.cli(&["ipam", "pool", "create", "blue", pool[0], pool[1]]);
    let sandbox = cri.run_annotated("a", &[]).unwrap();
    for (address, cidr) in cri.addresses(&sandbox).unwrap().into_iter().zip(pool) {
        assert!(cidr.parse::<IpNetwork>().unwrap().contains(address), "{address}");
    }
    cri.stop_and_remove(&sandbox).unwrap();
    containerd.node.cli(&["ipam", "pool", "delete", "blue"]);
    // A pod of it that says otherwise.
    let sandbox = cri.run_annotated("a", &[("podwire.io/pool", "default")]).unwrap();
    cri.stop_and_remove(&sandbox).unwrap();

    manifest("all.yaml", "podwire.io/sticky: \"true\"");
    let mut first = None;
    until("the agent knows the namespace's new annotations", || {
        first = cri.run_annotated("a", &[]).ok();
        if first.is_none() {
            cri.remove_all_of("a").unwrap();
        }
        first.is_some()
    });
    let first = first.unwrap();
    let addresses = cri.addresses(&first).unwrap();
    cri.stop_and_remove(&first).unwrap();
    let other = cri.run_annotated("b", &[]).unwrap();
    assert_ne!(cri.addresses(&other).unwrap(), addresses);
    let again = cri.run_annotated("a", &[]).unwrap();
    assert_eq!(cri.addresses(&again).unwrap(), addresses);

    // What is broken changes nothing, and is told.
    assert_eq!(problems(&containerd), [] as [Value; 0]);
    manifest("all.yaml", "podwire.io/sticky: true");
    until("the status names the file", || {
        problems(&containerd).iter().any(|problem| {
            problem["what"].as_str().unwrap().starts_with("/run/manifests/all.yaml:5: ")
        })
    });
    for sandbox in [other, again] {
        cri.stop_and_remove(&sandbox).unwrap();
    }
    containerd.assert_clean();
}

/// Whether a pod is refused with these words; what there is of it is removed.
fn refused_by(cri: &Cri, words: &str) -> bool {
    let refused = match cri.run_annotated("a", &[]) {
        Ok(_) => false,
        Err(error) => error.message().contains(words),
    };
    cri.remove_all_of("a").unwrap();
    refused
}

/// Fifty at eight at a time. In the middle the agent is killed and started, then containerd is; what
/// fails meanwhile is cleaned and tried again, as the kubelet does.
#[test]
#[ignore = "needs root: a node in namespaces of its own, with 51 pods"]
fn fifty_pods_come_and_go_while_the_agent_and_containerd_restart() {
    const PODS: usize = 50;
    const AT_ONCE: usize = 8;
    let Some(mut containerd) = Containerd::start() else { return };
    let cri = containerd.cri.clone();
    let server = cri.start_pod("server", None);
    let at_server = server.addresses.map(|address| SocketAddr::new(address, 80));
    fetch(&containerd.node.host, at_server[0]);

    let started = AtomicUsize::new(0);
    let start = |n: usize| {
        let pod = cri.insist_on_pod(&format!("pod-{n}"));
        started.fetch_add(1, Ordering::Relaxed);
        pod
    };
    let pods = thread::scope(|scope| {
        let all = scope.spawn(|| at_once(AT_ONCE, 0..PODS, start));
        let some = |number| {
            until("some pods run", || {
                started.load(Ordering::Relaxed) >= number || all.is_finished()
            });
        };
        some(PODS / 4);
        containerd.node.agent.kill().unwrap();
        containerd.node.agent.start_again().unwrap();
        some(PODS / 2);
        containerd.kill();
        containerd.start_again();
        all.join().unwrap()
    });

    let addresses: BTreeSet<IpAddr> =
        pods.iter().chain([&server]).flat_map(|pod| pod.addresses).collect();
    assert_eq!(addresses.len(), 2 * (PODS + 1), "every pod has addresses of its own");
    containerd.collect_garbage();
    let known: BTreeSet<_> = endpoints(&containerd.node).into_iter().collect();
    let wanted = pods.iter().chain([&server]).map(|pod| pod.sandbox.clone()).collect();
    assert_eq!(known, wanted);
    at_once(AT_ONCE, &pods, |pod| {
        for server in at_server {
            assert_eq!(cri.fetch(pod, server), "server");
        }
    });
    // What an ADD that was cut short has left of a pod may speak until its link is gone; nobody hears it.
    let drops: Vec<_> = containerd
        .node
        .drops()
        .into_iter()
        .filter(|row| !row.starts_with("from_container unknown-link "))
        .collect();
    assert_eq!(drops, [] as [&str; 0]);

    // Once more while they go: the calls that met no containerd are made again.
    let removed = AtomicUsize::new(0);
    let remove = |pod: &Pod| {
        until("the pod is removed", || cri.stop_and_remove(&pod.sandbox).is_ok());
        removed.fetch_add(1, Ordering::Relaxed);
    };
    thread::scope(|scope| {
        let all = scope.spawn(|| at_once(AT_ONCE, pods.iter().chain([&server]), remove));
        until("some pods are removed", || {
            removed.load(Ordering::Relaxed) >= PODS / 2 || all.is_finished()
        });
        containerd.kill();
        containerd.node.agent.kill().unwrap();
        containerd.node.agent.start_again().unwrap();
        containerd.start_again();
        all.join().unwrap();
    });
    assert_eq!(cri.sandboxes().unwrap(), [] as [&str; 0]);
    containerd.collect_garbage();
    println!("containerd forgot {:?}", remove_forgotten(&containerd.node, "containerd"));
    containerd.assert_clean();
}

/// A sandbox with one container in it.
struct Pod {
    name: String,
    sandbox: String,
    container: String,
    addresses: [IpAddr; 2],
}

impl Pod {
    fn reference(&self) -> Value {
        json!({ "namespace": NAMESPACE, "name": self.name, "uid": uid_of(&self.name) })
    }
}

fn uid_of(name: &str) -> String {
    format!("uid-of-{name}")
}

/// A node with containerd on it.
struct Containerd {
    // Ended before the node, which may not go while it runs.
    child: Child,
    cri: Cri,
    node: Node,
    // Emptied when the node has ended.
    _cgroups: Cgroups,
}

impl Containerd {
    /// None when something is missing that may be.
    fn start() -> Option<Self> {
        if runtime::may_do_without("containerd", "/usr/bin/containerd") {
            return None;
        }
        let cgroups = Cgroups::new();
        let host = Host::new().unwrap();
        // An overlay cannot be the upper layer of containerd's; plugins go where the guide has them.
        for folder in ["/var/lib/containerd", "/opt"] {
            host.run(|| fs::create_dir_all(folder)).unwrap();
            runtime::run(&host, "mount", &["-t", "tmpfs", "tmpfs", folder]).unwrap();
        }
        host.run(configure).unwrap();
        let cri = Cri { host: host.clone(), cgroup: format!("/{}", cgroups.name) };
        let child = spawn(&host);
        let node = Node::start_in(host, &[]);
        let mut containerd = Self { child, cri, node, _cgroups: cgroups };
        containerd.wait_until_ready();
        containerd.import_image();
        containerd.node.empty = containerd.node.host.inventory().unwrap();
        Some(containerd)
    }

    /// Ends containerd at once; its shims and their containers go on.
    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    fn start_again(&mut self) {
        self.child = spawn(&self.node.host);
        self.wait_until_ready();
    }

    fn wait_until_ready(&self) {
        until("containerd and its network are ready", || {
            self.cri.conditions().is_ok_and(|all| all.iter().all(|(_, ready)| *ready))
        });
    }

    /// An image without a registry, as `docker save` writes it.
    fn import_image(&self) {
        let host = &self.node.host;
        let run = |program, arguments: &[&str]| runtime::run(host, program, arguments).unwrap();
        run("tar", &["-C", "/run/layer", "-cf", "/run/image/layer.tar", "."]);
        host.run(describe_image).unwrap();
        run("tar", &["-C", "/run/image", "-cf", "/run/pause.tar", "."]);
        run("ctr", &["--namespace", "k8s.io", "images", "import", "/run/pause.tar"]);
        until("containerd's CRI knows the image", || self.cri.has_image());
    }

    /// What CRI says of a pod's network must be what the agent has recorded.
    #[track_caller]
    fn assert_is_recorded(&self, pod: &Pod) {
        let list = self.node.cli(&["endpoint", "list"]);
        let endpoint = list.as_array().unwrap().iter().find(|e| e["container_id"] == pod.sandbox);
        let endpoint = endpoint.expect("the agent knows the sandbox");
        assert_eq!(endpoint["addresses"], json!(pod.addresses));
        assert_eq!(endpoint["pod"], pod.reference());
        assert_eq!([&endpoint["ifname"], &endpoint["network"]], ["eth0", "podwire"]);
    }

    #[track_caller]
    fn assert_all_reach_all(&self, pods: &[&Pod]) {
        assert_eq!(endpoints(&self.node).len(), pods.len());
        for from in pods {
            for to in pods {
                self.assert_reach(from, to);
            }
        }
    }

    /// Both families: the pod and the node by ping, the server by HTTP; and from the node.
    #[track_caller]
    fn assert_reach(&self, from: &Pod, to: &Pod) {
        for (address, router) in to.addresses.into_iter().zip(ROUTER) {
            for target in [&address.to_string(), router] {
                let said = self.cri.exec(from, &["ping", "-c", "1", target]).unwrap();
                assert!(said.contains("1 packets received, 0% packet loss"), "{said}");
            }
            let ping = Ping::new(address).count(5).interval(Duration::from_millis(20));
            let report = self.node.host.run(|| ping.run()).unwrap();
            assert!(report.is_complete(), "node to {address}: {report}");

            let server = SocketAddr::new(address, 80);
            assert_eq!(fetch(&self.node.host, server), to.name);
            assert_eq!(self.cri.fetch(from, server), to.name);
        }
    }

    /// What containerd 1.6 forgets when it is killed between making a sandbox's network and
    /// recording the sandbox has no DEL to come. An operator has it removed by the plugin's GC.
    fn collect_garbage(&self) {
        let forgotten = collect_garbage(&self.node, GUIDE, &self.cri.sandboxes().unwrap());
        println!("containerd forgot {forgotten} endpoints");
    }

    /// Asserts that nothing is left of any pod: links, routes, namespaces, mounts, pins, map
    /// entries, records of the agent's and of containerd's, processes.
    #[track_caller]
    fn assert_clean(&self) {
        assert_eq!(self.cri.sandboxes().unwrap(), [] as [&str; 0]);
        assert_no_notes(&self.node.host);
        until("no process but containerd's is left", || {
            processes(&self.node).iter().all(|(_, name)| name == "containerd")
        });
        self.node.assert_clean();
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        if thread::panicking() {
            let log = self.node.host.run(|| fs::read_to_string("/run/containerd.log"));
            let log = log.unwrap_or_default();
            let lines: Vec<_> =
                log.lines().filter(|line| !line.contains("loading plugin")).collect();
            eprintln!("containerd: {}", lines[lines.len().saturating_sub(40)..].join("\n"));
        }
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn spawn(host: &Host) -> Child {
    let mut command = clean_command(host, "containerd");
    let log = host.run(|| File::options().create(true).append(true).open("/run/containerd.log"));
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log.unwrap());
    command.spawn().unwrap()
}

/// containerd's CRI on a node, whoever calls it.
#[derive(Clone)]
struct Cri {
    host: Host,
    cgroup: String,
}

type Client = RuntimeServiceClient<Channel>;

impl Cri {
    /// One call over a connection of its own, made in the host: the socket is there only.
    fn call<T: Send>(
        &self,
        call: impl AsyncFnOnce(Channel) -> Result<Response<T>, Status> + Send,
    ) -> Result<T, Status> {
        let connect = async || -> Result<Channel, Status> {
            let connect = service_fn(|_: Uri| async {
                Ok::<_, io::Error>(TokioIo::new(UnixStream::connect(SOCKET).await?))
            });
            let endpoint = Endpoint::from_static("http://localhost");
            let channel = endpoint.connect_with_connector(connect).await;
            channel.map_err(|error| Status::unavailable(error.to_string()))
        };
        self.host.run(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.unwrap().block_on(async {
                let answer = timeout(PATIENCE, async { call(connect().await?).await }).await;
                let answer = answer.unwrap_or_else(|_| Err(Status::deadline_exceeded("no answer")));
                answer.map(Response::into_inner)
            })
        })
    }

    /// `RuntimeReady`, `NetworkReady`.
    fn conditions(&self) -> Result<Vec<(String, bool)>, Status> {
        let request = StatusRequest::default();
        let answer = self.call(async |to| Client::new(to).status(request).await)?;
        let conditions = answer.status.unwrap_or_default().conditions;
        Ok(conditions.into_iter().map(|one| (one.r#type, one.status)).collect())
    }

    fn has_image(&self) -> bool {
        let request = ImageStatusRequest { image: Some(image()), ..Default::default() };
        let answer = self.call(async |to| ImageServiceClient::new(to).image_status(request).await);
        answer.unwrap().image.is_some()
    }

    fn sandboxes(&self) -> Result<Vec<String>, Status> {
        let request = ListPodSandboxRequest::default();
        let answer = self.call(async |to| Client::new(to).list_pod_sandbox(request).await)?;
        Ok(answer.items.into_iter().map(|sandbox| sandbox.id).collect())
    }

    fn run_sandbox(&self, name: &str, attempt: u32, port: Option<i32>) -> Result<String, Status> {
        let config = Some(self.sandbox_config(name, attempt, port));
        let request = RunPodSandboxRequest { config, ..Default::default() };
        let answer = self.call(async |to| Client::new(to).run_pod_sandbox(request).await)?;
        Ok(answer.pod_sandbox_id)
    }

    /// A pod without a container, with annotations.
    fn run_annotated(&self, name: &str, annotations: &[(&str, &str)]) -> Result<String, Status> {
        let pair = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
        let config = PodSandboxConfig {
            annotations: annotations.iter().map(pair).collect(),
            ..self.sandbox_config(name, 0, None)
        };
        let request = RunPodSandboxRequest { config: Some(config), ..Default::default() };
        let answer = self.call(async |to| Client::new(to).run_pod_sandbox(request).await)?;
        Ok(answer.pod_sandbox_id)
    }

    /// A pod that serves, whose port 80 is published as this one of the node's, if any.
    #[track_caller]
    fn start_pod(&self, name: &str, port: Option<i32>) -> Pod {
        self.try_start_pod(name, 0, port).unwrap()
    }

    fn try_start_pod(&self, name: &str, attempt: u32, port: Option<i32>) -> Result<Pod, Status> {
        let sandbox = self.run_sandbox(name, attempt, port)?;
        let metadata = Some(ContainerMetadata { name: "server".to_owned(), attempt: 0 });
        let config = ContainerConfig {
            metadata,
            image: Some(image()),
            command: ["sh", "-c", SERVE].map(str::to_owned).into(),
            ..Default::default()
        };
        let request = CreateContainerRequest {
            pod_sandbox_id: sandbox.clone(),
            config: Some(config),
            sandbox_config: Some(self.sandbox_config(name, attempt, port)),
        };
        let answer = self.call(async |to| Client::new(to).create_container(request).await)?;
        let container = answer.container_id;
        let request = StartContainerRequest { container_id: container.clone() };
        self.call(async |to| Client::new(to).start_container(request).await)?;
        let addresses = self.addresses(&sandbox)?;
        Ok(Pod { name: name.to_owned(), sandbox, container, addresses })
    }

    /// As the kubelet does: an attempt that failed is cleaned, and another one made.
    fn insist_on_pod(&self, name: &str) -> Pod {
        let (mut attempt, mut pod) = (0, None);
        until(&format!("{name} runs"), || {
            match self.try_start_pod(name, attempt, None) {
                Ok(started) => pod = Some(started),
                Err(error) => {
                    println!("{name}, attempt {attempt}: {}", error.message());
                    until("what was begun is removed", || self.remove_all_of(name).is_ok());
                    attempt += 1;
                }
            }
            pod.is_some()
        });
        pod.unwrap()
    }

    fn remove_all_of(&self, name: &str) -> Result<(), Status> {
        let request = ListPodSandboxRequest::default();
        let answer = self.call(async |to| Client::new(to).list_pod_sandbox(request).await)?;
        let is_of = |metadata: &PodSandboxMetadata| metadata.name == name;
        let all = answer.items.iter().filter(|one| one.metadata.as_ref().is_some_and(is_of));
        all.map(|one| &one.id).try_for_each(|id| self.stop_and_remove(id))
    }

    fn addresses(&self, sandbox: &str) -> Result<[IpAddr; 2], Status> {
        let request =
            PodSandboxStatusRequest { pod_sandbox_id: sandbox.to_owned(), ..Default::default() };
        let answer = self.call(async |to| Client::new(to).pod_sandbox_status(request).await)?;
        let network = answer.status.and_then(|status| status.network).unwrap_or_default();
        let others = network.additional_ips.into_iter().map(|other| other.ip);
        let all = [network.ip].into_iter().chain(others);
        let all: Vec<IpAddr> = all.map(|address| address.parse().unwrap()).collect();
        Ok(all.try_into().expect("an address of each family"))
    }

    fn stop_and_remove(&self, sandbox: &str) -> Result<(), Status> {
        self.stop_sandbox(sandbox)?;
        self.remove_sandbox(sandbox)
    }

    fn stop_sandbox(&self, sandbox: &str) -> Result<(), Status> {
        let request = StopPodSandboxRequest { pod_sandbox_id: sandbox.to_owned() };
        self.call(async |to| Client::new(to).stop_pod_sandbox(request).await).map(drop)
    }

    fn remove_sandbox(&self, sandbox: &str) -> Result<(), Status> {
        let request = RemovePodSandboxRequest { pod_sandbox_id: sandbox.to_owned() };
        self.call(async |to| Client::new(to).remove_pod_sandbox(request).await).map(drop)
    }

    /// What a command in a pod printed, or all that is known of its failure.
    fn exec(&self, pod: &Pod, command: &[&str]) -> Result<String, String> {
        let request = ExecSyncRequest {
            container_id: pod.container.clone(),
            cmd: command.iter().map(|&word| word.to_owned()).collect(),
            timeout: 60,
        };
        let answer = self
            .call(async |to| Client::new(to).exec_sync(request).await)
            .map_err(|error| error.to_string())?;
        let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
        if answer.exit_code == 0 { Ok(text(&answer.stdout)) } else { Err(text(&answer.stderr)) }
    }

    /// The name that a server tells a pod.
    #[track_caller]
    fn fetch(&self, pod: &Pod, server: SocketAddr) -> String {
        let url = format!("http://{server}/name");
        let name = self.exec(pod, &["wget", "-q", "-O", "-", &url]);
        name.unwrap_or_else(|error| panic!("{} to {server}: {error}", pod.name)).trim_end().into()
    }

    fn sandbox_config(&self, name: &str, attempt: u32, port: Option<i32>) -> PodSandboxConfig {
        let port_mappings = port.map(|host_port| PortMapping {
            container_port: 80,
            host_port,
            ..Default::default()
        });
        // As the kubelet: processes are the container's own, the network is the pod's.
        let namespaces =
            NamespaceOption { pid: NamespaceMode::Container.into(), ..Default::default() };
        let security = LinuxSandboxSecurityContext {
            namespace_options: Some(namespaces),
            ..Default::default()
        };
        PodSandboxConfig {
            metadata: Some(PodSandboxMetadata {
                name: name.to_owned(),
                uid: uid_of(name),
                namespace: NAMESPACE.to_owned(),
                attempt,
            }),
            hostname: name.to_owned(),
            port_mappings: port_mappings.into_iter().collect(),
            linux: Some(LinuxPodSandboxConfig {
                cgroup_parent: self.cgroup.clone(),
                security_context: Some(security),
                ..Default::default()
            }),
            ..Default::default()
        }
    }
}

fn image() -> ImageSpec {
    ImageSpec { image: IMAGE.to_owned(), ..Default::default() }
}

/// Writes containerd's configuration, the plugins' folder, and the only image's layer.
fn configure() -> io::Result<()> {
    write("/etc/containerd/config.toml", block(GUIDE, "toml"))?;
    write("/etc/cni/net.d/10-podwire.conflist", block(GUIDE, "json"))?;
    fs::create_dir_all("/opt/cni/bin")?;
    fs::copy(binary("podwire-cni").unwrap(), "/opt/cni/bin/podwire-cni")?;
    for plugin in ["loopback", "portmap"] {
        fs::copy(Path::new("/usr/lib/cni").join(plugin), Path::new("/opt/cni/bin").join(plugin))?;
    }
    fs::create_dir_all("/run/home")?;
    fs::create_dir_all("/run/image")?;
    write_image("/run/layer")
}

/// Writes what names the image and its layer.
fn describe_image() -> io::Result<()> {
    let layer = Sha256::digest(fs::read("/run/image/layer.tar")?);
    let layer: String = layer.iter().map(|byte| format!("{byte:02x}")).collect();
    let config = json!({
        "architecture": "amd64",
        "os": "linux",
        "config": { "Cmd": ["/bin/sleep", "1000000"], "Env": ["PATH=/bin"] },
        "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{layer}")] },
    });
    let manifest =
        json!([{ "Config": "config.json", "RepoTags": [IMAGE], "Layers": ["layer.tar"] }]);
    write("/run/image/config.json", &config.to_string())?;
    write("/run/image/manifest.json", &manifest.to_string())
}
