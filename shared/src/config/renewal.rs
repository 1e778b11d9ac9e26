//! Reading a configuration again: the sources kept for it, what has changed, and what of that can take effect.

use std::path::PathBuf;

use super::key::Binary;
use super::{Config, ConfigError, KEYS};

/// Where a configuration comes from.
#[derive(Clone)]
pub struct Sources {
    /// For which binary.
    pub binary: Binary,
    /// The configuration file.
    pub file: Option<PathBuf>,
    /// The environment, as it was at the start.
    pub environment: Vec<(String, String)>,
    /// The command line's pairs of key and value.
    pub flags: Vec<(String, String)>,
}

impl Sources {
    /// Reads everything, secrets' files included.
    ///
    /// # Errors
    /// Those of [`Config::load`].
    pub fn load(&self) -> Result<Config, Vec<ConfigError>> {
        let environment = self.environment.iter().cloned();
        Config::load(self.binary, self.file.as_deref(), environment, &self.flags)
    }
}

/// A key whose value is another one now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Its name.
    pub key: &'static str,
    /// The value in use, secrets masked.
    pub before: String,
    /// The value that was read, secrets masked.
    pub after: String,
}

/// What a configuration that was read again means.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Renewal {
    /// What takes effect.
    pub changed: Vec<Change>,
    /// What waits for the next start.
    pub needs_restart: Vec<Change>,
}

impl Config {
    /// This configuration with what a running process can take over from a newer one, and what that is.
    #[must_use]
    pub fn renewed(&self, newer: &Self) -> (Self, Renewal) {
        let mut renewed = self.clone();
        let mut renewal = Renewal::default();
        let slots = renewed.slots.iter_mut().zip(&newer.slots);
        for (key, (slot, newer_slot)) in KEYS.iter().zip(slots).filter(|(key, _)| self.reads(key)) {
            if slot.value != newer_slot.value || slot.source != newer_slot.source && key.is_live {
                let change = Change {
                    key: key.name,
                    before: slot.value.shown(&key.kind),
                    after: newer_slot.value.shown(&key.kind),
                };
                if key.is_live { &mut renewal.changed } else { &mut renewal.needs_restart }
                    .push(change);
            }
            if key.is_live {
                *slot = newer_slot.clone();
            }
        }
        (renewed, renewal)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(flags: &[(&str, &str)]) -> Config {
        let flags =
            flags.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        let sources =
            Sources { binary: Binary::Gateway, file: None, environment: Vec::new(), flags };
        sources.load().unwrap()
    }

    #[test]
    fn what_can_change_does_and_the_rest_is_named_without_its_secrets() {
        let old = load(&[("pitaya.gateway.maxconns", "5"), ("pitaya.nats.token", "old")]);
        let new = load(&[
            ("pitaya.gateway.maxconns", "7"),
            ("pitaya.nats.token", "s3cret"),
            ("pitaya.gateway.tcp", ":1"),
        ]);
        let (renewed, renewal) = old.renewed(&new);
        assert_eq!(renewed.int("pitaya.gateway.maxconns"), 7);
        assert_eq!(renewed.secret("pitaya.nats.token").reveal(), "old");
        assert_eq!(renewed.list("pitaya.gateway.tcp"), [":3250"]);
        let changed: Vec<_> = renewal.changed.iter().map(|change| change.key).collect();
        assert_eq!(changed, ["pitaya.gateway.maxconns"]);
        let waiting: Vec<_> = renewal.needs_restart.iter().map(|change| change.key).collect();
        assert_eq!(waiting, ["pitaya.nats.token", "pitaya.gateway.tcp"]);
        assert!(!format!("{renewal:?}").contains("s3cret"));
        assert_eq!(renewed.renewed(&renewed).1, Renewal::default());
    }

    #[test]
    fn a_key_that_is_left_out_goes_back_to_its_default() {
        let old = load(&[("pitaya.conn.ratelimiting.limit", "20")]);
        let (renewed, renewal) = old.renewed(&load(&[]));
        assert!(!renewed.is_set("pitaya.conn.ratelimiting.limit"), "it was wanted by being given");
        assert_eq!(renewal.changed.len(), 1);
    }
}
