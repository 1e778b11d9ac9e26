//! What one thread counted. Plain numbers and histograms, merged at the end.
//!
//! A request belongs to the measured window by the time it was due (open loop) or sent (closed loop), and is then
//! counted to its end even if that comes later: in the window, `sent` = `answered` + `failed()`.

use std::collections::BTreeMap;

use hdrhistogram::Histogram;

/// Histograms count to one hour, in nanoseconds, with three significant digits: 0.25 MiB each.
const LONGEST_NS: u64 = 3_600_000_000_000;

/// The measured window in nanoseconds of the run's clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Window {
    /// First.
    pub(crate) from_ns: u64,
    /// Behind the last.
    pub(crate) to_ns: u64,
}

impl Window {
    pub(crate) fn contains(&self, time_ns: u64) -> bool {
        (self.from_ns..self.to_ns).contains(&time_ns)
    }
}

/// A request that is out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Pending {
    pub(crate) id: u32,
    /// When it should have left.
    pub(crate) due_ns: u64,
    /// When it left.
    pub(crate) sent_ns: u64,
}

/// Counts and times of one thread.
#[derive(Debug)]
pub(crate) struct Tally {
    /// `None` until the load starts.
    pub(crate) window: Option<Window>,
    pub(crate) connected: u64,
    pub(crate) alive: u64,
    pub(crate) connect_failures: BTreeMap<String, u64>,
    pub(crate) disconnects: BTreeMap<String, u64>,
    pub(crate) sent: u64,
    pub(crate) answered: u64,
    /// Due in the window, and never sent because every connection was full or lost.
    pub(crate) unsent: u64,
    /// Failed requests of the window by code.
    pub(crate) errors: BTreeMap<String, u64>,
    /// Answers to requests that had been given up.
    pub(crate) late: u64,
    pub(crate) pushes: u64,
    /// Pushes received in the window.
    pub(crate) pushes_measured: u64,
    pub(crate) heartbeats: u64,
    pub(crate) bytes_received: u64,
    pub(crate) bytes_sent: u64,
    /// Answers and failures of the whole run, for progress and rates.
    pub(crate) completed: u64,
    pub(crate) failed: u64,
    /// From due to answered.
    pub(crate) latency_ns: Histogram<u64>,
    /// From sent to answered.
    pub(crate) service_ns: Histogram<u64>,
    /// From due to sent: the load generator's own lateness, and waiting for room in a connection.
    pub(crate) delay_ns: Histogram<u64>,
    /// From the first packet of the network to the accepted handshake.
    pub(crate) connect_ns: Histogram<u64>,
}

fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, LONGEST_NS, 3).expect("constant bounds that the library allows")
}

impl Tally {
    pub(crate) fn new() -> Self {
        Self {
            window: None,
            connected: 0,
            alive: 0,
            connect_failures: BTreeMap::new(),
            disconnects: BTreeMap::new(),
            sent: 0,
            answered: 0,
            unsent: 0,
            errors: BTreeMap::new(),
            late: 0,
            pushes: 0,
            pushes_measured: 0,
            heartbeats: 0,
            bytes_received: 0,
            bytes_sent: 0,
            completed: 0,
            failed: 0,
            latency_ns: histogram(),
            service_ns: histogram(),
            delay_ns: histogram(),
            connect_ns: histogram(),
        }
    }

    fn is_measured(&self, due_ns: u64) -> bool {
        self.window.is_some_and(|window| window.contains(due_ns))
    }

    pub(crate) fn handle_sent(&mut self, due_ns: u64, sent_ns: u64) {
        if self.is_measured(due_ns) {
            self.sent += 1;
            self.delay_ns.saturating_record(sent_ns.saturating_sub(due_ns));
        }
    }

    /// A notify is done when it is sent.
    pub(crate) fn handle_notified(&mut self, due_ns: u64, sent_ns: u64) {
        self.handle_sent(due_ns, sent_ns);
        self.completed += 1;
        if self.is_measured(due_ns) {
            self.answered += 1;
        }
    }

    pub(crate) fn handle_answered(&mut self, pending: &Pending, now_ns: u64) {
        self.completed += 1;
        if self.is_measured(pending.due_ns) {
            self.answered += 1;
            self.latency_ns.saturating_record(now_ns.saturating_sub(pending.due_ns));
            self.service_ns.saturating_record(now_ns.saturating_sub(pending.sent_ns));
        }
    }

    pub(crate) fn handle_failed(&mut self, pending: &Pending, code: &str) {
        self.failed += 1;
        if self.is_measured(pending.due_ns) {
            count(&mut self.errors, code);
        }
    }

    pub(crate) fn handle_pushed(&mut self, now_ns: u64) {
        self.pushes += 1;
        if self.is_measured(now_ns) {
            self.pushes_measured += 1;
        }
    }

    pub(crate) fn handle_unsent(&mut self, due_ns: u64) {
        if self.is_measured(due_ns) {
            self.unsent += 1;
        }
    }

    /// Failed requests of the window.
    pub(crate) fn failed(&self) -> u64 {
        self.errors.values().sum()
    }

    /// Everything that went wrong, for the exit code.
    pub(crate) fn error_count(&self) -> u64 {
        let connections = self.connect_failures.values().chain(self.disconnects.values());
        self.failed() + self.unsent + connections.sum::<u64>()
    }

    pub(crate) fn merge(&mut self, other: &Self) {
        self.window = self.window.or(other.window);
        for (mine, theirs) in [
            (&mut self.connected, other.connected),
            (&mut self.alive, other.alive),
            (&mut self.sent, other.sent),
            (&mut self.answered, other.answered),
            (&mut self.unsent, other.unsent),
            (&mut self.late, other.late),
            (&mut self.pushes, other.pushes),
            (&mut self.pushes_measured, other.pushes_measured),
            (&mut self.heartbeats, other.heartbeats),
            (&mut self.bytes_received, other.bytes_received),
            (&mut self.bytes_sent, other.bytes_sent),
            (&mut self.completed, other.completed),
            (&mut self.failed, other.failed),
        ] {
            *mine += theirs;
        }
        for (mine, theirs) in [
            (&mut self.connect_failures, &other.connect_failures),
            (&mut self.disconnects, &other.disconnects),
            (&mut self.errors, &other.errors),
        ] {
            for (name, number) in theirs {
                *mine.entry(name.clone()).or_default() += number;
            }
        }
        for (mine, theirs) in [
            (&mut self.latency_ns, &other.latency_ns),
            (&mut self.service_ns, &other.service_ns),
            (&mut self.delay_ns, &other.delay_ns),
            (&mut self.connect_ns, &other.connect_ns),
        ] {
            mine.add(theirs).expect("histograms of equal bounds");
        }
    }
}

/// Counts one more under this name; allocates only for the first.
pub(crate) fn count(counts: &mut BTreeMap<String, u64>, name: &str) {
    match counts.get_mut(name) {
        Some(number) => *number += 1,
        None => {
            counts.insert(name.to_owned(), 1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_due_in_the_window_is_measured_and_to_its_end() {
        let mut tally = Tally::new();
        tally.window = Some(Window { from_ns: 100, to_ns: 200 });
        for due_ns in [99, 100, 199, 200] {
            let pending = Pending { id: 1, due_ns, sent_ns: due_ns + 5 };
            tally.handle_sent(due_ns, pending.sent_ns);
            tally.handle_answered(&pending, due_ns + 1000);
        }
        assert_eq!((tally.sent, tally.answered, tally.completed), (2, 2, 4));
        assert_eq!(tally.latency_ns.max(), 1000);
        assert_eq!(tally.service_ns.max(), 995);
        assert_eq!(tally.delay_ns.max(), 5);
    }

    #[test]
    fn a_merge_adds_everything_up() {
        let mut one = Tally::new();
        one.window = Some(Window { from_ns: 0, to_ns: 10 });
        let mut two = Tally::new();
        two.window = one.window;
        let pending = Pending { id: 1, due_ns: 5, sent_ns: 5 };
        for tally in [&mut one, &mut two] {
            tally.handle_sent(5, 5);
            tally.handle_failed(&pending, "PIT-504");
            tally.handle_unsent(6);
            count(&mut tally.disconnects, "kicked");
        }
        one.merge(&two);
        assert_eq!((one.sent, one.failed(), one.unsent, one.error_count()), (2, 2, 2, 6));
        assert_eq!(one.delay_ns.len(), 2);
    }
}
