//! The process's clock: read once a turn by each reactor, never below it.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// Times begin at a day, not at zero, so that an age brought along from an earlier process stays an age.
const BEGIN_US: u64 = 86_400_000_000;

/// Where all reactors of a process count from.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    begin: Instant,
    /// Wall time of `begin`, ns since the epoch. A step of the wall clock later is not followed: it is used for
    /// measuring and for logs of other servers, which prefer steady differences.
    begin_unix_ns: u64,
    /// The time of a simulated world, µs since its begin.
    #[cfg(feature = "simulation")]
    simulated_us: Option<&'static std::sync::atomic::AtomicU64>,
}

/// One reading.
#[derive(Clone, Copy, Debug, Default)]
pub struct Reading {
    /// Monotonic, ms.
    pub ms: u64,
    /// Monotonic, µs.
    pub us: u64,
    /// Wall, ns since the epoch.
    pub unix_ns: u64,
}

impl Clock {
    /// Starts now.
    pub fn start() -> Self {
        let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self {
            begin: Instant::now(),
            begin_unix_ns: unix.as_nanos() as u64,
            #[cfg(feature = "simulation")]
            simulated_us: None,
        }
    }

    /// A clock that stands until `elapsed_us` is set.
    #[cfg(feature = "simulation")]
    pub fn simulated(elapsed_us: &'static std::sync::atomic::AtomicU64) -> Self {
        Self { begin_unix_ns: 0, simulated_us: Some(elapsed_us), ..Self::start() }
    }

    fn elapsed(&self) -> std::time::Duration {
        #[cfg(feature = "simulation")]
        if let Some(us) = self.simulated_us {
            return std::time::Duration::from_micros(us.load(std::sync::atomic::Ordering::Relaxed));
        }
        self.begin.elapsed()
    }

    /// Reads the clock; one call of `clock_gettime`, which stays in user space.
    pub fn read(&self) -> Reading {
        let elapsed = self.elapsed();
        let us = BEGIN_US + elapsed.as_micros() as u64;
        Reading { ms: us / 1_000, us, unix_ns: self.begin_unix_ns + elapsed.as_nanos() as u64 }
    }
}
