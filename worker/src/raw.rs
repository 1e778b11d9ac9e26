//! Tells whether a value is raw bytes, by asking its own `Serialize`.
//!
//! A type that serialises itself as bytes (`Bytes`, and wrappers made for that purpose) goes out as it is instead of
//! as a JSON array of numbers. Asking through serde works for borrowed types too, where a comparison of type ids
//! would demand `'static` of everything that is pushed. The probe gives up at the first call that is not bytes, so
//! it costs nothing for other types.

use bytes::Bytes;
use serde::ser::{Impossible, Serialize, Serializer};

/// The bytes of a value that serialises itself as bytes.
pub(crate) fn probe<T: Serialize + ?Sized>(value: &T) -> Option<Bytes> {
    value.serialize(Probe).ok()
}

struct Probe;

#[derive(Debug, thiserror::Error)]
#[error("not raw bytes")]
struct NotBytes;

impl serde::ser::Error for NotBytes {
    fn custom<T: std::fmt::Display>(_: T) -> Self {
        Self
    }
}

macro_rules! not_bytes {
    ($($name:ident($($argument:ty),*) -> $ok:ty;)*) => {
        $(fn $name(self, $(_: $argument),*) -> Result<$ok, NotBytes> {
            Err(NotBytes)
        })*
    };
}

impl Serializer for Probe {
    type Ok = Bytes;
    type Error = NotBytes;
    type SerializeSeq = Impossible<Bytes, NotBytes>;
    type SerializeTuple = Impossible<Bytes, NotBytes>;
    type SerializeTupleStruct = Impossible<Bytes, NotBytes>;
    type SerializeTupleVariant = Impossible<Bytes, NotBytes>;
    type SerializeMap = Impossible<Bytes, NotBytes>;
    type SerializeStruct = Impossible<Bytes, NotBytes>;
    type SerializeStructVariant = Impossible<Bytes, NotBytes>;

    fn serialize_bytes(self, value: &[u8]) -> Result<Bytes, NotBytes> {
        Ok(Bytes::copy_from_slice(value))
    }

    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Result<Bytes, NotBytes> {
        value.serialize(self)
    }

    fn serialize_newtype_struct<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        _: &T,
    ) -> Result<Bytes, NotBytes> {
        Err(NotBytes)
    }

    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        _: u32,
        _: &'static str,
        _: &T,
    ) -> Result<Bytes, NotBytes> {
        Err(NotBytes)
    }

    fn collect_str<T: std::fmt::Display + ?Sized>(self, _: &T) -> Result<Bytes, NotBytes> {
        Err(NotBytes)
    }

    not_bytes! {
        serialize_bool(bool) -> Bytes;
        serialize_i8(i8) -> Bytes;
        serialize_i16(i16) -> Bytes;
        serialize_i32(i32) -> Bytes;
        serialize_i64(i64) -> Bytes;
        serialize_u8(u8) -> Bytes;
        serialize_u16(u16) -> Bytes;
        serialize_u32(u32) -> Bytes;
        serialize_u64(u64) -> Bytes;
        serialize_f32(f32) -> Bytes;
        serialize_f64(f64) -> Bytes;
        serialize_char(char) -> Bytes;
        serialize_str(&str) -> Bytes;
        serialize_none() -> Bytes;
        serialize_unit() -> Bytes;
        serialize_unit_struct(&'static str) -> Bytes;
        serialize_unit_variant(&'static str, u32, &'static str) -> Bytes;
        serialize_seq(Option<usize>) -> Self::SerializeSeq;
        serialize_tuple(usize) -> Self::SerializeTuple;
        serialize_tuple_struct(&'static str, usize) -> Self::SerializeTupleStruct;
        serialize_tuple_variant(&'static str, u32, &'static str, usize) -> Self::SerializeTupleVariant;
        serialize_map(Option<usize>) -> Self::SerializeMap;
        serialize_struct(&'static str, usize) -> Self::SerializeStruct;
        serialize_struct_variant(&'static str, u32, &'static str, usize) -> Self::SerializeStructVariant;
    }
}
