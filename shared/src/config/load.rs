//! Reads all sources into checked values and collects every mistake on the way.
//!
//! The order of the sources is the order of the calls: a later one overrides. The invariant: whatever is wrong in any
//! source is reported, even if a stronger source overrides it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::custom;
use super::error::{ConfigError, ConfigWarning, Source};
use super::key::{Binary, Key, Kind, env_name};
use super::table::KEYS;
use super::value::{Raw, Value};

const ENV_PREFIX: &str = "PITAYA_";
const ROOT: &str = "pitaya";
/// What a secret's key ends in when it names a file.
const FILE_SUFFIX: &str = ".file";
/// The structure that is not taken apart into keys.
const CUSTOM_METRICS: &str = "pitaya.metrics.custom";

/// A value and where it came from.
#[derive(Debug, Clone)]
pub(super) struct Slot {
    pub(super) value: Value,
    pub(super) source: Source,
}

/// One slot for each row of the table, in its order, and what was found on the way.
pub(super) struct Loader {
    pub(super) slots: Vec<Slot>,
    pub(super) errors: Vec<ConfigError>,
    pub(super) warnings: Vec<ConfigWarning>,
    /// The names under which the present source gave each key.
    given: BTreeMap<usize, String>,
}

/// What a name in a source means.
#[derive(Clone, Copy)]
enum Meaning {
    /// The value of this row.
    Value(usize),
    /// The name of a file with the secret of this row.
    SecretFile(usize),
}

impl Meaning {
    fn row(self) -> usize {
        match self {
            Self::Value(row) | Self::SecretFile(row) => row,
        }
    }
}

impl Loader {
    /// Starts with the defaults of this binary.
    pub(super) fn new(binary: Binary) -> Self {
        let slots = KEYS
            .iter()
            .map(|key| {
                let raw = Raw::Text(key.default_in(binary).to_owned());
                let value = raw.check(&key.kind).expect("each default of the table is tested");
                Slot { value, source: Source::Default }
            })
            .collect();
        Self { slots, errors: Vec::new(), warnings: Vec::new(), given: BTreeMap::new() }
    }

    /// Reads a TOML file.
    pub(super) fn file(&mut self, path: &Path) {
        self.given.clear();
        let table = std::fs::read_to_string(path)
            .map_err(|error| error.to_string())
            .and_then(|text| text.parse::<toml::Table>().map_err(|error| error.to_string()));
        match table {
            Ok(table) => self.file_table("", table, &mut BTreeMap::new()),
            Err(reason) => {
                let reason = reason.trim_end().to_owned();
                self.errors.push(ConfigError::File { path: path.to_owned(), reason });
            }
        }
    }

    /// Walks a file's tables. Entries below a key that is itself a map are collected into `maps` and set at the end.
    fn file_table(
        &mut self,
        prefix: &str,
        table: toml::Table,
        maps: &mut BTreeMap<usize, BTreeMap<String, String>>,
    ) {
        for (name, value) in table {
            let path = if prefix.is_empty() { name } else { format!("{prefix}.{name}") };
            match value {
                toml::Value::Table(table) if path.eq_ignore_ascii_case(CUSTOM_METRICS) => {
                    self.custom_metrics(&path, table);
                }
                toml::Value::Table(table) => self.file_table(&path, table, maps),
                value => self.file_leaf(&path, value, maps),
            }
        }
        if prefix.is_empty() {
            for (row, map) in std::mem::take(maps) {
                self.set(Source::File, Meaning::Value(row), KEYS[row].name, Raw::Map(map));
            }
        }
    }

    fn file_leaf(
        &mut self,
        path: &str,
        value: toml::Value,
        maps: &mut BTreeMap<usize, BTreeMap<String, String>>,
    ) {
        let raw = match value {
            toml::Value::Array(values) => Raw::List(values.into_iter().map(scalar).collect()),
            value => Raw::Text(scalar(value)),
        };
        if let Some(meaning) = meaning_of(path) {
            return self.set(Source::File, meaning, path, raw);
        }
        match (map_above(path), raw) {
            (Some((row, entry)), Raw::Text(text)) => {
                maps.entry(row).or_default().insert(entry.to_owned(), text);
            }
            _ => self.unknown(path, Source::File),
        }
    }

    fn custom_metrics(&mut self, path: &str, table: toml::Table) {
        let Some(meaning) = meaning_of(path) else { return };
        match custom::parse(table) {
            Ok(metrics) => self.set(Source::File, meaning, path, Raw::CustomMetrics(metrics)),
            Err(reason) => self.refuse(Source::File, &KEYS[meaning.row()], String::new(), reason),
        }
    }

    /// Reads the environment. Empty variables count as absent, as in Pitaya.
    pub(super) fn environment(&mut self, variables: impl Iterator<Item = (String, String)>) {
        self.given.clear();
        let known = env_meanings();
        let ours: BTreeMap<String, String> = variables
            .filter(|(name, value)| name.starts_with(ENV_PREFIX) && !value.is_empty())
            .collect();
        for (name, value) in ours {
            match known.get(&name) {
                Some(meaning) => self.set(Source::Environment, *meaning, &name, Raw::Text(value)),
                None => {
                    let nearest = nearest(&name, known.keys());
                    self.warnings.push(ConfigWarning::UnknownEnvironment { name, nearest });
                }
            }
        }
    }

    /// Reads pairs of key and value from the command line; of equal keys the last counts.
    pub(super) fn flags(&mut self, flags: &[(String, String)]) {
        for (name, value) in flags {
            self.given.clear();
            match meaning_of(name) {
                Some(meaning) => self.set(Source::Flag, meaning, name, Raw::Text(value.clone())),
                None => self.unknown(name, Source::Flag),
            }
        }
    }

    fn set(&mut self, source: Source, meaning: Meaning, name: &str, raw: Raw) {
        let row = meaning.row();
        let key = &KEYS[row];
        if let Some(first) = self.given.insert(row, name.to_owned()) {
            let second = name.to_owned();
            self.errors.push(ConfigError::Twice { first, second, source_name: source });
            return;
        }
        let raw = match meaning {
            Meaning::Value(_) => raw,
            Meaning::SecretFile(_) => match self.read_secret(source, key, &raw) {
                Some(raw) => raw,
                None => return,
            },
        };
        let shown = raw.shown(&key.kind);
        match raw.check(&key.kind) {
            Ok(value) => self.slots[row] = Slot { value, source },
            Err(reason) => self.refuse(source, key, shown, reason),
        }
    }

    fn read_secret(&mut self, source: Source, key: &Key, path: &Raw) -> Option<Raw> {
        let path = PathBuf::from(path.shown(&Kind::Path));
        match std::fs::read_to_string(&path) {
            // Editors and secret stores like to end files with a line break that is no part of the secret.
            Ok(text) => Some(Raw::Text(text.trim_end_matches(['\r', '\n']).to_owned())),
            Err(error) => {
                let name = format!("{}{FILE_SUFFIX}", key.name);
                self.errors.push(ConfigError::SecretFile {
                    env: env_name(&name),
                    key: name,
                    source_name: source,
                    path,
                    reason: error.to_string(),
                });
                None
            }
        }
    }

    fn refuse(&mut self, source: Source, key: &Key, value: String, reason: String) {
        self.errors.push(ConfigError::Value {
            key: key.name,
            env: key.env(),
            source_name: source,
            value,
            reason,
            expected: key.kind.to_string(),
            hint: key.hint,
        });
    }

    fn unknown(&mut self, name: &str, source: Source) {
        let names: Vec<&str> = KEYS.iter().map(|key| key.name).collect();
        let nearest = nearest(&name.to_ascii_lowercase(), names.iter());
        self.errors.push(ConfigError::UnknownKey {
            name: name.to_owned(),
            source_name: source,
            nearest,
        });
    }
}

/// The row that a name means: its own, an alias, or a secret's name with `.file`. Letter case does not count.
fn meaning_of(name: &str) -> Option<Meaning> {
    let name = name.to_ascii_lowercase();
    let find =
        |name: &str| KEYS.iter().position(|key| key.name == name || key.aliases.contains(&name));
    find(&name).map(Meaning::Value).or_else(|| {
        let row = find(name.strip_suffix(FILE_SUFFIX)?)?;
        matches!(KEYS[row].kind, Kind::Secret).then_some(Meaning::SecretFile(row))
    })
}

/// The map that a path lies below, and the name of the entry in it, whose letter case counts.
fn map_above(path: &str) -> Option<(usize, &str)> {
    path.match_indices('.').find_map(|(dot, _)| {
        let (above, entry) = (&path[..dot], &path[dot + 1..]);
        let row = meaning_of(above)?.row();
        matches!(KEYS[row].kind, Kind::Map | Kind::Dictionary | Kind::Policies)
            .then_some((row, entry))
    })
}

/// Every environment variable that means something.
fn env_meanings() -> BTreeMap<String, Meaning> {
    let mut meanings = BTreeMap::new();
    for (row, key) in KEYS.iter().enumerate() {
        for name in std::iter::once(&key.name).chain(key.aliases) {
            meanings.insert(env_name(name), Meaning::Value(row));
            if matches!(key.kind, Kind::Secret) {
                meanings
                    .insert(env_name(&format!("{name}{FILE_SUFFIX}")), Meaning::SecretFile(row));
            }
        }
    }
    meanings
}

fn scalar(value: toml::Value) -> String {
    match value {
        toml::Value::String(text) => text,
        other => other.to_string(),
    }
}

/// The known name that is most like a wrong one; none if nothing is alike.
fn nearest<'k, N: AsRef<str> + 'k>(
    wrong: &str,
    known: impl Iterator<Item = &'k N>,
) -> Option<String> {
    let distance_max = wrong.len() / 4;
    known
        .map(|name| (strsim::damerau_levenshtein(wrong, name.as_ref()), name))
        .filter(|(distance, _)| *distance <= distance_max)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, name)| name.as_ref().to_owned())
}

/// The row of a documented name.
pub(super) fn row_of(name: &str) -> Option<usize> {
    debug_assert!(name.starts_with(ROOT), "keys start with {ROOT}");
    KEYS.iter().position(|key| key.name == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_default_is_acceptable_in_each_binary() {
        for binary in [Binary::Gateway, Binary::Worker] {
            for key in KEYS {
                let checked = Raw::Text(key.default_in(binary).to_owned()).check(&key.kind);
                assert!(checked.is_ok(), "{}: {checked:?}", key.name);
            }
        }
    }

    #[test]
    fn no_two_names_or_variables_collide() {
        let mut names = Vec::new();
        for key in KEYS {
            for name in std::iter::once(&key.name).chain(key.aliases) {
                assert_eq!(*name, name.to_ascii_lowercase());
                assert!(name.starts_with("pitaya."));
                names.push(env_name(name));
                if matches!(key.kind, Kind::Secret) {
                    names.push(env_name(&format!("{name}{FILE_SUFFIX}")));
                }
            }
        }
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count);
    }

    #[test]
    fn each_row_has_one_sentence_and_only_maps_stand_above_other_keys() {
        for key in KEYS {
            assert!(key.help.ends_with('.') && key.help.len() > 5, "{}", key.name);
            let below = format!("{}.", key.name);
            let has_below = KEYS.iter().any(|other| other.name.starts_with(&below));
            let is_map = matches!(key.kind, Kind::Map | Kind::Dictionary | Kind::Policies);
            assert!(
                !has_below || is_map,
                "a file could not set both {} and a key below it",
                key.name
            );
        }
    }
}
