//! [`Link`] over gRPC: one HTTP/2 connection to each server, and the binding storage to find the frontends of users.
//!
//! Subjects name the same places as with NATS, so nothing above knows the difference: a server's subject is a call on its
//! connection, a user's subject is a push or a kick at the frontend that holds the user. Pushes to one user keep their
//! order, because each user has one of a few lanes; between pushes and answers there is no order, as in Pitaya.
//!
//! Tasks, all owned here: the lanes, and one that follows the servers to connect to new ones and forget old ones.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use prost::Message;
use proto::service::{METHOD_BIND, METHOD_CALL, METHOD_KICK, METHOD_PUSH};
use shared::cluster::bindings::BindingStorage;
use shared::error::code;
use shared::server::{Server, ServerTable};
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, ConnectError, Request, Status};

use super::address::address_of;
use super::codec::Encoded;
use crate::link::{Link, LinkError};

/// Pushes and kicks that run at the same time.
const LANES: usize = 16;

/// Pushes and kicks that wait in one lane.
const LANE_MAX: usize = 1024;

/// Up to here [`Link::ready`] says that there is room in a lane.
const LANE_READY: usize = LANE_MAX / 2;

/// How often an HTTP/2 ping checks a connection, and how long its answer may take.
const PING_INTERVAL: Duration = Duration::from_secs(10);

/// How calls leave.
#[derive(Clone, Debug)]
pub struct LinkOptions {
    /// Limit of one connect.
    pub connect_timeout: Duration,
    /// Limit of one push or kick.
    pub request_timeout: Duration,
    /// Connect at the first call instead of at the server's announcement.
    pub is_lazy: bool,
    /// The own region.
    pub region: String,
}

/// The link of a server in a cluster over gRPC.
pub struct GrpcLink {
    peers: Arc<Peers>,
    lanes: Vec<mpsc::Sender<ToUser>>,
    /// A lane has taken something out.
    emptied: Arc<Notify>,
    keys: RandomState,
}

/// A push or a kick on its way.
struct ToUser {
    frontend_type: String,
    uid: String,
    method: &'static str,
    payload: Bytes,
}

struct Peers {
    options: LinkOptions,
    tables: watch::Receiver<Arc<ServerTable>>,
    channels: Mutex<HashMap<String, Peer>>,
}

/// A server, and the connection to it.
struct Peer {
    address: (String, u16),
    channel: Channel,
}

impl GrpcLink {
    /// The link, and its tasks, which end when the set is dropped. Must be called inside a tokio runtime.
    pub fn start(
        options: LinkOptions,
        tables: watch::Receiver<Arc<ServerTable>>,
        bindings: &BindingStorage,
    ) -> (Self, JoinSet<()>) {
        let mut tasks = JoinSet::new();
        let peers = Arc::new(Peers { options, tables, channels: Mutex::default() });
        tasks.spawn(follow(Arc::clone(&peers)));
        let emptied = Arc::new(Notify::new());
        let lanes = std::iter::repeat_with(|| {
            let (sender, receiver) = mpsc::channel(LANE_MAX);
            let lane = Lane { peers: Arc::clone(&peers), bindings: bindings.clone() };
            tasks.spawn(lane.run(receiver, Arc::clone(&emptied)));
            sender
        });
        let lanes = lanes.take(LANES).collect();
        (Self { peers, lanes, emptied, keys: RandomState::new() }, tasks)
    }

    /// Calls the server of this id with an encoded `protos.Request`. Calls of one server leave in the order in which
    /// their futures are first polled.
    ///
    /// Fails with [`LinkError::Unreachable`] only when the server cannot have received it, and with
    /// [`LinkError::Timeout`]; everything else is an encoded `protos.Response` with an error in it.
    pub fn call(
        &self,
        id: &str,
        request: Bytes,
        limit: Duration,
    ) -> impl Future<Output = Result<Bytes, LinkError>> + Send + 'static {
        let channel = self.peers.channel(id);
        async move {
            let channel = channel.ok_or(LinkError::Unreachable)?;
            match unary(channel, METHOD_CALL, request, limit).await {
                Ok(answer) => Ok(answer),
                Err(status) => failure(&status),
            }
        }
    }

    /// Tells the frontend of this id that another one, `own_id`, has bound the user. Fails with the reason as text.
    pub async fn announce_bind(
        &self,
        frontend_id: &str,
        uid: &str,
        own_id: &str,
    ) -> Result<(), String> {
        let channel = self.peers.channel(frontend_id).ok_or(NO_CONNECTION)?;
        let bound = proto::BindMsg { uid: uid.to_owned(), fid: own_id.to_owned() };
        let limit = self.peers.options.request_timeout;
        let told = unary(channel, METHOD_BIND, bound.encode_to_vec().into(), limit).await;
        told.map(drop).map_err(|status| status.message().to_owned())
    }
}

impl Link for GrpcLink {
    fn request(
        &self,
        subject: &str,
        payload: Vec<u8>,
        timeout: Duration,
    ) -> BoxFuture<'_, Result<Bytes, LinkError>> {
        let id = subject.rsplit('/').next().unwrap_or_default();
        if self.peers.channel(id).is_none() {
            return Box::pin(std::future::ready(Ok(answer(NO_CONNECTION))));
        }
        Box::pin(self.call(id, payload.into(), timeout))
    }

    fn publish(&self, subject: &str, payload: Vec<u8>) -> Result<(), LinkError> {
        let parts = subject.strip_prefix("pitaya/").and_then(|rest| rest.split_once("/user/"));
        let (frontend_type, rest) = parts.ok_or(LinkError::InvalidSubject)?;
        let (uid, method) = match rest.rsplit_once('/') {
            Some((uid, "push")) => (uid, METHOD_PUSH),
            Some((uid, "kick")) => (uid, METHOD_KICK),
            _ => return Err(LinkError::InvalidSubject),
        };
        let lane = self.keys.hash_one((frontend_type, uid)) as usize % LANES;
        let to_user = ToUser {
            frontend_type: frontend_type.to_owned(),
            uid: uid.to_owned(),
            method,
            payload: payload.into(),
        };
        let lane = self.lanes.get(lane).ok_or(LinkError::Closed)?;
        lane.try_send(to_user).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => LinkError::Full,
            mpsc::error::TrySendError::Closed(_) => LinkError::Closed,
        })
    }

    fn ready(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {
            loop {
                let emptied = self.emptied.notified();
                if self.lanes.iter().all(|lane| lane.capacity() >= LANE_READY) {
                    return;
                }
                emptied.await;
            }
        })
    }
}

/// Carries the pushes and kicks of some users, one after the other.
struct Lane {
    peers: Arc<Peers>,
    bindings: BindingStorage,
}

impl Lane {
    async fn run(self, mut waiting: mpsc::Receiver<ToUser>, emptied: Arc<Notify>) {
        while let Some(to_user) = waiting.recv().await {
            if waiting.len() <= LANE_READY {
                emptied.notify_waiters();
            }
            if let Err(reason) = self.carry(&to_user).await {
                tracing::debug!(uid = to_user.uid, reason, "a user was not reached");
            }
        }
    }

    async fn carry(&self, to_user: &ToUser) -> Result<(), String> {
        let found = self.bindings.frontend_of(&to_user.uid, &to_user.frontend_type).await;
        let frontend = found.map_err(|error| error.to_string())?;
        let channel = self.peers.channel(&frontend).ok_or(NO_CONNECTION)?;
        let limit = self.peers.options.request_timeout;
        let sent = unary(channel, to_user.method, to_user.payload.clone(), limit).await;
        sent.map(drop).map_err(|status| status.message().to_owned())
    }
}

impl Peers {
    /// The connection to a server that is known at this moment and says where it is.
    fn channel(&self, id: &str) -> Option<Channel> {
        let server = self.tables.borrow().by_id(id).cloned()?;
        let address = address_of(&server, &self.options.region)?;
        let mut channels = self.channels();
        if let Some(peer) = channels.get(id).filter(|peer| peer.address == address) {
            return Some(peer.channel.clone());
        }
        let channel = self.endpoint(&address)?.connect_lazy();
        channels.insert(id.to_owned(), Peer { address, channel: channel.clone() });
        Some(channel)
    }

    fn endpoint(&self, (host, port): &(String, u16)) -> Option<Endpoint> {
        let host = if host.contains(':') { format!("[{host}]") } else { host.clone() };
        let endpoint = Endpoint::from_shared(format!("http://{host}:{port}"));
        let endpoint = endpoint.inspect_err(|error| tracing::warn!(host, %error, "gRPC address"));
        Some(
            endpoint
                .ok()?
                .connect_timeout(self.options.connect_timeout)
                .http2_keep_alive_interval(PING_INTERVAL)
                .keep_alive_timeout(PING_INTERVAL)
                .keep_alive_while_idle(true)
                .tcp_nodelay(true),
        )
    }

    /// Connects now, so that the first call need not wait. A failure is repaired by the first call.
    async fn connect(&self, server: &Server) {
        let Some(address) = address_of(server, &self.options.region) else {
            tracing::debug!(server = server.id, "the server does not say where it takes gRPC");
            return;
        };
        let Some(endpoint) = self.endpoint(&address) else { return };
        match endpoint.connect().await {
            Ok(channel) => {
                self.channels().entry(server.id.clone()).or_insert(Peer { address, channel });
            }
            Err(error) => tracing::debug!(server = server.id, %error, "not connected yet"),
        }
    }

    fn channels(&self) -> MutexGuard<'_, HashMap<String, Peer>> {
        self.channels.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Keeps the connections in step with the servers.
async fn follow(peers: Arc<Peers>) {
    let mut tables = peers.tables.clone();
    let mut connecting = JoinSet::new();
    loop {
        let table = ServerTable::clone(&tables.borrow_and_update());
        peers.channels().retain(|id, _| table.by_id(id).is_some());
        if !peers.options.is_lazy {
            let known = |server: &&Arc<Server>| peers.channels().contains_key(&server.id);
            let new: Vec<_> = table.iter().filter(|server| !known(server)).cloned().collect();
            for server in new {
                let peers = Arc::clone(&peers);
                connecting.spawn(async move { peers.connect(&server).await });
            }
        }
        while connecting.try_join_next().is_some() {}
        if tables.changed().await.is_err() {
            return;
        }
    }
}

/// One call with a deadline that the other side knows as well.
async fn unary(
    channel: Channel,
    method: &'static str,
    message: Bytes,
    limit: Duration,
) -> Result<Bytes, Status> {
    let mut request = Request::new(message);
    request.set_timeout(limit);
    let mut grpc = Grpc::new(channel);
    let call = async {
        grpc.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
        grpc.unary(request, PathAndQuery::from_static(method), Encoded).await
    };
    match timeout(limit, call).await {
        Ok(answer) => answer.map(tonic::Response::into_inner),
        Err(_) => Err(Status::deadline_exceeded("no answer in time")),
    }
}

const NO_CONNECTION: &str = "rpc client has no connection to the chosen server";

/// An error without a code, as callers read answers.
fn answer(text: &str) -> Bytes {
    let error =
        proto::Error { code: code::UNKNOWN.into(), msg: text.to_owned(), ..Default::default() };
    proto::Response { data: Bytes::new(), error: Some(error) }.encode_to_vec().into()
}

/// A call that has no answer: what may be tried elsewhere is told from what may have been carried out.
fn failure(status: &Status) -> Result<Bytes, LinkError> {
    match status.code() {
        // tonic says that a call was cancelled when it ends it at its deadline, on either side.
        Code::DeadlineExceeded | Code::Cancelled => Err(LinkError::Timeout),
        _ if is_connect_error(status) => Err(LinkError::Unreachable),
        _ => Ok(answer(status.message())),
    }
}

fn is_connect_error(status: &Status) -> bool {
    let mut next: Option<&(dyn std::error::Error + 'static)> = Some(status);
    while let Some(error) = next {
        if error.is::<ConnectError>() {
            return true;
        }
        next = error.source();
    }
    false
}
