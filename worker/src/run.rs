//! The life of a server in a cluster, from its configuration to its end.
//!
//! Start: connect to NATS, follow the cluster, run the start hooks, subscribe, and only then announce the server, so
//! that nobody calls a server that is deaf. Stop, the other way round: leave the cluster, give others time to notice,
//! unsubscribe, finish what was taken, flush, close. Losing NATS or etcd in between ends nothing.
//!
//! Tasks, all owned here: the feed (one for the subscription), the outbox's pump, the pages of [`crate::admin`].

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_nats::{Client, Event};
use shared::cluster::discovery::Discovery;
use shared::config::{Binary, Config};
use shared::server::{Server, ServerTable};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::sleep;

use crate::admin::{self, Status};
use crate::app::{App, ClusterView};
use crate::error::{Error, Result};
use crate::nats::{self, NatsLink, NatsSettings};
use crate::servers::Servers;
use crate::settings::Settings;

/// For the last words to NATS at the end.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(2);

impl App {
    /// Runs the application as a server of a cluster until SIGTERM, SIGINT or SIGQUIT, then ends it gracefully.
    ///
    /// Configured by the environment, with Pitaya's names. Fails when the application or the configuration has
    /// mistakes, all in one text, or when a start hook fails; never because NATS or etcd is away.
    pub async fn run(self) -> Result<()> {
        let config = Config::load(Binary::Worker, None, std::env::vars(), &[]);
        let config = config.map_err(|errors| {
            let texts: Vec<String> = errors.iter().map(ToString::to_string).collect();
            Error::unknown(texts.join("; "))
        })?;
        self.run_with(&config).await
    }

    /// The same with a configuration of the caller's.
    pub async fn run_with(self, config: &Config) -> Result<()> {
        self.run_until(config, signals()?).await
    }

    /// The same until a message or the end of `stops`. A second message ends the wait for what still runs.
    pub async fn run_until(self, config: &Config, mut stops: mpsc::Receiver<()>) -> Result<()> {
        let settings = Settings::new(config, self.server_type(), self.limits);
        let app =
            self.with_server_type(&settings.own.server_type).limits(settings.limits).checked()?;
        let (events_sender, mut events) = mpsc::channel(64);
        let client = tokio::select! {
            client = connect(&settings.nats, events_sender) => client?,
            _ = stops.recv() => return Ok(()),
        };
        let server = tokio::select! {
            server = Running::start(app, &settings, client) => server?,
            _ = stops.recv() => return Ok(()),
        };
        let stopped = server.serve(&mut stops, &mut events).await;
        server.stop(&mut stops).await;
        stopped
    }
}

/// Tries until it works. Mistakes of the configuration fail at once.
async fn connect(settings: &NatsSettings, events: mpsc::Sender<Event>) -> Result<Client> {
    for attempt in 1.. {
        match nats::connect(settings, events.clone()).await {
            Ok(client) => return Ok(client),
            Err(error @ nats::NatsError::Connect(_)) => {
                let pause = nats::backoff(settings.reconnect_wait, attempt);
                tracing::warn!(%error, ?pause, "waiting for NATS");
                sleep(pause).await;
            }
            Err(error) => return Err(error.into()),
        }
    }
    unreachable!("the attempts do not end")
}

/// A server that is up.
struct Running {
    status: Arc<Status>,
    feed: JoinHandle<()>,
    stop_feed: oneshot::Sender<()>,
    pump: JoinHandle<()>,
    admin: tokio::task::JoinSet<()>,
    drain_limit: Duration,
}

impl Running {
    /// Everything but the announcement.
    async fn start(app: App, settings: &Settings, client: Client) -> Result<Self> {
        let (link, pump) = NatsLink::new(client.clone());
        let pump = tokio::spawn(pump);
        let discovery = Arc::new(Discovery::start(settings.discovery.clone(), &settings.own)?);
        let view = ClusterView {
            server_id: settings.own.id.clone(),
            servers: Arc::new(Discovered(discovery.tables())),
            request_timeout: settings.request_timeout,
        };
        let service = app.build(Arc::new(link.clone()), view);
        service.set_answer_bytes_max(link.payload_bytes_max());
        service.start().await?;
        let subscriber = loop {
            match nats::subscribe(&client, &settings.own.subject()).await {
                Ok(subscriber) => break subscriber,
                // Lost again between connecting and here; async-nats is busy with it.
                Err(error) => tracing::warn!(%error, "subscribing again"),
            }
        };
        let (stop_feed, stop) = oneshot::channel();
        let feed = nats::feed(subscriber, service.clone(), link.clone(), stop);
        let feed = tokio::spawn(feed);
        let status = Arc::new(Status {
            service,
            link,
            client,
            discovery,
            server_type: settings.own.server_type.clone(),
            is_serving: AtomicBool::new(false),
        });
        let admin = admin::serve(&settings.admin, &status).await;
        let drain_limit = settings.request_timeout;
        tracing::info!(id = settings.own.id, r#type = settings.own.server_type, "subscribed");
        Ok(Self { status, feed, stop_feed, pump, admin, drain_limit })
    }

    /// Announces the server and waits for the stop. Fails when NATS was given up, which only happens on request.
    async fn serve(
        &self,
        stops: &mut mpsc::Receiver<()>,
        events: &mut mpsc::Receiver<Event>,
    ) -> Result<()> {
        let registered = async {
            self.status.discovery.register().await;
            self.status.is_serving.store(true, Ordering::Relaxed);
            tracing::info!("registered, serving");
            std::future::pending().await
        };
        tokio::pin!(registered);
        loop {
            tokio::select! {
                () = &mut registered => {}
                _ = stops.recv() => return Ok(()),
                event = events.recv() => match event {
                    Some(Event::Connected) => tracing::info!("connected to NATS"),
                    Some(Event::Closed) | None => {
                        return Err(Error::unknown("the connection to NATS was given up"));
                    }
                    Some(event) => tracing::warn!(%event, "NATS"),
                },
            }
        }
    }

    async fn stop(self, stops: &mut mpsc::Receiver<()>) {
        let Status { service, link, client, discovery, is_serving, .. } = &*self.status;
        is_serving.store(false, Ordering::Relaxed);
        tracing::info!(in_flight = service.in_flight(), "stopping");
        service.before_shutdown().await;
        discovery.leave().await;
        let _ = self.stop_feed.send(());
        let drained = async {
            let _ = self.feed.await;
            service.drain(self.drain_limit).await
        };
        let hurried = async {
            if stops.recv().await.is_none() {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            left = drained => if left > 0 {
                tracing::warn!(left, "requests were still running");
            },
            () = hurried => tracing::warn!(left = service.in_flight(), "stopped without waiting"),
        }
        service.on_shutdown().await;
        link.flush(FLUSH_TIMEOUT).await;
        let _ = client.drain().await;
        self.pump.abort();
        drop(self.admin);
        tracing::info!("stopped");
    }
}

/// The servers that discovery knows.
struct Discovered(watch::Receiver<Arc<ServerTable>>);

impl Servers for Discovered {
    fn by_id(&self, id: &str) -> Option<Arc<Server>> {
        self.0.borrow().by_id(id).cloned()
    }
}

/// One message for each signal that should end the process.
fn signals() -> Result<mpsc::Receiver<()>> {
    let (sender, receiver) = mpsc::channel(4);
    for kind in [SignalKind::terminate(), SignalKind::interrupt(), SignalKind::quit()] {
        let mut signals = signal(kind)?;
        let sender = sender.clone();
        // Ends with the process, which is what it waits for.
        tokio::spawn(async move {
            while signals.recv().await.is_some() && sender.send(()).await.is_ok() {}
        });
    }
    Ok(receiver)
}
