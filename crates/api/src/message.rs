use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

use crate::{EndpointId, FlowUsage, Mac, MemoryUsage, NodeName, Pool};

/// The Kubernetes pod an endpoint belongs to, as the runtime named it. Kept for display only.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct PodRef {
    /// `K8S_POD_NAMESPACE`.
    pub namespace: String,
    /// `K8S_POD_NAME`.
    pub name: String,
    /// `K8S_POD_UID`, where the runtime gives one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<String>,
}

/// `POST /v1/leases`: asks for addresses.
///
/// The lease is on the agent's disk, but pending: it expires by itself unless
/// `PUT /v1/endpoints/..` confirms it. Asking again for the same endpoint gives the same addresses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseRequest {
    /// For which endpoint.
    #[serde(flatten)]
    pub id: EndpointId,
    /// The pod, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<PodRef>,
    /// The CNI network's name, so that garbage collection knows whose lease it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<String>,
    /// The addresses wanted, at most one per family.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<IpAddr>,
    /// What becomes of a family that none of `addresses` is of.
    #[serde(default, skip_serializing_if = "is_default")]
    pub others: OtherFamilies,
    /// The pod's annotations that begin with [`ANNOTATION_PREFIX`](crate::ANNOTATION_PREFIX), as the
    /// runtime passed them. Others are none of the agent's business.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

impl LeaseRequest {
    /// Asks for an address of every family that the node has.
    #[must_use]
    pub const fn new(id: EndpointId) -> Self {
        Self {
            id,
            pod: None,
            network: None,
            addresses: Vec::new(),
            others: OtherFamilies::Lease,
            annotations: BTreeMap::new(),
        }
    }
}

/// What becomes of a family of which no address was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum OtherFamilies {
    /// The next free address of each family that the node has.
    #[default]
    Lease,
    /// None: somebody else has chosen the addresses, and chose none of that family.
    Omit,
}

/// The answer to a [`LeaseRequest`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseReply {
    /// The leased addresses, each with its full prefix length (/32, /128): at most one per family.
    pub addresses: Vec<IpNetwork>,
    /// What the pod's side has to know of the node.
    pub node: NodeConfig,
}

/// What the pod's side has to know of the node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeConfig {
    /// The node's name, which the marks carry.
    pub name: NodeName,
    /// The pods' gateway.
    pub router: Router,
    /// MTU of the interfaces.
    pub mtu: u32,
    /// MTU of the pods' default route; smaller than `mtu` where packets get encapsulated.
    pub route_mtu: u32,
}

/// The router addresses, the pods' gateway; the families that are there are the families of the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Router {
    /// IPv4 gateway.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub v4: Option<Ipv4Addr>,
    /// IPv6 gateway.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub v6: Option<Ipv6Addr>,
}

/// `PUT /v1/endpoints/{container_id}/{ifname}`: makes the wired interface an endpoint.
///
/// Idempotent: the same request again answers the same endpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointRequest {
    /// The host end of the veth pair, named [`EndpointId::host_link`] unless it was adopted.
    pub host_link: String,
    /// Its index, in the agent's namespace.
    pub ifindex: u32,
    /// MAC of the container's end.
    pub mac: Mac,
    /// MAC of the host's end.
    pub host_mac: Mac,
    /// The addresses that were leased.
    pub addresses: Vec<IpAddr>,
    /// The CNI network's name, so that garbage collection knows whose endpoint it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<String>,
    /// The pod, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<PodRef>,
    /// Whose interface it is.
    #[serde(default, skip_serializing_if = "is_default")]
    pub interface: Interface,
    /// Whether somebody else needs the host link's queueing disciplines.
    #[serde(default, skip_serializing_if = "is_default")]
    pub disciplines: Disciplines,
}

/// Whose an endpoint's interface is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Interface {
    /// Made by podwire, which is its gateway.
    #[default]
    Own,
    /// Made by another plugin, which routes it: podwire was chained after that one. Its host link has
    /// the mark of [`Mark::Chained`](crate::Mark::Chained), and podwire never deletes it.
    Adopted,
}

/// Who has the queueing disciplines of a host link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Disciplines {
    /// Nobody else: podwire may attach its programs as filters of one, which is quick.
    #[default]
    Free,
    /// Somebody else will want them, the `bandwidth` plugin say: podwire attaches by TCX links.
    Others,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// An endpoint as the agent knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    /// Container and interface.
    #[serde(flatten)]
    pub id: EndpointId,
    /// The host end of the veth pair.
    pub host_link: String,
    /// Its index.
    pub ifindex: u32,
    /// MAC of the container's end.
    pub mac: Mac,
    /// MAC of the host's end.
    pub host_mac: Mac,
    /// Its addresses, at most one per family.
    pub addresses: Vec<IpAddr>,
    /// Its place in the datapath's slot array.
    pub slot: u32,
    /// How packets are handed to it.
    pub delivery: Delivery,
    /// Creation, in seconds since 1970.
    pub created: u64,
    /// The CNI network's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<String>,
    /// The pod, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<PodRef>,
    /// Whose interface it is.
    #[serde(default, skip_serializing_if = "is_default")]
    pub interface: Interface,
    /// Who it is to others.
    #[serde(default = "crate::policy::unmanaged")]
    pub identity: u32,
}

/// How the datapath hands packets to an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Delivery {
    /// Straight into the container's end of the pair.
    Peer,
    /// Through the host link's egress, since something not ours (a queueing discipline, a filter)
    /// sits there.
    Egress,
    /// Through the host stack in both directions, since something not ours sits at the host link's
    /// ingress, or the interface is another plugin's.
    Stack,
}

/// The answer to both deletes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Removal {
    /// Whether there was something.
    pub outcome: Removed,
}

/// Whether there was something to remove.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Removed {
    /// It was there and is gone.
    Removed,
    /// Nothing was there.
    Absent,
}

/// `POST /v1/gc`: removes everything of a network but some endpoints.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GcRequest {
    /// The CNI network's name.
    pub network: String,
    /// What must stay.
    pub valid: Vec<EndpointId>,
}

/// The answer to a [`GcRequest`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GcReply {
    /// What was removed: endpoints, and what killed ADDs have left.
    pub removed: Vec<EndpointId>,
    /// What could not be removed, and why, after everything was tried.
    pub failed: Vec<String>,
}

/// `GET /v1/endpoints/{container_id}/{ifname}/inspection`: the endpoint, compared with the kernel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inspection {
    /// What the agent knows.
    pub endpoint: Endpoint,
    /// How the programs and maps differ from that; empty when all is well.
    pub differences: Vec<Difference>,
}

/// One thing that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Difference {
    /// What was looked at.
    pub what: String,
    /// What it should be.
    pub expected: String,
    /// What it is.
    pub found: String,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: expected {}, found {}", self.what, self.expected, self.found)
    }
}

/// `GET /v1/status`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// The node's name.
    pub node: NodeName,
    /// The agent's version.
    pub version: String,
    /// The agent's process id.
    pub pid: u32,
    /// Seconds since the agent started.
    pub uptime: u64,
    /// Number of endpoints.
    pub endpoints: u64,
    /// How many endpoints the node has room for.
    pub slots: u32,
    /// The pools and how full they are.
    pub pools: Vec<Pool>,
    /// The pools of pods that name none, in order.
    pub default_pools: Vec<String>,
    /// How programs are attached.
    pub attach: AttachMode,
    /// How full the tables of flows are.
    pub flows: FlowUsage,
    /// What podwire takes of the machine's memory.
    pub memory: MemoryUsage,
    /// What keeps traffic from working, or will.
    pub problems: Vec<Problem>,
    /// What the agent repaired when it started.
    pub repairs: Vec<Repair>,
}

/// How programs are attached to links.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum AttachMode {
    /// Pinned TCX links (Linux 6.6).
    Tcx,
    /// Filters of a clsact queueing discipline.
    Tc,
    /// Filters, but TCX links at the router pair and where somebody else needs the queueing disciplines.
    Mixed,
}

/// Something on the node that blocks pods' traffic, or will.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Problem {
    /// What was found.
    pub what: String,
    /// What it breaks.
    pub why: String,
    /// What to do about it.
    pub fix: String,
    /// Whether it certainly is so.
    #[serde(default)]
    pub effect: Effect,
}

/// What a [`Problem`] does to pods.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Effect {
    /// It may cost them traffic; what podwire can see does not tell.
    #[default]
    Possible,
    /// It costs them traffic now.
    Certain,
}

/// Something the agent found wrong when it started, and put right.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Repair {
    /// The endpoint, link or pin.
    pub object: String,
    /// What was wrong with it.
    pub found: String,
    /// What was done.
    pub done: String,
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn id() -> EndpointId {
        EndpointId::new("c1", "eth0").unwrap()
    }

    #[test]
    fn lease_messages_look_as_documented() {
        let request = LeaseRequest::new(id());
        let value = json!({"container_id": "c1", "ifname": "eth0"});
        assert_eq!(serde_json::to_value(&request).unwrap(), value);
        assert_eq!(serde_json::from_value::<LeaseRequest>(value).unwrap(), request);

        let annotations = BTreeMap::from([("podwire.io/pool".to_owned(), "blue".to_owned())]);
        let request = LeaseRequest { annotations, ..request };
        let value = json!({
            "container_id": "c1", "ifname": "eth0", "annotations": {"podwire.io/pool": "blue"},
        });
        assert_eq!(serde_json::to_value(&request).unwrap(), value);
        assert_eq!(serde_json::from_value::<LeaseRequest>(value).unwrap(), request);

        let reply = LeaseReply {
            addresses: vec!["10.1.0.2/32".parse().unwrap(), "fd00::2/128".parse().unwrap()],
            node: NodeConfig {
                name: "n1".parse().unwrap(),
                router: Router { v4: Some(Ipv4Addr::new(10, 1, 0, 1)), v6: None },
                mtu: 1500,
                route_mtu: 1450,
            },
        };
        let value = json!({
            "addresses": ["10.1.0.2/32", "fd00::2/128"],
            "node": {"name": "n1", "router": {"v4": "10.1.0.1"}, "mtu": 1500, "route_mtu": 1450},
        });
        assert_eq!(serde_json::to_value(&reply).unwrap(), value);
        assert_eq!(serde_json::from_value::<LeaseReply>(value).unwrap(), reply);
    }

    #[test]
    fn endpoint_looks_as_documented() {
        let endpoint = Endpoint {
            id: id(),
            host_link: "pwaaaaaaaaaaaaa".into(),
            ifindex: 7,
            mac: Mac([2, 0, 0, 0, 0, 1]),
            host_mac: Mac([2, 0, 0, 0, 0, 2]),
            addresses: vec!["10.1.0.2".parse().unwrap()],
            slot: 3,
            delivery: Delivery::Peer,
            created: 1,
            network: Some("podnet".into()),
            pod: Some(PodRef { namespace: "ns".into(), name: "p".into(), uid: None }),
            interface: Interface::Own,
            identity: 4711,
        };
        let value = json!({
            "container_id": "c1", "ifname": "eth0", "host_link": "pwaaaaaaaaaaaaa", "ifindex": 7,
            "mac": "02:00:00:00:00:01", "host_mac": "02:00:00:00:00:02", "addresses": ["10.1.0.2"],
            "slot": 3, "delivery": "peer", "created": 1, "network": "podnet", "identity": 4711,
            "pod": {"namespace": "ns", "name": "p"},
        });
        assert_eq!(serde_json::to_value(&endpoint).unwrap(), value);
        assert_eq!(serde_json::from_value::<Endpoint>(value).unwrap(), endpoint);
    }

    #[test]
    fn wrong_names_do_not_parse() {
        let value = json!({"container_id": "../c1", "ifname": "eth0"});
        let error = serde_json::from_value::<LeaseRequest>(value).unwrap_err();
        assert!(error.to_string().contains("container id"), "{error}");
    }
}
