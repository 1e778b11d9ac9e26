//! [`Link`] over async-nats: an outbox that never makes its caller wait, keeps the order, and has a bound in bytes.
//!
//! async-nats takes messages through a channel that waits when it is full. A handler's answer must not wait (it is
//! given in the middle of a session's task) and must not overtake a push, so whatever the channel does not take at
//! once goes into a queue here, which one task, the pump, empties. As long as the queue is not empty everything goes
//! through it; otherwise nothing does, and no task is woken.
//!
//! Answers to requests that came in batches are held for a moment, to leave together (see `batch`). They leave before
//! whatever else is sent, so the order stays that of the calls.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_nats::client::{PublishErrorKind, RequestErrorKind};
use async_nats::connection::State;
use async_nats::{Client, Request, Subject};
use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::sync::Notify;
use tokio::task::unconstrained;

use super::batch::{Inbox, Joined, behind_what_is_ready};
use crate::link::{Link, LinkError};

/// What may wait here while NATS is away or slower than we are. Beyond it publishes are refused.
const OUTBOX_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Up to here [`Link::ready`] says that there is room: less than the bound, because many wake at once.
const OUTBOX_BYTES_READY: usize = OUTBOX_BYTES_MAX / 2;

/// What a waiting message costs besides its payload: its place in the queue and its subject.
const MESSAGE_BYTES: usize = 128;

/// The link of a worker in a cluster. Clones share one connection.
#[derive(Clone)]
pub struct NatsLink(Arc<Inner>);

struct Inner {
    outbox: Mutex<Outbox>,
    /// The pump has something to do.
    filled: Notify,
    /// The outbox has room again.
    emptied: Notify,
    /// Answers are held, to leave together.
    joined: Notify,
}

struct Outbox {
    /// Where everything goes; replaced when its server sends us away.
    client: Client,
    waiting: VecDeque<(Subject, Bytes)>,
    bytes: usize,
    /// The pump holds messages that it took out and the channel does not have yet.
    is_pumping: bool,
    /// Nothing goes out until the client was replaced.
    is_held: bool,
    refused: u64,
    /// Answers that leave before the next message, or when what is ready has run.
    joined: Joined,
}

impl NatsLink {
    /// The link, and its pump, which the caller runs as a task until the link is not needed any more.
    pub fn new(client: Client) -> (Self, impl Future<Output = ()> + Send + 'static) {
        let outbox = Mutex::new(Outbox {
            client,
            waiting: VecDeque::new(),
            bytes: 0,
            is_pumping: false,
            is_held: false,
            refused: 0,
            joined: Joined::default(),
        });
        let (filled, emptied, joined) = (Notify::new(), Notify::new(), Notify::new());
        let link = Self(Arc::new(Inner { outbox, filled, emptied, joined }));
        let tasks = (pump(Arc::clone(&link.0)), release_joined(Arc::clone(&link.0)));
        (link, async {
            let ((), ()) = tokio::join!(tasks.0, tasks.1);
        })
    }

    /// The largest message that the server takes.
    pub fn payload_bytes_max(&self) -> usize {
        self.0.outbox().client.max_payload()
    }

    /// The connection of this moment.
    pub fn client(&self) -> Client {
        self.0.outbox().client.clone()
    }

    /// Lets everything from now on go through another client. The order is kept: messages wait here until the old
    /// client's server has all that went before, at most `limit`. Calls that wait for an answer keep the old client.
    pub async fn replace(&self, client: Client, limit: Duration) {
        // Undone on every way out, also when this is cancelled.
        let _held = Held::new(&self.0);
        let old = self.client();
        let quiet = async {
            loop {
                let emptied = self.0.emptied.notified();
                if !self.0.outbox().is_pumping {
                    break;
                }
                emptied.await;
            }
            super::barrier(&old, limit).await
        };
        if !matches!(tokio::time::timeout(limit, quiet).await, Ok(Ok(()))) {
            tracing::warn!("the old connection to NATS did not answer any more");
        }
        self.0.outbox().client = client;
    }

    /// Answers a request. An answer that finds the outbox full is lost, and counted; its caller has given up by then.
    pub(crate) fn answer(&self, subject: Subject, answer: Bytes) {
        // The service keeps answers below the server's limit, and there is nobody to tell about the rest.
        let _ = self.send(subject, answer);
    }

    /// Answers a request that came in a batch, together with others that are answered now.
    pub(super) fn answer_joined(&self, inbox: &Inbox, token: u32, answer: Bytes) {
        let mut outbox = self.0.outbox();
        let payload_bytes_max = outbox.client.max_payload();
        if !Joined::suits(&answer, payload_bytes_max) {
            drop(outbox);
            return self.answer(inbox.alone(token), answer);
        }
        if !outbox.joined.has_room(inbox, answer.len(), payload_bytes_max) {
            self.0.release_joined(&mut outbox);
        }
        let is_first = outbox.joined.is_empty();
        outbox.joined.push(inbox, token, &answer);
        drop(outbox);
        if is_first {
            self.0.joined.notify_one();
        }
    }

    /// How many messages were refused because the outbox was full.
    pub fn refused(&self) -> u64 {
        self.0.outbox().refused
    }

    /// Waits until everything that was published is with the NATS server, at most `limit`.
    pub async fn flush(&self, limit: Duration) {
        self.0.release_joined(&mut self.0.outbox());
        let flush = async {
            loop {
                let emptied = self.0.emptied.notified();
                if self.0.outbox().is_free() {
                    break;
                }
                emptied.await;
            }
            super::barrier(&self.client(), limit).await
        };
        if !matches!(tokio::time::timeout(limit, flush).await, Ok(Ok(()))) {
            tracing::warn!("the last messages may not have reached NATS");
        }
    }

    fn send(&self, subject: Subject, payload: Bytes) -> Result<(), LinkError> {
        let mut outbox = self.0.outbox();
        self.0.release_joined(&mut outbox);
        self.0.send(&mut outbox, subject, payload)
    }
}

impl Outbox {
    /// Whether a message may go out at once without overtaking another.
    fn is_free(&self) -> bool {
        self.waiting.is_empty() && !self.is_pumping && !self.is_held
    }
}

/// Nothing goes out as long as this lives.
struct Held<'a>(&'a Inner);

impl<'a> Held<'a> {
    fn new(inner: &'a Inner) -> Self {
        inner.outbox().is_held = true;
        Self(inner)
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.0.outbox().is_held = false;
        self.0.filled.notify_one();
    }
}

impl Inner {
    fn send(&self, outbox: &mut Outbox, subject: Subject, payload: Bytes) -> Result<(), LinkError> {
        if outbox.is_free() {
            // One poll, outside tokio's budget, which would make the channel look full when it is not.
            let publish = outbox.client.publish(subject.clone(), payload.clone());
            if let Some(outcome) = unconstrained(publish).now_or_never() {
                return outcome.map_err(|error| match error.kind() {
                    PublishErrorKind::MaxPayloadExceeded => LinkError::TooLarge,
                    PublishErrorKind::InvalidSubject => LinkError::InvalidSubject,
                    PublishErrorKind::Send => LinkError::Closed,
                });
            }
        }
        if payload.len() > outbox.client.max_payload() {
            return Err(LinkError::TooLarge);
        }
        let bytes = payload.len() + MESSAGE_BYTES;
        if outbox.bytes + bytes > OUTBOX_BYTES_MAX {
            outbox.refused += 1;
            return Err(LinkError::Full);
        }
        outbox.bytes += bytes;
        outbox.waiting.push_back((subject, payload));
        self.filled.notify_one();
        Ok(())
    }

    /// Sends the answers that are held. What finds the outbox full is lost, as a single answer is.
    fn release_joined(&self, outbox: &mut Outbox) {
        if outbox.joined.is_empty() {
            return;
        }
        for (subject, payload) in outbox.joined.take() {
            let _ = self.send(outbox, subject, payload);
        }
    }

    fn outbox(&self) -> MutexGuard<'_, Outbox> {
        self.outbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes everything that waits, and where it goes. None when there is nothing to do, which ends the pump's turn.
    fn take(&self) -> Option<(Client, VecDeque<(Subject, Bytes)>)> {
        let mut outbox = self.outbox();
        outbox.is_pumping = !outbox.waiting.is_empty() && !outbox.is_held;
        let take =
            |outbox: &mut Outbox| (outbox.client.clone(), std::mem::take(&mut outbox.waiting));
        let taken = outbox.is_pumping.then(|| take(&mut outbox));
        drop(outbox);
        if taken.is_none() {
            self.emptied.notify_waiters();
        }
        taken
    }

    fn release(&self, bytes: usize) {
        let mut outbox = self.outbox();
        let was_ready = outbox.bytes <= OUTBOX_BYTES_READY;
        outbox.bytes -= bytes;
        let is_ready = outbox.bytes <= OUTBOX_BYTES_READY;
        drop(outbox);
        if is_ready && !was_ready {
            self.emptied.notify_waiters();
        }
    }
}

/// Moves waiting messages into async-nats's channel, for ever.
async fn pump(inner: Arc<Inner>) {
    loop {
        while let Some((client, taken)) = inner.take() {
            for (subject, payload) in taken {
                let bytes = payload.len() + MESSAGE_BYTES;
                if client.publish(subject, payload).await.is_err() {
                    tracing::debug!("a message was refused by the connection");
                }
                inner.release(bytes);
            }
        }
        inner.filled.notified().await;
    }
}

/// Sends held answers as soon as what was ready with them has run, for ever.
async fn release_joined(inner: Arc<Inner>) {
    loop {
        inner.joined.notified().await;
        behind_what_is_ready().await;
        inner.release_joined(&mut inner.outbox());
    }
}

impl Link for NatsLink {
    fn request(
        &self,
        subject: &str,
        payload: Vec<u8>,
        timeout: Duration,
    ) -> BoxFuture<'_, Result<Bytes, LinkError>> {
        let mut outbox = self.0.outbox();
        // Answers that were given before the call arrive before it.
        self.0.release_joined(&mut outbox);
        let (client, subject) = (outbox.client.clone(), Subject::from(subject));
        drop(outbox);
        Box::pin(async move {
            // async-nats would keep it and send it after the reconnect, when its caller has long given up.
            if client.connection_state() != State::Connected {
                return Err(LinkError::Disconnected);
            }
            let request = Request::new().payload(payload.into()).timeout(Some(timeout));
            // The limit again around it, because waiting for the channel is not part of async-nats's timeout.
            let answer = client.send_request(subject, request);
            let answer = tokio::time::timeout(timeout, answer).await;
            match answer.map_err(|_| LinkError::Timeout)? {
                Ok(message) => Ok(message.payload),
                Err(error) => Err(match error.kind() {
                    RequestErrorKind::TimedOut => LinkError::Timeout,
                    RequestErrorKind::NoResponders => LinkError::NoResponders,
                    RequestErrorKind::MaxPayloadExceeded => LinkError::TooLarge,
                    RequestErrorKind::InvalidSubject => LinkError::InvalidSubject,
                    RequestErrorKind::Other => LinkError::Closed,
                }),
            }
        })
    }

    fn publish(&self, subject: &str, payload: Vec<u8>) -> Result<(), LinkError> {
        self.send(Subject::from(subject), payload.into())
    }

    fn ready(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {
            loop {
                let emptied = self.0.emptied.notified();
                if self.0.outbox().bytes <= OUTBOX_BYTES_READY {
                    return;
                }
                emptied.await;
            }
        })
    }
}
