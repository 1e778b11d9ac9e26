//! Compares Dragonfruit with Go Pitaya: the same loads on both in turn, on this machine, now.
//!
//! Everything that it needs it starts itself, on free ports of loopback, and ends again.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use benches::figures::Row;
use benches::machine::Machine;
use benches::programs::{build_release, end_on_signals};
use benches::run::{Run, run};
use benches::scenario::{self, Compression, Scenario};
use benches::systems::{Binaries, GO_FOLDER_VARIABLE, Setup, Systems};
use benches::{picture, table};
use clap::Parser;

/// Runs the same loads on Dragonfruit and on Go Pitaya in turn, and prints medians and ratios.
#[derive(Parser)]
#[command(name = "compare", version)]
struct Flags {
    /// How often each load runs on each system
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    turns: u32,
    /// Seconds that each run is measured
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u64).range(1..=600))]
    seconds: u64,
    /// All loads, not only the three that matter most
    #[arg(long)]
    full: bool,
    /// Every combination of connections, requests in flight, size, transport and compression; takes hours
    #[arg(long)]
    grid: bool,
    /// Only these loads, by name, separated by commas
    #[arg(long, value_delimiter = ',', value_name = "NAME")]
    only: Vec<String>,
    /// Requests a second of the load with fixed times
    #[arg(long)]
    rate: Option<u32>,
    /// Reactors of our gateway
    #[arg(long, default_value_t = 2)]
    reactors: u32,
    /// Our gateway's driver: auto, uring or epoll
    #[arg(long, default_value = "auto")]
    driver: String,
    /// Write machine, figures and every run to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Draw the figures into this file
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// Print the names of all loads, and end
    #[arg(long)]
    list: bool,
}

fn main() -> ExitCode {
    let flags = Flags::parse();
    if flags.list {
        for scenario in everything() {
            println!("{:<16} {}", scenario.name, scenario.title);
        }
        return ExitCode::SUCCESS;
    }
    match compare(&flags) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn compare(flags: &Flags) -> Result<()> {
    let scenarios = chosen(flags)?;
    build_release()?;
    let binaries = Binaries::find()?;
    let folder = tempfile::Builder::new().prefix("dragonfruit-compare").tempdir()?;
    end_on_signals(folder.path().to_path_buf())?;
    let machine = Machine::read(&binaries);
    print!("{}", table::machine(&machine));
    if binaries.pitaya_server.is_none() {
        println!(
            "\n*** GO PITAYA IS NOT MEASURED: there is no pitaya-server; set {GO_FOLDER_VARIABLE} to its folder ***"
        );
    }
    let mut runs = Vec::new();
    let mut rows = Vec::new();
    for (setup, scenarios) in setups(flags, &scenarios) {
        let systems = Systems::start(&binaries, &setup, folder.path())?;
        for scenario in scenarios {
            measure(scenario, &systems, flags, &mut runs);
            let new = Row::all(scenario, &runs);
            print!("{}", table::scenario(scenario, &new));
            rows.extend(new);
        }
    }
    if runs.is_empty() {
        bail!("no run has a result");
    }
    print!("{}{}", table::noise(&runs, &rows), table::errors(&runs));
    write_files(flags, &machine, &scenarios, &runs, &rows)
}

/// The list, then the grid.
fn everything() -> Vec<Scenario> {
    scenario::ALL.iter().cloned().chain(scenario::grid()).collect()
}

fn chosen(flags: &Flags) -> Result<Vec<Scenario>> {
    let mut all = everything();
    for name in &flags.only {
        if !all.iter().any(|scenario| scenario.name == name) {
            bail!("there is no load called {name}; --list prints them");
        }
    }
    let is_of_grid = |scenario: &Scenario| scenario.name.starts_with("grid-");
    all.retain(|scenario| match flags.only.as_slice() {
        [] if is_of_grid(scenario) => flags.grid,
        [] => flags.full || scenario.is_default,
        names => names.iter().any(|name| name == scenario.name),
    });
    for scenario in all.iter_mut().filter(|scenario| scenario.name == "rate") {
        scenario.rate = flags.rate.unwrap_or(scenario.rate);
    }
    Ok(all)
}

/// The loads by the setup that they need. Idle connections get fresh systems, because memory that an earlier load has
/// left behind would hide what they take.
fn setups<'s>(flags: &Flags, scenarios: &'s [Scenario]) -> Vec<(Setup, Vec<&'s Scenario>)> {
    let kinds =
        [(Compression::Default, false), (Compression::Off, false), (Compression::Default, true)];
    let setup = |(compression, is_idle): (Compression, bool)| {
        let meant = scenarios
            .iter()
            .filter(|scenario| scenario.compression == compression && scenario.is_idle == is_idle);
        let (reactors, driver) = (flags.reactors, flags.driver.clone());
        let setup = Setup { compression, reactors, driver, instrument: None };
        (setup, meant.collect::<Vec<_>>())
    };
    kinds.into_iter().map(setup).filter(|(_, scenarios)| !scenarios.is_empty()).collect()
}

/// A B A B …, so that a machine that gets slower gets slower for both.
fn measure(scenario: &Scenario, systems: &Systems, flags: &Flags, runs: &mut Vec<Run>) {
    let turns = if scenario.is_idle { 1 } else { flags.turns };
    let duration = Duration::from_secs(flags.seconds);
    for turn in 0..turns {
        for system in &systems.systems {
            eprintln!(
                "  {} on {}, turn {} of {turns}",
                scenario.name,
                system.name.text(),
                turn + 1
            );
            match run(scenario, system, turn, duration) {
                Ok(run) => runs.extend(run),
                // What one system does not bear is a result too, and the other loads have theirs.
                Err(error) => println!("warning: turn {}: {error:#}", turn + 1),
            }
        }
    }
}

fn write_files(
    flags: &Flags,
    machine: &Machine,
    scenarios: &[Scenario],
    runs: &[Run],
    rows: &[Row],
) -> Result<()> {
    if let Some(path) = &flags.json {
        let all = serde_json::json!({
            "machine": machine, "scenarios": scenarios, "figures": rows, "runs": runs,
        });
        std::fs::write(path, serde_json::to_string_pretty(&all)?)
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    if let Some(path) = &flags.svg {
        let scenarios: Vec<&Scenario> = scenarios.iter().collect();
        std::fs::write(path, picture::draw(machine, &scenarios, rows))
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}
