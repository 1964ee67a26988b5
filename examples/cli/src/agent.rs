//! What the agent is asked.

use std::fmt::Write as _;
use std::net::IpAddr;
use std::time::{SystemTime, UNIX_EPOCH};

use podwire_api::{
    AttachMode, Client, Delivery, Endpoint, EndpointId, FlowUsage, MemoryUsage, Status, socket_path,
};
use serde_json::json;

use crate::Places;
use crate::failure::Failure;
use crate::ipam::pool_table;
use crate::output::Page;
use crate::table::{BAD, Cell, GOOD, HEADING, Table, printable};

pub(crate) fn status(places: &Places) -> Result<Page, Failure> {
    let status = client(places).status()?;
    Page::new(&status, status_text(&status))
}

pub(crate) fn endpoints(places: &Places) -> Result<Page, Failure> {
    let endpoints = client(places).endpoints()?;
    Page::new(&endpoints, endpoint_table(&endpoints, now()).to_string())
}

pub(crate) fn endpoint(places: &Places, wanted: &str) -> Result<Page, Failure> {
    let endpoints = client(places).endpoints()?;
    let endpoint = pick(&endpoints, wanted)?;
    Page::new(endpoint, endpoint_text(endpoint, now()))
}

pub(crate) fn metrics(places: &Places) -> Result<Page, Failure> {
    let text = client(places).metrics()?;
    Page::new(&json!({"metrics": text}), text)
}

pub(crate) fn client(places: &Places) -> Client {
    Client::new(socket_path(&places.run_dir))
}

/// The one that is meant: the container's id may be cut short, as the tables do.
pub(crate) fn pick_by_prefix<'a, T>(
    all: &'a [T],
    wanted: &str,
    id: fn(&T) -> &EndpointId,
    kind: &str,
    hint: &str,
) -> Result<&'a T, Failure> {
    let (container, ifname) = match wanted.split_once('/') {
        Some((container, ifname)) => (container, Some(ifname)),
        None => (wanted, None),
    };
    let fits = |one: &&T| {
        id(one).container_id.as_str().starts_with(container)
            && ifname.is_none_or(|ifname| id(one).ifname.as_str() == ifname)
    };
    let mut found: Vec<&T> = all.iter().filter(fits).collect();
    // A whole id is meant as such, also where another one begins with it.
    let whole = |one: &&T| id(one).container_id.as_str() == container;
    if found.iter().any(whole) {
        found.retain(whole);
    }
    match found.as_slice() {
        [one] => Ok(one),
        [] => Err(Failure::new(format!("there is no {kind} {wanted}")).with_hint(hint)),
        several => {
            let names: Vec<String> = several.iter().map(|one| id(one).to_string()).collect();
            let message = format!("{wanted} can be {} {kind}s", names.len());
            Err(Failure::new(message).with_hint(format!("say which: {}", names.join(", "))))
        }
    }
}

pub(crate) fn pick<'a>(endpoints: &'a [Endpoint], wanted: &str) -> Result<&'a Endpoint, Failure> {
    let hint = "podwire endpoint list shows them";
    pick_by_prefix(endpoints, wanted, |endpoint| &endpoint.id, "endpoint", hint)
}

fn status_text(status: &Status) -> String {
    let mut text = String::new();
    let attach = match status.attach {
        AttachMode::Tcx => "TCX links",
        AttachMode::Tc => "clsact filters",
        AttachMode::Mixed => "clsact filters, TCX links where others need the disciplines",
        _ => "other",
    };
    let agent =
        format!("podwired {}, pid {}, up {}", status.version, status.pid, duration(status.uptime));
    for (name, value) in [
        ("Node", status.node.to_string()),
        ("Agent", agent),
        ("Endpoints", format!("{} of {}", status.endpoints, status.slots)),
        ("Programs", attach.to_owned()),
        ("Flows", flows_text(&status.flows)),
        (
            "Memory",
            format!(
                "{} resident, {} of the kernel's in maps",
                bytes(status.memory.agent),
                bytes(status.memory.maps_total)
            ),
        ),
    ] {
        line(&mut text, name, &value);
    }
    push(&mut text, format_args!("\n{}", pool_table(&status.pools)));
    push(&mut text, format_args!("\n{}", map_table(&status.memory)));
    push(&mut text, format_args!("\n{HEADING}Problems{HEADING:#}\n"));
    if status.problems.is_empty() {
        push(&mut text, format_args!("  {GOOD}none{GOOD:#}\n"));
    }
    for problem in &status.problems {
        let [what, why, fix] =
            [&problem.what, &problem.why, &problem.fix].map(|one| printable(one));
        push(&mut text, format_args!("  {BAD}{what}{BAD:#}\n    why: {why}\n    fix: {fix}\n"));
    }
    push(&mut text, format_args!("\n{HEADING}Repaired at start{HEADING:#}\n"));
    if status.repairs.is_empty() {
        push(&mut text, format_args!("  nothing\n"));
    }
    for repair in &status.repairs {
        let [object, found, done] =
            [&repair.object, &repair.found, &repair.done].map(|one| printable(one));
        push(&mut text, format_args!("  {object}: {found}: {done}\n"));
    }
    text
}

fn flows_text(flows: &FlowUsage) -> String {
    let FlowUsage { confirmed, capacity, pending, pending_capacity, pressure } = flows;
    let pressure = if *pressure { "; idle ones are forgotten sooner" } else { "" };
    format!(
        "{confirmed} of {capacity} directions confirmed, {pending} of {pending_capacity} pending{pressure}"
    )
}

fn map_table(memory: &MemoryUsage) -> Table {
    let mut table = Table::new().text("MAP").number("ENTRIES").number("CAPACITY").number("MEMORY");
    for map in &memory.maps {
        table.row([
            Cell::new(&map.name),
            Cell::optional(map.entries),
            Cell::new(map.capacity),
            Cell::new(bytes(map.bytes)),
        ]);
    }
    table
}

/// In powers of 1024, as the kernel's tools count memory.
fn bytes(number: u64) -> String {
    let (mut whole, mut rest, mut unit) = (number, 0, 0);
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    while whole >= 1024 && unit + 1 < units.len() {
        (whole, rest, unit) = (whole / 1024, whole % 1024, unit + 1);
    }
    match unit {
        0 => format!("{whole} B"),
        _ => format!("{whole}.{} {}", rest * 10 / 1024, units[unit]),
    }
}

fn endpoint_table(endpoints: &[Endpoint], now: u64) -> Table {
    let mut table = Table::new()
        .text("ENDPOINT")
        .text("POD")
        .text("IPV4")
        .text("IPV6")
        .text("LINK")
        .number("SLOT")
        .number("IDENTITY")
        .text("DELIVERY")
        .text("AGE");
    for endpoint in endpoints {
        let pod = endpoint.pod.as_ref().map(|pod| format!("{}/{}", pod.namespace, pod.name));
        let [v4, v6] = by_family(&endpoint.addresses);
        table.row([
            Cell::new(short(&endpoint.id)),
            Cell::optional(pod),
            v4,
            v6,
            Cell::new(&endpoint.host_link),
            Cell::new(endpoint.slot),
            Cell::new(endpoint.identity),
            Cell::new(delivery(endpoint.delivery)),
            Cell::new(duration(now.saturating_sub(endpoint.created))),
        ]);
    }
    table
}

fn endpoint_text(endpoint: &Endpoint, now: u64) -> String {
    let mut text = String::new();
    let addresses: Vec<String> = endpoint.addresses.iter().map(IpAddr::to_string).collect();
    let pod = endpoint.pod.as_ref();
    let uid = pod.and_then(|pod| pod.uid.as_deref()).unwrap_or("-").to_owned();
    for (name, value) in [
        ("Container", endpoint.id.container_id.to_string()),
        ("Interface", endpoint.id.ifname.to_string()),
        ("Pod", pod.map_or_else(|| "-".into(), |pod| format!("{}/{}", pod.namespace, pod.name))),
        ("Pod UID", uid),
        ("Network", endpoint.network.clone().unwrap_or_else(|| "-".into())),
        ("Addresses", addresses.join(", ")),
        ("MAC", endpoint.mac.to_string()),
        ("Host link", format!("{} (index {})", endpoint.host_link, endpoint.ifindex)),
        ("Host MAC", endpoint.host_mac.to_string()),
        ("Slot", endpoint.slot.to_string()),
        ("Identity", endpoint.identity.to_string()),
        ("Delivery", delivery(endpoint.delivery).to_owned()),
        ("Age", duration(now.saturating_sub(endpoint.created))),
    ] {
        line(&mut text, name, &value);
    }
    text
}

fn delivery(delivery: Delivery) -> &'static str {
    match delivery {
        Delivery::Peer => "peer",
        Delivery::Egress => "egress",
        Delivery::Stack => "stack",
        _ => "other",
    }
}

pub(crate) fn by_family(addresses: &[IpAddr]) -> [Cell; 2] {
    [IpAddr::is_ipv4, IpAddr::is_ipv6]
        .map(|family| Cell::optional(addresses.iter().find(|address| family(address))))
}

/// Container ids are 64 characters; runtimes show 13 at most, and so do we.
pub(crate) fn short(id: &EndpointId) -> String {
    let container: String = id.container_id.as_str().chars().take(13).collect();
    format!("{container}/{}", id.ifname)
}

/// Counts of IPv6 prefixes say nothing digit by digit.
pub(crate) fn count(number: u64) -> String {
    if number < 1 << 32 {
        return number.to_string();
    }
    // The power of two that is nearest: the next one if the two highest bits are set.
    let floor = number.ilog2();
    let rounded = floor + u32::from(number >> (floor - 1) == 3);
    format!("2^{rounded}")
}

pub(crate) fn duration(seconds: u64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, _) => format!("{minutes}m{}s", seconds % 60),
        (0, ..) => format!("{hours}h{}m", minutes % 60),
        _ => format!("{days}d{}h", hours % 24),
    }
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

pub(crate) fn line(text: &mut String, name: &str, value: &str) {
    let label = format!("{name}:");
    let value = printable(value);
    push(text, format_args!("{HEADING}{label:<11}{HEADING:#} {value}\n"));
}

pub(crate) fn push(text: &mut String, arguments: std::fmt::Arguments<'_>) {
    // Writing to a String cannot fail.
    let _ = text.write_fmt(arguments);
}

#[cfg(test)]
mod tests {
    use podwire_api::{CidrUsage, Effect, Interface, Mac, MapUsage, PodRef, Pool, Problem};

    use super::*;

    fn endpoint(container: &str, ifname: &str) -> Endpoint {
        let id = EndpointId::new(container, ifname).unwrap();
        Endpoint {
            host_link: "pwaaaaaaaaaaaaa".into(),
            id,
            ifindex: 7,
            mac: Mac([2, 0, 0, 0, 0, 1]),
            host_mac: Mac([2, 0, 0, 0, 0, 2]),
            addresses: vec!["10.1.0.2".parse().unwrap()],
            slot: 3,
            delivery: Delivery::Peer,
            created: 1000,
            network: None,
            pod: Some(PodRef { namespace: "default".into(), name: "web".into(), uid: None }),
            interface: Interface::Own,
            identity: podwire_api::UNMANAGED_IDENTITY,
        }
    }

    fn plain(text: &str) -> String {
        anstream::adapter::strip_str(text).to_string()
    }

    #[test]
    fn endpoints_are_listed() {
        let table = endpoint_table(&[endpoint("0123456789abcdef", "eth0")], 1075).to_string();
        let expected = "\
ENDPOINT            POD          IPV4      IPV6  LINK             SLOT  IDENTITY  DELIVERY  AGE
0123456789abc/eth0  default/web  10.1.0.2  -     pwaaaaaaaaaaaaa     3         3  peer      1m15s
";
        assert_eq!(plain(&table), expected);
        assert!(plain(&endpoint_text(&endpoint("c1", "eth0"), 1000)).contains("index 7"));
    }

    #[test]
    fn endpoints_are_picked_by_prefix() {
        let all = [
            endpoint("abc", "eth0"),
            endpoint("abcd", "eth0"),
            endpoint("x", "eth0"),
            endpoint("x", "eth1"),
        ];
        let picked = |wanted: &str| pick(&all, wanted).map(|endpoint| endpoint.id.to_string());
        assert_eq!(picked("abcd").unwrap(), "abcd/eth0");
        assert_eq!(picked("abc/eth0").unwrap(), "abc/eth0");
        assert_eq!(picked("x/eth1").unwrap(), "x/eth1");
        assert_eq!(picked("abc").unwrap(), "abc/eth0");
        picked("ab").unwrap_err();
        picked("x").unwrap_err();
        picked("y").unwrap_err();
    }

    #[test]
    fn status_names_problems() {
        let cidr = CidrUsage {
            cidr: "fd00::/64".parse().unwrap(),
            size: u64::MAX,
            used: 1,
            pending: 0,
            cooling: 0,
            reserved: 1,
            kept: 0,
            drained: false,
        };
        let pool = Pool {
            name: "default".into(),
            cidrs: vec![cidr],
            excluded: Vec::new(),
            cooldown: 60,
            pending_ttl: 300,
            exhausted_v4: 0,
            exhausted_v6: 0,
        };
        let mut status = Status {
            node: "n1".parse().unwrap(),
            version: "0.1.0".into(),
            pid: 1,
            uptime: 90_061,
            endpoints: 1,
            slots: 4096,
            pools: vec![pool],
            default_pools: vec!["default".into()],
            attach: AttachMode::Tcx,
            flows: FlowUsage { confirmed: 8, capacity: 16, pressure: true, ..FlowUsage::default() },
            memory: MemoryUsage {
                agent: 12_900_000,
                maps_total: 4096,
                maps: vec![MapUsage {
                    name: "FLOWS".into(),
                    entries: Some(8),
                    capacity: 16,
                    bytes: 4096,
                }],
            },
            problems: Vec::new(),
            repairs: Vec::new(),
        };
        let text = plain(&status_text(&status));
        assert!(
            text.contains("up 1d1h") && text.contains("2^64") && text.contains("  none"),
            "{text}"
        );
        assert!(text.contains("8 of 16 directions confirmed"), "{text}");
        assert!(text.contains("12.3 MiB resident, 4.0 KiB of the kernel's in maps"), "{text}");
        assert!(text.contains("FLOWS        8        16  4.0 KiB\n"), "{text}");
        let problem = Problem {
            what: "W".into(),
            why: "Y".into(),
            fix: "F".into(),
            effect: Effect::Possible,
        };
        status.problems.push(problem);
        let text = plain(&status_text(&status));
        assert!(text.contains("  W\n    why: Y\n    fix: F\n"), "{text}");
    }
}
