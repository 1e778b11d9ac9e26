//! The async client against a server that splits, joins, compresses, refuses, kicks and falls silent.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod common;

use std::time::Duration;

use client::address::{Address, Transport};
use client::{Client, CloseCause, ConnectError, ConnectOptions, RequestError};
use common::{FakeOptions, FakeServer, PATIENCE};
use shared::error::Serializer;

const TRANSPORTS: [Transport; 2] = [Transport::Tcp, Transport::WebSocket];

async fn connected(options: FakeOptions) -> (FakeServer, Client) {
    let server = FakeServer::start(options);
    let client = Client::connect(&server.url(), ConnectOptions::default()).await.unwrap();
    (server, client)
}

fn over(transport: Transport) -> FakeOptions {
    FakeOptions { transport, ..FakeOptions::default() }
}

#[tokio::test]
async fn the_handshake_is_sent_acknowledged_and_remembered() {
    for transport in TRANSPORTS {
        for is_compressing in [false, true] {
            let routes = vec![("onMessage", 4), ("room.room.join", 260), ("room.room.leave", 261)];
            let options = FakeOptions { routes, is_compressing, heartbeat_s: 7, ..over(transport) };
            let (server, client) = connected(options).await;
            assert_eq!(client.heartbeat(), Duration::from_secs(7));
            assert_eq!(client.serializer(), "json");
            assert_eq!(client.dictionary().code("room.room.join"), Some(260));
            let seen = server.until("the ack", |seen| seen.acks == 1).await;
            assert!(seen.handshakes[0]["sys"]["platform"].is_string());
            assert!(seen.handshakes[0]["user"].is_object());
        }
    }
}

#[tokio::test]
async fn a_refused_handshake_names_the_code() {
    let server = FakeServer::start(FakeOptions { handshake_code: 400, ..FakeOptions::default() });
    let error = Client::connect(&server.url(), ConnectOptions::default()).await.unwrap_err();
    assert!(matches!(error, ConnectError::Refused { code: 400 }), "{error}");
}

#[tokio::test]
async fn an_address_without_scheme_is_probed_for_websocket_and_then_tcp() {
    for transport in TRANSPORTS {
        let server = FakeServer::start(over(transport));
        let address = Address::from(server.address);
        let client = Client::probe(&address, PATIENCE, ConnectOptions::default()).await.unwrap();
        assert_eq!(client.transport(), transport);
        assert_eq!(client.request("room.test.echo", b"hi").await.unwrap(), "hi");
    }
}

#[tokio::test]
async fn answers_find_their_requests_whatever_their_order() {
    for transport in TRANSPORTS {
        let (_server, client) = connected(over(transport)).await;
        let held = client.request("room.test.hold", b"");
        let echo = async {
            // Behind the first one on the wire, since both share the connection's queue in order of the polls.
            client.request("room.test.echo", b"second").await
        };
        let (held, echo) = tokio::join!(held, echo);
        assert_eq!(held.unwrap(), "held");
        assert_eq!(echo.unwrap(), "second");
    }
}

#[tokio::test]
async fn split_and_joined_packets_are_put_right() {
    for transport in TRANSPORTS {
        let (_server, client) = connected(over(transport)).await;
        let mut pushes = client.subscribe("onMessage");
        assert_eq!(client.request("room.test.split", b"abc").await.unwrap(), "abc");
        assert_eq!(client.request("room.test.push", b"joined").await.unwrap(), "joined");
        assert_eq!(pushes.next().await.unwrap().payload, "joined");
        let large = vec![b'x'; 300_000];
        assert_eq!(client.request("room.test.echo", &large).await.unwrap(), large);
    }
}

#[tokio::test]
async fn the_dictionary_shortens_routes_in_both_directions() {
    for transport in TRANSPORTS {
        let routes = vec![("onMessage", 4), ("room.test.push", 260)];
        let (server, client) = connected(FakeOptions { routes, ..over(transport) }).await;
        client.request("room.test.push", b"{}").await.unwrap();
        client.request("room.test.echo", b"{}").await.unwrap();
        assert_eq!(server.seen().flags, [0x01, 0x00]);
        let push = client.take_pushes().unwrap().next().await.unwrap();
        assert_eq!((push.route.as_ref(), push.payload.as_ref()), ("onMessage", &b"{}"[..]));
    }
}

#[tokio::test]
async fn compressed_payloads_are_inflated_and_own_ones_deflated_on_wish() {
    let server = FakeServer::start(FakeOptions { is_compressing: true, ..FakeOptions::default() });
    let options = ConnectOptions { deflate_from_bytes: Some(64), ..ConnectOptions::default() };
    let client = Client::connect(&server.url(), options).await.unwrap();
    let payload = vec![b'a'; 5000];
    assert_eq!(client.request("room.test.push", &payload).await.unwrap(), payload);
    assert_eq!(client.take_pushes().unwrap().next().await.unwrap().payload, payload);
    assert_eq!(client.request("room.test.echo", b"short").await.unwrap(), "short");
    assert_eq!(server.seen().flags, [0x10, 0x00]);
}

#[tokio::test]
async fn error_replies_are_errors_with_code_and_message() {
    for serializer in [Serializer::Json, Serializer::Protobuf] {
        for is_compressing in [false, true] {
            let options = FakeOptions { serializer, is_compressing, ..FakeOptions::default() };
            let (_server, client) = connected(options).await;
            let error = client.request("room.test.error", b"").await.unwrap_err();
            assert_eq!(error.code(), "PIT-404");
            let RequestError::Reply(error) = error else { panic!("{error}") };
            assert_eq!(error.msg, "pitaya/handler: room.test.error not found");
            assert!(error.metadata.is_empty());
        }
    }
}

#[tokio::test]
async fn a_request_without_answer_times_out_and_the_connection_lives_on() {
    let (_server, client) = connected(FakeOptions::default()).await;
    let request = client.request_within("room.test.silent", b"", Duration::from_millis(20));
    let error = request.await.unwrap_err();
    assert!(matches!(error, RequestError::Timeout));
    assert_eq!(error.code(), "PIT-504");
    assert_eq!(client.request("room.test.echo", b"still").await.unwrap(), "still");
}

#[tokio::test]
async fn no_more_requests_than_allowed_are_in_flight() {
    let server = FakeServer::start(FakeOptions::default());
    let options = ConnectOptions { in_flight_max: 1, ..ConnectOptions::default() };
    let client = Client::connect(&server.url(), options).await.unwrap();
    let silent = client.request_within("room.test.silent", b"", Duration::from_millis(50));
    let waiting = client.request_within("room.test.echo", b"", Duration::from_millis(20));
    let (silent, waiting) = tokio::join!(silent, waiting);
    assert_eq!((silent.unwrap_err().code(), waiting.unwrap_err().code()), ("PIT-504", "PIT-504"));
    assert_eq!(server.seen().requests, 1);
    assert_eq!(client.request("room.test.echo", b"turn").await.unwrap(), "turn");
}

#[tokio::test]
async fn a_full_receiver_loses_the_newest_pushes_and_says_how_many() {
    let server = FakeServer::start(FakeOptions::default());
    let options = ConnectOptions { pushes_max: 10, ..ConnectOptions::default() };
    let client = Client::connect(&server.url(), options).await.unwrap();
    let mut pushes = client.subscribe("onFlood");
    client.request("room.test.flood", b"x").await.unwrap();
    assert_eq!(client.dropped_pushes(), 90);
    let mut taken = 0;
    while pushes.try_next().is_some() {
        taken += 1;
    }
    assert_eq!(taken, 10);
}

#[tokio::test]
async fn a_dropped_subscription_leaves_its_route_to_the_general_receiver() {
    let (_server, client) = connected(FakeOptions::default()).await;
    drop(client.subscribe("onMessage"));
    client.request("room.test.push", b"x").await.unwrap();
    assert_eq!(client.take_pushes().unwrap().next().await.unwrap().payload, "x");
    assert!(client.take_pushes().is_none());
}

#[tokio::test]
async fn a_notify_arrives_and_has_no_answer() {
    for transport in TRANSPORTS {
        let (server, client) = connected(over(transport)).await;
        client.notify("room.test.note", b"psst").await.unwrap();
        let seen = server.until("the notify", |seen| seen.notifies.len() == 1).await;
        assert_eq!(seen.notifies[0], ("room.test.note".to_owned(), b"psst".to_vec()));
        let push = client.take_pushes().unwrap().next().await.unwrap();
        assert_eq!(push.route.as_ref(), "onNotify");
    }
}

#[tokio::test]
async fn a_route_that_is_too_long_is_refused_before_it_is_sent() {
    let (server, client) = connected(FakeOptions::default()).await;
    let error = client.request(&"r".repeat(256), b"").await.unwrap_err();
    assert!(matches!(error, RequestError::Encode(_)), "{error}");
    assert_eq!(client.request(&"r".repeat(255), b"").await.unwrap(), "");
    assert_eq!(server.seen().requests, 1);
}

#[tokio::test]
async fn a_kick_and_a_close_fail_what_is_in_flight_and_name_the_cause() {
    for transport in TRANSPORTS {
        let (_server, client) = connected(over(transport)).await;
        let mut pushes = client.take_pushes().unwrap();
        let error = client.request("room.test.kick", b"").await.unwrap_err();
        let RequestError::Closed(CloseCause::Kicked { .. }) = error else { panic!("{error}") };
        assert!(matches!(client.closed().await, CloseCause::Kicked { .. }));
        assert!(pushes.next().await.is_none());
        assert!(client.subscribe("onMessage").next().await.is_none());
        let error = client.request("room.test.echo", b"").await.unwrap_err();
        assert_eq!(error.code(), "closed");

        let (_server, client) = connected(over(transport)).await;
        client.request("room.test.close", b"").await.unwrap_err();
        assert_eq!(client.closed().await, CloseCause::Ended);
    }
}

#[tokio::test]
async fn a_server_that_breaks_the_protocol_is_left() {
    for transport in TRANSPORTS {
        let (_server, client) = connected(over(transport)).await;
        client.request("room.test.garbage", b"").await.unwrap_err();
        assert!(matches!(client.closed().await, CloseCause::Broken(_)));
    }
}

#[tokio::test]
async fn heartbeats_go_out_at_the_announced_interval_and_a_silent_server_is_left() {
    let silence = async |transport| {
        let server = FakeServer::start(FakeOptions { heartbeat_s: 1, ..over(transport) });
        let options = ConnectOptions { silent_intervals_max: 2, ..ConnectOptions::default() };
        let client = Client::connect(&server.url(), options).await.unwrap();
        assert_eq!(client.closed().await, CloseCause::Silent);
        assert!(server.seen().heartbeats >= 1);
    };
    tokio::join!(silence(Transport::Tcp), silence(Transport::WebSocket));
}

#[tokio::test]
async fn a_websocket_ping_is_answered() {
    let (server, client) = connected(over(Transport::WebSocket)).await;
    client.request("room.test.ping", b"").await.unwrap();
    server.until("the pong", |seen| seen.pongs == 1).await;
}

#[tokio::test]
async fn a_disconnect_sends_what_was_queued_and_then_closes() {
    for transport in TRANSPORTS {
        let (server, client) = connected(over(transport)).await;
        for _ in 0..50 {
            client.notify("room.test.note", b"x").await.unwrap();
        }
        client.disconnect().await;
        assert_eq!(client.close_cause(), Some(CloseCause::Disconnected));
        let seen = server.until("the end", |seen| seen.ended == 1).await;
        assert_eq!(seen.notifies.len(), 50);
    }
}

#[tokio::test]
async fn dropping_the_last_handle_closes_the_connection() {
    let (server, client) = connected(FakeOptions::default()).await;
    let clone = client.clone();
    drop(client);
    assert_eq!(clone.request("room.test.echo", b"").await.unwrap(), "");
    drop(clone);
    server.until("the end", |seen| seen.ended == 1).await;
}

#[tokio::test]
async fn any_stream_can_carry_the_protocol_so_tls_needs_no_change() {
    use shared::dictionary::Dictionary;
    use shared::handshake::{HandshakeOptions, HandshakeResponses};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    // So small that every packet is cut.
    let (near, mut far) = tokio::io::duplex(7);
    let server = tokio::spawn(async move {
        let options = HandshakeOptions {
            heartbeat_s: 30,
            dictionary: &Dictionary::default(),
            serializer: "json",
            compression: false,
        };
        let mut header = [0; 4];
        far.read_exact(&mut header).await.unwrap();
        let mut body = vec![0; usize::from(header[2]) << 8 | usize::from(header[3])];
        far.read_exact(&mut body).await.unwrap();
        far.write_all(&HandshakeResponses::new(&options).unwrap().accepted).await.unwrap();
        // The ack, and a request with id 1, route `r` and payload `hi`.
        let mut rest = [0; 4 + 4 + 6];
        far.read_exact(&mut rest).await.unwrap();
        assert_eq!(rest, *b"\x02\0\0\0\x04\0\0\x06\0\x01\x01rhi");
        far.write_all(b"\x04\0\0\x04\x04\x01ho").await.unwrap();
        let mut end = Vec::new();
        far.read_to_end(&mut end).await.unwrap();
        assert!(end.is_empty());
    });
    let address: Address = "game:1".parse().unwrap();
    let options = ConnectOptions::default();
    let client = Client::open(near, Transport::Tcp, &address, options).await.unwrap();
    assert_eq!(client.request("r", b"hi").await.unwrap(), "ho");
    drop(client);
    server.await.unwrap();
}
