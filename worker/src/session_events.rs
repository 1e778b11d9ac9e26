//! What the gateway that hosts an application tells it of its sessions: before and after a bind, and at the end.
//!
//! The functions are those of `App::on_bind` and its like. Those of one session run one after the other, in the order of
//! the events; those of different sessions do not wait for each other. They have the time of a request.

use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures_util::FutureExt;
use shared::close::CloseReason;
use shared::error::code;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout_at};

use crate::call::{Call, Context, Environment};
use crate::error::{Error, Result};
use crate::extract::FromCall;
use crate::handler::AnyHandler;
use crate::service::Service;
use crate::session::SessionState;
use crate::session_data::SessionData;
use crate::session_hooks;

/// What happens to a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SessionEvent {
    /// It is about to be bound; a failure refuses the bind.
    Binding,
    /// It was bound; a failure undoes the bind.
    Bound,
    /// It has ended.
    Closed(CloseReason),
}

/// The session that an event is about.
#[derive(Debug, Clone)]
pub struct SessionCopy {
    /// The server id of its gateway.
    pub frontend_id: String,
    /// Its id there.
    pub id: i64,
    /// The uid; at [`SessionEvent::Binding`] the one to be.
    pub uid: String,
    /// Its data, a JSON object.
    pub data: Bytes,
}

/// The order of one session's events, kept with the session.
#[derive(Debug, Default)]
pub struct EventOrder(Option<oneshot::Receiver<()>>);

impl Service {
    /// Whether the application has a function for this event.
    pub fn follows(&self, event: SessionEvent) -> bool {
        !functions(&self.environment(), event).is_empty()
    }

    /// Tells the application what happens to a session, and calls `done` with the first failure. Never blocks; `done`
    /// runs on a thread of the runtime, after those of the session's earlier events. The end of a session comes after its
    /// messages as well; there all functions run, whatever fails.
    pub fn tell(
        &self,
        event: SessionEvent,
        session: SessionCopy,
        order: &mut EventOrder,
        done: impl FnOnce(Result<()>) + Send + 'static,
    ) {
        // Dropped when the event is dealt with, however that ends.
        let (end, ended) = oneshot::channel::<()>();
        let before = order.0.replace(ended);
        let (environment, permit) = (self.environment(), self.enter());
        let SessionCopy { frontend_id, id, uid, data } = session;
        let session = proto::Session { id, uid, data };
        let key = (frontend_id.clone(), id);
        let work = async move {
            if let Some(before) = before {
                let _ = before.await;
            }
            done(run(&environment, event, frontend_id, session).await);
            drop((end, permit));
        };
        if matches!(event, SessionEvent::Closed(_)) {
            self.run_behind_messages(&key.0, key.1, work.boxed());
        } else {
            self.runtime().spawn(work);
        }
    }
}

fn functions(environment: &Environment, event: SessionEvent) -> &[AnyHandler] {
    let hooks = &environment.session_hooks;
    match event {
        SessionEvent::Binding => &hooks.on_bind,
        SessionEvent::Bound => &hooks.after_bind,
        SessionEvent::Closed(_) => &hooks.on_close,
    }
}

async fn run(
    environment: &Arc<Environment>,
    event: SessionEvent,
    frontend_id: String,
    session: proto::Session,
) -> Result<()> {
    let limit = environment.request_timeout;
    let deadline = Instant::now() + limit;
    let data = SessionData::new(session.data)?;
    let state = SessionState { id: session.id, uid: session.uid, data };
    let context = Arc::new(Context {
        frontend_id,
        deadline: Some(deadline),
        session: Some(Mutex::new(state)),
        ..Context::of_hook(Arc::clone(environment))
    });
    let functions = functions(environment, event);
    let all = async {
        match event {
            SessionEvent::Closed(reason) => {
                context.insert(reason);
                session_hooks::run_all(functions, &context).await;
                Ok(())
            }
            _ => session_hooks::run_until_failure(functions, &context).await,
        }
    };
    timeout_at(deadline, all).await.unwrap_or_else(|_| {
        tracing::warn!(?event, ?limit, "the functions for a session did not end in time");
        let text = "the functions for a session did not end in time";
        Err(Error::new(code::REQUEST_TIMEOUT, text))
    })
}

/// Extractor of the reason why the session has ended, in [`App::on_close`](crate::App::on_close).
impl FromCall for CloseReason {
    fn from_call(call: &Call) -> Result<Self> {
        let reason = call.context().find::<Self>();
        reason.map(|reason| *reason).ok_or_else(|| Error::unknown("no session has ended here"))
    }
}
