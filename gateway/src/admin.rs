//! The administrators' HTTP port: metrics, liveness and readiness.
//!
//! It runs on the control thread and reads what others have left for it; what changes the gateway is in actions.rs, and
//! goes to others as a command. It offers nothing that a player needs.
//!
//! Invariant: whoever can reach the port can cost the gateway at most [`CONNECTIONS_MAX`] file descriptors, each for no
//! longer than it keeps something moving.

mod actions;
mod listener;
mod readiness;

pub use actions::Actions;
pub use readiness::{Conditions, Readiness};

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use thiserror::Error;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use listener::BoundedListener;

/// Connections at a time, over all addresses. Further ones wait in the kernel's queue.
pub const CONNECTIONS_MAX: usize = 64;

/// What the Prometheus text format is called.
const METRICS_CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// How long requests under way may take at shutdown.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(2);

/// Where the answers come from.
#[derive(Clone)]
pub struct AdminSources {
    /// Renders all metrics in the Prometheus text format. Called once a scrape, on the control thread.
    pub metrics: Arc<dyn Fn() -> String + Send + Sync>,
    /// What the gateway can do at the moment.
    pub readiness: Arc<Readiness>,
    /// What administrators may change; `None` for nothing.
    pub actions: Option<Actions>,
}

/// Why the port cannot be opened.
#[derive(Debug, Error)]
#[error("cannot listen on {address} for administrators: {source}")]
pub struct AdminError {
    address: SocketAddr,
    source: io::Error,
}

/// The running port. Dropped without [`Admin::shutdown`] it closes at once.
pub struct Admin {
    addresses: Vec<SocketAddr>,
    stop: watch::Sender<()>,
    tasks: Vec<JoinHandle<()>>,
}

impl Admin {
    /// Listens on all of `addresses` (port 0 takes a free one) and answers from then on, with a task for each on the
    /// runtime that calls this.
    ///
    /// # Errors
    /// [`AdminError`] for the first address that cannot be used; then none is.
    pub async fn start(
        addresses: &[SocketAddr],
        sources: AdminSources,
    ) -> Result<Self, AdminError> {
        let mut listeners = Vec::with_capacity(addresses.len());
        for &address in addresses {
            let listener = TcpListener::bind(address).await;
            let bound = listener.and_then(|listener| Ok((listener.local_addr()?, listener)));
            listeners.push(bound.map_err(|source| AdminError { address, source })?);
        }
        let (stop, stopped) = watch::channel(());
        let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        let mut admin = Self { addresses: Vec::new(), stop, tasks: Vec::new() };
        for (address, listener) in listeners {
            let listener = BoundedListener::new(listener, Arc::clone(&places));
            let mut stopped = stopped.clone();
            let service =
                router(sources.clone()).into_make_service_with_connect_info::<actions::Peer>();
            let server = axum::serve(listener, service);
            // Nothing is ever sent: it ends when its sender does.
            let server =
                server.with_graceful_shutdown(async move { drop(stopped.changed().await) });
            admin.addresses.push(address);
            admin.tasks.push(tokio::spawn(async move {
                if let Err(error) = server.await {
                    tracing::error!(%error, %address, "the port for administrators failed");
                }
            }));
        }
        Ok(admin)
    }

    /// The addresses with the ports that were really taken, in the order given.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Closes the port; requests under way are answered if that takes no more than 2 s.
    pub async fn shutdown(self) {
        drop(self.stop);
        let tasks = self.tasks;
        for mut task in tasks {
            if timeout(DRAIN_TIMEOUT, &mut task).await.is_err() {
                task.abort();
                // It was aborted: that is its outcome.
                let _ = task.await;
            }
        }
    }
}

fn router(mut sources: AdminSources) -> Router {
    let actions = sources.actions.take().map(actions::router);
    let reports = Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(readyz))
        .with_state(sources);
    match actions {
        Some(actions) => reports.merge(actions),
        None => reports,
    }
}

async fn metrics(State(sources): State<AdminSources>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, METRICS_CONTENT_TYPE)], (sources.metrics)())
}

async fn readyz(State(sources): State<AdminSources>) -> impl IntoResponse {
    let conditions = sources.readiness.conditions();
    let is_ready = conditions.is_ready();
    let status = if is_ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let body = format!("{}\n", conditions.to_json());
    (status, [(header::CONTENT_TYPE, "application/json")], body)
}
