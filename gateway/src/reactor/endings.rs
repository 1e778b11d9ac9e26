//! How connections end: sessions leave the indexes first, then the client is told, then the socket is closed.
//!
//! Each end is counted and logged once, with its cause. The log is bounded a cause and second, because a flood of
//! hostile connections must not become a flood of lines.

use bytes::Bytes;
use proto::wire::RequestView;
use shared::close::CloseReason;
use shared::metrics::{CoreCounter, LimitLabel};
use shared::session::SessionId;

use super::{Reactor, pressure};
use crate::bus::{Carrier, ReplyTo};
use crate::calls;
use crate::connection::Connection;
use crate::connections::Occupant;
use crate::driver::Token;
use crate::ending::CloseStep;
use crate::fan_out;
use crate::mailbox::Mail;
use crate::turn::Turn;

/// Lines a second and cause.
const LINES_MAX: u32 = 5;

/// Counts lines, so that causes can be silenced for the rest of a second.
#[derive(Default)]
pub(super) struct EndLog {
    second: u64,
    lines: [u32; CloseReason::ALL.len()],
    refusals: u32,
    complaints: u32,
}

impl EndLog {
    fn allows(&mut self, now_ms: u64, reason: CloseReason) -> bool {
        self.roll(now_ms);
        let lines = &mut self.lines[reason.index()];
        *lines += 1;
        *lines <= LINES_MAX
    }

    fn roll(&mut self, now_ms: u64) {
        let second = now_ms / 1_000;
        if self.second == second {
            return;
        }
        for (lines, reason) in self.lines.iter().zip(CloseReason::ALL) {
            if *lines > LINES_MAX {
                let silenced = lines - LINES_MAX;
                tracing::warn!(
                    cause = reason.label(),
                    silenced,
                    "connections closed, not logged one by one"
                );
            }
        }
        *self = Self { second, ..Self::default() };
    }

    /// A connection that could not be taken in.
    pub(super) fn refused(&mut self, now_ms: u64, cause: &str) {
        self.roll(now_ms);
        self.refusals += 1;
        if self.refusals == 1 {
            tracing::warn!(cause, "connection refused");
        }
    }

    /// An error that NATS reported and that ends nothing. A missing permission is one for each message, so a line a
    /// second has to do.
    pub(super) fn complained(&mut self, now_ms: u64, text: &str) {
        self.roll(now_ms);
        self.complaints += 1;
        if self.complaints == 1 {
            tracing::warn!(text, "the NATS server reports an error");
        }
    }
}

impl Reactor {
    /// Begins the ends that handlers asked for in this turn.
    pub(super) fn begin_endings(&mut self) {
        let mut ending = std::mem::take(&mut self.core.ending);
        for (token, reason) in ending.drain(..) {
            self.begin_ending(token, reason);
        }
        self.core.ending = ending;
    }

    fn begin_ending(&mut self, token: Token, reason: CloseReason) {
        let log = &mut self.end_log;
        let Some(connection) = self.connections.at(token) else { return };
        let Some(bus) = self.buses.get_mut(connection.client.bus) else { return };
        if connection.client.ending.closing().is_some() {
            return;
        }
        if log.allows(self.core.now_ms, reason) {
            log_end(connection, reason, &self.core.meter);
        }
        calls::unbind(connection, &mut bus.state, &self.core.directory);
        if let Carrier::Local(local) = &bus.state.carrier {
            local.closed(&connection.client.session);
        }
        connection.client.begin_close(reason, &mut self.core.put(&self.rules));
        self.core.meter.closed(reason);
        if reason == CloseReason::OutboxLimit {
            self.core.meter.limited(LimitLabel::Outbox);
        }
        if let Some(tls) = &mut connection.entrance.tls {
            tls.ask_finish();
        }
        // It is ending already, and one reason has to do.
        let _ = connection.flush(&mut self.driver, &mut self.core.pool, self.core.now_ms);
        pressure::follow(connection, &self.rules, &mut self.core, &mut self.driver);
        self.closings.push(token);
        self.poll_closing(token);
    }

    /// Goes on with an end as far as it can go now.
    pub(super) fn poll_closing(&mut self, token: Token) {
        let Some(connection) = self.connections.at(token) else { return };
        if connection.client.freezing.is_some() {
            return;
        }
        let is_sent = connection.is_sent();
        match connection.client.ending.poll(is_sent, self.core.now_ms) {
            CloseStep::Wait => {}
            CloseStep::ShutdownWrite => self.driver.shutdown_write(token),
            CloseStep::Close => self.close(token),
        }
    }

    /// Goes on with all ends; called on the tick.
    pub(super) fn poll_closings(&mut self) {
        let mut closings = std::mem::take(&mut self.closings);
        closings.retain(|token| {
            self.poll_closing(*token);
            self.connections.at(*token).is_some()
        });
        closings.append(&mut self.closings);
        self.closings = closings;
    }

    pub(super) fn close(&mut self, token: Token) {
        if let Some(Occupant::Client(mut connection)) = self.connections.remove(token) {
            self.driver.close(token);
            pressure::forget(&mut connection, &mut self.core);
            if connection.entrance.is_handshaking() {
                self.core.tls_handshakes.end();
            }
            connection.client.outbox.release(&mut self.core.pool);
            self.core.directory.closed();
        }
    }

    /// Serves the calls of other servers that came in this turn, in their order: of two that set a session's data the
    /// later one holds.
    pub(super) fn serve_calls(&mut self) {
        let mut calls = std::mem::take(&mut self.core.calls);
        for (request, reply) in calls.drain(..) {
            self.serve_call(&request, reply);
        }
        // Serving a call makes no other calls, so nothing has come meanwhile; the room is kept.
        self.core.calls = calls;
    }

    pub(super) fn serve_call(&mut self, request: &Bytes, reply: ReplyTo) {
        let Some(Mail::Call { reply, .. }) =
            self.keep_letter(Mail::Call { request: request.clone(), reply })
        else {
            return;
        };
        let home = self.home;
        let answer = match RequestView::decode(request) {
            Err(_) => calls::bad_request("cannot decode the request"),
            Ok(view) => match (view.msg, calls::addressee(&view)) {
                (None, _) => calls::bad_request("the request has no message"),
                (Some(message), None) if message.route == fan_out::HOLDERS => {
                    fan_out::holders(message.data, &self.core.directory)
                }
                (Some(message), None) => calls::route_not_found(message.route),
                (Some(message), Some(addressee)) => {
                    let Some((session, place)) = calls::find(&self.core.directory, addressee)
                    else {
                        let answer = calls::session_not_found();
                        self.with_bus(home, |_, turn| turn.bus.reply(reply, &answer));
                        return;
                    };
                    if place.reactor != self.core.reactor {
                        self.hand_on(place.reactor, request, reply);
                        return;
                    }
                    let mut reply = Some(reply);
                    let mut act = |connection: &mut Connection, turn: &mut Turn<'_>| {
                        if connection.client.session.id() == session {
                            calls::serve(
                                connection,
                                &message,
                                reply.take().unwrap_or_default(),
                                turn,
                            );
                        }
                    };
                    self.with_connection(place.token, &mut act);
                    let Some(reply) = reply else { return };
                    let answer = calls::session_not_found();
                    self.with_bus(home, |_, turn| turn.bus.reply(reply, &answer));
                    return;
                }
            },
        };
        self.with_bus(home, |_, turn| turn.bus.reply(reply, &answer));
    }

    /// Another reactor holds the session.
    fn hand_on(&mut self, reactor: usize, request: &Bytes, reply: ReplyTo) {
        let Some(mailbox) = self.core.mailboxes.get(reactor) else { return };
        let letter = Mail::Call { request: request.clone(), reply };
        if let Err(full) = mailbox.send(letter)
            && let Mail::Call { reply, .. } = full.0
        {
            self.core.meter.count(CoreCounter::MailboxFull);
            let home = self.home;
            self.with_bus(home, |_, turn| turn.bus.reply(reply, &calls::busy()));
        }
    }

    /// Kicks the sessions whose user has logged in elsewhere, here or on other reactors.
    pub(super) fn kick_replaced(&mut self) {
        let mut replaced = std::mem::take(&mut self.core.replaced);
        // One that could not be handed on is tried again with the next turn: two sessions of a user must not stay.
        replaced.retain(|session| !self.kick(*session, true));
        self.core.replaced = replaced;
    }

    /// Kicks a session, here or on another reactor; false when that one's mailbox is full.
    pub(super) fn kick(&mut self, session: SessionId, is_replaced: bool) -> bool {
        if self.keep_letter(Mail::Kick { session, is_replaced }).is_none() {
            return true;
        }
        let Some(place) = self.core.directory.find(session) else { return true };
        if place.reactor != self.core.reactor {
            let Some(mailbox) = self.core.mailboxes.get(place.reactor) else { return true };
            let is_sent = mailbox.send(Mail::Kick { session, is_replaced }).is_ok();
            if !is_sent {
                self.core.meter.count(CoreCounter::MailboxFull);
            }
            return is_sent;
        }
        let reason = if is_replaced { CloseReason::Replaced } else { CloseReason::Kicked };
        self.with_connection(place.token, |connection, turn| {
            if connection.client.session.id() == session {
                calls::kick(connection, reason, turn.rules, turn.core);
            }
        });
        true
    }
}

/// The one line that tells an operator which player, where, and why.
fn log_end(connection: &Connection, reason: CloseReason, meter: &crate::meter::Meter) {
    let client = &connection.client;
    let peer = connection.peer;
    let session = client.session.id().0;
    let uid = client.session.uid();
    let route = meter.route_name(client.last_route);
    let unsent_bytes = client.outbox.unsent_bytes();
    let cause = reason.label();
    match reason {
        CloseReason::PeerClosed | CloseReason::Shutdown => {
            tracing::debug!(%peer, session, uid, route, unsent_bytes, cause, "connection closed");
        }
        CloseReason::Internal => {
            tracing::error!(%peer, session, uid, route, unsent_bytes, cause, "connection closed");
        }
        CloseReason::WriteTimeout | CloseReason::OutboxLimit | CloseReason::IoError => {
            tracing::warn!(%peer, session, uid, route, unsent_bytes, cause, "connection closed");
        }
        _ => {
            tracing::info!(%peer, session, uid, route, unsent_bytes, cause, "connection closed");
        }
    }
}
