//! Requests that wait for room in a window, in the order of their arrival, bounded in number and bytes.
//!
//! A request waits for any server of its type, or for the one server that it belongs to. Who waits where is decided in
//! targets.rs; the invariant here is that `bytes` is the sum of the payloads.

use std::collections::VecDeque;

use shared::session::SessionId;

use crate::driver::Token;

/// Payload bytes that wait in one queue at most.
const BYTES_MAX: usize = 16 << 20;

/// A request that waits for room in a window.
pub struct Waiting {
    /// Who asked.
    pub connection: Token,
    /// The session behind the token.
    pub session: SessionId,
    /// The client's message id.
    pub message_id: u64,
    /// The full route.
    pub route: Box<str>,
    /// The inflated payload.
    pub payload: Vec<u8>,
    /// When it arrived, µs.
    pub arrived_us: u64,
    /// When it is given up, ms.
    pub deadline_ms: u64,
    /// Whether nobody waits for an answer.
    pub is_notify: bool,
    /// The id of the server that the application's routing function chose.
    pub chosen: Option<Box<str>>,
    /// How many stood before it when it came; set by [`Queue::push`].
    pub place: u32,
}

/// What waits in one place.
#[derive(Default)]
pub struct Queue {
    waiting: VecDeque<Waiting>,
    bytes: usize,
    /// How long a place in the queue has lasted lately, µs; 0 before anything was known.
    place_us: u64,
}

impl Queue {
    /// Lets a request wait behind the others. Errors: `len_max` requests wait, or too many bytes, or it would wait for
    /// `age_max_us` or longer; it is given back.
    pub fn push(
        &mut self,
        mut waiting: Waiting,
        len_max: usize,
        age_max_us: u64,
    ) -> Result<(), Waiting> {
        if self.waiting.len() >= len_max
            || self.expected_us(waiting.arrived_us) >= age_max_us
            || self.bytes + waiting.payload.len() > BYTES_MAX
        {
            return Err(waiting);
        }
        waiting.place = self.waiting.len() as u32;
        self.bytes += waiting.payload.len();
        self.waiting.push_back(waiting);
        Ok(())
    }

    /// How long one that comes now would wait, as far as the queue tells: as long as its places last, and no less than
    /// the oldest has waited already. Nothing is known of an empty queue.
    fn expected_us(&self, now_us: u64) -> u64 {
        let Some(oldest) = self.waiting.front() else { return 0 };
        let by_place_us = (self.waiting.len() as u64 + 1).saturating_mul(self.place_us);
        now_us.saturating_sub(oldest.arrived_us).max(by_place_us)
    }

    /// The request whose turn it is; its wait tells how fast the queue moves.
    pub fn release(&mut self, now_us: u64) -> Option<Waiting> {
        let waiting = self.pop()?;
        let waited_us = now_us.saturating_sub(waiting.arrived_us);
        let place_us = waited_us / (u64::from(waiting.place) + 1);
        self.place_us =
            if self.place_us == 0 { place_us } else { self.place_us.midpoint(place_us) };
        Some(waiting)
    }

    /// Takes a request back that was here before, to the front and beyond the bounds.
    pub fn push_front(&mut self, waiting: Waiting) {
        self.bytes += waiting.payload.len();
        self.waiting.push_front(waiting);
    }

    fn pop(&mut self) -> Option<Waiting> {
        let waiting = self.waiting.pop_front()?;
        self.bytes -= waiting.payload.len();
        Some(waiting)
    }

    /// Gives up requests that are overdue. Deadlines are in the order of arrival.
    pub fn expire(&mut self, now_ms: u64, give_up: &mut impl FnMut(Waiting)) {
        while self.waiting.front().is_some_and(|waiting| now_ms >= waiting.deadline_ms) {
            let Some(waiting) = self.pop() else { break };
            give_up(waiting);
        }
    }

    /// Takes over everything that waits in another queue, behind what is here.
    pub fn append(&mut self, other: &mut Self) {
        self.bytes += std::mem::take(&mut other.bytes);
        self.waiting.append(&mut other.waiting);
    }

    /// Panics unless `bytes` is the sum of the payloads.
    #[cfg(feature = "simulation")]
    pub(crate) fn check_invariants(&self) {
        let bytes: usize = self.waiting.iter().map(|waiting| waiting.payload.len()).sum();
        assert_eq!(self.bytes, bytes, "bytes of waiting requests");
    }

    /// How many wait.
    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Whether nobody waits.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Follows connections to other places.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut Waiting> {
        self.waiting.iter_mut()
    }
}
