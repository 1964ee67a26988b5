//! Tickets: how verdicts that programs remember are told from what has changed since.
//!
//! [`NodeState`] says what the order of writes must be; this module keeps it.

use std::path::Path;

use podwire_abi::{Address, CHANGING, HashSeed, NodeState, Slot, Verdict, map, remote_place};
use podwire_bpf::Array;

use crate::{
    error::{Error, Result},
    tables::Tables,
};

/// Whose flows a change concerns.
#[derive(Debug, Default)]
pub(crate) struct Marks {
    /// Everybody's.
    pub(crate) all: bool,
    /// Those of the endpoints in these slots.
    pub(crate) slots: Vec<u32>,
    /// Those with these addresses, which no endpoint has.
    pub(crate) remotes: Vec<Address>,
}

/// What the node's flows are hashed by: what the pinned map has, or else what is drawn now.
pub(crate) fn seed(folder: &Path) -> Result<HashSeed> {
    // Whatever is wrong with a map that is there, loading names.
    if let Ok(map) = Array::<NodeState>::open(folder.join(map::STATE)) {
        let seed = map.get(0)?.seed;
        if seed != HashSeed::default() {
            return Ok(seed);
        }
    }
    let mut seed = HashSeed::default();
    for word in &mut seed {
        *word = getrandom::u64().map_err(|source| Error::Random { source: source.into() })?;
    }
    Ok(seed)
}

/// Writes down what flows are hashed by, for those who open the maps and for later programs.
pub(crate) fn keep_seed(map: &Array<NodeState>, seed: HashSeed) -> Result<()> {
    let state = map.get(0)?;
    if state.seed != seed {
        map.set(0, &NodeState { seed, ..state })?;
    }
    Ok(())
}

impl Tables {
    /// The ticket of the change that begins now.
    fn next_ticket(&self) -> Result<u64> {
        match self.state.get(0)?.ticket + 1 {
            Verdict::LAST_STAMP.. => Err(Error::NoTickets),
            ticket => Ok(ticket),
        }
    }

    /// The change is written and marked: what is decided from now on rests on it.
    fn raise(&self, ticket: u64) -> Result<()> {
        let mut state = self.state.get(0)?;
        for step in steps(state.ticket, ticket) {
            state.ticket = step;
            self.state.set(0, &state)?;
        }
        Ok(())
    }

    /// The flows' clock goes on by so many seconds.
    pub(crate) fn tick(&self, seconds: u32) -> Result<()> {
        let mut state = self.state.get(0)?;
        state.seconds = state.seconds.wrapping_add(seconds);
        Ok(self.state.set(0, &state)?)
    }

    /// Changes what concerns all flows.
    pub(crate) fn change_all(&self, write: impl FnOnce() -> Result<()>) -> Result<()> {
        self.change(&Marks { all: true, ..Marks::default() }, |_| write())
    }

    /// Changes what verdicts rest on; `write` is given the change's ticket. What was written when it fails
    /// counts as well.
    pub(crate) fn change(
        &self,
        marks: &Marks,
        write: impl FnOnce(u64) -> Result<()>,
    ) -> Result<()> {
        let ticket = self.next_ticket()?;
        self.mark(marks, CHANGING)?;
        let written = write(ticket);
        self.mark(marks, ticket)?;
        self.raise(ticket)?;
        written
    }

    fn mark(&self, marks: &Marks, ticket: u64) -> Result<()> {
        if marks.all {
            let state = self.state.get(0)?;
            self.state.set(0, &NodeState { changed: ticket, ..state })?;
        }
        for &number in &marks.slots {
            let slot = self.slots.get(number)?;
            self.slots.set(number, &Slot { changed: ticket, ..slot })?;
        }
        self.mark_remotes(&marks.remotes, ticket)
    }

    fn mark_remotes(&self, addresses: &[Address], ticket: u64) -> Result<()> {
        let places: Vec<_> = addresses.iter().map(|one| (remote_place(one), ticket)).collect();
        match places[..] {
            [(place, ticket)] => self.remotes.set(place, &ticket)?,
            [] => {}
            _ => self.remotes.set_batch(&places)?,
        }
        Ok(())
    }

    /// Changes what an endpoint's slot says, but not whose it is.
    pub(crate) fn change_slot(
        &self,
        number: u32,
        change: impl FnOnce(Slot) -> Result<Slot>,
    ) -> Result<()> {
        self.change(&Marks { slots: vec![number], ..Marks::default() }, |_| {
            let changed = change(self.slots.get(number)?)?;
            Ok(self.slots.set(number, &changed)?)
        })
    }
}

/// The values that lead from one ticket to a later one, of which each differs from the one before in the
/// lower bytes cleared or in one byte raised. The kernel copies a value byte by byte if it likes: whoever reads
/// meanwhile must not see a ticket that was never reached, since a verdict with it would be believed for too
/// long. An earlier one does no harm.
fn steps(from: u64, to: u64) -> Vec<u64> {
    let Some(highest) = (from ^ to).checked_ilog2() else { return Vec::new() };
    let top = highest / 8 * 8;
    let mut steps = vec![from >> top << top];
    steps.extend((0..=top / 8).rev().map(|byte| to >> (8 * byte) << (8 * byte)));
    steps.dedup();
    if steps[0] == from {
        steps.remove(0);
    }
    steps
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The highest value that a reader can see while `a` is overwritten by `b`.
    fn torn(a: u64, b: u64) -> u64 {
        let pairs = a.to_le_bytes().into_iter().zip(b.to_le_bytes());
        let bytes: Vec<u8> = pairs.map(|(a, b)| a.max(b)).collect();
        u64::from_le_bytes(bytes.try_into().unwrap())
    }

    proptest! {
        #[test]
        fn no_ticket_is_seen_before_it_is_reached(from in 0..Verdict::LAST_STAMP, by in 1_u64..100_000) {
            let to = from + by;
            let mut at = from;
            for step in steps(from, to) {
                prop_assert!(torn(at, step) <= to, "{at:#x} to {step:#x}");
                at = step;
            }
            prop_assert_eq!(at, to);
        }
    }

    #[test]
    fn one_more_is_mostly_one_write() {
        assert_eq!(steps(0x41, 0x42), [0x42]);
        assert_eq!(steps(0xff, 0x100), [0x00, 0x100]);
        assert_eq!(steps(0x12_ffff, 0x13_0000), [0x12_0000, 0x13_0000]);
        assert!(steps(5, 5).is_empty());
    }
}
