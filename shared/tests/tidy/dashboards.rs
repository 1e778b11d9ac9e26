//! Rule: what operators are given to look at exists. A metric that a dashboard or an alert names is one that the table
//! of metrics has.

use std::collections::BTreeSet;

use crate::Finding;
use crate::tree::Text;

const TABLE: &str = "shared/src/metrics/rows.rs";
const PREFIX: &str = "pitaya_";
/// Series that a summary or a histogram has besides its own name.
const SERIES_ENDINGS: &[&str] = &["_count", "_sum", "_bucket"];

pub(crate) fn check(texts: &[Text], findings: &mut Vec<Finding>) {
    let Some(table) = texts.iter().find(|text| text.path == TABLE) else { return };
    let known: BTreeSet<&str> = table.content.lines().flat_map(names).collect();
    for text in texts.iter().filter(|text| text.path.starts_with("deploy/")) {
        for (line, content) in text.content.lines().enumerate() {
            for name in names(content).filter(|name| !is_known(&known, name)) {
                findings.push(Finding {
                    rule: "dashboards",
                    path: text.path.clone(),
                    line: line + 1,
                    message: format!("no metric is called `{name}`"),
                });
            }
        }
    }
}

fn is_known(known: &BTreeSet<&str>, name: &str) -> bool {
    known.contains(name)
        || SERIES_ENDINGS
            .iter()
            .filter_map(|ending| name.strip_suffix(ending))
            .any(|name| known.contains(name))
}

/// Every word of the line that starts like a metric. The prefix alone is part of a pattern.
fn names(line: &str) -> impl Iterator<Item = &str> {
    line.split(|c: char| !c.is_ascii_lowercase() && !c.is_ascii_digit() && c != '_')
        .filter(|word| word.starts_with(PREFIX) && word.len() > PREFIX.len())
}

#[test]
fn a_metric_that_does_not_exist_is_found() {
    let text =
        |path: &str, content: &str| Text { path: path.to_owned(), content: content.to_owned() };
    let texts = [
        text(TABLE, "row(Gauge, \"pitaya_a_clients\")\nrow(Summary, \"pitaya_time_ns\")\n"),
        text(
            "deploy/d.json",
            "rate(pitaya_time_ns_count[5m])\npitaya_a_client\n{__name__=~\"pitaya_.+\"}",
        ),
    ];
    let mut findings = Vec::new();
    check(&texts, &mut findings);
    let lines: Vec<usize> = findings.iter().map(|finding| finding.line).collect();
    assert_eq!(lines, [2]);
}
