//! What a game's code needs in every file: `use worker::prelude::*;`.

pub use bytes::Bytes;
pub use serde::{Deserialize, Serialize};
pub use std::time::Duration;

pub use crate::bail;
pub use crate::{
    App, CloseReason, Component, Ctx, Error, Groups, Handshake, Jobs, Module, Modules, Outcome, Pb,
    Policy, Push, Result, ResultExt, RouteRequest, Rpc, Server, ServerChange, Session, State,
    Timers, Valid, Validate, handlers, remotes,
};
