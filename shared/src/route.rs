//! The name of a handler: `serverType.service.method`, or `service.method` for the caller's own server type.
//!
//! Whether such a server or handler exists is not asked here. The invariant: no part is blank, and none
//! holds a control character, so a route may go into a log line or a label as it is.

#![deny(clippy::indexing_slicing)]

use std::fmt;

use thiserror::Error;

/// A parsed route, borrowing its text. `Display` gives the text back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Route<'a> {
    /// The kind of server that is meant; none means the own kind.
    pub server_type: Option<&'a str>,
    /// The component.
    pub service: &'a str,
    /// The handler in the component.
    pub method: &'a str,
}

/// Why a text is not a route. The texts are Pitaya's; clients see them with the code `PIT-400`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum RouteError {
    /// One of the parts is empty or blank.
    #[error("route field can not be empty")]
    EmptyField,
    /// There are not two or three parts, or a control character is among them.
    #[error("invalid route")]
    Invalid,
}

impl<'a> Route<'a> {
    /// Takes a route apart at its dots. Parts are not trimmed and keep their letter case. Never allocates.
    ///
    /// Pitaya lets control characters pass and then finds no such handler; here they are refused, because routes
    /// reach logs and metrics.
    ///
    /// # Errors
    /// [`RouteError::EmptyField`] before [`RouteError::Invalid`], as in Pitaya: `..` has an empty field.
    pub fn parse(text: &'a str) -> Result<Self, RouteError> {
        Self::parse_plain(text).map_or_else(|| Self::parse_any(text), Ok)
    }

    /// Nearly every route: two or three parts of visible ASCII, in one pass over the bytes. Whatever is not plain is
    /// left to [`Route::parse_any`], which is several times slower.
    fn parse_plain(text: &'a str) -> Option<Self> {
        let (mut dots, mut count) = ([0; 2], 0);
        for (at, byte) in text.bytes().enumerate() {
            match byte {
                b'.' => {
                    *dots.get_mut(count)? = at;
                    count += 1;
                }
                b'!'..=b'~' => {}
                _ => return None,
            }
        }
        let [first, second] = dots;
        let part = |start, end| text.get(start..end).filter(|part| !part.is_empty());
        let (server_type, service, method) = match count {
            1 => (None, part(0, first)?, part(first + 1, text.len())?),
            2 => (Some(part(0, first)?), part(first + 1, second)?, part(second + 1, text.len())?),
            _ => return None,
        };
        Some(Self { server_type, service, method })
    }

    fn parse_any(text: &'a str) -> Result<Self, RouteError> {
        if text.split('.').any(|part| part.trim().is_empty()) {
            return Err(RouteError::EmptyField);
        }
        if text.chars().any(char::is_control) {
            return Err(RouteError::Invalid);
        }
        let mut parts = text.split('.');
        match (parts.next(), parts.next(), parts.next(), parts.next()) {
            (Some(service), Some(method), None, _) => {
                Ok(Self { server_type: None, service, method })
            }
            (Some(server_type), Some(service), Some(method), None) => {
                Ok(Self { server_type: Some(server_type), service, method })
            }
            _ => Err(RouteError::Invalid),
        }
    }
}

impl fmt::Display for Route<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(server_type) = self.server_type {
            write!(formatter, "{server_type}.")?;
        }
        write!(formatter, "{}.{}", self.service, self.method)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_and_three_parts_are_routes_and_print_as_they_came() {
        let short = Route::parse("room.join").unwrap();
        assert_eq!(short, Route { server_type: None, service: "room", method: "join" });
        let full = Route::parse("Game.room. join").unwrap();
        assert_eq!(full, Route { server_type: Some("Game"), service: "room", method: " join" });
        assert_eq!(
            (short.to_string(), full.to_string()),
            ("room.join".into(), "Game.room. join".into())
        );
    }

    #[test]
    fn the_short_way_and_the_long_way_agree() {
        let pieces = ["", ".", "a", "~", "!", " ", "\t", "\u{7f}", "\u{85}", "\u{a0}", "é"];
        let mut texts = vec![String::new()];
        for _ in 0..4 {
            let longer = |text: &String| pieces.map(|piece| format!("{text}{piece}"));
            texts = texts.iter().flat_map(longer).collect();
            texts.sort();
            texts.dedup();
        }
        let mut plain = 0;
        for text in &texts {
            let Some(route) = Route::parse_plain(text) else { continue };
            assert_eq!(Route::parse_any(text), Ok(route), "{text:?}");
            plain += 1;
        }
        assert!(plain > 20, "{plain}");
    }

    #[test]
    fn errors_have_the_texts_of_pitaya() {
        for text in ["", " ", "a..b", "a.b.", ".", "a. .b", "a.\t", "a.b..d.e", "a.\u{a0}"] {
            let error = Route::parse(text).unwrap_err();
            assert_eq!(error.to_string(), "route field can not be empty", "{text:?}");
        }
        for text in ["a", "a.b.c.d", "a.b.c.d.e", "a.b\r\nPUB x", "a.b\0", "a.\u{85}b"] {
            let error = Route::parse(text).unwrap_err();
            assert_eq!(error.to_string(), "invalid route", "{text:?}");
        }
    }
}
