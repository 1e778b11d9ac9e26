//! The task that hands requests from one connection to the service, and how it ends without losing one.
//!
//! async-nats forgets a subscription at the moment in which it unsubscribes, and drops what the server sent before it
//! knew. So a feed asks for its end after a number of messages that lies ahead, and makes up that number with empty
//! messages to its own subject. Both sides count the same messages and agree on the last one: whoever comes before it
//! is served, whoever comes after it is told that nobody listens. The counts agree only on a connection that was
//! never made again, since the server starts from zero; otherwise the feed falls back to plain unsubscribing.

use std::sync::atomic::Ordering;

use async_nats::{Client, Event, Message, Subscriber};
use bytes::Bytes;
use futures_util::future::{BoxFuture, OptionFuture};
use futures_util::{FutureExt, StreamExt};
use proto::wire::is_batch;
use tokio::sync::{mpsc, oneshot, watch};

use super::{NatsLink, batch};
use crate::request::Reply;
use crate::service::Service;

/// How far ahead the end is asked for: more than can be on the way between the server and here.
const AHEAD: u64 = 4096;

/// How many empty messages are sent at most. Another connection of the same queue group gets some of them.
const FILLERS_MAX: u64 = 4 * AHEAD;

/// Requests that are taken in a row at most, or a batch more. Looking at everything else that a feed waits for costs about as much as
/// taking a message, and need not be done for each.
const ROW_MAX: u64 = 64;

/// One connection's subscription to the server's subject.
pub struct Inlet {
    /// The connection.
    pub client: Client,
    /// The server's subject.
    pub subject: String,
    /// The subscription to it.
    pub subscriber: Subscriber,
}

/// How a feed is told to end.
pub struct Ending {
    /// True: take what has arrived, and end.
    pub stop: watch::Receiver<bool>,
    /// Another connection takes over: the same, but go on until the server closes this one if that comes first. Gets
    /// the events of the connection.
    pub retire: oneshot::Receiver<mpsc::Receiver<Event>>,
}

/// Hands everything that arrives to the service, and never waits for a handler.
pub async fn feed(inlet: Inlet, service: Service, link: NatsLink, ending: Ending) {
    let Inlet { client, subject, mut subscriber } = inlet;
    let Ending { mut stop, mut retire } = ending;
    let (mut is_stopping, mut is_retiring, mut is_ending) = (false, false, false);
    let mut received = 0;
    let mut events = None;
    let mut fillers: OptionFuture<BoxFuture<'_, ()>> = None.into();
    loop {
        tokio::select! {
            message = subscriber.next() => {
                let Some(message) = message else { return };
                service.set_answer_bytes_max(link.payload_bytes_max());
                hand_over(message, &service, &link);
                received += 1 + hand_over_row(&mut subscriber, &service, &link);
                continue;
            }
            () = stopped(&mut stop), if !is_stopping => {
                is_stopping = true;
                if is_remade(&client) {
                    let _ = subscriber.drain().await;
                    continue;
                }
            }
            given = &mut retire, if !is_retiring => {
                is_retiring = true;
                events = given.ok();
                if events.is_none() || is_remade(&client) {
                    continue;
                }
            }
            Some(()) = &mut fillers => {
                fillers = None.into();
                continue;
            }
            () = closed(events.as_mut()) => break,
        }
        if !is_ending {
            is_ending = true;
            let _ = subscriber.unsubscribe_after(received + AHEAD).await;
            fillers = Some(fill(&client, &subject).boxed()).into();
        }
    }
    while hand_over_row(&mut subscriber, &service, &link) > 0 {}
}

/// Hands over what has arrived already, without waiting; returns how many messages it were.
fn hand_over_row(subscriber: &mut Subscriber, service: &Service, link: &NatsLink) -> u64 {
    let (mut messages, mut requests) = (0, 0);
    while requests < ROW_MAX
        && let Some(Some(message)) = subscriber.next().now_or_never()
    {
        requests += hand_over(message, service, link);
        messages += 1;
    }
    messages
}

/// Whether the connection was lost and made again at some time.
fn is_remade(client: &Client) -> bool {
    client.statistics().connects.load(Ordering::Relaxed) > 1
}

async fn fill(client: &Client, subject: &str) {
    for _ in 0..FILLERS_MAX {
        if client.publish(subject.to_owned(), Bytes::new()).await.is_err() {
            return;
        }
    }
}

/// Returns how many requests the message held.
fn hand_over(message: Message, service: &Service, link: &NatsLink) -> u64 {
    if is_batch(&message.payload) {
        return batch::hand_over(message, service, link);
    }
    let reply = match message.reply {
        Some(subject) => {
            let link = link.clone();
            Reply::new(move |answer| link.answer(subject, answer))
        }
        // One of the messages above. A request is never empty.
        None if message.payload.is_empty() => return 1,
        None => Reply::discard(),
    };
    service.handle(message.payload, reply);
    1
}

/// Resolves when the feed should end, or whoever could tell it has.
async fn stopped(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}

/// Resolves when the connection of these events is lost; never without events.
async fn closed(events: Option<&mut mpsc::Receiver<Event>>) {
    let Some(events) = events else { return std::future::pending().await };
    while let Some(event) = events.recv().await {
        if matches!(event, Event::Disconnected | Event::Closed) {
            return;
        }
    }
}
