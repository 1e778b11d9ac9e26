//! Waking a driver that sleeps in its wait from another thread.
//!
//! Invariant: between a `wake` and the `Event::Woken` that answers it at most one write reaches the
//! kernel, however many wake in that time; and a wake after the event was taken is never swallowed.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

/// Makes a driver's wait return, from any thread. Put what the reactor shall find into its mailbox
/// first, then wake. Clones share one flag. Outliving the driver is harmless: nothing hears it then.
#[derive(Clone)]
pub struct Waker {
    shared: Arc<Shared>,
}

struct Shared {
    is_pending: AtomicBool,
    bell: Bell,
}

enum Bell {
    /// A ring polls an event counter.
    #[cfg(target_os = "linux")]
    Counter(std::os::fd::OwnedFd),
    /// A selector has its own.
    Selector(mio::Waker),
    /// A driver in memory looks at the flag.
    #[cfg(feature = "simulation")]
    Silent,
}

impl Waker {
    pub(super) fn of_selector(waker: mio::Waker) -> Self {
        Self::new(Bell::Selector(waker))
    }

    /// A waker over a new event counter.
    #[cfg(target_os = "linux")]
    pub(super) fn of_counter() -> io::Result<Self> {
        use rustix::event::{EventfdFlags, eventfd};
        let counter = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self::new(Bell::Counter(counter)))
    }

    /// A waker for a driver that never sleeps.
    #[cfg(feature = "simulation")]
    pub(super) fn silent() -> Self {
        Self::new(Bell::Silent)
    }

    /// Whether somebody woke since the last `take`.
    #[cfg(feature = "simulation")]
    pub(super) fn is_rung(&self) -> bool {
        self.shared.is_pending.load(Ordering::Acquire)
    }

    fn new(bell: Bell) -> Self {
        Self { shared: Arc::new(Shared { is_pending: AtomicBool::new(false), bell }) }
    }

    /// Makes the driver's current or next wait return with `Event::Woken`. Cost: one system call, or
    /// one atomic exchange when a wake-up is already on its way.
    pub fn wake(&self) {
        // Release: what the caller queued before is seen by the thread whose `take` reads this flag.
        // Acquire is needed too: a swap that reads `true` must not move behind later queueing.
        if self.shared.is_pending.swap(true, Ordering::AcqRel) {
            return;
        }
        if self.shared.bell.ring().is_err() {
            // Nothing was rung, so nobody would clear the flag: let the next wake try again.
            self.shared.is_pending.store(false, Ordering::Release);
        }
    }

    /// Called by the driver when it takes the event: wakes from here on ring again. It must happen
    /// before the caller looks into its mailbox, or a message put there in between would lie unseen.
    pub(super) fn take(&self) {
        self.shared.is_pending.swap(false, Ordering::AcqRel);
    }

    /// The descriptor that becomes readable.
    #[cfg(target_os = "linux")]
    pub(super) fn counter(&self) -> Option<std::os::fd::BorrowedFd<'_>> {
        use std::os::fd::AsFd;
        match &self.shared.bell {
            Bell::Counter(counter) => Some(counter.as_fd()),
            Bell::Selector(_) => None,
            #[cfg(feature = "simulation")]
            Bell::Silent => None,
        }
    }
}

impl Bell {
    fn ring(&self) -> io::Result<()> {
        match self {
            // Every write wakes a poller, whether or not the counter was read: it is never read, and
            // would be full after 2^64 wake-ups.
            #[cfg(target_os = "linux")]
            Bell::Counter(counter) => {
                rustix::io::retry_on_intr(|| rustix::io::write(counter, &1_u64.to_ne_bytes()))?;
                Ok(())
            }
            Bell::Selector(waker) => waker.wake(),
            #[cfg(feature = "simulation")]
            Bell::Silent => Ok(()),
        }
    }
}

impl std::fmt::Debug for Waker {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let is_pending = self.shared.is_pending.load(Ordering::Relaxed);
        formatter.debug_struct("Waker").field("is_pending", &is_pending).finish()
    }
}
