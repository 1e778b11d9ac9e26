//! Reliable RPC: calls that are kept in Redis until they succeed, in Pitaya's format, so that Go servers run our jobs
//! and we run theirs.
//!
//! A job runs at least once, so what it does must bear being done again. Its argument is JSON as Go writes the struct of
//! a protobuf message (cluster protocol 17): the names of the `.proto` file, numbers as numbers, bytes in base64
//! ([`go_bytes`]), empty fields left out.

mod civil;
mod consumer;
pub mod go_bytes;
mod job;
mod store;

use std::sync::Arc;

use serde::Serialize;
use serde_json::{Map, Value};
use shared::config::Config;
use shared::error::code;
use shared::metrics::Exporter;

use crate::call::{Call, Context, Environment};
use crate::error::{Error, Result};
use crate::extract::FromCall;
use crate::settings::hostname;
use job::new_job;

pub(crate) use consumer::{Consumer, JobHandlers};
pub use job::RetryOptions;
pub(crate) use store::Store;

/// How to reach Redis, and how jobs are run and made.
#[derive(Clone)]
pub struct JobOptions {
    /// Redis as `host:port`.
    pub address: String,
    /// Empty for none.
    pub password: String,
    /// Put before all keys, with a colon; empty for none.
    pub namespace: String,
    /// Jobs that run at the same time.
    pub concurrency: usize,
    /// What new jobs say about being tried again.
    pub retry: RetryOptions,
}

impl JobOptions {
    /// What the configuration says below `pitaya.worker`.
    pub fn new(config: &Config) -> Self {
        let retry = |name: &str| {
            u32::try_from(config.int(&format!("pitaya.worker.retry.{name}"))).unwrap_or(0)
        };
        Self {
            address: config.string("pitaya.worker.redis.serverurl").to_owned(),
            password: config.secret("pitaya.worker.redis.password").reveal().to_owned(),
            namespace: config.string("pitaya.worker.namespace").to_owned(),
            concurrency: config.size("pitaya.worker.concurrency"),
            retry: RetryOptions {
                is_enabled: config.bool("pitaya.worker.retry.enabled"),
                max: retry("max"),
                exponential: retry("exponential"),
                min_delay_s: retry("mindelay"),
                max_delay_s: retry("maxdelay"),
                max_random_s: retry("maxrandom"),
            },
        }
    }

    pub(crate) fn store(&self, process: &str) -> Result<Store> {
        Ok(Store::new(&self.address, &self.password, &self.namespace, process)?)
    }
}

impl Default for JobOptions {
    fn default() -> Self {
        Self {
            address: "localhost:6379".to_owned(),
            password: String::new(),
            namespace: String::new(),
            concurrency: 1,
            retry: RetryOptions::default(),
        }
    }
}

impl std::fmt::Debug for JobOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("JobOptions")
            .field("address", &self.address)
            .field("namespace", &self.namespace)
            .field("concurrency", &self.concurrency)
            .field("retry", &self.retry)
            .finish_non_exhaustive()
    }
}

/// What makes jobs; shared by all calls of a process.
pub(crate) struct JobMaker {
    store: Store,
    retry: RetryOptions,
}

impl JobMaker {
    /// Fails for an address that cannot be. Connects with the first job.
    pub(crate) fn new(options: &JobOptions, process: &str) -> Result<Self> {
        Ok(Self { store: options.store(process)?, retry: options.retry })
    }
}

/// Runs jobs if the application has handlers for any. Fails for an address that cannot be; a Redis that is away is
/// waited for.
pub(crate) fn start_consumer(
    options: &JobOptions,
    handlers: JobHandlers,
    environment: Arc<Environment>,
    exporter: Option<Exporter>,
) -> Result<Option<Consumer>> {
    if handlers.is_empty() {
        return Ok(None);
    }
    // Unlike a host name alone it is nobody else's, and a configured id leads a restarted server to its jobs.
    let process = format!("{}:{}", hostname(), environment.server_id);
    let stores = [options.store(&process)?, options.store(&process)?];
    Ok(Some(Consumer::start(stores, options.concurrency, handlers, environment, exporter)))
}

/// Extractor that makes jobs (Pitaya's `ReliableRPC`).
///
/// ```
/// # use worker::prelude::*;
/// #[derive(Serialize, Deserialize)]
/// struct LogLine { text: String }
///
/// async fn log(jobs: Jobs, line: LogLine) -> Result<()> {
///     jobs.enqueue("metagame.player.log", &line).await?;
///     Ok(())
/// }
///
/// let room = App::new("room").on("player.log", log);
/// let metagame = App::new("metagame").on_job("metagame.player.log", async |line: LogLine| {
///     println!("{}", line.text);
/// });
/// ```
#[derive(Clone)]
pub struct Jobs {
    context: Arc<Context>,
    metadata: Map<String, Value>,
    retry: RetryOptions,
}

impl FromCall for Jobs {
    fn from_call(call: &Call) -> Result<Self> {
        let context = Arc::clone(call.context());
        let retry = context.environment.jobs.retry;
        Ok(Self { context, metadata: Map::new(), retry })
    }
}

impl Jobs {
    /// Leaves a job in Redis and returns its id. `route` says what it is to do, `argument` with what.
    ///
    /// Fails when the argument cannot be JSON, and with `PIT-500` when Redis does not take the job; it may have it then.
    pub async fn enqueue<A: Serialize>(&self, route: &str, argument: &A) -> Result<String> {
        let (text, id) = new_job(route, &self.metadata, argument, self.retry)?;
        let stored = self.context.environment.jobs.store.enqueue(&text).await;
        stored.map_err(|error| Error::new(code::INTERNAL, format!("jobs: {error}")))?;
        Ok(id)
    }

    /// Jobs that carry an entry in their metadata, which whoever runs them sees.
    #[must_use]
    pub fn with(mut self, key: impl Into<String>, value: impl Into<Value>) -> Self {
        self.metadata.insert(key.into(), value.into());
        self
    }

    /// Jobs that are tried again otherwise than configured.
    #[must_use]
    pub fn retry(self, retry: RetryOptions) -> Self {
        Self { retry, ..self }
    }
}

#[cfg(test)]
mod tests {
    use shared::config::Binary;

    use super::*;

    #[test]
    fn jobs_are_where_an_operator_says_in_gateways_too() {
        for binary in [Binary::Worker, Binary::Gateway] {
            let load = |flags: &[(String, String)]| {
                JobOptions::new(&Config::load(binary, None, std::iter::empty(), flags).unwrap())
            };
            assert_eq!(load(&[]).address, "localhost:6379");
            let flags = [
                ("pitaya.worker.redis.serverurl", "redis:1"),
                ("pitaya.worker.retry.max", "7"),
                ("pitaya.worker.concurrency", "3"),
            ];
            let jobs = load(&flags.map(|(key, value)| (key.to_owned(), value.to_owned())));
            assert_eq!(
                (jobs.address.as_str(), jobs.retry.max, jobs.concurrency),
                ("redis:1", 7, 3)
            );
        }
    }
}
