//! gRPC in the place of NATS, for clusters that run without it (cluster protocol 12).
//!
//! Reactors know nothing of it: each bus speaks NATS's protocol over one end of a socket pair, and a bridge at the other
//! end turns messages into calls and calls into messages. Everything here runs on the control thread's runtime. The tasks
//! belong to [`GrpcTransport`], but for the news of a bind, which ends by its deadline.
//!
//! ```text
//! reactor ─ bus ══ socket pair ══ bridge ─► link ──gRPC──► other servers
//!                                   ▲ └──── board ◄─ service ◄──gRPC── other servers
//! ```

mod board;
mod bridge;
mod lines;
mod service;

use std::io;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use shared::cluster::binding_writer::Replaced;
use shared::cluster::bindings::BindingStorage;
use shared::cluster::etcd::EtcdError;
use shared::nats::ConnectOptions;
use shared::server::{Server, ServerTable};
use tokio::sync::{oneshot, watch};
use tokio::task::{JoinHandle, JoinSet};
use worker::grpc::{GrpcLink, GrpcSettings, serve};

use crate::bus::link::NatsServer;
use crate::control::post;
use crate::mailbox::{Mail, Mailbox};
use crate::rules::Rules;
use board::Board;
use bridge::{Bridge, Landing};
use service::Frontend;

/// For the last answers on open connections, and the last calls of buses, at the end.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// The gateway's side of gRPC.
pub struct GrpcTransport {
    settings: GrpcSettings,
    rules: Arc<Rules>,
    landing: Arc<Landing>,
    /// Until calls are taken.
    listener: Option<TcpListener>,
    port: u16,
    bridges: JoinSet<()>,
    serving: Option<Serving>,
    /// The link's own.
    link_tasks: JoinSet<()>,
}

struct Serving {
    close: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl GrpcTransport {
    /// Takes a port that others are to call. Nobody is called, and nothing is taken, until the gateway joins the cluster.
    ///
    /// Errors: the port is not one of ours.
    pub fn new(
        settings: GrpcSettings,
        rules: Arc<Rules>,
        listener: TcpListener,
    ) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let port = listener.local_addr()?.port();
        let landing = Landing {
            board: Arc::new(Board::default()),
            link: Arc::new(OnceLock::new()),
            request_timeout: settings.link.request_timeout,
            bindings_subject: rules.bindings_subject(),
        };
        Ok(Self {
            settings,
            rules,
            landing: Arc::new(landing),
            listener: Some(listener),
            port,
            bridges: JoinSet::new(),
            serving: None,
            link_tasks: JoinSet::new(),
        })
    }

    /// Gives a reactor that wants a connection one end of a socket pair, as a letter, and builds a bridge at the other.
    pub fn connect(&mut self, mailbox: Arc<Mailbox>) {
        while self.bridges.try_join_next().is_some() {}
        let landing = Arc::clone(&self.landing);
        self.bridges.spawn(async move {
            let (socket, stream) = match socket_pair() {
                Ok(pair) => pair,
                Err(error) => {
                    return tracing::error!(%error, "a reactor cannot be given a way to gRPC");
                }
            };
            let server = NatsServer {
                options: Arc::new(ConnectOptions::default()),
                host: String::new(),
                address: "gRPC".to_owned(),
            };
            post(&mailbox, Mail::BusConnected { socket, server }).await;
            Bridge::run(landing, stream).await;
        });
    }

    /// Adds to the own record where this gateway is called.
    pub fn announce_in(&self, own: &mut Server) {
        self.settings.announcement.add_to(self.port, &mut own.metadata);
    }

    /// Lets the buses call the servers of these tables. To be called once, inside a runtime.
    ///
    /// Errors: the endpoints of the binding storage.
    pub fn join(&mut self, tables: watch::Receiver<Arc<ServerTable>>) -> Result<(), EtcdError> {
        let bindings = BindingStorage::new(&self.settings.bindings)?;
        let (link, tasks) = GrpcLink::start(self.settings.link.clone(), tables, &bindings);
        let is_first = self.landing.link.set(Arc::new(link)).is_ok();
        debug_assert!(is_first, "the buses have joined the cluster twice");
        self.link_tasks = tasks;
        Ok(())
    }

    /// The way to other servers, once there is one.
    pub fn link(&self) -> Option<Arc<GrpcLink>> {
        self.landing.link.get().cloned()
    }

    /// Tells the frontend that held a user before that the user is bound here now, as Go's frontends tell each other.
    /// To be called inside a runtime.
    pub fn announcing_binds(&self, own_id: &str) -> Replaced {
        let (link, own_id) = (Arc::clone(&self.landing.link), own_id.to_owned());
        Box::new(move |uid, before| {
            let Some(link) = link.get().cloned() else { return };
            let (uid, before, own_id) = (uid.to_owned(), before.to_owned(), own_id.clone());
            tokio::spawn(async move {
                if let Err(reason) = link.announce_bind(&before, &uid, &own_id).await {
                    tracing::debug!(uid, before, reason, "the user's last frontend was not told");
                }
            });
        })
    }

    /// Takes calls of other servers from now on; what came before has waited in the kernel.
    ///
    /// Errors: the socket cannot be used.
    pub fn serve(&mut self) -> io::Result<()> {
        let Some(listener) = self.listener.take() else { return Ok(()) };
        let listener = tokio::net::TcpListener::from_std(listener)?;
        let frontend = Frontend {
            board: Arc::clone(&self.landing.board),
            rules: Arc::clone(&self.rules),
            request_timeout: self.settings.link.request_timeout,
        };
        let (close, closing) = oneshot::channel();
        let task = tokio::spawn(serve(listener, frontend, closing));
        tracing::info!(port = self.port, "listening for gRPC");
        self.serving = Some(Serving { close, task });
        Ok(())
    }

    /// Ends it when the reactors have ended: the last answers leave, and the last notifies arrive, within two seconds.
    pub async fn stop(mut self) {
        let served = async {
            if let Some(Serving { close, task }) = self.serving.take() {
                drop(close);
                // A panic of the task has been reported where it happened.
                let _ = task.await;
            }
        };
        let carried = async { while self.bridges.join_next().await.is_some() {} };
        // Connections that stay open do not keep the process.
        let _ = tokio::time::timeout(CLOSE_TIMEOUT, async { tokio::join!(served, carried) }).await;
    }
}

fn socket_pair() -> io::Result<(OwnedFd, tokio::net::UnixStream)> {
    let (ours, theirs) = UnixStream::pair()?;
    ours.set_nonblocking(true)?;
    Ok((theirs.into(), tokio::net::UnixStream::from_std(ours)?))
}
