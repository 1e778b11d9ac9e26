//! Listeners: what an application wants to know about the servers of the cluster.
//!
//! Each listener has a task of its own, off the path on which the table of servers is kept, so a slow one delays nobody.
//! It follows a bounded queue of 1,024 events; one that falls further behind is brought up to date by comparing what it
//! was told with the table, and misses only servers that came and went in between. A panic in a listener is logged, and
//! the next event comes all the same. The own server is never reported.
//!
//! Why a server is gone is known only in part from etcd: a server of ours says so before it leaves. The others are asked
//! over NATS. Whoever has no subscriber left has crashed; whoever still answers has lost its lease, or is a Go server
//! that leaves, which is gone a moment later.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use shared::cluster::discovery::{Departure, Discovery, ServerEvent};
use shared::server::{METADATA_PROTOCOL, METADATA_WINDOW, Server, ServerTable};
use tokio::sync::broadcast::{self, error::RecvError};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::call::{Call, Context, Environment, Outgoing};
use crate::error::{Error, Result};
use crate::extract::FromCall;
use crate::handler::AnyHandler;
use crate::link::LinkError;

/// How long a server that is gone from etcd may take to answer.
const PROBE_TIMEOUT: Duration = Duration::from_secs(1);

/// After this a Go server that leaves has closed its subscriptions; its pause after leaving etcd is 300 ms.
const PROBE_PAUSE: Duration = Duration::from_millis(1500);

/// A route that nobody serves: every server answers that it does not know it.
const PROBE_ROUTE: &str = "dragonfruit.probe.alive";

/// Why a server is down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DownCause {
    /// It left the cluster as it should.
    Left,
    /// Nobody receives its messages any more.
    Crashed,
    /// It still takes messages, but its lease in etcd has expired; it will be back.
    LeaseLost,
}

/// One change of the cluster; also the extractor with which functions given to
/// [`App::on_server`](crate::App::on_server) receive it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ServerChange {
    /// The server can be called from now on.
    Added(Arc<Server>),
    /// The server is not called any more. [`ServerChange::Down`] follows when its cause is known, at once or within
    /// four seconds.
    Removed(Arc<Server>),
    /// Why the server is gone.
    Down(Arc<Server>, DownCause),
}

impl FromCall for ServerChange {
    fn from_call(call: &Call) -> Result<Self> {
        let found = call.context().find::<Self>().map(|change| (*change).clone());
        found.ok_or_else(|| Error::unknown("no server has changed in this call"))
    }
}

/// A listener with a method for each kind of change, as Pitaya's documentation describes it. The methods may block for a
/// while: they run on a thread of their own.
pub trait MemberListener: Send + Sync + 'static {
    /// A server joined.
    fn add_member(&self, server: &Server) {
        let _ = server;
    }

    /// A server is gone.
    fn remove_member(&self, server: &Server) {
        let _ = server;
    }

    /// Why it is gone; comes after `remove_member`.
    fn server_down(&self, server: &Server, cause: DownCause) {
        let _ = (server, cause);
    }
}

/// The pair of methods that listeners have in Pitaya's code (`SDListener`). The methods may block for a while: they run
/// on a thread of their own.
pub trait ServerListener: Send + Sync + 'static {
    /// A server joined.
    fn add_server(&self, server: &Server);

    /// A server is gone.
    fn remove_server(&self, server: &Server);
}

/// Somebody who is told.
#[derive(Clone)]
pub(crate) enum Listener {
    Function(AnyHandler),
    Members(Arc<dyn MemberListener>),
    Servers(Arc<dyn ServerListener>),
}

/// Starts the tasks of all listeners; they end when the set is dropped.
pub(crate) fn start(
    listeners: &[Listener],
    discovery: &Discovery,
    environment: &Arc<Environment>,
) -> JoinSet<()> {
    let mut tasks = JoinSet::new();
    for listener in listeners {
        let follower = Follower {
            listener: listener.clone(),
            events: discovery.events(),
            tables: discovery.tables(),
            known: HashMap::new(),
            own_id: environment.server_id.clone(),
            environment: Arc::clone(environment),
            causes: JoinSet::new(),
        };
        tasks.spawn(follower.run());
    }
    tasks
}

/// One listener and what it was told.
struct Follower {
    listener: Listener,
    events: broadcast::Receiver<ServerEvent>,
    tables: watch::Receiver<Arc<ServerTable>>,
    known: HashMap<String, Arc<Server>>,
    own_id: String,
    environment: Arc<Environment>,
    /// Causes that are being found out.
    causes: JoinSet<(Arc<Server>, DownCause)>,
}

impl Follower {
    async fn run(mut self) {
        // The table may have been filled before the first event could be seen.
        self.catch_up().await;
        loop {
            tokio::select! {
                event = self.events.recv() => match event {
                    Ok(ServerEvent::Added(server)) => self.added(server).await,
                    Ok(ServerEvent::Removed(server, departure)) => self.removed(&server, departure).await,
                    Err(RecvError::Lagged(missed)) => {
                        tracing::warn!(missed, "a listener of servers is too slow");
                        self.events = self.events.resubscribe();
                        self.catch_up().await;
                    }
                    Err(RecvError::Closed) => return,
                },
                Some(Ok((server, cause))) = self.causes.join_next() => {
                    self.tell(ServerChange::Down(server, cause)).await;
                }
            }
        }
    }

    /// Tells the difference between what was told and what is.
    async fn catch_up(&mut self) {
        let table = self.tables.borrow_and_update().clone();
        let gone: Vec<_> = self
            .known
            .values()
            .filter(|server| table.by_id(&server.id).is_none_or(|now| now != *server))
            .cloned()
            .collect();
        for server in gone {
            self.removed(&server, Departure::Vanished).await;
        }
        let all: Vec<_> = table.iter().filter(|server| server.id != self.own_id).cloned().collect();
        for server in all {
            self.added(server).await;
        }
    }

    async fn added(&mut self, server: Arc<Server>) {
        if self.known.insert(server.id.clone(), Arc::clone(&server)).is_none() {
            self.tell(ServerChange::Added(server)).await;
        }
    }

    async fn removed(&mut self, server: &Arc<Server>, departure: Departure) {
        let Some(server) = self.known.remove(&server.id) else { return };
        self.tell(ServerChange::Removed(Arc::clone(&server))).await;
        if departure == Departure::Left {
            return self.tell(ServerChange::Down(server, DownCause::Left)).await;
        }
        let environment = Arc::clone(&self.environment);
        self.causes.spawn(async move {
            let cause = find_cause(&server, &environment).await;
            (server, cause)
        });
    }

    async fn tell(&self, change: ServerChange) {
        let (listener, environment) = (self.listener.clone(), Arc::clone(&self.environment));
        let told = match listener {
            Listener::Function(function) => {
                let context = Context::of_hook(environment);
                context.insert(change);
                let call = Call::new(Arc::new(context), Bytes::new());
                let run = AssertUnwindSafe(async { function.call(call).await }).catch_unwind();
                run.await.map(|outcome| {
                    if let Err(error) = outcome {
                        tracing::error!(%error, "a listener of servers failed");
                    }
                })
            }
            other => {
                let told = tokio::task::spawn_blocking(move || {
                    catch_unwind(AssertUnwindSafe(|| other.tell(&change)))
                });
                told.await.unwrap_or(Ok(()))
            }
        };
        if told.is_err() {
            self.environment.note_panic("", "a listener of servers");
        }
    }
}

impl Listener {
    fn tell(&self, change: &ServerChange) {
        match (self, change) {
            (Self::Members(listener), ServerChange::Added(server)) => listener.add_member(server),
            (Self::Members(listener), ServerChange::Removed(server)) => {
                listener.remove_member(server);
            }
            (Self::Members(listener), ServerChange::Down(server, cause)) => {
                listener.server_down(server, *cause);
            }
            (Self::Servers(listener), ServerChange::Added(server)) => listener.add_server(server),
            (Self::Servers(listener), ServerChange::Removed(server)) => {
                listener.remove_server(server);
            }
            (Self::Servers(_), ServerChange::Down(..)) | (Self::Function(_), _) => {}
        }
    }
}

/// Asks a server that did not say goodbye whether it is there.
async fn find_cause(server: &Server, environment: &Arc<Environment>) -> DownCause {
    if !is_alive(server, environment).await {
        return DownCause::Crashed;
    }
    let is_ours =
        [METADATA_WINDOW, METADATA_PROTOCOL].iter().any(|key| server.metadata.contains_key(*key));
    if is_ours {
        return DownCause::LeaseLost;
    }
    sleep(PROBE_PAUSE).await;
    if is_alive(server, environment).await { DownCause::LeaseLost } else { DownCause::Left }
}

async fn is_alive(server: &Server, environment: &Arc<Environment>) -> bool {
    let entries = serde_json::Map::new();
    let (route, timeout) = (PROBE_ROUTE, PROBE_TIMEOUT);
    let call = Outgoing { route, argument: Bytes::new(), timeout, entries: &entries };
    let asked = Context::of_hook(Arc::clone(environment)).send(server, &call).await;
    asked.err() != Some(LinkError::NoResponders)
}
