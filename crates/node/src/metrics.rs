//! What a Prometheus server is told.

use std::fmt;

use podwire_api::{FlowUsage, MapUsage, Pool};
use podwire_datapath::abi::Reason;
use podwire_datapath::{FlowEvent, Timeout};
use podwire_ipam::durable::Counts;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, MetricEncoder};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::{Registry, Unit};

use crate::flows::Totals;
use crate::mappings::MappingUsage;

/// What the metrics are made of, at one moment.
#[derive(Debug)]
pub(crate) struct Measured {
    pub(crate) pools: Vec<Pool>,
    pub(crate) endpoints: u64,
    pub(crate) counts: Counts,
    pub(crate) flows: FlowUsage,
    pub(crate) events: Vec<(FlowEvent, u64)>,
    pub(crate) totals: Totals,
    pub(crate) mappings: MappingUsage,
    pub(crate) nat_dropped: Vec<(Reason, u64)>,
    pub(crate) maps: Vec<MapUsage>,
    pub(crate) resident: u64,
}

/// The metrics in the text format that Prometheus servers read.
pub(crate) fn text(measured: Measured) -> Result<String, fmt::Error> {
    let mut registry = Registry::with_prefix("podwire");
    registry.register_collector(Box::new(measured));
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry)?;
    Ok(text)
}

impl Collector for Measured {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut addresses = encoder.encode_descriptor(
            "ipam_addresses",
            "Addresses by what has become of them",
            None,
            MetricType::Gauge,
        )?;
        for (pool, family, sums) in self.sums() {
            for (state, count) in sums.states() {
                let labels = [("pool", pool), ("family", family), ("state", state)];
                gauge(&mut addresses, &labels, count)?;
            }
        }
        let mut exhausted = encoder.encode_descriptor(
            "ipam_exhausted",
            "Requests that found no address left in a pool",
            None,
            MetricType::Counter,
        )?;
        for (pool, family, sums) in self.sums() {
            let labels = [("pool", pool), ("family", family)];
            ConstCounter::new(sums.exhausted).encode(exhausted.encode_family(&labels)?)?;
        }
        let Counts { requests, commits, failures, .. } = self.counts;
        for (name, help, count) in [
            ("store_requests", "Requests whose changes are in the database", requests),
            ("store_commits", "Commits that this took, each of them one sync", commits),
            ("store_failures", "Commits that failed", failures),
        ] {
            let counter = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            ConstCounter::new(count).encode(counter)?;
        }
        let endpoints = encoder.encode_descriptor(
            "endpoints",
            "Endpoints",
            None::<&Unit>,
            MetricType::Gauge,
        )?;
        ConstGauge::new(whole(self.endpoints)).encode(endpoints)?;
        self.encode_flows(&mut encoder)?;
        self.encode_mappings(&mut encoder)?;
        self.encode_memory(&mut encoder)
    }
}

impl Measured {
    fn encode_flows(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let FlowUsage { confirmed, capacity, pending, pending_capacity, pressure } = self.flows;
        for (name, help, counts) in [
            ("flow_entries", "Entries of the tables of flows", [confirmed, pending]),
            ("flow_capacity", "Entries that there is room for", [capacity, pending_capacity]),
        ] {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            for (table, count) in ["confirmed", "pending"].into_iter().zip(counts) {
                gauge(&mut family, &[("table", table)], count)?;
            }
        }
        let help = "Whether idle flows are forgotten sooner, since the table is filling up";
        let pressed = encoder.encode_descriptor("flow_pressure", help, None, MetricType::Gauge)?;
        ConstGauge::new(i64::from(pressure)).encode(pressed)?;

        let help = "What happened to flows, as the programs count it";
        let mut events =
            encoder.encode_descriptor("flow_events", help, None, MetricType::Counter)?;
        for (event, count) in &self.events {
            let labels = [("event", event.name())];
            ConstCounter::new(*count).encode(events.encode_family(&labels)?)?;
        }
        let help = "Conversations that were idle for too long";
        encode_expired(encoder, "flows_expired", help, self.totals.expired)?;
        let Totals { sweeps, sweep_seconds, orphaned, .. } = self.totals;
        for (name, help, count) in [
            ("flows_orphaned", "Entries of endpoints that were no more", orphaned),
            ("flow_sweeps", "How often the tables of flows were read for what is over", sweeps),
        ] {
            let counter = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            ConstCounter::new(count).encode(counter)?;
        }
        let help = "How long that took";
        let seconds = encoder.encode_descriptor(
            "flow_sweep",
            help,
            Some(&Unit::Seconds),
            MetricType::Counter,
        )?;
        ConstCounter::new(sweep_seconds).encode(seconds)
    }

    fn encode_mappings(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let MappingUsage { left, pressure, expired } = self.mappings;
        let (mappings, room) = left.unzip();
        for (name, help, count) in [
            ("nat_mappings", "Conversations that have a mapping, the node's own too", mappings),
            ("nat_capacity", "Mappings that there is room for", room),
            (
                "nat_pressure",
                "Whether idle mappings are forgotten sooner, since the table is filling up",
                Some(u32::from(pressure.is_high())),
            ),
        ] {
            // Nobody has counted them yet.
            let Some(count) = count else { continue };
            let one = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            ConstGauge::new(i64::from(count)).encode(one)?;
        }
        let help = "Packets that could not be masqueraded";
        let mut dropped =
            encoder.encode_descriptor("nat_dropped", help, None, MetricType::Counter)?;
        for (reason, count) in &self.nat_dropped {
            let labels = [("reason", reason.name())];
            ConstCounter::new(*count).encode(dropped.encode_family(&labels)?)?;
        }
        encode_expired(encoder, "nat_expired", "Mappings that were idle for too long", expired)
    }

    fn encode_memory(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let help = "Kernel memory of the maps";
        let unit = Some(&Unit::Bytes);
        let mut maps = encoder.encode_descriptor("map_memory", help, unit, MetricType::Gauge)?;
        for map in &self.maps {
            gauge(&mut maps, &[("map", &map.name)], map.bytes)?;
        }
        let help = "Resident memory of the agent";
        let own = encoder.encode_descriptor("agent_memory", help, unit, MetricType::Gauge)?;
        ConstGauge::new(whole(self.resident)).encode(own)
    }
}

/// Counts in the order of [`Timeout::ALL`], by protocol and state.
fn encode_expired(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    counts: [u64; Timeout::COUNT],
) -> fmt::Result {
    let mut expired = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
    for (timeout, count) in Timeout::ALL.into_iter().zip(counts) {
        let (protocol, state) = timeout.name().split_once('-').unwrap_or((timeout.name(), "any"));
        let labels = [("protocol", protocol), ("state", state)];
        ConstCounter::new(count).encode(expired.encode_family(&labels)?)?;
    }
    Ok(())
}

fn gauge(encoder: &mut MetricEncoder<'_>, labels: &[(&str, &str)], count: u64) -> fmt::Result {
    ConstGauge::new(whole(count)).encode(encoder.encode_family(&labels)?)
}

/// Gauges are signed; half of an IPv6 /64 does not fit, and nobody counts it.
fn whole(count: u64) -> i64 {
    count.try_into().unwrap_or(i64::MAX)
}

/// The CIDRs of one pool and family, added up.
#[derive(Debug, Default)]
struct Sums {
    size: u64,
    available: u64,
    used: u64,
    pending: u64,
    cooling: u64,
    reserved: u64,
    kept: u64,
    exhausted: u64,
}

impl Sums {
    fn states(&self) -> [(&'static str, u64); 7] {
        [
            ("total", self.size),
            ("free", self.available.saturating_sub(self.cooling)),
            ("used", self.used),
            ("pending", self.pending),
            ("cooling", self.cooling),
            ("reserved", self.reserved),
            ("kept", self.kept),
        ]
    }
}

impl Measured {
    fn sums(&self) -> impl Iterator<Item = (&str, &'static str, Sums)> {
        self.pools.iter().flat_map(|pool| {
            [("ipv4", true, pool.exhausted_v4), ("ipv6", false, pool.exhausted_v6)]
                .into_iter()
                .filter_map(|(family, is_v4, exhausted)| {
                    let mut sums = Sums { exhausted, ..Sums::default() };
                    let mut of_family =
                        pool.cidrs.iter().filter(|one| one.cidr.is_ipv4() == is_v4).peekable();
                    of_family.peek()?;
                    for one in of_family {
                        for (sum, more) in [
                            (&mut sums.size, one.size),
                            (&mut sums.available, one.available()),
                            (&mut sums.used, one.used),
                            (&mut sums.pending, one.pending),
                            (&mut sums.cooling, one.cooling),
                            (&mut sums.reserved, one.reserved),
                            (&mut sums.kept, one.kept),
                        ] {
                            *sum = sum.saturating_add(more);
                        }
                    }
                    Some((pool.name.as_str(), family, sums))
                })
        })
    }
}

#[cfg(test)]
mod tests {
    use podwire_api::CidrUsage;

    use super::*;

    #[test]
    fn a_pool_is_told_by_family_and_state() {
        let cidr = |cidr: &str, size, used| CidrUsage {
            cidr: cidr.parse().unwrap(),
            size,
            used,
            pending: 1,
            cooling: 2,
            reserved: 3,
            kept: 4,
            drained: false,
        };
        let pool = Pool {
            name: "blue".into(),
            cidrs: vec![
                cidr("10.0.0.0/24", 254, 10),
                cidr("10.0.1.0/24", 254, 20),
                cidr("fd00::/64", u64::MAX, 5),
            ],
            excluded: Vec::new(),
            cooldown: 60,
            pending_ttl: 300,
            exhausted_v4: 7,
            exhausted_v6: 0,
        };
        let mut totals = Totals { sweeps: 3, sweep_seconds: 0.25, ..Totals::default() };
        totals.expired[Timeout::TcpEstablished as usize] = 4;
        let mut mappings = MappingUsage { left: Some((7, 100)), ..MappingUsage::default() };
        mappings.expired[Timeout::UdpReplied as usize] = 5;
        let map = MapUsage { name: "FLOWS".into(), entries: None, capacity: 1, bytes: 4096 };
        let measured = Measured {
            pools: vec![pool],
            endpoints: 9,
            counts: Counts::default(),
            flows: FlowUsage { confirmed: 6, pressure: true, ..FlowUsage::default() },
            events: vec![(FlowEvent::TableFull, 2)],
            totals,
            mappings,
            nat_dropped: vec![(Reason::NatPortsExhausted, 3)],
            maps: vec![map],
            resident: 8192,
        };
        let text = text(measured).unwrap();
        for line in [
            "# TYPE podwire_ipam_addresses gauge",
            r#"podwire_ipam_addresses{pool="blue",family="ipv4",state="total"} 508"#,
            r#"podwire_ipam_addresses{pool="blue",family="ipv4",state="used"} 30"#,
            r#"podwire_ipam_addresses{pool="blue",family="ipv4",state="free"} 458"#,
            r#"podwire_ipam_addresses{pool="blue",family="ipv6",state="kept"} 4"#,
            r#"podwire_ipam_exhausted_total{pool="blue",family="ipv4"} 7"#,
            "podwire_store_commits_total 0",
            "podwire_endpoints 9",
            r#"podwire_flow_entries{table="confirmed"} 6"#,
            "podwire_flow_pressure 1",
            r#"podwire_flow_events_total{event="table-full"} 2"#,
            r#"podwire_flows_expired_total{protocol="tcp",state="established"} 4"#,
            r#"podwire_flows_expired_total{protocol="icmp",state="any"} 0"#,
            "podwire_flow_sweep_seconds_total 0.25",
            "podwire_nat_mappings 7",
            "podwire_nat_capacity 100",
            "podwire_nat_pressure 0",
            r#"podwire_nat_dropped_total{reason="nat-ports-exhausted"} 3"#,
            r#"podwire_nat_expired_total{protocol="udp",state="replied"} 5"#,
            r#"podwire_map_memory_bytes{map="FLOWS"} 4096"#,
            "podwire_agent_memory_bytes 8192",
            "# EOF",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
    }
}
