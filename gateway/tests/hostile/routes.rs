//! Routes and the order of answers (hostile inputs 2.2, client protocol 3.7 and 8).

use client::raw::head;
use shared::message::{Head, MessageType};
use shared::metrics::LimitLabel;
use shared::packet::PacketType;

use crate::accounting::exceeded;
use crate::field::{LONG, eventually, under_attack};

#[test]
fn routes_that_are_none_are_answered_with_400() {
    let long = "x".repeat(255);
    let empty =
        ["", "...", ".", "..", "a..b", "  ", ".a.b", "a.b.", "room. .echo", "room.test.echo."];
    let invalid =
        ["a", "a.b.c.d", long.as_str(), "a\0.b.c", "a.b\r\nPUB x 1\r\n", "a.b\u{1b}[31m.c"];
    under_attack(&[], |field| {
        for mut client in field.established() {
            for (routes, text) in
                [(&empty[..], "route field can not be empty"), (&invalid[..], "invalid route")]
            {
                for route in routes {
                    let answer = client.request(route, b"{}").unwrap();
                    let body = format!(r#"{{"code":"PIT-400","msg":"{text}"}}"#);
                    assert_eq!((answer.is_error, answer.text()), (true, body), "{route:?}");
                }
            }
            client.send_packet(PacketType::Data, b"\0\x05\x05room\xff{}").unwrap();
            let answer = client.read_message(LONG).unwrap();
            assert!(answer.is_error && answer.id == 5 && answer.text().contains("PIT-400"));
        }
    });
}

#[test]
fn routes_of_nobody_are_answered_with_404_at_once() {
    let routes = [
        "room.test.nothing",
        "nobody.at.home",
        "*.test.echo",
        ">.test.echo",
        "//etc.test.echo",
        "sys.bindsession",
        "sys.pushsession",
        "sys.kick",
        "room.sys.kick",
        "room.sys.bindsession",
        "connector.sys.pushsession",
        "connector.sys.kick",
        "ROOM.test.echo",
        "room.test. echo",
        "pitaya/servers.a.b",
    ];
    under_attack(&[], |field| {
        for mut client in field.established() {
            for route in routes {
                let answer = client.request(route, br#"{"id":1,"uid":"x"}"#).unwrap();
                assert!(
                    answer.is_error && answer.text().contains("PIT-404"),
                    "{route}: {}",
                    answer.text()
                );
            }
            for number in 0..1_000 {
                let answer = client.request(&format!("room.made{number}.up"), b"").unwrap();
                assert!(answer.is_error && answer.text().contains("PIT-404"), "{}", answer.text());
            }
        }
    });
}

#[test]
fn a_request_for_a_notify_handler_is_refused() {
    under_attack(&[], |field| {
        for (mut client, uid) in field.established().into_iter().zip(["tcp", "ws"]) {
            let answer = client.request("room.test.notify", b"x").unwrap();
            assert!(answer.text().contains("tried to request a notify route"), "{}", answer.text());
            // The other way round the handler runs: the session is kicked.
            client.request("room.test.bind", format!(r#"{{"name":"{uid}"}}"#).as_bytes()).unwrap();
            client.notify("room.test.kick", b"").unwrap();
            client.expect_kick(LONG).unwrap();
        }
    });
}

#[test]
fn answers_come_in_the_order_of_requests() {
    under_attack(&[], |field| {
        for mut client in field.established() {
            // A slow handler in front, so that a pool of workers would overtake it.
            let mut ids = vec![client.send_request("room.test.sleep", br#"{"ms":100}"#).unwrap()];
            for number in 0..60u8 {
                ids.push(client.send_request("room.test.echo", &[number; 200]).unwrap());
            }
            for id in ids {
                assert_eq!(client.read_message(LONG).unwrap().id, id);
            }
        }
    });
}

#[test]
fn every_request_above_the_limits_is_answered_too() {
    under_attack(&[("pitaya.gateway.inflight.connection", "20")], |field| {
        let mut refused = 0;
        for mut client in field.established() {
            for id in 1..=300u64 {
                let request = Head { id, ..head(MessageType::Request, 0, "room.test.sleep") };
                client.send_message(&request, br#"{"ms":10}"#).unwrap();
            }
            let mut answered = std::collections::BTreeSet::new();
            let mut busy = 0;
            while answered.len() < 300 {
                let answer = client.read_message(LONG).unwrap();
                assert!(answered.insert(answer.id), "{} is answered twice", answer.id);
                assert_eq!(answer.is_error, answer.text().contains("PIT-503"), "{}", answer.text());
                busy += u64::from(answer.is_error);
            }
            assert!((1..=280).contains(&busy), "{busy} were refused");
            client.expect_silence(std::time::Duration::from_millis(100)).unwrap();
            refused += busy;
            eventually("each is counted", || exceeded(field, LimitLabel::InFlight) == refused);
        }
    });
}
