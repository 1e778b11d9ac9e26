//! Keeps the own server's key in etcd for as long as the server wants to be found.
//!
//! The key is written by a transaction "unless it hangs on my lease already, write it", which serves the first
//! registration, the repair after somebody deleted the key, and the check at each sync. What other servers do is not
//! looked at here.
//!
//! Invariant: at most one lease of ours carries the key, and after leaving none does.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::etcd::{Client, Compare, CompareValue, EtcdError, PutRequest, RequestOp, TxnRequest};
use super::retry::Retry;

/// What the owner wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Target {
    /// Not to be found yet.
    Hidden,
    Registered,
    /// Not to be found any more.
    Left,
}

/// How far it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    Unregistered,
    Registered,
    /// The task has ended.
    Left,
}

pub(super) struct Registration {
    pub(super) client: Client,
    pub(super) key: Vec<u8>,
    pub(super) value: Vec<u8>,
    pub(super) lease_ttl: Duration,
    pub(super) revoke_timeout: Duration,
    pub(super) retry: Retry,
    /// Somebody has reason to believe that the key may be gone.
    pub(super) doubt: Arc<Notify>,
    pub(super) phase: watch::Sender<Phase>,
    pub(super) lease: Option<Lease>,
}

/// A lease of ours, with what etcd last said about it.
pub(super) struct Lease {
    id: i64,
    ttl: Duration,
    confirmed_at: Instant,
}

impl Registration {
    /// Runs until the target is [`Target::Left`], or until its sender is gone: then the lease is left to expire, as
    /// after a crash.
    pub(super) async fn run(mut self, mut target: watch::Receiver<Target>) {
        loop {
            let wanted = *target.borrow_and_update();
            let changed = match wanted {
                Target::Hidden => target.changed().await,
                Target::Registered => tokio::select! {
                    changed = target.changed() => changed,
                    never = self.stay_registered() => match never {},
                },
                Target::Left => {
                    self.revoke().await;
                    self.phase.send_replace(Phase::Left);
                    return;
                }
            };
            if changed.is_err() {
                return;
            }
        }
    }

    async fn stay_registered(&mut self) -> Infallible {
        loop {
            let Err(error) = self.hold().await;
            if error.is_lease_lost() {
                self.lease = None;
            }
            if self.lease.as_ref().is_none_or(Lease::is_over) {
                self.phase.send_replace(Phase::Unregistered);
            }
            let pause = self.retry.failed(&error, std::time::Instant::now());
            sleep(pause).await;
        }
    }

    /// Registers and renews until something fails.
    async fn hold(&mut self) -> Result<Infallible, EtcdError> {
        if self.lease.is_none() {
            self.lease = Some(self.grant().await?);
        }
        self.announce().await?;
        self.retry.succeeded(std::time::Instant::now());
        loop {
            let Some(lease) = &mut self.lease else { return Err(EtcdError::LeaseLost) };
            tokio::select! {
                () = self.doubt.notified() => self.announce().await?,
                () = sleep_until(lease.confirmed_at + lease.ttl / 3) => {
                    let asked_at = Instant::now();
                    lease.ttl = seconds(self.client.lease_keep_alive(lease.id).await?);
                    lease.confirmed_at = asked_at;
                }
            }
        }
    }

    async fn grant(&self) -> Result<Lease, EtcdError> {
        let confirmed_at = Instant::now();
        let ttl_s = i64::try_from(self.lease_ttl.as_secs()).unwrap_or(i64::MAX).max(1);
        let answer = self.client.lease_grant(ttl_s).await?;
        Ok(Lease { id: answer.id, ttl: seconds(answer.ttl), confirmed_at })
    }

    /// Writes the key unless it is there with our lease.
    async fn announce(&mut self) -> Result<(), EtcdError> {
        let Some(lease) = &self.lease else { return Err(EtcdError::LeaseLost) };
        let is_ours = Compare::equal(self.key.clone(), CompareValue::Lease(lease.id));
        let put = PutRequest { key: self.key.clone(), value: self.value.clone(), lease: lease.id };
        let write = RequestOp::Put(put);
        let answer = self.client.txn(TxnRequest::new(vec![is_ours], vec![], vec![write])).await?;
        if !answer.succeeded {
            let key = String::from_utf8_lossy(&self.key);
            tracing::info!(%key, lease = lease.id, "registered in etcd");
        }
        self.phase.send_replace(Phase::Registered);
        Ok(())
    }

    /// Tries for as long as allowed; after that the lease expires by itself.
    async fn revoke(&mut self) {
        let Some(lease) = self.lease.take() else { return };
        let attempts = async {
            while let Err(error) = self.client.lease_revoke(lease.id).await {
                let pause = self.retry.failed(&error, std::time::Instant::now());
                sleep(pause).await;
            }
        };
        if timeout(self.revoke_timeout, attempts).await.is_err() {
            let seconds = lease.ttl.as_secs();
            tracing::warn!(seconds, "could not revoke the lease; it expires by itself");
        }
    }
}

impl Lease {
    fn is_over(&self) -> bool {
        self.confirmed_at.elapsed() >= self.ttl
    }
}

fn seconds(ttl_s: i64) -> Duration {
    Duration::from_secs(u64::try_from(ttl_s).unwrap_or(0).max(1))
}
