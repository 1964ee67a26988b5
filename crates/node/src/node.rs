use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use ipnetwork::IpNetwork;
use podwire_api::{
    AttachMode, Delivery, Endpoint, EndpointId, EndpointRequest, Inspection, Interface, Lease,
    LeaseReply, LeaseRequest, LeaseState, Mac, Mark, NodeConfig, OtherFamilies, PoolUsage, Removed,
};
use podwire_ipam::{Addresses, Allocator, Family, Owner, Request, Time};

use crate::error::Source;
use crate::reconcile::is_unfinished;
use crate::seam::{Datapath, Link, Links, Row};
use crate::store::Store;
use crate::turns::Turns;
use crate::worker::Worker;
use crate::{Error, error};

/// How many endpoints garbage collection removes at a time.
const AT_ONCE: usize = 32;

/// The node's endpoints and leases, and the rules by which they come and go.
///
/// Every call blocks: for the kernel, the disk, or another request about the same endpoint.
#[derive(Debug)]
pub(crate) struct Node {
    config: NodeConfig,
    started: Instant,
    allocator: Mutex<Allocator>,
    endpoints: Mutex<BTreeMap<EndpointId, Endpoint>>,
    /// Endpoints whose programs were attached in the way that costs least, or by an earlier agent,
    /// and are to be attached for good when there is time.
    provisional: Mutex<BTreeSet<EndpointId>>,
    /// For which networks leases and endpoints were asked for that are no endpoints yet.
    asked: Mutex<BTreeMap<EndpointId, String>>,
    /// When something was last asked for that touches the kernel.
    busy: Mutex<Instant>,
    turns: Turns,
    store: Store,
    datapath: Arc<dyn Datapath>,
    links: Arc<dyn Links>,
    /// A grace period costs the same for one endpoint as for all that wait.
    settle: Worker<(), Result<(), Arc<Source>>>,
}

impl Node {
    /// A node with the endpoints that were restored; their leases are in the allocator already.
    pub(crate) fn new(
        config: NodeConfig,
        allocator: Allocator,
        restored: Vec<Endpoint>,
        store: Store,
        datapath: Arc<dyn Datapath>,
        links: Arc<dyn Links>,
    ) -> Result<Self, Error> {
        let settling = datapath.clone();
        let settle =
            Worker::start("podwire-settle", move |_: Vec<()>| settling.settle().map_err(Arc::new))
                .map_err(|source| Error::Kernel {
                    operation: "start",
                    object: "a thread".into(),
                    source: source.into(),
                })?;
        let provisional = restored.iter().map(|one| one.id.clone()).collect();
        let endpoints = restored.into_iter().map(|one| (one.id.clone(), one)).collect();
        Ok(Self {
            config,
            started: Instant::now(),
            allocator: Mutex::new(allocator),
            endpoints: Mutex::new(endpoints),
            provisional: Mutex::new(provisional),
            asked: Mutex::default(),
            busy: Mutex::new(Instant::now()),
            turns: Turns::default(),
            store,
            datapath,
            links,
            settle,
        })
    }

    pub(crate) fn uptime(&self) -> Duration {
        self.started.elapsed()
    }

    /// Leases addresses until further notice.
    pub(crate) fn lease(&self, request: &LeaseRequest) -> Result<LeaseReply, Error> {
        self.touch();
        let _turn = self.turns.take(&request.id);
        let wanted = families(request)?.with_addresses(&request.addresses)?;
        let lease = {
            let mut allocator = self.allocator();
            let now = self.now();
            log_expired(&allocator.expire(now));
            allocator.allocate(&owner(&request.id), wanted, now)?
        };
        if let Some(network) = &request.network {
            self.asked().insert(request.id.clone(), network.clone());
        }
        let addresses = lease.addresses.iter().map(IpNetwork::from).collect();
        Ok(LeaseReply { addresses, node: self.config.clone() })
    }

    /// Takes a lease back that no endpoint stands behind.
    pub(crate) fn release(&self, id: &EndpointId) -> Result<Removed, Error> {
        self.touch();
        let _turn = self.turns.take(id);
        if self.endpoint(id).is_some() {
            return Err(Error::Conflict(format!(
                "the lease of {id} belongs to an endpoint; delete the endpoint"
            )));
        }
        Ok(removed(self.drop_lease(id)))
    }

    /// Makes a link an endpoint.
    pub(crate) fn create(
        &self,
        id: &EndpointId,
        request: &EndpointRequest,
    ) -> Result<Endpoint, Error> {
        self.touch();
        let _turn = self.turns.take(id);
        let addresses = check_request(id, request)?;
        // From the first request to the record an endpoint is never unknown to garbage collection,
        // which then waits for its turn.
        if let Some(network) = &request.network {
            self.asked().insert(id.clone(), network.clone());
        }
        let endpoint = self.create_in_turn(id, request, addresses)?;
        self.asked().remove(id);
        Ok(endpoint)
    }

    fn create_in_turn(
        &self,
        id: &EndpointId,
        request: &EndpointRequest,
        addresses: Addresses,
    ) -> Result<Endpoint, Error> {
        let link = self.links.find(&request.host_link).map_err(look_up(&request.host_link))?;
        check_link(&self.config, id, request, link.as_ref())?;
        if let Some(present) = self.endpoint(id) {
            if is_same(&present, request, addresses) {
                return Ok(present);
            }
            if present.ifindex == request.ifindex {
                let message = format!("endpoint {id} exists with other addresses or MACs");
                return Err(Error::Conflict(message));
            }
            // The link that it was made for is gone, since this one has its name.
            self.forget(&present, Fate::Replaced)?;
        }
        let row = Row {
            ifindex: request.ifindex,
            mac: request.mac,
            host_mac: request.host_mac,
            addresses,
            delivery: match request.interface {
                Interface::Adopted => Delivery::Stack,
                _ => self.delivery_over(&request.host_link, request.ifindex)?,
            },
            interface: request.interface,
        };
        match request.interface {
            Interface::Adopted => self.hold(id, addresses)?,
            _ => self.claim(id, addresses)?,
        }
        let endpoint = self.build(id, request, &row).inspect_err(|_| {
            self.drop_lease(id);
        })?;
        self.endpoints().insert(id.clone(), endpoint.clone());
        if self.datapath.mode() == AttachMode::Tcx {
            self.provisional().insert(id.clone());
        }
        Ok(endpoint)
    }

    /// Removes an endpoint, or whatever there is of it.
    pub(crate) fn delete(&self, id: &EndpointId) -> Result<Removed, Error> {
        self.touch();
        let _turn = self.turns.take(id);
        if let Some(present) = self.endpoint(id) {
            self.forget(&present, Fate::Deleted)?;
            return Ok(Removed::Removed);
        }
        // An ADD that failed half-way, or one that this agent has never heard of.
        let link = self.delete_link(id)?;
        let lease = self.drop_lease(id);
        Ok(removed(link || lease))
    }

    /// Notes that a link is gone: its endpoint is out of the datapath, but keeps record and lease
    /// until the runtime says DEL.
    pub(crate) fn link_vanished(&self, ifindex: u32) -> Result<Option<EndpointId>, Error> {
        let Some(present) = self.endpoint_of(ifindex) else { return Ok(None) };
        let _turn = self.turns.take(&present.id);
        // While we waited for our turn it may have been deleted, and a new one made.
        if self.endpoint(&present.id).is_none_or(|now| now.ifindex != ifindex) {
            return Ok(None);
        }
        self.datapath.remove(&present.host_link, ifindex).map_err(unmap(&present.id))?;
        Ok(Some(present.id))
    }

    /// Looks at links that may have changed: where something foreign came or went, packets are
    /// delivered otherwise, but to interfaces of others, and where programs of ours were taken off they
    /// are attached again.
    pub(crate) fn links_changed(&self, indices: &[u32]) -> Result<(), Error> {
        let known: Vec<(u32, Interface)> = {
            let endpoints = self.endpoints();
            let of = |index: &u32| endpoints.values().find(|one| one.ifindex == *index);
            indices.iter().filter_map(of).map(|one| (one.ifindex, one.interface)).collect()
        };
        if known.is_empty() {
            return Ok(());
        }
        let indices: Vec<u32> = known.iter().map(|(index, _)| *index).collect();
        let hanging = self.links.survey(&indices).map_err(look_at("what hangs on the links"))?;
        for (index, interface) in known {
            let delivery = hanging.foreign.get(&index).copied().unwrap_or(Delivery::Peer);
            if interface == Interface::Own
                && let Some(id) = self.set_delivery(index, delivery)?
            {
                tracing::info!(%id, ?delivery, "delivery changed");
            }
            if !hanging.ours.contains(&index)
                && let Some(id) = self.attach_again(index)?
            {
                tracing::warn!(%id, index, "somebody took its programs off; attached again");
            }
        }
        Ok(())
    }

    /// Looks at the other ends of endpoints' links, whose MACs somebody may have changed: the
    /// `tuning` plugin, say, or a process in the container. The datapath knows only one as the pod's.
    pub(crate) fn peers_changed(&self, indices: &[u32]) -> Result<(), Error> {
        for &index in indices {
            let Some(Endpoint { id, .. }) = self.endpoint_of(index) else { continue };
            let _turn = self.turns.take(&id);
            let Some(mut endpoint) = self.endpoint(&id) else { continue };
            let found = self.links.peer_mac(index).map_err(look_at("the other end of a link"))?;
            let Some(mac) = found.filter(|mac| *mac != endpoint.mac) else { continue };
            if endpoint.ifindex != index {
                continue;
            }
            self.datapath.set_mac(index, mac).map_err(map(&id))?;
            tracing::info!(%id, before = %endpoint.mac, now = %mac, "its MAC changed");
            endpoint.mac = mac;
            self.store.put(&endpoint).map_err(shared)?;
            self.endpoints().insert(id.clone(), endpoint);
        }
        Ok(())
    }

    /// Whether a link in a container, whose other end has this number, is an endpoint's that has
    /// another MAC on record.
    pub(crate) fn is_news(&self, ifindex: u32, mac: Mac) -> bool {
        self.endpoints().values().any(|one| one.ifindex == ifindex && one.mac != mac)
    }

    /// Looks at every link, after an unknown number of changes.
    pub(crate) fn all_changed(&self) -> Result<(), Error> {
        let present: HashSet<u32> = {
            let links = self.links.all().map_err(look_at("the links"))?;
            links.into_iter().map(|link| link.index).collect()
        };
        let (present, gone): (Vec<u32>, Vec<u32>) =
            self.list().iter().map(|one| one.ifindex).partition(|index| present.contains(index));
        for index in gone {
            self.link_vanished(index)?;
        }
        self.links_changed(&present)?;
        self.peers_changed(&present)
    }

    /// Attaches one endpoint's programs for good, if one still waits for it. Says whether there was
    /// one.
    pub(crate) fn attach_one(&self) -> Result<bool, Error> {
        let Some(id) = self.provisional().pop_first() else { return Ok(false) };
        let _turn = self.turns.take(&id);
        if let Some(endpoint) = self.endpoint(&id) {
            let Endpoint { host_link, ifindex, .. } = &endpoint;
            self.datapath.attach(host_link, *ifindex).map_err(|source| {
                let object = format!("the programs to {host_link}");
                Error::Datapath { operation: "attach", object, source }
            })?;
        }
        Ok(true)
    }

    /// Attaches the programs of an endpoint that has lost one.
    fn attach_again(&self, ifindex: u32) -> Result<Option<EndpointId>, Error> {
        let Some(Endpoint { id, .. }) = self.endpoint_of(ifindex) else { return Ok(None) };
        let _turn = self.turns.take(&id);
        let Some(endpoint) = self.endpoint(&id).filter(|now| now.ifindex == ifindex) else {
            return Ok(None);
        };
        let missing = |source| Error::Datapath {
            operation: "look at",
            object: format!("the programs of {}", endpoint.host_link),
            source,
        };
        let link = &endpoint.host_link;
        if self.datapath.is_attached(link, ifindex).map_err(missing)? {
            return Ok(None);
        }
        self.datapath.refresh(link, ifindex).map_err(|source| {
            let object = format!("the programs to {link}");
            Error::Datapath { operation: "attach", object, source }
        })?;
        Ok(Some(id))
    }

    fn set_delivery(&self, ifindex: u32, delivery: Delivery) -> Result<Option<EndpointId>, Error> {
        let Some(id) = self.endpoint_of(ifindex).map(|endpoint| endpoint.id) else {
            return Ok(None);
        };
        let _turn = self.turns.take(&id);
        let Some(mut endpoint) = self.endpoint(&id) else { return Ok(None) };
        if endpoint.ifindex != ifindex || endpoint.delivery == delivery {
            return Ok(None);
        }
        if delivery == Delivery::Stack {
            self.accept_all_sources(&endpoint.host_link)?;
        }
        self.datapath.set_delivery(ifindex, delivery).map_err(map(&id))?;
        endpoint.delivery = delivery;
        // Not written to disk: the next start looks at the link itself.
        self.endpoints().insert(id.clone(), endpoint);
        Ok(Some(id))
    }

    fn delivery_over(&self, link: &str, ifindex: u32) -> Result<Delivery, Error> {
        let hanging = self.links.survey(&[ifindex]).map_err(look_at("what hangs on the link"))?;
        let delivery = hanging.foreign.get(&ifindex).copied().unwrap_or(Delivery::Peer);
        if delivery == Delivery::Stack {
            self.accept_all_sources(link)?;
        }
        Ok(delivery)
    }

    /// A reverse-path filter on a host link, which has no address, drops all that comes by it.
    fn accept_all_sources(&self, link: &str) -> Result<(), Error> {
        self.links.accept_all_sources(link).map_err(|source| Error::Kernel {
            operation: "switch off the reverse-path filter of",
            object: link.to_owned(),
            source,
        })
    }

    /// The endpoint compared with what the kernel has.
    pub(crate) fn inspect(&self, id: &EndpointId) -> Result<Inspection, Error> {
        let _turn = self.turns.take(id);
        let endpoint = self.endpoint(id).ok_or_else(|| Error::NoEndpoint(id.clone()))?;
        let row = Row {
            ifindex: endpoint.ifindex,
            mac: endpoint.mac,
            host_mac: endpoint.host_mac,
            addresses: Addresses::from_list(&endpoint.addresses)?,
            delivery: endpoint.delivery,
            interface: endpoint.interface,
        };
        let inspected = self.datapath.inspect(&endpoint.host_link, endpoint.slot, &row);
        let differences = inspected.map_err(|source| Error::Datapath {
            operation: "inspect",
            object: format!("endpoint {id}"),
            source,
        })?;
        Ok(Inspection { endpoint, differences })
    }

    /// Removes what belongs to `network` and is not valid: endpoints, pending leases, and links of
    /// ADDs that were killed, finished or not, which say no network; those of an ADD under way have a
    /// lease. Gives what was removed and what could not be.
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
                        && self.allocator().lease(&owner(&id)).is_none();
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
        let leased: HashSet<String> =
            self.leases().iter().map(|lease| lease.id.host_link()).collect();
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

    fn unmark(&self, index: u32, name: &str, mark: &str) -> Result<(), Error> {
        self.links.unmark(index, mark).map_err(|source| Error::Kernel {
            operation: "take the mark off",
            object: name.to_owned(),
            source,
        })
    }

    /// One endpoint.
    pub(crate) fn endpoint(&self, id: &EndpointId) -> Option<Endpoint> {
        self.endpoints().get(id).cloned()
    }

    /// All endpoints, sorted by id.
    pub(crate) fn list(&self) -> Vec<Endpoint> {
        self.endpoints().values().cloned().collect()
    }

    pub(crate) fn count(&self) -> usize {
        self.endpoints().len()
    }

    /// Endpoints that send by their own host link into the stack.
    pub(crate) fn count_by_link(&self) -> usize {
        let by_link =
            |one: &&Endpoint| one.interface == Interface::Own && one.delivery == Delivery::Stack;
        self.endpoints().values().filter(by_link).count()
    }

    /// All leases, sorted by owner.
    pub(crate) fn leases(&self) -> Vec<Lease> {
        let mut leases: Vec<Lease> = self.allocator().leases().filter_map(api_lease).collect();
        leases.sort_by(|a, b| a.id.cmp(&b.id));
        leases
    }

    /// How full the pool is.
    pub(crate) fn pools(&self) -> Vec<PoolUsage> {
        let usage = self.allocator().usage();
        let pools = usage.cidrs.iter().map(|entry| PoolUsage {
            cidr: entry.cidr,
            size: entry.usage.size.try_into().unwrap_or(u64::MAX),
            used: entry.usage.used,
            pending: entry.usage.pending,
            cooling: entry.usage.cooling,
            reserved: entry.usage.reserved,
        });
        pools.collect()
    }

    /// Takes back what was leased and never used.
    pub(crate) fn expire(&self) {
        let now = self.now();
        let expired = self.allocator().expire(now);
        log_expired(&expired);
        let allocator = self.allocator();
        self.asked().retain(|id, _| allocator.lease(&owner(id)).is_some());
    }

    /// Datapath and record of an endpoint whose link and lease have been checked, at the same time.
    fn build(
        &self,
        id: &EndpointId,
        request: &EndpointRequest,
        row: &Row,
    ) -> Result<Endpoint, Error> {
        let mut endpoint = Endpoint {
            id: id.clone(),
            host_link: request.host_link.clone(),
            ifindex: request.ifindex,
            mac: request.mac,
            host_mac: request.host_mac,
            addresses: row.addresses.iter().collect(),
            // What is written to disk is not asked for it: the next start finds it in the datapath.
            slot: 0,
            delivery: row.delivery,
            created: seconds_since_1970(),
            network: request.network.clone(),
            pod: request.pod.clone(),
            interface: request.interface,
        };
        let recording = self.store.begin_put(&endpoint).map_err(shared)?;
        let added = self.datapath.add(&request.host_link, row, request.disciplines);
        let recorded = recording.wait().map_err(shared);
        let slot = match (added, recorded) {
            (Ok(slot), Ok(())) => slot,
            // What stays behind below is found and removed when the agent starts next.
            (Err(error), recorded) => {
                if recorded.is_ok()
                    && let Err(error) = self.store.delete(id)
                {
                    tracing::warn!(%id, error = error::chain(&*error), "undoing a failed endpoint");
                }
                return Err(map(id)(error));
            }
            (Ok(_), Err(unrecorded)) => {
                if let Err(error) = self.datapath.remove(&request.host_link, request.ifindex) {
                    let reason = error::chain(&*error);
                    tracing::warn!(%id, error = reason, "undoing a failed endpoint");
                }
                return Err(unrecorded);
            }
        };
        endpoint.slot = slot;
        Ok(endpoint)
    }

    /// Confirms the lease of these addresses. An agent that was restarted meanwhile does not know
    /// it any more and leases them again, if they are still free.
    fn claim(&self, id: &EndpointId, addresses: Addresses) -> Result<(), Error> {
        let owner = owner(id);
        let mut allocator = self.allocator();
        let held = allocator.lease(&owner).map(|lease| lease.addresses);
        let leased = match held {
            Some(held) => held,
            None => {
                let list: Vec<IpAddr> = addresses.iter().collect();
                let request = Request::default().with_addresses(&list)?;
                allocator.allocate(&owner, request, self.now())?.addresses
            }
        };
        if leased != addresses {
            if held.is_none() {
                allocator.release(&owner, self.now());
            }
            let message = format!("endpoint {id} has {addresses}, but {leased} is its lease");
            return Err(Error::Conflict(message));
        }
        allocator.confirm(&owner)?;
        Ok(())
    }

    /// Keeps addresses that another plugin chose from being leased to anybody.
    fn hold(&self, id: &EndpointId, addresses: Addresses) -> Result<(), Error> {
        let lease = podwire_ipam::Lease {
            owner: owner(id),
            addresses,
            state: podwire_ipam::LeaseState::Confirmed,
        };
        self.allocator().restore(lease)?;
        Ok(())
    }

    /// Takes an endpoint out of datapath, records and leases, in the order that leaves no moment in
    /// which a packet for its address could reach the next owner of it.
    fn forget(&self, endpoint: &Endpoint, fate: Fate) -> Result<(), Error> {
        let Endpoint { id, host_link, ifindex, .. } = endpoint;
        self.provisional().remove(id);
        // If we are killed now, the next start finds a marked link without a record, and deletes it.
        let forgetting = self.store.begin_delete(id);
        self.datapath.withdraw(*ifindex).map_err(unmap(id))?;
        // Deleting the link waits for a grace period, and takes the programs along, while the kernel
        // would wait for each that is detached before.
        let is_own = endpoint.interface == Interface::Own;
        let settled = fate == Fate::Deleted && is_own && self.delete_link(id)?;
        self.datapath.remove(host_link, *ifindex).map_err(unmap(id))?;
        if fate == Fate::Deleted && !is_own {
            let mark = Mark::Chained { node: self.config.name.clone(), id: id.clone() };
            self.unmark(*ifindex, host_link, &mark.to_string())?;
        }
        if !settled {
            self.settle(id)?;
        }
        forgetting.wait().map_err(shared)?;
        self.endpoints().remove(id);
        self.drop_lease(id);
        Ok(())
    }

    fn settle(&self, id: &EndpointId) -> Result<(), Error> {
        let settled = self.settle.call(()).ok_or(Error::Died("settling thread"))?;
        settled.map_err(|source| Error::Datapath {
            operation: "wait for a grace period after",
            object: format!("endpoint {id}"),
            source: error::chain(&**source).into(),
        })
    }

    /// Deletes the host link of `id`, if one stands that bears its mark, or was born and never got it.
    fn delete_link(&self, id: &EndpointId) -> Result<bool, Error> {
        let name = id.host_link();
        let Some(link) = self.links.find(&name).map_err(look_up(&name))? else {
            return Ok(false);
        };
        if !bears_mark(&self.config, id, &link) && !is_unfinished(&link) {
            return Ok(false);
        }
        self.links.delete(link.index).map_err(|source| Error::Kernel {
            operation: "delete link",
            object: name,
            source,
        })?;
        Ok(true)
    }

    fn drop_lease(&self, id: &EndpointId) -> bool {
        let now = self.now();
        self.asked().remove(id);
        let released = self.allocator().release(&owner(id), now);
        matches!(released, podwire_ipam::Release::Released(_))
    }

    fn endpoint_of(&self, ifindex: u32) -> Option<Endpoint> {
        self.endpoints().values().find(|endpoint| endpoint.ifindex == ifindex).cloned()
    }

    /// The allocator's clock: it stands still while the agent is down, and so do its cool-downs.
    fn now(&self) -> Time {
        Time::new(self.started.elapsed())
    }

    fn provisional(&self) -> MutexGuard<'_, BTreeSet<EndpointId>> {
        self.provisional.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn asked(&self) -> MutexGuard<'_, BTreeMap<EndpointId, String>> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How long nobody has asked for anything that touches the kernel.
    pub(crate) fn idle(&self) -> Duration {
        self.busy.lock().unwrap_or_else(PoisonError::into_inner).elapsed()
    }

    fn touch(&self) {
        *self.busy.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    fn allocator(&self) -> MutexGuard<'_, Allocator> {
        self.allocator.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn endpoints(&self) -> MutexGuard<'_, BTreeMap<EndpointId, Endpoint>> {
        self.endpoints.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Why an endpoint goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// It was deleted, and its link goes with it.
    Deleted,
    /// Its link is gone, and the one that has the name now is its successor's.
    Replaced,
}

/// The owner of an endpoint's lease.
pub(crate) fn owner(id: &EndpointId) -> Owner {
    Owner::new(id.container_id.as_str(), id.ifname.as_str())
}

/// The families that a request asks for.
fn families(request: &LeaseRequest) -> Result<Request, Error> {
    let has = |v4: bool| request.addresses.iter().any(|address| address.is_ipv4() == v4);
    match (request.others, has(true), has(false)) {
        (OtherFamilies::Omit, true, false) => Ok(Request::family(Family::V4)),
        (OtherFamilies::Omit, false, true) => Ok(Request::family(Family::V6)),
        (OtherFamilies::Omit, false, false) => Err(Error::Invalid(format!(
            "no address for {}, and no other family wanted",
            request.id
        ))),
        _ => Ok(Request::default()),
    }
}

fn check_request(id: &EndpointId, request: &EndpointRequest) -> Result<Addresses, Error> {
    let expected = id.host_link();
    if request.interface == Interface::Own && request.host_link != expected {
        let message =
            format!("the host link of {id} is called {expected}, not {}", request.host_link);
        return Err(Error::Invalid(message));
    }
    for (whose, mac) in [("container's", request.mac), ("host link's", request.host_mac)] {
        if !mac.is_unicast() {
            return Err(Error::Invalid(format!("the {whose} MAC {mac} is no unicast address")));
        }
    }
    if request.mac == request.host_mac {
        return Err(Error::Invalid(format!("both ends have the MAC {}", request.mac)));
    }
    let addresses = Addresses::from_list(&request.addresses)?;
    if addresses.is_empty() {
        return Err(Error::Invalid(format!("endpoint {id} has no address")));
    }
    Ok(addresses)
}

fn check_link(
    config: &NodeConfig,
    id: &EndpointId,
    request: &EndpointRequest,
    link: Option<&Link>,
) -> Result<(), Error> {
    let refused = |why: String| Error::LinkRefused { link: request.host_link.clone(), why };
    let link = link.ok_or_else(|| refused("the agent's network namespace has none".into()))?;
    if link.index != request.ifindex {
        return Err(refused(format!("its index is {}, not {}", link.index, request.ifindex)));
    }
    let (node, id) = (config.name.clone(), id.clone());
    let mark = match request.interface {
        Interface::Adopted => Mark::Chained { node, id },
        _ => Mark::Endpoint { node, id },
    };
    if link.alias.as_deref() != Some(mark.to_string().as_str()) {
        let why = match &link.alias {
            Some(alias) => format!("its alias is {alias:?}, not {mark}"),
            None => format!("it does not have the alias {mark}"),
        };
        return Err(refused(why));
    }
    if link.kind.as_deref() != Some("veth") {
        let kind = link.kind.as_deref().unwrap_or("unknown");
        return Err(refused(format!("it is of kind {kind}, not veth")));
    }
    if link.mac != Some(request.host_mac) {
        let found = link.mac.map_or_else(|| "none".to_owned(), |mac| mac.to_string());
        return Err(refused(format!("its MAC is {found}, not {}", request.host_mac)));
    }
    Ok(())
}

fn bears_mark(config: &NodeConfig, id: &EndpointId, link: &Link) -> bool {
    let mark = Mark::Endpoint { node: config.name.clone(), id: id.clone() };
    link.alias.as_deref() == Some(mark.to_string().as_str())
}

fn is_same(present: &Endpoint, request: &EndpointRequest, addresses: Addresses) -> bool {
    present.ifindex == request.ifindex
        && present.mac == request.mac
        && present.host_mac == request.host_mac
        && Addresses::from_list(&present.addresses) == Ok(addresses)
}

fn api_lease(lease: &podwire_ipam::Lease) -> Option<Lease> {
    // Owners are made of endpoint ids, and so turn back into them.
    let id = EndpointId::new(lease.owner.container_id(), lease.owner.ifname()).ok()?;
    let state = match lease.state {
        podwire_ipam::LeaseState::Pending { .. } => LeaseState::Pending,
        podwire_ipam::LeaseState::Confirmed => LeaseState::Confirmed,
    };
    Some(Lease { id, addresses: lease.addresses.iter().collect(), state })
}

fn log_expired(leases: &[podwire_ipam::Lease]) {
    for lease in leases {
        tracing::info!(owner = %lease.owner, addresses = %lease.addresses, "lease expired unused");
    }
}

fn removed(something: bool) -> Removed {
    if something { Removed::Removed } else { Removed::Absent }
}

fn seconds_since_1970() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// An error that several requests share keeps its words, not its type.
fn shared(error: Arc<Error>) -> Error {
    Arc::try_unwrap(error).unwrap_or_else(|error| Error::Store {
        operation: "write",
        path: match &*error {
            Error::Store { path, .. } => path.clone(),
            _ => std::path::PathBuf::new(),
        },
        source: error::chain(&*error).into(),
    })
}

fn look_up(link: &str) -> impl FnOnce(Source) -> Error + use<> {
    let object = link.to_owned();
    move |source| Error::Kernel { operation: "look up link", object, source }
}

fn look_at(object: &'static str) -> impl FnOnce(Source) -> Error {
    move |source| Error::Kernel { operation: "read", object: object.into(), source }
}

fn map(id: &EndpointId) -> impl FnOnce(Source) -> Error + use<> {
    let object = format!("endpoint {id} into the datapath");
    move |source| Error::Datapath { operation: "write", object, source }
}

fn unmap(id: &EndpointId) -> impl FnOnce(Source) -> Error + use<> {
    let object = format!("endpoint {id} from the datapath");
    move |source| Error::Datapath { operation: "remove", object, source }
}

#[cfg(test)]
mod tests {
    use podwire_api::{Disciplines, ErrorCode};
    use podwire_ipam::PoolConfig;
    use podwire_netns::UNFINISHED_GROUP;

    use super::*;
    use crate::memory::{MemoryDatapath, MemoryLinks};

    const MAC: Mac = Mac([2, 0, 0, 0, 0, 1]);
    const HOST_MAC: Mac = Mac([2, 0, 0, 0, 0, 2]);

    struct Bench {
        node: Node,
        datapath: Arc<MemoryDatapath>,
        links: Arc<MemoryLinks>,
        _folder: tempfile::TempDir,
    }

    fn bench_of(cidrs: &[&str]) -> Bench {
        let folder = tempfile::tempdir().unwrap();
        let cidrs: Vec<IpNetwork> = cidrs.iter().map(|cidr| cidr.parse().unwrap()).collect();
        let config = crate::Config::new("n1".parse().unwrap(), cidrs.clone());
        let allocator = Allocator::new(&PoolConfig::new("default", cidrs)).unwrap();
        let path = folder.path().join("podwire.redb");
        let opened = Store::open(&path, &config.node, "boot").unwrap();
        let datapath = Arc::new(MemoryDatapath::default());
        let links = Arc::new(MemoryLinks::default());
        let node = Node::new(
            config.node_config().unwrap(),
            allocator,
            Vec::new(),
            opened.store,
            datapath.clone(),
            links.clone(),
        )
        .unwrap();
        Bench { node, datapath, links, _folder: folder }
    }

    fn bench() -> Bench {
        bench_of(&["10.1.0.0/24", "fd00:1::/64"])
    }

    fn id(container: &str) -> EndpointId {
        EndpointId::new(container, "eth0").unwrap()
    }

    impl Bench {
        fn lease(&self, container: &str) -> Result<Vec<IpAddr>, Error> {
            let request = LeaseRequest::new(id(container));
            let reply = self.node.lease(&request)?;
            Ok(reply.addresses.iter().map(IpNetwork::ip).collect())
        }

        fn plug(&self, container: &str, index: u32) {
            let id = id(container);
            let mark = Mark::Endpoint { node: self.node.config.name.clone(), id: id.clone() };
            self.links.insert(Link {
                name: id.host_link(),
                index,
                kind: Some("veth".into()),
                mac: Some(HOST_MAC),
                alias: Some(mark.to_string()),
                group: 0,
            });
        }

        fn request(container: &str, index: u32, addresses: &[IpAddr]) -> EndpointRequest {
            EndpointRequest {
                host_link: id(container).host_link(),
                ifindex: index,
                mac: MAC,
                host_mac: HOST_MAC,
                addresses: addresses.to_vec(),
                network: None,
                pod: None,
                interface: Interface::Own,
                disciplines: Disciplines::Free,
            }
        }

        fn add(&self, container: &str, index: u32) -> Result<Endpoint, Error> {
            let addresses = self.lease(container)?;
            self.plug(container, index);
            self.node.create(&id(container), &Self::request(container, index, &addresses))
        }

        fn lease_in(&self, container: &str, network: &str) -> Vec<IpAddr> {
            let network = Some(network.to_owned());
            let request = LeaseRequest { network, ..LeaseRequest::new(id(container)) };
            let reply = self.node.lease(&request).unwrap();
            reply.addresses.iter().map(IpNetwork::ip).collect()
        }

        fn create_in(&self, container: &str, index: u32, network: &str) {
            let request = EndpointRequest {
                network: Some(network.to_owned()),
                ..Self::request(container, index, &self.lease_in(container, network))
            };
            self.node.create(&id(container), &request).unwrap();
        }

        fn is_empty(&self) -> bool {
            self.node.list().is_empty()
                && self.node.leases().is_empty()
                && self.datapath.is_empty()
                && self.links.all().unwrap().is_empty()
        }
    }

    #[test]
    fn add_and_delete_leave_nothing() {
        let bench = bench();
        let endpoint = bench.add("c1", 7).unwrap();
        assert_eq!(endpoint.addresses.len(), 2);
        assert_eq!(bench.datapath.attached(), [id("c1").host_link()]);
        assert_eq!(bench.node.endpoint(&id("c1")), Some(endpoint));
        assert_eq!(bench.node.leases()[0].state, LeaseState::Confirmed);
        assert_eq!(bench.node.delete(&id("c1")).unwrap(), Removed::Removed);
        assert!(bench.is_empty());
        assert_eq!(bench.node.delete(&id("c1")).unwrap(), Removed::Absent);
    }

    #[test]
    fn programs_are_attached_for_good_when_there_is_time() {
        let bench = bench();
        bench.add("c1", 7).unwrap();
        bench.add("c2", 8).unwrap();
        assert_eq!(bench.datapath.settled(), Vec::<String>::new());
        bench.node.delete(&id("c1")).unwrap();
        assert!(bench.node.attach_one().unwrap());
        assert!(!bench.node.attach_one().unwrap());
        assert_eq!(bench.datapath.settled(), [id("c2").host_link()]);
    }

    #[test]
    fn adding_again_is_the_same() {
        let bench = bench();
        let first = bench.add("c1", 7).unwrap();
        assert_eq!(bench.add("c1", 7).unwrap(), first);
        let other = Bench::request("c1", 7, &first.addresses[..1]);
        let error = bench.node.create(&id("c1"), &other).unwrap_err();
        assert_eq!(error.body().code, ErrorCode::Conflict);
    }

    #[test]
    fn a_link_born_again_replaces_the_endpoint() {
        let bench = bench();
        let first = bench.add("c1", 7).unwrap();
        bench.links.remove(7);
        bench.plug("c1", 8);
        let request = Bench::request("c1", 8, &first.addresses);
        let second = bench.node.create(&id("c1"), &request).unwrap();
        assert_eq!(second.ifindex, 8);
        assert_eq!(bench.datapath.rows().unwrap().len(), 1);
    }

    #[test]
    fn links_that_are_not_ours_are_refused() {
        let bench = bench();
        let addresses = bench.lease("c1").unwrap();
        let refusal = |link: Option<Link>, request: &EndpointRequest| {
            bench.links.remove(7);
            bench.links.remove(8);
            if let Some(link) = link {
                bench.links.insert(link);
            }
            let error = bench.node.create(&id("c1"), request).unwrap_err();
            assert!(bench.datapath.is_empty());
            error.body()
        };
        let good = Bench::request("c1", 7, &addresses);
        bench.plug("c1", 7);
        let link = bench.links.find(&id("c1").host_link()).unwrap().unwrap();
        let denied = |link, what: &str| {
            let body = refusal(link, &good);
            assert_eq!(body.code, ErrorCode::Denied, "{body:?}");
            assert!(body.message.contains(what), "{body:?}");
        };
        denied(None, "namespace has none");
        denied(Some(Link { index: 8, ..link.clone() }), "index is 8");
        denied(Some(Link { alias: None, ..link.clone() }), "does not have the alias");
        let foreign = Some("podwire:n2:c1/eth0".to_owned());
        denied(Some(Link { alias: foreign, ..link.clone() }), "its alias is");
        denied(Some(Link { kind: Some("dummy".into()), ..link.clone() }), "kind dummy");
        denied(Some(Link { mac: Some(MAC), ..link.clone() }), "its MAC is");

        let invalid = |change: fn(&mut EndpointRequest)| {
            let mut request = good.clone();
            change(&mut request);
            assert_eq!(refusal(Some(link.clone()), &request).code, ErrorCode::Invalid);
        };
        invalid(|request| request.host_link = "eth0".into());
        invalid(|request| request.mac = Mac([0; 6]));
        invalid(|request| request.mac = request.host_mac);
        invalid(|request| request.addresses.clear());
        invalid(|request| request.addresses[1] = [10, 1, 0, 77].into());
    }

    #[test]
    fn addresses_must_be_leased() {
        let bench = bench();
        bench.add("c1", 7).unwrap();
        bench.plug("c2", 8);
        let code = |addresses: &[&str]| {
            let addresses: Vec<_> = addresses.iter().map(|text| text.parse().unwrap()).collect();
            let request = Bench::request("c2", 8, &addresses);
            bench.node.create(&id("c2"), &request).unwrap_err().body().code
        };
        assert_eq!(code(&["10.1.0.1", "fd00:1::1"]), ErrorCode::Conflict);
        assert_eq!(code(&["10.9.0.1", "fd00:1::9"]), ErrorCode::Invalid);
        // A pod of a dual-stack node has both.
        assert_eq!(code(&["10.1.0.9"]), ErrorCode::Conflict);
        assert_eq!(bench.node.leases().len(), 1);
        // A lease that a restarted agent has forgotten is made anew.
        let addresses = ["10.1.0.9".parse().unwrap(), "fd00:1::9".parse().unwrap()];
        bench.node.create(&id("c2"), &Bench::request("c2", 8, &addresses)).unwrap();
    }

    #[test]
    fn failures_are_undone() {
        let bench = bench();
        bench.datapath.fail_next("add");
        let error = bench.add("c1", 7).unwrap_err();
        assert_eq!(error.body().code, ErrorCode::Internal);
        bench.links.remove(7);
        assert!(bench.is_empty(), "{:?}", bench.node);
        bench.add("c1", 7).unwrap();
    }

    #[test]
    fn a_failed_delete_keeps_the_address() {
        let bench = bench();
        let endpoint = bench.add("c1", 7).unwrap();
        for failing in ["withdraw", "remove", "settle"] {
            bench.plug("c1", 7);
            // Deleting a link is a grace period of its own.
            if failing == "settle" {
                bench.links.remove(7);
            }
            bench.datapath.fail_next(failing);
            bench.node.delete(&id("c1")).unwrap_err();
            assert_eq!(bench.node.leases()[0].addresses, endpoint.addresses, "{failing}");
            assert!(bench.node.endpoint(&id("c1")).is_some(), "{failing}");
        }
        assert_eq!(bench.node.delete(&id("c1")).unwrap(), Removed::Removed);
    }

    #[test]
    fn leases_come_and_go() {
        let bench = bench();
        let first = bench.lease("c1").unwrap();
        assert_eq!(bench.lease("c1").unwrap(), first);
        assert_eq!(bench.node.leases()[0].state, LeaseState::Pending);
        assert_eq!(bench.node.release(&id("c1")).unwrap(), Removed::Removed);
        assert_eq!(bench.node.release(&id("c1")).unwrap(), Removed::Absent);
        bench.add("c1", 7).unwrap();
        let error = bench.node.release(&id("c1")).unwrap_err();
        assert_eq!(error.body().code, ErrorCode::Conflict);
    }

    #[test]
    fn a_full_pool_says_so() {
        let bench = bench_of(&["10.1.0.0/30"]);
        bench.lease("c1").unwrap();
        bench.lease("c2").unwrap();
        let body = bench.lease("c3").unwrap_err().body();
        assert_eq!(body.code, ErrorCode::Exhausted);
        assert!(body.hint.is_some() && body.message.contains("size 2"), "{body:?}");
    }

    #[test]
    fn half_an_add_is_deleted() {
        let bench = bench();
        bench.lease("c1").unwrap();
        bench.plug("c1", 7);
        assert_eq!(bench.node.delete(&id("c1")).unwrap(), Removed::Removed);
        assert!(bench.is_empty());
    }

    #[test]
    fn a_stranger_with_the_name_stays() {
        let bench = bench();
        bench.plug("c1", 7);
        let link = bench.links.find(&id("c1").host_link()).unwrap().unwrap();
        bench.links.insert(Link { alias: None, ..link });
        assert_eq!(bench.node.delete(&id("c1")).unwrap(), Removed::Absent);
        assert_eq!(bench.links.all().unwrap().len(), 1);
    }

    #[test]
    fn vanished_links_leave_the_datapath() {
        let bench = bench();
        bench.add("c1", 7).unwrap();
        bench.links.remove(7);
        assert_eq!(bench.node.link_vanished(7).unwrap(), Some(id("c1")));
        assert!(bench.datapath.is_empty());
        assert_eq!(bench.node.link_vanished(99).unwrap(), None);
        // The runtime has not said DEL: the address is not given to somebody else.
        assert_eq!(bench.node.leases().len(), 1);
        assert_eq!(bench.node.delete(&id("c1")).unwrap(), Removed::Removed);
        assert!(bench.is_empty());
    }

    #[test]
    fn delivery_follows_the_link() {
        let bench = bench();
        bench.add("c1", 7).unwrap();
        let delivery = || {
            let row = bench.datapath.rows().unwrap()[0].1.delivery;
            assert_eq!(bench.node.endpoint(&id("c1")).unwrap().delivery, row);
            row
        };
        assert_eq!(delivery(), Delivery::Peer);
        bench.links.set_foreign(7, Delivery::Egress);
        bench.node.links_changed(&[99]).unwrap();
        assert_eq!(delivery(), Delivery::Peer);
        bench.node.links_changed(&[7]).unwrap();
        assert_eq!(delivery(), Delivery::Egress);
        bench.links.clear_foreign(7);
        bench.node.all_changed().unwrap();
        assert_eq!(delivery(), Delivery::Peer);
        bench.links.set_foreign(8, Delivery::Egress);
        assert_eq!(bench.add("c2", 8).unwrap().delivery, Delivery::Egress);
    }

    #[test]
    fn a_changed_mac_is_followed() {
        let bench = bench();
        bench.add("c1", 7).unwrap();
        let other = Mac([2, 0, 0, 0, 0, 9]);
        assert!(bench.node.is_news(7, other) && !bench.node.is_news(7, MAC));
        bench.links.set_peer_mac(7, other);
        bench.node.peers_changed(&[99, 7]).unwrap();
        assert_eq!(bench.datapath.rows().unwrap()[0].1.mac, other);
        assert_eq!(bench.node.endpoint(&id("c1")).unwrap().mac, other);
    }

    #[test]
    fn programs_that_somebody_took_off_are_attached_again() {
        let bench = bench();
        bench.add("c1", 7).unwrap();
        bench.datapath.detach(&id("c1").host_link());
        bench.links.lose_programs(7);
        bench.node.links_changed(&[7]).unwrap();
        assert_eq!(bench.datapath.attached(), [id("c1").host_link()]);
    }

    #[test]
    fn collection_removes_what_is_of_no_valid_attachment() {
        let bench = bench();
        for (name, index) in [("kept", 7), ("gone", 8), ("half", 9)] {
            bench.lease_in(name, "podnet");
            bench.plug(name, index);
        }
        bench.lease_in("leased", "podnet");
        bench.lease_in("others", "other");
        for (name, index) in [("kept", 7), ("gone", 8)] {
            bench.create_in(name, index, "podnet");
        }
        // Its agent was restarted since, and knows only what stands.
        bench.plug("stray", 10);
        let (removed, failed) = bench.node.collect("podnet", &BTreeSet::from([id("kept")]));
        assert!(failed.is_empty(), "{failed:?}");
        assert_eq!(removed, ["gone", "half", "leased", "stray"].map(id));
        assert_eq!(bench.node.list().len(), 1);
        let leased: Vec<_> = bench.node.leases().into_iter().map(|lease| lease.id).collect();
        assert_eq!(leased, ["kept", "others"].map(id));
        assert_eq!(bench.links.all().unwrap().len(), 1);
    }

    #[test]
    fn collection_removes_links_that_never_got_their_mark() {
        let bench = bench();
        for (name, index) in [("leased", 7), ("stray", 8)] {
            bench.plug(name, index);
            let link = bench.links.find(&id(name).host_link()).unwrap().unwrap();
            bench.links.insert(Link { alias: None, group: UNFINISHED_GROUP, ..link });
        }
        bench.lease_in("leased", "podnet");
        let (removed, failed) = bench.node.collect("other", &BTreeSet::new());
        assert!(removed.is_empty() && failed.is_empty(), "{removed:?}, {failed:?}");
        let left = bench.links.all().unwrap();
        assert_eq!(left.iter().map(|link| link.index).collect::<Vec<_>>(), [7]);
        let (removed, failed) = bench.node.collect("podnet", &BTreeSet::new());
        assert!(failed.is_empty(), "{failed:?}");
        assert_eq!(removed, [id("leased")]);
        assert!(bench.is_empty());
    }

    #[test]
    fn missed_changes_are_made_up_for() {
        let bench = bench();
        bench.add("c1", 7).unwrap();
        bench.add("c2", 8).unwrap();
        bench.links.remove(7);
        bench.node.all_changed().unwrap();
        assert_eq!(bench.datapath.rows().unwrap().len(), 1);
        assert_eq!(bench.node.count(), 2);
    }

    #[test]
    fn many_at_a_time() {
        let bench = bench();
        thread::scope(|scope| {
            for thread in 0..32 {
                let bench = &bench;
                scope.spawn(move || {
                    for round in 0..4 {
                        let name = format!("c{thread}-{round}");
                        bench.add(&name, 100 + thread * 4 + round).unwrap();
                        assert_eq!(bench.node.delete(&id(&name)).unwrap(), Removed::Removed);
                    }
                });
            }
        });
        assert!(bench.is_empty());
    }
}
