//! Floods of connections and packets (hostile inputs 2.3).

use std::io::Read;
use std::net::TcpStream;
use std::time::Duration;

use client::raw::RawError;
use shared::close::CloseReason;
use shared::metrics::LimitLabel;
use shared::packet::HEARTBEAT;

use crate::accounting::exceeded;
use crate::field::{LONG, eventually, reset, under_attack};
use crate::metrics::value;

#[test]
fn idle_sessions_are_held_and_one_too_many_is_refused_at_once() {
    const SESSIONS: usize = 1_500;
    // The two well-behaved clients count too.
    let limit = (SESSIONS + 2).to_string();
    under_attack(&[("pitaya.gateway.maxconns", &limit)], |field| {
        let mut idle: Vec<_> = (0..SESSIONS)
            .map(|number| {
                let mut client = if number % 2 == 0 { field.tcp() } else { field.ws() };
                client.establish().unwrap();
                client
            })
            .collect();
        for address in [field.tcp_address(), field.ws_address()].repeat(10) {
            let mut refused = TcpStream::connect(address).unwrap();
            refused.set_read_timeout(Some(LONG)).unwrap();
            assert!(matches!(refused.read(&mut [0]), Ok(0) | Err(_)), "served beyond the limit");
        }
        eventually("each refusal is counted", || {
            (field.ended(CloseReason::Overload), exceeded(field, LimitLabel::Connections))
                == (20, 20)
        });
        for client in idle.iter_mut().step_by(100) {
            assert_eq!(client.request("room.test.echo", b"x").unwrap().payload, b"x");
        }
        drop(idle.pop());
        // Its place is free as soon as the gateway has seen it leave.
        eventually("a place for one more", || field.tcp().establish().is_ok());
    });
}

#[test]
fn a_storm_of_resets_behind_handshakes_leaves_nothing() {
    under_attack(&[], |field| {
        for round in 0..300 {
            let mut client = if round % 2 == 0 { field.tcp() } else { field.ws() };
            client.send_packet(shared::packet::PacketType::Handshake, b"{}").unwrap();
            reset(client.socket());
        }
    });
}

#[test]
fn a_hundred_thousand_heartbeats_are_taken() {
    under_attack(&[], |field| {
        let [mut tcp, mut ws] = field.established();
        let beats = HEARTBEAT.repeat(1_000);
        for _ in 0..100 {
            tcp.send_bytes(&beats).unwrap();
        }
        let frames = crate::upgrades::frames(&[&HEARTBEAT[..]; 1_000]);
        for _ in 0..20 {
            ws.send_bytes(&frames).unwrap();
        }
        for mut client in [tcp, ws] {
            assert_eq!(client.request("room.test.echo", b"x").unwrap().payload, b"x");
        }
    });
}

#[test]
fn the_limiter_drops_what_is_too_much_and_the_connection_stays() {
    let settings =
        [("pitaya.conn.ratelimiting.limit", "1000"), ("pitaya.conn.ratelimiting.interval", "1s")];
    under_attack(&settings, |field| {
        let dropped = || value(&field.metrics(), "pitaya_acceptor_exceeded_rate_limiting", "");
        let mut dropped_before = 0;
        for mut client in field.established() {
            let (mut asked, mut answers) = (0, 0);
            let mut ask = |requests: u64| {
                for number in 0..requests {
                    client.send_request("room.test.echo", &number.to_be_bytes()).unwrap();
                }
                asked += requests;
                eventually("each is answered, or dropped and counted", || {
                    loop {
                        match client.read_message(Duration::from_millis(50)) {
                            Ok(_) => answers += 1,
                            Err(RawError::Timeout { .. }) => break,
                            Err(error) => panic!("{error}"),
                        }
                    }
                    dropped_before + asked - answers == dropped()
                });
                answers
            };
            let answers = ask(3_000);
            assert!((500..3_000).contains(&answers), "{answers} of 3000 were let through");
            eventually("it is heard again", || ask(1) > answers);
            dropped_before = dropped();
        }
    });
}

#[test]
fn a_flood_of_requests_and_notifies_is_answered_or_refused() {
    under_attack(&[], |field| {
        for mut client in field.established() {
            for number in 0..3_000u32 {
                client.notify("room.test.echo", &number.to_be_bytes()).unwrap();
                if number % 3 == 0 {
                    client.send_request("room.test.echo", &number.to_be_bytes()).unwrap();
                }
            }
            for _ in 0..1_000 {
                let answer = client.read_message(LONG).unwrap();
                assert!(!answer.is_error || answer.text().contains("PIT-503"), "{}", answer.text());
            }
        }
    });
}
