use std::sync::Arc;

type Source = Arc<dyn std::error::Error + Send + Sync>;

/// Why a durable operation failed.
///
/// Callers whose changes went into one commit get clones of one error.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The allocator refused; nothing was changed.
    #[error(transparent)]
    Refused(#[from] crate::Error),
    /// The store failed. Whether the change was made is not known before the next look at it.
    #[error("cannot {operation}")]
    Store {
        /// What was tried.
        operation: &'static str,
        /// What the store found.
        source: Source,
    },
    /// Another version has written the store, in a way that this one does not read.
    #[error("the store has format {found}, this version reads and writes {known}")]
    Format {
        /// The store's.
        found: String,
        /// This version's.
        known: &'static str,
    },
    /// A record of the store does not say what it should.
    #[error("table {table}: record {key:?} cannot be used")]
    Record {
        /// The table.
        table: &'static str,
        /// The record's key.
        key: String,
        /// What is wrong with it.
        source: Source,
    },
}

impl Error {
    pub(super) fn store<E>(operation: &'static str) -> impl Fn(E) -> Self
    where
        E: std::error::Error + Send + Sync + 'static,
    {
        move |source| Self::Store { operation, source: Arc::new(source) }
    }

    /// The allocator's own answer, if it was the one that refused.
    #[must_use]
    pub const fn refusal(&self) -> Option<&crate::Error> {
        match self {
            Self::Refused(refusal) => Some(refusal),
            _ => None,
        }
    }

    /// The store holds something that cannot be used. It will not get better by itself: set it
    /// aside, and rebuild it.
    #[must_use]
    pub fn is_damaged(&self) -> bool {
        match self {
            Self::Refused(_) | Self::Format { .. } => false,
            Self::Record { .. } => true,
            #[cfg(feature = "file")]
            Self::Store { source, .. } => source
                .downcast_ref::<super::FileStoreError>()
                .is_some_and(super::FileStoreError::is_damaged),
            #[cfg(not(feature = "file"))]
            Self::Store { .. } => false,
        }
    }
}

/// The store panicked in the middle of a commit.
#[derive(Debug, thiserror::Error)]
#[error("the store panicked")]
pub(super) struct Panicked;
