//! NATS goes away, comes back, stands still, or speaks to one reactor only.

use std::io::Read;
use std::net::TcpListener;
use std::time::{Duration, Instant};

use client::raw::RawClient;
use gateway::gateway::{Commands, Gateway};

use crate::backend::{Caller, NESTED_ACK, server_subject, session_of, user_request};
use crate::proxy::Proxy;
use crate::servers::Nats;
use crate::world::{
    DRIVERS, SOON, World, error_of, http_get, tcp, until, until_answered, web_socket,
};

const DISCONNECTED: &str = r#"{"code":"PIT-503","msg":"nats: connection closed"}"#;
fn clients(gateway: &Gateway) -> Vec<RawClient> {
    (0..8).map(|n| if n % 2 == 0 { tcp(gateway) } else { web_socket(gateway) }).collect()
}

fn is_ready(gateway: &Gateway) -> bool {
    http_get(gateway.addresses().admin[0], "/readyz").unwrap().0 == 200
}

/// Pushes until one arrives: whoever pushes has to find NATS again too.
fn until_pushed(client: &mut RawClient, caller: &Caller, uid: &str) {
    until("a push arrives", || {
        caller.push(uid, b"back");
        client.read_push(Duration::from_millis(200)).ok()
    });
}

#[test]
fn nats_can_be_killed_and_come_back_without_a_client_noticing_but_by_codes() {
    let mut world = World::new();
    let backend = world.backend("room-1");
    for driver in DRIVERS {
        let gateway = world.gateway(driver, &[]);
        let mut connected = clients(&gateway);
        for (number, client) in connected.iter_mut().enumerate() {
            let session = backend.session_id(client);
            assert_eq!(&backend.caller.bind(session, &format!("user-{number}"))[..], NESTED_ACK);
        }
        let under_way = connected[0].send_request("room.room.slow", b"").unwrap();
        let lost = backend.next();
        world.nats.kill();
        let answer = connected[0].read_response(under_way, SOON).unwrap();
        assert_eq!(answer.text(), DISCONNECTED, "{driver}: requests under way fail at once");
        until("not ready", || (!is_ready(&gateway)).then_some(()));
        let begun = Instant::now();
        for client in &mut connected {
            assert_eq!(error_of(client, "room.room.echo", b""), DISCONNECTED, "{driver}");
        }
        assert!(begun.elapsed() < Duration::from_secs(2), "{driver}: waited");
        let mut late = tcp(&gateway);
        assert_eq!(error_of(&mut late, "room.room.echo", b""), DISCONNECTED, "{driver}");
        world.nats.restart_same_port();
        let begun = Instant::now();
        until("ready", || is_ready(&gateway).then_some(()));
        // It tries every 100 ms here.
        assert!(begun.elapsed() < Duration::from_secs(5), "{driver}: late");
        for (number, client) in connected.iter_mut().enumerate() {
            until_pushed(client, &backend.caller, &format!("user-{number}"));
        }
        lost.answer(b"of an earlier connection");
        for client in connected.iter_mut().chain([&mut late]) {
            // Pushes that were sent twice may still come, and are kept apart by the client.
            let id = client.send_request("room.room.echo", b"").unwrap();
            let call = until("the backend is back", || backend.next_within(SOON));
            call.answer(b"again");
            assert_eq!(client.read_response(id, SOON).unwrap().payload, b"again", "{driver}");
        }
        gateway.stop();
    }
}

#[test]
fn another_server_of_the_list_is_used_when_one_is_gone() {
    for driver in DRIVERS {
        let mut world = World::new();
        let mut other = Nats::start(&[]);
        let urls = format!("{},{}", world.nats.url(), other.url());
        let gateway = world.gateway(driver, &[("pitaya.nats.connect", &urls)]);
        until("ready", || is_ready(&gateway).then_some(()));
        world.nats.kill();
        other.restart_same_port();
        until("ready on the other", || is_ready(&gateway).then_some(()));
        world.nats.restart_same_port();
        other.kill();
        let echo = world.backend("room-1").echo();
        until_answered(&mut tcp(&gateway), "room.room.echo", b"x");
        world.withdraw(echo.discovery);
        gateway.stop();
    }
}

#[test]
fn a_worker_and_a_gateway_find_each_other_again_after_an_outage() {
    let mut world = World::new();
    let worker = world.worker("room-1");
    for driver in DRIVERS {
        let gateway = world.gateway(driver, &[]);
        let mut client = tcp(&gateway);
        until_answered(&mut client, "room.test.echo", b"x");
        world.nats.kill();
        assert!(error_of(&mut client, "room.test.echo", b"x").contains("\"PIT-503\""), "{driver}");
        world.nats.restart_same_port();
        until_answered(&mut client, "room.test.echo", b"x");
        gateway.stop();
    }
    world.stop_worker(worker);
}

#[test]
fn requests_that_wait_for_room_survive_an_outage() {
    let mut world = World::new();
    let backend = world.backend("room-1");
    for driver in DRIVERS {
        let settings = [("pitaya.gateway.inflight.target", "2"), ("pitaya.gateway.threads", "1")];
        let gateway = world.gateway(driver, &settings);
        let mut client = tcp(&gateway);
        let ids: Vec<u64> = (0..6_u8)
            .map(|number| client.send_request("room.room.echo", &[number]).unwrap())
            .collect();
        for _ in 0..2 {
            backend.next();
        }
        world.nats.kill();
        for id in &ids[..2] {
            let answer = client.read_message(SOON).unwrap();
            assert_eq!((answer.id, answer.text().as_str()), (*id, DISCONNECTED), "{driver}");
        }
        // A few ticks, in which nothing may be done about the others.
        client.expect_silence(Duration::from_millis(350)).unwrap();
        world.nats.restart_same_port();
        for id in &ids[2..] {
            // The backend may come back later than the gateway; then nobody is there for a moment.
            let message = loop {
                if let Some(call) = backend.next_within(Duration::from_millis(10)) {
                    call.answer(b"done");
                }
                if let Ok(message) = client.read_message(Duration::from_millis(10)) {
                    break message;
                }
            };
            assert_eq!(message.id, *id, "{driver}");
            let text = message.text();
            assert!(text == "done" || text.contains("no responders"), "{driver}: {text}");
        }
        gateway.stop();
    }
}

#[test]
fn a_nats_that_stands_still_for_a_moment_costs_time_and_nothing_else() {
    let world = World::new();
    let backend = world.backend("room-1");
    for driver in DRIVERS {
        let gateway = world.gateway(driver, &[]);
        let mut client = tcp(&gateway);
        let session = backend.session_id(&mut client);
        backend.caller.bind(session, "ann");
        world.nats.pause();
        let ids: Vec<u64> = (0..10_u8)
            .map(|number| client.send_request("room.room.echo", &[number]).unwrap())
            .collect();
        client.expect_silence(Duration::from_millis(300)).unwrap();
        world.nats.resume();
        for (number, id) in ids.iter().enumerate() {
            let call = backend.next();
            assert_eq!(call.data(), [number as u8].as_slice(), "{driver}");
            call.answer(&call.data());
            assert_eq!(client.read_response(*id, SOON).unwrap().payload, [number as u8]);
        }
        backend.caller.push("ann", b"awake");
        assert_eq!(client.read_push(SOON).unwrap().payload, b"awake", "{driver}");
        gateway.stop();
    }
}

#[test]
fn nothing_is_said_to_a_nats_that_has_not_greeted() {
    let mut world = World::new();
    let backend = world.backend("room-1");
    for driver in DRIVERS {
        let gateway = world.gateway(driver, &[]);
        let mut connected = clients(&gateway);
        for (number, client) in connected.iter_mut().enumerate() {
            let session = backend.session_id(client);
            backend.caller.bind(session, &format!("user-{number}"));
        }
        world.nats.kill();
        let mute = TcpListener::bind(world.nats.address()).unwrap();
        let mut sockets = [(); 2].map(|()| mute.accept().unwrap().0);
        // Each of them has subscriptions to end.
        drop(connected);
        let mut client = tcp(&gateway);
        assert_eq!(error_of(&mut client, "room.room.echo", b""), DISCONNECTED, "{driver}");
        for socket in &mut sockets {
            socket.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
            let said = socket.read(&mut [0; 64]);
            assert!(
                said.is_err(),
                "{driver}: {} bytes before the server's greeting",
                said.unwrap()
            );
        }
        drop((mute, sockets));
        world.nats.restart_same_port();
        let id = until("NATS is back", || {
            let id = client.send_request("room.room.echo", b"").unwrap();
            match client.read_response(id, Duration::from_millis(100)) {
                Ok(answer) if answer.is_error => None,
                _ => Some(id),
            }
        });
        backend.next().answer(b"served");
        assert_eq!(client.read_response(id, SOON).unwrap().payload, b"served", "{driver}");
        gateway.stop();
    }
}

#[test]
fn a_bind_on_a_reactor_that_has_lost_nats_changes_nothing_and_can_be_repeated() {
    let world = World::new();
    let backend = world.backend("room-1");
    for driver in DRIVERS {
        let proxy = Proxy::start(world.nats.address());
        let url = format!("nats://{}", proxy.address());
        let plan = world.plan(driver, &[("pitaya.nats.connect", &url)]);
        let starting = std::thread::spawn(|| Gateway::start(plan, Commands::new()));
        proxy.pass_all();
        let gateway = starting.join().unwrap().unwrap();
        let mut connected: Vec<RawClient> = (0..12).map(|_| tcp(&gateway)).collect();
        let sessions: Vec<i64> =
            connected.iter_mut().map(|client| backend.session_id(client)).collect();
        // Only the reactor that takes calls has NATS back; the other one is connected and not greeted.
        let stalled = proxy.pass_only(b"SUB pitaya/servers/connector/gate-1 ");
        let answers = backend.caller.subscribe("answers");
        let binds = (0..).zip(&sessions).map(|(number, session)| {
            let session = session_of(*session, &format!("user-{number}"), "");
            let bind = user_request("sys.bindsession", &session);
            (server_subject("gate-1"), Some("answers".to_owned()), bind)
        });
        backend.caller.publish_all(binds);
        let mut confirmed = 0;
        while let Ok(answer) = answers.recv_timeout(Duration::from_millis(500)) {
            confirmed += usize::from(&answer.payload[..] == NESTED_ACK);
        }
        proxy.pass(stalled);
        until("ready", || is_ready(&gateway).then_some(()));
        for (number, client) in connected.iter_mut().enumerate() {
            let uid = format!("user-{number}");
            let answer = backend.caller.bind(sessions[number], &uid);
            confirmed += usize::from(&answer[..] == NESTED_ACK);
            backend.caller.push(&uid, b"bound");
            assert_eq!(client.read_push(SOON).unwrap().payload, b"bound", "{driver} {uid}");
        }
        assert_eq!(confirmed, sessions.len(), "{driver}: each bind is confirmed once");
        gateway.stop();
    }
}
