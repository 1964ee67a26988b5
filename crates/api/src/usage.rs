//! How full the datapath's tables are, and what they take.

use serde::{Deserialize, Serialize};

/// How full the tables of flows are, of [`Status`](crate::Status).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct FlowUsage {
    /// Directions of confirmed flows: two a flow.
    pub confirmed: u64,
    /// How many there is room for.
    pub capacity: u64,
    /// Flows that only one side has spoken in, or that have ended.
    pub pending: u64,
    /// How many there is room for; the oldest make way for new ones.
    pub pending_capacity: u64,
    /// Whether the table of confirmed flows is so full that idle ones are forgotten sooner.
    pub pressure: bool,
}

/// What podwire takes of the machine's memory, of [`Status`](crate::Status).
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct MemoryUsage {
    /// The agent's resident memory, in bytes, without the maps that it shares with the programs.
    pub agent: u64,
    /// Kernel memory of all maps, in bytes.
    pub maps_total: u64,
    /// Map by map.
    pub maps: Vec<MapUsage>,
}

/// What one map takes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MapUsage {
    /// Its name.
    pub name: String,
    /// How many entries it has, where that is known without reading them all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entries: Option<u64>,
    /// How many there is room for.
    pub capacity: u64,
    /// Kernel memory, in bytes.
    pub bytes: u64,
}
