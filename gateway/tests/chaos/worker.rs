//! The worker processes: this test program, started again, with an application that chaos can be measured with.

use std::io::Read;
use std::process::Command;

use ::worker::prelude::*;
use serde::Deserialize;
use shared::config::{Binary, Config};
use tokio::sync::mpsc;

use crate::servers::guarded;

/// Says to this program that it is a worker, and with which settings: `key=value`, one a line.
const VARIABLE: &str = "DRAGONFRUIT_CHAOS_WORKER";

/// The command that starts a worker with these settings.
pub(crate) fn command(settings: &[(String, String)]) -> Command {
    let mut command = guarded::command(std::env::current_exe().unwrap());
    let lines: Vec<String> = settings.iter().map(|(key, value)| format!("{key}={value}")).collect();
    command.args(["--exact", "a_worker_process_serves_when_it_is_started_as_one", "--nocapture"]);
    command.env(VARIABLE, lines.join("\n"));
    command
}

#[derive(Deserialize)]
struct Name {
    name: String,
}

#[derive(Deserialize)]
struct Flood {
    call: u64,
    count: u64,
}

fn app() -> App {
    App::new("room")
        .on("chaos.echo", async |body: bytes::Bytes| -> Result<bytes::Bytes> { Ok(body) })
        .on("chaos.bind", async |session: Session, name: Name| -> Result<bytes::Bytes> {
            session.bind(&name.name).await?;
            Ok(bytes::Bytes::new())
        })
        .on("chaos.flood", async |session: Session, flood: Flood| -> Result<bytes::Bytes> {
            for index in 0..flood.count {
                let body = format!("{}:{index}", flood.call);
                session.push("onChaos", &bytes::Bytes::from(body)).await?;
            }
            Ok(bytes::Bytes::new())
        })
}

/// Serves until standard input ends, which it does with whoever started the process.
pub(crate) fn serve_if_asked() {
    let Ok(text) = std::env::var(VARIABLE) else { return };
    let settings: Vec<(String, String)> = text
        .lines()
        .filter_map(|line| line.split_once('='))
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect();
    let config = Config::load(Binary::Worker, None, std::iter::empty(), &settings).unwrap();
    let (stop, stops) = mpsc::channel(1);
    std::thread::spawn(move || {
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        let _ = stop.blocking_send(());
    });
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    runtime.block_on(app().run_until(&config, stops)).unwrap();
}
