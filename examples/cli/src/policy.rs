//! What the agent is told of policies and identities.

use std::fs;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use clap::Subcommand;
use ipnetwork::IpNetwork;
use podwire_api::{Client, Endpoint, Policy, PolicyDirection, PrefixIdentity, Removed};
use serde::de::DeserializeOwned;
use serde_json::json;

use crate::Places;
use crate::agent::{client, pick, push};
use crate::failure::Failure;
use crate::output::Page;
use crate::table::{Cell, HEADING, Table};

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Says what an endpoint may send and receive, in the place of what it might before.
    Set {
        /// The container's id or the beginning of it, then `/` and the interface if it has several.
        #[arg(value_name = "CONTAINER[/IFNAME]")]
        endpoint: String,
        /// The rules as JSON; `-` reads them from the standard input.
        #[arg(long, short, value_name = "FILE", default_value = "-")]
        file: PathBuf,
    },
    /// What it may send and receive.
    Show {
        /// The container's id or the beginning of it, then `/` and the interface if it has several.
        #[arg(value_name = "CONTAINER[/IFNAME]")]
        endpoint: String,
    },
    /// Lets it send and receive everything.
    Delete {
        /// The container's id or the beginning of it, then `/` and the interface if it has several.
        #[arg(value_name = "CONTAINER[/IFNAME]")]
        endpoint: String,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum IpcacheCommand {
    /// Who was said to be behind which prefix.
    #[command(visible_alias = "ls")]
    List,
    /// Says who is behind a prefix, or behind many; others stay.
    Set {
        /// An address or a prefix.
        #[arg(required_unless_present = "file", requires = "identity")]
        prefix: Option<IpNetwork>,
        /// Its identity; not 1, since podwired finds the node's own addresses by itself.
        identity: Option<u32>,
        /// A JSON list of `{"prefix": .., "identity": ..}`; `-` reads it from the standard input.
        #[arg(long, short, value_name = "FILE", conflicts_with = "prefix")]
        file: Option<PathBuf>,
    },
    /// Forgets who is behind prefixes.
    Delete {
        /// Addresses or prefixes.
        #[arg(required = true, value_name = "PREFIX")]
        prefixes: Vec<IpNetwork>,
    },
}

pub(crate) fn run(places: &Places, command: &Command) -> Result<Page, Failure> {
    let client = client(places);
    match command {
        Command::Set { endpoint, file } => {
            let policy: Policy = read(file)?;
            let endpoint = find(&client, endpoint)?;
            let policy = client.set_policy(&endpoint.id, &policy)?;
            Page::new(&policy, policy_text(&policy))
        }
        Command::Show { endpoint } => {
            let endpoint = find(&client, endpoint)?;
            let policy = client.policy(&endpoint.id)?;
            Page::new(&policy, policy_text(&policy))
        }
        Command::Delete { endpoint } => {
            let endpoint = find(&client, endpoint)?;
            let outcome = client.delete_policy(&endpoint.id)?;
            let text = match outcome {
                Removed::Removed => format!("{} sends and receives everything now\n", endpoint.id),
                Removed::Absent => format!("{} had no policy\n", endpoint.id),
            };
            Page::new(&json!({"outcome": outcome}), text)
        }
    }
}

pub(crate) fn identify(places: &Places, wanted: &str, identity: u32) -> Result<Page, Failure> {
    let client = client(places);
    let endpoint = find(&client, wanted)?;
    let endpoint = client.set_identity(&endpoint.id, identity)?;
    Page::new(&endpoint, format!("{} has identity {}\n", endpoint.id, endpoint.identity))
}

pub(crate) fn ipcache(places: &Places, command: &IpcacheCommand) -> Result<Page, Failure> {
    let client = client(places);
    match command {
        IpcacheCommand::List => {
            let entries = client.ipcache()?;
            let mut table = Table::new().text("PREFIX").number("IDENTITY");
            for entry in &entries {
                table.row([Cell::new(entry.prefix), Cell::new(entry.identity)]);
            }
            Page::new(&entries, table.to_string())
        }
        IpcacheCommand::Set { prefix, identity, file } => {
            let entries = match (file, prefix, identity) {
                (Some(file), ..) => read(file)?,
                (None, Some(prefix), Some(identity)) => {
                    vec![PrefixIdentity { prefix: *prefix, identity: *identity }]
                }
                _ => Vec::new(),
            };
            let count = client.set_ipcache(&entries)?;
            Page::new(&count, format!("{} set\n", prefixes(count.prefixes)))
        }
        IpcacheCommand::Delete { prefixes: wanted } => {
            let count = client.forget_ipcache(wanted)?;
            Page::new(&count, format!("{} forgotten\n", prefixes(count.prefixes)))
        }
    }
}

fn find(client: &Client, wanted: &str) -> Result<Endpoint, Failure> {
    let endpoints = client.endpoints()?;
    pick(&endpoints, wanted).cloned()
}

fn read<T: DeserializeOwned>(file: &Path) -> Result<T, Failure> {
    let is_stdin = file == Path::new("-");
    let name = if is_stdin { "the standard input".to_owned() } else { file.display().to_string() };
    let text = if is_stdin {
        let mut text = String::new();
        io::stdin().read_to_string(&mut text).map(|_| text)
    } else {
        fs::read_to_string(file)
    };
    let text = text.map_err(|error| Failure::new(format!("read {name}: {error}")))?;
    serde_json::from_str(&text).map_err(|error| {
        Failure::new(format!("{name}: {error}"))
            .with_hint("docs/policy.md shows what rules look like")
    })
}

fn policy_text(policy: &Policy) -> String {
    let mut text = String::new();
    for (name, direction) in [("Ingress", &policy.ingress), ("Egress", &policy.egress)] {
        let PolicyDirection { default, rules } = direction;
        push(&mut text, format_args!("{HEADING}{name}{HEADING:#}: {default} by default\n"));
        if rules.is_empty() {
            continue;
        }
        let mut table = Table::new().text("ACTION").text("PEER").text("PROTOCOL").text("PORTS");
        for rule in rules {
            table.row([
                Cell::new(rule.action),
                Cell::new(&rule.peer),
                Cell::new(&rule.protocol),
                Cell::new(&rule.ports),
            ]);
        }
        push(&mut text, format_args!("{table}"));
    }
    text
}

pub(crate) fn prefixes(count: u64) -> String {
    if count == 1 { "1 prefix".into() } else { format!("{count} prefixes") }
}
