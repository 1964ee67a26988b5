mod blocks;
mod check;
mod collect;
mod follow;
pub(crate) mod policy;
pub(crate) mod pools;

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use ipnetwork::IpNetwork;
use nix::time::{ClockId, clock_gettime};
use podwire_api::{
    AttachMode, Delivery, Endpoint, EndpointId, EndpointRequest, Interface, Lease, LeaseReply,
    LeaseRequest, LeaseState, Mark, NodeConfig, OtherFamilies, PodRef, Policy, Removed,
    UNMANAGED_IDENTITY,
};
use podwire_ipam::durable::{Begun, Change, Counts};
use podwire_ipam::{Addresses, Allocator, Family, Owner, Request, Time};

use crate::blocks::Blocks;
use crate::choice::{Choice, Chooser, Pools};
use crate::error::Source;
use crate::reconcile::is_unfinished;
use crate::seam::{Datapath, Link, Links, Routes, Row};
use crate::store::{self, Records};
use crate::turns::Turns;
use crate::worker::Worker;
use crate::{Config, Error, error};

/// What a node works with.
#[derive(Debug)]
pub(crate) struct Kernel {
    pub(crate) datapath: Arc<dyn Datapath>,
    pub(crate) links: Arc<dyn Links>,
    pub(crate) routes: Arc<dyn Routes>,
}

/// The node's endpoints and leases, and the rules by which they come and go.
///
/// Every call blocks: for the kernel, the disk, or another request about the same endpoint.
#[derive(Debug)]
pub(crate) struct Node {
    config: NodeConfig,
    started: Instant,
    chooser: Chooser,
    ipam: Records,
    endpoints: Mutex<BTreeMap<EndpointId, Endpoint>>,
    /// Endpoints whose programs were attached in the way that costs least, or by an earlier agent,
    /// and are to be attached for good when there is time.
    provisional: Mutex<BTreeSet<EndpointId>>,
    /// Who had a lease pending when the agent started, for networks that are not known any more.
    inherited: BTreeSet<EndpointId>,
    /// For which networks leases and endpoints were asked for that are no endpoints yet.
    asked: Mutex<BTreeMap<EndpointId, String>>,
    /// When something was last asked for that touches the kernel.
    busy: Mutex<Instant>,
    turns: Turns,
    datapath: Arc<dyn Datapath>,
    links: Arc<dyn Links>,
    routes: Arc<dyn Routes>,
    /// Held while pools and their routes change.
    edit: Mutex<()>,
    /// What pools get that do not say it themselves.
    cooldown: Duration,
    pending_ttl: Duration,
    default_pools: Vec<String>,
    /// Prefixes of former options, which are to go when nothing of them is held.
    given_up: Mutex<Vec<IpNetwork>>,
    blocks: Option<Blocks>,
    /// What endpoints may send and receive, of those that somebody said it of.
    policies: Mutex<BTreeMap<EndpointId, Policy>>,
    /// Who was said to be behind prefixes. Held while that changes.
    identities: Mutex<BTreeMap<IpNetwork, u32>>,
    /// A grace period costs the same for one endpoint as for all that wait.
    settle: Worker<(), Result<(), Arc<Source>>>,
}

impl Node {
    /// A node with the endpoints that were restored; their leases are held already.
    pub(crate) fn new(
        config: &Config,
        chooser: Chooser,
        ipam: Records,
        restored: Vec<Endpoint>,
        kernel: Kernel,
    ) -> Result<Self, Error> {
        let Kernel { datapath, links, routes } = kernel;
        let settling = datapath.clone();
        let settle =
            Worker::start("podwire-settle", move |_: Vec<()>| settling.settle().map_err(Arc::new))
                .map_err(|source| Error::Kernel {
                    operation: "start",
                    object: "a thread".into(),
                    source: source.into(),
                })?;
        let pending = |lease: &podwire_ipam::Lease| {
            matches!(lease.state, podwire_ipam::LeaseState::Pending { .. })
        };
        let inherited = ipam.leases()?.into_iter().filter(pending).filter_map(|lease| {
            EndpointId::new(lease.owner.container_id(), lease.owner.ifname()).ok()
        });
        let inherited = inherited.collect();
        let provisional = restored.iter().map(|one| one.id.clone()).collect();
        let endpoints = restored.into_iter().map(|one| (one.id.clone(), one)).collect();
        Ok(Self {
            config: config.node_config()?,
            started: Instant::now(),
            chooser,
            ipam,
            endpoints: Mutex::new(endpoints),
            provisional: Mutex::new(provisional),
            inherited,
            asked: Mutex::default(),
            busy: Mutex::new(Instant::now()),
            turns: Turns::default(),
            datapath,
            links,
            routes,
            edit: Mutex::default(),
            cooldown: config.cooldown,
            pending_ttl: config.pending_ttl,
            default_pools: config.default_pools.clone(),
            given_up: Mutex::default(),
            blocks: None,
            policies: Mutex::default(),
            identities: Mutex::default(),
            settle,
        })
    }

    /// The same with the pools that it shares with other nodes.
    pub(crate) fn with_blocks(self, blocks: Option<Blocks>) -> Self {
        Self { blocks, ..self }
    }

    /// The same with prefixes that are to go when nothing of them is held.
    pub(crate) fn giving_up(self, prefixes: Vec<IpNetwork>) -> Self {
        Self { given_up: Mutex::new(prefixes), ..self }
    }

    pub(crate) fn uptime(&self) -> Duration {
        self.started.elapsed()
    }

    /// Leases addresses until further notice.
    pub(crate) fn lease(&self, request: &LeaseRequest) -> Result<LeaseReply, Error> {
        self.touch();
        let _turn = self.turns.take(&request.id);
        let choice = self.chooser.choose(request)?;
        let all = match request.others {
            OtherFamilies::Omit => self.ipam.read(|all| all.pools().map(Into::into).collect())?,
            _ => Vec::new(),
        };
        let wanted = wanted(request, &choice, &all)?;
        let owner = match &request.pod {
            Some(PodRef { namespace, name, .. }) => {
                owner(&request.id).with_pod(&format!("{namespace}/{name}"))
            }
            None => owner(&request.id),
        };
        // Before the lease is there, so that garbage collection knows whose it is.
        if let Some(network) = &request.network {
            self.asked().insert(request.id.clone(), network.clone());
        }
        let granted = self.grant(request, &choice, &owner, &wanted);
        let lease = granted.map_err(|error| self.refused(&request.id, &choice, error))?;
        let addresses = lease.addresses.iter().map(IpNetwork::from).collect();
        Ok(LeaseReply { addresses, node: self.config.clone() })
    }

    /// What becomes of a request for a lease that failed: nothing stays of it.
    fn refused(&self, id: &EndpointId, choice: &Choice, error: Error) -> Error {
        match error {
            Error::Ipam(podwire_ipam::Error::UnknownPool { pool, known }) => {
                self.asked().remove(id);
                choice.no_pool(pool, known)
            }
            // The disk may have the lease all the same; nobody will hear of it.
            Error::Records(_) if self.endpoint(id).is_none() => {
                if let Err(error) = self.drop_lease(id) {
                    tracing::warn!(%id, error = error::chain(&error), "undoing a failed lease");
                }
                error
            }
            error => {
                if !self.has_lease(id).unwrap_or(true) {
                    self.asked().remove(id);
                }
                error
            }
        }
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
        Ok(removed(self.drop_lease(id)?))
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
        let mut identity = UNMANAGED_IDENTITY;
        if let Some(present) = self.endpoint(id) {
            if is_same(&present, request, addresses) {
                return Ok(present);
            }
            if present.ifindex == request.ifindex {
                let message = format!("endpoint {id} exists with other addresses or MACs");
                return Err(Error::Conflict(message));
            }
            identity = present.identity;
            // The link that it was made for is gone, since this one has its name.
            self.forget(&present, Fate::Replaced)?;
            if Addresses::from_list(&present.addresses)? != addresses {
                self.ipam.release(&owner(id), now())?;
            }
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
        let endpoint = self.build(id, request, &row, identity)?;
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
        let lease = self.drop_lease(id)?;
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

    /// What is wrong with the manifests that annotations are read from.
    pub(crate) fn source_problems(&self) -> Vec<podwire_cluster::Problem> {
        self.chooser.problems()
    }

    /// The pools of pods that name none.
    pub(crate) fn default_pools(&self) -> &[String] {
        &self.default_pools
    }

    /// How much was written to disk.
    /// Records what has nothing to do with endpoints and leases.
    pub(crate) fn keep(&self, changes: Vec<Change>) -> Result<(), Error> {
        self.ipam.begin(changes)?.wait()?;
        Ok(())
    }

    pub(crate) fn counts(&self) -> Counts {
        self.ipam.counts()
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
    pub(crate) fn leases(&self) -> Result<Vec<Lease>, Error> {
        let now = now();
        let mut leases: Vec<Lease> = self.ipam.read(|allocator| {
            allocator.leases().filter_map(|lease| api_lease(allocator, lease, now)).collect()
        })?;
        leases.sort_by(|a, b| a.id.cmp(&b.id));
        Ok(leases)
    }

    fn has_lease(&self, id: &EndpointId) -> Result<bool, Error> {
        Ok(self.ipam.lease(&owner(id))?.is_some())
    }

    /// Takes back what was leased and never used, and says how much that was.
    pub(crate) fn expire(&self) -> Result<usize, Error> {
        let expired = self.ipam.expire(now())?;
        for podwire_ipam::Lease { owner, addresses, .. } in &expired {
            tracing::info!(%owner, %addresses, "lease expired unused");
        }
        if self.asked().is_empty() {
            return Ok(expired.len());
        }
        let held: HashSet<Owner> =
            self.ipam.read(|all| all.leases().map(|lease| lease.owner.clone()).collect())?;
        self.asked().retain(|id, _| held.contains(&owner(id)));
        Ok(expired.len())
    }

    /// Lease, datapath and record of an endpoint whose link has been checked. What is written to disk is
    /// not waited for before the datapath has it.
    fn build(
        &self,
        id: &EndpointId,
        request: &EndpointRequest,
        row: &Row,
        identity: u32,
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
            identity,
        };
        let terms = policy::terms(&endpoint, self.policies().get(id))?;
        let record = vec![store::put(&endpoint)?];
        let recording = match request.interface {
            Interface::Adopted => self.hold(id, row.addresses, record)?,
            _ => self.claim(id, row.addresses, record)?,
        };
        let added = self
            .datapath
            .add(&request.host_link, row, request.disciplines, &terms)
            .map_err(map(id));
        let slot = match (added, recording.wait()) {
            (Ok(slot), Ok(())) => slot,
            // What stays behind below is found and removed when the agent starts next.
            (Err(error), _) => {
                self.undo(id);
                return Err(error);
            }
            (Ok(_), Err(unrecorded)) => {
                if let Err(error) = self.datapath.remove(&request.host_link, request.ifindex) {
                    let reason = error::chain(&*error);
                    tracing::warn!(%id, error = reason, "undoing a failed endpoint");
                }
                self.undo(id);
                return Err(unrecorded.into());
            }
        };
        endpoint.slot = slot;
        Ok(endpoint)
    }

    /// Takes record and lease of an endpoint back that did not come to be.
    fn undo(&self, id: &EndpointId) {
        let undone = self.ipam.begin_release(&owner(id), now(), vec![store::remove(id)]);
        if let Err(error) = undone.and_then(Begun::wait) {
            tracing::warn!(%id, error = error::chain(&error), "undoing a failed endpoint");
        }
    }

    /// Confirms the lease of these addresses, and records the endpoint along with it. A lease that has
    /// expired meanwhile is made again, if its addresses are still free.
    fn claim(
        &self,
        id: &EndpointId,
        addresses: Addresses,
        record: Vec<Change>,
    ) -> Result<Begun<()>, Error> {
        let owner = owner(id);
        match self.ipam.lease(&owner)? {
            Some(held) if held.addresses == addresses => {}
            Some(held) => {
                let held = held.addresses;
                let message = format!("endpoint {id} has {addresses}, but {held} is its lease");
                return Err(Error::Conflict(message));
            }
            None => {
                let list: Vec<IpAddr> = addresses.iter().collect();
                let family = |v4: bool| list.iter().any(|address| address.is_ipv4() == v4);
                let request = match (family(true), family(false)) {
                    (true, false) => Request::family(Family::V4),
                    (false, true) => Request::family(Family::V6),
                    _ => Request::dual_stack(),
                };
                let pools: Vec<String> = self.ipam.read(|all| {
                    list.iter()
                        .filter_map(|address| all.pool_of(*address))
                        .map(Into::into)
                        .collect()
                })?;
                let request = request.from_pools(&pools).with_addresses(&list)?;
                // What is begun later is on the disk no sooner.
                let _ = self.ipam.begin_allocate(&owner, &request, now(), Vec::new())?;
            }
        }
        Ok(self.ipam.begin_confirm(&owner, record)?.map(drop))
    }

    /// Keeps addresses that another plugin chose from being leased to anybody, and records the endpoint.
    fn hold(
        &self,
        id: &EndpointId,
        addresses: Addresses,
        record: Vec<Change>,
    ) -> Result<Begun<()>, Error> {
        Ok(self.ipam.begin_restore(&confirmed(id, addresses), record)?.map(drop))
    }

    /// Takes an endpoint out of datapath, records and leases, in the order that leaves no moment in
    /// which a packet for its address could reach the next owner of it.
    fn forget(&self, endpoint: &Endpoint, fate: Fate) -> Result<(), Error> {
        let Endpoint { id, host_link, ifindex, .. } = endpoint;
        self.provisional().remove(id);
        // If we are killed now, the next start finds a marked link without a record, and deletes it.
        let mut forgotten = vec![store::remove(id)];
        if fate == Fate::Deleted {
            forgotten.push(store::remove_policy(id));
        }
        let forgetting = match fate {
            Fate::Deleted => self.ipam.begin_withdraw(&owner(id), forgotten)?,
            Fate::Replaced => self.ipam.begin(forgotten)?,
        };
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
        forgetting.wait()?;
        self.endpoints().remove(id);
        // The successor has the same owner, and mostly the same addresses.
        if fate == Fate::Deleted {
            self.asked().remove(id);
            self.policies().remove(id);
            self.tell_again(&endpoint.addresses);
            // The disk has it already, but for its cool-down.
            let _ = self.ipam.begin_release(&owner(id), now(), Vec::new())?;
        }
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

    fn drop_lease(&self, id: &EndpointId) -> Result<bool, Error> {
        self.asked().remove(id);
        let released = self.ipam.release(&owner(id), now())?;
        Ok(matches!(released, podwire_ipam::Release::Released(_)))
    }

    fn endpoint_of(&self, ifindex: u32) -> Option<Endpoint> {
        self.endpoints().values().find(|endpoint| endpoint.ifindex == ifindex).cloned()
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

    fn editing(&self) -> MutexGuard<'_, ()> {
        self.edit.lock().unwrap_or_else(PoisonError::into_inner)
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

/// A lease that lasts.
pub(crate) fn confirmed(id: &EndpointId, addresses: Addresses) -> podwire_ipam::Lease {
    let state = podwire_ipam::LeaseState::Confirmed;
    podwire_ipam::Lease { owner: owner(id), addresses, state }
}

/// The clock of the leases. It goes on while the agent is down, and nobody can set it.
pub(crate) fn now() -> Time {
    let uptime = clock_gettime(ClockId::CLOCK_BOOTTIME).map(Duration::from);
    Time::new(uptime.expect("every Linux since 2.6.39 has the clock"))
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
fn wanted(request: &LeaseRequest, choice: &Choice, all: &[String]) -> Result<Request, Error> {
    // Addresses that somebody else chose are of any pool, if nobody named one.
    let list = |pools: &Pools| match (request.others, &pools.origin) {
        (OtherFamilies::Omit, None) => all.to_vec(),
        _ => pools.names.clone(),
    };
    // Equal lists are paired.
    let mut wanted = families(request)?
        .with_addresses(&choice.addresses)?
        .pools_of(Family::V4, &list(&choice.v4))
        .pools_of(Family::V6, &list(&choice.v6));
    if request.others == OtherFamilies::Lease {
        for (family, pools) in [(Family::V4, &choice.v4), (Family::V6, &choice.v6)] {
            if pools.of_family {
                wanted = wanted.require(family);
            }
        }
    }
    if let Some(name) = &choice.sticky {
        wanted = wanted.sticky(name);
    }
    Ok(wanted)
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

fn api_lease(allocator: &Allocator, lease: &podwire_ipam::Lease, now: Time) -> Option<Lease> {
    // Owners are made of endpoint ids, and so turn back into them.
    let id = EndpointId::new(lease.owner.container_id(), lease.owner.ifname()).ok()?;
    let mut pools: Vec<String> = Vec::new();
    for pool in lease.addresses.iter().filter_map(|address| allocator.pool_of(address)) {
        if !pools.iter().any(|known| known == pool) {
            pools.push(pool.to_owned());
        }
    }
    let (state, expires_in) = match lease.state {
        podwire_ipam::LeaseState::Pending { expires } => {
            let left = expires.since_epoch().saturating_sub(now.since_epoch());
            (LeaseState::Pending, Some(left.as_secs()))
        }
        podwire_ipam::LeaseState::Confirmed => (LeaseState::Confirmed, None),
    };
    let (addresses, pod) = (lease.addresses.iter().collect(), lease.owner.pod().map(Into::into));
    Some(Lease { id, addresses, pools, pod, state, expires_in })
}

fn removed(something: bool) -> Removed {
    if something { Removed::Removed } else { Removed::Absent }
}

fn seconds_since_1970() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
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
