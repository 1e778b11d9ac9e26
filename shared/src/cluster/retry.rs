//! How long to wait after a failure, and which failures to log: each state of trouble a few lines, however long it lasts.
//!
//! Invariant: at most one warning a minute.

use std::time::{Duration, Instant};

/// First pause that is not zero.
const PAUSE_MIN: Duration = Duration::from_millis(100);
/// A failure after so long without one is the first of a new trouble, and is retried at once.
const QUIET: Duration = Duration::from_secs(1);
const LOG_INTERVAL: Duration = Duration::from_secs(60);

/// Pauses and log lines of one task that must never give up.
pub(super) struct Retry {
    what: &'static str,
    pause_max: Duration,
    pause: Duration,
    failed_at: Option<Instant>,
    /// When the present trouble began; `None` while all is well.
    trouble_since: Option<Instant>,
    logged_at: Option<Instant>,
}

impl Retry {
    /// `what` names the task in log lines; `pause_max` is the longest pause.
    pub(super) fn new(what: &'static str, pause_max: Duration) -> Self {
        Self {
            what,
            pause_max,
            pause: Duration::ZERO,
            failed_at: None,
            trouble_since: None,
            logged_at: None,
        }
    }

    /// Counts a failure; returns how long to wait before the next try.
    pub(super) fn failed(&mut self, error: &dyn std::error::Error, now: Instant) -> Duration {
        let trouble_since = *self.trouble_since.get_or_insert(now);
        if self.logged_at.is_none_or(|at| now - at >= LOG_INTERVAL) {
            self.logged_at = Some(now);
            let seconds = (now - trouble_since).as_secs();
            tracing::warn!(%error, seconds, "{} failed, trying again", self.what);
        } else {
            tracing::debug!(%error, "{} failed, trying again", self.what);
        }
        let is_first = self.failed_at.is_none_or(|at| now - at > self.pause + QUIET);
        self.failed_at = Some(now);
        self.pause = if is_first {
            Duration::ZERO
        } else {
            (self.pause * 2).clamp(PAUSE_MIN, self.pause_max.max(PAUSE_MIN))
        };
        // Half of it at random: servers that lost etcd together should not come back together.
        self.pause.mul_f64(0.5 + fastrand::f64() / 2.0)
    }

    /// Counts a success; returns whether it ended a trouble.
    pub(super) fn succeeded(&mut self, now: Instant) -> bool {
        let Some(trouble_since) = self.trouble_since.take() else { return false };
        let seconds = (now - trouble_since).as_secs();
        if self.logged_at.is_some_and(|at| at >= trouble_since) {
            tracing::info!(seconds, "{} works again", self.what);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAUSE_MAX: Duration = Duration::from_secs(2);

    fn error() -> std::io::Error {
        std::io::Error::other("away")
    }

    #[test]
    fn the_first_failure_is_retried_at_once_and_further_ones_ever_later() {
        let mut now = Instant::now();
        let mut retry = Retry::new("test", PAUSE_MAX);
        assert_eq!(retry.failed(&error(), now), Duration::ZERO);
        let mut bound = PAUSE_MIN;
        for _ in 0..10 {
            let pause = retry.failed(&error(), now);
            assert!(pause >= bound / 2 && pause <= bound, "{pause:?} {bound:?}");
            now += pause;
            bound = (bound * 2).min(PAUSE_MAX);
        }
    }

    #[test]
    fn a_failure_after_a_quiet_time_counts_as_the_first() {
        let mut now = Instant::now();
        let mut retry = Retry::new("test", PAUSE_MAX);
        for _ in 0..10 {
            retry.failed(&error(), now);
        }
        assert!(retry.succeeded(now));
        assert!(!retry.succeeded(now));
        let pause = retry.failed(&error(), now);
        assert!(pause > Duration::ZERO, "success alone must not allow a hot loop");
        now += PAUSE_MAX + QUIET + Duration::from_millis(1);
        assert_eq!(retry.failed(&error(), now), Duration::ZERO);
    }
}
