//! The machine: what it is, and what it did besides the systems while they were measured.

use std::fs;

use serde::Serialize;

use crate::programs::version;
use crate::systems::Binaries;

/// What the figures were measured on.
#[derive(Clone, Debug, Serialize)]
pub struct Machine {
    /// Cores that this process may use.
    pub cores: usize,
    /// Model of the processor.
    pub processor: String,
    /// Memory, bytes.
    pub memory_bytes: u64,
    /// Name and release.
    pub kernel: String,
    /// Versions of the programs.
    pub versions: Vec<(String, String)>,
}

impl Machine {
    /// Looks at it.
    pub fn read(binaries: &Binaries) -> Self {
        let processors = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        let mut programs = vec![
            ("gateway", &binaries.gateway, "--version"),
            ("worker", &binaries.worker, "--version"),
            ("nats-server", &binaries.nats_server, "--version"),
            ("etcd", &binaries.etcd, "--version"),
        ];
        if let Some(path) = &binaries.pitaya_server {
            programs.push(("pitaya-server", path, "-version"));
        }
        let versions = programs
            .into_iter()
            .map(|(name, path, flag)| (name.to_owned(), version(path, flag)))
            .collect();
        Self {
            cores: std::thread::available_parallelism().map_or(0, Into::into),
            processor: field(&processors, "model name").unwrap_or("unknown").to_owned(),
            memory_bytes: field(&memory, "MemTotal").and_then(kibibytes).unwrap_or_default(),
            kernel: format!("{} {}", std::env::consts::OS, kernel.trim()),
            versions,
        }
    }
}

/// The value behind `NAME:` in a file of `/proc`.
fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    Some(line.trim_start().strip_prefix(':')?.trim())
}

fn kibibytes(text: &str) -> Option<u64> {
    text.strip_suffix("kB")?.trim().parse::<u64>().ok().map(|number| number * 1024)
}

/// What the machine did during a run besides it. All shares are of all cores together, from 0 to 1.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Noise {
    /// One-minute load average at the end.
    pub load_average: f64,
    /// CPU time of programs that have nothing to do with the run.
    pub other_share: f64,
    /// CPU time that the hypervisor gave to others.
    pub steal_share: f64,
    /// CPU time that nobody wanted.
    pub idle_share: f64,
}

/// A watch over one run.
pub struct NoiseWatch {
    processes: Vec<u32>,
    start: Ticks,
}

/// Clock ticks since the machine started.
#[derive(Clone, Copy, Default)]
struct Ticks {
    total: u64,
    idle: u64,
    steal: u64,
    /// Of the run's own processes, this one among them.
    own: u64,
}

impl NoiseWatch {
    /// Starts watching; `processes` and this one belong to the run.
    pub fn start(processes: &[(&str, u32)]) -> Self {
        let mut processes: Vec<u32> = processes.iter().map(|(_, id)| *id).collect();
        processes.push(std::process::id());
        let start = Ticks::read(&processes);
        Self { processes, start }
    }

    /// Ends it.
    pub fn end(self) -> Noise {
        let end = Ticks::read(&self.processes);
        let start = self.start;
        let total = end.total.saturating_sub(start.total).max(1) as f64;
        let idle = end.idle.saturating_sub(start.idle) as f64;
        let steal = end.steal.saturating_sub(start.steal) as f64;
        let own = end.own.saturating_sub(start.own) as f64;
        let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
        Noise {
            load_average: load.split(' ').next().and_then(|text| text.parse().ok()).unwrap_or(0.0),
            other_share: ((total - idle - steal - own) / total).max(0.0),
            steal_share: steal / total,
            idle_share: idle / total,
        }
    }
}

impl Ticks {
    /// Zeros where there is no `/proc`.
    fn read(processes: &[u32]) -> Self {
        let text = fs::read_to_string("/proc/stat").unwrap_or_default();
        let mut ticks = Self::of_machine(text.lines().next().unwrap_or_default());
        ticks.own = processes.iter().filter_map(|id| process_ticks(*id)).sum();
        ticks
    }

    /// Of `cpu  user nice system idle iowait irq softirq steal guest guest_nice`; the last two are in the first two.
    fn of_machine(line: &str) -> Self {
        let fields: Vec<u64> = line.split_whitespace().skip(1).flat_map(str::parse).collect();
        let at = |index: usize| fields.get(index).copied().unwrap_or_default();
        Self { total: fields.iter().take(8).sum(), idle: at(3) + at(4), steal: at(7), own: 0 }
    }
}

/// User and system time; counting starts behind the name, which may contain anything.
fn process_ticks(id: u32) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
    let (_, fields) = text.rsplit_once(')')?;
    let mut fields = fields.split_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some(user + system)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_times_of_the_machine_are_read_by_their_place() {
        let ticks = Ticks::of_machine("cpu  100 20 30 400 50 6 7 8 90 10");
        assert_eq!((ticks.total, ticks.idle, ticks.steal), (621, 450, 8));
        assert_eq!(Ticks::of_machine("").total, 0);
    }

    #[test]
    fn fields_are_found_by_their_name() {
        let text = "MemTotal:       16 kB\nMemFree:  5 kB\n";
        assert_eq!(field(text, "MemTotal").and_then(kibibytes), Some(16 * 1024));
        assert_eq!(field("model name\t: A B\n", "model name"), Some("A B"));
        assert_eq!(field(text, "Nothing"), None);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn shares_are_shares() {
        let noise = NoiseWatch::start(&[]).end();
        for share in [noise.other_share, noise.steal_share, noise.idle_share] {
            assert!((0.0..=1.0).contains(&share), "{noise:?}");
        }
    }
}
