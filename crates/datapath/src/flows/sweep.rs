//! What is over is taken out of the tables.

use std::time::{Duration, Instant};

use podwire_abi::{Address, Flow, FlowKey, Slot, Verdict, direction, verdict_flag};

use super::state::{FlowState, Timeout, Timeouts};
use crate::{error::Result, tables::Tables};

/// What a sweep found and did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sweep {
    /// Directions of confirmed flows that are left.
    pub flows: u32,
    /// Flows that are left which only one side has spoken in, or which have ended.
    pub pending: u32,
    /// Conversations that were over, in the order of [`Timeout::ALL`].
    pub expired: [u64; Timeout::COUNT],
    /// Entries of endpoints that are no more.
    pub orphaned: u64,
    /// How long it took.
    pub took: Duration,
}

impl Sweep {
    /// Conversations that were over.
    #[must_use]
    pub fn expired_in_all(&self) -> u64 {
        self.expired.iter().sum()
    }
}

impl Tables {
    /// Removes every conversation that has been idle, in both directions, for longer than it may, and
    /// what endpoints that are no more have left.
    ///
    /// It reads the tables where they lie. A packet that comes in the moment in which its flow is removed is in no
    /// danger: it is judged anew, as the next one is.
    ///
    /// # Errors
    ///
    /// If a map cannot be read or changed.
    pub fn sweep(&self, timeouts: &Timeouts) -> Result<Sweep> {
        let started = Instant::now();
        let holders = Holders::read(self)?;
        // Before the entries: what is seen later is younger than that.
        let now = self.state.get(0)?.seconds;
        let mut sweep = Sweep {
            flows: 0,
            pending: 0,
            expired: [0; Timeout::COUNT],
            orphaned: 0,
            took: Duration::ZERO,
        };
        self.sweep_flows(&holders, timeouts, now, &mut sweep);
        self.sweep_pending(&holders, timeouts, now, &mut sweep);
        sweep.took = started.elapsed();
        Ok(sweep)
    }

    fn sweep_flows(&self, holders: &Holders, timeouts: &Timeouts, now: u32, sweep: &mut Sweep) {
        let over = |key: &FlowKey, flow: &Flow| {
            let timeout = Timeout::of(key.protocol, FlowState::of_confirmed(key.protocol, flow));
            timeouts.is_over(timeout, flow.seen, now).then_some(timeout)
        };
        'flows: for (key, flow) in self.flows.iter() {
            sweep.flows += 1;
            if holders.is_orphan(&key, flow.verdict) {
                sweep.orphaned += 1;
                self.flows.remove_judged(&key, flow.verdict);
                continue;
            }
            let Some(timeout) = over(&key, &flow) else { continue };
            let mut others = Vec::with_capacity(3);
            for other in holders.other_directions(&key, flow.verdict) {
                match self.flows.get(&other) {
                    Some(flow) if over(&other, &flow).is_none() => continue 'flows,
                    Some(flow) => others.push((other, flow.verdict)),
                    None => {}
                }
            }
            others.push((key, flow.verdict));
            for (key, verdict) in others {
                self.flows.remove_judged(&key, verdict);
            }
            sweep.expired[timeout as usize] += 1;
        }
        if sweep.orphaned + sweep.expired_in_all() > 0 {
            // Of a conversation that is over, one direction may have been counted before the other took it along.
            sweep.flows = self.flows.len();
        }
    }

    fn sweep_pending(&self, holders: &Holders, timeouts: &Timeouts, now: u32, sweep: &mut Sweep) {
        self.pending.retain(|key, pending| {
            let timeout = Timeout::of(key.protocol, FlowState::of_pending(key.protocol, pending));
            if holders.is_orphan(key, pending.verdict) {
                sweep.orphaned += 1;
            } else if timeouts.is_over(timeout, pending.seen, now) {
                sweep.expired[timeout as usize] += 1;
            } else {
                sweep.pending += 1;
                return true;
            }
            false
        });
    }
}

/// Who has the slots.
#[derive(Debug)]
pub(super) struct Holders {
    /// As it was before the slots were read.
    ticket: u64,
    slots: Vec<Slot>,
}

impl Holders {
    pub(super) fn read(tables: &Tables) -> Result<Self> {
        let ticket = tables.state.get(0)?.ticket;
        Ok(Self { ticket, slots: tables.slots.values()? })
    }

    /// Whether a flow is that of an endpoint, or with an endpoint, which has gone: programs believe none
    /// of it when the slot has a new holder, and have no use for it before. What an endpoint began that
    /// came after the slots were read has a later stamp.
    pub(super) fn is_orphan(&self, key: &FlowKey, verdict: Verdict) -> bool {
        self.has_gone(key.endpoint.into(), verdict)
            || verdict.has(verdict_flag::LOCAL_PEER) && self.has_gone(verdict.peer_slot(), verdict)
    }

    fn has_gone(&self, number: u32, verdict: Verdict) -> bool {
        match self.slot(number) {
            Some(slot) => verdict.stamp() < slot.born,
            None => verdict.stamp() <= self.ticket,
        }
    }

    /// The slot, if somebody has it.
    fn slot(&self, number: u32) -> Option<&Slot> {
        self.slots.get(number as usize).filter(|slot| slot.is_taken())
    }

    /// The endpoint's own address of the flow's family.
    pub(super) fn address(&self, key: &FlowKey) -> Option<Address> {
        self.slot(key.endpoint.into()).map(|slot| match key.peer.is_ipv4() {
            true => Address::from_ipv4_raw(slot.ipv4),
            false => slot.ipv6,
        })
    }

    /// Where the other direction of a confirmed flow may be, the likeliest place first: packets between
    /// two endpoints may have been handed over straight once and go by the host stack now.
    pub(super) fn other_directions(
        &self,
        key: &FlowKey,
        verdict: Verdict,
    ) -> impl Iterator<Item = FlowKey> + use<> {
        let peer = u16::try_from(verdict.peer_slot())
            .ok()
            .filter(|_| key.direction == direction::SENT && verdict.has(verdict_flag::LOCAL_PEER));
        let mirrored =
            peer.and_then(|peer| self.address(key).map(|address| key.mirrored(peer, address)));
        let turned = Some(key.turned());
        let both = match verdict.has(verdict_flag::TO_STACK) {
            true => [turned, mirrored],
            false => [mirrored, turned],
        };
        both.into_iter().flatten()
    }
}
