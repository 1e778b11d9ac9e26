//! The examples of the worker, as they are, in a cluster.

#[allow(dead_code, missing_docs, unreachable_pub)] // Its `main` is for people.
#[path = "../../../worker/examples/chat.rs"]
mod chat;
#[allow(dead_code, missing_docs, unreachable_pub)] // Its `main` is for people.
#[path = "../../../worker/examples/cluster.rs"]
mod cluster;

use crate::world::{SOON, World, error_of, tcp, until_answered};

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
fn rooms_ask_the_metagame_for_gold() {
    let world = World::new();
    let gateway = world.gateway("uring", &[]);
    let room = world.application(cluster::room(), "room-1");
    let metagame = world.application(cluster::metagame(), "metagame-1");
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

/// Asks to buy until the room is there, and gives its refusal.
fn until_answered_or_coded(client: &mut client::raw::RawClient, body: &str) -> String {
    crate::world::until("the room answers", || {
        let answer = client.request("room.room.buy", body.as_bytes()).unwrap().text();
        (!answer.contains("PIT-")).then_some(answer)
    })
}
