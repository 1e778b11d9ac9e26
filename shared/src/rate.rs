//! A rate: so many a second on average, a second's worth at once; one number of state, no ring of times.
//!
//! The generic cell rate algorithm: what is kept is the time at which everything let through so far would have been due
//! at an even pace. It says yes or no; refusing and counting are the caller's. The invariant: in any span of `t` seconds
//! at most `per_second * (t + 1)` pass. [`RateCell`] is shared by threads without a lock; Pitaya's sliding log, which is
//! exact to the packet and needs a ring a connection, is limiter.rs.

use std::sync::atomic::{AtomicU64, Ordering};

const SECOND_US: u64 = 1_000_000;

/// How many a second. At most a million: times are counted in µs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    interval_us: u64,
    /// How far ahead of the even pace a burst may be.
    tolerance_us: u64,
}

impl Rate {
    /// A rate of `per_second`, of which that many may come at once; `None` for 0, which means no limit.
    pub fn new(per_second: u32) -> Option<Self> {
        let interval_us = SECOND_US.checked_div(u64::from(per_second))?.max(1);
        Some(Self { interval_us, tolerance_us: SECOND_US - interval_us })
    }

    /// What is due after one more at `now_us`, or `None` when that would be too early.
    fn next_due_us(self, due_us: u64, now_us: u64) -> Option<u64> {
        (due_us <= now_us.saturating_add(self.tolerance_us))
            .then(|| due_us.max(now_us).saturating_add(self.interval_us))
    }
}

/// The state of one rate, for one thread. Eight bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LocalRate {
    due_us: u64,
}

impl LocalRate {
    /// Whether one more may pass now; if so it is noted. A clock that jumps back is met by waiting no longer than the
    /// burst lasts.
    pub fn allow(&mut self, rate: Rate, now_us: u64) -> bool {
        let due_us = self.due_us.min(now_us.saturating_add(SECOND_US));
        let next = rate.next_due_us(due_us, now_us);
        self.due_us = next.unwrap_or(due_us);
        next.is_some()
    }
}

/// The state of one rate that several threads count on.
#[derive(Debug, Default)]
pub struct RateCell {
    due_us: AtomicU64,
}

impl RateCell {
    /// Whether one more may pass now; if so it is noted. Never blocks: a thread that loses the race looks again.
    ///
    /// Relaxed: the cell stands for itself, nothing is published with it.
    pub fn allow(&self, rate: Rate, now_us: u64) -> bool {
        let clamped = |due_us: u64| due_us.min(now_us.saturating_add(SECOND_US));
        let next = |due_us: u64| rate.next_due_us(clamped(due_us), now_us);
        let before = self.due_us.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |due_us| {
            Some(next(due_us).unwrap_or_else(|| clamped(due_us)))
        });
        // The closure always gives a value, so both arms hold the one before.
        let (Ok(before) | Err(before)) = before;
        next(before).is_some()
    }

    /// Notes one that has happened and cannot be refused, such as a connection that the kernel has accepted; returns
    /// whether the next may come.
    pub fn note(&self, rate: Rate, now_us: u64) -> bool {
        let noted = |due_us: u64| due_us.max(now_us).saturating_add(rate.interval_us);
        let before = self
            .due_us
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |due_us| Some(noted(due_us)));
        // The closure always gives a value, so both arms hold the one before.
        let (Ok(before) | Err(before)) = before;
        rate.next_due_us(noted(before), now_us).is_some()
    }

    /// Whether one more could pass now; nothing is noted.
    pub fn is_open(&self, rate: Rate, now_us: u64) -> bool {
        rate.next_due_us(self.due_us.load(Ordering::Relaxed), now_us).is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START_US: u64 = 86_400_000_000;

    #[test]
    fn a_second_s_worth_passes_at_once_and_then_an_even_pace() {
        let rate = Rate::new(10).unwrap();
        let (mut local, shared) = (LocalRate::default(), RateCell::default());
        for _ in 0..10 {
            assert!(local.allow(rate, START_US) && shared.allow(rate, START_US));
        }
        for early_us in [0, 99_999] {
            assert!(!local.allow(rate, START_US + early_us));
            assert!(!shared.allow(rate, START_US + early_us));
        }
        assert!(local.allow(rate, START_US + 100_000) && shared.allow(rate, START_US + 100_000));
        assert!(
            !local.allow(rate, START_US + 100_000) && !shared.is_open(rate, START_US + 100_000)
        );
    }

    #[test]
    fn one_a_second_and_a_million_a_second_are_held() {
        let (slow, fast) = (Rate::new(1).unwrap(), Rate::new(1_000_000).unwrap());
        let mut local = LocalRate::default();
        assert!(local.allow(slow, START_US) && !local.allow(slow, START_US + 999_999));
        assert!(local.allow(slow, START_US + 1_000_000));
        let cell = RateCell::default();
        let passed = (0..2_000_000).filter(|_| cell.allow(fast, START_US)).count();
        assert_eq!(passed, 1_000_000);
        assert!(Rate::new(0).is_none(), "0 is no limit");
    }

    #[test]
    fn no_span_ever_lets_more_than_its_share_pass() {
        let mut random = fastrand::Rng::with_seed(7);
        let rate = Rate::new(50).unwrap();
        let (mut local, mut now_us, mut passed) = (LocalRate::default(), START_US, Vec::new());
        for _ in 0..20_000 {
            now_us += random.u64(0..15_000);
            if local.allow(rate, now_us) {
                passed.push(now_us);
            }
        }
        assert!(passed.len() > 5_000);
        assert!(passed.windows(101).all(|span| span[100] - span[0] >= 980_000));
    }

    #[test]
    fn a_clock_that_jumps_back_locks_nobody_out_for_longer_than_a_second() {
        let rate = Rate::new(5).unwrap();
        let (mut local, cell) = (LocalRate::default(), RateCell::default());
        assert!(local.allow(rate, START_US * 2) && cell.allow(rate, START_US * 2));
        assert!(!local.allow(rate, START_US) && !cell.allow(rate, START_US));
        assert!(local.allow(rate, START_US + 1_000_000));
        assert!(cell.allow(rate, START_US + 1_000_000));
    }

    #[test]
    fn what_cannot_be_refused_is_noted_as_debt() {
        let rate = Rate::new(2).unwrap();
        let cell = RateCell::default();
        assert!(cell.note(rate, START_US));
        assert!(!cell.note(rate, START_US));
        assert!(!cell.note(rate, START_US));
        assert!(
            !cell.is_open(rate, START_US + 999_999) && cell.is_open(rate, START_US + 1_000_000)
        );
    }

    #[test]
    fn threads_together_get_no_more_than_one_would() {
        let (rate, cell) = (Rate::new(1_000).unwrap(), RateCell::default());
        let passed: usize = std::thread::scope(|scope| {
            let count = || (0..2_000).filter(|_| cell.allow(rate, START_US)).count();
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(count)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        assert_eq!(passed, 1_000);
    }
}
