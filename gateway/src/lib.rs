//! The gateway as a library: reactors that hold the players' connections and forward their messages.

pub mod admin;
pub mod bus;
pub mod calls;
pub mod clock;
pub mod connection;
pub mod connections;
pub mod control;
pub mod deliver;
pub mod directory;
pub mod driver;
pub mod ending;
pub mod forward;
pub mod freeze;
pub mod gateway;
pub mod listener;
pub mod logging;
pub mod mailbox;
pub mod meter;
pub mod outbox;
pub mod page;
pub mod reactor;
pub mod retry;
pub mod rules;
mod starting;
pub mod turn;
pub mod wire;
