use std::collections::BTreeSet;
use std::path::Path;
use std::thread;
use std::time::Duration;

use podwire_api::{Disciplines, Endpoint, Repair};
use podwire_ipam::{Addresses, Allocator, Lease, LeaseState};

use crate::error::{Source, chain};
use crate::node::owner;
use crate::reconcile::{Observed, Plan, Step, is_unfinished, plan};
use crate::seam::{Datapath, Link, Links};
use crate::store::Store;
use crate::{Config, Error, notes};

/// How many endpoints' working programs a start replaces before it answers requests; the kernel
/// takes 10 to 20 ms for each. The others' are replaced while requests are answered.
const AT_START: usize = 32;

/// What a start has found and made of it.
#[derive(Debug)]
pub(crate) struct Restored {
    pub(crate) endpoints: Vec<Endpoint>,
    pub(crate) repairs: Vec<Repair>,
}

/// Brings records, notes, kernel and leases together, before the first request is answered.
///
/// One endpoint that cannot be put right does not keep the others from their agent: it is told and
/// skipped.
pub(crate) fn restore(
    config: &Config,
    notes_dir: &Path,
    records: &[Endpoint],
    store: &Store,
    allocator: &mut Allocator,
    datapath: &dyn Datapath,
    links: &dyn Links,
) -> Result<Restored, Error> {
    let waiting = notes::read(notes_dir)?;
    let noted: BTreeSet<_> = waiting.notes.iter().map(|note| note.id.clone()).collect();
    let observed = observe(records, datapath, links)?;
    let Plan { steps, mut repairs } = plan(&config.node, records, &noted, &observed);
    for stranger in &waiting.strangers {
        repairs.push(Repair {
            object: stranger.display().to_string(),
            found: "is no note of a DEL".into(),
            done: "left alone".into(),
        });
    }
    let mut endpoints = Vec::with_capacity(records.len());
    let mut at_start = AT_START;
    for step in &steps {
        match act(step, &mut at_start, store, allocator, datapath, links) {
            Ok(None) => {}
            Ok(Some(endpoint)) => endpoints.push(endpoint),
            Err(error) => {
                let (object, found) = (subject(step), chain(&error));
                tracing::error!(object, error = found, "restoring");
                repairs.push(Repair { object, found, done: "failed".into() });
            }
        }
    }
    if steps.iter().any(|step| matches!(step, Step::Remove { .. })) {
        let waited = datapath.settle();
        waited.map_err(trouble("wait for a grace period after", "removals"))?;
    }
    notes::remove(notes_dir, &waiting.notes)?;
    Ok(Restored { endpoints, repairs })
}

fn observe(
    records: &[Endpoint],
    datapath: &dyn Datapath,
    links: &dyn Links,
) -> Result<Observed, Error> {
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
        pins: datapath.pins().map_err(read("the pins"))?,
    })
}

fn act(
    step: &Step,
    at_start: &mut usize,
    store: &Store,
    allocator: &mut Allocator,
    datapath: &dyn Datapath,
    links: &dyn Links,
) -> Result<Option<Endpoint>, Error> {
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
            store.delete(id).map_err(|error| trouble("forget", id)(chain(&*error).into()))?;
            Ok(None)
        }
        Step::Keep { endpoint } => {
            hold(allocator, endpoint)?;
            if *at_start > 0 {
                *at_start -= 1;
                refresh(datapath, endpoint)?;
            }
            Ok(Some(endpoint.clone()))
        }
        Step::Refresh { endpoint } => {
            hold(allocator, endpoint)?;
            refresh(datapath, endpoint)?;
            Ok(Some(endpoint.clone()))
        }
        Step::Write { endpoint, row } => {
            hold(allocator, endpoint)?;
            let slot = datapath
                .add(&endpoint.host_link, row, Disciplines::Free)
                .map_err(trouble("write into the datapath", &endpoint.id))?;
            // What is attached may know other maps than the ones that were just written.
            refresh(datapath, endpoint)?;
            Ok(Some(Endpoint { slot, ..endpoint.clone() }))
        }
    }
}

fn refresh(datapath: &dyn Datapath, endpoint: &Endpoint) -> Result<(), Error> {
    let Endpoint { host_link, ifindex, .. } = endpoint;
    datapath.refresh(host_link, *ifindex).map_err(trouble("replace the programs of", host_link))
}

/// Takes the endpoint's addresses, also if today's prefixes would not give them.
fn hold(allocator: &mut Allocator, endpoint: &Endpoint) -> Result<(), Error> {
    let addresses = Addresses::from_list(&endpoint.addresses)?;
    let owner = owner(&endpoint.id);
    allocator.restore(Lease { owner, addresses, state: LeaseState::Confirmed })?;
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
    use podwire_ipam::PoolConfig;

    use super::*;
    use crate::memory::{MemoryDatapath, MemoryLinks};
    use crate::seam::Row;

    const MAC: Mac = Mac([2, 0, 0, 0, 0, 1]);
    const HOST_MAC: Mac = Mac([2, 0, 0, 0, 0, 2]);

    struct Bench {
        config: Config,
        folder: tempfile::TempDir,
        datapath: MemoryDatapath,
        links: MemoryLinks,
    }

    fn bench() -> Bench {
        let config = Config::new("n1".parse().unwrap(), vec!["10.1.0.0/24".parse().unwrap()]);
        Bench {
            config,
            folder: tempfile::tempdir().unwrap(),
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
            self.datapath.add(&endpoint.host_link, &row, Disciplines::Free).unwrap();
        }

        fn restore(&self, records: &[Endpoint]) -> (Restored, Allocator, Vec<Endpoint>) {
            let path = self.folder.path().join("podwire.redb");
            let node = &self.config.node;
            let opened = Store::open(&path, node, "boot").unwrap();
            for record in records {
                opened.store.put(record).unwrap();
            }
            let notes = self.folder.path().join("pending-del");
            fs::create_dir_all(&notes).unwrap();
            let pool = PoolConfig::new("default", self.config.pod_cidrs.clone());
            let mut allocator = Allocator::new(&pool).unwrap();
            let restored = restore(
                &self.config,
                &notes,
                records,
                &opened.store,
                &mut allocator,
                &self.datapath,
                &self.links,
            )
            .unwrap();
            drop(opened);
            let kept = Store::open(&path, node, "boot").unwrap().records;
            (restored, allocator, kept)
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
        let (restored, allocator, kept) = bench.restore(&[a.clone(), b.clone()]);
        assert_eq!(restored.repairs, []);
        assert_eq!(restored.endpoints.len(), 2);
        assert_eq!(allocator.holder(a.addresses[0]), Some(&owner(&a.id)));
        assert_eq!(kept, [a, b]);
    }

    #[test]
    fn what_is_gone_is_forgotten() {
        let bench = bench();
        let (a, b) = (record("a", 7), record("b", 8));
        bench.plug(&a);
        bench.write(&a);
        bench.write(&b);
        let (restored, allocator, kept) = bench.restore(&[a.clone(), b.clone()]);
        assert_eq!(restored.repairs.len(), 1, "{restored:?}");
        assert_eq!(allocator.holder(b.addresses[0]), None);
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
}
