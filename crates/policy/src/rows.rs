//! Rules as they are looked up.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    ops::RangeInclusive,
    sync::Arc,
};

use ipnetwork::IpNetwork;
use podwire_abi::{PortRule, Protocol as Number};

use crate::{Action, Direction, Error, Packet, Peer, Policy, Rule};

/// What holds for one peer: in order, and no two overlap or could be one.
pub type RuleList = Arc<[PortRule]>;

/// Both directions of a policy, compiled.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Compiled {
    /// What the endpoint may receive.
    pub ingress: Rows,
    /// What it may send.
    pub egress: Rows,
}

/// A direction of a policy, compiled.
///
/// A packet is judged by the row of its identity, or, where there is none, by [`others`](Self::others);
/// and by the row of the narrowest prefix that it is in, of those that have one. A denial by either
/// counts, then a permission by either, then the default.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Rows {
    /// What becomes of packets that no row speaks of.
    pub default: Action,
    /// For identities that have no row.
    pub others: RuleList,
    /// For identities: their own rules and everybody's.
    pub identities: BTreeMap<u32, RuleList>,
    /// For prefixes: their own rules and those of wider prefixes, but not everybody's.
    pub cidrs: BTreeMap<IpNetwork, RuleList>,
}

impl Compiled {
    /// Whether everything passes.
    #[must_use]
    pub fn permits_all(&self) -> bool {
        self.ingress.permits_all() && self.egress.permits_all()
    }

    /// Nothing passes.
    #[must_use]
    pub fn closed() -> Self {
        let rows = Rows { default: Action::Deny, ..Rows::default() };
        Self { ingress: rows.clone(), egress: rows }
    }

    /// From rules.
    ///
    /// # Errors
    ///
    /// If a rule cannot be meant so, or there are too many for one peer.
    pub fn of(policy: &Policy) -> Result<Self, Error> {
        policy.validate()?;
        Ok(Self {
            ingress: Rows::compile(&policy.ingress)?,
            egress: Rows::compile(&policy.egress)?,
        })
    }
}

impl Rows {
    /// From rules that have been [validated](Policy::validate). Rows that say nothing which the one in
    /// their place does not are left out: equal rows are equal policies.
    ///
    /// # Errors
    ///
    /// If there are more ranges of ports for one peer than a row can have.
    pub fn compile(direction: &Direction) -> Result<Self, Error> {
        let mut everybody = Ranges::default();
        let mut identities: BTreeMap<u32, Ranges> = BTreeMap::new();
        let mut cidrs: BTreeMap<IpNetwork, Ranges> = BTreeMap::new();
        for rule in &direction.rules {
            match rule.peer {
                Peer::Everybody => everybody.add(rule),
                Peer::Identity(identity) => identities.entry(identity).or_default().add(rule),
                Peer::Cidr(cidr) => cidrs.entry(cidr).or_default().add(rule),
            }
        }
        let everybody = everybody.merged();
        let others = listed(&everybody, &Peer::Everybody)?;
        let mut rows = Self { default: direction.default, others, ..Self::default() };
        for (identity, own) in identities {
            let all = own.with(&everybody).merged();
            rows.identities.insert(identity, listed(&all, &Peer::Identity(identity))?);
        }
        // Wider ones first: what holds in them is part of what holds in narrower ones.
        let mut by_width: Vec<_> = cidrs.into_iter().collect();
        by_width.sort_by_key(|(cidr, _)| cidr.prefix());
        let mut known: BTreeMap<IpNetwork, Ranges> = BTreeMap::new();
        let mut lengths = Lengths::default();
        for (cidr, own) in by_width {
            let wider = lengths.narrowest(cidr.network(), |one| known.contains_key(one));
            let all = match wider.and_then(|wider| known.get(&wider)) {
                Some(wider) => own.with(wider).merged(),
                None => own.merged(),
            };
            rows.cidrs.insert(cidr, listed(&all, &Peer::Cidr(cidr))?);
            lengths.add(&cidr);
            known.insert(cidr, all);
        }
        rows.reduce();
        Ok(rows)
    }

    /// Leaves out rows that say nothing which the one in their place does not.
    pub fn reduce(&mut self) {
        self.identities.retain(|_, row| *row != self.others);
        let mut by_width: Vec<_> = std::mem::take(&mut self.cidrs).into_iter().collect();
        by_width.sort_by_key(|(cidr, _)| cidr.prefix());
        let mut lengths = Lengths::default();
        for (cidr, row) in by_width {
            let wider = lengths.narrowest(cidr.network(), |one| self.cidrs.contains_key(one));
            let says_more = match wider.and_then(|wider| self.cidrs.get(&wider)) {
                Some(wider) => *wider != row,
                None => !row.is_empty(),
            };
            if says_more {
                lengths.add(&cidr);
                self.cidrs.insert(cidr, row);
            }
        }
    }

    /// Whether everything passes.
    #[must_use]
    pub fn permits_all(&self) -> bool {
        *self == Self::default()
    }

    /// The row for the narrowest prefix that covers this one.
    #[must_use]
    pub fn of_cidr(&self, cidr: &IpNetwork) -> Option<&RuleList> {
        self.cidrs.get(cidr).or_else(|| self.of_wider(cidr))
    }

    /// The row for the narrowest prefix that is wider than this one and covers it.
    pub(crate) fn of_wider(&self, cidr: &IpNetwork) -> Option<&RuleList> {
        let covering = (0..cidr.prefix()).rev().filter_map(|length| shorter(cidr, length));
        covering.filter_map(|wider| self.cidrs.get(&wider)).next()
    }

    /// What becomes of a packet, as the kernel programs find out.
    #[must_use]
    pub fn verdict(&self, packet: &Packet) -> Action {
        let place = PortRule::place(Number(packet.protocol), packet.port);
        let by_identity = self.identities.get(&packet.identity).unwrap_or(&self.others);
        let by_cidr = self.of_cidr(&packet.peer.into());
        let said = [Some(by_identity), by_cidr].map(|row| row.and_then(|row| find(row, place)));
        if said.contains(&Some(Action::Deny)) {
            Action::Deny
        } else if said.contains(&Some(Action::Allow)) {
            Action::Allow
        } else {
            self.default
        }
    }
}

fn find(row: &[PortRule], place: u32) -> Option<Action> {
    let rule = row[..row.partition_point(|rule| rule.first <= place)].last()?;
    let action = if rule.denies() { Action::Deny } else { Action::Allow };
    (place <= rule.last_place()).then_some(action)
}

fn shorter(cidr: &IpNetwork, length: u8) -> Option<IpNetwork> {
    let longer = IpNetwork::new(cidr.ip(), length).ok()?;
    IpNetwork::new(longer.network(), length).ok()
}

/// The lengths that prefixes have, so that only these are tried.
#[derive(Debug, Default)]
struct Lengths([BTreeSet<u8>; 2]);

impl Lengths {
    fn add(&mut self, cidr: &IpNetwork) {
        self.0[usize::from(cidr.is_ipv6())].insert(cidr.prefix());
    }

    /// The narrowest that covers an address and is there.
    fn narrowest(&self, address: IpAddr, is: impl Fn(&IpNetwork) -> bool) -> Option<IpNetwork> {
        let whole = IpNetwork::from(address);
        let lengths = self.0[usize::from(address.is_ipv6())].iter().rev();
        lengths.filter_map(|&length| shorter(&whole, length)).find(is)
    }
}

/// What is allowed and what is denied.
#[derive(Debug, Clone, Default)]
struct Ranges {
    allowed: Vec<RangeInclusive<u32>>,
    denied: Vec<RangeInclusive<u32>>,
}

impl Ranges {
    fn add(&mut self, rule: &Rule) {
        match rule.action {
            Action::Allow => self.allowed.extend(rule.places()),
            Action::Deny => self.denied.extend(rule.places()),
        }
    }

    fn with(mut self, more: &Self) -> Self {
        self.allowed.extend_from_slice(&more.allowed);
        self.denied.extend_from_slice(&more.denied);
        self
    }

    /// In order, without overlaps; what is denied is not allowed.
    fn merged(self) -> Self {
        let denied = joined(self.denied);
        Self { allowed: without(&joined(self.allowed), &denied), denied }
    }
}

fn joined(mut ranges: Vec<RangeInclusive<u32>>) -> Vec<RangeInclusive<u32>> {
    ranges.sort_unstable_by_key(|range| *range.start());
    let mut joined: Vec<RangeInclusive<u32>> = Vec::with_capacity(ranges.len());
    for range in ranges {
        match joined.last_mut() {
            Some(last) if *range.start() <= last.end().saturating_add(1) => {
                *last = *last.start()..=*last.end().max(range.end());
            }
            _ => joined.push(range),
        }
    }
    joined
}

/// What of `ranges` is in none of `holes`; both in order and without overlaps.
fn without(
    ranges: &[RangeInclusive<u32>],
    holes: &[RangeInclusive<u32>],
) -> Vec<RangeInclusive<u32>> {
    let mut left = Vec::with_capacity(ranges.len());
    let mut holes = holes.iter().peekable();
    for range in ranges {
        let (mut start, end) = (*range.start(), *range.end());
        while holes.next_if(|hole| *hole.end() < start).is_some() {}
        while start <= end {
            match holes.peek() {
                Some(hole) if *hole.start() <= end => {
                    if *hole.start() > start {
                        left.push(start..=*hole.start() - 1);
                    }
                    start = hole.end() + 1;
                    if *hole.end() > end {
                        break;
                    }
                    holes.next();
                }
                _ => {
                    left.push(start..=end);
                    break;
                }
            }
        }
    }
    left
}

fn listed(ranges: &Ranges, peer: &Peer) -> Result<RuleList, Error> {
    let rule = |deny| {
        move |range: &RangeInclusive<u32>| PortRule {
            first: *range.start(),
            last: *range.end() | deny,
        }
    };
    let allowed = ranges.allowed.iter().map(rule(0));
    let mut rules: Vec<PortRule> =
        allowed.chain(ranges.denied.iter().map(rule(PortRule::DENY))).collect();
    rules.sort_unstable_by_key(|rule| rule.first);
    if rules.len() > PortRule::MOST as usize {
        let (peer, count, most) = (peer.to_string(), rules.len(), PortRule::MOST);
        return Err(Error::TooManyRanges { peer, count, most });
    }
    Ok(rules.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ranges(list: &[(u32, u32)]) -> Vec<RangeInclusive<u32>> {
        list.iter().map(|&(first, last)| first..=last).collect()
    }

    #[test]
    fn ranges_are_joined_and_cut() {
        let all = ranges(&[(5, 9), (0, 2), (3, 4), (20, 30), (8, 12)]);
        assert_eq!(joined(all), ranges(&[(0, 12), (20, 30)]));
        let holes = ranges(&[(2, 3), (5, 5), (12, 25), (30, 40)]);
        assert_eq!(
            without(&ranges(&[(0, 12), (20, 30)]), &holes),
            ranges(&[(0, 1), (4, 4), (6, 11), (26, 29)])
        );
        assert_eq!(without(&ranges(&[(3, 4)]), &ranges(&[(0, 9)])), []);
    }

    #[test]
    fn too_many_ranges_are_refused() {
        let rule = |port| Rule {
            action: Action::Allow,
            peer: Peer::Identity(7),
            protocol: crate::Protocol::Tcp,
            ports: crate::Ports { first: port, last: port },
        };
        let most = u16::try_from(PortRule::MOST).unwrap();
        let rules = |count| Direction {
            default: Action::Deny,
            rules: (0..count).map(|n| rule(2 * n)).collect(),
        };
        assert_eq!(Rows::compile(&rules(most)).unwrap().identities[&7].len(), usize::from(most));
        let error = Rows::compile(&rules(most + 1)).unwrap_err();
        assert_eq!(
            error.to_string(),
            "the rules for identity:7 make 4097 ranges of ports, and there can be 4096"
        );
    }

    #[test]
    fn rows_that_say_nothing_new_are_left_out() {
        let policy: Direction = serde_json::from_str(
            r#"{"default": "deny", "rules": [
                {"action": "allow", "protocol": "tcp", "ports": 80},
                {"action": "allow", "peer": "identity:7", "protocol": "tcp", "ports": 80},
                {"action": "allow", "peer": "10.0.0.0/8", "protocol": "udp"},
                {"action": "allow", "peer": "10.1.0.0/16", "protocol": "udp", "ports": 53},
                {"action": "deny", "peer": "10.1.2.0/24"}]}"#,
        )
        .unwrap();
        let rows = Rows::compile(&policy).unwrap();
        assert!(rows.identities.is_empty());
        let cidrs: Vec<String> = rows.cidrs.keys().map(ToString::to_string).collect();
        assert_eq!(cidrs, ["10.0.0.0/8", "10.1.2.0/24"]);
    }
}
