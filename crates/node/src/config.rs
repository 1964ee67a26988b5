use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::time::Duration;

use ipnetwork::IpNetwork;
use podwire_api::{
    AgentConfig, AttachMode, DEFAULT_BPFFS, DEFAULT_RUN_DIR, DEFAULT_STATE_DIR, NodeConfig,
    NodeName, Router,
};
use podwire_datapath::abi::Verdict;
use podwire_ipam::blocks::ClusterPool;

use crate::{Error, IdleTimeout, Masquerade, choice, cluster_pool};

/// What an agent runs with. [`Config::new`] gives defaults for everything but name and prefixes.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Config {
    /// The node's name, which all marks carry.
    pub node: NodeName,
    /// Where pods get their addresses from, both families in any number.
    pub pod_cidrs: Vec<IpNetwork>,
    /// The pods' gateways; a family that is not named gets the first address of its first prefix.
    pub router: Vec<IpAddr>,
    /// MTU of the pods' interfaces; `None` for that of the interface with the default route.
    pub mtu: Option<u32>,
    /// MTU of the pods' default route, at most that of the interfaces, and the same if `None`.
    pub route_mtu: Option<u32>,
    /// The pools of pods that nobody chose one for, in the order in which they are tried.
    pub default_pools: Vec<String>,
    /// Pools of which the node claims blocks as it needs them. Claims are kept in `state_dir`, so that two
    /// nodes must not have the same CIDRs.
    pub cluster_pools: Vec<ClusterPool>,
    /// A folder of Kubernetes manifests, from which the annotations of namespaces are learnt, and those
    /// of pods where the runtime does not pass them.
    pub manifests: Option<PathBuf>,
    /// Where the database is.
    pub state_dir: PathBuf,
    /// Where the socket and the notes are.
    pub run_dir: PathBuf,
    /// Where maps and links are pinned.
    pub bpffs: PathBuf,
    /// How programs are attached.
    pub attach: AttachChoice,
    /// How many endpoints there is room for.
    pub slots: u32,
    /// How many directions of confirmed flows the datapath remembers: two a flow.
    pub flows: u32,
    /// How many identities and prefixes the policies of all endpoints have room for, each once for every
    /// policy that speaks of it, and while a policy is replaced for both.
    pub policy_rows: u32,
    /// How many ranges of ports they have room for; equal ones share it.
    pub policy_rules: u32,
    /// How many flows it remembers that only one side has spoken in, or that have ended.
    pub pending_flows: u32,
    /// Seconds that flows and mappings may be idle, where that is not the default. What was set while an
    /// agent ran counts more.
    pub timeouts: BTreeMap<IdleTimeout, u32>,
    /// How many conversations can be masqueraded at a time.
    pub mappings: u32,
    /// How pods' packets leave the node.
    pub masquerade: Masquerade,
    /// How long a lease waits for its endpoint.
    pub pending_ttl: Duration,
    /// How long a released address rests.
    pub cooldown: Duration,
}

/// How programs are to be attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum AttachChoice {
    /// TCX where the kernel has it, else clsact filters.
    #[default]
    Auto,
    /// TCX links.
    Tcx,
    /// clsact filters.
    Tc,
}

impl Config {
    /// A node of this name with these prefixes, and defaults for the rest.
    #[must_use]
    pub fn new(node: NodeName, pod_cidrs: Vec<IpNetwork>) -> Self {
        Self {
            node,
            pod_cidrs,
            router: Vec::new(),
            mtu: None,
            route_mtu: None,
            default_pools: vec!["default".into()],
            cluster_pools: Vec::new(),
            manifests: None,
            state_dir: DEFAULT_STATE_DIR.into(),
            run_dir: DEFAULT_RUN_DIR.into(),
            bpffs: DEFAULT_BPFFS.into(),
            attach: AttachChoice::Auto,
            slots: 4096,
            flows: 1 << 18,
            pending_flows: 1 << 16,
            timeouts: BTreeMap::new(),
            policy_rows: 65_536,
            policy_rules: 65_536,
            mappings: 65_536,
            masquerade: Masquerade::default(),
            pending_ttl: Duration::from_secs(300),
            cooldown: Duration::from_secs(60),
        }
    }

    /// The gateways: those named, and the first address of each other family.
    ///
    /// # Errors
    ///
    /// [`Error::Config`] when one cannot serve as a gateway, or its family has no prefix.
    pub fn routers(&self) -> Result<Router, Error> {
        let mut router = Router::default();
        for &address in &self.router {
            let wrong = |why: String| Error::Config { option: "--router-ip", why };
            let family_has_prefix =
                self.pod_cidrs.iter().any(|cidr| cidr.is_ipv4() == address.is_ipv4());
            if !family_has_prefix {
                return Err(wrong(format!("{address}: no --pod-cidr is of its family")));
            }
            if !is_plain(address) {
                return Err(wrong(format!("{address} cannot be an interface's address")));
            }
            let taken = match address {
                IpAddr::V4(v4) => router.v4.replace(v4).is_some(),
                IpAddr::V6(v6) => router.v6.replace(v6).is_some(),
            };
            if taken {
                return Err(wrong(format!("{address} is the second of its family")));
            }
        }
        for cidr in &self.pod_cidrs {
            match cidr {
                IpNetwork::V4(net) => {
                    router.v4.get_or_insert_with(|| first_v4(net.network(), net.prefix()));
                }
                IpNetwork::V6(net) => {
                    router.v6.get_or_insert_with(|| first_v6(net.network(), net.prefix()));
                }
            }
        }
        Ok(router)
    }

    /// What the pods' side is told.
    ///
    /// # Errors
    ///
    /// As [`routers`](Self::routers).
    pub fn node_config(&self) -> Result<NodeConfig, Error> {
        Ok(NodeConfig {
            name: self.node.clone(),
            router: self.routers()?,
            mtu: self.interface_mtu(),
            route_mtu: self.default_route_mtu(),
        })
    }

    /// What `GET /v1/config` says, but for settings.
    pub(crate) fn described(&self, attach: AttachMode) -> Result<AgentConfig, Error> {
        Ok(AgentConfig {
            node: self.node_config()?,
            pod_cidrs: self.pod_cidrs.clone(),
            default_pools: self.default_pools.clone(),
            cluster_pools: self.cluster_pools.iter().map(cluster_pool::option).collect(),
            cooldown: self.cooldown.as_secs(),
            pending_ttl: self.pending_ttl.as_secs(),
            manifests: self.manifests.clone(),
            attach,
            slots: self.slots,
            flows: self.flows,
            pending_flows: self.pending_flows,
            state_dir: self.state_dir.clone(),
            run_dir: self.run_dir.clone(),
            bpffs: self.bpffs.clone(),
            settings: BTreeMap::new(),
        })
    }

    pub(crate) fn interface_mtu(&self) -> u32 {
        self.mtu.unwrap_or(1500)
    }

    pub(crate) fn default_route_mtu(&self) -> u32 {
        self.route_mtu.unwrap_or(self.interface_mtu())
    }

    /// RFC 791 and RFC 8200, section 5; below 1280 the kernel takes IPv6 off the interface.
    pub(crate) fn least_mtu(&self) -> u32 {
        if self.pod_cidrs.iter().any(IpNetwork::is_ipv6) { 1280 } else { 576 }
    }

    /// Checks everything that can be checked without touching the machine.
    ///
    /// # Errors
    ///
    /// [`Error::Config`] names the option and what is wrong with it.
    pub fn validate(&self) -> Result<(), Error> {
        let wrong = |option, why| Err(Error::Config { option, why });
        if self.pod_cidrs.is_empty() {
            return wrong("--pod-cidr", "at least one is needed".into());
        }
        for cidr in &self.pod_cidrs {
            if !is_for_pods(*cidr) {
                return wrong("--pod-cidr", format!("{cidr} is no prefix for pods"));
            }
        }
        let routers = self.routers()?;
        if let Err(why) = cluster_pool::check(&self.cluster_pools, &self.pod_cidrs, routers) {
            return wrong("--cluster-pool", why);
        }
        let least = self.least_mtu();
        let (mtu, route_mtu) = (self.interface_mtu(), self.default_route_mtu());
        for (option, mtu) in [("--mtu", mtu), ("--route-mtu", route_mtu)] {
            if !(least..=65_535).contains(&mtu) {
                return wrong(option, format!("{mtu} is not between {least} and 65535"));
            }
        }
        if route_mtu > mtu {
            let why = format!("{route_mtu} is more than the interfaces' {mtu}");
            return wrong("--route-mtu", why);
        }
        if !(1..=Verdict::SLOTS).contains(&self.slots) {
            let why = format!("{} is not between 1 and {}", self.slots, Verdict::SLOTS);
            return wrong("--slots", why);
        }
        for (option, size) in [("--flows", self.flows), ("--pending-flows", self.pending_flows)] {
            if !(1024..=4_194_304).contains(&size) {
                return wrong(option, format!("{size} is not between 1024 and 4194304"));
            }
        }
        for (&timeout, &seconds) in &self.timeouts {
            if let Err(why) = timeout.check(seconds) {
                return wrong("--timeout", why);
            }
        }
        if !(1024..=4_194_304).contains(&self.mappings) {
            let why = format!("{} is not between 1024 and 4194304", self.mappings);
            return wrong("--masquerade-mappings", why);
        }
        if let Err(why) = choice::check_pools(&self.default_pools) {
            return wrong("--default-pool", why);
        }
        let folders = [
            ("--state-dir", &self.state_dir),
            ("--run-dir", &self.run_dir),
            ("--bpffs", &self.bpffs),
        ];
        let manifests = self.manifests.iter().map(|folder| ("--manifests", folder));
        for (option, folder) in folders.into_iter().chain(manifests) {
            if !folder.is_absolute() {
                return wrong(option, format!("{} is not an absolute path", folder.display()));
            }
        }
        Ok(())
    }
}

/// Whether pods may have addresses of it.
pub(crate) fn is_for_pods(cidr: IpNetwork) -> bool {
    is_plain(cidr.network()) && is_plain(cidr.broadcast()) && cidr.prefix() >= 8
}

/// Neither unspecified, loopback, multicast, link-local nor broadcast.
fn is_plain(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => {
            let special = v4.is_unspecified() || v4.is_loopback() || v4.is_link_local();
            !special && v4.octets()[0] != 0 && v4.octets()[0] < 224
        }
        IpAddr::V6(v6) => {
            let special = v6.is_unspecified() || v6.is_loopback() || v6.is_multicast();
            !special && !v6.is_unicast_link_local() && v6.to_ipv4_mapped().is_none()
        }
    }
}

/// A /31 and a /32 have no network address (RFC 3021).
fn first_v4(network: Ipv4Addr, prefix: u8) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(network) + u32::from(prefix < 31))
}

/// A /127 and a /128 have no subnet-router anycast address (RFC 6164).
fn first_v6(network: Ipv6Addr, prefix: u8) -> Ipv6Addr {
    Ipv6Addr::from(u128::from(network) + u128::from(prefix < 127))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(cidrs: &[&str]) -> Config {
        let cidrs = cidrs.iter().map(|cidr| cidr.parse().unwrap()).collect();
        Config::new("n1".parse().unwrap(), cidrs)
    }

    #[test]
    fn first_addresses_are_the_gateways() {
        let router = |cidrs: &[&str]| config(cidrs).routers().unwrap();
        let both = router(&["10.1.0.0/24", "fd00:1::/64", "10.2.0.0/24"]);
        assert_eq!(both.v4, Some([10, 1, 0, 1].into()));
        assert_eq!(both.v6, Some("fd00:1::1".parse().unwrap()));
        assert_eq!(router(&["10.1.0.0/24"]).v6, None);
        assert_eq!(router(&["10.1.0.4/31"]).v4, Some([10, 1, 0, 4].into()));
        assert_eq!(router(&["fd00::4/127"]).v6, Some("fd00::4".parse().unwrap()));
    }

    #[test]
    fn named_gateways_win() {
        let mut config = config(&["10.1.0.0/24", "fd00:1::/64"]);
        config.router = vec!["10.1.0.254".parse().unwrap()];
        let router = config.routers().unwrap();
        assert_eq!(router.v4, Some([10, 1, 0, 254].into()));
        assert_eq!(router.v6, Some("fd00:1::1".parse().unwrap()));
    }

    #[test]
    fn wrong_values_are_named() {
        let refused = |change: fn(&mut Config)| {
            let mut config = config(&["10.1.0.0/24", "fd00:1::/64"]);
            config.validate().unwrap();
            change(&mut config);
            match config.validate() {
                Err(Error::Config { option, .. }) => option,
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(refused(|c| c.pod_cidrs.clear()), "--pod-cidr");
        assert_eq!(refused(|c| c.pod_cidrs[0] = "224.0.0.0/8".parse().unwrap()), "--pod-cidr");
        assert_eq!(refused(|c| c.pod_cidrs[0] = "0.0.0.0/0".parse().unwrap()), "--pod-cidr");
        assert_eq!(refused(|c| c.router = vec!["224.0.0.1".parse().unwrap()]), "--router-ip");
        assert_eq!(refused(|c| c.router = vec!["10.1.0.1".parse().unwrap(); 2]), "--router-ip");
        assert_eq!(refused(|c| c.mtu = Some(1279)), "--mtu");
        assert_eq!(refused(|c| c.mtu = Some(65_536)), "--mtu");
        assert_eq!(refused(|c| c.route_mtu = Some(1501)), "--route-mtu");
        assert_eq!(refused(|c| c.slots = 0), "--slots");
        assert_eq!(refused(|c| c.slots = 16_385), "--slots");
        assert_eq!(refused(|c| c.flows = 0), "--flows");
        assert_eq!(refused(|c| c.pending_flows = 1), "--pending-flows");
        let icmp = |c: &mut Config| {
            c.timeouts = [(IdleTimeout::Mapping(podwire_datapath::Timeout::Icmp), 0)].into();
        };
        assert_eq!(refused(icmp), "--timeout");
        assert_eq!(refused(|c| c.mappings = 0), "--masquerade-mappings");
        assert_eq!(refused(|c| c.default_pools.clear()), "--default-pool");
        assert_eq!(refused(|c| c.default_pools.push("Blue".into())), "--default-pool");
        let overlapping = |c: &mut Config| {
            c.cluster_pools = vec![ClusterPool::new("blue", vec!["10.1.0.0/16".parse().unwrap()])];
        };
        assert_eq!(refused(overlapping), "--cluster-pool");
        assert_eq!(refused(|c| c.manifests = Some("m".into())), "--manifests");
        assert_eq!(refused(|c| c.run_dir = "run".into()), "--run-dir");
        let mut four = config(&["10.1.0.0/24"]);
        four.router = vec!["fd00::1".parse().unwrap()];
        assert!(matches!(four.validate(), Err(Error::Config { option: "--router-ip", .. })));
    }
}
