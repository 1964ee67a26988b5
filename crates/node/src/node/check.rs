//! Leases, endpoints and kernel, compared while the node works.

use std::collections::{HashMap, HashSet};

use podwire_api::{
    CheckReply, Disagreement, Disciplines, Endpoint, EndpointId, Interface, Lease, LeaseState,
    Mark, OnDisagreement, Outcome,
};
use podwire_ipam::Addresses;

use super::{Fate, Node, confirmed, look_at};
use crate::Error;
use crate::error::chain;
use crate::seam::{Link, Row, Terms};

/// Something that does not agree, and is looked at again before it is believed: the first look was at
/// a node that goes on working.
#[derive(Debug)]
enum Suspicion {
    /// A confirmed lease without an endpoint.
    Unused(EndpointId),
    /// An endpoint whose addresses it has no lease of.
    Unleased(EndpointId),
    /// An endpoint whose link is gone.
    Unplugged(EndpointId),
    /// An endpoint that the datapath does not have, or otherwise.
    Unwritten(EndpointId),
    /// An endpoint that has another identity or policy in the datapath.
    Misjudged(EndpointId),
    /// A link with our mark that no endpoint goes with.
    Stray { id: EndpointId, link: Link },
    /// A slot of the datapath that no endpoint goes with.
    Orphan { slot: u32, ifindex: u32 },
    /// A lease of addresses that no pool has.
    Homeless(EndpointId),
}

/// What there is, as the first look found it.
struct Seen {
    links: HashMap<u32, Link>,
    rows: HashMap<u32, (u32, Row)>,
    terms: HashMap<u32, Terms>,
}

impl Node {
    /// Compares leases, endpoints and kernel, and puts right what can be put right if that is wanted.
    pub(crate) fn check(&self, on: OnDisagreement) -> Result<CheckReply, Error> {
        let leases = self.leases()?;
        let endpoints = self.list();
        let seen = self.look()?;
        let mut disagreements = Vec::new();
        for suspicion in self.suspect(&leases, &endpoints, &seen) {
            let _turn = suspicion.id().map(|id| self.turns.take(id));
            let Some(found) = self.confirm_suspicion(&suspicion)? else { continue };
            let outcome = match (on, &suspicion) {
                (_, Suspicion::Homeless(_)) => Outcome::Unrepairable,
                (OnDisagreement::Repair, _) => match self.repair(&suspicion) {
                    Ok(()) => Outcome::Repaired,
                    Err(error) => Outcome::Failed(chain(&error)),
                },
                _ => Outcome::Open,
            };
            let (object, remedy) = (suspicion.object(), suspicion.remedy().to_owned());
            if on == OnDisagreement::Repair {
                tracing::warn!(object, found, remedy, ?outcome, "disagreement");
            }
            disagreements.push(Disagreement { object, found, remedy, outcome });
        }
        let (leases, endpoints) = (leases.len() as u64, endpoints.len() as u64);
        Ok(CheckReply { leases, endpoints, disagreements })
    }

    /// Takes back confirmed leases of endpoints that are gone: a release that never reached the disk, because
    /// that failed, comes back with what the disk has. One whose link stands may be a pod's that this
    /// agent could not restore.
    pub(crate) fn reclaim(&self) -> Result<(), Error> {
        let known: HashSet<EndpointId> = self.endpoints().keys().cloned().collect();
        let leases = self.leases()?.into_iter();
        let lost =
            leases.filter(|one| one.state == LeaseState::Confirmed && !known.contains(&one.id));
        for Lease { id, .. } in lost {
            let _turn = self.turns.take(&id);
            let lost = Suspicion::Unused(id);
            if let Some(found) = self.confirm_suspicion(&lost)? {
                match self.repair(&lost) {
                    Ok(()) => tracing::warn!(object = lost.object(), found, "taken back"),
                    Err(error) => {
                        tracing::debug!(object = lost.object(), found, error = chain(&error));
                    }
                }
            }
        }
        Ok(())
    }

    fn look(&self) -> Result<Seen, Error> {
        let links = self.links.all().map_err(look_at("the links"))?;
        let rows = self.datapath.rows().map_err(look_at("the datapath's endpoints"))?;
        let terms = self.datapath.all_terms();
        Ok(Seen {
            links: links.into_iter().map(|link| (link.index, link)).collect(),
            rows: rows.into_iter().map(|(slot, row)| (row.ifindex, (slot, row))).collect(),
            terms: terms.map_err(look_at("the datapath's identities and policies"))?,
        })
    }

    fn suspect(&self, leases: &[Lease], endpoints: &[Endpoint], seen: &Seen) -> Vec<Suspicion> {
        let mut suspicions = Vec::new();
        let known: HashSet<&EndpointId> = endpoints.iter().map(|one| &one.id).collect();
        let held: HashMap<&EndpointId, &Lease> = leases.iter().map(|one| (&one.id, one)).collect();
        for lease in leases {
            if lease.state == LeaseState::Confirmed && !known.contains(&lease.id) {
                suspicions.push(Suspicion::Unused(lease.id.clone()));
            }
            if lease.pools.is_empty() && known.contains(&lease.id) {
                suspicions.push(Suspicion::Homeless(lease.id.clone()));
            }
        }
        let indices: HashSet<u32> = endpoints.iter().map(|one| one.ifindex).collect();
        for endpoint in endpoints {
            let id = endpoint.id.clone();
            if held.get(&id).is_none_or(|lease| !is_leased(lease, endpoint)) {
                suspicions.push(Suspicion::Unleased(id.clone()));
            }
            if !seen.links.contains_key(&endpoint.ifindex) {
                suspicions.push(Suspicion::Unplugged(id));
            } else if seen.rows.get(&endpoint.ifindex).is_none_or(|(_, row)| !is_row(endpoint, row))
            {
                suspicions.push(Suspicion::Unwritten(id));
            } else if !self.is_on_terms(endpoint, &seen.terms) {
                suspicions.push(Suspicion::Misjudged(id));
            }
        }
        for link in seen.links.values().filter(|link| !indices.contains(&link.index)) {
            if let Some(id) = self.marked(link)
                && !held.contains_key(&id)
            {
                suspicions.push(Suspicion::Stray { id, link: link.clone() });
            }
        }
        for (ifindex, (slot, _)) in &seen.rows {
            if !indices.contains(ifindex) {
                suspicions.push(Suspicion::Orphan { slot: *slot, ifindex: *ifindex });
            }
        }
        suspicions.sort_by_key(Suspicion::object);
        suspicions
    }

    fn is_on_terms(&self, endpoint: &Endpoint, seen: &HashMap<u32, Terms>) -> bool {
        let terms = super::policy::terms(endpoint, self.policies().get(&endpoint.id));
        match (terms, seen.get(&endpoint.ifindex)) {
            (Ok(terms), Some(found)) => terms.difference(found).is_none(),
            _ => false,
        }
    }

    /// What is wrong, if it still is, now that nobody else works on it.
    fn confirm_suspicion(&self, suspicion: &Suspicion) -> Result<Option<String>, Error> {
        let lease = |id: &EndpointId| -> Result<Option<Addresses>, Error> {
            let lease = self.ipam.lease(&super::owner(id))?;
            let is_confirmed =
                |lease: &podwire_ipam::Lease| lease.state == podwire_ipam::LeaseState::Confirmed;
            Ok(lease.filter(is_confirmed).map(|lease| lease.addresses))
        };
        Ok(match suspicion {
            Suspicion::Unused(id) => match (lease(id)?, self.endpoint(id)) {
                (Some(addresses), None) => Some(format!("holds {addresses}, and is no endpoint")),
                _ => None,
            },
            Suspicion::Unleased(id) => match (self.endpoint(id), lease(id)?) {
                (Some(endpoint), held) => {
                    let has = Addresses::from_list(&endpoint.addresses)?;
                    (held != Some(has)).then(|| {
                        let held = held.unwrap_or_default();
                        format!("has {has}, and the lease of {held}")
                    })
                }
                _ => None,
            },
            Suspicion::Unplugged(id) => match self.endpoint(id) {
                Some(endpoint) if self.link_of(endpoint.ifindex)?.is_none() => Some(format!(
                    "its link {} (index {}) is gone",
                    endpoint.host_link, endpoint.ifindex
                )),
                _ => None,
            },
            Suspicion::Unwritten(id) => match self.endpoint(id) {
                Some(endpoint) => {
                    let rows = self.datapath.rows().map_err(look_at("the datapath's endpoints"))?;
                    match rows.iter().find(|(_, row)| row.ifindex == endpoint.ifindex) {
                        Some((_, row)) if is_row(&endpoint, row) => None,
                        Some((slot, _)) => Some(format!("slot {slot} has other properties")),
                        None => Some("the datapath does not have it".to_owned()),
                    }
                }
                None => None,
            },
            Suspicion::Misjudged(id) => match self.endpoint(id) {
                Some(endpoint) => self.misjudged(&endpoint)?,
                None => None,
            },
            Suspicion::Stray { id, link } => {
                let still = self.link_of(link.index)?.is_some_and(|now| now.alias == link.alias);
                let is_stray = still && self.endpoint(id).is_none() && !self.has_lease(id)?;
                is_stray.then(|| format!("is marked as {id}'s, which is no endpoint"))
            }
            Suspicion::Orphan { slot, ifindex } => {
                if let Some(id) = self.link_of(*ifindex)?.and_then(|link| self.marked(&link)) {
                    // An ADD may be at it: its lease is there before the link is.
                    let _turn = self.turns.take(&id);
                    if self.endpoint_of(*ifindex).is_some() {
                        return Ok(None);
                    }
                }
                let rows = self.datapath.rows().map_err(look_at("the datapath's endpoints"))?;
                let stands = rows.iter().any(|(at, row)| at == slot && row.ifindex == *ifindex);
                let is_orphan = stands && self.endpoint_of(*ifindex).is_none();
                is_orphan.then(|| format!("is of interface {ifindex}, which is no endpoint's"))
            }
            Suspicion::Homeless(id) => match (lease(id)?, self.endpoint(id)) {
                (Some(addresses), Some(endpoint)) if endpoint.interface == Interface::Own => {
                    Some(format!("holds {addresses}, which no pool has"))
                }
                _ => None,
            },
        })
    }

    fn repair(&self, suspicion: &Suspicion) -> Result<(), Error> {
        match suspicion {
            Suspicion::Unused(id) => {
                let links = self.links.all().map_err(look_at("the links"))?;
                if let Some(link) = links.iter().find(|link| self.marked(link).as_ref() == Some(id))
                {
                    return Err(Error::Conflict(format!(
                        "link {} of {id} stands, and a pod may be using it: restart podwired, which \
                         restores the endpoint or says why it cannot",
                        link.name
                    )));
                }
                self.drop_lease(id).map(drop)
            }
            Suspicion::Unleased(id) => {
                let Some(endpoint) = self.endpoint(id) else { return Ok(()) };
                self.drop_lease(id)?;
                let addresses = Addresses::from_list(&endpoint.addresses)?;
                Ok(self.ipam.restore(&confirmed(id, addresses)).map(drop)?)
            }
            Suspicion::Unplugged(id) => {
                let Some(endpoint) = self.endpoint(id) else { return Ok(()) };
                // A link of that name may be the next one's, of an ADD that is under way.
                let is_free =
                    self.links.find(&endpoint.host_link).map_err(look_at("the links"))?.is_none();
                self.forget(&endpoint, if is_free { Fate::Deleted } else { Fate::Replaced })
            }
            Suspicion::Unwritten(id) => {
                let Some(mut endpoint) = self.endpoint(id) else { return Ok(()) };
                let row = row(&endpoint);
                let terms = super::policy::terms(&endpoint, self.policies().get(&endpoint.id))?;
                let added = self.datapath.add(&endpoint.host_link, &row, Disciplines::Free, &terms);
                endpoint.slot = added.map_err(super::map(id))?;
                self.endpoints().insert(id.clone(), endpoint);
                Ok(())
            }
            Suspicion::Misjudged(id) => match self.endpoint(id) {
                Some(endpoint) => self.have_agree(&endpoint),
                None => Ok(()),
            },
            Suspicion::Stray { id, link } => match link.alias.as_deref().map(str::parse) {
                Some(Ok(Mark::Chained { .. })) => {
                    self.unmark(link.index, &link.name, link.alias.as_deref().unwrap_or_default())
                }
                _ if self.delete_link(id)? => Ok(()),
                _ => Err(Error::Conflict(format!(
                    "it is no host link of {id}'s, but bears its mark: delete the link, or its alias"
                ))),
            },
            Suspicion::Orphan { ifindex, .. } => {
                let link = self.link_of(*ifindex)?;
                let name = link.map_or_else(|| "no-link".to_owned(), |link| link.name);
                let removed = self.datapath.remove(&name, *ifindex);
                removed.map_err(|source| Error::Datapath {
                    operation: "remove from the datapath",
                    object: format!("interface {ifindex}"),
                    source,
                })?;
                self.datapath.settle().map_err(|source| Error::Datapath {
                    operation: "wait for a grace period after",
                    object: format!("interface {ifindex}"),
                    source: chain(&*source).into(),
                })
            }
            Suspicion::Homeless(_) => Ok(()),
        }
    }

    fn link_of(&self, ifindex: u32) -> Result<Option<Link>, Error> {
        let links = self.links.all().map_err(look_at("the links"))?;
        Ok(links.into_iter().find(|link| link.index == ifindex))
    }

    /// Whose link this is, if it bears a mark of this node.
    fn marked(&self, link: &Link) -> Option<EndpointId> {
        match link.alias.as_deref()?.parse().ok()? {
            Mark::Endpoint { node, id } | Mark::Chained { node, id }
                if node == self.config.name =>
            {
                Some(id)
            }
            _ => None,
        }
    }
}

impl Suspicion {
    /// Whose turn it is to be looked at. A slot says whose it is only by its link.
    fn id(&self) -> Option<&EndpointId> {
        match self {
            Self::Unused(id)
            | Self::Unleased(id)
            | Self::Unplugged(id)
            | Self::Unwritten(id)
            | Self::Misjudged(id)
            | Self::Stray { id, .. }
            | Self::Homeless(id) => Some(id),
            Self::Orphan { .. } => None,
        }
    }

    fn object(&self) -> String {
        match self {
            Self::Unused(id) | Self::Homeless(id) => format!("lease of {id}"),
            Self::Unleased(id)
            | Self::Unplugged(id)
            | Self::Unwritten(id)
            | Self::Misjudged(id) => format!("endpoint {id}"),
            Self::Stray { link, .. } => format!("link {}", link.name),
            Self::Orphan { slot, .. } => format!("slot {slot}"),
        }
    }

    fn remedy(&self) -> &'static str {
        match self {
            Self::Unused(_) => "take the lease back",
            Self::Unleased(_) => "lease it the addresses it has",
            Self::Unplugged(_) => "delete the endpoint",
            Self::Unwritten(_) => "write it into the datapath",
            Self::Misjudged(_) => {
                "put a policy that is on no record on record, and write what is into the datapath"
            }
            Self::Stray { .. } => "delete the link, or take the mark off an adopted one",
            Self::Orphan { .. } => "empty the slot",
            Self::Homeless(_) => {
                "delete the pod, or add a CIDR that has them: podwire ipam pool add-cidr"
            }
        }
    }
}

fn is_leased(lease: &Lease, endpoint: &Endpoint) -> bool {
    lease.state == LeaseState::Confirmed
        && Addresses::from_list(&lease.addresses) == Addresses::from_list(&endpoint.addresses)
}

/// An endpoint as the datapath should have it.
pub(super) fn row(endpoint: &Endpoint) -> Row {
    Row {
        ifindex: endpoint.ifindex,
        mac: endpoint.mac,
        host_mac: endpoint.host_mac,
        addresses: Addresses::from_list(&endpoint.addresses).unwrap_or_default(),
        delivery: endpoint.delivery,
        interface: endpoint.interface,
    }
}

fn is_row(endpoint: &Endpoint, found: &Row) -> bool {
    row(endpoint) == *found
}
