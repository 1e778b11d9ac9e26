//! Clients that take their time (hostile inputs 2.1 and 2.4, client protocol 6): the deadlines are absolute.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use shared::close::CloseReason;
use shared::packet::PacketType;

use crate::field::{Field, LONG, eventually, under_attack};
use crate::upgrades;

const SETTINGS: [(&str, &str); 2] =
    [("pitaya.heartbeat.interval", "1s"), ("pitaya.gateway.handshake.timeout", "1s")];
/// Between two bytes of a client that dribbles.
const DRIBBLE: Duration = Duration::from_millis(50);

/// A connection that repeats `drip` from time to time.
struct Slow {
    name: &'static str,
    socket: TcpStream,
    drip: &'static [u8],
    position: usize,
}

impl Slow {
    fn new(name: &'static str, socket: TcpStream, first: &[u8], drip: &'static [u8]) -> Self {
        (&socket).write_all(first).unwrap();
        socket.set_nonblocking(true).unwrap();
        Self { name, socket, drip, position: 0 }
    }

    /// Sends `bytes` of the drip; true when the gateway has ended the connection.
    fn is_ended(&mut self, bytes: usize) -> bool {
        for _ in 0..bytes.min(self.drip.len()) {
            let byte = self.drip[self.position % self.drip.len()];
            self.position += 1;
            let _ = self.socket.write(&[byte]);
        }
        loop {
            match self.socket.read(&mut [0; 4_096]) {
                Ok(0) => return true,
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return false,
                Err(_) => return true,
            }
        }
    }
}

fn slow_ones(field: &Field) -> Vec<(Slow, usize)> {
    let tcp = || TcpStream::connect(field.tcp_address()).unwrap();
    let ws = || TcpStream::connect(field.ws_address()).unwrap();
    let upgrade = upgrades::request("/", "");
    let hello = upgrades::frames(&[b"\x01\0\0\x02{}"]);
    vec![
        (Slow::new("silent", tcp(), b"", b""), 0),
        (Slow::new("silent on WebSocket", ws(), b"", b""), 0),
        (Slow::new("dribbled handshake", tcp(), b"\x01\0\x20\0{", b" "), 1),
        (Slow::new("handshake without ack", tcp(), b"\x01\0\0\x02{}", b""), 0),
        (Slow::new("handshakes for ever", tcp(), b"", b"\x01\0\0\x02{}"), 6),
        (Slow::new("heartbeats for ever", tcp(), b"", b"\x03\0\0\0"), 4),
        (Slow::new("heartbeats instead of the ack", tcp(), b"\x01\0\0\x02{}", b"\x03\0\0\0"), 4),
        (Slow::new("half an upgrade", ws(), &upgrade.as_bytes()[..60], b""), 0),
        (Slow::new("dribbled upgrade", ws(), b"GET / HTTP/1.1\r\nX: ", b"x"), 1),
        (Slow::new("upgraded and silent", ws(), upgrade.as_bytes(), b""), 0),
        (Slow::new("upgraded, no ack", ws(), &[upgrade.as_bytes(), &hello].concat(), b""), 0),
        (Slow::new("upgraded, pings", ws(), upgrade.as_bytes(), b"\x89\x80\0\0\0\0"), 6),
        (
            Slow::new(
                "upgraded, empty fragments",
                ws(),
                &[upgrade.as_bytes(), b"\x02\x80\0\0\0\0"].concat(),
                b"\0\x80\0\0\0\0",
            ),
            6,
        ),
    ]
}

#[test]
fn the_handshake_deadline_is_not_extended_by_anything() {
    under_attack(&SETTINGS, |field| {
        let began = Instant::now();
        let mut slow = slow_ones(field);
        while !slow.is_empty() {
            slow.retain_mut(|(slow, bytes)| !slow.is_ended(*bytes));
            let names: Vec<_> = slow.iter().map(|(slow, _)| slow.name).collect();
            assert!(began.elapsed() < LONG, "still open: {names:?}");
            std::thread::sleep(DRIBBLE);
        }
        assert!(began.elapsed() > Duration::from_millis(900), "closed before the deadline");
    });
}

#[test]
fn a_thousand_deadlines_at_once_hold_up_nobody() {
    const SILENT: usize = 1_000;
    let settings = [("pitaya.gateway.handshake.timeout", "2s")];
    under_attack(&settings, |field| {
        let silent: Vec<TcpStream> = [field.tcp_address(), field.ws_address()]
            .repeat(SILENT / 2)
            .into_iter()
            .map(|address| TcpStream::connect(address).unwrap())
            .collect();
        eventually("all of them end", || {
            field.ended(CloseReason::HandshakeTimeout) == SILENT as u64
        });
        drop(silent);
    });
}

#[test]
fn a_client_that_vanished_is_given_up_and_one_that_beats_is_kept() {
    under_attack(&[("pitaya.heartbeat.interval", "1s")], |field| {
        let mut vanished = field.established().map(|client| (client, Instant::now()));
        let [mut alive, mut alive_ws] = field.established();
        // Without an ack no heartbeat is sent, because libpitaya gives up on one.
        let mut before_ack = field.tcp();
        before_ack.handshake().unwrap();
        let until = Instant::now() + Duration::from_secs(4);
        while Instant::now() < until {
            for client in [&mut alive, &mut alive_ws] {
                client.heartbeat().unwrap();
                assert_eq!(client.request("room.test.echo", b"x").unwrap().payload, b"x");
            }
            let packet = alive.read_packet(LONG).unwrap();
            assert_eq!(packet.kind, PacketType::Heartbeat);
        }
        let (packets, _) = before_ack.read_to_close(LONG).unwrap();
        assert_eq!(packets, [], "a heartbeat came before the ack");
        for (client, since) in &mut vanished {
            client.expect_close(LONG).unwrap();
            assert!(since.elapsed() > Duration::from_millis(2_500), "two intervals are allowed");
        }
    });
}

#[test]
fn a_client_that_is_told_of_its_end_and_stays_is_closed() {
    under_attack(&[], |field| {
        // Told of its end, but it never ends itself.
        let mut stubborn = field.tcp();
        stubborn.send_bytes(b"\xff").unwrap();
        stubborn.expect_close(LONG).unwrap();
        let since = Instant::now();
        while stubborn.send_bytes(b"\x03\0\0\0").is_ok() {
            assert!(since.elapsed() < LONG, "the gateway still takes bytes");
            std::thread::sleep(DRIBBLE);
        }
    });
}
