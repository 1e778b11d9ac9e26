//! Health and metrics over HTTP, for operators and their tools. Nothing here changes anything.

use std::fmt::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_nats::connection::State;
use axum::Router;
use axum::extract;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use shared::cluster::discovery::Discovery;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use crate::counters::Counter;
use crate::nats::NatsLink;
use crate::service::Service;

/// What the pages tell about.
pub(crate) struct Status {
    pub(crate) service: Service,
    pub(crate) link: NatsLink,
    pub(crate) discovery: Arc<Discovery>,
    pub(crate) server_type: String,
    /// From the end of the start to the beginning of the stop.
    pub(crate) is_serving: AtomicBool,
}

impl Status {
    /// Why the server should get no traffic at this moment; none when it should.
    fn unready(&self) -> Option<&'static str> {
        if !self.is_serving.load(Ordering::Relaxed) {
            return Some("starting or stopping");
        }
        if self.link.client().connection_state() != State::Connected {
            return Some("not connected to NATS");
        }
        (!self.discovery.is_registered()).then_some("not registered in etcd")
    }

    /// The metrics in Prometheus's text format.
    fn metrics(&self) -> String {
        let server_type = escape_label(&self.server_type);
        let own = format!("serverType=\"{server_type}\"");
        let mut page = String::new();
        let mut family = |name: &str, kind: &str, help: &str, samples: &[(String, u64)]| {
            let _ = writeln!(page, "# HELP {name} {help}\n# TYPE {name} {kind}");
            for (labels, value) in samples {
                let _ = writeln!(page, "{name}{{{own}{labels}}} {value}");
            }
        };
        let counters = self.service.counters();
        let outcome = |c: Counter| (format!(",outcome=\"{}\"", c.label()), counters.read(c));
        let plain = |value: u64| [(String::new(), value)];
        family(
            "dragonfruit_worker_requests_total",
            "counter",
            "Requests by what became of them; a panic is a failure too.",
            &Counter::ALL.map(outcome),
        );
        family(
            "dragonfruit_worker_in_flight_requests",
            "gauge",
            "Requests that wait or run.",
            &plain(self.service.in_flight() as u64),
        );
        family(
            "dragonfruit_worker_window_requests",
            "gauge",
            "How many requests may wait or run.",
            &plain(self.service.limits().window as u64),
        );
        family(
            "dragonfruit_worker_outbox_refused_total",
            "counter",
            "Answers and pushes that were given up because NATS took none.",
            &plain(self.link.refused()),
        );
        family(
            "pitaya_rpc_server_dropped_messages",
            "gauge",
            "Requests that were not taken because too many waited.",
            &plain(counters.read(Counter::Busy)),
        );
        let table = self.discovery.tables().borrow().clone();
        let servers = table.types().map(|(server_type, servers)| {
            (format!(",type=\"{}\"", escape_label(server_type)), servers.len() as u64)
        });
        family(
            "pitaya_service_discovery_count_servers",
            "gauge",
            "Servers in the table, by type.",
            &servers.collect::<Vec<_>>(),
        );
        page
    }
}

/// Serves the pages on all addresses. An address that cannot be listened on is logged and left out: the game is worth
/// more than its metrics. The tasks end when the set is dropped.
pub(crate) async fn serve(addresses: &[String], status: &Arc<Status>) -> JoinSet<()> {
    let mut tasks = JoinSet::new();
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

fn escape_label(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}
