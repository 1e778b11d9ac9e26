//! The worker's transport in a cluster: one connection to NATS, in both directions.
//!
//! Requests come in, and answers, pushes and calls go out, on the same connection, so a push that a handler sent
//! arrives before the handler's answer. The protocol is spoken by async-nats; what is added here is an outbox with a
//! bound and without waiting ([`NatsLink`]), and the options that its defaults lack.

mod link;

use std::path::PathBuf;
use std::time::Duration;

use async_nats::{Client, ConnectOptions, Event, Message, ServerAddr, Subscriber};
use bytes::Bytes;
use futures_util::{FutureExt, StreamExt};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::timeout;

pub use link::NatsLink;

use crate::service::{Reply, Service};

/// Longest pause between two attempts to connect.
const RECONNECT_WAIT_MAX: Duration = Duration::from_secs(8);

/// Requests that async-nats may hold before the reader takes them. The reader only queues, so this is for bursts
/// within one scheduling delay; what exceeds it is lost, which async-nats reports as a slow consumer.
const SUBSCRIPTION_CAPACITY: usize = 64 * 1024;

/// How to reach NATS.
#[derive(Clone)]
pub struct NatsSettings {
    /// Servers of one NATS system, comma separated; credentials may be part of a URL.
    pub urls: String,
    /// The name that the server's monitoring shows: `type/id`.
    pub name: String,
    /// Limit of one attempt to connect.
    pub connect_timeout: Duration,
    /// Pause before another attempt; doubled up to 8 s, with as much again at random.
    pub reconnect_wait: Duration,
    /// Added at random to each such pause.
    pub reconnect_jitter: Duration,
    /// How often the connection is probed; two lost probes end it.
    pub ping_interval: Duration,
    /// Attempts to connect again; none means without end.
    pub reconnects_max: Option<usize>,
    /// User and password, if the URL has none.
    pub user: Option<(String, String)>,
    /// Token, likewise.
    pub token: Option<String>,
    /// NKey seed.
    pub nkey: Option<String>,
    /// Text of a credentials file, with a JWT and a seed.
    pub credentials: Option<String>,
    /// Certificates to trust besides the system's.
    pub tls_ca: Option<PathBuf>,
    /// Certificate and key to show.
    pub tls_identity: Option<(PathBuf, PathBuf)>,
}

impl NatsSettings {
    /// Settings for these servers with the defaults of everything else.
    pub fn new(urls: impl Into<String>, name: impl Into<String>) -> Self {
        Self {
            urls: urls.into(),
            name: name.into(),
            connect_timeout: Duration::from_secs(5),
            reconnect_wait: Duration::from_millis(250),
            reconnect_jitter: Duration::ZERO,
            ping_interval: Duration::from_secs(15),
            reconnects_max: None,
            user: None,
            token: None,
            nkey: None,
            credentials: None,
            tls_ca: None,
            tls_identity: None,
        }
    }
}

/// Why a connection cannot be made now or ever.
#[derive(Debug, thiserror::Error)]
pub enum NatsError {
    /// The URL list is empty or not readable. Passwords are not part of the text.
    #[error("the NATS URL list is not readable: {0}")]
    Urls(std::io::Error),
    /// The credentials are not readable.
    #[error("the NATS credentials are not readable: {0}")]
    Credentials(std::io::Error),
    /// No server of the list took the connection.
    #[error("cannot connect to NATS: {0}")]
    Connect(#[from] async_nats::ConnectError),
    /// The connection was lost while it was set up.
    #[error("NATS: {0}")]
    Broken(&'static str),
}

/// Connects once. Later losses are repaired without limit. Events arrive in `events`; those that nobody takes are
/// dropped.
pub async fn connect(
    settings: &NatsSettings,
    events: mpsc::Sender<Event>,
) -> Result<Client, NatsError> {
    let servers: Result<Vec<ServerAddr>, _> =
        settings.urls.split(',').map(|url| url.trim().parse()).collect();
    let servers = servers.map_err(NatsError::Urls)?;
    Ok(options(settings, events)?.connect(servers).await?)
}

fn options(
    settings: &NatsSettings,
    events: mpsc::Sender<Event>,
) -> Result<ConnectOptions, NatsError> {
    let (wait, jitter) = (settings.reconnect_wait, settings.reconnect_jitter);
    let mut options = ConnectOptions::new()
        .name(&settings.name)
        .connection_timeout(settings.connect_timeout)
        .ping_interval(settings.ping_interval)
        .max_reconnects(settings.reconnects_max)
        .reconnect_delay_callback(move |attempts| {
            backoff(wait, attempts) + jitter.mul_f64(fastrand::f64())
        })
        .subscription_capacity(SUBSCRIPTION_CAPACITY)
        .event_callback(move |event| {
            let _ = events.try_send(event);
            std::future::ready(())
        });
    if let Some(token) = &settings.token {
        options = options.token(token.clone());
    }
    if let Some(seed) = &settings.nkey {
        options = options.nkey(seed.clone());
    }
    if let Some((user, password)) = &settings.user {
        options = options.user_and_password(user.clone(), password.clone());
    }
    if let Some(text) = &settings.credentials {
        options = options.credentials(text).map_err(NatsError::Credentials)?;
    }
    if let Some(file) = &settings.tls_ca {
        options = options.add_root_certificates(file.clone());
    }
    if let Some((certificate, key)) = &settings.tls_identity {
        options = options.add_client_certificate(certificate.clone(), key.clone());
    }
    Ok(options)
}

/// Doubled for each attempt, with as much again at random, so that a thousand servers do not come back together.
pub(crate) fn backoff(wait: Duration, attempts: usize) -> Duration {
    let doublings = u32::try_from(attempts.saturating_sub(1)).unwrap_or(u32::MAX).min(16);
    let wait = wait.saturating_mul(1 << doublings).min(RECONNECT_WAIT_MAX);
    wait.mul_f64(1.0 + fastrand::f64())
}

/// Subscribes to a server's subject and waits until the NATS server knows.
///
/// A queue group of one: senders cannot tell the difference, and a second connection of the same server can join
/// without requests arriving twice (cluster protocol 11).
pub async fn subscribe(client: &Client, subject: &str) -> Result<Subscriber, NatsError> {
    let group = "dragonfruit".to_owned();
    let subscriber = client.queue_subscribe(subject.to_owned(), group).await;
    let subscriber =
        subscriber.map_err(|_| NatsError::Broken("the subject cannot be subscribed"))?;
    barrier(client, Duration::from_secs(10)).await?;
    Ok(subscriber)
}

/// Waits until the server has handled everything that was sent before: a message to ourselves comes back after it.
pub async fn barrier(client: &Client, limit: Duration) -> Result<(), NatsError> {
    let broken = || NatsError::Broken("no echo from the server");
    let inbox = client.new_inbox();
    let mut echo = client.subscribe(inbox.clone()).await.map_err(|_| broken())?;
    client.publish(inbox, Bytes::new()).await.map_err(|_| broken())?;
    match timeout(limit, echo.next()).await {
        Ok(Some(_)) => Ok(()),
        _ => Err(broken()),
    }
}

/// Hands everything that arrives to the service, and never waits for a handler. Ends in one of two ways:
///
/// * `stop` becomes true: unsubscribes, takes what has arrived already. What NATS sends until it reads the
///   unsubscription is lost to async-nats; nobody calls a server that left the cluster a while ago.
/// * `retire` gets the events of the connection: takes all that comes until the server closes it, and so loses
///   nothing. This is how a connection ends that another one has taken over from.
pub async fn feed(
    mut subscriber: Subscriber,
    service: Service,
    link: NatsLink,
    mut stop: watch::Receiver<bool>,
    mut retire: oneshot::Receiver<mpsc::Receiver<Event>>,
) {
    let mut events = None;
    let (mut is_stopping, mut is_retiring) = (false, false);
    loop {
        tokio::select! {
            message = subscriber.next() => match message {
                Some(message) => hand_over(message, &service, &link),
                None => return,
            },
            () = stopped(&mut stop), if !is_stopping => {
                is_stopping = true;
                let _ = subscriber.drain().await;
            }
            received = &mut retire, if !is_retiring => {
                is_retiring = true;
                events = received.ok();
            }
            () = closed(events.as_mut()) => break,
        }
    }
    while let Some(Some(message)) = subscriber.next().now_or_never() {
        hand_over(message, &service, &link);
    }
}

fn hand_over(message: Message, service: &Service, link: &NatsLink) {
    service.set_answer_bytes_max(link.payload_bytes_max());
    let reply = match message.reply {
        None => Reply::discard(),
        Some(subject) => {
            let link = link.clone();
            Reply::new(move |answer| link.answer(subject, answer))
        }
    };
    service.handle(message.payload, reply);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pause_grows_to_its_bound_and_is_never_the_same_for_all() {
        let wait = Duration::from_millis(250);
        for attempts in [0, 1, 2, 10, 1000, usize::MAX] {
            let pause = backoff(wait, attempts);
            assert!(pause >= wait && pause <= 2 * RECONNECT_WAIT_MAX, "{attempts}: {pause:?}");
        }
        assert!(backoff(wait, 50) >= RECONNECT_WAIT_MAX);
    }
}
