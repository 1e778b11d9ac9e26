//! The functions that run before and after handlers and remotes.
//!
//! The order is Pitaya's (sessions and handlers 6.4 and 9): the message is decoded; the functions before the handler run
//! in the order in which they were added, each sees what the one before it made of the message, the first failure is the
//! outcome and nothing else runs; then the argument is validated; then the handler; then all functions after it, also
//! when it failed, each sees what the one before it made of the outcome. A panic in any of them is its failure.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::FutureExt;
use shared::error::code;

use crate::call::{Call, Context};
use crate::error::{Error, Result};
use crate::extract::FromCall;
use crate::handler::{AnyHandler, Kind};
use crate::panic::error_of_panic;
use crate::state::States;
use crate::validation::Validators;

/// Extractor of what became of a call, for functions that run after the handler ([`App::after`](crate::App::after)).
#[derive(Debug, Clone)]
pub struct Outcome(pub Result<Bytes>);

impl FromCall for Outcome {
    fn from_call(call: &Call) -> Result<Self> {
        let outcome = call.outcome.clone().map(Self);
        outcome.ok_or_else(|| Error::unknown("there is no outcome before the handler has run"))
    }
}

/// A function around handlers, and of which service; none for all.
struct Step {
    service: Option<String>,
    run: AnyHandler,
}

/// What runs around one kind of calls.
#[derive(Default)]
pub(crate) struct Pipeline {
    before: Vec<Step>,
    after: Vec<Step>,
}

/// What runs around all calls. Fixed at start.
#[derive(Default)]
pub(crate) struct Pipelines {
    pub(crate) handlers: Pipeline,
    pub(crate) remotes: Pipeline,
    pub(crate) validators: Validators,
}

/// Whose call it is; decides about a code and about validation.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    /// A client's message.
    Client,
    /// Another server's call.
    Server,
}

impl Pipeline {
    pub(crate) fn add_before(&mut self, service: Option<String>, run: AnyHandler) {
        self.before.push(Step { service, run });
    }

    pub(crate) fn add_after(&mut self, service: Option<String>, run: AnyHandler) {
        self.after.push(Step { service, run });
    }

    fn steps<'a>(list: &'a [Step], service: &'a str) -> impl Iterator<Item = &'a AnyHandler> {
        let is_meant = move |step: &&Step| step.service.as_deref().is_none_or(|own| own == service);
        list.iter().filter(is_meant).map(|step| &step.run)
    }
}

impl Pipelines {
    /// What its functions need and nobody gave, as sentences.
    pub(crate) fn missing(&self, states: &States) -> Vec<String> {
        let all = [&self.handlers, &self.remotes];
        let steps =
            all.into_iter().flat_map(|pipeline| pipeline.before.iter().chain(&pipeline.after));
        steps.filter_map(|step| Some(format!("pipeline: {}", step.run.missing(states)?))).collect()
    }

    /// Runs a handler with everything around it. `key` is its `service.method`; `is_acknowledged` says that the caller
    /// gets an acknowledgement in place of what the handler returns.
    pub(crate) async fn call(
        &self,
        side: Side,
        key: &str,
        handler: &AnyHandler,
        (context, message): (&Arc<Context>, Bytes),
        finish: impl FnOnce(Bytes) -> Bytes,
    ) -> Result<Bytes> {
        let pipeline = if side == Side::Client { &self.handlers } else { &self.remotes };
        let (service, method) = key.split_once('.').unwrap_or((key, ""));
        let mut call = Call::new(Arc::clone(context), message);
        let has_before = Pipeline::steps(&pipeline.before, service).next().is_some();
        if has_before || self.validators.is_on() {
            handler.prepare(&mut call)?;
        }
        for step in Pipeline::steps(&pipeline.before, service) {
            let step_call = Call::new(Arc::clone(context), call.message().clone());
            let made = guarded(step, step_call, "before").await.map_err(|e| side.refuse(e))?;
            if step.kind == Kind::Request {
                call = Call::new(Arc::clone(context), made);
                handler.prepare(&mut call)?;
            }
        }
        if side == Side::Client {
            self.validators.check(call.argument.as_deref())?;
        }
        let message = call.message().clone();
        let mut outcome = guarded(handler, call, method).await.map(finish);
        for step in Pipeline::steps(&pipeline.after, service) {
            let mut step_call = Call::new(Arc::clone(context), message.clone());
            step_call.outcome = Some(outcome.clone());
            match guarded(step, step_call, "after").await {
                Ok(made) if step.kind == Kind::Request => outcome = Ok(made),
                Ok(_) => {}
                Err(error) => outcome = Err(error),
            }
        }
        outcome
    }
}

impl Side {
    /// A refusal before a remote is the server's fault unless it says otherwise (sessions and handlers 7.4).
    fn refuse(self, error: Error) -> Error {
        if self == Self::Server { error.code(code::INTERNAL) } else { error }
    }
}

/// Calls; a panic becomes the failure that Pitaya makes of it.
async fn guarded(handler: &AnyHandler, call: Call, method: &str) -> Result<Bytes> {
    let context = Arc::clone(call.context());
    let run = AssertUnwindSafe(async { handler.call(call).await }).catch_unwind();
    run.await.unwrap_or_else(|panic| {
        context.environment.note_panic(&context.route, method);
        Err(error_of_panic(&*panic, method))
    })
}
