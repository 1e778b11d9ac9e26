//! The blocking client for tests: it must show exactly what a server does, and never wait for ever.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod common;

use std::time::Duration;

use client::address::Transport;
use client::raw::{Closed, RawClient, RawError, head};
use client::upgrade::UpgradeRequest;
use common::{FakeOptions, FakeServer, PATIENCE};
use shared::message::MessageType;
use shared::packet::{HEARTBEAT, PacketType};
use shared::websocket::Opcode;

const SHORT: Duration = Duration::from_millis(20);

fn connected(transport: Transport) -> (FakeServer, RawClient) {
    let server = FakeServer::start(FakeOptions { transport, ..FakeOptions::default() });
    let client = RawClient::connect(transport, server.address).unwrap();
    (server, client)
}

#[test]
fn a_handshake_an_ack_and_a_request_work_over_both_transports() {
    for transport in [Transport::Tcp, Transport::WebSocket] {
        let (server, mut client) = connected(transport);
        let response = client.handshake().unwrap();
        assert_eq!((response.code, response.heartbeat_s), (200, 30));
        client.ack().unwrap();
        let answer = client.request("room.test.echo", b"hi").unwrap();
        assert_eq!(
            (answer.kind, answer.id, answer.text()),
            (MessageType::Response, 1, "hi".into())
        );
        assert!(!answer.is_error && !answer.is_compressed);
        client.heartbeat().unwrap();
        server.wait_for("the heartbeat", |seen| seen.heartbeats == 1 && seen.acks == 1);
    }
}

#[test]
fn pushes_met_on_the_way_to_an_answer_are_kept_in_order() {
    let (_server, mut client) = connected(Transport::Tcp);
    client.establish().unwrap();
    client.request("room.test.push", b"one").unwrap();
    client.notify("room.test.note", b"two").unwrap();
    assert_eq!(client.read_push(PATIENCE).unwrap().text(), "one");
    let second = client.read_push(PATIENCE).unwrap();
    assert_eq!((second.route.as_str(), second.text().as_str()), ("onNotify", "two"));
}

#[test]
fn an_error_answer_is_shown_and_not_raised() {
    let (_server, mut client) = connected(Transport::Tcp);
    client.establish().unwrap();
    let answer = client.request("room.test.error", b"").unwrap();
    assert!(answer.is_error);
    assert!(answer.text().contains("PIT-404"));
}

#[test]
fn compressed_handshakes_and_payloads_are_inflated_and_the_dictionary_is_used() {
    let routes = vec![("onMessage", 4), ("room.test.push", 260), ("room.room.leave", 261)];
    let server =
        FakeServer::start(FakeOptions { routes, is_compressing: true, ..FakeOptions::default() });
    let mut client = RawClient::connect_tcp(server.address).unwrap();
    client.establish().unwrap();
    let payload = "a".repeat(500);
    let answer = client.request("room.test.push", payload.as_bytes()).unwrap();
    assert!(answer.is_compressed);
    assert_eq!(answer.text(), payload);
    assert_eq!(client.read_push(PATIENCE).unwrap().route, "onMessage");
    assert_eq!(server.seen().flags, [0x01]);
}

#[test]
fn a_deadline_passes_with_the_name_of_what_was_awaited() {
    let (_server, mut client) = connected(Transport::Tcp);
    client.establish().unwrap();
    let id = client.send_request("room.test.silent", b"").unwrap();
    let error = client.read_response(id, SHORT).unwrap_err();
    assert!(matches!(error, RawError::Timeout { awaited: "response", .. }), "{error}");
    client.expect_silence(SHORT).unwrap();
    assert!(matches!(client.expect_close(SHORT), Err(RawError::Timeout { awaited: "close", .. })));
}

#[test]
fn closes_and_kicks_are_told_apart() {
    for transport in [Transport::Tcp, Transport::WebSocket] {
        let (_server, mut client) = connected(transport);
        client.establish().unwrap();
        client.send_request("room.test.close", b"").unwrap();
        assert_eq!(client.expect_close(PATIENCE).unwrap(), Closed::Finished);
        assert_eq!(client.expect_close(PATIENCE).unwrap(), Closed::Finished);

        let (_server, mut client) = connected(transport);
        client.establish().unwrap();
        client.send_request("room.test.kick", b"").unwrap();
        assert_eq!(client.expect_kick(PATIENCE).unwrap(), Closed::Finished);

        let (_server, mut client) = connected(transport);
        client.establish().unwrap();
        client.send_request("room.test.kick", b"").unwrap();
        let (packets, _) = client.read_to_close(PATIENCE).unwrap();
        assert_eq!(packets.len(), 1);
        assert_eq!(packets[0].kind, PacketType::Kick);
    }
}

#[test]
fn any_bytes_can_be_sent() {
    let (server, mut client) = connected(Transport::Tcp);
    client.establish().unwrap();
    for byte in HEARTBEAT {
        client.send_bytes(&[byte]).unwrap();
    }
    server.wait_for("the heartbeat", |seen| seen.heartbeats == 1);
    client.send_message(&head(MessageType::Request, 300, "room.test.echo"), b"x").unwrap();
    assert_eq!(client.read_response(300, PATIENCE).unwrap().text(), "x");
    client.send_bytes(&[0x16, 0x03, 0x01, 0x00]).unwrap();
    client.expect_close(PATIENCE).unwrap();
}

#[test]
fn frames_below_packets_can_be_sent_and_a_close_is_answered() {
    let (_server, mut client) = connected(Transport::WebSocket);
    client.establish().unwrap();
    client.send_frame(Opcode::Binary, &HEARTBEAT).unwrap();
    client.send_frame(Opcode::Close, &1000_u16.to_be_bytes()).unwrap();
    let closed = client.expect_close(PATIENCE).unwrap();
    assert_eq!(closed, Closed::CloseFrame { code: Some(1000) });
}

#[test]
fn an_upgrade_may_be_any_request_and_its_answer_can_be_read() {
    let (server, client) = connected(Transport::WebSocket);
    drop(client);
    let request = UpgradeRequest::new("game", "/x?y").with_header("Origin", "http://page");
    let mut client = RawClient::connect_tcp(server.address).unwrap().upgrade(&request).unwrap();
    client.establish().unwrap();
    assert_eq!(client.request("room.test.echo", b"x").unwrap().text(), "x");
    let mut client = RawClient::connect_tcp(server.address).unwrap();
    client.send_bytes(request.bytes()).unwrap();
    let answer = client.read_bytes(PATIENCE).unwrap();
    assert!(answer.starts_with(b"HTTP/1.1 101 "), "{}", answer.escape_ascii());
}

#[test]
fn the_wrong_transport_fails_at_once() {
    let (server, _client) = connected(Transport::Tcp);
    assert!(matches!(RawClient::connect_ws(server.address, "/"), Err(RawError::Closed(..))));
}
