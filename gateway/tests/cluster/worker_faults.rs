//! Faults of one of two servers: it dies with requests in hand, stands still, or answers garbage.

use std::time::{Duration, Instant};

use client::raw::RawClient;

use crate::watching::counter;
use crate::world::{DRIVERS, SOON, World, tcp, until};

#[test]
fn a_backend_that_dies_costs_what_it_had_in_hand_and_nothing_else() {
    for driver in DRIVERS {
        let world = World::new();
        let dying = world.backend("room-1");
        let gateway =
            world.gateway(driver, &[("pitaya.cluster.rpc.client.nats.requesttimeout", "1s")]);
        let mut client = tcp(&gateway);
        let in_hand: Vec<u64> =
            (0..5).map(|_| client.send_request("room.room.slow", b"").unwrap()).collect();
        for _ in &in_hand {
            dying.next();
        }
        let living = world.backend("room-2").echo();
        // Its connection to NATS ends; its entry in etcd stays, as after a crash.
        dying.die();
        let begun = Instant::now();
        // What it had in hand fails in order, with a code, at the time-out: nobody knows what became of it.
        let codes: Vec<String> =
            in_hand.iter().map(|id| client.read_response(*id, SOON).unwrap().text()).collect();
        assert!(codes.iter().all(|text| text.contains("PIT-408")), "{driver}: {codes:?}");
        assert!(begun.elapsed() < Duration::from_secs(5), "{driver}: {:?}", begun.elapsed());
        until("the newcomer is known", || {
            (!client.request("room.room.echo", b"x").unwrap().is_error).then_some(())
        });
        // From here on nothing fails: a request that meets nobody goes to the other one.
        for number in 0..200_u8 {
            let answer = client.request("room.room.echo", &[number]).unwrap();
            assert!(!answer.is_error, "{driver}: {}", answer.text());
            assert_eq!(answer.payload, [number], "{driver}");
        }
        assert_eq!(counter(&gateway, "pitaya_acceptor_closed_total"), 0, "{driver}");
        gateway.stop();
        world.withdraw(living.discovery);
    }
}

/// The time-out is far longer than anything may take here.
#[test]
fn what_a_dead_worker_had_in_hand_fails_long_before_its_time_out() {
    for driver in DRIVERS {
        let world = World::new();
        let dying = world.batching_backend("room-1");
        let settings = [
            ("pitaya.cluster.rpc.client.nats.requesttimeout", "60s"),
            ("pitaya.gateway.threads", "1"),
        ];
        let gateway = world.gateway(driver, &settings);
        let mut clients = [tcp(&gateway), tcp(&gateway)];
        let ids = clients.each_mut().map(|client| {
            let id = client.send_request("room.room.slow", b"").unwrap();
            dying.next();
            id
        });
        dying.die();
        for (client, id) in clients.iter_mut().zip(ids) {
            let answer = client.read_response(id, SOON).unwrap();
            let text = answer.text();
            assert!(answer.is_error && text.contains("PIT-500"), "{driver}: {text}");
            assert!(text.contains("the server has gone") && text.contains("room-1"), "{text}");
        }
        assert_eq!(counter(&gateway, "pitaya_acceptor_closed_total"), 0, "{driver}");
        until("nothing is under way", || {
            (counter(&gateway, "pitaya_handler_requests_in_flight") == 0).then_some(())
        });
        gateway.stop();
    }
}

#[test]
fn a_worker_that_leaves_in_good_order_has_its_time_for_what_it_has_in_hand() {
    for driver in DRIVERS {
        let world = World::new();
        let worker = world.worker("room-1");
        let gateway = world.gateway(driver, &[("pitaya.gateway.threads", "1")]);
        let [mut patient, mut other] = [tcp(&gateway), tcp(&gateway)];
        let is_served =
            |client: &mut RawClient| !client.request("room.test.echo", b"x").unwrap().is_error;
        until("the worker is known", || is_served(&mut other).then_some(()));
        let id = patient.send_request("room.test.sleep", br#"{"ms":2500}"#).unwrap();
        // Behind it on the same way, so that the worker has both.
        assert!(is_served(&mut other), "{driver}");
        // It listens no more from here on, and answers after several probes would have been due.
        world.stop_worker(worker);
        let answer = patient.read_response(id, SOON).unwrap();
        assert!(!answer.is_error, "{driver}: {}", answer.text());
        gateway.stop();
    }
}

#[test]
fn a_backend_that_stands_still_slows_down_no_more_than_its_window() {
    let world = World::new();
    let frozen = world.backend("room-1");
    let living = world.backend("room-2").echo();
    for driver in DRIVERS {
        let settings = [
            ("pitaya.gateway.inflight.target", "8"),
            ("pitaya.cluster.rpc.client.nats.requesttimeout", "2s"),
            ("pitaya.gateway.threads", "1"),
        ];
        let gateway = world.gateway(driver, &settings);
        let mut client = tcp(&gateway);
        until("both are known", || {
            let id = client.send_request("room.room.find", b"").unwrap();
            let call = frozen.call_unless_answered(&mut client, id)?;
            drop(call);
            Some(client.read_response(id, SOON).unwrap())
        });
        let begun = Instant::now();
        let mut slow = 0;
        let mut served = 0;
        while begun.elapsed() < Duration::from_millis(1_500) {
            let id = client.send_request("room.room.echo", b"x").unwrap();
            // One after the other would meet the frozen one at most once in a time-out.
            match client.read_response(id, Duration::from_millis(300)) {
                Ok(answer) => served += usize::from(!answer.is_error),
                Err(_) => {
                    slow += 1;
                    client = tcp(&gateway);
                }
            }
        }
        println!("{driver}: {served} served, {slow} met the frozen one");
        // It is drawn no more once it has its hands full, long before that because it has more in hand than the other.
        assert!(slow <= 8, "{driver}: {slow} of {served}");
        assert!(served > 50, "{driver}: {served} served, {slow} slow");
        gateway.stop();
        while frozen.next_within(Duration::ZERO).is_some() {}
    }
    world.withdraw(living.discovery);
    frozen.leave(&world);
}

#[test]
fn garbage_from_a_backend_is_an_error_to_whoever_asked_and_to_nobody_else() {
    let world = World::new();
    let backend = world.backend("room-1");
    for driver in DRIVERS {
        let gateway = world.gateway(driver, &[]);
        let mut client = tcp(&gateway);
        let mut other = tcp(&gateway);
        for garbage in [&b"\xff\xff\xff\xff"[..], b"\x0a\x7f", b"\x12\x02\xff\xff", &[0x0a; 301]] {
            let id = client.send_request("room.room.echo", b"x").unwrap();
            backend.next().answer_bytes(garbage);
            let answer = client.read_response(id, SOON).unwrap();
            assert!(answer.is_error && answer.text().contains("PIT-500"), "{}", answer.text());
            let id = other.send_request("room.room.echo", b"y").unwrap();
            backend.next().answer(b"fine");
            assert_eq!(other.read_response(id, SOON).unwrap().payload, b"fine", "{driver}");
        }
        // Garbage for the gateway itself: to its own subject, to its announcements, to users' subjects.
        let session = backend.session_id(&mut client);
        backend.caller.bind(session, "ann");
        let subjects = [
            "pitaya/servers/connector/gate-1",
            "pitaya/connector/bindings",
            "pitaya/connector/user/ann/push",
            "pitaya/connector/user/ann/kick",
        ];
        for subject in subjects {
            for garbage in [&b""[..], b"\xff\xff\xff\xff", b"\x0a\x7f", &[0x0a; 300]] {
                let message = (subject.to_owned(), None, garbage.to_vec());
                backend.caller.publish_all([message]);
            }
        }
        backend.caller.push("ann", b"after the garbage");
        assert_eq!(client.read_push(SOON).unwrap().payload, b"after the garbage", "{driver}");
        assert_eq!(counter(&gateway, "pitaya_acceptor_closed_total"), 0, "{driver}");
        gateway.stop();
    }
    backend.leave(&world);
}
