//! Masquerade: what is wanted, how it is put into the datapath, and how the node's changes are followed.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ipnetwork::IpNetwork;
use podwire_api::ROUTE_PROTOCOL;
use podwire_datapath::abi::identity;
use podwire_datapath::{Datapath, PortRange};
use podwire_netlink::watch::{Event, Object, Topic, Watch};
use podwire_netlink::{Netlink, RouteProtocol};
use tokio::time::Instant;

use crate::agent::Shared;
use crate::error::chain;
use crate::router::trouble;
use crate::uplinks::{View, is_default, is_ours};
use crate::{Config, Error};

/// Changes come in bursts: a device that comes up tells its link, addresses and routes.
const BURST: Duration = Duration::from_millis(20);

/// How long a watch that broke is left alone.
const PAUSE: Duration = Duration::from_secs(1);

/// How pods' packets leave the node.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Masquerade {
    /// Of which families pods' packets leave under the node's address.
    pub families: Families,
    /// Destinations to which they leave under the pods' own.
    pub exclude: Vec<IpNetwork>,
    /// Devices that are uplinks although no default route leads over them, or that are not although one
    /// does.
    pub devices: Vec<DevicePattern>,
    /// The ports that pods' conversations may get.
    pub ports: PortRange,
}

/// Families of addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Families {
    /// Neither.
    #[default]
    None,
    /// IPv4.
    V4,
    /// IPv6.
    V6,
    /// IPv4 and IPv6.
    Both,
}

impl Families {
    /// Whether a prefix is of one of them.
    #[must_use]
    pub const fn contain(self, prefix: &IpNetwork) -> bool {
        match self {
            Self::None => false,
            Self::V4 => matches!(prefix, IpNetwork::V4(_)),
            Self::V6 => matches!(prefix, IpNetwork::V6(_)),
            Self::Both => true,
        }
    }
}

/// Which devices are meant: a name with `*` for any characters and `?` for one; `!` before it for those
/// that are not.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct DevicePattern {
    text: String,
    sense: Sense,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Sense {
    Is,
    IsNot,
}

impl DevicePattern {
    /// Whether a device of this name is an uplink by this.
    #[must_use]
    pub fn names(&self, device: &str) -> bool {
        self.sense == Sense::Is && fits(self.text.as_bytes(), device.as_bytes())
    }

    /// Whether a device of this name is none by this.
    #[must_use]
    pub fn excludes(&self, device: &str) -> bool {
        self.sense == Sense::IsNot && fits(self.text.as_bytes(), device.as_bytes())
    }
}

impl FromStr for DevicePattern {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (rest, sense) = match text.strip_prefix('!') {
            Some(rest) => (rest, Sense::IsNot),
            None => (text, Sense::Is),
        };
        let is_name = |c: char| !c.is_whitespace() && !matches!(c, '/' | ':' | '!');
        if rest.is_empty() || !rest.chars().all(is_name) {
            return Err(format!("{text:?} can be no device's name"));
        }
        Ok(Self { text: rest.to_owned(), sense })
    }
}

impl fmt::Display for DevicePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.sense == Sense::IsNot {
            f.write_str("!")?;
        }
        f.write_str(&self.text)
    }
}

fn fits(pattern: &[u8], name: &[u8]) -> bool {
    match pattern.split_first() {
        None => name.is_empty(),
        Some((b'*', rest)) => (0..=name.len()).any(|skip| fits(rest, &name[skip..])),
        Some((&wanted, rest)) => match name.split_first() {
            Some((&found, name)) => (wanted == b'?' || wanted == found) && fits(rest, name),
            None => false,
        },
    }
}

/// The uplinks of this node and what is masqueraded at them.
#[derive(Debug)]
pub(crate) struct Uplinks {
    datapath: Arc<Datapath>,
    wanted: Masquerade,
    /// What all nodes' pods have their addresses from.
    cluster: Vec<IpNetwork>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    addresses: BTreeSet<IpAddr>,
}

impl Uplinks {
    pub(crate) fn new(datapath: Arc<Datapath>, config: &Config) -> Self {
        let cluster = config.cluster_pools.iter().flat_map(|pool| &pool.cidrs).copied().collect();
        let wanted = config.masquerade.clone();
        Self { datapath, wanted, cluster, state: Mutex::default() }
    }

    /// Brings programs and maps to what links, addresses, routes and the pods' prefixes ask for. What is
    /// right already is left alone. `told` says who else is behind addresses, when the node is no longer.
    pub(crate) fn arrange(
        &self,
        pods: &[IpNetwork],
        told: &BTreeMap<IpNetwork, u32>,
    ) -> Result<(), Error> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let view = Netlink::open()
            .and_then(|mut netlink| View::read(&mut netlink))
            .map_err(trouble("read", "the node's links, addresses and routes"))?;
        let failed = |operation, object: String| {
            move |source: podwire_datapath::Error| Error::Datapath {
                operation,
                object,
                source: source.into(),
            }
        };
        let nat = self.datapath.nat().map_err(failed("open", "the mappings".into()))?;
        let before: BTreeSet<u32> = self
            .datapath
            .uplinks()
            .map_err(failed("list", "the uplinks".into()))?
            .into_iter()
            .collect();
        let families = self.wanted.families;
        let mut plan = view.plan(&self.wanted.devices, self.wanted.ports, &before);
        let (mut pods, mut exclude) = (pods.to_vec(), self.wanted.exclude.clone());
        pods.retain(|prefix| families.contain(prefix));
        exclude.extend(&self.cluster);
        if families == Families::None {
            plan.uplinks.clear();
        }
        // What is to be masqueraded is said first: an uplink that is new knows it from its first packet.
        nat.set_prefixes(&pods, &exclude)
            .map_err(failed("write", "the masqueraded prefixes".into()))?;
        for (&index, uplink) in &plan.uplinks {
            match self.datapath.set_uplink(index, &uplink.config) {
                Ok(()) if !before.contains(&index) => {
                    let config = &uplink.config;
                    tracing::info!(link = uplink.name, ipv4 = ?config.ipv4, ipv6 = ?config.ipv6, "uplink");
                }
                Ok(()) => {}
                // It went while we looked; its going is told.
                Err(error) if error.is_not_found() => {}
                Err(error) => {
                    return Err(failed("attach", format!("the uplink {}", uplink.name))(error));
                }
            }
        }
        for &index in before.iter().filter(|index| !plan.uplinks.contains_key(index)) {
            self.datapath
                .remove_uplink(index)
                .map_err(failed("detach", format!("the uplink {index}")))?;
            tracing::info!(index, "no uplink any more");
        }
        let lost = nat
            .retain_addresses(|address| {
                families != Families::None && plan.addresses.contains(&address)
            })
            .map_err(failed("remove", "mappings".into()))?;
        if lost != 0 {
            tracing::warn!(mappings = lost, "their address is not the node's any more: dropped");
        }
        if state.addresses != plan.addresses {
            self.tell(&plan.addresses, told)
                .map_err(failed("write", "the node's addresses".into()))?;
            state.addresses = plan.addresses;
        }
        Ok(())
    }

    /// Has the ipcache say of exactly these addresses, among those that no endpoint has, that the node is
    /// behind them. Nobody else says that of an address, so what is said of others is from before.
    fn tell(
        &self,
        addresses: &BTreeSet<IpAddr>,
        told: &BTreeMap<IpNetwork, u32>,
    ) -> Result<(), podwire_datapath::Error> {
        let rows = self.datapath.tables().ipcache()?;
        let whole = rows.iter().filter(|row| IpNetwork::from(row.prefix.ip()) == row.prefix);
        // What the node says to itself no pod sees.
        let mut missing: BTreeSet<_> =
            addresses.iter().copied().filter(|one| !one.is_loopback()).collect();
        let mut gone = Vec::new();
        for row in whole {
            let is_told = row.slot.is_some() || row.identity == identity::HOST;
            if is_told && !missing.remove(&row.prefix.ip()) && row.slot.is_none() {
                gone.push(row.prefix);
            }
        }
        let missing: Vec<_> =
            missing.into_iter().map(|address| (address.into(), identity::HOST)).collect();
        self.datapath.set_identities(&missing)?;
        for prefix in gone {
            if let Some(&identity) = told.get(&prefix) {
                self.datapath.set_identities(&[(prefix, identity)])?;
            } else {
                let _ = self.datapath.forget_identity(prefix)?;
            }
        }
        Ok(())
    }
}

/// Follows the node's links, addresses and routes until it is dropped.
pub(crate) async fn follow(shared: Arc<Shared>) {
    loop {
        match Watch::open(&[Topic::Links, Topic::Addresses, Topic::Routes]) {
            Ok(mut watch) => {
                // What happened while nobody watched.
                arrange(&shared).await;
                while wait(&mut watch).await {
                    arrange(&shared).await;
                }
                tracing::warn!("the watch of devices broke; opening another one");
            }
            Err(error) => {
                tracing::error!(error = chain(&error), "watching devices: trying again");
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
}

async fn arrange(shared: &Arc<Shared>) {
    let working = shared.clone();
    let arrange = move || match &working.uplinks {
        Some(uplinks) => {
            let pods = working.node.prefixes()?;
            working.node.with_identities(|told| uplinks.arrange(&pods, told))
        }
        None => Ok(()),
    };
    match tokio::task::spawn_blocking(arrange).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::error!(error = chain(&error), "following devices"),
        Err(error) => tracing::error!(%error, "following devices"),
    }
}

/// Waits for something that matters, and then a moment for what comes with it; tells whether the watch
/// goes on.
async fn wait(watch: &mut Watch) -> bool {
    loop {
        match watch.next().await {
            None => return false,
            Some(event) if matters(&event) => break,
            Some(_) => {}
        }
    }
    let end = Instant::now() + BURST;
    loop {
        match tokio::time::timeout_at(end, watch.next()).await {
            Ok(None) => return false,
            Ok(Some(_)) => {}
            Err(_) => return true,
        }
    }
}

/// Pods come and go, and with them links that bear our mark, or will in a moment.
fn matters(event: &Event) -> bool {
    match event {
        Event::Lost => true,
        Event::Present(object) | Event::Absent(object) => match object {
            Object::Link(link) => {
                !(is_ours(link) || link.is_veth() && link.name.as_bytes().starts_with(b"pw"))
            }
            Object::Address(_) => true,
            // Prefixes of pods come with a route of ours.
            Object::Route(route) => {
                is_default(route) || route.protocol == RouteProtocol(ROUTE_PROTOCOL)
            }
            _ => false,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_are_names_with_wildcards() {
        let names =
            |pattern: &str, name: &str| pattern.parse::<DevicePattern>().unwrap().names(name);
        assert!(names("eth0", "eth0") && !names("eth0", "eth01"));
        assert!(names("eth*", "eth") && names("eth*", "eth12") && !names("eth*", "veth0"));
        assert!(names("e?h*.7", "eth0.7") && !names("e?h*.7", "eth0.70"));
        assert!(names("*", "anything"));
        let not: DevicePattern = "!wg*".parse().unwrap();
        assert!(not.excludes("wg0") && !not.names("wg0") && !not.excludes("eth0"));
        assert_eq!(not.to_string(), "!wg*");
        for wrong in ["", "!", "a b", "a/b", "!!a"] {
            assert!(wrong.parse::<DevicePattern>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn families_are_told_apart() {
        let (v4, v6) = ("10.0.0.0/8".parse().unwrap(), "fd00::/8".parse().unwrap());
        let of = |families: Families| (families.contain(&v4), families.contain(&v6));
        assert_eq!(of(Families::None), (false, false));
        assert_eq!(of(Families::V4), (true, false));
        assert_eq!(of(Families::V6), (false, true));
        assert_eq!(of(Families::Both), (true, true));
    }
}
