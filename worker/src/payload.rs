//! Between the bytes of a message and the types of a handler.
//!
//! The type decides the encoding, not a setting: any serde type is JSON, [`Pb`] is protobuf, [`Bytes`] is raw. What
//! a client receives therefore never depends on where the worker runs.

use std::any::Any;

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;
use shared::error::code;
use shared::go::repair_json;

use crate::error::{Error, Result};
use crate::raw;
use crate::shape::{self, Shape};

/// A protobuf message, as an argument or a result.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Pb<T>(pub T);

/// What the last argument of a handler may be: a serde type (JSON), [`Pb`] (protobuf) or [`Bytes`] (raw).
///
/// Half surrogate pairs and bytes that are no UTF-8 are read as U+FFFD inside JSON strings, as Go reads them: a browser
/// sends such when a game cuts a text inside an emoji.
///
/// JSON names must match exactly. Go matches them without regard to case, and untagged Go structs send `Code`, `Msg`:
/// use `#[serde(alias = "..")]` or `rename_all = "PascalCase"` where such peers write.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is neither an extractor nor a message",
    label = "a handler cannot take this",
    note = "extractors are Session, State<T>, Rpc, Push, Groups and Ctx; a message is the last argument",
    note = "a message is a type with `#[derive(Deserialize)]`, `Pb<T>` with a protobuf message, or `Bytes`"
)]
pub trait Payload: Sized + Send + 'static {
    /// Reads a message. Fails with `PIT-400` and the decoder's text.
    fn decode(bytes: &Bytes) -> Result<Self>;

    /// Judges a message that could be read, after the functions before the handler; see [`Valid`](crate::Valid).
    fn check(&self) -> Result<()> {
        Ok(())
    }

    /// What the documentation says about it.
    fn shape() -> Shape {
        Shape::Raw
    }
}

impl<T: DeserializeOwned + Send + 'static> Payload for T {
    fn decode(bytes: &Bytes) -> Result<Self> {
        // Bytes has a serde implementation of its own (an array of numbers), which nobody means here. The check is
        // settled when the function is compiled for a type.
        let mut raw = Some(bytes.clone());
        if let Some(same) = (&mut raw as &mut dyn Any).downcast_mut::<Option<T>>()
            && let Some(value) = same.take()
        {
            return Ok(value);
        }
        if bytes.is_empty() {
            return Err(Error::new(code::BAD_REQUEST, "unexpected end of JSON input"));
        }
        let decoded = serde_json::from_slice(bytes).or_else(|error| {
            let repaired = repair_json(bytes).ok_or(error)?;
            serde_json::from_slice(&repaired)
        });
        decoded.map_err(|e| Error::new(code::BAD_REQUEST, e.to_string()))
    }

    fn shape() -> Shape {
        shape::of_json::<T>()
    }
}

impl<T: prost::Message + Default + 'static> Payload for Pb<T> {
    fn decode(bytes: &Bytes) -> Result<Self> {
        let decoded = T::decode(bytes.clone());
        decoded.map(Pb).map_err(|e| Error::new(code::BAD_REQUEST, e.to_string()))
    }

    fn shape() -> Shape {
        Shape::Message(std::any::type_name::<T>())
    }
}

/// What a handler may answer and what may be pushed: a serde type (JSON), [`Pb`] (protobuf) or [`Bytes`] (raw).
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be sent to a client",
    note = "a message is a type with `#[derive(Serialize)]`, `Pb<T>` with a protobuf message, or `Bytes`"
)]
pub trait Encode {
    /// The bytes that go out. Fails with `PIT-000`, or when a JSON answer would be `null`.
    fn encode(&self) -> Result<Bytes>;

    /// What the documentation says about it.
    fn shape() -> Shape {
        shape::of_answer::<Self>()
    }
}

impl<T: Serialize + ?Sized> Encode for T {
    fn encode(&self) -> Result<Bytes> {
        if let Some(raw) = raw::probe(self) {
            return Ok(raw);
        }
        let json = serde_json::to_vec(self)?;
        // Pitaya refuses a handler's nil; `None` and unit values are what comes closest.
        if json == b"null" {
            return Err(Error::unknown("reply must not be null"));
        }
        Ok(json.into())
    }
}

impl<T: prost::Message> Encode for Pb<T> {
    fn encode(&self) -> Result<Bytes> {
        Ok(self.0.encode_to_vec().into())
    }

    fn shape() -> Shape {
        Shape::Message(std::any::type_name::<T>())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(serde::Serialize, serde::Deserialize, Debug, PartialEq)]
    struct Name {
        name: String,
    }

    #[test]
    fn raw_bytes_pass_without_an_encoding() {
        let bytes = Bytes::from_static(&[0, 159, 255]);
        assert_eq!(<Bytes as Payload>::decode(&bytes).unwrap(), bytes);
        assert_eq!(bytes.encode().unwrap(), bytes);
        assert_eq!(Bytes::new().encode().unwrap(), Bytes::new());
    }

    #[test]
    fn json_is_the_encoding_of_serde_types() {
        let name = Name { name: "bob".into() };
        let encoded = name.encode().unwrap();
        assert_eq!(&encoded[..], br#"{"name":"bob"}"#);
        assert_eq!(<Name as Payload>::decode(&encoded).unwrap(), name);
        assert_eq!(vec![1u8, 2].encode().unwrap(), Bytes::from_static(b"[1,2]"));
        assert_eq!("text".encode().unwrap(), Bytes::from_static(b"\"text\""));
    }

    #[test]
    fn json_with_half_a_surrogate_pair_is_read_as_go_reads_it() {
        let cut = Bytes::from_static(br#"{"name":"bob \ud83d"}"#);
        assert_eq!(<Name as Payload>::decode(&cut).unwrap().name, "bob \u{fffd}");
        let latin = Bytes::from_static(b"{\"name\":\"\xe9\"}");
        assert_eq!(<Name as Payload>::decode(&latin).unwrap().name, "\u{fffd}");
        let broken = Bytes::from_static(br#"{"name":"\ud83d""#);
        assert_eq!(<Name as Payload>::decode(&broken).unwrap_err().code, "PIT-400");
    }

    #[test]
    fn an_empty_message_is_no_json_but_a_protobuf_message() {
        let error = <Name as Payload>::decode(&Bytes::new()).unwrap_err();
        assert_eq!(
            (error.code.as_ref(), error.msg.as_str()),
            ("PIT-400", "unexpected end of JSON input")
        );
        assert_eq!(Pb::<proto::Push>::decode(&Bytes::new()).unwrap().0, proto::Push::default());
    }

    #[test]
    fn nothing_is_no_answer() {
        assert_eq!(None::<Name>.encode().unwrap_err().msg, "reply must not be null");
    }
}
