//! The gateway as a library: reactors that hold the players' connections and forward their messages.

pub mod admin;
pub mod driver;
