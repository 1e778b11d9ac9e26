//! Connections that move between reactors take their NATS connection along: answers, pushes and calls find them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::backend::user_subject;
use crate::servers::Nats;
use crate::traffic::{asking, pushed, sleeping, wait_until};
use crate::world::{DRIVERS, SOON, World, free_address, tcp, until_answered, web_socket};

const CLIENTS: usize = 12;
const MOVES: usize = 6;

#[test]
fn connections_move_with_their_bus_under_load_and_nobody_notices() {
    let world = World::new();
    let worker = world.worker("room-1");
    for driver in DRIVERS {
        let gateway = world.gateway(driver, &[("pitaya.gateway.inflight.connection", "1000")]);
        until_answered(&mut tcp(&gateway), "room.test.echo", b"x");
        let stop = Arc::new(AtomicBool::new(false));
        let answered = Arc::new(AtomicU64::new(0));
        let mut threads = Vec::new();
        for index in 0..CLIENTS {
            let client = if index % 2 == 0 { tcp(&gateway) } else { web_socket(&gateway) };
            threads.push(asking(client, index, stop.clone(), answered.clone()));
        }
        for index in 0..3 {
            let mut client = tcp(&gateway);
            let name = format!("{driver}-{index}");
            let bound =
                client.request("room.test.bind", format!(r#"{{"name":"{name}"}}"#).as_bytes());
            assert!(!bound.unwrap().is_error);
            let body = format!(r#"{{"name":"{name}","n":20,"size":64}}"#);
            threads.push(pushed(client, ("room.test.push", body), 20, stop.clone()));
            threads.push(sleeping(web_socket(&gateway), stop.clone()));
        }
        let mut moved = 0;
        for step in 0..MOVES {
            let before = answered.load(Ordering::Relaxed);
            moved += gateway.move_connections(step % 2, (step + 1) % 2);
            wait_until("traffic goes on after a move", || {
                answered.load(Ordering::Relaxed) >= before + CLIENTS as u64
            });
        }
        stop.store(true, Ordering::Relaxed);
        for thread in threads {
            assert!(thread.join().expect("a client failed") > 0);
        }
        assert!(moved >= CLIENTS, "{driver}: only {moved} connections moved");
        gateway.stop();
    }
    world.stop_worker(worker);
}

#[test]
fn a_user_is_found_after_a_move() {
    let world = World::new();
    let backend = world.backend("room-by-hand");
    for driver in DRIVERS {
        let gateway = world.gateway(driver, &[]);
        let mut client = tcp(&gateway);
        let id = client.send_request("room.test.any", b"x").unwrap();
        let call = backend.next();
        call.answer(b"x");
        client.read_response(id, SOON).unwrap();
        backend.caller.bind(call.session(), "ann");
        for step in 0..3 {
            gateway.move_connections(step % 2, (step + 1) % 2);
            backend.caller.push("ann", b"hello");
            assert_eq!(client.read_push(SOON).unwrap().payload, b"hello");
        }
        backend
            .caller
            .publish(&user_subject("ann", "kick"), &proto::KickMsg { user_id: "ann".into() });
        client.expect_kick(SOON).unwrap();
        gateway.stop();
    }
}

#[test]
fn a_server_that_the_nats_cluster_named_is_used_when_the_configured_one_dies() {
    let [first_routes, second_routes] =
        [free_address(), free_address()].map(|address| format!("nats://{address}"));
    let start = |routes: &str| {
        Nats::start(&["--cluster_name", "c", "--cluster", routes, "--routes", &first_routes])
    };
    let mut world = World::over(start(&first_routes));
    let second = start(&second_routes);
    let settings = [("pitaya.cluster.rpc.client.nats.requesttimeout", "500ms")];
    let gateway = world.gateway("uring", &settings);
    let backend = world.backend_at("room-by-hand", &second.url());
    std::thread::spawn(move || {
        while let Some(call) = backend.next_within(SOON) {
            call.answer(b"from the other server");
        }
    });
    let mut client = tcp(&gateway);
    until_answered(&mut client, "room.test.any", b"x");
    world.nats.kill();
    until_answered(&mut client, "room.test.any", b"x");
    gateway.stop();
}
