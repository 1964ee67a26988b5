//! Rows as rules.

use podwire_abi::PortRule;

use crate::{Action, Compiled, Direction, Peer, Policy, Ports, Protocol, Rows, Rule};

const PORTS: u32 = 1 << 16;

impl Compiled {
    /// Both directions [as rules](Rows::to_direction).
    #[must_use]
    pub fn to_policy(&self) -> Policy {
        Policy { ingress: self.ingress.to_direction(), egress: self.egress.to_direction() }
    }
}

impl Rows {
    /// Rules that these rows can be compiled of, though not always in the words they were said in: a row does not
    /// tell whether `icmp` was said, or both of its numbers. Rows that no rules make give rules that make other rows:
    /// whoever does not know where rows come from compiles these and compares.
    #[must_use]
    pub fn to_direction(&self) -> Direction {
        let mut rules = Vec::new();
        say(&mut rules, Peer::Everybody, &self.others, &[]);
        for (&identity, row) in &self.identities {
            say(&mut rules, Peer::Identity(identity), row, &self.others);
        }
        for (cidr, row) in &self.cidrs {
            let wider = self.of_wider(cidr).map_or(&[][..], |wider| &wider[..]);
            say(&mut rules, Peer::Cidr(*cidr), row, wider);
        }
        Direction { default: self.default, rules }
    }
}

/// What a peer's row says that `known`, which is part of it, does not.
fn say(rules: &mut Vec<Rule>, peer: Peer, row: &[PortRule], known: &[PortRule]) {
    // A denial wins: what is left of a permission for everything is said as one rule.
    let permits_rest = speaks_of_all(row) && !row.iter().all(PortRule::denies);
    if permits_rest && !speaks_of_all(known) {
        let (protocol, ports) = (Protocol::Any, Ports::ANY);
        rules.push(Rule { action: Action::Allow, peer, protocol, ports });
    }
    for rule in row.iter().filter(|rule| !known.contains(rule)) {
        if permits_rest && !rule.denies() {
            continue;
        }
        let action = if rule.denies() { Action::Deny } else { Action::Allow };
        let all = parts(rule).into_iter();
        rules.extend(all.map(|(protocol, ports)| Rule { action, peer, protocol, ports }));
    }
}

fn speaks_of_all(row: &[PortRule]) -> bool {
    let ends = row.first().map(|rule| rule.first).zip(row.last().map(PortRule::last_place));
    ends == Some((0, PortRule::PLACES - 1))
        && row.windows(2).all(|pair| pair[0].last_place() + 1 == pair[1].first)
}

/// The protocols that a range is of, with their ports.
fn parts(rule: &PortRule) -> Vec<(Protocol, Ports)> {
    let (first, last) = (rule.first, rule.last_place());
    if (first, last) == (0, PortRule::PLACES - 1) {
        return vec![(Protocol::Any, Ports::ANY)];
    }
    let part = |protocol: u32| {
        let from = if protocol == first / PORTS { first % PORTS } else { 0 };
        let to = if protocol == last / PORTS { last % PORTS } else { PORTS - 1 };
        let short = |port: u32| u16::try_from(port).unwrap_or(u16::MAX);
        let number = u8::try_from(protocol).unwrap_or(u8::MAX);
        (Protocol::of(number), Ports { first: short(from), last: short(to) })
    };
    (first / PORTS..=last / PORTS).map(part).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::RuleList;

    fn said(rules: &str) -> Vec<String> {
        let direction: Direction = serde_json::from_str(rules).unwrap();
        let said = Rows::compile(&direction).unwrap().to_direction();
        assert_eq!(said.default, direction.default);
        said.rules.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn rows_are_said_as_people_would() {
        let rules = r#"{"default": "deny", "rules": [
            {"action": "allow", "protocol": "tcp", "ports": "80-89"},
            {"action": "allow", "peer": "identity:7", "protocol": "udp"},
            {"action": "allow", "peer": "10.0.0.0/8", "protocol": "icmp"},
            {"action": "deny", "peer": "10.1.0.0/16"}]}"#;
        let expected = [
            "allow everybody, protocol tcp, ports 80-89",
            "allow identity:7, protocol udp, ports any",
            "allow 10.0.0.0/8, protocol 1, ports any",
            "allow 10.0.0.0/8, protocol 58, ports any",
            "deny 10.1.0.0/16, protocol any, ports any",
        ];
        assert_eq!(said(rules), expected);
    }

    #[test]
    fn what_a_denial_leaves_of_everything_is_one_rule() {
        let rules = r#"{"default": "deny", "rules": [
            {"action": "allow"}, {"action": "deny", "protocol": "tcp", "ports": 22},
            {"action": "deny", "peer": "identity:7", "protocol": "udp"},
            {"action": "allow", "peer": "10.0.0.0/8"},
            {"action": "deny", "peer": "10.0.0.0/8", "protocol": "tcp", "ports": 23}]}"#;
        let expected = [
            "allow everybody, protocol any, ports any",
            "deny everybody, protocol tcp, ports 22",
            "deny identity:7, protocol udp, ports any",
            "allow 10.0.0.0/8, protocol any, ports any",
            "deny 10.0.0.0/8, protocol tcp, ports 23",
        ];
        assert_eq!(said(rules), expected);
    }

    #[test]
    fn rows_of_no_rules_are_told_apart_by_compiling() {
        // Half a protocol without ports, and an identity that everybody's rules do not concern.
        let half = PortRule { first: 5 << 16, last: (5 << 16) + 7 };
        let http = PortRule { first: 6 << 16, last: (6 << 16) + 80 };
        let strange = [
            Rows { others: [half].into(), ..Rows::default() },
            Rows {
                others: [http].into(),
                identities: BTreeMap::from([(7, RuleList::default())]),
                ..Rows::default()
            },
        ];
        for rows in strange {
            let policy = Policy { ingress: rows.to_direction(), ..Policy::default() };
            assert!(Compiled::of(&policy).ok().is_none_or(|compiled| compiled.ingress != rows));
        }
    }
}
