//! The plugin and the agent killed, and made to fail, after each step of ADD and DEL that is seen
//! from outside; then DEL or GC, and nothing is left.
//!
//! System calls are told by x86's registers.

#![cfg(target_arch = "x86_64")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod node;
mod tracer;

use std::{
    fmt::Write as _,
    fs,
    io::{Read as _, Write as _},
    os::fd::AsRawFd as _,
    path::PathBuf,
    process::{ExitStatus, Stdio},
    sync::atomic::{AtomicUsize, Ordering},
};

use node::{MODES, Node, attachment, until};
use podwire_api::{Client, host_link_name};
use podwire_lab::{Attachment, Cni, Pod, binary, interface, probe::Ping};
use serde_json::{Value, json};
use tracer::{Effect, Fault, Kind, Tracer};

const ROUTER: &str = "10.1.0.1";
const HOST_LOCAL: &str = "/run/host-local";
const PODWIRE_IPAM: &str = "/run/podwire-ipam";

/// Whose addresses a network's pods get.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ipam {
    Agent,
    HostLocal,
    Podwire,
}

impl Ipam {
    const ALL: [Self; 3] = [Self::Agent, Self::HostLocal, Self::Podwire];
    const DELEGATED: [Self; 2] = [Self::HostLocal, Self::Podwire];

    fn plugin(self, node: &Node) -> Cni {
        let ranges = json!([[{ "subnet": "10.1.0.0/24" }], [{ "subnet": "fd00:1::/64" }]]);
        let mut config = json!({ "cniVersion": "1.1.0", "name": "podnet", "type": "podwire-cni" });
        match self {
            Self::Agent => {}
            Self::HostLocal => {
                // The newest that Debian's speaks, which has no GC.
                config["cniVersion"] = "1.0.0".into();
                config["ipam"] =
                    json!({ "type": "host-local", "dataDir": HOST_LOCAL, "ranges": ranges });
            }
            Self::Podwire => {
                config["ipam"] =
                    json!({ "type": "podwire-ipam", "dataDir": PODWIRE_IPAM, "ranges": ranges });
            }
        }
        let plugin = binary("podwire-cni").unwrap();
        Cni::new(&node.host, plugin, config).search_path(search_path())
    }

    /// The leases that its store holds.
    fn leases(self, node: &Node) -> Vec<String> {
        match self {
            Self::Agent => Vec::new(),
            Self::HostLocal => {
                let names = node.host.run(|| fs::read_dir(format!("{HOST_LOCAL}/podnet")));
                let names = names.into_iter().flatten();
                let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
                names.filter(|name| name.starts_with(|first: char| first.is_ascii_hexdigit())).collect()
            }
            Self::Podwire => {
                let mut list = node.host.command(binary("podwire-ipam").unwrap());
                let output = list.args(["list", "podnet", PODWIRE_IPAM]).output().unwrap();
                assert!(output.status.success(), "{output:?}");
                let text = String::from_utf8(output.stdout).unwrap();
                text.lines().filter(|line| line.contains('\t')).map(str::to_owned).collect()
            }
        }
    }
}

fn search_path() -> String {
    format!("/usr/lib/cni:{}", binary("podwire-cni").unwrap().parent().unwrap().display())
}

/// What became of a call.
#[derive(Debug)]
enum Answer {
    Success(Option<Value>),
    Error { code: u64, message: String },
    /// Nothing that a runtime could read.
    Nothing(ExitStatus),
}

impl Answer {
    fn of(status: ExitStatus, stdout: &str) -> Self {
        let object: Option<Value> = serde_json::from_str(stdout).ok();
        if status.success() {
            return Self::Success(object);
        }
        let error = object.and_then(|object| {
            let message = object["msg"].as_str()?.to_owned();
            Some(Self::Error { code: object["code"].as_u64()?, message })
        });
        error.unwrap_or(Self::Nothing(status))
    }

    fn is_success(&self) -> bool {
        matches!(self, Self::Success(_))
    }

    fn text(&self) -> String {
        match self {
            Self::Success(_) => "success".into(),
            Self::Error { code, message } => {
                let message: String = message.chars().take(64).collect();
                format!("{code}: {message}")
            }
            Self::Nothing(status) => status.to_string(),
        }
    }
}

/// Calls the plugin as a runtime does, with a fault at the call of this number; tells where it was.
///
/// The plugin waits for its configuration when it is caught, so that nothing is missed.
#[expect(clippy::zombie_processes, reason = "waited for when its tracer has done so")]
fn call_with_fault(
    node: &Node,
    plugin: &Cni,
    verb: &str,
    about: &Attachment,
    previous: Option<&Value>,
    (fault, at): (Fault, usize),
) -> (Answer, Option<Effect>) {
    let mut command = node.host.command(binary("podwire-cni").unwrap());
    command
        .env_clear()
        .env("CNI_COMMAND", verb)
        .env("CNI_CONTAINERID", &about.container_id)
        .env("CNI_NETNS", &about.netns)
        .env("CNI_IFNAME", &about.ifname)
        .env("CNI_PATH", search_path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    let mut child = command.spawn().unwrap();
    let mut answers = child.stdout.take().unwrap();
    let pipe = fs::read_link(format!("/proc/self/fd/{}", answers.as_raw_fd())).unwrap();
    let tracer = Tracer::attach(child.id(), Some(pipe));
    tracer.arm(fault, at);
    let mut config = plugin.config().clone();
    if let Some(previous) = previous {
        config["prevResult"] = previous.clone();
    }
    child.stdin.take().unwrap().write_all(config.to_string().as_bytes()).unwrap();
    let mut stdout = String::new();
    answers.read_to_string(&mut stdout).unwrap();
    tracer.wait();
    let status = child.wait().unwrap();
    // An IPAM plugin whose caller was killed goes on.
    until("the IPAM plugin has ended", || tracer.orphans() == 0);
    (Answer::of(status, &stdout), tracer.disarm())
}

/// What was found at all points of a verb.
struct Table {
    what: String,
    text: String,
    points: usize,
    /// How many of them are steps that others see, and no questions.
    visible: usize,
}

/// Points of all tables so far.
static POINTS: AtomicUsize = AtomicUsize::new(0);

impl Table {
    fn new(subject: &str, verb: &str, fault: Fault, conditions: &str) -> Self {
        let fault = match fault {
            Fault::Kill => "killed after",
            Fault::Fail => "fails at",
        };
        let what = format!("{subject} {fault} a step of {verb}, {conditions}");
        Self { what, text: String::new(), points: 0, visible: 0 }
    }

    fn row(&mut self, effect: &Effect, answered: &str, result: &str) {
        self.points += 1;
        self.visible += usize::from(effect.is_visible());
        let name: String = effect.name.chars().take(44).collect();
        writeln!(self.text, "| {:>3} | {name:<44} | {answered:<70} | {result} |", self.points).unwrap();
    }

    /// Prints it past the harness, which keeps to itself what tests that pass print.
    fn print(self, least: usize) {
        let Self { what, text, points, visible } = self;
        let all = POINTS.fetch_add(points, Ordering::Relaxed) + points;
        let text = format!("\n| {what}\n{text}| {points} points, {visible} of them seen by others; {all} points in all so far\n");
        std::io::stdout().lock().write_all(text.as_bytes()).unwrap();
        assert!(points >= least, "{what}: {points} points");
    }
}

/// How a sweep clears away after a point.
type Clear<'a> = &'a dyn Fn(&mut Node, &Cni, &Pod, usize) -> &'static str;

/// DEL at odd points, GC at even ones.
fn del_or_gc(_: &mut Node, plugin: &Cni, pod: &Pod, point: usize) -> &'static str {
    if point % 2 == 1 || plugin.config()["cniVersion"] != "1.1.0" {
        plugin.del(&attachment(pod), None).unwrap();
        return "DEL: nothing left";
    }
    plugin.gc(&[]).unwrap();
    "GC: nothing left"
}

fn gc_or_del(node: &mut Node, plugin: &Cni, pod: &Pod, point: usize) -> &'static str {
    del_or_gc(node, plugin, pod, point + 1)
}

/// What stands of a pod's attachment: on the node, in the pod, in the agent's books, in the IPAM's.
fn traces(node: &Node, ipam: Ipam, pod: &Pod, before: &podwire_lab::Inventory) -> Vec<String> {
    let mut found = node.host.inventory().unwrap().since(before);
    let links = pod.run(interface::names).unwrap();
    found.extend(links.into_iter().filter(|link| link != "lo").map(|link| format!("pod's {link}")));
    let leases = node.ask(Client::leases);
    found.extend(leases.into_iter().map(|lease| format!("lease of {}", lease.id)));
    let endpoints = node.ask(Client::endpoints);
    found.extend(endpoints.into_iter().map(|one| format!("endpoint {}", one.id)));
    found.extend(ipam.leases(node).into_iter().map(|lease| format!("IPAM's {lease}")));
    found
}

fn assert_nothing_left(node: &Node, ipam: Ipam, pod: &Pod, at: &str) {
    assert_eq!(pod.run(interface::names).unwrap(), ["lo"], "{at}");
    assert_eq!(ipam.leases(node), [] as [&str; 0], "{at}");
    node.host.remove_pod_netns(pod.name()).unwrap();
    node.assert_clean();
}

fn sweep_add(node: &mut Node, ipam: Ipam, fault: Fault, conditions: &str, clear: Clear<'_>) {
    let plugin = ipam.plugin(node);
    let mut table = Table::new("plugin", "ADD", fault, &format!("IPAM {ipam:?}, {conditions}"));
    for point in 1.. {
        let pod = node.host.add_pod("a").unwrap();
        let before = node.host.inventory().unwrap();
        let about = attachment(&pod);
        let (answer, hit) = call_with_fault(node, &plugin, "ADD", &about, None, (fault, point));
        let at = format!("{}, point {point}: {hit:?}: {answer:?}", table.what);
        if let Answer::Success(result) = &answer {
            plugin.check(&about, result.as_ref().expect(&at)).expect(&at);
        }
        let mut left = "";
        if let (Fault::Fail, Some(effect)) = (fault, &hit) {
            match answer {
                // All was done, and then nobody learnt of it.
                Answer::Nothing(_) => assert_eq!(effect.kind, Kind::Answer, "{at}"),
                Answer::Error { .. } => {
                    let found = traces(node, ipam, &pod, &before);
                    assert_eq!(found, [] as [&str; 0], "{at}");
                    left = "undone; ";
                }
                Answer::Success(_) => {}
            }
        }
        let cleared = clear(node, &plugin, &pod, point);
        assert_nothing_left(node, ipam, &pod, &at);
        let Some(effect) = hit else {
            assert!(answer.is_success(), "{at}");
            break;
        };
        table.row(&effect, &answer.text(), &format!("{left}{cleared}"));
    }
    table.print(12);
}

/// Whether an agent is there when DEL comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Presence {
    There,
    Away,
}

fn sweep_del(node: &mut Node, ipam: Ipam, fault: Fault, agent: Presence) -> usize {
    let plugin = ipam.plugin(node);
    let conditions = format!("IPAM {ipam:?}, agent {agent:?}");
    let mut table = Table::new("plugin", "DEL", fault, &conditions);
    for point in 1.. {
        let pod = node.host.add_pod("a").unwrap();
        let before = node.host.inventory().unwrap();
        let about = attachment(&pod);
        let result = plugin.add(&about).unwrap();
        if agent == Presence::Away {
            node.agent.kill().unwrap();
        }
        let fault = (fault, point);
        let (answer, hit) = call_with_fault(node, &plugin, "DEL", &about, Some(&result), fault);
        let at = format!("{}, point {point}: {hit:?}: {answer:?}", table.what);
        if let (Fault::Fail, Some(effect), Answer::Nothing(_)) = (fault.0, &hit, &answer) {
            assert_eq!(effect.kind, Kind::Answer, "{at}");
        }
        if agent == Presence::Away {
            node.agent.start_again().unwrap();
        }
        let mut done = "";
        if answer.is_success() {
            let found = traces(node, ipam, &pod, &before);
            assert_eq!(found, [] as [&str; 0], "{at}");
            done = "done; ";
        }
        let cleared = del_or_gc(node, &plugin, &pod, point);
        assert_nothing_left(node, ipam, &pod, &at);
        let notes = node.host.run(|| fs::read_dir("/run/podwire/pending-del")).unwrap();
        let notes: Vec<_> = notes.map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(notes, [] as [&str; 0], "{at}");
        let Some(effect) = hit else {
            assert!(answer.is_success(), "{at}");
            break;
        };
        table.row(&effect, &answer.text(), &format!("{done}{cleared}"));
    }
    let points = table.points;
    table.print(1);
    points
}

fn sweep_agent(node: &mut Node, verb: &'static str, fault: Fault, conditions: &str) {
    let ipam = Ipam::Agent;
    let plugin = ipam.plugin(node);
    let mut table = Table::new("agent", verb, fault, conditions);
    let mut tracer = Tracer::attach(node.agent.pid(), None);
    for point in 1.. {
        let pod = node.host.add_pod("a").unwrap();
        let before = node.host.inventory().unwrap();
        let about = attachment(&pod);
        let added = (verb == "DEL").then(|| plugin.add(&about).unwrap());
        tracer.arm(fault, point);
        let output = plugin.verb(verb, &about, added.as_ref()).unwrap();
        let answer = Answer::of(output.status, &output.stdout);
        let hit = tracer.disarm();
        let log = node.agent.log();
        let at = format!("{}, point {point}: {hit:?}: {answer:?}\n{log}", table.what);
        assert!(!matches!(answer, Answer::Nothing(_)), "{at}");
        if fault == Fault::Kill && hit.is_some() {
            tracer.wait();
            node.agent.start_again().expect(&at);
            tracer = Tracer::attach(node.agent.pid(), None);
        }
        let mut by_itself = "";
        match (&answer, verb) {
            (Answer::Success(result), "ADD") => {
                plugin.check(&about, result.as_ref().expect(&at)).expect(&at);
            }
            (Answer::Success(_), _) | (_, "ADD") => {
                let found = traces(node, ipam, &pod, &before);
                assert_eq!(found, [] as [&str; 0], "{at}");
                by_itself = if verb == "ADD" { "undone; " } else { "done; " };
            }
            _ => {}
        }
        let cleared = del_or_gc(node, &plugin, &pod, point);
        assert_nothing_left(node, ipam, &pod, &at);
        let Some(effect) = hit else {
            assert!(answer.is_success(), "{at}");
            break;
        };
        table.row(&effect, &answer.text(), &format!("{by_itself}{cleared}"));
    }
    node.agent.kill().unwrap();
    table.print(12);
}

#[test]
#[ignore = "needs root: a node in namespaces of its own, plugins under ptrace"]
fn a_plugin_killed_in_add_leaves_nothing_after_del_or_gc() {
    for (mode, clear) in MODES.into_iter().zip([del_or_gc as fn(&mut _, &_, &_, _) -> _, gc_or_del]) {
        let mut node = Node::start_with(&["--attach", mode]);
        let conditions = format!("--attach {mode}");
        sweep_add(&mut node, Ipam::Agent, Fault::Kill, &conditions, &clear);
    }
    let mut node = Node::start();
    for ipam in Ipam::DELEGATED {
        sweep_add(&mut node, ipam, Fault::Kill, "", &del_or_gc);
    }
}

#[test]
#[ignore = "needs root: a node in namespaces of its own, plugins under ptrace"]
fn a_plugin_killed_in_add_is_no_obstacle_to_the_next() {
    let mut node = Node::start();
    sweep_add(&mut node, Ipam::Agent, Fault::Kill, "then ADD again", &|_, plugin, pod, _| {
        // If the agent has been told of the endpoint it stands, and only DEL removes it.
        let about = attachment(pod);
        let again = match plugin.add(&about) {
            Err(error) if error.cni_code() == Some(102) => {
                plugin.del(&about, None).unwrap();
                plugin.add(&about).unwrap()
            }
            again => again.unwrap(),
        };
        plugin.check(&about, &again).unwrap();
        let report = pod.run(|| Ping::new(ROUTER.parse().unwrap()).run()).unwrap();
        assert!(report.is_complete(), "{report}");
        plugin.del(&about, Some(&again)).unwrap();
        "ADD, DEL: nothing left"
    });
}

#[test]
#[ignore = "needs root: a node in namespaces of its own, plugins under ptrace"]
fn a_plugin_killed_in_add_leaves_nothing_after_a_restart() {
    let mut node = Node::start();
    sweep_add(&mut node, Ipam::Agent, Fault::Kill, "then a new agent", &|node, plugin, pod, _| {
        node.agent.kill().unwrap();
        node.agent.start_again().unwrap();
        // Either all of it was recorded, and only DEL removes it, or nothing is left.
        let endpoints = node.ask(Client::endpoints);
        let [endpoint] = &endpoints[..] else { return "new agent: nothing left" };
        assert_eq!(endpoint.host_link, host_link_name("a-container", "eth0"));
        assert_eq!(node.ask(Client::leases).len(), 1);
        assert_eq!(node.tables().endpoints().unwrap().len(), 1);
        plugin.del(&attachment(pod), None).unwrap();
        "recorded; DEL: nothing left"
    });
}

#[test]
#[ignore = "needs root: a node in namespaces of its own, plugins under ptrace"]
fn a_plugin_killed_in_add_leaves_nothing_after_del_without_an_agent() {
    let mut node = Node::start();
    let conditions = "then DEL without agent or namespace";
    sweep_add(&mut node, Ipam::Agent, Fault::Kill, conditions, &|node, plugin, pod, _| {
        node.agent.kill().unwrap();
        let gone = Attachment { netns: PathBuf::new(), ..attachment(pod) };
        plugin.del(&gone, None).unwrap();
        assert_eq!(pod.run(interface::names).unwrap(), ["lo"]);
        node.agent.start_again().unwrap();
        "DEL, new agent: nothing left"
    });
}

#[test]
#[ignore = "needs root: a node in namespaces of its own, plugins under ptrace"]
fn a_plugin_that_fails_in_add_undoes_it() {
    let mut node = Node::start();
    for ipam in Ipam::ALL {
        sweep_add(&mut node, ipam, Fault::Fail, "", &del_or_gc);
    }
}

#[test]
#[ignore = "needs root: a node in namespaces of its own, plugins under ptrace"]
fn a_plugin_killed_or_failing_in_del_leaves_nothing_after_the_next() {
    let mut node = Node::start();
    for fault in [Fault::Kill, Fault::Fail] {
        for ipam in Ipam::ALL {
            sweep_del(&mut node, ipam, fault, Presence::There);
        }
    }
}

#[test]
#[ignore = "needs root: a node in namespaces of its own, plugins under ptrace"]
fn a_plugin_killed_or_failing_in_del_without_an_agent_leaves_nothing_after_the_next() {
    let mut node = Node::start();
    for fault in [Fault::Kill, Fault::Fail] {
        sweep_del(&mut node, Ipam::Agent, fault, Presence::Away);
    }
}

#[test]
#[ignore = "needs root: a node in namespaces of its own, agents under ptrace"]
fn an_agent_killed_in_add_leaves_nothing_after_del_or_gc() {
    for mode in MODES {
        let mut node = Node::start_with(&["--attach", mode]);
        sweep_agent(&mut node, "ADD", Fault::Kill, &format!("--attach {mode}"));
    }
}

#[test]
#[ignore = "needs root: a node in namespaces of its own, agents under ptrace"]
fn an_agent_killed_in_del_leaves_nothing_after_the_next() {
    sweep_agent(&mut Node::start(), "DEL", Fault::Kill, "");
}

#[test]
#[ignore = "needs root: a node in namespaces of its own, agents under ptrace"]
fn an_agent_that_fails_in_add_undoes_it() {
    sweep_agent(&mut Node::start(), "ADD", Fault::Fail, "");
}

#[test]
#[ignore = "needs root: a node in namespaces of its own, agents under ptrace"]
fn an_agent_that_fails_in_del_leaves_nothing_after_the_next() {
    sweep_agent(&mut Node::start(), "DEL", Fault::Fail, "");
}
