//! Overload: whether requests wait so long for their handlers to start that further ones should be refused.
//!
//! Only what is ready to start counts: neither a handler that takes long, nor a message behind an earlier one of its own
//! session, says anything about the load. Starting late does, whether for want of processors or of places for handlers.
//! Handlers start about in the order of arrival, so the wait of the last one that started is what a further one has to
//! expect. The invariant: with nobody waiting nobody is refused.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

pub(crate) struct Overload {
    age_max: Duration,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Ready requests whose handlers have not started.
    waiting: usize,
    /// When the first of them came, or a later one started; none before anything has come.
    moved_at: Option<Instant>,
    /// How long the last one that started had waited; zero when it was the first of a new crowd.
    last_wait: Duration,
}

impl Overload {
    pub(crate) fn new(age_max: Duration) -> Self {
        Self { age_max, state: Mutex::default() }
    }

    /// Whether a request that arrives now should be refused.
    pub(crate) fn is_refusing(&self, now: Instant) -> bool {
        let state = self.state();
        let standing =
            state.moved_at.map_or(Duration::ZERO, |at| now.saturating_duration_since(at));
        state.waiting > 0 && state.last_wait.max(standing) >= self.age_max
    }

    /// A request is ready for its handler.
    pub(crate) fn handle_ready(&self, now: Instant) {
        let mut state = self.state();
        if state.waiting == 0 {
            state.moved_at = Some(now);
            state.last_wait = Duration::ZERO;
        }
        state.waiting += 1;
    }

    /// The handler of a request that was ready since then starts, or was given up.
    pub(crate) fn handle_started(&self, ready_at: Instant, now: Instant) {
        let mut state = self.state();
        debug_assert!(state.waiting > 0, "what starts was ready before");
        state.waiting = state.waiting.saturating_sub(1);
        state.moved_at = Some(now);
        state.last_wait = now.saturating_duration_since(ready_at);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn a_standing_queue_refuses_and_an_empty_one_never_does() {
        let overload = Overload::new(100 * MS);
        let start = Instant::now();
        assert!(!overload.is_refusing(start));
        overload.handle_ready(start);
        assert!(!overload.is_refusing(start + 99 * MS));
        assert!(overload.is_refusing(start + 100 * MS), "nothing has started for so long");
        overload.handle_started(start, start + 150 * MS);
        assert!(!overload.is_refusing(start + 150 * MS), "nobody waits");
        overload.handle_ready(start + 10_000 * MS);
        assert!(!overload.is_refusing(start + 10_001 * MS), "an idle time is no wait");
    }

    /// Serves one request in 10 ms, while `per_second` arrive evenly; returns how many were served in each second, the
    /// longest wait, and the number of refusals.
    fn simulate(
        overload: &Overload,
        start: Instant,
        per_second: u32,
        seconds: u32,
    ) -> (u32, Duration, u32) {
        let (mut queue, mut busy_until) = (VecDeque::new(), start);
        let (mut served, mut longest, mut refused) = (0, Duration::ZERO, 0);
        for tick in 0..seconds * 1_000 {
            let now = start + tick * MS;
            let arrivals = (tick + 1) * per_second / 1_000 - tick * per_second / 1_000;
            for _ in 0..arrivals {
                if overload.is_refusing(now) {
                    refused += 1;
                } else {
                    overload.handle_ready(now);
                    queue.push_back(now);
                }
            }
            if now >= busy_until
                && let Some(ready_at) = queue.pop_front()
            {
                overload.handle_started(ready_at, now);
                longest = longest.max(now - ready_at);
                busy_until = now + 10 * MS;
                served += 1;
            }
        }
        for ready_at in queue {
            overload.handle_started(ready_at, start + seconds * 1_000 * MS);
        }
        (served / seconds, longest, refused)
    }

    #[test]
    fn at_three_times_the_capacity_the_capacity_is_served_and_in_time() {
        let overload = Overload::new(200 * MS);
        let start = Instant::now();
        let (served, longest, refused) = simulate(&overload, start, 300, 30);
        assert!(served >= 90, "{served} a second were served");
        assert!(longest <= 700 * MS, "somebody waited {longest:?}");
        assert!(refused >= 5_000, "{refused} were refused");
        let later = start + 31_000 * MS;
        let (served, longest, refused) = simulate(&overload, later, 80, 10);
        assert_eq!((served, refused), (80, 0), "recovery is immediate");
        assert!(longest <= 20 * MS, "somebody waited {longest:?}");
    }
}
