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
use crate::payload::Encode;

/// Extractor that pushes to users and kicks them.
#[derive(Clone)]
pub struct Push(Arc<Context>);

impl FromCall for Push {
    fn from_call(call: &Call) -> Result<Self> {
        Ok(Self(Arc::clone(call.context())))
    }
}

impl Push {
    /// Pushes one message to many users of gateways of the type `frontend_type`. It is encoded once, and gateways of
    /// ours get it once for all their users.
    ///
    /// Returns the uids that could not be pushed to, in order; the rest was sent, which does not mean delivered.
    /// Fails, with nobody reached, when the message cannot be encoded or the frontend type is empty.
    pub async fn to_users<U: AsRef<str>, T: Encode + ?Sized>(
        &self,
        uids: &[U],
        frontend_type: &str,
        route: &str,
        message: &T,
    ) -> Result<Vec<String>> {
        check_frontend_type(frontend_type)?;
        let message = ForMany { frontend_type, route, data: message.encode()? };
        let uids: Vec<&str> = uids.iter().map(AsRef::as_ref).collect();
        let unreached = message.send(&self.0, &uids).await;
        Ok(unreached.into_iter().map(str::to_owned).collect())
    }

    /// Kicks users of gateways of the type `frontend_type`; returns the uids that could not be.
    pub async fn kick<U: AsRef<str>>(
        &self,
        uids: &[U],
        frontend_type: &str,
    ) -> Result<Vec<String>> {
        check_frontend_type(frontend_type)?;
        let mut failed = Vec::new();
        for uid in uids {
            let uid = uid.as_ref();
            let kick = proto::KickMsg { user_id: uid.to_owned() }.encode_to_vec();
            if send_to_user(&self.0.environment, frontend_type, uid, "kick", kick).await.is_err() {
                failed.push(uid.to_owned());
            }
        }
        Ok(failed)
    }

    /// One push to one user with bytes that are encoded already.
    pub async fn raw(
        &self,
        uid: &str,
        frontend_type: &str,
        route: &str,
        data: Bytes,
    ) -> Result<()> {
        check_frontend_type(frontend_type)?;
        let push = proto::Push { route: route.to_owned(), uid: uid.to_owned(), data };
        send_push(&self.0.environment, frontend_type, &push).await
    }

    /// The type of the gateway whose client this call serves. Fails in hooks and remotes, and for a gateway that is
    /// not in the server table.
    pub fn frontend_type(&self) -> Result<String> {
        self.0.frontend().map(|server| server.server_type.clone())
    }
}

fn check_frontend_type(frontend_type: &str) -> Result<()> {
    if frontend_type.is_empty() {
        let text = "for using SendPushToUsers from a backend server you have to specify a valid frontendType";
        return Err(Error::unknown(text));
    }
    Ok(())
}

/// Publishes an encoded push on its user's subject.
pub(crate) async fn send_push(
    environment: &Environment,
    frontend_type: &str,
    push: &proto::Push,
) -> Result<()> {
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
