//! Timers, by a clock that the tests move.

use std::num::NonZeroU64;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::time::sleep;
use worker::prelude::*;

use crate::Journal;
use crate::support::{Harness, request};

const SECOND: Duration = Duration::from_secs(1);

fn three() -> NonZeroU64 {
    NonZeroU64::new(3).unwrap()
}

#[tokio::test(start_paused = true)]
async fn timers_of_the_builder_run_at_their_rates_until_the_end() {
    let journal = Journal::default();
    let is_due = Arc::new(AtomicBool::new(false));
    let asked = Arc::clone(&is_due);
    let app = App::new("room")
        .every(SECOND, journal.step("every"))
        .once(SECOND / 2, journal.step("once"))
        .times(SECOND / 4, three(), journal.step("times"))
        .when(move || asked.load(Ordering::Relaxed), journal.step("when"));
    let harness = Harness::new(app).await;
    sleep(SECOND * 3 / 5).await;
    let mut ran = journal.take();
    ran.sort();
    assert_eq!(ran, ["once", "times", "times"]);
    sleep(SECOND * 3).await;
    assert_eq!(journal.take(), ["times", "every", "every", "every"]);
    is_due.store(true, Ordering::Relaxed);
    sleep(SECOND).await;
    let mut ran = journal.take();
    ran.sort();
    assert_eq!(ran, ["every", "when"]);
    harness.service.shut_down(SECOND).await;
    sleep(SECOND * 5).await;
    assert!(journal.take().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_timer_that_fails_or_panics_runs_again_and_a_slow_one_never_twice_at_once() {
    let journal = Journal::default();
    let (fails, panics, slow) = (journal.clone(), journal.clone(), journal.clone());
    let app = App::new("room")
        .every(SECOND, move || {
            fails.note("fails");
            async { Err::<(), _>(Error::unknown("on purpose")) }
        })
        .every(SECOND, move || {
            panics.note("panics");
            async { assert!(false_of(1), "on purpose") }
        })
        .every(SECOND, move || {
            let journal = slow.clone();
            async move {
                journal.note("slow begins");
                sleep(SECOND * 5 / 2).await;
                journal.note("slow ends");
            }
        })
        .when(|| panic!("a condition that panics"), journal.step("never"));
    let harness = Harness::new(app).await;
    sleep(SECOND * 39 / 10).await;
    let ran = journal.take();
    let count = |what: &str| ran.iter().filter(|step| *step == what).count();
    assert_eq!((count("fails"), count("panics"), count("never")), (3, 3, 0));
    // The turn at two seconds is made up for, the one at three is skipped.
    assert_eq!((count("slow begins"), count("slow ends")), (2, 1));
    assert!(harness.service.counters().read(worker::Counter::Panicked) >= 3);
}

/// Keeps the compiler from seeing that an assertion always fails.
fn false_of(number: u8) -> bool {
    number == 0
}

#[tokio::test(start_paused = true)]
async fn timers_are_made_and_stopped_by_handlers() {
    let journal = Journal::default();
    let (step, again) = (journal.step("tick"), journal.step("once"));
    let app = App::new("room").on("timer.make", move |timers: Timers| {
        let (step, again) = (step.clone(), again.clone());
        async move {
            let forever = timers.every(SECOND, step.clone())?;
            // Dropping the handle stops nothing.
            timers.once(SECOND, again)?;
            let stopped = timers.every(SECOND, step.clone())?;
            stopped.stop();
            stopped.stop();
            let short = timers.every(Duration::from_micros(999), step.clone()).unwrap_err();
            assert_eq!(short.code, "PIT-400");
            let missing = timers.once(SECOND, async |_: State<u64>| {}).unwrap_err();
            assert!(missing.msg.contains("State<u64>"));
            let two = NonZeroU64::new(2).unwrap();
            let counted = timers.times(SECOND, two, async || {})?;
            tokio::spawn(async move {
                sleep(SECOND * 5 / 2).await;
                forever.stop();
                assert!(counted.is_over());
            });
            Ok::<_, Error>(1)
        }
    });
    let harness = Harness::new(app).await;
    harness.send(&request(1, "room.timer.make", "")).data().await;
    sleep(SECOND * 6).await;
    let mut ran = journal.take();
    ran.sort();
    assert_eq!(ran, ["once", "tick", "tick"]);
    harness.service.shut_down(SECOND).await;
    let late = harness.send(&request(1, "room.timer.make", "")).error().await;
    assert_eq!(late.0, "PIT-503");
}

#[tokio::test]
async fn an_interval_below_a_millisecond_stops_the_start() {
    let app = App::new("room").every(Duration::ZERO, async || {});
    assert_eq!(Harness::try_new(app).await.err().unwrap().code, "PIT-400");
}
