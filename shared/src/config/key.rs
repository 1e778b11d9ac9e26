//! What one row of the configuration table says about its key.
//!
//! No values and no sources here. The invariant, kept by tests over the table: every default is an acceptable value,
//! and no two rows share a name, an alias or an environment variable.

use std::fmt;
use std::time::Duration;

use crate::go::go_duration;

/// One row of the table.
#[derive(Debug, Clone, Copy)]
pub struct Key {
    /// The documented name, in lower case.
    pub name: &'static str,
    /// Form and bounds of the value.
    pub kind: Kind,
    /// The default, written as an operator would write it.
    pub default: &'static str,
    /// The worker's default where it differs.
    pub default_worker: Option<&'static str>,
    /// Who reads it. A binary accepts the keys of the others too: one environment often serves them all.
    pub used_by: UsedBy,
    /// Further names, documented by Pitaya but without effect there.
    pub aliases: &'static [&'static str],
    /// What to do instead of a value that is refused.
    pub hint: Option<&'static str>,
    /// Whether a running gateway takes a new value over when it reads its configuration again.
    pub is_live: bool,
    /// One sentence.
    pub help: &'static str,
}

/// Which binaries read a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UsedBy {
    /// Only `gateway`.
    Gateway,
    /// Only `worker`, and the application inside a standalone gateway.
    Worker,
    /// All of them.
    Both,
}

/// The binary that loads its configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Binary {
    /// Owns the players' connections.
    Gateway,
    /// Owns the game logic.
    Worker,
}

impl UsedBy {
    /// Whether this binary reads the key.
    pub fn includes(self, binary: Binary) -> bool {
        match self {
            Self::Gateway => binary == Binary::Gateway,
            Self::Worker => binary == Binary::Worker,
            Self::Both => true,
        }
    }
}

/// Form and bounds of a value; bounds include both ends.
#[derive(Debug, Clone, Copy)]
pub enum Kind {
    /// Text with a unit, as Go writes durations.
    Duration {
        /// Shortest.
        min: Duration,
        /// Longest.
        max: Duration,
    },
    /// A duration without a fraction of a second, because its peers read it as whole seconds.
    WholeSeconds {
        /// Fewest.
        min_s: u64,
        /// Most.
        max_s: u64,
    },
    /// A whole number.
    Int {
        /// Smallest.
        min: i64,
        /// Largest.
        max: i64,
        /// What is counted, for people.
        unit: &'static str,
    },
    /// Any number.
    Float {
        /// Smallest.
        min: f64,
        /// Largest.
        max: f64,
    },
    /// `true` or `false`.
    Bool,
    /// Free text, perhaps empty.
    Text,
    /// One of these words.
    Choice(&'static [&'static str]),
    /// The id or type of a server: it becomes part of NATS subjects and etcd keys.
    ServerName {
        /// Empty means that one is chosen.
        may_be_empty: bool,
    },
    /// The name of a file, or empty. Whether it can be read shows when it is used.
    Path,
    /// URLs, separated by commas. Passwords and tokens inside are not printed.
    Urls {
        /// Whether there may be none.
        may_be_empty: bool,
    },
    /// Texts, separated by commas.
    List,
    /// `name=value` pairs, separated by commas; a table in a file.
    Map,
    /// `route=code` pairs, codes from 1 to 65535; a table in a file.
    Dictionary,
    /// `type=policy` pairs, with a name of [`crate::router::Policy`]; a table in a file.
    Policies,
    /// `host:port`; no host means all addresses.
    Address,
    /// Addresses separated by commas; empty or `off` means none.
    Addresses,
    /// Text that is never printed. Each such key also exists with `.file` behind it, `_FILE` in the environment,
    /// for the name of a file with the text.
    Secret,
    /// Metrics of the application; only in files.
    CustomMetrics,
}

impl Key {
    /// The environment variable: upper case, dots become underscores.
    pub fn env(&self) -> String {
        env_name(self.name)
    }

    /// The default in this binary.
    pub fn default_in(&self, binary: Binary) -> &'static str {
        match (binary, self.default_worker) {
            (Binary::Worker, Some(default)) => default,
            _ => self.default,
        }
    }
}

/// The environment variable of a key or alias.
pub(super) fn env_name(name: &str) -> String {
    name.to_ascii_uppercase().replace('.', "_")
}

impl fmt::Display for Kind {
    /// The expected form, to stand behind "expected".
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Duration { min, max } => {
                let (min, max) = (go_duration::format(min), go_duration::format(max));
                write!(formatter, "a duration such as 250ms, 5s or 1m30s, from {min} to {max}")
            }
            Self::WholeSeconds { min_s, max_s } => {
                let [min, max] =
                    [min_s, max_s].map(|s| go_duration::format(Duration::from_secs(s)));
                write!(formatter, "a duration of whole seconds such as 30s, from {min} to {max}")
            }
            Self::Int { min, max, unit } => {
                write!(formatter, "a whole number from {min} to {max}")?;
                if unit.is_empty() { Ok(()) } else { write!(formatter, " ({unit})") }
            }
            Self::Float { min, max } => write!(formatter, "a number from {min} to {max}"),
            Self::Bool => formatter.write_str("true or false"),
            Self::Text => formatter.write_str("text"),
            Self::Choice(words) => write!(formatter, "one of {}", words.join(", ")),
            Self::ServerName { may_be_empty } => {
                let or_nothing = if may_be_empty { ", or nothing" } else { "" };
                write!(formatter, "a name without white space and any of / . * >{or_nothing}")
            }
            Self::Path => formatter.write_str("the name of a file, or nothing"),
            Self::Urls { .. } => formatter.write_str("URLs separated by commas"),
            Self::List => formatter.write_str("texts separated by commas"),
            Self::Map => formatter.write_str("name=value pairs separated by commas"),
            Self::Dictionary => {
                formatter.write_str("route=code pairs separated by commas, codes from 1 to 65535")
            }
            Self::Policies => {
                let names = crate::router::Policy::NAMES.map(|(name, _)| name);
                write!(formatter, "type=policy pairs separated by commas, of {}", names.join(", "))
            }
            Self::Address => formatter.write_str("host:port, or :port for all addresses"),
            Self::Addresses => {
                formatter.write_str("host:port or :port, several separated by commas, or off")
            }
            Self::Secret => formatter.write_str("a secret text"),
            Self::CustomMetrics => formatter.write_str("tables in a configuration file"),
        }
    }
}

/// A row, to be completed by the functions below. Short, so that the table reads as a table.
pub(super) const fn row(
    used_by: UsedBy,
    name: &'static str,
    kind: Kind,
    default: &'static str,
    help: &'static str,
) -> Key {
    Key {
        name,
        kind,
        default,
        default_worker: None,
        used_by,
        aliases: &[],
        hint: None,
        is_live: false,
        help,
    }
}

impl Key {
    pub(super) const fn worker_default(self, default: &'static str) -> Self {
        Self { default_worker: Some(default), ..self }
    }

    pub(super) const fn aliases(self, aliases: &'static [&'static str]) -> Self {
        Self { aliases, ..self }
    }

    pub(super) const fn live(self) -> Self {
        Self { is_live: true, ..self }
    }

    pub(super) const fn hint(self, hint: &'static str) -> Self {
        Self { hint: Some(hint), ..self }
    }
}
