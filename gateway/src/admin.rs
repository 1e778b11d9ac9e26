//! The admin interface: health, readiness and metrics over HTTP, on the control thread.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use axum::{Json, Router};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use crate::control::plan::Plan;
use crate::control::status::Status;
use crate::gateway::StartError;
use crate::meter::Meters;

/// What the handlers show.
struct Shown {
    status: Arc<Status>,
    meters: Meters,
}

/// The running interface.
pub struct Admin {
    /// Where it listens.
    pub addresses: Vec<SocketAddr>,
    /// Ends when it is dropped.
    pub serving: JoinSet<()>,
}

/// Serves on the plan's addresses.
///
/// Errors: an address cannot be bound.
pub async fn start(plan: &Plan, status: Arc<Status>, meters: Meters) -> Result<Admin, StartError> {
    let shown = Arc::new(Shown { status, meters });
    let router = Router::new()
        .route("/healthz", get(health))
        .route("/readyz", get(readiness))
        .route("/metrics", get(metrics))
        .with_state(shown);
    let mut addresses = Vec::new();
    let mut servers = JoinSet::new();
    for address in &plan.admin {
        let refused = |source| StartError::Listen { address: *address, source };
        let listener = TcpListener::bind(address).await.map_err(refused)?;
        addresses.push(listener.local_addr().map_err(refused)?);
        let router = router.clone();
        servers.spawn(async move {
            if let Err(error) = axum::serve(listener, router).await {
                tracing::error!(%error, "the admin interface ended");
            }
        });
    }
    Ok(Admin { addresses, serving: servers })
}

/// The process lives.
async fn health() -> &'static str {
    "ok\n"
}

/// Whether clients can be served, and what is missing.
async fn readiness(State(shown): State<Arc<Shown>>) -> impl IntoResponse {
    let conditions = shown.status.conditions();
    let is_ready = conditions.iter().all(|(_, is_met)| *is_met);
    let code = if is_ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let conditions: serde_json::Map<String, serde_json::Value> =
        conditions.into_iter().map(|(name, is_met)| (name.to_owned(), is_met.into())).collect();
    (code, Json(serde_json::json!({ "ready": is_ready, "conditions": conditions })))
}

async fn metrics(State(shown): State<Arc<Shown>>) -> impl IntoResponse {
    let content_type = [(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")];
    (content_type, shown.meters.render(&shown.status.servers()))
}
