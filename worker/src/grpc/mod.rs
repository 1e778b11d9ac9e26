//! The other transport: gRPC between servers, for clusters that run without NATS (cluster protocol 12).
//!
//! All servers of a cluster must choose the same transport, as in Pitaya. The messages are those of NATS, and everything
//! above [`crate::Link`] is the same. A gateway uses the link, the service and the settings, and answers itself.

mod address;
mod backend;
mod codec;
mod link;
mod running;
mod server;
mod settings;

pub use address::Announcement;
pub(crate) use backend::Backend;
pub use link::{GrpcLink, LinkOptions};
pub(crate) use running::run;
pub use server::{Answering, Method, serve};
pub use settings::GrpcSettings;
pub use tonic::Status;

/// What the other side may send in one message, and the largest answer: gRPC's default, and Pitaya's.
pub const MESSAGE_BYTES_MAX: usize = 4 << 20;
