//! Packets in and out of a byte stream, for TCP and for WebSocket frames alike.
//!
//! Pure: bytes in, packets out; whoever owns the socket calls it. It knows neither handshake nor message, and does not
//! speak the WebSocket upgrade (`upgrade`). Between calls `partial` holds the beginning of at most one packet or
//! frame and nothing else, so an idle connection keeps no buffer.

use shared::dictionary::Dictionary;
use shared::message::{self, Head, MessageError};
use shared::packet::{self, Packet, PacketError, PacketType};
use shared::websocket::{
    Decoder, FrameError, FrameLimits, Incoming, Opcode, Role, apply_mask, frame_head,
};

use crate::address::Transport;

/// What arrived.
#[derive(Debug, PartialEq, Eq)]
pub enum Received<'a> {
    /// A whole packet.
    Packet(Packet<'a>),
    /// The server's WebSocket close frame; the answer to it is already in the output.
    Close {
        /// Status code, when the frame carried one.
        code: Option<u16>,
    },
}

/// Why a stream cannot be read on; the connection is to be closed.
#[derive(Debug, thiserror::Error)]
pub enum FramingError {
    /// Not a packet.
    #[error("the server sent a broken packet: {0}")]
    Packet(#[from] PacketError),
    /// Not a WebSocket frame.
    #[error("the server sent a broken WebSocket frame: {0}")]
    Frame(#[from] FrameError),
    /// A WebSocket message ended inside a packet (client protocol 12 allows whole packets only).
    #[error("a WebSocket message ended {left_bytes} bytes into a packet")]
    SplitPacket {
        /// Bytes behind the last whole packet, at least 1.
        left_bytes: usize,
    },
}

/// Why something cannot be sent; the connection is unharmed.
#[derive(Debug, thiserror::Error)]
pub enum EncodeError {
    /// The packet would be too large.
    #[error("the message does not fit a packet: {0}")]
    Packet(#[from] PacketError),
    /// The route is too long.
    #[error("the message cannot be encoded: {0}")]
    Message(#[from] MessageError),
}

/// One connection's framing.
#[derive(Debug)]
pub struct Framing {
    decoder: Option<Decoder>,
    partial: Vec<u8>,
    body_bytes_max: usize,
}

impl Framing {
    /// Framing for packets of at most `body_bytes_max` bytes of body.
    pub fn new(transport: Transport, body_bytes_max: usize) -> Self {
        let decoder = match transport {
            Transport::Tcp => None,
            Transport::WebSocket => Some(Decoder::new(Role::Client)),
        };
        Self { decoder, partial: Vec::new(), body_bytes_max }
    }

    /// How the packets travel.
    pub fn transport(&self) -> Transport {
        if self.decoder.is_some() { Transport::WebSocket } else { Transport::Tcp }
    }

    /// Bytes of an unfinished packet or frame that are kept.
    pub fn partial_bytes(&self) -> usize {
        self.partial.len()
    }

    /// Takes what was read and gives every whole packet to `sink`, in order; `bytes` is scratch afterwards (frames are
    /// unmasked in place). Answers that WebSocket demands (pong, close) are appended to `out`.
    ///
    /// Copies only what belongs to an unfinished packet.
    pub fn handle_bytes(
        &mut self,
        bytes: &mut [u8],
        out: &mut Vec<u8>,
        sink: &mut impl FnMut(Received<'_>),
    ) -> Result<(), FramingError> {
        if self.partial.is_empty() {
            let taken = self.take_all(bytes, out, sink)?;
            self.partial.extend_from_slice(bytes.get(taken..).unwrap_or_default());
            return Ok(());
        }
        let mut joined = std::mem::take(&mut self.partial);
        joined.extend_from_slice(bytes);
        let taken = self.take_all(&mut joined, out, sink)?;
        if taken < joined.len() {
            joined.drain(..taken);
            self.partial = joined;
        }
        Ok(())
    }

    fn take_all(
        &mut self,
        bytes: &mut [u8],
        out: &mut Vec<u8>,
        sink: &mut impl FnMut(Received<'_>),
    ) -> Result<usize, FramingError> {
        match &mut self.decoder {
            None => take_packets(bytes, self.body_bytes_max, sink),
            Some(decoder) => take_frames(decoder, bytes, self.body_bytes_max, out, sink),
        }
    }
}

/// Appends a packet with this body, in a frame of its own on WebSocket.
pub fn append_packet(
    transport: Transport,
    kind: PacketType,
    body: &[u8],
    out: &mut Vec<u8>,
) -> Result<(), EncodeError> {
    let header = packet::header(kind, body.len())?;
    append_packets(transport, packet::HEADER_BYTES + body.len(), out, |out| {
        out.extend_from_slice(&header);
        out.extend_from_slice(body);
    });
    Ok(())
}

/// Appends a Data packet with this message; `payload` is sent as it is, deflated already if `head` says so. On an
/// error nothing is appended.
pub fn append_message(
    transport: Transport,
    head: &Head<'_>,
    payload: &[u8],
    dictionary: &Dictionary,
    out: &mut Vec<u8>,
) -> Result<(), EncodeError> {
    let body_bytes = message::head_bytes(head, dictionary) + payload.len();
    let header = packet::header(PacketType::Data, body_bytes)?;
    let length_before = out.len();
    let mut result = Ok(());
    append_packets(transport, packet::HEADER_BYTES + body_bytes, out, |out| {
        out.extend_from_slice(&header);
        result = message::encode_head(head, dictionary, out);
        out.extend_from_slice(payload);
    });
    if result.is_err() {
        out.truncate(length_before);
    }
    Ok(result?)
}

/// Appends what `fill` appends, which must be `content_bytes` long, in a masked binary frame where one is needed.
fn append_packets(
    transport: Transport,
    content_bytes: usize,
    out: &mut Vec<u8>,
    fill: impl FnOnce(&mut Vec<u8>),
) {
    if transport == Transport::Tcp {
        fill(out);
        return;
    }
    let mask = fastrand::u32(..).to_ne_bytes();
    frame_head(Opcode::Binary, content_bytes, Some(mask), out);
    let start = out.len();
    fill(out);
    apply_mask(out.get_mut(start..).unwrap_or_default(), mask);
}

/// Appends a whole masked frame with these bytes; what they mean is the caller's business.
pub fn append_frame(opcode: Opcode, content: &[u8], out: &mut Vec<u8>) {
    let mask = fastrand::u32(..).to_ne_bytes();
    frame_head(opcode, content.len(), Some(mask), out);
    let start = out.len();
    out.extend_from_slice(content);
    apply_mask(out.get_mut(start..).unwrap_or_default(), mask);
}

fn take_packets(
    bytes: &[u8],
    body_bytes_max: usize,
    sink: &mut impl FnMut(Received<'_>),
) -> Result<usize, FramingError> {
    let mut taken = 0;
    while let Some(rest) = bytes.get(taken..).filter(|rest| !rest.is_empty()) {
        let Some((packet, packet_bytes)) = packet::decode(rest, body_bytes_max)? else { break };
        taken += packet_bytes;
        sink(Received::Packet(packet));
    }
    Ok(taken)
}

fn take_frames(
    decoder: &mut Decoder,
    bytes: &mut [u8],
    body_bytes_max: usize,
    out: &mut Vec<u8>,
    sink: &mut impl FnMut(Received<'_>),
) -> Result<usize, FramingError> {
    let limits = FrameLimits::new(body_bytes_max + packet::HEADER_BYTES);
    let mut taken = 0;
    // Also with nothing left: that frees the memory of a fragmented message.
    while let Some(rest) = bytes.get_mut(taken..) {
        let Some((incoming, frame_bytes)) = decoder.decode(rest, &limits)? else { break };
        taken += frame_bytes;
        match incoming {
            Incoming::Message(message) => {
                let whole_bytes = take_packets(message, body_bytes_max, sink)?;
                if whole_bytes < message.len() {
                    return Err(FramingError::SplitPacket {
                        left_bytes: message.len() - whole_bytes,
                    });
                }
            }
            Incoming::Ping(payload) => append_frame(Opcode::Pong, payload, out),
            Incoming::Pong | Incoming::Continue => {}
            Incoming::Close { code, reply } => {
                out.extend_from_slice(reply.as_bytes());
                sink(Received::Close { code });
            }
        }
    }
    Ok(taken)
}

#[cfg(test)]
mod tests {
    use shared::message::MessageType;

    use super::*;

    const BODY_BYTES_MAX: usize = 1000;

    type Packets = Vec<(PacketType, Vec<u8>)>;

    fn receive(framing: &mut Framing, bytes: &[u8]) -> Result<Packets, FramingError> {
        let mut packets = Packets::new();
        let mut out = Vec::new();
        framing.handle_bytes(&mut bytes.to_vec(), &mut out, &mut |received| match received {
            Received::Packet(packet) => packets.push((packet.kind, packet.body.to_vec())),
            Received::Close { code } => panic!("closed with {code:?}"),
        })?;
        Ok(packets)
    }

    /// What a server sends: packets as they are, or each in a frame without mask.
    fn served(transport: Transport, packets: &Packets) -> Vec<u8> {
        let mut stream = Vec::new();
        for (kind, body) in packets {
            if transport == Transport::WebSocket {
                let content_bytes = packet::HEADER_BYTES + body.len();
                frame_head(Opcode::Binary, content_bytes, None, &mut stream);
            }
            packet::encode(*kind, body, &mut stream).unwrap();
        }
        stream
    }

    #[test]
    fn packets_come_out_whole_whatever_the_pieces_they_arrive_in() {
        let packets: Packets = vec![
            (PacketType::Handshake, b"{}".to_vec()),
            (PacketType::Heartbeat, Vec::new()),
            (PacketType::Data, vec![7; 300]),
            (PacketType::Kick, Vec::new()),
        ];
        for transport in [Transport::Tcp, Transport::WebSocket] {
            let stream = served(transport, &packets);
            for piece_bytes in 1..=stream.len() {
                let mut framing = Framing::new(transport, BODY_BYTES_MAX);
                let mut received = Packets::new();
                for piece in stream.chunks(piece_bytes) {
                    received.extend(receive(&mut framing, piece).unwrap());
                }
                assert_eq!(received, packets);
                assert_eq!(framing.partial_bytes(), 0);
            }
        }
    }

    #[test]
    fn a_packet_of_the_largest_size_is_taken_and_one_byte_more_is_refused() {
        for transport in [Transport::Tcp, Transport::WebSocket] {
            let largest: Packets = vec![(PacketType::Data, vec![0; BODY_BYTES_MAX])];
            let mut framing = Framing::new(transport, BODY_BYTES_MAX);
            assert_eq!(receive(&mut framing, &served(transport, &largest)).unwrap(), largest);
            let larger: Packets = vec![(PacketType::Data, vec![0; BODY_BYTES_MAX + 1])];
            assert!(receive(&mut framing, &served(transport, &larger)).is_err());
        }
    }

    #[test]
    fn a_websocket_message_with_several_packets_is_taken_and_one_that_cuts_a_packet_is_refused() {
        let two = [[3, 0, 0, 0], [5, 0, 0, 0]].concat();
        let mut framing = Framing::new(Transport::WebSocket, BODY_BYTES_MAX);
        let mut stream = Vec::new();
        frame_head(Opcode::Binary, two.len(), None, &mut stream);
        stream.extend_from_slice(&two);
        assert_eq!(receive(&mut framing, &stream).unwrap().len(), 2);
        let mut stream = Vec::new();
        frame_head(Opcode::Binary, two.len() - 1, None, &mut stream);
        stream.extend_from_slice(&two[..two.len() - 1]);
        let error = receive(&mut framing, &stream).unwrap_err();
        assert!(matches!(error, FramingError::SplitPacket { left_bytes: 3 }), "{error}");
    }

    #[test]
    fn pings_and_closes_are_answered_with_masked_frames() {
        let mut framing = Framing::new(Transport::WebSocket, BODY_BYTES_MAX);
        let mut stream = Vec::new();
        frame_head(Opcode::Ping, 2, None, &mut stream);
        stream.extend_from_slice(b"hi");
        shared::websocket::close_frame(1001, &mut stream);
        let mut out = Vec::new();
        let mut closes = Vec::new();
        framing
            .handle_bytes(&mut stream, &mut out, &mut |received| match received {
                Received::Close { code } => closes.push(code),
                Received::Packet(packet) => panic!("{packet:?}"),
            })
            .unwrap();
        assert_eq!(closes, [Some(1001)]);
        let mut server = Decoder::new(Role::Server);
        let limits = FrameLimits::new(100);
        let (pong, taken) = server.decode(&mut out, &limits).unwrap().unwrap();
        assert_eq!(pong, Incoming::Pong);
        let (close, _) = server.decode(&mut out[taken..], &limits).unwrap().unwrap();
        assert!(matches!(close, Incoming::Close { code: Some(1001), .. }));
    }

    #[test]
    fn a_message_that_cannot_be_encoded_leaves_the_output_alone() {
        let route = "r".repeat(256);
        let head = Head {
            kind: MessageType::Notify,
            id: 0,
            route: &route,
            is_compressed: false,
            is_error: false,
        };
        for transport in [Transport::Tcp, Transport::WebSocket] {
            let mut out = b"before".to_vec();
            let dictionary = Dictionary::default();
            append_message(transport, &head, b"x", &dictionary, &mut out).unwrap_err();
            assert_eq!(out, b"before");
        }
    }
}
