use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::{Namespace, Object, ObjectName, Pod};

/// Where a node learns the cluster's objects from.
pub trait Source: fmt::Debug + Send + Sync {
    /// What is known now. It is cheap, and never waits for a disk or a network.
    fn snapshot(&self) -> Arc<Snapshot>;
}

/// A source whose objects never change.
impl Source for Arc<Snapshot> {
    fn snapshot(&self) -> Arc<Snapshot> {
        self.clone()
    }
}

/// The objects that a source had at one moment, and what is wrong with it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Snapshot {
    pub(crate) revision: u64,
    /// By namespace and name, so that a look-up allocates nothing.
    pub(crate) pods: BTreeMap<String, BTreeMap<String, Pod>>,
    pub(crate) namespaces: BTreeMap<String, Namespace>,
    pub(crate) problems: Vec<Problem>,
    pub(crate) unread: Vec<PathBuf>,
}

impl Snapshot {
    /// One pod.
    #[must_use]
    pub fn pod(&self, namespace: &str, name: &str) -> Option<&Pod> {
        self.pods.get(namespace)?.get(name)
    }

    /// One namespace.
    #[must_use]
    pub fn namespace(&self, name: &str) -> Option<&Namespace> {
        self.namespaces.get(name)
    }

    /// All pods, sorted by namespace and name.
    pub fn pods(&self) -> impl Iterator<Item = &Pod> {
        self.pods.values().flat_map(BTreeMap::values)
    }

    /// All namespaces, sorted by name.
    pub fn namespaces(&self) -> impl Iterator<Item = &Namespace> {
        self.namespaces.values()
    }

    /// What could not be read, or not believed; sorted by file.
    #[must_use]
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }

    /// Files, or the folder itself, that have never been read since the source was opened. An object
    /// that is not in the snapshot may be in one of them.
    #[must_use]
    pub fn unread(&self) -> &[PathBuf] {
        &self.unread
    }

    /// Grows with every change.
    #[must_use]
    pub const fn revision(&self) -> u64 {
        self.revision
    }

    /// Adds an object, unless there is one of its name.
    pub(crate) fn insert(&mut self, object: Object) {
        match object {
            Object::Pod(pod) => {
                let pods = self.pods.entry(pod.namespace.clone()).or_default();
                pods.entry(pod.name.clone()).or_insert(pod);
            }
            Object::Namespace(namespace) => {
                self.namespaces.entry(namespace.name.clone()).or_insert(namespace);
            }
        }
    }
}

impl FromIterator<Object> for Snapshot {
    /// Of two objects of one name, the first counts.
    fn from_iter<I: IntoIterator<Item = Object>>(objects: I) -> Self {
        let mut snapshot = Self::default();
        for object in objects {
            snapshot.insert(object);
        }
        snapshot
    }
}

/// A line of a file.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// The file.
    pub file: PathBuf,
    /// The line, from 1.
    pub line: u64,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file.display(), self.line)
    }
}

/// Something that is wrong with a source.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Problem {
    /// The folder cannot be read. The objects of its files are kept.
    Folder {
        /// The folder.
        path: PathBuf,
        /// The system's reason.
        why: String,
    },
    /// The folder is looked at every few seconds only.
    Unwatched {
        /// The folder.
        path: PathBuf,
        /// The system's reason.
        why: String,
    },
    /// A file cannot be read. The objects that it had are kept.
    File {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        why: String,
    },
    /// What is in a file is no manifest. The objects that it had are kept.
    Manifest {
        /// Where.
        place: Place,
        /// What is wrong.
        why: String,
    },
    /// Two files define the same object; the first one counts.
    Duplicate {
        /// What they define.
        object: ObjectName,
        /// The definition that counts.
        first: Place,
        /// The one that does not.
        second: Place,
    },
}

impl Problem {
    /// The file or folder that has to be put right.
    #[must_use]
    pub fn path(&self) -> &Path {
        match self {
            Self::Folder { path, .. } | Self::Unwatched { path, .. } | Self::File { path, .. } => {
                path
            }
            Self::Manifest { place, .. } | Self::Duplicate { second: place, .. } => &place.file,
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Folder { path, why } | Self::File { path, why } => {
                write!(f, "{} cannot be read: {why}", path.display())
            }
            Self::Unwatched { path, why } => {
                write!(f, "{} cannot be watched: {why}", path.display())
            }
            Self::Manifest { place, why } => write!(f, "{place}: {why}"),
            Self::Duplicate { object, first, second } => {
                write!(f, "{second}: {object} is defined at {first} already")
            }
        }
    }
}
