//! `cargo xtask demo`: the main job, on a node that exists only while it runs.

use std::{
    ffi::OsStr,
    io,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    process::{ExitCode, Stdio},
    time::{Duration, Instant},
};

use clap::Args;
use podwire_lab::{
    Agent, AgentSpec, Attachment, BIN_DIR_VARIABLE, Cni, Host, Inventory, Pod,
    probe::{EchoReceiver, Ping, TcpSink, tcp_flood},
};
use serde_json::{Value, json};

use crate::{
    Result, cargo,
    privilege::own_program_as_root,
    report::{bad, good, heading, note, seconds},
};

/// What the agent and the kernel's tables hold of pods: the command, and where its JSON has the rows.
const LISTS: [(&[&str], &str); 5] = [
    (&["endpoint", "list"], ""),
    (&["ipam", "list"], "/leases"),
    (&["bpf", "endpoint", "list"], ""),
    (&["bpf", "ipcache", "list"], ""),
    (&["bpf", "flow", "list"], ""),
];

const NODE: &str = "demo";
const POD_CIDRS: [&str; 2] = ["10.244.0.0/16", "fd00:10:244::/64"];

#[derive(Debug, Args)]
pub struct Options {
    /// Number of pods
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(2..=500))]
    pods: u16,
    /// Leave node and pods running until Enter is pressed, to look around
    #[arg(long)]
    keep: bool,
}

#[derive(Debug, Args)]
pub struct RunOptions {
    #[command(flatten)]
    demo: Options,
    #[arg(long)]
    programs: PathBuf,
}

/// Builds as the caller, then runs the rest as root.
pub fn build_and_run(options: &Options) -> Result<ExitCode> {
    heading("build the agent, the plugin and the CLI");
    let programs = cargo::build_programs()?;
    good(&programs.display().to_string());

    let mut command = own_program_as_root()?;
    command.arg("demo-run").arg("--programs").arg(programs);
    command.arg("--pods").arg(options.pods.to_string());
    if options.keep {
        command.arg("--keep");
    }
    let status = command.status().map_err(|e| format!("needs root, or sudo: {e}"))?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The demo itself.
pub fn run(options: &RunOptions) -> Result<ExitCode> {
    let start = Instant::now();
    let mut demo = Demo::start(options)?;
    demo.add_pods(options.demo.pods)?;
    demo.ping()?;
    demo.measure()?;
    demo.show(&["endpoint", "list"])?;
    demo.show(&["bpf", "metrics", "list"])?;
    if options.demo.keep {
        demo.keep()?;
    }
    demo.delete_pods()?;
    demo.prove_clean()?;
    let failures = demo.end()?;
    heading(&format!("done in {}", seconds(start.elapsed())));
    if failures == 0 {
        good("a node, its pods and their traffic; nothing is left of them");
        return Ok(ExitCode::SUCCESS);
    }
    bad(&format!("{failures} of the above"));
    Ok(ExitCode::FAILURE)
}

struct Demo {
    programs: PathBuf,
    machine: Inventory,
    /// The node before there was an agent.
    blank: Inventory,
    /// The node before there were pods.
    empty: Inventory,
    host: Host,
    agent: Agent,
    plugin: Cni,
    pods: Vec<DemoPod>,
    /// Rows of the lists before there were pods.
    rows: Vec<Vec<String>>,
    failures: u32,
}

struct DemoPod {
    pod: Pod,
    attachment: Attachment,
    addresses: Vec<IpAddr>,
    gateways: Vec<IpAddr>,
    result: Value,
}

impl Demo {
    fn start(options: &RunOptions) -> Result<Self> {
        heading("start a node: a network and mount namespace of its own, and the agent in it");
        let machine = Inventory::here()?;
        let programs = options.programs.clone();
        let program = |name: &str| {
            let path = programs.join(name);
            let missing = || format!("no {} ({BIN_DIR_VARIABLE} is not used here)", path.display());
            if path.is_file() { Ok(path.clone()) } else { Err(missing()) }
        };
        let host = Host::new()?;
        let blank = host.inventory()?;
        let mut spec = AgentSpec::new(&host, program("podwired")?).args(["--node-name", NODE]);
        for cidr in POD_CIDRS {
            spec = spec.args(["--pod-cidr", cidr]);
        }
        let start = Instant::now();
        let agent = spec.start()?;
        let config = json!({
            "cniVersion": "1.0.0",
            "name": "podwire",
            "type": "podwire-cni",
            "runDir": "/run/podwire",
        });
        let plugin = Cni::new(&host, program("podwire-cni")?, config);
        let ready = start.elapsed();
        good(&format!(
            "podwired is ready after {ready:.0?}, pod CIDRs {}",
            POD_CIDRS.join(" and ")
        ));
        let empty = host.inventory()?;
        let (pods, rows) = (vec![], vec![]);
        let mut demo =
            Self { programs, machine, blank, empty, host, agent, plugin, pods, rows, failures: 0 };
        demo.rows = demo.rows()?;
        Ok(demo)
    }

    fn add_pods(&mut self, count: u16) -> Result<()> {
        heading(&format!("add {count} pods with CNI ADD"));
        let start = Instant::now();
        for number in 1..=count {
            let pod = self.host.add_pod(&format!("pod{number}"))?;
            let attachment = Attachment::new(format!("demo{number}"), pod.path()).args(format!(
                "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME={}",
                pod.name()
            ));
            let before = Instant::now();
            let result = self.plugin.add(&attachment)?;
            let (addresses, gateways) = (ips(&result, "address")?, ips(&result, "gateway")?);
            if number <= 5 {
                let shown: Vec<_> = addresses.iter().map(IpAddr::to_string).collect();
                let name = pod.name();
                good(&format!("{name} {} ({:.0?})", shown.join(" "), before.elapsed()));
            }
            self.pods.push(DemoPod { pod, attachment, addresses, gateways, result });
        }
        let each = start.elapsed() / u32::from(count);
        note(&format!("{count} pods in {}, {each:.1?} each", seconds(start.elapsed())));
        Ok(())
    }

    fn ping(&mut self) -> Result<()> {
        heading("ping on both families, every request counted at both ends");
        let shown = self.pods.len().min(3);
        let mut counts = [0u32; 2];
        for (index, from) in self.pods.iter().enumerate() {
            let to = &self.pods[(index + 1) % self.pods.len()];
            let mut routes = Vec::new();
            for &address in &to.addresses {
                let way = format!("{} -> {} {address}", from.pod.name(), to.pod.name());
                let receiver = to.pod.run(|| EchoReceiver::icmp(address))?;
                routes.push((way, from.pod.run(|| Ping::new(address).run())?, Some(receiver)));
                let way = format!("host -> {} {address}", to.pod.name());
                let receiver = to.pod.run(|| EchoReceiver::icmp(address))?;
                routes.push((way, self.host.run(|| Ping::new(address).run())?, Some(receiver)));
            }
            for &address in &from.gateways {
                let way = format!("{} -> host {address}", from.pod.name());
                let receiver = self.host.run(|| EchoReceiver::icmp(address))?;
                routes.push((way, from.pod.run(|| Ping::new(address).run())?, Some(receiver)));
            }
            for (way, report, receiver) in routes {
                let arrived = receiver.map_or(0, |r| r.arrivals().received(report.sender));
                let complete = report.is_complete() && arrived == report.sent;
                counts[usize::from(!complete)] += 1;
                if !complete {
                    bad(&format!("{way}: {report}; {arrived} arrived"));
                } else if index < shown {
                    good(&format!("{way}: {report}"));
                }
            }
        }
        self.failures += counts[1];
        note(&format!("{} of {} ways answer completely", counts[0], counts[0] + counts[1]));
        Ok(())
    }

    fn measure(&mut self) -> Result<()> {
        heading("TCP throughput, counted at the receiver");
        let (from, to) = (&self.pods[0], &self.pods[1]);
        let mut flood = |what: &str, sink: io::Result<TcpSink>| -> Result<()> {
            let sink = sink?;
            let address = sink.address();
            match from.pod.run(|| tcp_flood(address, Duration::from_secs(1))) {
                Ok(throughput) => good(&format!("{what} {}: {throughput}", address.ip())),
                Err(error) => {
                    self.failures += 1;
                    bad(&format!("{what} {}: {error}", address.ip()));
                }
            }
            Ok(())
        };
        for &address in &to.addresses {
            flood("pod to pod ", to.pod.run(|| TcpSink::start(SocketAddr::new(address, 0))))?;
        }
        for &address in &from.gateways {
            flood("pod to host", self.host.run(|| TcpSink::start(SocketAddr::new(address, 0))))?;
        }
        Ok(())
    }

    /// Runs the CLI and shows what it prints.
    fn show(&mut self, arguments: &[&str]) -> Result<()> {
        heading(&format!("podwire {}", arguments.join(" ")));
        let output = self.cli(arguments)?;
        let lines: Vec<_> = output.lines().collect();
        lines.iter().take(24).for_each(|line| println!("      {line}"));
        if lines.len() > 24 {
            note(&format!("and {} lines more", lines.len() - 24));
        }
        Ok(())
    }

    fn keep(&self) -> Result<()> {
        heading("the node stays until Enter is pressed");
        let process = self.agent.pid();
        let enter = format!("sudo nsenter --target {process} --mount --net --");
        let cli = self.programs.join("podwire");
        println!("      look around:  {enter} {} endpoint list", cli.display());
        println!("      as a pod:     {enter} nsenter --net=/run/netns/pod1 -- ip address");
        io::stdin().read_line(&mut String::new())?;
        Ok(())
    }

    fn delete_pods(&mut self) -> Result<()> {
        heading(&format!("delete {} pods with CNI DEL", self.pods.len()));
        let start = Instant::now();
        for DemoPod { pod, attachment, result, .. } in &self.pods {
            self.plugin.del(attachment, Some(result))?;
            // As runtimes do: once more, without what the first one had.
            self.plugin.del(&Attachment { netns: PathBuf::new(), ..attachment.clone() }, None)?;
            self.host.remove_pod_netns(pod.name())?;
        }
        let each = start.elapsed() / u32::try_from(self.pods.len())?;
        good(&format!("each twice, as runtimes do; {each:.1?} each"));
        self.pods.clear();
        Ok(())
    }

    fn prove_clean(&mut self) -> Result<()> {
        heading("nothing of the pods is left");
        let left = self.host.inventory()?.since(&self.empty);
        self.outcome("links, routes, neighbours, namespaces, pins and mounts are as before", &left);
        let rows = self.rows()?;
        for (((list, _), now), before) in LISTS.iter().zip(rows).zip(self.rows.clone()) {
            let left: Vec<_> = now.into_iter().filter(|row| !before.contains(row)).collect();
            self.outcome(&format!("`podwire {}` shows none of them", list.join(" ")), &left);
        }
        Ok(())
    }

    /// Ends the agent, removes what it keeps in the kernel, drops the node; tells how much failed.
    fn end(mut self) -> Result<u32> {
        heading("end the agent, clean up, and drop the node");
        self.agent.terminate()?;
        let removed = self.cli(&["cleanup", "--yes"])?;
        note(&format!("`podwire cleanup` removed {} things", removed.lines().count()));
        let kept = self.host.inventory()?.since(&self.blank);
        self.outcome("the node is as it was without an agent", &kept);
        let machine = std::mem::take(&mut self.machine);
        let failures = self.failures;
        drop(self);
        let left = Inventory::here()?.since(&machine);
        if left.is_empty() {
            good("the machine is as it was");
            return Ok(failures);
        }
        bad(&format!("left on the machine: {}", left.join("; ")));
        Ok(failures + 1)
    }

    fn outcome(&mut self, what: &str, left: &[String]) {
        if left.is_empty() {
            good(what);
        } else {
            self.failures += 1;
            bad(&format!("{what}; but: {}", left.join("; ")));
        }
    }

    fn rows(&self) -> Result<Vec<Vec<String>>> {
        let list = |(list, place): &(&[&str], &str)| {
            let value: Value =
                serde_json::from_str(&self.cli(&[list, &["--output", "json"][..]].concat())?)?;
            let rows = value.pointer(place).and_then(Value::as_array);
            let rows = rows.ok_or_else(|| format!("no list at {place:?} in {value}"))?;
            Ok(rows.iter().map(Value::to_string).collect())
        };
        LISTS.iter().map(list).collect()
    }

    fn cli<S: AsRef<OsStr>>(&self, arguments: &[S]) -> Result<String> {
        let program = self.programs.join("podwire");
        let output = self.host.command(&program).args(arguments).stdin(Stdio::null()).output()?;
        if output.status.success() {
            return Ok(String::from_utf8(output.stdout)?);
        }
        let errors = String::from_utf8_lossy(&output.stderr);
        Err(format!("podwire ended with {}: {}", output.status, errors.trim_end()).into())
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        if std::thread::panicking() || !self.pods.is_empty() {
            // What the agent said is gone with the node.
            note(&format!("the agent said:\n{}", self.agent.log()));
        }
    }
}

/// All addresses under a key of a result's `ips`.
fn ips(result: &Value, key: &str) -> Result<Vec<IpAddr>> {
    let ips = result["ips"].as_array().ok_or_else(|| format!("no ips in {result}"))?;
    let texts = ips.iter().filter_map(|ip| ip[key].as_str());
    texts.map(|text| Ok(text.split('/').next().unwrap_or(text).parse()?)).collect()
}
