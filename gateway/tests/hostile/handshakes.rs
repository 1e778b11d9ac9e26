//! Handshakes and the order of packets (hostile inputs 2.1, client protocol 5 and 8).

use client::raw::{Closed, RawClient};
use shared::compression::Deflater;
use shared::packet::PacketType;

use crate::field::{LONG, under_attack};

fn expect_refusal(client: &mut RawClient, what: &str) {
    let response = client.read_handshake_response(LONG);
    assert_eq!(response.unwrap_or_else(|error| panic!("{what}: {error}")).code, 400, "{what}");
    client.expect_close(LONG).unwrap_or_else(|error| panic!("{what}: {error}"));
}

#[test]
fn bad_handshakes_are_told_and_closed() {
    let bomb = Deflater::new().deflate(&vec![b' '; 8 << 20], 0).unwrap().to_vec();
    let deep = [&br#"{"user":"#[..], &[b'['; 10_000], &[b']'; 10_000], b"}"].concat();
    let deep_user = [&br#"{"user":{"a":"#[..], &[b'['; 8_000], &[b']'; 8_000], b"}}"].concat();
    let many = r#""key":0,"#.repeat(1_800);
    let digits = format!(r#"{{"user":{{"n":{}}}}}"#, "9".repeat(16_000));
    let platform = format!(r#"{{"sys":{{"platform":"{}"}}}}"#, "p".repeat(60_000));
    let bodies: Vec<(&str, &[u8])> = vec![
        ("empty", b""),
        ("no JSON", b"hello"),
        ("cut", br#"{"sys":{"#),
        ("array", b"[]"),
        ("string", br#""x""#),
        ("number", b"1"),
        ("text behind", b"{} x"),
        ("second object", b"{}{}"),
        ("no text", b"{\"sys\":\xff}"),
        ("platform is a number", br#"{"sys":{"platform":1}}"#),
        ("user is an array", br#"{"user":[]}"#),
        ("user is a string", br#"{"user":"x"}"#),
        ("half a surrogate, and cut", br#"{"sys":{"platform":"\ud800""#),
        ("a bomb", &bomb),
        ("deep", &deep),
        ("deep in user", &deep_user),
        ("digits", digits.as_bytes()),
        ("long platform", platform.as_bytes()),
    ];
    under_attack(&[], |field| {
        for (what, body) in &bodies {
            for mut client in field.fresh() {
                client.send_packet(PacketType::Handshake, body).unwrap();
                expect_refusal(&mut client, what);
            }
        }
        // Bounded work, not a verdict: these may pass.
        for body in
            [format!("{{{many}\"sys\":null}}"), format!(r#"{{"user":{{{many}"__proto__":{{}}}}}}"#)]
        {
            for mut client in field.fresh() {
                client.send_packet(PacketType::Handshake, body.as_bytes()).unwrap();
                client.read_handshake_response(LONG).unwrap();
            }
        }
    });
}

#[test]
fn strange_but_good_handshakes_are_accepted() {
    let bodies: [&[u8]; 10] = [
        b"{}",
        b" {} ",
        b"null",
        br#"{"sys":null}"#,
        br#"{"user":null}"#,
        br#"{"SYS":{"PLATFORM":"a"}}"#,
        // Go puts the replacement character for what is no text.
        b"{\"sys\":{\"platform\":\"\xff\"}}",
        br#"{"sys":{"platform":"\ud800"}}"#,
        br#"{"sys":{"platform":"a\u0000b"},"user":{"__proto__":{"x":1}}}"#,
        br#"{"sys":{"type":"js-websocket","version":"0.0.1","rsa":{}},"user":{}}"#,
    ];
    under_attack(&[], |field| {
        for body in bodies {
            for mut client in field.fresh() {
                assert_eq!(client.handshake_with(body).unwrap().code, 200);
                client.ack().unwrap();
                assert_eq!(client.request("room.test.echo", b"x").unwrap().payload, b"x");
            }
        }
    });
}

#[test]
fn the_refusal_arrives_though_the_client_goes_on_sending() {
    under_attack(&[], |field| {
        for mut client in field.fresh() {
            client.send_packet(PacketType::Handshake, b"[]").unwrap();
            for _ in 0..20 {
                // Nobody reads this; a close in front of it must not turn into a reset that takes the refusal along.
                if client.send_packet(PacketType::Heartbeat, &[0; 10_000]).is_err() {
                    break;
                }
            }
            assert_eq!(client.read_handshake_response(LONG).unwrap().code, 400);
            client.finish_writing().unwrap();
            assert_ne!(client.expect_close(LONG).unwrap(), Closed::Reset);
        }
    });
}

#[test]
fn packets_before_their_time_close_the_connection() {
    under_attack(&[], |field| {
        for steps in [
            &["data"][..],
            &["ack"],
            &["ack", "data"],
            &["heartbeat", "data"],
            &["handshake", "data"],
            &["kick", "ack"],
        ] {
            for (mut client, is_web_socket) in field.fresh().into_iter().zip([false, true]) {
                for step in steps {
                    // The gateway may have closed at the step before.
                    let _ = match *step {
                        "data" => {
                            client.send_packet(PacketType::Data, b"\0\x01\x0eroom.test.echo{}")
                        }
                        "ack" => client.ack(),
                        "heartbeat" => client.heartbeat(),
                        "kick" => client.send_packet(PacketType::Kick, b""),
                        _ => client.handshake().map(|_| ()),
                    };
                }
                let closed =
                    client.expect_close(LONG).unwrap_or_else(|error| panic!("{steps:?}: {error}"));
                if is_web_socket {
                    assert_eq!(closed, Closed::CloseFrame { code: Some(1002) }, "{steps:?}");
                }
            }
        }
    });
}

#[test]
fn everything_in_one_segment_is_answered_with_the_handshake_alone_in_front() {
    under_attack(&[], |field| {
        let mut client = field.tcp();
        let all = b"\x01\0\0\x02{}\x02\0\0\0\x04\0\0\x13\0\x01\x0eroom.test.echo{}";
        client.send_bytes(all).unwrap();
        assert_eq!(client.read_handshake_response(LONG).unwrap().code, 200);
        assert_eq!(client.read_message(LONG).unwrap().payload, b"{}");
    });
}

#[test]
fn a_flood_of_handshakes_is_bounded() {
    under_attack(&[], |field| {
        for mut client in field.fresh() {
            // Nothing is read while they are sent, so the answers pile up until the connection is closed or all are in.
            let flood =
                (0..30_000).try_for_each(|_| client.send_packet(PacketType::Handshake, b"{}"));
            if flood.is_ok() {
                assert_eq!(client.read_handshake_response(LONG).unwrap().code, 200);
            }
        }
    });
}
