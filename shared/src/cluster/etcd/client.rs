//! The calls that etcd offers, as far as they are used here.
//!
//! How a call finds its server, how long it may take and who vouches for it is the business of `transport`. Retrying for
//! longer than one round of the endpoints, and the meaning of what is read, are the caller's.

use std::sync::Arc;
use std::time::Duration;

use super::error::EtcdError;
use super::messages::{
    DeleteRangeRequest, DeleteRangeResponse, LeaseGrantRequest, LeaseGrantResponse,
    LeaseKeepAliveRequest, LeaseKeepAliveResponse, LeaseRevokeRequest, LeaseRevokeResponse,
    LeaseTimeToLiveRequest, LeaseTimeToLiveResponse, PutRequest, PutResponse, RangeRequest,
    RangeResponse, TxnRequest, TxnResponse, WatchCreateRequest, WatchRequest, WatchRequestUnion,
    WatchResponse,
};
use super::store_options::StoreOptions;
use super::transport::{Stream, Transport};

/// A client; clones share the connection.
#[derive(Clone)]
pub struct Client {
    transport: Arc<Transport>,
}

impl Client {
    /// A client that connects with its first call; `call_timeout` is the limit of one call on one endpoint. Must be called
    /// inside a tokio runtime.
    ///
    /// # Errors
    /// [`EtcdError::NoEndpoint`] and [`EtcdError::InvalidEndpoint`]
    pub fn new(options: &StoreOptions, call_timeout: Duration) -> Result<Self, EtcdError> {
        Ok(Self { transport: Arc::new(Transport::new(options, call_timeout)?) })
    }

    /// Reads keys, up to date with everything that was confirmed before the call.
    pub async fn range(&self, request: RangeRequest) -> Result<RangeResponse, EtcdError> {
        self.transport.unary("/etcdserverpb.KV/Range", request).await
    }

    /// Writes one key.
    pub async fn put(&self, request: PutRequest) -> Result<PutResponse, EtcdError> {
        self.transport.unary("/etcdserverpb.KV/Put", request).await
    }

    /// Deletes keys.
    pub async fn delete_range(
        &self,
        request: DeleteRangeRequest,
    ) -> Result<DeleteRangeResponse, EtcdError> {
        self.transport.unary("/etcdserverpb.KV/DeleteRange", request).await
    }

    /// Runs a transaction.
    pub async fn txn(&self, request: TxnRequest) -> Result<TxnResponse, EtcdError> {
        self.transport.unary("/etcdserverpb.KV/Txn", request).await
    }

    /// A new lease of at least `ttl_s` seconds.
    pub async fn lease_grant(&self, ttl_s: i64) -> Result<LeaseGrantResponse, EtcdError> {
        let request = LeaseGrantRequest { ttl: ttl_s, id: 0 };
        self.transport.unary("/etcdserverpb.Lease/LeaseGrant", request).await
    }

    /// Ends a lease and deletes its keys. A lease that is gone already is no error.
    pub async fn lease_revoke(&self, lease: i64) -> Result<(), EtcdError> {
        let request = LeaseRevokeRequest { id: lease };
        let answer: Result<LeaseRevokeResponse, _> =
            self.transport.unary("/etcdserverpb.Lease/LeaseRevoke", request).await;
        match answer {
            Err(error) if !error.is_lease_lost() => Err(error),
            _ => Ok(()),
        }
    }

    /// Renews a lease once; returns its new time to live in seconds.
    ///
    /// A stream for each renewal, unlike one for all of them, takes the fail-over of every other call.
    ///
    /// # Errors
    /// [`EtcdError::LeaseLost`] when etcd does not know the lease (cluster protocol 13.2).
    pub async fn lease_keep_alive(&self, lease: i64) -> Result<i64, EtcdError> {
        let request = LeaseKeepAliveRequest { id: lease };
        let (_, answer): (_, LeaseKeepAliveResponse) =
            self.transport.open("/etcdserverpb.Lease/LeaseKeepAlive", request).await?;
        if answer.ttl > 0 { Ok(answer.ttl) } else { Err(EtcdError::LeaseLost) }
    }

    /// What is left of a lease, and its keys.
    pub async fn lease_time_to_live(
        &self,
        lease: i64,
    ) -> Result<LeaseTimeToLiveResponse, EtcdError> {
        let request = LeaseTimeToLiveRequest { id: lease, keys: true };
        self.transport.unary("/etcdserverpb.Lease/LeaseTimeToLive", request).await
    }

    /// Opens a watch; returns when etcd has confirmed it.
    ///
    /// # Errors
    /// Besides those of every call [`EtcdError::WatchCancelled`], for example when the revision was compacted away or
    /// the user may not read the keys.
    pub async fn watch(&self, request: WatchCreateRequest) -> Result<Watch, EtcdError> {
        let request = WatchRequest { request: Some(WatchRequestUnion::Create(request)) };
        let (stream, first) = self.transport.open("/etcdserverpb.Watch/Watch", request).await?;
        let first = refuse_cancelled(first)?;
        Ok(Watch { stream, first: Some(first) })
    }

    /// Makes the next call ask for a new token. For answers whose failure only their text tells, such as a watch
    /// that was cancelled because of its token.
    pub(crate) fn forget_token(&self) {
        self.transport.forget_token();
    }
}

/// An open watch. Dropping it ends it.
pub struct Watch {
    stream: Stream<WatchResponse>,
    /// Read while the watch was opened.
    first: Option<WatchResponse>,
}

impl Watch {
    /// The next report; one without events is a sign of life. May be cancelled without losing a report.
    ///
    /// # Errors
    /// [`EtcdError::WatchCancelled`] or [`EtcdError::Unreachable`]; the watch is over then.
    pub async fn next(&mut self) -> Result<WatchResponse, EtcdError> {
        if let Some(first) = self.first.take() {
            return Ok(first);
        }
        refuse_cancelled(self.stream.next().await?)
    }
}

fn refuse_cancelled(response: WatchResponse) -> Result<WatchResponse, EtcdError> {
    if response.canceled {
        let WatchResponse { cancel_reason: reason, compact_revision, .. } = response;
        return Err(EtcdError::WatchCancelled { reason, compact_revision });
    }
    Ok(response)
}
