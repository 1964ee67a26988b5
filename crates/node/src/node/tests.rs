use std::thread;

use podwire_api::{Disciplines, ErrorCode, Mac, PodRef};
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
    folder: tempfile::TempDir,
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
        Chooser::new(config.default_pools.clone(), None),
        allocator,
        Vec::new(),
        opened.store,
        datapath.clone(),
        links.clone(),
    )
    .unwrap();
    Bench { node, datapath, links, folder }
}

/// Pods and namespaces by their manifests, in place of the defaults.
fn bench_with(manifests: &str) -> Bench {
    let mut bench = bench();
    let manifests_folder = bench.folder.path().join("manifests");
    std::fs::create_dir(&manifests_folder).unwrap();
    std::fs::write(manifests_folder.join("all.yaml"), manifests).unwrap();
    let source = Arc::new(podwire_cluster::Directory::watch(manifests_folder).unwrap());
    bench.node.chooser = Chooser::new(vec!["default".into()], Some(source));
    bench
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

fn of_pod(container: &str, name: &str, annotations: &[(&str, &str)]) -> LeaseRequest {
    let pair = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
    LeaseRequest {
        pod: Some(PodRef { namespace: "shop".into(), name: name.into(), uid: None }),
        annotations: annotations.iter().map(pair).collect(),
        ..LeaseRequest::new(id(container))
    }
}

#[test]
fn annotations_name_addresses_and_are_refused_with_a_reason() {
    let bench = bench_with(
        "apiVersion: v1\nkind: Pod\nmetadata:\n  name: web-0\n  namespace: shop\n  \
                            annotations: { podwire.io/ips: fd00:1::77 }\n",
    );
    let leased = |request: &LeaseRequest| {
        let reply = bench.node.lease(request)?;
        Ok(reply.addresses.iter().map(|one| one.ip().to_string()).collect::<Vec<_>>())
    };
    let refused = |request: &LeaseRequest| -> String {
        let error: Error = leased(request).unwrap_err();
        assert_eq!(error.body().code, ErrorCode::Invalid, "{error}");
        error.to_string()
    };
    let mut explicit = of_pod("c1", "a", &[("podwire.io/ips", "10.1.0.77")]);
    assert_eq!(leased(&explicit).unwrap()[0], "10.1.0.77");
    // Of the manifest, since the runtime passes none; and of the CNI call.
    let mut both = of_pod("c2", "web-0", &[]);
    both.addresses = vec![[10, 1, 0, 78].into()];
    assert_eq!(leased(&both).unwrap(), ["10.1.0.78", "fd00:1::77"]);

    explicit.addresses = vec![[10, 1, 0, 79].into()];
    assert!(refused(&explicit).contains("10.1.0.77, and the CNI call 10.1.0.79"));
    let typo = refused(&of_pod("c3", "a", &[("podwire.io/ip", "10.1.0.80")]));
    assert!(typo.starts_with("pod shop/a: annotation podwire.io/ip: \"10.1.0.80\": "), "{typo}");
    let outside = refused(&of_pod("c3", "a", &[("podwire.io/ips", "10.9.0.80")]));
    assert!(outside.contains("10.9.0.80"), "{outside}");
    assert_eq!(bench.node.leases().len(), 2);
}

#[test]
fn a_pool_that_is_not_there_is_named_with_who_chose_it() {
    let bench = bench_with(
        "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: shop\n  annotations:\n    \
                            podwire.io/pool: default, green\n",
    );
    let refused = |annotations: &[(&str, &str)]| {
        let error = bench.node.lease(&of_pod("c1", "a", annotations)).unwrap_err();
        assert_eq!(error.body().code, ErrorCode::Invalid);
        error.to_string()
    };
    assert_eq!(
        refused(&[("podwire.io/pool", "blue,default")]),
        "there is no pool blue, which annotation podwire.io/pool of pod shop/a names"
    );
    assert_eq!(
        refused(&[("podwire.io/pool-ipv4", "default")]),
        "there is no pool green, which annotation podwire.io/pool of namespace shop names"
    );
    bench.node.lease(&of_pod("c1", "a", &[("podwire.io/pool", "default")])).unwrap();
}
