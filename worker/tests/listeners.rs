//! Listeners of the cluster's servers, over a real nats-server and a real etcd.

#![allow(clippy::unwrap_used)] // A panic is how a test fails.

#[path = "../../shared/tests/servers/etcd.rs"]
#[allow(dead_code)] // Each test file uses its part.
mod etcd;
#[path = "../../shared/tests/servers/mod.rs"]
mod servers;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use etcd::Etcd;
use futures_util::StreamExt;
use servers::Nats;
use shared::cluster::discovery::{Discovery, DiscoveryOptions};
use shared::cluster::etcd::StoreOptions;
use shared::config::{Binary, Config};
use shared::server::{METADATA_WINDOW, Server};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use worker::prelude::*;
use worker::{DownCause, MemberListener, ServerListener};

/// How long anything may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

async fn soon<T>(future: impl Future<Output = T>) -> T {
    timeout(PATIENCE, future).await.expect("it takes too long")
}

fn server(id: &str, is_ours: bool) -> Server {
    let window = (METADATA_WINDOW.to_owned(), "10".to_owned());
    Server {
        id: id.to_owned(),
        server_type: "chat".to_owned(),
        metadata: is_ours.then_some(window).into_iter().collect(),
        frontend: false,
        hostname: String::new(),
    }
}

fn discover(etcd: &Etcd, id: &str, lease_ttl: Duration) -> Discovery {
    let options = DiscoveryOptions {
        store: StoreOptions::at(etcd.endpoint()),
        shutdown_delay: Duration::ZERO,
        lease_ttl,
        ..DiscoveryOptions::default()
    };
    Discovery::start(options, &server(id, true)).unwrap()
}

fn key(id: &str) -> String {
    format!("pitaya/servers/chat/{id}")
}

fn write(etcd: &Etcd, server: &Server) {
    etcd.put(&key(&server.id), &String::from_utf8(server.encode()).unwrap(), 0);
}

/// Answers what is sent to a server, so many times, and unsubscribes.
async fn serve(client: &async_nats::Client, id: &str, answers: usize) -> JoinHandle<()> {
    let mut requests = client.subscribe(server(id, true).subject()).await.unwrap();
    client.flush().await.unwrap();
    let client = client.clone();
    tokio::spawn(async move {
        for _ in 0..answers {
            let Some(request) = requests.next().await else { return };
            let not_found = Bytes::from_static(b"\x12\x09\x0a\x07PIT-404");
            client.publish(request.reply.unwrap(), not_found).await.unwrap();
        }
        requests.unsubscribe().await.unwrap();
        client.flush().await.unwrap();
    })
}

/// A worker that tells its test about servers.
struct Watching {
    stop: mpsc::Sender<()>,
    end: JoinHandle<Result<()>>,
}

fn watch(app: App, nats: &Nats, etcd: &Etcd) -> Watching {
    let (nats, etcd) = (nats.url(), etcd.endpoint());
    let flags = [
        ("pitaya.nats.connect", nats.as_str()),
        ("pitaya.cluster.sd.etcd.endpoints", etcd.as_str()),
        ("pitaya.cluster.sd.etcd.shutdown.delay", "0s"),
        ("pitaya.server.id", "room-1"),
        ("pitaya.admin.listen", "off"),
    ];
    let flags: Vec<_> =
        flags.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
    let config = Config::load(Binary::Worker, None, std::iter::empty(), &flags).unwrap();
    let (stop, stops) = mpsc::channel(4);
    let end = tokio::spawn(async move { app.run_until(&config, stops).await });
    Watching { stop, end }
}

impl Watching {
    async fn stop(self) {
        self.stop.send(()).await.unwrap();
        soon(self.end).await.unwrap().unwrap();
    }
}

fn noted(change: &ServerChange) -> String {
    match change {
        ServerChange::Added(server) => format!("+{}", server.id),
        ServerChange::Removed(server) => format!("-{}", server.id),
        ServerChange::Down(server, cause) => format!("{} {cause:?}", server.id),
    }
}

/// A listener that is a function, and what it is told.
fn told() -> (App, mpsc::UnboundedReceiver<String>) {
    let (sender, receiver) = mpsc::unbounded_channel();
    let app = App::new("room").on_server(move |change: ServerChange| {
        let _ = sender.send(noted(&change));
        async {}
    });
    (app, receiver)
}

async fn expect(changes: &mut mpsc::UnboundedReceiver<String>, expected: &[&str]) {
    for expected in expected {
        assert_eq!(soon(changes.recv()).await.unwrap(), *expected);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_leaves_is_told_from_one_that_crashed_and_one_whose_lease_was_lost() {
    let (nats, etcd) = (Nats::start(&[]), Etcd::start());
    let client = async_nats::connect(nats.url()).await.unwrap();
    // Who is there before the listener is reported too.
    let left = discover(&etcd, "left", Duration::from_secs(60));
    soon(left.register()).await;
    let (app, mut changes) = told();
    let watching = watch(app, &nats, &etcd);
    expect(&mut changes, &["+left"]).await;
    soon(left.shutdown()).await;
    expect(&mut changes, &["-left", "left Left"]).await;

    // A process that is killed: its lease expires, and nobody has its subscription.
    let crashed = discover(&etcd, "crashed", Duration::from_secs(1));
    soon(crashed.register()).await;
    expect(&mut changes, &["+crashed"]).await;
    drop(crashed);
    expect(&mut changes, &["-crashed", "crashed Crashed"]).await;

    // One that lives but is not in etcd any more.
    let serving = serve(&client, "lost", 1).await;
    write(&etcd, &server("lost", true));
    expect(&mut changes, &["+lost"]).await;
    etcd.delete(&key("lost"));
    expect(&mut changes, &["-lost", "lost LeaseLost"]).await;
    soon(serving).await.unwrap();

    // Go servers say nothing: one that stops answering a moment later has left, one that goes on has not.
    for (id, answers, expected) in [("go", 1, "go Left"), ("go-lost", 2, "go-lost LeaseLost")] {
        let serving = serve(&client, id, answers).await;
        write(&etcd, &server(id, false));
        expect(&mut changes, &[&format!("+{id}")]).await;
        etcd.delete(&key(id));
        expect(&mut changes, &[&format!("-{id}"), expected]).await;
        soon(serving).await.unwrap();
    }
    watching.stop().await;
}

struct Members(mpsc::UnboundedSender<String>);

impl MemberListener for Members {
    fn add_member(&self, server: &Server) {
        let _ = self.0.send(format!("+{}", server.id));
        assert!(server.id != "panic", "a listener that panics");
    }

    fn remove_member(&self, server: &Server) {
        let _ = self.0.send(format!("-{}", server.id));
    }

    fn server_down(&self, server: &Server, cause: DownCause) {
        let _ = self.0.send(format!("{} {cause:?}", server.id));
    }
}

struct Pair(mpsc::UnboundedSender<String>);

impl ServerListener for Pair {
    fn add_server(&self, server: &Server) {
        let _ = self.0.send(format!("+{}", server.id));
    }

    fn remove_server(&self, server: &Server) {
        let _ = self.0.send(format!("-{}", server.id));
    }
}

/// Blocks its thread at the first server until it is let go.
struct Blocked(Arc<AtomicBool>, std::sync::Mutex<std::sync::mpsc::Receiver<()>>);

impl ServerListener for Blocked {
    fn add_server(&self, _: &Server) {
        if !self.0.swap(true, Ordering::Relaxed) {
            let _ = self.1.lock().unwrap().recv();
        }
    }

    fn remove_server(&self, _: &Server) {}
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn listeners_disturb_neither_each_other_nor_the_table() {
    let (nats, etcd) = (Nats::start(&[]), Etcd::start());
    let (sender, mut members) = mpsc::unbounded_channel();
    let (pair_sender, mut pair) = mpsc::unbounded_channel();
    let (release, released) = std::sync::mpsc::channel();
    let is_blocked = Arc::new(AtomicBool::new(false));
    let (app, mut changes) = told();
    let app = app
        .add_server_listener(Blocked(Arc::clone(&is_blocked), std::sync::Mutex::new(released)))
        .on_server(async || -> Result<()> { panic!("a function that panics") })
        .add_listener(Members(sender))
        .add_server_listener(Pair(pair_sender));
    let watching = watch(app, &nats, &etcd);
    for id in ["panic", "b"] {
        write(&etcd, &server(id, true));
        let added = format!("+{id}");
        expect(&mut changes, &[&added]).await;
        expect(&mut members, &[&added]).await;
        expect(&mut pair, &[&added]).await;
    }
    etcd.delete(&key("b"));
    expect(&mut changes, &["-b", "b Crashed"]).await;
    expect(&mut members, &["-b", "b Crashed"]).await;
    expect(&mut pair, &["-b"]).await;
    // The own server and what is no server are never reported.
    etcd.put("pitaya/servers/chat/bad", "{", 0);
    write(&etcd, &server("c", true));
    expect(&mut changes, &["+c"]).await;
    assert!(is_blocked.load(Ordering::Relaxed));
    drop(release);
    watching.stop().await;
}
