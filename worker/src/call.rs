//! One call as handlers and extractors see it, and the call from here to another server.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use prost::Message;
use shared::error::code;
use shared::server::Server;
use tokio::time::Instant;

use crate::error::{Error, Result};
use crate::groups::GroupStore;
use crate::jobs::JobMaker;
use crate::link::{Link, LinkError};
use crate::metadata::{self, Caller};
use crate::servers::Servers;
use crate::session::SessionState;
use crate::state::States;

/// What all calls of a process share.
pub(crate) struct Environment {
    pub(crate) server_id: String,
    pub(crate) server_type: String,
    pub(crate) states: States,
    pub(crate) link: Arc<dyn Link>,
    pub(crate) servers: Arc<dyn Servers>,
    pub(crate) groups: GroupStore,
    pub(crate) jobs: JobMaker,
    /// For requests and calls that name no timeout of their own.
    pub(crate) request_timeout: Duration,
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
}

/// One call: the context and the message.
pub struct Call {
    context: Arc<Context>,
    message: Bytes,
}

impl Call {
    pub(crate) fn new(context: Arc<Context>, message: Bytes) -> Self {
        Self { context, message }
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
        }
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
        let environment = &self.environment;
        let timeout = self.remaining();
        let caller =
            Caller { id: &environment.server_id, server_type: &environment.server_type, timeout };
        let request = proto::Request {
            r#type: proto::RpcType::User.into(),
            msg: Some(proto::Msg {
                route: route.to_owned(),
                data: argument.into(),
                ..proto::Msg::default()
            }),
            metadata: metadata::encode_nested(&self.metadata, &caller).into(),
            ..proto::Request::default()
        };
        let answer = environment
            .link
            .request(&server.subject(), request.encode_to_vec(), timeout)
            .await
            .map_err(|error| self.link_error(error, server, route, timeout))?;
        let response = proto::Response::decode(answer)?;
        match response.error {
            None => Ok(response.data),
            Some(error) => Err(error_of(error)),
        }
    }

    /// The error that Pitaya's client would see (cluster protocol 7.1): only a timeout has a code.
    fn link_error(&self, error: LinkError, to: &Server, route: &str, timeout: Duration) -> Error {
        if error != LinkError::Timeout {
            return Error::unknown(error.to_string());
        }
        Error::new(code::REQUEST_TIMEOUT, error.to_string())
            .with("peer.id", &to.id)
            .with("route", route)
            .with("server", &self.environment.server_id)
            .with("timeout", shared::go::go_duration::format(timeout))
    }
}

fn error_of(error: proto::Error) -> Error {
    let code = if error.code.is_empty() { code::UNKNOWN.into() } else { error.code };
    Error { code: code.into(), msg: error.msg, metadata: error.metadata }
}
