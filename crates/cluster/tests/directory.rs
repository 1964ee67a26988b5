//! A directory that changes under its watcher, in all the ways that directories do.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use podwire_cluster::{Directory, Problem, Snapshot, Source};

/// Nothing here takes that long; it ends a test that would hang.
const PATIENCE: Duration = Duration::from_secs(60);

struct Bench {
    root: tempfile::TempDir,
    folder: PathBuf,
}

impl Bench {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("manifests");
        fs::create_dir(&folder).unwrap();
        Self { root, folder }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.file(name), text).unwrap();
    }

    /// As programs that mean well do it.
    fn rename(&self, name: &str, text: &str) {
        let temporary = self.file(&format!(".{name}.new"));
        fs::write(&temporary, text).unwrap();
        fs::rename(temporary, self.file(name)).unwrap();
    }

    fn watch(&self) -> Directory {
        Directory::watch(&self.folder).unwrap()
    }
}

fn namespace(name: &str, pool: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: {name}\n  annotations:\n    \
         podwire.io/pool: {pool}\n"
    )
}

fn pool(snapshot: &Snapshot, name: &str) -> Option<String> {
    let namespace = snapshot.namespace(name)?;
    Some(namespace.annotations["podwire.io/pool"].clone())
}

fn problems(snapshot: &Snapshot) -> Vec<String> {
    snapshot.problems().iter().map(ToString::to_string).collect()
}

#[track_caller]
fn until(source: &Directory, is_so: impl Fn(&Snapshot) -> bool) -> Arc<Snapshot> {
    loop {
        let snapshot = source.snapshot();
        if is_so(&snapshot) {
            return snapshot;
        }
        assert!(source.wait_for_change(snapshot.revision(), PATIENCE), "it stays {snapshot:#?}");
    }
}

#[track_caller]
fn until_pool(source: &Directory, name: &str, expected: &str) -> Arc<Snapshot> {
    until(source, |snapshot| pool(snapshot, name).as_deref() == Some(expected))
}

#[test]
fn files_that_come_change_and_go_are_seen() {
    let bench = Bench::new();
    bench.write("a.yaml", &namespace("a", "red"));
    bench.write("notes.txt", "no manifest");
    bench.write(".hidden.yaml", "neither: [");
    fs::create_dir(bench.file("folder.yaml")).unwrap();
    let source = bench.watch();
    let first = source.snapshot();
    assert_eq!(pool(&first, "a").as_deref(), Some("red"));
    assert_eq!((problems(&first), first.unread()), (Vec::new(), &[][..]));

    bench.write("a.yaml", &namespace("a", "blue"));
    until_pool(&source, "a", "blue");
    bench.rename("a.yaml", &namespace("a", "green"));
    until_pool(&source, "a", "green");
    let list = r#"{"apiVersion": "v1", "kind": "List", "items": [
        {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "namespace": "a"}}]}"#;
    bench.write("b.json", list);
    let both = until(&source, |snapshot| snapshot.pod("a", "p").is_some());
    assert_eq!((both.pods().count(), both.namespaces().count()), (1, 1));
    // What was taken before does not change.
    assert_eq!(pool(&first, "a").as_deref(), Some("red"));

    fs::rename(bench.file("b.json"), bench.root.path().join("b.json")).unwrap();
    until(&source, |snapshot| snapshot.pod("a", "p").is_none());
    fs::remove_file(bench.file("a.yaml")).unwrap();
    let empty = until(&source, |snapshot| snapshot.namespace("a").is_none());
    assert_eq!(problems(&empty), Vec::<String>::new());
    assert!(empty.revision() > both.revision());
}

#[test]
fn a_file_that_breaks_keeps_its_objects_and_is_named() {
    let bench = Bench::new();
    bench.write("a.yaml", &namespace("a", "red"));
    let source = bench.watch();
    let broken = namespace("a", "blue") + "   nonsense: [\n";
    for (text, line) in [(broken.as_str(), 7), ("", 1), ("kind: Pod\n", 1)] {
        bench.rename("a.yaml", text);
        let place = format!("{}:{line}: ", bench.file("a.yaml").display());
        let snapshot = until(&source, |snapshot| {
            problems(snapshot).iter().any(|problem| problem.starts_with(&place))
        });
        assert_eq!(pool(&snapshot, "a").as_deref(), Some("red"));
        assert_eq!(snapshot.problems().len(), 1, "{snapshot:?}");
        assert_eq!(snapshot.problems()[0].path(), bench.file("a.yaml"));
        // It has been read once.
        assert_eq!(snapshot.unread(), &[] as &[PathBuf]);
    }
    fs::write(bench.file("a.yaml"), [0xff, 0xfe, 0xfd]).unwrap();
    until(&source, |snapshot| matches!(snapshot.problems(), [Problem::File { .. }]));
    // Others are read meanwhile.
    bench.write("b.yaml", &namespace("b", "green"));
    let snapshot = until_pool(&source, "b", "green");
    assert_eq!(pool(&snapshot, "a").as_deref(), Some("red"));

    bench.rename("a.yaml", &namespace("a", "blue"));
    let well = until_pool(&source, "a", "blue");
    assert_eq!(problems(&well), Vec::<String>::new());
    // Whoever deletes a broken file means it.
    bench.rename("a.yaml", "kind: Pod\n");
    until(&source, |snapshot| snapshot.problems().len() == 1);
    fs::remove_file(bench.file("a.yaml")).unwrap();
    let gone = until(&source, |snapshot| snapshot.problems().is_empty());
    assert_eq!(pool(&gone, "a"), None);
}

#[test]
fn what_was_never_read_is_listed() {
    let bench = Bench::new();
    bench.write("a.yaml", "kind: [\n");
    symlink("nowhere", bench.file("b.yaml")).unwrap();
    bench.write("c.yaml", &namespace("c", "red"));
    let source = bench.watch();
    let snapshot = source.snapshot();
    assert_eq!(snapshot.unread(), [bench.file("a.yaml"), bench.file("b.yaml")]);
    assert_eq!(snapshot.problems().len(), 2, "{snapshot:?}");
    bench.rename("a.yaml", &namespace("a", "red"));
    fs::remove_file(bench.file("b.yaml")).unwrap();
    let snapshot = until_pool(&source, "a", "red");
    let snapshot = if snapshot.unread().is_empty() {
        snapshot
    } else {
        until(&source, |snapshot| snapshot.unread().is_empty())
    };
    assert_eq!(problems(&snapshot), Vec::<String>::new());
}

/// As the kubelet updates a mounted `ConfigMap`: the files are symlinks through `..data`, which is a
/// symlink to a folder and is replaced by renaming another one over it.
#[test]
fn a_config_map_is_swapped() {
    let bench = Bench::new();
    let version = |number: u32, text: &str| {
        let folder = bench.file(&format!("..2026_{number}"));
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("a.yaml"), text).unwrap();
        symlink(folder.file_name().unwrap(), bench.file("..data_tmp")).unwrap();
        fs::rename(bench.file("..data_tmp"), bench.file("..data")).unwrap();
    };
    version(1, &namespace("a", "red"));
    symlink("..data/a.yaml", bench.file("a.yaml")).unwrap();
    let source = bench.watch();
    assert_eq!(pool(&source.snapshot(), "a").as_deref(), Some("red"));
    version(2, &namespace("a", "blue"));
    fs::remove_dir_all(bench.file("..2026_1")).unwrap();
    let snapshot = until_pool(&source, "a", "blue");
    assert_eq!(snapshot.namespaces().count(), 1);

    // A key is added to it, and taken away.
    version(3, &namespace("a", "green"));
    fs::write(bench.file("..2026_3").join("b.yaml"), namespace("b", "red")).unwrap();
    symlink("..data/b.yaml", bench.file("b.yaml")).unwrap();
    until_pool(&source, "b", "red");
    version(4, &namespace("a", "white"));
    let dangling = until_pool(&source, "a", "white");
    assert_eq!(pool(&dangling, "b").as_deref(), Some("red"), "kept until its link is gone");
    assert_eq!(dangling.problems().len(), 1, "{dangling:?}");
    fs::remove_file(bench.file("b.yaml")).unwrap();
    until(&source, |snapshot| snapshot.namespace("b").is_none());
}

#[test]
fn a_folder_that_vanishes_keeps_its_objects() {
    let bench = Bench::new();
    bench.write("a.yaml", &namespace("a", "red"));
    let source = bench.watch();
    let aside = bench.root.path().join("aside");
    fs::rename(&bench.folder, &aside).unwrap();
    let gone = until(&source, |snapshot| !snapshot.problems().is_empty());
    assert_eq!(pool(&gone, "a").as_deref(), Some("red"));
    let [Problem::Folder { path, .. }] = gone.problems() else { panic!("{gone:?}") };
    assert_eq!((path, gone.unread()), (&bench.folder, &[][..]));

    // What happens to the old one is of no concern now.
    fs::write(aside.join("a.yaml"), namespace("a", "grey")).unwrap();
    fs::create_dir(&bench.folder).unwrap();
    bench.write("a.yaml", &namespace("a", "blue"));
    let back = until_pool(&source, "a", "blue");
    assert_eq!(problems(&back), Vec::<String>::new());
    // And the new one is watched.
    bench.write("a.yaml", &namespace("a", "green"));
    until_pool(&source, "a", "green");
}

#[test]
fn a_folder_may_come_later() {
    let bench = Bench::new();
    let later: &Path = &bench.file("later");
    let source = Directory::watch(later).unwrap();
    let snapshot = source.snapshot();
    assert_eq!(snapshot.unread(), [later]);
    assert!(problems(&snapshot)[0].contains("later cannot be read"), "{snapshot:?}");
    fs::create_dir(later).unwrap();
    fs::write(later.join("a.yml"), namespace("a", "red")).unwrap();
    let well = until_pool(&source, "a", "red");
    assert_eq!((problems(&well), well.unread()), (Vec::new(), &[][..]));
}

#[test]
fn of_two_definitions_the_first_counts_and_both_are_named() {
    let bench = Bench::new();
    bench.write("b.yaml", &namespace("a", "blue"));
    let source = bench.watch();
    bench.write("c.yaml", &format!("---\n{}", namespace("a", "red")));
    let snapshot = until(&source, |snapshot| !snapshot.problems().is_empty());
    assert_eq!(pool(&snapshot, "a").as_deref(), Some("blue"));
    let (first, second) = (bench.file("b.yaml"), bench.file("c.yaml"));
    let words =
        format!("{}:2: namespace a is defined at {}:1 already", second.display(), first.display());
    assert_eq!(problems(&snapshot), [words]);
    fs::remove_file(first).unwrap();
    let snapshot = until_pool(&source, "a", "red");
    assert_eq!(problems(&snapshot), Vec::<String>::new());
}

#[test]
fn files_that_change_all_the_time_are_read_all_the_same() {
    let bench = Bench::new();
    let source = bench.watch();
    std::thread::scope(|scope| {
        let (stop, stopped) = std::sync::mpsc::channel::<()>();
        let bench = &bench;
        scope.spawn(move || {
            let mut number = 0;
            while stopped.try_recv().is_err() {
                number += 1;
                bench.rename("a.yaml", &namespace("a", &format!("p{number}")));
            }
        });
        let first = until(&source, |snapshot| snapshot.namespace("a").is_some());
        let before = pool(&first, "a");
        until(&source, |snapshot| pool(snapshot, "a") != before);
        stop.send(()).unwrap();
    });
}

/// Dropping waits for the thread, whose events may be many: were it not to end, this would hang.
#[test]
fn the_thread_ends_with_the_source() {
    let bench = Bench::new();
    for number in 0..20 {
        let source = bench.watch();
        bench.write("a.yaml", &namespace("a", &format!("p{number}")));
        drop(source);
    }
}
