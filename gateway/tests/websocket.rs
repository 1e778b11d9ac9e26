//! WebSocket conformance of the connection: the cases of the Autobahn list over real sockets, on both drivers, with and
//! without TLS. The echo mode of the wire stands in for the application; everything else is the gateway as it runs.
//!
//! The numbers in comments are those of the list. Its sections 12 and 13 test compression, which is not offered.

#![allow(clippy::unwrap_used, reason = "a test that panics has failed, in its helpers too")]

#[path = "websocket/closing.rs"]
mod closing;
#[path = "websocket/fragments.rs"]
mod fragments;
#[path = "websocket/framing.rs"]
mod framing;
#[allow(dead_code, reason = "other tests use the rest of it")]
#[path = "support/local.rs"]
mod local;
#[path = "support/metrics.rs"]
mod metrics;
#[path = "websocket/origins.rs"]
mod origins;
#[path = "websocket/peer.rs"]
mod peer;
#[path = "websocket/sizes.rs"]
mod sizes;
#[path = "websocket/text.rs"]
mod text;
#[allow(dead_code, reason = "other tests use the rest of it")]
#[path = "support/tls.rs"]
mod tls;
