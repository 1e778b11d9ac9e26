//! The JSON object that travels with a request through all servers (cluster protocol 6).
//!
//! It is read leniently: only what Pitaya refuses is refused. A call to another server gets a copy with the caller's
//! own entries; the received one is never changed, so parallel calls of one handler cannot disturb each other.

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::{Map, Value};
use shared::error::code;
use shared::go::go_duration;

use crate::error::{Error, Result};

/// Longer timeouts count as this; nothing that a player waits for takes a day.
const TIMEOUT_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// Reads the object. Fails with `PIT-500`, as Pitaya does.
pub(crate) fn decode(metadata: &[u8]) -> Result<Map<String, Value>> {
    if metadata.is_empty() {
        return Err(Error::new(code::INTERNAL, "no context found"));
    }
    serde_json::from_slice(metadata).map_err(|e| Error::new(code::INTERNAL, e.to_string()))
}

/// How long the caller waits, counted from arrival. None when it did not say; zero when it gave up before sending.
pub(crate) fn request_timeout(metadata: &[u8]) -> Result<Option<Duration>> {
    if metadata.is_empty() {
        return Err(Error::new(code::INTERNAL, "no context found"));
    }
    if let Some(text) = plain_timeout(metadata) {
        return if text.is_empty() { Ok(None) } else { timeout_of(text) };
    }
    let timeout: TimeoutOnly =
        serde_json::from_slice(metadata).map_err(|e| Error::new(code::INTERNAL, e.to_string()))?;
    match timeout {
        TimeoutOnly(Some(Value::String(text))) => timeout_of(&text),
        TimeoutOnly(_) => Ok(None),
    }
}

fn timeout_of(text: &str) -> Result<Option<Duration>> {
    if let Some(negative) = text.strip_prefix('-')
        && go_duration::parse(negative).is_ok()
    {
        return Ok(Some(Duration::ZERO));
    }
    match go_duration::parse(text) {
        // Zero is a race in Pitaya and means nothing; a server that sends it gets the default.
        Ok(Duration::ZERO) => Ok(None),
        Ok(timeout) => Ok(Some(timeout.min(TIMEOUT_MAX))),
        Err(_) => {
            Err(Error::new(code::INTERNAL, format!("time: invalid duration {}", Value::from(text))))
        }
    }
}

/// The time limit in metadata of the form in which servers write it: one object of visible ASCII, without blanks and
/// escapes, whose values are strings and whole numbers; empty when there is none. None for every other form; that is left to the JSON parser,
/// which costs several times as much.
fn plain_timeout(metadata: &[u8]) -> Option<&str> {
    let mut timeout = "";
    let mut rest = metadata.strip_prefix(b"{\"")?;
    loop {
        let (key, value) = plain_string(rest)?;
        let value = value.strip_prefix(b":")?;
        if let Some(text) = value.strip_prefix(b"\"") {
            let (text, after) = plain_string(text)?;
            if key == b"reqTimeout" {
                timeout = std::str::from_utf8(text).ok().filter(|text| !text.is_empty())?;
            }
            rest = after;
        } else {
            let digits = value.iter().take_while(|byte| byte.is_ascii_digit()).count();
            // A number for a time limit is somebody's mistake, and no number starts with a zero.
            if digits == 0 || value.starts_with(b"0") || key == b"reqTimeout" {
                return None;
            }
            rest = value.get(digits..)?;
        }
        if rest == b"}" {
            return Some(timeout);
        }
        rest = rest.strip_prefix(b",\"")?;
    }
}

/// Bytes that stand for themselves in a JSON string. A table, because every byte of every request is looked at.
const IS_PLAIN: [bool; 256] = {
    let mut table = [false; 256];
    let mut byte = b' ';
    while byte <= b'~' {
        table[byte as usize] = byte != b'"' && byte != b'\\';
        byte += 1;
    }
    table
};

/// What stands before the closing quote, and what behind it.
fn plain_string(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = bytes.iter().position(|byte| !IS_PLAIN[usize::from(*byte)])?;
    let (text, rest) = bytes.split_at_checked(end)?;
    Some((text, rest.strip_prefix(b"\"")?))
}

/// The one entry that each request needs; the others are skipped without being kept. As in Go the last one counts.
struct TimeoutOnly(Option<Value>);

impl<'de> Deserialize<'de> for TimeoutOnly {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(TimeoutVisitor)
    }
}

struct TimeoutVisitor;

impl<'de> Visitor<'de> for TimeoutVisitor {
    type Value = TimeoutOnly;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<TimeoutOnly, A::Error> {
        let mut timeout = None;
        while let Some(key) = map.next_key::<Key>()? {
            if key.is_timeout {
                timeout = Some(map.next_value()?);
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(TimeoutOnly(timeout))
    }
}

struct Key {
    is_timeout: bool,
}

impl<'de> Deserialize<'de> for Key {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_identifier(KeyVisitor)
    }
}

struct KeyVisitor;

impl Visitor<'_> for KeyVisitor {
    type Value = Key;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a key")
    }

    fn visit_str<E>(self, key: &str) -> Result<Key, E> {
        Ok(Key { is_timeout: key == "reqTimeout" })
    }
}

/// The entries that the calling server writes itself.
pub(crate) struct Caller<'a> {
    pub(crate) id: &'a str,
    pub(crate) server_type: &'a str,
    /// The route that is being served, if any.
    pub(crate) route: &'a str,
    pub(crate) timeout: Duration,
    /// What the application adds.
    pub(crate) entries: &'a Map<String, Value>,
}

/// The metadata of a call made while serving a request with `received` metadata (which may be empty or unreadable).
pub(crate) fn encode_nested(received: &[u8], caller: &Caller<'_>) -> Vec<u8> {
    let mut map = decode(received).unwrap_or_default();
    map.extend(caller.entries.clone());
    map.insert("peer.id".into(), caller.id.into());
    map.insert("peer.service".into(), caller.server_type.into());
    if !caller.route.is_empty() {
        map.insert("req-route".into(), caller.route.into());
    }
    let timeout = caller.timeout.max(Duration::from_millis(1));
    map.insert("reqTimeout".into(), go_duration::format(timeout).into());
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    map.insert("req-start-time".into(), (now.as_nanos() as u64).into());
    if !map.get("request.id").is_some_and(Value::is_string) {
        let id: String = std::iter::repeat_with(fastrand::alphanumeric).take(22).collect();
        map.insert("request.id".into(), id.into());
    }
    Value::Object(map).to_string().into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_are_read_as_pitaya_writes_them() {
        let read = |text: &str| request_timeout(text.as_bytes());
        assert_eq!(read(r#"{"reqTimeout":"1m30s"}"#).unwrap(), Some(Duration::from_secs(90)));
        assert_eq!(read("{}").unwrap(), None);
        assert_eq!(read(r#"{"reqTimeout":5}"#).unwrap(), None);
        assert_eq!(
            read(r#"{"a":[{}],"req\u0054imeout":"1s","b":1}"#).unwrap(),
            Some(Duration::from_secs(1))
        );
        assert_eq!(
            read(r#"{"reqTimeout":"1s","reqTimeout":"2s"}"#).unwrap(),
            Some(Duration::from_secs(2))
        );
        assert_eq!(read(r#"{"reqTimeout":"0"}"#).unwrap(), None);
        assert_eq!(read(r#"{"reqTimeout":"-1s"}"#).unwrap(), Some(Duration::ZERO));
        assert_eq!(read(r#"{"reqTimeout":"999999h"}"#).unwrap(), Some(TIMEOUT_MAX));
    }

    #[test]
    fn the_short_way_and_the_parser_agree() {
        let pieces = [
            "{",
            "}",
            "\"",
            ":",
            ",",
            "0",
            "12",
            " ",
            "\\",
            "é",
            "1s",
            "\"reqTimeout\":\"2s\"",
            "[]",
        ];
        let mut random = fastrand::Rng::with_seed(7);
        let mut plain = 0;
        for _ in 0..50_000 {
            let mut pick = || *random.choice(&pieces).unwrap();
            let middle: String = (0..4).map(|_| pick()).collect();
            for text in [
                middle.clone(),
                format!("{{\"reqTimeout\":{middle}}}"),
                format!("{{\"reqTimeout\":\"2s\",\"{middle}\":1}}"),
                format!("{{\"a\":{middle},\"reqTimeout\":\"3s\"}}"),
            ] {
                let Some(found) = plain_timeout(text.as_bytes()) else { continue };
                let TimeoutOnly(parsed) = serde_json::from_str(&text).unwrap();
                let parsed = parsed.as_ref().and_then(Value::as_str);
                assert_eq!(found, parsed.unwrap_or_default(), "{text}");
                plain += 1;
            }
        }
        assert!(plain > 1_000, "{plain}");
        assert_eq!(plain_timeout(b"{}"), None, "rare, and the parser knows it");
    }

    #[test]
    fn unreadable_metadata_is_an_internal_error() {
        let error = request_timeout(br#"{"reqTimeout":"abc"}"#).unwrap_err();
        assert_eq!(error.msg, "time: invalid duration \"abc\"");
        assert_eq!(request_timeout(b"").unwrap_err().msg, "no context found");
        for bad in [&b"null"[..], b"[]", b"{", b"\xff"] {
            assert_eq!(request_timeout(bad).unwrap_err().code, "PIT-500");
        }
    }

    #[test]
    fn a_nested_call_keeps_what_it_does_not_own() {
        let mut entries = Map::new();
        entries.insert("mine".into(), 7.into());
        entries.insert("peer.id".into(), "forged".into());
        let timeout = Duration::from_millis(250);
        let caller =
            Caller { id: "me", server_type: "room", route: "room.a.b", timeout, entries: &entries };
        let received = br#"{"peer.id":"you","request.id":"r1","custom":{"a":1},"reqTimeout":"5s"}"#;
        let map = decode(&encode_nested(received, &caller)).unwrap();
        assert_eq!(map["peer.id"], "me");
        assert_eq!(map["request.id"], "r1");
        assert_eq!(map["reqTimeout"], "250ms");
        assert_eq!(map["custom"]["a"], 1);
        assert_eq!(map["req-route"], "room.a.b");
        assert_eq!(map["mine"], 7);
        assert_eq!(decode(&encode_nested(b"", &caller)).unwrap()["peer.service"], "room");
    }
}
