//! What policy says about a packet.

use podwire_abi::{PolicyKey, PolicyRef, PolicyRow, PortRule, policy_flag};

use crate::maps::{POLICY, POLICY_RULES};

/// Whether `policy` lets pass what has `identity` and the prefix `cidr` at its other end.
#[inline(always)]
pub fn allows(policy: PolicyRef, identity: u32, cidr: u32, place: u32) -> bool {
    policy.flags() == 0 || asks(policy.word(), identity, cidr, place)
}

/// Kept out of line: the rules are searched in four places otherwise.
#[inline(never)]
fn asks(policy: u32, identity: u32, cidr: u32, place: u32) -> bool {
    let policy = PolicyRef::of_word(policy);
    let mut row = None;
    if policy.has(policy_flag::IDENTITIES) {
        row = row_of(PolicyKey::identity(policy.policy(), identity));
    }
    if row.is_none() && policy.has(policy_flag::OTHERS) {
        row = row_of(PolicyKey::others(policy.policy()));
    }
    let mut said = row.map_or(Said::Nothing, |row| search(row, place));
    if policy.has(policy_flag::CIDRS)
        && cidr != 0
        && let Some(row) = row_of(PolicyKey::cidr(policy.policy(), cidr))
    {
        said = said.or(search(row, place));
    }
    match said {
        Said::Allow => true,
        Said::Deny => false,
        Said::Nothing => !policy.has(policy_flag::DENY_BY_DEFAULT),
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Said {
    Nothing,
    Allow,
    Deny,
}

impl Said {
    #[inline(always)]
    fn or(self, other: Self) -> Self {
        match (self, other) {
            (Self::Deny, _) | (_, Self::Deny) => Self::Deny,
            (Self::Allow, _) | (_, Self::Allow) => Self::Allow,
            _ => Self::Nothing,
        }
    }
}

#[inline(always)]
fn row_of(key: PolicyKey) -> Option<PolicyRow> {
    // SAFETY: two words, which user space replaces whole.
    unsafe { POLICY.get(key) }.copied()
}

#[inline(always)]
fn search(row: PolicyRow, place: u32) -> Said {
    match search_rules(row.first, row.first.wrapping_add(row.count), place) {
        1 => Said::Allow,
        2 => Said::Deny,
        _ => Said::Nothing,
    }
}

/// What the last rule that begins at or before `place` says, if it reaches so far: 1 allows, 2 denies. A
/// global function to the kernel, which verifies it once and by itself, and not with what leads to it.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn search_rules(first: u32, end: u32, place: u32) -> u32 {
    let mut at = first;
    // Most rows are short.
    const SHORT: u32 = 8;
    let mut step = if end.wrapping_sub(first) <= SHORT { SHORT / 2 } else { PortRule::MOST / 2 };
    while step != 0 {
        let next = at.wrapping_add(step);
        if next < end
            && let Some(rule) = POLICY_RULES.get(next)
            && rule.first <= place
        {
            at = next;
        }
        step /= 2;
    }
    match POLICY_RULES.get(at) {
        Some(rule) if at < end && rule.first <= place && place <= rule.last_place() => {
            if rule.denies() { 2 } else { 1 }
        }
        _ => 0,
    }
}
