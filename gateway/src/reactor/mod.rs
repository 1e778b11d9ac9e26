//! The reactor: one pinned thread with its driver, its connections and its bus.
//!
//! A turn is: wait, handle every event and letter, then settle — ends, calls, one send a socket. What is where: events
//! of sockets in events.rs, clients' bytes in intake.rs, who is let in in admission.rs, the bus's socket in buses.rs,
//! letters in letters.rs, the coarse tick in ticks.rs, ends of connections in endings.rs, slow clients and memory in
//! pressure.rs, moves in moving.rs. Nothing here blocks, and the clock is read once a turn.

mod admission;
mod buses;
mod endings;
mod events;
mod intake;
mod letters;
mod moving;
mod pressure;
#[cfg(feature = "simulation")]
pub mod stepping;
mod ticks;

use std::sync::Arc;
use std::time::Duration;

use shared::close::CloseReason;
use shared::metadata::MetadataPrefix;
use shared::metrics::CoreCounter;
use shared::server::ServerTable;
use slab::Slab;
use tokio::sync::mpsc;

use crate::bus::{Bus, BusParts};
use crate::clock::Clock;
use crate::connection::Connection;
use crate::connections::Connections;
use crate::directory::Directory;
use crate::driver::{Chosen, Driver, DriverError, Kind, Options, Token};
use crate::limits::Limits;
use crate::mailbox::Mailbox;
use crate::meter::Meter;
use crate::outbox::BufferPool;
use crate::rules::Rules;
use crate::tls::Handshakes;
use crate::turn::{Codec, Core, Turn};

use endings::EndLog;
use moving::{Move, MoveWanted};

/// What a reactor tells the control thread.
#[derive(Debug)]
pub enum Report {
    /// The driver is open.
    Opened {
        /// Which reactor.
        reactor: usize,
        /// Which driver, and why.
        chosen: Chosen,
    },
    /// A connection to NATS is wanted.
    BusWanted {
        /// Which reactor.
        reactor: usize,
    },
    /// Requests can be sent.
    BusReady {
        /// Which reactor.
        reactor: usize,
        /// The server's address.
        address: String,
    },
    /// The NATS cluster has named its servers, as `host:port`.
    BusServers {
        /// Their addresses.
        addresses: Vec<String>,
    },
    /// The connection to NATS is gone; another one is asked for separately.
    BusLost {
        /// Which reactor.
        reactor: usize,
    },
    /// NATS does not permit the subscription to messages for many users.
    PushesRefused,
    /// The listeners are closed.
    Unlistened {
        /// Which reactor.
        reactor: usize,
    },
    /// The connections of this reactor live on another one now.
    Moved {
        /// Which reactor gave them away.
        reactor: usize,
        /// How many.
        connections: usize,
    },
    /// The reactor has ended.
    Stopped {
        /// Which reactor.
        reactor: usize,
    },
}

/// What a reactor is made of, gathered by the starting thread.
pub struct Setup {
    /// Its number.
    pub reactor: usize,
    /// What does not change.
    pub rules: Arc<Rules>,
    /// Sessions and uids of the process.
    pub directory: Arc<Directory>,
    /// Limits of the process.
    pub limits: Arc<Limits>,
    /// The process's clock.
    pub clock: Clock,
    /// What its buses are made of.
    pub bus: BusParts,
    /// Which driver.
    pub driver: Kind,
    /// Where reports go.
    pub reports: mpsc::Sender<Report>,
    /// This core's counters.
    pub meter: Meter,
}

/// One reactor. Lives on its thread.
pub struct Reactor {
    rules: Arc<Rules>,
    clock: Clock,
    bus_parts: BusParts,
    driver: Driver,
    connections: Connections,
    buses: Slab<Bus>,
    /// The bus of new connections.
    home: usize,
    core: Core,
    codec: Codec,
    mailbox: Arc<Mailbox>,
    /// Whether letters were left over from the last turn.
    has_letters: bool,
    reports: mpsc::Sender<Report>,
    next_tick_ms: u64,
    /// Whether that is later than usual, because the process stood still.
    is_tick_put_off: bool,
    ticks: usize,
    /// Unsent bytes of each slice of connections, as the last sweep found them.
    outbox_bytes: [usize; ticks::SLICES],
    /// Whether the listeners rest until a limit has room again.
    is_accepting_paused: bool,
    /// When clients may be shed again.
    next_shed_ms: u64,
    next_give_back_ms: u64,
    /// Connections whose end is under way.
    closings: Vec<Token>,
    end_log: EndLog,
    /// The servers of the cluster, for buses that are made later.
    servers: Option<Arc<ServerTable>>,
    /// A move that waits for the fresh bus.
    move_wanted: Option<MoveWanted>,
    /// A move that is under way.
    moving: Option<Box<Move>>,
    stage: Stage,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Running,
    /// Connections end when their requests are answered, at the latest then.
    Stopping {
        deadline_ms: u64,
    },
    Stopped,
}

/// A reactor whose driver is open, waiting for the boxes of the others.
pub struct Opened {
    setup: Setup,
    driver: Driver,
    mailbox: Arc<Mailbox>,
}

impl Opened {
    /// Opens the driver, on the thread that will run the reactor.
    ///
    /// Errors: the kernel has no driver for us.
    pub fn open(setup: Setup) -> Result<Self, DriverError> {
        let (driver, chosen) = Driver::open(setup.driver, &Options::default())?;
        let mailbox = Arc::new(Mailbox::new(driver.waker()));
        let report = Report::Opened { reactor: setup.reactor, chosen };
        // The channel holds far more than one report a reactor; a control thread that is gone needs none.
        let _ = setup.reports.try_send(report);
        Ok(Self { setup, driver, mailbox })
    }

    /// The reactor's box.
    pub fn mailbox(&self) -> Arc<Mailbox> {
        self.mailbox.clone()
    }

    /// Runs until it is stopped. `mailboxes` are those of all reactors, by number.
    pub fn run(self, mailboxes: Arc<[Arc<Mailbox>]>) {
        Reactor::new(self, mailboxes).run();
    }
}

impl Reactor {
    fn new(opened: Opened, mailboxes: Arc<[Arc<Mailbox>]>) -> Self {
        let Opened { setup, driver, mailbox } = opened;
        let now = setup.clock.read();
        let core = Core {
            reactor: setup.reactor,
            directory: setup.directory,
            limits: setup.limits,
            bans: Arc::default(),
            mailboxes,
            buffered_bytes: 0,
            pool: BufferPool::default(),
            meter: setup.meter,
            now_ms: now.ms,
            now_us: now.us,
            unix_ns: now.unix_ns,
            metadata: MetadataPrefix::new(
                &setup.rules.server_id,
                &setup.rules.server_type,
                &format!("{}-{}", uuid::Uuid::new_v4().simple(), setup.reactor),
            ),
            next_request: 0,
            dirty: Vec::new(),
            ending: Vec::new(),
            replaced: Vec::new(),
            calls: Vec::new(),
            scratch: Vec::new(),
            opened: Vec::new(),
            tls_handshakes: Handshakes::default(),
        };
        let mut reactor = Self {
            rules: setup.rules,
            clock: setup.clock,
            bus_parts: setup.bus,
            driver,
            connections: Connections::default(),
            buses: Slab::new(),
            home: 0,
            core,
            codec: Codec::new(),
            mailbox,
            has_letters: false,
            reports: setup.reports,
            next_tick_ms: now.ms,
            is_tick_put_off: false,
            ticks: 0,
            outbox_bytes: [0; ticks::SLICES],
            is_accepting_paused: false,
            next_shed_ms: 0,
            next_give_back_ms: 0,
            closings: Vec::new(),
            end_log: EndLog::default(),
            servers: None,
            move_wanted: None,
            moving: None,
            stage: Stage::Running,
        };
        reactor.home = reactor.open_bus(reactor.core.reactor == 0);
        reactor
    }

    fn run(mut self) {
        while self.stage != Stage::Stopped {
            self.turn();
        }
        self.report(Report::Stopped { reactor: self.core.reactor });
    }

    fn turn(&mut self) {
        let left_ms =
            if self.has_letters { 0 } else { self.next_tick_ms.saturating_sub(self.core.now_ms) };
        if let Err(error) = self.driver.wait(Some(Duration::from_millis(left_ms))) {
            tracing::error!(reactor = self.core.reactor, %error, "the driver cannot wait; the reactor ends");
            self.stage = Stage::Stopped;
            return;
        }
        let now = self.clock.read();
        self.note_pause(now.ms.saturating_sub(self.core.now_ms + left_ms), now.ms);
        self.core.now_ms = now.ms;
        self.core.now_us = now.us;
        self.core.unix_ns = now.unix_ns;
        let mut events = 0;
        while let Some(event) = self.driver.next() {
            self.handle_event(event);
            events += 1;
        }
        self.core.meter.count(CoreCounter::Turns);
        self.core.meter.add(CoreCounter::Events, events);
        if self.has_letters {
            self.handle_letters();
        }
        if self.core.now_ms >= self.next_tick_ms {
            self.next_tick_ms = self.core.now_ms + ticks::TICK_MS;
            self.is_tick_put_off = false;
            self.handle_tick();
        }
        self.settle();
    }

    /// The turn's end: what handlers noted down is done, and every socket with bytes gets one send.
    fn settle(&mut self) {
        self.serve_calls();
        self.kick_replaced();
        self.begin_endings();
        self.flush_buses();
        self.poll_move();
        let mut dirty = std::mem::take(&mut self.core.dirty);
        for token in dirty.drain(..) {
            if let Some(connection) = self.connections.at(token) {
                let outcome =
                    connection.flush(&mut self.driver, &mut self.core.pool, self.core.now_ms);
                pressure::follow(connection, &self.rules, &mut self.core, &mut self.driver);
                if let Err(reason) = outcome {
                    self.end(token, reason);
                }
            }
        }
        self.core.dirty = dirty;
        self.relieve();
    }

    /// Splits the reactor so that a handler can act on one connection.
    fn with_connection<T>(
        &mut self,
        token: Token,
        act: impl FnOnce(&mut Connection, &mut Turn<'_>) -> T,
    ) -> Option<T> {
        let connection = self.connections.at(token)?;
        let bus = &mut self.buses.get_mut(connection.client.bus)?.state;
        let mut turn =
            Turn { rules: &self.rules, core: &mut self.core, codec: &mut self.codec, bus };
        Some(act(connection, &mut turn))
    }

    /// Splits the reactor so that a handler can act on one bus and all connections.
    fn with_bus<T>(
        &mut self,
        bus: usize,
        act: impl FnOnce(&mut Connections, &mut Turn<'_>) -> T,
    ) -> Option<T> {
        let bus = &mut self.buses.get_mut(bus)?.state;
        let mut turn =
            Turn { rules: &self.rules, core: &mut self.core, codec: &mut self.codec, bus };
        Some(act(&mut self.connections, &mut turn))
    }

    fn end(&mut self, token: Token, reason: CloseReason) {
        if let Some(connection) = self.connections.at(token) {
            connection.client.ending.ask();
        }
        self.core.ending.push((token, reason));
    }

    fn report(&self, report: Report) -> bool {
        self.reports.try_send(report).is_ok()
    }
}
