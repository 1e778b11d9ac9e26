//! Groups in the memory of this process, as Pitaya's default: every server has its own, and they end with it.
//!
//! A group whose time is over is gone for whoever asks from that moment on; its memory is given back by a sweep that
//! the next call after each interval makes. A member remembers through which type of gateway it was added, so that a
//! broadcast reaches users of several.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::error::{Error, Result};

/// The groups of a process.
pub(crate) struct MemoryGroups {
    store: Mutex<Store>,
    sweep_interval: Duration,
}

struct Store {
    groups: HashMap<String, Group>,
    swept: Instant,
}

#[derive(Default)]
struct Group {
    lifetime: Option<Lifetime>,
    members: HashMap<String, Member>,
    /// The members in the order in which they came.
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

impl MemoryGroups {
    pub(crate) fn new(sweep_interval: Duration) -> Self {
        let store = Store { groups: HashMap::new(), swept: Instant::now() };
        Self { store: Mutex::new(store), sweep_interval }
    }

    pub(crate) fn create(&self, name: &str, ttl: Option<Duration>) -> Result<()> {
        let mut store = self.store();
        let now = Instant::now();
        if store.groups.get(name).is_some_and(|group| !group.is_over(now)) {
            return Err(Error::unknown("group already exists"));
        }
        let lifetime = ttl.map(|ttl| Lifetime { ttl, renewed: now });
        store.groups.insert(name.to_owned(), Group { lifetime, ..Group::default() });
        Ok(())
    }

    pub(crate) fn add(&self, name: &str, uid: &str, frontend_type: Option<Arc<str>>) -> Result<()> {
        self.change(name, |group| group.add(uid, frontend_type))
    }

    pub(crate) fn remove(&self, name: &str, uid: &str) -> Result<()> {
        self.change(name, |group| group.remove(uid))
    }

    pub(crate) fn remove_all(&self, name: &str) -> Result<()> {
        self.change(name, |group| {
            group.members.clear();
            group.order.clear();
            Ok(())
        })
    }

    pub(crate) fn members(&self, name: &str) -> Result<Vec<String>> {
        self.change(name, |group| Ok(group.order.values().cloned().collect()))
    }

    /// The members with the types that they were added through, in their order.
    pub(crate) fn members_with_types(&self, name: &str) -> Result<Vec<(String, Option<Arc<str>>)>> {
        self.change(name, |group| Ok(group.with_types()))
    }

    pub(crate) fn count(&self, name: &str) -> Result<usize> {
        self.change(name, |group| Ok(group.members.len()))
    }

    pub(crate) fn contains(&self, name: &str, uid: &str) -> Result<bool> {
        self.change(name, |group| Ok(group.members.contains_key(uid)))
    }

    pub(crate) fn renew_ttl(&self, name: &str) -> Result<()> {
        self.change(name, |group| {
            let Some(lifetime) = &mut group.lifetime else {
                return Err(Error::unknown("memory group TTL not found"));
            };
            lifetime.renewed = Instant::now();
            Ok(())
        })
    }

    pub(crate) fn delete(&self, name: &str) -> Result<()> {
        let removed = self.store().groups.remove(name);
        match removed {
            Some(group) if !group.is_over(Instant::now()) => Ok(()),
            _ => Err(not_found()),
        }
    }

    fn change<T>(&self, name: &str, action: impl FnOnce(&mut Group) -> Result<T>) -> Result<T> {
        match self.store().groups.get_mut(name) {
            Some(group) if !group.is_over(Instant::now()) => action(group),
            _ => Err(not_found()),
        }
    }

    /// The groups, swept when it is time.
    fn store(&self) -> MutexGuard<'_, Store> {
        let mut store = self.store.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if now.duration_since(store.swept) >= self.sweep_interval {
            store.swept = now;
            store.groups.retain(|_, group| !group.is_over(now));
        }
        store
    }
}

fn not_found() -> Error {
    Error::unknown("group not found")
}

impl Group {
    fn is_over(&self, now: Instant) -> bool {
        self.lifetime.as_ref().is_some_and(|l| now.duration_since(l.renewed) > l.ttl)
    }

    fn add(&mut self, uid: &str, frontend_type: Option<Arc<str>>) -> Result<()> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sweep_gives_the_memory_of_expired_groups_back() {
        let groups = MemoryGroups::new(Duration::ZERO);
        for name in ["a", "b", "c"] {
            groups.create(name, Some(Duration::ZERO)).unwrap();
        }
        groups.create("stays", None).unwrap();
        assert_eq!(groups.count("stays").unwrap(), 0);
        assert_eq!(groups.store.lock().unwrap().groups.len(), 1);
    }

    #[test]
    fn an_expired_group_is_gone_before_any_sweep_and_can_be_made_again() {
        let groups = MemoryGroups::new(Duration::from_secs(3_600));
        groups.create("g", Some(Duration::ZERO)).unwrap();
        assert_eq!(groups.delete("g").unwrap_err().msg, "group not found");
        groups.create("g", Some(Duration::ZERO)).unwrap();
        groups.create("g", Some(Duration::from_secs(60))).unwrap();
        groups.add("g", "ann", None).unwrap();
        groups.renew_ttl("g").unwrap();
        assert_eq!(groups.members("g").unwrap(), ["ann"]);
        groups.delete("g").unwrap();
        assert_eq!(groups.members("g").unwrap_err().msg, "group not found");
    }
}
