//! Policies and who is behind addresses, as the kernel has them.

use std::net::IpAddr;

use clap::{Args, Subcommand};
use ipnetwork::IpNetwork;
use podwire_datapath::{EndpointRow, Flow, IpcacheRow, PolicyListing, Subject, Tables};
use podwire_policy::{Action, InWords};
use serde_json::json;

use crate::Places;
use crate::agent::{client, push};
use crate::bpf::page;
use crate::failure::Failure;
use crate::output::Page;
use crate::policy::prefixes;
use crate::table::{BAD, Cell, Table};

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// The rows of all policies.
    #[command(visible_alias = "ls")]
    List(Filter),
    /// Lets endpoints send and receive everything. Through the agent, if one runs, which forgets their
    /// policies; otherwise the next one puts them back.
    Flush(FlushPolicy),
}

#[derive(Debug, Subcommand)]
pub(crate) enum IpcacheCommand {
    /// Addresses and prefixes.
    #[command(visible_alias = "ls")]
    List(Filter),
    /// Forgets who was said to be behind prefixes; endpoints' and the node's own addresses stay. Through
    /// the agent, if one runs; otherwise the next one puts back what it has on record.
    Flush(FlushIpcache),
}

/// Which rows are listed.
#[derive(Debug, Args)]
pub(crate) struct Filter {
    /// Of this endpoint: its slot, or an address of it.
    #[arg(long, value_name = "SLOT|ADDRESS")]
    endpoint: Option<String>,
    /// With this identity.
    #[arg(long, value_name = "NUMBER")]
    identity: Option<u32>,
    /// With this prefix, or one in it.
    #[arg(long, value_name = "CIDR")]
    prefix: Option<IpNetwork>,
}

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub(crate) struct FlushPolicy {
    /// Of this endpoint: its slot, or an address of it.
    #[arg(long, value_name = "SLOT|ADDRESS")]
    endpoint: Option<String>,
    /// Of all endpoints.
    #[arg(long)]
    all: bool,
}

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub(crate) struct FlushIpcache {
    /// With this identity.
    #[arg(long, value_name = "NUMBER")]
    identity: Option<u32>,
    /// This prefix, and those in it.
    #[arg(long, value_name = "CIDR")]
    prefix: Option<IpNetwork>,
    /// All of them.
    #[arg(long)]
    all: bool,
}

pub(crate) fn run(places: &Places, tables: &Tables, command: &Command) -> Result<Page, Failure> {
    match command {
        Command::List(filter) => list(tables, filter),
        Command::Flush(FlushPolicy { endpoint, .. }) => {
            let endpoints = tables.endpoints().map_err(failed)?;
            let wanted = slot_of(&endpoints, endpoint.as_deref())?;
            let mut slots: Vec<u32> =
                tables.policy().map_err(failed)?.iter().map(|listing| listing.slot).collect();
            slots.dedup();
            slots.retain(|slot| wanted.is_none_or(|wanted| *slot == wanted));
            let gone = flush_policies(places, tables, &slots)?;
            let mut text = String::new();
            for slot in &gone {
                push(&mut text, format_args!("slot {slot} sends and receives everything now\n"));
            }
            if gone.is_empty() {
                push(&mut text, format_args!("no policy was there\n"));
            }
            Page::new(&json!({"slots": gone}), text)
        }
    }
}

fn flush_policies(places: &Places, tables: &Tables, slots: &[u32]) -> Result<Vec<u32>, Failure> {
    let agent = client(places);
    let known = match agent.endpoints() {
        Ok(known) => known,
        Err(error) if error.is_unreachable() => {
            return tables.flush_policies(slots).map_err(failed);
        }
        Err(error) => return Err(error.into()),
    };
    let mut gone = Vec::new();
    for endpoint in known.iter().filter(|endpoint| slots.contains(&endpoint.slot)) {
        agent.delete_policy(&endpoint.id)?;
        gone.push(endpoint.slot);
    }
    gone.sort_unstable();
    Ok(gone)
}

pub(crate) fn ipcache(
    places: &Places,
    tables: &Tables,
    command: &IpcacheCommand,
) -> Result<Page, Failure> {
    let rows = tables.ipcache().map_err(failed)?;
    let within = |row: &IpcacheRow, wanted: &Option<IpNetwork>| {
        wanted.is_none_or(|wanted| covers(&wanted, &row.prefix))
    };
    match command {
        IpcacheCommand::List(filter) => {
            let endpoints = tables.endpoints().map_err(failed)?;
            let slot = slot_of(&endpoints, filter.endpoint.as_deref())?;
            let rows = rows.iter().filter(|row| {
                within(row, &filter.prefix)
                    && filter.identity.is_none_or(|wanted| row.identity == wanted)
                    && slot.is_none_or(|wanted| row.slot == Some(wanted))
            });
            ipcache_page(rows)
        }
        IpcacheCommand::Flush(flush) => {
            let wanted: Vec<IpNetwork> = rows
                .iter()
                .filter(|row| row.slot.is_none() && !row.is_derived)
                .filter(|row| {
                    within(row, &flush.prefix)
                        && flush.identity.is_none_or(|wanted| row.identity == wanted)
                })
                .filter(|row| row.identity != podwire_datapath::abi::identity::HOST)
                .map(|row| row.prefix)
                .collect();
            let count = match client(places).forget_ipcache(&wanted) {
                Err(error) if error.is_unreachable() => {
                    tables.flush_identities(&wanted).map_err(failed)?.len() as u64
                }
                count => count?.prefixes,
            };
            Page::new(&json!({"prefixes": count}), format!("{} forgotten\n", prefixes(count)))
        }
    }
}

fn ipcache_page<'a>(rows: impl Iterator<Item = &'a IpcacheRow>) -> Result<Page, Failure> {
    let mut table = Table::new().text("PREFIX").number("IDENTITY").number("SLOT").text("SAID");
    let mut json = Vec::new();
    for row in rows {
        let said = if row.is_derived { "of a wider one" } else { "of it" };
        table.row([
            Cell::new(row.prefix),
            Cell::new(row.identity),
            Cell::optional(row.slot),
            Cell::new(said),
        ]);
        json.push(json!({
            "prefix": row.prefix, "identity": row.identity, "slot": row.slot,
            "policy_prefix": row.cidr, "derived": row.is_derived,
        }));
    }
    page(json, &table)
}

fn list(tables: &Tables, filter: &Filter) -> Result<Page, Failure> {
    let endpoints = tables.endpoints().map_err(failed)?;
    let slot = slot_of(&endpoints, filter.endpoint.as_deref())?;
    let listings = tables.policy().map_err(failed)?;
    let mut table = Table::new()
        .number("SLOT")
        .text("DIRECTION")
        .text("DEFAULT")
        .text("PEER")
        .text("ALLOWED")
        .text("DENIED");
    let mut json = Vec::new();
    for listing in listings.iter().filter(|one| slot.is_none_or(|slot| one.slot == slot)) {
        let PolicyListing { slot, flow, policy, default, rows, .. } = listing;
        let flow = match flow {
            Flow::Ingress => "ingress",
            Flow::Egress => "egress",
        };
        let is_wanted = |subject: &Subject| match (filter.identity, filter.prefix) {
            (None, None) => true,
            (identity, prefix) => match subject {
                Subject::Identity(number) => identity == Some(*number),
                Subject::Cidr(cidr) => prefix.is_some_and(|prefix| covers(&prefix, cidr)),
                Subject::Others | Subject::Stale(_) => false,
            },
        };
        let mut row = |peer: String, allowed: Vec<String>, denied: Vec<String>| {
            let cell =
                |words: &[String]| Cell::optional((!words.is_empty()).then(|| words.join(", ")));
            let is_denying = *default == Action::Deny;
            table.row([
                Cell::new(slot),
                Cell::new(flow),
                if is_denying { Cell::new(default).styled(BAD) } else { Cell::new(default) },
                Cell::new(&peer),
                cell(&allowed),
                cell(&denied),
            ]);
            json.push(json!({
                "slot": slot, "direction": flow, "policy": policy, "default": default.to_string(),
                "peer": peer, "allowed": allowed, "denied": denied,
            }));
        };
        for (subject, rules) in rows.iter().filter(|(subject, _)| is_wanted(subject)) {
            let words = |denies: bool| -> Vec<String> {
                let of = rules.iter().filter(|rule| rule.denies() == denies);
                of.map(|rule| InWords(rule).to_string()).collect()
            };
            row(named(subject), words(false), words(true));
        }
        if rows.is_empty() && filter.identity.is_none() && filter.prefix.is_none() {
            row("others".into(), Vec::new(), Vec::new());
        }
    }
    page(json, &table)
}

fn named(subject: &Subject) -> String {
    match subject {
        Subject::Others => "others".into(),
        Subject::Identity(number) => format!("identity:{number}"),
        Subject::Cidr(cidr) => cidr.to_string(),
        Subject::Stale(number) => format!("prefix number {number}, which no address has"),
    }
}

/// The slot that is meant, by its number or an address of its endpoint.
fn slot_of(endpoints: &[EndpointRow], wanted: Option<&str>) -> Result<Option<u32>, Failure> {
    let Some(wanted) = wanted else { return Ok(None) };
    let is_meant = |row: &&EndpointRow| match wanted.parse::<IpAddr>() {
        Ok(address) => row.addresses.contains(&address),
        Err(_) => wanted.parse() == Ok(row.slot),
    };
    match endpoints.iter().find(is_meant) {
        Some(row) => Ok(Some(row.slot)),
        None => Err(Failure::new(format!("there is no endpoint {wanted}"))
            .with_hint("say its slot or an address: podwire bpf endpoint list shows them")),
    }
}

fn covers(wide: &IpNetwork, narrow: &IpNetwork) -> bool {
    wide.prefix() <= narrow.prefix() && wide.contains(narrow.ip())
}

#[expect(clippy::needless_pass_by_value, reason = "as `map_err` gives it")]
fn failed(error: podwire_datapath::Error) -> Failure {
    Failure::of(&error)
}
