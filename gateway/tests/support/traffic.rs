//! Clients that keep a gateway busy and notice anything lost, doubled or out of order.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use client::raw::RawClient;
use shared::message::MessageType;

const SOON: Duration = Duration::from_secs(10);
/// Requests that a client keeps under way.
const IN_FLIGHT: usize = 4;

/// Sends numbered requests and expects each answer exactly once and in order, until it is told to stop.
pub(crate) fn asking(
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
pub(crate) fn pushed(
    mut client: RawClient,
    ask: (&'static str, impl Into<String>),
    count: u64,
    stop: Arc<AtomicBool>,
) -> JoinHandle<u64> {
    let body: String = ask.1.into();
    std::thread::spawn(move || {
        let mut pushes = 0;
        while !stop.load(Ordering::Relaxed) {
            let id = client.send_request(ask.0, body.as_bytes()).expect("the connection holds");
            for number in 0..count {
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
pub(crate) fn sleeping(mut client: RawClient, stop: Arc<AtomicBool>) -> JoinHandle<u64> {
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

pub(crate) fn wait_until(what: &str, mut is_done: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !is_done() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::yield_now();
    }
}
