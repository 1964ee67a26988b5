mod collect;
mod follow;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use ipnetwork::IpNetwork;
use podwire_api::{
    AttachMode, Delivery, Endpoint, EndpointId, EndpointRequest, Interface, Lease, LeaseReply,
    LeaseRequest, LeaseState, Mark, NodeConfig, OtherFamilies, PoolUsage, Removed,
};
use podwire_ipam::{Addresses, Allocator, Family, Owner, Request, Time};

use crate::choice::{Choice, Chooser};
use crate::error::Source;
use crate::reconcile::is_unfinished;
use crate::seam::{Datapath, Link, Links, Row};
use crate::store::Store;
use crate::turns::Turns;
use crate::worker::Worker;
use crate::{Error, error};

/// The node's endpoints and leases, and the rules by which they come and go.
///
/// Every call blocks: for the kernel, the disk, or another request about the same endpoint.
#[derive(Debug)]
pub(crate) struct Node {
    config: NodeConfig,
    started: Instant,
    chooser: Chooser,
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
        chooser: Chooser,
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
            chooser,
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
        let wanted = wanted(families(request)?, &self.chooser.choose(request)?)?;
        let lease = {
            let mut allocator = self.allocator();
            let now = self.now();
            log_expired(&allocator.expire(now));
            allocator.allocate(&owner(&request.id), &wanted, now)?
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
        let pools = usage.iter().flat_map(|pool| &pool.cidrs).map(|entry| PoolUsage {
            cidr: entry.cidr,
            size: entry.usage.size.try_into().unwrap_or(u64::MAX),
            used: entry.usage.used,
            pending: entry.usage.pending,
            cooling: entry.usage.cooling,
            reserved: entry.usage.reserved,
        });
        pools.collect()
    }

    /// What is wrong with where the cluster's objects come from.
    pub(crate) fn source_problems(&self) -> Vec<podwire_cluster::Problem> {
        self.chooser.problems()
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
                allocator.allocate(&owner, &request, self.now())?.addresses
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

/// What the allocator is asked for.
fn wanted(request: Request, choice: &Choice) -> Result<Request, Error> {
    let lists = if choice.is_paired() { vec![&choice.v4] } else { vec![&choice.v4, &choice.v6] };
    let mut pools = lists.into_iter().flat_map(|list| &list.names);
    if let Some(pool) = pools.find(|pool| *pool != "default") {
        return Err(choice.no_pool(pool));
    }
    if let Some(name) = &choice.sticky {
        return Err(Error::Invalid(format!("no address can be kept for {name} yet")));
    }
    Ok(request.with_addresses(&choice.addresses)?)
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
mod tests;
