//! The data object of one session, as a backend holds its copy.
//!
//! It stays encoded until somebody asks for a field. Numbers that are whole are kept as integers, because a hop
//! through Go turns each number into a float: what was stored as 7 must come back as 7 (compat-traps 5.8).

use bytes::Bytes;
use serde::Serialize;
use serde::de::{DeserializeOwned, IgnoredAny};
use serde_json::{Map, Number, Value};
use shared::error::code;

use crate::error::{Error, Result};

/// The first integer that a 64-bit float cannot tell from its neighbour. Whole floats up to here are integers.
const WHOLE_FLOAT_MAX: f64 = 9_007_199_254_740_992.0;

/// The data of one session: encoded, and decoded once a field was asked for.
#[derive(Debug, Clone, Default)]
pub(crate) struct SessionData {
    encoded: Bytes,
    fields: Option<Map<String, Value>>,
    is_changed: bool,
}

impl SessionData {
    /// Takes the object as it came from the gateway. Fails with `PIT-500` when it is none; empty and `null` are an
    /// empty object, as in Go.
    pub(crate) fn new(encoded: Bytes) -> Result<Self> {
        let start = encoded.iter().find(|byte| !byte.is_ascii_whitespace());
        match start {
            None => return Ok(Self::default()),
            Some(b'{') => {
                serde_json::from_slice::<IgnoredAny>(&encoded).map_err(|e| unreadable(&e))?;
            }
            Some(_) => {
                serde_json::from_slice::<Option<Map<String, Value>>>(&encoded)
                    .map_err(|e| unreadable(&e))?;
            }
        }
        Ok(Self { encoded, fields: None, is_changed: false })
    }

    pub(crate) fn fields(&mut self) -> &mut Map<String, Value> {
        self.fields.get_or_insert_with(|| {
            // The bytes were checked when they came in.
            let fields: Option<Map<_, _>> =
                serde_json::from_slice(&self.encoded).unwrap_or_default();
            let mut fields = fields.unwrap_or_default();
            fields.values_mut().for_each(make_whole);
            fields
        })
    }

    /// The field as a `T`. None when there is no such field; an error names the field that is no `T`.
    pub(crate) fn get<T: DeserializeOwned>(&mut self, key: &str) -> Result<Option<T>> {
        let Some(value) = self.fields().get(key) else { return Ok(None) };
        match T::deserialize(value) {
            Ok(value) => Ok(Some(value)),
            Err(error) => Err(Error::unknown(format!("session data {key:?}: {error}"))),
        }
    }

    pub(crate) fn set<T: Serialize + ?Sized>(&mut self, key: &str, value: &T) -> Result<()> {
        let value = serde_json::to_value(value)?;
        self.fields().insert(key.to_owned(), value);
        self.is_changed = true;
        Ok(())
    }

    pub(crate) fn remove(&mut self, key: &str) -> bool {
        let was_there = self.fields().remove(key).is_some();
        self.is_changed |= was_there;
        was_there
    }

    pub(crate) fn replace(&mut self, fields: Map<String, Value>) {
        self.fields = Some(fields);
        self.is_changed = true;
    }

    /// Whether there are changes that were not encoded for the gateway yet.
    pub(crate) fn is_changed(&self) -> bool {
        self.is_changed
    }

    /// [`SessionData::encode`], after which nothing counts as changed.
    pub(crate) fn encode_for_save(&mut self) -> Vec<u8> {
        self.is_changed = false;
        self.encode()
    }

    /// The object as Go writes it: sorted keys, HTML escaped. Never empty, because empty means "no change" to the
    /// gateway that it is sent to.
    pub(crate) fn encode(&mut self) -> Vec<u8> {
        let json = serde_json::to_vec(self.fields()).unwrap_or_else(|_| b"{}".to_vec());
        escape_html(&json)
    }
}

fn unreadable(error: &serde_json::Error) -> Error {
    Error::new(code::INTERNAL, error.to_string())
}

/// Turns floats without a fraction into integers, in depth.
fn make_whole(value: &mut Value) {
    match value {
        Value::Number(number) => {
            if let Some(float) = number.as_f64()
                && !number.is_i64()
                && !number.is_u64()
                && float.fract() == 0.0
                && float.abs() <= WHOLE_FLOAT_MAX
            {
                *number = Number::from(float as i64);
            }
        }
        Value::Array(values) => values.iter_mut().for_each(make_whole),
        Value::Object(fields) => fields.values_mut().for_each(make_whole),
        Value::Null | Value::Bool(_) | Value::String(_) => {}
    }
}

/// Escapes what Go escapes. In JSON these characters stand in strings only, so the bytes can be replaced blindly.
fn escape_html(json: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(json.len());
    let mut rest = json;
    while let Some((&byte, tail)) = rest.split_first() {
        rest = tail;
        match byte {
            b'<' => out.extend_from_slice(br"\u003c"),
            b'>' => out.extend_from_slice(br"\u003e"),
            b'&' => out.extend_from_slice(br"\u0026"),
            // U+2028 and U+2029 are E2 80 A8 and E2 80 A9.
            0xe2 if tail.starts_with(&[0x80, 0xa8]) => {
                out.extend_from_slice(br"\u2028");
                rest = tail.get(2..).unwrap_or_default();
            }
            0xe2 if tail.starts_with(&[0x80, 0xa9]) => {
                out.extend_from_slice(br"\u2029");
                rest = tail.get(2..).unwrap_or_default();
            }
            _ => out.push(byte),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data(json: &'static str) -> SessionData {
        SessionData::new(Bytes::from_static(json.as_bytes())).unwrap()
    }

    #[test]
    fn a_number_that_became_a_float_on_its_way_is_read_as_an_integer() {
        let mut data =
            data(r#"{"level":7.0,"big":9007199254740992.0,"part":1.5,"huge":1e300,"at":[1.0]}"#);
        assert_eq!(data.get::<i64>("level").unwrap(), Some(7));
        assert_eq!(data.get::<u8>("level").unwrap(), Some(7));
        assert_eq!(data.get::<f64>("level").unwrap(), Some(7.0));
        assert_eq!(data.get::<u64>("big").unwrap(), Some(1 << 53));
        assert_eq!(data.get::<Vec<u8>>("at").unwrap(), Some(vec![1]));
        assert!(data.get::<i64>("part").is_err());
        assert!(data.get::<i64>("huge").is_err());
        assert_eq!(data.get::<i64>("none").unwrap(), None);
    }

    #[test]
    fn fields_are_set_removed_and_encoded_as_go_does() {
        let mut data = data(r#"{"ipversion":"ipv4"}"#);
        data.set("html", "<&>\u{2028}\u{20ac}").unwrap();
        data.set("b", &true).unwrap();
        let encoded = String::from_utf8(data.encode()).unwrap();
        assert_eq!(
            encoded,
            "{\"b\":true,\"html\":\"\\u003c\\u0026\\u003e\\u2028\u{20ac}\",\"ipversion\":\"ipv4\"}"
        );
        assert!(data.remove("b") && !data.remove("b"));
        data.replace(Map::new());
        assert_eq!(data.encode(), b"{}");
    }

    #[test]
    fn only_an_object_is_session_data() {
        for empty in ["", "  ", "null"] {
            assert!(data(empty).fields().is_empty());
        }
        for bad in ["[]", "7", "{", "{}x", "\"a\""] {
            let error = SessionData::new(Bytes::from_static(bad.as_bytes())).unwrap_err();
            assert_eq!(error.code, "PIT-500", "{bad}");
        }
    }
}
