use std::fmt;
use std::sync::Arc;

/// A small key-value store that all nodes of a cluster see, with revisions and compare-and-swap.
///
/// It asks for no more than what both etcd (transactions that compare `mod_revision`) and the
/// Kubernetes API (`resourceVersion` as a precondition) give, so that either can stand behind it.
/// [`MemoryRegistry`](super::MemoryRegistry) and, behind the feature `file`, `FileRegistry` are
/// embedded ones.
///
/// What users of a registry rely on:
///
/// - **Linearisable.** A swap takes effect at one moment between its call and its return. A read or
///   a list sees every swap that returned before it was called, whoever called it.
/// - **Revisions are never used again** for one key, also not after the key was deleted and made
///   again. They are compared for equality only.
/// - **A put makes a new revision** whenever its bytes differ from those before. (The Kubernetes
///   API leaves an object alone to which nothing changed, so nobody relies on more.)
/// - **An error leaves the outcome open.** A swap that failed may have taken effect, or may do so
///   later, when a request that timed out reaches the other side after all.
///
/// Calls block. A registry that is reached over the network bounds each call by a deadline of its
/// own. Keys are non-empty and consist of ASCII letters, digits and `-_.:/`; values have less than
/// 1 KiB.
pub trait Registry: Send + Sync {
    /// Why a call failed.
    type Error: std::error::Error + Send + Sync + 'static;

    /// What `key` is now; `None` if it is absent.
    ///
    /// # Errors
    ///
    /// The registry cannot be read.
    fn read(&self, key: &str) -> Result<Option<Versioned>, Self::Error>;

    /// All keys that begin with `prefix`, in any order, as they were at one moment.
    ///
    /// # Errors
    ///
    /// The registry cannot be read.
    fn list(&self, prefix: &str) -> Result<Vec<(String, Versioned)>, Self::Error>;

    /// Changes `key` if it is as `expected`, and otherwise tells what it is.
    ///
    /// Deleting a key that is expected to be absent changes nothing.
    ///
    /// # Errors
    ///
    /// The registry cannot be reached, or did not answer: whether the swap took or will take
    /// effect is not known.
    fn swap(&self, key: &str, expected: &Expected, new: New<'_>) -> Result<Swap, Self::Error>;
}

/// A value and the revision that it has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Versioned {
    /// The value.
    pub value: Vec<u8>,
    /// The revision.
    pub revision: Revision,
}

/// Names one state of one key. Opaque: it says nothing about order.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Revision(Arc<str>);

impl Revision {
    /// The revision that the registry calls `name`.
    #[must_use]
    pub fn new(name: &str) -> Self {
        Self(name.into())
    }

    /// What the registry calls it.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<u64> for Revision {
    fn from(number: u64) -> Self {
        Self::new(&number.to_string())
    }
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a key must be for a swap to take effect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expected {
    /// It does not exist.
    Absent,
    /// It exists and has this revision.
    Revision(Revision),
}

impl Expected {
    /// Whether a key with this revision, `None` if it is absent, is as expected.
    #[must_use]
    pub fn is_met_by(&self, found: Option<&Revision>) -> bool {
        match self {
            Self::Absent => found.is_none(),
            Self::Revision(revision) => found == Some(revision),
        }
    }
}

/// What a swap makes of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum New<'a> {
    /// It has this value.
    Put(&'a [u8]),
    /// It does not exist.
    Delete,
}

/// What came of a swap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Swap {
    /// It took effect, and this is the revision now; `None` after a deletion.
    Swapped(Option<Revision>),
    /// The key was not as expected, nothing changed, and this is what it was at some moment since
    /// the call; `None` if it was absent.
    Conflict(Option<Versioned>),
}

impl<R: Registry + ?Sized> Registry for &R {
    type Error = R::Error;

    fn read(&self, key: &str) -> Result<Option<Versioned>, Self::Error> {
        (**self).read(key)
    }

    fn list(&self, prefix: &str) -> Result<Vec<(String, Versioned)>, Self::Error> {
        (**self).list(prefix)
    }

    fn swap(&self, key: &str, expected: &Expected, new: New<'_>) -> Result<Swap, Self::Error> {
        (**self).swap(key, expected, new)
    }
}

impl<R: Registry + ?Sized> Registry for Arc<R> {
    type Error = R::Error;

    fn read(&self, key: &str) -> Result<Option<Versioned>, Self::Error> {
        (**self).read(key)
    }

    fn list(&self, prefix: &str) -> Result<Vec<(String, Versioned)>, Self::Error> {
        (**self).list(prefix)
    }

    fn swap(&self, key: &str, expected: &Expected, new: New<'_>) -> Result<Swap, Self::Error> {
        (**self).swap(key, expected, new)
    }
}
