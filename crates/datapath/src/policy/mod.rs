//! What endpoints may send and receive.

mod arena;
mod book;
mod index;
mod read;
mod restore;
mod rows;

use ipnetwork::IpNetwork;
use podwire_abi::{IpcacheEntry, PolicyRef, Slot, policy_flag, slot_flag};
use podwire_policy::{Compiled, MAX_IDENTITY};

pub(crate) use book::Book;
use book::{Full, Writes};
pub(crate) use index::Index;
pub(crate) use restore::restore;
pub use rows::{Flow, PolicyListing, Subject};

use crate::{
    datapath::{Datapath, Writer, addresses_of, grace_period},
    error::{Error, Result},
    ipcache::{Relabel, is_whole},
    state::Marks,
    tables::Tables,
};

/// What a request to have something so came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// It is so now.
    Changed,
    /// It was so already.
    Unchanged,
}

/// On which terms an endpoint is added.
#[derive(Debug, Clone, Copy)]
pub struct Terms<'a> {
    /// Who it is to others.
    pub identity: u32,
    /// What it may send and receive, or what it may already: everything, if it is new. Nothing is judged of
    /// an adopted one.
    pub policy: Option<&'a Compiled>,
}

/// Nothing passes.
pub(crate) const CLOSED: PolicyRef = PolicyRef::new(0, policy_flag::DENY_BY_DEFAULT);

impl Datapath {
    /// Says what an endpoint may send and receive, effective for the very next packet, of flows that go on
    /// as well. If it fails, what held before holds on, all of it.
    ///
    /// # Errors
    ///
    /// If no endpoint is known on the link, another plugin made it, a map is [full](Error::MapFull), or a
    /// map refuses.
    pub fn set_policy(&self, ifindex: u32, policy: &Compiled) -> Result<Outcome> {
        let outcome = {
            let mut writer = self.lock();
            let number = self.tables().links.get(&ifindex)?.ok_or(Error::NoEndpoint { ifindex })?;
            let slot = self.tables().slots.get(number)?;
            if slot.flags & slot_flag::CHAINED != 0 {
                return Err(Error::Adopted { ifindex });
            }
            self.exchange(&mut writer, number, &slot, policy)?
        };
        if outcome == Outcome::Changed {
            self.tidy()?;
        }
        Ok(outcome)
    }

    /// Says who an endpoint is to others, effective for the very next packet.
    ///
    /// # Errors
    ///
    /// If no endpoint is known on the link, the identity is none, or a map refuses.
    pub fn set_identity(&self, ifindex: u32, identity: u32) -> Result<Outcome> {
        check_identity(identity)?;
        let _writer = self.lock();
        let number = self.tables().links.get(&ifindex)?.ok_or(Error::NoEndpoint { ifindex })?;
        self.tables().identify(number, identity)
    }

    /// Puts an endpoint that is being added on its terms.
    pub(crate) fn put_on(&self, writer: &mut Writer, number: u32, terms: Terms<'_>) -> Result<()> {
        self.tables().identify(number, terms.identity)?;
        let slot = self.tables().slots.get(number)?;
        match terms.policy {
            Some(policy) if slot.flags & slot_flag::CHAINED == 0 => {
                self.exchange(writer, number, &slot, policy).map(drop)
            }
            _ => Ok(()),
        }
    }

    /// Removes from the maps what no packet is judged by any more. It waits until no program is running that
    /// may have seen it, if there is any.
    ///
    /// # Errors
    ///
    /// If there is no waiting, or a map refuses; it can be repeated.
    pub fn tidy(&self) -> Result<()> {
        let (retired, rereads) = {
            let mut writer = self.lock();
            if !writer.book.has_retired() {
                return Ok(());
            }
            (writer.book.take_retired(), writer.rereads)
        };
        let waited = grace_period();
        let mut writer = self.lock();
        if writer.rereads != rereads {
            // It is removed, and what it took may be in use again.
            return Ok(());
        }
        // What was retired meanwhile waits for the next time.
        let newer = writer.book.take_retired();
        writer.book.put_back(retired);
        let removed = waited.and_then(|()| self.remove_retired(&mut writer));
        writer.book.put_back(newer);
        removed
    }

    fn exchange(
        &self,
        writer: &mut Writer,
        number: u32,
        slot: &Slot,
        policy: &Compiled,
    ) -> Result<Outcome> {
        let wanted = [&policy.ingress, &policy.egress];
        let last = [slot.ingress, slot.egress];
        let is_so = |(wanted, last): (&podwire_policy::Rows, &PolicyRef)| match last.flags() {
            0 => wanted.permits_all(),
            _ => writer.book.rows_of(last) == Some(wanted) && writer.book.refers(last),
        };
        if wanted.into_iter().zip(&last).all(is_so) {
            return Ok(Outcome::Unchanged);
        }
        let mut between = writer.book.clone();
        let writes = match between.take_up(&policy.ingress, &policy.egress) {
            Err(_) if writer.book.has_retired() => {
                // What is about to be free may be enough.
                grace_period()?;
                self.remove_retired(writer)?;
                between = writer.book.clone();
                between.take_up(&policy.ingress, &policy.egress)
            }
            other => other,
        };
        let writes = writes.map_err(|Full { map, size }| Error::MapFull { map, size })?;
        let mut after = between.clone();
        let lost = after.leave(last);
        let change = Exchange { number, slot, writes, between, after, lost };
        if let Err(error) = change.write(self.tables()) {
            // What it has left there, if anything, is nobody else's.
            writer.book.skip_numbers_of(&change.between);
            return Err(error);
        }
        writer.book = change.after;
        Ok(Outcome::Changed)
    }

    /// After a grace period.
    fn remove_retired(&self, writer: &mut Writer) -> Result<()> {
        let retired = writer.book.take_retired();
        match self.tables().policy.remove_batch(&retired.keys) {
            Ok(_) => {
                writer.book.forget(&retired);
                Ok(())
            }
            Err(error) => {
                writer.book.put_back(retired);
                Err(error.into())
            }
        }
    }
}

/// An endpoint's policies, about to be others.
struct Exchange<'a> {
    number: u32,
    slot: &'a Slot,
    writes: Writes,
    /// With both.
    between: Book,
    after: Book,
    /// Prefixes that no policy speaks of then.
    lost: Vec<IpNetwork>,
}

impl Exchange<'_> {
    /// Rules and rows first, which nothing leads to yet; then, while no verdict is believed, what addresses
    /// lead to, the slot, and what addresses lead to no longer. All of it or nothing.
    fn write(&self, tables: &Tables) -> Result<()> {
        let Writes { ingress, egress, gained, rows, .. } = &self.writes;
        let written = tables.write_rows(&self.writes).and_then(|()| {
            let concerned: Vec<_> = gained.iter().chain(&self.lost).copied().collect();
            let mut marks = tables.marks_of(&concerned)?;
            marks.slots.push(self.number);
            marks.slots.sort_unstable();
            marks.slots.dedup();
            tables.change(&marks, |_| {
                let first = Relabel::plan(tables, &self.between, gained)?;
                first.write(tables)?;
                let then = tables
                    .refer(self.number, *ingress, *egress)
                    .and_then(|()| Relabel::plan(tables, &self.after, &self.lost)?.write(tables));
                if then.is_err() {
                    let _ = tables.refer(self.number, self.slot.ingress, self.slot.egress);
                    first.undo(tables);
                }
                then
            })
        });
        if written.is_err() {
            // The first error tells what is wrong; what stays is removed at the next start.
            let keys: Vec<_> = rows.iter().map(|(key, _)| *key).collect();
            let _ = tables.policy.remove_batch(&keys);
        }
        written
    }
}

impl Tables {
    /// Lets the endpoints in these slots send and receive everything; says which could not before. For a node
    /// whose agent does not run: one that does asks its [`Datapath`].
    ///
    /// # Errors
    ///
    /// If a map refuses.
    pub fn flush_policies(&self, slots: &[u32]) -> Result<Vec<u32>> {
        let (mut book, _) = restore(self)?;
        let mut gone = Vec::new();
        for &number in slots {
            let slot = self.slots.get(number)?;
            let last = [slot.ingress, slot.egress];
            if !slot.is_taken() || last == [PolicyRef::default(); 2] {
                continue;
            }
            let mut after = book.clone();
            let lost = after.leave(last);
            let (writes, between) = (Writes::default(), book);
            let change = Exchange { number, slot: &slot, writes, between, after, lost };
            change.write(self)?;
            book = change.after;
            gone.push(number);
        }
        if book.has_retired() {
            grace_period()?;
            self.policy.remove_batch(&book.take_retired().keys)?;
        }
        Ok(gone)
    }

    fn identify(&self, number: u32, identity: u32) -> Result<Outcome> {
        if self.slots.get(number)?.identity == identity {
            return Ok(Outcome::Unchanged);
        }
        self.change_slot(number, |slot| {
            for address in addresses_of(&slot) {
                if let Some(entry) = self.ipcache.get(&address)?.filter(|one| one.slot == number) {
                    self.ipcache.insert(&address, &IpcacheEntry { identity, ..entry })?;
                }
            }
            Ok(Slot { identity, ..slot })
        })?;
        Ok(Outcome::Changed)
    }

    /// The endpoint of a slot has gone: its policies are left, and what only they speak of.
    pub(crate) fn drop_policies(&self, book: &mut Book, slot: &Slot) {
        let lost = book.leave([slot.ingress, slot.egress]);
        if lost.is_empty() {
            return;
        }
        // The endpoint is gone whatever becomes of these. Prefixes that keep a number no policy asks for lose
        // it with the next change of prefixes.
        let _ = self.marks_of(&lost).and_then(|marks| {
            self.change(&marks, |_| Relabel::plan(self, book, &lost)?.write(self))
        });
    }

    /// Whose flows it concerns that policies speak of prefixes, or no longer.
    fn marks_of(&self, prefixes: &[IpNetwork]) -> Result<Marks> {
        let mut marks = Marks::default();
        for &prefix in prefixes {
            if !is_whole(prefix) {
                return Ok(Marks { all: true, ..Marks::default() });
            }
            let address = prefix.ip().into();
            marks.remotes.push(address);
            let entry = self.ipcache.get(&address)?;
            let slot = entry.map(|entry| entry.slot).filter(|slot| *slot != IpcacheEntry::NO_SLOT);
            marks.slots.extend(slot);
        }
        Ok(marks)
    }

    fn write_rows(&self, writes: &Writes) -> Result<()> {
        if !writes.rules.is_empty() {
            self.policy_rules.set_batch(&writes.rules)?;
        }
        Ok(self.policy.insert_batch(&writes.rows)?)
    }
}

pub(crate) fn check_identity(identity: u32) -> Result<()> {
    match identity {
        1..=MAX_IDENTITY => Ok(()),
        _ => Err(Error::NoIdentity { identity }),
    }
}
