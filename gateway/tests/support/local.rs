//! A standalone gateway inside the test process, with a small application of its own.

use std::net::SocketAddr;
use std::time::Duration;

use gateway::control::plan::Plan;
use gateway::gateway::{Commands, Gateway};
use serde::{Deserialize, Serialize};
use shared::config::{Binary, Config};
use worker::prelude::*;

/// Both drivers: every test of behaviour runs on each.
pub(crate) const DRIVERS: [&str; 2] = ["uring", "epoll"];

#[derive(Deserialize)]
struct Name {
    name: String,
}

#[derive(Deserialize)]
struct Flood {
    n: usize,
    size: usize,
}

#[derive(Deserialize)]
struct Sleep {
    ms: u64,
}

#[derive(Serialize)]
struct Done {
    code: u32,
}

/// The application: what tests need to see of sessions, pushes, order and errors.
pub(crate) fn app() -> App {
    App::new("room")
        .on("test.echo", async |body: bytes::Bytes| -> Result<bytes::Bytes> { Ok(body) })
        .on("test.bind", async |session: Session, name: Name| -> Result<Done> {
            session.bind(&name.name).await?;
            Ok(Done { code: 200 })
        })
        .on("test.data", async |session: Session, value: serde_json::Value| -> Result<Done> {
            session.set("value", value)?;
            session.save().await?;
            Ok(Done { code: 200 })
        })
        .on("test.read", async |session: Session| -> Result<serde_json::Value> {
            Ok(session.get("value")?.unwrap_or_default())
        })
        .on("test.address", async |session: Session| -> Result<[String; 2]> {
            let told = |key| session.get::<String>(key).map(Option::unwrap_or_default);
            Ok([told("ipversion")?, told("ip")?])
        })
        .on("test.kick", async |session: Session| -> Result<Done> {
            session.kick().await?;
            Ok(Done { code: 200 })
        })
        .on("test.sleep", async |sleep: Sleep| -> Result<Done> {
            tokio::time::sleep(Duration::from_millis(sleep.ms)).await;
            Ok(Done { code: 200 })
        })
        .on("test.flood", async |session: Session, flood: Flood| -> Result<Done> {
            if session.uid().is_none() {
                session.bind(&session.id().to_string()).await?;
            }
            for number in 0..flood.n as u64 {
                let mut body = number.to_be_bytes().to_vec();
                // Small ones deflate well, large ones not at all.
                let is_noise = flood.size >= 1_000;
                let filler = || if is_noise { fastrand::u8(..) } else { 0xa5 };
                body.resize_with(flood.size.max(8), filler);
                session.push("onFlood", &bytes::Bytes::from(body)).await?;
            }
            Ok(Done { code: 200 })
        })
        .on("test.noise", async |session: Session, flood: Flood| -> Result<Done> {
            if session.uid().is_none() {
                session.bind(&session.id().to_string()).await?;
            }
            // Of a kind that compression does not shorten.
            let noise: Vec<u8> = (0..flood.size).map(|_| fastrand::u8(..)).collect();
            for number in 0..flood.n as u64 {
                let mut body = number.to_be_bytes().to_vec();
                body.extend(noise.iter().skip(body.len()));
                let body = bytes::Bytes::from(body);
                // The way to the gateway is bounded; when it is full this waits for its turn.
                for _ in 0..1_000 {
                    if session.push("onNoise", &body).await.is_ok() {
                        break;
                    }
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            }
            Ok(Done { code: 200 })
        })
        .on("test.fail", async |_: Session| -> Result<Done> { bail!("GAME-1", "as asked") })
        .on("test.notify", async |_: bytes::Bytes| {})
}

/// A gateway on free ports with these settings on top of the defaults.
pub(crate) fn start(driver: &str, settings: &[(&str, &str)]) -> Gateway {
    start_changed(driver, settings, |_| {})
}

/// The same, with something in its plan that no setting expresses.
pub(crate) fn start_changed(
    driver: &str,
    settings: &[(&str, &str)],
    change: impl FnOnce(&mut Plan),
) -> Gateway {
    let mut all: Vec<(String, String)> = vec![
        ("pitaya.gateway.tcp".into(), "127.0.0.1:0".into()),
        ("pitaya.gateway.ws".into(), "127.0.0.1:0".into()),
        ("pitaya.admin.listen".into(), "127.0.0.1:0".into()),
        ("pitaya.gateway.threads".into(), "2".into()),
        ("pitaya.gateway.driver".into(), driver.into()),
    ];
    all.extend(settings.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())));
    let config =
        Config::load(Binary::Gateway, None, std::iter::empty(), &all).expect("good settings");
    let mut plan = Plan::new(&config, Some(app())).expect("a good plan");
    change(&mut plan);
    Gateway::start(plan, Commands::new()).expect("the gateway starts")
}

/// Where TCP clients connect.
pub(crate) fn tcp(gateway: &Gateway) -> SocketAddr {
    gateway.addresses().tcp[0]
}

/// Where WebSocket clients connect.
pub(crate) fn ws(gateway: &Gateway) -> SocketAddr {
    gateway.addresses().ws[0]
}
