//! Metrics under Pitaya's names and labels, so that its dashboards keep working, and more of our own.
//!
//! Two ways to count: a reactor has [`CoreCounters`] and a [`LatencyTable`] to itself, written without locks or shared
//! cache lines; everything else takes [`Counter`], [`Gauge`] and [`Summary`] handles. The [`Exporter`] adds them up
//! when somebody asks. Names and labels come from tables, label values from closed sets. Nothing here speaks HTTP
//! or reads a clock.

mod counters;
mod distribution;
mod exporter;
mod handles;
mod labels;
mod latency;
mod rows;
mod series;

pub use counters::{CoreCounter, CoreCounters, CoreGauge};
pub use exporter::{CoreMetrics, CounterTotal, Exporter, ExporterOptions, SERIES_MAX};
pub use handles::{Counter, Gauge, Histogram, Summary, ValueSummary};
pub use labels::{CodeLabel, DelayType, DropReason, FailReason, LimitLabel, ResponseType};
pub use latency::{LatencyTable, ROUTES_MAX, RouteLabel};
pub use rows::{METRICS, MetricKind, MetricRow};
pub use series::MetricError;
