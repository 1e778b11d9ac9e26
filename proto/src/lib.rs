//! The messages that the servers of a Pitaya cluster exchange (cluster protocol 3).
//!
//! [`messages`] holds the owned messages, for code that may allocate: the worker, the control thread, tools.
//! [`wire`] reads and writes the same bytes without allocating, for the gateway's forwarding path. The two agree on
//! every input: what one accepts, the other accepts, with the same values. Nothing here knows a transport.

pub mod messages;
pub mod service;
pub mod wire;

pub use messages::{
    BindMsg, Doc, DocMsg, Error, KickAnswer, KickMsg, Msg, MsgType, ProtoDescriptor,
    ProtoDescriptors, ProtoName, ProtoNames, Push, PushMany, Request, Response, RpcType, Session,
};
pub use service::{METHOD_BIND, METHOD_CALL, METHOD_KICK, METHOD_PUSH};

/// The protobuf package. Clients look descriptors up by names such as `protos.Push`, so it never changes.
pub const PACKAGE: &str = "protos";
pub use prost::Message;
