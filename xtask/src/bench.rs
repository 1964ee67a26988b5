//! `cargo xtask bench`: the benchmarks, and a report in nanoseconds and in H.

mod collect;
mod report;

use std::{
    collections::BTreeMap,
    ffi::OsString,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{ChildStderr, ChildStdout, Command, ExitCode, Stdio},
    thread,
    time::{Duration, Instant, SystemTime},
};

use anstream::{eprintln, println};
use clap::Args;
use serde_json::Value;

use self::{
    collect::Estimate,
    report::{Report, figure},
};
use crate::{
    Result,
    cargo::{self, Binary},
    machine::Machine,
    privilege::{Privilege, Run},
    report::{BOLD, DIM, bad, good, heading, seconds},
};

/// The benchmark whose median is the unit H; it runs first, whatever the filter.
const UNIT: &str = "unit/h";
/// The file it is in.
const UNIT_BINARY: &str = "unit";

/// One file of benchmarks that runs longer hangs.
const LIMIT: Duration = Duration::from_secs(3600);

#[derive(Debug, Args)]
pub struct Options {
    /// Run only benchmarks whose name this regular expression finds, such as `lookup/lpm4`
    #[arg(value_name = "FILTER")]
    filter: Option<String>,
    /// Stop each benchmark as soon as its figure is roughly known
    #[arg(long)]
    quick: bool,
    /// Folder of the reports; target/bench if not given
    #[arg(long, value_name = "DIR")]
    output: Option<PathBuf>,
}

/// Builds as the caller, measures as root, reports as the caller.
pub fn run(options: &Options) -> Result<ExitCode> {
    let privilege = Privilege::find();
    if privilege == Privilege::None {
        return Err("needs root: run as root, or with a sudo that asks for no password".into());
    }
    heading("build the benchmarks");
    let binaries = cargo::build_benches(&[])?;
    let target = cargo::Metadata::read()?.target_directory;
    let folder = options.output.clone().unwrap_or_else(|| target.join("bench"));
    let (machine, start) = (Machine::here(), Instant::now());
    let mut session = Session {
        privilege,
        home: target.join("criterion"),
        // File systems keep time coarser than the clock.
        since: SystemTime::now() - Duration::from_millis(20),
        seen: BTreeMap::new(),
        sizes: serde_json::Map::new(),
    };
    let failed = session.run_all(options, &binaries)?;
    let results: Vec<_> = session.seen.into_values().collect();
    let asked_for = |name: &str| options.filter.as_deref().is_none_or(|text| name.contains(text));
    if failed.is_empty() && !asked_for(UNIT) && results.iter().all(|one| one.name == UNIT) {
        let filter = options.filter.as_deref().unwrap_or_default();
        return Err(format!("no benchmark has a name like {filter:?}").into());
    }
    let report = Report { machine, results, maps: session.sizes, failed };
    report.print();
    report.write(&folder)?;
    let (count, took) = (report.results.len(), seconds(start.elapsed()));
    let files = format!("{}/report.md, report.json, *.svg", folder.display());
    if report.failed.is_empty() {
        good(&format!("{count} benchmarks in {took}; {files}"));
        return Ok(ExitCode::SUCCESS);
    }
    report.failed.iter().for_each(|name| bad(&format!("{name} gave no figure")));
    bad(&format!("incomplete: {count} benchmarks in {took}; {files}"));
    Ok(ExitCode::FAILURE)
}

/// Runs each benchmark once, so that one whose work goes wrong is noticed. Times nothing.
pub fn smoke(privilege: Privilege, binary: &Binary) -> Result<()> {
    let output = command(privilege, binary, Path::new("/nonexistent"))?.arg("--test").output()?;
    if output.status.success() {
        return Ok(());
    }
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    let last: Vec<_> = said.lines().rev().take(12).collect();
    let last: Vec<_> = last.into_iter().rev().collect();
    Err(format!("{} ended with {}:\n{}", binary.name, output.status, last.join("\n")).into())
}

fn command(privilege: Privilege, binary: &Binary, home: &Path) -> Result<Command> {
    let variables = [("CRITERION_HOME", OsString::from(home)), ("RUST_BACKTRACE", "0".into())];
    let run = Run { folder: &binary.folder, reachable: &[], variables: &variables, limit: LIMIT };
    let mut command = privilege.command_as(0, &binary.path, &run)?;
    command.args(["--bench", "--noplot", "--color", "never"]);
    Ok(command)
}

struct Session {
    privilege: Privilege,
    /// Where criterion keeps its figures, this run's and earlier ones.
    home: PathBuf,
    since: SystemTime,
    seen: BTreeMap<String, Estimate>,
    sizes: serde_json::Map<String, Value>,
}

impl Session {
    /// Runs every file of benchmarks; gives the names of benchmarks that failed.
    fn run_all(&mut self, options: &Options, binaries: &[Binary]) -> Result<Vec<String>> {
        let unit_first = |binary: &&Binary| binary.name != UNIT_BINARY;
        let mut binaries: Vec<_> = binaries.iter().collect();
        binaries.sort_by_key(unit_first);
        let mut failed = Vec::new();
        for binary in binaries {
            heading(&format!("measure: {}", binary.name));
            // The unit is always measured, and always well.
            let is_unit = binary.name == UNIT_BINARY;
            let filter = options.filter.as_deref().filter(|_| !is_unit);
            failed.extend(self.measure(binary, filter, options.quick && !is_unit)?);
        }
        self.give_back()?;
        Ok(failed)
    }

    /// Runs one file of benchmarks; gives the name of the benchmark that it failed at.
    fn measure(
        &mut self,
        binary: &Binary,
        filter: Option<&str>,
        quick: bool,
    ) -> Result<Option<String>> {
        let mut command = command(self.privilege, binary, &self.home)?;
        if quick {
            command.arg("--quick");
        }
        // A filter that begins with a dash is one all the same.
        command.args(filter.iter().flat_map(|filter| ["--", filter]));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn()?;
        let progress = child.stderr.take().map(|stderr| thread::spawn(|| last_begun(stderr)));
        child.stdout.take().map(|stdout| self.follow(stdout)).transpose()?;
        let status = child.wait()?;
        let last = progress.and_then(|thread| thread.join().ok()).flatten();
        self.collect()?;
        if status.success() {
            return Ok(None);
        }
        let name = last.unwrap_or_else(|| binary.name.clone());
        bad(&format!("{name}: {} ended with {status}", binary.name));
        Ok(Some(name))
    }

    /// Shows each figure as it comes.
    fn follow(&mut self, stdout: ChildStdout) -> Result<()> {
        for line in BufReader::new(stdout).lines() {
            let line = line?;
            if let Some(sizes) = line.strip_prefix("sizes ") {
                self.sizes.extend(serde_json::from_str::<serde_json::Map<_, _>>(sizes)?);
            } else if line.contains("time:   [") {
                self.collect()?;
            }
        }
        Ok(())
    }

    /// Takes in what criterion has written since the last time, and shows it.
    fn collect(&mut self) -> Result<()> {
        for estimate in collect::since(&self.home, self.since)? {
            if self.seen.contains_key(&estimate.name) {
                continue;
            }
            let h = self.seen.get(UNIT).map(|unit| estimate.ns / unit.ns);
            let in_h = h.map_or_else(String::new, |h| format!("{:>9} H", figure(h)));
            println!(
                "      {BOLD}{:<44}{BOLD:#} {:>10} ns {in_h}  {DIM}{} to {}{DIM:#}",
                estimate.name,
                figure(estimate.ns),
                figure(estimate.lower),
                figure(estimate.upper)
            );
            self.seen.insert(estimate.name.clone(), estimate);
        }
        Ok(())
    }

    /// What root has written becomes the caller's.
    fn give_back(&self) -> Result<()> {
        if self.privilege != Privilege::Sudo {
            return Ok(());
        }
        let owner = format!("{}:{}", nix::unistd::geteuid(), nix::unistd::getegid());
        let mut command = self.privilege.command(Path::new("/usr/bin/env"));
        let status = command.args(["chown", "-R", &owner]).arg(&self.home).status()?;
        if status.success() { Ok(()) } else { Err(format!("chown ended with {status}").into()) }
    }
}

/// Passes on what a file of benchmarks complains of; gives the name of the benchmark that it began last.
fn last_begun(stderr: ChildStderr) -> Option<String> {
    let mut last = None;
    for line in BufReader::new(stderr).lines().map_while(std::result::Result::ok) {
        match line.strip_prefix("Benchmarking ") {
            Some(rest) => last = rest.split(": ").next().map(str::to_owned),
            None => eprintln!("{line}"),
        }
    }
    last
}
