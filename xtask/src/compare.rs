//! `cargo xtask compare`: the same work by podwire and by its peers, in turns.
//!
//! What would make it unfair, and what is done about it:
//!
//! | what | so |
//! |---|---|
//! | the machine changes while it measures | all sides take turns within one run, in an order in which each is first, last and behind every other equally often; medians |
//! | something else runs meanwhile | one work at a time, a pause before each call, and the kernel is waited for while it still removes namespaces of earlier works |
//! | cold caches | every node has two pods, verified by pings, before the first measured call; traffic runs for a tenth of its time before it is counted |
//! | a call that fails is fast | every call's outcome is checked: ADD leaves a link and gives an address, DEL leaves no link; a failure ends the comparison. Lost datagrams do, too |
//! | starting a process costs, too | the same code starts all plugins, with the same environment; what it takes to start a program that does nothing is noted |
//! | peak memory counts the process that the plugin began as | podwire's that do not exceed that are marked as upper bounds; where a peer's do not, as on a node full of pods, there is no row |
//! | memory of several processes | that of the largest one, not their sum: in favour of the peers, which start others |
//! | IPv6 on one side only; duplicate address detection takes ptp more than a second | IPv4 alone on all sides; both families are a work of their own |
//! | memory instead of a disk | both sides keep their state in /var/tmp, so that podwire pays for its syncs; the peers sync nothing |
//! | logs | podwired logs as it does by default, to memory, as journald's socket would take it; the plugins log nothing |
//! | `CNI_ARGS`, configuration, MTU | the same arguments; a default route by the host on all sides; MTU 1500, checked in the pods; offloads of veths are the kernel's defaults on all sides, nobody changes them |
//! | a packet filter or connection tracking on one side only | no rule may be on any node, checked with nft; where pods are masqueraded all nodes have one |
//! | two processors do for one side what one does for the other | client and server of traffic are pinned to one, the last |

mod calls;
mod ipam;
mod links;
mod nodes;
mod progress;
mod report;
mod scale;
mod traffic;
mod turns;

use std::{
    path::{Path, PathBuf},
    process::{Child, ExitCode, Stdio},
    time::{Duration, Instant},
};

use clap::Args;

pub use self::report::figure;
use self::{
    calls::{Nothing, concurrent_deletes, lifecycle},
    links::{BareVeth, settle},
    nodes::{Families, Kind, Masquerade, Node, Site},
    progress::Progress,
    report::{Report, Row},
    traffic::{Load, Pair, rates},
    turns::Series,
};
use crate::{
    Result, cargo,
    machine::Machine,
    needs,
    privilege::own_program_as_root,
    report::{good, heading, seconds},
};

/// What the comparison needs besides root; iptables is what the reference plugins masquerade with.
pub const NEEDS: [&str; 3] = ["containernetworking-plugins", "iptables", "nftables"];

const KINDS: [Kind; 3] = [Kind::Podwire, Kind::Ptp, Kind::Bridge];

#[derive(Clone, Debug, Args)]
pub struct Plan {
    /// Compare only works whose name contains this, such as `cni_add` or `tcp_rr`
    #[arg(value_name = "FILTER")]
    filter: Option<String>,
    /// Runs of CNI calls; a tenth of it of what takes longer: traffic, many calls at once, two families
    #[arg(long, value_name = "NUMBER", default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    runs: u32,
    /// The pods of a full node, for `cni_add/<NUMBER>`
    #[arg(long, value_name = "NUMBER", default_value_t = 500, value_parser = clap::value_parser!(u16).range(3..=1000))]
    pods: u16,
    /// Numbers of endpoints between which cost is compared, for `scale/*/<NUMBER>`
    #[arg(long, value_name = "NUMBER", value_delimiter = ',', default_values_t = [1, 100, 1000], value_parser = clap::value_parser!(u16).range(1..=4000))]
    endpoints: Vec<u16>,
    /// Numbers of leases beside which the IPAM plugins alone are compared, for `ipam_*/<NUMBER>`
    #[arg(long, value_name = "NUMBER", value_delimiter = ',', default_values_t = [0, 1000, 10_000], value_parser = clap::value_parser!(u16).range(0..=60_000))]
    leases: Vec<u16>,
    /// Milliseconds of one run of traffic
    #[arg(long, value_name = "NUMBER", default_value_t = 500, value_parser = clap::value_parser!(u64).range(10..=60_000))]
    milliseconds: u64,
}

#[derive(Debug, Args)]
pub struct Options {
    #[command(flatten)]
    plan: Plan,
    /// Folder of the reports; target/compare if not given
    #[arg(long, value_name = "DIR")]
    output: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub struct RunOptions {
    #[command(flatten)]
    plan: Plan,
    #[arg(long)]
    programs: PathBuf,
}

/// Builds as the caller, measures as root, reports as the caller.
pub fn build_and_run(options: &Options) -> Result<ExitCode> {
    let plan = &options.plan;
    let works = plan.works()?;
    needs::require(&NEEDS)?;
    heading("build the agent, the plugin and the CLI");
    let programs = cargo::build_programs()?;
    let folder = match &options.output {
        Some(folder) => folder.clone(),
        None => cargo::Metadata::read()?.target_directory.join("compare"),
    };
    let (machine, start) = (Machine::here(), Instant::now());
    let results = measure(plan, &programs)?;
    plan.check_complete(&results)?;
    let report = Report { machine, results };
    report.print();
    report.write(&folder)?;
    let took = seconds(start.elapsed());
    good(&format!("{} works in {took}; {}/report.md, .svg, .json", works.len(), folder.display()));
    Ok(ExitCode::SUCCESS)
}

/// Does every work a few times at most, reports into this folder, and makes sure that every work is
/// in the report. Figures of so few runs mean nothing.
pub fn smoke(programs: &Path, folder: &Path) -> Result<()> {
    let plan = Plan {
        filter: None,
        runs: 1,
        pods: 5,
        endpoints: vec![1, 4],
        leases: vec![0, 20],
        milliseconds: 20,
    };
    let report = Report { machine: Machine::here(), results: measure(&plan, programs)? };
    report.write(folder)?;
    plan.check_complete(&report.results)?;
    Ok(())
}

fn measure(plan: &Plan, programs: &Path) -> Result<Vec<Row>> {
    let mut command = own_program_as_root()?;
    command.arg("compare-run").arg("--programs").arg(programs).args(plan.arguments());
    let output = command.stdout(Stdio::piped()).spawn().and_then(Child::wait_with_output);
    let output = output.map_err(|e| format!("needs root, or sudo: {e}"))?;
    if !output.status.success() {
        return Err(format!("the comparison ended with {}", output.status).into());
    }
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// Measures, and prints all rows as JSON.
pub fn run(options: &RunOptions) -> Result<ExitCode> {
    let mut comparison = Comparison {
        plan: &options.plan,
        site: Site::new(&options.programs)?,
        progress: Progress::new(),
        nothing: String::new(),
        series: Vec::new(),
    };
    comparison.run()?;
    let rows: Vec<_> = comparison.series.iter().flat_map(Series::rows).collect();
    println!("{}", serde_json::to_string(&rows)?);
    Ok(ExitCode::SUCCESS)
}

impl Plan {
    /// Names of all works there are.
    fn all(&self) -> Vec<String> {
        let calls = ["cni_add", "cni_check", "cni_del", "cni_add_dual_stack", "cni_add_masq"];
        let calls = calls.iter().flat_map(|work| [(*work).to_owned(), format!("{work}/memory")]);
        let calls = calls.chain([format!("cni_add/{}", self.pods)]);
        let traffic = Load::ALL.map(|load| load.name().to_owned());
        let others = ["cni_del_concurrent", "tcp_rr/ipv6"].map(str::to_owned);
        let ipam = ipam::works(&self.leases);
        calls
            .chain(ipam)
            .chain(traffic)
            .chain(others)
            .chain(scale::works(&self.endpoints))
            .collect()
    }

    /// Names of all works that were asked for.
    fn works(&self) -> Result<Vec<String>> {
        let works: Vec<_> = self.all().into_iter().filter(|work| self.wants(work)).collect();
        if works.is_empty() {
            let all = self.all().join(", ");
            return Err(format!("no work has such a name; there are: {all}").into());
        }
        Ok(works)
    }

    /// Every work that was asked for has a row with figures.
    fn check_complete(&self, rows: &[Row]) -> Result<()> {
        let has = |work: &String| {
            let sound = |row: &Row| row.work == *work && row.ratio.is_finite() && row.ratio > 0.0;
            rows.iter().any(sound)
        };
        let works = self.works()?;
        let without: Vec<_> = works.iter().filter(|&work| !has(work)).map(String::as_str).collect();
        if without.is_empty() {
            return Ok(());
        }
        Err(format!("not measured: {}", without.join(", ")).into())
    }

    fn wants(&self, work: &str) -> bool {
        self.filter.as_ref().is_none_or(|filter| work.contains(filter.as_str()))
    }

    /// Whether one of these works, or its memory, was asked for.
    fn wants_any(&self, works: &[&str]) -> bool {
        works.iter().any(|work| self.wants(work) || self.wants(&format!("{work}/memory")))
    }

    /// Whether what the IPAM plugins do beside so many leases was asked for.
    fn wants_leases(&self, leases: u16) -> bool {
        ipam::works(&[leases]).any(|work| self.wants(&work))
    }

    fn calls(&self) -> usize {
        self.runs as usize
    }

    fn slow(&self) -> usize {
        (self.calls() / 10).max(1)
    }

    fn time(&self) -> Duration {
        Duration::from_millis(self.milliseconds)
    }

    /// What makes this plan on a command line.
    fn arguments(&self) -> Vec<String> {
        let list =
            |numbers: &[u16]| numbers.iter().map(u16::to_string).collect::<Vec<_>>().join(",");
        let options = [
            ("runs", self.runs.to_string()),
            ("pods", self.pods.to_string()),
            ("endpoints", list(&self.endpoints)),
            ("leases", list(&self.leases)),
            ("milliseconds", self.milliseconds.to_string()),
        ];
        let options = options.map(|(name, value)| format!("--{name}={value}"));
        // A filter that begins with a dash is one all the same.
        let filter = self.filter.iter().flat_map(|filter| ["--".to_owned(), filter.clone()]);
        options.into_iter().chain(filter).collect()
    }
}

struct Comparison<'a> {
    plan: &'a Plan,
    site: Site,
    progress: Progress,
    /// What it takes to start a program at all.
    nothing: String,
    series: Vec<Series>,
}

impl Comparison<'_> {
    fn run(&mut self) -> Result<()> {
        let plan = self.plan;
        let full = format!("cni_add/{}", plan.pods);
        let loads = Load::ALL.map(Load::name);
        let few = ["cni_add", "cni_check", "cni_del"];
        let calls = [&few[..], &["cni_add_dual_stack", "cni_add_masq", &full]].concat();
        let leases: Vec<u16> =
            plan.leases.iter().copied().filter(|n| plan.wants_leases(*n)).collect();
        if plan.wants_any(&calls) || !leases.is_empty() {
            self.progress.heading("starting a program that does nothing");
            self.nothing = Nothing::measure(plan.calls())?.note();
        }
        if !leases.is_empty() {
            self.ipam(&leases)?;
        }
        if plan.wants_any(&few) || plan.wants_any(&loads) || plan.wants("cni_del_concurrent") {
            self.few_pods()?;
        }
        if plan.wants_any(&["cni_add_dual_stack", "tcp_rr/ipv6"]) {
            self.dual_stack()?;
        }
        if plan.wants_any(&["cni_add_masq"]) {
            self.masquerade()?;
        }
        if plan.wants_any(&[&full]) {
            self.full_node(&full)?;
        }
        if scale::works(&plan.endpoints).any(|work| plan.wants(&work)) {
            self.scale()?;
        }
        Ok(())
    }

    fn ipam(&mut self, leases: &[u16]) -> Result<()> {
        let (runs, note) = (self.plan.calls(), self.nothing.as_str());
        let series = ipam::grow(&self.site, leases, runs, note, &mut self.progress)?;
        self.series.extend(series.into_iter().filter(|series| self.plan.wants(series.work())));
        Ok(())
    }

    fn few_pods(&mut self) -> Result<()> {
        self.progress.heading("nodes with two pods");
        let nodes = self.site.nodes(&KINDS, Families::V4, Masquerade::No)?;
        settle()?;
        if self.plan.wants_any(&["cni_add", "cni_check", "cni_del"]) {
            self.calls(&nodes, "cni_add", self.plan.calls(), "")?;
        }
        let veth = BareVeth::new()?;
        let pairs = pairs(&nodes, &veth, 0)?;
        for load in Load::ALL {
            self.traffic(load.name(), load, &pairs)?;
        }
        if self.plan.wants("cni_del_concurrent") {
            let runs = self.plan.slow();
            // podwire and ptp.
            let series = concurrent_deletes(&[&nodes[0], &nodes[1]], runs, &mut self.progress)?;
            self.keep(runs, vec![series]);
        }
        Ok(())
    }

    fn dual_stack(&mut self) -> Result<()> {
        self.progress.heading("nodes with both families");
        let nodes = self.site.nodes(&KINDS, Families::Both, Masquerade::No)?;
        settle()?;
        let work = "cni_add_dual_stack";
        if self.plan.wants_any(&[work]) {
            let note = "ptp waits for duplicate address detection";
            self.calls(&nodes, work, self.plan.slow(), note)?;
        }
        let veth = BareVeth::new()?;
        self.traffic("tcp_rr/ipv6", Load::TcpRr, &pairs(&nodes, &veth, 1)?)
    }

    fn masquerade(&mut self) -> Result<()> {
        self.progress.heading("nodes that masquerade their pods");
        let nodes = self.site.nodes(&KINDS, Families::V4, Masquerade::Yes)?;
        nodes.iter().try_for_each(Node::verify_masquerade)?;
        settle()?;
        let note = "podwire does not masquerade yet: one nftables rule for its whole node, set beforehand, does; \
                    the reference plugins set theirs for each pod (ipMasq)";
        self.calls(&nodes, "cni_add_masq", self.plan.calls(), note)
    }

    fn full_node(&mut self, work: &str) -> Result<()> {
        let others = usize::from(self.plan.pods) - 1;
        self.progress.heading(&format!("nodes with {others} pods"));
        let mut nodes = self.site.nodes(&KINDS, Families::V4, Masquerade::No)?;
        nodes.iter_mut().try_for_each(|node| node.grow(others))?;
        settle()?;
        self.calls(&nodes, work, self.plan.calls(), "")?;
        drop(nodes);
        settle()
    }

    fn scale(&mut self) -> Result<()> {
        let plan = self.plan;
        let counts = scale::Counts {
            calls: (plan.calls() / 4).max(1),
            traffic: plan.slow(),
            time: plan.time(),
        };
        let wanted = |work: &str| plan.wants(work);
        let progress = &mut self.progress;
        let series = scale::grow(&self.site, &plan.endpoints, wanted, counts, progress)?;
        self.series.extend(series);
        Ok(())
    }

    fn calls(&mut self, nodes: &[Node], add: &str, runs: usize, note: &str) -> Result<()> {
        let separator = if note.is_empty() { "" } else { "; " };
        let note = format!("{note}{separator}{}", self.nothing);
        let series = lifecycle(nodes, add, runs, &note, &mut self.progress)?;
        let is_more = |series: &Series| add == "cni_add" || series.work().starts_with(add);
        self.keep(runs, series.into_iter().filter(is_more).collect());
        Ok(())
    }

    fn traffic(&mut self, work: &str, load: Load, pairs: &[Pair<'_>]) -> Result<()> {
        if !self.plan.wants(work) {
            return Ok(());
        }
        let runs = self.plan.slow();
        let series = rates(work, load, pairs, runs, self.plan.time(), &mut self.progress)?;
        self.keep(runs, vec![series]);
        Ok(())
    }

    /// Keeps those that were asked for.
    fn keep(&mut self, runs: usize, mut series: Vec<Series>) {
        series.retain(|series| self.plan.wants(series.work()));
        self.progress.done(runs, &series.iter().collect::<Vec<_>>());
        self.series.extend(series);
    }
}

/// The pods of all nodes, and a bare veth pair, with addresses of this family.
fn pairs<'a>(nodes: &'a [Node], veth: &'a BareVeth, family: usize) -> Result<Vec<Pair<'a>>> {
    let nodes = nodes.iter().map(|node| Pair::of(node, family));
    nodes.chain([Ok(Pair::bare(veth, family))]).collect()
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        plan: Plan,
    }

    fn plan(arguments: &[&str]) -> Plan {
        Line::parse_from(["compare"].iter().chain(arguments)).plan
    }

    #[test]
    fn a_plan_survives_its_way_to_root() {
        for arguments in [
            &[][..],
            &["tcp_rr"],
            &["--runs", "20", "--endpoints", "1,4", "--leases", "0,7", "--", "-x"],
        ] {
            let plan = plan(arguments);
            let again = plan.arguments();
            let again: Vec<_> = again.iter().map(String::as_str).collect();
            assert_eq!(format!("{plan:?}"), format!("{:?}", self::plan(&again)));
        }
    }

    #[test]
    fn works_are_named_and_filtered() {
        let all = plan(&[]).works().unwrap();
        for work in [
            "cni_add",
            "cni_add/memory",
            "cni_del",
            "cni_check",
            "cni_add/500",
            "cni_add_masq",
            "cni_add_dual_stack",
            "cni_del_concurrent",
            "ipam_add/0",
            "ipam_add/10000",
            "ipam_del/1000",
            "tcp_stream",
            "tcp_rr",
            "tcp_rr/ipv6",
            "tcp_crr",
            "udp_rr",
            "scale/agent_memory/1000",
            "scale/add/100",
            "scale/per_packet/1",
        ] {
            assert!(all.iter().any(|one| one == work), "{work} in {all:?}");
        }
        assert_eq!(plan(&["tcp_rr"]).works().unwrap(), ["tcp_rr", "tcp_rr/ipv6"]);
        let error = plan(&["cni_gc"]).works().unwrap_err().to_string();
        assert!(error.contains("there are: cni_add,"), "{error}");
    }
}
