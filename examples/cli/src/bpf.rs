//! What the kernel holds, whether an agent runs or not.

use std::path::Path;

use podwire_datapath::{Delivery, Tables};
use serde_json::{Value, json};

use crate::failure::Failure;
use crate::output::Page;
use crate::table::{BAD, Cell, Table};
use crate::{BpfCommand, ListCommand, Places, nat, program};

pub(crate) fn run(places: &Places, command: &BpfCommand) -> Result<Page, Failure> {
    let tables = open(&places.bpffs)?;
    let failed = |error: podwire_datapath::Error| Failure::of(&error);
    match command {
        BpfCommand::Endpoint(ListCommand::List) => endpoints(&tables.endpoints().map_err(failed)?),
        BpfCommand::Ipcache(ListCommand::List) => ipcache(&tables.ipcache().map_err(failed)?),
        BpfCommand::Flow(ListCommand::List) => flows(&tables.flows().map_err(failed)?),
        BpfCommand::Nat(command) => nat::run(places, command),
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

fn ipcache(rows: &[podwire_datapath::IpcacheRow]) -> Result<Page, Failure> {
    let mut table = Table::new().text("ADDRESS").number("IDENTITY").number("SLOT");
    let mut json = Vec::new();
    for row in rows {
        let slot = Cell::optional(row.slot);
        table.row([Cell::new(row.address), Cell::new(row.identity), slot]);
        json.push(json!({"address": row.address, "identity": row.identity, "slot": row.slot}));
    }
    page(json, &table)
}

fn flows(rows: &[podwire_datapath::FlowRow]) -> Result<Page, Failure> {
    let mut table = Table::new()
        .text("PROTOCOL")
        .text("SOURCE")
        .number("PORT")
        .text("DESTINATION")
        .number("PORT")
        .number("PACKETS")
        .number("BYTES");
    let mut json = Vec::new();
    for row in rows {
        table.row([
            Cell::new(protocol(row.protocol.0)),
            Cell::new(row.source),
            Cell::new(row.source_port),
            Cell::new(row.destination),
            Cell::new(row.destination_port),
            Cell::new(row.packets),
            Cell::new(row.bytes),
        ]);
        json.push(json!({
            "protocol": row.protocol.0, "source": row.source, "source_port": row.source_port,
            "destination": row.destination, "destination_port": row.destination_port,
            "packets": row.packets, "bytes": row.bytes,
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

fn page(json: Vec<Value>, table: &Table) -> Result<Page, Failure> {
    Page::new(&Value::Array(json), table.to_string())
}

fn mac(mac: [u8; 6]) -> String {
    podwire_api::Mac(mac).to_string()
}

pub(crate) fn protocol(number: u8) -> String {
    match number {
        1 => "icmp".into(),
        6 => "tcp".into(),
        17 => "udp".into(),
        58 => "icmpv6".into(),
        132 => "sctp".into(),
        other => other.to_string(),
    }
}
