//! The task that follows the servers: a listing, then a watch from the next revision on, and a listing again now and
//! then as a safety net.
//!
//! What a listing or an event means for the table is decided in `table_builder`; this file only fetches.
//!
//! Invariant: no event is applied that a listing contained already, and the watch leaves no gap after the listing.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{broadcast, watch};
use tokio::time::{Instant, sleep, sleep_until};

use super::etcd::{
    Client, EtcdError, EventType, KeyValue, RangeRequest, ResponseHeader, WatchCreateRequest,
    WatchResponse, prefix_end,
};
use super::registration::OwnKey;
use super::retry::Retry;
use super::table_builder::{Absent, Entry, ServerEvent, TableBuilder};
use crate::server::ServerTable;

pub(super) struct Follower {
    pub(super) client: Client,
    pub(super) builder: TableBuilder,
    /// Of the server keys.
    pub(super) prefix: Vec<u8>,
    pub(super) own_key_path: Vec<u8>,
    pub(super) sync_interval: Duration,
    pub(super) store: Store,
    pub(super) retry: Retry,
    pub(super) own_key: Arc<OwnKey>,
    pub(super) tables: watch::Sender<Arc<ServerTable>>,
    pub(super) events: broadcast::Sender<ServerEvent>,
    pub(super) link: watch::Sender<Link>,
}

/// How the following is going.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Link {
    pub(super) is_connected: bool,
    pub(super) is_synced: bool,
}

/// What is remembered of etcd to notice that it lost its data.
#[derive(Debug)]
pub(super) struct Store {
    grace: Duration,
    cluster_id: u64,
    /// Of the last listing.
    revision: i64,
    /// Until when servers that the store does not list are kept all the same.
    grace_until: Option<Instant>,
}

impl Store {
    /// Nothing is known yet. `grace` is how long servers are kept after the store lost its data.
    pub(super) fn new(grace: Duration) -> Self {
        Self { grace, cluster_id: 0, revision: 0, grace_until: None }
    }

    /// Takes the header of a listing; returns what the absence of a server from it means.
    fn judge(&mut self, header: &ResponseHeader, now: Instant) -> Absent {
        let is_first = self.revision == 0;
        let is_lost = header.cluster_id != self.cluster_id || header.revision < self.revision;
        if is_lost && !is_first {
            let (old, new) = (self.revision, header.revision);
            tracing::warn!(old, new, "etcd has lost its data; keeping the known servers for now");
            self.grace_until = Some(now + self.grace);
        }
        (self.cluster_id, self.revision) = (header.cluster_id, header.revision);
        if self.grace_until.is_some_and(|until| now < until) {
            return Absent::Keep;
        }
        self.grace_until = None;
        Absent::Remove
    }
}

impl Follower {
    /// Runs until the sender of `stop` is gone; nothing is ever sent on it.
    pub(super) async fn run(mut self, mut stop: watch::Receiver<()>) {
        tokio::select! {
            _ = stop.changed() => {}
            never = self.follow() => match never {},
        }
    }

    async fn follow(&mut self) -> Infallible {
        loop {
            let Err(error) = self.list_and_watch().await;
            self.link.send_modify(|link| link.is_connected = false);
            if let EtcdError::WatchCancelled { compact_revision: 0, .. } = error {
                // A token that is not good enough for a watch shows only in the text of the cancellation.
                self.client.forget_token();
            }
            let pause = self.retry.failed(&error, std::time::Instant::now());
            sleep(pause).await;
        }
    }

    /// Runs until something fails. After any failure the next listing starts afresh, so that nothing has to be known
    /// about what was missed: a lost connection, a compacted revision and a lost store are all repaired the same way.
    async fn list_and_watch(&mut self) -> Result<Infallible, EtcdError> {
        let mut next_sync = self.sync().await?;
        let request = WatchCreateRequest {
            key: self.prefix.clone(),
            range_end: prefix_end(&self.prefix),
            start_revision: self.store.revision.saturating_add(1),
            progress_notify: true,
        };
        let mut watch = self.client.watch(request).await?;
        self.link.send_modify(|link| link.is_connected = true);
        self.retry.succeeded(std::time::Instant::now());
        loop {
            tokio::select! {
                response = watch.next() => self.apply(response?),
                () = sleep_until(next_sync) => next_sync = self.sync().await?,
            }
        }
    }

    /// Lists all servers; returns when to do it again.
    async fn sync(&mut self) -> Result<Instant, EtcdError> {
        let request = RangeRequest {
            key: self.prefix.clone(),
            range_end: prefix_end(&self.prefix),
            ..RangeRequest::default()
        };
        let answer = self.client.range(request).await?;
        let now = Instant::now();
        let absent = self.store.judge(&answer.header.unwrap_or_default(), now);
        if self.builder.apply_range(answer.kvs.iter().map(entry), absent) {
            self.publish();
        }
        self.link.send_if_modified(|link| !std::mem::replace(&mut link.is_synced, true));
        let own = answer.kvs.iter().find(|key_value| key_value.key == self.own_key_path);
        self.own_key.seen(own.map(|key_value| key_value.lease));
        let next = now + self.sync_interval;
        Ok(self.store.grace_until.map_or(next, |until| until.min(next)))
    }

    fn apply(&mut self, response: WatchResponse) {
        let mut is_changed = false;
        for event in response.events {
            let kind = event.r#type();
            let Some(key_value) = event.kv else { continue };
            if key_value.mod_revision <= self.store.revision {
                continue;
            }
            is_changed |= match kind {
                EventType::Put => self.builder.apply_put(entry(&key_value)),
                EventType::Delete => {
                    if key_value.key == self.own_key_path {
                        self.own_key.seen(None);
                    }
                    self.builder.apply_delete(&key_value.key)
                }
            };
        }
        if is_changed {
            self.publish();
        }
    }

    fn publish(&mut self) {
        self.tables.send_replace(Arc::new(self.builder.table()));
        for event in self.builder.take_events() {
            // Nobody has to listen.
            let _ = self.events.send(event);
        }
    }
}

fn entry(key_value: &KeyValue) -> Entry<'_> {
    Entry {
        key: &key_value.key,
        value: &key_value.value,
        create_revision: key_value.create_revision,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRACE: Duration = Duration::from_secs(60);

    fn header(cluster_id: u64, revision: i64) -> ResponseHeader {
        ResponseHeader { cluster_id, member_id: 1, revision }
    }

    #[test]
    fn absence_means_removal_while_the_store_goes_on() {
        let now = Instant::now();
        let mut store = Store::new(GRACE);
        for revision in [1, 5, 5, 9] {
            assert_eq!(store.judge(&header(7, revision), now), Absent::Remove);
        }
    }

    #[test]
    fn servers_are_kept_for_the_grace_after_the_revision_went_back() {
        let now = Instant::now();
        let mut store = Store::new(GRACE);
        store.judge(&header(7, 100), now);
        assert_eq!(store.judge(&header(7, 1), now), Absent::Keep);
        let last_moment = now + GRACE - Duration::from_millis(1);
        assert_eq!(store.judge(&header(7, 2), last_moment), Absent::Keep);
        assert_eq!(store.judge(&header(7, 3), now + GRACE), Absent::Remove);
        assert_eq!(store.grace_until, None);
    }

    #[test]
    fn another_cluster_is_a_lost_store_whatever_its_revision() {
        let now = Instant::now();
        let mut store = Store::new(GRACE);
        store.judge(&header(7, 100), now);
        assert_eq!(store.judge(&header(8, 200), now), Absent::Keep);
    }
}
