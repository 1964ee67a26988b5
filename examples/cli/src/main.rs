//! The operator's view of a podwire node.

#![forbid(unsafe_code)]

mod agent;
mod bpf;
mod bpf_policy;
mod cleanup;
mod cni;
mod config;
mod failure;
mod flow;
mod ipam;
mod nat;
mod output;
mod policy;
mod program;
mod table;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use podwire_api::{DEFAULT_BPFFS, DEFAULT_RUN_DIR, DEFAULT_STATE_DIR};

use crate::cleanup::Consent;
use crate::failure::Failure;
use crate::output::{Format, Page};

/// Looks at a podwire node, and takes it away.
#[derive(Debug, Parser)]
#[command(name = "podwire", version, max_term_width = 100)]
struct Cli {
    #[command(flatten)]
    places: Places,
    /// Tables for people, or JSON.
    #[arg(short, long, value_enum, global = true, default_value_t = Format::Table)]
    output: Format,
    #[command(subcommand)]
    command: Command,
}

/// Where the node's agent keeps things; the same options as podwired's.
#[derive(Debug, Args)]
struct Places {
    /// Folder of the agent's socket.
    #[arg(long, value_name = "DIR", global = true, default_value = DEFAULT_RUN_DIR)]
    run_dir: PathBuf,
    /// Folder of the agent's database; only `cleanup` looks at it.
    #[arg(long, value_name = "DIR", global = true, default_value = DEFAULT_STATE_DIR)]
    state_dir: PathBuf,
    /// Folder of pinned maps and links.
    #[arg(long, value_name = "DIR", global = true, default_value = DEFAULT_BPFFS)]
    bpffs: PathBuf,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// How the node is: endpoints, address pools, what blocks traffic, what was repaired.
    Status,
    /// The endpoints, as the agent knows them.
    #[command(subcommand)]
    Endpoint(EndpointCommand),
    /// What endpoints may send and receive.
    #[command(subcommand)]
    Policy(policy::Command),
    /// Who is behind addresses that no endpoint of the node has.
    #[command(subcommand)]
    Ipcache(policy::IpcacheCommand),
    /// The addresses: pools, leases, reservations.
    #[command(subcommand)]
    Ipam(ipam::Command),
    /// The agent's metrics, as a Prometheus server reads them.
    Metrics,
    /// What the agent runs with, and settings that can be changed meanwhile.
    Config {
        #[command(subcommand)]
        command: Option<config::Command>,
    },
    /// The datapath's maps and programs, as the kernel has them; works without an agent.
    #[command(subcommand)]
    Bpf(BpfCommand),
    /// Calls the plugins of a network as a container runtime does; needs neither podwire nor agent.
    Cni(Box<cni::Options>),
    /// Removes everything of podwire from this node: links, routes, pins, records, notes.
    ///
    /// Pods that still run lose their network. The agent must be stopped first.
    Cleanup {
        /// Do not ask.
        #[arg(long)]
        yes: bool,
    },
}

#[derive(Debug, Subcommand)]
enum EndpointCommand {
    /// All of them.
    #[command(visible_alias = "ls")]
    List,
    /// One of them.
    Show {
        /// The container's id or the beginning of it, then `/` and the interface if it has several.
        #[arg(value_name = "CONTAINER[/IFNAME]")]
        endpoint: String,
    },
    /// Says who it is to others: the number that policies know it by.
    Identity {
        /// The container's id or the beginning of it, then `/` and the interface if it has several.
        #[arg(value_name = "CONTAINER[/IFNAME]")]
        endpoint: String,
        /// 2 is whoever is not known, 3 a pod that nobody gave an identity; 1, the node's own, is not given.
        identity: u32,
    },
}

#[derive(Debug, Subcommand)]
enum BpfCommand {
    /// Endpoint slots.
    #[command(subcommand)]
    Endpoint(ListCommand),
    /// Addresses and who has them.
    #[command(subcommand)]
    Ipcache(bpf_policy::IpcacheCommand),
    /// What endpoints may send and receive.
    #[command(subcommand)]
    Policy(bpf_policy::Command),
    /// Conversations that the datapath knows.
    #[command(subcommand)]
    Flow(flow::Command),
    /// Conversations that leave the node under its address.
    #[command(subcommand)]
    Nat(nat::Command),
    /// What became of packets, and why.
    #[command(subcommand)]
    Metrics(ListCommand),
    /// The programs on this node's links.
    #[command(subcommand)]
    Prog(ListCommand),
}

#[derive(Debug, Subcommand)]
enum ListCommand {
    /// All of them.
    #[command(visible_alias = "ls")]
    List,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let printed = run(&cli).and_then(|page| {
        page.print(cli.output)?;
        Ok(page.verdict())
    });
    match printed {
        Ok(verdict) => verdict,
        // Whoever reads us (head, say) has seen enough.
        Err(failure) if failure.is_broken_pipe() => ExitCode::SUCCESS,
        Err(failure) => {
            failure.report();
            ExitCode::FAILURE
        }
    }
}

fn run(cli: &Cli) -> Result<Page, Failure> {
    let places = &cli.places;
    match &cli.command {
        Command::Status => agent::status(places),
        Command::Endpoint(EndpointCommand::List) => agent::endpoints(places),
        Command::Endpoint(EndpointCommand::Show { endpoint }) => agent::endpoint(places, endpoint),
        Command::Endpoint(EndpointCommand::Identity { endpoint, identity }) => {
            policy::identify(places, endpoint, *identity)
        }
        Command::Policy(command) => policy::run(places, command),
        Command::Ipcache(command) => policy::ipcache(places, command),
        Command::Ipam(command) => ipam::run(places, command),
        Command::Metrics => agent::metrics(places),
        Command::Config { command } => config::run(places, command.as_ref()),
        Command::Bpf(command) => bpf::run(places, command),
        Command::Cni(options) => cni::run(options),
        Command::Cleanup { yes } => {
            let consent = if *yes { Consent::Given } else { Consent::Ask };
            cleanup::run(places, consent)
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_options_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn options_may_follow_the_command() {
        let cli = Cli::parse_from(["podwire", "endpoint", "list", "-o", "json", "--run-dir", "/r"]);
        assert_eq!((cli.output, cli.places.run_dir), (Format::Json, "/r".into()));
    }
}
