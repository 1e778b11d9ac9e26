//! The client side of the NATS protocol, without sockets and without a clock.
//!
//! The gateway keeps one NATS connection a reactor, on the reactor's own ring; this is what it says and understands
//! there. [`parser`] splits received bytes into operations, [`encoder`] appends operations to a buffer, [`connect`]
//! knows addresses, credentials and the greeting, and [`client`] is the state machine of one connection that ties
//! them together. Reconnecting, subscriptions and pending requests belong to the owner of the connection.

pub mod client;
pub mod connect;
pub mod encoder;
pub mod error;
pub mod info;
pub mod parser;
pub mod url;

pub use client::{Barrier, Client, Event, FrozenClient, OutstandingPing, State};
pub use connect::{Auth, ConnectError, ConnectOptions, Secret, connect_line};
pub use error::ClientError;
pub use info::{InfoError, ServerInfo};
pub use parser::{Msg, ParseError, ParseLimits, ServerOp};
pub use url::{NatsUrl, UrlError};

/// Payload limit that is assumed until the server has announced its own, which is also its usual value, in bytes.
pub const PAYLOAD_BYTES_DEFAULT: usize = 1024 * 1024;
/// Longest protocol line that nats-server takes unless it is configured otherwise, in bytes (cluster protocol 4.4).
pub const CONTROL_LINE_BYTES: usize = 4096;
/// Status of a message that says that nobody subscribes to a request's subject (cluster protocol 4.3).
pub const STATUS_NO_RESPONDERS: u16 = 503;
