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
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use hashbrown::DefaultHashBuilder;
use prost::Message;
use shared::error::code;
use shared::metrics::{Exporter, MetricError};
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout, timeout_at};

use crate::admission::{Admission, Limits, Permit};
use crate::answer;
use crate::call::{Call, Context, Environment};
use crate::counters::{Counter, Counters};
use crate::error::{Error, Result};
use crate::handler::AnyHandler;
use crate::hooks::Hooks;
use crate::metadata;
use crate::metrics::HandlerTimes;
use crate::panic::error_of_panic;
use crate::queue::{Enqueued, SessionQueues};
use crate::routes::{self, Routes};
use crate::session::SessionState;
use crate::session_data::SessionData;

/// NATS's default; the runtime replaces it by what its server announces.
const ANSWER_BYTES_MAX: usize = 1024 * 1024;

/// Where the answer to one request goes: an encoded `protos.Response`.
pub struct Reply(Box<dyn FnOnce(Bytes) + Send>);

impl Reply {
    /// Calls `send` with the answer, exactly once, on a thread of the runtime or on the one that calls
    /// [`Service::handle`]. It must not block.
    pub fn new(send: impl FnOnce(Bytes) + Send + 'static) -> Self {
        Self(Box::new(send))
    }

    /// For a request that nobody wants answered.
    pub fn discard() -> Self {
        Self::new(drop)
    }

    pub(crate) fn send(self, answer: Bytes) {
        (self.0)(answer);
    }
}

/// A running application. Clones are handles of the same one.
#[derive(Clone)]
pub struct Service(Arc<Inner>);

struct Inner {
    environment: Arc<Environment>,
    routes: Routes,
    hooks: Hooks,
    queues: SessionQueues<Job>,
    admission: Arc<Admission>,
    running: Semaphore,
    limits: Limits,
    keys: DefaultHashBuilder,
    counters: Arc<Counters>,
    times: OnceLock<HandlerTimes>,
    answer_bytes_max: AtomicUsize,
    runtime: tokio::runtime::Handle,
}

/// One request on its way through the queues. Small, because queues, tasks and futures copy it.
struct Job {
    decoded: Box<Decoded>,
    arrived: Instant,
    reply: Reply,
    permit: Permit,
}

/// What a request says.
struct Decoded {
    request: proto::Request,
    msg: proto::Msg,
}

/// A request that has passed all checks.
struct Checked<'a> {
    handler: &'a AnyHandler,
    call: Call,
    deadline: Instant,
    is_acknowledged: bool,
}

impl Service {
    pub(crate) fn new(
        environment: Environment,
        routes: Routes,
        hooks: Hooks,
        limits: Limits,
        runtime: tokio::runtime::Handle,
    ) -> Self {
        Self(Arc::new(Inner {
            environment: Arc::new(environment),
            routes,
            hooks,
            queues: SessionQueues::new(limits.session_waiting_max),
            admission: Admission::new(limits),
            running: Semaphore::new(limits.running_max.clamp(1, Semaphore::MAX_PERMITS)),
            limits,
            keys: DefaultHashBuilder::default(),
            counters: Arc::new(Counters::default()),
            times: OnceLock::new(),
            answer_bytes_max: AtomicUsize::new(ANSWER_BYTES_MAX),
            runtime,
        }))
    }

    /// Takes an encoded `protos.Request`. Never blocks, and may be called from any thread. The answer comes through
    /// `reply`, at once when the request is refused, otherwise in the order of its session.
    pub fn handle(&self, request: Bytes, reply: Reply) {
        let inner = &self.0;
        let arrived = Instant::now();
        let Some(permit) = inner.admission.admit(request.len()) else {
            inner.counters.add(Counter::Busy);
            return reply.send(answer::busy());
        };
        let decoded = match decode(request) {
            Ok(decoded) => decoded,
            Err(error) => {
                inner.counters.add(Counter::Failed);
                return reply.send(answer::error(error));
            }
        };
        let key = inner.session_key(&decoded);
        let job = Job { decoded, arrived, reply, permit };
        let Some(key) = key else {
            let inner = Arc::clone(inner);
            self.spawn(async move { inner.run(job).await });
            return;
        };
        match inner.queues.enqueue(key, job) {
            Enqueued::Start(job) => {
                let inner = Arc::clone(inner);
                self.spawn(async move { inner.run_session(key, job).await });
            }
            Enqueued::Queued => {}
            Enqueued::Full(job) => {
                inner.counters.add(Counter::Busy);
                job.reply.send(answer::busy());
            }
        }
    }

    /// Boxed, because the runtime copies a future of its own several times: with the handler's call in it, it is large.
    fn spawn(&self, future: impl Future<Output = ()> + Send + 'static) {
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
        &self.0.counters
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

    /// Waits until everything that was taken is answered, at most `limit`; returns what is left then. New requests
    /// are still served meanwhile: whoever feeds the service stops first.
    pub async fn drain(&self, limit: Duration) -> usize {
        let _ = timeout(limit, self.0.admission.idle()).await;
        self.in_flight()
    }

    /// The end of an embedded application: the hooks `before_shutdown`, the wait of [`Service::drain`], the hooks
    /// `on_shutdown`. Returns what was left. `App::run` does it by itself.
    pub async fn shut_down(&self, limit: Duration) -> usize {
        self.before_shutdown().await;
        let left = self.drain(limit).await;
        self.on_shutdown().await;
        left
    }

    /// Runs the start hooks.
    pub(crate) async fn start(&self) -> Result<()> {
        self.0.hooks.start(&self.0.environment).await
    }

    pub(crate) async fn before_shutdown(&self) {
        self.0.hooks.before_shutdown(&self.0.environment).await;
    }

    pub(crate) async fn on_shutdown(&self) {
        self.0.hooks.on_shutdown(&self.0.environment).await;
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
    async fn run_session(&self, key: u64, first: Job) {
        let mut next = Some(first);
        while let Some(job) = next {
            self.run(job).await;
            // Handlers that never wait must not keep the thread for as long as their session sends.
            tokio::task::coop::consume_budget().await;
            next = self.queues.next(key);
        }
    }

    /// Answers one request. Never panics, or its session would be stuck.
    async fn run(&self, job: Job) {
        let Job { decoded, arrived, reply, permit } = job;
        let route = decoded.msg.route.clone();
        let session_id = decoded.request.session.as_ref().map_or(0, |session| session.id);
        let waited = arrived.elapsed();
        let serve = AssertUnwindSafe(self.serve(decoded, arrived));
        let outcome = serve.catch_unwind().await.unwrap_or_else(|panic| {
            self.counters.add(Counter::Panicked);
            tracing::error!(route, session_id, "a handler panicked");
            Err(error_of_panic(&*panic, route.rsplit('.').next().unwrap_or_default()))
        });
        let outcome = outcome.map_err(|error| {
            self.counters.add(Counter::Failed);
            tracing::debug!(route, session_id, %error, "a request failed");
            self.map_error(error)
        });
        if outcome.is_ok() {
            self.counters.add(Counter::Ok);
        }
        if let (Some(times), Ok(key)) = (self.times.get(), routes::key(&route)) {
            let code = outcome.as_ref().err().map_or("", |error| &error.code);
            times.record(key, code, waited, arrived.elapsed());
        }
        reply.send(answer::encode(outcome, self.answer_bytes_max.load(Ordering::Relaxed)));
        drop(permit);
    }

    /// Checks a request and runs its handler. Returns `Response.data`.
    async fn serve(&self, decoded: Box<Decoded>, arrived: Instant) -> Result<Bytes> {
        let Checked { handler, call, deadline, is_acknowledged } = self.check(decoded, arrived)?;
        let data = self.call(handler, call, deadline).await?;
        Ok(if is_acknowledged { answer::ack() } else { data })
    }

    /// The checks of cluster protocol 5.3 in their order. Apart from what waits, so that no future holds its parts.
    fn check(&self, decoded: Box<Decoded>, arrived: Instant) -> Result<Checked<'_>> {
        let Decoded { request, msg } = *decoded;
        let timeout = metadata::request_timeout(&request.metadata)?;
        let deadline = arrived + timeout.unwrap_or(self.environment.request_timeout);
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
        let is_acknowledged = session.is_some() && is_notify;
        let context = Context {
            environment: Arc::clone(&self.environment),
            route: msg.route,
            metadata: request.metadata,
            frontend_id: request.frontend_id,
            deadline: Some(deadline),
            session,
        };
        let call = Call::new(Arc::new(context), msg.data);
        Ok(Checked { handler, call, deadline, is_acknowledged })
    }

    /// Runs the handler until its deadline, where it is dropped.
    async fn call(&self, handler: &AnyHandler, call: Call, deadline: Instant) -> Result<Bytes> {
        let expired = |counter| {
            self.counters.add(counter);
            Error::new(code::INTERNAL, "rpc client: request timeout")
        };
        // The permit first: time may pass until there is one. Asking with the time already over must not start it.
        let permit = timeout_at(deadline, self.running.acquire()).await;
        let Ok(_permit) = permit else { return Err(expired(Counter::Expired)) };
        if Instant::now() >= deadline {
            return Err(expired(Counter::Expired));
        }
        let outcome = timeout_at(deadline, async { handler.call(call).await }).await;
        outcome.unwrap_or_else(|_| Err(expired(Counter::Cancelled)))
    }

    fn map_error(&self, error: Error) -> Error {
        let Some(map_error) = &self.routes.map_error else { return error };
        let kept = error.clone();
        catch_unwind(AssertUnwindSafe(|| map_error(error))).unwrap_or(kept)
    }
}

/// The request and the message in it; both are needed to say anything about it.
fn decode(bytes: Bytes) -> Result<Box<Decoded>> {
    let unreadable = |text: &str| Error::new(code::BAD_REQUEST, text);
    let mut request =
        proto::Request::decode(bytes).map_err(|_| unreadable("cannot decode request"))?;
    let msg = request.msg.take().ok_or_else(|| unreadable("request has no message"))?;
    Ok(Box::new(Decoded { request, msg }))
}
