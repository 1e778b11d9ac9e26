//! Memory for clients: bytes that wait to be sent, and parts of packets that came, of the whole process.
//!
//! Each reactor tells its own sum once a turn, in a cell that only it writes; nobody locks. Above the ceiling a reactor
//! that holds more than its equal share sheds its worst clients. The invariant that makes this end: when the process is
//! above the ceiling some reactor is above its share.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// A client with less is never shed: its end would free nothing to speak of.
pub const SHED_BYTES_MIN: usize = 4 * 1024;

/// One reactor's sum, alone in its cache lines.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Cell(AtomicUsize);

/// The sums of all reactors.
#[derive(Debug)]
pub struct Memory {
    cells: Box<[Cell]>,
    /// Set while the whole process comes close to what it may use, by the control thread.
    is_scarce: AtomicBool,
}

impl Memory {
    /// For so many reactors.
    pub fn new(reactors: usize) -> Self {
        Self {
            cells: (0..reactors).map(|_| Cell::default()).collect(),
            is_scarce: AtomicBool::new(false),
        }
    }

    /// Tells a reactor's sum. Relaxed, here and below: a sum that is a turn old is as good.
    pub fn publish(&self, reactor: usize, bytes: usize) {
        if let Some(cell) = self.cells.get(reactor) {
            cell.0.store(bytes, Ordering::Relaxed);
        }
    }

    /// Bytes of all reactors.
    pub fn bytes(&self) -> usize {
        self.cells.iter().map(|cell| cell.0.load(Ordering::Relaxed)).sum()
    }

    /// How many bytes a reactor that holds `own_bytes` has to shed now; 0 most of the time. It sheds a tenth more than
    /// it must, so that it is not back a turn later.
    pub fn excess_bytes(&self, own_bytes: usize, ceiling_bytes: usize) -> usize {
        let share = ceiling_bytes / self.cells.len().max(1);
        if own_bytes <= share {
            return 0;
        }
        let above = self.bytes().saturating_sub(ceiling_bytes);
        if above == 0 { 0 } else { above.min(own_bytes - share) + share / 10 }
    }

    /// Whether new connections have to wait, because the process itself is short of memory.
    pub fn is_scarce(&self) -> bool {
        self.is_scarce.load(Ordering::Relaxed)
    }

    /// Says whether the process is short of memory; returns what was said before.
    pub fn set_scarce(&self, is_scarce: bool) -> bool {
        self.is_scarce.swap(is_scarce, Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_reactor_above_its_share_sheds_and_only_above_the_ceiling() {
        let memory = Memory::new(2);
        memory.publish(0, 900);
        memory.publish(1, 90);
        assert_eq!(memory.excess_bytes(900, 1_000), 0, "the other one's room may be used");
        memory.publish(1, 110);
        assert_eq!(memory.excess_bytes(110, 1_000), 0, "not the one that holds little");
        assert_eq!(memory.excess_bytes(900, 1_000), 10 + 50);
        memory.publish(0, 10_000);
        assert_eq!(memory.excess_bytes(10_000, 1_000), 9_110 + 50);
    }

    #[test]
    fn above_the_ceiling_somebody_always_sheds() {
        for (first, second) in [(501, 500), (1_001, 0), (0, 1_001), (5_000, 5_000)] {
            let memory = Memory::new(2);
            memory.publish(0, first);
            memory.publish(1, second);
            let shed = [first, second].map(|own| memory.excess_bytes(own, 1_000));
            assert!(shed.iter().sum::<usize>() >= first + second - 1_000, "{shed:?}");
        }
    }
}
