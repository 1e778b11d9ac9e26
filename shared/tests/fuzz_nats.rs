//! Seeded fuzz of what a NATS server sends: no bytes make the parser or the client panic, and where a stream is cut
//! makes no difference.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::sync::Arc;

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::Index;
use shared::nats::parser::parse;
use shared::nats::{Client, ConnectOptions, Event, ParseError, ParseLimits, State};

const LIMITS: ParseLimits = ParseLimits { control_line_bytes_max: 128, payload_bytes_max: 256 };

/// One operation as a server would write it, together with what it should be read as.
fn operation() -> impl Strategy<Value = (Vec<u8>, String)> {
    let blank = "[ \t]{1,3}";
    let subject = "[a-zA-Z0-9/._-]{1,20}";
    let message = (
        (prop_oneof![Just("MSG"), Just("msg"), Just("Msg")], blank, subject, any::<u64>()),
        (
            option::of(subject),
            vec(any::<u8>(), 0..200),
            "[ \t]{0,2}",
            prop_oneof![Just("\r\n"), Just("\n")],
        ),
    )
        .prop_map(|((verb, blank, subject, sid), (reply, payload, tail, end))| {
            let reply_word =
                reply.as_ref().map_or(String::new(), |reply| format!("{reply}{blank}"));
            let length = payload.len();
            let mut bytes =
                format!("{verb}{blank}{subject}{blank}{sid}{blank}{reply_word}{length}{tail}{end}")
                    .into_bytes();
            bytes.extend(&payload);
            bytes.extend(b"\r\n");
            (bytes, format!("message {subject} {sid} {reply:?} None {payload:?}"))
        });
    let message_with_header =
        (subject, any::<u64>(), option::of(100_u16..600), vec(any::<u8>(), 0..60)).prop_map(
            |(subject, sid, status, payload)| {
                let header = match status {
                    Some(status) => format!("NATS/1.0 {status} text\r\n\r\n"),
                    None => "NATS/1.0\r\nName: value\r\n\r\n".to_owned(),
                };
                let (header_bytes, total_bytes) = (header.len(), header.len() + payload.len());
                let line = format!("HMSG {subject} {sid} {header_bytes} {total_bytes}\r\n{header}");
                let mut bytes = line.into_bytes();
                bytes.extend(&payload);
                bytes.extend(b"\r\n");
                (bytes, format!("message {subject} {sid} None {status:?} {payload:?}"))
            },
        );
    let error = "[a-zA-Z ]{0,30}".prop_map(|text| {
        let text = text.trim().to_owned();
        (format!("-ERR '{text}'\r\n").into_bytes(), format!("error {text}"))
    });
    let plain = prop_oneof![
        Just((b"PING\r\n".to_vec(), "ping".to_owned())),
        Just((b"pong \r\n".to_vec(), "pong".to_owned())),
        Just((b"+OK\r\n".to_vec(), "ok".to_owned())),
        Just((b"INFO {\"a\":1} \r\n".to_vec(), "info {\"a\":1}".to_owned())),
    ];
    prop_oneof![4 => message, 2 => message_with_header, 1 => error, 2 => plain]
}

fn told(operation: shared::nats::ServerOp<'_>) -> String {
    use shared::nats::ServerOp;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    match operation {
        ServerOp::Info(json) => format!("info {}", text(json)),
        ServerOp::Ping => "ping".to_owned(),
        ServerOp::Pong => "pong".to_owned(),
        ServerOp::Ok => "ok".to_owned(),
        ServerOp::Err(words) => format!("error {words}"),
        ServerOp::Msg(message) => format!(
            "message {} {} {:?} {:?} {:?}",
            text(message.subject),
            message.sid,
            message.reply.map(text),
            message.status,
            message.payload
        ),
    }
}

/// All operations in `bytes`, and how it ended: an error, or what was left over.
fn parse_all(bytes: &[u8]) -> (Vec<String>, Result<usize, ParseError>) {
    let (mut seen, mut rest) = (Vec::new(), bytes);
    loop {
        match parse(rest, &LIMITS) {
            Ok(Some((operation, consumed))) => {
                assert!(consumed > 0 && consumed <= rest.len());
                seen.push(told(operation));
                rest = &rest[consumed..];
            }
            Ok(None) => return (seen, Ok(rest.len())),
            Err(error) => return (seen, Err(error)),
        }
    }
}

fn changed(mut bytes: Vec<u8>, changes: &[(Index, u8, u8)]) -> Vec<u8> {
    for (position, byte, kind) in changes {
        if bytes.is_empty() {
            break;
        }
        let position = position.index(bytes.len());
        match kind {
            0 => bytes[position] = *byte,
            1 => bytes.insert(position, *byte),
            2 => drop(bytes.remove(position)),
            _ => bytes.truncate(position),
        }
    }
    bytes
}

/// A client behind its greeting.
fn ready() -> Client {
    let mut client = Client::new(Arc::new(ConnectOptions::default()));
    client.handle_bytes(b"INFO {\"max_payload\":256}\r\nPONG\r\n", &mut |_| {}).unwrap();
    client.out().clear();
    client
}

/// Everything that can be observed of a client that was fed these parts.
fn observe<'a>(
    parts: impl IntoIterator<Item = &'a [u8]>,
) -> (Vec<String>, State, Vec<u8>, Option<String>) {
    let (mut client, mut seen, mut error) = (ready(), Vec::new(), None);
    client.ping();
    client.ping();
    for part in parts {
        let mut keep = |event: Event<'_>| seen.push(format!("{event:?}"));
        if let Err(failure) = client.handle_bytes(part, &mut keep) {
            error = Some(failure.to_string());
            break;
        }
    }
    let out = std::mem::take(client.out());
    (seen, client.state(), out, error)
}

/// How many times the usual cases are run; `./dev fuzz` raises it.
fn factor() -> u32 {
    std::env::var("FUZZ_FACTOR").ok().and_then(|text| text.parse().ok()).unwrap_or(1)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400 * factor(), failure_persistence: None, ..Default::default() })]

    #[test]
    fn random_bytes_never_make_the_parser_panic(bytes in vec(any::<u8>(), 0..300)) {
        let (_, end) = parse_all(&bytes);
        prop_assert!(end.is_err() || end.unwrap() <= bytes.len());
    }

    #[test]
    fn random_bytes_behind_a_verb_never_make_the_parser_panic(
        verb in prop_oneof![Just("MSG "), Just("HMSG "), Just("-ERR "), Just("INFO "), Just("PING")],
        bytes in vec(prop_oneof![any::<u8>(), b'0'..=b'9', Just(b' '), Just(b'\r'), Just(b'\n')], 0..200),
    ) {
        let mut stream = verb.as_bytes().to_vec();
        stream.extend(bytes);
        let _ = parse_all(&stream);
        let _ = observe([&stream[..]]);
    }

    #[test]
    fn what_a_server_writes_is_read_as_it_was_meant(operations in vec(operation(), 0..8)) {
        let (bytes, meant): (Vec<_>, Vec<_>) = operations.into_iter().unzip();
        let (seen, end) = parse_all(&bytes.concat());
        prop_assert_eq!(seen, meant);
        prop_assert_eq!(end, Ok(0));
    }

}

// Each of these cases looks at every place where its stream can be cut.
proptest! {
    #![proptest_config(ProptestConfig { cases: 60 * factor(), failure_persistence: None, ..Default::default() })]

    #[test]
    fn a_stream_of_which_a_part_is_missing_is_read_as_far_as_it_goes(
        operations in vec(operation(), 1..5),
    ) {
        let (bytes, meant): (Vec<_>, Vec<_>) = operations.into_iter().unzip();
        let stream = bytes.concat();
        for cut in 0..stream.len() {
            let (seen, end) = parse_all(&stream[..cut]);
            prop_assert_eq!(&seen[..], &meant[..seen.len()]);
            prop_assert!(end.is_ok(), "cut at {}: {:?}", cut, end);
        }
    }

    #[test]
    fn a_changed_stream_is_judged_alike_wherever_it_is_cut(
        operations in vec(operation(), 1..5),
        changes in vec((any::<Index>(), any::<u8>(), 0_u8..4), 0..3),
    ) {
        let stream = changed(operations.into_iter().flat_map(|(bytes, _)| bytes).collect(), &changes);
        let whole = observe([&stream[..]]);
        for cut in 0..=stream.len() {
            prop_assert_eq!(&observe([&stream[..cut], &stream[cut..]]), &whole, "cut at {}", cut);
        }
        prop_assert_eq!(&observe(stream.chunks(1)), &whole, "byte by byte");
        prop_assert_eq!(&observe(stream.chunks(7)), &whole, "seven bytes at a time");
    }

    #[test]
    fn a_client_frozen_anywhere_goes_on_as_if_nothing_had_happened(
        operations in vec(operation(), 1..5),
        cut in any::<Index>(),
    ) {
        let stream: Vec<u8> = operations.into_iter().flat_map(|(bytes, _)| bytes).collect();
        let cut = cut.index(stream.len() + 1);
        let feed = |client: &mut Client, bytes: &[u8], seen: &mut Vec<String>| {
            client.handle_bytes(bytes, &mut |event| seen.push(format!("{event:?}"))).is_ok()
        };
        let (mut unbroken, mut expected) = (ready(), Vec::new());
        unbroken.ping();
        let is_ok = feed(&mut unbroken, &stream, &mut expected);
        let (mut client, mut seen) = (ready(), Vec::new());
        client.ping();
        let before_is_ok = feed(&mut client, &stream[..cut], &mut seen);
        let mut client = Client::resume(Arc::new(ConnectOptions::default()), client.freeze());
        let after_is_ok = before_is_ok && feed(&mut client, &stream[cut..], &mut seen);
        prop_assert_eq!(after_is_ok, is_ok);
        prop_assert_eq!(seen, expected);
        prop_assert_eq!(client.freeze(), unbroken.freeze());
    }
}
