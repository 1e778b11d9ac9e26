//! What a raw client hands out: copies of packets and messages, and how things ended.

use std::io;
use std::time::Duration;

use shared::compression::InflateError;
use shared::handshake::HandshakeError;
use shared::message::{MessageError, MessageType};
use shared::packet::PacketType;

use crate::framing::{EncodeError, FramingError};
use crate::upgrade::UpgradeError;

/// A packet, copied out of the stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnedPacket {
    /// Type.
    pub kind: PacketType,
    /// Body, as received.
    pub body: Vec<u8>,
}

/// A message, with its payload inflated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnedMessage {
    /// Type.
    pub kind: MessageType,
    /// Request id; 0 on notifies and pushes.
    pub id: u64,
    /// Route after the dictionary; empty on responses.
    pub route: String,
    /// Payload, inflated.
    pub payload: Vec<u8>,
    /// Whether it travelled compressed.
    pub is_compressed: bool,
    /// Whether a response carries an error body.
    pub is_error: bool,
}

impl OwnedMessage {
    /// The payload as text, with what is not UTF-8 replaced.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.payload).into_owned()
    }
}

/// How the server ended the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Closed {
    /// FIN, with nothing said before it.
    Finished,
    /// WebSocket close frame.
    CloseFrame {
        /// Its status code.
        code: Option<u16>,
    },
    /// FIN inside a TLS session, without its close_notify.
    Cut,
    /// RST.
    Reset,
}

/// Why a step failed.
#[derive(Debug, thiserror::Error)]
pub enum RawError {
    /// The deadline passed.
    #[error("no {awaited} within {within:?}")]
    Timeout {
        /// What was waited for.
        awaited: &'static str,
        /// How long.
        within: Duration,
    },
    /// The server closed first.
    #[error("the connection ended ({0:?}) before the awaited {1}")]
    Closed(Closed, &'static str),
    /// Another packet than the awaited one.
    #[error("got {got:?} instead of {awaited}")]
    Unexpected {
        /// What came.
        got: OwnedPacket,
        /// What was waited for.
        awaited: &'static str,
    },
    /// The socket failed otherwise.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The upgrade was refused.
    #[error(transparent)]
    Upgrade(#[from] UpgradeError),
    /// The server's bytes are broken.
    #[error(transparent)]
    Framing(#[from] FramingError),
    /// The handshake response is broken.
    #[error("the handshake response cannot be read: {0}")]
    Handshake(#[from] HandshakeError),
    /// The message in a Data packet is broken.
    #[error("the server sent a broken message: {0}")]
    Message(#[from] MessageError),
    /// A payload cannot be inflated.
    #[error("the server sent a broken compressed payload: {0}")]
    Inflate(#[from] InflateError),
    /// What was to be sent cannot be encoded; send it with [`RawClient::send_bytes`](super::RawClient::send_bytes).
    #[error(transparent)]
    Encode(#[from] EncodeError),
}
