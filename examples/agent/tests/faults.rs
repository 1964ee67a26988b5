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
use podwire_api::{Client, LeaseState, host_link_name};
use podwire_lab::{Attachment, Cni, Inventory, Pod, binary, interface, probe::Ping};
use podwire_netlink::Netlink;
use serde_json::{Value, json};
use tracer::{Fault, Kind, Step, Tracer};

const ROUTER: &str = "10.1.0.1";
const HOST_LOCAL: &str = "/run/host-local";
const PODWIRE_IPAM: &str = "/run/podwire-ipam";
const NOTES: &str = "/run/podwire/pending-del";

/// The ways in which a pod gets interface and addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// Addresses of the agent's.
    Own,
    /// Addresses of Debian's host-local.
    HostLocal,
    /// Addresses of podwire-ipam.
    PodwireIpam,
    /// Chained after Debian's ptp, whose interface is adopted.
    Chained,
}

impl Way {
    const ALL: [Self; 4] = [Self::Own, Self::HostLocal, Self::PodwireIpam, Self::Chained];

    fn plugin(self, node: &Node) -> Cni {
        let ranges = json!([[{ "subnet": "10.1.0.0/24" }], [{ "subnet": "fd00:1::/64" }]]);
        let mut config = json!({ "cniVersion": "1.1.0", "name": "podnet", "type": "podwire-cni" });
        match self {
            Self::Own => {}
            Self::HostLocal => {
                // The newest that Debian's speaks, which has no GC.
                config["cniVersion"] = "1.0.0".into();
                config["ipam"] =
                    json!({ "type": "host-local", "dataDir": HOST_LOCAL, "ranges": ranges });
            }
            Self::PodwireIpam => {
                config["ipam"] =
                    json!({ "type": "podwire-ipam", "dataDir": PODWIRE_IPAM, "ranges": ranges });
            }
            Self::Chained => config["chained"] = true.into(),
        }
        let plugin = binary("podwire-cni").unwrap();
        Cni::new(&node.host, plugin, config).search_path(search_path())
    }

    /// The plugin before ours, if there is one.
    fn first(self, node: &Node) -> Option<Cni> {
        let ipam = json!({ "type": "host-local", "dataDir": HOST_LOCAL, "subnet": "10.9.0.0/24" });
        let config =
            json!({ "cniVersion": "1.0.0", "name": "podnet", "type": "ptp", "ipam": ipam });
        let ptp = Cni::new(&node.host, "/usr/lib/cni/ptp", config).search_path(search_path());
        (self == Self::Chained).then_some(ptp)
    }

    /// The leases that the IPAM plugin's store holds.
    fn leases(self, node: &Node) -> Vec<String> {
        match self {
            Self::Own => Vec::new(),
            Self::HostLocal | Self::Chained => {
                let names = node.host.run(|| fs::read_dir(format!("{HOST_LOCAL}/podnet")));
                let names = names.into_iter().flatten();
                let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
                names
                    .filter(|name| name.starts_with(|first: char| first.is_ascii_hexdigit()))
                    .collect()
            }
            Self::PodwireIpam => {
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
    Error {
        code: u64,
        message: String,
    },
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

/// Calls the plugin as a runtime does, with a fault or without; tells its steps, and whether the
/// fault's was one of them.
///
/// The plugin waits for its configuration when it is caught, so that nothing is missed.
fn call_with_fault(
    Bench { node, plugin, .. }: &Bench<'_>,
    verb: &str,
    about: &Attachment,
    previous: Option<&Value>,
    fault: Option<(Fault, Step)>,
) -> (Answer, Vec<Step>, bool) {
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
    tracer.arm(fault);
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
    let (steps, hit) = tracer.disarm();
    (Answer::of(status, &stdout), steps, hit)
}

/// What was found at all points of a verb.
struct Table {
    what: String,
    text: String,
    points: usize,
    /// How many of them are steps that others see, and no questions.
    visible: usize,
    /// Steps of a call without a fault that were not met with one.
    unmet: usize,
}

/// Points of all tables so far.
static POINTS: AtomicUsize = AtomicUsize::new(0);

impl Table {
    fn new(subject: &str, verb: &str, fault: Fault, conditions: &str) -> Self {
        let fault = match fault {
            Fault::Kill => "killed after",
            Fault::Fail => "failing at",
        };
        let what = format!("{subject} {fault} a step of {verb} ({conditions})");
        Self { what, text: String::new(), points: 0, visible: 0, unmet: 0 }
    }

    fn row(&mut self, Step { effect, nth }: &Step, answered: &str, result: &str) {
        self.points += 1;
        self.visible += usize::from(effect.is_visible());
        let times = if *nth > 1 { format!(" ({nth})") } else { String::new() };
        let name: String = format!("{}{times}", effect.name).chars().take(48).collect();
        writeln!(self.text, "| {:>3} | {name:<48} | {answered:<70} | {result} |", self.points)
            .unwrap();
    }

    /// Prints it past the harness, which keeps to itself what tests that pass print.
    fn print(self) -> usize {
        let Self { what, text, points, visible, unmet } = self;
        let all = POINTS.fetch_add(points, Ordering::Relaxed) + points;
        let text = format!(
            "\n| {what}\n{text}| {points} points, {visible} of them seen by others, {unmet} not met again; {all} \
             points in all tables so far\n"
        );
        std::io::stdout().lock().write_all(text.as_bytes()).unwrap();
        points
    }
}

/// A sweep's node and network, and the pod of the point that it is at.
struct Bench<'n> {
    node: &'n mut Node,
    way: Way,
    plugin: Cni,
}

/// A pod whose namespace stands, with what other plugins made of it.
struct Subject {
    pod: Pod,
    about: Attachment,
    /// What the plugin before ours has answered.
    previous: Option<Value>,
    before: Inventory,
}

impl<'n> Bench<'n> {
    fn new(node: &'n mut Node, way: Way) -> Self {
        let plugin = way.plugin(node);
        Self { node, way, plugin }
    }

    fn subject(&self) -> Subject {
        let pod = self.node.host.add_pod("a").unwrap();
        let about = attachment(&pod);
        let previous = self.way.first(self.node).map(|first| first.add(&about).unwrap());
        let before = self.node.host.inventory().unwrap();
        Subject { pod, about, previous, before }
    }

    fn add(&self, subject: &Subject) -> Value {
        let output = self.plugin.verb("ADD", &subject.about, subject.previous.as_ref()).unwrap();
        output.json("ADD").unwrap()
    }

    /// What stands of our attachment: on the node, in the pod, in the agent's books, in the IPAM's.
    fn traces(&self, subject: &Subject) -> Vec<String> {
        let Self { node, way, .. } = self;
        let mut found = node.host.inventory().unwrap().since(&subject.before);
        if *way != Way::Chained {
            let links = subject.pod.run(interface::names).unwrap();
            let own = links.into_iter().filter(|link| link != "lo");
            found.extend(own.map(|link| format!("pod's {link}")));
            found.extend(way.leases(node).into_iter().map(|lease| format!("IPAM's {lease}")));
        } else {
            // The kernel gives the other plugin's link these a second or two after it is up.
            found.retain(|trace| !trace.starts_with("route fe80"));
        }
        let links = node.host.run(|| Netlink::open().unwrap().links()).unwrap();
        let marks = links.into_iter().filter_map(|link| link.alias);
        found.extend(marks.filter(|alias| alias.contains("a-container")));
        let leases = node.ask(Client::leases);
        found.extend(leases.into_iter().map(|lease| format!("lease of {}", lease.id)));
        let endpoints = node.ask(Client::endpoints);
        found.extend(endpoints.into_iter().map(|one| format!("endpoint {}", one.id)));
        found
    }

    fn assert_nothing_left(&self, subject: Subject, at: &str) {
        assert_eq!(self.traces(&subject), [] as [&str; 0], "{at}");
        let Subject { pod, about, .. } = subject;
        if let Some(first) = self.way.first(self.node) {
            first.del(&about, None).unwrap();
        }
        assert_eq!(pod.run(interface::names).unwrap(), ["lo"], "{at}");
        assert_eq!(self.way.leases(self.node), [] as [&str; 0], "{at}");
        self.node.host.remove_pod_netns(pod.name()).unwrap();
        let notes = self.node.host.run(|| fs::read_dir(NOTES)).unwrap();
        let notes: Vec<_> = notes.map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(notes, [] as [&str; 0], "{at}");
        self.node.assert_clean();
    }

    /// DEL at odd points, GC at even ones.
    fn del_or_gc(&self, subject: &Subject, point: usize) -> &'static str {
        if point % 2 == 1 || self.way == Way::HostLocal {
            self.plugin.del(&subject.about, None).unwrap();
            return "DEL: nothing left";
        }
        self.plugin.gc(&[]).unwrap();
        "GC: nothing left"
    }
}

/// How a sweep clears away after a point.
type Clear<'a> = &'a dyn Fn(&mut Bench<'_>, &Subject, usize) -> &'static str;

fn del_or_gc(bench: &mut Bench<'_>, subject: &Subject, point: usize) -> &'static str {
    bench.del_or_gc(subject, point)
}

fn gc_or_del(bench: &mut Bench<'_>, subject: &Subject, point: usize) -> &'static str {
    bench.del_or_gc(subject, point + 1)
}

fn sweep_add(node: &mut Node, way: Way, fault: Fault, conditions: &str, clear: Clear<'_>) {
    let bench = &mut Bench::new(node, way);
    let mut table = Table::new("plugin", "ADD", fault, &format!("{way:?}, {conditions}"));
    let undisturbed = bench.subject();
    let (answer, steps, _) =
        call_with_fault(bench, "ADD", &undisturbed.about, undisturbed.previous.as_ref(), None);
    assert!(answer.is_success(), "{answer:?}");
    bench.del_or_gc(&undisturbed, 1);
    bench.assert_nothing_left(undisturbed, "undisturbed");
    for (point, step) in (1..).zip(steps) {
        let subject = bench.subject();
        let (about, previous) = (&subject.about, subject.previous.as_ref());
        let (answer, _, hit) =
            call_with_fault(bench, "ADD", about, previous, Some((fault, step.clone())));
        let at = format!("{}, {step:?}: {answer:?}", table.what);
        match &answer {
            Answer::Success(result) => {
                bench.plugin.check(about, result.as_ref().expect(&at)).expect(&at);
            }
            // All was done, and then nobody learnt of it.
            Answer::Nothing(_) if fault == Fault::Fail => {
                assert_eq!(step.effect.kind, Kind::Answer, "{at}");
            }
            Answer::Nothing(_) => {}
            Answer::Error { .. } => assert_eq!(bench.traces(&subject), [] as [&str; 0], "{at}"),
        }
        assert!(hit || answer.is_success(), "{at}");
        let undone = if matches!(answer, Answer::Error { .. }) { "undone; " } else { "" };
        let cleared = clear(bench, &subject, point);
        bench.assert_nothing_left(subject, &at);
        if hit {
            table.row(&step, &answer.text(), &format!("{undone}{cleared}"));
        } else {
            table.unmet += 1;
        }
    }
    let points = table.print();
    assert!(points >= 12, "{points} points");
}

/// Whether an agent is there when DEL comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Agent {
    There,
    Away,
}

fn sweep_del(node: &mut Node, way: Way, fault: Fault, agent: Agent) -> usize {
    let bench = &mut Bench::new(node, way);
    let conditions = format!("{way:?}, agent {agent:?}").to_lowercase();
    let mut table = Table::new("plugin", "DEL", fault, &conditions);
    let mut point = |bench: &mut Bench<'_>, number: usize, step: Option<&Step>| {
        let subject = bench.subject();
        let result = bench.add(&subject);
        if agent == Agent::Away {
            bench.node.agent.kill().unwrap();
        }
        let fault_at = step.map(|step| (fault, step.clone()));
        let (answer, steps, hit) =
            call_with_fault(bench, "DEL", &subject.about, Some(&result), fault_at);
        let at = format!("{}, {step:?}: {answer:?}", table.what);
        assert!(fault == Fault::Kill || !matches!(answer, Answer::Nothing(_)), "{at}");
        assert!(hit || answer.is_success(), "{at}");
        if agent == Agent::Away {
            bench.node.agent.start_again().expect(&at);
        }
        let mut done = "";
        if answer.is_success() {
            assert_eq!(bench.traces(&subject), [] as [&str; 0], "{at}");
            done = "done; ";
        }
        let cleared = bench.del_or_gc(&subject, number);
        bench.assert_nothing_left(subject, &at);
        match step {
            Some(step) if hit => {
                table.row(step, &answer.text(), &format!("{done}{cleared}"));
            }
            Some(_) => table.unmet += 1,
            None => {}
        }
        steps
    };
    let steps = point(bench, 1, None);
    for (number, step) in (1..).zip(&steps) {
        point(bench, number, Some(step));
    }
    table.print()
}

fn sweep_agent(node: &mut Node, way: Way, verb: &'static str, fault: Fault, conditions: &str) {
    let bench = &mut Bench::new(node, way);
    let mut table = Table::new("agent", verb, fault, &format!("{way:?}, {conditions}"));
    let mut tracer = Tracer::attach(bench.node.agent.pid(), None);
    let mut point = |bench: &mut Bench<'_>, number: usize, step: Option<&Step>| {
        let subject = bench.subject();
        let about = &subject.about;
        let added = (verb == "DEL").then(|| bench.add(&subject));
        tracer.arm(step.map(|step| (fault, step.clone())));
        let previous = added.as_ref().or(subject.previous.as_ref());
        let output = bench.plugin.verb(verb, about, previous).unwrap();
        let answer = Answer::of(output.status, &output.stdout);
        let (steps, hit) = tracer.disarm();
        let log = bench.node.agent.log();
        let at = format!("{}, {step:?}: {answer:?}\n{log}", table.what);
        assert!(!matches!(answer, Answer::Nothing(_)), "{at}");
        assert!(hit || answer.is_success(), "{at}");
        if fault == Fault::Kill && hit {
            tracer.wait();
            bench.node.agent.start_again().expect(&at);
            tracer = Tracer::attach(bench.node.agent.pid(), None);
        }
        let mut by_itself = "";
        match (&answer, verb) {
            (Answer::Success(result), "ADD") => {
                bench.plugin.check(about, result.as_ref().expect(&at)).expect(&at);
            }
            (Answer::Success(_), _) | (_, "ADD") => {
                let mut traces = bench.traces(&subject);
                // Nobody can tell a new agent that what was promised was never heard of. It expires, and
                // the next DEL or GC finds it sooner.
                if fault == Fault::Kill && verb == "ADD" {
                    traces.retain(|trace| trace != "lease of a-container/eth0");
                }
                assert_eq!(traces, [] as [&str; 0], "{at}");
                by_itself = if verb == "ADD" { "undone; " } else { "done; " };
            }
            _ => {}
        }
        let cleared = bench.del_or_gc(&subject, number);
        bench.assert_nothing_left(subject, &at);
        match step {
            Some(step) if hit => {
                table.row(step, &answer.text(), &format!("{by_itself}{cleared}"));
            }
            Some(_) => table.unmet += 1,
            None => {}
        }
        steps
    };
    let steps = point(bench, 1, None);
    for (number, step) in (1..).zip(&steps) {
        point(bench, number, Some(step));
    }
    bench.node.agent.kill().unwrap();
    let points = table.print();
    assert!(points >= 12, "{points} points");
}

/// GC of several pods, whose links go together. Of its steps those are tried that others see but its
/// writes to maps and disk, which are those of DEL.
fn sweep_collection(node: &mut Node, fault: Fault) {
    let plugin = Way::Own.plugin(node);
    let mut table = Table::new("agent", "GC", fault, "three pods");
    let mut tracer = Tracer::attach(node.agent.pid(), None);
    let mut point = |node: &mut Node, number: usize, step: Option<&Step>| {
        let pods = ["a", "b", "c"].map(|name| node.host.add_pod(name).unwrap());
        for pod in &pods {
            plugin.add(&attachment(pod)).unwrap();
        }
        tracer.arm(step.map(|step| (fault, step.clone())));
        let mut config = plugin.config().clone();
        config["cni.dev/valid-attachments"] = json!([]);
        let output = plugin.call("GC", &[], config.to_string().as_bytes()).unwrap();
        let answer = Answer::of(output.status, &output.stdout);
        let (steps, hit) = tracer.disarm();
        let at = format!("{}, {step:?}: {answer:?}\n{}", table.what, node.agent.log());
        assert!(!matches!(answer, Answer::Nothing(_)), "{at}");
        assert!(hit || answer.is_success(), "{at}");
        if fault == Fault::Kill && hit {
            tracer.wait();
            node.agent.start_again().expect(&at);
            tracer = Tracer::attach(node.agent.pid(), None);
        }
        let is_clean = |pod: &Pod| pod.run(interface::names).unwrap() == ["lo"];
        if answer.is_success() {
            assert!(pods.iter().all(is_clean), "{at}");
        }
        let cleared = if number % 2 == 1 {
            for pod in &pods {
                plugin.del(&attachment(pod), None).expect(&at);
            }
            "DEL of each: nothing left"
        } else {
            plugin.gc(&[]).expect(&at);
            "GC: nothing left"
        };
        assert!(pods.iter().all(is_clean), "{at}");
        pods.iter().for_each(|pod| node.host.remove_pod_netns(pod.name()).unwrap());
        node.assert_clean();
        match step {
            Some(step) if hit => table.row(step, &answer.text(), cleared),
            Some(_) => table.unmet += 1,
            None => {}
        }
        steps
    };
    let mut steps = point(node, 1, None);
    steps.retain(|step| matches!(step.effect.kind, Kind::Netlink | Kind::Message));
    for (number, step) in (1..).zip(&steps) {
        point(node, number, Some(step));
    }
    node.agent.kill().unwrap();
    table.print();
}

#[test]
#[ignore = "needs root: a node in namespaces of its own, agents under ptrace"]
fn an_agent_killed_or_failing_in_gc_leaves_nothing_after_the_next() {
    for fault in [Fault::Kill, Fault::Fail] {
        sweep_collection(&mut Node::start(), fault);
    }
}

#[test]
#[ignore = "needs root: a node in namespaces of its own, plugins under ptrace"]
fn a_plugin_killed_in_add_leaves_nothing_after_del_or_gc() {
    let clears: [Clear<'_>; 2] = [&del_or_gc, &gc_or_del];
    for (mode, clear) in MODES.into_iter().zip(clears) {
        let mut node = Node::start_with(&["--attach", mode]);
        let conditions = format!("--attach {mode}");
        sweep_add(&mut node, Way::Own, Fault::Kill, &conditions, clear);
    }
    let mut node = Node::start();
    for way in [Way::HostLocal, Way::PodwireIpam, Way::Chained] {
        sweep_add(&mut node, way, Fault::Kill, "then DEL or GC", &del_or_gc);
    }
}

#[test]
#[ignore = "needs root: a node in namespaces of its own, plugins under ptrace"]
fn a_plugin_killed_in_add_is_no_obstacle_to_the_next() {
    let mut node = Node::start();
    sweep_add(&mut node, Way::Own, Fault::Kill, "then ADD again", &|bench, subject, _| {
        // If the agent has been told of the endpoint it stands, and only DEL removes it.
        let (plugin, Subject { about, pod, .. }) = (&bench.plugin, subject);
        let again = match plugin.add(about) {
            Err(error) if error.cni_code() == Some(102) => {
                plugin.del(about, None).unwrap();
                plugin.add(about).unwrap()
            }
            again => again.unwrap(),
        };
        plugin.check(about, &again).unwrap();
        let report = pod.run(|| Ping::new(ROUTER.parse().unwrap()).run()).unwrap();
        assert!(report.is_complete(), "{report}");
        plugin.del(about, Some(&again)).unwrap();
        "ADD, DEL: nothing left"
    });
}

#[test]
#[ignore = "needs root: a node in namespaces of its own, plugins under ptrace"]
fn a_plugin_killed_in_add_leaves_nothing_after_a_restart() {
    let mut node = Node::start();
    sweep_add(&mut node, Way::Own, Fault::Kill, "then a new agent", &|bench, subject, _| {
        let node = &mut *bench.node;
        node.agent.kill().unwrap();
        node.agent.start_again().unwrap();
        // Either all of it was recorded, and only DEL removes it, or nothing is left but what was
        // promised, which expires, and which GC finds sooner.
        let endpoints = node.ask(Client::endpoints);
        let leases = node.ask(Client::leases);
        let [endpoint] = &endpoints[..] else {
            if leases.is_empty() {
                return "new agent: nothing left";
            }
            assert!(leases.iter().all(|lease| lease.state == LeaseState::Pending), "{leases:?}");
            bench.plugin.gc(&[]).unwrap();
            return "a lease; GC: nothing left";
        };
        assert_eq!(endpoint.host_link, host_link_name("a-container", "eth0"));
        assert_eq!(node.ask(Client::leases).len(), 1);
        assert_eq!(node.tables().endpoints().unwrap().len(), 1);
        bench.plugin.del(&subject.about, None).unwrap();
        "recorded; DEL: nothing left"
    });
}

#[test]
#[ignore = "needs root: a node in namespaces of its own, plugins under ptrace"]
fn a_plugin_killed_in_add_leaves_nothing_after_del_without_an_agent() {
    let mut node = Node::start();
    let conditions = "then DEL without agent and namespace";
    sweep_add(&mut node, Way::Own, Fault::Kill, conditions, &|bench, subject, _| {
        bench.node.agent.kill().unwrap();
        let gone = Attachment { netns: PathBuf::new(), ..subject.about.clone() };
        bench.plugin.del(&gone, None).unwrap();
        assert_eq!(subject.pod.run(interface::names).unwrap(), ["lo"]);
        bench.node.agent.start_again().unwrap();
        "DEL, new agent: nothing left"
    });
}

#[test]
#[ignore = "needs root: a node in namespaces of its own, plugins under ptrace"]
fn a_plugin_that_fails_in_add_undoes_it() {
    let mut node = Node::start();
    for way in Way::ALL {
        sweep_add(&mut node, way, Fault::Fail, "then DEL or GC", &del_or_gc);
    }
}

#[test]
#[ignore = "needs root: a node in namespaces of its own, plugins under ptrace"]
fn a_plugin_killed_or_failing_in_del_leaves_nothing_after_the_next() {
    let mut node = Node::start();
    for fault in [Fault::Kill, Fault::Fail] {
        let points: usize =
            Way::ALL.into_iter().map(|way| sweep_del(&mut node, way, fault, Agent::There)).sum();
        let away = sweep_del(&mut node, Way::Own, fault, Agent::Away);
        let text = format!(
            "| DEL asks the agent and does little itself while it is there: {points} points in four ways; it has \
             {away} without the agent\n"
        );
        std::io::stdout().lock().write_all(text.as_bytes()).unwrap();
        assert!(points >= 12 && away >= 12, "{points}, {away}");
    }
}

#[test]
#[ignore = "needs root: a node in namespaces of its own, agents under ptrace"]
fn an_agent_killed_in_add_leaves_nothing_after_del_or_gc() {
    for mode in MODES {
        let mut node = Node::start_with(&["--attach", mode]);
        sweep_agent(&mut node, Way::Own, "ADD", Fault::Kill, &format!("--attach {mode}"));
    }
    sweep_agent(&mut Node::start(), Way::Chained, "ADD", Fault::Kill, "after ptp");
}

#[test]
#[ignore = "needs root: a node in namespaces of its own, agents under ptrace"]
fn an_agent_killed_in_del_leaves_nothing_after_the_next() {
    sweep_agent(&mut Node::start(), Way::Own, "DEL", Fault::Kill, "then DEL or GC");
    sweep_agent(&mut Node::start(), Way::Chained, "DEL", Fault::Kill, "after ptp");
}

#[test]
#[ignore = "needs root: a node in namespaces of its own, agents under ptrace"]
fn an_agent_that_fails_in_add_undoes_it() {
    sweep_agent(&mut Node::start(), Way::Own, "ADD", Fault::Fail, "then DEL or GC");
    sweep_agent(&mut Node::start(), Way::Chained, "ADD", Fault::Fail, "after ptp");
}

#[test]
#[ignore = "needs root: a node in namespaces of its own, agents under ptrace"]
fn an_agent_that_fails_in_del_leaves_nothing_after_the_next() {
    sweep_agent(&mut Node::start(), Way::Own, "DEL", Fault::Fail, "then DEL or GC");
    sweep_agent(&mut Node::start(), Way::Chained, "DEL", Fault::Fail, "after ptp");
}
