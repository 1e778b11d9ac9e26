//! Gateways that host an application of their own type in a cluster: Pitaya's connectors.

use bytes::Bytes;
use client::raw::{OwnedMessage, RawClient};
use gateway::gateway::Gateway;
use proto::Message as _;
use worker::prelude::*;

use crate::backend::{server_subject, user_request};
use crate::world::{
    DRIVERS, GATE, SOON, World, error_of, http_get, tcp, until, until_answered, web_socket,
};

#[derive(Deserialize)]
struct Tell {
    uid: String,
    text: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Number {
    #[prost(uint64, tag = "1")]
    value: u64,
}

/// What tests need to see of sessions, pushes and calls.
fn app() -> App {
    App::new("connector")
        .on("entry.echo", async |body: Bytes| -> Result<Bytes> { Ok(body) })
        .on("entry.bind", async |session: Session, uid: String| -> Result<String> {
            session.bind(&uid).await?;
            // Confirmed means that a push arrives, and before the answer.
            session.push("onBound", &uid).await?;
            Ok(session.frontend_id().to_owned())
        })
        .on("entry.data", async |session: Session, level: u32| -> Result<u32> {
            session.set("level", level)?;
            session.save().await?;
            Ok(level)
        })
        .on("entry.read", async |session: Session| -> Result<u32> {
            Ok(session.get("level")?.unwrap_or_default())
        })
        .on("entry.kick", async |session: Session| -> Result<bool> {
            session.kick().await?;
            Ok(true)
        })
        .on("entry.tell", async |push: Push, tell: Tell| -> Result<bool> {
            push.to_users(&[tell.uid], "connector", "onTold", &tell.text).await?;
            Ok(true)
        })
        .on("entry.kickuser", async |push: Push, uid: String| -> Result<bool> {
            push.kick(&[uid], "connector").await?;
            Ok(true)
        })
        .on("entry.ask", async |rpc: Rpc, route: String| -> Result<u64> {
            let answer: Number = rpc.call(&route, &Number { value: 20 }).await?;
            Ok(answer.value)
        })
        .on("entry.slow", async |time_ms: u64| -> Result<bool> {
            tokio::time::sleep(Duration::from_millis(time_ms)).await;
            Ok(true)
        })
        .remote("entry.double", async |Pb(number): Pb<Number>| -> Result<Pb<Number>> {
            Ok(Pb(Number { value: number.value * 2 }))
        })
}

fn ask(client: &mut RawClient, route: &str, payload: &str) -> String {
    let answer = client.request(route, payload.as_bytes()).unwrap();
    assert!(!answer.is_error, "{route}: {}", answer.text());
    answer.text()
}

fn bind(client: &mut RawClient, uid: &str) {
    let id = client.send_request("connector.entry.bind", format!("{uid:?}").as_bytes()).unwrap();
    assert_eq!(client.read_push(SOON).unwrap().text(), format!("{uid:?}"));
    assert!(!client.read_response(id, SOON).unwrap().is_error);
}

/// On both reactors, over both transports.
fn clients(gateway: &Gateway) -> Vec<RawClient> {
    (0..8).map(|n| if n % 2 == 0 { tcp(gateway) } else { web_socket(gateway) }).collect()
}

#[test]
fn routes_of_the_own_type_run_here_and_others_in_the_cluster_with_the_same_session() {
    let world = World::new();
    let backend = world.backend("room-1");
    for driver in DRIVERS {
        let gateway = world.hosting(driver, app(), &[]);
        for (number, mut client) in clients(&gateway).into_iter().enumerate() {
            let uid = format!("user-{number}");
            assert_eq!(ask(&mut client, "entry.echo", "short"), "short", "{driver}");
            assert_eq!(ask(&mut client, "connector.entry.echo", "full"), "full", "{driver}");
            bind(&mut client, &uid);
            assert_eq!(ask(&mut client, "entry.data", "7"), "7");
            assert_eq!(ask(&mut client, "entry.read", ""), "7", "{driver}");
            let id = client.send_request("room.room.who", b"").unwrap();
            let call = backend.next();
            let session = call.request().session.unwrap();
            let data: serde_json::Value = serde_json::from_slice(&session.data).unwrap();
            let expected = serde_json::json!({ "ipversion": "ipv4", "level": 7 });
            assert_eq!((session.uid, data), (uid.clone(), expected), "{driver}");
            call.answer(b"room");
            assert_eq!(client.read_response(id, SOON).unwrap().text(), "room", "{driver}");
            // The user is known to the cluster too.
            backend.caller.push(&uid, b"from afar");
            assert_eq!(client.read_push(SOON).unwrap().payload, b"from afar", "{driver}");
            let unknown = error_of(&mut client, "entry.nothing", b"");
            let text = "pitaya/handler: connector.entry.nothing not found";
            assert_eq!(unknown, format!(r#"{{"code":"PIT-404","msg":"{text}"}}"#), "{driver}");
            client.notify("connector.entry.kick", b"").unwrap();
            client.expect_kick(SOON).unwrap();
        }
        gateway.stop();
    }
}

#[test]
fn calls_of_a_hosted_application_are_measured_at_the_gateway() {
    let world = World::new();
    let metagame = App::new("metagame").remote("p.double", async |Pb(number): Pb<Number>| {
        if number.value > 20 {
            bail!("PIT-400", "too much")
        }
        Ok::<_, Error>(Pb(Number { value: number.value * 2 }))
    });
    let metagame = world.application(metagame, "metagame-1");
    let gateway = world.hosting("uring", app(), &[]);
    let mut client = tcp(&gateway);
    let answer = until_answered(&mut client, "entry.ask", br#""metagame.p.double""#);
    assert_eq!(answer.text(), "40");
    error_of(&mut client, "entry.ask", br#""metagame.p.none""#);
    let count = |route: &str, code: &str| {
        let (_, page) = http_get(gateway.addresses().admin[0], "/metrics").unwrap();
        let parts = [
            "pitaya_handler_response_time_ns_count{".to_owned(),
            "type=\"rpc\"".to_owned(),
            format!("route=\"{route}\""),
            format!("code=\"{code}\""),
        ];
        let line = page.lines().find(|line| parts.iter().all(|part| line.contains(part)));
        line.and_then(|line| line.rsplit(' ').next()?.parse::<u64>().ok())
    };
    assert_eq!(count("metagame.p.double", ""), Some(1));
    assert!(count("other", "PIT-404").is_some_and(|failed| failed >= 1));
    assert_eq!(count("metagame.p.none", "PIT-404"), None, "nobody answers it");
    world.stop_worker(metagame);
    gateway.stop();
}

#[test]
fn users_of_another_gateway_are_pushed_to_and_kicked_over_nats() {
    let world = World::new();
    for driver in DRIVERS {
        let here = world.hosting(driver, app(), &[]);
        let there = world.hosting(driver, app(), &[("pitaya.server.id", "gate-2")]);
        let (mut ann, mut bob) = (tcp(&here), web_socket(&there));
        bind(&mut ann, "ann");
        bind(&mut bob, "bob");
        for uid in ["ann", "bob"] {
            let tell = format!(r#"{{"uid":{uid:?},"text":"hello"}}"#);
            let id = ann.send_request("entry.tell", tell.as_bytes()).unwrap();
            let told = if uid == "ann" { &mut ann } else { &mut bob };
            assert_eq!(told.read_push(SOON).unwrap().text(), r#""hello""#, "{driver} {uid}");
            assert_eq!(ann.read_response(id, SOON).unwrap().text(), "true");
        }
        assert_eq!(ask(&mut ann, "entry.kickuser", r#""bob""#), "true");
        bob.expect_kick(SOON).unwrap();
        // The same user logs in there: one session across both.
        let mut again = tcp(&there);
        bind(&mut again, "ann");
        ann.expect_kick(SOON).unwrap();
        here.stop();
        there.stop();
    }
}

#[test]
fn remotes_answer_other_servers_and_handlers_call_them() {
    let world = World::new();
    let backend = world.backend("room-1");
    for driver in DRIVERS {
        let gateway = world.hosting(driver, app(), &[]);
        let call = |route: &str| {
            let request = user_request(route, &Number { value: 21 });
            proto::Response::decode(backend.caller.ask(&server_subject(GATE), request)).unwrap()
        };
        let answer = call("connector.entry.double");
        assert_eq!(Number::decode(answer.data).unwrap().value, 42, "{driver}");
        let unknown = call("connector.entry.nothing").error.unwrap();
        assert_eq!((unknown.code.as_str(), unknown.msg.as_str()), ("PIT-404", "route not found"));

        let lobby = [("pitaya.server.id", "lobby-1"), ("pitaya.server.type", "lobby")];
        let lobby = world.hosting(driver, app(), &lobby);
        let mut client = tcp(&lobby);
        // A frontend asks another one's remote, and a client of it uses the other one's handlers.
        let asked = until("the lobby sees the connector", || {
            let answer = client.request("entry.ask", br#""connector.entry.double""#).unwrap();
            (!answer.is_error).then(|| answer.text())
        });
        assert_eq!(asked, "40", "{driver}");
        assert_eq!(ask(&mut client, "connector.entry.echo", "through"), "through");
        assert_eq!(ask(&mut client, "connector.entry.data", "3"), "3");
        assert_eq!(ask(&mut client, "lobby.entry.read", ""), "3", "{driver}");
        lobby.stop();
        gateway.stop();
    }
}

#[test]
fn the_own_handlers_work_without_nats_and_what_they_have_in_hand_is_answered() {
    let mut world = World::new();
    let _echo = world.backend("room-1").echo();
    for driver in DRIVERS {
        let gateway = world.hosting(driver, app(), &[]);
        let mut connected = clients(&gateway);
        // Answered after NATS was lost, by an application that does not need it.
        let mut patient = clients(&gateway);
        let slow: Vec<u64> = patient
            .iter_mut()
            .map(|client| client.send_request("entry.slow", b"500").unwrap())
            .collect();
        world.nats.kill();
        let gone = r#"{"code":"PIT-503","msg":"nats: connection closed"}"#;
        for client in &mut connected {
            until("NATS is missed", || {
                let answer = client.request("room.room.echo", b"").unwrap();
                (answer.text() == gone).then_some(())
            });
            assert_eq!(ask(client, "entry.echo", "alone"), "alone", "{driver}");
        }
        for (client, id) in patient.iter_mut().zip(slow) {
            assert_eq!(client.read_response(id, SOON).unwrap().text(), "true", "{driver}");
        }
        world.nats.restart_same_port();
        for (number, client) in connected.iter_mut().enumerate() {
            let answer = until_answered(client, "room.room.echo", b"back");
            assert_eq!(answer.text(), "back", "{driver}");
            bind(client, &format!("{driver}-{number}"));
        }
        gateway.stop();
    }
}

#[test]
fn connections_can_move_between_reactors_with_requests_in_both_directions() {
    let world = World::new();
    let backend = world.backend("room-1");
    for driver in DRIVERS {
        let gateway = world.hosting(driver, app(), &[]);
        let mut connected = clients(&gateway);
        let mut under_way = Vec::new();
        for (number, client) in connected.iter_mut().enumerate() {
            bind(client, &format!("mover-{number}"));
            under_way.push((
                client.send_request("entry.slow", b"200").unwrap(),
                client.send_request("room.room.slow", b"").unwrap(),
            ));
        }
        let calls: Vec<_> = connected.iter().map(|_| backend.next()).collect();
        let moved = gateway.move_connections(0, 1) + gateway.move_connections(1, 0);
        assert!(moved >= connected.len(), "{driver}: {moved}");
        for call in &calls {
            call.answer(b"done");
        }
        for (client, (own, other)) in connected.iter_mut().zip(under_way) {
            let mut answers =
                [client.read_message(SOON).unwrap(), client.read_message(SOON).unwrap()];
            answers.sort_by_key(|answer| answer.id);
            assert_eq!(answers.each_ref().map(|answer| answer.id), [own, other], "{driver}");
            assert_eq!(answers.each_ref().map(OwnedMessage::text), ["true", "done"]);
            assert_eq!(ask(client, "entry.echo", "moved"), "moved", "{driver}");
            let tell = r#"{"uid":"mover-0","text":"still here"}"#;
            assert_eq!(ask(client, "entry.tell", tell), "true");
        }
        for _ in 0..connected.len() {
            assert_eq!(connected[0].read_push(SOON).unwrap().text(), r#""still here""#);
        }
        gateway.stop();
    }
}
