//! Metrics that an application declares in its configuration file, in the structure that Pitaya's files have.

use serde::Deserialize;

/// One metric of the application. Its full name is `pitaya_{subsystem}_{name}`.
#[derive(Debug, Clone, PartialEq)]
pub struct CustomMetric {
    /// What it measures with.
    pub kind: CustomMetricKind,
    /// The middle of the full name.
    pub subsystem: String,
    /// The end of the full name.
    pub name: String,
    /// A sentence for people.
    pub help: String,
    /// Names of its own labels.
    pub labels: Vec<String>,
}

/// The kinds of custom metrics.
#[derive(Debug, Clone, PartialEq)]
pub enum CustomMetricKind {
    /// Only grows.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Quantiles over what was observed, with the error allowed for each.
    Summary {
        /// Quantile and error.
        objectives: Vec<(f64, f64)>,
    },
    /// Counts per bucket.
    Histogram {
        /// Upper bounds, growing.
        buckets: Vec<f64>,
    },
}

/// The tables below `pitaya.metrics.custom`; Pitaya writes the member names with capital letters.
#[derive(Deserialize, Default)]
#[serde(default, deny_unknown_fields)]
struct Tables {
    #[serde(alias = "Counters")]
    counters: Vec<Table>,
    #[serde(alias = "Gauges")]
    gauges: Vec<Table>,
    #[serde(alias = "Summaries")]
    summaries: Vec<Table>,
    #[serde(alias = "Histograms")]
    histograms: Vec<Table>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    #[serde(alias = "Subsystem", default)]
    subsystem: String,
    #[serde(alias = "Name")]
    name: String,
    #[serde(alias = "Help")]
    help: String,
    #[serde(alias = "Labels", default)]
    labels: Vec<String>,
    #[serde(alias = "Objectives", default)]
    objectives: std::collections::BTreeMap<String, f64>,
    #[serde(alias = "Buckets", default)]
    buckets: Vec<f64>,
}

/// Reads the table `pitaya.metrics.custom` of a file.
///
/// # Errors
/// The reason, for the operator.
pub(super) fn parse(table: toml::Table) -> Result<Vec<CustomMetric>, String> {
    let tables: Tables = toml::Value::Table(table)
        .try_into()
        .map_err(|error: toml::de::Error| error.message().to_owned())?;
    let mut metrics = Vec::new();
    for table in tables.counters {
        metrics.push(metric(table, |_| Ok(CustomMetricKind::Counter))?);
    }
    for table in tables.gauges {
        metrics.push(metric(table, |_| Ok(CustomMetricKind::Gauge))?);
    }
    for table in tables.summaries {
        metrics.push(metric(table, summary)?);
    }
    for table in tables.histograms {
        metrics.push(metric(table, histogram)?);
    }
    Ok(metrics)
}

fn metric(
    table: Table,
    kind: fn(&Table) -> Result<CustomMetricKind, String>,
) -> Result<CustomMetric, String> {
    let kind = kind(&table)?;
    let Table { subsystem, name, help, labels, .. } = table;
    for (what, text) in [("a name", &name), ("a help text", &help)] {
        if text.is_empty() {
            return Err(format!("custom metric {name:?} needs {what}"));
        }
    }
    let is_word = |text: &String| {
        text.chars().all(|character| character.is_ascii_alphanumeric() || character == '_')
    };
    for text in [&subsystem, &name].into_iter().chain(&labels) {
        if !is_word(text) {
            return Err(format!(
                "{text:?} of custom metric {name:?} has other than letters, digits and _"
            ));
        }
    }
    Ok(CustomMetric { kind, subsystem, name, help, labels })
}

fn summary(table: &Table) -> Result<CustomMetricKind, String> {
    let mut objectives = Vec::new();
    for (quantile, error) in &table.objectives {
        match quantile.parse::<f64>() {
            Ok(quantile) if (0.0..=1.0).contains(&quantile) => objectives.push((quantile, *error)),
            _ => return Err(format!("{quantile:?} is not a quantile from 0 to 1")),
        }
    }
    Ok(CustomMetricKind::Summary { objectives })
}

fn histogram(table: &Table) -> Result<CustomMetricKind, String> {
    if !table.buckets.is_sorted_by(|lower, upper| lower < upper) {
        return Err(format!("the buckets of custom metric {:?} do not grow", table.name));
    }
    Ok(CustomMetricKind::Histogram { buckets: table.buckets.clone() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_read_with_small_and_capital_letters() {
        let text = r#"
            [[counters]]
            Subsystem = "shop"
            Name = "sold"
            Help = "Things sold"
            Labels = ["thing"]
            [[summaries]]
            subsystem = "shop"
            name = "price"
            help = "Prices"
            objectives = { "0.5" = 0.05 }
            [[Histograms]]
            name = "size"
            help = "Sizes"
            buckets = [1.0, 2.0]
        "#;
        let metrics = parse(text.parse().unwrap()).unwrap();
        assert_eq!(metrics[0].labels, ["thing"]);
        assert_eq!(metrics[1].kind, CustomMetricKind::Summary { objectives: vec![(0.5, 0.05)] });
        assert_eq!(metrics[2].kind, CustomMetricKind::Histogram { buckets: vec![1.0, 2.0] });
    }

    #[test]
    fn incomplete_and_wrong_tables_are_refused() {
        let refused = [
            "[[counters]]\nname = \"a\"",
            "[[counters]]\nname = \"\"\nhelp = \"h\"",
            "[[counters]]\nname = \"a-b\"\nhelp = \"h\"",
            "[[histograms]]\nname = \"a\"\nhelp = \"h\"\nbuckets = [2.0, 1.0]",
            "[[summaries]]\nname = \"a\"\nhelp = \"h\"\nobjectives = { x = 1.0 }",
            "[[meters]]\nname = \"a\"\nhelp = \"h\"",
        ];
        for text in refused {
            assert!(parse(text.parse().unwrap()).is_err(), "{text}");
        }
    }
}
