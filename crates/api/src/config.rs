//! What an agent runs with, and what of it can be changed meanwhile.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

use crate::{AttachMode, NodeConfig};

/// `GET /v1/config`: what the agent runs with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentConfig {
    /// What the pod's side has to know.
    pub node: NodeConfig,
    /// Where addresses come from.
    pub pod_cidrs: Vec<IpNetwork>,
    /// The pools of pods that name none, in order.
    #[serde(default)]
    pub default_pools: Vec<String>,
    /// The pools of which blocks are claimed, as the option says them.
    #[serde(default)]
    pub cluster_pools: Vec<String>,
    /// Seconds that a released address rests.
    #[serde(default)]
    pub cooldown: u64,
    /// Seconds that a lease waits for its endpoint.
    #[serde(default)]
    pub pending_ttl: u64,
    /// The folder of manifests that is watched.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub manifests: Option<PathBuf>,
    /// How programs are attached.
    pub attach: AttachMode,
    /// How many endpoints the node has room for.
    pub slots: u32,
    /// How many directions of confirmed flows there is room for: two a flow.
    #[serde(default)]
    pub flows: u32,
    /// How many flows there is room for that only one side has spoken in, or that have ended.
    #[serde(default)]
    pub pending_flows: u32,
    /// `--state-dir`.
    pub state_dir: PathBuf,
    /// `--run-dir`.
    pub run_dir: PathBuf,
    /// `--bpffs`.
    pub bpffs: PathBuf,
    /// What can be changed while the agent runs, by name.
    #[serde(default)]
    pub settings: BTreeMap<String, Setting>,
}

/// Something that can be changed while the agent runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Setting {
    /// Its value, as [`ConfigChange`] takes it.
    pub value: String,
    /// Who says so.
    pub origin: Origin,
}

/// Where the value of a [`Setting`] comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Origin {
    /// Nobody has said anything.
    Default,
    /// An option that the agent was started with.
    Option,
    /// It was set while an agent ran, and counts more than an option, also after a restart.
    Set,
}

impl Origin {
    /// Its name.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Default => "default",
            Self::Option => "option",
            Self::Set => "set",
        }
    }
}

/// `PATCH /v1/config`: changes settings, all of them or none.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConfigChange {
    /// New values by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub set: BTreeMap<String, String>,
    /// What is to be again as the options say, or by default.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub unset: BTreeSet<String>,
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_change_looks_as_documented() {
        let value = json!({"set": {"timeout.icmp": "9"}, "unset": ["timeout.tcp-ended"]});
        let change: ConfigChange = serde_json::from_value(value.clone()).unwrap();
        assert_eq!(change.set["timeout.icmp"], "9");
        assert_eq!(serde_json::to_value(&change).unwrap(), value);
        assert_eq!(
            serde_json::from_value::<ConfigChange>(json!({})).unwrap(),
            ConfigChange::default()
        );
        serde_json::from_value::<ConfigChange>(json!({"remove": []})).unwrap_err();
    }

    #[test]
    fn a_setting_says_whence_it_is() {
        let setting = Setting { value: "9".into(), origin: Origin::Set };
        assert_eq!(serde_json::to_value(&setting).unwrap(), json!({"value": "9", "origin": "set"}));
    }
}
