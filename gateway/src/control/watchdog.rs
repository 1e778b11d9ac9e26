//! The watchdog: says when a reactor does not turn any more, and when it does again.
//!
//! A reactor turns at least every half second, whatever it has to do, and counts its turns; one whose count has rested
//! for a second hangs in a system call, in code of the application, or in a defect of ours, or has no core to run on.
//! Nothing is done about it: a thread cannot be ended from outside, and only an operator knows whether its players are
//! worth waiting for.
//!
//! The invariant: a reactor is not accused of time in which nobody looked. Where the process or the machine stood
//! still, so did the watchdog.

use std::convert::Infallible;
use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval};

use crate::clock::Clock;
use crate::meter::Meters;

/// Time between looks.
const LOOK: Duration = Duration::from_millis(250);
/// A look that comes later than this after the one before says that the watchdog stood still itself, ms.
const AWAY_MS: u64 = 500;
/// A reactor without a turn for so long is reported, ms. More than the half second between two turns at most (that is
/// after a pause of the process, `reactor/ticks.rs`), and more than one look may count.
const STALL_MS: u64 = 1_000;

/// What is to be said of a reactor. Times are what the watchdog has seen, so up to two looks short.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Notice {
    /// It has not turned for this long; said once.
    Stalled { reactor: usize, stood_ms: u64 },
    /// It was reported and turns again.
    TurnsAgain { reactor: usize, stood_ms: u64 },
}

/// What is known of all reactors; no clock in it.
struct Watchdog {
    looked_at_ms: u64,
    reactors: Vec<Watched>,
}

struct Watched {
    turns: u64,
    /// For how long `turns` has been the same.
    stood_ms: u64,
    is_reported: bool,
}

impl Watchdog {
    /// Begins with the turns that each reactor has counted so far.
    fn new(now_ms: u64, turns: &[u64]) -> Self {
        let watched = |turns: &u64| Watched { turns: *turns, stood_ms: 0, is_reported: false };
        Self { looked_at_ms: now_ms, reactors: turns.iter().map(watched).collect() }
    }

    /// Compares with the last look; `turns` are those of the same reactors in the same order.
    fn look(&mut self, now_ms: u64, turns: &[u64]) -> Vec<Notice> {
        debug_assert_eq!(turns.len(), self.reactors.len(), "reactors neither come nor go");
        let since_ms = now_ms.saturating_sub(self.looked_at_ms);
        self.looked_at_ms = now_ms;
        let counted_ms = if since_ms > AWAY_MS { 0 } else { since_ms };
        let mut notices = Vec::new();
        for (reactor, (watched, turns)) in self.reactors.iter_mut().zip(turns).enumerate() {
            if watched.turns == *turns {
                watched.stood_ms += counted_ms;
                if watched.stood_ms >= STALL_MS && !watched.is_reported {
                    watched.is_reported = true;
                    notices.push(Notice::Stalled { reactor, stood_ms: watched.stood_ms });
                }
                continue;
            }
            if watched.is_reported {
                notices.push(Notice::TurnsAgain { reactor, stood_ms: watched.stood_ms });
            }
            *watched = Watched { turns: *turns, stood_ms: 0, is_reported: false };
        }
        notices
    }

    /// How many reactors are reported and do not turn.
    fn stalled(&self) -> usize {
        self.reactors.iter().filter(|watched| watched.is_reported).count()
    }
}

/// Looks at the reactors until it is dropped.
pub(super) async fn watch(meters: Meters, clock: Clock) -> Infallible {
    let mut watchdog = Watchdog::new(clock.read().ms, &meters.turns());
    // Both are there from the start, so that the first stall is an increase.
    meters.set_stalled(0);
    meters.count_stalls(0);
    let mut look = interval(LOOK);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        look.tick().await;
        let notices = watchdog.look(clock.read().ms, &meters.turns());
        if notices.is_empty() {
            continue;
        }
        let is_new = |notice: &&Notice| matches!(notice, Notice::Stalled { .. });
        meters.count_stalls(notices.iter().filter(is_new).count());
        meters.set_stalled(watchdog.stalled());
        notices.into_iter().for_each(say);
    }
}

fn say(notice: Notice) {
    match notice {
        Notice::Stalled { reactor, stood_ms } => tracing::error!(
            reactor,
            stood_ms,
            "the reactor does not turn: its clients get no answers, others are served; look what the thread \
             reactor-{reactor} does (gdb, /proc/PID/task/TID/stack): code of the application that waits, a core that \
             somebody else uses, or a defect of ours; if it does not turn again soon, restart the gateway"
        ),
        Notice::TurnsAgain { reactor, stood_ms } => {
            tracing::info!(reactor, stood_ms, "the reactor turns again");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOOK_MS: u64 = LOOK.as_millis() as u64;

    fn stalled(reactor: usize, stood_ms: u64) -> Vec<Notice> {
        vec![Notice::Stalled { reactor, stood_ms }]
    }

    fn turns_again(reactor: usize, stood_ms: u64) -> Vec<Notice> {
        vec![Notice::TurnsAgain { reactor, stood_ms }]
    }

    #[test]
    fn a_reactor_that_stands_for_a_second_is_reported_once_and_again_when_it_turns() {
        let mut watchdog = Watchdog::new(0, &[7, 7]);
        assert_eq!(watchdog.look(500, &[8, 7]), []);
        assert_eq!(watchdog.look(999, &[9, 7]), [], "one millisecond short");
        assert_eq!(watchdog.look(1_000, &[9, 7]), stalled(1, 1_000));
        assert_eq!(watchdog.stalled(), 1);
        assert_eq!(watchdog.look(1_400, &[10, 7]), [], "it is known");
        assert_eq!(watchdog.look(1_500, &[11, 8]), turns_again(1, 1_400));
        assert_eq!(watchdog.stalled(), 0);
        // The same reactor may do it again, and all of it counts from its last turn.
        assert_eq!(watchdog.look(2_000, &[12, 8]), []);
        assert_eq!(watchdog.look(2_499, &[13, 8]), []);
        assert_eq!(watchdog.look(2_500, &[14, 8]), stalled(1, 1_000));
    }

    #[test]
    fn all_reactors_may_stand_at_once() {
        let mut watchdog = Watchdog::new(0, &[1, 2, 3]);
        assert_eq!(watchdog.look(500, &[1, 2, 3]), []);
        let notices = watchdog.look(1_000, &[1, 2, 3]);
        assert_eq!(notices, [0, 1, 2].map(|reactor| Notice::Stalled { reactor, stood_ms: 1_000 }));
        assert_eq!(watchdog.stalled(), 3);
    }

    #[test]
    fn one_turn_a_look_is_enough_and_a_count_that_wraps_is_a_turn() {
        let mut watchdog = Watchdog::new(0, &[u64::MAX - 20]);
        for look in 1..=40 {
            let turns = (u64::MAX - 20).wrapping_add(look);
            assert_eq!(watchdog.look(look * AWAY_MS, &[turns]), [], "look {look}");
        }
    }

    #[test]
    fn a_pause_of_the_whole_process_accuses_nobody() {
        for pause_ms in [AWAY_MS + 1, 5_000, 86_400_000] {
            let mut watchdog = Watchdog::new(0, &[1]);
            let resumed_ms = pause_ms + LOOK_MS;
            assert_eq!(watchdog.look(LOOK_MS, &[1]), []);
            assert_eq!(watchdog.look(resumed_ms, &[1]), [], "it has had no time to turn yet");
            assert_eq!(watchdog.look(resumed_ms + AWAY_MS, &[1]), []);
            assert_eq!(watchdog.look(resumed_ms + AWAY_MS + LOOK_MS, &[2]), []);
        }
    }

    #[test]
    fn a_reactor_that_stands_around_a_pause_is_reported_without_the_pause() {
        let mut watchdog = Watchdog::new(0, &[1]);
        assert_eq!(watchdog.look(500, &[1]), []);
        assert_eq!(watchdog.look(60_000, &[1]), []);
        assert_eq!(watchdog.look(60_499, &[1]), []);
        assert_eq!(watchdog.look(60_500, &[1]), stalled(0, 1_000));
        // Paused again: that it was reported stays, and the pause does not count.
        assert_eq!(watchdog.look(90_000, &[1]), []);
        assert_eq!(watchdog.look(90_250, &[2]), turns_again(0, 1_000));
    }

    #[test]
    fn a_clock_that_stands_counts_nothing() {
        let mut watchdog = Watchdog::new(1_000, &[1]);
        for _ in 0..100 {
            assert_eq!(watchdog.look(1_000, &[1]), []);
        }
        assert_eq!(watchdog.look(0, &[1]), [], "nor does one that goes back");
    }
}
