//! A client of Pitaya and Dragonfruit servers.
//!
//! [`Client`] is for applications and bots: async, many requests side by side, pushes as they come. [`raw::RawClient`]
//! is for tests of servers: blocking, every packet by hand. Both speak TCP and WebSocket through the codecs of
//! `shared`, which [`framing`] joins; the binary adds an interactive client and a load generator.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use client::{Client, ConnectOptions};
//!
//! let client = Client::connect("ws://localhost:3251", ConnectOptions::default()).await?;
//! let mut messages = client.subscribe("onMessage");
//! let joined = client.request("room.room.join", b"{}").await?;
//! client.notify("room.room.message", br#"{"name":"ada","content":"hi"}"#).await?;
//! let push = messages.next().await;
//! # Ok(())
//! # }
//! ```

pub mod address;
mod client;
mod connection;
mod error;
pub mod framing;
pub mod load;
mod protobuf;
pub mod raw;
pub mod repl;
pub mod tls;
pub mod upgrade;

pub use client::{Client, ConnectOptions, Push, PushReceiver};
pub use error::{CODE_TIMEOUT, CloseCause, ConnectError, RequestError, decode_error};
pub use shared::handshake::{HandshakeRequest, HandshakeResponse, HandshakeSys};
