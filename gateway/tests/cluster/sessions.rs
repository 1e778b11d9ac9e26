//! Calls of other servers to sessions: bind, data, kick; pushes and kicks by subject.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use client::raw::RawClient;
use gateway::gateway::Gateway;
use proto::Message;

use crate::backend::{
    NESTED_ACK, error_in, push_of, server_subject, session_of, user_request, user_subject,
};
use crate::servers::Nats;
use crate::world::{DRIVERS, GATE, SOON, World, free_address, http_get, tcp, until, web_socket};

const KICKED: &[u8] = b"\x0a\x02\x08\x01";

fn clients(gateway: &Gateway) -> Vec<RawClient> {
    // Enough that both reactors have some.
    (0..10).map(|n| if n % 2 == 0 { tcp(gateway) } else { web_socket(gateway) }).collect()
}

#[test]
fn calls_to_sessions_are_answered_to_the_byte() {
    let world = World::new();
    let backend = world.backend("room-1");
    let caller = &backend.caller;
    for driver in DRIVERS {
        let gateway = world.gateway(driver, &[]);
        for (number, mut client) in clients(&gateway).into_iter().enumerate() {
            let session = backend.session_id(&mut client);
            let illegal = ("PIT-000".to_owned(), "illegal uid".to_owned());
            let long = "x".repeat(257);
            for uid in ["", "a b", "a.*", ">", "a..b", ".a", "tab\t", "\u{7f}", long.as_str()] {
                assert_eq!(error_in(&caller.bind(session, uid)), illegal, "{driver} {uid:?}");
            }
            let uid = format!("user-{number}.é");
            assert_eq!(&caller.bind(session, &uid)[..], NESTED_ACK, "{driver}");
            // The confirmation says that the subscriptions are there; so this push must arrive.
            caller.push(&uid, b"welcome");
            assert_eq!(client.read_push(SOON).unwrap().payload, b"welcome", "{driver}");
            let bound = "session is already bound to an uid".to_owned();
            assert_eq!(error_in(&caller.bind(session, &uid)), ("PIT-000".to_owned(), bound));
            let data = r#"{"level":12345678901234567890,"name":"<a>"}"#;
            let push_session =
                |data| caller.call(GATE, "sys.pushsession", &session_of(session, "ignored", data));
            assert_eq!(&push_session(data)[..], NESTED_ACK);
            assert_eq!(&push_session("")[..], NESTED_ACK, "no data is no change");
            assert_eq!(error_in(&push_session("[1]")).0, "PIT-000");
            client.send_request("room.room.who", b"").unwrap();
            let call = backend.next();
            assert_eq!(
                call.request().session.unwrap(),
                session_of(session, &uid, data),
                "{driver}"
            );
            let kick = proto::KickMsg { user_id: uid.clone() };
            assert_eq!(&caller.call(GATE, "sys.kick", &kick)[..], KICKED, "{driver}");
            client.expect_kick(SOON).unwrap();
            call.answer(b"too late");
            let not_found = ("PIT-000".to_owned(), "session not found".to_owned());
            until("the session leaves", || {
                let answer = caller.call(GATE, "sys.kick", &kick);
                (answer != KICKED).then(|| assert_eq!(error_in(&answer), not_found))
            });
            assert_eq!(error_in(&caller.bind(session, "anybody")), not_found, "{driver}");
            let data = session_of(session, "", "{}");
            assert_eq!(error_in(&caller.call(GATE, "sys.pushsession", &data)), not_found);
        }
        gateway.stop();
    }
}

#[test]
fn what_a_frontend_does_not_serve_is_refused() {
    let world = World::new();
    let backend = world.backend("room-1");
    let caller = &backend.caller;
    for driver in DRIVERS {
        let gateway = world.gateway(driver, &[]);
        for route in ["sys.unknown", "room.echo", "sys.bindsession.more", ""] {
            let answer = caller.call(GATE, route, &session_of(1, "ann", ""));
            let error = proto::Response::decode(answer).unwrap().error.unwrap();
            let told = (error.code.as_str(), error.msg.as_str(), error.metadata["route"].as_str());
            assert_eq!(told, ("PIT-404", "route not found", route), "{driver}");
        }
        assert_eq!(error_in(&caller.ask(&server_subject(GATE), b"\xff".to_vec())).0, "PIT-400");
        assert_eq!(error_in(&caller.ask(&server_subject(GATE), Vec::new())).0, "PIT-400");
        gateway.stop();
    }
}

#[test]
fn calls_that_come_together_are_served_in_their_order() {
    let world = World::new();
    let backend = world.backend("room-1");
    for driver in DRIVERS {
        let gateway = world.gateway(driver, &[]);
        for mut client in clients(&gateway) {
            let session = backend.session_id(&mut client);
            let answers = backend.caller.subscribe("answers");
            let calls = (0..50).map(|number| {
                let data = format!(r#"{{"number":{number}}}"#);
                let request = user_request("sys.pushsession", &session_of(session, "", &data));
                (server_subject(GATE), Some("answers".to_owned()), request)
            });
            backend.caller.publish_all(calls);
            for _ in 0..50 {
                assert_eq!(&answers.recv_timeout(SOON).unwrap().payload[..], NESTED_ACK);
            }
            client.send_request("room.room.who", b"").unwrap();
            let call = backend.next();
            assert_eq!(&call.request().session.unwrap().data[..], br#"{"number":49}"#, "{driver}");
        }
        gateway.stop();
    }
}

#[test]
fn pushes_and_kicks_by_subject_are_answered_and_checked() {
    let world = World::new();
    let backend = world.backend("room-1");
    let caller = &backend.caller;
    for driver in DRIVERS {
        let gateway = world.gateway(driver, &[]);
        for mut client in clients(&gateway).into_iter().take(4) {
            caller.bind(backend.session_id(&mut client), "ann");
            let push = push_of("ann", b"1").encode_to_vec();
            let answer = caller.ask(&user_subject("ann", "push"), push);
            assert_eq!(&answer[..], b"\x0a\x03ack", "{driver}");
            assert_eq!(client.read_push(SOON).unwrap().payload, b"1");
            caller.publish(&user_subject("ann", "push"), &push_of("bob", b"not hers"));
            caller.publish_all([(user_subject("ann", "push"), None, b"\xff\xff".to_vec())]);
            caller.publish(&user_subject("ann", "kick"), &proto::KickMsg { user_id: "bob".into() });
            caller.push("ann", b"2");
            assert_eq!(client.read_push(SOON).unwrap().payload, b"2", "{driver}");
            let kick = proto::KickMsg { user_id: "ann".into() }.encode_to_vec();
            let answer = caller.ask(&user_subject("ann", "kick"), kick);
            assert_eq!(answer, proto::KickAnswer { kicked: true }.encode_to_vec(), "{driver}");
            client.expect_kick(SOON).unwrap();
        }
        gateway.stop();
    }
}

/// The monitoring page of a NATS server, and the server's place.
pub(crate) fn monitored() -> (World, SocketAddr) {
    let monitor = free_address();
    let port = monitor.port().to_string();
    (World::over(Nats::start(&["-m", &port])), monitor)
}

/// How many subscriptions to subjects of users the NATS server has.
pub(crate) fn user_subscriptions(monitor: SocketAddr) -> usize {
    let (_, page) = http_get(monitor, "/connz?subs=1").unwrap();
    page.matches("/user/").count()
}

#[test]
fn a_session_that_closes_leaves_no_subscription() {
    let (world, monitor) = monitored();
    let backend = world.backend("room-1");
    for driver in DRIVERS {
        let gateway = world.gateway(driver, &[]);
        let mut connected = clients(&gateway);
        for (number, client) in connected.iter_mut().enumerate() {
            let session = backend.session_id(client);
            backend.caller.bind(session, &format!("user-{number}"));
        }
        assert_eq!(user_subscriptions(monitor), connected.len() * 2, "{driver}");
        connected.truncate(4);
        until("the others' leave", || (user_subscriptions(monitor) == 8).then_some(()));
        drop(connected);
        until("all leave", || (user_subscriptions(monitor) == 0).then_some(()));
        gateway.stop();
    }
}

#[test]
fn a_session_that_closes_while_it_is_bound_leaves_nothing() {
    let (world, monitor) = monitored();
    let backend = world.backend("room-1");
    for driver in DRIVERS {
        let gateway = world.gateway(driver, &[]);
        let answers = backend.caller.subscribe("answers");
        for round in 0..60 {
            let mut client = tcp(&gateway);
            let session = backend.session_id(&mut client);
            let bind = user_request("sys.bindsession", &session_of(session, "eve", ""));
            let call = (server_subject(GATE), Some("answers".to_owned()), bind);
            // The end is on its way before, together with, and after the bind.
            if round % 3 == 0 {
                drop(client);
                backend.caller.publish_all([call]);
            } else {
                backend.caller.publish_all([call]);
                let patience = Duration::from_micros(100 * u64::from(round % 7_u32));
                // Whatever this returns, the client closes now.
                let _ = client.expect_silence(patience + Duration::from_micros(1));
                drop(client);
            }
            let answer = answers.recv_timeout(SOON).expect("an answer in any case").payload;
            if answer != NESTED_ACK {
                assert_eq!(error_in(&answer).1, "session not found", "{driver}");
            }
        }
        until("everything is gone", || (user_subscriptions(monitor) == 0).then_some(()));
        let kick = proto::KickMsg { user_id: "eve".into() };
        let answer: Bytes = backend.caller.call(GATE, "sys.kick", &kick);
        assert_eq!(error_in(&answer).1, "session not found", "{driver}: the uid is still held");
        gateway.stop();
    }
}
