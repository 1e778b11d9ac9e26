//! Admission: who is let in. Connections of the process, of an address, a second, and who is banned.
//!
//! The pace of the whole process is held by pausing the listeners, so that a crowd that comes back at once waits in the
//! kernel's queue instead of being turned away; limits of one address close the connection, because its wait would take
//! the places of others. The invariant: a connection that was accepted is counted, and is open or has a reason.

use std::net::IpAddr;
use std::os::fd::OwnedFd;

use shared::close::CloseReason;
use shared::metrics::{CoreCounter, LimitLabel};

use super::Reactor;
use crate::allowance;
use crate::calls;
use crate::connection::Binding;
use crate::connections::Occupant;
use crate::driver::Token;

/// Time between two of a reactor's tries to get memory back from the allocator, ms: each may cost some.
const GIVE_BACK_PAUSE_MS: u64 = 1_000;

/// Why a connection is not taken in: the reason to count, and what the log says.
pub(super) struct Refused {
    pub(super) reason: CloseReason,
    pub(super) cause: String,
}

impl Refused {
    pub(super) fn of(address: IpAddr, reason: CloseReason) -> Self {
        Self { reason, cause: format!("{address}: {}", reason.label()) }
    }
}

impl Reactor {
    pub(super) fn handle_accepted(&mut self, listener: Token, socket: OwnedFd) {
        let Some(Occupant::Listener(service)) = self.connections.occupant(listener) else {
            return;
        };
        let service = *service;
        self.core.meter.count(CoreCounter::Accepted);
        self.pace_accepting();
        if !self.core.directory.open(self.rules.connections_max) {
            self.core.meter.limited(LimitLabel::Connections);
            self.core.meter.closed(CloseReason::Overload);
            self.end_log
                .refused(self.core.now_ms, "the gateway holds pitaya.gateway.maxconns connections");
            return;
        }
        if let Err(Refused { reason, cause }) = self.admit(service, socket) {
            self.core.directory.closed();
            self.core.meter.closed(reason);
            self.end_log.refused(self.core.now_ms, &cause);
        }
    }

    /// Kicks those who are here and banned.
    pub(super) fn kick_banned(&mut self) {
        for connection in self.connections.slice(0, 1) {
            let uid = match &connection.client.binding {
                Binding::Proving { uid, .. } => uid.as_str(),
                _ => connection.client.session.uid(),
            };
            // Behind a proxy the socket's address is the proxy's until the client's is known.
            let is_seated = connection.client.seats.address.is_some();
            let is_banned = is_seated && self.core.is_address_banned(connection.address())
                || self.core.is_uid_banned(uid);
            if is_banned && !connection.client.ending.is_asked() {
                calls::kick(connection, CloseReason::Banned, &self.rules, &mut self.core);
            }
        }
    }

    /// Counts an accepted connection towards the pace, and pauses when it is used up.
    fn pace_accepting(&mut self) {
        let Some(rate) = self.rules.limits.accepts else { return };
        if !self.core.limits.accepts.note(rate, self.core.now_us) && !self.is_accepting_paused {
            self.core.meter.limited(LimitLabel::Accepts);
            self.pause_accepting();
        }
    }

    /// Begins to accept again when nothing is against it any more, or pauses when memory is scarce; on the tick.
    pub(super) fn tick_accepting(&mut self) {
        let is_scarce = self.core.limits.memory.is_scarce();
        let rate = self.rules.limits.accepts;
        let is_open =
            rate.is_none_or(|rate| self.core.limits.accepts.is_open(rate, self.core.now_us));
        if self.is_accepting_paused && is_open && !is_scarce {
            self.is_accepting_paused = false;
            for token in self.listeners() {
                self.driver.resume_accept(token);
            }
        } else if is_scarce && !self.is_accepting_paused {
            self.core.meter.limited(LimitLabel::Memory);
            self.pause_accepting();
        }
        if is_scarce && self.core.now_ms >= self.next_give_back_ms {
            self.next_give_back_ms = self.core.now_ms + GIVE_BACK_PAUSE_MS;
            allowance::give_back();
        }
    }

    fn pause_accepting(&mut self) {
        self.is_accepting_paused = true;
        for token in self.listeners() {
            self.driver.pause_accept(token);
        }
    }

    fn listeners(&self) -> Vec<Token> {
        self.connections.tokens(|occupant| matches!(occupant, Occupant::Listener(_)))
    }
}
