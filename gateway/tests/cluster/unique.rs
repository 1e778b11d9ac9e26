//! One session a user: in one gateway, among the gateways of a type, and not across types.

use std::sync::mpsc::Receiver;
use std::time::Duration;

use client::raw::{RawClient, RawError};
use proto::Message;

use crate::backend::{Caller, NESTED_ACK, server_subject, session_of, user_request};
use crate::world::{DRIVERS, GATE, SOON, World, tcp};

fn bind_at(caller: &Caller, gateway: &str, session: i64, uid: &str) {
    let answer = caller.call(gateway, "sys.bindsession", &session_of(session, uid, ""));
    assert_eq!(&answer[..], NESTED_ACK);
}

fn next_announcement(announcements: &Receiver<async_nats::Message>) -> proto::BindMsg {
    proto::BindMsg::decode(announcements.recv_timeout(SOON).unwrap().payload).unwrap()
}

#[test]
fn a_login_at_another_gateway_of_the_type_kicks_the_earlier_one() {
    let world = World::new();
    let backend = world.backend("room-1");
    let caller = &backend.caller;
    for driver in DRIVERS {
        let first = world.gateway(driver, &[]);
        let second = world.gateway(driver, &[("pitaya.server.id", "gate-2")]);
        let announcements = caller.subscribe("pitaya/connector/bindings");
        let mut here = tcp(&first);
        let session = backend.session_id(&mut here);
        bind_at(caller, GATE, session, "ann");
        assert_eq!(next_announcement(&announcements).encode_to_vec(), b"\x0a\x03ann\x12\x06gate-1");
        let mut there = tcp(&second);
        let session = backend.session_id(&mut there);
        bind_at(caller, "gate-2", session, "ann");
        assert_eq!(next_announcement(&announcements).fid, "gate-2");
        here.expect_kick(SOON).unwrap();
        let mut again = tcp(&first);
        let session = backend.session_id(&mut again);
        bind_at(caller, GATE, session, "ann");
        there.expect_kick(SOON).unwrap();
        caller.push("ann", b"who is left");
        assert_eq!(again.read_push(SOON).unwrap().payload, b"who is left", "{driver}");
        // An announcement in the gateway's own name is an echo.
        let own = proto::BindMsg { uid: "ann".into(), fid: GATE.into() };
        caller.publish("pitaya/connector/bindings", &own);
        caller.publish_all([("pitaya/connector/bindings".into(), None, b"\xff".to_vec())]);
        caller.push("ann", b"still");
        assert_eq!(again.read_push(SOON).unwrap().payload, b"still", "{driver}");
        first.stop();
        second.stop();
    }
}

#[test]
fn a_login_at_a_gateway_of_another_type_or_without_the_rule_kicks_nobody() {
    let world = World::new();
    let backend = world.backend("room-1");
    let caller = &backend.caller;
    for driver in DRIVERS {
        let first = world.gateway(driver, &[]);
        let mut here = tcp(&first);
        let session = backend.session_id(&mut here);
        bind_at(caller, GATE, session, "ann");
        let other_type = [("pitaya.server.id", "gate-2"), ("pitaya.server.type", "lobby")];
        let lax = [("pitaya.server.id", "gate-3"), ("pitaya.session.unique", "false")];
        for (settings, subject) in [
            (other_type, "pitaya/servers/lobby/gate-2".to_owned()),
            (lax, server_subject("gate-3")),
        ] {
            let second = world.gateway(driver, &settings);
            let mut there = tcp(&second);
            let session = backend.session_id(&mut there);
            let bind = user_request("sys.bindsession", &session_of(session, "ann", ""));
            assert_eq!(&caller.ask(&subject, bind)[..], NESTED_ACK);
            here.expect_silence(Duration::from_millis(50)).unwrap();
            second.stop();
        }
        first.stop();
    }
}

#[test]
fn of_forty_logins_at_once_one_is_left() {
    let world = World::new();
    let backend = world.backend("room-1");
    for driver in DRIVERS {
        let gateway = world.gateway(driver, &[]);
        let mut clients: Vec<RawClient> = (0..40).map(|_| tcp(&gateway)).collect();
        let sessions: Vec<i64> =
            clients.iter_mut().map(|client| backend.session_id(client)).collect();
        let answers = backend.caller.subscribe("answers");
        let binds = sessions.iter().map(|session| {
            let bind = user_request("sys.bindsession", &session_of(*session, "ann", ""));
            (server_subject(GATE), Some("answers".to_owned()), bind)
        });
        backend.caller.publish_all(binds);
        for _ in &clients {
            // Who was replaced while its bind was being proven is told so; all are answered.
            answers.recv_timeout(SOON).expect("an answer");
        }
        let mut left = Vec::new();
        for client in clients {
            left.push(client);
        }
        let mut survivors = 0;
        for client in &mut left {
            // A push that only the holder gets; everybody else was kicked.
            match client.expect_kick(Duration::from_secs(1)) {
                Ok(_) => {}
                Err(RawError::Timeout { .. }) => {
                    survivors += 1;
                    backend.caller.push("ann", b"you");
                    assert_eq!(client.read_push(SOON).unwrap().payload, b"you", "{driver}");
                }
                Err(error) => panic!("{driver}: {error}"),
            }
        }
        assert_eq!(survivors, 1, "{driver}");
        gateway.stop();
    }
}
