//! The other transport: gRPC between servers, for clusters that run without NATS (cluster protocol 12).
//!
//! All servers of a cluster must choose the same transport, as in Pitaya. The messages are those of NATS, and everything
//! above [`crate::Link`] is the same.

mod address;
mod codec;
mod link;
mod running;
mod server;

pub(crate) use address::Announcement;
pub(crate) use link::{GrpcLink, LinkOptions};
pub(crate) use running::{GrpcSettings, run};
pub(crate) use server::Backend;
