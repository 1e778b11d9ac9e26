//! Servers that call each other over gRPC, with a real etcd and without NATS.

#![allow(clippy::unwrap_used)] // A panic is how a test fails.

#[path = "../../../shared/tests/servers/mod.rs"]
mod servers;

mod peer;
mod world;

use std::collections::BTreeSet;
use std::sync::Arc;

use futures_util::future::join_all;
use peer::{Asked, Peer, ask};
use prost::Message;
use proto::service::{METHOD_BIND, METHOD_CALL, METHOD_KICK, METHOD_PUSH};
use tokio::sync::Notify;
use worker::prelude::*;
use world::{World, soon};

fn doc(text: &str) -> proto::Doc {
    proto::Doc { doc: text.into() }
}

/// Tells when it is dropped.
struct Dropped(Arc<Notify>);

impl Drop for Dropped {
    fn drop(&mut self) {
        self.0.notify_one();
    }
}

fn metagame(dropped: Arc<Notify>) -> App {
    App::new("metagame")
        .remote("player.echo", async |ctx: Ctx, Pb(said): Pb<proto::Doc>| {
            Ok::<_, Error>(Pb(doc(&format!("{}:{}", ctx.server_id(), said.doc))))
        })
        .remote("player.size", async |data: Bytes| Ok::<_, Error>(Pb(doc(&data.len().to_string()))))
        .remote("player.huge", async || Ok::<_, Error>(Bytes::from(vec![7; 5 << 20])))
        .remote("player.coded", async || -> Result<()> {
            Err(Error::new("MG-001", "not enough").with("gold", "7"))
        })
        .remote("player.panics", async || -> Result<()> { panic!("out of gold") })
        .remote("player.slow", move || {
            let dropped = Dropped(Arc::clone(&dropped));
            async move {
                let _dropped = dropped;
                std::future::pending::<Result<()>>().await
            }
        })
        .remote("player.tell", async |push: Push, Pb(uid): Pb<proto::Doc>| -> Result<()> {
            for number in 0..100_u8 {
                let number = Bytes::from(vec![number]);
                push.raw(&uid.doc, "connector", "onNumber", number).await?;
            }
            Ok(push.kick(&[uid.doc], "connector").await?)
        })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn servers_call_each_other_without_nats() {
    let world = World::start();
    let dropped = Arc::new(Notify::new());
    let first = world.worker("m1", metagame(Arc::clone(&dropped)), &[]).await;
    let second = world.worker("m2", metagame(Arc::default()), &[]).await;
    for lazy in ["false", "true"] {
        let key = "pitaya.cluster.rpc.client.grpc.lazyconnection";
        let room = world.worker("r1", App::new("room"), &[(key, lazy)]).await;
        room.knows(&["m1", "m2"]).await;
        let calls = (0..32).map(|_| room.rpc.call::<proto::Doc>("metagame.player.echo", &()));
        let answers: BTreeSet<_> =
            soon(join_all(calls)).await.into_iter().map(|answer| answer.unwrap().doc).collect();
        assert_eq!(answers, BTreeSet::from(["m1:".to_owned(), "m2:".to_owned()]));
        let echo: proto::Doc =
            room.rpc.call_to("m2", "metagame.player.echo", &doc("a")).await.unwrap();
        assert_eq!(echo.doc, "m2:a");
        room.stop().await;
        first.forgets("r1").await;
    }
    let room = world.worker("r1", App::new("room"), &[]).await;
    room.knows(&["m1", "m2"]).await;
    let failure = async |route: &str| {
        let error = soon(room.rpc.call_to::<()>("m1", route, &())).await.unwrap_err();
        (error.code.to_string(), error.msg)
    };
    let is = |code: &str, text: &str| (code.to_owned(), text.to_owned());
    assert_eq!(failure("metagame.player.coded").await, is("MG-001", "not enough"));
    assert_eq!(failure("metagame.player.panics").await, is("PIT-000", "out of gold"));
    assert_eq!(failure("metagame.player.nope").await, is("PIT-404", "route not found"));
    let limit = is("PIT-000", "nats: maximum payload exceeded");
    assert_eq!(failure("metagame.player.huge").await, limit);
    let large = Bytes::from(vec![1; (4 << 20) - 4096]);
    let size = room.rpc.raw("metagame.player.size", large).await.unwrap();
    assert_eq!(proto::Doc::decode(size).unwrap().doc, ((4 << 20) - 4096).to_string());
    let too_large = Bytes::from(vec![1; 5 << 20]);
    assert_eq!(room.rpc.raw("metagame.player.size", too_large).await.unwrap_err().code, "PIT-000");

    let hurried = room.rpc.timeout(Duration::from_millis(100));
    let error = hurried.call_to::<()>("m1", "metagame.player.slow", &()).await.unwrap_err();
    assert_eq!(error.msg, "rpc client: request timeout");
    soon(dropped.notified()).await;
    for worker in [room, first, second] {
        worker.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_to_a_dead_address_goes_to_another_server() {
    let world = World::start();
    let silent = world.announce("metagame", "d1", &[]).await;
    // Nobody listens on the port of discarded messages here.
    let dead = [("grpcHost", "127.0.0.1"), ("grpcPort", "9")];
    let dead = world.announce("metagame", "d2", &dead).await;
    let metagame = world.worker("m1", metagame(Arc::default()), &[]).await;
    let room = world.worker("r1", App::new("room"), &[("pitaya.routing", "metagame=round-robin")]);
    let room = room.await;
    room.knows(&["d1", "d2", "m1"]).await;
    let error = room.rpc.call_to::<()>("d1", "metagame.player.echo", &()).await.unwrap_err();
    assert_eq!(error.msg, "rpc client has no connection to the chosen server");
    let error = room.rpc.call_to::<()>("d2", "metagame.player.echo", &()).await.unwrap_err();
    assert_eq!(error.msg, "grpc: the server cannot be reached");
    silent.shutdown().await;
    room.forgets("d1").await;
    for _ in 0..12 {
        let echo = soon(room.rpc.call::<proto::Doc>("metagame.player.echo", &())).await.unwrap();
        assert_eq!(echo.doc, "m1:");
    }
    dead.shutdown().await;
    room.stop().await;
    metagame.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frontend_of_pitaya_gets_pushes_and_kicks_in_order_and_calls_with_a_deadline() {
    let world = World::start();
    let mut frontend = Peer::start().await;
    let port = frontend.port.to_string();
    let address = [("grpcHost", "127.0.0.1"), ("grpcPort", port.as_str())];
    let announced = world.announce("connector", "front-1", &address).await;
    world.bind("connector", "u1", "front-1").await;
    let dropped = Arc::new(Notify::new());
    let metagame = world.worker("m1", metagame(Arc::clone(&dropped)), &[]).await;
    metagame.knows(&["front-1"]).await;
    let port = metagame.grpc_port("m1");

    let call = |route: &str, data: Vec<u8>, metadata: &'static [u8]| {
        let msg = proto::Msg { route: route.into(), data: data.into(), ..Default::default() };
        proto::Request {
            r#type: proto::RpcType::User.into(),
            msg: Some(msg),
            frontend_id: "front-1".into(),
            metadata: Bytes::from_static(metadata),
            ..Default::default()
        }
        .encode_to_vec()
    };
    let send =
        async |method, message: Vec<u8>, limit| soon(ask(port, method, message, limit)).await;
    // A user that nobody holds is no mistake of the caller's, as with NATS.
    for uid in ["nobody", "u1"] {
        let tell = call("metagame.player.tell", doc(uid).encode_to_vec(), b"{}");
        let answer = send(METHOD_CALL, tell, None).await.unwrap();
        assert_eq!(proto::Response::decode(answer).unwrap(), proto::Response::default());
    }
    for number in 0..100_u8 {
        let Asked { method, message, timeout } = soon(frontend.asked.recv()).await.unwrap();
        assert_eq!((method.as_str(), timeout.is_some()), (METHOD_PUSH, true));
        let push = proto::Push::decode(message).unwrap();
        assert_eq!((push.uid.as_str(), &push.data[..]), ("u1", &[number][..]));
    }
    let kick = soon(frontend.asked.recv()).await.unwrap();
    assert_eq!(kick.method, METHOD_KICK);
    assert_eq!(proto::KickMsg::decode(kick.message).unwrap().user_id, "u1");

    // What is wrong with a call itself is a status, as Go servers answer it.
    let status = send(METHOD_CALL, call("metagame.player.echo", vec![], b""), None).await;
    let status = status.unwrap_err();
    assert_eq!((status.code(), status.message()), (tonic::Code::Unknown, "no context found"));
    for (method, message) in [
        (METHOD_PUSH, proto::Push { uid: "u1".into(), ..Default::default() }.encode_to_vec()),
        (METHOD_KICK, proto::KickMsg { user_id: "u1".into() }.encode_to_vec()),
    ] {
        let status = send(method, message, None).await.unwrap_err();
        assert_eq!((status.code(), status.message()), (tonic::Code::Unknown, "session not found"));
    }
    let bound = proto::BindMsg { uid: "u1".into(), fid: "front-2".into() }.encode_to_vec();
    assert_eq!(&send(METHOD_BIND, bound, None).await.unwrap()[..], b"\x0a\x03ack");
    let status = send("/protos.Pitaya/Nothing", vec![], None).await.unwrap_err();
    assert_eq!(status.code(), tonic::Code::Unimplemented);

    // The deadline of the transport ends the handler, though the metadata allows it more.
    let slow = call("metagame.player.slow", vec![], b"{\"reqTimeout\":\"1h0m0s\"}");
    let limit = Some(Duration::from_millis(100));
    // Whoever is first, the transport or the server, says that the time is over.
    if let Ok(answer) = send(METHOD_CALL, slow, limit).await {
        let error = proto::Response::decode(answer).unwrap().error.unwrap();
        assert_eq!(error.msg, "rpc client: request timeout");
    }
    soon(dropped.notified()).await;
    announced.shutdown().await;
    metagame.stop().await;
}
