//! The arguments that a handler gets from its call: the trait and the context of the call itself.

use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use shared::server::ServerTable;

use crate::call::{Call, Context};
use crate::error::Result;
use crate::metadata;
use crate::state::States;

/// An argument of a handler that is made from the call. Cheap: the framework's own are one counter each.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not an extractor",
    label = "only the last argument of a handler may be a message",
    note = "extractors are Session, State<T>, Rpc, Push, Groups and Ctx"
)]
pub trait FromCall: Sized + Send {
    /// Makes the argument. A failure is answered to the caller; the handler does not run.
    fn from_call(call: &Call) -> Result<Self>;

    /// What start must refuse because no call could be served, as a sentence.
    fn missing(_: &States) -> Option<String> {
        None
    }
}

/// Extractor of the call itself: who asked for what, and how long there is.
#[derive(Clone)]
pub struct Ctx(pub(crate) Arc<Context>);

impl Ctx {
    /// The full route as the caller wrote it; empty in hooks.
    pub fn route(&self) -> &str {
        &self.0.route
    }

    /// The caller's correlation id for logs; empty when it gave none.
    pub fn request_id(&self) -> String {
        match self.metadata("request.id") {
            Some(Value::String(id)) => id,
            _ => String::new(),
        }
    }

    /// A value that travels with the request through all servers (cluster protocol 6). Parses the metadata.
    pub fn metadata(&self, key: &str) -> Option<Value> {
        metadata::decode(&self.0.metadata).ok()?.remove(key)
    }

    /// The server id of the gateway that forwarded the request; empty in hooks and remotes of backends.
    pub fn frontend_id(&self) -> &str {
        &self.0.frontend_id
    }

    /// The id of this process in the cluster.
    pub fn server_id(&self) -> &str {
        &self.0.environment.server_id
    }

    /// The server type of this process.
    pub fn server_type(&self) -> &str {
        &self.0.environment.server_type
    }

    /// The servers of the cluster that are known at this moment; the own one is among them once it is announced.
    pub fn servers(&self) -> ServerTable {
        self.0.environment.servers.table()
    }

    /// Leaves a value for whatever of this call runs later: the next functions of the pipeline, the handler. One of
    /// the same type is replaced. Nobody else sees it.
    pub fn insert<T: Send + Sync + 'static>(&self, value: T) {
        self.0.insert(value);
    }

    /// What was left with [`Ctx::insert`] earlier in this call.
    pub fn find<T: Send + Sync + 'static>(&self) -> Option<Arc<T>> {
        self.0.find()
    }

    /// What is left until the framework cancels the call and answers a timeout.
    pub fn remaining(&self) -> Duration {
        self.0.remaining()
    }
}

impl FromCall for Ctx {
    fn from_call(call: &Call) -> Result<Self> {
        Ok(Self(Arc::clone(call.context())))
    }
}
