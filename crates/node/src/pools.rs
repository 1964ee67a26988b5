//! The pool that the agent's options make, and what the ones before made.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use podwire_api::{Repair, Router};
use podwire_ipam::{Allocator, PoolConfig};

use crate::node::pools::ROUTER;
use crate::store::{self, PodCidrs, Records};
use crate::{Config, Error};

/// The pool of `--pod-cidr`.
pub(crate) const DEFAULT: &str = "default";

/// Brings the pool of the agent's options into being, or up to date. What was edited while an agent ran
/// stays so; CIDRs that the last start was given and this one is not are taken away, or drained as long
/// as something of them is held. Gives those, and what is worth telling.
pub(crate) fn arrange(
    ipam: &Records,
    config: &Config,
    before: &PodCidrs,
) -> Result<(Vec<IpNetwork>, Vec<Repair>), Error> {
    let mut wanted = PoolConfig::new(DEFAULT, config.pod_cidrs.clone());
    (wanted.cooldown, wanted.pending_ttl) = (config.cooldown, config.pending_ttl);
    Allocator::new(&wanted).map_err(|error| of_option(&error))?;
    let (mut repairs, mut given_up) = (Vec::new(), Vec::new());
    let present = ipam.read(|allocator| allocator.config(DEFAULT).ok())?;
    match present {
        None => ipam.add_pool(&wanted).map_err(refused)?,
        Some(present) => {
            let former = before.given.iter().chain(&before.given_up);
            for &cidr in former.filter(|cidr| !config.pod_cidrs.contains(cidr)) {
                if present.cidrs.contains(&cidr) {
                    repairs.push(give_up(ipam, cidr, &mut given_up)?);
                }
            }
            // One that was drained or removed by hand stays so: it was an option of the last start as well.
            let is_new = |cidr: &&IpNetwork| !before.given.contains(cidr);
            for &cidr in config.pod_cidrs.iter().filter(is_new) {
                ipam.add_cidr(DEFAULT, cidr).map_err(refused)?;
            }
            if (present.cooldown, present.pending_ttl) != (config.cooldown, config.pending_ttl) {
                ipam.set_times(DEFAULT, config.cooldown, config.pending_ttl)?;
            }
        }
    }
    let options = PodCidrs { given: config.pod_cidrs.clone(), given_up: given_up.clone() };
    if options != *before {
        ipam.begin(store::put_pod_cidrs(&options))?.wait()?;
    }
    let is_shared = |name: &str| config.cluster_pools.iter().any(|pool| pool.name == name);
    for pool in config.default_pools.iter().filter(|name| !is_shared(name)) {
        ipam.read(|allocator| allocator.config(pool).map(drop))?
            .map_err(|error| Error::Config { option: "--default-pool", why: error.to_string() })?;
    }
    Ok((given_up, repairs))
}

fn addresses(routers: Router) -> Vec<IpAddr> {
    routers.v4.map(Into::into).into_iter().chain(routers.v6.map(Into::into)).collect()
}

/// Lifts the reservations of addresses that were the pods' gateways and are not any more.
pub(crate) fn lift_former_routers(ipam: &Records, routers: Router) -> Result<(), Error> {
    let current = addresses(routers);
    for (address, why) in ipam.reservations()? {
        if why == ROUTER && !current.contains(&address) {
            ipam.unreserve(address)?;
        }
    }
    Ok(())
}

/// Sets the pods' gateways aside. To be called when the endpoints have their addresses, so that a gateway
/// which a pod has is an error that names the pod and not the loss of the pod.
pub(crate) fn set_routers_aside(ipam: &Records, routers: Router) -> Result<(), Error> {
    for address in addresses(routers) {
        if ipam.read(|all| all.reservations().any(|(one, _)| one == address))? {
            continue;
        }
        let Err(error) = ipam.reserve(address, ROUTER) else { continue };
        match error.refusal() {
            Some(podwire_ipam::Error::OutsidePool { .. }) => {}
            Some(podwire_ipam::Error::Held { address, holder }) => {
                let holder = format!("endpoint {holder}");
                return Err(Error::RouterTaken { address: *address, holder });
            }
            Some(podwire_ipam::Error::Kept { address, name }) => {
                let holder = format!("the sticky name {name}");
                return Err(Error::RouterTaken { address: *address, holder });
            }
            _ => return Err(error.into()),
        }
    }
    Ok(())
}

/// Takes a CIDR away that is no option any more, or lets it run empty.
fn give_up(
    ipam: &Records,
    cidr: IpNetwork,
    given_up: &mut Vec<IpNetwork>,
) -> Result<Repair, Error> {
    let (object, found) = (format!("{cidr} of pool {DEFAULT}"), "is no --pod-cidr any more".into());
    let done = match ipam.remove_cidr(DEFAULT, cidr) {
        Ok(()) => "taken away".to_owned(),
        Err(error) => match error.refusal() {
            Some(podwire_ipam::Error::CidrInUse { used, pending, reserved, kept, .. }) => {
                ipam.drain_cidr(DEFAULT, cidr)?;
                given_up.push(cidr);
                let held = used + pending + reserved + kept;
                format!("drained: {held} addresses of it are held")
            }
            _ => return Err(error.into()),
        },
    };
    Ok(Repair { object, found, done })
}

fn of_option(error: &podwire_ipam::Error) -> Error {
    Error::Config { option: "--pod-cidr", why: error.to_string() }
}

fn refused(error: podwire_ipam::durable::Error) -> Error {
    match error {
        podwire_ipam::durable::Error::Refused(refusal) => of_option(&refusal),
        error => error.into(),
    }
}
