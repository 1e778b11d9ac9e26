//! TLS handshakes under way on one reactor, and which of them goes when there are too many.
//!
//! The oldest goes: an honest client needs two round trips, so who has been at it longest is most likely somebody who
//! only holds a place. Refusing newcomers instead would let a few silent connections lock everybody out.

use std::collections::VecDeque;

use crate::driver::Token;

/// The handshakes of one reactor.
#[derive(Default)]
pub struct Handshakes {
    /// In the order of their beginning; those that ended meanwhile are found when they come to the front.
    order: VecDeque<Token>,
    under_way: usize,
}

impl Handshakes {
    /// A handshake begins.
    pub fn begin(&mut self, token: Token) {
        self.order.push_back(token);
        self.under_way += 1;
    }

    /// A handshake has ended, one way or the other.
    pub fn end(&mut self) {
        debug_assert!(self.under_way > 0, "more handshakes ended than began");
        self.under_way = self.under_way.saturating_sub(1);
        if self.under_way == 0 {
            self.order.clear();
        }
    }

    /// The next one to give up while there are more than `under_way_max`; `is_under_way` says of a connection whether
    /// it still has to be counted. The caller ends it, and tells with [`Handshakes::end`].
    pub fn excess(
        &mut self,
        under_way_max: usize,
        mut is_under_way: impl FnMut(Token) -> bool,
    ) -> Option<Token> {
        while self.under_way > under_way_max {
            let token = self.order.pop_front()?;
            if is_under_way(token) {
                return Some(token);
            }
        }
        // What is left at the front when all is well keeps the list from growing with each connection.
        while self.order.len() > 2 * self.under_way.max(64)
            && self.order.front().is_some_and(|token| !is_under_way(*token))
        {
            self.order.pop_front();
        }
        None
    }

    /// How many there are.
    pub fn under_way(&self) -> usize {
        self.under_way
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_that_still_goes_on_is_given_up() {
        let tokens: Vec<Token> = (0..5u64).map(Token::from_bits).collect();
        let mut handshakes = Handshakes::default();
        for token in &tokens {
            handshakes.begin(*token);
        }
        handshakes.end();
        let is_under_way = |token: Token| token != tokens[0];
        assert_eq!(handshakes.excess(4, is_under_way), None);
        assert_eq!(handshakes.excess(3, is_under_way), Some(tokens[1]));
        handshakes.end();
        assert_eq!(handshakes.excess(3, is_under_way), None);
        assert_eq!(handshakes.under_way(), 3);
    }

    #[test]
    fn handshakes_that_came_and_went_are_forgotten() {
        let mut handshakes = Handshakes::default();
        let slow = Token::from_bits(0);
        for slot in 1..1_000u64 {
            handshakes.begin(Token::from_bits(slot));
            handshakes.end();
        }
        assert!(handshakes.order.is_empty());
        handshakes.begin(slow);
        for slot in 1..1_000u64 {
            handshakes.begin(Token::from_bits(slot));
            handshakes.end();
            assert_eq!(handshakes.excess(10, |token| token == slow), None);
        }
        assert_eq!(handshakes.under_way(), 1);
    }
}
