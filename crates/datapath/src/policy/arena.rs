//! Where lists of port rules are in the array of all rules.

use std::collections::{BTreeMap, HashMap};

use podwire_abi::PolicyRow;
use podwire_policy::RuleList;

/// The places of [`POLICY_RULES`](podwire_abi::map::POLICY_RULES). Equal lists share one.
#[derive(Debug, Clone)]
pub(super) struct Arena {
    /// Free runs, first place to length; no two touch.
    free: BTreeMap<u32, u32>,
    /// By their first place.
    lists: HashMap<u32, Held>,
    places: HashMap<RuleList, u32>,
}

#[derive(Debug, Clone)]
struct Held {
    list: RuleList,
    users: u32,
}

/// What a list got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) row: PolicyRow,
    /// Whether it is to be written.
    pub(super) is_new: bool,
}

impl Arena {
    pub(super) fn new(size: u32) -> Self {
        let free = (size != 0).then_some((0, size)).into_iter().collect();
        Self { free, lists: HashMap::new(), places: HashMap::new() }
    }

    /// A place for a list, the first that is wide enough; none if there is none.
    pub(super) fn take(&mut self, list: &RuleList) -> Option<Place> {
        let count = u32::try_from(list.len()).ok()?;
        if count == 0 {
            return Some(Place { row: PolicyRow::default(), is_new: false });
        }
        if let Some(&first) = self.places.get(list) {
            self.lists.get_mut(&first)?.users += 1;
            return Some(Place { row: PolicyRow { first, count }, is_new: false });
        }
        let (&first, &length) = self.free.iter().find(|(_, length)| **length >= count)?;
        self.free.remove(&first);
        if length > count {
            self.free.insert(first + count, length - count);
        }
        self.lists.insert(first, Held { list: list.clone(), users: 1 });
        self.places.insert(list.clone(), first);
        Some(Place { row: PolicyRow { first, count }, is_new: true })
    }

    /// Takes the place that a list has already; false if that cannot be.
    pub(super) fn adopt(&mut self, row: PolicyRow, list: &RuleList) -> bool {
        if row.count == 0 {
            return true;
        }
        if let Some(held) = self.lists.get_mut(&row.first) {
            held.users += 1;
            return held.list == *list;
        }
        let around =
            self.free.range(..=row.first).next_back().map(|(&first, &length)| (first, length));
        let end = row.first.saturating_add(row.count);
        let Some((first, length)) = around.filter(|(first, length)| first + length >= end) else {
            return false;
        };
        self.free.remove(&first);
        if first < row.first {
            self.free.insert(first, row.first - first);
        }
        if first + length > end {
            self.free.insert(end, first + length - end);
        }
        self.lists.insert(row.first, Held { list: list.clone(), users: 1 });
        self.places.entry(list.clone()).or_insert(row.first);
        true
    }

    /// One user less. The place is free when there is none.
    pub(super) fn give_back(&mut self, row: PolicyRow) {
        let Some(held) = self.lists.get_mut(&row.first).filter(|_| row.count != 0) else { return };
        held.users -= 1;
        if held.users != 0 {
            return;
        }
        if self.places.get(&held.list) == Some(&row.first) {
            self.places.remove(&held.list);
        }
        self.lists.remove(&row.first);
        let (mut first, mut end) = (row.first, row.first + row.count);
        if let Some((&before, &length)) = self.free.range(..first).next_back()
            && before + length == first
        {
            self.free.remove(&before);
            first = before;
        }
        if let Some(length) = self.free.remove(&end) {
            end += length;
        }
        self.free.insert(first, end - first);
    }

    #[cfg(test)]
    pub(super) fn free(&self) -> u32 {
        self.free.values().sum()
    }
}

#[cfg(test)]
mod tests {
    use podwire_abi::PortRule;
    use proptest::prelude::*;

    use super::*;

    fn list(kind: u32, count: u32) -> RuleList {
        (0..count).map(|n| PortRule { first: kind + n * 2, last: kind + n * 2 }).collect()
    }

    proptest! {
        #[test]
        fn lists_never_overlap_and_all_comes_back(
            steps in prop::collection::vec((any::<bool>(), 0..4_u32, 0..9_u32), 1..80)
        ) {
            let mut arena = Arena::new(64);
            let mut held: Vec<(PolicyRow, RuleList)> = Vec::new();
            for (take, kind, count) in steps {
                if !take && !held.is_empty() {
                    let (row, _) = held.swap_remove(kind as usize % held.len());
                    arena.give_back(row);
                } else {
                    let list = list(kind, count);
                    match arena.take(&list) {
                        Some(place) => held.push((place.row, list)),
                        None => prop_assert!(arena.free() < 64),
                    }
                }
                for (a, one) in &held {
                    for (b, other) in &held {
                        let apart = a.first + a.count <= b.first || b.first + b.count <= a.first;
                        prop_assert!(apart || one == other || a.count == 0 || b.count == 0);
                        prop_assert!(one != other || a == b);
                    }
                }
            }
            // What a later agent takes over is the same.
            let mut later = Arena::new(64);
            for (row, list) in &held {
                prop_assert!(later.adopt(*row, list));
            }
            prop_assert_eq!(&later.free, &arena.free);
            for (row, _) in held {
                arena.give_back(row);
            }
            prop_assert_eq!(arena.free, BTreeMap::from([(0, 64)]));
        }
    }

    #[test]
    fn what_is_full_says_so() {
        let mut arena = Arena::new(8);
        assert!(arena.take(&list(0, 5)).unwrap().is_new);
        assert_eq!(arena.take(&list(100, 4)), None);
        assert!(!arena.take(&list(0, 5)).unwrap().is_new, "an equal list shares the place");
        assert_eq!(arena.take(&list(100, 3)).unwrap().row, PolicyRow { first: 5, count: 3 });
        assert!(!arena.adopt(PolicyRow { first: 4, count: 2 }, &list(7, 2)));
    }
}
