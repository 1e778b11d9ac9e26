//! TLS towards NATS: rustls driven over memory, between the socket's bytes and the protocol's.

use std::io::{self, Read, Write};
use std::sync::Arc;

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection};

/// One TLS session of ours towards a NATS server.
pub struct Tls {
    session: ClientConnection,
    plain: Vec<u8>,
}

/// Why TLS failed.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The host name cannot be one.
    #[error("{host:?} is not a name that a certificate can have")]
    Name {
        /// What stood in the URL.
        host: String,
    },
    /// Handshake, certificate or record.
    #[error("TLS with the NATS server: {0}")]
    Protocol(#[from] rustls::Error),
    /// Reading from or writing to memory failed, which only a defect can cause.
    #[error("TLS buffers: {0}")]
    Buffer(#[from] io::Error),
}

impl Tls {
    /// Begins a session; the hello is in the next [`Tls::take_output`].
    pub fn new(config: Arc<ClientConfig>, host: &str) -> Result<Self, TlsError> {
        let name = ServerName::try_from(host.to_owned())
            .map_err(|_| TlsError::Name { host: host.to_owned() })?;
        let mut session = ClientConnection::new(config, name)?;
        // A turn's lines are encrypted as a whole and taken out at once. What is unsent is bounded by the bus; the
        // default of 64 KiB would end the connection in a busy turn, or with one large message.
        session.set_buffer_limit(None);
        Ok(Self { session, plain: Vec::new() })
    }

    /// Whether the handshake is over.
    pub fn is_established(&self) -> bool {
        !self.session.is_handshaking()
    }

    /// Takes bytes from the socket; returns what they decrypt to.
    pub fn handle_bytes(&mut self, mut bytes: &[u8]) -> Result<&[u8], TlsError> {
        self.plain.clear();
        while !bytes.is_empty() {
            self.session.read_tls(&mut bytes)?;
            let state = self.session.process_new_packets()?;
            let pending = state.plaintext_bytes_to_read();
            if pending > 0 {
                let start = self.plain.len();
                self.plain.resize(start + pending, 0);
                let target = self.plain.get_mut(start..).unwrap_or_default();
                self.session.reader().read_exact(target)?;
            }
        }
        Ok(&self.plain)
    }

    /// Encrypts `plain`.
    pub fn encrypt(&mut self, plain: &[u8]) -> Result<(), TlsError> {
        self.session.writer().write_all(plain)?;
        Ok(())
    }

    /// Appends what is to be sent on the socket.
    pub fn take_output(&mut self, out: &mut Vec<u8>) -> Result<(), TlsError> {
        while self.session.wants_write() {
            self.session.write_tls(out)?;
        }
        Ok(())
    }
}
