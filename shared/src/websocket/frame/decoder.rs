//! From a stream of frames to whole messages.
//!
//! The decoder keeps no input: a frame that is not complete stays in the caller's buffer, so freezing a connection
//! needs only those bytes and the pieces of an open fragmented message. The common case, one final masked frame, is
//! unmasked where it lies and handed out without copy or allocation. It does not answer: pongs and close frames are
//! the caller's to send, though a [`CloseReply`] comes ready-made.
//!
//! Invariant: while a message is open its pieces hold at most `message_bytes_max` bytes in at most `fragments_max`
//! frames, and text among them is UTF-8 up to a character that the last piece cut.

use super::{FrameError, FrameHead, Opcode, apply_mask, control_frame};

/// Pieces that one message may come in by default: above what real clients produce, below what makes empty
/// fragments a cheap way to burn time (hostile inputs 63).
pub const FRAGMENTS_MAX: u32 = 1024;

/// Which end of the connection this decoder serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Role {
    /// Reads frames of a client, which must be masked.
    Server,
    /// Reads frames of a server, which must not be.
    Client,
}

/// Bounds on what a peer may send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameLimits {
    /// Bytes of one message, whether in one frame or in fragments.
    pub message_bytes_max: usize,
    /// Frames of one message.
    pub fragments_max: u32,
}

impl FrameLimits {
    /// Messages of at most `message_bytes_max` bytes in at most [`FRAGMENTS_MAX`] frames.
    pub const fn new(message_bytes_max: usize) -> Self {
        Self { message_bytes_max, fragments_max: FRAGMENTS_MAX }
    }
}

/// One thing that arrived.
#[derive(Debug, PartialEq, Eq)]
pub enum Incoming<'a> {
    /// A whole message, text or binary alike; text was checked as UTF-8.
    Message(&'a [u8]),
    /// A ping, at most 125 bytes; answer with a pong that has the same payload.
    Ping(&'a [u8]),
    /// A pong. None is ever asked for, so there is nothing to do.
    Pong,
    /// The peer's close frame. Nothing after it is decoded.
    Close {
        /// The peer's code, if it gave one.
        code: Option<u16>,
        /// The frame to answer with, unless a close frame was sent already.
        reply: CloseReply,
    },
    /// A piece of a message was stored; the message is not complete.
    Continue,
}

/// A close frame that echoes the peer's code without a reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CloseReply {
    // Head, mask and code: at most 8 bytes.
    frame: [u8; 8],
    length: u8,
}

impl CloseReply {
    fn new(role: Role, code: Option<u16>) -> Self {
        // The mask guards intermediaries against payloads of the attacker's choice; a checked code is not one, so the
        // zero key serves.
        let mask = (role == Role::Client).then_some([0; 4]);
        let mut encoded = Vec::with_capacity(8);
        match code {
            Some(code) => control_frame(Opcode::Close, &code.to_be_bytes(), mask, &mut encoded),
            None => control_frame(Opcode::Close, &[], mask, &mut encoded),
        }
        let mut frame = [0; 8];
        for (to, from) in frame.iter_mut().zip(&encoded) {
            *to = *from;
        }
        Self { frame, length: encoded.len() as u8 }
    }

    /// The bytes to send, a whole frame.
    pub fn as_bytes(&self) -> &[u8] {
        self.frame.get(..usize::from(self.length)).unwrap_or_default()
    }
}

/// The frame decoder of one connection: 16 bytes while no fragmented message is open.
#[derive(Debug)]
pub struct Decoder {
    partial: Option<Box<Partial>>,
    role: Role,
    /// A close frame was read or a rule was broken; nothing is decoded any more.
    is_closed: bool,
}

/// The pieces of an open message, or of one that was just delivered.
#[derive(Debug)]
struct Partial {
    payload: Vec<u8>,
    /// Bytes at the front of `payload` that are known to be whole UTF-8 characters; unused for binary.
    utf8_bytes: usize,
    fragments: u32,
    is_text: bool,
    /// The last piece is in: the caller may be looking at `payload`, the next call drops it.
    is_delivered: bool,
}

/// What a decoder holds between frames, for handing a connection to another process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DecoderState {
    /// Which end the decoder serves.
    pub role: Role,
    /// Nothing more is to be decoded.
    pub is_closed: bool,
    /// The message that is open, if any.
    pub partial: Option<PartialMessage>,
}

/// The pieces of a fragmented message that is not complete.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartialMessage {
    /// Text, which must be UTF-8 as a whole.
    pub is_text: bool,
    /// Frames that it came in so far.
    pub fragments: u32,
    /// Their payloads, unmasked and joined.
    pub payload: Vec<u8>,
}

impl Decoder {
    /// A decoder for a connection on which no frame was read yet.
    pub fn new(role: Role) -> Self {
        Self { partial: None, role, is_closed: false }
    }

    /// Continues where [`freeze`](Self::freeze) stopped.
    pub fn resume(state: DecoderState) -> Self {
        let partial = state.partial.map(|open| {
            // Looked at again rather than trusted: the state came from another process.
            let utf8_bytes = match std::str::from_utf8(&open.payload) {
                Ok(text) => text.len(),
                Err(error) => error.valid_up_to(),
            };
            Box::new(Partial {
                utf8_bytes: if open.is_text { utf8_bytes } else { 0 },
                payload: open.payload,
                fragments: open.fragments,
                is_text: open.is_text,
                is_delivered: false,
            })
        });
        Self { partial, role: state.role, is_closed: state.is_closed }
    }

    /// Everything that is not in the caller's buffer.
    pub fn freeze(self) -> DecoderState {
        let open = self.partial.filter(|partial| !partial.is_delivered);
        let partial = open.map(|partial| PartialMessage {
            is_text: partial.is_text,
            fragments: partial.fragments,
            payload: partial.payload,
        });
        DecoderState { role: self.role, is_closed: self.is_closed, partial }
    }

    /// Text or binary, of the fragmented message that is open; `None` while none is.
    pub fn open_kind(&self) -> Option<Opcode> {
        let open = self.partial.as_ref().filter(|partial| !partial.is_delivered)?;
        Some(if open.is_text { Opcode::Text } else { Opcode::Binary })
    }

    /// Bytes of a fragmented message that wait for its rest, for memory accounts.
    pub fn partial_bytes(&self) -> usize {
        self.partial.as_ref().map_or(0, |partial| partial.payload.len())
    }

    /// Whether a close frame was read or a rule was broken: what follows is not decoded.
    pub fn is_closed(&self) -> bool {
        self.is_closed
    }

    /// Takes the next frame from the front of `bytes`, unmasking it in place, and says how many bytes it took.
    ///
    /// `Ok(None)` means that the frame is incomplete: call again with the same bytes and more behind them. Call until
    /// then even with an empty slice, for the memory of a fragmented message is freed by the call after its delivery.
    /// An error is final: send [`FrameError::close_code`] and close; later calls yield `Ok(None)`, as they do after
    /// [`Incoming::Close`].
    ///
    /// Costs no allocation for unfragmented messages; a fragmented one is copied together once.
    #[inline]
    pub fn decode<'a>(
        &'a mut self,
        bytes: &'a mut [u8],
        limits: &FrameLimits,
    ) -> Result<Option<(Incoming<'a>, usize)>, FrameError> {
        if self.partial.as_ref().is_some_and(|partial| partial.is_delivered) {
            self.partial = None;
        }
        if self.is_closed {
            return Ok(None);
        }
        let head = match FrameHead::decode(bytes).and_then(|head| self.check(head, limits)) {
            Ok(Some(head)) => head,
            Ok(None) => return Ok(None),
            Err(error) => return Err(self.refuse(error)),
        };
        // The limit, a usize, was checked above, so the length of this payload is one too.
        let frame_bytes = head.head_bytes.saturating_add(head.payload_bytes as usize);
        let Some(payload) = bytes.get_mut(head.head_bytes..frame_bytes) else {
            return Ok(None);
        };
        if let Some(key) = head.mask {
            apply_mask(payload, key);
        }
        let incoming = if head.opcode == Opcode::Binary && head.is_final {
            Incoming::Message(payload)
        } else {
            self.take(head, payload)?
        };
        Ok(Some((incoming, frame_bytes)))
    }

    /// The rules that need no payload: masks, order of fragments, limits.
    #[inline]
    fn check(
        &self,
        head: Option<FrameHead>,
        limits: &FrameLimits,
    ) -> Result<Option<FrameHead>, FrameError> {
        let Some(head) = head else {
            return Ok(None);
        };
        match (self.role, head.mask) {
            (Role::Server, None) => return Err(FrameError::Unmasked),
            (Role::Client, Some(_)) => return Err(FrameError::Masked),
            _ => {}
        }
        if head.opcode.is_control() {
            return Ok(Some(head));
        }
        let (stored_bytes, fragments) = match (&self.partial, head.opcode) {
            (None, Opcode::Continuation) => return Err(FrameError::UnexpectedContinuation),
            (Some(open), Opcode::Continuation) => (open.payload.len(), open.fragments),
            (Some(_), _) => return Err(FrameError::ExpectedContinuation),
            (None, _) => (0, 0),
        };
        let announced_bytes = head.payload_bytes.saturating_add(stored_bytes as u64);
        if announced_bytes > limits.message_bytes_max as u64 {
            let limit_bytes = limits.message_bytes_max;
            return Err(FrameError::TooLarge { announced_bytes, limit_bytes });
        }
        if fragments >= limits.fragments_max {
            return Err(FrameError::TooManyFragments { limit: limits.fragments_max });
        }
        Ok(Some(head))
    }

    /// Everything but the fast path.
    fn take<'a>(
        &'a mut self,
        head: FrameHead,
        payload: &'a [u8],
    ) -> Result<Incoming<'a>, FrameError> {
        match head.opcode {
            Opcode::Ping => Ok(Incoming::Ping(payload)),
            Opcode::Pong => Ok(Incoming::Pong),
            Opcode::Close => {
                self.is_closed = true;
                self.partial = None;
                let code = decode_close(payload)?;
                Ok(Incoming::Close { code, reply: CloseReply::new(self.role, code) })
            }
            Opcode::Text if head.is_final => match std::str::from_utf8(payload) {
                Ok(_) => Ok(Incoming::Message(payload)),
                Err(_) => Err(self.refuse(FrameError::InvalidUtf8)),
            },
            Opcode::Text | Opcode::Binary | Opcode::Continuation => self.take_piece(head, payload),
        }
    }

    fn take_piece(&mut self, head: FrameHead, payload: &[u8]) -> Result<Incoming<'_>, FrameError> {
        let is_text = head.opcode == Opcode::Text;
        let open = self.partial.get_or_insert_with(|| Box::new(Partial::open(is_text)));
        if !open.append(payload, head.is_final) {
            return Err(self.refuse(FrameError::InvalidUtf8));
        }
        open.is_delivered = head.is_final;
        // The borrow of `open` would outlive the refusal above; the message is looked up again.
        match &self.partial {
            Some(whole) if whole.is_delivered => Ok(Incoming::Message(&whole.payload)),
            _ => Ok(Incoming::Continue),
        }
    }

    /// Shuts the decoder and frees what it held.
    #[cold]
    fn refuse(&mut self, error: FrameError) -> FrameError {
        self.is_closed = true;
        self.partial = None;
        error
    }

    /// Asserts the invariant of this file's header; for tests.
    pub fn check_invariants(&self, limits: &FrameLimits) {
        let Some(open) = &self.partial else { return };
        assert!(!self.is_closed, "a closed decoder holds no pieces");
        assert!(open.payload.len() <= limits.message_bytes_max);
        assert!((1..=limits.fragments_max).contains(&open.fragments));
        assert!(open.utf8_bytes <= open.payload.len());
        // A cut character is at most three of its four bytes long.
        assert!(!open.is_text || open.payload.len() - open.utf8_bytes <= 3);
    }
}

impl Partial {
    fn open(is_text: bool) -> Self {
        Self { payload: Vec::new(), utf8_bytes: 0, fragments: 0, is_text, is_delivered: false }
    }

    /// Stores a piece; false if the text so far cannot become UTF-8.
    fn append(&mut self, piece: &[u8], is_last: bool) -> bool {
        self.payload.extend_from_slice(piece);
        self.fragments = self.fragments.saturating_add(1);
        if !self.is_text {
            return true;
        }
        let unchecked = self.payload.get(self.utf8_bytes..).unwrap_or_default();
        match std::str::from_utf8(unchecked) {
            Ok(_) => {
                self.utf8_bytes = self.payload.len();
                true
            }
            // No length means that the end cut a character, which the next piece may complete.
            Err(error) if error.error_len().is_none() && !is_last => {
                self.utf8_bytes += error.valid_up_to();
                true
            }
            Err(_) => false,
        }
    }
}

fn decode_close(payload: &[u8]) -> Result<Option<u16>, FrameError> {
    let Some((code, reason)) = payload.split_first_chunk::<2>() else {
        return if payload.is_empty() { Ok(None) } else { Err(FrameError::CloseTooShort) };
    };
    let code = u16::from_be_bytes(*code);
    // RFC 6455 7.4 and its registry: 1004 is reserved, 1005, 1006 and 1015 are for local use only.
    if !matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999) {
        return Err(FrameError::CloseCode(code));
    }
    match std::str::from_utf8(reason) {
        Ok(_) => Ok(Some(code)),
        Err(_) => Err(FrameError::CloseReasonUtf8),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: FrameLimits = FrameLimits { message_bytes_max: 64, fragments_max: 4 };

    fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
        let key = [9, 8, 7, 6];
        let mut out = vec![first, 0x80 | payload.len() as u8];
        out.extend_from_slice(&key);
        let start = out.len();
        out.extend_from_slice(payload);
        apply_mask(&mut out[start..], key);
        out
    }

    #[test]
    fn an_idle_decoder_is_small() {
        assert!(size_of::<Decoder>() <= 16);
        assert!(size_of::<Option<Decoder>>() <= 64);
    }

    #[test]
    fn a_message_is_found_in_place_and_only_when_whole() {
        let mut bytes = frame(0x82, b"hello");
        let whole = bytes.len();
        bytes.extend_from_slice(&frame(0x81, "é".as_bytes()));
        let mut decoder = Decoder::new(Role::Server);
        for cut in 0..whole {
            assert_eq!(decoder.decode(&mut bytes[..cut], &LIMITS), Ok(None), "cut at {cut}");
        }
        let place = bytes[6..].as_ptr();
        let (incoming, taken) = decoder.decode(&mut bytes, &LIMITS).unwrap().unwrap();
        let Incoming::Message(message) = incoming else { panic!("{incoming:?}") };
        assert_eq!((message, message.as_ptr(), taken), (&b"hello"[..], place, whole));
        let next = decoder.decode(&mut bytes[whole..], &LIMITS).unwrap().unwrap();
        assert_eq!(next.0, Incoming::Message("é".as_bytes()));
    }

    #[test]
    fn pieces_are_joined_around_control_frames_and_freed_by_the_next_call() {
        let mut decoder = Decoder::new(Role::Server);
        let steps: [(u8, &[u8], Incoming<'_>); 4] = [
            (0x01, &[b'a', 0xc3], Incoming::Continue),
            (0x89, b"ping", Incoming::Ping(b"ping")),
            (0x00, b"", Incoming::Continue),
            (0x80, &[0xa9, b'z'], Incoming::Message("aéz".as_bytes())),
        ];
        for (first, payload, expected) in steps {
            let mut bytes = frame(first, payload);
            assert_eq!(decoder.decode(&mut bytes, &LIMITS).unwrap().unwrap().0, expected);
            decoder.check_invariants(&LIMITS);
        }
        assert!(decoder.partial.is_some());
        assert_eq!(decoder.decode(&mut [], &LIMITS), Ok(None));
        assert!(decoder.partial.is_none());
    }

    #[test]
    fn a_cut_character_may_continue_but_a_broken_one_fails_at_once() {
        let mut decoder = Decoder::new(Role::Server);
        decoder.decode(&mut frame(0x01, &[0xf0, 0x9f]), &LIMITS).unwrap();
        let error = decoder.decode(&mut frame(0x00, &[0x41]), &LIMITS).unwrap_err();
        assert_eq!((error, error.close_code()), (FrameError::InvalidUtf8, 1007));
        assert!(decoder.is_closed());
        assert_eq!(decoder.decode(&mut frame(0x82, b"x"), &LIMITS), Ok(None));
    }

    #[test]
    fn the_limit_is_judged_by_the_head_alone() {
        for (head, announced_bytes) in [
            (&[0x82, 0xc1, 0, 0, 0, 0][..], 65),
            (&[0x82, 0xfe, 1, 0, 0, 0, 0, 0], 256),
            (&[0x02, 0xff, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0], 1 << 40),
        ] {
            let error = Decoder::new(Role::Server).decode(&mut head.to_vec(), &LIMITS).unwrap_err();
            assert_eq!(error, FrameError::TooLarge { announced_bytes, limit_bytes: 64 });
            assert_eq!(error.close_code(), 1009);
        }
        let mut full = frame(0x82, &[7; 64]);
        let mut decoder = Decoder::new(Role::Server);
        let (incoming, _) = decoder.decode(&mut full, &LIMITS).unwrap().unwrap();
        assert_eq!(incoming, Incoming::Message(&[7; 64]));
    }

    #[test]
    fn pieces_count_towards_the_limits_of_their_message() {
        let mut decoder = Decoder::new(Role::Server);
        decoder.decode(&mut frame(0x02, &[0; 60]), &LIMITS).unwrap();
        let error = decoder.decode(&mut frame(0x00, &[0; 5]), &LIMITS).unwrap_err();
        assert_eq!(error, FrameError::TooLarge { announced_bytes: 65, limit_bytes: 64 });

        let mut decoder = Decoder::new(Role::Server);
        decoder.decode(&mut frame(0x02, b""), &LIMITS).unwrap();
        for _ in 0..3 {
            decoder.decode(&mut frame(0x00, b""), &LIMITS).unwrap();
        }
        let error = decoder.decode(&mut frame(0x80, b""), &LIMITS).unwrap_err();
        assert_eq!(error, FrameError::TooManyFragments { limit: 4 });
        assert!(decoder.partial.is_none());
    }

    #[test]
    fn a_close_is_echoed_with_its_code_and_without_its_reason() {
        let mut decoder = Decoder::new(Role::Server);
        let mut bytes = frame(0x88, b"\x03\xe9going");
        let (incoming, _) = decoder.decode(&mut bytes, &LIMITS).unwrap().unwrap();
        let Incoming::Close { code, reply } = incoming else { panic!("{incoming:?}") };
        assert_eq!((code, reply.as_bytes()), (Some(1001), &[0x88, 2, 0x03, 0xe9][..]));

        let mut client = Decoder::new(Role::Client);
        let mut bytes = [0x88, 0];
        let (incoming, _) = client.decode(&mut bytes, &LIMITS).unwrap().unwrap();
        let Incoming::Close { code, reply } = incoming else { panic!("{incoming:?}") };
        assert_eq!((code, reply.as_bytes()), (None, &[0x88, 0x80, 0, 0, 0, 0][..]));
    }

    #[test]
    fn a_frozen_decoder_goes_on_where_it_was() {
        let mut decoder = Decoder::new(Role::Server);
        decoder.decode(&mut frame(0x01, &[b'a', 0xe2, 0x82]), &LIMITS).unwrap();
        let state = decoder.freeze();
        let open = PartialMessage { is_text: true, fragments: 1, payload: vec![b'a', 0xe2, 0x82] };
        assert_eq!(state.partial, Some(open));
        let mut decoder = Decoder::resume(state);
        let mut last = frame(0x80, &[0xac]);
        let (incoming, _) = decoder.decode(&mut last, &LIMITS).unwrap().unwrap();
        assert_eq!(incoming, Incoming::Message("a€".as_bytes()));
        // What was delivered is not carried over.
        assert_eq!(decoder.freeze().partial, None);
    }
}
