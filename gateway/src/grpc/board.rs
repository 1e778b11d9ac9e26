//! The board: which bus wants what comes on which subject, and who waits for which answer. It is what a NATS server
//! knows, for one process.
//!
//! Shared by the bridges, which write down what their buses want, and by the service that takes calls of other servers.
//! Invariant: everybody who waits here is forgotten when they stop waiting, however that ends.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};

/// Front of the subjects that answers to calls of other servers go to.
const ANSWERS: &str = "_GRPC.";

/// A message on its way to a bus.
#[derive(Debug)]
pub(super) struct Delivery {
    pub(super) subject: Bytes,
    pub(super) sid: u64,
    /// Where the answer goes, if one is wanted.
    pub(super) reply: Option<String>,
    pub(super) payload: Bytes,
}

/// See the file.
#[derive(Default)]
pub(super) struct Board {
    subscribers: Mutex<HashMap<Box<[u8]>, Vec<Subscriber>>>,
    waiting: Mutex<HashMap<u64, oneshot::Sender<Bytes>>>,
    last_number: AtomicU64,
}

/// A bus that wants what comes on a subject.
#[derive(Clone)]
pub(super) struct Subscriber {
    /// Which bridge it is behind.
    pub(super) bridge: u64,
    pub(super) sid: u64,
    pub(super) deliveries: mpsc::Sender<Delivery>,
}

/// Nobody wants what comes on the subject, or whoever did has gone without an answer.
#[derive(Debug)]
pub(super) struct Unanswered;

impl Board {
    /// A number that no bridge and no answer has had yet.
    pub(super) fn next_number(&self) -> u64 {
        self.last_number.fetch_add(1, Ordering::Relaxed) + 1
    }

    pub(super) fn subscribe(&self, subject: &[u8], subscriber: Subscriber) {
        self.subscribers().entry(subject.into()).or_default().push(subscriber);
    }

    pub(super) fn unsubscribe(&self, subject: &[u8], bridge: u64, sid: u64) {
        let mut subscribers = self.subscribers();
        let Some(of_subject) = subscribers.get_mut(subject) else { return };
        of_subject.retain(|subscriber| (subscriber.bridge, subscriber.sid) != (bridge, sid));
        if of_subject.is_empty() {
            subscribers.remove(subject);
        }
    }

    /// Hands a message to everybody who wants it. Waits for room.
    pub(super) async fn publish(&self, subject: &str, payload: Bytes) {
        self.deliver(subject, None, payload).await;
    }

    /// Hands a message to everybody who wants it and waits for the first answer. Dropping the future ends the wait.
    ///
    /// Fails when nobody wants it.
    pub(super) async fn request(&self, subject: &str, payload: Bytes) -> Result<Bytes, Unanswered> {
        let number = self.next_number();
        let (sender, answered) = oneshot::channel();
        self.waiting().insert(number, sender);
        let _forgotten = Forgotten { board: self, number };
        if !self.deliver(subject, Some(format!("{ANSWERS}{number}")), payload).await {
            return Err(Unanswered);
        }
        answered.await.map_err(|_| Unanswered)
    }

    /// Takes a message that a bus has published, if it is an answer to a request; false if it is something else. An
    /// answer that nobody waits for any more is dropped.
    pub(super) fn answer(&self, subject: &str, payload: &[u8]) -> bool {
        let Some(number) = subject.strip_prefix(ANSWERS) else { return false };
        let waiting = number.parse().ok().and_then(|number| self.waiting().remove(&number));
        if let Some(waiting) = waiting {
            // Whoever asked may have given up at this moment.
            let _ = waiting.send(Bytes::copy_from_slice(payload));
        }
        true
    }

    async fn deliver(&self, subject: &str, reply: Option<String>, payload: Bytes) -> bool {
        let found = self.subscribers().get(subject.as_bytes()).cloned().unwrap_or_default();
        let subject = Bytes::copy_from_slice(subject.as_bytes());
        let mut is_delivered = false;
        for Subscriber { sid, deliveries, .. } in found {
            let (subject, payload, reply) = (subject.clone(), payload.clone(), reply.clone());
            is_delivered |=
                deliveries.send(Delivery { subject, sid, reply, payload }).await.is_ok();
        }
        is_delivered
    }

    fn subscribers(&self) -> MutexGuard<'_, HashMap<Box<[u8]>, Vec<Subscriber>>> {
        self.subscribers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn waiting(&self) -> MutexGuard<'_, HashMap<u64, oneshot::Sender<Bytes>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Strikes one who waits off the board.
struct Forgotten<'a> {
    board: &'a Board,
    number: u64,
}

impl Drop for Forgotten<'_> {
    fn drop(&mut self) {
        self.board.waiting().remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[tokio::test]
    async fn a_request_is_answered_by_whoever_has_subscribed_and_leaves_nothing_behind() {
        let board = Board::default();
        assert!(board.request("a", Bytes::new()).await.is_err());
        let (deliveries, mut delivered) = mpsc::channel(1);
        board.subscribe(b"a", Subscriber { bridge: 1, sid: 16, deliveries });
        let answering = async {
            let delivery = delivered.recv().await.unwrap();
            assert_eq!((&delivery.subject[..], delivery.sid), (&b"a"[..], 16));
            assert!(!board.answer("a", b"no answer"));
            assert!(board.answer("_GRPC.x", b"") && board.answer("_GRPC.999", b""));
            let reply = delivery.reply.unwrap();
            assert!(board.answer(&reply, b"yes") && board.answer(&reply, b"again"));
        };
        let (answer, ()) = tokio::join!(board.request("a", Bytes::from_static(b"?")), answering);
        assert_eq!(&answer.unwrap()[..], b"yes");
        {
            let mut given_up = Box::pin(board.request("a", Bytes::new()));
            assert!(given_up.as_mut().now_or_never().is_none());
            assert_eq!(board.waiting().len(), 1);
        }
        assert!(board.waiting().is_empty());
        board.unsubscribe(b"a", 2, 16);
        board.unsubscribe(b"b", 1, 16);
        assert_eq!(board.subscribers().len(), 1);
        board.unsubscribe(b"a", 1, 16);
        assert!(board.subscribers().is_empty());
        assert!(board.request("a", Bytes::new()).await.is_err());
    }
}
