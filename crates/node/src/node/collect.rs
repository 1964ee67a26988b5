//! What there is, against what there should be: inspection and garbage collection.

use std::collections::{BTreeSet, HashSet};
use std::thread;

use podwire_api::{Endpoint, EndpointId, Inspection, Lease, LeaseState, Mark, Removed};

use super::check::row;
use super::policy::terms;
use super::{Node, look_at};
use crate::Error;
use crate::reconcile::is_unfinished;
use crate::seam::Link;

/// How many endpoints garbage collection removes at a time.
const AT_ONCE: usize = 32;

impl Node {
    /// The endpoint compared with what the kernel has.
    pub(crate) fn inspect(&self, id: &EndpointId) -> Result<Inspection, Error> {
        let _turn = self.turns.take(id);
        let endpoint = self.endpoint(id).ok_or_else(|| Error::NoEndpoint(id.clone()))?;
        let (row, terms) = (row(&endpoint), terms(&endpoint, self.policies().get(id))?);
        let inspected = self.datapath.inspect(&endpoint.host_link, endpoint.slot, &row, &terms);
        let differences = inspected.map_err(|source| Error::Datapath {
            operation: "inspect",
            object: format!("endpoint {id}"),
            source,
        })?;
        Ok(Inspection { endpoint, differences })
    }

    /// Removes what belongs to `network` and is not valid: endpoints, pending leases, and links of
    /// ADDs that were killed, finished or not, which say no network; those of an ADD under way have a
    /// lease. A pending lease that was asked of another agent says no network either; should its ADD be
    /// under way, it gets the same addresses again. Gives what was removed and what could not be.
    pub(crate) fn collect(
        &self,
        network: &str,
        valid: &BTreeSet<EndpointId>,
    ) -> (Vec<EndpointId>, Vec<Error>) {
        let is_doomed = |id: &EndpointId| !valid.contains(id);
        // In this order: what is no longer asked for by then is an endpoint.
        let leased = self.asked().clone();
        let endpoints = self.list();
        let of_network = |one: &&Endpoint| one.network.as_deref() == Some(network);
        let mut doomed: BTreeSet<EndpointId> =
            endpoints.iter().filter(of_network).map(|one| one.id.clone()).collect();
        doomed
            .extend(leased.iter().filter(|(_, asked)| *asked == network).map(|(id, _)| id.clone()));
        let mut failed = Vec::new();
        match self.leases() {
            Ok(leases) => {
                doomed.extend(leases.into_iter().filter_map(|Lease { id, state, .. }| {
                    let is_left = state == LeaseState::Pending && self.inherited.contains(&id);
                    (is_left && !self.asked().contains_key(&id)).then_some(id)
                }));
            }
            Err(error) => failed.push(error),
        }
        match self.links.all() {
            Ok(links) => {
                failed.extend(self.clear_unfinished(&links));
                doomed.extend(links.iter().filter_map(|link| {
                    let mark = link.alias.as_deref()?.parse().ok()?;
                    let (Mark::Endpoint { node, id } | Mark::Chained { node, id }) = mark else {
                        return None;
                    };
                    let stray = node == self.config.name
                        && self.endpoint(&id).is_none()
                        && self.has_lease(&id).is_ok_and(|has| !has);
                    stray.then_some(id)
                }));
            }
            Err(source) => failed.push(look_at("the links")(source)),
        }
        doomed.retain(is_doomed);
        // Together, since links that go together take hardly longer than one.
        let mut removed = Vec::new();
        let doomed: Vec<EndpointId> = doomed.into_iter().collect();
        for some in doomed.chunks(AT_ONCE) {
            let outcomes: Vec<_> = thread::scope(|scope| {
                let delete = |id| scope.spawn(move || self.delete_all_of(id));
                let deletions: Vec<_> = some.iter().map(delete).collect();
                deletions.into_iter().map(thread::ScopedJoinHandle::join).collect()
            });
            for (id, outcome) in some.iter().zip(outcomes) {
                match outcome.unwrap_or(Err(Error::Died("a thread of garbage collection"))) {
                    Ok(_) => removed.push(id.clone()),
                    Err(error) => failed.push(error),
                }
            }
        }
        (removed, failed)
    }

    /// Deletes host links that were born but never got their mark, and have no lease: an ADD leases
    /// before it makes the link. Those with a lease go with it.
    fn clear_unfinished(&self, links: &[Link]) -> Vec<Error> {
        let leased: HashSet<String> = match self.leases() {
            Ok(leases) => leases.iter().map(|lease| lease.id.host_link()).collect(),
            Err(error) => return vec![error],
        };
        let strays =
            links.iter().filter(|link| is_unfinished(link) && !leased.contains(&link.name));
        let failures = strays.filter_map(|link| {
            let source = self.links.delete(link.index).err()?;
            let object = link.name.clone();
            Some(Error::Kernel { operation: "delete link", object, source })
        });
        failures.collect()
    }

    /// Removes an endpoint, and the mark from a link that was adopted for one that never came to be.
    fn delete_all_of(&self, id: &EndpointId) -> Result<Removed, Error> {
        let outcome = self.delete(id)?;
        if outcome == Removed::Removed {
            return Ok(outcome);
        }
        let _turn = self.turns.take(id);
        if self.endpoint(id).is_some() {
            return Ok(outcome);
        }
        let mark = Mark::Chained { node: self.config.name.clone(), id: id.clone() }.to_string();
        let links = self.links.all().map_err(look_at("the links"))?;
        for link in links.iter().filter(|link| link.alias.as_ref() == Some(&mark)) {
            self.unmark(link.index, &link.name, &mark)?;
        }
        Ok(outcome)
    }

    pub(super) fn unmark(&self, index: u32, name: &str, mark: &str) -> Result<(), Error> {
        self.links.unmark(index, mark).map_err(|source| Error::Kernel {
            operation: "take the mark off",
            object: name.to_owned(),
            source,
        })
    }
}
