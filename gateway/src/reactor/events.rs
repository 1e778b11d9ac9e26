//! What the driver reports of sockets: accepted, received, sent, ended.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use shared::close::CloseReason;
use shared::metrics::CoreCounter;
use shared::session::{IpVersion, Session, ToldAddress};

use super::admission::Refused;
use super::intake::take_in_guarded;
use super::{Reactor, pressure};
use crate::connection::{Connection, Origin};
use crate::connections::Occupant;
use crate::directory::Place;
use crate::driver::{Buffer, Event, Token};
use crate::entrance::Entrance;
use crate::listener::{Security, Service};
use crate::outbox::Sent;
use crate::tls::TlsSession;
use crate::turn::Turn;
use crate::wire::Wire;

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
    pub(super) fn admit(&mut self, service: Service, socket: OwnedFd) -> Result<(), Refused> {
        let failed =
            |error: io::Error| Refused { reason: CloseReason::IoError, cause: error.to_string() };
        let peer = peer_of(&socket).map_err(failed)?;
        let seat = if self.rules.proxies.may_name_client(peer.ip(), service.protocol) {
            None
        } else {
            let seat = self.core.seat(peer.ip(), &self.rules);
            Some(seat.map_err(|reason| Refused::of(peer.ip(), reason))?)
        };
        let tls = self.tls_session(service.security).map_err(failed)?;
        let token = self.driver.attach(socket).map_err(failed)?;
        let id = self.core.directory.next_session();
        let mut session = Session::new(id, IpVersion::from(peer.ip()));
        if self.rules.told_address != ToldAddress::Version {
            session.set_address(peer.ip(), self.rules.told_address);
        }
        let expects_header = self.rules.proxies.expects_header;
        let is_trusted = !expects_header || self.rules.proxies.trusted.contains(peer.ip());
        let entrance = Entrance::new(expects_header, tls);
        let is_handshaking = entrance.is_handshaking();
        let origin = Origin { peer, entrance, bus: self.home };
        let wire = Wire::new(service.protocol);
        let mut connection =
            Connection::new(token, wire, session, origin, &self.rules.agent, self.core.now_ms);
        connection.client.seats.address = seat;
        self.connections.insert(token, Occupant::Client(Box::new(connection)));
        self.core.directory.place(id, Place { reactor: self.core.reactor, token });
        if is_handshaking {
            self.core.tls_handshakes.begin(token);
            self.limit_handshakes();
        }
        if !is_trusted {
            // Whatever it would write there, it would be its own invention.
            self.end(token, CloseReason::ProxyHeader);
        }
        Ok(())
    }

    fn tls_session(&self, security: Security) -> io::Result<Option<Box<TlsSession>>> {
        match (security, &self.rules.tls) {
            (Security::Plain, _) => Ok(None),
            (Security::Tls, Some(tls)) => {
                let session = TlsSession::new(tls.certificates.current());
                session.map(Box::new).map(Some).map_err(io::Error::other)
            }
            // A port with TLS is opened only with a certificate.
            (Security::Tls, None) => Err(io::Error::other("there is no certificate")),
        }
    }

    /// Ends the oldest TLS handshake when there is one too many.
    fn limit_handshakes(&mut self) {
        let Some(tls) = &self.rules.tls else { return };
        let handshakes_max = tls.handshakes_max;
        let connections = &mut self.connections;
        let excess = self.core.tls_handshakes.excess(handshakes_max, |token| {
            connections.at(token).is_some_and(|connection| connection.entrance.is_handshaking())
        });
        let Some(token) = excess else { return };
        self.core.tls_handshakes.end();
        if let Some(tls) = self.connections.at(token).and_then(|it| it.entrance.tls.as_mut()) {
            tls.give_up();
        }
        self.end(token, CloseReason::Overload);
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
                    Err(error) => {
                        self.core.pool.give(buffer);
                        self.handle_broken(token, &error);
                        return;
                    }
                };
                self.core.meter.add(CoreCounter::SentBytes, bytes);
                if let Some(remainder) = &mut connection.client.freezing {
                    let unsent = connection.client.outbox.remainder(&buffer, bytes);
                    remainder.extend_from_slice(unsent);
                    return;
                }
                let sent = Sent { buffer, bytes };
                let core = &mut self.core;
                let outcome =
                    connection.handle_sent(sent, &mut self.driver, &mut core.pool, core.now_ms);
                pressure::follow(connection, &self.rules, core, &mut self.driver);
                if connection.client.ending.closing().is_some() {
                    self.poll_closing(token);
                } else if let Err(reason) = outcome {
                    self.end(token, reason);
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
                let reason = connection.entrance.reason_of_end();
                if let Some(error) = error {
                    self.handle_broken(token, &error);
                } else if connection.client.ending.closing().is_some() {
                    self.poll_closing(token);
                } else {
                    self.end(token, reason);
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
    fn handle_broken(&mut self, token: Token, error: &io::Error) {
        let Some(connection) = self.connections.at(token) else { return };
        connection.client.ending.handle_broken();
        if connection.client.ending.closing().is_some() {
            self.poll_closing(token);
        } else {
            let reason = reason_of_failure(error, connection.client.outbox.is_empty());
            self.end(token, reason);
        }
    }
}

/// The kernel holds a deadline too (listener.rs). Which of the two notices first that a client takes nothing is
/// chance, and must not decide what operators see.
fn reason_of_failure(error: &io::Error, is_outbox_empty: bool) -> CloseReason {
    if error.kind() == io::ErrorKind::TimedOut && !is_outbox_empty {
        CloseReason::WriteTimeout
    } else {
        CloseReason::IoError
    }
}

fn peer_of(socket: &impl AsFd) -> io::Result<std::net::SocketAddr> {
    let address = rustix::net::getpeername(socket)?;
    let peer = address
        .and_then(|any| std::net::SocketAddr::try_from(any).ok())
        .ok_or(io::ErrorKind::NotConnected)?;
    // A dual-stack listener shows IPv4 clients as ::ffff:a.b.c.d; logs and `ipversion` want a.b.c.d.
    Ok(std::net::SocketAddr::new(peer.ip().to_canonical(), peer.port()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_write_deadline_has_the_reason_of_ours() {
        let timed_out = io::Error::from(io::ErrorKind::TimedOut);
        let reset = io::Error::from(io::ErrorKind::ConnectionReset);
        assert_eq!(reason_of_failure(&timed_out, false), CloseReason::WriteTimeout);
        assert_eq!(reason_of_failure(&timed_out, true), CloseReason::IoError);
        assert_eq!(reason_of_failure(&reset, false), CloseReason::IoError);
    }
}
