//! The messages of etcd's API, as far as this client uses them.
//!
//! Field numbers are those of etcd's `rpc.proto`, `kv.proto` and `auth.proto`, stable since version 3.0. Fields that we
//! neither send nor read are left out: prost skips them when they arrive.

#![allow(missing_docs, reason = "the fields are named and documented by etcd's API reference")]

use prost::{Enumeration, Message, Oneof};

/// The end of the range of all keys that begin with `prefix`; `[0]`, which means no end, for an empty prefix.
pub fn prefix_end(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < u8::MAX {
            end.push(last + 1);
            return end;
        }
    }
    vec![0]
}

/// Comes with every answer.
#[derive(Clone, PartialEq, Message)]
pub struct ResponseHeader {
    #[prost(uint64, tag = "1")]
    pub cluster_id: u64,
    #[prost(uint64, tag = "2")]
    pub member_id: u64,
    /// Revision of the store when the answer was made.
    #[prost(int64, tag = "3")]
    pub revision: i64,
}

/// One key with its value.
#[derive(Clone, PartialEq, Message)]
pub struct KeyValue {
    #[prost(bytes = "vec", tag = "1")]
    pub key: Vec<u8>,
    /// Revision in which the key came into being; a deletion and a new put give it another one.
    #[prost(int64, tag = "2")]
    pub create_revision: i64,
    #[prost(int64, tag = "3")]
    pub mod_revision: i64,
    #[prost(int64, tag = "4")]
    pub version: i64,
    #[prost(bytes = "vec", tag = "5")]
    pub value: Vec<u8>,
    /// Lease that the key hangs on, 0 for none.
    #[prost(int64, tag = "6")]
    pub lease: i64,
}

/// What happened to a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Enumeration)]
#[repr(i32)]
pub enum EventType {
    Put = 0,
    Delete = 1,
}

/// One change that a watch reports.
#[derive(Clone, PartialEq, Message)]
pub struct Event {
    #[prost(enumeration = "EventType", tag = "1")]
    pub r#type: i32,
    #[prost(message, optional, tag = "2")]
    pub kv: Option<KeyValue>,
}

/// Reads `key`, or the keys from `key` up to but without `range_end`.
#[derive(Clone, PartialEq, Message)]
pub struct RangeRequest {
    #[prost(bytes = "vec", tag = "1")]
    pub key: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    pub range_end: Vec<u8>,
    #[prost(int64, tag = "3")]
    pub limit: i64,
    /// Reads what was at this revision; 0 means now.
    #[prost(int64, tag = "4")]
    pub revision: i64,
    #[prost(bool, tag = "8")]
    pub keys_only: bool,
    #[prost(bool, tag = "9")]
    pub count_only: bool,
}

/// Answer to [`RangeRequest`].
#[derive(Clone, PartialEq, Message)]
pub struct RangeResponse {
    #[prost(message, optional, tag = "1")]
    pub header: Option<ResponseHeader>,
    #[prost(message, repeated, tag = "2")]
    pub kvs: Vec<KeyValue>,
    #[prost(bool, tag = "3")]
    pub more: bool,
    #[prost(int64, tag = "4")]
    pub count: i64,
}

/// Writes one key.
#[derive(Clone, PartialEq, Message)]
pub struct PutRequest {
    #[prost(bytes = "vec", tag = "1")]
    pub key: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    pub value: Vec<u8>,
    #[prost(int64, tag = "3")]
    pub lease: i64,
    /// Asks for what stood there before; needs the permission to read it.
    #[prost(bool, tag = "4")]
    pub prev_kv: bool,
}

/// Answer to [`PutRequest`].
#[derive(Clone, PartialEq, Message)]
pub struct PutResponse {
    #[prost(message, optional, tag = "1")]
    pub header: Option<ResponseHeader>,
    /// What stood there before, if it was asked for and there was something.
    #[prost(message, optional, tag = "2")]
    pub prev_kv: Option<KeyValue>,
}

/// Deletes keys, chosen as in [`RangeRequest`].
#[derive(Clone, PartialEq, Message)]
pub struct DeleteRangeRequest {
    #[prost(bytes = "vec", tag = "1")]
    pub key: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    pub range_end: Vec<u8>,
}

/// Answer to [`DeleteRangeRequest`].
#[derive(Clone, PartialEq, Message)]
pub struct DeleteRangeResponse {
    #[prost(message, optional, tag = "1")]
    pub header: Option<ResponseHeader>,
    #[prost(int64, tag = "2")]
    pub deleted: i64,
}

/// How a condition of a transaction compares.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Enumeration)]
#[repr(i32)]
pub enum CompareResult {
    Equal = 0,
    Greater = 1,
    Less = 2,
    NotEqual = 3,
}

/// What a condition of a transaction looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Enumeration)]
#[repr(i32)]
pub enum CompareTarget {
    Version = 0,
    Create = 1,
    Mod = 2,
    Value = 3,
    Lease = 4,
}

/// The value that a condition expects; its variant must fit the [`CompareTarget`].
#[derive(Clone, PartialEq, Eq, Oneof)]
pub enum CompareValue {
    #[prost(int64, tag = "4")]
    Version(i64),
    #[prost(int64, tag = "5")]
    CreateRevision(i64),
    #[prost(int64, tag = "6")]
    ModRevision(i64),
    #[prost(bytes, tag = "7")]
    Value(Vec<u8>),
    #[prost(int64, tag = "8")]
    Lease(i64),
}

/// A condition of a transaction.
#[derive(Clone, PartialEq, Message)]
pub struct Compare {
    #[prost(enumeration = "CompareResult", tag = "1")]
    pub result: i32,
    #[prost(enumeration = "CompareTarget", tag = "2")]
    pub target: i32,
    #[prost(bytes = "vec", tag = "3")]
    pub key: Vec<u8>,
    #[prost(oneof = "CompareValue", tags = "4, 5, 6, 7, 8")]
    pub value: Option<CompareValue>,
}

impl Compare {
    /// The condition that the key is there.
    pub fn exists(key: Vec<u8>) -> Self {
        let missing = Self::equal(key, CompareValue::CreateRevision(0));
        Self { result: CompareResult::Greater.into(), ..missing }
    }

    /// The condition that what `expected` names is equal to it. A missing key counts as one with zeros everywhere,
    /// and is never equal to a value.
    pub fn equal(key: Vec<u8>, expected: CompareValue) -> Self {
        let target = match &expected {
            CompareValue::Version(_) => CompareTarget::Version,
            CompareValue::CreateRevision(_) => CompareTarget::Create,
            CompareValue::ModRevision(_) => CompareTarget::Mod,
            CompareValue::Value(_) => CompareTarget::Value,
            CompareValue::Lease(_) => CompareTarget::Lease,
        };
        Self {
            result: CompareResult::Equal.into(),
            target: target.into(),
            key,
            value: Some(expected),
        }
    }
}

/// One step of a transaction.
#[derive(Clone, PartialEq, Oneof)]
pub enum RequestOp {
    #[prost(message, tag = "1")]
    Range(RangeRequest),
    #[prost(message, tag = "2")]
    Put(PutRequest),
    #[prost(message, tag = "3")]
    DeleteRange(DeleteRangeRequest),
}

/// The message around a [`RequestOp`].
#[derive(Clone, PartialEq, Message)]
pub(super) struct RequestOpMessage {
    #[prost(oneof = "RequestOp", tags = "1, 2, 3")]
    pub(super) op: Option<RequestOp>,
}

/// Runs `success` when all conditions hold and `failure` otherwise, as one step of the store.
#[derive(Clone, PartialEq, Message)]
pub struct TxnRequest {
    #[prost(message, repeated, tag = "1")]
    pub compare: Vec<Compare>,
    #[prost(message, repeated, tag = "2")]
    success: Vec<RequestOpMessage>,
    #[prost(message, repeated, tag = "3")]
    failure: Vec<RequestOpMessage>,
}

impl TxnRequest {
    /// A transaction; see the type.
    pub fn new(compare: Vec<Compare>, success: Vec<RequestOp>, failure: Vec<RequestOp>) -> Self {
        let wrap = |ops: Vec<RequestOp>| {
            ops.into_iter().map(|op| RequestOpMessage { op: Some(op) }).collect()
        };
        Self { compare, success: wrap(success), failure: wrap(failure) }
    }
}

/// Answer of one step of a transaction.
#[derive(Clone, PartialEq, Oneof)]
pub enum ResponseOp {
    #[prost(message, tag = "1")]
    Range(RangeResponse),
    #[prost(message, tag = "2")]
    Put(PutResponse),
    #[prost(message, tag = "3")]
    DeleteRange(DeleteRangeResponse),
}

/// The message around a [`ResponseOp`].
#[derive(Clone, PartialEq, Message)]
pub(super) struct ResponseOpMessage {
    #[prost(oneof = "ResponseOp", tags = "1, 2, 3")]
    pub(super) op: Option<ResponseOp>,
}

/// Answer to [`TxnRequest`].
#[derive(Clone, PartialEq, Message)]
pub struct TxnResponse {
    #[prost(message, optional, tag = "1")]
    pub header: Option<ResponseHeader>,
    /// Whether the conditions held.
    #[prost(bool, tag = "2")]
    pub succeeded: bool,
    #[prost(message, repeated, tag = "3")]
    responses: Vec<ResponseOpMessage>,
}

impl TxnResponse {
    /// The answers of the steps that ran, in their order.
    pub fn into_responses(self) -> impl Iterator<Item = ResponseOp> {
        self.responses.into_iter().filter_map(|response| response.op)
    }
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct LeaseGrantRequest {
    #[prost(int64, tag = "1")]
    pub(super) ttl: i64,
    #[prost(int64, tag = "2")]
    pub(super) id: i64,
}

/// A new lease.
#[derive(Clone, PartialEq, Message)]
pub struct LeaseGrantResponse {
    #[prost(message, optional, tag = "1")]
    pub header: Option<ResponseHeader>,
    #[prost(int64, tag = "2")]
    pub id: i64,
    /// Granted time to live in seconds; the server may give more than was asked for.
    #[prost(int64, tag = "3")]
    pub ttl: i64,
    #[prost(string, tag = "4")]
    pub error: String,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct LeaseRevokeRequest {
    #[prost(int64, tag = "1")]
    pub(super) id: i64,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct LeaseRevokeResponse {}

#[derive(Clone, PartialEq, Message)]
pub(super) struct LeaseKeepAliveRequest {
    #[prost(int64, tag = "1")]
    pub(super) id: i64,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct LeaseKeepAliveResponse {
    #[prost(int64, tag = "2")]
    pub(super) id: i64,
    /// Seconds; 0 when the lease is unknown.
    #[prost(int64, tag = "3")]
    pub(super) ttl: i64,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct LeaseTimeToLiveRequest {
    #[prost(int64, tag = "1")]
    pub(super) id: i64,
    #[prost(bool, tag = "2")]
    pub(super) keys: bool,
}

/// What is left of a lease.
#[derive(Clone, PartialEq, Message)]
pub struct LeaseTimeToLiveResponse {
    #[prost(message, optional, tag = "1")]
    pub header: Option<ResponseHeader>,
    #[prost(int64, tag = "2")]
    pub id: i64,
    /// Seconds left; -1 when the lease is unknown or over.
    #[prost(int64, tag = "3")]
    pub ttl: i64,
    #[prost(int64, tag = "4")]
    pub granted_ttl: i64,
    #[prost(bytes = "vec", repeated, tag = "5")]
    pub keys: Vec<Vec<u8>>,
}

/// What to watch, and from which revision on.
#[derive(Clone, PartialEq, Message)]
pub struct WatchCreateRequest {
    #[prost(bytes = "vec", tag = "1")]
    pub key: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    pub range_end: Vec<u8>,
    #[prost(int64, tag = "3")]
    pub start_revision: i64,
    /// Asks for an empty answer now and then while nothing happens.
    #[prost(bool, tag = "4")]
    pub progress_notify: bool,
}

#[derive(Clone, PartialEq, Oneof)]
pub(super) enum WatchRequestUnion {
    #[prost(message, tag = "1")]
    Create(WatchCreateRequest),
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct WatchRequest {
    #[prost(oneof = "WatchRequestUnion", tags = "1")]
    pub(super) request: Option<WatchRequestUnion>,
}

/// What a watch reports.
#[derive(Clone, PartialEq, Message)]
pub struct WatchResponse {
    #[prost(message, optional, tag = "1")]
    pub header: Option<ResponseHeader>,
    #[prost(int64, tag = "2")]
    pub watch_id: i64,
    #[prost(bool, tag = "3")]
    pub created: bool,
    #[prost(bool, tag = "4")]
    pub canceled: bool,
    /// Not 0 when the watch ended because the revision it asked for was compacted away.
    #[prost(int64, tag = "5")]
    pub compact_revision: i64,
    #[prost(string, tag = "6")]
    pub cancel_reason: String,
    #[prost(message, repeated, tag = "11")]
    pub events: Vec<Event>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct AuthenticateRequest {
    #[prost(string, tag = "1")]
    pub(super) name: String,
    #[prost(string, tag = "2")]
    pub(super) password: String,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct AuthenticateResponse {
    #[prost(string, tag = "2")]
    pub(super) token: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_prefix_is_the_next_key_that_does_not_begin_with_it() {
        assert_eq!(prefix_end(b"pitaya/servers/"), b"pitaya/servers0");
        assert_eq!(prefix_end(b"a\xff\xff"), b"b");
        assert_eq!(prefix_end(b"\xff"), [0]);
        assert_eq!(prefix_end(b""), [0]);
    }

    #[test]
    fn a_put_has_the_bytes_that_etcd_expects() {
        let put = PutRequest {
            key: b"k".to_vec(),
            value: b"v".to_vec(),
            lease: 3,
            ..PutRequest::default()
        };
        assert_eq!(put.encode_to_vec(), b"\x0a\x01k\x12\x01v\x18\x03");
    }

    #[test]
    fn a_transaction_wraps_its_steps() {
        let put = PutRequest { key: b"k".to_vec(), ..PutRequest::default() };
        let compare = Compare::equal(b"k".to_vec(), CompareValue::Lease(5));
        let txn = TxnRequest::new(vec![compare], vec![], vec![RequestOp::Put(put)]);
        assert_eq!(
            txn.encode_to_vec(),
            b"\x0a\x07\x10\x04\x1a\x01k\x40\x05\x1a\x05\x12\x03\x0a\x01k"
        );
    }

    #[test]
    fn fields_that_we_do_not_know_are_skipped() {
        // raft_term (field 4) of the header, prev_kv (field 3) of an event.
        let header = ResponseHeader::decode(&b"\x18\x07\x20\x09"[..]).unwrap();
        assert_eq!(header.revision, 7);
        let event = Event::decode(&b"\x08\x01\x12\x03\x0a\x01k\x1a\x03\x0a\x01k"[..]).unwrap();
        assert_eq!((event.r#type(), event.kv.unwrap().key), (EventType::Delete, b"k".to_vec()));
    }
}
