//! The record with which one server of the cluster announces itself, and the snapshot of all of them.
//!
//! Reading is lenient, because servers of other languages write the record too; writing gives exactly the bytes that a
//! Go server writes, because one odd value under the prefix ends every Go server (cluster protocol 13.1). Where the
//! records come from (etcd, a fixed list, a test) is not known here.
//!
//! Invariant: the id and the type of a decoded [`Server`] are fit for an etcd key and for a NATS subject.

mod table;

pub use table::ServerTable;

use std::collections::BTreeMap;
use std::fmt;

use crate::go;
use serde::de::{IgnoredAny, MapAccess, Visitor};
use serde_json::Value;
use thiserror::Error;

/// Metadata key with which a Dragonfruit server says how many requests in flight it takes at once (decimal count).
/// Go servers carry it along and ignore it.
pub const METADATA_WINDOW: &str = "dragonfruit.window";

/// Metadata key with which a Dragonfruit server says which additions to the plain protocol it speaks.
/// Words between commas; Go servers carry it along and ignore it.
pub const METADATA_PROTOCOL: &str = "dragonfruit.protocol";

/// Metadata key that a Dragonfruit server adds to its record in the moment before it takes the record back, so that
/// others can tell a server that left from one that crashed. Go servers take the first record of a key only.
pub const METADATA_LEAVING: &str = "dragonfruit.leaving";

/// The word under [`METADATA_PROTOCOL`] of a frontend that takes one message for many users.
pub const PROTOCOL_PUSHES: &str = "pushes";

/// The word under [`METADATA_PROTOCOL`] of a backend that takes several requests in one message (`Batch` in
/// `pitaya.proto`).
pub const PROTOCOL_BATCHES: &str = "batches";

/// Longest id or server type, in bytes. Two of them, the words around them and a uid fit with room to spare into the
/// 4096 bytes that nats-server allows one control line.
pub const IDENTITY_BYTES_MAX: usize = 256;

/// One server of the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server {
    /// Unique name of the process, a UUID for servers of Pitaya.
    pub id: String,
    /// What the application calls this kind of server, for example `room`.
    pub server_type: String,
    /// What the server tells about itself. Does not change while the process lives.
    pub metadata: BTreeMap<String, String>,
    /// Whether the server owns client connections.
    pub frontend: bool,
    /// Name of the machine.
    pub hostname: String,
}

/// Why a record, an id or a server type is refused. Always the fault of whoever wrote it.
#[derive(Debug, Error)]
pub enum ServerError {
    /// Not JSON, or not an object.
    #[error("server record is not a JSON object: {0}")]
    Malformed(#[from] serde_json::Error),
    /// `id` or `type` is missing, not a string, or empty.
    #[error("server {0} is missing or empty")]
    Empty(Identity),
    /// `id` or `type` is longer than [`IDENTITY_BYTES_MAX`].
    #[error("server {identity} has {bytes} bytes, the limit is {IDENTITY_BYTES_MAX}")]
    TooLong {
        /// Which of the two.
        identity: Identity,
        /// Its length.
        bytes: usize,
    },
    /// `id` or `type` contains `/`, `.`, `*`, `>`, white space or a control character.
    #[error("server {identity} contains {character:?}")]
    Forbidden {
        /// Which of the two.
        identity: Identity,
        /// The first such character.
        character: char,
    },
}

/// The two names that become part of keys and subjects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Identity {
    /// [`Server::id`]
    Id,
    /// [`Server::server_type`]
    Type,
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Id => "id",
            Self::Type => "type",
        })
    }
}

impl Server {
    /// Reads a record as etcd holds it.
    ///
    /// Like Go: unknown members are ignored, names match in any case, the last of two equal names wins, bytes that are
    /// not UTF-8 are replaced. Beyond Go: `metadata` may be an object, null, missing or a string (which may hold an
    /// object as text); scalars in it become strings; nested values in it are left out.
    ///
    /// # Errors
    /// [`ServerError`] when it is not an object, or when [`Server::check`] refuses it.
    pub fn decode(json: &[u8]) -> Result<Self, ServerError> {
        let text = String::from_utf8_lossy(json);
        let mut decoder = serde_json::Deserializer::from_str(&text);
        let server = serde::Deserializer::deserialize_map(&mut decoder, RecordVisitor)?;
        decoder.end()?;
        server.check()?;
        Ok(server)
    }

    /// The record byte for byte as Go's encoder would write it. Allocates the result.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(128 + self.metadata.len() * 32);
        out.extend_from_slice(b"{\"id\":");
        go::quote_json(&self.id, &mut out);
        out.extend_from_slice(b",\"type\":");
        go::quote_json(&self.server_type, &mut out);
        out.extend_from_slice(b",\"metadata\":{");
        for (index, (key, value)) in self.metadata.iter().enumerate() {
            if index > 0 {
                out.push(b',');
            }
            go::quote_json(key, &mut out);
            out.push(b':');
            go::quote_json(value, &mut out);
        }
        out.extend_from_slice(b"},\"frontend\":");
        out.extend_from_slice(if self.frontend { b"true" } else { b"false" });
        out.extend_from_slice(b",\"hostname\":");
        go::quote_json(&self.hostname, &mut out);
        out.push(b'}');
        out
    }

    /// Whether id and type can be part of keys and subjects (cluster protocol 1). A record of our own making should
    /// be checked before it is announced; decoded ones have been.
    pub fn check(&self) -> Result<(), ServerError> {
        check_identity(Identity::Id, &self.id)?;
        check_identity(Identity::Type, &self.server_type)
    }

    /// The NATS subject on which this server takes calls (cluster protocol 2). Allocates.
    pub fn subject(&self) -> String {
        format!("pitaya/servers/{}/{}", self.server_type, self.id)
    }

    /// Whether the server says that it speaks an addition to the plain protocol, with [`METADATA_PROTOCOL`].
    pub fn speaks(&self, addition: &str) -> bool {
        let known = self.metadata.get(METADATA_PROTOCOL);
        known.is_some_and(|known| known.split(',').any(|word| word.trim() == addition))
    }

    /// How many requests in flight the server says it takes, if it says so with [`METADATA_WINDOW`].
    pub fn window(&self) -> Option<u32> {
        self.metadata.get(METADATA_WINDOW)?.parse().ok()
    }
}

fn check_identity(identity: Identity, text: &str) -> Result<(), ServerError> {
    if text.is_empty() {
        return Err(ServerError::Empty(identity));
    }
    if text.len() > IDENTITY_BYTES_MAX {
        return Err(ServerError::TooLong { identity, bytes: text.len() });
    }
    let is_forbidden = |character: char| {
        matches!(character, '/' | '.' | '*' | '>')
            || character.is_whitespace()
            || character.is_control()
    };
    match text.chars().find(|character| is_forbidden(*character)) {
        Some(character) => Err(ServerError::Forbidden { identity, character }),
        None => Ok(()),
    }
}

/// Walks the members in document order: a map type would lose which of two equal names came last.
struct RecordVisitor;

impl<'de> Visitor<'de> for RecordVisitor {
    type Value = Server;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the JSON object of a server")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Server, A::Error> {
        let mut server = Server {
            id: String::new(),
            server_type: String::new(),
            metadata: BTreeMap::new(),
            frontend: false,
            hostname: String::new(),
        };
        while let Some(name) = members.next_key::<String>()? {
            match name.to_ascii_lowercase().as_str() {
                "id" => read_text(&members.next_value()?, &mut server.id),
                "type" => read_text(&members.next_value()?, &mut server.server_type),
                "hostname" => read_text(&members.next_value()?, &mut server.hostname),
                "frontend" => {
                    if let Value::Bool(frontend) = members.next_value()? {
                        server.frontend = frontend;
                    }
                }
                "metadata" => read_metadata(members.next_value()?, &mut server.metadata),
                _ => {
                    members.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(server)
    }
}

fn read_text(value: &Value, text: &mut String) {
    if let Value::String(found) = value {
        text.clone_from(found);
    }
}

fn read_metadata(value: Value, metadata: &mut BTreeMap<String, String>) {
    let members = match value {
        Value::Object(members) => members,
        // Some servers write the object as text inside a string.
        Value::String(text) => match serde_json::from_str(&text) {
            Ok(Value::Object(members)) => members,
            _ => return,
        },
        _ => return,
    };
    for (key, value) in members {
        let text = match value {
            Value::String(text) => text,
            Value::Bool(flag) => flag.to_string(),
            Value::Number(number) => number.to_string(),
            // Go reads null into a string as the empty string.
            Value::Null => String::new(),
            Value::Array(_) | Value::Object(_) => continue,
        };
        metadata.insert(key, text);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(id: &str, server_type: &str) -> Server {
        Server {
            id: id.to_owned(),
            server_type: server_type.to_owned(),
            metadata: BTreeMap::new(),
            frontend: false,
            hostname: "vm".to_owned(),
        }
    }

    fn decode(json: &str) -> Server {
        Server::decode(json.as_bytes()).expect("a readable record")
    }

    #[test]
    fn the_record_is_written_as_a_go_server_writes_it() {
        let captured = r#"{"id":"91e47eed-e4fb-4c7d-8cca-bbeceb07b7a1","type":"room","metadata":{"stack":"green"},"frontend":false,"hostname":"vm"}"#;
        let server = decode(captured);
        assert_eq!(server.metadata["stack"], "green");
        assert_eq!(server.encode(), captured.as_bytes());
        assert_eq!(server.subject(), "pitaya/servers/room/91e47eed-e4fb-4c7d-8cca-bbeceb07b7a1");
    }

    #[test]
    fn texts_are_escaped_as_go_escapes_them() {
        let mut server = server("a", "b");
        server.hostname = "<&>\"\\\n\r\t\u{8}\u{c}\u{1}\u{2028}\u{2029}\u{7f}é😀".to_owned();
        let json = String::from_utf8(server.encode()).unwrap();
        let expected =
            r#""\u003c\u0026\u003e\"\\\n\r\t\b\f\u0001\u2028\u2029"#.to_owned() + "\u{7f}é😀\"}";
        assert!(json.ends_with(&expected), "{json}");
        assert_eq!(decode(&json), server);
    }

    #[test]
    fn metadata_is_written_sorted_and_never_as_null() {
        let mut server = server("a", "b");
        assert!(String::from_utf8(server.encode()).unwrap().contains(r#""metadata":{},"#));
        server.metadata.insert("z".to_owned(), "1".to_owned());
        server.metadata.insert("a".to_owned(), "2".to_owned());
        let json = String::from_utf8(server.encode()).unwrap();
        assert!(json.contains(r#""metadata":{"a":"2","z":"1"},"#), "{json}");
    }

    #[test]
    fn names_match_in_any_case_and_the_last_one_wins() {
        let server = decode(r#"{"ID":"a","id":"b","Type":"room","FRONTEND":true,"x":[{}]}"#);
        assert_eq!((server.id.as_str(), server.server_type.as_str()), ("b", "room"));
        assert!(server.frontend);
    }

    #[test]
    fn metadata_may_be_null_missing_or_a_string() {
        for metadata in [
            "",
            r#","metadata":null"#,
            r#","metadata":"""#,
            r#","metadata":"x""#,
            r#","metadata":7"#,
        ] {
            let server = decode(&format!(r#"{{"id":"a","type":"b"{metadata}}}"#));
            assert!(server.metadata.is_empty(), "{metadata}");
        }
        let server = decode(r#"{"id":"a","type":"b","metadata":"{\"k\":\"v\"}"}"#);
        assert_eq!(server.metadata["k"], "v");
    }

    #[test]
    fn scalars_in_metadata_become_strings_and_nested_values_are_left_out() {
        let json =
            r#"{"id":"a","type":"b","metadata":{"n":7,"f":1.5,"t":true,"z":null,"o":{},"l":[]}}"#;
        let expected = [("f", "1.5"), ("n", "7"), ("t", "true"), ("z", "")];
        let expected = expected.map(|(key, value)| (key.to_owned(), value.to_owned()));
        assert_eq!(decode(json).metadata, BTreeMap::from(expected));
    }

    #[test]
    fn what_is_not_an_object_is_refused() {
        for json in ["", "null", "[]", "7", "\"x\"", "{", "{}x", r#"{"id":"a","type":"b"} {}"#] {
            assert!(Server::decode(json.as_bytes()).is_err(), "{json}");
        }
    }

    #[test]
    fn names_that_break_keys_or_subjects_are_refused() {
        for name in
            ["", "a/b", "a.b", "*", ">", "a b", "a\tb", "a\r\nb", "\u{0}", "\u{7f}", "\u{a0}"]
        {
            assert!(server(name, "room").check().is_err(), "{name:?}");
            assert!(server("id", name).check().is_err(), "{name:?}");
        }
        assert!(server(&"x".repeat(IDENTITY_BYTES_MAX), "room").check().is_ok());
        assert!(server(&"x".repeat(IDENTITY_BYTES_MAX + 1), "room").check().is_err());
        assert!(Server::decode(br#"{"id":7,"type":"b"}"#).is_err());
    }

    #[test]
    fn the_window_is_read_from_the_metadata() {
        let mut server = server("a", "b");
        assert_eq!(server.window(), None);
        server.metadata.insert(METADATA_WINDOW.to_owned(), "300".to_owned());
        assert_eq!(server.window(), Some(300));
        server.metadata.insert(METADATA_WINDOW.to_owned(), "-1".to_owned());
        assert_eq!(server.window(), None);
    }

    #[test]
    fn additions_to_the_protocol_are_whole_words() {
        let mut server = server("a", "b");
        assert!(!server.speaks(PROTOCOL_PUSHES) && !server.speaks(PROTOCOL_BATCHES));
        for (text, speaks) in [("pushes", true), ("batches, pushes", true), ("pushes2", false)] {
            server.metadata.insert(METADATA_PROTOCOL.to_owned(), text.to_owned());
            assert_eq!(server.speaks(PROTOCOL_PUSHES), speaks, "{text}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_record_survives_writing_and_reading(
            id in "[a-zA-Z0-9_-]{1,40}", server_type in "[a-z]{1,20}", hostname: String, frontend: bool,
            metadata: BTreeMap<String, String>,
        ) {
            let server = Server { id, server_type, metadata, frontend, hostname };
            proptest::prop_assert_eq!(Server::decode(&server.encode()).unwrap(), server);
        }

        #[test]
        fn any_bytes_are_read_or_refused_without_a_panic(bytes: Vec<u8>) {
            if let Ok(server) = Server::decode(&bytes) {
                server.check().unwrap();
            }
        }
    }
}
