//! Bytes that running Pitaya servers have sent, against both forms of the messages.

mod common;

use common::{owned, vectors, viewed};
use proto::wire::{
    RequestView, ResponseView, SysRequest, encode_error_response, encode_response, encode_session,
};

#[test]
fn there_are_37_vectors() {
    assert_eq!(vectors().len(), 37);
}

#[test]
fn owned_messages_decode_to_the_known_fields_and_encode_to_the_same_bytes() {
    for vector in vectors() {
        let bytes = vector.bytes();
        let (fields, encoded) = owned(&vector.message, &bytes).unwrap();
        assert_eq!(fields, vector.fields, "{}", vector.name);
        assert_eq!(encoded, bytes, "{}", vector.name);
    }
}

#[test]
fn views_agree_with_the_known_fields() {
    for vector in vectors() {
        let fields = viewed(&vector.message, &vector.bytes()).expect("every vector has a view");
        assert_eq!(fields.unwrap(), vector.fields, "{}", vector.name);
    }
}

#[test]
fn carried_messages_decode_to_the_known_fields() {
    let mut seen = 0;
    for vector in vectors() {
        let Some(inner) = &vector.inner else { continue };
        let bytes = vector.bytes();
        let data = match vector.message.as_str() {
            "Request" => RequestView::decode(&bytes).unwrap().msg.unwrap().data,
            _ => ResponseView::decode(&bytes).unwrap().data,
        };
        let (fields, encoded) = owned(&inner.message, data).unwrap();
        assert_eq!(fields, inner.fields, "{}", vector.name);
        assert_eq!(encoded, data, "{}", vector.name);
        seen += 1;
    }
    assert_eq!(seen, 11);
}

#[test]
fn forwarded_requests_are_encoded_to_the_bytes_that_go_sends() {
    let mut seen = 0;
    for vector in vectors() {
        let bytes = vector.bytes();
        let Ok(view) = RequestView::decode(&bytes) else { continue };
        let (Some(session), Some(msg), 0) = (view.session, view.msg, view.rpc_type) else {
            continue;
        };
        let mut encoded_session = Vec::new();
        encode_session(session.id, session.uid, session.data, &mut encoded_session);
        let request = SysRequest {
            session: &encoded_session,
            message_id: msg.id,
            route: msg.route,
            payload: msg.data,
            is_notify: msg.msg_type == 1,
            frontend_id: view.frontend_id,
            metadata: view.metadata,
        };
        let mut encoded = b"before".to_vec();
        request.encode(&mut encoded);
        assert_eq!(encoded.strip_prefix(b"before").unwrap(), bytes, "{}", vector.name);
        assert_eq!(request.encoded_bytes(), bytes.len(), "{}", vector.name);
        seen += 1;
    }
    assert_eq!(seen, 9);
}

#[test]
fn responses_are_encoded_to_the_bytes_that_go_sends() {
    let mut seen = 0;
    for vector in vectors().iter().filter(|vector| vector.message == "Response") {
        let bytes = vector.bytes();
        let view = ResponseView::decode(&bytes).unwrap();
        let mut encoded = Vec::new();
        match view.error {
            Some(error) => {
                encode_error_response(error.code, error.msg, error.metadata(), &mut encoded);
            }
            None => encode_response(view.data, &mut encoded),
        }
        assert_eq!(encoded, bytes, "{}", vector.name);
        seen += 1;
    }
    assert_eq!(seen, 18);
}
