use std::collections::HashSet;
use std::sync::{Condvar, Mutex, PoisonError};

use podwire_api::EndpointId;

/// Lets one request at a time work on an endpoint, and any number on different ones.
#[derive(Debug, Default)]
pub(crate) struct Turns {
    held: Mutex<HashSet<EndpointId>>,
    freed: Condvar,
}

/// The right to work on an endpoint, until it is dropped.
#[derive(Debug)]
pub(crate) struct Turn<'a> {
    turns: &'a Turns,
    id: EndpointId,
}

impl Turns {
    /// Waits until nobody works on `id`.
    pub(crate) fn take(&self, id: &EndpointId) -> Turn<'_> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        while held.contains(id) {
            held = self.freed.wait(held).unwrap_or_else(PoisonError::into_inner);
        }
        held.insert(id.clone());
        Turn { turns: self, id: id.clone() }
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.turns.held.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.id);
        self.turns.freed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[test]
    fn one_at_a_time_per_endpoint() {
        let turns = Turns::default();
        let id = EndpointId::new("c1", "eth0").unwrap();
        let other = EndpointId::new("c2", "eth0").unwrap();
        let inside = AtomicU32::new(0);
        let _other = turns.take(&other);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..100 {
                        let _turn = turns.take(&id);
                        assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0);
                        inside.fetch_sub(1, Ordering::SeqCst);
                    }
                });
            }
        });
        assert_eq!(turns.held.lock().unwrap().len(), 1);
    }
}
