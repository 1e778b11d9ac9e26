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
mod app_parts;
mod binary_module;
mod call;
mod call_times;
mod counters;
pub mod demo;
mod docs;
mod error;
mod extract;
mod for_many;
mod groups;
pub mod grpc;
mod handler;
mod handshake;
mod hooks;
mod jobs;
mod link;
mod listeners;
pub mod log_writer;
mod metadata;
mod metrics;
mod modules;
mod names;
pub mod nats;
mod overload;
mod panic;
mod payload;
mod peers;
mod pipeline;
pub mod prelude;
mod push;
mod queue;
mod raw;
mod request;
mod routes;
mod rpc;
mod run;
mod servers;
mod service;
mod session;
mod session_data;
mod session_events;
mod session_hooks;
mod session_remote;
mod settings;
mod shape;
mod state;
mod timers;
mod validation;

pub use admission::Limits;
pub use app::{App, ClusterView, Component};
pub use binary_module::BinaryModule;
pub use call::Call;
pub use counters::{Counter, Counters};
pub use error::{Error, Result, ResultExt};
pub use extract::{Ctx, FromCall};
pub use groups::{EtcdGroupsOptions, GROUP_NAME_BYTES_MAX, GroupStorage, Groups, check_group_name};
pub use handler::{FromLast, Handler, Kind, Output, ViaCall, ViaMessage};
pub use handshake::{Check, Handshake, HandshakeSys, version_at_least};
pub use jobs::{JobOptions, Jobs, RetryOptions, go_bytes};
pub use link::{BoxFuture, Link, LinkError};
pub use listeners::{DownCause, MemberListener, ServerChange, ServerListener};
pub use modules::{Module, Modules};
pub use payload::{Encode, Payload, Pb};
pub use pipeline::Outcome;
pub use push::{NotReached, Push};
pub use request::Reply;
pub use rpc::Rpc;
pub use servers::{FixedServers, Servers};
pub use service::Service;
pub use session::Session;
pub use session_events::{EventOrder, SessionCopy, SessionEvent};
pub use session_remote::ClientInfo;
pub use shape::{Shape, Shapes};
pub use shared::close::CloseReason;
pub use shared::cluster::etcd::StoreOptions;
pub use shared::metrics::Exporter;
pub use shared::router::Policy;
pub use shared::routing::{RouteRequest, RouteSession};
pub use shared::server::{Server, ServerTable};
pub use state::{State, States};
pub use timers::{Timer, Timers};
pub use validation::{Valid, Validate};
pub use worker_macros::{handlers, remotes};

/// Keeps the code in the README compiling.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
struct Readme;
