//! Attacks on TLS and through it (hostile inputs 80, and those of 2.1 and 2.3 that TLS could undo).

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::process::{Command, Stdio};
use std::sync::Arc;

use client::raw::RawClient;
use rustls::ClientConnection;
use rustls::pki_types::ServerName;
use shared::close::CloseReason;
use shared::packet::PacketType;

use crate::field::{Field, LONG, eventually, reset, under_attack_secured};
use crate::local::DRIVERS;
use crate::process::Process;
use crate::tls::{self, Identity};

/// The first flight of a good client.
fn hello(identity: &Identity) -> Vec<u8> {
    let name = ServerName::try_from(tls::NAME).unwrap();
    let mut client = ClientConnection::new(identity.client(), name).unwrap();
    let mut bytes = Vec::new();
    client.write_tls(&mut bytes).unwrap();
    bytes
}

fn bare(to: SocketAddr) -> TcpStream {
    let socket = TcpStream::connect(to).unwrap();
    socket.set_read_timeout(Some(LONG)).unwrap();
    socket
}

/// Everything up to the end, which has to come.
fn read_to_end(mut socket: &TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    match socket.read_to_end(&mut bytes) {
        Err(error) if error.kind() != std::io::ErrorKind::ConnectionReset => panic!("{error}"),
        _ => bytes,
    }
}

/// A hello of an old version: no extension, one cipher.
fn old_hello(version: [u8; 2]) -> Vec<u8> {
    let [major, minor] = version;
    let mut body = vec![major, minor];
    body.extend([7; 32]);
    body.extend([0, 0, 2, 0xc0, 0x2f, 1, 0]);
    let mut out = vec![0x16, 3, 1, 0, body.len() as u8 + 4, 1, 0, 0, body.len() as u8];
    out.extend(body);
    out
}

#[test]
fn a_storm_of_hellos_leaves_nothing() {
    under_attack_secured(&[], |field| {
        let hello = hello(field.identity());
        for round in 0..200 {
            let to = if round % 2 == 0 { field.tcp_address() } else { field.ws_address() };
            let mut socket = bare(to);
            socket.write_all(&hello[..hello.len() - [0, 1, 200, 100][round % 4]]).unwrap();
            match round % 3 {
                0 => reset(&socket),
                1 => socket.shutdown(Shutdown::Write).unwrap(),
                _ => {}
            }
        }
        for round in 0..40 {
            let client = if round % 2 == 0 { field.tcp() } else { field.ws() };
            reset(client.socket());
        }
    });
}

#[test]
fn versions_before_1_2_are_refused_with_an_alert() {
    under_attack_secured(&[], |field| {
        let versions = [[3, 0], [3, 1], [3, 2]];
        for version in versions {
            let mut socket = bare(field.tcp_address());
            socket.write_all(&old_hello(version)).unwrap();
            // Fatal: handshake_failure or protocol_version.
            let alert = read_to_end(&socket);
            assert!(matches!(alert[..], [0x15, 3, _, 0, 2, 2, 40 | 70]), "{version:?}: {alert:x?}");
        }
        eventually("ends", || field.ended(CloseReason::Tls) == versions.len() as u64);
    });
}

#[test]
fn a_floor_of_1_3_refuses_1_2() {
    under_attack_secured(&[("pitaya.gateway.tls.minversion", "1.3")], |field| {
        let old = field.identity().client_of(&[&rustls::version::TLS12]);
        assert!(tls::connect(field.tcp_address(), &old).is_err());
        eventually("the end", || field.ended(CloseReason::Tls) == 1);
    });
}

#[test]
fn mutations_of_a_good_hello_do_no_harm() {
    const SEED: u64 = 80;
    under_attack_secured(&[], |field| {
        println!("seed {SEED}");
        let mut random = fastrand::Rng::with_seed(SEED);
        let good = hello(field.identity());
        for _ in 0..300 {
            let mut bytes = good.clone();
            for _ in 0..random.usize(1..6) {
                let at = random.usize(..bytes.len());
                match random.u8(..4) {
                    0 => bytes[at] ^= 1 << random.u8(..8),
                    1 => bytes[at] = random.u8(..),
                    2 => bytes.truncate(at.max(1)),
                    _ => bytes.insert(at, random.u8(..)),
                }
            }
            let mut socket = bare(field.tcp_address());
            let _ = socket.write_all(&bytes);
            let _ = socket.shutdown(Shutdown::Write);
            read_to_end(&socket);
        }
    });
}

#[test]
fn records_of_one_byte_are_served() {
    let all = b"\x01\0\0\x02{}\x02\0\0\0\x04\0\0\x13\0\x01\x0eroom.test.echo{}";
    under_attack_secured(&[], |field| {
        for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
            let config = field.identity().client_of(&[version]);
            let mut client = tls::connect(field.tcp_address(), &config).unwrap();
            for byte in all {
                client.send_bytes(&[*byte]).unwrap();
            }
            assert_eq!(client.read_handshake_response(LONG).unwrap().code, 200);
            assert_eq!(client.read_message(LONG).unwrap().payload, b"{}");
        }
    });
}

#[test]
fn a_flood_of_new_keys_is_ended_and_a_few_are_taken() {
    under_attack_secured(&[], |field| {
        let mut client = field.tcp();
        client.establish().unwrap();
        for _ in 0..5 {
            client.tls().unwrap().refresh_traffic_keys().unwrap();
            assert_eq!(client.request("room.test.echo", b"x").unwrap().payload, b"x");
        }
        let since = std::time::Instant::now();
        while client.tls().unwrap().refresh_traffic_keys().is_ok() && client.send_bytes(b"").is_ok()
        {
            assert!(since.elapsed() < LONG, "new keys are taken for ever");
        }
        eventually("the end", || field.ended(CloseReason::Tls) == 1);
    });
}

#[test]
fn nothing_is_taken_before_the_handshake_is_over() {
    under_attack_secured(&[], |field| {
        let mut config =
            Arc::unwrap_or_clone(field.identity().client_of(&[&rustls::version::TLS13]));
        config.enable_early_data = true;
        let config = Arc::new(config);
        for _ in 0..2 {
            let mut client = tls::connect(field.tcp_address(), &config).unwrap();
            // The second one resumes; a ticket that allowed early data would show here.
            let session = client.tls().unwrap();
            assert!(session.early_data().is_none() && !session.is_early_data_accepted());
            client.establish().unwrap();
            assert_eq!(client.request("room.test.echo", b"x").unwrap().payload, b"x");
        }
        // Early data all the same, behind a hello that announces none.
        let mut socket = bare(field.tcp_address());
        let early = [&hello(field.identity())[..], b"\x17\x03\x03\0\x20", &[7; 32]].concat();
        socket.write_all(&early).unwrap();
        socket.shutdown(Shutdown::Write).unwrap();
        read_to_end(&socket);
        eventually("the end", || field.ended(CloseReason::Tls) == 1);
    });
}

/// With the tool `openssl`, because rustls offers no way to ask for it.
#[test]
fn asking_for_another_handshake_inside_one_is_refused() {
    if Command::new("openssl").arg("version").stdout(Stdio::null()).status().is_err() {
        eprintln!("NOT TESTED: there is no openssl on this machine, which could renegotiate");
        return;
    }
    under_attack_secured(&[], |field| {
        let mut client = Command::new("openssl")
            .args(["s_client", "-tls1_2", "-connect", &field.tcp_address().to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        // A line of R asks for it; the tool ends when it is refused, or goes on asking.
        let mut asking = client.stdin.take().unwrap();
        let since = std::time::Instant::now();
        while field.ended(CloseReason::Tls) == 0 {
            assert!(since.elapsed() < LONG, "it may ask for ever");
            if asking.write_all(b"R\n").and_then(|()| asking.flush()).is_err() {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        client.kill().unwrap();
        client.wait().unwrap();
        eventually("an end", || {
            field.ended(CloseReason::Tls) + field.ended(CloseReason::PeerClosed) == 1
        });
    });
}

/// A reader that has little room in its kernel and uses none of it.
fn lazy(field: &Field) -> [RawClient; 2] {
    let clients = field.established();
    for client in &clients {
        socket2::SockRef::from(client.socket()).set_recv_buffer_size(4_096).unwrap();
    }
    clients
}

#[test]
fn readers_that_do_not_read_are_dropped_under_tls_too() {
    let settings = [
        ("pitaya.buffer.agent.conntimeout", "1s"),
        ("pitaya.handler.messages.compression", "false"),
    ];
    under_attack_secured(&settings, |field| {
        let mut readers: Vec<_> = (0..3).flat_map(|_| lazy(field)).collect();
        for client in &mut readers {
            client.send_request("room.test.noise", br#"{"n":4000,"size":2048}"#).unwrap();
        }
        eventually("all readers are dropped", || {
            readers.retain_mut(|client| client.heartbeat().is_ok());
            readers.is_empty()
        });
    });
}

#[test]
fn what_arrives_before_the_deadline_is_whole_and_in_order_under_tls() {
    let settings = [
        ("pitaya.buffer.agent.conntimeout", "1s"),
        ("pitaya.handler.messages.compression", "false"),
        ("pitaya.gateway.outbox.maxbytes", "16777216"),
    ];
    under_attack_secured(&settings, |field| {
        for mut client in lazy(field) {
            client.send_request("room.test.noise", br#"{"n":7000,"size":1024}"#).unwrap();
            eventually("the deadline ends it", || client.heartbeat().is_err());
            let mut next = 0_u64;
            while let Ok(message) = client.read_message(LONG) {
                assert_eq!(message.payload[..8], next.to_be_bytes());
                next += 1;
            }
            assert!(next < 7_000, "everything arrived");
        }
    });
}

#[test]
fn floods_and_bombs_through_tls_end_as_they_do_without() {
    under_attack_secured(&[], |field| {
        for mut client in field.established() {
            for _ in 0..50 {
                client.send_bytes(&[]).unwrap();
            }
            let _ = client.send_packet(PacketType::Data, &vec![0; 65_537]);
            let _ = client.read_to_close(LONG).unwrap();
        }
        eventually("too large", || field.ended(CloseReason::TooLarge) == 2);
        let mut client = field.tcp();
        client.establish().unwrap();
        for number in 0..2_000_u32 {
            client.notify("room.test.echo", &number.to_be_bytes()).unwrap();
        }
        eventually("it is served again", || {
            client.request("room.test.echo", b"x").unwrap().payload == b"x"
        });
    });
}

/// A gateway process whose ports speak TLS.
fn process(driver: &str, identity: &Identity) -> Process {
    let [(certificate, its_file), (key, its_key)] = identity.settings();
    let settings = [
        format!("{certificate}={its_file}"),
        format!("{key}={its_key}"),
        "pitaya.gateway.tls.tcp=127.0.0.1:0".to_owned(),
        "pitaya.gateway.handshake.timeout=2s".to_owned(),
    ];
    Process::start(driver, 4_096, &settings.each_ref().map(String::as_str))
}

#[test]
fn an_idle_session_with_tls_costs_little_memory_and_half_a_hello_less() {
    const SESSIONS: usize = 400;
    for driver in DRIVERS {
        let identity = Identity::new();
        let process = process(driver, &identity);
        let to = process.tls.expect("a port with TLS");
        let config = identity.client();
        let established = || {
            let mut client = tls::connect(to, &config).unwrap();
            client.set_timeout(LONG);
            client.establish().unwrap();
            client
        };
        let mut first: Vec<_> = (0..50).map(|_| established()).collect();
        let before = process.resident_bytes();
        let idle: Vec<_> = (0..SESSIONS).map(|_| established()).collect();
        assert!(!first[0].request("room.test.echo", b"x").unwrap().is_error);
        let grown = process.resident_bytes().saturating_sub(before);
        println!("{driver}: {} bytes an idle session with TLS", grown / SESSIONS);
        assert!(grown < SESSIONS * 8_192, "{driver}: {} bytes a session", grown / SESSIONS);
        drop(idle);
        let hello = hello(&identity);
        let before = process.resident_bytes();
        let halves: Vec<_> = (0..SESSIONS)
            .map(|_| {
                let mut socket = bare(to);
                socket.write_all(&hello[..hello.len() / 2]).unwrap();
                socket
            })
            .collect();
        let grown = process.resident_bytes().saturating_sub(before);
        assert!(grown < SESSIONS * 16_384, "{driver}: {} bytes a half", grown / SESSIONS);
        for socket in &halves {
            assert_eq!(read_to_end(socket), b"", "the deadline ends it");
        }
        let lines = process.log().lines().count();
        assert!(lines < 50, "{driver}: {lines} lines\n{}", process.log());
    }
}
