//! Pressure: clients that read slower than they are sent to, and the memory that they cost.
//!
//! A client that does not read is not read from either, so that it cannot ask for more than it takes; its write deadline
//! decides about it. Reading rests from a quarter of the outbox on: the rest is for answers to what was asked before. When all clients together hold more than the ceiling, those with the most are closed first. The
//! invariant: the reactor's sum is the sum of what its connections were counted with.

use shared::close::CloseReason;
use shared::metrics::LimitLabel;

use super::Reactor;
use crate::connection::Connection;
use crate::driver::{Driver, Token};
use crate::limits::memory::SHED_BYTES_MIN;
use crate::rules::Rules;
use crate::turn::Core;

/// Time between two looks at all connections for the worst of them, ms: shedding must not become the work.
const SHED_PAUSE_MS: u64 = 10;

/// Counts anew what a connection holds, and reads from it or not. Called when its outbox or its input has changed.
pub(super) fn follow(
    connection: &mut Connection,
    rules: &Rules,
    core: &mut Core,
    driver: &mut Driver,
) {
    let bytes = connection.held_bytes();
    let token = connection.token;
    let client = &mut connection.client;
    core.buffered_bytes = core.buffered_bytes + bytes - client.buffered_bytes;
    client.buffered_bytes = bytes;
    if client.freezing.is_some() {
        return;
    }
    let unsent_bytes = client.outbox.unsent_bytes();
    if client.is_reading_paused {
        // An end that lingers waits for the client's FIN, which only reading shows.
        if unsent_bytes <= rules.outbox_bytes_max / 8 || client.ending.is_asked() {
            client.is_reading_paused = false;
            driver.resume_receive(token);
        }
    } else if unsent_bytes > rules.outbox_bytes_max / 4 && !client.ending.is_asked() {
        client.is_reading_paused = true;
        core.meter.limited(LimitLabel::Reading);
        driver.pause_receive(token);
    }
}

/// Takes a connection that leaves out of the sum.
pub(super) fn forget(connection: &mut Connection, core: &mut Core) {
    core.buffered_bytes -= connection.client.buffered_bytes;
    connection.client.buffered_bytes = 0;
}

impl Reactor {
    /// Tells the process what this reactor holds, and sheds clients when it is too much; at the end of each turn.
    pub(super) fn relieve(&mut self) {
        let memory = &self.core.limits.memory;
        memory.publish(self.core.reactor, self.core.buffered_bytes);
        let ceiling_bytes = self.rules.limits.memory_bytes_max;
        let excess_bytes = memory.excess_bytes(self.core.buffered_bytes, ceiling_bytes);
        if excess_bytes == 0 || self.core.now_ms < self.next_shed_ms {
            return;
        }
        self.next_shed_ms = self.core.now_ms + SHED_PAUSE_MS;
        let clients = self.connections.slice(0, 1);
        let held = clients
            .filter(|connection| !connection.client.ending.is_asked())
            .map(|connection| (connection.client.buffered_bytes, connection.token));
        for token in worst(held, excess_bytes) {
            self.core.meter.limited(LimitLabel::Memory);
            self.end(token, CloseReason::MemoryLimit);
        }
        self.begin_endings();
    }
}

/// As few clients as hold `excess_bytes` together, those with the most first.
fn worst(held: impl Iterator<Item = (usize, Token)>, excess_bytes: usize) -> Vec<Token> {
    let mut held: Vec<_> = held.filter(|(bytes, _)| *bytes >= SHED_BYTES_MIN).collect();
    held.sort_unstable_by_key(|(bytes, _)| std::cmp::Reverse(*bytes));
    let mut left_bytes = excess_bytes;
    let mut chosen = Vec::new();
    for (bytes, token) in held {
        if left_bytes == 0 {
            break;
        }
        left_bytes = left_bytes.saturating_sub(bytes);
        chosen.push(token);
    }
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn those_with_the_most_are_shed_first_and_no_more_than_needed() {
        let held = [9_000, 50_000, 100, 20_000, 70_000];
        let shed = |excess_bytes: usize| {
            let clients = held.iter().map(|bytes| (*bytes, Token::from_bits(*bytes as u64)));
            let tokens = worst(clients, excess_bytes).into_iter();
            tokens
                .map(|token| held.iter().position(|bytes| Token::from_bits(*bytes as u64) == token))
                .collect::<Option<Vec<_>>>()
                .unwrap()
        };
        assert_eq!(shed(1), [4]);
        assert_eq!(shed(70_001), [4, 1]);
        assert_eq!(shed(1_000_000), [4, 1, 3, 0], "one that holds next to nothing stays");
        assert!(shed(0).is_empty());
    }
}
