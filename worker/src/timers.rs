//! Timers: functions that run by the clock instead of by a message.
//!
//! Each timer is a task of its own, owned by the set of its process, which ends them all before the modules and
//! components end. A timer runs at a fixed rate and never twice at the same time: a run that takes longer than the
//! interval makes up for one turn it missed and skips the others. A function that fails or panics is logged and runs again at its next turn. Unlike
//! Pitaya's there is no global tick, so a timer is as precise as the clock of the runtime, about a millisecond.

use std::num::NonZeroU64;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use shared::error::code;
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, MissedTickBehavior, interval_at};

use crate::call::{Call, Context, Environment};
use crate::error::{Error, Result};
use crate::extract::FromCall;
use crate::handler::{AnyHandler, Handler};
use crate::panic::error_of_panic;

/// Timers of one process at most; a leak of timers is found before it is felt.
const TIMERS_MAX: usize = 100_000;

/// The shortest interval. A shorter one would be a busy loop.
const INTERVAL_MIN: Duration = Duration::from_millis(1);

/// When a timer's condition is looked at; Pitaya's tick.
pub(crate) const CONDITION_INTERVAL: Duration = Duration::from_secs(1);

/// Asked at each turn of a conditional timer.
pub(crate) type Condition = Box<dyn FnMut() -> bool + Send + Sync>;

/// When a timer runs.
pub(crate) struct Schedule {
    pub(crate) interval: Duration,
    /// How many runs; none for ever.
    pub(crate) runs: Option<NonZeroU64>,
    pub(crate) condition: Option<Condition>,
}

/// A timer that was given to the builder.
pub(crate) struct TimerPlan {
    pub(crate) schedule: Schedule,
    pub(crate) run: AnyHandler,
}

/// The timers of a process.
#[derive(Default)]
pub(crate) struct TimerSet(Mutex<State>);

#[derive(Default)]
struct State {
    tasks: JoinSet<()>,
    is_closed: bool,
}

/// A timer that runs. Dropping it stops nothing.
#[derive(Debug, Clone)]
pub struct Timer {
    stop: Arc<watch::Sender<bool>>,
    task: AbortHandle,
}

impl Timer {
    /// No more runs. One that is under way goes on to its end. Stopping twice does nothing.
    pub fn stop(&self) {
        self.stop.send_replace(true);
    }

    /// Whether it has ended: stopped, or all its runs made.
    pub fn is_over(&self) -> bool {
        self.task.is_finished()
    }
}

/// Extractor with which timers are made while the server runs. Those that exist from its start on are better given to
/// the builder: [`App::every`](crate::App::every) and its like.
#[derive(Clone)]
pub struct Timers(Arc<Context>);

impl FromCall for Timers {
    fn from_call(call: &Call) -> Result<Self> {
        Ok(Self(Arc::clone(call.context())))
    }
}

impl Timers {
    /// Runs `f` every `interval`, for the first time after one interval. Fails with `PIT-400` for an interval below 1 ms,
    /// and with `PIT-503` when there are 100,000 timers or the server is ending. The function takes extractors, as hooks
    /// do.
    pub fn every<M: 'static>(&self, interval: Duration, f: impl Handler<M>) -> Result<Timer> {
        self.start(Schedule { interval, runs: None, condition: None }, f)
    }

    /// Runs `f` once, after `delay`. Fails as [`Timers::every`].
    pub fn once<M: 'static>(&self, delay: Duration, f: impl Handler<M>) -> Result<Timer> {
        self.times(delay, NonZeroU64::MIN, f)
    }

    /// Runs `f` `runs` times, every `interval`. Fails as [`Timers::every`].
    pub fn times<M: 'static>(
        &self,
        interval: Duration,
        runs: NonZeroU64,
        f: impl Handler<M>,
    ) -> Result<Timer> {
        self.start(Schedule { interval, runs: Some(runs), condition: None }, f)
    }

    /// Asks `condition` every `interval` and runs `f` whenever it says yes. Fails as [`Timers::every`].
    pub fn when<M: 'static>(
        &self,
        interval: Duration,
        condition: impl FnMut() -> bool + Send + Sync + 'static,
        f: impl Handler<M>,
    ) -> Result<Timer> {
        self.start(Schedule { interval, runs: None, condition: Some(Box::new(condition)) }, f)
    }

    fn start<M: 'static>(&self, schedule: Schedule, f: impl Handler<M>) -> Result<Timer> {
        let environment = &self.0.environment;
        let run = AnyHandler::new(f);
        if let Some(missing) = run.missing(&environment.states) {
            return Err(Error::unknown(missing));
        }
        environment.timers.start(TimerPlan { schedule, run }, environment)
    }
}

impl TimerSet {
    pub(crate) fn start(&self, plan: TimerPlan, environment: &Arc<Environment>) -> Result<Timer> {
        if plan.schedule.interval < INTERVAL_MIN {
            let text = format!("an interval of {:?} is too short", plan.schedule.interval);
            return Err(Error::new(code::BAD_REQUEST, text));
        }
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        while state.tasks.try_join_next().is_some() {}
        if state.is_closed || state.tasks.len() >= TIMERS_MAX {
            return Err(Error::new(code::BUSY, "no more timers can be made"));
        }
        let stop = Arc::new(watch::Sender::new(false));
        // Kept in the task, so that a handle that is dropped stops nothing.
        let kept = Arc::clone(&stop);
        // A task must not keep alive what waits for it.
        let environment = Arc::downgrade(environment);
        let task = state.tasks.spawn(async move {
            let TimerPlan { mut schedule, run } = plan;
            let mut turns = interval_at(Instant::now() + schedule.interval, schedule.interval);
            turns.set_missed_tick_behavior(MissedTickBehavior::Skip);
            let mut left = schedule.runs.map(NonZeroU64::get);
            let mut stopped = kept.subscribe();
            while left != Some(0) {
                tokio::select! {
                    _ = turns.tick() => {}
                    _ = stopped.wait_for(|is_stopped| *is_stopped) => return,
                }
                let Some(environment) = environment.upgrade() else { return };
                if *stopped.borrow() || !is_due(&mut schedule.condition, &environment) {
                    continue;
                }
                turn(&run, &environment).await;
                left = left.map(|left| left - 1);
            }
        });
        Ok(Timer { stop, task })
    }

    /// Ends all timers at their next pause; a run under way is dropped where it waits. No new ones can be made.
    pub(crate) async fn close(&self) {
        let mut tasks = {
            let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            state.is_closed = true;
            std::mem::take(&mut state.tasks)
        };
        tasks.shutdown().await;
    }
}

/// A condition that panics says no.
fn is_due(condition: &mut Option<Condition>, environment: &Environment) -> bool {
    let Some(condition) = condition else { return true };
    let asked = std::panic::catch_unwind(AssertUnwindSafe(condition));
    asked.unwrap_or_else(|_| {
        environment.note_panic("", "the condition of a timer");
        false
    })
}

async fn turn(run: &AnyHandler, environment: &Arc<Environment>) {
    let call = Call::new(Arc::new(Context::of_hook(Arc::clone(environment))), Bytes::new());
    let outcome = AssertUnwindSafe(async { run.call(call).await }).catch_unwind().await;
    let outcome = outcome.unwrap_or_else(|panic| {
        environment.note_panic("", "timer");
        Err(error_of_panic(&*panic, "timer"))
    });
    if let Err(error) = outcome {
        tracing::error!(%error, "a timer failed");
    }
}
