//! The results as a picture of bars, written as SVG by hand.

use std::fmt::Write;

use crate::figures::{Figure, Measure, Row};
use crate::machine::Machine;
use crate::scenario::Scenario;
use crate::table::number;

const WIDTH: f64 = 760.0;
const BARS_FROM: f64 = 250.0;
const BARS_WIDTH: f64 = 400.0;
const BAR: f64 = 15.0;
const GROUP: f64 = 46.0;
const TITLE: f64 = 40.0;
const OURS: &str = "#c2185b";
const GO: &str = "#00838f";

/// What is drawn of a scenario; a picture of everything shows nothing.
const SHOWN: &[Measure] = &[
    Measure::RequestsPerSecond,
    Measure::GatewayCpuUs,
    Measure::WorkerCpuUs,
    Measure::NatsCpuUs,
    Measure::LatencyP99Us,
    Measure::ConnectP99Us,
    Measure::GatewayConnectionBytes,
];

/// Draws all scenarios that have rows.
pub fn draw(machine: &Machine, scenarios: &[&Scenario], rows: &[Row]) -> String {
    let mut body = String::new();
    let mut top = 66.0;
    for scenario in scenarios {
        let shown: Vec<&Row> = rows
            .iter()
            .filter(|row| row.scenario == scenario.name && SHOWN.contains(&row.measure))
            .collect();
        if shown.is_empty() {
            continue;
        }
        top += TITLE;
        text(&mut body, 20.0, top - 12.0, "title", scenario.title);
        for row in shown {
            group(&mut body, top, row);
            top += GROUP;
        }
    }
    let mut picture = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" height=\"{height}\">\n\
         <style>text{{font:13px sans-serif;fill:#222}} .title{{font-weight:bold}} .small{{font-size:11px;fill:#666}}</style>\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n",
        height = top + 20.0,
    );
    text(&mut picture, 20.0, 26.0, "title", "Dragonfruit and Go Pitaya, same loads in turn");
    let place = format!(
        "{} cores, {}, {}; medians, thin lines from the smallest to the largest turn",
        machine.cores, machine.processor, machine.kernel
    );
    text(&mut picture, 20.0, 44.0, "small", &place);
    for (left, color, name) in [(20.0, OURS, "Dragonfruit"), (140.0, GO, "Go Pitaya")] {
        bar(&mut picture, left, 54.0, 14.0, color);
        text(&mut picture, left + 20.0, 66.0, "", name);
    }
    picture.push_str(&body);
    picture.push_str("</svg>\n");
    picture
}

/// One measure: its name and one bar a system, to the scale of the larger.
fn group(out: &mut String, top: f64, row: &Row) {
    text(out, 20.0, top + 19.0, "", row.measure.title());
    let figures = [(row.ours, OURS), (row.go, GO)];
    let largest =
        figures.iter().filter_map(|(figure, _)| Some(figure.as_ref()?.max)).fold(0.0, f64::max);
    if largest <= 0.0 {
        return;
    }
    let scale = BARS_WIDTH / largest;
    let mut line = top;
    for (figure, color) in figures {
        let Some(Figure { median, min, max }) = figure else { continue };
        bar(out, BARS_FROM, line, median * scale, color);
        let middle = line + BAR / 2.0;
        let (from, to) = (BARS_FROM + min * scale, BARS_FROM + max * scale);
        let _ = writeln!(
            out,
            "<line x1=\"{from:.1}\" x2=\"{to:.1}\" y1=\"{middle:.1}\" y2=\"{middle:.1}\" stroke=\"#222\"/>"
        );
        text(out, to.max(BARS_FROM) + 6.0, line + 12.0, "", &number(median));
        line += BAR + 3.0;
    }
}

fn bar(out: &mut String, left: f64, top: f64, width: f64, color: &str) {
    let _ = writeln!(
        out,
        "<rect x=\"{left:.1}\" y=\"{top:.1}\" width=\"{width:.1}\" height=\"{BAR}\" fill=\"{color}\"/>"
    );
}

fn text(out: &mut String, left: f64, base: f64, class: &str, words: &str) {
    let words = words.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    let _ = writeln!(out, "<text x=\"{left:.1}\" y=\"{base:.1}\" class=\"{class}\">{words}</text>");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenario;

    #[test]
    fn a_picture_has_a_bar_for_each_system_and_escapes_names() {
        let machine = Machine {
            cores: 2,
            processor: "A & B <C>".to_owned(),
            memory_bytes: 1,
            kernel: "linux".to_owned(),
            versions: Vec::new(),
        };
        let figure = Some(Figure { median: 2.0, min: 1.0, max: 4.0 });
        let row = Row {
            scenario: "headline",
            measure: Measure::GatewayCpuUs,
            ours: figure,
            go: figure,
            ratio: figure,
        };
        let scenarios: Vec<&Scenario> = scenario::ALL.iter().collect();
        let picture = draw(&machine, &scenarios, &[row]);
        assert_eq!(picture.matches(OURS).count(), 2, "a bar and the legend");
        assert!(picture.contains("A &amp; B &lt;C&gt;"));
        assert_eq!(picture.matches("<text").count(), picture.matches("</text>").count());
    }
}
