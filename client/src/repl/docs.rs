//! What a server tells of its routes: names for completion, and the types of protobuf servers.
//!
//! The conventions are pitaya-cli's (client protocol 17.2): the documentation route answers with JSON that names the
//! types, and a route that takes `protos.ProtoNames` and gives `protos.ProtoDescriptors` describes them.

use std::collections::{BTreeSet, HashMap};

use proto::{Doc, Message, ProtoDescriptors, ProtoNames};
use serde_json::Value;

use crate::protobuf::{self, DynamicError, Schema, SchemaError};
use crate::{Client, RequestError};

const NAMES_TYPE: &str = "protos.ProtoNames";
const DESCRIPTORS_TYPE: &str = "protos.ProtoDescriptors";

/// Why the documentation is of no use.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DocsError {
    #[error("the documentation cannot be requested: {0}")]
    Request(#[from] RequestError),
    #[error("the documentation cannot be decoded: {0}")]
    Decode(#[from] prost::DecodeError),
    #[error("the documentation is not JSON: {0}")]
    Json(#[from] serde_json::Error),
    #[error("no route takes {NAMES_TYPE} and gives {DESCRIPTORS_TYPE}")]
    NoDescriptors,
    #[error(transparent)]
    Schema(#[from] SchemaError),
}

/// Types of a route, absent where it takes or gives none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Types {
    input: Option<String>,
    output: Option<String>,
}

/// A server's documentation.
#[derive(Clone, Debug, Default)]
pub(crate) struct Docs {
    routes: HashMap<String, Types>,
    /// Types of pushes, as the user told them.
    pushes: HashMap<String, String>,
    schema: Schema,
}

impl Docs {
    /// Asks a server. One that speaks JSON is only asked for its routes.
    pub(crate) async fn request(
        client: &Client,
        route: &str,
        pushes: &HashMap<String, String>,
    ) -> Result<Self, DocsError> {
        let answer = client.request(route, b"").await?;
        if client.serializer() != shared::error::Serializer::Protobuf.name() {
            let value: Value = serde_json::from_slice(&answer)?;
            // The same message in JSON holds the text of the documentation.
            let inner = value.get("doc").and_then(Value::as_str).map(serde_json::from_str);
            return Ok(Self {
                routes: read_routes(&inner.unwrap_or(Ok(value))?),
                ..Self::default()
            });
        }
        let value: Value = serde_json::from_str(&Doc::decode(answer)?.doc)?;
        let routes = read_routes(&value);
        let mut names = BTreeSet::new();
        collect_types(&value, &mut names);
        names.extend(pushes.values().cloned());
        let describes = |types: &Types| {
            types.input.as_deref() == Some(NAMES_TYPE)
                && types.output.as_deref() == Some(DESCRIPTORS_TYPE)
        };
        let (descriptors_route, _) =
            routes.iter().find(|(_, types)| describes(types)).ok_or(DocsError::NoDescriptors)?;
        let names = ProtoNames { name: names.into_iter().collect() };
        let answer = client.request(descriptors_route, &names.encode_to_vec()).await?;
        let mut schema = Schema::default();
        for packed in ProtoDescriptors::decode(answer)?.desc {
            schema.insert_packed(&packed)?;
        }
        Ok(Self { routes, pushes: pushes.clone(), schema })
    }

    pub(crate) fn routes(&self) -> impl Iterator<Item = &str> {
        self.routes.keys().map(String::as_str)
    }

    /// A request's or notify's payload: a message if the route's type is known, or else the text itself.
    pub(crate) fn encode(&self, route: &str, text: &str) -> Result<Vec<u8>, EncodeTextError> {
        let Some(input) = self.routes.get(route).and_then(|types| types.input.as_deref()) else {
            return Ok(text.as_bytes().to_vec());
        };
        if self.schema.message(input).is_none() {
            return Ok(text.as_bytes().to_vec());
        }
        let text = if text.is_empty() { "{}" } else { text };
        Ok(protobuf::encode(&self.schema, input, &serde_json::from_str(text)?)?)
    }

    /// An answer as JSON, if its type is known and fits.
    pub(crate) fn decode_answer(&self, route: &str, payload: &[u8]) -> Option<Vec<u8>> {
        self.decode(self.routes.get(route)?.output.as_deref()?, payload)
    }

    /// A push as JSON, if its type was told and fits.
    pub(crate) fn decode_push(&self, route: &str, payload: &[u8]) -> Option<Vec<u8>> {
        self.decode(self.pushes.get(route)?, payload)
    }

    fn decode(&self, name: &str, payload: &[u8]) -> Option<Vec<u8>> {
        let value = protobuf::decode(&self.schema, name, payload).ok()?;
        serde_json::to_vec(&value).ok()
    }
}

/// Why a line's data is no message.
#[derive(Debug, thiserror::Error)]
pub(crate) enum EncodeTextError {
    #[error("the data is not JSON: {0}")]
    Json(#[from] serde_json::Error),
    #[error(transparent)]
    Dynamic(#[from] DynamicError),
}

fn read_routes(docs: &Value) -> HashMap<String, Types> {
    // Remotes stand in the documentation too, but a client cannot call them.
    let handlers = docs.get("handlers").and_then(Value::as_object);
    let types = |handler: &Value| Types {
        input: handler.get("input").and_then(type_name),
        output: handler.get("output").and_then(|output| type_name(output.get(0)?)),
    };
    handlers.into_iter().flatten().map(|(route, handler)| (route.clone(), types(handler))).collect()
}

/// The protobuf type that a documented value is an object of: its only key, with the star of a pointer.
fn type_name(value: &Value) -> Option<String> {
    let mut names = value.as_object()?.keys().filter_map(|key| key.strip_prefix('*'));
    names.next().map(str::to_owned)
}

/// Every name with a star, at any depth.
fn collect_types(value: &Value, names: &mut BTreeSet<String>) {
    match value {
        Value::Object(members) => {
            for (key, value) in members {
                names.extend(key.strip_prefix('*').map(str::to_owned));
                collect_types(value, names);
            }
        }
        Value::Array(values) => values.iter().for_each(|value| collect_types(value, names)),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn routes_and_types_are_read_from_the_documentation() {
        let docs = json!({
            "handlers": {
                "room.room.join": {"input": null, "output": [{"*protos.Joined": {"code": "int32", "who": {"*protos.Who": {}}}}, "error"]},
                "room.room.say": {"input": {"*protos.Say": {"text": "string"}}, "output": []},
            },
            "remotes": {"room.remote.spend": {"input": {"*protos.Spend": {}}, "output": []}},
        });
        let routes = read_routes(&docs);
        assert_eq!(routes.len(), 2);
        let join = Types { input: None, output: Some("protos.Joined".into()) };
        assert_eq!(routes["room.room.join"], join);
        let say = Types { input: Some("protos.Say".into()), output: None };
        assert_eq!(routes["room.room.say"], say);
        let mut names = BTreeSet::new();
        collect_types(&docs, &mut names);
        let names: Vec<String> = names.into_iter().collect();
        assert_eq!(names, ["protos.Joined", "protos.Say", "protos.Spend", "protos.Who"]);
        assert!(read_routes(&json!([])).is_empty());
    }
}
