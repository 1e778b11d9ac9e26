//! The server that Pitaya's own end-to-end test starts, made with this project: same flags, environment, handlers,
//! remotes and log marker as the server in Pitaya's `examples/testing`. As a frontend it is a gateway that hosts an
//! application, as a backend the same application alone.
//!
//! To run Pitaya's test against it, put it where the test looks for its server, `examples/testing/server`, in a checkout
//! of Pitaya, with NATS and etcd on their usual ports; with `-grpc` no NATS is needed. It is also an example of one application in both places.

mod handlers;
mod wire;

use std::process::ExitCode;
use std::time::Duration;

use gateway::builder::Builder;
use shared::config::{Binary, Config};
use worker::prelude::*;

/// What the test waits for on standard error.
const MARKER: &str = "all modules started!";
const LOOK_INTERVAL: Duration = Duration::from_millis(5);

struct Flags {
    port: String,
    server_type: String,
    is_frontend: bool,
    serializer: String,
    prefix: String,
    is_debug: bool,
    is_grpc: bool,
    grpc_port: String,
}

impl Flags {
    fn parse(arguments: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut flags = Self {
            port: "32222".into(),
            server_type: "connector".into(),
            is_frontend: true,
            serializer: "json".into(),
            prefix: "pitaya/".into(),
            is_debug: false,
            is_grpc: false,
            grpc_port: "3434".into(),
        };
        let mut arguments = arguments;
        while let Some(argument) = arguments.next() {
            let name = argument.trim_start_matches('-');
            let (name, value) = match name.split_once('=') {
                Some((name, value)) => (name, Some(value.to_owned())),
                None => (name, None),
            };
            // As in Go, a switch takes its value behind "=" only.
            let switch = |value: &Option<String>| match value.as_deref() {
                None | Some("true") => Ok(true),
                Some("false") => Ok(false),
                Some(other) => Err(format!("-{name}={other}: neither true nor false")),
            };
            let mut text = |value| match value {
                Some(value) => Ok(value),
                None => arguments.next().ok_or_else(|| format!("-{name} needs a value")),
            };
            match name {
                "port" => flags.port = text(value)?,
                "type" => flags.server_type = text(value)?,
                "frontend" => flags.is_frontend = switch(&value)?,
                "serializer" => flags.serializer = text(value)?,
                "sdprefix" => flags.prefix = text(value)?,
                "debug" => flags.is_debug = switch(&value)?,
                "grpc" => flags.is_grpc = switch(&value)?,
                "grpcport" => flags.grpc_port = text(value)?,
                _ => return Err(format!("unknown flag {argument}")),
            }
        }
        Ok(flags)
    }

    fn config(&self) -> Result<Config, String> {
        let serializer = match self.serializer.as_str() {
            "json" => "1",
            "protobuf" => "2",
            other => return Err(format!("-serializer {other}: neither json nor protobuf")),
        };
        let binary = if self.is_frontend { Binary::Gateway } else { Binary::Worker };
        let mut settings = vec![
            ("pitaya.server.type", self.server_type.clone()),
            ("pitaya.serializertype", serializer.to_owned()),
            ("pitaya.cluster.sd.etcd.prefix", self.prefix.clone()),
            ("pitaya.log.level", if self.is_debug { "debug" } else { "info" }.to_owned()),
            ("pitaya.admin.listen", "127.0.0.1:0".to_owned()),
        ];
        if self.is_grpc {
            settings.extend([
                ("pitaya.cluster.rpc.transport", "grpc".to_owned()),
                ("pitaya.cluster.rpc.server.grpc.host", "127.0.0.1".to_owned()),
                ("pitaya.cluster.rpc.server.grpc.port", self.grpc_port.clone()),
            ]);
        }
        if self.is_frontend {
            settings.push(("pitaya.gateway.tcp", format!(":{}", self.port)));
            settings.push(("pitaya.gateway.ws", String::new()));
        }
        let settings: Vec<(String, String)> =
            settings.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
        Config::load(binary, None, std::env::vars(), &settings)
            .map_err(|errors| errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))
    }
}

fn main() -> ExitCode {
    let outcome = Flags::parse(std::env::args().skip(1)).and_then(|flags| run(&flags));
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(flags: &Flags) -> Result<(), String> {
    let config = flags.config()?;
    wire::choose(&flags.serializer);
    let app = handlers::app(&flags.server_type);
    if flags.is_frontend {
        let builder = Builder::new(config).application(app);
        return builder.run_then(|_| eprintln!("{MARKER}")).map_err(|error| error.to_string());
    }
    let _log = gateway::logging::start(
        config.string("pitaya.log.level"),
        config.string("pitaya.log.format"),
    )?;
    let runtime = tokio::runtime::Runtime::new().map_err(|error| error.to_string())?;
    let served = runtime.block_on(app.on_ready(mark_when_announced).run_with(&config));
    served.map_err(|error| error.to_string())
}

/// The application is ready before the server is announced; the marker means that others can see it.
async fn mark_when_announced(ctx: Ctx) {
    tokio::spawn(async move {
        while ctx.servers().by_id(ctx.server_id()).is_none() {
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
        eprintln!("{MARKER}");
    });
}
