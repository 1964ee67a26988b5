//! What the kernel holds, whether an agent runs or not.

use std::path::Path;

use podwire_datapath::{Delivery, Tables};
use serde_json::{Value, json};

use crate::failure::Failure;
use crate::output::Page;
use crate::table::{BAD, Cell, Table};
use crate::{BpfCommand, ListCommand, Places, bpf_policy, flow, program};

pub(crate) fn run(places: &Places, command: &BpfCommand) -> Result<Page, Failure> {
    let tables = open(&places.bpffs)?;
    let failed = |error: podwire_datapath::Error| Failure::of(&error);
    match command {
        BpfCommand::Endpoint(ListCommand::List) => endpoints(&tables.endpoints().map_err(failed)?),
        BpfCommand::Ipcache(command) => bpf_policy::ipcache(places, &tables, command),
        BpfCommand::Policy(command) => bpf_policy::run(places, &tables, command),
        BpfCommand::Flow(command) => flow::run(places, &tables, command),
        BpfCommand::Metrics(ListCommand::List) => metrics(&tables.metrics().map_err(failed)?),
        BpfCommand::Prog(ListCommand::List) => program::list(&tables.endpoints().map_err(failed)?),
    }
}

fn open(bpffs: &Path) -> Result<Tables, Failure> {
    Tables::open(bpffs).map_err(|error| {
        let failure = Failure::of(&error);
        if error.is_not_found() {
            let place = bpffs.display();
            return failure.with_hint(format!(
                "nothing is pinned at {place}: has podwired run on this node, with this --bpffs?"
            ));
        }
        failure
    })
}

fn endpoints(rows: &[podwire_datapath::EndpointRow]) -> Result<Page, Failure> {
    let mut table = Table::new()
        .number("SLOT")
        .number("GENERATION")
        .number("IFINDEX")
        .text("IPV4")
        .text("IPV6")
        .text("MAC")
        .text("HOST MAC")
        .number("IDENTITY")
        .text("DELIVERY");
    let mut json = Vec::new();
    for row in rows {
        let delivery = match row.delivery {
            Delivery::Peer => "peer",
            Delivery::Egress => "egress",
            Delivery::Stack => "stack",
        };
        let family = |wanted: fn(&std::net::IpAddr) -> bool| {
            Cell::optional(row.addresses.iter().find(|address| wanted(address)))
        };
        table.row([
            Cell::new(row.slot),
            Cell::new(row.generation),
            Cell::new(row.ifindex),
            family(std::net::IpAddr::is_ipv4),
            family(std::net::IpAddr::is_ipv6),
            Cell::new(mac(row.mac)),
            Cell::new(mac(row.host_mac)),
            Cell::new(row.identity),
            Cell::new(delivery),
        ]);
        json.push(json!({
            "slot": row.slot, "generation": row.generation, "ifindex": row.ifindex,
            "identity": row.identity, "addresses": row.addresses, "mac": mac(row.mac),
            "host_mac": mac(row.host_mac), "delivery": delivery,
        }));
    }
    page(json, &table)
}

fn metrics(rows: &[podwire_datapath::MetricRow]) -> Result<Page, Failure> {
    let mut table = Table::new()
        .text("PROGRAM")
        .text("REASON")
        .number("PACKETS")
        .number("BYTES")
        .text("MEANING");
    let mut json = Vec::new();
    for row in rows {
        let reason = Cell::new(row.reason);
        table.row([
            Cell::new(row.hook),
            if row.reason.is_drop() { reason.styled(BAD) } else { reason },
            Cell::new(row.packets),
            Cell::new(row.bytes),
            Cell::new(row.reason.explain()),
        ]);
        json.push(json!({
            "program": row.hook.name(), "reason": row.reason.name(),
            "drop": row.reason.is_drop(), "packets": row.packets, "bytes": row.bytes,
        }));
    }
    page(json, &table)
}

pub(crate) fn page(json: Vec<Value>, table: &Table) -> Result<Page, Failure> {
    Page::new(&Value::Array(json), table.to_string())
}

fn mac(mac: [u8; 6]) -> String {
    podwire_api::Mac(mac).to_string()
}
