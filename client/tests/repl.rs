//! The interactive client, driven through pipes and files as scripts drive it.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod common;

use std::io::Write;
use std::process::{Command, Stdio};

use client::address::Transport;
use common::{FakeOptions, FakeServer};
use shared::error::Serializer;

/// Runs the commands; gives what was printed and whether the exit code was 0.
fn repl(arguments: &[&str], commands: &str) -> (String, bool) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_client"))
        .arg("repl")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .unwrap();
    // The child may have left before it read everything.
    let _ = child.stdin.take().unwrap().write_all(commands.as_bytes());
    let output = child.wait_with_output().unwrap();
    (String::from_utf8(output.stdout).unwrap(), output.status.success())
}

fn server(transport: Transport) -> FakeServer {
    FakeServer::start(FakeOptions { transport, ..FakeOptions::default() })
}

/// The lines, without the times at their ends.
fn lines(text: &str) -> Vec<&str> {
    text.lines()
        .map(|line| {
            line.rsplit_once(' ')
                .filter(|_| line.ends_with(" ms]"))
                .map_or(line, |(head, _)| head.rsplit_once(' ').unwrap().0)
        })
        .collect()
}

#[test]
fn requests_notifies_and_pushes_are_printed_in_order_over_both_transports() {
    for transport in [Transport::Tcp, Transport::WebSocket] {
        let server = server(transport);
        // Without a scheme both are tried.
        let commands = format!(
            "connect {}\n\
             request room.test.echo {{\"a\": [1, 2]}}\n\
             notify room.test.note {{\"n\": 1}}\n\
             watch onNotify\n\
             request room.test.error\n\
             disconnect\n\
             exit\n\
             request never.sent\n",
            server.address
        );
        let (text, is_content) = repl(&[], &commands);
        assert!(is_content, "{text}");
        let lines = lines(&text);
        assert!(
            lines[0].starts_with(&format!("connected! ({transport}, json, heartbeat 30 s")),
            "{text}"
        );
        assert_eq!(lines[1], "sv->{\"a\": [1, 2]} [room.test.echo");
        assert_eq!(lines[2], "sv->{\"n\": 1} [push onNotify]");
        assert!(
            lines[3].starts_with("sv->{\"code\":\"PIT-404\",\"msg\":\"pitaya/handler: "),
            "{text}"
        );
        assert!(lines[3].ends_with("[room.test.error error"), "{text}");
        assert_eq!(lines.len(), 4);
    }
}

#[test]
fn a_watch_waits_for_as_many_pushes_as_asked_and_says_when_they_do_not_come() {
    let server = server(Transport::Tcp);
    let commands = format!(
        "connect tcp://{}\nrequest room.test.flood x\nwatch onFlood 60\nwatch onFlood 40\nwatch onFlood 1 0.02\n",
        server.address
    );
    let (text, is_content) = repl(&[], &commands);
    assert!(!is_content);
    assert_eq!(text.matches("sv->x [push onFlood]").count(), 100);
    assert!(text.ends_with("error: only 0 of 1 pushes onFlood came within 20ms\n"), "{text}");
}

#[test]
fn json_is_spread_over_lines_on_wish() {
    let server = server(Transport::Tcp);
    let commands =
        format!("connect {}\nrequest room.test.echo {{\"b\":1,\"a\":{{}}}}\n", server.url());
    let (text, is_content) = repl(&["--pretty"], &commands);
    assert!(is_content);
    assert!(text.contains("sv->{\n\t\"a\": {},\n\t\"b\": 1\n} [room.test.echo "), "{text}");
}

#[test]
fn the_handshake_is_pitaya_clis_until_it_is_changed() {
    let server = server(Transport::Tcp);
    let address = server.address;
    let commands = format!(
        "connect {address}\ndisconnect\n\
         sethandshake version 2.0\nsethandshake platform mac\nsethandshake buildNumber 31\nconnect {address}\ndisconnect\n\
         sethandshake {{\"sys\":{{\"platform\":\"ios\"}}, \"user\":{{\"age\":30}}}}\nconnect {address}\n\
         sethandshake {{nonsense\n"
    );
    let (text, is_content) = repl(&[], &commands);
    assert!(!is_content);
    assert!(text.contains("error: invalid handshake"), "{text}");
    let handshakes = server.seen().handshakes;
    assert_eq!(handshakes.len(), 3);
    assert_eq!(handshakes[0]["sys"]["platform"], "repl");
    assert_eq!(handshakes[0]["sys"]["clientVersion"], "1.0.0");
    assert_eq!(handshakes[0]["user"]["client"], "repl");
    assert_eq!(handshakes[1]["sys"]["clientVersion"], "2.0");
    assert_eq!(handshakes[1]["sys"]["platform"], "mac");
    assert_eq!(handshakes[1]["sys"]["clientBuildNumber"], "31");
    assert_eq!(handshakes[2]["sys"]["platform"], "ios");
    assert_eq!(handshakes[2]["user"]["age"], 30);
}

#[test]
fn a_pipe_goes_on_after_a_failure_and_a_file_stops() {
    let server = server(Transport::Tcp);
    let commands = format!(
        "request too.early\njump\n# a comment\n\nconnect {0}\nconnect {0}\nrequest room.test.echo 1\n",
        server.address
    );
    let (text, is_content) = repl(&[], &commands);
    assert!(!is_content);
    assert!(
        text.starts_with(
            "error: not connected\nerror: command not found: jump; try help\nconnected!"
        )
    );
    assert!(text.contains("error: already connected\nsv->1 [room.test.echo "), "{text}");

    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("commands");
    std::fs::write(&file, &commands).unwrap();
    let (text, is_content) = repl(&["--filename", file.to_str().unwrap()], "");
    assert!(!is_content);
    assert_eq!(text, "error: not connected\n");
    std::fs::write(&file, format!("connect {}\nrequest room.test.echo 1", server.address)).unwrap();
    let (text, is_content) = repl(&["-f", file.to_str().unwrap()], "");
    assert!(is_content && text.contains("sv->1 "), "{text}");
}

#[test]
fn a_kick_is_told_and_one_may_connect_again() {
    let server = server(Transport::Tcp);
    let commands = format!(
        "connect {0}\nrequest room.test.kick\nwatch onMessage\nconnect {0}\nrequest room.test.echo 2\n",
        server.address
    );
    let (text, is_content) = repl(&[], &commands);
    assert!(!is_content);
    assert!(text.contains("error: kicked by the server\n"), "{text}");
    assert!(text.contains("disconnected: kicked by the server\n"), "{text}");
    assert!(text.contains("error: the connection ended before 1 pushes onMessage came"), "{text}");
    assert!(text.contains("sv->2 [room.test.echo "), "{text}");
}

#[test]
fn routes_of_the_dictionary_and_those_used_are_known() {
    let server = FakeServer::start(FakeOptions {
        routes: vec![("room.room.join", 3)],
        serializer: Serializer::Json,
        ..FakeOptions::default()
    });
    let commands = format!(
        "connect {}\nrequest room.test.push {{}}\nwatch onMessage\nroutes\nhelp\nclear\n",
        server.address
    );
    let (text, is_content) = repl(&[], &commands);
    assert!(is_content, "{text}");
    assert!(text.contains("\nonMessage\nroom.room.join\nroom.test.push\n"), "{text}");
    assert!(text.contains("sethandshake JSON"), "{text}");
}

#[test]
fn an_address_that_nobody_listens_on_fails_at_once() {
    let server = server(Transport::Tcp);
    let address = server.address;
    drop(server);
    let (text, is_content) =
        repl(&[], &format!("connect {address}\nconnect wss://{address}\nconnect\n"));
    assert!(!is_content);
    assert_eq!(text.matches("error: cannot connect: ").count(), 2, "{text}");
}

#[test]
fn a_protobuf_server_is_talked_to_in_json_by_its_own_documentation() {
    let server = FakeServer::start(FakeOptions {
        serializer: Serializer::Protobuf,
        ..FakeOptions::default()
    });
    let commands = format!(
        "push onMessage protos.Say\nconnect {}\n\
         request room.test.push {{\"text\": \"hi\", \"number\": \"5\"}}\nwatch onMessage\n\
         request room.test.echo\n\
         request room.test.error\n\
         push onMessage protos.Say\n\
         request room.test.echo {{\"txt\": 1}}\n\
         routes\n",
        server.address
    );
    let (text, is_content) = repl(&["--docs", "room.test.docs"], &commands);
    assert!(!is_content);
    assert!(text.contains("sv->{\"number\":\"5\",\"text\":\"hi\"} [room.test.push "), "{text}");
    assert!(text.contains("sv->{\"number\":\"5\",\"text\":\"hi\"} [push onMessage]"), "{text}");
    assert!(text.contains("sv->{} [room.test.echo "), "{text}");
    assert!(text.contains("sv->{\"code\":\"PIT-404\""), "{text}");
    assert!(text.contains("error: use this command before connect"), "{text}");
    assert!(text.contains("error: protos.Say has no field txt"), "{text}");
    assert!(text.contains("\nroom.test.descriptors\n"), "{text}");
}
