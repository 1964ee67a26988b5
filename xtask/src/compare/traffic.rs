//! Traffic from pod to pod on one node.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use podwire_lab::{
    Pod,
    probe::{Responder, TcpSink, allowed_cpus, pin_to_cpu, tcp_crr, tcp_flood, tcp_rr, udp_rr},
};

use super::{
    links::BareVeth,
    nodes::{Kind, Node},
    progress::Progress,
    report::Better,
    turns::{Series, take_turns},
};
use crate::Result;

/// What is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Load {
    TcpStream,
    TcpRr,
    TcpCrr,
    UdpRr,
}

/// Two pods on one node.
#[derive(Clone, Copy, Debug)]
pub struct Pair<'a> {
    name: &'a str,
    client: &'a Pod,
    server: &'a Pod,
    address: IpAddr,
}

impl Load {
    pub const ALL: [Self; 4] = [Self::TcpStream, Self::TcpRr, Self::TcpCrr, Self::UdpRr];

    /// The work's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::TcpStream => "tcp_stream",
            Self::TcpRr => "tcp_rr",
            Self::TcpCrr => "tcp_crr",
            Self::UdpRr => "udp_rr",
        }
    }

    fn unit(self) -> &'static str {
        if self == Self::TcpStream { "Gbit/s" } else { "1/s" }
    }
}

impl<'a> Pair<'a> {
    /// The first two pods of a node, and the second one's address that comes at this place.
    pub fn of(node: &'a Node, family: usize) -> Result<Self> {
        let name = match node.kind {
            Kind::Podwire => "podwire",
            Kind::Ptp => "ptp",
            Kind::Bridge => "bridge",
        };
        let [client, server, ..] = &node.pods[..] else { return Err("it takes two pods".into()) };
        let address = server.addresses.get(family);
        let address = *address.ok_or_else(|| format!("{name}: too few addresses"))?;
        Ok(Self { name, client: &client.pod, server: &server.pod, address })
    }

    /// The ends of a veth pair.
    pub fn bare(veth: &'a BareVeth, family: usize) -> Self {
        let ([client, server], address) = (&veth.pods, veth.addresses[family]);
        Self { name: "veth", client, server, address }
    }

    /// The same under another name.
    #[must_use]
    pub fn named(self, name: &'a str) -> Self {
        Self { name, ..self }
    }

    /// Sends for this time, both ends on the same processor: the rate.
    pub fn measure(&self, load: Load, time: Duration) -> Result<f64> {
        let failed = |e: io::Error| format!("{} between pods of {}: {e}", load.name(), self.name);
        self.send(load, time).map_err(|e| failed(e).into())
    }

    fn send(&self, load: Load, time: Duration) -> io::Result<f64> {
        // The last one: interrupts come to the first.
        let cpu = allowed_cpus()?.into_iter().next_back().unwrap_or_default();
        let any = SocketAddr::new(self.address, 0);
        if load == Load::TcpStream {
            let sink = self.server.run(|| pin_to_cpu(cpu).and_then(|()| TcpSink::start(any)))?;
            let flood = || pin_to_cpu(cpu).and_then(|()| tcp_flood(sink.address(), time));
            return Ok(self.client.run(flood)?.bits_per_second() / 1e9);
        }
        let start = if load == Load::UdpRr { Responder::udp } else { Responder::tcp };
        let responder = self.server.run(|| pin_to_cpu(cpu).and_then(|()| start(any)))?;
        let repeat = match load {
            Load::TcpCrr => tcp_crr,
            Load::UdpRr => udp_rr,
            Load::TcpStream | Load::TcpRr => tcp_rr,
        };
        let repeat = || pin_to_cpu(cpu).and_then(|()| repeat(responder.address(), time));
        Ok(self.client.run(repeat)?.per_second())
    }
}

/// The rates of these pairs, podwire's first.
pub fn rates(
    work: &str,
    load: Load,
    pairs: &[Pair<'_>],
    runs: usize,
    time: Duration,
    progress: &mut Progress,
) -> Result<Series> {
    let peers: Vec<_> = pairs.iter().skip(1).map(|pair| pair.name).collect();
    let mut series = Series::new(work, load.unit(), Better::More, &peers);
    take_turns(runs, pairs.len(), |run, side| {
        progress.run(run, runs, &series);
        series.push(side, pairs[side].measure(load, time)?);
        Ok(())
    })?;
    Ok(series)
}
