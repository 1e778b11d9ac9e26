//! The message inside a data packet: a flag byte, an id, a route, a payload.
//!
//! ```text
//! flag byte   bit 7   6   5      4          3..1     0
//!                 -   -   error  compressed type     route is a code
//!
//! request     flag, varint id, route, payload        route = 1 byte of length and the bytes,
//! notify      flag, route, payload                           or a code of 2 bytes when bit 0 is set
//! response    flag, varint id, payload
//! push        flag, route, payload
//! ```
//!
//! Payloads are neither inflated nor read here. The invariant: every slice of a decoded message lies inside the
//! body or the dictionary, and whatever [`encode_head`] wrote decodes to the same head.

#![deny(clippy::indexing_slicing)]

use thiserror::Error;

use crate::dictionary::Dictionary;
use crate::varint;

/// The longest route that its one byte of length can announce.
pub const ROUTE_BYTES_MAX: usize = 255;

/// No message is shorter: even a response without a payload has a flag and an id.
const BODY_BYTES_MIN: usize = 2;

const ROUTE_IS_CODE: u8 = 0x01;
const TYPE_MASK: u8 = 0x07;
const TYPE_SHIFT: u8 = 1;
const COMPRESSED: u8 = 0x10;
const ERROR: u8 = 0x20;

/// Who waits for what (client protocol 3.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum MessageType {
    /// Client to server, expects a response with the same id.
    Request = 0,
    /// Client to server, expects nothing.
    Notify = 1,
    /// Server to client, answers a request.
    Response = 2,
    /// Server to client, unasked.
    Push = 3,
}

impl MessageType {
    fn from_flag(flag: u8) -> Option<Self> {
        match (flag >> TYPE_SHIFT) & TYPE_MASK {
            0 => Some(Self::Request),
            1 => Some(Self::Notify),
            2 => Some(Self::Response),
            3 => Some(Self::Push),
            _ => None,
        }
    }

    fn has_id(self) -> bool {
        matches!(self, Self::Request | Self::Response)
    }

    fn has_route(self) -> bool {
        !matches!(self, Self::Response)
    }
}

/// A decoded message, borrowing the packet's body and the dictionary.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Message<'a> {
    /// Who waits for what.
    pub kind: MessageType,
    /// The client's number of the request; 0 for the types that have none, and for a request that wants no answer.
    pub id: u64,
    /// The route, already looked up if it came as a code. Raw bytes of the peer: perhaps not UTF-8, perhaps empty.
    /// Empty for responses.
    pub route: &'a [u8],
    /// The rest of the body, still compressed if `is_compressed`.
    pub payload: &'a [u8],
    /// The payload is a zlib stream.
    pub is_compressed: bool,
    /// The payload is an error body. Only meaningful in responses.
    pub is_error: bool,
}

/// What stands in front of a payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head<'a> {
    /// Who waits for what.
    pub kind: MessageType,
    /// Written for requests and responses only.
    pub id: u64,
    /// Written for all types but responses; as a code if the dictionary has one.
    pub route: &'a str,
    /// The payload that follows is a zlib stream.
    pub is_compressed: bool,
    /// The payload that follows is an error body.
    pub is_error: bool,
}

/// Why bytes are not a message, or a head cannot be written. The peer's fault, except for `RouteTooLong`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum MessageError {
    /// The body ends inside the flag, the id or the route.
    #[error("invalid message: it ends too early")]
    Truncated,
    /// The type is 4 to 7.
    #[error("wrong message type")]
    UnknownType,
    /// The id does not fit 64 bits.
    #[error("invalid message: its id is longer than 64 bits")]
    IdTooLong,
    /// The code is not in the dictionary.
    #[error("route info not found in dictionary: {code}")]
    UnknownCode {
        /// The code that the peer sent.
        code: u16,
    },
    /// Our own route does not fit its length byte.
    #[error("route of {bytes} bytes is longer than {ROUTE_BYTES_MAX}")]
    RouteTooLong {
        /// Length of the route.
        bytes: usize,
    },
}

/// Reads the body of a data packet. Never inflates, copies or allocates.
///
/// # Errors
/// Any [`MessageError`] but `RouteTooLong`; a frontend closes the connection then (client protocol 3.7).
pub fn decode<'a>(body: &'a [u8], dictionary: &'a Dictionary) -> Result<Message<'a>, MessageError> {
    if body.len() < BODY_BYTES_MIN {
        return Err(MessageError::Truncated);
    }
    let (&flag, mut rest) = body.split_first().ok_or(MessageError::Truncated)?;
    let kind = MessageType::from_flag(flag).ok_or(MessageError::UnknownType)?;
    let mut id = 0;
    if kind.has_id() {
        (id, rest) = take_id(rest)?;
    }
    let mut route: &[u8] = &[];
    if kind.has_route() {
        (route, rest) = match flag & ROUTE_IS_CODE {
            0 => take_route(rest)?,
            _ => take_route_code(rest, dictionary)?,
        };
    }
    Ok(Message {
        kind,
        id,
        route,
        payload: rest,
        is_compressed: flag & COMPRESSED != 0,
        is_error: flag & ERROR != 0,
    })
}

fn take_id(bytes: &[u8]) -> Result<(u64, &[u8]), MessageError> {
    let (id, taken) = varint::decode(bytes).map_err(|error| match error {
        varint::VarintError::Incomplete => MessageError::Truncated,
        varint::VarintError::TooLong => MessageError::IdTooLong,
    })?;
    Ok((id, bytes.get(taken..).unwrap_or_default()))
}

fn take_route(bytes: &[u8]) -> Result<(&[u8], &[u8]), MessageError> {
    let (&length, rest) = bytes.split_first().ok_or(MessageError::Truncated)?;
    rest.split_at_checked(usize::from(length)).ok_or(MessageError::Truncated)
}

fn take_route_code<'a>(
    bytes: &'a [u8],
    dictionary: &'a Dictionary,
) -> Result<(&'a [u8], &'a [u8]), MessageError> {
    let (&code, rest) = bytes.split_first_chunk::<2>().ok_or(MessageError::Truncated)?;
    let code = u16::from_be_bytes(code);
    let route = dictionary.route(code).ok_or(MessageError::UnknownCode { code })?;
    Ok((route.as_bytes(), rest))
}

/// Appends everything that stands before the payload; `out` is untouched when it fails.
///
/// A route becomes a code when the dictionary has one; for pushes only while [`Dictionary::for_pushes`] is set.
/// Responses never carry the code bit.
///
/// # Errors
/// [`MessageError::RouteTooLong`] when the route has no code and more than [`ROUTE_BYTES_MAX`] bytes.
pub fn encode_head(
    head: &Head<'_>,
    dictionary: &Dictionary,
    out: &mut Vec<u8>,
) -> Result<(), MessageError> {
    let code = route_code(head, dictionary);
    let is_written_out = head.kind.has_route() && code.is_none();
    if is_written_out && head.route.len() > ROUTE_BYTES_MAX {
        return Err(MessageError::RouteTooLong { bytes: head.route.len() });
    }
    let mut flag = (head.kind as u8) << TYPE_SHIFT;
    for (is_set, bit) in
        [(code.is_some(), ROUTE_IS_CODE), (head.is_compressed, COMPRESSED), (head.is_error, ERROR)]
    {
        flag |= if is_set { bit } else { 0 };
    }
    out.push(flag);
    if head.kind.has_id() {
        varint::encode(head.id, out);
    }
    if let Some(code) = code {
        out.extend_from_slice(&code.to_be_bytes());
    } else if is_written_out {
        out.push(head.route.len() as u8);
        out.extend_from_slice(head.route.as_bytes());
    }
    Ok(())
}

/// How many bytes [`encode_head`] appends for this head, so that a packet or frame header can go first. Means nothing
/// for a head that it refuses.
pub fn head_bytes(head: &Head<'_>, dictionary: &Dictionary) -> usize {
    let id_bytes = if head.kind.has_id() { varint::encoded_bytes(head.id) } else { 0 };
    let route_bytes = match route_code(head, dictionary) {
        Some(_) => 2,
        None if head.kind.has_route() => 1 + head.route.len(),
        None => 0,
    };
    1 + id_bytes + route_bytes
}

fn route_code(head: &Head<'_>, dictionary: &Dictionary) -> Option<u16> {
    let may_use_code = match head.kind {
        MessageType::Response => false,
        MessageType::Push => dictionary.for_pushes,
        MessageType::Request | MessageType::Notify => true,
    };
    if may_use_code && !dictionary.is_empty() { dictionary.code(head.route) } else { None }
}

#[cfg(test)]
#[path = "message_tests.rs"]
mod tests;
