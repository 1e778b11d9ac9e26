//! The log: one line an event, text on a terminal and JSON elsewhere, without ever holding up a reactor.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;
use worker::log_writer::{LogGuard, LogWriter};

/// Sends the log to standard error, until the guard is dropped and beyond.
///
/// Errors: a level that cannot be read, or a log that is set up already.
pub fn start(level: &str, format: &str) -> Result<LogGuard, String> {
    let filter = EnvFilter::builder()
        .parse(level)
        .map_err(|error| format!("pitaya.log.level = {level:?}: {error}"))?;
    let is_json = match format {
        "json" => true,
        "text" => false,
        _ => !std::io::stderr().is_terminal(),
    };
    let (writer, guard) = LogWriter::start(std::io::stderr()).map_err(|error| error.to_string())?;
    // Of errors inside the log nothing could be told but by panicking.
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .log_internal_errors(false)
        .with_writer(move || writer.clone());
    let outcome = if is_json {
        builder.json().flatten_event(true).try_init()
    } else {
        builder.with_ansi(std::io::stderr().is_terminal()).try_init()
    };
    outcome.map(|()| guard).map_err(|error| error.to_string())
}
