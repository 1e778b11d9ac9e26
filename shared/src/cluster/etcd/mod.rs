//! A small client of etcd's version 3 API.
//!
//! It speaks the calls that Pitaya's cluster needs, with messages written by hand, so that building needs no protobuf
//! compiler. It deliberately has no caches, namespaces or elections.

mod client;
mod error;
mod messages;
mod store_options;
mod transport;

pub use client::{Client, Watch};
pub use error::EtcdError;
pub use messages::{
    Compare, CompareResult, CompareTarget, CompareValue, DeleteRangeRequest, DeleteRangeResponse,
    Event, EventType, KeyValue, LeaseGrantResponse, LeaseTimeToLiveResponse, PutRequest,
    PutResponse, RangeRequest, RangeResponse, RequestOp, ResponseHeader, ResponseOp, TxnRequest,
    TxnResponse, WatchCreateRequest, WatchResponse, prefix_end,
};
pub use store_options::StoreOptions;
