//! A running gateway: its reactor threads, its control thread, and the handle that ends it.
//!
//! Start-up binds the ports first, so that a taken one is known at once, and serves them last, when everything behind
//! them is ready.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::mpsc as std_mpsc;
use std::thread::JoinHandle;

use shared::metrics::MetricError;
use tokio::sync::{mpsc, oneshot};

use crate::admin::{Admin, AdminError, AdminSources, Readiness};
use crate::bus::BusKind;
use crate::bus::local::LocalBus;
use crate::control::plan::Plan;
use crate::control::{Command, Control, ControlError, LocalParts, post};
use crate::directory::Directory;
use crate::driver::DriverError;
use crate::listener::{self, Listener};
use crate::mailbox::{Mail, Mailbox};
use crate::meter::Meters;
use crate::reactor::{Opened, Report, Setup};
use crate::wire::Protocol;

/// Reports that wait for the control thread at most.
const REPORTS_MAX: usize = 4_096;
const COMMANDS_MAX: usize = 16;

/// Where a gateway listens.
#[derive(Clone, Debug, Default)]
pub struct Addresses {
    /// Pitaya packets on TCP.
    pub tcp: Vec<SocketAddr>,
    /// Pitaya packets in WebSocket messages.
    pub ws: Vec<SocketAddr>,
    /// Health and metrics.
    pub admin: Vec<SocketAddr>,
}

/// A gateway that serves. Dropping it stops it without waiting.
pub struct Gateway {
    addresses: Addresses,
    commands: mpsc::Sender<Command>,
    control: Option<JoinHandle<()>>,
    reactors: Vec<JoinHandle<()>>,
}

/// Why a gateway could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A port is taken, or may not be used.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// What the kernel said.
        source: io::Error,
    },
    /// No driver.
    #[error("reactor {reactor}: {source}")]
    Driver {
        /// Which reactor.
        reactor: usize,
        /// What the kernel said.
        source: DriverError,
    },
    /// A label or metric of the configuration.
    #[error(transparent)]
    Metrics(#[from] MetricError),
    /// The port for administrators.
    #[error(transparent)]
    Admin(#[from] AdminError),
    /// Cluster or application.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// A thread or the runtime.
    #[error("cannot start a thread: {0}")]
    Thread(#[from] io::Error),
    /// The control thread ended while starting.
    #[error("the gateway ended while it was starting")]
    Ended,
}

impl Gateway {
    /// Starts a gateway and waits until it serves.
    ///
    /// Errors: what made it impossible. A NATS or etcd that is away is waited for.
    pub fn start(plan: Plan, commands: Commands) -> Result<Self, StartError> {
        Starting::begin(plan)?.finish(commands)
    }

    /// Where it listens.
    pub fn addresses(&self) -> &Addresses {
        &self.addresses
    }

    /// Moves all connections of one reactor to another while they are in use; returns how many. 0 when there is no
    /// such reactor.
    pub fn move_connections(&self, from: usize, to: usize) -> usize {
        let (done, moved) = oneshot::channel();
        if self.commands.blocking_send(Command::Move { from, to, done }).is_err() {
            return 0;
        }
        moved.blocking_recv().unwrap_or(0)
    }

    /// Finishes what runs, closes all connections and leaves the cluster. Takes the request timeout and the write
    /// deadline at most, and a little more.
    pub fn stop(self) {
        // A control thread that has ended needs no command.
        let _ = self.commands.blocking_send(Command::Stop);
        self.wait();
    }

    /// Waits until the gateway has ended, by a command.
    pub fn wait(mut self) {
        if let Some(control) = self.control.take()
            && control.join().is_err()
        {
            tracing::error!("the control thread panicked");
        }
        for reactor in self.reactors.drain(..) {
            if reactor.join().is_err() {
                tracing::error!("a reactor panicked");
            }
        }
    }
}

/// How a gateway is told what to do; made first, so that a signal can end one that is still starting.
pub struct Commands {
    sender: mpsc::Sender<Command>,
    receiver: mpsc::Receiver<Command>,
}

impl Commands {
    /// A channel that nobody uses yet.
    pub fn new() -> Self {
        let (sender, receiver) = mpsc::channel(COMMANDS_MAX);
        Self { sender, receiver }
    }

    /// Where commands are sent.
    pub fn sender(&self) -> mpsc::Sender<Command> {
        self.sender.clone()
    }
}

impl Default for Commands {
    fn default() -> Self {
        Self::new()
    }
}

/// Ports are bound, reactors run; the control thread is still to bring the cluster.
struct Starting {
    plan: Arc<Plan>,
    application: Option<worker::App>,
    local: Option<Arc<LocalBus>>,
    listeners: Vec<Vec<Listener>>,
    addresses: Addresses,
    mailboxes: Arc<[Arc<Mailbox>]>,
    reports: mpsc::Receiver<Report>,
    meters: Meters,
    reactors: Vec<JoinHandle<()>>,
}

impl Starting {
    fn begin(mut plan: Plan) -> Result<Self, StartError> {
        let application = plan.application.take();
        let plan = Arc::new(plan);
        let mut listeners: Vec<Vec<Listener>> = (0..plan.reactors).map(|_| Vec::new()).collect();
        let tcp = bind_all(&plan.tcp, Protocol::Tcp, &mut listeners)?;
        let ws = bind_all(&plan.ws, Protocol::WebSocket, &mut listeners)?;
        let directory = Arc::new(Directory::default());
        let local = application.is_some().then(|| {
            let rules = &plan.rules;
            Arc::new(LocalBus::new(directory.clone(), &rules.server_type, &rules.server_id))
        });
        let bus = match (&local, &plan.cluster) {
            (Some(local), _) => BusKind::Local(local.clone()),
            (None, Some(cluster)) => BusKind::Nats(cluster.tls.clone()),
            (None, None) => return Err(ControlError::Application("there is none".into()).into()),
        };
        let (send_report, reports) = mpsc::channel(REPORTS_MAX);
        let (meters, cores) = Meters::new(plan.reactors, &plan.metrics)?;
        let setups = cores.into_iter().enumerate().map(|(reactor, meter)| Setup {
            reactor,
            rules: plan.rules.clone(),
            directory: directory.clone(),
            clock: plan.clock,
            bus: bus.clone(),
            driver: plan.driver,
            reports: send_report.clone(),
            meter,
        });
        let (reactors, mailboxes) = spawn_reactors(setups.collect(), plan.is_pinned)?;
        let addresses = Addresses { tcp, ws, admin: Vec::new() };
        Ok(Self {
            plan,
            application,
            local,
            listeners,
            addresses,
            mailboxes,
            reports,
            meters,
            reactors,
        })
    }

    fn finish(self, commands: Commands) -> Result<Gateway, StartError> {
        let Commands { sender: commands, receiver: receive_commands } = commands;
        let (started, when_started) = std_mpsc::channel();
        let Self {
            plan,
            application,
            local,
            listeners,
            mut addresses,
            mailboxes,
            reports,
            meters,
            reactors,
        } = self;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(if local.is_some() { plan.reactors } else { 1 })
            .thread_name("control")
            .enable_all()
            .build()?;
        let readiness = Arc::new(match &local {
            Some(_) => Readiness::standalone(),
            None => Readiness::cluster(plan.reactors),
        });
        let sources = AdminSources {
            metrics: Arc::new({
                let meters = meters.clone();
                move || meters.render()
            }),
            readiness: readiness.clone(),
        };
        let parts =
            local.zip(application).map(|(bus, application)| LocalParts { bus, application });
        let control = std::thread::Builder::new().name("control".into()).spawn(move || {
            runtime.block_on(async move {
                let addresses = plan.admin.clone();
                let mut control = Control::new(
                    plan,
                    mailboxes.clone(),
                    reports,
                    receive_commands,
                    readiness.clone(),
                    meters,
                );
                let outcome = async {
                    let admin = Admin::start(&addresses, sources).await?;
                    control.join(parts).await?;
                    Ok::<_, StartError>(admin)
                };
                match outcome.await {
                    Ok(admin) => {
                        for (mailbox, listeners) in mailboxes.iter().zip(listeners) {
                            post(mailbox, Mail::Listen(listeners)).await;
                        }
                        readiness.set_listeners(true);
                        if started.send(Ok(admin.addresses().to_vec())).is_ok() {
                            control.run().await;
                        }
                        admin.shutdown().await;
                    }
                    Err(error) => {
                        // Whoever starts us waits for this answer.
                        let _ = started.send(Err(error));
                        control.abandon().await;
                    }
                }
            });
        })?;
        match when_started.recv() {
            Ok(Ok(admin)) => {
                addresses.admin = admin;
                Ok(Gateway { addresses, commands, control: Some(control), reactors })
            }
            Ok(Err(error)) => Err(error),
            Err(_) => Err(StartError::Ended),
        }
    }
}

fn bind_all(
    addresses: &[SocketAddr],
    protocol: Protocol,
    listeners: &mut [Vec<Listener>],
) -> Result<Vec<SocketAddr>, StartError> {
    let mut bound = Vec::new();
    for address in addresses {
        let (actual, sockets) = listener::bind(*address, listeners.len())
            .map_err(|source| StartError::Listen { address: *address, source })?;
        bound.push(actual);
        for (socket, listeners) in sockets.into_iter().zip(listeners.iter_mut()) {
            listeners.push(Listener { socket, protocol });
        }
    }
    Ok(bound)
}

type Running = (Vec<JoinHandle<()>>, Arc<[Arc<Mailbox>]>);

/// Starts the reactor threads. Each opens its driver and reports its mailbox; when all have, each gets all mailboxes.
fn spawn_reactors(setups: Vec<Setup>, is_pinned: bool) -> Result<Running, StartError> {
    let mut threads = Vec::new();
    let mut mailboxes = Vec::new();
    let mut starters: Vec<std_mpsc::Sender<Arc<[Arc<Mailbox>]>>> = Vec::new();
    for setup in setups {
        let reactor = setup.reactor;
        let (opened, when_opened) = std_mpsc::channel();
        let (start, when_all_opened) = std_mpsc::channel();
        let thread =
            std::thread::Builder::new().name(format!("reactor-{reactor}")).spawn(move || {
                if is_pinned {
                    pin(reactor);
                }
                match Opened::open(setup) {
                    Ok(reactor) => {
                        let is_wanted = opened.send(Ok(reactor.mailbox())).is_ok();
                        if let (true, Ok(mailboxes)) = (is_wanted, when_all_opened.recv()) {
                            reactor.run(mailboxes);
                        }
                    }
                    Err(error) => {
                        // Whoever started us waits for this answer.
                        let _ = opened.send(Err(error));
                    }
                }
            })?;
        threads.push(thread);
        starters.push(start);
        match when_opened.recv() {
            Ok(Ok(mailbox)) => mailboxes.push(mailbox),
            Ok(Err(source)) => return Err(StartError::Driver { reactor, source }),
            Err(_) => return Err(StartError::Ended),
        }
    }
    let mailboxes: Arc<[Arc<Mailbox>]> = mailboxes.into();
    for start in starters {
        start.send(mailboxes.clone()).map_err(|_| StartError::Ended)?;
    }
    Ok((threads, mailboxes))
}

/// Keeps a reactor on its core. A kernel that refuses (a container with fewer cores) is not an error.
fn pin(reactor: usize) {
    #[cfg(target_os = "linux")]
    {
        use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
        let Ok(allowed) = sched_getaffinity(None) else { return };
        let cores: Vec<usize> = (0..CpuSet::MAX_CPU).filter(|core| allowed.is_set(*core)).collect();
        let Some(core) = cores.get(reactor % cores.len().max(1)) else { return };
        let mut set = CpuSet::new();
        set.set(*core);
        if let Err(error) = sched_setaffinity(None, &set) {
            tracing::warn!(reactor, core, %error, "cannot pin the reactor");
        }
    }
    #[cfg(not(target_os = "linux"))]
    let _ = reactor;
}
