//! What a gateway answers over gRPC: each call becomes a message to the bus that has subscribed to its subject, and the
//! bus's reply becomes the answer. Texts are those of Go's servers (cluster protocol 12).

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use proto::Message;
use proto::wire::{KickView, PushView, RESPONSE_ACK};
use worker::BoxFuture;
use worker::grpc::{Answering, Method, Status};

use super::board::Board;
use crate::rules::Rules;

const SESSION_NOT_FOUND: &str = "session not found";

/// The service; clones are handles of the same.
#[derive(Clone)]
pub(super) struct Frontend {
    pub(super) board: Arc<Board>,
    pub(super) rules: Arc<Rules>,
    /// How long a caller waits who does not say so.
    pub(super) request_timeout: Duration,
}

impl Answering for Frontend {
    fn answer(
        &self,
        method: Method,
        message: Bytes,
        limit: Option<Duration>,
    ) -> BoxFuture<'static, Result<Bytes, Status>> {
        let frontend = self.clone();
        let limit = limit.unwrap_or(self.request_timeout);
        Box::pin(async move {
            let answer = tokio::time::timeout(limit, frontend.answer_to(method, message)).await;
            answer.unwrap_or_else(|_| Err(Status::deadline_exceeded("no answer in time")))
        })
    }
}

impl Frontend {
    async fn answer_to(&self, method: Method, message: Bytes) -> Result<Bytes, Status> {
        let Self { board, rules, .. } = self;
        match method {
            Method::Call => {
                let answer = board.request(&rules.server_subject(), message).await;
                answer.map_err(|_| Status::unavailable("the server is stopping"))
            }
            Method::Push => {
                let uid = PushView::decode(&message).map_err(unreadable)?.uid.to_owned();
                let [pushes, _] = rules.user_subjects(&uid);
                let answer = board.request(&pushes, message).await;
                answer.map_err(|_| Status::unknown(SESSION_NOT_FOUND))
            }
            Method::Kick => {
                let uid = KickView::decode(&message).map_err(unreadable)?.user_id.to_owned();
                let [_, kicks] = rules.user_subjects(&uid);
                let answer = board.request(&kicks, message).await;
                // A session that ends at this moment is not kicked any more.
                let answer = answer.ok().filter(is_kicked);
                answer.ok_or_else(|| Status::unknown(SESSION_NOT_FOUND))
            }
            Method::Bind => {
                board.publish(&rules.bindings_subject(), message).await;
                Ok(Bytes::from_static(RESPONSE_ACK))
            }
        }
    }
}

fn is_kicked(answer: &Bytes) -> bool {
    proto::KickAnswer::decode(answer.clone()).is_ok_and(|answer| answer.kicked)
}

fn unreadable(error: impl std::fmt::Display) -> Status {
    Status::invalid_argument(error.to_string())
}
