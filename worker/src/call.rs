//! One call as handlers and extractors see it, and the call from here to another server.

use std::any::Any;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use prost::Message;
use serde_json::{Map, Value};
use shared::error::code;
use shared::routing::Routing;
use shared::server::Server;
use tokio::time::Instant;

use crate::call_times::CallTimes;
use crate::counters::{Counter, Counters};
use crate::docs::Docs;
use crate::error::{Error, Result};
use crate::groups::GroupStore;
use crate::jobs::JobMaker;
use crate::link::{Link, LinkError};
use crate::metadata::{self, Caller};
use crate::modules::ModuleList;
use crate::peers::Peers;
use crate::servers::Servers;
use crate::service::WeakService;
use crate::session::SessionState;
use crate::session_hooks::SessionHooks;
use crate::state::States;
use crate::timers::TimerSet;

/// What all calls of a process share.
pub(crate) struct Environment {
    pub(crate) server_id: String,
    pub(crate) server_type: String,
    pub(crate) states: States,
    pub(crate) link: Arc<dyn Link>,
    pub(crate) servers: Arc<dyn Servers>,
    pub(crate) groups: GroupStore,
    pub(crate) jobs: JobMaker,
    pub(crate) docs: Docs,
    pub(crate) modules: ModuleList,
    pub(crate) session_hooks: SessionHooks,
    pub(crate) timers: TimerSet,
    /// The type of the gateway in this process: then sessions are reached by their id, bound or not.
    pub(crate) frontend_type: Option<Arc<str>>,
    pub(crate) counters: Arc<Counters>,
    /// None where nobody measures.
    pub(crate) call_times: Option<CallTimes>,
    /// For requests and calls that name no timeout of their own.
    pub(crate) request_timeout: Duration,
    /// See [`ClusterView::is_frontend`](crate::ClusterView::is_frontend).
    pub(crate) is_frontend: bool,
    /// See [`ClusterView::is_loop_back_allowed`](crate::ClusterView::is_loop_back_allowed).
    pub(crate) is_loop_back_allowed: bool,
    pub(crate) peers: Peers,
    pub(crate) routing: Routing,
    /// For calls to ourselves. Set when the service was made.
    pub(crate) own_service: OnceLock<WeakService>,
}

impl Environment {
    /// Reports a panic of the application's code, whose text the runtime has printed already.
    pub(crate) fn note_panic(&self, route: &str, whose: &str) {
        self.counters.add(Counter::Panicked);
        tracing::error!(route, whose, "a panic was caught");
    }
}

/// What belongs to one call and its extractors share.
pub(crate) struct Context {
    pub(crate) environment: Arc<Environment>,
    pub(crate) route: String,
    pub(crate) metadata: Bytes,
    pub(crate) frontend_id: String,
    /// None in hooks, which take as long as they take; their calls get the default timeout.
    pub(crate) deadline: Option<Instant>,
    /// None in hooks and remotes.
    pub(crate) session: Option<Mutex<SessionState>>,
    /// What pipelines and handlers of this call leave for each other, by type. Mostly nothing.
    pub(crate) values: Mutex<Option<Box<States>>>,
}

/// A call on its way out.
pub(crate) struct Outgoing<'a> {
    /// The full route, or one of the framework's two-part ones.
    pub(crate) route: &'a str,
    pub(crate) argument: Bytes,
    pub(crate) timeout: Duration,
    /// What the caller adds to the metadata.
    pub(crate) entries: &'a Map<String, Value>,
}

/// One call: the context and the message.
pub struct Call {
    context: Arc<Context>,
    message: Bytes,
    /// The message as the handler's last argument, when it was decoded before the handler's turn.
    pub(crate) argument: Option<Box<dyn Any + Send>>,
    /// What became of the call, for the functions after the handler.
    pub(crate) outcome: Option<Result<Bytes>>,
}

impl Call {
    pub(crate) fn new(context: Arc<Context>, message: Bytes) -> Self {
        Self { context, message, argument: None, outcome: None }
    }

    pub(crate) fn context(&self) -> &Arc<Context> {
        &self.context
    }

    /// The payload as the client sent it, already inflated.
    pub fn message(&self) -> &Bytes {
        &self.message
    }
}

impl Context {
    /// The context of a hook: nobody asked, no session.
    pub(crate) fn of_hook(environment: Arc<Environment>) -> Self {
        Self {
            environment,
            route: String::new(),
            metadata: Bytes::new(),
            frontend_id: String::new(),
            deadline: None,
            session: None,
            values: Mutex::default(),
        }
    }

    /// Leaves a value for whatever of this call runs later; one of the same type is replaced.
    pub(crate) fn insert<T: Send + Sync + 'static>(&self, value: T) {
        let mut values = self.values.lock().unwrap_or_else(PoisonError::into_inner);
        values.get_or_insert_default().insert(value);
    }

    pub(crate) fn find<T: Send + Sync + 'static>(&self) -> Option<Arc<T>> {
        self.values.lock().unwrap_or_else(PoisonError::into_inner).as_ref()?.find()
    }

    pub(crate) fn remaining(&self) -> Duration {
        match self.deadline {
            Some(deadline) => deadline.saturating_duration_since(Instant::now()),
            None => self.environment.request_timeout,
        }
    }

    /// The gateway that owns the session of this call. It must be in the server table, because its type is part of
    /// every subject.
    pub(crate) fn frontend(&self) -> Result<Arc<Server>> {
        self.environment
            .servers
            .by_id(&self.frontend_id)
            .ok_or_else(|| Error::unknown("can't find any server with the provided ID"))
    }

    /// Calls a remote of another server and returns `Response.data`. The callee gets what is left of our time.
    pub(crate) async fn call_server(
        &self,
        server: &Server,
        route: &str,
        argument: Vec<u8>,
    ) -> Result<Bytes> {
        let entries = Map::new();
        let (argument, timeout) = (argument.into(), self.remaining());
        let call = Outgoing { route, argument, timeout, entries: &entries };
        let answer = self.request(server, &call).await;
        answer.map_err(|error| self.link_error(error, server, &call))?
    }

    /// Sends a call to a server and returns what it says: `Response.data`, or its error. Measured, unless it stays in
    /// this process: a gateway's own sessions are reached by calls as well.
    pub(crate) async fn request(
        &self,
        server: &Server,
        call: &Outgoing<'_>,
    ) -> Result<Result<Bytes>, LinkError> {
        let began = Instant::now();
        let answer = self.send(server, call).await.map(read_answer);
        let environment = &self.environment;
        let is_leaving = server.id != environment.server_id;
        if let Some(times) = environment.call_times.as_ref().filter(|_| is_leaving) {
            let code = match &answer {
                Ok(Ok(_)) => "",
                Ok(Err(error)) => &error.code,
                Err(error) => link_error_code(*error),
            };
            times.record(call.route, code, began.elapsed());
        }
        answer
    }

    /// Sends a call to a server and returns its encoded `protos.Response`.
    pub(crate) async fn send(
        &self,
        server: &Server,
        call: &Outgoing<'_>,
    ) -> Result<Bytes, LinkError> {
        let link = &self.environment.link;
        link.request(&server.subject(), self.encode(call), call.timeout).await
    }

    /// The encoded `protos.Request` of a user RPC (cluster protocol 5.4).
    pub(crate) fn encode(&self, call: &Outgoing<'_>) -> Vec<u8> {
        let environment = &self.environment;
        let frontend_id = if environment.is_frontend { &environment.server_id } else { "" };
        let caller = Caller {
            id: &environment.server_id,
            server_type: &environment.server_type,
            route: &self.route,
            timeout: call.timeout,
            entries: call.entries,
        };
        let request = proto::Request {
            r#type: proto::RpcType::User.into(),
            msg: Some(proto::Msg {
                route: call.route.to_owned(),
                data: call.argument.clone(),
                ..proto::Msg::default()
            }),
            frontend_id: frontend_id.to_owned(),
            metadata: metadata::encode_nested(&self.metadata, &caller).into(),
            ..proto::Request::default()
        };
        request.encode_to_vec()
    }

    /// The error that Pitaya's client would see (cluster protocol 7.1): only a timeout has a code. Ours as well has a
    /// request that was never sent.
    pub(crate) fn link_error(&self, error: LinkError, to: &Server, call: &Outgoing<'_>) -> Error {
        match error {
            LinkError::Timeout => self.timeout_error(&to.id, call),
            error => Error::new(link_error_code(error), error.to_string()),
        }
    }

    /// No answer of the server `to` came in time.
    pub(crate) fn timeout_error(&self, to: &str, call: &Outgoing<'_>) -> Error {
        Error::new(code::REQUEST_TIMEOUT, LinkError::Timeout.to_string())
            .with("peer.id", to)
            .with("route", call.route)
            .with("server", &self.environment.server_id)
            .with("timeout", shared::go::go_duration::format(call.timeout))
    }
}

fn link_error_code(error: LinkError) -> &'static str {
    match error {
        LinkError::Timeout => code::REQUEST_TIMEOUT,
        LinkError::Disconnected => code::BUSY,
        _ => code::UNKNOWN,
    }
}

/// What an encoded `protos.Response` says: its data, or the callee's error.
pub(crate) fn read_answer(answer: Bytes) -> Result<Bytes> {
    let response = proto::Response::decode(answer)?;
    match response.error {
        None => Ok(response.data),
        Some(error) => Err(error_of(error)),
    }
}

fn error_of(error: proto::Error) -> Error {
    let code = if error.code.is_empty() { code::UNKNOWN.into() } else { error.code };
    Error { code: code.into(), msg: error.msg, metadata: error.metadata }
}
