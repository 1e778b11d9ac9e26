//! The worker's transport in a cluster: one connection to NATS, in both directions.
//!
//! Requests come in, and answers, pushes and calls go out, on the same connection, so a push that a handler sent
//! arrives before the handler's answer. The protocol is spoken by async-nats; what is added here is an outbox with a
//! bound and without waiting ([`NatsLink`]), and the options that its defaults lack.

mod batch;
mod feed;
mod link;
mod outlet;

use std::path::PathBuf;
use std::time::Duration;

use async_nats::{Client, ConnectOptions, Event, ServerAddr, Subscriber};
use bytes::Bytes;
use futures_util::StreamExt;
use shared::config::{Config, Secret};
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};

pub use feed::{Ending, Inlet, feed};
pub use link::NatsLink;
pub use outlet::Outlet;

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

    /// What the configuration says of NATS for servers that are called; `name` is what its monitoring shows.
    pub fn of(config: &Config, name: impl Into<String>) -> Self {
        let secret = |key| Some(config.secret(key)).filter(|s| !s.is_empty());
        let text = |key| secret(key).map(|secret: Secret| secret.reveal().to_owned());
        let path = |key| Some(config.string(key)).filter(|p| !p.is_empty()).map(PathBuf::from);
        let server = "pitaya.cluster.rpc.server.nats";
        let reconnects = config.int(&format!("{server}.maxreconnectionretries"));
        Self {
            urls: config.string(&format!("{server}.connect")).to_owned(),
            name: name.into(),
            connect_timeout: config.duration(&format!("{server}.connectiontimeout")),
            reconnect_wait: config.duration(&format!("{server}.reconnectwait")),
            reconnect_jitter: config.duration(&format!("{server}.reconnectjitter")),
            ping_interval: config.duration(&format!("{server}.pinginterval")),
            // The limit 0 would mean none to async-nats.
            reconnects_max: usize::try_from(reconnects).ok().map(|n| n.max(1)),
            user: text("pitaya.nats.password")
                .map(|password| (config.string("pitaya.nats.user").to_owned(), password)),
            token: text("pitaya.nats.token"),
            nkey: text("pitaya.nats.nkey"),
            credentials: text("pitaya.nats.credentials"),
            tls_ca: path("pitaya.nats.tls.ca"),
            tls_identity: path("pitaya.nats.tls.cert").zip(path("pitaya.nats.tls.key")),
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

/// Connects as often as it takes. Fails for mistakes of the settings only.
pub(crate) async fn connect_patiently(
    settings: &NatsSettings,
    events: mpsc::Sender<Event>,
) -> Result<Client, NatsError> {
    let mut attempts = 0;
    loop {
        match connect(settings, events.clone()).await {
            Err(error @ NatsError::Connect(_)) => {
                attempts += 1;
                let pause = backoff(settings.reconnect_wait, attempts);
                tracing::warn!(%error, ?pause, "waiting for NATS");
                sleep(pause).await;
            }
            outcome => return outcome,
        }
    }
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
