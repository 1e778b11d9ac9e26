//! Metrics that many threads may write at once, for the worker and for everything off the hot path.
//!
//! Handles are cheap to clone and never fail; making one is what can fail. They write with locked instructions,
//! so the reactors have something of their own.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::distribution::{Distribution, Snapshot, WideDistribution};

/// Only grows.
#[derive(Debug, Clone, Default)]
pub struct Counter(pub(super) Arc<AtomicU64>);

impl Counter {
    /// Counts one.
    pub fn increment(&self) {
        self.add(1);
    }

    /// Counts many.
    pub fn add(&self, count: u64) {
        self.0.fetch_add(count, Ordering::Relaxed);
    }

    /// What was counted so far by this process.
    pub fn value(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Goes up and down; holds the bits of a float.
#[derive(Debug, Clone, Default)]
pub struct Gauge(pub(super) Arc<AtomicU64>);

impl Gauge {
    /// Sets the present value.
    pub fn set(&self, value: f64) {
        self.0.store(value.to_bits(), Ordering::Relaxed);
    }

    /// Adds to the present value; a negative change takes away.
    pub fn add(&self, change: f64) {
        let update = |bits| Some((f64::from_bits(bits) + change).to_bits());
        // The closure never refuses, so neither does the update.
        let _ = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, update);
    }

    /// The present value.
    pub fn value(&self) -> f64 {
        f64::from_bits(self.0.load(Ordering::Relaxed))
    }
}

/// Quantiles of durations.
#[derive(Debug, Clone)]
pub struct Summary(pub(super) Arc<Distribution>);

impl Summary {
    pub(super) fn new() -> Self {
        Self(Arc::new(Distribution::new()))
    }

    /// Records one duration.
    pub fn observe(&self, duration: Duration) {
        self.0.record_shared(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX));
    }
}

/// Quantiles of values of an application, which are no durations.
#[derive(Debug, Clone)]
pub struct ValueSummary(pub(super) Arc<WideDistribution>);

/// Values are kept in steps of 1/2^20, so that small ones are told apart.
const STEPS_PER_ONE: f64 = 1_048_576.0;

impl ValueSummary {
    pub(super) fn new() -> Self {
        Self(Arc::new(WideDistribution::new()))
    }

    /// Records one value. Negative ones count as 0; resolution ends at about a thousandth.
    pub fn observe(&self, value: f64) {
        self.0.record_shared((value * STEPS_PER_ONE) as u64);
    }

    /// What a quantile or sum of the stored steps means.
    pub(super) fn unscaled(steps: f64) -> f64 {
        steps / STEPS_PER_ONE
    }

    pub(super) fn snapshot(&self) -> Snapshot {
        let mut snapshot = Snapshot::empty();
        self.0.add_to(&mut snapshot);
        snapshot
    }
}

/// Counts per bucket, with bounds that the application chose.
#[derive(Debug, Clone)]
pub struct Histogram(pub(super) Arc<Buckets>);

#[derive(Debug)]
pub(super) struct Buckets {
    /// Upper bounds, growing; values above the last are in none of them.
    pub(super) bounds: Vec<f64>,
    counts: Vec<AtomicU64>,
    sum: Gauge,
    count: Counter,
}

impl Histogram {
    pub(super) fn new(bounds: &[f64]) -> Self {
        let counts = bounds.iter().map(|_| AtomicU64::new(0)).collect();
        let (sum, count) = (Gauge::default(), Counter::default());
        Self(Arc::new(Buckets { bounds: bounds.to_vec(), counts, sum, count }))
    }

    /// Records one value.
    pub fn observe(&self, value: f64) {
        let bucket = self.0.bounds.partition_point(|bound| *bound < value);
        if let Some(count) = self.0.counts.get(bucket) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        self.0.sum.add(value);
        self.0.count.increment();
    }

    /// Each bound with the count of values up to it, the sum, and the count of all.
    pub(super) fn read(&self) -> (Vec<(f64, u64)>, f64, u64) {
        let mut cumulative = 0;
        let buckets = self.0.bounds.iter().zip(&self.0.counts).map(|(bound, count)| {
            cumulative += count.load(Ordering::Relaxed);
            (*bound, cumulative)
        });
        (buckets.collect(), self.0.sum.value(), self.0.count.value())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_threads_lose_nothing() {
        let (counter, gauge, summary) = (Counter::default(), Gauge::default(), Summary::new());
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..1_000 {
                        counter.increment();
                        gauge.add(0.5);
                        summary.observe(Duration::from_millis(1));
                    }
                });
            }
        });
        let mut snapshot = Snapshot::empty();
        summary.0.add_to(&mut snapshot);
        assert_eq!(
            (counter.value(), snapshot.count(), snapshot.sum_ns),
            (4_000, 4_000, 4_000_000_000)
        );
        assert!((gauge.value() - 2_000.0).abs() < f64::EPSILON);
    }

    #[test]
    fn values_of_any_size_have_quantiles() {
        for value in [0.01, 1.0, 250.0, 1e9] {
            let summary = ValueSummary::new();
            (0..100).for_each(|_| summary.observe(value));
            let median = ValueSummary::unscaled(summary.snapshot().quantile(0.5));
            assert!((median - value).abs() / value < 0.13, "{median} for {value}");
        }
        ValueSummary::new().observe(f64::NAN);
    }

    #[test]
    fn a_bound_belongs_to_its_bucket() {
        let histogram = Histogram::new(&[1.0, 2.0]);
        for value in [0.5, 1.0, 1.5, 2.0, 2.5] {
            histogram.observe(value);
        }
        let (buckets, sum, count) = histogram.read();
        assert_eq!((buckets, count), (vec![(1.0, 2), (2.0, 4)], 5));
        assert!((sum - 7.5).abs() < f64::EPSILON);
    }
}
