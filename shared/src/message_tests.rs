//! The vectors of the client protocol, sections 18.3 and 18.4, and the edges of the encoder.

use super::*;
use crate::compression::{InflateError, Inflater};

const PLAIN: u8 = 0;

fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter(|byte| !byte.is_ascii_whitespace()).collect();
    digits
        .chunks(2)
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
        .collect()
}

fn dictionary(entries: &[(&str, u16)]) -> Dictionary {
    let mut dictionary = Dictionary::default();
    dictionary.insert_all(entries.iter().copied()).unwrap();
    dictionary
}

fn dictionary_a() -> Dictionary {
    dictionary(&[("a", 1)])
}

fn dictionary_d() -> Dictionary {
    dictionary(&[("onMessage", 4), ("room.room.join", 260)])
}

/// Checks that the vector decodes to these parts and that the parts encode to the vector.
fn check(
    name: &str,
    dictionary: &Dictionary,
    vector: &str,
    expected: (MessageType, u64, &str, &[u8], u8),
) {
    let (kind, id, route, payload, flags) = expected;
    let body = hex(vector);
    let message = decode(&body, dictionary).unwrap();
    let decoded = (message.kind, message.id, message.route, message.payload);
    assert_eq!(decoded, (kind, id, route.as_bytes(), payload), "{name}");
    assert_eq!(
        (message.is_compressed, message.is_error),
        (flags & COMPRESSED != 0, flags & ERROR != 0)
    );

    let head =
        Head { kind, id, route, is_compressed: message.is_compressed, is_error: message.is_error };
    let mut out = Vec::new();
    encode_head(&head, dictionary, &mut out).unwrap();
    assert_eq!(out.len(), head_bytes(&head, dictionary), "{name}");
    out.extend_from_slice(payload);
    assert_eq!(out, body, "{name}");
}

#[test]
fn the_published_messages_decode_and_encode() {
    use MessageType::{Notify, Push, Request, Response};
    let none = Dictionary::default();
    let a = dictionary_a();
    let d = dictionary_d();
    check("M1", &none, "00000161", (Request, 0, "a", b"", PLAIN));
    check("M2", &a, "01000001", (Request, 0, "a", b"", PLAIN));
    check("M3", &none, "020161", (Notify, 0, "a", b"", PLAIN));
    check("M4", &a, "030001", (Notify, 0, "a", b"", PLAIN));
    check("M5", &none, "060161", (Push, 0, "a", b"", PLAIN));
    check("M6", &a, "070001", (Push, 0, "a", b"", PLAIN));
    check("M7", &none, "0400", (Response, 0, "", b"", PLAIN));
    check("M8", &none, "040001", (Response, 0, "", b"\x01", PLAIN));
    check("M9", &none, "048101", (Response, 129, "", b"", PLAIN));
    check("M10", &none, "240001", (Response, 0, "", b"\x01", ERROR));
    let join = "room.room.join";
    check("M12", &none, "00010e726f6f6d2e726f6f6d2e6a6f696e7b7d", (Request, 1, join, b"{}", PLAIN));
    check(
        "M13",
        &none,
        "00ac020e726f6f6d2e726f6f6d2e6a6f696e7b7d",
        (Request, 300, join, b"{}", PLAIN),
    );
    check("M14", &d, "010101047b7d", (Request, 1, join, b"{}", PLAIN));
    check("M15", &d, "0301047b7d", (Notify, 0, join, b"{}", PLAIN));
    let x = br#"{"x":1}"#;
    check("M16", &none, "06096f6e4d6573736167657b2278223a317d", (Push, 0, "onMessage", x, PLAIN));
    check("M17", &d, "0700047b2278223a317d", (Push, 0, "onMessage", x, PLAIN));
    check(
        "M18",
        &none,
        "04017b22636f6465223a3230307d",
        (Response, 1, "", br#"{"code":200}"#, PLAIN),
    );
    check("M23", &none, "0480808080808080808001", (Response, 1 << 63, "", b"", PLAIN));
}

#[test]
fn padded_ids_and_unused_bits_are_read_like_plain_ones() {
    let none = Dictionary::default();
    let body = hex("0081000161");
    let padded = decode(&body, &none).unwrap();
    assert_eq!((padded.kind, padded.id, padded.route), (MessageType::Request, 1, &b"a"[..]), "M21");
    let body = hex("c20161");
    let unused = decode(&body, &none).unwrap();
    assert_eq!((unused.kind, unused.route), (MessageType::Notify, &b"a"[..]), "M22");
    let body = hex("00ffffffffffffffffff010161");
    assert_eq!(decode(&body, &none).unwrap().id, u64::MAX);
}

const M20: &str = "10070e726f6f6d2e726f6f6d2e6a6f696e
    789cab56ca4bcc4d55b252aa201228d502002926161c";

#[test]
fn compressed_payloads_are_found_and_inflate() {
    let none = Dictionary::default();
    let mut inflater = Inflater::new();
    let body = hex("3400789c4aca49240601020000ffff33ff0f64");
    let message = decode(&body, &none).unwrap();
    assert!(message.is_compressed && message.is_error, "M11");
    assert_eq!(inflater.inflate(message.payload, 39).unwrap(), "bla".repeat(13).as_bytes());

    let body = hex("16096f6e4d657373616765789c4aa40300040000ffff7a4725e5");
    let message = decode(&body, &none).unwrap();
    assert_eq!((message.kind, message.route), (MessageType::Push, &b"onMessage"[..]), "M19");
    assert_eq!(inflater.inflate(message.payload, 100).unwrap(), "a".repeat(100).as_bytes());

    let body = hex(M20);
    let message = decode(&body, &none).unwrap();
    assert_eq!((message.kind, message.id), (MessageType::Request, 7), "M20");
    let expected = format!(r#"{{"name":"{}"}}"#, "x".repeat(40));
    assert_eq!(inflater.inflate(message.payload, 64).unwrap(), expected.as_bytes());
}

#[test]
fn the_messages_that_must_close_a_connection_are_refused() {
    let none = Dictionary::default();
    let d = dictionary_d();
    let refused = [
        ("B1", &none, "", MessageError::Truncated),
        ("B2", &none, "00", MessageError::Truncated),
        ("B3", &none, "0801", MessageError::UnknownType),
        ("B4", &none, "0e01", MessageError::UnknownType),
        ("B5", &none, "0001", MessageError::Truncated),
        ("B6", &none, "00010261", MessageError::Truncated),
        ("B7", &none, "0601", MessageError::Truncated),
        ("B8", &none, "0080", MessageError::Truncated),
        ("B9", &d, "010103e7", MessageError::UnknownCode { code: 999 }),
        ("B10", &d, "010104", MessageError::Truncated),
        ("endless id", &none, "0080808080808080808080808001", MessageError::IdTooLong),
        ("id of 65 bits", &none, "00ffffffffffffffffff020161", MessageError::IdTooLong),
        ("cut id", &none, "04808080", MessageError::Truncated),
    ];
    for (name, dictionary, vector, error) in refused {
        assert_eq!(decode(&hex(vector), dictionary), Err(error), "{name}");
    }
}

#[test]
fn broken_streams_are_refused_and_bytes_behind_a_stream_are_ignored() {
    let none = Dictionary::default();
    let mut inflater = Inflater::new();
    let refused = [
        ("B11", "10070161", InflateError::Truncated),
        ("B12", "10070161ab56ca4bcc4d55b252aa201228d50200", InflateError::Invalid),
        (
            "B13",
            "100701611f8b0800000000000003ab56ca4bcc4d55b252aa201228d502002f39bdf433000000",
            InflateError::Invalid,
        ),
    ];
    for (name, vector, error) in refused {
        let body = hex(vector);
        let message = decode(&body, &none).unwrap();
        assert_eq!(inflater.inflate(message.payload, 1024), Err(error), "{name}");
    }
    let mut body = hex(M20);
    body.extend([0, 0]);
    let payload = decode(&body, &none).unwrap().payload;
    assert_eq!(inflater.inflate(payload, 1024).map(<[u8]>::len), Ok(51), "B16");
    let stream = &payload[..payload.len() - 2];
    let mut damaged = stream.to_vec();
    *damaged.last_mut().unwrap() ^= 1;
    assert_eq!(inflater.inflate(&damaged, 1024), Err(InflateError::Invalid), "B14");
    let cut = &stream[..stream.len() - 1];
    assert_eq!(inflater.inflate(cut, 1024), Err(InflateError::Truncated), "B15");
}

#[test]
fn an_empty_route_decodes_and_is_left_to_the_router() {
    let message_bytes = hex("000100");
    let none = Dictionary::default();
    assert_eq!(decode(&message_bytes, &none).unwrap().route, b"", "B17");
    assert_eq!(decode(&hex("0200"), &none).unwrap().kind, MessageType::Notify);
}

#[test]
fn a_route_of_255_bytes_is_written_and_one_of_256_is_refused() {
    let none = Dictionary::default();
    let longest = "r".repeat(ROUTE_BYTES_MAX);
    let mut head = Head {
        kind: MessageType::Push,
        id: 0,
        route: &longest,
        is_compressed: false,
        is_error: false,
    };
    let mut out = Vec::new();
    encode_head(&head, &none, &mut out).unwrap();
    assert_eq!(decode(&out, &none).unwrap().route, longest.as_bytes());
    let longer = "r".repeat(ROUTE_BYTES_MAX + 1);
    head.route = &longer;
    out.clear();
    assert_eq!(encode_head(&head, &none, &mut out), Err(MessageError::RouteTooLong { bytes: 256 }));
    assert!(out.is_empty());
}

#[test]
fn pushes_use_codes_only_while_the_dictionary_is_for_pushes() {
    let mut dictionary = dictionary_a();
    dictionary.for_pushes = false;
    let mut head =
        Head { kind: MessageType::Push, id: 0, route: "a", is_compressed: false, is_error: false };
    let mut out = Vec::new();
    encode_head(&head, &dictionary, &mut out).unwrap();
    assert_eq!(out, [6, 1, b'a']);
    head.kind = MessageType::Notify;
    out.clear();
    encode_head(&head, &dictionary, &mut out).unwrap();
    assert_eq!(out, [3, 0, 1]);
}
