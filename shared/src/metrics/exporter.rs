//! Brings together what the reactors count and what handles count, and writes it in Prometheus' text form.
//!
//! Serving it over HTTP is the caller's. The invariants: a series has the same labels in the same order for ever, and
//! however many label values are asked for, a metric has no more than [`SERIES_MAX`] series by handles.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use prometheus::core::{Collector, Desc};
use prometheus::{TextEncoder, proto};

use super::counters::{Cells, CoreCounter, CoreCounters, read};
use super::distribution::Snapshot;
use super::handles::{Counter, Gauge, Histogram, Summary, ValueSummary};
use super::latency::{LatencyCells, LatencyTable, RouteDirectory, Series, series_at};
use super::rows::{METRICS, MetricKind, row_of};
use super::series::{Handle, MetricError, Row, Sample, SeriesKey, add, summary_handle};
use crate::config::CustomMetric;

/// How many series handles may make of one metric; further ones share one whose labels are all `other`.
pub const SERIES_MAX: usize = 200;

/// Quantiles are taken over the values since the oldest of so many rotations.
const WINDOWS: usize = 5;

/// What stands in the labels of series that found no place.
const OTHER: &str = "other";

/// What a process is, for the labels of all its series.
#[derive(Debug, Clone, Copy, Default)]
pub struct ExporterOptions<'a> {
    /// Label `game`.
    pub game: &'a str,
    /// Label `serverType`.
    pub server_type: &'a str,
    /// Further labels with constant values. The additional labels of the configuration go here too, with their default
    /// values.
    pub const_labels: &'a [(String, String)],
    /// Metrics of the application.
    pub custom: &'a [CustomMetric],
}

/// What one reactor writes to.
#[derive(Debug)]
pub struct CoreMetrics {
    /// Counters and gauges.
    pub counters: CoreCounters,
    /// Response times and delays by route.
    pub latency: LatencyTable,
}

/// The value of one counter, to be carried to the next process.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct CounterTotal {
    /// Full name of the metric.
    pub name: String,
    /// Values of its labels.
    pub labels: Vec<String>,
    /// What was counted.
    pub value: u64,
}

/// All metrics of a process. Clones share everything.
#[derive(Clone)]
pub struct Exporter(Arc<Inner>);

struct Inner {
    rows: Vec<Row>,
    const_labels: Vec<(String, String)>,
    descs: Vec<Desc>,
    directory: Arc<RouteDirectory>,
    cores: Mutex<Vec<(Arc<Cells>, Arc<LatencyCells>)>>,
    handles: Mutex<BTreeMap<SeriesKey, Handle>>,
    /// What earlier processes of this service counted.
    base: Mutex<BTreeMap<SeriesKey, u64>>,
    /// Snapshots of all summaries at the last rotations, the oldest first.
    windows: Mutex<VecDeque<BTreeMap<SeriesKey, Snapshot>>>,
}

impl fmt::Debug for Exporter {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Exporter").finish_non_exhaustive()
    }
}

/// A thread that panicked while it held one of these locks left no half-done change behind.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Exporter {
    /// All metrics of the table and of the application.
    ///
    /// # Errors
    /// [`MetricError::Invalid`] for a label or name of the configuration that Prometheus does not allow.
    pub fn new(options: &ExporterOptions<'_>) -> Result<Self, MetricError> {
        let mut const_labels = vec![
            ("game".to_owned(), options.game.to_owned()),
            ("serverType".to_owned(), options.server_type.to_owned()),
        ];
        const_labels.extend_from_slice(options.const_labels);
        let rows: Vec<Row> = METRICS
            .iter()
            .map(Row::from_table)
            .chain(options.custom.iter().map(Row::from_custom))
            .collect();
        for (index, row) in rows.iter().enumerate() {
            if rows.iter().take(index).any(|earlier| earlier.name == row.name) {
                let reason = "there are two of this name".to_owned();
                return Err(MetricError::Invalid { name: row.name.clone(), reason });
            }
        }
        let descs = rows.iter().map(|row| row.desc(&const_labels)).collect::<Result<_, _>>()?;
        Ok(Self(Arc::new(Inner {
            rows,
            const_labels,
            descs,
            directory: Arc::new(RouteDirectory::new()),
            cores: Mutex::default(),
            handles: Mutex::default(),
            base: Mutex::default(),
            windows: Mutex::default(),
        })))
    }

    /// Adds a reactor. Allocates all that its counters need.
    pub fn core(&self) -> CoreMetrics {
        let (cells, latency) = (Arc::new(Cells::new()), Arc::new(LatencyCells::new()));
        lock(&self.0.cores).push((Arc::clone(&cells), Arc::clone(&latency)));
        CoreMetrics {
            counters: CoreCounters::new(cells),
            latency: LatencyTable::new(latency, Arc::clone(&self.0.directory)),
        }
    }

    /// What each reactor has counted so far, in the order in which they were added. Allocates.
    pub fn counts(&self, counter: CoreCounter) -> Vec<u64> {
        lock(&self.0.cores).iter().map(|(cells, _)| cells.count(counter)).collect()
    }

    /// The counter of a name with these label values. Asking again gives the same one.
    ///
    /// # Errors
    /// [`MetricError::Unknown`] or [`MetricError::LabelCount`], here and below.
    pub fn counter(&self, name: &str, labels: &[&str]) -> Result<Counter, MetricError> {
        let make = |_: &Row| Handle::Counter(Counter::default());
        match self.handle(name, MetricKind::Counter, labels, make)? {
            Handle::Counter(counter) => Ok(counter),
            _ => Err(unknown(name)),
        }
    }

    /// The gauge of a name with these label values.
    pub fn gauge(&self, name: &str, labels: &[&str]) -> Result<Gauge, MetricError> {
        let make = |_: &Row| Handle::Gauge(Gauge::default());
        match self.handle(name, MetricKind::Gauge, labels, make)? {
            Handle::Gauge(gauge) => Ok(gauge),
            _ => Err(unknown(name)),
        }
    }

    /// The summary of durations of a name with these label values.
    pub fn summary(&self, name: &str, labels: &[&str]) -> Result<Summary, MetricError> {
        match self.handle(name, MetricKind::Summary, labels, summary_handle)? {
            Handle::Summary(summary) => Ok(summary),
            _ => Err(unknown(name)),
        }
    }

    /// The application's own summary of a name with these label values.
    pub fn value_summary(&self, name: &str, labels: &[&str]) -> Result<ValueSummary, MetricError> {
        match self.handle(name, MetricKind::Summary, labels, summary_handle)? {
            Handle::ValueSummary(summary) => Ok(summary),
            _ => Err(unknown(name)),
        }
    }

    /// The application's own histogram of a name with these label values.
    pub fn histogram(&self, name: &str, labels: &[&str]) -> Result<Histogram, MetricError> {
        let make = |row: &Row| Handle::Histogram(Histogram::new(&row.buckets));
        match self.handle(name, MetricKind::Histogram, labels, make)? {
            Handle::Histogram(histogram) => Ok(histogram),
            _ => Err(unknown(name)),
        }
    }

    fn handle(
        &self,
        name: &str,
        kind: MetricKind,
        labels: &[&str],
        make: impl Fn(&Row) -> Handle,
    ) -> Result<Handle, MetricError> {
        let rows = &self.0.rows;
        let is_meant = |row: &Row| row.name == name || row.short_name == name;
        let index = rows.iter().position(is_meant).ok_or_else(|| unknown(name))?;
        let row = &rows[index];
        if row.kind != kind {
            return Err(unknown(name));
        }
        if row.labels.len() != labels.len() {
            let (expected, given) = (row.labels.len(), labels.len());
            return Err(MetricError::LabelCount { name: name.to_owned(), expected, given });
        }
        let mut handles = lock(&self.0.handles);
        let mut key = (index, labels.iter().map(|label| (*label).to_owned()).collect::<Vec<_>>());
        if !handles.contains_key(&key) {
            let series = handles.range((index, Vec::new())..(index + 1, Vec::new())).count();
            if series >= SERIES_MAX {
                key.1.fill(OTHER.to_owned());
            }
        }
        Ok(handles.entry(key).or_insert_with(|| make(row)).clone())
    }

    /// Starts a new window for the quantiles, which cover the last five windows or the whole life of the process if that
    /// is shorter. Call it every two minutes to get the ten minutes that Pitaya's summaries cover.
    pub fn rotate(&self) {
        let samples = self.samples();
        let summaries = samples.into_iter().filter_map(|(key, sample)| match sample {
            Sample::Summary(snapshot) => Some((key, snapshot)),
            _ => None,
        });
        let mut windows = lock(&self.0.windows);
        windows.push_back(summaries.collect());
        if windows.len() > WINDOWS {
            windows.pop_front();
        }
    }

    /// Everything that was counted, for the process that takes over.
    pub fn counter_totals(&self) -> Vec<CounterTotal> {
        let totals =
            self.samples().into_iter().filter_map(|((row, labels), sample)| match sample {
                Sample::Counter(value) => {
                    Some(CounterTotal { name: self.0.rows[row].name.clone(), labels, value })
                }
                _ => None,
            });
        totals.collect()
    }

    /// Continues the counters of the process before, so that nobody sees them fall. Unknown ones are ignored: the
    /// other process may be of another version.
    pub fn start_from(&self, totals: Vec<CounterTotal>) {
        let mut base = lock(&self.0.base);
        for total in totals {
            let row = self.0.rows.iter().position(|row| row.name == total.name);
            if let Some(row) = row
                && self.0.rows[row].kind == MetricKind::Counter
                && self.0.rows[row].labels.len() == total.labels.len()
            {
                base.insert((row, total.labels), total.value);
            }
        }
    }

    /// All metrics in Prometheus' text form.
    pub fn render(&self) -> String {
        TextEncoder::new().encode_to_string(&self.collect()).unwrap_or_else(|error| {
            // Only an empty family can fail, and none is made.
            debug_assert!(false, "{error}");
            String::new()
        })
    }

    /// The present value of every series.
    fn samples(&self) -> BTreeMap<SeriesKey, Sample> {
        let mut samples = BTreeMap::new();
        for ((row, labels), value) in lock(&self.0.base).iter() {
            add(&mut samples, (*row, labels.clone()), Sample::Counter(*value));
        }
        self.core_samples(&mut samples);
        for (key, handle) in lock(&self.0.handles).iter() {
            add(&mut samples, key.clone(), handle.sample());
        }
        samples
    }

    fn core_samples(&self, samples: &mut BTreeMap<SeriesKey, Sample>) {
        let index = |name: &str| row_of(name).map(|(index, _)| index).unwrap_or_default();
        let mut latencies = vec![None; LatencyCells::COUNT];
        for (cells, latency) in lock(&self.0.cores).iter() {
            for (name, value) in cells.counters() {
                add(samples, (index(name), Vec::new()), Sample::Counter(value));
            }
            for (name, value) in cells.gauges() {
                add(samples, (index(name), Vec::new()), Sample::Gauge(value as f64));
            }
            for (name, reasons) in cells.labelled() {
                for (reason, cell) in reasons {
                    let key = (index(name), vec![reason.to_owned()]);
                    add(samples, key, Sample::Counter(read(cell)));
                }
            }
            latency.add_to(&mut latencies);
        }
        let response_time = index("pitaya_handler_response_time_ns");
        let delay = index("pitaya_handler_handler_delay_ns");
        let routes = self.0.directory.names();
        for (place, snapshot) in latencies.into_iter().enumerate() {
            let (route, series) = series_at(place);
            let (Some(snapshot), Some(route)) = (snapshot, routes.get(route)) else { continue };
            let key = match series {
                Series::Response(kind, code) => {
                    (response_time, vec![route.as_ref(), code.status(), kind.name(), code.name()])
                }
                Series::Delay(kind) => (delay, vec![route.as_ref(), kind.name()]),
            };
            let labels = key.1.into_iter().map(str::to_owned).collect();
            add(samples, (key.0, labels), Sample::Summary(snapshot));
        }
    }

    /// The constant labels and those of one series.
    fn labels(&self, key: &SeriesKey) -> Vec<proto::LabelPair> {
        let own = self.0.rows[key.0].labels.iter().zip(&key.1);
        let constant = self.0.const_labels.iter().map(|(name, value)| (name, value));
        let pairs = constant.chain(own).map(|(name, value)| {
            let mut pair = proto::LabelPair::default();
            pair.set_name(name.clone());
            pair.set_value(value.clone());
            pair
        });
        pairs.collect()
    }
}

impl Collector for Exporter {
    fn desc(&self) -> Vec<&Desc> {
        self.0.descs.iter().collect()
    }

    /// Metrics without a series are left out.
    fn collect(&self) -> Vec<proto::MetricFamily> {
        let samples = self.samples();
        let windows = lock(&self.0.windows);
        let oldest = windows.front();
        let mut families: Vec<proto::MetricFamily> = Vec::new();
        let mut last_row = None;
        for (key, sample) in &samples {
            let row = &self.0.rows[key.0];
            if last_row != Some(key.0) {
                last_row = Some(key.0);
                let mut family = proto::MetricFamily::default();
                family.set_name(row.name.clone());
                family.set_help(row.help.clone());
                family.set_field_type(match row.kind {
                    MetricKind::Counter => proto::MetricType::COUNTER,
                    MetricKind::Gauge => proto::MetricType::GAUGE,
                    MetricKind::Summary => proto::MetricType::SUMMARY,
                    MetricKind::Histogram => proto::MetricType::HISTOGRAM,
                });
                families.push(family);
            }
            let window = oldest.and_then(|summaries| summaries.get(key));
            if let Some(family) = families.last_mut() {
                family.mut_metric().push(row.metric(self.labels(key), sample, window));
            }
        }
        families
    }
}

fn unknown(name: &str) -> MetricError {
    MetricError::Unknown { name: name.to_owned() }
}

#[cfg(test)]
#[path = "exporter_tests.rs"]
mod tests;
