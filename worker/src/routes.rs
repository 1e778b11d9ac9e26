//! The tables of an application: which handler answers which route. Fixed at start.

use std::sync::Arc;

use hashbrown::HashMap;
use shared::error::code;
use shared::route::Route;

use crate::error::{Error, Result};
use crate::handler::{AnyHandler, Kind};
use crate::pipeline::Pipelines;

/// Rewrites errors before they are answered.
pub(crate) type MapError = Arc<dyn Fn(Error) -> Error + Send + Sync>;

#[derive(Default)]
pub(crate) struct Routes {
    pub(crate) handlers: HashMap<String, Entry>,
    pub(crate) remotes: HashMap<String, AnyHandler>,
    pub(crate) fallback: Option<AnyHandler>,
    pub(crate) map_error: Option<MapError>,
    pub(crate) pipelines: Pipelines,
}

pub(crate) struct Entry {
    pub(crate) handler: AnyHandler,
    /// Messages of one session may run at the same time.
    pub(crate) is_concurrent: bool,
}

impl Routes {
    /// Whether a client message of this route may overtake others of its session. Unknown routes may not: their
    /// error answers keep the order too.
    pub(crate) fn is_concurrent(&self, route: &str) -> bool {
        let entry = key(route).ok().and_then(|key| self.handlers.get(key));
        entry.is_some_and(|entry| entry.is_concurrent)
    }

    /// The handler of a client message. `key` is what [`key`] made of `route`.
    pub(crate) fn handler(&self, route: &str, key: &str, is_notify: bool) -> Result<&AnyHandler> {
        let Some(entry) = self.handlers.get(key) else {
            let text = || format!("pitaya/handler: {route} not found");
            return self.fallback.as_ref().ok_or_else(|| Error::new(code::NOT_FOUND, text()));
        };
        if entry.handler.kind == Kind::Notify && !is_notify {
            return Err(Error::new(code::BAD_REQUEST, "tried to request a notify route"));
        }
        Ok(&entry.handler)
    }

    /// The remote that another server calls.
    pub(crate) fn remote(&self, key: &str) -> Result<&AnyHandler> {
        let unknown = || Error::new(code::NOT_FOUND, "route not found").with("route", key);
        self.remotes.get(key).ok_or_else(unknown)
    }
}

/// `service.method` of a route with or without a server type. The server type is not compared: whoever addressed
/// this server meant it.
pub(crate) fn key(route: &str) -> Result<&str> {
    let unreadable = || Error::new(code::BAD_REQUEST, "cannot decode route").with("route", route);
    let parsed = Route::parse(route).map_err(|_| unreadable())?;
    let before = parsed.server_type.map_or(0, |server_type| server_type.len() + 1);
    route.get(before..).ok_or_else(unreadable)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_of_a_route_is_its_last_two_parts() {
        assert_eq!(key("room.chat.send").unwrap(), "chat.send");
        assert_eq!(key("chat.send").unwrap(), "chat.send");
        for bad in ["", "ok", "a..b", "a.b.c.d"] {
            let error = key(bad).unwrap_err();
            assert_eq!(
                (error.code.as_ref(), error.msg.as_str()),
                ("PIT-400", "cannot decode route")
            );
            assert_eq!(error.metadata["route"], bad);
        }
    }
}
