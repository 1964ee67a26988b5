use std::fmt;

use crate::{Change, Conflict};

/// What can go wrong when state is read or changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The kernel refused, or could not be asked.
    #[error(transparent)]
    Netlink(Box<podwire_netlink::Error>),
    /// Somebody else's object is where ours is wanted.
    #[error("{0}")]
    Conflict(Box<Conflict>),
    /// Some changes of a plan were refused; the others were made.
    #[error("{} of {total} changes failed: {}", failures.len(), Listed(failures))]
    Apply {
        /// How many changes there were.
        total: usize,
        /// Those that were refused, in order.
        failures: Vec<Failure>,
    },
}

/// A change that was refused.
#[derive(Debug)]
pub struct Failure {
    /// The change.
    pub change: Change,
    /// Why.
    pub error: podwire_netlink::Error,
}

impl Error {
    /// Whether an object of somebody else is in the way.
    pub fn is_conflict(&self) -> bool {
        matches!(self, Self::Conflict(_))
    }

    /// Whether the kernel refused because the link does not exist, or the object's.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Netlink(error) if error.is_not_found())
    }

    /// Whether a privilege is missing.
    pub fn is_permission_denied(&self) -> bool {
        match self {
            Self::Netlink(error) => error.is_permission_denied(),
            Self::Apply { failures, .. } => {
                failures.iter().any(|failure| failure.error.is_permission_denied())
            }
            Self::Conflict(_) => false,
        }
    }
}

impl From<podwire_netlink::Error> for Error {
    fn from(error: podwire_netlink::Error) -> Self {
        Self::Netlink(error.into())
    }
}

impl From<Conflict> for Error {
    fn from(conflict: Conflict) -> Self {
        Self::Conflict(conflict.into())
    }
}

/// The first few failures; a thousand alike help nobody.
struct Listed<'a>(&'a [Failure]);

impl fmt::Display for Listed<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 3;
        for (place, failure) in self.0.iter().take(SHOWN).enumerate() {
            let separator = if place == 0 { "" } else { "; " };
            write!(f, "{separator}{}", failure.error)?;
        }
        match self.0.len().saturating_sub(SHOWN) {
            0 => Ok(()),
            more => write!(f, "; and {more} more"),
        }
    }
}
