//! What an attack may cost the process: descriptors, log, memory (hostile inputs 1, 2.2 and 2.3).

use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use client::raw::RawClient;
use shared::compression::Deflater;
use shared::packet::PacketType;

use crate::field::{LONG, eventually, reset};
use crate::local::DRIVERS;
use crate::process::Process;
use crate::tls::{self, Identity};

fn established(process: &Process) -> RawClient {
    let mut client = RawClient::connect_tcp(process.tcp).unwrap();
    client.set_timeout(LONG);
    client.establish().unwrap();
    client
}

fn echo(client: &mut RawClient) {
    assert_eq!(client.request("room.test.echo", b"x").unwrap().payload, b"x");
}

#[test]
fn without_descriptors_accepting_rests_and_the_players_play_on() {
    for driver in DRIVERS {
        let process = Process::start(driver, 80, &[]);
        let mut good = established(&process);
        // All of these connect, in the kernel's queue at least.
        let crowd: Vec<_> = (0..150).map(|_| TcpStream::connect(process.tcp).unwrap()).collect();
        eventually("the descriptors are used up", || process.descriptors() >= 79);
        let (ticks, since) = (process.cpu_ticks(), Instant::now());
        while since.elapsed() < Duration::from_secs(2) {
            echo(&mut good);
            std::thread::sleep(Duration::from_millis(50));
        }
        let used = process.cpu_ticks() - ticks;
        assert!(used < 50, "{driver}: {used} of 200 ticks: it spins");
        let lines = process.log().lines().filter(|line| line.contains("accept:")).count();
        assert!(
            (1..=5).contains(&lines),
            "{driver}: {lines} lines in two seconds\n{}",
            process.log()
        );
        drop(crowd);
        let mut late = established(&process);
        echo(&mut late);
        echo(&mut good);
    }
}

#[test]
fn a_flood_of_bad_connections_is_no_flood_of_lines_and_quotes_nobody() {
    for driver in DRIVERS {
        let process =
            Process::start(driver, 4_096, &["pitaya.log.level=debug", "pitaya.log.format=text"]);
        let mut good = established(&process);
        for round in 0..600 {
            let mut bad = RawClient::connect_tcp(process.tcp).unwrap();
            match round % 4 {
                0 => bad.send_bytes(b"\xff\x1b[31mpainted\n").unwrap(),
                1 => bad
                    .send_packet(
                        PacketType::Handshake,
                        b"{\"sys\":{\"platform\":\"\x1b[31mpainted\n\"",
                    )
                    .unwrap(),
                2 => bad.send_packet(PacketType::Data, b"painted").unwrap(),
                _ => {
                    bad.establish().unwrap();
                    bad.send_packet(PacketType::Data, b"\x10\x07\x01apainted").unwrap();
                }
            }
            // Waited for, so that the flood is one of ends and not of connections alone.
            let _ = bad.read_to_close(LONG).unwrap();
        }
        let mut painter = established(&process);
        for route in
            ["a\u{1b}[31mpainted.b", "a.b\r\npainted", "a.painted\u{2028}.b", &"painted".repeat(36)]
        {
            assert!(painter.request(route, b"painted").unwrap().is_error);
        }
        painter.request("room.test.bind", br#"{"name":"\u001b[31mpainted\n"}"#).unwrap();
        let web = RawClient::connect_ws(process.ws, "/painted?token=painted").unwrap();
        drop(web);
        echo(&mut good);
        let log = process.log();
        assert!(log.len() < 200_000, "{driver}: {} bytes of log", log.len());
        assert!(!log.contains("painted"), "{driver}: {log}");
        assert!(!log.contains('\u{1b}'), "{driver}: {log}");
    }
}

#[test]
fn memory_follows_what_arrived_and_not_what_was_announced_or_deflated() {
    let bomb = Deflater::new().deflate(&vec![0; 60 << 20], 0).unwrap().to_vec();
    let bomb = [b"\x10\x07\x0eroom.test.echo", &bomb[..]].concat();
    for driver in DRIVERS {
        let process = Process::start(driver, 4_096, &["pitaya.gateway.packet.maxbytes=16777215"]);
        let mut good = established(&process);
        echo(&mut good);
        let before = process.resident_bytes();
        let announced = [b"\x01\xff\xff\xff", &[b' '; 4_096][..]].concat();
        let mut held: Vec<_> =
            (0..200).map(|_| RawClient::connect_tcp(process.tcp).unwrap()).collect();
        for client in &mut held {
            client.send_bytes(&announced).unwrap();
        }
        for _ in 0..8 {
            let mut bomber = established(&process);
            bomber.send_packet(PacketType::Data, &bomb).unwrap();
            bomber.expect_close(LONG).unwrap();
        }
        let grown = process.resident_bytes().saturating_sub(before);
        assert!(
            grown < 24 << 20,
            "{driver}: {grown} bytes more for 800 KiB received and 8 MiB inflated"
        );
        drop(held);
        echo(&mut good);
    }
}

/// One round of everything that begins something and does not finish it.
fn attack(process: &Process, tls: SocketAddr, identity: &Identity, bomb: &[u8]) {
    let config = identity.client();
    let begun: Vec<RawClient> = (0..40)
        .map(|number| {
            let is_web_socket = number % 2 == 0;
            let mut client = if is_web_socket {
                RawClient::connect_ws(process.ws, "/").unwrap()
            } else {
                RawClient::connect_tcp(process.tcp).unwrap()
            };
            if number % 4 > 1 {
                client.establish().unwrap();
                for id in 0..50_u32 {
                    client.send_request("room.test.echo", &id.to_be_bytes()).unwrap();
                }
            }
            // Half a packet, half a frame, fragments, or a bomb. The gateway may have closed already.
            let _ = match number % 5 {
                0 => client.send_bytes(b"\x04\0\xff\xff half a packet"),
                1 => client
                    .send_bytes(&[&b"\x02\xfe\xff\xff\0\0\0\0"[..], &vec![7; 60_000]].concat()),
                2 => client.send_bytes(&b"\0\x80\0\0\0\0".repeat(2_000)),
                3 => client.send_packet(PacketType::Data, bomb),
                _ => client.send_packet(PacketType::Handshake, &[b'['; 10_000]),
            };
            client
        })
        .collect();
    for number in 0..20_usize {
        let mut secured = tls::connect(tls, &config).unwrap();
        secured.establish().unwrap();
        let _ = secured.send_bytes(&vec![4; number * 1_000]);
        let _ = secured.socket().write_all(b"\x17\x03\x03\x40\0half a record");
        if number % 2 == 0 {
            reset(secured.socket());
        }
        let mut plain = TcpStream::connect(tls).unwrap();
        plain.write_all(b"\x16\x03\x01\x02\0\x01\0").unwrap();
    }
    for client in begun.iter().step_by(3) {
        reset(client.socket());
    }
}

#[test]
fn the_same_attacks_again_cost_no_more_memory_and_no_descriptor() {
    let bomb = Deflater::new().deflate(&vec![0; 8 << 20], 0).unwrap().to_vec();
    let bomb = [b"\x10\x07\x0eroom.test.echo", &bomb[..]].concat();
    for driver in DRIVERS {
        let identity = Identity::new();
        let [certificate, key] = identity.settings().map(|(key, value)| format!("{key}={value}"));
        let settings = [certificate.as_str(), key.as_str(), "pitaya.gateway.tls.tcp=127.0.0.1:0"];
        let process = Process::start(driver, 4_096, &settings);
        let tls = process.tls.expect("a port with TLS");
        let mut good = established(&process);
        let descriptors = process.descriptors();
        let mut round = || {
            attack(&process, tls, &identity, &bomb);
            echo(&mut good);
            eventually("all are gone", || process.descriptors() == descriptors);
            process.resident_bytes()
        };
        // The first rounds fill pools and tables that stay.
        let before = (0..4).map(|_| round()).max().unwrap();
        let after = (0..8).map(|_| round()).min().unwrap();
        let grown = after.saturating_sub(before);
        assert!(grown < 1 << 20, "{driver}: {grown} bytes more after the same again");
    }
}

#[test]
fn an_idle_session_costs_little_memory() {
    const SESSIONS: usize = 1_000;
    for driver in DRIVERS {
        let process = Process::start(driver, 4_096, &[]);
        let mut first: Vec<_> = (0..100).map(|_| established(&process)).collect();
        let before = process.resident_bytes();
        let idle: Vec<_> = (0..SESSIONS).map(|_| established(&process)).collect();
        echo(&mut first[0]);
        let grown = process.resident_bytes().saturating_sub(before);
        assert!(grown < SESSIONS * 8_192, "{driver}: {} bytes a session", grown / SESSIONS);
        drop(idle);
    }
}

#[test]
fn secrets_are_neither_printed_nor_logged() {
    let directory = tempfile::TempDir::new().unwrap();
    let file = directory.path().join("token");
    std::fs::write(&file, "s3cret-of-a-file\n").unwrap();
    let file = format!("pitaya.admin.token.file={}", file.display());
    let secrets = [
        "pitaya.nats.password=s3cret-given",
        "pitaya.nats.user=ann",
        "pitaya.cluster.sd.etcd.pass=s3cret-given",
        "pitaya.cluster.rpc.client.nats.connect=nats://ann:s3cret-given@127.0.0.1:4222",
        &file,
    ];
    for format in ["text", "toml", "env", "md"] {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_gateway"));
        command.args(["--demo", "--print-config", "--format", format]);
        for secret in secrets {
            command.args(["--set", secret]);
        }
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let printed = [output.stdout, output.stderr].concat();
        assert!(!String::from_utf8(printed).unwrap().contains("s3cret"), "{format}");
    }
    let settings = [&secrets[..], &["pitaya.log.level=trace"]].concat();
    let process = Process::start("epoll", 4_096, &settings);
    echo(&mut established(&process));
    process.reload("pitaya.nats.token = \"s3cret-of-the-reload\"\n");
    eventually("it was read again", || {
        process.log().contains("read again") || process.log().contains("nothing has changed")
    });
    assert!(!process.log().contains("s3cret"), "{}", process.log());
}
