//! The seam below the framework: how a worker reaches other servers and the players' gateways.
//!
//! There are two implementations, NATS ([`crate::nats`]) and the gateway's in-process bus in standalone mode. Both
//! carry the same subjects and the same encoded messages, so nothing above this file knows which one runs.

use std::time::Duration;

use bytes::Bytes;
pub use futures_util::future::BoxFuture;

/// Why a message could not be handed over, or was not answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LinkError {
    /// Nobody listens on the subject: provably not delivered.
    #[error("nats: no responders available for request")]
    NoResponders,
    /// No answer came in time; the request may have been carried out.
    #[error("rpc client: request timeout")]
    Timeout,
    /// The connection is lost at the moment: not sent.
    #[error("nats: not connected")]
    Disconnected,
    /// The link is closed, by us or for good.
    #[error("nats: connection closed")]
    Closed,
    /// The message is above the largest payload that the other side takes.
    #[error("nats: maximum payload exceeded")]
    TooLarge,
    /// The bounded outbox is full; see [`Link::ready`].
    #[error("nats: outbound buffer limit exceeded")]
    Full,
    /// The subject cannot be used; in practice a uid with white space.
    #[error("nats: invalid subject")]
    InvalidSubject,
}

/// How a worker reaches others. Shared by all handlers of a process.
pub trait Link: Send + Sync + 'static {
    /// Sends a request and waits for its answer, an encoded `protos.Response`.
    ///
    /// Fails with [`LinkError::NoResponders`] and [`LinkError::Disconnected`] only when nobody can have received it.
    fn request(
        &self,
        subject: &str,
        payload: Vec<u8>,
        timeout: Duration,
    ) -> BoxFuture<'_, Result<Bytes, LinkError>>;

    /// Sends a message that is not answered. Never blocks; the order of calls is kept, and an answer given after the
    /// call arrives after the message. Fails with [`LinkError::Full`] when the bounded outbox has no room.
    fn publish(&self, subject: &str, payload: Vec<u8>) -> Result<(), LinkError>;

    /// Resolves when [`Link::publish`] has room to spare. At once when the implementation has no bound.
    ///
    /// "To spare" is less than what `publish` takes: many handlers may wake at once and each publish one message.
    fn ready(&self) -> BoxFuture<'_, ()> {
        Box::pin(std::future::ready(()))
    }
}

/// Publishes after waiting for room. The caller's deadline ends the wait, also of a handler that does nothing but
/// publish: every now and then it gives its thread to others.
pub(crate) async fn publish_waiting(
    link: &dyn Link,
    subject: &str,
    payload: Vec<u8>,
) -> Result<(), LinkError> {
    tokio::task::coop::consume_budget().await;
    link.ready().await;
    link.publish(subject, payload)
}
