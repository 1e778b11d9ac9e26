//! The functions of an application that run when a session is bound and when it ends.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::FutureExt;

use crate::call::{Call, Context};
use crate::error::Result;
use crate::handler::AnyHandler;
use crate::panic::error_of_panic;

/// In the order in which they run.
#[derive(Default)]
pub(crate) struct SessionHooks {
    pub(crate) on_bind: Vec<AnyHandler>,
    pub(crate) after_bind: Vec<AnyHandler>,
    pub(crate) on_close: Vec<AnyHandler>,
}

impl SessionHooks {
    pub(crate) fn iter(&self) -> impl Iterator<Item = &AnyHandler> {
        self.on_bind.iter().chain(&self.after_bind).chain(&self.on_close)
    }
}

/// Runs the functions in the context of a call; the first failure ends it.
pub(crate) async fn run_until_failure(hooks: &[AnyHandler], context: &Arc<Context>) -> Result<()> {
    for hook in hooks {
        run(hook, context).await?;
    }
    Ok(())
}

/// Runs all functions, whatever fails.
pub(crate) async fn run_all(hooks: &[AnyHandler], context: &Arc<Context>) {
    for hook in hooks {
        if let Err(error) = run(hook, context).await {
            tracing::error!(%error, "a function at the end of a session failed");
        }
    }
}

async fn run(hook: &AnyHandler, context: &Arc<Context>) -> Result<()> {
    let call = Call::new(Arc::clone(context), Bytes::new());
    let run = AssertUnwindSafe(async { hook.call(call).await }).catch_unwind();
    let outcome = run.await.unwrap_or_else(|panic| {
        context.environment.note_panic(&context.route, "a session hook");
        Err(error_of_panic(&*panic, "a session hook"))
    });
    outcome.map(drop)
}
