//! What the driver reports of sockets: accepted, received, sent, ended.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};

use shared::close::CloseReason;
use shared::metrics::CoreCounter;
use shared::session::{IpVersion, Session};

use super::admission::Refused;
use super::{Reactor, pressure};
use crate::connection::{Connection, Origin};
use crate::connections::Occupant;
use crate::directory::Place;
use crate::driver::{Buffer, Event, Token};
use crate::forward;
use crate::outbox::Sent;
use crate::turn::Turn;
use crate::wire::{Found, Protocol, Wire};

impl Reactor {
    pub(super) fn handle_event(&mut self, event: Event) {
        match event {
            Event::Accepted { listener, socket } => self.handle_accepted(listener, socket),
            Event::AcceptFailed { error, .. } => self.handle_accept_failed(&error),
            Event::Received { token, buffer } => {
                self.handle_received(token, &buffer);
                self.driver.recycle(buffer);
            }
            Event::Sent { token, buffer, result } => self.handle_sent(token, buffer, result),
            Event::Ended { token, error } => self.handle_ended(token, error),
            Event::Released { buffer } => self.core.pool.give(buffer),
            Event::Detached { token, socket } => self.handle_detached(token, socket),
            Event::Woken => self.handle_letters(),
        }
    }

    /// Takes a connection in, unless its address has no place for it.
    pub(super) fn admit(&mut self, protocol: Protocol, socket: OwnedFd) -> Result<(), Refused> {
        let failed =
            |error: io::Error| Refused { reason: CloseReason::IoError, cause: error.to_string() };
        let peer = peer_of(&socket).map_err(failed)?;
        let seat = self.seat(peer.ip()).map_err(|reason| Refused {
            reason,
            cause: format!("{}: {}", peer.ip(), reason.label()),
        })?;
        let token = self.driver.attach(socket).map_err(failed)?;
        let id = self.core.directory.next_session();
        let session = Session::new(id, IpVersion::from(peer.ip()));
        let origin = Origin { peer, bus: self.home };
        let wire = Wire::new(protocol);
        let mut connection =
            Connection::new(token, wire, session, &origin, &self.rules.agent, self.core.now_ms);
        connection.client.seats.address = Some(seat);
        self.connections.insert(token, Occupant::Client(Box::new(connection)));
        self.core.directory.place(id, Place { reactor: self.core.reactor, token });
        Ok(())
    }

    fn handle_accept_failed(&mut self, error: &io::Error) {
        self.core.meter.count(CoreCounter::AcceptFailures);
        self.end_log.refused(self.core.now_ms, &format!("accept: {error}"));
    }

    fn handle_received(&mut self, token: Token, buffer: &Buffer) {
        let bus = match self.connections.occupant(token) {
            Some(Occupant::Client(connection)) => connection.client.bus,
            Some(Occupant::Bus(bus)) => {
                let bus = *bus;
                self.handle_bus_bytes(bus, buffer);
                return;
            }
            _ => return,
        };
        let (Some(connection), Some(bus)) = (self.connections.at(token), self.buses.get_mut(bus))
        else {
            return;
        };
        let bytes = self.driver.bytes(buffer);
        self.core.meter.add(CoreCounter::ReceivedBytes, bytes.len());
        let mut turn = Turn {
            rules: &self.rules,
            core: &mut self.core,
            codec: &mut self.codec,
            bus: &mut bus.state,
        };
        let outcome = take_in_guarded(connection, bytes, &mut turn);
        pressure::follow(connection, &self.rules, &mut self.core, &mut self.driver);
        if let Err(reason) = outcome {
            self.end(token, reason);
        }
    }

    /// Bytes of a client that did not come straight from its socket.
    pub(super) fn handle_bytes(&mut self, token: Token, bytes: &mut [u8]) {
        let outcome = self
            .with_connection(token, |connection, turn| take_in_guarded(connection, bytes, turn));
        if let Some(Err(reason)) = outcome {
            self.end(token, reason);
        }
    }

    fn handle_sent(&mut self, token: Token, buffer: Vec<u8>, result: io::Result<usize>) {
        match self.connections.occupant(token) {
            Some(Occupant::Client(connection)) => {
                let bytes = match result {
                    Ok(bytes) => bytes,
                    Err(_) if connection.client.freezing.is_some() => 0,
                    Err(_) => {
                        self.core.pool.give(buffer);
                        self.handle_broken(token);
                        return;
                    }
                };
                self.core.meter.add(CoreCounter::SentBytes, bytes);
                if let Some(remainder) = &mut connection.client.freezing {
                    let unsent = connection.client.outbox.remainder(&buffer, bytes);
                    remainder.extend_from_slice(unsent);
                    return;
                }
                let sent = Sent { buffer, bytes, now_ms: self.core.now_ms };
                let client = &mut connection.client;
                client.outbox.handle_sent(token, &mut self.driver, &mut self.core.pool, sent);
                pressure::follow(connection, &self.rules, &mut self.core, &mut self.driver);
                if connection.client.ending.closing().is_some() {
                    self.poll_closing(token);
                }
            }
            Some(Occupant::Bus(bus)) => {
                let bus = *bus;
                self.handle_bus_sent(bus, buffer, result);
            }
            _ => self.core.pool.give(buffer),
        }
    }

    fn handle_ended(&mut self, token: Token, error: Option<io::Error>) {
        match self.connections.occupant(token) {
            // Whoever takes the connection over will hear of its end again.
            Some(Occupant::Client(connection)) if connection.client.freezing.is_some() => {}
            Some(Occupant::Client(connection)) => {
                connection.client.ending.handle_peer_done();
                if error.is_some() {
                    self.handle_broken(token);
                } else if connection.client.ending.closing().is_some() {
                    self.poll_closing(token);
                } else {
                    self.end(token, CloseReason::PeerClosed);
                }
            }
            Some(Occupant::Bus(bus)) => {
                let bus = *bus;
                self.handle_bus_ended(bus, error);
            }
            _ => {}
        }
    }

    /// A client's socket failed. An end that is under way has nothing to wait for then: what is unsent stays unsent,
    /// and its descriptor would be held for the rest of the write deadline.
    fn handle_broken(&mut self, token: Token) {
        let connection = self.connections.at(token);
        if connection.is_some_and(|connection| connection.client.ending.closing().is_some()) {
            self.close(token);
        } else {
            self.end(token, CloseReason::IoError);
        }
    }
}

/// A defect that one client's bytes bring out ends that client, not the core and everybody on it.
fn take_in_guarded(
    connection: &mut Connection,
    bytes: &mut [u8],
    turn: &mut Turn<'_>,
) -> Result<(), CloseReason> {
    catch_unwind(AssertUnwindSafe(|| take_in(connection, bytes, turn)))
        .unwrap_or(Err(CloseReason::Internal))
}

/// One client's bytes, through its wire, into whatever they ask for.
fn take_in(
    connection: &mut Connection,
    bytes: &mut [u8],
    turn: &mut Turn<'_>,
) -> Result<(), CloseReason> {
    let Connection { token, wire, client, .. } = connection;
    let token = *token;
    if client.ending.is_asked() {
        return Ok(());
    }
    if client.freezing.is_some() {
        wire.keep(bytes);
        return Ok(());
    }
    let rules = turn.rules;
    wire.handle_bytes(bytes, &rules.wire, &mut |found| match found {
        Found::Packet(packet) => forward::handle_packet(token, client, packet, turn),
        Found::Upgraded(answer) => {
            let outcome = client.put_raw(answer, &mut turn.core.put(rules));
            client.is_web_socket = true;
            turn.core.settle(token, client, Ok(()));
            outcome
        }
        Found::Answer(answer) => {
            let outcome = client.put_raw(answer, &mut turn.core.put(rules));
            turn.core.settle(token, client, Ok(()));
            outcome
        }
        Found::Farewell(answer, reason) => {
            client.put_raw(answer, &mut turn.core.put(rules))?;
            turn.core.settle(token, client, Ok(()));
            Err(reason)
        }
        Found::Page(path) => {
            if let Some(pages) = &rules.pages {
                client.put_raw(&pages.answer(path), &mut turn.core.put(rules))?;
                turn.core.settle(token, client, Ok(()));
            }
            Err(CloseReason::PeerClosed)
        }
    })
}

fn peer_of(socket: &impl AsFd) -> io::Result<std::net::SocketAddr> {
    let address = rustix::net::getpeername(socket)?;
    let peer = address
        .and_then(|any| std::net::SocketAddr::try_from(any).ok())
        .ok_or(io::ErrorKind::NotConnected)?;
    // A dual-stack listener shows IPv4 clients as ::ffff:a.b.c.d; logs and `ipversion` want a.b.c.d.
    Ok(std::net::SocketAddr::new(peer.ip().to_canonical(), peer.port()))
}
