//! The rate limit of one connection: Pitaya's "leaky bucket", which is a sliding log (client protocol 15.2).
//!
//! It counts packets of every kind and answers yes or no; dropping, counting and logging are the caller's. The
//! invariant: in any window of one interval no more than `limit` packets are allowed, and times in the log never
//! decrease.

#![deny(clippy::indexing_slicing)]

/// How many packets in how much time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LimiterRule {
    /// Packets allowed in one interval. 0 means no limit.
    pub limit: u32,
    /// Length of the window in milliseconds.
    pub interval_ms: u64,
}

/// The times of the last packets that were allowed, in a ring. Eight bytes for each packet of the limit,
/// allocated once.
#[derive(Debug, Clone)]
pub struct Limiter {
    interval_ms: u64,
    times_ms: Box<[u64]>,
    /// Where the oldest time stands.
    oldest: usize,
    /// How many times are in the ring.
    length: usize,
    newest_ms: u64,
}

impl Limiter {
    /// An empty log. Allocates the ring.
    pub fn new(rule: &LimiterRule) -> Self {
        Self {
            interval_ms: rule.interval_ms,
            times_ms: vec![0; rule.limit as usize].into_boxed_slice(),
            oldest: 0,
            length: 0,
            newest_ms: 0,
        }
    }

    /// Whether a packet that arrives now may pass; if so it is noted. A packet exactly one interval after the
    /// oldest passes.
    ///
    /// A clock that stands still only fills the window. When it jumps backwards the whole log moves with it, so nobody
    /// is locked out for the length of the jump. Never allocates.
    pub fn allow(&mut self, now_ms: u64) -> bool {
        if self.times_ms.is_empty() {
            return true;
        }
        self.follow_clock(now_ms);
        if self.length < self.times_ms.len() {
            self.push(now_ms);
            return true;
        }
        let oldest_ms = self.times_ms.get(self.oldest).copied().unwrap_or(now_ms);
        if now_ms.saturating_sub(oldest_ms) < self.interval_ms {
            return false;
        }
        self.oldest = self.wrap(self.oldest + 1);
        self.length -= 1;
        self.push(now_ms);
        true
    }

    /// How long ago each noted packet was, in milliseconds, the oldest first. For handing the connection over.
    pub fn ages(&self, now_ms: u64) -> Vec<u64> {
        let now_ms = now_ms.max(self.newest_ms);
        (0..self.length)
            .filter_map(|offset| self.times_ms.get(self.wrap(self.oldest + offset)))
            .map(|time_ms| now_ms.saturating_sub(*time_ms))
            .collect()
    }

    /// A log with these ages, as [`Limiter::ages`] gave them. When there are more than the rule's limit the
    /// youngest count.
    pub fn from_ages(rule: &LimiterRule, ages: &[u64], now_ms: u64) -> Self {
        let mut limiter = Self::new(rule);
        let skipped = ages.len().saturating_sub(limiter.times_ms.len());
        let mut youngest_ms = u64::MAX;
        for age_ms in ages.iter().skip(skipped) {
            youngest_ms = youngest_ms.min(*age_ms);
            limiter.push(now_ms.saturating_sub(youngest_ms));
        }
        limiter
    }

    fn push(&mut self, now_ms: u64) {
        debug_assert!(self.length < self.times_ms.len(), "the caller made room");
        let index = self.wrap(self.oldest + self.length);
        if let Some(slot) = self.times_ms.get_mut(index) {
            *slot = now_ms;
            self.length += 1;
            self.newest_ms = now_ms;
        }
    }

    fn follow_clock(&mut self, now_ms: u64) {
        let Some(jump_ms) = self.newest_ms.checked_sub(now_ms).filter(|jump_ms| *jump_ms > 0)
        else {
            return;
        };
        for time_ms in &mut self.times_ms {
            *time_ms = time_ms.saturating_sub(jump_ms);
        }
        self.newest_ms = now_ms;
    }

    fn wrap(&self, index: usize) -> usize {
        if index >= self.times_ms.len() { index - self.times_ms.len() } else { index }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULE: LimiterRule = LimiterRule { limit: 3, interval_ms: 1_000 };

    #[test]
    fn one_a_second_passes_again_exactly_a_second_later() {
        let mut limiter = Limiter::new(&LimiterRule { limit: 1, interval_ms: 1_000 });
        assert!(limiter.allow(200));
        assert!(!limiter.allow(1_199));
        assert!(limiter.allow(1_200));
    }

    #[test]
    fn rejected_packets_do_not_extend_the_wait() {
        let mut limiter = Limiter::new(&RULE);
        assert!((0..3).all(|now_ms| limiter.allow(now_ms)));
        assert!((3..1_000).all(|now_ms| !limiter.allow(now_ms)));
        assert!(limiter.allow(1_000));
        assert!(limiter.allow(1_001) && limiter.allow(1_002) && !limiter.allow(1_003));
    }

    #[test]
    fn no_window_ever_holds_more_than_the_limit() {
        let mut random = fastrand::Rng::with_seed(11);
        let rule = LimiterRule { limit: 20, interval_ms: 1_000 };
        let mut limiter = Limiter::new(&rule);
        let mut allowed = Vec::new();
        let mut now_ms = 0;
        for _ in 0..20_000 {
            now_ms += random.u64(0..60);
            if limiter.allow(now_ms) {
                allowed.push(now_ms);
            }
        }
        assert!(allowed.len() > 10_000);
        assert!(allowed.windows(21).all(|window| window[20] - window[0] >= rule.interval_ms));
    }

    #[test]
    fn a_clock_that_stands_still_or_jumps_locks_nobody_out() {
        let mut limiter = Limiter::new(&RULE);
        assert!((0..3).all(|_| limiter.allow(5_000)));
        assert!(!limiter.allow(5_000), "the window is full while time stands still");
        assert!(!limiter.allow(10), "a jump back does not empty the window");
        assert!(limiter.allow(1_010), "but one interval later it is open");
        assert!(limiter.allow(u64::MAX));
        assert!(limiter.allow(u64::MAX) && limiter.allow(u64::MAX) && !limiter.allow(u64::MAX));
    }

    #[test]
    fn ages_move_a_log_to_another_clock() {
        let mut limiter = Limiter::new(&RULE);
        for now_ms in [100, 300, 600, 1_100] {
            assert!(limiter.allow(now_ms));
        }
        assert_eq!(limiter.ages(1_200), [900, 600, 100]);
        let mut moved = Limiter::from_ages(&RULE, &limiter.ages(1_200), 50_000);
        assert_eq!(moved.ages(50_000), [900, 600, 100]);
        assert!(!moved.allow(50_099));
        assert!(moved.allow(50_100));

        let smaller = LimiterRule { limit: 2, interval_ms: 1_000 };
        assert_eq!(Limiter::from_ages(&smaller, &[900, 600, 100], 50_000).ages(50_000), [600, 100]);
    }

    #[test]
    fn a_limit_of_zero_lets_everything_pass() {
        let rule = LimiterRule { limit: 0, interval_ms: 1_000 };
        let mut limiter = Limiter::from_ages(&rule, &[1, 2], 0);
        assert!((0..1_000).all(|_| limiter.allow(0)));
        assert!(limiter.ages(0).is_empty());
    }
}
