//! A reactor that is driven turn by turn, and looked into between turns: the simulator's hold on the real thing.
//!
//! Nothing here changes what a reactor does. [`Reactor::check_invariants`] is what its tables promise one another.

use std::collections::BTreeMap;
use std::sync::Arc;

use shared::session::SessionId;

use super::{Opened, Reactor, Report, Setup, Stage};
use crate::connection::Binding;
use crate::directory::Place;
use crate::driver::{Chosen, Driver, DriverStats, Kind, Token};
use crate::mailbox::Mailbox;

/// What a reactor holds at the moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Census {
    /// Clients, those on their way out included.
    pub clients: usize,
    /// Clients whose end has not begun.
    pub open: usize,
    /// Requests that were sent and have no answer.
    pub pending: usize,
    /// Requests that wait to be sent.
    pub waiting: usize,
    /// Sockets that the driver holds.
    pub sockets: usize,
    /// Whether connections are on their way to another reactor.
    pub is_moving: bool,
}

impl Opened {
    /// A reactor over a driver that is there already.
    pub fn over(setup: Setup, driver: Driver) -> Self {
        let mailbox = Arc::new(Mailbox::new(driver.waker()));
        let chosen = Chosen { kind: Kind::Auto, reason: "simulated".to_owned() };
        let report = Report::Opened { reactor: setup.reactor, chosen };
        // As in `open`.
        let _ = setup.reports.try_send(report);
        Self { setup, driver, mailbox }
    }

    /// The reactor itself, to be driven by [`Reactor::step`].
    pub fn into_reactor(self, mailboxes: Arc<[Arc<Mailbox>]>) -> Reactor {
        Reactor::new(self, mailboxes)
    }
}

impl Reactor {
    /// One turn; false once the reactor has stopped.
    pub fn step(&mut self) -> bool {
        if self.stage != Stage::Stopped {
            self.turn();
        }
        self.stage != Stage::Stopped
    }

    /// What its driver has counted.
    pub fn driver_stats(&self) -> DriverStats {
        self.driver.stats()
    }

    /// Counts what there is.
    pub fn census(&mut self) -> Census {
        let mut census = Census {
            clients: self.connections.clients(),
            sockets: self.driver.sockets(),
            is_moving: self.moving.is_some() || self.move_wanted.is_some(),
            ..Census::default()
        };
        for connection in self.connections.slice(0, 1) {
            census.open += usize::from(connection.client.ending.closing().is_none());
        }
        for (_, bus) in &mut self.buses {
            census.pending += bus.state.pending.len();
            census.waiting +=
                bus.state.targets.waiting_mut().filter(|waiting| !waiting.is_notify).count();
        }
        census
    }

    /// Panics when two tables contradict each other. To be called between turns.
    pub fn check_invariants(&mut self) {
        let clients = self.connections.slice(0, 1);
        let counted: usize = clients.map(|connection| connection.client.buffered_bytes).sum();
        assert_eq!(counted, self.core.buffered_bytes, "bytes held for clients");
        let mut in_flight: BTreeMap<(Token, SessionId), u32> = BTreeMap::new();
        for (_, bus) in &mut self.buses {
            let state = &mut bus.state;
            let mut named: BTreeMap<u32, u32> = BTreeMap::new();
            state.pending.check_invariants();
            for pending in state.pending.iter_mut() {
                *named.entry(pending.target).or_default() += 1;
                *in_flight.entry((pending.connection, pending.session)).or_default() += 1;
            }
            for waiting in state.targets.waiting_mut().filter(|waiting| !waiting.is_notify) {
                *in_flight.entry((waiting.connection, waiting.session)).or_default() += 1;
            }
            state.targets.check_invariants(&named);
        }
        if self.moving.is_some() {
            return;
        }
        self.check_subscriptions();
        let (reactor, directory) = (self.core.reactor, &self.core.directory);
        for connection in self.connections.slice(0, 1) {
            let (token, client) = (connection.token, &connection.client);
            let session = client.session.id();
            let counted = in_flight.get(&(token, session)).copied().unwrap_or(0);
            assert_eq!(client.in_flight, counted, "requests in flight of session {}", session.0);
            if client.ending.closing().is_none() {
                let place = Some(Place { reactor, token });
                assert_eq!(directory.find(session), place, "the place of session {}", session.0);
            } else {
                assert_eq!(client.binding, Binding::None, "a binding outlived its session");
            }
        }
    }

    /// Every pair of subscription numbers belongs to the session that names it, and the other way round.
    fn check_subscriptions(&mut self) {
        let mut owned = 0;
        for connection in self.connections.slice(0, 1) {
            let bus = self.buses.get(connection.client.bus).expect("a client's bus exists");
            let number = match &connection.client.binding {
                Binding::None | Binding::Asking { .. } => continue,
                Binding::Proving { subscription, .. } | Binding::Bound { subscription } => {
                    *subscription
                }
            };
            let found = bus.state.subscriptions.iter().find(|(first, _)| *first == number);
            assert_eq!(found.map(|(_, token)| token), Some(connection.token), "pair {number}");
            owned += 1;
        }
        let given: usize =
            self.buses.iter().map(|(_, bus)| bus.state.subscriptions.iter().count()).sum();
        assert_eq!(given, owned, "a pair of subscriptions outlived its session");
    }
}
