//! The configuration of a gateway or worker: one table of keys, four sources, all mistakes reported at once.
//!
//! Each source overrides the one before: defaults, a TOML file, the environment, the command line. Pitaya's keys and
//! environment variables work unchanged, those that its documentation names without effect included. What
//! is read again while running is in renewal.rs. The invariant: a [`Config`] that exists satisfies every row of the table.

mod check;
mod custom;
mod error;
mod key;
mod load;
mod print;
mod renewal;
mod table;
mod value;

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::time::Duration;

pub use check::split_address;
pub use custom::{CustomMetric, CustomMetricKind};
pub use error::{ConfigError, ConfigWarning, Source};
pub use key::{Binary, Key, Kind, UsedBy};
pub use print::TableFormat;
pub use renewal::{Change, Renewal, Sources};
pub use table::KEYS;
pub use value::Secret;

use crate::dictionary::Dictionary;
use crate::router::Policy;
use crate::routing::Routing;
use load::{Loader, Slot};
use value::Value;

/// The checked values of all keys.
#[derive(Clone)]
pub struct Config {
    binary: Binary,
    slots: Vec<Slot>,
    warnings: Vec<ConfigWarning>,
}

impl Config {
    /// Reads all sources. `env` is the whole environment, from which our variables are picked; `flags` are pairs of key
    /// and value in the order of the command line.
    ///
    /// # Errors
    /// All mistakes of all sources; the process must not start. Unknown environment variables are only warnings, since
    /// Go servers may share the environment.
    pub fn load(
        binary: Binary,
        file: Option<&Path>,
        env: impl Iterator<Item = (String, String)>,
        flags: &[(String, String)],
    ) -> Result<Self, Vec<ConfigError>> {
        let mut loader = Loader::new(binary);
        if let Some(path) = file {
            loader.file(path);
        }
        loader.environment(env);
        loader.flags(flags);
        let Loader { slots, mut errors, warnings, .. } = loader;
        let mut config = Self { binary, slots, warnings };
        config.expand_short_forms();
        config.check_together(&mut errors);
        config.warn_together();
        if errors.is_empty() { Ok(config) } else { Err(errors) }
    }

    /// The defaults alone, for tests and embedding.
    ///
    /// # Panics
    /// Never: the defaults are tested.
    pub fn defaults(binary: Binary) -> Self {
        Self::load(binary, None, std::iter::empty(), &[]).expect("the defaults fit together")
    }

    /// One URL list for both NATS connections. A stronger source wins; in the same source the long name does.
    fn expand_short_forms(&mut self) {
        let Some(short) = self.slot("pitaya.nats.connect").cloned() else { return };
        for side in ["client", "server"] {
            let name = format!("pitaya.cluster.rpc.{side}.nats.connect");
            let Some(row) = load::row_of(&name) else { continue };
            if let Some(long) = self.slots.get_mut(row)
                && long.source < short.source
                && short.value != Value::Text(String::new())
            {
                *long = short.clone();
            }
        }
    }

    fn check_together(&self, errors: &mut Vec<ConfigError>) {
        let mut refuse = |keys: &[&'static str], reason| {
            errors.push(ConfigError::Together { keys: keys.to_vec(), reason });
        };
        for pair in [
            ["pitaya.gateway.tls.cert", "pitaya.gateway.tls.key"],
            ["pitaya.nats.tls.cert", "pitaya.nats.tls.key"],
            ["pitaya.nats.user", "pitaya.nats.password"],
        ] {
            if self.count_given(&pair) == 1 {
                refuse(&pair, "one is of no use without the other");
            }
        }
        let logins = [
            "pitaya.nats.user",
            "pitaya.nats.token",
            "pitaya.nats.nkey",
            "pitaya.nats.credentials",
        ];
        if self.count_given(&logins) > 1 {
            refuse(&logins, "NATS takes one way to log in, but several are given");
        }
    }

    /// What Pitaya lets pass must not stop a process that is put in the place of a Go server.
    fn warn_together(&mut self) {
        let pair = ["pitaya.cluster.sd.etcd.user", "pitaya.cluster.sd.etcd.pass"];
        if self.count_given(&pair) == 1 {
            let reason = "one is ignored without the other";
            self.warnings.push(ConfigWarning::Together { keys: pair.to_vec(), reason });
        }
    }

    /// How many of these texts and secrets are not empty.
    fn count_given(&self, keys: &[&str]) -> usize {
        let is_given = |key: &&&str| match self.value(key) {
            Some(Value::Secret(secret)) => !secret.is_empty(),
            Some(Value::Text(text)) => !text.is_empty(),
            _ => false,
        };
        keys.iter().filter(is_given).count()
    }

    /// The binary that this configuration is for.
    pub fn binary(&self) -> Binary {
        self.binary
    }

    /// What should be looked at although it does not stop the start.
    pub fn warnings(&self) -> &[ConfigWarning] {
        &self.warnings
    }

    /// Where the value of a key comes from.
    pub fn source(&self, key: &str) -> Source {
        self.slot(key).map_or(Source::Default, |slot| slot.source)
    }

    /// Whether a key was given explicitly, in any source.
    pub fn is_set(&self, key: &str) -> bool {
        self.source(key) != Source::Default
    }

    /// A duration. Asking for a key that is no duration, here and below, is a mistake of the program: it panics in
    /// debug builds and gives an empty value otherwise.
    pub fn duration(&self, key: &str) -> Duration {
        match self.value(key) {
            Some(Value::Duration(duration)) => *duration,
            _ => wrong_kind(key),
        }
    }

    /// A whole number.
    pub fn int(&self, key: &str) -> i64 {
        match self.value(key) {
            Some(Value::Int(number)) => *number,
            _ => wrong_kind(key),
        }
    }

    /// A whole number that counts or measures, as the sizes and limits of the table do; a negative one is cut to 0.
    pub fn size(&self, key: &str) -> usize {
        usize::try_from(self.int(key)).unwrap_or_default()
    }

    /// A number.
    pub fn float(&self, key: &str) -> f64 {
        match self.value(key) {
            Some(Value::Float(number)) => *number,
            _ => wrong_kind(key),
        }
    }

    /// A switch.
    pub fn bool(&self, key: &str) -> bool {
        match self.value(key) {
            Some(Value::Bool(flag)) => *flag,
            _ => wrong_kind(key),
        }
    }

    /// A text, choice, name, path, single address, or list of URLs as one text.
    pub fn string(&self, key: &str) -> &str {
        match self.value(key) {
            Some(Value::Text(text)) => text,
            _ => wrong_kind(key),
        }
    }

    /// A list of texts, addresses or URLs.
    pub fn list(&self, key: &str) -> Vec<String> {
        match self.value(key) {
            Some(Value::List(parts)) => parts.clone(),
            Some(Value::Text(text)) => {
                text.split(',').filter(|part| !part.is_empty()).map(str::to_owned).collect()
            }
            _ => wrong_kind(key),
        }
    }

    /// Names and values, sorted by name.
    pub fn map(&self, key: &str) -> BTreeMap<String, String> {
        match self.value(key) {
            Some(Value::Map(map)) => map.clone(),
            _ => wrong_kind(key),
        }
    }

    /// A secret, which does not print itself.
    pub fn secret(&self, key: &str) -> Secret {
        match self.value(key) {
            Some(Value::Secret(secret)) => secret.clone(),
            _ => wrong_kind(key),
        }
    }

    /// The route dictionary that `pitaya.gateway.dictionary` and its switch for pushes describe.
    pub fn dictionary(&self) -> Dictionary {
        let map = self.map("pitaya.gateway.dictionary");
        let mut dictionary = check::dictionary_of(&map).unwrap_or_default();
        dictionary.for_pushes = self.bool("pitaya.gateway.dictionary.pushes");
        dictionary
    }

    /// What `pitaya.routing` says, and `policy` where it says nothing.
    pub fn routing(&self, policy: Policy) -> Routing {
        let mut routing = Routing::new(policy);
        if let Err(mistake) = routing.set_all(&self.map("pitaya.routing")) {
            debug_assert!(false, "checked when it was loaded: {mistake}");
        }
        routing
    }

    /// The metrics that the application declares in the file.
    pub fn custom_metrics(&self) -> &[CustomMetric] {
        match self.value("pitaya.metrics.custom") {
            Some(Value::CustomMetrics(metrics)) => metrics,
            _ => wrong_kind("pitaya.metrics.custom"),
        }
    }

    /// The value of a key as an operator may see it, with secrets and passwords masked.
    pub fn shown(&self, key: &str) -> String {
        let row = load::row_of(key).and_then(|row| KEYS.get(row)).zip(self.value(key));
        row.map(|(row, value)| value.shown(&row.kind)).unwrap_or_default()
    }

    /// Whether this process reads a key. A standalone gateway is its own worker.
    pub fn reads(&self, key: &Key) -> bool {
        key.used_by.includes(self.binary) || self.string("pitaya.mode") == "standalone"
    }

    /// All keys that this process reads, for `--print-config`. Secrets and passwords are masked.
    pub fn print_table(&self, format: TableFormat) -> String {
        print::table(self, format)
    }

    fn slot(&self, key: &str) -> Option<&Slot> {
        let row = load::row_of(key);
        debug_assert!(row.is_some(), "{key} is not in the table");
        self.slots.get(row?)
    }

    fn value(&self, key: &str) -> Option<&Value> {
        self.slot(key).map(|slot| &slot.value)
    }
}

impl fmt::Debug for Config {
    /// Only the binary: values may hold passwords inside of URLs.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Config").field("binary", &self.binary).finish_non_exhaustive()
    }
}

fn wrong_kind<T: Default>(key: &str) -> T {
    debug_assert!(false, "{key} is asked for as what it is not");
    T::default()
}

#[cfg(test)]
mod tests;
