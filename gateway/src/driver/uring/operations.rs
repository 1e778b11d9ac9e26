//! What the kernel holds of one socket, and what is to be done next. Pure: no system call, no clock.
//!
//! A socket has two operations at most: its input (a multishot accept or receive) and its output (a
//! send). Every change only records a wish; [`Operations::poll_step`] compares wishes with what is in
//! flight and says the next step, so that no order of requests and completions needs a case of its own.
//!
//! Invariant: `Close` and `Leave` are said only when nothing is in flight.

/// Where an operation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flight {
    Idle,
    Flying,
    /// Its last completion is still to come, whatever the cancellation itself reports.
    Cancelling,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Open,
    /// To be handed out when quiet.
    Leaving,
    /// Quiet; waits in the event queue to be handed out.
    Left,
    /// The caller has forgotten it; to be closed when quiet.
    Closing,
}

/// What is to be done for a socket. Saying it counts as done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    StartInput,
    CancelInput,
    CancelOutput,
    /// Close the descriptor and vacate the slot.
    Close,
    /// Queue the descriptor for the caller.
    Leave,
}

/// The accounts of one socket.
#[derive(Debug)]
#[expect(clippy::struct_excessive_bools, reason = "independent reasons not to receive")]
pub(super) struct Operations {
    input: Flight,
    output: Flight,
    phase: Phase,
    is_paused: bool,
    is_resting: bool,
    is_starved: bool,
    has_ended: bool,
}

impl Operations {
    pub(super) fn new() -> Self {
        Self {
            input: Flight::Idle,
            output: Flight::Idle,
            phase: Phase::Open,
            is_paused: false,
            is_resting: false,
            is_starved: false,
            has_ended: false,
        }
    }

    /// The caller does not want input (or does again).
    pub(super) fn set_paused(&mut self, is_paused: bool) {
        self.is_paused = is_paused;
    }

    /// A listener waits after a failure (or is done with that).
    pub(super) fn set_resting(&mut self, is_resting: bool) {
        self.is_resting = is_resting;
    }

    /// There was no buffer (or there may be one again).
    pub(super) fn set_starved(&mut self, is_starved: bool) {
        self.is_starved = is_starved;
    }

    /// Nothing more will come in.
    pub(super) fn set_ended(&mut self) {
        self.has_ended = true;
    }

    /// Hand out when quiet. Nothing happens to one that is on its way out.
    pub(super) fn leave(&mut self) {
        if self.phase == Phase::Open {
            self.phase = Phase::Leaving;
        }
    }

    /// Close when quiet; stronger than `leave`.
    pub(super) fn close(&mut self) {
        self.phase = Phase::Closing;
    }

    /// Whether a send may begin now.
    pub(super) fn can_start_output(&self) -> bool {
        self.phase == Phase::Open && self.output == Flight::Idle
    }

    /// A send was handed over.
    pub(super) fn start_output(&mut self) {
        debug_assert!(self.can_start_output(), "one send at a time, on an open socket");
        self.output = Flight::Flying;
    }

    pub(super) fn has_output(&self) -> bool {
        self.output != Flight::Idle
    }

    pub(super) fn is_open(&self) -> bool {
        self.phase == Phase::Open
    }

    /// Whether the caller still wants to hear of the socket.
    pub(super) fn is_heard(&self) -> bool {
        self.phase != Phase::Closing
    }

    /// A completion of the input; `is_last` when the kernel has let go of it.
    pub(super) fn handle_input(&mut self, is_last: bool) {
        debug_assert_ne!(self.input, Flight::Idle, "a completion without an operation");
        if is_last {
            self.input = Flight::Idle;
        }
    }

    /// The completion of the output.
    pub(super) fn handle_output(&mut self) {
        debug_assert_ne!(self.output, Flight::Idle, "a completion without an operation");
        self.output = Flight::Idle;
    }

    /// A cancellation did not find the input: it has completed, or it was just between two waits in
    /// the kernel and goes on. If its last completion does not come, it is cancelled again.
    pub(super) fn handle_missed_input(&mut self) {
        if self.input == Flight::Cancelling {
            self.input = Flight::Flying;
        }
    }

    /// The same for the output.
    pub(super) fn handle_missed_output(&mut self) {
        if self.output == Flight::Cancelling {
            self.output = Flight::Flying;
        }
    }

    /// What is to be done next; call it until there is nothing after each change.
    pub(super) fn poll_step(&mut self) -> Option<Step> {
        match (self.input, self.wants_input()) {
            (Flight::Idle, true) => {
                self.input = Flight::Flying;
                return Some(Step::StartInput);
            }
            (Flight::Flying, false) => {
                self.input = Flight::Cancelling;
                return Some(Step::CancelInput);
            }
            _ => {}
        }
        if self.phase == Phase::Open {
            return None;
        }
        if self.output == Flight::Flying {
            self.output = Flight::Cancelling;
            return Some(Step::CancelOutput);
        }
        if self.input != Flight::Idle || self.output != Flight::Idle {
            return None;
        }
        match self.phase {
            Phase::Closing => Some(Step::Close),
            Phase::Leaving => {
                self.phase = Phase::Left;
                Some(Step::Leave)
            }
            Phase::Open | Phase::Left => None,
        }
    }

    fn wants_input(&self) -> bool {
        self.phase == Phase::Open
            && !(self.is_paused || self.is_resting || self.is_starved || self.has_ended)
    }
}

#[cfg(test)]
mod tests;
