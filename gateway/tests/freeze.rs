//! Moving all connections of one reactor to another while they are in use: nothing is lost, doubled or reordered.

#[path = "support/local.rs"]
mod local;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use client::raw::RawClient;
use gateway::gateway::Gateway;
use local::{DRIVERS, start, tcp, ws};
use shared::message::MessageType;

const SOON: Duration = Duration::from_secs(10);
const CLIENTS: usize = 24;
/// Requests that a client keeps under way.
const IN_FLIGHT: usize = 4;
const MOVES: usize = 12;

/// Sends numbered requests and expects each answer exactly once and in order, until it is told to stop.
fn asking(
    mut client: RawClient,
    index: usize,
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicU64>,
) -> JoinHandle<u64> {
    std::thread::spawn(move || {
        let mut sent = 0u64;
        let mut received = 0u64;
        while !stop.load(Ordering::Relaxed) || received < sent {
            while sent < received + IN_FLIGHT as u64 && !stop.load(Ordering::Relaxed) {
                // Now and then a request in two pieces, so that some connections move inside a packet.
                let payload =
                    [&sent.to_be_bytes()[..], &vec![index as u8; (sent as usize * 37) % 600]]
                        .concat();
                client.send_request("room.test.echo", &payload).expect("the connection holds");
                sent += 1;
            }
            let answer = client.read_message(SOON).expect("an answer");
            assert!(!answer.is_error, "client {index}: {}", answer.text());
            assert_eq!(answer.kind, MessageType::Response, "client {index}");
            assert_eq!(
                answer.payload[..8],
                received.to_be_bytes(),
                "client {index}: lost, doubled or reordered"
            );
            received += 1;
            answered.fetch_add(1, Ordering::Relaxed);
        }
        received
    })
}

/// Has itself pushed numbered messages, round after round, and expects each exactly once and in order.
fn pushed(mut client: RawClient, stop: Arc<AtomicBool>) -> JoinHandle<u64> {
    std::thread::spawn(move || {
        let mut pushes = 0;
        while !stop.load(Ordering::Relaxed) {
            let id = client
                .send_request("room.test.flood", br#"{"n":50,"size":64}"#)
                .expect("the connection holds");
            for number in 0..50u64 {
                let push = client.read_message(SOON).expect("a push");
                assert_eq!(
                    (push.kind, push.payload[..8].to_vec()),
                    (MessageType::Push, number.to_be_bytes().to_vec())
                );
                pushes += 1;
            }
            assert_eq!(client.read_message(SOON).expect("the answer").id, id);
        }
        pushes
    })
}

/// Requests that are on their way for longer than a move takes.
fn sleeping(mut client: RawClient, stop: Arc<AtomicBool>) -> JoinHandle<u64> {
    std::thread::spawn(move || {
        let mut answers = 0;
        while !stop.load(Ordering::Relaxed) {
            let answer = client.request("room.test.sleep", br#"{"ms":50}"#).expect("an answer");
            assert!(!answer.is_error, "{}", answer.text());
            answers += 1;
        }
        answers
    })
}

fn connect(gateway: &Gateway, index: usize) -> RawClient {
    let mut client = match index % 2 {
        0 => RawClient::connect_tcp(tcp(gateway)).unwrap(),
        _ => RawClient::connect_ws(ws(gateway), "/").unwrap(),
    };
    client.establish().unwrap();
    client
}

fn wait_until(what: &str, mut is_done: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !is_done() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::yield_now();
    }
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
            threads.push(pushed(connect(&gateway, index), stop.clone()));
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
