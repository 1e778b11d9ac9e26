//! The documentation of an application's routes, for tools: pitaya-cli and our own client ask for it.
//!
//! Two handlers (sessions and handlers 20): one gives the routes with the types of their messages as JSON, the other the
//! descriptors of protobuf messages by name. What is known about types comes from the handlers' signatures: of protobuf
//! messages the name and, from the descriptors that the application gives, the fields; of JSON arguments the fields, as
//! far as serde tells; of JSON answers only the name.

use std::collections::BTreeMap;
use std::io::Write;

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use prost::Message;
use serde_json::{Map, Value, json};
use shared::error::{Serializer, code};

use crate::error::{Error, Result};
use crate::extract::Ctx;
use crate::payload::{Encode, Payload, Pb};
use crate::routes::Routes;
use crate::shape::{self, Shape};

/// Messages that one message is described by, nested in each other, at most.
const DEPTH_MAX: usize = 8;

/// Names in one request for descriptors at most.
const NAMES_MAX: usize = 4096;

/// What is answered to tools. Fixed at start.
#[derive(Default)]
pub(crate) struct Docs {
    text: String,
    descriptors: Descriptors,
    pub(crate) serializer: Serializer,
}

/// Where the descriptors of a message stand.
#[derive(Default)]
pub(crate) struct Descriptors {
    /// Each file as it was given, and packed.
    files: Vec<Vec<u8>>,
    /// File of each file name and each full name of a message.
    by_name: BTreeMap<String, usize>,
    messages: BTreeMap<String, MessageDescriptor>,
}

/// `google.protobuf.FileDescriptorSet`, its files as bytes.
#[derive(Clone, PartialEq, Message)]
struct FileSet {
    #[prost(bytes = "vec", repeated, tag = "1")]
    file: Vec<Vec<u8>>,
}

/// The part of `google.protobuf.FileDescriptorProto` that is looked at.
#[derive(Clone, PartialEq, Message)]
struct FileDescriptor {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    package: String,
    #[prost(message, repeated, tag = "4")]
    messages: Vec<MessageDescriptor>,
}

#[derive(Clone, PartialEq, Message)]
struct MessageDescriptor {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(message, repeated, tag = "2")]
    fields: Vec<FieldDescriptor>,
    #[prost(message, repeated, tag = "3")]
    nested: Vec<MessageDescriptor>,
}

#[derive(Clone, PartialEq, Message)]
struct FieldDescriptor {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(int32, tag = "4")]
    label: i32,
    #[prost(int32, tag = "5")]
    kind: i32,
    #[prost(string, tag = "6")]
    type_name: String,
}

const LABEL_REPEATED: i32 = 3;
const KIND_MESSAGE: i32 = 11;

impl Descriptors {
    /// Takes an encoded `FileDescriptorSet`. Fails when it is none.
    pub(crate) fn add(&mut self, set: &[u8]) -> Result<(), prost::DecodeError> {
        for file in FileSet::decode(set)?.file {
            let FileDescriptor { name, package, messages } = FileDescriptor::decode(&file[..])?;
            let at = self.files.len();
            self.files.push(file);
            self.by_name.insert(name, at);
            for message in messages {
                self.add_message(&package, message, at);
            }
        }
        Ok(())
    }

    fn add_message(&mut self, parent: &str, message: MessageDescriptor, file: usize) {
        let dot = if parent.is_empty() { "" } else { "." };
        let name = format!("{parent}{dot}{}", message.name);
        for nested in message.nested.clone() {
            self.add_message(&name, nested, file);
        }
        self.by_name.insert(name.clone(), file);
        self.messages.insert(name, message);
    }

    /// The packed file of a message or file name. `types.X` is `google.protobuf.X`, as in Pitaya.
    fn packed(&self, name: &str) -> Result<Vec<u8>> {
        let well_known = name.strip_prefix("types.").map(|rest| format!("google.protobuf.{rest}"));
        let at = self.by_name.get(well_known.as_deref().unwrap_or(name));
        let file = at.and_then(|at| self.files.get(*at));
        let file = file.ok_or_else(|| {
            Error::unknown("failed to get protobuf message descriptor").with("name", name)
        })?;
        let mut packer = GzEncoder::new(Vec::new(), Compression::default());
        packer.write_all(file)?;
        Ok(packer.finish()?)
    }

    /// The full name of the message that a Rust type stands for: the one that ends like the type's path.
    fn full_name(&self, rust: &str) -> String {
        let path: Vec<&str> = rust.split("::").collect();
        let short = path.last().copied().unwrap_or_default();
        let is_candidate = |name: &&String| name.rsplit('.').next() == Some(short);
        let candidates: Vec<_> = self.messages.keys().filter(is_candidate).collect();
        let module = path.len().checked_sub(2).and_then(|at| path.get(at)).copied();
        let same_module = |name: &&&String| name.rsplit('.').nth(1) == module;
        let found = candidates.iter().find(same_module).or(candidates.first());
        let by_module = || format!("{}.{short}", module.unwrap_or("protos"));
        found.map_or_else(by_module, |name| (*name).clone())
    }

    fn fields(&self, name: &str, depth: usize) -> Value {
        let message = self.messages.get(name).filter(|_| depth < DEPTH_MAX);
        let fields = message.map(|message| message.fields.as_slice()).unwrap_or_default();
        let described = fields.iter().map(|field| {
            let value = if field.kind == KIND_MESSAGE {
                let inner = field.type_name.trim_start_matches('.');
                json!({ format!("*{inner}"): self.fields(inner, depth + 1) })
            } else {
                Value::from(scalar(field.kind))
            };
            let is_list = field.label == LABEL_REPEATED;
            (field.name.clone(), if is_list { json!([value]) } else { value })
        });
        Value::Object(described.collect())
    }
}

/// Go's name of a field type of protobuf.
fn scalar(kind: i32) -> &'static str {
    match kind {
        1 => "float64",
        2 => "float32",
        3 | 16 | 18 => "int64",
        4 | 6 => "uint64",
        5 | 15 | 17 => "int32",
        7 | 13 => "uint32",
        8 => "bool",
        9 => "string",
        12 => "[]byte",
        _ => "enum",
    }
}

impl Docs {
    /// The documentation of these routes of servers of a type.
    pub(crate) fn new(
        server_type: &str,
        routes: &Routes,
        descriptors: Descriptors,
        serializer: Serializer,
    ) -> Self {
        let handlers = routes.handlers.iter().map(|(key, entry)| (key, &entry.handler));
        let section = |all: &mut dyn Iterator<Item = (&String, &crate::handler::AnyHandler)>| {
            let described = all.map(|(key, handler)| {
                let input = handler.shapes.input.as_ref().map(|s| describe(s, &descriptors));
                let output = handler.shapes.output.as_ref().map(|s| describe(s, &descriptors));
                let outputs: Vec<Value> = match output {
                    Some(output) => vec![output, "error".into()],
                    None => Vec::new(),
                };
                let entry = json!({ "input": input, "output": outputs });
                (format!("{server_type}.{key}"), entry)
            });
            described.collect::<Map<_, _>>()
        };
        let text = json!({
            "handlers": section(&mut handlers.into_iter()),
            "remotes": section(&mut routes.remotes.iter()),
        });
        Self { text: text.to_string(), descriptors, serializer }
    }

    /// The answer of the route of the documentation.
    pub(crate) fn doc(&self) -> proto::Doc {
        proto::Doc { doc: self.text.clone() }
    }

    /// The answer of the route of the descriptors.
    pub(crate) fn descriptors(&self, names: &proto::ProtoNames) -> Result<proto::ProtoDescriptors> {
        if names.name.len() > NAMES_MAX {
            return Err(Error::new(code::BAD_REQUEST, "too many names"));
        }
        let packed = names.name.iter().map(|name| Ok(self.descriptors.packed(name)?.into()));
        Ok(proto::ProtoDescriptors { desc: packed.collect::<Result<_>>()? })
    }
}

fn describe(shape: &Shape, descriptors: &Descriptors) -> Value {
    match shape {
        Shape::Raw => "[]byte".into(),
        Shape::Message(rust) => {
            let name = descriptors.full_name(rust);
            json!({ format!("*{name}"): descriptors.fields(&name, 0) })
        }
        Shape::Json { rust, fields } => match fields() {
            Value::Object(fields) => json!({ format!("*{}", shape::go_name(rust)): fields }),
            plain => plain,
        },
    }
}

/// A message of the two routes: protobuf or JSON, as the application's clients speak.
pub(crate) struct ForTools<T>(pub(crate) T, pub(crate) Serializer);

impl Payload for ForTools<proto::ProtoNames> {
    fn decode(bytes: &Bytes) -> Result<Self> {
        #[derive(serde::Deserialize)]
        struct Names {
            name: Vec<String>,
        }
        // No protobuf message of this type begins so.
        if bytes.starts_with(b"{") {
            let Names { name } = <Names as Payload>::decode(bytes)?;
            return Ok(Self(proto::ProtoNames { name }, Serializer::Json));
        }
        let Pb(names) = Pb::<proto::ProtoNames>::decode(bytes)?;
        Ok(Self(names, Serializer::Protobuf))
    }

    fn shape() -> Shape {
        Shape::Message("protos::ProtoNames")
    }
}

impl Encode for ForTools<proto::Doc> {
    fn encode(&self) -> Result<Bytes> {
        match self.1 {
            Serializer::Json => json!({ "doc": self.0.doc }).encode(),
            Serializer::Protobuf => Ok(self.0.encode_to_vec().into()),
        }
    }

    fn shape() -> Shape {
        Shape::Message("protos::Doc")
    }
}

impl Encode for ForTools<proto::ProtoDescriptors> {
    fn encode(&self) -> Result<Bytes> {
        Ok(self.0.encode_to_vec().into())
    }

    fn shape() -> Shape {
        Shape::Message("protos::ProtoDescriptors")
    }
}

/// The handler of the documentation.
pub(crate) async fn docs(ctx: Ctx) -> Result<ForTools<proto::Doc>> {
    let docs = &ctx.0.environment.docs;
    Ok(ForTools(docs.doc(), docs.serializer))
}

/// The handler of the descriptors.
pub(crate) async fn descriptors(
    ctx: Ctx,
    ForTools(names, serializer): ForTools<proto::ProtoNames>,
) -> Result<ForTools<proto::ProtoDescriptors>> {
    Ok(ForTools(ctx.0.environment.docs.descriptors(&names)?, serializer))
}
