//! Subscription numbers: which NATS subscription serves which session, and which session of a bus has which uid.
//!
//! A bound session has two numbers, for its push and its kick subject. Numbers are recycled; that a message of an
//! earlier owner cannot reach the later one is ensured where it is delivered, by comparing the uid inside the message.

use std::hash::BuildHasher;

use hashbrown::{DefaultHashBuilder, HashTable};

use crate::driver::Token;

/// The inbox that answers come to.
pub const INBOX: u64 = 1;
/// The server's own subject.
pub const SERVER: u64 = 2;
/// The subject on which frontends of one type announce their binds.
pub const BINDINGS: u64 = 3;
/// The subject on which one message for many users of frontends of one type comes.
pub const PUSHES: u64 = 4;
const FIRST: u64 = 16;

/// What a subscription number stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subject {
    /// Answers.
    Inbox,
    /// Calls to this server.
    Server,
    /// Announced binds.
    Bindings,
    /// Messages for many users.
    Pushes,
    /// Pushes to the session at this place.
    Push(Token),
    /// Kicks of the session at this place.
    Kick(Token),
}

/// The numbers in use on one bus.
#[derive(Debug, Default)]
pub struct Subscriptions {
    owners: Vec<Option<Owner>>,
    free: Vec<u32>,
    /// Places in `owners` by uid.
    by_uid: HashTable<u32>,
    hasher: DefaultHashBuilder,
}

#[derive(Debug)]
struct Owner {
    token: Token,
    uid: Box<str>,
}

impl Subscriptions {
    /// Two numbers for a session: the returned one for pushes, the next for kicks. From now on the session is the
    /// one that `uid` leads to.
    pub fn insert(&mut self, token: Token, uid: &str) -> u64 {
        let index = self.free.pop().unwrap_or_else(|| {
            self.owners.push(None);
            self.owners.len() as u32 - 1
        });
        self.forget_uid(uid, None);
        if let Some(slot) = self.owners.get_mut(index as usize) {
            *slot = Some(Owner { token, uid: uid.into() });
        }
        let Self { owners, by_uid, hasher, .. } = self;
        by_uid.insert_unique(hasher.hash_one(uid), index, |index| {
            hasher.hash_one(uid_at(owners, *index).unwrap_or_default())
        });
        FIRST + u64::from(index) * 2
    }

    /// Gives the two numbers back.
    pub fn remove(&mut self, number: u64) {
        let Some(index) = index_of(number) else { return };
        let Some(uid) = uid_at(&self.owners, index as u32).map(Box::<str>::from) else { return };
        self.forget_uid(&uid, Some(index as u32));
        if let Some(slot) = self.owners.get_mut(index) {
            *slot = None;
            self.free.push(index as u32);
        }
    }

    /// Takes `uid` out of the index, if `only` is none or the place that it leads to.
    fn forget_uid(&mut self, uid: &str, only: Option<u32>) {
        let Self { owners, by_uid, hasher, .. } = self;
        let found = by_uid.find_entry(hasher.hash_one(uid), |index| {
            uid_at(owners, *index) == Some(uid) && only.is_none_or(|only| only == *index)
        });
        if let Ok(entry) = found {
            entry.remove();
        }
    }

    /// The session of this bus that has subscribed for `uid`; the latest of several.
    pub fn holder(&self, uid: &str) -> Option<Token> {
        let is_uid = |index: &u32| uid_at(&self.owners, *index) == Some(uid);
        let index = *self.by_uid.find(self.hasher.hash_one(uid), is_uid)?;
        Some(self.owners.get(index as usize)?.as_ref()?.token)
    }

    /// Follows a session to another place.
    pub fn replace(&mut self, number: u64, token: Token) {
        let slot = index_of(number).and_then(|index| self.owners.get_mut(index));
        if let Some(Some(owner)) = slot {
            owner.token = token;
        }
    }

    /// What `number` stands for; `None` for one that is not in use.
    pub fn find(&self, number: u64) -> Option<Subject> {
        match number {
            INBOX => Some(Subject::Inbox),
            SERVER => Some(Subject::Server),
            BINDINGS => Some(Subject::Bindings),
            PUSHES => Some(Subject::Pushes),
            _ => {
                let owner = self.owners.get(index_of(number)?)?.as_ref()?.token;
                Some(if number.is_multiple_of(2) {
                    Subject::Push(owner)
                } else {
                    Subject::Kick(owner)
                })
            }
        }
    }

    /// All owners with the first of their numbers, to subscribe again after a reconnect.
    pub fn iter(&self) -> impl Iterator<Item = (u64, Token)> {
        self.owners
            .iter()
            .enumerate()
            .filter_map(|(index, owner)| Some((FIRST + index as u64 * 2, owner.as_ref()?.token)))
    }
}

fn uid_at(owners: &[Option<Owner>], index: u32) -> Option<&str> {
    Some(&owners.get(index as usize)?.as_ref()?.uid)
}

fn index_of(number: u64) -> Option<usize> {
    Some((number.checked_sub(FIRST)? / 2) as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_recycled_and_lead_to_their_owner() {
        let mut subscriptions = Subscriptions::default();
        let (ann, bob) = (Token::from_bits(1), Token::from_bits(2));
        let first = subscriptions.insert(ann, "ann");
        let second = subscriptions.insert(bob, "bob");
        assert_eq!(subscriptions.find(first), Some(Subject::Push(ann)));
        assert_eq!(subscriptions.find(second + 1), Some(Subject::Kick(bob)));
        subscriptions.remove(first);
        subscriptions.remove(first);
        assert_eq!(subscriptions.find(first), None);
        assert_eq!(subscriptions.insert(bob, "bob"), first);
        assert_eq!(subscriptions.iter().count(), 2);
        assert_eq!(subscriptions.find(INBOX), Some(Subject::Inbox));
        assert_eq!(subscriptions.find(9), None);
        assert_eq!(subscriptions.find(u64::MAX), None);
    }

    #[test]
    fn a_uid_leads_to_its_latest_session_until_that_leaves() {
        let mut subscriptions = Subscriptions::default();
        let tokens: Vec<Token> = (1..=100).map(Token::from_bits).collect();
        for (number, token) in tokens.iter().enumerate() {
            subscriptions.insert(*token, &format!("u{number}"));
        }
        for (number, token) in tokens.iter().enumerate() {
            assert_eq!(subscriptions.holder(&format!("u{number}")), Some(*token));
        }
        assert_eq!(subscriptions.holder("u100"), None);
        let old = FIRST + 2 * 7;
        let new = subscriptions.insert(Token::from_bits(500), "u7");
        subscriptions.remove(old);
        assert_eq!(subscriptions.holder("u7"), Some(Token::from_bits(500)));
        subscriptions.replace(new, Token::from_bits(501));
        assert_eq!(subscriptions.holder("u7"), Some(Token::from_bits(501)));
        subscriptions.remove(new);
        subscriptions.remove(new);
        assert_eq!(subscriptions.holder("u7"), None);
        assert_eq!(subscriptions.by_uid.len(), 99);
    }
}
