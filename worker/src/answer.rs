//! The encoded answers of a worker.
//!
//! Invariant: what leaves here fits into the link's largest payload. An answer that does not is replaced by an error
//! that does, because a silent loss costs the caller its whole timeout (cluster protocol 4.4).

use bytes::Bytes;
use prost::Message;
use shared::error::code;

use crate::error::{Error, Result};

/// The body that answers a notify.
const ACK: &[u8] = b"ack";

/// What a caller gets for a handler's outcome.
pub(crate) fn encode(outcome: Result<Bytes>, answer_bytes_max: usize) -> Bytes {
    let answer = match outcome {
        Ok(data) => proto::Response { data, error: None },
        Err(error) => proto::Response { data: Bytes::new(), error: Some(error_message(error)) },
    };
    let bytes = answer.encoded_len();
    if bytes <= answer_bytes_max {
        return answer.encode_to_vec().into();
    }
    let too_large = Error::unknown("nats: maximum payload exceeded")
        .with("bytes", bytes.to_string())
        .with("limit", answer_bytes_max.to_string());
    error(too_large)
}

/// An encoded error of ours, which is short.
pub(crate) fn error(error: Error) -> Bytes {
    let response = proto::Response { data: Bytes::new(), error: Some(error_message(error)) };
    response.encode_to_vec().into()
}

/// Refused because too much is queued: the caller may try another server.
pub(crate) fn busy() -> Bytes {
    error(Error::new(code::BUSY, "server is busy"))
}

/// The success of a notify.
pub(crate) fn ack() -> Bytes {
    Bytes::from_static(ACK)
}

fn error_message(error: Error) -> proto::Error {
    let code = if error.code.is_empty() { code::UNKNOWN.into() } else { error.code.into_owned() };
    proto::Error { code, msg: error.msg, metadata: error.metadata }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_of_exactly_the_limit_passes_and_one_byte_more_is_an_error() {
        let data = Bytes::from(vec![7; 1000]);
        let whole = encode(Ok(data.clone()), 1003);
        assert_eq!(whole.len(), 1003);
        let refused = proto::Response::decode(encode(Ok(data), 1002)).unwrap().error.unwrap();
        assert_eq!(refused.msg, "nats: maximum payload exceeded");
        assert_eq!(
            (refused.metadata["bytes"].as_str(), refused.metadata["limit"].as_str()),
            ("1003", "1002")
        );
    }

    #[test]
    fn an_error_that_is_too_large_is_replaced_too() {
        let long = Error::new("X-1", "x".repeat(2000));
        assert!(encode(Err(long), 1000).len() < 200);
    }

    #[test]
    fn the_acknowledgement_is_pitayas() {
        assert_eq!(&encode(Ok(ack()), 100)[..], b"\x0a\x03ack");
    }
}
