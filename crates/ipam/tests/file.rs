//! Files of leases as processes find them: in use by others, of another life, half made, damaged.
#![cfg(feature = "file")]
#![expect(clippy::unwrap_used, reason = "functions that tests share panic as tests do")]

use std::fs;
use std::path::Path;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use podwire_ipam::store::{File, FileError, Opened};
use podwire_ipam::{Owner, Plan, RangeSpec};

const LONG: Duration = Duration::from_secs(60);

fn plan() -> Plan {
    let range = RangeSpec::new("10.0.0.0/24".parse().unwrap()).build().unwrap();
    Plan::new(vec![vec![range]]).unwrap()
}

fn open(folder: &Path, pool: &str, life: &str) -> (File, Opened) {
    File::open(folder, pool, life, LONG).unwrap()
}

fn grant(file: &File, id: &str) -> String {
    let owner = Owner::new(id, "eth0");
    let grants = file.write(|ledger| ledger.allocate(&owner, &plan(), &[])).unwrap();
    grants[0].address.ip().to_string()
}

#[test]
fn leases_are_there_for_whoever_opens_the_file_next() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path().join("made/on/the/way");
    assert!(File::open_existing(&folder, "net", "a", LONG).unwrap().is_none());
    assert!(!folder.exists());
    let (file, opened) = open(&folder, "net", "a");
    assert_eq!(opened, Opened::New);
    assert_eq!(grant(&file, "x"), "10.0.0.2");
    drop(file);
    let file = File::open_existing(&folder, "net", "a", LONG).unwrap().unwrap();
    assert_eq!(grant(&file, "x"), "10.0.0.2");
    drop(file);
    let (file, opened) = open(&folder, "net", "a");
    assert_eq!(opened, Opened::Existing);
    assert_eq!(grant(&file, "x"), "10.0.0.2");
    assert_eq!(grant(&file, "y"), "10.0.0.3");
    let mode =
        std::os::unix::fs::PermissionsExt::mode(&fs::metadata(file.path()).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn what_is_only_looked_at_or_fails_is_not_kept() {
    let folder = tempfile::tempdir().unwrap();
    let (file, _) = open(folder.path(), "net", "a");
    let owner = Owner::new("x", "eth0");
    file.read(|ledger| ledger.allocate(&owner, &plan(), &[])).unwrap();
    let failed = file.write(|ledger| {
        ledger.allocate(&owner, &plan(), &[])?;
        ledger.restore(&Owner::new("y", "eth0"), &[])
    });
    assert!(failed.is_err());
    assert_eq!(file.read(|ledger| ledger.leases()).unwrap(), []);
    assert_eq!(grant(&file, "y"), "10.0.0.2");
}

#[test]
fn another_life_begins_anew_and_takes_no_other_pool_with_it() {
    let folder = tempfile::tempdir().unwrap();
    for pool in ["net", "net.b", "net2"] {
        grant(&open(folder.path(), pool, "a").0, "x");
    }
    // Torn by a power loss: nobody reads it.
    fs::write(folder.path().join("net.a.redb"), "redb").unwrap();
    let (file, opened) = open(folder.path(), "net", "b");
    assert_eq!(opened, Opened::Renewed);
    assert_eq!(grant(&file, "y"), "10.0.0.2");
    let mut names: Vec<_> =
        fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["net.b.a.redb", "net.b.redb", "net2.a.redb"]);
}

#[test]
fn a_file_in_use_is_waited_for_and_then_given_up() {
    let folder = tempfile::tempdir().unwrap();
    let (file, _) = open(folder.path(), "net", "a");
    let busy = File::open_existing(folder.path(), "net", "a", Duration::from_millis(20));
    assert!(busy.unwrap_err().is_busy());
    let busy = File::open(folder.path(), "net", "a", Duration::from_millis(20)).unwrap_err();
    assert!(busy.is_busy(), "{busy}");
    let (begun, waiting) = mpsc::channel();
    let path = folder.path().to_owned();
    let other = thread::spawn(move || {
        begun.send(()).unwrap();
        grant(&open(&path, "net", "a").0, "y")
    });
    waiting.recv().unwrap();
    assert_eq!(grant(&file, "x"), "10.0.0.2");
    drop(file);
    assert_eq!(other.join().unwrap(), "10.0.0.3");
}

/// Who waited for the file that was removed must not write where nobody reads.
#[test]
fn a_file_that_is_removed_while_it_is_waited_for_is_made_again() {
    let folder = tempfile::tempdir().unwrap();
    let (file, _) = open(folder.path(), "net", "a");
    let waiting: Vec<_> = ["x", "y"]
        .map(|id| {
            let path = folder.path().to_owned();
            thread::spawn(move || grant(&open(&path, "net", "a").0, id))
        })
        .into_iter()
        .collect();
    fs::remove_file(file.path()).unwrap();
    drop(file);
    let mut granted: Vec<_> = waiting.into_iter().map(|one| one.join().unwrap()).collect();
    granted.sort();
    assert_eq!(granted, ["10.0.0.2", "10.0.0.3"]);
}

/// The file as it is after each of the writes of its making, as if the process had been killed.
#[test]
fn a_file_that_was_not_finished_is_made_again() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("net.a.redb");
    for length in [0, 1, 4096, 1 << 20] {
        fs::write(&path, vec![0; length]).unwrap();
        let (file, opened) = open(folder.path(), "net", "a");
        assert_eq!(opened, Opened::New);
        assert_eq!(grant(&file, "x"), "10.0.0.2");
    }
}

#[test]
fn a_damaged_file_and_a_name_that_is_none_are_errors() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("net.a.redb");
    fs::write(&path, "something else altogether").unwrap();
    let error = File::open(folder.path(), "net", "a", LONG).unwrap_err();
    assert!(matches!(error, FileError::Database { operation: "open", .. }), "{error}");
    assert!(error.to_string().contains("net.a.redb"), "{error}");
    for (pool, life) in [("a/b", "a"), ("..", "a"), ("", "a"), ("net", "a.b"), ("net", "")] {
        let error = File::open(folder.path(), pool, life, LONG).unwrap_err();
        assert!(matches!(error, FileError::Name { .. }), "{pool} {life}: {error}");
    }
}
