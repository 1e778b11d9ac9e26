//! Starting a gateway: ports are bound first, so that a taken one is known at once, and served last, when everything
//! behind them is ready.

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::mpsc as std_mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

use shared::cluster::binding_writer::BindingNotes;
use shared::websocket::upgrade::OriginPolicy;
use tokio::sync::mpsc;

use crate::admin::{Actions, Admin, AdminSources, Readiness};
use crate::bus::BusParts;
use crate::bus::local::LocalBus;
use crate::control::hosting::LocalParts;
use crate::control::plan::Plan;
use crate::control::transport::Transport;
use crate::control::upkeep::Upkeep;
use crate::control::{BindingSource, Control, ControlError, post};
use crate::directory::Directory;
use crate::gateway::{Addresses, Commands, Gateway, StartError};
use crate::limits::Limits;
use crate::listener::{self, Listener, Security};
use crate::mailbox::{Mail, Mailbox};
use crate::meter::Meters;
use crate::reactor::{Opened, Report, Setup};
use crate::rules::Rules;
use crate::wire::Protocol;

/// Reports that wait for the control thread at most.
const REPORTS_MAX: usize = 4_096;

/// Ports are bound, reactors run; the control thread is still to bring the cluster.
pub(crate) struct Starting {
    plan: Arc<Plan>,
    application: Option<worker::App>,
    local: Option<Arc<LocalBus>>,
    listeners: Vec<Vec<Listener>>,
    /// Where other servers call this one, in a cluster over gRPC.
    grpc: Option<TcpListener>,
    addresses: Addresses,
    mailboxes: Arc<[Arc<Mailbox>]>,
    reports: mpsc::Receiver<Report>,
    meters: Meters,
    limits: Arc<Limits>,
    reactors: Vec<JoinHandle<()>>,
    bindings: Option<BindingSource>,
    directory: Arc<Directory>,
}

impl Starting {
    /// Binds the ports and starts the reactors.
    pub(crate) fn begin(plan: Plan) -> Result<Self, StartError> {
        let application = plan.take_application();
        let plan = Arc::new(plan);
        let mut listeners: Vec<Vec<Listener>> = (0..plan.reactors).map(|_| Vec::new()).collect();
        let addresses = bind_all(&plan, &mut listeners)?;
        let grpc = Transport::bind(&plan)?;
        let is_browsed = !addresses.ws.is_empty() || !addresses.wss.is_empty();
        if is_browsed && plan.rules.wire.upgrade.origins == OriginPolicy::Any {
            tracing::info!("pages of every origin may connect; pitaya.gateway.origins limits that");
        }
        let has_bindings = plan.cluster.as_ref().is_some_and(|cluster| cluster.bindings.is_some());
        let (notes, inlet) = has_bindings.then(BindingNotes::new).unzip();
        let directory = Arc::new(notes.map_or_else(Directory::default, Directory::noting));
        let bindings = inlet.map(|inlet| BindingSource { holders: directory.clone(), inlet });
        let local = application.is_some().then(|| {
            let rules = &plan.rules;
            Arc::new(LocalBus::new(directory.clone(), &rules.server_type, &rules.server_id))
        });
        let nats = plan.cluster.as_ref().map(|cluster| cluster.transport.bus_tls());
        if local.is_none() && nats.is_none() {
            return Err(ControlError::Application("there is none".into()).into());
        }
        let bus = BusParts { nats, local: local.clone() };
        let (send_report, reports) = mpsc::channel(REPORTS_MAX);
        let (meters, cores) = Meters::new(plan.reactors, &plan.metrics)?;
        let limits = Arc::new(Limits::new(plan.reactors));
        let setups = cores.into_iter().enumerate().map(|(reactor, meter)| Setup {
            reactor,
            rules: plan.rules.clone(),
            directory: directory.clone(),
            limits: limits.clone(),
            clock: plan.clock,
            bus: bus.clone(),
            driver: plan.driver,
            reports: send_report.clone(),
            meter,
        });
        let (reactors, mailboxes) = spawn_reactors(setups.collect(), plan.is_pinned)?;
        Ok(Self {
            plan,
            application,
            local,
            listeners,
            grpc,
            addresses,
            mailboxes,
            reports,
            meters,
            limits,
            reactors,
            bindings,
            directory,
        })
    }

    /// Starts the control thread and waits until clients are served.
    pub(crate) fn finish(self, commands: Commands) -> Result<Gateway, StartError> {
        let Commands { sender: commands, receiver: receive_commands } = commands;
        let (started, when_started) = std_mpsc::channel();
        let Self {
            plan,
            application,
            local,
            listeners,
            grpc,
            mut addresses,
            mailboxes,
            reports,
            meters,
            limits,
            reactors,
            bindings,
            directory,
        } = self;
        // Applications run here, and all that goes over gRPC.
        let runtime = runtime(if local.is_some() || grpc.is_some() { plan.reactors } else { 1 })?;
        let readiness = Arc::new(match &plan.cluster {
            None => Readiness::standalone(),
            Some(_) => Readiness::cluster(plan.reactors),
        });
        let sources = AdminSources {
            metrics: Arc::new({
                let meters = meters.clone();
                move || meters.render()
            }),
            readiness: readiness.clone(),
            actions: None,
        };
        let upkeep = {
            let _inside = runtime.enter();
            Upkeep::start(&plan, limits).map_err(|error| ControlError::Discovery(error.into()))?
        };
        let actions = Actions {
            commands: commands.downgrade(),
            bans: upkeep.bans(),
            token: plan.config.secret("pitaya.admin.token"),
        };
        let sources = AdminSources { actions: Some(actions), ..sources };
        let parts =
            local.zip(application).map(|(bus, app)| LocalParts::new(bus, app, meters.exporter()));
        let control = Control::new(
            plan.clone(),
            mailboxes.clone(),
            reports,
            receive_commands,
            readiness.clone(),
            meters,
            upkeep,
        );
        let transport = Transport::new(&plan, &mailboxes, grpc)?;
        let control =
            control.with_bindings(bindings).with_transport(transport).with_directory(directory);
        let serving =
            Serving { admin: plan.admin.clone(), sources, parts, mailboxes, listeners, readiness };
        let control = std::thread::Builder::new()
            .name("control".into())
            .spawn(move || runtime.block_on(serving.run(control, started)))?;
        match when_started.recv() {
            Ok(Ok(admin)) => {
                addresses.admin = admin;
                Ok(Gateway::new(addresses, commands, control, reactors))
            }
            Ok(Err(error)) => Err(error),
            Err(_) => Err(StartError::Ended),
        }
    }
}

fn runtime(threads: usize) -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads)
        .thread_name("control")
        .enable_all()
        .build()
}

/// What the control thread does first.
struct Serving {
    admin: Vec<SocketAddr>,
    sources: AdminSources,
    parts: Option<LocalParts>,
    mailboxes: Arc<[Arc<Mailbox>]>,
    listeners: Vec<Vec<Listener>>,
    readiness: Arc<Readiness>,
}

type Started = std_mpsc::Sender<Result<Vec<SocketAddr>, StartError>>;

impl Serving {
    /// Joins the cluster or the application, opens the listeners, tells whoever starts us, and follows the gateway.
    async fn run(self, mut control: Control, started: Started) {
        let outcome = async {
            let admin = Admin::start(&self.admin, self.sources).await?;
            control.join(self.parts).await?;
            Ok::<_, StartError>(admin)
        };
        match outcome.await {
            Ok(admin) => {
                for (mailbox, listeners) in self.mailboxes.iter().zip(self.listeners) {
                    post(mailbox, Mail::Listen(listeners)).await;
                }
                self.readiness.set_listeners(true);
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
    }
}

fn bind_all(plan: &Plan, listeners: &mut [Vec<Listener>]) -> Result<Addresses, StartError> {
    let mut bound = Addresses::default();
    // Not sooner than a silent client is given up: a phone that is out of reach for a while with a heartbeat under way must
    // not be dropped for it.
    let Rules { write_timeout_ms, agent, .. } = &*plan.rules;
    let unacknowledged_max = Duration::from_millis((*write_timeout_ms).max(agent.silence_ms));
    for (address, service) in &plan.ports {
        let (actual, sockets) = listener::bind(*address, listeners.len(), unacknowledged_max)
            .map_err(|source| StartError::Listen { address: *address, source })?;
        let list = match (service.protocol, service.security) {
            (Protocol::Tcp, Security::Plain) => &mut bound.tcp,
            (Protocol::WebSocket, Security::Plain) => &mut bound.ws,
            (Protocol::Tcp, Security::Tls) => &mut bound.tls,
            (Protocol::WebSocket, Security::Tls) => &mut bound.wss,
        };
        list.push(actual);
        for (socket, listeners) in sockets.into_iter().zip(listeners.iter_mut()) {
            listeners.push(Listener { socket, service: *service });
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
