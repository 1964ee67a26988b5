//! Addresses: pools, leases, what is set aside, and whether it all agrees.

use std::net::IpAddr;

use clap::{Args, Subcommand};
use ipnetwork::IpNetwork;
use podwire_api::{
    CheckReply, CheckRequest, CidrEdit, CidrRequest, Client, Lease, LeaseState, OnDisagreement,
    Outcome, Pool, PoolRequest, Removed, Reservation, Sticky,
};
use serde_json::json;

use crate::Places;
use crate::agent::{by_family, client, count, duration, line, pick_by_prefix, push, short};
use crate::failure::Failure;
use crate::output::Page;
use crate::table::{BAD, Cell, GOOD, Table, WARNING, printable};

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Pools and leases.
    #[command(visible_alias = "ls")]
    List,
    /// Who has an address, or what a container has.
    Show {
        /// An address, or the container's id or the beginning of it, then `/` and the interface if it
        /// has several.
        #[arg(value_name = "ADDRESS|CONTAINER[/IFNAME]")]
        subject: String,
    },
    /// The pools: how full each CIDR is, and how often an address was missing.
    Pools,
    /// Changes the pools. Leases stay, whatever is changed.
    #[command(subcommand)]
    Pool(PoolCommand),
    /// Sets an address aside, so that no pod gets it.
    Reserve {
        /// The address.
        address: IpAddr,
        /// For what.
        why: String,
    },
    /// Lifts a reservation.
    Unreserve {
        /// The address.
        address: IpAddr,
    },
    /// The addresses set aside, and those kept for sticky names.
    Reservations,
    /// Keeps the addresses of a sticky name for it no longer.
    Forget {
        /// The name.
        #[arg(value_name = "NAMESPACE/POD")]
        name: String,
    },
    /// Compares leases, endpoints and kernel, and names every disagreement. Fails if one is left.
    Check {
        /// Put right what can be put right.
        #[arg(long)]
        repair: bool,
    },
    /// Takes back a lease that no endpoint stands behind.
    Release {
        /// The container's id or the beginning of it, then `/` and the interface if it has several.
        #[arg(value_name = "CONTAINER[/IFNAME]")]
        owner: String,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum PoolCommand {
    /// Makes a pool.
    Create(Create),
    /// Takes a pool away of which nothing is held.
    Delete {
        /// The pool.
        pool: String,
    },
    /// Leases from a CIDR as well; or again, if it was drained.
    AddCidr(Edit),
    /// Leases nothing from a CIDR any more.
    DrainCidr(Edit),
    /// Takes a CIDR away in which nothing is held.
    RemoveCidr(Edit),
}

#[derive(Debug, Args)]
pub(crate) struct Create {
    /// Its name.
    pool: String,
    /// Where its addresses come from, both families in any number.
    #[arg(required = true, value_name = "CIDR")]
    cidrs: Vec<IpNetwork>,
    /// A range that is never granted.
    #[arg(long, value_name = "CIDR")]
    exclude: Vec<IpNetwork>,
    /// Seconds that a released address rests; the agent's --cooldown otherwise.
    #[arg(long, value_name = "SECONDS")]
    cooldown: Option<u64>,
}

#[derive(Debug, Args)]
pub(crate) struct Edit {
    /// The pool.
    pool: String,
    /// The CIDR.
    cidr: IpNetwork,
}

pub(crate) fn run(places: &Places, command: &Command) -> Result<Page, Failure> {
    let client = client(places);
    match command {
        Command::List => list(&client),
        Command::Show { subject } => show(&client, subject),
        Command::Pools => {
            let pools = client.pools()?;
            Page::new(&pools, pool_table(&pools).to_string())
        }
        Command::Pool(command) => edit(&client, command),
        Command::Reserve { address, why } => {
            let reservation = Reservation { address: *address, why: why.clone() };
            let made = client.reserve(&reservation)?;
            Page::new(&made, format!("{address} is reserved: {}\n", printable(why)))
        }
        Command::Unreserve { address } => {
            removal(client.unreserve(*address)?, &format!("the reservation of {address}"))
        }
        Command::Reservations => reservations(&client),
        Command::Forget { name } => {
            removal(client.forget(name)?, &format!("the sticky name {name}"))
        }
        Command::Check { repair } => {
            let disagreements =
                if *repair { OnDisagreement::Repair } else { OnDisagreement::Report };
            check(&client.check(CheckRequest { disagreements })?)
        }
        Command::Release { owner } => {
            let leases = client.leases()?;
            let lease = pick(&leases, owner)?;
            removal(client.release(&lease.id)?, &format!("the lease of {}", lease.id))
        }
    }
}

fn list(client: &Client) -> Result<Page, Failure> {
    let (leases, pools) = (client.leases()?, client.pools()?);
    let text = format!("{}\n{}", pool_table(&pools), lease_table(&leases));
    Page::new(&json!({"pools": pools, "leases": leases}), text)
}

fn show(client: &Client, subject: &str) -> Result<Page, Failure> {
    let leases = client.leases()?;
    let Ok(address) = subject.parse::<IpAddr>() else {
        let lease = pick(&leases, subject)?;
        return Page::new(lease, lease_text(lease));
    };
    if let Some(lease) = leases.iter().find(|lease| lease.addresses.contains(&address)) {
        return Page::new(lease, lease_text(lease));
    }
    if let Some(found) = client.reservations()?.into_iter().find(|one| one.address == address) {
        let text = format!("{address} is reserved: {}\n", printable(&found.why));
        return Page::new(&found, text);
    }
    if let Some(found) = client.stickies()?.into_iter().find(|one| one.addresses.contains(&address))
    {
        let text = format!("{address} is kept for {}\n", printable(&found.name));
        return Page::new(&found, text);
    }
    let pools = client.pools()?;
    let pool = pools.iter().find(|pool| pool.cidrs.iter().any(|one| one.cidr.contains(address)));
    match pool {
        Some(pool) => {
            let text = format!("nobody has {address}; it is of pool {}\n", pool.name);
            Page::new(&json!({"address": address, "pool": pool.name}), text)
        }
        None => Err(Failure::new(format!("{address} is of no pool"))
            .with_hint("podwire ipam pools shows their CIDRs")),
    }
}

fn edit(client: &Client, command: &PoolCommand) -> Result<Page, Failure> {
    let (pool, edit, cidr) = match command {
        PoolCommand::Create(Create { pool, cidrs, exclude, cooldown }) => {
            let request = PoolRequest {
                cidrs: cidrs.clone(),
                excluded: exclude.clone(),
                cooldown: *cooldown,
                pending_ttl: None,
            };
            let made = client.create_pool(pool, &request)?;
            return Page::new(&made, pool_table(std::slice::from_ref(&made)).to_string());
        }
        PoolCommand::Delete { pool } => {
            return removal(client.delete_pool(pool)?, &format!("pool {pool}"));
        }
        PoolCommand::AddCidr(Edit { pool, cidr }) => (pool, CidrEdit::Add, *cidr),
        PoolCommand::DrainCidr(Edit { pool, cidr }) => (pool, CidrEdit::Drain, *cidr),
        PoolCommand::RemoveCidr(Edit { pool, cidr }) => (pool, CidrEdit::Remove, *cidr),
    };
    let changed = client.edit_pool(pool, &CidrRequest { edit, cidr })?;
    Page::new(&changed, pool_table(std::slice::from_ref(&changed)).to_string())
}

fn reservations(client: &Client) -> Result<Page, Failure> {
    let (reservations, stickies) = (client.reservations()?, client.stickies()?);
    let mut set_aside = Table::new().text("ADDRESS").text("RESERVED FOR");
    for one in &reservations {
        set_aside.row([Cell::new(one.address), Cell::new(&one.why)]);
    }
    let mut kept = Table::new().text("STICKY NAME").text("IPV4").text("IPV6").text("HELD BY");
    for Sticky { name, addresses, holder } in &stickies {
        let [v4, v6] = by_family(addresses);
        kept.row([Cell::new(name), v4, v6, Cell::optional(holder.as_ref().map(short))]);
    }
    let text = format!("{set_aside}\n{kept}");
    Page::new(&json!({"reservations": reservations, "sticky": stickies}), text)
}

fn check(reply: &CheckReply) -> Result<Page, Failure> {
    let CheckReply { leases, endpoints, disagreements } = reply;
    let mut text = format!("{leases} leases, {endpoints} endpoints: ");
    if disagreements.is_empty() {
        push(&mut text, format_args!("{GOOD}everything agrees{GOOD:#}\n"));
        return Page::new(reply, text);
    }
    push(&mut text, format_args!("{} disagreements\n", disagreements.len()));
    let mut left = 0;
    for one in disagreements {
        let [object, found, remedy] =
            [&one.object, &one.found, &one.remedy].map(|part| printable(part));
        push(&mut text, format_args!("  {BAD}{object}{BAD:#}: {found}\n"));
        match &one.outcome {
            Outcome::Repaired => {
                push(&mut text, format_args!("    {GOOD}done{GOOD:#}: {remedy}\n"));
            }
            Outcome::Failed(why) => {
                left += 1;
                let why = printable(why);
                push(&mut text, format_args!("    {BAD}failed{BAD:#}: {remedy}: {why}\n"));
            }
            Outcome::Open => {
                left += 1;
                push(&mut text, format_args!("    --repair would: {remedy}\n"));
            }
            _ => {
                left += 1;
                push(&mut text, format_args!("    to do: {remedy}\n"));
            }
        }
    }
    let page = Page::new(reply, text)?;
    Ok(if left > 0 { page.unwell() } else { page })
}

fn removal(outcome: Removed, object: &str) -> Result<Page, Failure> {
    let text = match outcome {
        Removed::Removed => format!("{object} is gone\n"),
        Removed::Absent => format!("{object} was not there\n"),
    };
    Page::new(&json!({"outcome": outcome}), text)
}

fn pick<'a>(leases: &'a [Lease], wanted: &str) -> Result<&'a Lease, Failure> {
    pick_by_prefix(leases, wanted, |lease| &lease.id, "lease", "podwire ipam list shows them")
}

fn lease_table(leases: &[Lease]) -> Table {
    let mut table =
        Table::new().text("OWNER").text("POD").text("IPV4").text("IPV6").text("POOL").text("STATE");
    for lease in leases {
        let state = match lease.state {
            LeaseState::Confirmed => Cell::new("confirmed"),
            LeaseState::Pending => Cell::new("pending").styled(WARNING),
            _ => Cell::new("other"),
        };
        let pools = if lease.pools.is_empty() {
            Cell::new("none").styled(WARNING)
        } else {
            Cell::new(lease.pools.join(","))
        };
        let [v4, v6] = by_family(&lease.addresses);
        let pod = Cell::optional(lease.pod.as_ref());
        table.row([Cell::new(short(&lease.id)), pod, v4, v6, pools, state]);
    }
    table
}

fn lease_text(lease: &Lease) -> String {
    let mut text = String::new();
    let addresses: Vec<String> = lease.addresses.iter().map(IpAddr::to_string).collect();
    let state = match (lease.state, lease.expires_in) {
        (LeaseState::Pending, Some(left)) => format!("pending, expires in {}", duration(left)),
        (LeaseState::Pending, None) => "pending".to_owned(),
        (LeaseState::Confirmed, _) => "confirmed".to_owned(),
        _ => "other".to_owned(),
    };
    let pools = if lease.pools.is_empty() { "none".to_owned() } else { lease.pools.join(", ") };
    for (name, value) in [
        ("Container", lease.id.container_id.to_string()),
        ("Interface", lease.id.ifname.to_string()),
        ("Pod", lease.pod.clone().unwrap_or_else(|| "-".into())),
        ("Addresses", addresses.join(", ")),
        ("Pool", pools),
        ("State", state),
    ] {
        line(&mut text, name, &value);
    }
    text
}

/// A row for each CIDR.
pub(crate) fn pool_table(pools: &[Pool]) -> Table {
    let mut table = Table::new()
        .text("POOL")
        .text("CIDR")
        .number("SIZE")
        .number("USED")
        .number("FREE")
        .number("PENDING")
        .number("COOLING")
        .number("RESERVED")
        .number("KEPT")
        .number("EXHAUSTED")
        .text("STATE");
    for pool in pools {
        for one in &pool.cidrs {
            let free = one.available().saturating_sub(one.cooling);
            let exhausted = if one.cidr.is_ipv4() { pool.exhausted_v4 } else { pool.exhausted_v6 };
            let used = Cell::new(one.used);
            let state = match (one.drained, one.available()) {
                (true, _) => Cell::new("drained").styled(WARNING),
                (false, 0) => Cell::new("full").styled(BAD),
                (false, _) => Cell::new("in use"),
            };
            table.row([
                Cell::new(&pool.name),
                Cell::new(one.cidr),
                Cell::new(count(one.size)),
                used,
                Cell::new(count(free)),
                Cell::new(one.pending),
                Cell::new(one.cooling),
                Cell::new(one.reserved),
                Cell::new(one.kept),
                Cell::new(exhausted),
                state,
            ]);
        }
    }
    table
}
