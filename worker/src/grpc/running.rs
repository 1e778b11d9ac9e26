//! The life of a server in a cluster that speaks gRPC: as with NATS (see [`crate::run`]), with a port of its own in the
//! place of a subscription.
//!
//! Start: listen, follow the cluster, run the start hooks, and only then announce the server. Calls that come before wait
//! in the kernel. Stop: leave the cluster, give others time to notice, take no more connections, finish what runs.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use shared::cluster::bindings::BindingStorage;
use shared::cluster::discovery::Discovery;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};
use tokio::task::{JoinHandle, JoinSet};

use super::{Backend, GrpcLink, GrpcSettings, MESSAGE_BYTES_MAX, serve};
use crate::admin::{self, Status};
use crate::app::{App, ClusterView};
use crate::error::{Error, Result};
use crate::run::{Discovered, finish};
use crate::settings::Settings;

/// For the last answers on open connections.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

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
