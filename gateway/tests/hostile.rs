//! What a gateway on the open internet has to take: attacks on a standalone gateway, on both drivers.
//!
//! One module a family of attacks. In all of them well-behaved clients play on the attacked gateway meanwhile and must
//! be answered without exception, and afterwards the process must hold no socket more than before (field.rs).
//! What needs limits of descriptors, the log or the memory of a process attacks the `gateway` binary (process.rs).

#![allow(clippy::unwrap_used, reason = "a test that panics has failed, in its helpers too")]

#[path = "hostile/accounting.rs"]
mod accounting;
#[path = "support/administrator.rs"]
mod administrator;
#[path = "hostile/bans.rs"]
mod bans;
#[path = "hostile/deadlines.rs"]
mod deadlines;
#[path = "hostile/expiry.rs"]
mod expiry;
#[path = "hostile/faults.rs"]
mod faults;
#[path = "hostile/field.rs"]
mod field;
#[path = "hostile/floods.rs"]
mod floods;
#[path = "hostile/frames.rs"]
mod frames;
#[path = "hostile/framing.rs"]
mod framing;
#[path = "../../shared/tests/servers/guarded.rs"]
mod guarded;
#[path = "hostile/handshakes.rs"]
mod handshakes;
#[path = "hostile/identity.rs"]
mod identity;
#[path = "hostile/limits.rs"]
mod limits;
#[allow(dead_code, reason = "other tests use the rest of it")]
#[path = "support/local.rs"]
mod local;
#[path = "hostile/messages.rs"]
mod messages;
#[path = "support/metrics.rs"]
mod metrics;
#[path = "hostile/process.rs"]
mod process;
#[path = "hostile/proxies.rs"]
mod proxies;
#[path = "hostile/readers.rs"]
mod readers;
#[path = "hostile/reloads.rs"]
mod reloads;
#[path = "hostile/resources.rs"]
mod resources;
#[path = "hostile/routes.rs"]
mod routes;
#[path = "hostile/scarcity.rs"]
mod scarcity;
#[path = "hostile/secured.rs"]
mod secured;
#[path = "hostile/stopping.rs"]
mod stopping;
#[allow(dead_code, reason = "other tests use the rest of it")]
#[path = "support/tls.rs"]
mod tls;
#[path = "hostile/upgrades.rs"]
mod upgrades;
