//! How long calls to other servers take, as their caller sees it (cluster protocol 18.1).
//!
//! A route has a series of its own once a call of it has succeeded, as in the gateway: routes may come from clients, and
//! the labels of a metric must not.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use hashbrown::HashMap;
use shared::metrics::{CodeLabel, Exporter, MetricError, ROUTES_MAX, ResponseType, Summary};

use crate::metrics::RESPONSE_TIME;

/// The label of all routes without a series of their own.
const OTHER: &str = "other";

/// The times of all calls of a process.
pub(crate) struct CallTimes {
    exporter: Exporter,
    /// The series of successes, [`ROUTES_MAX`] at most.
    routes: Mutex<HashMap<String, Summary>>,
}

impl CallTimes {
    pub(crate) fn new(exporter: Exporter) -> Self {
        Self { exporter, routes: Mutex::default() }
    }

    /// One call that has ended. `code` is empty for a success.
    pub(crate) fn record(&self, route: &str, code: &str, took: Duration) {
        let code = CodeLabel::of(code);
        let mut routes = self.routes.lock().unwrap_or_else(PoisonError::into_inner);
        let known = routes.get(route);
        if let Some(summary) = known.filter(|_| code == CodeLabel::Ok) {
            return summary.observe(took);
        }
        let is_new = known.is_none() && code == CodeLabel::Ok && routes.len() < ROUTES_MAX;
        let label = if known.is_some() || is_new { route } else { OTHER };
        let summary = self.summary(label, code);
        debug_assert!(summary.is_ok(), "the name is a row of the table of metrics");
        let Ok(summary) = summary else { return };
        summary.observe(took);
        if is_new {
            routes.insert(route.to_owned(), summary);
        }
    }

    fn summary(&self, route: &str, code: CodeLabel) -> Result<Summary, MetricError> {
        let labels = [route, code.status(), ResponseType::Rpc.name(), code.name()];
        self.exporter.summary(RESPONSE_TIME, &labels)
    }
}

#[cfg(test)]
mod tests {
    use shared::metrics::ExporterOptions;

    use super::*;

    fn times() -> CallTimes {
        let options =
            ExporterOptions { game: "", server_type: "room", const_labels: &[], custom: &[] };
        CallTimes::new(Exporter::new(&options).unwrap())
    }

    fn count(times: &CallTimes, route: &str, code: &str) -> Option<u64> {
        let (name, own) = (format!("{RESPONSE_TIME}_count{{"), format!("route=\"{route}\""));
        let (code, kind) = (format!("code=\"{code}\""), "type=\"rpc\"");
        let page = times.exporter.render();
        let is_meant = |line: &&str| {
            line.starts_with(&name) && [&own, &code, kind].iter().all(|part| line.contains(*part))
        };
        page.lines().find(is_meant)?.rsplit(' ').next()?.parse().ok()
    }

    #[test]
    fn a_route_is_named_once_a_call_of_it_has_succeeded() {
        let (times, took) = (times(), Duration::from_millis(3));
        times.record("metagame.player.made_up", "PIT-404", took);
        times.record("metagame.player.spend", "", took);
        times.record("metagame.player.spend", "", took);
        times.record("metagame.player.spend", "PIT-408", took);
        assert_eq!(count(&times, "metagame.player.made_up", "PIT-404"), None);
        assert_eq!(count(&times, OTHER, "PIT-404"), Some(1));
        assert_eq!(count(&times, "metagame.player.spend", ""), Some(2));
        assert_eq!(count(&times, "metagame.player.spend", "PIT-408"), Some(1));
    }

    #[test]
    fn routes_beyond_the_bound_share_one_series() {
        let times = times();
        for number in 0..=ROUTES_MAX {
            times.record(&format!("metagame.player.r{number}"), "", Duration::ZERO);
        }
        assert_eq!(count(&times, &format!("metagame.player.r{}", ROUTES_MAX - 1), ""), Some(1));
        assert_eq!(count(&times, &format!("metagame.player.r{ROUTES_MAX}"), ""), None);
        assert_eq!(count(&times, OTHER, ""), Some(1));
    }
}
