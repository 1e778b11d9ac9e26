//! The builder of an application: what it answers, what it shares, what it does at its start and its end.
//!
//! Mistakes of registration (two handlers of one route, a state that nobody gave) are collected and reported
//! together when the application starts; nothing panics and nothing is silently replaced.

use std::collections::BTreeSet;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use shared::metrics::Exporter;
use shared::route::Route;
use shared::router::Policy;
use shared::routing::Routing;

use crate::admission::Limits;
use crate::app_parts::Parts;
use crate::call::Environment;
use crate::call_times::CallTimes;
use crate::docs::Docs;
use crate::error::{Error, Result};
use crate::groups::{GroupStorage, GroupStore};
use crate::handler::{AnyHandler, Handler, Kind};
use crate::hooks::Hooks;
use crate::jobs::{JobHandlers, JobMaker, JobOptions};
use crate::link::Link;
use crate::listeners::Listener;
use crate::names::check_server_type;
use crate::peers::Peers;
use crate::routes::{Entry, Routes};
use crate::servers::Servers;
use crate::service::{Began, Service};
use crate::state::States;
use crate::timers::TimerSet;

/// A group of handlers with a state of their own; implemented by [`handlers`](crate::handlers) and
/// [`remotes`](crate::remotes).
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a component",
    note = "put `#[handlers(\"name\")]` or `#[remotes(\"name\")]` on its `impl` block"
)]
pub trait Component: Sized {
    /// Adds the handlers to the application.
    fn register(self, app: App) -> App;
}

/// What an embedded application sees of the cluster around it.
pub struct ClusterView {
    /// The id of this process, the sender of its calls.
    pub server_id: String,
    /// The servers it can name: its gateways, above all.
    pub servers: Arc<dyn Servers>,
    /// The type of the gateway that shares the process with the application, if one does: standalone mode.
    pub frontend_type: Option<String>,
    /// How long a call may take that says nothing else, and a request whose caller does not say.
    pub request_timeout: Duration,
    /// Whether this process owns client connections. Its calls then name it, so that the callee can reach back to
    /// its sessions (cluster protocol 3).
    pub is_frontend: bool,
    /// Whether calls to the own type or id run in this process. Otherwise they are refused, as in Pitaya.
    pub is_loop_back_allowed: bool,
    /// What the configuration says of the choice of servers; the application's own rules come below it.
    pub routing: Routing,
    /// Where calls to other servers and jobs are measured; none measures nothing. A host that measures its own
    /// forwarding gives its own.
    pub exporter: Option<Exporter>,
}

impl ClusterView {
    /// The view of a backend with Pitaya's defaults: calls take 5 s, and none to the own type or id.
    pub fn new(server_id: impl Into<String>, servers: Arc<dyn Servers>) -> Self {
        Self {
            server_id: server_id.into(),
            servers,
            request_timeout: Duration::from_secs(5),
            is_frontend: false,
            frontend_type: None,
            is_loop_back_allowed: false,
            routing: Routing::new(Policy::Random),
            exporter: None,
        }
    }
}

/// An application under construction.
///
/// ```
/// use worker::prelude::*;
///
/// #[derive(Deserialize)]
/// struct Hello { name: String }
///
/// async fn greet(session: Session, hello: Hello) -> Result<String> {
///     Ok(format!("{} is session {}", hello.name, session.id()))
/// }
///
/// let app = App::new("room").on("hall.greet", greet);
/// ```
pub struct App {
    server_type: String,
    pub(crate) limits: Limits,
    pub(crate) groups: GroupStorage,
    pub(crate) jobs: JobOptions,
    pub(crate) job_handlers: JobHandlers,
    states: States,
    routes: Routes,
    concurrent: BTreeSet<String>,
    hooks: Hooks,
    pub(crate) parts: Parts,
    pub(crate) mistakes: Vec<String>,
}

impl App {
    /// An application of servers of this type, the first part of its routes.
    pub fn new(server_type: impl Into<String>) -> Self {
        Self {
            server_type: server_type.into(),
            limits: Limits::default(),
            groups: GroupStorage::default(),
            jobs: JobOptions::default(),
            job_handlers: JobHandlers::new(),
            states: States::default(),
            routes: Routes::default(),
            concurrent: BTreeSet::new(),
            hooks: Hooks::default(),
            parts: Parts::default(),
            mistakes: Vec::new(),
        }
    }

    /// The server type.
    pub fn server_type(&self) -> &str {
        &self.server_type
    }

    /// Another server type than the one given to [`App::new`], for operators who rename it.
    pub fn with_server_type(mut self, server_type: impl Into<String>) -> Self {
        self.server_type = server_type.into();
        self
    }

    /// How many requests the application takes at once.
    pub fn window(&self) -> usize {
        self.limits.window
    }

    /// Shares a value with all handlers, by its type; see [`State`](crate::State).
    pub fn state<T: Send + Sync + 'static>(mut self, value: T) -> Self {
        if !self.states.insert(value) {
            let name = std::any::type_name::<T>();
            self.mistakes.push(format!("two states of type {name}"));
        }
        self
    }

    /// Answers the client messages of `service.method`.
    ///
    /// What the handler returns decides how clients send: `Result<T>` is a request, nothing or `Result<()>` a notify.
    pub fn on<Marker: 'static>(mut self, route: &str, handler: impl Handler<Marker>) -> Self {
        self.check_route(route);
        let entry = Entry { handler: AnyHandler::new(handler), is_concurrent: false };
        if self.routes.handlers.insert(route.to_owned(), entry).is_some() {
            self.mistakes.push(format!("two handlers of {route}"));
        }
        self
    }

    /// Answers the calls of other servers to `service.method`; see [`Rpc`](crate::Rpc). Clients cannot reach it.
    ///
    /// Arguments and results are protobuf ([`Pb`](crate::Pb)) between servers. A remote without an argument ignores
    /// what is sent to it; one that returns nothing answers an empty message. There is no session. The service `sys`
    /// is the framework's own.
    pub fn remote<Marker: 'static>(mut self, route: &str, remote: impl Handler<Marker>) -> Self {
        self.check_route(route);
        if route.starts_with("sys.") {
            self.mistakes.push(format!("{route}: the service sys is reserved"));
        }
        if self.routes.remotes.insert(route.to_owned(), AnyHandler::new(remote)).is_some() {
            self.mistakes.push(format!("two remotes of {route}"));
        }
        self
    }

    /// Adds all handlers of a component.
    pub fn component(self, component: impl Component) -> Self {
        component.register(self)
    }

    /// Lets messages of one session run at the same time on this route, and overtake others.
    pub fn concurrent(mut self, route: &str) -> Self {
        self.concurrent.insert(route.to_owned());
        self
    }

    /// Runs before the first request, in the order given. A failure ends the start. Pitaya's `Init`.
    pub fn on_start<Marker: 'static>(mut self, hook: impl Handler<Marker>) -> Self {
        self.hooks.on_start.push(AnyHandler::new(hook));
        self
    }

    /// Runs after `on_start` of all, in the order given. A failure ends the start. Pitaya's `AfterInit`.
    pub fn on_ready<Marker: 'static>(mut self, hook: impl Handler<Marker>) -> Self {
        self.hooks.on_ready.push(AnyHandler::new(hook));
        self
    }

    /// Runs at the end, after the last request and after the modules; on a backend pushes still leave, in standalone mode
    /// all sessions have ended. The last one given runs first. Pitaya's `BeforeShutdown`.
    /// A [module](crate::Module) is told while requests are still served.
    pub fn before_shutdown<Marker: 'static>(mut self, hook: impl Handler<Marker>) -> Self {
        self.hooks.before_shutdown.insert(0, AnyHandler::new(hook));
        self
    }

    /// Runs after `before_shutdown` of all. The last one given runs first. Pitaya's `Shutdown`.
    pub fn on_shutdown<Marker: 'static>(mut self, hook: impl Handler<Marker>) -> Self {
        self.hooks.on_shutdown.insert(0, AnyHandler::new(hook));
        self
    }

    /// Answers client messages of routes that nobody handles, instead of `PIT-404`.
    pub fn fallback<Marker: 'static>(mut self, handler: impl Handler<Marker>) -> Self {
        self.routes.fallback = Some(AnyHandler::new(handler));
        self
    }

    /// Rewrites each error before it is answered, the framework's own among them.
    pub fn map_error(mut self, map: impl Fn(Error) -> Error + Send + Sync + 'static) -> Self {
        self.routes.map_error = Some(Arc::new(map));
        self
    }

    /// Other limits than the default ones.
    pub fn limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// Runs the jobs of a route: calls that somebody left in Redis to be made until they succeed (see
    /// [`Jobs`](crate::Jobs)). The message is the job's argument as JSON. A failure has it tried again as the job says;
    /// it may run more than once in any case.
    pub fn on_job<Marker: 'static>(mut self, route: &str, handler: impl Handler<Marker>) -> Self {
        if !Route::parse(route).is_ok_and(|parsed| parsed.server_type.is_some()) {
            self.mistakes.push(format!("{route:?} is not serverType.service.method"));
        }
        if self.job_handlers.insert(route.to_owned(), AnyHandler::new(handler)).is_some() {
            self.mistakes.push(format!("two handlers of the jobs of {route}"));
        }
        self
    }

    /// Keeps jobs elsewhere than in a Redis on this machine. Servers and gateways take it from their configuration.
    pub fn job_options(mut self, options: JobOptions) -> Self {
        self.jobs = options;
        self
    }

    /// Keeps the groups elsewhere than in memory. An operator's `pitaya.groups.storage` overrides it.
    pub fn groups(mut self, storage: GroupStorage) -> Self {
        self.groups = storage;
        self
    }

    /// Starts the application inside another process, behind a link that the host provides: standalone mode, and
    /// gateways with handlers of their own.
    ///
    /// Must be called inside a tokio runtime; handlers run there. Runs the start hooks, then jobs. Fails with all mistakes of
    /// registration in one text, or with the failure of a hook. The host ends it with [`Service::shut_down`].
    pub async fn embed(self, link: Arc<dyn Link>, view: ClusterView) -> Result<Service> {
        let mut app = self.checked()?;
        let (handlers, options) = (std::mem::take(&mut app.job_handlers), app.jobs.clone());
        let exporter = view.exporter.clone();
        let service = app.build(link, view)?;
        service.start().await?;
        service.start_jobs(handlers, &options, exporter)?;
        Ok(service)
    }

    /// The service of a checked application, without its start hooks having run. Fails for addresses that cannot be.
    pub(crate) fn build(mut self, link: Arc<dyn Link>, view: ClusterView) -> Result<Service> {
        let routing = self.complete(view.routing);
        self.routes.pipelines = self.parts.pipelines;
        let Parts { has_docs, descriptors, serializer, .. } = self.parts;
        let docs = if has_docs {
            Docs::new(&self.server_type, &self.routes, descriptors, serializer)
        } else {
            Docs::default()
        };
        let environment = Environment {
            docs,
            server_id: view.server_id,
            server_type: self.server_type,
            states: self.states,
            link,
            servers: view.servers,
            groups: GroupStore::open(&self.groups)?,
            jobs: JobMaker::new(&self.jobs, "")?,
            modules: self.parts.modules,
            session_hooks: self.parts.session_hooks,
            frontend_type: view.frontend_type.map(Into::into),
            timers: TimerSet::default(),
            counters: Arc::default(),
            call_times: view.exporter.map(CallTimes::new),
            request_timeout: view.request_timeout,
            is_frontend: view.is_frontend,
            is_loop_back_allowed: view.is_loop_back_allowed,
            peers: Peers::default(),
            routing,
            own_service: OnceLock::new(),
        };
        let runtime = tokio::runtime::Handle::current();
        let began = Began { timers: self.parts.timers, listeners: self.parts.listeners };
        Ok(Service::new(environment, self.routes, (self.hooks, began), self.limits, runtime))
    }

    fn check_route(&mut self, route: &str) {
        if !Route::parse(route).is_ok_and(|parsed| parsed.server_type.is_none()) {
            self.mistakes.push(format!("{route:?} is not service.method"));
        }
    }

    /// Fails with all mistakes of registration; part of them can be known only once everything was given.
    pub(crate) fn checked(mut self) -> Result<Self> {
        for route in &self.concurrent {
            match self.routes.handlers.get_mut(route) {
                Some(entry) => entry.is_concurrent = true,
                None => self.mistakes.push(format!("{route} is concurrent but has no handler")),
            }
        }
        if check_server_type(&self.server_type).is_err() {
            self.mistakes.push(format!("{:?} is not a server type", self.server_type));
        }
        self.mistakes.extend(self.parts.pipelines.missing(&self.states));
        let timers = self.parts.timers.iter().map(|timer| &timer.run);
        let listeners = self.parts.listeners.iter().filter_map(|listener| match listener {
            Listener::Function(function) => Some(function),
            Listener::Members(_) | Listener::Servers(_) => None,
        });
        let sessions = self.parts.session_hooks.iter();
        for hook in self.hooks.iter().chain(sessions).chain(timers).chain(listeners) {
            if hook.kind == Kind::Request {
                self.mistakes.push(
                    "a hook, timer or listener returns a value; return Result<()> or nothing"
                        .into(),
                );
            }
            self.mistakes
                .extend(hook.missing(&self.states).map(|missing| format!("hook: {missing}")));
        }
        let handlers = self.routes.handlers.iter().map(|(route, entry)| (route, &entry.handler));
        let mut missing: Vec<String> = handlers
            .chain(&self.routes.remotes)
            .chain(&self.job_handlers)
            .filter_map(|(route, handler)| {
                Some(format!("{route}: {}", handler.missing(&self.states)?))
            })
            .collect();
        missing.sort();
        self.mistakes.append(&mut missing);
        if self.mistakes.is_empty() {
            return Ok(self);
        }
        Err(Error::unknown(self.mistakes.join("; ")))
    }
}
