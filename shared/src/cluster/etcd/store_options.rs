//! Where an etcd is and below which prefix one part of the cluster keeps its keys: servers, bindings, groups, bans.

use std::time::Duration;

use crate::config::Config;
use crate::secret::Secret;

/// How to reach etcd; the defaults are Pitaya's.
#[derive(Clone, Debug)]
pub struct StoreOptions {
    /// `host:port` or URLs; `https://` means TLS checked against the system's root certificates.
    pub endpoints: Vec<String>,
    /// User; used only when the password is not empty either.
    pub user: String,
    /// Password of the user.
    pub password: Secret,
    /// Put before each key as it is; usually ends in `/`.
    pub prefix: String,
    /// Limit of one connect.
    pub dial_timeout: Duration,
}

impl Default for StoreOptions {
    fn default() -> Self {
        Self {
            endpoints: vec!["localhost:2379".to_owned()],
            user: String::new(),
            password: Secret::default(),
            prefix: "pitaya/".to_owned(),
            dial_timeout: Duration::from_secs(5),
        }
    }
}

impl StoreOptions {
    /// What the configuration says below `section`, for example `pitaya.cluster.sd.etcd`.
    pub fn new(config: &Config, section: &str) -> Self {
        let key = |name: &str| format!("{section}.{name}");
        Self {
            endpoints: config.list(&key("endpoints")),
            user: config.string(&key("user")).to_owned(),
            password: config.secret(&key("pass")),
            prefix: config.string(&key("prefix")).to_owned(),
            dial_timeout: config.duration(&key("dialtimeout")),
        }
    }

    /// One endpoint, and the defaults.
    pub fn at(endpoint: impl Into<String>) -> Self {
        Self { endpoints: vec![endpoint.into()], ..Self::default() }
    }
}
