//! Message types by name, from the descriptors of files.

use std::collections::HashMap;
use std::io::Read;

use flate2::read::GzDecoder;
use prost::Message;

use super::DynamicError;

/// Largest descriptor of a file after unpacking.
const FILE_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// The parts of `google.protobuf.FileDescriptorProto` that matter here.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct FileDescriptor {
    #[prost(string, tag = "2")]
    pub(crate) package: String,
    #[prost(message, repeated, tag = "4")]
    pub(crate) messages: Vec<MessageDescriptor>,
    #[prost(message, repeated, tag = "5")]
    pub(crate) enums: Vec<EnumDescriptor>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct MessageDescriptor {
    #[prost(string, tag = "1")]
    pub(crate) name: String,
    #[prost(message, repeated, tag = "2")]
    pub(crate) fields: Vec<FieldDescriptor>,
    #[prost(message, repeated, tag = "3")]
    pub(crate) nested: Vec<MessageDescriptor>,
    #[prost(message, repeated, tag = "4")]
    pub(crate) enums: Vec<EnumDescriptor>,
    #[prost(message, optional, tag = "7")]
    pub(crate) options: Option<MessageOptions>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct MessageOptions {
    #[prost(bool, tag = "7")]
    pub(crate) is_map_entry: bool,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct FieldDescriptor {
    #[prost(string, tag = "1")]
    pub(crate) name: String,
    #[prost(uint32, tag = "3")]
    pub(crate) number: u32,
    /// 1 optional, 2 required, 3 repeated.
    #[prost(int32, tag = "4")]
    pub(crate) label: i32,
    #[prost(int32, tag = "5")]
    pub(crate) kind: i32,
    /// With a dot in front.
    #[prost(string, tag = "6")]
    pub(crate) type_name: String,
    #[prost(string, tag = "10")]
    pub(crate) json_name: String,
}

impl FieldDescriptor {
    pub(crate) fn is_repeated(&self) -> bool {
        self.label == 3
    }

    /// Whether the field has this name in JSON: its own, or the one in camel case.
    pub(crate) fn is_named(&self, name: &str) -> bool {
        self.name == name || self.json_name == name
    }
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct EnumDescriptor {
    #[prost(string, tag = "1")]
    pub(crate) name: String,
    #[prost(message, repeated, tag = "2")]
    pub(crate) values: Vec<EnumValueDescriptor>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct EnumValueDescriptor {
    #[prost(string, tag = "1")]
    pub(crate) name: String,
    #[prost(int32, tag = "2")]
    pub(crate) number: i32,
}

/// Why a server's descriptor cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SchemaError {
    #[error("a descriptor cannot be unpacked: {0}")]
    Unpack(#[from] std::io::Error),
    #[error("a descriptor cannot be decoded: {0}")]
    Decode(#[from] prost::DecodeError),
}

/// Every message and enum that is known, by full name without a dot in front.
#[derive(Clone, Debug, Default)]
pub(crate) struct Schema {
    messages: HashMap<String, MessageDescriptor>,
    enums: HashMap<String, EnumDescriptor>,
}

impl Schema {
    /// Adds a file as servers send it: its descriptor, gzip-compressed (client protocol 17.2).
    pub(crate) fn insert_packed(&mut self, packed: &[u8]) -> Result<(), SchemaError> {
        let mut bytes = Vec::new();
        GzDecoder::new(packed).take(FILE_BYTES_MAX).read_to_end(&mut bytes)?;
        self.insert(FileDescriptor::decode(bytes.as_slice())?);
        Ok(())
    }

    pub(crate) fn insert(&mut self, file: FileDescriptor) {
        self.insert_types(&file.package, file.messages, file.enums);
    }

    fn insert_types(
        &mut self,
        scope: &str,
        messages: Vec<MessageDescriptor>,
        enums: Vec<EnumDescriptor>,
    ) {
        let full =
            |name: &str| if scope.is_empty() { name.to_owned() } else { format!("{scope}.{name}") };
        for descriptor in enums {
            self.enums.insert(full(&descriptor.name), descriptor);
        }
        for mut descriptor in messages {
            let name = full(&descriptor.name);
            let nested = std::mem::take(&mut descriptor.nested);
            let enums = std::mem::take(&mut descriptor.enums);
            self.insert_types(&name, nested, enums);
            self.messages.insert(name, descriptor);
        }
    }

    /// A message by its full name, with or without a dot in front.
    pub(crate) fn message(&self, name: &str) -> Option<&MessageDescriptor> {
        self.messages.get(name.strip_prefix('.').unwrap_or(name))
    }

    /// The same, with the error that names what is missing.
    pub(crate) fn find(&self, name: &str) -> Result<&MessageDescriptor, DynamicError> {
        self.message(name).ok_or_else(|| DynamicError::UnknownType(name.to_owned()))
    }

    /// Whether a field is a map: a list of entries on the wire, an object in JSON.
    pub(crate) fn is_map(&self, field: &FieldDescriptor) -> bool {
        let entry = self.message(&field.type_name).and_then(|message| message.options.as_ref());
        field.is_repeated() && entry.is_some_and(|options| options.is_map_entry)
    }

    /// An enum by its full name, with or without a dot in front.
    pub(crate) fn enumeration(&self, name: &str) -> Option<&EnumDescriptor> {
        self.enums.get(name.strip_prefix('.').unwrap_or(name))
    }
}
