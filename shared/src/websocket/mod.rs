//! WebSocket (RFC 6455) without a socket: the HTTP upgrade, and frames in both directions.
//!
//! Bytes go in, messages and ready-made answers come out. It never reads, writes, waits or looks at a clock, and it
//! offers no extension and no subprotocol, so a frame's payload is always the plain bytes of a message
//! (client protocol 12). Limits are checked on heads alone: nothing is kept for bytes that were only announced.

#![warn(clippy::indexing_slicing, clippy::expect_used)]

pub mod frame;
pub mod upgrade;

pub use frame::{
    CloseReply, Decoder, DecoderState, FRAGMENTS_MAX, FrameError, FrameLimits, HEAD_BYTES_MAX,
    Incoming, Opcode, PartialMessage, Role, apply_mask, close_frame, control_frame, frame_head,
    head_bytes, pong_frame,
};
pub use upgrade::{OriginPolicy, RequestHead, Upgrade, UpgradeLimits, accept, page_response};
