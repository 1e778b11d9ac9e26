//! Values before and after they are checked, and how they are shown.
//!
//! The checks themselves are in `check`; sources play no part here. The invariant: a value that exists satisfies the kind it was read for, and no secret
//! is ever shown.

use std::collections::BTreeMap;
use std::time::Duration;

use super::check::{
    check_addresses, check_dictionary, check_policies, check_text, check_urls, split_list,
};
use super::custom::CustomMetric;
use super::key::Kind;
use crate::go::go_duration;
pub(super) use crate::secret::MASK;
pub use crate::secret::Secret;

/// What a source says, before it is checked.
#[derive(Debug, Clone)]
pub(super) enum Raw {
    Text(String),
    List(Vec<String>),
    Map(BTreeMap<String, String>),
    CustomMetrics(Vec<CustomMetric>),
}

/// A checked value.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value {
    Duration(Duration),
    Int(i64),
    Float(f64),
    Bool(bool),
    Text(String),
    List(Vec<String>),
    Map(BTreeMap<String, String>),
    Secret(Secret),
    CustomMetrics(Vec<CustomMetric>),
}

impl Raw {
    /// As an operator would recognise it in a message; `kind` says what must be masked.
    pub(super) fn shown(&self, kind: &Kind) -> String {
        let text = match self {
            Self::Text(text) => text.clone(),
            Self::List(parts) => parts.join(","),
            Self::Map(map) => join_pairs(map),
            Self::CustomMetrics(metrics) => format!("{} metrics", metrics.len()),
        };
        match kind {
            Kind::Secret if !text.is_empty() => MASK.to_owned(),
            Kind::Urls { .. } | Kind::List => mask_urls(&text),
            _ => text,
        }
    }

    /// Checks it against a kind.
    ///
    /// # Errors
    /// The reason, to be followed by the expected form.
    pub(super) fn check(self, kind: &Kind) -> Result<Value, String> {
        match (kind, self) {
            (Kind::CustomMetrics, Self::CustomMetrics(metrics)) => {
                Ok(Value::CustomMetrics(metrics))
            }
            (Kind::CustomMetrics, Self::Text(text)) if text.is_empty() => {
                Ok(Value::CustomMetrics(Vec::new()))
            }
            (Kind::CustomMetrics, _) => Err("such metrics can only be given in a file".to_owned()),
            (Kind::List, raw) => Ok(Value::List(raw.into_list()?)),
            (Kind::Addresses, raw) => check_addresses(raw.into_list()?),
            (Kind::Urls { may_be_empty }, raw) => check_urls(&raw.into_list()?, *may_be_empty),
            (Kind::Map, raw) => Ok(Value::Map(raw.into_map()?)),
            (Kind::Dictionary, raw) => check_dictionary(raw.into_map()?),
            (Kind::Policies, raw) => check_policies(raw.into_map()?),
            (kind, Self::Text(text)) => check_text(kind, text),
            _ => Err("not a single value".to_owned()),
        }
    }

    fn into_list(self) -> Result<Vec<String>, String> {
        match self {
            Self::List(parts) => Ok(parts),
            Self::Text(text) => Ok(split_list(&text)),
            _ => Err("not a list".to_owned()),
        }
    }

    fn into_map(self) -> Result<BTreeMap<String, String>, String> {
        let parts = match self {
            Self::Map(map) => return Ok(map),
            Self::List(parts) => parts,
            Self::Text(text) => split_list(&text),
            Self::CustomMetrics(_) => return Err("not a map".to_owned()),
        };
        let mut map = BTreeMap::new();
        for part in parts {
            let Some((name, value)) = part.split_once('=') else {
                return Err(format!("{part:?} has no ="));
            };
            if map.insert(name.trim().to_owned(), value.trim().to_owned()).is_some() {
                return Err(format!("{:?} is there twice", name.trim()));
            }
        }
        Ok(map)
    }
}

fn join_pairs(map: &BTreeMap<String, String>) -> String {
    map.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join(",")
}

/// Puts the mask in the place of what stands between `//` and `@`, but keeps the user's name.
pub(super) fn mask_urls(urls: &str) -> String {
    let mask_one = |url: &str| -> Option<String> {
        let (scheme, rest) = url.split_once("//").unwrap_or(("", url));
        let (user_info, host) = rest.rsplit_once('@')?;
        let slashes = if scheme.is_empty() { "" } else { "//" };
        Some(match user_info.split_once(':') {
            Some((user, _)) => format!("{scheme}{slashes}{user}:{MASK}@{host}"),
            None => format!("{scheme}{slashes}{MASK}@{host}"),
        })
    };
    urls.split(',')
        .map(|url| mask_one(url).unwrap_or_else(|| url.to_owned()))
        .collect::<Vec<_>>()
        .join(",")
}

impl Value {
    /// The text that reads back to this value, with secrets masked.
    pub(super) fn shown(&self, kind: &Kind) -> String {
        match self {
            Self::Duration(duration) => go_duration::format(*duration),
            Self::Int(number) => number.to_string(),
            Self::Float(number) => number.to_string(),
            Self::Bool(flag) => flag.to_string(),
            Self::Text(text) if matches!(kind, Kind::Urls { .. }) => mask_urls(text),
            Self::Text(text) => text.clone(),
            Self::List(parts) if parts.is_empty() && matches!(kind, Kind::Addresses) => {
                "off".to_owned()
            }
            Self::List(parts) => mask_urls(&parts.join(",")),
            Self::Map(map) => join_pairs(map),
            Self::Secret(secret) => secret.to_string(),
            Self::CustomMetrics(metrics) if metrics.is_empty() => String::new(),
            Self::CustomMetrics(metrics) => format!("{} metrics", metrics.len()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_and_passwords_in_urls_are_never_shown() {
        let secret = Secret::new("hunter2");
        assert_eq!((format!("{secret}"), format!("{secret:?}")), ("***".into(), "***".into()));
        assert_eq!(secret.reveal(), "hunter2");
        let urls = "nats://user:p@ss@a:4222,nats://token@b:4222,nats://c:4222,u:p@d:1";
        let masked = "nats://user:***@a:4222,nats://***@b:4222,nats://c:4222,u:***@d:1";
        assert_eq!(mask_urls(urls), masked);
        assert_eq!(Raw::Text("hunter2".into()).shown(&Kind::Secret), "***");
        assert_eq!(Raw::Text(urls.into()).shown(&Kind::Urls { may_be_empty: false }), masked);
    }
}
