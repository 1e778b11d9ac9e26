//! The head of one frame, its mask, and ready-made small frames.
//!
//! ```text
//! byte 0            byte 1            then
//! +---+----+------+ +----+----------+ +----------------------+-----------+
//! |FIN|RSV3|opcode| |MASK| length 7 | | 0, 2 or 8 length     | 0 or 4    |
//! | 1 | 3  |  4   | | 1  | or 126/7 | | bytes, big-endian    | mask bytes|
//! +---+----+------+ +----+----------+ +----------------------+-----------+
//! ```
//!
//! Nothing here knows which frames may follow which; that is the decoder's. Lengths written longer than needed are
//! read as they stand, as Pitaya's server does.

use super::FrameError;

/// The longest head: 2 bytes, an 8-byte length and a mask.
pub const HEAD_BYTES_MAX: usize = 14;
/// The longest payload of a close, ping or pong (RFC 6455 5.5).
pub const CONTROL_PAYLOAD_BYTES_MAX: usize = 125;

const FINAL: u8 = 0x80;
const RESERVED: u8 = 0x70;
const OPCODE: u8 = 0x0f;
const MASKED: u8 = 0x80;
const LENGTH: u8 = 0x7f;
/// Values of the 7-bit length that say "the length follows in 2 bytes" and "in 8 bytes".
const LENGTH_U16: u8 = 126;
const LENGTH_U64: u8 = 127;

/// What a frame carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Opcode {
    /// The next piece of a fragmented message.
    Continuation = 0,
    /// A message of UTF-8 text, or its first piece.
    Text = 1,
    /// A message of bytes, or its first piece.
    Binary = 2,
    /// The end of the conversation in this direction.
    Close = 8,
    /// A question that a pong with the same payload answers.
    Ping = 9,
    /// The answer to a ping.
    Pong = 10,
}

impl Opcode {
    fn from_bits(bits: u8) -> Result<Self, FrameError> {
        Ok(match bits {
            0 => Self::Continuation,
            1 => Self::Text,
            2 => Self::Binary,
            8 => Self::Close,
            9 => Self::Ping,
            10 => Self::Pong,
            other => return Err(FrameError::ReservedOpcode(other)),
        })
    }

    /// Close, ping or pong: short, never fragmented, allowed between the pieces of a message.
    pub fn is_control(self) -> bool {
        (self as u8) & 0x08 != 0
    }
}

/// A frame's head as it was announced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameHead {
    /// What the frame carries.
    pub opcode: Opcode,
    /// No further piece of this message follows.
    pub is_final: bool,
    /// The key that the payload is masked with.
    pub mask: Option<[u8; 4]>,
    /// Length of the payload in bytes, at most 2^63 - 1.
    pub payload_bytes: u64,
    /// Length of this head in bytes, 2 to [`HEAD_BYTES_MAX`].
    pub head_bytes: usize,
}

impl FrameHead {
    /// Reads the head at the front of `bytes`; `Ok(None)` while it is incomplete. A head that cannot become valid is
    /// refused on the earliest byte that shows it: reserved bits and opcodes on the first, control frames on the second.
    #[inline]
    pub fn decode(bytes: &[u8]) -> Result<Option<Self>, FrameError> {
        let Some((&first, rest)) = bytes.split_first() else {
            return Ok(None);
        };
        if first & RESERVED != 0 {
            return Err(FrameError::ReservedBits);
        }
        let opcode = Opcode::from_bits(first & OPCODE)?;
        let is_final = first & FINAL != 0;
        let Some((&second, rest)) = rest.split_first() else {
            return Ok(None);
        };
        let length = second & LENGTH;
        if opcode.is_control() {
            if !is_final {
                return Err(FrameError::FragmentedControl);
            }
            if usize::from(length) > CONTROL_PAYLOAD_BYTES_MAX {
                return Err(FrameError::ControlTooLong);
            }
        }
        let Some((payload_bytes, rest)) = decode_length(length, rest)? else {
            return Ok(None);
        };
        let (mask, rest) = if second & MASKED == 0 {
            (None, rest)
        } else {
            match rest.split_first_chunk::<4>() {
                Some((mask, rest)) => (Some(*mask), rest),
                None => return Ok(None),
            }
        };
        let head_bytes = bytes.len() - rest.len();
        Ok(Some(Self { opcode, is_final, mask, payload_bytes, head_bytes }))
    }
}

#[inline]
fn decode_length(length: u8, rest: &[u8]) -> Result<Option<(u64, &[u8])>, FrameError> {
    match length {
        LENGTH_U16 => Ok(rest
            .split_first_chunk::<2>()
            .map(|(value, rest)| (u64::from(u16::from_be_bytes(*value)), rest))),
        LENGTH_U64 => {
            // The top bit is in the first length byte; a refusal does not wait for the other seven.
            if rest.first().is_some_and(|byte| byte & 0x80 != 0) {
                return Err(FrameError::LengthTopBit);
            }
            Ok(rest
                .split_first_chunk::<8>()
                .map(|(value, rest)| (u64::from_be_bytes(*value), rest)))
        }
        short => Ok(Some((u64::from(short), rest))),
    }
}

/// Masks or unmasks `payload` in place (the operation is its own inverse), eight bytes at a time.
#[inline]
pub fn apply_mask(payload: &mut [u8], key: [u8; 4]) {
    let [a, b, c, d] = key;
    let wide = u64::from_ne_bytes([a, b, c, d, a, b, c, d]);
    let (words, tail) = payload.as_chunks_mut::<8>();
    for word in words {
        *word = (u64::from_ne_bytes(*word) ^ wide).to_ne_bytes();
    }
    for (byte, key) in tail.iter_mut().zip(key.into_iter().cycle()) {
        *byte ^= key;
    }
}

/// Appends the head of an unfragmented frame with `payload_bytes` bytes of payload. With a `mask` the caller also
/// masks the payload ([`apply_mask`]); servers pass `None`, clients a fresh random key for every frame.
pub fn frame_head(opcode: Opcode, payload_bytes: usize, mask: Option<[u8; 4]>, out: &mut Vec<u8>) {
    let masked = if mask.is_some() { MASKED } else { 0 };
    out.push(FINAL | opcode as u8);
    match payload_bytes {
        0..=125 => out.push(masked | payload_bytes as u8),
        126..=0xffff => {
            out.push(masked | LENGTH_U16);
            out.extend_from_slice(&(payload_bytes as u16).to_be_bytes());
        }
        _ => {
            out.push(masked | LENGTH_U64);
            out.extend_from_slice(&(payload_bytes as u64).to_be_bytes());
        }
    }
    if let Some(mask) = mask {
        out.extend_from_slice(&mask);
    }
}

/// Bytes that [`frame_head`] appends for an unmasked frame: 2, 4 or 10. A mask takes 4 more.
pub const fn head_bytes(payload_bytes: usize) -> usize {
    match payload_bytes {
        0..=125 => 2,
        126..=0xffff => 4,
        _ => 10,
    }
}

/// Appends a close, ping or pong with its payload, masked when there is a `mask`. A payload over
/// [`CONTROL_PAYLOAD_BYTES_MAX`] is cut: the frame must never be one that the peer has to refuse.
pub fn control_frame(opcode: Opcode, payload: &[u8], mask: Option<[u8; 4]>, out: &mut Vec<u8>) {
    debug_assert!(opcode.is_control(), "{opcode:?} is no control frame");
    let payload = payload.get(..CONTROL_PAYLOAD_BYTES_MAX).unwrap_or(payload);
    frame_head(opcode, payload.len(), mask, out);
    let start = out.len();
    out.extend_from_slice(payload);
    if let (Some(key), Some(masked)) = (mask, out.get_mut(start..)) {
        apply_mask(masked, key);
    }
}

/// Appends a server's close frame with `code` and no reason.
pub fn close_frame(code: u16, out: &mut Vec<u8>) {
    control_frame(Opcode::Close, &code.to_be_bytes(), None, out);
}

/// Appends a server's pong that answers a ping with `payload`.
pub fn pong_frame(payload: &[u8], out: &mut Vec<u8>) {
    control_frame(Opcode::Pong, payload, None, out);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_survives_encoding_and_decoding_at_every_length_boundary() {
        for bytes in [0, 1, 125, 126, 127, 0xffff, 0x1_0000, 0x1_0001, usize::MAX >> 1] {
            for mask in [None, Some([1, 2, 3, 4])] {
                let mut out = Vec::new();
                frame_head(Opcode::Binary, bytes, mask, &mut out);
                assert_eq!(out.len(), head_bytes(bytes) + mask.map_or(0, |_| 4));
                let head = FrameHead::decode(&out).unwrap().unwrap();
                assert_eq!(head.payload_bytes, bytes as u64);
                assert_eq!((head.mask, head.head_bytes), (mask, out.len()));
                assert!(head.is_final);
                for cut in 0..out.len() {
                    assert_eq!(FrameHead::decode(&out[..cut]), Ok(None), "cut at {cut}");
                }
            }
        }
    }

    #[test]
    fn a_hopeless_head_is_refused_on_its_first_hopeless_byte() {
        assert_eq!(FrameHead::decode(&[0xc2]), Err(FrameError::ReservedBits));
        assert_eq!(FrameHead::decode(&[0x83]), Err(FrameError::ReservedOpcode(3)));
        assert_eq!(FrameHead::decode(&[0x8b]), Err(FrameError::ReservedOpcode(11)));
        assert_eq!(FrameHead::decode(&[0x09, 0x80]), Err(FrameError::FragmentedControl));
        assert_eq!(FrameHead::decode(&[0x89, 0xfe]), Err(FrameError::ControlTooLong));
        assert_eq!(FrameHead::decode(&[0x82, 0xff, 0x80]), Err(FrameError::LengthTopBit));
    }

    #[test]
    fn the_word_wise_mask_is_the_byte_wise_mask() {
        let key = [0x37, 0xfa, 0x21, 0x3d];
        for length in 0..70 {
            let plain: Vec<u8> = (0..length).collect();
            let slow: Vec<u8> =
                plain.iter().zip(key.iter().cycle()).map(|(byte, key)| byte ^ key).collect();
            let mut fast = plain.clone();
            apply_mask(&mut fast, key);
            assert_eq!(fast, slow, "length {length}");
            apply_mask(&mut fast, key);
            assert_eq!(fast, plain);
        }
    }

    #[test]
    fn small_frames_have_the_documented_bytes() {
        let mut out = Vec::new();
        close_frame(1001, &mut out);
        pong_frame(b"ab", &mut out);
        control_frame(Opcode::Ping, b"a", Some([1, 0, 0, 0]), &mut out);
        assert_eq!(
            out,
            [0x88, 2, 0x03, 0xe9, 0x8a, 2, b'a', b'b', 0x89, 0x81, 1, 0, 0, 0, b'a' ^ 1]
        );
    }
}
