//! The ring of receive buffers that the kernel takes from when bytes arrive.
//!
//! Invariant: a buffer is in the kernel's hands (in the ring, or filled and named by a completion that
//! was not popped), or out with the caller; only the latter is ever seen as a slice.

use super::{
    super::{Buffer, DriverError, buffers::Ledger},
    Ring,
};
use io_uring::types::BufRingEntry;
use std::{
    alloc::{self, Layout},
    ptr::NonNull,
    sync::atomic::{AtomicU16, Ordering},
};

/// The buffer group; a ring has this one only.
pub(super) const GROUP: u16 = 0;
/// The kernel wants the entries at the begin of a page; this is the largest page there is.
const PAGE_BYTES_MAX: usize = 64 * 1024;
/// The most entries that the kernel accepts.
const BUFFERS_MAX: u16 = 1 << 15;
/// Buffers that the kernel gets at first. It takes them in turn, so all that it has become resident sooner or later; most
/// gateways never need more than these at once.
const OFFERED_FIRST: u16 = 128;

/// Provided buffers and their memory.
///
/// ```text
/// entries   | address, length, index | … |      `count` of 16 bytes, the tail in the first one's padding
/// memory    | buffer 0 | buffer 1 | … |         `count` of `buffer_bytes`
/// ```
pub(super) struct Provided {
    entries: NonNull<BufRingEntry>,
    entries_layout: Layout,
    memory: NonNull<[u8]>,
    buffer_bytes: u32,
    count: u16,
    /// Buffers below this index have been given to the kernel; the others, and their memory, are untouched.
    offered: u16,
    tail: u16,
    ledger: Ledger,
}

impl Provided {
    /// Takes the memory, registers it, and gives the first buffers to the kernel.
    pub(super) fn register(
        ring: &Ring,
        buffers: u16,
        buffer_bytes: u32,
    ) -> Result<Self, DriverError> {
        let count = buffers.clamp(1, BUFFERS_MAX).next_power_of_two();
        let buffer_bytes = buffer_bytes.max(1);
        let entries_layout = Layout::array::<BufRingEntry>(usize::from(count))
            .and_then(|layout| layout.align_to(PAGE_BYTES_MAX))
            .map_err(|_| DriverError::Unfit("too many receive buffers"))?;
        // SAFETY: the layout is not empty: `count` is at least 1.
        let entries = unsafe { alloc::alloc_zeroed(entries_layout) };
        #[expect(clippy::cast_ptr_alignment, reason = "the layout is aligned to a page")]
        let Some(entries) = NonNull::new(entries.cast::<BufRingEntry>()) else {
            alloc::handle_alloc_error(entries_layout);
        };
        // Zeroed memory of this size comes untouched from the system: a page that no buffer used is
        // not there. A plain pointer from here on, because the kernel writes behind the compiler.
        let memory = vec![0_u8; usize::from(count) * buffer_bytes as usize].into_boxed_slice();
        let memory = NonNull::from(Box::leak(memory));
        let ledger = Ledger::new(count);
        let mut provided = Self {
            entries,
            entries_layout,
            memory,
            buffer_bytes,
            count,
            offered: 0,
            tail: 0,
            ledger,
        };
        let address = entries.as_ptr() as u64;
        // SAFETY: the entries are page-aligned, zeroed, and live until `Drop`, which the driver runs
        // after the ring let go of all operations.
        unsafe { ring.register_buffers(address, count, GROUP) }
            .map_err(|source| DriverError::Refused { call: "io_uring_register buffers", source })?;
        provided.offer(OFFERED_FIRST);
        Ok(provided)
    }

    /// The kernel ran out: it gets as many buffers more as it has, as long as there are any.
    pub(super) fn offer_more(&mut self) {
        self.offer(self.offered);
    }

    fn offer(&mut self, more: u16) {
        let offered = self.offered.saturating_add(more).min(self.count);
        for index in self.offered..offered {
            self.put(index);
        }
        self.offered = offered;
    }

    /// Gives a buffer to the kernel.
    fn put(&mut self, index: u16) {
        let address = self.memory.cast::<u8>().as_ptr() as u64
            + u64::from(index) * u64::from(self.buffer_bytes);
        let position = usize::from(self.tail & (self.count - 1));
        // SAFETY: `position` is below `count`. The kernel reads an entry only after it saw a tail
        // beyond it, and this one lies at or behind the tail: there are never more than `count`
        // buffers, so it was consumed. Only address, length and index are written, not the tail.
        unsafe {
            let entry = &mut *self.entries.as_ptr().add(position);
            entry.set_addr(address);
            entry.set_len(self.buffer_bytes);
            entry.set_bid(index);
        }
        self.tail = self.tail.wrapping_add(1);
        // SAFETY: the tail lies in the padding of the first entry, aligned for u16; the kernel only
        // reads it. Release: it sees the entry before the tail.
        unsafe {
            let tail = BufRingEntry::tail(self.entries.as_ptr()).cast_mut();
            AtomicU16::from_ptr(tail).store(self.tail, Ordering::Release);
        }
    }

    /// A completion named a buffer with bytes: it goes to the caller.
    pub(super) fn lend(&mut self, index: u16, length: u32) -> Buffer {
        debug_assert!(length <= self.buffer_bytes, "the kernel keeps to the length");
        self.ledger.lend(index, length.min(self.buffer_bytes))
    }

    /// A completion named a buffer that nobody wants: it goes back to the kernel.
    pub(super) fn put_back(&mut self, index: u16) {
        let buffer = self.ledger.lend(index, 0);
        self.recycle(buffer);
    }

    pub(super) fn recycle(&mut self, buffer: Buffer) {
        let index = self.ledger.give_back(buffer);
        self.put(index);
    }

    pub(super) fn bytes(&mut self, buffer: &Buffer) -> &mut [u8] {
        let (index, length) = self.ledger.locate(buffer);
        let start = usize::from(index) * self.buffer_bytes as usize;
        // SAFETY: the ledger says that this buffer is out: the kernel does not write to it before it
        // is recycled, which needs the `Buffer` and `self`, and both are borrowed. `lend` kept the
        // length within the buffer. Memory is initialised: zeroed, then written by the kernel.
        unsafe {
            let first = self.memory.cast::<u8>().add(start);
            std::slice::from_raw_parts_mut(first.as_ptr(), length)
        }
    }

    /// How many buffers are with the kernel.
    pub(super) fn with_kernel(&self) -> usize {
        usize::from(self.offered) - self.ledger.out()
    }

    pub(super) fn out(&self) -> usize {
        self.ledger.out()
    }

    pub(super) fn count(&self) -> u16 {
        self.count
    }
}

impl Drop for Provided {
    fn drop(&mut self) {
        // SAFETY: both come from the allocations of `register`, with the same layouts. The driver
        // drops this only when no operation is in flight, so nobody writes to the memory any more;
        // the pages of the entries are pinned by the kernel for as long as it reads them.
        unsafe {
            alloc::dealloc(self.entries.as_ptr().cast(), self.entries_layout);
            drop(Box::from_raw(self.memory.as_ptr()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_gets_more_buffers_only_as_long_as_there_are_any() {
        let Ok((ring, _)) = Ring::open(8, 16) else { return };
        for (count, steps) in
            [(512, [128, 256, 512, 512]), (200, [128, 256, 256, 256]), (4, [4; 4])]
        {
            let mut provided = Provided::register(&ring, count, 64).unwrap();
            for with_kernel in steps {
                assert_eq!(provided.with_kernel(), with_kernel);
                provided.offer_more();
            }
            ring.unregister_buffers(GROUP).unwrap();
        }
    }
}
