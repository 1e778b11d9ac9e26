//! Probes: whether a server that owes an answer for long is still there.
//!
//! A request that waits is either slow work or lost with its server, and NATS tells only of what is sent afterwards that
//! nobody listens. So a server of ours that owes answers is sent a message now and then that says nothing and has no
//! answer. When nobody has listened twice in a row, the server has gone, and what was sent before the first of the two
//! fails then instead of at its time-out. Servers that do not know probes are not asked: for Go's they would be requests.
//!
//! The invariant: no request fails that was sent after the first of the two probes; NATS tells of those itself.

use std::sync::Arc;

use shared::server::Server;

use super::{BusState, Carrier};

/// How long an answer may take before its server is asked, ms.
const PATIENCE_MS: u64 = 300;
/// Between two probes of one server, ms. With the tick's time added, twice this and the patience stay below a second.
const PAUSE_MS: u64 = 200;
/// A subscription can be away for a moment, while a server makes its connection anew.
const MISSES_MAX: u32 = 2;

/// The servers of one bus that are asked at the moment: few, as a rule none.
#[derive(Debug, Default)]
pub struct Probes(Vec<Probe>);

#[derive(Debug)]
struct Probe {
    target: u32,
    /// Numbers of targets are used again; the server tells them apart.
    server: Arc<Server>,
    sent_ms: u64,
    /// When the first one of those in a row was sent that met nobody.
    missed_since_ms: u64,
    misses: u32,
    /// Whether NATS has told that the last one met nobody.
    is_missed: bool,
}

impl Probes {
    /// Whether a probe is due; if so it counts as sent.
    fn ask(&mut self, target: u32, server: &Arc<Server>, now_ms: u64) -> bool {
        let known = self
            .0
            .iter_mut()
            .find(|probe| probe.target == target && Arc::ptr_eq(&probe.server, server));
        let Some(probe) = known else {
            self.0.retain(|probe| probe.target != target);
            let server = server.clone();
            self.0.push(Probe {
                target,
                server,
                sent_ms: now_ms,
                missed_since_ms: now_ms,
                misses: 0,
                is_missed: false,
            });
            return true;
        };
        if now_ms < probe.sent_ms + PAUSE_MS {
            return false;
        }
        if !probe.is_missed {
            (probe.misses, probe.missed_since_ms) = (0, now_ms);
        }
        (probe.sent_ms, probe.is_missed) = (now_ms, false);
        true
    }

    /// Notes that the last probe of `target` met nobody. When that makes the server one that has gone: since when, ms.
    fn note_miss(&mut self, target: u32, server: &Arc<Server>) -> Option<u64> {
        let place = self
            .0
            .iter()
            .position(|probe| probe.target == target && Arc::ptr_eq(&probe.server, server))?;
        let probe = self.0.get_mut(place)?;
        if !std::mem::replace(&mut probe.is_missed, true) {
            probe.misses += 1;
        }
        if probe.misses < MISSES_MAX {
            return None;
        }
        Some(self.0.swap_remove(place).missed_since_ms)
    }
}

impl BusState {
    /// Asks the servers that owe answers for long. Called once a tick.
    pub fn probe_silent(&mut self, now_ms: u64) {
        if !self.is_ready() {
            return;
        }
        let Self { carrier: Carrier::Nats(lines), pending, targets, probes, .. } = self else {
            return;
        };
        let silent = pending.silent_targets(now_ms.saturating_sub(PATIENCE_MS));
        probes.0.retain(|probe| silent.contains(&probe.target));
        for number in silent {
            if let Some(target) = targets.find(number)
                && target.takes_probes()
                && probes.ask(number, &target.server, now_ms)
            {
                lines.put_probe(&target.subject, number);
            }
        }
    }

    /// Takes in that a probe met nobody. Returns the server, and since when it has gone, ms, when that is certain now.
    pub fn miss_probe(&mut self, target: u32) -> Option<(Arc<Server>, u64)> {
        let found = self.targets.find(target).filter(|target| target.takes_probes())?;
        let server = found.server.clone();
        let since_ms = self.probes.note_miss(target, &server)?;
        Some((server, since_ms))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server() -> Arc<Server> {
        Arc::new(Server {
            id: "room-1".to_owned(),
            server_type: "room".to_owned(),
            metadata: [].into(),
            frontend: false,
            hostname: String::new(),
        })
    }

    #[test]
    fn two_misses_in_a_row_make_a_server_one_that_has_gone_since_the_first() {
        let (mut probes, server) = (Probes::default(), server());
        assert!(probes.ask(3, &server, 1_000));
        assert_eq!(probes.note_miss(3, &server), None);
        assert_eq!(probes.note_miss(3, &server), None, "the same one told twice");
        assert!(!probes.ask(3, &server, 1_000 + PAUSE_MS - 1));
        assert!(probes.ask(3, &server, 1_000 + PAUSE_MS));
        assert_eq!(probes.note_miss(3, &server), Some(1_000));
        assert_eq!(probes.note_miss(3, &server), None, "told once");
    }

    #[test]
    fn a_probe_that_somebody_heard_begins_the_row_anew() {
        let (mut probes, server) = (Probes::default(), server());
        for (at_ms, is_missed) in [(1_000, true), (2_000, false), (3_000, true)] {
            assert!(probes.ask(3, &server, at_ms));
            assert!(!is_missed || probes.note_miss(3, &server).is_none(), "at {at_ms}");
        }
        assert!(probes.ask(3, &server, 4_000));
        assert_eq!(probes.note_miss(3, &server), Some(3_000));
    }

    #[test]
    fn another_server_under_the_same_number_is_another_one() {
        let (mut probes, one, other) = (Probes::default(), server(), server());
        assert!(probes.ask(3, &one, 1_000));
        assert_eq!(probes.note_miss(3, &one), None);
        assert_eq!(probes.note_miss(3, &other), None);
        assert!(probes.ask(3, &other, 1_001));
        assert_eq!(probes.note_miss(3, &one), None, "forgotten");
        assert_eq!(probes.note_miss(3, &other), None, "its first one");
    }
}
