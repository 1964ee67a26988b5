use ipnetwork::IpNetwork;
use podwire_api::{Effect, Problem, ROUTER_HOST, ROUTER_NET, Router};
use podwire_netlink::{IfIndex, IfName, Netlink, RouteFilter, TableId};
use podwire_netns::sysctl;

use crate::netfilter::{self, ChainFamily, ForwardChain};

/// What decides whether the host stack carries pods' packets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Facts {
    pub(crate) v4: bool,
    pub(crate) v6: bool,
    /// `net.ipv4.ip_forward` and the router link's own switch; `None` where there is no such file.
    pub(crate) forwarding_v4: [Option<i64>; 2],
    /// `net.ipv6.conf.all.forwarding` and the router link's own.
    pub(crate) forwarding_v6: [Option<i64>; 2],
    /// Whether the router link has IPv6 switched off.
    pub(crate) disabled_v6: Option<i64>,
    /// The larger of `rp_filter` of all links and of the router link.
    pub(crate) rp_filter: Option<i64>,
    /// That of all links, which no link can switch off for itself.
    pub(crate) rp_filter_of_all: Option<i64>,
    /// How many pods' packets reach the stack by their host links, which have no address.
    pub(crate) by_link: usize,
    /// Ends of the router pair that are missing or down.
    pub(crate) router_down: Vec<&'static str>,
    /// Pod prefixes whose route does not lead over the router link.
    pub(crate) unrouted: Vec<IpNetwork>,
    pub(crate) dropping: Vec<ForwardChain>,
    pub(crate) legacy_filter: bool,
    /// What is wrong with the manifests.
    pub(crate) source: Vec<podwire_cluster::Problem>,
}

impl Facts {
    /// Looks at the agent's namespace. What cannot be read is taken to be well: a status that
    /// guesses is worse than one that misses something.
    pub(crate) fn gather(router: Router, pod_cidrs: &[IpNetwork], by_link: usize) -> Self {
        let own =
            |family: &str, name: &str| sysctl(&format!("net/{family}/conf/{ROUTER_HOST}/{name}"));
        let rp_filter_of_all = sysctl("net/ipv4/conf/all/rp_filter");
        let (router_down, unrouted) = look_at_links(pod_cidrs).unwrap_or_default();
        Self {
            v4: router.v4.is_some(),
            v6: router.v6.is_some(),
            forwarding_v4: [sysctl("net/ipv4/ip_forward"), own("ipv4", "forwarding")],
            forwarding_v6: [sysctl("net/ipv6/conf/all/forwarding"), own("ipv6", "forwarding")],
            disabled_v6: own("ipv6", "disable_ipv6"),
            rp_filter: rp_filter_of_all.max(own("ipv4", "rp_filter")),
            rp_filter_of_all,
            by_link,
            router_down,
            unrouted,
            dropping: netfilter::dropping_chains().unwrap_or_default(),
            legacy_filter: netfilter::has_legacy_filter(),
            source: Vec::new(),
        }
    }
}

/// What of it blocks pods, why, and what to do.
pub(crate) fn diagnose(facts: &Facts) -> Vec<Problem> {
    let mut problems = Vec::new();
    let mut tell = |effect, what: String, why: &str, fix: String| {
        problems.push(Problem { what, why: why.into(), fix, effect });
    };
    for end in &facts.router_down {
        tell(
            Effect::Certain,
            format!("{end} is missing or down"),
            "nothing passes between pods and this node, or beyond it",
            "restart podwired: it sets the router pair up".into(),
        );
    }
    if facts.v4 && facts.forwarding_v4.contains(&Some(0)) {
        let all = facts.forwarding_v4[0] == Some(0);
        let name =
            if all { "net.ipv4.ip_forward" } else { "net.ipv4.conf.podwire_host.forwarding" };
        tell(
            Effect::Certain,
            format!("{name} is 0"),
            "the node forwards no IPv4: pods reach nothing beyond it, published ports reach no pod",
            format!("sysctl -w {name}=1"),
        );
    }
    if facts.v6 && facts.forwarding_v6.contains(&Some(0)) {
        let all = facts.forwarding_v6[0] == Some(0);
        let name = if all {
            "net.ipv6.conf.all.forwarding"
        } else {
            "net.ipv6.conf.podwire_host.forwarding"
        };
        tell(
            Effect::Certain,
            format!("{name} is 0"),
            "the node forwards no IPv6: pods reach nothing beyond it, published ports reach no pod",
            format!("sysctl -w {name}=1"),
        );
    }
    if facts.v6 && facts.disabled_v6 == Some(1) {
        tell(
            Effect::Certain,
            "net.ipv6.conf.podwire_host.disable_ipv6 is 1".into(),
            "pods and this node do not reach each other over IPv6",
            "sysctl -w net.ipv6.conf.podwire_host.disable_ipv6=0, then restart podwired".into(),
        );
    }
    for cidr in &facts.unrouted {
        let filtered = cidr.is_ipv4() && facts.rp_filter.is_some_and(|mode| mode > 0);
        let why = if filtered {
            "packets for pods leave elsewhere, and the reverse-path filter drops what pods send \
             through this node"
        } else {
            "packets for pods leave elsewhere"
        };
        tell(
            Effect::Certain,
            format!("the route to {cidr} does not lead over {ROUTER_HOST}"),
            why,
            format!(
                "remove the route that took its place (ip route show {cidr}), then restart podwired"
            ),
        );
    }
    if let Some(mode @ 1..) = facts.rp_filter_of_all
        && facts.v4
        && facts.by_link > 0
    {
        let name = "net.ipv4.conf.all.rp_filter";
        tell(
            Effect::Possible,
            format!("{name} is {mode}"),
            "the kernel drops all that comes by a host link over IPv4, by which pods send whose \
             rate is limited",
            format!("sysctl -w {name}=0, and set rp_filter of the links that need it instead"),
        );
    }
    for chain in facts.dropping.iter().filter(|chain| concerns(chain, facts) && !chain.knows_router)
    {
        let (family, table, name) = (chain.family.name(), &chain.table, &chain.name);
        tell(
            Effect::Possible,
            format!("chain {name} of table {family} {table} drops what no rule of it accepts"),
            "the firewall may drop what the node forwards for pods: traffic beyond the node, \
             published ports",
            format!(
                "accept it: nft insert rule {family} {table} {name} iifname {ROUTER_HOST} accept; \
                 nft insert rule {family} {table} {name} oifname {ROUTER_HOST} accept"
            ),
        );
    }
    if facts.legacy_filter {
        tell(
            Effect::Possible,
            "the filter table of iptables-legacy is in use".into(),
            "podwire cannot read it; if its FORWARD policy is DROP, it drops what the node \
             forwards for pods",
            format!(
                "look at iptables-legacy -S FORWARD; where it drops, accept -i {ROUTER_HOST} and \
                 -o {ROUTER_HOST}, or move to nftables"
            ),
        );
    }
    for problem in &facts.source {
        let (why, fix) = of_source(problem);
        tell(Effect::Possible, problem.to_string(), why, fix);
    }
    problems
}

/// What it breaks, and what to do about it.
fn of_source(problem: &podwire_cluster::Problem) -> (&'static str, String) {
    let path = problem.path().display();
    match problem {
        podwire_cluster::Problem::Duplicate { .. } => (
            "what it says there does not count: pods may get addresses of another pool",
            format!("remove it from {path}, or from the other file"),
        ),
        podwire_cluster::Problem::Unwatched { .. } => (
            "what changes there is seen a second later",
            "raise fs.inotify.max_user_watches".into(),
        ),
        podwire_cluster::Problem::Folder { .. } => (
            "what is known of pods and namespaces may be old; pods are refused whose pool would be \
             a guess",
            format!("let podwired read {path}, or start it with another --manifests"),
        ),
        _ => (
            "what is known of its pods and namespaces may be old; if it was never read, pods are \
             refused whose pool would be a guess",
            format!("put {path} right, or remove it"),
        ),
    }
}

fn concerns(chain: &ForwardChain, facts: &Facts) -> bool {
    match chain.family {
        ChainFamily::Both => true,
        ChainFamily::V4 => facts.v4,
        ChainFamily::V6 => facts.v6,
    }
}

/// The value of a sysctl of this thread's namespace.
fn sysctl(key: &str) -> Option<i64> {
    sysctl::read(&key.parse().ok()?).ok()?.parse().ok()
}

type LinkFacts = (Vec<&'static str>, Vec<IpNetwork>);

fn look_at_links(pod_cidrs: &[IpNetwork]) -> Result<LinkFacts, podwire_netlink::Error> {
    let mut netlink = Netlink::open()?;
    let mut down = Vec::new();
    let mut host = None;
    for name in [ROUTER_HOST, ROUTER_NET] {
        let Ok(parsed) = name.parse::<IfName>() else { continue };
        match netlink.find_link(parsed)? {
            Some(link) if link.is_up() => {
                if name == ROUTER_HOST {
                    host = Some(link.index);
                }
            }
            _ => down.push(name),
        }
    }
    let unrouted = match host {
        Some(host) => unrouted(&mut netlink, pod_cidrs, host)?,
        // Says nothing new.
        None => Vec::new(),
    };
    Ok((down, unrouted))
}

fn unrouted(
    netlink: &mut Netlink,
    pod_cidrs: &[IpNetwork],
    host: IfIndex,
) -> Result<Vec<IpNetwork>, podwire_netlink::Error> {
    let routes = netlink.routes(&RouteFilter::table(TableId::MAIN))?;
    let best = |cidr: &IpNetwork| {
        routes
            .iter()
            .filter(|route| route.destination == *cidr)
            .min_by_key(|route| route.metric.unwrap_or(if cidr.is_ipv4() { 0 } else { 1024 }))
            .and_then(|route| route.output)
    };
    Ok(pod_cidrs.iter().filter(|cidr| best(cidr) != Some(host)).copied().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn well() -> Facts {
        Facts {
            v4: true,
            v6: true,
            forwarding_v4: [Some(1); 2],
            forwarding_v6: [Some(1); 2],
            disabled_v6: Some(0),
            rp_filter: Some(2),
            rp_filter_of_all: Some(2),
            by_link: 0,
            router_down: Vec::new(),
            unrouted: Vec::new(),
            dropping: Vec::new(),
            legacy_filter: false,
            source: Vec::new(),
        }
    }

    fn dropping(family: ChainFamily) -> ForwardChain {
        ForwardChain {
            family,
            table: "filter".into(),
            name: "FORWARD".into(),
            drops: true,
            knows_router: false,
        }
    }

    #[test]
    fn a_well_node_has_no_problems() {
        assert_eq!(diagnose(&well()), []);
        let other_family = Facts {
            v6: false,
            forwarding_v6: [Some(0); 2],
            disabled_v6: Some(1),
            dropping: vec![dropping(ChainFamily::V6)],
            ..well()
        };
        assert_eq!(diagnose(&other_family), []);
        let handled = ForwardChain { knows_router: true, ..dropping(ChainFamily::Both) };
        assert_eq!(diagnose(&Facts { dropping: vec![handled], ..well() }), []);
    }

    #[test]
    fn each_problem_is_named_with_its_fix() {
        let one = |facts: Facts, what: &str, fix: &str| {
            let problems = diagnose(&facts);
            assert_eq!(problems.len(), 1, "{problems:?}");
            assert!(problems[0].what.contains(what), "{problems:?}");
            assert!(problems[0].fix.contains(fix), "{problems:?}");
        };
        let off = [Some(0), Some(0)];
        one(Facts { forwarding_v4: off, ..well() }, "ip_forward is 0", "net.ipv4.ip_forward=1");
        let own = [Some(1), Some(0)];
        one(Facts { forwarding_v4: own, ..well() }, "podwire_host.forwarding", "sysctl -w");
        one(Facts { forwarding_v6: off, ..well() }, "all.forwarding is 0", "all.forwarding=1");
        one(Facts { disabled_v6: Some(1), ..well() }, "disable_ipv6", "disable_ipv6=0");
        one(Facts { router_down: vec![ROUTER_NET], ..well() }, ROUTER_NET, "restart podwired");
        let cidr = "10.1.0.0/24".parse().unwrap();
        one(Facts { unrouted: vec![cidr], ..well() }, "10.1.0.0/24", "ip route show");
        one(Facts { by_link: 1, ..well() }, "all.rp_filter is 2", "all.rp_filter=0");
        let chain = vec![dropping(ChainFamily::V4)];
        one(Facts { dropping: chain, ..well() }, "FORWARD", "nft insert rule ip filter FORWARD");
        let place = podwire_cluster::Place { file: "/m/a.yaml".into(), line: 7 };
        let broken = podwire_cluster::Problem::Manifest { place, why: "kind is missing".into() };
        let facts = Facts { source: vec![broken], ..well() };
        one(facts, "/m/a.yaml:7: kind is missing", "put /m/a.yaml right");
        one(Facts { legacy_filter: true, ..well() }, "iptables-legacy", "iptables-legacy -S");
    }
}
