//! What is said about pools, leases and what is set aside.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

use crate::EndpointId;

/// `GET /v1/leases`: one lease.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// Whose.
    #[serde(flatten)]
    pub id: EndpointId,
    /// At most one address per family.
    pub addresses: Vec<IpAddr>,
    /// The pools they are of, each once; empty where no pool has them any more.
    #[serde(default)]
    pub pools: Vec<String>,
    /// The pod, as `namespace/name`, where the runtime named one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<String>,
    /// Pending or confirmed.
    pub state: LeaseState,
    /// Seconds until it is taken back unless it is confirmed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_in: Option<u64>,
}

/// Whether an endpoint stands behind a lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum LeaseState {
    /// Asked for, no endpoint yet; expires by itself.
    Pending,
    /// Belongs to an endpoint.
    Confirmed,
}

/// `GET /v1/pools`: one pool.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pool {
    /// Its name.
    pub name: String,
    /// Where its addresses come from, IPv4 first.
    pub cidrs: Vec<CidrUsage>,
    /// Ranges that are never granted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub excluded: Vec<IpNetwork>,
    /// Seconds that a released address rests.
    pub cooldown: u64,
    /// Seconds that a lease waits for its endpoint.
    pub pending_ttl: u64,
    /// How often no IPv4 address was left since the agent started.
    pub exhausted_v4: u64,
    /// The same for IPv6.
    pub exhausted_v6: u64,
}

/// How full one CIDR of a pool is. Counts stop at 2^64-1.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CidrUsage {
    /// The CIDR.
    pub cidr: IpNetwork,
    /// Addresses that can be leased at all; of a drained CIDR, those that are still held.
    pub size: u64,
    /// Addresses of endpoints.
    pub used: u64,
    /// Addresses of pending leases.
    pub pending: u64,
    /// Released addresses that rest before they are given out again.
    pub cooling: u64,
    /// Addresses set aside, the router's among them.
    pub reserved: u64,
    /// Addresses that nobody has, kept for the sticky names that had them.
    #[serde(default)]
    pub kept: u64,
    /// Whether nothing is leased from it any more.
    #[serde(default)]
    pub drained: bool,
}

impl CidrUsage {
    /// Addresses that can be leased now, those that rest included.
    #[must_use]
    pub fn available(&self) -> u64 {
        let taken = [self.used, self.pending, self.reserved, self.kept];
        taken.into_iter().fold(self.size, u64::saturating_sub)
    }
}

/// `PUT /v1/pools/{name}`: makes a pool.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PoolRequest {
    /// Where its addresses come from.
    pub cidrs: Vec<IpNetwork>,
    /// Ranges that are never granted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub excluded: Vec<IpNetwork>,
    /// Seconds that a released address rests; the node's default otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cooldown: Option<u64>,
    /// Seconds that a lease waits for its endpoint; the node's default otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pending_ttl: Option<u64>,
}

/// `POST /v1/pools/{name}/cidrs`: changes what a pool is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CidrRequest {
    /// What to do.
    pub edit: CidrEdit,
    /// With which CIDR.
    pub cidr: IpNetwork,
}

/// What can be done with a CIDR of a pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum CidrEdit {
    /// Lease from it as well; or again, if it was drained.
    Add,
    /// Lease nothing from it any more. Leases stay.
    Drain,
    /// Take it away; refused while something of it is held.
    Remove,
}

/// `GET /v1/reservations` and `POST /v1/reservations`: an address that is leased to nobody.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reservation {
    /// The address.
    pub address: IpAddr,
    /// For what.
    pub why: String,
}

/// `GET /v1/sticky`: the addresses that a name gets whenever it asks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sticky {
    /// `namespace/name` of the pod.
    pub name: String,
    /// At most one address per family.
    pub addresses: Vec<IpAddr>,
    /// Who has a lease of them now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub holder: Option<EndpointId>,
}

/// `POST /v1/ipam/check`: compares leases, endpoints and kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CheckRequest {
    /// What becomes of disagreements.
    #[serde(default)]
    pub disagreements: OnDisagreement,
}

/// What a check does about what it finds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum OnDisagreement {
    /// Tell it.
    #[default]
    Report,
    /// Tell it, and put right what can be put right.
    Repair,
}

/// The answer to a [`CheckRequest`].
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct CheckReply {
    /// How many leases were looked at.
    pub leases: u64,
    /// How many endpoints were.
    pub endpoints: u64,
    /// What does not agree; empty when all is well.
    pub disagreements: Vec<Disagreement>,
}

/// Something that leases, endpoints and kernel do not agree on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disagreement {
    /// The lease, endpoint, slot or link.
    pub object: String,
    /// What is wrong with it.
    pub found: String,
    /// What a repair does about it; what to do where none can.
    pub remedy: String,
    /// What became of it.
    pub outcome: Outcome,
}

/// What became of a [`Disagreement`].
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", tag = "outcome", content = "why")]
#[non_exhaustive]
pub enum Outcome {
    /// It still is there.
    Open,
    /// It was put right.
    Repaired,
    /// The repair failed, for this reason.
    Failed(String),
    /// It cannot be put right from here.
    Unrepairable,
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn edits_look_as_documented() {
        let edit = CidrRequest { edit: CidrEdit::Drain, cidr: "10.1.0.0/24".parse().unwrap() };
        let value = json!({"edit": "drain", "cidr": "10.1.0.0/24"});
        assert_eq!(serde_json::to_value(edit).unwrap(), value);
        assert_eq!(serde_json::from_value::<CidrRequest>(value).unwrap(), edit);
        let typo = json!({"cidrs": [], "exclude": []});
        assert!(serde_json::from_value::<PoolRequest>(typo).is_err());
    }

    #[test]
    fn outcomes_look_as_documented() {
        let outcome = |outcome| serde_json::to_value(outcome).unwrap();
        assert_eq!(outcome(Outcome::Open), json!({"outcome": "open"}));
        let failed = outcome(Outcome::Failed("disk full".into()));
        assert_eq!(failed, json!({"outcome": "failed", "why": "disk full"}));
    }

    #[test]
    fn what_is_available_is_what_nobody_has() {
        let usage = CidrUsage {
            cidr: "10.1.0.0/29".parse().unwrap(),
            size: 6,
            used: 1,
            pending: 1,
            cooling: 2,
            reserved: 1,
            kept: 1,
            drained: false,
        };
        assert_eq!(usage.available(), 2);
    }
}
