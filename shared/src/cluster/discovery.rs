//! Service discovery: the table of the cluster's servers, kept up to date, and the own server's place in it.
//!
//! Two tasks on the runtime that calls [`Discovery::start`]: one follows the servers (see `follower`), the other keeps
//! the own key (see `registration`). Neither ends because
//! etcd is away: the last table stays, and both try again for ever. [`Discovery::shutdown`] waits for them.
//!
//! Invariant: a table is published for each change, in etcd's order, and none is ever emptied because etcd is away.

use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;
use tokio::sync::{broadcast, watch};
use tokio::task::JoinHandle;
use tokio::time::sleep;

use super::etcd::{Client, EtcdError, StoreOptions};
use super::follower::{Follower, Link, Store};
use super::registration::{OwnKey, Phase, Registration, Target};
use super::retry::Retry;
use super::table_builder::TableBuilder;
use crate::config::Config;
use crate::server::{METADATA_LEAVING, Server, ServerError, ServerTable};

pub use super::table_builder::{Departure, ServerEvent};

/// Events that a slow listener may lag behind before it misses some.
const EVENTS_MAX: usize = 1024;

/// Limit of one call to etcd.
const CALL_TIMEOUT: Duration = Duration::from_secs(5);

/// Shortest interval and limit, whatever is configured: zero would be a busy loop, or a call that never succeeds.
const INTERVAL_MIN: Duration = Duration::from_millis(100);

/// Settings of service discovery; the defaults are those of Pitaya where Pitaya has the setting.
#[derive(Clone, Debug)]
pub struct DiscoveryOptions {
    /// Where the servers are listed. One call takes as long as one connect at most, and no longer than 5 s.
    pub store: StoreOptions,
    /// How long the server stays visible after it died; whole seconds.
    pub lease_ttl: Duration,
    /// Pause between two complete listings.
    pub sync_interval: Duration,
    /// Limit of giving the lease back when leaving.
    pub revoke_timeout: Duration,
    /// Pause after that, in which other servers notice.
    pub shutdown_delay: Duration,
    /// Server types to leave out of the table.
    pub blacklist: Vec<String>,
    /// Longest pause between two tries while etcd is away.
    pub retry_interval_max: Duration,
    /// After etcd has lost its data: how long servers that are not in it again stay in the table. Go servers need up to
    /// a third of their lease and 10 s more.
    pub store_lost_grace: Duration,
}

impl Default for DiscoveryOptions {
    fn default() -> Self {
        Self {
            store: StoreOptions::default(),
            lease_ttl: Duration::from_secs(60),
            sync_interval: Duration::from_secs(120),
            revoke_timeout: Duration::from_secs(5),
            shutdown_delay: Duration::from_millis(300),
            blacklist: Vec::new(),
            retry_interval_max: Duration::from_secs(2),
            store_lost_grace: Duration::from_secs(60),
        }
    }
}

impl DiscoveryOptions {
    /// What the configuration says.
    pub fn new(config: &Config) -> Self {
        let key = |name: &str| format!("pitaya.cluster.sd.etcd.{name}");
        Self {
            store: StoreOptions::new(config, "pitaya.cluster.sd.etcd"),
            lease_ttl: config.duration(&key("heartbeat.ttl")),
            sync_interval: config.duration(&key("syncservers.interval")),
            revoke_timeout: config.duration(&key("revoke.timeout")),
            shutdown_delay: config.duration(&key("shutdown.delay")),
            blacklist: config.list(&key("servertypesblacklist")),
            ..Self::default()
        }
    }
}

/// Why service discovery cannot start: mistakes of the configuration only, never the state of etcd.
#[derive(Debug, Error)]
pub enum DiscoveryError {
    /// The endpoints.
    #[error(transparent)]
    Endpoint(#[from] EtcdError),
    /// The own id or type.
    #[error("the own server cannot be announced: {0}")]
    OwnServer(#[from] ServerError),
}

/// A running service discovery. Dropped without [`Discovery::shutdown`] it ends like a crashed process: the own key
/// stays until the lease expires.
pub struct Discovery {
    tables: watch::Receiver<Arc<ServerTable>>,
    events: broadcast::Sender<ServerEvent>,
    link: watch::Receiver<Link>,
    phase: watch::Receiver<Phase>,
    target: watch::Sender<Target>,
    shutdown_delay: Duration,
    stop: watch::Sender<()>,
    follower: JoinHandle<()>,
    registration: JoinHandle<()>,
}

impl Discovery {
    /// Starts following the servers. `own` is announced only after [`Discovery::register`].
    ///
    /// # Errors
    /// [`DiscoveryError`] for mistakes of the configuration.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn start(options: DiscoveryOptions, own: &Server) -> Result<Self, DiscoveryError> {
        own.check()?;
        let mut store = options.store;
        store.dial_timeout = store.dial_timeout.max(INTERVAL_MIN);
        let client = Client::new(&store, store.dial_timeout.min(CALL_TIMEOUT))?;
        let prefix = format!("{}servers/", store.prefix);
        let own_key_path = format!("{prefix}{}/{}", own.server_type, own.id).into_bytes();
        let (table_sender, tables) = watch::channel(Arc::new(ServerTable::default()));
        let (link_sender, link) = watch::channel(Link::default());
        let (phase_sender, phase) = watch::channel(Phase::Unregistered);
        let (target, target_receiver) = watch::channel(Target::Hidden);
        let (stop, stop_receiver) = watch::channel(());
        let events = broadcast::Sender::new(EVENTS_MAX);
        let own_key = Arc::new(OwnKey::default());
        let retry_interval_max = options.retry_interval_max;

        let registration = Registration {
            client: client.clone(),
            key: own_key_path.clone(),
            value: own.encode(),
            value_leaving: {
                let mut own = own.clone();
                own.metadata.insert(METADATA_LEAVING.to_owned(), "true".to_owned());
                own.encode()
            },
            lease_ttl: options.lease_ttl,
            revoke_timeout: options.revoke_timeout,
            retry: Retry::new("registration in etcd", retry_interval_max),
            own_key: Arc::clone(&own_key),
            phase: phase_sender,
            lease: None,
        };
        let follower = Follower {
            client,
            builder: TableBuilder::new(prefix.clone(), own.id.clone(), options.blacklist),
            prefix: prefix.into_bytes(),
            own_key_path,
            sync_interval: options.sync_interval.max(INTERVAL_MIN),
            store: Store::new(options.store_lost_grace),
            retry: Retry::new("following the servers in etcd", retry_interval_max),
            own_key,
            tables: table_sender,
            events: events.clone(),
            link: link_sender,
        };
        Ok(Self {
            tables,
            events,
            link,
            phase,
            target,
            shutdown_delay: options.shutdown_delay,
            stop,
            follower: tokio::spawn(follower.run(stop_receiver)),
            registration: tokio::spawn(registration.run(target_receiver)),
        })
    }

    /// The table, now and whenever it changes. Empty before the first sync.
    pub fn tables(&self) -> watch::Receiver<Arc<ServerTable>> {
        self.tables.clone()
    }

    /// Servers that come and go from now on. A listener that falls 1024 events behind is told that it missed some, and
    /// should look at the table.
    pub fn events(&self) -> broadcast::Receiver<ServerEvent> {
        self.events.subscribe()
    }

    /// Whether the watch is open, so that changes are seen at once.
    pub fn is_connected(&self) -> bool {
        self.link.borrow().is_connected
    }

    /// Whether the own key was in etcd when last looked at, and its lease cannot have expired since.
    pub fn is_registered(&self) -> bool {
        *self.phase.borrow() == Phase::Registered
    }

    /// Waits for the first complete table; for ever if etcd never answers.
    pub async fn wait_synced(&self) {
        // The sender ends with the task, which only shutdown ends, and that takes `self`.
        let _ = self.link.clone().wait_for(|link| link.is_synced).await;
    }

    /// Announces the own server; call it when it can serve. Waits for the first sync, so that nobody calls a server
    /// that does not know its own targets, and then until the key is written. From then on the key is kept, and written
    /// again whenever it is lost. Returns at once after [`Discovery::leave`].
    pub async fn register(&self) {
        self.wait_synced().await;
        self.target.send_if_modified(|target| {
            let is_hidden = *target == Target::Hidden;
            if is_hidden {
                *target = Target::Registered;
            }
            is_hidden
        });
        let _ = self.phase.clone().wait_for(|phase| *phase != Phase::Unregistered).await;
    }

    /// Takes the own server out of the cluster and waits until others have noticed: at most the limit of the revoke and
    /// the delay after it. The table is still kept up to date. Calling it again does nothing.
    pub async fn leave(&self) {
        let was_registered = self.is_registered();
        self.withdraw().await;
        if was_registered {
            sleep(self.shutdown_delay).await;
        }
    }

    /// Leaves, without waiting for others to notice, and ends both tasks.
    pub async fn shutdown(self) {
        self.withdraw().await;
        drop(self.stop);
        for (name, task) in [("follower", self.follower), ("registration", self.registration)] {
            if let Err(error) = task.await {
                tracing::error!(%error, name, "a task of service discovery failed");
            }
        }
    }

    async fn withdraw(&self) {
        self.target.send_replace(Target::Left);
        let _ = self.phase.clone().wait_for(|phase| *phase == Phase::Left).await;
    }
}
