//! Protobuf without generated code: JSON in, messages out, and back, by descriptors that a server sends.
//!
//! For the interactive client only: it allocates freely and values nothing but being right. The JSON is protobuf's own
//! mapping: 64-bit integers as strings, bytes in base64, enums by name. Proto3 and what proto2 shares with it are
//! understood, groups and extensions are not; fields that the schema does not know are skipped.

mod base64;
mod decode;
mod encode;
mod schema;

use prost::encoding::WireType;

pub(crate) use decode::decode;
pub(crate) use encode::encode;
use schema::FieldDescriptor;
pub(crate) use schema::{Schema, SchemaError};

/// Why a value and its type do not fit.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DynamicError {
    #[error("the server described no message type {0}")]
    UnknownType(String),
    #[error("{message} has no field {field}")]
    UnknownField { message: String, field: String },
    #[error("the value of {field} does not fit its type")]
    WrongValue { field: String },
    #[error("field {field} has a type that is not supported: {kind}")]
    Unsupported { field: String, kind: i32 },
    #[error("the message cannot be decoded: {0}")]
    Decode(#[from] prost::DecodeError),
    #[error("the message ends too early")]
    Truncated,
    #[error("messages are nested too deeply")]
    TooDeep,
}

/// Types of fields, with the numbers of `google.protobuf.FieldDescriptorProto.Type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Double,
    Float,
    Int64,
    Uint64,
    Int32,
    Fixed64,
    Fixed32,
    Bool,
    String,
    Message,
    Bytes,
    Uint32,
    Enum,
    Sfixed32,
    Sfixed64,
    Sint32,
    Sint64,
}

impl Kind {
    fn of(field: &FieldDescriptor) -> Result<Self, DynamicError> {
        Ok(match field.kind {
            1 => Self::Double,
            2 => Self::Float,
            3 => Self::Int64,
            4 => Self::Uint64,
            5 => Self::Int32,
            6 => Self::Fixed64,
            7 => Self::Fixed32,
            8 => Self::Bool,
            9 => Self::String,
            11 => Self::Message,
            12 => Self::Bytes,
            13 => Self::Uint32,
            14 => Self::Enum,
            15 => Self::Sfixed32,
            16 => Self::Sfixed64,
            17 => Self::Sint32,
            18 => Self::Sint64,
            kind => return Err(DynamicError::Unsupported { field: field.name.clone(), kind }),
        })
    }

    fn wire_type(self) -> WireType {
        match self {
            Self::Double | Self::Fixed64 | Self::Sfixed64 => WireType::SixtyFourBit,
            Self::Float | Self::Fixed32 | Self::Sfixed32 => WireType::ThirtyTwoBit,
            Self::String | Self::Message | Self::Bytes => WireType::LengthDelimited,
            _ => WireType::Varint,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::schema::{
        EnumDescriptor, EnumValueDescriptor, FieldDescriptor, FileDescriptor, MessageDescriptor,
        MessageOptions,
    };
    use super::*;

    fn field(name: &str, number: u32, kind: i32) -> FieldDescriptor {
        FieldDescriptor { name: name.into(), number, label: 1, kind, ..FieldDescriptor::default() }
    }

    fn typed(field: FieldDescriptor, type_name: &str) -> FieldDescriptor {
        FieldDescriptor { type_name: type_name.into(), ..field }
    }

    fn repeated(field: FieldDescriptor) -> FieldDescriptor {
        FieldDescriptor { label: 3, ..field }
    }

    /// `message All` with every type, itself, a list, a map and an enum.
    fn schema() -> Schema {
        let mut fields: Vec<FieldDescriptor> = [1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 13, 15, 16, 17, 18]
            .into_iter()
            .map(|kind| field(&format!("f{kind}"), kind as u32, kind))
            .collect();
        fields.push(typed(field("inner", 30, 11), ".p.All"));
        fields.push(repeated(field("list", 31, 5)));
        fields.push(repeated(typed(field("map", 32, 11), ".p.All.MapEntry")));
        fields.push(typed(field("color", 33, 14), ".p.Color"));
        fields.push(FieldDescriptor { json_name: "longName".into(), ..field("long_name", 34, 9) });
        let entry = MessageDescriptor {
            name: "MapEntry".into(),
            fields: vec![field("key", 1, 9), field("value", 2, 5)],
            options: Some(MessageOptions { is_map_entry: true }),
            ..MessageDescriptor::default()
        };
        let all = MessageDescriptor {
            name: "All".into(),
            fields,
            nested: vec![entry],
            ..MessageDescriptor::default()
        };
        let red = EnumValueDescriptor { name: "RED".into(), number: 1 };
        let color = EnumDescriptor { name: "Color".into(), values: vec![red] };
        let mut schema = Schema::default();
        schema.insert(FileDescriptor {
            package: "p".into(),
            messages: vec![all],
            enums: vec![color],
        });
        schema
    }

    #[test]
    fn every_type_goes_to_bytes_and_back() {
        let schema = schema();
        let value = json!({
            "f1": 1.5, "f2": -0.25, "f3": "-9223372036854775808", "f4": "18446744073709551615",
            "f5": -1, "f6": "7", "f7": 8, "f8": true, "f9": "é", "f12": "AAEC/w==", "f13": 4_294_967_295_u32,
            "f15": -15, "f16": "-16", "f17": -17, "f18": "-18",
            "inner": {"f9": "x", "inner": {}}, "list": [1, -2, 3], "map": {"a": 1, "b": 2},
            "color": "RED", "longName": "y",
        });
        let bytes = encode(&schema, "p.All", &value).unwrap();
        assert_eq!(decode(&schema, ".p.All", &bytes).unwrap(), value);
    }

    #[test]
    fn golden_bytes_of_protobuf_are_met() {
        let schema = schema();
        let bytes =
            encode(&schema, "p.All", &json!({"f5": 150, "f9": "testing", "f17": -1})).unwrap();
        // In the order of the JSON's keys, which every decoder takes.
        let mut expected = vec![0x88, 0x01, 0x01, 0x28, 0x96, 0x01, 0x4a, 0x07];
        expected.extend_from_slice(b"testing");
        assert_eq!(bytes, expected);
        let packed = [0xfa, 0x01, 0x03, 0x01, 0x96, 0x01];
        assert_eq!(decode(&schema, "p.All", &packed).unwrap(), json!({"list": [1, 150]}));
        // Field 200 is unknown, and an enum's number may be.
        let unknown = [0xc2, 0x0c, 0x01, 0x00, 0x88, 0x02, 0x09];
        assert_eq!(decode(&schema, "p.All", &unknown).unwrap(), json!({"color": 9}));
    }

    #[test]
    fn what_does_not_fit_is_refused_by_name() {
        let schema = schema();
        let refused = |value| encode(&schema, "p.All", &value).unwrap_err().to_string();
        assert_eq!(refused(json!({"nope": 1})), "p.All has no field nope");
        for (name, value) in [
            ("f5", json!(2_147_483_648_u32)),
            ("f13", json!(-1)),
            ("f8", json!("yes")),
            ("f9", json!(1)),
            ("f12", json!("*")),
            ("color", json!("BLUE")),
            ("list", json!(1)),
            ("f5", json!([1])),
            ("f5", json!(1.5)),
        ] {
            assert_eq!(
                refused(json!({name: value})),
                format!("the value of {name} does not fit its type")
            );
        }
        assert_eq!(
            encode(&schema, "p.No", &json!({})).unwrap_err().to_string(),
            "the server described no message type p.No"
        );
        assert_eq!(
            encode(&schema, "p.All", &json!({"long_name": null})).unwrap(),
            Vec::<u8>::new()
        );
    }

    #[test]
    fn broken_bytes_are_errors_at_every_length() {
        let schema = schema();
        let value =
            json!({"f1": 1.5, "f7": 8, "f9": "abc", "inner": {"list": [1]}, "map": {"a": 1}});
        let bytes = encode(&schema, "p.All", &value).unwrap();
        for length in 0..bytes.len() {
            // A cut between two fields is a shorter message; any other is an error. Neither panics.
            let _ = decode(&schema, "p.All", &bytes[..length]);
        }
        assert!(decode(&schema, "p.All", &[0x4a, 0x05, b'a']).is_err());
        let mut deep = Vec::new();
        for _ in 0..100 {
            let mut outer = vec![0xf2, 0x01];
            encode::encode_bytes(&deep, &mut outer);
            deep = outer;
        }
        assert!(matches!(decode(&schema, "p.All", &deep), Err(DynamicError::TooDeep)));
    }
}
