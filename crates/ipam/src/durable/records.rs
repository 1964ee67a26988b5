//! What is written of each thing, as JSON: readable with any tool, and fields can be added.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use ipnetwork::IpNetwork;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::{Change, Error};
use crate::{Addresses, Lease, LeaseState, Owner, PoolConfig, Time};

/// `boot` and `format`.
pub(super) const META: &str = "ipam";
/// By name.
pub(super) const POOLS: &str = "pools";
/// By container id and interface, with a zero byte between them.
pub(super) const LEASES: &str = "leases";
/// By name.
pub(super) const STICKY: &str = "sticky";
/// By address; the value is the reason.
pub(super) const RESERVATIONS: &str = "reservations";
/// By address.
pub(super) const COOLING: &str = "cooling";

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct PoolRecord {
    /// Its place among the pools.
    pub(super) position: usize,
    cidrs: Vec<String>,
    excluded: Vec<String>,
    drained: Vec<String>,
    cooldown: Duration,
    pending_ttl: Duration,
}

impl PoolRecord {
    pub(super) fn new(position: usize, config: &PoolConfig) -> Self {
        let list = |cidrs: &[IpNetwork]| cidrs.iter().map(ToString::to_string).collect();
        Self {
            position,
            cidrs: list(&config.cidrs),
            excluded: list(&config.excluded),
            drained: list(&config.drained),
            cooldown: config.cooldown,
            pending_ttl: config.pending_ttl,
        }
    }

    pub(super) fn config(&self, name: &str) -> Result<PoolConfig, ipnetwork::IpNetworkError> {
        let list =
            |cidrs: &[String]| cidrs.iter().map(|cidr| cidr.parse()).collect::<Result<_, _>>();
        let mut config = PoolConfig::new(name, list(&self.cidrs)?);
        config.excluded = list(&self.excluded)?;
        config.drained = list(&self.drained)?;
        config.cooldown = self.cooldown;
        config.pending_ttl = self.pending_ttl;
        Ok(config)
    }
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct LeaseRecord {
    addresses: Vec<IpAddr>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pod: Option<String>,
    /// Only of a pending lease.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    expires: Option<Duration>,
}

impl LeaseRecord {
    pub(super) fn new(lease: &Lease) -> Self {
        Self {
            addresses: lease.addresses.iter().collect(),
            pod: lease.owner.pod().map(ToOwned::to_owned),
            expires: match lease.state {
                LeaseState::Pending { expires } => Some(expires.since_epoch()),
                LeaseState::Confirmed => None,
            },
        }
    }

    pub(super) fn lease(&self, owner: &Owner) -> Result<Lease, crate::Error> {
        Ok(Lease {
            owner: self.pod.as_ref().map_or_else(|| owner.clone(), |pod| owner.with_pod(pod)),
            addresses: Addresses::from_list(&self.addresses)?,
            state: self.expires.map_or(LeaseState::Confirmed, |expires| LeaseState::Pending {
                expires: Time::new(expires),
            }),
        })
    }
}

pub(super) fn lease_key(owner: &Owner) -> String {
    format!("{}\0{}", owner.container_id(), owner.ifname())
}

pub(super) fn owner(key: &str) -> Option<Owner> {
    key.split_once('\0').map(|(container_id, ifname)| Owner::new(container_id, ifname))
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct StickyRecord {
    pub(super) addresses: Vec<IpAddr>,
    /// Whether it outlives its lease.
    pub(super) firm: bool,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct CoolingRecord {
    /// Counts releases.
    pub(super) number: u64,
    pub(super) until: Duration,
}

/// Reads the records of a table, in the order of their keys.
pub(super) fn decode<T: DeserializeOwned>(
    table: &'static str,
    entries: Vec<super::Entry>,
) -> Result<Vec<(String, T)>, Error> {
    let decoded = entries.into_iter().map(|(key, value)| {
        let key = String::from_utf8(key).map_err(|error| {
            let key = String::from_utf8_lossy(error.as_bytes()).into_owned();
            unusable(table, &key)(error.utf8_error())
        })?;
        let value = serde_json::from_slice(&value).map_err(unusable(table, &key))?;
        Ok((key, value))
    });
    decoded.collect()
}

/// The error of a record.
pub(super) fn unusable<E>(table: &'static str, key: &str) -> impl Fn(E) -> Error + use<E>
where
    E: std::error::Error + Send + Sync + 'static,
{
    let key = key.to_owned();
    move |source| Error::Record { table, key: key.clone(), source: Arc::new(source) }
}

/// Writes a record.
pub(super) fn put(table: &'static str, key: impl Into<Vec<u8>>, record: &impl Serialize) -> Change {
    let json = serde_json::to_vec(record).expect("records have nothing that JSON has not");
    Change::put(table, key, json)
}
