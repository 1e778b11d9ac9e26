//! What can be said about a message from its type alone.
//!
//! Of a type that serde reads, the fields: it is asked to read itself from a source that notes what is asked for and
//! gives the simplest value of each kind. Types that accept none of these are described as far as they got.

use std::fmt;

use bytes::Bytes;
use serde::de::{
    self, DeserializeOwned, DeserializeSeed, Deserializer, EnumAccess, IntoDeserializer, MapAccess,
    SeqAccess, VariantAccess, Visitor,
};
use serde_json::{Map, Value, json};

/// Deeper types, above all those that hold themselves, are cut off here.
const DEPTH_MAX: usize = 6;

/// A message as its type tells.
#[derive(Clone, Copy)]
pub enum Shape {
    /// Bytes as they are.
    Raw,
    /// A protobuf message, by the path of its Rust type.
    Message(&'static str),
    /// JSON: the path of the Rust type, and how to find out its fields.
    Json {
        /// Path of the Rust type.
        rust: &'static str,
        /// Finds the fields; an object, or a text for a type without fields.
        fields: fn() -> Value,
    },
}

/// Input and output of a handler.
#[derive(Clone, Copy, Default)]
pub struct Shapes {
    /// What it takes; none when it takes nothing.
    pub input: Option<Shape>,
    /// What it answers; none when it answers nothing.
    pub output: Option<Shape>,
}

/// The shape of a message in JSON, or of raw bytes.
pub(crate) fn of_json<T: DeserializeOwned + 'static>() -> Shape {
    let rust = std::any::type_name::<T>();
    if std::any::TypeId::of::<T>() == std::any::TypeId::of::<Bytes>() {
        return Shape::Raw;
    }
    Shape::Json { rust, fields: fields_of::<T> }
}

/// The shape of an answer in JSON, of which only the name is known.
pub(crate) fn of_answer<T: ?Sized>() -> Shape {
    let rust = std::any::type_name::<T>();
    if rust == std::any::type_name::<Bytes>() {
        return Shape::Raw;
    }
    Shape::Json { rust, fields: || Value::Object(Map::new()) }
}

/// `game::room::Joined` as Go would write it: `room.Joined`.
pub(crate) fn go_name(rust: &str) -> String {
    let plain = rust.split('<').next().unwrap_or(rust);
    let mut parts = plain.rsplit("::");
    let name = parts.next().unwrap_or_default();
    parts.next().map_or_else(|| name.to_owned(), |module| format!("{module}.{name}"))
}

fn fields_of<T: DeserializeOwned>() -> Value {
    let mut seen = Value::Null;
    // Whether it could be read to its end, or took offence at the values, does not matter.
    let read = || T::deserialize(Source { seen: &mut seen, depth: 0 }).is_ok();
    let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(read));
    if seen.is_null() { Value::Object(Map::new()) } else { seen }
}

/// Gives the simplest value of what is asked for, and notes it.
struct Source<'a> {
    seen: &'a mut Value,
    depth: usize,
}

#[derive(Debug)]
struct Unreadable;

impl fmt::Display for Unreadable {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("the type cannot be read further")
    }
}

impl std::error::Error for Unreadable {}

impl de::Error for Unreadable {
    fn custom<T: fmt::Display>(_: T) -> Self {
        Self
    }
}

macro_rules! scalars {
    ($($name:ident $go:literal $visit:ident $value:expr;)*) => {
        $(fn $name<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Unreadable> {
            *self.seen = $go.into();
            visitor.$visit($value)
        })*
    };
}

impl<'de> Deserializer<'de> for Source<'_> {
    type Error = Unreadable;

    scalars! {
        deserialize_bool "bool" visit_bool false;
        deserialize_i8 "int8" visit_i8 0;
        deserialize_i16 "int16" visit_i16 0;
        deserialize_i32 "int32" visit_i32 0;
        deserialize_i64 "int64" visit_i64 0;
        deserialize_u8 "uint8" visit_u8 0;
        deserialize_u16 "uint16" visit_u16 0;
        deserialize_u32 "uint32" visit_u32 0;
        deserialize_u64 "uint64" visit_u64 0;
        deserialize_f32 "float32" visit_f32 0.0;
        deserialize_f64 "float64" visit_f64 0.0;
        deserialize_char "string" visit_char '0';
        deserialize_str "string" visit_borrowed_str "";
        deserialize_string "string" visit_borrowed_str "";
        deserialize_identifier "string" visit_borrowed_str "";
        deserialize_bytes "[]byte" visit_borrowed_bytes b"";
        deserialize_byte_buf "[]byte" visit_borrowed_bytes b"";
    }

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Unreadable> {
        *self.seen = "interface {}".into();
        visitor.visit_unit()
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Unreadable> {
        visitor.visit_unit()
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Unreadable> {
        if self.depth >= DEPTH_MAX { visitor.visit_none() } else { visitor.visit_some(self) }
    }

    fn deserialize_unit<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Unreadable> {
        visitor.visit_unit()
    }

    fn deserialize_unit_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Unreadable> {
        *self.seen = json!({});
        visitor.visit_unit()
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Unreadable> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Unreadable> {
        let mut items = Items { seen: Value::Null, left: 1, depth: self.depth + 1 };
        let read = visitor.visit_seq(&mut items);
        *self.seen = json!([items.seen]);
        read
    }

    fn deserialize_tuple<V: Visitor<'de>>(
        self,
        length: usize,
        visitor: V,
    ) -> Result<V::Value, Unreadable> {
        let mut items = Items { seen: Value::Null, left: length, depth: self.depth + 1 };
        let read = visitor.visit_seq(&mut items);
        *self.seen = json!([items.seen]);
        read
    }

    fn deserialize_tuple_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        length: usize,
        visitor: V,
    ) -> Result<V::Value, Unreadable> {
        self.deserialize_tuple(length, visitor)
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Unreadable> {
        *self.seen = json!({});
        visitor.visit_map(Fields::new(&[], self.seen, self.depth))
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Unreadable> {
        let all = fields.iter().map(|field| ((*field).to_owned(), Value::Null)).collect();
        *self.seen = Value::Object(all);
        visitor.visit_map(Fields::new(fields, self.seen, self.depth))
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Unreadable> {
        *self.seen = "string".into();
        visitor.visit_enum(Variant(variants.first().copied().unwrap_or_default(), self.depth))
    }
}

/// A list with as many elements as are asked for.
struct Items {
    seen: Value,
    left: usize,
    depth: usize,
}

impl<'de> SeqAccess<'de> for &mut Items {
    type Error = Unreadable;

    fn next_element_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, Unreadable> {
        if self.left == 0 || self.depth >= DEPTH_MAX {
            return Ok(None);
        }
        self.left -= 1;
        seed.deserialize(Source { seen: &mut self.seen, depth: self.depth }).map(Some)
    }
}

/// The fields of a struct, one after the other.
struct Fields<'a> {
    left: std::slice::Iter<'static, &'static str>,
    current: &'static str,
    seen: &'a mut Value,
    depth: usize,
}

impl<'a> Fields<'a> {
    fn new(fields: &'static [&'static str], seen: &'a mut Value, depth: usize) -> Self {
        Self { left: fields.iter(), current: "", seen, depth }
    }
}

impl<'de> MapAccess<'de> for Fields<'_> {
    type Error = Unreadable;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, Unreadable> {
        let next = if self.depth < DEPTH_MAX { self.left.next() } else { None };
        let Some(field) = next else { return Ok(None) };
        self.current = field;
        let name: de::value::StrDeserializer<'_, Unreadable> = (*field).into_deserializer();
        seed.deserialize(name).map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(
        &mut self,
        seed: V,
    ) -> Result<V::Value, Unreadable> {
        let mut value = Value::Null;
        let read = seed.deserialize(Source { seen: &mut value, depth: self.depth + 1 });
        if let Some(fields) = self.seen.as_object_mut() {
            fields.insert(self.current.to_owned(), value);
        }
        read
    }
}

/// The first variant of an enum.
struct Variant(&'static str, usize);

impl<'de> EnumAccess<'de> for Variant {
    type Error = Unreadable;
    type Variant = Self;

    fn variant_seed<V: DeserializeSeed<'de>>(
        self,
        seed: V,
    ) -> Result<(V::Value, Self), Unreadable> {
        let name: de::value::StrDeserializer<'_, Unreadable> = self.0.into_deserializer();
        Ok((seed.deserialize(name)?, self))
    }
}

impl<'de> VariantAccess<'de> for Variant {
    type Error = Unreadable;

    fn unit_variant(self) -> Result<(), Unreadable> {
        Ok(())
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(
        self,
        seed: T,
    ) -> Result<T::Value, Unreadable> {
        if self.1 >= DEPTH_MAX {
            return Err(Unreadable);
        }
        seed.deserialize(Source { seen: &mut Value::Null, depth: self.1 + 1 })
    }

    fn tuple_variant<V: Visitor<'de>>(
        self,
        length: usize,
        visitor: V,
    ) -> Result<V::Value, Unreadable> {
        let mut ignored = Value::Null;
        Source { seen: &mut ignored, depth: self.1 + 1 }.deserialize_tuple(length, visitor)
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Unreadable> {
        let mut ignored = Value::Null;
        let source = Source { seen: &mut ignored, depth: self.1 + 1 };
        source.deserialize_struct("", fields, visitor)
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Deserialize)]
    #[expect(dead_code, reason = "only its shape counts")]
    struct Buy {
        name: String,
        count: u32,
        gift: Option<bool>,
        tags: Vec<String>,
        at: Point,
        kind: Kind,
        any: Value,
        pair: (i8, i8),
        tree: Option<Box<Tree>>,
    }

    #[derive(Deserialize)]
    #[expect(dead_code, reason = "only its shape counts")]
    struct Point {
        #[serde(rename = "X")]
        x: f64,
    }

    #[derive(Deserialize)]
    enum Kind {
        Rare,
        Common,
    }

    #[derive(Deserialize)]
    #[expect(dead_code, reason = "only its shape counts")]
    struct Tree {
        left: Option<Box<Tree>>,
        right: Option<Box<Tree>>,
    }

    #[test]
    fn fields_are_found_in_depth_and_types_that_hold_themselves_end() {
        let fields = fields_of::<Buy>();
        assert_eq!(fields["name"], "string");
        assert_eq!((&fields["count"], &fields["gift"]), (&json!("uint32"), &json!("bool")));
        assert_eq!(
            (&fields["tags"], &fields["at"]),
            (&json!(["string"]), &json!({"X": "float64"}))
        );
        assert_eq!((&fields["kind"], &fields["any"]), (&json!("string"), &json!("interface {}")));
        assert_eq!(fields["pair"], json!(["int8"]));
        assert!(fields["tree"]["left"]["left"].is_object());
        assert_eq!(fields_of::<String>(), "string");
        assert_eq!(go_name("game::room::Joined"), "room.Joined");
        assert_eq!(go_name("alloc::vec::Vec<game::Joined>"), "vec.Vec");
        assert!(matches!(of_json::<Bytes>(), Shape::Raw));
        assert!(matches!(of_answer::<Bytes>(), Shape::Raw));
    }
}
