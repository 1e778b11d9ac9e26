//! The name of a socket inside a driver: a slot and the generation of its occupant.
//!
//! Slots are reused, names are not (until a slot's 28-bit generation wraps). That is what makes it
//! safe to act on a name that came back from the kernel or out of a queue: a late one matches nothing.

/// Bits of a generation. Four bits of a ring completion's 64 are needed for the operation's kind.
pub(super) const GENERATION_BITS: u32 = 28;

/// Names one listener or stream of one [`Driver`](super::Driver). Cheap to copy; means nothing to
/// another driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Token {
    slot: u32,
    generation: u32,
}

impl Token {
    pub(super) fn new(slot: u32, generation: u32) -> Self {
        debug_assert!(generation < 1 << GENERATION_BITS, "a generation has 28 bits");
        Self { slot, generation }
    }

    /// The slot, dense from zero: fit to index a table that lies beside the driver. A slot belongs to
    /// one live token at a time and is given to another one only after the first is gone.
    pub fn slot(self) -> usize {
        self.slot as usize
    }

    /// How often the slot has changed hands, modulo 2^28.
    pub fn generation(self) -> u32 {
        self.generation
    }

    /// The token as a number: generation above slot. The highest four bits are zero.
    pub fn to_bits(self) -> u64 {
        u64::from(self.generation) << 32 | u64::from(self.slot)
    }

    /// The inverse of [`to_bits`](Self::to_bits); the highest four bits are ignored.
    pub fn from_bits(bits: u64) -> Self {
        let generation = (bits >> 32) as u32 & ((1 << GENERATION_BITS) - 1);
        Self { slot: bits as u32, generation }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_carry_slot_and_generation_and_leave_four_bits_free() {
        let token = Token::new(u32::MAX, (1 << GENERATION_BITS) - 1);
        assert_eq!(token.to_bits() >> 60, 0);
        assert_eq!(Token::from_bits(token.to_bits()), token);
        assert_eq!(Token::from_bits(token.to_bits() | 0xf << 60), token);
        let token = Token::new(7, 0);
        assert_eq!(token.to_bits(), 7);
        assert_eq!((token.slot(), token.generation()), (7, 0));
    }
}
