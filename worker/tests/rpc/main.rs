//! Calls between servers, over a real nats-server and etcd.

#![allow(clippy::unwrap_used)] // A panic is how a test fails.

#[path = "../../../shared/tests/servers/mod.rs"]
mod servers;

mod calls;
mod failures;
mod routing;
mod world;
