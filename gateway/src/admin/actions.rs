//! What administrators may do: read the configuration again, ban and unban.
//!
//! Who may: with a token whoever shows it, without one only processes of this machine. A page in a browser of this
//! machine is turned away, because it may come from anywhere. Metrics and health need neither.

use std::net::SocketAddr;
use std::time::{SystemTime, UNIX_EPOCH};

use axum::Router;
use axum::extract::connect_info::Connected;
use axum::extract::{ConnectInfo, DefaultBodyLimit, Json, Query, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::serve::IncomingStream;
use serde::Deserialize;
use serde_json::{Value, json};
use shared::bans::{Ban, REASON_BYTES_MAX, Subject};
use shared::cluster::ban_keeper::{BanHandle, Stored};
use shared::config::{Change, Secret};
use tokio::sync::{mpsc, oneshot};

use super::listener::BoundedListener;
use crate::control::Command;

const BODY_BYTES_MAX: usize = 4 * 1024;

/// What the actions act upon.
#[derive(Clone)]
pub struct Actions {
    /// Where commands go. Weak: the port must not keep a gateway alive that nobody holds any more.
    pub commands: mpsc::WeakSender<Command>,
    /// The bans.
    pub bans: BanHandle,
    /// What has to be shown; empty for none.
    pub token: Secret,
}

/// Who asks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Peer(SocketAddr);

impl Connected<IncomingStream<'_, BoundedListener>> for Peer {
    fn connect_info(stream: IncomingStream<'_, BoundedListener>) -> Self {
        Self(*stream.remote_addr())
    }
}

/// A ban as an administrator asks for it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Wanted {
    subject: String,
    /// For how long; for ever when left out.
    seconds: Option<u64>,
    #[serde(default)]
    reason: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Lifted {
    subject: String,
}

pub(super) fn router(actions: Actions) -> Router {
    Router::new()
        .route("/reload", post(reload))
        .route("/bans", get(list).post(ban).delete(unban))
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .layer(middleware::from_fn_with_state(actions.clone(), guard))
        .with_state(actions)
}

async fn guard(
    State(actions): State<Actions>,
    ConnectInfo(Peer(peer)): ConnectInfo<Peer>,
    request: Request,
    next: Next,
) -> Response {
    match refusal(&actions.token, peer, request.headers()) {
        None => next.run(request).await,
        Some((status, text)) => answer(status, &json!({ "error": text })),
    }
}

/// Why somebody may not act.
fn refusal(
    token: &Secret,
    peer: SocketAddr,
    headers: &HeaderMap,
) -> Option<(StatusCode, &'static str)> {
    if headers.contains_key(header::ORIGIN) || headers.contains_key("sec-fetch-site") {
        return Some((StatusCode::FORBIDDEN, "not for pages in browsers"));
    }
    if token.is_empty() {
        let is_here = peer.ip().to_canonical().is_loopback();
        let text = "without pitaya.admin.token only this machine may do this";
        return (!is_here).then_some((StatusCode::FORBIDDEN, text));
    }
    let shown = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let shown = shown.and_then(|value| value.strip_prefix("Bearer ")).unwrap_or_default();
    let is_right = is_equal(shown.as_bytes(), token.reveal().as_bytes());
    (!is_right).then_some((StatusCode::UNAUTHORIZED, "pitaya.admin.token is needed"))
}

/// Compares without telling by its time how much is right.
fn is_equal(shown: &[u8], right: &[u8]) -> bool {
    let difference =
        shown.iter().zip(right).fold(0, |difference, (one, other)| difference | (one ^ other));
    shown.len() == right.len() && difference == 0
}

async fn reload(State(actions): State<Actions>) -> Response {
    let (done, outcome) = oneshot::channel();
    let is_sent = match actions.commands.upgrade() {
        Some(commands) => commands.send(Command::Reload { done }).await.is_ok(),
        None => false,
    };
    let outcome = if is_sent { outcome.await.ok() } else { None };
    let changes = |changes: &[Change]| -> Vec<Value> {
        let value = |change: &Change| json!({"key": change.key, "before": change.before, "after": change.after});
        changes.iter().map(value).collect()
    };
    match outcome {
        Some(Ok(renewal)) => answer(
            StatusCode::OK,
            &json!({
                "changed": changes(&renewal.changed),
                "needs_restart": changes(&renewal.needs_restart),
            }),
        ),
        Some(Err(mistakes)) => answer(StatusCode::BAD_REQUEST, &json!({ "errors": mistakes })),
        None => {
            answer(StatusCode::SERVICE_UNAVAILABLE, &json!({"error": "the gateway is stopping"}))
        }
    }
}

async fn list(State(actions): State<Actions>) -> Response {
    let now_ms = unix_ms();
    let bans = actions.bans.bans();
    let holding = bans.iter().filter(|(_, ban)| ban.holds(now_ms));
    let bans: Vec<Value> = holding
        .map(|(subject, ban)| {
            let seconds =
                ban.until_ms.map(|until_ms| until_ms.saturating_sub(now_ms).div_ceil(1_000));
            json!({"subject": subject.to_string(), "seconds": seconds, "reason": ban.reason})
        })
        .collect();
    answer(StatusCode::OK, &json!({ "bans": bans }))
}

async fn ban(State(actions): State<Actions>, Json(wanted): Json<Wanted>) -> Response {
    if wanted.seconds == Some(0) || wanted.reason.len() > REASON_BYTES_MAX {
        let text = format!("seconds are at least 1, a reason has at most {REASON_BYTES_MAX} bytes");
        return answer(StatusCode::BAD_REQUEST, &json!({ "error": text }));
    }
    let until_ms =
        wanted.seconds.map(|seconds| unix_ms().saturating_add(seconds.saturating_mul(1_000)));
    let ban = Ban { until_ms, reason: wanted.reason };
    change(&actions, &wanted.subject, Some(ban)).await
}

async fn unban(State(actions): State<Actions>, Query(lifted): Query<Lifted>) -> Response {
    change(&actions, &lifted.subject, None).await
}

async fn change(actions: &Actions, subject: &str, ban: Option<Ban>) -> Response {
    let subject: Subject = match subject.parse() {
        Ok(subject) => subject,
        Err(error) => {
            return answer(StatusCode::BAD_REQUEST, &json!({ "error": format!("{error}") }));
        }
    };
    let what = if ban.is_some() { "ban" } else { "no ban" };
    tracing::info!(%subject, what, "asked by an administrator");
    let scope = match actions.bans.change(subject.clone(), ban).await {
        Some(Stored::InCluster) => "cluster",
        Some(Stored::Pending) => "this gateway; the cluster when etcd is back",
        Some(Stored::Here) => "this gateway",
        Some(Stored::Refused) => {
            let text = "there are too many bans";
            return answer(StatusCode::INSUFFICIENT_STORAGE, &json!({ "error": text }));
        }
        None => {
            let text = "the gateway is stopping";
            return answer(StatusCode::SERVICE_UNAVAILABLE, &json!({ "error": text }));
        }
    };
    answer(StatusCode::OK, &json!({"subject": subject.to_string(), "scope": scope}))
}

fn answer(status: StatusCode, body: &Value) -> Response {
    (status, [(header::CONTENT_TYPE, "application/json")], format!("{body}\n")).into_response()
}

fn unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(values: &[(&'static str, &str)]) -> HeaderMap {
        values.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect()
    }

    fn status(token: &str, peer: &str, values: &[(&'static str, &str)]) -> Option<u16> {
        let refused = refusal(&Secret::new(token), peer.parse().unwrap(), &headers(values));
        refused.map(|(status, _)| status.as_u16())
    }

    #[test]
    fn without_a_token_only_this_machine_may_act() {
        assert_eq!(status("", "127.0.0.1:5", &[]), None);
        assert_eq!(status("", "[::1]:5", &[]), None);
        assert_eq!(status("", "[::ffff:127.0.0.1]:5", &[]), None);
        assert_eq!(status("", "192.0.2.1:5", &[]), Some(403));
        assert_eq!(status("", "192.0.2.1:5", &[("authorization", "Bearer ")]), Some(403));
    }

    #[test]
    fn with_a_token_whoever_shows_it_may_act_and_nobody_else() {
        let shown = [("authorization", "Bearer hunter2")];
        assert_eq!(status("hunter2", "192.0.2.1:5", &shown), None);
        for wrong in
            ["Bearer hunter", "Bearer hunter22", "Bearer hunter3", "hunter2", "Basic hunter2", ""]
        {
            assert_eq!(status("hunter2", "127.0.0.1:5", &[("authorization", wrong)]), Some(401));
        }
        assert_eq!(status("hunter2", "127.0.0.1:5", &[]), Some(401));
    }

    #[test]
    fn a_page_in_a_browser_may_not() {
        assert_eq!(status("", "127.0.0.1:5", &[("origin", "http://evil.example")]), Some(403));
        assert_eq!(status("", "127.0.0.1:5", &[("sec-fetch-site", "none")]), Some(403));
    }
}
