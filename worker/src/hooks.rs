//! The functions of an application that run at its start and its end.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::FutureExt;

use crate::call::{Call, Context, Environment};
use crate::error::Result;
use crate::handler::AnyHandler;
use crate::panic::error_of_panic;

/// In the order in which they run.
#[derive(Default)]
pub(crate) struct Hooks {
    pub(crate) on_start: Vec<AnyHandler>,
    pub(crate) before_shutdown: Vec<AnyHandler>,
    pub(crate) on_shutdown: Vec<AnyHandler>,
}

impl Hooks {
    /// The first failure ends it.
    pub(crate) async fn start(&self, environment: &Arc<Environment>) -> Result<()> {
        for hook in &self.on_start {
            run(hook, environment).await?;
        }
        Ok(())
    }

    pub(crate) async fn before_shutdown(&self, environment: &Arc<Environment>) {
        run_all(&self.before_shutdown, environment).await;
    }

    pub(crate) async fn on_shutdown(&self, environment: &Arc<Environment>) {
        run_all(&self.on_shutdown, environment).await;
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &AnyHandler> {
        self.on_start.iter().chain(&self.before_shutdown).chain(&self.on_shutdown)
    }
}

/// Whatever fails: the process ends anyway.
async fn run_all(hooks: &[AnyHandler], environment: &Arc<Environment>) {
    for hook in hooks {
        if let Err(error) = run(hook, environment).await {
            tracing::error!(%error, "a shutdown hook failed");
        }
    }
}

async fn run(hook: &AnyHandler, environment: &Arc<Environment>) -> Result<()> {
    let context = Arc::new(Context::of_hook(Arc::clone(environment)));
    let call = Call::new(context, Bytes::new());
    let run = AssertUnwindSafe(async { hook.call(call).await }).catch_unwind();
    run.await.unwrap_or_else(|panic| Err(error_of_panic(&*panic, "hook"))).map(drop)
}
