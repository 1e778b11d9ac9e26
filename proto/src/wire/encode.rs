//! Direct encoding into the caller's buffer, in ascending field order and with default values left out, so that the
//! bytes are those which the owned messages (and Go) would write.
//!
//! Lengths are computed first, nothing is moved afterwards and nothing is allocated besides the growth of the buffer.

/// The encoded [`Response`](crate::Response) with the data `ack`: the answer to a notify or a push.
pub const RESPONSE_ACK: &[u8] = b"\x0a\x03ack";
/// The answer of `sys.bindsession` and `sys.pushsession`: a response that carries an encoded [`RESPONSE_ACK`].
pub const RESPONSE_NESTED_ACK: &[u8] = b"\x0a\x05\x0a\x03ack";

// Keys of the fields: number << 3 | wire type. All numbers are below 16, so each key is one byte.
const FIELD_1_INTEGER: u8 = 0x08;
const FIELD_1_BYTES: u8 = 0x0a;
const FIELD_2_BYTES: u8 = 0x12;
const FIELD_3_BYTES: u8 = 0x1a;
const FIELD_4_BYTES: u8 = 0x22;
const FIELD_5_INTEGER: u8 = 0x28;
const FIELD_5_BYTES: u8 = 0x2a;

/// A client's message on its way to a backend: a Sys [`Request`](crate::Request) from prepared parts.
#[derive(Clone, Copy, Debug)]
pub struct SysRequest<'a> {
    /// The encoded [`Session`](crate::Session) without key and length, as [`encode_session`] writes it.
    pub session: &'a [u8],
    /// The client's message id; 0 for a notify.
    pub message_id: u64,
    /// `type.service.method`.
    pub route: &'a str,
    /// The client's payload, already inflated.
    pub payload: &'a [u8],
    /// True if the client waits for no answer.
    pub is_notify: bool,
    /// This frontend's server id.
    pub frontend_id: &'a str,
    /// Text of one JSON object; must not be empty (cluster protocol 6).
    pub metadata: &'a [u8],
}

impl SysRequest<'_> {
    /// How many bytes [`encode`](Self::encode) appends.
    pub fn encoded_bytes(&self) -> usize {
        slice_field_bytes(self.session.len())
            + slice_field_bytes(self.msg_bytes())
            + optional_slice_field_bytes(self.frontend_id.len())
            + optional_slice_field_bytes(self.metadata.len())
    }

    /// Appends the encoded request to `out`. Session and message are written even when all their fields are empty.
    pub fn encode(&self, out: &mut Vec<u8>) {
        debug_assert!(
            !self.metadata.is_empty(),
            "Go answers a request without metadata with an error"
        );
        let start = out.len();
        put_slice(FIELD_2_BYTES, self.session, out);
        out.push(FIELD_3_BYTES);
        put_varint(self.msg_bytes() as u64, out);
        if self.message_id != 0 {
            out.push(FIELD_1_INTEGER);
            put_varint(self.message_id, out);
        }
        put_optional_slice(FIELD_2_BYTES, self.route.as_bytes(), out);
        put_optional_slice(FIELD_3_BYTES, self.payload, out);
        if self.is_notify {
            out.extend_from_slice(&[FIELD_5_INTEGER, 1]);
        }
        put_optional_slice(FIELD_4_BYTES, self.frontend_id.as_bytes(), out);
        put_optional_slice(FIELD_5_BYTES, self.metadata, out);
        debug_assert_eq!(out.len() - start, self.encoded_bytes());
    }

    fn msg_bytes(&self) -> usize {
        optional_integer_field_bytes(self.message_id)
            + optional_slice_field_bytes(self.route.len())
            + optional_slice_field_bytes(self.payload.len())
            + if self.is_notify { 2 } else { 0 }
    }
}

/// Appends an encoded [`Session`](crate::Session); `data` is the text of a JSON object or empty.
pub fn encode_session(id: i64, uid: &str, data: &[u8], out: &mut Vec<u8>) {
    if id != 0 {
        out.push(FIELD_1_INTEGER);
        put_varint(id as u64, out);
    }
    put_optional_slice(FIELD_2_BYTES, uid.as_bytes(), out);
    put_optional_slice(FIELD_3_BYTES, data, out);
}

/// Appends an encoded successful [`Response`](crate::Response). Empty data appends nothing, which is valid.
pub fn encode_response(data: &[u8], out: &mut Vec<u8>) {
    put_optional_slice(FIELD_1_BYTES, data, out);
}

/// Appends an encoded [`Response`](crate::Response) that says why a call failed. `metadata` is walked twice.
pub fn encode_error_response<'a>(
    code: &str,
    msg: &str,
    metadata: impl Iterator<Item = (&'a str, &'a str)> + Clone,
    out: &mut Vec<u8>,
) {
    let entry_bytes = |key: &str, value: &str| {
        optional_slice_field_bytes(key.len()) + optional_slice_field_bytes(value.len())
    };
    let metadata_bytes: usize =
        metadata.clone().map(|(key, value)| slice_field_bytes(entry_bytes(key, value))).sum();
    let error_bytes = optional_slice_field_bytes(code.len())
        + optional_slice_field_bytes(msg.len())
        + metadata_bytes;
    out.reserve(slice_field_bytes(error_bytes));
    out.push(FIELD_2_BYTES);
    put_varint(error_bytes as u64, out);
    put_optional_slice(FIELD_1_BYTES, code.as_bytes(), out);
    put_optional_slice(FIELD_2_BYTES, msg.as_bytes(), out);
    for (key, value) in metadata {
        out.push(FIELD_3_BYTES);
        put_varint(entry_bytes(key, value) as u64, out);
        put_optional_slice(FIELD_1_BYTES, key.as_bytes(), out);
        put_optional_slice(FIELD_2_BYTES, value.as_bytes(), out);
    }
}

#[inline]
fn put_varint(mut value: u64, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

#[inline]
pub(super) fn put_slice(key: u8, slice: &[u8], out: &mut Vec<u8>) {
    out.push(key);
    put_varint(slice.len() as u64, out);
    out.extend_from_slice(slice);
}

#[inline]
pub(super) fn put_optional_slice(key: u8, slice: &[u8], out: &mut Vec<u8>) {
    if !slice.is_empty() {
        put_slice(key, slice, out);
    }
}

#[inline]
fn varint_bytes(value: u64) -> usize {
    // Seven bits a byte, and at least one byte.
    (70 - (value | 1).leading_zeros() as usize) / 7
}

#[inline]
pub(super) fn slice_field_bytes(bytes: usize) -> usize {
    1 + varint_bytes(bytes as u64) + bytes
}

#[inline]
pub(super) fn optional_slice_field_bytes(bytes: usize) -> usize {
    if bytes == 0 { 0 } else { slice_field_bytes(bytes) }
}

#[inline]
fn optional_integer_field_bytes(value: u64) -> usize {
    if value == 0 { 0 } else { 1 + varint_bytes(value) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integer_lengths_are_right_at_every_border() {
        for bits in 0..64 {
            for value in [(1_u64 << bits) - 1, 1 << bits, u64::MAX >> bits] {
                let mut out = Vec::new();
                put_varint(value, &mut out);
                assert_eq!(out.len(), varint_bytes(value), "{value}");
            }
        }
    }

    #[test]
    fn an_empty_success_has_no_bytes() {
        let mut out = Vec::new();
        encode_response(&[], &mut out);
        assert!(out.is_empty());
    }

    #[test]
    fn the_constant_answers_are_what_encoding_gives() {
        let (mut ack, mut nested) = (Vec::new(), Vec::new());
        encode_response(b"ack", &mut ack);
        encode_response(&ack, &mut nested);
        assert_eq!((&ack[..], &nested[..]), (RESPONSE_ACK, RESPONSE_NESTED_ACK));
    }
}
