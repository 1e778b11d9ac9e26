//! Receive buffers: who has which one. The memory itself belongs to the driver.
//!
//! The ledger is pure. Its invariant: a buffer is either with the driver (free, or lent to the kernel)
//! or out with the caller as exactly one [`Buffer`]; so nobody reads what the kernel may write.

use std::sync::atomic::{AtomicU32, Ordering};

/// Some received bytes in a driver's memory. Look at them with [`Driver::bytes`](super::Driver::bytes)
/// and give the buffer back with [`Driver::recycle`](super::Driver::recycle) before the next wait; a
/// dropped one is lost to the driver. Not clonable: there is one for one buffer.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "a buffer that is not recycled is lost to the driver"]
pub struct Buffer {
    /// Which ledger it came from: buffers of different drivers must not be mixed up.
    ledger: u32,
    length: u32,
    index: u16,
}

impl Buffer {
    /// How many bytes were received into it; never zero.
    pub fn len(&self) -> usize {
        self.length as usize
    }

    /// Always false; here because a length without it reads badly.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }
}

/// Which buffers are out with the caller.
pub(super) struct Ledger {
    id: u32,
    is_out: Vec<bool>,
    out: usize,
}

impl Ledger {
    pub(super) fn new(buffers: u16) -> Self {
        static LEDGERS: AtomicU32 = AtomicU32::new(0);
        // Only different, not ordered: nothing else hangs on the number.
        let id = LEDGERS.fetch_add(1, Ordering::Relaxed);
        Self { id, is_out: vec![false; usize::from(buffers)], out: 0 }
    }

    /// Hands `index` to the caller with `length` bytes in it. Panics when it is already out: it would
    /// be memory that two hold.
    pub(super) fn lend(&mut self, index: u16, length: u32) -> Buffer {
        let is_out = &mut self.is_out[usize::from(index)];
        assert!(!*is_out, "buffer {index} is lent twice");
        *is_out = true;
        self.out += 1;
        Buffer { ledger: self.id, length, index }
    }

    /// Which buffer it is, and how long. Panics for a buffer of another driver.
    pub(super) fn locate(&self, buffer: &Buffer) -> (u16, usize) {
        assert_eq!(buffer.ledger, self.id, "a buffer belongs to the driver that it came from");
        debug_assert!(self.is_out[usize::from(buffer.index)], "a buffer that exists is out");
        (buffer.index, buffer.len())
    }

    /// Takes a buffer back and says which it was. Panics for a buffer of another driver.
    #[expect(clippy::needless_pass_by_value, reason = "taking it is the point: it is gone now")]
    pub(super) fn give_back(&mut self, buffer: Buffer) -> u16 {
        let (index, _) = self.locate(&buffer);
        self.is_out[usize::from(index)] = false;
        self.out -= 1;
        index
    }

    /// How many buffers are out with the caller.
    pub(super) fn out(&self) -> usize {
        self.out
    }

    /// How many buffers there are.
    #[cfg(test)]
    pub(super) fn total(&self) -> usize {
        self.is_out.len()
    }

    #[cfg(test)]
    pub(super) fn check_invariants(&self) {
        assert_eq!(self.out, self.is_out.iter().filter(|&&out| out).count());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_goes_out_once_and_comes_back_once() {
        let mut ledger = Ledger::new(2);
        let buffer = ledger.lend(1, 5);
        assert_eq!(ledger.locate(&buffer), (1, 5));
        assert_eq!((ledger.out(), ledger.total()), (1, 2));
        ledger.check_invariants();
        assert_eq!(ledger.give_back(buffer), 1);
        assert_eq!(ledger.out(), 0);
        ledger.check_invariants();
        let _again = ledger.lend(1, 1);
    }

    #[test]
    #[should_panic(expected = "lent twice")]
    fn lending_what_is_out_is_refused() {
        let mut ledger = Ledger::new(1);
        let _first = ledger.lend(0, 1);
        let _second = ledger.lend(0, 1);
    }

    #[test]
    #[should_panic(expected = "belongs to the driver")]
    fn a_buffer_of_another_driver_is_refused() {
        let mut one = Ledger::new(1);
        let mut other = Ledger::new(1);
        let buffer = one.lend(0, 1);
        let _mine = other.lend(0, 1);
        other.give_back(buffer);
    }
}
