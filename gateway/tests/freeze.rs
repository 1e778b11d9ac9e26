//! Moving all connections of one reactor to another while they are in use: nothing is lost, doubled or reordered.
#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

#[path = "support/local.rs"]
mod local;
#[path = "support/traffic.rs"]
mod traffic;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use client::raw::RawClient;
use gateway::gateway::Gateway;
use local::{DRIVERS, start, tcp, ws};
use traffic::{asking, pushed, sleeping, wait_until};

const SOON: Duration = Duration::from_secs(10);
const CLIENTS: usize = 24;
const MOVES: usize = 12;
/// Asks for 50 numbered pushes.
const FLOOD: (&str, &str) = ("room.test.flood", r#"{"n":50,"size":64}"#);

fn connect(gateway: &Gateway, index: usize) -> RawClient {
    let mut client = match index % 2 {
        0 => RawClient::connect_tcp(tcp(gateway)).unwrap(),
        _ => RawClient::connect_ws(ws(gateway), "/").unwrap(),
    };
    client.establish().unwrap();
    client
}

#[test]
fn all_connections_move_between_reactors_under_load_and_nobody_notices() {
    for driver in DRIVERS {
        let gateway = start(driver, &[("pitaya.gateway.inflight.connection", "1000")]);
        let stop = Arc::new(AtomicBool::new(false));
        let answered = Arc::new(AtomicU64::new(0));
        let mut threads = Vec::new();
        for index in 0..CLIENTS {
            threads.push(asking(connect(&gateway, index), index, stop.clone(), answered.clone()));
        }
        for index in 0..4 {
            threads.push(pushed(connect(&gateway, index), FLOOD, 50, stop.clone()));
            threads.push(sleeping(connect(&gateway, index), stop.clone()));
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
        let counts: Vec<u64> =
            threads.into_iter().map(|thread| thread.join().expect("a client failed")).collect();
        assert!(counts.iter().all(|count| *count > 0), "{driver}: {counts:?}");
        assert!(moved >= CLIENTS, "{driver}: only {moved} connections moved");
        gateway.stop();
    }
}

#[test]
fn what_a_session_has_moves_with_it() {
    for driver in DRIVERS {
        let gateway = start(driver, &[]);
        let mut clients: Vec<RawClient> = (0..6).map(|index| connect(&gateway, index)).collect();
        for (index, client) in clients.iter_mut().enumerate() {
            client
                .request("room.test.bind", format!(r#"{{"name":"user-{index}"}}"#).as_bytes())
                .unwrap();
            client
                .request("room.test.data", format!(r#"{{"number":{index}}}"#).as_bytes())
                .unwrap();
        }
        for step in 0..4 {
            gateway.move_connections(step % 2, (step + 1) % 2);
            for (index, client) in clients.iter_mut().enumerate() {
                let data = client.request("room.test.read", b"").unwrap();
                assert_eq!(data.text(), format!(r#"{{"number":{index}}}"#));
                let again = client.request("room.test.bind", br#"{"name":"other"}"#).unwrap();
                assert!(again.text().contains("already bound"), "{}", again.text());
                let id = client.send_request("room.test.flood", br#"{"n":3,"size":8}"#).unwrap();
                for _ in 0..3 {
                    client.read_push(SOON).unwrap();
                }
                client.read_response(id, SOON).unwrap();
            }
        }
        // A login elsewhere still finds the moved session.
        let mut newcomer = connect(&gateway, 0);
        newcomer.request("room.test.bind", br#"{"name":"user-3"}"#).unwrap();
        clients[3].expect_kick(SOON).unwrap();
        gateway.stop();
    }
}

#[test]
fn half_a_packet_and_an_unfinished_handshake_survive_a_move() {
    for driver in DRIVERS {
        let gateway = start(driver, &[]);
        let mut halves: Vec<RawClient> = (0..4)
            .map(|_| {
                let mut client = RawClient::connect_tcp(tcp(&gateway)).unwrap();
                client.establish().unwrap();
                client.send_bytes(b"\x04\x00\x00\x13\x00\x01\x0eroom.te").unwrap();
                client
            })
            .collect();
        let mut greeters: Vec<RawClient> = (0..4)
            .map(|_| {
                let mut client = RawClient::connect_tcp(tcp(&gateway)).unwrap();
                client.handshake().unwrap();
                client
            })
            .collect();
        gateway.move_connections(0, 1);
        gateway.move_connections(1, 0);
        for client in &mut halves {
            client.send_bytes(b"st.echohi").unwrap();
            let answer = client.read_response(1, SOON).unwrap();
            assert_eq!(answer.payload, b"hi");
        }
        for client in &mut greeters {
            client.ack().unwrap();
            assert_eq!(client.request("room.test.echo", b"late").unwrap().payload, b"late");
        }
        gateway.stop();
    }
}
