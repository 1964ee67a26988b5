//! What the maps say of policies, whoever wrote them.

use std::collections::HashMap;

use podwire_abi::PolicyRef;
use podwire_policy::{Compiled, Rows};

use super::{Flow, PolicyListing, Subject, restore};
use crate::{
    datapath::{Datapath, grace_period},
    error::Result,
};

impl Datapath {
    /// What endpoints may send and receive, of those that have a policy, by their slots. Rows that a policy has only
    /// since others speak of their prefixes are none of its own.
    ///
    /// # Errors
    ///
    /// If a map cannot be read.
    pub fn policies(&self) -> Result<HashMap<u32, Compiled>> {
        // No policy changes meanwhile.
        let _writer = self.lock();
        let mut policies: HashMap<u32, Compiled> = HashMap::new();
        let slots = self.tables().slots.values()?;
        if slots.iter().all(|slot| [slot.ingress, slot.egress] == [PolicyRef::default(); 2]) {
            return Ok(policies);
        }
        for listing in self.tables().policy()? {
            let policy = policies.entry(listing.slot).or_default();
            match listing.flow {
                Flow::Ingress => policy.ingress = rows(listing),
                Flow::Egress => policy.egress = rows(listing),
            }
        }
        Ok(policies)
    }

    /// What the endpoint in a slot may send and receive. It costs little if that is everything.
    ///
    /// # Errors
    ///
    /// If there is no such slot, or a map cannot be read.
    pub fn policy_of(&self, slot: u32) -> Result<Compiled> {
        let found = self.tables().slots.get(slot)?;
        if [found.ingress, found.egress] == [PolicyRef::default(); 2] {
            return Ok(Compiled::default());
        }
        Ok(self.policies()?.remove(&slot).unwrap_or_default())
    }

    /// Takes what is in the maps for what was written there, as opening them does: after this,
    /// [`set_policy`](Self::set_policy) puts right what somebody else has written into policies.
    ///
    /// # Errors
    ///
    /// If there is no waiting for a grace period, or a map refuses.
    pub fn reread_policies(&self) -> Result<()> {
        let mut writer = self.lock();
        // What waits to be removed is surplus to who reads the maps, and goes at once.
        grace_period()?;
        let (book, is_mended) = restore(self.tables())?;
        if is_mended {
            // What they were in is free.
            grace_period()?;
        }
        writer.book = book;
        writer.rereads += 1;
        Ok(())
    }
}

fn rows(listing: PolicyListing) -> Rows {
    let mut rows = Rows { default: listing.default, ..Rows::default() };
    for (subject, rules) in listing.rows {
        match subject {
            Subject::Others => rows.others = rules.into(),
            Subject::Identity(identity) => drop(rows.identities.insert(identity, rules.into())),
            Subject::Cidr(cidr) => drop(rows.cidrs.insert(cidr, rules.into())),
            Subject::Stale(_) => {}
        }
    }
    rows.reduce();
    rows
}
