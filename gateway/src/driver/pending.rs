//! What a driver keeps for a socket and for the caller until the time comes; the same for both.

use super::{Event, Token};

/// What a socket is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    Listener,
    Stream,
}

/// A send that is in flight, or waits for room.
pub(super) struct Outgoing {
    pub(super) buffer: Vec<u8>,
    /// Below `buffer.len()`.
    pub(super) start: usize,
}

/// An event that waits to be taken.
pub(super) enum Queued {
    Event(Event),
    /// Everything before it concerns the socket; when it is taken, the socket leaves.
    Leave(Token),
}
