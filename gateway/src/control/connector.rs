//! Connecting to NATS for the reactors: names, waits and the list of servers, off the reactors' threads.
//!
//! A reactor that wants a connection gets a connected socket as a letter. Tries go on for ever: a NATS that is away
//! ends nothing (compatibility traps 7.1). Between two tries for one reactor there is a wait with jitter, also when a
//! server takes the connection and closes it at once, as one with other credentials does.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use shared::nats::{ConnectOptions, NatsUrl};
use tokio::net::TcpStream;

use super::post;
use crate::bus::link::NatsServer;
use crate::mailbox::{Mail, Mailbox};

/// How to connect.
#[derive(Clone, Debug)]
pub struct NatsPlan {
    /// The servers.
    pub urls: Vec<NatsUrl>,
    /// Name, authentication, pings.
    pub options: ConnectOptions,
    /// Limit of one try.
    pub connect_timeout: Duration,
    /// Wait between two rounds over the list.
    pub wait: Duration,
    /// Added at random, up to this.
    pub jitter: Duration,
}

/// Connects for all reactors. The tasks that it spawns end with a connection or with the runtime.
pub struct Connector {
    plan: Arc<NatsPlan>,
    mailboxes: Arc<[Arc<Mailbox>]>,
    /// When each reactor's last try began.
    last: Arc<[Mutex<Option<Instant>>]>,
}

impl Connector {
    /// A connector for these reactors.
    pub fn new(plan: NatsPlan, mailboxes: Arc<[Arc<Mailbox>]>) -> Self {
        let last = mailboxes.iter().map(|_| Mutex::new(None)).collect();
        Self { plan: Arc::new(plan), mailboxes, last }
    }

    /// Begins to connect for `reactor`; the socket comes to its mailbox.
    pub fn connect(&self, reactor: usize) {
        let Some(mailbox) = self.mailboxes.get(reactor).cloned() else { return };
        let (plan, last) = (self.plan.clone(), self.last.clone());
        tokio::spawn(async move {
            let Some(last) = last.get(reactor) else { return };
            let (socket, server) = connect_somewhere(reactor, &plan, last).await;
            post(&mailbox, Mail::BusConnected { socket, server }).await;
        });
    }
}

async fn connect_somewhere(
    reactor: usize,
    plan: &NatsPlan,
    last: &Mutex<Option<Instant>>,
) -> (OwnedFd, NatsServer) {
    let mut urls = plan.urls.clone();
    loop {
        let since = *last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(left) = since.and_then(|since| plan.wait.checked_sub(since.elapsed())) {
            let jitter = Duration::from_micros(fastrand::u64(..=plan.jitter.as_micros() as u64));
            tokio::time::sleep(left + jitter).await;
        }
        // Taken after the wait: a wait must not count as time since the try that it precedes.
        *last.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
        fastrand::shuffle(&mut urls);
        for url in &urls {
            match connect(url, plan).await {
                Ok(connected) => return connected,
                Err(error) => {
                    tracing::warn!(reactor, server = %url, %error, "cannot connect to NATS");
                }
            }
        }
        *last.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }
}

async fn connect(url: &NatsUrl, plan: &NatsPlan) -> io::Result<(OwnedFd, NatsServer)> {
    let attempt = TcpStream::connect((url.host.as_str(), url.port));
    let stream = tokio::time::timeout(plan.connect_timeout, attempt)
        .await
        .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
    stream.set_nodelay(true)?;
    let server = NatsServer {
        options: Arc::new(plan.options.for_url(url)),
        host: url.host.clone(),
        address: format!("{}:{}", url.host, url.port),
    };
    Ok((OwnedFd::from(stream.into_std()?), server))
}
