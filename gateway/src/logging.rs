//! The log: one line an event, text on a terminal and JSON elsewhere, without ever holding up a reactor for long.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

/// Sends the log to standard error.
///
/// Errors: a level that cannot be read, or a log that is set up already.
pub fn start(level: &str, format: &str) -> Result<(), String> {
    let filter = EnvFilter::builder()
        .parse(level)
        .map_err(|error| format!("pitaya.log.level = {level:?}: {error}"))?;
    let is_json = match format {
        "json" => true,
        "text" => false,
        _ => !std::io::stderr().is_terminal(),
    };
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let outcome = if is_json {
        builder.json().flatten_event(true).try_init()
    } else {
        builder.with_ansi(std::io::stderr().is_terminal()).try_init()
    };
    outcome.map_err(|error| error.to_string())
}
