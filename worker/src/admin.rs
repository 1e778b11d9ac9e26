//! Health and metrics over HTTP, for operators and their tools. Nothing here changes anything.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_nats::connection::State;
use axum::Router;
use axum::extract;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use shared::cluster::discovery::Discovery;
use shared::metrics::Exporter;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use crate::metrics;
use crate::nats::NatsLink;
use crate::service::Service;

/// Five of these are what the quantiles of summaries cover, ten minutes as in Pitaya.
const WINDOW: Duration = Duration::from_secs(120);

/// What the pages tell about.
pub(crate) struct Status {
    pub(crate) service: Service,
    /// None where servers call each other over gRPC.
    pub(crate) link: Option<NatsLink>,
    pub(crate) discovery: Arc<Discovery>,
    pub(crate) exporter: Exporter,
    pub(crate) is_rendering: Mutex<()>,
    /// From the end of the start to the beginning of the stop.
    pub(crate) is_serving: AtomicBool,
}

impl Status {
    /// Why the server should get no traffic at this moment; none when it should.
    fn unready(&self) -> Option<&'static str> {
        if !self.is_serving.load(Ordering::Relaxed) {
            return Some("starting or stopping");
        }
        let is_lost = |link: &NatsLink| link.client().connection_state() != State::Connected;
        if self.link.as_ref().is_some_and(is_lost) {
            return Some("not connected to NATS");
        }
        (!self.discovery.is_registered()).then_some("not registered in etcd")
    }

    /// The metrics in Prometheus's text format.
    fn metrics(&self) -> String {
        let _one_at_a_time = self.is_rendering.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(error) = metrics::copy(self) {
            // A name that is not in the table: a mistake of ours, to be seen in tests.
            debug_assert!(false, "{error}");
        }
        self.exporter.render()
    }
}

/// Serves the pages on all addresses. An address that cannot be listened on is logged and left out: the game is worth
/// more than its metrics. The tasks end when the set is dropped.
pub(crate) async fn serve(addresses: &[String], status: &Arc<Status>) -> JoinSet<()> {
    let mut tasks = JoinSet::new();
    let exporter = status.exporter.clone();
    tasks.spawn(async move {
        let mut windows = tokio::time::interval(WINDOW);
        loop {
            windows.tick().await;
            exporter.rotate();
        }
    });
    for address in addresses {
        let listener = match TcpListener::bind(address).await {
            Ok(listener) => listener,
            Err(error) => {
                tracing::warn!(address, %error, "health and metrics are not served here");
                continue;
            }
        };
        if let Ok(local) = listener.local_addr() {
            tracing::info!(address = %local, "health and metrics");
        }
        let router = router(Arc::clone(status));
        tasks.spawn(async move {
            if let Err(error) = axum::serve(listener, router).await {
                tracing::warn!(%error, "health and metrics ended");
            }
        });
    }
    tasks
}

fn router(status: Arc<Status>) -> Router {
    let content_type = [(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")];
    let metrics = move |extract::State(status): extract::State<Arc<Status>>| async move {
        (content_type, status.metrics())
    };
    let ready = |extract::State(status): extract::State<Arc<Status>>| async move {
        match status.unready() {
            None => (StatusCode::OK, "ready\n").into_response(),
            Some(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")).into_response(),
        }
    };
    Router::new()
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .with_state(status)
}
