//! The life of a server in a cluster, from its configuration to its end.
//!
//! Start: connect to NATS, follow the cluster, run the start hooks, subscribe, and only then announce the server, so
//! that nobody calls a server that is deaf. Stop, the other way round: leave the cluster, give others time to notice,
//! tell the modules, unsubscribe, finish what was taken, end timers, modules and components, flush, close. Losing NATS or etcd in between ends nothing, and when a NATS
//! server announces its end, the worker moves to another one first, without losing or doubling a request.
//!
//! Tasks, all owned here: one feed for each connection, the outbox's pump, the pages of [`crate::admin`].

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_nats::Event;
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, OptionFuture};
use shared::cluster::discovery::Discovery;
use shared::config::{Binary, Config};
use shared::server::ServerTable;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::timeout;

use crate::admin::{self, Status};
use crate::app::{App, ClusterView};
use crate::error::{Error, Result};
use crate::grpc;
use crate::nats::{self, Ending, Inlet, NatsLink};
use crate::servers::Servers;
use crate::service::Service;
use crate::settings::Settings;

/// For the last words to a NATS server.
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
        // Boxed once here, so that the futures of callers stay small.
        Box::pin(self.run_until(config, signals()?)).await
    }

    /// The same until a message or the end of `stops`. A second message ends the wait for what still runs.
    pub async fn run_until(self, config: &Config, mut stops: mpsc::Receiver<()>) -> Result<()> {
        let settings = Settings::new(config, self.server_type(), self.limits)?;
        let app = self.configured(config);
        let mut app = app.with_server_type(&settings.own.server_type).limits(settings.limits);
        if let Some(groups) = &settings.groups {
            app = app.groups(groups.clone());
        }
        let app = app.checked()?;
        if let Some(grpc) = &settings.grpc {
            return Box::pin(grpc::run(app, &settings, grpc, &mut stops)).await;
        }
        let connection = tokio::select! {
            connection = open(&settings) => connection?,
            _ = stops.recv() => return Ok(()),
        };
        let mut server = tokio::select! {
            server = Box::pin(Running::start(app, &settings, connection)) => server?,
            _ = stops.recv() => return Ok(()),
        };
        let stopped = server.serve(&settings, &mut stops).await;
        server.stop(&mut stops).await;
        stopped
    }
}

/// A connection that takes the server's requests.
struct Connection {
    inlet: Inlet,
    events: mpsc::Receiver<Event>,
}

/// Connects and subscribes; tries until it works. Mistakes of the configuration fail at once.
async fn open(settings: &Settings) -> Result<Connection> {
    let (sender, events) = mpsc::channel(64);
    let client = nats::connect_patiently(&settings.nats, sender).await?;
    let subject = settings.own.subject();
    let subscriber = loop {
        match nats::subscribe(&client, &subject).await {
            Ok(subscriber) => break subscriber,
            // Lost again since it was made; async-nats is busy with it.
            Err(error) => tracing::warn!(%error, "subscribing again"),
        }
    };
    Ok(Connection { inlet: Inlet { client, subject, subscriber }, events })
}

/// The tasks that take requests: one for the connection, and one for each that is about to be closed by its server.
struct Feeds {
    tasks: JoinSet<()>,
    stop: watch::Sender<bool>,
    /// Of the newest task: hands it the events of its connection when another one takes over.
    retire: Option<oneshot::Sender<mpsc::Receiver<Event>>>,
}

impl Feeds {
    fn new() -> Self {
        Self { tasks: JoinSet::new(), stop: watch::Sender::new(false), retire: None }
    }

    fn add(&mut self, inlet: Inlet, service: &Service, link: &NatsLink) {
        let (sender, retire) = oneshot::channel();
        let (service, link) = (service.clone(), link.clone());
        let ending = Ending { stop: self.stop.subscribe(), retire };
        self.tasks.spawn(nats::feed(inlet, service, link, ending));
        self.retire = Some(sender);
        while self.tasks.try_join_next().is_some() {}
    }

    /// Takes what has arrived, and ends all.
    async fn stop(mut self) {
        self.stop.send_replace(true);
        let all = async { while self.tasks.join_next().await.is_some() {} };
        let _ = timeout(FLUSH_TIMEOUT, all).await;
    }
}

/// A server that is up.
struct Running {
    status: Arc<Status>,
    link: NatsLink,
    feeds: Feeds,
    events: mpsc::Receiver<Event>,
    pump: JoinHandle<()>,
    admin: JoinSet<()>,
    listeners: JoinSet<()>,
    drain_limit: Duration,
}

impl Running {
    /// Everything but the announcement. Requests that came before the start hooks ended wait in the subscription.
    async fn start(mut app: App, settings: &Settings, connection: Connection) -> Result<Self> {
        let Connection { inlet, events } = connection;
        let (link, pump) = NatsLink::new(inlet.client.clone());
        let pump = tokio::spawn(pump);
        let discovery = Arc::new(Discovery::start(settings.discovery.clone(), &settings.own)?);
        let servers = Arc::new(Discovered(discovery.tables()));
        let view = ClusterView {
            request_timeout: settings.request_timeout,
            is_loop_back_allowed: settings.is_loop_back_allowed,
            routing: settings.routing.clone(),
            exporter: Some(settings.exporter.clone()),
            ..ClusterView::new(&settings.own.id, servers)
        };
        let (job_handlers, jobs) = (std::mem::take(&mut app.job_handlers), app.jobs.clone());
        let service = app.build(Arc::new(link.clone()), view)?;
        service.set_answer_bytes_max(link.payload_bytes_max());
        service.record_times(settings.exporter.clone())?;
        service.start().await?;
        let listeners = service.listen(&discovery);
        service.start_jobs(job_handlers, &jobs, Some(settings.exporter.clone()))?;
        let status = Arc::new(Status {
            service,
            link: Some(link.clone()),
            discovery,
            exporter: settings.exporter.clone(),
            is_rendering: Mutex::new(()),
            is_serving: AtomicBool::new(false),
        });
        let mut feeds = Feeds::new();
        feeds.add(inlet, &status.service, &link);
        let admin = admin::serve(&settings.admin, &status).await;
        let drain_limit = settings.request_timeout;
        tracing::info!(id = settings.own.id, r#type = settings.own.server_type, "subscribed");
        Ok(Self { status, link, feeds, events, pump, admin, listeners, drain_limit })
    }

    /// Announces the server and waits for the stop. Fails when NATS was given up, which only happens on request.
    async fn serve(&mut self, settings: &Settings, stops: &mut mpsc::Receiver<()>) -> Result<()> {
        let status = Arc::clone(&self.status);
        let registered = async {
            status.discovery.register().await;
            status.is_serving.store(true, Ordering::Relaxed);
            tracing::info!("registered, serving");
            std::future::pending::<()>().await;
        };
        tokio::pin!(registered);
        // Another connection in the making, because the server of this one is about to go.
        let mut elsewhere: OptionFuture<BoxFuture<'_, Result<Connection>>> = None.into();
        loop {
            tokio::select! {
                () = &mut registered => {}
                _ = stops.recv() => return Ok(()),
                Some(connection) = &mut elsewhere => {
                    elsewhere = None.into();
                    self.move_to(connection?).await;
                }
                event = self.events.recv() => match event {
                    Some(Event::LameDuckMode) => {
                        tracing::info!("the NATS server is about to go, connecting to another one");
                        elsewhere = Some(open(settings).boxed()).into();
                    }
                    Some(Event::Connected) => {
                        tracing::info!("connected to NATS");
                        elsewhere = None.into();
                    }
                    Some(Event::Closed) | None => {
                        return Err(Error::unknown("the connection to NATS was given up"));
                    }
                    Some(event) => tracing::warn!(%event, "NATS"),
                },
            }
        }
    }

    /// Goes on over another connection. For a moment both take requests; each request arrives once, because they are
    /// one queue group.
    async fn move_to(&mut self, connection: Connection) {
        let retire = self.feeds.retire.take();
        let client = connection.inlet.client.clone();
        self.feeds.add(connection.inlet, &self.status.service, &self.link);
        self.link.replace(client, FLUSH_TIMEOUT).await;
        let events = std::mem::replace(&mut self.events, connection.events);
        if let Some(retire) = retire {
            let _ = retire.send(events);
        }
        tracing::info!("moved to another NATS server");
    }

    async fn stop(self, stops: &mut mpsc::Receiver<()>) {
        let Status { service, discovery, is_serving, .. } = &*self.status;
        let link = &self.link;
        is_serving.store(false, Ordering::Relaxed);
        tracing::info!(in_flight = service.in_flight(), "stopping");
        discovery.leave().await;
        service.before_shutdown().await;
        self.feeds.stop().await;
        finish(service, self.drain_limit, stops).await;
        drop(self.listeners);
        service.on_shutdown().await;
        if link.refused() > 0 {
            tracing::warn!(
                messages = link.refused(),
                "answers and pushes were given up in this life"
            );
        }
        link.flush(FLUSH_TIMEOUT).await;
        // While NATS is away nobody takes this either.
        let _ = timeout(FLUSH_TIMEOUT, link.client().drain()).await;
        self.pump.abort();
        drop(self.admin);
        tracing::info!("stopped");
    }
}

/// Waits for what runs, requests and jobs, at most `limit`; a message of `stops` ends the wait.
pub(crate) async fn finish(service: &Service, limit: Duration, stops: &mut mpsc::Receiver<()>) {
    let hurried = async {
        if stops.recv().await.is_none() {
            std::future::pending::<()>().await;
        }
    };
    tokio::select! {
        left = service.drain(limit) => if left > 0 {
            tracing::warn!(left, "requests were still running");
        },
        () = hurried => tracing::warn!(left = service.in_flight(), "stopped without waiting"),
    }
}

/// The servers that discovery knows.
pub(crate) struct Discovered(pub(crate) watch::Receiver<Arc<ServerTable>>);

impl Servers for Discovered {
    fn table(&self) -> ServerTable {
        ServerTable::clone(&self.0.borrow())
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
