//! `cargo xtask soak`: the runs that are too long for every day.

use std::{
    process::{Command, ExitCode},
    time::{Duration, SystemTime},
};

use clap::{Args, builder::PossibleValuesParser};
use podwire_lab::BIN_DIR_VARIABLE;

use crate::{
    Result, cargo, fuzz,
    libtest::{self, Outcome},
    needs,
    privilege::{Privilege, Run},
    report,
};

/// Each fuzz target runs so often, and the packet target sees so many packets.
const EXECUTIONS: u64 = 1_000_000;

/// The targets of podwire-cni, which reads what any runtime and any plugin writes, run for so long each.
const CNI: &str = "cni_";
const CNI_SECONDS: u64 = 600;

/// How often a thousand calls are made, and the most by which the last hundred of them may take
/// longer than the first hundred: the median of so many factors.
const ROUNDS: usize = 5;
const MOST_FACTOR: f64 = 1.3;

/// Precedes the number in what the test `many` prints.
const FACTOR: &str = ", factor ";

/// The durable allocator does so many operations against its model, and is killed so often.
const IPAM: [(&str, &str, &str); 2] = [
    ("podwire-ipam::durable_model", "PODWIRE_MODEL_OPERATIONS", "1000000"),
    ("podwire-ipam::durable_crash", "PODWIRE_CRASH_ROUNDS", "500"),
];

/// Has the test of floods use the shipped sizes.
const FLOOD: (&str, &str) = ("PODWIRE_FLOOD", "1");

/// So many packets go through the programs and the model of them.
const PACKETS: &str = "10000000";

/// The test that does so every day, with fewer.
const COMPARISON: &str = "podwire-datapath::differential";
const COMPARISON_TEST: &str = "programs_and_model_agree";

/// Whether it went well, and to its end.
type Soak = fn() -> Result<bool>;

/// What there is to soak, by name.
const SOAKS: &[(&str, Soak)] = &[
    ("fuzz", fuzz_targets),
    ("fuzz-cni", cni_targets),
    ("many", many_calls),
    ("ipam", ipam),
    ("flood", flood),
    ("packet", packets),
];

#[derive(Debug, Args)]
pub struct Options {
    /// Run only this one
    #[arg(value_parser = PossibleValuesParser::new(SOAKS.iter().map(|(name, _)| *name)))]
    what: Option<String>,
}

/// Runs them, one after another; fails if one falls short or finds something.
pub fn run(options: &Options) -> Result<ExitCode> {
    let mut good = true;
    for (name, soak) in SOAKS {
        if options.what.as_ref().is_none_or(|what| what == name) {
            good &= soak()?;
        }
    }
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn fuzz_targets() -> Result<bool> {
    let targets = fuzz::targets_of(None)?;
    needs::require(&[fuzz::CXX])?;
    let programs = fuzz::build(fuzz::Sanitizer::None)?;
    let outcomes = fuzz::run_all(&targets, &programs, fuzz::Limit::Runs(EXECUTIONS))?;
    fuzz::write_report(&cargo::workspace_root().join("target/soak/report.json"), &outcomes)?;
    let clean = fuzz::table(&outcomes) == ExitCode::SUCCESS;
    let mut enough = true;
    for fuzz::Outcome { target, executions, packets, .. } in &outcomes {
        // What counts of packets are packets; an input may hold none.
        let (count, what) = packets.map_or((*executions, "executions"), |n| (n, "packets"));
        if count < EXECUTIONS {
            enough = false;
            report::bad(&format!("{target}: {count} {what}, {EXECUTIONS} are wanted"));
        }
    }
    Ok(clean && enough)
}

fn cni_targets() -> Result<bool> {
    let mut targets = fuzz::targets_of(None)?;
    targets.retain(|target| target.starts_with(CNI));
    needs::require(&[fuzz::CXX])?;
    let programs = fuzz::build(fuzz::Sanitizer::None)?;
    let outcomes = fuzz::run_all(&targets, &programs, fuzz::Limit::Seconds(CNI_SECONDS))?;
    fuzz::write_report(&cargo::workspace_root().join("target/soak/cni.json"), &outcomes)?;
    Ok(fuzz::table(&outcomes) == ExitCode::SUCCESS)
}

/// A thousand ADDs and DELs, 64 at a time, by the test that does so every day; here its times count.
fn many_calls() -> Result<bool> {
    let metadata = cargo::Metadata::read()?;
    let programs = cargo::build_programs()?;
    let tests = cargo::build_tests(&metadata, &["podwire-agent".to_owned()])?;
    let test = tests.iter().find(|test| test.name == "podwire-agent::many");
    let test = test.ok_or("podwire-agent has no test `many`")?;
    let run = Run {
        folder: &test.folder,
        reachable: &[],
        variables: &[(BIN_DIR_VARIABLE, programs.into())],
        limit: Duration::from_secs(600),
    };
    let mut rounds = Vec::new();
    for round in 1..=ROUNDS {
        report::heading(&format!("a thousand calls, round {round} of {ROUNDS}"));
        let mut command = Privilege::find().command_as(0, &test.path, &run)?;
        command.args(["--include-ignored", "--nocapture"]);
        let Outcome { passed, failed, output, .. } = libtest::run(command)?;
        if failed > 0 || passed == 0 {
            print!("{output}");
            return Ok(false);
        }
        output.lines().filter(|line| line.contains(FACTOR)).for_each(report::note);
        rounds.push(output);
    }
    let mut good = true;
    for verb in ["ADD", "DEL"] {
        let mut factors: Vec<_> =
            rounds.iter().filter_map(|output| factor_of(output, verb)).collect();
        if factors.len() != ROUNDS {
            return Err(format!("the test did not tell the factor of {verb} each time").into());
        }
        factors.sort_by(f64::total_cmp);
        let factor = factors[ROUNDS / 2];
        let what = format!(
            "{verb}: the last hundred take {factor:.2} x the first hundred, at most {MOST_FACTOR} is wanted"
        );
        if factor <= MOST_FACTOR {
            report::good(&what);
        } else {
            report::bad(&what);
            good = false;
        }
    }
    Ok(good)
}

/// The flood of new flows that runs every day over small tables, over those that are shipped: ten times as
/// many flows as there is room for, and a million denied SYNs.
fn flood() -> Result<bool> {
    let metadata = cargo::Metadata::read()?;
    let programs = cargo::build_programs()?;
    let tests = cargo::build_tests(&metadata, &["podwire-agent".to_owned()])?;
    let test = tests.iter().find(|test| test.name == "podwire-agent::flows");
    let test = test.ok_or("podwire-agent has no test `flows`")?;
    let run = Run {
        folder: &test.folder,
        reachable: &[],
        variables: &[(BIN_DIR_VARIABLE, programs.into()), (FLOOD.0, FLOOD.1.into())],
        limit: Duration::from_secs(1800),
    };
    report::heading("a flood of new flows over tables of the shipped size");
    let mut command = Privilege::find().command_as(0, &test.path, &run)?;
    command.args(["--include-ignored", "--nocapture", "a_flood_breaks_no_connection"]);
    let Outcome { passed, failed, output, .. } = libtest::run(command)?;
    print!("{output}");
    let good = failed == 0 && passed == 1;
    let what = "no connection broke";
    if good {
        report::good(what)
    } else {
        report::bad("the flood broke something")
    }
    Ok(good)
}

/// The tests of the durable allocator that do every day the same, only less of it.
fn ipam() -> Result<bool> {
    let metadata = cargo::Metadata::read()?;
    let tests = cargo::build_tests(&metadata, &["podwire-ipam".to_owned()])?;
    let mut good = true;
    for (name, variable, number) in IPAM {
        report::heading(&format!("{name}, {variable}={number}"));
        let test = tests.iter().find(|test| test.name == name);
        let test = test.ok_or_else(|| format!("there is no test {name}"))?;
        let mut command = Command::new(&test.path);
        command.arg("--nocapture").current_dir(&test.folder).env(variable, number);
        let passed = command.status()?.success();
        good &= passed;
        if passed {
            report::good(name);
        } else {
            report::bad(name);
        }
    }
    Ok(good)
}

/// Packets of conversations, and changes of every table, through the programs and beside their model. Each run goes
/// another way, and says which.
fn packets() -> Result<bool> {
    let metadata = cargo::Metadata::read()?;
    let tests = cargo::build_tests(&metadata, &["podwire-datapath".to_owned()])?;
    let test = tests.iter().find(|test| test.name == COMPARISON);
    let test = test.ok_or_else(|| format!("there is no test {COMPARISON}"))?;
    let seed = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_secs().to_string();
    let run = Run {
        folder: &test.folder,
        reachable: &[],
        variables: &[
            ("PODWIRE_PACKETS", PACKETS.into()),
            ("PODWIRE_PACKETS_SEED", seed.clone().into()),
        ],
        limit: Duration::from_secs(4 * 3600),
    };
    report::heading(&format!("{COMPARISON}, {PACKETS} packets, PODWIRE_PACKETS_SEED={seed}"));
    let mut command = Privilege::find().command_as(0, &test.path, &run)?;
    command.args(["--include-ignored", "--nocapture", "--exact", COMPARISON_TEST]);
    let passed = command.status()?.success();
    if passed {
        report::good(COMPARISON);
    } else {
        report::bad(COMPARISON);
    }
    Ok(passed)
}

/// What the test `many` says of a verb, as in `ADD: .., factor 1.02`.
fn factor_of(output: &str, verb: &str) -> Option<f64> {
    let line = output.lines().find(|line| line.contains(&format!("{verb}: ")))?;
    line.split_once(FACTOR)?.1.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_factor_is_found_in_what_the_test_prints() {
        let output = "running 1 test\ntest a ... ADD: median of .. 302.0 ms, factor 0.89\nDEL: x, factor 1.14\nok";
        assert_eq!(factor_of(output, "ADD"), Some(0.89));
        assert_eq!(factor_of(output, "DEL"), Some(1.14));
        assert_eq!(factor_of(output, "CHECK"), None);
    }
}
