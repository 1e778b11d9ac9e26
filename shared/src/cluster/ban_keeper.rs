//! The keeper of bans: holds the list, follows the one in etcd, and writes what an administrator of this gateway asks.
//!
//! One task. A change takes effect here at once, whether etcd is there or not; what could not be written is written when
//! etcd is back, before the list is read again. Without etcd (standalone mode) the list lives as long as the process.
//! Each ban with an end has a lease of that length, so that etcd cleans up by itself; the end inside the value is what
//! counts. Invariants: losing etcd unbans nobody; a list that etcd lost with its data is kept.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::sleep;

use super::etcd::{
    Client, Compare, CompareValue, DeleteRangeRequest, EtcdError, EventType, KeyValue, PutRequest,
    RangeRequest, RequestOp, ResponseOp, StoreOptions, TxnRequest, WatchCreateRequest,
    WatchResponse, prefix_end,
};
use super::retry::Retry;
use crate::bans::{BANS_MAX, Ban, BanList, Subject};

/// Behind the prefix of all keys. No Pitaya server reads it.
const KEYS: &str = "dragonfruit/bans/";
/// Holds what tells this data from that of a store that was begun anew.
const IDENTITY_KEY: &str = "dragonfruit/store";
const ASKS_MAX: usize = 64;
const CALL_TIMEOUT: Duration = Duration::from_secs(5);
const RETRY_PAUSE_MAX: Duration = Duration::from_secs(2);

/// All bans, in the order of their subjects.
pub type Bans = BTreeMap<Subject, Ban>;

/// What became of a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stored {
    /// All gateways of the cluster get it.
    InCluster,
    /// It holds here; etcd gets it when it is back.
    Pending,
    /// It holds in this process, which has no cluster.
    Here,
    /// There are too many bans; nothing was changed.
    Refused,
}

struct Ask {
    subject: Subject,
    /// None lifts the ban.
    ban: Option<Ban>,
    done: oneshot::Sender<Stored>,
}

/// How others see the list and change it. Clones are handles of the same one.
#[derive(Clone)]
pub struct BanHandle {
    asks: mpsc::Sender<Ask>,
    bans: watch::Receiver<Arc<Bans>>,
}

impl BanHandle {
    /// Bans, or with `None` lifts a ban. `None` is returned when the keeper has ended.
    pub async fn change(&self, subject: Subject, ban: Option<Ban>) -> Option<Stored> {
        let (done, is_done) = oneshot::channel();
        self.asks.send(Ask { subject, ban, done }).await.ok()?;
        is_done.await.ok()
    }

    /// The bans as they are now, those that have just ended included.
    pub fn bans(&self) -> Arc<Bans> {
        self.bans.borrow().clone()
    }

    /// Waits for a change; returns the list to look things up in, or `None` when the keeper has ended.
    pub async fn changed(&mut self) -> Option<BanList> {
        self.bans.changed().await.ok()?;
        Some(BanList::new(&self.bans.borrow_and_update()))
    }
}

/// The task's state.
pub struct BanKeeper {
    store: Option<Store>,
    bans: Bans,
    /// Changes that etcd has not heard of.
    unwritten: BTreeMap<Subject, Option<Ban>>,
    asks: mpsc::Receiver<Ask>,
    published: watch::Sender<Arc<Bans>>,
}

struct Store {
    client: Client,
    prefix: String,
    identity_key: String,
    /// Of the last listing.
    revision: i64,
    /// What the data was marked with when it was last read. Revisions do not tell whether data was lost: a fresh store
    /// soon has as many.
    known_identity: Option<Vec<u8>>,
    retry: Retry,
}

impl BanKeeper {
    /// A keeper, to be run on the runtime that calls this, and its handle. Without options there is no etcd.
    ///
    /// # Errors
    /// The endpoints cannot be read.
    pub fn new(options: Option<&StoreOptions>) -> Result<(Self, BanHandle), EtcdError> {
        let store = options.map(Store::new).transpose()?;
        let (send, asks) = mpsc::channel(ASKS_MAX);
        let (published, bans) = watch::channel(Arc::default());
        let unwritten = BTreeMap::new();
        let keeper = Self { store, bans: Bans::new(), unwritten, asks, published };
        Ok((keeper, BanHandle { asks: send, bans }))
    }

    /// Runs until all handles are gone.
    pub async fn run(mut self) {
        let Some(mut store) = self.store.take() else {
            while let Some(ask) = self.asks.recv().await {
                let stored = if self.apply_ask(&ask) { Stored::Here } else { Stored::Refused };
                // Whoever asked may have gone.
                let _ = ask.done.send(stored);
            }
            return;
        };
        loop {
            let error = match self.follow(&mut store).await {
                Ok(never) => match never {},
                Err(Failure::Ended) => return,
                Err(Failure::Etcd(error)) => error,
            };
            if let EtcdError::WatchCancelled { compact_revision: 0, .. } = error {
                store.client.forget_token();
            }
            let pause = sleep(store.retry.failed(&error, std::time::Instant::now()));
            tokio::pin!(pause);
            loop {
                tokio::select! {
                    () = &mut pause => break,
                    ask = self.asks.recv() => match ask {
                        Some(ask) => self.keep_ask(ask),
                        None => return,
                    },
                }
            }
        }
    }

    /// Runs until something fails.
    async fn follow(&mut self, store: &mut Store) -> Result<Infallible, Failure> {
        while let Some((subject, ban)) = self.unwritten.first_key_value() {
            let (subject, ban) = (subject.clone(), ban.clone());
            store.write(&subject, ban.as_ref()).await?;
            self.unwritten.remove(&subject);
        }
        self.list(store).await?;
        let mut watch = store.client.watch(store.watch_request()).await?;
        store.retry.succeeded(std::time::Instant::now());
        loop {
            tokio::select! {
                response = watch.next() => self.apply(store, response?),
                ask = self.asks.recv() => {
                    let ask = ask.ok_or(Failure::Ended)?;
                    self.handle_ask(store, ask).await?;
                }
            }
        }
    }

    async fn list(&mut self, store: &mut Store) -> Result<(), EtcdError> {
        let prefix = store.prefix.clone().into_bytes();
        let range_end = prefix_end(&prefix);
        let request = RangeRequest { key: prefix, range_end, ..RangeRequest::default() };
        let answer = store.client.range(request).await?;
        store.revision = answer.header.unwrap_or_default().revision;
        let identity = store.identity().await?;
        let is_lost = store.known_identity.as_ref().is_some_and(|known| *known != identity);
        store.known_identity = Some(identity);
        let listed: Bans = answer.kvs.iter().filter_map(|entry| store.read(entry)).collect();
        if is_lost {
            tracing::warn!(
                bans = self.bans.len(),
                "etcd has lost its data; the known bans are kept"
            );
            let now_ms = unix_ms();
            let kept = self.bans.iter().filter(|(subject, _)| !listed.contains_key(*subject));
            let kept = kept.filter(|(_, ban)| ban.holds(now_ms));
            let kept: Bans = kept.map(|(subject, ban)| (subject.clone(), ban.clone())).collect();
            for (subject, ban) in &kept {
                store.write(subject, Some(ban)).await?;
            }
            self.bans.extend(listed);
        } else {
            self.bans = listed;
        }
        self.publish();
        Ok(())
    }

    fn apply(&mut self, store: &Store, response: WatchResponse) {
        let mut is_changed = false;
        for event in response.events {
            let kind = event.r#type();
            let Some(entry) = event.kv.filter(|entry| entry.mod_revision > store.revision) else {
                continue;
            };
            match kind {
                EventType::Put => {
                    if let Some((subject, ban)) = store.read(&entry) {
                        self.bans.insert(subject, ban);
                    }
                }
                EventType::Delete => {
                    if let Some(subject) = store.subject_of(&entry.key) {
                        self.bans.remove(&subject);
                    }
                }
            }
            is_changed = true;
        }
        if is_changed {
            self.publish();
        }
    }

    async fn handle_ask(&mut self, store: &Store, ask: Ask) -> Result<(), EtcdError> {
        if !self.apply_ask(&ask) {
            let _ = ask.done.send(Stored::Refused);
            return Ok(());
        }
        let outcome = store.write(&ask.subject, ask.ban.as_ref()).await;
        let stored = match outcome {
            Ok(()) => Stored::InCluster,
            Err(_) => {
                self.unwritten.insert(ask.subject, ask.ban);
                Stored::Pending
            }
        };
        let _ = ask.done.send(stored);
        outcome
    }

    /// Takes a change in while etcd is away.
    fn keep_ask(&mut self, ask: Ask) {
        let stored = if self.apply_ask(&ask) {
            self.unwritten.insert(ask.subject, ask.ban);
            Stored::Pending
        } else {
            Stored::Refused
        };
        let _ = ask.done.send(stored);
    }

    fn apply_ask(&mut self, ask: &Ask) -> bool {
        let now_ms = unix_ms();
        match &ask.ban {
            Some(ban) => {
                if self.bans.len() >= BANS_MAX {
                    self.bans.retain(|_, ban| ban.holds(now_ms));
                }
                if self.bans.len() >= BANS_MAX && !self.bans.contains_key(&ask.subject) {
                    return false;
                }
                self.bans.insert(ask.subject.clone(), ban.clone());
            }
            None => drop(self.bans.remove(&ask.subject)),
        }
        self.publish();
        true
    }

    fn publish(&self) {
        self.published.send_replace(Arc::new(self.bans.clone()));
    }
}

enum Failure {
    /// Nobody can ask any more.
    Ended,
    Etcd(EtcdError),
}

impl From<EtcdError> for Failure {
    fn from(error: EtcdError) -> Self {
        Self::Etcd(error)
    }
}

impl Store {
    fn new(options: &StoreOptions) -> Result<Self, EtcdError> {
        let client = Client::new(options, options.dial_timeout.min(CALL_TIMEOUT))?;
        Ok(Self {
            client,
            prefix: format!("{}{KEYS}", options.prefix),
            identity_key: format!("{}{IDENTITY_KEY}", options.prefix),
            revision: 0,
            known_identity: None,
            retry: Retry::new("following the bans in etcd", RETRY_PAUSE_MAX),
        })
    }

    fn watch_request(&self) -> WatchCreateRequest {
        WatchCreateRequest {
            key: self.prefix.clone().into_bytes(),
            range_end: prefix_end(self.prefix.as_bytes()),
            start_revision: self.revision.saturating_add(1),
            progress_notify: true,
        }
    }

    /// The mark of the data; the first who asks makes it.
    async fn identity(&self) -> Result<Vec<u8>, EtcdError> {
        let key = self.identity_key.clone().into_bytes();
        let fresh = format!("{:032x}", fastrand::u128(..)).into_bytes();
        let is_absent = Compare::equal(key.clone(), CompareValue::CreateRevision(0));
        let put = PutRequest {
            key: key.clone(),
            value: fresh.clone(),
            lease: 0,
            ..PutRequest::default()
        };
        let read = RangeRequest { key, ..RangeRequest::default() };
        let request = TxnRequest::new(
            vec![is_absent],
            vec![RequestOp::Put(put)],
            vec![RequestOp::Range(read)],
        );
        let found = self.client.txn(request).await?.into_responses().find_map(|response| {
            let ResponseOp::Range(range) = response else { return None };
            range.kvs.into_iter().next().map(|entry| entry.value)
        });
        Ok(found.unwrap_or(fresh))
    }

    async fn write(&self, subject: &Subject, ban: Option<&Ban>) -> Result<(), EtcdError> {
        let key = format!("{}{subject}", self.prefix).into_bytes();
        let left_ms = ban.and_then(|ban| ban.until_ms).map(|ms| ms.saturating_sub(unix_ms()));
        let Some(ban) = ban.filter(|_| left_ms != Some(0)) else {
            let request = DeleteRangeRequest { key, ..DeleteRangeRequest::default() };
            return self.client.delete_range(request).await.map(drop);
        };
        let lease = match left_ms {
            Some(left_ms) => {
                // One second more: the value decides, the lease only cleans up behind it.
                let ttl_s = i64::try_from(left_ms.div_ceil(1_000)).unwrap_or(LEASE_S_MAX);
                self.client.lease_grant(ttl_s.min(LEASE_S_MAX) + 1).await?.id
            }
            None => 0,
        };
        self.client
            .put(PutRequest { key, value: ban.encode(), lease, ..PutRequest::default() })
            .await
            .map(drop)
    }

    fn subject_of(&self, key: &[u8]) -> Option<Subject> {
        std::str::from_utf8(key).ok()?.strip_prefix(&self.prefix)?.parse().ok()
    }

    /// What others have written may be anything: what is no ban is passed over.
    fn read(&self, entry: &KeyValue) -> Option<(Subject, Ban)> {
        let read = self.subject_of(&entry.key).zip(Ban::decode(&entry.value).ok());
        if read.is_none() {
            tracing::warn!(key = %entry.key.escape_ascii(), "not a ban; it is passed over");
        }
        read
    }
}

/// etcd refuses leases of more than nine billion seconds; a century is for ever.
const LEASE_S_MAX: i64 = 100 * 365 * 86_400;

/// Wall time, ms since the epoch: ends of bans mean the same on all machines.
fn unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64
}
