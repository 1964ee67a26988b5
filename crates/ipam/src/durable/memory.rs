use std::collections::BTreeMap;
use std::convert::Infallible;

use super::{Change, Entry, Store};

/// Tables in memory: for tests, and for programs whose leases need not survive them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MemoryStore {
    tables: BTreeMap<&'static str, BTreeMap<Vec<u8>, Vec<u8>>>,
}

impl Store for MemoryStore {
    type Error = Infallible;

    fn load(&mut self, table: &str) -> Result<Vec<Entry>, Infallible> {
        let entries = self.tables.get(table).into_iter().flatten();
        Ok(entries.map(|(key, value)| (key.clone(), value.clone())).collect())
    }

    fn commit(&mut self, changes: &[Change]) -> Result<(), Infallible> {
        for Change { table, key, value } in changes {
            let table = self.tables.entry(table).or_default();
            match value {
                Some(value) => table.insert(key.clone(), value.clone()),
                None => table.remove(key),
            };
        }
        Ok(())
    }
}
