//! The same messages without allocation: borrowed views of received bytes, and direct encoding.
//!
//! Not a general protobuf library: only what the forwarding path reads and writes. Every view accepts and refuses
//! exactly what the owned message does (one stricter case is named at [`ErrorView`]), never panics, and never reads
//! outside the bytes that it was given. A field that occurs twice is merged as protobuf says: the last scalar wins,
//! parts of a message add up.
#![deny(clippy::indexing_slicing)]

mod batch;
mod encode;
mod push_many;
mod reader;
mod views;

pub use batch::{
    BATCH_ENTRIES_MAX, BATCH_ENTRY_BYTES, BATCH_HEADER, BatchEntries, BatchError, BatchView,
    NO_TOKEN, PROBE, is_batch, put_batch_entry_head,
};
pub use encode::{
    RESPONSE_ACK, RESPONSE_NESTED_ACK, SysRequest, encode_error_response, encode_response,
    encode_session,
};
pub use push_many::{PushManyView, Uids, encode_push_many};
pub use views::{
    BindView, ErrorMetadata, ErrorView, KickView, MsgView, PushView, RequestView, ResponseView,
    SessionView,
};

/// Why received bytes are not the expected message. The sender is at fault in every case.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// The bytes end inside a field.
    #[error("the message ends inside a field")]
    Truncated,
    /// A variable-length integer is longer than ten bytes or does not fit 64 bits.
    #[error("invalid variable-length integer")]
    Varint,
    /// The key's field number is 0, its wire type does not exist, or it does not fit 32 bits.
    #[error("invalid field key {key}")]
    Key {
        /// The key as it was read.
        key: u64,
    },
    /// A known field has a wire type that its declared type cannot have.
    #[error("field {field} has the wrong wire type")]
    WireType {
        /// The field's number.
        field: u32,
    },
    /// A `string` field is not UTF-8; Go refuses such a message too.
    #[error("field {field} is not valid UTF-8")]
    Utf8 {
        /// The field's number.
        field: u32,
    },
    /// A group ends that was not open.
    #[error("unexpected end of group {field}")]
    EndOfGroup {
        /// The group's number.
        field: u32,
    },
    /// Groups or messages are nested deeper than 100 levels.
    #[error("nested too deeply")]
    Depth,
}
