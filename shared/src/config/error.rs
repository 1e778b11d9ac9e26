//! What can be wrong with a configuration, and what is only odd.
//!
//! The texts are for whoever starts the process: each names the key, its environment variable, the value and
//! what was expected. Secrets are masked before they get here.

use std::fmt;
use std::path::PathBuf;

use thiserror::Error;

/// Where a value comes from; a later one overrides an earlier one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Source {
    /// The table.
    Default,
    /// The configuration file.
    File,
    /// An environment variable.
    Environment,
    /// The command line.
    Flag,
}

impl fmt::Display for Source {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(match self {
            Self::Default => "default",
            Self::File => "file",
            Self::Environment => "env",
            Self::Flag => "flag",
        })
    }
}

/// One mistake; all mistakes of a configuration are reported together.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ConfigError {
    /// The configuration file cannot be read or is not TOML.
    #[error("configuration file {path}: {reason}", path = path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system or the parser says.
        reason: String,
    },
    /// The file or the command line names a key that does not exist.
    #[error("{name} ({source_name}) is not a key{}", suggestion(nearest.as_deref()))]
    UnknownKey {
        /// The name as it was given.
        name: String,
        /// Where it was given.
        source_name: Source,
        /// The key that is most like it, if any is.
        nearest: Option<String>,
    },
    /// A value does not have the form of its key or is out of range.
    #[error("{key} ({env}) from {source_name} = {value:?}: {reason}; expected {expected}{}", advice(*hint))]
    Value {
        /// The key.
        key: &'static str,
        /// Its environment variable.
        env: String,
        /// Where the value was given.
        source_name: Source,
        /// The value, masked where it is secret.
        value: String,
        /// What is wrong.
        reason: String,
        /// The form and bounds of the key.
        expected: String,
        /// What to do instead.
        hint: Option<&'static str>,
    },
    /// The file that should hold a secret cannot be read.
    #[error("{key} ({env}) from {source_name} = {path}: {reason}", path = path.display())]
    SecretFile {
        /// The key with its `.file`.
        key: String,
        /// Its environment variable.
        env: String,
        /// Where the name of the file was given.
        source_name: Source,
        /// The file.
        path: PathBuf,
        /// What the system says.
        reason: String,
    },
    /// Two names of one key in the same source.
    #[error("{first} and {second} ({source_name}) mean the same key; give one of them")]
    Twice {
        /// One name.
        first: String,
        /// The other.
        second: String,
        /// The source that has both.
        source_name: Source,
    },
    /// Values that are fine alone but not together.
    #[error("{}: {reason}", keys.join(", "))]
    Together {
        /// The keys.
        keys: Vec<&'static str>,
        /// What is wrong.
        reason: &'static str,
    },
}

/// Something that does not stop the start but should be looked at.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ConfigWarning {
    /// An environment variable that looks like ours. Go servers in the same environment may read it.
    #[error("environment variable {name} is not a key{}", suggestion(nearest.as_deref()))]
    UnknownEnvironment {
        /// The variable.
        name: String,
        /// The variable that is most like it, if any is.
        nearest: Option<String>,
    },
    /// Values that Pitaya quietly ignores unless they are given together.
    #[error("{}: {reason}", keys.join(", "))]
    Together {
        /// The keys.
        keys: Vec<&'static str>,
        /// What is wrong.
        reason: &'static str,
    },
}

fn suggestion(nearest: Option<&str>) -> String {
    nearest.map(|nearest| format!("; did you mean {nearest}?")).unwrap_or_default()
}

fn advice(hint: Option<&str>) -> String {
    hint.map(|hint| format!("; {hint}")).unwrap_or_default()
}
