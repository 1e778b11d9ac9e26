//! Control: everything of a gateway that is not in the path of a message.
//!
//! One task follows the reactors' reports, the cluster's servers and the commands of the process's owner, and watches
//! whether the reactors turn (watchdog.rs); others connect to NATS (connector.rs), or carry messages over gRPC
//! (transport.rs). It starts things in the order in which they can serve (bus, discovery, listeners; joining.rs) and
//! stops them in the opposite one. It never sees a player's message.

pub mod cluster;
pub mod connector;
mod credentials;
mod draining;
mod edge;
pub mod hosting;
mod joining;
pub mod plan;
pub mod transport;
pub mod upkeep;
mod watchdog;

use std::sync::Arc;
use std::time::Duration;

use shared::cluster::binding_writer::{BindingInlet, BindingWriter};
use shared::cluster::discovery::{Discovery, DiscoveryError};
use shared::cluster::etcd::EtcdError;
use shared::server::ServerTable;
use tokio::sync::{mpsc, oneshot, watch};

use crate::admin::Readiness;
use crate::directory::Directory;
use crate::mailbox::{Mail, Mailbox};
use crate::meter::Meters;
use crate::reactor::Report;
use draining::end_of;
use hosting::Hosting;
use plan::Plan;
use transport::Transport;
use upkeep::{Reloaded, Upkeep};

/// How long a full mailbox is waited for before it is tried again.
const MAILBOX_RETRY: Duration = Duration::from_millis(10);
/// How often readiness looks whether the own key is in etcd.
const REGISTRATION_LOOK: Duration = Duration::from_millis(500);
/// Time that reactors get beyond their own deadline to end.
const STOP_SLACK: Duration = Duration::from_secs(2);

/// How long a window of the quantiles is; five of them make the ten minutes of Pitaya's summaries.
const QUANTILE_WINDOW: Duration = Duration::from_secs(120);

/// What the process's owner asks for.
pub enum Command {
    /// Move all connections of one reactor to another; answered with their number.
    Move {
        /// From this reactor.
        from: usize,
        /// To this one.
        to: usize,
        /// How many connections moved.
        done: oneshot::Sender<usize>,
    },
    /// Read the configuration again; answered with what has changed.
    Reload {
        /// What became of it.
        done: oneshot::Sender<Reloaded>,
    },
    /// Let nobody in, and end when the players have left; at once unless `pitaya.session.drain.enabled` is set.
    Drain,
    /// End: finish what runs, close, leave the cluster. Ends the wait of a drain as well.
    Stop,
}

/// The control task's view of a running gateway.
pub struct Control {
    plan: Arc<Plan>,
    mailboxes: Arc<[Arc<Mailbox>]>,
    directory: Arc<Directory>,
    reports: mpsc::Receiver<Report>,
    commands: mpsc::Receiver<Command>,
    readiness: Arc<Readiness>,
    meters: Meters,
    upkeep: Upkeep,
    transport: Option<Transport>,
    discovery: Option<Discovery>,
    tables: Option<watch::Receiver<Arc<ServerTable>>>,
    /// The application in this process, once it has started.
    hosting: Option<Hosting>,
    /// Moves that are under way, by the reactor that gives its connections away.
    moves: Vec<(usize, oneshot::Sender<usize>)>,
    /// Reactors that have ended.
    stopped: usize,
    /// Messages for many users do not reach this gateway, so it must not announce that it takes them.
    is_pushes_refused: bool,
    /// Until the writer starts.
    bindings: Option<BindingSource>,
    binding_writer: Option<BindingWriter>,
}

/// What the binding storage is told.
pub struct BindingSource {
    /// Who is bound here.
    pub holders: Arc<Directory>,
    /// Who comes and goes.
    pub inlet: BindingInlet,
}

/// Why a gateway could not start.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The announcement in etcd.
    #[error("service discovery: {0}")]
    Discovery(#[from] DiscoveryError),
    /// The endpoints of the binding storage.
    #[error("binding storage: {0}")]
    Bindings(#[from] EtcdError),
    /// The port that other servers call.
    #[error("gRPC: {0}")]
    Grpc(#[from] std::io::Error),
    /// The application in this process.
    #[error("the application cannot start: {0}")]
    Application(String),
    /// The process was asked to stop before it served.
    #[error("stopped while starting")]
    Stopped,
}

impl Control {
    /// Takes charge of reactors that run.
    pub fn new(
        plan: Arc<Plan>,
        mailboxes: Arc<[Arc<Mailbox>]>,
        reports: mpsc::Receiver<Report>,
        commands: mpsc::Receiver<Command>,
        readiness: Arc<Readiness>,
        meters: Meters,
        upkeep: Upkeep,
    ) -> Self {
        Self {
            plan,
            mailboxes,
            directory: Arc::default(),
            reports,
            commands,
            readiness,
            meters,
            upkeep,
            transport: None,
            discovery: None,
            tables: None,
            hosting: None,
            moves: Vec::new(),
            stopped: 0,
            is_pushes_refused: false,
            bindings: None,
            binding_writer: None,
        }
    }

    /// Gives reactors the connections that they ask for.
    pub fn with_transport(self, transport: Option<Transport>) -> Self {
        Self { transport, ..self }
    }

    /// Knows who is connected, to wait for them.
    pub fn with_directory(self, directory: Arc<Directory>) -> Self {
        Self { directory, ..self }
    }

    /// Keeps the binding storage up to date as well, if the plan has one.
    pub fn with_bindings(self, bindings: Option<BindingSource>) -> Self {
        Self { bindings, ..self }
    }

    /// Follows the gateway until it is told to stop, and watches the reactors meanwhile.
    pub async fn run(mut self) {
        // Beside the loop rather than in it: the loop waits for the full mailbox of a reactor that does not turn.
        let watch = watchdog::watch(self.meters.clone(), self.plan.clock);
        tokio::select! {
            () = self.follow() => {}
            never = watch => match never {},
        }
        self.stop().await;
    }

    async fn follow(&mut self) {
        let mut rotation = tokio::time::interval(QUANTILE_WINDOW);
        let mut look = tokio::time::interval(REGISTRATION_LOOK);
        let mut draining = None;
        loop {
            tokio::select! {
                _ = rotation.tick() => self.meters.rotate(),
                // An etcd that is gone changes no table, so nothing else would tell.
                _ = look.tick() => {
                    self.upkeep.look_at_memory();
                    self.upkeep.look_at_certificate(&self.meters);
                }
                command = self.commands.recv() => match command {
                    Some(Command::Move { from, to, done }) => self.move_connections(from, to, done),
                    Some(Command::Reload { done }) => self.reload(done).await,
                    Some(Command::Drain) if draining.is_some() => {}
                    Some(Command::Drain) => {
                        draining = self.begin_draining().await;
                        if draining.is_none() {
                            break;
                        }
                    }
                    Some(Command::Stop) | None => break,
                },
                () = end_of(&mut draining) => break,
                bans = self.upkeep.bans_changed() => {
                    for mailbox in self.mailboxes.iter() {
                        post(mailbox, Mail::Bans(bans.clone())).await;
                    }
                }
                report = self.reports.recv() => match report {
                    Some(report) => self.handle_report(report),
                    None => break,
                },
                table = next_table(&mut self.tables) => self.post_servers(&table).await,
            }
            if let Some(discovery) = &self.discovery {
                self.readiness.set_registered(discovery.is_registered());
            }
        }
    }

    /// Reads the configuration again and tells the reactors, or tells what is wrong with it.
    async fn reload(&mut self, done: oneshot::Sender<Reloaded>) {
        let outcome = match self.upkeep.reload() {
            Ok((rules, renewal)) => {
                for mailbox in self.mailboxes.iter() {
                    post(mailbox, Mail::Rules(rules.clone())).await;
                }
                Ok(renewal)
            }
            Err(mistakes) => Err(mistakes),
        };
        upkeep::log(&outcome);
        // Whoever asked may have gone.
        let _ = done.send(outcome);
    }

    /// Ends reactors that never served.
    pub async fn abandon(mut self) {
        if let Some(hosting) = self.hosting.take() {
            hosting.stop(Duration::ZERO).await;
        }
        for mailbox in self.mailboxes.iter() {
            post(mailbox, Mail::Stop { grace_ms: 0 }).await;
        }
        while self.stopped < self.mailboxes.len() {
            let Some(report) = self.reports.recv().await else { break };
            self.handle_report(report);
        }
    }

    fn move_connections(&mut self, from: usize, to: usize, done: oneshot::Sender<usize>) {
        let Some(mailbox) = self.mailboxes.get(from) else { return };
        if mailbox.send(Mail::MoveTo(to)).is_ok() {
            self.moves.push((from, done));
        }
    }

    fn handle_report(&mut self, report: Report) {
        match report {
            Report::Opened { reactor, chosen } => {
                tracing::info!(reactor, driver = %chosen, "reactor runs");
            }
            Report::BusWanted { reactor } => {
                if let Some(transport) = &mut self.transport {
                    transport.connect(reactor, &self.mailboxes);
                }
            }
            Report::BusReady { reactor, address } => {
                tracing::info!(reactor, address, "the bus is connected");
                self.readiness.set_bus(reactor, true);
            }
            Report::BusServers { addresses } => {
                if let Some(transport) = &self.transport {
                    transport.learn(&addresses);
                }
            }
            Report::BusLost { reactor } => self.readiness.set_bus(reactor, false),
            Report::PushesRefused => {
                // Before the announcement this leads workers back to one push a user; later only an operator can help.
                if !std::mem::replace(&mut self.is_pushes_refused, true) {
                    let subject = self.plan.rules.pushes_subject();
                    tracing::error!(subject, "NATS permissions lack this subscription");
                }
            }
            Report::Unlistened { .. } => {}
            Report::Moved { reactor, connections } => {
                let asked = self.moves.iter().position(|(from, _)| *from == reactor);
                if let Some((_, done)) = asked.map(|index| self.moves.remove(index)) {
                    // Whoever asked may have gone.
                    let _ = done.send(connections);
                }
            }
            Report::Stopped { reactor } => {
                tracing::debug!(reactor, "reactor ended");
                self.stopped += 1;
            }
        }
    }

    async fn post_servers(&self, table: &Arc<ServerTable>) {
        for (server_type, servers) in table.types() {
            tracing::debug!(
                server_type,
                count = servers.len(),
                revision = table.revision(),
                "servers"
            );
        }
        self.meters.set_servers(table);
        for mailbox in self.mailboxes.iter() {
            post(mailbox, Mail::Servers(table.clone())).await;
        }
    }

    /// Listeners close first; the cluster is left before anything is torn down; requests in flight are finished.
    async fn stop(mut self) {
        tracing::info!("stopping: no new connections; requests in flight are finished");
        self.unlisten().await;
        if let Some(discovery) = &self.discovery {
            discovery.leave().await;
        }
        if let Some(hosting) = &self.hosting {
            hosting.begin_stop().await;
        }
        let grace_ms = self.plan.rules.request_timeout_ms;
        for mailbox in self.mailboxes.iter() {
            post(mailbox, Mail::Stop { grace_ms }).await;
        }
        let limit = Duration::from_millis(grace_ms + self.plan.rules.write_timeout_ms) + STOP_SLACK;
        let ended = async {
            while self.stopped < self.mailboxes.len() {
                match self.reports.recv().await {
                    Some(report) => self.handle_report(report),
                    None => break,
                }
            }
        };
        if tokio::time::timeout(limit, ended).await.is_err() {
            tracing::warn!("some reactors did not end in time");
        }
        if let Some(hosting) = self.hosting.take() {
            hosting.stop(Duration::from_millis(grace_ms)).await;
        }
        if let Some(transport) = self.transport.take() {
            transport.stop().await;
        }
        if let Some(discovery) = self.discovery.take() {
            discovery.shutdown().await;
        }
        if let Some(writer) = self.binding_writer.take() {
            writer.shutdown().await;
        }
        tracing::info!("stopped");
    }
}

/// Posts a letter; a full mailbox is waited for.
pub async fn post(mailbox: &Mailbox, mut mail: Mail) {
    while let Err(full) = mailbox.send(mail) {
        mail = full.0;
        tokio::time::sleep(MAILBOX_RETRY).await;
    }
}

async fn next_table(tables: &mut Option<watch::Receiver<Arc<ServerTable>>>) -> Arc<ServerTable> {
    if let Some(tables) = tables
        && tables.changed().await.is_ok()
    {
        return tables.borrow_and_update().clone();
    }
    std::future::pending().await
}
