//! Letters from the control thread, from other reactors and from the application of standalone mode.

use proto::wire::PushView;
use shared::metrics::CoreCounter;
use shared::session::SessionId;

use super::{Reactor, Report, Stage};
use crate::application::{self, Verdict};
use crate::bus::ReplyTo;
use crate::connections::Occupant;
use crate::directory::Place;
use crate::mailbox::{Mail, MailboxFull};
use crate::{calls, deliver};

/// Letters handled in one turn at most.
const LETTERS_PER_TURN: usize = 256;

impl Reactor {
    /// Handles letters, and leaves the rest to the next turn when there are many, so that sockets do not wait.
    pub(super) fn handle_letters(&mut self) {
        self.has_letters = false;
        for _ in 0..LETTERS_PER_TURN {
            let Some(mail) = self.mailbox.take() else { return };
            self.handle_letter(mail);
        }
        self.has_letters = true;
    }

    pub(super) fn handle_letter(&mut self, mail: Mail) {
        let Some(mail) = self.keep_letter(mail) else { return };
        match mail {
            Mail::Servers(table) => {
                for bus in self.bus_numbers() {
                    self.with_bus(bus, |_, turn| turn.bus.update_servers(&table));
                }
                self.servers = Some(table);
            }
            Mail::Rules(rules) => {
                for bus in self.bus_numbers() {
                    self.with_bus(bus, |_, turn| turn.bus.targets.set_limits(rules.targets));
                }
                self.rules = rules;
            }
            Mail::Bans(bans) => {
                self.core.bans = bans;
                self.kick_banned();
            }
            Mail::Listen(listeners) => {
                for listener in listeners {
                    match self.driver.listen(listener.socket) {
                        Ok(token) => {
                            self.connections.insert(token, Occupant::Listener(listener.service));
                        }
                        Err(error) => tracing::error!(%error, "cannot listen"),
                    }
                }
            }
            Mail::Unlisten => self.unlisten(),
            Mail::BusConnected { socket, server } => self.handle_bus_connected(socket, server),
            Mail::Call { request, reply } => self.serve_call(&request, reply),
            Mail::Judged(verdict) => self.handle_verdict(verdict),
            Mail::Reply { reply, answer } => {
                let home = self.home;
                self.with_bus(home, |_, turn| turn.bus.reply(reply, &answer));
            }
            Mail::Push { session, push } => self.handle_push(session, &push),
            Mail::Bound { session, reply } => self.handle_noted(session, reply),
            Mail::Kick { session, is_replaced } => {
                // A session that has moved on meanwhile is followed once more; a full box loses a kick that a server
                // asked for, which is counted.
                if !self.kick(session, is_replaced) && is_replaced {
                    self.core.replaced.push(session);
                }
            }
            Mail::Answer { bus, token, response } => {
                let found = self.buses.iter().find(|(_, entry)| entry.state.id == bus);
                if let Some((number, _)) = found {
                    self.with_bus(number, |connections, turn| {
                        deliver::handle_answer(token, &response, false, connections, turn);
                    });
                }
            }
            Mail::MoveTo(reactor) => self.begin_move(reactor),
            Mail::Adopt(state) => self.adopt(*state),
            Mail::Stop { grace_ms } => {
                self.stage = Stage::Stopping { deadline_ms: self.core.now_ms + grace_ms };
            }
        }
    }

    fn unlisten(&mut self) {
        for token in self.connections.tokens(|occupant| matches!(occupant, Occupant::Listener(_))) {
            self.driver.unlisten(token);
        }
        self.report(Report::Unlistened { reactor: self.core.reactor });
    }

    /// Others find the user of a bind now, so it can be confirmed. One whose session has ended meanwhile is confirmed too:
    /// it was bound.
    fn handle_noted(&mut self, session: SessionId, reply: ReplyTo) {
        let place = self.core.directory.find(session);
        if let Some(Place { reactor, .. }) = place
            && reactor != self.core.reactor
            && let Some(mailbox) = self.core.mailboxes.get(reactor)
        {
            // A full mailbox loses the confirmation, as it would here.
            let _ = mailbox.send(Mail::Bound { session, reply });
            return;
        }
        let mut reply = Some(reply);
        if let Some(Place { token, .. }) = place {
            self.with_connection(token, |connection, turn| {
                if connection.client.session.id() == session {
                    let reply = reply.take().unwrap_or_default();
                    application::confirm_bind(&mut connection.client, reply, turn.rules, turn.bus);
                }
            });
        }
        if let Some(reply) = reply {
            let home = self.home;
            self.with_bus(home, |_, turn| calls::confirm(reply, turn.bus));
        }
    }

    /// The session may have moved or ended since the application was asked.
    fn handle_verdict(&mut self, verdict: Box<Verdict>) {
        let place = self.core.directory.find(verdict.session);
        if let Some(Place { reactor, .. }) = place
            && reactor != self.core.reactor
            && let Some(mailbox) = self.core.mailboxes.get(reactor)
        {
            if let Err(MailboxFull(Mail::Judged(verdict))) = mailbox.send(Mail::Judged(verdict)) {
                // Tried again with the letters of the next turn.
                self.mailbox.send(Mail::Judged(verdict)).unwrap_or_else(|_| {
                    self.core.meter.count(CoreCounter::MailboxFull);
                });
            }
            return;
        }
        let mut verdict = Some(*verdict);
        if let Some(Place { token, .. }) = place {
            self.with_connection(token, |connection, turn| {
                let is_meant =
                    |verdict: &mut Verdict| verdict.session == connection.client.session.id();
                if let Some(verdict) = verdict.take_if(is_meant) {
                    application::judge(connection, verdict, turn);
                }
            });
        }
        if let Some(verdict) = verdict {
            let home = self.home;
            let answer = calls::session_not_found();
            self.with_bus(home, |_, turn| turn.bus.reply(verdict.reply, &answer));
        }
    }

    /// A push over the in-process bus. The session may have left since it was looked up; then nobody misses it.
    fn handle_push(&mut self, session: SessionId, push: &[u8]) {
        let Some(place) = self.core.directory.find(session) else { return };
        let Some(connection) = self.connections.find(place.token, session) else { return };
        let bus = connection.client.bus;
        let Ok(push) = PushView::decode(push) else { return };
        self.with_bus(bus, |connections, turn| {
            deliver::put_push(place.token, Some(session), &push, connections, turn);
        });
    }
}
