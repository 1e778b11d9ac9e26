//! The one table of all metrics: names, kinds, labels, units, sentences.
//!
//! Pitaya's names and labels come first and stay as its dashboards expect them. Constant labels (`game`,
//! `serverType` and those of the configuration) are added to every series and are not listed.

/// What a metric does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MetricKind {
    /// Only grows while the service lives.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Quantiles, sum and count.
    Summary,
    /// Counts per bucket; only for metrics of the application.
    Histogram,
}

/// One metric.
#[derive(Debug, Clone, Copy)]
pub struct MetricRow {
    /// The full name.
    pub name: &'static str,
    /// What it does.
    pub kind: MetricKind,
    /// Names of its labels, in the order in which values are given.
    pub labels: &'static [&'static str],
    /// What is counted or measured.
    pub unit: &'static str,
    /// One sentence.
    pub help: &'static str,
}

use MetricKind::{Counter, Gauge, Summary};

const fn row(
    kind: MetricKind,
    name: &'static str,
    labels: &'static [&'static str],
    unit: &'static str,
    help: &'static str,
) -> MetricRow {
    MetricRow { name, kind, labels, unit, help }
}

/// All metrics, in the order in which they are exposed.
#[rustfmt::skip]
pub static METRICS: &[MetricRow] = &[
    // Pitaya's.
    row(Summary, "pitaya_handler_response_time_ns", &["route", "status", "type", "code"], "nanoseconds", "Time to the answer."),
    row(Summary, "pitaya_handler_handler_delay_ns", &["route", "type"], "nanoseconds", "Time that a message waited to be handled."),
    row(Gauge, "pitaya_acceptor_connected_clients", &[], "connections", "Connections that are open."),
    row(Counter, "pitaya_acceptor_exceeded_rate_limiting", &[], "packets", "Packets dropped by the rate limit."),
    row(Gauge, "pitaya_service_discovery_count_servers", &["type"], "servers", "Servers known by type."),
    row(Gauge, "pitaya_channel_channel_capacity", &["channel"], "messages", "Free places in a queue."),
    row(Gauge, "pitaya_rpc_server_dropped_messages", &[], "messages", "Calls refused because the queue was full."),
    row(Gauge, "pitaya_worker_pool_busy_workers", &["pool"], "handlers", "Handlers that are running."),
    row(Gauge, "pitaya_worker_pool_total_workers", &["pool"], "handlers", "Handlers that may run at the same time."),
    row(Gauge, "pitaya_sys_goroutines", &[], "tasks", "Tasks and threads; Pitaya's name for its own kind."),
    row(Gauge, "pitaya_sys_heapsize", &[], "bytes", "Resident memory of the process."),
    row(Gauge, "pitaya_worker_worker_jobs_retry_total", &[], "jobs", "Jobs waiting to be tried again."),
    row(Gauge, "pitaya_worker_worker_queue_size", &["queue"], "jobs", "Jobs waiting in a queue."),
    row(Gauge, "pitaya_worker_worker_jobs_total", &["status"], "jobs", "Jobs that ended."),

    // Connections.
    row(Counter, "pitaya_acceptor_accepted_total", &[], "connections", "Connections accepted."),
    row(Counter, "pitaya_acceptor_closed_total", &["reason"], "connections", "Connections that ended, by reason."),
    row(Counter, "pitaya_acceptor_accept_failures_total", &[], "failures", "Failures to accept, such as no free descriptor."),
    row(Counter, "pitaya_acceptor_handshakes_accepted_total", &[], "handshakes", "Handshakes answered with 200."),
    row(Counter, "pitaya_acceptor_handshakes_refused_total", &[], "handshakes", "Handshakes answered with 400."),
    row(Counter, "pitaya_acceptor_tls_handshakes_total", &[], "handshakes", "TLS handshakes that were finished."),
    row(Gauge, "pitaya_acceptor_tls_certificate_expiration_timestamp_seconds", &[], "seconds since 1970", "When the certificate for clients, or one of its chain, ends."),
    row(Gauge, "pitaya_acceptor_bound_sessions", &[], "sessions", "Sessions with a uid."),
    row(Counter, "pitaya_agent_received_bytes_total", &[], "bytes", "Bytes received from clients."),
    row(Counter, "pitaya_agent_sent_bytes_total", &[], "bytes", "Bytes sent to clients."),
    row(Counter, "pitaya_agent_received_packets_total", &[], "packets", "Packets received from clients."),
    row(Gauge, "pitaya_agent_outbox_bytes", &[], "bytes", "Bytes queued to clients."),
    row(Counter, "pitaya_agent_pushes_total", &[], "pushes", "Pushes queued to clients."),
    row(Counter, "pitaya_agent_pushes_to_many_total", &[], "messages", "Messages that came once for many clients, by each connection to NATS."),
    row(Counter, "pitaya_agent_pushes_dropped_total", &[], "pushes", "Pushes that found no session or no room."),
    row(Counter, "pitaya_agent_kicks_total", &[], "kicks", "Kicks queued to clients."),
    row(Counter, "pitaya_agent_inflated_total", &[], "payloads", "Compressed payloads received."),
    row(Counter, "pitaya_agent_inflate_failures_total", &[], "payloads", "Compressed payloads refused."),

    // Limits.
    row(Counter, "pitaya_limits_exceeded_total", &["limit"], "events", "What ran into a limit, by limit."),
    row(Gauge, "pitaya_limits_buffered_bytes", &[], "bytes", "Bytes held for clients: unsent ones, and parts of packets."),

    // Requests: in = replied + failed + dropped + in flight.
    row(Counter, "pitaya_handler_requests_total", &[], "requests", "Requests received from clients."),
    row(Counter, "pitaya_handler_notifies_total", &[], "notifies", "Notifies received from clients."),
    row(Counter, "pitaya_handler_requests_replied_total", &[], "requests", "Requests answered with a result."),
    row(Counter, "pitaya_handler_requests_failed_total", &["reason"], "requests", "Requests answered with an error, by reason."),
    row(Counter, "pitaya_handler_requests_dropped_total", &["reason"], "requests", "Requests without an answer, by reason."),
    row(Gauge, "pitaya_handler_requests_in_flight", &[], "requests", "Requests that were forwarded and are not answered."),
    row(Gauge, "pitaya_handler_requests_queued", &[], "requests", "Requests that wait to be forwarded."),
    row(Counter, "pitaya_handler_late_answers_total", &[], "answers", "Answers that came after their request had ended."),

    // NATS.
    row(Gauge, "pitaya_nats_connected", &[], "connections", "Connections to NATS that are ready."),
    row(Counter, "pitaya_nats_reconnects_total", &[], "connections", "Connections made again."),
    row(Counter, "pitaya_nats_errors_total", &[], "errors", "Errors that NATS reported."),
    row(Counter, "pitaya_nats_received_messages_total", &[], "messages", "Messages received from NATS."),
    row(Counter, "pitaya_nats_sent_messages_total", &[], "messages", "Messages sent to NATS."),
    row(Counter, "pitaya_nats_batches_total", &[], "messages", "Messages to NATS that carried several requests."),
    row(Counter, "pitaya_nats_batched_requests_total", &[], "requests", "Requests and notifies that travelled in them."),
    row(Counter, "pitaya_nats_batch_errors_total", &[], "messages", "Batches of answers that could not be read."),
    row(Counter, "pitaya_nats_received_bytes_total", &[], "bytes", "Bytes received from NATS."),
    row(Counter, "pitaya_nats_sent_bytes_total", &[], "bytes", "Bytes sent to NATS."),
    row(Gauge, "pitaya_nats_subscriptions", &[], "subscriptions", "Subscriptions on NATS."),

    // The reactor.
    row(Counter, "pitaya_reactor_turns_total", &[], "turns", "Turns of the reactors' loops."),
    row(Counter, "pitaya_reactor_events_total", &[], "events", "Events that the reactors handled."),
    row(Gauge, "pitaya_reactor_stalled", &[], "reactors", "Reactors that have not turned for a second or longer; their clients get no answers."),
    row(Counter, "pitaya_reactor_stalls_total", &[], "stalls", "Times that a reactor did not turn for a second."),
    row(Counter, "pitaya_reactor_mailbox_full_total", &[], "messages", "Messages that found a reactor's mailbox full."),

    // The hand-over to a new process.
    row(Counter, "pitaya_handover_total", &["result"], "hand-overs", "Hand-overs that were tried."),
    row(Counter, "pitaya_handover_conns_total", &[], "connections", "Connections handed over."),
    row(Counter, "pitaya_handover_excluded_total", &["reason"], "connections", "Connections that could not be handed over."),
    row(Gauge, "pitaya_handover_frozen_seconds", &[], "seconds", "How long connections stood still in the last hand-over."),
    row(Gauge, "pitaya_handover_generation", &[], "processes", "How often this service was handed over."),
];

/// The row of a name.
pub(super) fn row_of(name: &str) -> Option<(usize, &'static MetricRow)> {
    METRICS.iter().enumerate().find(|(_, row)| row.name == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_counters_of_ours_end_in_total() {
        let mut names: Vec<&str> = METRICS.iter().map(|row| row.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), METRICS.len());
        for row in METRICS {
            assert!(
                row.name.starts_with("pitaya_") && row.help.ends_with('.') && !row.unit.is_empty()
            );
            let is_pitaya_s = row.name == "pitaya_acceptor_exceeded_rate_limiting";
            assert!(
                row.kind != Counter || is_pitaya_s || row.name.ends_with("_total"),
                "{}",
                row.name
            );
        }
    }
}
