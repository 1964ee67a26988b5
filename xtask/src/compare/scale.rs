//! What work costs on a node with few and with many endpoints.

use std::time::Duration;

use super::{
    calls::{lifecycle, megabytes},
    links::settle,
    nodes::{Families, Kind, Masquerade, Node, Site},
    progress::Progress,
    report::Better,
    traffic::{Load, Pair},
    turns::{Series, take_turns},
};
use crate::Result;

/// Names of all works with these numbers of endpoints.
pub fn works(endpoints: &[u16]) -> impl Iterator<Item = String> {
    let works = ["agent_memory", "add", "per_packet"];
    works.into_iter().flat_map(|work| endpoints.iter().map(move |n| format!("scale/{work}/{n}")))
}

/// How often, and for how long.
#[derive(Clone, Copy, Debug)]
pub struct Counts {
    /// Of ADD.
    pub calls: usize,
    /// Of traffic.
    pub traffic: usize,
    /// Of one run of traffic.
    pub time: Duration,
}

/// Grows a node of podwire's and one of ptp's from number to number.
pub fn grow(
    site: &Site,
    endpoints: &[u16],
    wanted: impl Fn(&str) -> bool,
    counts: Counts,
    progress: &mut Progress,
) -> Result<Vec<Series>> {
    let start = |kind| site.node(kind, Families::V4, Masquerade::No);
    let mut nodes = vec![start(Kind::Podwire)?, start(Kind::Ptp)?];
    // It stays as it is, to be held against.
    let mut small = start(Kind::Podwire)?;
    small.grow(2)?;
    small.verify()?;
    // Before anything else has left its traces in the agent.
    nodes[0].grow(1)?;
    let one = memory(&nodes[0])?;
    let mut all = Vec::new();
    for &number in endpoints {
        progress.heading(&format!("nodes with {number} endpoints"));
        for node in &mut nodes {
            node.grow(number.into())?;
        }
        settle()?;
        let mut done = Vec::new();
        let work = format!("scale/agent_memory/{number}");
        if wanted(&work) {
            let mut series = Series::new(&work, "MB", Better::Less, &["1 endpoint"]);
            series.push(0, memory(&nodes[0])?);
            series.push(1, one);
            progress.done(1, &[&series]);
            done.push(series);
        }
        let work = format!("scale/add/{number}");
        if wanted(&work) {
            let all = lifecycle(&nodes, &work, counts.calls, "", progress)?;
            let series = all.into_iter().find(|series| series.work() == work);
            progress.done(counts.calls, &series.iter().collect::<Vec<_>>());
            done.extend(series);
        }
        let work = format!("scale/per_packet/{number}");
        if wanted(&work) {
            // One alone has nobody to talk to.
            for node in &mut nodes {
                node.grow(2)?;
                node.verify()?;
            }
            let [podwire, ptp] = &nodes[..] else { unreachable!("there are two") };
            let pairs = [
                Pair::of(podwire, 0)?,
                Pair::of(ptp, 0)?,
                Pair::of(&small, 0)?.named("podwire, 2 endpoints"),
            ];
            let series = per_packet(&work, &pairs, counts, progress)?;
            progress.done(counts.traffic, &[&series]);
            done.push(series);
        }
        all.extend(done);
    }
    Ok(all)
}

fn per_packet(
    work: &str,
    pairs: &[Pair<'_>],
    counts: Counts,
    progress: &mut Progress,
) -> Result<Series> {
    let peers = ["ptp", "podwire, 2 endpoints"];
    let mut series = Series::new(work, "us", Better::Less, &peers)
        .note("half a transaction of udp_rr: one datagram from socket to socket");
    take_turns(counts.traffic, pairs.len(), |run, side| {
        progress.run(run, counts.traffic, &series);
        let rate = pairs[side].measure(Load::UdpRr, counts.time)?;
        series.push(side, 1e6 / (2.0 * rate));
        Ok(())
    })?;
    Ok(series)
}

fn memory(node: &Node) -> Result<f64> {
    let agent = node.agent.as_ref().ok_or("only podwire has an agent")?;
    Ok(megabytes(agent.resident_bytes()?))
}
