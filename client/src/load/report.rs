//! What a run found, as JSON for programs and as text for people.

use std::collections::BTreeMap;
use std::fmt;

use hdrhistogram::Histogram;
use serde::Serialize;

use super::options::{LoadOptions, Mode};
use super::process::Reading;
use super::tally::Tally;

/// Result of a load run; the JSON's field names are these.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The server.
    pub target: String,
    /// `tcp` or `ws`.
    pub transport: String,
    /// `closed`, `open` or `idle`.
    pub mode: String,
    /// Route of the requests.
    pub route: String,
    /// Whether they were notifies.
    pub notify: bool,
    /// Bytes of each payload.
    pub payload_bytes: usize,
    /// Unanswered requests that a connection may have.
    pub in_flight: u32,
    /// Requests a second that were asked for; absent in a closed loop.
    pub rate: Option<u32>,
    /// Threads of the generator.
    pub threads: u32,
    /// Seconds under load before measuring.
    pub warmup_s: f64,
    /// Seconds measured.
    pub duration_s: f64,
    /// What became of the connections.
    pub connections: Connections,
    /// What became of the requests that were due in the measured time.
    pub requests: Requests,
    /// From when a request was due (open loop) or sent (closed loop) to its answer.
    pub latency_us: Option<Times>,
    /// From when a request was sent to its answer.
    pub service_us: Option<Times>,
    /// From when a request was due to when it was sent: lateness of the generator, or want of room.
    pub send_delay_us: Option<Times>,
    /// From connect to accepted handshake.
    pub connect_us: Option<Times>,
    /// Pushes received, in the whole run.
    pub pushes: u64,
    /// Pushes received a second of measured time.
    pub pushes_per_second: f64,
    /// Heartbeats sent, in the whole run.
    pub heartbeats: u64,
    /// Bytes received on all sockets, in the whole run.
    pub bytes_received: u64,
    /// Bytes sent on all sockets, in the whole run.
    pub bytes_sent: u64,
    /// The generator (`load`) and the processes that were asked for.
    pub processes: Vec<Process>,
    /// Failed and unsent requests, failed connects and lost connections together.
    pub errors: u64,
}

/// What became of the connections.
#[derive(Clone, Debug, Serialize)]
pub struct Connections {
    /// Asked for.
    pub requested: u32,
    /// Handshake accepted.
    pub connected: u64,
    /// Alive at the end of the measured time.
    pub alive: u64,
    /// Never ready, by cause.
    pub failed: BTreeMap<String, u64>,
    /// Lost after they were ready, by cause.
    pub lost: BTreeMap<String, u64>,
}

/// What became of the requests that were due in the measured time: `sent` = `answered` + `failed`.
#[derive(Clone, Debug, Serialize)]
pub struct Requests {
    /// Sent.
    pub sent: u64,
    /// Answered without error; for notifies: sent.
    pub answered: u64,
    /// Answered with an error, timed out, or lost with their connection.
    pub failed: u64,
    /// Due, but never sent for want of a connection with room.
    pub unsent: u64,
    /// Answers that came after their request was given up, in the whole run.
    pub late: u64,
    /// `answered` a second of measured time.
    pub per_second: f64,
    /// Failed by code: the server's, `PIT-504` for a timeout, `closed` for a lost connection.
    pub errors: BTreeMap<String, u64>,
}

/// Quantiles in microseconds.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Times {
    /// Smallest.
    pub min: f64,
    /// Mean.
    pub mean: f64,
    /// Half are at most this.
    pub p50: f64,
    /// 90 %.
    pub p90: f64,
    /// 99 %.
    pub p99: f64,
    /// 99.9 %.
    pub p999: f64,
    /// Largest.
    pub max: f64,
}

/// CPU and memory of one process; absent where it could not be read.
#[derive(Clone, Debug, Serialize)]
pub struct Process {
    /// Name.
    pub name: String,
    /// Process id.
    pub pid: u32,
    /// CPU time in the measured time, in microseconds.
    pub cpu_us: Option<u64>,
    /// 100 = one core busy all the time.
    pub cpu_percent: Option<f64>,
    /// CPU time for each request that ended in the measured time.
    pub cpu_us_per_request: Option<f64>,
    /// Resident memory before the first connect.
    pub rss_bytes_before: Option<u64>,
    /// Resident memory at the start of the measured time.
    pub rss_bytes_start: Option<u64>,
    /// Resident memory at its end.
    pub rss_bytes_end: Option<u64>,
    /// Largest resident memory of the process's life.
    pub rss_bytes_peak: Option<u64>,
    /// What the connections added, each: end minus before, divided by those alive.
    pub rss_bytes_per_connection: Option<f64>,
}

/// Three readings of one process, and what happened between the last two.
#[derive(Clone, Debug)]
pub(crate) struct Readings {
    pub(crate) name: String,
    pub(crate) pid: u32,
    pub(crate) before: Option<Reading>,
    pub(crate) start: Option<Reading>,
    pub(crate) end: Option<Reading>,
}

/// What the coordinator measured between the readings at the start and the end.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Between {
    pub(crate) seconds: f64,
    /// Requests that ended.
    pub(crate) requests: u64,
}

impl Report {
    pub(crate) fn new(
        options: &LoadOptions,
        tally: &Tally,
        readings: &[Readings],
        between: Between,
    ) -> Self {
        let duration_s = options.duration.as_secs_f64();
        let processes =
            readings.iter().map(|readings| Process::new(readings, between, tally.alive)).collect();
        let a_second =
            |number: u64| if duration_s > 0.0 { number as f64 / duration_s } else { 0.0 };
        let is_open = matches!(options.mode(), Mode::Open { .. });
        Self {
            target: options.address.to_string(),
            transport: options.chosen_transport().to_string(),
            mode: options.mode().to_string(),
            route: options.route.clone(),
            notify: options.notify,
            payload_bytes: options.payload_content().len(),
            in_flight: options.in_flight,
            rate: options.rate,
            threads: options.threads,
            warmup_s: options.warmup.as_secs_f64(),
            duration_s,
            connections: Connections {
                requested: options.connections,
                connected: tally.connected,
                alive: tally.alive,
                failed: tally.connect_failures.clone(),
                lost: tally.disconnects.clone(),
            },
            requests: Requests {
                sent: tally.sent,
                answered: tally.answered,
                failed: tally.failed(),
                unsent: tally.unsent,
                late: tally.late,
                per_second: a_second(tally.answered),
                errors: tally.errors.clone(),
            },
            latency_us: Times::new(&tally.latency_ns),
            service_us: Times::new(&tally.service_ns),
            send_delay_us: Times::new(&tally.delay_ns).filter(|_| is_open),
            connect_us: Times::new(&tally.connect_ns),
            pushes: tally.pushes,
            pushes_per_second: a_second(tally.pushes_measured),
            heartbeats: tally.heartbeats,
            bytes_received: tally.bytes_received,
            bytes_sent: tally.bytes_sent,
            processes,
            errors: tally.error_count(),
        }
    }
}

impl Times {
    fn new(histogram: &Histogram<u64>) -> Option<Self> {
        if histogram.is_empty() {
            return None;
        }
        let micros = |nanos: u64| nanos as f64 / 1000.0;
        Some(Self {
            min: micros(histogram.min()),
            mean: histogram.mean() / 1000.0,
            p50: micros(histogram.value_at_quantile(0.5)),
            p90: micros(histogram.value_at_quantile(0.9)),
            p99: micros(histogram.value_at_quantile(0.99)),
            p999: micros(histogram.value_at_quantile(0.999)),
            max: micros(histogram.max()),
        })
    }
}

impl Process {
    fn new(readings: &Readings, between: Between, alive: u64) -> Self {
        let cpu_us = readings
            .start
            .zip(readings.end)
            .map(|(start, end)| end.cpu_us.saturating_sub(start.cpu_us));
        let grown = readings
            .before
            .zip(readings.end)
            .map(|(before, end)| end.rss_bytes as f64 - before.rss_bytes as f64);
        let rss = |reading: Option<Reading>| reading.map(|reading| reading.rss_bytes);
        Self {
            name: readings.name.clone(),
            pid: readings.pid,
            cpu_us,
            cpu_percent: cpu_us
                .filter(|_| between.seconds > 0.0)
                .map(|cpu_us| cpu_us as f64 / 10_000.0 / between.seconds),
            cpu_us_per_request: cpu_us
                .filter(|_| between.requests > 0)
                .map(|cpu_us| cpu_us as f64 / between.requests as f64),
            rss_bytes_before: rss(readings.before),
            rss_bytes_start: rss(readings.start),
            rss_bytes_end: rss(readings.end),
            rss_bytes_peak: readings.end.map(|end| end.rss_peak_bytes),
            rss_bytes_per_connection: grown.filter(|_| alive > 0).map(|grown| grown / alive as f64),
        }
    }
}

fn counts(counts: &BTreeMap<String, u64>) -> String {
    let counts: Vec<String> =
        counts.iter().map(|(name, number)| format!("{name} {number}")).collect();
    if counts.is_empty() { "none".to_owned() } else { counts.join(", ") }
}

impl fmt::Display for Times {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { p50, p90, p99, p999, max, .. } = self;
        write!(
            formatter,
            "p50 {p50:.0}  p90 {p90:.0}  p99 {p99:.0}  p99.9 {p999:.0}  max {max:.0} µs"
        )
    }
}

impl fmt::Display for Report {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Connections { requested, connected, alive, failed, lost } = &self.connections;
        let mode = match self.rate {
            Some(rate) => format!("open loop at {rate}/s"),
            None => format!("{} loop", self.mode).replace("idle loop", "idle"),
        };
        writeln!(
            formatter,
            "{}: {mode} for {} s, after {} s",
            self.target, self.duration_s, self.warmup_s
        )?;
        writeln!(
            formatter,
            "connections  {connected} of {requested} over {}, {alive} alive at the end; failed: {}; lost: {}",
            self.transport,
            counts(failed),
            counts(lost),
        )?;
        if let Some(times) = &self.connect_us {
            writeln!(formatter, "connecting   {times}")?;
        }
        if self.mode != "idle" {
            let Requests { sent, answered, failed, unsent, late, per_second, errors } =
                &self.requests;
            if self.notify {
                writeln!(
                    formatter,
                    "notifies     {per_second:.0}/s: {sent} sent, {unsent} unsent"
                )?;
            } else {
                writeln!(
                    formatter,
                    "requests     {per_second:.0}/s: {sent} sent, {answered} answered, \
                     {failed} failed ({}), {unsent} unsent, {late} late",
                    counts(errors),
                )?;
            }
        }
        if self.pushes > 0 {
            writeln!(formatter, "pushes       {:.0}/s", self.pushes_per_second)?;
        }
        for (name, times) in [
            ("latency      ", &self.latency_us),
            ("service      ", &self.service_us),
            ("send delay   ", &self.send_delay_us),
        ] {
            if let Some(times) =
                times.as_ref().filter(|_| name != "service      " || self.rate.is_some())
            {
                writeln!(formatter, "{name}{times}")?;
            }
        }
        for process in &self.processes {
            writeln!(formatter, "{process}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Process {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:<12} pid {}", self.name, self.pid)?;
        if let Some(cpu_percent) = self.cpu_percent {
            write!(formatter, ", CPU {cpu_percent:.0} %")?;
        }
        if let Some(cpu_us) = self.cpu_us_per_request {
            write!(formatter, " = {cpu_us:.2} µs a request")?;
        }
        if let (Some(before), Some(end)) = (self.rss_bytes_before, self.rss_bytes_end) {
            let mebibytes = |bytes: u64| bytes as f64 / 1_048_576.0;
            write!(formatter, ", memory {:.1} -> {:.1} MiB", mebibytes(before), mebibytes(end))?;
        }
        if let Some(bytes) = self.rss_bytes_per_connection {
            write!(formatter, " = {bytes:.0} bytes a connection")?;
        }
        Ok(())
    }
}
