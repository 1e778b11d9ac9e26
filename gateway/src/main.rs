//! The `gateway` binary: flags, configuration, start, signals, end.

use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser;
use gateway::control::ControlError;
use gateway::control::plan::Plan;
use gateway::gateway::{Addresses, Commands, Gateway, StartError};
use gateway::{allowance, logging, process};
use shared::config::{Binary, Sources, TableFormat};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

// SAFETY: the signature is that of mimalloc.h; any thread may call it at any time.
unsafe extern "C" {
    /// Gives back what the allocator keeps: of this thread's freed memory, and of what all threads share. It is part of the
    /// library that is linked in anyway.
    safe fn mi_collect(is_forced: bool);
}

/// Holds the connections of players and forwards their messages to the servers of a Pitaya cluster.
#[derive(Parser)]
#[command(version, about)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of the command line")]
struct Flags {
    /// A configuration file in TOML.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Sets one key, for example pitaya.heartbeat.interval=10s. May be given again.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    settings: Vec<String>,
    /// Where TCP clients are served: host:port, several by comma, empty for none.
    #[arg(long, value_name = "ADDRESS")]
    tcp: Option<String>,
    /// Where WebSocket clients are served: host:port, several by comma, empty for none.
    #[arg(long, value_name = "ADDRESS")]
    ws: Option<String>,
    /// How many reactors; 0 is one a core.
    #[arg(long, value_name = "N")]
    threads: Option<u32>,
    /// error, warn, info, debug or trace, or by module.
    #[arg(long, value_name = "LEVEL")]
    log: Option<String>,
    /// The chat and cluster demo in this process, without NATS and etcd, with its page for browsers.
    #[arg(long)]
    demo: bool,
    /// Serve the demo's page on the WebSocket address; the demo itself runs in a worker.
    #[arg(long)]
    demo_page: bool,
    /// Let the demo answer the room.test routes too, which tests and load generators use.
    #[arg(long)]
    test_routes: bool,
    /// Write the addresses that are listened on to this file, as JSON, once they are served.
    #[arg(long, value_name = "FILE")]
    ports_file: Option<PathBuf>,
    /// Check the configuration, report every mistake, and end.
    #[arg(long)]
    check_config: bool,
    /// Print every key with its value and where it comes from, and end.
    #[arg(long)]
    print_config: bool,
    /// The form of --print-config: text, toml, env or md.
    #[arg(long, value_name = "FORM", default_value = "text")]
    format: String,
}

impl Flags {
    /// Everything that sets a key, in order of strength.
    fn settings(&self) -> Result<Vec<(String, String)>, String> {
        let mut settings = Vec::new();
        if self.demo || self.demo_page {
            settings.push(("pitaya.gateway.demo".to_owned(), "true".to_owned()));
        }
        if self.demo {
            settings.push(("pitaya.mode".to_owned(), "standalone".to_owned()));
        }
        let named = [
            ("pitaya.gateway.tcp", self.tcp.clone()),
            ("pitaya.gateway.ws", self.ws.clone()),
            ("pitaya.gateway.threads", self.threads.map(|threads| threads.to_string())),
            ("pitaya.log.level", self.log.clone()),
        ];
        settings
            .extend(named.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?))));
        for setting in &self.settings {
            let (key, value) = setting
                .split_once('=')
                .ok_or_else(|| format!("--set {setting}: the form is KEY=VALUE"))?;
            settings.push((key.to_owned(), value.to_owned()));
        }
        Ok(settings)
    }
}

fn main() -> ExitCode {
    allowance::set_give_back(|| mi_collect(true));
    let flags = Flags::parse();
    match run(&flags) {
        Ok(code) => code,
        Err(mistakes) => {
            for mistake in mistakes {
                eprintln!("error: {mistake}");
            }
            ExitCode::from(2)
        }
    }
}

fn run(flags: &Flags) -> Result<ExitCode, Vec<String>> {
    let settings = flags.settings().map_err(|mistake| vec![mistake])?;
    let sources = Sources {
        binary: Binary::Gateway,
        file: flags.config.clone(),
        environment: std::env::vars().collect(),
        flags: settings,
    };
    let config = sources
        .load()
        .map_err(|errors| errors.iter().map(ToString::to_string).collect::<Vec<_>>())?;
    if flags.print_config {
        let format = flags.format.parse::<TableFormat>().map_err(|error| vec![error])?;
        print!("{}", config.print_table(format));
        return Ok(ExitCode::SUCCESS);
    }
    let options = worker::demo::DemoOptions { test_routes: flags.test_routes };
    let application = flags.demo.then(|| worker::demo::app(options));
    let mut plan = Plan::new(&config, application)?;
    if flags.check_config {
        for warning in config.warnings() {
            eprintln!("warning: {warning}");
        }
        println!("the configuration is good");
        return Ok(ExitCode::SUCCESS);
    }
    let (log, _guard) =
        logging::start(config.string("pitaya.log.level"), config.string("pitaya.log.format"))
            .map_err(|error| vec![error])?;
    (plan.sources, plan.log) = (Some(sources), Some(log));
    for warning in config.warnings() {
        tracing::warn!("{warning}");
    }
    serve(flags, plan)
}

fn serve(flags: &Flags, plan: Plan) -> Result<ExitCode, Vec<String>> {
    process::raise_descriptor_limit();
    let (server_id, server_type) = (plan.rules.server_id.clone(), plan.rules.server_type.clone());
    let reactors = plan.reactors;
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        server_type,
        server_id,
        reactors,
        "starting"
    );
    let commands = Commands::new();
    process::watch(commands.sender(), plan.is_draining())
        .map_err(|error| vec![error.to_string()])?;
    let gateway = match Gateway::start(plan, commands) {
        Ok(gateway) => gateway,
        Err(StartError::Control(ControlError::Stopped)) => return Ok(ExitCode::SUCCESS),
        Err(error) => return Err(vec![error.to_string()]),
    };
    let Addresses { tcp, ws, tls, wss, admin } = gateway.addresses();
    tracing::info!(?tcp, ?ws, ?tls, ?wss, ?admin, "serving");
    if let Some(path) = &flags.ports_file {
        write_ports(path, gateway.addresses())
            .map_err(|error| vec![format!("{}: {error}", path.display())])?;
    }
    gateway.wait();
    Ok(ExitCode::SUCCESS)
}

/// Written beside and renamed, so that whoever waits for the file finds it whole.
fn write_ports(path: &Path, addresses: &Addresses) -> io::Result<()> {
    let first = |list: &[std::net::SocketAddr]| list.first().map(ToString::to_string);
    let ports = serde_json::json!({
        "tcp": first(&addresses.tcp),
        "ws": first(&addresses.ws),
        "tls": first(&addresses.tls),
        "wss": first(&addresses.wss),
        "admin": first(&addresses.admin),
        "pid": std::process::id(),
    });
    let beside = path.with_extension("new");
    std::fs::write(&beside, ports.to_string())?;
    std::fs::rename(beside, path)
}
