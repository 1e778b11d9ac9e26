//! Calls to remotes of other servers (user RPC, cluster protocol 5.4).
//!
//! A call goes out once, except when NATS says that nobody listens: then it provably reached nobody, and another
//! server of the type gets it, unless a function of the application has chosen. After a timeout it may have been carried out, and is not repeated. Calls to the own
//! type or id are refused, as in Pitaya, or run in this process when that is configured.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use prost::Message;
use serde_json::{Map, Value};
use shared::error::code;
use shared::route::Route;
use shared::router::Policy;
use shared::routing::{self, RouteFunction, RouteRequest, RouteSession, Rule};
use shared::server::Server;
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::call::{Call, Context, Outgoing, read_answer};
use crate::error::{Error, Result};
use crate::extract::FromCall;
use crate::link::LinkError;
use crate::peers::Wanted;
use crate::request::Reply;
use crate::service::WeakService;

/// Extractor that calls remotes of other servers.
///
/// Arguments and results are protobuf messages; `()` stands for none. What travels with the request that is being
/// served (its correlation id, the application's own entries) travels with the call as well. A call that is dropped
/// is not waited for any more, but may be carried out.
///
/// ```
/// # use worker::prelude::*;
/// # #[derive(Clone, PartialEq, prost::Message)]
/// # struct Spend { #[prost(uint64, tag = "1")] gold: u64 }
/// # #[derive(Clone, PartialEq, prost::Message)]
/// # struct Player { #[prost(uint64, tag = "1")] gold: u64 }
/// async fn buy(rpc: Rpc, price: u64) -> Result<u64> {
///     let player: Player = rpc.call("metagame.player.spend", &Spend { gold: price }).await?;
///     Ok(player.gold)
/// }
/// let app = App::new("room").on("shop.buy", buy);
/// ```
#[derive(Clone)]
pub struct Rpc {
    context: Arc<Context>,
    timeout: Option<Duration>,
    entries: Map<String, Value>,
    key: Option<String>,
}

impl FromCall for Rpc {
    fn from_call(call: &Call) -> Result<Self> {
        let context = Arc::clone(call.context());
        Ok(Self { context, timeout: None, entries: Map::new(), key: None })
    }
}

impl Rpc {
    /// Calls `serverType.service.method` on any server of the type.
    ///
    /// Fails with the remote's own error; with `PIT-500` when there is no server of the type; with `PIT-408` when no
    /// answer came in time; with `PIT-503` while NATS is away; with `PIT-000` when the route has no server type or
    /// the own one, when nobody of the type listens, when the argument is too large for NATS, or when the answer is
    /// not an `R`.
    pub async fn call<R: Message + Default>(
        &self,
        route: &str,
        argument: &impl Message,
    ) -> Result<R> {
        Ok(R::decode(self.raw(route, argument.encode_to_vec().into()).await?)?)
    }

    /// The same on the server with this id; `server not found` when it is not known. Never tried elsewhere.
    pub async fn call_to<R: Message + Default>(
        &self,
        server_id: &str,
        route: &str,
        argument: &impl Message,
    ) -> Result<R> {
        Ok(R::decode(self.raw_to(server_id, route, argument.encode_to_vec().into()).await?)?)
    }

    /// As [`Rpc::call`], with an argument and a result that are encoded already.
    pub async fn raw(&self, route: &str, argument: Bytes) -> Result<Bytes> {
        let server_type = server_type(route)?;
        let environment = &self.context.environment;
        if server_type == environment.server_type {
            return self.call_own(route, argument).await;
        }
        match environment.routing.of(server_type) {
            Rule::Policy(policy) => self.call_any(server_type, *policy, route, argument).await,
            Rule::Function(function) => {
                let server = self.ask(function, server_type, route, &argument)?;
                self.call_one(&server, route, argument).await
            }
        }
    }

    /// The servers of a type that were not tried yet, one after the other, until one takes the call.
    async fn call_any(
        &self,
        server_type: &str,
        policy: Policy,
        route: &str,
        argument: Bytes,
    ) -> Result<Bytes> {
        let environment = &self.context.environment;
        let deadline = Instant::now() + self.timeout_of_call();
        let key = self.key_of_call();
        let mut tried: Vec<Arc<Server>> = Vec::new();
        let mut nobody = no_servers();
        loop {
            let table = environment.servers.table();
            let wanted = Wanted { server_type, policy, key: &key, tried: &tried };
            let chosen = environment.peers.choose(table.by_type(server_type), &wanted);
            let Some(chosen) = chosen else { return Err(nobody) };
            let left = deadline.saturating_duration_since(Instant::now());
            let call = self.outgoing(route, argument.clone(), left);
            match self.context.request(chosen.server(), &call).await {
                Ok(answer) => return answer,
                Err(error) => {
                    let failure = self.context.link_error(error, chosen.server(), &call);
                    if !error.is_undelivered() || left.is_zero() {
                        return Err(failure);
                    }
                    nobody = failure;
                }
            }
            chosen.suspect();
            tried.push(Arc::clone(chosen.server()));
        }
    }

    /// As [`Rpc::call_to`], with an argument and a result that are encoded already.
    pub async fn raw_to(&self, server_id: &str, route: &str, argument: Bytes) -> Result<Bytes> {
        server_type(route)?;
        let environment = &self.context.environment;
        if server_id == environment.server_id {
            return self.call_own(route, argument).await;
        }
        let server = environment.servers.by_id(server_id);
        let server = server.ok_or_else(|| Error::unknown("server not found"))?;
        self.call_one(&server, route, argument).await
    }

    async fn call_one(&self, server: &Server, route: &str, argument: Bytes) -> Result<Bytes> {
        let call = self.outgoing(route, argument, self.timeout_of_call());
        let answer = self.context.request(server, &call).await;
        answer.map_err(|error| self.context.link_error(error, server, &call))?
    }

    /// Lets a function of the application choose.
    fn ask(
        &self,
        function: &RouteFunction,
        server_type: &str,
        route: &str,
        payload: &[u8],
    ) -> Result<Arc<Server>> {
        let table = self.context.environment.servers.table();
        let servers = table.by_type(server_type);
        if servers.is_empty() {
            return Err(no_servers());
        }
        let ask = |session| {
            let request = RouteRequest { route, payload, session, servers, table: &table };
            Ok(routing::ask(function, &request)?)
        };
        let Some(state) = &self.context.session else { return ask(None) };
        // Copied out: the function is the application's, and may look at the session itself.
        let (id, uid, data) = {
            let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
            (state.id, state.uid.clone(), state.data.encode())
        };
        ask(Some(RouteSession { id, uid: &uid, data: &data }))
    }

    /// Calls that belong together by this key where servers are chosen by consistent hash or stickily. Without it that is
    /// the user of the session, if there is one.
    #[must_use]
    pub fn key(&self, key: impl Into<String>) -> Self {
        Self { key: Some(key.into()), ..self.clone() }
    }

    fn key_of_call(&self) -> String {
        if let Some(key) = &self.key {
            return key.clone();
        }
        let Some(state) = &self.context.session else { return String::new() };
        state.lock().unwrap_or_else(PoisonError::into_inner).uid.clone()
    }

    /// Calls that wait this long at most. The time of the request that is being served ends them earlier.
    #[must_use]
    pub fn timeout(&self, timeout: Duration) -> Self {
        Self { timeout: Some(timeout), ..self.clone() }
    }

    /// Calls that carry an entry in their metadata, for the callee and for whomever it calls in turn; see
    /// [`Ctx::metadata`](crate::Ctx::metadata). The framework's own entries (cluster protocol 6) cannot be set.
    #[must_use]
    pub fn with(&self, key: impl Into<String>, value: impl Into<Value>) -> Self {
        let mut same = self.clone();
        same.entries.insert(key.into(), value.into());
        same
    }

    fn timeout_of_call(&self) -> Duration {
        let remaining = self.context.remaining();
        self.timeout.map_or(remaining, |timeout| match self.context.deadline {
            Some(_) => timeout.min(remaining),
            None => timeout,
        })
    }

    fn outgoing<'a>(&'a self, route: &'a str, argument: Bytes, timeout: Duration) -> Outgoing<'a> {
        Outgoing { route, argument, timeout, entries: &self.entries }
    }

    /// The way of all calls, without the wire: limits, deadline and the guard against panics are the same.
    async fn call_own(&self, route: &str, argument: Bytes) -> Result<Bytes> {
        let environment = &self.context.environment;
        if !environment.is_loop_back_allowed {
            let text = "you are making a rpc that may be processed locally, either specify a different server type or specify a server id";
            return Err(Error::unknown(text));
        }
        let service = environment.own_service.get().and_then(WeakService::upgrade);
        let service = service.ok_or(LinkError::Closed)?;
        let call = self.outgoing(route, argument, self.timeout_of_call());
        let (sender, answered) = oneshot::channel();
        let reply = Reply::new(move |answer| {
            // Whoever gave up waiting misses nothing.
            let _ = sender.send(answer);
        });
        service.handle(self.context.encode(&call).into(), reply);
        match tokio::time::timeout(call.timeout, answered).await {
            Ok(Ok(answer)) => read_answer(answer),
            Ok(Err(_)) => Err(LinkError::Closed.into()),
            Err(_) => Err(self.context.timeout_error(&environment.server_id, &call)),
        }
    }
}

fn no_servers() -> Error {
    Error::new(code::INTERNAL, "no servers available of this type")
}

/// The server type of a route that names one.
fn server_type(route: &str) -> Result<&str> {
    let text = "no server type chosen for sending RPC, send a full route in the format server.service.component";
    Route::parse(route)?.server_type.ok_or_else(|| Error::unknown(text))
}
