//! Logins (hostile inputs 2.5, compatibility traps 5): one uid, one session, whatever the timing.

use std::time::Duration;

use client::raw::{Closed, OwnedMessage, RawClient, RawError};
use shared::close::CloseReason;
use shared::packet::PacketType;

use crate::field::{LONG, eventually, reset, under_attack};

/// Two reactors, so that sessions of one uid live on both.
const TWO: [(&str, &str); 1] = [("pitaya.gateway.threads", "2")];

fn body(uid: &str) -> String {
    serde_json::json!({ "name": uid }).to_string()
}

fn bind(client: &mut RawClient, uid: &str) -> OwnedMessage {
    client.request("room.test.bind", body(uid).as_bytes()).unwrap()
}

#[test]
fn a_later_login_ends_the_earlier_one_with_a_kick() {
    under_attack(&TWO, |field| {
        let mut clients: Vec<_> = (0..4).flat_map(|_| field.established()).enumerate().collect();
        assert!(!bind(&mut clients[0].1, "ann").is_error);
        while clients.len() > 1 {
            assert!(!bind(&mut clients[1].1, "ann").is_error);
            let (number, mut old) = clients.remove(0);
            let closed = old.expect_kick(LONG).unwrap();
            if number % 2 == 1 {
                assert_eq!(closed, Closed::CloseFrame { code: Some(1008) });
            }
        }
        let (_, last) = &mut clients[0];
        assert_eq!(last.request("room.test.echo", b"x").unwrap().payload, b"x");
        last.send_request("room.test.kick", b"").unwrap();
        last.expect_kick(LONG).unwrap();
    });
}

#[test]
fn of_forty_logins_at_once_exactly_one_stays() {
    under_attack(&TWO, |field| {
        let mut clients: Vec<_> = (0..20).flat_map(|_| field.established()).collect();
        for client in &mut clients {
            client.send_request("room.test.bind", body("crowd").as_bytes()).unwrap();
        }
        // The kicked are those that end; who stays answers.
        let kept = clients.into_iter().map(is_kicked).filter(|is_kicked| !is_kicked).count();
        assert_eq!(kept, 1);
        eventually("each end is counted", || field.ended(CloseReason::Replaced) == 39);
    });
}

#[test]
fn a_bind_that_races_with_the_end_leaves_no_ghost() {
    under_attack(&TWO, |field| {
        for round in 0..100 {
            for mut client in field.established() {
                client.send_request("room.test.bind", body("racer").as_bytes()).unwrap();
                match round % 3 {
                    0 => reset(client.socket()),
                    1 => client.send_bytes(b"\xff").unwrap(),
                    _ => drop(client.send_request("room.test.kick", b"").unwrap()),
                }
            }
        }
        for mut client in field.established() {
            // A ghost would kick this one, or make its login fail.
            assert!(!bind(&mut client, "racer").is_error);
            client.expect_silence(Duration::from_millis(300)).unwrap();
            assert_eq!(client.request("room.test.echo", b"x").unwrap().payload, b"x");
            drop(client);
        }
    });
}

#[test]
fn uids_that_would_change_a_subject_are_refused_and_do_not_harm_the_session() {
    let long = "u".repeat(257);
    let bad = [
        "",
        "*",
        ">",
        "a.*.b",
        "a.>",
        "a b",
        " a",
        "a\t",
        "a\r\nPUB x 0",
        "nul\0",
        "a..b",
        ".a",
        "a.",
        "\u{7f}",
        long.as_str(),
    ];
    let good = ["ann", "a*b", "a.b", "märchen", "ünï-コード", &long[..256]];
    under_attack(&TWO, |field| {
        for (mut client, fine) in field.established().into_iter().zip(["fine", "fine-too"]) {
            for uid in bad {
                let answer = bind(&mut client, uid);
                assert!(
                    answer.is_error && answer.text().contains("illegal uid"),
                    "{uid:?}: {}",
                    answer.text()
                );
            }
            assert!(!bind(&mut client, fine).is_error);
        }
        for uid in good {
            let mut client = field.tcp();
            client.establish().unwrap();
            let answer = bind(&mut client, uid);
            assert!(!answer.is_error, "{uid}: {}", answer.text());
        }
    });
}

/// What became of a login that was sent: kicked, or answering still.
fn is_kicked(mut client: RawClient) -> bool {
    loop {
        match client.read_packet(Duration::from_millis(500)) {
            Ok(packet) if packet.kind == PacketType::Kick => {
                client.expect_close(LONG).unwrap();
                return true;
            }
            Ok(_) => {}
            Err(RawError::Timeout { .. }) => {
                assert_eq!(client.request("room.test.echo", b"x").unwrap().payload, b"x");
                return false;
            }
            Err(error) => panic!("neither kept nor kicked: {error}"),
        }
    }
}
