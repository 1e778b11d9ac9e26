//! The exposition as a whole: names, labels, sums over reactors, limits.

use std::time::Duration;

use super::*;
use crate::close::CloseReason;
use crate::config::CustomMetricKind;
use crate::metrics::series::QUANTILES;
use crate::metrics::{
    CodeLabel, CoreCounter, CoreGauge, DelayType, DropReason, FailReason, ROUTES_MAX, ResponseType,
};

const MS: u64 = 1_000_000;

fn exporter() -> Exporter {
    let const_labels = [("region".to_owned(), "eu".to_owned())];
    let options = ExporterOptions {
        game: "chess",
        server_type: "connector",
        const_labels: &const_labels,
        custom: &[],
    };
    Exporter::new(&options).unwrap()
}

/// Reads the text form strictly and gives each series with its value.
fn parse(text: &str) -> BTreeMap<String, f64> {
    let mut series = BTreeMap::new();
    let mut family = String::new();
    for line in text.lines() {
        if let Some(comment) = line.strip_prefix("# TYPE ") {
            let (name, kind) = comment.split_once(' ').unwrap();
            assert!(["counter", "gauge", "summary", "histogram"].contains(&kind), "{line}");
            name.clone_into(&mut family);
        } else if !line.starts_with("# HELP ") {
            let (name, value) = line.rsplit_once(' ').unwrap();
            assert!(name.starts_with(&family) && name.ends_with('}'), "{line}");
            let is_new = series.insert(name.to_owned(), value.parse().unwrap()).is_none();
            assert!(is_new, "{line} is there twice");
        }
    }
    series
}

fn name(metric: &str, labels: &str) -> String {
    let comma = if labels.is_empty() { "" } else { "," };
    format!("{metric}{{game=\"chess\",serverType=\"connector\",region=\"eu\"{comma}{labels}}}")
}

fn value(series: &BTreeMap<String, f64>, metric: &str, labels: &str) -> u64 {
    let name = name(metric, labels);
    *series.get(&name).unwrap_or_else(|| panic!("{name} is not in {series:#?}")) as u64
}

#[test]
fn reactors_add_up_under_pitaya_s_names() {
    let exporter = exporter();
    let cores = [exporter.core(), exporter.core()];
    for core in &cores {
        core.counters.add(CoreCounter::RateLimited, 3);
        core.counters.set(CoreGauge::ConnectedClients, 5);
        core.counters.closed(CloseReason::IdleTimeout);
        core.counters.failed(FailReason::Timeout);
        core.counters.dropped(DropReason::ClientGone);
    }
    cores[1].counters.increment(CoreCounter::Turns);
    assert_eq!(exporter.counts(CoreCounter::Turns), [0, 1], "each for itself");
    let series = parse(&exporter.render());
    assert_eq!(value(&series, "pitaya_acceptor_exceeded_rate_limiting", ""), 6);
    assert_eq!(value(&series, "pitaya_acceptor_connected_clients", ""), 10);
    assert_eq!(value(&series, "pitaya_acceptor_closed_total", "reason=\"idle_timeout\""), 2);
    assert_eq!(value(&series, "pitaya_acceptor_closed_total", "reason=\"tls\""), 0);
    assert_eq!(value(&series, "pitaya_handler_requests_failed_total", "reason=\"timeout\""), 2);
    assert_eq!(
        value(&series, "pitaya_handler_requests_dropped_total", "reason=\"client_gone\""),
        2
    );
}

#[test]
fn response_times_have_pitaya_s_labels_and_quantiles() {
    let exporter = exporter();
    let mut cores = [exporter.core(), exporter.core()];
    for (core, ms) in cores.iter_mut().zip([1, 3]) {
        for _ in 0..100 {
            core.latency.response("room.room.join", ResponseType::Handler, CodeLabel::Ok, ms * MS);
        }
        core.latency.response("room.room.join", ResponseType::Rpc, CodeLabel::of("PIT-408"), MS);
        core.latency.delay("room.room.join", DelayType::Remote, MS);
    }
    let series = parse(&exporter.render());
    let metric = "pitaya_handler_response_time_ns";
    let ok = "route=\"room.room.join\",status=\"ok\",type=\"handler\",code=\"\"";
    assert_eq!(value(&series, "pitaya_handler_response_time_ns_count", ok), 200);
    assert_eq!(value(&series, "pitaya_handler_response_time_ns_sum", ok), 400 * MS);
    let median_up = value(&series, metric, &format!("{ok},quantile=\"0.7\"")) as f64;
    assert!((median_up / 3e6 - 1.0).abs() < 0.13, "{median_up}");
    for quantile in ["0.95", "0.99"] {
        value(&series, metric, &format!("{ok},quantile=\"{quantile}\""));
    }
    let failed = "route=\"room.room.join\",status=\"failed\",type=\"rpc\",code=\"PIT-408\"";
    assert_eq!(value(&series, "pitaya_handler_response_time_ns_count", failed), 2);
    let delay = "route=\"room.room.join\",type=\"remote\"";
    assert_eq!(value(&series, "pitaya_handler_handler_delay_ns_count", delay), 2);
}

#[test]
fn made_up_routes_make_no_series() {
    let exporter = exporter();
    let mut core = exporter.core();
    for number in 0..2_000 {
        let route = format!("made.up{number}");
        core.latency.response(&route, ResponseType::Handler, CodeLabel::NotFound, MS);
        core.latency.delay(&route, DelayType::Remote, MS);
    }
    let count = |exporter: &Exporter| {
        parse(&exporter.render())
            .keys()
            .filter(|name| name.contains("response_time_ns_count"))
            .count()
    };
    assert_eq!(count(&exporter), 1);
    for number in 0..2_000 {
        let route = format!("answered.{number}");
        core.latency.response(&route, ResponseType::Handler, CodeLabel::Ok, MS);
    }
    assert_eq!(
        count(&exporter),
        ROUTES_MAX + 2,
        "the routes, and successes and failures of others"
    );
    let series = parse(&exporter.render());
    let others = "route=\"other\",status=\"ok\",type=\"handler\",code=\"\"";
    let other_count = value(&series, "pitaya_handler_response_time_ns_count", others);
    assert_eq!(other_count, 2_000 - ROUTES_MAX as u64);
}

#[test]
fn quantiles_forget_what_is_older_than_the_windows_but_sums_do_not() {
    let exporter = exporter();
    let mut core = exporter.core();
    core.latency.response("a.b", ResponseType::Handler, CodeLabel::Ok, 900 * MS);
    for _ in 0..=WINDOWS {
        exporter.rotate();
    }
    let labels = "route=\"a.b\",status=\"ok\",type=\"handler\",code=\"\"";
    let quantile = name("pitaya_handler_response_time_ns", &format!("{labels},quantile=\"0.99\""));
    assert!(parse(&exporter.render())[&quantile].is_nan());
    core.latency.response("a.b", ResponseType::Handler, CodeLabel::Ok, MS);
    let series = parse(&exporter.render());
    assert!(series[&quantile] < 2.0 * MS as f64);
    assert_eq!(value(&series, "pitaya_handler_response_time_ns_count", labels), 2);
}

#[test]
fn handles_share_series_and_are_checked_against_the_table() {
    let exporter = exporter();
    let name = "pitaya_service_discovery_count_servers";
    exporter.gauge(name, &["room"]).unwrap().set(2.0);
    exporter.gauge(name, &["room"]).unwrap().add(1.0);
    let labels = ["room.a", "ok", "handler", ""];
    let summary = exporter.summary("pitaya_handler_response_time_ns", &labels).unwrap();
    summary.observe(Duration::from_millis(5));
    let series = parse(&exporter.render());
    assert_eq!(value(&series, name, "type=\"room\""), 3);
    assert_eq!(series.len(), 1 + QUANTILES.len() + 2, "metrics without a series are left out");

    let unknown = exporter.counter("pitaya_nothing", &[]).unwrap_err();
    assert_eq!(unknown.to_string(), "the provided metric does not exist: pitaya_nothing");
    assert!(exporter.counter(name, &["room"]).is_err(), "it is a gauge");
    assert!(matches!(exporter.gauge(name, &[]), Err(MetricError::LabelCount { .. })));
}

#[test]
fn handles_make_a_bounded_number_of_series() {
    let exporter = exporter();
    for number in 0..SERIES_MAX + 50 {
        let reason = format!("reason{number}");
        exporter.counter("pitaya_handover_excluded_total", &[&reason]).unwrap().increment();
    }
    let series = parse(&exporter.render());
    assert_eq!(series.len(), SERIES_MAX + 1);
    assert_eq!(value(&series, "pitaya_handover_excluded_total", "reason=\"other\""), 50);
}

#[test]
fn label_values_are_escaped() {
    let exporter = exporter();
    exporter.counter("pitaya_handover_total", &["a\"b\\c\nd"]).unwrap().increment();
    assert!(exporter.render().contains(r#"result="a\"b\\c\nd""#));
}

#[test]
fn metrics_of_the_application_are_exposed_histograms_too() {
    let metric = |name: &str, kind| CustomMetric {
        kind,
        subsystem: "shop".to_owned(),
        name: name.to_owned(),
        help: "Help.".to_owned(),
        labels: vec!["thing".to_owned()],
    };
    let custom = [
        metric("sold", CustomMetricKind::Counter),
        metric("price", CustomMetricKind::Summary { objectives: vec![(0.5, 0.05)] }),
        metric("size", CustomMetricKind::Histogram { buckets: vec![1.0, 2.0] }),
    ];
    let options = ExporterOptions { game: "chess", custom: &custom, ..ExporterOptions::default() };
    let exporter = Exporter::new(&options).unwrap();
    exporter.counter("sold", &["hat"]).unwrap().increment();
    exporter.value_summary("price", &["hat"]).unwrap().observe(2.5);
    exporter.histogram("pitaya_shop_size", &["hat"]).unwrap().observe(1.5);
    let text = exporter.render();
    for line in [
        "pitaya_shop_sold{game=\"chess\",serverType=\"\",thing=\"hat\"} 1",
        "pitaya_shop_price_sum{game=\"chess\",serverType=\"\",thing=\"hat\"} 2.5",
        "pitaya_shop_size_bucket{game=\"chess\",serverType=\"\",thing=\"hat\",le=\"1\"} 0",
        "pitaya_shop_size_bucket{game=\"chess\",serverType=\"\",thing=\"hat\",le=\"2\"} 1",
        "pitaya_shop_size_bucket{game=\"chess\",serverType=\"\",thing=\"hat\",le=\"+Inf\"} 1",
    ] {
        assert!(text.contains(line), "{line}\nis not in\n{text}");
    }
    parse(&text);
}

#[test]
fn labels_that_prometheus_does_not_allow_are_refused_at_the_start() {
    for (label, value) in [("a-b", "x"), ("game", "x"), ("route", "x"), ("le", "x")] {
        let const_labels = [(label.to_owned(), value.to_owned())];
        let options = ExporterOptions { const_labels: &const_labels, ..ExporterOptions::default() };
        assert!(matches!(Exporter::new(&options), Err(MetricError::Invalid { .. })), "{label}");
    }
}

#[test]
fn an_application_cannot_take_a_name_that_is_there() {
    let custom = [CustomMetric {
        kind: CustomMetricKind::Gauge,
        subsystem: "acceptor".to_owned(),
        name: "connected_clients".to_owned(),
        help: "Help.".to_owned(),
        labels: Vec::new(),
    }];
    let options = ExporterOptions { custom: &custom, ..ExporterOptions::default() };
    assert!(matches!(Exporter::new(&options), Err(MetricError::Invalid { .. })));
}

#[test]
fn the_next_process_continues_the_counters() {
    let old = exporter();
    let core = old.core();
    core.counters.add(CoreCounter::Accepted, 7);
    core.counters.closed(CloseReason::Tls);
    old.counter("pitaya_handover_total", &["ok"]).unwrap().increment();
    let new = exporter();
    let mut totals = old.counter_totals();
    let of_another_version = |name: &str, labels: &[&str]| CounterTotal {
        name: name.to_owned(),
        labels: labels.iter().map(|label| (*label).to_owned()).collect(),
        value: 1,
    };
    totals.push(of_another_version("pitaya_gone_total", &[]));
    totals.push(of_another_version("pitaya_acceptor_connected_clients", &[]));
    new.start_from(totals);
    let new_core = new.core();
    new_core.counters.increment(CoreCounter::Accepted);
    let series = parse(&new.render());
    assert_eq!(value(&series, "pitaya_acceptor_accepted_total", ""), 8);
    assert_eq!(value(&series, "pitaya_acceptor_closed_total", "reason=\"tls\""), 1);
    assert_eq!(value(&series, "pitaya_handover_total", "result=\"ok\""), 1);
    assert_eq!(value(&series, "pitaya_acceptor_connected_clients", ""), 0);
}

#[test]
fn a_registry_accepts_the_exporter() {
    let exporter = exporter();
    let _core = exporter.core();
    let registry = prometheus::Registry::new();
    registry.register(Box::new(exporter)).unwrap();
    let names: Vec<String> =
        registry.gather().iter().map(|family| family.name().to_owned()).collect();
    assert!(names.contains(&"pitaya_acceptor_connected_clients".to_owned()));
}
