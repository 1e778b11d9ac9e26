//! JSON in, a message out.

use prost::encoding::{encode_key, encode_varint};
use serde_json::{Map, Value};

use super::schema::{FieldDescriptor, Schema};
use super::{DynamicError, Kind, base64};

/// A message of this type from JSON. An empty text is the empty message.
pub(crate) fn encode(schema: &Schema, name: &str, value: &Value) -> Result<Vec<u8>, DynamicError> {
    let mut out = Vec::new();
    encode_message(schema, name, value, &mut out)?;
    Ok(out)
}

fn encode_message(
    schema: &Schema,
    name: &str,
    value: &Value,
    out: &mut Vec<u8>,
) -> Result<(), DynamicError> {
    let message = schema.find(name)?;
    let Value::Object(members) = value else {
        return Err(DynamicError::WrongValue { field: message.name.clone() });
    };
    for (key, value) in members {
        let field = message.fields.iter().find(|field| field.is_named(key)).ok_or_else(|| {
            DynamicError::UnknownField { message: name.to_owned(), field: key.clone() }
        })?;
        match value {
            Value::Null => {}
            Value::Object(entries) if schema.is_map(field) => {
                for (key, value) in entries {
                    let entry: Map<String, Value> = [
                        ("key".to_owned(), Value::String(key.clone())),
                        ("value".to_owned(), value.clone()),
                    ]
                    .into_iter()
                    .collect();
                    encode_field(schema, field, &Value::Object(entry), out)?;
                }
            }
            Value::Array(values) if field.is_repeated() => {
                // Not packed: every decoder takes both forms.
                for value in values {
                    encode_field(schema, field, value, out)?;
                }
            }
            value if !field.is_repeated() => encode_field(schema, field, value, out)?,
            _ => return Err(DynamicError::WrongValue { field: field.name.clone() }),
        }
    }
    Ok(())
}

fn encode_field(
    schema: &Schema,
    field: &FieldDescriptor,
    value: &Value,
    out: &mut Vec<u8>,
) -> Result<(), DynamicError> {
    let kind = Kind::of(field)?;
    encode_key(field.number, kind.wire_type(), out);
    let wrong = || DynamicError::WrongValue { field: field.name.clone() };
    match kind {
        Kind::Double => out.extend_from_slice(&float(value).ok_or_else(wrong)?.to_le_bytes()),
        Kind::Float => {
            out.extend_from_slice(&(float(value).ok_or_else(wrong)? as f32).to_le_bytes());
        }
        Kind::Int64 => encode_varint(integer::<i64>(value).ok_or_else(wrong)? as u64, out),
        Kind::Int32 => {
            encode_varint(i64::from(integer::<i32>(value).ok_or_else(wrong)?) as u64, out);
        }
        Kind::Uint64 => encode_varint(integer::<u64>(value).ok_or_else(wrong)?, out),
        Kind::Uint32 => encode_varint(u64::from(integer::<u32>(value).ok_or_else(wrong)?), out),
        Kind::Sint64 => encode_varint(zigzag(integer(value).ok_or_else(wrong)?), out),
        Kind::Sint32 => {
            encode_varint(zigzag(integer::<i32>(value).ok_or_else(wrong)?.into()), out);
        }
        Kind::Fixed64 => {
            out.extend_from_slice(&integer::<u64>(value).ok_or_else(wrong)?.to_le_bytes());
        }
        Kind::Sfixed64 => {
            out.extend_from_slice(&integer::<i64>(value).ok_or_else(wrong)?.to_le_bytes());
        }
        Kind::Fixed32 => {
            out.extend_from_slice(&integer::<u32>(value).ok_or_else(wrong)?.to_le_bytes());
        }
        Kind::Sfixed32 => {
            out.extend_from_slice(&integer::<i32>(value).ok_or_else(wrong)?.to_le_bytes());
        }
        Kind::Bool => {
            // A map's keys are texts, whatever their type.
            let is_true = value.as_bool().or_else(|| value.as_str()?.parse().ok());
            encode_varint(u64::from(is_true.ok_or_else(wrong)?), out);
        }
        Kind::Enum => {
            encode_varint(
                i64::from(enum_number(schema, field, value).ok_or_else(wrong)?) as u64,
                out,
            );
        }
        Kind::String => encode_bytes(value.as_str().ok_or_else(wrong)?.as_bytes(), out),
        Kind::Bytes => {
            let bytes = value.as_str().and_then(base64::decode).ok_or_else(wrong)?;
            encode_bytes(&bytes, out);
        }
        Kind::Message => {
            let mut inner = Vec::new();
            encode_message(schema, &field.type_name, value, &mut inner)?;
            encode_bytes(&inner, out);
        }
    }
    Ok(())
}

fn zigzag(number: i64) -> u64 {
    ((number << 1) ^ (number >> 63)) as u64
}

pub(super) fn encode_bytes(bytes: &[u8], out: &mut Vec<u8>) {
    encode_varint(bytes.len() as u64, out);
    out.extend_from_slice(bytes);
}

/// An integer as a number or as text, in the range of its type.
fn integer<T: std::str::FromStr>(value: &Value) -> Option<T> {
    match value {
        Value::Number(number) => number.to_string().parse().ok(),
        Value::String(text) => text.parse().ok(),
        _ => None,
    }
}

fn float(value: &Value) -> Option<f64> {
    match value {
        Value::Number(number) => number.as_f64(),
        // Rust reads NaN, Infinity and -Infinity as protobuf's JSON spells them.
        Value::String(text) => text.parse().ok(),
        _ => None,
    }
}

fn enum_number(schema: &Schema, field: &FieldDescriptor, value: &Value) -> Option<i32> {
    let Value::String(name) = value else { return integer(value) };
    let descriptor = schema.enumeration(&field.type_name)?;
    descriptor.values.iter().find(|value| value.name == *name).map(|value| value.number)
}
