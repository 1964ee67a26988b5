//! What `--cluster-pool` says.

use ipnetwork::IpNetwork;
use podwire_api::Router;
use podwire_ipam::Family;
use podwire_ipam::blocks::ClusterPool;

use crate::choice;
use crate::config::is_for_pods;

const FORM: &str =
    "write NAME=CIDR@LENGTH[,CIDR@LENGTH..], as in blue=10.64.0.0/12@26,fd64::/48@80";

/// The pool that a `--cluster-pool` describes: its name, what it is made of, and the prefix length of
/// each family's blocks.
///
/// # Errors
///
/// What is wrong with it.
pub fn parse_cluster_pool(text: &str) -> Result<ClusterPool, String> {
    let (name, list) = text.split_once('=').ok_or_else(|| format!("there is no \"=\"; {FORM}"))?;
    choice::check_pools(&[name.to_owned()])?;
    let (mut cidrs, mut lengths) = (Vec::<IpNetwork>::new(), [None, None]);
    for part in list.split(',') {
        let (cidr, length) =
            part.split_once('@').ok_or_else(|| format!("{part:?} has no \"@\"; {FORM}"))?;
        let cidr: IpNetwork = cidr.parse().map_err(|_| format!("{cidr:?} is no CIDR; {FORM}"))?;
        let length: u8 =
            length.parse().map_err(|_| format!("{length:?} is no prefix length; {FORM}"))?;
        let known = &mut lengths[usize::from(cidr.is_ipv6())];
        if let Some(other) = known.replace(length).filter(|other| *other != length) {
            let family = Family::of(cidr.ip());
            return Err(format!(
                "it has {family} blocks of /{other} and of /{length}; a family's blocks have one size"
            ));
        }
        cidrs.push(cidr);
    }
    let mut pool = ClusterPool::new(name, cidrs);
    pool.block_v4 = lengths[0].unwrap_or(pool.block_v4);
    pool.block_v6 = lengths[1].unwrap_or(pool.block_v6);
    pool.check().map_err(|error| error.to_string())?;
    Ok(pool)
}

/// The pool as `--cluster-pool` says it.
pub(crate) fn option(pool: &ClusterPool) -> String {
    let part = |cidr: &IpNetwork| {
        let length = if cidr.is_ipv4() { pool.block_v4 } else { pool.block_v6 };
        format!("{cidr}@{length}")
    };
    let parts: Vec<_> = pool.cidrs.iter().map(part).collect();
    format!("{}={}", pool.name, parts.join(","))
}

/// Whether these can be the pools of a node with these prefixes of its own and these gateways.
pub(crate) fn check(
    pools: &[ClusterPool],
    pod_cidrs: &[IpNetwork],
    routers: Router,
) -> Result<(), String> {
    ClusterPool::check_all(pools).map_err(|error| error.to_string())?;
    for pool in pools {
        let name = &pool.name;
        choice::check_pools(std::slice::from_ref(name))?;
        if name == crate::pools::DEFAULT {
            return Err(format!("pool {name} is that of --pod-cidr; choose another name"));
        }
        for cidr in &pool.cidrs {
            if !is_for_pods(*cidr) {
                return Err(format!("{cidr} of pool {name} is no prefix for pods"));
            }
            if let Some(own) = pod_cidrs.iter().find(|own| overlap(**own, *cidr)) {
                return Err(format!("{cidr} of pool {name} overlaps with --pod-cidr {own}"));
            }
            let family = Family::of(cidr.ip());
            let router = match family {
                Family::V4 => routers.v4.map(Into::into),
                Family::V6 => routers.v6.map(Into::into),
            };
            let Some(router) = router else {
                return Err(format!(
                    "{cidr} of pool {name} needs a --pod-cidr of {family}, which gives the pods' gateway"
                ));
            };
            if cidr.contains(router) {
                return Err(format!("{cidr} of pool {name} has the pods' gateway {router} in it"));
            }
        }
    }
    Ok(())
}

/// Whether they share addresses.
pub(crate) fn overlap(one: IpNetwork, other: IpNetwork) -> bool {
    one.contains(other.network()) || other.contains(one.network())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pool_is_told_as_it_was_said() {
        let said = "blue=10.64.0.0/12@26,fd64::/48@80";
        assert_eq!(option(&parse_cluster_pool(said).unwrap()), said);
    }

    #[test]
    fn a_pool_is_read() {
        let pool = parse_cluster_pool("blue=10.64.0.0/12@26,fd64::/48@80,10.9.0.0/16@26").unwrap();
        let cidrs: Vec<_> = pool.cidrs.iter().map(ToString::to_string).collect();
        assert_eq!(cidrs, ["10.64.0.0/12", "fd64::/48", "10.9.0.0/16"]);
        assert_eq!((pool.name.as_str(), pool.block_v4, pool.block_v6), ("blue", 26, 80));
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, why) in [
            ("blue", "there is no \"=\""),
            ("Blue=10.0.0.0/16@26", "\"Blue\" is no name of a pool"),
            ("=10.0.0.0/16@26", "a name is missing"),
            ("blue=", "\"\" has no \"@\""),
            ("blue=10.0.0.0/16", "\"10.0.0.0/16\" has no \"@\""),
            ("blue=10.0.0.0/33@26", "\"10.0.0.0/33\" is no CIDR"),
            ("blue=10.0.0.0/16@x", "\"x\" is no prefix length"),
            ("blue=10.0.0.0/16@26,10.1.0.0/16@27", "blocks of /26 and of /27"),
            ("blue=10.0.0.0/16@8", "the prefix length must be 16 to 32"),
            ("blue=10.0.0.1/16@26", "behind the prefix"),
            ("blue=10.0.0.0/16@26,10.0.9.0/24@26", "overlap"),
        ] {
            let found = parse_cluster_pool(text).unwrap_err();
            assert!(found.contains(why), "{text}: {found}");
        }
    }

    #[test]
    fn a_node_has_a_gateway_for_it_and_nothing_in_common() {
        let refused = |texts: &[&str]| {
            let pools: Vec<_> =
                texts.iter().map(|text| parse_cluster_pool(text).unwrap()).collect();
            let routers = Router { v4: Some([10, 2, 0, 1].into()), v6: None };
            check(&pools, &["10.1.0.0/24".parse().unwrap()], routers)
        };
        assert_eq!(refused(&["blue=10.64.0.0/12@26", "red=10.8.0.0/16@28"]), Ok(()));
        for (texts, why) in [
            (
                &["blue=10.1.0.0/16@26"][..],
                "10.1.0.0/16 of pool blue overlaps with --pod-cidr 10.1.0.0/24",
            ),
            (&["blue=fd64::/48@80"], "needs a --pod-cidr of IPv6"),
            (&["blue=10.2.0.0/16@26"], "gateway 10.2.0.1"),
            (&["default=10.64.0.0/12@26"], "that of --pod-cidr"),
            (&["blue=10.64.0.0/12@26", "blue=10.8.0.0/16@26"], "two pools blue"),
            (&["blue=10.64.0.0/12@26", "red=10.64.1.0/24@26"], "overlap"),
            (&["blue=169.254.0.0/16@26"], "no prefix for pods"),
        ] {
            let found = refused(texts).unwrap_err();
            assert!(found.contains(why), "{texts:?}: {found}");
        }
    }
}
