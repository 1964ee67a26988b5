//! What a policy says of a packet.

use std::collections::BTreeMap;

/// One direction of an endpoint's policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Policy {
    /// Its number.
    pub number: u32,
    /// What no rule speaks of is denied.
    pub denies_by_default: bool,
    /// There are rules for identities.
    pub has_identities: bool,
    /// There are rules for prefixes.
    pub has_cidrs: bool,
    /// There are rules for everybody for whose identity there are none.
    pub has_others: bool,
}

/// Rules, by their places: the first one's, and how many.
pub type Rules = (u32, u32);

/// Whom rules are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Subject {
    Identity(u32),
    Cidr(u32),
    Others,
}

/// What holds for a range of ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Protocol and port of the first and of the last packet that it is about.
    pub first: (u8, u16),
    pub last: (u8, u16),
    pub denies: bool,
}

/// All policies of a node.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Policies {
    /// Which rules a policy has for somebody.
    pub rows: BTreeMap<(u32, Subject), Rules>,
    /// The rules.
    pub rules: Vec<Rule>,
}

impl Policies {
    /// Whether a policy permits a packet of somebody or to somebody.
    pub fn permit(
        &self,
        policy: Policy,
        identity: u32,
        cidr: Option<u32>,
        protocol: u8,
        port: u16,
    ) -> bool {
        let row = |subject| self.rows.get(&(policy.number, subject)).copied();
        let of_identity = policy.has_identities.then(|| row(Subject::Identity(identity))).flatten();
        let of_cidr =
            cidr.filter(|_| policy.has_cidrs).and_then(|number| row(Subject::Cidr(number)));
        let others = || policy.has_others.then(|| row(Subject::Others)).flatten();
        let says: Vec<_> = [of_identity.or_else(others), of_cidr]
            .into_iter()
            .flatten()
            .filter_map(|(first, count)| {
                let rules = &self.rules[first as usize..][..count as usize];
                rules
                    .iter()
                    .find(|rule| rule.first <= (protocol, port) && (protocol, port) <= rule.last)
            })
            .collect();
        if says.iter().any(|rule| rule.denies) {
            return false;
        }
        !says.is_empty() || !policy.denies_by_default
    }
}
