//! Frames: their heads and masks ([`head`]), what makes one wrong ([`error`]), and the decoder that turns a stream
//! of them into messages ([`decoder`]).

pub mod decoder;
pub mod error;
pub mod head;

pub use decoder::{
    CloseReply, Decoder, DecoderState, FRAGMENTS_MAX, FrameLimits, Incoming, PartialMessage, Role,
};
pub use error::FrameError;
pub use head::{
    CONTROL_PAYLOAD_BYTES_MAX, FrameHead, HEAD_BYTES_MAX, Opcode, apply_mask, close_frame,
    control_frame, frame_head, head_bytes, pong_frame,
};
