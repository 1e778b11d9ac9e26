//! When things are due: the n-th at n divided by the rate, computed from the start so that nothing drifts.

/// A steady rate from a start on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    start_ns: u64,
    per_second: u32,
    next: u64,
}

impl Pace {
    /// The first is due at the start. `per_second` 0 = everything is due at once.
    pub(crate) fn new(start_ns: u64, per_second: u32) -> Self {
        Self { start_ns, per_second, next: 0 }
    }

    /// When the next is due.
    pub(crate) fn due_ns(&self) -> u64 {
        if self.per_second == 0 {
            return self.start_ns;
        }
        // 64 bits would overflow after 18 billion requests: not in any run, but the wide product costs nothing.
        let offset_ns = u128::from(self.next) * 1_000_000_000 / u128::from(self.per_second);
        self.start_ns.saturating_add(offset_ns as u64)
    }

    /// The next is done.
    pub(crate) fn advance(&mut self) {
        self.next += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_that_do_not_divide_a_second_do_not_drift() {
        let mut pace = Pace::new(7, 3);
        let mut dues = Vec::new();
        for _ in 0..7 {
            dues.push(pace.due_ns());
            pace.advance();
        }
        assert_eq!(dues[..4], [7, 333_333_340, 666_666_673, 1_000_000_007]);
        assert_eq!(dues[6], 2_000_000_007);
    }

    #[test]
    fn without_a_rate_everything_is_due_at_once() {
        let mut pace = Pace::new(7, 0);
        pace.advance();
        assert_eq!(pace.due_ns(), 7);
    }
}
