//! The link: one NATS connection on the reactor's ring, from the connected socket to the wire.
//!
//! It joins the socket, TLS where that is asked for, and the pure protocol client. Connecting itself (names, waits,
//! the list of URLs) is the control thread's; the link asks for a socket and gets one. The invariant: at most one send
//! is under way, and lines leave in the order in which they were written.

use std::sync::Arc;

use shared::nats::client::{Client, Event, State};
use shared::nats::connect::ConnectOptions;

use super::NatsLines;
use super::tls::{Tls, TlsError};
use crate::driver::{Driver, Token};
use crate::outbox::BufferPool;

/// A NATS server that was connected to.
#[derive(Clone)]
pub struct NatsServer {
    /// Name, authentication, ping interval.
    pub options: Arc<ConnectOptions>,
    /// Host name, for TLS.
    pub host: String,
    /// For logs; no credentials in it.
    pub address: String,
}

/// One connection to NATS.
pub struct NatsLink {
    socket: Option<Socket>,
    /// Bytes of a send that was cut by a move; they are on the wire in part, so they go first, as they are.
    unsent: Vec<u8>,
    /// Bytes that came while the link was on its way to another reactor.
    held: Vec<u8>,
    tls_config: Arc<rustls::ClientConfig>,
}

struct Socket {
    token: Token,
    client: Client,
    tls: Option<Tls>,
    server: NatsServer,
    is_sending: bool,
}

/// Why a link ended.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The server ended the connection.
    #[error("the NATS server closed the connection")]
    Closed,
    /// The socket failed.
    #[error("the connection to the NATS server failed: {0}")]
    Io(#[from] std::io::Error),
    /// The server said something we do not take, or an error that ends the connection.
    #[error("{0}")]
    Protocol(String),
    /// TLS failed.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

impl NatsLink {
    /// A link without a socket.
    pub fn new(tls_config: Arc<rustls::ClientConfig>) -> Self {
        Self { socket: None, unsent: Vec::new(), held: Vec::new(), tls_config }
    }

    /// Takes a connected socket into use.
    pub fn connected(&mut self, token: Token, server: NatsServer) {
        let client = Client::new(server.options.clone());
        self.socket = Some(Socket { token, client, tls: None, server, is_sending: false });
    }

    /// The socket's place, while there is one.
    pub fn token(&self) -> Option<Token> {
        self.socket.as_ref().map(|socket| socket.token)
    }

    /// Follows the socket to another place.
    pub fn replace_token(&mut self, token: Token) {
        if let Some(socket) = &mut self.socket {
            socket.token = token;
        }
    }

    /// The server's address, for logs.
    pub fn address(&self) -> &str {
        self.socket.as_ref().map_or("", |socket| &socket.server.address)
    }

    /// Forgets the socket; the reactor closes it.
    pub fn disconnect(&mut self) -> Option<Token> {
        self.socket.take().map(|socket| socket.token)
    }

    /// Takes bytes from the socket; each event goes to `sink` in order.
    ///
    /// Errors: the link is to be given up.
    pub fn handle_bytes(
        &mut self,
        bytes: &[u8],
        sink: &mut impl FnMut(Event<'_>),
    ) -> Result<(), LinkError> {
        let Some(socket) = &mut self.socket else { return Ok(()) };
        let Socket { client, tls, .. } = socket;
        match tls {
            Some(tls) => {
                let was_established = tls.is_established();
                let plain = tls.handle_bytes(bytes)?;
                let plain_bytes = plain.len();
                if plain_bytes > 0 {
                    client.handle_bytes(plain, sink).map_err(protocol)?;
                }
                if !was_established && tls.is_established() {
                    client.handle_tls_established().map_err(protocol)?;
                }
            }
            None => client.handle_bytes(bytes, sink).map_err(protocol)?,
        }
        socket.begin_tls(&self.tls_config)
    }

    /// The protocol client, while there is a socket.
    pub fn client(&mut self) -> Option<&mut Client> {
        self.socket.as_mut().map(|socket| &mut socket.client)
    }

    /// Keeps the connection alive, or finds it dead.
    pub fn handle_tick(&mut self, now_ms: u64) -> Result<(), LinkError> {
        let Some(socket) = &mut self.socket else { return Ok(()) };
        socket.client.handle_tick(now_ms).map_err(protocol)
    }

    /// Sends the lines of this turn, unless a send is under way; then they wait for its end.
    pub fn flush(
        &mut self,
        lines: &mut NatsLines,
        driver: &mut Driver,
        pool: &mut BufferPool,
    ) -> Result<(), LinkError> {
        let Some(socket) = &mut self.socket else {
            lines.out.clear();
            return Ok(());
        };
        if socket.is_sending {
            return Ok(());
        }
        let mut buffer = pool.take();
        buffer.append(&mut self.unsent);
        socket.collect(lines, &mut buffer)?;
        if buffer.is_empty() {
            pool.give(buffer);
            return Ok(());
        }
        lines.unsent_bytes = buffer.len();
        socket.is_sending = true;
        driver.send(socket.token, buffer, 0);
        Ok(())
    }

    /// Takes a buffer back; what the kernel did not take goes out again.
    pub fn handle_sent(
        &mut self,
        buffer: Vec<u8>,
        sent_bytes: usize,
        lines: &mut NatsLines,
        driver: &mut Driver,
        pool: &mut BufferPool,
    ) -> Result<(), LinkError> {
        let Some(socket) = &mut self.socket else { return Ok(()) };
        lines.unsent_bytes -= sent_bytes.min(lines.unsent_bytes);
        if lines.unsent_bytes > 0 {
            let start = buffer.len() - lines.unsent_bytes;
            driver.send(socket.token, buffer, start);
            return Ok(());
        }
        pool.give(buffer);
        socket.is_sending = false;
        self.flush(lines, driver, pool)
    }

    /// Keeps bytes of a link that is being moved.
    pub fn hold(&mut self, bytes: &[u8]) {
        self.held.extend_from_slice(bytes);
    }

    /// What came while the link was on its way.
    pub fn take_held(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.held)
    }

    /// Stops sending for a move; `remainder` is what was not sent of the last buffer.
    pub fn freeze(&mut self, remainder: &[u8], lines: &mut NatsLines) {
        if let Some(socket) = &mut self.socket {
            socket.is_sending = false;
        }
        lines.unsent_bytes = 0;
        self.unsent = remainder.to_vec();
    }
}

impl Socket {
    /// Protocol answers first, then the turn's lines, then the question whose answer proves that the server has taken in
    /// those lines. Before the server has accepted us there is only the protocol: a line before CONNECT would end the
    /// connection, and before TLS would be readable. What was written until then is dropped, because all subscriptions
    /// are written anew.
    fn collect(&mut self, lines: &mut NatsLines, buffer: &mut Vec<u8>) -> Result<(), LinkError> {
        if self.tls.as_ref().is_none_or(Tls::is_established) {
            let is_accepted = self.client.state() == State::Ready;
            let wants_barrier = std::mem::take(&mut lines.wants_barrier);
            let mut plain = std::mem::take(self.client.out());
            if is_accepted {
                move_behind(&mut plain, &mut lines.out);
            }
            if is_accepted && wants_barrier {
                lines.barrier = Some(self.client.ping());
                plain.append(self.client.out());
            }
            match &mut self.tls {
                None => move_behind(buffer, &mut plain),
                Some(tls) => tls.encrypt(&plain)?,
            }
            plain.clear();
            *self.client.out() = plain;
        }
        if self.client.state() != State::Ready {
            lines.out.clear();
        }
        if let Some(tls) = &mut self.tls {
            tls.take_output(buffer)?;
        }
        Ok(())
    }

    fn begin_tls(&mut self, config: &Arc<rustls::ClientConfig>) -> Result<(), LinkError> {
        if self.tls.is_none() && self.client.state() == State::TlsRequired {
            self.tls = Some(Tls::new(config.clone(), &self.server.host)?);
        }
        Ok(())
    }
}

/// Moves bytes to the end of a buffer. Nearly always that buffer is empty, and then the two change places: the lines of
/// a turn reach the socket without being copied.
fn move_behind(buffer: &mut Vec<u8>, bytes: &mut Vec<u8>) {
    if buffer.is_empty() {
        std::mem::swap(buffer, bytes);
    } else {
        buffer.append(bytes);
    }
}

fn protocol(error: impl std::fmt::Display) -> LinkError {
    LinkError::Protocol(error.to_string())
}
