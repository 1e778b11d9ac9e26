//! Seeded fuzzing of everything that reads bytes of a peer: nothing panics, what is written reads back, and no output
//! outgrows its limit.
//!
//! Short in an ordinary run. `FUZZ_CASES` runs more of it and `FUZZ_SEED` repeats a failure; both are printed by one.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, RngSeed, TestRunner};
use shared::compression::{Deflater, InflateError, Inflater};
use shared::dictionary::Dictionary;
use shared::error::{Error, Serializer};
use shared::go::go_duration;
use shared::handshake::{
    self, HandshakeOptions, HandshakeRequest, HandshakeResponses, HandshakeSys,
};
use shared::limiter::{Limiter, LimiterRule};
use shared::message::{self, Head, MessageError, MessageType};
use shared::networks::Networks;
use shared::packet::{self, PacketError, PacketType};
use shared::proxy;
use shared::route::Route;
use shared::session::{self, IpVersion, Session, SessionId};

const SEED_DEFAULT: u64 = 0x0d2a_60f2;
const CASES_DEFAULT: u32 = 512;
const INPUT_BYTES_MAX: usize = 512;

/// Runs the check over generated values; a failure names the seed and the smallest failing value.
fn fuzz<S: Strategy>(strategy: S, check: impl Fn(S::Value) -> Result<(), TestCaseError>) {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let seed = number("FUZZ_SEED").unwrap_or(SEED_DEFAULT);
    let cases = CASES_DEFAULT * number("FUZZ_FACTOR").map_or(1, |factor| factor as u32);
    let config = Config {
        cases,
        rng_algorithm: RngAlgorithm::ChaCha,
        rng_seed: RngSeed::Fixed(seed),
        failure_persistence: None,
        ..Config::default()
    };
    if let Err(failure) = TestRunner::new(config).run(&strategy, check) {
        panic!("with FUZZ_SEED={seed}, {cases} cases: {failure}");
    }
}

fn any_bytes() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(any::<u8>(), 0..INPUT_BYTES_MAX)
}

/// One change to a valid input, as a peer with a broken memory would make it.
#[derive(Debug, Clone)]
enum Mutation {
    Flip { at: prop::sample::Index, mask: u8 },
    Cut { at: prop::sample::Index },
    Insert { at: prop::sample::Index, bytes: Vec<u8> },
    Repeat { from: prop::sample::Index, times: usize },
}

fn any_mutation() -> impl Strategy<Value = Mutation> {
    let index = || any::<prop::sample::Index>();
    prop_oneof![
        (index(), 1u8..).prop_map(|(at, mask)| Mutation::Flip { at, mask }),
        index().prop_map(|at| Mutation::Cut { at }),
        (index(), prop::collection::vec(any::<u8>(), 1..8))
            .prop_map(|(at, bytes)| Mutation::Insert { at, bytes }),
        (index(), 1usize..4).prop_map(|(from, times)| Mutation::Repeat { from, times }),
    ]
}

fn mutated(valid: impl Strategy<Value = Vec<u8>>) -> impl Strategy<Value = Vec<u8>> {
    (valid, prop::collection::vec(any_mutation(), 0..4)).prop_map(|(mut bytes, mutations)| {
        for mutation in mutations {
            mutate(&mut bytes, mutation);
        }
        bytes
    })
}

fn mutate(bytes: &mut Vec<u8>, mutation: Mutation) {
    let length = bytes.len();
    match mutation {
        Mutation::Flip { at, mask } if length > 0 => bytes[at.index(length)] ^= mask,
        Mutation::Cut { at } => bytes.truncate(at.index(length + 1)),
        Mutation::Insert { at, bytes: inserted } => {
            let at = at.index(length + 1);
            bytes.splice(at..at, inserted);
        }
        Mutation::Repeat { from, times } => {
            let tail = bytes[from.index(length + 1)..].repeat(times);
            bytes.extend(tail);
        }
        Mutation::Flip { .. } => {}
    }
}

fn any_packet_type() -> impl Strategy<Value = PacketType> {
    (1u8..=5).prop_map(|byte| PacketType::from_byte(byte).unwrap())
}

fn any_packets() -> impl Strategy<Value = Vec<(PacketType, Vec<u8>)>> {
    let packet = (any_packet_type(), prop::collection::vec(any::<u8>(), 0..64));
    prop::collection::vec(packet, 0..6)
}

fn stream(packets: &[(PacketType, Vec<u8>)]) -> Vec<u8> {
    let mut out = Vec::new();
    for (kind, body) in packets {
        packet::encode(*kind, body, &mut out).unwrap();
    }
    out
}

#[test]
fn packets_read_back_however_the_stream_is_cut() {
    fuzz((any_packets(), any::<prop::sample::Index>()), |(packets, cut)| {
        let bytes = stream(&packets);
        let cut = cut.index(bytes.len() + 1);
        let mut seen = Vec::new();
        let mut start = 0;
        for end in [cut, bytes.len()] {
            while let Some((packet, taken)) = packet::decode(&bytes[start..end], 64).unwrap() {
                seen.push((packet.kind, packet.body.to_vec()));
                start += taken;
            }
        }
        prop_assert_eq!(start, bytes.len());
        prop_assert_eq!(seen, packets);
        Ok(())
    });
}

#[test]
fn any_bytes_give_packets_within_the_limit_or_an_error() {
    let input =
        prop_oneof![any_bytes(), mutated(any_packets().prop_map(|packets| stream(&packets)))];
    fuzz((input, 0usize..600), |(bytes, limit)| {
        let mut rest = &bytes[..];
        loop {
            match packet::decode(rest, limit) {
                Ok(Some((packet, taken))) => {
                    prop_assert!(packet.body.len() <= limit);
                    prop_assert_eq!(taken, packet::HEADER_BYTES + packet.body.len());
                    rest = &rest[taken..];
                }
                Ok(None) => break,
                Err(PacketError::UnknownType(byte)) => {
                    prop_assert_eq!(byte, rest[0]);
                    break;
                }
                Err(PacketError::TooLarge { announced_bytes, .. }) => {
                    prop_assert!(announced_bytes > limit);
                    break;
                }
            }
        }
        Ok(())
    });
}

fn dictionary() -> Dictionary {
    let mut dictionary = Dictionary::default();
    let entries = [("a", 1), ("onMessage", 4), ("room.room.join", 260), ("ends", u16::MAX)];
    dictionary.insert_all(entries).unwrap();
    dictionary
}

type MessageParts = (MessageType, u64, String, bool, bool, Vec<u8>);

fn any_message() -> impl Strategy<Value = MessageParts> {
    let kind = prop::sample::select(vec![
        MessageType::Request,
        MessageType::Notify,
        MessageType::Response,
        MessageType::Push,
    ]);
    let route = prop_oneof!["[a-z.]{0,40}", "\\PC{0,60}", Just("room.room.join".to_owned())];
    let payload = prop::collection::vec(any::<u8>(), 0..64);
    let id = (any::<u64>(), 0u32..64).prop_map(|(id, shift)| id >> shift);
    (kind, id, route, any::<bool>(), any::<bool>(), payload)
}

fn encode_message(parts: &MessageParts, dictionary: &Dictionary) -> Vec<u8> {
    let (kind, id, route, is_compressed, is_error, payload) = parts;
    let (kind, id, is_compressed, is_error) = (*kind, *id, *is_compressed, *is_error);
    let head = Head { kind, id, route, is_compressed, is_error };
    let mut body = Vec::new();
    message::encode_head(&head, dictionary, &mut body).unwrap();
    assert_eq!(body.len(), message::head_bytes(&head, dictionary));
    body.extend_from_slice(payload);
    body
}

#[test]
fn messages_read_back_what_was_written() {
    let dictionary = dictionary();
    fuzz(any_message(), |parts| {
        let body = encode_message(&parts, &dictionary);
        let (kind, id, route, is_compressed, is_error, payload) = parts;
        let has_id = matches!(kind, MessageType::Request | MessageType::Response);
        let expected_route = if kind == MessageType::Response { "" } else { &route };
        if body.len() < 2 {
            return Ok(());
        }
        let read = message::decode(&body, &dictionary).unwrap();
        prop_assert_eq!((read.kind, read.id), (kind, if has_id { id } else { 0 }));
        prop_assert_eq!(read.route, expected_route.as_bytes());
        prop_assert_eq!((read.is_compressed, read.is_error), (is_compressed, is_error));
        prop_assert_eq!(read.payload, payload);
        Ok(())
    });
}

#[test]
fn any_bytes_are_a_message_inside_the_body_or_an_error() {
    let dictionary = dictionary();
    let valid = any_message().prop_map(|parts| encode_message(&parts, &self::dictionary()));
    fuzz(prop_oneof![any_bytes(), mutated(valid)], |body| {
        match message::decode(&body, &dictionary) {
            Ok(read) => {
                prop_assert!(body.ends_with(read.payload));
                prop_assert!(read.route.len() <= message::ROUTE_BYTES_MAX);
                let route = String::from_utf8_lossy(read.route);
                if let Ok(route) = Route::parse(&route) {
                    prop_assert!(!route.to_string().chars().any(char::is_control));
                }
            }
            Err(error) => {
                let is_ours = matches!(error, MessageError::RouteTooLong { .. });
                prop_assert!(!is_ours, "{error}");
            }
        }
        Ok(())
    });
}

fn any_sys() -> impl Strategy<Value = HandshakeSys> {
    ("\\PC{0,20}", ".{0,20}", "[0-9]{0,5}", "\\PC{0,20}").prop_map(
        |(platform, lib_version, client_build_number, client_version)| HandshakeSys {
            platform,
            lib_version,
            client_build_number,
            client_version,
        },
    )
}

#[test]
fn handshake_requests_read_back_and_damaged_ones_never_panic() {
    fuzz((any_sys(), ".{0,10}", any::<i64>()), |(sys, key, value)| {
        let user = [(key, serde_json::Value::from(value))].into_iter().collect();
        let request = HandshakeRequest { sys, user };
        let body = handshake::encode_request(&request);
        prop_assert_eq!(handshake::decode_request(&body, body.len()).unwrap(), request);
        prop_assert!(handshake::decode_request(&body, body.len() - 1).is_err());
        Ok(())
    });
    let valid = any_sys().prop_map(|sys| {
        handshake::encode_request(&HandshakeRequest { sys, user: serde_json::Map::new() })
    });
    fuzz(prop_oneof![any_bytes(), mutated(valid)], |body| {
        if let Ok(request) = handshake::decode_request(&body, INPUT_BYTES_MAX) {
            prop_assert!(body.len() <= INPUT_BYTES_MAX);
            prop_assert!(request.sys.platform.len() <= body.len());
        }
        Ok(())
    });
}

#[test]
fn handshake_responses_read_back_and_damaged_ones_never_panic() {
    let entries = prop::collection::btree_map("[a-zA-Z.<&é]{1,30}", any::<u16>(), 0..20);
    fuzz((entries, 1u64..1_000_000, any::<bool>()), |(entries, heartbeat_s, compression)| {
        let mut dictionary = Dictionary::default();
        for (route, code) in &entries {
            // Codes that are taken or 0 are refused, which is not what this is about.
            let _ = dictionary.insert_all([(route, *code)]);
        }
        let options = HandshakeOptions {
            heartbeat_s,
            dictionary: &dictionary,
            serializer: "json",
            compression,
        };
        let responses = HandshakeResponses::new(&options).unwrap();
        let read = handshake::decode_response(&responses.accepted[packet::HEADER_BYTES..]).unwrap();
        prop_assert_eq!((read.code, read.heartbeat_s), (200, heartbeat_s));
        prop_assert!(read.dictionary.iter().eq(dictionary.iter()));
        Ok(())
    });
    let none = Dictionary::default();
    let options = HandshakeOptions {
        heartbeat_s: 30,
        dictionary: &none,
        serializer: "json",
        compression: true,
    };
    let valid =
        HandshakeResponses::new(&options).unwrap().accepted[packet::HEADER_BYTES..].to_vec();
    fuzz(prop_oneof![any_bytes(), mutated(Just(valid))], |body| {
        let _ = handshake::decode_response(&body);
        Ok(())
    });
}

#[test]
fn compressed_payloads_read_back_and_damaged_ones_stay_within_the_limit() {
    let compressible = (any_bytes(), 1usize..200).prop_map(|(bytes, times)| bytes.repeat(times));
    fuzz((compressible, mutated(any_bytes()), 0usize..20_000), |(input, noise, limit)| {
        let (mut deflater, mut inflater) = (Deflater::new(), Inflater::new());
        if let Some(compressed) = deflater.deflate(&input, 0) {
            prop_assert!(compressed.len() < input.len());
            match inflater.inflate(compressed, limit) {
                Ok(read) => prop_assert!(read == input && input.len() <= limit),
                Err(error) => {
                    prop_assert_eq!(error, InflateError::TooLarge { limit_bytes: limit });
                    prop_assert!(input.len() > limit);
                }
            }
            let mut damaged = compressed.to_vec();
            let at = noise.len() % damaged.len();
            damaged[at] ^= 0x55;
            let read = inflater.inflate(&damaged, limit);
            prop_assert!(read.is_err() || read.is_ok_and(|read| read.len() <= limit));
        }
        let read = inflater.inflate(&noise, limit);
        prop_assert!(read.is_err() || read.is_ok_and(|read| read.len() <= limit));
        Ok(())
    });
}

#[test]
fn error_bodies_read_back_and_damaged_ones_never_panic() {
    let metadata = prop::collection::btree_map(".{0,8}", ".{0,8}", 0..4);
    fuzz((".{1,12}", ".{1,40}", metadata, any_mutation()), |(code, msg, metadata, mutation)| {
        let mut error = Error::new(code, msg);
        error.metadata = metadata;
        for serializer in [Serializer::Json, Serializer::Protobuf] {
            let mut body = Vec::new();
            error.encode(serializer, &mut body);
            prop_assert_eq!(&serializer.decode_error(&body).unwrap(), &error);
            mutate(&mut body, mutation.clone());
            let _ = serializer.decode_error(&body);
        }
        Ok(())
    });
    fuzz(any_bytes(), |body| {
        let _ = (Serializer::Json.decode_error(&body), Serializer::Protobuf.decode_error(&body));
        Ok(())
    });
}

#[test]
fn session_data_are_kept_byte_for_byte_or_refused() {
    let valid = any_sys().prop_map(|sys| {
        handshake::encode_request(&HandshakeRequest { sys, user: serde_json::Map::new() })
    });
    fuzz((prop_oneof![any_bytes(), mutated(valid)], ".{0,20}"), |(data, uid)| {
        let mut session = Session::new(SessionId(1), IpVersion::V4);
        let before = session.data().to_vec();
        if session::check_uid(&uid).is_ok() {
            session.set_uid(&uid);
            prop_assert_eq!(session.uid(), uid);
        }
        match session.replace_data(&data) {
            Ok(()) if data.is_empty() => prop_assert_eq!(session.data(), before),
            Ok(()) => {
                prop_assert!(serde_json::from_slice::<serde_json::Value>(&data).is_ok());
                prop_assert_eq!(session.data(), data);
            }
            Err(_) => prop_assert_eq!(session.data(), before),
        }
        prop_assert!(session.encoded().ends_with(session.data()));
        Ok(())
    });
}

#[test]
fn durations_read_back_and_any_text_is_a_duration_or_an_error() {
    fuzz((0..=i64::MAX as u64, 0u32..63, ".{0,30}", "[-+0-9.nuµmsh]{0,12}"), |parts| {
        let (ns, shift, text, likely) = parts;
        let duration = std::time::Duration::from_nanos(ns >> shift);
        prop_assert_eq!(go_duration::parse(&go_duration::format(duration)), Ok(duration));
        let _ = (go_duration::parse(&text), go_duration::parse(&likely));
        Ok(())
    });
}

#[test]
fn a_limiter_survives_any_clock() {
    fuzz((0u32..8, any::<u64>(), prop::collection::vec(any::<u64>(), 0..64)), |parts| {
        let (limit, interval_ms, times) = parts;
        let rule = LimiterRule { limit, interval_ms };
        let mut limiter = Limiter::new(&rule);
        for now_ms in times {
            limiter.allow(now_ms);
            let ages = limiter.ages(now_ms);
            prop_assert!(
                ages.len() <= limit as usize && ages.is_sorted_by(|older, age| older >= age)
            );
            limiter = Limiter::from_ages(&rule, &ages, now_ms);
        }
        Ok(())
    });
}

fn proxy_header() -> impl Strategy<Value = Vec<u8>> {
    let line = (any::<[u8; 4]>(), any::<[u16; 2]>()).prop_map(|([a, b, c, d], [from, to])| {
        format!("PROXY TCP4 {a}.{b}.{c}.{d} {d}.{c}.{b}.{a} {from} {to}\r\n").into_bytes()
    });
    let binary = (prop::collection::vec(any::<u8>(), 12..300), 0x20..=0x21_u8, 0..0x32_u8);
    let binary = binary.prop_map(|(rest, command, family)| {
        let length = (rest.len() as u16).to_be_bytes();
        [&b"\r\n\r\n\0\r\nQUIT\n"[..], &[command, family], &length, &rest].concat()
    });
    prop_oneof![line, binary]
}

#[test]
fn proxy_headers_are_read_the_same_however_they_are_cut() {
    fuzz(mutated(proxy_header()), |bytes| {
        let whole = proxy::decode(&bytes);
        if let Ok(Some((_, taken))) = whole {
            prop_assert!(taken <= bytes.len() && taken <= proxy::HEADER_BYTES_MAX);
            for cut in 0..taken {
                prop_assert_eq!(proxy::decode(&bytes[..cut]), Ok(None));
            }
        }
        // More bytes than that are never waited for.
        let long = [&bytes[..], &[b'x'; proxy::HEADER_BYTES_MAX]].concat();
        prop_assert!(!matches!(proxy::decode(&long), Ok(None)));
        Ok(())
    });
    fuzz(any_bytes(), |bytes| {
        let _ = proxy::decode(&bytes);
        Ok(())
    });
}

#[test]
fn forwarded_addresses_are_one_of_those_that_stand_there() {
    let trusted = Networks::parse(["10.0.0.0/8", "::1"]).unwrap();
    let part = prop_oneof![
        "[0-9.:a-f\\[\\] ]{0,20}",
        any::<[u8; 4]>().prop_map(|octets| { std::net::Ipv4Addr::from(octets).to_string() })
    ];
    fuzz(prop::collection::vec(part, 0..6), |parts| {
        let text = parts.join(",");
        if let Some(client) = proxy::forwarded_client(Some(&text), None, &trusted) {
            let names_it = |part: &String| part.contains(&client.to_string()) || client.is_ipv6();
            prop_assert!(parts.iter().any(names_it), "{client} does not stand in {text}");
        }
        Ok(())
    });
}
