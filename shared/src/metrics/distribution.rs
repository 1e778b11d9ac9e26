//! Counts of durations in buckets that grow with them, from which quantiles are read.
//!
//! ```text
//! bucket 0        everything below 1.024 µs
//! then 8 equal buckets for each doubling: 1.024 µs, 1.152 µs, … 2.048 µs, 2.304 µs, …
//! last bucket     everything from about 137 s on (for latencies)
//! ```
//!
//! A quantile is off by less than an eighth of its value, usually by far less, since it is interpolated inside its
//! bucket. Recording neither locks nor allocates.

use std::sync::atomic::{AtomicU64, Ordering};

use super::counters::{add_alone, read};

/// Buckets for each doubling: 2 to the power of this.
const STEP_BITS: u32 = 3;
const STEPS: usize = 1 << STEP_BITS;
/// The first doubling starts at 2 to the power of this, in nanoseconds: below a microsecond nothing is interesting.
const FIRST_BITS: u32 = 10;
/// And the last ends at 2 to the power of this: no request lives for more than two minutes.
const LAST_BITS: u32 = 37;
const LATENCY_BUCKETS: usize = 1 + (LAST_BITS - FIRST_BITS) as usize * STEPS + 1;

/// Enough for every 64-bit value.
const WIDE_BUCKETS: usize = 1 + (u64::BITS - FIRST_BITS) as usize * STEPS;

/// How many values fell into each bucket, and their sum.
#[derive(Debug)]
pub(super) struct Distribution<const BUCKETS: usize = LATENCY_BUCKETS> {
    counts: [AtomicU64; BUCKETS],
    sum_ns: AtomicU64,
}

/// For values that are no latencies and may be of any size.
pub(super) type WideDistribution = Distribution<WIDE_BUCKETS>;

/// A copy of a [`Distribution`], or the sum of several.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Snapshot {
    counts: Vec<u64>,
    pub(super) sum_ns: u64,
}

impl<const BUCKETS: usize> Distribution<BUCKETS> {
    pub(super) fn new() -> Self {
        Self { counts: std::array::from_fn(|_| AtomicU64::new(0)), sum_ns: AtomicU64::new(0) }
    }

    /// Records as the only writer.
    pub(super) fn record_alone(&self, ns: u64) {
        add_alone(&self.counts[bucket_of(ns).min(BUCKETS - 1)], 1);
        add_alone(&self.sum_ns, ns);
    }

    /// Records while others do too.
    pub(super) fn record_shared(&self, ns: u64) {
        self.counts[bucket_of(ns).min(BUCKETS - 1)].fetch_add(1, Ordering::Relaxed);
        self.sum_ns.fetch_add(ns, Ordering::Relaxed);
    }

    /// Adds the present counts to a snapshot.
    pub(super) fn add_to(&self, snapshot: &mut Snapshot) {
        snapshot.grow(BUCKETS);
        for (sum, cell) in snapshot.counts.iter_mut().zip(&self.counts) {
            *sum += read(cell);
        }
        snapshot.sum_ns = snapshot.sum_ns.wrapping_add(read(&self.sum_ns));
    }
}

impl Snapshot {
    pub(super) fn empty() -> Self {
        Self { counts: Vec::new(), sum_ns: 0 }
    }

    /// Adds another snapshot.
    pub(super) fn add(&mut self, other: &Self) {
        self.grow(other.counts.len());
        for (sum, count) in self.counts.iter_mut().zip(&other.counts) {
            *sum += count;
        }
        self.sum_ns = self.sum_ns.wrapping_add(other.sum_ns);
    }

    fn grow(&mut self, buckets: usize) {
        let buckets = buckets.max(self.counts.len());
        self.counts.resize(buckets, 0);
    }

    /// How many values there are.
    pub(super) fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// What came after an older snapshot of the same distribution.
    pub(super) fn since(&self, older: &Self) -> Self {
        let mut since = self.clone();
        for (count, old) in since.counts.iter_mut().zip(&older.counts) {
            *count = count.saturating_sub(*old);
        }
        since.sum_ns = since.sum_ns.wrapping_sub(older.sum_ns);
        since
    }

    /// The value below which this share of the values lies; not a number when there are none.
    pub(super) fn quantile(&self, share: f64) -> f64 {
        let count = self.count();
        if count == 0 {
            return f64::NAN;
        }
        let rank = (share * count as f64).clamp(1.0, count as f64);
        let mut below = 0.0;
        for (bucket, in_bucket) in self.counts.iter().enumerate() {
            let in_bucket = *in_bucket as f64;
            if below + in_bucket >= rank {
                let (lower, upper) = (lower_bound_ns(bucket), lower_bound_ns(bucket + 1));
                return lower + (upper - lower) * (rank - below) / in_bucket;
            }
            below += in_bucket;
        }
        f64::NAN
    }
}

/// The bucket of a value, without regard to a last one.
fn bucket_of(ns: u64) -> usize {
    if ns < 1 << FIRST_BITS {
        return 0;
    }
    let doubling = ns.ilog2();
    let step = (ns >> (doubling - STEP_BITS)) as usize & (STEPS - 1);
    1 + (doubling - FIRST_BITS) as usize * STEPS + step
}

fn lower_bound_ns(bucket: usize) -> f64 {
    if bucket == 0 {
        return 0.0;
    }
    let (doubling, step) = ((bucket - 1) / STEPS, (bucket - 1) % STEPS);
    let start = f64::from(FIRST_BITS + doubling as u32).exp2();
    start * (1.0 + step as f64 / STEPS as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_falls_between_the_bounds_of_its_bucket() {
        let mut random = fastrand::Rng::with_seed(3);
        let edges = (0..64).flat_map(|bits| {
            let power = 1u64 << bits;
            [power - 1, power, power + 1]
        });
        let values: Vec<u64> =
            edges.chain((0..10_000).map(|_| random.u64(..) >> random.u32(0..64))).collect();
        for ns in values {
            let bucket = bucket_of(ns);
            assert!(lower_bound_ns(bucket) <= ns as f64, "{ns}");
            assert!(bucket < WIDE_BUCKETS, "{ns}");
            // The largest numbers are rounded up on their way to a float.
            assert!(ns >> 53 > 0 || (ns as f64) < lower_bound_ns(bucket + 1), "{ns}");
        }
    }

    #[test]
    fn quantiles_are_close_to_the_exact_ones() {
        let distribution: Distribution = Distribution::new();
        let mut random = fastrand::Rng::with_seed(5);
        let mut values: Vec<u64> = (0..20_000).map(|_| 20_000 + random.u64(0..5_000_000)).collect();
        for ns in &values {
            distribution.record_alone(*ns);
        }
        values.sort_unstable();
        let mut snapshot = Snapshot::empty();
        distribution.add_to(&mut snapshot);
        assert_eq!((snapshot.count(), snapshot.sum_ns), (20_000, values.iter().sum()));
        for share in [0.5, 0.7, 0.95, 0.99] {
            let exact = values[(share * 20_000.0) as usize] as f64;
            let error = (snapshot.quantile(share) - exact).abs() / exact;
            assert!(error < 0.05, "{share}: off by {error}");
        }
    }

    #[test]
    fn edges_give_sensible_quantiles() {
        let mut snapshot = Snapshot::empty();
        assert!(snapshot.quantile(0.5).is_nan());
        let distribution: Distribution = Distribution::new();
        distribution.record_shared(u64::MAX);
        distribution.add_to(&mut snapshot);
        assert!(snapshot.quantile(0.99) >= 137e9);
        let later = {
            distribution.record_shared(0);
            let mut later = Snapshot::empty();
            distribution.add_to(&mut later);
            later.since(&snapshot)
        };
        assert_eq!(later.count(), 1);
        assert!(later.quantile(0.99) <= 1_024.0);
    }
}
