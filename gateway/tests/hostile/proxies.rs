//! PROXY headers and forwarded addresses (hostile inputs 78 and 79, client protocol 11 and 12).

use std::net::{SocketAddr, TcpStream};

use client::address::Transport;
use client::raw::{Closed, RawClient};
use client::upgrade::UpgradeRequest;
use shared::close::CloseReason;
use shared::packet::PacketType;
use socket2::{Domain, Socket, Type};

use crate::administrator;
use crate::field::{Field, HEADER, LONG, eventually, under_attack};
use crate::metrics::closed_total;
use crate::process::Process;
use crate::upgrades;

const EXPECTED: [(&str, &str); 3] = [
    ("pitaya.acceptor.proxyprotocol", "true"),
    ("pitaya.gateway.session.address", "true"),
    ("pitaya.gateway.proxy.trusted", "127.0.0.1"),
];
const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

fn v2(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
    [SIGNATURE, &[command, family], &(rest.len() as u16).to_be_bytes(), rest].concat()
}

/// A connection from one of this machine's loopback addresses.
fn connect_from(from: [u8; 4], to: SocketAddr) -> RawClient {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from((from, 0)).into()).unwrap();
    socket.connect(&to.into()).unwrap();
    RawClient::over(TcpStream::from(socket), Transport::Tcp).unwrap()
}

/// A connection that begins with this header, on each transport.
fn behind(field: &Field, header: &[u8]) -> [RawClient; 2] {
    [false, true].map(|is_web_socket| {
        let to = if is_web_socket { field.ws_address() } else { field.tcp_address() };
        let mut client = connect_from([127, 0, 0, 1], to);
        client.set_timeout(LONG);
        client.send_bytes(header).unwrap();
        if is_web_socket {
            client = client.upgrade(&UpgradeRequest::new("game", "/")).unwrap();
        }
        client
    })
}

fn address(client: &mut RawClient) -> String {
    client.establish().unwrap();
    client.request("room.test.address", b"").unwrap().text()
}

#[test]
fn a_header_tells_the_address_and_one_of_the_proxy_itself_keeps_the_sockets() {
    let ipv6 = [&[0x20, 1, 0x0d, 0xb8][..], &[0; 11], &[9], &[0; 16], &[0, 7, 0, 8]].concat();
    let cases: [(Vec<u8>, &str); 7] = [
        (HEADER.to_vec(), r#"["ipv4","192.0.2.1"]"#),
        (b"PROXY TCP6 2001:db8::9 ::1 7 8\r\n".to_vec(), r#"["ipv6","2001:db8::9"]"#),
        (b"PROXY UNKNOWN\r\n".to_vec(), r#"["ipv4","127.0.0.1"]"#),
        (v2(0x21, 0x11, &[192, 0, 2, 7, 1, 1, 1, 1, 0, 9, 0, 8]), r#"["ipv4","192.0.2.7"]"#),
        (v2(0x21, 0x21, &ipv6), r#"["ipv6","2001:db8::9"]"#),
        (v2(0x20, 0, b""), r#"["ipv4","127.0.0.1"]"#),
        (
            v2(0x21, 0x11, &[&[192, 0, 2, 8, 1, 1, 1, 1, 0, 9, 0, 8][..], &[0; 2_036]].concat()),
            r#"["ipv4","192.0.2.8"]"#,
        ),
    ];
    under_attack(&EXPECTED, |field| {
        for (header, told) in &cases {
            for mut client in behind(field, header) {
                assert_eq!(address(&mut client), *told, "{}", header.escape_ascii());
            }
        }
        // One byte at a time, and everything at once.
        let hello = b"\x01\0\0\x02{}";
        for header in cases.iter().map(|(header, _)| header).take(4) {
            let mut client = connect_from([127, 0, 0, 1], field.tcp_address());
            for byte in header.iter().chain(hello) {
                client.send_bytes(&[*byte]).unwrap();
            }
            assert_eq!(client.read_handshake_response(LONG).unwrap().code, 200);
            let mut client = connect_from([127, 0, 0, 1], field.tcp_address());
            client.send_bytes(&[header, &hello[..]].concat()).unwrap();
            assert_eq!(client.read_handshake_response(LONG).unwrap().code, 200);
        }
    });
}

#[test]
fn what_is_no_header_is_closed_at_once_and_counted() {
    let long = [b"PROXY UNKNOWN ".as_slice(), &[b'x'; 200]].concat();
    let cases: Vec<Vec<u8>> = vec![
        b"\x01\0\0\x02{}".to_vec(),
        b"\x16\x03\x01\x02\0".to_vec(),
        upgrades::request("/", "").into_bytes(),
        b"PROXX".to_vec(),
        b"PROXY TCP5 1.2.3.4 1.2.3.4 1 2\r\n".to_vec(),
        b"PROXY TCP4 ::1 ::1 1 2\r\n".to_vec(),
        b"PROXY TCP4 1.2.3.4 1.2.3.4 65536 2\r\n".to_vec(),
        b"PROXY TCP4 1.2.3.4 1.2.3.4 +1 2\r\n".to_vec(),
        b"PROXY TCP4 1.2.3.4 1.2.3.4 1 2\n".to_vec(),
        b"PROXY TCP4 \xff\xff\xff 1.2.3.4 1 2\r\n".to_vec(),
        long,
        v2(0x11, 0x11, &[0; 12]),
        v2(0x22, 0x11, &[0; 12]),
        v2(0x21, 0x31, &[0; 216]),
        v2(0x21, 0x11, &[0; 4]),
        v2(0x21, 0x11, &[0; 65_535]),
    ];
    under_attack(&EXPECTED, |field| {
        for bytes in &cases {
            for to in [field.tcp_address(), field.ws_address()] {
                let mut client = connect_from([127, 0, 0, 1], to);
                // The gateway may close before everything is written.
                let _ = client.send_bytes(bytes);
                let closed = client.expect_close(LONG);
                let is_closed = matches!(closed, Ok(Closed::Finished | Closed::Reset));
                assert!(is_closed, "{}: {closed:?}", bytes[..bytes.len().min(50)].escape_ascii());
            }
        }
        let ends = 2 * cases.len() as u64;
        eventually("ends", || field.ended(CloseReason::ProxyHeader) == ends);
    });
}

#[test]
fn silent_and_slow_proxies_hold_up_nobody_and_have_a_deadline() {
    let settings = [&EXPECTED[..], &[("pitaya.gateway.handshake.timeout", "1s")]].concat();
    under_attack(&settings, |field| {
        let mut stuck: Vec<RawClient> = Vec::new();
        for front in [&b""[..], b"P", b"PROXY TCP4 192.0.2.1 ", SIGNATURE, b"\r\n"] {
            for to in [field.tcp_address(), field.ws_address()].repeat(5) {
                let mut client = connect_from([127, 0, 0, 1], to);
                client.send_bytes(front).unwrap();
                stuck.push(client);
            }
        }
        // Whoever comes behind them is served at once, not after them.
        for mut client in field.established() {
            assert_eq!(client.request("room.test.echo", b"x").unwrap().payload, b"x");
        }
        for client in &mut stuck {
            client.expect_close(LONG).unwrap();
        }
        eventually("ends", || field.ended(CloseReason::HandshakeTimeout) == stuck.len() as u64);
    });
}

#[test]
fn a_header_that_is_cut_is_told_from_a_probe_of_the_port() {
    under_attack(&EXPECTED, |field| {
        for (front, reason) in
            [(&b""[..], CloseReason::PeerClosed), (b"PROXY TCP4 1", CloseReason::ProxyHeader)]
        {
            for to in [field.tcp_address(), field.ws_address()] {
                let mut client = connect_from([127, 0, 0, 1], to);
                client.send_bytes(front).unwrap();
                client.finish_writing().unwrap();
                client.expect_close(LONG).unwrap();
            }
            eventually("ends", || field.ended(reason) == 2);
        }
    });
}

#[test]
fn who_is_not_trusted_speaks_for_nobody() {
    under_attack(&EXPECTED, |field| {
        for to in [field.tcp_address(), field.ws_address()] {
            let mut client = connect_from([127, 0, 0, 2], to);
            let _ = client.send_bytes(HEADER);
            client.expect_close(LONG).unwrap();
        }
        eventually("ends", || field.ended(CloseReason::ProxyHeader) == 2);
    });
}

#[test]
fn a_header_that_nobody_expects_is_named_in_the_count() {
    under_attack(&[], |field| {
        for header in [HEADER.to_vec(), v2(0x20, 0, b"")] {
            for to in [field.tcp_address(), field.ws_address()] {
                let mut client = connect_from([127, 0, 0, 1], to);
                client.send_bytes(&header).unwrap();
                if to == field.tcp_address() {
                    client.expect_close(LONG).unwrap();
                } else {
                    let answer = client.read_bytes(LONG).unwrap();
                    assert!(answer.starts_with(b"HTTP/1.1 400 "), "{}", answer.escape_ascii());
                }
            }
        }
        eventually("ends", || field.ended(CloseReason::ProxyHeader) == 4);
    });
}

/// An upgraded connection from `from` with these header lines.
fn forwarded(field: &Field, from: [u8; 4], lines: &str) -> RawClient {
    let mut client = connect_from(from, field.ws_address());
    client.set_timeout(LONG);
    client.send_bytes(upgrades::request("/?token=secret", lines).as_bytes()).unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        answer.extend(client.read_bytes(LONG).unwrap());
    }
    assert!(answer.starts_with(b"HTTP/1.1 101 "), "{}", answer.escape_ascii());
    let socket = client.socket().try_clone().unwrap();
    let mut client = RawClient::over(socket, Transport::WebSocket).unwrap();
    client.set_timeout(LONG);
    client
}

#[test]
fn forwarded_addresses_are_believed_of_trusted_proxies_only() {
    let settings = [
        ("pitaya.gateway.proxy.forwarded", "true"),
        ("pitaya.gateway.session.address", "true"),
        ("pitaya.gateway.proxy.trusted", "127.0.0.1,10.0.0.0/8"),
    ];
    let cases = [
        ("X-Forwarded-For: 192.0.2.7\r\n", r#"["ipv4","192.0.2.7"]"#),
        ("X-Forwarded-For: 6.6.6.6, 192.0.2.7, 10.1.1.1\r\n", r#"["ipv4","192.0.2.7"]"#),
        (
            "X-Forwarded-For: 6.6.6.6\r\nX-Forwarded-For: 2001:db8::1\r\n",
            r#"["ipv6","2001:db8::1"]"#,
        ),
        ("X-Real-IP: 192.0.2.8\r\n", r#"["ipv4","192.0.2.8"]"#),
        ("X-Forwarded-For: 192.0.2.7\r\nX-Real-IP: 192.0.2.8\r\n", r#"["ipv4","192.0.2.7"]"#),
        ("X-Forwarded-For: <script>\r\n", r#"["ipv4","127.0.0.1"]"#),
        ("X-Real-IP: 1.2.3.4, 5.6.7.8\r\n", r#"["ipv4","127.0.0.1"]"#),
        ("", r#"["ipv4","127.0.0.1"]"#),
    ];
    under_attack(&settings, |field| {
        for (lines, told) in cases {
            let mut client = forwarded(field, [127, 0, 0, 1], lines);
            assert_eq!(address(&mut client), told, "{lines}");
            let mut client = forwarded(field, [127, 0, 0, 2], lines);
            assert_eq!(address(&mut client), r#"["ipv4","127.0.0.2"]"#, "{lines}");
        }
    });
    under_attack(&[("pitaya.gateway.session.address", "true")], |field| {
        let mut client = forwarded(field, [127, 0, 0, 1], "X-Forwarded-For: 192.0.2.7\r\n");
        assert_eq!(address(&mut client), r#"["ipv4","127.0.0.1"]"#, "nobody said to believe it");
    });
    under_attack(&[], |field| {
        assert_eq!(address(&mut field.tcp()), r#"["ipv4",""]"#, "workers are not told");
    });
}

#[test]
fn the_log_names_the_client_and_not_the_proxy() {
    for driver in crate::local::DRIVERS {
        let process = Process::start(driver, 1_024, &["pitaya.acceptor.proxyprotocol=true"]);
        let mut client = connect_from([127, 0, 0, 1], process.tcp);
        client.send_bytes(HEADER).unwrap();
        client.establish().unwrap();
        client.send_packet(PacketType::Data, b"\0\x01").unwrap();
        client.expect_close(LONG).unwrap();
        eventually("the line", || process.log().contains("192.0.2.1:51234"));
    }
}

#[test]
fn limits_and_bans_go_by_the_client_s_address_and_not_by_the_proxy_s() {
    let settings = [&EXPECTED[..], &[("pitaya.gateway.address.maxconns", "2")]].concat();
    under_attack(&settings, |field| {
        // The well-behaved clients have their two places already, from the same proxy.
        let header = b"PROXY TCP4 192.0.2.9 198.51.100.2 51234 3250\r\n";
        let mut held: Vec<_> = behind(field, header).into_iter().collect();
        for client in &mut held {
            client.establish().unwrap();
        }
        let mut third = connect_from([127, 0, 0, 1], field.tcp_address());
        third.send_bytes(header).unwrap();
        third.expect_close(LONG).unwrap();
        assert_eq!(closed_total(&field.metrics(), CloseReason::AddressLimit), 1);
        let other = b"PROXY TCP4 192.0.2.10 198.51.100.2 51234 3250\r\n";
        for mut client in behind(field, other) {
            client.establish().unwrap();
        }
        administrator::ban(field.admin(), r#"{"subject":"address:192.0.2.9"}"#);
        for client in &mut held {
            client.expect_kick(LONG).unwrap();
        }
        let mut again = connect_from([127, 0, 0, 1], field.tcp_address());
        again.send_bytes(header).unwrap();
        again.expect_close(LONG).unwrap();
    });
}
