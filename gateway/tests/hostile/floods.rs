//! Floods of connections and packets (hostile inputs 2.3).

use std::io::Read;
use std::net::TcpStream;
use std::time::Duration;

use client::raw::RawError;
use shared::packet::HEARTBEAT;

use crate::field::{LONG, eventually, reset, under_attack};

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
        for mut client in field.established() {
            for number in 0..3_000u32 {
                client.send_request("room.test.echo", &number.to_be_bytes()).unwrap();
            }
            let mut answers = 0;
            loop {
                // The first may take its time on a machine with other work; silence behind it is the end.
                let patience = if answers == 0 { LONG } else { Duration::from_secs(1) };
                match client.read_message(patience) {
                    Ok(_) => answers += 1,
                    Err(RawError::Timeout { .. }) => break,
                    Err(error) => panic!("{error}"),
                }
            }
            assert!((500..3_000).contains(&answers), "{answers} of 3000 were let through");
            eventually("it is heard again", || {
                let id = client.send_request("room.test.echo", b"again").unwrap();
                client.read_response(id, Duration::from_millis(300)).is_ok()
            });
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
