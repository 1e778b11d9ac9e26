//! The results as text for a terminal.

use std::fmt::Write;

use crate::figures::{Figure, Row};
use crate::machine::{Machine, Noise};
use crate::run::Run;
use crate::scenario::Scenario;

/// Spread of the turns, and share of other programs, from which on figures are only rough.
const LOUD: f64 = 0.25;

/// What the figures were measured on, a line each.
pub fn machine(machine: &Machine) -> String {
    let mut text = format!(
        "machine      {} cores, {}, {:.1} GiB, {}\n",
        machine.cores,
        machine.processor,
        machine.memory_bytes as f64 / f64::from(1 << 30),
        machine.kernel,
    );
    for (name, version) in &machine.versions {
        let _ = writeln!(text, "{name:<12} {version}");
    }
    text
}

/// The rows of one scenario.
pub fn scenario(scenario: &Scenario, rows: &[Row]) -> String {
    let mut text = format!("\n{}: {}\n", scenario.name, scenario.title);
    let _ = writeln!(
        text,
        "  {:<27} {:>26} {:>26} {:>20}",
        "median [min-max]", "Dragonfruit", "Go Pitaya", "Go / Dragonfruit"
    );
    for row in rows {
        let _ = writeln!(
            text,
            "  {:<27} {:>26} {:>26} {:>20}",
            row.measure.title(),
            figure(row.ours),
            figure(row.go),
            figure(row.ratio),
        );
    }
    text
}

fn figure(figure: Option<Figure>) -> String {
    let Some(Figure { median, min, max }) = figure else { return "-".to_owned() };
    format!("{} [{}-{}]", number(median), number(min), number(max))
}

/// Three digits that mean something, more only in front of the point.
pub(crate) fn number(value: f64) -> String {
    if value >= 100.0 {
        format!("{value:.0}")
    } else if value >= 10.0 {
        format!("{value:.1}")
    } else {
        format!("{value:.2}")
    }
}

/// How far the figures can be trusted.
pub fn noise(runs: &[Run], rows: &[Row]) -> String {
    let of = |read: fn(&Noise) -> f64| {
        Figure::of(runs.iter().map(|run| read(&run.noise)).collect()).unwrap_or(Figure {
            median: 0.0,
            min: 0.0,
            max: 0.0,
        })
    };
    let (other, steal) = (of(|noise| noise.other_share), of(|noise| noise.steal_share));
    let load = of(|noise| noise.load_average);
    let figures = rows.iter().flat_map(|row| [row.ours, row.go]).flatten();
    let spread = figures.map(Figure::spread).fold(0.0, f64::max);
    let percent = |figure: Figure| {
        format!(
            "{:.0} % [{:.0}-{:.0}]",
            figure.median * 100.0,
            figure.min * 100.0,
            figure.max * 100.0
        )
    };
    let mut text = format!(
        "\nnoise: other programs took {} of the CPU, the hypervisor {}; load average {:.1} [{:.1}-{:.1}]; \
         the turns of one measure are up to {:.0} % apart\n",
        percent(other),
        percent(steal),
        load.median,
        load.min,
        load.max,
        spread * 100.0,
    );
    if other.median + steal.median > LOUD || spread > 4.0 * LOUD {
        text.push_str(
            "       THIS MACHINE WAS BUSY: compare the ratios, do not take the figures for themselves\n",
        );
    }
    text
}

/// What failed in runs that were measured nevertheless; empty as a rule.
pub fn errors(runs: &[Run]) -> String {
    let mut text = String::new();
    for run in runs.iter().filter(|run| run.report.errors > 0) {
        let _ = writeln!(
            text,
            "warning: {}, {}, turn {}: {} errors: failed connects {:?}, lost connections {:?}, requests {:?}, unsent {}",
            run.scenario,
            run.system.text(),
            run.turn + 1,
            run.report.errors,
            run.report.connections.failed,
            run.report.connections.lost,
            run.report.requests.errors,
            run.report.requests.unsent,
        );
    }
    text
}
