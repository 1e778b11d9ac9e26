//! Pushes and kicks to users by uid, wherever they are connected.
//!
//! Over NATS a push is fire and forget: it vanishes when nobody listens on the user's subject, and nobody is told.

use std::sync::Arc;

use bytes::Bytes;
use prost::Message;

use crate::call::{Call, Context, Environment};
use crate::error::{Error, Result};
use crate::extract::FromCall;
use crate::for_many::ForMany;
use crate::link::{LinkError, publish_waiting};
use crate::names::{check_frontend_type, check_push_route};
use crate::payload::Encode;

/// Extractor that pushes to users and kicks them.
#[derive(Clone)]
pub struct Push(Arc<Context>);

impl FromCall for Push {
    fn from_call(call: &Call) -> Result<Self> {
        Ok(Self(Arc::clone(call.context())))
    }
}

/// Users who could not be reached, and why; `?` turns it into an [`Error`] with the uids in its metadata.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NotReached {
    /// In the order in which they were given.
    pub uids: Vec<String>,
    /// What Pitaya says about it.
    pub error: Error,
}

impl From<NotReached> for Error {
    fn from(failed: NotReached) -> Self {
        failed.error.with("uids", failed.uids.join(","))
    }
}

impl Push {
    /// Pushes one message to many users of gateways of the type `frontend_type`, from a handler, a remote, a hook, a timer
    /// or a task of the game: clones may be kept. It is encoded once, and gateways of ours get it once for all their
    /// users. In standalone mode an empty `frontend_type` means the own gateway.
    ///
    /// Ok means sent, not delivered; only in standalone mode an absent user is known to be one. Fails, as Pitaya's
    /// `SendPushToUsers`, with `failed to push message to users, check array with failed uids` and those uids; with all
    /// of them when the message cannot be encoded, or the route or the frontend type cannot be.
    pub async fn to_users<U: AsRef<str>, T: Encode + ?Sized>(
        &self,
        uids: &[U],
        frontend_type: &str,
        route: &str,
        message: &T,
    ) -> Result<(), NotReached> {
        let prepared = self.prepared(frontend_type, || {
            check_push_route(route)?;
            message.encode()
        });
        let (frontend_type, data) = prepared.map_err(|error| nobody(uids, error))?;
        let message = ForMany { frontend_type: &frontend_type, route, data };
        let uids: Vec<&str> = uids.iter().map(AsRef::as_ref).collect();
        let failed = message.send(&self.0, &uids).await.into_iter().map(str::to_owned).collect();
        judge(failed, "failed to push message to users, check array with failed uids")
    }

    /// Kicks users of gateways of the type `frontend_type`. Returns and fails as [`Push::to_users`], with the text
    /// `failed to kick users, check array with failed uids`.
    pub async fn kick<U: AsRef<str>>(
        &self,
        uids: &[U],
        frontend_type: &str,
    ) -> Result<(), NotReached> {
        let prepared = self.prepared(frontend_type, || Ok(Bytes::new()));
        let (frontend_type, _) = prepared.map_err(|error| nobody(uids, error))?;
        let mut failed = Vec::new();
        for uid in uids {
            let uid = uid.as_ref();
            let kick = proto::KickMsg { user_id: uid.to_owned() }.encode_to_vec();
            if send_to_user(&self.0.environment, &frontend_type, uid, "kick", kick).await.is_err() {
                failed.push(uid.to_owned());
            }
        }
        judge(failed, "failed to kick users, check array with failed uids")
    }

    /// One push to one user with bytes that are encoded already. Fails with `PIT-400` for a route or a frontend type that
    /// cannot be.
    pub async fn raw(
        &self,
        uid: &str,
        frontend_type: &str,
        route: &str,
        data: Bytes,
    ) -> Result<()> {
        let (frontend_type, data) = self.prepared(frontend_type, || {
            check_push_route(route)?;
            Ok(data)
        })?;
        let push = proto::Push { route: route.to_owned(), uid: uid.to_owned(), data };
        send_push(&self.0.environment, &frontend_type, &push).await
    }

    /// The type of the gateway whose client this call serves, in standalone mode always the own one. Fails in hooks and
    /// remotes of a backend, and for a gateway that is not in the server table.
    pub fn frontend_type(&self) -> Result<String> {
        if let Some(own) = &self.0.environment.frontend_type {
            return Ok(own.as_ref().to_owned());
        }
        self.0.frontend().map(|server| server.server_type.clone())
    }

    /// The type that is meant, and what is to be sent.
    fn prepared(
        &self,
        frontend_type: &str,
        data: impl FnOnce() -> Result<Bytes>,
    ) -> Result<(String, Bytes)> {
        let own = self.0.environment.frontend_type.as_deref().unwrap_or_default();
        let frontend_type = if frontend_type.is_empty() { own } else { frontend_type };
        check_frontend_type(frontend_type)?;
        Ok((frontend_type.to_owned(), data()?))
    }
}

fn nobody<U: AsRef<str>>(uids: &[U], error: Error) -> NotReached {
    NotReached { uids: uids.iter().map(|uid| uid.as_ref().to_owned()).collect(), error }
}

fn judge(failed: Vec<String>, text: &str) -> Result<(), NotReached> {
    if failed.is_empty() {
        return Ok(());
    }
    Err(NotReached { uids: failed, error: Error::unknown(text) })
}

/// Publishes an encoded push on its user's subject.
pub(crate) async fn send_push(
    environment: &Environment,
    frontend_type: &str,
    push: &proto::Push,
) -> Result<()> {
    check_push_route(&push.route)?;
    send_to_user(environment, frontend_type, &push.uid, "push", push.encode_to_vec()).await
}

async fn send_to_user(
    environment: &Environment,
    frontend_type: &str,
    uid: &str,
    channel: &str,
    payload: Vec<u8>,
) -> Result<()> {
    // A uid becomes part of a subject; one with a space or a wildcard would reach somebody else (cluster 1.1).
    shared::session::check_uid(uid).map_err(|_| LinkError::InvalidSubject)?;
    let subject = format!("pitaya/{frontend_type}/user/{uid}/{channel}");
    publish_waiting(environment.link.as_ref(), &subject, payload).await?;
    Ok(())
}
