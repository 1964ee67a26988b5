//! Policies as rows.

use std::collections::BTreeMap;

use ipnetwork::IpNetwork;
use podwire_abi::{PolicyKey, PolicyRef, PolicyRow, PortRule, policy_flag};
use podwire_policy::Action;

use super::restore::numbers;
use crate::{error::Result, tables::Tables};

/// Which packets of an endpoint a policy is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Flow {
    /// What it receives.
    Ingress,
    /// What it sends.
    Egress,
}

/// Whom a row of a policy concerns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Subject {
    /// Identities that have no row.
    Others,
    /// Whoever has this identity.
    Identity(u32),
    /// Whoever has an address of this prefix, and of no narrower one that a policy speaks of.
    Cidr(IpNetwork),
    /// A prefix that no address leads to any more.
    Stale(u32),
}

/// One direction of an endpoint's policy, as it is in the maps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicyListing {
    /// The endpoint's slot.
    pub slot: u32,
    /// Interface index of its host link.
    pub ifindex: u32,
    /// Which direction.
    pub flow: Flow,
    /// The policy's number; endpoints with equal rules share one.
    pub policy: u32,
    /// What becomes of packets that no rule speaks of.
    pub default: Action,
    /// What holds for whom. [`InWords`](podwire_policy::InWords) tells a rule as people read it.
    pub rows: Vec<(Subject, Vec<PortRule>)>,
}

impl Tables {
    /// The policies of all endpoints that have one, in the order of slots.
    ///
    /// # Errors
    ///
    /// If a map cannot be read.
    pub fn policy(&self) -> Result<Vec<PolicyListing>> {
        let slots = self.slots.values()?;
        let mut by_policy: BTreeMap<u32, Vec<(u32, PolicyRow)>> = BTreeMap::new();
        for (key, row) in self.policy.entries()? {
            by_policy.entry(key.policy).or_default().push((key.subject, row));
        }
        let rules = self.policy_rules.values()?;
        let list = |row: PolicyRow| -> Vec<PortRule> {
            let (first, count) = (row.first as usize, row.count as usize);
            rules.get(first..first.saturating_add(count)).unwrap_or_default().to_vec()
        };
        let cidrs = numbers(self)?;
        let mut listings = Vec::new();
        for (number, slot) in (0..).zip(&slots).filter(|(_, slot)| slot.is_taken()) {
            for (flow, policy) in [(Flow::Ingress, slot.ingress), (Flow::Egress, slot.egress)] {
                if policy.flags() == 0 {
                    continue;
                }
                let mut subjects = by_policy.get(&policy.policy()).cloned().unwrap_or_default();
                // What programs do not look for is not in force.
                subjects.retain(|(subject, _)| policy.has(flag_of(*subject)));
                // That of others comes first.
                subjects
                    .sort_unstable_by_key(|(subject, _)| (*subject != PolicyKey::OTHERS, *subject));
                let named = subjects.into_iter().map(|(subject, row)| {
                    let cidr = subject & !PolicyKey::CIDR;
                    let subject = match (subject == cidr, cidrs.get(&cidr)) {
                        (true, _) => Subject::Identity(subject),
                        (false, _) if subject == PolicyKey::OTHERS => Subject::Others,
                        (false, Some(cidr)) => Subject::Cidr(*cidr),
                        (false, None) => Subject::Stale(cidr),
                    };
                    (subject, list(row))
                });
                listings.push(PolicyListing {
                    slot: number,
                    ifindex: slot.ifindex,
                    flow,
                    policy: policy.policy(),
                    default: default(policy),
                    rows: named.collect(),
                });
            }
        }
        Ok(listings)
    }
}

/// The flag of a policy that has rows for such subjects.
const fn flag_of(subject: u32) -> u32 {
    if subject == PolicyKey::OTHERS {
        policy_flag::OTHERS
    } else if subject & PolicyKey::CIDR != 0 {
        policy_flag::CIDRS
    } else {
        policy_flag::IDENTITIES
    }
}

fn default(policy: PolicyRef) -> Action {
    if policy.has(policy_flag::DENY_BY_DEFAULT) { Action::Deny } else { Action::Allow }
}
