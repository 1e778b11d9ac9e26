//! CPU time and memory of processes, from `/proc`.
//!
//! Linux only; elsewhere every reading is absent. CPU time counts in clock ticks of 10 ms, so a window of some seconds
//! is what it takes for a precise figure a request.

use std::fs;

/// One reading.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Reading {
    /// User and system time since the process began, of all its threads.
    pub(crate) cpu_us: u64,
    /// Resident memory now.
    pub(crate) rss_bytes: u64,
    /// Largest resident memory so far.
    pub(crate) rss_peak_bytes: u64,
}

/// Reads a process; `None` when it is not there or `/proc` is not.
pub(crate) fn read(pid: u32) -> Option<Reading> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let cpu_us = cpu_ticks(&stat)? * 1_000_000 / rustix::param::clock_ticks_per_second();
    let rss_bytes = kibibytes(&status, "VmRSS:")? * 1024;
    let rss_peak_bytes = kibibytes(&status, "VmHWM:")? * 1024;
    Some(Reading { cpu_us, rss_bytes, rss_peak_bytes })
}

/// Fields 14 and 15. Field 2, the name, may contain anything, blanks and brackets included, so counting starts behind
/// its last bracket.
fn cpu_ticks(stat: &str) -> Option<u64> {
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some(user + system)
}

fn kibibytes(status: &str, name: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fields_are_found_behind_a_hostile_process_name() {
        let stat = "7 (a ) b) S 1 7 7 0 -1 4194560 100 0 0 0 250 50 0 0 20 0 1 0 5 6 7";
        assert_eq!(cpu_ticks(stat), Some(300));
        assert_eq!(cpu_ticks("7 (a) S 1"), None);
        assert_eq!(kibibytes("VmHWM:\t  20 kB\nVmRSS:\t  12 kB\n", "VmRSS:"), Some(12));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn this_process_can_be_read_and_one_that_is_not_there_cannot() {
        let reading = read(std::process::id()).unwrap();
        assert!(reading.rss_bytes > 0 && reading.rss_peak_bytes >= reading.rss_bytes);
        assert_eq!(read(u32::MAX), None);
    }
}
