//! Tests of the connection's state machine.

use super::*;
use crate::nats::ParseError;
use crate::nats::connect::{Auth, ConnectError, Secret};
use crate::nats::encoder;

const GREETING: &[u8] = b"INFO {\"server_id\":\"A\",\"max_payload\":1024,\"headers\":true}\r\n";

/// What a test keeps of an event.
fn text(event: Event<'_>) -> String {
    match event {
        Event::Message(message) => {
            let part = String::from_utf8_lossy;
            format!("{} {} {}", part(message.subject), message.sid, part(message.payload))
        }
        Event::ServerError { text, is_fatal } => format!("error {text} {is_fatal}"),
        other => format!("{other:?}"),
    }
}

fn feed(client: &mut Client, bytes: &[u8]) -> (Vec<String>, Result<(), ClientError>) {
    let mut events = Vec::new();
    let result = client.handle_bytes(bytes, &mut |event| events.push(text(event)));
    (events, result)
}

fn fed(client: &mut Client, bytes: &[u8]) -> Vec<String> {
    let (events, result) = feed(client, bytes);
    result.unwrap();
    events
}

fn taken(client: &mut Client) -> String {
    String::from_utf8(std::mem::take(client.out())).unwrap()
}

fn new() -> Client {
    Client::new(Arc::new(ConnectOptions::default()))
}

fn ready() -> Client {
    let mut client = new();
    fed(&mut client, GREETING);
    taken(&mut client);
    assert_eq!(fed(&mut client, b"PONG\r\n"), ["Ready"]);
    client
}

#[test]
fn the_greeting_is_answered_and_its_pong_makes_the_connection_ready() {
    let mut client = new();
    assert_eq!(client.state(), State::AwaitingInfo);
    assert_eq!(client.payload_bytes_max(), PAYLOAD_BYTES_DEFAULT);
    assert!(fed(&mut client, GREETING).is_empty());
    assert_eq!(client.state(), State::AwaitingPong);
    let sent = taken(&mut client);
    assert!(sent.starts_with("CONNECT {") && sent.ends_with("}\r\nPING\r\n"), "{sent}");
    assert_eq!(fed(&mut client, b"PONG\r\n"), ["Ready"]);
    assert_eq!(client.state(), State::Ready);
    assert_eq!(client.payload_bytes_max(), 1024);
    assert_eq!(client.info().unwrap().server_id, "A");
}

#[test]
fn the_servers_pings_are_answered() {
    let mut client = ready();
    assert!(fed(&mut client, b"PING\r\nPING\r\n").is_empty());
    assert_eq!(taken(&mut client), "PONG\r\nPONG\r\n");
}

#[test]
fn messages_arrive_in_order_with_everything_else() {
    let mut client = ready();
    let barrier = client.ping();
    let bytes = b"MSG a 1 1\r\nx\r\nPONG\r\nMSG b 2 r 0\r\n\r\n-ERR 'Invalid Subject'\r\n+OK\r\n";
    let expected = ["a 1 x", &format!("Barrier({barrier})"), "b 2 ", "error Invalid Subject false"];
    assert_eq!(fed(&mut client, bytes), expected);
}

#[test]
fn a_stream_cut_anywhere_gives_the_same_events() {
    let stream = b"MSG a 1 5\r\nhello\r\nPING\r\nHMSG r 2 16 16\r\nNATS/1.0 503\r\n\r\n\r\nPONG\r\nMSG b 3 r 2\r\nhi\r\n";
    let expected = fed(&mut ready(), stream);
    for first in 0..stream.len() {
        for second in first..stream.len() {
            let mut client = ready();
            let mut events = fed(&mut client, &stream[..first]);
            events.extend(fed(&mut client, &stream[first..second]));
            events.extend(fed(&mut client, &stream[second..]));
            assert_eq!(events, expected, "cut at {first} and {second}");
            assert!(client.partial.is_empty());
            assert_eq!(taken(&mut client), "PONG\r\n");
        }
    }
}

#[test]
fn only_the_cut_message_is_kept() {
    let mut client = ready();
    fed(&mut client, b"MSG a 1 5\r\nhello\r\nMSG a 1 5\r\nhe");
    assert_eq!(client.partial, b"MSG a 1 5\r\nhe");
    assert_eq!(fed(&mut client, b"llo\r\nMSG a 1 2\r\nhi\r\n"), ["a 1 hello", "a 1 hi"]);
    assert!(client.partial.is_empty());
}

#[test]
fn barriers_are_answered_in_their_order_and_keep_alives_between_them_are_not_told() {
    let mut client = ready();
    client.handle_tick(0).unwrap();
    let first = client.ping();
    client.handle_tick(10_000).unwrap();
    let second = client.ping();
    assert!(first < second);
    assert_eq!(taken(&mut client), "PING\r\nPING\r\nPING\r\n");
    assert_eq!(fed(&mut client, b"PONG\r\n"), [format!("Barrier({first})")]);
    assert!(fed(&mut client, b"PONG\r\n").is_empty());
    assert_eq!(fed(&mut client, b"PONG\r\n"), [format!("Barrier({second})")]);
    assert!(fed(&mut client, b"PONG\r\n").is_empty(), "one too many is ignored");
}

#[test]
fn a_server_that_answers_no_ping_is_given_up() {
    let mut client = ready();
    client.handle_tick(5).unwrap();
    client.handle_tick(10_004).unwrap();
    assert_eq!(taken(&mut client), "", "one millisecond before the first PING");
    client.handle_tick(10_005).unwrap();
    assert_eq!(taken(&mut client), "PING\r\n");
    client.handle_tick(20_005).unwrap();
    let error = client.handle_tick(30_005).unwrap_err();
    assert!(matches!(error, ClientError::Stale { pings: 2 }), "{error}");
    assert_eq!(client.state(), State::Failed);
    assert!(matches!(client.handle_tick(30_006), Err(ClientError::Failed)));
}

#[test]
fn each_pong_begins_the_patience_anew() {
    let mut client = ready();
    client.handle_tick(0).unwrap();
    for turn in 1..100 {
        client.handle_tick(turn * 10_000).unwrap();
        fed(&mut client, b"PONG\r\n");
    }
}

#[test]
fn a_greeting_that_does_not_end_is_given_up() {
    let mut client = new();
    client.handle_tick(100).unwrap();
    fed(&mut client, GREETING);
    client.handle_tick(2_099).unwrap();
    let error = client.handle_tick(2_100).unwrap_err();
    assert!(matches!(error, ClientError::ConnectTimeout { timeout_ms: 2_000 }), "{error}");
}

#[test]
fn new_addresses_and_lame_duck_mode_are_told_once() {
    let mut client = ready();
    assert!(fed(&mut client, GREETING).is_empty(), "the same INFO again is no change");
    let info = b"INFO {\"connect_urls\":[\"a:1\"],\"max_payload\":10}\r\n";
    assert_eq!(fed(&mut client, info), ["InfoChanged"]);
    assert_eq!(client.info().unwrap().connect_urls, ["a:1"]);
    assert_eq!(client.payload_bytes_max(), 10);
    assert_eq!(fed(&mut client, b"INFO {\"ldm\":true}\r\n"), ["InfoChanged", "LameDuck"]);
    assert_eq!(fed(&mut client, b"INFO {\"ldm\":true,\"proto\":1}\r\n"), ["InfoChanged"]);
}

#[test]
fn errors_that_refuse_an_operation_leave_the_connection_open() {
    for text in [
        "Invalid Subject",
        "Permissions Violation for Subscription to \"authorization.slow consumer\"",
        "maximum subscriptions exceeded",
        "something new",
    ] {
        let mut client = ready();
        let line = format!("-ERR '{text}'\r\n");
        assert_eq!(fed(&mut client, line.as_bytes()), [format!("error {text} false")]);
        assert_eq!(client.state(), State::Ready);
    }
}

#[test]
fn errors_that_end_the_connection_end_it() {
    let check = |text: &str, is_refusal: bool| {
        let mut client = ready();
        let (events, result) = feed(&mut client, format!("-ERR '{text}'\r\nPING\r\n").as_bytes());
        assert_eq!(events, [format!("error {text} true")]);
        let error = result.unwrap_err();
        assert_eq!(matches!(error, ClientError::Refused { .. }), is_refusal, "{text}");
        assert_eq!(matches!(error, ClientError::Server { .. }), !is_refusal, "{text}");
        assert_eq!(client.state(), State::Failed);
        assert!(matches!(feed(&mut client, b"PING\r\n").1, Err(ClientError::Failed)));
        assert_eq!(taken(&mut client), "", "nothing is answered after the error");
    };
    for text in ["Maximum Payload Violation", "Stale Connection", "Slow Consumer"] {
        check(text, false);
    }
    for text in ["Maximum Control Line Exceeded", "Parser Error", "Unknown Protocol Operation"] {
        check(text, false);
    }
    for text in ["Authorization Violation", "User Authentication Expired"] {
        check(text, true);
    }
}

#[test]
fn any_error_during_the_greeting_ends_the_connection() {
    for (text, is_refusal) in [("Authorization Violation", true), ("whatever", false)] {
        let mut client = new();
        fed(&mut client, GREETING);
        let (events, result) = feed(&mut client, format!("-ERR '{text}'\r\n").as_bytes());
        assert_eq!(events, [format!("error {text} true")]);
        assert_eq!(matches!(result, Err(ClientError::Refused { .. })), is_refusal);
    }
}

#[test]
fn what_has_no_place_in_a_state_ends_the_connection() {
    for bytes in [&b"PING\r\n"[..], b"PONG\r\n", b"MSG a 1 0\r\n\r\n", b"+OK\r\n"] {
        let (_, result) = feed(&mut new(), bytes);
        assert!(matches!(result, Err(ClientError::Unexpected { state: State::AwaitingInfo })));
    }
    let mut client = new();
    fed(&mut client, GREETING);
    let (_, result) = feed(&mut client, b"MSG a 1 0\r\n\r\n");
    assert!(matches!(result, Err(ClientError::Unexpected { state: State::AwaitingPong })));
}

#[test]
fn broken_input_ends_the_connection() {
    let mut client = ready();
    assert!(matches!(feed(&mut client, b"GET /").1, Err(ClientError::Parse(_))));
    assert_eq!(client.state(), State::Failed);
    let (_, result) = feed(&mut new(), b"INFO nonsense\r\n");
    assert!(matches!(result, Err(ClientError::Info(_))));
}

#[test]
fn a_message_over_the_announced_limit_ends_the_connection() {
    let mut client = ready();
    assert!(fed(&mut client, b"MSG a 1 66560\r\n").is_empty());
    let (_, result) = feed(&mut ready(), b"MSG a 1 66561\r\n");
    let expected = ParseError::PayloadTooLarge { announced_bytes: 66_561, limit_bytes: 66_560 };
    assert!(matches!(result, Err(ClientError::Parse(error)) if error == expected));
}

#[test]
fn tls_comes_between_greeting_and_connect_when_either_side_wants_it() {
    let wanted = Arc::new(ConnectOptions { tls_required: true, ..Default::default() });
    let by_server: &[u8] = b"INFO {\"tls_required\":true}\r\n";
    for (mut client, greeting) in [(new(), by_server), (Client::new(wanted), GREETING)] {
        fed(&mut client, greeting);
        assert_eq!(client.state(), State::TlsRequired);
        assert_eq!(taken(&mut client), "");
        client.handle_tls_established().unwrap();
        assert_eq!(client.state(), State::AwaitingPong);
        assert!(taken(&mut client).contains("\"tls_required\":true"));
        assert_eq!(fed(&mut client, b"PONG\r\n"), ["Ready"]);
    }
}

#[test]
fn a_server_that_begins_with_tls_is_answered_at_once() {
    let mut client = new();
    client.handle_tls_established().unwrap();
    fed(&mut client, b"INFO {\"tls_required\":true}\r\n");
    assert_eq!(client.state(), State::AwaitingPong);
}

#[test]
fn plain_text_behind_a_greeting_that_wants_tls_is_refused() {
    let (_, result) = feed(&mut new(), b"INFO {\"tls_required\":true}\r\nPING\r\n");
    assert!(matches!(result, Err(ClientError::Unexpected { state: State::TlsRequired })));
    let mut client = new();
    fed(&mut client, b"INFO {\"tls_required\":true}\r\n");
    let (_, result) = feed(&mut client, b"P");
    assert!(matches!(result, Err(ClientError::Unexpected { state: State::TlsRequired })));
}

#[test]
fn credentials_that_do_not_fit_the_server_are_our_error() {
    let auth = Auth::NKey(Secret::new(nkeys::KeyPair::new_user().seed().unwrap()));
    let mut client = Client::new(Arc::new(ConnectOptions { auth, ..Default::default() }));
    let (_, result) = feed(&mut client, GREETING);
    assert!(matches!(result, Err(ClientError::Connect(ConnectError::NonceMissing))));
    assert_eq!(client.state(), State::Failed);
}

#[test]
fn a_frozen_connection_goes_on_as_if_nothing_had_happened() {
    let stream = b"MSG a 1 5\r\nhello\r\nPONG\r\nINFO {\"ldm\":true}\r\nPONG\r\nPING\r\n";
    let begin = || {
        let mut client = ready();
        client.ping();
        encoder::subscribe(client.out(), b"a", None, 1);
        client.ping();
        client
    };
    let mut unbroken = begin();
    let expected = fed(&mut unbroken, stream);
    for cut in 0..=stream.len() {
        let mut old = begin();
        let mut events = fed(&mut old, &stream[..cut]);
        let frozen = serde_json::to_vec(&old.freeze()).unwrap();
        let frozen: FrozenClient = serde_json::from_slice(&frozen).unwrap();
        let mut client = Client::resume(Arc::new(ConnectOptions::default()), frozen);
        events.extend(fed(&mut client, &stream[cut..]));
        assert_eq!(events, expected, "frozen at {cut}");
        assert_eq!(client.ping(), 3);
        assert_eq!(taken(&mut client), taken(&mut begin()) + "PONG\r\nPING\r\n");
        client.handle_tick(1_000_000).unwrap();
        assert_eq!(taken(&mut client), "", "the interval begins anew");
    }
}

#[test]
fn a_payload_buffer_of_one_large_message_is_given_back() {
    let mut client = new();
    fed(&mut client, b"INFO {\"max_payload\":1048576}\r\n");
    fed(&mut client, b"PONG\r\n");
    let mut message = b"MSG a 1 1000000\r\n".to_vec();
    message.resize(message.len() + 1_000_000, b'x');
    message.extend_from_slice(b"\r\n");
    for part in message.chunks(16 * 1024) {
        fed(&mut client, part);
    }
    assert!(client.partial.is_empty() && client.partial.capacity() <= PARTIAL_BYTES_KEPT);
}
