//! The gateway's behaviour towards clients, standalone, on both drivers and over both transports.

#[path = "support/local.rs"]
mod local;

use std::time::Duration;

use client::raw::{Closed, RawClient, head};
use gateway::gateway::Gateway;
use local::{DRIVERS, start, tcp, ws};
use shared::message::MessageType;
use shared::packet::PacketType;

const SOON: Duration = Duration::from_secs(5);

fn clients(gateway: &Gateway) -> [RawClient; 2] {
    [
        RawClient::connect_tcp(tcp(gateway)).unwrap(),
        RawClient::connect_ws(ws(gateway), "/").unwrap(),
    ]
}

/// Runs a test for both drivers and both transports.
fn on_all(settings: &[(&str, &str)], test: impl Fn(&Gateway, RawClient)) {
    for driver in DRIVERS {
        let gateway = start(driver, settings);
        test(&gateway, RawClient::connect_tcp(tcp(&gateway)).unwrap());
        test(&gateway, RawClient::connect_ws(ws(&gateway), "/").unwrap());
        gateway.stop();
    }
}

#[test]
fn a_request_is_answered_with_its_id() {
    on_all(&[], |_, mut client| {
        let response = client.establish().unwrap();
        assert_eq!((response.code, response.heartbeat_s), (200, 30));
        let answer = client.request("room.test.echo", b"hello").unwrap();
        assert_eq!(answer.payload, b"hello");
        let answer = client.request("test.echo", b"own type").unwrap();
        assert_eq!(answer.payload, b"own type");
    });
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    on_all(&[], |_, mut client| {
        client.establish().unwrap();
        let ids: Vec<u64> = (0..50u8)
            .map(|number| client.send_request("room.test.echo", &[number]).unwrap())
            .collect();
        for (number, id) in ids.into_iter().enumerate() {
            let message = client.read_message(SOON).unwrap();
            assert_eq!((message.id, message.payload), (id, vec![number as u8]));
        }
    });
}

#[test]
fn errors_have_pitayas_codes() {
    on_all(&[], |_, mut client| {
        client.establish().unwrap();
        let cases: [(&str, &str); 8] = [
            ("a", r#"{"code":"PIT-400","msg":"invalid route"}"#),
            ("a..b", r#"{"code":"PIT-400","msg":"route field can not be empty"}"#),
            (
                "room.test.nothing",
                r#"{"code":"PIT-404","msg":"pitaya/handler: room.test.nothing not found"}"#,
            ),
            (
                "other.test.echo",
                r#"{"code":"PIT-404","msg":"pitaya/handler: other.test.echo not found"}"#,
            ),
            (
                "sys.kick",
                r#"{"code":"PIT-404","msg":"pitaya/handler: connector.sys.kick not found"}"#,
            ),
            (
                "room.sys.bindsession",
                r#"{"code":"PIT-404","msg":"pitaya/handler: room.sys.bindsession not found"}"#,
            ),
            ("room.test.fail", r#"{"code":"GAME-1","msg":"as asked"}"#),
            ("room.test.notify", r#"{"code":"PIT-400","msg":"tried to request a notify route"}"#),
        ];
        for (route, body) in cases {
            let answer = client.request(route, b"{}").unwrap();
            assert!(answer.is_error, "{route}");
            assert_eq!(answer.text(), body, "{route}");
        }
    });
}

#[test]
fn a_push_before_the_answer_arrives_before_it() {
    on_all(&[], |_, mut client| {
        client.establish().unwrap();
        let id = client.send_request("room.test.flood", br#"{"n":100,"size":200}"#).unwrap();
        for number in 0..100u64 {
            let push = client.read_message(SOON).unwrap();
            assert_eq!((push.kind, push.route.as_str()), (MessageType::Push, "onFlood"));
            assert_eq!(push.payload[..8], number.to_be_bytes());
            assert!(push.is_compressed, "200 equal bytes are worth deflating");
        }
        assert_eq!(client.read_message(SOON).unwrap().id, id);
    });
}

#[test]
fn session_data_travels_with_the_next_request() {
    on_all(&[], |_, mut client| {
        client.establish().unwrap();
        client.request("room.test.data", br#"{"level":7}"#).unwrap();
        assert_eq!(client.request("room.test.read", b"").unwrap().text(), r#"{"level":7}"#);
    });
}

#[test]
fn a_second_login_replaces_the_first_with_a_kick() {
    for driver in DRIVERS {
        let gateway = start(driver, &[]);
        let [mut first, mut second] = clients(&gateway);
        first.establish().unwrap();
        second.establish().unwrap();
        first.request("room.test.bind", br#"{"name":"ann"}"#).unwrap();
        let again = first.request("room.test.bind", br#"{"name":"bob"}"#).unwrap();
        assert!(again.text().contains("session is already bound to an uid"), "{}", again.text());
        assert!(!second.request("room.test.bind", br#"{"name":"ann"}"#).unwrap().is_error);
        first.expect_kick(SOON).unwrap();
        assert_eq!(second.request("room.test.echo", b"x").unwrap().payload, b"x");
        gateway.stop();
    }
}

#[test]
fn uids_that_would_change_a_subject_are_refused() {
    on_all(&[], |_, mut client| {
        client.establish().unwrap();
        let long = "x".repeat(300);
        for uid in ["", "a b", "a.*.b", ">", "a..b", "tab\\t", "nul\\u0000", long.as_str()] {
            let body = format!(r#"{{"name":"{uid}"}}"#);
            let answer = client.request("room.test.bind", body.as_bytes()).unwrap();
            assert!(
                answer.is_error && answer.text().contains("illegal uid"),
                "{uid}: {}",
                answer.text()
            );
        }
    });
}

#[test]
fn a_kick_is_the_last_thing_sent() {
    on_all(&[], |_, mut client| {
        client.establish().unwrap();
        client.request("room.test.bind", br#"{"name":"zoe"}"#).unwrap();
        client.send_request("room.test.kick", b"").unwrap();
        client.expect_kick(SOON).unwrap();
    });
}

#[test]
fn data_before_the_ack_and_an_ack_without_a_handshake_close() {
    on_all(&[], |gateway, mut client| {
        client.handshake().unwrap();
        client.send_request("room.test.echo", b"").unwrap();
        client.expect_close(SOON).unwrap();
        let mut bare = RawClient::connect_tcp(tcp(gateway)).unwrap();
        bare.ack().unwrap();
        assert_eq!(bare.expect_close(SOON).unwrap(), Closed::Finished);
    });
}

#[test]
fn a_bad_handshake_is_told_and_closed() {
    on_all(&[], |_, mut client| {
        client.send_packet(PacketType::Handshake, b"[]").unwrap();
        assert_eq!(client.read_handshake_response(SOON).unwrap().code, 400);
        client.expect_close(SOON).unwrap();
    });
}

#[test]
fn foreign_bytes_on_the_packet_port_are_refused_at_once() {
    for driver in DRIVERS {
        let gateway = start(driver, &[]);
        for first in
            [&b"GET / HTTP/1.1\r\n"[..], b"\x16\x03\x01\x02", b"\0\0\0\0", b"\x06\0\0\0", b"\xff"]
        {
            let mut client = RawClient::connect_tcp(tcp(&gateway)).unwrap();
            client.send_bytes(first).unwrap();
            assert_eq!(client.expect_close(SOON).unwrap(), Closed::Finished, "{first:?}");
        }
        gateway.stop();
    }
}

#[test]
fn messages_that_cannot_be_close_the_connection() {
    let bad: [&[u8]; 9] = [
        b"",
        b"\0",
        b"\x08\x01",
        b"\x0e\x01",
        b"\0\x01",
        b"\0\x01\x02a",
        b"\x06\x01",
        b"\0\x80",
        b"\x10\x07\x01a",
    ];
    for driver in DRIVERS {
        let gateway = start(driver, &[]);
        for body in bad {
            for mut client in clients(&gateway) {
                client.establish().unwrap();
                client.send_packet(PacketType::Data, body).unwrap();
                client
                    .expect_close(SOON)
                    .unwrap_or_else(|error| panic!("{driver} {body:?}: {error}"));
            }
        }
        gateway.stop();
    }
}

#[test]
fn an_announced_size_above_the_limit_closes_before_the_body_comes() {
    on_all(&[("pitaya.gateway.packet.maxbytes", "1024")], |gateway, mut client| {
        client.establish().unwrap();
        assert_eq!(client.request("room.test.echo", &[1; 900]).unwrap().payload.len(), 900);
        let mut tcp_client = RawClient::connect_tcp(tcp(gateway)).unwrap();
        tcp_client.send_bytes(b"\x04\x00\x04\x01").unwrap();
        assert_eq!(tcp_client.expect_close(SOON).unwrap(), Closed::Finished);
    });
}

#[test]
fn pushes_and_responses_from_a_client_are_ignored() {
    on_all(&[], |_, mut client| {
        client.establish().unwrap();
        client.send_message(&head(MessageType::Push, 0, "room.test.echo"), b"x").unwrap();
        client.send_message(&head(MessageType::Response, 9, ""), b"x").unwrap();
        client.send_packet(PacketType::Kick, b"").unwrap();
        assert_eq!(client.request("room.test.echo", b"still here").unwrap().payload, b"still here");
    });
}

#[test]
fn the_rate_limit_drops_and_does_not_close() {
    let settings =
        [("pitaya.conn.ratelimiting.limit", "5"), ("pitaya.conn.ratelimiting.interval", "1m")];
    on_all(&settings, |_, mut client| {
        client.establish().unwrap();
        for _ in 0..10 {
            client.send_request("room.test.echo", b"x").unwrap();
        }
        for _ in 0..3 {
            client.read_message(SOON).unwrap();
        }
        client.expect_silence(Duration::from_millis(300)).unwrap();
    });
}

#[test]
fn silence_and_unfinished_handshakes_end_a_connection() {
    let settings =
        [("pitaya.heartbeat.interval", "1s"), ("pitaya.gateway.handshake.timeout", "1s")];
    on_all(&settings, |gateway, mut client| {
        client.establish().unwrap();
        let packet = client.read_packet(Duration::from_secs(3)).unwrap();
        assert_eq!(packet.kind, PacketType::Heartbeat);
        let mut silent = RawClient::connect_tcp(tcp(gateway)).unwrap();
        silent.expect_close(Duration::from_secs(3)).unwrap();
        client.read_to_close(Duration::from_secs(6)).unwrap();
    });
}

#[test]
fn a_reader_that_stops_is_closed_at_the_write_deadline_and_others_do_not_notice() {
    for driver in DRIVERS {
        let settings = [
            ("pitaya.buffer.agent.conntimeout", "1s"),
            ("pitaya.gateway.outbox.maxbytes", "67108864"),
            ("pitaya.handler.messages.compression", "false"),
        ];
        let gateway = start(driver, &settings);
        let mut stuck = RawClient::connect_tcp(tcp(&gateway)).unwrap();
        stuck.establish().unwrap();
        stuck.send_request("room.test.flood", br#"{"n":40000,"size":1024}"#).unwrap();
        let mut other = RawClient::connect_tcp(tcp(&gateway)).unwrap();
        other.establish().unwrap();
        let metrics = || http_get(gateway.addresses().admin[0], "/metrics");
        let deadline = std::time::Instant::now() + Duration::from_secs(20);
        while !metrics().contains(r#"reason="write_timeout"} 1"#) {
            assert_eq!(other.request("room.test.echo", b"x").unwrap().payload, b"x");
            assert!(std::time::Instant::now() < deadline, "{driver}: not closed\n{}", metrics());
        }
        gateway.stop();
    }
}

fn http_get(address: std::net::SocketAddr, path: &str) -> String {
    use std::io::{Read, Write};
    let mut socket = std::net::TcpStream::connect(address).unwrap();
    write!(socket, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn stopping_finishes_requests_in_flight() {
    for driver in DRIVERS {
        let gateway = start(driver, &[]);
        let [mut first, mut second] = clients(&gateway);
        for client in [&mut first, &mut second] {
            client.establish().unwrap();
            client.send_request("room.test.sleep", br#"{"ms":500}"#).unwrap();
        }
        let mut probe = RawClient::connect_tcp(tcp(&gateway)).unwrap();
        probe.establish().unwrap();
        gateway.stop();
        for mut client in [first, second] {
            assert_eq!(client.read_message(SOON).unwrap().text(), r#"{"code":200}"#);
            client.expect_close(SOON).unwrap();
        }
    }
}
