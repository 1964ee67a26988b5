//! Durable leases: what is written with what, what a reboot drops, what cannot be read.
#![expect(clippy::unwrap_used, reason = "functions that tests share panic as tests do")]

use std::error::Error as _;
use std::time::Duration;

use podwire_ipam::durable::{Change, Error, Ipam, MemoryStore, Store};
use podwire_ipam::{Lease, LeaseState, Owner, PoolConfig, Release, Request, Restored, Time};

fn owner(name: &str) -> Owner {
    Owner::new(name, "eth0").with_pod(&format!("shop/{name}"))
}

fn at(seconds: u64) -> Time {
    Time::from_secs(seconds)
}

fn pool(name: &str, cidr: &str) -> PoolConfig {
    PoolConfig::new(name, vec![cidr.parse().unwrap()])
}

fn open(store: &MemoryStore, boot: &str) -> Ipam<MemoryStore> {
    Ipam::open(store.clone(), boot).unwrap().0
}

/// What the operations leave in the store.
fn written(operate: impl FnOnce(&Ipam<Shared>)) -> MemoryStore {
    let shared = Shared::default();
    let (ipam, _) = Ipam::open(shared.clone(), "boot-1").unwrap();
    operate(&ipam);
    drop(ipam);
    shared.0.lock().unwrap().clone()
}

#[derive(Clone, Debug, Default)]
struct Shared(std::sync::Arc<std::sync::Mutex<MemoryStore>>);

impl Store for Shared {
    type Error = std::convert::Infallible;

    fn load(&mut self, table: &str) -> Result<Vec<(Vec<u8>, Vec<u8>)>, Self::Error> {
        self.0.lock().unwrap().load(table)
    }

    fn commit(&mut self, changes: &[Change]) -> Result<(), Self::Error> {
        self.0.lock().unwrap().commit(changes)
    }
}

#[test]
fn everything_is_there_after_a_restart() {
    let store = written(|ipam| {
        ipam.add_pool(&pool("blue", "10.0.0.0/29")).unwrap();
        ipam.add_pool(&pool("green", "10.1.0.0/29")).unwrap();
        ipam.add_cidr("blue", "10.2.0.0/29".parse().unwrap()).unwrap();
        ipam.drain_cidr("blue", "10.0.0.0/29".parse().unwrap()).unwrap();
        ipam.reserve("10.1.0.1".parse().unwrap(), "router").unwrap();
        for name in ["a", "b"] {
            ipam.allocate(&owner(name), &Request::default(), at(1)).unwrap();
        }
        ipam.confirm(&owner("a")).unwrap();
        ipam.allocate(&owner("gone"), &Request::default(), at(1)).unwrap();
        ipam.release(&owner("gone"), at(2)).unwrap();
    });
    let (ipam, recovered) = Ipam::open(store, "boot-1").unwrap();
    assert_eq!((recovered.leases, recovered.stray.len(), recovered.dropped.len()), (2, 0, 0));
    let lease = ipam.lease(&owner("a")).unwrap().unwrap();
    assert_eq!((lease.state, lease.owner.pod()), (LeaseState::Confirmed, Some("shop/a")));
    assert_eq!(lease.addresses.to_string(), "10.2.0.1");
    assert_eq!(ipam.holder("10.2.0.1".parse().unwrap()).unwrap(), Some(owner("a")));
    assert_eq!(ipam.reservations().unwrap()[0].1, "router");
    let pools = ipam.read(|all| all.pools().map(ToOwned::to_owned).collect::<Vec<_>>()).unwrap();
    assert_eq!(pools, ["blue", "green"]);
    let cooling: Vec<_> = ipam.read(|all| all.cooling().collect()).unwrap();
    assert_eq!(cooling, [("10.2.0.3".parse().unwrap(), at(62))]);
    // The pending one goes when its time has come, as if nothing had happened.
    assert_eq!(ipam.expire(at(300)).unwrap(), []);
    assert_eq!(ipam.expire(at(301)).unwrap()[0].owner, owner("b"));
}

#[test]
fn a_reboot_drops_what_went_with_the_machine_and_says_so() {
    let store = written(|ipam| {
        ipam.add_pool(&pool("blue", "10.0.0.0/28")).unwrap();
        ipam.reserve("10.0.0.1".parse().unwrap(), "router").unwrap();
        let sticky = |number: usize| Request::default().sticky(&format!("web-{number}"));
        for (number, name) in ["confirmed", "pending"].into_iter().enumerate() {
            ipam.allocate(&owner(name), &sticky(number), at(1)).unwrap();
        }
        ipam.confirm(&owner("confirmed")).unwrap();
        ipam.allocate(&owner("gone"), &Request::default(), at(1)).unwrap();
        ipam.release(&owner("gone"), at(2)).unwrap();
    });
    let (ipam, recovered) = Ipam::open(store, "boot-2").unwrap();
    let dropped: Vec<_> =
        recovered.dropped.iter().map(|lease| lease.owner.container_id()).collect();
    assert_eq!(dropped, ["confirmed", "pending"]);
    assert_eq!(recovered.thawed, ["10.0.0.4".parse::<std::net::IpAddr>().unwrap()]);
    assert_eq!((recovered.leases, ipam.leases().unwrap()), (0, vec![]));
    assert_eq!(ipam.reservations().unwrap().len(), 1);
    // A name that was never used for good has nothing.
    let stickies = ipam.stickies().unwrap();
    assert_eq!((stickies.len(), stickies[0].0.as_str()), (1, "web-0"));
    assert_eq!(ipam.usage().unwrap()[0].cidrs[0].usage.kept, 1);
    let web = ipam.allocate(&owner("new"), &Request::default().sticky("web-0"), at(1)).unwrap();
    assert_eq!(web.addresses.to_string(), "10.0.0.2");
    assert_eq!(ipam.forget("web-0", at(1)).unwrap(), web.addresses);
}

#[test]
fn changes_of_the_caller_go_into_the_same_commit() {
    let ipam = open(&MemoryStore::default(), "boot-1");
    ipam.add_pool(&pool("blue", "10.0.0.0/30")).unwrap();
    let also = |key: &str| vec![Change::put("endpoints", key, "x")];
    let before = ipam.counts();
    let begun = ipam.begin_allocate(&owner("a"), &Request::default(), at(1), also("a")).unwrap();
    assert_eq!(begun.peek().addresses.to_string(), "10.0.0.1");
    begun.wait().unwrap();
    let after = ipam.counts();
    assert_eq!((after.requests - before.requests, after.commits - before.commits), (1, 1));
    ipam.begin_confirm(&owner("a"), also("b")).unwrap().wait().unwrap();
    ipam.begin(also("c")).unwrap().wait().unwrap();

    ipam.allocate(&owner("b"), &Request::default(), at(1)).unwrap();
    let refused = ipam.begin_allocate(&owner("c"), &Request::default(), at(1), also("d"));
    assert!(refused.unwrap_err().refusal().unwrap().is_exhausted());
    let refused = ipam.begin_confirm(&owner("c"), also("d"));
    assert!(refused.unwrap_err().refusal().unwrap().is_not_found());
    let keys = |ipam: &Ipam<MemoryStore>| -> Vec<Vec<u8>> {
        ipam.load("endpoints").unwrap().into_iter().map(|(key, _)| key).collect()
    };
    assert_eq!(keys(&ipam), [b"a", b"b", b"c"]);

    // Also when there is no lease to give back.
    for name in ["a", "nobody"] {
        let also = vec![Change::remove("endpoints", "a"), Change::remove("endpoints", "b")];
        ipam.begin_release(&owner(name), at(2), also).unwrap().wait().unwrap();
    }
    assert_eq!(keys(&ipam), [b"c"]);
}

#[test]
fn nothing_to_change_is_no_commit() {
    let ipam = open(&MemoryStore::default(), "boot-1");
    let before = ipam.counts();
    assert_eq!(ipam.release(&owner("a"), at(1)).unwrap(), Release::Absent);
    assert_eq!(ipam.expire(at(1)).unwrap(), []);
    assert!(ipam.forget("web-0", at(1)).unwrap().is_empty());
    assert_eq!(ipam.counts(), before);
}

#[test]
fn records_of_cool_downs_do_not_pile_up() {
    let mut store = written(|ipam| {
        ipam.add_pool(&pool("blue", "fd00::/64")).unwrap();
        for second in 0..500 {
            let owner = owner(&second.to_string());
            ipam.allocate(&owner, &Request::default(), at(second)).unwrap();
            ipam.release(&owner, at(second)).unwrap();
        }
    });
    let cooling = store.load("cooling").unwrap().len();
    assert!((60..70).contains(&cooling), "{cooling} records of a cool-down of 60 s");
}

#[test]
fn a_lease_found_elsewhere_is_taken_in() {
    let lease = Lease {
        owner: owner("found"),
        addresses: podwire_ipam::Addresses::from_list(&["10.0.0.5".parse().unwrap()]).unwrap(),
        state: LeaseState::Confirmed,
    };
    let store = written(|ipam| {
        ipam.add_pool(&pool("blue", "10.0.0.0/29")).unwrap();
        assert_eq!(ipam.restore(&lease).unwrap(), Restored::Held);
        let rival = Lease { owner: owner("rival"), ..lease.clone() };
        assert!(ipam.restore(&rival).unwrap_err().refusal().unwrap().is_conflict());
    });
    assert_eq!(open(&store, "boot-1").leases().unwrap(), [lease]);
}

#[test]
fn what_cannot_be_used_is_an_error_that_names_it() {
    let sound = written(|ipam| {
        ipam.add_pool(&pool("blue", "10.0.0.0/28")).unwrap();
        ipam.reserve("10.0.0.9".parse().unwrap(), "router").unwrap();
        ipam.allocate(&owner("a"), &Request::default().sticky("web-0"), at(1)).unwrap();
        ipam.confirm(&owner("a")).unwrap();
        ipam.allocate(&owner("b"), &Request::default().sticky("web-1"), at(1)).unwrap();
    });
    let broken = [
        ("leases", "c\0eth0", r"no JSON"),
        ("leases", "c\0eth0", r#"{"addresses":["10.0.0.1"]}"#),
        ("leases", "c\0eth0", r#"{"addresses":["10.0.0.9"]}"#),
        ("leases", "c\0eth0", r#"{"addresses":["10.0.0.7","10.0.0.8"]}"#),
        ("leases", "c\0eth0", r#"{"addresses":[]}"#),
        ("leases", "c", r#"{"addresses":["10.0.0.7"]}"#),
        ("pools", "green", r#"{"position":1}"#),
        (
            "pools",
            "green",
            r#"{"position":1,"cidrs":["10.0.0.0/8"],"excluded":[],"drained":[],
                "cooldown":{"secs":1,"nanos":0},"pending_ttl":{"secs":1,"nanos":0}}"#,
        ),
        ("reservations", "10.0.0.300", r#""router""#),
        ("reservations", "192.168.0.1", r#""router""#),
        ("sticky", "web-2", r#"{"addresses":["10.0.0.1"],"firm":true}"#),
        ("sticky", "web-2", r#"{"addresses":["192.168.0.1"],"firm":true}"#),
        ("cooling", "10.0.0.7", r#"{"number":-1,"until":0}"#),
    ];
    for (table, key, value) in broken {
        let mut store = sound.clone();
        store.commit(&[Change::put(table, key, value)]).unwrap();
        let before = store.clone();
        let error = Ipam::open(store.clone(), "boot-1").unwrap_err();
        assert!(error.is_damaged() && error.source().is_some(), "{table} {key:?} {value}");
        match error {
            Error::Record { table: named, key: record, .. } => {
                assert_eq!((named, record.as_str()), (table, key), "{value}");
            }
            error => panic!("{error:?}"),
        }
        assert_eq!(store, before);
    }
    // Another version's store is not damaged, and must not be set aside.
    let mut later = sound.clone();
    later.commit(&[Change::put("ipam", "format", r#""2""#)]).unwrap();
    let error = Ipam::open(later, "boot-1").unwrap_err();
    assert!(matches!(error, Error::Format { .. }) && !error.is_damaged(), "{error:?}");
    // A name whose first lease never was confirmed goes with that lease.
    let mut loose = sound.clone();
    let record = Change::put("sticky", "web-2", r#"{"addresses":["10.0.0.7"],"firm":false}"#);
    loose.commit(&[record]).unwrap();
    let (ipam, _) = Ipam::open(loose, "boot-1").unwrap();
    assert!(ipam.stickies().unwrap().iter().all(|(name, _)| name != "web-2"));

    let mut store = sound.clone();
    store.commit(&[Change::put("leases", b"\xff".to_vec(), "{}")]).unwrap();
    assert!(matches!(Ipam::open(store, "boot-1"), Err(Error::Record { table: "leases", .. })));
    assert_eq!(open(&sound, "boot-1").leases().unwrap().len(), 2);
}

/// Threads that ask for the same owner are told the same, and not before it is certain.
#[test]
fn one_owner_is_served_by_many_threads() {
    let ipam = open(&MemoryStore::default(), "boot-1");
    let mut config = pool("blue", "10.0.0.0/16");
    config.pending_ttl = Duration::from_secs(3);
    ipam.add_pool(&config).unwrap();
    for round in 0..50 {
        let owner = owner(&round.to_string());
        let answers: Vec<Lease> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8)
                .map(|_| scope.spawn(|| ipam.allocate(&owner, &Request::default(), at(1)).unwrap()))
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert!(answers.iter().all(|answer| *answer == answers[0]));
    }
    assert_eq!(ipam.leases().unwrap().len(), 50);
}
