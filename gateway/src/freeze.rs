//! Connections at rest: all that one reactor has to tell another so that the client notices nothing.
//!
//! A connection is frozen when the driver has nothing under way on its socket. Its bus moves with it as a whole: the
//! NATS socket, the pending requests and the subscriptions stay what they are, so neither an answer nor a push can be
//! lost, doubled or overtaken. Times travel as ages.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;

use shared::agent::{Agent, AgentState};
use shared::metrics::RouteLabel;
use shared::session::Session;

use crate::bus::Bus;
use crate::connection::{Binding, Client, Connection, Origin};
use crate::driver::Token;
use crate::ending::{Closing, Ending};
use crate::entrance::Entrance;
use crate::limits::Seats;
use crate::mailbox::Mail;
use crate::outbox::Outbox;
use crate::rules::Rules;
use crate::wire::{Wire, WireState};

/// One client at rest.
pub struct ConnectionState {
    /// Where it stood on the old reactor; requests under way and subscriptions name it so.
    pub token: Token,
    /// The client's address.
    pub peer: SocketAddr,
    /// Number of its bus on the old reactor.
    pub bus: usize,
    /// What lies before its packets, with TLS as it stands.
    pub entrance: Entrance,
    /// Framing, with bytes that are not a whole packet yet.
    pub wire: WireState,
    /// Packet order, heartbeat, limits.
    pub agent: AgentState,
    /// Identity and data.
    pub session: Session,
    /// What the client said in its last accepted handshake, as JSON.
    pub handshake: Option<Box<[u8]>>,
    /// Bytes that have not left, in order.
    pub unsent: Vec<u8>,
    /// Requests without an answer.
    pub in_flight: u32,
    /// The cluster's side of the uid.
    pub binding: Binding,
    /// Label of the last route.
    pub last_route: RouteLabel,
    /// An end that has begun.
    pub closing: Option<Closing>,
    /// Places in the process's tables, which are the same on all reactors.
    pub seats: Seats,
}

/// A bus at rest.
pub struct BusParcel {
    /// Its number on the old reactor.
    pub number: usize,
    /// The bus.
    pub bus: Bus,
    /// Its socket; none when it is in-process or not connected.
    pub socket: Option<OwnedFd>,
}

/// All clients of one reactor at rest, with the buses that they use.
pub struct ReactorState {
    /// The buses.
    pub buses: Vec<BusParcel>,
    /// The clients and their sockets.
    pub connections: Vec<(ConnectionState, OwnedFd)>,
    /// Letters for them that had come meanwhile.
    pub letters: Vec<Mail>,
}

impl Connection {
    /// Packs a connection whose socket the driver has let go of.
    pub fn freeze(self, now_ms: u64) -> ConnectionState {
        let mut client = self.client;
        let mut entrance = self.entrance;
        let mut remainder = client.freezing.take().unwrap_or_default();
        if let Some(tls) = &mut entrance.tls {
            // It is sealed already and must not be so twice.
            tls.put_back(std::mem::take(&mut remainder));
        }
        ConnectionState {
            token: self.token,
            peer: self.peer,
            bus: client.bus,
            entrance,
            wire: self.wire.freeze(),
            agent: client.agent.freeze(now_ms),
            unsent: client.outbox.freeze(remainder),
            in_flight: client.in_flight,
            last_route: client.last_route,
            closing: client.ending.closing(),
            binding: client.binding,
            seats: client.seats,
            session: client.session,
            handshake: client.handshake,
        }
    }

    /// Unpacks a connection at its new place.
    pub fn resume(
        state: ConnectionState,
        token: Token,
        bus: usize,
        rules: &Rules,
        now_ms: u64,
    ) -> Self {
        let origin = Origin { peer: state.peer, entrance: state.entrance, bus };
        let wire = Wire::resume(state.wire);
        let is_web_socket = wire.is_web_socket();
        let mut connection = Self::new(token, wire, state.session, origin, &rules.agent, now_ms);
        let client: &mut Client = &mut connection.client;
        client.agent = Agent::resume(&state.agent, &rules.agent, now_ms);
        client.outbox = Outbox::resume(state.unsent);
        client.is_web_socket = is_web_socket;
        client.handshake = state.handshake;
        client.in_flight = state.in_flight;
        client.binding = state.binding;
        client.last_route = state.last_route;
        client.ending = Ending::resume(state.closing);
        client.seats = state.seats;
        connection
    }
}
