//! What a frontend remembers about one player: id, user id and the application's data.
//!
//! Not the connection, and no index by uid. The data stay opaque JSON bytes: they are stored as a server sent them and
//! travel with every forwarded request. The invariant: [`Session::encoded`] is always the protobuf `Session` of the
//! present values, so forwarding a request copies bytes and encodes nothing.

#![deny(clippy::indexing_slicing)]

use std::fmt;
use std::net::IpAddr;

use serde::de::IgnoredAny;
use thiserror::Error;

use crate::varint;

/// The longest uid. It is part of NATS subjects, whose control line ends at 4096 bytes, and of etcd keys.
pub const UID_BYTES_MAX: usize = 256;

/// The longest session data. They go with every forwarded request, whose limit is NATS' `max_payload` of 1 MiB by
/// default: half of it stays for the payload.
pub const DATA_BYTES_MAX: usize = 512 * 1024;

/// Protobuf tags of `protos.Session`: `id = 1`, `uid = 2`, `data = 3`.
const TAG_ID: u8 = 0x08;
const TAG_UID: u8 = 0x12;
const TAG_DATA: u8 = 0x1a;

/// The frontend's number for a session; unique in its process, positive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SessionId(pub i64);

impl fmt::Display for SessionId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}

/// How the player reached us; backends find it in the session data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum IpVersion {
    /// Also IPv4 addresses that a dual-stack socket shows as mapped.
    V4,
    /// Everything else.
    V6,
}

/// How much of a client's address its session data tell the workers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ToldAddress {
    /// `ipversion` alone, as in Pitaya.
    #[default]
    Version,
    /// The address too.
    Whole,
}

impl IpVersion {
    /// The value of `ipversion` in the session data.
    pub fn name(self) -> &'static str {
        match self {
            Self::V4 => "ipv4",
            Self::V6 => "ipv6",
        }
    }
}

impl From<IpAddr> for IpVersion {
    fn from(address: IpAddr) -> Self {
        if address.to_canonical().is_ipv4() { Self::V4 } else { Self::V6 }
    }
}

/// One player's session on a frontend. Two allocations at most: the encoded form, and the uid once it is bound.
#[derive(Debug, Clone)]
pub struct Session {
    id: SessionId,
    uid: Box<str>,
    /// The encoded `protos.Session`; the data are its last field.
    encoded: Vec<u8>,
    /// How many bytes at the end of `encoded` are the data.
    data_bytes: usize,
}

/// Why data cannot be session data; the fault of the server that sent them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum SessionDataError {
    /// Not exactly one JSON object.
    #[error("session data are not a JSON object")]
    NotAnObject,
    /// Longer than [`DATA_BYTES_MAX`].
    #[error("session data of {bytes} bytes are longer than {DATA_BYTES_MAX}")]
    TooLarge {
        /// Length of the data.
        bytes: usize,
    },
}

impl Session {
    /// An unbound session whose data are `{"ipversion":"ipv4"}`, or `ipv6`.
    pub fn new(id: SessionId, ip_version: IpVersion) -> Self {
        let mut session = Self { id, uid: "".into(), encoded: Vec::new(), data_bytes: 0 };
        let data = format!(r#"{{"ipversion":"{}"}}"#, ip_version.name());
        session.rebuild(data.as_bytes());
        session
    }

    /// Starts the data over for a client whose address is `address`: with the IP version only, as Pitaya does, or with
    /// the address itself too, as `ip`. Only for sessions that nobody has seen, because all other data are lost.
    pub fn set_address(&mut self, address: IpAddr, told: ToldAddress) {
        let address = address.to_canonical();
        let version = IpVersion::from(address).name();
        let data = match told {
            ToldAddress::Version => format!(r#"{{"ipversion":"{version}"}}"#),
            ToldAddress::Whole => format!(r#"{{"ipversion":"{version}","ip":"{address}"}}"#),
        };
        self.rebuild(data.as_bytes());
    }

    /// The frontend's number for this session.
    pub fn id(&self) -> SessionId {
        self.id
    }

    /// The bound user id; empty when unbound.
    pub fn uid(&self) -> &str {
        &self.uid
    }

    /// Binds, or with an empty uid unbinds. The caller has checked the uid with [`check_uid`].
    pub fn set_uid(&mut self, uid: &str) {
        debug_assert!(uid.is_empty() || check_uid(uid).is_ok(), "the caller checks uids");
        if uid == &*self.uid {
            return;
        }
        self.uid = uid.into();
        let data = self.data().to_vec();
        self.rebuild(&data);
    }

    /// The data, one JSON object.
    pub fn data(&self) -> &[u8] {
        let start = self.encoded.len().saturating_sub(self.data_bytes);
        self.encoded.get(start..).unwrap_or_default()
    }

    /// Puts other data in place of all the old ones. They are checked but kept byte for byte, since numbers would not
    /// survive being read and written again. Empty input changes nothing, as in Pitaya.
    ///
    /// # Errors
    /// A [`SessionDataError`]; the old data stay then.
    pub fn replace_data(&mut self, data: &[u8]) -> Result<(), SessionDataError> {
        if data.is_empty() || data == self.data() {
            return Ok(());
        }
        if data.len() > DATA_BYTES_MAX {
            return Err(SessionDataError::TooLarge { bytes: data.len() });
        }
        let text = std::str::from_utf8(data).map_err(|_| SessionDataError::NotAnObject)?;
        let starts_object = text.bytes().find(|byte| !byte.is_ascii_whitespace()) == Some(b'{');
        if !starts_object || serde_json::from_str::<IgnoredAny>(text).is_err() {
            return Err(SessionDataError::NotAnObject);
        }
        self.rebuild(data);
        Ok(())
    }

    /// The encoded `protos.Session`, without a tag or length around it. Costs nothing: it is kept.
    pub fn encoded(&self) -> &[u8] {
        &self.encoded
    }

    fn rebuild(&mut self, data: &[u8]) {
        let number = self.id.0 as u64;
        let bytes = 3 + 3 * varint::BYTES_MAX + self.uid.len() + data.len();
        let mut encoded = Vec::with_capacity(bytes);
        if number != 0 {
            encoded.push(TAG_ID);
            varint::encode(number, &mut encoded);
        }
        for (tag, content) in [(TAG_UID, self.uid.as_bytes()), (TAG_DATA, data)] {
            if !content.is_empty() {
                encoded.push(tag);
                varint::encode(content.len() as u64, &mut encoded);
                encoded.extend_from_slice(content);
            }
        }
        encoded.shrink_to_fit();
        self.encoded = encoded;
        self.data_bytes = data.len();
    }
}

/// Why a text cannot be a uid. The text for clients is always Pitaya's; [`UidError::reason`] has the details.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("illegal uid")]
pub enum UidError {
    /// An empty uid means unbound.
    Empty,
    /// Longer than [`UID_BYTES_MAX`].
    TooLong,
    /// White space or a control character: NATS would see the end of a subject.
    ForbiddenByte,
    /// A part `*` or `>`: NATS would deliver other users' pushes.
    Wildcard,
    /// A dot at the start or the end, or two in a row: NATS refuses such subjects.
    EmptyPart,
}

impl UidError {
    /// What is wrong, for logs and for the metadata of an error.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Empty => "the uid is empty",
            Self::TooLong => "the uid is longer than 256 bytes",
            Self::ForbiddenByte => "the uid has white space or a control character",
            Self::Wildcard => "a part of the uid is a wildcard",
            Self::EmptyPart => "the uid has an empty part between dots",
        }
    }
}

/// Whether a text may be bound as a uid. Uids become parts of NATS subjects, where dots separate parts (cluster
/// protocol 1.1); Pitaya checks nothing but emptiness and leaks pushes.
///
/// # Errors
/// The first [`UidError`] found.
pub fn check_uid(uid: &str) -> Result<(), UidError> {
    if uid.is_empty() {
        return Err(UidError::Empty);
    }
    if uid.len() > UID_BYTES_MAX {
        return Err(UidError::TooLong);
    }
    if uid.bytes().any(|byte| byte <= 0x20 || byte == 0x7f) {
        return Err(UidError::ForbiddenByte);
    }
    for part in uid.split('.') {
        match part {
            "" => return Err(UidError::EmptyPart),
            "*" | ">" => return Err(UidError::Wildcard),
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session(number: i64) -> Session {
        Session::new(SessionId(number), IpVersion::V4)
    }

    #[test]
    fn a_new_session_encodes_as_go_encodes_it() {
        let mut expected = vec![0x08, 1, 0x1a, 20];
        expected.extend_from_slice(br#"{"ipversion":"ipv4"}"#);
        assert_eq!(session(1).encoded(), expected);
        assert_eq!(session(1).uid(), "");
        let v6 = Session::new(SessionId(1), IpVersion::V6);
        assert_eq!(v6.data(), br#"{"ipversion":"ipv6"}"#);
    }

    #[test]
    fn the_encoded_form_follows_every_change() {
        let mut session = session(300);
        session.set_uid("uid-1");
        session.replace_data(br#" {"a":1.0} "#).unwrap();
        let mut expected = vec![0x08, 0xac, 0x02, 0x12, 5];
        expected.extend_from_slice(b"uid-1");
        expected.extend_from_slice(&[0x1a, 11]);
        expected.extend_from_slice(br#" {"a":1.0} "#);
        assert_eq!(session.encoded(), expected);
        assert_eq!((session.uid(), session.data()), ("uid-1", &br#" {"a":1.0} "#[..]));
        session.set_uid("");
        assert_eq!(session.encoded()[..5], [0x08, 0xac, 0x02, 0x1a, 11]);
        assert_eq!(session.data(), br#" {"a":1.0} "#);
    }

    #[test]
    fn ids_at_the_edges_encode_as_protobuf_wants_them() {
        assert_eq!(session(0).encoded()[0], 0x1a, "0 is absent");
        assert_eq!(
            session(i64::MAX).encoded()[..10],
            [0x08, 255, 255, 255, 255, 255, 255, 255, 255, 0x7f]
        );
        assert_eq!(session(-1).encoded()[10], 1);
    }

    #[test]
    fn data_must_be_one_object_within_the_limit() {
        let mut session = session(1);
        for data in ["[]", "1", "null", "{", "{}}", "{} {}", r#"{"a":}"#, "x", " ", "\u{a0}{}"] {
            let refused = session.replace_data(data.as_bytes());
            assert_eq!(refused, Err(SessionDataError::NotAnObject), "{data}");
        }
        assert!(session.replace_data(b"{\"a\":\"\xff\"}").is_err());
        assert_eq!(session.replace_data(b""), Ok(()));
        assert_eq!(session.data(), br#"{"ipversion":"ipv4"}"#, "nothing changed so far");
        let mut longest = br#"{"a":""#.to_vec();
        longest.resize(DATA_BYTES_MAX - 2, b'x');
        longest.extend_from_slice(br#""}"#);
        session.replace_data(&longest).unwrap();
        longest.push(b' ');
        let refused = session.replace_data(&longest);
        assert_eq!(refused, Err(SessionDataError::TooLarge { bytes: DATA_BYTES_MAX + 1 }));
        session.replace_data(b"{}").unwrap();
        assert_eq!(session.data(), b"{}");
    }

    #[test]
    fn uids_that_nats_would_misread_are_refused() {
        let longest = "u".repeat(UID_BYTES_MAX);
        for uid in ["u1", "a.b", "é", "a*b", "**", "a>", "user@host", "a/b", longest.as_str()] {
            assert_eq!(check_uid(uid), Ok(()), "{uid}");
        }
        let longer = "u".repeat(UID_BYTES_MAX + 1);
        let refused = [
            ("", UidError::Empty),
            (longer.as_str(), UidError::TooLong),
            ("a b", UidError::ForbiddenByte),
            ("a\r\nPUB x", UidError::ForbiddenByte),
            ("a\u{7f}", UidError::ForbiddenByte),
            ("*", UidError::Wildcard),
            ("a.*.b", UidError::Wildcard),
            ("a.>", UidError::Wildcard),
            ("a..b", UidError::EmptyPart),
            (".a", UidError::EmptyPart),
            ("a.", UidError::EmptyPart),
            (".", UidError::EmptyPart),
        ];
        for (uid, error) in refused {
            assert_eq!(check_uid(uid), Err(error), "{uid}");
            assert_eq!(error.to_string(), "illegal uid");
            assert!(!error.reason().is_empty());
        }
    }

    #[test]
    fn mapped_addresses_count_as_ipv4() {
        let version = |text: &str| IpVersion::from(text.parse::<IpAddr>().unwrap());
        assert_eq!(version("127.0.0.1"), IpVersion::V4);
        assert_eq!(version("::ffff:10.0.0.1"), IpVersion::V4);
        assert_eq!(version("::1"), IpVersion::V6);
    }
}
