use std::collections::BTreeMap;

/// A set of integers kept as maximal runs, so that the next integer that is *not* in the set is
/// found in logarithmic time however full the set is, and a full /16 is one entry.
#[derive(Clone, Debug, Default)]
pub(crate) struct RangeSet {
    /// First -> last, inclusive. Runs neither overlap nor touch.
    runs: BTreeMap<u128, u128>,
}

impl RangeSet {
    /// Adds `value` and tells whether it was new.
    pub(crate) fn insert(&mut self, value: u128) -> bool {
        // No run begins behind a value of the set, since it would touch that value's.
        let next = value.checked_add(1).and_then(|next| self.runs.remove(&next));
        let last = next.unwrap_or(value);
        if let Some((_, end)) = self.runs.range_mut(..=value).next_back() {
            if *end >= value {
                return false;
            }
            if *end + 1 == value {
                *end = last;
                return true;
            }
        }
        self.runs.insert(value, last);
        true
    }

    /// Adds every integer of `first..=last`, whatever of it is in the set already.
    pub(crate) fn insert_run(&mut self, mut first: u128, mut last: u128) {
        if let Some((&start, &end)) = self.runs.range(..=first).next_back()
            && end.saturating_add(1) >= first
        {
            first = start;
            last = last.max(end);
        }
        while let Some((&start, &end)) = self.runs.range(first..=last.saturating_add(1)).next() {
            self.runs.remove(&start);
            last = last.max(end);
        }
        self.runs.insert(first, last);
    }

    /// Takes `value` out and tells whether it was there.
    pub(crate) fn remove(&mut self, value: u128) -> bool {
        let Some((&start, end)) = self.runs.range_mut(..=value).next_back() else { return false };
        let last = *end;
        if last < value {
            return false;
        }
        if start == value {
            self.runs.remove(&start);
        } else {
            *end = value - 1;
        }
        if last > value {
            self.runs.insert(value + 1, last);
        }
        true
    }

    /// The smallest integer from `from` on that is not in the set.
    pub(crate) fn next_gap(&self, from: u128) -> Option<u128> {
        match self.runs.range(..=from).next_back() {
            Some((_, &end)) if end >= from => end.checked_add(1),
            _ => Some(from),
        }
    }

    /// How many integers of the set there are, as long as they are fewer than 2^128.
    pub(crate) fn len(&self) -> u128 {
        self.runs.iter().map(|(first, last)| last - first + 1).sum()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn runs_merge_and_split() {
        let mut set = RangeSet::default();
        assert!(set.insert(5));
        assert!(set.insert(7));
        assert!(set.insert(6));
        assert!(!set.insert(6));
        assert_eq!(set.runs, BTreeMap::from([(5, 7)]));
        assert!(set.remove(6));
        assert!(!set.remove(6));
        assert_eq!(set.runs, BTreeMap::from([(5, 5), (7, 7)]));
        assert_eq!(set.next_gap(5), Some(6));
        assert_eq!(set.next_gap(7), Some(8));
        assert_eq!(set.next_gap(0), Some(0));
    }

    #[test]
    fn the_end_of_the_number_line() {
        let mut set = RangeSet::default();
        set.insert_run(u128::MAX - 1, u128::MAX);
        assert_eq!(set.next_gap(u128::MAX - 1), None);
        assert!(set.remove(u128::MAX));
        assert!(set.insert(u128::MAX));
        assert_eq!(set.next_gap(u128::MAX), None);
    }

    #[derive(Clone, Debug)]
    enum Step {
        Insert(u128),
        InsertRun(u128, u128),
        Remove(u128),
    }

    fn step() -> impl Strategy<Value = Step> {
        let value = 0u128..40;
        prop_oneof![
            value.clone().prop_map(Step::Insert),
            (value.clone(), 0u128..6)
                .prop_map(|(first, more)| Step::InsertRun(first, first + more)),
            value.prop_map(Step::Remove),
        ]
    }

    proptest! {
        #[test]
        fn behaves_like_a_set(steps in prop::collection::vec(step(), 0..80)) {
            let mut model = BTreeSet::new();
            let mut set = RangeSet::default();
            for step in steps {
                match step {
                    Step::Insert(value) => prop_assert_eq!(set.insert(value), model.insert(value)),
                    Step::Remove(value) => prop_assert_eq!(set.remove(value), model.remove(&value)),
                    Step::InsertRun(first, last) => {
                        set.insert_run(first, last);
                        model.extend(first..=last);
                    }
                }
                prop_assert_eq!(set.len(), model.len() as u128);
                let flat: Vec<u128> = set.runs.iter().flat_map(|(a, b)| *a..=*b).collect();
                prop_assert_eq!(flat, model.iter().copied().collect::<Vec<_>>());
                let apart = set.runs.iter().zip(set.runs.iter().skip(1)).all(|((_, end), (next, _))| end + 1 < *next);
                prop_assert!(apart, "runs touch: {:?}", set.runs);
                for from in 0..50 {
                    let gap = (from..).find(|value| !model.contains(value));
                    prop_assert_eq!(set.next_gap(from), gap);
                }
            }
        }
    }
}
