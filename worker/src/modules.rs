//! Modules: parts of a server with a life of their own, such as a connection to a database, found by their name.
//!
//! Start: `init` of all in the order of the list, where the first failure ends the start and shuts down what had begun;
//! then `after_init` of all. End, the other way round: `before_shutdown` of all, while requests are still served, then
//! `shutdown` of all, after the last request. Modules start after the components and end before them, as in Pitaya.
//! Each step of the end is bounded in time, and a panic in one stops no other.

use std::any::Any;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::time::timeout;

use crate::call::{Call, Context, Environment};
use crate::error::{Error, Result};
use crate::extract::{Ctx, FromCall};
use crate::panic::error_of_panic;

/// How long one module or hook may take for one step of the end. What takes longer is given up and logged.
pub(crate) const SHUTDOWN_STEP_MAX: Duration = Duration::from_secs(30);

/// A part of a server with a life of its own. All methods do nothing unless they are written.
///
/// ```
/// use worker::prelude::*;
///
/// struct Scores;
///
/// impl Module for Scores {
///     async fn init(&self, ctx: Ctx) -> Result<()> {
///         println!("{} starts", ctx.server_id());
///         Ok(())
///     }
/// }
///
/// let app = App::new("room").module("scores", Scores).on("room.top", async |modules: Modules| {
///     let _scores = modules.find::<Scores>("scores")?;
///     Ok::<_, Error>("nobody")
/// });
/// ```
pub trait Module: Send + Sync + 'static {
    /// Before the first request. A failure ends the start of the server.
    fn init(&self, ctx: Ctx) -> impl Future<Output = Result<()>> + Send {
        let _ = ctx;
        async { Ok(()) }
    }

    /// After `init` of all modules.
    fn after_init(&self, ctx: Ctx) -> impl Future<Output = ()> + Send {
        let _ = ctx;
        async {}
    }

    /// When the end begins: the server has left the cluster, and requests are still served.
    fn before_shutdown(&self, ctx: Ctx) -> impl Future<Output = ()> + Send {
        let _ = ctx;
        async {}
    }

    /// After the last request. A failure is logged.
    fn shutdown(&self, ctx: Ctx) -> impl Future<Output = Result<()>> + Send {
        let _ = ctx;
        async { Ok(()) }
    }
}

/// A module without its type.
trait AnyModule: Send + Sync {
    fn init(&self, ctx: Ctx) -> BoxFuture<'_, Result<()>>;
    fn after_init(&self, ctx: Ctx) -> BoxFuture<'_, Result<()>>;
    fn before_shutdown(&self, ctx: Ctx) -> BoxFuture<'_, Result<()>>;
    fn shutdown(&self, ctx: Ctx) -> BoxFuture<'_, Result<()>>;
}

impl<M: Module> AnyModule for M {
    fn init(&self, ctx: Ctx) -> BoxFuture<'_, Result<()>> {
        Box::pin(Module::init(self, ctx))
    }

    fn after_init(&self, ctx: Ctx) -> BoxFuture<'_, Result<()>> {
        Box::pin(Module::after_init(self, ctx).map(Ok))
    }

    fn before_shutdown(&self, ctx: Ctx) -> BoxFuture<'_, Result<()>> {
        Box::pin(Module::before_shutdown(self, ctx).map(Ok))
    }

    fn shutdown(&self, ctx: Ctx) -> BoxFuture<'_, Result<()>> {
        Box::pin(Module::shutdown(self, ctx))
    }
}

struct Entry {
    name: String,
    module: Arc<dyn AnyModule>,
    any: Arc<dyn Any + Send + Sync>,
}

/// The modules of a process in the order of their start. Fixed at start.
#[derive(Default)]
pub(crate) struct ModuleList(Vec<Entry>);

/// Where a module goes in the list.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    First,
    Last,
}

impl ModuleList {
    /// Fails when the name is taken.
    pub(crate) fn add<M: Module>(
        &mut self,
        name: &str,
        module: M,
        place: Place,
    ) -> Result<(), String> {
        if self.0.iter().any(|entry| entry.name == name) {
            return Err(format!("module with name {name} already exists"));
        }
        let module = Arc::new(module);
        let any: Arc<dyn Any + Send + Sync> = module.clone();
        let at = if place == Place::First { 0 } else { self.0.len() };
        self.0.insert(at, Entry { name: name.to_owned(), module, any });
        Ok(())
    }

    fn find<M: Module>(&self, name: &str) -> Result<Arc<M>> {
        let entry = self.0.iter().find(|entry| entry.name == name);
        let missing = || Error::unknown(format!("module with name {name} not found"));
        let any = entry.ok_or_else(missing)?.any.clone();
        any.downcast().map_err(|_| {
            let wanted = std::any::type_name::<M>();
            Error::unknown(format!("module with name {name} is not a {wanted}"))
        })
    }

    /// Starts all; when one fails, those that had begun are shut down again.
    pub(crate) async fn start(&self, environment: &Arc<Environment>) -> Result<()> {
        for (at, entry) in self.0.iter().enumerate() {
            let begun = step(environment, &entry.name, |ctx| entry.module.init(ctx)).await;
            if let Err(error) = begun {
                for earlier in self.0.iter().take(at).rev() {
                    end(environment, &earlier.name, |ctx| earlier.module.shutdown(ctx)).await;
                }
                return Err(error.with("module", &entry.name));
            }
        }
        for entry in &self.0 {
            let ready = step(environment, &entry.name, |ctx| entry.module.after_init(ctx)).await;
            if let Err(error) = ready {
                tracing::error!(module = entry.name, %error, "after_init failed");
            }
        }
        Ok(())
    }

    pub(crate) async fn before_shutdown(&self, environment: &Arc<Environment>) {
        for entry in self.0.iter().rev() {
            end(environment, &entry.name, |ctx| entry.module.before_shutdown(ctx)).await;
        }
    }

    pub(crate) async fn shutdown(&self, environment: &Arc<Environment>) {
        for entry in self.0.iter().rev() {
            end(environment, &entry.name, |ctx| entry.module.shutdown(ctx)).await;
        }
    }
}

/// One step of one module; a panic is its failure.
async fn step<'a>(
    environment: &Arc<Environment>,
    name: &str,
    run: impl FnOnce(Ctx) -> BoxFuture<'a, Result<()>>,
) -> Result<()> {
    let ctx = Ctx(Arc::new(Context::of_hook(Arc::clone(environment))));
    let run = AssertUnwindSafe(async { run(ctx).await }).catch_unwind();
    run.await.unwrap_or_else(|panic| {
        environment.note_panic("", name);
        Err(error_of_panic(&*panic, name))
    })
}

/// A step of the end: whatever becomes of it, the end goes on.
async fn end<'a>(
    environment: &Arc<Environment>,
    name: &str,
    run: impl FnOnce(Ctx) -> BoxFuture<'a, Result<()>>,
) {
    match timeout(SHUTDOWN_STEP_MAX, step(environment, name, run)).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::error!(module = name, %error, "a module ended badly"),
        Err(_) => tracing::error!(module = name, "a module did not end in time"),
    }
}

/// Extractor of the modules of this process, by name.
#[derive(Clone)]
pub struct Modules(Arc<Context>);

impl FromCall for Modules {
    fn from_call(call: &Call) -> Result<Self> {
        Ok(Self(Arc::clone(call.context())))
    }
}

impl Modules {
    /// The module of this name. Fails with Pitaya's `module with name .. not found`, or when it is of another type.
    pub fn find<M: Module>(&self, name: &str) -> Result<Arc<M>> {
        self.0.environment.modules.find(name)
    }
}
