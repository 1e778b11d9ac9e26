//! A message in, JSON out.

use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field};
use serde_json::{Map, Value};

use super::schema::{FieldDescriptor, Schema};
use super::{DynamicError, Kind, base64};

/// Messages inside messages; more is taken for an attack.
const DEPTH_MAX: u32 = 64;

/// A value as it stands on the wire.
enum Raw<'a> {
    Varint(u64),
    Fixed64(u64),
    Fixed32(u32),
    Bytes(&'a [u8]),
}

/// JSON of a message of this type; fields that are not there are not there either.
pub(crate) fn decode(schema: &Schema, name: &str, bytes: &[u8]) -> Result<Value, DynamicError> {
    decode_message(schema, name, bytes, DEPTH_MAX).map(Value::Object)
}

fn decode_message(
    schema: &Schema,
    name: &str,
    mut bytes: &[u8],
    depth: u32,
) -> Result<Map<String, Value>, DynamicError> {
    let message = schema.find(name)?;
    let depth = depth.checked_sub(1).ok_or(DynamicError::TooDeep)?;
    let mut members = Map::new();
    while !bytes.is_empty() {
        let (number, wire_type) = decode_key(&mut bytes)?;
        let Some(field) = message.fields.iter().find(|field| field.number == number) else {
            skip_field(wire_type, number, &mut bytes, DecodeContext::default())?;
            continue;
        };
        let raw = take_raw(wire_type, &mut bytes)?;
        let kind = Kind::of(field)?;
        let key = if field.json_name.is_empty() { &field.name } else { &field.json_name };
        match raw {
            Raw::Bytes(entry) if schema.is_map(field) => {
                let entry = decode_message(schema, &field.type_name, entry, depth)?;
                let members = members.entry(key).or_insert_with(|| Value::Object(Map::new()));
                if let Value::Object(members) = members {
                    let text = match entry.get("key") {
                        Some(Value::String(text)) => text.clone(),
                        Some(other) => other.to_string(),
                        None => String::new(),
                    };
                    members.insert(text, entry.get("value").cloned().unwrap_or_default());
                }
            }
            // Packed numbers.
            Raw::Bytes(mut packed) if kind.wire_type() != WireType::LengthDelimited => {
                while !packed.is_empty() {
                    let raw = take_raw(kind.wire_type(), &mut packed)?;
                    push(&mut members, key, decode_value(schema, field, kind, &raw, depth)?);
                }
            }
            raw => {
                let value = decode_value(schema, field, kind, &raw, depth)?;
                if field.is_repeated() {
                    push(&mut members, key, value);
                } else {
                    members.insert(key.clone(), value);
                }
            }
        }
    }
    Ok(members)
}

fn push(members: &mut Map<String, Value>, key: &str, value: Value) {
    let values = members.entry(key).or_insert_with(|| Value::Array(Vec::new()));
    if let Value::Array(values) = values {
        values.push(value);
    }
}

fn take_raw<'a>(wire_type: WireType, bytes: &mut &'a [u8]) -> Result<Raw<'a>, DynamicError> {
    let truncated = || DynamicError::Truncated;
    Ok(match wire_type {
        WireType::Varint => Raw::Varint(decode_varint(bytes)?),
        WireType::SixtyFourBit => {
            let (value, rest) = bytes.split_first_chunk().ok_or_else(truncated)?;
            *bytes = rest;
            Raw::Fixed64(u64::from_le_bytes(*value))
        }
        WireType::ThirtyTwoBit => {
            let (value, rest) = bytes.split_first_chunk().ok_or_else(truncated)?;
            *bytes = rest;
            Raw::Fixed32(u32::from_le_bytes(*value))
        }
        WireType::LengthDelimited => {
            let length =
                usize::try_from(decode_varint(bytes)?).map_err(|_| DynamicError::Truncated)?;
            let (value, rest) = bytes.split_at_checked(length).ok_or_else(truncated)?;
            *bytes = rest;
            Raw::Bytes(value)
        }
        WireType::StartGroup | WireType::EndGroup => {
            return Err(DynamicError::Unsupported { field: "group".to_owned(), kind: 10 });
        }
    })
}

fn decode_value(
    schema: &Schema,
    field: &FieldDescriptor,
    kind: Kind,
    raw: &Raw<'_>,
    depth: u32,
) -> Result<Value, DynamicError> {
    let unzigzag = |number: u64| ((number >> 1) as i64) ^ -((number & 1) as i64);
    Ok(match (kind, raw) {
        (Kind::Double, Raw::Fixed64(bits)) => float_value(f64::from_bits(*bits)),
        (Kind::Float, Raw::Fixed32(bits)) => float_value(f64::from(f32::from_bits(*bits))),
        (Kind::Int64, Raw::Varint(number)) | (Kind::Sfixed64, Raw::Fixed64(number)) => {
            (*number as i64).to_string().into()
        }
        (Kind::Uint64, Raw::Varint(number)) | (Kind::Fixed64, Raw::Fixed64(number)) => {
            number.to_string().into()
        }
        (Kind::Sint64, Raw::Varint(number)) => unzigzag(*number).to_string().into(),
        (Kind::Int32, Raw::Varint(number)) => (*number as i32).into(),
        (Kind::Uint32, Raw::Varint(number)) => (*number as u32).into(),
        (Kind::Sint32, Raw::Varint(number)) => (unzigzag(*number) as i32).into(),
        (Kind::Fixed32, Raw::Fixed32(number)) => (*number).into(),
        (Kind::Sfixed32, Raw::Fixed32(number)) => (*number as i32).into(),
        (Kind::Bool, Raw::Varint(number)) => (*number != 0).into(),
        (Kind::Enum, Raw::Varint(number)) => {
            let number = *number as i32;
            let values = schema.enumeration(&field.type_name).map(|known| known.values.as_slice());
            let known = values.unwrap_or_default().iter().find(|value| value.number == number);
            known.map_or(number.into(), |value| value.name.clone().into())
        }
        (Kind::String, Raw::Bytes(bytes)) => String::from_utf8_lossy(bytes).into_owned().into(),
        (Kind::Bytes, Raw::Bytes(bytes)) => base64::encode(bytes).into(),
        (Kind::Message, Raw::Bytes(bytes)) => {
            Value::Object(decode_message(schema, &field.type_name, bytes, depth)?)
        }
        _ => return Err(DynamicError::WrongValue { field: field.name.clone() }),
    })
}

fn float_value(number: f64) -> Value {
    let text = || {
        Value::String(if number.is_nan() {
            "NaN".into()
        } else {
            format!("{number}").replace("inf", "Infinity")
        })
    };
    serde_json::Number::from_f64(number).map_or_else(text, Value::Number)
}
