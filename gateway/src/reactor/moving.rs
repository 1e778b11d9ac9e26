//! Moving all connections of this reactor, with their buses, to another reactor of the process, under load.
//!
//! The order is what makes it exact: a fresh bus takes new connections first; then the driver lets go of every socket
//! and what the race gave is kept (bytes that came go into the input, bytes that did not leave stay in front of the
//! output); then buses, connections and letters leave as one parcel. The other reactor does nothing on those sockets
//! before the parcel is there, and this one nothing after (hand-over 2.3).

use std::os::fd::OwnedFd;

use hashbrown::HashMap;
use proto::wire::RequestView;
use shared::close::CloseReason;
use shared::session::SessionId;

use super::{Reactor, Report, pressure};
use crate::bus::local::LocalBus;
use crate::bus::{Bus, Readiness};
use crate::calls;
use crate::connection::Connection;
use crate::connections::Occupant;
use crate::directory::Place;
use crate::driver::Token;
use crate::freeze::{BusParcel, ConnectionState, ReactorState};
use crate::mailbox::{Mail, MailboxFull};

/// A move that waits for the driver to let go.
pub(super) struct Move {
    to: usize,
    /// The buses that leave: their numbers here, and their sockets once the driver gave them back.
    buses: Vec<(usize, Option<OwnedFd>)>,
    /// Sockets that the driver still holds.
    waiting: usize,
    connections: Vec<(ConnectionState, OwnedFd)>,
    /// Letters for sessions that are on their way.
    letters: Vec<Mail>,
}

/// A move that waits for the fresh bus.
#[derive(Clone, Copy)]
pub(super) struct MoveWanted {
    to: usize,
}

impl Reactor {
    /// Begins to move everything to reactor `to`: opens the bus of later connections. Ignored while another move is
    /// under way, or to itself.
    pub(super) fn begin_move(&mut self, to: usize) {
        let is_possible = to != self.core.reactor && to < self.core.mailboxes.len();
        if self.moving.is_some() || self.move_wanted.is_some() || !is_possible {
            self.report(Report::Moved { reactor: self.core.reactor, connections: 0 });
            return;
        }
        self.move_wanted = Some(MoveWanted { to });
        self.home = self.open_bus(false);
        if let (Some(table), home) = (self.servers.clone(), self.home) {
            self.with_bus(home, |_, turn| turn.bus.update_servers(&table));
        }
        self.poll_move();
    }

    /// Freezes the connections once the fresh bus is ready.
    pub(super) fn poll_move(&mut self) {
        let Some(MoveWanted { to }) = self.move_wanted else { return };
        if self.buses.get(self.home).is_none_or(|home| !home.state.is_ready()) {
            return;
        }
        self.move_wanted = None;
        let home = self.home;
        let buses: Vec<_> = self
            .bus_numbers()
            .into_iter()
            .filter(|bus| *bus != home)
            .map(|bus| (bus, None))
            .collect();
        let tokens = self.connections.tokens(|occupant| match occupant {
            Occupant::Client(connection) => connection.client.bus != home,
            Occupant::Bus(bus) => *bus != home,
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
            buses,
            waiting: tokens.len(),
            connections: Vec::with_capacity(tokens.len()),
            letters: Vec::new(),
        }));
        self.finish_move();
    }

    /// Whether the bus is on its way to another reactor.
    pub(super) fn is_bus_leaving(&self, bus: usize) -> bool {
        self.moving
            .as_ref()
            .is_some_and(|moving| moving.buses.iter().any(|(leaving, _)| *leaving == bus))
    }

    /// Keeps a letter for the parcel when it is for somebody who leaves; gives it back otherwise.
    pub(super) fn keep_letter(&mut self, mail: Mail) -> Option<Mail> {
        if !self.is_letter_leaving(&mail) {
            return Some(mail);
        }
        self.moving.as_mut()?.letters.push(mail);
        None
    }

    fn is_letter_leaving(&mut self, mail: &Mail) -> bool {
        if self.moving.is_none() {
            return false;
        }
        match mail {
            Mail::Answer { bus, .. } => {
                let number = self
                    .buses
                    .iter()
                    .find(|(_, entry)| entry.state.id == *bus)
                    .map(|(number, _)| number);
                number.is_some_and(|number| self.is_bus_leaving(number))
            }
            Mail::Push { session, .. } | Mail::Kick { session, .. } => {
                self.is_session_leaving(*session)
            }
            Mail::Bound { session, .. } => self.is_session_leaving(*session),
            Mail::Judged(verdict) => self.is_session_leaving(verdict.session),
            Mail::Call { request, .. } => {
                let addressee =
                    RequestView::decode(request).ok().and_then(|view| calls::addressee(&view));
                let found =
                    addressee.and_then(|addressee| calls::find(&self.core.directory, addressee));
                found.is_some_and(|(session, _)| self.is_session_leaving(session))
            }
            _ => false,
        }
    }

    fn is_session_leaving(&mut self, session: SessionId) -> bool {
        let Some(place) = self.core.directory.find(session) else { return false };
        if place.reactor != self.core.reactor {
            return false;
        }
        match self.connections.find(place.token, session) {
            Some(connection) => connection.client.freezing.is_some(),
            // Frozen already, and in the parcel.
            None => true,
        }
    }

    /// The driver has let go of a socket.
    pub(super) fn handle_detached(&mut self, token: Token, socket: OwnedFd) {
        let now_ms = self.core.now_ms;
        let occupant = self.connections.remove(token);
        let Some(moving) = &mut self.moving else { return };
        match occupant {
            Some(Occupant::Client(mut connection)) => {
                pressure::forget(&mut connection, &mut self.core);
                moving.waiting -= 1;
                if connection.entrance.is_handshaking() {
                    self.core.tls_handshakes.end();
                }
                moving.connections.push((Connection::freeze(*connection, now_ms), socket));
            }
            Some(Occupant::Bus(bus)) => {
                moving.waiting -= 1;
                if let Some((_, place)) =
                    moving.buses.iter_mut().find(|(leaving, _)| *leaving == bus)
                {
                    *place = Some(socket);
                }
            }
            // A listener: its port is shared with the other reactors, so it just closes.
            Some(Occupant::Listener(_)) | None => {}
        }
        self.finish_move();
    }

    fn finish_move(&mut self) {
        if self.moving.as_ref().is_none_or(|moving| moving.waiting > 0) {
            return;
        }
        let local = self.bus_parts.local.clone();
        let Some(to) = self.moving.as_ref().map(|moving| moving.to) else { return };
        let Some(mailbox) = self.core.mailboxes.get(to).cloned() else { return };
        let mut deferred = Vec::new();
        let mut connections = 0;
        let mut send = |holders: Option<&mut [usize]>| -> Result<(), MailboxFull> {
            while let Some(mail) = self.mailbox.take() {
                deferred.extend(self.keep_letter(mail));
            }
            let Some(parcel) = self.pack(holders) else { return Ok(()) };
            connections = parcel.connections.len();
            mailbox.send(Mail::Adopt(Box::new(parcel)))
        };
        let outcome = match &local {
            Some(local) => LocalBus::while_closed(local, |holders| send(Some(holders))),
            None => send(None),
        };
        if let Err(full) = outcome {
            // The other reactor takes no more letters: everything stays here.
            self.handle_letter(full.0);
        }
        for mail in deferred {
            self.handle_letter(mail);
        }
        self.report(Report::Moved { reactor: self.core.reactor, connections });
    }

    /// Makes the parcel, and points the process's indexes to where it goes.
    fn pack(&mut self, mut holders: Option<&mut [usize]>) -> Option<ReactorState> {
        let moving = *self.moving.take()?;
        for (connection, _) in &moving.connections {
            let place = Place { reactor: moving.to, token: connection.token };
            self.core.directory.place(connection.session.id(), place);
        }
        let mut buses = Vec::with_capacity(moving.buses.len());
        for (number, socket) in moving.buses {
            let Some(mut bus) = self.buses.try_remove(number) else { continue };
            bus.state.close_batches();
            if let Some(holder) = holders.as_mut().and_then(|holders| holders.get_mut(bus.state.id))
            {
                *holder = moving.to;
            }
            buses.push(BusParcel { number, bus, socket });
        }
        Some(ReactorState { buses, connections: moving.connections, letters: moving.letters })
    }

    /// Takes over what another reactor has frozen.
    pub(super) fn adopt(&mut self, state: ReactorState) {
        let ReactorState { buses, connections, letters } = state;
        let mut numbers = HashMap::with_capacity(buses.len());
        let mut sockets = Vec::with_capacity(buses.len());
        for BusParcel { number, mut bus, socket } in buses {
            // While it was on its way it has missed letters about servers.
            if let Some(table) = &self.servers {
                bus.state.update_servers(table);
            }
            let now = self.buses.insert(bus);
            numbers.insert(number, now);
            sockets.push((now, socket));
        }
        let mut tokens = HashMap::with_capacity(connections.len());
        let mut adopted = Vec::with_capacity(connections.len());
        for (connection, socket) in connections {
            let Some(bus) = numbers.get(&connection.bus).copied() else { continue };
            if let Some((before, now)) = self.resume(connection, socket, bus) {
                tokens.insert(before, now);
                adopted.push(now);
            }
        }
        let buses: Vec<usize> = sockets.iter().map(|(number, _)| *number).collect();
        for (number, socket) in sockets {
            self.resume_bus(number, socket, &tokens);
        }
        // In the order of the parcel, so that a run can be repeated.
        for token in adopted {
            self.handle_bytes(token, &mut []);
        }
        for number in buses {
            self.handle_held(number);
        }
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
        if connection.entrance.is_handshaking() {
            self.core.tls_handshakes.begin(token);
        }
        self.connections.insert(token, Occupant::Client(Box::new(connection)));
        self.core.directory.place(session, Place { reactor: self.core.reactor, token });
        self.core.dirty.push(token);
        if is_closing {
            self.closings.push(token);
        }
        Some((before, token))
    }

    /// Points requests, binds and subscriptions of an adopted bus to the new places.
    fn resume_bus(
        &mut self,
        number: usize,
        socket: Option<OwnedFd>,
        tokens: &HashMap<Token, Token>,
    ) {
        let Some(bus) = self.buses.get_mut(number) else { return };
        let Bus { state, link } = bus;
        let follow = |token: &mut Token| {
            if let Some(now) = tokens.get(token) {
                *token = *now;
            }
        };
        state.pending.iter_mut().for_each(|pending| follow(&mut pending.connection));
        state.targets.waiting_mut().for_each(|waiting| follow(&mut waiting.connection));
        state.proofs.iter_mut().for_each(|proof| follow(&mut proof.connection));
        let owners: Vec<(u64, Token)> = state.subscriptions.iter().collect();
        for (subscription, mut owner) in owners {
            follow(&mut owner);
            state.subscriptions.replace(subscription, owner);
        }
        let Some(socket) = socket else {
            if let Readiness::Down { is_asked } = &mut state.readiness {
                *is_asked = false;
            }
            return;
        };
        match (self.driver.attach(socket), link) {
            (Ok(token), Some(link)) => {
                link.replace_token(token);
                self.connections.insert(token, Occupant::Bus(number));
            }
            (Ok(token), None) => self.driver.close(token),
            (Err(error), _) => self.lose_bus(number, &error.into()),
        }
    }
}
