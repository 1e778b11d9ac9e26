//! The wire: bytes of one client in, packets out, and packets framed for the way back; TCP and WebSocket.
//!
//! It finds whole packets in whatever the socket gives: straight out of the receive buffer when a packet lies there
//! whole, through `partial` when it was cut. It knows nothing of what packets mean. The invariant: `partial` holds
//! less than one packet (or frame) and never more than the size limit, so memory follows bytes that came, not bytes
//! that were announced.

use shared::close::CloseReason;
use shared::packet::{self, Packet, PacketError, PacketType};
use shared::websocket::frame::{self, Decoder, DecoderState, FrameLimits, Incoming, Opcode, Role};
use shared::websocket::upgrade::{self, RequestHead, Upgrade, UpgradeLimits};

/// What a listener speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// Pitaya packets on the TCP stream.
    Tcp,
    /// Pitaya packets in WebSocket messages.
    WebSocket,
}

/// Sizes and switches that all connections share.
pub struct WireLimits {
    /// Largest packet body, bytes.
    pub packet_bytes_max: usize,
    /// Bounds of the HTTP upgrade.
    pub upgrade: UpgradeLimits,
    /// Bounds of WebSocket frames and messages.
    pub frames: FrameLimits,
    /// What is in WebSocket messages.
    pub content: Content,
}

/// What WebSocket messages carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// Pitaya packets.
    Packets,
    /// Anything, to be sent back as it came. For suites that test the framing itself; no configuration sets it.
    Echo,
}

/// What the wire found.
pub enum Found<'a> {
    /// A whole packet.
    Packet(Packet<'a>),
    /// The HTTP upgrade; frames from here on, in both directions.
    Upgraded {
        /// The answer to it.
        answer: &'a [u8],
        /// Who asked.
        head: &'a RequestHead,
    },
    /// A message to be sent back, with [`Content::Echo`].
    Echo(Opcode, &'a [u8]),
    /// Bytes that the wire itself has to answer with: a pong.
    Answer(&'a [u8]),
    /// Bytes to answer with, after which the connection ends: an HTTP error, a file, an echoed close frame.
    Farewell(&'a [u8], CloseReason),
    /// A request for a file of the demo page, on a listener that serves it.
    Page(&'a str),
}

/// The framing state of one connection.
pub struct Wire {
    stage: Stage,
    /// The front of a packet, head or frame whose rest has not come. Empty, without memory, most of the time.
    partial: Vec<u8>,
}

enum Stage {
    Tcp,
    /// The HTTP upgrade has not been answered.
    Upgrade,
    WebSocket(Decoder),
}

/// A wire on its way to another reactor.
pub struct WireState {
    /// Which protocol, and how far it is.
    pub stage: StageState,
    /// Bytes that have come and are not a whole packet.
    pub partial: Vec<u8>,
}

/// [`WireState`]'s stage.
pub enum StageState {
    /// Packets on TCP.
    Tcp,
    /// Before the answer to the upgrade.
    Upgrade,
    /// An open WebSocket, with its fragments.
    WebSocket(DecoderState),
}

impl Wire {
    /// A fresh connection.
    pub fn new(protocol: Protocol) -> Self {
        let stage = match protocol {
            Protocol::Tcp => Stage::Tcp,
            Protocol::WebSocket => Stage::Upgrade,
        };
        Self { stage, partial: Vec::new() }
    }

    /// Whether packets to this client go into WebSocket frames.
    pub fn is_web_socket(&self) -> bool {
        matches!(self.stage, Stage::WebSocket(_))
    }

    /// Walks over what came; each finding goes to `sink`, which may end the walk with a reason to close.
    ///
    /// Errors: the first reason to close, from the bytes or from `sink`.
    pub fn handle_bytes(
        &mut self,
        bytes: &mut [u8],
        limits: &WireLimits,
        sink: &mut impl FnMut(Found<'_>) -> Result<(), CloseReason>,
    ) -> Result<(), CloseReason> {
        if self.partial.is_empty() {
            let taken = self.walk(bytes, limits, sink)?;
            if let Some(rest) = bytes.get(taken..) {
                self.partial.extend_from_slice(rest);
            }
            return Ok(());
        }
        let mut joined = std::mem::take(&mut self.partial);
        joined.extend_from_slice(bytes);
        let taken = self.walk(&mut joined, limits, sink)?;
        if taken < joined.len() {
            joined.drain(..taken);
            self.partial = joined;
        }
        Ok(())
    }

    /// Takes whole things off the front; returns how many bytes they took.
    fn walk(
        &mut self,
        bytes: &mut [u8],
        limits: &WireLimits,
        sink: &mut impl FnMut(Found<'_>) -> Result<(), CloseReason>,
    ) -> Result<usize, CloseReason> {
        let mut taken = 0;
        while let Some(rest) = bytes.get_mut(taken..).filter(|rest| !rest.is_empty()) {
            let step = match &mut self.stage {
                Stage::Tcp => take_packet(rest, limits, sink)?,
                Stage::WebSocket(decoder) => take_frame(decoder, rest, limits, sink)?,
                Stage::Upgrade => match take_upgrade(rest, limits, sink)? {
                    Some((consumed, true)) => {
                        self.stage = Stage::WebSocket(Decoder::new(Role::Server));
                        Some(consumed)
                    }
                    other => other.map(|(consumed, _)| consumed),
                },
            };
            match step {
                Some(consumed) => taken += consumed,
                None => break,
            }
        }
        Ok(taken)
    }

    /// Keeps bytes that came while the connection is being moved, to be walked over at the new place.
    pub fn keep(&mut self, bytes: &[u8]) {
        self.partial.extend_from_slice(bytes);
    }

    /// Packs the wire for its way.
    pub fn freeze(self) -> WireState {
        let stage = match self.stage {
            Stage::Tcp => StageState::Tcp,
            Stage::Upgrade => StageState::Upgrade,
            Stage::WebSocket(decoder) => StageState::WebSocket(decoder.freeze()),
        };
        WireState { stage, partial: self.partial }
    }

    /// Unpacks a wire.
    pub fn resume(frozen: WireState) -> Self {
        let stage = match frozen.stage {
            StageState::Tcp => Stage::Tcp,
            StageState::Upgrade => Stage::Upgrade,
            StageState::WebSocket(decoder) => Stage::WebSocket(Decoder::resume(decoder)),
        };
        Self { stage, partial: frozen.partial }
    }

    /// Bytes that came and wait for more, for memory accounts.
    pub fn partial_bytes(&self) -> usize {
        let fragments = match &self.stage {
            Stage::WebSocket(decoder) => decoder.partial_bytes(),
            Stage::Tcp | Stage::Upgrade => 0,
        };
        self.partial.len() + fragments
    }
}

fn take_packet(
    bytes: &[u8],
    limits: &WireLimits,
    sink: &mut impl FnMut(Found<'_>) -> Result<(), CloseReason>,
) -> Result<Option<usize>, CloseReason> {
    match packet::decode(bytes, limits.packet_bytes_max) {
        Ok(Some((packet, consumed))) => {
            sink(Found::Packet(packet))?;
            Ok(Some(consumed))
        }
        Ok(None) => Ok(None),
        Err(PacketError::TooLarge { .. }) => Err(CloseReason::TooLarge),
        Err(_) => Err(CloseReason::BadPacket),
    }
}

fn take_frame(
    decoder: &mut Decoder,
    bytes: &mut [u8],
    limits: &WireLimits,
    sink: &mut impl FnMut(Found<'_>) -> Result<(), CloseReason>,
) -> Result<Option<usize>, CloseReason> {
    let is_echo = limits.content == Content::Echo;
    let kind = if is_echo { message_kind(decoder, bytes) } else { Opcode::Binary };
    let found =
        decoder.decode(bytes, &limits.frames).map_err(|error| match error.close_code() {
            1007 => CloseReason::Utf8,
            1009 => CloseReason::TooLarge,
            _ => CloseReason::WebSocketProtocol,
        })?;
    let Some((incoming, consumed)) = found else { return Ok(None) };
    match incoming {
        Incoming::Message(message) if is_echo => sink(Found::Echo(kind, message))?,
        Incoming::Message(message) => take_message(message, limits, sink)?,
        Incoming::Ping(payload) => {
            let mut answer = Vec::new();
            frame::pong_frame(payload, &mut answer);
            sink(Found::Answer(&answer))?;
        }
        Incoming::Pong | Incoming::Continue => {}
        Incoming::Close { reply, .. } => {
            sink(Found::Farewell(reply.as_bytes(), CloseReason::PeerClosed))?;
        }
    }
    Ok(Some(consumed))
}

/// Text or binary, of the message that the next data frame belongs to.
fn message_kind(decoder: &Decoder, bytes: &[u8]) -> Opcode {
    let is_text = bytes.first().is_some_and(|first| first & 0x0f == Opcode::Text as u8);
    let fresh = if is_text { Opcode::Text } else { Opcode::Binary };
    decoder.open_kind().unwrap_or(fresh)
}

/// One message holds one packet, or several whole ones; never a part of one (client protocol 12).
fn take_message(
    message: &[u8],
    limits: &WireLimits,
    sink: &mut impl FnMut(Found<'_>) -> Result<(), CloseReason>,
) -> Result<(), CloseReason> {
    let mut rest = message;
    loop {
        match take_packet(rest, limits, sink)? {
            Some(consumed) => rest = rest.get(consumed..).unwrap_or_default(),
            None => return Err(CloseReason::BadPacket),
        }
        if rest.is_empty() {
            return Ok(());
        }
    }
}

/// Bytes taken, and whether the connection is a WebSocket from here on.
fn take_upgrade(
    bytes: &[u8],
    limits: &WireLimits,
    sink: &mut impl FnMut(Found<'_>) -> Result<(), CloseReason>,
) -> Result<Option<(usize, bool)>, CloseReason> {
    match upgrade::accept(bytes, &limits.upgrade) {
        Upgrade::Incomplete => Ok(None),
        Upgrade::Accepted { consumed, response, head } => {
            sink(Found::Upgraded { answer: &response, head: &head })?;
            Ok(Some((consumed, true)))
        }
        Upgrade::PlainGet { path, .. } => {
            sink(Found::Page(&path))?;
            Ok(Some((bytes.len(), false)))
        }
        Upgrade::Refused { response } => {
            sink(Found::Farewell(&response, CloseReason::WebSocketProtocol))?;
            Ok(Some((bytes.len(), false)))
        }
    }
}

/// Bytes that [`frame_packet`] will append for a packet body of this length.
pub fn framed_bytes(is_web_socket: bool, body_bytes: usize) -> usize {
    let packet_bytes = packet::HEADER_BYTES + body_bytes;
    let head_bytes = if is_web_socket { frame::head_bytes(packet_bytes) } else { 0 };
    head_bytes + packet_bytes
}

/// Appends the frame head and the packet header for a body of `body_bytes`, which the caller appends next.
///
/// Errors: a body above the 24-bit length field.
pub fn frame_packet(
    is_web_socket: bool,
    kind: PacketType,
    body_bytes: usize,
    out: &mut Vec<u8>,
) -> Result<(), PacketError> {
    let header = packet::header(kind, body_bytes)?;
    if is_web_socket {
        frame::frame_head(Opcode::Binary, packet::HEADER_BYTES + body_bytes, None, out);
    }
    out.extend_from_slice(&header);
    Ok(())
}
