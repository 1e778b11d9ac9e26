//! One request on its way from a transport to its handler: what it says, who waits for the answer, what it holds.

use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use prost::Message as _;
use shared::error::code;
use tokio::time::Instant;

use crate::admission::Permit;
use crate::error::{Error, Result};

/// Where the answer to one request goes: an encoded `protos.Response`.
pub struct Reply(Box<dyn FnOnce(Bytes) + Send>);

impl Reply {
    /// Calls `send` with the answer, exactly once, on a thread of the runtime or on the one that calls
    /// [`Service::handle`](crate::Service::handle). It must not block.
    pub fn new(send: impl FnOnce(Bytes) + Send + 'static) -> Self {
        Self(Box::new(send))
    }

    /// For a request that nobody wants answered.
    pub fn discard() -> Self {
        Self::new(drop)
    }

    pub(crate) fn send(self, answer: Bytes) {
        (self.0)(answer);
    }
}

/// What goes through the queues of sessions.
pub(crate) enum Queued {
    Message(Message),
    /// Something that has to come after the messages.
    Event(BoxFuture<'static, ()>),
}

/// One request on its way through the queues. Small, because queues, tasks and futures copy it.
pub(crate) struct Message {
    pub(crate) decoded: Box<Decoded>,
    pub(crate) arrived: Instant,
    /// How long the transport's caller waits.
    pub(crate) limit: Option<Duration>,
    pub(crate) reply: Reply,
    pub(crate) permit: Permit,
}

/// What a request says.
pub(crate) struct Decoded {
    pub(crate) request: proto::Request,
    pub(crate) msg: proto::Msg,
}

impl Decoded {
    /// The request and the message in it; both are needed to say anything about it.
    pub(crate) fn decode(bytes: Bytes) -> Result<Box<Self>> {
        let unreadable = |text: &str| Error::new(code::BAD_REQUEST, text);
        let mut request =
            proto::Request::decode(bytes).map_err(|_| unreadable("cannot decode request"))?;
        let msg = request.msg.take().ok_or_else(|| unreadable("request has no message"))?;
        Ok(Box::new(Self { request, msg }))
    }
}
