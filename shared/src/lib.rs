//! The pure protocol core of Dragonfruit: bytes and time in, bytes and events out.
//!
//! Nothing here opens a socket, reads a clock or awaits, except below the feature `cluster`, which holds the etcd
//! client and the service discovery that the control thread runs.

pub mod agent;
pub mod bans;
pub mod close;
#[cfg(feature = "cluster")]
pub mod cluster;
pub mod compression;
pub mod config;
pub mod dictionary;
pub mod error;
pub mod go;
pub mod handshake;
pub mod limiter;
pub mod message;
pub mod metadata;
pub mod metrics;
pub mod nats;
pub mod networks;
pub mod packet;
pub mod peer;
pub mod proxy;
pub mod rate;
pub mod route;
pub mod router;
pub mod routing;
pub mod secret;
pub mod server;
pub mod session;
mod varint;
pub mod websocket;
