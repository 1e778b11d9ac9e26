//! Named sets of users.
//!
//! They are kept in this process or in etcd ([`GroupStorage`]), with Pitaya's calls and Pitaya's errors. Where the two
//! differ in Pitaya they differ here: the count of a missing group is an error in memory and 0 in etcd.

mod etcd;
mod memory;
mod name;

use std::sync::Arc;
use std::time::Duration;

use shared::config::Config;

use crate::call::{Call, Context};
use crate::error::{Error, Result};
use crate::extract::FromCall;
use crate::for_many::ForMany;
use crate::names::check_push_route;
use crate::payload::Encode;

use etcd::EtcdGroups;
use memory::MemoryGroups;
use name::check_member;

pub use etcd::EtcdGroupsOptions;
pub use name::{GROUP_NAME_BYTES_MAX, check_group_name};

/// Where an application's groups are kept.
#[derive(Debug, Clone)]
pub enum GroupStorage {
    /// In this process: every server has its own groups, and they end with it.
    Memory {
        /// How often the memory of groups whose time is over is given back.
        sweep_interval: Duration,
    },
    /// In etcd, shared with all servers of the same prefix, Go servers among them.
    Etcd(EtcdGroupsOptions),
}

impl GroupStorage {
    /// What the configuration says below `pitaya.groups`.
    pub fn new(config: &Config) -> Self {
        match config.string("pitaya.groups.storage") {
            "etcd" => Self::Etcd(EtcdGroupsOptions::new(config)),
            _ => {
                let sweep_interval = config.duration("pitaya.groups.memory.tickduration");
                Self::Memory { sweep_interval }
            }
        }
    }
}

impl Default for GroupStorage {
    fn default() -> Self {
        Self::Memory { sweep_interval: Duration::from_secs(30) }
    }
}

/// The groups that all calls of a process share.
pub(crate) enum GroupStore {
    Memory(MemoryGroups),
    Etcd(EtcdGroups),
}

impl GroupStore {
    /// Fails for etcd endpoints that cannot be. Must be called inside a tokio runtime.
    pub(crate) fn open(storage: &GroupStorage) -> Result<Self> {
        Ok(match storage {
            GroupStorage::Memory { sweep_interval } => {
                Self::Memory(MemoryGroups::new(*sweep_interval))
            }
            GroupStorage::Etcd(options) => Self::Etcd(EtcdGroups::new(options)?),
        })
    }
}

/// Extractor of the application's groups.
///
/// All methods fail with `PIT-400` for names that cannot be (see [`check_group_name`]), and with `PIT-500` when etcd
/// keeps the groups and does not answer; a change may have been made then.
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

impl Groups {
    /// The same groups, with the type of gateway that members are added and reached through where the call has no
    /// gateway of its own (hooks, remotes), or another one is meant.
    pub fn via(&self, frontend_type: &str) -> Self {
        Self { context: Arc::clone(&self.context), frontend_type: Some(frontend_type.into()) }
    }

    /// Makes an empty group. Fails with `group already exists`.
    pub async fn create(&self, group: &str) -> Result<()> {
        self.create_for(group, None).await
    }

    /// Makes an empty group that ends when it was not renewed for `ttl`; in etcd the whole seconds of it, at least one.
    pub async fn create_with_ttl(&self, group: &str, ttl: Duration) -> Result<()> {
        self.create_for(group, Some(ttl)).await
    }

    async fn create_for(&self, group: &str, ttl: Option<Duration>) -> Result<()> {
        match self.store(group)? {
            GroupStore::Memory(groups) => groups.create(group, ttl),
            GroupStore::Etcd(groups) => groups.create(group, ttl).await,
        }
    }

    /// Adds a user. Fails with `empty uid`, `group not found` or `member already exists in group`.
    pub async fn add(&self, group: &str, uid: impl AsRef<str>) -> Result<()> {
        let uid = uid.as_ref();
        check_member(uid)?;
        match self.store(group)? {
            GroupStore::Memory(groups) => groups.add(group, uid, self.frontend_type().ok()),
            GroupStore::Etcd(groups) => groups.add(group, uid).await,
        }
    }

    /// Removes a user. Fails with `group not found` (only in memory) or `member not found in the group`.
    pub async fn remove(&self, group: &str, uid: impl AsRef<str>) -> Result<()> {
        match self.store(group)? {
            GroupStore::Memory(groups) => groups.remove(group, uid.as_ref()),
            GroupStore::Etcd(groups) => groups.remove(group, uid.as_ref()).await,
        }
    }

    /// Removes all users and keeps the group. Fails with `group not found`.
    pub async fn remove_all(&self, group: &str) -> Result<()> {
        match self.store(group)? {
            GroupStore::Memory(groups) => groups.remove_all(group),
            GroupStore::Etcd(groups) => groups.remove_all(group).await,
        }
    }

    /// The users: in memory in the order in which they were added, in etcd in that of their uids. Fails with
    /// `group not found`.
    pub async fn members(&self, group: &str) -> Result<Vec<String>> {
        match self.store(group)? {
            GroupStore::Memory(groups) => groups.members(group),
            GroupStore::Etcd(groups) => groups.members(group).await,
        }
    }

    /// How many users the group has. A missing group is `group not found` in memory and 0 in etcd.
    pub async fn count(&self, group: &str) -> Result<usize> {
        match self.store(group)? {
            GroupStore::Memory(groups) => groups.count(group),
            GroupStore::Etcd(groups) => groups.count(group).await,
        }
    }

    /// Whether a user is in the group. Fails with `empty uid` or `group not found`.
    pub async fn contains(&self, group: &str, uid: impl AsRef<str>) -> Result<bool> {
        let uid = uid.as_ref();
        check_member(uid)?;
        match self.store(group)? {
            GroupStore::Memory(groups) => groups.contains(group, uid),
            GroupStore::Etcd(groups) => groups.contains(group, uid).await,
        }
    }

    /// Starts the group's time again. Fails with `group not found`, and for a group without a time to live with
    /// `memory group TTL not found` or `etcd lease not found in group`.
    pub async fn renew_ttl(&self, group: &str) -> Result<()> {
        match self.store(group)? {
            GroupStore::Memory(groups) => groups.renew_ttl(group),
            GroupStore::Etcd(groups) => groups.renew_ttl(group).await,
        }
    }

    /// Ends the group. Fails with `group not found`.
    pub async fn delete(&self, group: &str) -> Result<()> {
        match self.store(group)? {
            GroupStore::Memory(groups) => groups.delete(group),
            GroupStore::Etcd(groups) => groups.delete(group).await,
        }
    }

    /// Pushes one message to every member. It is encoded once, and gateways of ours get it once for all their members;
    /// members that are not connected any more miss it.
    ///
    /// Fails with `group not found`, when the message cannot be encoded, or when a member could not be pushed to
    /// (`failed to push message to users, check array with failed uids`, the uids in the metadata).
    pub async fn broadcast<T: Encode + ?Sized>(
        &self,
        group: &str,
        route: &str,
        message: &T,
    ) -> Result<()> {
        check_push_route(route)?;
        let data = message.encode()?;
        let members = self.members_with_types(group).await?;
        let mut by_type: Vec<(Option<Arc<str>>, Vec<&str>)> = Vec::new();
        for (uid, frontend_type) in &members {
            let frontend_type = frontend_type.clone().or_else(|| self.frontend_type().ok());
            match by_type.iter_mut().find(|(known, _)| *known == frontend_type) {
                Some((_, uids)) => uids.push(uid),
                None => by_type.push((frontend_type, vec![uid])),
            }
        }
        let mut failed = Vec::new();
        for (frontend_type, uids) in by_type {
            let Some(frontend_type) = &frontend_type else {
                failed.extend(uids);
                continue;
            };
            let message = ForMany { frontend_type, route, data: data.clone() };
            failed.extend(message.send(&self.context, &uids).await);
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

    async fn members_with_types(&self, group: &str) -> Result<Vec<(String, Option<Arc<str>>)>> {
        match self.store(group)? {
            GroupStore::Memory(groups) => groups.members_with_types(group),
            GroupStore::Etcd(groups) => {
                let members = groups.members(group).await?;
                Ok(members.into_iter().map(|uid| (uid, None)).collect())
            }
        }
    }

    /// Where the groups are, for a name that may be one.
    fn store(&self, group: &str) -> Result<&GroupStore> {
        check_group_name(group.as_bytes())?;
        Ok(&self.context.environment.groups)
    }
}
