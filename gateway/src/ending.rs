//! The end of a connection: asked for, begun, lingering, over.
//!
//! It says what the next step is; the connection appends what the client is told, the reactor shuts and closes. The
//! invariant: an end that was asked for always comes to a close, at the latest at its deadline.

use shared::close::CloseReason;

/// After the last byte was sent, how long the client's FIN is waited for, ms. Closing with unread input would reset
/// the connection, and the client could lose what was sent last (client protocol 5.4).
pub const LINGER_MS: u64 = 1_000;

/// How far the end of one connection is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ending {
    /// Set from the moment that an end is asked for: nothing more is taken in or appended.
    is_asked: bool,
    closing: Option<Closing>,
    /// Whether the client's FIN has come.
    is_peer_done: bool,
    /// Whether the socket has failed: nothing will be sent any more.
    is_broken: bool,
}

/// An end that has begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Closing {
    /// Why.
    pub reason: CloseReason,
    /// Whether the write side is shut and the client's FIN is awaited.
    pub is_lingering: bool,
    /// When the socket is closed whatever happens, ms.
    pub deadline_ms: u64,
}

/// What to do with a connection that is ending.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CloseStep {
    /// Nothing yet.
    Wait,
    /// Shut the write side and wait for the client's FIN.
    ShutdownWrite,
    /// Close the socket.
    Close,
}

impl Ending {
    /// An end that began on another reactor; its deadline is taken over as it is, in the same process's clock.
    pub fn resume(closing: Option<Closing>) -> Self {
        Self { is_asked: closing.is_some(), closing, is_peer_done: false, is_broken: false }
    }

    /// Whether an end was asked for.
    pub fn is_asked(&self) -> bool {
        self.is_asked
    }

    /// Asks for the end.
    pub fn ask(&mut self) {
        self.is_asked = true;
    }

    /// The end that has begun.
    pub fn closing(&self) -> Option<Closing> {
        self.closing
    }

    /// Begins the end; false when it had begun before.
    pub fn begin(&mut self, reason: CloseReason, deadline_ms: u64) -> bool {
        if self.closing.is_some() {
            return false;
        }
        self.is_asked = true;
        self.closing = Some(Closing { reason, is_lingering: false, deadline_ms });
        true
    }

    /// The client's FIN has come: there is nothing to linger for.
    pub fn handle_peer_done(&mut self) {
        self.is_peer_done = true;
    }

    /// The socket has failed. It may have told its end before, in the same turn, as kernels do after a reset: then that
    /// reason stands, and there is still nothing to wait for.
    pub fn handle_broken(&mut self) {
        self.is_broken = true;
    }

    /// The next step of an end that has begun; `is_sent` says whether everything has left.
    pub fn poll(&mut self, is_sent: bool, now_ms: u64) -> CloseStep {
        let Some(closing) = &mut self.closing else { return CloseStep::Wait };
        if self.is_broken || now_ms >= closing.deadline_ms {
            return CloseStep::Close;
        }
        match (is_sent, self.is_peer_done) {
            (false, _) => CloseStep::Wait,
            (true, true) => CloseStep::Close,
            (true, false) if closing.is_lingering => CloseStep::Wait,
            (true, false) => {
                closing.is_lingering = true;
                closing.deadline_ms = now_ms + LINGER_MS;
                CloseStep::ShutdownWrite
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_flushes_then_shuts_then_waits_for_the_fin() {
        let mut ending = Ending::default();
        assert!(ending.begin(CloseReason::Kicked, 10_000));
        assert!(!ending.begin(CloseReason::IoError, 0), "the first reason stays");
        assert_eq!(ending.poll(false, 1), CloseStep::Wait);
        assert_eq!(ending.poll(true, 2), CloseStep::ShutdownWrite);
        assert_eq!(ending.poll(true, 3), CloseStep::Wait);
        ending.handle_peer_done();
        assert_eq!(ending.poll(true, 4), CloseStep::Close);
        assert_eq!(ending.closing().map(|closing| closing.reason), Some(CloseReason::Kicked));
    }

    #[test]
    fn an_end_closes_at_its_deadline_whatever_is_left() {
        let mut ending = Ending::default();
        ending.begin(CloseReason::BadPacket, 100);
        assert_eq!(ending.poll(false, 99), CloseStep::Wait);
        assert_eq!(ending.poll(false, 100), CloseStep::Close);
        let mut silent = Ending::default();
        silent.begin(CloseReason::BadPacket, 100);
        silent.poll(true, 0);
        assert_eq!(silent.poll(true, LINGER_MS), CloseStep::Close);
    }

    #[test]
    fn nothing_is_waited_for_on_a_broken_socket() {
        let mut ending = Ending::default();
        ending.ask();
        ending.handle_peer_done();
        ending.handle_broken();
        assert_eq!(ending.poll(false, 1), CloseStep::Wait, "the end has not begun");
        ending.begin(CloseReason::PeerClosed, 10_000);
        assert_eq!(ending.poll(false, 2), CloseStep::Close);
    }

    #[test]
    fn without_a_begin_there_is_no_step() {
        let mut ending = Ending::default();
        ending.ask();
        assert!(ending.is_asked());
        assert_eq!(ending.poll(true, u64::MAX), CloseStep::Wait);
    }
}
