//! Gateways in a cluster over gRPC, with a real etcd and without NATS: workers of ours, and peers made by hand that say
//! what Go servers say.
//!
//! Each test of behaviour runs over the ring and over epoll. Waiting is always for something that must come.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

#[path = "../support/asking.rs"]
mod asking;
#[path = "../../../worker/tests/grpc/peer.rs"]
mod peer;
#[path = "../../../shared/tests/servers/mod.rs"]
mod servers;

mod failures;
mod world;

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use client::raw::RawClient;
use gateway::builder::BuildError;
use gateway::gateway::StartError;
use peer::Peer;
use prost::Message;
use proto::service::{METHOD_BIND, METHOD_CALL, METHOD_KICK, METHOD_PUSH};
use tokio::sync::Barrier;
use tonic::Code;
use worker::prelude::*;
use world::{DRIVERS, SOON, World, ask, error_of, tcp, until_answered};

#[derive(Deserialize)]
struct Tell {
    uid: String,
    text: String,
}

/// What tests need to see of requests, sessions, pushes and kicks; the same in a worker and in a gateway.
fn app(server_type: &str) -> App {
    App::new(server_type)
        .on("desk.echo", async |body: Bytes| -> Result<Bytes> { Ok(body) })
        .on("desk.fail", async || -> Result<bool> {
            Err(Error::new("RM-001", "not enough").with("gold", "7"))
        })
        .on("desk.bind", async |session: Session, uid: String| -> Result<String> {
            session.bind(&uid).await?;
            session.push("onBound", &uid).await?;
            Ok(session.frontend_id().to_owned())
        })
        .on("desk.level", async |session: Session, level: u32| -> Result<u32> {
            session.set("level", level)?;
            session.save().await?;
            Ok(level)
        })
        .on("desk.read", async |session: Session| -> Result<u32> {
            Ok(session.get("level")?.unwrap_or_default())
        })
        .on("desk.tell", async |push: Push, tell: Tell| -> Result<bool> {
            push.to_users(&[tell.uid], "connector", "onTold", &tell.text).await?;
            Ok(true)
        })
        .on("desk.kick", async |push: Push, uid: String| -> Result<bool> {
            push.kick(&[uid], "connector").await?;
            Ok(true)
        })
        .on("desk.ask", async |rpc: Rpc, route: String| -> Result<String> {
            let answer: proto::Doc = rpc.call(&route, &proto::Doc { doc: "hello".into() }).await?;
            Ok(answer.doc)
        })
        .on("desk.meet", async |rpc: Rpc, server_id: String| -> Result<String> {
            let hello = proto::Doc { doc: "hello".into() };
            let answer: proto::Doc =
                rpc.call_to(&server_id, "connector.desk.greet", &hello).await?;
            Ok(answer.doc)
        })
        .remote(
            "desk.greet",
            async |ctx: Ctx, Pb(said): Pb<proto::Doc>| -> Result<Pb<proto::Doc>> {
                Ok(Pb(proto::Doc { doc: format!("{} says {}", ctx.server_id(), said.doc) }))
            },
        )
}

/// Binds; the handler's push and its answer come over different ways, so either may be first.
fn bind(client: &mut RawClient, route: &str, uid: &str) {
    client.send_request(route, format!("{uid:?}").as_bytes()).unwrap();
    let messages = [(); 2].map(|()| client.read_message(SOON).unwrap());
    assert!(messages.iter().all(|message| !message.is_error), "{}", messages[0].text());
    assert!(messages.iter().any(|message| message.text() == format!("{uid:?}")));
}

fn tell(client: &mut RawClient, route: &str, uid: &str, text: &str) {
    let tell = format!(r#"{{"uid":{uid:?},"text":{text:?}}}"#);
    client.notify(route, tell.as_bytes()).unwrap();
}

#[test]
fn players_ask_a_worker_and_it_binds_pushes_and_kicks_them() {
    let world = World::new();
    let room = world.worker("r1", app("room"));
    for driver in DRIVERS {
        let gateway = world.gateway(driver, "gate-1", &[]);
        let mut clients: Vec<_> = (0..4).map(|_| tcp(&gateway)).collect();
        for (number, client) in clients.iter_mut().enumerate() {
            until_answered(client, "room.desk.echo", b"first");
            // Side by side; over gRPC they may overtake each other, as in Pitaya.
            let mut open: BTreeMap<u64, u8> = (0..100_u8)
                .map(|number| (client.send_request("room.desk.echo", &[number]).unwrap(), number))
                .collect();
            while !open.is_empty() {
                let answer = client.read_message(SOON).unwrap();
                let number = open.remove(&answer.id).expect("one answer each");
                assert_eq!((answer.is_error, &answer.payload[..]), (false, &[number][..]));
            }
            assert_eq!(
                error_of(client, "room.desk.fail", b""),
                r#"{"code":"RM-001","msg":"not enough","metadata":{"gold":"7"}}"#
            );
            let nobody = error_of(client, "nobody.desk.echo", b"");
            assert!(nobody.contains("no servers available of this type"), "{nobody}");
            bind(client, "room.desk.bind", &format!("player-{number}"));
            assert_eq!(ask(client, "room.desk.level", "7"), "7");
            assert_eq!(ask(client, "room.desk.read", ""), "7", "{driver}");
        }
        // Buses with all they wait for are moved under the bridges' feet.
        gateway.move_connections(0, 1);
        let (first, rest) = clients.split_at_mut(1);
        for (number, client) in rest.iter_mut().enumerate() {
            for count in 0..50 {
                tell(
                    &mut first[0],
                    "room.desk.tell",
                    &format!("player-{}", number + 1),
                    &count.to_string(),
                );
            }
            let mut told: Vec<u32> = (0..50)
                .map(|_| client.read_push(SOON).unwrap().text().trim_matches('"').parse().unwrap())
                .collect();
            told.sort_unstable();
            assert_eq!(told, (0..50).collect::<Vec<_>>(), "{driver}");
        }
        assert_eq!(ask(&mut first[0], "room.desk.kick", r#""player-1""#), "true");
        rest[0].expect_kick(SOON).unwrap();
        gateway.stop();
    }
    world.stop_worker(room);
}

#[test]
fn one_session_a_user_among_gateways_and_pushes_find_it() {
    let world = World::new();
    for driver in DRIVERS {
        let here = world.hosting(driver, "gate-1", app("connector"));
        let there = world.hosting(driver, "gate-2", app("connector"));
        let (mut ann, mut bob) = (tcp(&here), tcp(&there));
        // A push to a gateway that is not known yet goes nowhere.
        until_answered(&mut ann, "desk.meet", br#""gate-2""#);
        until_answered(&mut bob, "desk.meet", br#""gate-1""#);
        bind(&mut ann, "desk.bind", "ann");
        bind(&mut bob, "desk.bind", "bob");
        for uid in ["ann", "bob"] {
            tell(&mut ann, "desk.tell", uid, "hello");
            let told = if uid == "ann" { &mut ann } else { &mut bob };
            assert_eq!(told.read_push(SOON).unwrap().text(), r#""hello""#, "{driver} {uid}");
        }
        // To and fro: the entry in etcd names whoever bound last.
        let mut again = tcp(&there);
        bind(&mut again, "desk.bind", "ann");
        ann.expect_kick(SOON).unwrap();
        let mut back = tcp(&here);
        bind(&mut back, "desk.bind", "ann");
        again.expect_kick(SOON).unwrap();
        tell(&mut bob, "desk.tell", "ann", "welcome back");
        assert_eq!(back.read_push(SOON).unwrap().text(), r#""welcome back""#, "{driver}");
        assert_eq!(ask(&mut bob, "desk.kick", r#""ann""#), "true");
        back.expect_kick(SOON).unwrap();
        here.stop();
        there.stop();
    }
}

#[test]
fn hosted_applications_call_workers_and_are_called() {
    let world = World::new();
    let room = world.worker("r1", app("room"));
    for driver in DRIVERS {
        let gateway = world.hosting(driver, "gate-1", app("connector"));
        let mut client = tcp(&gateway);
        until_answered(&mut client, "room.desk.echo", b"");
        assert_eq!(ask(&mut client, "desk.ask", r#""room.desk.greet""#), r#""r1 says hello""#);
        let asked = until_answered(&mut client, "room.desk.ask", br#""connector.desk.greet""#);
        assert_eq!(asked.text(), r#""gate-1 says hello""#, "{driver}");
        let missing = error_of(&mut client, "room.desk.ask", br#""connector.desk.nothing""#);
        assert!(missing.contains("PIT-404"), "{missing}");
        gateway.stop();
    }
    world.stop_worker(room);
}

#[test]
fn players_who_wait_for_slow_handlers_hold_nobody_up() {
    /// More than HTTP/2 servers take on a connection by default.
    const PLAYERS: usize = 30;
    const EACH: usize = 10;
    let world = World::new();
    let all = Arc::new(Barrier::new(PLAYERS * EACH));
    let app = app("room").concurrent("desk.gather").on("desk.gather", move || {
        let all = Arc::clone(&all);
        async move {
            all.wait().await;
            Ok::<_, Error>(true)
        }
    });
    let room = world.worker("r1", app);
    let gateway = world.gateway("auto", "gate-1", &[]);
    let mut clients: Vec<_> = (0..PLAYERS).map(|_| tcp(&gateway)).collect();
    until_answered(&mut clients[0], "room.desk.echo", b"");
    for client in &mut clients {
        for _ in 0..EACH {
            client.send_request("room.desk.gather", b"").unwrap();
        }
    }
    for client in &mut clients {
        for _ in 0..EACH {
            let answer = client.read_message(SOON).unwrap();
            assert!(!answer.is_error, "{}", answer.text());
        }
    }
    gateway.stop();
    world.stop_worker(room);
}

fn request(route: &str, data: Vec<u8>, metadata: &'static [u8]) -> Vec<u8> {
    let msg = proto::Msg { route: route.into(), data: data.into(), ..Default::default() };
    proto::Request {
        r#type: proto::RpcType::User.into(),
        msg: Some(msg),
        metadata: Bytes::from_static(metadata),
        ..Default::default()
    }
    .encode_to_vec()
}

#[test]
fn servers_of_pitaya_are_answered_as_by_their_own_frontends() {
    let world = World::new();
    let mut room = world.soon(Peer::start());
    let record = world.announce("room", "r1", room.port);
    for driver in DRIVERS {
        let gateway = world.gateway(driver, "gate-1", &[]);
        let port = world.grpc_port(&record, "gate-1");
        let call = |method, message: Vec<u8>| world.soon(peer::ask(port, method, message, None));
        let refused = |method, message: Vec<u8>| {
            let status = call(method, message).unwrap_err();
            (status.code(), status.message().to_owned())
        };
        let mut ann = tcp(&gateway);
        assert_eq!(until_answered(&mut ann, "room.desk.who", b"").text(), "ack");
        let asked = world.soon(room.asked.recv()).unwrap();
        assert_eq!(asked.method, METHOD_CALL);
        assert!(asked.timeout.is_some(), "the other side knows the deadline");
        let asked = proto::Request::decode(asked.message).unwrap();
        assert_eq!(asked.frontend_id, "gate-1");
        let session = asked.session.unwrap();

        let push = |uid: &str, data: &'static [u8]| {
            let data = Bytes::from_static(data);
            proto::Push { route: "onTold".into(), uid: uid.into(), data }.encode_to_vec()
        };
        let kick = |uid: &str| proto::KickMsg { user_id: uid.into() }.encode_to_vec();
        let absent = (Code::Unknown, "session not found".to_owned());
        assert_eq!(refused(METHOD_PUSH, push("ann", b"too early")), absent, "{driver}");
        assert_eq!(refused(METHOD_KICK, kick("ann")), absent);
        let bound = proto::Session { uid: "ann".into(), ..session }.encode_to_vec();
        let bound = call(METHOD_CALL, request("sys.bindsession", bound, b"{}")).unwrap();
        assert_eq!(&bound[..], b"\x0a\x05\x0a\x03ack");
        assert_eq!(&call(METHOD_PUSH, push("ann", b"hello")).unwrap()[..], b"\x0a\x03ack");
        assert_eq!(ann.read_push(SOON).unwrap().payload, b"hello");

        let unknown = call(METHOD_CALL, request("desk.desk.nothing", vec![], b"{}")).unwrap();
        assert_eq!(proto::Response::decode(unknown).unwrap().error.unwrap().code, "PIT-404");
        let status = refused(METHOD_CALL, request("sys.kick", kick("ann"), b""));
        assert_eq!(status, (Code::Unknown, "no context found".to_owned()));
        assert_eq!(refused(METHOD_CALL, vec![0xff]).0, Code::InvalidArgument);
        for method in [METHOD_PUSH, METHOD_KICK] {
            assert_eq!(refused(method, vec![0xff]).0, Code::InvalidArgument, "{method}");
        }
        // In the gateway's own name it is an echo; from another one it means that the user is there now.
        let bound =
            |fid: &str| proto::BindMsg { uid: "ann".into(), fid: fid.into() }.encode_to_vec();
        assert_eq!(&call(METHOD_BIND, bound("gate-1")).unwrap()[..], b"\x0a\x03ack");
        assert_eq!(&call(METHOD_PUSH, push("ann", b"still")).unwrap()[..], b"\x0a\x03ack");
        assert_eq!(ann.read_push(SOON).unwrap().payload, b"still", "{driver}");
        assert_eq!(&call(METHOD_BIND, bound("gate-2")).unwrap()[..], b"\x0a\x03ack");
        ann.expect_kick(SOON).unwrap();

        let mut bob = tcp(&gateway);
        until_answered(&mut bob, "room.desk.who", b"");
        let asked = proto::Request::decode(world.soon(room.asked.recv()).unwrap().message).unwrap();
        let bound = proto::Session { uid: "bob".into(), ..asked.session.unwrap() }.encode_to_vec();
        call(METHOD_CALL, request("sys.bindsession", bound, b"{}")).unwrap();
        assert_eq!(&call(METHOD_KICK, kick("bob")).unwrap()[..], b"\x08\x01");
        bob.expect_kick(SOON).unwrap();
        gateway.stop();
    }
    world.withdraw(record);
}

#[test]
fn mistakes_of_the_configuration_are_told_at_the_start() {
    let world = World::new();
    let taken = std::net::TcpListener::bind("0.0.0.0:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let taken = [("pitaya.cluster.rpc.server.grpc.port", port.as_str())];
    let outcome = world.builder("epoll", "gate-1", &taken).start().err().unwrap();
    assert!(matches!(&outcome, BuildError::Start(StartError::Listen { .. })), "{outcome}");
    let wrong = [
        ("pitaya.modules.bindingstorage.enabled", "false"),
        ("pitaya.gateway.tls.cert", "/nowhere"),
        ("pitaya.gateway.tls.key", "/nowhere"),
    ];
    let outcome = world.builder("epoll", "gate-1", &wrong).start().err().unwrap();
    let BuildError::Configuration(mistakes) = outcome else { panic!("{outcome}") };
    let is_told = |key: &str| mistakes.iter().any(|mistake| mistake.contains(key));
    assert!(is_told("pitaya.modules.bindingstorage.enabled"), "{mistakes:?}");
    assert!(is_told("pitaya.gateway.tls"), "all at once: {mistakes:?}");
    // What NATS would need to know does not matter.
    let nats = [("pitaya.nats.tls.ca", "/nowhere")];
    world.gateway("epoll", "gate-1", &nats).stop();
}
