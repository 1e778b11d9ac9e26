//! Batches at a real worker over a real nats-server: each request as if it had come alone, answers together, order kept.

#![allow(clippy::unwrap_used)] // A panic is how a test fails.

#[path = "../../shared/tests/servers/mod.rs"]
mod servers;
mod support;

use std::collections::BTreeMap;
use std::time::Duration;

use async_nats::Message as NatsMessage;
use bytes::Bytes;
use futures_util::StreamExt;
use prost::Message;
use proto::wire::{BATCH_HEADER, BatchView, NO_TOKEN, PROBE, is_batch, put_batch_entry_head};
use servers::{Etcd, Nats};
use shared::cluster::discovery::{Discovery, DiscoveryOptions};
use shared::cluster::etcd::StoreOptions;
use shared::config::{Binary, Config};
use shared::server::{PROTOCOL_BATCHES, Server};
use support::{FRONTEND, notify, request};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use worker::demo::{self, DemoOptions};
use worker::prelude::*;

const PATIENCE: Duration = Duration::from_secs(30);
const SUBJECT: &str = "pitaya/servers/room/room-1";

async fn soon<T>(future: impl Future<Output = T>) -> T {
    timeout(PATIENCE, future).await.expect("it takes too long")
}

/// A worker and somebody who plays its gateway.
struct World {
    client: async_nats::Client,
    answers: async_nats::Subscriber,
    stop: mpsc::Sender<()>,
    end: JoinHandle<worker::Result<()>>,
    _servers: (Nats, Etcd),
}

impl World {
    async fn start(app: App, more: &[(&str, &str)]) -> Self {
        let (nats, etcd) = (Nats::start(&[]), Etcd::start());
        let (nats_url, etcd_url) = (nats.url(), etcd.url());
        let mut flags = vec![
            ("pitaya.nats.connect", nats_url.as_str()),
            ("pitaya.cluster.sd.etcd.endpoints", etcd_url.as_str()),
            ("pitaya.cluster.sd.etcd.shutdown.delay", "50ms"),
            ("pitaya.server.id", "room-1"),
            ("pitaya.admin.listen", "127.0.0.1:0"),
        ];
        flags.extend(more);
        let flags: Vec<_> =
            flags.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
        let config = Config::load(Binary::Worker, None, std::iter::empty(), &flags).unwrap();
        let client = async_nats::connect(nats.url()).await.unwrap();
        let answers = client.subscribe("_INBOX.gate.*").await.unwrap();
        let own = Server {
            id: FRONTEND.into(),
            server_type: "connector".into(),
            metadata: BTreeMap::new(),
            frontend: true,
            hostname: String::new(),
        };
        let options = DiscoveryOptions {
            store: StoreOptions::at(etcd.url()),
            shutdown_delay: Duration::ZERO,
            ..DiscoveryOptions::default()
        };
        let discovery = Discovery::start(options, &own).unwrap();
        soon(discovery.register()).await;
        let (stop, stops) = mpsc::channel(4);
        let end = tokio::spawn(async move { app.run_until(&config, stops).await });
        let mut tables = discovery.tables();
        let table = soon(tables.wait_for(|table| table.by_id("room-1").is_some())).await.unwrap();
        assert!(table.by_id("room-1").unwrap().speaks(PROTOCOL_BATCHES), "it says so in etcd");
        Self { client, answers, stop, end, _servers: (nats, etcd) }
    }

    async fn send(&self, reply: &str, payload: Vec<u8>) {
        let (subject, reply) = (SUBJECT.to_owned(), reply.to_owned());
        self.client.publish_with_reply(subject, reply, payload.into()).await.unwrap();
        self.client.flush().await.unwrap();
    }

    async fn next(&mut self) -> NatsMessage {
        soon(self.answers.next()).await.unwrap()
    }

    /// Answers by token as they come, until there are `count`; and how many messages it were.
    async fn answered(&mut self, count: usize) -> (Vec<(u32, proto::Response)>, usize) {
        let (mut all, mut messages) = (Vec::new(), 0);
        while all.len() < count {
            let message = self.next().await;
            messages += 1;
            let last = message.subject.rsplit('.').next().unwrap();
            if is_batch(&message.payload) {
                assert_eq!(last, "b");
                let batch = BatchView::decode(&message.payload).unwrap();
                all.extend(
                    batch
                        .entries()
                        .map(|(token, answer)| (token, proto::Response::decode(answer).unwrap())),
                );
            } else {
                let answer = proto::Response::decode(message.payload.clone()).unwrap();
                all.push((last.parse().unwrap(), answer));
            }
        }
        assert_eq!(all.len(), count, "an answer too many");
        (all, messages)
    }

    async fn stop(self) {
        self.stop.send(()).await.unwrap();
        soon(self.end).await.unwrap().unwrap();
    }
}

fn batch(requests: impl IntoIterator<Item = (u32, proto::Request)>) -> Vec<u8> {
    let mut out = BATCH_HEADER.to_vec();
    for (token, request) in requests {
        let request = request.encode_to_vec();
        put_batch_entry_head(token, request.len(), &mut out);
        out.extend_from_slice(&request);
    }
    out
}

fn echo(session: i64, data: &str) -> proto::Request {
    request(session, "room.test.echo", data.to_owned())
}

fn demo() -> App {
    demo::app(DemoOptions { test_routes: true })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_request_of_a_batch_is_answered_under_its_token_in_few_messages() {
    let mut world = World::start(demo(), &[]).await;
    let requests =
        (0..50).map(|token| (token, echo(i64::from(token % 10) + 1, &token.to_string())));
    world.send("_INBOX.gate.b0", batch(requests)).await;
    let (answers, messages) = world.answered(50).await;
    let mut newest = BTreeMap::new();
    for (token, answer) in answers {
        assert_eq!((answer.data, answer.error), (Bytes::from(token.to_string()), None));
        let before = newest.insert(token % 10, token);
        assert!(before < Some(token), "session {}: {token} after {before:?}", token % 10);
    }
    assert!(messages <= 25, "{messages} messages");
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_waits_for_no_other_of_its_batch() {
    let gate = std::sync::Arc::new(tokio::sync::Notify::new());
    let held = gate.clone();
    let app = App::new("room")
        .on("gate.closed", move || {
            let held = held.clone();
            async move {
                held.notified().await;
                Ok::<_, Error>("late")
            }
        })
        .on("gate.open", async || Ok::<_, Error>("early"));
    let mut world = World::start(app, &[]).await;
    let ask = |session, route: &str| request(session, route, "");
    let requests = [(1, ask(1, "room.gate.closed")), (2, ask(2, "room.gate.open"))];
    world.send("_INBOX.gate.b1", batch(requests)).await;
    let (early, _) = world.answered(1).await;
    assert_eq!((early[0].0, &early[0].1.data[..]), (2, &b"\"early\""[..]));
    gate.notify_one();
    let (late, _) = world.answered(1).await;
    assert_eq!((late[0].0, &late[0].1.data[..]), (1, &b"\"late\""[..]));
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pushes_and_answers_of_a_session_leave_in_the_order_in_which_they_were_made() {
    let push = async |push: Push, text: String| {
        push.to_users(&["u1"], "connector", "onText", &text).await?;
        Ok::<_, Error>(text)
    };
    let mut world = World::start(App::new("room").on("room.push", push), &[]).await;
    // The same subscriber for both, so that their order is NATS's.
    world.answers.unsubscribe().await.unwrap();
    world.answers = world.client.subscribe(">").await.unwrap();
    world.client.flush().await.unwrap();
    let ask = |token: u32| (token, request(7, "room.room.push", format!("\"{token}\"")));
    world.send("_INBOX.gate.b0", batch((0..20).map(ask))).await;
    let mut order = Vec::new();
    while order.len() < 40 {
        let message = world.next().await;
        if message.subject.ends_with("/push") {
            let push = proto::Push::decode(message.payload).unwrap();
            order.push(format!("push {}", String::from_utf8_lossy(&push.data)));
        } else if message.subject.starts_with("_INBOX.gate.") {
            let batch = BatchView::decode(&message.payload).unwrap();
            order.extend(batch.entries().map(|(token, _)| format!("answer \"{token}\"")));
        }
    }
    let expected = (0..20).flat_map(|n| [format!("push \"{n}\""), format!("answer \"{n}\"")]);
    assert!(order.iter().eq(expected.collect::<Vec<_>>().iter()), "{order:?}");
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn notifies_errors_and_long_answers_go_their_own_way() {
    let mut world = World::start(demo(), &[]).await;
    let long = "x".repeat(100_000);
    let broken = proto::Request { msg: None, ..echo(1, "") };
    let requests = [
        (NO_TOKEN, notify(1, "room.test.echo", "nobody hears")),
        (5, broken),
        (6, request(2, "room.test.nothing", "")),
        (7, echo(3, &long)),
    ];
    world.send("_INBOX.gate.b5", batch(requests)).await;
    let (answers, _) = world.answered(3).await;
    let answers: BTreeMap<u32, proto::Response> = answers.into_iter().collect();
    let code = |token| answers[&token].error.as_ref().map(|error| error.code.as_str());
    assert_eq!((code(5), code(6), code(7)), (Some("PIT-400"), Some("PIT-404"), None));
    assert_eq!(answers[&7].data.len(), long.len());
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn limits_hold_for_each_request_of_a_batch() {
    let settings = [("pitaya.handler.queue.session", "3")];
    let app = App::new("room").on("room.sleep", async || {
        tokio::time::sleep(Duration::from_millis(20)).await;
        Ok::<_, Error>(1)
    });
    let mut world = World::start(app, &settings).await;
    let requests = (0..10).map(|token| (token, request(1, "room.room.sleep", "")));
    world.send("_INBOX.gate.b0", batch(requests)).await;
    let (answers, _) = world.answered(10).await;
    let busy = answers
        .iter()
        .filter(|(_, answer)| answer.error.as_ref().is_some_and(|error| error.code == "PIT-503"));
    assert_eq!(busy.count(), 6, "one runs and three wait");
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn broken_batches_are_refused_whole_and_harm_nobody() {
    let mut world = World::start(demo(), &[]).await;
    let good = batch([(1, echo(1, "one")), (2, echo(1, "two"))]);
    let mut random = fastrand::Rng::with_seed(7);
    let mut cases: Vec<Vec<u8>> = vec![
        vec![0],
        vec![0, 2, 0, 0],
        b"\x00\x01\x00\x00\x00\x07\xff\xff\xff\xff".to_vec(),
        batch((0..1_025).map(|token| (token, proto::Request::default()))),
    ];
    cases.extend((3..12).map(|cut| good[..cut].to_vec()));
    cases.extend((0..20).map(|_| {
        let mut bytes = vec![0, 2];
        bytes.extend((0..random.usize(..60)).map(|_| random.u8(..)));
        bytes
    }));
    for (number, case) in cases.into_iter().enumerate() {
        world.send(&format!("_INBOX.gate.b{number}"), case).await;
        let message = world.next().await;
        assert_eq!(message.subject.as_str(), format!("_INBOX.gate.b{number}"));
        let error = proto::Response::decode(message.payload).unwrap().error.unwrap();
        assert_eq!(error.code, "PIT-400", "{number}");
    }
    // Somebody only wants to know whether NATS finds anybody.
    world.send("_INBOX.gate.p1", PROBE.to_vec()).await;
    // Without any reply subject, and with odd ones.
    world.client.publish(SUBJECT, vec![0, 1, 9].into()).await.unwrap();
    world.client.publish(SUBJECT, good.clone().into()).await.unwrap();
    world.send("odd", good.clone()).await;
    world.send("_INBOX.gate.b1", good).await;
    let (answers, _) = world.answered(2).await;
    assert_eq!((answers[0].0, &answers[0].1.data[..]), (1, &b"one"[..]));
    world.stop().await;
}
