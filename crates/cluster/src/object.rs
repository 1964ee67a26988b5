use std::collections::BTreeMap;
use std::fmt;

/// The annotations of an object.
pub type Annotations = BTreeMap<String, String>;

/// An object that the node has to know of.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Object {
    /// A pod.
    Pod(Pod),
    /// A namespace.
    Namespace(Namespace),
}

/// A pod, as far as it is read.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Pod {
    /// `metadata.namespace`, and `default` where that is missing.
    pub namespace: String,
    /// `metadata.name`.
    pub name: String,
    /// `metadata.annotations`.
    pub annotations: Annotations,
}

/// A namespace, as far as it is read.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Namespace {
    /// `metadata.name`.
    pub name: String,
    /// `metadata.annotations`.
    pub annotations: Annotations,
}

/// What there is one of at most.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum ObjectName {
    /// A pod.
    Pod {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
    },
    /// A namespace.
    Namespace(String),
}

impl Object {
    /// What tells it from others.
    #[must_use]
    pub fn name(&self) -> ObjectName {
        match self {
            Self::Pod(pod) => {
                ObjectName::Pod { namespace: pod.namespace.clone(), name: pod.name.clone() }
            }
            Self::Namespace(namespace) => ObjectName::Namespace(namespace.name.clone()),
        }
    }
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pod { namespace, name } => write!(f, "pod {namespace}/{name}"),
            Self::Namespace(name) => write!(f, "namespace {name}"),
        }
    }
}
