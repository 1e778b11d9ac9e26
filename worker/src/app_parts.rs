//! The builder's further parts: what runs around handlers, modules, timers, listeners, and what a frontend asks of its
//! clients. The handlers themselves and the limits are in `app`.

use std::collections::BTreeMap;
use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::Duration;

use shared::config::Config;
use shared::dictionary::Dictionary;
use shared::error::Serializer;
use shared::router::Policy;
use shared::routing::{RouteRequest, Routing, Rule};
use shared::server::Server;

use crate::app::App;
use crate::docs::{self, Descriptors};
use crate::error::{Error, Result};
use crate::handler::{AnyHandler, Handler};
use crate::handshake::{Check, Handshake};
use crate::jobs::JobOptions;
use crate::listeners::{Listener, MemberListener, ServerListener};
use crate::modules::{Module, ModuleList, Place};
use crate::pipeline::Pipelines;
use crate::session_hooks::SessionHooks;
use crate::timers::{CONDITION_INTERVAL, Condition, Schedule, TimerPlan};
use crate::validation::Validate;

/// What the functions of this file collect.
#[derive(Default)]
pub(crate) struct Parts {
    pub(crate) pipelines: Pipelines,
    pub(crate) modules: ModuleList,
    pub(crate) session_hooks: SessionHooks,
    pub(crate) timers: Vec<TimerPlan>,
    pub(crate) listeners: Vec<Listener>,
    pub(crate) checks: Vec<(String, Check)>,
    pub(crate) dictionary: BTreeMap<String, u16>,
    pub(crate) has_docs: bool,
    pub(crate) descriptors: Descriptors,
    pub(crate) serializer: Serializer,
    pub(crate) rules: Vec<(String, Rule)>,
}

/// Around handlers.
impl App {
    /// Runs `f` before each handler. It takes extractors, then perhaps the message. Its failure is the answer, and
    /// nothing else runs. When it returns a value, that is the message for what runs after it.
    ///
    /// ```
    /// use worker::prelude::*;
    ///
    /// async fn only_bound(session: Session, ctx: Ctx) -> Result<()> {
    ///     if session.uid().is_none() && !ctx.route().ends_with(".enter") {
    ///         bail!("GAME-401", "enter first")
    ///     }
    ///     Ok(())
    /// }
    ///
    /// let app = App::new("room").before(only_bound);
    /// ```
    pub fn before<M: 'static>(mut self, f: impl Handler<M>) -> Self {
        self.parts.pipelines.handlers.add_before(None, AnyHandler::new(f));
        self
    }

    /// Runs `f` after each handler, also after one that failed. It takes extractors, [`Outcome`](crate::Outcome) among
    /// them. A value that it returns is the answer in place of the handler's, as is its failure; nothing changes nothing.
    /// It does not run for a message that was refused before the handler, nor for a handler that was stopped at its
    /// deadline.
    pub fn after<M: 'static>(mut self, f: impl Handler<M>) -> Self {
        self.parts.pipelines.handlers.add_after(None, AnyHandler::new(f));
        self
    }

    /// [`App::before`] for the handlers of one service (`room` in the route `type.room.join`) only.
    pub fn before_in<M: 'static>(mut self, service: &str, f: impl Handler<M>) -> Self {
        self.parts.pipelines.handlers.add_before(Some(service.to_owned()), AnyHandler::new(f));
        self
    }

    /// [`App::after`] for the handlers of one service only.
    pub fn after_in<M: 'static>(mut self, service: &str, f: impl Handler<M>) -> Self {
        self.parts.pipelines.handlers.add_after(Some(service.to_owned()), AnyHandler::new(f));
        self
    }

    /// [`App::before`] for remotes: the calls of other servers. A failure without a code of its own is `PIT-500`.
    pub fn before_remote<M: 'static>(mut self, f: impl Handler<M>) -> Self {
        self.parts.pipelines.remotes.add_before(None, AnyHandler::new(f));
        self
    }

    /// [`App::after`] for remotes.
    pub fn after_remote<M: 'static>(mut self, f: impl Handler<M>) -> Self {
        self.parts.pipelines.remotes.add_after(None, AnyHandler::new(f));
        self
    }

    /// Validates messages of this type wherever they are a handler's last argument, when
    /// `pitaya.defaultpipelines.structvalidation.enabled` is set. [`Valid`](crate::Valid) validates without it.
    pub fn validate<T: Validate + Send + 'static>(mut self) -> Self {
        self.parts.pipelines.validators.add::<T>();
        self
    }
}

/// The life of sessions.
impl App {
    /// Runs `f` before a session is bound: at a gateway that hosts the application whoever asks for the bind, on a backend
    /// when a handler does. [`Session`](crate::Session) among its extractors has the uid already. The first failure
    /// refuses the bind, and is what the caller of `Session::bind` gets. Pitaya's `OnSessionBind`.
    ///
    /// ```
    /// use worker::prelude::*;
    ///
    /// async fn not_banned(session: Session) -> Result<()> {
    ///     if session.uid().is_some_and(|uid| uid.starts_with("banned-")) {
    ///         bail!("CN-403", "you are banned")
    ///     }
    ///     Ok(())
    /// }
    ///
    /// let app = App::new("connector").on_bind(not_banned);
    /// ```
    pub fn on_bind<M: 'static>(mut self, f: impl Handler<M>) -> Self {
        self.parts.session_hooks.on_bind.push(AnyHandler::new(f));
        self
    }

    /// Runs `f` when a session was bound and can be pushed to, before the caller of `Session::bind` goes on. A failure is
    /// what that caller gets; at a gateway that hosts the application the bind is undone, elsewhere the session stays
    /// bound. Pitaya's `OnAfterSessionBind`.
    pub fn after_bind<M: 'static>(mut self, f: impl Handler<M>) -> Self {
        self.parts.session_hooks.after_bind.push(AnyHandler::new(f));
        self
    }

    /// Runs `f` when a session has ended whose handshake was accepted, after its last message;
    /// [`CloseReason`](crate::CloseReason) is among its extractors, and [`Session`](crate::Session), which is what the
    /// gateway knew of it. Only where the application is hosted by the gateway: backends are not told, as in Pitaya.
    pub fn on_close<M: 'static>(mut self, f: impl Handler<M>) -> Self {
        self.parts.session_hooks.on_close.push(AnyHandler::new(f));
        self
    }
}

/// Modules and timers.
impl App {
    /// Adds a module after those that there are. A name that is taken stops the start.
    pub fn module(self, name: &str, module: impl Module) -> Self {
        self.add_module(name, module, Place::Last)
    }

    /// Adds a module before those that there are: it starts first and ends last.
    pub fn module_first(self, name: &str, module: impl Module) -> Self {
        self.add_module(name, module, Place::First)
    }

    fn add_module(mut self, name: &str, module: impl Module, place: Place) -> Self {
        if let Err(mistake) = self.parts.modules.add(name, module, place) {
            self.mistakes.push(mistake);
        }
        self
    }

    /// Runs `f` every `interval` from the start to the end of the server. See [`Timers`](crate::Timers) for timers that
    /// come and go. An interval below 1 ms stops the start.
    pub fn every<M: 'static>(self, interval: Duration, f: impl Handler<M>) -> Self {
        self.timer(interval, None, None, AnyHandler::new(f))
    }

    /// Runs `f` once, `delay` after the start.
    pub fn once<M: 'static>(self, delay: Duration, f: impl Handler<M>) -> Self {
        self.timer(delay, Some(NonZeroU64::MIN), None, AnyHandler::new(f))
    }

    /// Runs `f` `runs` times, every `interval`.
    pub fn times<M: 'static>(
        self,
        interval: Duration,
        runs: NonZeroU64,
        f: impl Handler<M>,
    ) -> Self {
        self.timer(interval, Some(runs), None, AnyHandler::new(f))
    }

    /// Asks `condition` every second and runs `f` whenever it says yes.
    pub fn when<M: 'static>(
        self,
        condition: impl FnMut() -> bool + Send + Sync + 'static,
        f: impl Handler<M>,
    ) -> Self {
        self.timer(CONDITION_INTERVAL, None, Some(Box::new(condition)), AnyHandler::new(f))
    }

    fn timer(
        mut self,
        interval: Duration,
        runs: Option<NonZeroU64>,
        condition: Option<Condition>,
        run: AnyHandler,
    ) -> Self {
        self.parts.timers.push(TimerPlan { schedule: Schedule { interval, runs, condition }, run });
        self
    }
}

/// Which server is asked.
impl App {
    /// Chooses the server for requests to servers of one type with a function: for the calls of this application, and
    /// for the messages of clients where this application lives in a gateway. An entry of `pitaya.routing` for the type
    /// counts before it, a later function replaces it.
    ///
    /// The server chosen is the one that is asked, or nobody; an error is the answer. The function runs while messages
    /// are forwarded and must not wait for anything.
    ///
    /// ```
    /// use worker::prelude::*;
    ///
    /// let app = App::new("lobby").route("room", |request| {
    ///     let named = |server: &&std::sync::Arc<Server>| request.payload.starts_with(server.id.as_bytes());
    ///     request.servers.iter().find(named).cloned().ok_or_else(|| Error::new("GAME-404", "no such room"))
    /// });
    /// ```
    pub fn route(
        self,
        server_type: &str,
        choose: impl Fn(&RouteRequest<'_>) -> Result<Arc<Server>> + Send + Sync + 'static,
    ) -> Self {
        let choose = move |request: &RouteRequest<'_>| {
            choose(request).map_err(|Error { code, msg, metadata }| shared::error::Error {
                code,
                msg,
                metadata,
            })
        };
        self.rule(server_type, choose.into())
    }

    /// The same with one of the policies; `default` stands for all types without a rule of their own. Without any rule
    /// calls go to a random server of the type.
    pub fn route_by(self, server_type: &str, policy: Policy) -> Self {
        self.rule(server_type, policy.into())
    }

    fn rule(mut self, server_type: &str, rule: Rule) -> Self {
        self.parts.rules.retain(|(other, _)| other != server_type);
        self.parts.rules.push((server_type.to_owned(), rule));
        self
    }

    /// Completes what a configuration says with the rules of this application. For hosts that forward messages.
    pub fn complete(&self, mut routing: Routing) -> Routing {
        for (server_type, rule) in &self.parts.rules {
            routing.suggest(server_type, rule.clone());
        }
        routing
    }
}

/// The cluster and the clients.
impl App {
    /// Runs `f` for each server that joins or goes, with a [`ServerChange`](crate::ServerChange) among its extractors.
    /// Nothing changes in standalone mode.
    pub fn on_server<M: 'static>(mut self, f: impl Handler<M>) -> Self {
        self.parts.listeners.push(Listener::Function(AnyHandler::new(f)));
        self
    }

    /// Adds a listener with a method for each kind of change.
    pub fn add_listener(mut self, listener: impl MemberListener) -> Self {
        self.parts.listeners.push(Listener::Members(Arc::new(listener)));
        self
    }

    /// Adds a listener of the form that Pitaya's discovery takes.
    pub fn add_server_listener(mut self, listener: impl ServerListener) -> Self {
        self.parts.listeners.push(Listener::Servers(Arc::new(listener)));
        self
    }

    /// Judges each client's handshake, in the order in which the checks were added; the first failure refuses the
    /// client, with its text in the log only. Handshakes happen where the sockets are: in standalone mode, and in a
    /// gateway that was built with this application.
    ///
    /// The check runs on the thread of a reactor and must not wait for anything.
    pub fn handshake(
        mut self,
        name: &str,
        check: impl Fn(&Handshake) -> Result<()> + Send + Sync + 'static,
    ) -> Self {
        self.parts.checks.push((name.to_owned(), Box::new(check)));
        self
    }

    /// Gives routes a code of two bytes (1 to 65535), which clients learn in their handshake and use in place of the
    /// text. Like [`App::handshake`] it takes effect where the sockets are. A route or code that cannot be, or is given
    /// twice with different meanings, stops the start.
    pub fn dictionary<R: Into<String>>(
        mut self,
        routes: impl IntoIterator<Item = (R, u16)>,
    ) -> Self {
        for (route, code) in routes {
            let route = route.into();
            if self.parts.dictionary.get(&route).is_some_and(|before| *before != code) {
                self.mistakes.push(format!("two codes of the route {route:?}"));
            }
            self.parts.dictionary.insert(route, code);
        }
        let all = self.parts.dictionary.iter().map(|(route, code)| (route.clone(), *code));
        if let Err(error) = Dictionary::default().insert_all(all) {
            self.mistakes.push(format!("route dictionary: {error}"));
        }
        self
    }

    /// Adds the two routes that pitaya-cli and our client ask for documentation: `service.docs` and
    /// `service.descriptors`. They tell everybody what the application answers.
    ///
    /// Fields of protobuf messages are known from the descriptors given with [`App::descriptors`].
    pub fn docs(mut self, service: &str) -> Self {
        self.parts.has_docs = true;
        self.on(&format!("{service}.docs"), docs::docs)
            .on(&format!("{service}.descriptors"), docs::descriptors)
    }

    /// Gives the descriptors of protobuf messages: an encoded `google.protobuf.FileDescriptorSet`, as `protoc` and
    /// prost-build write it. Bytes that are none stop the start.
    pub fn descriptors(mut self, set: &[u8]) -> Self {
        if let Err(error) = self.parts.descriptors.add(set) {
            self.mistakes.push(format!("descriptors: {error}"));
        }
        self
    }

    /// Takes what the configuration says to applications, for hosts: `pitaya.serializertype`,
    /// `pitaya.defaultpipelines.structvalidation.enabled`, and everything below `pitaya.worker`, of jobs. [`App::run`]
    /// does it by itself.
    pub fn configured(mut self, config: &Config) -> Self {
        let serializer = Serializer::from_number(config.int("pitaya.serializertype"));
        self.parts.serializer = serializer.unwrap_or_default();
        let is_validating = config.bool("pitaya.defaultpipelines.structvalidation.enabled");
        self.parts.pipelines.validators.enable(is_validating);
        self.jobs = JobOptions::new(config);
        self
    }

    /// The route codes that were given, for the host of an embedded application.
    pub fn route_codes(&self) -> &BTreeMap<String, u16> {
        &self.parts.dictionary
    }

    /// The checks of handshakes, for the host of an embedded application, which runs them.
    pub fn take_handshake_checks(&mut self) -> Vec<(String, Check)> {
        std::mem::take(&mut self.parts.checks)
    }
}
