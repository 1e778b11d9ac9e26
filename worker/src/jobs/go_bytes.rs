//! `#[serde(with = "worker::go_bytes")]` for a field of bytes, which Go's JSON writes in base64.

use data_encoding::BASE64;
use serde::de::Error;
use serde::{Deserialize, Deserializer, Serializer};

/// Writes bytes as base64 with padding.
pub fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&BASE64.encode(bytes))
}

/// Reads base64 with padding; `null` is no bytes. Fails for anything else.
pub fn deserialize<'de, D: Deserializer<'de>, B: From<Vec<u8>>>(
    deserializer: D,
) -> Result<B, D::Error> {
    let text = Option::<String>::deserialize(deserializer)?.unwrap_or_default();
    BASE64.decode(text.as_bytes()).map(B::from).map_err(D::Error::custom)
}

#[cfg(test)]
mod tests {
    #[derive(serde::Serialize, serde::Deserialize, Debug, PartialEq)]
    struct Message {
        #[serde(with = "super")]
        data: Vec<u8>,
    }

    #[test]
    fn bytes_are_base64_as_in_go() {
        let message = Message { data: vec![1, 2, 3] };
        assert_eq!(serde_json::to_string(&message).unwrap(), r#"{"data":"AQID"}"#);
        assert_eq!(serde_json::from_str::<Message>(r#"{"data":"AQID"}"#).unwrap(), message);
        assert_eq!(serde_json::from_str::<Message>(r#"{"data":null}"#).unwrap().data, b"");
        assert!(serde_json::from_str::<Message>(r#"{"data":"A"}"#).is_err());
    }
}
