//! Which policies there are, and what of them is in the maps. Nothing here touches a map: changes are
//! worked out on a copy, which takes the place of the book when they are written.

use std::{
    collections::{BTreeMap, HashMap, HashSet, btree_map::Entry},
    sync::Arc,
};

use ipnetwork::IpNetwork;
use podwire_abi::{PolicyKey, PolicyRef, PolicyRow, PortRule, map, policy_flag};
use podwire_policy::{Action, Rows, RuleList};

use super::{arena::Arena, index::Index};

/// The node's policies.
///
/// Endpoints with equal rules have one policy. An address leads to the narrowest prefix that *any* policy
/// speaks of; so a policy that speaks of a wider prefix has a row for each narrower one of the others, with
/// the wider one's rules.
#[derive(Debug, Clone)]
pub(crate) struct Book {
    size: Sizes,
    arena: Arena,
    policies: BTreeMap<u32, Arc<Held>>,
    by_rows: HashMap<Arc<Rows>, u32>,
    pub(super) cidrs: Index<Cidr>,
    next_policy: u32,
    next_cidr: u32,
    /// Rows in the map, retired ones included.
    rows: usize,
    retired: Retired,
}

/// What there is room for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Sizes {
    pub(super) rows: u32,
    pub(super) rules: u32,
}

/// A policy in use.
#[derive(Debug, Clone)]
struct Held {
    rows: Arc<Rows>,
    users: u32,
    /// What is in the map, by subject.
    written: BTreeMap<u32, PolicyRow>,
}

/// A prefix that policies speak of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Cidr {
    pub(super) number: u32,
    /// How many policies.
    policies: u32,
}

/// What no packet is judged by any more, but for those that are being judged now.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Retired {
    pub(super) keys: Vec<PolicyKey>,
    places: Vec<PolicyRow>,
}

impl Retired {
    pub(super) fn is_empty(&self) -> bool {
        self.keys.is_empty() && self.places.is_empty()
    }
}

/// A map that is too small for what should be in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Full {
    pub(super) map: &'static str,
    pub(super) size: u32,
}

/// What must be written before an endpoint has its policies, in this order: rules, rows, what addresses
/// lead to, references.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Writes {
    pub(super) rules: Vec<(u32, PortRule)>,
    pub(super) rows: Vec<(PolicyKey, PolicyRow)>,
    pub(super) ingress: PolicyRef,
    pub(super) egress: PolicyRef,
    /// Prefixes that no policy spoke of before.
    pub(super) gained: Vec<IpNetwork>,
}

impl Book {
    pub(super) fn new(size: Sizes) -> Self {
        Self {
            size,
            arena: Arena::new(size.rules),
            policies: BTreeMap::new(),
            by_rows: HashMap::new(),
            cidrs: Index::default(),
            next_policy: 1,
            next_cidr: 1,
            rows: 0,
            retired: Retired::default(),
        }
    }

    #[cfg(test)]
    pub(crate) fn of(rows: &Rows) -> Self {
        let mut book = Self::new(Sizes { rows: 1 << 16, rules: 1 << 16 });
        book.take_up(rows, &Rows::default()).expect("room for a test's rows");
        book
    }

    /// Number of the narrowest prefix that a policy speaks of and that covers this one, or 0.
    pub(crate) fn cidr_of(&self, prefix: IpNetwork) -> u32 {
        self.cidrs.covering(prefix).map_or(0, |(_, cidr)| cidr.number)
    }

    /// Number of exactly this prefix, if a policy speaks of it.
    pub(crate) fn number_of(&self, prefix: &IpNetwork) -> Option<u32> {
        self.cidrs.get(prefix).map(|cidr| cidr.number)
    }

    /// The prefixes that policies speak of.
    pub(crate) fn prefixes(&self) -> impl Iterator<Item = &IpNetwork> {
        self.cidrs.iter().map(|(prefix, _)| prefix)
    }

    /// Whether this is what endpoints with the policy of that number refer to it by.
    pub(super) fn refers(&self, policy: &PolicyRef) -> bool {
        let number = policy.policy();
        self.policies.get(&number).is_some_and(|held| reference(number, held) == *policy)
    }

    /// Gives out no number that another book, which came of this one, has given out.
    pub(super) fn skip_numbers_of(&mut self, other: &Self) {
        (self.next_policy, self.next_cidr) = (other.next_policy, other.next_cidr);
    }

    pub(super) fn rows_of(&self, policy: &PolicyRef) -> Option<&Rows> {
        self.policies.get(&policy.policy()).map(|held| &*held.rows)
    }

    /// Has policies with these rows, and one user more of each.
    pub(super) fn take_up(&mut self, ingress: &Rows, egress: &Rows) -> Result<Writes, Full> {
        let mut writes = Writes::default();
        writes.ingress = self.acquire(ingress, &mut writes)?;
        writes.egress = self.acquire(egress, &mut writes)?;
        Ok(writes)
    }

    /// Has one user less of each; tells which prefixes no policy speaks of any more.
    pub(super) fn leave(&mut self, policies: [PolicyRef; 2]) -> Vec<IpNetwork> {
        policies.iter().flat_map(|policy| self.release(policy)).collect()
    }

    /// Has a policy with these rows, and one user more.
    fn acquire(&mut self, rows: &Rows, writes: &mut Writes) -> Result<PolicyRef, Full> {
        if rows.permits_all() {
            return Ok(PolicyRef::default());
        }
        if let Some(&number) = self.by_rows.get(rows)
            && let Some(held) = self.policies.get_mut(&number)
        {
            let held = Arc::make_mut(held);
            held.users += 1;
            return Ok(reference(number, held));
        }
        for &cidr in rows.cidrs.keys() {
            match self.cidrs.get_mut(&cidr) {
                Some(known) => known.policies += 1,
                None => {
                    let number = self.take_cidr_number();
                    self.gain(cidr, number, writes)?;
                }
            }
        }
        let number = self.take_policy_number();
        let mut held = Held { rows: Arc::new(rows.clone()), users: 1, written: BTreeMap::new() };
        for (subject, list) in self.expected(rows) {
            let row = self.place(&list, writes)?;
            let key = PolicyKey { policy: number, subject };
            held.written.insert(subject, row);
            writes.rows.push((key, row));
        }
        self.count(held.written.len())?;
        let reference = reference(number, &held);
        self.by_rows.insert(held.rows.clone(), number);
        self.policies.insert(number, Arc::new(held));
        Ok(reference)
    }

    /// A prefix is new: policies that speak of a wider one get a row for it.
    fn gain(&mut self, cidr: IpNetwork, number: u32, writes: &mut Writes) -> Result<(), Full> {
        self.cidrs.insert(cidr, Cidr { number, policies: 1 });
        writes.gained.push(cidr);
        let subject = number | PolicyKey::CIDR;
        let mut policies = std::mem::take(&mut self.policies);
        let mut add = || {
            for (&policy, held) in &mut policies {
                if let Some(list) = held.rows.of_cidr(&cidr) {
                    let list = list.clone();
                    let row = self.place(&list, writes)?;
                    Arc::make_mut(held).written.insert(subject, row);
                    writes.rows.push((PolicyKey { policy, subject }, row));
                    self.count(1)?;
                }
            }
            Ok(())
        };
        let added = add();
        self.policies = policies;
        added
    }

    fn release(&mut self, policy: &PolicyRef) -> Vec<IpNetwork> {
        let Some(held) = self.policies.get_mut(&policy.policy()).filter(|_| policy.flags() != 0)
        else {
            return Vec::new();
        };
        let users = &mut Arc::make_mut(held).users;
        *users -= 1;
        if *users != 0 {
            return Vec::new();
        }
        let Some(held) = self.policies.remove(&policy.policy()) else { return Vec::new() };
        if self.by_rows.get(&held.rows) == Some(&policy.policy()) {
            self.by_rows.remove(&held.rows);
        }
        for (&subject, &row) in &held.written {
            self.retired.keys.push(PolicyKey { policy: policy.policy(), subject });
            self.retired.places.push(row);
        }
        let mut lost = Vec::new();
        for cidr in held.rows.cidrs.keys() {
            let Some(known) = self.cidrs.get_mut(cidr) else { continue };
            known.policies -= 1;
            if known.policies == 0 {
                let subject = known.number | PolicyKey::CIDR;
                self.cidrs.remove(cidr);
                lost.push(*cidr);
                self.retire_rows(subject);
            }
        }
        lost
    }

    /// Rows that policies have for a prefix only since others spoke of it.
    fn retire_rows(&mut self, subject: u32) {
        for (&policy, held) in &mut self.policies {
            if held.written.contains_key(&subject)
                && let Some(row) = Arc::make_mut(held).written.remove(&subject)
            {
                self.retired.keys.push(PolicyKey { policy, subject });
                self.retired.places.push(row);
            }
        }
    }

    pub(super) fn take_retired(&mut self) -> Retired {
        std::mem::take(&mut self.retired)
    }

    pub(super) fn has_retired(&self) -> bool {
        !self.retired.is_empty()
    }

    /// They could not be removed; later, then.
    pub(super) fn put_back(&mut self, retired: Retired) {
        self.retired.keys.extend(retired.keys);
        self.retired.places.extend(retired.places);
    }

    /// They are out of the maps, and no program that saw them is running.
    pub(super) fn forget(&mut self, retired: &Retired) {
        self.rows -= retired.keys.len();
        for &row in &retired.places {
            self.arena.give_back(row);
        }
    }

    /// What must be in the map for a policy.
    fn expected(&self, rows: &Rows) -> BTreeMap<u32, RuleList> {
        let identities = rows.identities.iter().map(|(&one, list)| (one, list.clone()));
        let mut expected: BTreeMap<u32, RuleList> = identities.collect();
        if !rows.others.is_empty() {
            expected.insert(PolicyKey::OTHERS, rows.others.clone());
        }
        if rows.cidrs.is_empty() {
            return expected;
        }
        for (cidr, known) in self.cidrs.iter() {
            if let Some(list) = rows.of_cidr(cidr) {
                expected.insert(known.number | PolicyKey::CIDR, list.clone());
            }
        }
        expected
    }

    fn place(&mut self, list: &RuleList, writes: &mut Writes) -> Result<PolicyRow, Full> {
        let full = Full { map: map::POLICY_RULES, size: self.size.rules };
        let place = self.arena.take(list).ok_or(full)?;
        if place.is_new {
            writes.rules.extend((place.row.first..).zip(list.iter().copied()));
        }
        Ok(place.row)
    }

    fn count(&mut self, more: usize) -> Result<(), Full> {
        self.rows += more;
        if self.rows > self.size.rows as usize {
            return Err(Full { map: map::POLICY, size: self.size.rows });
        }
        Ok(())
    }

    fn take_policy_number(&mut self) -> u32 {
        let taken = self.retired.keys.iter().map(|key| key.policy).collect::<HashSet<_>>();
        loop {
            let number = self.next_policy;
            self.next_policy = if number + 1 < PolicyRef::POLICIES { number + 1 } else { 1 };
            if !self.policies.contains_key(&number) && !taken.contains(&number) {
                return number;
            }
        }
    }

    fn take_cidr_number(&mut self) -> u32 {
        let number = self.next_cidr;
        self.next_cidr = if number + 1 < PolicyKey::CIDR { number + 1 } else { 1 };
        // Two thousand million later there may be one from before.
        if self.cidrs.iter().any(|(_, cidr)| cidr.number == number) {
            return self.take_cidr_number();
        }
        number
    }
}

/// What the maps hold, as a later agent finds it.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// Both directions of every endpoint that has a policy.
    pub(super) references: Vec<PolicyRef>,
    pub(super) rows: Vec<(PolicyKey, PolicyRow)>,
    pub(super) rules: Vec<PortRule>,
    /// What prefixes' numbers stand for.
    pub(super) cidrs: HashMap<u32, IpNetwork>,
}

/// How the maps differ from the book that was made of them.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Mend {
    pub(super) writes: Writes,
    pub(super) surplus: Vec<PolicyKey>,
}

impl Book {
    /// From the maps.
    pub(super) fn restored(size: Sizes, found: &Found) -> Result<(Self, Mend), Full> {
        let mut book = Self::new(size);
        book.next_cidr = match found.cidrs.keys().max() {
            Some(most) if most + 1 < PolicyKey::CIDR => most + 1,
            _ => 1,
        };
        let mut by_policy: HashMap<u32, BTreeMap<u32, PolicyRow>> = HashMap::new();
        for (key, row) in &found.rows {
            by_policy.entry(key.policy).or_default().insert(key.subject, *row);
        }
        for reference in found.references.iter().filter(|reference| reference.flags() != 0) {
            if let Some(held) = book.policies.get_mut(&reference.policy()) {
                Arc::make_mut(held).users += 1;
                continue;
            }
            let written = by_policy.get(&reference.policy()).cloned().unwrap_or_default();
            book.adopt(reference, written, found);
        }
        book.next_policy = match book.policies.keys().max() {
            Some(most) if most + 1 < PolicyRef::POLICIES => most + 1,
            _ => 1,
        };
        // Only now is known which prefixes there are.
        let mut mend = Mend::default();
        let mut policies = std::mem::take(&mut book.policies);
        for (&number, held) in &mut policies {
            let held = Arc::make_mut(held);
            let expected = book.expected(&held.rows);
            for (&subject, list) in &expected {
                if let Entry::Vacant(missing) = held.written.entry(subject) {
                    let row = *missing.insert(book.place(list, &mut mend.writes)?);
                    mend.writes.rows.push((PolicyKey { policy: number, subject }, row));
                }
            }
            let surplus: Vec<u32> =
                held.written.keys().filter(|one| !expected.contains_key(one)).copied().collect();
            for subject in surplus {
                if let Some(row) = held.written.remove(&subject) {
                    book.arena.give_back(row);
                }
            }
            book.rows += held.written.len();
        }
        book.policies = policies;
        let is_held = |key: &PolicyKey| {
            book.policies
                .get(&key.policy)
                .is_some_and(|held| held.written.contains_key(&key.subject))
        };
        mend.surplus = found.rows.iter().map(|(key, _)| *key).filter(|key| !is_held(key)).collect();
        Ok((book, mend))
    }

    fn adopt(&mut self, reference: &PolicyRef, written: BTreeMap<u32, PolicyRow>, found: &Found) {
        let list = |row: PolicyRow| -> Option<RuleList> {
            let (first, count) = (row.first as usize, row.count as usize);
            Some(found.rules.get(first..first.checked_add(count)?)?.into())
        };
        let mut rows = Rows {
            default: if reference.flags() & policy_flag::DENY_BY_DEFAULT != 0 {
                Action::Deny
            } else {
                Action::Allow
            },
            ..Rows::default()
        };
        let mut kept = BTreeMap::new();
        for (subject, row) in written {
            let Some(list) = list(row) else { continue };
            let cidr = found.cidrs.get(&(subject & !PolicyKey::CIDR));
            let is_cidr = subject & PolicyKey::CIDR != 0 && subject != PolicyKey::OTHERS;
            if is_cidr && cidr.is_none() || !self.arena.adopt(row, &list) {
                continue;
            }
            match cidr.filter(|_| is_cidr) {
                _ if subject == PolicyKey::OTHERS => rows.others = list,
                Some(&cidr) => drop(rows.cidrs.insert(cidr, list)),
                None => drop(rows.identities.insert(subject, list)),
            }
            kept.insert(subject, row);
        }
        // Rows that it has only since others speak of the prefix are none of its own.
        rows.reduce();
        for cidr in rows.cidrs.keys() {
            match self.cidrs.get_mut(cidr) {
                Some(known) => known.policies += 1,
                None => {
                    let number = found.cidrs.iter().find(|(_, one)| *one == cidr).map(|(n, _)| *n);
                    let Some(number) = number else { continue };
                    self.cidrs.insert(*cidr, Cidr { number, policies: 1 });
                }
            }
        }
        let rows = Arc::new(rows);
        self.by_rows.insert(rows.clone(), reference.policy());
        let held = Held { rows, users: 1, written: kept };
        self.policies.insert(reference.policy(), Arc::new(held));
    }
}

fn reference(policy: u32, held: &Held) -> PolicyRef {
    let flag = |is: bool, flag: u32| if is { flag } else { 0 };
    let flags = flag(held.rows.default == Action::Deny, policy_flag::DENY_BY_DEFAULT)
        | flag(!held.rows.identities.is_empty(), policy_flag::IDENTITIES)
        | flag(!held.rows.cidrs.is_empty(), policy_flag::CIDRS)
        | flag(!held.rows.others.is_empty(), policy_flag::OTHERS);
    PolicyRef::new(policy, flags)
}

#[cfg(test)]
#[path = "book_tests.rs"]
mod tests;
