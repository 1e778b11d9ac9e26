//! The configuration of a gateway or worker: one table of keys, four sources, all mistakes reported at once.
//!
//! Each source overrides the one before: defaults, a TOML file, the environment, the command line. Pitaya's keys and
//! environment variables work unchanged, those that its documentation names without effect included. Nothing is read
//! again after the start. The invariant: a [`Config`] that exists satisfies every row of the table.

mod check;
mod custom;
mod error;
mod key;
mod load;
mod print;
mod table;
mod value;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

pub use check::split_address;
pub use custom::{CustomMetric, CustomMetricKind};
pub use error::{ConfigError, ConfigWarning, Source};
pub use key::{Binary, Key, Kind, UsedBy};
pub use print::TableFormat;
pub use table::KEYS;
pub use value::Secret;

use crate::dictionary::Dictionary;
use load::{Loader, Slot};
use value::Value;

/// The checked values of all keys.
#[derive(Debug, Clone)]
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
        let is_given = |name: &&'static str| match self.slot(name).map(|slot| &slot.value) {
            Some(Value::Secret(secret)) => !secret.is_empty(),
            Some(Value::Text(text)) => !text.is_empty(),
            _ => false,
        };
        let mut refuse = |keys: &[&'static str], reason| {
            errors.push(ConfigError::Together { keys: keys.to_vec(), reason });
        };
        for pair in [
            ["pitaya.gateway.tls.cert", "pitaya.gateway.tls.key"],
            ["pitaya.nats.tls.cert", "pitaya.nats.tls.key"],
            ["pitaya.nats.user", "pitaya.nats.password"],
            ["pitaya.cluster.sd.etcd.user", "pitaya.cluster.sd.etcd.pass"],
        ] {
            if pair.iter().filter(|name| is_given(name)).count() == 1 {
                refuse(&pair, "one is of no use without the other");
            }
        }
        let nats = [
            "pitaya.nats.user",
            "pitaya.nats.token",
            "pitaya.nats.nkey",
            "pitaya.nats.credentials",
        ];
        let given: Vec<&'static str> = nats.into_iter().filter(|name| is_given(name)).collect();
        if given.len() > 1 {
            refuse(&given, "NATS takes one way to log in");
        }
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

    /// The metrics that the application declares in the file.
    pub fn custom_metrics(&self) -> &[CustomMetric] {
        match self.value("pitaya.metrics.custom") {
            Some(Value::CustomMetrics(metrics)) => metrics,
            _ => wrong_kind("pitaya.metrics.custom"),
        }
    }

    /// All keys that this binary reads, for `--print-config`. Secrets and passwords are masked.
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

fn wrong_kind<T: Default>(key: &str) -> T {
    debug_assert!(false, "{key} is asked for as what it is not");
    T::default()
}

#[cfg(test)]
mod tests;
