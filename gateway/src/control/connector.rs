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

/// Servers that the cluster names itself are kept up to this number.
const DISCOVERED_MAX: usize = 64;

/// Connects for all reactors. The tasks that it spawns end with a connection or with the runtime.
pub struct Connector {
    plan: Arc<NatsPlan>,
    /// Further servers that the cluster named.
    discovered: Arc<Mutex<Vec<NatsUrl>>>,
    mailboxes: Arc<[Arc<Mailbox>]>,
    /// When each reactor's last try began.
    last: Arc<[Mutex<Option<Instant>>]>,
}

impl Connector {
    /// A connector for these reactors.
    pub fn new(plan: NatsPlan, mailboxes: Arc<[Arc<Mailbox>]>) -> Self {
        let last = mailboxes.iter().map(|_| Mutex::new(None)).collect();
        Self { plan: Arc::new(plan), discovered: Arc::default(), mailboxes, last }
    }

    /// Begins to connect for `reactor`; the socket comes to its mailbox.
    pub fn connect(&self, reactor: usize) {
        let Some(mailbox) = self.mailboxes.get(reactor).cloned() else { return };
        let (plan, last, discovered) =
            (self.plan.clone(), self.last.clone(), self.discovered.clone());
        tokio::spawn(async move {
            let Some(last) = last.get(reactor) else { return };
            let (socket, server) = connect_somewhere(reactor, &plan, &discovered, last).await;
            post(&mailbox, Mail::BusConnected { socket, server }).await;
        });
    }

    /// Takes up servers that the cluster named, as `host:port`. They are used like the first configured one: with its
    /// credentials, and with TLS where it asks for that.
    pub fn learn(&self, addresses: &[String]) {
        let Some(model) = self.plan.urls.first() else { return };
        let mut discovered = self.discovered.lock().unwrap_or_else(PoisonError::into_inner);
        for url in
            addresses.iter().filter_map(|address| NatsUrl::parse_list(address).ok()).flatten()
        {
            let url = NatsUrl { tls: model.tls, auth: model.auth.clone(), ..url };
            let is_known =
                self.plan.urls.iter().chain(discovered.iter()).any(|known| {
                    (known.host.as_str(), known.port) == (url.host.as_str(), url.port)
                });
            if !is_known && discovered.len() < DISCOVERED_MAX {
                tracing::debug!(server = %url, "the NATS cluster named a server");
                discovered.push(url);
            }
        }
    }
}

async fn connect_somewhere(
    reactor: usize,
    plan: &NatsPlan,
    discovered: &Mutex<Vec<NatsUrl>>,
    last: &Mutex<Option<Instant>>,
) -> (OwnedFd, NatsServer) {
    loop {
        let mut urls = plan.urls.clone();
        urls.extend_from_slice(&discovered.lock().unwrap_or_else(PoisonError::into_inner));
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
