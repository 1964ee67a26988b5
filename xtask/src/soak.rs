//! `cargo xtask soak`: the runs that are too long for every day.

use std::process::ExitCode;

use clap::{Args, builder::PossibleValuesParser};

use crate::{Result, cargo, fuzz, needs, report};

/// Each fuzz target runs so often, and the packet target sees so many packets.
const EXECUTIONS: u64 = 1_000_000;

/// Whether it went well, and to its end.
type Soak = fn() -> Result<bool>;

/// What there is to soak, by name.
const SOAKS: &[(&str, Soak)] = &[("fuzz", fuzz_targets)];

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
