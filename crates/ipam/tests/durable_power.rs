//! Durable leases on a disk whose power fails at any moment.
#![cfg(feature = "file")]

mod clients;
mod disk;
mod random;

use std::path::Path;
use std::sync::Mutex;
use std::thread;

use podwire_ipam::durable::{Change, Error, FileStore, FileStoreError, Ipam, Store};

use clients::{BOOT, Witness, pool, work};
use disk::Disk;
use random::Rng;

const CLIENTS: usize = 8;
const ROUNDS: u64 = 200;

fn open(disk: &Disk) -> Result<FileStore, FileStoreError> {
    let disk = disk.clone();
    FileStore::with_backend(Path::new("disk"), move || disk.open())
}

/// Until the disk fails.
fn work_together(ipam: &Ipam<FileStore>, witness: &Mutex<Witness>, rng: &mut Rng) {
    thread::scope(|scope| {
        for client in 0..CLIENTS {
            let seed = rng.next();
            let tell = |event| witness.lock().expect("no client has panicked").hear(event);
            scope.spawn(move || work(ipam, client, seed, tell));
        }
    });
}

#[test]
fn a_commit_is_one_sync() {
    let disk = Disk::new(0);
    let mut store = open(&disk).unwrap();
    let put = |number: u32| [Change::put("t", number.to_string(), "value")];
    store.commit(&put(0)).unwrap();
    let before = disk.syncs();
    for number in 0..100 {
        store.commit(&put(number)).unwrap();
    }
    assert_eq!(disk.syncs() - before, 100);
}

/// Also while it is opened, repaired, and while the pool is added.
#[test]
fn what_was_acknowledged_is_there_after_a_power_loss() {
    let disk = Disk::new(1);
    let mut rng = Rng::new(2);
    let mut witness = Mutex::new(Witness::default());
    for _ in 0..ROUNDS {
        disk.fail_after(rng.below(150));
        if let Ok(store) = open(&disk)
            && let Ok((ipam, _)) = Ipam::open(store, BOOT)
            && (ipam.usage().unwrap().len() == 1 || ipam.add_pool(&pool()).is_ok())
        {
            work_together(&ipam, &witness, &mut rng);
        }
        disk.crash();
        let (ipam, recovered) = Ipam::open(open(&disk).unwrap(), BOOT).unwrap();
        assert_eq!((recovered.stray, recovered.dropped), (vec![], vec![]));
        witness.get_mut().unwrap().compare(&ipam);
    }
    let acknowledged = witness.into_inner().unwrap().acknowledged;
    assert!(acknowledged > 10 * ROUNDS, "only {acknowledged} operations");
}

/// The disk is unplugged under a process that lives on: it believes what it finds when the disk is back.
#[test]
fn what_was_acknowledged_is_there_after_the_disk_comes_back() {
    let disk = Disk::new(3);
    let mut rng = Rng::new(4);
    let mut witness = Mutex::new(Witness::default());
    let (ipam, _) = Ipam::open(open(&disk).unwrap(), BOOT).unwrap();
    ipam.add_pool(&pool()).unwrap();
    for _ in 0..ROUNDS {
        disk.fail_after(rng.below(150));
        work_together(&ipam, &witness, &mut rng);
        assert!(matches!(ipam.leases(), Err(Error::Store { .. })));
        disk.crash();
        witness.get_mut().unwrap().compare(&ipam);
    }
    assert!(ipam.counts().failures >= ROUNDS / 2, "{:?}", ipam.counts());
    let acknowledged = witness.into_inner().unwrap().acknowledged;
    assert!(acknowledged > 10 * ROUNDS, "only {acknowledged} operations");
}
