//! The framework that game servers are written with: async handlers, extractors, groups, pushes.
//!
//! An application is built with [`App`] and either runs as a server of a Pitaya cluster (`App::run`) or inside
//! another process ([`App::embed`]). Below the builder, [`Service`] turns encoded requests into calls of handlers in
//! the order of their sessions; it knows no transport. [`Link`] is how it reaches other servers, and `nats` is the one
//! implementation of it here.

// The handlers macro names this crate by its name, also when it is used in here.
extern crate self as worker;

mod admin;
mod admission;
mod answer;
mod app;
mod call;
mod counters;
pub mod demo;
mod error;
mod extract;
mod for_many;
mod groups;
mod handler;
mod hooks;
mod jobs;
mod link;
mod metadata;
mod metrics;
pub mod nats;
mod overload;
mod panic;
mod payload;
pub mod prelude;
mod push;
mod queue;
mod raw;
mod routes;
mod run;
mod servers;
mod service;
mod session;
mod session_data;
mod settings;
mod state;

pub use admission::Limits;
pub use app::{App, ClusterView, Component};
pub use call::Call;
pub use counters::{Counter, Counters};
pub use error::{Error, Result, ResultExt};
pub use extract::{Ctx, FromCall};
pub use groups::{EtcdGroupsOptions, GROUP_NAME_BYTES_MAX, GroupStorage, Groups, check_group_name};
pub use handler::{FromLast, Handler, Kind, Output, ViaCall, ViaMessage};
pub use jobs::{JobOptions, Jobs, RetryOptions, go_bytes};
pub use link::{BoxFuture, Link, LinkError};
pub use payload::{Encode, Payload, Pb};
pub use push::Push;
pub use servers::{FixedServers, Servers};
pub use service::{Reply, Service};
pub use session::Session;
pub use state::{State, States};
pub use worker_macros::handlers;

/// Keeps the code in the README compiling.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
struct Readme;
