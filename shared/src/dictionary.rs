//! Short numbers for routes, agreed in the handshake (client protocol 4).
//!
//! One dictionary belongs to one application, never to the process. It is built before the first connection and then
//! only read. The invariant: routes and codes are a one-to-one relation, and no code is 0.

use hashbrown::HashMap;
use thiserror::Error;

use crate::message::ROUTE_BYTES_MAX;

/// Routes and their codes.
#[derive(Debug, Clone)]
pub struct Dictionary {
    codes: HashMap<Box<str>, u16>,
    routes: HashMap<u16, Box<str>>,
    /// Whether pushes to clients use codes. libpitaya cannot read a push that does, so a server with such
    /// clients switches it off. The default is on, as in Pitaya.
    pub for_pushes: bool,
}

/// Why an entry cannot be in a dictionary; a mistake of the configuration.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum DictionaryError {
    /// The route or its code is there already.
    #[error("duplicated route(route: {route}, code: {code})")]
    Duplicate {
        /// The later of the two routes.
        route: String,
        /// Its code.
        code: u16,
    },
    /// Clients take code 0 for "no code".
    #[error("route {route} has code 0, which clients take for no code")]
    ZeroCode {
        /// The route with the code.
        route: String,
    },
    /// The route is empty or longer than a message can carry.
    #[error("route of {bytes} bytes; 1 to {ROUTE_BYTES_MAX} are possible")]
    RouteLength {
        /// Length of the route.
        bytes: usize,
    },
}

impl Default for Dictionary {
    fn default() -> Self {
        Self { codes: HashMap::new(), routes: HashMap::new(), for_pushes: true }
    }
}

impl Dictionary {
    /// Adds entries; white space around a route is cut off. Adds all of them or, when one is refused, none.
    ///
    /// # Errors
    /// A [`DictionaryError`] for the first entry that cannot be added.
    pub fn insert_all<R: AsRef<str>>(
        &mut self,
        entries: impl IntoIterator<Item = (R, u16)>,
    ) -> Result<(), DictionaryError> {
        let mut grown = self.clone();
        for (route, code) in entries {
            grown.insert(route.as_ref().trim(), code)?;
        }
        *self = grown;
        Ok(())
    }

    fn insert(&mut self, route: &str, code: u16) -> Result<(), DictionaryError> {
        if route.is_empty() || route.len() > ROUTE_BYTES_MAX {
            return Err(DictionaryError::RouteLength { bytes: route.len() });
        }
        if code == 0 {
            return Err(DictionaryError::ZeroCode { route: route.to_owned() });
        }
        if self.codes.contains_key(route) || self.routes.contains_key(&code) {
            return Err(DictionaryError::Duplicate { route: route.to_owned(), code });
        }
        self.codes.insert(route.into(), code);
        self.routes.insert(code, route.into());
        Ok(())
    }

    /// The code of a route.
    pub fn code(&self, route: &str) -> Option<u16> {
        self.codes.get(route).copied()
    }

    /// The route of a code.
    pub fn route(&self, code: u16) -> Option<&str> {
        self.routes.get(&code).map(AsRef::as_ref)
    }

    /// Whether there is no entry at all.
    pub fn is_empty(&self) -> bool {
        self.codes.is_empty()
    }

    /// All entries, sorted by the bytes of the route. Sorts on each call: for the handshake and for printing.
    pub fn iter(&self) -> impl Iterator<Item = (&str, u16)> {
        let mut entries: Vec<(&str, u16)> =
            self.codes.iter().map(|(route, code)| (route.as_ref(), *code)).collect();
        entries.sort_unstable();
        entries.into_iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routes_are_trimmed_and_found_both_ways() {
        let mut dictionary = Dictionary::default();
        assert!(dictionary.is_empty() && dictionary.for_pushes);
        dictionary.insert_all([(" onMessage ", 4), ("a.b", 260)]).unwrap();
        assert_eq!(dictionary.code("onMessage"), Some(4));
        assert_eq!(dictionary.route(260), Some("a.b"));
        assert_eq!((dictionary.code("x"), dictionary.route(5)), (None, None));
        assert_eq!(dictionary.iter().collect::<Vec<_>>(), [("a.b", 260), ("onMessage", 4)]);
    }

    #[test]
    fn a_refused_entry_leaves_the_dictionary_as_it_was() {
        let mut dictionary = Dictionary::default();
        dictionary.insert_all([("a", 1)]).unwrap();
        let error = dictionary.insert_all([("b", 2), ("a", 3)]).unwrap_err();
        assert_eq!(error.to_string(), "duplicated route(route: a, code: 3)");
        assert!(dictionary.insert_all([("c", 1)]).is_err(), "the code is taken");
        assert!(dictionary.insert_all([("c", 0)]).is_err());
        assert!(dictionary.insert_all([(" ", 7)]).is_err());
        assert!(dictionary.insert_all([("r".repeat(ROUTE_BYTES_MAX + 1), 7)]).is_err());
        assert_eq!(dictionary.iter().collect::<Vec<_>>(), [("a", 1)]);
        dictionary.insert_all([("r".repeat(ROUTE_BYTES_MAX), u16::MAX)]).unwrap();
    }
}
