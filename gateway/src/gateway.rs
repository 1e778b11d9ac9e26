//! A running gateway: its reactor threads, its control thread, and the handle that ends it.

use std::io;
use std::net::SocketAddr;
use std::thread::JoinHandle;

use shared::metrics::MetricError;
use tokio::sync::{mpsc, oneshot};

use crate::admin::AdminError;
use crate::control::plan::Plan;
use crate::control::{Command, ControlError};
use crate::driver::DriverError;
use crate::starting::Starting;

const COMMANDS_MAX: usize = 16;

/// Where a gateway listens.
#[derive(Clone, Debug, Default)]
pub struct Addresses {
    /// Pitaya packets on TCP.
    pub tcp: Vec<SocketAddr>,
    /// Pitaya packets in WebSocket messages.
    pub ws: Vec<SocketAddr>,
    /// Pitaya packets on TCP with TLS.
    pub tls: Vec<SocketAddr>,
    /// Pitaya packets in WebSocket messages with TLS.
    pub wss: Vec<SocketAddr>,
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

    pub(crate) fn new(
        addresses: Addresses,
        commands: mpsc::Sender<Command>,
        control: JoinHandle<()>,
        reactors: Vec<JoinHandle<()>>,
    ) -> Self {
        Self { addresses, commands, control: Some(control), reactors }
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
    /// deadline at most, and a little more; with an application that hangs, the request timeout once more.
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
    pub(crate) sender: mpsc::Sender<Command>,
    pub(crate) receiver: mpsc::Receiver<Command>,
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
