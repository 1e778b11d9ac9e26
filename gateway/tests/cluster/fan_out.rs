//! One message for many players: what travels, who gets it, and in which order.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::Receiver;

use client::raw::RawClient;
use gateway::gateway::Gateway;
use shared::server::METADATA_PROTOCOL;
use worker::Encode;
use worker::prelude::*;

use crate::backend::Caller;
use crate::servers::Nats;
use crate::world::{DRIVERS, GATE, SOON, Worker, World, tcp, until, until_answered, web_socket};

#[derive(Serialize, Deserialize)]
struct Enter {
    uid: String,
}

#[derive(Serialize, Deserialize)]
struct Many {
    uids: Vec<String>,
    text: String,
}

/// Counts how often it is encoded.
struct Counted<'a> {
    text: &'a str,
    encoded: &'a AtomicUsize,
}

impl Encode for Counted<'_> {
    fn encode(&self) -> Result<Bytes> {
        self.encoded.fetch_add(1, Ordering::Relaxed);
        self.text.encode()
    }
}

async fn enter(session: Session, enter: Enter) -> Result<u8> {
    session.bind(&enter.uid).await?;
    Ok(1)
}

/// Pushes a text to many, one text to oneself before and one after it, and answers who could not be pushed to.
async fn sandwich(session: Session, push: Push, many: Many) -> Result<Vec<String>> {
    session.push("onText", &format!("before {}", many.text)).await?;
    let sent = push.to_users(&many.uids, "connector", "onText", &many.text).await;
    let failed = sent.err().map_or_else(Vec::new, |failed| failed.uids);
    session.push("onText", &format!("after {}", many.text)).await?;
    Ok(failed)
}

/// The application, and how often its broadcast was encoded.
fn app() -> (App, Arc<AtomicUsize>) {
    let encoded = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&encoded);
    let many = move |push: Push, many: Many| {
        let encoded = Arc::clone(&counter);
        async move {
            let message = Counted { text: &many.text, encoded: &encoded };
            let sent = push.to_users(&many.uids, "connector", "onText", &message).await;
            Ok::<_, Error>(sent.err().map_or_else(Vec::new, |failed| failed.uids))
        }
    };
    let app = App::new("room")
        .on("many.ready", async || Ok::<_, Error>(1))
        .on("many.enter", enter)
        .on("many.send", many)
        .on("many.sandwich", sandwich);
    (app, encoded)
}

/// A cluster with one gateway and the application above.
fn start(world: &World, driver: &str, id: &str) -> (Gateway, Worker, Arc<AtomicUsize>) {
    let gateway = world.gateway(driver, &[]);
    let (app, encoded) = app();
    let worker = world.application(app, id);
    until_answered(&mut tcp(&gateway), "room.many.ready", b"");
    (gateway, worker, encoded)
}

fn bind(client: &mut RawClient, uid: &str) {
    let body = serde_json::to_vec(&Enter { uid: uid.to_owned() }).unwrap();
    let answer = client.request("room.many.enter", &body).unwrap();
    assert!(!answer.is_error, "{}", answer.text());
}

/// Clients who are bound to u0, u1 and so on, on TCP and on WebSocket.
fn players(gateway: &Gateway, count: usize) -> Vec<RawClient> {
    let player = |number| {
        let mut client = if number % 4 == 3 { web_socket(gateway) } else { tcp(gateway) };
        bind(&mut client, &format!("u{number}"));
        client
    };
    (0..count).map(player).collect()
}

fn many(uids: impl IntoIterator<Item = String>, text: &str) -> Vec<u8> {
    let many = Many { uids: uids.into_iter().collect(), text: text.to_owned() };
    serde_json::to_vec(&many).unwrap()
}

fn users(count: usize) -> impl Iterator<Item = String> {
    (0..count).map(|number| format!("u{number}"))
}

/// Sends, and returns whom the worker could not push to.
fn send(client: &mut RawClient, route: &str, body: &[u8]) -> Vec<String> {
    let answer = client.request(route, body).unwrap();
    assert!(!answer.is_error, "{}", answer.text());
    serde_json::from_slice(&answer.payload).unwrap()
}

fn next_text(client: &mut RawClient) -> String {
    let push = client.read_push(SOON).unwrap();
    assert_eq!(push.route, "onText");
    serde_json::from_slice(&push.payload).unwrap()
}

/// How many messages went to each push subject until `end` came.
fn pushes_until(all: &Receiver<async_nats::Message>, end: &str) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    loop {
        let subject = all.recv_timeout(SOON).expect("a message").subject.to_string();
        if subject == end {
            return counts;
        }
        if subject.ends_with("/push") || subject.ends_with("/pushes") {
            *counts.entry(subject).or_insert(0) += 1;
        }
    }
}

#[test]
fn a_thousand_players_of_a_gateway_get_one_message_that_was_encoded_once() {
    const PLAYERS: usize = 1_000;
    let world = World::new();
    let (gateway, worker, encoded) = start(&world, "auto", "room-1");
    let mut players = players(&gateway, PLAYERS);
    let caller = Caller::connect(&world);
    let all = caller.subscribe(">");
    let failed = send(&mut tcp(&gateway), "room.many.send", &many(users(PLAYERS), "hello"));
    assert_eq!(failed, [""; 0]);
    for player in &mut players {
        assert_eq!(next_text(player), "hello");
    }
    caller.publish("the-end", &proto::KickMsg::default());
    let expected = BTreeMap::from([("pitaya/connector/pushes".to_owned(), 1)]);
    assert_eq!(pushes_until(&all, "the-end"), expected);
    assert_eq!(encoded.load(Ordering::Relaxed), 1);
    gateway.stop();
    world.stop_worker(worker);
}

#[test]
fn players_of_other_frontends_are_pushed_to_one_by_one_and_everybody_once() {
    let world = World::new();
    for driver in DRIVERS {
        let go = world.announce_frontend(&format!("go-{driver}"));
        let (gateway, worker, encoded) = start(&world, driver, &format!("room-{driver}"));
        let mut players = players(&gateway, 10);
        let caller = Caller::connect(&world);
        let all = caller.subscribe(">");
        let theirs: Vec<String> = (0..6).map(|number| format!("g{number}")).collect();
        let both = theirs.iter().cloned().chain(users(10)).chain(["a b".to_owned()]);
        let failed = send(&mut tcp(&gateway), "room.many.send", &many(both, "hello"));
        assert_eq!(failed, ["a b"]);
        send(&mut tcp(&gateway), "room.many.send", &many(users(10), "end"));
        for player in &mut players {
            assert_eq!([next_text(player), next_text(player)], ["hello", "end"], "{driver}");
        }
        caller.publish("the-end", &proto::KickMsg::default());
        let plain = theirs.iter().map(|uid| (format!("pitaya/connector/user/{uid}/push"), 1));
        let mut expected: BTreeMap<String, usize> = plain.collect();
        expected.insert("pitaya/connector/pushes".to_owned(), 2);
        assert_eq!(pushes_until(&all, "the-end"), expected, "{driver}");
        assert_eq!(encoded.load(Ordering::Relaxed), 2);
        gateway.stop();
        world.stop_worker(worker);
        world.withdraw(go);
    }
}

#[test]
fn pushes_to_one_and_to_many_keep_their_order() {
    const ROUNDS: usize = 40;
    let world = World::new();
    for driver in DRIVERS {
        let (gateway, worker, _) = start(&world, driver, &format!("room-{driver}"));
        let mut players = players(&gateway, 8);
        let ids: Vec<u64> = (0..ROUNDS)
            .map(|round| {
                let body = many(users(8), &round.to_string());
                players[5].send_request("room.many.sandwich", &body).unwrap()
            })
            .collect();
        let expected: Vec<String> = (0..ROUNDS)
            .flat_map(|round| {
                [format!("before {round}"), round.to_string(), format!("after {round}")]
            })
            .collect();
        // What a handler pushes comes before its answer.
        for id in ids {
            players[5].read_response(id, SOON).unwrap();
        }
        let mut texts = Vec::new();
        for _ in 0..3 * ROUNDS {
            texts.push(next_text(&mut players[5]));
        }
        assert_eq!(texts, expected, "{driver}");
        for number in [0, 3, 7] {
            let texts: Vec<String> = (0..ROUNDS).map(|_| next_text(&mut players[number])).collect();
            assert!(texts.iter().enumerate().all(|(round, text)| *text == round.to_string()));
        }
        gateway.stop();
        world.stop_worker(worker);
    }
}

#[test]
fn large_messages_arrive_whole_also_deflated_and_after_moves_and_a_lost_nats() {
    let mut world = World::new();
    for driver in DRIVERS {
        let (gateway, worker, _) = start(&world, driver, &format!("room-{driver}"));
        let mut players = players(&gateway, 8);
        let text = "all work and no play ".repeat(2_000);
        send(&mut tcp(&gateway), "room.many.send", &many(users(8), &text));
        for player in &mut players {
            assert_eq!(next_text(player), text, "{driver}");
        }
        for step in 0..3 {
            gateway.move_connections(step % 2, (step + 1) % 2);
            send(&mut tcp(&gateway), "room.many.send", &many(users(8), "moved"));
            for player in &mut players {
                assert_eq!(next_text(player), "moved", "{driver} {step}");
            }
        }
        world.nats.restart_same_port();
        // Each try may reach some of them, until all subscriptions are back.
        let mut asker = tcp(&gateway);
        until_answered(&mut asker, "room.many.ready", b"");
        until("everybody is reached", || {
            send_if_possible(&mut asker, &many(users(8), "back"));
            let reach = |player: &mut RawClient| {
                player.read_push(std::time::Duration::from_millis(200)).is_ok()
            };
            players.iter_mut().all(reach).then_some(())
        });
        gateway.stop();
        world.stop_worker(worker);
    }
}

fn send_if_possible(client: &mut RawClient, body: &[u8]) {
    // Fails until the worker is back on NATS too.
    let _ = client.request("room.many.send", body);
}

#[test]
fn a_gateway_that_may_not_listen_to_them_does_not_announce_it() {
    let permissions = r#"authorization { users = [
        { user: gw, password: x, permissions: { publish: ">", subscribe: { allow: ">", deny: "pitaya/connector/pushes" } } },
        { user: any, password: x } ] }"#;
    let world = World::over(Nats::start_configured(permissions));
    let observer = world.observe();
    let protocol_of = |gateway: &Gateway| {
        assert_eq!(gateway.addresses().tcp.len(), 1);
        until("the gateway is announced", || {
            let table = observer.tables().borrow().clone();
            table.by_id(GATE).map(|server| server.metadata.get(METADATA_PROTOCOL).cloned())
        })
    };
    for (user, announced) in [("gw", None), ("any", Some("pushes".to_owned()))] {
        let settings = [("pitaya.nats.user", user), ("pitaya.nats.password", "x")];
        let gateway = world.gateway("auto", &settings);
        assert_eq!(protocol_of(&gateway), announced, "{user}");
        gateway.stop();
        until("the gateway has left", || {
            observer.tables().borrow().by_id(GATE).is_none().then_some(())
        });
    }
    world.withdraw(observer);
}
