//! Why a stream of frames is refused, and the close code that tells the peer.

/// What the peer did wrong. After any of these the connection is over: the stream cannot be read on from here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// A reserved bit is set although no extension was granted.
    #[error("reserved bits are set and no extension is in use")]
    ReservedBits,
    /// The opcode (given) has no meaning.
    #[error("unknown opcode {0}")]
    ReservedOpcode(u8),
    /// A close, ping or pong without the final bit.
    #[error("control frame is fragmented")]
    FragmentedControl,
    /// A close, ping or pong with more than 125 bytes.
    #[error("control frame is longer than 125 bytes")]
    ControlTooLong,
    /// A length with its top bit set, which no frame can have.
    #[error("frame length has its top bit set")]
    LengthTopBit,
    /// The message is over the limit; judged by the frame's head, before its payload arrives.
    #[error("message of {announced_bytes} bytes, limit is {limit_bytes}")]
    TooLarge {
        /// Bytes of the whole message as far as they are announced.
        announced_bytes: u64,
        /// [`FrameLimits::message_bytes_max`](super::FrameLimits::message_bytes_max).
        limit_bytes: usize,
    },
    /// The message came in more pieces than [`FrameLimits::fragments_max`](super::FrameLimits::fragments_max).
    #[error("message in more than {limit} fragments")]
    TooManyFragments {
        /// The limit.
        limit: u32,
    },
    /// A client's frame without a mask.
    #[error("frame of a client is not masked")]
    Unmasked,
    /// A server's frame with a mask.
    #[error("frame of a server is masked")]
    Masked,
    /// A continuation while no message is open.
    #[error("continuation without a message to continue")]
    UnexpectedContinuation,
    /// A new message while another is still open.
    #[error("new message inside a fragmented one")]
    ExpectedContinuation,
    /// A text message that is not UTF-8, noticed with the first fragment that shows it.
    #[error("text is not UTF-8")]
    InvalidUtf8,
    /// A close frame whose payload is a single byte, half a code.
    #[error("close frame with half a code")]
    CloseTooShort,
    /// A close code (given) that may not be sent.
    #[error("close code {0} is not allowed on the wire")]
    CloseCode(u16),
    /// The reason in a close frame is not UTF-8.
    #[error("close reason is not UTF-8")]
    CloseReasonUtf8,
}

impl FrameError {
    /// The code for the close frame that goes to the peer: 1002, 1007 or 1009 (RFC 6455 7.4.1).
    pub fn close_code(&self) -> u16 {
        match self {
            Self::InvalidUtf8 | Self::CloseReasonUtf8 => 1007,
            Self::TooLarge { .. } | Self::TooManyFragments { .. } => 1009,
            Self::ReservedBits
            | Self::ReservedOpcode(_)
            | Self::FragmentedControl
            | Self::ControlTooLong
            | Self::LengthTopBit
            | Self::Unmasked
            | Self::Masked
            | Self::UnexpectedContinuation
            | Self::ExpectedContinuation
            | Self::CloseTooShort
            | Self::CloseCode(_) => 1002,
        }
    }
}
