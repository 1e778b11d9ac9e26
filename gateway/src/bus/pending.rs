//! Forwarded requests that wait for their answer, keyed by the reply token that went out with them.
//!
//! Tokens are recycled, because NATS servers keep a small cache of subjects and a fresh subject for each request costs
//! them up to half as much again (cluster protocol 23.2). Two things keep a late or second answer from reaching the
//! wrong player: a token comes back only after 256 others, as long as 32 requests in flight are enough, and the slot of
//! a request that timed out rests until its answer came or four timeouts have passed.

use std::collections::VecDeque;

use shared::metrics::RouteLabel;
use shared::session::SessionId;

use crate::driver::Token;

/// Requests in flight on one bus at most. Beyond it, requests are refused with PIT-503.
pub const PENDING_MAX: usize = 8_192;
/// A token carries these bits, which change with each use of its slot.
const GENERATION_BITS: u32 = 3;
const GENERATION_MASK: u32 = (1 << GENERATION_BITS) - 1;
/// Slots that are used in turn; those beyond are used newest first, so that a peak does not spread the subjects for
/// good. Together with the generations these are 256 subjects, which any NATS server's cache holds.
const ROTATING_SLOTS: usize = 32;
const REST_TIMEOUTS: u64 = 4;
/// Largest request whose bytes a slot keeps room for between uses.
const KEPT_BYTES_MAX: usize = 2_048;

/// A request under way.
#[derive(Debug)]
pub struct Pending {
    /// Who asked; the connection may have gone meanwhile, which its token tells.
    pub connection: Token,
    /// The session behind the token.
    pub session: SessionId,
    /// The client's message id.
    pub message_id: u64,
    /// The server that was asked.
    pub target: u32,
    /// When the message arrived, µs.
    pub arrived_us: u64,
    /// When the request was sent, ms.
    pub sent_ms: u64,
    /// When the answer is given up, ms.
    pub deadline_ms: u64,
    /// The metrics label of the route.
    pub route: RouteLabel,
    /// The route itself, when it has no label yet: a route earns one by its first good answer.
    pub unlabelled: Option<Box<str>>,
    /// Whether the request was sent a second time already.
    pub is_retry: bool,
}

#[derive(Debug, Default)]
enum State {
    #[default]
    Free,
    Busy(Pending),
    /// Timed out; a late answer may still come.
    Resting {
        until_ms: u64,
    },
}

#[derive(Debug, Default)]
struct Slot {
    generation: u32,
    state: State,
    /// The encoded request, kept where another server could take it if this one turns out not to listen.
    request: Vec<u8>,
    /// The batch that the request travelled in, and its place there; 0 for none.
    batch: (u64, usize),
}

/// All requests under way on one bus.
#[derive(Debug, Default)]
pub struct PendingTable {
    slots: Vec<Slot>,
    free: FreeSlots,
    busy: usize,
    /// Batches so far. Never begins anew, so a number means one batch only.
    batches: u64,
}

/// Slots that wait for a request.
#[derive(Debug, Default)]
struct FreeSlots {
    /// Those below [`ROTATING_SLOTS`], the one that has waited longest first.
    rotating: VecDeque<u32>,
    /// The others, the newest last.
    others: Vec<u32>,
}

/// What an answer's token led to.
pub enum Answered {
    /// The request, and its encoded bytes if they were kept (empty otherwise).
    Request(Pending, Vec<u8>),
    /// The request had timed out; its token is free again.
    Late,
    /// Nothing waits under this token: a second answer, or somebody's guess.
    Unknown,
}

impl PendingTable {
    /// Records a request; `None` when [`PENDING_MAX`] are under way. Allocates only while the table grows.
    pub fn insert(&mut self, pending: Pending) -> Option<u32> {
        // No slot comes back before all that rotate have been used.
        let recycled = if self.slots.len() < ROTATING_SLOTS { None } else { self.free.take() };
        let index = match recycled {
            Some(index) => index,
            None if self.slots.len() < PENDING_MAX => {
                self.slots.push(Slot::default());
                self.slots.len() as u32 - 1
            }
            None => return None,
        };
        let slot = self.slots.get_mut(index as usize)?;
        debug_assert!(matches!(slot.state, State::Free), "a slot in use stood on the free list");
        slot.generation = (slot.generation + 1) & GENERATION_MASK;
        slot.state = State::Busy(pending);
        slot.batch = (0, 0);
        self.busy += 1;
        Some(index << GENERATION_BITS | slot.generation)
    }

    /// The number of a new batch.
    pub fn next_batch(&mut self) -> u64 {
        self.batches += 1;
        self.batches
    }

    /// Notes that the request of `token` travels in a batch, behind `place` others.
    pub fn join(&mut self, token: u32, batch: u64, place: usize) {
        if let Some(slot) = self.busy_slot(token) {
            slot.batch = (batch, place);
        }
    }

    /// The requests under way that travelled in the same batch as `token`, in its order; none when `token` itself has
    /// been answered, since its batch has then reached somebody. Walks over all slots and allocates: for batches that met
    /// nobody.
    pub fn batch_of(&self, token: u32) -> Vec<u32> {
        let leader = self.slots.get((token >> GENERATION_BITS) as usize);
        let leader = leader.filter(|slot| slot.generation == token & GENERATION_MASK);
        // One that has timed out still tells which batch it was.
        let leader = leader.filter(|slot| !matches!(slot.state, State::Free));
        let Some((batch @ 1.., _)) = leader.map(|slot| slot.batch) else { return Vec::new() };
        let mut tokens: Vec<(usize, u32)> = (0..)
            .zip(&self.slots)
            .filter(|(_, slot)| slot.batch.0 == batch && matches!(slot.state, State::Busy(_)))
            .map(|(index, slot)| (slot.batch.1, index << GENERATION_BITS | slot.generation))
            .collect();
        tokens.sort_unstable();
        tokens.into_iter().map(|(_, token)| token).collect()
    }

    /// Where the encoded request of `token` is kept for a second try; empty at first.
    pub fn request_buffer(&mut self, token: u32) -> Option<&mut Vec<u8>> {
        self.busy_slot(token).map(|slot| &mut slot.request)
    }

    /// Takes the request that `token` answers.
    pub fn answer(&mut self, token: u32) -> Answered {
        let index = token >> GENERATION_BITS;
        let Some(slot) = self.slots.get_mut(index as usize) else { return Answered::Unknown };
        if slot.generation != token & GENERATION_MASK {
            return Answered::Unknown;
        }
        match std::mem::take(&mut slot.state) {
            State::Free => Answered::Unknown,
            State::Busy(pending) => {
                let request = std::mem::take(&mut slot.request);
                self.busy -= 1;
                self.free.give(index);
                Answered::Request(pending, request)
            }
            State::Resting { .. } => {
                self.free.give(index);
                Answered::Late
            }
        }
    }

    /// Gives the buffer of an answered request back to its slot, so that the next one allocates nothing.
    pub fn keep_buffer(&mut self, token: u32, mut buffer: Vec<u8>) {
        if buffer.capacity() > KEPT_BYTES_MAX {
            return;
        }
        buffer.clear();
        if let Some(slot) = self.slots.get_mut((token >> GENERATION_BITS) as usize)
            && slot.request.capacity() == 0
        {
            slot.request = buffer;
        }
    }

    /// Gives up what is overdue, and frees what has rested. Walks over all slots; called once a tick.
    pub fn expire(&mut self, now_ms: u64, timeout_ms: u64, give_up: impl FnMut(Pending)) {
        for (index, slot) in self.slots.iter_mut().enumerate() {
            if matches!(slot.state, State::Resting { until_ms } if now_ms >= until_ms) {
                slot.state = State::Free;
                self.free.give(index as u32);
            }
        }
        let is_overdue = |pending: &Pending| now_ms >= pending.deadline_ms;
        self.take_out(is_overdue, Some(now_ms + timeout_ms * REST_TIMEOUTS), give_up);
    }

    /// Gives up what a server will not answer any more: everything that was sent to `target` before `sent_ms`.
    pub fn give_up_sent(
        &mut self,
        target: u32,
        sent_ms: u64,
        (now_ms, timeout_ms): (u64, u64),
        give_up: impl FnMut(Pending),
    ) {
        let is_lost = |pending: &Pending| pending.target == target && pending.sent_ms < sent_ms;
        self.take_out(is_lost, Some(now_ms + timeout_ms * REST_TIMEOUTS), give_up);
    }

    /// Takes out what `is_over`. Its tokens rest for so long where an answer may yet come; otherwise they are free.
    fn take_out(
        &mut self,
        is_over: impl Fn(&Pending) -> bool,
        rest_until_ms: Option<u64>,
        mut give_up: impl FnMut(Pending),
    ) {
        for (index, slot) in self.slots.iter_mut().enumerate() {
            if !matches!(&slot.state, State::Busy(pending) if is_over(pending)) {
                continue;
            }
            let next = rest_until_ms.map_or(State::Free, |until_ms| State::Resting { until_ms });
            let State::Busy(pending) = std::mem::replace(&mut slot.state, next) else { continue };
            slot.request.clear();
            self.busy -= 1;
            if rest_until_ms.is_none() {
                self.free.give(index as u32);
            }
            give_up(pending);
        }
    }

    /// The servers that owe an answer to something that was sent before `sent_ms`, each once.
    pub fn silent_targets(&self, sent_ms: u64) -> Vec<u32> {
        let busy = self.slots.iter().filter_map(|slot| match &slot.state {
            State::Busy(pending) if pending.sent_ms < sent_ms => Some(pending.target),
            _ => None,
        });
        let mut targets: Vec<u32> = busy.collect();
        targets.sort_unstable();
        targets.dedup();
        targets
    }

    /// Gives up what `is_lost`: the link is gone, and with it the subject that answers would come to. What rests goes on
    /// resting, since it may be a request to the application of this process, which can still answer.
    pub fn fail_lost(&mut self, is_lost: impl Fn(&Pending) -> bool, give_up: impl FnMut(Pending)) {
        self.take_out(is_lost, None, give_up);
    }

    /// Requests under way.
    pub fn len(&self) -> usize {
        self.busy
    }

    /// Whether nothing is under way.
    pub fn is_empty(&self) -> bool {
        self.busy == 0
    }

    /// All requests under way, to follow their connections to other places.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut Pending> {
        self.slots.iter_mut().filter_map(|slot| match &mut slot.state {
            State::Busy(pending) => Some(pending),
            _ => None,
        })
    }

    fn busy_slot(&mut self, token: u32) -> Option<&mut Slot> {
        self.slots
            .get_mut((token >> GENERATION_BITS) as usize)
            .filter(|slot| slot.generation == token & GENERATION_MASK)
            .filter(|slot| matches!(slot.state, State::Busy(_)))
    }

    /// Every slot is busy, resting or on the free list, exactly once.
    #[cfg(any(test, feature = "simulation"))]
    pub(crate) fn check_invariants(&self) {
        let mut is_free = vec![false; self.slots.len()];
        for index in self.free.rotating.iter().chain(&self.free.others) {
            assert!(!std::mem::replace(&mut is_free[*index as usize], true), "listed twice");
        }
        let mut busy = 0;
        for (slot, listed) in self.slots.iter().zip(is_free) {
            assert_eq!(matches!(slot.state, State::Free), listed);
            busy += usize::from(matches!(slot.state, State::Busy(_)));
        }
        assert_eq!(busy, self.busy);
    }
}

impl FreeSlots {
    fn take(&mut self) -> Option<u32> {
        self.rotating.pop_front().or_else(|| self.others.pop())
    }

    fn give(&mut self, index: u32) {
        if (index as usize) < ROTATING_SLOTS {
            self.rotating.push_back(index);
        } else {
            self.others.push(index);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(deadline_ms: u64) -> Pending {
        Pending {
            connection: Token::from_bits(1),
            session: SessionId(1),
            message_id: 9,
            target: 0,
            arrived_us: 0,
            sent_ms: 0,
            deadline_ms,
            route: RouteLabel::OTHER,
            unlabelled: None,
            is_retry: false,
        }
    }

    #[test]
    fn an_answer_is_taken_once() {
        let mut table = PendingTable::default();
        let token = table.insert(request(10)).unwrap();
        assert!(
            matches!(table.answer(token), Answered::Request(pending, _) if pending.message_id == 9)
        );
        assert!(matches!(table.answer(token), Answered::Unknown));
        table.check_invariants();
    }

    fn slot(token: u32) -> u32 {
        token >> GENERATION_BITS
    }

    /// A table whose slots that rotate are all busy, so that free ones are recycled at once.
    fn rotated() -> PendingTable {
        let mut table = PendingTable::default();
        for _ in 0..ROTATING_SLOTS {
            table.insert(request(u64::MAX)).unwrap();
        }
        table
    }

    #[test]
    fn a_second_answer_does_not_reach_the_next_request_of_the_slot() {
        let mut table = rotated();
        let first = table.insert(request(10)).unwrap();
        table.answer(first);
        let second = table.insert(request(10)).unwrap();
        assert_eq!(slot(first), slot(second), "the slot is recycled");
        assert!(matches!(table.answer(first), Answered::Unknown));
        assert!(matches!(table.answer(second), Answered::Request(..)));
    }

    #[test]
    fn tokens_of_few_requests_come_back_after_256_others_and_never_more_are_used() {
        let mut table = PendingTable::default();
        let mut tokens = Vec::new();
        for _ in 0..1_024 {
            let token = table.insert(request(10)).unwrap();
            table.answer(token);
            tokens.push(token);
        }
        let (first, others) = tokens.split_at(256);
        assert_eq!(first.iter().collect::<std::collections::HashSet<_>>().len(), 256);
        assert!(others.chunks(256).all(|chunk| chunk == first));
        table.check_invariants();
    }

    #[test]
    fn a_timed_out_slot_rests_until_its_answer_came_or_four_timeouts_passed() {
        let mut table = rotated();
        let late = table.insert(request(10)).unwrap();
        let silent = table.insert(request(10)).unwrap();
        let mut given_up = 0;
        table.expire(10, 5, |_| given_up += 1);
        assert_eq!((given_up, table.len()), (2, ROTATING_SLOTS));
        assert!(matches!(table.answer(late), Answered::Late));
        assert_eq!(slot(table.insert(request(99)).unwrap()), slot(late));
        assert_ne!(slot(table.insert(request(99)).unwrap()), slot(silent));
        table.expire(29, 5, |_| panic!("nothing is overdue"));
        table.check_invariants();
        table.expire(30, 5, |_| panic!("nothing is overdue"));
        assert_eq!(slot(table.insert(request(99)).unwrap()), slot(silent));
        table.check_invariants();
    }

    #[test]
    fn a_full_table_refuses_and_recovers() {
        let mut table = PendingTable::default();
        let tokens: Vec<u32> =
            (0..PENDING_MAX).map(|_| table.insert(request(10)).unwrap()).collect();
        assert_eq!(table.insert(request(10)), None);
        table.answer(tokens[77]);
        assert!(table.insert(request(11)).is_some());
        let mut failed = 0;
        table.fail_lost(|pending| pending.deadline_ms == 11, |_| failed += 1);
        assert_eq!((failed, table.len()), (1, PENDING_MAX - 1));
        table.check_invariants();
        table.fail_lost(|_| true, |_| failed += 1);
        assert_eq!(failed, PENDING_MAX);
        assert!(table.is_empty());
        table.check_invariants();
    }

    #[test]
    fn a_batch_is_found_by_its_first_request_until_that_is_answered() {
        let mut table = PendingTable::default();
        let first = table.next_batch();
        let tokens: Vec<u32> = (0..4).map(|_| table.insert(request(10)).unwrap()).collect();
        // The third one travels alone, and the order in the batch is not that of the slots.
        for (token, place) in [(tokens[0], 0), (tokens[3], 1), (tokens[1], 3)] {
            table.join(token, first, place);
        }
        assert_eq!(table.batch_of(tokens[0]), [tokens[0], tokens[3], tokens[1]]);
        assert_eq!(table.batch_of(tokens[2]), [0; 0]);
        table.answer(tokens[3]);
        assert_eq!(table.batch_of(tokens[0]), [tokens[0], tokens[1]]);
        table.answer(tokens[0]);
        assert_eq!(table.batch_of(tokens[0]), [0; 0], "the batch has reached somebody");
        assert_eq!(table.batch_of(u32::MAX), [0; 0]);
        assert_ne!(table.next_batch(), first);
    }

    #[test]
    fn a_batch_is_found_by_a_request_that_has_timed_out() {
        let mut table = PendingTable::default();
        let batch = table.next_batch();
        let [early, late] = [10, 99].map(|deadline| table.insert(request(deadline)).unwrap());
        table.join(early, batch, 0);
        table.join(late, batch, 1);
        table.expire(10, 5, drop);
        assert_eq!(table.batch_of(early), [late]);
    }

    #[test]
    fn a_guessed_token_finds_nothing() {
        let mut table = PendingTable::default();
        assert!(matches!(table.answer(u32::MAX), Answered::Unknown));
        assert!(matches!(table.answer(0), Answered::Unknown));
    }
}
