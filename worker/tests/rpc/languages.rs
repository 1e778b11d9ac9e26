//! Servers that are written with libpitaya-cluster (C++, C#, Python), as they are on the wire (cluster protocol 21).

use std::time::Duration;

use futures_util::StreamExt;
use prost::Message;
use shared::cluster::etcd::{Client, PutRequest, StoreOptions};
use worker::prelude::*;

use crate::world::{World, soon};

fn doc(text: &str) -> proto::Doc {
    proto::Doc { doc: text.into() }
}

/// Writes a server's record by hand, without a lease.
async fn announce(world: &World, key: &str, record: &str) {
    let client = Client::new(&StoreOptions::at(world.etcd.url()), Duration::from_secs(5));
    let key = format!("pitaya/servers/{key}").into_bytes();
    let put = PutRequest { key, value: record.as_bytes().to_vec(), ..PutRequest::default() };
    soon(client.unwrap().put(put)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_in_another_language_calls_us_with_the_little_that_it_sends() {
    let world = World::start();
    let app = App::new("room")
        .remote("rem.ok", async |Pb(said): Pb<proto::Doc>| {
            Ok::<_, Error>(Pb(doc(&format!("re:{}", said.doc))))
        })
        .remote("rem.left", async |ctx: Ctx| {
            Ok::<_, Error>(Pb(doc(&ctx.remaining().as_secs().to_string())))
        })
        .on("room.note", async |_: Bytes| {});
    let key = "pitaya.cluster.rpc.client.nats.requesttimeout";
    let room = world.worker("r1", app, &[(key, "60s")]).await;
    let peer = async_nats::connect(world.nats.url()).await.unwrap();
    let ask = async |request: Vec<u8>| {
        let asked = peer.request("pitaya/servers/room/r1", request.into());
        proto::Response::decode(soon(asked).await.unwrap().payload).unwrap()
    };

    // The smallest request that Pitaya accepts, byte for byte.
    let minimal = b"\x08\x01\x1a\x12\x12\x0broom.rem.ok\x1a\x03\x0a\x01q\x2a\x07{\"a\":1}".to_vec();
    assert_eq!(ask(minimal).await.encode_to_vec(), b"\x0a\x06\x0a\x04re:q");

    let request = |route: &str, metadata: &'static str| {
        let msg = proto::Msg { route: route.into(), ..Default::default() };
        proto::Request {
            r#type: proto::RpcType::User.into(),
            msg: Some(msg),
            metadata: metadata.into(),
            ..Default::default()
        }
    };
    // No timeout is told: ours is taken, where Go would wait without limit.
    let metadata = r#"{"peer.id":"c1","peer.service":"csharp"}"#;
    let left = ask(request("room.rem.left", metadata).encode_to_vec()).await;
    let left: u64 = proto::Doc::decode(left.data).unwrap().doc.parse().unwrap();
    assert!((50..60).contains(&left), "{left}");
    let unknown = ask(request("room.rem.nope", metadata).encode_to_vec()).await.error.unwrap();
    assert_eq!((unknown.code.as_str(), unknown.msg.as_str()), ("PIT-404", "route not found"));
    room.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_in_another_language_is_found_and_its_answers_are_understood() {
    let world = World::start();
    let peer = async_nats::connect(world.nats.url()).await.unwrap();
    let mut requests = peer.subscribe("pitaya/servers/csharp/c1").await.unwrap();
    peer.flush().await.unwrap();
    // As it is written when the metadata that was configured is not JSON; Go cannot read it.
    let record = r#"{"id":"c1","type":"csharp","metadata":"","frontend":false,"hostname":"x"}"#;
    announce(&world, "csharp/c1", record).await;
    // And what no server writes must disturb nobody.
    announce(&world, "csharp/c2", "null").await;
    announce(&world, "csharp/c3", r#"{"id":"a.*.b","type":"csharp"}"#).await;
    let room = world.worker("r1", App::new("room"), &[]).await;
    room.knows(&["c1"]).await;
    let error = |code: &str, msg: &str| proto::Response {
        data: Bytes::new(),
        error: Some(proto::Error { code: code.into(), msg: msg.into(), ..Default::default() }),
    };
    let data = |data: &'static [u8]| proto::Response { data: data.into(), error: None };
    let answers = [
        data(b"\x0a\x02hi").encode_to_vec(),
        // An empty message is a success with nothing in it.
        Vec::new(),
        error("PIT-503", "too many requests").encode_to_vec(),
        error("PIT-504", "timeout").encode_to_vec(),
        error("", "no code").encode_to_vec(),
        b"\xff\xff".to_vec(),
    ];
    // Dropping the last handle of the connection would lose the last answer.
    let answering = peer.clone();
    tokio::spawn(async move {
        for answer in answers {
            let message = requests.next().await.unwrap();
            let request = proto::Request::decode(message.payload).unwrap();
            assert_eq!((request.r#type, request.frontend_id.as_str()), (1, ""));
            answering.publish(message.reply.unwrap(), answer.into()).await.unwrap();
        }
    });
    let call = || soon(room.rpc.call::<proto::Doc>("csharp.player.who", &()));
    assert_eq!(call().await.unwrap().doc, "hi");
    assert_eq!(call().await.unwrap().doc, "");
    for (code, text) in
        [("PIT-503", "too many requests"), ("PIT-504", "timeout"), ("PIT-000", "no code")]
    {
        let error = call().await.unwrap_err();
        assert_eq!((error.code.as_ref(), error.msg.as_str()), (code, text));
    }
    assert_eq!(call().await.unwrap_err().code, "PIT-000");
    room.stop().await;
}
