//! The outer frame of the client protocol: one byte of type, three bytes of length, a body.
//!
//! ```text
//! offset 0      1          2          3          4 ...
//!        +------+----------+----------+----------+-----------------+
//!        | type | len >>16 | len >> 8 | len      | body (len bytes)|
//!        +------+----------+----------+----------+-----------------+
//! ```
//!
//! Neither the order of packets nor what a body means is judged here. The invariant: what is decoded never announced
//! more than the caller's limit, and nothing is reserved for a body that has not arrived.

#![deny(clippy::indexing_slicing)]

use thiserror::Error;

/// The size of every packet's header.
pub const HEADER_BYTES: usize = 4;

/// The longest body that the 24-bit length can announce.
pub const BODY_BYTES_MAX: usize = 0xff_ffff;

/// A whole heartbeat packet.
pub const HEARTBEAT: [u8; HEADER_BYTES] = [PacketType::Heartbeat as u8, 0, 0, 0];

/// A whole handshake acknowledgement; only clients send it.
pub const HANDSHAKE_ACK: [u8; HEADER_BYTES] = [PacketType::HandshakeAck as u8, 0, 0, 0];

/// A whole kick packet. Its body stays empty: clients read no reason.
pub const KICK: [u8; HEADER_BYTES] = [PacketType::Kick as u8, 0, 0, 0];

/// What a packet is for (client protocol 2.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum PacketType {
    /// The handshake's request and its response, as JSON.
    Handshake = 1,
    /// The client has read the handshake response; a body is ignored.
    HandshakeAck = 2,
    /// Sign of life in both directions; a body is ignored.
    Heartbeat = 3,
    /// Carries one message.
    Data = 4,
    /// Server to client: the connection ends and the client should not come back by itself.
    Kick = 5,
}

impl PacketType {
    /// The type with this number on the wire, if there is one.
    pub fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            1 => Some(Self::Handshake),
            2 => Some(Self::HandshakeAck),
            3 => Some(Self::Heartbeat),
            4 => Some(Self::Data),
            5 => Some(Self::Kick),
            _ => None,
        }
    }
}

/// One packet; the body borrows the buffer that it was decoded from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packet<'a> {
    /// What the packet is for.
    pub kind: PacketType,
    /// The bytes after the header.
    pub body: &'a [u8],
}

/// Why bytes are not a packet. After any of these the stream has no further packet boundary: close it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum PacketError {
    /// The peer's first byte is no packet type; HTTP and TLS peers end here.
    #[error("packet type {0} does not exist")]
    UnknownType(u8),
    /// The peer announces, or we would send, a longer body than is allowed.
    #[error("packet body of {announced_bytes} bytes is longer than {limit_bytes}")]
    TooLarge {
        /// Length of the body.
        announced_bytes: usize,
        /// The limit that was given.
        limit_bytes: usize,
    },
}

/// The packet at the front of `bytes` and how many bytes it took; `Ok(None)` when it is not complete yet.
///
/// The type is refused on the first byte alone and the length on the header alone, so a peer that speaks TLS or HTTP is
/// found out at once and an announced body never has to be waited for in vain. Neither copies nor allocates.
///
/// # Errors
/// [`PacketError::UnknownType`], and [`PacketError::TooLarge`] when the header announces more than `body_bytes_max`.
pub fn decode(
    bytes: &[u8],
    body_bytes_max: usize,
) -> Result<Option<(Packet<'_>, usize)>, PacketError> {
    let Some(&type_byte) = bytes.first() else { return Ok(None) };
    let kind = PacketType::from_byte(type_byte).ok_or(PacketError::UnknownType(type_byte))?;
    let Some((&[_, high, middle, low], rest)) = bytes.split_first_chunk::<HEADER_BYTES>() else {
        return Ok(None);
    };
    let body_bytes = u32::from_be_bytes([0, high, middle, low]) as usize;
    if body_bytes > body_bytes_max {
        return Err(PacketError::TooLarge {
            announced_bytes: body_bytes,
            limit_bytes: body_bytes_max,
        });
    }
    let packet =
        rest.get(..body_bytes).map(|body| (Packet { kind, body }, HEADER_BYTES + body_bytes));
    Ok(packet)
}

/// Appends one whole packet to `out`, which is untouched when it fails.
///
/// # Errors
/// [`PacketError::TooLarge`] when the body is longer than [`BODY_BYTES_MAX`].
pub fn encode(kind: PacketType, body: &[u8], out: &mut Vec<u8>) -> Result<(), PacketError> {
    let head = header(kind, body.len())?;
    out.reserve(HEADER_BYTES + body.len());
    out.extend_from_slice(&head);
    out.extend_from_slice(body);
    Ok(())
}

/// The header of a packet whose body the caller writes behind it.
///
/// # Errors
/// [`PacketError::TooLarge`] when the body is longer than [`BODY_BYTES_MAX`].
pub fn header(kind: PacketType, body_bytes: usize) -> Result<[u8; HEADER_BYTES], PacketError> {
    if body_bytes > BODY_BYTES_MAX {
        return Err(PacketError::TooLarge {
            announced_bytes: body_bytes,
            limit_bytes: BODY_BYTES_MAX,
        });
    }
    let [_, high, middle, low] = (body_bytes as u32).to_be_bytes();
    Ok([kind as u8, high, middle, low])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode_all(mut bytes: &[u8]) -> Vec<(PacketType, Vec<u8>)> {
        let mut packets = Vec::new();
        while let Some((packet, taken)) = decode(bytes, BODY_BYTES_MAX).unwrap() {
            packets.push((packet.kind, packet.body.to_vec()));
            bytes = &bytes[taken..];
        }
        assert!(bytes.is_empty());
        packets
    }

    #[test]
    fn the_fixed_packets_have_the_published_bytes() {
        assert_eq!(HEARTBEAT, [3, 0, 0, 0], "P1");
        assert_eq!(HANDSHAKE_ACK, [2, 0, 0, 0], "P2");
        assert_eq!(KICK, [5, 0, 0, 0], "P3");
    }

    #[test]
    fn packets_with_and_without_a_body_are_found_one_after_the_other() {
        let handshake = (PacketType::Handshake, vec![1]);
        assert_eq!(decode_all(&[1, 0, 0, 1, 1]), std::slice::from_ref(&handshake), "P4");
        let twice = [1, 0, 0, 1, 1, 1, 0, 0, 1, 1];
        assert_eq!(decode_all(&twice), [handshake.clone(), handshake], "P5");
        let kinds: Vec<_> = decode_all(&[3, 0, 0, 0, 3, 0, 0, 0, 2, 0, 0, 0, 5, 0, 0, 0])
            .into_iter()
            .map(|(kind, _)| kind)
            .collect();
        let expected = [
            PacketType::Heartbeat,
            PacketType::Heartbeat,
            PacketType::HandshakeAck,
            PacketType::Kick,
        ];
        assert_eq!(kinds, expected, "P12");
    }

    #[test]
    fn an_unknown_type_is_refused_on_its_first_byte() {
        for byte in [0u8, 6, 0x16, b'G', 0xff] {
            assert_eq!(decode(&[byte], 100), Err(PacketError::UnknownType(byte)));
            assert_eq!(
                decode(&[byte, 0, 0, 1], 100),
                Err(PacketError::UnknownType(byte)),
                "P6 to P8"
            );
        }
    }

    #[test]
    fn a_cut_header_and_a_cut_body_wait_for_more() {
        assert_eq!(decode(&[], 100), Ok(None));
        assert_eq!(decode(&[2, 0], 100), Ok(None), "P9");
        assert_eq!(decode(&[2, 0, 0, 2, 1], 100), Ok(None), "P10");
    }

    #[test]
    fn bytes_behind_a_packet_are_left_to_the_caller() {
        let (packet, taken) = decode(&[2, 0, 0, 1, 0, 0], 100).unwrap().unwrap();
        assert_eq!((packet.body, taken), (&[0u8][..], 5), "P11");
    }

    #[test]
    fn the_limit_is_judged_on_the_header_alone() {
        assert_eq!(decode(&[4, 0, 0, 100], 100), Ok(None));
        let refused = PacketError::TooLarge { announced_bytes: 101, limit_bytes: 100 };
        assert_eq!(decode(&[4, 0, 0, 101], 100), Err(refused));
    }

    #[test]
    fn the_largest_body_passes_and_one_byte_more_does_not() {
        let body = vec![7u8; BODY_BYTES_MAX];
        let mut out = Vec::new();
        encode(PacketType::Data, &body, &mut out).unwrap();
        assert_eq!(out[..4], [4, 0xff, 0xff, 0xff], "P13");
        let (packet, taken) = decode(&out, BODY_BYTES_MAX).unwrap().unwrap();
        assert_eq!((packet.body.len(), taken), (BODY_BYTES_MAX, out.len()));

        let longer = vec![7u8; BODY_BYTES_MAX + 1];
        let mut untouched = vec![9];
        assert!(encode(PacketType::Data, &longer, &mut untouched).is_err());
        assert_eq!(untouched, [9]);
    }
}
