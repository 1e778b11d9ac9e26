//! Takes jobs from Redis and runs them, each at least once.
//!
//! A job lies in this process's list in Redis from the moment it is taken until its end is written, so a crash loses
//! nothing: the same process takes it up when it starts again under its name, another one when this one has given no
//! sign of life for a minute. Losing Redis ends nothing; the end of a job is written when it is back, and what a lost
//! answer left in the list is found by looking there.
//!
//! Tasks, all owned here: the one that fetches, the one that looks after due and dead ones, and one for each job.

use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use redis::{RedisError, RedisResult};
use shared::metrics::Exporter;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{sleep, timeout};

use super::job::{Arguments, Job, QUEUE};
use super::store::Store;
use crate::call::{Call, Context, Environment};
use crate::error::{Error, Result};
use crate::handler::AnyHandler;
use crate::panic::error_of_panic;

/// How often due and dead jobs are looked for, and a sign of life is given. go-workers' interval.
const LOOK_INTERVAL: Duration = Duration::from_secs(15);
/// Due jobs of one set that are moved in one look.
const DUE_MAX: usize = 500;
/// Pauses while Redis is away.
const PAUSE_MIN: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(2);
/// For the last words to Redis.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(2);

/// The handlers of jobs by route.
pub(crate) type JobHandlers = HashMap<String, AnyHandler>;

/// A running consumer.
pub(crate) struct Consumer {
    shared: Arc<Shared>,
    stop: watch::Sender<bool>,
    fetcher: JoinHandle<()>,
    keeper: JoinHandle<()>,
}

struct Shared {
    /// For looking for jobs, which keeps a connection waiting.
    fetching: Store,
    /// For everything else.
    store: Store,
    handlers: JobHandlers,
    environment: Arc<Environment>,
    exporter: Option<Exporter>,
    concurrency: usize,
    /// Texts of jobs that run, with their number.
    running: Mutex<HashMap<String, usize>>,
}

impl Consumer {
    pub(crate) fn start(
        stores: [Store; 2],
        concurrency: usize,
        handlers: JobHandlers,
        environment: Arc<Environment>,
        exporter: Option<Exporter>,
    ) -> Self {
        let [fetching, store] = stores;
        let running = Mutex::default();
        let concurrency = concurrency.clamp(1, Semaphore::MAX_PERMITS);
        let shared = Arc::new(Shared {
            fetching,
            store,
            handlers,
            environment,
            exporter,
            concurrency,
            running,
        });
        let stop = watch::Sender::new(false);
        let fetcher = tokio::spawn(fetch(Arc::clone(&shared), stop.subscribe()));
        let keeper = tokio::spawn(keep(Arc::clone(&shared), stop.subscribe()));
        Self { shared, stop, fetcher, keeper }
    }

    /// Takes no more jobs, waits for those that run, at most `limit`, and gives back what is left.
    pub(crate) async fn stop(mut self, limit: Duration) {
        self.stop.send_replace(true);
        if timeout(limit, &mut self.fetcher).await.is_err() {
            self.fetcher.abort();
            let _ = self.fetcher.await;
            tracing::warn!("jobs were still running; they are run again");
        }
        self.keeper.abort();
        let _ = self.keeper.await;
        match timeout(LEAVE_TIMEOUT, self.shared.store.leave()).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => tracing::warn!(%error, "jobs in hand stay in Redis for a minute"),
            Err(_) => tracing::warn!("jobs in hand stay in Redis for a minute"),
        }
    }
}

/// Fetches jobs as long as there are free hands for them, and owns the tasks that run them.
async fn fetch(shared: Arc<Shared>, mut stop: watch::Receiver<bool>) {
    let hands = Arc::new(Semaphore::new(shared.concurrency));
    let mut tasks = JoinSet::new();
    let mut trouble = Trouble::new("fetching jobs");
    // At the start, and after a lost answer: jobs may be in hand that nobody runs.
    let mut is_unsure = true;
    while !*stop.borrow() {
        let hand = tokio::select! {
            hand = Arc::clone(&hands).acquire_owned() => hand,
            _ = stop.wait_for(|stop| *stop) => break,
        };
        let Ok(hand) = hand else { break };
        while tasks.try_join_next().is_some() {}
        // Not cancelled by the stop: the answer may hold a job.
        let fetched =
            if is_unsure { shared.forgotten().await } else { shared.fetching.fetch().await };
        match fetched {
            Ok(Some(text)) => {
                trouble.is_over();
                let shared = Arc::clone(&shared);
                shared.begin(&text);
                tasks.spawn(async move { shared.run(text, hand).await });
            }
            Ok(None) => {
                trouble.is_over();
                is_unsure = false;
            }
            Err(error) => {
                is_unsure = true;
                let pause = trouble.pause(&error);
                let _ = timeout(pause, stop.wait_for(|stop| *stop)).await;
            }
        }
    }
    while tasks.join_next().await.is_some() {}
}

/// Moves what is due, gives back what dead processes had in hand, and says that this one lives.
async fn keep(shared: Arc<Shared>, mut stop: watch::Receiver<bool>) {
    let mut trouble = Trouble::new("looking after jobs");
    loop {
        let pause = match shared.look().await {
            Ok(has_more) => {
                trouble.is_over();
                if has_more { Duration::ZERO } else { LOOK_INTERVAL }
            }
            Err(error) => trouble.pause(&error),
        };
        if timeout(pause, stop.wait_for(|stop| *stop)).await.is_ok() {
            return;
        }
    }
}

impl Shared {
    /// A job in hand that nobody runs.
    async fn forgotten(&self) -> RedisResult<Option<String>> {
        let mut in_hand = self.store.in_hand().await?;
        let mut running = self.running().clone();
        // The oldest is last.
        while let Some(text) = in_hand.pop() {
            match running.get_mut(&text) {
                Some(count) if *count > 0 => *count -= 1,
                _ => return Ok(Some(text)),
            }
        }
        Ok(None)
    }

    fn begin(&self, text: &str) {
        *self.running().entry(text.to_owned()).or_default() += 1;
    }

    fn end(&self, text: &str) {
        let mut running = self.running();
        if let Some(count) = running.get_mut(text) {
            *count -= 1;
            if *count == 0 {
                running.remove(text);
            }
        }
    }

    fn running(&self) -> std::sync::MutexGuard<'_, HashMap<String, usize>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs a job and writes its end, as long as it takes: a job whose end is not written runs again.
    async fn run(&self, text: String, hand: OwnedSemaphorePermit) {
        let outcome = match Job::parse(&text) {
            Ok(job) => self.call(&job).await.map_err(|error| (error, Some(job))),
            Err(error) => Err((error, None)),
        };
        let again = outcome.as_ref().err().and_then(|(error, job)| {
            let queue = format!("{}{QUEUE}", self.store.namespace);
            job.as_ref()?.failed(&error.msg, &queue, fastrand::f64())
        });
        if let Err((error, job)) = &outcome {
            let jid = job.as_ref().map(Job::id).unwrap_or_default();
            let is_last = again.is_none();
            tracing::warn!(jid, is_last, %error, "a job failed");
        }
        let mut trouble = Trouble::new("writing the end of a job");
        loop {
            let written = match (&outcome, &again) {
                (Ok(()), _) => self.store.done(&text, "processed").await,
                (Err(_), None) => self.store.done(&text, "failed").await,
                (Err(_), Some((again, due_s))) => self.store.retry(&text, again, *due_s).await,
            };
            match written {
                Ok(()) => break,
                Err(error) => sleep(trouble.pause(&error)).await,
            }
        }
        trouble.is_over();
        self.end(&text);
        drop(hand);
    }

    async fn call(&self, job: &Job) -> Result<()> {
        let Arguments { route, metadata, arg } = job.arguments()?;
        let Some(handler) = self.handlers.get(&route) else {
            return Err(Error::unknown(format!("nobody handles jobs of {route}")));
        };
        let bytes = |raw: Option<&serde_json::value::RawValue>| {
            raw.map_or_else(Bytes::new, |raw| Bytes::copy_from_slice(raw.get().as_bytes()))
        };
        let mut context = Context::of_hook(Arc::clone(&self.environment));
        context.metadata = bytes(metadata.filter(|metadata| metadata.get() != "null"));
        context.route = route;
        let name = context.route.rsplit('.').next().unwrap_or_default().to_owned();
        let call = Call::new(Arc::new(context), bytes(arg));
        let run = AssertUnwindSafe(async { handler.call(call).await }).catch_unwind();
        run.await.unwrap_or_else(|panic| Err(error_of_panic(&*panic, &name))).map(drop)
    }

    /// Tells whether there is more to do at once.
    async fn look(&self) -> RedisResult<bool> {
        self.store.live().await?;
        let mut has_more = false;
        for set in ["goretry", "schedule"] {
            // A part of them at a time: in between this process must say that it lives.
            let mut left = DUE_MAX;
            while let Some(text) = self.store.first_due(set).await? {
                if left == 0 {
                    has_more = true;
                    break;
                }
                left -= 1;
                let due = Job::parse(&text).ok().and_then(|j| j.due(&self.store.namespace));
                match due {
                    Some((again, queue)) => self.store.put_due(set, &text, &queue, &again).await?,
                    None => self.store.forget(set, &text).await?,
                }
            }
        }
        let jobs = self.store.reap_dead().await?;
        if jobs > 0 {
            tracing::info!(jobs, "jobs of processes that are gone wait to be run again");
        }
        self.measure().await?;
        Ok(has_more)
    }

    /// Pitaya's metrics of jobs, which count those of all processes.
    async fn measure(&self) -> RedisResult<()> {
        let Some(exporter) = &self.exporter else { return Ok(()) };
        let levels = self.store.levels().await?;
        let set = |name: &str, labels: &[&str], value: u64| {
            // The names are rows of the table of metrics.
            let gauge = exporter.gauge(name, labels);
            debug_assert!(gauge.is_ok(), "{name}");
            if let Ok(gauge) = gauge {
                gauge.set(value as f64);
            }
        };
        set("pitaya_worker_worker_jobs_total", &["ok"], levels.processed);
        set("pitaya_worker_worker_jobs_total", &["failed"], levels.failed);
        set("pitaya_worker_worker_jobs_retry_total", &[], levels.retries);
        set("pitaya_worker_worker_queue_size", &[QUEUE], levels.waiting);
        Ok(())
    }
}

/// Pauses and log lines while Redis is away: each trouble one line at its beginning and one at its end.
struct Trouble {
    what: &'static str,
    pause: Option<Duration>,
}

impl Trouble {
    fn new(what: &'static str) -> Self {
        Self { what, pause: None }
    }

    fn pause(&mut self, error: &RedisError) -> Duration {
        match self.pause {
            None => tracing::warn!(%error, "{} failed, trying again", self.what),
            Some(_) => tracing::debug!(%error, "{} failed, trying again", self.what),
        }
        let pause = self.pause.map_or(PAUSE_MIN, |pause| (pause * 2).min(PAUSE_MAX));
        self.pause = Some(pause);
        // Half of it at random: consumers that lost Redis together should not come back together.
        pause.mul_f64(0.5 + fastrand::f64() / 2.0)
    }

    fn is_over(&mut self) {
        if self.pause.take().is_some() {
            tracing::info!("{} works again", self.what);
        }
    }
}
