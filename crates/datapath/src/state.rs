//! Tickets: how verdicts that programs remember are told from what has changed since.
//!
//! [`NodeState`] says what the order of writes must be; this module keeps it.

use std::{
    mem::offset_of,
    path::Path,
    sync::atomic::{AtomicU64, Ordering::SeqCst},
};

use podwire_abi::{
    Address, CHANGING, HashSeed, LAYOUT, NodeState, PolicyRef, Slot, Verdict, map, remote_place,
};
use podwire_bpf::{Array, MappedArray};

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

/// Memory of two maps, of which programs read single words that must not be seen half written.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) state: MappedArray<NodeState>,
    pub(crate) slots: MappedArray<Slot>,
}

impl Shared {
    /// The word at so many bytes of the node's state.
    fn state(&self, offset: usize) -> Result<&AtomicU64> {
        Ok(&self.state.element(0)?[offset / size_of::<u64>()])
    }

    /// The same of a slot.
    fn slot(&self, number: u32, offset: usize) -> Result<&AtomicU64> {
        Ok(&self.slots.element(number)?[offset / size_of::<u64>()])
    }
}

/// What the node's flows are hashed by: what the pinned map has, or else what is drawn now.
pub(crate) fn seed(folder: &Path) -> Result<HashSeed> {
    // Whatever is wrong with a map that is there, loading names.
    if let Ok(map) = Array::<NodeState>::open(folder.join(map::STATE)) {
        let state = map.get(0)?;
        // Otherwise it was made a moment ago, by somebody who got no further.
        if state.seed != HashSeed::default() {
            check_layout(&state, folder)?;
            return Ok(state.seed);
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
        map.set(0, &NodeState { seed, layout: LAYOUT, ..state })?;
    }
    Ok(())
}

/// Maps of another version may have the same sizes and mean something else.
pub(crate) fn check_layout(state: &NodeState, folder: &Path) -> Result<()> {
    if state.layout == LAYOUT {
        return Ok(());
    }
    let (folder, found) = (folder.to_owned(), state.layout);
    Err(Error::Layout { folder, found, expected: LAYOUT })
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
        self.shared.state(offset_of!(NodeState, ticket))?.store(ticket, SeqCst);
        Ok(())
    }

    /// The flows' clock goes on by so many seconds.
    pub(crate) fn tick(&self, seconds: u32) -> Result<()> {
        let state = self.state.get(0)?;
        let clock = [state.seconds.wrapping_add(seconds), state.layout].map(u32::to_ne_bytes);
        let [[a, b, c, d], [e, f, g, h]] = clock;
        let word = u64::from_ne_bytes([a, b, c, d, e, f, g, h]);
        self.shared.state(offset_of!(NodeState, seconds))?.store(word, SeqCst);
        Ok(())
    }

    /// Changes what an endpoint may receive and send, both in one moment.
    pub(crate) fn refer(&self, number: u32, ingress: PolicyRef, egress: PolicyRef) -> Result<()> {
        const { assert!(offset_of!(Slot, ingress) == offset_of!(Slot, egress) + 4) };
        let [[a, b, c, d], [e, f, g, h]] = [egress, ingress].map(|one| one.word().to_ne_bytes());
        let word = u64::from_ne_bytes([a, b, c, d, e, f, g, h]);
        self.shared.slot(number, offset_of!(Slot, egress))?.store(word, SeqCst);
        Ok(())
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
            self.shared.state(offset_of!(NodeState, changed))?.store(ticket, SeqCst);
        }
        for &number in &marks.slots {
            self.shared.slot(number, offset_of!(Slot, changed))?.store(ticket, SeqCst);
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
