//! The ledger: what each address, or each user, has and does in the whole process, in a table that cannot grow.
//!
//! It is locked when a connection comes or goes and when a uid is bound, never for a message: whoever sits holds the
//! account and counts on it with atomics. Invariants: an account with seats stays, so there are never more of those than
//! connections; of accounts without seats, kept so that leaving and coming back wins nobody a fresh start, there are at
//! most [`IDLE_MAX`], and the oldest goes first. Somebody with a million addresses makes the ledger forget, not refuse.

use std::collections::VecDeque;
use std::hash::Hash;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hashbrown::HashMap;
use shared::rate::{Rate, RateCell};

/// Spreads accounts so that accepting cores seldom meet at one lock.
const SHARDS: usize = 16;
const IDLE_PER_SHARD_MAX: usize = 2_048;
/// Accounts without seats that are kept.
pub const IDLE_MAX: usize = SHARDS * IDLE_PER_SHARD_MAX;

/// What one address or user does.
#[derive(Debug, Default)]
pub struct Account {
    /// Changed under the shard's lock only; atomic so that it can stand in a shared account.
    seats: AtomicU32,
    entries: RateCell,
    /// Messages, counted without a lock.
    pub messages: RateCell,
}

/// What an entry has to keep to.
#[derive(Clone, Copy, Debug, Default)]
pub struct EntryRules {
    /// Seats of one account at most; `None` without end.
    pub seats_max: Option<u32>,
    /// Entries of one account a second.
    pub rate: Option<Rate>,
}

/// Why an entry was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryRefused {
    /// The account has all its seats.
    Seats,
    /// Too many entries in a second.
    Rate,
}

struct Listed {
    account: Arc<Account>,
    /// Whether the key stands in the shard's list of idle accounts, where it stands once.
    is_idle_listed: bool,
}

struct Shard<K> {
    accounts: HashMap<K, Listed>,
    idle: VecDeque<K>,
}

/// All accounts of one kind.
pub struct Ledger<K> {
    shards: [Mutex<Shard<K>>; SHARDS],
    hasher: hashbrown::DefaultHashBuilder,
}

/// A place in an account, given back when it is dropped. Dropping takes the shard's lock.
pub struct Seat<K: Hash + Eq + Clone> {
    ledger: Arc<Ledger<K>>,
    key: K,
    account: Arc<Account>,
}

impl<K> Default for Ledger<K> {
    fn default() -> Self {
        let shard = || Mutex::new(Shard { accounts: HashMap::new(), idle: VecDeque::new() });
        Self {
            shards: std::array::from_fn(|_| shard()),
            hasher: hashbrown::DefaultHashBuilder::default(),
        }
    }
}

impl<K: Hash + Eq + Clone> Ledger<K> {
    /// Takes a seat.
    ///
    /// Errors: which rule refuses it. A refused entry counts towards nothing.
    pub fn enter(
        self: &Arc<Self>,
        key: K,
        rules: &EntryRules,
        now_us: u64,
    ) -> Result<Seat<K>, EntryRefused> {
        let mut shard = self.shard(&key);
        let listed = shard
            .accounts
            .entry(key.clone())
            .or_insert_with(|| Listed { account: Arc::default(), is_idle_listed: false });
        let account = listed.account.clone();
        let seats = account.seats.load(Ordering::Relaxed);
        let refusal = if rules.seats_max.is_some_and(|max| seats >= max) {
            Some(EntryRefused::Seats)
        } else if rules.rate.is_some_and(|rate| !account.entries.allow(rate, now_us)) {
            Some(EntryRefused::Rate)
        } else {
            None
        };
        if let Some(refusal) = refusal {
            shard.keep_if_idle(&key);
            return Err(refusal);
        }
        account.seats.store(seats + 1, Ordering::Relaxed);
        drop(shard);
        Ok(Seat { ledger: self.clone(), key, account })
    }

    /// Accounts, those without seats included.
    pub fn accounts(&self) -> usize {
        self.shards.iter().map(|shard| lock(shard).accounts.len()).sum()
    }

    fn leave(&self, key: &K, account: &Account) {
        let mut shard = self.shard(key);
        let seats = account.seats.load(Ordering::Relaxed);
        debug_assert!(seats > 0, "a seat was given back twice");
        account.seats.store(seats.saturating_sub(1), Ordering::Relaxed);
        shard.keep_if_idle(key);
    }

    fn shard(&self, key: &K) -> MutexGuard<'_, Shard<K>> {
        use std::hash::BuildHasher as _;
        // The upper bits: the table below uses the others.
        let index = (self.hasher.hash_one(key) >> 32) as usize % SHARDS;
        let shard = self.shards.get(index).unwrap_or(&self.shards[0]);
        lock(shard)
    }
}

impl<K: Hash + Eq + Clone> Shard<K> {
    /// Lists an account that has lost its last seat, and forgets the oldest of those that are listed when there are too
    /// many.
    fn keep_if_idle(&mut self, key: &K) {
        let Some(listed) = self.accounts.get_mut(key) else { return };
        if listed.account.seats.load(Ordering::Relaxed) == 0 && !listed.is_idle_listed {
            listed.is_idle_listed = true;
            self.idle.push_back(key.clone());
        }
        while self.idle.len() > IDLE_PER_SHARD_MAX {
            let Some(oldest) = self.idle.pop_front() else { return };
            let Some(listed) = self.accounts.get_mut(&oldest) else { continue };
            if listed.account.seats.load(Ordering::Relaxed) == 0 {
                self.accounts.remove(&oldest);
            } else {
                listed.is_idle_listed = false;
            }
        }
    }
}

impl<K: Hash + Eq + Clone> Seat<K> {
    /// The account, to count on.
    pub fn account(&self) -> &Account {
        &self.account
    }
}

impl<K: Hash + Eq + Clone> Drop for Seat<K> {
    fn drop(&mut self) {
        self.ledger.leave(&self.key, &self.account);
    }
}

/// No code panics while it holds one of these locks, so a poisoned one still holds a whole map.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW_US: u64 = 86_400_000_000;

    fn seats_max(seats: u32) -> EntryRules {
        EntryRules { seats_max: Some(seats), rate: None }
    }

    #[test]
    fn an_account_has_so_many_seats_and_no_other_account_s() {
        let ledger = Arc::new(Ledger::default());
        let first = ledger.enter(1, &seats_max(2), NOW_US).ok().unwrap();
        let _second = ledger.enter(1, &seats_max(2), NOW_US).ok().unwrap();
        assert_eq!(ledger.enter(1, &seats_max(2), NOW_US).err(), Some(EntryRefused::Seats));
        assert!(ledger.enter(2, &seats_max(2), NOW_US).is_ok());
        drop(first);
        assert!(ledger.enter(1, &seats_max(2), NOW_US).is_ok());
        assert_eq!(ledger.enter(3, &seats_max(0), NOW_US).err(), Some(EntryRefused::Seats));
    }

    #[test]
    fn leaving_and_coming_back_wins_nobody_a_fresh_start() {
        let ledger = Arc::new(Ledger::default());
        let rules = EntryRules { seats_max: None, rate: Rate::new(3) };
        for _ in 0..3 {
            drop(ledger.enter("ann", &rules, NOW_US).ok().unwrap());
        }
        assert_eq!(ledger.enter("ann", &rules, NOW_US).err(), Some(EntryRefused::Rate));
        let rate = Rate::new(1).unwrap();
        let seat = ledger.enter("ann", &EntryRules::default(), NOW_US).ok().unwrap();
        assert!(seat.account().messages.allow(rate, NOW_US));
        drop(seat);
        let seat = ledger.enter("ann", &EntryRules::default(), NOW_US).ok().unwrap();
        assert!(!seat.account().messages.allow(rate, NOW_US));
    }

    #[test]
    fn a_million_addresses_leave_a_bounded_table_and_evict_nobody_who_is_here() {
        let ledger = Arc::new(Ledger::default());
        let here: Vec<_> = (0..100u64)
            .map(|key| ledger.enter(key, &EntryRules::default(), NOW_US).ok().unwrap())
            .collect();
        for key in 1_000..1_001_000u64 {
            // Some enter and leave, the others are refused.
            let rules = if key % 2 == 0 { EntryRules::default() } else { seats_max(0) };
            drop(ledger.enter(key, &rules, NOW_US));
        }
        assert!(ledger.accounts() <= IDLE_MAX + 100, "{} accounts", ledger.accounts());
        for key in 0..100 {
            assert_eq!(ledger.enter(key, &seats_max(1), NOW_US).err(), Some(EntryRefused::Seats));
        }
        drop(here);
        assert!(ledger.accounts() <= IDLE_MAX, "{} accounts", ledger.accounts());
        assert!(ledger.enter(5, &seats_max(1), NOW_US).is_ok(), "the seats were given back");
    }
}
