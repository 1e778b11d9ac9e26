//! How much work a worker takes on at once: a number of requests, and their bytes.
//!
//! A permit is held from arrival to answer. What exceeds the limits is refused at once with a busy answer, which the
//! caller can use; Go drops it and lets the caller wait for its timeout (compat-traps 2).

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::Notify;

/// What a worker queues at most. The window is announced to gateways in the metadata `dragonfruit.window`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Requests that wait or run, all sessions together.
    pub window: usize,
    /// Bytes of these requests.
    pub window_bytes_max: usize,
    /// Requests of one session that wait behind the one that runs.
    pub session_waiting_max: usize,
    /// Handlers that run at the same time; more wait, and their time runs.
    pub running_max: usize,
    /// Wait for a handler to start from which on further requests are refused.
    pub waiting_age_max: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            window: 10_000,
            window_bytes_max: 64 * 1024 * 1024,
            session_waiting_max: 100,
            running_max: 10_000,
            waiting_age_max: Duration::from_secs(1),
        }
    }
}

pub(crate) struct Admission {
    limits: Limits,
    requests: AtomicUsize,
    bytes: AtomicUsize,
    idle: Notify,
}

/// The right of one request to be here.
pub(crate) struct Permit {
    admission: Arc<Admission>,
    bytes: usize,
}

impl Admission {
    pub(crate) fn new(limits: Limits) -> Arc<Self> {
        let (requests, bytes) = (AtomicUsize::new(0), AtomicUsize::new(0));
        Arc::new(Self { limits, requests, bytes, idle: Notify::new() })
    }

    /// None when a limit would be exceeded. One request always fits, however large.
    pub(crate) fn admit(self: &Arc<Self>, bytes: usize) -> Option<Permit> {
        // Counted first and given back when it was too much, so that threads cannot pass the limit together. The
        // permit does both; no other memory depends on the counters, so their order does not matter.
        let before = self.requests.fetch_add(1, Ordering::Relaxed);
        let bytes_before = self.bytes.fetch_add(bytes, Ordering::Relaxed);
        let permit = Permit { admission: Arc::clone(self), bytes };
        let bytes_fit = before == 0 || bytes_before + bytes <= self.limits.window_bytes_max;
        (before < self.limits.window && bytes_fit).then_some(permit)
    }

    /// A permit whatever the limits say, for what must not be lost.
    pub(crate) fn enter(self: &Arc<Self>) -> Permit {
        self.requests.fetch_add(1, Ordering::Relaxed);
        Permit { admission: Arc::clone(self), bytes: 0 }
    }

    /// Requests that wait or run.
    pub(crate) fn in_flight(&self) -> usize {
        self.requests.load(Ordering::Relaxed)
    }

    /// Resolves when nothing waits or runs.
    pub(crate) async fn idle(&self) {
        loop {
            let notified = self.idle.notified();
            if self.in_flight() == 0 {
                return;
            }
            notified.await;
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.admission.bytes.fetch_sub(self.bytes, Ordering::Relaxed);
        if self.admission.requests.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.admission.idle.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_and_bytes_are_both_limited_and_come_back() {
        let limits = Limits { window: 2, window_bytes_max: 10, ..Limits::default() };
        let admission = Admission::new(limits);
        let first = admission.admit(11).expect("the first one always fits");
        assert!(admission.admit(1).is_none());
        drop(first);
        let (one, two) = (admission.admit(5), admission.admit(5));
        assert!(one.is_some() && two.is_some() && admission.admit(0).is_none());
        drop(one);
        assert!(admission.admit(6).is_none() && admission.admit(5).is_some());
        drop(two);
        assert_eq!(admission.in_flight(), 0);
    }
}
