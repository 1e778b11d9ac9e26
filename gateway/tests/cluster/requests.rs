//! Requests and notifies through NATS and back: bytes, codes, time-outs, servers that are not there.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use client::raw::RawClient;
use gateway::gateway::Gateway;
use proto::Message;

use crate::backend::Call;
use crate::servers::Nats;
use crate::world::{DRIVERS, GATE, SOON, World, error_of, tcp, until_answered, web_socket};

fn clients(gateway: &Gateway) -> [RawClient; 2] {
    [tcp(gateway), web_socket(gateway)]
}

#[test]
fn requests_reach_a_worker_and_errors_have_pitayas_codes() {
    let world = World::new();
    let worker = world.worker("room-1");
    for driver in DRIVERS {
        let gateway = world.gateway(driver, &[]);
        until_answered(&mut tcp(&gateway), "room.test.echo", b"x");
        for mut client in clients(&gateway) {
            let answer = client.request("room.test.echo", b"hello").unwrap();
            assert_eq!((answer.payload.as_slice(), answer.is_error), (&b"hello"[..], false));
            let large = vec![7; 60_000];
            assert_eq!(client.request("room.test.echo", &large).unwrap().payload, large);
            client.notify("room.test.echo", b"nobody answers").unwrap();
            let cases = [
                (
                    "nobody.test.echo",
                    r#"{"code":"PIT-500","msg":"no servers available of this type"}"#,
                ),
                (
                    "test.echo",
                    r#"{"code":"PIT-404","msg":"pitaya/handler: connector.test.echo not found"}"#,
                ),
                (
                    "connector.a.b",
                    r#"{"code":"PIT-404","msg":"pitaya/handler: connector.a.b not found"}"#,
                ),
                (
                    "sys.kick",
                    r#"{"code":"PIT-404","msg":"pitaya/handler: connector.sys.kick not found"}"#,
                ),
                (
                    "room.sys.kick",
                    r#"{"code":"PIT-404","msg":"pitaya/handler: room.sys.kick not found"}"#,
                ),
                (
                    "room.test.no",
                    r#"{"code":"PIT-404","msg":"pitaya/handler: room.test.no not found"}"#,
                ),
                ("a", r#"{"code":"PIT-400","msg":"invalid route"}"#),
                ("room..b", r#"{"code":"PIT-400","msg":"route field can not be empty"}"#),
            ];
            for (route, text) in cases {
                assert_eq!(error_of(&mut client, route, b"{}"), text, "{driver} {route}");
            }
            let asked = br#"{"code":"GAME-1","msg":"a < b"}"#;
            let text = error_of(&mut client, "room.test.fail", asked);
            assert_eq!(text, r#"{"code":"GAME-1","msg":"a \u003c b"}"#, "{driver}");
        }
        gateway.stop();
    }
    world.stop_worker(worker);
}

#[test]
fn a_request_is_forwarded_as_go_forwards_it() {
    let world = World::new();
    let backend = world.backend("room-1");
    for driver in DRIVERS {
        let gateway = world.gateway(driver, &[]);
        for mut client in clients(&gateway) {
            let id = client.send_request("room.room.echo", b"\0 any \xff").unwrap();
            let call = backend.next();
            let request = call.request();
            assert_eq!(
                request.encode_to_vec(),
                call.payload,
                "{driver}: encoded as a Go server would"
            );
            let session = request.session.unwrap();
            assert_eq!(
                (session.uid.as_str(), &session.data[..]),
                ("", &br#"{"ipversion":"ipv4"}"#[..])
            );
            let message = proto::Msg {
                id,
                route: "room.room.echo".into(),
                data: b"\0 any \xff".as_slice().into(),
                ..proto::Msg::default()
            };
            assert_eq!(
                (request.r#type, request.msg, request.frontend_id.as_str()),
                (0, Some(message), GATE)
            );
            check_metadata(&request.metadata);
            assert!(call.reply.as_ref().unwrap().starts_with("_INBOX."));
            call.answer(b"\0 as it is \xff");
            assert_eq!(client.read_response(id, SOON).unwrap().payload, b"\0 as it is \xff");
        }
        gateway.stop();
    }
}

#[test]
fn errors_of_a_backend_reach_the_client_as_go_writes_them() {
    let world = World::new();
    let backend = world.backend("room-1");
    let error = |code: &str, msg: &str, metadata: &[(&str, &str)]| {
        let text = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
        let metadata = metadata.iter().map(text).collect();
        let error = proto::Error { code: code.into(), msg: msg.into(), metadata };
        let response = proto::Response { data: b"not this".as_slice().into(), error: Some(error) };
        response.encode_to_vec()
    };
    let cases = [
        (error("GAME-7", "no", &[]), r#"{"code":"GAME-7","msg":"no"}"#),
        (
            error("GAME-7", "no", &[("b", "<2>"), ("a", "1")]),
            r#"{"code":"GAME-7","msg":"no","metadata":{"a":"1","b":"\u003c2\u003e"}}"#,
        ),
        (error("", "no code", &[]), r#"{"code":"PIT-000","msg":"no code"}"#),
        // An empty text is sent as the code.
        (error("", "", &[]), r#"{"code":"PIT-000","msg":"PIT-000"}"#),
    ];
    for driver in DRIVERS {
        let gateway = world.gateway(driver, &[]);
        for mut client in clients(&gateway) {
            for (response, text) in &cases {
                let id = client.send_request("room.room.fail", b"").unwrap();
                backend.next().answer_bytes(response);
                let answer = client.read_response(id, SOON).unwrap();
                assert_eq!((answer.is_error, answer.text().as_str()), (true, *text), "{driver}");
            }
            // Nothing at all is success without data; what cannot be read is an error of ours.
            let id = client.send_request("room.room.nothing", b"").unwrap();
            backend.next().answer_bytes(b"");
            let answer = client.read_response(id, SOON).unwrap();
            assert_eq!((answer.is_error, answer.payload.len()), (false, 0), "{driver}");
            let id = client.send_request("room.room.broken", b"").unwrap();
            backend.next().answer_bytes(b"\xff\xff");
            assert!(client.read_response(id, SOON).unwrap().text().contains("PIT-500"), "{driver}");
        }
        gateway.stop();
    }
}

/// Go's keys in Go's order, with nothing else.
fn check_metadata(metadata: &[u8]) {
    let text = std::str::from_utf8(metadata).unwrap();
    let head = r#"{"peer.id":"gate-1","peer.service":"connector","req-route":"room.room.echo","req-start-time":"#;
    let rest = text.strip_prefix(head).unwrap_or_else(|| panic!("{text}"));
    let (start_ns, rest) = rest.split_once(',').unwrap();
    let age_ns = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos()
        - start_ns.parse::<u128>().unwrap();
    assert!(age_ns < SOON.as_nanos(), "{text}");
    let id = rest
        .strip_prefix(r#""reqTimeout":"5s","request.id":""#)
        .and_then(|rest| rest.strip_suffix("\"}"));
    assert!(id.is_some_and(|id| id.len() > 8 && !id.contains('"')), "{text}");
}

#[test]
fn a_notify_leaves_no_state_and_its_acknowledgement_goes_nowhere() {
    let world = World::new();
    let backend = world.backend("room-1");
    for driver in DRIVERS {
        let gateway = world.gateway(driver, &[]);
        let mut client = tcp(&gateway);
        // More than a window: notifies do not count, because nothing tells when one is done.
        for _ in 0..60 {
            client.notify("room.room.note", b"n").unwrap();
        }
        for _ in 0..60 {
            let call = backend.next();
            let message = call.request().msg.unwrap();
            assert_eq!((message.id, message.r#type()), (0, proto::MsgType::Notify), "{driver}");
            assert!(!call.reply.as_ref().unwrap().starts_with("_INBOX."), "{driver}");
            call.answer(b"ack");
        }
        let id = client.send_request("room.room.echo", b"").unwrap();
        backend.next().answer(b"mine");
        assert_eq!(
            client.read_message(SOON).unwrap().id,
            id,
            "{driver}: nothing came of the notifies"
        );
        client.notify("nobody.room.note", b"n").unwrap();
        client.notify("sys.kick", b"n").unwrap();
        client.expect_silence(Duration::from_millis(50)).unwrap();
        gateway.stop();
    }
}

#[test]
fn a_timeout_is_told_as_pitaya_tells_it_and_late_or_second_answers_reach_nobody() {
    let world = World::new();
    let backend = world.backend("room-1");
    for driver in DRIVERS {
        let timeout = ("pitaya.cluster.rpc.client.nats.requesttimeout", "300ms");
        let gateway = world.gateway(driver, &[timeout]);
        let mut client = tcp(&gateway);
        let text = error_of(&mut client, "room.room.slow", b"");
        let expected = concat!(
            r#"{"code":"PIT-408","msg":"rpc client: request timeout","metadata":{"peer.id":"room-1","#,
            r#""route":"room.room.slow","server":"gate-1","timeout":"300ms"}}"#
        );
        assert_eq!(text, expected, "{driver}");
        let late = backend.next();
        // As many rounds as the bits that keep the uses of a slot apart have values, and more.
        for round in 0..20_u8 {
            let id = client.send_request("room.room.echo", &[round]).unwrap();
            let call = backend.next();
            late.answer(b"late");
            call.answer(&[round]);
            call.answer(b"twice");
            let answer = client.read_response(id, SOON).unwrap();
            assert_eq!(answer.payload, [round], "{driver}");
        }
        client.expect_silence(Duration::from_millis(50)).unwrap();
        gateway.stop();
    }
}

#[test]
fn second_answers_that_come_many_requests_later_reach_nobody() {
    let world = World::new();
    let backend = world.backend("room-1");
    for driver in DRIVERS {
        let gateway = world.gateway(driver, &[]);
        let mut client = tcp(&gateway);
        let mut answered: Vec<Call> = Vec::new();
        for round in 0..60_u8 {
            let id = client.send_request("room.room.echo", &[round]).unwrap();
            let call = backend.next();
            backend.caller.publish_all(answered.iter().map(Call::stale_answer));
            call.answer(&[round]);
            let answer = client.read_response(id, SOON).unwrap();
            assert_eq!(answer.payload, [round], "{driver}: an answer to an earlier request");
            answered.push(call);
        }
        gateway.stop();
    }
}

#[test]
fn a_server_that_does_not_listen_fails_at_once_or_is_left_out_for_one_that_does() {
    let world = World::new();
    let dead = world.announce("room", "room-dead");
    for driver in DRIVERS {
        let gateway = world.gateway(driver, &[]);
        let begun = Instant::now();
        let text = error_of(&mut tcp(&gateway), "room.room.echo", b"");
        assert_eq!(text, r#"{"code":"PIT-000","msg":"nats: no responders available for request"}"#);
        assert!(begun.elapsed() < Duration::from_secs(4), "{driver}: it waited for the time-out");
        gateway.stop();
    }
    let live = world.backend("room-live").echo();
    for driver in DRIVERS {
        let gateway = world.gateway(driver, &[]);
        for mut client in clients(&gateway) {
            let ids: Vec<u64> =
                (0..20).map(|_| client.send_request("room.room.echo", b"x").unwrap()).collect();
            let mut answered = Vec::new();
            for _ in &ids {
                let answer = client.read_message(SOON).unwrap();
                assert!(!answer.is_error, "{driver}: {}", answer.text());
                answered.push(answer.id);
            }
            answered.sort_unstable();
            assert_eq!(answered, ids, "{driver}");
        }
        gateway.stop();
    }
    world.withdraw(dead);
    world.withdraw(live.discovery);
}

#[test]
fn a_payload_that_nats_would_refuse_is_refused_here() {
    let world = World::over(Nats::start_configured("max_payload: 10000"));
    let backend = world.backend("room-1").echo();
    for driver in DRIVERS {
        let gateway = world.gateway(driver, &[]);
        let mut client = tcp(&gateway);
        let text = error_of(&mut client, "room.room.echo", &[b'x'; 10_000]);
        assert_eq!(
            text, r#"{"code":"PIT-000","msg":"nats: maximum payload exceeded"}"#,
            "{driver}"
        );
        client.notify("room.room.echo", &[b'x'; 10_000]).unwrap();
        assert_eq!(client.request("room.room.echo", &[b'x'; 9_000]).unwrap().payload.len(), 9_000);
        gateway.stop();
    }
    world.withdraw(backend.discovery);
}
