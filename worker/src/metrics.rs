//! The metrics of a running server, under Pitaya's names.
//!
//! Times are recorded for each request; everything else is kept by its own part and copied into the exporter when
//! somebody asks. Labels come from closed sets: the routes of the application, and the codes of the framework.

use std::sync::atomic::Ordering;
use std::time::Duration;

use async_nats::connection::State;
use hashbrown::HashMap;
use shared::metrics::{
    CodeLabel, DelayType, Exporter, FailReason, MetricError, ResponseType, Summary,
};

use crate::admin::Status;
use crate::counters::Counter;

pub(crate) const RESPONSE_TIME: &str = "pitaya_handler_response_time_ns";
const DELAY: &str = "pitaya_handler_handler_delay_ns";

/// Response times and delays of each route.
pub(crate) struct HandlerTimes {
    exporter: Exporter,
    routes: HashMap<String, RouteTimes>,
}

struct RouteTimes {
    label: String,
    succeeded: Summary,
    delay: Summary,
}

impl HandlerTimes {
    /// `keys` are the application's routes as `service.method`.
    pub(crate) fn new<'a>(
        exporter: Exporter,
        server_type: &str,
        keys: impl Iterator<Item = &'a String>,
    ) -> Result<Self, MetricError> {
        let routes = keys.map(|key| {
            let label = format!("{server_type}.{key}");
            let kind = ResponseType::Handler.name();
            let ok = CodeLabel::Ok;
            let labels = [label.as_str(), ok.status(), kind, ok.name()];
            let succeeded = exporter.summary(RESPONSE_TIME, &labels)?;
            let delay = exporter.summary(DELAY, &[&label, DelayType::Remote.name()])?;
            Ok((key.clone(), RouteTimes { label, succeeded, delay }))
        });
        let routes = routes.collect::<Result<_, MetricError>>()?;
        Ok(Self { exporter, routes })
    }

    /// One request of `service.method`: how long it waited for its turn, and how long it took from its arrival to its
    /// answer. `code` is empty for a success. Requests of routes that do not exist are not recorded.
    pub(crate) fn record(&self, key: &str, code: &str, waited: Duration, took: Duration) {
        let Some(route) = self.routes.get(key) else { return };
        route.delay.observe(waited);
        if code.is_empty() {
            return route.succeeded.observe(took);
        }
        let code = CodeLabel::of(code);
        let labels =
            [route.label.as_str(), code.status(), ResponseType::Handler.name(), code.name()];
        if let Ok(summary) = self.exporter.summary(RESPONSE_TIME, &labels) {
            summary.observe(took);
        }
    }
}

/// Copies what the parts of the server counted. Only one caller at a time.
pub(crate) fn copy(status: &Status) -> Result<(), MetricError> {
    let exporter = &status.exporter;
    let gauge = |name: &str, labels: &[&str], value: f64| {
        exporter.gauge(name, labels).map(|gauge| gauge.set(value))
    };
    let total = |name: &str, labels: &[&str], value: u64| {
        let counter = exporter.counter(name, labels)?;
        counter.add(value.saturating_sub(counter.value()));
        Ok::<_, MetricError>(())
    };

    let (service, counters) = (&status.service, status.service.counters());
    let read = |counter| counters.read(counter);
    let late = read(Counter::Expired) + read(Counter::Cancelled);
    let (ok, failed, busy) = (read(Counter::Ok), read(Counter::Failed), read(Counter::Busy));
    let failures = "pitaya_handler_requests_failed_total";
    total("pitaya_handler_requests_total", &[], ok + failed + busy)?;
    total("pitaya_handler_requests_replied_total", &[], ok)?;
    total(failures, &[FailReason::Worker.name()], failed.saturating_sub(late))?;
    total(failures, &[FailReason::Timeout.name()], late)?;
    total(failures, &[FailReason::Busy.name()], busy)?;
    gauge("pitaya_rpc_server_dropped_messages", &[], busy as f64)?;

    let (limits, in_flight) = (service.limits(), service.in_flight());
    let free = limits.window.saturating_sub(in_flight);
    gauge("pitaya_channel_channel_capacity", &["rpc_server_subchan"], free as f64)?;
    gauge("pitaya_handler_requests_in_flight", &[], in_flight as f64)?;
    let pool = ["rpc_server_remote"];
    gauge("pitaya_worker_pool_busy_workers", &pool, service.running() as f64)?;
    gauge("pitaya_worker_pool_total_workers", &pool, limits.running_max as f64)?;

    let table = status.discovery.tables().borrow().clone();
    for (server_type, servers) in table.types() {
        let count = servers.len() as f64;
        gauge("pitaya_service_discovery_count_servers", &[server_type], count)?;
    }

    let Some(link) = &status.link else { return Ok(()) };
    let client = link.client();
    let is_connected = client.connection_state() == State::Connected;
    gauge("pitaya_nats_connected", &[], f64::from(u8::from(is_connected)))?;
    let nats = client.statistics();
    total("pitaya_nats_reconnects_total", &[], nats.connects.load(Ordering::Relaxed).max(1) - 1)?;
    total("pitaya_nats_received_messages_total", &[], nats.in_messages.load(Ordering::Relaxed))?;
    total("pitaya_nats_sent_messages_total", &[], nats.out_messages.load(Ordering::Relaxed))?;
    total("pitaya_nats_received_bytes_total", &[], nats.in_bytes.load(Ordering::Relaxed))?;
    total("pitaya_nats_sent_bytes_total", &[], nats.out_bytes.load(Ordering::Relaxed))
}
