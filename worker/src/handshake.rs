//! What a client says about itself when it connects, for checks and for sessions.

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use shared::error::code;
use shared::handshake::HandshakeRequest;
pub use shared::handshake::HandshakeSys;

use crate::error::{Error, Result};

/// Judges a handshake; the text of a failure goes to the log only. See [`App::handshake`](crate::App::handshake).
pub type Check = Box<dyn Fn(&Handshake) -> Result<()> + Send + Sync>;

/// The data of a client's last accepted handshake. All of it is the client's word.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Handshake {
    /// About the client program.
    pub sys: HandshakeSys,
    user: Map<String, Value>,
}

impl Handshake {
    /// What a client's packet said.
    pub fn new(request: HandshakeRequest) -> Self {
        Self { sys: request.sys, user: request.user }
    }

    /// A field of the client's own data. Fails with `PIT-400` when there is none or it is no `T`.
    pub fn user<T: DeserializeOwned>(&self, key: &str) -> Result<T> {
        let bad = |text: String| Error::new(code::BAD_REQUEST, text);
        let value = self.user.get(key).ok_or_else(|| bad(format!("handshake without {key:?}")))?;
        T::deserialize(value).map_err(|error| bad(format!("handshake {key:?}: {error}")))
    }

    /// All of the client's own data.
    pub fn user_data(&self) -> &Map<String, Value> {
        &self.user
    }
}

/// Whether a version of numbers between dots is at least another one: `1.0.10` is at least `1.0.6`. Parts that are left
/// out are 0; a part that is no number makes it false.
///
/// ```
/// use worker::version_at_least;
/// assert!(version_at_least("1.0.10", "1.0.6") && version_at_least("2", "1.9"));
/// assert!(!version_at_least("1.0", "1.0.1") && !version_at_least("", "0") && !version_at_least("1.x", "1"));
/// ```
pub fn version_at_least(version: &str, least: &str) -> bool {
    let parts = |text: &str| -> Option<Vec<u64>> {
        let parts = text.split('.').map(|part| part.parse().ok()).collect::<Option<Vec<u64>>>();
        parts.map(|mut parts| {
            while parts.last() == Some(&0) {
                parts.pop();
            }
            parts
        })
    };
    parts(version).zip(parts(least)).is_some_and(|(version, least)| version >= least)
}
