use std::collections::{BTreeMap, BTreeSet};

use hashbrown::HashMap;

use crate::Time;

/// Released addresses in the order of their release.
#[derive(Clone, Debug, Default)]
pub(crate) struct Cooling {
    /// Release number -> address and the moment from which nobody remembers it.
    queue: BTreeMap<u64, (u128, Time)>,
    /// Those moments and release numbers: a cool-down that was shortened ends before older ones.
    due: BTreeSet<(Time, u64)>,
    /// Address -> release number.
    numbers: HashMap<u128, u64>,
    released: u64,
}

impl Cooling {
    pub(crate) fn push(&mut self, address: u128, until: Time) {
        self.released += 1;
        self.queue.insert(self.released, (address, until));
        self.due.insert((until, self.released));
        self.numbers.insert(address, self.released);
    }

    /// The address released longest ago.
    pub(crate) fn oldest(&self) -> Option<u128> {
        self.queue.first_key_value().map(|(_, &(address, _))| address)
    }

    /// Takes out an address whose cool-down is over.
    pub(crate) fn pop_due(&mut self, now: Time) -> Option<u128> {
        let &(until, number) = self.due.first()?;
        if until > now {
            return None;
        }
        self.due.pop_first();
        let (address, _) = self.queue.remove(&number)?;
        self.numbers.remove(&address);
        Some(address)
    }

    /// Addresses and the moments from which nobody remembers them, the oldest release first.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u128, Time)> {
        self.queue.values().copied()
    }

    /// The moment from which nobody remembers an address, if it is one of these.
    pub(crate) fn until(&self, address: u128) -> Option<Time> {
        let number = self.numbers.get(&address)?;
        self.queue.get(number).map(|(_, until)| *until)
    }

    pub(crate) fn contains(&self, address: u128) -> bool {
        self.numbers.contains_key(&address)
    }

    pub(crate) fn remove(&mut self, address: u128) -> bool {
        let Some(number) = self.numbers.remove(&address) else { return false };
        let Some((_, until)) = self.queue.remove(&number) else { return false };
        self.due.remove(&(until, number))
    }
}
