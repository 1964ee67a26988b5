//! `cargo xtask fuzz`: builds the fuzz targets and runs them, one after another.

use std::{
    collections::BTreeSet,
    fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
    time::{Duration, Instant},
};

use clap::{Args, ValueEnum};
use serde::Serialize;

use crate::{Result, cargo, machine::Machine, needs, privilege::Privilege, report};

/// What libFuzzer is built with.
pub const CXX: &str = "g++";

/// Targets that load programs into the kernel: they run as root, in a lab host of their own.
const AS_ROOT: [&str; 1] = ["packet"];

#[derive(Debug, Args)]
pub struct Options {
    /// Run only this target
    target: Option<String>,
    /// How long each target runs
    #[arg(long, default_value_t = 60, conflicts_with = "runs")]
    seconds: u64,
    /// How often each target runs, instead of how long
    #[arg(long, value_name = "N")]
    runs: Option<u64>,
    /// What watches the memory; `address` needs the nightly toolchain
    #[arg(long, value_enum, default_value_t = Sanitizer::None)]
    sanitizer: Sanitizer,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Sanitizer {
    /// Nothing: the parsers forbid unsafe code; assertions and overflow checks are on.
    None,
    /// `AddressSanitizer`.
    Address,
}

/// How long a target runs.
#[derive(Clone, Copy, Debug)]
pub enum Limit {
    /// So many seconds.
    Seconds(u64),
    /// So many executions.
    Runs(u64),
}

/// What came of one target.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Outcome {
    /// Its name.
    pub target: String,
    /// How often it ran.
    pub executions: u64,
    /// For how long.
    pub seconds: f64,
    /// Edges of the code that some input reached.
    pub coverage: u64,
    /// Inputs in its corpus that reach something of their own.
    pub corpus: u64,
    /// Packets that it sent through the programs, rounded down; only of the target that does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub packets: Option<u64>,
    /// Inputs that it failed on.
    pub findings: Vec<PathBuf>,
}

/// Runs the targets that were asked for; fails if one finds something.
pub fn run(options: &Options) -> Result<ExitCode> {
    let targets = targets_of(options.target.as_deref())?;
    needs::require(&[CXX])?;
    let folder = build(options.sanitizer)?;
    let limit = options.runs.map_or(Limit::Seconds(options.seconds), Limit::Runs);
    let outcomes = run_all(&targets, &folder, limit)?;
    write_report(&cargo::workspace_root().join("target/fuzz/report.json"), &outcomes)?;
    Ok(table(&outcomes))
}

/// All targets, or the one that was named.
pub fn targets_of(wanted: Option<&str>) -> Result<Vec<String>> {
    let entries = fs::read_dir(cargo::workspace_root().join("fuzz/fuzz_targets"))?;
    let mut all = BTreeSet::new();
    for entry in entries {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "rs") {
            all.extend(path.file_stem().map(|name| name.to_string_lossy().into_owned()));
        }
    }
    match wanted {
        None => Ok(all.into_iter().collect()),
        Some(name) if all.contains(name) => Ok(vec![name.to_owned()]),
        Some(name) => {
            let all: Vec<_> = all.into_iter().collect();
            Err(format!("there is no fuzz target {name}; there are {}", all.join(", ")).into())
        }
    }
}

/// Builds all targets, and gives the folder of the programs.
pub fn build(sanitizer: Sanitizer) -> Result<PathBuf> {
    report::heading("build the fuzz targets");
    let mut command = match sanitizer {
        Sanitizer::None => cargo::cargo(),
        Sanitizer::Address if !nightly().arg("--version").output()?.status.success() => {
            return Err("needs the nightly toolchain: rustup toolchain install nightly; or run \
                        with --sanitizer none"
                .into());
        }
        Sanitizer::Address => nightly(),
    };
    let mut asked = cargo::cargo();
    let asked = asked.args(["fuzz", "--version"]).stdout(Stdio::null()).stderr(Stdio::null());
    if !asked.status().is_ok_and(|status| status.success()) {
        return Err("needs cargo-fuzz: cargo install cargo-fuzz --version 0.13.2 --locked".into());
    }
    let (name, place) = match sanitizer {
        Sanitizer::None => ("none", "target/fuzz/build"),
        Sanitizer::Address => ("address", "target/fuzz/build-address"),
    };
    report::note(match sanitizer {
        Sanitizer::None => {
            "toolchain of the workspace, no sanitizer, assertions and overflow checks"
        }
        Sanitizer::Address => "nightly toolchain, AddressSanitizer",
    });
    let place = cargo::workspace_root().join(place);
    command.args(["fuzz", "build", "--debug-assertions", "--release", "--sanitizer", name]);
    command.arg("--target-dir").arg(&place);
    cargo::finish(command)?;
    // cargo-fuzz builds for a named platform, always.
    for entry in fs::read_dir(&place)? {
        let programs = entry?.path().join("release");
        if programs.join("cni_config").is_file() {
            report::good(&programs.display().to_string());
            return Ok(programs);
        }
    }
    Err(format!("cargo fuzz built no programs in {}", place.display()).into())
}

/// Cargo of the nightly toolchain, whichever runs this program.
fn nightly() -> Command {
    let mut command = Command::new("cargo");
    command.arg("+nightly").current_dir(cargo::workspace_root());
    for name in ["CARGO", "RUSTC", "RUSTUP_TOOLCHAIN"] {
        command.env_remove(name);
    }
    command
}

/// Runs each target to its limit, whatever the others find.
pub fn run_all(targets: &[String], programs: &Path, limit: Limit) -> Result<Vec<Outcome>> {
    targets.iter().map(|target| run_one(target, programs, limit)).collect()
}

/// Whether a target runs as root.
pub fn needs_root(target: &str) -> bool {
    AS_ROOT.contains(&target)
}

/// Runs one target. What it finds to be new goes to a corpus below `target`, never to the committed
/// one.
pub fn run_one(target: &str, programs: &Path, limit: Limit) -> Result<Outcome> {
    let root = cargo::workspace_root();
    let corpus = root.join("target/fuzz/corpus").join(target);
    let artifacts = root.join("target/fuzz/artifacts").join(target);
    for folder in [&corpus, &artifacts] {
        fs::create_dir_all(folder)?;
    }
    let before = files(&artifacts)?;
    report::heading(target);
    let privilege = Privilege::find();
    let program = programs.join(target);
    let mut command = if needs_root(target) {
        if privilege == Privilege::None {
            return Err(format!("{target} needs root, or a sudo that asks for no password").into());
        }
        privilege.command(&program)
    } else {
        Command::new(&program)
    };
    command.arg(&corpus);
    let seeds = root.join("fuzz/corpus").join(target);
    if seeds.is_dir() {
        command.arg(seeds);
    }
    command.arg(format!("-artifact_prefix={}/", artifacts.display()));
    let dictionary = root.join("fuzz/dictionaries").join(format!("{target}.dict"));
    if dictionary.is_file() {
        command.arg(format!("-dict={}", dictionary.display()));
    }
    command.arg(match limit {
        Limit::Seconds(seconds) => format!("-max_total_time={seconds}"),
        Limit::Runs(runs) => format!("-runs={runs}"),
    });
    command.args(["-print_final_stats=1", "-timeout=10", "-rss_limit_mb=2048"]);
    command.current_dir(&root).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());

    let start = Instant::now();
    let mut child = command.spawn().map_err(|e| format!("{}: {e}", program.display()))?;
    let mut outcome = Outcome { target: target.to_owned(), ..Outcome::default() };
    let mut text = Vec::new();
    let mut told = Instant::now();
    for line in child.stderr.take().map(BufReader::new).into_iter().flat_map(|e| e.split(b'\n')) {
        let line = String::from_utf8_lossy(&line?).into_owned();
        if outcome.read(&line) {
            if told.elapsed() >= Duration::from_secs(10) {
                told = Instant::now();
                report::note(&outcome.line(start.elapsed()));
            }
        } else {
            text.push(line);
        }
    }
    let status = child.wait()?;
    outcome.seconds = start.elapsed().as_secs_f64();
    outcome.findings = files(&artifacts)?.difference(&before).cloned().collect();
    if status.success() && outcome.findings.is_empty() {
        report::good(&outcome.line(start.elapsed()));
        return Ok(outcome);
    }
    report::bad(&outcome.line(start.elapsed()));
    text.iter().for_each(|line| report::note(line));
    if outcome.findings.is_empty() {
        return Err(format!("{target} ended with {status} and left no input").into());
    }
    for finding in &outcome.findings {
        report::note(&format!("reproduce: {} {}", program.display(), finding.display()));
    }
    Ok(outcome)
}

impl Outcome {
    /// Takes in a line of libFuzzer's, and tells whether it is one of progress or statistics.
    fn read(&mut self, line: &str) -> bool {
        if let Some(stat) = line.strip_prefix("stat::") {
            if let Some(number) = stat.strip_prefix("number_of_executed_units:") {
                self.executions = number.trim().parse().unwrap_or(self.executions);
            }
            return true;
        }
        if let Some(packets) = line.strip_prefix("packets: ") {
            self.packets = packets.trim().parse().ok().or(self.packets);
            return true;
        }
        let Some((number, rest)) = line.strip_prefix('#').and_then(|l| l.split_once('\t')) else {
            return false;
        };
        self.executions = number.trim().parse().unwrap_or(self.executions);
        let words: Vec<_> = rest.split_ascii_whitespace().collect();
        for pair in words.windows(2) {
            match pair[0] {
                "cov:" => self.coverage = pair[1].parse().unwrap_or(self.coverage),
                "corp:" => {
                    let count = pair[1].split('/').next().and_then(|n| n.parse().ok());
                    self.corpus = count.unwrap_or(self.corpus);
                }
                _ => {}
            }
        }
        true
    }

    /// Executions in a second.
    #[expect(clippy::cast_precision_loss, reason = "for people")]
    fn rate(&self) -> f64 {
        if self.seconds > 0.0 { self.executions as f64 / self.seconds } else { 0.0 }
    }

    fn line(&self, elapsed: Duration) -> String {
        let so_far = Self { seconds: elapsed.as_secs_f64(), ..self.clone() };
        let Self { executions, coverage, corpus, .. } = self;
        let rate = so_far.rate();
        let packets = self.packets.map_or_else(String::new, |n| format!(", {n} packets"));
        format!("{executions} executions, {rate:.0}/s, {coverage} edges, {corpus} inputs{packets}")
    }
}

fn files(folder: &Path) -> Result<BTreeSet<PathBuf>> {
    fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect()
}

/// Writes the report.
pub fn write_report(path: &Path, outcomes: &[Outcome]) -> Result<()> {
    let report = serde_json::json!({"machine": Machine::here(), "targets": outcomes});
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    fs::write(path, serde_json::to_vec_pretty(&report)?)?;
    report::note(&format!("report: {}", path.display()));
    Ok(())
}

/// Prints what came of the targets; failure if one found something.
pub fn table(outcomes: &[Outcome]) -> ExitCode {
    Machine::here().lines().iter().for_each(|line| report::note(line));
    println!(
        "{:<18} {:>12} {:>10} {:>8} {:>8} {:>9}",
        "target", "executions", "exec/s", "edges", "corpus", "findings"
    );
    for outcome in outcomes {
        let Outcome { target, executions, coverage, corpus, findings, .. } = outcome;
        let (rate, findings) = (outcome.rate(), findings.len());
        let packets = outcome.packets.map_or_else(String::new, |n| format!("  {n} packets"));
        println!(
            "{target:<18} {executions:>12} {rate:>10.0} {coverage:>8} {corpus:>8} {findings:>9}{packets}"
        );
    }
    let clean = outcomes.iter().all(|outcome| outcome.findings.is_empty());
    if clean { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libfuzzers_lines_are_understood() {
        let mut outcome = Outcome::default();
        assert!(
            outcome.read(
                "#4096\tpulse  cov: 812 ft: 2210 corp: 97/5120b lim: 43 exec/s: 2048 rss: 60Mb"
            )
        );
        assert_eq!((outcome.executions, outcome.coverage, outcome.corpus), (4096, 812, 97));
        assert!(outcome.read("stat::number_of_executed_units: 5000"));
        assert_eq!(outcome.executions, 5000);
        assert!(outcome.read("packets: 12000"));
        assert_eq!(outcome.packets, Some(12000));
        assert!(!outcome.read("INFO: Seed: 1"));
        assert!(!outcome.read("==1== ERROR: libFuzzer: deadly signal"));
    }
}
