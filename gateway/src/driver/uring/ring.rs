//! The two queues shared with the kernel, and the one system call. Knows nothing of sockets.
//!
//! Invariants: an operation that was pushed reaches the kernel, in order, however full the queue is;
//! waiting and handing over are one system call.

use super::super::DriverError;
use io_uring::{EnterFlags, IoUring, cqueue, opcode, squeue, types};
use std::{collections::VecDeque, io, time::Duration};

/// A longer timeout is cut to this: the kernel counts in 64-bit nanoseconds, and an overflow would
/// mean no wait at all.
const TIMEOUT_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// A ring of one thread.
pub(super) struct Ring {
    queues: IoUring,
    /// Operations for which there was no room although the kernel was asked to take some: it is short
    /// of memory, or wants its completions taken first. As a rule empty; at most a few a socket.
    backlog: VecDeque<squeue::Entry>,
    /// `io_uring_enter` calls.
    pub(super) enters: u64,
}

type Setup = fn(&mut io_uring::Builder);

/// One completion, copied out of the ring.
#[derive(Clone, Copy)]
pub(super) struct Completion {
    pub(super) user_data: u64,
    pub(super) result: i32,
    pub(super) flags: u32,
}

impl Completion {
    /// Whether the kernel has let go of the operation.
    pub(super) fn is_last(self) -> bool {
        !cqueue::more(self.flags)
    }

    /// The provided buffer that it used up.
    pub(super) fn buffer(self) -> Option<u16> {
        cqueue::buffer_select(self.flags)
    }
}

impl Ring {
    /// Opens a ring with the best set of flags that the kernel knows and says which.
    pub(super) fn open(
        entries: u32,
        completions: u32,
    ) -> Result<(Self, &'static str), DriverError> {
        let sets: [(&'static str, Setup); 4] = [
            ("SINGLE_ISSUER|DEFER_TASKRUN|COOP_TASKRUN", |builder| {
                builder.setup_single_issuer().setup_defer_taskrun().setup_coop_taskrun();
                builder.setup_submit_all();
            }),
            ("SINGLE_ISSUER|COOP_TASKRUN", |builder| {
                builder.setup_single_issuer().setup_coop_taskrun().setup_submit_all();
            }),
            ("COOP_TASKRUN", |builder| {
                builder.setup_coop_taskrun().setup_submit_all();
            }),
            ("no flags", |_| {}),
        ];
        let mut refusal = io::Error::from(io::ErrorKind::Unsupported);
        for (name, set) in sets {
            let mut builder = IoUring::builder();
            builder.dontfork().setup_clamp().setup_cqsize(completions.max(entries).max(2));
            set(&mut builder);
            match builder.build(entries.max(1)) {
                Ok(queues) => return Self::check(queues).map(|ring| (ring, name)),
                Err(error) => refusal = error,
            }
            // An unknown flag is "invalid"; anything else would be the same with fewer.
            if refusal.raw_os_error() != Some(libc::EINVAL) {
                break;
            }
        }
        Err(DriverError::Refused { call: "io_uring_setup", source: refusal })
    }

    fn check(queues: IoUring) -> Result<Self, DriverError> {
        let parameters = queues.params();
        if !parameters.is_feature_nodrop() {
            return Err(DriverError::Unfit("completions may be dropped (before Linux 5.5)"));
        }
        if !parameters.is_feature_fast_poll() {
            return Err(DriverError::Unfit("sockets block threads (before Linux 5.7)"));
        }
        if !parameters.is_feature_ext_arg() {
            return Err(DriverError::Unfit("no wait with a timeout (before Linux 5.11)"));
        }
        if !parameters.is_feature_skip_cqe_on_success() {
            return Err(DriverError::Unfit("no silent success (before Linux 5.17)"));
        }
        Ok(Self { queues, backlog: VecDeque::new(), enters: 0 })
    }

    /// Registers a ring of `count` provided buffers at `address` as `group`.
    ///
    /// # Safety
    /// The entries there, and the memory that they name, must live until the last operation has completed.
    pub(super) unsafe fn register_buffers(
        &self,
        address: u64,
        count: u16,
        group: u16,
    ) -> io::Result<()> {
        // SAFETY: the caller keeps the memory.
        unsafe { self.queues.submitter().register_buf_ring_with_flags(address, count, group, 0) }
    }

    /// Takes the buffers of `group` away from the kernel.
    pub(super) fn unregister_buffers(&self, group: u16) -> io::Result<()> {
        self.queues.submitter().unregister_buf_ring(group)
    }

    /// Queues an operation; enters the kernel only when the queue is full.
    ///
    /// # Safety
    /// Memory that the operation names must stay valid, and untouched where the kernel writes, until
    /// its last completion has been popped.
    pub(super) unsafe fn push(&mut self, entry: squeue::Entry) {
        if self.backlog.is_empty() {
            // SAFETY: the caller keeps the memory.
            if unsafe { self.queues.submission().push(&entry) }.is_ok() {
                return;
            }
        }
        self.backlog.push_back(entry);
        // An error that lasts is reported by the next wait, which tries again.
        let _ = self.submit();
    }

    /// Hands over what is queued without waiting.
    pub(super) fn submit(&mut self) -> io::Result<()> {
        loop {
            self.move_backlog();
            let queued = self.queues.submission().len();
            if queued == 0 {
                return Ok(());
            }
            let taken = match self.enter(0, EnterFlags::empty(), None) {
                Err(error) if is_passing(&error) => return Ok(()),
                taken => taken?,
            };
            if taken == 0 {
                return Ok(());
            }
        }
    }

    fn move_backlog(&mut self) {
        if self.backlog.is_empty() {
            return;
        }
        let mut submission = self.queues.submission();
        while let Some(entry) = self.backlog.front() {
            // SAFETY: whoever pushed it keeps the memory until the completion.
            if unsafe { submission.push(entry) }.is_err() {
                return;
            }
            self.backlog.pop_front();
        }
    }

    /// Hands over what is queued and waits for a completion, at most `timeout`.
    pub(super) fn wait(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        if !self.backlog.is_empty() {
            self.submit()?;
        }
        let has_completions = !self.queues.completion().is_empty();
        let submission = self.queues.submission();
        if has_completions && submission.is_empty() && !submission.cq_overflow() {
            return Ok(());
        }
        drop(submission);
        // What could not be handed over must be tried again soon, not after a long sleep.
        let is_polling = has_completions
            || !self.backlog.is_empty()
            || timeout.is_some_and(|timeout| timeout.is_zero());
        let entered = if is_polling {
            // Without this flag deferred work would not run, and nothing would ever complete.
            self.enter(0, EnterFlags::GETEVENTS, None)
        } else {
            self.enter(1, EnterFlags::GETEVENTS, timeout)
        };
        match entered {
            Err(error) if is_passing(&error) => Ok(()),
            entered => entered.map(drop),
        }
    }

    fn enter(
        &mut self,
        want: u32,
        flags: EnterFlags,
        timeout: Option<Duration>,
    ) -> io::Result<usize> {
        self.enters += 1;
        let queued = self.queues.submission().len() as u32;
        let submitter = self.queues.submitter();
        let Some(timeout) = timeout else {
            // SAFETY: no argument is passed. The queued operations are valid: see `push`.
            return unsafe { submitter.enter::<libc::sigset_t>(queued, want, flags.bits(), None) };
        };
        let time = types::Timespec::from(timeout.min(TIMEOUT_MAX));
        let arguments = types::SubmitArgs::new().timespec(&time);
        let flags = flags | EnterFlags::EXT_ARG;
        // SAFETY: `arguments` is what the flag announces and lives, like `time`, until the return.
        // The queued operations are valid: see `push`.
        unsafe { submitter.enter(queued, want, flags.bits(), Some(&arguments)) }
    }

    /// The next completion.
    pub(super) fn pop(&mut self) -> Option<Completion> {
        let entry = self.queues.completion().next()?;
        Some(Completion {
            user_data: entry.user_data(),
            result: entry.result(),
            flags: entry.flags(),
        })
    }

    /// Cancels the operation with that user data. Its own completion comes only when it fails.
    pub(super) fn cancel(&mut self, target: u64, user_data: u64) {
        let entry = opcode::AsyncCancel::new(target)
            .build()
            .user_data(user_data)
            .flags(squeue::Flags::SKIP_SUCCESS);
        // SAFETY: a cancellation names no memory.
        unsafe { self.push(entry) };
    }
}

/// What goes away by itself once completions are taken, time passes or memory is there again.
fn is_passing(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::ETIME | libc::EINTR | libc::EBUSY | libc::EAGAIN | libc::ENOMEM)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_operations_than_both_queues_hold_all_complete_once() {
        let (mut ring, _) = Ring::open(4, 8).unwrap();
        for number in 0..1000 {
            // SAFETY: it names no memory.
            unsafe { ring.push(opcode::Nop::new().build().user_data(number)) };
        }
        let mut seen = vec![false; 1000];
        for _ in 0..1000 {
            ring.wait(Some(Duration::ZERO)).unwrap();
            while let Some(completion) = ring.pop() {
                let seen = &mut seen[completion.user_data as usize];
                assert!(!std::mem::replace(seen, true), "completed twice");
                assert!(completion.is_last() && completion.buffer().is_none());
            }
        }
        assert!(seen.into_iter().all(|seen| seen), "one was lost");
        assert!(ring.enters > 250, "the queue was full more than once");
    }

    #[test]
    fn a_timeout_beyond_all_clocks_is_not_an_error() {
        let (mut ring, _) = Ring::open(4, 8).unwrap();
        // SAFETY: it names no memory.
        unsafe { ring.push(opcode::Nop::new().build().user_data(7)) };
        ring.wait(Some(Duration::MAX)).unwrap();
        assert_eq!(ring.pop().map(|completion| completion.user_data), Some(7));
    }
}
