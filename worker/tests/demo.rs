//! The demo over a link in memory: the routes and JSON that clients of Pitaya's demos know.

#![allow(clippy::unwrap_used)] // A panic is how a test fails.

mod support;

use prost::Message;
use serde_json::{Value, json};
use support::{Harness, notify, request};
use worker::demo::{self, DemoOptions};

async fn start(test_routes: bool) -> Harness {
    Harness::new(demo::app(DemoOptions { test_routes })).await
}

/// A player whose uid the gateway knows after the first bind.
struct Player<'a> {
    harness: &'a Harness,
    session: i64,
    uid: String,
}

impl Player<'_> {
    fn request(&self, route: &str, data: &Value) -> proto::Request {
        let mut request = request(self.session, route, data.to_string());
        request.session.as_mut().unwrap().uid.clone_from(&self.uid);
        request
    }

    async fn ask(&mut self, route: &str, data: Value) -> Vec<u8> {
        let answer = self.harness.send(&self.request(route, &data)).data().await.to_vec();
        for (_, call) in self.harness.link.calls() {
            let msg = call.msg.unwrap();
            if msg.route == "sys.bindsession" {
                let bound = proto::Session::decode(msg.data).unwrap();
                if bound.id == self.session {
                    self.uid = bound.uid;
                }
            }
        }
        answer
    }

    /// Everything pushed to this player so far.
    fn pushes(&self) -> Vec<(String, Value)> {
        let pushes = self.harness.link.pushes().into_iter();
        let mine = pushes.filter(|(_, push)| push.uid == self.uid);
        mine.map(|(_, push)| (push.route, serde_json::from_slice(&push.data).unwrap())).collect()
    }
}

fn player(harness: &Harness, session: i64) -> Player<'_> {
    Player { harness, session, uid: String::new() }
}

#[tokio::test]
async fn players_join_talk_and_leave() {
    let harness = start(false).await;
    let (mut ann, mut bob) = (player(&harness, 1), player(&harness, 2));
    assert_eq!(ann.ask("room.room.join", json!({})).await, br#"{"code":0,"result":"success"}"#);
    bob.ask("room.room.join", json!({})).await;
    let hello = bob.request("room.room.message", &json!({"name": "bob", "content": "hi"}));
    let mut hello = hello;
    hello.msg.as_mut().unwrap().r#type = proto::MsgType::Notify.into();
    assert_eq!(&harness.send(&hello).data().await[..], b"ack");
    let of = |route: &str, body: Value| (route.to_owned(), body);
    let members = |list: Value| json!({"members": list, "Members": list});
    let said = of("onMessage", json!({"name": "bob", "content": "hi"}));
    assert_eq!(
        ann.pushes(),
        [
            of("onMembers", members(json!([]))),
            of("onNewUser", json!({"content": format!("New user: {}", bob.uid)})),
            said.clone(),
        ]
    );
    assert_eq!(bob.pushes(), [of("onMembers", members(json!([ann.uid]))), said]);
    assert_eq!(ann.ask("room.room.leave", json!({})).await, b"success");
    let again = ann.request("room.room.leave", &json!({}));
    assert_eq!(harness.send(&again).error().await.1, "member not found in the group");
}

#[tokio::test]
async fn joining_twice_is_joining_once() {
    let harness = start(false).await;
    let (mut ann, mut bob) = (player(&harness, 1), player(&harness, 2));
    ann.ask("room.room.join", json!({})).await;
    bob.ask("room.room.join", json!({})).await;
    bob.ask("room.room.join", json!({})).await;
    let news = ann.pushes().into_iter().filter(|(route, _)| route == "onNewUser").count();
    assert_eq!(news, 1);
    let last = bob.pushes().pop().unwrap();
    assert_eq!(last.1["members"], json!([ann.uid]));
}

#[tokio::test]
async fn the_steps_of_pitayas_load_script_work() {
    let harness = start(false).await;
    let mut ann = player(&harness, 1);
    assert_eq!(ann.ask("room.room.entry", json!({})).await, br#"{"result":"ok"}"#);
    assert_eq!(ann.uid.len(), 36);
    let set = json!({"data": {"testKey": "testVal"}});
    assert_eq!(ann.ask("room.room.setsessiondata", set).await, b"success");
    let mut read = ann.request("room.room.getsessiondata", &Value::Null);
    read.session.as_mut().unwrap().data = r#"{"testKey":"testVal"}"#.into();
    assert_eq!(&harness.send(&read).data().await[..], br#"{"Data":{"testKey":"testVal"}}"#);
    let mut push = notify(1, "room.room.notifypush", "");
    push.session.as_mut().unwrap().uid = ann.uid.clone();
    harness.send(&push).data().await;
    assert_eq!(ann.pushes().pop().unwrap(), ("testPush".to_owned(), json!({"Msg": "test"})));
    let joined: Value =
        serde_json::from_slice(&ann.ask("room.room.join", json!({})).await).unwrap();
    assert_eq!(joined["result"], "success");
    assert!(ann.pushes().pop().unwrap().1["Members"].is_array());
    assert_eq!(ann.ask("room.room.leave", json!({})).await, b"success");
}

#[tokio::test]
async fn a_second_entry_fails_with_the_code_of_the_demo() {
    let harness = start(false).await;
    let mut ann = player(&harness, 1);
    ann.ask("room.room.entry", json!({})).await;
    let again = harness.send(&ann.request("room.room.entry", &json!({}))).response().await;
    let error = again.error.unwrap();
    assert_eq!((error.code.as_str(), error.metadata["failed"].as_str()), ("RH-000", "bind"));
}

#[tokio::test]
async fn the_test_routes_exist_only_on_request() {
    let without = start(false).await;
    assert_eq!(without.send(&request(1, "room.test.echo", "x")).error().await.0, "PIT-404");
    let harness = start(true).await;
    let raw: Vec<u8> = (0..=255).collect();
    assert_eq!(harness.send(&request(1, "room.test.echo", raw.clone())).data().await, raw);
    let mut ann = player(&harness, 7);
    assert_eq!(ann.ask("room.test.bind", json!({"name": "ann"})).await, br#"{"code":200}"#);
    let fail = ann.request("room.test.fail", &json!({"code": "X-1", "msg": "as told"}));
    assert_eq!(harness.send(&fail).error().await, ("X-1".into(), "as told".into()));
    assert_eq!(ann.ask("room.test.sleep", json!({"ms": 1})).await, br#"{"code":200}"#);
    let stored: Value =
        serde_json::from_slice(&ann.ask("room.test.data", json!({"a": 1})).await).unwrap();
    assert_eq!(stored["a"], 1);
    ann.ask("room.test.kick", json!({})).await;
    assert_eq!(harness.link.calls().pop().unwrap().1.msg.unwrap().route, "sys.kick");
}

#[tokio::test]
async fn floods_are_numbered_in_order_and_go_to_whom_they_should() {
    let harness = start(true).await;
    let mut ann = player(&harness, 7);
    ann.ask("room.test.flood", json!({"n": 3, "size": 100})).await;
    assert_eq!(ann.uid, "7");
    ann.ask("room.test.push", json!({"name": "bob", "n": 2, "size": 4})).await;
    let pushes = harness.link.pushes();
    let number = |push: &proto::Push| u64::from_be_bytes(push.data[..8].try_into().unwrap());
    let flat: Vec<_> = pushes
        .iter()
        .map(|(_, p)| (p.route.as_str(), p.uid.as_str(), number(p), p.data.len()))
        .collect();
    assert_eq!(
        flat,
        [
            ("onFlood", "7", 0, 100),
            ("onFlood", "7", 1, 100),
            ("onFlood", "7", 2, 100),
            ("onPush", "bob", 0, 8),
            ("onPush", "bob", 1, 8),
        ]
    );
}

#[tokio::test]
async fn an_endless_flood_ends_at_its_deadline_and_lets_others_run() {
    let harness = start(true).await;
    let data = json!({"n": 1_000_000, "size": 8}).to_string();
    let flood = harness.send(&support::with_timeout(request(1, "room.test.flood", data), "50ms"));
    let other = harness.send(&request(2, "room.test.echo", "x"));
    assert_eq!(&other.data().await[..], b"x");
    assert_eq!(flood.error().await.1, "rpc client: request timeout");
}

#[tokio::test]
async fn a_broadcast_reaches_whoever_has_joined_once() {
    let harness = start(true).await;
    // Ann comes twice, as players do that reconnect.
    for (session, name) in [(1, "ann"), (2, "ann"), (3, "bob")] {
        let answer = player(&harness, session).ask("room.test.join", json!({ "name": name })).await;
        assert_eq!(answer, br#"{"code":200}"#);
    }
    player(&harness, 4).ask("room.test.broadcast", json!({"size": 20})).await;
    let pushes = harness.link.pushes();
    let mut uids: Vec<&str> = pushes.iter().map(|(_, push)| push.uid.as_str()).collect();
    uids.sort_unstable();
    assert_eq!(uids, ["ann", "bob"]);
    assert!(pushes.iter().all(|(_, push)| push.route == "onBroadcast" && push.data.len() == 20));
}
