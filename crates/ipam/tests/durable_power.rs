//! Durable leases on a disk whose power fails at any moment.
#![cfg(feature = "file")]
#![expect(clippy::unwrap_used, reason = "functions that tests share panic as tests do")]

mod disk;

use std::path::Path;
use std::thread;

use podwire_ipam::durable::{Change, FileStore, Journal, Store};

use disk::{Disk, Rng};

const CLIENTS: usize = 4;

fn store(disk: &Disk) -> FileStore {
    let disk = disk.clone();
    FileStore::with_backend(Path::new("disk"), move || disk.open()).unwrap()
}

fn put(client: usize, number: usize) -> Change {
    Change::put("t", format!("{client}"), format!("{number}"))
}

#[test]
fn a_commit_is_one_sync() {
    let disk = Disk::new(0);
    let mut store = store(&disk);
    store.commit(&[put(0, 0)]).unwrap();
    let before = disk.syncs();
    for number in 0..100 {
        store.commit(&[put(0, number)]).unwrap();
    }
    assert_eq!(disk.syncs() - before, 100);
}

/// Each client counts up in an entry of its own: what it was told is the least that must be there.
#[test]
fn what_was_acknowledged_is_there() {
    let disk = Disk::new(1);
    let mut rng = Rng::new(2);
    let mut told = [0; CLIENTS];
    for round in 0..100 {
        let open = || {
            let disk = disk.clone();
            FileStore::with_backend(Path::new("disk"), move || disk.open())
        };
        disk.fail_after(rng.below(60));
        if let Ok(store) = open() {
            let journal = Journal::start(store).unwrap();
            thread::scope(|scope| {
                for (client, told) in told.iter_mut().enumerate() {
                    let journal = &journal;
                    scope.spawn(move || {
                        while journal.commit(vec![put(client, *told + 1)]).is_ok() {
                            *told += 1;
                        }
                    });
                }
            });
        }
        disk.crash();
        let entries = open().unwrap().load("t").unwrap();
        for (client, told) in told.iter_mut().enumerate() {
            let found = entries.iter().find(|(key, _)| *key == client.to_string().into_bytes());
            let found = found
                .map_or(0, |(_, value)| str::from_utf8(value).unwrap().parse::<usize>().unwrap());
            assert!(found == *told || found == *told + 1, "round {round}: {found}, told {told}");
            *told = found;
        }
    }
    assert!(told.iter().sum::<usize>() > 100, "{told:?}");
}
