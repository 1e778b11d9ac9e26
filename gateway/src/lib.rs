//! The gateway as a library: reactors that hold the players' connections and forward their messages.
//!
//! [`builder::Builder`] is where to begin; the rest is public for tests, benchmarks and the binary.

pub mod admin;
pub mod allowance;
pub mod application;
pub mod builder;
pub mod bus;
pub mod calls;
pub mod clock;
pub mod connection;
pub mod connections;
pub mod control;
pub mod deliver;
pub mod describe;
pub mod directory;
pub mod driver;
pub mod ending;
pub mod entrance;
pub mod fan_out;
pub mod forward;
pub mod freeze;
pub mod gateway;
pub mod grpc;
pub mod limits;
pub mod listener;
pub mod logging;
pub mod mailbox;
pub mod meter;
pub mod outbox;
pub mod page;
pub mod process;
pub mod reactor;
pub mod retry;
pub mod rules;
mod starting;
pub mod tls;
pub mod turn;
pub mod wire;
pub mod wrapper;
