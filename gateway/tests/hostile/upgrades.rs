//! HTTP upgrades (hostile inputs 2.4, client protocol 12).

use std::io::{Read, Write};
use std::net::TcpStream;

use shared::websocket::Opcode;
use shared::websocket::frame::frame_head;

use crate::field::{Field, LONG, under_attack};

/// A good upgrade request for `target`, with more header lines (each with its CRLF).
pub(crate) fn request(target: &str, more: &str) -> String {
    format!(
        "GET {target} HTTP/1.1\r\nHost: game\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n{more}\r\n"
    )
}

/// One masked binary frame for each of `packets`.
pub(crate) fn frames(packets: &[&[u8]]) -> Vec<u8> {
    let mut out = Vec::new();
    for packet in packets {
        frame_head(Opcode::Binary, packet.len(), Some([0; 4]), &mut out);
        out.extend_from_slice(packet);
    }
    out
}

/// Sends and reads to the end of the connection, or of the answer's head when it is a 101.
fn answer_to(field: &Field, bytes: &[u8]) -> String {
    let mut socket = TcpStream::connect(field.ws_address()).unwrap();
    socket.set_read_timeout(Some(LONG)).unwrap();
    // The gateway may close before it has read everything.
    let _ = socket.write_all(bytes);
    let mut answer = Vec::new();
    let mut part = [0; 1_024];
    loop {
        match socket.read(&mut part) {
            Ok(0) => break,
            Ok(read) => answer.extend_from_slice(&part[..read]),
            Err(error) => {
                assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "{error}");
                break;
            }
        }
        if answer.starts_with(b"HTTP/1.1 101") && answer.windows(4).any(|end| end == b"\r\n\r\n") {
            break;
        }
    }
    String::from_utf8_lossy(&answer).into_owned()
}

#[test]
fn what_is_no_upgrade_is_refused_with_a_status() {
    let change = |from: &str, to: &str| request("/", "").replace(from, to).into_bytes();
    let cases: Vec<(Vec<u8>, &str)> = vec![
        (b"\x16\x03\x01\x02\0\x01".to_vec(), "400"),
        (b"\x01\0\0\x02{}\x02\0\0\0".to_vec(), "400"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(), "400"),
        (b"GET /\r\n\r\n".to_vec(), "400"),
        (change("GET", "POST"), "405"),
        (change("HTTP/1.1", "HTTP/1.0"), "400"),
        (change("Version: 13", "Version: 12"), "400"),
        (change("Upgrade: websocket", "Upgrade: h2c"), "400"),
        (change("dGhlIHNhbXBsZSBub25jZQ==", "c2hvcnQ="), "400"),
        (change("Host: game", "Host: game\r\nContent-Length: 4"), "400"),
        (change("Host: game", "Bad Name: x"), "400"),
        (request("/", &format!("X: {}\r\n", "x".repeat(10_000))).into_bytes(), "431"),
        (request("/", &"X: y\r\n".repeat(300)).into_bytes(), "431"),
    ];
    under_attack(&[], |field| {
        for (bytes, status) in &cases {
            let answer = answer_to(field, bytes);
            assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{status}: {answer}");
            assert!(answer.contains("Connection: close\r\n"), "{answer}");
        }
    });
}

#[test]
fn heads_without_end_are_cut_off() {
    under_attack(&[], |field| {
        let endless = [request("/", "").as_bytes(), b""].concat();
        let endless =
            [&endless[..endless.len() - 2], b"X: ".as_slice(), &vec![b'x'; 8 << 20]].concat();
        let mut many = request("/", &"X: y\r\n".repeat(3_000)).into_bytes();
        many.truncate(many.len() - 2);
        for bytes in [endless, many] {
            let answer = answer_to(field, &bytes);
            assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 431 "), "{answer}");
        }
    });
}

#[test]
fn an_upgrade_grants_nothing_and_takes_frames_behind_it() {
    under_attack(&[], |field| {
        let more = "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n\
                    Sec-WebSocket-Protocol: chat\r\nOrigin: https://elsewhere.example\r\n";
        let answer = answer_to(field, request("/any/path?token=secret", more).as_bytes());
        assert!(answer.starts_with("HTTP/1.1 101 "), "{answer}");
        assert!(!answer.contains("-Extensions") && !answer.contains("-Protocol"), "{answer}");

        // Everything in the first segment, as an eager client sends it.
        let packets: [&[u8]; 3] =
            [b"\x01\0\0\x02{}", b"\x02\0\0\0", b"\x04\0\0\x13\0\x01\x0eroom.test.echo{}"];
        let mut socket = TcpStream::connect(field.ws_address()).unwrap();
        socket.set_read_timeout(Some(LONG)).unwrap();
        socket.write_all(&[request("/", "").as_bytes(), &frames(&packets)].concat()).unwrap();
        let mut answer = Vec::new();
        while !answer.ends_with(b"\x04\0\0\x04\x04\x01{}") {
            let mut part = [0; 1_024];
            let read = socket.read(&mut part).unwrap();
            assert!(read > 0, "{}", String::from_utf8_lossy(&answer));
            answer.extend_from_slice(&part[..read]);
        }
    });
}

#[test]
fn a_compressed_frame_is_refused_because_it_was_not_granted() {
    under_attack(&[], |field| {
        let mut client = field.ws();
        client.send_bytes(b"\xc2\x80\0\0\0\0").unwrap();
        let closed = client.expect_close(LONG).unwrap();
        assert_eq!(closed, client::raw::Closed::CloseFrame { code: Some(1002) });
    });
}
