//! What a gateway takes from its own cluster (hostile inputs 37, 58, 77 and 85): servers that send too much, nonsense,
//! or come and go all the time. Whoever may speak to NATS is trusted with the sessions, but must not end the process.

use client::raw::RawClient;
use proto::Message;

use crate::backend::{
    Backend, NESTED_ACK, error_in, push_of, server_subject, session_of, user_request, user_subject,
};
use crate::sessions::{monitored, user_subscriptions};
use crate::world::{DRIVERS, GATE, SOON, World, tcp, until, web_socket};

/// A user whose service must not change.
fn bystander(backend: &Backend, mut client: RawClient) -> RawClient {
    let session = backend.session_id(&mut client);
    assert_eq!(&backend.caller.bind(session, "bystander")[..], NESTED_ACK);
    client
}

fn is_served(backend: &Backend, client: &mut RawClient) {
    backend.caller.push("bystander", b"still there");
    assert_eq!(client.read_push(SOON).unwrap().payload, b"still there");
    let id = client.send_request("room.room.echo", b"x").unwrap();
    backend.next().answer(b"y");
    assert_eq!(client.read_response(id, SOON).unwrap().payload, b"y");
}

#[test]
fn session_data_that_are_too_large_are_refused_and_change_nothing() {
    let world = World::new();
    let backend = world.backend("room-1");
    for driver in DRIVERS {
        let gateway = world.gateway(driver, &[]);
        for mut client in [tcp(&gateway), web_socket(&gateway)] {
            let session = backend.session_id(&mut client);
            let data = |bytes: usize| format!(r#"{{"a":"{}"}}"#, "x".repeat(bytes - 8));
            let push = |data: &str| {
                backend.caller.call(GATE, "sys.pushsession", &session_of(session, "", data))
            };
            let kept = data(1_000);
            assert_eq!(&push(&kept)[..], NESTED_ACK, "{driver}");
            let (code, text) = error_in(&push(&data(shared::session::DATA_BYTES_MAX + 1)));
            assert_eq!(code, "PIT-000", "{driver}");
            assert!(text.contains("longer than"), "{driver}: {text}");
            client.send_request("room.room.who", b"").unwrap();
            let session = backend.next().request().session.unwrap();
            assert!(session.data == kept.as_bytes(), "{driver}: other data");
        }
        gateway.stop();
    }
}

#[test]
fn nonsense_from_the_cluster_is_answered_or_dropped() {
    const SEED: u64 = 37;
    println!("seed {SEED}");
    let world = World::new();
    let backend = world.backend("room-1");
    for driver in DRIVERS {
        let gateway = world.gateway(driver, &[]);
        let mut good = bystander(&backend, tcp(&gateway));
        let long = "x".repeat(100_000);
        let mut forged = vec![
            (server_subject(GATE), Vec::new()),
            (server_subject(GATE), b"\xff\xff\xff".to_vec()),
            (server_subject(GATE), proto::Request::default().encode_to_vec()),
            (server_subject(GATE), user_request(&long, &session_of(1, &long, &long))),
            (server_subject(GATE), user_request("sys.kick", &session_of(-1, "", "{}"))),
            (user_subject("bystander", "push"), b"\xff".to_vec()),
            (user_subject("bystander", "kick"), b"\xff".to_vec()),
            (user_subject("bystander", "push"), push_of(&long, long.as_bytes()).encode_to_vec()),
        ];
        let mut random = fastrand::Rng::with_seed(SEED);
        let seeds = [
            user_request("sys.bindsession", &session_of(1, "somebody", "{}")),
            user_request("sys.pushsession", &session_of(1, "", r#"{"a":1}"#)),
            user_request("sys.kick", &proto::KickMsg { user_id: "somebody".into() }),
        ];
        for round in 0..600 {
            let mut bytes = seeds[round % seeds.len()].clone();
            for _ in 0..random.usize(1..4) {
                let at = random.usize(..bytes.len());
                match random.u8(..3) {
                    0 => bytes[at] ^= 1 << random.u8(..8),
                    1 => bytes[at] = random.u8(..),
                    _ => bytes.truncate(at.max(1)),
                }
            }
            forged.push((server_subject(GATE), bytes));
        }
        let forged = forged.into_iter().map(|(subject, bytes)| (subject, None, bytes));
        backend.caller.publish_all(forged);
        is_served(&backend, &mut good);
        // A server that answers nonsense costs its own request.
        let mut client = tcp(&gateway);
        for nonsense in [&b"\xff\xff"[..], b"\x12", &[0; 1_000]] {
            let id = client.send_request("room.room.echo", b"x").unwrap();
            backend.next().answer_bytes(nonsense);
            assert!(client.read_response(id, SOON).unwrap().is_error, "{driver}: {nonsense:x?}");
        }
        is_served(&backend, &mut good);
        gateway.stop();
    }
}

#[test]
fn users_that_come_and_go_leave_no_subscription_and_disturb_nobody() {
    let (world, monitor) = monitored();
    let backend = world.backend("room-1");
    for driver in DRIVERS {
        let gateway = world.gateway(driver, &[]);
        let mut good = bystander(&backend, tcp(&gateway));
        for round in 0..150 {
            let mut client = if round % 2 == 0 { tcp(&gateway) } else { web_socket(&gateway) };
            let session = backend.session_id(&mut client);
            let uid = format!("user-{}", round % 7);
            assert_eq!(&backend.caller.bind(session, &uid)[..], NESTED_ACK, "{driver}");
            if round % 10 == 0 {
                is_served(&backend, &mut good);
            }
        }
        until("all but one leave", || (user_subscriptions(monitor) == 2).then_some(()));
        is_served(&backend, &mut good);
        drop(good);
        until("all leave", || (user_subscriptions(monitor) == 0).then_some(()));
        gateway.stop();
    }
}
