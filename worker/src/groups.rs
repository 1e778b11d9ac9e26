//! Named sets of users, kept in this process.
//!
//! As Pitaya's memory groups: every server has its own, and they end with it. A member remembers through which type
//! of gateway it was added, so a broadcast reaches users of several. Groups of other backends come behind the same
//! async methods, which is why methods that never wait are async.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::call::{Call, Context};
use crate::error::{Error, Result};
use crate::extract::FromCall;
use crate::payload::Encode;
use crate::push::send_push;

/// How often groups whose time is over are looked for; one that is asked for is found to be over at once.
const SWEEP_INTERVAL: Duration = Duration::from_secs(30);

/// Extractor of the groups of this process.
#[derive(Clone)]
pub struct Groups {
    context: Arc<Context>,
    frontend_type: Option<Arc<str>>,
}

impl FromCall for Groups {
    fn from_call(call: &Call) -> Result<Self> {
        Ok(Self { context: Arc::clone(call.context()), frontend_type: None })
    }
}

#[allow(clippy::unused_async)] // See the file's header.
impl Groups {
    /// The same groups, with the type of gateway that members are added and reached through where the call has no
    /// gateway of its own (hooks, remotes), or another one is meant.
    pub fn via(&self, frontend_type: &str) -> Self {
        Self { context: Arc::clone(&self.context), frontend_type: Some(frontend_type.into()) }
    }

    /// Makes an empty group. Fails with `group already exists`.
    pub async fn create(&self, group: &str) -> Result<()> {
        self.store().create(group, None)
    }

    /// Makes an empty group that ends when it was not renewed for `ttl`.
    pub async fn create_with_ttl(&self, group: &str, ttl: Duration) -> Result<()> {
        self.store().create(group, Some(ttl))
    }

    /// Adds a user. Fails with `empty uid`, `group not found` or `member already exists in group`.
    pub async fn add(&self, group: &str, uid: impl AsRef<str>) -> Result<()> {
        let frontend_type = self.frontend_type().ok();
        self.store().change(group, |found| found.add(uid.as_ref(), frontend_type))
    }

    /// Removes a user. Fails with `group not found` or `member not found in the group`.
    pub async fn remove(&self, group: &str, uid: impl AsRef<str>) -> Result<()> {
        self.store().change(group, |found| found.remove(uid.as_ref()))
    }

    /// Removes all users and keeps the group.
    pub async fn remove_all(&self, group: &str) -> Result<()> {
        self.store().change(group, |found| {
            found.members.clear();
            found.order.clear();
            Ok(())
        })
    }

    /// The users in the order in which they were added.
    pub async fn members(&self, group: &str) -> Result<Vec<String>> {
        self.store().change(group, |found| Ok(found.order.values().cloned().collect()))
    }

    /// How many users the group has.
    pub async fn count(&self, group: &str) -> Result<usize> {
        self.store().change(group, |found| Ok(found.members.len()))
    }

    /// Whether a user is in the group. Fails with `empty uid` or `group not found`.
    pub async fn contains(&self, group: &str, uid: impl AsRef<str>) -> Result<bool> {
        if uid.as_ref().is_empty() {
            return Err(Error::unknown("empty uid"));
        }
        self.store().change(group, |found| Ok(found.members.contains_key(uid.as_ref())))
    }

    /// Starts the group's time again. Fails with `memory group TTL not found` for a group without one.
    pub async fn renew_ttl(&self, group: &str) -> Result<()> {
        self.store().change(group, |found| {
            let Some(lifetime) = &mut found.lifetime else {
                return Err(Error::unknown("memory group TTL not found"));
            };
            lifetime.renewed = Instant::now();
            Ok(())
        })
    }

    /// Ends the group. Fails with `group not found`.
    pub async fn delete(&self, group: &str) -> Result<()> {
        self.store().change(group, |_| Ok(()))?;
        self.store().groups.remove(group);
        Ok(())
    }

    /// Pushes one message to every member. It is encoded once; members that are not connected any more miss it.
    ///
    /// Fails with `group not found`, when the message cannot be encoded, or when a member could not be pushed to
    /// (`failed to push message to users, check array with failed uids`, the uids in the metadata).
    pub async fn broadcast<T: Encode + ?Sized>(
        &self,
        group: &str,
        route: &str,
        message: &T,
    ) -> Result<()> {
        let data = message.encode()?;
        let members = self.store().change(group, |found| Ok(found.with_types()))?;
        let mut failed = Vec::new();
        for (uid, frontend_type) in members {
            let Ok(frontend_type) = frontend_type.map_or_else(|| self.frontend_type(), Ok) else {
                failed.push(uid);
                continue;
            };
            let push = proto::Push { route: route.to_owned(), uid, data: data.clone() };
            if send_push(&self.context.environment, &frontend_type, &push).await.is_err() {
                failed.push(push.uid);
            }
        }
        if failed.is_empty() {
            return Ok(());
        }
        let text = "failed to push message to users, check array with failed uids";
        Err(Error::unknown(text).with("uids", failed.join(",")))
    }

    fn frontend_type(&self) -> Result<Arc<str>> {
        if let Some(frontend_type) = &self.frontend_type {
            return Ok(Arc::clone(frontend_type));
        }
        self.context.frontend().map(|server| server.server_type.as_str().into())
    }

    fn store(&self) -> MutexGuard<'_, Store> {
        self.context.environment.groups.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The groups of a process.
#[derive(Default)]
pub(crate) struct MemoryGroups(Mutex<Store>);

#[derive(Default)]
struct Store {
    groups: HashMap<String, Group>,
    swept: Option<Instant>,
}

#[derive(Default)]
struct Group {
    lifetime: Option<Lifetime>,
    members: HashMap<String, Member>,
    order: BTreeMap<u64, String>,
    next: u64,
}

struct Lifetime {
    ttl: Duration,
    renewed: Instant,
}

struct Member {
    at: u64,
    frontend_type: Option<Arc<str>>,
}

impl Store {
    fn create(&mut self, name: &str, ttl: Option<Duration>) -> Result<()> {
        let now = Instant::now();
        if self.swept.is_none_or(|swept| now.duration_since(swept) >= SWEEP_INTERVAL) {
            self.groups.retain(|_, group| !group.is_over(now));
            self.swept = Some(now);
        }
        if self.groups.get(name).is_some_and(|group| !group.is_over(now)) {
            return Err(Error::unknown("group already exists"));
        }
        let lifetime = ttl.map(|ttl| Lifetime { ttl, renewed: now });
        self.groups.insert(name.to_owned(), Group { lifetime, ..Group::default() });
        Ok(())
    }

    fn change<T>(&mut self, name: &str, action: impl FnOnce(&mut Group) -> Result<T>) -> Result<T> {
        match self.groups.get_mut(name) {
            Some(group) if !group.is_over(Instant::now()) => action(group),
            _ => Err(Error::unknown("group not found")),
        }
    }
}

impl Group {
    fn is_over(&self, now: Instant) -> bool {
        self.lifetime.as_ref().is_some_and(|l| now.duration_since(l.renewed) > l.ttl)
    }

    fn add(&mut self, uid: &str, frontend_type: Option<Arc<str>>) -> Result<()> {
        if uid.is_empty() {
            return Err(Error::unknown("empty uid"));
        }
        if self.members.contains_key(uid) {
            return Err(Error::unknown("member already exists in group"));
        }
        let at = self.next;
        self.next += 1;
        self.order.insert(at, uid.to_owned());
        self.members.insert(uid.to_owned(), Member { at, frontend_type });
        Ok(())
    }

    fn remove(&mut self, uid: &str) -> Result<()> {
        let Some(member) = self.members.remove(uid) else {
            return Err(Error::unknown("member not found in the group"));
        };
        self.order.remove(&member.at);
        Ok(())
    }

    fn with_types(&self) -> Vec<(String, Option<Arc<str>>)> {
        let of = |uid: &String| self.members.get(uid).and_then(|m| m.frontend_type.clone());
        self.order.values().map(|uid| (uid.clone(), of(uid))).collect()
    }
}
