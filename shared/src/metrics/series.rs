//! One series and the row that it belongs to, and how both look to Prometheus.
//!
//! Nothing is collected here. The invariant: all samples of a row are of the row's kind.

use std::collections::{BTreeMap, HashMap};

use prometheus::core::Desc;
use prometheus::proto;
use thiserror::Error;

use super::distribution::Snapshot;
use super::handles::{Counter, Gauge, Histogram, Summary, ValueSummary};
use super::rows::{MetricKind, MetricRow};
use crate::config::{CustomMetric, CustomMetricKind};

/// The quantiles of Pitaya's summaries.
pub(super) const QUANTILES: [f64; 3] = [0.7, 0.95, 0.99];

/// Why a metric cannot be had.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum MetricError {
    /// There is no metric of this name and kind.
    #[error("the provided metric does not exist: {name}")]
    Unknown {
        /// The name that was asked for.
        name: String,
    },
    /// The label values do not match the metric's labels.
    #[error("metric {name} has {expected} labels, not {given}")]
    LabelCount {
        /// The metric.
        name: String,
        /// How many labels it has.
        expected: usize,
        /// How many values were given.
        given: usize,
    },
    /// A name or label of the configuration is not one for Prometheus, or is there twice.
    #[error("metric {name}: {reason}")]
    Invalid {
        /// The metric.
        name: String,
        /// What Prometheus says.
        reason: String,
    },
}

/// A row of the table, or a metric of the application.
pub(super) struct Row {
    pub(super) name: String,
    /// The name that applications use for their own metrics.
    pub(super) short_name: String,
    pub(super) kind: MetricKind,
    pub(super) labels: Vec<String>,
    pub(super) help: String,
    /// Quantiles of a summary.
    pub(super) quantiles: Vec<f64>,
    /// Bounds of a histogram.
    pub(super) buckets: Vec<f64>,
    pub(super) is_custom: bool,
}

/// Index of the row, and the label values.
pub(super) type SeriesKey = (usize, Vec<String>);

#[derive(Clone)]
pub(super) enum Handle {
    Counter(Counter),
    Gauge(Gauge),
    Summary(Summary),
    ValueSummary(ValueSummary),
    Histogram(Histogram),
}

/// The present value of one series.
pub(super) enum Sample {
    Counter(u64),
    Gauge(f64),
    Summary(Snapshot),
    Histogram { buckets: Vec<(f64, u64)>, sum: f64, count: u64 },
}

pub(super) fn summary_handle(row: &Row) -> Handle {
    if row.is_custom {
        Handle::ValueSummary(ValueSummary::new())
    } else {
        Handle::Summary(Summary::new())
    }
}

fn bucket((bound, count): (f64, u64)) -> proto::Bucket {
    let mut bucket = proto::Bucket::default();
    bucket.set_upper_bound(bound);
    bucket.set_cumulative_count(count);
    bucket
}

/// Adds a sample to the one of the same series, which another reactor or handle may have made.
pub(super) fn add(samples: &mut BTreeMap<SeriesKey, Sample>, key: SeriesKey, sample: Sample) {
    match (samples.get_mut(&key), sample) {
        (Some(Sample::Counter(sum)), Sample::Counter(value)) => *sum = sum.wrapping_add(value),
        (Some(Sample::Gauge(sum)), Sample::Gauge(value)) => *sum += value,
        (Some(Sample::Summary(sum)), Sample::Summary(snapshot)) => sum.add(&snapshot),
        (_, sample) => {
            samples.insert(key, sample);
        }
    }
}

impl Handle {
    pub(super) fn sample(&self) -> Sample {
        match self {
            Self::Counter(counter) => Sample::Counter(counter.value()),
            Self::Gauge(gauge) => Sample::Gauge(gauge.value()),
            Self::Summary(summary) => {
                let mut snapshot = Snapshot::empty();
                summary.0.add_to(&mut snapshot);
                Sample::Summary(snapshot)
            }
            Self::ValueSummary(summary) => Sample::Summary(summary.snapshot()),
            Self::Histogram(histogram) => {
                let (buckets, sum, count) = histogram.read();
                Sample::Histogram { buckets, sum, count }
            }
        }
    }
}

impl Row {
    pub(super) fn from_table(row: &MetricRow) -> Self {
        Self {
            name: row.name.to_owned(),
            short_name: String::new(),
            kind: row.kind,
            labels: row.labels.iter().map(|label| (*label).to_owned()).collect(),
            help: row.help.to_owned(),
            quantiles: QUANTILES.to_vec(),
            buckets: Vec::new(),
            is_custom: false,
        }
    }

    pub(super) fn from_custom(metric: &CustomMetric) -> Self {
        let (mut quantiles, mut buckets) = (Vec::new(), Vec::new());
        let kind = match &metric.kind {
            CustomMetricKind::Counter => MetricKind::Counter,
            CustomMetricKind::Gauge => MetricKind::Gauge,
            CustomMetricKind::Summary { objectives } => {
                quantiles = objectives.iter().map(|(quantile, _)| *quantile).collect();
                MetricKind::Summary
            }
            CustomMetricKind::Histogram { buckets: bounds } => {
                buckets.clone_from(bounds);
                MetricKind::Histogram
            }
        };
        let parts = ["pitaya", &metric.subsystem, &metric.name];
        let name = parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join("_");
        Self {
            name,
            short_name: metric.name.clone(),
            kind,
            labels: metric.labels.clone(),
            help: metric.help.clone(),
            quantiles,
            buckets,
            is_custom: true,
        }
    }

    pub(super) fn desc(&self, const_labels: &[(String, String)]) -> Result<Desc, MetricError> {
        let constant: HashMap<String, String> = const_labels.iter().cloned().collect();
        let invalid = |reason: String| MetricError::Invalid { name: self.name.clone(), reason };
        if constant.len() != const_labels.len() {
            return Err(invalid("a constant label is there twice".to_owned()));
        }
        let reserved = ["quantile", "le"];
        let mut own = self.labels.iter().map(String::as_str).chain(reserved);
        if let Some(label) = own.find(|label| constant.contains_key(*label)) {
            return Err(invalid(format!("{label} cannot be a constant label as well")));
        }
        Desc::new(self.name.clone(), self.help.clone(), self.labels.clone(), constant)
            .map_err(|error| invalid(error.to_string()))
    }

    /// One series. `window` is an older snapshot of it, from which the quantiles start.
    pub(super) fn metric(
        &self,
        labels: Vec<proto::LabelPair>,
        sample: &Sample,
        window: Option<&Snapshot>,
    ) -> proto::Metric {
        let mut metric = proto::Metric::from_label(labels);
        match sample {
            Sample::Counter(value) => {
                let mut counter = proto::Counter::default();
                counter.set_value(*value as f64);
                metric.set_counter(counter);
            }
            Sample::Gauge(value) => {
                let mut gauge = proto::Gauge::default();
                gauge.set_value(*value);
                metric.set_gauge(gauge);
            }
            Sample::Summary(snapshot) => metric.set_summary(self.summary(snapshot, window)),
            Sample::Histogram { buckets, sum, count } => {
                let mut histogram = proto::Histogram::default();
                histogram.set_bucket(buckets.iter().copied().map(bucket).collect());
                histogram.set_sample_sum(*sum);
                histogram.set_sample_count(*count);
                metric.set_histogram(histogram);
            }
        }
        metric
    }

    /// Sum and count are of the whole life, quantiles of the window.
    fn summary(&self, snapshot: &Snapshot, window: Option<&Snapshot>) -> proto::Summary {
        let scale = |value: f64| if self.is_custom { ValueSummary::unscaled(value) } else { value };
        let recent = window.map(|window| snapshot.since(window));
        let recent = recent.as_ref().unwrap_or(snapshot);
        let quantiles = self.quantiles.iter().map(|share| {
            let mut quantile = proto::Quantile::default();
            quantile.set_quantile(*share);
            quantile.set_value(scale(recent.quantile(*share)));
            quantile
        });
        let mut summary = proto::Summary::default();
        summary.set_quantile(quantiles.collect());
        summary.set_sample_sum(scale(snapshot.sum_ns as f64));
        summary.set_sample_count(snapshot.count());
        summary
    }
}
