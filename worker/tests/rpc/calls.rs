//! Calls that succeed: by type and by id, in both directions, with what travels along.

use std::collections::BTreeSet;

use futures_util::StreamExt;
use futures_util::future::join_all;
use prost::Message;
use worker::prelude::*;

use crate::world::{World, soon};

fn doc(text: &str) -> proto::Doc {
    proto::Doc { doc: text.into() }
}

/// A server that can be asked, and that asks whoever asked it.
fn metagame() -> App {
    App::new("metagame")
        .remote("player.echo", async |ctx: Ctx, Pb(said): Pb<proto::Doc>| {
            Ok::<_, Error>(Pb(doc(&format!("{}:{}", ctx.server_id(), said.doc))))
        })
        .remote("player.who", async |ctx: Ctx| Ok::<_, Error>(Pb(doc(ctx.server_id()))))
        .remote("player.note", async |_: Pb<proto::Doc>| {})
        .remote("player.relay", async |ctx: Ctx, rpc: Rpc| {
            let Some(caller) = ctx.metadata("peer.id") else { bail!("T-1", "nobody asks") };
            let told = rpc.with("hop", 2);
            let answer: proto::Doc =
                told.call_to(caller.as_str().unwrap_or_default(), "room.log.metadata", &()).await?;
            Ok::<_, Error>(Pb(answer))
        })
}

fn room() -> App {
    App::new("room").remote("log.metadata", async |ctx: Ctx| {
        let names = ["peer.id", "peer.service", "req-route", "request.id", "tenant", "hop"];
        let values = names.map(|name| ctx.metadata(name).map_or("-".into(), |v| v.to_string()));
        let is_within = ctx.remaining() <= Duration::from_secs(7);
        Ok::<_, Error>(Pb(doc(&format!("{} {is_within}", values.join(" ")))))
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn servers_call_each_other_by_type_and_by_id() {
    let world = World::start();
    let (first, second) =
        (world.worker("m1", metagame(), &[]).await, world.worker("m2", metagame(), &[]).await);
    let room = world.worker("r1", room(), &[]).await;
    room.knows(&["m1", "m2"]).await;
    first.knows(&["r1"]).await;
    second.knows(&["r1"]).await;

    let echo: proto::Doc = room.rpc.call_to("m1", "metagame.player.echo", &doc("a")).await.unwrap();
    assert_eq!(echo.doc, "m1:a");
    // An argument that the remote does not take is ignored, a missing one is the empty message.
    let who: proto::Doc = room.rpc.call_to("m2", "metagame.player.who", &doc("b")).await.unwrap();
    assert_eq!(who.doc, "m2");
    let echo: proto::Doc = room.rpc.call_to("m2", "metagame.player.echo", &()).await.unwrap();
    assert_eq!(echo.doc, "m2:");
    let () = room.rpc.call("metagame.player.note", &doc("c")).await.unwrap();

    // The server type of a route only chooses the server, as in Pitaya.
    let who: proto::Doc = room.rpc.call_to("m1", "elsewhere.player.who", &()).await.unwrap();
    assert_eq!(who.doc, "m1");

    let calls = (0..64).map(|_| room.rpc.call::<proto::Doc>("metagame.player.who", &()));
    let answers: BTreeSet<_> =
        soon(join_all(calls)).await.into_iter().map(|answer| answer.unwrap().doc).collect();
    assert_eq!(answers, BTreeSet::from(["m1".to_owned(), "m2".to_owned()]));

    // There and back: what travels along survives both hops, what each hop says of itself is new.
    let rpc = room.rpc.with("tenant", "blue").timeout(Duration::from_secs(7));
    let relayed: proto::Doc = rpc.call_to("m1", "metagame.player.relay", &()).await.unwrap();
    let words: Vec<_> = relayed.doc.split(' ').collect();
    assert_eq!(words[..3], ["\"m1\"", "\"metagame\"", "\"metagame.player.relay\""]);
    assert_eq!(words[3].len(), 24, "a correlation id of 22 characters");
    assert_eq!(words[4..], ["\"blue\"", "2", "true"]);

    room.stop().await;
    first.forgets("r1").await;
    first.stop().await;
    second.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_is_on_the_wire_what_pitaya_sends() {
    let world = World::start();
    let peer = async_nats::connect(world.nats.url()).await.unwrap();
    let mut requests = peer.subscribe("pitaya/servers/metagame/m1").await.unwrap();
    peer.flush().await.unwrap();
    let _metagame = world.phantom("metagame", "m1").await;
    let room = world.worker("r1", room(), &[]).await;
    room.knows(&["m1"]).await;

    let rpc = room.rpc.timeout(Duration::from_millis(1500));
    let argument = doc("q");
    let call = rpc.call::<proto::DocMsg>("metagame.player.ask", &argument);
    let serve = async {
        let message = requests.next().await.unwrap();
        let request = proto::Request::decode(message.payload.clone()).unwrap();
        let answer = bytes::Bytes::from_static(b"\x0a\x02\x08\x01");
        peer.publish(message.reply.unwrap(), answer).await.unwrap();
        (message.payload, request, message.headers)
    };
    let (answer, (bytes, request, headers)) = soon(futures_util::future::join(call, serve)).await;
    assert!(answer.unwrap().get_protos);
    assert!(headers.is_none());
    // User, no session, no frontend: the message is field 3, and nothing but the metadata follows.
    assert_eq!(&bytes[..5], b"\x08\x01\x1a\x1a\x12");
    let metadata = String::from_utf8(request.metadata.to_vec()).unwrap();
    let expected = proto::Request {
        r#type: proto::RpcType::User.into(),
        msg: Some(proto::Msg {
            route: "metagame.player.ask".into(),
            data: argument.encode_to_vec().into(),
            ..Default::default()
        }),
        metadata: metadata.clone().into(),
        ..Default::default()
    };
    assert_eq!(request, expected);
    assert!(metadata.starts_with(r#"{"peer.id":"r1","peer.service":"room","req-start-time":1"#));
    assert!(metadata.contains(r#","reqTimeout":"1."#), "{metadata}");
    assert!(metadata.contains(r#"s","request.id":""#), "{metadata}");
    room.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_to_the_own_type_or_id_run_here_when_that_is_allowed() {
    let world = World::start();
    let key = "pitaya.cluster.rpc.server.loopbackenabled";
    let alone = world.worker("m1", metagame(), &[(key, "true")]).await;
    let other = world.worker("m2", metagame(), &[]).await;
    alone.knows(&["m2"]).await;
    let everything = async_nats::connect(world.nats.url()).await.unwrap();
    let mut seen = everything.subscribe(">").await.unwrap();
    everything.flush().await.unwrap();
    for _ in 0..8 {
        let who: proto::Doc = alone.rpc.call("metagame.player.who", &()).await.unwrap();
        assert_eq!(who.doc, "m1");
    }
    let echo: proto::Doc =
        alone.rpc.call_to("m1", "metagame.player.echo", &doc("me")).await.unwrap();
    assert_eq!(echo.doc, "m1:me");
    let error = alone.rpc.call::<()>("metagame.player.none", &()).await.unwrap_err();
    assert_eq!((error.code.as_ref(), error.metadata["route"].as_str()), ("PIT-404", "player.none"));
    // Others of the own type are reached by their id, over NATS; that is the only message there was.
    let who: proto::Doc = alone.rpc.call_to("m2", "metagame.player.who", &()).await.unwrap();
    assert_eq!(who.doc, "m2");
    let is_call = |message: &async_nats::Message| message.subject.starts_with("pitaya/servers");
    let mut calls = seen.by_ref().filter(|message| std::future::ready(is_call(message)));
    assert_eq!(soon(calls.next()).await.unwrap().subject.as_str(), "pitaya/servers/metagame/m2");

    let text = "you are making a rpc that may be processed locally, either specify a different server type or specify a server id";
    let error = other.rpc.call::<()>("metagame.player.who", &()).await.unwrap_err();
    assert_eq!((error.code.as_ref(), error.msg.as_str()), ("PIT-000", text));
    let error = other.rpc.call_to::<()>("m2", "room.player.who", &()).await.unwrap_err();
    assert_eq!(error.msg, text);
    alone.stop().await;
    other.stop().await;
}
