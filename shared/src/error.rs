//! The error that a client sees: a code, a text and perhaps some facts (client protocol 14.3).
//!
//! Both body forms are written and read here, JSON and protobuf. The invariant: an encoded error always has a code and a
//! text, because clients rely on both.

#![deny(clippy::indexing_slicing)]

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use thiserror::Error as ThisError;

use crate::go;
use crate::route::RouteError;
use crate::session::UidError;
use crate::varint;

/// Codes with a fixed meaning. Applications use their own as well.
pub mod code {
    /// An error without a code of its own.
    pub const UNKNOWN: &str = "PIT-000";
    /// Route, argument or message type is wrong.
    pub const BAD_REQUEST: &str = "PIT-400";
    /// No such handler.
    pub const NOT_FOUND: &str = "PIT-404";
    /// The server that was asked did not answer in time.
    pub const REQUEST_TIMEOUT: &str = "PIT-408";
    /// The client asks more often than it may.
    pub const TOO_MANY: &str = "PIT-429";
    /// The client's connection broke while the answer was written; only in metrics.
    pub const CLOSED_REQUEST: &str = "PIT-498";
    /// The client was gone before the answer; only in metrics and in results of the API.
    pub const CLIENT_CLOSED: &str = "PIT-499";
    /// No server to ask, or our own failure.
    pub const INTERNAL: &str = "PIT-500";
    /// The server refuses more work at the moment.
    pub const BUSY: &str = "PIT-503";
}

/// An error with a code.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    /// One of [`code`], or the application's.
    pub code: Cow<'static, str>,
    /// For people. An empty one is sent as the code.
    pub msg: String,
    /// Further facts, sorted by name.
    pub metadata: BTreeMap<String, String>,
}

impl Error {
    /// An error without further facts.
    pub fn new(code: impl Into<Cow<'static, str>>, msg: impl Into<String>) -> Self {
        Self { code: code.into(), msg: msg.into(), metadata: BTreeMap::new() }
    }

    /// Adds a fact; an earlier one of the same name is replaced.
    pub fn with(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.metadata.insert(key.into(), value.into());
        self
    }

    /// Appends the error's body in the form of `serializer`.
    pub fn encode(&self, serializer: Serializer, out: &mut Vec<u8>) {
        let metadata = self.metadata.iter().map(|(key, value)| (key.as_str(), value.as_str()));
        serializer.encode_error(&self.code, &self.msg, metadata, out);
    }
}

impl fmt::Display for Error {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}: {}", self.code, self.msg)
    }
}

impl std::error::Error for Error {}

impl From<RouteError> for Error {
    fn from(error: RouteError) -> Self {
        Self::new(code::BAD_REQUEST, error.to_string())
    }
}

impl From<UidError> for Error {
    fn from(error: UidError) -> Self {
        Self::new(code::BAD_REQUEST, error.to_string()).with("reason", error.reason())
    }
}

/// The application's serializer. A frontend needs it for error bodies and to announce it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Serializer {
    /// `pitaya.serializertype` 1.
    #[default]
    Json,
    /// `pitaya.serializertype` 2.
    Protobuf,
}

/// An error body that cannot be read; the peer's fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ThisError)]
#[error("not an error body in the form {}", .0.name())]
pub struct ErrorBodyError(pub Serializer);

impl Serializer {
    /// The name in the handshake.
    pub fn name(self) -> &'static str {
        match self {
            Self::Json => "json",
            Self::Protobuf => "protobuf",
        }
    }

    /// The serializer with the number that `pitaya.serializertype` has.
    pub fn from_number(number: i64) -> Option<Self> {
        match number {
            1 => Some(Self::Json),
            2 => Some(Self::Protobuf),
            _ => None,
        }
    }

    /// Appends an error body. An empty code is sent as [`code::UNKNOWN`], an empty text as the code. Metadata
    /// may come in any order and is written sorted; of equal keys the last counts.
    pub fn encode_error<'a>(
        self,
        code: &str,
        msg: &str,
        metadata: impl Iterator<Item = (&'a str, &'a str)>,
        out: &mut Vec<u8>,
    ) {
        let code = if code.is_empty() { code::UNKNOWN } else { code };
        let msg = if msg.is_empty() { code } else { msg };
        let metadata: BTreeMap<&str, &str> = metadata.collect();
        match self {
            Self::Json => encode_json(code, msg, &metadata, out),
            Self::Protobuf => encode_protobuf(code, msg, &metadata, out),
        }
    }

    /// Reads an error body leniently: absent members are empty, a missing code is [`code::UNKNOWN`], unknown members
    /// are ignored.
    ///
    /// # Errors
    /// [`ErrorBodyError`] when the body is not in this form at all.
    pub fn decode_error(self, body: &[u8]) -> Result<Error, ErrorBodyError> {
        let mut error = match self {
            Self::Json => decode_json(body),
            Self::Protobuf => decode_protobuf(body),
        }
        .ok_or(ErrorBodyError(self))?;
        if error.code.is_empty() {
            error.code = code::UNKNOWN.into();
        }
        Ok(error)
    }
}

fn encode_json(code: &str, msg: &str, metadata: &BTreeMap<&str, &str>, out: &mut Vec<u8>) {
    out.extend_from_slice(br#"{"code":"#);
    go::quote_json(code, out);
    out.extend_from_slice(br#","msg":"#);
    go::quote_json(msg, out);
    if !metadata.is_empty() {
        out.extend_from_slice(br#","metadata":{"#);
        for (index, (key, value)) in metadata.iter().enumerate() {
            if index > 0 {
                out.push(b',');
            }
            go::quote_json(key, out);
            out.push(b':');
            go::quote_json(value, out);
        }
        out.push(b'}');
    }
    out.push(b'}');
}

fn decode_json(body: &[u8]) -> Option<Error> {
    // Pitaya's Go client makes bodies of its own with capital letters for timeouts.
    #[derive(serde::Deserialize)]
    struct Body {
        #[serde(default, alias = "Code")]
        code: Option<String>,
        #[serde(default, alias = "Message")]
        msg: Option<String>,
        #[serde(default, alias = "Metadata")]
        metadata: Option<BTreeMap<String, String>>,
    }
    let body: Body = serde_json::from_slice(body).ok()?;
    Some(Error {
        code: body.code.unwrap_or_default().into(),
        msg: body.msg.unwrap_or_default(),
        metadata: body.metadata.unwrap_or_default(),
    })
}

/// Tags of the protobuf fields: `code = 1`, `msg = 2`, `metadata = 3` with entries `key = 1`, `value = 2`; all
/// have a length.
const TAG_1: u8 = 0x0a;
const TAG_2: u8 = 0x12;
const TAG_3: u8 = 0x1a;

fn encode_protobuf(code: &str, msg: &str, metadata: &BTreeMap<&str, &str>, out: &mut Vec<u8>) {
    push_field(TAG_1, code.as_bytes(), out);
    push_field(TAG_2, msg.as_bytes(), out);
    let mut entry = Vec::new();
    for (key, value) in metadata {
        entry.clear();
        push_field(TAG_1, key.as_bytes(), &mut entry);
        push_field(TAG_2, value.as_bytes(), &mut entry);
        push_field(TAG_3, &entry, out);
    }
}

fn push_field(tag: u8, bytes: &[u8], out: &mut Vec<u8>) {
    out.push(tag);
    varint::encode(bytes.len() as u64, out);
    out.extend_from_slice(bytes);
}

fn decode_protobuf(mut body: &[u8]) -> Option<Error> {
    let mut error = Error::new("", "");
    while let Some((field, rest)) = take_field(body)? {
        match field {
            Field { number: 1, bytes: Some(bytes) } => error.code = text(bytes)?.into(),
            Field { number: 2, bytes: Some(bytes) } => error.msg = text(bytes)?,
            Field { number: 3, bytes: Some(bytes) } => {
                let (key, value) = decode_entry(bytes)?;
                error.metadata.insert(key, value);
            }
            _ => {}
        }
        body = rest;
    }
    Some(error)
}

fn decode_entry(mut entry: &[u8]) -> Option<(String, String)> {
    let (mut key, mut value) = (String::new(), String::new());
    while let Some((field, rest)) = take_field(entry)? {
        match field {
            Field { number: 1, bytes: Some(bytes) } => key = text(bytes)?,
            Field { number: 2, bytes: Some(bytes) } => value = text(bytes)?,
            _ => {}
        }
        entry = rest;
    }
    Some((key, value))
}

fn text(bytes: &[u8]) -> Option<String> {
    std::str::from_utf8(bytes).ok().map(str::to_owned)
}

/// One protobuf field; `bytes` only if it has a length.
struct Field<'a> {
    number: u64,
    bytes: Option<&'a [u8]>,
}

/// The field at the front and what follows; the inner `None` is the regular end, the outer one a broken message.
#[allow(
    clippy::option_option,
    reason = "the caller loops over the inner option and gives up with the outer one"
)]
fn take_field(bytes: &[u8]) -> Option<Option<(Field<'_>, &[u8])>> {
    if bytes.is_empty() {
        return Some(None);
    }
    let (tag, taken) = varint::decode(bytes).ok()?;
    let rest = bytes.get(taken..)?;
    let number = tag >> 3;
    let (content, rest) = match tag & 7 {
        0 => (None, rest.get(varint::decode(rest).ok()?.1..)?),
        1 => (None, rest.get(8..)?),
        2 => {
            let (length, taken) = varint::decode(rest).ok()?;
            let length = usize::try_from(length).ok()?;
            let (content, rest) = rest.get(taken..)?.split_at_checked(length)?;
            (Some(content), rest)
        }
        5 => (None, rest.get(4..)?),
        _ => return None,
    };
    Some(Some((Field { number, bytes: content }, rest)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dictionary::Dictionary;
    use crate::message::{Head, MessageType, encode_head};
    use crate::packet::{PacketType, encode};

    fn packet(error: &Error, serializer: Serializer) -> String {
        let head = Head {
            kind: MessageType::Response,
            id: 1,
            route: "",
            is_compressed: false,
            is_error: true,
        };
        let mut body = Vec::new();
        encode_head(&head, &Dictionary::default(), &mut body).unwrap();
        error.encode(serializer, &mut body);
        let mut out = Vec::new();
        encode(PacketType::Data, &body, &mut out).unwrap();
        hex(&out)
    }

    fn hex(bytes: &[u8]) -> String {
        bytes
            .iter()
            .flat_map(|byte| [byte >> 4, byte & 0xf])
            .filter_map(|digit| char::from_digit(digit.into(), 16))
            .collect()
    }

    #[test]
    fn error_responses_have_the_published_bytes() {
        let error = Error::new(code::NOT_FOUND, "pitaya/handler: a.b.c not found");
        let json = "0400003c24017b22636f6465223a225049542d343034222c226d7367223a227069746179612f68616e646c6572\
                    3a20612e622e63206e6f7420666f756e64227d";
        assert_eq!(packet(&error, Serializer::Json), json, "E1");
        let protobuf = "0400002c24010a075049542d343034121f7069746179612f68616e646c65723a20612e622e63206e6f7420\
                        666f756e64";
        assert_eq!(packet(&error, Serializer::Protobuf), protobuf, "E2");
        let mut out = Vec::new();
        Error::new(code::INTERNAL, "x").with("k", "v").encode(Serializer::Protobuf, &mut out);
        assert_eq!(hex(&out), "0a075049542d3530301201781a060a016b120176", "E3");
    }

    #[test]
    fn metadata_is_sorted_and_escaped_in_json() {
        let mut out = Vec::new();
        let metadata = [("z", "1"), ("a", "<"), ("z", "2")].into_iter();
        Serializer::Json.encode_error("X", "m", metadata, &mut out);
        let expected = r#"{"code":"X","msg":"m","metadata":{"a":"\u003c","z":"2"}}"#;
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }

    #[test]
    fn an_empty_text_is_sent_as_the_code_and_an_empty_code_as_unknown() {
        for serializer in [Serializer::Json, Serializer::Protobuf] {
            let mut out = Vec::new();
            Error::new("", "").encode(serializer, &mut out);
            let read = serializer.decode_error(&out).unwrap();
            assert_eq!((read.code.as_ref(), read.msg.as_str()), ("PIT-000", "PIT-000"));
        }
    }

    #[test]
    fn both_forms_read_back_what_was_written() {
        let error = Error::new("PIT-555", "some\n\u{2028}\"error\"").with("k", "v").with("", "");
        for serializer in [Serializer::Json, Serializer::Protobuf] {
            let mut out = Vec::new();
            error.encode(serializer, &mut out);
            assert_eq!(serializer.decode_error(&out).unwrap(), error);
            assert!(serializer.decode_error(&out[..out.len() - 1]).is_err());
        }
    }

    #[test]
    fn bodies_of_other_makes_are_read_leniently() {
        let go_client = br#"{"Code":"PIT-504","Message":"request timeout","Metadata":null}"#;
        let read = Serializer::Json.decode_error(go_client).unwrap();
        assert_eq!(read.to_string(), "PIT-504: request timeout");
        assert_eq!(Serializer::Json.decode_error(b"{}").unwrap().code, code::UNKNOWN);
        assert_eq!(Serializer::Protobuf.decode_error(b"").unwrap().code, code::UNKNOWN);
        let unknown_fields =
            [0x20, 0x05, 0x29, 0, 0, 0, 0, 0, 0, 0, 0, 0x35, 0, 0, 0, 0, 0x0a, 1, b'c'];
        assert_eq!(Serializer::Protobuf.decode_error(&unknown_fields).unwrap().code, "c");
        for broken in
            [&[0x0a][..], &[0x0a, 2, b'c'], &[0x0a, 1, 0xff], &[0x0b], &[0x0a, 0xff, 0xff]]
        {
            assert!(Serializer::Protobuf.decode_error(broken).is_err(), "{broken:?}");
        }
    }

    #[test]
    fn a_bad_route_becomes_a_bad_request() {
        let error = Error::from(RouteError::Invalid);
        assert_eq!(error.to_string(), "PIT-400: invalid route");
        assert_eq!(Serializer::from_number(2), Some(Serializer::Protobuf));
        assert_eq!(Serializer::from_number(3), None);
    }
}
