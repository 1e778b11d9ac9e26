//! The directory: which reactor holds which session, and which session holds which uid, for the whole process.
//!
//! It is touched when a connection comes and goes, when a uid is bound, and when another server calls a session;
//! never for a message of a player. The invariant: at most one session holds a uid, and an entry is removed only by
//! the session it names, so that a late close never evicts a newer login.

use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};

use hashbrown::HashMap;
use shared::session::SessionId;

use crate::driver::Token;

/// Spreads sessions so that accepting cores seldom meet at one lock.
const SHARDS: usize = 16;

/// Where a session lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The reactor's number.
    pub reactor: usize,
    /// The connection's token on that reactor; checked against the session id when it is used.
    pub token: Token,
}

/// Sessions and uids of the process. Shared by all reactors.
#[derive(Default)]
pub struct Directory {
    next_session: AtomicI64,
    open: AtomicUsize,
    places: [Mutex<HashMap<SessionId, Place>>; SHARDS],
    uids: Mutex<HashMap<Box<str>, SessionId>>,
}

impl Directory {
    /// The next session id: 1, 2, 3 … as Pitaya counts. It says nothing about cores, so that a session can move.
    pub fn next_session(&self) -> SessionId {
        SessionId(self.next_session.fetch_add(1, Ordering::Relaxed) + 1)
    }

    /// Claims room for one more connection among `connections_max`; false when there is none.
    pub fn open(&self, connections_max: usize) -> bool {
        self.open
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |open| {
                (open < connections_max).then_some(open + 1)
            })
            .is_ok()
    }

    /// Gives the room of one connection back.
    pub fn closed(&self) {
        let before = self.open.fetch_sub(1, Ordering::Relaxed);
        debug_assert!(before > 0, "more connections closed than opened");
    }

    /// Connections of the process.
    pub fn connections(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }

    /// Records where a session lives, at accept and after a move.
    pub fn place(&self, session: SessionId, place: Place) {
        lock(self.shard(session)).insert(session, place);
    }

    /// Where a session lives.
    pub fn find(&self, session: SessionId) -> Option<Place> {
        lock(self.shard(session)).get(&session).copied()
    }

    /// Forgets a session, and its uid if it still holds it. Both together, so that nobody finds half of it.
    pub fn remove(&self, session: SessionId, uid: &str) {
        lock(self.shard(session)).remove(&session);
        self.release(session, uid);
    }

    /// Gives `uid` to `session`. The session that held it before, if another, is returned: it is to be kicked.
    pub fn claim(&self, session: SessionId, uid: &str) -> Option<SessionId> {
        lock(&self.uids).insert(uid.into(), session).filter(|before| *before != session)
    }

    /// Takes `uid` from `session`, unless a newer session holds it.
    pub fn release(&self, session: SessionId, uid: &str) {
        if uid.is_empty() {
            return;
        }
        let mut uids = lock(&self.uids);
        if uids.get(uid) == Some(&session) {
            uids.remove(uid);
        }
    }

    /// The session that holds `uid`.
    pub fn holder(&self, uid: &str) -> Option<SessionId> {
        lock(&self.uids).get(uid).copied()
    }

    /// Whether each of `uids` is held, in their order, as seen at one moment. Holds the lock for all of them.
    pub fn holds<'a>(&self, uids: impl Iterator<Item = &'a str>, mut tell: impl FnMut(bool)) {
        let held = lock(&self.uids);
        for uid in uids {
            tell(held.contains_key(uid));
        }
    }

    /// Sessions that hold a uid.
    pub fn bound(&self) -> usize {
        lock(&self.uids).len()
    }

    fn shard(&self, session: SessionId) -> &Mutex<HashMap<SessionId, Place>> {
        &self.places[session.0 as usize % SHARDS]
    }
}

/// No code panics while it holds one of these locks, so a poisoned one still holds a whole map.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_late_release_does_not_evict_a_newer_login() {
        let directory = Directory::default();
        let (first, second) = (directory.next_session(), directory.next_session());
        assert_eq!(directory.claim(first, "ann"), None);
        assert_eq!(directory.claim(second, "ann"), Some(first));
        directory.release(first, "ann");
        assert_eq!(directory.holder("ann"), Some(second));
        directory.release(second, "ann");
        assert_eq!(directory.holder("ann"), None);
    }

    #[test]
    fn a_session_is_found_until_it_is_removed() {
        let directory = Directory::default();
        let session = directory.next_session();
        assert_eq!(session, SessionId(1));
        let place = Place { reactor: 1, token: Token::from_bits(7) };
        directory.place(session, place);
        assert_eq!(directory.find(session), Some(place));
        directory.claim(session, "ann");
        directory.remove(session, "ann");
        assert_eq!(directory.find(session), None);
        assert_eq!(directory.holder("ann"), None);
    }

    #[test]
    fn room_for_connections_is_bounded() {
        let directory = Directory::default();
        assert!(directory.open(2) && directory.open(2));
        assert!(!directory.open(2));
        directory.closed();
        assert!(directory.open(2));
        assert_eq!(directory.connections(), 2);
    }
}
