//! The demo server: the demo game as a server of a cluster.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use shared::config::{Binary, Config, TableFormat};
use worker::demo::{self, DemoOptions};
use worker::log_writer::{LogGuard, LogWriter};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// A game server of the demo, behind gateways of Dragonfruit or Pitaya.
#[derive(Parser)]
#[command(name = "worker", version)]
struct Flags {
    /// Configuration file (TOML); the environment overrides it.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Sets one key, for example pitaya.nats.connect=nats://10.0.0.1:4222; overrides the environment.
    #[arg(long, value_name = "KEY=VALUE", value_parser = key_and_value)]
    set: Vec<(String, String)>,
    /// Server type, short for --set pitaya.server.type=TYPE.
    #[arg(long = "type", value_name = "TYPE")]
    server_type: Option<String>,
    /// Server id, short for --set pitaya.server.id=ID; random when not given.
    #[arg(long, value_name = "ID")]
    id: Option<String>,
    /// Adds the routes room.test.*, for tests.
    #[arg(long)]
    test_routes: bool,
    /// Checks the configuration, connects nowhere, and exits with 0 or 2.
    #[arg(long)]
    check_config: bool,
    /// Prints every key with its value and where it comes from.
    #[arg(long, value_name = "FORMAT", num_args = 0..=1, default_missing_value = "table")]
    print_config: Option<String>,
    /// Log level, short for --set pitaya.log.level=LEVEL.
    #[arg(long, value_name = "LEVEL")]
    log: Option<String>,
}

fn key_and_value(text: &str) -> Result<(String, String), String> {
    let parts = text.split_once('=').ok_or("expected KEY=VALUE")?;
    Ok((parts.0.to_owned(), parts.1.to_owned()))
}

fn main() -> ExitCode {
    let flags = Flags::parse();
    let config = match load(&flags) {
        Ok(config) => config,
        Err(code) => return code,
    };
    for warning in config.warnings() {
        eprintln!("warning: {warning}");
    }
    if let Some(format) = &flags.print_config {
        return match format.parse::<TableFormat>() {
            Ok(format) => {
                print!("{}", config.print_table(format));
                ExitCode::SUCCESS
            }
            Err(text) => fail(&text),
        };
    }
    if flags.check_config {
        println!("the configuration is good");
        return ExitCode::SUCCESS;
    }
    let _log = match log(&config) {
        Ok(guard) => guard,
        Err(text) => return fail(&text),
    };
    match run(&config, flags.test_routes) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn fail(text: &str) -> ExitCode {
    eprintln!("error: {text}");
    ExitCode::from(2)
}

/// All sources; prints all mistakes.
fn load(flags: &Flags) -> Result<Config, ExitCode> {
    let mut pairs = flags.set.clone();
    let short = [
        ("pitaya.server.type", &flags.server_type),
        ("pitaya.server.id", &flags.id),
        ("pitaya.log.level", &flags.log),
    ];
    for (key, value) in short {
        pairs.extend(value.iter().map(|value| (key.to_owned(), value.clone())));
    }
    let config = Config::load(Binary::Worker, flags.config.as_deref(), std::env::vars(), &pairs);
    config.map_err(|errors| {
        for error in errors {
            eprintln!("error: {error}");
        }
        ExitCode::from(2)
    })
}

fn log(config: &Config) -> Result<LogGuard, String> {
    let levels = config.string("pitaya.log.level");
    let filter = tracing_subscriber::EnvFilter::try_new(levels)
        .map_err(|error| format!("pitaya.log.level {levels:?}: {error}"))?;
    let is_text = match config.string("pitaya.log.format") {
        "text" => true,
        "json" => false,
        _ => std::io::stderr().is_terminal(),
    };
    let (writer, guard) = LogWriter::start(std::io::stderr()).map_err(|error| error.to_string())?;
    // Of errors inside the log nothing could be told but by panicking.
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .log_internal_errors(false)
        .with_writer(move || writer.clone());
    if is_text {
        builder.with_ansi(std::io::stderr().is_terminal()).init();
    } else {
        builder.json().init();
    }
    Ok(guard)
}

fn run(config: &Config, test_routes: bool) -> anyhow::Result<()> {
    if config.string("pitaya.mode") == "standalone" {
        anyhow::bail!(
            "a worker needs a cluster; `gateway --standalone` runs the demo in one process"
        );
    }
    let app = demo::app(DemoOptions { test_routes });
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(app.run_with(config)).map_err(|error| anyhow::anyhow!("{error:?}"))
}
