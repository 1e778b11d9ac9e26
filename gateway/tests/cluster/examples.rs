//! The examples of the worker, as they are, in a cluster.

#[allow(dead_code, missing_docs, unreachable_pub)] // Its `main` is for people.
#[path = "../../../worker/examples/chat.rs"]
mod chat;
#[allow(dead_code, missing_docs, unreachable_pub)] // Its `main` is for people.
#[path = "../../../worker/examples/cluster.rs"]
mod cluster;

use crate::servers::Redis;
use crate::world::{SOON, World, error_of, free_address, tcp, until, until_answered};

#[test]
fn the_chat_tells_everybody_who_comes_and_what_they_say() {
    let world = World::new();
    let gateway = world.gateway("uring", &[]);
    let worker = world.application(chat::app(), "chat-1");
    let (mut ann, mut bob) = (tcp(&gateway), tcp(&gateway));
    let joined = until_answered(&mut ann, "chat.room.join", b"{}");
    assert_eq!(joined.text(), r#"{"code":0,"result":"success"}"#);
    assert_eq!(ann.read_push(SOON).unwrap().text(), r#"{"members":[]}"#);
    bob.request("chat.room.join", b"{}").unwrap();
    assert_eq!(bob.read_push(SOON).unwrap().text(), r#"{"members":["1"]}"#);
    assert_eq!(ann.read_push(SOON).unwrap().text(), r#"{"content":"New user: 2"}"#);
    bob.notify("chat.room.message", br#"{"name":"bob","content":"hello"}"#).unwrap();
    for client in [&mut ann, &mut bob] {
        let push = client.read_push(SOON).unwrap();
        assert_eq!(
            (push.route.as_str(), push.text().as_str()),
            ("onMessage", r#"{"name":"bob","content":"hello"}"#)
        );
    }
    world.stop_worker(worker);
    gateway.stop();
}

#[test]
fn rooms_ask_the_metagame_for_gold_also_while_redis_is_away() {
    let world = World::new();
    let gateway = world.gateway("uring", &[]);
    let nowhere = free_address().to_string();
    let redis = [("pitaya.worker.redis.serverurl", nowhere.as_str())];
    let room = world.application_with(cluster::room(), "room-1", &redis);
    let metagame = world.application_with(cluster::metagame(), "metagame-1", &redis);
    let mut client = tcp(&gateway);
    let stranger = until_answered_or_coded(&mut client, r#"{"price":30}"#);
    assert!(stranger.contains("RM-401"), "{stranger}");
    let entered = client.request("room.room.entry", b"\"player-1\"").unwrap();
    assert_eq!(entered.text(), r#"{"gold":0,"level":7}"#);
    let bought = until_answered(&mut client, "room.room.buy", br#"{"price":30}"#);
    assert_eq!(bought.text(), r#"{"gold":70,"level":7}"#);
    let broke = error_of(&mut client, "room.room.buy", br#"{"price":71}"#);
    assert!(broke.contains("MG-001") && broke.contains("71 of 70"), "{broke}");
    let refused = error_of(&mut client, "room.room.buy", br#"{"price":0}"#);
    assert!(refused.contains("not within 1 and 1000"), "{refused}");
    world.stop_worker(metagame);
    world.stop_worker(room);
    gateway.stop();
}

#[test]
fn a_coupon_waits_in_redis_for_a_metagame_and_is_paid_once() {
    let Some(redis) = Redis::start(&[]) else { return };
    let world = World::new();
    let gateway = world.gateway("uring", &[]);
    let address = redis.address();
    let settings = [("pitaya.worker.redis.serverurl", address.as_str())];
    let room = world.application_with(cluster::room(), "room-1", &settings);
    let mut client = tcp(&gateway);
    let coupon = br#"{"number":"spring","gold":50}"#;
    let jid = until_answered(&mut client, "room.room.redeem", coupon).text();
    assert_eq!(jid.len(), 2 + 24, "{jid}");
    client.request("room.room.redeem", coupon).unwrap();
    let other = br#"{"number":"summer","gold":1000}"#;
    client.request("room.room.redeem", other).unwrap();
    client.request("room.room.entry", b"\"player-1\"").unwrap();

    let metagame = world.application_with(cluster::metagame(), "metagame-1", &settings);
    // Jobs run one after the other: when the last one has been paid, so have those before it.
    let bought = until("the coupons are paid", || {
        let answer = client.request("room.room.buy", br#"{"price":1000}"#).unwrap();
        (!answer.is_error).then(|| answer.text())
    });
    assert_eq!(bought, r#"{"gold":150,"level":7}"#, "50 were paid once, not twice");
    world.stop_worker(metagame);
    world.stop_worker(room);
    gateway.stop();
}

/// Asks to buy until the room is there, and gives its refusal.
fn until_answered_or_coded(client: &mut client::raw::RawClient, body: &str) -> String {
    until("the room answers", || {
        let answer = client.request("room.room.buy", body.as_bytes()).unwrap().text();
        (!answer.contains("PIT-")).then_some(answer)
    })
}
