use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{Expected, New, Registry, Revision, Swap, Versioned};

/// A registry that ends with the process. Clones share one content.
#[derive(Clone, Debug, Default)]
pub struct MemoryRegistry(Arc<Mutex<Content>>);

#[derive(Debug, Default)]
struct Content {
    entries: BTreeMap<String, Versioned>,
    /// How many swaps there were.
    revision: u64,
}

impl MemoryRegistry {
    fn content(&self) -> MutexGuard<'_, Content> {
        // No code under the lock leaves the content half changed.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Registry for MemoryRegistry {
    type Error = Infallible;

    fn read(&self, key: &str) -> Result<Option<Versioned>, Infallible> {
        Ok(self.content().entries.get(key).cloned())
    }

    fn list(&self, prefix: &str) -> Result<Vec<(String, Versioned)>, Infallible> {
        let content = self.content();
        let from = content.entries.range(prefix.to_owned()..);
        let listed = from.take_while(|(key, _)| key.starts_with(prefix));
        Ok(listed.map(|(key, found)| (key.clone(), found.clone())).collect())
    }

    fn swap(&self, key: &str, expected: &Expected, new: New<'_>) -> Result<Swap, Infallible> {
        let mut content = self.content();
        let found = content.entries.get(key);
        if !expected.is_met_by(found.map(|found| &found.revision)) {
            return Ok(Swap::Conflict(found.cloned()));
        }
        Ok(Swap::Swapped(match new {
            New::Put(value) => {
                content.revision += 1;
                let revision = Revision::from(content.revision);
                let entry = Versioned { value: value.to_vec(), revision: revision.clone() };
                content.entries.insert(key.to_owned(), entry);
                Some(revision)
            }
            New::Delete => {
                content.entries.remove(key);
                None
            }
        }))
    }
}
