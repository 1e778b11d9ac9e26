//! A worker in a real cluster: nats-server, etcd, and a gateway that is only what a worker needs of one.

#![allow(clippy::unwrap_used)] // A panic is how a test fails.

#[path = "../../shared/tests/servers/mod.rs"]
mod servers;
mod support;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use prost::Message;
use servers::{Etcd, Nats, guarded};
use shared::cluster::discovery::{Discovery, DiscoveryOptions};
use shared::cluster::etcd::StoreOptions;
use shared::config::{Binary, Config};
use shared::server::{METADATA_WINDOW, Server};
use support::{FRONTEND, notify, request};
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use worker::demo::{self, DemoOptions};
use worker::{App, Error, Session};

/// How long anything may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

async fn soon<T>(future: impl Future<Output = T>) -> T {
    timeout(PATIENCE, future).await.expect("it takes too long")
}

fn discovery_options(etcd: &Etcd) -> DiscoveryOptions {
    DiscoveryOptions {
        store: StoreOptions::at(etcd.url()),
        shutdown_delay: Duration::from_millis(50),
        ..DiscoveryOptions::default()
    }
}

fn config(nats: &Nats, etcd: &Etcd, more: &[(&str, &str)]) -> Config {
    let (nats, etcd) = (nats.url(), etcd.url());
    let mut flags = vec![
        ("pitaya.nats.connect", nats.as_str()),
        ("pitaya.cluster.sd.etcd.endpoints", etcd.as_str()),
        ("pitaya.cluster.sd.etcd.shutdown.delay", "50ms"),
        ("pitaya.cluster.rpc.server.nats.reconnectwait", "50ms"),
        ("pitaya.cluster.rpc.server.nats.reconnectjitter", "10ms"),
        ("pitaya.server.id", "room-1"),
        ("pitaya.admin.listen", "127.0.0.1:0"),
    ];
    flags.extend(more);
    let flags: Vec<_> =
        flags.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
    Config::load(Binary::Worker, None, std::iter::empty(), &flags).unwrap()
}

/// What a worker needs of a gateway: it is in etcd, sends requests, and answers `sys` calls.
struct Gateway {
    client: async_nats::Client,
    discovery: Discovery,
    calls: mpsc::UnboundedReceiver<proto::Msg>,
}

impl Gateway {
    async fn start(nats: &Nats, etcd: &Etcd) -> Self {
        let client = async_nats::connect(nats.url()).await.unwrap();
        let own = Server {
            id: FRONTEND.into(),
            server_type: "connector".into(),
            metadata: BTreeMap::new(),
            frontend: true,
            hostname: String::new(),
        };
        let mut requests = client.subscribe(own.subject()).await.unwrap();
        let discovery = Discovery::start(discovery_options(etcd), &own).unwrap();
        soon(discovery.register()).await;
        let (sender, calls) = mpsc::unbounded_channel();
        let answers = client.clone();
        tokio::spawn(async move {
            while let Some(message) = requests.next().await {
                let request = proto::Request::decode(message.payload).unwrap();
                let ack = Bytes::from_static(b"\x0a\x05\x0a\x03ack");
                answers.publish(message.reply.unwrap(), ack).await.unwrap();
                let _ = sender.send(request.msg.unwrap());
            }
        });
        Self { client, discovery, calls }
    }

    /// The worker once it is announced.
    async fn worker(&self) -> Arc<Server> {
        let mut tables = self.discovery.tables();
        let table = soon(tables.wait_for(|table| table.by_id("room-1").is_some())).await.unwrap();
        Arc::clone(table.by_id("room-1").unwrap())
    }

    async fn wait_until_gone(&self) {
        let mut tables = self.discovery.tables();
        soon(tables.wait_for(|table| table.by_id("room-1").is_none())).await.unwrap();
    }

    async fn send(
        &self,
        request: proto::Request,
    ) -> Result<proto::Response, async_nats::RequestError> {
        let subject = "pitaya/servers/room/room-1";
        let message = self.client.request(subject, request.encode_to_vec().into()).await?;
        Ok(proto::Response::decode(message.payload).unwrap())
    }

    async fn ask(&self, session: i64, route: &str, data: &str) -> Bytes {
        let response = soon(self.send(request(session, route, data.to_owned()))).await.unwrap();
        assert_eq!(response.error, None);
        response.data
    }
}

/// A worker in this process.
struct Running {
    stop: mpsc::Sender<()>,
    end: JoinHandle<worker::Result<()>>,
}

fn start(app: App, config: Config) -> Running {
    let (stop, stops) = mpsc::channel(4);
    let end = tokio::spawn(async move { app.run_until(&config, stops).await });
    Running { stop, end }
}

impl Running {
    async fn stop(self) {
        self.stop.send(()).await.unwrap();
        soon(self.end).await.unwrap().unwrap();
    }
}

fn test_app() -> App {
    demo::app(DemoOptions { test_routes: true })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_session_calls_and_pushes_cross_the_cluster() {
    let (nats, etcd) = (Nats::start(&[]), Etcd::start());
    let mut gateway = Gateway::start(&nats, &etcd).await;
    let worker = start(test_app(), config(&nats, &etcd, &[]));
    let server = gateway.worker().await;
    assert_eq!((server.server_type.as_str(), server.frontend), ("room", false));
    assert_eq!(server.metadata[METADATA_WINDOW], "10000");

    assert_eq!(&gateway.ask(1, "room.test.echo", "hello").await[..], b"hello");
    let noted = gateway.send(notify(1, "room.room.message", "{}")).await.unwrap();
    assert_eq!(noted.error.unwrap().code, "PIT-400");

    // One subscription to everything sees what leaves the worker in the order in which it left.
    let mut everything = gateway.client.subscribe(">").await.unwrap();
    gateway.client.flush().await.unwrap();
    // More than async-nats takes at once, so that the outbox has its part.
    gateway.ask(5, "room.test.flood", r#"{"n":10000,"size":300}"#).await;
    let bind = soon(gateway.calls.recv()).await.unwrap();
    assert_eq!(bind.route, "sys.bindsession");
    let mut numbers = Vec::new();
    while numbers.len() < 10_000 {
        let message = soon(everything.next()).await.unwrap();
        if message.subject.as_str() == "pitaya/connector/user/5/push" {
            let push = proto::Push::decode(message.payload).unwrap();
            numbers.push(u64::from_be_bytes(push.data[..8].try_into().unwrap()));
        } else {
            let is_answer = message.payload.as_ref() == b"\x0a\x0c{\"code\":200}";
            assert!(!is_answer, "the answer overtook a push");
        }
    }
    assert!(numbers.into_iter().eq(0..10_000));
    worker.stop().await;
    gateway.wait_until_gone().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_graceful_stop_finishes_what_runs_and_what_is_queued() {
    let (nats, etcd) = (Nats::start(&[]), Etcd::start());
    let gateway = Gateway::start(&nats, &etcd).await;
    let (started, open) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (note, wait) = (Arc::clone(&started), Arc::clone(&open));
    let app = App::new("room")
        .on("gate.slow", move |session: Session| {
            let (note, wait) = (Arc::clone(&note), Arc::clone(&wait));
            async move {
                note.notify_one();
                wait.notified().await;
                Ok::<_, Error>(session.id())
            }
        })
        .on("gate.fast", async || Ok::<_, Error>("fast"));
    let worker = start(app, config(&nats, &etcd, &[]));
    gateway.worker().await;
    let slow = gateway.send(request(1, "room.gate.slow", ""));
    let queued = gateway.send(request(1, "room.gate.fast", ""));
    let end = async {
        soon(started.notified()).await;
        // Another session's answer proves that the one behind the slow one has arrived too.
        gateway.ask(2, "room.gate.fast", "").await;
        worker.stop.send(()).await.unwrap();
        gateway.wait_until_gone().await;
        open.notify_one();
        soon(worker.end).await.unwrap().unwrap();
    };
    let (slow, queued, ()) = soon(futures_util::future::join3(slow, queued, end)).await;
    assert_eq!(&slow.unwrap().data[..], b"1");
    assert_eq!(&queued.unwrap().data[..], b"\"fast\"");
    let gone = gateway.send(request(1, "room.gate.fast", "")).await.unwrap_err();
    assert_eq!(gone.kind(), async_nats::RequestErrorKind::NoResponders);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_that_race_with_the_stop_are_answered_or_refused_at_once() {
    let (nats, etcd) = (Nats::start(&[]), Etcd::start());
    let gateway = Gateway::start(&nats, &etcd).await;
    let worker = start(test_app(), config(&nats, &etcd, &[]));
    gateway.worker().await;
    // Gateways that never look at etcd: they go on until nobody listens any more.
    let asker = async |player: i64| {
        for asked in 0.. {
            match gateway.send(request(player, "room.test.echo", "x")).await {
                Ok(response) => assert_eq!(response.error, None),
                Err(error) => {
                    assert_eq!(error.kind(), async_nats::RequestErrorKind::NoResponders, "{asked}");
                    return asked;
                }
            }
        }
        0
    };
    let askers = futures_util::future::join_all((1..=32).map(asker));
    let end = async {
        gateway.ask(99, "room.test.echo", "").await;
        worker.stop().await;
    };
    let (counts, ()) = soon(futures_util::future::join(askers, end)).await;
    assert!(counts.into_iter().all(|count| count > 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_waits_for_nats_and_survives_its_loss() {
    let (mut nats, etcd) = (Nats::start(&[]), Etcd::start());
    nats.stop();
    let worker = start(test_app(), config(&nats, &etcd, &[]));
    nats.restart_same_port();
    let gateway = Gateway::start(&nats, &etcd).await;
    gateway.worker().await;
    gateway.ask(1, "room.test.echo", "before").await;
    nats.restart_same_port();
    // The gateway's own client comes back too; until then and until the worker did, requests fail.
    let answer = async {
        loop {
            match gateway.send(request(1, "room.test.echo", "after")).await {
                Ok(response) => break response,
                Err(_) => tokio::task::yield_now().await,
            }
        }
    };
    assert_eq!(&soon(answer).await.data[..], b"after");
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_ends_while_nats_is_away() {
    let (mut nats, etcd) = (Nats::start(&[]), Etcd::start());
    let gateway = Gateway::start(&nats, &etcd).await;
    let worker = start(test_app(), config(&nats, &etcd, &[]));
    gateway.worker().await;
    nats.kill();
    worker.stop().await;
    gateway.wait_until_gone().await;
}

/// A port that is free now. nats-servers of one system must know each other's before they start.
fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_leaves_a_nats_server_that_announces_its_end_without_losing_a_request() {
    let (routes, second, pages) = (free_port(), free_port(), free_port());
    let listen = format!("nats://127.0.0.1:{routes}");
    let mut going = Nats::start(&["--cluster_name", "c", "--cluster", &listen]);
    let etcd = Etcd::start();
    // The other server is not up yet, so the worker has no choice at first.
    let urls = format!("{},nats://127.0.0.1:{second}", going.url());
    let worker = start(test_app(), config(&going, &etcd, &[("pitaya.nats.connect", &urls)]));
    {
        let gateway = Gateway::start(&going, &etcd).await;
        gateway.worker().await;
    }
    let (second, pages) = (second.to_string(), pages.to_string());
    let staying = Nats::start(&[
        "--cluster_name",
        "c",
        "--cluster",
        "nats://127.0.0.1:-1",
        "--routes",
        &listen,
        "-p",
        &second,
        "-m",
        &pages,
    ]);
    let gateway = Gateway::start(&staying, &etcd).await;
    gateway.worker().await;
    let reachable = async {
        while gateway.send(request(1, "room.test.echo", "")).await.is_err() {
            tokio::task::yield_now().await;
        }
    };
    soon(reachable).await;
    going.lame_duck();
    // Several players at once, so that some request is on its way at every moment of the move.
    let is_over = AtomicBool::new(false);
    let asker = async |player: i64| {
        let mut asked = 0;
        while !is_over.load(Ordering::Relaxed) {
            asked += 1;
            let text = format!("{player} {asked}");
            assert_eq!(gateway.ask(player, "room.test.echo", &text).await, text);
        }
    };
    let observer = async {
        while !get(&format!("127.0.0.1:{pages}"), "/connz").contains("room/room-1") {
            gateway.ask(99, "room.test.echo", "").await;
        }
        // The requests on their way over the old connection have to be answered as well.
        for _ in 0..100 {
            gateway.ask(99, "room.test.echo", "").await;
        }
        is_over.store(true, Ordering::Relaxed);
    };
    let askers = futures_util::future::join_all((1..=16).map(asker));
    soon(futures_util::future::join(askers, observer)).await;
    going.kill();
    // Until the other server has noticed, it may send a request there.
    while !get(&format!("127.0.0.1:{pages}"), "/routez").contains("\"num_routes\": 0") {
        tokio::task::yield_now().await;
    }
    for number in 0..100 {
        gateway.ask(number, "room.test.echo", "x").await;
    }
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_logs_in_over_tls() {
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = directory.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let key = rcgen::KeyPair::generate().unwrap();
    let parameters = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    let certificate = file("cert.pem", &parameters.self_signed(&key).unwrap().pem());
    let key = file("key.pem", &key.serialize_pem());
    let nats = Nats::start(&[
        "--user",
        "game",
        "--pass",
        "s e/c:ret",
        "--tls",
        "--tlscert",
        &certificate,
        "--tlskey",
        &key,
    ]);
    let url = format!("tls://localhost:{}", nats.address().port());
    let (sender, _events) = mpsc::channel(8);
    let mut settings = worker::nats::NatsSettings::new(url, "room/1");
    settings.tls_ca = Some(certificate.into());
    settings.user = Some(("game".into(), "wrong".into()));
    assert!(worker::nats::connect(&settings, sender.clone()).await.is_err());
    settings.user = Some(("game".into(), "s e/c:ret".into()));
    let client = soon(worker::nats::connect(&settings, sender.clone())).await.unwrap();
    soon(worker::nats::barrier(&client, PATIENCE)).await.unwrap();
    settings.tls_ca = None;
    assert!(worker::nats::connect(&settings, sender).await.is_err(), "an unknown authority");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_stop_ends_the_wait_for_what_still_runs() {
    let (nats, etcd) = (Nats::start(&[]), Etcd::start());
    let gateway = Gateway::start(&nats, &etcd).await;
    let worker = start(test_app(), config(&nats, &etcd, &[]));
    gateway.worker().await;
    let sleeping = gateway.send(request(1, "room.test.sleep", r#"{"ms":60000}"#));
    let end = async {
        gateway.ask(2, "room.test.echo", "").await;
        worker.stop.send(()).await.unwrap();
        worker.stop.send(()).await.unwrap();
        soon(worker.end).await.unwrap().unwrap();
    };
    tokio::select! {
        answer = sleeping => panic!("{answer:?}"),
        () = end => {}
    }
}

/// The binary, killed when this is dropped.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn command() -> Command {
    let mut command = guarded::command(env!("CARGO_BIN_EXE_worker"));
    command.env_clear();
    command
}

fn get(address: &str, path: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_binary_serves_reports_its_health_and_ends_well_on_sigterm() {
    let (nats, etcd) = (Nats::start(&[]), Etcd::start());
    let gateway = Gateway::start(&nats, &etcd).await;
    let mut command = command();
    command.args(["--test-routes", "--id", "room-1", "--set", "pitaya.admin.listen=127.0.0.1:0"]);
    command.env("PITAYA_CLUSTER_RPC_CLIENT_NATS_CONNECT", nats.url());
    command.env("PITAYA_CLUSTER_RPC_SERVER_NATS_CONNECT", nats.url());
    command.env("PITAYA_CLUSTER_SD_ETCD_ENDPOINTS", etcd.url());
    command.stderr(Stdio::piped());
    let mut process = Process(guarded::spawn(command).unwrap());
    let lines = BufReader::new(process.0.stderr.take().unwrap()).lines();
    let pages = tokio::task::spawn_blocking(move || {
        let mut lines = lines.map_while(Result::ok);
        let line = lines.find(|line| line.contains("health and metrics")).unwrap();
        let address = line.split("\"address\":\"").nth(1).unwrap().split('"').next().unwrap();
        // Somebody must read on, or the process would wait for its log.
        std::thread::spawn(move || lines.for_each(drop));
        address.to_owned()
    });
    let pages = soon(pages).await.unwrap();
    gateway.worker().await;
    gateway.ask(1, "room.test.echo", "x").await;
    assert!(get(&pages, "/healthz").starts_with("HTTP/1.1 200"));
    let ready = async {
        while !get(&pages, "/readyz").starts_with("HTTP/1.1 200") {
            tokio::task::yield_now().await;
        }
    };
    soon(ready).await;
    let metrics = get(&pages, "/metrics");
    let labels = "game=\"\",serverType=\"room\"";
    for counted in [
        format!("pitaya_handler_requests_replied_total{{{labels}}} 1"),
        format!("pitaya_service_discovery_count_servers{{{labels},type=\"connector\"}} 1"),
        format!(
            "pitaya_handler_response_time_ns_count{{{labels},route=\"room.test.echo\",status=\"ok\",type=\"handler\",code=\"\"}} 1"
        ),
    ] {
        assert!(metrics.contains(&counted), "{counted} is not in {metrics}");
    }

    let sleeping = gateway.send(request(1, "room.test.sleep", r#"{"ms":700}"#));
    let end = async {
        gateway.ask(2, "room.test.echo", "").await;
        let id = process.0.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &id]).status().unwrap().success());
        gateway.wait_until_gone().await;
    };
    let (answer, ()) = soon(futures_util::future::join(sleeping, end)).await;
    assert_eq!(&answer.unwrap().data[..], br#"{"code":200}"#);
    let status = tokio::task::spawn_blocking(move || process.0.wait()).await.unwrap().unwrap();
    assert_eq!(status.code(), Some(0));
}

#[test]
fn the_configuration_can_be_checked_and_printed() {
    let run = |arguments: &[&str]| command().args(arguments).output().unwrap();
    assert_eq!(run(&["--check-config"]).status.code(), Some(0));
    let bad = ["--check-config", "--set", "pitaya.nats.conect=x", "--set", "pitaya.server.id=a b"];
    let output = run(&bad);
    assert_eq!(output.status.code(), Some(2));
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.contains("pitaya.nats.conect") && text.contains("pitaya.server.id"), "{text}");
    let output = run(&["--print-config", "--type", "chat", "--set", "pitaya.nats.token=secret"]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("pitaya.server.type") && text.contains("chat"), "{text}");
    assert!(!text.contains("secret"), "{text}");
}
