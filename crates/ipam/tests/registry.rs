//! What every registry has to do, by those that come with the crate.

#![expect(clippy::unwrap_used, reason = "functions that tests share panic as tests do")]

use podwire_ipam::blocks::{Expected, MemoryRegistry, New, Registry, Revision, Swap};

fn put(registry: &impl Registry, key: &str, expected: &Expected, value: &str) -> Swap {
    registry.swap(key, expected, New::Put(value.as_bytes())).unwrap()
}

fn revision(swap: Swap) -> Revision {
    match swap {
        Swap::Swapped(Some(revision)) => revision,
        other => panic!("{other:?}"),
    }
}

fn behaves(registry: &impl Registry) {
    assert_eq!(registry.read("a").unwrap(), None);
    assert_eq!(registry.list("").unwrap(), []);
    let absent = Expected::Absent;
    let first = revision(put(registry, "b/1", &absent, "one"));
    let found = registry.read("b/1").unwrap().unwrap();
    assert_eq!((found.value.as_slice(), &found.revision), (&b"one"[..], &first));
    assert_eq!(Revision::new(first.as_str()), first);

    // Neither absent nor of another revision: nothing changes, and it is told what is there.
    assert_eq!(put(registry, "b/1", &absent, "two"), Swap::Conflict(Some(found.clone())));
    let stale = Expected::Revision(Revision::new("never"));
    assert_eq!(put(registry, "b/1", &stale, "two"), Swap::Conflict(Some(found.clone())));
    assert_eq!(put(registry, "c", &stale, "two"), Swap::Conflict(None));
    assert_eq!(registry.read("b/1").unwrap(), Some(found.clone()));

    let second = revision(put(registry, "b/1", &Expected::Revision(first.clone()), "two"));
    assert_ne!(second, first);
    for key in ["b/2", "b", "ba/1"] {
        revision(put(registry, key, &absent, key));
    }
    let mut listed: Vec<_> = registry.list("b/").unwrap().into_iter().map(|(key, _)| key).collect();
    listed.sort();
    assert_eq!(listed, ["b/1", "b/2"]);
    assert_eq!(registry.list("").unwrap().len(), 4);

    let delete = |revision: &Revision| {
        registry.swap("b/1", &Expected::Revision(revision.clone()), New::Delete).unwrap()
    };
    assert!(matches!(delete(&first), Swap::Conflict(Some(_))));
    assert_eq!(delete(&second), Swap::Swapped(None));
    assert_eq!(delete(&second), Swap::Conflict(None));
    assert_eq!(registry.swap("b/1", &absent, New::Delete).unwrap(), Swap::Swapped(None));
    // No revision comes again with the key.
    let third = revision(put(registry, "b/1", &absent, "one"));
    assert!(third != first && third != second);
    assert!(matches!(delete(&second), Swap::Conflict(Some(_))));
}

#[test]
fn in_memory() {
    let registry = MemoryRegistry::default();
    behaves(&registry);
    assert_eq!(registry.clone().list("").unwrap(), registry.list("").unwrap());
    let shared = std::sync::Arc::new(MemoryRegistry::default());
    behaves(&shared);
}

#[cfg(feature = "file")]
mod file {
    use std::fs;

    use podwire_ipam::blocks::{FileRegistry, FileRegistryError};

    use super::*;

    #[test]
    fn in_a_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("made/registry.redb");
        let registry = FileRegistry::open(&path).unwrap();
        assert_eq!(registry.path(), path);
        behaves(&registry);
        let mut before = registry.list("").unwrap();
        before.sort_by(|one, other| one.0.cmp(&other.0));
        drop(registry);
        let registry = FileRegistry::open(&path).unwrap();
        assert_eq!(registry.list("").unwrap(), before);
        let new = revision(put(&registry, "new", &Expected::Absent, ""));
        assert!(before.iter().all(|(_, found)| found.revision != new));
    }

    #[test]
    fn a_file_in_use_and_a_damaged_one_are_errors() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("registry.redb");
        let registry = FileRegistry::open(&path).unwrap();
        revision(put(&registry, "k", &Expected::Absent, "value"));
        let error = FileRegistry::open(&path).unwrap_err();
        assert!(matches!(error, FileRegistryError::Locked { .. }), "{error}");
        drop(registry);

        let mut bytes = fs::read(&path).unwrap();
        let place = bytes.windows(5).position(|window| window == b"value").unwrap();
        bytes[place] ^= 1;
        fs::write(&path, &bytes).unwrap();
        let error = FileRegistry::open(&path).unwrap_err();
        assert!(matches!(error, FileRegistryError::Damaged { .. }), "{error}");
        assert_eq!(fs::read(&path).unwrap().len(), bytes.len());

        fs::write(&path, "something else altogether").unwrap();
        let error = FileRegistry::open(&path).unwrap_err();
        assert!(matches!(error, FileRegistryError::Damaged { .. }), "{error}");
        assert!(error.to_string().contains("registry.redb"), "{error}");

        let error = FileRegistry::open(folder.path()).unwrap_err();
        assert!(matches!(error, FileRegistryError::Open { .. }), "{error}");
    }
}
