//! The workspace's own tasks: `cargo xtask <task>`.

#![forbid(unsafe_code)]
#![expect(clippy::print_stdout, reason = "it is a program that talks to people")]
#![expect(unreachable_pub, reason = "in a program, what modules share is private all the same")]

mod bench;
mod cargo;
mod compare;
mod demo;
mod ebpf;
mod fuzz;
mod libtest;
mod machine;
mod needs;
mod plot;
mod privilege;
mod proof;
mod report;
mod soak;
mod test;

use std::{error::Error, path::PathBuf, process::ExitCode};

use clap::{Args, Parser, Subcommand};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// podwire's own tasks
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Show a node at work: agent, pods, traffic, and nothing left afterwards
    Demo(demo::Options),
    /// Run the benchmarks, and report in nanoseconds and in lookups
    Bench(bench::Options),
    /// Do the same work with podwire and with its peers, and compare
    Compare(compare::Options),
    /// Check everything: formatting, lints, docs, tests with and without root, objects, packages
    Test(test::Options),
    /// Build the kernel programs, or check the committed ones
    Ebpf(EbpfOptions),
    /// Build somebody else's plugin from the libraries' packages alone, and run it
    Proof,
    /// Run the fuzz targets
    Fuzz(fuzz::Options),
    /// Run what is too long for every day
    Soak(soak::Options),
    /// The part of the demo that needs root
    #[command(hide = true)]
    DemoRun(demo::RunOptions),
    /// The part of the comparison that needs root
    #[command(hide = true)]
    CompareRun(compare::RunOptions),
    /// The part of the proof that needs root
    #[command(hide = true)]
    ProofRun(proof::RunOptions),
    /// Runs a program as another user
    #[command(hide = true)]
    As(privilege::AsOptions),
    /// Lists what stands in the caller's namespaces
    #[command(hide = true)]
    Inventory,
    /// Makes and drops a lab host
    #[command(hide = true)]
    Probe,
}

#[derive(Debug, Args)]
struct EbpfOptions {
    /// Compare with the committed objects instead of writing them: rebuilt, or the sources' hash only
    #[arg(long, value_name = "WHAT", num_args = 0..=1, require_equals = true, default_missing_value = "object")]
    check: Option<Check>,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Check {
    Object,
    Source,
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().task {
        Task::Demo(options) => demo::build_and_run(&options),
        Task::Bench(options) => bench::run(&options),
        Task::Compare(options) => compare::build_and_run(&options),
        Task::Test(options) => test::run(&options),
        Task::Ebpf(options) => run_ebpf(&options),
        Task::Proof => proof::build_and_run(),
        Task::Fuzz(options) => fuzz::run(&options),
        Task::Soak(options) => soak::run(&options),
        Task::DemoRun(options) => demo::run(&options),
        Task::CompareRun(options) => compare::run(&options),
        Task::ProofRun(options) => proof::run(&options),
        Task::As(options) => privilege::run_as(&options),
        Task::Inventory => inventory(),
        Task::Probe => probe(),
    };
    outcome.unwrap_or_else(|error| {
        report::failure(error.as_ref());
        ExitCode::FAILURE
    })
}

fn run_ebpf(options: &EbpfOptions) -> Result<ExitCode> {
    let mode = match options.check {
        None => ebpf::Mode::Build,
        Some(Check::Object) => ebpf::Mode::Check,
        Some(Check::Source) => ebpf::Mode::CheckSource,
    };
    ebpf::run(&cargo::workspace_root(), mode)?;
    Ok(ExitCode::SUCCESS)
}

fn inventory() -> Result<ExitCode> {
    print!("{}", podwire_lab::Inventory::here()?);
    Ok(ExitCode::SUCCESS)
}

fn probe() -> Result<ExitCode> {
    podwire_lab::Host::new()?.add_pod("probe")?;
    Ok(ExitCode::SUCCESS)
}

/// This program, to be run again with other privileges.
fn own_program() -> Result<PathBuf> {
    Ok(std::env::current_exe()?)
}
