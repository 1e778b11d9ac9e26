//! What becomes of requests when a server, or the gateway itself, goes away.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::Notify;
use worker::prelude::*;

use crate::world::{DRIVERS, SOON, World, error_of, tcp, until, until_answered};

/// A limit that no test waits for.
const LONG: (&str, &str) = ("pitaya.cluster.rpc.client.grpc.requesttimeout", "15s");

#[test]
fn requests_that_reach_nobody_go_to_another_server_or_end_at_once() {
    let world = World::new();
    // Nobody listens on the port of discarded messages here.
    let dead = world.announce("room", "dead", 9);
    for driver in DRIVERS {
        let gateway =
            world.gateway(driver, "gate-1", &[LONG, ("pitaya.routing", "room=round-robin")]);
        let mut client = tcp(&gateway);
        let begun = Instant::now();
        let error = until("the dead server is known", || {
            let error = error_of(&mut client, "room.desk.echo", b"");
            (!error.contains("no servers available")).then_some(error)
        });
        let expected = r#"{"code":"PIT-000","msg":"grpc: the server cannot be reached"}"#;
        assert_eq!(error, expected, "{driver}");
        assert!(begun.elapsed() < Duration::from_secs(10));

        let echo = App::new("room").on("desk.echo", async |body: Bytes| Ok::<_, Error>(body));
        let room = world.worker("r1", echo);
        until_answered(&mut client, "room.desk.echo", b"");
        for _ in 0..20 {
            let answer = client.request("room.desk.echo", b"a").unwrap();
            assert!(!answer.is_error, "{driver}: {}", answer.text());
        }
        world.stop_worker(room);
        gateway.stop();
    }
    world.withdraw(dead);
}

#[test]
fn requests_in_the_hands_of_a_server_that_dies_or_is_silent_end_with_a_code() {
    let world = World::new();
    for driver in DRIVERS {
        // Takes a request and dies of it.
        let mortal = TcpListener::bind("127.0.0.1:0").unwrap();
        let record = world.announce("room", "r1", mortal.local_addr().unwrap().port());
        let dying = thread::spawn(move || {
            let (mut socket, _) = mortal.accept().unwrap();
            let mut bytes = [0; 4096];
            let mut read = Vec::new();
            // The route stands in the message as it is.
            while !read.windows(9).any(|window| window == b"desk.echo") {
                let count = socket.read(&mut bytes).unwrap();
                read.extend_from_slice(&bytes[..count]);
                if read.len() < 4096 && read.starts_with(b"PRI") {
                    greet(&mut socket);
                }
            }
        });
        let gateway = world.gateway(driver, "gate-1", &[LONG]);
        let mut client = tcp(&gateway);
        let error = until("the server is known", || {
            let error = error_of(&mut client, "room.desk.echo", b"");
            (!error.contains("no servers available")).then_some(error)
        });
        assert!(error.contains("PIT-000"), "{driver}: {error}");
        dying.join().unwrap();
        world.withdraw(record);
        gateway.stop();

        // Takes connections and says nothing.
        let silent = TcpListener::bind("127.0.0.1:0").unwrap();
        let record = world.announce("room", "r2", silent.local_addr().unwrap().port());
        let short = ("pitaya.cluster.rpc.client.grpc.requesttimeout", "300ms");
        let gateway = world.gateway(driver, "gate-1", &[short]);
        let mut client = tcp(&gateway);
        let error = until("the server is known", || {
            let error = error_of(&mut client, "room.desk.echo", b"");
            (!error.contains("no servers available")).then_some(error)
        });
        assert!(error.contains("PIT-408") && error.contains("300ms"), "{driver}: {error}");
        world.withdraw(record);
        gateway.stop();
    }
}

/// The settings with which an HTTP/2 server begins: none of its own.
fn greet(socket: &mut TcpStream) {
    socket.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).unwrap();
}

#[test]
fn a_gateway_that_stops_finishes_what_runs_and_leaves_nothing() {
    let world = World::new();
    let observer = world.announce("observer", "o1", 9);
    let (release, begun) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (released, beginning) = (Arc::clone(&release), Arc::clone(&begun));
    let app = App::new("room").on("desk.echo", async |body: Bytes| Ok::<_, Error>(body)).on(
        "desk.slow",
        move || {
            let (released, beginning) = (Arc::clone(&released), Arc::clone(&beginning));
            async move {
                beginning.notify_one();
                released.notified().await;
                Ok::<_, Error>(1)
            }
        },
    );
    let room = world.worker("r1", app);
    for driver in DRIVERS {
        let gateway = world.gateway(driver, "gate-1", &[]);
        let port = world.grpc_port(&observer, "gate-1");
        let mut client = tcp(&gateway);
        until_answered(&mut client, "room.desk.echo", b"");
        let id = client.send_request("room.desk.slow", b"").unwrap();
        world.soon(begun.notified());
        let stopping = thread::spawn(move || gateway.stop());
        until("it leaves", || observer.tables().borrow().by_id("gate-1").is_none().then_some(()));
        release.notify_one();
        let answer = client.read_response(id, SOON).unwrap();
        assert_eq!((answer.is_error, answer.text().as_str()), (false, "1"), "{driver}");
        client.expect_close(SOON).unwrap();
        stopping.join().unwrap();
        assert!(TcpStream::connect(("127.0.0.1", port)).is_err(), "{driver}");
    }
    world.stop_worker(room);
    world.withdraw(observer);
}
