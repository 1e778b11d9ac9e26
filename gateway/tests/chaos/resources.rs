//! What machine and network can do to a gateway: a log that cannot be written, a clock that is set, a process that is
//! paused, a way to the players that loses what it carries.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use client::raw::RawClient;
use shared::packet::PacketType;
use tempfile::TempDir;

use crate::fault_proxy::FaultProxy;
use crate::process::{GatewayProcess, SOON, until};
use crate::servers::guarded;

fn flags(driver: &str, more: &[&str]) -> Vec<String> {
    let driver = format!("pitaya.gateway.driver={driver}");
    let all = ["--demo", "--test-routes", "--set", &driver];
    all.iter().chain(more).map(ToString::to_string).collect()
}

fn established(gateway: &GatewayProcess) -> RawClient {
    let mut client = RawClient::connect_tcp(gateway.tcp).unwrap();
    client.set_timeout(SOON);
    client.establish().unwrap();
    client
}

fn echo(client: &mut RawClient) {
    assert_eq!(client.request("room.test.echo", b"x").unwrap().payload, b"x");
}

/// Has the gateway close a connection, and log it.
fn be_a_nuisance(gateway: &GatewayProcess) {
    let mut bad = RawClient::connect_tcp(gateway.tcp).unwrap();
    let _ = bad.send_packet(PacketType::Handshake, b"{");
    let _ = bad.read_to_close(SOON);
}

#[test]
fn a_full_disk_under_the_log_costs_lines_and_nothing_else() {
    for driver in ["uring", "epoll"] {
        let place = TempDir::new().unwrap();
        let ports = place.path().join("ports");
        let full = || std::fs::File::options().write(true).open("/dev/full").unwrap();
        let mut command = guarded::command(env!("CARGO_BIN_EXE_gateway"));
        command.args(flags(driver, &["--set", "pitaya.log.level=debug"]));
        command.args(["--tcp", "127.0.0.1:0", "--ws", "127.0.0.1:0", "--threads", "1"]);
        command.args(["--set", "pitaya.admin.listen=127.0.0.1:0"]);
        command.arg("--ports-file").arg(&ports);
        command.stdin(Stdio::null()).stdout(full()).stderr(full());
        let mut child = guarded::spawn(command).unwrap();
        until("it serves", || {
            assert!(child.try_wait().unwrap().is_none(), "{driver}: ended at start");
            ports.exists()
        });
        let text = std::fs::read_to_string(&ports).unwrap();
        let ports: serde_json::Value = serde_json::from_str(&text).unwrap();
        let tcp: std::net::SocketAddr = ports["tcp"].as_str().unwrap().parse().unwrap();
        let mut good = RawClient::connect_tcp(tcp).unwrap();
        good.establish().unwrap();
        for _ in 0..50 {
            let mut bad = RawClient::connect_tcp(tcp).unwrap();
            let _ = bad.send_packet(PacketType::Handshake, b"{");
            let _ = bad.read_to_close(SOON);
            echo(&mut good);
        }
        assert!(child.try_wait().unwrap().is_none(), "{driver}: it ended");
        child.kill().unwrap();
        child.wait().unwrap();
    }
}

/// Whoever reads the log has stopped: the pipe is full, and stays so.
#[test]
fn a_log_that_nobody_reads_holds_nobody_up() {
    for driver in ["uring", "epoll"] {
        let place = TempDir::new().unwrap();
        let ports = place.path().join("ports");
        let mut command = guarded::command(env!("CARGO_BIN_EXE_gateway"));
        command.args(flags(driver, &["--set", "pitaya.log.level=debug"]));
        command.args(["--tcp", "127.0.0.1:0", "--ws", "127.0.0.1:0", "--threads", "1"]);
        command.args(["--set", "pitaya.admin.listen=127.0.0.1:0"]);
        command.arg("--ports-file").arg(&ports);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = guarded::spawn(command).unwrap();
        let unread = child.stderr.take().unwrap();
        until("it serves", || ports.exists());
        let text = std::fs::read_to_string(&ports).unwrap();
        let ports: serde_json::Value = serde_json::from_str(&text).unwrap();
        let tcp: std::net::SocketAddr = ports["tcp"].as_str().unwrap().parse().unwrap();
        let mut good = RawClient::connect_tcp(tcp).unwrap();
        good.set_timeout(SOON);
        good.establish().unwrap();
        // Some 400 bytes a line and one of 64 KiB for the pipe; refused handshakes are logged each.
        for _ in 0..600 {
            let mut bad = RawClient::connect_tcp(tcp).unwrap();
            let _ = bad.send_packet(PacketType::Handshake, b"{");
            let _ = bad.read_to_close(SOON);
        }
        let begun = Instant::now();
        (0..50).for_each(|_| echo(&mut good));
        assert!(begun.elapsed() < Duration::from_secs(10), "{driver}: {:?}", begun.elapsed());
        let id = child.id().to_string();
        // It also ends when asked to, with the log still full.
        Command::new("kill").args(["-TERM", &id]).status().unwrap();
        until("it ends", || child.try_wait().unwrap().is_some());
        drop(unread);
    }
}

/// The shim that sets the wall clock of one process: a library that stands before the system's own.
fn clock_shim(place: &Path) -> PathBuf {
    let (source, library) = (place.join("step.c"), place.join("step.so"));
    std::fs::write(&source, include_str!("step.c")).unwrap();
    let made = Command::new("cc")
        .args(["-shared", "-fPIC", "-o"])
        .args([&library, &source])
        .status()
        .expect("cc, which Rust links with");
    assert!(made.success(), "the shim does not compile");
    library
}

#[test]
fn a_wall_clock_that_is_set_by_an_hour_either_way_disturbs_nobody() {
    let place = TempDir::new().unwrap();
    let offset = place.path().join("offset");
    std::fs::write(&offset, "0").unwrap();
    let environment = [
        ("LD_PRELOAD".to_owned(), clock_shim(place.path()).to_str().unwrap().to_owned()),
        ("CLOCK_OFFSET_FILE".to_owned(), offset.to_str().unwrap().to_owned()),
    ];
    for driver in ["uring", "epoll"] {
        let short = ["--set", "pitaya.heartbeat.interval=1s", "--set", "pitaya.log.level=debug"];
        let gateway = GatewayProcess::start(&flags(driver, &short), &environment);
        let mut clients: Vec<RawClient> = (0..4).map(|_| established(&gateway)).collect();
        let mut slow = established(&gateway);
        for seconds in [3_600, -3_600, 0, 86_400, 0] {
            std::fs::write(&offset, seconds.to_string()).unwrap();
            let id = slow.send_request("room.test.sleep", br#"{"ms":300}"#).unwrap();
            let begun = Instant::now();
            // Long enough for every deadline to be looked at: heartbeats, idle clients, requests.
            while begun.elapsed() < Duration::from_millis(1_200) {
                for client in &mut clients {
                    echo(client);
                    client.heartbeat().unwrap();
                }
                std::thread::sleep(Duration::from_millis(50));
            }
            assert!(!slow.read_response(id, SOON).unwrap().is_error, "{driver}: {seconds}");
            slow.heartbeat().unwrap();
            be_a_nuisance(&gateway);
        }
        assert_eq!(gateway.counter("pitaya_acceptor_closed_total"), 5, "{driver}: the nuisances");
        // The steps were real: the log, which shows the wall clock, has seen tomorrow.
        let log = gateway.program.log();
        let days: BTreeSet<&str> = log
            .split("\"timestamp\":\"")
            .skip(1)
            .filter_map(|rest| rest.split('T').next())
            .collect();
        assert!(days.len() >= 2, "{driver}: {days:?}");
    }
}

/// Longer than a client may be silent. What clients said meanwhile lies in the kernel and counts.
#[test]
fn a_gateway_that_is_paused_kicks_nobody_who_was_not_silent() {
    for driver in ["uring", "epoll"] {
        let short = ["--set", "pitaya.heartbeat.interval=1s"];
        let gateway = GatewayProcess::start(&flags(driver, &short), &[]);
        let mut clients: Vec<RawClient> = (0..8).map(|_| established(&gateway)).collect();
        clients.iter_mut().for_each(echo);
        gateway.program.signal("STOP");
        let ids: Vec<u64> = clients
            .iter_mut()
            .map(|client| client.send_request("room.test.echo", b"while paused").unwrap())
            .collect();
        for _ in 0..8 {
            std::thread::sleep(Duration::from_millis(500));
            for client in &mut clients {
                client.heartbeat().unwrap();
            }
        }
        gateway.program.signal("CONT");
        let begun = Instant::now();
        for (client, id) in clients.iter_mut().zip(ids) {
            assert_eq!(client.read_response(id, SOON).unwrap().payload, b"while paused");
        }
        println!("{driver}: all answered {:?} after the pause", begun.elapsed());
        clients.iter_mut().for_each(echo);
        assert_eq!(gateway.counter("pitaya_acceptor_closed_total"), 0, "{driver}");
        assert_eq!(gateway.counter("pitaya_reactor_stalls_total"), 0, "{driver}: all stood still");
    }
}

#[test]
fn packet_loss_on_the_way_to_a_client_slows_it_down_and_all_of_it_ends_it() {
    for driver in ["uring", "epoll"] {
        let short = ["--set", "pitaya.heartbeat.interval=1s"];
        let gateway = GatewayProcess::start(&flags(driver, &short), &[]);
        let proxy = FaultProxy::start(gateway.tcp);
        let mut client = RawClient::connect_tcp(proxy.address()).unwrap();
        client.set_timeout(SOON);
        client.establish().unwrap();
        for percent in [10, 40] {
            proxy.lose(percent);
            for number in 0..2_u8 {
                client.heartbeat().unwrap();
                let answer = client.request("room.test.echo", &[number]).unwrap();
                assert_eq!(answer.payload, [number], "{driver}: {percent} %");
            }
        }
        assert_eq!(gateway.counter("pitaya_acceptor_closed_total"), 0, "{driver}");
        proxy.lose(100);
        let _ = client.heartbeat();
        until("a client that nothing comes from is closed", || {
            gateway.counter("pitaya_acceptor_closed_total") == 1
        });
        let (_, page) = crate::process::http_get(gateway.admin, "/metrics").unwrap();
        let line = page.lines().find(|line| {
            line.starts_with("pitaya_acceptor_closed_total") && line.contains("idle_timeout")
        });
        assert!(line.is_some_and(|line| line.ends_with(" 1")), "{driver}: {line:?}");
        until("it is gone", || gateway.counter("pitaya_acceptor_connected_clients") == 0);
    }
}
