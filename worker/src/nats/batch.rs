//! Batches of requests, and the answers that go back together.
//!
//! A gateway of ours puts the requests of one moment into one message (`wire/batch.rs` of proto has the layout). It is
//! taken apart here without a copy of what is in it, and each request goes its own way from there on, through the same
//! limits as one that came alone. What is answered to requests of batches is joined by the inbox that it goes to.
//!
//! An answer waits for no other: [`Joined`] holds what is there until everything that can run has had its turn once
//! (see [`behind_what_is_ready`]), and is emptied before anything else leaves, so the order of a session's answers and
//! pushes is what it would be without.

use std::task::Poll;

use async_nats::{Message, Subject};
use bytes::Bytes;
use proto::wire::{
    BATCH_ENTRY_BYTES, BATCH_HEADER, BatchError, BatchView, NO_TOKEN, PROBE, put_batch_entry_head,
};

use super::NatsLink;
use crate::answer;
use crate::counters::Counter;
use crate::error::Error;
use crate::request::Reply;
use crate::service::Service;

/// Answers of one message at most.
const ANSWERS_MAX: usize = 64;
/// Bytes of one message of answers at most.
const ANSWERS_BYTES_MAX: usize = 64 * 1024;
/// A longer answer leaves alone, uncopied.
const ANSWER_BYTES_MAX: usize = 16 * 1024;
/// Inboxes whose answers are held at once. A gateway has one for each of its cores.
const INBOXES_MAX: usize = 64;

/// Hands the requests of a batch to the service; returns how many there were.
pub(super) fn hand_over(message: Message, service: &Service, link: &NatsLink) -> u64 {
    let Message { payload, reply, .. } = message;
    if payload == PROBE[..] {
        return 0;
    }
    let requests = match requests(&payload) {
        Ok(requests) => requests,
        Err(error) => {
            service.counters().add(Counter::Failed);
            if let Some(reply) = reply {
                let error = Error::new(shared::error::code::BAD_REQUEST, error.to_string());
                link.answer(reply, answer::error(error));
            }
            return 1;
        }
    };
    let inbox = reply.as_ref().map(Inbox::of);
    let mut count = 0;
    for (token, request) in requests {
        count += 1;
        let reply = match &inbox {
            Some(inbox) if token != NO_TOKEN => {
                let (link, inbox) = (link.clone(), inbox.clone());
                Reply::new(move |answer| link.answer_joined(&inbox, token, answer))
            }
            _ => Reply::discard(),
        };
        service.handle(request, reply);
    }
    count
}

/// The requests of a batch with their tokens, as parts of the message that they came in.
fn requests(payload: &Bytes) -> Result<impl Iterator<Item = (u32, Bytes)>, BatchError> {
    let entries = BatchView::decode(payload)?.entries();
    Ok(entries.map(|(token, request)| (token, payload.slice_ref(request))))
}

/// Where the answers to a batch go, found from the subject that came with it: the answers of many requests to `b`
/// beside it, one alone to its token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Inbox(Subject);

impl Inbox {
    fn of(reply: &Subject) -> Self {
        Self(beside(reply, "b"))
    }

    /// The subject for one answer alone.
    pub(super) fn alone(&self, token: u32) -> Subject {
        beside(&self.0, &token.to_string())
    }
}

fn beside(subject: &str, last: &str) -> Subject {
    match subject.rsplit_once('.') {
        Some((front, _)) => format!("{front}.{last}").into(),
        None => last.into(),
    }
}

/// Answers that are there, each inbox's in one message.
#[derive(Debug, Default)]
pub(super) struct Joined(Vec<Answers>);

#[derive(Debug)]
struct Answers {
    inbox: Inbox,
    count: usize,
    bytes: Vec<u8>,
}

impl Joined {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether an answer may be held at all, where the NATS server takes `payload_bytes_max`.
    pub(super) fn suits(answer: &Bytes, payload_bytes_max: usize) -> bool {
        let whole = BATCH_HEADER.len() + BATCH_ENTRY_BYTES + answer.len();
        answer.len() <= ANSWER_BYTES_MAX && whole <= payload_bytes_max
    }

    /// Whether it fits in with the others.
    pub(super) fn has_room(&self, inbox: &Inbox, bytes: usize, payload_bytes_max: usize) -> bool {
        let bytes_max = ANSWERS_BYTES_MAX.min(payload_bytes_max);
        match self.0.iter().find(|answers| answers.inbox == *inbox) {
            Some(answers) => {
                answers.count < ANSWERS_MAX
                    && answers.bytes.len() + BATCH_ENTRY_BYTES + bytes <= bytes_max
            }
            None => self.0.len() < INBOXES_MAX,
        }
    }

    /// Holds an answer.
    pub(super) fn push(&mut self, inbox: &Inbox, token: u32, answer: &Bytes) {
        let known = self.0.iter().position(|answers| answers.inbox == *inbox);
        let place = known.unwrap_or_else(|| {
            let bytes = BATCH_HEADER.to_vec();
            self.0.push(Answers { inbox: inbox.clone(), count: 0, bytes });
            self.0.len() - 1
        });
        let answers = &mut self.0[place];
        answers.count += 1;
        put_batch_entry_head(token, answer.len(), &mut answers.bytes);
        answers.bytes.extend_from_slice(answer);
    }

    /// All messages that are held; nothing is held afterwards.
    pub(super) fn take(&mut self) -> impl Iterator<Item = (Subject, Bytes)> + use<> {
        std::mem::take(&mut self.0)
            .into_iter()
            .map(|answers| (answers.inbox.0, Bytes::from(answers.bytes)))
    }
}

/// Resolves when every task that could run at this moment has had its turn on this thread. A task that wakes itself while
/// it runs goes to the end of its thread's queue, where an idle thread finds it if this one is held up.
pub(super) fn behind_what_is_ready() -> impl Future<Output = ()> {
    let mut has_waited = false;
    std::future::poll_fn(move |context| {
        if std::mem::replace(&mut has_waited, true) {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(message: &Bytes) -> Vec<(u32, Vec<u8>)> {
        let view = BatchView::decode(message).unwrap();
        view.entries().map(|(token, answer)| (token, answer.to_vec())).collect()
    }

    #[test]
    fn the_requests_of_a_batch_are_parts_of_its_message() {
        let mut bytes = BATCH_HEADER.to_vec();
        for (token, request) in [(7, &b"abc"[..]), (NO_TOKEN, b"d")] {
            put_batch_entry_head(token, request.len(), &mut bytes);
            bytes.extend_from_slice(request);
        }
        let payload = Bytes::from(bytes);
        let whole = payload.as_ptr_range();
        let parts: Vec<_> = requests(&payload).unwrap().collect();
        assert_eq!(parts, [(7, Bytes::from_static(b"abc")), (NO_TOKEN, Bytes::from_static(b"d"))]);
        assert!(parts.iter().all(|(_, part)| whole.contains(&part.as_ptr())), "nothing is copied");
    }

    #[test]
    fn answers_go_beside_the_subject_of_their_batch() {
        let inbox = Inbox::of(&"_INBOX.abc.b71".into());
        assert_eq!(inbox, Inbox::of(&"_INBOX.abc.b9".into()), "of whichever batch");
        assert_eq!(inbox.0.as_str(), "_INBOX.abc.b");
        assert_eq!(inbox.alone(71).as_str(), "_INBOX.abc.71");
        assert_eq!(Inbox::of(&"odd".into()).0.as_str(), "b");
    }

    #[test]
    fn answers_are_joined_by_inbox_in_their_order() {
        let (one, two) = (Inbox::of(&"_INBOX.one.b1".into()), Inbox::of(&"_INBOX.two.b1".into()));
        let mut joined = Joined::default();
        for (inbox, token) in [(&one, 1), (&two, 2), (&one, 3)] {
            joined.push(inbox, token, &Bytes::from(vec![token as u8]));
        }
        let taken: Vec<_> = joined.take().collect();
        assert_eq!(taken[0].0.as_str(), "_INBOX.one.b");
        assert_eq!(entries(&taken[0].1), [(1, vec![1]), (3, vec![3])]);
        assert_eq!(entries(&taken[1].1), [(2, vec![2])]);
        assert!(joined.is_empty());
    }

    #[test]
    fn what_is_held_is_bounded_in_answers_bytes_and_inboxes() {
        let inbox = Inbox::of(&"_INBOX.one.b1".into());
        let mut joined = Joined::default();
        for token in 0..ANSWERS_MAX as u32 {
            assert!(joined.has_room(&inbox, 1, 1_000_000));
            joined.push(&inbox, token, &Bytes::from_static(b"x"));
        }
        assert!(!joined.has_room(&inbox, 1, 1_000_000));
        drop(joined.take());
        joined.push(&inbox, 0, &Bytes::from(vec![0; 80]));
        assert!(joined.has_room(&inbox, 2, 100) && !joined.has_room(&inbox, 3, 100));
        for number in 1..INBOXES_MAX {
            let other = Inbox::of(&format!("_INBOX.{number}.b1").into());
            assert!(joined.has_room(&other, 1, 100));
            joined.push(&other, 0, &Bytes::new());
        }
        assert!(!joined.has_room(&Inbox::of(&"_INBOX.more.b1".into()), 1, 100));
    }

    #[test]
    fn an_answer_that_is_too_long_to_be_joined_is_known() {
        let answer = |bytes| Bytes::from(vec![0; bytes]);
        assert!(Joined::suits(&answer(90), 100) && !Joined::suits(&answer(91), 100));
        assert!(Joined::suits(&answer(ANSWER_BYTES_MAX), 1_000_000));
        assert!(!Joined::suits(&answer(ANSWER_BYTES_MAX + 1), 1_000_000));
    }

    #[tokio::test]
    async fn what_is_ready_runs_first_and_what_is_not_is_not_waited_for() {
        let (sender, mut order) = tokio::sync::mpsc::unbounded_channel();
        let never = tokio::spawn(std::future::pending::<()>());
        for number in 0..3 {
            let sender = sender.clone();
            tokio::spawn(async move { sender.send(number) });
        }
        behind_what_is_ready().await;
        sender.send(3).unwrap();
        for number in 0..4 {
            assert_eq!(order.try_recv(), Ok(number));
        }
        never.abort();
    }
}
