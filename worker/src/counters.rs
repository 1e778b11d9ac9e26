//! What a service counts. Read by the metrics page; never reset.

use std::sync::atomic::{AtomicU64, Ordering};

/// What can become of a request. One request may count twice: a panic is a failure too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Counter {
    /// Answered without an error.
    Ok,
    /// Answered with an error.
    Failed,
    /// Refused because a queue was full.
    Busy,
    /// Its time was over before a handler could start.
    Expired,
    /// Its handler was dropped at the deadline.
    Cancelled,
    /// Its handler panicked.
    Panicked,
}

impl Counter {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Ok, Self::Failed, Self::Busy, Self::Expired, Self::Cancelled, Self::Panicked];
}

/// The counters of one service.
#[derive(Debug, Default)]
pub struct Counters([AtomicU64; Counter::ALL.len()]);

impl Counters {
    pub(crate) fn add(&self, counter: Counter) {
        self.0[counter as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// How often this happened.
    pub fn read(&self, counter: Counter) -> u64 {
        self.0[counter as usize].load(Ordering::Relaxed)
    }
}
