//! Overload: whether requests wait so long for their handlers to start that further ones should be refused.
//!
//! Only what is ready to start counts: neither a handler that takes long, nor a message behind an earlier one of its own
//! session, says anything about the load. Starting late does, whether for want of processors or of places for handlers.
//! Handlers start about in the order of arrival, so what a further one has to expect is how many wait, times how long a
//! place among them has lasted lately. By the wait of the last one that started alone, which is known only when it is over, the
//! queue swung between full and empty. A message that stands behind others of its session waits once for each of them: few
//! sessions that ask much wait behind themselves. The invariant: with nobody waiting nobody is refused.

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
    /// The same by the number that stood before it.
    place: Duration,
}

/// A request that waits for its start.
#[derive(Clone, Copy)]
pub(crate) struct Waiting {
    since: Instant,
    before: usize,
}

/// Of the longest wait, what must have been waited before anything is refused for what is to be expected: a moment without a
/// processor is no overload, however many requests it leaves.
const PROVEN: u32 = 4;

impl Overload {
    pub(crate) fn new(age_max: Duration) -> Self {
        Self { age_max, state: Mutex::default() }
    }

    /// Whether a request that arrives now should be refused.
    pub(crate) fn is_refusing(&self, now: Instant) -> bool {
        let state = self.state();
        if state.waiting == 0 {
            return false;
        }
        let standing =
            state.moved_at.map_or(Duration::ZERO, |at| now.saturating_duration_since(at));
        let places = u32::try_from(state.waiting + 1).unwrap_or(u32::MAX);
        let is_proven = state.last_wait >= self.age_max / PROVEN;
        standing >= self.age_max || is_proven && state.place.saturating_mul(places) >= self.age_max
    }

    /// How many messages of one session may wait behind the one that runs, so that a further one has its turn in time.
    /// What has started is counted, and not for how long nothing has: a moment without a processor, which a crowd of
    /// sessions survives, must not refuse what one of them sends in a row.
    pub(crate) fn session_places(&self) -> usize {
        let state = self.state();
        if state.waiting == 0 || state.last_wait.is_zero() {
            return usize::MAX;
        }
        (self.age_max.as_micros() / state.last_wait.as_micros().max(1)) as usize
    }

    /// A request is ready for its handler.
    pub(crate) fn handle_ready(&self, now: Instant) -> Waiting {
        let mut state = self.state();
        if state.waiting == 0 {
            state.moved_at = Some(now);
            state.last_wait = Duration::ZERO;
        }
        let waiting = Waiting { since: now, before: state.waiting };
        state.waiting += 1;
        waiting
    }

    /// The handler of a request starts, or was given up.
    pub(crate) fn handle_started(&self, waiting: Waiting, now: Instant) {
        let mut state = self.state();
        debug_assert!(state.waiting > 0, "what starts was ready before");
        state.waiting = state.waiting.saturating_sub(1);
        state.moved_at = Some(now);
        state.last_wait = now.saturating_duration_since(waiting.since);
        let places = u32::try_from(waiting.before + 1).unwrap_or(u32::MAX);
        state.place = (state.place + state.last_wait / places) / 2;
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
        let first = overload.handle_ready(start);
        assert!(!overload.is_refusing(start + 99 * MS));
        assert!(overload.is_refusing(start + 100 * MS), "nothing has started for so long");
        overload.handle_started(first, start + 150 * MS);
        assert!(!overload.is_refusing(start + 150 * MS), "nobody waits");
        overload.handle_ready(start + 10_000 * MS);
        assert!(!overload.is_refusing(start + 10_001 * MS), "an idle time is no wait");
    }

    #[test]
    fn the_longer_handlers_wait_to_start_the_less_one_session_may_queue() {
        let overload = Overload::new(1_000 * MS);
        let start = Instant::now();
        assert_eq!(overload.session_places(), usize::MAX);
        let crowd = [(); 3].map(|()| overload.handle_ready(start));
        assert_eq!(overload.session_places(), usize::MAX, "nothing is known yet");
        overload.handle_started(crowd[0], start + 200 * MS);
        assert_eq!(overload.session_places(), 5);
        overload.handle_started(crowd[1], start + 2_000 * MS);
        assert_eq!(overload.session_places(), 0);
        overload.handle_started(crowd[2], start + 2_000 * MS);
        assert_eq!(overload.session_places(), usize::MAX, "nobody waits");
    }

    #[test]
    fn a_crowd_that_a_short_stop_leaves_is_served() {
        let overload = Overload::new(1_000 * MS);
        let start = Instant::now();
        let crowd: Vec<_> = (0..1_000).map(|_| overload.handle_ready(start)).collect();
        for waiting in crowd {
            let now = start + 200 * MS;
            assert!(!overload.is_refusing(now), "behind {}", waiting.before);
            overload.handle_started(waiting, now);
        }
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
                    queue.push_back(overload.handle_ready(now));
                }
            }
            if now >= busy_until
                && let Some(waiting) = queue.pop_front()
            {
                overload.handle_started(waiting, now);
                longest = longest.max(now - waiting.since);
                busy_until = now + 10 * MS;
                served += 1;
            }
        }
        for waiting in queue {
            overload.handle_started(waiting, start + seconds * 1_000 * MS);
        }
        (served / seconds, longest, refused)
    }

    #[test]
    fn at_three_times_the_capacity_the_capacity_is_served_and_in_time() {
        let overload = Overload::new(200 * MS);
        let start = Instant::now();
        let (served, longest, refused) = simulate(&overload, start, 300, 30);
        assert!(served >= 99, "{served} a second were served");
        assert!(longest <= 400 * MS, "somebody waited {longest:?}");
        assert!(refused >= 5_000, "{refused} were refused");
        let later = start + 31_000 * MS;
        let (served, longest, refused) = simulate(&overload, later, 80, 10);
        assert_eq!((served, refused), (80, 0), "recovery is immediate");
        assert!(longest <= 20 * MS, "somebody waited {longest:?}");
    }
}
