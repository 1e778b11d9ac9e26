//! A blocking client that lets everything be sent and shows everything that comes: for tests of servers.
//!
//! It does nothing by itself: no heartbeat, no acknowledgement, no reconnect. Only WebSocket pings are answered, since
//! a server may close over a missing pong. Every read has a deadline and says what it waited for when that passes.
//! Not for production: it copies each packet, and one thread serves one connection.

mod received;
mod stream;

use std::collections::VecDeque;
use std::io;
use std::net::{TcpStream, ToSocketAddrs};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::{ClientConfig, ClientConnection};
use shared::compression::Inflater;
use shared::dictionary::Dictionary;
use shared::handshake::{self, HandshakeResponse};
use shared::message::{self, Head, MessageType};
use shared::packet::{self, PacketType};
use shared::websocket::Opcode;

use crate::address::Transport;
use crate::framing::{self, Framing, Received};
use crate::upgrade::UpgradeRequest;

use stream::Stream;

pub use received::{Closed, OwnedMessage, OwnedPacket, RawError};

/// Longest wait of the methods that take no deadline.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(5);

const READ_BYTES: usize = 64 * 1024;

/// One blocking connection.
#[derive(Debug)]
pub struct RawClient {
    stream: Stream,
    framing: Framing,
    dictionary: Dictionary,
    inflater: Inflater,
    packets: VecDeque<OwnedPacket>,
    pushes: VecDeque<OwnedMessage>,
    closed: Option<Closed>,
    read_buffer: Vec<u8>,
    last_id: u64,
    timeout: Duration,
}

impl RawClient {
    /// Opens a plain TCP connection; nothing is sent.
    pub fn connect_tcp(server: impl ToSocketAddrs) -> Result<Self, RawError> {
        let socket = open(server)?;
        Self::over(socket, Transport::Tcp)
    }

    /// Opens a TCP connection and upgrades it at `path` (begins with `/`).
    pub fn connect_ws(server: impl ToSocketAddrs, path: &str) -> Result<Self, RawError> {
        let client = Self::connect_tcp(server)?;
        let authority = client.socket().peer_addr()?.to_string();
        client.upgrade(&UpgradeRequest::new(&authority, path))
    }

    /// Opens a connection with this transport, at path `/` for WebSocket.
    pub fn connect(transport: Transport, server: impl ToSocketAddrs) -> Result<Self, RawError> {
        match transport {
            Transport::Tcp => Self::connect_tcp(server),
            Transport::WebSocket => Self::connect_ws(server, "/"),
        }
    }

    /// Takes a connected socket over. For WebSocket the upgrade must be done already.
    pub fn over(socket: TcpStream, transport: Transport) -> Result<Self, RawError> {
        socket.set_nodelay(true)?;
        socket.set_write_timeout(Some(DEFAULT_TIMEOUT))?;
        Ok(Self {
            stream: Stream::Plain(socket),
            framing: Framing::new(transport, packet::BODY_BYTES_MAX),
            dictionary: Dictionary::default(),
            inflater: Inflater::new(),
            packets: VecDeque::new(),
            pushes: VecDeque::new(),
            closed: None,
            read_buffer: vec![0; READ_BYTES],
            last_id: 0,
            timeout: DEFAULT_TIMEOUT,
        })
    }

    /// Speaks TLS from here on, with a server whose certificate is for `name`; what was sent before, such as a PROXY
    /// header, stays in front of it.
    pub fn secure(mut self, config: Arc<ClientConfig>, name: &str) -> Result<Self, RawError> {
        self.socket().set_read_timeout(Some(self.timeout))?;
        self.stream = self.stream.secure(config, name)?;
        Ok(self)
    }

    /// The TLS session, after [`Self::secure`], for what only tests do with one.
    pub fn tls(&mut self) -> Option<&mut ClientConnection> {
        self.stream.tls()
    }

    /// Turns a TCP connection into a WebSocket, with a request of the caller's choice; what was sent before, such as a
    /// PROXY header, stays in front of it.
    pub fn upgrade(mut self, request: &UpgradeRequest) -> Result<Self, RawError> {
        self.send_bytes(request.bytes())?;
        let deadline = Instant::now() + self.timeout;
        let mut received = Vec::new();
        let head_bytes = loop {
            let read_bytes = self.read_some("upgrade", self.timeout, deadline)?;
            received.extend_from_slice(self.read_buffer.get(..read_bytes).unwrap_or_default());
            if let Some(head_bytes) = request.handle_response(&received)? {
                break head_bytes;
            }
        };
        received.drain(..head_bytes);
        self.framing = Framing::new(Transport::WebSocket, packet::BODY_BYTES_MAX);
        self.handle_bytes(&mut received)?;
        Ok(self)
    }

    /// Longest wait of the methods that take no deadline.
    pub fn set_timeout(&mut self, timeout: Duration) {
        self.timeout = timeout;
    }

    /// The socket, for options and for reading or writing past everything here.
    pub fn socket(&self) -> &TcpStream {
        self.stream.socket()
    }

    /// The routes that both sides shorten, after a handshake; may be changed by a test.
    pub fn dictionary_mut(&mut self) -> &mut Dictionary {
        &mut self.dictionary
    }

    /// Sends the default handshake and reads the answer, whatever its code. The announced dictionary is used from
    /// here on. Does not acknowledge.
    pub fn handshake(&mut self) -> Result<HandshakeResponse, RawError> {
        self.handshake_with(br#"{"sys":{"platform":"test","libVersion":"1"},"user":{}}"#)
    }

    /// The same with a body of the caller's choice.
    pub fn handshake_with(&mut self, body: &[u8]) -> Result<HandshakeResponse, RawError> {
        self.send_packet(PacketType::Handshake, body)?;
        self.read_handshake_response(self.timeout)
    }

    /// Reads the answer to a handshake that was sent otherwise.
    pub fn read_handshake_response(
        &mut self,
        within: Duration,
    ) -> Result<HandshakeResponse, RawError> {
        let packet = self.read_awaited("handshake response", within)?;
        if packet.kind != PacketType::Handshake {
            return Err(RawError::Unexpected { got: packet, awaited: "handshake response" });
        }
        let response = handshake::decode_response(&packet.body)?;
        self.dictionary = response.dictionary.clone();
        Ok(response)
    }

    /// Sends the acknowledgement.
    pub fn ack(&mut self) -> Result<(), RawError> {
        self.send_packet(PacketType::HandshakeAck, &[])
    }

    /// Handshake and acknowledgement.
    pub fn establish(&mut self) -> Result<HandshakeResponse, RawError> {
        let response = self.handshake()?;
        self.ack()?;
        Ok(response)
    }

    /// Sends a heartbeat.
    pub fn heartbeat(&mut self) -> Result<(), RawError> {
        self.send_packet(PacketType::Heartbeat, &[])
    }

    /// Sends a packet, in a frame of its own on WebSocket.
    pub fn send_packet(&mut self, kind: PacketType, body: &[u8]) -> Result<(), RawError> {
        let mut out = Vec::with_capacity(packet::HEADER_BYTES + body.len());
        framing::append_packet(self.framing.transport(), kind, body, &mut out)?;
        self.send_bytes(&out)
    }

    /// Sends a Data packet with this message; the payload goes out as it is.
    pub fn send_message(&mut self, head: &Head<'_>, payload: &[u8]) -> Result<(), RawError> {
        let mut out = Vec::new();
        framing::append_message(
            self.framing.transport(),
            head,
            payload,
            &self.dictionary,
            &mut out,
        )?;
        self.send_bytes(&out)
    }

    /// Sends a request with the next id, which it returns.
    pub fn send_request(&mut self, route: &str, payload: &[u8]) -> Result<u64, RawError> {
        self.last_id += 1;
        let id = self.last_id;
        self.send_message(&head(MessageType::Request, id, route), payload)?;
        Ok(id)
    }

    /// Sends a notify.
    pub fn notify(&mut self, route: &str, payload: &[u8]) -> Result<(), RawError> {
        self.send_message(&head(MessageType::Notify, 0, route), payload)
    }

    /// Writes bytes to the socket, below packets and frames.
    pub fn send_bytes(&mut self, bytes: &[u8]) -> Result<(), RawError> {
        Ok(self.stream.write_all(bytes)?)
    }

    /// Next bytes of the socket, at least one, below packets and frames: for answers that are neither. What was read
    /// before as part of packets is not among them.
    pub fn read_bytes(&mut self, within: Duration) -> Result<Vec<u8>, RawError> {
        let read_bytes = self.read_some("bytes", within, Instant::now() + within)?;
        Ok(self.read_buffer.get(..read_bytes).unwrap_or_default().to_vec())
    }

    /// Sends one masked WebSocket frame with any content.
    pub fn send_frame(&mut self, opcode: Opcode, content: &[u8]) -> Result<(), RawError> {
        let mut out = Vec::new();
        framing::append_frame(opcode, content, &mut out);
        self.send_bytes(&out)
    }

    /// Ends the own direction (close_notify where there is TLS, and FIN); reading goes on.
    pub fn finish_writing(&mut self) -> Result<(), RawError> {
        Ok(self.stream.finish_writing()?)
    }

    /// Sends a request and reads up to its response, error responses included. Heartbeats are skipped, pushes kept
    /// for [`Self::read_push`]; a response with another id is an error.
    pub fn request(&mut self, route: &str, payload: &[u8]) -> Result<OwnedMessage, RawError> {
        let id = self.send_request(route, payload)?;
        self.read_response(id, self.timeout)
    }

    /// Reads up to the response with this id, as [`Self::request`] does.
    pub fn read_response(&mut self, id: u64, within: Duration) -> Result<OwnedMessage, RawError> {
        let deadline = Instant::now() + within;
        loop {
            let (message, packet) = self.read_data("response", within, deadline)?;
            match message.kind {
                MessageType::Push => self.pushes.push_back(message),
                MessageType::Response if message.id == id => return Ok(message),
                _ => return Err(RawError::Unexpected { got: packet, awaited: "response" }),
            }
        }
    }

    /// Next push, those met by [`Self::request`] first.
    pub fn read_push(&mut self, within: Duration) -> Result<OwnedMessage, RawError> {
        if let Some(push) = self.pushes.pop_front() {
            return Ok(push);
        }
        let (message, packet) = self.read_data("push", within, Instant::now() + within)?;
        if message.kind != MessageType::Push {
            return Err(RawError::Unexpected { got: packet, awaited: "push" });
        }
        Ok(message)
    }

    /// Next message of any type in the order of arrival; heartbeats are skipped.
    pub fn read_message(&mut self, within: Duration) -> Result<OwnedMessage, RawError> {
        Ok(self.read_data("message", within, Instant::now() + within)?.0)
    }

    /// Next packet, of any type.
    pub fn read_packet(&mut self, within: Duration) -> Result<OwnedPacket, RawError> {
        self.read_awaited("packet", within)
    }

    /// Reads to the end of the connection; a packet before it, other than a heartbeat, is an error.
    pub fn expect_close(&mut self, within: Duration) -> Result<Closed, RawError> {
        let (packets, closed) = self.read_to_close(within)?;
        match packets.into_iter().find(|packet| packet.kind != PacketType::Heartbeat) {
            Some(got) => Err(RawError::Unexpected { got, awaited: "close" }),
            None => Ok(closed),
        }
    }

    /// Reads a kick, then the end of the connection.
    pub fn expect_kick(&mut self, within: Duration) -> Result<Closed, RawError> {
        let deadline = Instant::now() + within;
        loop {
            let packet = self.read_until("kick", within, deadline)?;
            match packet.kind {
                PacketType::Heartbeat => {}
                PacketType::Kick => return self.expect_close(within),
                _ => return Err(RawError::Unexpected { got: packet, awaited: "kick" }),
            }
        }
    }

    /// Reads to the end of the connection: every packet before it, and how it ended.
    pub fn read_to_close(
        &mut self,
        within: Duration,
    ) -> Result<(Vec<OwnedPacket>, Closed), RawError> {
        let deadline = Instant::now() + within;
        let mut packets = Vec::new();
        loop {
            match self.read_until("close", within, deadline) {
                Ok(packet) => packets.push(packet),
                Err(RawError::Closed(closed, _)) => return Ok((packets, closed)),
                Err(error) => return Err(error),
            }
        }
    }

    /// Fails if anything but a heartbeat, or the end, comes within this time. The one method that waits it out.
    pub fn expect_silence(&mut self, duration: Duration) -> Result<(), RawError> {
        let deadline = Instant::now() + duration;
        loop {
            match self.read_until("silence", duration, deadline) {
                Ok(packet) if packet.kind == PacketType::Heartbeat => {}
                Ok(got) => return Err(RawError::Unexpected { got, awaited: "silence" }),
                Err(RawError::Timeout { .. }) => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }

    fn read_data(
        &mut self,
        awaited: &'static str,
        within: Duration,
        deadline: Instant,
    ) -> Result<(OwnedMessage, OwnedPacket), RawError> {
        loop {
            let packet = self.read_until(awaited, within, deadline)?;
            match packet.kind {
                PacketType::Heartbeat => {}
                PacketType::Data => return Ok((self.own_message(&packet.body)?, packet)),
                _ => return Err(RawError::Unexpected { got: packet, awaited }),
            }
        }
    }

    fn own_message(&mut self, body: &[u8]) -> Result<OwnedMessage, RawError> {
        let message = message::decode(body, &self.dictionary)?;
        let payload = if message.is_compressed {
            self.inflater.inflate(message.payload, packet::BODY_BYTES_MAX)?
        } else {
            message.payload
        };
        Ok(OwnedMessage {
            kind: message.kind,
            id: message.id,
            route: String::from_utf8_lossy(message.route).into_owned(),
            payload: payload.to_vec(),
            is_compressed: message.is_compressed,
            is_error: message.is_error,
        })
    }

    fn read_awaited(
        &mut self,
        awaited: &'static str,
        within: Duration,
    ) -> Result<OwnedPacket, RawError> {
        self.read_until(awaited, within, Instant::now() + within)
    }

    fn read_until(
        &mut self,
        awaited: &'static str,
        within: Duration,
        deadline: Instant,
    ) -> Result<OwnedPacket, RawError> {
        loop {
            if let Some(packet) = self.packets.pop_front() {
                return Ok(packet);
            }
            let read_bytes = self.read_some(awaited, within, deadline)?;
            let mut bytes = std::mem::take(&mut self.read_buffer);
            let result = self.handle_bytes(bytes.get_mut(..read_bytes).unwrap_or_default());
            self.read_buffer = bytes;
            result?;
        }
    }

    /// Reads at least one byte into the read buffer.
    fn read_some(
        &mut self,
        awaited: &'static str,
        within: Duration,
        deadline: Instant,
    ) -> Result<usize, RawError> {
        if let Some(closed @ (Closed::Finished | Closed::Cut | Closed::Reset)) = self.closed {
            return Err(RawError::Closed(closed, awaited));
        }
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(RawError::Timeout { awaited, within });
            }
            self.socket().set_read_timeout(Some(left))?;
            let end = match self.stream.read(&mut self.read_buffer) {
                Ok(0) => Closed::Finished,
                Ok(read_bytes) => return Ok(read_bytes),
                Err(error) => match error.kind() {
                    io::ErrorKind::Interrupted
                    | io::ErrorKind::WouldBlock
                    | io::ErrorKind::TimedOut => continue,
                    io::ErrorKind::ConnectionReset => Closed::Reset,
                    io::ErrorKind::UnexpectedEof => Closed::Cut,
                    _ => return Err(error.into()),
                },
            };
            // A close frame says more than the FIN behind it.
            let closed = *self.closed.get_or_insert(end);
            return Err(RawError::Closed(closed, awaited));
        }
    }

    fn handle_bytes(&mut self, bytes: &mut [u8]) -> Result<(), RawError> {
        let mut out = Vec::new();
        let (packets, closed) = (&mut self.packets, &mut self.closed);
        self.framing.handle_bytes(bytes, &mut out, &mut |received| match received {
            Received::Packet(packet) => {
                packets.push_back(OwnedPacket { kind: packet.kind, body: packet.body.to_vec() });
            }
            Received::Close { code } => *closed = Some(Closed::CloseFrame { code }),
        })?;
        // The server may be gone already when the answer to its ping or close is written.
        let _ = if out.is_empty() { Ok(()) } else { self.stream.write_all(&out) };
        Ok(())
    }
}

/// The head of an uncompressed message.
pub fn head(kind: MessageType, id: u64, route: &str) -> Head<'_> {
    Head { kind, id, route, is_compressed: false, is_error: false }
}

fn open(server: impl ToSocketAddrs) -> Result<TcpStream, RawError> {
    let mut failure = io::Error::new(io::ErrorKind::InvalidInput, "no address");
    for address in server.to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, DEFAULT_TIMEOUT) {
            Ok(socket) => return Ok(socket),
            Err(error) => failure = error,
        }
    }
    Err(failure.into())
}
