//! What is known of a folder, file by file.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use crate::manifest::{self, Defined};
use crate::{Place, Problem, Snapshot};

/// The largest file that is read, in bytes; an object of etcd has 1.5 MiB at most.
const LARGEST: u64 = 16 << 20;

#[derive(Debug)]
pub(crate) struct Folder {
    path: PathBuf,
    /// Whether it could be read at least once.
    seen: bool,
    /// Why it could not be read last.
    failed: Option<String>,
    files: BTreeMap<OsString, Known>,
}

/// What is known of a file.
#[derive(Debug, Default)]
struct Known {
    /// Of the content that was parsed last.
    digest: Option<u64>,
    /// What was found when it was last well; `None` if it never was.
    objects: Option<Vec<Defined>>,
    /// What is wrong with it now.
    flaw: Option<Problem>,
}

impl Folder {
    pub(crate) fn new(path: PathBuf) -> Self {
        Self { path, seen: false, failed: None, files: BTreeMap::new() }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Reads everything again. What cannot be read stays as it was.
    pub(crate) fn read(&mut self) {
        let names = match names(&self.path) {
            Ok(names) => names,
            Err(error) => {
                self.failed = Some(error.to_string());
                return;
            }
        };
        (self.seen, self.failed) = (true, None);
        self.files.retain(|name, _| names.contains(name));
        for name in names {
            let path = self.path.join(&name);
            self.files.entry(name).or_default().read(&path);
        }
    }

    /// Whether it could be read the last time.
    pub(crate) fn is_there(&self) -> bool {
        self.failed.is_none()
    }

    pub(crate) fn snapshot(&self) -> Snapshot {
        let mut snapshot = Snapshot::default();
        if let Some(why) = &self.failed {
            snapshot.problems.push(Problem::Folder { path: self.path.clone(), why: why.clone() });
            if !self.seen {
                snapshot.unread.push(self.path.clone());
            }
        }
        let mut defined = BTreeMap::new();
        for (name, known) in &self.files {
            let path = self.path.join(name);
            if known.objects.is_none() {
                snapshot.unread.push(path.clone());
            }
            snapshot.problems.extend(known.flaw.clone());
            for Defined { line, object } in known.objects.iter().flatten() {
                let place = Place { file: path.clone(), line: *line };
                let name = object.name();
                if let Some(first) = defined.get(&name) {
                    let first = Place::clone(first);
                    snapshot.problems.push(Problem::Duplicate {
                        object: name,
                        first,
                        second: place,
                    });
                } else {
                    defined.insert(name, place);
                    snapshot.insert(object.clone());
                }
            }
        }
        snapshot
    }
}

impl Known {
    fn read(&mut self, path: &Path) {
        let file = path.to_owned();
        let text = match content(path) {
            Ok(text) => text,
            Err(error) => {
                self.digest = None;
                self.flaw = Some(Problem::File { path: file, why: error.to_string() });
                return;
            }
        };
        let digest = digest(&text);
        if self.digest == Some(digest) {
            return;
        }
        self.digest = Some(digest);
        match manifest::parse(&text) {
            Ok(objects) => (self.objects, self.flaw) = (Some(objects), None),
            Err(flaw) => {
                let place = Place { file, line: flaw.line };
                self.flaw = Some(Problem::Manifest { place, why: flaw.why });
            }
        }
    }
}

/// The files that may be manifests, in the order of their names. Hidden ones are editors' and the
/// folders behind a `ConfigMap`.
fn names(folder: &Path) -> io::Result<BTreeSet<OsString>> {
    let mut names = BTreeSet::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        if is_manifest(&name) && !entry.file_type()?.is_dir() {
            names.insert(name);
        }
    }
    Ok(names)
}

fn is_manifest(name: &OsStr) -> bool {
    let hidden = name.as_encoded_bytes().starts_with(b".");
    let extension = Path::new(name).extension().and_then(OsStr::to_str);
    !hidden && matches!(extension, Some("yaml" | "yml" | "json"))
}

fn content(path: &Path) -> io::Result<String> {
    // Opening a pipe would wait for its other end.
    if !fs::metadata(path)?.is_file() {
        return Err(io::Error::other("it is no file"));
    }
    let mut text = String::new();
    File::open(path)?.take(LARGEST + 1).read_to_string(&mut text)?;
    if text.len() as u64 > LARGEST {
        return Err(io::Error::other(format!("it has more than {} MiB", LARGEST >> 20)));
    }
    Ok(text)
}

fn digest(text: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    hasher.finish()
}
