//! A connection: one client's wire, agent, session and outbox, and how it ends.
//!
//! It puts packets into the outbox and says when the connection is to close; it neither forwards messages (forward.rs)
//! nor touches the driver except to hand over its outbox. The invariant: once [`Connection::begin_close`] was called no
//! packet is taken in and none is appended, so a kick is the last thing that a client sees.

use std::net::{IpAddr, SocketAddr};

use shared::agent::{Agent, AgentRules};
use shared::close::CloseReason;
use shared::dictionary::Dictionary;
use shared::error::Error;
use shared::message::{self, Head, MessageError, MessageType};
use shared::metrics::RouteLabel;
use shared::packet::{self, PacketType};
use shared::session::Session;
use shared::websocket::frame;

use crate::driver::{Driver, Token};
use crate::ending::Ending;
use crate::entrance::Entrance;
use crate::limits::Seats;
use crate::outbox::{BufferPool, Outbox, Sent, Way};
use crate::rules::Rules;
use crate::wire::{self, Wire};

/// One client.
pub struct Connection {
    /// Its place on the reactor.
    pub token: Token,
    /// Where it came from.
    pub peer: SocketAddr,
    /// What lies before its packets.
    pub entrance: Entrance,
    /// Framing.
    pub wire: Wire,
    /// Everything but framing; apart, so that a packet borrowed from the wire can be handled.
    pub client: Client,
}

/// Where a client came from, through what, and which way its messages take.
pub struct Origin {
    /// The client's address.
    pub peer: SocketAddr,
    /// What lies before its packets.
    pub entrance: Entrance,
    /// Number of the bus on the reactor.
    pub bus: usize,
}

/// What packets of a client act upon.
pub struct Client {
    /// Packet order, heartbeat, limits.
    pub agent: Agent,
    /// Identity and data.
    pub session: Session,
    /// What the client said in its last accepted handshake, as JSON.
    pub handshake: Option<Box<[u8]>>,
    /// Unsent bytes.
    pub outbox: Outbox,
    /// Set from the upgrade on.
    pub is_web_socket: bool,
    /// Forwarded requests without an answer.
    pub in_flight: u32,
    /// The bind that is being proven, and the subscriptions of a bound uid.
    pub binding: Binding,
    /// Label of the last route that was forwarded or pushed, for the log line at the end.
    pub last_route: RouteLabel,
    /// Number of the bus on the reactor that this client's messages use.
    pub bus: usize,
    /// Set while the connection is being moved: what was left of a send that was cut.
    pub freezing: Option<Vec<u8>>,
    /// Whether the reactor has this connection on its list of outboxes to flush.
    pub is_dirty: bool,
    /// How far the end is.
    pub ending: Ending,
    /// Places in the process's tables of addresses and users.
    pub seats: Seats,
    /// Bytes that the reactor's sum has for this connection.
    pub buffered_bytes: usize,
    /// Set while the client is not read from, because it does not read either.
    pub is_reading_paused: bool,
}

/// The cluster's side of a uid.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Binding {
    /// No uid.
    None,
    /// Subscribed, waiting for the proof; the uid is not on the session yet.
    Proving {
        /// The uid to be.
        uid: String,
        /// The first of the two subscription numbers.
        subscription: u64,
    },
    /// Bound.
    Bound {
        /// The first of the two subscription numbers; 0 on the in-process bus.
        subscription: u64,
    },
}

impl Client {
    /// Appends a response.
    ///
    /// Errors: why the connection is to be closed instead.
    pub fn put_response(
        &mut self,
        id: u64,
        payload: Payload<'_>,
        is_error: bool,
        context: &mut Put<'_>,
    ) -> Result<(), CloseReason> {
        let is_compressed = payload.is_compressed;
        let head = Head { kind: MessageType::Response, id, route: "", is_compressed, is_error };
        self.put_message(&head, payload.bytes, context)
    }

    /// Appends a push.
    ///
    /// Errors: why the connection is to be closed instead.
    pub fn put_push(
        &mut self,
        route: &str,
        payload: Payload<'_>,
        context: &mut Put<'_>,
    ) -> Result<(), CloseReason> {
        let is_compressed = payload.is_compressed;
        let head = Head { kind: MessageType::Push, id: 0, route, is_compressed, is_error: false };
        self.put_message(&head, payload.bytes, context)
    }

    /// Whether there is room for a push where pushes are dropped rather than their client closed. They leave a quarter
    /// of the outbox to answers, which cannot be dropped.
    pub fn has_room_for_push(&self, route: &str, payload: Payload<'_>, rules: &Rules) -> bool {
        let is_compressed = payload.is_compressed;
        let head = Head { kind: MessageType::Push, id: 0, route, is_compressed, is_error: false };
        let body_bytes = message::head_bytes(&head, &rules.dictionary) + payload.bytes.len();
        let framed_bytes = wire::framed_bytes(self.is_web_socket, body_bytes);
        self.outbox.has_room(framed_bytes, rules.outbox_bytes_max / 4 * 3)
    }

    /// Appends an error response. An id of 0 cannot be answered (client protocol 3.9), so nothing happens then.
    ///
    /// Errors: why the connection is to be closed instead.
    pub fn put_error(
        &mut self,
        id: u64,
        error: &Error,
        context: &mut Put<'_>,
    ) -> Result<(), CloseReason> {
        if id == 0 {
            return Ok(());
        }
        let mut body = Vec::new();
        let metadata = error.metadata.iter().map(|(key, value)| (key.as_str(), value.as_str()));
        context.rules.serializer.encode_error(&error.code, &error.msg, metadata, &mut body);
        self.put_response(id, Payload::plain(&body), true, context)
    }

    fn put_message(
        &mut self,
        head: &Head<'_>,
        payload: &[u8],
        context: &mut Put<'_>,
    ) -> Result<(), CloseReason> {
        let dictionary: &Dictionary = &context.rules.dictionary;
        let body_bytes = message::head_bytes(head, dictionary) + payload.len();
        let framed_bytes = wire::framed_bytes(self.is_web_socket, body_bytes);
        if self.ending.is_asked() {
            return Ok(());
        }
        if !self.outbox.has_room(framed_bytes, context.rules.outbox_bytes_max) {
            return Err(CloseReason::OutboxLimit);
        }
        let out = self.outbox.prepare(context.pool);
        let start = out.len();
        let framed = wire::frame_packet(self.is_web_socket, PacketType::Data, body_bytes, out)
            .map_err(|_| CloseReason::Internal)
            .and_then(|()| {
                message::encode_head(head, dictionary, out)
                    .map_err(|_: MessageError| CloseReason::Internal)
            });
        match framed {
            Ok(()) => out.extend_from_slice(payload),
            // A message that cannot be encoded is dropped whole; the stream stays intact.
            Err(_) => {
                out.truncate(start);
                context.dropped_messages += 1;
            }
        }
        Ok(())
    }

    /// Appends a ready-made packet (handshake answer, heartbeat, kick) in this connection's framing.
    ///
    /// Errors: why the connection is to be closed instead.
    pub fn put_packet(&mut self, packet: &[u8], context: &mut Put<'_>) -> Result<(), CloseReason> {
        if self.ending.is_asked() {
            return Ok(());
        }
        let framed_bytes =
            wire::framed_bytes(self.is_web_socket, packet.len() - packet::HEADER_BYTES);
        if !self.outbox.has_room(framed_bytes, context.rules.outbox_bytes_max) {
            return Err(CloseReason::OutboxLimit);
        }
        let out = self.outbox.prepare(context.pool);
        if self.is_web_socket {
            frame::frame_head(frame::Opcode::Binary, packet.len(), None, out);
        }
        out.extend_from_slice(packet);
        Ok(())
    }

    /// Appends bytes that belong to the framing itself: an HTTP answer, a pong, a close frame.
    ///
    /// Errors: why the connection is to be closed instead.
    pub fn put_raw(&mut self, bytes: &[u8], context: &mut Put<'_>) -> Result<(), CloseReason> {
        if !self.outbox.has_room(bytes.len(), context.rules.outbox_bytes_max) {
            return Err(CloseReason::OutboxLimit);
        }
        self.outbox.prepare(context.pool).extend_from_slice(bytes);
        Ok(())
    }

    /// Begins the end. What is queued is sent within the write deadline unless the reason is that it cannot be; a
    /// WebSocket client is told the reason's code. Returns false when the end had begun before.
    pub fn begin_close(&mut self, reason: CloseReason, context: &mut Put<'_>) -> bool {
        if self.ending.closing().is_some() {
            return false;
        }
        let is_hopeless = matches!(
            reason,
            CloseReason::WriteTimeout
                | CloseReason::OutboxLimit
                | CloseReason::MemoryLimit
                | CloseReason::IoError
        );
        if self.is_web_socket && !is_hopeless && reason != CloseReason::PeerClosed {
            let out = self.outbox.prepare(context.pool);
            frame::close_frame(reason.web_socket_code(), out);
        }
        let deadline_ms = if is_hopeless {
            context.now_ms
        } else {
            context.now_ms + context.rules.write_timeout_ms
        };
        self.ending.begin(reason, deadline_ms)
    }
}

impl Connection {
    /// A client that has just connected.
    pub fn new(
        token: Token,
        wire: Wire,
        session: Session,
        origin: Origin,
        rules: &AgentRules,
        now_ms: u64,
    ) -> Self {
        let Origin { peer, entrance, bus } = origin;
        let client = Client {
            agent: Agent::new(rules, now_ms),
            session,
            handshake: None,
            outbox: Outbox::default(),
            is_web_socket: false,
            in_flight: 0,
            binding: Binding::None,
            last_route: RouteLabel::OTHER,
            bus,
            freezing: None,
            is_dirty: false,
            ending: Ending::default(),
            seats: Seats::default(),
            buffered_bytes: 0,
            is_reading_paused: false,
        };
        Self { token, peer, entrance, wire, client }
    }

    /// The address that limits and bans go by.
    pub fn address(&self) -> IpAddr {
        self.peer.ip()
    }

    /// Bytes held for this client: unsent ones, and parts of packets.
    pub fn held_bytes(&self) -> usize {
        self.client.outbox.unsent_bytes() + self.wire.partial_bytes() + self.entrance.held_bytes()
    }

    /// Hands the turn's bytes to the driver.
    ///
    /// Errors: why the connection is to be closed.
    pub fn flush(
        &mut self,
        driver: &mut Driver,
        pool: &mut BufferPool,
        now_ms: u64,
    ) -> Result<(), CloseReason> {
        self.client.is_dirty = false;
        if self.client.freezing.is_some() {
            return Ok(());
        }
        let tls = self.entrance.tls.as_deref_mut();
        let mut way = Way { token: self.token, driver, pool, tls, now_ms };
        self.client.outbox.flush(&mut way).map_err(|_| CloseReason::Tls)
    }

    /// Takes a buffer back that the driver has sent, in whole or in part.
    ///
    /// Errors: why the connection is to be closed.
    pub fn handle_sent(
        &mut self,
        sent: Sent,
        driver: &mut Driver,
        pool: &mut BufferPool,
        now_ms: u64,
    ) -> Result<(), CloseReason> {
        let tls = self.entrance.tls.as_deref_mut();
        let mut way = Way { token: self.token, driver, pool, tls, now_ms };
        self.client.outbox.handle_sent(&mut way, sent).map_err(|_| CloseReason::Tls)
    }

    /// Whether everything has left.
    pub fn is_sent(&self) -> bool {
        self.client.outbox.is_empty() && !self.entrance.has_output()
    }
}

/// What appending to an outbox needs from the reactor.
pub struct Put<'a> {
    /// Limits, dictionary, serializer.
    pub rules: &'a Rules,
    /// Buffers.
    pub pool: &'a mut BufferPool,
    /// The turn's time.
    pub now_ms: u64,
    /// Counts messages that could not be encoded.
    pub dropped_messages: u64,
}

/// The payload of a message to a client, perhaps deflated already.
#[derive(Clone, Copy)]
pub struct Payload<'a> {
    /// As it goes onto the wire.
    pub bytes: &'a [u8],
    /// Whether `bytes` are zlib.
    pub is_compressed: bool,
}

impl<'a> Payload<'a> {
    /// A payload as it is.
    pub fn plain(bytes: &'a [u8]) -> Self {
        Self { bytes, is_compressed: false }
    }
}
