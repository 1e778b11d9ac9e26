//! What a backend answers: calls go to the framework, and whoever looks for a user is told that there is none here.
//!
//! The caller's deadline ends the handler; Pitaya lets it run.

use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use proto::wire::RESPONSE_ACK;
use tokio::sync::oneshot;
use tonic::Status;

use super::server::{Answering, Method};
use crate::request::Reply;
use crate::service::Service;

/// The framework, behind gRPC.
#[derive(Clone)]
pub(crate) struct Backend(Service);

impl Backend {
    pub(crate) fn new(service: Service) -> Self {
        Self(service)
    }
}

impl Answering for Backend {
    fn answer(
        &self,
        method: Method,
        message: Bytes,
        limit: Option<Duration>,
    ) -> BoxFuture<'static, Result<Bytes, Status>> {
        match method {
            Method::Call => {
                let (sender, answered) = oneshot::channel();
                let reply = Reply::new(move |answer| {
                    // Whoever gave up waiting misses nothing.
                    let _ = sender.send(answer);
                });
                self.0.handle_within(message, reply, limit);
                Box::pin(async move {
                    answered.await.map_err(|_| Status::unavailable("the server is stopping"))
                })
            }
            // The sessions of users live in frontends.
            Method::Push | Method::Kick => {
                Box::pin(std::future::ready(Err(Status::unknown("session not found"))))
            }
            Method::Bind => Box::pin(std::future::ready(Ok(Bytes::from_static(RESPONSE_ACK)))),
        }
    }
}
