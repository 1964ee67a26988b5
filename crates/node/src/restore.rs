use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::thread;
use std::time::Duration;

use podwire_api::{Disciplines, Endpoint, EndpointId, PodRef, Policy, Repair};
use podwire_ipam::{Addresses, LeaseState};
use podwire_policy::Compiled;

use crate::error::{Source, chain};
use crate::node::policy::{in_force, terms};
use crate::node::{confirmed, now, owner};
use crate::reconcile::{Observed, Plan, Step, is_unfinished, plan, rebuild};
use crate::seam::{Datapath, Link, Links, Terms};
use crate::store::{self, Records};
use crate::{Config, Error, notes};

/// How many endpoints' working programs a start replaces before it answers requests; the kernel
/// takes 10 to 20 ms for each. The others' are replaced while requests are answered.
const AT_START: usize = 32;

/// What a start has found and made of it.
#[derive(Debug)]
pub(crate) struct Restored {
    pub(crate) endpoints: Vec<Endpoint>,
    /// What they may send and receive, of those that have a policy.
    pub(crate) policies: BTreeMap<EndpointId, Policy>,
    pub(crate) repairs: Vec<Repair>,
}

/// What is brought together.
pub(crate) struct Sides<'a> {
    pub(crate) ipam: &'a Records,
    pub(crate) datapath: &'a dyn Datapath,
    pub(crate) links: &'a dyn Links,
    /// What endpoints may send and receive, of those that somebody said it of.
    pub(crate) policies: &'a BTreeMap<EndpointId, Policy>,
}

/// Brings records, notes, kernel and leases together, before the first request is answered.
///
/// One endpoint that cannot be put right does not keep the others from their agent: it is told and
/// skipped. After the loss of the records, which are `None` then, the kernel says who the endpoints are.
pub(crate) fn restore(
    config: &Config,
    notes_dir: &Path,
    records: Option<&[Endpoint]>,
    sides: &Sides<'_>,
) -> Result<Restored, Error> {
    let waiting = notes::read(notes_dir)?;
    let noted: BTreeSet<_> = waiting.notes.iter().map(|note| note.id.clone()).collect();
    let mut observed = observe(records.unwrap_or_default(), sides)?;
    let rebuilt;
    let records = match records {
        Some(records) => records,
        None => {
            rebuilt = rebuild(&config.node, &observed);
            let changes = rebuilt.iter().map(store::put).collect::<Result<Vec<_>, _>>()?;
            sides.ipam.begin(changes)?.wait()?;
            observed = observe(&rebuilt, sides)?;
            &rebuilt
        }
    };
    let Plan { steps, mut repairs } = plan(&config.node, records, &noted, &observed);
    for stranger in &waiting.strangers {
        repairs.push(Repair {
            object: stranger.display().to_string(),
            found: "is no note of a DEL".into(),
            done: "left alone".into(),
        });
    }
    let mut policies = sides.policies.clone();
    policies.extend(take_up(&steps, &observed, sides, &mut repairs)?);
    let Sides { ipam, datapath, links, .. } = *sides;
    let sides = &Sides { ipam, datapath, links, policies: &policies };
    let mut endpoints = Vec::with_capacity(records.len());
    let mut at_start = AT_START;
    for step in &steps {
        match act(step, &mut at_start, sides) {
            Ok(None) => {}
            Ok(Some(endpoint)) => {
                match set_terms(&endpoint, &observed, sides) {
                    Ok(None) => {}
                    Ok(Some(found)) => {
                        let (object, done) = (subject(step), "rewritten".into());
                        repairs.push(Repair { object, found, done });
                    }
                    // It is there for all that; what held before holds on.
                    Err(error) => {
                        let (object, found) = (subject(step), chain(&error));
                        tracing::error!(object, error = found, "restoring identity and policy");
                        repairs.push(Repair { object, found, done: "failed".into() });
                    }
                }
                endpoints.push(endpoint);
            }
            // Without its lease, somebody else would be granted the address of a pod that lives.
            Err(error @ Error::Records(_)) => return Err(error),
            Err(error) => {
                let (object, found) = (subject(step), chain(&error));
                tracing::error!(object, error = found, "restoring");
                repairs.push(Repair { object, found, done: "failed".into() });
            }
        }
    }
    if steps.iter().any(|step| matches!(step, Step::Remove { .. })) {
        let waited = sides.datapath.settle();
        waited.map_err(trouble("wait for a grace period after", "removals"))?;
    }
    repairs.extend(release_unused(sides.ipam, records, &noted)?);
    notes::remove(notes_dir, &waiting.notes)?;
    for step in &steps {
        if let Step::DropRecord { id } = step {
            policies.remove(id);
        }
    }
    Ok(Restored { endpoints, policies, repairs })
}

/// Puts policies on record that the datapath has for endpoints of which none is on record, as after the loss of
/// the records. What cannot be said as rules stays in force, and is told.
fn take_up(
    steps: &[Step],
    observed: &Observed,
    sides: &Sides<'_>,
    repairs: &mut Vec<Repair>,
) -> Result<BTreeMap<EndpointId, Policy>, Error> {
    let mut taken = BTreeMap::new();
    for Endpoint { id, ifindex, .. } in steps.iter().filter_map(Step::endpoint) {
        let Some(found) = observed.terms.get(ifindex) else { continue };
        if sides.policies.contains_key(id) {
            continue;
        }
        let (found, done) = match in_force(id, found) {
            Ok(None) => continue,
            Ok(Some(policy)) => {
                taken.insert(id.clone(), policy);
                ("a policy is in force that is not on record".into(), "put on record")
            }
            Err(error) => (chain(&error), "left in force"),
        };
        repairs.push(Repair { object: format!("endpoint {id}"), found, done: done.into() });
    }
    if !taken.is_empty() {
        let changes = taken.iter().map(|(id, policy)| store::put_policy(id, policy));
        sides.ipam.begin(changes.collect::<Result<_, _>>()?)?.wait()?;
    }
    Ok(taken)
}

/// Takes back leases that outlived their endpoint, or whose DEL met no agent. A pending one may have an
/// ADD that is under way right now, and expires by itself.
fn release_unused(
    ipam: &Records,
    records: &[Endpoint],
    noted: &BTreeSet<EndpointId>,
) -> Result<Vec<Repair>, Error> {
    let recorded: BTreeSet<_> = records.iter().map(|record| owner(&record.id)).collect();
    let noted: BTreeSet<_> = noted.iter().map(owner).collect();
    let mut repairs = Vec::new();
    for lease in ipam.leases()? {
        let is_lost = lease.state == LeaseState::Confirmed && !recorded.contains(&lease.owner);
        if !is_lost && !noted.contains(&lease.owner) {
            continue;
        }
        ipam.release(&lease.owner, now())?;
        if is_lost {
            repairs.push(Repair {
                object: format!("lease of {}", lease.owner),
                found: "no endpoint goes with it".into(),
                done: format!("taken back, {} free", lease.addresses),
            });
        }
    }
    Ok(repairs)
}

fn observe(records: &[Endpoint], sides: &Sides<'_>) -> Result<Observed, Error> {
    let Sides { datapath, links, .. } = sides;
    let read = |object| trouble("read", object);
    let mut found = links.all().map_err(read("the links"))?;
    if found.iter().any(is_unfinished) {
        // An ADD may be at it right now: it takes a millisecond between birth and alias.
        thread::sleep(Duration::from_millis(200));
        let now = links.all().map_err(read("the links"))?;
        let (unfinished, finished): (Vec<Link>, Vec<Link>) =
            now.into_iter().partition(is_unfinished);
        let still = unfinished.into_iter().filter(|link| found.contains(link));
        found = finished.into_iter().chain(still.collect::<Vec<_>>()).collect();
    }
    let indices: Vec<u32> = records.iter().map(|record| record.ifindex).collect();
    Ok(Observed {
        hanging: links.survey(&indices).map_err(read("what hangs on the links"))?,
        links: found,
        rows: datapath.rows().map_err(read("the datapath's endpoints"))?,
        terms: datapath.all_terms().map_err(read("the datapath's identities and policies"))?,
        pins: datapath.pins().map_err(read("the pins"))?,
    })
}

fn act(step: &Step, at_start: &mut usize, sides: &Sides<'_>) -> Result<Option<Endpoint>, Error> {
    let Sides { ipam, datapath, links, .. } = *sides;
    match step {
        Step::Remove { link, ifindex } => {
            datapath.remove(link, *ifindex).map_err(trouble("remove from the datapath", link))?;
            Ok(None)
        }
        Step::DeleteLink { link, ifindex } => {
            links.delete(*ifindex).map_err(trouble("delete link", link))?;
            Ok(None)
        }
        Step::Unmark { link, ifindex, mark } => {
            links.unmark(*ifindex, mark).map_err(trouble("take the mark off", link))?;
            Ok(None)
        }
        Step::DropRecord { id } => {
            let forgotten = vec![store::remove(id), store::remove_policy(id)];
            ipam.begin_release(&owner(id), now(), forgotten)?.wait()?;
            Ok(None)
        }
        Step::Keep { endpoint } => {
            hold(ipam, endpoint)?;
            if *at_start > 0 {
                *at_start -= 1;
                refresh(datapath, endpoint)?;
            }
            Ok(Some(endpoint.clone()))
        }
        Step::Refresh { endpoint } => {
            hold(ipam, endpoint)?;
            refresh(datapath, endpoint)?;
            Ok(Some(endpoint.clone()))
        }
        Step::Write { endpoint, row } => {
            hold(ipam, endpoint)?;
            let slot = datapath
                .add(&endpoint.host_link, row, Disciplines::Free, &terms_or_none(endpoint, sides))
                .map_err(trouble("write into the datapath", &endpoint.id))?;
            // What is attached may know other maps than the ones that were just written.
            refresh(datapath, endpoint)?;
            Ok(Some(Endpoint { slot, ..endpoint.clone() }))
        }
    }
}

/// Has the datapath's terms be those on record; says how they were not.
fn set_terms(
    endpoint: &Endpoint,
    observed: &Observed,
    sides: &Sides<'_>,
) -> Result<Option<String>, Error> {
    let mut terms = terms(endpoint, sides.policies.get(&endpoint.id))?;
    let set = sides.datapath.set_terms(endpoint.ifindex, &terms);
    set.map_err(trouble("write into the datapath", &endpoint.id))?;
    let Some(found) = observed.terms.get(&endpoint.ifindex) else { return Ok(None) };
    if terms.policy.is_none() {
        // What it had it has.
        terms.policy.clone_from(&found.policy);
    }
    Ok(terms.difference(found))
}

/// An endpoint whose policy cannot be read, since another version wrote it, sends and receives nothing until
/// it has a new one.
fn terms_or_none(endpoint: &Endpoint, sides: &Sides<'_>) -> Terms {
    terms(endpoint, sides.policies.get(&endpoint.id))
        .unwrap_or_else(|_| Terms { identity: endpoint.identity, policy: Some(Compiled::closed()) })
}

fn refresh(datapath: &dyn Datapath, endpoint: &Endpoint) -> Result<(), Error> {
    let Endpoint { host_link, ifindex, .. } = endpoint;
    datapath.refresh(host_link, *ifindex).map_err(trouble("replace the programs of", host_link))
}

/// Takes the endpoint's addresses, also if today's prefixes would not give them.
fn hold(ipam: &Records, endpoint: &Endpoint) -> Result<(), Error> {
    let mut lease = confirmed(&endpoint.id, Addresses::from_list(&endpoint.addresses)?);
    if ipam.lease(&lease.owner)?.as_ref() == Some(&lease) {
        return Ok(());
    }
    if let Some(PodRef { namespace, name, .. }) = &endpoint.pod {
        lease.owner = lease.owner.with_pod(&format!("{namespace}/{name}"));
    }
    ipam.restore(&lease)?;
    Ok(())
}

fn subject(step: &Step) -> String {
    match step {
        Step::Remove { link, .. } | Step::DeleteLink { link, .. } | Step::Unmark { link, .. } => {
            format!("link {link}")
        }
        Step::DropRecord { id } => format!("endpoint {id}"),
        Step::Keep { endpoint } | Step::Refresh { endpoint } | Step::Write { endpoint, .. } => {
            format!("endpoint {}", endpoint.id)
        }
    }
}

fn trouble(
    operation: &'static str,
    object: &(impl ToString + ?Sized),
) -> impl FnOnce(Source) -> Error {
    let object = object.to_string();
    move |source| Error::Kernel { operation, object, source }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use podwire_api::{Delivery, EndpointId, Interface, Mac, Mark};
    use serde_json::json;

    use super::*;
    use crate::memory::{MemoryDatapath, MemoryLinks};
    use crate::seam::Row;

    const MAC: Mac = Mac([2, 0, 0, 0, 0, 1]);
    const HOST_MAC: Mac = Mac([2, 0, 0, 0, 0, 2]);

    struct Bench {
        config: Config,
        folder: tempfile::TempDir,
        policies: BTreeMap<EndpointId, Policy>,
        datapath: MemoryDatapath,
        links: MemoryLinks,
    }

    fn bench() -> Bench {
        let config = Config::new("n1".parse().unwrap(), vec!["10.1.0.0/24".parse().unwrap()]);
        Bench {
            config,
            folder: tempfile::tempdir().unwrap(),
            policies: BTreeMap::new(),
            datapath: MemoryDatapath::default(),
            links: MemoryLinks::default(),
        }
    }

    fn record(container: &str, ifindex: u32) -> Endpoint {
        let id = EndpointId::new(container, "eth0").unwrap();
        Endpoint {
            host_link: id.host_link(),
            id,
            ifindex,
            mac: MAC,
            host_mac: HOST_MAC,
            addresses: vec![[10, 1, 0, u8::try_from(ifindex).unwrap()].into()],
            slot: 0,
            delivery: Delivery::Peer,
            created: 1,
            network: None,
            pod: None,
            interface: Interface::Own,
            identity: podwire_api::UNMANAGED_IDENTITY,
        }
    }

    impl Bench {
        fn plug(&self, endpoint: &Endpoint) {
            let mark = Mark::Endpoint { node: self.config.node.clone(), id: endpoint.id.clone() };
            self.links.insert(Link {
                name: endpoint.host_link.clone(),
                index: endpoint.ifindex,
                kind: Some("veth".into()),
                mac: Some(HOST_MAC),
                alias: Some(mark.to_string()),
                group: 0,
            });
        }

        fn write(&self, endpoint: &Endpoint) {
            let row = Row {
                ifindex: endpoint.ifindex,
                mac: endpoint.mac,
                host_mac: endpoint.host_mac,
                addresses: Addresses::from_list(&endpoint.addresses).unwrap(),
                delivery: Delivery::Peer,
                interface: Interface::Own,
            };
            let terms = terms(endpoint, None).unwrap();
            self.datapath.add(&endpoint.host_link, &row, Disciplines::Free, &terms).unwrap();
        }

        fn open(&self) -> store::Opened {
            let path = self.folder.path().join("podwire.redb");
            store::open(&path, &self.config.node, "boot").unwrap()
        }

        /// Restores with these records, and gives what is recorded afterwards as well.
        fn restore(&self, records: &[Endpoint]) -> (Restored, Records, Vec<Endpoint>) {
            let ipam = self.open().ipam;
            let changes = records.iter().map(|one| store::put(one).unwrap()).collect();
            ipam.begin(changes).unwrap().wait().unwrap();
            let restored = self.restore_from(&ipam, Some(records));
            drop(ipam);
            let opened = self.open();
            (restored, opened.ipam, opened.endpoints)
        }

        fn restore_from(&self, ipam: &Records, records: Option<&[Endpoint]>) -> Restored {
            let notes = self.folder.path().join("pending-del");
            fs::create_dir_all(&notes).unwrap();
            crate::pools::arrange(ipam, &self.config, &store::PodCidrs::default()).unwrap();
            let sides = Sides {
                ipam,
                datapath: &self.datapath,
                links: &self.links,
                policies: &self.policies,
            };
            restore(&self.config, &notes, records, &sides).unwrap()
        }
    }

    #[test]
    fn whole_endpoints_keep_their_addresses() {
        let bench = bench();
        let (a, b) = (record("a", 7), record("b", 8));
        for endpoint in [&a, &b] {
            bench.plug(endpoint);
            bench.write(endpoint);
        }
        let (restored, ipam, kept) = bench.restore(&[a.clone(), b.clone()]);
        assert_eq!(restored.repairs, []);
        assert_eq!(restored.endpoints.len(), 2);
        assert_eq!(ipam.holder(a.addresses[0]).unwrap(), Some(owner(&a.id)));
        assert_eq!(kept, [a, b]);
    }

    #[test]
    fn what_is_gone_is_forgotten() {
        let bench = bench();
        let (a, b) = (record("a", 7), record("b", 8));
        bench.plug(&a);
        bench.write(&a);
        bench.write(&b);
        let (restored, ipam, kept) = bench.restore(&[a.clone(), b.clone()]);
        assert_eq!(restored.repairs.len(), 1, "{restored:?}");
        assert_eq!(ipam.holder(b.addresses[0]).unwrap(), None);
        assert_eq!(kept, [a]);
        assert_eq!(bench.datapath.rows().unwrap().len(), 1);
    }

    #[test]
    fn notes_are_honoured_once() {
        let bench = bench();
        let a = record("a", 7);
        bench.plug(&a);
        bench.write(&a);
        let notes = bench.folder.path().join("pending-del");
        fs::create_dir_all(&notes).unwrap();
        let note = notes.join(&a.host_link);
        fs::write(&note, serde_json::to_vec(&a.id).unwrap()).unwrap();
        let (restored, _, kept) = bench.restore(std::slice::from_ref(&a));
        assert_eq!((restored.endpoints.len(), kept.len()), (0, 0));
        assert!(!note.exists());
        assert!(bench.links.all().unwrap().is_empty());
        assert!(bench.datapath.is_empty());
    }

    #[test]
    fn a_failing_endpoint_does_not_stop_the_others() {
        let bench = bench();
        let (a, b) = (record("a", 7), record("b", 8));
        bench.plug(&a);
        bench.plug(&b);
        bench.datapath.fail_next("add");
        let (restored, ..) = bench.restore(&[a, b]);
        assert_eq!(restored.endpoints.len(), 1);
        assert!(restored.repairs.iter().any(|repair| repair.done == "failed"));
    }

    #[test]
    fn lost_records_are_rebuilt_from_the_kernel() {
        let bench = bench();
        let (a, b) = (record("a", 7), record("b", 8));
        bench.plug(&a);
        bench.write(&a);
        // The datapath never had it: nobody knows its addresses.
        bench.plug(&b);
        let ipam = bench.open().ipam;
        let restored = bench.restore_from(&ipam, None);
        assert_eq!(restored.endpoints.len(), 1);
        let found = &restored.endpoints[0];
        assert_eq!((&found.id, &found.addresses, found.mac), (&a.id, &a.addresses, a.mac));
        assert_eq!(ipam.holder(a.addresses[0]).unwrap(), Some(owner(&a.id)));
        assert!(restored.repairs.iter().any(|one| one.object.contains("b/eth0")), "{restored:?}");
        drop(ipam);
        assert_eq!(bench.open().endpoints.len(), 1);
    }

    fn closed_but(peer: &str) -> Policy {
        let rule = json!({"action": "allow", "peer": peer, "protocol": "tcp", "ports": "80"});
        serde_json::from_value(json!({"ingress": {"default": "deny", "rules": [rule]}})).unwrap()
    }

    fn told(restored: &Restored) -> Vec<(&str, &str, &str)> {
        let repairs = restored.repairs.iter();
        repairs.map(|one| (&*one.object, &*one.found, &*one.done)).collect()
    }

    #[test]
    fn policies_in_force_come_back_on_record() {
        let bench = bench();
        let (a, b) = (record("a", 7), record("b", 8));
        for endpoint in [&a, &b] {
            bench.plug(endpoint);
            bench.write(endpoint);
        }
        let policy = closed_but("identity:4711");
        let in_force = terms(&Endpoint { identity: 700, ..a.clone() }, Some(&policy)).unwrap();
        bench.datapath.set_terms(7, &in_force).unwrap();
        let ipam = bench.open().ipam;
        let restored = bench.restore_from(&ipam, None);
        let expected =
            [("endpoint a/eth0", "a policy is in force that is not on record", "put on record")];
        assert_eq!(told(&restored), expected);
        assert_eq!(restored.endpoints[0].identity, 700);
        assert_eq!(bench.datapath.terms(7), Some(in_force));
        let policies = BTreeMap::from([(a.id, policy)]);
        assert_eq!(restored.policies, policies);
        drop(ipam);
        let opened = bench.open();
        assert_eq!((opened.policies, opened.endpoints[0].identity), (policies, 700));
    }

    #[test]
    fn the_record_counts_where_the_datapath_has_another_policy() {
        let mut bench = bench();
        let (a, b) = (record("a", 7), record("b", 8));
        bench.plug(&a);
        bench.write(&a);
        // That of an endpoint which is gone goes with it.
        bench.policies = [&a, &b].map(|one| (one.id.clone(), closed_but("identity:4711"))).into();
        let right = terms(&a, bench.policies.get(&a.id)).unwrap();
        let (restored, ..) = bench.restore(&[a.clone(), b]);
        let told = told(&restored);
        let another = ("endpoint a/eth0", "the datapath has another policy", "rewritten");
        assert!(told.contains(&another), "{told:?}");
        assert_eq!(bench.datapath.terms(7), Some(right));
        assert_eq!(restored.policies.keys().collect::<Vec<_>>(), [&a.id]);
    }

    #[test]
    fn a_policy_that_no_rules_make_stays_in_force() {
        let bench = bench();
        let a = record("a", 7);
        bench.plug(&a);
        bench.write(&a);
        let mut strange = terms(&a, Some(&closed_but("everybody"))).unwrap();
        let rows = &mut strange.policy.as_mut().unwrap().ingress;
        rows.identities = [(7, podwire_policy::RuleList::default())].into();
        bench.datapath.set_terms(7, &strange).unwrap();
        let (restored, ..) = bench.restore(&[a]);
        assert!(matches!(told(&restored)[..], [("endpoint a/eth0", _, "left in force")]));
        assert_eq!(bench.datapath.terms(7), Some(strange));
        assert_eq!(restored.policies, BTreeMap::new());
    }

    #[test]
    fn leases_without_an_endpoint_are_taken_back() {
        let bench = bench();
        let ipam = bench.open().ipam;
        crate::pools::arrange(&ipam, &bench.config, &store::PodCidrs::default()).unwrap();
        let allocate = |container: &str| {
            let owner = owner(&EndpointId::new(container, "eth0").unwrap());
            ipam.allocate(&owner, &podwire_ipam::Request::default(), now()).unwrap();
            owner
        };
        let (lost, pending, noted) = (allocate("lost"), allocate("pending"), allocate("noted"));
        ipam.confirm(&lost).unwrap();
        let id = EndpointId::new("noted", "eth0").unwrap();
        let notes = bench.folder.path().join("pending-del");
        fs::create_dir_all(&notes).unwrap();
        fs::write(notes.join(id.host_link()), serde_json::to_vec(&id).unwrap()).unwrap();
        let restored = bench.restore_from(&ipam, Some(&[]));
        assert_eq!(restored.repairs.len(), 1, "{restored:?}");
        assert_eq!(restored.repairs[0].object, "lease of lost/eth0");
        assert_eq!(ipam.lease(&lost).unwrap(), None);
        assert_eq!(ipam.lease(&noted).unwrap(), None);
        assert!(ipam.lease(&pending).unwrap().is_some());
    }
}
