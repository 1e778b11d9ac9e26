//! The load generator's command against a server of known behaviour: its figures must add up.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod common;

use std::process::{Command, Stdio};

use client::address::Transport;
use common::{FakeOptions, FakeServer};
use serde_json::Value;

/// Runs to the end and gives the JSON report and whether the command was content.
fn load(url: &str, arguments: &str) -> (Value, bool) {
    let output = Command::new(env!("CARGO_BIN_EXE_client"))
        .args(["load", url, "--json", "-"])
        .args(arguments.split_whitespace())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    let report = serde_json::from_str(&text).unwrap_or_else(|_| panic!("{text}{errors}"));
    (report, output.status.success())
}

fn number(report: &Value, path: &str) -> u64 {
    report.pointer(path).and_then(Value::as_u64).unwrap_or_else(|| panic!("{path} in {report}"))
}

fn server(transport: Transport) -> FakeServer {
    FakeServer::start(FakeOptions { transport, ..FakeOptions::default() })
}

#[test]
fn a_closed_loop_answers_everything_it_sends_over_both_transports() {
    for transport in [Transport::Tcp, Transport::WebSocket] {
        let server = server(transport);
        let arguments = "-c 10 -n 3 -d 300ms --warmup 100ms --threads 2 --payload-bytes 100";
        let (report, is_content) = load(&server.url(), arguments);
        assert!(is_content, "{report}");
        let sent = number(&report, "/requests/sent");
        assert!(sent > 0);
        assert_eq!(number(&report, "/requests/answered"), sent);
        assert_eq!(number(&report, "/errors"), 0);
        assert_eq!(number(&report, "/connections/connected"), 10);
        assert_eq!(number(&report, "/connections/alive"), 10);
        assert!(server.seen().requests as u64 >= sent);
        let times = &report["latency_us"];
        assert!(times["p50"].as_f64() <= times["p99"].as_f64(), "{times}");
        assert!(times["p99"].as_f64() <= times["max"].as_f64(), "{times}");
    }
}

#[test]
fn payloads_larger_than_a_socket_takes_at_once_come_back_whole() {
    for transport in [Transport::Tcp, Transport::WebSocket] {
        let server = server(transport);
        let arguments = "-c 2 -n 3 -d 300ms --warmup 0s --payload-bytes 1000000";
        let (report, is_content) = load(&server.url(), arguments);
        assert!(is_content, "{report}");
        let sent = number(&report, "/requests/sent");
        assert!(sent >= 6, "{report}");
        assert_eq!(number(&report, "/requests/answered"), sent);
        // Each came back with its payload.
        assert!(number(&report, "/bytes_received") > sent * 1_000_000);
    }
}

#[test]
fn an_open_loop_sends_exactly_what_was_due() {
    let server = server(Transport::Tcp);
    let arguments = "-c 5 --rate 1000 -d 500ms --warmup 100ms --threads 2 -n 500";
    let (report, is_content) = load(&server.url(), arguments);
    assert!(is_content, "{report}");
    assert_eq!(number(&report, "/requests/sent"), 500);
    assert_eq!(number(&report, "/requests/answered"), 500);
    assert!(report["send_delay_us"]["p50"].is_number());
}

#[test]
fn a_stalled_server_cannot_hide_what_it_held_up() {
    let server = server(Transport::Tcp);
    // One request at a time, none ever answered: 10 are given up by turns, the others never leave.
    let arguments = "-c 1 --rate 100 -d 1s --warmup 0s --timeout 200ms --route room.test.silent";
    let (report, is_content) = load(&server.url(), arguments);
    assert!(!is_content);
    let [sent, failed, unsent] = ["/requests/sent", "/requests/failed", "/requests/unsent"]
        .map(|path| number(&report, path));
    assert_eq!(sent + unsent, 100);
    assert_eq!(failed, sent);
    assert!(unsent > 50, "{report}");
    assert_eq!(number(&report, "/requests/errors/PIT-504"), failed);
    assert_eq!(number(&report, "/errors"), 100);
}

#[test]
fn error_replies_are_counted_by_code_and_may_be_allowed() {
    let server = server(Transport::WebSocket);
    let arguments = "-c 2 -d 100ms --warmup 0s --route room.test.error";
    let (report, is_content) = load(&server.url(), arguments);
    assert!(!is_content);
    let sent = number(&report, "/requests/sent");
    assert!(sent > 0);
    assert_eq!(number(&report, "/requests/errors/PIT-404"), sent);
    let (_, is_content) = load(&server.url(), &format!("{arguments} --max-errors 10000000"));
    assert!(is_content);
}

#[test]
fn lost_connections_are_counted_with_their_cause_and_their_requests() {
    for (route, cause) in [("room.test.kick", "kicked"), ("room.test.garbage", "protocol")] {
        let server = server(Transport::Tcp);
        let arguments = format!("-c 3 -n 2 -d 100ms --warmup 0s --route {route}");
        let (report, is_content) = load(&server.url(), &arguments);
        assert!(!is_content);
        assert_eq!(number(&report, &format!("/connections/lost/{cause}")), 3);
        assert_eq!(number(&report, "/requests/sent"), 6);
        assert_eq!(number(&report, "/requests/errors/closed"), 6);
        assert_eq!(number(&report, "/connections/alive"), 0);
    }
}

#[test]
fn refused_connects_and_handshakes_are_counted_and_end_the_run() {
    let refusing = FakeServer::start(FakeOptions { handshake_code: 400, ..FakeOptions::default() });
    let (report, is_content) = load(&refusing.url(), "-c 3 -d 10s");
    assert!(!is_content);
    assert_eq!(number(&report, "/connections/failed/handshake-400"), 3);
    let address = refusing.address;
    drop(refusing);
    let (report, is_content) = load(&format!("tcp://{address}"), "-c 3 -d 10s");
    assert!(!is_content);
    assert_eq!(number(&report, "/connections/failed/refused"), 3);
}

#[test]
fn notifies_are_sent_at_their_rate() {
    let server = server(Transport::Tcp);
    let (report, is_content) =
        load(&server.url(), "-c 2 --notify --rate 200 -d 500ms --warmup 0s --route room.test.note");
    assert!(is_content, "{report}");
    assert_eq!(number(&report, "/requests/sent"), 100);
    server.wait_for("the notifies", |seen| seen.notifies.len() == 100);
}

#[test]
fn idle_connections_only_send_heartbeats() {
    let server = FakeServer::start(FakeOptions { heartbeat_s: 1, ..FakeOptions::default() });
    let (report, is_content) = load(&server.url(), "-c 20 --idle -d 1500ms --warmup 0s");
    assert!(is_content, "{report}");
    assert_eq!(number(&report, "/connections/alive"), 20);
    assert!(number(&report, "/heartbeats") >= 20);
    assert_eq!(number(&report, "/requests/sent"), 0);
    assert_eq!(server.seen().requests, 0);
    server.wait_for("the heartbeats", |seen| seen.heartbeats >= 20);
}

#[test]
fn players_join_before_the_load_starts_and_only_senders_send() {
    for transport in [Transport::Tcp, Transport::WebSocket] {
        let server = server(transport);
        // Nobody answers, so that a sender sends what it may have in flight, and no more.
        let arguments = "-c 10 -n 3 --senders 2 --route room.test.silent --join room.test.echo \
            --join-payload {n} -d 200ms --warmup 0s --timeout 400ms --threads 2";
        let (report, _) = load(&server.url(), arguments);
        assert_eq!(number(&report, "/connections/connected"), 10);
        assert_eq!(number(&report, "/connections/alive"), 10);
        assert_eq!(number(&report, "/requests/sent"), 2 * 3);
        assert_eq!(server.seen().requests, 10 + 2 * 3);
    }
    let server = server(Transport::Tcp);
    let arguments = "-c 3 --join room.test.error -d 100ms --warmup 0s";
    let (report, is_content) = load(&server.url(), arguments);
    assert!(!is_content);
    assert_eq!(number(&report, "/connections/connected"), 0);
    assert_eq!(number(&report, "/connections/failed/join-PIT-404"), 3);
}

#[test]
fn compressed_answers_codes_for_routes_and_split_packets_are_understood() {
    let routes = vec![("room.test.push", 7), ("onMessage", 9)];
    let server =
        FakeServer::start(FakeOptions { routes, is_compressing: true, ..FakeOptions::default() });
    let arguments = "-c 2 -d 200ms --warmup 0s --payload-bytes 2000 --route room.test.push";
    let (report, is_content) = load(&server.url(), arguments);
    assert!(is_content, "{report}");
    assert!(number(&report, "/pushes") >= number(&report, "/requests/answered"));
    assert!(server.seen().flags.iter().all(|flag| *flag == 0x01));
    let arguments = "-c 2 -d 200ms --warmup 0s --payload-bytes 20 --route room.test.split";
    let (report, is_content) = load(&server.url(), arguments);
    assert!(is_content, "{report}");
    assert!(number(&report, "/requests/answered") > 0);
}

#[cfg(target_os = "linux")]
#[test]
fn processes_are_measured_and_an_unknown_one_is_refused() {
    let server = server(Transport::Tcp);
    let own = std::process::id();
    let (report, _) = load(&server.url(), &format!("-c 4 -d 200ms --pid server={own}"));
    let processes = report["processes"].as_array().unwrap();
    assert_eq!(processes.len(), 2);
    assert_eq!(processes[0]["name"], "load");
    assert_eq!(processes[1]["name"], "server");
    for process in processes {
        assert!(process["cpu_us_per_request"].is_number(), "{process}");
        assert!(process["rss_bytes_end"].as_u64().unwrap() > 0);
    }
    let output = Command::new(env!("CARGO_BIN_EXE_client"))
        .args(["load", &server.url(), "--pid", "gone=4294967295"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn a_report_for_people_goes_to_standard_output_and_the_json_to_its_file() {
    let server = server(Transport::Tcp);
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("report.json");
    let output = Command::new(env!("CARGO_BIN_EXE_client"))
        .args(["load", &server.url(), "-c", "2", "-d", "100ms", "--warmup", "0s", "--json"])
        .arg(&file)
        .output()
        .unwrap();
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("latency") && text.contains("p99.9"), "{text}");
    // Without a terminal there is no progress line.
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    let report: Value = serde_json::from_str(&std::fs::read_to_string(file).unwrap()).unwrap();
    assert_eq!(report["mode"], "closed");
}
