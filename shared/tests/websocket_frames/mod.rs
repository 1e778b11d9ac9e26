//! What the WebSocket suites share: frames written by hand, right and wrong ones alike, and a run of the decoder over
//! a stream that arrives in pieces.

use shared::websocket::{Decoder, FrameLimits, Incoming, Role, apply_mask};

/// What came out of a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Event {
    Message(Vec<u8>),
    Ping(Vec<u8>),
    Pong,
    /// The peer's close frame, in order, with its code.
    Closed(Option<u16>),
    /// A broken rule and the close code it is answered with.
    Refused(u16),
}

/// A frame of the given first byte; the length takes the shortest form.
pub(crate) fn frame(first: u8, payload: &[u8], mask: Option<[u8; 4]>) -> Vec<u8> {
    let masked = if mask.is_some() { 0x80 } else { 0 };
    let mut out = vec![first];
    match payload.len() {
        short @ 0..=125 => out.push(masked | short as u8),
        middle @ 126..=0xffff => {
            out.push(masked | 0x7e);
            out.extend_from_slice(&(middle as u16).to_be_bytes());
        }
        long => {
            out.push(masked | 0x7f);
            out.extend_from_slice(&(long as u64).to_be_bytes());
        }
    }
    out.extend_from_slice(mask.as_ref().map_or(&[], |key| &key[..]));
    let start = out.len();
    out.extend_from_slice(payload);
    if let Some(key) = mask {
        apply_mask(&mut out[start..], key);
    }
    out
}

/// Decodes `chunks` as a connection would: what is not taken waits for the next chunk. Between chunks the decoder is
/// frozen and resumed, which nobody may notice.
pub(crate) fn run<'c>(
    role: Role,
    limits: &FrameLimits,
    chunks: impl IntoIterator<Item = &'c [u8]>,
) -> Vec<Event> {
    let mut decoder = Decoder::new(role);
    let mut pending = Vec::new();
    let mut events = Vec::new();
    for chunk in chunks {
        pending.extend_from_slice(chunk);
        loop {
            let taken = match decoder.decode(&mut pending, limits) {
                Ok(None) => break,
                Ok(Some((incoming, taken))) => {
                    match incoming {
                        Incoming::Message(message) => events.push(Event::Message(message.to_vec())),
                        Incoming::Ping(payload) => events.push(Event::Ping(payload.to_vec())),
                        Incoming::Pong => events.push(Event::Pong),
                        Incoming::Close { code, .. } => events.push(Event::Closed(code)),
                        Incoming::Continue => {}
                    }
                    taken
                }
                Err(error) => {
                    events.push(Event::Refused(error.close_code()));
                    assert_eq!(decoder.decode(&mut pending, limits), Ok(None), "stays shut");
                    return events;
                }
            };
            decoder.check_invariants(limits);
            pending.drain(..taken);
        }
        if decoder.is_closed() {
            return events;
        }
        decoder = Decoder::resume(decoder.freeze());
    }
    events
}
