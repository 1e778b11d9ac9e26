//! The meter: what one core counts, in the words of the gateway.
//!
//! Counting costs a load and a store; names, labels and text are the exporter's (shared::metrics), which reads from the
//! control thread. The identity that operators can check: requests in = replied + failed + dropped.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use shared::close::CloseReason;
use shared::config::{Config, CustomMetric};
use shared::metrics::{
    CodeLabel, CoreCounter, CoreCounters, CoreGauge, CoreMetrics, DropReason, Exporter,
    ExporterOptions, FailReason, LatencyTable, LimitLabel, MetricError, ResponseType, RouteLabel,
};
use shared::server::ServerTable;

/// What the configuration says of metrics.
#[derive(Clone, Debug, Default)]
pub struct MetricsPlan {
    game: String,
    server_type: String,
    const_labels: Vec<(String, String)>,
    custom: Vec<CustomMetric>,
}

impl MetricsPlan {
    /// Reads the plan of a server of this type.
    pub fn new(config: &Config, server_type: &str) -> Self {
        let mut const_labels: Vec<_> =
            config.map("pitaya.metrics.constlabels").into_iter().collect();
        const_labels.extend(config.map("pitaya.metrics.additionallabels"));
        Self {
            game: config.string("pitaya.metrics.game").to_owned(),
            server_type: server_type.to_owned(),
            const_labels,
            custom: config.custom_metrics().to_vec(),
        }
    }
}

/// The meters of all cores, and what the control thread counts. Clones share everything.
#[derive(Clone)]
pub struct Meters {
    exporter: Exporter,
    /// Server types that a gauge was set for, to be set to 0 when the last server goes.
    types: Arc<Mutex<BTreeSet<String>>>,
}

impl Meters {
    /// A meter for each reactor.
    ///
    /// Errors: a label or metric of the configuration that Prometheus does not allow.
    pub fn new(reactors: usize, plan: &MetricsPlan) -> Result<(Self, Vec<Meter>), MetricError> {
        let exporter = Exporter::new(&ExporterOptions {
            game: &plan.game,
            server_type: &plan.server_type,
            const_labels: &plan.const_labels,
            custom: &plan.custom,
        })?;
        let cores = (0..reactors).map(|_| Meter::new(exporter.core())).collect();
        Ok((Self { exporter, types: Arc::default() }, cores))
    }

    /// Everything in Prometheus's text form.
    pub fn render(&self) -> String {
        self.exporter.render()
    }

    /// Where the hosted application adds what it measures itself.
    pub(crate) fn exporter(&self) -> Exporter {
        self.exporter.clone()
    }

    /// Starts a new window for the quantiles; to be called every two minutes.
    pub fn rotate(&self) {
        self.exporter.rotate();
    }

    /// When the certificate for clients ends, seconds since 1970.
    pub fn set_certificate_end(&self, ends_at_s: i64) {
        let name = "pitaya_acceptor_tls_certificate_expiration_timestamp_seconds";
        if let Ok(gauge) = self.exporter.gauge(name, &[]) {
            gauge.set(ends_at_s as f64);
        }
    }

    /// How often each reactor has turned so far.
    pub fn turns(&self) -> Vec<u64> {
        self.exporter.counts(CoreCounter::Turns)
    }

    /// How many reactors do not turn.
    pub fn set_stalled(&self, reactors: usize) {
        if let Ok(gauge) = self.exporter.gauge("pitaya_reactor_stalled", &[]) {
            gauge.set(reactors as f64);
        }
    }

    /// So many reactors have stopped turning.
    pub fn count_stalls(&self, stalls: usize) {
        if let Ok(counter) = self.exporter.counter("pitaya_reactor_stalls_total", &[]) {
            counter.add(stalls as u64);
        }
    }

    /// How many servers of each type are known; Pitaya declares this gauge and never sets it.
    pub fn set_servers(&self, table: &ServerTable) {
        let mut types = self.types.lock().unwrap_or_else(PoisonError::into_inner);
        types.extend(table.types().map(|(server_type, _)| server_type.to_owned()));
        for server_type in types.iter() {
            let count = table.by_type(server_type).len();
            if let Ok(gauge) =
                self.exporter.gauge("pitaya_service_discovery_count_servers", &[server_type])
            {
                gauge.set(count as f64);
            }
        }
    }
}

/// Counters of one core; its reactor is the only writer.
pub struct Meter {
    counters: CoreCounters,
    latency: LatencyTable,
}

/// What a reactor has at the moment, for gauges.
#[derive(Clone, Copy, Debug, Default)]
pub struct Levels {
    /// Connected clients.
    pub clients: usize,
    /// Requests under way on all buses.
    pub in_flight: usize,
    /// Requests that wait for room in a window.
    pub waiting: usize,
    /// Bound sessions.
    pub bound: usize,
    /// Bytes that wait to be sent to clients.
    pub outbox_bytes: usize,
    /// Bytes held for clients: unsent ones and parts of packets.
    pub buffered_bytes: usize,
    /// Subscriptions on all buses.
    pub subscriptions: usize,
    /// Whether the bus of new connections can be used.
    pub is_bus_ready: bool,
}

impl Meter {
    fn new(core: CoreMetrics) -> Self {
        Self { counters: core.counters, latency: core.latency }
    }

    /// One of something.
    pub fn count(&self, counter: CoreCounter) {
        self.counters.increment(counter);
    }

    /// Many of something.
    pub fn add(&self, counter: CoreCounter, count: usize) {
        self.counters.add(counter, count as u64);
    }

    /// A connection ended.
    pub fn closed(&self, reason: CloseReason) {
        self.counters.closed(reason);
    }

    /// Something ran into a limit.
    pub fn limited(&self, limit: LimitLabel) {
        self.counters.limited(limit);
    }

    /// A request came in that can be answered.
    pub fn requested(&self) {
        self.counters.increment(CoreCounter::Requests);
    }

    /// A request will not be answered.
    pub fn dropped(&self, reason: DropReason) {
        self.counters.dropped(reason);
    }

    /// A request was answered with an error before it was sent anywhere.
    pub fn refused(&mut self, reason: FailReason, code: &str) {
        self.counters.failed(reason);
        self.latency.response_of(RouteLabel::OTHER, ResponseType::Handler, CodeLabel::of(code), 0);
    }

    /// A server answered; `code` is empty for success. `is_delivered` says whether the client was still there.
    pub fn answered(&mut self, route: RouteLabel, us: u64, code: &str, is_delivered: bool) {
        let code = CodeLabel::of(code);
        let ns = us.saturating_mul(1_000);
        self.latency.response_of(route, ResponseType::Rpc, code, ns);
        if !is_delivered {
            self.counters.dropped(DropReason::ClientGone);
            return;
        }
        self.latency.response_of(route, ResponseType::Handler, code, ns);
        match code {
            CodeLabel::Ok => self.counters.increment(CoreCounter::RequestsReplied),
            _ => self.counters.failed(FailReason::Worker),
        }
    }

    /// A request that was sent, or waited to be, failed on our side.
    pub fn failed(
        &mut self,
        route: RouteLabel,
        us: u64,
        reason: FailReason,
        code: &str,
        is_delivered: bool,
    ) {
        let ns = us.saturating_mul(1_000);
        self.latency.response_of(route, ResponseType::Rpc, CodeLabel::of(code), ns);
        if is_delivered {
            self.latency.response_of(route, ResponseType::Handler, CodeLabel::of(code), ns);
            self.counters.failed(reason);
        } else {
            self.counters.dropped(DropReason::ClientGone);
        }
    }

    /// The label of a route.
    pub fn route(&mut self, route: &str) -> RouteLabel {
        self.latency.label(route)
    }

    /// The label of a route that was just answered with success.
    pub fn learn(&mut self, route: &str) -> RouteLabel {
        self.latency.learn(route)
    }

    /// The route of a label, for logs.
    pub fn route_name(&self, route: RouteLabel) -> &str {
        self.latency.name(route)
    }

    /// Sets the gauges; called on the tick.
    pub fn publish(&self, levels: Levels) {
        self.counters.set(CoreGauge::ConnectedClients, levels.clients as u64);
        self.counters.set(CoreGauge::RequestsInFlight, levels.in_flight as u64);
        self.counters.set(CoreGauge::RequestsQueued, levels.waiting as u64);
        self.counters.set(CoreGauge::BoundSessions, levels.bound as u64);
        self.counters.set(CoreGauge::OutboxBytes, levels.outbox_bytes as u64);
        self.counters.set(CoreGauge::BufferedBytes, levels.buffered_bytes as u64);
        self.counters.set(CoreGauge::NatsSubscriptions, levels.subscriptions as u64);
        self.counters.set(CoreGauge::NatsConnected, u64::from(levels.is_bus_ready));
    }
}
