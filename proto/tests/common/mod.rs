//! What the tests of this crate share: messages as JSON, in the form of `vectors.json`, owned and viewed.
#![allow(dead_code, reason = "each test binary uses a part")]
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::collections::BTreeMap;

use prost::Message;
use proto::wire::{
    BindView, KickView, MsgView, PushView, RequestView, ResponseView, SessionView, WireError,
};
use proto::{BindMsg, Doc, DocMsg, KickAnswer, KickMsg, Push, Request, Response, Session};
use serde_json::{Map, Value, json};

/// The fields of a message; those with default values are left out.
struct Fields(Map<String, Value>);

impl Fields {
    fn new() -> Self {
        Self(Map::new())
    }

    fn integer(mut self, name: &str, value: i128) -> Self {
        if value != 0 {
            self.0.insert(
                name.into(),
                json!(i64::try_from(value).map_or(json!(value as u64), |v| json!(v))),
            );
        }
        self
    }

    fn text(mut self, name: &str, value: &str) -> Self {
        if !value.is_empty() {
            self.0.insert(name.into(), json!(value));
        }
        self
    }

    /// Text where it is text, which it is in all vectors; else the numbers, so that the fuzz compares them too.
    fn bytes(mut self, name: &str, value: &[u8]) -> Self {
        if !value.is_empty() {
            let value =
                std::str::from_utf8(value).map_or_else(|_| json!(value), |text| json!(text));
            self.0.insert(name.into(), value);
        }
        self
    }

    fn choice(self, name: &str, value: i32, names: &[&str]) -> Self {
        match names.get(value as usize) {
            Some(text) if value != 0 => self.text(name, text),
            _ => self.integer(name, value.into()),
        }
    }

    fn message(mut self, name: &str, value: Option<Fields>) -> Self {
        if let Some(value) = value {
            self.0.insert(name.into(), value.0.into());
        }
        self
    }
}

const RPC_TYPES: &[&str] = &["Sys", "User"];
const MSG_TYPES: &[&str] = &["MsgRequest", "MsgNotify", "MsgResponse", "MsgPush"];

fn session(id: i64, uid: &str, data: &[u8]) -> Fields {
    Fields::new().integer("id", id.into()).text("uid", uid).bytes("data", data)
}

fn msg(view: &MsgView<'_>) -> Fields {
    Fields::new()
        .integer("id", view.id.into())
        .text("route", view.route)
        .bytes("data", view.data)
        .text("reply", view.reply)
        .choice("type", view.msg_type, MSG_TYPES)
}

fn request(view: &RequestView<'_>) -> Fields {
    Fields::new()
        .choice("type", view.rpc_type, RPC_TYPES)
        .message("session", view.session.map(|s| session(s.id, s.uid, s.data)))
        .message("msg", view.msg.as_ref().map(msg))
        .text("frontendID", view.frontend_id)
        .bytes("metadata", view.metadata)
}

fn error(code: &str, text: &str, metadata: &BTreeMap<&str, &str>) -> Fields {
    let mut fields = Fields::new().text("code", code).text("msg", text);
    if !metadata.is_empty() {
        fields.0.insert("metadata".into(), json!(metadata));
    }
    fields
}

/// Decodes and encodes with the owned message: fields and bytes.
pub(crate) fn owned(message: &str, bytes: &[u8]) -> Result<(Value, Vec<u8>), prost::DecodeError> {
    let (fields, encoded) = match message {
        "Request" => {
            let owned = Request::decode(bytes)?;
            let fields = request(&RequestView {
                rpc_type: owned.r#type,
                session: owned.session.as_ref().map(|s| SessionView {
                    id: s.id,
                    uid: &s.uid,
                    data: &s.data,
                }),
                msg: owned.msg.as_ref().map(|m| MsgView {
                    id: m.id,
                    route: &m.route,
                    data: &m.data,
                    reply: &m.reply,
                    msg_type: m.r#type,
                }),
                frontend_id: &owned.frontend_id,
                metadata: &owned.metadata,
            });
            (fields, owned.encode_to_vec())
        }
        "Response" => {
            let owned = Response::decode(bytes)?;
            let error = owned.error.as_ref().map(|e| {
                let metadata = e.metadata.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
                error(&e.code, &e.msg, &metadata)
            });
            (
                Fields::new().bytes("data", &owned.data).message("error", error),
                owned.encode_to_vec(),
            )
        }
        "Session" => {
            let owned = Session::decode(bytes)?;
            (session(owned.id, &owned.uid, &owned.data), owned.encode_to_vec())
        }
        "Push" => {
            let owned = Push::decode(bytes)?;
            let fields = Fields::new().text("route", &owned.route).text("uid", &owned.uid);
            (fields.bytes("data", &owned.data), owned.encode_to_vec())
        }
        "KickMsg" => {
            let owned = KickMsg::decode(bytes)?;
            (Fields::new().text("userId", &owned.user_id), owned.encode_to_vec())
        }
        "BindMsg" => {
            let owned = BindMsg::decode(bytes)?;
            (Fields::new().text("uid", &owned.uid).text("fid", &owned.fid), owned.encode_to_vec())
        }
        "Doc" => {
            let owned = Doc::decode(bytes)?;
            (Fields::new().text("doc", &owned.doc), owned.encode_to_vec())
        }
        "DocMsg" => {
            let owned = DocMsg::decode(bytes)?;
            let mut fields = Fields::new();
            fields.0.insert("getProtos".into(), json!(owned.get_protos));
            (fields, owned.encode_to_vec())
        }
        "KickAnswer" => {
            let owned = KickAnswer::decode(bytes)?;
            let mut fields = Fields::new();
            fields.0.insert("kicked".into(), json!(owned.kicked));
            (fields, owned.encode_to_vec())
        }
        other => panic!("no such message: {other}"),
    };
    Ok((fields.0.into(), encoded))
}

/// Decodes with the view; None if the message has none.
pub(crate) fn viewed(message: &str, bytes: &[u8]) -> Option<Result<Value, WireError>> {
    let fields = match message {
        "Request" => RequestView::decode(bytes).map(|view| request(&view)),
        "Response" => ResponseView::decode(bytes).map(|view| {
            let error = view.error.map(|e| error(e.code, e.msg, &e.metadata().collect()));
            Fields::new().bytes("data", view.data).message("error", error)
        }),
        "Session" => SessionView::decode(bytes).map(|view| session(view.id, view.uid, view.data)),
        "Push" => PushView::decode(bytes).map(|view| {
            Fields::new().text("route", view.route).text("uid", view.uid).bytes("data", view.data)
        }),
        "KickMsg" => KickView::decode(bytes).map(|view| Fields::new().text("userId", view.user_id)),
        "BindMsg" => BindView::decode(bytes)
            .map(|view| Fields::new().text("uid", view.uid).text("fid", view.fid)),
        _ => return None,
    };
    Some(fields.map(|fields| fields.0.into()))
}

/// One entry of `vectors.json`.
#[derive(serde::Deserialize)]
pub(crate) struct Vector {
    pub(crate) name: String,
    pub(crate) message: String,
    hex: String,
    pub(crate) fields: Value,
    pub(crate) inner: Option<Inner>,
}

/// What the data of a vector's message decodes to.
#[derive(serde::Deserialize)]
pub(crate) struct Inner {
    pub(crate) message: String,
    pub(crate) fields: Value,
}

impl Vector {
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let digits = self.hex.as_bytes().chunks(2);
        digits.map(|d| u8::from_str_radix(std::str::from_utf8(d).unwrap(), 16).unwrap()).collect()
    }
}

pub(crate) fn vectors() -> Vec<Vector> {
    serde_json::from_str(include_str!("../vectors.json")).unwrap()
}
