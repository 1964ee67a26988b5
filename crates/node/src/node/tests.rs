mod blocks;
mod policy;

use std::thread;

use podwire_api::{
    CidrEdit, CidrRequest, Disciplines, ErrorCode, Mac, OnDisagreement, Outcome, PodRef, Pool,
    PoolRequest, Reservation,
};
use podwire_netns::UNFINISHED_GROUP;

use super::*;
use crate::memory::{MemoryDatapath, MemoryLinks, MemoryRoutes};

const MAC: Mac = Mac([2, 0, 0, 0, 0, 1]);
const HOST_MAC: Mac = Mac([2, 0, 0, 0, 0, 2]);

#[derive(Debug)]
struct Bench {
    node: Node,
    datapath: Arc<MemoryDatapath>,
    links: Arc<MemoryLinks>,
    routes: Arc<MemoryRoutes>,
    folder: tempfile::TempDir,
}

fn bench_of(cidrs: &[&str]) -> Bench {
    let folder = tempfile::tempdir().unwrap();
    let cidrs: Vec<IpNetwork> = cidrs.iter().map(|cidr| cidr.parse().unwrap()).collect();
    let config = Config::new("n1".parse().unwrap(), cidrs);
    let path = folder.path().join("podwire.redb");
    let ipam = store::open(&path, &config.node, "boot").unwrap().ipam;
    crate::pools::arrange(&ipam, &config, &store::PodCidrs::default()).unwrap();
    let datapath = Arc::new(MemoryDatapath::default());
    let links = Arc::new(MemoryLinks::default());
    let routes = Arc::new(MemoryRoutes::default());
    let kernel =
        Kernel { datapath: datapath.clone(), links: links.clone(), routes: routes.clone() };
    let chooser = Chooser::new(config.default_pools.clone(), None);
    let node = Node::new(&config, chooser, ipam, Vec::new(), kernel).unwrap();
    Bench { node, datapath, links, routes, folder }
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
            && self.node.leases().unwrap().is_empty()
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
    assert_eq!(bench.node.leases().unwrap()[0].state, LeaseState::Confirmed);
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
    assert_eq!(bench.node.leases().unwrap().len(), 1);
    // A lease that has expired is made anew.
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
        assert_eq!(bench.node.leases().unwrap()[0].addresses, endpoint.addresses, "{failing}");
        assert!(bench.node.endpoint(&id("c1")).is_some(), "{failing}");
    }
    assert_eq!(bench.node.delete(&id("c1")).unwrap(), Removed::Removed);
}

#[test]
fn leases_come_and_go() {
    let bench = bench();
    let first = bench.lease("c1").unwrap();
    assert_eq!(bench.lease("c1").unwrap(), first);
    assert_eq!(bench.node.leases().unwrap()[0].state, LeaseState::Pending);
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
    assert_eq!(bench.node.leases().unwrap().len(), 1);
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
    let leased: Vec<_> = bench.node.leases().unwrap().into_iter().map(|lease| lease.id).collect();
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
    assert_eq!(bench.node.leases().unwrap().len(), 2);
}

#[test]
fn a_pool_that_is_not_there_is_named_with_who_chose_it() {
    let bench = bench_with(NAMESPACE);
    let refused = |annotations: &[(&str, &str)]| {
        let error = bench.node.lease(&of_pod("c1", "a", annotations)).unwrap_err();
        assert_eq!(error.body().code, ErrorCode::Invalid);
        error.to_string()
    };
    assert_eq!(
        refused(&[("podwire.io/pool", "blue,default")]),
        "there is no pool blue, which annotation podwire.io/pool of pod shop/a names; the pools are \
         default"
    );
    assert!(
        refused(&[("podwire.io/pool-ipv4", "default")])
            .contains("no pool green, which annotation podwire.io/pool of namespace shop names")
    );
    assert_eq!(bench.node.leases().unwrap(), []);
    bench.node.lease(&of_pod("c1", "a", &[("podwire.io/pool", "default")])).unwrap();
}

fn edit(bench: &Bench, pool: &str, edit: CidrEdit, cidr: &str) -> Result<Pool, Error> {
    bench.node.edit_pool(pool, CidrRequest { edit, cidr: cidr.parse().unwrap() })
}

#[test]
fn pools_are_edited_while_leases_are_held() {
    let bench = bench_of(&["10.1.0.0/30"]);
    let prefixes = || bench.routes.prefixes().iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(bench.lease("a").unwrap(), ["10.1.0.1".parse::<IpAddr>().unwrap()]);
    edit(&bench, "default", CidrEdit::Add, "10.2.0.0/30").unwrap();
    assert_eq!(prefixes(), ["10.1.0.0/30", "10.2.0.0/30"]);
    let drained = edit(&bench, "default", CidrEdit::Drain, "10.1.0.0/30").unwrap();
    assert!(drained.cidrs[0].drained && !drained.cidrs[1].drained);
    assert_eq!(bench.lease("b").unwrap(), ["10.2.0.1".parse::<IpAddr>().unwrap()]);

    let in_use = edit(&bench, "default", CidrEdit::Remove, "10.1.0.0/30").unwrap_err();
    assert_eq!(in_use.body().code, ErrorCode::Conflict);
    assert_eq!(prefixes(), ["10.1.0.0/30", "10.2.0.0/30"]);
    bench.node.release(&id("a")).unwrap();
    edit(&bench, "default", CidrEdit::Remove, "10.1.0.0/30").unwrap();
    assert_eq!(prefixes(), ["10.2.0.0/30"]);
}

#[test]
fn an_edit_that_is_refused_changes_nothing() {
    let bench = bench_of(&["10.1.0.0/30"]);
    let refused = |pool: &str, how, cidr: &str| edit(&bench, pool, how, cidr).unwrap_err().body();
    let overlap = refused("default", CidrEdit::Add, "10.1.0.0/24");
    assert_eq!(overlap.code, ErrorCode::Invalid);
    assert!(overlap.message.contains("10.1.0.0/24 overlaps 10.1.0.0/30"), "{overlap:?}");
    assert!(refused("default", CidrEdit::Add, "fd00::/64").message.contains("no IPv6"));
    assert!(refused("default", CidrEdit::Add, "224.0.0.0/24").message.contains("no prefix"));
    assert_eq!(refused("blue", CidrEdit::Add, "10.2.0.0/24").code, ErrorCode::NotFound);
    assert_eq!(refused("default", CidrEdit::Drain, "10.2.0.0/24").code, ErrorCode::NotFound);
    assert!(bench.routes.prefixes().is_empty(), "no route was asked for");

    bench.routes.fail_next();
    assert_eq!(refused("default", CidrEdit::Add, "10.2.0.0/24").code, ErrorCode::Internal);
    assert_eq!(bench.node.pools().unwrap()[0].cidrs.len(), 1);
}

#[test]
fn pools_are_made_and_deleted() {
    let bench = bench_of(&["10.1.0.0/30"]);
    let request = |cidr: &str| PoolRequest {
        cidrs: vec![cidr.parse().unwrap()],
        cooldown: Some(7),
        ..PoolRequest::default()
    };
    let blue = bench.node.create_pool("blue", &request("10.2.0.0/30")).unwrap();
    assert_eq!((blue.cooldown, blue.cidrs[0].size), (7, 2));
    for (name, cidr, code) in [
        ("blue", "10.3.0.0/30", ErrorCode::Conflict),
        ("Blue", "10.3.0.0/30", ErrorCode::Invalid),
        ("red", "10.2.0.0/16", ErrorCode::Invalid),
    ] {
        assert_eq!(bench.node.create_pool(name, &request(cidr)).unwrap_err().body().code, code);
    }
    let default = bench.node.delete_pool("default").unwrap_err();
    assert!(default.to_string().contains("--default-pool"), "{default}");
    assert_eq!(bench.node.delete_pool("blue").unwrap(), Removed::Removed);
    assert_eq!(bench.node.delete_pool("blue").unwrap(), Removed::Absent);
    assert_eq!(bench.routes.prefixes(), ["10.1.0.0/30".parse().unwrap()]);
}

#[test]
fn addresses_are_set_aside_and_kept() {
    let bench = bench_with(
        "{kind: Pod, apiVersion: v1, metadata: {namespace: shop, name: web-0, annotations: \
         {podwire.io/sticky: 'true'}}}",
    );
    let address: IpAddr = "10.1.0.9".parse().unwrap();
    let reservation = |why: &str| Reservation { address, why: why.into() };
    bench.node.reserve(&reservation("printer")).unwrap();
    assert!(bench.node.reserve(&reservation("router")).is_err());
    let other = bench.node.reserve(&reservation("scanner")).unwrap_err();
    assert_eq!(other.body().code, ErrorCode::Conflict);
    assert_eq!(bench.node.reservations().unwrap(), [reservation("printer")]);
    assert_eq!(bench.node.unreserve(address).unwrap(), Removed::Removed);
    assert_eq!(bench.node.unreserve(address).unwrap(), Removed::Absent);
    let gateway = bench.node.unreserve("10.1.0.1".parse().unwrap()).unwrap_err();
    assert_eq!(gateway.body().code, ErrorCode::Denied);

    let web0 = PodRef { namespace: "shop".into(), name: "web-0".into(), uid: None };
    let request = |container: &str| LeaseRequest {
        pod: Some(web0.clone()),
        ..LeaseRequest::new(id(container))
    };
    let first = bench.node.lease(&request("a")).unwrap().addresses;
    let lease = &bench.node.leases().unwrap()[0];
    assert_eq!(
        (lease.pod.as_deref(), &*lease.pools),
        (Some("shop/web-0"), &["default".into()][..])
    );
    bench.node.ipam.confirm(&owner(&id("a"))).unwrap();
    bench.node.release(&id("a")).unwrap();
    let sticky = bench.node.stickies().unwrap();
    assert_eq!((sticky[0].name.as_str(), &sticky[0].holder), ("shop/web-0", &None));
    assert_ne!(bench.lease("b").unwrap(), first.iter().map(IpNetwork::ip).collect::<Vec<_>>());
    assert_eq!(bench.node.lease(&request("c")).unwrap().addresses, first);
    assert_eq!(bench.node.forget_sticky("shop/web-0").unwrap(), Removed::Removed);
    assert_eq!(bench.node.forget_sticky("shop/web-0").unwrap(), Removed::Absent);
}

fn disagreements(bench: &Bench, on: OnDisagreement) -> Vec<(String, String, Outcome)> {
    let reply = bench.node.check(on).unwrap();
    let told = |one: podwire_api::Disagreement| (one.object, one.found, one.outcome);
    reply.disagreements.into_iter().map(told).collect()
}

#[test]
fn every_disagreement_is_named_and_repaired() {
    let bench = bench();
    let a = bench.add("a", 7).unwrap();
    let b = bench.add("b", 8).unwrap();
    let c = bench.add("c", 9).unwrap();
    bench.lease("pending").unwrap();
    assert_eq!(disagreements(&bench, OnDisagreement::Report), []);

    // A lease without an endpoint, and an endpoint without its lease.
    bench.lease("unused").unwrap();
    bench.node.ipam.confirm(&owner(&id("unused"))).unwrap();
    bench.node.ipam.release(&owner(&a.id), now()).unwrap();
    // A link that is gone, a slot that is empty, and one that nobody has.
    bench.links.remove(b.ifindex);
    bench.datapath.remove(&c.host_link, c.ifindex).unwrap();
    let orphan = Row { ifindex: 77, ..check::row(&a) };
    let terms = crate::seam::Terms { identity: 3, policy: None };
    bench.datapath.add("pworphan", &orphan, Disciplines::Free, &terms).unwrap();
    // A link of ours that no endpoint goes with.
    bench.plug("stray", 10);

    let found = disagreements(&bench, OnDisagreement::Report);
    let objects: Vec<&str> = found.iter().map(|(object, ..)| object.as_str()).collect();
    let stray = format!("link {}", id("stray").host_link());
    let slot = objects.iter().find(|object| object.starts_with("slot ")).unwrap();
    let expected = [
        "endpoint a/eth0",
        "endpoint b/eth0",
        "endpoint c/eth0",
        "lease of unused/eth0",
        &stray,
        slot,
    ];
    assert_eq!(objects, expected, "{found:?}");
    assert!(found.iter().all(|(.., outcome)| *outcome == Outcome::Open), "{found:?}");

    let repaired = disagreements(&bench, OnDisagreement::Repair);
    assert_eq!(repaired.len(), 6);
    assert!(repaired.iter().all(|(.., outcome)| *outcome == Outcome::Repaired), "{repaired:?}");
    assert_eq!(disagreements(&bench, OnDisagreement::Report), []);
    let left: Vec<_> = bench.node.list().into_iter().map(|one| one.id).collect();
    assert_eq!(left, [a.id, c.id]);
    // What is pending was never in doubt.
    assert!(bench.node.has_lease(&id("pending")).unwrap());
}

#[test]
fn leases_whose_release_was_lost_are_taken_back_by_and_by() {
    let bench = bench();
    let (a, lost, standing) = (bench.add("a", 7).unwrap(), id("lost"), id("standing"));
    for id in [&lost, &standing] {
        bench.lease(id.container_id.as_str()).unwrap();
        bench.node.ipam.confirm(&owner(id)).unwrap();
    }
    bench.lease("pending").unwrap();
    // A pod that an agent could not restore goes on with its address.
    bench.plug("standing", 9);
    bench.node.reclaim().unwrap();
    let left: Vec<_> = bench.node.leases().unwrap().into_iter().map(|lease| lease.id).collect();
    assert_eq!(left, [a.id, id("pending"), standing]);
    let found = disagreements(&bench, OnDisagreement::Repair);
    let why = "link pw";
    assert!(
        matches!(&found[..], [(_, _, Outcome::Failed(said))] if said.starts_with(why)),
        "{found:?}"
    );
}

#[test]
fn prefixes_of_former_options_go_when_they_are_empty() {
    let bench = bench_of(&["10.1.0.0/30"]);
    bench.lease("a").unwrap();
    let mut config = Config::new("n1".parse().unwrap(), vec!["10.2.0.0/30".parse().unwrap()]);
    let before = store::PodCidrs { given: vec!["10.1.0.0/30".parse().unwrap()], given_up: vec![] };
    let (given_up, repairs) = crate::pools::arrange(&bench.node.ipam, &config, &before).unwrap();
    assert!(repairs[0].done.starts_with("drained: 1 "), "{repairs:?}");
    let Bench { node, routes, .. } = bench;
    let node = node.giving_up(given_up);
    let cidrs = || node.pools().unwrap()[0].cidrs.iter().map(|one| one.cidr).collect::<Vec<_>>();
    node.retire().unwrap();
    assert_eq!(cidrs().len(), 2);
    node.release(&id("a")).unwrap();
    node.retire().unwrap();
    assert_eq!(cidrs(), config.pod_cidrs);
    assert_eq!(routes.prefixes(), config.pod_cidrs);

    // What was removed by hand does not come back with the next start.
    config.pod_cidrs.push("10.3.0.0/30".parse().unwrap());
    let before = store::PodCidrs { given: config.pod_cidrs.clone(), given_up: vec![] };
    crate::pools::arrange(&node.ipam, &config, &before).unwrap();
    assert_eq!(cidrs().len(), 1);
}

#[test]
fn the_successor_of_an_endpoint_keeps_its_lease() {
    let bench = bench_of(&["10.1.0.0/31"]);
    let a = bench.add("a", 7).unwrap();
    bench.lease("b").unwrap();
    // Its link is gone, and an ADD has made another one; no address is free in between.
    bench.links.remove(7);
    bench.plug("a", 8);
    let again = bench.node.create(&a.id, &Bench::request("a", 8, &a.addresses)).unwrap();
    assert_eq!((again.ifindex, &again.addresses), (8, &a.addresses));
    assert_eq!(bench.node.leases().unwrap().len(), 2);
}

#[test]
fn a_repair_that_fails_says_why() {
    let bench = bench();
    let a = bench.add("a", 7).unwrap();
    bench.datapath.remove(&a.host_link, a.ifindex).unwrap();
    bench.datapath.fail_next("add");
    let found = disagreements(&bench, OnDisagreement::Repair);
    assert!(
        matches!(&found[..], [(_, _, Outcome::Failed(why))] if why.contains("on purpose")),
        "{found:?}"
    );
    let again = disagreements(&bench, OnDisagreement::Repair);
    assert_eq!(again[0].2, Outcome::Repaired);
}

const NAMESPACE: &str = "\
apiVersion: v1
kind: Namespace
metadata:
  name: shop
  annotations:
    podwire.io/pool: green, default
";

/// `default` is a /24 and a /64, `green` has room for two, `blue` for one.
fn bench_of_pools() -> Bench {
    let bench = bench_with(NAMESPACE);
    for (name, cidrs) in
        [("green", ["10.2.0.0/30", "fd00:2::/126"]), ("blue", ["10.3.0.0/32", "fd00:3::/64"])]
    {
        let cidrs = cidrs.iter().map(|cidr| cidr.parse().unwrap()).collect();
        bench.node.ipam.add_pool(&podwire_ipam::PoolConfig::new(name, cidrs)).unwrap();
    }
    bench
}

#[test]
fn pods_get_addresses_of_the_pools_that_are_chosen_for_them() {
    let bench = bench_of_pools();
    let subnets = |container: &str, annotations: &[(&str, &str)]| {
        let reply = bench.node.lease(&of_pod(container, container, annotations)).unwrap();
        let texts = reply.addresses.iter().map(|one| one.ip().to_string());
        let subnet = |text: String| text[..text.rfind(['.', ':']).unwrap()].to_owned();
        texts.map(subnet).collect::<Vec<_>>()
    };
    assert_eq!(subnets("c1", &[]), ["10.2.0", "fd00:2:"]);
    let split = [("podwire.io/pool-ipv4", "blue,default")];
    assert_eq!(subnets("c2", &split), ["10.3.0", "fd00:2:"]);
    assert_eq!(subnets("c3", &split), ["10.1.0", "fd00:2:"]);
    // The namespace's list goes on where its first pool is full, in pairs.
    assert_eq!(subnets("c4", &[]), ["10.1.0", "fd00:1:"]);
    assert_eq!(subnets("c1", &[]), ["10.2.0", "fd00:2:"], "the same for the same owner");

    // Who names pools of a family means to have an address of it.
    bench
        .node
        .ipam
        .add_pool(&podwire_ipam::PoolConfig::new("old", vec!["10.4.0.0/24".parse().unwrap()]))
        .unwrap();
    let error =
        bench.node.lease(&of_pod("c5", "c5", &[("podwire.io/pool-ipv6", "old")])).unwrap_err();
    assert_eq!(error.to_string(), "no IPv6 CIDR in pool old");

    let only = [("podwire.io/pool", "blue")];
    let error = bench.node.lease(&of_pod("c5", "c5", &only)).unwrap_err();
    assert_eq!(error.body().code, ErrorCode::Exhausted);
    assert!(error.to_string().contains("pool blue (size 1, used 0, pending 1"), "{error}");
    let elsewhere = [("podwire.io/pool", "blue"), ("podwire.io/ips", "10.1.0.9")];
    let error = bench.node.lease(&of_pod("c5", "c5", &elsewhere)).unwrap_err();
    assert_eq!(error.to_string(), "10.1.0.9 is in no CIDR of pool blue");
}

#[test]
fn a_name_keeps_its_addresses() {
    let bench = bench_of_pools();
    let sticky = |container: &str, name: &str| {
        let request = of_pod(container, name, &[("podwire.io/sticky", "true")]);
        bench.node.lease(&request).map(|reply| reply.addresses)
    };
    let first = sticky("c1", "web-0").unwrap();
    let held = sticky("c2", "web-0").unwrap_err();
    assert_eq!(held.body().code, ErrorCode::Conflict, "{held}");
    let list: Vec<_> = first.iter().map(IpNetwork::ip).collect();
    bench.plug("c1", 7);
    bench.node.create(&id("c1"), &Bench::request("c1", 7, &list)).unwrap();
    bench.node.delete(&id("c1")).unwrap();
    assert_ne!(sticky("c3", "web-1").unwrap(), first);
    assert_eq!(sticky("c2", "web-0").unwrap(), first);
}

/// An IPAM plugin of somebody else's knows of no pools, and an agent that was restarted of no lease.
#[test]
fn addresses_that_are_chosen_already_are_of_any_pool() {
    let bench = bench_of_pools();
    let mut request = of_pod("c1", "a", &[]);
    request.pod.as_mut().unwrap().namespace = "other".into();
    request.addresses = vec![[10, 2, 0, 2].into()];
    request.others = OtherFamilies::Omit;
    assert_eq!(bench.node.lease(&request).unwrap().addresses.len(), 1);
    request.id = id("c2");
    request.annotations.insert("podwire.io/pool".into(), "default".into());
    request.addresses = vec![[10, 2, 0, 1].into()];
    assert!(
        bench.node.lease(&request).unwrap_err().to_string().contains("no CIDR of pool default")
    );

    let addresses = ["10.2.0.1".parse().unwrap(), "fd00:3::9".parse().unwrap()];
    bench.plug("c3", 9);
    bench.node.create(&id("c3"), &Bench::request("c3", 9, &addresses)).unwrap();
}
