//! The entry for encoded requests, whatever carried them here, and the checks before a handler runs.
//!
//! Order: messages of one session (frontend id and session id) run one after the other. A session that is busy has
//! one task, which runs its messages until none is left and then ends. A task for each busy session was chosen over a
//! fixed set of tasks that share the sessions: there, a handler that computes for long stops every session of its
//! task, here tokio moves the others to another thread. A spawn costs under a microsecond, and a burst of one session
//! pays it once. Routes that opted out, calls of other servers, and requests without a session have a task each.
//!
//! Bounds: [`Limits`]. A request beyond them is answered as busy at once. Time counts from arrival: what expired in
//! a queue is not started, and a handler is dropped at its deadline. Every request is answered exactly once, and a
//! panic anywhere in its path is an answer too.

use std::hash::BuildHasher;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, OptionFuture};
use hashbrown::DefaultHashBuilder;
use shared::cluster::discovery::Discovery;
use shared::error::code;
use shared::metrics::{Exporter, MetricError};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout, timeout_at};

use crate::admission::{Admission, Limits, Permit};
use crate::answer;
use crate::call::{Context, Environment};
use crate::counters::{Counter, Counters};
use crate::error::{Error, Result};
use crate::handler::AnyHandler;
use crate::hooks::Hooks;
use crate::jobs::{Consumer, JobHandlers, JobOptions, start_consumer};
use crate::listeners::{self, Listener};
use crate::metadata;
use crate::metrics::HandlerTimes;
use crate::overload::{Overload, Waiting};
use crate::panic::error_of_panic;
use crate::pipeline::Side;
use crate::queue::{Enqueued, SessionQueues};
use crate::request::{Decoded, Message, Queued, Reply};
use crate::routes::{self, Routes};
use crate::session::{Session, SessionState};
use crate::session_data::SessionData;
use crate::timers::TimerPlan;

/// NATS's default; the runtime replaces it by what its server announces.
const ANSWER_BYTES_MAX: usize = 1024 * 1024;

/// A running application. Clones are handles of the same one.
#[derive(Clone)]
pub struct Service(Arc<Inner>);

/// The service as its own calls reach it, without keeping it alive.
pub(crate) struct WeakService(Weak<Inner>);

impl WeakService {
    /// None while the process ends.
    pub(crate) fn upgrade(&self) -> Option<Service> {
        self.0.upgrade().map(Service)
    }
}

struct Inner {
    environment: Arc<Environment>,
    routes: Routes,
    hooks: Hooks,
    began: Mutex<Began>,
    queues: SessionQueues<Queued>,
    admission: Arc<Admission>,
    overload: Overload,
    running: Semaphore,
    limits: Limits,
    keys: DefaultHashBuilder,
    times: OnceLock<HandlerTimes>,
    /// Runs jobs, from the start to the drain.
    consumer: Mutex<Option<Consumer>>,
    answer_bytes_max: AtomicUsize,
    runtime: tokio::runtime::Handle,
}

/// What begins with the service.
#[derive(Default)]
pub(crate) struct Began {
    pub(crate) timers: Vec<TimerPlan>,
    pub(crate) listeners: Vec<Listener>,
}

/// A request that has passed all checks.
struct Checked<'a> {
    handler: &'a AnyHandler,
    context: Arc<Context>,
    message: Bytes,
    deadline: Instant,
    is_notify: bool,
}

/// A request that could start; dropped when it does, or is given up.
struct Ready {
    inner: Arc<Inner>,
    waiting: Waiting,
}

impl Ready {
    fn new(inner: &Arc<Inner>, since: Instant) -> Self {
        Self { inner: Arc::clone(inner), waiting: inner.overload.handle_ready(since) }
    }
}

impl Drop for Ready {
    fn drop(&mut self) {
        self.inner.overload.handle_started(self.waiting, Instant::now());
    }
}

impl Service {
    pub(crate) fn new(
        environment: Environment,
        routes: Routes,
        (hooks, began): (Hooks, Began),
        limits: Limits,
        runtime: tokio::runtime::Handle,
    ) -> Self {
        let service = Self(Arc::new(Inner {
            environment: Arc::new(environment),
            routes,
            hooks,
            began: Mutex::new(began),
            queues: SessionQueues::new(limits.session_waiting_max),
            admission: Admission::new(limits),
            overload: Overload::new(limits.waiting_age_max),
            running: Semaphore::new(limits.running_max.clamp(1, Semaphore::MAX_PERMITS)),
            limits,
            keys: DefaultHashBuilder::default(),
            times: OnceLock::new(),
            consumer: Mutex::default(),
            answer_bytes_max: AtomicUsize::new(ANSWER_BYTES_MAX),
            runtime,
        }));
        let own = WeakService(Arc::downgrade(&service.0));
        let _ = service.0.environment.own_service.set(own);
        service
    }

    /// Takes an encoded `protos.Request`. Never blocks, and may be called from any thread. The answer comes through
    /// `reply`, at once when the request is refused, otherwise in the order of its session.
    pub fn handle(&self, request: Bytes, reply: Reply) {
        self.handle_within(request, reply, None);
    }

    /// The same for a caller who does not wait longer than `limit`, whatever the request says.
    pub(crate) fn handle_within(&self, request: Bytes, reply: Reply, limit: Option<Duration>) {
        let inner = &self.0;
        let arrived = Instant::now();
        if inner.overload.is_refusing(arrived) {
            inner.environment.counters.add(Counter::Busy);
            return reply.send(answer::busy());
        }
        let Some(permit) = inner.admission.admit(request.len()) else {
            inner.environment.counters.add(Counter::Busy);
            return reply.send(answer::busy());
        };
        let decoded = match Decoded::decode(request) {
            Ok(decoded) => decoded,
            Err(error) => {
                inner.environment.counters.add(Counter::Failed);
                return reply.send(answer::error(error));
            }
        };
        let key = inner.session_key(&decoded);
        let job = Queued::Message(Message { decoded, arrived, limit, reply, permit });
        let Some(key) = key else { return self.spawn(job, arrived) };
        let places = inner.overload.session_places();
        if let Some(Queued::Message(message)) = self.enqueue(key, job, (arrived, places)) {
            inner.environment.counters.add(Counter::Busy);
            message.reply.send(answer::busy());
        }
    }

    /// Runs `work` after the messages of the session that have come before; at once behind a queue that is full, since it
    /// must not be lost.
    pub(crate) fn run_behind_messages(
        &self,
        frontend_id: &str,
        session: i64,
        work: BoxFuture<'static, ()>,
    ) {
        let key = self.0.keys.hash_one((frontend_id, session));
        let now = Instant::now();
        if let Some(job) = self.enqueue(key, Queued::Event(work), (now, usize::MAX)) {
            self.spawn(job, now);
        }
    }

    /// Puts a job behind those of its session, of which so many may wait; gives it back when there is no room.
    fn enqueue(
        &self,
        key: u64,
        job: Queued,
        (arrived, places): (Instant, usize),
    ) -> Option<Queued> {
        match self.0.queues.enqueue(key, job, places) {
            Enqueued::Start(job) => {
                let ready = Ready::new(&self.0, arrived);
                self.spawn_boxed(async move {
                    ready.inner.clone().run_session(key, job, ready).await;
                });
                None
            }
            Enqueued::Queued => None,
            Enqueued::Full(job) => Some(job),
        }
    }

    fn spawn(&self, job: Queued, arrived: Instant) {
        let ready = Ready::new(&self.0, arrived);
        self.spawn_boxed(async move { ready.inner.clone().run(job, ready).await });
    }

    /// Boxed, because the runtime copies a future of its own several times: with the handler's call in it, it is large.
    fn spawn_boxed(&self, future: impl Future<Output = ()> + Send + 'static) {
        self.0.runtime.spawn(Box::pin(future));
    }

    /// The largest answer that the link can carry, in bytes of an encoded `protos.Response`. 1 MiB until set.
    pub fn set_answer_bytes_max(&self, bytes: usize) {
        self.0.answer_bytes_max.store(bytes, Ordering::Relaxed);
    }

    /// The limits that this service keeps; the window among them is what a server announces.
    pub fn limits(&self) -> Limits {
        self.0.limits
    }

    /// What happened so far.
    pub fn counters(&self) -> &Arc<Counters> {
        &self.0.environment.counters
    }

    /// Requests that wait or run.
    pub fn in_flight(&self) -> usize {
        self.0.admission.in_flight()
    }

    /// Handlers that run.
    pub fn running(&self) -> usize {
        let all = self.0.limits.running_max.clamp(1, Semaphore::MAX_PERMITS);
        all.saturating_sub(self.0.running.available_permits())
    }

    /// Records the times of all handlers from now on. The first exporter given is the one.
    pub(crate) fn record_times(&self, exporter: Exporter) -> Result<(), MetricError> {
        let keys = self.0.routes.handlers.keys().chain(self.0.routes.remotes.keys());
        let times = HandlerTimes::new(exporter, &self.0.environment.server_type, keys)?;
        let _ = self.0.times.set(times);
        Ok(())
    }

    /// Runs jobs from now on, if there are handlers for any. Fails for an address that cannot be.
    pub(crate) fn start_jobs(
        &self,
        handlers: JobHandlers,
        options: &JobOptions,
        exporter: Option<Exporter>,
    ) -> Result<()> {
        *self.consumer() = start_consumer(options, handlers, self.environment(), exporter)?;
        Ok(())
    }

    fn consumer(&self) -> MutexGuard<'_, Option<Consumer>> {
        self.0.consumer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes no more jobs, and waits until everything that was taken is answered and the jobs that run have ended, at
    /// most `limit`; returns the requests that are left then. New requests are still served meanwhile: whoever feeds the
    /// service stops first.
    pub async fn drain(&self, limit: Duration) -> usize {
        let consumer = self.consumer().take();
        let jobs = OptionFuture::from(consumer.map(|consumer| consumer.stop(limit).boxed()));
        let (_, _) = tokio::join!(timeout(limit, self.0.admission.idle()), jobs);
        self.in_flight()
    }

    /// The end of an embedded application: the modules are told, the wait of [`Service::drain`], then timers, modules and
    /// components end. Returns what was left. `App::run` does it by itself.
    pub async fn shut_down(&self, limit: Duration) -> usize {
        self.before_shutdown().await;
        let left = self.drain(limit).await;
        self.on_shutdown().await;
        left
    }

    pub(crate) fn environment(&self) -> Arc<Environment> {
        Arc::clone(&self.0.environment)
    }

    /// Starts components, then modules, then timers.
    pub(crate) async fn start(&self) -> Result<()> {
        let environment = &self.0.environment;
        self.0.hooks.start(environment).await?;
        environment.modules.start(environment).await?;
        for timer in std::mem::take(&mut self.began().timers) {
            environment.timers.start(timer, environment)?;
        }
        Ok(())
    }

    /// Tells the listeners about servers from now on, until the set is dropped.
    pub fn listen(&self, discovery: &Discovery) -> JoinSet<()> {
        let listeners = std::mem::take(&mut self.began().listeners);
        listeners::start(&listeners, discovery, &self.0.environment)
    }

    pub(crate) fn runtime(&self) -> &tokio::runtime::Handle {
        &self.0.runtime
    }

    /// Something that [`Service::drain`] waits for as long as the permit lives.
    pub(crate) fn enter(&self) -> Permit {
        self.0.admission.enter()
    }

    fn began(&self) -> MutexGuard<'_, Began> {
        self.0.began.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells the modules that the end begins; the first step of [`Service::shut_down`], for hosts that take them one by
    /// one.
    pub async fn before_shutdown(&self) {
        self.0.environment.modules.before_shutdown(&self.0.environment).await;
    }

    /// Ends timers, then modules, then components; the last step of [`Service::shut_down`], for hosts that take them one
    /// by one.
    pub async fn on_shutdown(&self) {
        let environment = &self.0.environment;
        environment.timers.close().await;
        environment.modules.shutdown(environment).await;
        self.0.hooks.shutdown(environment).await;
    }
}

impl Inner {
    /// Which queue a request belongs to; none when nothing orders it.
    fn session_key(&self, decoded: &Decoded) -> Option<u64> {
        let Decoded { request, msg } = decoded;
        let is_sys = request.r#type == i32::from(proto::RpcType::Sys);
        let session = request.session.as_ref().filter(|session| is_sys && session.id != 0)?;
        let is_ordered = !self.routes.is_concurrent(&msg.route);
        is_ordered.then(|| self.keys.hash_one((request.frontend_id.as_str(), session.id)))
    }

    /// Runs the messages of one session until none is left.
    async fn run_session(self: Arc<Self>, key: u64, first: Queued, ready: Ready) {
        let mut next = Some((first, ready));
        while let Some((job, ready)) = next {
            self.run(job, ready).await;
            // Handlers that never wait must not keep the thread for as long as their session sends.
            tokio::task::coop::consume_budget().await;
            let job = self.queues.next(key);
            next = job.map(|job| (job, Ready::new(&self, Instant::now())));
        }
    }

    /// Answers one request. Never panics, or its session would be stuck.
    async fn run(&self, job: Queued, ready: Ready) {
        let Message { decoded, arrived, limit, reply, permit } = match job {
            Queued::Message(message) => message,
            Queued::Event(work) => {
                drop(ready);
                if AssertUnwindSafe(work).catch_unwind().await.is_err() {
                    self.environment.note_panic("", "an event of a session");
                }
                return;
            }
        };
        let route = decoded.msg.route.clone();
        let session_id = decoded.request.session.as_ref().map_or(0, |session| session.id);
        let waited = arrived.elapsed();
        let serve = AssertUnwindSafe(self.serve(decoded, (arrived, limit), ready));
        let outcome = serve.catch_unwind().await.unwrap_or_else(|panic| {
            self.environment.note_panic(&route, "a request");
            Err(error_of_panic(&*panic, route.rsplit('.').next().unwrap_or_default()))
        });
        let outcome = outcome.map_err(|error| {
            self.environment.counters.add(Counter::Failed);
            tracing::debug!(route, session_id, %error, "a request failed");
            self.map_error(error)
        });
        if outcome.is_ok() {
            self.environment.counters.add(Counter::Ok);
        }
        if let (Some(times), Ok(key)) = (self.times.get(), routes::key(&route)) {
            let code = outcome.as_ref().err().map_or("", |error| &error.code);
            times.record(key, code, waited, arrived.elapsed());
        }
        reply.send(answer::encode(outcome, self.answer_bytes_max.load(Ordering::Relaxed)));
        drop(permit);
    }

    /// Checks a request and runs its handler. Returns `Response.data`.
    async fn serve(
        &self,
        decoded: Box<Decoded>,
        times: (Instant, Option<Duration>),
        ready: Ready,
    ) -> Result<Bytes> {
        let checked = self.check(decoded, times)?;
        let Checked { handler, context, message, deadline, is_notify } = checked;
        let side = if context.session.is_some() { Side::Client } else { Side::Server };
        let is_acknowledged = side == Side::Client && is_notify;
        let finish = |data| if is_acknowledged { answer::ack() } else { data };
        let key = routes::key(&context.route)?;
        let call = (&context, message);
        let run = async {
            let outcome = self.routes.pipelines.call(side, key, handler, call, finish).await;
            if side == Side::Client {
                // A session that has gone meanwhile has nobody to save for.
                let _ = Session::save_changes(&context).await;
            }
            outcome
        };
        self.within(deadline, ready, run).await
    }

    /// The checks of cluster protocol 5.3 in their order. Apart from what waits, so that no future holds its parts.
    fn check(
        &self,
        decoded: Box<Decoded>,
        (arrived, limit): (Instant, Option<Duration>),
    ) -> Result<Checked<'_>> {
        let Decoded { request, msg } = *decoded;
        let timeout = metadata::request_timeout(&request.metadata)?;
        let timeout = timeout.unwrap_or(self.environment.request_timeout);
        let deadline = arrived + limit.map_or(timeout, |limit| limit.min(timeout));
        let key = routes::key(&msg.route)?;
        let is_notify = msg.r#type == i32::from(proto::MsgType::Notify);
        let (handler, session) = match proto::RpcType::try_from(request.r#type) {
            Ok(proto::RpcType::Sys) => {
                let session = request.session.unwrap_or_default();
                let data = SessionData::new(session.data)?;
                let state = SessionState { id: session.id, uid: session.uid, data };
                (self.routes.handler(&msg.route, key, is_notify)?, Some(Mutex::new(state)))
            }
            Ok(proto::RpcType::User) => (self.routes.remote(key)?, None),
            Err(_) => {
                let error = Error::new(code::BAD_REQUEST, "invalid rpc type");
                return Err(error.with("route", &msg.route));
            }
        };
        let context = Arc::new(Context {
            environment: Arc::clone(&self.environment),
            route: msg.route,
            metadata: request.metadata,
            frontend_id: request.frontend_id,
            deadline: Some(deadline),
            session,
            values: Mutex::default(),
        });
        Ok(Checked { handler, context, message: msg.data, deadline, is_notify })
    }

    /// Runs a handler, with what is around it, until its deadline, where it is dropped.
    async fn within(
        &self,
        deadline: Instant,
        ready: Ready,
        call: impl Future<Output = Result<Bytes>>,
    ) -> Result<Bytes> {
        let expired = |counter| {
            self.environment.counters.add(counter);
            Error::new(code::INTERNAL, "rpc client: request timeout")
        };
        // The permit first: time may pass until there is one. Asking with the time already over must not start it.
        let permit = timeout_at(deadline, self.running.acquire()).await;
        drop(ready);
        let Ok(_permit) = permit else { return Err(expired(Counter::Expired)) };
        if Instant::now() >= deadline {
            return Err(expired(Counter::Expired));
        }
        let outcome = timeout_at(deadline, call).await;
        outcome.unwrap_or_else(|_| Err(expired(Counter::Cancelled)))
    }

    fn map_error(&self, error: Error) -> Error {
        let Some(map_error) = &self.routes.map_error else { return error };
        let kept = error.clone();
        catch_unwind(AssertUnwindSafe(|| map_error(error))).unwrap_or(kept)
    }
}
