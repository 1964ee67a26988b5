use std::collections::BTreeMap;
use std::convert::Infallible;

use super::{Entry, Table};

/// A table that ends with the process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    entries: BTreeMap<Vec<u8>, Vec<u8>>,
}

impl Table for Memory {
    type Error = Infallible;

    fn value(&self, key: &[u8]) -> Result<Option<Vec<u8>>, Infallible> {
        Ok(self.entries.get(key).cloned())
    }

    fn first_from(&self, key: &[u8]) -> Result<Option<Entry>, Infallible> {
        let found = self.entries.range(key.to_vec()..).next();
        Ok(found.map(|(key, value)| (key.clone(), value.clone())))
    }

    fn last_to(&self, key: &[u8]) -> Result<Option<Entry>, Infallible> {
        let found = self.entries.range(..=key.to_vec()).next_back();
        Ok(found.map(|(key, value)| (key.clone(), value.clone())))
    }

    fn insert(&mut self, key: &[u8], value: &[u8]) -> Result<(), Infallible> {
        self.entries.insert(key.to_vec(), value.to_vec());
        Ok(())
    }

    fn remove(&mut self, key: &[u8]) -> Result<(), Infallible> {
        self.entries.remove(key);
        Ok(())
    }
}
