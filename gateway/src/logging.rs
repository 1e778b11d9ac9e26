//! The log: one line an event, text on a terminal and JSON elsewhere, without ever holding up a reactor.

use std::io::IsTerminal;
use std::sync::Arc;

use tracing_subscriber::EnvFilter;
use worker::log_writer::{LogGuard, LogWriter};

/// What is logged, to be changed while the process runs. Clones change the same log.
#[derive(Clone)]
pub struct LogLevel {
    set: Arc<SetFilter>,
}

type SetFilter = dyn Fn(EnvFilter) -> Result<(), String> + Send + Sync;

impl LogLevel {
    /// Reads a level, or levels by module.
    ///
    /// Errors: it cannot be read.
    pub fn parse(level: &str) -> Result<EnvFilter, String> {
        EnvFilter::builder()
            .parse(level)
            .map_err(|error| format!("pitaya.log.level = {level:?}: {error}"))
    }

    /// Logs by `filter` from now on.
    ///
    /// Errors: the log has ended.
    pub fn set(&self, filter: EnvFilter) -> Result<(), String> {
        (self.set)(filter)
    }
}

/// Sends the log to standard error, until the guard is dropped and beyond.
///
/// Errors: a level that cannot be read, or a log that is set up already.
pub fn start(level: &str, format: &str) -> Result<(LogLevel, LogGuard), String> {
    let is_json = match format {
        "json" => true,
        "text" => false,
        _ => !std::io::stderr().is_terminal(),
    };
    let (writer, guard) = LogWriter::start(std::io::stderr()).map_err(|error| error.to_string())?;
    // Of errors inside the log nothing could be told but by panicking.
    let builder = tracing_subscriber::fmt()
        .with_env_filter(LogLevel::parse(level)?)
        .log_internal_errors(false)
        .with_writer(move || writer.clone());
    let (set, outcome): (Arc<SetFilter>, _) = if is_json {
        let builder = builder.json().flatten_event(true).with_filter_reloading();
        let handle = builder.reload_handle();
        let set = move |filter| handle.reload(filter).map_err(|error| error.to_string());
        (Arc::new(set), builder.try_init())
    } else {
        let builder = builder.with_ansi(std::io::stderr().is_terminal()).with_filter_reloading();
        let handle = builder.reload_handle();
        let set = move |filter| handle.reload(filter).map_err(|error| error.to_string());
        (Arc::new(set), builder.try_init())
    };
    outcome.map_err(|error| error.to_string())?;
    Ok((LogLevel { set }, guard))
}
