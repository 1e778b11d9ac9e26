//! The configuration as text: for people, as a file, as an environment, and as the table of the README.

use std::fmt::Write as _;
use std::str::FromStr;

use super::key::{Key, Kind};
use super::load::Slot;
use super::value::Value;
use super::{Config, KEYS};

/// How to print a configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TableFormat {
    /// Value and source of each key, aligned.
    Text,
    /// A file that gives the same values again, except for secrets.
    Toml,
    /// Environment variables, likewise.
    Env,
    /// A Markdown table of keys, defaults and meanings; the same whatever is configured.
    Markdown,
}

impl FromStr for TableFormat {
    type Err = String;

    /// # Errors
    /// The known formats.
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "text" | "table" => Ok(Self::Text),
            "toml" => Ok(Self::Toml),
            "env" => Ok(Self::Env),
            "md" | "markdown" => Ok(Self::Markdown),
            _ => Err("the formats are text, toml, env and md".to_owned()),
        }
    }
}

pub(super) fn table(config: &Config, format: TableFormat) -> String {
    let mut out = String::new();
    if format == TableFormat::Markdown {
        out.push_str("| key | environment | default | form | meaning |\n");
        out.push_str("| --- | --- | --- | --- | --- |\n");
    }
    for (key, slot) in KEYS.iter().zip(&config.slots) {
        // The README's table must not depend on what is configured.
        let is_read = match format {
            TableFormat::Markdown => key.used_by.includes(config.binary),
            _ => config.reads(key),
        };
        if !is_read {
            continue;
        }
        match format {
            TableFormat::Text => text_row(&mut out, key, slot),
            TableFormat::Toml => toml_row(&mut out, key, slot),
            TableFormat::Env => env_row(&mut out, key, slot),
            TableFormat::Markdown => markdown_row(&mut out, key, config),
        }
    }
    out
}

fn text_row(out: &mut String, key: &Key, slot: &Slot) {
    let (name, env, source) = (key.name, key.env(), slot.source);
    let shown = slot.value.shown(&key.kind);
    let _ = writeln!(out, "{name:<56} = {shown:<28} {source:<8} {env}");
}

/// Secrets, and URLs with something masked in them, would not read back: they become comments.
fn is_masked(key: &Key, slot: &Slot) -> bool {
    match &slot.value {
        Value::Secret(secret) => !secret.is_empty(),
        Value::Text(text) => {
            matches!(key.kind, Kind::Urls { .. }) && *text != slot.value.shown(&key.kind)
        }
        _ => false,
    }
}

fn toml_row(out: &mut String, key: &Key, slot: &Slot) {
    let _ = writeln!(out, "# {} ({}; {})", key.help, key.env(), slot.source);
    let comment = if is_masked(key, slot) { "# " } else { "" };
    match &slot.value {
        Value::Int(_) | Value::Float(_) | Value::Bool(_) => {
            let _ = writeln!(out, "{} = {}", key.name, slot.value.shown(&key.kind));
        }
        Value::Map(map) if !map.is_empty() => {
            for (name, value) in map {
                let (name, value) = (quoted(name), quoted(value));
                let _ = writeln!(out, "{}.{name} = {value}", key.name);
            }
        }
        // An empty map cannot be written in one line: an inline table would be closed to keys below it.
        Value::Map(_) => {}
        Value::CustomMetrics(_) => {
            let shown = slot.value.shown(&key.kind);
            let _ = writeln!(out, "# {} = {shown}", key.name);
        }
        value => {
            let _ = writeln!(out, "{comment}{} = {}", key.name, quoted(&value.shown(&key.kind)));
        }
    }
}

fn quoted(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

fn env_row(out: &mut String, key: &Key, slot: &Slot) {
    let shown = slot.value.shown(&key.kind);
    let is_comment =
        shown.is_empty() || is_masked(key, slot) || matches!(slot.value, Value::CustomMetrics(_));
    let comment = if is_comment { "# " } else { "" };
    let _ = writeln!(out, "{comment}{}={shown}", key.env());
}

fn markdown_row(out: &mut String, key: &Key, config: &Config) {
    let default = match key.default_in(config.binary) {
        "" => String::new(),
        default => format!("`{default}`"),
    };
    let mut help = key.help.to_owned();
    if !key.aliases.is_empty() {
        let names: Vec<String> = key.aliases.iter().map(|alias| format!("`{alias}`")).collect();
        let _ = write!(help, " Also {}.", names.join(", "));
    }
    if matches!(key.kind, Kind::Secret) {
        let _ = write!(help, " `{}_FILE` names a file with it.", key.env());
    }
    let _ =
        writeln!(out, "| `{}` | `{}` | {default} | {} | {help} |", key.name, key.env(), key.kind);
}
