//! The checks that turn an operator's text into a value, one for each kind.
//!
//! A refusal says what is wrong; what would have been right is the kind's to say.

use std::collections::BTreeMap;
use std::time::Duration;

use super::key::Kind;
use super::value::{Secret, Value};
use crate::dictionary::Dictionary;
use crate::go::go_duration::{self, GoDurationError};
use crate::router::Policy;
use crate::routing::Routing;

pub(super) fn split_list(text: &str) -> Vec<String> {
    text.split(',').map(str::trim).filter(|part| !part.is_empty()).map(str::to_owned).collect()
}

pub(super) fn check_text(kind: &Kind, text: String) -> Result<Value, String> {
    let trimmed = text.trim();
    match *kind {
        Kind::Duration { min, max } => {
            let duration = parse_duration(trimmed)?;
            in_bounds(duration >= min && duration <= max)?;
            Ok(Value::Duration(duration))
        }
        Kind::WholeSeconds { min_s, max_s } => {
            let duration = parse_duration(trimmed)?;
            if duration.subsec_nanos() != 0 {
                return Err("a fraction of a second cannot be announced to clients".to_owned());
            }
            in_bounds((min_s..=max_s).contains(&duration.as_secs()))?;
            Ok(Value::Duration(duration))
        }
        Kind::Int { min, max, .. } => {
            let number: i64 = trimmed.parse().map_err(|_| "not a whole number".to_owned())?;
            in_bounds((min..=max).contains(&number))?;
            Ok(Value::Int(number))
        }
        Kind::Float { min, max } => {
            let number: f64 = trimmed.parse().map_err(|_| "not a number".to_owned())?;
            in_bounds(number >= min && number <= max)?;
            Ok(Value::Float(number))
        }
        Kind::Bool => match trimmed {
            "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(Value::Bool(true)),
            "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(Value::Bool(false)),
            _ => Err("neither true nor false".to_owned()),
        },
        Kind::Choice(words) => match words.iter().find(|word| word.eq_ignore_ascii_case(trimmed)) {
            Some(word) => Ok(Value::Text((*word).to_owned())),
            None => Err("no such choice".to_owned()),
        },
        Kind::ServerName { may_be_empty } => check_server_name(trimmed, may_be_empty),
        Kind::Address => check_address(trimmed).map(|()| Value::Text(trimmed.to_owned())),
        Kind::Secret => Ok(Value::Secret(Secret::new(text))),
        Kind::Path => Ok(Value::Text(trimmed.to_owned())),
        _ => Ok(Value::Text(text)),
    }
}

fn in_bounds(is_inside: bool) -> Result<(), String> {
    if is_inside { Ok(()) } else { Err("out of range".to_owned()) }
}

fn parse_duration(text: &str) -> Result<Duration, String> {
    go_duration::parse(text).map_err(|error| match error {
        GoDurationError::MissingUnit => {
            format!("a bare number is not a duration; write the unit, for example {text}s")
        }
        other => other.to_string(),
    })
}

fn check_server_name(name: &str, may_be_empty: bool) -> Result<Value, String> {
    let is_forbidden = |character: char| {
        character.is_whitespace()
            || character.is_control()
            || matches!(character, '/' | '.' | '*' | '>')
    };
    if name.is_empty() && !may_be_empty {
        return Err("empty".to_owned());
    }
    if let Some(character) = name.chars().find(|character| is_forbidden(*character)) {
        return Err(format!("{character:?} would break NATS subjects or etcd keys"));
    }
    if name == "servers" {
        return Err("this name is reserved: user subjects would look like server subjects".into());
    }
    Ok(Value::Text(name.to_owned()))
}

fn check_address(address: &str) -> Result<(), String> {
    match split_address(address) {
        Some(_) => Ok(()),
        None => Err(format!("{address:?} is not an address")),
    }
}

/// Takes `host:port` apart. An empty host means all addresses; brackets around an IPv6 address are taken off.
pub fn split_address(address: &str) -> Option<(&str, u16)> {
    let (host, port) = address.rsplit_once(':')?;
    let host = match host.strip_prefix('[') {
        Some(inner) => inner.strip_suffix(']')?,
        None if host.contains(':') => return None,
        None => host,
    };
    let is_plain = !host.chars().any(|character| character.is_whitespace() || character == '/');
    is_plain.then_some(())?;
    Some((host, port.parse().ok()?))
}

pub(super) fn check_addresses(addresses: Vec<String>) -> Result<Value, String> {
    if let [only] = addresses.as_slice()
        && only.eq_ignore_ascii_case("off")
    {
        return Ok(Value::List(Vec::new()));
    }
    for address in &addresses {
        check_address(address)?;
    }
    Ok(Value::List(addresses))
}

pub(super) fn check_urls(urls: &[String], may_be_empty: bool) -> Result<Value, String> {
    if urls.is_empty() && !may_be_empty {
        return Err("empty".to_owned());
    }
    if urls.iter().any(|url| url.contains(char::is_whitespace)) {
        return Err("a URL has white space inside".to_owned());
    }
    Ok(Value::Text(urls.join(",")))
}

pub(super) fn check_dictionary(map: BTreeMap<String, String>) -> Result<Value, String> {
    dictionary_of(&map)?;
    Ok(Value::Map(map))
}

pub(super) fn check_policies(map: BTreeMap<String, String>) -> Result<Value, String> {
    Routing::new(Policy::Random).set_all(&map)?;
    Ok(Value::Map(map))
}

/// The route dictionary that a checked map stands for.
pub(super) fn dictionary_of(map: &BTreeMap<String, String>) -> Result<Dictionary, String> {
    let mut dictionary = Dictionary::default();
    for (route, code) in map {
        let code: u16 =
            code.parse().map_err(|_| format!("{code:?} is not a code for {route:?}"))?;
        dictionary.insert_all([(route, code)]).map_err(|error| error.to_string())?;
    }
    Ok(dictionary)
}

#[cfg(test)]
mod tests {
    use super::super::value::Raw;
    use super::*;

    fn check(kind: Kind, text: &str) -> Result<Value, String> {
        Raw::Text(text.to_owned()).check(&kind)
    }

    #[test]
    fn a_bare_number_is_no_duration_and_the_message_says_what_to_write() {
        let kind = Kind::Duration { min: Duration::ZERO, max: Duration::MAX };
        let reason = check(kind, "10").unwrap_err();
        assert!(reason.contains("10s"), "{reason}");
        assert_eq!(check(kind, " 1m30s "), Ok(Value::Duration(Duration::from_secs(90))));
    }

    #[test]
    fn whole_seconds_refuse_fractions_and_zero() {
        let kind = Kind::WholeSeconds { min_s: 1, max_s: 60 };
        assert!(
            check(kind, "1500ms").is_err()
                && check(kind, "0s").is_err()
                && check(kind, "61s").is_err()
        );
        assert!(check(kind, "1s").is_ok() && check(kind, "60000ms").is_ok());
    }

    #[test]
    fn numbers_stay_within_their_bounds() {
        let kind = Kind::Int { min: -1, max: 5, unit: "" };
        assert!(check(kind, "-1").is_ok() && check(kind, "5").is_ok());
        for refused in ["-2", "6", "", "1.0", "x", "99999999999999999999"] {
            assert!(check(kind, refused).is_err(), "{refused}");
        }
        let rate = Kind::Float { min: 0.0, max: 1.0 };
        assert!(
            check(rate, "0.5").is_ok() && check(rate, "NaN").is_err() && check(rate, "2").is_err()
        );
    }

    #[test]
    fn addresses_are_host_and_port() {
        assert_eq!(split_address(":3250"), Some(("", 3250)));
        assert_eq!(split_address("[::1]:80"), Some(("::1", 80)));
        assert_eq!(split_address("localhost:0"), Some(("localhost", 0)));
        for refused in ["3250", "::1", "a:65536", "a:", "[::1:80", "http://a:1", "a b:1"] {
            assert_eq!(split_address(refused), None, "{refused}");
        }
        assert_eq!(check(Kind::Addresses, "OFF"), Ok(Value::List(vec![])));
        assert_eq!(check(Kind::Addresses, ""), Ok(Value::List(vec![])));
        let two = Value::List(vec![":1".to_owned(), "a:2".to_owned()]);
        assert_eq!(check(Kind::Addresses, ":1, a:2"), Ok(two));
        assert!(check(Kind::Addresses, ":1,off").is_err());
    }

    #[test]
    fn server_names_fit_subjects_and_keys() {
        let kind = Kind::ServerName { may_be_empty: false };
        for refused in ["", "a.b", "a/b", "*", "a>", "a b", "servers", "a\0b"] {
            assert!(check(kind, refused).is_err(), "{refused:?}");
        }
        assert!(check(kind, "connector-1_é").is_ok());
        assert!(check(Kind::ServerName { may_be_empty: true }, "").is_ok());
    }

    #[test]
    fn dictionaries_need_codes_that_are_unique_and_not_zero() {
        assert!(check(Kind::Dictionary, "a=1,b=65535").is_ok());
        for refused in ["a=0", "a=65536", "a=x", "a", "a=1,b=1", "a=1,a=2"] {
            assert!(check(Kind::Dictionary, refused).is_err(), "{refused}");
        }
    }

    #[test]
    fn policies_are_known_by_their_names() {
        assert!(check(Kind::Policies, "room=sticky, default=Random").is_ok());
        for refused in ["sticky", "room=", "room=best", "room=random,room=sticky"] {
            assert!(check(Kind::Policies, refused).is_err(), "{refused}");
        }
    }
}
