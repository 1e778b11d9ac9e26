//! The first exchange on a connection: the client says what it is, the server says how to talk (client protocol 5).
//!
//! Only the JSON and its packets; when a handshake may come and who judges it belongs to the agent. The invariant: the
//! two responses of a server are built once and then only copied.

#![deny(clippy::indexing_slicing)]

use std::fmt;

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::{Map, Value};
use thiserror::Error;

use crate::compression::{Deflater, InflateError, Inflater};
use crate::dictionary::{Dictionary, DictionaryError};
use crate::go;
use crate::packet::{self, PacketError, PacketType};

/// The longest request body that a server should take unless it is configured otherwise.
pub const REQUEST_BYTES_MAX_DEFAULT: usize = 16 * 1024;

/// The longest response that a client inflates; a dictionary of all 65,535 codes is smaller.
const RESPONSE_BYTES_MAX: usize = 32 << 20;

/// Code of the response to an acceptable handshake.
pub const CODE_ACCEPTED: u16 = 200;

/// Code of the response to any other.
pub const CODE_REFUSED: u16 = 400;

/// What a client says about itself. Everything is the peer's word: bounded by the body limit, never to be a
/// metric label, to be escaped in logs.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct HandshakeRequest {
    /// About the client program.
    pub sys: HandshakeSys,
    /// Free data of the application.
    pub user: Map<String, Value>,
}

/// The four texts about the client program; each is empty when it was not given.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HandshakeSys {
    /// For example `mac`.
    pub platform: String,
    /// Version of the client library.
    pub lib_version: String,
    /// Build number of the game.
    pub client_build_number: String,
    /// Version of the game.
    pub client_version: String,
}

/// Why a handshake is refused, or cannot be written.
#[derive(Debug, Error)]
pub enum HandshakeError {
    /// The peer's body is longer than the limit.
    #[error("handshake body of {bytes} bytes is longer than {limit_bytes}")]
    TooLarge {
        /// Length of the body.
        bytes: usize,
        /// The limit that was given.
        limit_bytes: usize,
    },
    /// The peer's body is not JSON, or a known member has the wrong type. The text names the place only: the parser's own
    /// would quote the peer.
    #[error("handshake is not acceptable JSON, line {}, column {}", .0.line(), .0.column())]
    Json(#[from] serde_json::Error),
    /// The peer's response is compressed and does not inflate.
    #[error("handshake response does not inflate: {0}")]
    Inflate(#[from] InflateError),
    /// The peer's response has a dictionary that is no dictionary.
    #[error("handshake response has an unusable dictionary: {0}")]
    Dictionary(#[from] DictionaryError),
    /// Our own response does not fit a packet, because of its dictionary.
    #[error("handshake response does not fit a packet: {0}")]
    Packet(#[from] PacketError),
}

const TOP_FIELDS: [&str; 2] = ["sys", "user"];
const SYS_FIELDS: [&str; 4] = ["platform", "libVersion", "clientBuildNumber", "clientVersion"];

/// Reads a request body by the rules of Go's decoder: `null` counts as absent, keys match in any letter case, the last
/// of equal keys wins, unknown keys are dropped, nothing but white space may follow, and what is broken inside strings
/// only becomes U+FFFD.
///
/// # Errors
/// [`HandshakeError::TooLarge`] before anything is read, [`HandshakeError::Json`] for everything else. The server
/// answers both with its refusal and closes.
pub fn decode_request(
    body: &[u8],
    body_bytes_max: usize,
) -> Result<HandshakeRequest, HandshakeError> {
    if body.len() > body_bytes_max {
        return Err(HandshakeError::TooLarge { bytes: body.len(), limit_bytes: body_bytes_max });
    }
    serde_json::from_slice(body).or_else(|error| {
        let repaired = go::repair_json(body).ok_or(error)?;
        Ok(serde_json::from_slice(&repaired)?)
    })
}

impl<'de> Deserialize<'de> for HandshakeRequest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Top;
        impl<'de> Visitor<'de> for Top {
            type Value = HandshakeRequest;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("an object with sys and user")
            }

            fn visit_unit<E>(self) -> Result<Self::Value, E> {
                Ok(HandshakeRequest::default())
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut request = HandshakeRequest::default();
                while let Some(field) = map.next_key_seed(Key(&TOP_FIELDS))? {
                    match field {
                        Some("sys") => request.sys = map.next_value()?,
                        Some("user") => {
                            request.user = map.next_value::<Option<_>>()?.unwrap_or_default();
                        }
                        _ => drop(map.next_value::<IgnoredAny>()?),
                    }
                }
                Ok(request)
            }
        }
        deserializer.deserialize_any(Top)
    }
}

impl<'de> Deserialize<'de> for HandshakeSys {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Sys;
        impl<'de> Visitor<'de> for Sys {
            type Value = HandshakeSys;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("an object with four texts")
            }

            fn visit_unit<E>(self) -> Result<Self::Value, E> {
                Ok(HandshakeSys::default())
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut sys = HandshakeSys::default();
                while let Some(field) = map.next_key_seed(Key(&SYS_FIELDS))? {
                    let text = match field {
                        Some("platform") => &mut sys.platform,
                        Some("libVersion") => &mut sys.lib_version,
                        Some("clientBuildNumber") => &mut sys.client_build_number,
                        Some("clientVersion") => &mut sys.client_version,
                        _ => {
                            map.next_value::<IgnoredAny>()?;
                            continue;
                        }
                    };
                    *text = map.next_value::<Option<_>>()?.unwrap_or_default();
                }
                Ok(sys)
            }
        }
        deserializer.deserialize_any(Sys)
    }
}

/// Reads an object's key and says which of the known names it is, in any letter case.
struct Key(&'static [&'static str]);

impl<'de> DeserializeSeed<'de> for Key {
    type Value = Option<&'static str>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for Key {
    type Value = Option<&'static str>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a key")
    }

    fn visit_str<E>(self, key: &str) -> Result<Self::Value, E> {
        Ok(self.0.iter().copied().find(|name| name.eq_ignore_ascii_case(key)))
    }
}

/// What a server announces.
#[derive(Debug, Clone, Copy)]
pub struct HandshakeOptions<'a> {
    /// Heartbeat interval in seconds, at least 1: clients take 0 for "no heartbeats" and are then dropped.
    pub heartbeat_s: u64,
    /// The route codes.
    pub dictionary: &'a Dictionary,
    /// Name of the application's serializer.
    pub serializer: &'a str,
    /// Compress the responses when that makes them shorter. Clients in browsers cannot inflate them.
    pub compression: bool,
}

/// The two possible answers of a server, as whole packets. Each must be written alone: some clients drop what stands
/// behind it in the same read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HandshakeResponses {
    /// Code 200.
    pub accepted: Vec<u8>,
    /// Code 400; the connection is closed behind it.
    pub refused: Vec<u8>,
}

impl HandshakeResponses {
    /// Builds both answers in the byte form of Go's JSON encoder: no white space, sorted keys, whole seconds.
    ///
    /// # Errors
    /// [`HandshakeError::Packet`] when the dictionary does not fit a packet.
    pub fn new(options: &HandshakeOptions<'_>) -> Result<Self, HandshakeError> {
        debug_assert!(options.heartbeat_s > 0, "the configuration refuses 0");
        let mut deflater = options.compression.then(Deflater::new);
        let mut build = |code| {
            let json = response_json(code, options);
            let compressed = deflater.as_mut().and_then(|deflater| deflater.deflate(&json, 0));
            let mut out = Vec::new();
            packet::encode(PacketType::Handshake, compressed.unwrap_or(&json), &mut out)?;
            Ok::<_, HandshakeError>(out)
        };
        Ok(Self { accepted: build(CODE_ACCEPTED)?, refused: build(CODE_REFUSED)? })
    }
}

fn response_json(code: u16, options: &HandshakeOptions<'_>) -> Vec<u8> {
    let mut json = format!(r#"{{"code":{code},"sys":{{"dict":{{"#).into_bytes();
    for (index, (route, code)) in options.dictionary.iter().enumerate() {
        if index > 0 {
            json.push(b',');
        }
        go::quote_json(route, &mut json);
        json.extend_from_slice(format!(":{code}").as_bytes());
    }
    let heartbeat = format!(r#"}},"heartbeat":{},"serializer":"#, options.heartbeat_s);
    json.extend_from_slice(heartbeat.as_bytes());
    go::quote_json(options.serializer, &mut json);
    json.extend_from_slice(b"}}");
    json
}

/// The body of a client's request packet, never compressed.
pub fn encode_request(request: &HandshakeRequest) -> Vec<u8> {
    let sys = &request.sys;
    let texts = [&sys.platform, &sys.lib_version, &sys.client_build_number, &sys.client_version];
    let mut json = br#"{"sys":{"#.to_vec();
    for (index, (name, text)) in SYS_FIELDS.iter().zip(texts).enumerate() {
        if index > 0 {
            json.push(b',');
        }
        go::quote_json(name, &mut json);
        json.push(b':');
        go::quote_json(text, &mut json);
    }
    json.extend_from_slice(br#"},"user":"#);
    let user = serde_json::to_vec(&request.user).unwrap_or_else(|_| b"{}".to_vec());
    json.extend_from_slice(&user);
    json.push(b'}');
    json
}

/// A server's answer, as a client reads it.
#[derive(Debug, Clone)]
pub struct HandshakeResponse {
    /// [`CODE_ACCEPTED`], or why not. Servers of other makes use further codes.
    pub code: u16,
    /// Heartbeat interval in seconds; 0 means that the server wants no heartbeats.
    pub heartbeat_s: u64,
    /// Route codes that may be used and will be received.
    pub dictionary: Dictionary,
    /// `json`, `protobuf`, or a name of the application's.
    pub serializer: String,
}

/// Reads the body of a server's response packet and inflates it when it is compressed. A missing `sys`, or members of
/// it, count as empty; unknown members are ignored.
///
/// # Errors
/// [`HandshakeError::Json`], [`HandshakeError::Inflate`] or [`HandshakeError::Dictionary`].
pub fn decode_response(body: &[u8]) -> Result<HandshakeResponse, HandshakeError> {
    #[derive(Deserialize)]
    struct Response {
        code: u16,
        #[serde(default)]
        sys: Option<Sys>,
    }
    #[derive(Deserialize, Default)]
    #[serde(default)]
    struct Sys {
        dict: Option<std::collections::BTreeMap<String, u16>>,
        heartbeat: Option<f64>,
        serializer: Option<String>,
    }
    const ZLIB_FIRST_BYTE: u8 = 0x78;

    let mut inflater;
    let json = if body.first() == Some(&ZLIB_FIRST_BYTE) {
        inflater = Inflater::new();
        inflater.inflate(body, RESPONSE_BYTES_MAX)?
    } else {
        body
    };
    let response: Response = serde_json::from_slice(json)?;
    let sys = response.sys.unwrap_or_default();
    let mut dictionary = Dictionary::default();
    dictionary.insert_all(sys.dict.unwrap_or_default())?;
    Ok(HandshakeResponse {
        code: response.code,
        heartbeat_s: sys.heartbeat.unwrap_or_default() as u64,
        dictionary,
        serializer: sys.serializer.unwrap_or_default(),
    })
}

#[cfg(test)]
#[path = "handshake_tests.rs"]
mod tests;
