//! What the runs say together: medians over the turns, and ratios of runs that were taken next to each other.
//!
//! The machine's speed drifts while the turns go by, so a ratio is taken within each turn, and the median of these is
//! shown; it can differ a little from the ratio of the two medians.

use client::load::Report;
use serde::Serialize;

use crate::run::Run;
use crate::scenario::{Demand, Scenario};
use crate::systems::SystemName;

/// One thing that is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Measure {
    /// Answers a second.
    RequestsPerSecond,
    /// CPU time of the frontend, µs a request.
    GatewayCpuUs,
    /// CPU time of the backend, µs a request.
    WorkerCpuUs,
    /// CPU time of nats-server, µs a request.
    NatsCpuUs,
    /// CPU time of the three together, µs a request.
    TotalCpuUs,
    /// Messages that players received a second.
    DeliveriesPerSecond,
    /// CPU time of the frontend, µs a message that a player received.
    GatewayCpuUsADelivery,
    /// CPU time of the backend, the same.
    WorkerCpuUsADelivery,
    /// CPU time of nats-server, the same.
    NatsCpuUsADelivery,
    /// Half of the answers came within this, µs.
    LatencyP50Us,
    /// 99 % of the answers came within this, µs.
    LatencyP99Us,
    /// 99.9 % of the answers came within this, µs.
    LatencyP999Us,
    /// Half of the handshakes were accepted within this after connecting began, µs.
    ConnectP50Us,
    /// 99 % of the handshakes were.
    ConnectP99Us,
    /// Resident memory that a connection added to the frontend, bytes.
    GatewayConnectionBytes,
}

impl Measure {
    const LOADED: &[Self] = &[
        Self::RequestsPerSecond,
        Self::GatewayCpuUs,
        Self::WorkerCpuUs,
        Self::NatsCpuUs,
        Self::TotalCpuUs,
        Self::LatencyP50Us,
        Self::LatencyP99Us,
        Self::LatencyP999Us,
    ];

    const BROADCAST: &[Self] = &[
        Self::DeliveriesPerSecond,
        Self::GatewayCpuUsADelivery,
        Self::WorkerCpuUsADelivery,
        Self::NatsCpuUsADelivery,
    ];

    /// What a scenario is measured for.
    pub fn of(scenario: &Scenario) -> &'static [Self] {
        match scenario.is_idle {
            true if scenario.is_storm() => &[Self::ConnectP50Us, Self::ConnectP99Us],
            true => &[Self::GatewayConnectionBytes],
            false if scenario.demand == Demand::Broadcast => Self::BROADCAST,
            false => Self::LOADED,
        }
    }

    /// For people, with the unit.
    pub fn title(self) -> &'static str {
        match self {
            Self::RequestsPerSecond => "requests/s",
            Self::GatewayCpuUs => "frontend CPU µs/request",
            Self::WorkerCpuUs => "backend CPU µs/request",
            Self::NatsCpuUs => "nats-server CPU µs/request",
            Self::TotalCpuUs => "all three CPU µs/request",
            Self::DeliveriesPerSecond => "deliveries/s",
            Self::GatewayCpuUsADelivery => "frontend CPU µs/delivery",
            Self::WorkerCpuUsADelivery => "backend CPU µs/delivery",
            Self::NatsCpuUsADelivery => "nats-server CPU µs/delivery",
            Self::LatencyP50Us => "latency p50 µs",
            Self::LatencyP99Us => "latency p99 µs",
            Self::LatencyP999Us => "latency p99.9 µs",
            Self::ConnectP50Us => "connecting p50 µs",
            Self::ConnectP99Us => "connecting p99 µs",
            Self::GatewayConnectionBytes => "frontend bytes/connection",
        }
    }

    fn read(self, report: &Report) -> Option<f64> {
        let process = |name: &str| report.processes.iter().find(|process| process.name == name);
        let cpu_us = |name: &str| process(name)?.cpu_us_per_request;
        let delivery_us = |name: &str| {
            let deliveries = report.pushes_per_second * report.duration_s;
            Some(process(name)?.cpu_us? as f64 / deliveries).filter(|_| deliveries > 0.0)
        };
        match self {
            Self::RequestsPerSecond => Some(report.requests.per_second),
            Self::GatewayCpuUs => cpu_us("gateway"),
            Self::WorkerCpuUs => cpu_us("worker"),
            Self::NatsCpuUs => cpu_us("nats-server"),
            Self::TotalCpuUs => {
                Some(cpu_us("gateway")? + cpu_us("worker")? + cpu_us("nats-server")?)
            }
            Self::DeliveriesPerSecond => Some(report.pushes_per_second),
            Self::GatewayCpuUsADelivery => delivery_us("gateway"),
            Self::WorkerCpuUsADelivery => delivery_us("worker"),
            Self::NatsCpuUsADelivery => delivery_us("nats-server"),
            Self::LatencyP50Us => report.latency_us.map(|times| times.p50),
            Self::LatencyP99Us => report.latency_us.map(|times| times.p99),
            Self::LatencyP999Us => report.latency_us.map(|times| times.p999),
            Self::ConnectP50Us => report.connect_us.map(|times| times.p50),
            Self::ConnectP99Us => report.connect_us.map(|times| times.p99),
            Self::GatewayConnectionBytes => process("gateway")?.rss_bytes_per_connection,
        }
    }
}

/// A median and what it was taken from.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Figure {
    /// The middle one; of an even number, the mean of the two in the middle.
    pub median: f64,
    /// Smallest.
    pub min: f64,
    /// Largest.
    pub max: f64,
}

impl Figure {
    /// `None` of nothing.
    pub fn of(mut values: Vec<f64>) -> Option<Self> {
        values.sort_by(f64::total_cmp);
        let (min, max) = (*values.first()?, *values.last()?);
        let middle = values.len() / 2;
        let upper = *values.get(middle)?;
        let lower = if values.len().is_multiple_of(2) { *values.get(middle - 1)? } else { upper };
        Some(Self { median: f64::midpoint(lower, upper), min, max })
    }

    /// How far apart the turns were: largest minus smallest, in parts of the median.
    pub fn spread(self) -> f64 {
        if self.median > 0.0 { (self.max - self.min) / self.median } else { 0.0 }
    }
}

/// One measure of one scenario, on both systems.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// The scenario's name.
    pub scenario: &'static str,
    /// What was measured.
    pub measure: Measure,
    /// On our system.
    pub ours: Option<Figure>,
    /// On Go Pitaya.
    pub go: Option<Figure>,
    /// Go's divided by ours.
    pub ratio: Option<Figure>,
}

impl Row {
    /// Puts the runs of one scenario together.
    pub fn all(scenario: &Scenario, runs: &[Run]) -> Vec<Self> {
        let row = |measure: &Measure| {
            let values = |system| values(*measure, scenario.name, system, runs);
            let (ours, go) = (values(SystemName::Dragonfruit), values(SystemName::Pitaya));
            let ratios = ours.iter().filter_map(|(turn, ours)| {
                let (_, go) = go.iter().find(|(other, _)| other == turn)?;
                (*ours > 0.0).then_some(go / ours)
            });
            let figure = |values: &[(u32, f64)]| {
                Figure::of(values.iter().map(|(_, value)| *value).collect())
            };
            Self {
                scenario: scenario.name,
                measure: *measure,
                ours: figure(&ours),
                go: figure(&go),
                ratio: Figure::of(ratios.collect()),
            }
        };
        Measure::of(scenario).iter().map(row).collect()
    }
}

fn values(measure: Measure, scenario: &str, system: SystemName, runs: &[Run]) -> Vec<(u32, f64)> {
    let meant = runs.iter().filter(|run| run.scenario == scenario && run.system == system);
    meant.filter_map(|run| Some((run.turn, measure.read(&run.report)?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_median_lies_in_the_middle() {
        let figure = |values: &[f64]| Figure::of(values.to_vec());
        assert_eq!(figure(&[]), None);
        assert_eq!(figure(&[3.0]), Some(Figure { median: 3.0, min: 3.0, max: 3.0 }));
        assert_eq!(figure(&[9.0, 1.0, 2.0]), Some(Figure { median: 2.0, min: 1.0, max: 9.0 }));
        assert_eq!(figure(&[4.0, 1.0, 2.0, 9.0]), Some(Figure { median: 3.0, min: 1.0, max: 9.0 }));
    }

    #[test]
    fn a_spread_is_a_part_of_the_median() {
        let figure = Figure { median: 2.0, min: 1.0, max: 4.0 };
        assert!((figure.spread() - 1.5).abs() < 1e-9);
        assert!(Figure { median: 0.0, min: 0.0, max: 0.0 }.spread().abs() < 1e-9);
    }
}
