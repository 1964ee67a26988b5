//! Comparing a pod with what it should be.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use podwire_api::{AgentConfig, Client, Difference, Endpoint, EndpointId};
use podwire_netlink::{IfIndex, Link, MacAddr, Neighbour, Route, RouteFilter};
use podwire_netns::Netns;

use crate::{
    adopt::{Pair, mark, pair},
    error::{Error, Result},
    wire::{Sockets, bears_mark, container_link, gateway, host_link, routes},
};

/// What the result of the ADD says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Expected {
    /// The addresses of the container's interface.
    pub addresses: Vec<IpNetwork>,
    /// Its MAC, if the result has it.
    pub mac: Option<MacAddr>,
}

/// Compares interfaces, addresses, routes, neighbour, the agent's record, programs and map entries with
/// what they should be; an empty list says that all is well.
///
/// # Errors
///
/// If the agent or the kernel does not answer.
pub fn check(
    agent: &Client,
    netns: &Netns,
    id: &EndpointId,
    expected: &Expected,
) -> Result<Vec<Difference>> {
    let mut findings = Findings::default();
    let config = agent.config()?;
    let mut sockets = Sockets::open(id, netns)?;
    let failed = Error::netlink("check", id);

    let host = sockets.host.find_link(host_link(id)).map_err(&failed)?;
    let peer = sockets.container.find_link(container_link(id)).map_err(&failed)?;
    let host_name = id.host_link();
    if let Some(host) = &host {
        findings.expect(
            &host_name,
            "a link with this endpoint's mark",
            bears_mark(host, id),
            || format!("alias {:?}", host.alias.as_deref().unwrap_or_default()),
        );
        findings.expect(&host_name, "up", host.is_up(), || "down".into());
    } else {
        findings.missing(&host_name, "the host link");
    }
    if let Some(peer) = &peer {
        check_interface(&mut findings, id, peer, host.as_ref(), &host_name, expected);
        let gateway_mac = host.as_ref().and_then(|host| host.mac);
        let container = Container { index: peer.index, gateway_mac };
        check_container(&mut findings, &mut sockets, id, container, &config, expected)?;
    } else {
        findings.missing(id.ifname.as_str(), "the container's interface");
    }
    check_agent(&mut findings, agent, id, host.map(|h| h.index), expected)?;
    Ok(findings.0)
}

/// The same for an interface that was adopted, as far as it is podwire's: the mark, the addresses, the
/// agent's record, programs and map entries.
///
/// # Errors
///
/// As [`check`].
pub fn check_adopted(
    agent: &Client,
    netns: &Netns,
    id: &EndpointId,
    expected: &Expected,
) -> Result<Vec<Difference>> {
    let mut findings = Findings::default();
    let config = agent.config()?;
    let mut sockets = Sockets::open(id, netns)?;
    let host = match pair(&mut sockets, id) {
        Ok(Pair { host, container }) => {
            let name = host.name.to_string();
            let mark = mark(&config, id);
            findings.expect(
                &name,
                &format!("alias {mark}"),
                host.alias.as_deref() == Some(mark.as_str()),
                || format!("alias {:?}", host.alias.as_deref().unwrap_or_default()),
            );
            check_interface(&mut findings, id, &container, Some(&host), &name, expected);
            let failed = Error::netlink("check", id);
            let addresses = sockets.container.addresses(container.index).map_err(failed)?;
            for address in &expected.addresses {
                let there = addresses.iter().any(|found| found.network == *address);
                findings.expect(id.ifname.as_str(), &format!("address {address}"), there, || {
                    "no such address".into()
                });
            }
            Some(host.index)
        }
        Err(Error::NotAdoptable { why, .. }) => {
            findings.expect(id.ifname.as_str(), "a veth that was adopted", false, || why);
            None
        }
        Err(error) => return Err(error),
    };
    check_agent(&mut findings, agent, id, host, expected)?;
    Ok(findings.0)
}

fn check_interface(
    findings: &mut Findings,
    id: &EndpointId,
    container: &Link,
    host: Option<&Link>,
    host_name: &str,
    expected: &Expected,
) {
    let ifname = id.ifname.as_str();
    findings.expect(ifname, "up", container.is_up(), || "down".into());
    if let Some(host) = host {
        let pair = container.peer == Some(host.index);
        findings.expect(ifname, &format!("the peer of {host_name}"), pair, || {
            format!("the peer of interface {:?}", container.peer.map(IfIndex::as_u32))
        });
    }
    if let Some(mac) = expected.mac {
        let found = container.mac;
        findings.expect(ifname, &format!("MAC {mac}"), found == Some(mac), || {
            found.map_or("none".into(), |mac| mac.to_string())
        });
    }
}

fn check_agent(
    findings: &mut Findings,
    agent: &Client,
    id: &EndpointId,
    host: Option<IfIndex>,
    expected: &Expected,
) -> Result<()> {
    match agent.inspect(id) {
        Ok(inspection) => {
            check_record(findings, &inspection.endpoint, host, expected);
            findings.0.extend(inspection.differences);
        }
        Err(error) if error.is_not_found() => {
            findings.missing(&id.to_string(), "the agent's record");
        }
        Err(error) => return Err(error.into()),
    }
    Ok(())
}

/// The container's interface, and the MAC that its gateway must have.
#[derive(Clone, Copy)]
struct Container {
    index: IfIndex,
    gateway_mac: Option<MacAddr>,
}

fn check_container(
    findings: &mut Findings,
    sockets: &mut Sockets,
    id: &EndpointId,
    Container { index, gateway_mac }: Container,
    config: &AgentConfig,
    expected: &Expected,
) -> Result<()> {
    let failed = Error::netlink("check", id);
    let ifname = id.ifname.as_str();
    let addresses = sockets.container.addresses(index).map_err(&failed)?;
    let found_routes = sockets.container.routes(&RouteFilter::output(index)).map_err(&failed)?;
    let neighbours = sockets.container.neighbours(index).map_err(&failed)?;
    for &network in &expected.addresses {
        let there = addresses.iter().any(|address| address.network == network);
        findings.expect(ifname, &format!("address {network}"), there, || "no such address".into());
        let gateway = gateway(id, &config.node, network.ip())?;
        for wanted in routes(index, gateway, config.node.route_mtu) {
            let there = found_routes.iter().any(|route| same_way(route, &wanted));
            let via =
                if wanted.gateway.is_some() { format!(" via {gateway}") } else { String::new() };
            let text = format!("route {}{via}", wanted.destination);
            findings.expect(ifname, &text, there, || "no such route".into());
        }
        // One that is gone is no difference: the kernel drops it when the MAC changes, as the tuning
        // plugin has it do, and the datapath answers who asks for the gateway.
        let neighbour = neighbours.iter().find(|neighbour| neighbour.address == gateway);
        if let (Some(Neighbour { mac: Some(found), .. }), Some(wanted)) = (neighbour, gateway_mac) {
            let text = format!("neighbour {gateway} at {wanted}");
            findings.expect(ifname, &text, *found == wanted, || found.to_string());
        }
    }
    Ok(())
}

fn check_record(
    findings: &mut Findings,
    endpoint: &Endpoint,
    host: Option<IfIndex>,
    expected: &Expected,
) {
    let what = format!("the agent's record of {}", endpoint.id);
    if let Some(index) = host {
        let same = endpoint.ifindex == index.as_u32();
        findings.expect(&what, &format!("interface {index}"), same, || {
            format!("interface {}", endpoint.ifindex)
        });
    }
    let mut wanted: Vec<IpAddr> = expected.addresses.iter().map(IpNetwork::ip).collect();
    let mut found = endpoint.addresses.clone();
    wanted.sort();
    found.sort();
    findings.expect(&what, &format!("addresses {wanted:?}"), wanted == found, || {
        format!("addresses {found:?}")
    });
}

fn same_way(found: &Route, wanted: &Route) -> bool {
    found.destination == wanted.destination
        && found.gateway == wanted.gateway
        && found.output == wanted.output
}

#[derive(Default)]
struct Findings(Vec<Difference>);

impl Findings {
    fn expect(&mut self, what: &str, expected: &str, holds: bool, found: impl FnOnce() -> String) {
        if !holds {
            let (what, expected) = (what.to_owned(), expected.to_owned());
            self.0.push(Difference { what, expected, found: found() });
        }
    }

    fn missing(&mut self, what: &str, expected: &str) {
        self.expect(what, expected, false, || "nothing".into());
    }
}
