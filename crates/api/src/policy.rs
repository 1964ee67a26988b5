//! What endpoints may send and receive, and who is behind addresses.

use std::fmt;

use ipnetwork::IpNetwork;
use serde::{Deserialize, Deserializer, Serialize};

/// The identity of endpoints that nobody gave another.
pub const UNMANAGED_IDENTITY: u32 = 3;

pub(crate) const fn unmanaged() -> u32 {
    UNMANAGED_IDENTITY
}

/// `PUT /v1/endpoints/{container_id}/{ifname}/identity`: who the endpoint is to others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IdentityRequest {
    /// 2 is whoever is not known, 3 an endpoint that nobody gave an identity; larger ones, below 2³¹, mean what whoever
    /// gives them means. 1 is the node itself, and refused.
    pub identity: u32,
}

/// `PUT` and `GET /v1/endpoints/{container_id}/{ifname}/policy`: what the endpoint may send and receive.
/// Empty, everything passes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Policy {
    /// What it may receive.
    #[serde(default)]
    pub ingress: PolicyDirection,
    /// What it may send.
    #[serde(default)]
    pub egress: PolicyDirection,
}

/// One direction of a [`Policy`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PolicyDirection {
    /// What becomes of packets that no rule fits.
    #[serde(default)]
    pub default: PolicyAction,
    /// In no order: a rule that denies wins over all that allow.
    #[serde(default)]
    pub rules: Vec<PolicyRule>,
}

/// What becomes of a packet.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PolicyAction {
    /// It passes.
    #[default]
    Allow,
    /// It is dropped.
    Deny,
}

impl fmt::Display for PolicyAction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Allow => "allow",
            Self::Deny => "deny",
        })
    }
}

/// One rule. Its words are checked by the agent, and kept as they were said.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PolicyRule {
    /// What becomes of packets that fit.
    pub action: PolicyAction,
    /// The other side: `everybody`, `identity:NUMBER`, `identity:host`, `identity:world`,
    /// `identity:unmanaged`, an address or a prefix.
    #[serde(default = "everybody")]
    pub peer: String,
    /// `any`, `tcp`, `udp`, `sctp`, `icmp` or a number.
    #[serde(default = "any")]
    pub protocol: String,
    /// The receiver's ports: `any`, `80` or `8000-8099`.
    #[serde(default = "any", deserialize_with = "text_or_number")]
    pub ports: String,
}

/// `GET` and `PUT /v1/ipcache`, of which the body is a list: who is behind a prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PrefixIdentity {
    /// An address with its full length, or a wider prefix; the narrowest that has an address counts.
    pub prefix: IpNetwork,
    /// Its identity. 1 is refused: the agent finds the node's own addresses by itself.
    pub identity: u32,
}

/// The answer to changes of many prefixes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PrefixCount {
    /// How many were set or forgotten.
    pub prefixes: u64,
}

fn everybody() -> String {
    "everybody".into()
}

fn any() -> String {
    "any".into()
}

fn text_or_number<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Ports {
        Number(u64),
        Text(String),
    }
    Ok(match Ports::deserialize(deserializer)? {
        Ports::Number(number) => number.to_string(),
        Ports::Text(text) => text,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn policies_look_as_documented() {
        let short = json!({"ingress": {"default": "deny", "rules": [
            {"action": "allow", "protocol": "tcp", "ports": 80},
            {"action": "deny", "peer": "10.0.0.0/8"},
        ]}});
        let policy: Policy = serde_json::from_value(short).unwrap();
        let full = json!({
            "ingress": {"default": "deny", "rules": [
                {"action": "allow", "peer": "everybody", "protocol": "tcp", "ports": "80"},
                {"action": "deny", "peer": "10.0.0.0/8", "protocol": "any", "ports": "any"},
            ]},
            "egress": {"default": "allow", "rules": []},
        });
        assert_eq!(serde_json::to_value(&policy).unwrap(), full);
        assert_eq!(serde_json::from_value::<Policy>(full).unwrap(), policy);
        for wrong in [json!({"in": {}}), json!({"ingress": {"rules": [{"peer": "everybody"}]}})] {
            assert!(serde_json::from_value::<Policy>(wrong).is_err());
        }
    }

    #[test]
    fn prefixes_look_as_documented() {
        let value = json!([{"prefix": "10.0.0.0/8", "identity": 700}]);
        let entries: Vec<PrefixIdentity> = serde_json::from_value(value.clone()).unwrap();
        assert_eq!(serde_json::to_value(entries).unwrap(), value);
    }
}
