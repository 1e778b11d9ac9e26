//! Seeded fuzz: the views accept and refuse what the owned messages do, with equal values, and never panic.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod common;

use common::{owned, vectors, viewed};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;
use proto::wire::{
    BATCH_HEADER, BatchView, ErrorMetadata, ResponseView, SysRequest, WireError,
    encode_error_response, is_batch, put_batch_entry_head,
};

const MESSAGES: [&str; 6] = ["Request", "Response", "Session", "Push", "KickMsg", "BindMsg"];

/// The owned message ignores the wire type of a map's entries; the view does not.
fn is_known_difference(message: &str, error: WireError) -> bool {
    message == "Response" && matches!(error, WireError::WireType { field: 3 })
}

#[test]
fn no_message_is_a_batch_and_no_batch_a_message() {
    for vector in vectors() {
        assert!(!is_batch(&vector.bytes()));
    }
    for message in MESSAGES {
        assert!(owned(message, b"\x00\x01\x00\x00\x00\x01\x00\x00\x00\x00").is_err(), "{message}");
    }
}

fn check(message: &str, bytes: &[u8]) {
    let view = viewed(message, bytes).unwrap();
    match (owned(message, bytes), view) {
        (Ok((fields, _)), Ok(view)) => assert_eq!(view, fields, "{message} {bytes:02x?}"),
        (Err(_), Err(_)) => {}
        (Ok(_), Err(error)) if is_known_difference(message, error) => {}
        (Ok(_), Err(error)) => panic!("{message}: the view refuses {bytes:02x?}: {error}"),
        (Err(error), Ok(_)) => panic!("{message}: the view accepts {bytes:02x?}: {error}"),
    }
}

/// Bytes that look like protobuf: small keys, small lengths, nested slices.
fn message_like() -> impl Strategy<Value = Vec<u8>> {
    let field = prop_oneof![
        (0_u8..=0x3f, any::<u8>()).prop_map(|(key, byte)| vec![key, byte]),
        (0_u8..=0x3f, vec(any::<u8>(), 0..12)).prop_map(|(key, bytes)| {
            let mut field = vec![key, bytes.len() as u8];
            field.extend(bytes);
            field
        }),
        (1_u8..=5, "[a-zé]{0,6}").prop_map(|(number, text)| {
            let mut field = vec![number << 3 | 2, text.len() as u8];
            field.extend(text.as_bytes());
            field
        }),
        (1_u8..=7).prop_map(|number| vec![number << 3 | 3, 0x08, 1, number << 3 | 4]),
        vec(0x70_u8.., 1..12),
    ];
    field.prop_recursive(4, 24, 4, |inner| {
        (1_u8..=5, vec(inner, 0..4)).prop_map(|(number, parts)| {
            let body = parts.concat();
            let mut field = vec![number << 3 | 2, (body.len() & 0x7f) as u8];
            field.extend(body);
            field
        })
    })
}

/// How many times the usual cases are run; `./dev fuzz` raises it.
fn factor() -> u32 {
    std::env::var("FUZZ_FACTOR").ok().and_then(|text| text.parse().ok()).unwrap_or(1)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000 * factor(), failure_persistence: None, ..Default::default() })]

    #[test]
    fn random_bytes_are_judged_alike(bytes in vec(any::<u8>(), 0..64)) {
        for message in MESSAGES {
            check(message, &bytes);
        }
    }

    #[test]
    fn bytes_like_messages_are_judged_alike(fields in vec(message_like(), 0..6)) {
        let bytes = fields.concat();
        for message in MESSAGES {
            check(message, &bytes);
        }
    }

    #[test]
    fn changed_vectors_are_judged_alike(
        vector in any::<Index>(),
        changes in vec((any::<Index>(), any::<u8>(), 0_u8..3), 1..4),
    ) {
        let vectors = vectors();
        let vector = vector.get(&vectors);
        let mut bytes = vector.bytes();
        for (position, byte, kind) in changes {
            if bytes.is_empty() {
                break;
            }
            // Most changes go to the front, where the structure is; the rest is long text.
            let front = bytes.len().min(1 + usize::from(byte));
            let position = position.index(front);
            match kind {
                0 => bytes[position] = byte,
                1 => bytes.insert(position, byte),
                _ => drop(bytes.remove(position)),
            }
        }
        check(&vector.message, &bytes);
    }

    #[test]
    fn batches_are_read_to_their_end_or_refused(
        bytes in vec(prop_oneof![3 => Just(0_u8), 2 => 0_u8..6, 1 => any::<u8>()], 0..80),
        has_header in any::<bool>(),
    ) {
        let header = if has_header { &BATCH_HEADER[..] } else { &[] };
        let bytes = [header, &bytes].concat();
        if let Ok(batch) = BatchView::decode(&bytes) {
            let mut again = BATCH_HEADER.to_vec();
            for (token, message) in batch.entries() {
                put_batch_entry_head(token, message.len(), &mut again);
                again.extend_from_slice(message);
            }
            prop_assert!(is_batch(&bytes) && batch.len() > 0);
            prop_assert_eq!(batch.entries().count(), batch.len());
            prop_assert_eq!(again, bytes, "nothing is left out or read twice");
        }
    }

    #[test]
    fn iterating_over_broken_error_metadata_ends(bytes in vec(any::<u8>(), 0..64)) {
        if let Ok(view) = ResponseView::decode(&bytes) {
            let entries = view.error.as_ref().map(proto::wire::ErrorView::metadata);
            prop_assert!(entries.map_or(0, ErrorMetadata::count) <= bytes.len());
        }
    }

    #[test]
    fn encoded_requests_are_what_was_put_in(
        session in vec(any::<u8>(), 0..200),
        message_id in any::<u64>(),
        route in "[a-z.é]{0,300}",
        payload in vec(any::<u8>(), 0..300),
        is_notify in any::<bool>(),
        frontend_id in "[a-f0-9-]{0,36}",
    ) {
        // The session's bytes go through unread, so any valid message will do.
        let mut encoded_session = Vec::new();
        proto::wire::encode_session(5, "uid", &session, &mut encoded_session);
        let request = SysRequest {
            session: &encoded_session,
            message_id,
            route: &route,
            payload: &payload,
            is_notify,
            frontend_id: &frontend_id,
            metadata: b"{}",
        };
        let mut encoded = Vec::new();
        request.encode(&mut encoded);
        prop_assert_eq!(request.encoded_bytes(), encoded.len());
        let owned: proto::Request = prost::Message::decode(&encoded[..]).unwrap();
        let msg = owned.msg.clone().unwrap();
        prop_assert_eq!(msg.id, message_id);
        prop_assert_eq!(&msg.route, &route);
        prop_assert_eq!(&msg.data[..], &payload[..]);
        prop_assert_eq!(msg.r#type, i32::from(is_notify));
        prop_assert_eq!(&owned.session.as_ref().unwrap().data[..], &session[..]);
        prop_assert_eq!(prost::Message::encode_to_vec(&owned), encoded);
    }

    #[test]
    fn encoded_errors_are_what_was_put_in(
        code in ".{0,20}",
        msg in ".{0,200}",
        metadata in proptest::collection::btree_map(".{0,8}", ".{0,150}", 0..4),
    ) {
        let mut encoded = Vec::new();
        let entries = metadata.iter().map(|(key, value)| (key.as_str(), value.as_str()));
        encode_error_response(&code, &msg, entries, &mut encoded);
        let owned: proto::Response = prost::Message::decode(&encoded[..]).unwrap();
        prop_assert_eq!(prost::Message::encode_to_vec(&owned), encoded);
        prop_assert_eq!(owned.error.unwrap(), proto::Error { code, msg, metadata });
    }
}
