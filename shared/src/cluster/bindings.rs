//! The binding storage: which frontend holds which user, in etcd, with Pitaya's keys (cluster protocol 15).
//!
//! ```text
//! {prefix}bindings/{frontend type}/{uid} = {server id of the frontend}
//! ```
//!
//! NATS finds users by their subjects and needs none of this; gRPC does. Here is what reads it; what keeps a frontend's
//! own entries is [`BindingWriter`](super::binding_writer::BindingWriter).

use std::time::Duration;

use thiserror::Error;

use super::etcd::{Client, EtcdError, RangeRequest, StoreOptions};
use crate::config::Config;

/// Limit of one call to etcd.
const CALL_TIMEOUT: Duration = Duration::from_secs(5);

/// Settings of the binding storage below `pitaya.modules.bindingstorage.etcd`. Endpoints and prefix should be those of
/// service discovery.
pub fn store_options(config: &Config) -> StoreOptions {
    StoreOptions::new(config, "pitaya.modules.bindingstorage.etcd")
}

/// Why a look-up gave no frontend.
#[derive(Debug, Error)]
pub enum BindingError {
    /// Nobody of that type holds the user. Pitaya's text.
    #[error("binding for this user was not found in etcd")]
    NotFound,
    /// The value is not a server id.
    #[error("the binding of this user is not text")]
    Malformed,
    /// etcd.
    #[error("the binding storage: {0}")]
    Etcd(#[from] EtcdError),
}

/// Looks users up. Clones share one connection.
#[derive(Clone)]
pub struct BindingStorage {
    client: Client,
    prefix: String,
}

impl BindingStorage {
    /// A storage that connects with its first look-up. Must be called inside a tokio runtime.
    ///
    /// # Errors
    /// [`EtcdError::NoEndpoint`] and [`EtcdError::InvalidEndpoint`]
    pub fn new(options: &StoreOptions) -> Result<Self, EtcdError> {
        Ok(Self {
            client: Client::new(options, options.dial_timeout.min(CALL_TIMEOUT))?,
            prefix: options.prefix.clone(),
        })
    }

    /// The server id of the frontend of this type that holds the user, as of now: a frontend that died stays for as
    /// long as its lease, so check that it is in the server table. One round trip to etcd.
    ///
    /// # Errors
    /// A [`BindingError`].
    pub async fn frontend_of(
        &self,
        uid: &str,
        frontend_type: &str,
    ) -> Result<String, BindingError> {
        let key = key(&self.prefix, frontend_type, uid);
        let mut found = self.client.range(RangeRequest { key, ..RangeRequest::default() }).await?;
        let value = found.kvs.pop().ok_or(BindingError::NotFound)?.value;
        String::from_utf8(value).map_err(|_| BindingError::Malformed)
    }
}

pub(super) fn key(prefix: &str, frontend_type: &str, uid: &str) -> Vec<u8> {
    format!("{prefix}bindings/{frontend_type}/{uid}").into_bytes()
}
