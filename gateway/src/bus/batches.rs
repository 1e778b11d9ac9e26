//! Batches: the requests of one turn to one server, in one NATS message.
//!
//! What a turn has for a server that takes batches gathers here and becomes a line when the turn ends, or sooner when the
//! batch is full; nothing waits for a further request, so an idle gateway sends as it would without. A batch of one is
//! sent as the plain message that servers of every kind take. The layout of a batch is proto's (`wire/batch.rs`).
//!
//! The reply subject of a batch names its first request (`_INBOX.unique.b7`), by which "nobody listens" finds all
//! of them; answers name each request by its token, so whoever answers may put those of several batches together.
//!
//! The invariant: at most one batch a server is open, and messages to a server leave in the order in which they were
//! written, batched or not.

use proto::wire::{BATCH_ENTRY_BYTES, BATCH_HEADER, NO_TOKEN, PROBE, put_batch_entry_head};
use shared::nats::encoder;
use shared::server::ServerTable;

use super::pending::PendingTable;
use super::targets::Targets;
use super::{BusState, Carrier, NatsLines, push_decimal};

/// Requests of one batch at most. What a batch saves is nearly all saved at eight; beyond, it only makes one delivery
/// longer, which holds up others on the same connection.
pub const BATCH_REQUESTS_MAX: usize = 64;
/// Bytes of one batch at most, if the NATS server takes as much. A larger request travels alone.
pub const BATCH_BYTES_MAX: usize = 64 << 10;
/// Buffers that are kept for the next batches of a bus.
const SPARE_MAX: usize = 16;
/// Stands in a reply subject before the number of the batch's first request.
const BATCH_MARK: u8 = b'b';
/// Stands in a reply subject before the number of the server that a probe goes to.
const PROBE_MARK: u8 = b'p';
/// The reply subject of what nobody wants answered. Nobody subscribes to it, so that Go backends can acknowledge a
/// notify and no state is kept here (cluster protocol 23.2).
const NOTIFY_REPLY: &[u8] = b"_DISCARD.notify";
/// A target without an open batch.
const NONE: u32 = u32::MAX;

/// A message on its way to a server of the cluster.
#[derive(Clone, Copy, Debug)]
pub struct Leaving {
    /// Which target.
    pub target: u32,
    /// What its answer comes back under; none for a notify.
    pub token: Option<u32>,
    /// Its encoded length.
    pub bytes: usize,
    /// Whether a copy is kept for a second try.
    pub is_kept: bool,
}

/// What a subject of the inbox says an answer is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Addressee {
    /// One request.
    Request(u32),
    /// The requests that a batch of answers names; or all requests of the batch that this one was the first of.
    Batch(Option<u32>),
    /// A server that was asked whether it is still there.
    Probe(u32),
}

/// The batches of the present turn.
#[derive(Debug, Default)]
pub struct Batches {
    open: Vec<Batch>,
    /// Where the open batch of each target stands in `open`.
    places: Vec<u32>,
    spare: Vec<Vec<u8>>,
    bytes: usize,
    /// Batches of several requests that were written since they were last counted, and the requests in them.
    written: (usize, usize),
}

#[derive(Debug)]
struct Batch {
    target: u32,
    /// The number that its requests are kept under.
    serial: u64,
    /// The first request; none as long as there are only notifies.
    leader: Option<u32>,
    requests: usize,
    bytes: Vec<u8>,
}

impl Batches {
    /// Bytes that wait for the turn's end.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Batches of several requests, and the requests in them, since this was last asked.
    pub fn take_written(&mut self) -> (usize, usize) {
        std::mem::take(&mut self.written)
    }

    /// Drops what is open.
    pub fn clear(&mut self) {
        self.places.clear();
        self.bytes = 0;
        for batch in self.open.drain(..) {
            keep(&mut self.spare, batch.bytes);
        }
    }

    fn place(&self, target: u32) -> Option<usize> {
        let place = *self.places.get(target as usize)?;
        (place != NONE).then_some(place as usize)
    }

    fn has_room(&self, target: u32, bytes: usize, bytes_max: usize) -> bool {
        let batch = self.place(target).and_then(|place| self.open.get(place));
        batch.is_none_or(|batch| {
            batch.requests < BATCH_REQUESTS_MAX
                && batch.bytes.len() + BATCH_ENTRY_BYTES + bytes <= bytes_max
        })
    }

    /// Begins a message; it is written behind what the returned buffer holds.
    fn begin(&mut self, leaving: &Leaving, pending: &mut PendingTable) -> Option<&mut Vec<u8>> {
        let place = match self.place(leaving.target) {
            Some(place) => place,
            None => self.open(leaving.target, pending),
        };
        let batch = self.open.get_mut(place)?;
        if let Some(token) = leaving.token {
            pending.join(token, batch.serial, batch.requests);
            batch.leader.get_or_insert(token);
        }
        batch.requests += 1;
        self.bytes += BATCH_ENTRY_BYTES + leaving.bytes;
        put_batch_entry_head(leaving.token.unwrap_or(NO_TOKEN), leaving.bytes, &mut batch.bytes);
        Some(&mut batch.bytes)
    }

    fn open(&mut self, target: u32, pending: &mut PendingTable) -> usize {
        let place = self.open.len();
        let mut bytes = self.spare.pop().unwrap_or_default();
        bytes.extend_from_slice(&BATCH_HEADER);
        self.bytes += bytes.len();
        let serial = pending.next_batch();
        self.open.push(Batch { target, serial, leader: None, requests: 0, bytes });
        if self.places.len() <= target as usize {
            self.places.resize(target as usize + 1, NONE);
        }
        if let Some(entry) = self.places.get_mut(target as usize) {
            *entry = place as u32;
        }
        place
    }

    /// Takes one batch out; the last one takes its place.
    fn take(&mut self, place: usize) -> Batch {
        let batch = self.open.swap_remove(place);
        self.bytes = self.bytes.saturating_sub(batch.bytes.len());
        let moved = self.open.get(place).map(|moved| moved.target);
        for (target, place) in [(Some(batch.target), NONE), (moved, place as u32)] {
            let entry = target.and_then(|target| self.places.get_mut(target as usize));
            if let Some(entry) = entry {
                *entry = place;
            }
        }
        batch
    }
}

/// Keeps a buffer for the next batch.
fn keep(spare: &mut Vec<Vec<u8>>, mut bytes: Vec<u8>) {
    if spare.len() < SPARE_MAX {
        bytes.clear();
        spare.push(bytes);
    }
}

impl NatsLines {
    /// Writes the head of a plain message; the payload and a line end follow.
    fn put_head(&mut self, subject: &[u8], token: Option<u32>, payload_bytes: usize) {
        self.published += 1;
        let Some(token) = token else {
            return encoder::publish_head(
                &mut self.out,
                subject,
                Some(NOTIFY_REPLY),
                payload_bytes,
            );
        };
        self.reply.clear();
        self.reply.extend_from_slice(&self.inbox);
        push_decimal(&mut self.reply, token);
        encoder::publish_head(&mut self.out, subject, Some(&self.reply), payload_bytes);
    }

    /// Writes the line of a batch whose reply subject names its first request.
    fn put_batch(&mut self, subject: &[u8], leader: Option<u32>, bytes: &[u8]) {
        match leader {
            Some(token) => self.put_marked(subject, BATCH_MARK, token, bytes),
            None => {
                self.published += 1;
                encoder::publish(&mut self.out, subject, Some(NOTIFY_REPLY), bytes);
            }
        }
    }

    /// Writes the line of a probe whose reply subject names the server.
    pub fn put_probe(&mut self, subject: &[u8], target: u32) {
        self.put_marked(subject, PROBE_MARK, target, &PROBE);
    }

    fn put_marked(&mut self, subject: &[u8], mark: u8, number: u32, bytes: &[u8]) {
        self.published += 1;
        self.reply.clear();
        self.reply.extend_from_slice(&self.inbox);
        self.reply.push(mark);
        push_decimal(&mut self.reply, number);
        encoder::publish(&mut self.out, subject, Some(&self.reply), bytes);
    }

    /// Makes the batch at `place` a line.
    fn close_batch(&mut self, place: usize, targets: &Targets) {
        let batch = self.batches.take(place);
        let Some(target) = targets.find(batch.target) else {
            debug_assert!(false, "batches are closed before servers are forgotten");
            return keep(&mut self.batches.spare, batch.bytes);
        };
        if batch.requests > 1 {
            let (batches, requests) = self.batches.written;
            self.batches.written = (batches + 1, requests + batch.requests);
            self.put_batch(&target.subject, batch.leader, &batch.bytes);
        } else {
            let start = BATCH_HEADER.len() + BATCH_ENTRY_BYTES;
            let message = batch.bytes.get(start..).unwrap_or_default();
            self.put_head(&target.subject, batch.leader, message.len());
            self.out.extend_from_slice(message);
            self.out.extend_from_slice(b"\r\n");
        }
        keep(&mut self.batches.spare, batch.bytes);
    }

    /// What an answer's subject says, when the subject is one of this connection's inbox.
    pub fn addressee(&self, subject: &[u8]) -> Option<Addressee> {
        let number =
            |digits: &[u8]| std::str::from_utf8(digits).ok().and_then(|text| text.parse().ok());
        match subject.strip_prefix(&*self.inbox)? {
            [BATCH_MARK] => Some(Addressee::Batch(None)),
            [BATCH_MARK, digits @ ..] => Some(Addressee::Batch(Some(number(digits)?))),
            [PROBE_MARK, digits @ ..] => Some(Addressee::Probe(number(digits)?)),
            digits => Some(Addressee::Request(number(digits)?)),
        }
    }
}

impl BusState {
    /// Writes a message for a server of the cluster, behind what was written for the same server before: into its
    /// batch when it takes batches, otherwise as a line. `encode` appends exactly the announced bytes.
    pub fn put(&mut self, leaving: &Leaving, encode: impl FnOnce(&mut Vec<u8>)) {
        let Self { carrier: Carrier::Nats(lines), targets, pending, .. } = self else { return };
        let Some(target) = targets.find(leaving.target) else { return };
        let bytes_max = BATCH_BYTES_MAX.min(lines.payload_bytes_max);
        let is_batched = target.takes_batches()
            && BATCH_HEADER.len() + BATCH_ENTRY_BYTES + leaving.bytes <= bytes_max;
        if let Some(place) = lines.batches.place(leaving.target)
            && !(is_batched && lines.batches.has_room(leaving.target, leaving.bytes, bytes_max))
        {
            lines.close_batch(place, targets);
        }
        let out = if is_batched {
            let Some(out) = lines.batches.begin(leaving, pending) else { return };
            out
        } else {
            lines.put_head(&target.subject, leaving.token, leaving.bytes);
            &mut lines.out
        };
        let start = out.len();
        encode(out);
        debug_assert_eq!(out.len() - start, leaving.bytes, "a message has its announced length");
        if leaving.is_kept
            && let Some(kept) = leaving.token.and_then(|token| pending.request_buffer(token))
        {
            kept.extend_from_slice(out.get(start..).unwrap_or_default());
        }
        if !is_batched {
            out.extend_from_slice(b"\r\n");
        }
    }

    /// Makes lines of all open batches: at the turn's end, and before anything that they name goes.
    pub fn close_batches(&mut self) {
        let Self { carrier: Carrier::Nats(lines), targets, .. } = self else { return };
        while let Some(last) = lines.batches.open.len().checked_sub(1) {
            lines.close_batch(last, targets);
        }
    }

    /// Takes over a new list of servers.
    pub fn update_servers(&mut self, table: &ServerTable) {
        self.close_batches();
        self.targets.update(table);
    }
}

#[cfg(test)]
#[path = "batches_tests.rs"]
mod tests;
