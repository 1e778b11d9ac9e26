//! Subscription numbers: which NATS subscription serves which session.
//!
//! A bound session has two numbers, for its push and its kick subject. Numbers are recycled; that a message of an
//! earlier owner cannot reach the later one is ensured where it is delivered, by comparing the uid inside the message.

use crate::driver::Token;

/// The inbox that answers come to.
pub const INBOX: u64 = 1;
/// The server's own subject.
pub const SERVER: u64 = 2;
/// The subject on which frontends of one type announce their binds.
pub const BINDINGS: u64 = 3;
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
    /// Pushes to the session at this place.
    Push(Token),
    /// Kicks of the session at this place.
    Kick(Token),
}

/// The numbers in use on one bus.
#[derive(Debug, Default)]
pub struct Subscriptions {
    owners: Vec<Option<Token>>,
    free: Vec<u32>,
}

impl Subscriptions {
    /// Two numbers for a session: the returned one for pushes, the next for kicks.
    pub fn insert(&mut self, owner: Token) -> u64 {
        let index = self.free.pop().unwrap_or_else(|| {
            self.owners.push(None);
            self.owners.len() as u32 - 1
        });
        if let Some(slot) = self.owners.get_mut(index as usize) {
            *slot = Some(owner);
        }
        FIRST + u64::from(index) * 2
    }

    /// Gives the two numbers back.
    pub fn remove(&mut self, number: u64) {
        let Some(index) = index_of(number) else { return };
        if let Some(slot) = self.owners.get_mut(index)
            && slot.take().is_some()
        {
            self.free.push(index as u32);
        }
    }

    /// Follows a session to another place.
    pub fn replace(&mut self, number: u64, owner: Token) {
        if let Some(slot) = index_of(number).and_then(|index| self.owners.get_mut(index)) {
            *slot = Some(owner);
        }
    }

    /// What `number` stands for; `None` for one that is not in use.
    pub fn find(&self, number: u64) -> Option<Subject> {
        match number {
            INBOX => Some(Subject::Inbox),
            SERVER => Some(Subject::Server),
            BINDINGS => Some(Subject::Bindings),
            _ => {
                let owner = (*self.owners.get(index_of(number)?)?)?;
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
            .filter_map(|(index, owner)| owner.map(|owner| (FIRST + index as u64 * 2, owner)))
    }
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
        let first = subscriptions.insert(ann);
        let second = subscriptions.insert(bob);
        assert_eq!(subscriptions.find(first), Some(Subject::Push(ann)));
        assert_eq!(subscriptions.find(second + 1), Some(Subject::Kick(bob)));
        subscriptions.remove(first);
        subscriptions.remove(first);
        assert_eq!(subscriptions.find(first), None);
        assert_eq!(subscriptions.insert(bob), first);
        assert_eq!(subscriptions.iter().count(), 2);
        assert_eq!(subscriptions.find(INBOX), Some(Subject::Inbox));
        assert_eq!(subscriptions.find(9), None);
        assert_eq!(subscriptions.find(u64::MAX), None);
    }
}
