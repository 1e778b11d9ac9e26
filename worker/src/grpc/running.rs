//! The life of a server in a cluster that speaks gRPC: as with NATS (see [`crate::run`]), with a port of its own in the
//! place of a subscription.
//!
//! Start: listen, follow the cluster, run the start hooks, and only then announce the server. Calls that come before wait
//! in the kernel. Stop: leave the cluster, give others time to notice, take no more connections, finish what runs.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use shared::cluster::bindings::{self, BindingStorage};
use shared::cluster::discovery::Discovery;
use shared::cluster::etcd::StoreOptions;
use shared::config::Config;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};
use tokio::task::{JoinHandle, JoinSet};
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;

use super::{Announcement, Backend, GrpcLink, LinkOptions};
use crate::admin::{self, Status};
use crate::app::{App, ClusterView};
use crate::error::{Error, Result};
use crate::run::{Discovered, finish};
use crate::settings::Settings;

/// What the other side may send in one message, and the largest answer: gRPC's default, and Pitaya's.
const MESSAGE_BYTES_MAX: usize = 4 << 20;

/// How often an HTTP/2 ping checks a connection, and how long its answer may take.
const PING_INTERVAL: Duration = Duration::from_secs(20);

/// For the last answers on open connections.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// What the configuration says of gRPC.
#[derive(Clone)]
pub(crate) struct GrpcSettings {
    /// Where calls are taken, on all addresses; 0 for any free one.
    pub(crate) port: u16,
    pub(crate) announcement: Announcement,
    pub(crate) link: LinkOptions,
    pub(crate) bindings: StoreOptions,
}

impl GrpcSettings {
    /// None where the cluster speaks NATS. `hostname` is announced unless there is a host.
    pub(crate) fn new(config: &Config, hostname: &str) -> Option<Self> {
        if config.string("pitaya.cluster.rpc.transport") != "grpc" {
            return None;
        }
        let (server, client) = ("pitaya.cluster.rpc.server.grpc", "pitaya.cluster.rpc.client.grpc");
        let region = config.string("pitaya.cluster.info.region").to_owned();
        let host = match config.string(&format!("{server}.host")) {
            "" => hostname,
            host => host,
        };
        Some(Self {
            port: config.int(&format!("{server}.port")) as u16,
            announcement: Announcement {
                host: host.to_owned(),
                external_host: config.string(&format!("{server}.externalhost")).to_owned(),
                external_port: config.int(&format!("{server}.externalport")) as u16,
                region: region.clone(),
            },
            link: LinkOptions {
                connect_timeout: config.duration(&format!("{client}.dialtimeout")),
                request_timeout: config.duration(&format!("{client}.requesttimeout")),
                is_lazy: config.bool(&format!("{client}.lazyconnection")),
                region,
            },
            bindings: bindings::store_options(config),
        })
    }
}

/// A server that is up.
struct Running {
    status: Arc<Status>,
    /// Ends the taking of calls.
    close: oneshot::Sender<()>,
    serving: JoinHandle<()>,
    /// The link, the pages, the listeners of servers.
    _tasks: [JoinSet<()>; 3],
}

/// Runs the application until a message of `stops`. A second one ends the wait for what still runs.
pub(crate) async fn run(
    app: App,
    settings: &Settings,
    grpc: &GrpcSettings,
    stops: &mut mpsc::Receiver<()>,
) -> Result<()> {
    let server = tokio::select! {
        server = start(app, settings, grpc) => server?,
        _ = stops.recv() => return Ok(()),
    };
    let status = Arc::clone(&server.status);
    let registered = async {
        status.discovery.register().await;
        status.is_serving.store(true, Ordering::Relaxed);
        tracing::info!("registered, serving");
        std::future::pending::<()>().await;
    };
    tokio::select! {
        () = registered => {}
        _ = stops.recv() => {}
    }
    server.stop(settings.request_timeout, stops).await;
    Ok(())
}

async fn start(mut app: App, settings: &Settings, grpc: &GrpcSettings) -> Result<Running> {
    let listener = TcpListener::bind(("0.0.0.0", grpc.port)).await.map_err(|error| {
        Error::unknown(format!("cannot listen for gRPC on port {}: {error}", grpc.port))
    })?;
    let port = listener.local_addr()?.port();
    let mut own = settings.own.clone();
    grpc.announcement.add_to(port, &mut own.metadata);
    let discovery = Arc::new(Discovery::start(settings.discovery.clone(), &own)?);
    let bindings = BindingStorage::new(&grpc.bindings)?;
    let (link, link_tasks) = GrpcLink::start(grpc.link.clone(), discovery.tables(), &bindings);
    let view = ClusterView {
        request_timeout: settings.request_timeout,
        is_loop_back_allowed: settings.is_loop_back_allowed,
        routing: settings.routing.clone(),
        exporter: Some(settings.exporter.clone()),
        ..ClusterView::new(&own.id, Arc::new(Discovered(discovery.tables())))
    };
    let (job_handlers, jobs) = (std::mem::take(&mut app.job_handlers), app.jobs.clone());
    let service = app.build(Arc::new(link), view)?;
    service.set_answer_bytes_max(MESSAGE_BYTES_MAX);
    service.record_times(settings.exporter.clone())?;
    service.start().await?;
    let listeners = service.listen(&discovery);
    service.start_jobs(job_handlers, &jobs, Some(settings.exporter.clone()))?;
    let (close, closing) = oneshot::channel();
    let backend = Backend::new(service.clone());
    let serving = tokio::spawn(serve(listener, backend, closing));
    let status = Arc::new(Status {
        service,
        link: None,
        discovery,
        exporter: settings.exporter.clone(),
        is_rendering: Mutex::new(()),
        is_serving: AtomicBool::new(false),
    });
    let pages = admin::serve(&settings.admin, &status).await;
    tracing::info!(id = own.id, r#type = own.server_type, port, "listening for gRPC");
    Ok(Running { status, close, serving, _tasks: [link_tasks, pages, listeners] })
}

async fn serve(listener: TcpListener, backend: Backend, closing: oneshot::Receiver<()>) {
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    let served = Server::builder()
        .http2_keepalive_interval(Some(PING_INTERVAL))
        .http2_keepalive_timeout(Some(PING_INTERVAL))
        .serve_with_incoming_shutdown(backend, incoming, async {
            let _ = closing.await;
        });
    if let Err(error) = served.await {
        tracing::error!(%error, "calls over gRPC are not taken any more");
    }
}

impl Running {
    async fn stop(self, drain_limit: Duration, stops: &mut mpsc::Receiver<()>) {
        let Status { service, discovery, is_serving, .. } = &*self.status;
        is_serving.store(false, Ordering::Relaxed);
        tracing::info!(in_flight = service.in_flight(), "stopping");
        discovery.leave().await;
        service.before_shutdown().await;
        let _ = self.close.send(());
        finish(service, drain_limit, stops).await;
        // Connections that stay open do not keep the process.
        let _ = tokio::time::timeout(CLOSE_TIMEOUT, self.serving).await;
        service.on_shutdown().await;
        tracing::info!("stopped");
    }
}
