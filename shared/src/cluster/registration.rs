//! Keeps the own server's key in etcd for as long as the server wants to be found.
//!
//! The key is written by a transaction "unless it hangs on my lease already, write it", which serves the first
//! registration and the repair after somebody deleted the key. It runs only when there is reason for it, and its failure
//! does not keep the lease from being renewed: an etcd that is full refuses writes but goes on renewing. What other
//! servers do is not looked at here.
//!
//! Invariant: at most one lease of ours carries the key, and after leaving none does.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
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

/// What the task and the one that follows the servers tell each other about the own key.
#[derive(Debug, Default)]
pub(super) struct OwnKey {
    /// Lease that the key should hang on, 0 while it should not be there.
    lease: AtomicI64,
    doubt: Notify,
}

impl OwnKey {
    /// Takes the lease under which a listing shows the key, or `None` when it does not.
    pub(super) fn seen(&self, lease: Option<i64>) {
        // The number stands for itself; nothing is published with it.
        let expected = self.lease.load(Ordering::Relaxed);
        if expected != 0 && lease != Some(expected) {
            self.doubt.notify_one();
        }
    }

    fn expect(&self, lease: i64) {
        self.lease.store(lease, Ordering::Relaxed);
    }
}

pub(super) struct Registration {
    pub(super) client: Client,
    pub(super) key: Vec<u8>,
    pub(super) value: Vec<u8>,
    /// The record with the mark of a server that leaves.
    pub(super) value_leaving: Vec<u8>,
    pub(super) lease_ttl: Duration,
    pub(super) revoke_timeout: Duration,
    pub(super) retry: Retry,
    pub(super) own_key: Arc<OwnKey>,
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
                self.own_key.expect(0);
                self.phase.send_replace(Phase::Unregistered);
            }
            sleep(self.pause_after(&error)).await;
        }
    }

    /// Registers and renews until there is no lease.
    async fn hold(&mut self) -> Result<Infallible, EtcdError> {
        if self.lease.is_none() {
            let lease = self.grant().await?;
            self.own_key.expect(lease.id);
            self.lease = Some(lease);
        }
        let own_key = Arc::clone(&self.own_key);
        let mut announce_at = Some(Instant::now());
        let mut renew_at = self.renewal();
        loop {
            tokio::select! {
                () = own_key.doubt.notified() => announce_at = Some(Instant::now()),
                () = sleep_until(announce_at.unwrap_or(renew_at)), if announce_at.is_some() => {
                    let outcome = self.announce().await;
                    let pause = self.survive(outcome)?;
                    announce_at = pause.map(|pause| Instant::now() + pause);
                }
                () = sleep_until(renew_at) => {
                    let outcome = self.renew().await;
                    let pause = self.survive(outcome)?;
                    renew_at = pause.map_or_else(|| self.renewal(), |pause| Instant::now() + pause);
                    if pause.is_none() && announce_at.is_none() {
                        self.retry.succeeded(std::time::Instant::now());
                        // The lease has survived an outage that was longer than it; has the key?
                        let is_hidden = *self.phase.borrow() != Phase::Registered;
                        announce_at = is_hidden.then(Instant::now);
                    }
                }
            }
        }
    }

    /// Takes the outcome of a step; returns how long to wait before the next try if it failed.
    ///
    /// # Errors
    /// Only if there is no lease any more.
    fn survive(&mut self, outcome: Result<(), EtcdError>) -> Result<Option<Duration>, EtcdError> {
        match outcome {
            Ok(()) => Ok(None),
            Err(error) if error.is_lease_lost() => Err(error),
            Err(error) => {
                if self.lease.as_ref().is_none_or(Lease::is_over) {
                    self.phase.send_replace(Phase::Unregistered);
                }
                Ok(Some(self.pause_after(&error)))
            }
        }
    }

    fn pause_after(&mut self, error: &EtcdError) -> Duration {
        self.retry.failed(error, std::time::Instant::now())
    }

    fn renewal(&self) -> Instant {
        let after = |lease: &Lease| lease.confirmed_at + lease.ttl / 3;
        self.lease.as_ref().map_or_else(Instant::now, after)
    }

    async fn grant(&self) -> Result<Lease, EtcdError> {
        let confirmed_at = Instant::now();
        let ttl_s = i64::try_from(self.lease_ttl.as_secs()).unwrap_or(i64::MAX).max(1);
        let answer = self.client.lease_grant(ttl_s).await?;
        Ok(Lease { id: answer.id, ttl: seconds(answer.ttl), confirmed_at })
    }

    async fn renew(&mut self) -> Result<(), EtcdError> {
        let Some(lease) = &mut self.lease else { return Err(EtcdError::LeaseLost) };
        let asked_at = Instant::now();
        lease.ttl = seconds(self.client.lease_keep_alive(lease.id).await?);
        lease.confirmed_at = asked_at;
        Ok(())
    }

    /// Writes the key unless it is there with our lease.
    async fn announce(&mut self) -> Result<(), EtcdError> {
        let Some(lease) = &self.lease else { return Err(EtcdError::LeaseLost) };
        let is_ours = Compare::equal(self.key.clone(), CompareValue::Lease(lease.id));
        let put = self.put(&self.value, lease);
        let write = RequestOp::Put(put);
        let answer = self.client.txn(TxnRequest::new(vec![is_ours], vec![], vec![write])).await?;
        if !answer.succeeded {
            let key = String::from_utf8_lossy(&self.key);
            tracing::info!(%key, lease = lease.id, "registered in etcd");
        }
        self.retry.succeeded(std::time::Instant::now());
        self.phase.send_replace(Phase::Registered);
        Ok(())
    }

    fn put(&self, value: &[u8], lease: &Lease) -> PutRequest {
        PutRequest {
            key: self.key.clone(),
            value: value.to_vec(),
            lease: lease.id,
            ..PutRequest::default()
        }
    }

    /// Marks the record, if it is still ours, so that its end is not taken for a crash.
    async fn mark_leaving(&self, lease: &Lease) -> Result<(), EtcdError> {
        let is_ours = Compare::equal(self.key.clone(), CompareValue::Lease(lease.id));
        let write = RequestOp::Put(self.put(&self.value_leaving, lease));
        self.client.txn(TxnRequest::new(vec![is_ours], vec![write], vec![])).await.map(drop)
    }

    /// Tries for as long as allowed; after that the lease expires by itself.
    async fn revoke(&mut self) {
        self.own_key.expect(0);
        let Some(lease) = self.lease.take() else { return };
        let limit = self.revoke_timeout;
        let attempts = async {
            // Only a courtesy: a record without the mark is taken back all the same.
            if let Err(error) = self.mark_leaving(&lease).await {
                tracing::debug!(%error, "leaving without saying so");
            }
            while let Err(error) = self.client.lease_revoke(lease.id).await {
                sleep(self.pause_after(&error)).await;
            }
        };
        if timeout(limit, attempts).await.is_err() {
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

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    fn has_doubt(own_key: &OwnKey) -> bool {
        own_key.doubt.notified().now_or_never().is_some()
    }

    #[test]
    fn only_a_key_that_should_be_there_and_is_not_ours_raises_doubt() {
        let own_key = OwnKey::default();
        own_key.seen(None);
        own_key.seen(Some(7));
        assert!(!has_doubt(&own_key), "nothing is expected yet");
        own_key.expect(7);
        own_key.seen(Some(7));
        assert!(!has_doubt(&own_key));
        for lease in [None, Some(0), Some(8)] {
            own_key.seen(lease);
            assert!(has_doubt(&own_key), "{lease:?}");
        }
        own_key.expect(0);
        own_key.seen(None);
        assert!(!has_doubt(&own_key), "it has left");
    }
}
