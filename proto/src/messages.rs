//! The cluster's messages as owned structs.
//!
//! They are written by hand, so that building needs no protobuf compiler; `pitaya.proto` beside this crate says the
//! same for other languages. Field numbers and types are fixed by the servers that are deployed: never renumber.
//! `bytes` fields are [`Bytes`], so decoding from a [`Bytes`] shares its memory instead of copying.

use std::collections::BTreeMap;

use bytes::Bytes;
use prost::{Enumeration, Message, Name};

/// Who issued a call (cluster protocol 5).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Enumeration)]
#[repr(i32)]
pub enum RpcType {
    /// A client's message, forwarded by a frontend.
    Sys = 0,
    /// A call from server to server.
    User = 1,
}

/// Kind of the client message that a Sys call carries. Receivers treat `Response` and `Push` as a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Enumeration)]
#[repr(i32)]
pub enum MsgType {
    /// The client waits for an answer.
    Request = 0,
    /// The client waits for nothing.
    Notify = 1,
    /// Never sent by a correct peer.
    Response = 2,
    /// Never sent by a correct peer.
    Push = 3,
}

/// What is called, and with what.
#[derive(Clone, PartialEq, Eq, Hash, Message)]
pub struct Msg {
    /// The client's message id in a Sys request; 0 in a notify and in a User call.
    #[prost(uint64, tag = "1")]
    pub id: u64,
    /// `type.service.method`; two parts only for the `sys.*` remotes.
    #[prost(string, tag = "2")]
    pub route: String,
    /// Sys: the client's payload, already inflated. User: one encoded protobuf message.
    #[prost(bytes = "bytes", tag = "3")]
    pub data: Bytes,
    /// Senders leave it empty; the receiver may put the reply subject here.
    #[prost(string, tag = "4")]
    pub reply: String,
    /// Kind of the client's message.
    #[prost(enumeration = "MsgType", tag = "5")]
    pub r#type: i32,
}

/// A backend's view of a player's session; also the argument of `sys.bindsession` and `sys.pushsession`.
#[derive(Clone, PartialEq, Eq, Hash, Message)]
pub struct Session {
    /// Id on the frontend that owns the session.
    #[prost(int64, tag = "1")]
    pub id: i64,
    /// The bound user, empty when there is none.
    #[prost(string, tag = "2")]
    pub uid: String,
    /// Text of one JSON object; empty when nothing was ever stored.
    #[prost(bytes = "bytes", tag = "3")]
    pub data: Bytes,
}

/// One call.
#[derive(Clone, PartialEq, Eq, Hash, Message)]
pub struct Request {
    /// Sys or User.
    #[prost(enumeration = "RpcType", tag = "1")]
    pub r#type: i32,
    /// Only in Sys calls.
    #[prost(message, optional, tag = "2")]
    pub session: Option<Session>,
    /// Always present in a correct call: Go drops a call without it unanswered, older Go dies of it.
    #[prost(message, optional, tag = "3")]
    pub msg: Option<Msg>,
    /// Server id of the sender if it is a frontend, else empty.
    #[prost(string, tag = "4")]
    pub frontend_id: String,
    /// Text of one JSON object, never empty (cluster protocol 6).
    #[prost(bytes = "bytes", tag = "5")]
    pub metadata: Bytes,
}

/// Why a call failed.
#[derive(Clone, PartialEq, Eq, Hash, Message)]
pub struct Error {
    /// `PIT-...` or the application's own; empty is read as `PIT-000`.
    #[prost(string, tag = "1")]
    pub code: String,
    /// Text for people.
    #[prost(string, tag = "2")]
    pub msg: String,
    /// Details; the order of the entries means nothing.
    #[prost(btree_map = "string, string", tag = "3")]
    pub metadata: BTreeMap<String, String>,
}

/// The answer to a call.
#[derive(Clone, PartialEq, Eq, Hash, Message)]
pub struct Response {
    /// The result. An empty message is a success with an empty result.
    #[prost(bytes = "bytes", tag = "1")]
    pub data: Bytes,
    /// Its presence, even when all its fields are empty, means failure and wins over `data`.
    #[prost(message, optional, tag = "2")]
    pub error: Option<Error>,
}

/// A message for the player who is bound to `uid`.
#[derive(Clone, PartialEq, Eq, Hash, Message)]
pub struct Push {
    /// Route on the client.
    #[prost(string, tag = "1")]
    pub route: String,
    /// The receiver finds the session by this and not by the subject.
    #[prost(string, tag = "2")]
    pub uid: String,
    /// Payload as the client will read it.
    #[prost(bytes = "bytes", tag = "3")]
    pub data: Bytes,
}

/// A message for many players: what a [`Push`] says, said once. An addition of ours, sent only to gateways that
/// announce it (see `pitaya.proto`).
#[derive(Clone, PartialEq, Eq, Hash, Message)]
pub struct PushMany {
    /// Route on the clients.
    #[prost(string, tag = "1")]
    pub route: String,
    /// Payload as the clients will read it.
    #[prost(bytes = "bytes", tag = "2")]
    pub data: Bytes,
    /// The bound users.
    #[prost(string, repeated, tag = "3")]
    pub uids: Vec<String>,
}

/// The player bound to this user is to be disconnected.
#[derive(Clone, PartialEq, Eq, Hash, Message)]
pub struct KickMsg {
    /// The bound user.
    #[prost(string, tag = "1")]
    pub user_id: String,
}

/// Whether a kick met a session.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Message)]
pub struct KickAnswer {
    /// True if a session was closed.
    #[prost(bool, tag = "1")]
    pub kicked: bool,
}

/// A frontend has bound a user; the other frontends of its type close their session of that user.
#[derive(Clone, PartialEq, Eq, Hash, Message)]
pub struct BindMsg {
    /// The bound user.
    #[prost(string, tag = "1")]
    pub uid: String,
    /// Server id of the frontend that owns the user now.
    #[prost(string, tag = "2")]
    pub fid: String,
}

/// Documentation of handlers and remotes, as JSON text.
#[derive(Clone, PartialEq, Eq, Hash, Message)]
pub struct Doc {
    /// The JSON text.
    #[prost(string, tag = "1")]
    pub doc: String,
}

/// Asks for a [`Doc`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, Message)]
pub struct DocMsg {
    /// Whether the names of the messages are wanted too.
    #[prost(bool, tag = "1")]
    pub get_protos: bool,
}

/// Asks for one message's descriptor.
#[derive(Clone, PartialEq, Eq, Hash, Message)]
pub struct ProtoName {
    /// Full name of the message, as in `protos.Push`.
    #[prost(string, tag = "1")]
    pub name: String,
}

/// Asks for several descriptors.
#[derive(Clone, PartialEq, Eq, Hash, Message)]
pub struct ProtoNames {
    /// Full names.
    #[prost(string, repeated, tag = "1")]
    pub name: Vec<String>,
}

/// One descriptor.
#[derive(Clone, PartialEq, Eq, Hash, Message)]
pub struct ProtoDescriptor {
    /// A `FileDescriptorProto`, compressed with gzip.
    #[prost(bytes = "bytes", tag = "1")]
    pub desc: Bytes,
}

/// Several descriptors, in the order in which they were asked for.
#[derive(Clone, PartialEq, Eq, Hash, Message)]
pub struct ProtoDescriptors {
    /// As in [`ProtoDescriptor::desc`].
    #[prost(bytes = "bytes", repeated, tag = "1")]
    pub desc: Vec<Bytes>,
}

macro_rules! named {
    ($($message:ident),* $(,)?) => {
        $(impl Name for $message {
            const NAME: &'static str = stringify!($message);
            const PACKAGE: &'static str = crate::PACKAGE;
        })*
    };
}

named!(
    Msg,
    Session,
    Request,
    Error,
    Response,
    Push,
    PushMany,
    KickMsg,
    KickAnswer,
    BindMsg,
    Doc,
    DocMsg,
    ProtoName,
    ProtoNames,
    ProtoDescriptor,
    ProtoDescriptors,
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_the_ones_that_clients_look_up() {
        assert_eq!(Push::full_name(), "protos.Push");
        assert_eq!(ProtoDescriptors::full_name(), "protos.ProtoDescriptors");
    }

    #[test]
    fn unknown_enum_numbers_are_kept() {
        let request = Request::decode(&[0x08, 0x07][..]).unwrap();
        assert_eq!(request.r#type, 7);
        assert_eq!(request.r#type(), RpcType::Sys);
        assert_eq!(request.encode_to_vec(), [0x08, 0x07]);
    }

    #[test]
    fn decoding_from_bytes_shares_the_memory() {
        let encoded =
            Bytes::from(Response { data: Bytes::from(vec![7; 64]), error: None }.encode_to_vec());
        let response = Response::decode(encoded.clone()).unwrap();
        assert_eq!(response.data.as_ptr(), encoded[2..].as_ptr());
    }
}
