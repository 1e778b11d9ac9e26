//! Connections and packets (hostile inputs 2.1, client protocol 2).

use std::io::{Read, Write};
use std::net::TcpStream;

use client::raw::Closed;
use shared::packet::PacketType;

use crate::field::{LONG, reset, under_attack};

const HELLO: &[u8] = br#"{"sys":{}}"#;
/// A whole request for `room.test.echo` with id 1 and payload `{}`.
const ECHO: &[u8] = b"\x04\x00\x00\x13\x00\x01\x0eroom.test.echo{}";

fn packet(kind: u8, announced: usize, body: &[u8]) -> Vec<u8> {
    let mut out = (announced as u32).to_be_bytes().to_vec();
    out[0] = kind;
    out.extend_from_slice(body);
    out
}

fn whole(kind: PacketType, body: &[u8]) -> Vec<u8> {
    packet(kind as u8, body.len(), body)
}

#[test]
fn connections_that_come_and_go_leave_nothing() {
    under_attack(&[], |field| {
        for round in 0..200 {
            drop(TcpStream::connect(field.tcp_address()).unwrap());
            drop(TcpStream::connect(field.ws_address()).unwrap());
            // A header or a body that a FIN or a reset cuts, with and without a handshake before it.
            let mut cut = whole(PacketType::Handshake, HELLO);
            cut.extend_from_slice(&packet(2, 0, &packet(4, 1_000, b"\0\x01")));
            let cut_at = cut.len() - [0, 3, 5, 7][round % 4];
            let mut socket = TcpStream::connect(field.tcp_address()).unwrap();
            socket.write_all(&cut[..cut_at]).unwrap();
            if round % 2 == 0 {
                reset(&socket);
            }
        }
        for round in 0..100 {
            let mut client = field.tcp();
            client.handshake().unwrap();
            if round % 2 == 0 {
                client.ack().unwrap();
                client.send_request("room.test.echo", b"nobody will read this").unwrap();
            }
            reset(client.socket());
        }
    });
}

#[test]
fn a_finished_writer_is_closed() {
    under_attack(&[], |field| {
        for mut client in field.established() {
            client.finish_writing().unwrap();
            client.expect_close(LONG).unwrap();
        }
        let mut cut_header = field.tcp();
        cut_header.send_bytes(b"\x01\0").unwrap();
        cut_header.finish_writing().unwrap();
        cut_header.expect_close(LONG).unwrap();
    });
}

#[test]
fn foreign_bytes_close_at_once_on_fresh_and_on_working_connections() {
    let mut random = fastrand::Rng::with_seed(2);
    let mut noise: Vec<Vec<u8>> = (0..40)
        .map(|_| {
            let mut bytes: Vec<u8> = (0..random.usize(1..200)).map(|_| random.u8(..)).collect();
            bytes[0] = random.u8(6..);
            bytes
        })
        .collect();
    for start in [
        &b"GET / HTTP/1.1\r\n\r\n"[..],
        b"\x16\x03\x01\x02\0\x01",
        b"\0\0\0\0",
        b"\x06\0\0\0",
        b"\x07",
        b"\xff\0\0\x01",
    ] {
        noise.push(start.to_vec());
    }
    under_attack(&[], |field| {
        for bytes in &noise {
            let mut fresh = field.tcp();
            fresh.send_bytes(bytes).unwrap();
            fresh.expect_close(LONG).unwrap();
            let mut working = field.tcp();
            working.establish().unwrap();
            working.send_bytes(bytes).unwrap();
            working.expect_close(LONG).unwrap();
        }
        for kind in [0, 6, 7, 255] {
            let mut client = field.ws();
            client.establish().unwrap();
            client.send_frame(shared::websocket::Opcode::Binary, &[kind, 0, 0, 0]).unwrap();
            assert_eq!(client.expect_close(LONG).unwrap(), Closed::CloseFrame { code: Some(1002) });
        }
    });
}

#[test]
fn a_size_over_the_limit_is_refused_on_its_header() {
    under_attack(&[], |field| {
        let clients = (0..200).map(|_| {
            let mut client = field.tcp();
            // The gateway may close before the rest is written.
            let _ = client.send_bytes(&packet(4, 0xff_ffff, &[0; 4_096]));
            client
        });
        for mut client in clients.collect::<Vec<_>>() {
            client.expect_close(LONG).unwrap();
        }
        for mut client in field.established() {
            client.send_packet(PacketType::Heartbeat, &vec![0; 65_536]).unwrap();
            client.heartbeat().unwrap();
            assert_eq!(client.request("room.test.echo", b"1").unwrap().payload, b"1");
            let _ = client.send_packet(PacketType::Heartbeat, &vec![0; 65_537]);
            client.expect_close(LONG).unwrap();
        }
    });
}

#[test]
fn a_client_that_sends_byte_by_byte_is_served() {
    under_attack(&[], |field| {
        let mut bytes = whole(PacketType::Handshake, HELLO);
        bytes.extend_from_slice(&whole(PacketType::HandshakeAck, b""));
        bytes.extend_from_slice(ECHO);
        let mut client = field.tcp();
        for byte in &bytes {
            client.send_bytes(std::slice::from_ref(byte)).unwrap();
        }
        assert_eq!(client.read_handshake_response(LONG).unwrap().code, 200);
        assert_eq!(client.read_message(LONG).unwrap().payload, b"{}");

        let mut socket = TcpStream::connect(field.ws_address()).unwrap();
        socket.set_nodelay(true).unwrap();
        let upgrade = crate::upgrades::request("/", "");
        let frames = crate::upgrades::frames(&[&bytes[..4 + HELLO.len()], b"\x02\0\0\0", ECHO]);
        for byte in upgrade.as_bytes().iter().chain(&frames) {
            socket.write_all(std::slice::from_ref(byte)).unwrap();
        }
        socket.set_read_timeout(Some(LONG)).unwrap();
        let mut answer = Vec::new();
        let mut part = [0; 1_024];
        while !answer.ends_with(b"\x04\0\0\x04\x04\x01{}") {
            let read = socket.read(&mut part).unwrap();
            assert!(read > 0, "closed after {:?}", String::from_utf8_lossy(&answer));
            answer.extend_from_slice(&part[..read]);
        }
    });
}

#[test]
fn what_a_working_session_need_not_send_does_not_harm_it() {
    under_attack(&[], |field| {
        for mut client in field.established() {
            client.send_packet(PacketType::Kick, b"me").unwrap();
            client.send_packet(PacketType::HandshakeAck, b"again").unwrap();
            client.send_packet(PacketType::Heartbeat, &vec![7; 50_000]).unwrap();
            assert_eq!(client.request("room.test.echo", b"1").unwrap().payload, b"1");
            // A second handshake puts the session back to before its ack; its ack makes it work again.
            assert_eq!(client.handshake().unwrap().code, 200);
            client.ack().unwrap();
            assert_eq!(client.request("room.test.echo", b"2").unwrap().payload, b"2");
            client.handshake().unwrap();
            client.send_request("room.test.echo", b"3").unwrap();
            client.expect_close(LONG).unwrap();
        }
    });
}

#[test]
fn many_packets_in_one_segment_are_all_handled_in_order() {
    under_attack(&[], |field| {
        for (mut client, is_web_socket) in field.established().into_iter().zip([false, true]) {
            let mut bytes = Vec::new();
            for id in 1..=100u64 {
                let head =
                    client::raw::head(shared::message::MessageType::Request, id, "room.test.echo");
                let mut body = Vec::new();
                shared::message::encode_head(
                    &head,
                    &shared::dictionary::Dictionary::default(),
                    &mut body,
                )
                .unwrap();
                body.extend_from_slice(&id.to_be_bytes());
                bytes.push(shared::packet::HEARTBEAT.repeat(4));
                bytes.push(whole(PacketType::Data, &body));
            }
            // On WebSocket all of them in one message, which is more than Pitaya takes.
            if is_web_socket {
                client.send_frame(shared::websocket::Opcode::Binary, &bytes.concat()).unwrap();
            } else {
                client.send_bytes(&bytes.concat()).unwrap();
            }
            for id in 1..=100u64 {
                let answer = client.read_message(LONG).unwrap();
                assert_eq!((answer.id, answer.payload), (id, id.to_be_bytes().to_vec()));
            }
        }
    });
}
