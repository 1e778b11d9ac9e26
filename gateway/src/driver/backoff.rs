//! Listeners that rest after a failed accept. Pure: the time is passed in.

use super::token::Token;
use std::time::{Duration, Instant};

/// Who rests until when. As a rule empty, and never longer than there are listeners.
#[derive(Default)]
pub(super) struct Backoffs {
    resting: Vec<(Instant, Token)>,
}

impl Backoffs {
    pub(super) fn is_empty(&self) -> bool {
        self.resting.is_empty()
    }

    pub(super) fn rest(&mut self, token: Token, until: Instant) {
        self.forget(token);
        self.resting.push((until, token));
    }

    pub(super) fn forget(&mut self, token: Token) {
        self.resting.retain(|&(_, other)| other != token);
    }

    /// A listener whose rest is over at `now`; call it until there is none.
    pub(super) fn poll_rested(&mut self, now: Instant) -> Option<Token> {
        let position = self.resting.iter().position(|&(until, _)| until <= now)?;
        Some(self.resting.swap_remove(position).1)
    }

    /// `timeout`, or less when a rest ends before it.
    pub(super) fn shorten(&self, timeout: Option<Duration>, now: Instant) -> Option<Duration> {
        let first =
            self.resting.iter().map(|&(until, _)| until.saturating_duration_since(now)).min();
        match (timeout, first) {
            (Some(timeout), Some(first)) => Some(timeout.min(first)),
            (timeout, first) => timeout.or(first),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wait_ends_with_the_first_rest() {
        let now = Instant::now();
        let second = Duration::from_secs(1);
        let (one, two) = (Token::new(1, 0), Token::new(2, 0));
        let mut backoffs = Backoffs::default();
        assert_eq!(backoffs.shorten(None, now), None);
        assert_eq!(backoffs.shorten(Some(second), now), Some(second));
        backoffs.rest(one, now + second);
        backoffs.rest(two, now + 3 * second);
        backoffs.rest(two, now + 2 * second);
        assert_eq!(backoffs.shorten(None, now), Some(second));
        assert_eq!(backoffs.shorten(Some(second / 2), now), Some(second / 2));
        assert_eq!(backoffs.shorten(None, now + 5 * second), Some(Duration::ZERO));
        assert_eq!(backoffs.poll_rested(now), None);
        assert_eq!(backoffs.poll_rested(now + second), Some(one));
        assert_eq!(backoffs.poll_rested(now + second), None);
        backoffs.forget(two);
        assert!(backoffs.is_empty());
    }
}
