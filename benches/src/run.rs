//! One measured run: a load on one system, and what else the machine did meanwhile.

use std::time::Duration;

use anyhow::{Context, Result};
use clap::Parser;
use client::load::{self, LoadOptions, ProcessName, Report};
use serde::Serialize;

use crate::listener::Listener;
use crate::machine::{Noise, NoiseWatch};
use crate::scenario::{Demand, Scenario};
use crate::systems::{System, SystemName};

/// Longest time under load before measuring.
const WARMUP_MAX: Duration = Duration::from_secs(2);
/// The player that pushes go to.
const LISTENER: &str = "listener";

/// What came out.
#[derive(Debug, Serialize)]
pub struct Run {
    /// Which load.
    pub scenario: &'static str,
    /// On which system.
    pub system: SystemName,
    /// Counted from 0.
    pub turn: u32,
    /// What the load tool measured.
    pub report: Report,
    /// What the machine did besides.
    pub noise: Noise,
}

#[derive(Parser)]
struct Arguments {
    #[command(flatten)]
    options: LoadOptions,
}

/// The load tool's options for a scenario.
///
/// Errors: the address or a name is none that the tool takes.
pub(crate) fn load_options(
    scenario: &Scenario,
    address: &str,
    processes: &[(&str, u32)],
) -> Result<LoadOptions> {
    // Through the tool's own command line, so that its defaults hold here too.
    let mut options = Arguments::try_parse_from(["load", address])?.options;
    options.connections = scenario.connections;
    options.in_flight = scenario.in_flight;
    options.payload_bytes = scenario.payload_bytes;
    options.rate = (scenario.rate > 0).then_some(scenario.rate);
    options.idle = scenario.is_idle;
    if scenario.is_idle {
        options.connect_rate = scenario.connect_rate;
    }
    let bytes = scenario.payload_bytes;
    match scenario.demand {
        Demand::Echo => {}
        Demand::Pushes(pushes) => {
            "room.test.push".clone_into(&mut options.route);
            options.payload =
                Some(format!("{{\"name\":\"{LISTENER}\",\"n\":{pushes},\"size\":{bytes}}}"));
        }
        Demand::Broadcast => {
            options.join = Some("room.test.join".to_owned());
            "{\"name\":\"player-{n}\"}".clone_into(&mut options.join_payload);
            options.senders = Some(1);
            "room.test.broadcast".clone_into(&mut options.route);
            options.payload = Some(format!("{{\"size\":{bytes}}}"));
        }
    }
    if scenario.is_probe() {
        options.duration = Duration::from_millis(50);
        options.warmup = Duration::ZERO;
        options.timeout = Duration::from_secs(1);
    }
    options.processes = processes
        .iter()
        .map(|(name, pid)| ProcessName { name: (*name).to_owned(), pid: *pid })
        .collect();
    Ok(options)
}

/// Runs a load on a system; `None` when the system does not serve that transport.
///
/// Errors: the run could not be made, or nothing was answered.
pub fn run(
    scenario: &Scenario,
    system: &System,
    turn: u32,
    duration: Duration,
) -> Result<Option<Run>> {
    let Some(address) = system.address(scenario) else { return Ok(None) };
    let processes: Vec<(&str, u32)> = system.processes().collect();
    let mut options = load_options(scenario, &address, &processes)?;
    options.duration = match scenario.seconds {
        0 => duration,
        seconds => Duration::from_secs(u64::from(seconds)),
    };
    options.warmup = (duration / 4).min(WARMUP_MAX);
    let _listener = match scenario.demand {
        Demand::Pushes(_) => Some(Listener::bind(&address, LISTENER)?),
        Demand::Echo | Demand::Broadcast => None,
    };
    let watch = NoiseWatch::start(&processes);
    let report = load::run(&options)?;
    let noise = watch.end();
    let is_empty =
        report.connections.connected == 0 || (!scenario.is_idle && report.requests.answered == 0);
    if is_empty {
        let (failed, errors) = (&report.connections.failed, &report.requests.errors);
        None.with_context(|| {
            format!("{}, {}: {failed:?} {errors:?}", scenario.name, system.name.text())
        })?;
    }
    Ok(Some(Run { scenario: scenario.name, system: system.name, turn, report, noise }))
}
