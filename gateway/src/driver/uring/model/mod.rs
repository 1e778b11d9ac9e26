//! A model of the kernel's side of a ring: it completes in any order, late, in part, cancelled, or with an error.
//!
//! It stands where [`ring::Ring`](super::ring::Ring) stands and reads the very entries, buffer rings and send buffers that
//! the kernel would read, when the kernel could read them. It is strict where the kernel would corrupt memory: a buffer
//! that changed, a descriptor that was closed, or memory that was freed while an operation named it fails the test (or
//! Miri). What it does not model is the queues themselves; those are tested over a real ring.

mod tests;

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::IntoRawFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use io_uring::types::BufRingEntry;
use io_uring::{opcode, squeue};

use super::super::DriverError;
use super::ring::Completion;

/// `IORING_CQE_F_BUFFER`: a provided buffer was used; its number is in the upper half of the flags.
const FLAG_BUFFER: u32 = 1;
/// `IORING_CQE_F_MORE`: the operation goes on.
const FLAG_MORE: u32 = 2;

/// A ring whose kernel is a model.
pub(in crate::driver) struct Ring {
    pub(super) kernel: RefCell<Kernel>,
    pub(super) enters: u64,
}

/// What the kernel holds.
pub(super) struct Kernel {
    pub(super) random: fastrand::Rng,
    operations: Vec<Operation>,
    completions: VecDeque<Completion>,
    buffers: Option<Buffers>,
    /// Bytes that were received for each operation's user data, in order.
    pub(super) received: HashMap<u64, Vec<u8>>,
    /// Bytes that were taken from send buffers.
    pub(super) taken: HashMap<u64, Vec<u8>>,
    /// Whether it lets go of nothing, whatever is cancelled.
    pub(super) is_stubborn: bool,
    next_byte: u8,
}

/// An operation as it stands in a submission entry.
struct Operation {
    user_data: u64,
    opcode: u8,
    fd: i32,
    address: u64,
    bytes: u32,
    /// What the descriptor stood for when the operation began.
    inode: u64,
    /// What lay in a send buffer when the operation began.
    content: Vec<u8>,
    is_cancelled: bool,
}

/// The ring of provided buffers, as the kernel sees it.
struct Buffers {
    entries: *const BufRingEntry,
    count: u16,
    head: u16,
}

impl Ring {
    #[expect(clippy::unnecessary_wraps, reason = "the real one can fail")]
    pub(super) fn open(
        _entries: u32,
        _completions: u32,
    ) -> Result<(Self, &'static str), DriverError> {
        Ok((Self::seeded(0), "a model of the kernel"))
    }

    pub(super) fn seeded(seed: u64) -> Self {
        let kernel = Kernel {
            random: fastrand::Rng::with_seed(seed),
            operations: Vec::new(),
            completions: VecDeque::new(),
            buffers: None,
            received: HashMap::new(),
            taken: HashMap::new(),
            is_stubborn: false,
            next_byte: 0,
        };
        Self { kernel: RefCell::new(kernel), enters: 0 }
    }

    /// # Safety
    /// As for a real ring.
    #[expect(clippy::unnecessary_wraps, reason = "the real one can fail")]
    pub(super) unsafe fn register_buffers(
        &self,
        address: u64,
        count: u16,
        _group: u16,
    ) -> io::Result<()> {
        let entries = std::ptr::with_exposed_provenance(address as usize);
        self.kernel.borrow_mut().buffers = Some(Buffers { entries, count, head: 0 });
        Ok(())
    }

    #[expect(clippy::unnecessary_wraps, reason = "the real one can fail")]
    pub(super) fn unregister_buffers(&self, _group: u16) -> io::Result<()> {
        self.kernel.borrow_mut().buffers = None;
        Ok(())
    }

    /// # Safety
    /// As for a real ring.
    #[expect(clippy::needless_pass_by_value, reason = "as the real one takes it")]
    pub(super) unsafe fn push(&mut self, entry: squeue::Entry) {
        let operation = Operation::read(&entry);
        let kernel = self.kernel.get_mut();
        if operation.opcode == opcode::AsyncCancel::CODE {
            kernel.cancel(operation.address, operation.user_data);
        } else {
            kernel.start(operation);
        }
    }

    pub(super) fn cancel(&mut self, target: u64, user_data: u64) {
        self.kernel.get_mut().cancel(target, user_data);
    }

    #[expect(clippy::unnecessary_wraps, reason = "the real one can fail")]
    pub(super) fn submit(&mut self) -> io::Result<()> {
        self.enters += 1;
        Ok(())
    }

    #[expect(clippy::unnecessary_wraps, reason = "the real one can fail")]
    pub(super) fn wait(&mut self, _timeout: Option<Duration>) -> io::Result<()> {
        self.enters += 1;
        self.kernel.get_mut().progress();
        Ok(())
    }

    pub(super) fn pop(&mut self) -> Option<Completion> {
        self.kernel.get_mut().completions.pop_front()
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        let kernel = self.kernel.get_mut();
        // Whoever drops the ring frees the memory next. A driver that gives up leaks it, and says so.
        if !kernel.is_stubborn && !std::thread::panicking() {
            assert_eq!(kernel.in_flight(), 0, "the ring goes while the kernel holds operations");
        }
    }
}

impl Operation {
    /// ```text
    /// opcode u8 | flags u8 | priority u16 | fd i32 | offset u64 | address u64 | bytes u32 | … u32 | user data u64 | …
    /// ```
    fn read(entry: &squeue::Entry) -> Self {
        // SAFETY: an entry is 64 bytes of plain numbers; the crate tests that size.
        let raw: [u64; 8] = unsafe { std::mem::transmute_copy(entry) };
        let [first, _, address, lengths, user_data, ..] = raw;
        let mut operation = Self {
            user_data,
            opcode: first as u8,
            fd: (first >> 32) as i32,
            address,
            bytes: lengths as u32,
            inode: 0,
            content: Vec::new(),
            is_cancelled: false,
        };
        if operation.opcode == opcode::Send::CODE {
            operation.content = operation.memory().to_vec();
        }
        operation.inode = operation.inode_now();
        operation
    }

    /// What the send buffer holds now.
    fn memory(&self) -> &[u8] {
        let first: *const u8 = std::ptr::with_exposed_provenance(self.address as usize);
        // SAFETY: this is what the driver promises the kernel: the buffer lives until the completion. That it keeps
        // the promise is what is tested, by Miri for the memory, and here for its content.
        unsafe { std::slice::from_raw_parts(first, self.bytes as usize) }
    }

    #[cfg(not(miri))]
    fn inode_now(&self) -> u64 {
        if self.opcode == opcode::AsyncCancel::CODE {
            return 0;
        }
        // SAFETY: borrowed for the call only; a closed descriptor makes it fail, which is the point.
        let fd = unsafe { std::os::fd::BorrowedFd::borrow_raw(self.fd) };
        rustix::fs::fstat(fd).expect("the descriptor of an operation is open").st_ino
    }

    #[cfg(miri)]
    fn inode_now(&self) -> u64 {
        0
    }
}

impl Kernel {
    fn start(&mut self, operation: Operation) {
        let is_double = self.operations.iter().any(|it| it.user_data == operation.user_data);
        assert!(!is_double, "two operations with one name");
        self.operations.push(operation);
    }

    /// Operations that name memory or sockets; the waker's poll names neither.
    pub(super) fn in_flight(&self) -> usize {
        self.operations.iter().filter(|it| it.opcode != opcode::PollAdd::CODE).count()
    }

    /// Buffers that the driver has given and the kernel has not used.
    pub(super) fn buffers_left(&self) -> u16 {
        self.buffers.as_ref().map_or(0, |buffers| buffers.tail().wrapping_sub(buffers.head))
    }

    fn complete(&mut self, user_data: u64, result: i32, flags: u32) {
        self.completions.push_back(Completion { user_data, result, flags });
    }

    /// A cancellation finds its target, or misses one that goes on, or comes when there is nothing left of it. Only a
    /// miss is reported.
    fn cancel(&mut self, target: u64, user_data: u64) {
        let is_missed = self.random.u8(..3) == 0;
        match self.operations.iter_mut().find(|it| it.user_data == target) {
            Some(operation) if !is_missed => operation.is_cancelled = true,
            Some(_) => self.complete(user_data, -libc::EALREADY, 0),
            None => self.complete(user_data, -libc::ENOENT, 0),
        }
    }

    /// Some of what is in flight moves on, in any order.
    pub(super) fn progress(&mut self) {
        for _ in 0..self.random.usize(..8) {
            if self.operations.is_empty() {
                return;
            }
            let index = self.random.usize(..self.operations.len());
            let operation = self.operations.swap_remove(index);
            assert_eq!(operation.inode, operation.inode_now(), "the descriptor was closed");
            let goes_on = self.advance(&operation);
            if goes_on {
                self.operations.push(operation);
            }
        }
    }

    /// Completes a part of an operation; says whether there is more to come.
    fn advance(&mut self, operation: &Operation) -> bool {
        if operation.opcode == opcode::Send::CODE {
            assert_eq!(operation.content, operation.memory(), "a send buffer changed in flight");
        }
        if self.is_stubborn {
            return true;
        }
        if operation.is_cancelled && self.random.u8(..4) > 0 {
            self.complete(operation.user_data, -libc::ECANCELED, 0);
            return false;
        }
        match operation.opcode {
            opcode::PollAdd::CODE => {
                let goes_on = self.random.bool();
                self.complete(operation.user_data, 1, u32::from(goes_on) * FLAG_MORE);
                goes_on
            }
            opcode::AcceptMulti::CODE => self.accept(operation.user_data),
            opcode::RecvMulti::CODE => self.receive(operation.user_data),
            opcode::Send::CODE => self.send(operation),
            other => panic!("the driver uses no operation {other}"),
        }
    }

    fn accept(&mut self, user_data: u64) -> bool {
        let (ours, peer) = UnixStream::pair().expect("a pair of sockets");
        drop(peer);
        let (result, goes_on) = match self.random.u8(..10) {
            0 => (-libc::EMFILE, false),
            1 => (-libc::ECONNABORTED, false),
            2 => (-libc::EAGAIN, false),
            3 => (ours.into_raw_fd(), false),
            _ => (ours.into_raw_fd(), true),
        };
        self.complete(user_data, result, u32::from(goes_on) * FLAG_MORE);
        goes_on
    }

    fn receive(&mut self, user_data: u64) -> bool {
        let error = match self.random.u8(..40) {
            0 => Some(0),
            1 => Some(-libc::ECONNRESET),
            2 => Some(-libc::EINTR),
            3 => Some(-libc::EAGAIN),
            4 => Some(-libc::ENOBUFS),
            _ => None,
        };
        let buffer = if error.is_none() { self.take_buffer() } else { None };
        let Some((index, memory)) = buffer else {
            self.complete(user_data, error.unwrap_or(-libc::ENOBUFS), 0);
            return false;
        };
        let count = self.random.usize(1..=memory.len());
        let log = self.received.entry(user_data).or_default();
        for byte in &mut memory[..count] {
            self.next_byte = self.next_byte.wrapping_add(1);
            *byte = self.next_byte;
            log.push(self.next_byte);
        }
        let goes_on = self.random.u8(..8) > 0;
        let more = if goes_on { FLAG_MORE } else { 0 };
        let flags = FLAG_BUFFER | u32::from(index) << 16 | more;
        self.complete(user_data, count as i32, flags);
        goes_on
    }

    /// The next buffer that the driver has given.
    fn take_buffer(&mut self) -> Option<(u16, &'static mut [u8])> {
        let buffers = self.buffers.as_mut()?;
        if buffers.head == buffers.tail() {
            return None;
        }
        let position = usize::from(buffers.head & (buffers.count - 1));
        buffers.head = buffers.head.wrapping_add(1);
        // SAFETY: the position is below the count, and the driver does not touch an entry between tail and head.
        let entry = unsafe { &*buffers.entries.add(position) };
        let first = std::ptr::with_exposed_provenance_mut(entry.addr() as usize);
        // SAFETY: between the driver's tail and the completion the buffer is the kernel's alone; Miri checks it.
        Some((entry.bid(), unsafe { std::slice::from_raw_parts_mut(first, entry.len() as usize) }))
    }

    fn send(&mut self, operation: &Operation) -> bool {
        let bytes = operation.bytes as usize;
        let result = match self.random.u8(..20) {
            0 => -libc::EPIPE,
            1 => -libc::EAGAIN,
            2 => -libc::EINTR,
            3..8 => self.random.usize(1..=bytes) as i32,
            _ => bytes as i32,
        };
        if let Ok(count) = usize::try_from(result) {
            let taken = self.taken.entry(operation.user_data).or_default();
            taken.extend_from_slice(&operation.memory()[..count]);
        }
        self.complete(operation.user_data, result, 0);
        false
    }
}

impl Buffers {
    fn tail(&self) -> u16 {
        // SAFETY: the tail lies in the padding of the first entry, aligned for u16, and lives as long as the entries.
        let tail = unsafe { AtomicU16::from_ptr(BufRingEntry::tail(self.entries).cast_mut()) };
        tail.load(Ordering::Acquire)
    }
}
