//! A WebSocket echo server over the gateway's own reactors, for suites that test the framing, such as Autobahn's.
//!
//! It is the whole gateway (drivers, TLS, outbox, deadlines) with one change: messages come back as they are instead of
//! being taken for packets, and the sizes are those that such suites ask for.
//!
//! ```text
//! cargo run -p dragonfruit-gateway --example echo -- 127.0.0.1:9001 [uring|epoll] [CERTIFICATE KEY]
//! ```

use std::sync::Arc;

use gateway::control::plan::Plan;
use gateway::gateway::{Commands, Gateway};
use gateway::wire::Content;
use shared::config::{Binary, Config};
use shared::websocket::frame::FrameLimits;

/// The largest message of Autobahn's list is 16 MiB, the smallest fragments of it have 64 bytes.
const LIMITS: FrameLimits =
    FrameLimits { message_bytes_max: 32 * 1024 * 1024, fragments_max: 1024 * 1024 };

fn main() -> Result<(), String> {
    let mut arguments = std::env::args().skip(1);
    let address = arguments.next().unwrap_or_else(|| "127.0.0.1:9001".to_owned());
    let mut settings = vec![
        ("pitaya.gateway.tcp", "off".to_owned()),
        ("pitaya.gateway.ws", address),
        ("pitaya.gateway.driver", arguments.next().unwrap_or_else(|| "auto".to_owned())),
        ("pitaya.admin.listen", "off".to_owned()),
        ("pitaya.gateway.threads", "1".to_owned()),
        ("pitaya.gateway.outbox.maxbytes", (256 * 1024 * 1024).to_string()),
        // Nobody says a Pitaya handshake or a heartbeat here.
        ("pitaya.gateway.handshake.timeout", "1h".to_owned()),
        ("pitaya.heartbeat.interval", "1h".to_owned()),
    ];
    if let (Some(certificate), Some(key)) = (arguments.next(), arguments.next()) {
        settings.push(("pitaya.gateway.tls.cert", certificate));
        settings.push(("pitaya.gateway.tls.key", key));
    }
    let settings: Vec<(String, String)> =
        settings.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
    let config = Config::load(Binary::Gateway, None, std::iter::empty(), &settings)
        .map_err(|errors| format!("{errors:?}"))?;
    let application = worker::App::new("echo");
    let mut plan = Plan::new(&config, Some(application)).map_err(|errors| errors.join("\n"))?;
    if let Some(rules) = Arc::get_mut(&mut plan.rules) {
        rules.wire.content = Content::Echo;
        rules.wire.frames = LIMITS;
    }
    let gateway = Gateway::start(plan, Commands::new()).map_err(|error| error.to_string())?;
    let addresses = gateway.addresses();
    println!("ws {:?} wss {:?}", addresses.ws, addresses.wss);
    gateway.wait();
    Ok(())
}
