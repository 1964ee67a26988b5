//! Masquerade: the mappings that the kernel holds.

use std::net::IpAddr;

use clap::{Args, Subcommand};
use podwire_datapath::{Nat, NatEnd, NatFilter, NatOrigin, NatRow, abi::Protocol};
use serde_json::{Value, json};

use crate::Places;
use crate::failure::Failure;
use crate::flow::{parse_protocol, protocol};
use crate::output::Page;
use crate::table::{Cell, Table};

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Those that all filters apply to; all of them without filters.
    #[command(visible_alias = "ls")]
    List(Filter),
    /// Removes those that all filters apply to; all of them without filters.
    ///
    /// What still goes on gets a new mapping with its next packet, with the same port if that is free.
    Flush(Filter),
}

#[derive(Debug, Args)]
pub(crate) struct Filter {
    /// A pod's, the node's or the other side's address.
    #[arg(long, value_name = "ADDRESS")]
    address: Option<IpAddr>,
    /// A pod's, the node's or the other side's port.
    #[arg(long, value_name = "PORT")]
    port: Option<u16>,
    /// The protocol: tcp, udp, icmp, icmpv6, sctp or its number.
    #[arg(long, value_name = "PROTOCOL", value_parser = parse_protocol)]
    protocol: Option<Protocol>,
}

pub(crate) fn run(places: &Places, command: &Command) -> Result<Page, Failure> {
    let failed = |error: podwire_datapath::Error| {
        let failure = Failure::of(&error);
        if error.is_not_found() {
            let place = places.bpffs.display();
            return failure.with_hint(format!(
                "nothing is pinned at {place}: has podwired run on this node, with this --bpffs?"
            ));
        }
        failure
    };
    let nat = Nat::open(&places.bpffs).map_err(failed)?;
    match command {
        Command::List(filter) => list(filter.select(nat.rows().map_err(failed)?)),
        Command::Flush(filter) => {
            let flushed = nat.flush(&filter.as_filter()).map_err(failed)?;
            Page::new(&json!({ "flushed": flushed }), format!("{flushed} mappings flushed\n"))
        }
    }
}

impl Filter {
    fn as_filter(&self) -> NatFilter {
        NatFilter { address: self.address, port: self.port, protocol: self.protocol }
    }

    fn select(&self, mut rows: Vec<NatRow>) -> Vec<NatRow> {
        rows.retain(|row| self.as_filter().matches(row));
        rows
    }
}

fn list(rows: Vec<NatRow>) -> Result<Page, Failure> {
    let mut table = Table::new()
        .text("PROTOCOL")
        .text("FROM")
        .text("AS")
        .text("TO")
        .text("STATE")
        .number("IDLE")
        .number("SENT")
        .number("RECEIVED");
    let mut json = Vec::new();
    for row in rows {
        table.row([
            Cell::new(protocol(row.protocol)),
            Cell::new(end(row.local)),
            Cell::new(end(row.translated)),
            Cell::new(end(row.remote)),
            Cell::new(row.state.name()),
            Cell::new(format!("{}s", row.idle.as_secs())),
            Cell::new(row.sent.packets),
            Cell::new(row.received.packets),
        ]);
        let origin = match row.origin {
            NatOrigin::Pod => "pod",
            NatOrigin::Node => "node",
        };
        json.push(json!({
            "protocol": protocol(row.protocol), "origin": origin, "state": row.state.name(),
            "local": value(row.local), "translated": value(row.translated),
            "remote": value(row.remote), "ifindex": row.ifindex,
            "age_seconds": row.age.as_secs(), "idle_seconds": row.idle.as_secs(),
            "sent": { "packets": row.sent.packets, "bytes": row.sent.bytes },
            "received": { "packets": row.received.packets, "bytes": row.received.bytes },
        }));
    }
    Page::new(&Value::Array(json), table.to_string())
}

fn end(end: NatEnd) -> String {
    match (end.address, end.port) {
        (address, 0) => address.to_string(),
        (IpAddr::V4(v4), port) => format!("{v4}:{port}"),
        (IpAddr::V6(v6), port) => format!("[{v6}]:{port}"),
    }
}

fn value(end: NatEnd) -> Value {
    json!({ "address": end.address, "port": end.port })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_are_written_as_sockets_are() {
        let of = |address: &str, port| end(NatEnd { address: address.parse().unwrap(), port });
        assert_eq!(of("10.1.0.2", 80), "10.1.0.2:80");
        assert_eq!(of("fd00::2", 80), "[fd00::2]:80");
        assert_eq!(of("fd00::2", 0), "fd00::2");
    }
}
