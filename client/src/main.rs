//! The `client` command: an interactive client and a load generator for Pitaya and Dragonfruit servers.

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Parser, Subcommand};
use client::load::{self, LoadOptions, Report};
use client::repl::{self, ReplOptions};

/// Talks to Pitaya and Dragonfruit servers.
#[derive(Debug, Parser)]
#[command(name = "client", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Talk to a server by hand, or from a script
    Repl(ReplOptions),
    /// Measure a server under load
    Load(Box<LoadOptions>),
}

fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        Command::Repl(options) => run_repl(&options),
        Command::Load(options) => run_load(&options),
    };
    result.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::from(2)
    })
}

fn run_repl(options: &ReplOptions) -> anyhow::Result<ExitCode> {
    Ok(if repl::run(options)? { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn run_load(options: &LoadOptions) -> anyhow::Result<ExitCode> {
    let report = load::run(options)?;
    let mut output = std::io::stdout().lock();
    match options.json.as_deref() {
        Some(path) if path == Path::new("-") => writeln!(output, "{}", json(&report)?)?,
        Some(path) => {
            std::fs::write(path, json(&report)? + "\n")
                .with_context(|| format!("cannot write {}", path.display()))?;
            write!(output, "{report}")?;
        }
        None => write!(output, "{report}")?,
    }
    if report.connections.connected == 0 || report.errors > options.max_errors {
        eprintln!("error: {} errors, {} allowed", report.errors, options.max_errors);
        return Ok(ExitCode::FAILURE);
    }
    Ok(ExitCode::SUCCESS)
}

fn json(report: &Report) -> anyhow::Result<String> {
    Ok(serde_json::to_string(report)?)
}
