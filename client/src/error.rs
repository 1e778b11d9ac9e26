//! What can go wrong for somebody who uses the client, and what a server's error body says.

use std::io;
use std::sync::Arc;

use shared::error::{Error, Serializer, code};
use shared::handshake::HandshakeError;

use crate::address::AddressError;
use crate::framing::{EncodeError, FramingError};
use crate::upgrade::UpgradeError;

/// Code of a request that this client gave up on (client protocol 14.4).
pub const CODE_TIMEOUT: &str = "PIT-504";

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The text is no address.
    #[error(transparent)]
    Address(#[from] AddressError),
    /// The socket could not be opened or failed.
    #[error("cannot connect: {0}")]
    Io(#[from] io::Error),
    /// Connecting and the handshake took longer than [`crate::ConnectOptions::connect_timeout`].
    #[error("no connection within {0:?}")]
    Timeout(std::time::Duration),
    /// The server refused the WebSocket upgrade.
    #[error(transparent)]
    Upgrade(#[from] UpgradeError),
    /// The server closed before it answered the handshake.
    #[error("the server closed the connection during the handshake")]
    Closed,
    /// The server's bytes are broken.
    #[error(transparent)]
    Framing(#[from] FramingError),
    /// Another packet came first.
    #[error("the server answered the handshake with another packet")]
    UnexpectedPacket,
    /// The handshake's answer cannot be read.
    #[error("the handshake response cannot be read: {0}")]
    Handshake(#[from] HandshakeError),
    /// The server refused the handshake: 400 from Pitaya.
    #[error("the server refused the handshake with code {code}")]
    Refused {
        /// The code.
        code: u16,
    },
    /// The handshake data does not fit a packet.
    #[error(transparent)]
    Encode(#[from] EncodeError),
}

/// How a connection ended; cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CloseCause {
    /// [`crate::Client::disconnect`], or the last handle was dropped.
    #[error("disconnected by this client")]
    Disconnected,
    /// A kick: the server does not want this client back. The body is empty with Pitaya.
    #[error("kicked by the server")]
    Kicked {
        /// Body of the kick packet.
        reason: Arc<[u8]>,
    },
    /// The server closed the stream.
    #[error("the server closed the connection")]
    Ended,
    /// The server closed the WebSocket.
    #[error("the server closed the WebSocket with code {code:?}")]
    CloseFrame {
        /// Status code.
        code: Option<u16>,
    },
    /// Nothing came for too many heartbeat intervals.
    #[error("the server fell silent")]
    Silent,
    /// The socket failed.
    #[error("the connection failed: {0}")]
    Failed(Arc<str>),
    /// The server sent what the protocol does not allow.
    #[error("the server broke the protocol: {0}")]
    Broken(Arc<str>),
}

/// Why a request has no answer.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// The server answered with an error body.
    #[error("{0}")]
    Reply(Error),
    /// No answer in time; reported as `PIT-504`, as the Go client does.
    #[error("{CODE_TIMEOUT}: request timeout")]
    Timeout,
    /// The connection ended first.
    #[error(transparent)]
    Closed(#[from] CloseCause),
    /// The request cannot be encoded; nothing was sent.
    #[error(transparent)]
    Encode(#[from] EncodeError),
}

impl RequestError {
    /// A short name to count failures by: the server's code, `PIT-504`, `closed` or `encode`.
    pub fn code(&self) -> &str {
        match self {
            Self::Reply(error) => &error.code,
            Self::Timeout => CODE_TIMEOUT,
            Self::Closed(_) => "closed",
            Self::Encode(_) => "encode",
        }
    }
}

/// Reads an error body (client protocol 14.3) by the serializer that the server announced, or else by the other one:
/// frontends and backends may differ. A body in neither form becomes the text of an unknown error.
pub fn decode_error(body: &[u8], serializer: &str) -> Error {
    let (first, second) = if serializer == Serializer::Protobuf.name() {
        (Serializer::Protobuf, Serializer::Json)
    } else {
        (Serializer::Json, Serializer::Protobuf)
    };
    match first.decode_error(body).or_else(|_| second.decode_error(body)) {
        Ok(error) => error,
        Err(_) => Error::new(code::UNKNOWN, String::from_utf8_lossy(body)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn error_bodies_of_both_serializers_say_the_same() {
        let json = br#"{"code":"PIT-500","msg":"x","metadata":{"k":"v"}}"#;
        let protobuf = b"\x0a\x07PIT-500\x12\x01x\x1a\x06\x0a\x01k\x12\x01v";
        for (body, serializer) in [(&json[..], "json"), (&protobuf[..], "protobuf")] {
            let error = decode_error(body, serializer);
            assert_eq!((error.code.as_ref(), error.msg.as_str()), ("PIT-500", "x"));
            assert_eq!(error.metadata.get("k").map(String::as_str), Some("v"));
            assert_eq!(decode_error(body, "other"), error);
            assert_eq!(decode_error(body, "protobuf"), error);
        }
    }

    #[test]
    fn an_unreadable_error_body_becomes_an_unknown_error() {
        let error = decode_error(b"oops", "json");
        assert_eq!((error.code.as_ref(), error.msg.as_str()), ("PIT-000", "oops"));
        assert_eq!(decode_error(b"{}", "json").code, "PIT-000");
        assert_eq!(decode_error(b"", "protobuf").code, "PIT-000");
    }
}
