//! Keeps a frontend's entries in the binding storage: written at a bind, removed at an unbind, all on one lease.
//!
//! Whoever binds and unbinds leaves notes, which never block; one task acts on them and asks [`Holders`] for the truth
//! when it does. A removal is fenced: it takes a key only if it names this server, because the user may be elsewhere by
//! now. After a lost lease, or when more notes were left than are kept, everything is written anew on a new lease and
//! the old one is given back, which removes what is stale.
//!
//! Invariant: what is remembered here is bounded ([`NOTES_MAX`]), and nobody waits for an etcd that is away.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until, timeout};

use super::bindings::{key, store_options};
use super::etcd::{
    Client, Compare, CompareValue, DeleteRangeRequest, EtcdError, PutRequest, RequestOp,
    ResponseOp, StoreOptions, TxnRequest,
};
use super::retry::Retry;
use crate::config::Config;

/// Notes that wait for the task, and users whose change waits for etcd.
const NOTES_MAX: usize = 65_536;
/// Keys of one transaction; etcd takes 128 operations unless it is told otherwise.
const BATCH_MAX: usize = 100;
const RETRY_INTERVAL_MAX: Duration = Duration::from_secs(2);
/// Limit of one call to etcd. Short, because binds wait for it.
const CALL_TIMEOUT: Duration = Duration::from_secs(1);
/// How long a bind waits for its entry, besides the calls that are under way.
const CONFIRM_MAX: Duration = Duration::from_secs(2);
/// Limit of giving the lease back at the end.
const REVOKE_TIMEOUT: Duration = Duration::from_secs(5);

/// Who is held by this frontend.
pub trait Holders: Send + Sync + 'static {
    /// Whether a session of this frontend holds the user now.
    fn holds(&self, uid: &str) -> bool;

    /// All users that are held now.
    fn all(&self) -> Vec<Box<str>>;
}

/// Called when a binding is in the storage, or when it is not worth waiting for.
pub type Confirm = Box<dyn FnOnce() + Send>;

/// Called with a user who was just bound here and the id of the server whose entry that has replaced. Only here is it
/// known without a gap: of two frontends that bind a user at the same time, one replaces the other's entry.
pub type Replaced = Box<dyn Fn(&str, &str) + Send + Sync>;

/// What somebody noted.
enum Note {
    Bound { uid: Box<str>, confirm: Confirm },
    Unbound { uid: Box<str> },
}

/// Where binds and unbinds are noted, from any thread. Clones share one queue.
#[derive(Clone)]
pub struct BindingNotes {
    sender: mpsc::Sender<Note>,
    is_overrun: Arc<AtomicBool>,
}

/// The other end of [`BindingNotes`].
pub struct BindingInlet {
    receiver: mpsc::Receiver<Note>,
    is_overrun: Arc<AtomicBool>,
    replaced: Option<Replaced>,
}

impl BindingInlet {
    /// Makes the writer tell whose entries binds have replaced, before it confirms them.
    pub fn telling(self, replaced: Replaced) -> Self {
        Self { replaced: Some(replaced), ..self }
    }
}

impl BindingNotes {
    /// A queue, and its end for [`BindingWriter::start`].
    pub fn new() -> (Self, BindingInlet) {
        let (sender, receiver) = mpsc::channel(NOTES_MAX);
        let is_overrun = Arc::new(AtomicBool::new(false));
        (
            Self { sender, is_overrun: Arc::clone(&is_overrun) },
            BindingInlet { receiver, is_overrun, replaced: None },
        )
    }

    /// A session has bound the user. `confirm` is called once: when the entry is written, when that takes more than
    /// two seconds, or at once while etcd does not answer; on another thread, or on this one when the queue is full.
    pub fn bound(&self, uid: &str, confirm: Confirm) {
        if let Err(refused) = self.sender.try_send(Note::Bound { uid: uid.into(), confirm }) {
            self.is_overrun.store(true, Ordering::Relaxed);
            if let Note::Bound { confirm, .. } = refused.into_inner() {
                confirm();
            }
        }
    }

    /// A session has let go of the user, who must not be held by it any more.
    pub fn unbound(&self, uid: &str) {
        if self.sender.try_send(Note::Unbound { uid: uid.into() }).is_err() {
            self.is_overrun.store(true, Ordering::Relaxed);
        }
    }
}

/// Settings of a frontend that writes its bindings.
#[derive(Clone, Debug)]
pub struct BindingOptions {
    /// Where they are written.
    pub store: StoreOptions,
    /// How long they stay when the frontend has died; whole seconds.
    pub lease_ttl: Duration,
}

impl BindingOptions {
    /// What the configuration of a gateway says.
    pub fn new(config: &Config) -> Self {
        let lease_ttl = config.duration("pitaya.modules.bindingstorage.etcd.leasettl");
        Self { store: store_options(config), lease_ttl }
    }
}

/// The running task. Dropped without [`BindingWriter::shutdown`] it ends like a crashed process: the entries stay until
/// their lease expires.
pub struct BindingWriter {
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl BindingWriter {
    /// Starts to write the bindings of the frontend `server_id`. Must be called inside a tokio runtime.
    ///
    /// # Errors
    /// [`EtcdError::NoEndpoint`] and [`EtcdError::InvalidEndpoint`]; never because etcd is away.
    pub fn start(
        options: &BindingOptions,
        server_type: &str,
        server_id: &str,
        holders: Arc<dyn Holders>,
        mut inlet: BindingInlet,
    ) -> Result<Self, EtcdError> {
        let entries = Entries {
            client: Client::new(&options.store, CALL_TIMEOUT)?,
            prefix: options.store.prefix.clone(),
            server_type: server_type.to_owned(),
            server_id: server_id.to_owned(),
        };
        let writer = Writer {
            entries,
            lease_ttl_s: i64::try_from(options.lease_ttl.as_secs()).unwrap_or(i64::MAX).max(1),
            holders,
            lease: None,
            stale_lease: None,
            changes: VecDeque::new(),
            changes_max: NOTES_MAX,
            is_in_trouble: false,
            replaced: inlet.replaced.take(),
            retry: Retry::new("writing bindings to etcd", RETRY_INTERVAL_MAX),
        };
        let (stop, stopped) = oneshot::channel();
        Ok(Self { stop, task: tokio::spawn(writer.run(inlet, stopped)) })
    }

    /// Removes all entries by giving the lease back, within five seconds, and ends the task.
    pub async fn shutdown(self) {
        drop(self.stop);
        if let Err(error) = self.task.await {
            tracing::error!(%error, "the task that writes bindings failed");
        }
    }
}

/// The entries in etcd.
struct Entries {
    client: Client,
    prefix: String,
    server_type: String,
    server_id: String,
}

struct Writer {
    entries: Entries,
    lease_ttl_s: i64,
    holders: Arc<dyn Holders>,
    lease: Option<Lease>,
    /// A lease of ours whose entries are being written anew on another one.
    stale_lease: Option<i64>,
    changes: VecDeque<Change>,
    /// More than this are not kept; everything is written anew instead.
    changes_max: usize,
    is_in_trouble: bool,
    replaced: Option<Replaced>,
    retry: Retry,
}

/// A user to write or to remove; which of the two is found out when it is done.
struct Change {
    uid: Box<str>,
    noted: Instant,
    /// Whether a session has bound the user; otherwise one has let go, or everything is written anew.
    is_bind: bool,
    confirm: Option<Confirm>,
}

struct Lease {
    id: i64,
    renew_at: Instant,
}

impl Writer {
    async fn run(mut self, inlet: BindingInlet, mut stopped: oneshot::Receiver<()>) {
        let BindingInlet { mut receiver, is_overrun, .. } = inlet;
        let mut notes = Vec::new();
        let mut next_try = Instant::now();
        loop {
            let work_at = if self.changes.is_empty() && self.stale_lease.is_none() {
                self.lease.as_ref().map(|lease| lease.renew_at.max(next_try))
            } else {
                Some(next_try)
            };
            tokio::select! {
                _ = &mut stopped => break,
                count = receiver.recv_many(&mut notes, BATCH_MAX) => {
                    // Nobody can leave notes any more: the process ends without having said so.
                    if count == 0 { break }
                    notes.drain(..).for_each(|note| self.take(note));
                }
                () = sleep_until(work_at.unwrap_or(next_try)), if work_at.is_some() => {
                    next_try = self.work().await;
                }
            }
            self.confirm_late();
            let is_overrun = is_overrun.swap(false, Ordering::Relaxed);
            if is_overrun || self.changes.len() > self.changes_max {
                self.start_anew();
            }
        }
        self.leave().await;
    }

    fn take(&mut self, note: Note) {
        let (uid, is_bind, confirm) = match note {
            Note::Bound { uid, confirm } if self.is_in_trouble => {
                confirm();
                (uid, true, None)
            }
            Note::Bound { uid, confirm } => (uid, true, Some(confirm)),
            Note::Unbound { uid } => (uid, false, None),
        };
        self.changes.push_back(Change { uid, noted: Instant::now(), is_bind, confirm });
    }

    /// One step; returns when the next one may be made.
    async fn work(&mut self) -> Instant {
        match self.step().await {
            Ok(()) => {
                self.is_in_trouble = false;
                self.retry.succeeded(std::time::Instant::now());
                Instant::now()
            }
            Err(error) if error.is_lease_lost() => {
                tracing::warn!("the lease of the bindings is lost; they are written again");
                self.lease = None;
                self.start_anew();
                Instant::now()
            }
            Err(error) => {
                self.is_in_trouble = true;
                self.confirm_all();
                Instant::now() + self.retry.failed(&error, std::time::Instant::now())
            }
        }
    }

    async fn step(&mut self) -> Result<(), EtcdError> {
        let lease = match &self.lease {
            Some(lease) if lease.renew_at > Instant::now() => lease.id,
            Some(lease) => {
                let (id, ttl_s) = (lease.id, self.entries.client.lease_keep_alive(lease.id).await?);
                self.lease = Some(Lease::new(id, ttl_s));
                id
            }
            None => {
                let granted = self.entries.client.lease_grant(self.lease_ttl_s).await?;
                self.lease = Some(Lease::new(granted.id, granted.ttl));
                granted.id
            }
        };
        // Once each: etcd refuses a transaction that writes a key twice.
        let batch: BTreeSet<&str> =
            self.changes.iter().take(BATCH_MAX).map(|change| &*change.uid).collect();
        let (held, gone): (Vec<&str>, Vec<&str>) =
            batch.into_iter().partition(|uid| self.holders.holds(uid));
        let before = self.entries.write(&held, lease, self.replaced.is_some()).await?;
        self.tell_replaced(&before);
        self.entries.remove(&gone).await?;
        let done = self.changes.drain(..BATCH_MAX.min(self.changes.len()));
        done.filter_map(|change| change.confirm).for_each(|confirm| confirm());
        if self.changes.is_empty()
            && let Some(stale) = self.stale_lease
        {
            self.entries.client.lease_revoke(stale).await?;
            self.stale_lease = None;
        }
        Ok(())
    }

    /// Tells whose entries the binds among the changes under way have replaced.
    fn tell_replaced(&self, before: &[(&str, String)]) {
        let Some(replaced) = &self.replaced else { return };
        for (uid, server_id) in before {
            let is_bound = |change: &Change| change.is_bind && &*change.uid == *uid;
            if self.changes.iter().take(BATCH_MAX).any(is_bound) {
                replaced(uid, server_id);
            }
        }
    }

    /// Writes everybody who is held on a new lease; giving the old one back removes the rest.
    fn start_anew(&mut self) {
        if let Some(lease) = self.lease.take() {
            self.stale_lease.get_or_insert(lease.id);
        }
        self.confirm_all();
        let noted = Instant::now();
        let all = self.holders.all().into_iter();
        self.changes =
            all.map(|uid| Change { uid, noted, is_bind: false, confirm: None }).collect();
        self.changes_max = self.changes.len() + NOTES_MAX;
    }

    /// Binds that have waited long enough for their entry; it is still written.
    fn confirm_late(&mut self) {
        let now = Instant::now();
        // The oldest ones are in front.
        let late = self.changes.iter_mut().take_while(|c| now - c.noted >= CONFIRM_MAX);
        late.filter_map(|change| change.confirm.take()).for_each(|confirm| confirm());
    }

    fn confirm_all(&mut self) {
        let waiting = self.changes.iter_mut().filter_map(|change| change.confirm.take());
        waiting.for_each(|confirm| confirm());
    }

    async fn leave(&mut self) {
        self.confirm_all();
        let leases = self.lease.take().map(|lease| lease.id).into_iter().chain(self.stale_lease);
        let client = self.entries.client.clone();
        let revoked = async {
            for lease in leases {
                client.lease_revoke(lease).await?;
            }
            Ok::<_, EtcdError>(())
        };
        if !matches!(timeout(REVOKE_TIMEOUT, revoked).await, Ok(Ok(()))) {
            tracing::warn!("could not remove the bindings; they expire by themselves");
        }
    }
}

impl Entries {
    /// Writes the users' entries; returns those that named another server before, if that is asked for.
    async fn write<'a>(
        &self,
        uids: &[&'a str],
        lease: i64,
        prev_kv: bool,
    ) -> Result<Vec<(&'a str, String)>, EtcdError> {
        if uids.is_empty() {
            return Ok(Vec::new());
        }
        let value = self.server_id.as_bytes();
        let put = |uid: &&str| {
            RequestOp::Put(PutRequest { key: self.key(uid), value: value.to_vec(), lease, prev_kv })
        };
        let steps = uids.iter().map(put).collect();
        let written = self.client.txn(TxnRequest::new(vec![], steps, vec![])).await?;
        let before = uids.iter().zip(written.into_responses()).filter_map(|(uid, response)| {
            let ResponseOp::Put(put) = response else { return None };
            let before = String::from_utf8(put.prev_kv?.value).ok()?;
            (before != self.server_id).then_some((*uid, before))
        });
        Ok(before.collect())
    }

    /// All at once if all are still ours, which is the rule; otherwise one by one.
    async fn remove(&self, uids: &[&str]) -> Result<(), EtcdError> {
        if uids.is_empty() || self.try_remove(uids).await? || uids.len() == 1 {
            return Ok(());
        }
        for uid in uids {
            self.try_remove(&[*uid]).await?;
        }
        Ok(())
    }

    async fn try_remove(&self, uids: &[&str]) -> Result<bool, EtcdError> {
        let own = || CompareValue::Value(self.server_id.clone().into_bytes());
        let conditions = uids.iter().map(|uid| Compare::equal(self.key(uid), own())).collect();
        let delete = |uid: &&str| {
            let key = self.key(uid);
            RequestOp::DeleteRange(DeleteRangeRequest { key, range_end: Vec::new() })
        };
        let steps = uids.iter().map(delete).collect();
        Ok(self.client.txn(TxnRequest::new(conditions, steps, vec![])).await?.succeeded)
    }

    fn key(&self, uid: &str) -> Vec<u8> {
        key(&self.prefix, &self.server_type, uid)
    }
}

impl Lease {
    fn new(id: i64, ttl_s: i64) -> Self {
        let ttl = Duration::from_secs(u64::try_from(ttl_s).unwrap_or(0).max(1));
        Self { id, renew_at: Instant::now() + ttl / 3 }
    }
}
