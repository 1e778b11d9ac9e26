//! The functions of an application that run at its start and its end: the life of components.
//!
//! Start: `on_start` of all in the order in which they were given, then `on_ready` of all. End, the other way round:
//! `before_shutdown` of all, then `on_shutdown` of all. Modules start after `on_ready` and end before `before_shutdown`
//! (sessions and handlers 2 and 16).

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::FutureExt;
use tokio::time::timeout;

use crate::call::{Call, Context, Environment};
use crate::error::Result;
use crate::handler::AnyHandler;
use crate::modules::SHUTDOWN_STEP_MAX;
use crate::panic::error_of_panic;

/// In the order in which they run.
#[derive(Default)]
pub(crate) struct Hooks {
    pub(crate) on_start: Vec<AnyHandler>,
    pub(crate) on_ready: Vec<AnyHandler>,
    pub(crate) before_shutdown: Vec<AnyHandler>,
    pub(crate) on_shutdown: Vec<AnyHandler>,
}

impl Hooks {
    /// The first failure ends it.
    pub(crate) async fn start(&self, environment: &Arc<Environment>) -> Result<()> {
        for hook in self.on_start.iter().chain(&self.on_ready) {
            run(hook, environment).await?;
        }
        Ok(())
    }

    pub(crate) async fn shutdown(&self, environment: &Arc<Environment>) {
        for hook in self.before_shutdown.iter().chain(&self.on_shutdown) {
            match timeout(SHUTDOWN_STEP_MAX, run(hook, environment)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::error!(%error, "a shutdown hook failed"),
                Err(_) => tracing::error!("a shutdown hook did not end in time"),
            }
        }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &AnyHandler> {
        let start = self.on_start.iter().chain(&self.on_ready);
        start.chain(&self.before_shutdown).chain(&self.on_shutdown)
    }
}

async fn run(hook: &AnyHandler, environment: &Arc<Environment>) -> Result<()> {
    let context = Arc::new(Context::of_hook(Arc::clone(environment)));
    let call = Call::new(context, Bytes::new());
    let run = AssertUnwindSafe(async { hook.call(call).await }).catch_unwind();
    let outcome = run.await.unwrap_or_else(|panic| {
        environment.note_panic("", "hook");
        Err(error_of_panic(&*panic, "hook"))
    });
    outcome.map(drop)
}
