//! What one reactor counts, without locks and without sharing cache lines with another.
//!
//! A reactor owns the only [`CoreCounters`] that writes to its cells; the exporter reads them at any time. The
//! invariant: each cell has one writer, so an increment is a plain load and store.

use std::cell::Cell;
use std::marker::PhantomData;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::labels::{DropReason, FailReason, LimitLabel, label_set};
use crate::close::CloseReason;

label_set! {
    /// What a reactor counts without a label; the text is the metric's name.
    CoreCounter {
        /// Connections accepted.
        Accepted => "pitaya_acceptor_accepted_total",
        /// Failures to accept.
        AcceptFailures => "pitaya_acceptor_accept_failures_total",
        /// Packets dropped by the rate limit.
        RateLimited => "pitaya_acceptor_exceeded_rate_limiting",
        /// Handshakes answered with 200.
        HandshakesAccepted => "pitaya_acceptor_handshakes_accepted_total",
        /// Handshakes answered with 400.
        HandshakesRefused => "pitaya_acceptor_handshakes_refused_total",
        /// TLS handshakes that were finished.
        TlsHandshakes => "pitaya_acceptor_tls_handshakes_total",
        /// Bytes from clients.
        ReceivedBytes => "pitaya_agent_received_bytes_total",
        /// Bytes to clients.
        SentBytes => "pitaya_agent_sent_bytes_total",
        /// Packets from clients.
        ReceivedPackets => "pitaya_agent_received_packets_total",
        /// Pushes to clients.
        Pushes => "pitaya_agent_pushes_total",
        /// Messages that came once for many clients.
        PushesToMany => "pitaya_agent_pushes_to_many_total",
        /// Pushes without a session or room.
        PushesDropped => "pitaya_agent_pushes_dropped_total",
        /// Kicks to clients.
        Kicks => "pitaya_agent_kicks_total",
        /// Compressed payloads from clients.
        Inflated => "pitaya_agent_inflated_total",
        /// Compressed payloads that were refused.
        InflateFailures => "pitaya_agent_inflate_failures_total",
        /// Requests from clients.
        Requests => "pitaya_handler_requests_total",
        /// Notifies from clients.
        Notifies => "pitaya_handler_notifies_total",
        /// Requests answered with a result.
        RequestsReplied => "pitaya_handler_requests_replied_total",
        /// Answers whose request had ended.
        LateAnswers => "pitaya_handler_late_answers_total",
        /// Connections to NATS made again.
        NatsReconnects => "pitaya_nats_reconnects_total",
        /// Errors that NATS reported.
        NatsErrors => "pitaya_nats_errors_total",
        /// Messages from NATS.
        NatsReceivedMessages => "pitaya_nats_received_messages_total",
        /// Messages to NATS.
        NatsSentMessages => "pitaya_nats_sent_messages_total",
        /// Messages to NATS that carry several requests.
        NatsBatches => "pitaya_nats_batches_total",
        /// Requests and notifies in them.
        NatsBatchedRequests => "pitaya_nats_batched_requests_total",
        /// Batches of answers that cannot be read.
        NatsBatchErrors => "pitaya_nats_batch_errors_total",
        /// Bytes from NATS.
        NatsReceivedBytes => "pitaya_nats_received_bytes_total",
        /// Bytes to NATS.
        NatsSentBytes => "pitaya_nats_sent_bytes_total",
        /// Turns of the loop.
        Turns => "pitaya_reactor_turns_total",
        /// Events handled.
        Events => "pitaya_reactor_events_total",
        /// Messages that found a mailbox full.
        MailboxFull => "pitaya_reactor_mailbox_full_total",
    }
}

label_set! {
    /// What a reactor measures; the exporter adds up all reactors. The text is the metric's name.
    CoreGauge {
        /// Connections that are open.
        ConnectedClients => "pitaya_acceptor_connected_clients",
        /// Sessions with a uid.
        BoundSessions => "pitaya_acceptor_bound_sessions",
        /// Bytes queued to clients.
        OutboxBytes => "pitaya_agent_outbox_bytes",
        /// Bytes held for clients.
        BufferedBytes => "pitaya_limits_buffered_bytes",
        /// Requests forwarded and not answered.
        RequestsInFlight => "pitaya_handler_requests_in_flight",
        /// Requests that wait to be forwarded.
        RequestsQueued => "pitaya_handler_requests_queued",
        /// 1 while the connection to NATS is ready.
        NatsConnected => "pitaya_nats_connected",
        /// Subscriptions on NATS.
        NatsSubscriptions => "pitaya_nats_subscriptions",
    }
}

/// The cells of one reactor. Aligned to two cache lines, because processors fetch lines in pairs.
#[derive(Debug)]
#[repr(C, align(128))]
pub(super) struct Cells {
    counters: [AtomicU64; CoreCounter::COUNT],
    gauges: [AtomicU64; CoreGauge::COUNT],
    closed: [AtomicU64; CloseReason::COUNT],
    failed: [AtomicU64; FailReason::COUNT],
    dropped: [AtomicU64; DropReason::COUNT],
    limited: [AtomicU64; LimitLabel::COUNT],
}

/// A set of counters with one label each, and its metric.
pub(super) type LabelledCells<'c> = (&'static str, Vec<(&'static str, &'c AtomicU64)>);

impl Cells {
    pub(super) fn new() -> Self {
        let zero = || AtomicU64::new(0);
        Self {
            counters: std::array::from_fn(|_| zero()),
            gauges: std::array::from_fn(|_| zero()),
            closed: std::array::from_fn(|_| zero()),
            failed: std::array::from_fn(|_| zero()),
            dropped: std::array::from_fn(|_| zero()),
            limited: std::array::from_fn(|_| zero()),
        }
    }

    /// The present value of one counter.
    pub(super) fn count(&self, counter: CoreCounter) -> u64 {
        read(&self.counters[counter.index()])
    }

    /// Names and present values of the counters without labels.
    pub(super) fn counters(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let names = CoreCounter::ALL.iter().map(|counter| counter.name());
        names.zip(self.counters.iter().map(read))
    }

    /// Names and present values of the gauges.
    pub(super) fn gauges(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let names = CoreGauge::ALL.iter().map(|gauge| gauge.name());
        names.zip(self.gauges.iter().map(read))
    }

    /// The counters with one label.
    pub(super) fn labelled(&self) -> [LabelledCells<'_>; 4] {
        let closed = CloseReason::ALL.iter().map(|reason| reason.label()).zip(&self.closed);
        let failed = FailReason::ALL.iter().map(|reason| reason.name()).zip(&self.failed);
        let dropped = DropReason::ALL.iter().map(|reason| reason.name()).zip(&self.dropped);
        let limited = LimitLabel::ALL.iter().map(|limit| limit.name()).zip(&self.limited);
        [
            ("pitaya_acceptor_closed_total", closed.collect()),
            ("pitaya_handler_requests_failed_total", failed.collect()),
            ("pitaya_handler_requests_dropped_total", dropped.collect()),
            ("pitaya_limits_exceeded_total", limited.collect()),
        ]
    }
}

/// The present value of a cell; perhaps one increment old.
pub(super) fn read(cell: &AtomicU64) -> u64 {
    cell.load(Ordering::Relaxed)
}

/// Adds without a locked instruction, which only the one writer of a cell may do. Relaxed: each cell stands for
/// itself, and a reader that sees one increment later loses nothing.
pub(super) fn add_alone(cell: &AtomicU64, count: u64) {
    cell.store(cell.load(Ordering::Relaxed).wrapping_add(count), Ordering::Relaxed);
}

/// The writing end of one reactor's cells. It can move to the reactor's thread, but neither be cloned nor shared.
#[derive(Debug)]
pub struct CoreCounters {
    cells: Arc<Cells>,
    only_one_thread: PhantomData<Cell<()>>,
}

impl CoreCounters {
    pub(super) fn new(cells: Arc<Cells>) -> Self {
        Self { cells, only_one_thread: PhantomData }
    }

    /// Counts one.
    pub fn increment(&self, counter: CoreCounter) {
        self.add(counter, 1);
    }

    /// Counts many at once, such as bytes.
    pub fn add(&self, counter: CoreCounter, count: u64) {
        add_alone(&self.cells.counters[counter.index()], count);
    }

    /// Sets what is measured now.
    pub fn set(&self, gauge: CoreGauge, value: u64) {
        self.cells.gauges[gauge.index()].store(value, Ordering::Relaxed);
    }

    /// Counts a connection that ended.
    pub fn closed(&self, reason: CloseReason) {
        add_alone(&self.cells.closed[reason.index()], 1);
    }

    /// Counts a request that is answered with an error.
    pub fn failed(&self, reason: FailReason) {
        add_alone(&self.cells.failed[reason.index()], 1);
    }

    /// Counts a request that gets no answer.
    pub fn dropped(&self, reason: DropReason) {
        add_alone(&self.cells.dropped[reason.index()], 1);
    }

    /// Counts something that ran into a limit.
    pub fn limited(&self, limit: LimitLabel) {
        add_alone(&self.cells.limited[limit.index()], 1);
    }

    /// What this reactor has counted, for tests and for its own decisions.
    pub fn count(&self, counter: CoreCounter) -> u64 {
        self.cells.count(counter)
    }

    /// How many connections of this reactor ended for a reason.
    pub fn closed_count(&self, reason: CloseReason) -> u64 {
        read(&self.cells.closed[reason.index()])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::rows::{MetricKind, row_of};

    #[test]
    fn each_counter_and_gauge_has_its_row() {
        let cells = Cells::new();
        for (name, _) in cells.counters() {
            let (_, row) = row_of(name).expect(name);
            assert!(row.kind == MetricKind::Counter && row.labels.is_empty(), "{name}");
        }
        for (name, _) in cells.gauges() {
            let (_, row) = row_of(name).expect(name);
            assert!(row.kind == MetricKind::Gauge && row.labels.is_empty(), "{name}");
        }
        for (name, _) in cells.labelled() {
            assert_eq!(row_of(name).expect(name).1.labels.len(), 1);
        }
    }

    #[test]
    fn what_is_counted_can_be_read_from_another_thread() {
        let cells = Arc::new(Cells::new());
        let counters = CoreCounters::new(Arc::clone(&cells));
        let writer = std::thread::spawn(move || {
            for _ in 0..1_000 {
                counters.increment(CoreCounter::Accepted);
                counters.closed(CloseReason::PeerClosed);
            }
            counters.add(CoreCounter::SentBytes, 5);
            counters.set(CoreGauge::ConnectedClients, 7);
            counters.count(CoreCounter::Accepted)
        });
        assert_eq!(writer.join().unwrap(), 1_000);
        assert_eq!(cells.counters().next(), Some(("pitaya_acceptor_accepted_total", 1_000)));
        assert_eq!(cells.gauges().next(), Some(("pitaya_acceptor_connected_clients", 7)));
        assert_eq!(std::mem::align_of::<Cells>(), 128);
    }
}
