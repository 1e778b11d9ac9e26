//! The binding storage: which frontend holds a user, as frontends write it into etcd (cluster protocol 15).
//!
//! Only the question. Endpoints and prefix are settings of their own and must equal those that the frontends write with.

use std::time::Duration;

use super::etcd::{Client, ClientOptions, EtcdError, RangeRequest};
use crate::config::Config;

/// Limit of one look-up.
const CALL_TIMEOUT: Duration = Duration::from_secs(5);

/// How to reach the binding storage.
#[derive(Clone)]
pub struct BindingsOptions {
    /// etcd endpoints, `host:port` or URLs.
    pub endpoints: Vec<String>,
    /// etcd user; used only when the password is not empty either.
    pub user: String,
    /// Password of the user.
    pub password: String,
    /// Put before each key as it is; usually ends in `/`.
    pub prefix: String,
    /// Limit of one connect.
    pub dial_timeout: Duration,
}

impl BindingsOptions {
    /// What the configuration says. Pitaya has no user and password for this etcd; those of service discovery are used.
    pub fn new(config: &Config) -> Self {
        let key = |name: &str| format!("pitaya.modules.bindingstorage.etcd.{name}");
        Self {
            endpoints: config.list(&key("endpoints")),
            user: config.string("pitaya.cluster.sd.etcd.user").to_owned(),
            password: config.secret("pitaya.cluster.sd.etcd.pass").reveal().to_owned(),
            prefix: config.string(&key("prefix")).to_owned(),
            dial_timeout: config.duration(&key("dialtimeout")),
        }
    }
}

/// Finds the frontends of users. Clones share the connection.
#[derive(Clone)]
pub struct Bindings {
    client: Client,
    prefix: String,
}

impl Bindings {
    /// Connects with the first look-up. Must be called inside a tokio runtime.
    ///
    /// # Errors
    /// [`EtcdError::NoEndpoint`] and [`EtcdError::InvalidEndpoint`]
    pub fn new(options: BindingsOptions) -> Result<Self, EtcdError> {
        let client = Client::new(&ClientOptions {
            endpoints: options.endpoints,
            user: options.user,
            password: options.password,
            dial_timeout: options.dial_timeout,
            call_timeout: CALL_TIMEOUT.min(options.dial_timeout),
        })?;
        Ok(Self { client, prefix: options.prefix })
    }

    /// The id of the server of this type that holds the user; none when nobody says so.
    ///
    /// # Errors
    /// Those of every call to etcd.
    pub async fn find(&self, frontend_type: &str, uid: &str) -> Result<Option<String>, EtcdError> {
        let key = format!("{}bindings/{frontend_type}/{uid}", self.prefix).into_bytes();
        let answer = self.client.range(RangeRequest { key, ..RangeRequest::default() }).await?;
        let value = answer.kvs.into_iter().next().map(|binding| binding.value);
        Ok(value.and_then(|value| String::from_utf8(value).ok()))
    }
}
