//! The table of a driver's sockets: slots with generations. Pure; both drivers use it.
//!
//! Invariant: a slot is either occupied or in the free list exactly once, and its generation moves on
//! each time it is vacated, so a token finds its own occupant or nothing.

use super::token::{GENERATION_BITS, Token};

pub(super) struct Slots<T> {
    slots: Vec<Slot<T>>,
    /// Last in, first out: the slot that was just vacated is still in the cache.
    free: Vec<u32>,
}

struct Slot<T> {
    generation: u32,
    value: Option<T>,
}

impl<T> Slots<T> {
    pub(super) fn new() -> Self {
        Self { slots: Vec::new(), free: Vec::new() }
    }

    /// Puts `value` into a free slot. Allocates only when there are more sockets than ever before.
    pub(super) fn insert(&mut self, value: T) -> Token {
        if let Some(slot) = self.free.pop() {
            let entry = &mut self.slots[slot as usize];
            debug_assert!(entry.value.is_none(), "a free slot is empty");
            entry.value = Some(value);
            return Token::new(slot, entry.generation);
        }
        // A process runs out of descriptors long before it runs out of 32-bit slots.
        let slot = self.slots.len() as u32;
        self.slots.push(Slot { generation: 0, value: Some(value) });
        Token::new(slot, 0)
    }

    pub(super) fn get(&self, token: Token) -> Option<&T> {
        let slot = self.slots.get(token.slot())?;
        if slot.generation == token.generation() { slot.value.as_ref() } else { None }
    }

    pub(super) fn get_mut(&mut self, token: Token) -> Option<&mut T> {
        let slot = self.slots.get_mut(token.slot())?;
        if slot.generation == token.generation() { slot.value.as_mut() } else { None }
    }

    /// Takes the value out; the slot's next occupant has another generation.
    pub(super) fn remove(&mut self, token: Token) -> Option<T> {
        let slot = self.slots.get_mut(token.slot())?;
        if slot.generation != token.generation() {
            return None;
        }
        let value = slot.value.take()?;
        slot.generation = (slot.generation + 1) & ((1 << GENERATION_BITS) - 1);
        self.free.push(token.slot() as u32);
        Some(value)
    }

    /// The occupant of a slot, whatever its generation.
    pub(super) fn occupant(&self, slot: usize) -> Option<Token> {
        let entry = self.slots.get(slot)?;
        entry.value.as_ref().map(|_| Token::new(slot as u32, entry.generation))
    }

    /// How many slots are occupied.
    pub(super) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// How many slots there ever were at once; `occupant` accepts `0..capacity()`.
    pub(super) fn capacity(&self) -> usize {
        self.slots.len()
    }

    #[cfg(test)]
    pub(super) fn check_invariants(&self) {
        let mut is_free = vec![false; self.slots.len()];
        for &slot in &self.free {
            assert!(!is_free[slot as usize], "slot {slot} is free twice");
            is_free[slot as usize] = true;
        }
        for (slot, entry) in self.slots.iter().enumerate() {
            assert_eq!(
                entry.value.is_none(),
                is_free[slot],
                "slot {slot}: occupied or free, not both"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_late_token_finds_nothing_in_the_slot_it_had() {
        let mut slots = Slots::new();
        let first = slots.insert("first");
        assert_eq!(slots.remove(first), Some("first"));
        assert_eq!(slots.remove(first), None);
        let second = slots.insert("second");
        assert_eq!(second.slot(), first.slot());
        assert_ne!(second, first);
        assert_eq!(slots.get(first), None);
        assert_eq!(slots.get_mut(first), None);
        assert_eq!(slots.remove(first), None);
        assert_eq!(slots.get(second), Some(&"second"));
        assert_eq!(slots.occupant(second.slot()), Some(second));
        assert_eq!((slots.len(), slots.capacity()), (1, 1));
        slots.check_invariants();
    }

    #[test]
    fn a_token_of_a_larger_table_finds_nothing() {
        let slots: Slots<u8> = Slots::new();
        assert_eq!(slots.get(Token::new(3, 0)), None);
        assert_eq!(slots.occupant(0), None);
    }
}
