//! Moving all connections of this reactor, with their bus, to another reactor of the process, under load.
//!
//! The order is what makes it exact: a fresh bus takes new connections first; then the driver lets go of every socket
//! and what the race gave is kept (bytes that came go into the input, bytes that did not leave stay in front of the
//! output); then bus, connections and letters leave as one parcel. The other reactor does nothing on those sockets
//! before the parcel is there, and this one nothing after (hand-over 2.3).

use std::os::fd::OwnedFd;

use shared::close::CloseReason;

use super::{Reactor, Report};
use crate::bus::{Carrier, Readiness};
use crate::connection::Connection;
use crate::connections::Occupant;
use crate::directory::Place;
use crate::driver::Token;
use crate::freeze::{ConnectionState, ReactorState};
use crate::mailbox::Mail;
use hashbrown::HashMap;

/// A move that waits for the driver to let go.
pub(super) struct Move {
    to: usize,
    /// The bus that leaves.
    pub(super) bus: usize,
    /// Sockets that the driver still holds.
    waiting: usize,
    bus_socket: Option<OwnedFd>,
    connections: Vec<(ConnectionState, OwnedFd)>,
    /// Letters for sessions that are on their way.
    pub(super) letters: Vec<Mail>,
}

/// A move that waits for the fresh bus.
#[derive(Clone, Copy)]
pub(super) struct MoveWanted {
    to: usize,
    bus: usize,
}

impl Reactor {
    /// Begins to move everything to reactor `to`: opens the bus of later connections. Ignored while another move is
    /// under way, or to itself.
    pub(super) fn begin_move(&mut self, to: usize) {
        let is_possible = to != self.core.reactor && to < self.core.mailboxes.len();
        if self.moving.is_some() || self.move_wanted.is_some() || !is_possible {
            return;
        }
        self.move_wanted = Some(MoveWanted { to, bus: self.home });
        self.home = self.open_bus(false);
        if let (Some(table), home) = (self.servers.clone(), self.home) {
            self.with_bus(home, |_, turn| turn.bus.targets.update(&table));
        }
        self.poll_move();
    }

    /// Freezes the connections once the fresh bus is ready.
    pub(super) fn poll_move(&mut self) {
        let Some(MoveWanted { to, bus }) = self.move_wanted else { return };
        if self.buses.get(self.home).is_none_or(|home| !home.state.is_ready()) {
            return;
        }
        self.move_wanted = None;
        let tokens = self.connections.tokens(|occupant| match occupant {
            Occupant::Client(connection) => connection.client.bus == bus,
            Occupant::Bus(number) => *number == bus,
            Occupant::Listener(_) => false,
        });
        for token in &tokens {
            if let Some(connection) = self.connections.at(*token) {
                connection.client.freezing = Some(Vec::new());
            }
            self.driver.detach(*token);
        }
        self.moving = Some(Box::new(Move {
            to,
            bus,
            waiting: tokens.len(),
            bus_socket: None,
            connections: Vec::with_capacity(tokens.len()),
            letters: Vec::new(),
        }));
        self.finish_move();
    }

    /// The driver has let go of a socket.
    pub(super) fn handle_detached(&mut self, token: Token, socket: OwnedFd) {
        let now_ms = self.core.now_ms;
        match self.connections.remove(token) {
            Some(Occupant::Client(connection)) => {
                if let Some(moving) = &mut self.moving {
                    moving.waiting -= 1;
                    moving.connections.push((Connection::freeze(*connection, now_ms), socket));
                }
            }
            Some(Occupant::Bus(_)) => {
                if let Some(moving) = &mut self.moving {
                    moving.waiting -= 1;
                    moving.bus_socket = Some(socket);
                }
            }
            // A listener: its port may be taken over by others, so it just closes.
            Some(Occupant::Listener(_)) | None => {}
        }
        self.finish_move();
    }

    fn finish_move(&mut self) {
        if self.moving.as_ref().is_none_or(|moving| moving.waiting > 0) {
            return;
        }
        let Some(moving) = self.moving.take() else { return };
        let Some(mailbox) = self.core.mailboxes.get(moving.to).cloned() else { return };
        let count = moving.connections.len();
        let bus = self.buses.remove(moving.bus);
        let local = match &bus.state.carrier {
            Carrier::Local(carrier) => Some(carrier.bus().clone()),
            Carrier::Nats(_) => None,
        };
        let id = bus.state.id;
        let mut state = ReactorState {
            bus,
            bus_socket: moving.bus_socket,
            connections: moving.connections,
            letters: moving.letters,
        };
        let mut deferred = Vec::new();
        let send = || {
            while let Some(mail) = self.mailbox.take() {
                let pile = if mail.is_for_session() { &mut state.letters } else { &mut deferred };
                pile.push(mail);
            }
            for (connection, _) in &state.connections {
                let place = Place { reactor: moving.to, token: connection.token };
                self.core.directory.place(connection.session.id(), place);
            }
            mailbox.send(Mail::Adopt(Box::new(state)))
        };
        let outcome = match &local {
            Some(local) => local.move_bus(id, moving.to, send),
            None => send(),
        };
        if let Err(full) = outcome {
            // The other reactor takes no more letters: everything stays here.
            self.handle_letter(full.0);
        }
        for mail in deferred {
            self.handle_letter(mail);
        }
        self.report(Report::Moved { connections: count });
    }

    /// Takes over what another reactor has frozen.
    pub(super) fn adopt(&mut self, state: ReactorState) {
        let ReactorState { bus, bus_socket, connections, letters } = state;
        let number = self.buses.insert(bus);
        let mut tokens = HashMap::with_capacity(connections.len());
        for (connection, socket) in connections {
            if let Some((before, now)) = self.resume(connection, socket, number) {
                tokens.insert(before, now);
            }
        }
        self.resume_bus(number, bus_socket, &tokens);
        for token in tokens.into_values() {
            self.handle_bytes(token, &mut []);
        }
        self.handle_held(number);
        for mail in letters {
            self.handle_letter(mail);
        }
    }

    fn resume(
        &mut self,
        state: ConnectionState,
        socket: OwnedFd,
        bus: usize,
    ) -> Option<(Token, Token)> {
        let before = state.token;
        let session = state.session.id();
        let Ok(token) = self.driver.attach(socket) else {
            self.core.directory.remove(session, state.session.uid());
            self.core.directory.closed();
            self.core.meter.closed(CloseReason::Internal);
            return None;
        };
        let is_closing = state.closing.is_some();
        let connection = Connection::resume(state, token, bus, &self.rules, self.core.now_ms);
        self.connections.insert(token, Occupant::Client(Box::new(connection)));
        self.core.directory.place(session, Place { reactor: self.core.reactor, token });
        self.core.dirty.push(token);
        if is_closing {
            self.closings.push(token);
        }
        Some((before, token))
    }

    /// Points requests, binds and subscriptions of the adopted bus to the new places.
    fn resume_bus(
        &mut self,
        number: usize,
        socket: Option<OwnedFd>,
        tokens: &HashMap<Token, Token>,
    ) {
        let Some(bus) = self.buses.get_mut(number) else { return };
        let follow = |token: &mut Token| {
            if let Some(now) = tokens.get(token) {
                *token = *now;
            }
        };
        bus.state.pending.iter_mut().for_each(|pending| follow(&mut pending.connection));
        bus.state.targets.waiting_mut().for_each(|waiting| follow(&mut waiting.connection));
        bus.state.proofs.iter_mut().for_each(|proof| follow(&mut proof.connection));
        let owners: Vec<(u64, Token)> = bus.state.subscriptions.iter().collect();
        for (subscription, mut owner) in owners {
            follow(&mut owner);
            bus.state.subscriptions.replace(subscription, owner);
        }
        let Some(socket) = socket else {
            if let Readiness::Down { is_asked } = &mut bus.state.readiness {
                *is_asked = false;
            }
            return;
        };
        match (self.driver.attach(socket), &mut bus.link) {
            (Ok(token), Some(link)) => {
                link.replace_token(token);
                self.connections.insert(token, Occupant::Bus(number));
            }
            (Ok(token), None) => self.driver.close(token),
            (Err(error), _) => self.lose_bus(number, &error.into()),
        }
    }
}
