//! `podwire bpf flow`: conversations, from the pinned maps.

use std::collections::HashMap;

use clap::{Args, Subcommand, ValueEnum, builder::PossibleValuesParser};
use ipnetwork::IpNetwork;
use podwire_datapath::{FlowDirection, FlowFilter, FlowRow, FlowState, Tables, abi::Protocol};
use serde_json::json;

use crate::Places;
use crate::agent::{client, duration, pick, short};
use crate::failure::Failure;
use crate::output::Page;
use crate::table::{Cell, GOOD, Table, WARNING};

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// The conversations: who began them, how far they have come, what both sides have sent.
    #[command(visible_alias = "ls")]
    List(Filter),
    /// Forgets conversations. Their next packets are judged as those of new ones.
    Flush {
        #[command(flatten)]
        filter: Filter,
        /// All of them; without a filter this must be said.
        #[arg(long)]
        all: bool,
    },
}

/// Which conversations are meant: those that fit all that is given.
#[derive(Debug, Args)]
pub(crate) struct Filter {
    /// With this endpoint at one end: its slot, or with a running agent its container's id or the
    /// beginning of it.
    #[arg(long, value_name = "SLOT|CONTAINER[/IFNAME]")]
    endpoint: Option<String>,
    /// With an address of this prefix at one end.
    #[arg(long, value_name = "ADDRESS|CIDR")]
    address: Option<IpNetwork>,
    /// With this port at one end; of an echo, its identifier.
    #[arg(long, value_name = "PORT")]
    port: Option<u16>,
    /// Of this protocol: tcp, udp, icmp (of both families), sctp, or a number.
    #[arg(long, value_name = "PROTOCOL", value_parser = parse_protocol)]
    protocol: Option<Protocol>,
    /// In this state.
    #[arg(long, value_parser = PossibleValuesParser::new(FlowState::ALL.map(FlowState::name)))]
    state: Option<String>,
    /// Begun by an endpoint, or towards one: the given one, or any of the node's.
    #[arg(long, value_enum)]
    direction: Option<Direction>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Direction {
    Egress,
    Ingress,
}

pub(crate) fn run(places: &Places, tables: &Tables, command: &Command) -> Result<Page, Failure> {
    let failed = |error: podwire_datapath::Error| Failure::of(&error);
    match command {
        Command::List(filter) => {
            let rows = tables.flows_that(&filter.meaning(places)?).map_err(failed)?;
            list(&rows, &names(places))
        }
        Command::Flush { filter, all } => {
            let filter = filter.meaning(places)?;
            if filter.is_everything() && !all {
                return Err(Failure::new("nothing says which flows are to be forgotten")
                    .with_hint("give a filter, or --all"));
            }
            let flushed = tables.flush_flows(&filter).map_err(failed)?;
            let noun = if flushed == 1 { "flow" } else { "flows" };
            Page::new(&json!({"flushed": flushed}), format!("{flushed} {noun} forgotten\n"))
        }
    }
}

impl Filter {
    fn meaning(&self, places: &Places) -> Result<FlowFilter, Failure> {
        let endpoint = match &self.endpoint {
            None => None,
            Some(named) => Some(slot(places, named)?),
        };
        let named = |name: &String| FlowState::ALL.into_iter().find(|one| one.name() == name);
        Ok(FlowFilter {
            endpoint,
            direction: self.direction.map(|direction| match direction {
                Direction::Egress => FlowDirection::Egress,
                Direction::Ingress => FlowDirection::Ingress,
            }),
            prefix: self.address,
            port: self.port,
            protocol: self.protocol,
            state: self.state.as_ref().and_then(named),
        })
    }
}

/// A number is a slot, for when no agent can tell names.
fn slot(places: &Places, named: &str) -> Result<u32, Failure> {
    let number = named.parse();
    let endpoints = match client(places).endpoints() {
        Ok(endpoints) => endpoints,
        Err(error) => {
            return number.map_err(|_| {
                Failure::from(error).with_hint("no agent tells names: give the endpoint's slot")
            });
        }
    };
    match (pick(&endpoints, named), number) {
        (Ok(endpoint), _) => Ok(endpoint.slot),
        (Err(_), Ok(slot)) => Ok(slot),
        (Err(failure), Err(_)) => Err(failure),
    }
}

/// What the agent, if one runs, calls the endpoints.
fn names(places: &Places) -> HashMap<u32, String> {
    let endpoints = client(places).endpoints().unwrap_or_default();
    let name = |endpoint: podwire_api::Endpoint| {
        let pod = endpoint.pod.as_ref().map(|pod| format!("{}/{}", pod.namespace, pod.name));
        (endpoint.slot, pod.unwrap_or_else(|| short(&endpoint.id)))
    };
    endpoints.into_iter().map(name).collect()
}

fn list(rows: &[FlowRow], names: &HashMap<u32, String>) -> Result<Page, Failure> {
    let mut table = Table::new()
        .text("PROTOCOL")
        .text("STATE")
        .text("SOURCE")
        .number("PORT")
        .text("FROM")
        .text("DESTINATION")
        .number("PORT")
        .text("TO")
        .text("PATH")
        .text("IDLE")
        .text("AGE")
        .number("PACKETS")
        .number("BYTES")
        .number("BACK")
        .number("BYTES");
    let name = |slot: Option<u32>| {
        slot.map(|slot| names.get(&slot).cloned().unwrap_or_else(|| format!("slot {slot}")))
    };
    let mut json = Vec::with_capacity(rows.len());
    for row in rows {
        let state = Cell::new(row.state);
        let (from, to) = (name(row.source_endpoint), name(row.destination_endpoint));
        table.row([
            Cell::new(protocol(row.protocol)),
            match row.state {
                FlowState::Established | FlowState::Replied => state.styled(GOOD),
                FlowState::Opening | FlowState::OneSided => state.styled(WARNING),
                _ => state,
            },
            Cell::new(row.source),
            Cell::new(row.source_port),
            Cell::optional(from.as_ref()),
            Cell::new(row.destination),
            Cell::new(row.destination_port),
            Cell::optional(to.as_ref()),
            Cell::new(row.path.name()),
            Cell::new(duration(row.idle.into())),
            Cell::new(duration(row.age.into())),
            Cell::new(row.packets),
            Cell::new(row.bytes),
            Cell::new(row.reply_packets),
            Cell::new(row.reply_bytes),
        ]);
        json.push(json!({
            "protocol": row.protocol.0, "protocol_name": protocol(row.protocol),
            "state": row.state.name(), "path": row.path.name(), "endpoint": row.endpoint,
            "source": row.source, "source_port": row.source_port,
            "source_endpoint": row.source_endpoint, "source_name": from,
            "destination": row.destination, "destination_port": row.destination_port,
            "destination_endpoint": row.destination_endpoint, "destination_name": to,
            "idle": row.idle, "age": row.age,
            "packets": row.packets, "bytes": row.bytes,
            "reply_packets": row.reply_packets, "reply_bytes": row.reply_bytes,
        }));
    }
    Page::new(&json, table.to_string())
}

fn protocol(protocol: Protocol) -> String {
    let named = NAMES.iter().find(|(number, _)| *number == protocol);
    named.map_or_else(|| protocol.0.to_string(), |(_, name)| (*name).to_owned())
}

const NAMES: [(Protocol, &str); 5] = [
    (Protocol::ICMP, "icmp"),
    (Protocol::TCP, "tcp"),
    (Protocol::UDP, "udp"),
    (Protocol::ICMPV6, "icmpv6"),
    (Protocol::SCTP, "sctp"),
];

fn parse_protocol(text: &str) -> Result<Protocol, String> {
    let named = NAMES.iter().find(|(_, name)| *name == text);
    let protocol = named.map(|(protocol, _)| *protocol).or_else(|| text.parse().ok().map(Protocol));
    protocol.ok_or_else(|| "a protocol is tcp, udp, icmp, icmpv6, sctp, or its number".to_owned())
}

#[cfg(test)]
mod tests {
    use podwire_datapath::FlowPath;

    use super::*;

    #[test]
    fn protocols_are_names_or_numbers() {
        assert_eq!(parse_protocol("tcp").unwrap(), Protocol::TCP);
        assert_eq!(parse_protocol("47").unwrap(), Protocol(47));
        assert!(parse_protocol("tcpp").is_err() && parse_protocol("256").is_err());
        assert_eq!(
            (protocol(Protocol::SCTP), protocol(Protocol(47))),
            ("sctp".into(), "47".into())
        );
    }

    #[test]
    fn a_flow_is_a_row() {
        let row = FlowRow {
            endpoint: 1,
            source_endpoint: Some(1),
            destination_endpoint: Some(2),
            source: [10, 1, 0, 2].into(),
            destination: [10, 1, 0, 3].into(),
            source_port: 40000,
            destination_port: 80,
            protocol: Protocol::TCP,
            state: FlowState::Established,
            path: FlowPath::Straight,
            idle: 3,
            age: 75,
            packets: 4,
            bytes: 500,
            reply_packets: 3,
            reply_bytes: 400,
        };
        let page = list(&[row], &HashMap::from([(1, "default/web".to_owned())])).unwrap();
        let text = anstream::adapter::strip_str(page.text()).to_string();
        let expected = "\
PROTOCOL  STATE        SOURCE     PORT  FROM         DESTINATION  PORT  TO      PATH      IDLE  AGE    PACKETS  BYTES  BACK  BYTES
tcp       established  10.1.0.2  40000  default/web  10.1.0.3       80  slot 2  straight  3s    1m15s        4    500     3    400
";
        assert_eq!(text, expected);
    }
}
