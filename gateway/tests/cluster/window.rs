//! Order, and how much a server is given at once.

use std::time::Duration;

use gateway::gateway::Gateway;
use shared::message::MessageType;
use shared::metrics::LimitLabel;

use crate::backend::{Backend, Call};
use crate::world::{DRIVERS, SOON, World, http_get, tcp, until, until_answered, web_socket};

/// What a server that announces nothing is given at once: 25, rounded up for each of two reactors.
const WINDOW: usize = 26;
/// Long enough for everything that is on its way on one machine.
const PAUSE: Duration = Duration::from_millis(200);

#[test]
fn requests_of_one_client_arrive_and_are_answered_in_order() {
    let world = World::new();
    let backend = world.backend("room-1");
    for driver in DRIVERS {
        let gateway = world.gateway(driver, &[("pitaya.gateway.inflight.connection", "1000")]);
        for mut client in [tcp(&gateway), web_socket(&gateway)] {
            let ids: Vec<u64> = (0..200_u8)
                .map(|number| client.send_request("room.room.echo", &[number]).unwrap())
                .collect();
            for number in 0..200_u8 {
                let call = backend.next();
                assert_eq!(call.data(), [number].as_slice(), "{driver}");
                call.answer(&[number]);
            }
            for (number, id) in ids.into_iter().enumerate() {
                let answer = client.read_message(SOON).unwrap();
                assert_eq!((answer.id, answer.payload), (id, vec![number as u8]), "{driver}");
            }
        }
        gateway.stop();
    }
}

#[test]
fn a_worker_of_ours_answers_in_order_and_pushes_before_the_answer_arrive_before_it() {
    let world = World::new();
    let worker = world.worker("room-1");
    for driver in DRIVERS {
        let gateway = world.gateway(driver, &[("pitaya.gateway.inflight.connection", "1000")]);
        until_answered(&mut tcp(&gateway), "room.test.echo", b"x");
        let mut client = tcp(&gateway);
        let ids: Vec<u64> = (0..200_u8)
            .map(|number| client.send_request("room.test.echo", &[number]).unwrap())
            .collect();
        for (number, id) in ids.into_iter().enumerate() {
            let answer = client.read_message(SOON).unwrap();
            assert_eq!((answer.id, answer.payload), (id, vec![number as u8]), "{driver}");
        }
        let flood = br#"{"n":200,"size":100}"#;
        let id = client.send_request("room.test.flood", flood).unwrap();
        for number in 0..200_u64 {
            let push = client.read_message(SOON).unwrap();
            let is_push = push.kind == MessageType::Push;
            assert!(is_push, "{driver}: {} at {number}", push.text());
            assert_eq!(push.payload[..8], number.to_be_bytes(), "{driver}");
        }
        assert_eq!(client.read_message(SOON).unwrap().id, id, "{driver}");
        gateway.stop();
    }
    world.stop_worker(worker);
}

/// How often a limit was run into.
fn limited(gateway: &Gateway, limit: LimitLabel) -> u64 {
    let (_, page) = http_get(gateway.addresses().admin[0], "/metrics").unwrap();
    let label = format!(r#"limit="{}""#, limit.name());
    let series = page.lines().filter(|line| line.contains(&label));
    series.map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap()).sum()
}

/// Everything that the backend gets without answering.
fn gather(backend: &Backend) -> Vec<Call> {
    let mut calls: Vec<Call> = std::iter::once(backend.next()).collect();
    calls.extend(std::iter::from_fn(|| backend.next_within(PAUSE)));
    calls
}

#[test]
fn a_server_is_never_given_more_than_its_window() {
    let world = World::new();
    let backend = world.backend("room-1");
    for driver in DRIVERS {
        let gateway = world.gateway(driver, &[]);
        let mut clients: Vec<_> = (0..10).map(|_| tcp(&gateway)).collect();
        for client in &mut clients {
            for number in 0..30_u8 {
                client.send_request("room.room.echo", &[number]).unwrap();
            }
        }
        let first = gather(&backend);
        assert!(first.len() <= WINDOW, "{driver}: {} at once", first.len());
        let mut answered = 0;
        let mut waiting = std::collections::VecDeque::from(first);
        // One answer lets one more through, so there are never more in hand.
        while answered < 300 {
            let call = waiting.pop_front().unwrap_or_else(|| backend.next());
            call.answer(&call.data());
            answered += 1;
            while let Some(call) = backend.next_within(Duration::from_millis(2)) {
                waiting.push_back(call);
            }
            assert!(waiting.len() <= WINDOW, "{driver}: {} at once", waiting.len());
        }
        for mut client in clients {
            for number in 0..30_u8 {
                let answer = client.read_message(SOON).unwrap();
                assert_eq!(answer.payload, [number], "{driver}: {}", answer.text());
            }
        }
        gateway.stop();
    }
}

#[test]
fn requests_beyond_the_queue_are_refused_and_those_in_it_are_served() {
    let world = World::new();
    let backend = world.backend("room-1");
    for driver in DRIVERS {
        let settings = [
            ("pitaya.gateway.queue.maxrequests", "10"),
            ("pitaya.gateway.inflight.target", "4"),
            ("pitaya.gateway.threads", "1"),
        ];
        let gateway = world.gateway(driver, &settings);
        let mut client = tcp(&gateway);
        let ids: Vec<u64> =
            (0..50).map(|_| client.send_request("room.room.echo", b"").unwrap()).collect();
        for id in &ids[14..] {
            let answer = client.read_message(SOON).unwrap();
            assert_eq!(answer.id, *id, "{driver}");
            let text = r#"{"code":"PIT-503","msg":"too many requests in flight"}"#;
            assert_eq!(answer.text(), text, "{driver}");
        }
        until("each is counted", || (limited(&gateway, LimitLabel::Queue) == 36).then_some(()));
        for id in &ids[..14] {
            backend.next().answer(b"served");
            let answer = client.read_message(SOON).unwrap();
            assert_eq!((answer.id, answer.text().as_str()), (*id, "served"), "{driver}");
        }
        assert_eq!(limited(&gateway, LimitLabel::Queue), 36, "{driver}");
        gateway.stop();
    }
}

#[test]
fn waiting_requests_of_a_client_that_left_are_not_sent_and_hold_nobody_up() {
    let world = World::new();
    let backend = world.backend("room-1");
    for driver in DRIVERS {
        let settings = [("pitaya.gateway.inflight.target", "2"), ("pitaya.gateway.threads", "1")];
        let gateway = world.gateway(driver, &settings);
        let mut leaver = tcp(&gateway);
        for _ in 0..10 {
            leaver.send_request("room.room.echo", b"leaver").unwrap();
        }
        let [first, second] = [backend.next(), backend.next()];
        let mut stayer = tcp(&gateway);
        let id = stayer.send_request("room.room.echo", b"stayer").unwrap();
        drop(leaver);
        assert!(backend.next_within(PAUSE).is_none(), "{driver}: more than the window");
        first.answer(b"");
        second.answer(b"");
        let call = backend.next();
        assert_eq!(call.data(), b"stayer".as_slice(), "{driver}");
        call.answer(b"yes");
        assert_eq!(stayer.read_response(id, SOON).unwrap().payload, b"yes");
        gateway.stop();
    }
}
