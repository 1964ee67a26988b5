//! Which slots are free, and which generation an endpoint's slot gets.

use std::collections::VecDeque;

use podwire_abi::Slot;

/// The free slots, the one that was given back longest ago first.
#[derive(Debug)]
pub(crate) struct FreeSlots(VecDeque<u32>);

impl FreeSlots {
    /// From the slot array as it is.
    pub(crate) fn of(slots: &[Slot]) -> Self {
        Self((0_u32..).zip(slots).filter(|(_, slot)| !slot.is_taken()).map(|(n, _)| n).collect())
    }

    /// The slot of that number if it is free, or else another.
    pub(crate) fn take(&mut self, preferred: u32) -> Option<u32> {
        match self.0.iter().position(|&number| number == preferred) {
            Some(place) => self.0.remove(place),
            None => self.0.pop_front(),
        }
    }

    pub(crate) fn give_back(&mut self, number: u32) {
        debug_assert!(!self.0.contains(&number), "slot {number} given back twice");
        self.0.push_back(number);
    }
}

/// The generation that marks a slot as taken by a new endpoint.
pub(crate) fn taken_generation(last: u32) -> u32 {
    last.wrapping_add(1) | 1
}

/// The generation that marks a slot as empty.
pub(crate) fn empty_generation(last: u32) -> u32 {
    (last | 1).wrapping_add(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generations_alternate_and_never_repeat_at_once() {
        let mut generation = 0;
        for _ in 0..10 {
            let taken = taken_generation(generation);
            assert!(
                taken != generation && Slot { generation: taken, ..Slot::default() }.is_taken()
            );
            generation = empty_generation(taken);
            assert!(generation != taken && !Slot { generation, ..Slot::default() }.is_taken());
        }
        assert_eq!(taken_generation(7), 9, "a slot that changes hands directly changes, too");
        assert_eq!(empty_generation(8), 10);
    }

    #[test]
    fn the_preferred_slot_comes_first_then_the_one_free_longest() {
        let taken = Slot { generation: 1, ..Slot::default() };
        let mut free = FreeSlots::of(&[Slot::default(), taken, Slot::default(), Slot::default()]);
        assert_eq!(free.take(2), Some(2));
        assert_eq!(free.take(1), Some(0), "slot 1 is taken");
        free.give_back(0);
        assert_eq!(free.take(1), Some(3));
        assert_eq!(free.take(9), Some(0), "there is no slot 9");
        assert_eq!(free.take(0), None);
    }
}
